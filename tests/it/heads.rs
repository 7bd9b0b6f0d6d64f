//! Requests that are refused because of their heads: at once, and without their bodies.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{Dialect, Limits, MemoryStore, Refusal, ResumableLayer};

use crate::common::{BOUNDARY, File, Server};

/// A head, and the code of its refusal.
struct Head {
    name: &'static str,
    method: &'static str,
    uri: String,
    headers: Vec<(&'static str, String)>,
    length: u64,
    code: &'static str,
    set_up: fn(ResumableLayer) -> ResumableLayer,
}

const OCTETS: &str = "application/octet-stream";

fn heads() -> Vec<Head> {
    let file = File {
        chunk_size: 1000,
        ..File::new("a.txt", 2500)
    };
    let chunk = |number: usize| file.uri(number);
    let same: fn(ResumableLayer) -> ResumableLayer = |layer| layer;
    let form = format!("multipart/form-data; boundary={BOUNDARY}");
    let uri = |number: u64, total: u64| {
        format!(
            "/upload?resumableChunkNumber={number}&resumableChunkSize=1000\
             &resumableTotalSize={total}&resumableIdentifier=a&resumableFilename=a"
        )
    };
    let head = |name, uri: String, length, code, set_up| Head {
        name,
        method: "POST",
        uri,
        headers: vec![("content-type", OCTETS.to_owned())],
        length,
        code,
        set_up,
    };
    let with = |head: Head, header: (&'static str, &str)| Head {
        headers: vec![(header.0, header.1.to_owned())],
        ..head
    };
    vec![
        head("behind the end", uri(9, 10), 1000, "out_of_bounds", same),
        head(
            "file over the limit",
            uri(1, 1 << 50),
            1000,
            "file_too_large",
            same,
        ),
        head(
            "body over the limit",
            "/upload".into(),
            1 << 40,
            "chunk_too_large",
            same,
        ),
        head(
            "longer than the chunk",
            chunk(1),
            1001,
            "chunk_length",
            same,
        ),
        head(
            "shorter than the chunk",
            chunk(1),
            999,
            "chunk_length",
            same,
        ),
        head(
            "chunk over the limit",
            chunk(1),
            1000,
            "chunk_too_large",
            |layer| layer.with_limits(Limits::default().with_chunk_size(999)),
        ),
        with(
            head(
                "form over the limit",
                "/upload".into(),
                1 << 40,
                "chunk_too_large",
                same,
            ),
            ("content-type", &form),
        ),
        with(
            head(
                "form of a chunk over the limit",
                chunk(1),
                1 << 40,
                "chunk_too_large",
                same,
            ),
            ("content-type", &form),
        ),
        with(
            head("field of a form", uri(0, 10), 1000, "invalid_field", same),
            ("content-type", &form),
        ),
        with(
            head(
                "form behind the end",
                uri(9, 10),
                1000,
                "out_of_bounds",
                same,
            ),
            ("content-type", &form),
        ),
        with(
            head(
                "file of a form over the limit",
                uri(1, 1 << 50),
                1000,
                "file_too_large",
                same,
            ),
            ("content-type", &form),
        ),
        with(
            head("form without a boundary", chunk(1), 1000, "multipart", same),
            ("content-type", "multipart/form-data"),
        ),
        with(
            head(
                "question over the limit",
                "/upload".into(),
                1 << 20,
                "too_many_fields",
                |layer| layer.with_protocol(Dialect::fine_uploader()),
            ),
            ("content-type", "application/x-www-form-urlencoded"),
        ),
        with(
            head("broken digest", chunk(1), 1000, "invalid_field", same),
            ("content-digest", "sha-256=:AA=:"),
        ),
        head(
            "too many fields",
            format!("{}{}", chunk(1), "&x=1".repeat(99)),
            1000,
            "too_many_fields",
            same,
        ),
        head(
            "missing field",
            "/upload?resumableChunkNumber=1".into(),
            9,
            "missing_field",
            same,
        ),
        Head {
            method: "PROPFIND",
            ..head("method", chunk(1), 1000, "method_not_allowed", same)
        },
        head("scope", chunk(1), 1000, "refused", |layer| {
            layer.with_scope(|_| Err(Refusal::new(http::StatusCode::UNAUTHORIZED, "sign in")))
        }),
        with(
            head(
                "scope of a form",
                "/upload".into(),
                1000,
                "refused",
                |layer| {
                    layer.with_scope(|_| {
                        Err(Refusal::new(http::StatusCode::UNAUTHORIZED, "sign in"))
                    })
                },
            ),
            ("content-type", &form),
        ),
        head("admission", chunk(1), 1000, "refused", |layer| {
            layer.with_admission(|_| async { Err(Refusal::new(http::StatusCode::FORBIDDEN, "no")) })
        }),
        head(
            "admission of a whole file",
            "/upload".into(),
            1000,
            "refused",
            |layer| {
                layer.with_admission(|_| async {
                    Err(Refusal::new(http::StatusCode::FORBIDDEN, "no"))
                })
            },
        ),
        head("bodies", chunk(1), 1000, "busy", |layer| {
            layer.with_limits(Limits::default().with_bodies(0))
        }),
        head("uploads", chunk(1), 1000, "too_many_uploads", |layer| {
            layer.with_limits(Limits::default().with_uploads(0))
        }),
        head(
            "bytes of uploads",
            chunk(1),
            1000,
            "file_too_large",
            |layer| layer.with_limits(Limits::default().with_unfinished_bytes(2499)),
        ),
        Head {
            name: "unknown upload",
            ..head(
                "",
                "/upload?qquuid=i&qqfilename=a&qqtotalfilesize=9&qqpartindex=1\
                 &qqpartbyteoffset=5&qqchunksize=4&qqresume=true"
                    .into(),
                4,
                "",
                same,
            )
        },
    ]
}

async fn server(head: &Head) -> Server {
    let set_up = head.set_up;
    Server::with(|layer| set_up(layer.with_hold_back(Duration::ZERO))).await
}

/// Sends a head, and no body, and reads the answer to the end of the connection.
async fn answer(addr: SocketAddr, head: &Head, length: u64, more: &str) -> String {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let headers = head
        .headers
        .iter()
        .map(|(name, value)| format!("{name}: {value}\r\n"));
    let text = format!(
        "{} {} HTTP/1.1\r\nhost: x\r\n{}content-length: {length}\r\n{more}\r\n",
        head.method,
        head.uri,
        headers.collect::<String>(),
    );
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let read = socket.read_to_end(&mut answer);
    let read = tokio::time::timeout(Duration::from_secs(4), read).await;
    let answer = String::from_utf8(answer).unwrap();
    let name = head.name;
    assert!(read.is_ok(), "{name}: the body is waited for: {answer:?}");
    answer
}

fn assert_refused(head: &Head, answer: &str) {
    let Head { name, code, .. } = head;
    // An unknown upload is to be sent again.
    let is_refused = ["4", "503", "200 OK"].map(|status| format!("HTTP/1.1 {status}"));
    assert!(
        is_refused.iter().any(|status| answer.starts_with(status)),
        "{name}: {answer}"
    );
    assert!(answer.contains("connection: close"), "{name}: {answer}");
    let problem = format!("\"code\":\"{code}\"");
    assert!(
        code.is_empty() || answer.contains(&problem),
        "{name}: {answer}"
    );
}

#[tokio::test]
async fn a_client_that_expects_100_continue_does_not_get_it() {
    for head in heads() {
        let server = server(&head).await;
        for expect in ["expect: 100-continue\r\n", "Expect: 100-Continue\r\n"] {
            let answer = answer(server.addr, &head, head.length, expect).await;
            assert_refused(&head, &answer);
        }
    }
}

/// The length of these bodies is beyond what is read of refused ones.
#[tokio::test]
async fn a_long_body_is_not_read() {
    // At once, because each connection is closed later.
    let refused = heads().into_iter().map(async |head| {
        let server = server(&head).await;
        let code = if head.code == "missing_field" || head.length > 1 << 20 {
            head.code
        } else {
            // The length can be refused before the rest.
            ""
        };
        let answer = answer(server.addr, &head, 1 << 40, "").await;
        assert_refused(&Head { code, ..head }, &answer);
    });
    futures_util::future::join_all(refused).await;
}

/// A body of this length that does not arrive. It notes whether it was asked for bytes, and shares
/// the note until it is dropped.
struct Unsent(u64, Arc<AtomicBool>);

impl Body for Unsent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.1.store(true, Relaxed);
        if self.0 == 0 {
            return Poll::Ready(None);
        }
        Poll::Pending
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.0)
    }
}

