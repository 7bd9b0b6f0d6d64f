//! One complete upload is one request to the inner service: which request causes it, and which
//! requests get its answer.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{io::AsyncWriteExt, sync::Semaphore};
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{CompletedUpload, Delivery, MemoryStore, ResumableLayer};

use crate::common::{Client, File, Server, serve};

const QUICK: Duration = Duration::from_millis(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_duplicate_chunks_are_delivered_once() {
    for round in 0..20 {
        let server = Server::start().await;
        let file = File::new("a.txt", 95 + round);
        let mut tasks = tokio::task::JoinSet::new();
        for number in (1..=file.chunks()).chain(1..=file.chunks()) {
            let (file, addr) = (file.clone(), server.addr);
            tasks.spawn(async move {
                Client::connect(addr)
                    .await
                    .send(file.multipart(number))
                    .await
            });
        }
        let answers = tasks.join_all().await;
        assert!(
            answers.iter().all(|answer| answer.status == 200),
            "{answers:?}"
        );
        assert!(answers.iter().any(|answer| answer.body == "delivery 1"));
        let deliveries = server.deliveries();
        assert_eq!(deliveries.len(), 1, "round {round}");
        assert!(deliveries[0].content == file.content, "round {round}");
    }
}

/// An inner service whose calls end when the test permits it.
struct Gate {
    calls: AtomicUsize,
    open: Semaphore,
}

async fn gated(layer: ResumableLayer) -> (std::net::SocketAddr, Arc<Gate>) {
    let gate = Arc::new(Gate {
        calls: AtomicUsize::new(0),
        open: Semaphore::new(0),
    });
    let inner = {
        let gate = Arc::clone(&gate);
        service_fn(move |request: Request<Incoming>| {
            let gate = Arc::clone(&gate);
            async move {
                let upload = request.extensions().get::<CompletedUpload>().unwrap();
                let text = format!("{} {}", upload.id(), upload.attempt());
                gate.calls.fetch_add(1, Ordering::SeqCst);
                gate.open.acquire().await.unwrap().forget();
                Ok::<_, Infallible>(Response::new(Full::from(text)))
            }
        })
    };
    (
        serve(ServiceBuilder::new().layer(layer).service(inner)).await,
        gate,
    )
}

impl Gate {
    async fn called(&self, times: usize) {
        while self.calls.load(Ordering::SeqCst) < times {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn requests_during_the_delivery_get_the_same_answer() {
    let (addr, gate) = gated(ResumableLayer::new(MemoryStore::default())).await;
    let file = File::new("a.txt", 5);
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let request = file.multipart(1);
        tasks.spawn(async move { Client::connect(addr).await.send(request).await });
    }
    gate.called(1).await;
    // Complete, but not delivered: a client that probes has to send the chunk again.
    assert_eq!(
        Client::connect(addr).await.send(file.probe(1)).await.status,
        204
    );
    gate.open.add_permits(1);
    let answers = tasks.join_all().await;
    assert!(
        answers
            .iter()
            .all(|a| a.status == 200 && a.body == answers[0].body),
        "{answers:?}"
    );
    assert_eq!(gate.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_disconnect_does_not_stop_the_delivery() {
    let (addr, gate) = gated(ResumableLayer::new(MemoryStore::default())).await;
    let file = File::new("a.txt", 5);
    let request = file.octets(1);
    let mut socket = tokio::net::TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: application/octet-stream\r\ncontent-length: 5\r\n\r\n",
        request.uri()
    );
    socket
        .write_all(&[head.as_bytes(), request.body()].concat())
        .await
        .unwrap();
    gate.called(1).await;
    drop(socket);
    gate.open.add_permits(1);
    let answer = Client::connect(addr).await.send(request).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.ends_with(" 1"), "{answer:?}");
    assert_eq!(gate.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_slow_delivery_is_reported_as_pending() {
    let layer = ResumableLayer::new(MemoryStore::default())
        .with_delivery(Delivery::default().with_timeout(Duration::from_millis(20)))
        .with_hold_back(QUICK);
    let (addr, gate) = gated(layer).await;
    let file = File::new("a.txt", 5);
    let mut client = Client::connect(addr).await;
    for _ in 0..2 {
        let answer = client.send(file.multipart(1)).await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["code"], "delivery_pending");
        assert_eq!(answer.headers["retry-after"], "1");
    }
    gate.open.add_permits(1);
    loop {
        let answer = client.send(file.multipart(1)).await;
        if answer.status == 200 {
            assert!(answer.body.ends_with(" 1"), "{answer:?}");
            break;
        }
    }
    assert_eq!(gate.calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_failed_delivery_is_retried() {
    for failure in [500, 502, 503, 408, 425, 429] {
        let server = Server::answering(
            |layer| layer.with_hold_back(QUICK),
            move |n| match n {
                1 | 2 => (StatusCode::from_u16(failure).unwrap(), "no".into()),
                _ => (StatusCode::OK, "yes".into()),
            },
        )
        .await;
        let mut client = server.client().await;
        let file = File::new("a.txt", 25);
        client.send(file.multipart(1)).await;
        for _ in 0..2 {
            let answer = client.send(file.multipart(2)).await;
            assert_eq!(answer.status, 503, "{failure}");
            assert_eq!(answer.json()["code"], "delivery_failed");
            assert_eq!(client.send(file.probe(2)).await.status, 204, "{failure}");
        }
        // Any of its chunks causes the next attempt.
        assert_eq!(
            client.send(file.multipart(1)).await.body,
            "yes",
            "{failure}"
        );
        let deliveries = server.deliveries();
        let attempts: Vec<_> = deliveries.iter().map(|d| d.upload.attempt()).collect();
        assert_eq!(attempts, [1, 2, 3]);
        assert!(
            deliveries
                .iter()
                .all(|d| d.upload.id() == deliveries[0].upload.id())
        );
        assert!(deliveries.iter().all(|d| d.content == file.content));
    }
}

#[tokio::test]
async fn a_panic_and_an_error_of_the_inner_service_are_failures() {
    let calls = Arc::new(AtomicUsize::new(0));
    let inner = {
        let calls = Arc::clone(&calls);
        service_fn(move |_: Request<Incoming>| {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            async move {
                match call {
                    0 => panic!("the application's mistake"),
                    1 => Err("the application's error"),
                    _ => Ok(Response::new(Full::<Bytes>::from("taken"))),
                }
            }
        })
    };
    let layer = ResumableLayer::new(MemoryStore::default()).with_hold_back(QUICK);
    let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
    let mut client = Client::connect(addr).await;
    let file = File::new("a.txt", 5);
    for status in [503, 503, 200] {
        assert_eq!(client.send(file.multipart(1)).await.status, status);
    }
}

#[tokio::test]
async fn a_rejected_upload_is_removed_and_stays_rejected() {
    for (inner, seen) in [(422, 400), (409, 400), (415, 415), (413, 400)] {
        let server = Server::answering(
            |layer| layer,
            move |_| (StatusCode::from_u16(inner).unwrap(), "no good".into()),
        )
        .await;
        let mut client = server.client().await;
        let file = File::new("a.txt", 5);
        for _ in 0..2 {
            let answer = client.send(file.multipart(1)).await;
            assert_eq!((answer.status, answer.body.as_str()), (seen, "no good"));
            if inner != seen {
                assert_eq!(answer.headers["x-resumable-status"], inner.to_string());
            }
            assert_eq!(client.send(file.probe(1)).await.status, 204);
        }
        let deliveries = server.deliveries();
        assert_eq!(deliveries.len(), 1);
        assert!(!deliveries[0].upload.path().unwrap().exists());
    }
}

#[tokio::test]
async fn answers_that_clients_would_misread_are_200() {
    for inner in [200, 201, 202, 204, 303] {
        let server = Server::answering(
            |layer| layer,
            move |_| (StatusCode::from_u16(inner).unwrap(), String::new()),
        )
        .await;
        let mut client = server.client().await;
        let file = File::new("a.txt", 5);
        for request in [file.multipart(1), file.multipart(1), file.probe(1)] {
            let answer = client.send(request).await;
            assert_eq!(answer.status, if inner == 201 { 201 } else { 200 });
            let original = answer
                .headers
                .get("x-resumable-status")
                .map(|v| v.to_str().unwrap());
            assert_eq!(
                original,
                (inner > 201).then_some(inner.to_string()).as_deref()
            );
        }
    }
}

#[tokio::test]
async fn only_the_completing_request_gets_a_long_answer() {
    let long = "x".repeat(1000);
    let server = {
        let long = long.clone();
        Server::answering(
            |layer| layer.with_delivery(Delivery::default().with_record_body(999)),
            move |_| (StatusCode::OK, long.clone()),
        )
        .await
    };
    let mut client = server.client().await;
    let file = File::new("a.txt", 5);
    assert_eq!(client.send(file.multipart(1)).await.body, long);
    let again = client.send(file.multipart(1)).await;
    assert_eq!(again.json()["state"], "delivered");
    assert_eq!(again.headers["content-type"], "application/json");
}

#[tokio::test]
async fn persist_moves_the_file_and_overwrites_nothing() {
    let server = Server::start().await;
    let file = File::new("a.txt", 25);
    let mut client = server.client().await;
    for number in 1..=2 {
        client.send(file.multipart(number)).await;
    }
    let upload = server.deliveries()[0].upload.clone();
    let taken = server.dir.path().join("taken");
    std::fs::write(&taken, "mine").unwrap();
    let error = upload.persist(&taken).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&taken).unwrap(), b"mine");

    let free = server.dir.path().join("free");
    upload.persist(&free).await.unwrap();
    assert!(std::fs::read(&free).unwrap() == file.content);
    assert!(!upload.path().unwrap().exists());
    let error = upload
        .persist(server.dir.path().join("again"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
