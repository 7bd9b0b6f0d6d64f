//! The stores of this crate: the conformance suite, and tests of `FileStore` itself.

mod hardening;

#[cfg(target_os = "linux")]
pub use hardening::free_space::free;

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use http_body::Frame;
use http_body_util::StreamBody;
use tower_resumable::{
    FileStore, MemoryStore, Scope, Upload, UploadId,
    store::{
        ChunkBody, Claim as _, Claimed, Durability, Expiry, FileStoreBuilder, Filter, Record,
        State, Store, StoreError, conformance,
    },
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    conformance::check(&MemoryStore::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_conform() {
    for durability in [Durability::Power, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::builder(dir.path())
            .with_durability(durability)
            .open()
            .unwrap();
        conformance::check(&store).await;
        // Uploads that were removed or swept leave nothing behind.
        let partial: Vec<_> = files(&dir.path().join("partial"))
            .into_iter()
            .filter(|path| {
                path.extension()
                    .is_none_or(|extension| extension != "journal")
            })
            .collect();
        assert_eq!(partial, Vec::<PathBuf>::new());
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path))
        } else {
            found.push(path)
        }
    }
    found
}

fn upload(length: u64) -> Upload {
    upload_named(7, length)
}

/// An upload whose id is this byte, 32 times.
fn upload_named(byte: u8, length: u64) -> Upload {
    let id = UploadId::from_bytes([byte; 32]);
    let mut upload = Upload::new(id, Scope::default(), Some(length));
    upload.identifier = "i".into();
    upload.file_name = Some("../a.txt".into());
    upload
}

/// Writes a chunk. Returns whether the upload is complete.
async fn write(
    store: &FileStore,
    upload: &Upload,
    offset: u64,
    bytes: &[u8],
) -> Result<bool, StoreError> {
    let pieces = futures_util::stream::iter([Ok(Bytes::copy_from_slice(bytes))]);
    write_pieces(store, upload, offset, bytes.len(), pieces).await
}

/// Writes a chunk of `len` bytes that arrives in these pieces. Returns whether the upload is
/// complete.
async fn write_pieces(
    store: &FileStore,
    upload: &Upload,
    offset: u64,
    len: usize,
    pieces: impl Stream<Item = Result<Bytes, BoxError>> + Send,
) -> Result<bool, StoreError> {
    let source = pin!(StreamBody::new(pieces.map_ok(Frame::data)));
    let mut body = ChunkBody::new(source, Some(len as u64), 0);
    let progress = store.write(upload, offset, &mut body).await?;
    Ok(progress.complete)
}

/// Claims the upload and releases the claim. Returns the path of its file.
async fn deliver(store: &FileStore, upload: &Upload) -> PathBuf {
    let Claimed::Won(claim) = store.claim(upload).await.unwrap() else {
        panic!("no claim");
    };
    claim.sealed().stored.path().unwrap().to_owned()
}

/// Claims the upload and settles it.
async fn settle(store: &FileStore, upload: &Upload, delivered: bool) {
    let Claimed::Won(mut claim) = store.claim(upload).await.unwrap() else {
        panic!("no claim");
    };
    let expires = SystemTime::now() + Duration::from_secs(60);
    let record = Record::new(delivered, http::StatusCode::OK, 1, expires);
    claim.settle(&record).await.unwrap();
}

#[tokio::test]
async fn a_new_process_continues_unfinished_uploads() {
    let dir = tempfile::tempdir().unwrap();
    let upload = upload(30);
    write(
        &FileStore::open(dir.path()).unwrap(),
        &upload,
        20,
        b"2222222222",
    )
    .await
    .unwrap();
    write(
        &FileStore::open(dir.path()).unwrap(),
        &upload,
        0,
        b"0000000000",
    )
    .await
    .unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    match store.status(&upload.id).await.unwrap().unwrap().state {
        State::Receiving(ranges) => assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10, 20..30]),
        state => panic!("{state:?}"),
    }
    assert!(write(&store, &upload, 10, b"1111111111").await.unwrap());
    drop(store);
    let store = FileStore::open(dir.path()).unwrap();
    let page = store.list(&Filter::complete(), None).await.unwrap();
    assert_eq!(page.uploads.len(), 1);
    assert_eq!(page.uploads[0].upload, upload);
    let path = deliver(&store, &upload).await;
    assert_eq!(
        std::fs::read(path).unwrap(),
        b"000000000011111111112222222222"
    );
}

