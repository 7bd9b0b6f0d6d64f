//! tus 1.0: uploads that have a URL, to which bytes are appended (<https://tus.io/protocols/>).
//!
//! The core and the extensions creation, creation-with-upload, creation-defer-length, expiration,
//! checksum, checksum-trailer, termination, concatenation and concatenation-unfinished.

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
    response,
};

use super::{
    Command, Decode, Encode, Exchange, Outcome,
    metadata::described,
    offsets::{
        CONTENT, Data, Held, New, TUS_RESUMABLE, UPLOAD_CHECKSUM, UPLOAD_CONCAT,
        UPLOAD_DEFER_LENGTH, UPLOAD_EXPIRES, UPLOAD_LENGTH, UPLOAD_LIMIT, UPLOAD_METADATA,
        UPLOAD_OFFSET, UrlCommand, Urls, concat, creation_uri, http_date, invalid, meant_method,
        missing, number, repeated, role, single, upload_limit,
    },
    problem::{NO_STORE, ORIGINAL_STATUS, empty, problem},
};
use crate::{
    error::{Error, ErrorKind, Reason},
    mime::is_media_type,
    model::{
        state::Record,
        upload::{Creation, Role, Upload},
    },
};

const TUS_VERSION: HeaderName = HeaderName::from_static("tus-version");
const TUS_EXTENSION: HeaderName = HeaderName::from_static("tus-extension");
const TUS_MAX_SIZE: HeaderName = HeaderName::from_static("tus-max-size");
const TUS_CHECKSUM_ALGORITHM: HeaderName = HeaderName::from_static("tus-checksum-algorithm");

const VERSION: HeaderValue = HeaderValue::from_static("1.0.0");

const EXTENSIONS: &str = "creation,creation-with-upload,creation-defer-length,expiration,checksum,\
                          checksum-trailer,termination";
const CONCATENATION: &str = ",concatenation,concatenation-unfinished";

/// The media type of bytes that are appended.
const APPENDED: &str = "application/offset+octet-stream";

/// tus 1.0, with these settings.
#[derive(Debug)]
pub(super) struct Tus<'a>(pub(super) &'a Arc<Urls>);

impl Decode for Tus<'_> {
    fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        let headers = &head.headers;
        if head.method == Method::OPTIONS {
            // A preflight request is for the layer that handles CORS.
            let is_preflight = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
            let asks = self.0.appends && !is_preflight;
            return asks.then(|| self.exchange(Asked::Options, Ok(Command::Capabilities)));
        }
        let version = headers.get(&TUS_RESUMABLE);
        let token = self.0.token(head);
        let is_get = head.method == Method::GET;
        if version.is_none() && token.is_none() || is_get && token.is_none() {
            return None;
        }
        let asked = match (&meant_method(head), &token) {
            (&Method::GET, _) => Asked::Recall,
            (&Method::HEAD, _) => Asked::Look,
            (&Method::PATCH, _) => Asked::Append,
            (&Method::DELETE, _) => Asked::Discard,
            (&Method::POST, None) => Asked::Create,
            _ => Asked::Other,
        };
        let reads = [Asked::Recall, Asked::Look].contains(&asked);
        let command = if version != Some(&VERSION) && !(reads && version.is_none()) {
            Err(Reason::Version.into())
        } else if !self.0.appends {
            Err(Reason::Unsupported.into())
        } else {
            match (asked, token) {
                (Asked::Create, _) => self.create(head, body_is_empty),
                (Asked::Other, _) => Err(Reason::MethodNotAllowed.into()),
                (_, None) => Err(Reason::NotFound.into()),
                (Asked::Append, Some(token)) => append(headers, body_is_empty).map(|append| {
                    let (offset, length, data) = append;
                    UrlCommand::Append {
                        token,
                        offset,
                        length,
                        data,
                    }
                }),
                (Asked::Recall, Some(token)) => Ok(UrlCommand::Recall(token)),
                (Asked::Discard, Some(token)) => Ok(UrlCommand::Discard(token)),
                (Asked::Look | Asked::Options, Some(token)) => Ok(UrlCommand::Look(token)),
            }
        };
        Some(self.exchange(asked, command.map(Command::Url)))
    }
}

