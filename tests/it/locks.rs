//! Several processes on one folder, of which one is stopped while it holds locks.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use tower_resumable::{
    FileStore, Scope, Upload, UploadId,
    store::{
        Append, ChunkBody, Claim as _, Claimed, Expiry, Filter, State, Store as _, StoreError,
    },
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Where the other process keeps its uploads.
const FOLDER: &str = "TOWER_RESUMABLE_LOCKS";

/// A chunk of this upload is being received by the other process.
const RECEIVING: u8 = 1;
/// The other process writes one chunk after the other to this upload.
const APPENDING: u8 = 2;
/// The other process is delivering this upload.
const CLAIMED: u8 = 3;

/// Another process appends to this upload.
const APPENDED: u8 = 4;

const LENGTH: u64 = 1 << 30;

const APPENDED_LEN: u64 = 16 << 20;

fn upload(byte: u8, length: u64) -> Upload {
    let id = UploadId::from_bytes([byte; 32]);
    Upload::new(id, Scope::default(), Some(length))
}

async fn write(
    store: &FileStore,
    upload: &Upload,
    offset: u64,
    len: usize,
) -> Result<bool, StoreError> {
    let piece = Bytes::from(vec![7; len]);
    let source = StreamBody::new(stream::iter([Ok::<_, BoxError>(Frame::data(piece))]));
    let source = pin!(source);
    let mut body = ChunkBody::new(source, Some(len as u64), 0);
    let progress = store.write(upload, offset, &mut body).await?;
    Ok(progress.complete)
}

/// The other process. It ends only when it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of the other tests"]
async fn other_process() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = FileStore::open(PathBuf::from(dir)).unwrap();
    let claimed = upload(CLAIMED, 1);
    assert!(write(&store, &claimed, 0, 1).await.unwrap());
    let claim = store.claim(&claimed).await.unwrap();
    assert!(matches!(claim, Claimed::Won(_)), "{claim:?}");

    let receiving = {
        let store = store.clone();
        tokio::spawn(async move {
            let first = Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 1 << 20])));
            let body = stream::iter([first]).chain(stream::pending());
            let source = pin!(StreamBody::new(body));
            let mut body = ChunkBody::new(source, Some(2 << 20), 0);
            let upload = upload(RECEIVING, LENGTH);
            store.write(&upload, 0, &mut body).await
        })
    };
    for offset in 0.. {
        write(&store, &upload(APPENDING, LENGTH), offset, 1)
            .await
            .unwrap();
    }
    receiving.await.unwrap().unwrap();
    drop(claim);
}

/// Another process, which appends to an upload and then waits for more bytes. It ends only when it
/// is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a process of the other tests"]
async fn other_appends() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let store = FileStore::open(PathBuf::from(dir)).unwrap();
    let upload = upload(APPENDED, APPENDED_LEN);
    store.create(&upload).await.unwrap();
    // More than what it records while the body goes on.
    let pieces = (0..).map(|_| Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 1 << 20]))));
    let body = stream::iter(pieces.take(11)).chain(stream::pending());
    let source = pin!(StreamBody::new(body));
    let mut body = ChunkBody::new(source, None, u64::MAX);
    let appended = store.append(&upload, Append::at(0), &mut body).await;
    assert!(
        matches!(appended, Err(StoreError::Superseded)),
        "{appended:?}"
    );
    std::future::pending().await
}

/// The other process, which is killed when it is dropped.
struct Other(Child);

impl Other {
    fn start(dir: &Path) -> Self {
        Self::run(dir, "locks::other_process")
    }

    fn run(dir: &Path, test: &str) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", test])
            .env(FOLDER, dir)
            .stdout(Stdio::null())
            .spawn();
        Self(child.unwrap())
    }

    fn signal(&self, signal: &str) {
        let kill = Command::new("kill")
            .args([signal, &self.0.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
    }

    async fn stop(&self) {
        self.signal("-STOP");
        eventually("the other process is stopped", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0.id()));
            stat.is_ok_and(|stat| stat.contains(") T "))
        })
        .await;
    }

    /// Stops it at a moment at which it holds all locks.
    async fn stop_with_locks(&self, dir: &Path) {
        let journals = || [RECEIVING, APPENDING, CLAIMED].map(|byte| path(dir, byte, "journal"));
        eventually("the other process has begun", || {
            journals().iter().all(|path| path.exists())
        })
        .await;
        let journals = journals();
        for _ in 0..1000 {
            self.stop().await;
            let data = path(dir, RECEIVING, "data");
            if [&journals[1], &journals[2], &data].map(|path| is_locked(path)) == [true; 3] {
                return;
            }
            self.signal("-CONT");
            tokio::task::yield_now().await;
        }
        panic!("the other process is never stopped while it appends");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // It may have been killed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The path of a file of an upload.
fn path(dir: &Path, byte: u8, extension: &str) -> PathBuf {
    let shard = dir.join(format!("partial/{byte:02x}"));
    let files = std::fs::read_dir(&shard).into_iter().flatten();
    let mut paths = files.map(|file| file.unwrap().path());
    let found = paths.find(|path| path.extension().is_some_and(|it| it == extension));
    found.unwrap_or(shard.join("not yet"))
}

/// Whether any process has locked a range of the file.
fn is_locked(path: &Path) -> bool {
    let Ok(inode) = path.metadata().map(|file| file.ino()) else {
        return false;
    };
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    locks.contains(&format!(":{inode} "))
}

async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_true() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn threads() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Threads:"));
    line.unwrap().trim().parse().unwrap()
}

