//! One of the servers: this program, started with `server` as its first argument.

use std::{
    io::{self, Read as _, Write as _},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use axum::{Extension, Router, http::StatusCode, routing::any};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tower_resumable::{BucketStore, CompletedUpload, ResumableLayer};

use super::engine::{Error, Kind};

/// The options of a server.
#[derive(Clone, Debug)]
pub struct Options {
    pub listen: SocketAddr,
    /// The name of the engine.
    pub engine: String,
    pub endpoint: SocketAddr,
    pub bucket: String,
    pub prefix: String,
    pub lease: Duration,
    /// How long the application waits before it reads the file.
    pub pause: Duration,
    /// The interval of the sweeps. Zero means no sweeps.
    pub sweep: Duration,
    /// Whether the application reads the file.
    pub reads: bool,
}

impl Options {
    pub fn to_word(&self) -> String {
        json!({
            "listen": self.listen.to_string(),
            "engine": self.engine,
            "endpoint": self.endpoint.to_string(),
            "bucket": self.bucket,
            "prefix": self.prefix,
            "lease": self.lease.as_millis() as u64,
            "pause": self.pause.as_millis() as u64,
            "sweep": self.sweep.as_millis() as u64,
            "reads": self.reads,
        })
        .to_string()
    }

    pub fn from_word(word: &str) -> Result<Self, Error> {
        let words: Value = serde_json::from_str(word)?;
        let text = |name: &str| words[name].as_str().ok_or(format!("no {name}"));
        let time = |name: &str| Duration::from_millis(words[name].as_u64().unwrap_or(0));
        Ok(Self {
            listen: text("listen")?.parse()?,
            engine: text("engine")?.into(),
            endpoint: text("endpoint")?.parse()?,
            bucket: text("bucket")?.into(),
            prefix: text("prefix")?.into(),
            lease: time("lease"),
            pause: time("pause"),
            sweep: time("sweep"),
            reads: words["reads"] == true,
        })
    }
}

/// Opens the store with the settings of the servers.
pub async fn store(
    kind: Kind,
    endpoint: SocketAddr,
    bucket: &str,
    prefix: &str,
    lease: Duration,
) -> Result<BucketStore, Error> {
    let client = kind.client(endpoint, bucket)?;
    let store = BucketStore::builder(Arc::new(client))
        .with_prefix(prefix)
        .with_lease(lease)
        // The conformance tests run the self-test.
        .with_self_test(false)
        .open()
        .await?;
    Ok(store)
}

/// Runs until it is killed. Prints its address to standard error, and a line for each event of the
/// application to standard output. These lines stand for the database of the application, which a
/// kill does not affect.
pub async fn run(options: Options) -> Result<(), Error> {
    // The harness never writes to the pipe. When the pipe ends, the harness has ended.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::abort();
    });
    let store = store(
        Kind::of(&options.engine),
        options.endpoint,
        &options.bucket,
        &options.prefix,
        options.lease,
    )
    .await?;
    let layer = ResumableLayer::new(store).with_hold_back(Duration::ZERO);
    if !options.sweep.is_zero() {
        tokio::spawn(layer.uploads().sweep_every(options.sweep));
    }
    let app = Router::new()
        .route("/upload", any(finished))
        // For a load balancer or a browser that needs an answer of this origin.
        .route("/health", any(|| async { StatusCode::OK }))
        .layer(Extension(Handler {
            pause: options.pause,
            reads: options.reads,
        }));
    // A connection of another process may have the port of a server that was killed.
    let mut tries = 0;
    let listener = loop {
        match tokio::net::TcpListener::bind(options.listen).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < 100 => {
                tries += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            listener => break listener?,
        }
    };
    eprintln!("listening on {}", listener.local_addr()?);
    axum::serve(listener, app.layer(layer)).await?;
    Ok(())
}

#[derive(Clone, Copy)]
struct Handler {
    pause: Duration,
    reads: bool,
}

async fn finished(
    Extension(handler): Extension<Handler>,
    upload: CompletedUpload,
) -> Result<String, StatusCode> {
    report("called", &upload, Value::Null);
    tokio::time::sleep(handler.pause).await;
    if handler.reads {
        let sha256 = sha256(&upload).await.map_err(|error| {
            eprintln!("cannot read: {error}");
            report("failed", &upload, Value::Null);
            StatusCode::INTERNAL_SERVER_ERROR
        })?;
        report("read", &upload, sha256.into());
    }
    Ok(
        json!({ "id": upload.id(), "file_name": upload.safe_file_name(), "size": upload.size() })
            .to_string(),
    )
}

async fn sha256(upload: &CompletedUpload) -> std::io::Result<String> {
    let mut hash = Sha256::new();
    let mut content = upload.content();
    while let Some(piece) = content.next().await {
        hash.update(piece?);
    }
    Ok(hex(&hash.finalize()))
}

fn report(what: &str, upload: &CompletedUpload, sha256: Value) {
    let line = json!({
        "event": what,
        "identifier": upload.identifier(),
        "file_name": upload.file_name(),
        "size": upload.size(),
        "id": upload.id(),
        "attempt": upload.attempt(),
        "sha256": sha256,
        "time": now(),
        "pid": std::process::id(),
    });
    // One write, so that a kill cannot cut the line.
    let _ = std::io::stdout().write_all(format!("{line}\n").as_bytes());
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Nanoseconds since 1970. All processes of this machine have the same clock.
pub fn now() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    time.map_or(0, |time| time.as_nanos() as u64)
}
