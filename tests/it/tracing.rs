//! The feature `tracing`: events of the crate `tracing`, and the spans of requests.

use std::{
    convert::Infallible,
    future::pending,
    io,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use ::tracing::{Instrument as _, Level, Span, info_span};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use object_store::{ObjectStoreExt as _, memory::InMemory};
use tokio::sync::mpsc;
use tower::{Layer as _, Service, ServiceExt as _, service_fn};
use tower_resumable::{
    BucketStore, CompletedUpload, FileStore, MemoryStore, ResumableLayer, Scope, Upload,
};

use crate::common::{File, Line, Told, Traced};

type Body = UnsyncBoxBody<Bytes, io::Error>;
type Answer = Response<Full<Bytes>>;

fn full(bytes: Vec<u8>) -> Body {
    let body = Full::<Bytes>::from(bytes);
    body.map_err(|never| match never {}).boxed_unsync()
}

fn chunk(file: &File, number: usize) -> Request<Body> {
    file.octets(number).map(full)
}

fn file() -> File {
    let mut file = File::new("secret-name.txt", 25);
    file.content = b"secret-content-0123456789".to_vec();
    file.identifier = "secret-identifier".to_owned();
    file.extra = vec![("token".to_owned(), "secret-token".to_owned())];
    file
}

fn layer() -> ResumableLayer {
    ResumableLayer::new(MemoryStore::default())
        .with_hold_back(Duration::ZERO)
        .with_scope(|_| Ok(Scope::new("alice")))
}

fn answering(
    status: StatusCode,
) -> impl Service<Request<Body>, Response = Answer, Error = Infallible, Future: Send> + Clone + Send
{
    service_fn(move |_: Request<Body>| async move {
        let mut response = Response::new(Full::default());
        *response.status_mut() = status;
        Ok::<_, Infallible>(response)
    })
}

fn names(lines: &[Line]) -> Vec<&'static str> {
    lines.iter().map(|line| line.name).collect()
}

/// The same events, with and without a hook. No field has what the client says of its file.
#[tokio::test]
async fn all_events_are_forwarded() {
    let (traced, _guard) = Traced::start();
    for has_hook in [false, true] {
        let told = Told::default();
        let layer = if has_hook { told.of(layer()) } else { layer() };
        let file = file();
        let down = layer.layer(answering(StatusCode::SERVICE_UNAVAILABLE));
        let up = layer.layer(answering(StatusCode::OK));
        for (app, number, status) in [(1, 1, 200), (1, 1, 200), (1, 2, 503), (0, 2, 200)] {
            let request = chunk(&file, number);
            let response = if app == 1 {
                down.clone().oneshot(request).await
            } else {
                up.clone().oneshot(request).await
            };
            assert_eq!(response.unwrap().status(), status);
        }
        let broken = Request::post("/upload?resumableIdentifier=1").body(full(Vec::new()));
        let response = up.clone().oneshot(broken.unwrap()).await.unwrap();
        assert_eq!(response.status(), 400);
        let lines = traced.take();
        assert_eq!(
            names(&lines),
            [
                "created",
                "stored",
                "stored",
                "stored",
                "completed",
                "delivery_started",
                "delivery_failed",
                "stored",
                "delivery_started",
                "delivery_ended",
                "refused",
            ]
        );
        if has_hook {
            assert_eq!(told.names(), names(&lines));
        }
        for line in &lines {
            assert!(line.fields.contains_key("message"), "{line:?}");
            // The last request was refused before the layer knew whose upload it is about.
            let is_known = line.name != "refused";
            let scope = line.fields.get("scope").map(String::as_str);
            assert_eq!(scope, is_known.then_some("alice"), "{line:?}");
            assert_eq!(line.fields.contains_key("upload.id"), is_known, "{line:?}");
            for text in line.fields.values() {
                assert!(!text.contains("secret"), "{line:?}");
            }
        }
        let twice = &lines[2].fields;
        for (field, value) in [("offset", "0"), ("bytes", "10"), ("duplicate", "10")] {
            assert_eq!(twice[field], value);
        }
        assert_eq!(lines[2].level, Level::DEBUG);
        let failed = &lines[6];
        assert_eq!(failed.level, Level::WARN);
        assert_eq!(failed.fields["error.kind"], "delivery_failed");
        assert!(failed.fields["error"].contains("503"), "{failed:?}");
        let ended = &lines[9].fields;
        for (field, value) in [
            ("attempt", "2"),
            ("status", "200"),
            ("verdict", "delivered"),
        ] {
            assert_eq!(ended[field], value);
        }
        for field in ["elapsed", "since_last_byte"] {
            assert!(ended[field].parse::<f64>().unwrap() < 60.0);
        }
        assert_eq!(lines[10].fields["error.kind"], "missing_field");
    }
}

/// What a store meets, with and without a hook: once.
#[tokio::test]
async fn events_of_a_store_are_forwarded() {
    let (traced, _guard) = Traced::start();
    for has_hook in [false, true] {
        let engine = Arc::new(InMemory::new());
        let foreign = "up/readme.txt".into();
        engine.put(&foreign, "not an upload".into()).await.unwrap();
        let store = BucketStore::builder(engine).with_self_test(false);
        let layer = ResumableLayer::new(store.open().await.unwrap());
        let told = Told::default();
        let layer = if has_hook { told.of(layer) } else { layer };
        let sweep = async { layer.uploads().sweep().await };
        sweep.instrument(info_span!("sweep")).await.unwrap();
        let lines = traced.take();
        assert_eq!(names(&lines), ["store_skipped"]);
        assert_eq!(lines[0].fields["place"], "up/readme.txt");
        assert_eq!(
            (lines[0].level, lines[0].span),
            (Level::WARN, Some("sweep"))
        );
        let hooked = if has_hook {
            vec!["store_skipped"]
        } else {
            Vec::new()
        };
        assert_eq!(told.names(), hooked);
    }
}

