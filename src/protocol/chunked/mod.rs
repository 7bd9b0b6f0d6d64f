//! Chunk clients: each request carries one chunk of a file, with fields that describe it.

mod answer;
mod boundary;
mod clients;
mod dialect;
mod field;
mod form;
pub(super) mod headers;
mod options;
pub(super) mod params;
mod parse;
mod settings;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use http::{HeaderMap, Method, header, request::Parts};

use self::{
    answer::{Answers, Asked},
    boundary::boundary,
    form::ChunkForm,
    parse::Subject,
};
pub use self::{
    dialect::{AnswerFormat, Dialect, IdentifierKind, IdentityRule, LastChunk, Resume},
    field::Field,
    options::ClientOptions,
};
pub(crate) use self::{params::Params, parse::Fields, settings::Chunked};
use super::{
    Command, Create, Decode, Exchange, FilePart, Identity, Look, Write, offsets::meant_method,
};
use crate::{
    error::{Error, Reason},
    hooks::Purpose,
    mime::is_media_type,
    model::upload::UploadId,
};

/// A decoded request, and its answers.
type Read = (Result<Command, Error>, Answers);

impl Decode for Arc<Chunked> {
    fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        self.read(head, body_is_empty).map(exchange)
    }
}

fn looking((look, answers): (Result<Look, Error>, Answers)) -> Read {
    (look.map(Command::Look), answers)
}

fn exchange((command, answers): Read) -> Exchange {
    let reply = Box::new(answers);
    Exchange { command, reply }
}

impl Chunked {
    fn read(self: &Arc<Self>, head: &Parts, body_is_empty: bool) -> Option<Read> {
        if self.asks_for_list(head) {
            return Some((self.read_list(head), Answers::default()));
        }
        // A preflight request has the query of the request that it asks about.
        if head.method == Method::OPTIONS {
            return None;
        }
        let query = head.uri.query();
        let has_body = [Method::POST, Method::PUT, Method::PATCH].contains(&head.method);
        let content_type = head.headers.get(header::CONTENT_TYPE);
        let content_type = content_type.filter(|_| has_body && self.reads_forms());
        // Many clients have their fields only in the form, so every form is one of an upload.
        let form = content_type.and_then(boundary);
        // Checked before the limits, because a request of the application can have a query of any
        // length.
        let is_ours = self.is_in_query(head) || self.has_headers(head);
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
            let create = create.and_then(|create| self.identified(create, &params));
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

    /// Adds the fields that identify the new upload.
    fn identified(&self, create: Create, params: &Params) -> Result<Create, Error> {
        let Create { length, describe } = create;
        let fields = self.named_fields(Fields::strict(params))?;
        let describe = Box::new(move |random: &str| {
            let mut upload = describe(random);
            if let Identity::Named { fields: named, .. } = &mut upload.identity {
                *named = fields;
            }
            upload
        });
        Ok(Create { length, describe })
    }

    /// Whether the query has a field of a dialect.
    pub(super) fn is_in_query(&self, head: &Parts) -> bool {
        Params::query_has(head.uri.query(), |name| self.owns(name))
    }

    /// Whether a request without a header of tus or of the draft can be about an upload that has a
    /// URL. An application can have a parameter that looks like the token in one, such as an MD5.
    pub(super) fn allows_url(&self, head: &Parts) -> bool {
        let methods = [Method::GET, Method::HEAD, Method::PATCH, Method::DELETE];
        let is_one = meant_method(head).is_some_and(|method| methods.contains(&method));
        is_one && !self.is_in_query(head)
    }

    fn asks_for_list(&self, head: &Parts) -> bool {
        let Some(parameter) = &self.list_parameter else {
            return false;
        };
        let is_question = [Method::GET, Method::HEAD].contains(&head.method);
        is_question && Params::query_has(head.uri.query(), |name| name == parameter)
    }

    fn read_list(&self, head: &Parts) -> Result<Command, Error> {
        let mut params = Params::from_query(head.uri.query())?;
        self.add_headers(&mut params, &head.headers);
        let fields = self.identity_values(&params)?;
        let after = after(head)?;
        Ok(Command::List { after, fields })
    }

    fn reads_forms(&self) -> bool {
        self.accept_plain || !self.dialects.is_empty()
    }

    /// Reads a request that has no form and no field of a dialect.
    fn read_bare(self: &Arc<Self>, head: &Parts) -> Option<Read> {
        if self.dialects.is_empty() || Params::query_has(head.uri.query(), |n| !self.identifies(n))
        {
            return None;
        }
        match head.method {
            // flow.js with `testMethod: 'HEAD'` puts its fields into a body, which browsers do not
            // send.
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
                let mut of_head = Params::from_query(head.uri.query()).ok()?;
                self.add_headers(&mut of_head, &head.headers);
                let read = Command::Read {
                    max: Params::MAX,
                    then: Box::new(move |form| exchange(chunked.read_question(of_head, form))),
                };
                Some((Ok(read), Answers::new(Some(dialect), &Params::default())))
            }
            _ => None,
        }
    }

