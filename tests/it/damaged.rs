//! Files of a `FileStore` that were damaged or replaced: the upload begins anew, and no other one
//! is affected.

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;
use tower_resumable::{
    FileStore, Scope, Upload, UploadId,
    store::{
        ChunkBody, Claim as _, Claimed, Expiry, Filter, Record, State, Store as _, StoreError,
    },
};

use crate::common::Told;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

const CONTENT: &[u8] = b"0123456789abcdefghijklmnopqrst";

/// The upload that is damaged, and the other one.
const DAMAGED: u8 = 7;
const OTHER: u8 = 8;

fn upload(byte: u8) -> Upload {
    let id = UploadId::from_bytes([byte; 32]);
    let mut upload = Upload::new(id, Scope::default(), Some(CONTENT.len() as u64));
    upload.file_name = Some("a.txt".into());
    upload
}

async fn write(store: &FileStore, byte: u8, at: usize) -> Result<bool, StoreError> {
    let piece = Bytes::from_static(&CONTENT[at..at + 10]);
    let source = StreamBody::new(stream::iter([Ok::<_, BoxError>(Frame::data(piece))]));
    let source = pin!(source);
    let mut body = ChunkBody::new(source, Some(10), 0);
    let upload = upload(byte);
    let written = store.write(&upload, at as u64, &mut body);
    Ok(written.await?.complete)
}

fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

fn later() -> SystemTime {
    SystemTime::now() + Duration::from_secs(10_000)
}

/// Sends all chunks and delivers the file.
async fn finish(store: &FileStore, byte: u8) -> Result<(), String> {
    let failed = |error: StoreError| format!("{error}: {:?}", std::error::Error::source(&error));
    for at in [20, 0, 10] {
        write(store, byte, at).await.map_err(failed)?;
    }
    match store.claim(&upload(byte)).await.map_err(failed)? {
        Claimed::Won(mut claim) => {
            let path = claim.sealed().stored.path().unwrap().to_owned();
            let found = std::fs::read(&path).map_err(|error| format!("{path:?}: {error}"))?;
            assert_eq!(found, CONTENT);
            let record = Record::new(true, StatusCode::OK, 30, later());
            claim.settle(&record).await.map_err(failed)
        }
        Claimed::Settled(_) => Ok(()),
        claimed => Err(format!("{claimed:?}")),
    }
}

fn shard(root: &Path) -> PathBuf {
    root.join(format!("partial/{DAMAGED:02x}"))
}

/// The file of the damaged upload that has this extension.
fn file(root: &Path, extension: &str) -> PathBuf {
    let files = std::fs::read_dir(shard(root)).unwrap();
    let mut files = files.map(|file| file.unwrap().path());
    let found = files.find(|path| path.extension().is_some_and(|it| it == extension));
    found.unwrap()
}

fn journal(root: &Path) -> PathBuf {
    file(root, "journal")
}

