//! The resources that clients can make the layer use: up to each limit, and above it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::JoinHandle,
};
use tower::{ServiceBuilder, ServiceExt as _, service_fn};
use tower_resumable::{FileStore, Limits, MemoryStore, Purpose, Refusal, ResumableLayer};

use crate::{
    common::{self, Answer, Client, File, FilePart, Server, begin, serve},
    gone::{Gate, Paused, Step, send_whole},
};

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

/// Sends until the answer has another status than 503.
async fn admitted(client: &mut Client, request: impl Fn() -> Request<Vec<u8>>) -> Answer {
    admitted_after(client, "busy", request).await
}

/// The same, if the answers before have this code.
async fn admitted_after(
    client: &mut Client,
    code: &str,
    request: impl Fn() -> Request<Vec<u8>>,
) -> Answer {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = client.send(request()).await;
        if answer.status != 503 {
            return answer;
        }
        assert_code(&answer, 503, code);
        assert!(
            tokio::time::Instant::now() < deadline,
            "no body gives way: {answer:?}"
        );
    }
}

/// Bodies that have brought little and stay open.
async fn stalled(server: &Server, users: &[&str]) -> Vec<(TcpStream, File)> {
    let mut sockets = Vec::new();
    for (n, user) in users.iter().enumerate() {
        let file = File::new(&format!("slow {n}"), 25);
        sockets.push((begun(server, user, &file).await, file));
    }
    sockets
}