    /// Reads the form in which a client asks at the end whether the upload is complete.
    fn read_question(&self, of_head: Params, form: &[u8]) -> Read {
        let params = match Params::from_form(form) {
            Ok(params) => params.with_head(of_head),
            Err(error) => {
                let answers = Answers::new(self.asks_at_end(), &Params::default());
                return (Err(error), answers);
            }
        };
        let dialect = self.dialect_of(&params);
        let Some(dialect) = dialect.filter(|dialect| dialect.final_question) else {
            let answers = Answers::new(self.asks_at_end(), &params);
            return (Err(self.unknown()), answers);
        };
        let chunk = self.chunk(dialect, Fields::strict(&params), Subject::Upload);
        let command = chunk.map(|mut chunk| {
            chunk.upload.fields = self.extra(Some(dialect), &params);
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
        self: &Arc<Self>,
        dialect: &Arc<Dialect>,
        head: &Parts,
        mut params: Params,
        body_is_empty: bool,
    ) -> Read {
        match head.method {
            Method::GET | Method::HEAD if dialect.asks_status(&params, &head.method) => {
                let by_offset = dialect.resume == Resume::ByUploadOffset;
                let asked = match head.method {
                    Method::HEAD if by_offset => Asked::Offset,
                    _ => Asked::Status,
                };
                looking(self.look(dialect, &params, asked, Subject::Upload))
            }
            Method::GET | Method::HEAD => looking(self.test(dialect, &params, Subject::Chunk)),
            // Resumable.js with `testMethod: 'POST'`. An empty chunk has a content type.
            Method::POST if body_is_empty && !head.headers.contains_key(header::CONTENT_TYPE) => {
                looking(self.test(dialect, &params, Subject::Chunk))
            }
            _ => {
                let command = self.read_change(dialect, head, &mut params, body_is_empty);
                (command, Answers::new(Some(dialect), &params))
            }
        }
    }

    /// Reads a request that stores or removes something.
    fn read_change(
        self: &Arc<Self>,
        dialect: &Arc<Dialect>,
        head: &Parts,
        params: &mut Params,
        body_is_empty: bool,
    ) -> Result<Command, Error> {
        match head.method {
            Method::DELETE => Ok(Command::Remove(self.upload(dialect, params)?)),
            Method::POST | Method::PUT | Method::PATCH => {
                // The type of the request is that of the file, if the client sends no other.
                let content_type = head.headers.get(header::CONTENT_TYPE);
                params.set_part(FilePart {
                    file_name: None,
                    content_type: content_type.and_then(|value| Some(value.to_str().ok()?.into())),
                });
                match headers::content_length(&head.headers) {
                    Some(len) => dialect.add_total(params, len),
                    None if body_is_empty => dialect.add_total(params, 0),
                    None if dialect.lacks_total(params) => {
                        let (chunked, dialect) = (Arc::clone(self), Arc::clone(dialect));
                        let mut params = params.clone();
                        return Ok(Command::Write(Write::Spool(Box::new(move |len| {
                            dialect.add_total(&mut params, len);
                            chunked.target(&dialect, &params)
                        }))));
                    }
                    None => {}
                }
                let target = self.target(dialect, params)?;
                Ok(Command::Write(Write::Raw(Box::new(target))))
            }
            _ => Err(Reason::MethodNotAllowed.into()),
        }
    }
}

/// The `next` of the page before the one that is asked for.
fn after(head: &Parts) -> Result<Option<UploadId>, Error> {
    let Some(value) = Params::query_value(head.uri.query(), "after") else {
        return Ok(None);
    };
    let after = UploadId::from_hex(&value).ok_or_else(|| Reason::InvalidField {
        name: "after".to_owned(),
        problem: "is not the `next` of a list",
    })?;
    Ok(Some(after))
}

fn is_url_encoded(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type
        .is_some_and(|value| is_media_type(value.as_bytes(), "application/x-www-form-urlencoded"))
}
