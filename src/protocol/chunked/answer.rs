//! What chunk clients are told.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response};
use serde_json::{Value, json};

use super::{
    Params,
    dialect::{AnswerFormat, Dialect, Resume},
    parse::Fields,
};
use crate::{
    error::Error,
    limits::LISTED_CHUNKS,
    model::{
        ranges::RangeSet,
        state::{Progress, Record, State, Status},
        upload::Upload,
    },
    protocol::{
        Encode, Outcome, Target,
        problem::{NO_STORE, ORIGINAL_STATUS, describe_body, problem},
    },
};

/// Writes the response to one request of a chunk client.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    dialect: Arc<Dialect>,
    /// The number of the chunk.
    number: Option<u64>,
    /// What the client asks, and of which chunk.
    pub(super) asked: Option<(Asked, Target)>,
}

/// What a client asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// Whether a chunk is stored.
    Chunk,
    /// Which chunks are stored.
    List,
    /// What is stored of an upload.
    Status,
    /// How many bytes are stored without a gap from the first one.
    Offset,
}

impl Answers {
    /// The answers of a dialect to a request with these fields. Those that most clients understand
    /// if there is no dialect.
    pub(super) fn new(dialect: Option<&Arc<Dialect>>, params: &Params) -> Self {
        let Some(dialect) = dialect else {
            return Self::default();
        };
        let number = match dialect.answers {
            AnswerFormat::JsonChunkNumber(_) => {
                let number = Fields::first(params).number(&dialect.names.chunk_number, 0);
                // A wrong number is reported by the fields that it stands in.
                number.ok().flatten()
            }
            AnswerFormat::Plain | AnswerFormat::JsonSuccess => None,
        };
        Self {
            dialect: Arc::clone(dialect),
            number,
            asked: None,
        }
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self {
            dialect: Arc::new(Dialect::new("")),
            number: None,
            asked: None,
        }
    }
}

impl Encode for Answers {
    fn encode(&self, outcome: Outcome<'_>) -> Response<Bytes> {
        match outcome {
            Outcome::Created(upload) => created(&upload.identifier),
            Outcome::Stored {
                upload,
                progress,
                status,
            } => {
                let mut response = self.progress(progress.received, upload.length);
                if let Some(status) = status.filter(|_| self.needs_status()) {
                    insert_range(response.headers_mut(), status.prefix());
                }
                response
            }
            Outcome::State(status) => match &self.asked {
                Some((Asked::Chunk, chunk)) => self.test(chunk, status),
                Some((Asked::List, chunk)) => self.list(chunk, status),
                Some((Asked::Status, chunk)) => self.status(chunk, status),
                Some((Asked::Offset, _)) => upload_offset(status),
                None => missing(),
            },
            Outcome::Listed(uploads) => list_uploads(uploads),
            Outcome::Answer(record) => self.recorded(record),
            Outcome::Gone => ok(json!({ "success": false, "reset": true })),
            Outcome::Removed => missing(),
            Outcome::Failed(error) => self.failed(error),
        }
    }

    fn forward(&self, answer: &mut response::Parts, upload: &Upload, delivered: bool) -> bool {
        if self.is_json() {
            return false;
        }
        let size = upload.length.unwrap_or_default();
        self.translate(&mut answer.status, &mut answer.headers, delivered, size);
        true
    }

    fn needs_status(&self) -> bool {
        self.dialect.resume == Resume::ByRange
    }
}

impl Answers {
    /// Whether each answer has to be a JSON object with a certain member.
    fn is_json(&self) -> bool {
        match self.dialect.answers {
            AnswerFormat::Plain => false,
            AnswerFormat::JsonSuccess => true,
            AnswerFormat::JsonChunkNumber(_) => self.number.is_some(),
        }
    }

    /// Adds the member that the client looks for in each answer.
    fn add_member(&self, answer: &mut Value, is_success: bool) {
        match (&self.dialect.answers, self.number) {
            (AnswerFormat::JsonSuccess, _) => {
                answer["success"] = is_success.into();
                if !is_success {
                    answer["preventRetry"] = true.into();
                }
            }
            (AnswerFormat::JsonChunkNumber(member), Some(number)) => {
                answer[member.as_str()] = number.into();
            }
            (AnswerFormat::Plain | AnswerFormat::JsonChunkNumber(_), _) => {}
        }
    }

