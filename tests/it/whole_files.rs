//! Whole files from any client: their names, lengths and codings, and the answers to them.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt as _, Full};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_http::{compression::CompressionLayer, decompression::RequestDecompressionLayer};
use tower_resumable::{CompletedUpload, Dialect, Error, ErrorKind, MemoryStore, ResumableLayer};

use crate::common::{Client, Server, content, multipart};

/// A body without a length, in pieces of three bytes.
struct Unsized(Bytes);

impl Body for Unsized {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.0.len().min(3);
        let piece = self.0.split_to(piece);
        Poll::Ready((!piece.is_empty()).then(|| Ok(Frame::data(piece))))
    }
}

type Got = (u16, Option<ErrorKind>, String);

/// Sends a request. The inner service answers with the name and the content of the file.
async fn send(layer: &ResumableLayer, request: Request<Vec<u8>>) -> Got {
    let (parts, body) = request.into_parts();
    let request = Request::from_parts(parts, Unsized(body.into()));
    let inner = service_fn(async |request: Request<Unsized>| {
        let upload: Option<&CompletedUpload> = request.extensions().get();
        let answer = match upload {
            Some(upload) => {
                let content = content(upload).await;
                let name = upload.file_name().unwrap_or("-");
                format!("{name}: {}", content.escape_ascii())
            }
            None => "passed".to_owned(),
        };
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(answer)))
    });
    let response = layer.layer(inner).oneshot(request).await.unwrap();
    let kind = response.extensions().get().map(Error::kind);
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, kind, String::from_utf8(body.to_vec()).unwrap())
}

fn layer() -> ResumableLayer {
    ResumableLayer::new(MemoryStore::default())
}

fn raw(headers: &[(&str, &str)], content: &str) -> Request<Vec<u8>> {
    let mut request = Request::post("/upload");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(content.into()).unwrap()
}

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

/// A form with these parts: the rest of the head after `form-data; `, and the content.
fn parts(parts: &[(&str, &str)]) -> Request<Vec<u8>> {
    let mut body = String::new();
    for (head, content) in parts {
        body += "------WebKitFormBoundaryX0Y1Z2\r\nContent-Disposition: form-data; ";
        body += &format!("{head}\r\n\r\n{content}\r\n");
    }
    multipart(
        "/upload",
        (body + "------WebKitFormBoundaryX0Y1Z2--\r\n").into(),
    )
}

fn ok(answer: &str) -> Got {
    (200, None, answer.to_owned())
}

fn kind((status, kind, _): Got) -> (u16, Option<ErrorKind>) {
    (status, kind)
}

#[tokio::test]
async fn names_and_bytes_are_those_that_were_sent() {
    for (head, expected) in [
        ("name=\"file\"; filename=\"a.txt\"", "a.txt: YWJj"),
        ("name=file; filename=a.txt", "a.txt: YWJj"),
        ("Name=\"file\"; FileName=\"a.txt\"", "a.txt: YWJj"),
        ("name=\"file\"; filename*=utf-8''%D1%82.txt", "т.txt: YWJj"),
        (
            "name=\"file\"; filename=\"x\"; filename*=UTF-8''y",
            "y: YWJj",
        ),
        (
            "name=\"file\"; filename=\"=?utf-8?B?w7YudHh0?=\"",
            "ö.txt: YWJj",
        ),
        ("name=\"file\"; filename*=UTF-8''%FF", "UTF-8''ÿ: YWJj"),
        // Neither a name nor a type: it is not base64.
        ("name=\"file\"", "-: YWJj"),
        ("name=\"file\"\r\nContent-Type: text/plain", "-: YWJj"),
        ("name=\"file\"; filename=\"\"", "-: YWJj"),
    ] {
        let answer = send(&layer(), parts(&[(head, "YWJj")])).await;
        assert_eq!(answer, ok(expected), "{head}");
    }
    let mut latin_1 = parts(&[("name=\"file\"; filename=\"?\"", "abc")]);
    let name = latin_1
        .body()
        .iter()
        .position(|&byte| byte == b'?')
        .unwrap();
    latin_1.body_mut()[name] = 0xe9;
    assert_eq!(send(&layer(), latin_1).await, ok("é: abc"));

    for (disposition, expected) in [
        ("attachment; filename=\"a b.pdf\"", "a b.pdf: abc"),
        ("attachment; filename=report.pdf", "report.pdf: abc"),
        ("attachment; filename*=UTF-8''na%C3%AFve", "naïve: abc"),
        ("attachment; Filename=\"b\"", "b: abc"),
        ("attachment; filename=\"b", "-: abc"),
    ] {
        let request = raw(&[OCTETS, ("content-disposition", disposition)], "abc");
        assert_eq!(send(&layer(), request).await, ok(expected), "{disposition}");
    }
    let upper = ("content-type", "Application/Octet-Stream; charset=binary");
    assert_eq!(send(&layer(), raw(&[upper], "abc")).await, ok("-: abc"));
}