/// Two stores on one folder behave like two processes: they share only the files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_on_one_folder() {
    for round in 0..50u8 {
        let dir = tempfile::tempdir().unwrap();
        let stores = [
            FileStore::open(dir.path()).unwrap(),
            FileStore::open(dir.path()).unwrap(),
        ];
        let upload = upload(80);
        let content: Vec<u8> = (0..80).map(|i| i ^ round).collect();
        let mut tasks = tokio::task::JoinSet::new();
        for (n, store) in (0..8usize).flat_map(|n| stores.iter().map(move |store| (n, store))) {
            let (store, upload) = (store.clone(), upload.clone());
            let chunk = content[n * 10..n * 10 + 10].to_vec();
            tasks.spawn(async move {
                let complete = write(&store, &upload, n as u64 * 10, &chunk).await.unwrap();
                if !complete {
                    return None;
                }
                match store.claim(&upload).await.unwrap() {
                    Claimed::Won(claim) => Some(claim),
                    _ => None,
                }
            });
        }
        let claims: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(claims.len(), 1, "round {round}");
        let path = claims[0].sealed().stored.path().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), content, "round {round}");
    }
}

/// An upload that two "processes" cancel and begin again repeatedly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_race_with_removal() {
    let dir = tempfile::tempdir().unwrap();
    let stores = [
        FileStore::open(dir.path()).unwrap(),
        FileStore::open(dir.path()).unwrap(),
    ];
    let upload = upload(4 * 10);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8u64 {
        let (store, upload) = (stores[n as usize % 2].clone(), upload.clone());
        tasks.spawn(async move {
            for round in 0..60 {
                if n < 2 {
                    store.remove(&upload.id).await.unwrap();
                } else {
                    let chunk = [b'a' + (round % 4) as u8; 10];
                    match write(&store, &upload, (round % 4) * 10, &chunk).await {
                        Ok(_) | Err(StoreError::Superseded) => {}
                        Err(error) => panic!("{error:?}: {:?}", std::error::Error::source(&error)),
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    stores[0].remove(&upload.id).await.unwrap();
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    for (n, store) in [0, 1, 0, 1].into_iter().enumerate() {
        write(
            &stores[store],
            &upload,
            n as u64 * 10,
            &[b'a' + n as u8; 10],
        )
        .await
        .unwrap();
    }
    let path = deliver(&stores[1], &upload).await;
    assert_eq!(
        std::fs::read(path).unwrap(),
        b"aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd"
    );
}

/// Ranges that overlap, of any length, at any offset, in pieces of any length: larger and smaller
/// than the blocks that the store writes.
#[tokio::test]
async fn ranges_at_any_offset() {
    const TOTAL: u64 = 1_500_000;
    let mut seed = 1u64;
    let mut below = |end: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % end
    };
    let content: Vec<u8> = (0..TOTAL)
        .map(|i| (i ^ (i >> 8) ^ (i >> 16)) as u8)
        .collect();
    for round in 0..10u8 {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::builder(dir.path())
            .with_durability(Durability::Process)
            .open()
            .unwrap();
        let upload = upload(TOTAL);
        let mut complete = false;
        while !complete {
            let offset = match below(3) {
                0 => below(TOTAL),
                1 => below(TOTAL >> 18) << 18,
                _ => 0,
            };
            let longest = if round % 2 == 0 { 900_000 } else { 200_000 };
            let len = (1 + below(longest)).min(TOTAL - offset);
            let bytes = &content[offset as usize..(offset + len) as usize];
            let mut pieces = Vec::new();
            let mut rest = Bytes::copy_from_slice(bytes);
            while !rest.is_empty() {
                let piece = rest.split_to(rest.len().min(1 + below(400_000) as usize));
                pieces.push(Ok(piece));
            }
            let pieces = futures_util::stream::iter(pieces);
            let written = write_pieces(&store, &upload, offset, len as usize, pieces).await;
            complete = written.unwrap();
        }
        let path = deliver(&store, &upload).await;
        assert!(std::fs::read(path).unwrap() == content, "round {round}");
    }
}

#[tokio::test]
async fn finished_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let builder = || FileStore::builder(dir.path()).with_finished_dir(&done);
    let finish = async |store: FileStore, n: u8| {
        let upload = upload_named(n, 1);
        write(&store, &upload, 0, &[n]).await.unwrap();
        let path = deliver(&store, &upload).await;
        assert_eq!(std::fs::read(&path).unwrap(), [n]);
        path.strip_prefix(&done).unwrap().to_owned()
    };
    let default = finish(builder().open().unwrap(), 0).await;
    assert!(
        default.ends_with("a.txt") && default.components().count() == 2,
        "{default:?}"
    );

    let named = |path: &'static str| {
        builder()
            .with_naming(move |_| Some(path.into()))
            .open()
            .unwrap()
    };
    assert_eq!(
        finish(named("x/a.tar.gz"), 1).await,
        Path::new("x/a.tar.gz")
    );
    assert_eq!(
        finish(named("x/a.tar.gz"), 2).await,
        Path::new("x/a.tar (1).gz")
    );
    assert_eq!(
        finish(named("x/a.tar.gz"), 3).await,
        Path::new("x/a.tar (2).gz")
    );
    assert_eq!(finish(named("b"), 4).await, Path::new("b"));
    assert_eq!(finish(named("b"), 5).await, Path::new("b (1)"));
    // The name is also the name of a folder.
    assert_eq!(
        finish(named("b/c/d.txt"), 6).await,
        Path::new("b (2)/c/d.txt")
    );
    assert_eq!(
        finish(named("x/a.tar.gz/e"), 7).await,
        Path::new("x/a.tar.gz (1)/e")
    );
    // The longest possible names.
    let long: &'static str = Box::leak(("é".repeat(125) + "x.txt").into_boxed_str());
    assert_eq!(finish(named(long), 8).await, Path::new(long));
    let numbered = "é".repeat(123) + " (1).txt";
    assert_eq!(finish(named(long), 9).await, Path::new(&numbered));

    for (n, path) in ["../c", "/c", "", "x/../../c", "."].into_iter().enumerate() {
        let store = named(path);
        let upload = upload_named(100 + n as u8, 1);
        write(&store, &upload, 0, b"x").await.unwrap();
        assert!(store.claim(&upload).await.is_err(), "{path}");
    }
}

/// The application takes a file away before the delivery fails, and another upload gets its name,
/// and maybe its inode number. The next attempt has the right bytes, and a removal or a rejection
/// removes no other file.
#[tokio::test]
async fn a_reused_name_does_not_affect_the_other_file() {
    for (restart, reject, delete) in [
        (false, false, false),
        (false, true, true),
        (true, false, true),
        (true, true, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let builder = FileStore::builder(dir.path());
            builder.with_naming(|_| Some("same".into())).open().unwrap()
        };
        let (same, moved) = (dir.path().join("files/same"), dir.path().join("moved"));
        let mut store = open();
        for n in 1..=2 {
            write(&store, &upload_named(n, 1), 0, &[n]).await.unwrap();
            let path = deliver(&store, &upload_named(n, 1)).await;
            assert_eq!(path, same);
            if n == 1 && delete {
                std::fs::remove_file(path).unwrap();
            } else if n == 1 {
                std::fs::rename(path, &moved).unwrap();
            }
        }
        if restart {
            store = open();
        }
        let first = deliver(&store, &upload_named(1, 1)).await;
        assert_eq!(first, dir.path().join("files/same (1)"));
        assert_eq!(std::fs::read(&first).unwrap(), [1]);
        // The application replaces the file. What is at its path now is not removed.
        std::fs::write(dir.path().join("new"), "new").unwrap();
        std::fs::rename(dir.path().join("new"), &first).unwrap();
        if reject {
            settle(&store, &upload_named(1, 1), false).await;
        } else {
            assert!(store.remove(&upload_named(1, 1).id).await.unwrap());
        }
        assert_eq!(std::fs::read(&same).unwrap(), [2]);
        assert_eq!(moved.exists(), !delete);
        if reject {
            // The attempt that was rejected had another file.
            let again = dir.path().join("files/same (2)");
            assert!(!again.exists());
        }
        assert_eq!(std::fs::read(&first).unwrap(), b"new");
        assert!(store.remove(&upload_named(2, 1).id).await.unwrap());
        assert!(!same.exists());
    }
}

/// While an upload is not settled, its file is below `partial/` too. Then it is the application's.
#[cfg(unix)]
#[tokio::test]
async fn a_file_has_one_name_when_it_is_settled() {
    use std::os::unix::fs::MetadataExt as _;
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    for delivered in [true, false] {
        let upload = upload_named(delivered.into(), 1);
        write(&store, &upload, 0, b"x").await.unwrap();
        let path = deliver(&store, &upload).await;
        let file = std::fs::File::open(&path).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 2);
        settle(&store, &upload, delivered).await;
        assert_eq!(file.metadata().unwrap().nlink(), u64::from(delivered));
        assert_eq!(path.exists(), delivered);
    }
}

/// Whether the application moves its files in the delivery, after it, or not at all, and by which
/// means: no folder stays for a file that is gone.
#[tokio::test]
async fn no_empty_folder_stays() {
    let naming: [fn(FileStoreBuilder) -> FileStoreBuilder; 2] = [
        |builder| builder,
        |builder| builder.with_naming(|upload| Some(format!("a/{}/b/c", upload.id).into())),
    ];
    for case in 0..16 {
        let [persists, late, delivered] = [1, 2, 4].map(|bit| case & bit != 0);
        let naming = naming[case / 8];
        let dir = tempfile::tempdir().unwrap();
        let store = naming(FileStore::builder(dir.path())).open().unwrap();
        let kept = dir.path().join("kept");
        write(&store, &upload(1), 0, b"x").await.unwrap();
        let Claimed::Won(mut claim) = store.claim(&upload(1)).await.unwrap() else {
            panic!("no claim");
        };
        let stored = claim.sealed().stored.clone();
        let take = async || {
            if persists {
                stored.move_to(&kept).await.unwrap();
            } else {
                std::fs::rename(stored.path().unwrap(), &kept).unwrap();
            }
        };
        if !late {
            take().await;
        }
        let record = Record::new(delivered, http::StatusCode::OK, 1, SystemTime::now());
        claim.settle(&record).await.unwrap();
        if late && delivered {
            take().await;
        }
        let later = SystemTime::now() + Duration::from_secs(60);
        let mut expiry = Expiry::default();
        expiry.records_before = later;
        assert_eq!(store.sweep(&expiry).await.unwrap().records, 1);
        let left = std::fs::read_dir(dir.path().join("files")).unwrap();
        assert_eq!(left.count(), 0, "{persists} {late} {delivered}");
        assert_eq!(kept.exists(), !late || delivered);
    }
}

#[tokio::test]
async fn a_stalled_chunk_is_superseded_by_another_request() {
    let dir = tempfile::tempdir().unwrap();
    let stall = Duration::from_millis(50);
    let store = FileStore::builder(dir.path())
        .with_stall_timeout(stall)
        .open()
        .unwrap();
    let chunk = vec![7; 1 << 20];
    let upload = upload(chunk.len() as u64);
    let stalled = {
        let (store, upload) = (store.clone(), upload.clone());
        let half = Bytes::from(chunk[1 << 19..].to_vec());
        tokio::spawn(async move {
            let half = futures_util::stream::iter([Ok(half)]);
            let pieces = half.chain(futures_util::stream::pending());
            write_pieces(&store, &upload, 0, 1 << 20, pieces).await
        })
    };
    assert!(write(&store, &upload, 0, &chunk).await.unwrap());
    // Either the stalled chunk came first and was superseded, or it came second and waits for more
    // bytes.
    if stalled.is_finished() {
        assert!(matches!(
            stalled.await.unwrap(),
            Err(StoreError::Superseded)
        ));
    } else {
        stalled.abort();
    }
    assert!(std::fs::read(deliver(&store, &upload).await).unwrap() == chunk);
}

/// Requests that wait for a range must not hold a resource that the writing request needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_concurrent_long_duplicates() {
    let dir = tempfile::tempdir().unwrap();
    // The timeout is too long to resolve a deadlock.
    let store = FileStore::builder(dir.path())
        .with_stall_timeout(Duration::from_secs(3600))
        .open()
        .unwrap();
    let piece = Bytes::from(vec![7; 64 << 10]);
    let pieces = 48;
    let len = pieces * piece.len() as u64;
    let upload = upload(len + 1);
    write(&store, &upload, len, &[7]).await.unwrap();
    let writes: Vec<_> = (0..32)
        .map(|_| {
            let (store, upload, piece) = (store.clone(), upload.clone(), piece.clone());
            tokio::spawn(async move {
                let pieces = futures_util::stream::iter(0..pieces).then(|_| async {
                    tokio::task::yield_now().await;
                    Ok(piece.clone())
                });
                write_pieces(&store, &upload, 0, len as usize, pieces).await
            })
        })
        .collect();
    for write in writes {
        let write = tokio::time::timeout(Duration::from_secs(60), write).await;
        assert!(write.expect("a chunk does not finish").unwrap().unwrap());
    }
    let file = std::fs::read(deliver(&store, &upload).await).unwrap();
    assert!(file == vec![7; len as usize + 1]);
}

#[tokio::test]
async fn too_many_ranges_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::builder(dir.path())
        .with_max_ranges(3)
        .open()
        .unwrap();
    let upload = upload(100);
    for n in 0..3 {
        write(&store, &upload, n * 20, b"x").await.unwrap();
    }
    assert!(matches!(
        write(&store, &upload, 90, b"x").await,
        Err(StoreError::TooManyRanges)
    ));
    // A chunk that leaves fewer ranges is accepted.
    write(&store, &upload, 1, &[b'y'; 19]).await.unwrap();
    write(&store, &upload, 90, b"x").await.unwrap();
}

#[tokio::test]
async fn unusable_folders_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(FileStore::open(&file).is_err());
    // On Linux, this is another file system.
    if cfg!(target_os = "linux") && Path::new("/dev/shm").is_dir() {
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let error = FileStore::builder(dir.path())
            .with_finished_dir(other.path())
            .open()
            .unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("different file systems"), "{source}");
    }
}
