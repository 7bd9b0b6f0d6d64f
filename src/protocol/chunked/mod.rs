//! What a client says, made into what it wants. Pure: no IO, no async.

pub(crate) mod answer;
mod boundary;
mod clients;
mod dialect;
pub(super) mod headers;
mod options;
mod params;
pub(super) mod parse;
mod resumable;
#[cfg(test)]
mod tests;

use http::{HeaderMap, HeaderValue, Method, StatusCode, header, request::Parts};

use self::{boundary::boundary, parse::Fields};
pub use self::{dialect::Dialect, resumable::ResumableJs};
pub(crate) use self::{
    dialect::created_identifier,
    params::{FilePart, Params},
};
pub(crate) use super::plain::{is_whole_file, raw_file, whole_file};
use crate::UploadError;

/// What a request wants, as far as its head tells.
#[derive(Debug)]
pub(crate) enum Intent {
    /// Nothing of ours: the request goes to the inner service as it is.
    Pass,
    /// "Have you this chunk?"
    Probe(Chunk, Extra),
    /// "Have you this chunk?", without a word of which one.
    BlindProbe,
    /// "What have you of this upload?"
    Status(Chunk, Extra),
    /// "Give me a name for an upload of so many bytes."
    Create(u64),
    /// "What have I not finished?"
    List,
    /// "Forget this upload."
    Cancel(Identity, Extra),
    /// "Has all come?", in a form that is still to be read.
    Finish,
    /// A chunk. The query's fields are read; with a form more may come.
    Put(Params, Transport),
}

/// The fields that are the application's.
pub(crate) type Extra = Vec<(String, String)>;

/// How the bytes of a chunk travel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// As a part of a multipart form.
    Multipart { boundary: String },
    /// As the body itself.
    Octets,
    /// As the body itself, which is a whole file of no chunk client.
    Whole,
}

/// Which upload, by the words of its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) identifier: String,
    pub(crate) total: u64,
    pub(crate) file_name: Option<String>,
    pub(crate) relative_path: Option<String>,
    /// The identifier alone tells it from all others, as a random one does.
    pub(crate) is_unique: bool,
}

/// One chunk, by the words of its client, checked for being possible at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) identity: Identity,
    pub(crate) content_type: Option<String>,
    /// How the client counts chunks, if it says so.
    pub(crate) numbering: Option<Numbering>,
    /// Where the chunk begins in the file; at most the file's size.
    pub(crate) offset: u64,
    /// Declared bytes of this chunk, inside the file. `None` if the client does not say.
    pub(crate) len: Option<u64>,
    /// The most bytes that this chunk can have: `len`, or as far as its layout allows.
    pub(crate) max_len: u64,
}

/// How a client counts the chunks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbering {
    /// The number of the first one.
    pub(crate) first: u64,
    /// Bytes of each, but for the last.
    pub(crate) size: u64,
}

/// What a client has to be told, so that it understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answers {
    /// The status of what is final.
    pub(crate) refusal: StatusCode,
    /// Each answer is a JSON object that says whether it is a success.
    pub(crate) says_success: bool,
    /// Each answer is a JSON object that has this member: the chunk's number.
    pub(crate) echo: Option<(&'static str, u64)>,
    /// A test is answered with the numbers of all chunks that are stored, in this member.
    pub(crate) list: Option<&'static str>,
    pub(crate) in_order: Option<InOrder>,
}

impl Answers {
    /// Whether the answer of the inner service has to have a shape that not all services give it.
    pub(crate) fn shapes_results(&self) -> bool {
        self.says_success || self.echo.is_some()
    }
}

/// How a client that sends from the first byte to the last is told where to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InOrder {
    /// By `Range` in the answer to each chunk.
    Range,
    /// By `Upload-Offset` in the answer to a request of its own.
    UploadOffset,
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            refusal: StatusCode::BAD_REQUEST,
            says_success: false,
            echo: None,
            list: None,
            in_order: None,
        }
    }
}

/// The dialects that a layer understands, told apart by the names of a request's fields.
#[derive(Clone, Debug)]
pub(crate) struct Dialects(Vec<Dialect>);

