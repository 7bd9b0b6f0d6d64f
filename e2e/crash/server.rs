//! The server of the crash tests: this program, started with `server` as its first argument.

use std::{
    io::{Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use axum::{
    Extension, Router,
    extract::Request,
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::any,
};
use serde_json::json;
use tower_resumable::{CompletedUpload, FileStore, ResumableLayer, store::Durability};

/// How long the application waits before it reads the file, if the answer does not wait for it.
const LATE: Duration = Duration::from_millis(300);

/// The header in which a client names the folder of its store. When a server is killed, a server of
/// another run may get the same port; it has to refuse the clients of this run.
pub const STORE: &str = "x-store";

pub struct Args {
    pub dir: PathBuf,
    pub durability: Durability,
    /// A deliberate mistake: the client is answered before the application has the file.
    pub answers_first: bool,
    /// Whether the store keeps some of the disk free, as it does by default.
    pub reserve: bool,
}

impl Args {
    pub fn to_words(&self) -> Vec<String> {
        let mut words = vec!["server".into(), self.dir.display().to_string()];
        words.push(format!("{:?}", self.durability));
        words.extend(self.answers_first.then(|| "answers-first".into()));
        words.extend((!self.reserve).then(|| "no-reserve".into()));
        words
    }

    pub fn from_words(words: &[String]) -> Option<Self> {
        let [first, dir, durability, rest @ ..] = words else {
            return None;
        };
        (first == "server").then(|| Self {
            dir: dir.into(),
            durability: match durability.as_str() {
                "Process" => Durability::Process,
                _ => Durability::Power,
            },
            answers_first: rest.iter().any(|word| word == "answers-first"),
            reserve: !rest.iter().any(|word| word == "no-reserve"),
        })
    }
}

/// Runs until it is killed. Prints its address to standard error, and a line for each delivery to
/// standard output. These lines stand for the database of the application, which no simulated crash
/// affects.
#[tokio::main]
pub async fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    // The harness never writes to the pipe. When the pipe ends, the harness has ended.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::abort();
    });
    let mut store = FileStore::builder(&args.dir)
        .with_durability(args.durability)
        .with_stall_timeout(Duration::from_secs(1));
    if !args.reserve {
        store = store.with_free_space_reserve(0);
    }
    let store = store.open()?;
    let mut layer = ResumableLayer::new(store).with_hold_back(Duration::ZERO);
    if std::env::var_os("CRASH_EVENTS").is_some() {
        layer = layer.with_events(|event| eprintln!("{event}"));
    }
    let app = Router::new()
        .route("/upload", any(finished))
        .layer(Extension(args.answers_first));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("listening on {}", listener.local_addr()?);
    let app = app
        .layer(layer)
        .layer(middleware::from_fn(only_ours))
        .layer(Extension(Store(args.dir.display().to_string())));
    axum::serve(listener, app).await?;
    Ok(())
}

#[derive(Clone)]
struct Store(String);

async fn only_ours(Extension(store): Extension<Store>, request: Request, next: Next) -> Response {
    let wanted = request.headers().get(STORE);
    if wanted.is_some_and(|wanted| wanted.as_bytes() == store.0.as_bytes()) {
        next.run(request).await
    } else {
        // The client tries again, and then reaches its server.
        StatusCode::SERVICE_UNAVAILABLE.into_response()
    }
}

async fn finished(Extension(answers_first): Extension<bool>, upload: CompletedUpload) -> String {
    let id = upload.id().to_owned();
    if answers_first {
        tokio::spawn(async move {
            tokio::time::sleep(LATE).await;
            report(&upload);
        });
    } else {
        report(&upload);
    }
    id
}

fn report(upload: &CompletedUpload) {
    let path = upload.path().unwrap_or(Path::new(""));
    let content = std::fs::read(path).unwrap_or_default();
    let line = json!({
        "identifier": upload.identifier(),
        "id": upload.id(),
        "attempt": upload.attempt(),
        "time": now(),
        "path": path,
        "whole": content.len() as u64 == upload.size()
            && Some(crc32fast::hash(&content)) == upload.crc32(),
    });
    // One write, so that a kill cannot cut the line.
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

/// Nanoseconds since 1970. All processes of this machine have the same clock.
pub fn now() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    time.map_or(0, |time| time.as_nanos() as u64)
}
