//! Interim responses over HTTP/1: what is on the wire.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{ConnectInfo, Request, connect_info::Connected},
    middleware::{self, Next},
    response::Response,
    routing::any,
    serve::{IncomingStream, Listener},
};
use http::HeaderValue;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tower::service_fn;
use tower_resumable::{CompletedUpload, Interim, InterimIo, Interims, MemoryStore, ResumableLayer};

use crate::{
    common::{
        draft::{Draft, Exchange},
        serve_with_interims,
    },
    tus::{LETTERS, Server},
};

/// The text on the wire, up to this end.
async fn read_until(socket: &mut TcpStream, end: &str) -> String {
    let mut text = Vec::new();
    while !text.ends_with(end.as_bytes()) {
        text.push(socket.read_u8().await.unwrap());
    }
    String::from_utf8(text).unwrap()
}

#[tokio::test]
async fn a_client_learns_the_url_before_it_sends_the_content() {
    let server = Server::start().await;
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    let head = "POST /files HTTP/1.1\r\nhost: x\r\nupload-draft-interop-version: 8\r\n\
                upload-complete: ?1\r\ncontent-length: 25\r\nexpect: 100-continue\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    // Both come, whichever is first.
    let first = read_until(&mut socket, "\r\n\r\n").await;
    let second = read_until(&mut socket, "\r\n\r\n").await;
    let both = [first, second];
    assert!(
        both.contains(&"HTTP/1.1 100 Continue\r\n\r\n".to_owned()),
        "{both:?}"
    );
    let is_104 = |it: &&String| it.starts_with("HTTP/1.1 104 Upload Resumption Supported\r\n");
    let announced = both.iter().find(is_104).unwrap();
    assert!(
        announced.contains("\r\nlocation: /files?upload="),
        "{announced}"
    );
    assert!(
        announced.contains("\r\nupload-limit: max-size="),
        "{announced}"
    );
    assert!(
        announced.contains("\r\nupload-draft-interop-version: 8\r\n"),
        "{announced}"
    );
    socket.write_all(LETTERS.as_bytes()).await.unwrap();
    let answer = read_until(&mut socket, "taken").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("\r\nupload-complete: ?1\r\n"), "{answer}");
}

/// A client that does not know interim responses of this kind must not get one.
#[tokio::test]
async fn no_version_no_interim_response() {
    let server = Server::start().await;
    for (line, version) in [
        ("HTTP/1.1", ""),
        ("HTTP/1.1", "upload-draft-interop-version: 2\r\n"),
        ("HTTP/1.1", "upload-draft-interop-version: 9\r\n"),
        ("HTTP/1.1", "upload-draft-interop-version: 8, 8\r\n"),
        ("HTTP/1.0", "upload-draft-interop-version: 8\r\n"),
    ] {
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        let request = format!(
            "POST /files {line}\r\nhost: x\r\n{version}upload-complete: ?1\r\n\
             content-length: 25\r\nconnection: close\r\n\r\n{LETTERS}"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        socket.read_to_string(&mut text).await.unwrap();
        assert!(
            text.starts_with(&format!("{line} 200 OK\r\n")),
            "{version} {text}"
        );
        assert!(!text.contains(" 104 "), "{version} {text}");
    }
}

#[tokio::test]
async fn progress_tells_what_is_stored() {
    let server = Server::start().await;
    let draft = Draft::new(server.addr, "/files", Some(8));
    let headers = draft.creating(true, Some(25));
    let mut exchange = Exchange::begin(server.addr, "POST", "/files", &headers, Some(25))
        .await
        .unwrap();
    exchange.send(&LETTERS.as_bytes()[..10]).await.unwrap();
    exchange.until_progress().await.unwrap();
    let progress = exchange.heard.interims.last().unwrap();
    assert_eq!((progress.status, progress.offset()), (104, Some(10)));
    assert!(progress.header("location").is_none());
    assert_eq!(progress.header("upload-draft-interop-version"), Some("8"));
    let url = exchange.heard.location().unwrap();
    drop(exchange);
    // What was told stays true.
    assert_eq!(draft.head(&url).await.unwrap().offset(), Some(10));
}

/// Many requests at once on one connection: the interim responses are between whole responses.
#[tokio::test]
async fn pipelined_requests_stay_well_formed() {
    const REQUESTS: usize = 500;
    let late = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&late);
    let inner = service_fn(move |request: hyper::Request<Incoming>| {
        let late = Arc::clone(&counted);
        async move {
            let (parts, body) = request.into_parts();
            let interim = parts.extensions.get::<Interim>().unwrap().clone();
            let number = parts.uri.path()[1..].parse::<usize>().unwrap();
            let mut response = http::Response::new(());
            *response.status_mut() = http::StatusCode::from_u16(104).unwrap();
            let headers = response.headers_mut();
            headers.insert("x-number", HeaderValue::from(number));
            interim.send(&response);
            if number % 3 == 0 {
                // From another task, which the connection does not poll.
                let (again, sent) = (interim.clone(), response.clone());
                let task = tokio::spawn(async move { again.send(&sent) });
                task.await.unwrap();
                tokio::task::yield_now().await;
            }
            let body = body.collect().await.unwrap().to_bytes();
            // After the answer, nothing is sent any more.
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(1)).await;
                interim.send(&response);
                late.fetch_add(1, SeqCst);
            });
            let text = format!("{number} ").repeat(1 + number * 7 % 900);
            Ok::<_, Infallible>(hyper::Response::new(Full::<Bytes>::from(
                [text.as_bytes(), &body].concat(),
            )))
        }
    });
    let addr = serve_with_interims(inner).await;
    let (mut read, mut write) = TcpStream::connect(addr).await.unwrap().into_split();
    let sending = tokio::spawn(async move {
        for number in 0..REQUESTS {
            let close = if number + 1 == REQUESTS {
                "connection: close\r\n"
            } else {
                ""
            };
            let request = format!(
                "POST /{number} HTTP/1.1\r\nhost: x\r\n{close}content-length: 3\r\n\r\nabc"
            );
            write.write_all(request.as_bytes()).await.unwrap();
        }
        write
    });
    let mut bytes = Vec::new();
    read.read_to_end(&mut bytes).await.unwrap();
    sending.await.unwrap();
    let mut text = std::str::from_utf8(&bytes).unwrap();
    let (mut answered, mut interims) = (0, 0);
    while !text.is_empty() {
        let (head, rest) = text.split_once("\r\n\r\n").unwrap();
        let value = |name: &str| {
            let value = head.split_once(&format!("\r\n{name}: ")).unwrap().1;
            value
                .split("\r\n")
                .next()
                .unwrap()
                .parse::<usize>()
                .unwrap()
        };
        if head.starts_with("HTTP/1.1 104 ") {
            assert_eq!(value("x-number"), answered, "{head}");
            interims += 1;
            text = rest;
        } else {
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
            let (body, rest) = rest.split_at(value("content-length"));
            assert!(body.starts_with(&format!("{answered} ")) && body.ends_with("abc"));
            answered += 1;
            text = rest;
        }
    }
    assert_eq!(answered, REQUESTS);
    assert!(interims >= REQUESTS / 3, "{interims}");
    assert!(late.load(SeqCst) > 0);
}

