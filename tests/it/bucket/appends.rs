//! Appends and concatenations, by several servers.

use futures_util::stream;
use http_body::Frame;
use object_store::{ObjectStoreExt as _, path::Path};
use tokio::sync::{mpsc, oneshot};
use tower_resumable::store::{Append, Keep, Status};

use super::{
    damage::{Rng, put},
    *,
};
use crate::common::Told;

const SLOT: u64 = 8 * MIB;

/// An upload of appends, whose length may come later.
fn late(length: Option<u64>) -> Upload {
    let mut upload = upload(0, None);
    upload.length = length;
    upload
}

async fn append_as(
    store: &BucketStore,
    upload: &Upload,
    append: Append,
    bytes: &[u8],
    exact: bool,
) -> Result<Progress, StoreError> {
    let source = Full::new(Bytes::copy_from_slice(bytes));
    let source = pin!(source.map_err(|never: Infallible| match never {}));
    let mut body = ChunkBody::new(source, exact.then_some(bytes.len() as u64), u64::MAX);
    store.append(upload, append, &mut body).await
}

async fn append(
    store: &BucketStore,
    upload: &Upload,
    offset: u64,
    bytes: &[u8],
) -> Result<Progress, StoreError> {
    append_as(store, upload, Append::at(offset), bytes, true).await
}

/// What the store tells a client that asks for the offset.
async fn offset(store: &BucketStore, upload: &Upload) -> u64 {
    let status = store.interrupt(&upload.id).await.unwrap();
    status.as_ref().map_or(0, Status::prefix)
}

/// An append in a task, whose body has what is sent, and ends when the sender is dropped.
struct Live {
    sender: Option<mpsc::UnboundedSender<Bytes>>,
    /// How many pieces the store has taken.
    taken: mpsc::UnboundedReceiver<()>,
    task: tokio::task::JoinHandle<Result<Progress, StoreError>>,
}

impl Live {
    fn start(store: &BucketStore, upload: &Upload, append: Append) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel::<Bytes>();
        let (took, taken) = mpsc::unbounded_channel();
        let frames = stream::unfold((receiver, took), async |(mut receiver, took)| {
            let piece = receiver.recv().await?;
            let _ = took.send(());
            Some((Ok(Frame::data(piece)), (receiver, took)))
        });
        let (store, upload) = (store.clone(), upload.clone());
        let task = tokio::spawn(async move {
            let mut body = pin!(StreamBody::new(frames));
            let mut body = ChunkBody::new(body.as_mut(), None, u64::MAX);
            store.append(&upload, append, &mut body).await
        });
        Self {
            sender: Some(sender),
            taken,
            task,
        }
    }

    async fn send(&mut self, bytes: &Bytes) {
        if let Some(sender) = &self.sender {
            // An append that was ended does not take it.
            let _ = sender.send(bytes.clone());
            self.taken.recv().await;
        }
    }

    async fn end(mut self) -> Result<Progress, StoreError> {
        self.sender = None;
        self.task.await.unwrap()
    }
}

/// Waits until this many bytes are stored.
async fn stored(store: &BucketStore, upload: &Upload, expected: u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let status = store.status(&upload.id).await.unwrap().unwrap();
        if status.prefix() == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{status:?}");
        tokio::task::yield_now().await;
    }
}

/// Requests of several appends of `size` bytes, by a server that knows the upload: those of each
/// append in the middle, of a question for the offset, of the delivery, and all.
pub async fn append_costs(size: u64, count: u64, is_late: bool) -> [Counts; 4] {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    let bytes = content(size * count);
    let whole = upload(bytes.len() as u64, None);
    let described = if is_late { late(None) } else { whole.clone() };
    let (mut middle, mut all) = (Counts::default(), Counts::default());
    store.create(&described).await.unwrap();
    for (n, piece) in bytes.chunks(size as usize).enumerate() {
        let n = n as u64;
        add(&mut all, &engine.take_counts());
        let upload = if n + 1 == count { &whole } else { &described };
        let progress = append(&store, upload, n * size, piece).await.unwrap();
        assert_eq!(progress.complete, n + 1 == count);
        if n == count / 2 {
            middle = engine.take_counts();
            add(&mut all, &middle);
        }
    }
    add(&mut all, &engine.take_counts());
    assert_eq!(offset(&store, &whole).await, size * count);
    let asked = engine.take_counts();
    assert!(finish(&store, &whole).await.unwrap() == bytes);
    let end = engine.take_counts();
    add(&mut all, &end);
    [middle, asked, end, all]
}