impl Tus<'_> {
    fn exchange(&self, asked: Asked, command: Result<Command, Error>) -> Exchange {
        let reply = Box::new(TusReply {
            asked,
            urls: Arc::clone(self.0),
            location: None,
        });
        Exchange { command, reply }
    }

    fn create(&self, head: &Parts, body_is_empty: bool) -> Result<UrlCommand, Error> {
        let headers = &head.headers;
        let length = number(headers, &UPLOAD_LENGTH)?;
        let is_deferred = match single(headers, &UPLOAD_DEFER_LENGTH)? {
            None => false,
            Some("1") => true,
            Some(_) => return Err(invalid(UPLOAD_DEFER_LENGTH, "is not 1")),
        };
        let mut new = New {
            length,
            ..described(headers)?
        };
        new.creation.method = Method::POST.to_string();
        new.creation.uri = creation_uri(head)?;
        let role_of = single(headers, &UPLOAD_CONCAT)?;
        if let Some(urls) = role_of.and_then(|role| role.strip_prefix("final;")) {
            if length.is_some() || is_deferred {
                return Err(invalid(UPLOAD_LENGTH, "is that of the parts"));
            }
            return concat(self.0, new, urls);
        }
        new.role = role(self.0, role_of)?;
        if length.is_some() && is_deferred {
            return Err(invalid(UPLOAD_DEFER_LENGTH, "contradicts `upload-length`"));
        }
        if length.is_none() && !is_deferred {
            return Err(missing(&UPLOAD_LENGTH));
        }
        let has_data = is_appended(headers) && !body_is_empty;
        let data = if has_data { Some(data(headers)?) } else { None };
        Ok(UrlCommand::Create { new, data })
    }
}

/// The offset of an append, the length of the file if it is declared, and the bytes.
fn append(headers: &HeaderMap, body_is_empty: bool) -> Result<(u64, Option<u64>, Data), Error> {
    let has_type = headers.contains_key(header::CONTENT_TYPE);
    if !is_appended(headers) && (has_type || !body_is_empty) {
        return Err(Reason::MediaType.into());
    }
    let offset = number(headers, &UPLOAD_OFFSET)?.ok_or_else(|| missing(&UPLOAD_OFFSET))?;
    let length = number(headers, &UPLOAD_LENGTH)?;
    Ok((offset, length, data(headers)?))
}

fn is_appended(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|content_type| is_media_type(content_type.as_bytes(), APPENDED))
}

fn data(headers: &HeaderMap) -> Result<Data, Error> {
    let trailers = headers.get_all(header::TRAILER).iter();
    let mut trailers = trailers.filter_map(|names| names.to_str().ok());
    let is_checksum = |name: &str| name.trim().eq_ignore_ascii_case(UPLOAD_CHECKSUM.as_str());
    Ok(Data {
        checksum: single(headers, &UPLOAD_CHECKSUM)?.map(str::to_owned),
        checksum_follows: trailers.any(|names| names.split(',').any(is_checksum)),
        ends: None,
    })
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Options,
    Create,
    Append,
    Look,
    Recall,
    Discard,
    Other,
}

/// Clients expect exact statuses: 201 for a creation, 204 for an append and a removal, 200 for
/// `HEAD`. They stop at other statuses but 409, 423 and 5xx.
struct TusReply {
    asked: Asked,
    urls: Arc<Urls>,
    /// The URL of the upload that this request creates.
    location: Option<HeaderValue>,
}

impl Encode for TusReply {
    fn encode(&self, outcome: Outcome<'_>) -> Response<Bytes> {
        let mut response = match outcome {
            Outcome::Capabilities { checksums } => self.capabilities(checksums),
            Outcome::Held(held) => self.held(held),
            Outcome::State(Some(status)) => self.held(Held {
                upload: &status.upload,
                offset: Some(status.prefix()),
                expires: None,
            }),
            Outcome::Answer(record) => self.recorded(record),
            Outcome::Failed(error) => self.failed(error),
            // Not for this protocol.
            Outcome::Created(_)
            | Outcome::Stored { .. }
            | Outcome::State(None)
            | Outcome::Listed { .. }
            | Outcome::Gone
            | Outcome::Removed => empty(StatusCode::NO_CONTENT),
        };
        response.headers_mut().insert(TUS_RESUMABLE, VERSION);
        response
    }

