//! The layer in every place where axum takes one, over real connections.

use std::{net::SocketAddr, time::Duration};

use axum::{
    BoxError, Router,
    body::Body,
    error_handling::HandleErrorLayer,
    extract::Request,
    handler::Handler as _,
    http::StatusCode,
    middleware::{Next, from_fn},
    response::{IntoResponse, Response},
    routing::post,
};
use tower::{ServiceBuilder, util::BoxCloneSyncService};
use tower_http::{
    ServiceBuilderExt as _,
    catch_panic::CatchPanicLayer,
    compression::CompressionLayer,
    cors::CorsLayer,
    limit::RequestBodyLimitLayer,
    timeout::{RequestBodyTimeoutLayer, TimeoutLayer},
    trace::TraceLayer,
};
use tower_resumable::{CompletedUpload, MemoryStore, ResponseBody, ResumableLayer};

use crate::common::{Client, File, Told};

fn layer() -> ResumableLayer {
    ResumableLayer::new(MemoryStore::default())
}

async fn done(upload: CompletedUpload, body: String) -> String {
    format!("done {} rest={body:?}", upload.size())
}

async fn maybe(upload: Option<CompletedUpload>, body: String) -> String {
    format!("maybe {:?} body={body}", upload.map(|upload| upload.size()))
}

fn routes() -> Router {
    Router::new()
        .route("/upload", post(done))
        .route("/other", post(maybe))
}

async fn serve(app: Router) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    addr
}

/// Sends a whole upload to `prefix`, and a request that passes the layer.
async fn check_at(app: Router, prefix: &str) {
    let mut client = Client::connect(serve(app).await).await;
    let file = File::new("a.txt", 25);
    let at = |mut request: http::Request<Vec<u8>>| {
        *request.uri_mut() = format!("{prefix}{}", request.uri()).parse().unwrap();
        request
    };
    let answer = client.send(at(file.multipart(1))).await;
    assert_eq!(
        (answer.status, &answer.json()["received"]),
        (200, &10.into())
    );
    let answer = client.send(at(file.octets(2))).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (200, "done 25 rest=\"\"")
    );
    let other = http::Request::post("/other")
        .body(b"kept".to_vec())
        .unwrap();
    assert_eq!(client.send(at(other)).await.body, "maybe None body=kept");
}

async fn check(app: Router) {
    check_at(app, "").await;
}

#[tokio::test]
async fn router_method_router_and_handler() {
    check(routes().layer(layer())).await;
    check(routes().route_layer(layer())).await;
    let other = || Router::new().route("/other", post(maybe));
    check(other().route("/upload", post(done).layer(layer()))).await;
    check(other().route("/upload", post(done).route_layer(layer()))).await;
    check(other().route("/upload", post(done.layer(layer())))).await;
    let with_state: Router<u8> = Router::new()
        .route("/upload", post(done))
        .route("/other", post(maybe))
        .layer(layer());
    check(with_state.with_state(7)).await;
}

#[tokio::test]
async fn nested_the_layer_sees_the_path_without_the_prefix() {
    check_at(Router::new().nest("/api", routes().layer(layer())), "/api").await;
    let service = || ServiceBuilder::new().layer(layer()).service(routes());
    check_at(Router::new().nest_service("/api", service()), "/api").await;
    check(Router::new().fallback_service(service())).await;
    // Outside the nest, the layer sees the whole path.
    let app = Router::new()
        .nest("/api", routes())
        .layer(layer().with_path("/api/upload"));
    check_at(app, "/api").await;
}

async fn pass(request: Request, next: Next) -> Response {
    next.run(request).await
}

/// `from_fn` accepts only `Request<axum::body::Body>`: the layer keeps the type of the body.
#[tokio::test]
async fn from_fn_on_both_sides() {
    let stack = ServiceBuilder::new()
        .layer(from_fn(pass))
        .layer(layer())
        .layer(from_fn(pass));
    check(routes().layer(stack)).await;
}

