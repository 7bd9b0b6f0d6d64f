//! Events: what no client is told, or not in full.

use std::{
    convert::Infallible,
    fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use object_store::memory::InMemory;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{
    BucketStore, CompletedUpload, Delivery, DigestAlgorithm, Digests, ErrorKind, Event, FileStore,
    Limits, MemoryStore, Refusal, ResumableLayer, Upload, UploadId,
    store::{
        ChunkBody, Claim, Claimed, Expiry, Filter, Page, Progress, Record, Sealed, Status, Store,
        StoreError, Swept,
    },
};

use crate::common::{LIFE, Told, Traced};

type Body = Full<bytes::Bytes>;

/// A store of which one method fails, this many times.
#[derive(Clone, Default)]
struct Broken {
    store: MemoryStore,
    fault: Arc<Mutex<(&'static str, usize)>>,
    kind: Arc<Mutex<Option<io::ErrorKind>>>,
}

impl Broken {
    fn fails(&self, method: &'static str, times: usize) {
        *self.fault.lock().unwrap() = (method, times);
    }

    fn with_kind(self, kind: io::ErrorKind) -> Self {
        *self.kind.lock().unwrap() = Some(kind);
        self
    }

    fn check(&self, method: &str) -> Result<(), StoreError> {
        let mut fault = self.fault.lock().unwrap();
        if fault.0 != method || fault.1 == 0 {
            return Ok(());
        }
        fault.1 -= 1;
        let kind = self.kind.lock().unwrap();
        let kind = kind.unwrap_or(io::ErrorKind::PermissionDenied);
        Err(io::Error::new(kind, "no access to partial/7f").into())
    }
}

impl fmt::Debug for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Broken")
    }
}

impl Store for Broken {
    type Claim = BrokenClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        self.store.create(upload).await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.check("write")?;
        self.store.write(upload, offset, body).await
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.check("status")?;
        self.store.status(id).await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<BrokenClaim>, StoreError> {
        self.check("claim")?;
        Ok(match self.store.claim(upload).await? {
            Claimed::Won(claim) => Claimed::Won(BrokenClaim {
                claim,
                store: self.clone(),
            }),
            Claimed::Busy => Claimed::Busy,
            Claimed::Settled(record) => Claimed::Settled(record),
            Claimed::Incomplete => Claimed::Incomplete,
        })
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.check("remove")?;
        self.store.remove(id).await
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        self.check("list")?;
        self.store.list(filter, after).await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        self.check("sweep")?;
        self.store.sweep(expiry).await
    }
}

struct BrokenClaim {
    claim: <MemoryStore as Store>::Claim,
    store: Broken,
}

impl Claim for BrokenClaim {
    fn sealed(&self) -> &Sealed {
        self.claim.sealed()
    }

    async fn settle(&mut self, record: &Record) -> Result<(), StoreError> {
        self.store.check("settle")?;
        self.claim.settle(record).await
    }
}

fn telling(layer: ResumableLayer) -> (ResumableLayer, Told) {
    let told = Told::default();
    let layer = told.of(layer.with_hold_back(Duration::ZERO));
    (layer, told)
}

fn request(method: Method, list: &str) -> Request<Body> {
    let query = "resumableChunkNumber=1&resumableChunkSize=10&resumableTotalSize=5\
                 &resumableIdentifier=id&resumableFilename=a.txt";
    let body = if method == Method::POST { "hello" } else { "" };
    Request::builder()
        .method(method)
        .uri(format!("/upload?{query}{list}"))
        .header("content-type", "application/octet-stream")
        .body(Full::from(body))
        .unwrap()
}

