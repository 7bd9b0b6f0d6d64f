//! One complete upload is one request to the inner service: which request causes it, and which
//! requests get its answer.

use std::{
    collections::HashSet,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{
    io::AsyncWriteExt,
    sync::{Notify, Semaphore},
};
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{
    CompletedUpload, Delivery, Dialect, Event, MemoryStore, ResumableLayer, Upload, UploadId,
    store::{ChunkBody, Claimed, Expiry, Filter, Page, Progress, Status, Store, StoreError, Swept},
};

use crate::common::{
    Client, Delivery as Delivered, File, FilePart, Server, form, multipart, serve,
};

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

/// Also if the client needs another body than that of the answer.
#[tokio::test]
async fn a_cookie_is_not_replayed() {
    let inner = service_fn(|_: Request<Incoming>| async {
        let answer = Response::builder().header("set-cookie", "a=1");
        answer.body(Full::<Bytes>::from("taken"))
    });
    let layer = ResumableLayer::new(MemoryStore::default());
    let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
    let mut client = Client::connect(addr).await;
    let of_fine_uploader = || {
        let fields = [
            ("qquuid", "ad8f3618"),
            ("qqfilename", "a.txt"),
            ("qqpartindex", "0"),
            ("qqpartbyteoffset", "0"),
            ("qqchunksize", "5"),
            ("qqtotalparts", "1"),
            ("qqtotalfilesize", "5"),
        ];
        let fields = fields.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let (field, file_name) = ("qqfile", "blob");
        let part = FilePart::Named { field, file_name };
        multipart("/upload", form(&fields, part, b"hello"))
    };
    let of_resumable_js = || File::new("a.txt", 5).multipart(1);
    for request in [
        &of_fine_uploader as &dyn Fn() -> Request<Vec<u8>>,
        &of_resumable_js,
    ] {
        let first = client.send(request()).await;
        assert_eq!((first.status, first.header("set-cookie")), (200, "a=1"));
        let second = client.send(request()).await;
        assert_eq!(second.status, 200);
        assert!(!second.headers.contains_key("set-cookie"), "{second:?}");
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

/// A store that takes a claim with the first chunk, and returns it when another request has found
/// the upload claimed.
#[derive(Clone, Debug, Default)]
struct ClaimsEarly {
    inner: MemoryStore,
    claimed: Arc<Notify>,
    is_busy: Arc<Notify>,
}

impl Store for ClaimsEarly {
    type Claim = <MemoryStore as Store>::Claim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        self.inner.create(upload).await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.inner.write(upload, offset, body).await
    }

    async fn write_and_claim(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<(Progress, Option<Self::Claim>), StoreError> {
        let is_new = self.inner.status(&upload.id).await?.is_none();
        let progress = self.write(upload, offset, body).await?;
        match self.inner.claim(&body.describe(upload)).await? {
            Claimed::Won(claim) if is_new => {
                self.claimed.notify_one();
                self.is_busy.notified().await;
                Ok((progress, Some(claim)))
            }
            _ => Ok((progress, None)),
        }
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.inner.status(id).await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<Self::Claim>, StoreError> {
        let claimed = self.inner.claim(upload).await?;
        if let Claimed::Busy = claimed {
            self.is_busy.notify_one();
        }
        Ok(claimed)
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.inner.remove(id).await
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        self.inner.list(filter, after).await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        self.inner.sweep(expiry).await
    }
}

/// Another request is about to deliver when the store has claimed the upload for the first one. A
/// second claim would count an attempt without a delivery.
#[tokio::test]
async fn a_claim_of_a_chunk_is_used_by_its_request() {
    let store = ClaimsEarly::default();
    let layer = ResumableLayer::new(store.clone())
        .with_delivery(Delivery::default().with_timeout(Duration::from_secs(10)));
    let (addr, gate) = gated(layer).await;
    gate.open.add_permits(1);
    let file = File::new("a.txt", 5);
    let send = |request| async move { Client::connect(addr).await.send(request).await };
    let first = tokio::spawn(send(file.multipart(1)));
    store.claimed.notified().await;
    let second = send(file.multipart(1)).await;
    for answer in [first.await.unwrap(), second] {
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.body.ends_with(" 1"), "{answer:?}");
    }
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
    for inner in [400, 409, 410, 413, 415, 422, 451] {
        let removed = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&removed);
        let server = Server::answering(
            |layer| {
                layer.with_events(move |event| {
                    if let Event::FileRemoved { upload, status, .. } = event {
                        let status = status.map(|status| status.as_u16());
                        seen.lock().unwrap().push((upload.length, status));
                    }
                })
            },
            move |_| (StatusCode::from_u16(inner).unwrap(), "no good".into()),
        )
        .await;
        let mut client = server.client().await;
        let file = File::new("a.txt", 25);
        client.send(file.multipart(1)).await;
        // The client has lost the first answer.
        for _ in 0..2 {
            let answer = client.send(file.multipart(2)).await;
            let seen = if inner == 415 { 415 } else { 400 };
            assert_eq!((answer.status, answer.body.as_str()), (seen, "no good"));
            if inner != seen {
                assert_eq!(answer.headers["x-resumable-status"], inner.to_string());
            }
        }
        let deliveries = server.deliveries();
        assert_eq!(deliveries.len(), 1);
        assert!(!deliveries[0].upload.path().unwrap().exists());
        assert_eq!(*removed.lock().unwrap(), [(Some(25), Some(inner))]);
    }
}

/// What ends the record of a rejection: the client begins anew.
#[tokio::test]
async fn a_rejected_upload_can_be_sent_again() {
    let cancel = |file: &File| Request::delete(file.uri(1)).body(Vec::new()).unwrap();
    let probe = |file: &File| file.probe(2);
    let first = |file: &File| file.octets(1);
    type Ask<'a> = &'a dyn Fn(&File) -> Request<Vec<u8>>;
    let again: [Ask<'_>; 3] = [&cancel, &probe, &first];
    for again in again {
        let server = Server::answering(
            |layer| layer,
            |n| match n {
                1 => (StatusCode::UNPROCESSABLE_ENTITY, "no good".into()),
                _ => (StatusCode::OK, "good".into()),
            },
        )
        .await;
        let mut client = server.client().await;
        let file = File::new("a.txt", 25);
        client.send(file.octets(1)).await;
        assert_eq!(client.send(file.octets(2)).await.body, "no good");
        client.send(again(&file)).await;
        // In any order.
        let answers = [
            client.send(file.octets(2)).await,
            client.send(file.octets(1)).await,
        ];
        assert_eq!(answers[1].body, "good", "{answers:?}");
        let deliveries = server.deliveries();
        let ids = deliveries.iter().map(|delivery| delivery.upload.id());
        assert_eq!(ids.collect::<HashSet<_>>().len(), 2);
        assert!(deliveries[1].content == file.content);
    }
}

/// The session has expired, or a route is missing: the file stays, and the inner service is asked
/// again by whichever request comes next.
#[tokio::test]
async fn an_upload_that_is_refused_now_is_kept() {
    for refusal in [
        401, 402, 403, 404, 405, 406, 407, 421, 423, 424, 426, 428, 431, 499,
    ] {
        let server = Server::answering(
            |layer| layer,
            move |n| match n {
                1..=3 => (StatusCode::from_u16(refusal).unwrap(), "sign in".into()),
                _ => (StatusCode::OK, "fine".into()),
            },
        )
        .await;
        let mut client = server.client().await;
        let file = File::new("a.txt", 25);
        client.send(file.octets(1)).await;
        for request in [file.octets(2), file.octets(1), file.multipart(2)] {
            let answer = client.send(request).await;
            assert_eq!((answer.status, answer.body.as_str()), (400, "sign in"));
            let original = &answer.headers["x-resumable-status"];
            assert_eq!(*original, refusal.to_string());
            // A client that asks has to send a chunk, and so asks the inner service again.
            assert_eq!(client.send(file.probe(1)).await.status, 204);
        }
        let mut request = file.octets(2);
        let token = "good".parse().unwrap();
        request.headers_mut().insert("authorization", token);
        let answer = client.send(request).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "fine"));
        let deliveries = server.deliveries();
        let attempts = deliveries.iter().map(|delivery| delivery.upload.attempt());
        assert_eq!(attempts.collect::<Vec<_>>(), [1, 2, 3, 4], "{refusal}");
        assert_eq!(deliveries[3].headers["authorization"], "good");
        assert!(deliveries.iter().all(|d| d.content == file.content));
    }
}

/// A client that was refused now may remove the upload.
#[tokio::test]
async fn an_upload_that_is_refused_now_can_be_removed() {
    let server = Server::answering(|layer| layer, |_| (StatusCode::FORBIDDEN, "no".into())).await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 15);
    assert_eq!(client.send(file.octets(1)).await.status, 400);
    let cancel = Request::delete(file.uri(1)).body(Vec::new()).unwrap();
    assert_eq!(client.send(cancel).await.status, 204);
    assert!(!server.deliveries()[0].upload.path().unwrap().exists());
    let status = client
        .get(&format!("{}&resumableStatus", file.uri(1)))
        .await;
    assert_eq!(status.json()["state"], "absent");
}

