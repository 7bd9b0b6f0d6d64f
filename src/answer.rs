//! What clients are told: the one table of statuses, and the shapes of the layer's own answers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::{
    UploadError,
    body::ResponseBody,
    config::Config,
    dialect::Chunk,
    store::{RangeSet, Record, Status},
};

/// The status that the inner service, or a hook, gave, where the client is told another one.
const ORIGINAL_STATUS: HeaderName = HeaderName::from_static("x-resumable-status");

/// Most chunk numbers that a status answer lists.
const LISTED_CHUNKS: u64 = 65_536;

/// The status for an error. Resumable.js gives up only on 400, 404, 415, 500 and 501 and sends
/// everything else again at once, up to a hundred times: so what is final is 400, even where HTTP
/// has a better word, and what is not is 503.
fn error_status(error: &UploadError) -> StatusCode {
    match error.is_transient() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::BAD_REQUEST,
    }
}

/// How the inner service's status reads to the client, and what it means for the upload.
pub(crate) fn outcome(status: StatusCode) -> Outcome {
    match status.as_u16() {
        408 | 425 | 429 => Outcome::Failed,
        200 | 201 => Outcome::Delivered(status),
        // 202 and 204 are sent again by Resumable.js; a redirect would be followed by the browser
        // with the chunk.
        100..400 => Outcome::Delivered(StatusCode::OK),
        400 | 415 => Outcome::Rejected(status),
        401..500 => Outcome::Rejected(StatusCode::BAD_REQUEST),
        _ => Outcome::Failed,
    }
}

pub(crate) enum Outcome {
    /// Taken; the client sees this status.
    Delivered(StatusCode),
    /// Refused for good; the client sees this status.
    Rejected(StatusCode),
    /// To be tried again.
    Failed,
}

/// An error as problem details (RFC 9457), the typed error in the extensions.
pub(crate) fn error<R>(config: &Config, error: UploadError) -> Response<ResponseBody<R>> {
    let status = error_status(&error);
    let mut problem = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "code": error.code(),
        "detail": error.to_string(),
    });
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if let UploadError::Refused { status, .. } = error {
        headers.insert(ORIGINAL_STATUS, status.as_u16().into());
        problem["original_status"] = status.as_u16().into();
    }
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    own_headers(headers, "application/problem+json");
    *response.body_mut() = problem.to_string().into();
    if let Some(change) = &config.error_response {
        response = change(&error, response);
    }
    response.extensions_mut().insert(error);
    response.map(ResponseBody::answer)
}

/// "Have it", or "I took it": 200 and how far the upload is.
pub(crate) fn progress<R>(received: u64, total: u64) -> Response<ResponseBody<R>> {
    ok(json!({ "state": "receiving", "received": received, "total": total }))
}

/// "Have it not": the one status that all clients read that way.
pub(crate) fn missing<R>() -> Response<ResponseBody<R>> {
    let mut response = Response::new(ResponseBody::default());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, NO_STORE);
    response
}

/// What is stored of an upload, as byte ranges (end exclusive) and 1-based chunk numbers.
pub(crate) fn status<R>(chunk: &Chunk, status: &Status) -> Response<ResponseBody<R>> {
    let total = chunk.identity.total;
    let answer = |state: &str, ranges: &RangeSet| {
        let pairs: Vec<_> = ranges
            .iter()
            .map(|range| json!([range.start, range.end]))
            .collect();
        json!({
            "state": state,
            "received": ranges.total(),
            "total": total,
            "ranges": pairs,
            "chunks": chunk_numbers(chunk, ranges),
        })
    };
    let mut all = RangeSet::default();
    all.insert(0, total);
    ok(match status {
        Status::Absent => answer("absent", &RangeSet::default()),
        Status::Receiving(ranges) => answer("receiving", ranges),
        Status::Complete => answer("complete", &all),
        Status::Settled(record) if record.delivered => answer("delivered", &all),
        Status::Settled(_) => answer("rejected", &all),
    })
}