/// Whichever call of the store fails, the operator is told once, with the whole chain.
#[tokio::test]
async fn each_fault_of_the_store_is_told() {
    for (method, asked, list, status) in [
        ("write", Method::POST, "", 503),
        ("claim", Method::POST, "", 503),
        ("settle", Method::POST, "", 200),
        ("status", Method::GET, "", 503),
        ("status", Method::GET, "&resumableStatus", 503),
        ("list", Method::GET, "&unfinished", 503),
        ("remove", Method::DELETE, "", 503),
        // The limits are counted by a list of all uploads.
        ("list", Method::POST, "", 503),
    ] {
        let store = Broken::default();
        let layer = ResumableLayer::new(store.clone()).with_list_parameter("unfinished");
        let (layer, told) = telling(layer);
        let app = layer.layer(service_fn(async |_: Request<Body>| {
            Ok::<_, Infallible>(Response::new(Body::default()))
        }));
        store.fails(method, 1);
        let request = request(asked.clone(), list);
        let response = app.oneshot(request).await.unwrap();
        let case = format!("{method} {asked} {list}");
        assert_eq!(response.status(), status, "{case}");
        let told = told.take_faults();
        assert_eq!(told.len(), 1, "{case}: {told:?}");
        assert_eq!(told[0].0, "store_failed", "{case}");
        assert!(
            told[0].1.contains("no access to partial/7f"),
            "{case}: {told:?}"
        );
        assert!(!told[0].1.contains('\n'), "{case}: {told:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn faults_of_the_background_are_told() {
    let store = Broken::default();
    let (layer, told) = telling(ResumableLayer::new(store.clone()));
    let app =
        service_fn(async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Body::default())));
    let uploads = layer.uploads();
    let take = || told.take_faults();
    let make_request = |_: &Upload| Request::post("/upload").body(Body::default());

    store.fails("list", 1);
    let failed = uploads.deliver_all(app, make_request).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Storage);
    assert_eq!(take()[0].0, "store_failed");

    // It goes on after a fault.
    for (method, kind) in [("list", "store_failed"), ("sweep", "sweep_failed")] {
        store.fails(method, 2);
        let rounds = Duration::from_secs(35);
        let period = Duration::from_secs(10);
        if method == "list" {
            let every = uploads.deliver_every(period, app, make_request);
            assert!(tokio::time::timeout(rounds, every).await.is_err());
        } else {
            let every = uploads.sweep_every(period);
            assert!(tokio::time::timeout(rounds, every).await.is_err());
        }
        let told = take();
        let kinds: Vec<_> = told.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [kind, kind], "{told:?}");
        assert!(told[0].1.contains("no access"), "{told:?}");
    }
}

/// The record of a delivery is written until that succeeds.
#[tokio::test(start_paused = true)]
async fn a_late_record_is_told() {
    let store = Broken::default();
    let (layer, told) = telling(ResumableLayer::new(store.clone()));
    let app = layer.layer(service_fn(async |_: Request<Body>| {
        Ok::<_, Infallible>(Response::new(Body::default()))
    }));
    store.fails("settle", 3);
    let response = app.oneshot(request(Method::POST, "")).await.unwrap();
    assert_eq!(response.status(), 200);
    // All of them say the same.
    let late = told.all().pop().unwrap();
    assert_eq!(late.0, "record_late");
    assert!(late.1.contains("in try 4"), "{late:?}");
    let told = told.take_faults();
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!(told[0].0, "store_failed");
}

/// The cause of a failed delivery, as far as its type allows.
#[tokio::test]
async fn the_cause_of_a_failed_delivery_is_told() {
    #[derive(Debug)]
    struct Unknown;
    async fn cause<E: Send + 'static>(
        fail: impl Fn() -> Result<Response<Body>, E> + Clone + Send + 'static,
    ) -> String {
        let (layer, told) = telling(ResumableLayer::new(MemoryStore::default()));
        let app = layer.layer(service_fn(move |_: Request<Body>| {
            let fail = fail.clone();
            async move { fail() }
        }));
        let response = app.oneshot(request(Method::POST, "")).await;
        assert!(response.is_ok_and(|response| response.status() == 503));
        let told = told.take_faults();
        assert_eq!(told.len(), 1, "{told:?}");
        assert_eq!(told[0].0, "delivery_failed");
        told[0].1.clone()
    }
    let boxed = || Err::<_, Box<dyn std::error::Error + Send + Sync>>("the pool is closed".into());
    assert!(cause(boxed).await.contains("the pool is closed"));
    let io = || Err(io::Error::other("the disk is gone"));
    assert!(cause(io).await.contains("the disk is gone"));
    assert!(cause(|| Err("a text")).await.contains("a text"));
    assert!(cause(|| Err(String::from("owned"))).await.contains("owned"));
    assert!(cause(|| Err(Unknown)).await.contains("Unknown"));
    let panics = || -> Result<_, Infallible> { panic!("index {} of 3", 7) };
    assert!(cause(panics).await.contains("a panic: index 7 of 3"));
    let answers = || {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::BAD_GATEWAY;
        Ok::<_, Infallible>(response)
    };
    assert!(cause(answers).await.contains("502 Bad Gateway"));
}

/// A panic after its client has gone, and after the time of the client is over.
#[tokio::test(start_paused = true)]
async fn a_late_panic_is_told() {
    let (layer, told) = telling(ResumableLayer::new(MemoryStore::default()));
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let app = layer.layer(service_fn(move |_: Request<Body>| {
        let call = counted.fetch_add(1, SeqCst);
        async move {
            tokio::time::sleep(Duration::from_secs(90)).await;
            assert!(call > 0, "too late");
            Ok::<_, Infallible>(Response::new(Body::default()))
        }
    }));
    let response = app
        .clone()
        .oneshot(request(Method::POST, ""))
        .await
        .unwrap();
    assert_eq!(response.status(), 503);
    layer.uploads().drain().await;
    {
        // The request did not wait that long.
        let told = told.take_faults();
        let names: Vec<_> = told.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, ["refused", "delivery_failed"]);
        assert!(told[1].1.contains("too late"), "{told:?}");
    }
    // The claim was released.
    let _ = app.oneshot(request(Method::POST, "")).await.unwrap();
    layer.uploads().drain().await;
    assert_eq!(calls.load(SeqCst), 2);
}

