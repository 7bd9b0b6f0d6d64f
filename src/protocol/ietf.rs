//! The IETF draft "Resumable Uploads for HTTP": any request with content can become resumable
//! (<https://datatracker.ietf.org/doc/draft-ietf-httpbis-resumable-upload/>).
//!
//! Its versions are told apart by a number, which clients send. The newest text has number 8. It
//! counts for requests without a number too, as those of the finished RFC will be.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header, request::Parts,
    response,
};
use serde_json::{Value, json};

use super::{
    Command, Decode, Encode, Exchange, Outcome,
    chunked::Chunked,
    metadata::described,
    offer::{INTEROP_VERSION, UPLOAD_COMPLETE, UPLOAD_INCOMPLETE, completes, integer},
    offsets::{
        Data, Held, MAX_INTEGER, New, TUS_RESUMABLE, Token, UPLOAD_CONCAT, UPLOAD_LENGTH,
        UPLOAD_LIMIT, UPLOAD_OFFSET, UrlCommand, Urls, concat, creation_uri, invalid, meant_method,
        missing, repeated, role, single, upload_limit,
    },
    problem::{ORIGINAL_STATUS, empty, problem},
};
use crate::{
    error::{Error, ErrorKind, Reason},
    limits::{METADATA_BYTES, NAME_BYTES, TYPE_BYTES},
    mime::{Value as Disposition, is_media_type},
    model::{
        state::Record,
        upload::{Role, Upload},
    },
};

/// The media type of bytes that are appended.
const APPENDED: &str = "application/partial-upload";

/// The headers of the creating request that describe the file.
const DESCRIBING: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LANGUAGE,
    HeaderName::from_static("repr-digest"),
];

/// The number of the newest version.
const NEWEST: u8 = 8;

/// The IETF draft, with these settings.
#[derive(Debug)]
pub(super) struct Ietf<'a> {
    pub(super) urls: &'a Arc<Urls>,
    pub(super) chunked: &'a Chunked,
    /// Whether `OPTIONS` requests are answered, and not by tus.
    pub(super) has_options: bool,
}

impl Decode for Ietf<'_> {
    fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        let headers = &head.headers;
        if headers.contains_key(&TUS_RESUMABLE) {
            return None;
        }
        if head.method == Method::OPTIONS {
            // A preflight request is for the layer that handles CORS.
            let is_preflight = headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
            let asks = self.has_options && self.urls.appends && !is_preflight;
            return asks.then(|| self.exchange(Asked::Options, headers, Ok(Command::Capabilities)));
        }
        let token = self.urls.token(head);
        let token = token.filter(|_| speaks(headers) || self.chunked.allows_url(head));
        let Some(token) = token else {
            return self.decode_creation(head, body_is_empty);
        };
        if !token.is_of_draft() && !speaks(headers) {
            return None;
        }
        let asked = match meant_method(head) {
            Some(Method::HEAD | Method::GET) => Asked::Look {
                believes: token.believes_offsets(),
            },
            Some(Method::PATCH) => Asked::Append {
                offset: integer(headers, &UPLOAD_OFFSET),
            },
            Some(Method::DELETE) => Asked::Discard,
            _ => Asked::Other,
        };
        let command = if !self.urls.appends {
            Err(Reason::Unsupported.into())
        } else {
            match asked {
                Asked::Append { offset } => append(headers, token, offset, body_is_empty),
                Asked::Look { .. } => states_nothing(headers).map(|()| UrlCommand::Look(token)),
                Asked::Discard => states_nothing(headers).map(|()| UrlCommand::Discard(token)),
                _ => Err(Reason::MethodNotAllowed.into()),
            }
        };
        Some(self.exchange(asked, headers, command.map(Command::Url)))
    }
}

