//! Recovery at the start of an application, and the handling of unfinished uploads.

use std::{
    convert::Infallible,
    future::Future,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use object_store::memory::InMemory;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_resumable::{
    BucketStore, CompletedUpload, Delivery, ErrorKind, FileStore, Limits, MemoryStore,
    ResumableLayer, Retention, Upload,
    store::{Filter, Store},
};

use crate::common::Told;

type Body = Full<Bytes>;

/// A chunk of ten bytes of a file of twenty.
fn chunk(number: u64) -> Request<Body> {
    chunk_of("id", number)
}

fn chunk_of(identifier: &str, number: u64) -> Request<Body> {
    let query = format!(
        "resumableChunkNumber={number}&resumableChunkSize=10&resumableTotalSize=20\
         &resumableIdentifier={identifier}&resumableFilename=a.txt"
    );
    Request::post(format!("/upload?{query}"))
        .header("content-type", "application/octet-stream")
        .body(Full::from(vec![b'0' + number as u8; 10]))
        .unwrap()
}

const CONTENT: &[u8] = b"11111111112222222222";

fn layer(dir: &Path) -> ResumableLayer {
    ResumableLayer::new(FileStore::open(dir).unwrap())
        .with_hold_back(Duration::ZERO)
        .with_scope(|_| Ok("alice".into()))
}

/// An inner service that passes each upload to `handle`.
fn inner<F, H>(
    handle: H,
) -> impl Service<
    Request<Body>,
    Response = Response<Body>,
    Error = Infallible,
    Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
> + Clone
+ Send
+ 'static
where
    H: Fn(CompletedUpload) -> F + Clone + Send + 'static,
    F: Future<Output = StatusCode> + Send,
{
    service_fn(move |request: Request<Body>| {
        let upload = request.extensions().get().cloned();
        let handle = handle.clone();
        async move {
            let status = match upload {
                Some(upload) => handle(upload).await,
                None => StatusCode::NOT_FOUND,
            };
            let mut response = Response::new(Full::from(format!("answered {status}")));
            *response.status_mut() = status;
            Ok(response)
        }
    })
}

async fn send<S, R>(service: S, request: Request<Body>) -> (u16, String)
where
    S: Service<Request<Body>, Response = Response<R>, Error = Infallible>,
    R: http_body::Body<Error: std::fmt::Debug>,
{
    let response = service.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

/// The complete uploads that are not delivered.
async fn undelivered(layer: &ResumableLayer) -> Vec<Upload> {
    let page = layer.uploads().list(&Filter::complete(), None).await;
    let page = page.unwrap();
    assert_eq!(page.next, None);
    page.uploads
        .into_iter()
        .map(|listed| listed.upload)
        .collect()
}

fn start_up() -> Request<Body> {
    Request::post("/start-up").body(Full::default()).unwrap()
}

#[tokio::test]
async fn a_failed_delivery_is_retried_at_startup() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = |status: StatusCode| {
        let seen = Arc::clone(&seen);
        inner(move |upload| {
            let delivery = (upload.id().to_owned(), upload.attempt());
            seen.lock().unwrap().push(delivery);
            assert_eq!(upload.scope().as_str(), "alice");
            assert_eq!(std::fs::read(upload.path().unwrap()).unwrap(), CONTENT);
            async move { status }
        })
    };
    {
        let service = layer(dir.path()).layer(service(StatusCode::BAD_GATEWAY));
        assert_eq!(send(service.clone(), chunk(1)).await.0, 200);
        assert_eq!(send(service, chunk(2)).await.0, 503);
    }

    // A new layer, as in a new process.
    let layer = layer(dir.path());
    let mut waiting = undelivered(&layer).await;
    let upload = waiting.pop().unwrap();
    assert_eq!(waiting, []);
    assert_eq!(
        (
            upload.scope.as_str(),
            upload.file_name.as_deref(),
            upload.length
        ),
        ("alice", Some("a.txt"), Some(20))
    );
    let failing = service(StatusCode::INTERNAL_SERVER_ERROR);
    let uploads = layer.uploads();
    let failed = uploads.deliver(upload.clone(), failing, start_up()).await;
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::DeliveryFailed);
    let taking = service(StatusCode::ACCEPTED);
    let taken = uploads.deliver(upload.clone(), taking.clone(), start_up());
    // The answer of the inner service itself, not the answer for a client.
    assert_eq!(taken.await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(undelivered(&layer).await, []);

    // Later requests get the recorded answer.
    let again = uploads.deliver(upload, taking.clone(), start_up()).await;
    assert_eq!(again.unwrap().status(), StatusCode::ACCEPTED);
    let answer = send(layer.layer(taking), chunk(1)).await;
    assert_eq!(answer, (200, "answered 202 Accepted".into()));
    let seen = seen.lock().unwrap();
    let id = &seen[0].0;
    assert_eq!(*seen, [1, 2, 3].map(|attempt| (id.clone(), attempt)));
}

/// The process died between the last chunk and the delivery, or no request caused the delivery.
#[tokio::test]
async fn an_undelivered_upload_is_delivered_at_startup() {
    let dir = tempfile::tempdir().unwrap();
    let service = layer(dir.path()).layer(inner(|_| std::future::pending()));
    assert_eq!(send(service.clone(), chunk(1)).await.0, 200);
    let dying = tokio::runtime::Runtime::new().unwrap();
    dying.spawn(send(service, chunk(2)));
    let layer = layer(dir.path());
    let upload = loop {
        if let Some(upload) = undelivered(&layer).await.pop() {
            break upload;
        }
        tokio::task::yield_now().await;
    };
    dying.shutdown_background();
    // This waits until the claim of the dead process is released.
    let uploads = layer.uploads();
    let taken = uploads.deliver(upload, inner(async |_| StatusCode::OK), start_up());
    assert_eq!(taken.await.unwrap().status(), 200);
}

/// The first attempt moves the file and fails. The second attempt moves it too, which must not
/// fail.
#[tokio::test]
async fn a_file_is_moved_once_in_two_attempts() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("moved.txt");
    let moving = |to: PathBuf, status: StatusCode| {
        inner(move |upload: CompletedUpload| {
            let to = to.clone();
            async move {
                upload.persist(to).await.unwrap();
                status
            }
        })
    };
    let layer = layer(&dir.path().join("uploads"));
    let failing = layer.layer(moving(target.clone(), StatusCode::BAD_GATEWAY));
    assert_eq!(send(failing.clone(), chunk(1)).await.0, 200);
    assert_eq!(send(failing, chunk(2)).await.0, 503);
    assert_eq!(std::fs::read(&target).unwrap(), CONTENT);
    let taking = layer.layer(moving(target.clone(), StatusCode::OK));
    assert_eq!(send(taking, chunk(2)).await.0, 200);
    assert_eq!(std::fs::read(&target).unwrap(), CONTENT);
}

