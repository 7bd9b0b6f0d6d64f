//! The stores: what all of them keep, and what only files can.

mod hardening;

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use tower_resumable::{
    FileStore, MemoryStore, Store, StoreError,
    store::{ChunkBody, Durability, Location, Status, TryClaim, Upload, UploadKey, conformance},
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_conforms() {
    let read = async |location: &Location| match location {
        Location::Memory(bytes) => Some(bytes.to_vec()),
        _ => None,
    };
    conformance::check(&MemoryStore::default(), read).await;
}

async fn read_file(location: &Location) -> Option<Vec<u8>> {
    match location {
        Location::File(path) => std::fs::read(path).ok(),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_conform() {
    for durability in [Durability::Power, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::builder(dir.path())
            .durability(durability)
            .open()
            .unwrap();
        conformance::check(&store, read_file).await;
        // What was not delivered is gone without a trace.
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

fn upload(total: u64) -> Upload {
    Upload {
        key: UploadKey::from_bytes([7; 32]),
        scope: String::new(),
        identifier: "i".into(),
        total,
        chunk_size: None,
        file_name: Some("../a.txt".into()),
        relative_path: None,
        content_type: None,
        fields: Vec::new(),
    }
}

async fn put(
    store: &FileStore,
    upload: &Upload,
    offset: u64,
    bytes: &[u8],
) -> Result<bool, StoreError> {
    let stream = futures_util::stream::iter([Ok(Bytes::copy_from_slice(bytes))]);
    let stream = pin!(stream);
    let mut body = ChunkBody::new(stream, Some(bytes.len() as u64), 0);
    store
        .put(upload, offset, &mut body)
        .await
        .map(|progress| progress.complete)
}

async fn deliver(store: &FileStore, upload: &Upload) -> PathBuf {
    let TryClaim::Won(mut claim) = store.try_claim(&upload.key).await.unwrap() else {
        panic!("no claim");
    };
    let sealed = store.seal(&mut claim, upload).await.unwrap();
    match sealed.location {
        Location::File(path) => path,
        location => panic!("{location:?}"),
    }
}

#[tokio::test]
async fn a_new_process_goes_on_where_the_last_one_was() {
    let dir = tempfile::tempdir().unwrap();
    let upload = upload(30);
    put(
        &FileStore::open(dir.path()).unwrap(),
        &upload,
        20,
        b"2222222222",
    )
    .await
    .unwrap();
    put(
        &FileStore::open(dir.path()).unwrap(),
        &upload,
        0,
        b"0000000000",
    )
    .await
    .unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    match store.status(&upload.key).await.unwrap() {
        Status::Receiving(ranges) => assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10, 20..30]),
        status => panic!("{status:?}"),
    }
    assert!(put(&store, &upload, 10, b"1111111111").await.unwrap());
    drop(store);
    let store = FileStore::open(dir.path()).unwrap();
    let waiting = store.undelivered().await.unwrap();
    assert_eq!(waiting, std::slice::from_ref(&upload));
    let path = deliver(&store, &upload).await;
    assert_eq!(
        std::fs::read(path).unwrap(),
        b"000000000011111111112222222222"
    );
}

/// Two stores on one folder are to each other as two processes: they share nothing but files.
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
                let complete = put(&store, &upload, n as u64 * 10, &chunk).await.unwrap();
                if !complete {
                    return None;
                }
                match store.try_claim(&upload.key).await.unwrap() {
                    TryClaim::Won(claim) => Some((store, claim)),
                    _ => None,
                }
            });
        }
        let mut claims: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(claims.len(), 1, "round {round}");
        let (store, mut claim) = claims.pop().unwrap();
        let sealed = store.seal(&mut claim, &upload).await.unwrap();
        assert_eq!(
            read_file(&sealed.location).await.unwrap(),
            content,
            "round {round}"
        );
    }
}

