//! Shows the progress of uploads to a second viewer, such as the same user on another device, as
//! server-sent events. Each viewer sees only the uploads of one owner. Start the server with the
//! first command, watch with the second one, and upload a file with the third one; or open the
//! address that the server prints in two windows.
//!
//! ```sh
//! cargo run --example progress
//! curl -N -b user=alice http://127.0.0.1:3000/progress
//! cargo run --example upload -- --header 'cookie: user=alice' http://127.0.0.1:3000/upload FILE
//! ```
//!
//! * A viewer first gets the list of the unfinished uploads (`event: uploads`) from the store, and
//!   then each change (`event: upload`) from the events of the layer.
//! * The hook for events only puts a message into a channel that never blocks, so a viewer that
//!   does not read delays no upload. It loses the oldest messages, and gets the list again.
//! * This is the progress of one server. Behind a balancer, the events of all servers have to go
//!   through a channel that they share, such as one of Redis or PostgreSQL.

use std::{
    collections::HashMap,
    env,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderMap, Request, StatusCode, header},
    response::{Html, Sse, sse},
    routing::{any, get},
    serve::ListenerExt as _,
};
use futures_util::{Stream, stream};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::broadcast::{self, error::RecvError},
};
use tower_resumable::{
    BoxError, CompletedUpload, Event, EventLevel, FileStore, Refusal, ResumableLayer, Scope,
    Upload, Uploads, Verdict, store::Filter,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let store = FileStore::open(option("--dir").unwrap_or("uploads".into()))?;
    let viewers = Viewers::default();
    let told = viewers.clone();
    let layer = ResumableLayer::new(store)
        .with_scope(|parts| match user(&parts.headers) {
            Some(user) => Ok(user),
            None => Err(Refusal::new(StatusCode::UNAUTHORIZED, "sign in first")),
        })
        .with_events(move |event| {
            // Not a line for each chunk.
            if event.level() >= EventLevel::Info {
                eprintln!("{event}");
            }
            told.tell(event);
        });
    let uploads = layer.uploads();
    let app = Router::new()
        .route("/upload", any(finished))
        .route("/progress", get(progress))
        .route(
            "/",
            get(|| async { Html(include_str!("page/progress.html")) }),
        )
        .with_state((viewers.clone(), uploads.clone()));
    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    // Deliver the uploads that were complete when the last process ended, and those whose delivery
    // fails.
    let deliveries = tokio::spawn(uploads.deliver_every(
        Duration::from_secs(60),
        app.clone(),
        |_| Request::post("/upload").body(Body::empty()),
    ));
    // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    let server = axum::serve(listener, app.layer(layer)).with_graceful_shutdown(async move {
        shutdown().await;
        // Otherwise the server would wait for the viewers, who never end their requests.
        viewers.close();
    });
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

/// The user of a request: the cookie `user`. A real application looks up a session.
fn user(headers: &HeaderMap) -> Option<Scope> {
    let cookies = headers.get(header::COOKIE)?.to_str().ok()?;
    let mut cookies = cookies.split(';').map(str::trim);
    let user = cookies.find_map(|cookie| cookie.strip_prefix("user="));
    user.filter(|user| !user.is_empty()).map(Scope::new)
}

/// How many messages a viewer may be behind.
const CAPACITY: usize = 64;

/// A channel for each owner whose uploads are watched. `None` when the server ends.
#[derive(Clone)]
struct Viewers(Arc<Mutex<Option<Channels>>>);

type Channels = HashMap<Scope, broadcast::Sender<Value>>;

impl Default for Viewers {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Some(Channels::new()))))
    }
}

