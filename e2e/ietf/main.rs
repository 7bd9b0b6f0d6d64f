//! The strict client and curl against a server of this crate on each store, which `e2e/ietf/run`
//! starts: cuts, kills and take-overs. Prints a matrix of client, version and store.

#[path = "../../tests/it/common/draft.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod draft;

use std::{
    convert::Infallible,
    env,
    error::Error,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{self, Stdio},
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use object_store::memory::InMemory;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    process::{Child, Command},
};
use tower::{Service as _, ServiceBuilder, service_fn};
use tower_resumable::{
    BucketStore, CompletedUpload, FileStore, InterimIo, MemoryStore, ResumableLayer,
};

use self::draft::{Draft, Exchange};

type Failure = Box<dyn Error + Send + Sync>;

const STORES: [&str; 3] = ["file", "memory", "bucket"];
const VERSIONS: [u8; 6] = [3, 4, 5, 6, 7, 8];
const MIB: usize = 1 << 20;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    if env::args().nth(1).as_deref() == Some("serve") {
        return serve().await;
    }
    let mut matrix = vec![format!(
        "{:24} | 3 | 4 | 5 | 6 | 7 | 8",
        "client, case, store"
    )];
    for store in STORES {
        let rows = [
            ("strict, 10 cuts", Case::Cuts),
            ("strict, take-over", Case::TakeOver),
            ("strict, kill", Case::Kill),
            ("curl, 104", Case::Curl),
        ];
        for (name, case) in rows {
            if case == Case::Kill && store != "file" {
                // They keep their uploads in the memory of the process.
                continue;
            }
            let mut row = format!("{:24}", format!("{name}, {store}"));
            for version in VERSIONS {
                let begun = Instant::now();
                case.run(store, version).await?;
                let ms = begun.elapsed().as_millis();
                println!("{name}, {store}, version {version}: ok, {ms} ms");
                row += " | o";
            }
            matrix.push(row);
        }
    }
    println!("\n{}", matrix.join("\n"));
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Cuts,
    TakeOver,
    Kill,
    Curl,
}

impl Case {
    /// A broken promise is a panic, which ends the suite.
    async fn run(self, store: &str, version: u8) -> Result<(), Failure> {
        let dir = tempfile::tempdir()?;
        let mut server = Server::start(store, dir.path(), None).await?;
        let draft = Draft::new(server.addr, "/upload", Some(version));
        // A store commits the bytes of a long request every few MiB.
        let len = if self == Self::Kill { 12 } else { 2 };
        let content = content(len * MIB, version);
        match self {
            Self::Cuts => {
                let mut cuts: Vec<_> = (0..10_usize)
                    .map(|number| (number * 7_654_321 % content.len(), number % 2 == 0))
                    .collect();
                cuts.sort_unstable();
                let uploaded = draft.upload(&content, &cuts).await;
                assert_eq!(uploaded.answer.text(), "taken");
                assert!(uploaded.resumed > 0);
            }
            Self::TakeOver => {
                let half = MIB;
                let (mut older, url) = announced(&draft, content.len()).await?;
                older.send(&content[..half]).await?;
                // The connection of the older request stays open.
                let head = draft.head(&url).await?;
                let offset = head.offset().expect("an offset");
                assert!(offset <= half as u64);
                let rest = &content[offset as usize..];
                let headers = draft.appending(offset, true);
                let last = draft.ask("PATCH", &url, headers, Some(rest)).await?;
                assert_eq!(last.answer().text(), "taken");
                drop(older);
            }
            Self::Kill => {
                let (mut exchange, url) = announced(&draft, content.len()).await?;
                exchange.send(&content[..10 * MIB]).await?;
                exchange.until_progress().await?;
                let told = exchange
                    .heard
                    .interims
                    .iter()
                    .filter_map(|it| it.offset())
                    .max();
                server.child.start_kill()?;
                server.child.wait().await?;
                server = Server::start(store, dir.path(), Some(server.addr)).await?;
                let offset = draft.head(&url).await?.offset().expect("an offset");
                assert!(Some(offset) >= told, "{offset} after {told:?}");
                let headers = draft.appending(offset, true);
                let rest = &content[offset as usize..];
                let last = draft.ask("PATCH", &url, headers, Some(rest)).await?;
                assert_eq!(last.answer().text(), "taken");
            }
            Self::Curl => {
                let file = dir.path().join("content.bin");
                std::fs::write(&file, &content)?;
                let (name, value) = draft.complete(true);
                let output = process::Command::new("curl")
                    .args(["--silent", "--show-error", "--verbose", "--request", "POST"])
                    .args([
                        "--header",
                        &format!("upload-draft-interop-version: {version}"),
                    ])
                    .args(["--header", &format!("{name}: {value}")])
                    .arg("--upload-file")
                    .arg(&file)
                    .arg(format!("http://{}/upload", server.addr))
                    .output()?;
                let said = String::from_utf8_lossy(&output.stderr);
                assert_eq!(output.stdout, b"taken", "{said}");
                assert!(
                    said.contains("< HTTP/1.1 104 Upload Resumption Supported"),
                    "{said}"
                );
                assert!(said.contains("< location: /upload?upload="), "{said}");
            }
        }
        let expected = format!("{} {}", content.len(), hash(&content));
        assert_eq!(server.deliveries().await?, [expected]);
        Ok(())
    }
}

