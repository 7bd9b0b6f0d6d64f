use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http_body_util::StreamBody;

use super::{Durability, FileStore, folder::last_seen};
use crate::{
    model::{
        BoxError,
        upload::{Scope, Upload, UploadId},
    },
    store::{ChunkBody, Claim as _, Claimed, Store as _, conformance, disk},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_conform() {
    for durability in [Durability::Power, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        // The canonical path of Windows is of another kind, in which `/` separates nothing.
        let path = match durability {
            Durability::Power => dir.path().to_owned(),
            Durability::Process => dir.path().canonicalize().unwrap(),
        };
        let builder = FileStore::builder(path).with_durability(durability);
        conformance::check(&builder.open().unwrap()).await;
        // Only journals of settled uploads are left.
        for shard in std::fs::read_dir(dir.path().join("partial")).unwrap() {
            for file in std::fs::read_dir(shard.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                assert!(path.extension().is_some_and(|e| e == "journal"), "{path:?}");
            }
        }
    }
}

/// Otherwise a run after a pause would believe that this one was never active, and sweep late.
#[tokio::test]
async fn the_next_run_knows_when_this_one_was_active() {
    let dir = tempfile::tempdir().unwrap();
    let partial = dir.path().join("partial");
    let store = FileStore::open(dir.path()).unwrap();
    let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), Some(1));
    store.create(&upload).await.unwrap();
    let early = SystemTime::now() - 10 * DAY;
    disk::set_dir_modified(&partial.join("clock"), early).unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    store.sweep(&Default::default()).await.unwrap();
    assert!(last_seen(&partial).unwrap() > early);
}

/// The clock of the system jumps ahead while uploads are under way, with or without a restart, and
/// back.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_clock_that_jumps_makes_nothing_old() {
    use std::path::Path;

    use super::simulated::Simulated;
    use crate::store::{Expiry, Record, disk::Disk};

    let open = |dir: &Path, ahead: Duration| {
        let disk = Arc::new(Simulated::new(dir, 1, Vec::new()));
        disk.set_ahead(ahead);
        let mut builder = FileStore::builder(dir);
        builder.disk = Disk {
            simulated: Some(Arc::clone(&disk)),
            ..Disk::default()
        };
        (builder.open().unwrap(), disk)
    };
    // What a layer sweeps that keeps uploads for a week.
    let week = |now: SystemTime| Expiry {
        abandoned_before: Some(now - 7 * DAY),
        undelivered_before: Some(now - 7 * DAY),
        records_before: now,
    };
    for restart in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut disk) = open(dir.path(), Duration::ZERO);
        let upload = |n: u8, length| {
            Upload::new(
                UploadId::from_bytes([n; 32]),
                Scope::default(),
                Some(length),
            )
        };
        let [partial, complete, settled] = [upload(1, 1), upload(2, 0), upload(3, 0)];
        for upload in [&partial, &complete, &settled] {
            store.create(upload).await.unwrap();
        }
        let Claimed::Won(mut claim) = store.claim(&settled).await.unwrap() else {
            panic!("no claim")
        };
        let expires = SystemTime::now() + DAY;
        let record = Record::new(true, http::StatusCode::OK, 0, expires);
        claim.settle(&record).await.unwrap();

        for ahead in [8 * DAY, 80 * DAY, Duration::ZERO, 8 * DAY] {
            if restart {
                (store, disk) = open(dir.path(), ahead);
            }
            disk.set_ahead(ahead);
            let swept = store.sweep(&week(disk.now())).await.unwrap();
            assert_eq!(
                (swept.abandoned, swept.undelivered, swept.records),
                (0, 0, 0),
                "{ahead:?} ahead"
            );
        }
        for upload in [&partial, &complete, &settled] {
            assert!(store.status(&upload.id).await.unwrap().is_some());
        }
        // A limit in the future is for everything.
        let swept = store.sweep(&week(disk.now() + 100 * DAY)).await.unwrap();
        assert_eq!(
            (swept.abandoned, swept.undelivered, swept.records),
            (1, 1, 1)
        );
    }
}

/// A record lives as long as it should, and an upload that is touched meanwhile is not kept for
/// longer, while the clock of the system is ahead and after it was set right.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_clock_that_jumps_keeps_nothing_longer() {
    use super::simulated::Simulated;
    use crate::store::{Expiry, Record, Status, disk::Disk};

    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Simulated::new(dir.path(), 1, Vec::new()));
    let mut builder = FileStore::builder(dir.path());
    builder.disk = Disk {
        simulated: Some(Arc::clone(&disk)),
        ..Disk::default()
    };
    let store = builder.open().unwrap();
    disk.set_ahead(8 * DAY);
    let upload = |n, length| {
        let id = UploadId::from_bytes([n; 32]);
        Upload::new(id, Scope::default(), Some(length))
    };
    for (n, lifetime, is_kept) in [(1, Duration::ZERO, false), (2, DAY, true)] {
        let upload = upload(n, 0);
        store.create(&upload).await.unwrap();
        let Claimed::Won(mut claim) = store.claim(&upload).await.unwrap() else {
            panic!("no claim")
        };
        // As the engine computes it.
        let expires = disk.now() + lifetime;
        let record = Record::new(true, http::StatusCode::OK, 0, expires);
        claim.settle(&record).await.unwrap();
        let found: Option<Status> = store.status(&upload.id).await.unwrap();
        assert_eq!(found.is_some(), is_kept, "{lifetime:?}");
    }
    store.create(&upload(3, 1)).await.unwrap();
    disk.set_ahead(Duration::ZERO);
    let expiry = Expiry {
        abandoned_before: Some(disk.now() + DAY),
        records_before: disk.now() + 2 * DAY,
        ..Expiry::default()
    };
    let swept = store.sweep(&expiry).await.unwrap();
    assert_eq!((swept.abandoned, swept.records), (1, 2));
}

/// Other chunks have all memory, and stall: the chunk is written with little memory.
#[tokio::test]
async fn a_chunk_does_not_wait_for_memory() {
    const LENGTH: usize = 3 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::open(dir.path()).unwrap();
    let content: Bytes = (0..LENGTH).map(|n| (n * 31 % 251) as u8).collect();
    let _others = store.folder.blocks.take_all();
    let upload = Upload::new(
        UploadId::from_bytes([1; 32]),
        Scope::default(),
        Some(LENGTH as u64),
    );
    let frames = (0..LENGTH).step_by(300_000);
    let frames = frames.map(|at| content.slice(at..LENGTH.min(at + 300_000)));
    let frames = frames.map(|bytes| Ok::<_, BoxError>(http_body::Frame::data(bytes)));
    let frames: Vec<_> = frames.collect();
    let body = StreamBody::new(futures_util::stream::iter(frames));
    let mut body = std::pin::pin!(body);
    let mut chunk = ChunkBody::new(body.as_mut(), Some(LENGTH as u64), 0);
    let written = store.write(&upload, 0, &mut chunk);
    let written = tokio::time::timeout(Duration::from_secs(60), written).await;
    assert!(written.expect("it waits").unwrap().complete);
    let Claimed::Won(claim) = store.claim(&upload).await.unwrap() else {
        panic!("no claim")
    };
    let path = claim.sealed().stored.path().unwrap().to_owned();
    assert!(std::fs::read(path).unwrap() == content);
}
