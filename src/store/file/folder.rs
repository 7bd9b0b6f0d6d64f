//! Finds, creates and removes uploads on disk.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use super::{
    blocks::Blocks,
    entry::{Claim, Entry, MAX_LENGTH, Phase, RangeLock, TryLock, View},
    journal::{self, Event},
    room::Room,
    settings::{Durability, Naming},
};
use crate::{
    lock::lock,
    model::upload::{Upload, UploadId},
    store::{
        StoreError,
        disk::{self, Disk, ofd},
        random_id,
    },
};

/// Most idle uploads whose files stay open: two files each.
const OPEN_UPLOADS: u64 = 256;

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
    pub(super) room: Room,
    pub(super) stall: Duration,
    pub(super) open: Mutex<HashMap<UploadId, Arc<Entry>>>,
    /// If this many uploads are open, idle ones are closed.
    pub(super) open_uploads: usize,
    pub(super) blocks: Blocks,
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
        let Some(entry) = self.open_entry(id).filter(|entry| entry.is_receiving()) else {
            return Ok(None);
        };
        Ok(match entry.try_lock_range(range.clone())? {
            TryLock::Locked(lock) => Some(lock),
            TryLock::HeldBy(_) => None,
        })
    }

    /// Creates a folder of the store again that was removed meanwhile. Not the folder above it,
    /// which may be the mount point of a disk that is not mounted.
    pub(super) fn ensure(&self, dir: &Path) -> io::Result<()> {
        if self.disk.is_dir(dir)? {
            return Ok(());
        }
        self.disk.create_dir(dir)?;
        self.disk.sync_dir(dir.parent().unwrap_or(dir))
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

    /// The upload, created if it is new or its record has expired.
    pub(super) fn entry_for(&self, upload: &Upload) -> Result<Arc<Entry>, StoreError> {
        loop {
            if let Some((entry, view)) = self.look(&upload.id)? {
                match view.phase {
                    Phase::Settled { record, .. } if record.is_expired() => {
                        self.try_discard(&entry, |_| true)?;
                    }
                    _ => {
                        entry.touch();
                        return Ok(entry);
                    }
                }
            }
            self.create(upload)?;
        }
    }

    /// The upload, if it exists and its record has not expired.
    pub(super) fn find(&self, id: &UploadId) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        let found = self.look(id)?.filter(|(_, view)| match &view.phase {
            Phase::Settled { record, .. } => !record.is_expired(),
            _ => true,
        });
        if let Some((entry, _)) = &found {
            entry.touch();
        }
        Ok(found)
    }

    /// The upload, if it exists. Its state is durable.
    pub(super) fn look(&self, id: &UploadId) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        loop {
            let entry = match self.open_entry(id) {
                Some(entry) => entry,
                None => match self.open(id)? {
                    Some(entry) => entry,
                    None => return Ok(None),
                },
            };
            let view = entry.view()?;
            match view.phase {
                Phase::Removed => {
                    self.close(&entry);
                    match entry.try_claim()? {
                        // The process that removed it died before its files were gone.
                        Some(claim) => self.unlink(&claim)?,
                        None => self.disk.pause(),
                    }
                }
                // A crash of the system has lost bytes that were not synced, or something other
                // than a store has removed the file.
                Phase::Receiving if !entry.has_data()? => {
                    // Unless another process has just sealed it.
                    if !self.try_discard(&entry, Entry::is_receiving)? {
                        self.disk.pause();
                    }
                }
                _ => return Ok(Some((entry, view))),
            }
        }
    }

    /// Reads the state of an upload, which may not be durable. That saves syncs. `None` if the
    /// journal is gone, or has no valid first record.
    pub(super) fn peek<T>(
        &self,
        id: &UploadId,
        see: impl FnOnce(&Entry, &View) -> T,
    ) -> Result<Option<T>, StoreError> {
        if let Some(entry) = self.open_entry(id) {
            let view = entry.view()?;
            // Another process may have removed it, and the journal may be that of a later upload.
            if !matches!(view.phase, Phase::Removed) {
                return Ok(Some(see(&entry, &view)));
            }
        }
        let path = self.journal_path(id);
        let Some(journal) = disk::if_there(disk::open(&path))? else {
            return Ok(None);
        };
        let Some(entry) = Entry::open(path, journal, false, self.disk.clone())? else {
            return Ok(None);
        };
        let view = entry.view()?;
        Ok(Some(see(&entry, &view)))
    }

    fn open(&self, id: &UploadId) -> Result<Option<Arc<Entry>>, StoreError> {
        let journal_path = self.journal_path(id);
        if !self
            .disk
            .is_dir(journal_path.parent().unwrap_or(&self.partial))?
        {
            return Ok(None);
        }
        let Some(journal) = disk::if_there(disk::open(&journal_path))? else {
            return Ok(None);
        };
        let durable = self.durability == Durability::Power;
        let entry = Entry::open(journal_path.clone(), journal, durable, self.disk.clone())?;
        let Some(entry) = entry else {
            self.set_aside(&journal_path)?;
            return Ok(None);
        };
        Ok(Some(self.trust(entry)?))
    }

    /// Renames a journal without a valid first record. Without syncs, a crash of the system can
    /// leave only the name of a journal.
    fn set_aside(&self, journal_path: &Path) -> Result<(), StoreError> {
        let Ok(journal) = disk::open(journal_path) else {
            // Another request has done it.
            return Ok(());
        };
        // Another request may be about to do the same, and then a new upload has the name.
        ofd::lock(&journal, 0..1)?;
        if disk::has_name(&journal, journal_path)? && journal::first(&journal)?.is_none() {
            let aside = journal_path.with_extension(format!("{}.broken", random_id()?));
            self.disk.rename_new(journal_path, &aside)?;
        }
        Ok(())
    }

    pub(super) fn close(&self, entry: &Arc<Entry>) {
        let mut open = self.open_entries();
        if open
            .get(&entry.created.id)
            .is_some_and(|known| Arc::ptr_eq(known, entry))
        {
            open.remove(&entry.created.id);
        }
    }

    /// Creates the upload, unless another request is faster.
    fn create(&self, upload: &Upload) -> Result<(), StoreError> {
        let length = upload.length.unwrap_or_default();
        if length > MAX_LENGTH {
            return Err(StoreError::TooLarge { limit: MAX_LENGTH });
        }
        self.ensure(&self.partial)?;
        // Before any of its files exists.
        self.room.for_upload(&self.partial, length)?;
        let journal_path = self.journal_path(&upload.id);
        self.disk
            .create_dir(journal_path.parent().unwrap_or(&self.partial))?;
        let durable = self.durability == Durability::Power;
        let created = Entry::create(journal_path, upload.clone(), durable, self.disk.clone())?;
        if let Some(entry) = created {
            self.trust(entry)?;
        }
        Ok(())
    }

    /// The entry that this process uses from now on.
    fn trust(&self, entry: Entry) -> io::Result<Arc<Entry>> {
        if self.durability == Durability::Power {
            // What is visible may not be durable, but from now on it counts as durable.
            entry.make_names_durable()?;
        }
        let mut open = self.open_entries();
        if open.len() >= self.open_uploads {
            open.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        Ok(Arc::clone(
            open.entry(entry.created.id).or_insert(Arc::new(entry)),
        ))
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
        if !entry.append_if(&[Event::Removed], false, wanted)? {
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
        if let Ok(journal) = disk::open(&entry.journal_path) {
            if journal::first(&journal)?.is_some_and(|created| created.id == entry.id) {
                self.disk.remove_if_there(&entry.data_path)?;
                self.disk.remove_if_there(&entry.journal_path)?;
            }
        }
        Ok(())
    }
}
