//! The limits of uploads that have URLs.

use std::{sync::Arc, time::Duration};

use http::StatusCode;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tower_resumable::{
    BucketStore, FileStore, Limits, MemoryStore, Refusal, ResumableLayer, Retention,
};

use super::{BYTES, LETTERS, Server, answer, assert_code, begin_patch, header, offset};
use crate::common::begin;

async fn server(limits: Limits) -> Server {
    Server::with(|layer| layer.with_limits(limits).with_scope(|_| Ok("alice".into()))).await
}

/// Clients send the whole file in one request.
#[tokio::test]
async fn the_limit_of_chunks_does_not_apply() {
    let limits = Limits::default().with_chunk_size(10);
    let server = server(limits.clone()).await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    assert_eq!(client.patch(&url, 0, LETTERS).await.status, 204);
    assert_eq!(server.contents(), [LETTERS]);

    let server = self::server(limits.with_append_size(10)).await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    assert_code(
        &client.patch(&url, 0, LETTERS).await,
        413,
        "chunk_too_large",
    );
    assert_eq!(client.patch(&url, 0, &LETTERS[..10]).await.status, 204);
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused() {
    let server = server(Limits::default().with_file_size(10)).await;
    let mut client = server.client().await;
    let answer = client.post(&[("upload-length", "11")], "").await;
    assert_code(&answer, 413, "file_too_large");
    let deferred = client.create(&[("upload-defer-length", "1")]).await;
    assert_code(
        &client.patch(&deferred, 0, LETTERS).await,
        413,
        "file_too_large",
    );
    let length = [("upload-length", "11")];
    let answer = client.patch_with(&deferred, 0, &length, "hello").await;
    assert_code(&answer, 413, "file_too_large");
    // A body that declares no length is counted.
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    let head = format!(
        "PATCH {deferred} HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\nupload-offset: 0\r\n\
         content-type: {BYTES}\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n"
    );
    begin(&mut socket, &head).await;
    socket
        .write_all(b"8\r\nabcdefgh\r\n8\r\nabcdefgh\r\n0\r\n\r\n")
        .await
        .unwrap();
    let mut status = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut socket, &mut status)
        .await
        .unwrap();
    assert_eq!(&status, b"HTTP/1.1 413");
    let head = client.head(&deferred).await;
    assert!([0, 8].contains(&offset(&head)), "{head:?}");
    // Parts are counted together.
    let part = [
        ("upload-concat", "partial"),
        ("upload-length", "6"),
        ("content-type", BYTES),
    ];
    let part = client.post(&part, "hello!").await;
    let list = format!("final;{0} {0}", header(&part, "location"));
    let answer = client.post(&[("upload-concat", &list)], "").await;
    assert_code(&answer, 413, "file_too_large");
}

#[tokio::test]
async fn unfinished_bytes_of_unknown_length_are_counted() {
    let limits = Limits::default().with_unfinished_bytes_per_scope(30);
    let server = server(limits).await;
    let mut client = server.client().await;
    let first = client.create(&[("upload-defer-length", "1")]).await;
    let second = client.create(&[("upload-defer-length", "1")]).await;
    assert_eq!(client.patch(&first, 0, &LETTERS[..20]).await.status, 204);
    assert_code(
        &client.patch(&second, 0, &LETTERS[..11]).await,
        503,
        "quota_exceeded",
    );
    assert_eq!(client.patch(&second, 0, &LETTERS[..10]).await.status, 204);
    let answer = client
        .patch_with(&first, 20, &[("upload-length", "21")], "x")
        .await;
    assert_code(&answer, 503, "quota_exceeded");
    // It could never be stored.
    let answer = client
        .patch_with(&first, 20, &[("upload-length", "31")], "x")
        .await;
    assert_code(&answer, 413, "file_too_large");
    let answer = client.post(&[("upload-length", "1")], "").await;
    assert_code(&answer, 503, "quota_exceeded");
    // A removal makes room, and so does a delivery.
    assert_eq!(client.send("DELETE", &second, &[], "").await.status, 204);
    let answer = client
        .patch_with(&first, 20, &[("upload-length", "25")], &LETTERS[20..])
        .await;
    assert_eq!(answer.status, 204, "{answer:?}");
    client.create_of(30).await;
}

