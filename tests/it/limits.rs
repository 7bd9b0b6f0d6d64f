//! The resources that clients can make the layer use: up to each limit, and above it.

use std::time::Duration;

use http::Request;
use tokio::{io::AsyncWriteExt, net::TcpStream};
use tower_resumable::{Limits, Refusal, ResumableLayer};

use crate::common::{Answer, File, Server, begin};

fn scoped(layer: ResumableLayer) -> ResumableLayer {
    layer
        .with_hold_back(Duration::ZERO)
        .with_scope(|parts| match parts.headers.get("x-user") {
            Some(user) => Ok(user.to_str().unwrap_or_default().into()),
            None => Err(Refusal::new(http::StatusCode::UNAUTHORIZED, "sign in")),
        })
}

async fn server(limits: Limits) -> Server {
    Server::with(|layer| scoped(layer).with_limits(limits)).await
}

fn by(user: &str, mut request: Request<Vec<u8>>) -> Request<Vec<u8>> {
    let user = user.parse().unwrap();
    request.headers_mut().insert("x-user", user);
    request
}

#[track_caller]
fn assert_code(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.json()["code"], code);
    assert_eq!(answer.headers.contains_key("retry-after"), status == 503);
}

#[tokio::test]
async fn unfinished_uploads_are_counted_for_each_owner_and_in_total() {
    let limits = Limits::default().with_uploads_per_scope(2).with_uploads(3);
    let server = server(limits).await;
    let mut client = server.client().await;
    let files: Vec<_> = (0..4).map(|n| File::new(&format!("{n}.txt"), 25)).collect();
    let mut send = async |user, request| client.send(by(user, request)).await;

    for file in &files[..2] {
        assert_eq!(send("alice", file.multipart(1)).await.status, 200);
    }
    assert_code(
        &send("alice", files[2].multipart(1)).await,
        503,
        "too_many_uploads",
    );
    // The refused chunk is not stored, and the existing uploads continue.
    assert_eq!(send("alice", files[2].probe(1)).await.status, 204);
    assert_eq!(send("alice", files[0].multipart(1)).await.status, 200);

    assert_eq!(send("bob", files[0].multipart(1)).await.status, 200);
    assert_code(
        &send("carol", files[0].multipart(1)).await,
        503,
        "too_many_uploads",
    );

    // A delivery makes room, and so does a cancellation.
    assert_eq!(
        send("alice", files[0].multipart(2)).await.body,
        "delivery 1"
    );
    assert_eq!(send("carol", files[0].multipart(1)).await.status, 200);
    assert_code(
        &send("alice", files[2].multipart(1)).await,
        503,
        "too_many_uploads",
    );
    // A delivered upload is not a new one: its client may request the answer again.
    assert_eq!(
        send("alice", files[0].multipart(2)).await.body,
        "delivery 1"
    );
    let cancel = Request::delete(files[1].uri(1)).body(Vec::new()).unwrap();
    assert_eq!(send("alice", cancel).await.status, 204);
    assert_eq!(send("alice", files[2].multipart(1)).await.status, 200);
}

#[tokio::test]
async fn declared_bytes_are_counted_before_they_arrive() {
    let limits = Limits::default()
        .with_unfinished_bytes_per_scope(100)
        .with_unfinished_bytes(130);
    let server = server(limits).await;
    let mut client = server.client().await;
    let mut send = async |user, request| client.send(by(user, request)).await;

    let too_long = File::new("much.txt", 101);
    assert_code(
        &send("alice", too_long.multipart(1)).await,
        400,
        "file_too_large",
    );
    let [sixty, forty, one] = [60, 40, 1].map(|len| File::new("a.txt", len));
    assert_eq!(send("alice", sixty.multipart(1)).await.status, 200);
    assert_eq!(send("alice", forty.multipart(1)).await.status, 200);
    assert_code(
        &send("alice", one.multipart(1)).await,
        503,
        "quota_exceeded",
    );
    assert_code(
        &send("bob", forty.multipart(1)).await,
        503,
        "quota_exceeded",
    );
    assert_eq!(send("bob", one.multipart(1)).await.body, "delivery 1");
}

