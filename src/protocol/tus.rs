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
    chunked::Chunked,
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
pub(super) struct Tus<'a>(pub(super) &'a Arc<Urls>, pub(super) &'a Chunked);

impl Decode for Tus<'_> {
    fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        let headers = &head.headers;
        if head.method == Method::OPTIONS {
            // A preflight request is for the layer that handles CORS.
            let is_preflight = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
            let asks = self.0.appends && !is_preflight;
            return asks.then(|| self.exchange(Asked::Options, Ok(Command::Capabilities)));
        }
        let has_version = headers.contains_key(&TUS_RESUMABLE);
        let mut versions = headers.get_all(&TUS_RESUMABLE).iter();
        let is_known = versions.all(|version| version == VERSION);
        let token = self.0.token(head);
        let token = token.filter(|_| has_version || self.1.allows_url(head));
        let is_get = head.method == Method::GET;
        if !has_version && token.is_none() || is_get && token.is_none() {
            return None;
        }
        let asked = match (meant_method(head), &token) {
            (Some(Method::GET), _) => Asked::Recall,
            (Some(Method::HEAD), _) => Asked::Look,
            (Some(Method::PATCH), _) => Asked::Append,
            (Some(Method::DELETE), _) => Asked::Discard,
            (Some(Method::POST), None) => Asked::Create,
            _ => Asked::Other,
        };
        let reads = [Asked::Recall, Asked::Look].contains(&asked);
        let command = if !is_known || !has_version && !reads {
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
            Outcome::Undelivered(error, upload) => self.undelivered(error, upload),
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

    /// A client that has created the upload with all its bytes does not know its URL, and would
    /// send them again after an error. It asks at the URL if the answer names one but no offset.
    /// For an empty file tus-js-client does not ask, and a final upload is named by its parts.
    fn undelivered(&self, error: &Error, upload: &Upload) -> Response<Bytes> {
        let has_data = upload.length > Some(0) && !is_final(upload);
        let mut response = if self.asked == Asked::Create && has_data {
            empty(StatusCode::CREATED)
        } else {
            self.failed(error)
        };
        self.insert_location(response.headers_mut());
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::hooks::Refusal;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn urls() -> Arc<Urls> {
        Arc::new(Urls {
            appends: true,
            concats: true,
            ..Urls::default()
        })
    }

    /// What a request asks for, or the kind of its error. `None` if it is not one of tus.
    fn decoded(
        urls: &Arc<Urls>,
        method: &str,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Option<String> {
        let uri = format!("/files{query}");
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        let exchange = Tus(urls, &Chunked::default()).decode(&head, false)?;
        Some(match exchange.command {
            Err(error) => error.kind().to_string(),
            Ok(Command::Capabilities) => "capabilities".into(),
            Ok(Command::Url(command)) => match command {
                UrlCommand::Create { new, data } => {
                    format!("create {:?} {:?} {}", new.length, new.role, data.is_some())
                }
                UrlCommand::Concat { new, token } => {
                    assert_eq!(token.len(), 32);
                    format!("concat {}", new.creation.parts.len())
                }
                UrlCommand::Append {
                    token,
                    offset,
                    length,
                    data,
                } => {
                    assert_eq!(token.text, TOKEN);
                    format!("append {offset} {length:?} {}", data.checksum_follows)
                }
                UrlCommand::Look(_) => "look".into(),
                UrlCommand::Recall(_) => "recall".into(),
                UrlCommand::Discard(_) => "discard".into(),
            },
            Ok(_) => panic!("a command of another protocol"),
        })
    }

    #[test]
    fn requests() {
        let tus = ("tus-resumable", "1.0.0");
        let bytes = ("content-type", APPENDED);
        let at = ("upload-offset", "5");
        let length = ("upload-length", "9");
        let part = ("upload-concat", "partial");
        let preflight = ("access-control-request-method", "POST");
        let over = |method| ("x-http-method-override", method);
        let of = format!("?upload={TOKEN}");
        let list = format!("final;/files{of} http://x/files{of}");
        let list = ("upload-concat", list.as_str());
        for (method, query, headers, expected) in [
            ("OPTIONS", "", &[][..], Some("capabilities")),
            ("OPTIONS", &of, &[tus], Some("capabilities")),
            (
                "OPTIONS",
                "",
                &[("tus-resumable", "0.1")],
                Some("capabilities"),
            ),
            ("OPTIONS", "", &[preflight], None),
            ("POST", "", &[length], None),
            (
                "POST",
                "",
                &[tus, length],
                Some("create Some(9) Whole false"),
            ),
            (
                "POST",
                "",
                &[tus, length, bytes],
                Some("create Some(9) Whole true"),
            ),
            (
                "POST",
                "",
                &[tus, length, part],
                Some("create Some(9) Part false"),
            ),
            (
                "POST",
                "",
                &[tus, ("upload-defer-length", "1")],
                Some("create None Whole false"),
            ),
            ("POST", "", &[tus], Some("missing_field")),
            (
                "POST",
                "",
                &[("tus-resumable", "0.2.2"), length],
                Some("version"),
            ),
            ("POST", "", &[tus, list], Some("concat 2")),
            ("POST", "", &[tus, list, length], Some("invalid_field")),
            ("POST", &of, &[tus, length], Some("method_not_allowed")),
            (
                "POST",
                &of,
                &[tus, bytes, at, over("PATCH")],
                Some("append 5 None false"),
            ),
            ("POST", &of, &[tus, over("DELETE")], Some("discard")),
            ("POST", &of, &[tus, over("HEAD")], Some("look")),
            ("PATCH", &of, &[tus, bytes, at], Some("append 5 None false")),
            (
                "PATCH",
                &of,
                &[tus, bytes, at, length],
                Some("append 5 Some(9) false"),
            ),
            (
                "PATCH",
                &of,
                &[tus, bytes, at, ("trailer", "a, Upload-Checksum")],
                Some("append 5 None true"),
            ),
            ("PATCH", &of, &[tus, at], Some("media_type")),
            ("PATCH", &of, &[tus, bytes], Some("missing_field")),
            ("PATCH", &of, &[bytes, at], Some("version")),
            ("PATCH", "", &[tus, bytes, at], Some("not_found")),
            ("HEAD", &of, &[tus], Some("look")),
            ("HEAD", &of, &[], Some("look")),
            ("HEAD", &of, &[("tus-resumable", "2.0.0")], Some("version")),
            ("HEAD", "", &[], None),
            ("DELETE", &of, &[tus], Some("discard")),
            ("DELETE", &of, &[], Some("version")),
            ("GET", &of, &[], Some("recall")),
            ("GET", &of, &[tus], Some("recall")),
            ("GET", "", &[tus], None),
            ("PUT", &of, &[tus], Some("method_not_allowed")),
            ("POST", &of, &[over("PATCH")], Some("version")),
            // The application has a parameter of this name.
            ("POST", &of, &[length], None),
            ("PUT", &of, &[], None),
            ("GET", &format!("{of}&flowIdentifier=a"), &[], None),
            ("HEAD", &format!("{of}&flowIdentifier=a"), &[], None),
            ("DELETE", &format!("{of}&flowIdentifier=a"), &[], None),
            (
                "DELETE",
                &format!("{of}&flowIdentifier=a"),
                &[tus],
                Some("discard"),
            ),
            // FilePond.
            ("PATCH", "?patch=x", &[at, length], None),
            ("GET", "?upload=other", &[], None),
        ] {
            let got = decoded(&urls(), method, query, headers);
            assert_eq!(got.as_deref(), expected, "{method} {query} {headers:?}");
        }
        // A store without appends.
        let none = Arc::new(Urls::default());
        assert_eq!(decoded(&none, "OPTIONS", "", &[]), None);
        let refused = decoded(&none, "POST", "", &[tus, length]);
        assert_eq!(refused.as_deref(), Some("unsupported"));
        let no_concat = Arc::new(Urls {
            appends: true,
            ..Urls::default()
        });
        for concat in [part, list] {
            let refused = decoded(&no_concat, "POST", "", &[tus, concat]);
            assert_eq!(refused.as_deref(), Some("unsupported"));
        }
    }

    /// tus-js-client throws the upload away if `HEAD` is answered with 5xx or 429.
    #[test]
    fn statuses_of_errors() {
        let refusal = |status| {
            let status = StatusCode::from_u16(status).unwrap();
            Error::from(Refusal::new(status, "no"))
        };
        for (error, for_patch, for_head) in [
            (Reason::NotFound.into(), 404, 404),
            (Reason::Version.into(), 412, 412),
            (Reason::MethodNotAllowed.into(), 405, 405),
            (Reason::MediaType.into(), 415, 415),
            (Reason::ContentEncoding.into(), 415, 415),
            (Reason::Concatenated.into(), 403, 403),
            (Reason::Offset { stored: 5 }.into(), 409, 409),
            (Reason::OutOfBounds.into(), 413, 413),
            (Reason::FileTooLarge { limit: 1 }.into(), 413, 413),
            (Reason::ChunkTooLarge { limit: 1 }.into(), 413, 413),
            (Reason::Unsupported.into(), 400, 400),
            (Reason::Conflict.into(), 400, 400),
            (Reason::Superseded.into(), 423, 423),
            (
                Reason::DigestMismatch {
                    name: String::new(),
                }
                .into(),
                460,
                460,
            ),
            (Reason::Busy.into(), 503, 423),
            (Reason::Storage.into(), 503, 423),
            (Reason::StorageFull.into(), 503, 423),
            (Reason::QuotaExceeded.into(), 503, 423),
            (Reason::Interrupted.into(), 503, 423),
            (Reason::TooSlow.into(), 503, 423),
            (Reason::DeliveryFailed.into(), 503, 423),
            (Reason::DeliveryPending.into(), 503, 423),
            (Reason::SetAside.into(), 400, 423),
            (refusal(401), 401, 401),
            (refusal(403), 403, 403),
            (refusal(404), 404, 404),
            (refusal(409), 400, 400),
            (refusal(423), 400, 400),
            (refusal(200), 400, 400),
            (refusal(408), 503, 423),
            (refusal(425), 503, 423),
            (refusal(429), 503, 423),
            (refusal(500), 503, 423),
            (refusal(507), 503, 423),
        ] {
            for (asked, status) in [(Asked::Append, for_patch), (Asked::Look, for_head)] {
                let response = reply(asked).encode(Outcome::Failed(&error));
                assert_eq!(response.status(), status, "{asked:?} {error:?}");
                assert_eq!(response.headers()[TUS_RESUMABLE], "1.0.0");
                let stored = response.headers().get(UPLOAD_OFFSET);
                assert_eq!(stored.is_some(), error.kind() == ErrorKind::Offset);
                let version = response.headers().contains_key(TUS_VERSION);
                assert_eq!(version, error.kind() == ErrorKind::Version);
                let allowed = response.headers().contains_key(header::ALLOW);
                assert_eq!(allowed, error.kind() == ErrorKind::MethodNotAllowed);
            }
        }
        let pending = Reason::DeliveryPending.into();
        let response = reply(Asked::Discard).encode(Outcome::Failed(&pending));
        assert_eq!(response.status(), 423);
    }

    fn reply(asked: Asked) -> TusReply {
        TusReply {
            asked,
            urls: urls(),
            location: None,
        }
    }

    #[test]
    fn statuses_of_answers() {
        for (status, delivered, create, append, look, recall) in [
            (200, true, 201, 204, 204, 200),
            (303, true, 201, 204, 204, 303),
            (400, false, 400, 400, 423, 400),
            (401, false, 401, 401, 423, 401),
            (404, false, 400, 400, 423, 404),
            (409, false, 400, 400, 423, 409),
            (422, false, 422, 422, 423, 422),
            (423, false, 400, 400, 423, 423),
            (429, false, 400, 400, 423, 429),
            (500, false, 400, 400, 423, 500),
        ] {
            let inner = StatusCode::from_u16(status).unwrap();
            let record = Record::new(delivered, inner, 9, SystemTime::UNIX_EPOCH);
            for (asked, expected) in [
                (Asked::Create, create),
                (Asked::Append, append),
                (Asked::Look, look),
                (Asked::Recall, recall),
            ] {
                let response = reply(asked).encode(Outcome::Answer(&record));
                assert_eq!(response.status(), expected, "{asked:?} {status}");
            }
        }
    }

    #[test]
    fn a_concatenation_is_named_by_its_parts_and_metadata() {
        let token = |parts: &str, metadata: Option<&str>| {
            let mut headers = HeaderMap::new();
            if let Some(metadata) = metadata {
                headers.insert(UPLOAD_METADATA, metadata.parse().unwrap());
            }
            let urls = urls();
            let new = described(&headers).unwrap();
            match concat(&urls, new, parts).unwrap() {
                UrlCommand::Concat { token, .. } => token,
                _ => panic!("not a concatenation"),
            }
        };
        let a = format!("/a?upload={TOKEN}");
        let b = format!("/b?upload={}", "f".repeat(32));
        let tokens = [
            token(&a, None),
            token(&a, Some("a")),
            token(&a, Some("b")),
            token(&b, None),
            token(&format!("{a} {b}"), None),
            token(&format!("{b} {a}"), None),
            token(&format!("{a} {a}"), None),
        ];
        for (i, token) in tokens.iter().enumerate() {
            assert!(!tokens[..i].contains(token), "token {i} is not new");
        }
        assert_eq!(token(&format!("http://x{a}"), Some("a")), tokens[1]);
    }
}