/// Text is base64 only in a form of Resumable.js, wherever its fields are.
#[tokio::test]
async fn only_a_client_that_sends_base64_has_it_decoded() {
    let fields = |prefix: &str, size: &str| {
        [
            (format!("name={prefix}Identifier"), "i".to_owned()),
            (format!("name={prefix}TotalSize"), size.to_owned()),
            (format!("name={prefix}ChunkSize"), size.to_owned()),
            (format!("name={prefix}ChunkNumber"), "1".to_owned()),
        ]
    };
    let file = ("name=file".to_owned(), "YWJj".to_owned());
    for first in [false, true] {
        let form = |prefix, size| {
            let mut all = fields(prefix, size).to_vec();
            all.insert(if first { 0 } else { 4 }, file.clone());
            let all: Vec<_> = all.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
            parts(&all)
        };
        let answer = send(&layer(), form("resumable", "3")).await;
        assert_eq!(answer, ok("-: abc"), "{first}");
        // The text is not the file of flow.js. It is never decoded.
        let answer = send(&layer(), form("flow", "3")).await;
        assert_ne!(answer.2, "-: abc", "{first}");
    }
}

#[tokio::test]
async fn boundaries_that_clients_use() {
    for boundary in ["*****", "{a-b}", "a$b&c", "----=_Part_1_2.3", "\"a;b c\""] {
        let plain = boundary.trim_matches('"');
        let body = format!(
            "--{plain}\r\nContent-Disposition: form-data; name=\"file\";filename=\"a\"\r\n\r\n\
             abc\r\n--{plain}--\r\n"
        );
        let content_type = format!("multipart/form-data;boundary={boundary}");
        let request = raw(&[("content-type", &content_type)], &body);
        assert_eq!(send(&layer(), request).await, ok("a: abc"), "{boundary}");
    }
}

#[tokio::test]
async fn a_form_without_a_chosen_file_delivers_nothing() {
    let none = (
        "name=\"file\"; filename=\"\"\r\nContent-Type: application/octet-stream",
        "",
    );
    let other = ("name=\"second\"; filename=\"\"", "");
    let field = ("name=\"comment\"", "hi");
    let refused = (400, Some(ErrorKind::MissingFile));
    for form in [
        &[field][..],
        &[field, none],
        &[none, field],
        &[none, other, field],
        &[other],
    ] {
        assert_eq!(kind(send(&layer(), parts(form)).await), refused, "{form:?}");
    }
    // One of several is chosen. It may be empty.
    let chosen = ("name=\"file\"; filename=\"a\"", "abc");
    for form in [
        &[chosen, other][..],
        &[other, field, chosen],
        &[none, chosen],
        &[chosen, none],
    ] {
        assert_eq!(send(&layer(), parts(form)).await, ok("a: abc"), "{form:?}");
    }
    let empty = ("name=\"file\"; filename=\"a\"", "");
    assert_eq!(send(&layer(), parts(&[empty, other])).await, ok("a: "));
}

#[tokio::test]
async fn a_body_without_a_length_is_a_whole_file() {
    assert_eq!(
        send(&layer(), raw(&[OCTETS], "0123456789")).await,
        ok("-: 0123456789")
    );
    assert_eq!(send(&layer(), raw(&[OCTETS], "")).await, ok("-: "));
    // Of a dialect, too.
    let name = ("content-disposition", "attachment; filename=\"a\"");
    let blueimp = layer().with_protocol(Dialect::blueimp());
    assert_eq!(
        send(&blueimp, raw(&[OCTETS, name], "0123456789")).await,
        ok("a: 0123456789")
    );
    let limits = tower_resumable::Limits::default().with_chunk_size(9);
    let limited = layer().with_limits(limits);
    let refused = send(&limited, raw(&[OCTETS], "0123456789")).await;
    assert_eq!(kind(refused), (413, Some(ErrorKind::ChunkTooLarge)));
    assert_eq!(send(&limited, raw(&[OCTETS], "012345678")).await.0, 200);
}

const CHUNK: &str = "/upload?resumableIdentifier=i&resumableTotalSize=3&resumableChunkSize=3\
                     &resumableChunkNumber=1";

