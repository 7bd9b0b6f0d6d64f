//! Shows an axum server with an upload page and a handler that is called once for each finished
//! file. Start it with `cargo run --example axum`, then open the address that it prints.

use std::{
    env,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{ConnectInfo, Path, State, connect_info::Connected},
    http::{HeaderValue, Request, StatusCode, header, header::InvalidHeaderValue},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::{any, get},
    serve::{IncomingStream, Listener},
};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tower_http::cors::CorsLayer;
use tower_resumable::{
    CORS_ALLOWED_HEADERS, CORS_ALLOWED_METHODS, CORS_EXPOSED_HEADERS, CompletedUpload, Delivery,
    Dialect, EventLevel, FileStore, InterimIo, Interims, ResumableLayer,
};

/// The finished uploads of this run.
type Files = Arc<Mutex<Vec<Value>>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let store = FileStore::open(option("--dir").unwrap_or("uploads".into()))?;
    // One line for each decision and each fault, such as why the store failed.
    let mut layer = ResumableLayer::new(store).with_events(|event| {
        // Not a line for each chunk.
        if event.level() >= EventLevel::Info {
            eprintln!("{event}");
        }
    });
    // The page lists what is unfinished. This server has no users, so everyone sees all of it:
    // `examples/auth.rs` names the owners.
    layer = layer.with_list_parameter("unfinished");
    if let Some(seconds) = option("--timeout") {
        let timeout = Duration::from_secs(seconds.parse()?);
        layer = layer.with_delivery(Delivery::default().with_timeout(timeout));
    }
    // Resumable.js, flow.js, Dropzone and Fine Uploader work without this.
    if let Some(name) = option("--client") {
        layer = layer.with_protocol(client(&name)?);
    }
    let shown = layer.clone();
    let app = Router::new()
        // `any`, because the request that completes an upload has the method that the client uses.
        .route("/upload", any(finished))
        .route("/files", get(files))
        .route(
            "/options/{client}",
            get(async move |client| options(&shown, client)),
        )
        .route("/", get(|| async { Html(include_str!("page/index.html")) }))
        .route("/resumable.js", get(script))
        .with_state(Files::default());
    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    // Deliver the uploads that were complete when the last process ended, and those whose delivery
    // fails.
    let uploads = layer.uploads();
    let deliveries = tokio::spawn(uploads.deliver_every(
        Duration::from_secs(60),
        app.clone(),
        |_| Request::post("/upload").body(Body::empty()),
    ));
    // Remove abandoned uploads after a week, which is the default retention.
    tokio::spawn(uploads.sweep_every(Duration::from_secs(3600)));
    let mut app = app.layer(layer).layer(middleware::from_fn(send_interims));
    // For pages of another origin, such as the one in `examples/uppy`.
    if let Some(origin) = option("--allow-origin") {
        app = app.layer(cors(&origin)?);
    }
    let app = app.into_make_service_with_connect_info::<Connection>();
    let server = axum::serve(SendingInterims(listener), app).with_graceful_shutdown(shutdown());
    // Clients that are slow to end their requests are not waited for without limit.
    tokio::select! {
        ended = server => ended?,
        () = async { shutdown().await; tokio::time::sleep(GRACE).await } => {}
    }
    deliveries.abort();
    // The deliveries whose clients have gone.
    if tokio::time::timeout(GRACE, uploads.drain()).await.is_err() {
        eprintln!("some uploads are delivered again after the next start");
    }
    Ok(())
}

/// Lets the layer tell clients such as URLSession the URL of an upload before its bytes arrive.
async fn send_interims(
    ConnectInfo(Connection(interims)): ConnectInfo<Connection>,
    mut request: Request<Body>,
    next: Next,
) -> Response {
    let _guard = interims.enter(&mut request);
    next.run(request).await
}

/// A listener whose connections can send interim responses.
struct SendingInterims(TcpListener);