impl Ietf<'_> {
    fn exchange(
        &self,
        asked: Asked,
        headers: &HeaderMap,
        command: Result<Command, Error>,
    ) -> Exchange {
        let reply = Box::new(IetfReply {
            asked,
            dialect: Version::of(headers),
            urls: Arc::clone(self.urls),
            location: None,
        });
        Exchange { command, reply }
    }

    /// Decodes a request that names no upload.
    fn decode_creation(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        const WITHOUT_CONTENT: [Method; 5] = [
            Method::GET,
            Method::HEAD,
            Method::DELETE,
            Method::CONNECT,
            Method::TRACE,
        ];
        let headers = &head.headers;
        if WITHOUT_CONTENT.contains(&head.method) {
            return None;
        }
        if has_type(headers, APPENDED) && meant_method(head) == Some(Method::PATCH) {
            let not_found = Err(Reason::NotFound.into());
            return Some(self.exchange(Asked::Other, headers, not_found));
        }
        let urls = single(headers, &UPLOAD_CONCAT).ok().flatten();
        let urls = urls.and_then(|concat| concat.strip_prefix("final;"));
        // tus-js-client does not say whether the upload that it makes of parts is complete.
        let is_final = urls.is_some() && headers.contains_key(&INTEROP_VERSION);
        let ends = completes(headers).or(is_final.then_some(true))?;
        // Clients such as URLSession add their headers to all requests. A form, and a chunk of a
        // client that sends chunks, are no file.
        let is_form = has_type(headers, "multipart/form-data");
        let is_chunk = headers.contains_key(header::CONTENT_RANGE)
            || self.chunked.is_in_query(head)
            || self.chunked.has_own_headers(head);
        if is_form || is_chunk {
            return None;
        }
        if !self.urls.appends && ends {
            // An ordinary request: the client need not resume it.
            return None;
        }
        let command = if self.urls.appends {
            self.create(head, ends, urls.filter(|_| is_final), body_is_empty)
        } else {
            Err(Reason::Unsupported.into())
        };
        Some(self.exchange(Asked::Create, headers, command.map(Command::Url)))
    }

    fn create(
        &self,
        head: &Parts,
        ends: bool,
        parts: Option<&str>,
        body_is_empty: bool,
    ) -> Result<UrlCommand, Error> {
        let headers = &head.headers;
        if headers.contains_key(&UPLOAD_OFFSET) {
            return Err(invalid(UPLOAD_OFFSET, "is not known before the upload is"));
        }
        let mut new = New {
            is_of_draft: true,
            ..described(headers)?
        };
        let disposition = headers.get(header::CONTENT_DISPOSITION);
        // A header that cannot be read has no name. That is no reason to refuse the file.
        let disposition = disposition.and_then(|value| Disposition::parse(value.as_bytes()));
        let name = disposition.and_then(|value| value.file_name(str::to_owned).ok()?);
        new.file_name = name.or(new.file_name);
        if let Some((_, media_type)) = describing(headers)
            .iter()
            .find(|(name, _)| name == header::CONTENT_TYPE.as_str())
        {
            new.content_type = Some(media_type.clone());
        }
        for (name, text, most) in [
            (header::CONTENT_DISPOSITION, &new.file_name, NAME_BYTES),
            (header::CONTENT_TYPE, &new.content_type, TYPE_BYTES),
        ] {
            if text.as_ref().is_some_and(|text| text.len() > most) {
                return Err(invalid(name, "is too long"));
            }
        }
        let creation = &mut new.creation;
        creation.headers = describing(headers);
        let bytes = creation.headers.iter().map(|(_, value)| value.len());
        if bytes.sum::<usize>() > METADATA_BYTES {
            return Err(invalid(header::CONTENT_DISPOSITION, "is too long"));
        }
        creation.method = head.method.to_string();
        creation.uri = creation_uri(head)?;
        creation.length = integer(headers, &UPLOAD_LENGTH);
        if let Some(parts) = parts {
            return concat(self.urls, new, parts);
        }
        new.role = role(self.urls, single(headers, &UPLOAD_CONCAT)?)?;
        let data = (ends || !body_is_empty).then(|| data(ends));
        Ok(UrlCommand::Create { new, data })
    }
}