impl Viewers {
    /// Tells the viewers of an upload what has changed. Never blocks.
    fn tell(&self, event: &Event<'_>) {
        let (upload, received, state) = match event {
            Event::Created { upload } => (upload, None, "receiving"),
            Event::Stored {
                upload, progress, ..
            } => (upload, Some(progress.received), "receiving"),
            Event::DeliveryStarted { upload, .. } => (upload, upload.length, "delivering"),
            Event::DeliveryEnded {
                upload, verdict, ..
            } => match verdict {
                Verdict::Delivered => (upload, upload.length, "finished"),
                // `FileRemoved` follows.
                Verdict::Rejected => return,
                _ => (upload, upload.length, "waiting"),
            },
            Event::DeliveryFailed { upload, .. } => (upload, upload.length, "waiting"),
            Event::FileRemoved { upload, .. } => (upload, None, "removed"),
            _ => return,
        };
        let mut channels = self.lock();
        let Some(channels) = channels.as_mut() else {
            return;
        };
        if let Some(channel) = channels.get(&upload.scope) {
            // An error means that the last viewer has gone.
            if channel.send(view(upload, received, state)).is_err() {
                channels.remove(&upload.scope);
            }
        }
    }

    /// Messages from now on. `None` if the server ends.
    fn watch(&self, owner: &Scope) -> Option<broadcast::Receiver<Value>> {
        let mut channels = self.lock();
        let channel = channels
            .as_mut()?
            .entry(owner.clone())
            .or_insert_with(|| broadcast::Sender::new(CAPACITY));
        Some(channel.subscribe())
    }

    /// Ends the streams of all viewers.
    fn close(&self) {
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Channels>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn view(upload: &Upload, received: Option<u64>, state: &str) -> Value {
    json!({
        "id": upload.id,
        "file_name": upload.file_name,
        "length": upload.length,
        "received": received.unwrap_or(0),
        "state": state,
    })
}

/// The uploads of the user who asks.
async fn progress(
    State((viewers, uploads)): State<(Viewers, Uploads)>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, BoxError>>>, StatusCode> {
    let owner = user(&headers).ok_or(StatusCode::UNAUTHORIZED)?;
    // Before the list is made, so that no change is missed.
    let changes = viewers
        .watch(&owner)
        .ok_or(StatusCode::SERVICE_UNAVAILABLE)?;
    let viewer = Viewer {
        owner,
        uploads,
        changes,
        is_behind: true,
    };
    let events = stream::unfold(viewer, |mut viewer| async {
        Some((viewer.next().await?, viewer))
    });
    // A comment every 15 seconds, so that proxies keep the connection.
    Ok(Sse::new(events).keep_alive(sse::KeepAlive::default()))
}

struct Viewer {
    owner: Scope,
    uploads: Uploads,
    changes: broadcast::Receiver<Value>,
    /// Whether it needs the list, because it is new or has missed something.
    is_behind: bool,
}

impl Viewer {
    /// The next event of its stream. `None` when the server ends.
    async fn next(&mut self) -> Option<Result<sse::Event, BoxError>> {
        if !self.is_behind {
            match self.changes.recv().await {
                Ok(change) => return Some(event("upload", &change)),
                Err(RecvError::Closed) => return None,
                Err(RecvError::Lagged(_)) => {}
            }
        }
        self.is_behind = false;
        // What is still in the channel may be older than the list. The last message about an upload
        // is right.
        match self.list().await {
            Ok(list) => Some(event("uploads", &list.into())),
            Err(error) => Some(Err(error)),
        }
    }

    async fn list(&self) -> Result<Vec<Value>, BoxError> {
        let filter = Filter::default().with_scope(self.owner.clone());
        let (mut list, mut after) = (Vec::new(), None);
        loop {
            let page = self.uploads.list(&filter, after.as_ref()).await?;
            list.extend(page.uploads.iter().map(|listed| {
                let progress = listed.progress;
                let state = if progress.complete {
                    "delivering"
                } else {
                    "receiving"
                };
                view(&listed.upload, Some(progress.received), state)
            }));
            after = page.next;
            if after.is_none() {
                return Ok(list);
            }
        }
    }
}

fn event(name: &str, data: &Value) -> Result<sse::Event, BoxError> {
    Ok(sse::Event::default().event(name).json_data(data)?)
}

async fn finished(upload: CompletedUpload) -> String {
    let file = json!({
        "path": upload.path(),
        "file_name": upload.file_name(),
        "attempt": upload.attempt(),
    });
    println!("{file}");
    format!("{} belongs to {}", upload.safe_file_name(), upload.scope())
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

/// The value of a command line option: `--listen ADDRESS` or `--dir DIR`.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}