impl Listener for SendingInterims {
    type Io = InterimIo<TcpStream>;
    type Addr = std::net::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        let (connection, address) = Listener::accept(&mut self.0).await;
        // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of the one
        // before.
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
        (InterimIo::new(connection), address)
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

/// What the handlers of a connection know of it. An address can be here too.
#[derive(Clone)]
struct Connection(Interims);

impl Connected<IncomingStream<'_, SendingInterims>> for Connection {
    fn connect_info(stream: IncomingStream<'_, SendingInterims>) -> Self {
        Self(stream.io().interims())
    }
}

/// What a browser has to be told before the page of `origin` can upload with tus.
fn cors(origin: &str) -> Result<CorsLayer, InvalidHeaderValue> {
    Ok(CorsLayer::new()
        .allow_origin(origin.parse::<HeaderValue>()?)
        .allow_methods(CORS_ALLOWED_METHODS)
        .allow_headers(CORS_ALLOWED_HEADERS)
        .expose_headers(CORS_EXPOSED_HEADERS))
}

/// How long requests and deliveries that are running may take after the signal to end.
const GRACE: Duration = Duration::from_secs(30);

/// Waits for Ctrl-C or SIGTERM.
async fn shutdown() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // Without a handler the signal ends the process at once.
        let Ok(mut terminate) = signal(SignalKind::terminate()) else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

/// Called once for each file, when all its bytes are on disk.
async fn finished(State(files): State<Files>, upload: CompletedUpload) -> Json<Value> {
    work().await;
    let file = json!({
        "id": upload.id(),
        "path": upload.path(),
        "size": upload.size(),
        "file_name": upload.file_name(),
        "relative_path": upload.relative_path(),
        "attempt": upload.attempt(),
    });
    println!("{file}");
    files
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(file);
    Json(json!({
        "id": upload.id(),
        "file_name": upload.safe_file_name(),
        "size": upload.size(),
    }))
}

async fn files(State(files): State<Files>) -> Json<Vec<Value>> {
    Json(files.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// The options that the page passes to the client's constructor.
fn options(layer: &ResumableLayer, Path(client): Path<String>) -> impl IntoResponse + use<> {
    let options = match client.as_str() {
        "flow" => layer.client_options().flow_js(1 << 20),
        "dropzone" => layer.client_options().dropzone(1 << 20),
        _ => layer.client_options().resumable_js(1 << 20),
    };
    ([(header::CONTENT_TYPE, "application/json")], options)
}

/// Resumable.js, if the browser tests have installed it. Otherwise the page loads it from a CDN.
async fn script() -> impl IntoResponse {
    const FILE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/e2e/browser/node_modules/resumablejs/resumable.js"
    );
    match tokio::fs::read(FILE).await {
        Ok(script) => ([(header::CONTENT_TYPE, "text/javascript")], script).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// As if the application worked on the file: `--work MILLISECONDS`.
async fn work() {
    let millis = option("--work").and_then(|millis| millis.parse().ok());
    tokio::time::sleep(Duration::from_millis(millis.unwrap_or(0))).await;
}

/// The value of a command line option: `--listen ADDRESS`, `--dir DIR`, `--client NAME`, `--work
/// MILLISECONDS`, `--allow-origin ORIGIN`, or `--timeout SECONDS` for how long a request waits for
/// the handler.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}

/// The client `NAME`, or `NAME=BYTES` for a client that does not send the size of its chunks.
fn client(name: &str) -> Result<Dialect, Box<dyn Error>> {
    let (name, chunk_size) = name.split_once('=').unwrap_or((name, "5242880"));
    Ok(match name {
        "simple-uploader" => Dialect::simple_uploader(),
        "simple-uploader-list" => Dialect::simple_uploader().with_list_tests("uploaded"),
        "plupload" => Dialect::plupload(),
        "webuploader" => Dialect::web_uploader(chunk_size.parse()?),
        "blueimp" => Dialect::blueimp(),
        "filepond" => Dialect::filepond(),
        "huge-uploader" => Dialect::huge_uploader(chunk_size.parse()?),
        "bootstrap-fileinput" => Dialect::bootstrap_fileinput(),
        _ => return Err(format!("no client {name}").into()),
    })
}