async fn send(
    layer: &ResumableLayer,
    request: http::request::Builder,
    body: Unsent,
) -> http::Response<()> {
    let inner = service_fn(async |_: Request<Unsent>| {
        Ok::<_, Infallible>(http::Response::new(String::new()))
    });
    let answer = layer.layer(inner).oneshot(request.body(body).unwrap());
    answer.await.unwrap().map(drop)
}

/// The server closes the connection, or resets the stream, when the body is dropped. Clients that
/// write then, such as curl and node, do not see the answer.
#[tokio::test(start_paused = true)]
async fn a_client_that_is_still_sending_can_read_the_refusal() {
    let layer = ResumableLayer::new(MemoryStore::default());
    for version in [Version::HTTP_11, Version::HTTP_2] {
        for waits in [false, true] {
            let note = Arc::new(AtomicBool::new(false));
            let body = Unsent(1 << 40, Arc::clone(&note));
            let request = Request::post("/upload").version(version);
            let request = request.header("content-type", OCTETS);
            let mut request = request.header("content-length", 1_u64 << 40);
            if waits {
                request = request.header("expect", "100-continue");
            }
            let answer = send(&layer, request, body).await;
            assert_eq!(answer.status(), 413);
            let is_kept = Arc::strong_count(&note) > 1;
            assert_eq!(is_kept, !waits, "{version:?}");
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(Arc::strong_count(&note), 1, "{version:?} {waits}");
            // Otherwise the client would get `100 Continue`.
            assert_eq!(note.load(Relaxed), !waits, "{version:?}");
        }
    }
}

