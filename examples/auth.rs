//! Shows uploads that belong to users: a bearer token names the user, each user sees only their own
//! uploads, and each user has a quota. Start the server with the first command, then upload a file
//! with the second one.
//!
//! ```sh
//! cargo run --example auth
//! cargo run --example upload -- --header 'authorization: Bearer alices-token' \
//!     http://127.0.0.1:3000/upload FILE
//! ```

use std::{
    collections::HashMap,
    env,
    error::Error,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::Request,
    http::{StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::any,
    serve::ListenerExt as _,
};
use serde_json::json;
use tokio::net::TcpListener;
use tower_resumable::{
    Admission, CompletedUpload, EventLevel, FileStore, Limits, Purpose, Refusal, ResumableLayer,
    Scope,
};

/// The user that a token names. `sign_in` puts it into the extensions of the request.
#[derive(Clone)]
struct User(&'static str);

/// How many bytes each user has stored. A real application keeps this in its database.
#[derive(Clone, Default)]
struct Quotas(Arc<Mutex<HashMap<Scope, u64>>>);

const QUOTA: u64 = 100 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let store = FileStore::open(option("--dir").unwrap_or("uploads".into()))?;
    let quotas = Quotas::default();
    let asked = quotas.clone();
    let layer = ResumableLayer::new(store)
        // A user cannot see the uploads of another user.
        .with_scope(|parts| match parts.extensions.get::<User>() {
            Some(user) => Ok(Scope::new(user.0)),
            None => Err(Refusal::new(StatusCode::UNAUTHORIZED, "sign in first")),
        })
        .with_limits(
            Limits::default()
                .with_file_size(QUOTA)
                .with_uploads_per_scope(10),
        )
        .with_admission(move |request| asked.clone().check(request))
        // One line for each decision and each fault, such as why the store failed.
        .with_events(|event| {
            // Not a line for each chunk.
            if event.level() >= EventLevel::Info {
                eprintln!("{event}");
            }
        });
    let uploads = layer.uploads();
    let app = Router::new()
        .route("/upload", any(finished))
        .layer(Extension(quotas));
    // Deliver the uploads that were complete when the last process ended, and those whose delivery
    // fails. No user is signed in: the scope of an upload names its owner.
    let deliveries = tokio::spawn(uploads.deliver_every(
        Duration::from_secs(60),
        app.clone(),
        |_| Request::post("/upload").body(Body::empty()),
    ));
    let app = app
        .layer(layer)
        // axum runs the layer that is added last first: `sign_in` runs before the uploads.
        .layer(middleware::from_fn(sign_in));
    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    let server = axum::serve(listener, app).with_graceful_shutdown(shutdown());
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

async fn sign_in(mut request: Request, next: Next) -> Response {
    let token = request.headers().get(header::AUTHORIZATION);
    let user = match token.map(|token| token.as_bytes()) {
        Some(b"Bearer alices-token") => User("alice"),
        Some(b"Bearer bobs-token") => User("bob"),
        // With the options of `ResumableLayer::client_options`, Resumable.js does not retry a 401.
        _ => return StatusCode::UNAUTHORIZED.into_response(),
    };
    request.extensions_mut().insert(user);
    next.run(request).await
}

impl Quotas {
    fn used(&self, user: &Scope) -> u64 {
        let quotas = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        quotas.get(user).copied().unwrap_or_default()
    }

    /// Called before the first byte of a request is stored, and before a file is delivered.
    fn check(
        self,
        request: &Admission<'_>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let user = request.scope().clone();
        let size = request
            .upload()
            .and_then(|upload| upload.length)
            .unwrap_or(0);
        let stores = matches!(request.purpose(), Purpose::Chunk | Purpose::Deliver);
        async move {
            if stores && self.used(&user) + size > QUOTA {
                return Err(Refusal::new(StatusCode::FORBIDDEN, "your quota is used up"));
            }
            Ok(())
        }
    }
}

async fn finished(Extension(quotas): Extension<Quotas>, upload: CompletedUpload) -> String {
    work().await;
    let file = json!({
        "path": upload.path(),
        "file_name": upload.file_name(),
        "attempt": upload.attempt(),
    });
    println!("{file}");
    let mut quotas = quotas.0.lock().unwrap_or_else(PoisonError::into_inner);
    *quotas.entry(upload.scope().clone()).or_default() += upload.size();
    format!("{} belongs to {}", upload.safe_file_name(), upload.scope())
}

/// As if the application worked on the file: `--work MILLISECONDS`.
async fn work() {
    let millis = option("--work").and_then(|millis| millis.parse().ok());
    tokio::time::sleep(Duration::from_millis(millis.unwrap_or(0))).await;
}

/// The value of a command line option: `--listen ADDRESS` or `--dir DIR`.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}