/// Uploads of one key that are cancelled and begun anew all the time, by two "processes".
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
                    store.remove(&upload.key).await.unwrap();
                } else {
                    let chunk = [b'a' + (round % 4) as u8; 10];
                    match put(&store, &upload, (round % 4) * 10, &chunk).await {
                        Ok(_) | Err(StoreError::Superseded) => {}
                        Err(error) => panic!("{error:?}: {:?}", std::error::Error::source(&error)),
                    }
                }
            }
        });
    }
    tasks.join_all().await;
    stores[0].remove(&upload.key).await.unwrap();
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
    for (n, store) in [0, 1, 0, 1].into_iter().enumerate() {
        put(
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
/// than the blocks that are written.
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
            .durability(Durability::Process)
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
            let stream = pin!(futures_util::stream::iter(pieces));
            let mut body = ChunkBody::new(stream, Some(len), 0);
            let progress = store.put(&upload, offset, &mut body).await.unwrap();
            complete = progress.complete;
        }
        let path = deliver(&store, &upload).await;
        assert!(std::fs::read(path).unwrap() == content, "round {round}");
    }
}

#[tokio::test]
async fn names_of_finished_files() {
    let dir = tempfile::tempdir().unwrap();
    let done = dir.path().join("done");
    let builder = || FileStore::builder(dir.path()).finished_dir(&done);
    let finish = async |store: FileStore, n: u8| {
        let upload = Upload {
            key: UploadKey::from_bytes([n; 32]),
            ..upload(1)
        };
        put(&store, &upload, 0, &[n]).await.unwrap();
        let path = deliver(&store, &upload).await;
        assert_eq!(std::fs::read(&path).unwrap(), [n]);
        path.strip_prefix(&done).unwrap().to_owned()
    };
    let default = finish(builder().open().unwrap(), 0).await;
    assert!(
        default.ends_with("a.txt") && default.components().count() == 2,
        "{default:?}"
    );

    let named = |path: &'static str| builder().naming(move |_| Some(path.into())).open().unwrap();
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
    // A file has the name of the folder.
    assert_eq!(
        finish(named("b/c/d.txt"), 6).await,
        Path::new("b (2)/c/d.txt")
    );
    assert_eq!(
        finish(named("x/a.tar.gz/e"), 7).await,
        Path::new("x/a.tar.gz (1)/e")
    );
    // As long as names can be.
    let long: &'static str = Box::leak(("é".repeat(125) + "x.txt").into_boxed_str());
    assert_eq!(finish(named(long), 8).await, Path::new(long));
    let numbered = "é".repeat(123) + " (1).txt";
    assert_eq!(finish(named(long), 9).await, Path::new(&numbered));

    for (n, path) in ["../c", "/c", "", "x/../../c", "."].into_iter().enumerate() {
        let store = named(path);
        let upload = Upload {
            key: UploadKey::from_bytes([100 + n as u8; 32]),
            ..upload(1)
        };
        put(&store, &upload, 0, b"x").await.unwrap();
        let TryClaim::Won(mut claim) = store.try_claim(&upload.key).await.unwrap() else {
            panic!("no claim");
        };
        assert!(store.seal(&mut claim, &upload).await.is_err(), "{path}");
    }
}

/// The application has moved a file before it failed, and another upload has got its name.
#[tokio::test]
async fn a_name_that_has_become_another_files() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let builder = FileStore::builder(dir.path());
        builder.naming(|_| Some("same".into())).open().unwrap()
    };
    let upload = |n: u8| Upload {
        key: UploadKey::from_bytes([n; 32]),
        ..upload(1)
    };
    let moved = dir.path().join("moved");
    for restart in [false, true] {
        let mut store = open();
        for n in 1..=2 {
            put(&store, &upload(n), 0, &[n]).await.unwrap();
            let path = deliver(&store, &upload(n)).await;
            assert_eq!(path, dir.path().join("files/same"));
            if n == 1 {
                std::fs::rename(path, &moved).unwrap();
            }
        }
        if restart {
            store = open();
        }
        // The next attempt is not given the other file, and a refusal does not take it away.
        assert!(!deliver(&store, &upload(1)).await.exists());
        assert!(store.remove(&upload(1).key).await.unwrap());
        assert_eq!(std::fs::read(dir.path().join("files/same")).unwrap(), [2]);
        assert_eq!(std::fs::read(&moved).unwrap(), [1]);
        assert!(store.remove(&upload(2).key).await.unwrap());
        assert!(!dir.path().join("files/same").exists());
    }
}

