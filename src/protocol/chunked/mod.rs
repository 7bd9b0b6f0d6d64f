//! Chunk clients: each request carries one chunk of a file, with fields that describe it.

mod answer;
mod boundary;
mod clients;
mod dialect;
mod field;
mod form;
pub(super) mod headers;
mod options;
mod params;
mod parse;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, header, request::Parts};

use self::{
    answer::{Answers, Asked},
    boundary::boundary,
    form::ChunkForm,
    parse::{Subject, missing},
};
pub use self::{
    dialect::{AnswerFormat, Dialect, IdentifierKind, LastChunk, Resume},
    field::Field,
    options::ClientOptions,
};
pub(crate) use self::{params::Params, parse::Fields};
use super::{Command, Decode, Exchange, FilePart, Look, Target, Write};
use crate::{
    error::{Error, Reason},
    hooks::Purpose,
};

/// What identifies an upload of a chunk client, in addition to its scope.
///
/// More rules can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityRule {
    /// Identifier, total size, and relative path (or file name, if there is no path). The
    /// identifier alone for clients whose identifiers are [unique](IdentifierKind::Unique).
    ///
    /// The identifier that Resumable.js makes consists of the size and the ASCII letters and digits
    /// of the name. Different files share it easily.
    #[default]
    Full,
    /// The identifier alone. For applications that set their own, such as a hash of the content.
    Identifier,
}

/// The protocol of chunk clients, in all dialects that a layer understands. The names of the fields
/// tell the dialects apart.
#[derive(Clone, Debug)]
pub(crate) struct Chunked {
    dialects: Vec<Arc<Dialect>>,
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
    /// Understands no client.
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

    pub(super) fn named(&self, name: &str) -> Option<&Dialect> {
        let mut dialects = self.dialects.iter();
        Some(dialects.find(|dialect| dialect.name() == name)?)
    }
}

impl Decode for Arc<Chunked> {
    fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        self.read(head, body_is_empty).map(exchange)
    }
}

/// What a request wants, and the answers to it.
type Read<T = Command> = (Result<T, Error>, Answers);

fn exchange((command, answers): Read) -> Exchange {
    let reply = Box::new(answers);
    Exchange { command, reply }
}

impl Chunked {
    fn read(self: &Arc<Self>, head: &Parts, body_is_empty: bool) -> Option<Read> {
        if self.asks_for_list(head) {
            return Some((Ok(Command::List), Answers::default()));
        }
        // A preflight carries the query of the request that it asks for.
        if head.method == Method::OPTIONS {
            return None;
        }
        let query = head.uri.query();
        let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(&head.method);
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.filter(|_| has_body && self.reads_forms());
        // Many clients have their fields only in the form, so every form is one of an upload.
        let form = content_type.and_then(boundary);
        // Comes before the limits: a request of the application can have a query of any size.
        let is_ours = Params::query_has(query, |name| self.owns(name)) || self.has_headers(head);
        if form.is_none() && !is_ours {
            return self.read_bare(head);
        }
        let mut params = match Params::from_query(query) {
            Ok(params) => params,
            Err(error) => {
                let mut dialects = self.dialects.iter();
                let dialect =
                    dialects.find(|dialect| Params::query_has(query, |name| dialect.owns(name)));
                return Some((Err(error), Answers::new(dialect, &Params::default())));
            }
        };
        self.add_headers(&mut params, &head.headers);
        let dialect = self.dialect_of(&params);
        let answers = Answers::new(dialect, &params);
        let creating = dialect.filter(|_| head.method == Method::POST);
        if let Some(create) = creating.and_then(|dialect| dialect.creation(&params)) {
            return Some((create.map(Command::Create), answers));
        }
        match (form, dialect) {
            (Some(boundary), _) => {
                let command = boundary.map(|boundary| {
                    let form = Box::new(ChunkForm::new(Arc::clone(self), params, head));
                    Command::Write(Write::Form { boundary, form })
                });
                Some((command, answers))
            }
            (None, Some(dialect)) => {
                let dialect = Arc::clone(dialect);
                Some(self.read_fields(&dialect, head, params, body_is_empty))
            }
            (None, None) => None,
        }
    }