#[tokio::test]
async fn bodies_in_a_coding_are_refused_and_nothing_is_stored() {
    let gzip = ("content-encoding", "gzip");
    let chunk = |headers: &[(&str, &str)]| {
        let mut request = raw(headers, "abc");
        *request.uri_mut() = CHUNK.parse().unwrap();
        request
    };
    let form = |coding: &str| {
        let mut form = parts(&[("name=\"file\"; filename=\"a\"", "abc")]);
        let headers = form.headers_mut();
        headers.insert("content-encoding", coding.parse().unwrap());
        form
    };
    let in_part = parts(&[(
        "name=\"file\"; filename=\"a\"\r\nContent-Encoding: gzip",
        "abc",
    )]);
    let server = Server::start().await;
    let mut client = server.client().await;
    for request in [
        raw(&[OCTETS, gzip], "abc"),
        chunk(&[OCTETS, gzip]),
        form("br"),
        form("GZIP, identity"),
        in_part,
    ] {
        let answer = client.send(request).await;
        assert_eq!(answer.status, 415, "{answer:?}");
        assert_eq!(answer.json()["code"], "content_encoding");
        assert_eq!(answer.headers["accept-encoding"], "identity");
    }
    assert_eq!(server.files().len(), 0);
    for request in [
        raw(&[OCTETS, ("content-encoding", "identity")], "abc"),
        chunk(&[OCTETS, ("content-encoding", "")]),
        form("Identity"),
        parts(&[(
            "name=file; filename=a\r\nContent-Transfer-Encoding: binary",
            "abc",
        )]),
    ] {
        assert_eq!(client.send(request).await.status, 200);
    }
    for delivery in server.deliveries() {
        assert_eq!(delivery.content, b"abc");
    }
}

/// Servers undo `chunked` only, and pass the header on.
#[tokio::test]
async fn bodies_in_a_coding_of_the_transfer_are_refused() {
    let refused = (415, Some(ErrorKind::ContentEncoding));
    for (codings, is_refused) in [
        ("gzip, chunked", true),
        ("x-gzip,Chunked", true),
        ("deflate", true),
        ("chunked", false),
        ("Chunked, identity", false),
    ] {
        let coding = ("transfer-encoding", codings);
        let mut chunk = raw(&[OCTETS, coding], "abc");
        *chunk.uri_mut() = CHUNK.parse().unwrap();
        let mut form = parts(&[("name=\"file\"; filename=\"a\"", "abc")]);
        form.headers_mut()
            .insert(coding.0, codings.parse().unwrap());
        for request in [raw(&[OCTETS, coding], "abc"), chunk, form] {
            let got = send(&layer(), request).await;
            if is_refused {
                assert_eq!(kind(got), refused, "{codings}");
            } else {
                assert!(got.2.ends_with(": abc"), "{codings}: {got:?}");
            }
        }
    }
}

/// Stored, without compression, as gzip.
fn gzip(content: &[u8]) -> Vec<u8> {
    let len = content.len() as u16;
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1];
    gzip.extend(len.to_le_bytes());
    gzip.extend((!len).to_le_bytes());
    gzip.extend(content);
    gzip.extend(crc32(content).to_le_bytes());
    gzip.extend(u32::from(len).to_le_bytes());
    gzip
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

#[tokio::test]
async fn behind_a_decompression_layer_the_file_is_what_was_compressed() {
    let inner = service_fn(async |request: Request<_>| {
        let upload: &CompletedUpload = request.extensions().get().unwrap();
        let content = content(upload).await;
        drop(request);
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(content)))
    });
    let service = RequestDecompressionLayer::new().layer(layer().layer(inner));
    let request = Request::post("/upload")
        .header("content-type", "application/octet-stream")
        .header("content-encoding", "gzip")
        .body(Full::<Bytes>::from(gzip(b"0123456789")))
        .unwrap();
    let response = service.oneshot(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "0123456789");
}

