//! Shows work that takes longer than a client should wait: the handler takes over the file, adds a
//! job to a table in SQLite and answers 202. The client asks `GET /jobs/<id>` for the result. Start
//! the server with the first command, then upload a file with the second one.
//!
//! ```sh
//! cargo run --example slow_handler
//! cargo run --example upload -- http://127.0.0.1:3000/upload FILE
//! ```
//!
//! * The id of the delivery is the key of the table, so a delivery that is repeated after a crash
//!   adds no second job.
//! * The row is durable before the answer, so no file is lost. A job that was running when the
//!   process was killed has no result, and starts again with the next process.
//! * The job writes its effect and its end in one statement, so it finishes once.
//!
//! Why a handler should not keep its client waiting: `e2e/slow/run` measures what clients get for
//! the last chunk. Chromium, Firefox (both with Resumable.js) and curl get the same, and the
//! handler is called once in each row:
//!
//! | the layer waits | proxy | the handler takes 65 s | it takes 310 s |
//! |---|---|---|---|
//! | 50 s (default) | any | 503 after 50 s, then 200 after 14 s | 6 times 503, then 200 |
//! | 60 s | none | 503 after 60 s, then 200 after 4 s | 5 times 503, then 200 |
//! | 60 s | nginx (waits 60 s) | 504 after 60 s, then 200 after 4 s | 5 times 504, then 200 |
//! | 1 h | none | 200 after 65 s | 200 after 310 s |
//! | 1 h | nginx | 504 after 60 s, then 200 after 4 s | 5 times 504, then 200 |
//! | 1 h | nginx, `proxy_read_timeout 1h` | 200 after 65 s | 200 after 310 s |
//! | the handler answers 202 | any | 200 after less than 2 s | the same |
//!
//! Browsers wait, proxies do not, and the retries of a client get the answer of the one call. But a
//! client sends its chunk again for each retry, it stops after as many as it is configured for,
//! and a handler whose process ends begins anew. (Chunk clients get 202 as 200.)

use std::{
    env,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{self, State},
    http::{Request, StatusCode, header},
    response::IntoResponse,
    routing::{any, get},
    serve::ListenerExt as _,
};
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::{net::TcpListener, sync::Notify, task::spawn_blocking};
use tower_resumable::{BoxError, CompletedUpload, EventLevel, FileStore, ResumableLayer};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let dir = PathBuf::from(option("--dir").unwrap_or("uploads".into()));
    let layer = ResumableLayer::new(FileStore::open(&dir)?)
        // One line for each decision and each fault, such as why the store failed.
        .with_events(|event| {
            // Not a line for each chunk.
            if event.level() >= EventLevel::Info {
                eprintln!("{event}");
            }
        });
    let jobs = Jobs::open(&dir.join("jobs"))?;
    let app = Router::new()
        .route("/upload", any(accept))
        .route("/jobs/{id}", get(show))
        .with_state(jobs.clone());
    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    let uploads = layer.uploads();
    // Deliver the uploads that were complete when the last process ended, and those whose delivery
    // fails.
    let deliveries = tokio::spawn(uploads.deliver_every(
        Duration::from_secs(60),
        app.clone(),
        |_| Request::post("/upload").body(Body::empty()),
    ));
    let worker = tokio::spawn(jobs.run());
    // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    let server = axum::serve(listener, app.layer(layer)).with_graceful_shutdown(shutdown());
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
    // The job that is running starts again with the next process.
    worker.abort();
    Ok(())
}

/// Called once for each file, and again if the process ends before the answer is recorded.
async fn accept(
    State(jobs): State<Jobs>,
    upload: CompletedUpload,
) -> Result<impl IntoResponse, StatusCode> {
    // 500 keeps the file, which is delivered again later.
    if let Err(error) = jobs.add(&upload).await {
        eprintln!("job {}: {error}", upload.id());
        return Err(StatusCode::INTERNAL_SERVER_ERROR);
    }
    let job = format!("/jobs/{}", upload.id());
    let body = Json(json!({ "job": job, "file_name": upload.safe_file_name() }));
    Ok((StatusCode::ACCEPTED, [(header::LOCATION, job)], body))
}

/// The state of a job. Its id has 128 random bits, and only the client that got it can ask.
async fn show(
    State(jobs): State<Jobs>,
    extract::Path(id): extract::Path<String>,
) -> Result<Json<Value>, StatusCode> {
    match jobs.find(id).await {
        Ok(Some(job)) => Ok(Json(job)),
        Ok(None) => Err(StatusCode::NOT_FOUND),
        Err(error) => {
            eprintln!("jobs: {error}");
            Err(StatusCode::INTERNAL_SERVER_ERROR)
        }
    }
}

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS jobs (
        number    INTEGER PRIMARY KEY,
        id        TEXT NOT NULL UNIQUE,
        file_name TEXT NOT NULL,
        starts    INTEGER NOT NULL DEFAULT 0,
        sha256    TEXT  -- not null: finished
    );
