//! Recovery at the start of an application, and the handling of unfinished uploads.

use std::{
    convert::Infallible,
    future::Future,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_resumable::{
    CompletedUpload, ErrorKind, FileStore, MemoryStore, ResumableLayer, Retention, Upload,
    store::{Filter, Store},
};

type Body = Full<Bytes>;

/// A chunk of ten bytes of a file of twenty.
fn chunk(number: u64) -> Request<Body> {
    let query = format!(
        "resumableChunkNumber={number}&resumableChunkSize=10&resumableTotalSize=20\
         &resumableIdentifier=id&resumableFilename=a.txt"
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
