//! URLs of uploads, and the routes that lead to them.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{
    Router,
    extract::OriginalUri,
    routing::{any, post},
};
use http::Request;
use hyper::body::Incoming;
use tokio::{io::AsyncWriteExt as _, net::TcpListener};
use tokio_stream::wrappers::TcpListenerStream;
use tower::{Layer as _, service_fn};
use tower_http::cors::{Any, CorsLayer};
use tower_resumable::{
    CORS_ALLOWED_HEADERS, CORS_ALLOWED_METHODS, CORS_EXPOSED_HEADERS, CompletedUpload, MemoryStore,
    Protocol, ResumableLayer,
};

use super::{BYTES, LETTERS, Server, Tus, begin_patch, header, offset, stored};
use crate::common::{self, Client};

fn layer() -> ResumableLayer {
    ResumableLayer::new(MemoryStore::default())
        .with_path("/files")
        .with_hold_back(Duration::ZERO)
}

/// Says which requests it gets.
async fn finished(
    method: http::Method,
    uri: http::Uri,
    OriginalUri(original): OriginalUri,
    upload: Option<CompletedUpload>,
) -> axum::response::Response {
    let content = match upload {
        Some(upload) => common::content(&upload).await,
        None => b"nothing".to_vec(),
    };
    let content = String::from_utf8(content).unwrap();
    let seen = format!("{method} {uri} {original} {content}");
    axum::response::Response::builder()
        .header("x-seen", seen)
        .body(axum::body::Body::empty())
        .unwrap()
}

async fn client(addr: SocketAddr, path: &str) -> Tus {
    Tus {
        client: Client::connect(addr).await,
        path: path.to_owned(),
    }
}

/// Sends a file in two requests, with a question between them, and returns the answer to the last.
async fn upload(client: &mut Tus) -> (String, super::Answer) {
    let url = client.create_of(25).await;
    assert_eq!(client.patch(&url, 0, &LETTERS[..10]).await.status, 204);
    assert_eq!(offset(&client.head(&url).await), 10);
    let answer = client.patch(&url, 10, &LETTERS[10..]).await;
    assert_eq!(client.head(&url).await.status, 200);
    (url, answer)
}

async fn seen_by(app: Router, path: &str) -> (String, String) {
    let mut client = client(common::serve(app).await, path).await;
    let (url, answer) = upload(&mut client).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    (
        url.split('=').next().unwrap().to_owned(),
        header(&answer, "x-seen").to_owned(),
    )
}

#[tokio::test]
async fn axum_routes_lead_to_the_handler_of_the_creation() {
    // On a route for all methods.
    let app = Router::new().route("/files", any(finished)).layer(layer());
    let (url, seen) = seen_by(app, "/files?a=b").await;
    assert_eq!(url, "/files?upload");
    assert_eq!(seen, format!("POST /files?a=b /files?a=b {LETTERS}"));

    // Around the router, where the route can be for one method.
    let inner = Router::new().route("/files", post(finished));
    let app = Router::new().fallback_service(layer().layer(inner));
    let (_, seen) = seen_by(app, "/files?a=b").await;
    assert!(seen.starts_with("POST /files?a=b "), "{seen}");

    // Below a prefix.
    let inner = Router::new().route("/files", any(finished)).layer(layer());
    let app = Router::new().nest("/api", inner);
    let (url, seen) = seen_by(app, "/api/files?a=b").await;
    assert_eq!(url, "/api/files?upload");
    assert_eq!(seen, format!("POST /files?a=b /api/files?a=b {LETTERS}"));
}

