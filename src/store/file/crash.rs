//! Checks the promises of the store with a disk that fails, and with a power cut after every call.

use std::{
    collections::BTreeMap, panic::Location as Place, path::Path, pin::pin, sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{HeaderValue, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;

use super::{
    Durability, FileClaim, FileStore,
    scheduled::Scheduler,
    simulated::{Failure, Luck, Mishap, Simulated},
};
use crate::{
    model::{
        BoxError,
        upload::{Scope, Upload, UploadId},
    },
    store::{
        Append, BodyError, ChunkBody, Claim as _, Claimed, Expiry, Filter, Record, Sealed, State,
        Store, StoreError, disk::Disk,
    },
};

/// Bytes of a chunk: some sectors, and not all of the last one.
const CHUNK: u64 = 1300;

/// How often a client tries. No failure lasts that long.
const TRIES: usize = 12;

/// What happens to a store.
struct Script {
    /// The uploads, which have one-letter names.
    names: &'static [char],
    steps: &'static [Step],
}

/// Short scripts take less time than a long one, because faults are tried at each call.
const SCRIPTS: [&Script; 3] = [
    &Script {
        names: &['w', 'v', 'y'],
        steps: WHOLE,
    },
    &Script {
        names: &['a', 'z', 'r', 'c', 'e', 'm'],
        steps: CHUNKS,
    },
    &Script {
        // `j` is made of `u`, which is finished after it.
        names: &['t', 'j', 'u'],
        steps: APPENDS,
    },
];

const CHUNKS: &[Step] = &[
    Step::Write('a', 2),
    Step::Write('a', 0),
    Step::Write('a', 0),
    // Has no bytes.
    Step::Write('z', 0),
    Step::Deliver('z', Answer::Taken),
    Step::Killed('r', 0),
    Step::Write('r', 0),
    Step::Create('e'),
    Step::Write('a', 3),
    Step::Restart,
    Step::Write('r', 1),
    Step::Deliver('r', Answer::Rejected),
    Step::Write('a', 1),
    Step::Deliver('a', Answer::Failed),
    Step::Restart,
    Step::Write('a', 1),
    Step::Deliver('a', Answer::Taken),
    Step::Write('a', 2),
    Step::Write('c', 1),
    Step::Remove('c'),
    Step::Write('c', 0),
    Step::Write('c', 1),
    // The process dies before the answer.
    Step::Deliver('c', Answer::None),
    Step::Restart,
    Step::Create('e'),
    Step::Deliver('c', Answer::Taken),
    Step::Restart,
    // A late chunk, which opens the record.
    Step::Write('c', 0),
    Step::Write('m', 0),
    Step::Write('m', 1),
    Step::Deliver('m', Answer::Moved),
    Step::Restart,
    Step::Deliver('m', Answer::Moved),
    Step::Deliver('m', Answer::Taken),
];

const WHOLE: &[Step] = &[
    Step::Whole('w', Answer::Taken),
    // The process dies before the answer.
    Step::Whole('v', Answer::None),
    Step::Restart,
    Step::Whole('y', Answer::Rejected),
    Step::Deliver('v', Answer::Taken),
];

const APPENDS: &[Step] = &[
    Step::Open('t'),
    Step::Fenced('t'),
    Step::Add('t', Some(0)),
    Step::Restart,
    Step::Add('t', Some(17_500)),
    Step::Restart,
    Step::Add('t', Some(200)),
    Step::Add('t', None),
    Step::Deliver('t', Answer::Taken),
    Step::Open('u'),
    Step::Add('u', None),
    Step::Restart,
    Step::Join,
    Step::Join,
    Step::Deliver('j', Answer::Taken),
];

#[derive(Clone, Copy, Debug)]
enum Step {
    Create(char),
    /// A chunk, by its number from 0.
    Write(char, u64),
    Deliver(char, Answer),
    /// All bytes at once, and the delivery.
    Whole(char, Answer),
    /// An upload without a length.
    Open(char),
    /// An append, which brings the length: of this many bytes, after which the body fails, or of
    /// the rest.
    Add(char, Option<u64>),
    /// An append of other bytes, which another process ends before they are recorded.
    Fenced(char),
    /// The concatenation of `u` and `u`.
    Join,
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
    Rejected,
    Failed,
    /// It has moved the file, and then it failed.
    Moved,
    None,
}

/// What has to be true from now on.
#[derive(Clone, Debug)]
enum Promise {
    /// A step has started. What it changes is in either state.
    Begun(Step),
    Created(char),
    Stored(char, u64),
    /// This many bytes from the first one.
    Prefix(char, u64),
    /// The inner service was called.
    Called(char, Box<Sealed>),
    Settled(char, Answer),
    Removed(char),
}

fn upload(name: char) -> Upload {
    let length = content(name).len() as u64;
    let mut upload = Upload::new(id(name), Scope::default(), Some(length));
    upload.identifier = name.to_string();
    upload.file_name = Some(format!("{name}.bin"));
    upload
}

fn id(name: char) -> UploadId {
    UploadId::from_bytes([name as u8; 32])
}

fn content(name: char) -> Vec<u8> {
    let len = match name {
        'a' => 3 * CHUNK + 7,
        'z' => 0,
        // Longer than what is committed at once.
        't' => 18_000,
        'j' => return content('u').repeat(2),
        _ => CHUNK + 100,
    };
    (0..len).map(|i| name as u8 ^ (i * i / 7) as u8).collect()
}

fn chunks(name: char) -> u64 {
    let len = content(name).len() as u64;
    len.div_ceil(CHUNK).max(1)
}

fn chunk(name: char, number: u64) -> (u64, Vec<u8>) {
    let content = content(name);
    let offset = number * CHUNK;
    let end = (offset + CHUNK).min(content.len() as u64);
    (offset, content[offset as usize..end as usize].to_vec())
}

fn record(answer: Answer) -> Record {
    let expires = std::time::SystemTime::now() + Duration::from_secs(3600);
    let mut record = Record::new(answer == Answer::Taken, StatusCode::CREATED, 9, expires);
    let value = HeaderValue::from_bytes(&[0xff]).unwrap();
    record.headers.append("x", value);
    record.body = Some(Bytes::from(vec![b'x'; 700]));
    record
}

/// In memory, if there is such a folder: the disk is simulated anyway.
fn tempdir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// A store on a simulated disk, and what it has promised.
struct World {
    script: &'static Script,
    dir: tempfile::TempDir,
    disk: Arc<Simulated>,
    durability: Durability,
    promises: Vec<Promise>,
    /// The application only reads its files.
    moves_nothing: bool,
}

impl World {
    fn new(script: &'static Script, durability: Durability, mishaps: &[Mishap]) -> Self {
        let dir = tempdir();
        let disk = Arc::new(Simulated::new(dir.path(), 1, mishaps.to_vec()));
        Self {
            script,
            dir,
            disk,
            durability,
            promises: Vec::new(),
            moves_nothing: false,
        }
    }

    fn open(&self) -> Result<FileStore, StoreError> {
        open(self.dir.path(), self.durability, &self.disk)
    }

    fn promise(&mut self, promise: Promise) {
        self.promises.push(promise);
        self.disk.promise();
    }

    /// Runs the script like a client that repeats failed steps.
    async fn play(&mut self) -> Result<(), StoreError> {
        let mut store = None;
        for step in self.script.steps {
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
                let written = write(&store, name, number).await;
                self.disk.leave_out("");
                written?;
                *open = None;
            }
            Step::Create(name) => {
                store.create(&upload(name)).await?;
                self.promise(Promise::Created(name));
            }
            Step::Write(name, number) => {
                write(&store, name, number).await?;
                self.promise(Promise::Stored(name, number));
            }
            Step::Open(name) => {
                store.create(&without_length(name)).await?;
                self.promise(Promise::Created(name));
            }
            Step::Add(name, len) => {
                let start = told(&store, name).await?;
                self.promise(Promise::Prefix(name, start));
                let end = add(&store, name, start, len).await?;
                self.promise(Promise::Prefix(name, end));
            }
            Step::Fenced(name) => {
                let start = told(&store, name).await?;
                let other = self.open()?;
                let other_ends_it = stream::once(async move {
                    other.interrupt(&id(name)).await?;
                    // More than the file has.
                    Ok::<_, BoxError>(Frame::data(Bytes::from(vec![7; 20_000])))
                });
                let source = pin!(StreamBody::new(other_ends_it));
                let mut body = ChunkBody::new(source, None, u64::MAX);
                let append = Append::at(start);
                match store.append(&without_length(name), append, &mut body).await {
                    Err(StoreError::Superseded) => {}
                    result => return Err(StoreError::new(format!("not ended: {result:?}"))),
                }
            }
            Step::Join => {
                join(&store).await?;
                self.promise(Promise::Prefix('j', content('j').len() as u64));
            }
            Step::Remove(name) => {
                store.remove(&id(name)).await?;
                self.promise(Promise::Removed(name));
            }
            Step::Deliver(name, answer) | Step::Whole(name, answer) => {
                let mut claim = None;
                if let Step::Whole(..) = step {
                    claim = write_whole(&store, name).await?;
                    for number in 0..chunks(name) {
                        self.promise(Promise::Stored(name, number));
                    }
                }
                let mut claim = match claim {
                    Some(claim) => claim,
                    None => match store.claim(&upload(name)).await? {
                        Claimed::Won(claim) => claim,
                        // A try before this one has done it, and seemed to have failed.
                        Claimed::Settled(_) => return Ok(()),
                        other => return Err(StoreError::new(format!("claim: {other:?}"))),
                    },
                };
                let sealed = Box::new(claim.sealed().clone());
                self.promise(Promise::Called(name, sealed));
                match answer {
                    Answer::Taken | Answer::Rejected => claim.settle(&record(answer)).await?,
                    Answer::Failed => claim.release().await,
                    Answer::Moved if self.moves_nothing => claim.release().await,
                    Answer::Moved => {
                        let sealed = claim.sealed();
                        let target = self.dir.path().join(format!("moved-{}", sealed.attempt));
                        let from = sealed.stored.path().ok_or("no file");
                        let from = from.map_err(StoreError::new)?;
                        store.folder.disk.rename_new(from, &target)?;
                        claim.release().await;
                    }
                    Answer::None => return Ok(()),
                }
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
        let (names, old) = (self.script.names, self.dir.path());
        let found = check(&store, names, old, dir.path(), promises, kept).await;
        found.map_err(|what| {
            let last = promises.last();
            format!("power cut at {moment}, {luck:?}, behind {last:?}: {what}")
        })
    }

    /// What is wrong after power cuts at all moments.
    async fn cut_at_each(&self, lucks: &[Luck]) -> Result<(), String> {
        for moment in spread(self.disk.moments()) {
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
    let mut builder = FileStore::builder(dir).with_durability(durability);
    builder.disk = Disk {
        simulated: Some(Arc::clone(disk)),
        ..Disk::default()
    };
    builder.open()
}

async fn write(store: &FileStore, name: char, number: u64) -> Result<(), StoreError> {
    let (offset, bytes) = chunk(name, number);
    let len = bytes.len() as u64;
    let frames = [Ok::<_, BoxError>(Frame::data(Bytes::from(bytes)))];
    let source = pin!(StreamBody::new(stream::iter(frames)));
    let mut body = ChunkBody::new(source, Some(len), 0);
    let upload = upload(name);
    let written = store.write(&upload, offset, &mut body);
    written.await.map(drop)
}

/// Stores all bytes of an upload at once.
async fn write_whole(store: &FileStore, name: char) -> Result<Option<FileClaim>, StoreError> {
    let bytes = content(name);
    let len = bytes.len() as u64;
    let frames = [Ok::<_, BoxError>(Frame::data(Bytes::from(bytes)))];
    let source = pin!(StreamBody::new(stream::iter(frames)));
    let mut body = ChunkBody::new(source, Some(len), 0);
    let upload = upload(name);
    let (progress, claim) = store.write_and_claim(&upload, 0, &mut body).await?;
    assert!(progress.complete, "{progress:?}");
    Ok(claim)
}

fn without_length(name: char) -> Upload {
    Upload {
        length: None,
        ..upload(name)
    }
}

/// How many bytes are stored, and stay.
async fn told(store: &FileStore, name: char) -> Result<u64, StoreError> {
    let status = store.interrupt(&id(name)).await?;
    Ok(status.ok_or(StoreError::Superseded)?.prefix())
}

/// Appends `len` bytes, after which the body fails, or the rest. Returns where they end.
async fn add(
    store: &FileStore,
    name: char,
    start: u64,
    len: Option<u64>,
) -> Result<u64, StoreError> {
    let content = content(name);
    let end = len.map_or(content.len(), |len| {
        content.len().min((start + len) as usize)
    });
    let bytes = content[start as usize..end].chunks(17_000);
    let bytes = bytes.map(|bytes| Ok(Frame::data(Bytes::copy_from_slice(bytes))));
    let failure = len.map(|_| Err(BoxError::from("the client is gone")));
    let frames = bytes.chain(failure).collect::<Vec<_>>();
    let frames = stream::iter(frames.into_iter().enumerate()).then(async |(n, frame)| {
        if n > 0 {
            // What has arrived is written first.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        frame
    });
    let source = pin!(StreamBody::new(frames));
    let mut body = ChunkBody::new(source, None, u64::MAX);
    let append = Append::at(start);
    match store.append(&upload(name), append, &mut body).await {
        Err(StoreError::Body(BodyError::Failed(_))) if len.is_some() => Ok(end as u64),
        Ok(progress) if progress.complete && len.is_none() => Ok(end as u64),
        Err(error) => Err(error),
        Ok(progress) => Err(StoreError::new(format!("{progress:?} after {end} bytes"))),
    }
}

async fn join(store: &FileStore) -> Result<(), StoreError> {
    let parts = [id('u'); 2];
    let progress = store.concat(&without_length('j'), &parts).await?;
    assert!(progress.complete, "{progress:?}");
    Ok(())
}

/// Whether all promises are kept, and each upload can be finished.
async fn check(
    store: &FileStore,
    names: &[char],
    old: &Path,
    new: &Path,
    promises: &[Promise],
    kept: bool,
) -> Result<(), String> {
    for &name in names {
        check_upload(store, name, old, new, promises, kept)
            .await
            .map_err(|what| format!("upload {name}: {what}"))?;
    }
    let failed = |error| format!("{error:?}");
    for filter in [Filter::complete(), Filter::default()] {
        let page = store.list(&filter, None).await.map_err(failed)?;
        if !page.uploads.is_empty() || page.next.is_some() {
            return Err(format!("not settled: {page:?}"));
        }
    }
    let mut taken = 0;
    for &name in names {
        let status = store.status(&id(name)).await.map_err(failed)?;
        match status.as_ref().map(|status| &status.state) {
            Some(State::Settled(record)) => taken += usize::from(record.delivered),
            _ => return Err(format!("upload {name} is not finished: {status:?}")),
        }
    }
    let files = files_below(&new.join("files"));
    if files.len() != taken {
        return Err(format!(
            "{taken} uploads were taken, but there are {files:?}"
        ));
    }
    let later = std::time::SystemTime::now() + Duration::from_secs(10_000);
    let expiry = Expiry {
        abandoned_before: Some(later),
        undelivered_before: None,
        records_before: later,
    };
    store.sweep(&expiry).await.map_err(failed)?;
    let rest = files_below(&store.folder.partial);
    if !rest.is_empty() {
        return Err(format!("left after the sweep: {rest:?}"));
    }
    Ok(())
}

async fn check_upload(
    store: &FileStore,
    name: char,
    old: &Path,
    new: &Path,
    promises: &[Promise],
    kept: bool,
) -> Result<(), String> {
    let failed = |error| format!("{error:?}");
    // What is stored since the upload was removed, if it was.
    let (mut created, mut stored, mut prefix) = (false, Vec::new(), 0);
    let mut maybe_gone = false;
    let (mut maybe_settled, mut maybe_rejected) = (false, false);
    let (mut called, mut settled) = (None, None);
    let (mut moving, mut maybe_moved) = (false, false);
    for promise in promises {
        match promise {
            Promise::Created(of) if *of == name => created = true,
            Promise::Stored(of, number) if *of == name => stored.push(*number),
            Promise::Prefix(of, end) if *of == name => prefix = *end,
            Promise::Begun(Step::Remove(of)) if *of == name => maybe_gone = true,
            Promise::Begun(Step::Write(of, _)) if *of == name => maybe_gone = false,
            Promise::Removed(of) if *of == name => stored.clear(),
            Promise::Begun(Step::Deliver(of, answer) | Step::Whole(of, answer)) if *of == name => {
                maybe_settled |= matches!(answer, Answer::Taken | Answer::Rejected);
                maybe_rejected |= *answer == Answer::Rejected;
                moving = *answer == Answer::Moved;
                maybe_moved |= moving;
            }
            Promise::Called(of, sealed) if *of == name => {
                called = Some(sealed.as_ref());
                maybe_moved = moving;
            }
            Promise::Settled(of, answer @ (Answer::Taken | Answer::Rejected)) if *of == name => {
                settled = Some(*answer);
            }
            _ => {}
        }
    }

    // Before the inner service was called its file was on the disk.
    let maybe_gone_file = maybe_rejected || maybe_moved;
    if let (Some(sealed), true, false) = (called, kept, maybe_gone_file) {
        check_file(sealed, name, old, new)?;
    }
    let promised = kept && !maybe_gone;
    let status = store.status(&id(name)).await.map_err(failed)?;
    let is_settled = match status.as_ref().map(|status| &status.state) {
        None if promised && (created || prefix > 0 || !stored.is_empty()) => {
            return Err(format!("it is gone with chunks {stored:?}"));
        }
        None => false,
        Some(State::Receiving(ranges)) => {
            let lost = |number: &&u64| {
                let (offset, bytes) = chunk(name, **number);
                !ranges.covers(offset, bytes.len() as u64)
            };
            if let (Some(lost), true) = (stored.iter().find(lost), promised) {
                return Err(format!("chunk {lost} is lost"));
            }
            if promised && ranges.prefix() < prefix {
                return Err(format!("{prefix} bytes became {ranges:?}"));
            }
            false
        }
        Some(State::Complete) => false,
        Some(State::Settled(record)) => {
            if !maybe_settled {
                return Err(format!("it is settled: {record:?}"));
            }
            true
        }
    };
    if let Some(status) = &status {
        // An append brings it.
        let length = status.upload.length;
        if status.upload
            != (Upload {
                length,
                ..upload(name)
            })
        {
            return Err(format!("it became another upload: {status:?}"));
        }
    }
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

/// Whether the file exists that the inner service got.
fn check_file(sealed: &Sealed, name: char, old: &Path, new: &Path) -> Result<(), String> {
    let path = sealed.stored.path().ok_or("no file")?;
    let path = new.join(path.strip_prefix(old).map_err(|error| error.to_string())?);
    match std::fs::read(&path) {
        Ok(bytes) if bytes == content(name) => Ok(()),
        Ok(_) => Err(format!("{path:?} has other bytes")),
        Err(error) => Err(format!("{path:?}: {error}")),
    }
}

/// The steps of a client and of a service.
async fn finish(store: &FileStore, name: char, called: Option<&Sealed>) -> Result<(), String> {
    let failed = |error| format!("it cannot be finished: {error:?}");
    let appended = match name {
        't' | 'u' => Some(name),
        'j' => Some('u'),
        _ => None,
    };
    if let Some(appended) = appended {
        let upload = without_length(appended);
        store.create(&upload).await.map_err(failed)?;
        let start = told(store, appended).await.map_err(failed)?;
        add(store, appended, start, None).await.map_err(failed)?;
    }
    if name == 'j' {
        join(store).await.map_err(failed)?;
    } else if appended.is_none() {
        for number in 0..chunks(name) {
            write(store, name, number).await.map_err(failed)?;
        }
    }
    let mut claim = match store.claim(&upload(name)).await.map_err(failed)? {
        Claimed::Won(claim) => claim,
        other => return Err(format!("it cannot be claimed: {other:?}")),
    };
    let sealed = claim.sealed();
    if let Some(before) = called {
        if before.id != sealed.id || before.attempt >= sealed.attempt {
            return Err(format!("{before:?}, then {sealed:?}"));
        }
    }
    let path = sealed.stored.path().ok_or("no file")?;
    let bytes = std::fs::read(path).map_err(|error| format!("{path:?}: {error}"))?;
    if bytes != content(name) || sealed.crc32 != Some(crc32fast::hash(&bytes)) {
        return Err("it was finished with other bytes".into());
    }
    claim.settle(&record(Answer::Taken)).await.map_err(failed)
}

/// The files in the folders of a folder.
fn files_below(dir: &Path) -> Vec<std::path::PathBuf> {
    let paths = |dir: &Path| {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|entry| entry.unwrap().path())
    };
    let dirs = paths(dir).filter(|path| path.is_dir());
    dirs.flat_map(|dir| paths(&dir)).collect()
}

/// A test that is ignored tries many more random ones.
const LUCKS: &[Luck] = &[Luck::Everything, Luck::Nothing, Luck::Random(1)];

#[tokio::test(start_paused = true)]
async fn the_power_is_cut_after_each_call() {
    for script in SCRIPTS {
        let mut world = World::new(script, Durability::Power, &[]);
        world.play().await.unwrap();
        world.cut_at_each(LUCKS).await.unwrap();
    }
}

/// Then a file is renamed when it is sealed, and is gone for the next attempt if the application
/// has moved it.
#[tokio::test(start_paused = true)]
async fn the_power_is_cut_after_each_call_without_hard_links() {
    for durability in [Durability::Power, Durability::Process] {
        for script in SCRIPTS {
            let mut world = World::new(script, durability, &[Mishap::NoLinks]);
            world.moves_nothing = true;
            world.play().await.unwrap();
            world.cut_at_each(&LUCKS[1..]).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_power_is_cut_after_each_call_without_syncs() {
    for script in SCRIPTS {
        let mut world = World::new(script, Durability::Process, &[]);
        world.play().await.unwrap();
        world.cut_at_each(LUCKS).await.unwrap();
    }
}

const FAILURES: [Failure; 4] = [Failure::Io, Failure::Full, Failure::Torn, Failure::AfterAll];

/// Calls fail, once or a few times in a row. The client tries again, and then the power is cut.
async fn each_call_fails(durability: Durability, how: impl Fn(usize) -> Vec<(Failure, usize)>) {
    for script in SCRIPTS {
        each_call_of(script, durability, &how).await;
    }
}

async fn each_call_of(
    script: &'static Script,
    durability: Durability,
    how: impl Fn(usize) -> Vec<(Failure, usize)>,
) {
    let mut calls = usize::MAX;
    for first in 0.. {
        if first > calls {
            break;
        }
        for (failure, length) in how(first) {
            let mishap = Mishap::Fail(failure, first..first + length);
            let mut world = World::new(script, durability, std::slice::from_ref(&mishap));
            let played = world.play().await;
            played.unwrap_or_else(|error| panic!("{mishap:?}: it does not recover: {error:?}"));
            let moments = world.disk.moments();
            for luck in [Luck::Nothing, Luck::Everything, Luck::Random(first as u64)] {
                let found = world.cut(moments - 1, luck).await;
                found.unwrap_or_else(|what| panic!("{mishap:?}: {what}"));
            }
            calls = world.disk.calls();
        }
    }
}

/// One way for every other call, so that the two durabilities together have each.
fn some_way(call: usize, odd: bool) -> Vec<(Failure, usize)> {
    let way = (FAILURES[call / 2 % 4], [1, 3][call / 8 % 2]);
    (call % 2 == usize::from(odd))
        .then_some(way)
        .into_iter()
        .collect()
}

fn every_way(call: usize) -> Vec<(Failure, usize)> {
    let ways = FAILURES.iter().enumerate();
    ways.map(|(n, failure)| (*failure, [1, 3][(call + n) % 2]))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn each_call_fails_with_power() {
    each_call_fails(Durability::Power, |call| some_way(call, false)).await;
}

#[tokio::test(start_paused = true)]
async fn each_call_fails_with_process() {
    each_call_fails(Durability::Process, |call| some_way(call, true)).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "it takes minutes"]
async fn each_call_fails_in_every_way_with_power() {
    each_call_fails(Durability::Power, every_way).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "it takes minutes"]
async fn each_call_fails_in_every_way_with_process() {
    each_call_fails(Durability::Process, every_way).await;
}

/// A disk that is dead and does not always say so: nothing is promised that is not kept.
#[tokio::test(start_paused = true)]
async fn the_disk_dies_at_each_call() {
    for script in SCRIPTS {
        dies_at_each_call(script, &[]).await.unwrap();
    }
}

async fn dies_at_each_call(script: &'static Script, mishaps: &[Mishap]) -> Result<(), String> {
    let mut world = World::new(script, Durability::Power, mishaps);
    let played = world.play().await;
    played.map_err(|error| format!("it does not end: {error:?}"))?;
    for call in spread(world.disk.calls()) {
        let mishaps = [mishaps, &[Mishap::Dead(call)]].concat();
        let mut world = World::new(script, Durability::Power, &mishaps);
        // The client may learn that the disk is dead, or not.
        let _ = world.play().await;
        let found = world.cut(world.disk.moments() - 1, Luck::Nothing).await;
        found.map_err(|what| format!("dead at {call}: {what}"))?;
    }
    Ok(())
}

/// All numbers below `count`, in an order that soon finds what is wrong over a stretch of them.
fn spread(count: usize) -> impl Iterator<Item = usize> {
    const APART: usize = 16;
    (0..APART.min(count)).flat_map(move |first| (first..count).step_by(APART))
}

/// Whether the checks detect that the store does something else, in one of these ways.
async fn is_found(scripts: &[&'static Script], mishaps: &[Mishap]) -> bool {
    for mishap in mishaps {
        for script in scripts {
            let mishaps = std::slice::from_ref(mishap);
            let mut world = World::new(script, Durability::Power, mishaps);
            if world.play().await.is_err() || world.cut_at_each(&[Luck::Nothing]).await.is_err() {
                return true;
            }
        }
    }
    // This takes longer.
    for mishap in mishaps {
        for script in scripts {
            let mishaps = std::slice::from_ref(mishap);
            if dies_at_each_call(script, mishaps).await.is_err() {
                return true;
            }
        }
    }
    false
}

/// A test that cannot fail proves nothing: without any one of its syncs the store breaks a promise.
#[tokio::test(start_paused = true)]
async fn each_sync_is_needed() {
    let mut vain = Vec::new();
    for (place, SyncPlace { scripts, .. }) in sync_places().await {
        if !is_found(&scripts, &[Mishap::Skip(place)]).await {
            vain.push(place);
        }
    }
    assert!(vain.is_empty(), "not needed: {vain:#?}");
}

/// The sync of a file must not come after those that follow it.
#[tokio::test(start_paused = true)]
async fn the_order_of_syncs_is_needed() {
    let mut vain = Vec::new();
    for (place, SyncPlace { scripts, of_file }) in sync_places().await {
        let late: Vec<_> = (1..=4)
            .rev()
            .map(|others| Mishap::Late(place, others))
            .collect();
        if of_file && !is_found(&scripts, &late).await {
            vain.push(place);
        }
    }
    assert!(vain.is_empty(), "not needed: {vain:#?}");
}

/// A place in the source where the store syncs.
#[derive(Default)]
struct SyncPlace {
    /// Those that come to it.
    scripts: Vec<&'static Script>,
    of_file: bool,
}

async fn sync_places() -> BTreeMap<&'static Place<'static>, SyncPlace> {
    let mut places = BTreeMap::<_, SyncPlace>::new();
    for script in SCRIPTS {
        let mut world = World::new(script, Durability::Power, &[]);
        world.play().await.unwrap();
        world.cut_at_each(&[Luck::Nothing]).await.unwrap();
        for (place, of_file) in world.disk.sync_places() {
            let entry = places.entry(place).or_default();
            entry.scripts.push(script);
            entry.of_file |= of_file;
        }
    }
    places
}

/// There can be many more records than unfinished uploads.
#[tokio::test(start_paused = true)]
async fn settled_uploads_are_passed_over_without_syncs() {
    let mut world = World::new(SCRIPTS[0], Durability::Power, &[]);
    let mut store = None;
    for step in [Step::Write('z', 0), Step::Deliver('z', Answer::Taken)] {
        world.step(&mut store, step).await.unwrap();
    }
    let store = world.open().unwrap();
    let calls = world.disk.calls();
    let now = std::time::SystemTime::now();
    for filter in [Filter::complete(), Filter::default()] {
        assert_eq!(store.list(&filter, None).await.unwrap().uploads, []);
    }
    assert_eq!(store.sweep(&everything(now)).await.unwrap().records, 0);
    assert_eq!(world.disk.calls(), calls);
    let later = now + Duration::from_secs(10_000);
    assert_eq!(store.sweep(&everything(later)).await.unwrap().records, 1);
    assert!(world.disk.calls() > calls);
}

/// All uploads that were touched before this time.
fn everything(before: std::time::SystemTime) -> Expiry {
    Expiry {
        abandoned_before: Some(before),
        undelivered_before: Some(before),
        records_before: before,
    }
}

/// Two stores on one folder, like two processes, and what they do in an order that depends on the
/// seed.
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
                write(&store, 'a', number / 2).await.unwrap();
                loop {
                    let mut claim = match store.claim(&upload('a')).await.unwrap() {
                        Claimed::Won(claim) => claim,
                        // The time goes on only if no task runs.
                        Claimed::Busy => {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            continue;
                        }
                        Claimed::Settled(_) | Claimed::Incomplete => return 0,
                    };
                    assert_eq!(claim.sealed().attempt, 1);
                    let path = claim.sealed().stored.path().unwrap();
                    assert!(std::fs::read(path).unwrap() == content('a'), "seed {seed}");
                    claim.settle(&record(Answer::Taken)).await.unwrap();
                    return 1;
                }
            });
        }
        let deliveries: u32 = tasks.join_all().await.iter().sum();
        assert_eq!(deliveries, 1, "seed {seed}");
    }
}

/// A file that comes whole several times, at once, and maybe its removal.
#[tokio::test(start_paused = true)]
async fn scheduled_whole_files_are_delivered_once() {
    for seed in seeds() {
        let (dir, stores) = scheduled(seed);
        let later = std::time::SystemTime::now() + Duration::from_secs(10_000);
        let everything = everything(later);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..6 {
            let store = stores[number % 2].clone();
            tasks.spawn(async move {
                match number {
                    0 if seed % 2 == 0 => {
                        store.remove(&id('w')).await.unwrap();
                        return 0;
                    }
                    1 if seed % 4 == 0 => {
                        store.sweep(&everything).await.unwrap();
                        return 0;
                    }
                    _ => {}
                }
                let mut claim = match write_whole(&store, 'w').await {
                    Err(StoreError::Superseded) => return 0,
                    claim => claim.unwrap(),
                };
                loop {
                    let mut claim = match claim.take().map(Claimed::Won) {
                        Some(claimed) => claimed,
                        None => store.claim(&upload('w')).await.unwrap(),
                    };
                    let claim = match &mut claim {
                        Claimed::Won(claim) => claim,
                        // The time goes on only if no task runs.
                        Claimed::Busy => {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                            continue;
                        }
                        Claimed::Settled(_) | Claimed::Incomplete => return 0,
                    };
                    let path = claim.sealed().stored.path().unwrap();
                    let found = std::fs::read(path);
                    let found =
                        found.unwrap_or_else(|error| panic!("seed {seed}: {error}: {path:?}"));
                    assert!(found == content('w'), "seed {seed}");
                    claim.settle(&record(Answer::Taken)).await.unwrap();
                    return 1;
                }
            });
        }
        let deliveries: usize = tasks.join_all().await.iter().sum();
        assert!(
            deliveries == 1 || seed % 2 == 0,
            "seed {seed}: {deliveries}"
        );
        stores[1].sweep(&everything).await.unwrap();
        let rest = files_below(&stores[1].folder.partial);
        assert!(rest.is_empty(), "seed {seed}: {rest:?}");
        let files = files_below(&dir.path().join("files"));
        assert_eq!(files.len(), deliveries, "seed {seed}: {files:?}");
    }
}

/// Chunks, removal and sweeping at once: no file is left over, and no byte is a mixture.
#[tokio::test(start_paused = true)]
async fn scheduled_chunks_race_with_removal() {
    for seed in seeds() {
        let (dir, stores) = scheduled(seed);
        let later = std::time::SystemTime::now() + Duration::from_secs(10_000);
        let everything = everything(later);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..6 {
            let store = stores[number as usize % 2].clone();
            tasks.spawn(async move {
                match number {
                    0 => drop(store.remove(&id('c')).await.unwrap()),
                    1 => drop(store.sweep(&everything).await.unwrap()),
                    _ => match write(&store, 'c', number / 2 % 2).await {
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
        stores[1].sweep(&everything).await.unwrap();
        let rest = files_below(&stores[1].folder.partial);
        assert!(rest.is_empty(), "seed {seed}: {rest:?}");
        let files = files_below(&dir.path().join("files"));
        assert_eq!(files.len(), 1, "seed {seed}: {files:?}");
    }
}

/// An upload is created while chunks of it fail: after `create` has succeeded it stays.
#[tokio::test(start_paused = true)]
async fn scheduled_failures_do_not_remove_what_was_created() {
    for seed in seeds() {
        let (_dir, stores) = scheduled(seed);
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..6 {
            let store = stores[number % 2].clone();
            tasks.spawn(async move {
                if number == 0 {
                    store.create(&upload('t')).await.unwrap();
                } else {
                    // Long enough to create the upload before the body fails.
                    let piece = Ok(Frame::data(Bytes::from(vec![7; 17_000])));
                    let frames = [piece, Err(BoxError::from("the client is gone"))];
                    let source = pin!(StreamBody::new(stream::iter(frames)));
                    let mut body = ChunkBody::new(source, Some(18_000), 0);
                    let upload = upload('t');
                    let written = store.write(&upload, 0, &mut body);
                    written.await.unwrap_err();
                }
            });
        }
        tasks.join_all().await;
        for store in &stores {
            let status = store.status(&id('t')).await.unwrap();
            let status = status.unwrap_or_else(|| panic!("seed {seed}: it is gone"));
            assert_eq!(status.progress().received, 0, "seed {seed}");
        }
    }
}

/// Appends of two processes, which end each other: no byte is told that is gone later, and the file
/// has no other bytes.
#[tokio::test(start_paused = true)]
async fn scheduled_appends_end_each_other() {
    for seed in seeds() {
        let (_dir, stores) = scheduled(seed);
        stores[0].create(&without_length('u')).await.unwrap();
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..6 {
            let store = stores[number % 2].clone();
            tasks.spawn(async move {
                let mut last = 0;
                loop {
                    let start = match told(&store, 'u').await {
                        Err(StoreError::Busy) => continue,
                        start => start.unwrap(),
                    };
                    assert!(start >= last, "seed {seed}: {last} bytes became {start}");
                    last = start;
                    if start == content('u').len() as u64 {
                        return;
                    }
                    match add(&store, 'u', start, Some(400)).await {
                        Ok(end) => last = end,
                        Err(
                            StoreError::Busy | StoreError::Superseded | StoreError::Offset { .. },
                        ) => {}
                        Err(error) => panic!("seed {seed}: {error:?}"),
                    }
                }
            });
        }
        tasks.join_all().await;
        let finished = finish(&stores[0], 'u', None).await;
        finished.unwrap_or_else(|what| panic!("seed {seed}: {what}"));
    }
}