/// A listener of `axum::serve` whose connections can send interim responses.
struct Sending(TcpListener);

impl Listener for Sending {
    type Io = InterimIo<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (io, addr) = Listener::accept(&mut self.0).await;
        (InterimIo::new(io), addr)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

#[derive(Clone)]
struct Connection(Interims);

impl Connected<IncomingStream<'_, Sending>> for Connection {
    fn connect_info(stream: IncomingStream<'_, Sending>) -> Self {
        Self(stream.io().interims())
    }
}

async fn enter(
    ConnectInfo(Connection(interims)): ConnectInfo<Connection>,
    mut request: Request,
    next: Next,
) -> Response {
    let _guard = interims.enter(&mut request);
    next.run(request).await
}

#[tokio::test]
async fn axum_serve_sends_interim_responses() {
    let app = Router::new()
        .route(
            "/upload",
            any(async |upload: CompletedUpload| format!("{} bytes", upload.size())),
        )
        .layer(ResumableLayer::new(MemoryStore::default()))
        .layer(middleware::from_fn(enter))
        .into_make_service_with_connect_info::<Connection>();
    let listener = Sending(TcpListener::bind("127.0.0.1:0").await.unwrap());
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let draft = Draft::new(addr, "/upload", Some(6));
    let uploaded = draft
        .upload(LETTERS.as_bytes(), &[(7, false), (20, true)])
        .await;
    assert_eq!(uploaded.answer.text(), "25 bytes");
    assert!(uploaded.resumed > 0);
}

/// Over HTTP/2 nothing is put between the frames.
#[tokio::test]
async fn http_2_is_left_alone() {
    let server = Server::start().await;
    let io = TcpStream::connect(server.addr).await.unwrap();
    let executor = hyper_util::rt::TokioExecutor::new();
    let io = hyper_util::rt::TokioIo::new(io);
    let (mut send, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(format!("http://{}/files", server.addr))
        .header("upload-draft-interop-version", "8")
        .header("upload-complete", "?1")
        .body(Full::<Bytes>::from(LETTERS))
        .unwrap();
    let response = send.send_request(request).await.unwrap();
    assert_eq!(
        (
            response.status().as_u16(),
            &response.headers()["upload-complete"]
        ),
        (200, &HeaderValue::from_static("?1"))
    );
    assert_eq!(server.contents(), [LETTERS]);
}