/// What a request says about its answer does not reach the service if the answer is recorded.
#[tokio::test]
async fn recorded_answers_are_whole_and_not_compressed() {
    let seen = std::sync::Arc::<std::sync::Mutex<HeaderMap>>::default();
    let noted = std::sync::Arc::clone(&seen);
    let inner = service_fn(move |request: Request<hyper::body::Incoming>| {
        *noted.lock().unwrap() = request.headers().clone();
        let response = Response::new(Full::<Bytes>::from("x".repeat(100)));
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let compressed = CompressionLayer::new().layer(inner);
    let addr = crate::common::serve(layer().layer(compressed)).await;
    let mut client = Client::connect(addr).await;
    let with_headers = |uri: &str, accepts: bool| {
        let mut request = Request::post(uri)
            .header("content-type", "application/octet-stream")
            .header("if-match", "\"a\"");
        if accepts {
            request = request
                .header("accept-encoding", "gzip")
                .header("range", "bytes=0-1");
        }
        request.body(b"abc".to_vec()).unwrap()
    };
    for accepts in [true, false] {
        let answer = client.send(with_headers(CHUNK, accepts)).await;
        assert_eq!((answer.status, answer.body.len()), (200, 100));
        assert!(!answer.headers.contains_key("content-encoding"));
    }
    let headers = seen.lock().unwrap().clone();
    assert!(!headers.contains_key("accept-encoding") && !headers.contains_key("range"));
    assert_eq!(headers["if-match"], "\"a\"");
    // A whole file has one client: it gets the answer that it has asked for.
    let request = with_headers("/upload", true);
    let mut parts = request;
    parts
        .headers_mut()
        .insert("accept-encoding", "identity".parse().unwrap());
    assert_eq!(client.send(parts).await.status, 200);
    let headers = seen.lock().unwrap().clone();
    assert!(headers.contains_key("accept-encoding") && headers.contains_key("range"));
}

/// Without JavaScript, a browser follows the redirect of the application.
#[tokio::test]
async fn the_answers_of_the_application_reach_plain_forms() {
    for status in [202, 303, 422] {
        let status = StatusCode::from_u16(status).unwrap();
        let server = Server::answering(|layer| layer, move |_| (status, "own".into())).await;
        let mut client = server.client().await;
        for form in [
            parts(&[("name=\"file\"; filename=\"a\"", "abc"), ("name=x", "1")]),
            parts(&[("name=x", "1"), ("name=\"file\"; filename=\"a\"", "abc")]),
            parts(&[
                ("name=\"file\"; filename=\"\"", ""),
                ("name=file; filename=a", "abc"),
            ]),
            parts(&[("name=\"qqfile\"; filename=\"a\"", "abc")]),
            raw(&[OCTETS], "abc"),
        ] {
            let answer = client.send(form).await;
            assert_eq!((answer.status, &*answer.body), (status.as_u16(), "own"));
        }
    }
}

/// The fields of a client that the layer does not know.
#[tokio::test]
async fn a_chunk_of_an_unknown_client_is_not_a_whole_file() {
    let file = ("name=\"file\"; filename=\"a\"", "abc");
    for field in ["part", "totalParts", "slice_no", "myChunk", "offset"] {
        let name = format!("name={field}");
        let answer = send(&layer(), parts(&[(&name, "1"), file])).await;
        assert_eq!(
            kind(answer),
            (400, Some(ErrorKind::MissingField)),
            "{field}"
        );
        let mut request = raw(&[OCTETS], "abc");
        *request.uri_mut() = format!("/upload?{field}=1").parse().unwrap();
        assert_eq!(send(&layer(), request).await, ok("passed"), "{field}");
        // The application knows it.
        let knows = layer().with_identity_fields([field]);
        let answer = send(&knows, parts(&[(&name, "1"), file])).await;
        assert_eq!(answer, ok("a: abc"), "{field}");
    }
}

/// A form as frames of a hundred fields. h2 itself ends a connection with too many small ones.
struct Frames {
    left: usize,
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        let field = format!("name=\"{:050}\"\r\n\r\n\r\n", self.left);
        let part = format!("--X\r\nContent-Disposition: form-data; {field}");
        Poll::Ready(Some(Ok(Frame::data(part.repeat(100).into()))))
    }
}

/// The form ends where its limit is exceeded: what follows is dropped, not read as fields.
#[tokio::test]
async fn a_form_of_many_empty_fields_is_refused_while_it_arrives() {
    let server = Server::start().await;
    for is_http_2 in [false, true] {
        let stream = tokio::net::TcpStream::connect(server.addr).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        let executor = hyper_util::rt::TokioExecutor::new();
        let form = Frames { left: 1000 };
        let request = Request::post("http://test/upload")
            .header("host", "test")
            .header("content-type", "multipart/form-data; boundary=X")
            .body(form)
            .unwrap();
        let answer = async {
            if is_http_2 {
                let connected = hyper::client::conn::http2::handshake(executor, io).await;
                let (mut client, connection) = connected.unwrap();
                tokio::spawn(connection);
                client.send_request(request).await.unwrap()
            } else {
                let connected = hyper::client::conn::http1::handshake(io).await;
                let (mut client, connection) = connected.unwrap();
                tokio::spawn(connection);
                client.send_request(request).await.unwrap()
            }
        };
        let limit = std::time::Duration::from_secs(20);
        let answer = tokio::time::timeout(limit, answer).await.expect("it hangs");
        assert_eq!(answer.status(), 400);
        let answer = answer.into_body().collect().await.unwrap().to_bytes();
        let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
        assert_eq!(answer["code"], "too_many_fields", "HTTP/2: {is_http_2}");
    }
    assert!(server.files().is_empty());
}