/// A file of another upload at the target is not used in place of the missing one.
#[tokio::test]
async fn a_missing_file_is_not_replaced_by_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("moved.txt");
    let layer = layer(&dir.path().join("uploads"));
    let losing = layer.layer(inner(|upload: CompletedUpload| async move {
        std::fs::remove_file(upload.path().unwrap()).unwrap();
        StatusCode::BAD_GATEWAY
    }));
    assert_eq!(send(losing.clone(), chunk(1)).await.0, 200);
    assert_eq!(send(losing, chunk(2)).await.0, 503);
    for other in [&b"12345678901234567890"[..], b"1"] {
        std::fs::write(&target, other).unwrap();
        let moved = Arc::new(Mutex::new(None));
        let (to, result) = (target.clone(), Arc::clone(&moved));
        let moving = layer.layer(inner(move |upload: CompletedUpload| {
            let (to, result) = (to.clone(), Arc::clone(&result));
            async move {
                let moved = upload.persist(to).await;
                *result.lock().unwrap() = Some(moved.map_err(|error| error.kind()));
                StatusCode::BAD_GATEWAY
            }
        }));
        assert_eq!(send(moving, chunk(2)).await.0, 503);
        let moved = moved.lock().unwrap().take();
        assert_eq!(moved, Some(Err(std::io::ErrorKind::AlreadyExists)));
        assert_eq!(std::fs::read(&target).unwrap(), other);
    }
}