/// What a store meets on a thread for blocking work is in the span of the request.
#[tokio::test]
async fn blocking_work_is_in_the_span_of_its_request() {
    let (_traced, _guard) = Traced::start();
    let dir = tempfile::tempdir().unwrap();
    let app = |layer: ResumableLayer| layer.layer(answering(StatusCode::OK));
    let open = || ResumableLayer::new(FileStore::open(dir.path()).unwrap());
    let _ = app(open()).oneshot(chunk(&file(), 1)).await.unwrap();
    for shard in std::fs::read_dir(dir.path().join("partial")).unwrap() {
        let files = std::fs::read_dir(shard.unwrap().path())
            .into_iter()
            .flatten();
        let paths = files.map(|file| file.unwrap().path());
        for journal in paths.filter(|path| path.extension().is_some_and(|it| it == "journal")) {
            std::fs::write(journal, "damaged").unwrap();
        }
    }
    let spans = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&spans);
    let layer = open().with_events(move |event| {
        let thread = std::thread::current().id();
        seen.lock()
            .unwrap()
            .push((event.name(), thread, Traced::entered()));
    });
    let request = app(layer).oneshot(chunk(&file(), 1));
    let response = request.instrument(info_span!("request")).await.unwrap();
    assert_eq!(response.status(), 200);
    let spans = spans.lock().unwrap();
    assert_eq!(spans[0].0, "store_set_aside");
    assert_ne!(spans[0].1, std::thread::current().id());
    assert_eq!(spans[0].2, Some("request"));
}

/// The handler runs in the span of the request, and so does what follows without its client.
#[tokio::test]
async fn a_delivery_is_in_the_span_of_its_request() {
    let (traced, _guard) = Traced::start();
    let name = || Span::current().metadata().map(|metadata| metadata.name());
    let (sender, mut seen) = mpsc::unbounded_channel();
    let layer = layer();
    let inner = service_fn(move |request: Request<Body>| {
        let sender = sender.clone();
        async move {
            let upload = request.extensions().get::<CompletedUpload>().unwrap();
            sender.send((name(), upload.size())).unwrap();
            Ok::<_, Infallible>(Answer::default())
        }
    });
    let app = layer.layer(inner.clone());
    let file = file();
    for number in [1, 2] {
        let request = chunk(&file, number);
        let response = app
            .clone()
            .oneshot(request)
            .instrument(info_span!("request"));
        assert_eq!(response.await.unwrap().status(), 200);
    }
    assert_eq!(seen.recv().await, Some((Some("request"), 25)));
    let lines = traced.take();
    assert_eq!(names(&lines).last(), Some(&"delivery_ended"));
    for line in lines {
        assert_eq!(line.span, Some("request"), "{line:?}");
    }
}

/// The client goes in the middle of a request: the rest is in its span.
#[tokio::test]
async fn the_rest_of_a_request_is_in_its_span() {
    let (traced, _guard) = Traced::start();
    let (entered, mut has_entered) = mpsc::unbounded_channel();
    let layer = layer();
    let app = layer.layer(service_fn(move |_: Request<Body>| {
        entered.send(()).unwrap();
        async { Ok::<_, Infallible>(Answer::default()) }
    }));
    let file = file();
    let first = app.clone().oneshot(chunk(&file, 1)).await.unwrap();
    assert_eq!(first.status(), 200);
    traced.take();
    let goes = async |request| {
        let mut call = pin!(
            app.clone()
                .oneshot(request)
                .instrument(info_span!("request"))
        );
        // Until the layer waits for the body or the handler.
        assert!(futures_util::poll!(call.as_mut()).is_pending());
    };
    // A body that never ends, and one that is whole.
    let endless = StreamBody::new(futures_util::stream::once(pending::<
        io::Result<Frame<Bytes>>,
    >()));
    goes(file.octets(2).map(|_| endless.boxed_unsync())).await;
    layer.uploads().drain().await;
    goes(chunk(&file, 2)).await;
    layer.uploads().drain().await;
    assert!(has_entered.recv().await.is_some());
    let lines = traced.take();
    assert_eq!(names(&lines)[..2], ["interrupted", "stored"]);
    assert_eq!(names(&lines).last(), Some(&"delivery_ended"));
    for line in lines {
        assert_eq!(line.span, Some("request"), "{line:?}");
    }
}

/// The deliveries of the background are in the span that they were started in.
#[tokio::test]
async fn deliveries_of_the_background_have_a_span() {
    let (traced, _guard) = Traced::start();
    let layer = layer();
    let down = layer.layer(answering(StatusCode::BAD_GATEWAY));
    for number in [1, 2] {
        let _ = down.clone().oneshot(chunk(&file(), number)).await.unwrap();
    }
    traced.take();
    let make_request = |_: &Upload| Request::post("/upload").body(full(Vec::new()));
    let uploads = layer.uploads();
    let deliver = uploads
        .deliver_all(answering(StatusCode::OK), make_request)
        .instrument(info_span!("background"));
    assert_eq!(deliver.await.unwrap().delivered, 1);
    let lines = traced.take();
    assert_eq!(names(&lines), ["delivery_started", "delivery_ended"]);
    for line in lines {
        assert_eq!(line.span, Some("background"), "{line:?}");
    }
}
