//! `BucketStore` on an in-memory engine.

mod appends;
mod damage;
mod engine;
mod lease;

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use engine::{Conditions, Counts, Engine};
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{
    BucketStore, CompletedUpload, DigestAlgorithm, Digests, ResumableLayer, Scope, Upload,
    UploadId,
    store::{
        ChunkBody, Claim, Claimed, Expiry, Filter, Progress, Record, Sealed, State, Store,
        StoreError, Swept, Usage, conformance,
    },
};

use crate::common::{Answer, Client, File, serve};

const MIB: u64 = 1 << 20;

async fn read(sealed: &Sealed) -> Option<Vec<u8>> {
    let content = sealed.content().collect().await.ok()?;
    Some(content.to_bytes().to_vec())
}

async fn open(engine: &Arc<Engine>) -> BucketStore {
    let store = BucketStore::builder(Arc::clone(engine)).with_self_test(false);
    store.open().await.unwrap()
}

async fn open_with_lease(engine: &Arc<Engine>, lease: Duration) -> BucketStore {
    let builder = BucketStore::builder(Arc::clone(engine)).with_self_test(false);
    builder.with_lease(lease).open().await.unwrap()
}

fn upload(length: u64, chunk_size: Option<u64>) -> Upload {
    let id = UploadId::from_bytes([7; 32]);
    let mut upload = Upload::new(id, Scope::default(), Some(length));
    upload.identifier = "../i".into();
    upload.chunk_size = chunk_size;
    upload.file_name = Some("../a.txt".into());
    upload
}

fn content(len: u64) -> Bytes {
    // In words: single bytes are slow without optimization.
    let mut bytes = Vec::with_capacity(len as usize + 8);
    for n in 0..len.div_ceil(8) {
        bytes.extend_from_slice(&n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes());
    }
    bytes.truncate(len as usize);
    bytes.into()
}

async fn write(
    store: &BucketStore,
    upload: &Upload,
    offset: u64,
    bytes: &[u8],
) -> Result<Progress, StoreError> {
    let source = Full::new(Bytes::copy_from_slice(bytes));
    let source = pin!(source.map_err(|never: Infallible| match never {}));
    let mut body = ChunkBody::new(source, Some(bytes.len() as u64), 0);
    store.write(upload, offset, &mut body).await
}

fn record() -> Record {
    let expires = SystemTime::now() + Duration::from_secs(60);
    Record::new(true, StatusCode::OK, 3, expires)
}

