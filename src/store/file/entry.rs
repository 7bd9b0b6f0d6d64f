//! One upload on disk, as this process knows it.

mod commit;
mod range_lock;
mod whole;

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
};

use tokio::sync::Notify;

pub(super) use self::range_lock::{Holder, MAX_LENGTH, RangeLock, Retries, TryLock};
use super::{
    blocks::BLOCK,
    journal::{self, Created, Event, SLOT, Seal},
};
use crate::{
    fault,
    lock::lock,
    model::{
        ranges::{Crc, Joined as _, Ranges},
        state::{Progress, Record, State as UploadState, Status, to_unix_millis},
        upload::{Upload, UploadId},
    },
    store::{
        StoreError,
        disk::{self, Disk, ofd},
        random_id,
    },
};

/// Positions beyond the end of any journal. To lock one of them is to hold a right.
const APPEND: Range<u64> = 1 << 62..(1 << 62) + 1;
pub(super) const CLAIM: Range<u64> = (1 << 62) + 1..(1 << 62) + 2;

/// The journal grows by this. A record that does not change the size is cheaper to sync.
const GROWTH: u64 = 4096;

/// Milliseconds between two updates of the modification time of the journal.
const TOUCH: u64 = 1000;

#[derive(Debug)]
pub(super) struct Entry {
    /// The paths that the journal can have: before and after it is settled.
    names: [PathBuf; 2],
    pub(super) data_path: PathBuf,
    /// Distinguishes the upload from earlier and later ones with the same
    /// [`UploadId`](crate::UploadId).
    pub(super) id: String,
    /// The upload as its first request described it.
    pub(super) created: Arc<Upload>,
    /// Whether the journal can have events of appends.
    pub(super) takes_appends: bool,
    journal: File,
    /// The file of the upload, and of no other: no other file gets its name, and while it is open
    /// its inode is not used again. `None` if it had lost this name when the upload was opened.
    pub(super) data: Option<File>,
    disk: Disk,
    /// Whether appends are synced.
    durable: bool,
    boot: Option<u64>,
    state: Mutex<State>,
    /// When this process last set the modification time of the journal.
    touched: AtomicU64,
    /// How many syncs of the data have failed.
    failed_syncs: AtomicU64,
    commits: commit::Commits,
    /// Held by a thread while it appends: the lock between processes does not exclude the threads
    /// of this one.
    appending: Mutex<()>,
    holders: Mutex<Vec<Arc<Holder>>>,
    /// Notified when a range is unlocked.
    unlocked: Notify,
    /// The number of the last request of this process that has ended the appends before it.
    turn: AtomicU64,
}

/// What the journal says, up to `end`.
#[derive(Debug, Default)]
struct State {
    /// Bytes of the whole file, if that is known.
    length: Option<u64>,
    /// See [`Event::Declared`].
    declared: Option<u64>,
    /// See [`Event::Epoch`].
    epoch: u64,
    ranges: Ranges<Crc>,
    end: u64,
    /// The file has at least this length.
    len: u64,
    /// The check of the record before `end`.
    chain: u32,
    phase: Phase,
    /// Milliseconds since 1970.
    touched: u64,
    claimed: bool,
    confirmed: bool,
    /// Some of the bytes were not synced before they were recorded.
    unsynced: bool,
    /// A sync of the journal has failed.
    distrusted: bool,
    /// See [`Entry::cut_after`].
    cut_failed: bool,
    /// Something other than a store has changed or removed the data file.
    changed: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) enum Phase {
    #[default]
    Receiving,
    Sealed {
        seal: Seal,
        attempt: u32,
    },
    Settled {
        record: Record,
        seal: Seal,
    },
    Removed,
}

/// The state of an upload at one time.
#[derive(Debug)]
pub(super) struct View {
    pub(super) phase: Phase,
    pub(super) complete: bool,
    /// Milliseconds since 1970.
    pub(super) touched: u64,
}