/// A request that waits for the delivery of another one is not refused with it.
#[tokio::test]
async fn a_refusal_is_about_one_request() {
    let calls = Arc::new(AtomicUsize::new(0));
    let entered = Arc::new(Semaphore::new(0));
    let inner = {
        let (calls, entered) = (Arc::clone(&calls), Arc::clone(&entered));
        service_fn(move |request: Request<Incoming>| {
            let is_good = request.headers().contains_key("authorization");
            calls.fetch_add(1, Ordering::SeqCst);
            let entered = Arc::clone(&entered);
            async move {
                if !is_good {
                    entered.acquire().await.unwrap().forget();
                }
                let mut answer = Response::new(Full::<Bytes>::default());
                if !is_good {
                    *answer.status_mut() = StatusCode::UNAUTHORIZED;
                }
                Ok::<_, Infallible>(answer)
            }
        })
    };
    let store = MemoryStore::default();
    // The second request has reached the layer when it asks for admission.
    let asked = Arc::new(Notify::new());
    let admitted = Arc::clone(&asked);
    let layer = ResumableLayer::new(store).with_admission(move |admission| {
        if admission.parts().headers.contains_key("authorization") {
            admitted.notify_one();
        }
        async { Ok(()) }
    });
    let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
    let file = File::new("a.txt", 5);
    let send = |request| async move { Client::connect(addr).await.send(request).await.status };
    let old = tokio::spawn(send(file.octets(1)));
    while calls.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let mut request = file.octets(1);
    let token = "good".parse().unwrap();
    request.headers_mut().insert("authorization", token);
    let new = tokio::spawn(send(request));
    asked.notified().await;
    // Long enough for the second request to wait for the first one.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    entered.add_permits(1);
    assert_eq!(old.await.unwrap(), 400);
    assert_eq!(new.await.unwrap(), 200);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// FilePond asks how many bytes are stored, and sends nothing more if these are all.
#[tokio::test]
async fn a_probe_delivers_if_its_client_sends_nothing_more() {
    let server = Server::answering(
        |layer| {
            layer
                .with_protocol(Dialect::filepond())
                .with_hold_back(QUICK)
        },
        |n| match n {
            1 | 2 => (StatusCode::BAD_GATEWAY, "no".into()),
            3 => (StatusCode::UNAUTHORIZED, "sign in".into()),
            _ => (StatusCode::OK, "fine".into()),
        },
    )
    .await;
    let mut client = server.client().await;
    let fields = [("filepond".to_owned(), "{}".to_owned())];
    let mut create = multipart("/upload", form(&fields, FilePart::None, b""));
    let length = "10".parse().unwrap();
    create.headers_mut().insert("upload-length", length);
    let url = format!("/upload?patch={}", client.send(create).await.body);
    let patch = Request::patch(&url)
        .header("upload-offset", "0")
        .header("upload-length", "10")
        .header("upload-name", "a.txt")
        .header("content-type", "application/offset+octet-stream")
        .body(b"0123456789".to_vec())
        .unwrap();
    assert_eq!(client.send(patch).await.status, 503);
    let mut probe = async || {
        client
            .send(Request::head(&url).body(Vec::new()).unwrap())
            .await
    };
    assert_eq!(probe().await.status, 503);
    let refused = probe().await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.headers["x-resumable-status"], "401");
    for _ in 0..2 {
        let stored = probe().await;
        assert_eq!(stored.status, 200);
        assert_eq!(stored.headers["upload-offset"], "10");
    }
    let deliveries = server.deliveries();
    assert_eq!(deliveries.len(), 4);
    let named = |delivery: &Delivered| delivery.upload.file_name() == Some("a.txt");
    assert!(deliveries.iter().all(named));
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
