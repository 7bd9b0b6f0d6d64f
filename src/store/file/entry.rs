//! One upload on disk, as this process knows it.

mod commit;
mod flight;

use std::{
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::SystemTime,
};

use tokio::sync::Notify;

pub(super) use self::flight::{Flight, Landing, TakeOff};
use super::{
    blocks::BLOCK,
    disk::{self, Disk, lock},
    journal::{self, Event, SLOT},
};
use crate::{
    fault,
    model::ranges::{Crc, Ranges},
    store::{RangeSet, Record, StoreError, Upload, random_id, unix_ms},
};

/// Bytes far behind the end of any journal, whose locks stand for rights.
const APPEND: Range<u64> = 1 << 62..(1 << 62) + 1;
const CLAIM: Range<u64> = (1 << 62) + 1..(1 << 62) + 2;

/// The journal grows by this: most records then change no size, which makes them cheaper to sync.
const GROWTH: u64 = 4096;

/// Milliseconds between two marks that an upload is asked for.
const TOUCH: u64 = 1000;

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) journal_path: PathBuf,
    pub(super) data_path: PathBuf,
    pub(super) id: String,
    pub(super) created: Upload,
    journal: File,
    /// While the file has no final name.
    pub(super) data: Option<File>,
    disk: Disk,
    /// Whether appends are synced.
    durable: bool,
    boot: Option<u64>,
    state: Mutex<State>,
    /// When somebody was last seen to ask for it.
    touched: AtomicU64,
    /// How many syncs of the data have failed.
    failed_syncs: AtomicU64,
    commits: commit::Commits,
    /// Held by a thread while it appends; the OFD lock does not exclude this process.
    appending: Mutex<()>,
    flights: Mutex<Vec<Arc<flight::Flight>>>,
    landed: Notify,
}

/// Where the bytes of an upload are. The name has its id: it can be no other upload's, not even of
/// the same key.
fn data_path(journal_path: &Path, id: &str) -> PathBuf {
    journal_path.with_extension(format!("{id}.data"))
}

/// What the journal says, up to `end`.
#[derive(Debug, Default)]
struct State {
    ranges: Ranges<Crc>,
    end: u64,
    /// The file is at least this long.
    len: u64,
    /// The check of the record before `end`.
    chain: u32,
    phase: Phase,
    /// Milliseconds since 1970.
    touched: u64,
    claimed: bool,
    /// Some of the bytes were not synced before they were said to be stored.
    unsynced: bool,
    /// A sync of the journal has failed.
    distrusted: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) enum Phase {
    #[default]
    Receiving,
    Sealed(Seal),
    Settled(Record),
    Removed,
}

#[derive(Clone, Debug)]
pub(super) struct Seal {
    /// Below the folder of finished files.
    pub(super) path: String,
    /// What tells it from other files of that name.
    pub(super) file: Option<u64>,
    pub(super) upload: Upload,
    pub(super) crc: u32,
    pub(super) attempt: u32,
}

/// A look at an upload.
#[derive(Debug)]
pub(super) struct View {
    pub(super) phase: Phase,
    pub(super) complete: bool,
    pub(super) touched: u64,
}

