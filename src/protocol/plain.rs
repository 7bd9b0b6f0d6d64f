//! Whole files in a form or as the body of a request.

use bytes::Bytes;
use http::{Method, Response, StatusCode, header, request::Parts, response};

use super::{
    Command, Decode, Described, Encode, Exchange, FilePart, Identity, Outcome, Reply, Target,
    Write,
    chunked::{Chunked, Field, Fields, Params, headers, params::allows_whole},
    problem::{empty, problem},
};
use crate::{
    error::{Error, ErrorKind},
    limits::{NAME_BYTES, TYPE_BYTES},
    mime::is_media_type,
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
            && media_type.is_some_and(|media_type| {
                is_media_type(media_type.as_bytes(), "application/octet-stream")
            })
            && allows_whole(headers);
        if !is_file {
            return None;
        }
        // A request whose query is too long is the application's.
        let mut params = Params::from_query(head.uri.query()).ok()?;
        if !self.0.may_be_whole(&params) {
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
            let (upload, digest) = (whole_file(&params)?, self.0.digest(&params)?);
            let place = move |len| Target::whole(upload, digest, len);
            Ok(Command::Write(match length {
                Some(length) => Write::Raw(Box::new(place(length))),
                None => Write::Spool(Box::new(move |len| Ok(place(len)))),
            }))
        };
        Some(Exchange {
            command: write(),
            reply: reply(),
        })
    }
}

