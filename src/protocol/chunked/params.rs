use std::borrow::Cow;

use http::{HeaderMap, header};

use super::{
    field::{Field, Source},
    headers,
};
use crate::{
    error::{Error, Reason},
    limits::{QUERY_BYTES, QUERY_FIELDS},
    protocol::{
        FilePart,
        offer::{is_offer, says_whole},
    },
};

/// The fields of a request, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    query: Vec<(String, String)>,
    form: Vec<(String, String)>,
    /// Fields that are neither in the query nor in the form.
    others: Vec<(Field, String)>,
    /// Names of fields in the query that are not UTF-8.
    garbled: Vec<String>,
    part: FilePart,
}

impl Params {
    /// Most bytes of a query, or of a URL-encoded form.
    pub(super) const MAX: u64 = QUERY_BYTES as u64;

    /// The fields of a URL-encoded form.
    pub(super) fn from_form(form: &[u8]) -> Result<Self, Error> {
        let problem = "it is not UTF-8";
        let form = std::str::from_utf8(form)
            .map_err(|error| Error::new(Reason::Multipart { problem }, error))?;
        Self::from_query(Some(form))
    }

    pub(crate) fn from_query(query: Option<&str>) -> Result<Self, Error> {
        let query = query.unwrap_or_default();
        if query.len() > QUERY_BYTES || query.split('&').count() > QUERY_FIELDS {
            return Err(Reason::TooManyFields.into());
        }
        let mut params = Self::default();
        for raw in query.split('&') {
            let Some((name, value)) = decode(raw) else {
                continue;
            };
            if !was_utf8(raw, &name, &value) {
                params.garbled.push(name.clone());
            }
            params.query.push((name, value));
        }
        Ok(params)
    }

    /// Whether the query has a field with such a name. For queries of any length.
    pub(super) fn query_has(query: Option<&str>, name: impl Fn(&str) -> bool) -> bool {
        let mut pairs = query.unwrap_or_default().split('&').filter_map(decode);
        pairs.any(|(n, _)| name(&n))
    }

    /// The value of the field with this name. For queries of any length.
    pub(super) fn query_value(query: Option<&str>, name: &str) -> Option<String> {
        let mut pairs = query.unwrap_or_default().split('&').filter_map(decode);
        pairs.find(|(n, _)| n == name).map(|(_, value)| value)
    }

    /// Adds a field of the form.
    pub(super) fn push_form(&mut self, name: String, value: String) {
        self.form.push((name, value));
    }

    /// Adds the query and the headers of the request whose body these fields are.
    pub(super) fn with_head(mut self, head: Self) -> Self {
        self.query.extend(head.query);
        self.garbled.extend(head.garbled);
        self.others.extend(head.others);
        self
    }

    /// Sets a field that the request does not have.
    pub(super) fn set(&mut self, field: &Field, value: String) {
        self.others.push((field.clone(), value));
    }

    /// Adds the values of a field that is a header. Several dialects can have the same one.
    pub(super) fn add_header(&mut self, headers: &HeaderMap, field: &Field) {
        if !self.others.iter().any(|(known, _)| known == field) {
            let values = headers::values(headers, field).into_iter();
            self.others
                .extend(values.map(|value| (field.clone(), value)));
        }
    }

    /// Sets what the head of the file's part says.
    pub(crate) fn set_part(&mut self, part: FilePart) {
        self.part = part;
    }

    /// Whether the query or the form has a field with such a name.
    pub(crate) fn has(&self, name: impl Fn(&str) -> bool) -> bool {
        let mut fields = self.query.iter().chain(&self.form);
        fields.any(|(n, _)| name(n))
    }

    /// Whether the head of the request has this field.
    pub(super) fn in_head(&self, field: &Field) -> bool {
        let in_query = |name| self.query.iter().any(|(n, _)| n == name);
        field.parameter().is_some_and(in_query) || self.in_others(field)
    }

    fn in_others(&self, field: &Field) -> bool {
        self.others.iter().any(|(known, _)| known == field)
    }

    /// Whether the request has this field.
    pub(super) fn contains(&self, field: &Field) -> bool {
        let named = |name| self.has(|n| n == name);
        field.parameter().is_some_and(named)
            || self.in_others(field)
            || self.of_part(field).is_some()
    }

    /// The value of a field. It can be sent several times, as in query and form, but not with
    /// different values.
    pub(crate) fn one<'a>(&'a self, field: &'a Field) -> Result<Option<Cow<'a, str>>, Error> {
        let value = self.first(field)?;
        if self.all(field).all(|other| Some(&other) == value.as_ref()) {
            Ok(value)
        } else {
            let name = field.name().into();
            Err(Reason::ConflictingField { name }.into())
        }
    }

    /// The first value of a field. If the application sets a field of Resumable.js, the client
    /// sends both values in tests, the application's first, and only that one in uploads.
    pub(super) fn first<'a>(&'a self, field: &'a Field) -> Result<Option<Cow<'a, str>>, Error> {
        let in_query = |name| self.garbled.iter().any(|garbled| garbled == name);
        if field.parameter().is_some_and(in_query) {
            return Err(invalid(field, "is not UTF-8"));
        }
        Ok(self.all(field).next())
    }