/// The service that the layer is applied to, on each server and route.
#[tokio::test]
async fn a_cut_request_is_resumed_on_every_server() {
    let route = || Router::new().route("/files", any(finished));
    for (name, path) in [
        ("layer", "/files"),
        ("around", "/files"),
        ("nest", "/api/files"),
        ("hyper", "/files"),
        ("tonic", "/files"),
    ] {
        let layer = layer();
        let uploads = layer.uploads();
        let addr = match name {
            "layer" => common::serve(route().layer(layer)).await,
            "around" => {
                let inner = Router::new().route("/files", post(finished));
                common::serve(layer.layer(inner)).await
            }
            "nest" => {
                let app = Router::new().nest("/api", route().layer(layer));
                common::serve(app).await
            }
            "hyper" => common::serve(layer.layer(service_fn(handled))).await,
            _ => {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let addr = listener.local_addr().unwrap();
                let server = tonic::transport::Server::builder()
                    .accept_http1(true)
                    .layer(layer)
                    .add_routes(tonic::service::Routes::from(route()));
                let incoming = TcpListenerStream::new(listener);
                tokio::spawn(server.serve_with_incoming(incoming));
                addr
            }
        };
        let mut client = client(addr, path).await;
        let url = client.create_of(25).await;
        let mut socket = begin_patch(addr, &url, 0, 25).await;
        socket.write_all(&LETTERS.as_bytes()[..10]).await.unwrap();
        stored(&uploads, 10).await;
        drop(socket);
        let head = client.head(&url).await;
        assert_eq!((head.status, offset(&head)), (200, 10), "{name}");
        let last = client.patch(&url, 10, &LETTERS[10..]).await;
        assert_eq!(last.status, 204, "{name} {last:?}");
        let seen = header(&last, "x-seen");
        assert_eq!(seen, format!("POST /files {path} {LETTERS}"), "{name}");
        assert_eq!(offset(&client.head(&url).await), 25, "{name}");
    }
}

/// The same without axum.
async fn handled(request: Request<Incoming>) -> Result<axum::response::Response, Infallible> {
    let (parts, _) = request.into_parts();
    let (uri, upload) = (parts.uri, parts.extensions.get().cloned());
    Ok(finished(parts.method, uri.clone(), OriginalUri(uri), upload).await)
}

/// On a route for one method, the service behind the layer is the answer 405 for all others.
#[tokio::test]
async fn a_wrong_route_removes_no_file() {
    let layer = layer();
    let uploads = layer.uploads();
    let app = Router::new().route("/files", post(finished)).layer(layer);
    let mut client = client(common::serve(app).await, "/files").await;
    let url = client.create_of(25).await;
    assert_eq!(client.patch(&url, 0, LETTERS).await.status, 405);
    let page = uploads.list(&Default::default(), None).await.unwrap();
    assert!(page.uploads[0].progress.complete);
}

#[tokio::test]
async fn tokens_can_be_in_the_path() {
    let server = Server::with(|layer| layer.with_upload_paths(true)).await;
    let mut client = server.client().await;
    let (url, answer) = upload(&mut client).await;
    let token = url.strip_prefix("/files/").unwrap();
    assert_eq!((token.len(), answer.status), (32, 204));
    assert_eq!(server.deliveries()[0].uri.path(), "/files");
    // Both forms name the upload.
    assert_eq!(
        client.head(&format!("/files?upload={token}")).await.status,
        200
    );
    let part = [
        ("upload-concat", "partial"),
        ("upload-length", "5"),
        ("content-type", BYTES),
    ];
    let part = client.post(&part, "hello").await;
    let part = header(&part, "location").to_owned();
    let list = format!("final;http://a.example{part} {part}");
    assert_eq!(
        client.post(&[("upload-concat", &list)], "").await.status,
        201
    );
    assert_eq!(server.contents(), [LETTERS, "hellohello"]);
    // Other paths are the application's.
    for path in [
        "/files/x",
        &format!("/other/{token}"),
        &format!("/files/{token}/x"),
    ] {
        assert_eq!(
            client.send("GET", path, &[], "").await.body,
            format!("passed GET {path}")
        );
    }

    let inner = Router::new()
        .route("/files", any(finished))
        .route("/files/{id}", any(finished));
    let layer = layer().with_upload_paths(true);
    let app = Router::new().nest("/api", inner.layer(layer));
    let mut client = self::client(common::serve(app).await, "/api/files?a=b").await;
    let (url, answer) = upload(&mut client).await;
    assert!(url.starts_with("/api/files/"), "{url}");
    let seen = header(&answer, "x-seen");
    assert_eq!(seen, format!("POST /files?a=b /api/files?a=b {LETTERS}"));
}