/// Describes a file with these fields. Each is an upload of its own.
pub(super) fn whole_file(params: &Params) -> Result<Described, Error> {
    let fields = Fields::strict(params);
    Ok(Described {
        identity: Identity::Fresh,
        identifier: String::new(),
        length: None,
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

/// The client is any HTTP client: it gets the answer of the inner service, or a status with its
/// usual meaning.
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
            Outcome::Failed(error) | Outcome::Undelivered(error, _) => {
                problem(error, status(error), None)
            }
            // A whole file is stored in one request, and clients ask no questions.
            Outcome::Created(_)
            | Outcome::Stored { .. }
            | Outcome::State(_)
            | Outcome::Listed { .. }
            | Outcome::Capabilities { .. }
            | Outcome::Held(_)
            | Outcome::Gone
            | Outcome::Removed => empty(StatusCode::NO_CONTENT),
        }
    }

    fn forward(&self, _: &mut response::Parts, _: &Upload, _: bool) -> bool {
        true
    }

    fn forwards_all(&self) -> bool {
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
        (None, ErrorKind::ContentEncoding) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        (None, ErrorKind::Conflict) => StatusCode::CONFLICT,
        (None, _) => StatusCode::BAD_REQUEST,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use http::HeaderValue;

    use super::*;
    use crate::{
        error::Reason,
        hooks::Refusal,
        model::{state::Record, upload::Scope},
        protocol::{Protocols, chunked::params::may_be_whole},
    };

    fn parts(method: &str, query: &str, headers: &[(&str, &str)]) -> Parts {
        let uri = format!("/upload?{query}");
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn requests_with_fields_of_chunks_are_not_whole_files() {
        for (query, headers, whole) in [
            ("", &[][..], true),
            ("x=1&timezoneOffset=60", &[("x-y", "z")], true),
            ("offset=0", &[], false),
            ("myChunk=1", &[], false),
            ("CHUNKS=1", &[], false),
            ("", &[("x-chunk-number", "1")], false),
            ("", &[("upload-offset", "0")], false),
            ("", &[("upload-length", "9")], false),
            ("", &[("x-upload-offset", "0")], true),
            ("", &[("content-range", "bytes 0-3/10")], false),
            ("", &[("x-content-range", "bytes 0-3/10")], false),
            // Names of pieces, in all spellings.
            ("part=1", &[], false),
            ("totalParts=2", &[], false),
            ("part_number=1", &[], false),
            ("x[slice]=1", &[], false),
            ("PIECES=1", &[], false),
            ("segment=1", &[], true),
            ("", &[("x-part", "1")], false),
            ("department=1&partner=2&apartment=3&parted=4", &[], true),
        ] {
            let parts = parts("POST", query, headers);
            let params = Params::from_query(parts.uri.query()).unwrap();
            let got = allows_whole(&parts.headers) && may_be_whole(&params, |_| false);
            assert_eq!(got, whole, "{query} {headers:?}");
            let knows = |name: &str| name == "offset";
            assert_eq!(
                may_be_whole(&params, knows),
                query == "offset=0" || whole || !headers.is_empty(),
                "{query} {headers:?}"
            );
        }
    }

    #[test]
    fn raw_bodies_are_whole_files() {
        let octets = ("content-type", "application/octet-stream");
        let long = format!("x={}", "y".repeat(20 << 10));
        let mut protocols = Protocols::default();
        for (method, query, headers, whole) in [
            ("POST", "", &[octets][..], true),
            ("PUT", "x=1", &[octets], true),
            ("PATCH", "", &[octets], false),
            ("GET", "", &[octets], false),
            ("POST", "", &[], false),
            ("POST", "", &[("content-type", "text/plain")], false),
            (
                "POST",
                "",
                &[("content-type", "Application/Octet-Stream; a=b")],
                true,
            ),
            // Refused by the engine, as all bodies in a coding are.
            ("POST", "", &[octets, ("content-encoding", "gzip")], true),
            ("POST", "", &[octets, ("upload-offset", "0")], false),
            ("POST", "chunk=1", &[octets], false),
            ("POST", &long, &[octets], false),
        ] {
            let exchange = protocols.decode(&parts(method, query, headers), false);
            assert_eq!(exchange.is_some(), whole, "{method} {headers:?}");
        }
        protocols.chunked_mut().digest_field = Some("crc".into());
        let name = ("content-disposition", "attachment; filename=\"a%20b.txt\"");
        let file = |headers: &[(&str, &str)], is_empty| {
            let parts = parts("POST", "x=1&crc=2", &[&[octets, name], headers].concat());
            match protocols.decode(&parts, is_empty).unwrap().command {
                Ok(Command::Write(Write::Raw(target))) => (target.upload, target.digest),
                // The length is that of the body.
                Ok(Command::Write(Write::Spool(place))) => {
                    let target = place(7).unwrap();
                    assert_eq!((target.offset, target.len, target.max_len), (0, Some(7), 7));
                    (target.upload, target.digest)
                }
                _ => panic!("it is a whole file"),
            }
        };
        let (upload, digest) = file(&[("content-length", "9")], false);
        assert_eq!(digest.as_deref(), Some("2"));
        assert_eq!(upload.file_name.as_deref(), Some("a b.txt"));
        assert_eq!(
            (upload.length, upload.content_type.as_deref()),
            (Some(9), None)
        );
        assert_eq!(upload.fields.len(), 2);
        assert_eq!(file(&[], true).0.length, Some(0));
        assert_eq!(file(&[], false).0.length, Some(7));
        // Each is an upload of its own.
        let named = upload
            .upload(Scope::default(), "/upload", || Ok("random".into()))
            .unwrap();
        assert_eq!(named.identifier, "random");
    }

    #[test]
    fn the_answer_of_the_inner_service_is_not_changed() {
        let mut record = Record::new(true, StatusCode::ACCEPTED, 9, SystemTime::UNIX_EPOCH);
        record.headers.insert("x-id", HeaderValue::from_static("7"));
        let response = reply().encode(Outcome::Answer(&record));
        assert_eq!(
            (response.status().as_u16(), response.body().len()),
            (202, 0)
        );
        assert_eq!(*response.headers(), record.headers);
        record.body = Some("thanks".into());
        let response = reply().encode(Outcome::Answer(&record));
        assert_eq!(response.body(), "thanks");

        let upload = named();
        let (mut answer, ()) = Response::builder()
            .status(404)
            .body(())
            .unwrap()
            .into_parts();
        assert!(reply().forward(&mut answer, &upload, false));
        assert_eq!((answer.status.as_u16(), answer.headers.len()), (404, 0));
    }

    fn named() -> Upload {
        let params = Params::default();
        let file = whole_file(&params).unwrap();
        file.upload(Scope::default(), "/upload", || Ok("random".into()))
            .unwrap()
    }

    #[test]
    fn errors_are_encoded_as_problem_details() {
        let refusal = |status| {
            let status = StatusCode::from_u16(status).unwrap();
            Error::from(Refusal::new(status, "no"))
        };
        for (error, status) in [
            (Reason::FileTooLarge { limit: 1 }.into(), 413),
            (Reason::ChunkTooLarge { limit: 1 }.into(), 413),
            (Reason::Base64.into(), 400),
            (Reason::Conflict.into(), 409),
            (Reason::ContentEncoding.into(), 415),
            (Reason::Busy.into(), 503),
            (refusal(403), 403),
            (refusal(429), 429),
            (refusal(503), 503),
            (refusal(200), 400),
        ] {
            let response = reply().encode(Outcome::Failed(&error));
            assert_eq!(response.status(), status, "{error:?}");
            assert_eq!(
                response.headers()["content-type"],
                "application/problem+json"
            );
            let has_retry_after = response.headers().contains_key("retry-after");
            assert_eq!(has_retry_after, status == 503);
            let accepted = response.headers().get(header::ACCEPT_ENCODING);
            let is_coded = error.kind() == ErrorKind::ContentEncoding;
            assert_eq!(
                accepted.is_some_and(|coding| coding == "identity"),
                is_coded
            );
        }
    }
}