    /// The fields that the layer does not use, as they were sent. If the query and the form have
    /// fields of the same name, only those of the form count.
    pub(crate) fn extra(&self, is_ours: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let in_form = |name: &str| self.form.iter().any(|(n, _)| n == name);
        let query = self.query.iter().filter(|(name, _)| !in_form(name));
        query
            .chain(&self.form)
            .filter(|(name, _)| !is_ours(name))
            .cloned()
            .collect()
    }

    /// The values of those of these fields that are headers of their own, by the header's name.
    pub(super) fn headers<'a>(
        &'a self,
        fields: &'a [Field],
    ) -> impl Iterator<Item = (String, String)> {
        let others = self
            .others
            .iter()
            .filter(|(known, _)| fields.contains(known));
        others.filter_map(|(field, value)| Some((field.header_name()?.to_owned(), value.clone())))
    }

    fn all<'a>(&'a self, field: &'a Field) -> impl Iterator<Item = Cow<'a, str>> {
        let name = field.parameter();
        let fields = self.query.iter().chain(&self.form);
        let fields = fields.filter(move |(n, _)| name == Some(n));
        let fields = fields.map(|(_, value)| value.as_str());
        let others = self.others.iter().filter(move |(known, _)| known == field);
        let others = others.map(|(_, value)| value.as_str());
        fields
            .chain(others)
            .chain(self.of_part(field))
            .map(line_feeds)
    }

    fn of_part(&self, field: &Field) -> Option<&str> {
        let value = match &field.0 {
            Source::PartFileName => self.part.file_name.as_deref(),
            Source::PartMediaType => self.part.content_type.as_deref(),
            _ => None,
        };
        value.filter(|value| !value.is_empty())
    }
}

/// `None` for an empty pair, as between two `&`.
fn decode(raw: &str) -> Option<(String, String)> {
    let (name, value) = form_urlencoded::parse(raw.as_bytes()).next()?;
    Some((name.into_owned(), value.into_owned()))
}

/// Whether nothing was lost in decoding, which replaces what is not UTF-8 with U+FFFD. A U+FFFD
/// that was sent is valid: files from a broken archive have it in their names.
fn was_utf8(raw: &str, name: &str, value: &str) -> bool {
    const LOST: char = char::REPLACEMENT_CHARACTER;
    let got = name.matches(LOST).count() + value.matches(LOST).count();
    if got == 0 {
        return true;
    }
    let escaped = raw.to_ascii_uppercase().matches("%EF%BF%BD").count();
    got == escaped + raw.matches(LOST).count()
}

/// Replaces the line breaks of forms, which are CR LF, with those of queries.
fn line_feeds(value: &str) -> Cow<'_, str> {
    if value.contains('\r') {
        Cow::Owned(value.replace("\r\n", "\n").replace('\r', "\n"))
    } else {
        Cow::Borrowed(value)
    }
}

pub(super) fn invalid(field: &Field, problem: &'static str) -> Error {
    let name = field.name().into();
    Reason::InvalidField { name, problem }.into()
}

/// Whether the headers allow that a request of no dialect carries a whole file.
pub(crate) fn allows_whole(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(|name| name.as_str());
    // Clients such as URLSession add the headers of the IETF draft to all requests.
    let is_whole = says_whole(headers);
    // tus, FilePond and the IETF draft have headers `Upload-…`.
    let is_of_uploads = |name: &str| name.starts_with("upload-") && !(is_whole && is_offer(name));
    // The second one is that of the upload module of nginx.
    let is_range = |name: &str| [header::CONTENT_RANGE.as_str(), "x-content-range"].contains(&name);
    !names.any(|name| is_of_chunks(name) || is_of_uploads(name) || is_range(name))
}

/// Whether fields without a position can be those of a whole file.
///
/// An unknown field whose name says that the file is in pieces belongs to a client that the layer
/// does not know. To deliver its chunk as a whole file would be wrong.
pub(crate) fn may_be_whole(params: &Params, known: impl Fn(&str) -> bool) -> bool {
    !params.has(|name| !known(name) && is_of_chunks(name))
}

/// Whether a name is that of a piece of a file: it contains `chunk`, or has one of these words, as
/// `part_number`, `totalParts` and `X-Slice` do. Segments of a film are whole files.
fn is_of_chunks(name: &str) -> bool {
    const WORDS: [&str; 8] = [
        "part",
        "parts",
        "piece",
        "pieces",
        "slice",
        "slices",
        "fragment",
        "fragments",
    ];
    let mut fives = name.as_bytes().windows(5);
    // Not all names that contain `offset`: an application may send that of a time zone.
    fives.any(|five| five.eq_ignore_ascii_case(b"chunk"))
        || name.eq_ignore_ascii_case("offset")
        || words(name).any(|word| WORDS.iter().any(|known| known.eq_ignore_ascii_case(word)))
}

/// The words of a name. A capital letter after a small one starts a word.
fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|c: char| !c.is_alphabetic())
        .flat_map(|mut rest| {
            std::iter::from_fn(move || {
                let mut after_small = false;
                let end = rest.find(|c: char| {
                    let is_start = after_small && c.is_uppercase();
                    after_small = c.is_lowercase();
                    is_start
                });
                let (word, after) = rest.split_at(end.unwrap_or(rest.len()));
                rest = after;
                (!word.is_empty()).then_some(word)
            })
        })
}
