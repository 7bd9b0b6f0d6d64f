//! The settings of chunk clients, and functions that several decoders need.

use std::sync::Arc;

use http::{HeaderMap, request::Parts};

use super::{
    answer::{Answers, Asked},
    dialect::{Dialect, IdentityRule},
    field::Field,
    headers,
    params::Params,
    parse::{Fields, Subject, missing},
};
use crate::{
    error::Error,
    hooks::Purpose,
    protocol::{Look, Target},
};

/// The protocol of chunk clients, in all dialects that a layer understands. The names of the fields
/// tell the dialects apart.
#[derive(Clone, Debug)]
pub(crate) struct Chunked {
    pub(super) dialects: Vec<Arc<Dialect>>,
    pub(crate) identity: IdentityRule,
    /// The parameter that asks for the list of the unfinished uploads.
    pub(crate) list_parameter: Option<String>,
    /// The field with the digest of a chunk.
    pub(crate) digest_field: Option<Field>,
    /// Whether a form without any dialect's fields is a whole file.
    pub(crate) accept_plain: bool,
}

impl Default for Chunked {
    fn default() -> Self {
        let dialects = [
            Dialect::resumable_js(),
            Dialect::flow_js(),
            Dialect::dropzone(),
            Dialect::fine_uploader(),
        ];
        Self {
            dialects: dialects.map(Arc::new).into(),
            identity: IdentityRule::default(),
            list_parameter: None,
            digest_field: None,
            accept_plain: true,
        }
    }
}

/// Settings.
impl Chunked {
    /// Removes all dialects and plain uploads.
    pub(crate) fn clear(&mut self) {
        self.dialects.clear();
        self.accept_plain = false;
    }

    /// Adds a dialect, or replaces the one with its name.
    pub(crate) fn add(&mut self, dialect: Dialect) {
        let mut dialects = self.dialects.iter_mut();
        match dialects.find(|known| known.name() == dialect.name()) {
            Some(known) => *known = Arc::new(dialect),
            None => self.dialects.push(Arc::new(dialect)),
        }
    }

    pub(in crate::protocol) fn named(&self, name: &str) -> Option<&Dialect> {
        let mut dialects = self.dialects.iter();
        Some(dialects.find(|dialect| dialect.name() == name)?)
    }
}

/// Functions that decode requests.
impl Chunked {
    /// A test, of one chunk or of all.
    pub(super) fn test(
        &self,
        dialect: &Arc<Dialect>,
        params: &Params,
        subject: Subject,
    ) -> (Result<Look, Error>, Answers) {
        let asked = match dialect.list_tests {
            Some(_) => Asked::List,
            None => Asked::Chunk,
        };
        self.look(dialect, params, asked, subject)
    }

    pub(super) fn look(
        &self,
        dialect: &Arc<Dialect>,
        params: &Params,
        asked: Asked,
        subject: Subject,
    ) -> (Result<Look, Error>, Answers) {
        let mut answers = Answers::new(Some(dialect), params);
        let chunk = match dialect.chunk(Fields::first(params), subject, self.identity) {
            Ok(chunk) => chunk,
            Err(error) => return (Err(error), answers),
        };
        let mut upload = chunk.upload.clone();
        upload.fields = dialect.extra(params);
        let (purpose, chunk_len) = match asked {
            Asked::Chunk | Asked::List => (Purpose::Test, chunk.len),
            Asked::Status | Asked::Offset => (Purpose::Status, None),
        };
        answers.asked = Some((asked, chunk));
        let look = Look {
            purpose,
            upload: Some(upload),
            chunk_len,
        };
        (Ok(look), answers)
    }

    /// The target of the bytes that come with these fields.
    pub(super) fn target(&self, dialect: &Dialect, params: &Params) -> Result<Target, Error> {
        let mut target = dialect.chunk(Fields::strict(params), Subject::Chunk, self.identity)?;
        target.upload.fields = dialect.extra(params);
        target.must_exist = params.contains(&dialect.names.resumed);
        target.digest = self.digest(params)?;
        Ok(target)
    }

    /// The digest that the client declares for the chunk.
    pub(in crate::protocol) fn digest(&self, params: &Params) -> Result<Option<String>, Error> {
        match &self.digest_field {
            Some(field) => Ok(params.one(field)?.map(Into::into)),
            None => Ok(None),
        }
    }

    /// The dialect of these fields: the one whose identifier is among them, else the first one that
    /// has any of them.
    pub(super) fn dialect_of(&self, params: &Params) -> Option<&Arc<Dialect>> {
        let mut dialects = self.dialects.iter();
        let has_identifier = |dialect: &&Arc<Dialect>| params.contains(&dialect.names.identifier);
        let found = dialects.clone().find(has_identifier);
        found.or_else(|| dialects.find(|dialect| dialect.is_in(params)))
    }

    /// Whether a part of a form carries a file in any dialect.
    pub(super) fn can_be_file(&self, part: &str, is_text: bool) -> bool {
        let mut dialects = self.dialects.iter();
        let is_plain = self.accept_plain && part == "file" && !is_text;
        is_plain || dialects.any(|dialect| dialect.is_file(part, is_text))
    }

    pub(super) fn owns(&self, name: &str) -> bool {
        self.dialects.iter().any(|dialect| dialect.owns(name))
    }

    pub(super) fn has_headers(&self, head: &Parts) -> bool {
        let mut fields = self.dialects.iter().flat_map(|dialect| dialect.names.all());
        fields.any(|field| headers::has(&head.headers, field))
    }

    pub(super) fn add_headers(&self, params: &mut Params, headers: &HeaderMap) {
        let fields = self.dialects.iter().flat_map(|dialect| dialect.names.all());
        fields.for_each(|field| params.add_header(headers, field));
    }

    /// The error of fields that are not those of any dialect.
    pub(super) fn unknown(&self) -> Error {
        match self.dialects.first() {
            Some(dialect) => missing(&dialect.names.identifier),
            None => missing(&Field::query_or_form("identifier")),
        }
    }
}