/// An append takes two requests for each part, and five more. The delivery takes as many as that of
/// chunks.
#[tokio::test(start_paused = true)]
async fn the_requests_of_appends_are_bounded() {
    for is_late in [false, true] {
        // One body with the whole file, and bodies that are parts.
        for (size, count, parts) in [(64 * MIB, 1, 8), (8 * MIB, 4, 1), (5 * MIB, 4, 1)] {
            let costs = append_costs(size, count, is_late).await;
            let [middle, asked, end, all] = &costs;
            println!("{count} appends of {size} bytes, late: {is_late}");
            println!("  each {middle:?}\n  asked {asked:?}\n  end {end:?}\n  all {all:?}");
            assert!(middle.all() <= 6 + 2 * parts, "{middle:?}");
            assert!(asked.all() <= 4, "{asked:?}");
            assert!(end.all() <= 18, "{end:?}");
            assert!(all.all() <= count * (5 + 2 * parts) + 18 + 6, "{all:?}");
            assert!(all.bytes_in < size * count + 20_000, "{all:?}");
            assert!(all.bytes_out < 20_000 + size * count, "{all:?}");
        }
        // Pieces: when a slot is full, they become a part.
        let [middle, _, end, all] = append_costs(MIB, 32, is_late).await;
        println!("appends of 1 MiB: each {middle:?}\n  end {end:?}\n  all {all:?}");
        assert!(middle.all() <= 6, "{middle:?}");
        assert!(end.all() <= 18, "{end:?}");
        assert!(all.all() <= 32 * 6 + 4 * 11 + 24, "{all:?}");
        assert!(all.bytes_in < 64 * MIB + 50_000, "{all:?}");
    }
}

/// What was told stays true: the older append on another server adds nothing to it, whatever it
/// stores later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_request_on_another_server_ends_an_append() {
    let bytes = content(20 * MIB);
    let other = Bytes::from(vec![9; bytes.len()]);
    for keep in [Keep::Prefix, Keep::Whole] {
        for is_asked in [true, false] {
            for ends_by_itself in [true, false] {
                let case = format!("{keep:?}, asked: {is_asked}, ends: {ends_by_itself}");
                let engine = Arc::new(Engine::default());
                let servers = [open(&engine).await, open(&engine).await];
                let upload = upload(20 * MIB, None);
                servers[0].create(&upload).await.unwrap();
                let mut older = Append::at(0);
                older.keep = keep;
                let mut older = Live::start(&servers[0], &upload, older);
                older.send(&bytes.slice(..SLOT as usize)).await;
                older.send(&other.slice(..2 * MIB as usize)).await;
                // The part is stored, and the rest of the bytes are in memory.
                let kept = if keep == Keep::Prefix { SLOT } else { 0 };
                stored(&servers[1], &upload, kept).await;
                let told = if is_asked {
                    offset(&servers[1], &upload).await
                } else {
                    match append(&servers[1], &upload, 1, b"x").await {
                        Err(StoreError::Offset { stored }) => stored,
                        result => panic!("{result:?} {case}"),
                    }
                };
                assert_eq!(told, kept, "{case}");
                let result = if ends_by_itself {
                    // Bytes that differ from those that come later.
                    older.send(&other.slice(..6 * MIB as usize)).await;
                    older.send(&other.slice(..3 * MIB as usize)).await;
                    older.end().await
                } else {
                    // It ends without another byte.
                    older.task.await.unwrap()
                };
                assert!(
                    matches!(result, Err(StoreError::Superseded)),
                    "{result:?} {case}"
                );
                for store in &servers {
                    stored(store, &upload, told).await;
                }
                let rest = bytes.slice(told as usize..);
                let progress = append(&servers[1], &upload, told, &rest).await.unwrap();
                assert!(progress.complete, "{case}");
                // The engine has the parts of the newer append.
                assert!(
                    finish(&servers[0], &upload).await.unwrap() == bytes,
                    "{case}"
                );
            }
        }
    }
}

/// An older append that is slow to notice its end can put a part again that a newer one has put.
/// If it has the same bytes, the file is completed with either. Else the client sends all again.
#[tokio::test(start_paused = true)]
async fn a_part_that_an_older_append_overwrites_is_found_or_sent_again() {
    let bytes = content(2 * SLOT);
    let other = Bytes::from(vec![9; bytes.len()]);
    for late in [&bytes, &other] {
        let engine = Arc::new(Engine::default());
        let servers = [open(&engine).await, open(&engine).await];
        let upload = upload(2 * SLOT, None);
        servers[0].create(&upload).await.unwrap();
        let mut older = Live::start(&servers[0], &upload, Append::at(0));
        older.send(&bytes.slice(..SLOT as usize)).await;
        older
            .send(&late.slice(SLOT as usize..SLOT as usize + 10))
            .await;
        assert_eq!(offset(&servers[1], &upload).await, SLOT);
        let rest = &bytes[SLOT as usize..];
        let progress = append(&servers[1], &upload, SLOT, rest).await.unwrap();
        assert!(progress.complete);
        older.send(&late.slice(SLOT as usize + 10..)).await;
        let ended = older.end().await;
        assert!(matches!(ended, Err(StoreError::Superseded)), "{ended:?}");
        if *late == other {
            assert!(servers[1].claim(&upload).await.is_err());
            assert_eq!(offset(&servers[0], &upload).await, 0);
            append(&servers[0], &upload, 0, &bytes).await.unwrap();
        }
        assert!(finish(&servers[1], &upload).await.unwrap() == bytes);
    }
}