";

/// The table of jobs, and the folder with their files.
#[derive(Clone)]
struct Jobs {
    database: Arc<Mutex<Connection>>,
    dir: Arc<Path>,
    added: Arc<Notify>,
}

impl Jobs {
    fn open(dir: &Path) -> Result<Self, BoxError> {
        std::fs::create_dir_all(dir)?;
        let database = Connection::open(dir.join("jobs.db"))?;
        database.execute_batch(SCHEMA)?;
        Ok(Self {
            database: Arc::new(Mutex::new(database)),
            dir: dir.into(),
            added: Arc::default(),
        })
    }

    /// Takes over the file of an upload and adds its job. An earlier attempt may have done both.
    async fn add(&self, upload: &CompletedUpload) -> Result<(), BoxError> {
        let (id, attempt) = (upload.id().to_owned(), upload.attempt());
        // In a later attempt it is no error that the file is there. It stays there after the job.
        upload.persist(self.dir.join(&id)).await?;
        let row = (id.clone(), upload.safe_file_name());
        self.query(move |database| {
            let add = "INSERT INTO jobs (id, file_name) VALUES (?, ?) ON CONFLICT DO NOTHING";
            database.execute(add, row)
        })
        .await?;
        println!("{}", json!({ "added": id, "attempt": attempt }));
        self.added.notify_one();
        Ok(())
    }

    async fn find(&self, id: String) -> Result<Option<Value>, BoxError> {
        self.query(move |database| {
            let row = "SELECT file_name, starts, sha256 FROM jobs WHERE id = ?";
            let row = database.query_row(row, [id], |row| {
                let (starts, sha256): (u32, Option<String>) = (row.get(1)?, row.get(2)?);
                let state = match (&sha256, starts) {
                    (Some(_), _) => "finished",
                    (None, 0) => "waiting",
                    (None, _) => "running",
                };
                let file_name: String = row.get(0)?;
                Ok(json!({
                    "state": state,
                    "file_name": file_name,
                    "starts": starts,
                    "sha256": sha256,
                }))
            });
            row.optional()
        })
        .await
    }

    /// Runs the jobs that have no result, in their order.
    async fn run(self) {
        loop {
            match self.next().await {
                Ok(Some(id)) => match self.work(&id).await {
                    Ok(()) => continue,
                    Err(error) => eprintln!("job {id}: {error}"),
                },
                Ok(None) => {
                    self.added.notified().await;
                    continue;
                }
                Err(error) => eprintln!("jobs: {error}"),
            }
            // The disk may recover.
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    }

    /// Counts the start of the next job and returns its id.
    async fn next(&self) -> Result<Option<String>, BoxError> {
        self.query(|database| {
            let next = "UPDATE jobs SET starts = starts + 1 WHERE number =
                (SELECT min(number) FROM jobs WHERE sha256 IS NULL) RETURNING id";
            database.query_row(next, [], |row| row.get(0)).optional()
        })
        .await
    }

    /// The slow work on one file: its SHA-256. It begins anew in each process.
    async fn work(&self, id: &str) -> Result<(), BoxError> {
        println!("{}", json!({ "started": id }));
        // As if it took longer: `--work MILLISECONDS`.
        let millis = option("--work").and_then(|millis| millis.parse().ok());
        tokio::time::sleep(Duration::from_millis(millis.unwrap_or(0))).await;
        let path = self.dir.join(id);
        let sha256 = spawn_blocking(move || hash(&path)).await??;
        let finished = id.to_owned();
        let changed = self.query(move |database| {
            let end = "UPDATE jobs SET sha256 = ? WHERE id = ? AND sha256 IS NULL";
            database.execute(end, params![sha256, finished])
        });
        if changed.await? == 1 {
            println!("{}", json!({ "finished": id }));
        }
        Ok(())
    }

    async fn query<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, BoxError> {
        let database = self.database.clone();
        let query = move || query(&database.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(spawn_blocking(query).await??)
    }
}

fn hash(path: &Path) -> io::Result<String> {
    let (mut file, mut hash) = (std::fs::File::open(path)?, Sha256::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            len => hash.update(&buffer[..len]),
        }
    }
    let bytes = hash.finalize();
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
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

/// The value of a command line option: `--listen ADDRESS`, `--dir DIR` or `--work MILLISECONDS`.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}
