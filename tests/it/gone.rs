//! Requests whose clients close the connection before the answer.

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use object_store::memory::InMemory;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
};
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{
    BucketStore, CompletedUpload, FileStore, MemoryStore, ResumableLayer, Upload, UploadId,
    Uploads,
    store::{
        BoxFuture, ChunkBody, Claimed, Expiry, Filter, Page, Progress, Status, Store, StoreError,
        Swept,
    },
};

use crate::common::{self, Client, File};

/// Where a [`Paused`] store pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The body of a chunk is read, but not stored yet.
    Read,
    /// A chunk is stored.
    Written,
    /// An upload is claimed.
    Claimed,
    /// The uploads are about to be listed.
    List,
}

type Pause = Arc<dyn Fn(Step) -> BoxFuture<'static, ()> + Send + Sync>;

/// A store that pauses at each [`Step`].
#[derive(Clone)]
pub struct Paused<S> {
    store: S,
    pause: Pause,
    /// Whether lists fail.
    pub fails: Arc<AtomicBool>,
}

impl<S> Paused<S> {
    pub fn new<F>(store: S, pause: impl Fn(Step) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self {
            store,
            pause: Arc::new(move |step| Box::pin(pause(step))),
            fails: Arc::default(),
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Paused<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Paused").field(&self.store).finish()
    }
}

impl<S: Store> Store for Paused<S> {
    type Claim = S::Claim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        self.store.create(upload).await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let mut bytes = BytesMut::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        (self.pause)(Step::Read).await;
        let len = bytes.len() as u64;
        let source = Full::new(bytes.freeze()).map_err(|never: Infallible| match never {});
        let source = pin!(source);
        let mut body = ChunkBody::new(source, Some(len), len);
        let written = self.store.write(upload, offset, &mut body).await;
        (self.pause)(Step::Written).await;
        written
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.store.status(id).await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<Self::Claim>, StoreError> {
        let claimed = self.store.claim(upload).await;
        (self.pause)(Step::Claimed).await;
        claimed
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.store.remove(id).await
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        (self.pause)(Step::List).await;
        if self.fails.load(SeqCst) {
            return Err(std::io::Error::other("the list fails").into());
        }
        self.store.list(filter, after).await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        self.store.sweep(expiry).await
    }
}

/// A server that reports the end of each connection.
struct Server {
    addr: SocketAddr,
    uploads: Uploads,
    /// The contents of the delivered files.
    deliveries: Arc<Mutex<Vec<Vec<u8>>>>,
    /// One message for each connection that has ended.
    ended: mpsc::UnboundedReceiver<()>,
}

impl Server {
    /// `handle` runs in each call of the inner service.
    async fn start<F>(
        store: impl Store,
        handle: impl Fn() -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let layer = ResumableLayer::new(store);
        let uploads = layer.uploads();
        let deliveries = Arc::<Mutex<Vec<_>>>::default();
        let noted = Arc::clone(&deliveries);
        let inner = service_fn(move |request: Request<Incoming>| {
            let (noted, handle) = (Arc::clone(&noted), handle.clone());
            async move {
                let upload = request.extensions().get::<CompletedUpload>().unwrap();
                let content = common::content(upload).await;
                handle().await;
                noted.lock().unwrap().push(content);
                Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("delivered")))
            }
        });
        let service = ServiceBuilder::new().layer(layer).service(inner);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sender, ended) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (io, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(service.clone());
                let sender = sender.clone();
                tokio::spawn(async move {
                    let server = auto::Builder::new(TokioExecutor::new());
                    // An error: the client has gone.
                    let _ = server.serve_connection(TokioIo::new(io), service).await;
                    let _ = sender.send(());
                });
            }
        });
        Self {
            addr,
            uploads,
            deliveries,
            ended,
        }
    }

    /// Sends one request over a connection of its own.
    async fn send(&mut self, request: Request<Vec<u8>>) -> u16 {
        let status = Client::connect(self.addr).await.send(request).await.status;
        self.connections_end(1).await;
        status
    }

    /// Waits until this many connections have ended. Their requests have no clients then.
    async fn connections_end(&mut self, count: usize) {
        for _ in 0..count {
            self.ended.recv().await.unwrap();
        }
    }

    fn deliveries(&self) -> Vec<Vec<u8>> {
        self.deliveries.lock().unwrap().clone()
    }

    /// The number of stored bytes of each upload that is not delivered.
    async fn unfinished(&self) -> Vec<u64> {
        let page = self.uploads.list(&Filter::default(), None).await.unwrap();
        let progress = page.uploads.iter().map(|listed| listed.progress);
        progress.map(|progress| progress.received).collect()
    }
}