/// Begins an upload, and returns when its URL is known.
async fn announced(draft: &Draft, len: usize) -> Result<(Exchange, String), Failure> {
    let headers = draft.creating(true, Some(len));
    let begun = Exchange::begin(draft.addr, "POST", "/upload", &headers, Some(len));
    let mut exchange = begun.await?;
    exchange.until_announced().await?;
    let url = exchange.heard.location().ok_or("no location")?;
    Ok((exchange, url))
}

/// Bytes that depend on their position.
fn content(len: usize, seed: u8) -> Vec<u8> {
    let mut x = 0x9e37_79b9_u32 ^ u32::from(seed);
    let bytes = std::iter::repeat_with(|| {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x as u8
    });
    bytes.take(len).collect()
}

fn hash(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A server in a process of its own, which is killed when this is dropped.
struct Server {
    child: Child,
    addr: SocketAddr,
    lines: Arc<Mutex<Vec<String>>>,
    reading: Option<tokio::task::JoinHandle<()>>,
}

impl Server {
    async fn start(store: &str, dir: &Path, addr: Option<SocketAddr>) -> Result<Self, Failure> {
        let mut command = Command::new(env::current_exe()?);
        let addr = addr.map_or("127.0.0.1:0".to_owned(), |addr| addr.to_string());
        command
            .args(["serve", store, &addr])
            .arg(dir.join("server"));
        command.stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let mut output = BufReader::new(output).lines();
        let addr = output
            .next_line()
            .await?
            .ok_or("the server has not started")?;
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&lines);
        let reading = tokio::spawn(async move {
            while let Ok(Some(line)) = output.next_line().await {
                noted.lock().unwrap().push(line);
            }
        });
        Ok(Self {
            child,
            addr: addr.parse()?,
            lines,
            reading: Some(reading),
        })
    }

    /// Ends the server, and returns what it has delivered.
    async fn deliveries(&mut self) -> Result<Vec<String>, Failure> {
        self.child.start_kill()?;
        if let Some(reading) = self.reading.take() {
            reading.await?;
        }
        Ok(self.lines.lock().unwrap().clone())
    }
}

async fn serve() -> Result<(), Failure> {
    let [store, addr, dir] = [2, 3, 4].map(|n| env::args().nth(n).unwrap_or_default());
    let layer = match &*store {
        "memory" => ResumableLayer::new(MemoryStore::default()),
        "bucket" => {
            let engine = BucketStore::builder(Arc::new(InMemory::new()));
            ResumableLayer::new(engine.with_self_test(false).open().await?)
        }
        _ => ResumableLayer::new(FileStore::open(dir)?),
    };
    let layer = layer.with_events(|event| eprintln!("{event}"));
    let service = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(handle));
    let listener = TcpListener::bind(addr).await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    loop {
        let (connection, _) = listener.accept().await?;
        let connection = InterimIo::new(connection);
        let (interims, mut service) = (connection.interims(), service.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let guard = interims.enter(&mut request);
            let response = service.call(request);
            async move {
                let response = response.await;
                drop(guard);
                response
            }
        });
        let service = TowerToHyperService::new(service);
        tokio::spawn(async move {
            let server = auto::Builder::new(TokioExecutor::new());
            // Many connections are cut.
            let _ = server
                .serve_connection(TokioIo::new(connection), service)
                .await;
        });
    }
}

async fn handle(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let Some(upload) = request.extensions().get::<CompletedUpload>() else {
        return Ok(Response::new("no upload".into()));
    };
    let (mut sum, mut content) = (Sha256::new(), upload.content());
    while let Some(piece) = content.next().await {
        match piece {
            Ok(piece) => sum.update(piece),
            Err(error) => {
                let mut response = Response::new(error.to_string().into());
                *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                return Ok(response);
            }
        }
    }
    let sum: String = sum
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    println!("{} {sum}", upload.size());
    Ok(Response::new("taken".into()))
}
