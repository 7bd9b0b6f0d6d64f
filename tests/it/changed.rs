//! Chunks of a file that has changed since its upload began: `FileStore` stores nothing of them.
//! The conformance suite checks what holds for all stores.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;
use tower_resumable::{
    FileStore, Scope, Upload, UploadId,
    store::{ChunkBody, Claim as _, Claimed, Progress, Record, State, Store as _, StoreError},
};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn upload(length: u64) -> Upload {
    let id = UploadId::from_bytes([7; 32]);
    Upload::new(id, Scope::default(), Some(length))
}

async fn write(
    store: &FileStore,
    upload: &Upload,
    at: u64,
    bytes: &[u8],
) -> Result<Progress, StoreError> {
    let len = bytes.len() as u64;
    // In pieces that are smaller than the blocks of the store, and not aligned.
    let pieces = bytes.chunks(7_000).map(Bytes::copy_from_slice);
    let frames: Vec<_> = pieces
        .map(|piece| Ok::<_, BoxError>(Frame::data(piece)))
        .collect();
    let source = pin!(StreamBody::new(stream::iter(frames)));
    let mut body = ChunkBody::new(source, Some(len), 0);
    store.write(upload, at, &mut body).await
}

#[track_caller]
fn assert_conflict(written: Result<Progress, StoreError>, when: &str) {
    assert!(
        matches!(written, Err(StoreError::Conflict)),
        "{written:?} {when}"
    );
}

async fn ranges(store: &FileStore, upload: &Upload) -> Vec<std::ops::Range<u64>> {
    match store.status(&upload.id).await.unwrap().unwrap().state {
        State::Receiving(ranges) => ranges.iter().collect(),
        state => panic!("{state:?}"),
    }
}

/// The file belongs to the application then, which may have changed or moved it.
#[tokio::test]
async fn a_settled_upload_is_compared_by_the_checksums_of_its_chunks() {
    for restart in [false, true] {
        for state in ["claimed", "released", "delivered", "rejected"] {
            let dir = tempfile::tempdir().unwrap();
            let mut store = FileStore::open(dir.path()).unwrap();
            let (upload, content) = (upload(30), b"0123456789abcdefghijklmnopqrst");
            for at in [10, 0, 20] {
                let bytes = &content[at..at + 10];
                write(&store, &upload, at as u64, bytes).await.unwrap();
            }
            let Claimed::Won(mut claim) = store.claim(&upload).await.unwrap() else {
                panic!("no claim")
            };
            // The application changes the file.
            std::fs::write(claim.sealed().stored.path().unwrap(), [b'x'; 30]).unwrap();
            let expires = std::time::SystemTime::now() + Duration::from_secs(3600);
            let record = Record::new(state == "delivered", StatusCode::OK, 30, expires);
            let mut live = None;
            match state {
                "claimed" => live = Some(claim),
                "released" => claim.release().await,
                _ => claim.settle(&record).await.unwrap(),
            }
            if restart {
                store = FileStore::open(dir.path()).unwrap();
            }
            // Chunks of the same layout, one of several of them, and one of another layout.
            for range in [0..10, 10..20, 0..20, 10..30, 0..30, 5..15, 0..29] {
                let at = range.start as u64;
                let same = &content[range.clone()];
                let progress = write(&store, &upload, at, same).await.unwrap();
                assert!(progress.complete, "{range:?}");
                let mut changed = same.to_vec();
                changed[range.len() - 1] ^= 1;
                let written = write(&store, &upload, at, &changed).await;
                if range.start % 10 == 0 && range.end % 10 == 0 {
                    assert_conflict(written, state);
                } else {
                    assert!(written.unwrap().complete, "{range:?}");
                }
            }
            drop(live);
        }
    }
}

/// A chunk that is written in several pieces, of which the last one is a conflict.
#[tokio::test]
async fn a_conflict_at_the_end_stores_nothing() {
    const LEN: usize = 20 << 20;
    let content: Vec<u8> = (0..LEN).map(|n| (n ^ (n >> 9)) as u8).collect();
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    let upload = upload(LEN as u64);
    let stored = LEN - 10..LEN - 5;
    let bytes = &content[stored.clone()];
    write(&store, &upload, stored.start as u64, bytes)
        .await
        .unwrap();
    let mut changed = content.clone();
    changed[LEN - 6] ^= 0x80;
    for at in [0, LEN / 2] {
        let written = write(&store, &upload, at as u64, &changed[at..]).await;
        assert_conflict(written, "when its end differs");
        let expected = [stored.start as u64..stored.end as u64];
        assert_eq!(ranges(&store, &upload).await, expected);
    }
    let written = write(&store, &upload, 0, &content).await.unwrap();
    assert!(written.complete);
    let Claimed::Won(claim) = store.claim(&upload).await.unwrap() else {
        panic!("no claim")
    };
    let path = claim.sealed().stored.path().unwrap();
    assert!(std::fs::read(path).unwrap() == content);
    assert_eq!(claim.sealed().crc32, Some(crc32fast::hash(&content)));
}

/// Two clients send different files of one name and size at the same time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_chunks_of_two_files_are_not_mixed() {
    const LEN: usize = 300_000;
    for round in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let stores = [0, 1].map(|_| FileStore::open(dir.path()).unwrap());
        let upload = upload(LEN as u64);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..4u8 {
            let (store, upload) = (stores[usize::from(n) % 2].clone(), upload.clone());
            tasks.spawn(async move {
                let bytes = vec![n / 2; LEN];
                let written = write(&store, &upload, 0, &bytes).await;
                (n / 2, written)
            });
        }
        let written = tasks.join_all().await;
        let stored: Vec<_> = written
            .iter()
            .filter(|(_, result)| result.is_ok())
            .collect();
        let (first, _) = stored[0];
        for (file, result) in &written {
            match result {
                Ok(_) => assert_eq!(file, first, "round {round}"),
                Err(StoreError::Conflict) => assert_ne!(file, first, "round {round}"),
                Err(error) => panic!("round {round}: {error:?}"),
            }
        }
        let Claimed::Won(claim) = stores[0].claim(&upload).await.unwrap() else {
            panic!("no claim")
        };
        let path = claim.sealed().stored.path().unwrap();
        assert!(
            std::fs::read(path).unwrap() == vec![*first; LEN],
            "round {round}"
        );
    }
}

/// An upload without a length takes any, and one with a length takes a request without one.
#[tokio::test]
async fn only_two_known_lengths_conflict() {
    for (first, second, is_conflict) in [
        (Some(20), Some(21), true),
        (Some(20), None, false),
        (None, Some(20), false),
        (None, None, false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = FileStore::open(dir.path()).unwrap();
        let with = |length| {
            let mut upload = upload(0);
            upload.length = length;
            upload
        };
        write(&store, &with(first), 0, b"0123456789").await.unwrap();
        // A chunk whose body goes on when it has its place, and one that has arrived.
        let frames = stream::iter([Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 40_000])))]);
        let source = pin!(StreamBody::new(frames.chain(stream::pending())));
        let mut body = ChunkBody::new(source, None, u64::MAX);
        let big = with(second);
        let written = store.write(&big, 5, &mut body);
        let written = tokio::time::timeout(Duration::from_secs(5), written).await;
        let short = write(&store, &with(second), 10, b"x").await;
        let created = store.create(&with(second)).await;
        if is_conflict {
            assert_conflict(written.unwrap(), "of a long chunk");
            assert_conflict(short, "of a short chunk");
            assert!(matches!(created, Err(StoreError::Conflict)), "{created:?}");
        } else {
            short.unwrap();
            created.unwrap();
        }
    }
}