#[tokio::test]
async fn abandoned_uploads_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    sweeps(FileStore::open(dir.path()).unwrap()).await;
    sweeps(MemoryStore::default()).await;
}

async fn sweeps(store: impl Store) {
    let layer = ResumableLayer::new(store).with_hold_back(Duration::ZERO);
    let service = layer.layer(inner(async |_| StatusCode::BAD_GATEWAY));
    let status = |number| {
        let mut request = chunk(number);
        *request.method_mut() = http::Method::GET;
        *request.uri_mut() = format!("{}&resumableStatus=1", request.uri())
            .parse()
            .unwrap();
        send(service.clone(), request)
    };
    assert_eq!(send(service.clone(), chunk(1)).await.0, 200);

    // An upload that is not old enough stays.
    let swept = layer.uploads().sweep().await.unwrap();
    assert_eq!((swept.abandoned, swept.undelivered), (0, 0));
    assert!(status(1).await.1.contains("receiving"));

    // Complete uploads stay, unless the retention says otherwise.
    assert_eq!(send(service.clone(), chunk(2)).await.0, 503);
    let now = Retention::default().with_abandoned(Duration::ZERO);
    let sweeping = layer.clone().with_retention(now).uploads();
    assert_eq!(sweeping.sweep().await.unwrap().undelivered, 0);
    assert_eq!(undelivered(&layer).await.len(), 1);

    // The time of a record has a resolution of one millisecond.
    let all = now.with_undelivered(Duration::ZERO);
    let sweeping = layer.clone().with_retention(all).uploads();
    let sweeping = tokio::spawn(sweeping.sweep_every(Duration::from_millis(1)));
    while !status(1).await.1.contains("absent") {
        tokio::task::yield_now().await;
    }
    sweeping.abort();
    assert_eq!(undelivered(&layer).await, []);
}

/// An inner service that answers with `status` of the attempt, and the times of its calls.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<(u32, tokio::time::Instant)>>>);

impl Calls {
    fn inner(
        &self,
        status: impl Fn(u32) -> u16 + Clone + Send + Sync + 'static,
    ) -> impl Service<
        Request<Body>,
        Response = Response<Body>,
        Error = Infallible,
        Future = impl Future<Output = Result<Response<Body>, Infallible>> + Send,
    > + Clone
    + Send
    + Sync
    + 'static {
        let calls = self.clone();
        inner(move |upload: CompletedUpload| {
            let call = (upload.attempt(), tokio::time::Instant::now());
            calls.0.lock().unwrap().push(call);
            let status = StatusCode::from_u16(status(upload.attempt())).unwrap();
            async move { status }
        })
    }

    fn attempts(&self) -> Vec<u32> {
        let calls = self.0.lock().unwrap();
        calls.iter().map(|(attempt, _)| *attempt).collect()
    }

    /// The whole seconds between the calls.
    fn pauses(&self) -> Vec<u64> {
        let calls = self.0.lock().unwrap();
        let pairs = calls.windows(2);
        pairs
            .map(|pair| (pair[1].1 - pair[0].1).as_secs())
            .collect()
    }
}

/// What an application does for each upload.
fn request(_: &Upload) -> http::Result<Request<Body>> {
    Request::post("/upload").body(Full::default())
}

const MINUTE: Duration = Duration::from_secs(60);