/// Sends the beginning of a request: its head and `len` bytes of its body.
async fn send_begin(addr: SocketAddr, request: &Request<Vec<u8>>, len: usize) -> TcpStream {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: {}\r\ncontent-length: {}\r\n\r\n",
        request.uri(),
        request.headers()["content-type"].to_str().unwrap(),
        request.body().len(),
    );
    let bytes = [head.as_bytes(), &request.body()[..len]].concat();
    socket.write_all(&bytes).await.unwrap();
    socket
}

/// Sends a request, and returns before its answer arrives.
pub async fn send_whole(addr: SocketAddr, request: &Request<Vec<u8>>) -> TcpStream {
    send_begin(addr, request, request.body().len()).await
}

/// A place where a task waits for the test.
#[derive(Debug)]
pub struct Gate {
    pub reached: Notify,
    pub open: Semaphore,
}

impl Gate {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            reached: Notify::new(),
            open: Semaphore::new(0),
        })
    }

    pub async fn pass(&self) {
        self.reached.notify_one();
        self.open.acquire().await.unwrap().forget();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_was_read_is_delivered_without_its_client() {
    for gated in [Step::Read, Step::Written, Step::Claimed] {
        let gate = Gate::new();
        let store = {
            let gate = Arc::clone(&gate);
            Paused::new(MemoryStore::default(), move |step| {
                let gate = Arc::clone(&gate);
                async move {
                    if step == gated {
                        gate.pass().await;
                    }
                }
            })
        };
        let mut server = Server::start(store, async || {}).await;
        let file = File::new("a.txt", 15);
        let socket = send_whole(server.addr, &file.octets(1)).await;
        gate.reached.notified().await;
        drop(socket);
        server.connections_end(1).await;
        assert!(server.deliveries().is_empty());

        gate.open.add_permits(1);
        server.uploads.drain().await;
        assert_eq!(server.deliveries(), vec![file.content.clone()], "{gated:?}");
        // A duplicate that arrives later gets the recorded answer.
        gate.open.add_permits(9);
        assert_eq!(server.send(file.octets(1)).await, 200);
        assert_eq!(server.deliveries().len(), 1, "{gated:?}");
    }
}

/// How many clients leave. `GONE_CLIENTS=1000 cargo test --release --test it gone -- --nocapture`
/// runs more.
fn clients() -> usize {
    let clients = std::env::var("GONE_CLIENTS").map(|number| number.parse());
    clients.map_or(108, |number| number.expect("a number"))
}

/// Clients that disconnect at different times after their last byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_stored_chunk_is_delivered_without_its_client() {
    const DELAYS: [u64; 9] = [0, 1, 2, 5, 10, 20, 50, 100, 200];
    // The steps of a store take this long, as with syncs of slow disks.
    fn slow<S>(store: S, millis: u64) -> Paused<S> {
        let pause = Duration::from_millis(millis);
        Paused::new(store, move |_| tokio::time::sleep(pause))
    }
    let memory = MemoryStore::default;
    let dir = tempfile::tempdir().unwrap();
    let files = FileStore::open(dir.path()).unwrap();
    let bucket = BucketStore::open(Arc::new(InMemory::new())).await.unwrap();
    let nothing = async || {};
    for (name, mut server) in [
        ("0 ms", Server::start(slow(memory(), 0), nothing).await),
        ("5 ms", Server::start(slow(memory(), 5), nothing).await),
        ("10 ms", Server::start(slow(memory(), 10), nothing).await),
        ("50 ms", Server::start(slow(memory(), 50), nothing).await),
        ("files", Server::start(files, nothing).await),
        ("bucket", Server::start(slow(bucket, 10), nothing).await),
    ] {
        let (addr, places) = (server.addr, Arc::new(Semaphore::new(64)));
        let (mut leaving, mut tasks) = (Vec::new(), JoinSet::new());
        for n in 0..clients() {
            let mut file = File::new(&format!("{n}.txt"), 35);
            file.content[..8].copy_from_slice(&n.to_le_bytes());
            leaving.push(file.clone());
            let delay = Duration::from_millis(DELAYS[n % DELAYS.len()]);
            let places = Arc::clone(&places);
            tasks.spawn(async move {
                let _place = places.acquire().await.unwrap();
                // All chunks but the last have arrived.
                for number in 1..file.chunks() {
                    let answer = Client::connect(addr).await.send(file.octets(number)).await;
                    assert_eq!(answer.status, 200);
                }
                let socket = send_whole(addr, &file.multipart(file.chunks())).await;
                tokio::time::sleep(delay).await;
                drop(socket);
                file.chunks()
            });
        }
        let connections = tasks.join_all().await;
        server.connections_end(connections.into_iter().sum()).await;
        server.uploads.drain().await;

        // Each upload is delivered once, or its last chunk is not stored.
        let deliveries = server.deliveries();
        let mut stored = server.unfinished().await;
        for file in &leaving {
            let delivered = deliveries
                .iter()
                .filter(|content| **content == file.content);
            let delivered = delivered.count();
            assert!(delivered <= 1, "{name}: {} is delivered twice", file.name);
            if delivered == 0 {
                let last = file.chunk(file.chunks()).len();
                let without_last = (file.content.len() - last) as u64;
                let at = stored.iter().position(|received| *received == without_last);
                let at = at.unwrap_or_else(|| panic!("{name}: {} is lost", file.name));
                stored.swap_remove(at);
            }
        }
        assert!(stored.is_empty(), "{name}: {stored:?}");
        assert!(!deliveries.is_empty(), "{name}");
        println!(
            "{name}: {} of {} delivered",
            deliveries.len(),
            leaving.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_in_mid_body_stores_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let files = FileStore::open(dir.path()).unwrap();
    let nothing = async || {};
    for mut server in [
        Server::start(MemoryStore::default(), nothing).await,
        Server::start(files, nothing).await,
    ] {
        let file = File {
            chunk_size: 1 << 20,
            ..File::new("a.txt", 1 << 20)
        };
        for request in [
            file.octets(1),
            file.multipart(1),
            file.multipart_body_only(1),
        ] {
            let whole = request.body().len();
            for len in [0, 1, whole / 2, whole - 1] {
                drop(send_begin(server.addr, &request, len).await);
                server.connections_end(1).await;
                server.uploads.drain().await;
                let stored: u64 = server.unfinished().await.iter().sum();
                assert_eq!(stored, 0, "{len} bytes");
            }
        }
        assert!(server.deliveries().is_empty());
        assert_eq!(server.send(file.multipart(1)).await, 200);
        assert!(server.deliveries() == [file.content]);
    }
}

#[tokio::test]
async fn drain_waits_for_a_delivery_without_a_client() {
    let gate = Gate::new();
    let handle = {
        let gate = Arc::clone(&gate);
        move || {
            let gate = Arc::clone(&gate);
            async move { gate.pass().await }
        }
    };
    let mut server = Server::start(MemoryStore::default(), handle).await;
    let file = File::new("a.txt", 15);
    let socket = send_whole(server.addr, &file.octets(1)).await;
    gate.reached.notified().await;
    drop(socket);
    server.connections_end(1).await;

    let uploads = server.uploads.clone();
    let mut drained = pin!(uploads.drain());
    for _ in 0..100 {
        assert!(futures_util::poll!(drained.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    assert!(server.deliveries().is_empty());
    gate.open.add_permits(1);
    drained.await;
    assert_eq!(server.deliveries(), [file.content]);
    assert!(server.unfinished().await.is_empty());
    // No delivery is running now.
    uploads.drain().await;
}
