//! Finds, creates and removes uploads on disk.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::{self, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use super::{
    blocks::{Blocks, Gathered},
    entry::{Claim, Entry, MAX_LENGTH, Phase, RangeLock, TryLock, View, record_path},
    journal::{self, Event},
    room::Room,
    settings::{Durability, Naming},
};
use crate::{
    fault,
    lock::lock,
    model::{
        state::Record,
        upload::{Upload, UploadId},
    },
    store::{
        Observed, Sealed, StoreError, StoreEvent,
        clock::Clock,
        disk::{self, Disk, ofd},
        random_id,
    },
};

/// Most idle uploads whose files stay open: two files each.
const OPEN_UPLOADS: u64 = 256;

/// The folder whose modification time tells when the store was last active.
const CLOCK: &str = "clock";

/// How often that time is set.
const MARK: Duration = Duration::from_secs(60);

/// How many idle uploads stay open in a process that may have `files` files open: they take at most
/// a quarter, and leave the rest to connections.
pub(super) fn open_uploads(files: u64) -> usize {
    (files / 8).min(OPEN_UPLOADS) as usize
}

/// The folders of a store. All methods block.
pub(super) struct Folder {
    pub(super) partial: PathBuf,
    pub(super) finished: PathBuf,
    pub(super) disk: Disk,
    pub(super) durability: Durability,
    pub(super) naming: Option<Naming>,
    pub(super) max_ranges: usize,
    /// Most bytes of the name of a finished file.
    pub(super) longest_name: usize,
    /// Whether the final name is a link. Otherwise the file is renamed when it is sealed.
    pub(super) has_links: bool,
    /// See [`disk::sync_dir_fails`].
    pub(super) sync_dir_fails: bool,
    pub(super) room: Room,
    pub(super) stall: Duration,
    pub(super) open: Mutex<HashMap<UploadId, Arc<Entry>>>,
    /// If this many uploads are open, idle ones are closed.
    pub(super) open_uploads: usize,
    pub(super) blocks: Blocks,
    pub(super) observed: Observed,
    pub(super) clock: Arc<Clock>,
    /// The file system of the folders when the store was opened, if the system has numbers for
    /// them.
    pub(super) device: Option<u64>,
    /// When this process last told the folder what the time is.
    pub(super) marked: Mutex<Option<Instant>>,
    /// The folders of uploads and of records whose names are durable.
    pub(super) durable_shards: Mutex<HashSet<PathBuf>>,
}

