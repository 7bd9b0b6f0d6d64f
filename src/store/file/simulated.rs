//! A disk that fails, and that loses or tears what was not synced; for tests.
//!
//! All calls but syncs go to a real folder, and all calls are logged. The log determines what may
//! be there after a power cut that follows any of them: each change of a file that was not synced
//! is there, or is not, or is in some sectors. Each change of a folder that was not synced is there
//! only if those before it are. More is lost here than on the file systems that we know.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::File,
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    panic::Location,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use super::scheduled::Scheduler;
use crate::{lock::lock, store::disk::Op};

/// A disk writes at least this many bytes at once.
const SECTOR: usize = 512;

#[derive(Debug)]
pub(in crate::store) struct Simulated {
    root: PathBuf,
    boot: u64,
    mishaps: Vec<Mishap>,
    pub(in crate::store) scheduler: Option<Scheduler>,
    state: Mutex<State>,
}

/// What goes wrong.
#[derive(Clone, Debug)]
pub(super) enum Mishap {
    /// These calls fail. The first of all has the number 0.
    Fail(Failure, Range<usize>),
    /// The syncs at this place of the source are not done.
    Skip(&'static Location<'static>),
    /// The syncs at this place of the source are done after this many others.
    Late(&'static Location<'static>, usize),
    /// From this call on everything fails, but syncs of folders seem to succeed, as on XFS when it
    /// has shut down.
    Dead(usize),
    /// The file system has no hard links.
    NoLinks,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Failure {
    /// Nothing is done. If it is a sync, the bytes are lost, and the next one succeeds.
    Io,
    /// The same, because there is no room.
    Full,
    /// Half of it is done.
    Torn,
    /// It is done, and seems to have failed.
    AfterAll,
}

/// How much survives of what was not synced.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Luck {
    /// All, as if only the process had died.
    Everything,
    Nothing,
    Random(u64),
}

#[derive(Debug, Default)]
struct State {
    calls: usize,
    log: Vec<Event>,
    /// By inode.
    files: HashMap<u64, usize>,
    file_count: usize,
    /// Syncs that are done after this many others.
    late: Vec<(usize, Event)>,
    ahead: Duration,
    left_out: &'static str,
    /// Whether they are those of files.
    sync_places: BTreeMap<&'static Location<'static>, bool>,
}

#[derive(Clone, Debug)]
enum Event {
    Created(PathBuf, usize),
    DirCreated(PathBuf),
    Written(usize, u64, Vec<u8>),
    Resized(usize, u64),
    Synced(usize),
    SyncFailed(usize),
    DirSynced(PathBuf),
    Linked(PathBuf, usize),
    /// The first half of a rename, and `Removed` the second: one folder may be on the disk before
    /// the other, but no file without a name.
    Renamed(PathBuf, usize),
    Removed(PathBuf),
    /// The store has promised something.
    Promised,
}

