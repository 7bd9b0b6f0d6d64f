//! What the store promises, against a disk that fails and a power that is cut at every call.

use std::{
    collections::BTreeMap, panic::Location as Place, path::Path, pin::pin, sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use super::{
    Durability, FileStore,
    disk::Disk,
    scheduled::Scheduler,
    simulated::{Failure, Luck, Mishap, Simulated},
};
use crate::store::{
    ChunkBody, Expiry, Location, Record, Sealed, Settlement, Status, Store, StoreError, TryClaim,
    Upload, UploadKey,
};

/// Bytes of a chunk: some sectors, and not all of the last one.
const CHUNK: u64 = 1300;

/// How often a client tries; no mishap lasts that long.
const TRIES: usize = 12;

/// What happens to the store: uploads have one-letter names.
const SCRIPT: &[Step] = &[
    Step::Put('a', 2),
    Step::Put('a', 0),
    Step::Put('a', 0),
    // Has no bytes.
    Step::Put('z', 0),
    Step::Deliver('z', Answer::Taken),
    Step::Killed('r', 0),
    Step::Put('r', 0),
    Step::Put('a', 3),
    Step::Restart,
    Step::Put('r', 1),
    Step::Deliver('r', Answer::Refused),
    Step::Put('a', 1),
    Step::Deliver('a', Answer::Failed),
    Step::Restart,
    Step::Put('a', 1),
    Step::Deliver('a', Answer::Taken),
    Step::Put('a', 2),
    Step::Put('c', 1),
    Step::Remove('c'),
    Step::Put('c', 0),
    Step::Put('c', 1),
    // The process dies before the answer.
    Step::Deliver('c', Answer::None),
    Step::Restart,
    Step::Deliver('c', Answer::Taken),
];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// A chunk, by its number from 0.
    Put(char, u64),
    Deliver(char, Answer),
    Remove(char),
    /// The process dies, and another one goes on.
    Restart,
    /// A chunk, and the process dies before its record is synced.
    Killed(char, u64),
}

/// Of the inner service.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Answer {
    Taken,
    Refused,
    Failed,
    None,
}

/// What somebody relies on from now on.
#[derive(Clone, Debug)]
enum Promise {
    /// A step has begun: what it changes may be one way or the other.
    Begun(Step),
    Stored(char, u64),
    /// The inner service was called.
    Called(char, Box<Sealed>),
    Settled(char, Answer),
    Removed(char),
}

fn upload(name: char) -> Upload {
    Upload {
        key: UploadKey::from_bytes([name as u8; 32]),
        scope: String::new(),
        identifier: name.to_string(),
        total: content(name).len() as u64,
        chunk_size: None,
        file_name: Some(format!("{name}.bin")),
        relative_path: None,
        content_type: None,
        fields: Vec::new(),
    }
}

fn content(name: char) -> Vec<u8> {
    let len = match name {
        'a' => 3 * CHUNK + 7,
        'z' => 0,
        _ => CHUNK + 100,
    };
    (0..len).map(|i| name as u8 ^ (i * i / 7) as u8).collect()
}

fn chunks(name: char) -> u64 {
    upload(name).total.div_ceil(CHUNK).max(1)
}

fn chunk(name: char, number: u64) -> (u64, Vec<u8>) {
    let content = content(name);
    let offset = number * CHUNK;
    let end = (offset + CHUNK).min(content.len() as u64);
    (offset, content[offset as usize..end as usize].to_vec())
}

fn record(answer: Answer) -> Record {
    Record {
        delivered: answer == Answer::Taken,
        status: 201,
        headers: vec![("x".into(), vec![0xff])],
        body: Some(Bytes::from(vec![b'x'; 700])),
        size: 9,
        expires: std::time::SystemTime::now() + Duration::from_secs(3600),
    }
}

/// In memory, if there is such a folder: the disk is simulated anyway.
fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// A store on a simulated disk, and what it has promised.
struct World {
    dir: tempfile::TempDir,
    disk: Arc<Simulated>,
    durability: Durability,
    promises: Vec<Promise>,
}