    fn asks_for_list(&self, head: &Parts) -> bool {
        let Some(parameter) = &self.list_parameter else {
            return false;
        };
        let is_question = [Method::GET, Method::HEAD].contains(&head.method);
        is_question && Params::query_has(head.uri.query(), |name| name == parameter)
    }

    fn reads_forms(&self) -> bool {
        self.accept_plain || !self.dialects.is_empty()
    }

    /// Reads a request that has no form and no field of a dialect.
    fn read_bare(self: &Arc<Self>, head: &Parts) -> Option<Read> {
        if !head.uri.query().is_none_or(str::is_empty) || self.dialects.is_empty() {
            return None;
        }
        match head.method {
            // flow.js with `testMethod: 'HEAD'` puts its fields into a body, which is then not
            // sent.
            Method::HEAD => {
                let look = Look {
                    purpose: Purpose::Test,
                    upload: None,
                    chunk_len: None,
                };
                Some((Ok(Command::Look(look)), Answers::default()))
            }
            Method::POST if is_url_encoded(&head.headers) => {
                let dialect = self.asks_at_end()?;
                let chunked = Arc::clone(self);
                let read = Command::Read {
                    max: Params::MAX,
                    then: Box::new(move |form| exchange(chunked.read_question(form))),
                };
                Some((Ok(read), Answers::new(Some(dialect), &Params::default())))
            }
            _ => None,
        }
    }

    /// Reads the form in which a client asks at the end whether the upload is complete.
    fn read_question(&self, form: &[u8]) -> Read {
        let params = match Params::from_form(form) {
            Ok(params) => params,
            Err(error) => {
                let answers = Answers::new(self.asks_at_end(), &Params::default());
                return (Err(error), answers);
            }
        };
        let Some(dialect) = self.dialect_of(&params) else {
            let answers = Answers::new(self.asks_at_end(), &params);
            return (Err(self.unknown()), answers);
        };
        let fields = Fields::strict(&params);
        let chunk = dialect.chunk(fields, Subject::Upload, self.identity);
        let command = chunk.map(|mut chunk| {
            chunk.upload.fields = dialect.extra(&params);
            Command::Conclude(chunk.upload)
        });
        (command, Answers::new(Some(dialect), &params))
    }

    /// The dialect that asks at the end whether the upload is complete.
    fn asks_at_end(&self) -> Option<&Arc<Dialect>> {
        self.dialects.iter().find(|dialect| dialect.final_question)
    }

    /// Reads a request without a form whose fields are those of a dialect.
    fn read_fields(
        &self,
        dialect: &Arc<Dialect>,
        head: &Parts,
        mut params: Params,
        body_is_empty: bool,
    ) -> Read {
        let is_test = match head.method {
            Method::GET | Method::HEAD => true,
            // Resumable.js with `testMethod: 'POST'`. An empty chunk has a content type.
            Method::POST => body_is_empty && !head.headers.contains_key(header::CONTENT_TYPE),
            _ => false,
        };
        match head.method {
            Method::GET | Method::HEAD if dialect.asks_status(&params, &head.method) => {
                let by_offset = dialect.resume == Resume::ByUploadOffset;
                let asked = match head.method {
                    Method::HEAD if by_offset => Asked::Offset,
                    _ => Asked::Status,
                };
                let (look, answers) = self.look(dialect, &params, asked, Subject::Upload);
                (look.map(Command::Look), answers)
            }
            _ if is_test => {
                let (look, answers) = self.test(dialect, &params, Subject::Chunk);
                (look.map(Command::Look), answers)
            }
            _ => {
                let command = self.read_change(dialect, head, &mut params);
                (command, Answers::new(Some(dialect), &params))
            }
        }
    }