/// The inner service fails, and no client comes back.
#[tokio::test(start_paused = true)]
async fn a_failed_delivery_is_retried_in_the_background() {
    let calls = Calls::default();
    let service = calls.inner(|attempt| if attempt < 12 { 503 } else { 200 });
    let layer = ResumableLayer::new(MemoryStore::default());
    let uploads = layer.uploads();
    let app = layer.layer(service.clone());
    assert_eq!(send(app.clone(), chunk(1)).await.0, 200);
    assert_eq!(send(app.clone(), chunk(2)).await.0, 503);
    let every = tokio::spawn(uploads.deliver_every(MINUTE, service, request));
    while !undelivered(&layer).await.is_empty() {
        tokio::time::sleep(MINUTE).await;
    }
    every.abort();
    assert_eq!(calls.attempts(), Vec::from_iter(1..=12));
    // The pause grows: 64 s after attempt 10, and 128 s after attempt 11, at the next full minute.
    let pauses = calls.pauses();
    assert!(pauses[1] <= 60, "{pauses:?}");
    assert!(pauses[9] >= 64 && pauses[10] >= 128, "{pauses:?}");
    assert_eq!(send(app, chunk(2)).await.0, 200);
    assert_eq!(calls.attempts().len(), 12);
}

/// Requests during the pause get a retryable answer, and call nothing.
#[tokio::test(start_paused = true)]
async fn requests_wait_for_the_end_of_the_pause() {
    let calls = Calls::default();
    let layer = ResumableLayer::new(MemoryStore::default());
    let app = layer.layer(calls.inner(|_| 503));
    assert_eq!(send(app.clone(), chunk(1)).await.0, 200);
    let begin = tokio::time::Instant::now();
    // Resumable.js tries again at once, up to a hundred times.
    let mut longest = 0;
    for _ in 0..100 {
        let response = app.clone().oneshot(chunk(2)).await.unwrap();
        assert_eq!(response.status(), 503);
        let after = response.headers()["retry-after"].to_str().unwrap();
        longest = longest.max(after.parse().unwrap());
    }
    let minutes = begin.elapsed().as_secs() / 60;
    assert!((2..5).contains(&minutes), "{minutes} minutes");
    assert_eq!(calls.attempts().len(), 11);
    assert_eq!(calls.pauses(), [0, 0, 1, 2, 2, 4, 8, 16, 32, 64]);
    assert!((100..=128).contains(&longest), "Retry-After: {longest}");
}

/// After some failures neither requests nor the background deliver it, also after a restart.
#[tokio::test(start_paused = true)]
async fn an_upload_that_always_fails_is_set_aside() {
    let store = MemoryStore::default();
    let (calls, told) = (Calls::default(), Told::default());
    let layer = || {
        let delivery = Delivery::default().with_max_attempts(3);
        told.of(ResumableLayer::new(store.clone()).with_delivery(delivery))
    };
    let failing = calls.inner(|_| 500);
    let first = layer();
    let app = first.layer(failing.clone());
    assert_eq!(send(app.clone(), chunk(1)).await.0, 200);
    for status in [503, 503, 400, 400] {
        assert_eq!(send(app.clone(), chunk(2)).await.0, status);
    }
    let events = told.take_lines();
    assert_eq!(events.len(), 4, "{events:?}");
    assert!(
        events[2].contains("attempt 3") && events[2].contains("500"),
        "{events:?}"
    );
    assert!(events[3].contains("set aside"), "{events:?}");
    assert_eq!(calls.attempts(), [1, 2, 3]);

    for layer in [first, layer()] {
        let app = layer.layer(failing.clone());
        // For longer than any pause.
        for _ in 0..3 {
            let (status, body) = send(app.clone(), chunk(1)).await;
            assert_eq!(status, 400);
            assert!(body.contains("set_aside"), "{body}");
            let uploads = layer.uploads();
            let deliveries = uploads.deliver_all(failing.clone(), request).await.unwrap();
            assert_eq!((deliveries.pending, deliveries.failed.len()), (1, 0));
            tokio::time::advance(Duration::from_secs(7200)).await;
        }
        assert_eq!(calls.attempts(), [1, 2, 3]);
    }
    // Once by the first process, and once by the second.
    let events = told.take_lines();
    assert_eq!(events.len(), 1, "{events:?}");

    // The operator asks.
    let layer = layer();
    let upload = undelivered(&layer).await.remove(0);
    let uploads = layer.uploads();
    let taking = calls.inner(|_| 200);
    let failed = uploads.deliver(upload.clone(), failing, request(&upload).unwrap());
    assert_eq!(failed.await.unwrap_err().kind(), ErrorKind::SetAside);
    let taken = uploads.deliver(upload.clone(), taking.clone(), request(&upload).unwrap());
    assert_eq!(taken.await.unwrap().status(), 200);
    assert_eq!(send(layer.layer(taking), chunk(1)).await.0, 200);
}