    fn forward(&self, answer: &mut response::Parts, upload: &Upload, delivered: bool) -> bool {
        if delivered && !self.urls.answer_bodies {
            return false;
        }
        if delivered {
            let size = upload.length.unwrap_or_default();
            self.delivered(&mut answer.status, &mut answer.headers, size);
        } else {
            self.refused(&mut answer.status, &mut answer.headers);
        }
        answer.headers.insert(TUS_RESUMABLE, VERSION);
        true
    }

    fn probe_delivers(&self) -> bool {
        self.asked == Asked::Look
    }

    fn created(&mut self, upload: &Upload) {
        self.location = self.urls.location(upload);
    }
}

impl TusReply {
    fn capabilities(&self, checksums: &'static str) -> Response<Bytes> {
        let concat = if self.urls.concats { CONCATENATION } else { "" };
        let mut response = empty(StatusCode::NO_CONTENT);
        let headers = response.headers_mut();
        headers.insert(TUS_VERSION, VERSION);
        // Both are lists of plain words.
        if let Ok(extensions) = HeaderValue::try_from(format!("{EXTENSIONS}{concat}")) {
            headers.insert(TUS_EXTENSION, extensions);
        }
        let checksums = HeaderValue::from_static(checksums);
        headers.insert(TUS_CHECKSUM_ALGORITHM, checksums);
        let max_size = self.urls.limits.file_size;
        if max_size < u64::MAX {
            headers.insert(TUS_MAX_SIZE, max_size.into());
        }
        if self.urls.ietf {
            // It consists of words and digits.
            if let Ok(limit) = HeaderValue::try_from(upload_limit(&self.urls.limits)) {
                headers.insert(UPLOAD_LIMIT, limit);
            }
        }
        response
    }

    fn held(&self, held: Held<'_>) -> Response<Bytes> {
        let Held {
            upload,
            offset,
            expires,
        } = held;
        let mut response = empty(match self.asked {
            Asked::Create => StatusCode::CREATED,
            Asked::Look => StatusCode::OK,
            _ => StatusCode::NO_CONTENT,
        });
        let headers = response.headers_mut();
        if let Some(offset) = offset {
            headers.insert(UPLOAD_OFFSET, offset.into());
        }
        if let Some(expires) = expires.and_then(http_date) {
            headers.insert(UPLOAD_EXPIRES, expires);
        }
        self.insert_location(headers);
        if self.asked == Asked::Look {
            describe(headers, upload, &self.urls);
        }
        response
    }

    fn insert_location(&self, headers: &mut HeaderMap) {
        if let Some(location) = &self.location {
            headers.insert(header::LOCATION, location.clone());
        }
    }

    /// Turns the head of the inner service's answer into that of a success. `size` is that of the
    /// file, in bytes.
    fn delivered(&self, status: &mut StatusCode, headers: &mut HeaderMap, size: u64) {
        *status = match self.asked {
            Asked::Create => StatusCode::CREATED,
            _ if self.urls.answer_bodies => StatusCode::OK,
            _ => StatusCode::NO_CONTENT,
        };
        if !self.urls.answer_bodies {
            for name in CONTENT {
                headers.remove(name);
            }
        }
        // A client would take it for the URL of the upload.
        if let Some(location) = headers.remove(header::LOCATION) {
            headers.insert(header::CONTENT_LOCATION, location);
        }
        self.insert_location(headers);
        headers.insert(UPLOAD_OFFSET, size.into());
        headers.entry(header::CACHE_CONTROL).or_insert(NO_STORE);
    }

    /// Changes the status of an answer that does not take the file to one at which clients stop.
    fn refused(&self, status: &mut StatusCode, headers: &mut HeaderMap) {
        let original = *status;
        *status = match self.asked {
            // They would begin anew.
            Asked::Look => StatusCode::LOCKED,
            _ => final_status(original),
        };
        if *status != original {
            headers.insert(ORIGINAL_STATUS, original.as_u16().into());
        }
    }

    fn recorded(&self, record: &Record) -> Response<Bytes> {
        let (mut head, mut body) = repeated(record).into_parts();
        if self.asked == Asked::Recall {
            head.headers
                .entry(header::CACHE_CONTROL)
                .or_insert(NO_STORE);
        } else if record.delivered {
            self.delivered(&mut head.status, &mut head.headers, record.size);
            if !self.urls.answer_bodies {
                body = Bytes::new();
            }
        } else {
            self.refused(&mut head.status, &mut head.headers);
        }
        Response::from_parts(head, body)
    }