    /// Clients stop at a few statuses only, each at others, and send everything else again at once
    /// (Resumable.js up to a hundred times). So a final error has the status of the dialect, even
    /// where HTTP has a better one, and a retryable error has 503.
    fn failed(&self, error: &Error) -> Response<Bytes> {
        let status = if error.is_retryable() {
            StatusCode::SERVICE_UNAVAILABLE
        } else {
            self.dialect.refusal
        };
        let members = (self.dialect.answers == AnswerFormat::JsonSuccess).then(|| {
            json!({
                "success": false,
                "error": error.to_string(),
                "preventRetry": !error.is_retryable(),
            })
        });
        problem(error, status, members)
    }

    /// The chunk is stored.
    fn progress(&self, received: u64, total: Option<u64>) -> Response<Bytes> {
        let mut answer = json!({ "state": "receiving", "received": received, "total": total });
        self.add_member(&mut answer, true);
        ok(answer)
    }

    /// Whether one chunk is stored.
    fn test(&self, chunk: &Target, status: Option<&Status>) -> Response<Bytes> {
        let len = chunk.len.unwrap_or(chunk.max_len);
        match status.map(|status| &status.state) {
            Some(State::Receiving(ranges)) if ranges.covers(chunk.offset, len) => {
                self.progress(ranges.total(), chunk.upload.length)
            }
            Some(State::Settled(record)) if record.delivered => self.recorded(record),
            // A client that finds all chunks stored never sends again. So the chunks of a complete
            // upload that is not delivered, or was rejected, count as missing: the answer to the
            // chunk that the client then sends is that of a new attempt, or the rejection.
            _ => missing(),
        }
    }

    /// The numbers of the stored chunks.
    fn list(&self, chunk: &Target, status: Option<&Status>) -> Response<Bytes> {
        let total = chunk.upload.length.unwrap_or_default();
        let mut stored = RangeSet::default();
        match status.map(|status| &status.state) {
            Some(State::Receiving(ranges)) => stored.clone_from(ranges),
            Some(State::Settled(record)) if record.delivered => stored.insert(0, total),
            // To be sent again, as in a test of one chunk.
            _ => {}
        }
        let mut answer = json!({ "received": stored.total(), "total": total });
        let member = self.dialect.list_tests.as_deref().unwrap_or("chunks");
        let size = chunk.upload.chunk_size.filter(|_| total > 0);
        let numbers = size.map(|size| self.chunk_numbers(size, total, &stored));
        answer[member] = numbers.unwrap_or_default().into();
        ok(answer)
    }

    /// What is stored of an upload, as byte ranges (end exclusive) and as chunk numbers of its
    /// client.
    fn status(&self, chunk: &Target, status: Option<&Status>) -> Response<Bytes> {
        let total = chunk.upload.length.unwrap_or_default();
        let mut all = RangeSet::default();
        all.insert(0, total);
        let none = RangeSet::default();
        let (state, ranges) = match status.map(|status| &status.state) {
            None => ("absent", &none),
            Some(State::Receiving(ranges)) => ("receiving", ranges),
            Some(State::Complete) => ("complete", &all),
            Some(State::Settled(record)) if record.delivered => ("delivered", &all),
            Some(State::Settled(_)) => ("rejected", &all),
        };
        let pairs = ranges.iter().map(|range| json!([range.start, range.end]));
        let mut answer = json!({
            "state": state,
            "received": ranges.total(),
            "total": total,
            "ranges": pairs.collect::<Vec<_>>(),
        });
        if let Some(size) = chunk.upload.chunk_size {
            answer["chunks"] = self.chunk_numbers(size, total, ranges).into();
        }
        ok(answer)
    }

    /// The numbers of the chunks that are stored as a whole. The last one can reach beyond the size
    /// of a chunk.
    fn chunk_numbers(&self, size: u64, total: u64, ranges: &RangeSet) -> Vec<u64> {
        // By ranges: a client can declare more chunks than can be iterated over.
        let whole_chunks = ranges.iter().flat_map(|range| {
            let end = if range.end == total {
                total.div_ceil(size)
            } else {
                range.end / size
            };
            range.start.div_ceil(size)..end
        });
        let first = self.dialect.first_number;
        let numbers = whole_chunks.map(|index| index.saturating_add(first));
        numbers.take(LISTED_CHUNKS).collect()
    }