/// A body that waits for another process fails with this error, so that the client tries again.
#[track_caller]
fn assert_busy<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(matches!(result, Err(StoreError::Busy)), "{result:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stopped_process_holds_only_its_own_uploads() {
    for end in ["-CONT", "-KILL"] {
        let dir = tempfile::tempdir().unwrap();
        let other = Other::start(dir.path());
        other.stop_with_locks(dir.path()).await;
        let store = FileStore::builder(dir.path())
            .with_stall_timeout(Duration::from_secs(2))
            .open()
            .unwrap();
        let before = threads();
        let mut held = tokio::task::JoinSet::new();
        let start = Instant::now();
        for n in 0..640 {
            let store = store.clone();
            held.spawn(async move {
                match n % 4 {
                    0 => assert_busy(write(&store, &upload(RECEIVING, LENGTH), 0, 3).await),
                    1 => assert_busy(store.status(&upload(APPENDING, LENGTH).id).await),
                    2 => {
                        let claim = store.claim(&upload(CLAIMED, 1)).await;
                        assert!(matches!(claim, Ok(Claimed::Busy)), "{claim:?}");
                    }
                    _ => {
                        let offset = LENGTH - n;
                        assert_busy(write(&store, &upload(APPENDING, LENGTH), offset, 1).await);
                    }
                }
            });
        }
        let mut most = 0;
        for n in 0..100 {
            let free = upload(100 + n, 3);
            assert!(write(&store, &free, 0, 3).await.unwrap());
            assert!(store.status(&free.id).await.unwrap().is_some());
            most = most.max(threads());
        }
        let served = start.elapsed();
        // What only reads needs no lock.
        let listed = store.list(&Filter::default(), None).await.unwrap();
        assert_eq!(listed.uploads.len(), 103);
        assert_busy(store.remove(&upload(RECEIVING, LENGTH).id).await);
        let mut everything = Expiry::default();
        everything.abandoned_before = Some(std::time::SystemTime::now() + Duration::from_secs(60));
        assert_eq!(store.sweep(&everything).await.unwrap().abandoned, 0);
        held.join_all().await;
        let waited = start.elapsed();
        most = most.max(threads());
        assert!(served < waited, "{served:?} for other uploads, {waited:?}");
        assert!(waited < Duration::from_secs(20), "{waited:?}");
        // If each of them waited on a thread, there would be 512 more.
        assert!(most < before + 300, "{before} threads became {most}");

        other.signal(end);
        if end == "-KILL" {
            assert!(
                !write(&store, &upload(RECEIVING, LENGTH), 0, 3)
                    .await
                    .unwrap()
            );
            let claim = store.claim(&upload(CLAIMED, 1)).await.unwrap();
            assert!(matches!(claim, Claimed::Won(_)), "{claim:?}");
        }
        let appending = upload(APPENDING, LENGTH);
        assert!(!write(&store, &appending, LENGTH - 1, 1).await.unwrap());
        match store.status(&appending.id).await.unwrap().unwrap().state {
            State::Receiving(ranges) => assert!(ranges.covers(LENGTH - 1, 1), "{ranges:?}"),
            state => panic!("{state:?}"),
        }
    }
}

async fn append(store: &FileStore, offset: u64) -> Result<bool, StoreError> {
    let rest = vec![8; (APPENDED_LEN - offset) as usize];
    let frames = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from(rest)))]);
    let source = pin!(StreamBody::new(frames));
    let mut body = ChunkBody::new(source, Some(APPENDED_LEN - offset), 0);
    let upload = upload(APPENDED, APPENDED_LEN);
    let progress = store.append(&upload, Append::at(offset), &mut body).await?;
    Ok(progress.complete)
}