impl Entry {
    /// Opens the upload whose journal is `journal`; `None` if that does not say which one it is.
    pub(super) fn open(
        journal_path: PathBuf,
        journal: File,
        durable: bool,
        disk: Disk,
    ) -> io::Result<Option<Self>> {
        let Some((upload, id)) = journal::first(&journal)? else {
            return Ok(None);
        };
        let data = match disk::open(&data_path(&journal_path, &id)) {
            Ok(data) => Some(data),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // All of the journal is still to be read.
        let state = State::default();
        let files = (journal, data);
        Ok(Some(Self::new(
            journal_path,
            upload,
            id,
            files,
            state,
            durable,
            disk,
        )))
    }

    /// Creates an upload; `None` if another request was faster, or a sweep took it for an orphan.
    pub(super) fn create(
        journal_path: PathBuf,
        upload: Upload,
        durable: bool,
        disk: Disk,
    ) -> Result<Option<Self>, StoreError> {
        let id = random_id()?;
        let data_path = data_path(&journal_path, &id);
        // Whole before it has its name: racers agree on one.
        let temporary = journal_path.with_extension(format!("{id}.new"));
        let created = Event::Created {
            upload: upload.clone(),
            id: id.clone(),
        };
        let time = unix_ms(SystemTime::now());
        let mut state = State {
            touched: time,
            ..State::default()
        };
        let header = created.encode(&mut state.chain, time);
        state.end = header.len() as u64;
        state.len = state.end.next_multiple_of(GROWTH);
        let create = || {
            let journal = disk.create(&temporary)?;
            disk.write_all_at("write-journal", &journal, &header, 0)?;
            disk.set_len(&journal, state.len)?;
            let data = disk.create(&data_path)?;
            match disk.rename_new(&temporary, &journal_path) {
                // A sweep took it for an orphan.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    Err(io::ErrorKind::AlreadyExists.into())
                }
                renamed => renamed.map(|()| (journal, Some(data))),
            }
        };
        let files: io::Result<_> = create();
        if files.is_err() {
            disk.remove_if_there(&temporary)?;
            disk.remove_if_there(&data_path)?;
        }
        match files {
            Ok(files) => Ok(Some(Self::new(
                journal_path,
                upload,
                id,
                files,
                state,
                durable,
                disk,
            ))),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn new(
        journal_path: PathBuf,
        created: Upload,
        id: String,
        (journal, data): (File, Option<File>),
        state: State,
        durable: bool,
        disk: Disk,
    ) -> Self {
        Self {
            data_path: data_path(&journal_path, &id),
            journal_path,
            id,
            created,
            journal,
            data,
            durable,
            boot: disk.boot(),
            disk,
            touched: AtomicU64::new(state.touched),
            state: Mutex::new(state),
            failed_syncs: AtomicU64::new(0),
            commits: commit::Commits::default(),
            appending: Mutex::default(),
            flights: Mutex::default(),
            landed: Notify::default(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn total(&self) -> u64 {
        self.created.total
    }

    /// What is there now, other processes' records included.
    pub(super) fn view(&self) -> io::Result<View> {
        self.look_for_news()?;
        self.look_for_name()?;
        let state = self.state();
        Ok(View {
            phase: state.phase.clone(),
            complete: !matches!(state.phase, Phase::Receiving)
                || state.ranges.covers(0, self.total()),
            touched: state.touched,
        })
    }

    /// What is stored.
    pub(super) fn ranges(&self) -> RangeSet {
        self.state().ranges.to_set()
    }

    /// Keeps it from being swept: somebody asks for it, if only for what is there. Other processes
    /// see it by the time of the journal.
    pub(super) fn touch(&self) {
        let now = unix_ms(SystemTime::now());
        if now.saturating_sub(self.touched.load(Relaxed)) >= TOUCH {
            self.touched.store(now, Relaxed);
            // If it cannot be set it is swept some time earlier.
            let _ = self.journal.set_modified(SystemTime::now());
        }
    }

    /// When somebody last did something to it or asked for it.
    pub(super) fn last_touch(&self, view: &View) -> io::Result<u64> {
        let modified = self.journal.metadata()?.modified()?;
        Ok(view.touched.max(unix_ms(modified)))
    }

    /// What of a range is not stored, and how many ranges there will be when it is.
    pub(super) fn gaps(&self, range: &Range<u64>) -> (Vec<Range<u64>>, usize) {
        let state = self.state();
        match state.phase {
            Phase::Receiving => {
                let len = range.end - range.start;
                (
                    state.ranges.gaps(range.start, len),
                    state.ranges.len_with(range.start, len),
                )
            }
            _ => (Vec::new(), 0),
        }
    }

    pub(super) fn progress(&self) -> crate::store::Progress {
        let state = self.state();
        let receiving = matches!(state.phase, Phase::Receiving);
        let received = if receiving {
            state.ranges.total()
        } else {
            self.total()
        };
        crate::store::Progress {
            received,
            complete: !receiving || state.ranges.covers(0, self.total()),
        }
    }

    /// The CRC-32 of the whole file.
    pub(super) fn crc(&self) -> Option<u32> {
        match self.total() {
            0 => Some(0),
            total => self.state().ranges.whole(total).map(|crc| crc.0),
        }
    }

    /// Reads on if another process has written.
    fn look_for_news(&self) -> io::Result<()> {
        if !self.has_news()? {
            return Ok(());
        }
        let _appending = self.lock_journal()?;
        self.catch_up()
    }

    /// Nobody finds what is written to a file without a name. If it has lost its own without a word
    /// in it, somebody else has removed it, with its folder perhaps.
    fn look_for_name(&self) -> io::Result<()> {
        if !disk::has_name(&self.journal, &self.journal_path)? {
            self.state().phase = Phase::Removed;
        }
        Ok(())
    }

    /// Whether the bytes are where this process writes them, while it receives.
    pub(super) fn has_data(&self) -> io::Result<bool> {
        match &self.data {
            Some(data) => disk::has_name(data, &self.data_path),
            None => Ok(false),
        }
    }

    fn has_news(&self) -> io::Result<bool> {
        let end = self.state().end;
        let mut slot = [0; SLOT as usize];
        disk::read_at(&self.journal, &mut slot, end)?;
        Ok(slot != [0; SLOT as usize])
    }

    /// Takes the right to append.
    fn lock_journal(&self) -> io::Result<(MutexGuard<'_, ()>, Locked<'_>)> {
        self.disk.before_lock(|| self.appending.try_lock().is_ok());
        let appending = self.appending.lock();
        self.disk
            .before_lock(|| Locked::can_be(&self.journal, APPEND));
        let lock = Locked::wait(&self.journal, APPEND)?;
        Ok((appending.unwrap_or_else(PoisonError::into_inner), lock))
    }

    /// With the right to append: reads what others have appended, and makes sure that it is durable
    /// before it is trusted. What is visible need not be.
    fn catch_up(&self) -> io::Result<()> {
        if !self.has_news()? {
            return Ok(());
        }
        let (start, mut chain) = {
            let state = self.state();
            (state.end, state.chain)
        };
        let mut news = Vec::new();
        let end = journal::read(&self.journal, start, &mut chain, |entry| {
            news.push(entry);
            Ok(())
        })?;
        if news.is_empty() {
            return Ok(());
        }
        if self.durable {
            self.sync_journal(end)?;
        }
        for entry in news {
            if self.is_true(&entry.event)? {
                self.state().apply(entry);
            }
        }
        let mut state = self.state();
        (state.end, state.chain) = (end, chain);
        Ok(())
    }

    /// Whether bytes that were not synced have survived, if the machine went down since.
    fn is_true(&self, event: &Event) -> io::Result<bool> {
        let Event::Stored {
            offset,
            len,
            crc,
            synced: false,
            boot,
        } = event
        else {
            return Ok(true);
        };
        let Some(data) = &self.data else {
            return Ok(true);
        };
        if self.boot == Some(*boot) {
            return Ok(true);
        }
        let mut hasher = crc32fast::Hasher::new();
        let range = *offset..offset.saturating_add(*len);
        let read = read_blocks(data, range, |block, _| {
            hasher.update(block);
            Ok(())
        })?;
        Ok(read == *len && hasher.finalize() == *crc)
    }

    /// Makes the records before `end` durable.
    #[track_caller]
    fn sync_journal(&self, end: u64) -> io::Result<()> {
        if self.state().distrusted {
            self.make_dirty(&self.journal, 0..end)?;
        }
        let result = self.disk.sync("sync-journal", &self.journal);
        self.state().distrusted = result.is_err();
        result
    }

    /// Writes what is there again. A second sync after one that failed would succeed and mean
    /// nothing, unless there is something new to write.
    fn make_dirty(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        read_blocks(file, range, |block, at| {
            self.disk.write_all_at("write-again", file, block, at)
        })
        .map(drop)
    }

    /// Makes the bytes of the whole file durable, and says what their CRC-32 is.
    pub(super) fn sync_whole(&self) -> Result<u32, StoreError> {
        let damaged = |what| StoreError::new(format!("the data {what}"));
        let data = self.data.as_ref().ok_or_else(|| damaged("are gone"))?;
        let crc = self.crc().ok_or_else(|| damaged("are not complete"))?;
        if data.metadata()?.len() != self.total() {
            return Err(damaged("are not of the right size"));
        }
        if !self.state().unsynced {
            return Ok(crc);
        }
        if self.failed_syncs() > 0 {
            let mut hasher = crc32fast::Hasher::new();
            read_blocks(data, 0..self.total(), |block, _| {
                hasher.update(block);
                Ok(())
            })?;
            if hasher.finalize() != crc {
                return Err(damaged("are not what was sent"));
            }
        }
        if let Err(error) = self.disk.sync("sync-data", data) {
            self.failed_syncs.fetch_add(1, SeqCst);
            self.make_dirty(data, 0..self.total())?;
            return Err(error.into());
        }
        Ok(crc)
    }

    /// Appends events, durably (or as durably as the store is set to), unless the upload is gone
    /// or, for stored bytes, no longer receives.
    pub(super) fn append(&self, events: &[Event], durable: bool) -> Result<(), StoreError> {
        let _appending = self.lock_journal()?;
        self.catch_up()?;
        self.look_for_name()?;
        let (end, chain, phase) = {
            let state = self.state();
            (state.end, state.chain, state.phase.clone())
        };
        let stored = events
            .iter()
            .any(|event| matches!(event, Event::Stored { .. }));
        match phase {
            Phase::Removed => return Err(StoreError::Superseded),
            Phase::Sealed(_) | Phase::Settled(_) if stored => return Err(StoreError::Superseded),
            _ => {}
        }
        let (mut new_chain, time) = (chain, unix_ms(SystemTime::now()));
        let records: Vec<u8> = events
            .iter()
            .flat_map(|event| event.encode(&mut new_chain, time))
            .collect();
        let new_end = end + records.len() as u64;
        let write = |records: &[u8]| {
            self.disk
                .write_all_at("write-journal", &self.journal, records, end)
        };
        self.make_room(new_end)?;
        let written = write(&records).and_then(|()| match durable || self.durable {
            true => self.sync_journal(new_end),
            false => Ok(()),
        });
        if let Err(error) = written {
            // Nobody shall take it for true: what is visible need not be durable. If that cannot be
            // written either, it will be made durable before it is believed.
            let _ = write(&journal::void(&records, chain, time));
            return Err(error.into());
        }
        let mut state = self.state();
        for event in events {
            state.apply(journal::Entry {
                event: event.clone(),
                time,
            });
        }
        (state.end, state.chain) = (new_end, new_chain);
        Ok(())
    }

    /// Makes the journal longer, if it is shorter than `end`.
    fn make_room(&self, end: u64) -> io::Result<()> {
        if self.state().len >= end {
            return Ok(());
        }
        // Another process may have done it.
        let mut len = self.journal.metadata()?.len();
        if len < end {
            len = end.next_multiple_of(GROWTH);
            self.disk.set_len(&self.journal, len)?;
        }
        self.state().len = len;
        Ok(())
    }

    /// The event that says that these bytes are in the data file.
    pub(super) fn stored(&self, piece: &Range<u64>, crc: u32) -> Event {
        Event::Stored {
            offset: piece.start,
            len: piece.end - piece.start,
            crc,
            synced: self.durable,
            boot: self.boot.unwrap_or_default(),
        }
    }

    /// Takes the one right to deliver or remove the upload.
    pub(super) fn try_claim(self: &Arc<Self>) -> io::Result<Option<Claim>> {
        fault::step("claim")?;
        if std::mem::replace(&mut self.state().claimed, true) {
            return Ok(None);
        }
        // From here on dropping it gives it back.
        let mut claim = Claim {
            entry: Arc::clone(self),
            locked: false,
        };
        claim.locked = lock::try_lock(&self.journal, CLAIM)?;
        Ok(claim.locked.then_some(claim))
    }

    pub(super) fn make_names_durable(&self) -> io::Result<()> {
        for path in [
            self.journal_path.parent(),
            self.journal_path.parent().and_then(|p| p.parent()),
        ] {
            self.disk.sync_dir(path.unwrap_or(Path::new(".")))?;
        }
        Ok(())
    }

    pub(super) fn is_removed(&self) -> bool {
        matches!(self.state().phase, Phase::Removed)
    }

    /// Whether it takes chunks, as far as this process knows.
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.state().phase, Phase::Receiving)
    }

    /// Whether nothing was ever stored.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.state();
        matches!(state.phase, Phase::Receiving) && state.ranges.len() == 0 && self.total() > 0
    }
}

impl State {
    fn apply(&mut self, entry: journal::Entry) {
        self.touched = self.touched.max(entry.time);
        match entry.event {
            Event::Stored {
                offset,
                len,
                crc,
                synced,
                ..
            } => {
                self.unsynced |= !synced;
                // Nobody writes what is stored; if it is so all the same, the first one counts.
                let range = offset..offset.saturating_add(len);
                if self.ranges.gaps(offset, len).first() == Some(&range) {
                    self.ranges.insert(range, Crc(crc));
                }
            }
            Event::Sealed {
                path,
                file,
                upload,
                crc,
            } => {
                let attempt = match &self.phase {
                    Phase::Sealed(seal) => seal.attempt,
                    _ => 1,
                };
                self.phase = Phase::Sealed(Seal {
                    path,
                    file,
                    upload,
                    crc,
                    attempt,
                });
            }
            Event::Attempt(n) => {
                if let Phase::Sealed(seal) = &mut self.phase {
                    seal.attempt = n;
                }
            }
            Event::Settled(record) => self.phase = Phase::Settled(record),
            Event::Removed => self.phase = Phase::Removed,
            Event::Created { .. } | Event::Void => {}
        }
    }
}

/// A lock between processes, freed when dropped.
struct Locked<'a> {
    file: &'a File,
    range: Range<u64>,
}

impl<'a> Locked<'a> {
    fn wait(file: &'a File, range: Range<u64>) -> io::Result<Self> {
        lock::lock(file, range.clone())?;
        Ok(Self { file, range })
    }
}

impl Locked<'_> {
    /// Whether it would not have to wait.
    fn can_be(file: &File, range: Range<u64>) -> bool {
        match lock::try_lock(file, range.clone()) {
            Ok(true) => drop(Locked { file, range }),
            Ok(false) => return false,
            Err(_) => {}
        }
        true
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        lock::unlock(self.file, self.range.clone());
    }
}

/// The one right to deliver or remove an upload, given back when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) entry: Arc<Entry>,
    locked: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.locked {
            lock::unlock(&self.entry.journal, CLAIM);
        }
        self.entry.state().claimed = false;
    }
}

/// Reads a range, and gives each block with its offset to `see`; how much of it there is.
fn read_blocks(
    file: &File,
    range: Range<u64>,
    mut see: impl FnMut(&[u8], u64) -> io::Result<()>,
) -> io::Result<u64> {
    let mut buffer = vec![0; BLOCK];
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let read = disk::read_at(file, &mut buffer[..left.min(BLOCK)], at)?;
        if read == 0 {
            break;
        }
        see(&buffer[..read], at)?;
        at += read as u64;
    }
    Ok(at - range.start)
}