/// It is a copy of the bytes of its parts, which can be removed before it.
#[tokio::test]
async fn the_bytes_of_a_final_upload_are_counted() {
    let limits = Limits::default().with_unfinished_bytes_per_scope(30);
    let set_up = |layer: ResumableLayer| {
        let layer = layer.with_limits(limits.clone());
        layer.with_scope(|_| Ok("alice".into()))
    };
    let inner = |number: usize| answer(if number == 1 { 503 } else { 200 }, &[], "");
    let dir = tempfile::tempdir().unwrap();
    let files = FileStore::open(dir.path()).unwrap();
    let bucket = Arc::new(object_store::memory::InMemory::new());
    let bucket = BucketStore::open(bucket).await.unwrap();
    for server in [
        Server::on(MemoryStore::default(), set_up, inner).await,
        Server::on(files, set_up, inner).await,
        Server::on(bucket, set_up, inner).await,
    ] {
        let mut client = server.client().await;
        let part = [
            ("upload-concat", "partial"),
            ("upload-length", "20"),
            ("content-type", BYTES),
        ];
        let part = client.post(&part, &LETTERS[..20]).await;
        let part = header(&part, "location").to_owned();
        let twice = format!("final;{part} {part}");
        let refused = client.post(&[("upload-concat", &twice)], "").await;
        assert_code(&refused, 413, "file_too_large");
        // The part makes room for the file, although both are stored.
        let once = format!("final;{part}");
        let once = [("upload-concat", once.as_str())];
        let made = client.post(&once, "").await;
        assert_code(&made, 503, "delivery_failed");
        let other = [once[0], ("upload-metadata", "a")];
        let refused = client.post(&other, "").await;
        assert_code(&refused, 503, "quota_exceeded");
        assert_eq!(client.send("DELETE", &part, &[], "").await.status, 204);
        let refused = client.post(&[("upload-length", "11")], "").await;
        assert_code(&refused, 503, "quota_exceeded");
        let beside = client.create_of(10).await;
        assert_eq!(client.send("DELETE", &beside, &[], "").await.status, 204);
        let made = header(&made, "location").to_owned();
        assert_eq!(client.head(&made).await.status, 200);
        client.create_of(30).await;
        assert_eq!(server.contents().len(), 2);
    }
}

#[tokio::test]
async fn unfinished_uploads_are_counted() {
    let server = server(Limits::default().with_uploads_per_scope(2)).await;
    let mut client = server.client().await;
    let first = client.create_of(25).await;
    client.create_of(25).await;
    let answer = client.post(&[("upload-length", "25")], "").await;
    assert_code(&answer, 503, "too_many_uploads");
    assert_eq!(client.patch(&first, 0, LETTERS).await.status, 204);
    client.create_of(25).await;
}

/// A long upload over a slow line is healthy: what has arrived is kept.
#[tokio::test]
async fn the_time_of_a_whole_body_is_not_limited_but_idle_time_is() {
    let limits = Limits::default()
        .with_body_time(Duration::ZERO)
        .with_idle(Duration::from_millis(300));
    let server = server(limits).await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    let mut socket = begin_patch(server.addr, &url, 0, 25).await;
    socket.write_all(&LETTERS.as_bytes()[..10]).await.unwrap();
    // Nothing more comes.
    let mut status = [0; 12];
    tokio::io::AsyncReadExt::read_exact(&mut socket, &mut status)
        .await
        .unwrap();
    assert_eq!(&status, b"HTTP/1.1 503");
    assert_eq!(offset(&client.head(&url).await), 10);
}

#[tokio::test]
async fn the_first_bytes_are_checked() {
    let server = Server::with(|layer| {
        layer.with_sniff(|head, _| {
            if head.starts_with(b"abc") {
                Ok(())
            } else {
                Err(Refusal::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "letters only",
                ))
            }
        })
    })
    .await;
    let mut client = server.client().await;
    let url = client.create_of(5).await;
    let answer = client.patch(&url, 0, "12345").await;
    assert_code(&answer, 415, "refused");
    assert_eq!(client.head(&url).await.status, 404);
    let whole = [("upload-length", "5"), ("content-type", BYTES)];
    assert_code(&client.post(&whole, "12345").await, 415, "refused");
    // Too few to tell: they are checked again before the delivery.
    let url = client.create_of(5).await;
    assert_eq!(client.patch(&url, 0, "12").await.status, 204);
    assert_code(&client.patch(&url, 2, "345").await, 415, "refused");
    assert_eq!(client.head(&url).await.status, 404);
    // The first bytes of a part are not those of a file.
    let part = |length| [("upload-concat", "partial"), ("upload-length", length)];
    let (first, second) = (
        client.create(&part("3")).await,
        client.create(&part("2")).await,
    );
    assert_eq!(client.patch(&first, 0, "abc").await.status, 204);
    assert_eq!(client.patch(&second, 0, "12").await.status, 204);
    let list = format!("final;{first} {second}");
    assert_eq!(
        client.post(&[("upload-concat", &list)], "").await.status,
        201
    );
    let list = format!("final;{second} {first}");
    let answer = client.post(&[("upload-concat", &list)], "").await;
    assert!([400, 415].contains(&answer.status), "{answer:?}");
    assert_eq!(server.contents(), ["abc12"]);
}

#[tokio::test]
async fn clients_are_told_when_an_upload_expires() {
    let retention = Retention::default().with_abandoned(Duration::MAX);
    let server = Server::with(|layer| layer.with_retention(retention)).await;
    let answer = server
        .client()
        .await
        .post(&[("upload-length", "5")], "")
        .await;
    assert_eq!(answer.status, 201);
    assert!(!answer.headers.contains_key("upload-expires"));

    let retention = Retention::default().with_abandoned(Duration::ZERO);
    let server = Server::with(|layer| layer.with_retention(retention)).await;
    let mut client = server.client().await;
    let url = client.create_of(5).await;
    let head = client.head(&url).await;
    assert!(header(&head, "upload-expires").ends_with(" GMT"));
    while server.uploads.sweep().await.unwrap().abandoned == 0 {}
    assert_eq!(client.head(&url).await.status, 404);
}
