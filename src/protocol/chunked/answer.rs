//! What clients are told: the one table of statuses, and the shapes of the layer's own answers.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use serde_json::json;

use crate::{
    UploadError,
    config::Config,
    limits::LISTED_CHUNKS,
    protocol::chunked::{Answers, Chunk, InOrder, Numbering},
    response::ResponseBody,
    store::{Progress, RangeSet, Record, Status, Upload},
};

/// The status that the inner service, or a hook, gave, where the client is told another one.
const ORIGINAL_STATUS: HeaderName = HeaderName::from_static("x-resumable-status");

/// The status for an error. Clients give up on a few statuses only, each on others, and send
/// everything else again at once (Resumable.js up to a hundred times): so what is final is what the
/// dialect says, even where HTTP has a better word, and what is not is 503.
fn error_status(error: &UploadError, answers: Answers) -> StatusCode {
    match error.is_transient() {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => answers.refusal,
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
        400..500 => Outcome::Rejected,
        _ => Outcome::Failed,
    }
}

pub(crate) enum Outcome {
    /// Taken; the client sees this status.
    Delivered(StatusCode),
    /// Refused for good; the client sees what is final in its dialect.
    Rejected,
    /// To be tried again.
    Failed,
}

/// An error as problem details (RFC 9457), the typed error in the extensions.
pub(crate) fn error<R>(
    config: &Config,
    answers: Answers,
    error: UploadError,
) -> Response<ResponseBody<R>> {
    let status = error_status(&error, answers);
    let mut problem = json!({
        "type": "about:blank",
        "title": status.canonical_reason(),
        "status": status.as_u16(),
        "code": error.code(),
        "detail": error.to_string(),
    });
    if answers.says_success {
        problem["success"] = false.into();
        problem["error"] = error.to_string().into();
        problem["preventRetry"] = (!error.is_transient()).into();
    }
    let mut response = Response::new(Bytes::new());
    let mut is_own = false;
    if let UploadError::Refused(refusal) = &error {
        problem["original_status"] = refusal.status().as_u16().into();
        if let Some(answer) = refusal.response() {
            response = answer.clone();
            // Such a client reads a form of it that not all applications give.
            is_own = !answers.says_success;
        }
        let original = refusal.status().as_u16().into();
        response.headers_mut().insert(ORIGINAL_STATUS, original);
    }
    *response.status_mut() = status;
    let headers = response.headers_mut();
    if status == StatusCode::SERVICE_UNAVAILABLE {
        let soon = HeaderValue::from_static("1");
        headers.entry(header::RETRY_AFTER).or_insert(soon);
    }
    if !is_own {
        own_headers(headers, "application/problem+json");
        headers.remove(header::CONTENT_LENGTH);
        *response.body_mut() = problem.to_string().into();
    }
    if let Some(change) = &config.error_response {
        response = change(&error, response);
    }
    response.extensions_mut().insert(error);
    response.map(ResponseBody::answer)
}

/// "Have it", or "I took it": 200 and how far the upload is.
pub(crate) fn progress<R>(
    answers: Answers,
    received: u64,
    total: u64,
) -> Response<ResponseBody<R>> {
    let mut answer = json!({ "state": "receiving", "received": received, "total": total });
    shape(answers, &mut answer, true);
    ok(answer)
}

/// Adds what the client looks for in each answer.
fn shape(answers: Answers, answer: &mut serde_json::Value, is_success: bool) {
    if answers.says_success {
        answer["success"] = is_success.into();
        if !is_success {
            answer["preventRetry"] = true.into();
        }
    }
    if let Some((name, number)) = answers.echo {
        answer[name] = number.into();
    }
}

/// The name that an upload got.
pub(crate) fn created<R>(identifier: String) -> Response<ResponseBody<R>> {
    let mut response = Response::new(ResponseBody::answer(identifier.into()));
    *response.status_mut() = StatusCode::CREATED;
    own_headers(response.headers_mut(), "text/plain");
    response
}