/// Of each byte, the file has the one of the append that was acknowledged. No number of bytes that
/// was told becomes smaller, and no older append adds to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_of_several_servers_do_not_mix() {
    const LENGTH: u64 = 400;
    for seed in 0..100 {
        let engine = Arc::new(Engine::default());
        let servers = [
            open(&engine).await,
            open(&engine).await,
            open(&engine).await,
        ];
        let upload = late(None);
        servers[0].create(&upload).await.unwrap();
        // What was told, and the newest append that had begun before that.
        let told = Arc::<Mutex<Vec<(u64, u8)>>>::default();
        // The appends that were acknowledged.
        let acknowledged = Arc::<Mutex<Vec<(u8, u64, u64)>>>::default();
        let failed = Arc::<Mutex<Vec<u8>>>::default();
        let begun = Arc::new(std::sync::atomic::AtomicU8::new(0));
        let clients = (0..3).map(|n| {
            let (servers, upload, begun) = (servers.clone(), upload.clone(), Arc::clone(&begun));
            let (told, acknowledged) = (Arc::clone(&told), Arc::clone(&acknowledged));
            let failed = Arc::clone(&failed);
            tokio::spawn(async move {
                let rng = &mut Rng(seed * 10 + n);
                for _ in 0..12 {
                    let before = begun.load(std::sync::atomic::Ordering::SeqCst);
                    let store = &servers[rng.below(3)];
                    let offset = match store.interrupt(&upload.id).await {
                        Ok(status) => status.unwrap().prefix(),
                        Err(StoreError::Busy) => continue,
                        Err(error) => panic!("{error:?}"),
                    };
                    told.lock().unwrap().push((offset, before));
                    let id = 1 + begun.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    let len = (1 + rng.below(60)).min((LENGTH - offset) as usize);
                    let mut how = Append::at(offset);
                    if rng.below(3) == 0 {
                        how.keep = Keep::Whole;
                    }
                    let fails = rng.below(4) == 0;
                    let pieces = (0..len).map(move |_| Ok(Frame::data(Bytes::from(vec![id]))));
                    let error = fails.then(|| Err("reset".into()));
                    let pieces = pieces.chain(error).collect::<Vec<_>>();
                    let body = stream::iter(pieces).then(async |piece| {
                        tokio::task::yield_now().await;
                        piece
                    });
                    let mut body = pin!(StreamBody::new(body));
                    let mut body = ChunkBody::new(body.as_mut(), None, u64::MAX);
                    match servers[rng.below(3)].append(&upload, how, &mut body).await {
                        Ok(progress) => {
                            let end = offset + len as u64;
                            assert_eq!(progress.received, end);
                            acknowledged.lock().unwrap().push((id, offset, end));
                        }
                        Err(
                            StoreError::Offset { .. }
                            | StoreError::Superseded
                            | StoreError::Body(_)
                            | StoreError::Busy,
                        ) if how.keep == Keep::Whole => failed.lock().unwrap().push(id),
                        Err(
                            StoreError::Offset { .. }
                            | StoreError::Superseded
                            | StoreError::Body(_)
                            | StoreError::Busy,
                        ) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.unwrap();
        }
        let end = offset(&servers[1], &upload).await;
        let whole = late(Some(end));
        let progress = append(&servers[2], &whole, end, b"").await.unwrap();
        assert!(progress.complete);
        let found = finish(&servers[0], &whole).await.unwrap();
        for (id, from, to) in acknowledged.lock().unwrap().iter() {
            let bytes = &found[*from as usize..*to as usize];
            assert!(
                bytes.iter().all(|byte| byte == id),
                "seed {seed}: {id} {found:?}"
            );
            let others = found.iter().filter(|byte| *byte == id).count();
            assert_eq!(others as u64, to - from, "seed {seed}: {id} {found:?}");
        }
        let failed = failed.lock().unwrap().clone();
        assert!(
            !found.iter().any(|byte| failed.contains(byte)),
            "seed {seed}"
        );
        for (told, _) in told.lock().unwrap().iter() {
            assert!(*told <= end, "seed {seed}: {told} of {end}");
        }
    }
}

/// A number of bytes that is told is final, whatever an append that had begun before does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupt_beside_an_append_of_another_server_is_final() {
    let bytes = content(1000);
    // The append is held at each of its requests.
    for number in 1.. {
        let engine = Arc::new(Engine::default());
        let way = Arc::new(engine.beside());
        let servers = [open(&way).await, open(&engine).await];
        let upload = upload(1000, None);
        servers[0].create(&upload).await.unwrap();
        append(&servers[0], &upload, 0, &bytes[..100])
            .await
            .unwrap();
        let held = way.hold(number);
        let older = {
            let (store, upload, bytes) = (servers[0].clone(), upload.clone(), bytes.clone());
            tokio::spawn(async move { append(&store, &upload, 100, &bytes[100..500]).await })
        };
        let mut older = pin!(older);
        let ended = tokio::select! {
            ended = older.as_mut() => Some(ended.unwrap()),
            () = held.arrived.notified() => None,
        };
        let told = offset(&servers[1], &upload).await;
        held.released.notify_one();
        let is_over = way.requests() < number;
        let ended = match ended {
            Some(ended) => ended,
            None => older.await.unwrap(),
        };
        let case = format!("request {number}: {told}, {ended:?}");
        match ended {
            Ok(progress) => assert_eq!((progress.received, told), (500, 500), "{case}"),
            Err(StoreError::Superseded) => assert!(told == 100 || told == 500, "{case}"),
            // It had not yet begun.
            Err(StoreError::Offset { stored }) => assert_eq!((stored, told), (100, 100), "{case}"),
            Err(error) => panic!("{error:?}, {case}"),
        }
        let rest = &bytes[told as usize..];
        let progress = append(&servers[1], &upload, told, rest).await.expect(&case);
        assert!(progress.complete, "{case}");
        assert!(
            finish(&servers[0], &upload).await.unwrap() == bytes,
            "{case}"
        );
        if is_over {
            assert!(number > 5, "{case}");
            break;
        }
    }
}

/// Two servers that get different lengths at the same time keep one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_set_one_length() {
    let mut both = 0;
    for round in 0..40 {
        let engine = Arc::new(Engine::default());
        let servers = [open(&engine).await, open(&engine).await];
        let upload = late(None);
        servers[0].create(&upload).await.unwrap();
        let [a, b] = [late(Some(6)), late(Some(7))];
        let (first, second) = tokio::join!(
            append(&servers[0], &a, 0, b"abc"),
            append(&servers[1], &b, 0, b"abc"),
        );
        let mut lengths = Vec::new();
        for store in [&servers[0], &servers[1], &open(&engine).await] {
            let status = store.status(&upload.id).await.unwrap().unwrap();
            lengths.push(status.upload.length.expect("a length is stored"));
        }
        assert!(
            lengths.iter().all(|length| *length == lengths[0]),
            "{lengths:?}"
        );
        both += usize::from(first.is_ok() && second.is_ok());
        let told = offset(&servers[round % 2], &upload).await;
        let other = if lengths[0] == 6 { &b } else { &a };
        let result = append(&servers[0], other, told, b"").await;
        assert!(matches!(result, Err(StoreError::Conflict)), "{result:?}");
        let rest = &b"abcdefg"[told as usize..lengths[0] as usize];
        let progress = append(&servers[1], &upload, told, rest).await.unwrap();
        assert!(progress.complete);
        let found = finish(&servers[0], &upload).await.unwrap();
        assert_eq!(found, b"abcdefg"[..lengths[0] as usize]);
    }
    assert_eq!(
        both, 0,
        "appends with different lengths have both succeeded"
    );
}

/// A client sends a file from the offset that the store tells, until it is complete. `told` is
/// what it was told before.
async fn send(
    store: &BucketStore,
    upload: &Upload,
    bytes: &[u8],
    size: u64,
    told: &mut u64,
    tries: usize,
) -> Result<(), StoreError> {
    let mut result = Ok(());
    for _ in 0..tries {
        let status = match store.interrupt(&upload.id).await {
            Ok(Some(status)) => status,
            Ok(None) => {
                // It begins anew.
                *told = 0;
                result = store.create(upload).await.map(drop);
                continue;
            }
            Err(error) => {
                result = Err(error);
                continue;
            }
        };
        assert!(status.prefix() >= *told, "{} after {told}", status.prefix());
        *told = status.prefix();
        if status.progress().complete {
            return Ok(());
        }
        let end = bytes.len().min((*told + size) as usize);
        let mut how = Append::at(*told);
        how.ends_here = end == bytes.len();
        let piece = &bytes[*told as usize..end];
        match append_as(store, upload, how, piece, size % 2 == 0).await {
            Ok(progress) => {
                assert_eq!(progress.received, end as u64);
                *told = progress.received;
                if progress.complete {
                    return Ok(());
                }
                result = Ok(());
            }
            Err(error) => result = Err(error),
        }
    }
    result
}

async fn assert_swept(engine: &Engine, store: &BucketStore, case: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        store.sweep(&everything(Duration::ZERO)).await.unwrap();
        let left = [engine.keys("up").await, engine.keys("open").await].concat();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{case}: {left:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Files, bodies, and whether the length is known at first.
const SENT: [(u64, u64, bool); 3] = [
    (5 * MIB, 5 * MIB + 100, true),
    (3 * MIB + 1, 9 * MIB, false),
    (10, 0, false),
];

/// Any request fails, before or after it takes effect. The client goes on at the offset that it is
/// told, and the file is delivered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_appends_may_fail() {
    const LEASE: Duration = Duration::from_millis(100);
    for (size, total, is_known) in SENT {
        let bytes = content(total);
        let upload = late(is_known.then_some(total));
        let mut faults = 0;
        for fails_late in [false, true] {
            for number in 1.. {
                let case = format!("request {number} fails (late: {fails_late}), {total} bytes");
                let engine = Arc::new(Engine::default());
                let store = open_with_lease(&engine, LEASE).await;
                engine.fail(number, fails_late);
                let mut told = 0;
                let sent = send(&store, &upload, &bytes, size, &mut told, 12).await;
                sent.expect(&case);
                let found = loop {
                    match store.claim(&upload).await {
                        Ok(Claimed::Won(mut claim)) => {
                            // A handler that cannot read the file fails.
                            if let Some(found) = read(claim.sealed()).await {
                                settle(&mut claim).await;
                                break found;
                            }
                        }
                        Ok(Claimed::Busy) | Err(_) => {}
                        other => panic!("{case}: {other:?}"),
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                };
                assert!(found == bytes, "{case}");
                let failed = engine.has_failed();
                engine.fail(0, false);
                assert_swept(&engine, &store, &case).await;
                if !failed {
                    break;
                }
                faults += 1;
            }
        }
        println!("{faults} faults in appends of {total} bytes in bodies of {size}");
        assert!(faults > 20);
    }
}

/// A server dies at any request. Others go on at an offset that is not less than what was told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_an_append_may_be_the_last_of_a_server() {
    const LEASE: Duration = Duration::from_millis(100);
    for (size, total, is_known) in SENT {
        let bytes = content(total);
        let upload = late(is_known.then_some(total));
        for number in 1.. {
            let case = format!("request {number}, {total} bytes");
            let engine = Arc::new(Engine::default());
            let way = Arc::new(engine.beside());
            let store = open_with_lease(&engine, LEASE).await;
            let dying = open_with_lease(&way, LEASE).await;
            let held = way.hold(number);
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let told = Arc::<Mutex<u64>>::default();
            let work = {
                let (bytes, upload, told) = (bytes.clone(), upload.clone(), Arc::clone(&told));
                runtime.spawn(async move {
                    for _ in 0..8 {
                        let mut now = *told.lock().unwrap();
                        // One request of the client at a time, so that what it is told is noted.
                        if send(&dying, &upload, &bytes, size, &mut now, 1)
                            .await
                            .is_err()
                        {
                            return;
                        }
                        *told.lock().unwrap() = now;
                    }
                    // A server that dies does not release its claim.
                    std::mem::forget(dying.claim(&upload).await);
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
            let mut told = *told.lock().unwrap();
            let sent = send(&store, &upload, &bytes, size, &mut told, 12).await;
            sent.expect(&case);
            let seen = deliver_empty(&store, &upload).await;
            assert!(seen[0] == bytes, "{case}");
            assert_swept(&engine, &store, &case).await;
            if is_over {
                assert!(number > 10, "{case}");
                break;
            }
        }
    }
}

/// A slow body is stored piece by piece, so that a server that dies loses little of it.
#[tokio::test(start_paused = true)]
async fn the_bytes_of_a_slow_body_are_stored() {
    let engine = Arc::new(Engine::default());
    let [store, other] = [open(&engine).await, open(&engine).await];
    let upload = upload(20_000, None);
    store.create(&upload).await.unwrap();
    let mut slow = Live::start(&store, &upload, Append::at(0));
    let bytes = content(20_000);
    for n in 0..40 {
        slow.send(&bytes.slice(n * 500..(n + 1) * 500)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let status = other.status(&upload.id).await.unwrap().unwrap();
        let sent = (n as u64 + 1) * 500;
        assert!(sent - status.prefix() <= 11 * 500, "{status:?} of {sent}");
    }
    // Not in a piece for each byte.
    let keys = engine.keys("up").await;
    let pieces = keys.iter().filter(|key| key.contains("/c-")).count();
    assert!((3..=5).contains(&pieces), "{keys:?}");
    assert!(slow.end().await.unwrap().complete);
    assert!(finish(&other, &upload).await.unwrap() == bytes);
}

/// A request that is removed on another server ends the append, whose bytes do not come back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_on_another_server_ends_an_append() {
    let engine = Arc::new(Engine::default());
    let [store, other] = [open(&engine).await, open(&engine).await];
    let upload = upload(20 * MIB, None);
    store.create(&upload).await.unwrap();
    let mut older = Live::start(&store, &upload, Append::at(0));
    older.send(&content(9 * MIB)).await;
    stored(&other, &upload, SLOT).await;
    assert!(other.remove(&upload.id).await.unwrap());
    let ended = older.task.await.unwrap();
    assert!(matches!(ended, Err(StoreError::Superseded)), "{ended:?}");
    for store in [&store, &other] {
        assert!(store.status(&upload.id).await.unwrap().is_none());
    }
    other.create(&upload).await.unwrap();
    assert_eq!(offset(&store, &upload).await, 0);
    assert_swept(&engine, &other, "after a removal").await;
}

/// An upload whose length comes late can be as long as 10,000 slots, and each of its bodies is a
/// slot if it is long enough.
#[tokio::test]
async fn the_length_of_a_late_upload_is_limited() {
    for (first, limit) in [(100, 10_000 * SLOT), (5 * MIB, 50_000 * MIB)] {
        let store = open(&Arc::new(Engine::default())).await;
        let upload = late(None);
        store.create(&upload).await.unwrap();
        append(&store, &upload, 0, &content(first)).await.unwrap();
        let refused = append(&store, &late(Some(limit + 1)), first, b"").await;
        assert!(
            matches!(refused, Err(StoreError::TooLarge { limit: found }) if found == limit),
            "{refused:?}"
        );
        let status = store.status(&upload.id).await.unwrap().unwrap();
        assert_eq!((status.upload.length, status.prefix()), (None, first));
        append(&store, &late(Some(limit)), first, b"")
            .await
            .unwrap();
    }
    // If it is known at first, it is as for chunks.
    let store = open(&Arc::new(Engine::default())).await;
    let upload = late(None);
    store.create(&upload).await.unwrap();
    let longest = late(Some(5 << 40));
    append(&store, &longest, 0, b"abc").await.unwrap();
}

/// Parts that a lifecycle rule of the bucket has removed are sent again, from the beginning.
#[tokio::test]
async fn an_upload_of_appends_whose_parts_were_removed_begins_again() {
    let bytes = content(10 * MIB);
    for stored in [5 * MIB, 10 * MIB] {
        let engine = Arc::new(Engine::default());
        let store = open(&engine).await;
        let upload = late(None);
        store.create(&upload).await.unwrap();
        let first = &bytes[..5 * MIB as usize];
        append(&store, &upload, 0, first).await.unwrap();
        if stored == 10 * MIB {
            let rest = &bytes[5 * MIB as usize..];
            let whole = late(Some(10 * MIB));
            append(&store, &whole, 5 * MIB, rest).await.unwrap();
        }
        engine.abort_all();
        let result = if stored == 10 * MIB {
            finish(&store, &upload).await.map(drop)
        } else {
            append(&store, &upload, stored, first).await.map(drop)
        };
        assert!(result.is_err());
        assert!(store.status(&upload.id).await.unwrap().is_none());
        send(&store, &upload, &bytes, 5 * MIB, &mut 0, 12)
            .await
            .unwrap();
        assert!(finish(&store, &upload).await.unwrap() == bytes);
    }
}

/// Complete uploads of these lengths, and their bytes.
async fn parts(store: &BucketStore, lens: &[u64]) -> (Vec<UploadId>, Vec<u8>) {
    let (mut ids, mut all) = (Vec::new(), Vec::new());
    for (n, len) in lens.iter().enumerate() {
        let mut part = late(Some(*len));
        part.id = UploadId::from_bytes([100 + n as u8; 32]);
        let bytes = content(*len + n as u64).split_off(n);
        store.create(&part).await.unwrap();
        append(store, &part, 0, &bytes).await.unwrap();
        ids.push(part.id);
        all.extend_from_slice(&bytes);
    }
    (ids, all)
}

/// Two servers at once, and any request that fails: the upload becomes the same file.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_of_a_concatenation_may_fail() {
    const LEASE: Duration = Duration::from_millis(100);
    for fails_late in [false, true] {
        for number in 1.. {
            let case = format!("request {number} fails (late: {fails_late})");
            let engine = Arc::new(Engine::default());
            let way = Arc::new(engine.beside());
            let servers = [
                open_with_lease(&way, LEASE).await,
                open_with_lease(&engine, LEASE).await,
            ];
            let lens = [1000, 0, 5 * MIB, 4 * MIB + 7];
            let (ids, bytes) = parts(&servers[1], &lens).await;
            let upload = late(None);
            way.fail(number, fails_late);
            let (first, second) = tokio::join!(
                servers[0].concat(&upload, &ids),
                servers[1].concat(&upload, &ids),
            );
            assert!(
                first.is_ok() || second.is_ok() || way.has_failed(),
                "{first:?}, {second:?}"
            );
            let deadline = Instant::now() + Duration::from_secs(10);
            for n in 0.. {
                match servers[n % 2].concat(&upload, &ids).await {
                    Ok(progress) => {
                        assert!(progress.complete, "{case}");
                        break;
                    }
                    // The lease of the failed one has not expired.
                    Err(StoreError::Busy) => {}
                    Err(error) => assert!(way.has_failed(), "{case}: {error:?}"),
                }
                assert!(Instant::now() < deadline, "{case}");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let failed = way.has_failed();
            way.fail(0, false);
            assert!(
                deliver_empty(&servers[1], &upload).await[0] == bytes,
                "{case}"
            );
            // The parts stay.
            for id in &ids {
                let status = servers[0].status(id).await.unwrap().unwrap();
                assert!(
                    matches!(status.state, State::Complete),
                    "{case}: {status:?}"
                );
            }
            assert_swept(&engine, &servers[1], &case).await;
            assert_eq!(engine.keys("files").await.len(), 1, "{case}");
            if !failed {
                break;
            }
        }
    }
}

/// A server that dies in a concatenation leaves nothing that counts. It can be made again with
/// other parts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_concatenation_begins_again() {
    const LEASE: Duration = Duration::from_millis(100);
    let engine = Arc::new(Engine::default());
    let (ids, bytes) = parts(&open(&engine).await, &[9 * MIB, 9 * MIB]).await;
    for number in 1.. {
        let mut upload = late(None);
        upload.id = UploadId::from_bytes([number as u8; 32]);
        let way = Arc::new(engine.beside());
        let store = open_with_lease(&engine, LEASE).await;
        let dying = open_with_lease(&way, LEASE).await;
        let held = way.hold(number);
        let (ended, over) = oneshot::channel();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        {
            let (upload, ids) = (upload.clone(), [ids[0], ids[1]]);
            runtime.spawn(async move {
                let _ = ended.send(dying.concat(&upload, &ids).await);
            });
        }
        tokio::select! {
            ended = over => drop(ended.unwrap().unwrap()),
            () = held.arrived.notified() => {}
        }
        let is_over = way.requests() < number;
        way.set_down(true);
        runtime.shutdown_background();
        held.released.notify_one();
        let status = store.status(&upload.id).await.unwrap();
        let progress = status.map(|status| status.progress());
        let is_complete = progress.is_some_and(|progress| progress.complete);
        assert!(is_complete || progress.is_none_or(|progress| progress.received == 0));
        let deadline = Instant::now() + Duration::from_secs(10);
        // The first part, in this order, if nothing was complete.
        let order = if is_complete {
            [ids[0], ids[1]]
        } else {
            [ids[1], ids[0]]
        };
        while let Err(error) = store.concat(&upload, &order).await {
            let is_expected = matches!(error, StoreError::Busy);
            assert!(
                is_expected && Instant::now() < deadline,
                "{number}: {error:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut expected = bytes.clone();
        if !is_complete {
            expected.rotate_left(9 * MIB as usize);
        }
        assert!(
            deliver_empty(&store, &upload).await[0] == expected,
            "{number}"
        );
        if is_over {
            assert!(number > 10);
            break;
        }
    }
}

/// A piece that is damaged is set aside, and the client goes on before it.
#[tokio::test]
async fn a_damaged_piece_of_an_append_is_sent_again() {
    for damage in [
        None,
        Some(&b""[..]),
        Some(b"ab"),
        Some(b"abcd"),
        Some(b"abx"),
    ] {
        for is_restarted in [false, true] {
            // The damage is found when the slot becomes full, or at the delivery.
            for total in [SLOT + 1, 100] {
                let case = format!("{damage:?}, restarted: {is_restarted}, {total} bytes");
                let engine = Arc::new(Engine::default());
                let mut store = open(&engine).await;
                let upload = late(None);
                let bytes = content(total);
                store.create(&upload).await.unwrap();
                append(&store, &upload, 0, &bytes[..10]).await.unwrap();
                append(&store, &upload, 10, &bytes[10..13]).await.unwrap();
                let keys = engine.keys("up").await;
                let piece = keys
                    .iter()
                    .filter(|key| key.contains("/c-"))
                    .nth(1)
                    .unwrap();
                let path = Path::from(piece.as_str());
                match damage {
                    Some(damage) => put(&engine, piece, damage).await,
                    None => engine.delete(&path).await.unwrap(),
                }
                if is_restarted {
                    store = open(&engine).await;
                }
                let events = Told::default();
                store.observe(events.observer());
                assert_eq!(offset(&store, &upload).await, 13, "{case}");
                let whole = late(Some(total));
                let result = match append(&store, &whole, 13, &bytes[13..]).await {
                    Ok(_) => finish(&store, &whole).await.map(drop),
                    Err(error) => Err(error),
                };
                assert!(
                    matches!(result, Err(StoreError::Failed(_))),
                    "{case}: {result:?}"
                );
                assert_eq!(offset(&store, &upload).await, 10, "{case}");
                let is_told = damage.is_some_and(|damage| damage.len() == 3);
                let told = events.all();
                assert_eq!(told.len(), usize::from(is_told), "{case}: {told:?}");
                append(&store, &whole, 10, &bytes[10..]).await.unwrap();
                assert!(finish(&store, &whole).await.unwrap() == bytes, "{case}");
            }
        }
    }
}

/// An upload whose newest turn cannot be read begins anew, and harms no other.
#[tokio::test]
async fn an_unreadable_turn_is_set_aside() {
    for request in [
        "interrupt",
        "append",
        "status",
        "claim",
        "list",
        "usage",
        "sweep",
    ] {
        for damage in [&b""[..], b"{", b"\xff\0", b"null", b"{\"version\":2}"] {
            let case = format!("{request}, {damage:?}");
            let engine = Arc::new(Engine::default());
            let store = open(&engine).await;
            let upload = late(None);
            let other = begin(&store, 1, "a", 3).await;
            store.create(&upload).await.unwrap();
            append(&store, &upload, 0, b"abc").await.unwrap();
            let keys = engine.keys("up").await;
            let turn = keys.iter().rfind(|key| key.contains("/w-")).unwrap();
            put(&engine, turn, damage).await;
            let store = open(&engine).await;
            let events = Told::default();
            store.observe(events.observer());
            match request {
                "interrupt" => assert_eq!(offset(&store, &upload).await, 0, "{case}"),
                "append" => {
                    let result = append(&store, &upload, 3, b"def").await;
                    assert!(matches!(result, Err(StoreError::Superseded)), "{result:?}");
                }
                "status" => assert!(store.status(&upload.id).await.unwrap().is_none()),
                "claim" => {
                    let claimed = store.claim(&upload).await.unwrap();
                    assert!(matches!(claimed, Claimed::Incomplete), "{case}");
                }
                "list" => {
                    let listed = list(&store, &Filter::default()).await;
                    assert_eq!(listed, std::slice::from_ref(&other), "{case}");
                }
                "usage" => {
                    let usage = store.usage().await.unwrap();
                    assert_eq!(usage, [Usage::from(&other)], "{case}");
                }
                _ => {
                    let swept = store.sweep(&everything(Duration::ZERO)).await.unwrap();
                    assert!(swept.abandoned <= 2, "{case}: {swept:?}");
                }
            }
            let told = events.all();
            assert_eq!(told.len(), 1, "{case}: {told:?}");
            assert_eq!(told[0].0, "store_set_aside", "{case}");
            let aside = engine.keys("damaged").await;
            let mut kept = Vec::new();
            for key in &aside {
                kept.push(engine.bytes(&Path::from(key.as_str())).await.unwrap());
            }
            assert!(kept.iter().any(|kept| kept == damage), "{case}: {aside:?}");
            send(&store, &upload, b"abcdef", 6, &mut 0, 12)
                .await
                .unwrap();
            assert_eq!(finish(&store, &upload).await.unwrap(), b"abcdef", "{case}");
        }
    }
}

/// Objects are damaged at random while a client appends a file. It is delivered with its bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_damage_does_not_change_the_bytes_of_appends() {
    const LEASE: Duration = Duration::from_millis(100);
    for seed in 0..150 {
        let rng = &mut Rng(seed);
        let engine = Arc::new(Engine::default());
        let mut store = open_with_lease(&engine, LEASE).await;
        let (total, size) = [(5 * MIB + 100, 5 * MIB), (1000, 100)][rng.below(10).min(1)];
        let (bytes, upload) = (content(total), late(None));
        let whole = late(Some(total));
        let mut done = Vec::new();
        let deadline = Instant::now() + 100 * LEASE;
        let found = loop {
            assert!(Instant::now() < deadline, "seed {seed}: {done:?}");
            match store.interrupt(&upload.id).await {
                Ok(None) => drop(store.create(&upload).await),
                Ok(Some(status)) if status.progress().complete => match store.claim(&whole).await {
                    Ok(Claimed::Won(mut claim)) => {
                        let found = read(claim.sealed()).await;
                        settle(&mut claim).await;
                        break found;
                    }
                    Ok(Claimed::Settled(_)) => panic!("seed {seed}: {done:?}"),
                    Ok(_) | Err(_) => {}
                },
                Ok(Some(status)) => {
                    let from = status.prefix() as usize;
                    let to = bytes.len().min(from + size as usize);
                    let upload = if to == bytes.len() { &whole } else { &upload };
                    // As a client does: it asks again after an error.
                    let _ = append(&store, upload, from as u64, &bytes[from..to]).await;
                }
                Err(_) => {}
            }
            if done.len() < 3 && rng.below(4) == 0 {
                done.push(damage::damage(&engine, rng).await);
                if rng.below(2) == 0 {
                    store = open_with_lease(&engine, LEASE).await;
                }
            }
        };
        assert!(
            found.as_deref() == Some(&bytes[..]),
            "seed {seed}: {done:?}"
        );
        for store in [&store, &open(&engine).await] {
            store.usage().await.unwrap();
            store.list(&Filter::default(), None).await.unwrap();
            store
                .sweep(&everything(Duration::from_secs(60)))
                .await
                .unwrap();
        }
    }
}
