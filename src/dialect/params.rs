use std::borrow::Cow;

use crate::UploadError;

/// Most bytes of a query.
const QUERY: usize = 16 << 10;

/// Most fields of a query.
const PAIRS: usize = 64;

/// The fields of a request, in the order in which they came.
#[derive(Clone, Debug, Default)]
pub(crate) struct Params {
    query: Vec<(String, String)>,
    body: Vec<(String, String)>,
}

impl Params {
    pub(super) fn from_query(query: Option<&str>) -> Result<Self, UploadError> {
        let query = query.unwrap_or_default();
        if query.len() > QUERY {
            return Err(UploadError::TooManyFields);
        }
        let pairs = form_urlencoded::parse(query.as_bytes());
        let query: Vec<_> = pairs
            .take(PAIRS + 1)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        if query.len() > PAIRS {
            return Err(UploadError::TooManyFields);
        }
        Ok(Self {
            query,
            body: Vec::new(),
        })
    }

    /// Adds a field of the form.
    pub(crate) fn push_body(&mut self, name: String, value: String) {
        self.body.push((name, value));
    }

    pub(super) fn in_query(&self, name: &str) -> bool {
        self.query.iter().any(|(n, _)| n == name)
    }

    pub(super) fn contains(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The value of a field. It may come several times, as it does in query and form, but not with
    /// different values.
    pub(super) fn one<'a>(&'a self, name: &'a str) -> Result<Option<Cow<'a, str>>, UploadError> {
        let mut values = self.all(name);
        let Some(value) = values.next() else {
            return Ok(None);
        };
        match values.all(|other| other == value) {
            true => Ok(Some(value)),
            false => Err(UploadError::ConflictingField { name: name.into() }),
        }
    }

    /// The first value of a field. Resumable.js sends one that the application has set before its
    /// own in tests, and instead of its own in uploads.
    pub(super) fn first<'a>(&'a self, name: &'a str) -> Option<Cow<'a, str>> {
        self.all(name).next()
    }

    /// The fields that are not the layer's. Those of the form are the query's again, if both are
    /// there.
    pub(super) fn extra(&self, is_ours: impl Fn(&str) -> bool) -> Vec<(String, String)> {
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
            .filter_map(named)
            .map(|value| line_feeds(value))
    }
}

/// Forms make CR LF of every line break, queries do not.
fn line_feeds(value: &str) -> Cow<'_, str> {
    match value.contains('\r') {
        true => Cow::Owned(value.replace("\r\n", "\n").replace('\r', "\n")),
        false => Cow::Borrowed(value),
    }
}