/// Removes everything that is older than `age`, except delivered files.
fn everything(age: Duration) -> Expiry {
    let before = SystemTime::now() - age;
    let mut expiry = Expiry::default();
    expiry.abandoned_before = Some(before);
    expiry.undelivered_before = Some(before);
    expiry.records_before = before + Duration::from_secs(3600);
    expiry
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bucket_conforms() {
    let engine = Arc::new(Engine::default());
    let store = BucketStore::open(Arc::clone(&engine)).await.unwrap();
    conformance::check(&store).await;
    // The suite leaves some parts of concatenations.
    let mut parts = Expiry::default();
    parts.undelivered_before = Some(SystemTime::now() + Duration::from_secs(60));
    store.sweep(&parts).await.unwrap();
    // Only the delivered files and their records are left.
    let left = engine.keys("up").await;
    assert!(left.iter().all(|key| key.ends_with("/info")), "{left:?}");
    assert_eq!(engine.keys("open").await, Vec::<String>::new());
    assert_eq!(engine.keys("scratch").await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_without_conditional_writes_is_refused() {
    for (conditions, expected) in [
        (Conditions::Kept, None),
        (Conditions::Ignored, Some("ignores `If-None-Match: *`")),
        (
            Conditions::Racy,
            Some("racing requests have created the same object"),
        ),
        (Conditions::Refused, Some("`S3ConditionalPut::ETagMatch`")),
    ] {
        let engine = Arc::new(Engine::ignoring(conditions));
        let opened = BucketStore::builder(Arc::clone(&engine))
            .with_prefix("a/b")
            .open()
            .await;
        match (opened, expected) {
            (Ok(_), None) => {
                let counts = engine.take_counts();
                assert!(counts.all() < 90, "the self-test costs {counts:?}");
            }
            (Err(StoreError::Failed(error)), Some(expected)) => {
                let error = error.to_string();
                assert!(error.contains(expected), "{conditions:?}: {error}");
            }
            (opened, _) => panic!("{conditions:?}: {opened:?}"),
        }
        assert_eq!(
            engine.keys("a").await,
            Vec::<String>::new(),
            "{conditions:?}"
        );
    }
    let engine = Arc::new(Engine::default());
    engine.set_down(true);
    assert!(
        BucketStore::open(engine).await.is_err(),
        "an engine that is down"
    );
}

/// A complete upload, and its content at the delivery.
type Delivery = (CompletedUpload, Vec<u8>);

/// Several servers on one engine, and an inner service that records its deliveries.
struct Servers {
    addrs: Vec<SocketAddr>,
    deliveries: Arc<Mutex<Vec<Delivery>>>,
    stores: Vec<BucketStore>,
}

impl Servers {
    async fn start(
        engine: &Arc<Engine>,
        count: usize,
        answer: impl Fn(usize) -> StatusCode + Clone + Send + Sync + 'static,
    ) -> Self {
        let deliveries = Arc::<Mutex<Vec<_>>>::default();
        let (mut addrs, mut stores) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let store = open(engine).await;
            stores.push(store.clone());
            let (noted, answer) = (Arc::clone(&deliveries), answer.clone());
            let inner = service_fn(move |request: Request<Incoming>| {
                let (noted, answer) = (Arc::clone(&noted), answer.clone());
                async move {
                    let upload = request.extensions().get::<CompletedUpload>().cloned();
                    let upload = upload.expect("only uploads come here");
                    let content = upload.content().collect().await.unwrap().to_bytes();
                    let number = {
                        let mut noted = noted.lock().unwrap();
                        noted.push((upload, content.to_vec()));
                        noted.len()
                    };
                    let response = Response::builder().status(answer(number));
                    let text = Bytes::from(format!("delivery {number}"));
                    Ok::<_, Infallible>(response.body(Full::from(text)).unwrap())
                }
            });
            let service = ServiceBuilder::new()
                .layer(ResumableLayer::new(store))
                .service(inner);
            addrs.push(serve(service).await);
        }
        Self {
            addrs,
            deliveries,
            stores,
        }
    }

    /// Sends each of the chunks to the next server, all concurrently.
    async fn send(&self, file: &File, numbers: impl Iterator<Item = usize>) -> Vec<Answer> {
        let mut tasks = tokio::task::JoinSet::new();
        for (n, number) in numbers.enumerate() {
            let (file, addr) = (file.clone(), self.addrs[n % self.addrs.len()]);
            tasks.spawn(async move {
                let request = file.multipart(number);
                Client::connect(addr).await.send(request).await
            });
        }
        tasks.join_all().await
    }

    fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_to_several_servers_are_delivered_once() {
    let engine = Arc::new(Engine::default());
    let servers = Servers::start(&engine, 3, |_| StatusCode::OK).await;
    for round in 0..20 {
        let file = File::new(&format!("{round}.txt"), 95 + round);
        let numbers = (1..=file.chunks()).chain(1..=file.chunks());
        let answers = servers.send(&file, numbers).await;
        let good = answers.iter().all(|answer| answer.status == 200);
        assert!(good, "round {round}: {answers:?}");
        let deliveries = servers.deliveries();
        assert_eq!(deliveries.len(), round + 1);
        let (upload, content) = &deliveries[round];
        assert!(*content == file.content, "round {round}");
        assert_eq!(upload.attempt(), 1);
        assert_eq!(upload.crc32(), Some(crc32fast::hash(&file.content)));
        assert_eq!(upload.path(), None);
        // A late duplicate and a probe get the same answer from every server.
        for addr in &servers.addrs {
            let mut client = Client::connect(*addr).await;
            let expected = format!("delivery {}", round + 1);
            assert_eq!(client.send(file.multipart(2)).await.body, expected);
            assert_eq!(client.send(file.probe(1)).await.body, expected);
        }
    }
    // Each file is stored under a generated name. A duplicate that raced with the delivery can
    // leave a piece, which is removed with the record.
    assert_eq!(engine.keys("files").await.len(), 20);
    let expiry = everything(Duration::ZERO);
    let swept = servers.stores[0].sweep(&expiry).await.unwrap();
    assert_eq!(swept.records, 20);
    assert_eq!(engine.keys("up").await, Vec::<String>::new());
    assert_eq!(engine.keys("files").await.len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_of_the_service_decides_whether_the_object_is_kept() {
    let engine = Arc::new(Engine::default());
    let answers = |n| [StatusCode::BAD_GATEWAY, StatusCode::UNPROCESSABLE_ENTITY][n - 1];
    let servers = Servers::start(&engine, 2, answers).await;
    let file = File::new("a.txt", 25);
    servers.send(&file, 1..=1).await;
    let answer = Client::connect(servers.addrs[1])
        .await
        .send(file.multipart(2))
        .await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(engine.keys("files").await.len(), 1);
    let probe = Client::connect(servers.addrs[0])
        .await
        .send(file.probe(1))
        .await;
    assert_eq!(probe.status, 204, "the upload is not delivered yet");
    // The other server tries again, and the inner service rejects the upload.
    let answer = Client::connect(servers.addrs[0])
        .await
        .send(file.multipart(2))
        .await;
    assert_eq!(answer.status, 400, "{answer:?}");
    let deliveries = servers.deliveries();
    let [(first, _), (second, _)] = &deliveries[..] else {
        panic!("{deliveries:?}");
    };
    assert_eq!((first.id(), first.attempt()), (second.id(), 1));
    assert_eq!(second.attempt(), 2);
    assert_eq!(engine.keys("files").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_file_above_the_maximum_size_is_refused_at_its_first_chunk() {
    let engine = Arc::new(Engine::default());
    let store = BucketStore::builder(Arc::clone(&engine)).with_max_object_size(100);
    let store = store.open().await.unwrap();
    engine.take_counts();
    let result = write(&store, &upload(101, None), 0, b"a").await;
    assert!(
        matches!(result, Err(StoreError::TooLarge { limit: 100 })),
        "{result:?}"
    );
    // One request checks whether the upload exists: if it does, its stored length applies.
    assert_eq!(engine.take_counts().requests, [("get", 1)].into());
    assert!(write(&store, &upload(100, None), 0, b"a").await.is_ok());
}

#[tokio::test]
async fn chunks_that_exceed_the_memory_are_refused_for_now() {
    let engine = Arc::new(Engine::default());
    let store = BucketStore::builder(Arc::clone(&engine)).with_max_buffered_bytes(MIB);
    let store = store.with_self_test(false).open().await.unwrap();
    let bytes = content(2 * MIB);
    let upload = upload(2 * MIB, None);
    // A chunk that is larger than the memory is refused for good.
    let result = write(&store, &upload, 0, &bytes).await;
    assert!(
        matches!(result, Err(StoreError::ChunkTooLarge { limit: MIB })),
        "{result:?}"
    );
    // The chunk does not fit next to another one that has arrived except for its end.
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let end = futures_util::stream::once(receiver).filter_map(async |_| None);
    let frame = Ok(http_body::Frame::data(bytes.slice(..700_000)));
    let frames = futures_util::stream::iter([frame]).chain(end);
    let source = pin!(StreamBody::new(frames));
    let mut body = ChunkBody::new(source, Some(700_000), 0);
    let mut first = pin!(store.write(&upload, 0, &mut body));
    for _ in 0..100 {
        assert!(futures_util::poll!(first.as_mut()).is_pending());
    }
    let result = write(&store, &upload, MIB, &bytes[MIB as usize..]).await;
    assert!(matches!(result, Err(StoreError::Busy)), "{result:?}");
    let status = store.status(&upload.id).await.unwrap();
    assert!(status.is_none(), "{status:?}");
    sender.send(()).unwrap();
    assert_eq!(first.await.unwrap().received, 700_000);
    // The memory is free again, and a file that is larger than the memory can still be composed.
    for offset in [MIB, 0] {
        let chunk = &bytes[offset as usize..][..MIB as usize];
        write(&store, &upload, offset, chunk).await.unwrap();
    }
    assert!(finish(&store, &upload).await.unwrap() == bytes);
}

/// The requests for a chunk in the middle, for the delivery, and for the whole upload.
async fn costs(chunk_size: u64, total: u64) -> (Counts, Counts, Counts) {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    let bytes = content(total);
    let upload = upload(total, Some(chunk_size));
    let mut all = Counts::default();
    let mut middle = Counts::default();
    let chunks: Vec<_> = bytes.chunks(chunk_size as usize).collect();
    for (n, chunk) in chunks.iter().enumerate() {
        let progress = write(&store, &upload, n as u64 * chunk_size, chunk)
            .await
            .unwrap();
        assert_eq!(progress.complete, n + 1 == chunks.len());
        let counts = engine.take_counts();
        add(&mut all, &counts);
        if n == chunks.len() / 2 {
            middle = counts;
        }
    }
    let Claimed::Won(mut claim) = store.claim(&upload).await.unwrap() else {
        panic!("not complete");
    };
    claim.settle(&record()).await.unwrap();
    let end = engine.take_counts();
    add(&mut all, &end);
    let sealed = claim.sealed();
    assert!(read(sealed).await.unwrap() == bytes);
    assert_eq!(sealed.crc32, Some(crc32fast::hash(&bytes)));
    (middle, end, all)
}

fn add(all: &mut Counts, more: &Counts) {
    for (name, count) in &more.requests {
        *all.requests.entry(name).or_default() += count;
    }
    all.bytes_in += more.bytes_in;
    all.bytes_out += more.bytes_out;
}

#[tokio::test]
async fn the_number_of_requests_is_bounded() {
    // Parts: nothing is read again, and the work at the end does not grow with the file.
    for parts in [3, 9] {
        let total = parts * 5 * MIB;
        let (chunk, end, all) = costs(5 * MIB, total).await;
        println!("parts of 5 MiB, {parts} chunks: each {chunk:?}\n  end {end:?}\n  all {all:?}");
        assert_eq!(chunk.all(), 5, "{chunk:?}");
        // Three of them read the clock of the engine, once a minute.
        assert!(end.all() <= 16, "{end:?}");
        assert!(all.all() <= 5 * parts + 20, "{all:?}");
        assert!(
            all.bytes_in < total + 10_000 && all.bytes_out < 1000 * parts,
            "{all:?}"
        );
    }
    // Pieces: each one is read once, and written once more.
    for chunks in [8, 32] {
        let total = chunks * MIB;
        let (chunk, end, all) = costs(MIB, total).await;
        println!("pieces of 1 MiB, {chunks} chunks: each {chunk:?}\n  end {end:?}\n  all {all:?}");
        assert_eq!(chunk.all(), 4, "{chunk:?}");
        // A slot consists of eight pieces.
        assert!(end.all() <= chunks + chunks / 8 * 2 + 18, "{end:?}");
        assert!(all.all() <= 5 * chunks + chunks / 8 * 2 + 21, "{all:?}");
        assert!(all.bytes_in < 2 * total + 10_000, "{all:?}");
        assert!(all.bytes_out < total + 1000 * chunks, "{all:?}");
    }
    // A small file in one request.
    let (_, end, all) = costs(MIB, 1000).await;
    println!("one chunk of 1000 bytes: end {end:?}\n  all {all:?}");
    assert!(all.all() <= 27, "{all:?}");
}

/// Requests that are paid for like PUT, and like GET.
fn paid(counts: &Counts) -> (u64, u64) {
    let count = |names: &[&str]| {
        let counts = names.iter().filter_map(|name| counts.requests.get(name));
        counts.sum()
    };
    let puts = ["put", "part", "list", "create", "begin", "complete"];
    (count(&puts), count(&["get", "head"]))
}

/// The numbers in the documentation of [`BucketStore`].
#[tokio::test(start_paused = true)]
#[ignore = "takes some minutes and 6 GiB of memory"]
async fn the_documented_numbers_of_requests() {
    const GIB: u64 = 1 << 30;
    let mut found = Vec::new();
    for size in [8 * MIB, MIB] {
        let (chunk, _, all) = costs(size, GIB).await;
        found.push((paid(&chunk), paid(&all)));
    }
    for size in [GIB, 8 * MIB, MIB] {
        let [middle, asked, _, all] = appends::append_costs(size, GIB / size, true).await;
        println!("appends of {size} bytes: {middle:?}\n{asked:?}\n{all:?}");
        found.push((paid(&middle), paid(&all)));
    }
    println!("{found:?}");
    let expected = [
        ((4, 1), (523, 134)),
        ((3, 1), (3343, 2054)),
        ((260, 2), (273, 8)),
        ((5, 2), (655, 262)),
        ((5, 2), (4630, 3078)),
    ];
    assert_eq!(found, expected);
}

/// Begins an upload of `length` bytes with one byte.
async fn begin(store: &BucketStore, n: u8, scope: &str, length: u64) -> Upload {
    let mut upload = upload(length, None);
    upload.id = UploadId::from_bytes([n; 32]);
    upload.scope = scope.into();
    write(store, &upload, 0, b"x").await.unwrap();
    upload
}

/// The first page of a list.
async fn list(store: &BucketStore, filter: &Filter) -> Vec<Upload> {
    let page = store.list(filter, None).await.unwrap();
    assert_eq!(page.next, None);
    page.uploads
        .into_iter()
        .map(|listed| listed.upload)
        .collect()
}

/// There may be many more records than unfinished uploads, and many uploads of other scopes.
#[tokio::test]
async fn the_cost_of_a_list_depends_on_its_length() {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    for n in 0..20 {
        let upload = begin(&store, n, "a", 1).await;
        finish(&store, &upload).await.unwrap();
    }
    let mut open_uploads = Vec::new();
    for (n, scope) in [(30, "a"), (31, "b"), (32, "b"), (33, "b")] {
        open_uploads.push(begin(&store, n, scope, 100).await);
    }
    let waiting = begin(&store, 34, "b", 1).await;
    open_uploads.push(waiting.clone());
    // From another server, which knows none of them.
    let store = open(&engine).await;
    engine.take_counts();
    let mut usage = store.usage().await.unwrap();
    usage.sort_unstable();
    let expected: Vec<_> = open_uploads.iter().map(Usage::from).collect();
    assert_eq!(usage, expected);
    let counts = engine.take_counts();
    assert_eq!((counts.all(), counts.bytes_out), (1, 0), "{counts:?}");
    let filter = Filter::default().with_scope(Scope::new("a"));
    assert_eq!(list(&store, &filter).await.len(), 1);
    let counts = engine.take_counts();
    assert!(counts.all() <= 1 + 3, "{counts:?}");
    assert_eq!(list(&store, &Filter::complete()).await, [waiting]);
    let counts = engine.take_counts();
    assert!(counts.all() <= 1 + 5 * 3, "{counts:?}");
    // The records have to be read.
    let mut nothing = everything(Duration::from_secs(60));
    nothing.records_before = SystemTime::now();
    assert_eq!(store.sweep(&nothing).await.unwrap(), Swept::default());
    let counts = engine.take_counts();
    assert_eq!(counts.all(), 3 + 3 + 25, "{counts:?}");
}

/// The object of a server that died while it read the engine's clock.
#[tokio::test]
async fn scratch_objects_are_swept() {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    object_store::ObjectStoreExt::put(&*engine, &"scratch/x".into(), vec![].into())
        .await
        .unwrap();
    let hour = Duration::from_secs(3600);
    store.sweep(&everything(hour / 2)).await.unwrap();
    assert_eq!(engine.keys("scratch").await, ["scratch/x"]);
    // The object is removed, and so are those of other servers.
    let later = SystemTime::now() + hour;
    let mut all = everything(Duration::ZERO);
    all.abandoned_before = Some(later);
    all.undelivered_before = Some(later);
    store.sweep(&all).await.unwrap();
    assert_eq!(engine.keys("scratch").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_probe_and_a_duplicate_cost_little() {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    let bytes = content(5 * MIB);
    let upload = upload(20 * MIB, Some(5 * MIB));
    for offset in [0, 5 * MIB] {
        write(&store, &upload, offset, &bytes).await.unwrap();
    }
    engine.take_counts();
    let status = store.status(&upload.id).await.unwrap().unwrap();
    assert!(matches!(status.state, State::Receiving(ranges) if ranges.total() == 10 * MIB));
    let probe = engine.take_counts();
    write(&store, &upload, 0, &bytes).await.unwrap();
    let duplicate = engine.take_counts();
    println!("probe {probe:?}\nduplicate {duplicate:?}");
    assert_eq!(probe.all(), 2);
    // One list to compare it with what is stored.
    assert_eq!(duplicate.all(), 3);
    assert_eq!(duplicate.bytes_in, 0);
}

/// Sends all chunks until the upload is delivered. Failed requests are repeated, as a client does.
async fn deliver(store: &BucketStore, upload: &Upload, bytes: &Bytes, size: u64) -> Vec<Vec<u8>> {
    let mut seen = Vec::new();
    'again: for _ in 0..20 {
        let mut complete = false;
        for (n, chunk) in bytes.chunks(size as usize).enumerate() {
            let mut stored = None;
            for _ in 0..3 {
                stored = write(store, upload, n as u64 * size, chunk).await.ok();
                if stored.is_some() {
                    break;
                }
            }
            complete = stored.is_some_and(|progress| progress.complete);
        }
        if !complete {
            continue;
        }
        for _ in 0..3 {
            let mut claim = match store.claim(upload).await {
                Ok(Claimed::Won(claim)) => claim,
                Ok(Claimed::Settled(_)) => return seen,
                Ok(Claimed::Incomplete) => continue 'again,
                Ok(Claimed::Busy) | Err(_) => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    continue;
                }
            };
            seen.push(read(claim.sealed()).await.unwrap_or_default());
            settle(&mut claim).await;
            return seen;
        }
    }
    panic!("the upload is never delivered");
}

/// Any request fails, before or after it takes effect. Without further faults, the upload is
/// delivered exactly once, and nothing else is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_may_fail() {
    for (size, total) in [(5 * MIB, 5 * MIB + 100), (100_000, 250_000), (10, 0)] {
        let bytes = content(total);
        let upload = upload(total, Some(size));
        let mut faults = 0;
        for late in [false, true] {
            for number in 1.. {
                let engine = Arc::new(Engine::default());
                let store = BucketStore::builder(Arc::clone(&engine)).with_self_test(false);
                let store = store
                    .with_lease(Duration::from_millis(100))
                    .open()
                    .await
                    .unwrap();
                engine.fail(number, late);
                let seen = match total {
                    0 => {
                        // An empty file has one empty chunk.
                        while write(&store, &upload, 0, b"").await.is_err() {}
                        deliver_empty(&store, &upload).await
                    }
                    _ => deliver(&store, &upload, &bytes, size).await,
                };
                let case = format!("request {number} fails (late: {late}), {total} bytes");
                // The content is unreadable only if the request that reads it failed.
                let good = seen.iter().filter(|content| **content == bytes).count();
                assert_eq!(seen.len(), 1, "{case}");
                assert!(good == 1 || engine.has_failed(), "{case}");
                let failed = engine.has_failed();
                engine.fail(0, false);
                let status = store.status(&upload.id).await.unwrap();
                let state = status.map(|status| status.state);
                assert!(
                    matches!(state, Some(State::Settled(_))),
                    "{case}: {state:?}"
                );
                // An object that could not be removed is removed when its claim has expired.
                let deadline = Instant::now() + Duration::from_secs(10);
                loop {
                    let left = [engine.keys("up").await, engine.keys("open").await].concat();
                    if left.is_empty() {
                        break;
                    }
                    assert!(Instant::now() < deadline, "{case}: {left:?}");
                    store.sweep(&everything(Duration::ZERO)).await.unwrap();
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                let files = engine.keys("files").await;
                let [file] = &files[..] else {
                    panic!("{case}: {files:?}");
                };
                let path = object_store::path::Path::from(file.as_str());
                assert!(engine.bytes(&path).await.unwrap() == bytes, "{case}");
                if !failed {
                    break;
                }
                faults += 1;
            }
        }
        println!("{faults} faults in uploads of {total} bytes in chunks of {size}");
        assert!(faults > 20);
    }
}

/// A server dies at any request to the engine. Other servers finish the upload, and a sweep removes
/// what is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_may_be_the_last_of_a_server() {
    const LEASE: Duration = Duration::from_millis(100);
    for (size, total) in [(5 * MIB, 5 * MIB + 100), (100_000, 250_000)] {
        let bytes = content(total);
        let upload = upload(total, Some(size));
        for number in 1.. {
            let engine = Arc::new(Engine::default());
            let way = Arc::new(engine.beside());
            let store = open_with_lease(&engine, LEASE).await;
            let dying = open_with_lease(&way, LEASE).await;
            let held = way.hold(number);
            // The tasks of a server die with its runtime, as with its process.
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let work = {
                let (bytes, upload) = (bytes.clone(), upload.clone());
                runtime.spawn(async move {
                    for (n, chunk) in bytes.chunks(size as usize).enumerate() {
                        let offset = n as u64 * size;
                        write(&dying, &upload, offset, chunk).await.unwrap();
                    }
                    // A server that dies does not release its claim.
                    std::mem::forget(dying.claim(&upload).await.unwrap());
                })
            };
            tokio::select! {
                ended = work => ended.unwrap(),
                () = held.arrived.notified() => {}
            }
            let is_over = way.requests() < number;
            way.set_down(true);
            runtime.shutdown_background();
            held.released.notify_one();
            let seen = deliver(&store, &upload, &bytes, size).await;
            let case = format!("request {number}, {total} bytes");
            assert!(seen.len() == 1 && seen[0] == bytes, "{case}");
            let deadline = Instant::now() + Duration::from_secs(10);
            loop {
                store.sweep(&everything(Duration::ZERO)).await.unwrap();
                let left = [engine.keys("up").await, engine.keys("open").await].concat();
                if left.is_empty() {
                    break;
                }
                assert!(Instant::now() < deadline, "{case}: {left:?}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if is_over {
                assert!(number > 10, "{case}");
                break;
            }
        }
    }
}

/// Settles a claim like the layer: until the record is stored.
async fn settle(claim: &mut impl Claim) {
    let record = record();
    for _ in 0..5 {
        match claim.settle(&record).await {
            Ok(()) => return,
            Err(StoreError::Superseded) => panic!("settled by another server"),
            Err(_) => {}
        }
    }
    panic!("the claim cannot be settled");
}

async fn deliver_empty(store: &BucketStore, upload: &Upload) -> Vec<Vec<u8>> {
    loop {
        let mut claim = match store.claim(upload).await {
            Ok(Claimed::Won(claim)) => claim,
            Ok(Claimed::Busy) | Err(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            Ok(other) => panic!("{other:?}"),
        };
        let seen = read(claim.sealed()).await.unwrap_or_default();
        settle(&mut claim).await;
        return vec![seen];
    }
}

/// The claim of a server that died during a delivery expires with its lease. A running server keeps
/// its claim for as long as the delivery takes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_servers_claim_is_taken_over() {
    const LEASE: Duration = Duration::from_secs(1);
    let engine = Arc::new(Engine::default());
    let other = open_with_lease(&engine, LEASE).await;
    let upload = upload(3, None);
    // A process that has died sends nothing more: its claim is neither renewed nor released.
    let (sender, receiver) = std::sync::mpsc::channel();
    let way = Arc::new(engine.beside());
    let (dying, described) = (open_with_lease(&way, LEASE).await, upload.clone());
    let died = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let claim = runtime.block_on(async {
            write(&dying, &described, 0, b"abc").await.unwrap();
            let Claimed::Won(claim) = dying.claim(&described).await.unwrap() else {
                panic!("not complete");
            };
            claim
        });
        sender.send(()).unwrap();
        // The server runs for three leases, and renews its claim.
        std::thread::sleep(3 * LEASE);
        sender.send(()).unwrap();
        way.set_down(true);
        runtime.shutdown_background();
        std::mem::forget(claim);
    });
    let receiver = tokio::task::spawn_blocking(move || {
        receiver.recv().unwrap();
        receiver
    });
    let receiver = receiver.await.unwrap();
    loop {
        let asked = other.claim(&upload).await.unwrap();
        if receiver.try_recv().is_ok() {
            break;
        }
        assert!(
            matches!(asked, Claimed::Busy),
            "the claim of a running server was taken over: {asked:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    died.join().unwrap();
    let deadline = Instant::now() + 20 * LEASE;
    let claim = loop {
        match other.claim(&upload).await.unwrap() {
            Claimed::Won(claim) => break claim,
            Claimed::Busy => assert!(Instant::now() < deadline, "the claim was never taken over"),
            answer => panic!("{answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    let sealed = claim.sealed();
    assert_eq!(sealed.attempt, 2);
    assert_eq!(read(sealed).await.unwrap(), b"abc");
}

/// Claims and settles a complete upload. Returns its content.
async fn finish(store: &BucketStore, upload: &Upload) -> Result<Vec<u8>, StoreError> {
    let Claimed::Won(mut claim) = store.claim(upload).await? else {
        panic!("the upload cannot be claimed");
    };
    let sealed = claim.sealed();
    let content = read(sealed).await.unwrap();
    assert_eq!(sealed.crc32, Some(crc32fast::hash(&content)));
    settle(&mut claim).await;
    Ok(content)
}

/// Two servers that receive the same chunk at the same time both put it. It is not known which part
/// was put last, so each set of ids is tried.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_was_put_twice_is_found() {
    let (a, b) = (content(5 * MIB), Bytes::from(vec![9; 5 * MIB as usize]));
    // The same bytes under another id, as with an engine that encrypts, or other bytes from the
    // client.
    for second in [&a, &b] {
        let engine = Arc::new(Engine::default());
        let servers = [open(&engine).await, open(&engine).await];
        let upload = upload(10 * MIB, Some(5 * MIB));
        write(&servers[0], &upload, 5 * MIB, &a).await.unwrap();
        engine.meet();
        let both = tokio::join!(
            write(&servers[0], &upload, 0, &a),
            write(&servers[1], &upload, 0, second),
        );
        assert!(both.0.unwrap().complete || both.1.unwrap().complete);
        let found = finish(&servers[1], &upload).await.unwrap();
        assert!(found[..5 * MIB as usize] == a || found[..5 * MIB as usize] == *second);
        assert!(found[5 * MIB as usize..] == a);
    }
}

/// Parts that a lifecycle rule of the bucket has removed are requested again.
#[tokio::test]
async fn an_upload_whose_parts_were_removed_begins_again() {
    let bytes = content(10 * MIB);
    let (first, second) = bytes.split_at(5 * MIB as usize);
    // The loss is noticed by a chunk, or at the end.
    for stored in [1, 2] {
        let engine = Arc::new(Engine::default());
        let store = open(&engine).await;
        let upload = upload(10 * MIB, Some(5 * MIB));
        write(&store, &upload, 0, first).await.unwrap();
        if stored == 2 {
            write(&store, &upload, 5 * MIB, second).await.unwrap();
        }
        engine.abort_all();
        if stored == 2 {
            assert!(finish(&store, &upload).await.is_err());
            let status = store.status(&upload.id).await.unwrap();
            assert!(status.is_none(), "{status:?}");
        }
        let progress = write(&store, &upload, 5 * MIB, second).await.unwrap();
        let expected = Progress {
            received: 5 * MIB,
            complete: false,
        };
        assert_eq!(progress, expected);
        write(&store, &upload, 0, first).await.unwrap();
        assert!(finish(&store, &upload).await.unwrap() == bytes);
    }
}

/// All parts but the last are equal in size, whatever the client's chunks are, and no multipart
/// upload stays open.
#[tokio::test]
async fn chunks_of_any_size_become_equal_parts() {
    for (size, lens) in [
        // As Resumable.js divides a file.
        (5 * MIB, vec![5 * MIB, 5 * MIB, 8 * MIB + 7]),
        (6 * MIB, vec![6 * MIB, 1]),
        // A whole file in one request.
        (32 * MIB, vec![9 * MIB]),
        // Small chunks of odd sizes.
        (3_000_001, vec![3_000_001, 3_000_001, 3_000_001, 5]),
    ] {
        let engine = Arc::new(Engine::default());
        let store = open(&engine).await;
        let bytes = content(lens.iter().sum());
        let upload = upload(bytes.len() as u64, Some(size));
        let mut chunks = Vec::new();
        let mut offset = 0;
        for len in lens {
            chunks.push((
                offset,
                bytes.slice(offset as usize..(offset + len) as usize),
            ));
            offset += len;
        }
        for (offset, chunk) in chunks.iter().rev() {
            write(&store, &upload, *offset, chunk).await.unwrap();
        }
        assert!(
            finish(&store, &upload).await.unwrap() == bytes,
            "chunks of {size}"
        );
        assert_eq!(engine.open_uploads(), 0);
        // The multipart upload of a removed upload is aborted.
        let mut other = upload.clone();
        other.id = UploadId::from_bytes([8; 32]);
        write(&store, &other, 0, b"a").await.unwrap();
        assert_eq!(engine.open_uploads(), 1);
        assert!(store.remove(&other.id).await.unwrap());
        assert_eq!(engine.open_uploads(), 0);
    }
}

/// A handler reads, copies and moves a file, wherever it is stored.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_finished_object_is_read_copied_and_moved() {
    let engine = Arc::new(Engine::default());
    let servers = Servers::start(&engine, 1, |n| match n {
        1 => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    })
    .await;
    let file = File::new("a.txt", 25);
    for _ in 0..2 {
        servers.send(&file, 1..=2).await;
    }
    let deliveries = servers.deliveries();
    let [(first, _), (second, _)] = &deliveries[..] else {
        panic!("{deliveries:?}");
    };
    assert_eq!((first.attempt(), second.attempt()), (1, 2));
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::write(at("other"), "another's").unwrap();

    first.copy_to(at("copy")).await.unwrap();
    assert_eq!(std::fs::read(at("copy")).unwrap(), file.content);
    // A later attempt may copy to the same target again. No other file is overwritten.
    let error = first.copy_to(at("copy")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    second.copy_to(at("copy")).await.unwrap();
    for upload in [first, second] {
        let error = upload.copy_to(at("other")).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
        let error = upload.persist(at("other")).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    }
    assert_eq!(std::fs::read(at("other")).unwrap(), b"another's");
    assert!(second.persist(at("no/such/folder")).await.is_err());

    first.persist(at("moved")).await.unwrap();
    assert_eq!(std::fs::read(at("moved")).unwrap(), file.content);
    assert_eq!(engine.keys("files").await, Vec::<String>::new());
    second.persist(at("moved")).await.unwrap();
    let error = second.persist(at("elsewhere")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    let error = second.content().next().await.unwrap().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
    // No incomplete file remains.
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["copy", "moved", "other"]);
}

/// The digest of a file is checked before the delivery. If it is wrong, the object is removed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn digests_of_objects_are_checked() {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    let digests = Digests::default().with_file_field("sha256", DigestAlgorithm::Sha256);
    let layer = ResumableLayer::new(store).with_digests(digests);
    let inner = service_fn(async |request: Request<Incoming>| {
        let upload = request.extensions().get::<CompletedUpload>();
        let text = upload.map(|upload| upload.size().to_string());
        let body = Full::from(text.expect("only uploads come here"));
        Ok::<Response<Full<Bytes>>, Infallible>(Response::new(body))
    });
    let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
    let mut client = Client::connect(addr).await;
    let mut file = File::new("a.txt", 25);
    let digest = |bytes: &[u8]| {
        let digest = Sha256::digest(bytes);
        let hex = digest.iter().map(|byte| format!("{byte:02x}"));
        hex.collect::<String>()
    };
    for (digest, expected) in [(digest(b"another"), false), (digest(&file.content), true)] {
        file.extra = vec![("sha256".into(), digest)];
        client.send(file.multipart(1)).await;
        let answer = client.send(file.multipart(2)).await;
        assert_eq!(answer.status == 200, expected, "{answer:?}");
        let files = engine.keys("files").await;
        assert_eq!(files.len(), usize::from(expected));
    }
}
