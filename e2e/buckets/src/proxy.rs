//! A proxy between one server and its gateways. It counts requests and injects faults.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, combinators::BoxBody};
use hyper::{
    body::Incoming, client::conn::http1::SendRequest, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::rng::Rng;

/// The faults that a proxy injects. Numbers are percentages of the requests.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Each request is delayed by a random time up to this.
    pub slow: Duration,
    /// Requests that are answered with 503 and not sent to the store.
    pub busy: u64,
    /// Requests that the store executes and whose answer is lost: the server gets a 503, or the
    /// connection ends.
    pub lost: u64,
    /// Whether the gateway is unreachable.
    pub down: bool,
    /// The request at which the server is killed.
    pub kill: Option<Kill>,
}

/// Kills the server at one of its requests.
#[derive(Clone, Copy, Debug)]
pub struct Kill {
    /// The number of the request, from 1.
    pub at: u64,
    /// Whether the store executes the request before the kill.
    pub after: bool,
}

/// The number of requests of one kind, and their bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Count {
    pub requests: u64,
    /// Bytes from the server to the store.
    pub up: u64,
    /// Bytes from the store to the server.
    pub down: u64,
}

pub type Counts = BTreeMap<String, Count>;

pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    accepting: tokio::task::JoinHandle<()>,
}

struct Shared {
    /// They receive requests in turn.
    gateways: Vec<SocketAddr>,
    state: Mutex<State>,
    /// Notified when the server has to be killed.
    kill: Notify,
    /// Notified when the server is dead.
    killed: Notify,
}

struct State {
    faults: Faults,
    counts: Counts,
    /// Requests since the faults were set.
    requests: u64,
    rng: Rng,
    /// Requests that had a fault.
    injected: u64,
    /// The request at which the server was killed.
    last: Option<String>,
}

impl Proxy {
    pub async fn start(gateways: Vec<SocketAddr>, seed: u64) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let shared = Arc::new(Shared {
            gateways,
            state: Mutex::new(State {
                faults: Faults::default(),
                counts: Counts::new(),
                requests: 0,
                injected: 0,
                rng: Rng::new(seed),
                last: None,
            }),
            kill: Notify::new(),
            killed: Notify::new(),
        });
        Ok(Self {
            address: listener.local_addr()?,
            accepting: tokio::spawn(accept(listener, Arc::clone(&shared))),
            shared,
        })
    }

    pub fn set(&self, faults: Faults) {
        let mut state = self.shared.state();
        state.faults = faults;
        state.requests = 0;
    }

    /// Returns the counts since the last call.
    pub fn take_counts(&self) -> Counts {
        std::mem::take(&mut self.shared.state().counts)
    }

    /// The number of requests that were refused or whose answers were lost.
    pub fn faults(&self) -> u64 {
        self.shared.state().injected
    }

    /// Waits for the request at which [`Kill`] requires the server to be killed.
    pub async fn kill_requested(&self) {
        self.shared.kill.notified().await;
    }

    /// Tells the proxy that the server is dead. Returns the request at which it was killed.
    pub fn confirm_kill(&self) -> Option<String> {
        self.shared.killed.notify_waiters();
        self.shared.state().last.take()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        if shared.state().faults.down || stream.set_nodelay(true).is_err() {
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let links = tokio::sync::Mutex::new(BTreeMap::new());
            let service = service_fn(|request| pass(&shared, &links, request));
            // An error of the connection is an injected fault, or the server has died.
            let _ = http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Answer = Response<BoxBody<Bytes, hyper::Error>>;
/// The connections to the gateways that belong to one connection of the server.
type Links = tokio::sync::Mutex<BTreeMap<SocketAddr, SendRequest<Incoming>>>;

/// An error ends the connection without an answer.
#[derive(Debug)]
struct Cut;

impl std::fmt::Display for Cut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cut off")
    }
}

impl std::error::Error for Cut {}