/// The process ends during each call.
#[tokio::test]
async fn attempts_are_counted_before_the_inner_service_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let delivery = Delivery::default().with_max_attempts(3);
    let (calls, told) = (Calls::default(), Told::default());
    let layer = || told.of(layer(dir.path()).with_delivery(delivery.clone()));
    assert_eq!(
        send(layer().layer(calls.inner(|_| 200)), chunk(1)).await.0,
        200
    );
    for attempt in 1..=3 {
        let dying = tokio::runtime::Runtime::new().unwrap();
        let (entered, mut has_entered) = tokio::sync::mpsc::unbounded_channel();
        let service = layer().layer(inner(move |upload: CompletedUpload| {
            entered.send(upload.attempt()).unwrap();
            std::future::pending()
        }));
        dying.spawn(send(service, chunk(2)));
        assert_eq!(has_entered.recv().await, Some(attempt));
        // The claim is released when the last task has ended.
        tokio::task::spawn_blocking(move || drop(dying))
            .await
            .unwrap();
    }
    let layer = layer();
    let (status, body) = send(layer.layer(calls.inner(|_| 200)), chunk(2)).await;
    assert_eq!(status, 400);
    assert!(body.contains("set_aside"), "{body}");
    assert!(calls.attempts().is_empty());
    let events = told.take_lines();
    assert!(
        events.len() == 1 && events[0].contains("set aside"),
        "{events:?}"
    );
}

/// The session of the client has ended. Another request must not take its place soon.
#[tokio::test(start_paused = true)]
async fn an_upload_that_is_refused_now_waits_for_its_client() {
    let calls = Calls::default();
    let layer = ResumableLayer::new(MemoryStore::default());
    let delivery = Delivery::default().with_max_attempts(3);
    let layer = layer.with_delivery(delivery);
    let app = layer.layer(calls.inner(|_| 401));
    assert_eq!(send(app.clone(), chunk(1)).await.0, 200);
    // Refusals do not count as failures.
    for _ in 0..5 {
        assert_eq!(send(app.clone(), chunk(2)).await.0, 400);
    }
    let uploads = layer.uploads();
    let taking = calls.inner(|_| 200);
    let deliver = async || uploads.deliver_all(taking.clone(), request).await.unwrap();
    assert_eq!(deliver().await.pending, 1);
    tokio::time::advance(Duration::from_secs(23 * 3600)).await;
    assert_eq!(deliver().await.pending, 1);
    assert_eq!(calls.attempts(), [1, 2, 3, 4, 5]);
    tokio::time::advance(Duration::from_secs(2 * 3600)).await;
    assert_eq!(deliver().await.delivered, 1);
    assert_eq!(calls.attempts().len(), 6);
}

/// Another process removes an upload whose delivery failed here, and its client sends it again.
/// The new one does not wait for the pause of the old one.
#[tokio::test]
async fn the_pause_of_a_removed_upload_does_not_hold_back_the_next_one() {
    let memory = MemoryStore::default();
    sent_again_elsewhere(memory.clone(), memory).await;
    let dir = tempfile::tempdir().unwrap();
    let files = || FileStore::open(dir.path()).unwrap();
    sent_again_elsewhere(files(), files()).await;
    let bucket = Arc::new(InMemory::new());
    let here = BucketStore::open(bucket.clone()).await.unwrap();
    sent_again_elsewhere(here, BucketStore::open(bucket).await.unwrap()).await;
}

