//! Checks the contract with small slots and with two servers, and what only this store does.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::StreamBody;
use object_store::{ObjectStoreExt as _, memory::InMemory};
use tokio::sync::RwLock;

use super::{BucketClaim, BucketStore, StoredObject, layout::Limits};
use crate::{
    model::upload::{Scope, Upload, UploadId},
    store::{
        Append, Capabilities, ChunkBody, Claim as _, Claimed, Content, Expiry, Filter, Page,
        Progress, Record, State, Status, Store, StoreError, Swept, Usage, conformance,
    },
};

/// Chunks of the suite touch several slots.
const SMALL: Limits = Limits {
    min_part: 100_000,
    max_part: 1 << 30,
    max_parts: 10_000,
    slot: 350_000,
    unit: 1000,
    max_object: 5 << 40,
};

async fn open(engine: &Arc<InMemory>, lease: Duration) -> BucketStore {
    let builder = BucketStore::builder(Arc::clone(engine)).with_limits(SMALL);
    let builder = builder.with_lease(lease).with_prefix("a/b");
    builder.open().await.unwrap()
}

fn upload(byte: u8, scope: &str, length: u64) -> Upload {
    let id = UploadId::from_bytes([byte; 32]);
    Upload::new(id, Scope::new(scope), Some(length))
}

/// Writes the pieces of a body, which then ends or fails.
async fn write(
    store: &BucketStore,
    upload: &Upload,
    offset: u64,
    pieces: &[&[u8]],
    fails: bool,
) -> Result<Progress, StoreError> {
    let pieces = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece)));
    let error = fails.then(|| Err("connection reset".into()));
    let frames = pieces.chain(error).collect::<Vec<_>>().into_iter();
    let frames = frames.map(|piece| piece.map(http_body::Frame::data));
    let mut body = pin!(StreamBody::new(stream::iter(frames)));
    let mut body = ChunkBody::new(body.as_mut(), None, u64::MAX);
    store.write(upload, offset, &mut body).await
}

async fn write_whole(store: &BucketStore, upload: &Upload, bytes: &[u8]) -> Progress {
    let written = write(store, upload, 0, &[bytes], false).await;
    written.unwrap()
}

