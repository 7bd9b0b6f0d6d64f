//! Encodes the answers to chunk clients.

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
    error::{Error, ErrorKind},
    limits::LISTED_CHUNKS,
    model::{
        ranges::RangeSet,
        state::{Progress, Record, State, Status},
        upload::{Role, Upload, UploadId},
    },
    protocol::{
        Encode, Outcome, Target, Urls,
        problem::{NO_STORE, ORIGINAL_STATUS, describe_body, empty, problem},
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
    /// The answers of a dialect to a request with these fields. Without a dialect: answers that
    /// most clients understand.
    pub(super) fn new(dialect: Option<&Arc<Dialect>>, params: &Params) -> Self {
        let Some(dialect) = dialect else {
            return Self::default();
        };
        let number = match dialect.answers {
            AnswerFormat::JsonChunkNumber(_) => {
                let number = Fields::first(params).number(&dialect.names.chunk_number, 0);
                // An invalid number is reported when the chunk is decoded.
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
            Outcome::Listed {
                uploads,
                next,
                urls,
            } => list_uploads(uploads, next, urls),
            Outcome::Answer(record) => self.recorded(record),
            Outcome::Gone => ok(json!({ "success": false, "reset": true })),
            // Chunk clients have no URLs.
            Outcome::Removed | Outcome::Capabilities { .. } | Outcome::Held(_) => missing(),
            Outcome::Failed(error) | Outcome::Undelivered(error, _) => self.failed(error),
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

    fn probe_delivers(&self) -> bool {
        matches!(self.asked, Some((Asked::Offset, _)))
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

    /// Each client stops at a few statuses, and sends the chunk again at once after all others
    /// (Resumable.js up to a hundred times). So a final error has the status of the dialect, even
    /// where HTTP has a better one, and a retryable error has 503.
    fn failed(&self, error: &Error) -> Response<Bytes> {
        let status = if error.is_retryable() {
            StatusCode::SERVICE_UNAVAILABLE
        } else if error.kind() == ErrorKind::ContentEncoding {
            // Final in all dialects.
            StatusCode::UNSUPPORTED_MEDIA_TYPE
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
            // A client that finds all chunks stored sends nothing. So the chunks of a complete
            // upload that is not delivered, or was rejected, count as missing. Then the client
            // sends one of them, and gets the answer to a new attempt, or the rejection.
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
            // Missing, as in a test of one chunk.
            _ => {}
        }
        let mut answer = json!({ "received": stored.total(), "total": total });
        let member = self.dialect.list_tests.as_deref().unwrap_or("chunks");
        let size = chunk.upload.chunk_size.filter(|_| total > 0);
        let numbers = size.map(|size| self.chunk_numbers(size, total, &stored));
        answer[member] = numbers.unwrap_or_default().into();
        ok(answer)
    }

    /// What is stored of an upload, as byte ranges (the end is exclusive) and as chunk numbers of
    /// its client.
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

    /// The numbers of the chunks of which all bytes are stored. The last chunk can be longer than
    /// the chunk size.
    fn chunk_numbers(&self, size: u64, total: u64, ranges: &RangeSet) -> Vec<u64> {
        // Computed from the ranges: a client can declare too many chunks to iterate over.
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

    /// Turns a body into a JSON object with the member that the client looks for.
    fn with_member(&self, body: &[u8], delivered: bool) -> Value {
        let mut answer = match serde_json::from_slice(body) {
            Ok(Value::Object(object)) => Value::Object(object),
            _ => json!({ "answer": String::from_utf8_lossy(body) }),
        };
        self.add_member(&mut answer, delivered);
        answer
    }

    /// Changes the status of an answer of the inner service to one that the client understands.
    /// `size` is that of the file, in bytes.
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
            // Resumable.js sends again after 202 and 204. A browser follows a redirect, and repeats
            // the chunk.
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

/// The identifier of a new upload.
fn created(identifier: &str) -> Response<Bytes> {
    let mut response = Response::new(identifier.to_owned().into());
    *response.status_mut() = StatusCode::CREATED;
    describe_body(response.headers_mut(), "text/plain");
    response
}

/// Adds the header `Range` for a client that sends from the first byte to the last: how many bytes
/// are stored without a gap.
fn insert_range(headers: &mut HeaderMap, prefix: u64) {
    let Some(last) = prefix.checked_sub(1) else {
        return;
    };
    if let Ok(range) = HeaderValue::try_from(format!("0-{last}")) {
        headers.insert(header::RANGE, range);
    }
}

/// The same as `Upload-Offset`, in the answer to a question.
fn upload_offset(status: Option<&Status>) -> Response<Bytes> {
    let mut response = empty(StatusCode::OK);
    let offset = status.map_or(0, Status::prefix);
    response
        .headers_mut()
        .insert("upload-offset", offset.into());
    response
}

/// Nothing is stored. All clients understand 204 like that.
fn missing() -> Response<Bytes> {
    empty(StatusCode::NO_CONTENT)
}

/// The unfinished uploads of a scope, by name.
fn list_uploads(
    uploads: &[(Upload, Progress)],
    next: Option<UploadId>,
    urls: &Urls,
) -> Response<Bytes> {
    let mut uploads: Vec<_> = uploads.iter().collect();
    uploads.sort_by_key(|(upload, _)| (&upload.file_name, &upload.identifier));
    let each = uploads.iter().map(|(upload, progress)| {
        let mut listed = json!({
            "identifier": upload.identifier,
            "file_name": upload.file_name,
            "relative_path": upload.relative_path,
            "content_type": upload.content_type,
            "state": if progress.complete { "complete" } else { "receiving" },
            "received": progress.received,
            "total": upload.length.or(upload.declared()),
        });
        if upload.creation.is_some() {
            let url = urls.location(upload);
            listed["url"] = url.as_ref().and_then(|url| url.to_str().ok()).into();
            listed["part"] = (upload.role == Role::Part).into();
        }
        listed
    });
    let mut list = json!({ "uploads": each.collect::<Vec<_>>() });
    if let Some(next) = next {
        list["next"] = next.to_string().into();
    }
    ok(list)
}

fn ok(body: Value) -> Response<Bytes> {
    let mut response = Response::new(body.to_string().into());
    describe_body(response.headers_mut(), "application/json");
    response
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::{super::IdentityRule, *};
    use crate::{
        error::Reason, hooks::Refusal, model::upload::Scope, protocol::chunked::parse::Subject,
    };

    fn upload() -> Upload {
        let scope = Scope::default();
        let mut upload = Upload::new(UploadId::new(&scope, ["i"]), scope, Some(25));
        upload.identifier = "i".into();
        upload
    }

    fn status(state: State) -> Status {
        Status::new(upload(), state)
    }

    fn receiving(ranges: &[(u64, u64)]) -> Status {
        let mut set = RangeSet::default();
        ranges.iter().for_each(|&(at, len)| set.insert(at, len));
        status(State::Receiving(set))
    }

    fn record(delivered: bool, status: u16, body: Option<&'static str>) -> Record {
        let status = StatusCode::from_u16(status).unwrap();
        let mut record = Record::new(delivered, status, 25, SystemTime::UNIX_EPOCH);
        record.body = body.map(Into::into);
        let text = HeaderValue::from_static("text/x");
        record.headers.insert(header::CONTENT_TYPE, text);
        record.headers.insert("x-id", 7.into());
        record
    }

    /// Chunk 2 of 3, of 10 bytes each.
    fn asks(dialect: Dialect, asked: Asked) -> Answers {
        let dialect = dialect
            .with_identifier("id")
            .with_total_size("total")
            .with_chunk_number("n", 1)
            .with_chunk_size("size")
            .with_last_chunk(crate::LastChunk::Rest);
        let params = Params::from_query(Some("id=i&total=25&n=2&size=10")).unwrap();
        let mut answers = Answers::new(Some(&Arc::new(dialect.clone())), &params);
        let fields = Fields::strict(&params);
        let chunk = dialect.chunk(fields, Subject::Chunk, IdentityRule::Full);
        answers.asked = Some((asked, chunk.unwrap()));
        answers
    }

    fn plain() -> Dialect {
        Dialect::new("plain")
    }

    fn success() -> Dialect {
        plain().with_answers(AnswerFormat::JsonSuccess)
    }

    fn echo() -> Dialect {
        plain().with_answers(AnswerFormat::JsonChunkNumber("at".into()))
    }

    #[track_caller]
    fn assert_answer(response: &Response<Bytes>, status: u16, body: &str) {
        assert_eq!(response.status(), status);
        assert_eq!(response.body(), body);
        assert_eq!(response.headers()["cache-control"], "no-store");
        let has_own_body = response.headers().contains_key("x-content-type-options");
        assert!(!body.is_empty() || !has_own_body);
    }

    #[test]
    fn probes_of_one_chunk() {
        let stored = r#"{"received":15,"state":"receiving","total":25}"#;
        for (state, code, body) in [
            (None, 204, ""),
            (Some(receiving(&[(0, 10)])), 204, ""),
            (Some(receiving(&[(10, 15)])), 200, stored),
            // The client sends the chunk again, and gets the answer to a new attempt.
            (Some(status(State::Complete)), 204, ""),
            (
                Some(status(State::Settled(record(false, 409, Some("no"))))),
                204,
                "",
            ),
            (
                Some(status(State::Settled(record(true, 201, Some("yes"))))),
                201,
                "yes",
            ),
        ] {
            let answers = asks(plain(), Asked::Chunk);
            let response = answers.encode(Outcome::State(state.as_ref()));
            assert_answer(&response, code, body);
        }
        // A client that names no chunk.
        let response = Answers::default().encode(Outcome::State(None));
        assert_answer(&response, 204, "");
    }

    #[test]
    fn probes_of_all_chunks() {
        let answers = asks(plain().with_list_tests("have"), Asked::List);
        for (state, body) in [
            (None, r#"{"have":[],"received":0,"total":25}"#),
            (
                Some(receiving(&[(0, 10), (20, 5)])),
                r#"{"have":[1,3],"received":15,"total":25}"#,
            ),
            (
                Some(status(State::Complete)),
                r#"{"have":[],"received":0,"total":25}"#,
            ),
            (
                Some(status(State::Settled(record(true, 200, None)))),
                r#"{"have":[1,2,3],"received":25,"total":25}"#,
            ),
        ] {
            let response = answers.encode(Outcome::State(state.as_ref()));
            assert_answer(&response, 200, body);
        }
    }

    #[test]
    fn status_requests() {
        let answers = asks(plain(), Asked::Status);
        let offset = asks(plain(), Asked::Offset);
        let all = r#""chunks":[1,2,3],"ranges":[[0,25]],"received":25,"#;
        for (state, expected, prefix) in [
            (
                None,
                r#"{"chunks":[],"ranges":[],"received":0,"state":"absent","total":25}"#.into(),
                "0",
            ),
            (
                Some(receiving(&[(0, 12), (20, 5)])),
                r#"{"chunks":[1,3],"ranges":[[0,12],[20,25]],"received":17,"#.to_owned()
                    + r#""state":"receiving","total":25}"#,
                "12",
            ),
            (
                Some(status(State::Complete)),
                format!(r#"{{{all}"state":"complete","total":25}}"#),
                "25",
            ),
            (
                Some(status(State::Settled(record(true, 200, None)))),
                format!(r#"{{{all}"state":"delivered","total":25}}"#),
                "25",
            ),
            (
                Some(status(State::Settled(record(false, 409, None)))),
                format!(r#"{{{all}"state":"rejected","total":25}}"#),
                "25",
            ),
        ] {
            let response = answers.encode(Outcome::State(state.as_ref()));
            assert_answer(&response, 200, &expected);
            let response = offset.encode(Outcome::State(state.as_ref()));
            assert_answer(&response, 200, "");
            assert_eq!(response.headers()["upload-offset"], prefix);
        }
    }

    #[test]
    fn stored_chunks() {
        let upload = upload();
        let status = receiving(&[(0, 10), (20, 5)]);
        let progress = status.progress();
        let stored = |dialect| {
            let answers = asks(dialect, Asked::Chunk);
            let outcome = Outcome::Stored {
                upload: &upload,
                progress,
                status: Some(&status).filter(|_| answers.needs_status()),
            };
            answers.encode(outcome)
        };
        let body = r#""received":15,"state":"receiving","#;
        let response = stored(plain());
        assert_answer(&response, 200, &format!(r#"{{{body}"total":25}}"#));
        assert!(!response.headers().contains_key("range"));
        let expected = format!(r#"{{{body}"success":true,"total":25}}"#);
        assert_answer(&stored(success()), 200, &expected);
        let expected = format!(r#"{{"at":2,{body}"total":25}}"#);
        assert_answer(&stored(echo()), 200, &expected);
        let response = stored(plain().with_resume(Resume::ByRange));
        assert_eq!(response.headers()["range"], "0-9");
        assert_eq!(response.headers()["content-type"], "application/json");
    }

    #[test]
    fn answers_without_a_file() {
        let answers = Answers::default();
        assert_answer(&answers.encode(Outcome::Created(&upload())), 201, "i");
        assert_answer(&answers.encode(Outcome::Removed), 204, "");
        let reset = r#"{"reset":true,"success":false}"#;
        assert_answer(&answers.encode(Outcome::Gone), 200, reset);
        let progress = |complete| Progress {
            received: 25,
            complete,
        };
        let mut other = upload();
        other.file_name = Some("a".into());
        other.identifier = "a".into();
        other.length = None;
        let uploads = [(other, progress(true)), (upload(), progress(false))];
        let listed = r#"{"uploads":[{"content_type":null,"file_name":null,"identifier":"i","#
            .to_owned()
            + r#""received":25,"relative_path":null,"state":"receiving","total":25},"#
            + r#"{"content_type":null,"file_name":"a","identifier":"a","received":25,"#
            + r#""relative_path":null,"state":"complete","total":null}]}"#;
        let urls = &Urls::default();
        let page = |uploads, next| {
            answers.encode(Outcome::Listed {
                uploads,
                next,
                urls,
            })
        };
        assert_answer(&page(&uploads, None), 200, &listed);
        let next = format!(r#"{{"next":"{}","uploads":[]}}"#, upload().id);
        assert_answer(&page(&[], Some(upload().id)), 200, &next);
    }

    /// The status of the inner service, whether it took the file, and what the client gets.
    #[test]
    fn statuses_of_the_inner_service() {
        for (inner, delivered, expected) in [
            (200, true, 200),
            (201, true, 201),
            (202, true, 200),
            (204, true, 200),
            (303, true, 200),
            (400, false, 410),
            (401, false, 410),
            (415, false, 415),
            (499, false, 410),
            // The application decides what it took.
            (404, true, 200),
            (200, false, 410),
        ] {
            let dialect = plain()
                .with_refusal(StatusCode::GONE)
                .with_resume(Resume::ByRange);
            let answers = asks(dialect, Asked::Chunk);
            let record = record(delivered, inner, Some("body"));
            let recorded = answers.encode(Outcome::Answer(&record));
            assert_answer(&recorded, expected, "body");
            assert_eq!(recorded.headers()["x-id"], "7");
            assert_eq!(recorded.headers()["range"], "0-24");

            let mut answer = Response::builder().status(inner).header("x-id", 7);
            let headers = answer.headers_mut().unwrap();
            headers.insert("content-type", HeaderValue::from_static("text/x"));
            let (mut answer, ()) = answer.body(()).unwrap().into_parts();
            assert!(answers.forward(&mut answer, &upload(), delivered));
            assert_eq!(answer.status, expected, "{inner}");
            assert_eq!(answer.headers, *recorded.headers());
            let original = answer.headers.get(ORIGINAL_STATUS);
            let original = original.map(|status| status.to_str().unwrap().to_owned());
            assert_eq!(original, (inner != expected).then(|| inner.to_string()));
        }
    }

    #[test]
    fn answers_of_the_inner_service_as_json() {
        let mut answer = Response::new(()).into_parts().0;
        for (dialect, body, delivered, expected) in [
            (
                success(),
                Some("hi"),
                true,
                r#"{"answer":"hi","success":true}"#,
            ),
            (success(), None, true, r#"{"answer":"","success":true}"#),
            (
                success(),
                Some(r#"{"id":7}"#),
                true,
                r#"{"id":7,"success":true}"#,
            ),
            (
                success(),
                Some("[1]"),
                false,
                r#"{"answer":"[1]","preventRetry":true,"success":false}"#,
            ),
            (echo(), Some(r#"{"at":9,"b":1}"#), true, r#"{"at":2,"b":1}"#),
        ] {
            let answers = asks(dialect, Asked::Chunk);
            assert!(!answers.forward(&mut answer, &upload(), true));
            let record = record(delivered, if delivered { 200 } else { 400 }, body);
            let response = answers.encode(Outcome::Answer(&record));
            assert_answer(&response, record.status.as_u16(), expected);
            assert_eq!(response.headers()["content-type"], "application/json");
            assert_eq!(response.headers()["x-id"], "7");
        }
        // The chunk has no number, or the body was too long to be recorded.
        let dialect = Arc::new(echo());
        assert!(Answers::new(Some(&dialect), &Params::default()).forward(
            &mut answer,
            &upload(),
            true
        ));
        let answers = asks(plain(), Asked::Chunk);
        let response = answers.encode(Outcome::Answer(&record(true, 204, None)));
        let expected = r#"{"received":25,"state":"delivered","total":25}"#;
        assert_answer(&response, 200, expected);
        assert_eq!(response.headers()["x-resumable-status"], "204");
        assert!(!response.headers().contains_key("x-id"));
    }

    #[test]
    fn errors_are_final_or_retryable() {
        for (reason, status) in [
            (Reason::Base64, 400),
            (Reason::Conflict, 400),
            (Reason::ContentEncoding, 415),
            (Reason::ChunkTooLarge { limit: 1 }, 400),
            (Reason::MethodNotAllowed, 400),
            (Reason::Storage, 503),
            (Reason::StorageFull, 503),
            (Reason::Busy, 503),
            (Reason::DeliveryFailed, 503),
        ] {
            let error = Error::from(reason);
            let response = Answers::default().encode(Outcome::Failed(&error));
            assert_eq!(response.status(), status, "{error}");
            let has_retry_after = response.headers().contains_key(header::RETRY_AFTER);
            assert_eq!(has_retry_after, status == 503);
            assert_eq!(
                response.headers()["content-type"],
                "application/problem+json"
            );
        }
        let error = Reason::OutOfBounds.into();
        let failed = |dialect| asks(dialect, Asked::Chunk).encode(Outcome::Failed(&error));
        let detail =
            r#""code":"out_of_bounds","detail":"the chunk lies beyond the end of the file""#;
        let title = r#""status":400,"#.to_owned();
        let expected = format!(r#"{{{detail},{title}"title":"Bad Request","type":"about:blank"}}"#);
        assert_answer(&failed(plain()), 400, &expected);
        assert_answer(&failed(echo()), 400, &expected);
        let error_member = r#""error":"the chunk lies beyond the end of the file""#;
        let members = format!(r#"{error_member},"preventRetry":true,{title}"success":false"#);
        let expected =
            format!(r#"{{{detail},{members},"title":"Bad Request","type":"about:blank"}}"#);
        assert_answer(&failed(success()), 400, &expected);
        let response = failed(plain().with_refusal(StatusCode::IM_A_TEAPOT));
        assert_eq!(response.status(), 418);
    }

    #[test]
    fn refusals_of_hooks() {
        let own = Response::builder().status(429).header("retry-after", "30");
        let own = own
            .header("content-length", "4")
            .body("wait".into())
            .unwrap();
        let own = Error::from(Refusal::from(own));
        let response = asks(plain(), Asked::Chunk).encode(Outcome::Failed(&own));
        assert_eq!(
            (response.status().as_u16(), &response.body()[..]),
            (503, &b"wait"[..])
        );
        assert_eq!(response.headers()["retry-after"], "30");
        assert_eq!(response.headers()["x-resumable-status"], "429");
        // The client has to find its member.
        let response = asks(success(), Asked::Chunk).encode(Outcome::Failed(&own));
        assert_eq!(response.status(), 503);
        assert!(!response.headers().contains_key("content-length"));
        let body: Value = serde_json::from_slice(response.body()).unwrap();
        assert_eq!(
            (&body["success"], &body["original_status"]),
            (&false.into(), &429.into())
        );

        let named = Error::from(Refusal::new(StatusCode::FORBIDDEN, "members only"));
        let response = asks(plain(), Asked::Chunk).encode(Outcome::Failed(&named));
        let expected = r#"{"code":"refused","detail":"members only","original_status":403,"#;
        let expected = format!(
            "{expected}{}",
            r#""status":400,"title":"Bad Request","type":"about:blank"}"#
        );
        assert_answer(&response, 400, &expected);
        assert_eq!(response.headers()["x-resumable-status"], "403");
    }

    #[test]
    fn numbers_of_stored_chunks() {
        let numbers = |size, total, stored: &[(u64, u64)]| -> Vec<u64> {
            let mut ranges = RangeSet::default();
            stored.iter().for_each(|&(at, len)| ranges.insert(at, len));
            Answers::default().chunk_numbers(size, total, &ranges)
        };
        assert!(numbers(10, 25, &[]).is_empty());
        assert_eq!(numbers(10, 25, &[(0, 25)]), [1, 2, 3]);
        assert_eq!(numbers(10, 25, &[(0, 10), (20, 5)]), [1, 3]);
        assert!(numbers(10, 25, &[(0, 9), (11, 13)]).is_empty());
        assert_eq!(numbers(10, 30, &[(5, 25)]), [2, 3]);
        assert_eq!(numbers(10, 3, &[(0, 3)]), [1]);
        assert_eq!(numbers(u64::MAX, 3, &[(0, 3)]), [1]);
        // More chunks than can be iterated over.
        assert!(numbers(1, u64::MAX, &[]).is_empty());
        assert_eq!(
            numbers(1, u64::MAX, &[(7, 1), (u64::MAX - 1, 1)]),
            [8, u64::MAX]
        );
        assert_eq!(numbers(1, u64::MAX, &[(0, u64::MAX)]).len(), LISTED_CHUNKS);
    }
}