async fn sent_again_elsewhere<S: Store + Clone>(here: S, there: S) {
    let layer = |store: &S| ResumableLayer::new(store.clone()).with_hold_back(Duration::ZERO);
    let elsewhere = layer(&there);
    let other = elsewhere.layer(Calls::default().inner(|_| 503));
    for in_the_background in [false, true] {
        let layer = layer(&here);
        let calls = Calls::default();
        // The pauses are 24 hours in the background, and 2 seconds.
        let (status, sent) = if in_the_background {
            (401, 1)
        } else {
            (503, 5)
        };
        let failing = layer.layer(calls.inner(move |_| status));
        assert_eq!(send(failing.clone(), chunk(1)).await.0, 200);
        for _ in 0..sent {
            assert_ne!(send(failing.clone(), chunk(2)).await.0, 200);
        }
        let upload = undelivered(&elsewhere).await.remove(0);
        assert!(there.remove(&upload.id).await.unwrap());
        // The last chunk goes to the other process too, so this one has not seen the new upload.
        assert_eq!(send(other.clone(), chunk(1)).await.0, 200);
        assert_eq!(send(other.clone(), chunk(2)).await.0, 503);
        let before = calls.attempts().len();
        let taking = calls.inner(|_| 200);
        if in_the_background {
            let delivered = layer.uploads().deliver_all(taking, request).await.unwrap();
            assert_eq!(delivered.delivered, 1);
        } else {
            assert_eq!(send(layer.layer(taking), chunk(2)).await.0, 200);
        }
        assert_eq!(calls.attempts()[before..], [2]);
        assert!(there.forget(&upload.id).await.unwrap());
    }
}

/// More uploads than a page has. One of them cannot be delivered, and one has no request.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_uploads_are_delivered_some_at_a_time() {
    const UPLOADS: usize = 1030;
    let (store, told) = (MemoryStore::default(), Told::default());
    let layer = ResumableLayer::new(store).with_hold_back(Duration::ZERO);
    let down = layer.layer(inner(async |_| StatusCode::SERVICE_UNAVAILABLE));
    for n in 0..UPLOADS {
        let id = format!("{n}-id");
        assert_eq!(send(down.clone(), chunk_of(&id, 1)).await.0, 200);
        assert_eq!(send(down.clone(), chunk_of(&id, 2)).await.0, 503);
    }
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let up = {
        let (now, most) = (Arc::clone(&now), Arc::clone(&most));
        inner(move |upload: CompletedUpload| {
            let (now, most) = (Arc::clone(&now), Arc::clone(&most));
            async move {
                most.fetch_max(now.fetch_add(1, SeqCst) + 1, SeqCst);
                tokio::task::yield_now().await;
                now.fetch_sub(1, SeqCst);
                match upload.identifier() {
                    "7-id" => StatusCode::BAD_GATEWAY,
                    _ => StatusCode::OK,
                }
            }
        })
    };
    let make_request = |upload: &Upload| match upload.identifier.as_str() {
        "8-id" => Err("its owner is gone".into()),
        _ => request(upload).map_err(Into::<Box<dyn std::error::Error + Send + Sync>>::into),
    };
    let layer = told.of(layer);
    let deliveries = layer.uploads().deliver_all(up, make_request).await.unwrap();
    assert_eq!(deliveries.delivered, UPLOADS as u64 - 2);
    assert_eq!(deliveries.failed.len(), 2);
    let most = most.load(SeqCst);
    assert!((2..=8).contains(&most), "{most} at once");
    let events = told.take_lines().join("\n");
    assert!(
        events.contains("owner is gone") && events.contains("502"),
        "{events}"
    );
    assert_eq!(undelivered(&layer).await.len(), 2);
}