#[tokio::test]
async fn the_public_url_is_used() {
    for in_path in [false, true] {
        let server = Server::with(|layer| {
            let layer = layer.with_public_url("https://example.com/api/files");
            layer.with_upload_paths(in_path)
        })
        .await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        let url = url.strip_prefix("https://example.com/api").unwrap();
        assert_eq!(url.starts_with("/files/"), in_path);
        assert_eq!(client.patch(url, 0, LETTERS).await.status, 204);
        assert_eq!(server.contents(), [LETTERS]);
    }
}

#[tokio::test]
async fn tus_can_be_switched_off() {
    let server = Server::with(|layer| layer.with_protocols([Protocol::plain()])).await;
    let mut client = server.client().await;
    let answer = client.post(&[("upload-length", "5")], "").await;
    assert_eq!(answer.body, "passed POST /files");
    let answer = client.send("OPTIONS", "/files", &[], "").await;
    assert_eq!(answer.body, "passed OPTIONS /files");
    let server = Server::with(|layer| layer.with_protocols([Protocol::tus()])).await;
    let mut client = server.client().await;
    assert_eq!(upload(&mut client).await.1.status, 204);
    let chunk = "/files?resumableIdentifier=a";
    let answer = client.send_plain("POST", chunk, &[], "").await;
    assert_eq!(answer.body, format!("passed POST {chunk}"));
}

/// A page of another origin reads `Location` and the offset.
#[tokio::test]
async fn a_cors_layer_with_the_lists_lets_pages_upload() {
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(CORS_ALLOWED_METHODS)
        .allow_headers(CORS_ALLOWED_HEADERS)
        .expose_headers(CORS_EXPOSED_HEADERS);
    let app = Router::new()
        .route("/files", any(finished))
        .layer(layer())
        .layer(cors);
    let mut client = client(common::serve(app).await, "/files").await;
    let preflight = [
        ("origin", "http://a.example"),
        ("access-control-request-method", "PATCH"),
        (
            "access-control-request-headers",
            "content-disposition,content-type,repr-digest,tus-resumable,upload-offset",
        ),
    ];
    let answer = client.send_plain("OPTIONS", "/files", &preflight, "").await;
    let allowed = header(&answer, "access-control-allow-headers");
    for name in [
        // Of Dropzone, blueimp and FilePond.
        "cache-control",
        "content-range",
        "upload-name",
        "x-requested-with",
        "content-disposition",
        "content-digest",
        "content-type",
        "repr-digest",
        "tus-resumable",
        "upload-complete",
        "upload-concat",
        "upload-offset",
    ] {
        assert!(
            allowed.split(',').any(|allowed| allowed == name),
            "{name} {allowed}"
        );
    }
    for method in ["PATCH", "PUT"] {
        assert!(header(&answer, "access-control-allow-methods").contains(method));
    }
    let created = [("origin", "http://a.example"), ("upload-length", "5")];
    let answer = client.post(&created, "").await;
    let exposed = header(&answer, "access-control-expose-headers");
    assert!(exposed.contains("content-location"), "{exposed}");
    assert!(exposed.contains(",range,"), "{exposed}");
    for name in answer.headers.keys().map(|name| name.as_str()) {
        let is_ours = name == "location" || name.starts_with("upload-") || name.starts_with("tus-");
        let is_exposed = exposed.split(',').any(|exposed| exposed == name);
        assert!(is_exposed || !is_ours, "{name} {exposed}");
    }
}