    /// Reads a request that stores or removes something.
    fn read_change(
        &self,
        dialect: &Dialect,
        head: &Parts,
        params: &mut Params,
    ) -> Result<Command, Error> {
        match head.method {
            Method::DELETE => {
                let mut upload = dialect.upload(Fields::strict(params), self.identity)?;
                upload.fields = dialect.extra(params);
                Ok(Command::Remove(upload))
            }
            Method::POST | Method::PUT | Method::PATCH => {
                // The type of the request is that of the file, if the client sends no other.
                let content_type = head.headers.get(header::CONTENT_TYPE);
                params.set_part(FilePart {
                    file_name: None,
                    content_type: content_type.and_then(|value| Some(value.to_str().ok()?.into())),
                });
                if let Some(len) = headers::content_length(&head.headers) {
                    dialect.add_total(params, len);
                }
                Ok(Command::Write(Write::Raw(self.target(dialect, params)?)))
            }
            _ => Err(Reason::MethodNotAllowed.into()),
        }
    }

    /// A test, of one chunk or of all.
    fn test(&self, dialect: &Arc<Dialect>, params: &Params, subject: Subject) -> Read<Look> {
        let asked = match dialect.list_tests {
            Some(_) => Asked::List,
            None => Asked::Chunk,
        };
        self.look(dialect, params, asked, subject)
    }

    fn look(
        &self,
        dialect: &Arc<Dialect>,
        params: &Params,
        asked: Asked,
        subject: Subject,
    ) -> Read<Look> {
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

    /// Where the bytes belong that come with these fields.
    fn target(&self, dialect: &Dialect, params: &Params) -> Result<Target, Error> {
        let mut target = dialect.chunk(Fields::strict(params), Subject::Chunk, self.identity)?;
        target.upload.fields = dialect.extra(params);
        target.must_exist = params.contains(&dialect.names.resumed);
        target.digest = self.digest(params)?;
        Ok(target)
    }

    /// The digest that the client declares for the chunk.
    pub(super) fn digest(&self, params: &Params) -> Result<Option<String>, Error> {
        match &self.digest_field {
            Some(field) => Ok(params.one(field)?.map(Into::into)),
            None => Ok(None),
        }
    }

    /// The dialect of these fields: the one whose identifier is among them, else the first one that
    /// has any of them.
    fn dialect_of(&self, params: &Params) -> Option<&Arc<Dialect>> {
        let mut dialects = self.dialects.iter();
        let has_identifier = |dialect: &&Arc<Dialect>| params.contains(&dialect.names.identifier);
        let found = dialects.clone().find(has_identifier);
        found.or_else(|| dialects.find(|dialect| dialect.is_in(params)))
    }

    /// Whether a part of a form carries a file in any dialect.
    fn can_be_file(&self, part: &str, is_text: bool) -> bool {
        let mut dialects = self.dialects.iter();
        let is_plain = self.accept_plain && part == "file" && !is_text;
        is_plain || dialects.any(|dialect| dialect.is_file(part, is_text))
    }

    fn owns(&self, name: &str) -> bool {
        self.dialects.iter().any(|dialect| dialect.owns(name))
    }

    fn has_headers(&self, head: &Parts) -> bool {
        let mut fields = self.dialects.iter().flat_map(|dialect| dialect.names.all());
        fields.any(|field| headers::has(&head.headers, field))
    }

    fn add_headers(&self, params: &mut Params, headers: &HeaderMap) {
        let fields = self.dialects.iter().flat_map(|dialect| dialect.names.all());
        fields.for_each(|field| params.add_header(headers, field));
    }

    /// The error of fields that are not those of any dialect.
    fn unknown(&self) -> Error {
        match self.dialects.first() {
            Some(dialect) => missing(&dialect.names.identifier),
            None => missing(&Field::query_or_form("identifier")),
        }
    }
}

fn is_url_encoded(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    let media_type = content_type.and_then(|value| value.split(|&b| b == b';').next());
    media_type.is_some_and(|media_type| {
        let media_type = media_type.trim_ascii();
        media_type.eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    })
}