/// What a client and a sweep remove.
#[tokio::test]
async fn each_removal_is_told() {
    let (layer, told) = telling(ResumableLayer::new(MemoryStore::default()));
    let app = layer.layer(service_fn(async |_: Request<Body>| {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::FORBIDDEN;
        Ok::<_, Infallible>(response)
    }));
    let send = async |method| app.clone().oneshot(request(method, "")).await.unwrap();
    assert_eq!(send(Method::POST).await.status(), 400);
    assert_eq!(told.take_faults(), []);
    for expected in [&["file_removed"][..], &[]] {
        assert_eq!(send(Method::DELETE).await.status(), 204);
        // The second time there is nothing.
        assert_eq!(told.names(), expected);
        told.take();
    }
    assert_eq!(send(Method::POST).await.status(), 400);
    let all = tower_resumable::Retention::default().with_undelivered(Duration::ZERO);
    let sweeping = layer.with_retention(all).uploads();
    while sweeping.sweep().await.unwrap().undelivered == 0 {}
    let told = told.take_faults();
    assert_eq!(told[0].0, "swept");
    assert!(told[0].1.contains("1 undelivered"), "{told:?}");
}

/// The requests of this upload: its chunks have ten bytes, its length is twenty.
fn part(number: usize, extra: &str) -> Request<Body> {
    let query = format!(
        "resumableChunkNumber={number}&resumableChunkSize=10&resumableTotalSize=20\
         &resumableIdentifier=id&resumableFilename=a.txt{extra}"
    );
    Request::post(format!("/upload?{query}"))
        .header("content-type", "application/octet-stream")
        .body(Full::from(vec![b'0' + number as u8; 10]))
        .unwrap()
}

type Events = Vec<(String, Upload)>;

/// The events of a layer with their values.
fn values(layer: ResumableLayer) -> (ResumableLayer, Arc<Mutex<Events>>) {
    let all = Arc::<Mutex<Events>>::default();
    let seen = Arc::clone(&all);
    let layer = layer.with_events(move |event| {
        let (text, upload) = match event {
            Event::Created { upload } => ("created".to_owned(), upload),
            Event::Resumed { upload, received } => (format!("resumed {received}"), upload),
            Event::Stored {
                upload,
                offset,
                bytes,
                duplicate,
                progress,
                elapsed,
            } => {
                assert!(*elapsed < Duration::from_secs(60));
                let received = progress.received;
                (
                    format!("stored {offset} {bytes} {duplicate} {received}"),
                    upload,
                )
            }
            Event::Completed { upload } => ("completed".to_owned(), upload),
            Event::DeliveryStarted { upload, attempt } => (format!("started {attempt}"), upload),
            Event::DeliveryEnded {
                upload,
                attempt,
                status,
                verdict,
                elapsed,
                since_last_byte,
            } => {
                let since = since_last_byte.is_some_and(|since| since >= *elapsed);
                let status = status.as_u16();
                (
                    format!("ended {attempt} {status} {verdict:?} {since}"),
                    upload,
                )
            }
            other => panic!("{other}"),
        };
        seen.lock().unwrap().push((text, (*upload).clone()));
    });
    (layer, all)
}

async fn ok(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::default()))
}

/// The values of all events of an upload, with each store.
#[tokio::test]
async fn the_life_of_an_upload() {
    async fn check<S: Store>(open: impl AsyncFn() -> S) {
        let (layer, all) = values(ResumableLayer::new(open().await));
        let take = |all: &Mutex<Events>| -> Vec<String> {
            let taken = std::mem::take(&mut *all.lock().unwrap());
            taken.into_iter().map(|(text, _)| text).collect()
        };
        let app = layer.layer(service_fn(ok));
        let send = async |request| app.clone().oneshot(request).await.unwrap().status();
        assert_eq!(send(part(1, "")).await, 200);
        assert_eq!(take(&all), ["created", "stored 0 10 0 10"]);
        assert_eq!(send(part(1, "")).await, 200);
        assert_eq!(take(&all), ["stored 0 10 10 10"]);
        drop(app);
        drop(layer);

        // After a restart. The second half of it is new.
        let (layer, all) = values(ResumableLayer::new(open().await));
        let app = layer.layer(service_fn(ok));
        let send = async |request| app.clone().oneshot(request).await.unwrap().status();
        let test = part(1, "").map(|_| Body::default());
        let (mut head, body) = test.into_parts();
        head.method = Method::GET;
        assert_eq!(send(Request::from_parts(head, body)).await, 200);
        assert_eq!(take(&all), [""; 0]);
        assert_eq!(send(part(2, "")).await, 200);
        assert_eq!(
            take(&all),
            [
                "resumed 10",
                "stored 10 10 0 20",
                "completed",
                "started 1",
                "ended 1 200 Delivered true"
            ]
        );
        // A late chunk of a delivered upload.
        assert_eq!(send(part(2, "")).await, 200);
        assert_eq!(take(&all), ["stored 10 10 10 20"]);
    }
    let store = MemoryStore::default();
    check(async || store.clone()).await;
    let dir = tempfile::tempdir().unwrap();
    check(async || FileStore::open(dir.path()).unwrap()).await;
    let engine = Arc::new(InMemory::new());
    let open = async || {
        let builder = BucketStore::builder(Arc::clone(&engine));
        builder.with_self_test(false).open().await.unwrap()
    };
    check(open).await;
}