    fn failed(&self, error: &Error) -> Response<Bytes> {
        let mut response = problem(error, self.status(error), None);
        let headers = response.headers_mut();
        if let Reason::Offset { stored } = error.reason() {
            headers.insert(UPLOAD_OFFSET, (*stored).into());
        }
        if error.kind() == ErrorKind::Version {
            headers.insert(TUS_VERSION, VERSION);
        }
        response
    }

    fn status(&self, error: &Error) -> StatusCode {
        let refusal = error.refusal().filter(|_| !error.is_retryable());
        match error.kind() {
            _ if refusal.is_some() => {
                let status = refusal.map_or(StatusCode::BAD_REQUEST, |refusal| refusal.status());
                if status == StatusCode::NOT_FOUND {
                    status
                } else {
                    final_status(status)
                }
            }
            ErrorKind::NotFound => StatusCode::NOT_FOUND,
            ErrorKind::Version => StatusCode::PRECONDITION_FAILED,
            ErrorKind::MediaType | ErrorKind::ContentEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorKind::Concatenated => StatusCode::FORBIDDEN,
            ErrorKind::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            ErrorKind::DigestMismatch => checksum_mismatch(),
            ErrorKind::FileTooLarge | ErrorKind::ChunkTooLarge | ErrorKind::OutOfBounds => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            ErrorKind::ChunkLength if !error.is_retryable() => StatusCode::PAYLOAD_TOO_LARGE,
            // A client begins anew if `HEAD` fails with another status.
            ErrorKind::SetAside if self.asked == Asked::Look => StatusCode::LOCKED,
            ErrorKind::Offset => StatusCode::CONFLICT,
            // Another request of the same client has ended this one.
            ErrorKind::Superseded => StatusCode::LOCKED,
            ErrorKind::DeliveryPending if self.asked == Asked::Discard => StatusCode::LOCKED,
            _ if error.is_retryable() && self.asked == Asked::Look => StatusCode::LOCKED,
            _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_REQUEST,
        }
    }
}

/// The status of an application for a client that has to stop. It would go on after 409, 423 and
/// 5xx, and begin anew after 404.
fn final_status(status: StatusCode) -> StatusCode {
    match status.as_u16() {
        404 | 408 | 409 | 423 | 425 | 429 => StatusCode::BAD_REQUEST,
        400..500 => status,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// 460, which only tus has.
fn checksum_mismatch() -> StatusCode {
    StatusCode::from_u16(460).unwrap_or(StatusCode::BAD_REQUEST)
}

/// Adds what `HEAD` says of an upload.
fn describe(headers: &mut HeaderMap, upload: &Upload, urls: &Urls) {
    match upload.length {
        Some(length) => headers.insert(UPLOAD_LENGTH, length.into()),
        None if is_final(upload) => None,
        None => headers.insert(UPLOAD_DEFER_LENGTH, HeaderValue::from_static("1")),
    };
    let creation = upload.creation.as_ref();
    let metadata = creation.and_then(|creation| creation.metadata.as_deref());
    // It was the value of a header.
    if let Some(Ok(metadata)) = metadata.map(HeaderValue::try_from) {
        headers.insert(UPLOAD_METADATA, metadata);
    }
    if let Ok(concat) = HeaderValue::try_from(concat_of(upload, urls)) {
        if !concat.is_empty() {
            headers.insert(UPLOAD_CONCAT, concat);
        }
    }
}

fn is_final(upload: &Upload) -> bool {
    let creation = upload.creation.as_ref();
    creation.is_some_and(|creation| !creation.parts.is_empty())
}

/// The value of `Upload-Concat`. Empty for an upload that is neither a part nor made of parts.
fn concat_of(upload: &Upload, urls: &Urls) -> String {
    if upload.role == Role::Part {
        return "partial".to_owned();
    }
    let creation = upload.creation.iter();
    let parts = creation.flat_map(|creation: &Creation| &creation.parts);
    let parts = parts.filter_map(|token| {
        let mut part = upload.clone();
        part.identifier.clone_from(token);
        Some(urls.location(&part)?.to_str().ok()?.to_owned())
    });
    let parts: Vec<_> = parts.collect();
    if parts.is_empty() {
        String::new()
    } else {
        format!("final;{}", parts.join(" "))
    }
}
