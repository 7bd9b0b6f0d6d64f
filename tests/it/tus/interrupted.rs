//! Requests that end before their bodies do, and requests that take over.

use std::time::Duration;

use http::Request;
use http_body_util::StreamBody;
use hyper::body::{Bytes, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tower_resumable::store::Filter;

use super::{BYTES, LETTERS, Server, Tus, begin_patch, offset, stored};
use crate::common::begin;

async fn finish(client: &mut Tus, server: &Server, url: &str, from: usize) {
    let answer = client.patch(url, from, &LETTERS[from..]).await;
    assert_eq!((answer.status, offset(&answer)), (204, 25));
    assert_eq!(server.contents(), [LETTERS]);
}

#[tokio::test]
async fn what_a_cut_request_brought_is_kept() {
    for is_reset in [false, true] {
        let server = Server::start().await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        let mut socket = begin_patch(server.addr, &url, 0, 25).await;
        socket.write_all(&LETTERS.as_bytes()[..10]).await.unwrap();
        stored(&server.uploads, 10).await;
        if is_reset {
            socket.set_zero_linger().unwrap();
        }
        drop(socket);
        let head = client.head(&url).await;
        assert_eq!((head.status, offset(&head)), (200, 10));
        finish(&mut client, &server, &url, 10).await;
    }
}

#[tokio::test]
async fn what_a_cut_stream_of_http_2_brought_is_kept() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    let io = TokioIo::new(TcpStream::connect(server.addr).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    tokio::spawn(connection);
    let (frames, body) = mpsc::unbounded_channel::<Result<Frame<Bytes>, std::io::Error>>();
    let body = StreamBody::new(UnboundedReceiverStream::new(body));
    let request = Request::patch(format!("http://x{url}"))
        .header("tus-resumable", "1.0.0")
        .header("upload-offset", "0")
        .header("content-type", BYTES)
        .body(body)
        .unwrap();
    let answer = tokio::spawn(send.send_request(request));
    let bytes = Bytes::from_static(&LETTERS.as_bytes()[..10]);
    frames.send(Ok(Frame::data(bytes))).unwrap();
    stored(&server.uploads, 10).await;
    // Resets the stream. The server drops the future of the request.
    frames.send(Err(std::io::Error::other("gone"))).unwrap();
    assert!(answer.await.unwrap().is_err());
    let head = client.head(&url).await;
    assert_eq!((head.status, offset(&head)), (200, 10));
    server.uploads.drain().await;
    finish(&mut client, &server, &url, 10).await;
}

#[tokio::test]
async fn a_newer_request_takes_over() {
    for method in ["HEAD", "PATCH", "DELETE"] {
        let server = Server::start().await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        let mut older = begin_patch(server.addr, &url, 0, 25).await;
        older.write_all(&LETTERS.as_bytes()[..10]).await.unwrap();
        stored(&server.uploads, 10).await;
        let patch = [("upload-offset", "10"), ("content-type", BYTES)];
        let body = if method == "PATCH" {
            &LETTERS[10..]
        } else {
            ""
        };
        // The body of the older one has not ended, and nothing has happened to its connection.
        let answer = client.send(method, &url, &patch, body).await;
        let expected = if method == "HEAD" { 200 } else { 204 };
        assert_eq!(answer.status, expected, "{method} {answer:?}");
        if method == "HEAD" {
            assert_eq!(offset(&answer), 10);
        }
        // The older request has ended. What its client still sends is dropped.
        let _ = older.write_all(&LETTERS.as_bytes()[10..]).await;
        let mut status = [0; 12];
        older.read_exact(&mut status).await.unwrap();
        assert_eq!(&status, b"HTTP/1.1 423", "{method}");
        match method {
            "HEAD" => finish(&mut client, &server, &url, 10).await,
            "PATCH" => assert_eq!(server.contents(), [LETTERS]),
            _ => {
                assert_eq!(client.head(&url).await.status, 404);
                assert!(server.contents().is_empty());
            }
        }
    }
}

/// Bytes that belong to one checksum are stored as a whole, or not at all.
#[tokio::test]
async fn a_cut_request_with_a_checksum_leaves_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    let head = format!(
        "PATCH {url} HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\nupload-offset: 0\r\n\
         content-type: {BYTES}\r\ncontent-length: 25\r\nexpect: 100-continue\r\n\
         upload-checksum: sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=\r\n\r\n"
    );
    begin(&mut socket, &head).await;
    socket.write_all(&LETTERS.as_bytes()[..10]).await.unwrap();
    drop(socket);
    server.uploads.drain().await;
    assert_eq!(offset(&client.head(&url).await), 0);
    finish(&mut client, &server, &url, 0).await;
}

/// The client does not know the URL of a creation that was cut, so nothing stays.
#[tokio::test]
async fn a_cut_creation_leaves_nothing() {
    let server = Server::start().await;
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    let head = format!(
        "POST /files HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\nupload-length: 25\r\n\
         content-type: {BYTES}\r\ncontent-length: 25\r\nexpect: 100-continue\r\n\r\n"
    );
    begin(&mut socket, &head).await;
    socket.write_all(&LETTERS.as_bytes()[..10]).await.unwrap();
    stored(&server.uploads, 10).await;
    drop(socket);
    while !server
        .uploads
        .list(&Filter::default(), None)
        .await
        .unwrap()
        .uploads
        .is_empty()
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The last byte has come, but the client has not waited for the answer.
#[tokio::test]
async fn a_complete_upload_is_delivered_without_its_client() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    server.hold_back_answers();
    let mut socket = begin_patch(server.addr, &url, 0, 25).await;
    socket.write_all(LETTERS.as_bytes()).await.unwrap();
    while server.contents().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    drop(socket);
    server.permits.add_permits(1);
    let head = client.head(&url).await;
    assert_eq!((head.status, offset(&head)), (200, 25));
    assert_eq!(server.contents(), [LETTERS]);
}

#[tokio::test]
async fn trailers_are_checked() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(11).await;
    for (trailer, status) in [
        (
            "Upload-Checksum: sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=\r\n",
            460,
        ),
        (
            "Upload-Checksum: sha3 2jmj7l5rSw0yVb/vlWAYkK/YBwk=\r\n",
            400,
        ),
        ("Upload-Checksum: sha1\r\n", 400),
        // It was announced.
        ("", 400),
        (
            "Upload-Checksum: sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=\r\n",
            204,
        ),
    ] {
        assert_eq!(offset(&client.head(&url).await), 0, "{trailer}");
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        let request = format!(
            "PATCH {url} HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\nupload-offset: 0\r\n\
             content-type: {BYTES}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\
             trailer: Expires, upload-checksum\r\n\r\n\
             5\r\nhello\r\n6\r\n world\r\n0\r\n{trailer}\r\n"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let got = answer.split(' ').nth(1).unwrap();
        assert_eq!(got, status.to_string(), "{trailer} {answer}");
    }
    assert_eq!(server.contents(), ["hello world"]);
}