/// The chunks that need not be sent. In the default layout the last one reaches beyond its number.
fn chunk_numbers(chunk: &Chunk, ranges: &RangeSet) -> Vec<u64> {
    let (size, total) = (chunk.chunk_size, chunk.identity.total);
    (0..total.div_ceil(size))
        .filter(|index| {
            let offset = index * size;
            ranges.covers(offset, size.min(total - offset))
        })
        .map(|index| index + 1)
        .take(LISTED_CHUNKS as usize)
        .collect()
}

/// The remembered answer of the inner service.
pub(crate) fn recorded<R>(record: Record) -> Response<ResponseBody<R>> {
    let mut response = match record.body {
        Some(body) => Response::new(ResponseBody::answer(body)),
        // It was too long: how far the upload is instead.
        None => ok(json!({
            "state": "delivered",
            "received": record.size,
            "total": record.size,
        })),
    };
    let is_whole = response.headers().is_empty();
    for (name, value) in record.headers.into_iter().filter(|_| is_whole) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    *response.status_mut() = StatusCode::from_u16(record.status).unwrap_or(StatusCode::OK);
    translate(&mut response);
    response
}

/// Gives an answer of the inner service the status that the client needs.
pub(crate) fn translate<R>(response: &mut Response<ResponseBody<R>>) {
    let original = response.status();
    let (Outcome::Delivered(status) | Outcome::Rejected(status)) = outcome(original) else {
        return;
    };
    let headers = response.headers_mut();
    headers.entry(header::CACHE_CONTROL).or_insert(NO_STORE);
    if status != original {
        headers.insert(ORIGINAL_STATUS, original.as_u16().into());
        *response.status_mut() = status;
    }
}

/// The headers of an answer that are worth remembering: not those of its transfer.
pub(crate) fn recorded_headers(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    const TRANSFER: [HeaderName; 8] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::DATE,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    headers
        .iter()
        .filter(|(name, _)| !TRANSFER.contains(name))
        .map(|(name, value)| (name.as_str().to_owned(), value.as_bytes().to_vec()))
        .collect()
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

fn ok<R>(body: serde_json::Value) -> Response<ResponseBody<R>> {
    let mut response = Response::new(ResponseBody::answer(body.to_string().into()));
    own_headers(response.headers_mut(), "application/json");
    response
}

fn own_headers(headers: &mut HeaderMap, content_type: &'static str) {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inner_statuses() {
        for (inner, expected) in [
            (200, Some((true, 200))),
            (201, Some((true, 201))),
            (202, Some((true, 200))),
            (204, Some((true, 200))),
            (303, Some((true, 200))),
            (400, Some((false, 400))),
            (401, Some((false, 400))),
            (409, Some((false, 400))),
            (415, Some((false, 415))),
            (422, Some((false, 400))),
            (408, None),
            (425, None),
            (429, None),
            (500, None),
            (503, None),
            (599, None),
        ] {
            let status = StatusCode::from_u16(inner).unwrap();
            let got = match outcome(status) {
                Outcome::Delivered(status) => Some((true, status.as_u16())),
                Outcome::Rejected(status) => Some((false, status.as_u16())),
                Outcome::Failed => None,
            };
            assert_eq!(got, expected, "{inner}");
        }
    }

    #[test]
    fn every_error_is_final_or_tried_again() {
        for (error, status) in [
            (UploadError::Base64, 400),
            (UploadError::ChunkTooLarge { limit: 1 }, 400),
            (UploadError::MethodNotAllowed, 400),
            (UploadError::Storage, 503),
            (UploadError::StorageFull, 503),
            (UploadError::DeliveryFailed, 503),
        ] {
            let response = super::error::<()>(&Config::default(), error.clone());
            assert_eq!(response.status(), status, "{error}");
            assert_eq!(
                response.headers().contains_key(header::RETRY_AFTER),
                status == 503
            );
            assert_eq!(response.extensions().get(), Some(&error));
        }
    }
}