/// A shorter period is one second.
#[tokio::test(start_paused = true)]
async fn background_tasks_are_no_busy_loops() {
    let store = MemoryStore::default();
    let layer = ResumableLayer::new(store).with_hold_back(Duration::ZERO);
    let calls = Calls::default();
    let failing = calls.inner(|_| 500);
    let app = layer.layer(failing.clone());
    send(app.clone(), chunk(1)).await;
    send(app, chunk(2)).await;
    let rounds = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&rounds);
    let make_request = move |_: &Upload| {
        counted.fetch_add(1, SeqCst);
        Err::<Request<Body>, _>("no request")
    };
    let uploads = layer.uploads();
    let deliver = uploads.deliver_every(Duration::ZERO, failing, make_request);
    let ten = Duration::from_secs(10);
    assert!(tokio::time::timeout(ten, deliver).await.is_err());
    let rounds = rounds.load(SeqCst);
    assert!((9..=11).contains(&rounds), "{rounds} rounds");
    for period in [Duration::ZERO, Duration::MAX] {
        let sweep = uploads.sweep_every(period);
        assert!(tokio::time::timeout(ten, sweep).await.is_err());
    }
}

/// The longest and the shortest time of each setting.
#[tokio::test]
async fn no_time_of_a_setting_overflows() {
    type Set = fn(ResumableLayer, Duration) -> ResumableLayer;
    fn limits(layer: ResumableLayer, set: impl FnOnce(Limits) -> Limits) -> ResumableLayer {
        layer.with_limits(set(Limits::default()))
    }
    fn delivery(layer: ResumableLayer, set: impl FnOnce(Delivery) -> Delivery) -> ResumableLayer {
        layer.with_delivery(set(Delivery::default()))
    }
    let settings: [(&str, Set); 9] = [
        ("timeout", |layer, time| {
            delivery(layer, |of| of.with_timeout(time))
        }),
        ("record lifetime", |layer, time| {
            delivery(layer, |of| of.with_record_lifetime(time))
        }),
        ("rejection lifetime", |layer, time| {
            delivery(layer, |of| of.with_rejection_lifetime(time))
        }),
        ("idle", |layer, time| limits(layer, |of| of.with_idle(time))),
        ("grace", |layer, time| {
            limits(layer, |of| of.with_grace(time))
        }),
        ("body time", |layer, time| {
            limits(layer, |of| of.with_body_time(time))
        }),
        ("abandoned", |layer, time| {
            layer.with_retention(Retention::default().with_abandoned(time))
        }),
        ("undelivered", |layer, time| {
            layer.with_retention(Retention::default().with_undelivered(time))
        }),
        // A retryable answer is held back for as long as that, so there is none.
        ("hold back", ResumableLayer::with_hold_back),
    ];
    for (name, set) in settings {
        for (time, code) in [
            (Duration::MAX, 200),
            (Duration::MAX, 422),
            (Duration::ZERO, 200),
        ] {
            let told = Told::default();
            let dir = tempfile::tempdir().unwrap();
            let layer = told.of(set(layer(dir.path()), time));
            let calls = Calls::default();
            let app = layer.layer(calls.inner(move |_| code));
            let case = format!("{name} {time:?} {code}");
            assert_eq!(send(app.clone(), chunk(1)).await.0, 200, "{case}");
            let status = send(app.clone(), chunk(2)).await.0;
            // A delivery that may take no time goes on.
            let expected = match code {
                200 if name == "timeout" && time.is_zero() => 503,
                200 => 200,
                _ => 400,
            };
            assert_eq!(status, expected, "{case}");
            layer.uploads().drain().await;
            layer.uploads().sweep().await.unwrap();
            assert_eq!(calls.attempts(), [1], "{case}");
            let told = told.take_lines().join("\n");
            assert!(!told.contains("panic"), "{case}: {told}");
        }
    }
}
