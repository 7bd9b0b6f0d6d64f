//! What only a store of files does. What all stores do is checked by `store::conformance`.

mod hardening;

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http_body::Frame;
use http_body_util::StreamBody;
use tower_resumable::{
    BoxError, FileStore, Scope, Upload, UploadId,
    store::{
        BodyError, ChunkBody, Claim as _, Claimed, Durability, Filter, Keep, State, Store,
        StoreError,
    },
};

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

fn id(n: u8) -> UploadId {
    UploadId::from_bytes([n; 32])
}

fn upload(length: u64) -> Upload {
    upload_of(7, length)
}

fn upload_of(n: u8, length: u64) -> Upload {
    let mut upload = Upload::new(id(n), Scope::default(), Some(length));
    upload.identifier = "i".into();
    upload.file_name = Some("../a.txt".into());
    upload
}

/// A body of these pieces, which fails at the first error.
fn body_of<S>(pieces: S) -> StreamBody<impl Stream<Item = Result<Frame<Bytes>, BoxError>>>
where
    S: Stream<Item = Result<Bytes, BoxError>>,
{
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data)))
}

async fn put(
    store: &FileStore,
    upload: &Upload,
    offset: u64,
    bytes: &[u8],
) -> Result<bool, StoreError> {
    let source = pin!(body_of(stream::iter([Ok(Bytes::copy_from_slice(bytes))])));
    let mut body = ChunkBody::new(source, Some(bytes.len() as u64), 0);
    let written = store.write(upload, offset, &mut body, Keep::Whole).await;
    written.map(|progress| progress.complete)
}

async fn status(store: &FileStore, id: &UploadId) -> Option<State> {
    let status = store.status(id).await.unwrap();
    status.map(|status| status.state)
}

async fn is_absent(store: &FileStore, id: &UploadId) -> bool {
    status(store, id).await.is_none()
}

async fn undelivered(store: &FileStore) -> Vec<Upload> {
    let page = store.list(&Filter::complete(), None).await.unwrap();
    page.uploads
        .into_iter()
        .map(|listed| listed.upload)
        .collect()
}

async fn deliver(store: &FileStore, upload: &Upload) -> PathBuf {
    let Claimed::Won(claim) = store.claim(upload).await.unwrap() else {
        panic!("no claim");
    };
    claim.sealed().stored.path().unwrap().to_owned()
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
    match status(&store, &upload.id).await {
        Some(State::Receiving(ranges)) => {
            assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10, 20..30]);
        }
        status => panic!("{status:?}"),
    }
    assert!(put(&store, &upload, 10, b"1111111111").await.unwrap());
    drop(store);
    let store = FileStore::open(dir.path()).unwrap();
    assert_eq!(undelivered(&store).await, std::slice::from_ref(&upload));
    let path = deliver(&store, &upload).await;
    assert_eq!(
        std::fs::read(path).unwrap(),
        b"000000000011111111112222222222"
    );
}

/// Two stores on one folder share nothing but files, like two processes.
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
                match store.claim(&upload).await.unwrap() {
                    Claimed::Won(claim) => Some(claim),
                    _ => None,
                }
            });
        }
        let mut claims: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(claims.len(), 1, "round {round}");
        let claim = claims.pop().unwrap();
        let path = claim.sealed().stored.path().unwrap();
        assert_eq!(std::fs::read(path).unwrap(), content, "round {round}");
    }
}

/// Uploads of one id that are removed and begin anew all the time, in two "processes".
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
                    match put(&store, &upload, (round % 4) * 10, &chunk).await {
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
            let source = pin!(body_of(stream::iter(pieces)));
            let mut body = ChunkBody::new(source, Some(len), 0);
            let keep = if round % 3 == 0 {
                Keep::Prefix
            } else {
                Keep::Whole
            };
            let progress = store.write(&upload, offset, &mut body, keep).await.unwrap();
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
    let builder = || FileStore::builder(dir.path()).with_finished_dir(&done);
    let finish = async |store: FileStore, n: u8| {
        let upload = upload_of(n, 1);
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
        let upload = upload_of(100 + n as u8, 1);
        put(&store, &upload, 0, b"x").await.unwrap();
        assert!(store.claim(&upload).await.is_err(), "{path}");
    }
}