/// The headers that describe the file, as far as they are UTF-8.
fn describing(headers: &HeaderMap) -> Vec<(String, String)> {
    let is_partial = has_type(headers, APPENDED);
    let describes = |name: &HeaderName| {
        DESCRIBING.contains(name) && !(is_partial && name == header::CONTENT_TYPE)
    };
    let described = headers.iter().filter(|(name, _)| describes(name));
    let texts = described.filter_map(|(name, value)| {
        let value = std::str::from_utf8(value.as_bytes()).ok()?;
        Some((name.to_string(), value.to_owned()))
    });
    texts.collect()
}

fn append(
    headers: &HeaderMap,
    token: Token,
    offset: Option<u64>,
    body_is_empty: bool,
) -> Result<UrlCommand, Error> {
    let version = Version::of(headers);
    let needs_type = version.number() >= 6;
    let is_untyped = body_is_empty && !headers.contains_key(header::CONTENT_TYPE);
    if needs_type && !is_untyped && !has_type(headers, APPENDED) {
        return Err(Reason::MediaType.into());
    }
    let offset = offset.ok_or_else(|| missing(&UPLOAD_OFFSET))?;
    let name = version.completeness();
    // Only in the first version, a request that says nothing completes the upload.
    let unsaid = (version.inverts && !headers.contains_key(&name)).then_some(true);
    let ends = completes(headers).or(unsaid);
    Ok(UrlCommand::Append {
        token,
        offset,
        length: integer(headers, &UPLOAD_LENGTH),
        data: data(ends.ok_or_else(|| missing(&name))?),
    })
}

/// Checks that a request about an upload does not claim to know its state.
fn states_nothing(headers: &HeaderMap) -> Result<(), Error> {
    let states = [
        UPLOAD_OFFSET,
        UPLOAD_COMPLETE,
        UPLOAD_INCOMPLETE,
        UPLOAD_LENGTH,
    ];
    match states.iter().find(|name| headers.contains_key(*name)) {
        Some(name) => Err(invalid(name, "is not for a request without content")),
        None => Ok(()),
    }
}

fn data(ends: bool) -> Data {
    Data {
        ends: Some(ends),
        ..Data::default()
    }
}

/// Whether a request says that it is of the draft.
fn speaks(headers: &HeaderMap) -> bool {
    let names = [INTEROP_VERSION, UPLOAD_COMPLETE, UPLOAD_INCOMPLETE];
    names.iter().any(|name| headers.contains_key(name)) || has_type(headers, APPENDED)
}

fn has_type(headers: &HeaderMap, media_type: &str) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE);
    content_type.is_some_and(|value| is_media_type(value.as_bytes(), media_type))
}

/// The version of the draft that a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    /// `None` if the client does not say it, or says one that the layer does not know.
    known: Option<u8>,
    /// Whether the client uses `Upload-Incomplete`.
    inverts: bool,
}

impl Version {
    fn of(headers: &HeaderMap) -> Self {
        let known = integer(headers, &INTEROP_VERSION);
        let known = known.and_then(|version| u8::try_from(version).ok());
        let known = known.filter(|version| (3..=NEWEST).contains(version));
        let inverts =
            headers.contains_key(UPLOAD_INCOMPLETE) && !headers.contains_key(UPLOAD_COMPLETE);
        Self {
            known,
            inverts: known == Some(3) || known.is_none() && inverts,
        }
    }

    fn number(self) -> u8 {
        let oldest = self.inverts.then_some(3);
        self.known.or(oldest).unwrap_or(NEWEST)
    }

    /// The header that says whether an upload is complete.
    fn completeness(self) -> HeaderName {
        if self.inverts {
            UPLOAD_INCOMPLETE
        } else {
            UPLOAD_COMPLETE
        }
    }
}

/// What a client asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asked {
    Options,
    Create,
    Append {
        offset: Option<u64>,
    },
    Look {
        /// See [`Token::believes_offsets`].
        believes: bool,
    },
    Discard,
    Other,
}

struct IetfReply {
    asked: Asked,
    dialect: Version,
    urls: Arc<Urls>,
    /// The URL of the upload that this request creates.
    location: Option<HeaderValue>,
}