/// A client that comes back after a minute, and one that does not.
#[tokio::test(start_paused = true)]
async fn a_return_is_told_once() {
    let (layer, all) = values(ResumableLayer::new(MemoryStore::default()));
    let app = layer.layer(service_fn(ok));
    for (pause, expected) in [
        (0, &["created", "stored 0 10 0 10"][..]),
        (59, &["stored 0 10 10 10"]),
        (60, &["resumed 10", "stored 0 10 10 10"]),
        (1, &["stored 0 10 10 10"]),
    ] {
        tokio::time::advance(Duration::from_secs(pause)).await;
        let response = app.clone().oneshot(part(1, "")).await.unwrap();
        assert_eq!(response.status(), 200);
        let told = std::mem::take(&mut *all.lock().unwrap());
        let told: Vec<_> = told.iter().map(|(text, _)| text.as_str()).collect();
        assert_eq!(told, expected);
    }
}

/// An empty file, and chunks of the same upload that arrive at the same time.
#[tokio::test]
async fn an_upload_is_created_and_completed_once() {
    let (layer, all) = values(ResumableLayer::new(MemoryStore::default()));
    let app = layer.layer(service_fn(ok));
    let both = [1, 2].map(|number| app.clone().oneshot(part(number, "")));
    for response in futures_util::future::join_all(both).await {
        assert_eq!(response.unwrap().status(), 200);
    }
    let empty = "/upload?resumableChunkNumber=1&resumableChunkSize=10&resumableTotalSize=0\
                 &resumableIdentifier=0";
    let empty = Request::post(empty).header("content-type", "application/octet-stream");
    let empty = app.oneshot(empty.body(Body::default()).unwrap()).await;
    assert_eq!(empty.unwrap().status(), 200);
    let all = all.lock().unwrap();
    for length in [0, 20] {
        let told = all
            .iter()
            .filter(|(_, upload)| upload.length == Some(length));
        let told: Vec<_> = told.map(|(text, _)| text.as_str()).collect();
        for once in ["created", "completed", "started 1"] {
            let count = told.iter().filter(|text| **text == once).count();
            assert_eq!(count, 1, "{length} {once}: {told:?}");
        }
    }
}

/// What a layer has and does, in each state of an upload.
#[tokio::test]
async fn counts_are_of_this_moment() {
    let limits = Delivery::default().with_max_attempts(2);
    let layer = ResumableLayer::new(MemoryStore::default())
        .with_hold_back(Duration::ZERO)
        .with_delivery(limits);
    let uploads = layer.uploads();
    let counts = || {
        let it = uploads.counts();
        let unfinished = it.unfinished_uploads.zip(it.unfinished_bytes);
        let work = [
            it.running,
            it.bodies,
            it.deliveries,
            it.waiting,
            it.set_aside,
        ];
        (unfinished, work)
    };
    assert_eq!(counts(), (None, [0; 5]));
    let (entered, mut has_entered) = tokio::sync::mpsc::unbounded_channel();
    let app = layer.layer(service_fn(move |_: Request<AnyBody>| {
        let (send, answer) = tokio::sync::oneshot::channel::<u16>();
        entered.send(send).unwrap();
        async move { self::answer(answer.await.unwrap()) }
    }));
    let (request, pieces) = slowly(part(1, ""));
    let receiving = tokio::spawn(app.clone().oneshot(request));
    until(|| uploads.counts().unfinished_uploads == Some(1)).await;
    assert_eq!(counts(), (Some((1, 20)), [1, 1, 0, 0, 0]));
    pieces.send(Ok(Frame::data("0123456789".into()))).unwrap();
    drop(pieces);
    assert_eq!(receiving.await.unwrap().unwrap().status(), 200);
    assert_eq!(counts(), (Some((1, 20)), [0; 5]));
    for (status, waiting, set_aside) in [(500, 1, 0), (500, 0, 1)] {
        let delivering = tokio::spawn(app.clone().oneshot(any(part(2, ""))));
        let answer = has_entered.recv().await.unwrap();
        let before = counts();
        assert_eq!((before.0, &before.1[..3]), (Some((1, 20)), &[2, 0, 1][..]));
        answer.send(status).unwrap();
        delivering.await.unwrap().unwrap();
        assert_eq!(counts(), (Some((1, 20)), [0, 0, 0, waiting, set_aside]));
    }
    let page = uploads.list(&Filter::complete(), None).await.unwrap();
    let upload = page.uploads[0].upload.clone();
    let request = Request::post("/upload").body(Body::default()).unwrap();
    let delivering = uploads.deliver(upload, service_fn(async |_| answer(200)), any(request));
    assert_eq!(delivering.await.unwrap().status(), 200);
    assert_eq!(counts(), (Some((0, 0)), [0; 5]));
}