/// The application has moved a file before it failed, and another upload has got its name.
#[tokio::test]
async fn a_name_that_has_become_another_files() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let builder = FileStore::builder(dir.path());
        builder.with_naming(|_| Some("same".into())).open().unwrap()
    };
    let upload = |n: u8| upload_of(n, 1);
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
        assert!(store.remove(&upload(1).id).await.unwrap());
        assert_eq!(std::fs::read(dir.path().join("files/same")).unwrap(), [2]);
        assert_eq!(std::fs::read(&moved).unwrap(), [1]);
        assert!(store.remove(&upload(2).id).await.unwrap());
        assert!(!dir.path().join("files/same").exists());
    }
}

#[tokio::test]
async fn a_stalled_chunk_is_superseded() {
    let dir = tempfile::tempdir().unwrap();
    let stall = Duration::from_millis(50);
    let store = FileStore::builder(dir.path())
        .with_stall_timeout(stall)
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
            let half = stream::iter([Ok(half)]);
            let source = pin!(body_of(half.chain(stream::pending())));
            let mut body = ChunkBody::new(source, Some(1 << 20), 0);
            store.write(&upload, 0, &mut body, Keep::Whole).await
        })
    };
    assert!(put(&store, &upload, 0, &chunk).await.unwrap());
    // If it came first it was superseded. If it did not, it waits for more bytes.
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

/// Chunks that wait for the one that writes must not hold what it needs to go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_long_duplicates_at_once() {
    let dir = tempfile::tempdir().unwrap();
    // It does not help them.
    let store = FileStore::builder(dir.path())
        .with_stall_timeout(Duration::from_secs(3600))
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
                let pieces = stream::iter(0..pieces).then(|_| async {
                    tokio::task::yield_now().await;
                    Ok(piece.clone())
                });
                let source = pin!(body_of(pieces));
                let mut body = ChunkBody::new(source, Some(len), 0);
                store.write(&upload, 0, &mut body, Keep::Whole).await
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
    let store = FileStore::builder(dir.path())
        .with_max_ranges(3)
        .open()
        .unwrap();
    let upload = upload(100);
    for n in 0..3 {
        put(&store, &upload, n * 20, b"x").await.unwrap();
    }
    assert!(matches!(
        put(&store, &upload, 90, b"x").await,
        Err(StoreError::TooManyRanges)
    ));
    // A chunk that makes fewer of them is stored.
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
            .with_finished_dir(other.path())
            .open()
            .unwrap_err();
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains("different file systems"), "{source}");
    }
}

/// Uploads whose ids are in different folders, and some that cannot be read.
#[tokio::test]
async fn lists_pass_over_what_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    let ids = [0, 1, 9, 200, 255];
    for n in ids.into_iter().rev() {
        put(&store, &upload_of(n, 1), 0, b"x").await.unwrap();
    }
    drop(store);
    let journal = |n: u8| {
        let name = format!("partial/{n:02x}/{}.journal", id(n));
        dir.path().join(name)
    };
    let mut later = std::fs::read(journal(9)).unwrap();
    later[3] = b'2';
    std::fs::write(journal(9), &later).unwrap();
    std::fs::write(journal(200), "no journal").unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    for filter in [Filter::default(), Filter::complete()] {
        let page = store.list(&filter, None).await.unwrap();
        let found: Vec<_> = page.uploads.iter().map(|listed| listed.upload.id).collect();
        assert_eq!(found, [id(0), id(1), id(255)]);
        let page = store.list(&filter, Some(&id(1))).await.unwrap();
        assert_eq!(page.uploads.len(), 1);
        let page = store.list(&filter, Some(&id(255))).await.unwrap();
        assert!(page.uploads.is_empty() && page.next.is_none());
    }
    // What another version has written is neither read nor removed.
    assert!(matches!(
        store.status(&id(9)).await,
        Err(StoreError::Failed(_))
    ));
    let swept = store.sweep(&hardening::everything()).await.unwrap();
    assert_eq!(swept.undelivered, 3);
    assert_eq!(std::fs::read(journal(9)).unwrap(), later);
    assert_eq!(files(&dir.path().join("partial")).len(), 2);
}