impl Default for Dialects {
    fn default() -> Self {
        Self(vec![
            ResumableJs::default().into(),
            Dialect::flow_js(),
            Dialect::dropzone(),
            Dialect::fine_uploader(),
        ])
    }
}

impl Dialects {
    pub(crate) fn only(dialects: impl IntoIterator<Item = Dialect>) -> Self {
        Self(dialects.into_iter().collect())
    }

    /// The dialect of a name.
    pub(crate) fn named(&self, name: &str) -> Option<&Dialect> {
        self.0.iter().find(|dialect| dialect.name == name)
    }

    /// Adds a dialect, or puts it in the place of the one of that name.
    pub(crate) fn add(&mut self, dialect: Dialect) {
        match self.0.iter_mut().find(|known| known.name == dialect.name) {
            Some(known) => *known = dialect,
            None => self.0.push(dialect),
        }
    }

    /// From the head of a request to what it wants, and how it is to be answered.
    pub(crate) fn intent(
        &self,
        parts: &Parts,
        body_is_empty: bool,
    ) -> (Result<Intent, UploadError>, Answers) {
        // A preflight carries the query of the request that it asks for.
        if parts.method == Method::OPTIONS {
            return (Ok(Intent::Pass), Answers::default());
        }
        let query = parts.uri.query();
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let is_upload = [Method::POST, Method::PUT, Method::PATCH].contains(&parts.method);
        // Many clients have their fields only in the form, so every form on this path is one.
        let form = content_type.filter(|_| is_upload).and_then(boundary);
        // Comes before the caps: what is not ours may have a query of any size.
        let is_ours = |name: &str| self.0.iter().any(|dialect| dialect.is_ours(name));
        let has_ours = Params::query_has(query, is_ours) || self.has_heads(&parts.headers);
        if form.is_none() && !has_ours {
            // flow.js with `testMethod: 'HEAD'` puts its fields into a body, and so nowhere.
            let is_bare = query.is_none_or(str::is_empty);
            let in_the_end = self.0.iter().find(|dialect| dialect.asks_in_the_end);
            return match (&parts.method, in_the_end) {
                (&Method::HEAD, _) if is_bare => (Ok(Intent::BlindProbe), Answers::default()),
                (&Method::POST, Some(dialect)) if is_bare && is_url_encoded(content_type) => {
                    (Ok(Intent::Finish), dialect.answers(&Params::default()))
                }
                _ => (Ok(Intent::Pass), Answers::default()),
            };
        }
        let mut params = match Params::from_query(query) {
            Ok(params) => params,
            Err(error) => {
                let is_of =
                    |dialect: &&Dialect| Params::query_has(query, |name| dialect.is_ours(name));
                let dialect = self.0.iter().find(is_of);
                let answers = dialect.map(|dialect| dialect.answers(&Params::default()));
                return (Err(error), answers.unwrap_or_default());
            }
        };
        self.add_heads(&mut params, &parts.headers);
        let dialect = self.of(&params);
        let answers = dialect.map_or_else(Answers::default, |dialect| dialect.answers(&params));
        let intent = match (form, dialect) {
            (_, Some(dialect)) if parts.method == Method::POST && dialect.is_creation(&params) => {
                dialect.creation(&params).map(Intent::Create)
            }
            (Some(boundary), _) => {
                boundary.map(|boundary| Intent::Put(params, Transport::Multipart { boundary }))
            }
            (None, Some(dialect)) => dialect.intent(parts, params, body_is_empty),
            (None, None) => Ok(Intent::Pass),
        };
        (intent, answers)
    }

    /// The dialect of these fields: the one whose identifier is among them, else the first one of
    /// which there is anything.
    pub(crate) fn of(&self, params: &Params) -> Option<&Dialect> {
        let has_identifier = |dialect: &&Dialect| params.contains(dialect.identifier_name());
        let has_any = |dialect: &&Dialect| params.has(|name| dialect.is_ours(name));
        let mut dialects = self.0.iter();
        let found = dialects.clone().find(has_identifier);
        found.or_else(|| dialects.find(has_any))
    }