impl Encode for IetfReply {
    fn encode(&self, outcome: Outcome<'_>) -> Response<Bytes> {
        let mut response = match outcome {
            Outcome::Capabilities { .. } => {
                let mut response = empty(StatusCode::NO_CONTENT);
                self.insert_limit(response.headers_mut(), None);
                response
            }
            Outcome::Held(held) => self.held(held, false),
            Outcome::State(Some(status)) => {
                let held = Held {
                    upload: &status.upload,
                    offset: Some(status.prefix()),
                    expires: None,
                };
                self.held(held, true)
            }
            Outcome::Answer(record) => self.recorded(record),
            Outcome::Failed(error) => self.failed(error),
            Outcome::Undelivered(error, upload) => self.undelivered(error, upload),
            Outcome::Removed => empty(StatusCode::NO_CONTENT),
            // Not for this protocol.
            Outcome::Created(_)
            | Outcome::Stored { .. }
            | Outcome::State(None)
            | Outcome::Listed { .. }
            | Outcome::Gone => empty(StatusCode::NO_CONTENT),
        };
        self.insert_version(response.headers_mut());
        response
    }

    fn forward(&self, answer: &mut response::Parts, upload: &Upload, delivered: bool) -> bool {
        if self.asked == BELIEVER && !delivered {
            // After another status the client would begin anew.
            let original = answer.status.as_u16();
            answer.headers.insert(ORIGINAL_STATUS, original.into());
            answer.status = StatusCode::LOCKED;
        }
        let size = upload.length.unwrap_or_default();
        self.finished(answer.status, &mut answer.headers, size);
        self.insert_version(&mut answer.headers);
        true
    }

    fn tells_undelivered(&self) -> bool {
        self.asked != BELIEVER
    }

    fn created(&mut self, upload: &Upload) {
        self.location = self.urls.location(upload);
    }

    fn interim(&self, held: Held<'_>) -> Option<Response<()>> {
        // Clients must not get it if they do not say which version they speak.
        self.dialect.known?;
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(104).ok()?;
        let headers = response.headers_mut();
        match held.offset {
            Some(offset) => drop(headers.insert(UPLOAD_OFFSET, offset.into())),
            None => {
                headers.insert(header::LOCATION, self.location.clone()?);
                self.insert_limit(headers, held.expires);
            }
        }
        self.insert_version(headers);
        Some(response)
    }
}

/// The question of a client that must not be told an offset before the upload is delivered.
const BELIEVER: Asked = Asked::Look { believes: true };

impl IetfReply {
    /// `is_over`: the inner service has answered.
    fn held(&self, held: Held<'_>, is_over: bool) -> Response<Bytes> {
        let Held {
            upload,
            offset,
            expires,
        } = held;
        let mut response = empty(match self.asked {
            Asked::Create => StatusCode::CREATED,
            Asked::Append { .. } if self.dialect.number() <= 6 => StatusCode::CREATED,
            _ => StatusCode::NO_CONTENT,
        });
        let headers = response.headers_mut();
        if let Some(offset) = offset {
            headers.insert(UPLOAD_OFFSET, offset.into());
        }
        // No inner service answers for a part.
        let is_whole_part = upload.role == Role::Part && upload.length == offset;
        self.insert_complete(headers, is_over || is_whole_part);
        self.insert_limit(headers, expires);
        if self.asked == Asked::Create {
            self.insert_location(headers);
        }
        if let Asked::Look { .. } = self.asked {
            if let Some(length) = upload.length.or(upload.declared()) {
                headers.insert(UPLOAD_LENGTH, length.into());
            }
        }
        response
    }

    /// Adds to the answer of the inner service that it is this one. `size` is that of the file, in
    /// bytes.
    fn finished(&self, status: StatusCode, headers: &mut HeaderMap, size: u64) {
        self.insert_complete(headers, true);
        headers.insert(UPLOAD_OFFSET, size.into());
        let is_named = headers.contains_key(header::LOCATION);
        if self.asked == Asked::Create && status.is_success() && !is_named {
            // tus-js-client fails without one.
            self.insert_location(headers);
        }
    }