/// The offset that it tells is true, whatever becomes of the other process, and an append at that
/// offset succeeds as soon as the other process can write no more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_append_of_another_process_is_ended() {
    for end in ["nothing", "-CONT", "-KILL"] {
        let dir = tempfile::tempdir().unwrap();
        let other = Other::run(dir.path(), "locks::other_appends");
        let store = FileStore::open(dir.path()).unwrap();
        let id = upload(APPENDED, APPENDED_LEN).id;
        let deadline = Instant::now() + Duration::from_secs(60);
        let recorded = loop {
            match store.status(&id).await.unwrap() {
                Some(status) if status.prefix() > 0 => break status.prefix(),
                _ => assert!(Instant::now() < deadline, "it never records a byte"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        if end != "nothing" {
            other.stop().await;
        }
        let start = Instant::now();
        let told = store.interrupt(&id).await.unwrap().unwrap().prefix();
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "{:?}",
            start.elapsed()
        );
        assert!(told >= recorded, "{recorded} bytes became {told}");
        if end != "nothing" {
            let start = Instant::now();
            assert_busy(append(&store, told).await);
            assert!(
                start.elapsed() < Duration::from_secs(5),
                "{:?}",
                start.elapsed()
            );
            other.signal(end);
        }
        let appended = loop {
            match append(&store, told).await {
                Err(StoreError::Busy) => assert!(Instant::now() < deadline, "it never ends"),
                appended => break appended,
            }
        };
        assert!(appended.unwrap(), "the upload is not complete");
        let Claimed::Won(claim) = store.claim(&upload(APPENDED, APPENDED_LEN)).await.unwrap()
        else {
            panic!("no claim")
        };
        let found = std::fs::read(claim.sealed().stored.path().unwrap()).unwrap();
        let (first, rest) = found.split_at(told as usize);
        assert!(first.iter().all(|byte| *byte == 7), "{end}");
        assert!(rest.iter().all(|byte| *byte == 8), "{end}");
        assert_eq!(found.len() as u64, APPENDED_LEN);
    }
}

/// Prints how long other uploads take while a process is stopped, and how many threads this process
/// has.
///
/// ```sh
/// cargo test --release --test it stopped_for_a_minute -- --ignored --nocapture
/// ```
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a minute; it asserts nothing about time"]
async fn a_process_is_stopped_for_a_minute() {
    /// The latencies of chunks of other uploads, and the highest number of threads.
    async fn measure(store: &FileStore, byte: u8, time: Duration) -> (Vec<Duration>, usize) {
        let (start, mut latencies, mut most) = (Instant::now(), Vec::new(), 0);
        for offset in 0.. {
            let chunk = Instant::now();
            if chunk.duration_since(start) > time {
                break;
            }
            let upload = upload(byte, LENGTH);
            write(store, &upload, offset << 10, 1 << 10).await.unwrap();
            latencies.push(chunk.elapsed());
            most = most.max(threads());
        }
        latencies.sort();
        (latencies, most)
    }

    let dir = tempfile::tempdir().unwrap();
    let other = Other::start(dir.path());
    other.stop_with_locks(dir.path()).await;
    let store = FileStore::open(dir.path()).unwrap();
    let alone = measure(&store, 100, Duration::from_secs(5)).await;
    let mut held = tokio::task::JoinSet::new();
    for n in 0..64 {
        let store = store.clone();
        held.spawn(async move {
            loop {
                let upload = upload([RECEIVING, APPENDING][n % 2], LENGTH);
                assert_busy(write(&store, &upload, 0, 3).await);
            }
        });
    }
    let loaded = measure(&store, 101, Duration::from_secs(60)).await;
    held.shutdown().await;
    for (name, (latencies, threads)) in [("alone", alone), ("64 clients wait", loaded)] {
        let at = |percent: usize| latencies[latencies.len() * percent / 100];
        let (half, high, count) = (at(50), at(99), latencies.len());
        println!("{name}: {count} chunks, p50 {half:.1?}, p99 {high:.1?}, {threads} threads");
    }
}

/// New chunks come at once when the old ones have to stop.
#[tokio::test]
async fn a_removal_is_not_starved_by_new_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    assert!(
        !write(&store, &upload(9, LENGTH), LENGTH - 1, 1)
            .await
            .unwrap()
    );
    let mut chunks = tokio::task::JoinSet::new();
    let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
    for n in 0..8 {
        let (store, begun) = (store.clone(), begun.clone());
        chunks.spawn(async move {
            loop {
                let begun = begun.clone();
                // The second piece is asked for when the first one is being written.
                let first = Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 100_000])));
                let rest = stream::poll_fn(move |_| {
                    let _ = begun.send(());
                    std::task::Poll::Pending
                });
                let source = pin!(StreamBody::new(stream::iter([first]).chain(rest)));
                let mut body = ChunkBody::new(source, Some(1 << 20), 0);
                let upload = upload(9, LENGTH);
                let written = store.write(&upload, n << 20, &mut body).await;
                assert!(
                    matches!(written, Err(StoreError::Superseded | StoreError::Busy)),
                    "{written:?}"
                );
            }
        });
    }
    for _ in 0..8 {
        begins.recv().await.unwrap();
    }
    let id = upload(9, LENGTH).id;
    let removed = tokio::time::timeout(Duration::from_secs(20), store.remove(&id)).await;
    assert!(removed.expect("it should not be starved").unwrap());
    chunks.shutdown().await;
}