/// How many bytes are stored without a gap from the first one.
pub(crate) fn prefix(status: &Status, total: u64) -> u64 {
    match status {
        Status::Absent => 0,
        Status::Receiving(ranges) => {
            let first = ranges.iter().next().filter(|range| range.start == 0);
            first.map_or(0, |range| range.end)
        }
        Status::Complete | Status::Settled(_) => total,
    }
}

/// Says how far a client is that sends from the first byte to the last: it goes on behind that.
pub(crate) fn say_range<R>(response: &mut Response<R>, prefix: u64) {
    let Some(last) = prefix.checked_sub(1) else {
        return;
    };
    if let Ok(range) = HeaderValue::try_from(format!("0-{last}")) {
        response.headers_mut().insert(header::RANGE, range);
    }
}

/// The same as the answer to a request of its own.
pub(crate) fn upload_offset<R>(status: &Status, total: u64) -> Response<ResponseBody<R>> {
    let mut response = Response::new(ResponseBody::default());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert("upload-offset", prefix(status, total).into());
    response
}

/// "Begin again": what the client believes to be here is not.
pub(crate) fn reset<R>() -> Response<ResponseBody<R>> {
    ok(json!({ "success": false, "reset": true }))
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

/// What is stored of an upload, as byte ranges (end exclusive) and as chunk numbers of its client.
pub(crate) fn status<R>(chunk: &Chunk, status: &Status) -> Response<ResponseBody<R>> {
    let total = chunk.identity.total;
    let answer = |state: &str, ranges: &RangeSet| {
        let pairs: Vec<_> = ranges
            .iter()
            .map(|range| json!([range.start, range.end]))
            .collect();
        let mut answer = json!({
            "state": state,
            "received": ranges.total(),
            "total": total,
            "ranges": pairs,
        });
        if let Some(numbering) = chunk.numbering {
            answer["chunks"] = chunk_numbers(numbering, total, ranges).into();
        }
        answer
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

/// What an owner has not finished, by name.
pub(crate) fn uploads<R>(mut uploads: Vec<(Upload, Progress)>) -> Response<ResponseBody<R>> {
    uploads.sort_unstable_by(|(a, _), (b, _)| {
        (&a.file_name, &a.identifier).cmp(&(&b.file_name, &b.identifier))
    });
    let each = uploads.iter().map(|(upload, progress)| {
        json!({
            "identifier": upload.identifier,
            "file_name": upload.file_name,
            "relative_path": upload.relative_path,
            "content_type": upload.content_type,
            "state": if progress.complete { "complete" } else { "receiving" },
            "received": progress.received,
            "total": upload.total,
        })
    });
    ok(json!({ "uploads": each.collect::<Vec<_>>() }))
}

/// The answer to a test that asks for all chunks: the numbers of those that are stored.
pub(crate) fn list<R>(
    answers: Answers,
    chunk: &Chunk,
    status: &Status,
) -> Response<ResponseBody<R>> {
    let total = chunk.identity.total;
    let mut stored = RangeSet::default();
    match status {
        Status::Receiving(ranges) => stored.clone_from(ranges),
        Status::Settled(record) if record.delivered => stored.insert(0, total),
        // To be sent again: see the probe of one chunk.
        _ => {}
    }
    let numbering = chunk.numbering.filter(|_| total > 0);
    let numbers = numbering.map(|numbering| chunk_numbers(numbering, total, &stored));
    let mut answer = json!({ "received": stored.total(), "total": total });
    answer[answers.list.unwrap_or("chunks")] = numbers.unwrap_or_default().into();
    ok(answer)
}

/// The chunks that need not be sent. In the default layout the last one reaches beyond its number.
fn chunk_numbers(Numbering { first, size }: Numbering, total: u64, ranges: &RangeSet) -> Vec<u64> {
    // By ranges: a client can declare more chunks than anybody can look at.
    let whole_chunks = ranges.iter().flat_map(|range| {
        let end = match range.end == total {
            true => total.div_ceil(size),
            false => range.end / size,
        };
        range.start.div_ceil(size)..end
    });
    let numbers = whole_chunks.map(|index| index.saturating_add(first));
    numbers.take(LISTED_CHUNKS).collect()
}

/// The remembered answer of the inner service.
pub(crate) fn recorded<R>(answers: Answers, mut record: Record) -> Response<ResponseBody<R>> {
    if answers.shapes_results() {
        shape_result(answers, &mut record);
    }
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
    translate(answers, &mut response, record.size);
    response
}

/// Makes an object of an answer, with what the client looks for.
fn shape_result(answers: Answers, record: &mut Record) {
    let text = record.body.take().unwrap_or_default();
    let mut answer = match serde_json::from_slice(&text) {
        Ok(serde_json::Value::Object(object)) => serde_json::Value::Object(object),
        _ => json!({ "answer": String::from_utf8_lossy(&text) }),
    };
    shape(answers, &mut answer, record.delivered);
    record.body = Some(answer.to_string().into());
    let about_body = [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ETAG];
    record
        .headers
        .retain(|(name, _)| !about_body.iter().any(|known| known == name.as_str()));
    let json = b"application/json".to_vec();
    record
        .headers
        .push((header::CONTENT_TYPE.to_string(), json));
}

/// Gives an answer of the inner service to a file of so many bytes the status that the client needs.
pub(crate) fn translate<R>(answers: Answers, response: &mut Response<ResponseBody<R>>, size: u64) {
    let original = response.status();
    let status = match outcome(original) {
        Outcome::Delivered(status) => status,
        // Final in all dialects.
        Outcome::Rejected if original == StatusCode::UNSUPPORTED_MEDIA_TYPE => original,
        Outcome::Rejected => answers.refusal,
        Outcome::Failed => return,
    };
    if answers.in_order == Some(InOrder::Range) {
        say_range(response, size);
    }
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
            (400, Some((false, 0))),
            (401, Some((false, 0))),
            (415, Some((false, 0))),
            (499, Some((false, 0))),
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
                Outcome::Rejected => Some((false, 0)),
                Outcome::Failed => None,
            };
            assert_eq!(got, expected, "{inner}");
        }
    }

    #[test]
    fn chunks_that_are_stored() {
        let numbers = |size, total, stored: &[(u64, u64)]| -> Vec<u64> {
            let mut ranges = RangeSet::default();
            stored.iter().for_each(|&(at, len)| ranges.insert(at, len));
            chunk_numbers(Numbering { first: 1, size }, total, &ranges)
        };
        assert!(numbers(10, 25, &[]).is_empty());
        assert_eq!(numbers(10, 25, &[(0, 25)]), [1, 2, 3]);
        assert_eq!(numbers(10, 25, &[(0, 10), (20, 5)]), [1, 3]);
        assert!(numbers(10, 25, &[(0, 9), (11, 13)]).is_empty());
        assert_eq!(numbers(10, 30, &[(5, 25)]), [2, 3]);
        assert_eq!(numbers(10, 3, &[(0, 3)]), [1]);
        assert_eq!(numbers(u64::MAX, 3, &[(0, 3)]), [1]);
        // More chunks than there is time for.
        assert!(numbers(1, u64::MAX, &[]).is_empty());
        assert_eq!(
            numbers(1, u64::MAX, &[(7, 1), (u64::MAX - 1, 1)]),
            [8, u64::MAX]
        );
        assert_eq!(numbers(1, u64::MAX, &[(0, u64::MAX)]).len(), LISTED_CHUNKS);
    }

    #[test]
    fn every_error_is_final_or_tried_again() {
        for (error, status) in [
            (UploadError::Base64, 400),
            (UploadError::ChunkTooLarge { limit: 1 }, 400),
            (UploadError::MethodNotAllowed, 400),
            (UploadError::Storage, 503),
            (UploadError::StorageFull, 503),
            (UploadError::Busy, 503),
            (UploadError::DeliveryFailed, 503),
        ] {
            let config = Config::default();
            let response = super::error::<()>(&config, Answers::default(), error.clone());
            assert_eq!(response.status(), status, "{error}");
            assert_eq!(
                response.headers().contains_key(header::RETRY_AFTER),
                status == 503
            );
            assert_eq!(response.extensions().get(), Some(&error));
        }
    }
}