    fn recorded(&self, record: &Record) -> Response<Bytes> {
        let mut response = repeated(record);
        self.finished(record.status, response.headers_mut(), record.size);
        response
    }

    fn failed(&self, error: &Error) -> Response<Bytes> {
        let mut response = problem(error, self.status(error), self.problem_type(error));
        let headers = response.headers_mut();
        if let Reason::Offset { stored } = error.reason() {
            headers.insert(UPLOAD_OFFSET, (*stored).into());
        }
        if let ErrorKind::FileTooLarge | ErrorKind::ChunkTooLarge = error.kind() {
            self.insert_limit(headers, None);
        }
        self.insert_complete(headers, false);
        response
    }

    /// A client that was not told the URL before can go on there, too.
    fn undelivered(&self, error: &Error, upload: &Upload) -> Response<Bytes> {
        let mut response = self.failed(error);
        let headers = response.headers_mut();
        self.insert_location(headers);
        if self.asked != BELIEVER {
            headers.insert(UPLOAD_OFFSET, upload.length.unwrap_or_default().into());
        }
        response
    }

    /// The members of the problem types that the draft defines.
    fn problem_type(&self, error: &Error) -> Option<Value> {
        let of = |name: &str| format!("https://iana.org/assignments/http-problem-types#{name}");
        match (error.reason(), self.asked) {
            (Reason::Offset { stored }, Asked::Append { offset }) => Some(json!({
                "type": of("mismatching-upload-offset"),
                "title": "offset from request does not match offset of resource",
                "expected-offset": stored,
                "provided-offset": offset,
            })),
            (Reason::InconsistentLength | Reason::OutOfBounds, _) => Some(json!({
                "type": of("inconsistent-upload-length"),
                "title": "inconsistent length values for upload",
            })),
            _ => None,
        }
    }

    fn status(&self, error: &Error) -> StatusCode {
        let refusal = error.refusal().map(|refusal| refusal.status());
        match (refusal, error.kind()) {
            (Some(status), _) if status.is_client_error() && !error.is_retryable() => status,
            (_, ErrorKind::DigestMismatch) => StatusCode::BAD_REQUEST,
            (_, ErrorKind::DeliveryFailed | ErrorKind::DeliveryPending | ErrorKind::SetAside)
                if matches!(self.asked, Asked::Look { .. }) =>
            {
                // A client that believes offsets asks again. Others get the offset instead.
                StatusCode::LOCKED
            }
            // After 503 it would begin anew. All others ask again.
            _ if error.is_retryable() && self.asked == BELIEVER => StatusCode::LOCKED,
            _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
            (_, ErrorKind::NotFound) => StatusCode::NOT_FOUND,
            (_, ErrorKind::MethodNotAllowed) => StatusCode::METHOD_NOT_ALLOWED,
            (_, ErrorKind::Offset) => StatusCode::CONFLICT,
            (_, ErrorKind::FileTooLarge | ErrorKind::ChunkTooLarge) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            (_, ErrorKind::MediaType | ErrorKind::ContentEncoding) => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            _ => StatusCode::BAD_REQUEST,
        }
    }

    fn insert_location(&self, headers: &mut HeaderMap) {
        if let Some(location) = &self.location {
            headers.insert(header::LOCATION, location.clone());
        }
    }

    fn insert_complete(&self, headers: &mut HeaderMap, is_complete: bool) {
        let value = if is_complete != self.dialect.inverts {
            HeaderValue::from_static("?1")
        } else {
            HeaderValue::from_static("?0")
        };
        headers.insert(self.dialect.completeness(), value);
    }

