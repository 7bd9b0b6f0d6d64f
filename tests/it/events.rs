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

use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{
    ErrorKind, MemoryStore, ResumableLayer, Upload, UploadId,
    store::{
        ChunkBody, Claim, Claimed, Expiry, Filter, Keep, Page, Progress, Record, Sealed, Status,
        Store, StoreError, Swept,
    },
};

use crate::common::Told;

type Body = Full<bytes::Bytes>;

/// A store of which one method fails, this many times.
#[derive(Clone, Default)]
struct Broken {
    store: MemoryStore,
    fault: Arc<Mutex<(&'static str, usize)>>,
}

impl Broken {
    fn fails(&self, method: &'static str, times: usize) {
        *self.fault.lock().unwrap() = (method, times);
    }

    fn check(&self, method: &str) -> Result<(), StoreError> {
        let mut fault = self.fault.lock().unwrap();
        if fault.0 != method || fault.1 == 0 {
            return Ok(());
        }
        fault.1 -= 1;
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "no access to partial/7f").into())
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
        keep: Keep,
    ) -> Result<Progress, StoreError> {
        self.check("write")?;
        self.store.write(upload, offset, body, keep).await
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
        let told = told.take_faults();
        assert!(
            told.len() == 1 && told[0].1.contains("too late"),
            "{told:?}"
        );
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
