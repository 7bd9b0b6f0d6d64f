//! The store of `examples/sqlite_store.rs`.

#[path = "../../examples/sqlite_store.rs"]
mod sqlite_store;

use std::{fs, path::Path, pin::pin};

use http_body_util::{BodyExt as _, Full};
use tower_resumable::{
    Scope, Upload, UploadId,
    store::{ChunkBody, Claim as _, Claimed, State, Store as _, StoreError, conformance},
};

use self::sqlite_store::SqliteStore;

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("uploads.db")).unwrap();
    conformance::check(&store).await;
}

fn upload(length: u64) -> Upload {
    let scope = Scope::default();
    Upload::new(UploadId::new(&scope, ["a"]), scope, Some(length))
}

async fn write(store: &SqliteStore, upload: &Upload, offset: u64, bytes: &'static [u8]) {
    let source = Full::new(bytes.into()).map_err(|never| match never {});
    let mut source = pin!(source);
    let mut body = ChunkBody::new(source.as_mut(), Some(bytes.len() as u64), 0);
    let written = store.write(upload, offset, &mut body).await;
    written.unwrap();
}

/// A copy of what a process leaves behind if it dies now.
fn crash(path: &Path) -> SqliteStore {
    let copy = path.with_extension("copy");
    for suffix in ["", "-wal"] {
        let named = |path: &Path| format!("{}{suffix}", path.display());
        fs::copy(named(path), named(&copy)).unwrap();
    }
    SqliteStore::open(copy).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_keeps_uploads_and_releases_claims() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uploads.db");
    let store = SqliteStore::open(&path).unwrap();
    let upload = upload(5);
    write(&store, &upload, 0, b"he").await;
    let status = crash(&path).status(&upload.id).await.unwrap().unwrap();
    let State::Receiving(ranges) = status.state else {
        panic!("{status:?}")
    };
    assert_eq!((ranges.prefix(), ranges.total()), (2, 2));

    write(&store, &upload, 2, b"llo").await;
    let Claimed::Won(claim) = store.claim(&upload).await.unwrap() else {
        panic!("not claimed")
    };
    let again = crash(&path);
    let Claimed::Won(next) = again.claim(&upload).await.unwrap() else {
        panic!("not claimed after the crash")
    };
    assert_eq!(next.sealed().id, claim.sealed().id);
    assert_eq!(next.sealed().attempt, 2);
    let content = next.sealed().content().collect().await.unwrap();
    assert_eq!(content.to_bytes(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_released_without_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("uploads.db")).unwrap();
    let upload = upload(0);
    write(&store, &upload, 0, b"").await;
    let Claimed::Won(claim) = store.claim(&upload).await.unwrap() else {
        panic!("not claimed")
    };
    std::thread::spawn(|| drop(claim)).join().unwrap();
    while let Claimed::Busy = store.claim(&upload).await.unwrap() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn the_database_is_locked_by_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("uploads.db");
    let store = SqliteStore::open(&path).unwrap();
    let error = SqliteStore::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Failed(_)), "{error:?}");
    drop(store);
    SqliteStore::open(&path).unwrap();
}

/// Chunks of more than one piece, whole and interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn long_chunks() {
    let dir = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(dir.path().join("uploads.db")).unwrap();
    let content: Vec<u8> = (0..5_000_000_u64).map(|i| ((i * i) >> 7) as u8).collect();
    let upload = upload(5_000_000);
    for (offset, declared, sent, stored) in [
        (3_000_000, 1_500_000, 1_500_000, 1_500_000),
        (0, 5_000_000, 4_800_000, 1_500_000),
        (0, 5_000_000, 5_000_000, 5_000_000),
    ] {
        let bytes = content[offset..offset + sent].to_vec();
        let source = Full::new(bytes.into()).map_err(|never| match never {});
        let mut source = pin!(source);
        let mut body = ChunkBody::new(source.as_mut(), Some(declared), 0);
        let written = store.write(&upload, offset as u64, &mut body).await;
        assert_eq!(written.is_ok(), sent as u64 == declared);
        let status = store.status(&upload.id).await.unwrap().unwrap();
        assert_eq!(status.progress().received, stored);
    }
    let Claimed::Won(claim) = store.claim(&upload).await.unwrap() else {
        panic!("not claimed")
    };
    let read = claim.sealed().content().collect().await.unwrap();
    assert!(read.to_bytes() == content);
    // The file is removed with its upload.
    let stored = claim.sealed().stored.clone();
    claim.release().await;
    assert!(store.remove(&upload.id).await.unwrap());
    let error = stored.read().collect().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::NotFound);
}