fn is_open((socket, _): &(TcpStream, File)) -> bool {
    let read = socket.try_read(&mut [0; 1]);
    read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

#[tokio::test]
async fn a_slow_body_gives_way_when_all_places_are_taken() {
    let server = Server::with(|layer| {
        layer
            .with_hold_back(Duration::ZERO)
            .with_limits(Limits::default().with_bodies(4))
    })
    .await;
    let slow = stalled(&server, &["x"; 4]).await;
    let file = File::new("a.txt", 25);
    let mut client = server.client().await;
    assert_eq!(admitted(&mut client, || file.octets(1)).await.status, 200);
    // Now there is a place, and no other body has to end.
    assert_eq!(client.send(file.octets(2)).await.body, "delivery 1");
    let mut ended = Vec::new();
    while ended.is_empty() {
        let (open, closed): (Vec<_>, Vec<_>) = slow.iter().partition(|slow| is_open(slow));
        assert!(open.len() >= 3, "more than one body has ended");
        ended = closed;
        tokio::task::yield_now().await;
    }
    let (_, file) = ended[0];
    let (name, mut others) = (file.name.clone(), Vec::new());
    for (socket, file) in slow {
        if file.name == name {
            // What it had is discarded.
            let stored = client.send(file.probe(1)).await.status;
            assert_eq!(stored, 204);
            drop(socket);
        } else {
            others.push((socket, file));
        }
    }
    for (mut socket, _) in others {
        socket.write_all(b"67890").await.unwrap();
        let mut answer = [0; 12];
        tokio::io::AsyncReadExt::read_exact(&mut socket, &mut answer)
            .await
            .unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}

#[tokio::test]
async fn a_body_that_gives_way_gets_a_retryable_answer() {
    let server = Server::with(|layer| {
        layer
            .with_hold_back(Duration::ZERO)
            .with_limits(Limits::default().with_bodies(1))
    })
    .await;
    let mut slow = stalled(&server, &["x"]).await;
    let file = File::new("a.txt", 15);
    let mut client = server.client().await;
    let answer = admitted(&mut client, || file.multipart(1)).await;
    assert_eq!(answer.body, "delivery 1");
    let answer = answer_of(slow.remove(0).0).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(
        answer.contains("\"too_slow\"") && answer.contains("retry-after"),
        "{answer}"
    );
}

/// The bodies of a peer or a scope take places from each other, and from no others.
#[tokio::test]
async fn bodies_are_counted_for_each_peer() {
    let limits = Limits::default().with_bodies_per_peer(2);
    let server = Server::with(|layer| {
        layer
            .with_hold_back(Duration::ZERO)
            .with_limits(limits)
            .with_peer(|parts| parts.headers.get("x-user")?.to_str().ok()?.parse().ok())
    })
    .await;
    let (one, two) = ("2001:db8::1", "2001:db8:0:1::1");
    let other = stalled(&server, &[two]).await;
    let slow = stalled(&server, &[one, one]).await;
    let file = File::new("a.txt", 15);
    let mut client = server.client().await;
    // The network of the peer counts, not its address.
    let neighbour = "2001:db8::2";
    let answer = client.send(by(neighbour, file.octets(1))).await;
    assert_code(&answer, 503, "busy");
    for peer in [two, "192.0.2.1"] {
        let file = File::new(peer, 15);
        let answer = client.send(by(peer, file.octets(1))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let answer = admitted(&mut client, || by(neighbour, file.octets(1))).await;
    assert_eq!(answer.status, 200);
    while slow.iter().all(is_open) {
        tokio::task::yield_now().await;
    }
    assert!(other.iter().all(is_open));
}

/// A body that brings nothing does not keep what its scope may have. Other scopes lose nothing.
#[tokio::test]
async fn a_slow_body_gives_way_when_the_limits_of_its_scope_are_reached() {
    for (limits, code) in [
        (
            Limits::default().with_unfinished_bytes_per_scope(40),
            "quota_exceeded",
        ),
        (
            Limits::default().with_uploads_per_scope(1),
            "too_many_uploads",
        ),
    ] {
        let server = server(limits).await;
        let mut slow = stalled(&server, &["bob", "alice"]).await;
        let file = File::new("a.txt", 25);
        let mut client = server.client().await;
        let answer = admitted_after(&mut client, code, || by("alice", file.octets(1))).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let answer = answer_of(slow.remove(1).0).await;
        assert!(answer.contains("\"too_slow\""), "{answer}");
        assert!(slow.iter().all(is_open));
    }
}

/// The same for the room on the disk, which a body reserves that declares its length.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_slow_body_gives_way_when_the_disk_has_no_room() {
    let dir = tempfile::tempdir().unwrap();
    let free = crate::store::free(dir.path());
    // For one body of this length, and not for two, even if other programs use some of it.
    let len = free / 8 * 3;
    let store = FileStore::builder(dir.path()).with_free_space_reserve(free / 2);
    let limits = Limits::default()
        .with_chunk_size(u64::MAX)
        .with_file_size(u64::MAX);
    let layer = ResumableLayer::new(store.open().unwrap()).with_hold_back(Duration::ZERO);
    let layer = layer.with_limits(limits.with_unfinished_bytes_per_scope(u64::MAX));
    let inner = service_fn(async |_: Request<_>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
    });
    let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
    let begin = async |name: &str| {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        let head = format!(
            "POST /upload?resumableChunkNumber=1&resumableChunkSize={len}\
             &resumableTotalSize={len}&resumableIdentifier={name} HTTP/1.1\r\nhost: x\r\n\
             content-length: {len}\r\ncontent-type: application/octet-stream\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        // More than is held in memory, so that the store begins to write.
        socket.write_all(&[7; 64 << 10]).await.unwrap();
        socket
    };
    let mut slow = tokio::spawn(answer_of(begin("slow").await));
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    // Its room is reserved before its first byte is written.
    let has_written = || {
        let shards = std::fs::read_dir(dir.path().join("partial")).unwrap();
        let files = shards.filter_map(|shard| std::fs::read_dir(shard.unwrap().path()).ok());
        let data = |path: &std::path::Path| path.extension().is_some_and(|it| it == "data");
        files.flatten().flatten().any(|file| {
            data(&file.path()) && file.metadata().is_ok_and(|metadata| metadata.len() > 0)
        })
    };
    while !has_written() {
        assert!(tokio::time::Instant::now() < deadline, "nothing is written");
        tokio::task::yield_now().await;
    }
    for number in 0.. {
        let mut other = begin(&number.to_string()).await;
        let mut answer = Vec::new();
        tokio::select! {
            answer = &mut slow => {
                let answer = answer.unwrap();
                assert!(answer.contains("\"too_slow\""), "{answer}");
                return;
            }
            // It is refused. If the server has not read all, the system may drop the answer.
            read = other.read_to_end(&mut answer) => {
                let answer = String::from_utf8_lossy(&answer);
                assert!(read.is_err() || answer.contains("\"storage_full\""), "{answer}");
            }
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "the slow body stays"
        );
    }
}

/// A server over a store that pauses.
async fn paused_server(
    store: Paused<MemoryStore>,
    set_up: impl FnOnce(ResumableLayer) -> ResumableLayer,
) -> SocketAddr {
    let layer = set_up(ResumableLayer::new(store)).with_hold_back(Duration::ZERO);
    let inner = service_fn(async |_: Request<_>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("delivered")))
    });
    serve(ServiceBuilder::new().layer(layer).service(inner)).await
}