/// A hook that always panics, and whose panics panic again when they are dropped.
#[tokio::test]
async fn a_hook_that_panics_harms_no_upload() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("again");
        }
    }
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let layer = ResumableLayer::new(MemoryStore::default()).with_events(move |_| {
        counted.fetch_add(1, SeqCst);
        std::panic::panic_any(Bomb);
    });
    let app = layer.layer(service_fn(ok));
    for number in [1, 2] {
        let response = app.clone().oneshot(part(number, "")).await.unwrap();
        assert_eq!(response.status(), 200);
    }
    let refused = Request::post("/upload?resumableIdentifier=1").body(Body::default());
    let refused = app.oneshot(refused.unwrap()).await.unwrap();
    assert_eq!(refused.status(), 400);
    // Each event was told once.
    assert_eq!(calls.load(SeqCst), 7);
}

/// A hook that blocks at any event of one upload holds up no other one, and does no harm when it
/// goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_slow_hook_holds_up_no_other_upload() {
    for name in [
        "created",
        "stored",
        "completed",
        "delivery_started",
        "delivery_ended",
    ] {
        let (blocked, mut is_blocked) = tokio::sync::mpsc::unbounded_channel();
        let (release, released) = std::sync::mpsc::channel();
        let released = Mutex::new(Some(released));
        let told = Told::default();
        let seen = told.clone();
        let layer = ResumableLayer::new(MemoryStore::default()).with_events(move |event| {
            seen.push(event);
            let released = (event.name() == name).then(|| released.lock().unwrap().take());
            if let Some(released) = released.flatten() {
                blocked.send(()).unwrap();
                released.recv().unwrap();
            }
        });
        let app = layer.layer(service_fn(ok));
        let slow = tokio::spawn(app.clone().oneshot(whole("slow")));
        is_blocked.recv().await.unwrap();
        let other = tokio::spawn(app.oneshot(whole("other")));
        let other = tokio::time::timeout(Duration::from_secs(20), other).await;
        let other = other.unwrap_or_else(|_| panic!("{name}")).unwrap();
        assert_eq!(other.unwrap().status(), 200, "{name}");
        assert!(layer.uploads().counts().running > 0);
        release.send(()).unwrap();
        assert_eq!(slow.await.unwrap().unwrap().status(), 200, "{name}");
        layer.uploads().drain().await;
        assert_eq!(layer.uploads().counts().running, 0);
        assert_eq!(told.take_faults(), []);
    }
}

fn whole(identifier: &str) -> Request<Body> {
    let query = format!(
        "resumableChunkNumber=1&resumableChunkSize=10&resumableTotalSize=5\
         &resumableIdentifier={identifier}"
    );
    Request::post(format!("/upload?{query}"))
        .header("content-type", "application/octet-stream")
        .body(Full::from("hello"))
        .unwrap()
}

type AnyBody = UnsyncBoxBody<bytes::Bytes, io::Error>;
type Pieces = tokio::sync::mpsc::UnboundedSender<io::Result<Frame<bytes::Bytes>>>;