    /// The upload of which a client says in the end that all has come, and the application's fields.
    pub(crate) fn finished(&self, params: &Params) -> Result<(Chunk, Extra), UploadError> {
        let dialect = self.of(params).ok_or_else(|| self.unknown())?;
        Ok((dialect.whole(params)?, dialect.extra(params)))
    }

    /// Whether a part of a form carries the bytes, as far as the fields before it tell.
    pub(crate) fn is_file(&self, params: &Params, part: &str, is_text: bool) -> bool {
        match self.of(params) {
            Some(dialect) => dialect.is_file(part, is_text),
            None => self.can_be_file(part, is_text),
        }
    }

    /// Whether a part carries the bytes in any dialect.
    pub(crate) fn can_be_file(&self, part: &str, is_text: bool) -> bool {
        self.0.iter().any(|dialect| dialect.is_file(part, is_text))
    }

    fn has_heads(&self, headers: &HeaderMap) -> bool {
        let mut names = self.0.iter().flat_map(Dialect::header_names);
        names.any(|name| headers::has(headers, name))
    }

    fn add_heads(&self, params: &mut Params, headers: &HeaderMap) {
        for name in self.0.iter().flat_map(Dialect::header_names) {
            // Several dialects can have the same one.
            if !params.contains(name) {
                headers::add(params, headers, name);
            }
        }
    }

    /// What is wrong with fields of which no dialect knows any.
    pub(crate) fn unknown(&self) -> UploadError {
        let name = self
            .0
            .first()
            .map_or_else(String::new, |dialect| dialect.identifier_name().into());
        UploadError::MissingField { name }
    }
}

impl Dialect {
    fn intent(
        &self,
        parts: &Parts,
        mut params: Params,
        body_is_empty: bool,
    ) -> Result<Intent, UploadError> {
        match parts.method {
            Method::GET | Method::HEAD if self.asks_status(&params, &parts.method) => {
                let status = self.status(&params)?;
                Ok(Intent::Status(status, self.extra(&params)))
            }
            Method::GET | Method::HEAD => self.test(&params),
            // Resumable.js with `testMethod: 'POST'`. An empty chunk has a content type.
            Method::POST if body_is_empty && !parts.headers.contains_key(header::CONTENT_TYPE) => {
                self.test(&params)
            }
            Method::DELETE => {
                let identity = self.identity(Fields::strict(&params))?;
                Ok(Intent::Cancel(identity, self.extra(&params)))
            }
            Method::POST | Method::PUT | Method::PATCH => {
                // Of a client that says nothing else it is that of the file.
                params.set_part(FilePart {
                    file_name: None,
                    content_type: content_type(&parts.headers),
                });
                if let Some(len) = content_length(&parts.headers) {
                    self.add_total(&mut params, len);
                }
                Ok(Intent::Put(params, Transport::Octets))
            }
            _ => Err(UploadError::MethodNotAllowed),
        }
    }

    fn test(&self, params: &Params) -> Result<Intent, UploadError> {
        let chunk = self.probe(params)?;
        Ok(Intent::Probe(chunk, self.extra(params)))
    }
}

/// Whether a request asks for what this parameter stands for.
pub(crate) fn asks_for(parts: &Parts, parameter: &str) -> bool {
    let is_question = [Method::GET, Method::HEAD].contains(&parts.method);
    is_question && Params::query_has(parts.uri.query(), |name| name == parameter)
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers
        .get(header::CONTENT_LENGTH)?
        .to_str()
        .ok()?
        .parse()
        .ok()
}

fn content_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?;
    Some(value.to_str().ok()?.to_owned())
}

fn is_url_encoded(content_type: Option<&HeaderValue>) -> bool {
    let media_type = content_type.and_then(|value| value.as_bytes().split(|&b| b == b';').next());
    media_type.is_some_and(|media_type| {
        media_type
            .trim_ascii()
            .eq_ignore_ascii_case(b"application/x-www-form-urlencoded")
    })
}