#[tokio::test]
async fn a_stalled_chunk_gives_way_to_another_request() {
    let dir = tempfile::tempdir().unwrap();
    let stall = Duration::from_millis(50);
    let store = FileStore::builder(dir.path())
        .stall_timeout(stall)
        .open()
        .unwrap();
    let chunk = vec![7; 1 << 20];
    let upload = upload(chunk.len() as u64);
    let stalled = {
        let (store, upload, half) = (
            store.clone(),
            upload.clone(),
            Bytes::from(chunk[1 << 19..].to_vec()),
        );
        tokio::spawn(async move {
            use futures_util::StreamExt as _;
            let half = futures_util::stream::iter([Ok(half)]);
            let stream = pin!(half.chain(futures_util::stream::pending()));
            store
                .put(&upload, 0, &mut ChunkBody::new(stream, Some(1 << 20), 0))
                .await
        })
    };
    assert!(put(&store, &upload, 0, &chunk).await.unwrap());
    // If it came first it has given way; if it did not, it waits for more bytes.
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

/// Those that wait for the one that writes must not hold what it needs to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_long_duplicates_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // Nobody is rescued by it.
    let store = FileStore::builder(dir.path())
        .stall_timeout(Duration::from_secs(3600))
        .open()
        .unwrap();
    let piece = Bytes::from(vec![7; 64 << 10]);
    let pieces = 48;
    let len = pieces * piece.len() as u64;
    let upload = upload(len + 1);
    put(&store, &upload, len, &[7]).await.unwrap();
    let puts: Vec<_> = (0..32)
        .map(|_| {
            let (store, upload, piece) = (store.clone(), upload.clone(), piece.clone());
            tokio::spawn(async move {
                use futures_util::StreamExt as _;
                let stream = futures_util::stream::iter(0..pieces).then(|_| async {
                    tokio::task::yield_now().await;
                    Ok(piece.clone())
                });
                let stream = pin!(stream);
                let mut body = ChunkBody::new(stream, Some(len), 0);
                store.put(&upload, 0, &mut body).await
            })
        })
        .collect();
    for put in puts {
        let put = tokio::time::timeout(Duration::from_secs(60), put).await;
        let progress = put.expect("a chunk hangs").unwrap().unwrap();
        assert!(progress.complete);
    }
    let file = std::fs::read(deliver(&store, &upload).await).unwrap();
    assert!(file == vec![7; len as usize + 1]);
}

#[tokio::test]
async fn too_many_pieces_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::builder(dir.path()).max_ranges(3).open().unwrap();
    let upload = upload(100);
    for n in 0..3 {
        put(&store, &upload, n * 20, b"x").await.unwrap();
    }
    assert!(matches!(
        put(&store, &upload, 90, b"x").await,
        Err(StoreError::TooManyRanges)
    ));
    // What makes fewer of them is taken.
    put(&store, &upload, 1, &[b'y'; 19]).await.unwrap();
    put(&store, &upload, 90, b"x").await.unwrap();
}

#[tokio::test]
async fn folders_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert!(FileStore::open(&file).is_err());
    // Linux has another file system there.
    if cfg!(target_os = "linux") && Path::new("/dev/shm").is_dir() {
        let other = tempfile::tempdir_in("/dev/shm").unwrap();
        let error = FileStore::builder(dir.path())
            .finished_dir(other.path())
            .open()
            .unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("different file systems"), "{source}");
    }
}
