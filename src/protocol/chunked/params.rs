use std::borrow::Cow;

use crate::{
    UploadError,
    limits::{QUERY_BYTES, QUERY_FIELDS},
};

/// The fields of a request, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    query: Vec<(String, String)>,
    body: Vec<(String, String)>,
    /// Those that are headers of the request.
    heads: Vec<(String, String)>,
    /// Names of those in query and headers that were not UTF-8.
    garbled: Vec<String>,
    part: FilePart,
}

/// What the head of the part says that carries the file of a form.
#[derive(Clone, Debug, Default)]
pub(crate) struct FilePart {
    pub(crate) file_name: Option<String>,
    pub(crate) content_type: Option<String>,
}

impl Params {
    /// Most bytes of a query, or of a form without a file.
    pub(crate) const MAX: u64 = QUERY_BYTES as u64;

    /// The fields of an `application/x-www-form-urlencoded` form.
    pub(crate) fn from_form(form: &[u8]) -> Result<Self, UploadError> {
        match std::str::from_utf8(form) {
            Ok(form) => Self::from_query(Some(form)),
            Err(_) => Err(UploadError::Multipart {
                reason: "it is not UTF-8",
            }),
        }
    }

    pub(crate) fn from_query(query: Option<&str>) -> Result<Self, UploadError> {
        let query = query.unwrap_or_default();
        if query.len() > QUERY_BYTES || query.split('&').count() > QUERY_FIELDS {
            return Err(UploadError::TooManyFields);
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

    /// Whether the query has a field of such a name; for queries of any size.
    pub(crate) fn query_has(query: Option<&str>, name: impl Fn(&str) -> bool) -> bool {
        let mut pairs = query.unwrap_or_default().split('&').filter_map(decode);
        pairs.any(|(n, _)| name(&n))
    }

    /// Adds a field of the form.
    pub(crate) fn push_body(&mut self, name: String, value: String) {
        self.body.push((name, value));
    }

    /// Adds a header, or `None` if its value is not UTF-8.
    pub(crate) fn push_head(&mut self, name: &str, value: Option<String>) {
        if value.is_none() {
            self.garbled.push(name.to_owned());
        }
        self.heads
            .push((name.to_owned(), value.unwrap_or_default()));
    }

    /// Notes what the form says of its file.
    pub(crate) fn set_part(&mut self, part: FilePart) {
        self.part = part;
    }

    pub(crate) fn part(&self) -> &FilePart {
        &self.part
    }

    /// Whether there is a field of such a name.
    pub(crate) fn has(&self, name: impl Fn(&str) -> bool) -> bool {
        let fields = self.query.iter().chain(&self.body).chain(&self.heads);
        fields.into_iter().any(|(n, _)| name(n))
    }

    /// Whether it is known before the body.
    pub(crate) fn in_head(&self, name: &str) -> bool {
        self.query.iter().chain(&self.heads).any(|(n, _)| n == name)
    }

    /// Whether there is this field. One without a name is none: it stands for those that a dialect
    /// does not have.
    pub(crate) fn contains(&self, name: &str) -> bool {
        !name.is_empty() && self.has(|n| n == name)
    }

    /// The value of a field. It may come several times, as it does in query and form, but not with
    /// different values.
    pub(crate) fn one<'a>(&'a self, name: &'a str) -> Result<Option<Cow<'a, str>>, UploadError> {
        let value = self.first(name)?;
        match self.all(name).all(|other| Some(&other) == value.as_ref()) {
            true => Ok(value),
            false => Err(UploadError::ConflictingField { name: name.into() }),
        }
    }

    /// The first value of a field. Resumable.js sends one that the application has set before its
    /// own in tests, and instead of its own in uploads.
    pub(crate) fn first<'a>(&'a self, name: &'a str) -> Result<Option<Cow<'a, str>>, UploadError> {
        match self.garbled.iter().any(|garbled| garbled == name) {
            true => Err(UploadError::InvalidField {
                name: name.into(),
                reason: "is not UTF-8",
            }),
            false => Ok(self.all(name).next()),
        }
    }

    /// The fields that are not the layer's, as they were sent. Those of the form are the query's
    /// again, if both are there.
    pub(crate) fn extra(&self, is_ours: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let in_body = |name: &str| self.body.iter().any(|(n, _)| n == name);
        let query = self.query.iter().filter(|(name, _)| !in_body(name));
        query
            .chain(&self.body)
            .filter(|(name, _)| !is_ours(name))
            .cloned()
            .collect()
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let named = move |(n, value): &'a (String, String)| (n == name).then_some(value);
        self.query
            .iter()
            .chain(&self.body)
            .chain(&self.heads)
            .filter_map(named)
            .map(|value| line_feeds(value))
    }
}

/// `None` for an empty pair, as between two `&`.
fn decode(raw: &str) -> Option<(String, String)> {
    let (name, value) = form_urlencoded::parse(raw.as_bytes()).next()?;
    Some((name.into_owned(), value.into_owned()))
}

/// Decoding puts U+FFFD in the place of what is not UTF-8. One that was sent as such is no error:
/// files that came out of a broken archive have it in their names.
fn was_utf8(raw: &str, name: &str, value: &str) -> bool {
    const LOST: char = char::REPLACEMENT_CHARACTER;
    let got = name.matches(LOST).count() + value.matches(LOST).count();
    if got == 0 {
        return true;
    }
    let escaped = raw.to_ascii_uppercase().matches("%EF%BF%BD").count();
    got == escaped + raw.matches(LOST).count()
}

/// Forms make CR LF of every line break, queries do not.
fn line_feeds(value: &str) -> Cow<'_, str> {
    match value.contains('\r') {
        true => Cow::Owned(value.replace("\r\n", "\n").replace('\r', "\n")),
        false => Cow::Borrowed(value),
    }
}