fn sent(addr: SocketAddr, request: Request<Vec<u8>>) -> JoinHandle<Answer> {
    tokio::spawn(async move { Client::connect(addr).await.send(request).await })
}

/// A store that passes the gate at one step.
fn gated(gate: &Arc<Gate>, at: Step) -> Paused<MemoryStore> {
    let gate = Arc::clone(gate);
    Paused::new(MemoryStore::default(), move |step| {
        let gate = Arc::clone(&gate);
        async move {
            if step == at {
                gate.pass().await;
            }
        }
    })
}

#[tokio::test]
async fn an_upload_is_counted_while_a_request_creates_it() {
    let gate = Gate::new();
    let addr = paused_server(gated(&gate, Step::Read), |layer| {
        layer.with_limits(Limits::default().with_uploads(1))
    })
    .await;
    let [first, second] = ["a.txt", "b.txt"].map(|name| File::new(name, 25));
    // Its client leaves before the store has got anything.
    let socket = send_whole(addr, &first.octets(1)).await;
    gate.reached.notified().await;
    drop(socket);
    // The limit is reached, so the store is asked. It has no uploads.
    let refused = sent(addr, second.octets(1)).await.unwrap();
    assert_code(&refused, 503, "too_many_uploads");
    gate.open.add_permits(9);
    loop {
        let probe = sent(addr, first.probe(1)).await.unwrap();
        if probe.status == 200 {
            break;
        }
    }
    let refused = sent(addr, second.octets(1)).await.unwrap();
    assert_code(&refused, 503, "too_many_uploads");
}