impl Folder {
    fn open_entries(&self) -> MutexGuard<'_, HashMap<UploadId, Arc<Entry>>> {
        lock(&self.open)
    }

    pub(super) fn open_entry(&self, id: &UploadId) -> Option<Arc<Entry>> {
        self.open_entries().get(id).cloned()
    }

    /// Locks a range of an upload that this process has open and that is receiving, if that is
    /// possible at once. Reads nothing from the disk, so it does not block.
    pub(super) fn try_lock_open(
        &self,
        id: &UploadId,
        range: &Range<u64>,
    ) -> io::Result<Option<RangeLock>> {
        let may_be_written = |entry: &Arc<Entry>| entry.is_receiving() && !entry.is_changed();
        let Some(entry) = self.open_entry(id).filter(may_be_written) else {
            return Ok(None);
        };
        Ok(match entry.try_lock_range(range.clone()) {
            Ok(TryLock::Locked(lock)) => Some(lock),
            Ok(TryLock::HeldBy(_)) => None,
            // It has to be opened again.
            Err(error) if disk::is_stale(&error) => None,
            Err(error) => return Err(error),
        })
    }

    /// Creates a folder of the store again that was removed meanwhile. Not the folder above it,
    /// which may have been on a disk that is not mounted.
    pub(super) fn ensure(&self, dir: &Path) -> io::Result<()> {
        if self.disk.is_dir(dir)? {
            return Ok(());
        }
        self.check_mount()?;
        self.disk.create_dir(dir)?;
        self.disk.sync_dir(dir.parent().unwrap_or(dir))
    }

    /// Fails if the file system of the store is not mounted: what would be created below its mount
    /// point cannot be found when it is mounted again, and the uploads are not gone.
    fn check_mount(&self) -> io::Result<()> {
        let mut device = None;
        for dir in self.partial.ancestors() {
            let found = disk::if_there(disk::device(dir)).map_err(disk::at("look at", dir))?;
            if found.is_some() {
                device = found;
                break;
            }
        }
        // Mounted again, it can have another number.
        if device == Some(self.device) || last_seen(&self.partial).is_some() {
            return Ok(());
        }
        let why = format!(
            "the file system of {} is not mounted",
            self.partial.display()
        );
        Err(io::Error::new(io::ErrorKind::NotFound, why))
    }

    /// A file without a name, for bytes that wait for their place.
    pub(super) fn spool_file(&self) -> Result<File, StoreError> {
        self.ensure(&self.partial)?;
        let path = self.partial.join(format!("{}.tmp", random_id()?));
        let file = self.disk.create(&path)?;
        self.disk.remove_if_there(&path)?;
        Ok(file)
    }

    pub(super) fn spool_block(&self, file: &mut File, block: &[u8]) -> Result<(), StoreError> {
        let written = file.write_all(block);
        Ok(written.map_err(disk::at("write to a file in", &self.partial))?)
    }

    pub(super) fn journal_path(&self, id: &UploadId) -> PathBuf {
        let name = id.to_string();
        self.partial
            .join(&name[..2])
            .join(format!("{name}.journal"))
    }

    /// The upload, created if it is new or its record has expired. A new one is for chunks only,
    /// unless it `takes_appends`.
    ///
    /// # Errors
    ///
    /// [`Busy`](StoreError::Busy) if another process holds a lock of it.
    pub(super) fn entry_for(
        &self,
        upload: &Upload,
        takes_appends: bool,
    ) -> Result<Arc<Entry>, StoreError> {
        loop {
            if let Some((entry, view)) = self.look_and_check(&upload.id, false)? {
                match view.phase {
                    Phase::Settled { record, .. } if record.expires <= self.now() => {
                        if !self.try_discard(&entry, |_| true)? {
                            return Err(StoreError::Busy);
                        }
                    }
                    _ => {
                        entry.touch();
                        return Ok(entry);
                    }
                }
            }
            self.create(upload, takes_appends)?;
        }
    }

    /// The upload, if it exists and its record has not expired.
    pub(super) fn find(&self, id: &UploadId) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        let found = self.look(id)?.filter(|(_, view)| match &view.phase {
            Phase::Settled { record, .. } => record.expires > self.now(),
            _ => true,
        });
        if let Some((entry, _)) = &found {
            entry.touch();
        }
        Ok(found)
    }

    /// The upload, if it exists. Its state is durable.
    ///
    /// # Errors
    ///
    /// [`Busy`](StoreError::Busy) if another process holds a lock of it.
    pub(super) fn look(&self, id: &UploadId) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        self.look_and_check(id, true)
    }

    /// Like [`look`](Self::look). If the upload is absent, `checks` says whether its folders are
    /// checked: not by a caller that creates it.
    fn look_and_check(
        &self,
        id: &UploadId,
        checks: bool,
    ) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        loop {
            let open = self.open_entry(id);
            let was_open = open.is_some();
            let entry = match open {
                Some(entry) => entry,
                None => match self.open(id, checks)? {
                    Some(entry) => entry,
                    None => return Ok(None),
                },
            };
            let view = match entry.view() {
                Err(error) if was_open && disk::is_stale(&error) => {
                    self.close(&entry);
                    continue;
                }
                view => view?,
            };
            match view.phase {
                Phase::Removed => {
                    self.close(&entry);
                    match entry.try_claim()? {
                        // The process that removed it died before its files were gone.
                        Some(claim) => self.unlink(&claim)?,
                        None => return Err(StoreError::Busy),
                    }
                }
                // A crash of the system has lost bytes that were not synced, or something other
                // than a store has removed the file.
                Phase::Receiving if !entry.has_data()? => {
                    // Unless another process has just sealed it.
                    let is_gone = if entry.progress().received > 0 {
                        self.set_lost_aside(&entry)?
                    } else {
                        self.try_discard(&entry, Entry::is_receiving)?
                    };
                    if !is_gone {
                        return Err(StoreError::Busy);
                    }
                }
                // Something other than a store has changed it.
                Phase::Receiving if !entry.has_all_bytes()? => {
                    let claim = entry.try_claim()?.ok_or(StoreError::Busy)?;
                    if matches!(entry.view()?.phase, Phase::Receiving) && !entry.has_all_bytes()? {
                        let why = "the data do not have the right size";
                        let why = io::Error::new(io::ErrorKind::InvalidData, why);
                        self.set_data_aside(&claim, &why.into())?;
                    }
                }
                _ => return Ok(Some((entry, view))),
            }
        }
    }

    /// Reads the state of an upload, which may not be durable. That saves syncs, and needs no lock.
    /// `None` if the journal is gone, or has no valid first record.
    pub(super) fn peek<T>(
        &self,
        id: &UploadId,
        see: impl FnOnce(&Entry, &View) -> T,
    ) -> Result<Option<T>, StoreError> {
        if let Some(entry) = self.open_entry(id) {
            match entry.view() {
                // Another process may have removed it, and the journal may be that of a later
                // upload.
                Ok(view) if matches!(view.phase, Phase::Removed) => {}
                // Another process is appending.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if disk::is_stale(&error) => {}
                view => return Ok(Some(see(&entry, &view?))),
            }
        }
        let path = self.journal_path(id);
        let Some(journal) = disk::open(&path)? else {
            return Ok(None);
        };
        self.peek_at(path, journal, see)
    }

    /// Like [`peek`](Self::peek), for a journal that is open. `path` is where it was created.
    pub(super) fn peek_at<T>(
        &self,
        path: PathBuf,
        journal: File,
        see: impl FnOnce(&Entry, &View) -> T,
    ) -> Result<Option<T>, StoreError> {
        let Some(entry) = Entry::open(path, journal, false, self.disk.clone())? else {
            return Ok(None);
        };
        let view = entry.glance()?;
        Ok(Some(see(&entry, &view)))
    }

    fn open(&self, id: &UploadId, checks: bool) -> Result<Option<Arc<Entry>>, StoreError> {
        let journal_path = self.journal_path(id);
        let record_path = record_path(&journal_path);
        // A journal moves from the first place to the second one.
        for path in [&journal_path, &record_path] {
            let shard = path.parent().unwrap_or(&self.partial);
            let opened = disk::open(path);
            if checks || !matches!(opened, Ok(None)) {
                match self.disk.is_dir(shard) {
                    // There can be no upload. A new one sets it aside.
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => continue,
                    Ok(false) => {
                        self.check_mount()?;
                        continue;
                    }
                    is_dir => is_dir?,
                };
            }
            let journal = match opened {
                Ok(None) => continue,
                Ok(Some(journal)) => journal,
                Err(error) if self.disk.is_dir(path)? => {
                    self.set_aside(Some(id), path, &error.into())?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let path_of_record = path == &record_path;
            let durable = self.durability == Durability::Power;
            let entry = Entry::open(journal_path.clone(), journal, durable, self.disk.clone())?;
            if let Some(entry) = entry {
                if !path_of_record || is_record(&entry.view()?) {
                    return Ok(Some(self.trust(entry)?));
                }
            }
            let is_valid = |journal: &File| self.is_valid(&journal_path, journal, path_of_record);
            self.set_journal_aside(id, path, is_valid)?;
        }
        Ok(None)
    }

    /// Whether there is an upload in a journal. In a folder of records, it has to be settled.
    pub(super) fn is_valid(
        &self,
        journal_path: &Path,
        journal: &File,
        is_record: bool,
    ) -> Result<bool, StoreError> {
        let journal = journal.try_clone()?;
        let valid = |_: &Entry, view: &View| !is_record || self::is_record(view);
        let found = self.peek_at(journal_path.to_owned(), journal, valid)?;
        Ok(found.unwrap_or_default())
    }

    /// Renames a journal that is not valid. Without syncs, a crash of the system can leave only the
    /// name of a journal.
    fn set_journal_aside(
        &self,
        id: &UploadId,
        path: &Path,
        is_valid: impl Fn(&File) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let Ok(Some(journal)) = disk::open(path) else {
            // Another request has done it.
            return Ok(());
        };
        // Another request may be about to do the same, and then a new upload has the name.
        if !ofd::try_lock(&journal, 0..1)? {
            return Err(StoreError::Busy);
        }
        if disk::has_name(&journal, path)? && !is_valid(&journal)? {
            self.set_aside(Some(id), path, &StoreError::new("the journal is damaged"))?;
        }
        Ok(())
    }

    /// Sets the data of an upload aside, which are not what was stored, and removes the upload.
    pub(super) fn set_data_aside(&self, claim: &Claim, why: &StoreError) -> Result<(), StoreError> {
        let entry = &claim.entry;
        let lock = entry.try_lock_whole()?.ok_or(StoreError::Busy)?;
        if entry.has_data()? {
            self.set_aside(Some(&entry.created.id), &entry.data_path, why)?;
        }
        self.discard(claim, &lock, |_| true).map(drop)
    }

    /// Sets the journal of an upload aside whose bytes are gone, unless another request uses the
    /// upload. Returns whether it did.
    fn set_lost_aside(&self, entry: &Arc<Entry>) -> Result<bool, StoreError> {
        let (Some(_claim), Some(_lock)) = (entry.try_claim()?, entry.try_lock_whole()?) else {
            return Ok(false);
        };
        // See `discard`.
        if !entry.append_if(&[Event::Removed], false, Entry::is_receiving)? {
            return Ok(false);
        }
        self.close(entry);
        let why = StoreError::new("the data are gone");
        if entry.data_path.is_dir() {
            self.set_aside(Some(&entry.created.id), &entry.data_path, &why)?;
        }
        self.set_aside(Some(&entry.created.id), &entry.names()[0], &why)?;
        Ok(true)
    }

    /// Renames something that is in the way of an upload. A sweep removes it if it is a file.
    fn set_aside(
        &self,
        id: Option<&UploadId>,
        path: &Path,
        why: &StoreError,
    ) -> Result<(), StoreError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let stem = name.split('.').next().unwrap_or_default();
        let aside = path.with_file_name(format!("{stem}.{}.broken", random_id()?));
        if disk::if_there(self.disk.rename_new(path, &aside))?.is_none() {
            // Another request has removed it meanwhile.
            return Ok(());
        }
        // It is kept for as long as an abandoned upload from now on.
        if let Ok(Some(file)) = disk::open(&aside) {
            // If the time cannot be set, it is kept from its last change on.
            let _ = file.set_modified(self.now());
        }
        self.observed.tell(&StoreEvent::SetAside {
            upload: id.copied(),
            place: &aside.to_string_lossy(),
            error: why,
        });
        Ok(())
    }

    /// Tells that something was passed over.
    pub(super) fn tell_skipped(&self, path: &Path, error: &StoreError) {
        self.observed.tell(&StoreEvent::Skipped {
            place: &path.to_string_lossy(),
            error,
        });
    }

    /// Moves the journal of a settled upload to where lists do not look. It is an index: the
    /// journal is valid in both places.
    pub(super) fn file_record(&self, entry: &Entry, record: &Record) -> Result<(), StoreError> {
        let [from, to] = entry.names();
        let shard = to.parent().unwrap_or(&self.partial);
        if !lock(&self.durable_shards).contains(shard) {
            self.disk.create_dir(shard)?;
            // Otherwise a crash could keep only the removal of the old name.
            self.make_shard_durable(shard)?;
        }
        entry.set_expiry(record);
        match self.disk.rename_new(from, to) {
            // A crash of the system has left the journal both names.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && entry.is_named(to)? => {
                Ok(self.disk.remove_if_there(from)?)
            }
            // It is filed already, or a crash has left an older record. That one expires first.
            renamed => Ok(renamed?),
        }
    }

    /// Makes the names of an upload durable.
    pub(super) fn make_names_durable(&self, entry: &Entry) -> io::Result<()> {
        let shard = entry.names()[0].parent().unwrap_or(&self.partial);
        self.disk.sync_dir(shard)?;
        self.make_shard_durable(shard)
    }

    /// Makes the name of a folder of uploads or records durable, if this process has not done it.
    fn make_shard_durable(&self, shard: &Path) -> io::Result<()> {
        if !lock(&self.durable_shards).contains(shard) {
            self.disk.sync_dir(&self.partial)?;
            lock(&self.durable_shards).insert(shard.to_owned());
        }
        Ok(())
    }

    /// The time that counts for the age of uploads. Other runs of the store see it by the
    /// modification time of an empty folder.
    pub(super) fn now(&self) -> SystemTime {
        let now = self.disk.now();
        let mut marked = lock(&self.marked);
        if marked.is_none_or(|marked| marked.elapsed() > MARK) {
            *marked = Some(Instant::now());
            let seen = last_seen(&self.partial);
            if seen.is_some_and(|seen| seen < now) {
                // If the time cannot be set, the next run knows an earlier one.
                let _ = disk::set_dir_modified(&self.partial.join(CLOCK), now);
            }
        }
        now
    }

    pub(super) fn close(&self, entry: &Entry) {
        let mut open = self.open_entries();
        if open
            .get(&entry.created.id)
            .is_some_and(|known| known.id == entry.id)
        {
            open.remove(&entry.created.id);
        }
    }

    /// Creates the upload, unless another request is faster.
    fn create(&self, upload: &Upload, takes_appends: bool) -> Result<(), StoreError> {
        let length = upload.length.unwrap_or_default();
        if length > MAX_LENGTH {
            return Err(StoreError::TooLarge { limit: MAX_LENGTH });
        }
        let journal_path = self.prepare(&upload.id, length)?;
        let durable = self.durability == Durability::Power;
        let (upload, disk) = (Arc::new(upload.clone()), self.disk.clone());
        let created = Entry::create(journal_path, upload, takes_appends, durable, disk)?;
        if let Some(entry) = created {
            if has_record(&entry)? {
                self.try_discard(&Arc::new(entry), Entry::is_unused)?;
                return Ok(());
            }
            self.trust(entry)?;
        }
        Ok(())
    }

    /// Creates the folder for a new upload, if there is room for it. Returns the path of its
    /// journal.
    fn prepare(&self, id: &UploadId, length: u64) -> Result<PathBuf, StoreError> {
        self.ensure(&self.partial)?;
        let journal_path = self.journal_path(id);
        let shard = journal_path.parent().unwrap_or(&self.partial);
        let is_there = match self.disk.is_dir(shard) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                self.set_aside(None, shard, &error.into())?;
                false
            }
            is_dir => is_dir?,
        };
        // Before any of its files exists.
        self.room.for_upload(&self.partial, length)?;
        if !is_there {
            self.check_mount()?;
            if self.disk.create_dir(shard)? {
                // Something other than a store may have removed an earlier one.
                lock(&self.durable_shards).remove(shard);
            }
        }
        if !lock(&self.durable_shards).contains(shard) {
            // Without this folder the clock of the system counts after a restart.
            let _ = self.disk.create_dir(&self.partial.join(CLOCK));
        }
        Ok(journal_path)
    }

    /// Creates an upload of which all bytes have arrived, claims it, and gives the file its final
    /// name. `None` if the upload exists.
    pub(super) fn create_whole(
        &self,
        upload: &Arc<Upload>,
        bytes: &Gathered,
    ) -> Result<Option<(Claim, Sealed)>, StoreError> {
        if self.look_and_check(&upload.id, false)?.is_some() {
            return Ok(None);
        }
        let len = bytes.end();
        let journal_path = self.prepare(&upload.id, len)?;
        let mut room = self.room.reservation();
        room.grow(&self.partial, len)?;
        let durable = self.durability == Durability::Power;
        let name = |id: &str| self.first_name(id, upload);
        let created = Entry::create_whole(journal_path, upload, bytes, name, durable, &self.disk)?;
        let Some((claim, seal)) = created else {
            return Ok(None);
        };
        room.written(len);
        let entry = Arc::clone(&claim.entry);
        if has_record(&entry)? {
            let lock = entry.try_lock_whole()?.ok_or(StoreError::Busy)?;
            self.discard(&claim, &lock, |_| true)?;
            return Ok(None);
        }
        // The record of the seal has to be durable before the file has its final name.
        self.make_names_durable(&entry)?;
        fault::step("claim")?;
        let sealed = self.publish_sealed(&entry, seal, 1)?;
        // Not before the disk has proved to be alive: a repeated request would take what is visible
        // for durable. If another request has opened the upload meanwhile, it keeps its entry, and
        // the claim holds as if another process had it.
        self.keep_open(entry);
        Ok(Some((claim, sealed)))
    }

    /// The entry that this process uses from now on.
    fn trust(&self, entry: Entry) -> io::Result<Arc<Entry>> {
        if self.durability == Durability::Power {
            // What is visible may not be durable, but from now on it counts as durable.
            self.make_names_durable(&entry)?;
        }
        Ok(self.keep_open(Arc::new(entry)))
    }

    /// Keeps an entry open, unless this process has the upload open already. Returns the one that
    /// is open.
    fn keep_open(&self, entry: Arc<Entry>) -> Arc<Entry> {
        let mut open = self.open_entries();
        if open.len() >= self.open_uploads {
            open.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        Arc::clone(open.entry(entry.created.id).or_insert(entry))
    }

    /// Removes an upload that a failed request has created, unless another request uses it.
    pub(super) fn undo_create(&self, entry: &Arc<Entry>) {
        if entry.is_unused() {
            // An upload that cannot be removed now is swept later. The request fails with its own
            // error.
            let _ = self.try_discard(entry, Entry::is_unused);
        }
    }

    /// Removes an upload if it is neither claimed nor written to, and is `wanted`. Returns whether
    /// it was removed.
    pub(super) fn try_discard(
        &self,
        entry: &Arc<Entry>,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<bool, StoreError> {
        let Some(claim) = entry.try_claim()? else {
            return Ok(false);
        };
        let Some(lock) = entry.try_lock_whole()? else {
            return Ok(false);
        };
        self.discard(&claim, &lock, wanted)
    }

    /// Removes an upload if it is `wanted`, with its file unless the application has moved it. The
    /// claim and the lock keep it from being delivered and from being written to.
    pub(super) fn discard(
        &self,
        claim: &Claim,
        _lock: &RangeLock,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<bool, StoreError> {
        let entry = &claim.entry;
        let phase = entry.view()?.phase;
        if matches!(phase, Phase::Removed) || !wanted(entry) {
            return Ok(false);
        }
        match phase {
            Phase::Sealed { seal, .. } => self.withdraw(entry, &seal)?,
            // The application may have moved the file since.
            Phase::Settled { seal, .. } => self.trim(&seal),
            Phase::Receiving | Phase::Removed => {}
        }
        // Other processes that have it open read this before its name can belong to a later upload.
        let removed = match entry.append_if(&[Event::Removed], false, &wanted) {
            // To free room must not need any. If this fails too, the upload is damaged, and begins
            // anew.
            Err(StoreError::Full(_)) if entry.is_receiving() && wanted(entry) => {
                entry.empty_data()?;
                entry.append_if(&[Event::Removed], false, wanted)?
            }
            removed => removed?,
        };
        if !removed {
            return Ok(false);
        }
        self.close(entry);
        self.unlink(claim)?;
        Ok(true)
    }

    /// Removes the files of a removed upload. The claim is held, and the journal is removed last:
    /// so the name cannot belong to a later upload before, and no other process removes it twice.
    fn unlink(&self, claim: &Claim) -> Result<(), StoreError> {
        let entry = &claim.entry;
        for path in entry.names() {
            let Ok(Some(journal)) = disk::open(path) else {
                continue;
            };
            if journal::first(&journal)?.is_some_and(|created| created.id == entry.id) {
                match self.disk.remove_if_there(&entry.data_path) {
                    Err(error) if self.disk.is_dir(&entry.data_path)? => {
                        self.set_aside(Some(&entry.created.id), &entry.data_path, &error.into())?;
                    }
                    removed => removed?,
                }
                self.disk.remove_if_there(path)?;
            }
        }
        Ok(())
    }

    /// Removes the record of an upload, whose name is `path`, if it expired before this time. A
    /// crash may bring it back: then it has still expired.
    pub(super) fn remove_record(
        &self,
        id: &UploadId,
        path: &Path,
        before: SystemTime,
    ) -> Result<bool, StoreError> {
        let Some(journal) = disk::open(path)? else {
            return Ok(false);
        };
        let entry = Entry::open(self.journal_path(id), journal, false, self.disk.clone())?;
        let Some(entry) = entry.map(Arc::new) else {
            // This sets it aside.
            return self.look(id).map(|_| false);
        };
        let seal = match entry.glance()?.phase {
            Phase::Settled { record, seal } if record.expires < before => Some(seal),
            Phase::Settled { .. } => return Ok(false),
            Phase::Removed => None,
            Phase::Receiving | Phase::Sealed { .. } => return self.look(id).map(|_| false),
        };
        // The claim keeps others from removing it, and then the name from belonging to a later one.
        let claim = entry.try_claim()?;
        if claim.is_none() || !entry.is_named(path)? {
            return Ok(false);
        }
        if let Some(seal) = seal {
            // The application may have moved the file since.
            self.trim(&seal);
        }
        self.disk.remove_if_there(&entry.data_path)?;
        self.disk.remove_if_there(path)?;
        if let Some(open) = self.open_entry(id).filter(|open| open.id == entry.id) {
            self.close(&open);
        }
        Ok(true)
    }
}

/// When a run of the store was last active, by its clock.
pub(super) fn last_seen(partial: &Path) -> Option<SystemTime> {
    let seen = partial.join(CLOCK).symlink_metadata().ok()?;
    seen.is_dir().then(|| seen.modified().ok())?
}

/// Whether the upload was delivered, and its record filed, after the caller has looked for it and
/// before it was created again.
fn has_record(entry: &Entry) -> io::Result<bool> {
    let [_, record] = entry.names();
    let found = disk::if_there(record.symlink_metadata());
    Ok(found.map_err(disk::at("look at", record))?.is_some())
}

/// Whether the journal of this upload may be in a folder of records. A removed one is about to be
/// unlinked.
fn is_record(view: &View) -> bool {
    matches!(view.phase, Phase::Settled { .. } | Phase::Removed)
}

/// Whether stored bytes are not what they were.
pub(super) fn is_damage(error: &StoreError) -> bool {
    matches!(error, StoreError::Failed(error) if error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::InvalidData))
}