impl World {
    fn new(durability: Durability, mishaps: &[Mishap]) -> Self {
        let dir = tempdir();
        let disk = Arc::new(Simulated::new(dir.path(), 1, mishaps.to_vec()));
        Self {
            dir,
            disk,
            durability,
            promises: Vec::new(),
        }
    }

    fn open(&self) -> Result<FileStore, StoreError> {
        open(self.dir.path(), self.durability, &self.disk)
    }

    fn promise(&mut self, promise: Promise) {
        self.promises.push(promise);
        self.disk.promise();
    }

    /// Goes through the script as a client does that tries again what has failed.
    async fn play(&mut self) -> Result<(), StoreError> {
        let mut store = None;
        for step in SCRIPT {
            self.promise(Promise::Begun(*step));
            let mut tries = 0;
            while let Err(error) = self.step(&mut store, *step).await {
                tries += 1;
                if tries == TRIES {
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    async fn step(&mut self, open: &mut Option<FileStore>, step: Step) -> Result<(), StoreError> {
        if let Step::Restart = step {
            *open = None;
            return Ok(());
        }
        let store = match open {
            Some(store) => store.clone(),
            None => open.insert(self.open()?).clone(),
        };
        match step {
            Step::Restart => {}
            Step::Killed(name, number) => {
                self.disk.leave_out("sync-journal");
                let put = put(&store, name, number).await;
                self.disk.leave_out("");
                put?;
                *open = None;
            }
            Step::Put(name, number) => {
                put(&store, name, number).await?;
                self.promise(Promise::Stored(name, number));
            }
            Step::Remove(name) => {
                store.remove(&upload(name).key).await?;
                self.promise(Promise::Removed(name));
            }
            Step::Deliver(name, answer) => {
                let mut claim = match store.try_claim(&upload(name).key).await? {
                    TryClaim::Won(claim) => claim,
                    // A try before this one has done it, and it seemed to have failed.
                    TryClaim::Settled(_) => return Ok(()),
                    other => return Err(StoreError::new(format!("claim: {other:?}"))),
                };
                let sealed = store.seal(&mut claim, &upload(name)).await?;
                self.promise(Promise::Called(name, Box::new(sealed)));
                let settlement = match answer {
                    Answer::Taken => Settlement::Delivered(record(answer)),
                    Answer::Refused => Settlement::Rejected(record(answer)),
                    Answer::Failed => Settlement::Released,
                    Answer::None => return Ok(()),
                };
                store.settle(&mut claim, &settlement).await?;
                self.promise(Promise::Settled(name, answer));
            }
        }
        Ok(())
    }

    /// What is wrong after a power cut at a moment, if anything is.
    async fn cut(&self, moment: usize, luck: Luck) -> Result<(), String> {
        let dir = tempdir();
        let (disk, promises) = self.disk.cut(moment, luck, dir.path());
        let (disk, promises) = (Arc::new(disk), &self.promises[..promises]);
        let kept = self.durability == Durability::Power || luck == Luck::Everything;
        let store = open(dir.path(), self.durability, &disk)
            .map_err(|error| format!("it cannot be opened: {error:?}"))?;
        let found = check(&store, self.dir.path(), dir.path(), promises, kept).await;
        found.map_err(|what| {
            let last = promises.last();
            format!("power cut at {moment}, {luck:?}, behind {last:?}: {what}")
        })
    }

    /// What is wrong after power cuts at all moments.
    async fn cut_at_each(&self, lucks: &[Luck]) -> Result<(), String> {
        for moment in 0..self.disk.moments() {
            for luck in lucks {
                let luck = match luck {
                    Luck::Random(seed) => Luck::Random(seed * 1000 + moment as u64),
                    luck => *luck,
                };
                self.cut(moment, luck).await?;
            }
        }
        Ok(())
    }
}

fn open(
    dir: &Path,
    durability: Durability,
    disk: &Arc<Simulated>,
) -> Result<FileStore, StoreError> {
    let mut builder = FileStore::builder(dir).durability(durability);
    builder.disk = Disk {
        simulated: Some(Arc::clone(disk)),
        ..Disk::default()
    };
    builder.open()
}

async fn put(store: &FileStore, name: char, number: u64) -> Result<(), StoreError> {
    let (offset, bytes) = chunk(name, number);
    let len = bytes.len() as u64;
    let stream = pin!(futures_util::stream::iter([Ok(Bytes::from(bytes))]));
    let mut body = ChunkBody::new(stream, Some(len), 0);
    store.put(&upload(name), offset, &mut body).await.map(drop)
}

/// Whether all promises are kept, and each upload can be finished.
async fn check(
    store: &FileStore,
    old: &Path,
    new: &Path,
    promises: &[Promise],
    kept: bool,
) -> Result<(), String> {
    for name in ['a', 'z', 'r', 'c'] {
        check_upload(store, name, old, new, promises, kept)
            .await
            .map_err(|what| format!("upload {name}: {what}"))?;
    }
    let failed = |error| format!("{error:?}");
    let waiting = store.undelivered().await.map_err(failed)?;
    if !waiting.is_empty() {
        return Err(format!("still undelivered: {waiting:?}"));
    }
    let mut taken = 0;
    for name in ['a', 'z', 'r', 'c'] {
        match store.status(&upload(name).key).await.map_err(failed)? {
            Status::Settled(record) => taken += usize::from(record.delivered),
            status => return Err(format!("upload {name} is not finished: {status:?}")),
        }
    }
    let files = super::folder::files_below(&new.join("files")).map_err(failed)?;
    if files.len() != taken {
        return Err(format!(
            "{taken} uploads were taken, but there are {files:?}"
        ));
    }
    let later = std::time::SystemTime::now() + Duration::from_secs(10_000);
    let expiry = Expiry {
        abandoned_before: later,
        undelivered_before: None,
        records_before: later,
    };
    store.sweep(expiry).await.map_err(failed)?;
    let rest = store.folder.partial_files().map_err(failed)?;
    match rest.is_empty() {
        true => Ok(()),
        false => Err(format!("left after the sweep: {rest:?}")),
    }
}

async fn check_upload(
    store: &FileStore,
    name: char,
    old: &Path,
    new: &Path,
    promises: &[Promise],
    kept: bool,
) -> Result<(), String> {
    let key = upload(name).key;
    let failed = |error| format!("{error:?}");
    // Since it was removed, if it was.
    let (mut stored, mut maybe_gone) = (Vec::new(), false);
    let (mut maybe_settled, mut maybe_refused) = (false, false);
    let (mut called, mut settled) = (None, None);
    for promise in promises {
        match promise {
            Promise::Stored(of, number) if *of == name => stored.push(*number),
            Promise::Begun(Step::Remove(of)) if *of == name => maybe_gone = true,
            Promise::Begun(Step::Put(of, _)) if *of == name => maybe_gone = false,
            Promise::Removed(of) if *of == name => stored.clear(),
            Promise::Begun(Step::Deliver(of, answer)) if *of == name => {
                maybe_settled |= matches!(answer, Answer::Taken | Answer::Refused);
                maybe_refused |= *answer == Answer::Refused;
            }
            Promise::Called(of, sealed) if *of == name => called = Some(sealed.as_ref()),
            Promise::Settled(of, answer) if *of == name && *answer != Answer::Failed => {
                settled = Some(*answer);
            }
            _ => {}
        }
    }

    // Before the inner service was called its file was on the disk.
    if let (Some(sealed), true, false) = (called, kept, maybe_refused) {
        check_file(sealed, name, old, new)?;
    }
    let status = store.status(&key).await.map_err(failed)?;
    let is_settled = match &status {
        Status::Absent if kept && !maybe_gone && !stored.is_empty() => {
            return Err(format!("it is gone with chunks {stored:?}"));
        }
        Status::Absent => false,
        Status::Receiving(ranges) => {
            let lost = |number: &&u64| {
                let (offset, bytes) = chunk(name, **number);
                !ranges.covers(offset, bytes.len() as u64)
            };
            if let (Some(lost), true) = (stored.iter().find(lost), kept && !maybe_gone) {
                return Err(format!("chunk {lost} is lost"));
            }
            false
        }
        Status::Complete => false,
        Status::Settled(record) => {
            if !maybe_settled {
                return Err(format!("it is settled: {record:?}"));
            }
            true
        }
    };
    if let (Some(answer), true, false) = (settled, kept, is_settled) {
        return Err(format!("its record ({answer:?}) is lost: {status:?}"));
    }
    if !is_settled {
        finish(store, name, called).await?;
    }
    match called {
        Some(sealed) if settled == Some(Answer::Taken) => check_file(sealed, name, old, new),
        _ => Ok(()),
    }
}

/// Whether the file is there that the inner service was told of.
fn check_file(sealed: &Sealed, name: char, old: &Path, new: &Path) -> Result<(), String> {
    let Location::File(path) = &sealed.location else {
        return Err("no file".into());
    };
    let path = new.join(path.strip_prefix(old).map_err(|error| error.to_string())?);
    match std::fs::read(&path) {
        Ok(bytes) if bytes == content(name) => Ok(()),
        Ok(_) => Err(format!("{path:?} has other bytes")),
        Err(error) => Err(format!("{path:?}: {error}")),
    }
}

/// What a client does, and a service.
async fn finish(store: &FileStore, name: char, called: Option<&Sealed>) -> Result<(), String> {
    let failed = |error| format!("it cannot be finished: {error:?}");
    for number in 0..chunks(name) {
        put(store, name, number).await.map_err(failed)?;
    }
    let mut claim = match store.try_claim(&upload(name).key).await.map_err(failed)? {
        TryClaim::Won(claim) => claim,
        other => return Err(format!("it cannot be claimed: {other:?}")),
    };
    let sealed = store.seal(&mut claim, &upload(name)).await;
    let sealed = sealed.map_err(failed)?;
    if let Some(before) = called {
        if before.id != sealed.id || before.attempt >= sealed.attempt {
            return Err(format!("{before:?}, then {sealed:?}"));
        }
    }
    let Location::File(path) = &sealed.location else {
        return Err("no file".into());
    };
    let bytes = std::fs::read(path).map_err(|error| format!("{path:?}: {error}"))?;
    if bytes != content(name) || sealed.crc32 != Some(crc32fast::hash(&bytes)) {
        return Err("it was finished with other bytes".into());
    }
    let settlement = Settlement::Delivered(record(Answer::Taken));
    store.settle(&mut claim, &settlement).await.map_err(failed)
}

const LUCKS: &[Luck] = &[
    Luck::Everything,
    Luck::Nothing,
    Luck::Random(1),
    Luck::Random(2),
    Luck::Random(3),
];

#[tokio::test]
async fn the_power_is_cut_behind_each_call() {
    let mut world = World::new(Durability::Power, &[]);
    world.play().await.unwrap();
    world.cut_at_each(LUCKS).await.unwrap();
}

#[tokio::test]
async fn the_power_is_cut_behind_each_call_without_syncs() {
    let mut world = World::new(Durability::Process, &[]);
    world.play().await.unwrap();
    world.cut_at_each(LUCKS).await.unwrap();
}

const FAILURES: [Failure; 4] = [Failure::Io, Failure::Full, Failure::Torn, Failure::AfterAll];

/// Each call fails, once or a few times in a row; the client tries again, and then the power is cut.
async fn each_call_fails(durability: Durability, how: impl Fn(usize) -> Vec<(Failure, usize)>) {
    for first in 0.. {
        let mut calls = 0;
        for (failure, length) in how(first) {
            let mishap = Mishap::Fail(failure, first..first + length);
            let mut world = World::new(durability, std::slice::from_ref(&mishap));
            let played = world.play().await;
            played.unwrap_or_else(|error| panic!("{mishap:?}: it does not recover: {error:?}"));
            let moments = world.disk.moments();
            for luck in [Luck::Nothing, Luck::Everything, Luck::Random(first as u64)] {
                let found = world.cut(moments - 1, luck).await;
                found.unwrap_or_else(|what| panic!("{mishap:?}: {what}"));
            }
            calls = world.disk.calls();
        }
        if first > calls {
            break;
        }
    }
}

/// One way for each call.
fn some_way(call: usize) -> Vec<(Failure, usize)> {
    vec![(FAILURES[call % 4], [1, 3][call / 4 % 2])]
}

fn every_way(_: usize) -> Vec<(Failure, usize)> {
    FAILURES.iter().flat_map(|f| [(*f, 1), (*f, 3)]).collect()
}

#[tokio::test]
async fn each_call_fails_with_power() {
    each_call_fails(Durability::Power, some_way).await;
}

#[tokio::test]
async fn each_call_fails_with_process() {
    each_call_fails(Durability::Process, some_way).await;
}

#[tokio::test]
#[ignore = "long; run by tests/crash/run"]
async fn each_call_fails_in_every_way() {
    each_call_fails(Durability::Power, every_way).await;
    each_call_fails(Durability::Process, every_way).await;
}

/// A disk that is dead and does not always say so: nothing is promised that is not kept.
#[tokio::test]
async fn the_disk_dies_at_each_call() {
    dies_at_each_call(&[]).await.unwrap();
}

async fn dies_at_each_call(mishaps: &[Mishap]) -> Result<(), String> {
    for call in 0.. {
        let mishaps = [mishaps, &[Mishap::Dead(call)]].concat();
        let mut world = World::new(Durability::Power, &mishaps);
        let survived = world.play().await.is_ok();
        let found = world.cut(world.disk.moments() - 1, Luck::Nothing).await;
        found.map_err(|what| format!("dead at {call}: {what}"))?;
        if survived {
            break;
        }
    }
    Ok(())
}

/// Whether it is found out that the store does something else.
async fn is_found(mishap: Mishap) -> bool {
    let mishaps = &[mishap];
    let mut world = World::new(Durability::Power, mishaps);
    world.play().await.is_err()
        || world.cut_at_each(&[Luck::Nothing]).await.is_err()
        || dies_at_each_call(mishaps).await.is_err()
}

/// A test that cannot fail proves nothing: without any one of its syncs the store breaks a promise.
#[tokio::test]
async fn each_sync_is_needed() {
    let mut vain = Vec::new();
    for place in sync_places().await.into_keys() {
        if !is_found(Mishap::Skip(place)).await {
            vain.push(place);
        }
    }
    assert!(vain.is_empty(), "not needed: {vain:#?}");
}

/// Nor may the sync of a file come after the one that follows it.
#[tokio::test]
async fn the_order_of_syncs_is_needed() {
    let mut vain = Vec::new();
    for (place, of_file) in sync_places().await {
        if of_file && !is_found(Mishap::Late(place)).await {
            vain.push(place);
        }
    }
    assert!(vain.is_empty(), "not needed: {vain:#?}");
}

/// Where in the source the store syncs.
async fn sync_places() -> BTreeMap<&'static Place<'static>, bool> {
    let mut world = World::new(Durability::Power, &[]);
    world.play().await.unwrap();
    world.cut_at_each(&[Luck::Nothing]).await.unwrap();
    world.disk.sync_places()
}

/// There may be many more records than uploads on their way.
#[tokio::test]
async fn what_is_settled_is_passed_over_without_syncs() {
    let mut world = World::new(Durability::Power, &[]);
    let mut store = None;
    for step in [Step::Put('z', 0), Step::Deliver('z', Answer::Taken)] {
        world.step(&mut store, step).await.unwrap();
    }
    let store = world.open().unwrap();
    let calls = world.disk.calls();
    let expiry = |time| Expiry {
        abandoned_before: time,
        undelivered_before: Some(time),
        records_before: time,
    };
    let now = std::time::SystemTime::now();
    assert_eq!(store.undelivered().await.unwrap(), []);
    assert_eq!(store.sweep(expiry(now)).await.unwrap().records, 0);
    assert_eq!(world.disk.calls(), calls);
    let later = now + Duration::from_secs(10_000);
    assert_eq!(store.sweep(expiry(later)).await.unwrap().records, 1);
    assert!(world.disk.calls() > calls);
}

/// Two stores on one folder, which are to each other as two processes, and what they do in an order
/// that the seed gives.
fn scheduled(seed: u64) -> (tempfile::TempDir, [FileStore; 2]) {
    let dir = tempdir();
    let mut disk = Simulated::new(dir.path(), 1, Vec::new());
    disk.scheduler = Some(Scheduler::new(seed));
    let disk = Arc::new(disk);
    let store = || open(dir.path(), Durability::Power, &disk).unwrap();
    let stores = [store(), store()];
    (dir, stores)
}

/// More than the few of each test run: `SEEDS=10000 cargo test --lib scheduled`.
fn seeds() -> std::ops::Range<u64> {
    let seeds = std::env::var("SEEDS").ok().and_then(|n| n.parse().ok());
    0..seeds.unwrap_or(200)
}

/// All chunks of an upload twice, at once, from the first to create it to the last to finish it.
#[tokio::test(start_paused = true)]
async fn scheduled_chunks_are_delivered_once() {
    for seed in seeds() {
        let (_dir, stores) = scheduled(seed);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..2 * chunks('a') {
            let store = stores[number as usize % 2].clone();
            tasks.spawn(async move {
                put(&store, 'a', number / 2).await.unwrap();
                loop {
                    let mut claim = match store.try_claim(&upload('a').key).await.unwrap() {
                        TryClaim::Won(claim) => claim,
                        TryClaim::Busy => continue,
                        TryClaim::Settled(_) | TryClaim::Incomplete => return 0,
                    };
                    let sealed = store.seal(&mut claim, &upload('a')).await.unwrap();
                    assert_eq!(sealed.attempt, 1);
                    let Location::File(path) = sealed.location else {
                        panic!("no file");
                    };
                    assert!(std::fs::read(path).unwrap() == content('a'), "seed {seed}");
                    let settlement = Settlement::Delivered(record(Answer::Taken));
                    store.settle(&mut claim, &settlement).await.unwrap();
                    return 1;
                }
            });
        }
        let deliveries: u32 = tasks.join_all().await.iter().sum();
        assert_eq!(deliveries, 1, "seed {seed}");
    }
}

/// Chunks, cancellation and sweeping at once: what is left is clean, and no mixture.
#[tokio::test(start_paused = true)]
async fn scheduled_chunks_meet_removal() {
    for seed in seeds() {
        let (dir, stores) = scheduled(seed);
        let later = std::time::SystemTime::now() + Duration::from_secs(10_000);
        let everything = Expiry {
            abandoned_before: later,
            undelivered_before: Some(later),
            records_before: later,
        };
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..6 {
            let store = stores[number as usize % 2].clone();
            tasks.spawn(async move {
                match number {
                    0 => drop(store.remove(&upload('c').key).await.unwrap()),
                    1 => drop(store.sweep(everything).await.unwrap()),
                    _ => match put(&store, 'c', number / 2 % 2).await {
                        Ok(()) | Err(StoreError::Superseded) => {}
                        Err(error) => panic!("seed {seed}: {error:?}"),
                    },
                }
            });
        }
        tasks.join_all().await;
        finish(&stores[0], 'c', None)
            .await
            .unwrap_or_else(|what| panic!("seed {seed}: {what}"));
        stores[1].sweep(everything).await.unwrap();
        let rest = stores[1].folder.partial_files().unwrap();
        assert!(rest.is_empty(), "seed {seed}: {rest:?}");
        let files = super::folder::files_below(&dir.path().join("files")).unwrap();
        assert_eq!(files.len(), 1, "seed {seed}: {files:?}");
    }
}