impl Simulated {
    pub(super) fn new(root: &Path, boot: u64, mishaps: Vec<Mishap>) -> Self {
        Self {
            root: root.to_owned(),
            boot,
            mishaps,
            scheduler: None,
            state: Mutex::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(in crate::store) fn now(&self) -> SystemTime {
        SystemTime::now() + self.state().ahead
    }

    /// From now on, the clock of the system is ahead of the time by this much.
    pub(super) fn set_ahead(&self, ahead: Duration) {
        self.state().ahead = ahead;
    }

    pub(in crate::store) fn boot(&self) -> u64 {
        self.boot
    }

    /// How many calls there were.
    pub(super) fn calls(&self) -> usize {
        self.state().calls
    }

    /// Where in the source there were syncs, and whether of files.
    pub(super) fn sync_places(&self) -> BTreeMap<&'static Location<'static>, bool> {
        self.state().sync_places.clone()
    }

    /// Marks the moment from which a promise counts.
    pub(super) fn promise(&self) {
        self.state().log.push(Event::Promised);
    }

    /// Calls of this name do nothing from now on.
    pub(super) fn leave_out(&self, name: &'static str) {
        self.state().left_out = name;
    }

    pub(in crate::store) fn call<T>(
        &self,
        name: &'static str,
        place: &'static Location<'static>,
        op: Op<'_>,
        nothing: impl FnOnce() -> io::Result<T>,
        it: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        if let Some(scheduler) = &self.scheduler {
            scheduler.pass();
        }
        let mut state = self.state();
        let number = state.calls;
        state.calls += 1;
        for mishap in &self.mishaps {
            match mishap {
                Mishap::Fail(failure, calls) if calls.contains(&number) => {
                    return self.fail(&mut state, *failure, op, it);
                }
                Mishap::Dead(from) if number >= *from => {
                    return match op {
                        Op::SyncDir(_) => nothing(),
                        _ => Err(io::Error::other("dead")),
                    };
                }
                Mishap::NoLinks if matches!(op, Op::Link(..)) => {
                    return Err(io::Error::from_raw_os_error(nix::libc::EPERM));
                }
                Mishap::Skip(skipped) if *skipped == place => return nothing(),
                Mishap::Late(late, others) if *late == place => {
                    let event = self.event(&mut state, op);
                    state.late.push((*others, event));
                    return nothing();
                }
                _ => {}
            }
        }
        if name == state.left_out {
            return nothing();
        }
        if let Op::Sync(_) | Op::SyncDir(_) = op {
            let of_file = matches!(op, Op::Sync(_));
            state.sync_places.insert(place, of_file);
            let event = self.event(&mut state, op);
            state.log.push(event);
            for (others, event) in std::mem::take(&mut state.late) {
                match others {
                    0 | 1 => state.log.push(event),
                    _ => state.late.push((others - 1, event)),
                }
            }
            return nothing();
        }
        let result = it()?;
        self.log(&mut state, op);
        Ok(result)
    }

    fn log(&self, state: &mut State, op: Op<'_>) {
        let event = self.event(state, op);
        state.log.push(event);
        if let Op::Rename(from, _) = op {
            let event = self.event(state, Op::Remove(from));
            state.log.push(event);
        }
    }

    fn fail<T>(
        &self,
        state: &mut State,
        failure: Failure,
        op: Op<'_>,
        it: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        match (failure, op) {
            (Failure::AfterAll, _) => {
                it()?;
                self.log(state, op);
            }
            (_, Op::Sync(file)) => {
                let file = state.number(file.metadata()?.ino());
                state.log.push(Event::SyncFailed(file));
            }
            (Failure::Torn, Op::Copy(from, to, at, len)) => {
                let mut half = vec![0; len as usize / 2];
                from.read_exact_at(&mut half, 0)?;
                to.write_all_at(&half, at)?;
                self.log(state, Op::Write(to, &half, at));
            }
            (Failure::Torn, Op::Write(file, bytes, at)) => {
                let half = &bytes[..bytes.len() / 2];
                file.write_all_at(half, at)?;
                self.log(state, Op::Write(file, half, at));
            }
            _ => {}
        }
        Err(match failure {
            Failure::Full => io::ErrorKind::StorageFull.into(),
            _ => io::Error::other("simulated"),
        })
    }

    /// What a call does. For a call that creates something: called afterwards.
    fn event(&self, state: &mut State, op: Op<'_>) -> Event {
        let inside = |path: &Path| path.strip_prefix(&self.root).unwrap().to_owned();
        let mut number = |file: &File| state.number(file.metadata().unwrap().ino());
        match op {
            Op::Create(path) => {
                let inode = path.metadata().unwrap().ino();
                state.files.remove(&inode);
                Event::Created(inside(path), state.number(inode))
            }
            Op::CreateDir(path) => Event::DirCreated(inside(path)),
            Op::Write(file, bytes, at) => Event::Written(number(file), at, bytes.to_owned()),
            Op::Copy(_, file, at, len) => {
                let mut bytes = vec![0; len as usize];
                file.read_exact_at(&mut bytes, at).unwrap();
                Event::Written(number(file), at, bytes)
            }
            Op::SetLen(file, len) => Event::Resized(number(file), len),
            Op::Sync(file) => Event::Synced(number(file)),
            Op::SyncDir(path) => Event::DirSynced(inside(path)),
            Op::Rename(_, to) => {
                let inode = to.metadata().unwrap().ino();
                Event::Renamed(inside(to), state.number(inode))
            }
            Op::Link(_, to) => {
                let inode = to.metadata().unwrap().ino();
                Event::Linked(inside(to), state.number(inode))
            }
            Op::Remove(path) | Op::RemoveDir(path) => Event::Removed(inside(path)),
        }
    }

    /// The number of moments at which the power can be cut.
    pub(super) fn moments(&self) -> usize {
        self.state().log.len() + 1
    }

    /// Lays out in `dir` what is on the disk after a power cut at a moment. Returns that disk, and
    /// how many promises there were before.
    pub(super) fn cut(&self, moment: usize, luck: Luck, dir: &Path) -> (Self, usize) {
        let state = self.state();
        let log = &state.log[..moment];
        let contents = contents(log, state.file_count, luck);
        let boot = match luck {
            Luck::Everything => self.boot,
            _ => self.boot + 1,
        };
        let disk = Self::new(dir, boot, Vec::new());
        let mut written = HashMap::new();
        for (path, node) in names(log, luck) {
            let path = dir.join(path);
            // Not if the folder that it was in is lost.
            if !path.parent().is_some_and(Path::is_dir) {
                continue;
            }
            match node {
                None => std::fs::create_dir(path).unwrap(),
                Some(file) => match written.get(&file) {
                    Some(name) => std::fs::hard_link(name, path).unwrap(),
                    None => {
                        std::fs::write(&path, &contents[file]).unwrap();
                        written.insert(file, path);
                    }
                },
            }
        }
        let promises = log.iter().filter(|event| matches!(event, Event::Promised));
        (disk, promises.count())
    }
}

impl State {
    fn number(&mut self, inode: u64) -> usize {
        let count = &mut self.file_count;
        *self.files.entry(inode).or_insert_with(|| {
            *count += 1;
            *count - 1
        })
    }
}

/// The bytes of each file.
fn contents(log: &[Event], files: usize, luck: Luck) -> Vec<Vec<u8>> {
    let mut chance = Chance::new(luck);
    let mut contents = vec![Vec::new(); files];
    let mut pending = vec![Vec::new(); files];
    for event in log {
        match event {
            Event::Written(file, ..) | Event::Resized(file, _) => pending[*file].push(event),
            Event::Synced(file) => {
                for event in pending[*file].drain(..) {
                    apply(&mut contents[*file], event, &mut Chance::Always);
                }
            }
            // The system takes the pages for written.
            Event::SyncFailed(file) => {
                for event in pending[*file].drain(..) {
                    apply(&mut contents[*file], event, &mut chance);
                }
            }
            _ => {}
        }
    }
    for (content, pending) in contents.iter_mut().zip(pending) {
        for event in pending {
            apply(content, event, &mut chance);
        }
    }
    contents
}

fn apply(content: &mut Vec<u8>, event: &Event, chance: &mut Chance) {
    match event {
        Event::Resized(_, len) if chance.happens() => content.resize(*len as usize, 0),
        Event::Written(_, at, bytes) => {
            let mut at = *at as usize;
            let mut bytes = &bytes[..];
            while !bytes.is_empty() {
                let len = bytes.len().min(SECTOR - at % SECTOR);
                if chance.happens() {
                    content.resize(content.len().max(at + len), 0);
                    content[at..at + len].copy_from_slice(&bytes[..len]);
                }
                at += len;
                bytes = &bytes[len..];
            }
        }
        _ => {}
    }
}

/// The folders (`None`) and files that have names, by path: folders come before what is in them.
fn names(log: &[Event], luck: Luck) -> BTreeMap<&Path, Option<usize>> {
    let mut chance = Chance::new(luck);
    let mut durable = BTreeSet::new();
    for (moment, event) in log.iter().enumerate() {
        match event {
            Event::DirSynced(dir) => keep(log, moment, dir, &mut durable),
            event if folder(event).is_some() && chance.happens() => {
                keep_with(log, moment, &mut durable);
            }
            _ => {}
        }
    }
    let mut names = BTreeMap::new();
    for moment in durable {
        match &log[moment] {
            Event::Created(path, file) | Event::Linked(path, file) | Event::Renamed(path, file) => {
                names.insert(path.as_path(), Some(*file));
            }
            Event::DirCreated(path) => drop(names.insert(path, None)),
            Event::Removed(path) => drop(names.remove(path.as_path())),
            _ => {}
        }
    }
    names
}

/// The folder that an event changes.
fn folder(event: &Event) -> Option<&Path> {
    match event {
        Event::Created(path, _)
        | Event::DirCreated(path)
        | Event::Linked(path, _)
        | Event::Renamed(path, _)
        | Event::Removed(path) => path.parent(),
        _ => None,
    }
}

/// Keeps all changes of a folder before a moment.
fn keep(log: &[Event], moment: usize, dir: &Path, durable: &mut BTreeSet<usize>) {
    for earlier in (0..moment).rev() {
        if folder(&log[earlier]) == Some(dir) {
            // Those before it are kept with it.
            return keep_with(log, earlier, durable);
        }
    }
}

/// Keeps a change, and those of the same folder before it.
fn keep_with(log: &[Event], moment: usize, durable: &mut BTreeSet<usize>) {
    let Some(dir) = folder(&log[moment]) else {
        return;
    };
    if durable.insert(moment) {
        keep(log, moment, dir, durable);
        if let (Event::Removed(_), Some(before)) = (&log[moment], moment.checked_sub(1)) {
            if let Event::Renamed(..) = log[before] {
                keep_with(log, before, durable);
            }
        }
    }
}

#[derive(Debug)]
pub(super) enum Chance {
    Always,
    Never,
    Random(u64),
}

impl Chance {
    fn new(luck: Luck) -> Self {
        match luck {
            Luck::Everything => Self::Always,
            Luck::Nothing => Self::Never,
            Luck::Random(seed) => Self::Random(seed),
        }
    }

    fn happens(&mut self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Random(seed) => random(seed) % 2 == 0,
        }
    }

    /// One of the numbers below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        match self {
            Self::Random(seed) => (random(seed) % end as u64) as usize,
            _ => 0,
        }
    }
}

/// SplitMix64.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