    /// The recorded answer of the inner service.
    fn recorded(&self, record: &Record) -> Response<Bytes> {
        let mut headers = record.headers.clone();
        let mut response = match &record.body {
            body if self.is_json() => {
                // These describe the body that is replaced.
                for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ETAG] {
                    headers.remove(name);
                }
                let json = HeaderValue::from_static("application/json");
                headers.insert(header::CONTENT_TYPE, json);
                let body = self.with_member(body.as_deref().unwrap_or_default(), record.delivered);
                Response::new(body.to_string().into())
            }
            Some(body) => Response::new(body.clone()),
            // The body was too long to be recorded, and the headers describe it.
            None => {
                headers.clear();
                let size = record.size;
                ok(json!({ "state": "delivered", "received": size, "total": size }))
            }
        };
        response.headers_mut().extend(headers);
        let (mut parts, body) = response.into_parts();
        parts.status = record.status;
        self.translate(
            &mut parts.status,
            &mut parts.headers,
            record.delivered,
            record.size,
        );
        Response::from_parts(parts, body)
    }

    /// Makes an object of a body, with the member that the client looks for.
    fn with_member(&self, body: &[u8], delivered: bool) -> Value {
        let mut answer = match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => json!({ "answer": String::from_utf8_lossy(body) }),
        };
        self.add_member(&mut answer, delivered);
        answer
    }

    /// Gives an answer of the inner service to a file of this size the status that the client
    /// needs.
    fn translate(
        &self,
        status: &mut StatusCode,
        headers: &mut HeaderMap,
        delivered: bool,
        size: u64,
    ) {
        let original = *status;
        *status = match original {
            StatusCode::OK | StatusCode::CREATED if delivered => original,
            // Resumable.js sends again after 202 and 204. A browser follows a redirect with the
            // chunk.
            _ if delivered => StatusCode::OK,
            // Final in all dialects.
            StatusCode::UNSUPPORTED_MEDIA_TYPE => original,
            _ => self.dialect.refusal,
        };
        if self.needs_status() {
            insert_range(headers, size);
        }
        headers.entry(header::CACHE_CONTROL).or_insert(NO_STORE);
        if *status != original {
            headers.insert(ORIGINAL_STATUS, original.as_u16().into());
        }
    }
}

/// The identifier that an upload got.
fn created(identifier: &str) -> Response<Bytes> {
    let mut response = Response::new(identifier.to_owned().into());
    *response.status_mut() = StatusCode::CREATED;
    describe_body(response.headers_mut(), "text/plain");
    response
}

/// Says how many bytes are stored without a gap, to a client that sends from the first byte to the
/// last.
fn insert_range(headers: &mut HeaderMap, prefix: u64) {
    let Some(last) = prefix.checked_sub(1) else {
        return;
    };
    if let Ok(range) = HeaderValue::try_from(format!("0-{last}")) {
        headers.insert(header::RANGE, range);
    }
}

/// The same in the answer to a question.
fn upload_offset(status: Option<&Status>) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    headers.insert("upload-offset", status.map_or(0, Status::prefix).into());
    response
}

/// Nothing is stored. All clients read 204 that way.
fn missing() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    response
}

/// The unfinished uploads of a scope, by name.
fn list_uploads(uploads: &[(Upload, Progress)]) -> Response<Bytes> {
    let mut uploads: Vec<_> = uploads.iter().collect();
    uploads.sort_by_key(|(upload, _)| (&upload.file_name, &upload.identifier));
    let each = uploads.iter().map(|(upload, progress)| {
        json!({
            "identifier": upload.identifier,
            "file_name": upload.file_name,
            "relative_path": upload.relative_path,
            "content_type": upload.content_type,
            "state": if progress.complete { "complete" } else { "receiving" },
            "received": progress.received,
            "total": upload.length,
        })
    });
    ok(json!({ "uploads": each.collect::<Vec<_>>() }))
}

fn ok(body: Value) -> Response<Bytes> {
    let mut response = Response::new(body.to_string().into());
    describe_body(response.headers_mut(), "application/json");
    response
}