fn data(root: &Path) -> PathBuf {
    file(root, "data")
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

fn replace_by_folder(path: &Path) {
    if path.is_dir() {
        std::fs::remove_dir_all(path).unwrap();
    } else {
        std::fs::remove_file(path).unwrap();
    }
    std::fs::create_dir_all(path.join("sub")).unwrap();
}

#[tokio::test]
async fn a_damaged_upload_begins_anew() {
    type Case = (&'static str, bool, fn(&Path));
    // What is damaged, whether it is set aside, and how it is damaged.
    let cases: [Case; 11] = [
        ("an empty journal", true, |root| {
            std::fs::write(journal(root), "").unwrap();
        }),
        ("the first record", true, |root| {
            change(&journal(root), |bytes| bytes[70] ^= 1);
        }),
        ("the magic", true, |root| {
            change(&journal(root), |bytes| bytes[3] ^= 1);
        }),
        ("random bytes as a journal", true, |root| {
            std::fs::write(journal(root), [0xa5; 5000]).unwrap();
        }),
        ("a folder as a journal", true, |root| {
            replace_by_folder(&journal(root));
        }),
        ("no journal", false, |root| {
            std::fs::remove_file(journal(root)).unwrap();
        }),
        ("shorter data", true, |root| {
            change(&data(root), |bytes| bytes.truncate(15));
        }),
        ("longer data", true, |root| {
            change(&data(root), |bytes| bytes.push(7));
        }),
        ("a folder as data", true, |root| {
            replace_by_folder(&data(root));
        }),
        ("no data", true, |root| {
            std::fs::remove_file(data(root)).unwrap();
        }),
        ("a file as a folder of uploads", true, |root| {
            std::fs::remove_dir_all(shard(root)).unwrap();
            std::fs::write(shard(root), "").unwrap();
        }),
    ];
    for (what, is_set_aside, damage) in cases {
        for is_open in [false, true] {
            for chunks in [&[20, 0][..], &[0, 10, 20]] {
                let dir = tempdir();
                let mut store = FileStore::open(dir.path()).unwrap();
                let told = Told::default();
                for at in chunks {
                    write(&store, DAMAGED, *at).await.unwrap();
                }
                write(&store, OTHER, 0).await.unwrap();
                damage(dir.path());
                if !is_open {
                    store = FileStore::open(dir.path()).unwrap();
                }
                store.observe(told.observer());
                let listed = store.list(&Filter::default(), None).await.unwrap();
                let ids = listed.uploads.iter().map(|listed| listed.upload.id);
                assert!(ids.into_iter().any(|id| id == upload(OTHER).id), "{what}");
                store.usage().await.unwrap();
                store.sweep(&Expiry::default()).await.unwrap();
                finish(&store, OTHER).await.unwrap();
                finish(&store, DAMAGED)
                    .await
                    .unwrap_or_else(|error| panic!("{what}, {chunks:?}: {error}"));
                let told = told.take();
                let told = told.iter().any(|(name, _)| *name == "store_set_aside");
                // A store that has it open goes on with it, or finds that it has lost its name.
                assert!(told || is_open || !is_set_aside, "{what}");

                // What was set aside is swept like an abandoned upload, unless it is a folder.
                let mut everything = Expiry::default();
                everything.abandoned_before = Some(later());
                everything.records_before = later() + Duration::from_secs(1);
                // A store that has a journal open need not read it.
                let store = FileStore::open(dir.path()).unwrap();
                store.sweep(&everything).await.unwrap();
                let mut left = Vec::new();
                for dir in std::fs::read_dir(dir.path().join("partial")).unwrap() {
                    let dir = dir.unwrap().path();
                    if dir.is_dir() {
                        let files = std::fs::read_dir(dir).unwrap();
                        left.extend(files.map(|file| file.unwrap().path()));
                    } else {
                        left.push(dir);
                    }
                }
                left.retain(|path| path.is_file());
                assert_eq!(left, Vec::<PathBuf>::new(), "{what}");
            }
        }
    }
}

/// A long chunk of an upload that is open is written without a look at its file first.
#[tokio::test]
async fn a_file_that_is_changed_while_it_is_open_is_not_delivered() {
    const CHUNK: usize = 1 << 20;
    let content: Vec<u8> = (0..3 * CHUNK).map(|n| (n * 31 % 251) as u8).collect();
    let write = async |store: &FileStore, byte: u8, at: usize| {
        let pieces = content[at..at + CHUNK].chunks(100_000);
        let pieces = pieces.map(|piece| Ok::<_, BoxError>(Frame::data(piece.to_vec().into())));
        let source = StreamBody::new(stream::iter(pieces.collect::<Vec<_>>()));
        let source = pin!(source);
        let mut body = ChunkBody::new(source, Some(CHUNK as u64), 0);
        let id = UploadId::from_bytes([byte; 32]);
        let upload = Upload::new(id, Scope::default(), Some(content.len() as u64));
        let written = store.write(&upload, at as u64, &mut body).await;
        written.map(|progress| (progress.complete, upload))
    };
    type Change = fn(&Path);
    let cases: [(&str, Change); 3] = [
        ("truncated", |data| std::fs::write(data, "").unwrap()),
        ("removed", |data| std::fs::remove_file(data).unwrap()),
        ("replaced", |data| {
            std::fs::remove_file(data).unwrap();
            std::fs::write(data, vec![7; CHUNK]).unwrap();
        }),
    ];
    for (what, change) in cases {
        let dir = tempdir();
        let store = FileStore::open(dir.path()).unwrap();
        write(&store, DAMAGED, 0).await.unwrap();
        change(&data(dir.path()));
        let refused = write(&store, DAMAGED, 2 * CHUNK).await;
        assert!(
            matches!(refused, Err(StoreError::Superseded)),
            "{what}: {refused:?}"
        );
        let told = Told::default();
        store.observe(told.observer());
        let mut last = None;
        for at in [2 * CHUNK, CHUNK, 0] {
            last = Some(write(&store, DAMAGED, at).await.unwrap());
        }
        assert_eq!(told.take()[0].0, "store_set_aside", "{what}");
        let (complete, upload) = last.unwrap();
        assert!(complete, "{what}");
        let Claimed::Won(claim) = store.claim(&upload).await.unwrap() else {
            panic!("no claim")
        };
        let found = std::fs::read(claim.sealed().stored.path().unwrap()).unwrap();
        assert!(found == content, "{what}");
    }
}

/// A journal is that of the upload in its name, or of none.
#[tokio::test]
async fn a_journal_with_the_name_of_another_upload_is_set_aside() {
    for (is_settled, is_link) in [(false, false), (false, true), (true, false), (true, true)] {
        let dir = tempdir();
        let store = FileStore::open(dir.path()).unwrap();
        for byte in [DAMAGED, OTHER] {
            if is_settled {
                finish(&store, byte).await.unwrap();
            } else {
                write(&store, byte, 10).await.unwrap();
            }
        }
        let end = if is_settled { ".settled" } else { "" };
        let path = |byte: u8| {
            let id = upload(byte).id;
            let shard = format!("partial/{byte:02x}{end}");
            dir.path().join(shard).join(format!("{id}.journal"))
        };
        std::fs::remove_file(path(DAMAGED)).unwrap();
        if is_link {
            std::fs::hard_link(path(OTHER), path(DAMAGED)).unwrap();
        } else {
            std::fs::copy(path(OTHER), path(DAMAGED)).unwrap();
        }
        let store = FileStore::open(dir.path()).unwrap();
        let told = Told::default();
        store.observe(told.observer());
        let status = store.status(&upload(DAMAGED).id).await.unwrap();
        assert!(status.is_none(), "{status:?}");
        assert_eq!(told.take()[0].0, "store_set_aside");
        let status = store.status(&upload(OTHER).id).await.unwrap().unwrap();
        assert_eq!(status.upload.id, upload(OTHER).id);
        finish(&store, DAMAGED).await.unwrap();
        finish(&store, OTHER).await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_later_record_loses_its_chunk_only() {
    let dir = tempdir();
    let store = FileStore::open(dir.path()).unwrap();
    for at in [0, 20] {
        write(&store, DAMAGED, at).await.unwrap();
    }
    change(&journal(dir.path()), |bytes| {
        let last = bytes.iter().rposition(|byte| *byte != 0).unwrap();
        bytes[last] ^= 1;
    });
    let store = FileStore::open(dir.path()).unwrap();
    match store
        .status(&upload(DAMAGED).id)
        .await
        .unwrap()
        .unwrap()
        .state
    {
        State::Receiving(ranges) => assert_eq!(ranges.iter().collect::<Vec<_>>(), [0..10]),
        state => panic!("{state:?}"),
    }
    finish(&store, DAMAGED).await.unwrap();
}

/// What cannot be read may be readable later, or by another version: it stays where it is.
#[cfg(unix)]
#[tokio::test]
async fn what_cannot_be_read_is_passed_over() {
    use std::os::unix::fs::symlink;
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 4] = [
        ("a link as a journal", |root| {
            let journal = journal(root);
            let moved = root.join("moved");
            std::fs::rename(&journal, &moved).unwrap();
            symlink(moved, journal).unwrap();
        }),
        ("a journal of another version", |root| {
            change(&journal(root), |bytes| bytes[3] = b'4');
        }),
        ("a link as a folder of uploads", |root| {
            let moved = root.join("moved");
            std::fs::rename(shard(root), &moved).unwrap();
            symlink(moved, shard(root)).unwrap();
        }),
        ("a link that leads to itself", |root| {
            std::fs::remove_dir_all(shard(root)).unwrap();
            symlink(shard(root), shard(root)).unwrap();
        }),
    ];
    for (what, damage) in cases {
        let dir = tempdir();
        let store = FileStore::open(dir.path()).unwrap();
        for byte in [DAMAGED, OTHER] {
            write(&store, byte, 0).await.unwrap();
        }
        damage(dir.path());
        let store = FileStore::open(dir.path()).unwrap();
        let told = Told::default();
        store.observe(told.observer());
        for filter in [Filter::default(), Filter::complete()] {
            let listed = store.list(&filter, None).await.unwrap();
            assert_eq!(
                listed.uploads.len(),
                usize::from(!filter.complete),
                "{what}"
            );
            assert!(told.take()[0].0 == "store_skipped", "{what}");
        }
        assert_eq!(store.usage().await.unwrap().len(), 1, "{what}");
        store.sweep(&Expiry::default()).await.unwrap();
        assert!(told.take()[0].0 == "store_skipped", "{what}");
        finish(&store, OTHER).await.unwrap();
        finish(&store, 9).await.unwrap();
        let failed = write(&store, DAMAGED, 10).await;
        assert!(
            matches!(failed, Err(StoreError::Failed(_))),
            "{what}: {failed:?}"
        );
        let told = told.take();
        assert!(
            !told.iter().any(|(name, _)| *name == "store_set_aside"),
            "{told:?}"
        );
    }
}

/// The state of the upload when it is damaged.
#[derive(Clone, Copy, Debug)]
enum Stage {
    Parts,
    Complete,
    Sealed,
    Delivered,
    Rejected,
}

async fn prepare(root: &Path, stage: Stage) {
    let store = FileStore::open(root).unwrap();
    write(&store, OTHER, 0).await.unwrap();
    let chunks = if let Stage::Parts = stage { 2 } else { 3 };
    for at in &[0, 20, 10][..chunks] {
        write(&store, DAMAGED, *at).await.unwrap();
    }
    if let Stage::Parts | Stage::Complete = stage {
        return;
    }
    let Claimed::Won(mut claim) = store.claim(&upload(DAMAGED)).await.unwrap() else {
        panic!("no claim")
    };
    if let Stage::Delivered | Stage::Rejected = stage {
        let delivered = matches!(stage, Stage::Delivered);
        let record = Record::new(delivered, StatusCode::OK, 30, later());
        claim.settle(&record).await.unwrap();
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end.max(1) as u64) as usize
    }
}

/// Damages the journal, or the length of the data. Those of a sealed upload are the finished file,
/// which the application may change.
fn damage_at_random(root: &Path, stage: Stage, random: &mut Random) {
    let mut files = Vec::new();
    for shard in [shard(root), shard(root).with_extension("settled")] {
        let found = std::fs::read_dir(shard).into_iter().flatten();
        files.extend(found.map(|file| file.unwrap().path()));
    }
    let is_data = |path: &PathBuf| path.extension().is_some_and(|it| it == "data");
    let is_sealed = !matches!(stage, Stage::Parts | Stage::Complete);
    files.retain(|path| !is_sealed || !is_data(path));
    let path = &files[random.below(files.len())];
    let is_data = is_data(path);
    change(path, |bytes| {
        let used = bytes
            .iter()
            .rposition(|byte| *byte != 0)
            .map_or(0, |last| last + 1);
        match random.below(if is_data { 2 } else { 6 }) {
            0 => bytes.truncate(random.below(bytes.len() + 1)),
            1 => bytes.resize(bytes.len() + random.below(5000), random.below(256) as u8),
            2 => {
                for _ in 0..=random.below(8) {
                    bytes[random.below(used)] ^= 1 << random.below(8);
                }
            }
            3 => {
                let at = random.below(used);
                for byte in &mut bytes[at..(at + 512).min(used)] {
                    *byte = random.below(256) as u8;
                }
            }
            4 => {
                let slots = used / 64;
                let (from, to) = (random.below(slots) * 64, random.below(slots) * 64);
                bytes.copy_within(from..from + 64, to);
            }
            _ => bytes.fill(0),
        }
    });
}

/// More than the few of each test run: `DAMAGES=20000 cargo test --test it damaged`.
#[tokio::test]
async fn after_any_damage_the_upload_can_be_finished() {
    let damages = std::env::var("DAMAGES").ok().and_then(|n| n.parse().ok());
    let mut random = Random(1);
    for n in 0..damages.unwrap_or(1000) {
        let stage = [
            Stage::Parts,
            Stage::Complete,
            Stage::Sealed,
            Stage::Delivered,
            Stage::Rejected,
        ][n % 5];
        let dir = tempdir();
        prepare(dir.path(), stage).await;
        damage_at_random(dir.path(), stage, &mut random);
        let store = FileStore::open(dir.path()).unwrap();
        let others = store.list(&Filter::default(), None).await.unwrap();
        let ids = others.uploads.iter().map(|listed| listed.upload.id);
        assert!(ids.into_iter().any(|id| id == upload(OTHER).id));
        if random.below(2) == 0 {
            store.sweep(&Expiry::default()).await.unwrap();
        }
        finish(&store, DAMAGED)
            .await
            .unwrap_or_else(|error| panic!("damage {n}, {stage:?}: {error}"));
        finish(&store, OTHER).await.unwrap();
    }
}