async fn ranges(store: &BucketStore, upload: &Upload) -> Vec<std::ops::Range<u64>> {
    match store.status(&upload.id).await.unwrap().unwrap().state {
        State::Receiving(ranges) => ranges.iter().collect(),
        state => panic!("{state:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_store_conforms() {
    let store = BucketStore::open(Arc::new(InMemory::new())).await.unwrap();
    conformance::check(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_slots_conform() {
    let engine = Arc::new(InMemory::new());
    let store = open(&engine, Duration::from_secs(30)).await;
    conformance::check(&store).await;
}

/// Two servers behind a load balancer that alternates between them.
#[derive(Clone, Debug)]
struct Balanced {
    servers: [BucketStore; 2],
    next: Arc<AtomicUsize>,
    /// The suite sweeps uploads while requests write to them, which is safe within one server. Real
    /// limits are older than any request.
    writing: Arc<RwLock<()>>,
}

impl Balanced {
    /// An append of another server ends without the bytes in its memory, so those of an upload go
    /// to the same one.
    fn of(&self, id: &UploadId) -> &BucketStore {
        &self.servers[usize::from(id.as_bytes()[0] % 2)]
    }

    fn next(&self) -> &BucketStore {
        &self.servers[self.next.fetch_add(1, Relaxed) % 2]
    }
}

impl Store for Balanced {
    type Claim = BucketClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        let _writing = self.writing.read().await;
        self.next().create(upload).await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let _writing = self.writing.read().await;
        self.next().write(upload, offset, body).await
    }

    fn capabilities(&self) -> Capabilities {
        self.servers[0].capabilities()
    }

    async fn interrupt(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.of(id).interrupt(id).await
    }

    async fn append(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let _writing = self.writing.read().await;
        self.of(&upload.id).append(upload, append, body).await
    }

    async fn concat(&self, upload: &Upload, parts: &[UploadId]) -> Result<Progress, StoreError> {
        let _writing = self.writing.read().await;
        self.next().concat(upload, parts).await
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.next().status(id).await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<BucketClaim>, StoreError> {
        self.next().claim(upload).await
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.next().remove(id).await
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        self.next().list(filter, after).await
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.next().usage().await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        match self.writing.try_write() {
            Ok(_none) => self.next().sweep(expiry).await,
            Err(_) => Ok(Swept::default()),
        }
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Content, StoreError> {
        self.next().spool(body).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_conform() {
    let engine = Arc::new(InMemory::new());
    // A server that has found an upload busy asks again after a sixtieth of this.
    let lease = Duration::from_secs(3);
    let store = Balanced {
        servers: [open(&engine, lease).await, open(&engine, lease).await],
        next: Arc::default(),
        writing: Arc::default(),
    };
    conformance::check(&store).await;
}

/// Appends the pieces of a body, which then ends or fails.
async fn append(
    store: &BucketStore,
    upload: &Upload,
    append: Append,
    pieces: &[&[u8]],
    fails: bool,
) -> Result<Progress, StoreError> {
    let pieces = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece)));
    let error = fails.then(|| Err("connection reset".into()));
    let frames = pieces.chain(error).collect::<Vec<_>>().into_iter();
    let frames = frames.map(|piece| piece.map(http_body::Frame::data));
    let mut body = pin!(StreamBody::new(stream::iter(frames)));
    let mut body = ChunkBody::new(body.as_mut(), None, u64::MAX);
    store.append(upload, append, &mut body).await
}

/// An upload gets its bytes either by chunks or by appends. A request of the other kind changes
/// nothing, on a server that knows the upload and on another one.
#[tokio::test]
async fn chunks_and_appends_do_not_mix() {
    for length in [None, Some(10)] {
        let engine = Arc::new(InMemory::new());
        let lease = Duration::from_secs(30);
        let stores = [open(&engine, lease).await, open(&engine, lease).await];
        let [chunks, appends] = [1, 2].map(|byte| Upload {
            length,
            ..upload(byte, "", 0)
        });
        for upload in [&chunks, &appends] {
            stores[0].create(upload).await.unwrap();
        }
        let at = Append::at;
        write(&stores[0], &chunks, 0, &[b"abc"], false)
            .await
            .unwrap();
        append(&stores[0], &appends, at(0), &[b"abc"], false)
            .await
            .unwrap();
        for store in &stores {
            let appended = append(store, &chunks, at(3), &[b"def"], false).await;
            assert!(
                matches!(appended, Err(StoreError::Unsupported)),
                "{appended:?}"
            );
            let written = write(store, &appends, 3, &[b"def"], false).await;
            assert!(
                matches!(written, Err(StoreError::Unsupported)),
                "{written:?}"
            );
            for upload in [&chunks, &appends] {
                let status = store.interrupt(&upload.id).await.unwrap().unwrap();
                assert_eq!(status.prefix(), 3);
                assert_eq!(ranges(store, upload).await, vec![0..3]);
            }
        }
        // More than an object can have.
        if length.is_none() {
            let end = SMALL.slot * SMALL.max_parts;
            let written = write(&stores[0], &chunks, end, &[b"x"], false).await;
            assert!(
                matches!(written, Err(StoreError::TooLarge { limit }) if limit == end),
                "{written:?}"
            );
        }
    }
}

/// Appends of any length become parts of equal length, whatever servers get them and however their
/// bodies end.
#[tokio::test]
async fn appends_become_equal_parts() {
    let content: Vec<u8> = (0..2_000_000).map(|n| (n / 7 % 256) as u8).collect();
    for (lens, slot) in [
        (vec![150_000], 150_000),
        (vec![350_001], 350_001),
        (vec![90_000, 400_000, 7], 350_000),
        (vec![1, 700_000, 699_999], 350_000),
        (vec![2_000_000], 350_000),
        (vec![1_000_000, 350_000, 10_000], 1_000_000),
    ] {
        for length in [None, Some(2_000_000)] {
            for fails in [false, true] {
                let case = format!("{lens:?}, {length:?}, fails: {fails}");
                let engine = Arc::new(InMemory::new());
                let lease = Duration::from_secs(30);
                let stores = [open(&engine, lease).await, open(&engine, lease).await];
                let upload = Upload {
                    length,
                    ..upload(1, "", 0)
                };
                stores[0].create(&upload).await.unwrap();
                let mut at = 0;
                for n in 0.. {
                    let len = lens[n % lens.len()];
                    let end = content.len().min(at + len);
                    let (store, fails) = (&stores[n / 2 % 2], fails && n % 2 == 0);
                    let pieces: Vec<_> = content[at..end].chunks(90_001).collect();
                    let mut how = Append::at(at as u64);
                    how.ends_here = length.is_none() && end == content.len();
                    let frames = pieces.iter().map(|piece| Bytes::copy_from_slice(piece));
                    let error = fails.then(|| Err("connection reset".into()));
                    let frames = frames.map(http_body::Frame::data).map(Ok).chain(error);
                    let frames: Vec<_> = frames.collect();
                    let mut body = pin!(StreamBody::new(stream::iter(frames)));
                    let exact = Some((end - at) as u64);
                    let mut body = ChunkBody::new(body.as_mut(), exact, 0);
                    let appended = store.append(&upload, how, &mut body).await;
                    assert_eq!(appended.is_err(), fails, "{case}: {appended:?}");
                    at = end;
                    if appended.is_ok_and(|progress| progress.complete) {
                        break;
                    }
                    let status = stores[(n + 1) % 2].status(&upload.id).await;
                    let status = status.unwrap().unwrap();
                    assert_eq!(status.prefix(), at as u64, "{case}");
                    if status.progress().complete {
                        break;
                    }
                }
                let Claimed::Won(claim) = stores[1].claim(&upload).await.unwrap() else {
                    panic!("not complete: {case}");
                };
                let slots = stores[1]
                    .inner
                    .info(&upload.id)
                    .await
                    .unwrap()
                    .unwrap()
                    .slots();
                // A single body that ends the file has no part of its own.
                assert_eq!((slots.size, slots.length), (slot, 2_000_000), "{case}");
                let sealed = claim.sealed();
                assert_eq!(sealed.crc32, Some(crc32fast::hash(&content)), "{case}");
                let object = sealed.stored.as_any().unwrap();
                let object = object.downcast_ref::<StoredObject>().unwrap();
                let found = object.engine().get(object.path()).await.unwrap();
                assert!(found.bytes().await.unwrap() == content, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn a_created_upload_is_known_to_other_servers() {
    let engine = Arc::new(InMemory::new());
    let lease = Duration::from_secs(30);
    let (store, other) = (open(&engine, lease).await, open(&engine, lease).await);
    let upload = upload(1, "a", 10);
    let created = store.create(&upload).await.unwrap();
    assert!(matches!(created.state, State::Receiving(ranges) if ranges.is_empty()));
    write(&other, &upload, 0, &[b"abc"], false).await.unwrap();
    let mut again = upload.clone();
    again.file_name = Some("b".into());
    let created = store.create(&again).await.unwrap();
    assert_eq!((created.prefix(), &created.upload), (3, &upload));
    let listed = other.list(&Filter::default(), None).await.unwrap();
    assert_eq!(listed.uploads.len(), 1);
    let result = write(&store, &again, 3, &[b"defghijk"], false).await;
    assert!(matches!(result, Err(StoreError::OutOfBounds)));
    write(&store, &again, 3, &[b"defghij"], false)
        .await
        .unwrap();
    let Claimed::Won(claim) = store.claim(&again).await.unwrap() else {
        panic!("not complete");
    };
    let sealed = claim.sealed();
    assert_eq!(
        (sealed.size(), sealed.upload.file_name.as_deref()),
        (10, Some("b"))
    );
    assert_eq!(sealed.attempt, 1);
}

/// A page does not exceed its limit, even if the engine's lists have no order.
#[tokio::test]
async fn lists_have_pages() {
    let engine = Arc::new(InMemory::new());
    let ordered = open(&engine, Duration::from_secs(30)).await;
    let builder = BucketStore::builder(Arc::clone(&engine)).with_prefix("a/b");
    let unordered = builder.with_self_test(false).open().await.unwrap();
    let count = Page::MAX + 30;
    let mut expected = Vec::new();
    for n in 0..count as u64 {
        let scope = Scope::new(if n % 2 == 0 { "even" } else { "odd" });
        let id = UploadId::new(&scope, [n.to_be_bytes()]);
        ordered
            .create(&Upload::new(id, scope, Some(5)))
            .await
            .unwrap();
        expected.push(id);
    }
    expected.sort_unstable();
    let ids = |page: &Page| -> Vec<_> { page.uploads.iter().map(|l| l.upload.id).collect() };
    let odd = Filter::default().with_scope(Scope::new("odd"));
    for store in [&ordered, &unordered] {
        let first = store.list(&Filter::default(), None).await.unwrap();
        assert_eq!(ids(&first), expected[..Page::MAX]);
        assert_eq!(first.next, Some(expected[Page::MAX - 1]));
        let second = store.list(&Filter::default(), first.next.as_ref()).await;
        let second = second.unwrap();
        assert_eq!(ids(&second), expected[Page::MAX..]);
        assert_eq!(second.next, None);
        let odd = store.list(&odd, None).await.unwrap();
        assert_eq!((odd.uploads.len(), odd.next), (count / 2, None));
        let complete = store.list(&Filter::complete(), None).await.unwrap();
        assert!(complete.uploads.is_empty());
        assert_eq!(complete.next, first.next);
        assert_eq!(store.usage().await.unwrap().len(), count);
    }
}

/// A request about another file with the same id is refused, before its body is read, in each state
/// of the upload.
#[tokio::test]
async fn another_length_is_a_contradiction() {
    let engine = Arc::new(InMemory::new());
    let lease = Duration::from_secs(30);
    let (store, other) = (open(&engine, lease).await, open(&engine, lease).await);
    let upload = upload(1, "", 6);
    for state in ["created", "begun", "complete", "sealed", "settled"] {
        match state {
            "created" => drop(store.create(&upload).await.unwrap()),
            "begun" => {
                let part = write(&store, &upload, 0, &[b"abc"], false).await;
                part.unwrap();
            }
            "complete" => drop(write_whole(&store, &upload, b"abcdef").await),
            "sealed" => claim(&store, &upload).await.release().await,
            _ => {
                let record = record(SystemTime::now() + HOUR);
                claim(&store, &upload).await.settle(&record).await.unwrap();
            }
        }
        for length in [0, 5, 7] {
            let edited = Upload {
                length: Some(length),
                ..upload.clone()
            };
            for store in [&store, &other] {
                let written = write(store, &edited, 0, &[b"xyz"], true).await;
                let is_conflict = matches!(written, Err(StoreError::Conflict));
                assert!(is_conflict, "{state}, {length}: {written:?}");
                let created = store.create(&edited).await;
                assert!(matches!(created, Err(StoreError::Conflict)), "{state}");
            }
        }
    }
}

/// Bytes that differ from those that are stored are refused. Nothing of their chunk is stored, and
/// no file is a mixture.
#[tokio::test]
async fn other_bytes_are_a_contradiction() {
    let engine = Arc::new(InMemory::new());
    let lease = Duration::from_secs(30);
    let (store, other) = (open(&engine, lease).await, open(&engine, lease).await);
    let content: Vec<u8> = (0..1_000_000).map(|n| (n / 7 % 256) as u8).collect();
    let upload = upload(1, "", content.len() as u64);
    let at = |range: std::ops::Range<usize>| &content[range];
    // A whole slot, and some bytes of the next two.
    for range in [0..350_000, 400_000..500_000, 750_000..800_000] {
        let offset = range.start as u64;
        write(&store, &upload, offset, &[at(range)], false)
            .await
            .unwrap();
    }
    let before = ranges(&store, &upload).await;
    for (range, changed) in [
        (0..350_000, 349_999),
        (400_000..500_000, 400_000),
        // More than what is stored, in several slots.
        (0..1_000_000, 0),
        (350_000..700_000, 450_000),
        (500_000..900_000, 790_000),
    ] {
        let mut edited = at(range.clone()).to_vec();
        edited[changed - range.start] ^= 1;
        for store in [&store, &other] {
            let offset = range.start as u64;
            let written = write(store, &upload, offset, &[&edited], false).await;
            assert!(matches!(written, Err(StoreError::Conflict)), "{written:?}");
            assert_eq!(ranges(store, &upload).await, before, "{range:?}");
        }
    }
    // The same bytes again are no contradiction, in whatever chunks.
    for range in [0..1_000_000, 5..450_000, 0..350_000] {
        let offset = range.start as u64;
        write(&other, &upload, offset, &[at(range)], false)
            .await
            .unwrap();
    }
    let sealed = claim(&store, &upload).await.sealed().clone();
    assert_eq!(sealed.crc32, Some(crc32fast::hash(&content)));
}

const HOUR: Duration = Duration::from_secs(3600);

fn record(expires: SystemTime) -> Record {
    Record::new(true, http::StatusCode::OK, 6, expires)
}

async fn claim(store: &BucketStore, upload: &Upload) -> BucketClaim {
    match store.claim(upload).await.unwrap() {
        Claimed::Won(claim) => claim,
        other => panic!("{other:?}"),
    }
}

/// Makes the clock of a server differ from that of the engine by so many seconds.
fn skew(store: &BucketStore, seconds: i64) {
    store.inner.clock.skew.store(seconds, Relaxed);
}

fn local(store: &BucketStore) -> SystemTime {
    store.inner.clock.local()
}

/// A record expires at the same time on all servers, whatever their clocks say.
#[tokio::test]
async fn records_expire_by_the_clock_of_the_engine() {
    for (ours, theirs) in [(0, 0), (-600, 0), (0, 600), (600, -600), (86_400, -86_400)] {
        let case = format!("{ours} s and {theirs} s");
        let engine = Arc::new(InMemory::new());
        let lease = Duration::from_secs(30);
        let (a, b) = (open(&engine, lease).await, open(&engine, lease).await);
        skew(&a, ours);
        skew(&b, theirs);
        let upload = upload(1, "", 6);
        write_whole(&a, &upload, b"abcdef").await;
        let written = record(local(&a) + Duration::from_secs(60));
        claim(&a, &upload).await.settle(&written).await.unwrap();
        // Neither server delivers it again, and each returns the record by its own clock.
        for store in [&a, &b] {
            let Claimed::Settled(found) = store.claim(&upload).await.unwrap() else {
                panic!("{case}: it is delivered twice");
            };
            let left = found.expires.duration_since(local(store)).expect(&case);
            assert!((50..70).contains(&left.as_secs()), "{case}: {left:?}");
            assert!(matches!(
                store.status(&upload.id).await.unwrap().unwrap().state,
                State::Settled(_)
            ));
            // A sweep whose limit is now keeps it.
            let expiry = Expiry {
                records_before: local(store),
                ..Expiry::default()
            };
            assert_eq!(
                store.sweep(&expiry).await.unwrap(),
                Swept::default(),
                "{case}"
            );
        }
        // With the limit of a sweep two minutes from now it has expired.
        let expiry = Expiry {
            records_before: local(&b) + Duration::from_secs(120),
            ..Expiry::default()
        };
        assert_eq!(b.sweep(&expiry).await.unwrap().records, 1, "{case}");
        assert!(a.status(&upload.id).await.unwrap().is_none(), "{case}");
        // A record that expires at once has expired for both, and the file can be sent again.
        write_whole(&b, &upload, b"abcdef").await;
        let written = record(local(&b) - Duration::from_secs(5));
        claim(&b, &upload).await.settle(&written).await.unwrap();
        assert!(b.status(&upload.id).await.unwrap().is_none(), "{case}");
        assert!(a.status(&upload.id).await.unwrap().is_none(), "{case}");
        assert!(write_whole(&a, &upload, b"abcdef").await.complete, "{case}");
    }
}

/// A clock that jumps while uploads are under way makes none of them older. Ages are measured by
/// the engine's clock.
#[tokio::test]
async fn a_clock_that_jumps_removes_nothing() {
    for seconds in [-8 * 86_400, -600, 600, 8 * 86_400] {
        let engine = Arc::new(InMemory::new());
        let store = open(&engine, Duration::from_secs(30)).await;
        let (begun, complete) = (upload(1, "", 6), upload(2, "", 6));
        let part = write(&store, &begun, 0, &[b"abc"], false).await;
        part.unwrap();
        write_whole(&store, &complete, b"abcdef").await;
        // The sweep before has read the clocks.
        store.sweep(&Expiry::default()).await.unwrap();
        skew(&store, seconds);
        let before = Some(local(&store) - 7 * 24 * HOUR);
        let mut expiry = Expiry {
            abandoned_before: before,
            undelivered_before: before,
            records_before: local(&store),
        };
        let swept = store.sweep(&expiry).await.unwrap();
        assert_eq!(swept, Swept::default(), "{seconds}");
        assert_eq!(ranges(&store, &begun).await, vec![0..3]);
        // With a limit of now by the same clock, both are old enough.
        expiry.abandoned_before = Some(local(&store) + Duration::from_secs(10));
        expiry.undelivered_before = expiry.abandoned_before;
        let swept = store.sweep(&expiry).await.unwrap();
        assert_eq!((swept.abandoned, swept.undelivered), (1, 1), "{seconds}");
    }
}

#[tokio::test]
async fn extreme_settings_are_clamped() {
    let engine = Arc::new(InMemory::new());
    let builder = BucketStore::builder(engine)
        .with_max_object_size(u64::MAX)
        .with_max_buffered_bytes(u64::MAX);
    let store = builder.open().await.unwrap();
    let upload = upload(1, "", 3);
    write_whole(&store, &upload, b"abc").await;
    let Claimed::Won(claim) = store.claim(&upload).await.unwrap() else {
        panic!("not complete");
    };
    claim.release().await;
    // A store without memory still takes small chunks, one after the other.
    let none = BucketStore::builder(Arc::new(InMemory::new())).with_max_buffered_bytes(0);
    let none = none.with_self_test(false).open().await.unwrap();
    write_whole(&none, &upload, b"abc").await;
    let huge = self::upload(2, "", u64::MAX);
    let created = store.create(&huge).await;
    let limit = 10_000 * (5 << 30);
    assert!(matches!(created, Err(StoreError::TooLarge { limit: l }) if l == limit));
}