async fn pass(shared: &Shared, links: &Links, request: Request<Incoming>) -> Result<Answer, Cut> {
    let kind = kind(
        request.method(),
        request.uri().path(),
        request.uri().query(),
    );
    let (plan, kill) = shared.plan(&kind, length(request.headers()));
    if !plan.wait.is_zero() {
        tokio::time::sleep(plan.wait).await;
    }
    if plan.down {
        return Err(Cut);
    }
    if plan.busy {
        // Reads the whole request first: a store that closes at once would be a different fault.
        let _ = request.into_body().collect().await;
        return Ok(unavailable());
    }
    if let Some(Kill { after: false, .. }) = kill {
        shared.kill(&format!("before {kind}")).await;
        return Err(Cut);
    }
    let answer = forward(plan.gateway, links, request).await?;
    if let Some(Kill { after: true, .. }) = kill {
        shared.kill(&format!("after {kind}")).await;
        return Err(Cut);
    }
    let down = length(answer.headers());
    shared.state().counts.entry(kind).or_default().down += down;
    match plan.lost {
        Some(true) => Ok(unavailable()),
        Some(false) => Err(Cut),
        None => Ok(answer.map(|body| body.boxed())),
    }
}

struct Plan {
    gateway: SocketAddr,
    wait: Duration,
    busy: bool,
    /// Whether the answer is lost, and then whether the server gets a 503.
    lost: Option<bool>,
    down: bool,
}

impl Shared {
    fn plan(&self, kind: &str, up: u64) -> (Plan, Option<Kill>) {
        let mut state = self.state();
        let count = state.counts.entry(kind.to_owned()).or_default();
        count.requests += 1;
        count.up += up;
        state.requests += 1;
        let (number, faults) = (state.requests, state.faults.clone());
        let slow = faults.slow.as_millis() as u64;
        let plan = Plan {
            gateway: self.gateways[number as usize % self.gateways.len()],
            wait: Duration::from_millis(state.rng.below(slow + 1)),
            busy: state.rng.below(100) < faults.busy,
            lost: (state.rng.below(100) < faults.lost).then(|| state.rng.below(2) == 0),
            down: faults.down,
        };
        state.injected += u64::from(plan.busy || plan.down || plan.lost.is_some());
        (plan, faults.kill.filter(|kill| kill.at == number))
    }

    async fn kill(&self, what: &str) {
        self.state().last = Some(what.to_owned());
        let killed = self.killed.notified();
        self.kill.notify_one();
        killed.await;
    }
}

async fn forward(
    gateway: SocketAddr,
    links: &Links,
    request: Request<Incoming>,
) -> Result<Response<Incoming>, Cut> {
    let mut links = links.lock().await;
    let mut sender = match links.remove(&gateway).filter(|sender| !sender.is_closed()) {
        Some(sender) => sender,
        None => connect(gateway).await?,
    };
    if sender.ready().await.is_err() {
        sender = connect(gateway).await?;
    }
    let answer = sender.send_request(request).await.map_err(|_| Cut)?;
    links.insert(gateway, sender);
    Ok(answer)
}

async fn connect(gateway: SocketAddr) -> Result<SendRequest<Incoming>, Cut> {
    let stream = TcpStream::connect(gateway).await.map_err(|_| Cut)?;
    stream.set_nodelay(true).map_err(|_| Cut)?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|_| Cut)?;
    // The requests on the connection return its errors.
    tokio::spawn(connection);
    Ok(sender)
}

fn unavailable() -> Answer {
    let body = Empty::new().map_err(|never: Infallible| match never {});
    let mut answer = Response::new(body.boxed());
    *answer.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    answer
}

fn length(headers: &http::HeaderMap) -> u64 {
    let length = headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
    length.unwrap_or(0)
}

/// The kind of a request, in the terms of the store's layout, such as `PUT part` or `GET info`.
fn kind(method: &Method, path: &str, query: Option<&str>) -> String {
    let query = query.unwrap_or_default();
    let has = |name: &str| {
        query
            .split('&')
            .any(|pair| pair.split('=').next() == Some(name))
    };
    let operation = match method.as_str() {
        "GET" if has("list-type") => return "LIST".into(),
        "POST" if has("delete") => return "POST delete".into(),
        "POST" if has("uploads") => return "POST create".into(),
        "POST" if has("uploadId") => return "POST complete".into(),
        "PUT" if has("partNumber") => return "PUT part".into(),
        "DELETE" if has("uploadId") => return "DELETE multipart".into(),
        other => other,
    };
    let parts: Vec<&str> = path.split('/').collect();
    let last = parts.last().copied().unwrap_or_default();
    let object = match () {
        () if parts.contains(&"claim") => "claim",
        () if parts.contains(&"open") => "open",
        () if parts.contains(&"files") => "file",
        () if last.starts_with("p-") => "mark",
        () if last.starts_with("c-") => "piece",
        () => match last {
            "info" => "info",
            "touch" => "touch",
            _ => "other",
        },
    };
    format!("{operation} {object}")
}
