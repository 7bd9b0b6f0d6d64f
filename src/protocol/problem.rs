//! Errors as problem details (RFC 9457), for all protocols without an error format of their own.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::{Value, json};

use crate::error::{Error, ErrorKind};

/// The status of the inner service or of a hook, if the client gets another one.
pub(super) const ORIGINAL_STATUS: HeaderName = HeaderName::from_static("x-resumable-status");

pub(super) const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

/// Encodes an error. `members` are added to the problem details.
///
/// If a hook has refused the request with a whole response, its body is kept, unless the client
/// needs `members`.
pub(super) fn problem(
    error: &Error,
    status: StatusCode,
    members: Option<Value>,
) -> Response<Bytes> {
    let mut problem = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "code": error.kind().as_str(),
        "detail": error.to_string(),
    });
    let mut response = Response::new(Bytes::new());
    let mut keeps_body = false;
    if let Some(refusal) = error.refusal() {
        let original = refusal.status().as_u16();
        problem["original_status"] = original.into();
        if let Some(own) = refusal.response() {
            response = own.clone();
            keeps_body = members.is_none();
        }
        let headers = response.headers_mut();
        headers.insert(ORIGINAL_STATUS, original.into());
    }
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let soon = HeaderValue::from_static("1");
        headers.entry(header::RETRY_AFTER).or_insert(soon);
    }
    if error.kind() == ErrorKind::MethodNotAllowed {
        // Those of an upload with a URL. RFC 9110 §15.5.6 requires the header.
        let allowed = HeaderValue::from_static("DELETE, GET, HEAD, OPTIONS, PATCH, POST");
        headers.insert(header::ALLOW, allowed);
    }
    if error.kind() == ErrorKind::ContentEncoding {
        let plain = HeaderValue::from_static("identity");
        headers.insert(header::ACCEPT_ENCODING, plain);
    }
    if !keeps_body {
        if let (Some(problem), Some(Value::Object(members))) = (problem.as_object_mut(), members) {
            problem.extend(members);
        }
        describe_body(headers, "application/problem+json");
        headers.remove(header::CONTENT_LENGTH);
        *response.body_mut() = problem.to_string().into();
    }
    response
}

/// A response without a body that must not be cached.
pub(super) fn empty(status: StatusCode) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    response
}

/// Sets the headers of a body that the layer has written.
pub(super) fn describe_body(headers: &mut HeaderMap, content_type: &'static str) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
}