impl View {
    pub(super) fn is_rejected(&self) -> bool {
        matches!(&self.phase, Phase::Settled { record, .. } if !record.delivered)
    }
}

impl Entry {
    /// Opens the upload of a journal. `None` if the journal has no valid first record, or that of
    /// another upload.
    pub(super) fn open(
        journal_path: PathBuf,
        journal: File,
        durable: bool,
        disk: Disk,
    ) -> io::Result<Option<Self>> {
        // Something other than a store can have given it the name of another upload.
        let is_own = |created: &Created| {
            let name = journal_path.file_stem().and_then(|name| name.to_str());
            name.and_then(UploadId::from_hex) == Some(created.upload.id)
        };
        let Some(created) = journal::first(&journal)?.filter(is_own) else {
            return Ok(None);
        };
        let data_path = data_path(&journal_path, &created.id);
        let data = match disk::open(&data_path) {
            Err(_) if disk.is_dir(&data_path)? => None,
            data => data?,
        };
        // The whole journal is still to be read.
        let state = State::default();
        let files = (journal, data);
        Ok(Some(Self::new(
            journal_path,
            created,
            files,
            state,
            durable,
            disk,
        )))
    }

    /// Creates an upload. `None` if another request was faster.
    pub(super) fn create(
        journal_path: PathBuf,
        upload: Arc<Upload>,
        takes_appends: bool,
        durable: bool,
        disk: Disk,
    ) -> Result<Option<Self>, StoreError> {
        let created = Created::new(random_id()?, upload, takes_appends);
        let data_path = data_path(&journal_path, &created.id);
        // The journal is whole before it gets its name, so that concurrent requests use the same
        // one.
        let temporary = journal_path.with_extension(format!("{}.new", created.id));
        let time = to_unix_millis(disk.now());
        let mut state = State {
            touched: time,
            ..State::default()
        };
        let first = Event::Created(created.clone()).encode(&mut state.chain, time)?;
        state.end = first.len() as u64;
        state.len = state.end.next_multiple_of(GROWTH);
        let create = || {
            let journal = disk.create(&temporary)?;
            disk.write_all_at("write-journal", &journal, &first, 0)?;
            disk.set_len(&journal, state.len)?;
            let data = disk.create(&data_path)?;
            match disk.rename_new(&temporary, &journal_path) {
                // A sweep has removed it as an orphan.
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
                created,
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
        created: Created,
        (journal, data): (File, Option<File>),
        mut state: State,
        durable: bool,
        disk: Disk,
    ) -> Self {
        state.length = created.upload.length;
        state.declared = created.upload.declared();
        Self {
            data_path: data_path(&journal_path, &created.id),
            names: {
                let record = record_path(&journal_path);
                [journal_path, record]
            },
            takes_appends: created.takes_appends(),
            id: created.id,
            created: created.upload,
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
            holders: Mutex::default(),
            unlocked: Notify::default(),
            turn: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Bytes of the whole file, if that is known.
    pub(super) fn length(&self) -> Option<u64> {
        self.state().length
    }

    /// The length that the client has declared, although it completes nothing.
    pub(super) fn declared(&self) -> Option<u64> {
        self.state().declared
    }

    /// The number of the last request that has ended the appends of other processes, as far as this
    /// one knows.
    pub(super) fn epoch(&self) -> u64 {
        self.state().epoch
    }

    /// Ends the appends of other processes: they record no bytes after this.
    pub(super) fn begin_epoch(&self) -> Result<u64, StoreError> {
        loop {
            let epoch = self.epoch();
            let events = [Event::Epoch(epoch + 1)];
            if self.append_if(&events, false, |entry| entry.epoch() == epoch)? {
                return Ok(epoch + 1);
            }
        }
    }

    /// What the journal says of the phase, as far as it was read.
    pub(super) fn phase(&self) -> Phase {
        self.state().phase.clone()
    }

    /// The current state, including what other processes have recorded.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if there are new records and another process is
    /// appending.
    pub(super) fn view(&self) -> io::Result<View> {
        self.look_for_news()?;
        self.seen()
    }

    /// What the journal says, even while another process is appending: an event that it seems to
    /// have may be taken back. For an entry that only this thread uses, and that is not durable.
    pub(super) fn glance(&self) -> io::Result<View> {
        self.catch_up()?;
        self.seen()
    }

    /// What was read of the journal so far.
    pub(super) fn seen(&self) -> io::Result<View> {
        self.look_for_name()?;
        let state = self.state();
        Ok(View {
            phase: state.phase.clone(),
            complete: state.is_complete(),
            touched: state.touched,
        })
    }

    /// What is stored, as of the last [`view`](Self::view).
    pub(super) fn status(&self) -> Status {
        let state = self.state();
        let (length, declared) = (state.length, state.declared);
        let (upload, state) = match &state.phase {
            Phase::Settled { record, seal } => (&seal.upload, UploadState::Settled(record.clone())),
            Phase::Sealed { seal, .. } => (&seal.upload, UploadState::Complete),
            _ if state.is_complete() => (&self.created, UploadState::Complete),
            _ => (&self.created, UploadState::Receiving(state.ranges.to_set())),
        };
        let mut upload = Upload::clone(upload);
        upload.length = length.or(upload.length);
        upload.declare(declared);
        Status::new(upload, state).with_delivery(&self.id)
    }

    pub(super) fn progress(&self) -> Progress {
        let state = self.state();
        let receiving = matches!(state.phase, Phase::Receiving);
        let received = if receiving {
            state.ranges.total()
        } else {
            state.length.unwrap_or_default()
        };
        Progress {
            received,
            complete: state.is_complete(),
        }
    }

    /// Keeps the upload from being swept, because a client asked for it. Other processes see it by
    /// the modification time of the journal.
    pub(super) fn touch(&self) {
        let time = self.disk.now();
        let now = to_unix_millis(time);
        // The clock may have jumped back.
        if now.abs_diff(self.touched.load(Relaxed)) >= TOUCH && !self.is_settled() {
            self.touched.store(now, Relaxed);
            // If the time cannot be set, the upload is swept somewhat earlier.
            let _ = self.journal.set_modified(time);
        }
    }

    /// Makes the modification time of the journal tell when its record expires.
    pub(super) fn set_expiry(&self, record: &Record) {
        // If the time cannot be set, sweeps read the journal to know it.
        let _ = self.journal.set_modified(record.expires);
    }

    /// When the upload was last changed or asked for, in milliseconds since 1970.
    pub(super) fn last_touch(&self, view: &View) -> io::Result<u64> {
        let modified = self.journal.metadata()?.modified()?;
        Ok(view.touched.max(to_unix_millis(modified)))
    }

    /// The gaps of a range, and the number of ranges of the upload when they are filled. A sealed
    /// upload has no gaps.
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

    pub(super) fn is_removed(&self) -> bool {
        matches!(self.state().phase, Phase::Removed)
    }

    /// Whether the upload takes chunks, as far as this process knows.
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.state().phase, Phase::Receiving)
    }

    pub(super) fn is_settled(&self) -> bool {
        matches!(self.state().phase, Phase::Settled { .. })
    }

    /// How many bytes are stored from the first one on.
    pub(super) fn prefix(&self) -> u64 {
        self.status().prefix()
    }

    /// Whether nothing was stored, and no request has succeeded.
    pub(super) fn is_unused(&self) -> bool {
        let state = self.state();
        matches!(state.phase, Phase::Receiving) && state.ranges.len() == 0 && !state.confirmed
    }

    /// Makes the upload durable, if it has no bytes that are.
    pub(super) fn confirm(&self) -> Result<(), StoreError> {
        if self.is_unused() {
            self.append(&[Event::Confirmed], false)
        } else {
            Ok(())
        }
    }

    /// Whether the data file has its name below the folder of partial uploads.
    pub(super) fn has_data(&self) -> io::Result<bool> {
        match &self.data {
            Some(data) => disk::has_name(data, &self.data_path),
            None => Ok(false),
        }
    }

    /// Whether the data file is as long as the journal says. For an upload that is receiving.
    pub(super) fn has_all_bytes(&self) -> io::Result<bool> {
        let Some(data) = &self.data else {
            return Ok(false);
        };
        // Before the length is read, so that bytes that arrive now do not matter.
        let end = self.state().ranges.end();
        let len = data.metadata()?.len();
        Ok(end <= len && self.length().is_none_or(|length| len <= length))
    }

    /// Checks the data file of an upload that was open, so that no request has looked at it.
    ///
    /// # Errors
    ///
    /// [`Superseded`](StoreError::Superseded) if something other than a store has changed it. The
    /// next request looks at it first, and sets it aside.
    pub(super) fn check_data(&self) -> Result<(), StoreError> {
        if self.is_receiving() && !(self.has_data()? && self.has_all_bytes()?) {
            self.state().changed = true;
            return Err(StoreError::Superseded);
        }
        Ok(())
    }

    /// Whether [`check_data`](Self::check_data) has failed.
    pub(super) fn is_changed(&self) -> bool {
        self.state().changed
    }

    /// Removes what is after `end` in the data file: bytes of appends that are not recorded. The
    /// caller has locked all of the upload.
    pub(super) fn cut_after(&self, end: u64) -> io::Result<()> {
        let Some(data) = &self.data else {
            return Ok(());
        };
        let has_failed = self.state().cut_failed;
        if !has_failed && data.metadata()?.len() <= end {
            return Ok(());
        }
        self.state().cut_failed = true;
        if has_failed {
            // After a failed sync, the next one has an effect only if there is something to write.
            self.disk.set_len(data, end + 1)?;
        }
        self.disk.set_len(data, end)?;
        // Before the journal says how long the file is.
        self.disk
            .sync("sync-data", data)
            .inspect_err(|_| _ = self.failed_syncs.fetch_add(1, SeqCst))?;
        self.state().cut_failed = false;
        Ok(())
    }

    /// Frees the room of the bytes. The upload is about to be removed, and neither claimed nor
    /// written to by others.
    pub(super) fn empty_data(&self) -> io::Result<()> {
        match &self.data {
            Some(data) => self.disk.set_len(data, 0),
            None => Ok(()),
        }
    }

    /// The event that says that these bytes are in the data file.
    pub(super) fn stored(&self, piece: &Range<u64>, crc: Crc) -> Event {
        Event::Stored {
            offset: piece.start,
            len: piece.end - piece.start,
            crc: crc.0,
            synced: self.durable,
            boot: self.boot.unwrap_or_default(),
        }
    }

    /// The CRC-32 of a range, if the journal has it of exactly this range, as one piece or several.
    pub(super) fn checksum_of(&self, range: &Range<u64>) -> io::Result<Option<Crc>> {
        let mut pieces = BTreeMap::new();
        journal::read(&self.journal, 0, &mut 0, |entry| {
            if let Event::Stored {
                offset, len, crc, ..
            } = entry.event
            {
                // If a crash has lost bytes, later ones have replaced them.
                pieces.insert(offset, (len, Crc(crc)));
            }
        })?;
        let (mut at, mut joined) = (range.start, Crc::EMPTY);
        while at < range.end {
            let Some((len, crc)) = pieces.get(&at).filter(|(len, _)| *len > 0) else {
                return Ok(None);
            };
            joined = joined.join(crc, *len);
            at = at.saturating_add(*len);
        }
        Ok((at == range.end).then_some(joined))
    }

    /// Makes the bytes of the whole file durable, and returns their CRC-32.
    ///
    /// # Errors
    ///
    /// [`InvalidData`](io::ErrorKind::InvalidData) if they are not what was stored.
    pub(super) fn sync_whole(&self) -> io::Result<u32> {
        let damaged = |what| io::Error::new(io::ErrorKind::InvalidData, format!("the data {what}"));
        let data = self.data.as_ref().ok_or_else(|| damaged("are gone"))?;
        let (length, crc) = self.whole().ok_or_else(|| damaged("are not complete"))?;
        if data.metadata()?.len() != length {
            return Err(damaged("do not have the right size"));
        }
        if !self.state().unsynced {
            return Ok(crc);
        }
        if self.failed_syncs() > 0 && crc_of(data, 0..length)? != (length, crc) {
            return Err(damaged("are not what was sent"));
        }
        if let Err(error) = self.disk.sync("sync-data", data) {
            self.failed_syncs.fetch_add(1, SeqCst);
            self.make_dirty(data, 0..length)?;
            return Err(error);
        }
        Ok(crc)
    }

    /// The length and the CRC-32 of the file, if it is complete.
    pub(super) fn whole(&self) -> Option<(u64, u32)> {
        let length = self.length()?;
        let crc = if length == 0 {
            Crc::EMPTY
        } else {
            *self.state().ranges.whole(length)?
        };
        Some((length, crc.0))
    }

    /// Appends events, durably (or as durably as the store is set to).
    ///
    /// # Errors
    ///
    /// [`Superseded`](StoreError::Superseded) if the upload is removed or, for stored bytes,
    /// sealed. [`Busy`](StoreError::Busy) if another process is appending.
    pub(super) fn append(&self, events: &[Event], durable: bool) -> Result<(), StoreError> {
        self.append_if(events, durable, |_| true).map(drop)
    }

    /// Like [`append`](Self::append), but only if the upload is `wanted`. Returns whether it is. No
    /// process changes the upload in between.
    pub(super) fn append_if(
        &self,
        events: &[Event],
        durable: bool,
        wanted: impl FnOnce(&Self) -> bool,
    ) -> Result<bool, StoreError> {
        let _appending = self.lock_journal()?;
        self.catch_up()?;
        self.look_for_name()?;
        self.append_now(events, durable, wanted)
    }

    /// Like [`append_if`](Self::append_if), durably, for a caller that has the claim of a sealed
    /// upload.
    ///
    /// To the journal of a sealed upload of chunks only the claim appends, so there is no news, and
    /// nothing to lock.
    pub(super) fn append_claimed(
        &self,
        events: &[Event],
        wanted: impl FnOnce(&Self) -> bool,
    ) -> Result<bool, StoreError> {
        let is_alone = !self.takes_appends && matches!(self.state().phase, Phase::Sealed { .. });
        if !is_alone {
            return self.append_if(events, true, wanted);
        }
        self.disk.before_lock(|| self.appending.try_lock().is_ok());
        let _appending = lock(&self.appending);
        self.look_for_name()?;
        self.append_now(events, true, wanted)
    }

    /// Appends. The caller has the right to, and has read all of the journal.
    fn append_now(
        &self,
        events: &[Event],
        durable: bool,
        wanted: impl FnOnce(&Self) -> bool,
    ) -> Result<bool, StoreError> {
        let (end, chain) = {
            let state = self.state();
            let stores = |event: &Event| matches!(event, Event::Stored { .. });
            match state.phase {
                Phase::Removed => return Err(StoreError::Superseded),
                Phase::Sealed { .. } | Phase::Settled { .. } if events.iter().any(stores) => {
                    return Err(StoreError::Superseded);
                }
                // See `append_claimed`.
                Phase::Sealed { .. } | Phase::Settled { .. }
                    if !self.takes_appends && !events.iter().all(Event::needs_claim) =>
                {
                    return Ok(false);
                }
                _ => (state.end, state.chain),
            }
        };
        if !wanted(self) {
            return Ok(false);
        }
        let (mut new_chain, time) = (chain, to_unix_millis(self.disk.now()));
        let mut records = Vec::new();
        for event in events {
            records.extend(event.encode(&mut new_chain, time)?);
        }
        let new_end = end + records.len() as u64;
        let write = |records: &[u8]| {
            self.disk
                .write_all_at("write-journal", &self.journal, records, end)
        };
        self.make_room(new_end)?;
        let written = write(&records).and_then(|()| {
            if durable || self.durable {
                self.sync_journal(new_end)
            } else {
                Ok(())
            }
        });
        if let Err(error) = written {
            // The records are visible, but may not be durable, so they must not be read. If the
            // void records cannot be written either, the reader syncs the records before it trusts
            // them.
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
        Ok(true)
    }

    /// Takes the right to deliver or to remove the upload. `None` if another request holds it.
    pub(super) fn try_claim(self: &Arc<Self>) -> io::Result<Option<Claim>> {
        fault::step("claim")?;
        if std::mem::replace(&mut self.state().claimed, true) {
            return Ok(None);
        }
        // From here on, dropping the claim releases it.
        let mut claim = Claim {
            entry: Arc::clone(self),
            locked: false,
        };
        claim.locked = ofd::try_lock(&self.journal, CLAIM)?;
        Ok(claim.locked.then_some(claim))
    }

    /// Reads new records of other processes.
    fn look_for_news(&self) -> io::Result<()> {
        if !self.has_news()? {
            return Ok(());
        }
        let _appending = self.lock_journal()?;
        self.catch_up()
    }

    /// A journal that has lost its name was removed by something other than a store, perhaps with
    /// its folder. What is written to it is never found again.
    fn look_for_name(&self) -> io::Result<()> {
        // It moves from the first name to the second one, so the order matters.
        for name in self.names() {
            if self.is_named(name)? {
                return Ok(());
            }
        }
        self.state().phase = Phase::Removed;
        Ok(())
    }

    /// Whether this is a name of the journal.
    pub(super) fn is_named(&self, path: &Path) -> io::Result<bool> {
        disk::has_name(&self.journal, path)
    }

    /// The paths that the journal can have: before and after it is settled.
    pub(super) fn names(&self) -> &[PathBuf; 2] {
        &self.names
    }

    fn has_news(&self) -> io::Result<bool> {
        let end = self.state().end;
        let mut slot = [0; SLOT as usize];
        disk::read_at(&self.journal, &mut slot, end)?;
        Ok(slot != [0; SLOT as usize])
    }

    /// Takes the right to append.
    ///
    /// # Errors
    ///
    /// [`WouldBlock`](io::ErrorKind::WouldBlock) if another process has it.
    fn lock_journal(&self) -> io::Result<(MutexGuard<'_, ()>, Locked<'_>)> {
        self.disk.before_lock(|| self.appending.try_lock().is_ok());
        let appending = lock(&self.appending);
        let lock = Locked::try_new(&self.journal, APPEND)?;
        Ok((appending, lock.ok_or(io::ErrorKind::WouldBlock)?))
    }

    /// Whether no other process has the right to append. It may change at once.
    fn is_journal_free(&self) -> io::Result<bool> {
        match self.lock_journal() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads what other processes have appended. The caller has the right to append, or does not
    /// rely on it. What is visible may not be durable, so it is synced before it is trusted.
    fn catch_up(&self) -> io::Result<()> {
        if !self.has_news()? {
            return Ok(());
        }
        let (start, mut chain) = {
            let state = self.state();
            (state.end, state.chain)
        };
        let mut news = Vec::new();
        let end = journal::read(&self.journal, start, &mut chain, |entry| news.push(entry))?;
        if news.is_empty() {
            return Ok(());
        }
        if self.durable {
            self.sync_journal(end)?;
        }
        for entry in news {
            if self.has_survived(&entry.event)? {
                self.state().apply(entry);
            }
        }
        let mut state = self.state();
        (state.end, state.chain) = (end, chain);
        Ok(())
    }

    /// Whether bytes that were not synced are still there, if the system was restarted since.
    fn has_survived(&self, event: &Event) -> io::Result<bool> {
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
        let range = *offset..offset.saturating_add(*len);
        Ok(crc_of(data, range)? == (*len, *crc))
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

    /// Writes the same bytes again. After a failed sync the next sync succeeds without an effect,
    /// unless there is something new to write.
    fn make_dirty(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        read_blocks(file, range, |block, at| {
            self.disk.write_all_at("write-again", file, block, at)
        })
        .map(drop)
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
}

/// The path of the journal of a settled upload: lists do not read its folder.
pub(super) fn record_path(journal_path: &Path) -> PathBuf {
    let shard = journal_path.parent().unwrap_or(Path::new("."));
    let name = journal_path.file_name().unwrap_or_default();
    shard.with_extension("settled").join(name)
}

/// The path of the data file. It contains the random id of the upload, so it never becomes that of
/// a later upload.
fn data_path(journal_path: &Path, id: &str) -> PathBuf {
    journal_path.with_extension(format!("{id}.data"))
}

impl State {
    /// A file without bytes is complete once a request has succeeded: not before it is durable.
    fn is_complete(&self) -> bool {
        !matches!(self.phase, Phase::Receiving)
            || self.length.is_some_and(|length| {
                self.ranges.covers(0, length) && (length > 0 || self.confirmed)
            })
    }

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
                // Stored bytes are never written again. If a journal contradicts that, the first
                // record counts.
                let range = offset..offset.saturating_add(len);
                if self.ranges.gaps(offset, len).first() == Some(&range) {
                    self.ranges.insert(range, Crc(crc));
                }
            }
            Event::Sealed(seal) => {
                let attempt = match &self.phase {
                    Phase::Sealed { attempt, .. } => *attempt,
                    _ => 1,
                };
                self.phase = Phase::Sealed { seal, attempt };
            }
            Event::Attempt(n) => {
                if let Phase::Sealed { attempt, .. } = &mut self.phase {
                    *attempt = n;
                }
            }
            Event::Settled(record) => {
                if let Phase::Sealed { seal, .. } = &self.phase {
                    let seal = seal.clone();
                    self.phase = Phase::Settled { record, seal };
                }
            }
            Event::Removed => self.phase = Phase::Removed,
            Event::Confirmed => self.confirmed = true,
            Event::Length(length) => self.length = self.length.or(Some(length)),
            Event::Epoch(epoch) => self.epoch = self.epoch.max(epoch),
            Event::Declared(length) => self.declared = self.declared.or(Some(length)),
            Event::Created(_) | Event::Void => {}
        }
    }
}

/// A lock between processes, freed when dropped.
struct Locked<'a> {
    file: &'a File,
    range: Range<u64>,
}

impl<'a> Locked<'a> {
    /// `None` if another process has locked a part of the range.
    fn try_new(file: &'a File, range: Range<u64>) -> io::Result<Option<Self>> {
        let is_locked = ofd::try_lock(file, range.clone())?;
        Ok(is_locked.then_some(Self { file, range }))
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        ofd::unlock(self.file, self.range.clone());
    }
}

/// The right to deliver or to remove an upload, released when dropped.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) entry: Arc<Entry>,
    locked: bool,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The lock ends with the file too.
        if self.locked && Arc::strong_count(&self.entry) > 1 {
            ofd::unlock(&self.entry.journal, CLAIM);
        }
        self.entry.state().claimed = false;
    }
}

/// How many bytes of a range there are, and their CRC-32.
pub(super) fn crc_of(file: &File, range: Range<u64>) -> io::Result<(u64, u32)> {
    let mut hasher = crc32fast::Hasher::new();
    let read = read_blocks(file, range, |block, _| {
        hasher.update(block);
        Ok(())
    })?;
    Ok((read, hasher.finalize()))
}

/// Reads a range, and passes each block with its offset to `see`. Returns the number of bytes,
/// which is smaller if the file ends.
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