/// Another process finishes uploads too, and its unfinished uploads count.
#[tokio::test]
async fn limits_apply_to_a_shared_store() {
    let limits = Limits::default().with_uploads_per_scope(2);
    let first = server(limits.clone()).await;
    let root = first.dir.path().to_owned();
    let store = tower_resumable::FileStore::open(&root).unwrap();
    let second = Server::with(|_| scoped(ResumableLayer::new(store)).with_limits(limits)).await;
    let files: Vec<_> = (0..3).map(|n| File::new(&format!("{n}.txt"), 25)).collect();
    let (mut a, mut b) = (first.client().await, second.client().await);
    assert_eq!(a.send(by("alice", files[0].multipart(1))).await.status, 200);
    assert_eq!(a.send(by("alice", files[1].multipart(1))).await.status, 200);
    let refused = b.send(by("alice", files[2].multipart(1))).await;
    assert_code(&refused, 503, "too_many_uploads");
    // An upload that the other server began is not new.
    let ended = b.send(by("alice", files[0].multipart(2))).await;
    assert_eq!(ended.body, "delivery 1");
    assert_eq!(b.send(by("alice", files[2].multipart(1))).await.status, 200);
    // The first server believes that there are two, until it asks the store.
    let file = File::new("4.txt", 25);
    let cancel = Request::delete(files[1].uri(1)).body(Vec::new()).unwrap();
    b.send(by("alice", cancel)).await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while a.send(by("alice", file.multipart(1))).await.status != 200 {
        assert!(
            tokio::time::Instant::now() < deadline,
            "the layer does not ask the store"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Sends the beginning of a chunk. Its connection stays open until the socket is dropped.
async fn begun(server: &Server, user: &str, file: &File) -> TcpStream {
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\nx-user: {user}\r\ncontent-length: 10\r\n\
         content-type: application/octet-stream\r\nexpect: 100-continue\r\n\r\n",
        file.uri(1),
    );
    begin(&mut socket, &head).await;
    socket.write_all(b"12345").await.unwrap();
    socket
}

async fn answer_of(mut socket: TcpStream) -> String {
    use tokio::io::AsyncReadExt;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn bodies_are_counted_for_each_owner_and_in_total() {
    let limits = Limits::default().with_bodies_per_scope(2).with_bodies(3);
    let server = server(limits).await;
    let slow: Vec<_> = (0..3)
        .map(|n| File::new(&format!("slow {n}"), 25))
        .collect();
    let mut sockets = Vec::new();
    for (user, file) in ["alice", "alice", "bob"].iter().zip(&slow) {
        sockets.push(begun(&server, user, file).await);
    }
    let file = File::new("a.txt", 25);
    let mut client = server.client().await;
    for user in ["alice", "carol"] {
        let answer = client.send(by(user, file.multipart(1))).await;
        assert_code(&answer, 503, "busy");
    }
    // Probes have no bodies.
    assert_eq!(client.send(by("carol", slow[0].probe(1))).await.status, 204);
    // The end of these requests makes room.
    drop(sockets);
    loop {
        let answer = client.send(by("alice", file.multipart(1))).await;
        if answer.status == 200 {
            break;
        }
        assert_code(&answer, 503, "busy");
    }
}

#[tokio::test]
async fn a_stalled_body_is_refused() {
    let limits = Limits::default().with_idle(Duration::from_millis(100));
    let server = server(limits).await;
    let file = File::new("a.txt", 25);
    let answer = answer_of(begun(&server, "alice", &file).await).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("\"too_slow\"") && answer.contains("retry-after"),
        "{answer}"
    );
    // The chunk is not stored, and it can be sent again.
    let mut client = server.client().await;
    assert_eq!(client.send(by("alice", file.probe(1))).await.status, 204);
    for number in 1..=2 {
        assert_eq!(
            client
                .send(by("alice", file.multipart(number)))
                .await
                .status,
            200
        );
    }
    assert!(server.deliveries()[0].content == file.content);
}

#[tokio::test]
async fn a_body_below_the_minimum_pace_is_refused() {
    for limits in [
        Limits::default()
            .with_grace(Duration::from_millis(100))
            .with_min_rate(1 << 20),
        Limits::default().with_body_time(Duration::from_millis(100)),
    ] {
        let server = server(limits).await;
        let file = File {
            chunk_size: 1 << 20,
            ..File::new("a.txt", 1 << 20)
        };
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: x\r\nx-user: alice\r\ncontent-length: {}\r\n\
             content-type: application/octet-stream\r\n\r\n",
            file.uri(1),
            1 << 20,
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let (mut read, mut write) = socket.into_split();
        // Single bytes with pauses, for as long as the server accepts them.
        let trickle = tokio::spawn(async move {
            while write.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        let mut answer = vec![0; 1000];
        let len = tokio::io::AsyncReadExt::read(&mut read, &mut answer)
            .await
            .unwrap();
        let answer = String::from_utf8_lossy(&answer[..len]);
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        trickle.abort();
    }
}