#[tokio::test]
async fn requests_that_wait_for_a_count_that_fails_are_refused() {
    let gate = Gate::new();
    let store = gated(&gate, Step::List);
    let fails = Arc::clone(&store.fails);
    fails.store(true, SeqCst);
    let asked = Arc::new(Notify::new());
    let noted = Arc::clone(&asked);
    let addr = paused_server(store, |layer| {
        layer.with_admission(move |_| {
            noted.notify_one();
            async { Ok(()) }
        })
    })
    .await;
    let mut waiting = Vec::new();
    for n in 0..4 {
        let file = File::new(&format!("{n}.txt"), 25);
        waiting.push(sent(addr, file.octets(1)));
        // In the same poll it asks, or begins to wait for the question of the first one.
        asked.notified().await;
    }
    gate.open.add_permits(9);
    for refused in waiting {
        assert_code(&refused.await.unwrap(), 503, "storage");
    }
    // The next question is answered.
    fails.store(false, SeqCst);
    let answer = sent(addr, File::new("b.txt", 25).octets(1)).await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_request_leaves_nothing() {
    let limits = Limits::default().with_uploads_per_scope(3);
    let mut uploads = None;
    let server = Server::with(|layer| {
        let layer = scoped(layer).with_limits(limits);
        uploads = Some(layer.uploads());
        layer
    })
    .await;
    // Whole chunks that do not match their digest, chunks that are too short, and clients that do
    // not wait.
    for n in 0..60 {
        let file = File::new(&format!("{n}.txt"), 25);
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: x\r\nx-user: alice\r\ncontent-length: 10\r\n\
             content-type: application/octet-stream\r\n\
             content-digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\r\n\r\n",
            file.uri(1),
        );
        let body = &b"0123456789"[..if n % 2 == 0 { 10 } else { 5 }];
        let request = [head.as_bytes(), body].concat();
        socket.write_all(&request).await.unwrap();
        if n % 3 == 0 {
            socket.shutdown().await.unwrap();
            answer_of(socket).await;
        }
    }
    uploads.unwrap().drain().await;
    let mut client = server.client().await;
    for n in 0..3 {
        let file = File::new(&format!("good {n}.txt"), 25);
        let answer = admitted_upload(&mut client, &file).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let names = server.files();
    let journals = names
        .iter()
        .filter(|path| path.extension().is_some_and(|e| e == "journal"));
    assert_eq!(journals.count(), 3, "{names:?}");
}

/// Sends the first chunk until the requests before it have ended.
async fn admitted_upload(client: &mut Client, file: &File) -> Answer {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    loop {
        let answer = client.send(by("alice", file.octets(1))).await;
        if answer.status != 503 || tokio::time::Instant::now() > deadline {
            return answer;
        }
    }
}

/// A form whose file comes before the fields that say where it belongs.
fn file_first(file: &File, number: usize) -> Vec<u8> {
    let part = common::file_part(FilePart::named(&file.name), file.chunk(number));
    let fields = common::form(&file.fields(number), FilePart::None, b"");
    [part, fields].concat()
}

#[tokio::test]
async fn a_spooled_file_is_admitted_and_counted_first() {
    let limits = Limits::default().with_unfinished_bytes_per_scope(100);
    let server = Server::with(|layer| {
        scoped(layer).with_limits(limits).with_admission(|asked| {
            let refused = asked.purpose() == Purpose::Spool
                && asked.scope().as_str() == "mallory"
                && asked.upload().is_none();
            async move {
                if refused {
                    return Err(Refusal::new(http::StatusCode::FORBIDDEN, "not you"));
                }
                Ok(())
            }
        })
    })
    .await;
    let file = File {
        chunk_size: 200,
        ..File::new("a.txt", 200)
    };
    // The rest of these bodies never comes.
    let begun = async |user: &str| {
        let head = format!(
            "POST /upload HTTP/1.1\r\nhost: x\r\nx-user: {user}\r\ncontent-length: 100000000\r\n\
             content-type: multipart/form-data; boundary={}\r\n\r\n",
            common::BOUNDARY
        );
        let part = common::file_part(FilePart::named(&file.name), file.chunk(1));
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        let request = [head.as_bytes(), &part].concat();
        socket.write_all(&request).await.unwrap();
        socket
    };
    let answer = answer_of(begun("mallory").await).await;
    assert!(
        answer.contains("\"refused\"") && answer.contains("not you"),
        "{answer}"
    );
    // No more is spooled than the owner may have.
    let answer = answer_of(begun("alice").await).await;
    assert!(answer.contains("\"file_too_large\""), "{answer}");
    // An upload whose bytes are counted goes on, though there is no room for another one.
    let mut client = server.client().await;
    let fits = File {
        chunk_size: 50,
        ..File::new("b.txt", 100)
    };
    for number in 1..=2 {
        let request = common::multipart("/upload", file_first(&fits, number));
        let answer = client.send(by("bob", request)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert!(server.deliveries()[0].content == fits.content);
}

#[tokio::test]
async fn a_long_list_is_answered_in_pages() {
    let inner = service_fn(async |_: Request<Full<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("delivered")))
    });
    let layer = ResumableLayer::new(MemoryStore::default()).with_list_parameter("unfinished");
    let service = ServiceBuilder::new().layer(layer).service(inner);
    let answer = async |request: Request<Vec<u8>>| {
        let request = request.map(|body| Full::from(Bytes::from(body)));
        let (head, body) = service.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status.as_u16(), body)
    };
    const ALL: usize = 2500;
    for n in 0..ALL {
        let file = File::new(&format!("{n}.txt"), 25);
        assert_eq!(answer(file.octets(1)).await.0, 200);
    }
    let (mut after, mut found) = (String::new(), Vec::new());
    loop {
        let uri = format!("/upload?unfinished{after}");
        let (status, body) = answer(Request::get(uri).body(Vec::new()).unwrap()).await;
        assert_eq!(status, 200);
        let page: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let uploads = page["uploads"].as_array().unwrap();
        assert!(uploads.len() <= 2000);
        found.extend(
            uploads
                .iter()
                .map(|upload| upload["identifier"].to_string()),
        );
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    assert!(!after.is_empty());
    found.sort();
    found.dedup();
    assert_eq!(found.len(), ALL);
    let wrong = Request::get("/upload?unfinished&after=x").body(Vec::new());
    assert_eq!(answer(wrong.unwrap()).await.0, 400);
}