#[tokio::test]
async fn among_the_usual_layers() {
    let stack = ServiceBuilder::new()
        .layer(HandleErrorLayer::new(|error: BoxError| async move {
            (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
        }))
        .load_shed()
        .concurrency_limit(8)
        .layer(TraceLayer::new_for_http())
        .layer(CatchPanicLayer::new())
        .layer(CorsLayer::permissive())
        .layer(CompressionLayer::new())
        .layer(TimeoutLayer::with_status_code(
            StatusCode::REQUEST_TIMEOUT,
            Duration::from_secs(30),
        ))
        .layer(RequestBodyLimitLayer::new(1 << 20))
        .layer(layer())
        .timeout(Duration::from_secs(30));
    check(routes().layer(stack)).await;
}

/// A body that is not `Unpin`: a separate `Router::layer` boxes it, a `ServiceBuilder` needs an
/// extra line.
#[tokio::test]
async fn behind_a_body_that_is_not_unpin() {
    let timeout = RequestBodyTimeoutLayer::new(Duration::from_secs(30));
    check(routes().layer(layer()).layer(timeout.clone())).await;
    let stack = ServiceBuilder::new()
        .layer(timeout)
        .map_request_body(Body::new)
        .layer(layer());
    check(routes().layer(stack)).await;
}

/// axum's `DefaultBodyLimit` (2 MiB) applies to extractors only.
#[tokio::test]
async fn chunks_larger_than_the_default_body_limit() {
    let mut client = Client::connect(serve(routes().layer(layer())).await).await;
    let file = File {
        chunk_size: 3 << 20,
        ..File::new("a.bin", 3 << 20)
    };
    assert_eq!(
        client.send(file.multipart(1)).await.body,
        "done 3145728 rest=\"\""
    );
}

#[tokio::test]
async fn a_handler_without_the_layer_reports_what_is_missing() {
    let mut client = Client::connect(serve(routes()).await).await;
    let answer = client.send(File::new("a.txt", 5).multipart(1)).await;
    assert_eq!(answer.status, 500);
    assert!(answer.body.contains("`ResumableLayer`") && answer.body.contains("`/upload`"));
}

fn is<T: Send + Sync + Clone + 'static>() {}

#[test]
fn types_satisfy_the_bounds_of_servers() {
    is::<ResumableLayer>();
    is::<tower_resumable::Resumable<Router>>();
    let service = ServiceBuilder::new()
        .layer(layer())
        .service(Router::<()>::new());
    let _: BoxCloneSyncService<
        Request,
        http::Response<ResponseBody<Body>>,
        std::convert::Infallible,
    > = BoxCloneSyncService::new(service);
}

/// A handler that asks for an upload that is none. The answer says what may be wrong, and the
/// operator is told the path that the layer has seen.
#[tokio::test]
async fn a_missing_upload_is_explained() {
    type Set = fn(ResumableLayer) -> Router;
    let inside: Set = |layer| {
        let inner = Router::new().route("/files", post(done)).layer(layer);
        Router::new().nest("/api", inner)
    };
    let outside: Set = |layer| {
        let inner = Router::new().route("/files", post(done));
        Router::new().nest("/api", inner).layer(layer)
    };
    let too_early: Set = |layer| {
        let router = Router::new().route("/other", post(done)).layer(layer);
        router.route("/api/files", post(done))
    };
    for (set, path, at, seen) in [
        // The path has the prefix, and the layer does not see it.
        (inside, "/api/files", "/files", Some("/files")),
        (outside, "/files", "/files", Some("/api/files")),
        // The path is right, and the request is no upload.
        (inside, "/files", "/files", Some("/files")),
        (outside, "/api/files", "/files", Some("/api/files")),
        (too_early, "/api/files", "/api/files", None),
    ] {
        let told = Told::default();
        let app = set(told.of(layer().with_path(path)));
        let mut client = Client::connect(serve(app).await).await;
        let request = http::Request::post("/api/files").body(b"x".to_vec());
        let answer = client.send(request.unwrap()).await;
        assert_eq!(answer.status, 500);
        for text in [
            &format!("for `{at}`"),
            "`ResumableLayer`",
            "`nest`",
            "`Router::layer`",
        ] {
            assert!(answer.body.contains(text), "{text}: {}", answer.body);
        }
        let sent = answer.body.contains("sent to `/api/files`");
        assert_eq!(sent, at != "/api/files", "{}", answer.body);
        let told = told.take_faults();
        match seen {
            Some(seen) => {
                assert_eq!((told.len(), told[0].0), (1, "missing_upload"));
                assert!(told[0].1.contains(&format!("`{seen}`")), "{told:?}");
            }
            None => assert_eq!(told, []),
        }
    }
}
