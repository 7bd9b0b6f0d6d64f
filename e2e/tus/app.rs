//! The server of `e2e/tus/run`: an application on one of the stores, which prints a line of JSON
//! for each request, each answer and each delivery.
//!
//! `--listen ADDRESS`, `--dir DIR`, `--store file|memory|bucket`
//!
//! `--public-url URL`, `--upload-paths`, `--bodies`, `--chunk-size BYTES`: settings of the layer.
//!
//! `--fail N`: the application fails N times. `--refuse`: it rejects each file.
//!
//! `--fault 'METHOD N STATUS'`: the N-th request of this method gets this answer, as from a proxy
//! in front of the server.

use std::{
    env,
    error::Error,
    io, process,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use axum::{
    Json, Router,
    body::to_bytes,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, Method, StatusCode, header::ACCESS_CONTROL_REQUEST_METHOD},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
};
use object_store::memory::InMemory;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tower::ServiceExt;
use tower_http::cors::{Any, CorsLayer};
use tower_resumable::{
    BucketStore, CORS_ALLOWED_HEADERS, CORS_ALLOWED_METHODS, CORS_EXPOSED_HEADERS, CompletedUpload,
    FileStore, Limits, MemoryStore, ResumableLayer,
};

type Failure = Box<dyn Error + Send + Sync>;

/// A header of the application's answers.
const APPLICATION: HeaderName = HeaderName::from_static("x-application");

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let app = Router::new()
        .route("/files", any(finished))
        // The URLs of uploads with `--upload-paths`.
        .route("/files/{token}", any(finished))
        .with_state(Arc::new(AtomicU32::new(number("--fail")?)))
        .layer(layer().await?)
        .layer(middleware::from_fn_with_state(Faults::parse()?, log));
    let cors = CorsLayer::new()
        .allow_origin(Any)
        .allow_methods(CORS_ALLOWED_METHODS)
        .allow_headers(CORS_ALLOWED_HEADERS)
        .expose_headers([&CORS_EXPOSED_HEADERS[..], &[APPLICATION]].concat());
    let (open, own) = (app.clone().layer(cors), app);
    // `CorsLayer` would answer the `OPTIONS` requests of tus clients, too.
    let app = Router::new().fallback(move |request: Request| {
        let is_options = request.method() == Method::OPTIONS;
        let is_preflight = request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let app = if is_options && !is_preflight {
            &own
        } else {
            &open
        };
        app.clone().oneshot(request)
    });
    let address = option("--listen").unwrap_or("127.0.0.1:0".into());
    let listener = tokio::net::TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

async fn layer() -> Result<ResumableLayer, Failure> {
    let mut layer = match option("--store").as_deref() {
        Some("memory") => ResumableLayer::new(MemoryStore::default()),
        Some("bucket") => {
            let engine = BucketStore::builder(Arc::new(InMemory::new()));
            ResumableLayer::new(engine.with_self_test(false).open().await?)
        }
        _ => ResumableLayer::new(FileStore::open(option("--dir").ok_or("no --dir")?)?),
    };
    if let Some(url) = option("--public-url") {
        layer = layer.with_public_url(url);
    }
    if let Some(bytes) = option("--chunk-size") {
        layer = layer.with_limits(Limits::default().with_chunk_size(bytes.parse()?));
    }
    Ok(layer
        .with_path("/files")
        .with_upload_paths(flag("--upload-paths"))
        .with_answer_bodies(flag("--bodies"))
        .with_events(|event| eprintln!("event: {event:?}")))
}

/// The application.
async fn finished(State(failures): State<Arc<AtomicU32>>, upload: CompletedUpload) -> Response {
    if flag("--refuse") {
        return (StatusCode::UNPROCESSABLE_ENTITY, "not a picture").into_response();
    }
    let left = failures.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1));
    if left.is_ok() {
        return (StatusCode::SERVICE_UNAVAILABLE, "later").into_response();
    }
    // The suite reads the files of a `FileStore` itself.
    let hash = if upload.path().is_some() {
        None
    } else {
        match hash(&upload).await {
            Ok(hash) => Some(hash),
            Err(error) => {
                return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
            }
        }
    };
    println!(
        "{}",
        json!({
            "event": "delivery",
            "id": upload.id(),
            "path": upload.path(),
            "sha256": hash,
            "size": upload.size(),
            "file_name": upload.file_name(),
            "relative_path": upload.relative_path(),
            "content_type": upload.content_type(),
            "fields": upload.fields(),
            "attempt": upload.attempt(),
        })
    );
    (
        [(APPLICATION, upload.id())],
        Json(json!({ "id": upload.id() })),
    )
        .into_response()
}

async fn hash(upload: &CompletedUpload) -> io::Result<String> {
    let mut hash = Sha256::new();
    let mut content = upload.content();
    while let Some(piece) = content.next().await {
        hash.update(piece?);
    }
    Ok(hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// Prints each request and its answer. A request that is cut has no answer.
async fn log(State(faults): State<Arc<Faults>>, request: Request, next: Next) -> Response {
    let n = faults.requests.fetch_add(1, Relaxed) + 1;
    let pid = process::id();
    let headers = request.headers();
    println!(
        "{}",
        json!({
            "event": "request",
            "pid": pid,
            "n": n,
            "method": request.method().as_str(),
            "uri": request.uri().to_string(),
            "override": header(headers, "x-http-method-override"),
            "offset": header(headers, "upload-offset"),
            "length": header(headers, "upload-length"),
            "checksum": header(headers, "upload-checksum"),
        })
    );
    let response = match faults.hit(request.method()) {
        Some(status) => {
            // Without this the client may see a closed connection instead of the answer.
            let _ = to_bytes(request.into_body(), usize::MAX).await;
            status.into_response()
        }
        None => next.run(request).await,
    };
    println!(
        "{}",
        json!({
            "event": "answer",
            "pid": pid,
            "n": n,
            "status": response.status().as_u16(),
            "offset": header(response.headers(), "upload-offset"),
        })
    );
    response
}

fn header(headers: &HeaderMap, name: &str) -> Value {
    headers
        .get(name)
        .map(|value| String::from_utf8_lossy(value.as_bytes()).into())
        .unwrap_or_default()
}

struct Faults {
    requests: AtomicU32,
    faults: Vec<(Method, AtomicU32, StatusCode)>,
}

impl Faults {
    fn parse() -> Result<Arc<Self>, Failure> {
        let mut faults = Vec::new();
        let mut words = env::args();
        while words.any(|word| word == "--fault") {
            let fault = words.next().unwrap_or_default();
            let [method, n, status] = fault.split(' ').collect::<Vec<_>>()[..] else {
                return Err(format!("no fault: {fault}").into());
            };
            faults.push((method.parse()?, n.parse()?, status.parse()?));
        }
        let faults = faults
            .into_iter()
            .map(|(method, n, status): (Method, u32, StatusCode)| (method, n.into(), status))
            .collect();
        Ok(Arc::new(Self {
            requests: AtomicU32::new(0),
            faults,
        }))
    }

    /// Counts a request, and returns the status of the fault that it gets.
    fn hit(&self, method: &Method) -> Option<StatusCode> {
        let hits = self.faults.iter().filter(|(of, _, _)| of == method);
        // Each fault of this method counts this request.
        hits.filter(|(_, left, _)| left.fetch_sub(1, Relaxed) == 1)
            .map(|(_, _, status)| *status)
            .last()
    }
}

fn flag(name: &str) -> bool {
    env::args().any(|word| word == name)
}

fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}

fn number(name: &str) -> Result<u32, Failure> {
    Ok(option(name).map_or(Ok(0), |number| number.parse())?)
}