/// The end of an HTTP/2 stream can come after the head that declares no bytes.
#[tokio::test]
async fn a_body_of_no_bytes_is_empty() {
    let layer = ResumableLayer::new(MemoryStore::default());
    let send = async |request| send(&layer, request, Unsent(0, Arc::default())).await;
    let probe = Request::post(File::new("a.txt", 10).uri(1));
    assert_eq!(send(probe).await.status(), 204);

    let tus = |request: http::request::Builder| request.header("tus-resumable", "1.0.0");
    let create = tus(Request::post("/upload")).header("upload-defer-length", "1");
    let url = send(create).await.headers()["location"].clone();
    let append = tus(Request::patch(url.to_str().unwrap())).header("upload-offset", "0");
    let append = append.header("upload-length", "0");
    assert_eq!(send(append).await.status(), 204);

    let create = Request::post("/upload").header("upload-complete", "?0");
    let url = send(create).await.headers()["location"].clone();
    let append = Request::patch(url.to_str().unwrap()).header("upload-offset", "0");
    let append = append.header("upload-complete", "?1");
    assert_eq!(send(append).await.status(), 200);
}

/// A short body is read, so that its client sees the answer and can use the connection again.
#[tokio::test]
async fn a_short_body_is_read() {
    for head in heads() {
        let server = server(&head).await;
        let mut client = server.client().await;
        for _ in 0..2 {
            let mut request = Request::builder().method(head.method).uri(&head.uri);
            for (name, value) in &head.headers {
                request = request.header(*name, value);
            }
            // All of them are refused at this length too.
            let len = if head.length > 2000 {
                2000
            } else {
                head.length
            };
            let answer = client
                .send(request.body(vec![0; len as usize]).unwrap())
                .await;
            assert!(
                !answer.headers.contains_key("connection"),
                "{}: {answer:?}",
                head.name
            );
            if answer.status < 300 {
                // It is to be sent again, or refused by its length only.
                let is_known = head.code.is_empty() || head.length > 2000;
                assert!(is_known, "{}: {answer:?}", head.name);
            }
        }
    }
}

#[tokio::test]
async fn a_refusal_ends_the_stream_of_http_2() {
    for head in heads() {
        let server = server(&head).await;
        let io = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
        let (mut send, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                .await
                .unwrap();
        tokio::spawn(connection);
        let request = |expect: bool| {
            let mut request = Request::builder()
                .method(head.method)
                .uri(format!("http://x{}", head.uri))
                .header("content-length", if expect { head.length } else { 1 << 40 });
            for (name, value) in &head.headers {
                request = request.header(*name, value);
            }
            if expect {
                request = request.header("expect", "100-continue");
            }
            type Frame = Result<http_body::Frame<Bytes>, std::io::Error>;
            request
                .body(StreamBody::new(futures_util::stream::pending::<Frame>()))
                .unwrap()
        };
        // The connection stays.
        for expect in [true, false] {
            send.ready().await.unwrap();
            let answer =
                tokio::time::timeout(Duration::from_secs(4), send.send_request(request(expect)));
            let answer = answer
                .await
                .unwrap_or_else(|_| panic!("{}: no answer", head.name))
                .unwrap();
            let (parts, body) = answer.into_parts();
            assert!(
                [200, 503].contains(&parts.status.as_u16()) || parts.status.is_client_error(),
                "{}: {parts:?}",
                head.name
            );
            assert!(!parts.headers.contains_key("connection"));
            let text = body.collect().await.unwrap().to_bytes();
            let problem = format!("\"code\":\"{}\"", head.code);
            let text = String::from_utf8_lossy(&text);
            assert!(
                !expect || head.code.is_empty() || text.contains(&problem),
                "{}: {text}",
                head.name
            );
        }
    }
}