/// The older request has not noticed yet that its client is gone.
#[tokio::test]
async fn the_newest_request_to_append_wins_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let builder = FileStore::builder(dir.path()).with_stall_timeout(Duration::MAX);
    let store = builder.open().unwrap();
    let content = vec![7; 100_000];
    let upload = upload(content.len() as u64);
    let older = {
        let (store, upload) = (store.clone(), upload.clone());
        let half = Bytes::from(content[50_000..].to_vec());
        tokio::spawn(async move {
            let half = stream::iter([Ok(half)]);
            let source = pin!(body_of(half.chain(stream::pending())));
            let mut body = ChunkBody::new(source, None, 100_000);
            store.write(&upload, 0, &mut body, Keep::Prefix).await
        })
    };
    while is_absent(&store, &upload.id).await {
        tokio::task::yield_now().await;
    }
    let source = pin!(body_of(stream::iter([Ok(Bytes::from(content.clone()))])));
    let mut body = ChunkBody::new(source, None, 100_000);
    let newer = store.write(&upload, 0, &mut body, Keep::Prefix);
    let newer = tokio::time::timeout(Duration::from_secs(20), newer).await;
    assert!(newer.expect("it waits").unwrap().complete);
    let older = older.await.unwrap();
    assert!(matches!(older, Err(StoreError::Superseded)), "{older:?}");
    assert!(std::fs::read(deliver(&store, &upload).await).unwrap() == content);
}

/// Long enough for several commits.
#[tokio::test]
async fn a_prefix_stays_when_the_body_fails() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    const LEN: usize = 20 << 20;
    let content: Vec<u8> = (0..LEN).map(|i| (i ^ (i >> 9)) as u8).collect();
    let mut upload = upload(0);
    upload.length = Some(LEN as u64);
    let mut start = 0;
    for end in [19 << 20, LEN - 1, LEN] {
        let pieces = content[start..end].chunks(100_000);
        let pieces: Vec<_> = pieces.map(|p| Ok(Bytes::copy_from_slice(p))).collect();
        let failed = stream::iter([Err(BoxError::from("the client is gone"))]);
        let source = pin!(body_of(stream::iter(pieces).chain(failed)));
        let mut body = ChunkBody::new(source, None, (LEN - start) as u64);
        let written = store
            .write(&upload, start as u64, &mut body, Keep::Prefix)
            .await;
        assert!(
            matches!(written, Err(StoreError::Body(BodyError::Failed(_)))),
            "{written:?}"
        );
        let store = FileStore::open(dir.path()).unwrap();
        let found = store.status(&upload.id).await.unwrap().unwrap();
        assert_eq!(found.prefix(), end as u64);
        start = end;
    }
    assert!(std::fs::read(deliver(&store, &upload).await).unwrap() == content);
}

#[tokio::test]
async fn chunks_stay_inside_of_the_upload() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    for keep in [Keep::Whole, Keep::Prefix] {
        for exact in [None, Some(11)] {
            let source = pin!(body_of(stream::iter([Ok(Bytes::from_static(&[7; 11]))])));
            let mut body = ChunkBody::new(source, exact, 11);
            let written = store.write(&upload(10), 0, &mut body, keep).await;
            assert!(
                matches!(written, Err(StoreError::OutOfBounds)),
                "{written:?}"
            );
            assert!(is_absent(&store, &id(7)).await);
        }
    }
    assert_eq!(files(dir.path()), Vec::<PathBuf>::new());
}
