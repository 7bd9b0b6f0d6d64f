//! The settings of chunk clients, and functions that several decoders need.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, header, request::Parts};

use super::{
    answer::{Answers, Asked},
    dialect::{Dialect, IdentityRule},
    field::Field,
    headers,
    params::{self, Params},
    parse::{Fields, Subject, missing},
};
use crate::{
    error::Error,
    hooks::Purpose,
    limits::NAME_BYTES,
    protocol::{Described, Identity, Look, Target},
};

/// The protocol of chunk clients, in all dialects that a layer understands. The names of the fields
/// tell the dialects apart.
#[derive(Clone, Debug)]
pub(crate) struct Chunked {
    pub(super) dialects: Vec<Arc<Dialect>>,
    pub(crate) identity: IdentityRule,
    /// Fields of the application that identify an upload too.
    pub(crate) identity_fields: Vec<Field>,
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
            identity_fields: Vec::new(),
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
        let chunk = match self.chunk(dialect, Fields::first(params), subject) {
            Ok(chunk) => chunk,
            Err(error) => return (Err(error), answers),
        };
        let mut upload = chunk.upload.clone();
        upload.fields = self.extra(Some(dialect), params);
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
        let mut target = self.chunk(dialect, Fields::strict(params), Subject::Chunk)?;
        target.upload.fields = self.extra(Some(dialect), params);
        target.must_exist = params.contains(&dialect.names.resumed);
        target.digest = self.digest(params)?;
        Ok(target)
    }

    /// The chunk of these fields.
    pub(super) fn chunk(
        &self,
        dialect: &Dialect,
        fields: Fields<'_>,
        subject: Subject,
    ) -> Result<Target, Error> {
        let mut target = dialect.chunk(fields, subject, self.identity)?;
        self.identify(&mut target.upload, fields)?;
        Ok(target)
    }

    /// The upload of these fields.
    pub(super) fn upload(&self, dialect: &Dialect, params: &Params) -> Result<Described, Error> {
        let fields = Fields::strict(params);
        let mut upload = dialect.upload(fields, self.identity)?;
        self.identify(&mut upload, fields)?;
        upload.fields = self.extra(Some(dialect), params);
        Ok(upload)
    }

    /// Adds the fields of the application that identify the upload.
    fn identify(&self, upload: &mut Described, fields: Fields<'_>) -> Result<(), Error> {
        if let Identity::Named { fields: named, .. } = &mut upload.identity {
            *named = self.named_fields(fields)?;
        }
        Ok(())
    }

    /// The fields of the application that identify an upload.
    pub(super) fn named_fields(&self, fields: Fields<'_>) -> Result<Vec<(String, String)>, Error> {
        let mut named = Vec::new();
        for field in &self.identity_fields {
            let value = fields.text(field, NAME_BYTES)?;
            named.extend(value.map(|value| (field.name().into_owned(), value)));
        }
        // The order of the setting does not matter.
        named.sort();
        Ok(named)
    }

    /// Whether no field of the form that follows can change which upload it is.
    pub(super) fn knows_identity(&self, params: &Params) -> bool {
        let mut of_form = self.identity_fields.iter();
        of_form.all(|field| field.parameter().is_none() || params.contains(field))
    }

    /// Whether the query or form field with this name identifies an upload.
    pub(super) fn identifies(&self, name: &str) -> bool {
        let mut fields = self.identity_fields.iter();
        fields.any(|field| field.parameter() == Some(name))
    }

    /// The application's own fields, and the headers that identify an upload.
    pub(super) fn extra(
        &self,
        dialect: Option<&Dialect>,
        params: &Params,
    ) -> Vec<(String, String)> {
        let mut extra = params.extra(|name| dialect.is_some_and(|dialect| dialect.owns(name)));
        extra.extend(params.headers(&self.identity_fields));
        extra
    }

    /// The values of the fields that identify an upload, by their names.
    pub(super) fn identity_values(&self, params: &Params) -> Result<Vec<(String, String)>, Error> {
        let fields = Fields::strict(params);
        let mut values = Vec::new();
        for field in &self.identity_fields {
            let name = field.parameter().or(field.header_name());
            let value = fields.text(field, NAME_BYTES)?;
            values.extend(
                name.zip(value)
                    .map(|(name, value)| (name.to_owned(), value)),
            );
        }
        Ok(values)
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
        let is_plain = self.accept_plain && part == "file";
        is_plain || dialects.any(|dialect| dialect.is_file(part, is_text))
    }

    /// Whether fields without a position can be those of a whole file.
    pub(in crate::protocol) fn may_be_whole(&self, params: &Params) -> bool {
        params::may_be_whole(params, |name| self.identifies(name))
    }

    pub(super) fn owns(&self, name: &str) -> bool {
        self.dialects.iter().any(|dialect| dialect.owns(name))
    }

    /// Whether the request has a header of a chunk client that the IETF draft does not use.
    pub(in crate::protocol) fn has_own_headers(&self, head: &Parts) -> bool {
        const SHARED: [HeaderName; 3] = [
            header::CONTENT_DISPOSITION,
            HeaderName::from_static("upload-length"),
            HeaderName::from_static("upload-offset"),
        ];
        let mut own = head.headers.clone();
        SHARED.iter().for_each(|name| drop(own.remove(name)));
        let mut fields = self.dialects.iter().flat_map(|dialect| dialect.names.all());
        fields.any(|field| headers::has(&own, field))
    }

    pub(super) fn has_headers(&self, head: &Parts) -> bool {
        let mut fields = self.dialects.iter().flat_map(|dialect| dialect.names.all());
        fields.any(|field| headers::has(&head.headers, field))
    }

    pub(super) fn add_headers(&self, params: &mut Params, headers: &HeaderMap) {
        let fields = self.dialects.iter().flat_map(|dialect| dialect.names.all());
        let fields = fields.chain(&self.identity_fields);
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