fn any(request: Request<Body>) -> Request<AnyBody> {
    request.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

/// The same request with a body that comes in pieces.
fn slowly(request: Request<Body>) -> (Request<AnyBody>, Pieces) {
    let (pieces, received) = tokio::sync::mpsc::unbounded_channel();
    let stream = tokio_stream::wrappers::UnboundedReceiverStream::new(received);
    let body = StreamBody::new(stream).boxed_unsync();
    (request.map(|_| body), pieces)
}

/// Breaks one thing at a time, and prints which event tells it, how loud, and with which fields:
/// once, to the hook and to the crate `tracing`.
///
/// ```text
/// cargo test --test it events::table -- --nocapture
/// ```
#[tokio::test]
async fn table() {
    let mut table = Table::default();
    let broken = |method, kind: io::ErrorKind| {
        let store = Broken::default().with_kind(kind);
        store.fails(method, 1);
        store
    };
    let plain = || Broken::default();
    let same = |layer: ResumableLayer| layer;

    for (fault, kind) in [
        ("the store is read-only", io::ErrorKind::ReadOnlyFilesystem),
        ("the store is full", io::ErrorKind::StorageFull),
        ("the store has too much to do", io::ErrorKind::WouldBlock),
        ("a write fails", io::ErrorKind::Other),
    ] {
        let case = table.case(fault, broken("write", kind), same);
        case.send(part(1, "")).await;
        case.tells(&["store_failed"]);
    }
    let dir = tempfile::tempdir().unwrap();
    let case = table.case(
        "the folder of the store is gone",
        FileStore::open(dir.path()).unwrap(),
        same,
    );
    drop(dir);
    case.send(part(1, "")).await;
    case.tells(&["store_failed"]);
    for (fault, method, request) in [
        (
            "a question fails",
            "status",
            part(1, "").method(Method::GET),
        ),
        (
            "a removal fails",
            "remove",
            part(1, "").method(Method::DELETE),
        ),
        ("the limits cannot be counted", "list", part(1, "")),
        ("an upload cannot be claimed", "claim", whole("id")),
    ] {
        let case = table.case(fault, broken(method, io::ErrorKind::Other), same);
        case.send(request).await;
        case.tells(&["store_failed"]);
    }
    let case = table.case(
        "a record cannot be written",
        broken("settle", io::ErrorKind::Other),
        same,
    );
    case.send(whole("id")).await;
    case.tells(&["store_failed", "record_late"]);
    let case = table.case("a sweep fails", broken("sweep", io::ErrorKind::Other), same);
    let sweeps = case.layer.uploads().sweep_every(Duration::from_secs(9));
    assert!(
        tokio::time::timeout(Duration::from_millis(1), sweeps)
            .await
            .is_err()
    );
    case.tells(&["sweep_failed"]);

    type Answer = fn() -> io::Result<Response<AnyBody>>;
    let failing: [(&str, Answer); 4] = [
        ("the handler answers with 503", || answer(503)),
        ("the handler fails", || {
            Err(io::Error::other("the pool is closed"))
        }),
        ("the handler panics", || panic!("index 7 of 3\nline 2")),
        ("the answer breaks off", || {
            let error = io::Error::other("the template is gone");
            let body = StreamBody::new(stream::iter([Err(error)]));
            Ok(Response::new(body.boxed_unsync()))
        }),
    ];
    for (fault, answer) in failing {
        let case = table.case(fault, plain(), same);
        case.send_to(whole("id"), answer).await;
        case.tells(&["delivery_failed"]);
    }
    let once = Delivery::default().with_max_attempts(1);
    let case = table.case("the last attempt fails", plain(), |layer| {
        layer.with_delivery(once)
    });
    case.send_to(whole("id"), || answer(500)).await;
    case.tells(&["delivery_failed", "set_aside"]);
    let case = table.case("the handler rejects the file", plain(), same);
    case.send_to(whole("id"), || answer(422)).await;
    case.tells(&["file_removed"]);
    let case = table.case("the application makes no request", plain(), same);
    case.send_to(whole("id"), || answer(502)).await;
    case.told.take();
    case.traced.take();
    let make_request = |_: &Upload| Err::<Request<AnyBody>, _>("the user is gone");
    let service = service_fn(async |_| answer(200));
    case.layer
        .uploads()
        .deliver_all(service, make_request)
        .await
        .unwrap();
    case.tells(&["delivery_failed"]);

    let no_time = Delivery::default().with_timeout(Duration::from_millis(1));
    let case = table.case("the handler is slow", plain(), |layer| {
        layer.with_delivery(no_time)
    });
    let (finish, finished) = tokio::sync::watch::channel(false);
    let inner = service_fn(move |_: Request<AnyBody>| {
        let mut finished = finished.clone();
        async move {
            finished.wait_for(|is_so| *is_so).await.unwrap();
            answer(200)
        }
    });
    let request = any(whole("id"));
    let response = case.layer.layer(inner).oneshot(request).await.unwrap();
    assert_eq!(response.status(), 503);
    finish.send(true).unwrap();
    case.layer.uploads().drain().await;
    case.tells(&["refused"]);

    let limited = |limits: fn(Limits) -> Limits| {
        move |layer: ResumableLayer| layer.with_limits(limits(Limits::default()))
    };
    let case = table.case(
        "too many uploads",
        plain(),
        limited(|of| of.with_uploads(1)),
    );
    case.send(part(1, "")).await;
    case.send(whole("other")).await;
    case.tells(&["refused"]);
    let limit = limited(|of| of.with_unfinished_bytes(21));
    let case = table.case("too many unfinished bytes", plain(), limit);
    case.send(part(1, "")).await;
    case.send(whole("other")).await;
    case.tells(&["refused"]);
    let case = table.case(
        "a file that is too large",
        plain(),
        limited(|of| of.with_file_size(19)),
    );
    case.send(part(1, "")).await;
    case.tells(&["refused"]);
    let case = table.case(
        "no room for another body",
        plain(),
        limited(|of| of.with_bodies(1)),
    );
    let (stalled, pieces) = slowly(part(1, ""));
    let stalled = tokio::spawn(case.call(stalled));
    until(|| case.layer.uploads().counts().bodies == 1).await;
    case.send(whole("other")).await;
    case.tells(&["refused"]);
    pieces
        .send(Err(io::Error::other("connection reset")))
        .unwrap();
    stalled.await.unwrap();
    case.tells(&["interrupted"]);
    let fast = limited(|of| of.with_idle(Duration::from_millis(1)));
    let case = table.case("a body that stalls", plain(), fast);
    let (stalled, _pieces) = slowly(part(1, ""));
    case.call(stalled).await;
    case.tells(&["refused"]);

    let case = table.case("a field is missing", plain(), same);
    let incomplete = Request::post("/upload?resumableIdentifier=1").body(Body::default());
    case.send(incomplete.unwrap()).await;
    case.tells(&["refused"]);
    let case = table.case("the file has changed", plain(), same);
    case.send(part(1, "")).await;
    case.send(part(1, "").map(|_| Full::from("xxxxxxxxxx")))
        .await;
    case.tells(&["refused"]);
    let digests = Digests::default()
        .with_chunk_field("crc", DigestAlgorithm::Crc32)
        .with_file_field("file_crc", DigestAlgorithm::Crc32);
    let checked = |layer: ResumableLayer| layer.with_digests(digests.clone());
    let case = table.case("the digest of a chunk", plain(), checked);
    case.send(part(1, "&crc=00000000")).await;
    case.tells(&["refused"]);
    let case = table.case("the digest of a file", plain(), checked);
    case.send(part(1, "")).await;
    case.send(part(2, "&file_crc=00000000")).await;
    case.tells(&["file_removed"]);

    let refusal = || Refusal::new(StatusCode::FORBIDDEN, "members only");
    let case = table.case("the hook for scopes refuses", plain(), |layer| {
        layer.with_scope(move |_| Err(refusal()))
    });
    case.send(part(1, "")).await;
    case.tells(&["refused"]);
    let case = table.case("the admission hook refuses", plain(), |layer| {
        layer.with_admission(move |_| async move { Err(refusal()) })
    });
    case.send(part(1, "")).await;
    case.tells(&["refused"]);
    let sniffing = |layer: ResumableLayer| layer.with_sniff(move |_, _| Err(refusal()));
    let case = table.case("the first bytes are refused", plain(), sniffing);
    case.send(whole("id")).await;
    case.tells(&["refused"]);
    let case = table.case("the same, and others are stored", plain(), sniffing);
    for number in [2, 1] {
        let query = format!(
            "resumableChunkNumber={number}&resumableChunkSize=9000&resumableTotalSize=18000\
             &resumableIdentifier=id"
        );
        let chunk = Request::post(format!("/upload?{query}"))
            .header("content-type", "application/octet-stream")
            .body(Full::from(vec![b'0'; 9000]));
        case.send(chunk.unwrap()).await;
    }
    case.tells(&["file_removed"]);
    let case = table.case("the same, before the delivery", plain(), sniffing);
    case.send(part(1, "")).await;
    case.send(part(2, "")).await;
    case.tells(&["file_removed"]);

    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::builder(dir.path()).with_stall_timeout(Duration::from_millis(1));
    let case = table.case("a newer request takes over", store.open().unwrap(), same);
    let half = |body: AnyBody| {
        let query = "resumableChunkNumber=1&resumableChunkSize=1048576&resumableTotalSize=2097152\
                     &resumableIdentifier=id";
        let request = Request::post(format!("/upload?{query}"));
        let request = request.header("content-type", "application/octet-stream");
        request.body(body).unwrap()
    };
    let bytes = |len| Ok::<_, io::Error>(Frame::data(vec![b'0'; len].into()));
    // When the store asks for more, it has locked the range.
    let (asked, is_asked) = tokio::sync::oneshot::channel();
    let more = async {
        asked.send(()).unwrap();
        std::future::pending().await
    };
    let stream = stream::iter([bytes(1 << 19)]).chain(stream::once(more));
    let stalled = half(StreamBody::new(stream).boxed_unsync());
    let stalled = tokio::spawn(case.call(stalled));
    is_asked.await.unwrap();
    let stream = stream::iter([bytes(1 << 20)]);
    let newer = half(StreamBody::new(stream).boxed_unsync());
    case.call(newer).await;
    stalled.await.unwrap();
    case.tells(&["taken_over"]);
    let case = table.case("the client goes", plain(), same);
    let (stalled, pieces) = slowly(part(1, ""));
    pieces
        .send(Err(io::Error::other("connection reset")))
        .unwrap();
    case.call(stalled).await;
    case.tells(&["interrupted"]);
    let case = table.case("the client removes its upload", plain(), same);
    case.send(part(1, "")).await;
    case.send(part(1, "").method(Method::DELETE)).await;
    case.tells(&["file_removed"]);

    let case = table.case("a handler misses its upload", plain(), same);
    let app = axum::Router::new()
        .route("/other", axum::routing::post(async |_: CompletedUpload| ()))
        .layer(case.layer.clone());
    let request = Request::post("/other").body(axum::body::Body::empty());
    assert_eq!(app.oneshot(request.unwrap()).await.unwrap().status(), 500);
    case.tells(&["missing_upload"]);
    table.print();
}

fn answer(status: u16) -> io::Result<Response<AnyBody>> {
    let body = Body::default().map_err(|never| match never {});
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    Ok(response)
}

/// Waits until something is so.
async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

trait WithMethod {
    fn method(self, method: Method) -> Self;
}

impl WithMethod for Request<Body> {
    /// The same request with another method and without a body.
    fn method(mut self, method: Method) -> Self {
        *self.method_mut() = method;
        self.map(|_| Body::default())
    }
}

#[derive(Default)]
struct Table(Arc<Mutex<Vec<[String; 5]>>>);

impl Table {
    fn case(
        &mut self,
        fault: &'static str,
        store: impl Store,
        set: impl FnOnce(ResumableLayer) -> ResumableLayer,
    ) -> Case {
        let told = Told::default();
        let layer = ResumableLayer::new(store).with_hold_back(Duration::ZERO);
        let (traced, guard) = Traced::start();
        Case {
            fault,
            layer: told.of(set(layer)),
            told,
            traced,
            _guard: guard,
            rows: Arc::clone(&self.0),
        }
    }

    fn print(&self) {
        println!("| fault | event | level | fields | line |\n|---|---|---|---|---|");
        for row in &*self.0.lock().unwrap() {
            println!("| {} |", row.join(" | "));
        }
    }
}

/// One fault.
struct Case {
    fault: &'static str,
    layer: ResumableLayer,
    told: Told,
    traced: Traced,
    _guard: ::tracing::subscriber::DefaultGuard,
    rows: Arc<Mutex<Vec<[String; 5]>>>,
}

impl Case {
    async fn send(&self, request: Request<Body>) {
        self.send_to(request, || answer(200)).await;
    }

    async fn send_to(
        &self,
        request: Request<Body>,
        answer: impl Fn() -> io::Result<Response<AnyBody>> + Clone + Send + 'static,
    ) {
        let inner = service_fn(move |_: Request<AnyBody>| {
            let answer = answer.clone();
            async move { answer() }
        });
        let _ = self.layer.layer(inner).oneshot(any(request)).await.unwrap();
    }

    fn call(&self, request: Request<AnyBody>) -> impl Future<Output = ()> + Send + 'static {
        let app = self
            .layer
            .layer(service_fn(async |_: Request<AnyBody>| answer(200)));
        async move {
            let _ = app.oneshot(request).await.unwrap();
        }
    }

    /// Exactly these events, but for those of each upload. Adds them to the table.
    fn tells(&self, expected: &[&str]) {
        let told = self.told.take();
        let of_life = |name: &str| LIFE.contains(&name) && !expected.contains(&name);
        let told: Vec<_> = told
            .into_iter()
            .filter(|(name, _)| !of_life(name))
            .collect();
        let mut traced = self.traced.take();
        traced.retain(|line| !of_life(line.name));
        let names: Vec<_> = told.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, expected, "{}: {told:?}", self.fault);
        let names: Vec<_> = traced.iter().map(|line| line.name).collect();
        assert_eq!(names, expected, "{}: {traced:?}", self.fault);
        let mut rows = self.rows.lock().unwrap();
        for ((name, line), mut traced) in told.into_iter().zip(traced) {
            assert_eq!(traced.fields.remove("message").as_ref(), Some(&line));
            let fields: Vec<_> = traced
                .fields
                .keys()
                .map(|field| format!("`{field}`"))
                .collect();
            let level = traced.level.to_string().to_lowercase();
            let line = line.replace('|', "\\|");
            rows.push([
                self.fault.into(),
                format!("`{name}`"),
                level,
                fields.join(", "),
                line,
            ]);
        }
    }
}