    /// Adds the limits, if the version knows them.
    fn insert_limit(&self, headers: &mut HeaderMap, expires: Option<SystemTime>) {
        let number = self.dialect.number();
        if number < 6 {
            return;
        }
        let mut limit = upload_limit(&self.urls.limits);
        let age = expires.and_then(|expires| expires.duration_since(SystemTime::now()).ok());
        if let Some(age) = age {
            let key = if number == 6 { "expires" } else { "max-age" };
            let age = age.as_secs().min(MAX_INTEGER);
            limit.push_str(&format!(", {key}={age}"));
        }
        // It consists of words and digits.
        if let Ok(limit) = HeaderValue::try_from(limit) {
            headers.insert(UPLOAD_LIMIT, limit);
        }
    }

    /// Says that the version of the client is understood.
    fn insert_version(&self, headers: &mut HeaderMap) {
        if let Some(version) = self.dialect.known {
            headers.insert(INTEROP_VERSION, u64::from(version).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::upload::{Scope, UploadId},
        protocol::{Protocol, Protocols, chunked::Dialect},
    };

    const OF_DRAFT: &str = "8123456789abcdef0123456789abcdef";
    const OF_TUS: &str = "0123456789abcdef0123456789abcdef";

    fn head(method: &str, query: &str, headers: &[(&str, &str)]) -> Parts {
        let uri = format!("/files{query}");
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    /// What a request asks for, or the kind of its error. `None` if it is not one of uploads with
    /// URLs.
    fn decoded(
        protocols: &Protocols,
        method: &str,
        query: &str,
        headers: &[(&str, &str)],
    ) -> Option<String> {
        let exchange = protocols.decode(&head(method, query, headers), false)?;
        match exchange.command {
            Err(error) => Some(error.kind().to_string()),
            Ok(Command::Capabilities) => Some("capabilities".into()),
            Ok(Command::Url(command)) => Some(match command {
                UrlCommand::Create { new, data } => {
                    let ends = data.and_then(|data| data.ends);
                    format!("create {ends:?} {:?}", new.creation.length)
                }
                UrlCommand::Concat { .. } => "concat".into(),
                UrlCommand::Append { offset, data, .. } => {
                    format!("append {offset} {:?}", data.ends)
                }
                UrlCommand::Look(_) => "look".into(),
                UrlCommand::Recall(_) => "recall".into(),
                UrlCommand::Discard(_) => "discard".into(),
            }),
            Ok(_) => None,
        }
    }

    #[test]
    fn requests_are_told_apart() {
        let mut protocols = Protocols::default();
        protocols.add(Protocol::from(Dialect::filepond()));
        protocols.urls_mut().appends = true;
        let of_draft = format!("?upload={OF_DRAFT}");
        let of_tus = format!("?upload={OF_TUS}");
        let (over, more) = (("upload-complete", "?1"), ("upload-complete", "?0"));
        let old = ("upload-incomplete", "?1");
        let at = ("upload-offset", "5");
        let partial = ("content-type", APPENDED);
        let tus = ("tus-resumable", "1.0.0");
        let of = |number| ("upload-draft-interop-version", number);
        for (method, query, headers, expected) in [
            ("POST", "", &[over][..], Some("create Some(true) None")),
            ("PUT", "", &[more], Some("create Some(false) None")),
            ("PATCH", "", &[over], Some("create Some(true) None")),
            ("POST", "", &[old], Some("create Some(false) None")),
            (
                "POST",
                "",
                &[over, ("upload-length", "9")],
                Some("create Some(true) Some(9)"),
            ),
            ("POST", "", &[("upload-complete", "1")], None),
            ("POST", "", &[of("8")], None),
            ("GET", "", &[over], None),
            ("POST", "", &[over, tus], Some("missing_field")),
            // Chunks and forms.
            (
                "POST",
                "?resumableChunkNumber=1",
                &[over],
                Some("missing_field"),
            ),
            ("POST", "", &[over, ("content-range", "bytes 0-3/9")], None),
            (
                "POST",
                "",
                &[over, ("content-type", "multipart/form-data")],
                Some("multipart"),
            ),
            // An upload says which protocol it is of, if the request does not.
            ("HEAD", &of_draft, &[], Some("look")),
            ("GET", &of_draft, &[], Some("look")),
            ("GET", &of_draft, &[tus], Some("recall")),
            ("GET", &of_tus, &[], Some("recall")),
            ("DELETE", &of_draft, &[], Some("discard")),
            ("DELETE", &of_tus, &[], Some("version")),
            ("DELETE", &of_tus, &[of("8")], Some("discard")),
            ("HEAD", &of_draft, &[at], Some("invalid_field")),
            // Appends.
            (
                "PATCH",
                &of_draft,
                &[over, at, partial],
                Some("append 5 Some(true)"),
            ),
            (
                "PATCH",
                &of_tus,
                &[more, at, partial],
                Some("append 5 Some(false)"),
            ),
            ("PATCH", &of_draft, &[over, at], Some("media_type")),
            ("PATCH", &of_draft, &[over, at, of("6")], Some("media_type")),
            (
                "PATCH",
                &of_draft,
                &[over, at, of("5")],
                Some("append 5 Some(true)"),
            ),
            (
                "PATCH",
                &of_draft,
                &[old, at, of("3")],
                Some("append 5 Some(false)"),
            ),
            (
                "PATCH",
                &of_draft,
                &[at, of("3")],
                Some("append 5 Some(true)"),
            ),
            ("PATCH", &of_draft, &[at, of("5")], Some("missing_field")),
            ("PATCH", &of_draft, &[over, partial], Some("missing_field")),
            (
                "PATCH",
                "?upload=1",
                &[over, at, partial],
                Some("not_found"),
            ),
            ("POST", &of_draft, &[over], Some("method_not_allowed")),
        ] {
            let got = decoded(&protocols, method, query, headers);
            assert_eq!(got.as_deref(), expected, "{method} {query} {headers:?}");
        }
        // A store that cannot append: an ordinary request, unless it is only a part of the file.
        protocols.urls_mut().appends = false;
        assert_eq!(decoded(&protocols, "POST", "", &[over]), None);
        let part = decoded(&protocols, "POST", "", &[more]);
        assert_eq!(part.as_deref(), Some("unsupported"));
        protocols.only([Protocol::tus()]);
        protocols.urls_mut().appends = true;
        assert_eq!(decoded(&protocols, "POST", "", &[more]), None);
    }

    #[test]
    fn items_of_structured_fields() {
        for (values, number, is_true) in [
            (&["5"][..], Some(5), None),
            (&["05"], Some(5), None),
            (&["5;a=b"], Some(5), None),
            (&["999999999999999"], Some(999_999_999_999_999), None),
            (&["1000000000000000"], None, None),
            (&["0000000000000005"], None, None),
            (&["-5"], None, None),
            (&["+5"], None, None),
            (&["5.0"], None, None),
            (&[""], None, None),
            (&["5, 5"], None, None),
            (&["5", "5"], None, None),
            (&["?1"], None, Some(true)),
            (&["?0"], None, Some(false)),
            (&["?1;a"], None, Some(true)),
            (&["?2"], None, None),
            (&["true"], None, None),
            (&["?1", "?1"], None, None),
        ] {
            let headers: Vec<_> = values
                .iter()
                .map(|value| ("upload-complete", *value))
                .collect();
            let headers = head("POST", "", &headers).headers;
            assert_eq!(integer(&headers, &UPLOAD_COMPLETE), number, "{values:?}");
            assert_eq!(completes(&headers), is_true, "{values:?}");
        }
    }

    #[test]
    fn each_version_gets_its_answers() {
        let urls = Arc::new(Urls::default());
        let upload = Upload::new(UploadId::from_bytes([7; 32]), Scope::default(), None);
        for (version, header, status, limit) in [
            (None, "upload-complete", 204, Some("max-age=")),
            (Some("3"), "upload-incomplete", 201, None),
            (Some("4"), "upload-complete", 201, None),
            (Some("5"), "upload-complete", 201, None),
            (Some("6"), "upload-complete", 201, Some("expires=")),
            (Some("7"), "upload-complete", 204, Some("max-age=")),
            (Some("8"), "upload-complete", 204, Some("max-age=")),
            (Some("9"), "upload-complete", 204, Some("max-age=")),
        ] {
            let version_of = |text| ("upload-draft-interop-version", text);
            let headers: Vec<_> = version.map(version_of).into_iter().collect();
            let reply = IetfReply {
                asked: Asked::Append { offset: Some(5) },
                dialect: Version::of(&head("PATCH", "", &headers).headers),
                urls: Arc::clone(&urls),
                location: Some(HeaderValue::from_static("/files?upload=1")),
            };
            let held = Held {
                upload: &upload,
                offset: Some(9),
                expires: SystemTime::now().checked_add(std::time::Duration::from_secs(60)),
            };
            let response = reply.encode(Outcome::Held(held));
            assert_eq!(response.status(), status, "{version:?}");
            let headers = response.headers();
            assert_eq!(headers[UPLOAD_OFFSET], "9");
            let incomplete = if version == Some("3") { "?1" } else { "?0" };
            assert_eq!(headers[header], incomplete, "{version:?}");
            assert!(!headers.contains_key(header::LOCATION));
            let told = headers.get(UPLOAD_LIMIT).map(|it| it.to_str().unwrap());
            assert_eq!(told.is_some(), limit.is_some(), "{version:?}");
            assert!(
                limit.is_none_or(|key| told.unwrap().contains(key)),
                "{told:?}"
            );

            let is_known = version.is_some_and(|it| it != "9");
            let echoed = headers.get(INTEROP_VERSION).map(|it| it.to_str().unwrap());
            assert_eq!(echoed, version.filter(|_| is_known));
            let progress = reply.interim(held);
            assert_eq!(progress.is_some(), is_known, "{version:?}");
            if let Some(progress) = progress {
                assert_eq!(progress.headers()[UPLOAD_OFFSET], "9");
                assert!(!progress.headers().contains_key(header::LOCATION));
            }
            let announced = reply.interim(Held {
                offset: None,
                ..held
            });
            if let Some(announced) = announced {
                assert_eq!(announced.headers()[header::LOCATION], "/files?upload=1");
                assert_eq!(announced.headers()[INTEROP_VERSION], version.unwrap());
            }
        }
    }

    #[test]
    fn errors_have_the_statuses_of_the_draft() {
        let urls = Arc::new(Urls::default());
        let status = |asked, reason: Reason| {
            let reply = IetfReply {
                asked,
                dialect: Version::of(&HeaderMap::new()),
                urls: Arc::clone(&urls),
                location: None,
            };
            let response = reply.encode(Outcome::Failed(&reason.into()));
            assert_eq!(response.headers()[UPLOAD_COMPLETE], "?0");
            response.status().as_u16()
        };
        let append = Asked::Append { offset: Some(5) };
        let ask = Asked::Look { believes: false };
        let name = || "x".to_owned();
        for (reason, asked, expected) in [
            (Reason::Offset { stored: 9 }, append, 409),
            (Reason::NotFound, append, 404),
            (Reason::MediaType, append, 415),
            (Reason::ContentEncoding, append, 415),
            (Reason::InconsistentLength, append, 400),
            (Reason::OutOfBounds, append, 400),
            (Reason::ChunkTooLarge { limit: 9 }, append, 413),
            (Reason::FileTooLarge { limit: 9 }, Asked::Create, 413),
            (Reason::MissingField { name: name() }, append, 400),
            (Reason::DigestMismatch { name: name() }, append, 400),
            (Reason::Superseded, append, 503),
            (Reason::Interrupted, append, 503),
            (Reason::Storage, append, 503),
            (Reason::Storage, ask, 503),
            (Reason::Storage, BELIEVER, 423),
            (Reason::Busy, BELIEVER, 423),
            (Reason::NotFound, BELIEVER, 404),
            (Reason::DeliveryFailed, append, 503),
            (Reason::DeliveryFailed, ask, 423),
            (Reason::DeliveryPending, Asked::Discard, 503),
            (Reason::MethodNotAllowed, Asked::Other, 405),
        ] {
            assert_eq!(status(asked, reason.clone()), expected, "{reason:?}");
        }
    }
}
