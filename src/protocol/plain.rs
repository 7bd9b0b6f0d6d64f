//! Whole files of clients that are no chunk clients, in a form or as the body of a request.

use bytes::Bytes;
use http::{HeaderMap, Method, Response, StatusCode, header, request::Parts, response};

use super::{
    Command, Decode, Described, Encode, Exchange, FilePart, Identity, Outcome, Reply, Write,
    chunked::{Chunked, Field, Fields, Params, headers},
    problem::{NO_STORE, problem},
};
use crate::{
    error::{Error, ErrorKind},
    limits::{NAME_BYTES, TYPE_BYTES},
    model::upload::Upload,
};

/// Whole files as the bodies of requests. Forms are those of [`Chunked`], because only their fields
/// tell whether they carry a chunk.
#[derive(Debug)]
pub(super) struct Plain<'a>(pub(super) &'a Chunked);

impl Decode for Plain<'_> {
    fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        let headers = &head.headers;
        let media_type = headers.get(header::CONTENT_TYPE);
        let is_file = self.0.accept_plain
            && [Method::POST, Method::PUT].contains(&head.method)
            && media_type.is_some_and(|media_type| media_type == "application/octet-stream")
            && !headers.contains_key(header::CONTENT_ENCODING)
            && allows_whole(headers);
        if !is_file {
            return None;
        }
        // A request whose query is too long is the application's.
        let mut params = Params::from_query(head.uri.query()).ok()?;
        if !may_be_whole(&params, |_| false) {
            return None;
        }
        params.set_part(FilePart {
            file_name: headers::file_name(headers),
            content_type: None,
        });
        let length = if body_is_empty {
            Some(0)
        } else {
            headers::content_length(headers)
        };
        let write = || {
            Ok(Command::Write(Write::Whole {
                upload: whole_file(&params, length)?,
                digest: self.0.digest(&params)?,
            }))
        };
        Some(Exchange {
            command: write(),
            reply: reply(),
        })
    }
}

/// Whether the headers allow that a request of no dialect carries a whole file.
pub(super) fn allows_whole(headers: &HeaderMap) -> bool {
    let mut names = headers.keys().map(|name| name.as_str());
    // tus, FilePond and the IETF draft have headers `Upload-…`.
    !names.any(|name| {
        is_of_chunks(name) || name.starts_with("upload-") || name == header::CONTENT_RANGE
    })
}

/// Whether fields without a position can be those of a whole file.
///
/// An unknown field whose name contains `chunk`, or is `offset`, belongs to a chunk of a client
/// that the layer was not told of. Such a chunk would be a wrong file.
pub(super) fn may_be_whole(params: &Params, known: impl Fn(&str) -> bool) -> bool {
    !params.has(|name| !known(name) && is_of_chunks(name))
}

fn is_of_chunks(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // Not all names that contain `offset`: an application can send that of a time zone.
    name.contains("chunk") || name == "offset"
}

/// A file with these fields. Each is an upload of its own.
pub(super) fn whole_file(params: &Params, length: Option<u64>) -> Result<Described, Error> {
    let fields = Fields::strict(params);
    Ok(Described {
        identity: Identity::Fresh,
        identifier: String::new(),
        length,
        chunk_size: None,
        file_name: fields.text(&Field::part_file_name(), NAME_BYTES)?,
        relative_path: None,
        content_type: fields.text(&Field::part_media_type(), TYPE_BYTES)?,
        fields: params.extra(|_| false),
    })
}

/// The reply to a whole file.
pub(super) fn reply() -> Reply {
    Box::new(PlainReply)
}

/// The client is any HTTP client: it gets the answer of the inner service, and honest statuses.
struct PlainReply;

impl Encode for PlainReply {
    fn encode(&self, outcome: Outcome<'_>) -> Response<Bytes> {
        match outcome {
            Outcome::Answer(record) => {
                let body = record.body.clone();
                let mut response = Response::new(body.unwrap_or_default());
                *response.status_mut() = record.status;
                response.headers_mut().clone_from(&record.headers);
                response
            }
            Outcome::Failed(error) => problem(error, status(error), None),
            // A whole file is stored in one request, and nothing can be asked.
            Outcome::Created(_)
            | Outcome::Stored { .. }
            | Outcome::State(_)
            | Outcome::Listed(_)
            | Outcome::Gone
            | Outcome::Removed => {
                let mut response = Response::new(Bytes::new());
                *response.status_mut() = StatusCode::NO_CONTENT;
                let headers = response.headers_mut();
                headers.insert(header::CACHE_CONTROL, NO_STORE);
                response
            }
        }
    }

    fn forward(&self, _: &mut response::Parts, _: &Upload, _: bool) -> bool {
        true
    }
}

fn status(error: &Error) -> StatusCode {
    let is_error = |status: &StatusCode| status.is_client_error() || status.is_server_error();
    let refusal = error.refusal().map(|refusal| refusal.status());
    match (refusal.filter(is_error), error.kind()) {
        (Some(status), _) => status,
        _ if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        (None, ErrorKind::ChunkTooLarge | ErrorKind::FileTooLarge) => StatusCode::PAYLOAD_TOO_LARGE,
        (None, _) => StatusCode::BAD_REQUEST,
    }
}
