//! Where uploads are on disk: found, created and removed.

use std::{
    collections::HashMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use super::{
    Durability, Naming,
    blocks::Blocks,
    disk::{self, Disk, lock},
    entry::{Claim, Entry, Landing, Phase, TakeOff, View},
    journal::{self, Event},
    room::Room,
};
use crate::store::{StoreError, Upload, UploadKey, random_id};

/// Most uploads whose files stay open when nobody uses them: two files each.
const OPEN_UPLOADS: u64 = 256;

/// How many of them a process can afford that may have so many files open: a quarter of those. Connections
/// need the others.
pub(super) fn open_uploads(files: u64) -> usize {
    (files / 8).min(OPEN_UPLOADS) as usize
}

/// The folders of a store. All that it does blocks.
pub(super) struct Folder {
    pub(super) partial: PathBuf,
    pub(super) finished: PathBuf,
    pub(super) disk: Disk,
    pub(super) durability: Durability,
    pub(super) naming: Option<Naming>,
    pub(super) max_ranges: usize,
    pub(super) room: Room,
    pub(super) stall: Duration,
    pub(super) open: Mutex<HashMap<UploadKey, Arc<Entry>>>,
    /// When those are closed that nobody uses.
    pub(super) open_uploads: usize,
    pub(super) blocks: Blocks,
}

impl Folder {
    fn open_entries(&self) -> MutexGuard<'_, HashMap<UploadKey, Arc<Entry>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the right to write a range of an upload that this process has open and that receives,
    /// if it can be had at once. This does not block: it reads nothing of the disk.
    pub(super) fn try_take_off_known(
        &self,
        key: &UploadKey,
        range: &Range<u64>,
    ) -> io::Result<Option<Landing>> {
        let known = self.open_entries().get(key).cloned();
        let Some(entry) = known.filter(|entry| entry.is_receiving()) else {
            return Ok(None);
        };
        Ok(match entry.try_take_off(range.clone())? {
            TakeOff::Clear(landing) => Some(landing),
            TakeOff::Behind(_) => None,
        })
    }

    fn journal_path(&self, key: &UploadKey) -> PathBuf {
        let name = key.to_string();
        self.partial
            .join(&name[..2])
            .join(format!("{name}.journal"))
    }

    /// The upload, created if it is new or its record has expired.
    pub(super) fn entry_for(&self, upload: &Upload) -> Result<Arc<Entry>, StoreError> {
        loop {
            if let Some((entry, view)) = self.look(&upload.key)? {
                match view.phase {
                    Phase::Settled(record) if record.expires <= SystemTime::now() => {
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

    /// The upload, if there is one and its record has not expired.
    pub(super) fn find(&self, key: &UploadKey) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        let found = self.look(key)?.filter(|(_, view)| match &view.phase {
            Phase::Settled(record) => record.expires > SystemTime::now(),
            _ => true,
        });
        if let Some((entry, _)) = &found {
            entry.touch();
        }
        Ok(found)
    }

    /// The upload, if there is one.
    fn look(&self, key: &UploadKey) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        loop {
            let known = self.open_entries().get(key).cloned();
            let entry = match known {
                Some(entry) => entry,
                None => match self.open(key)? {
                    Some(entry) => entry,
                    None => return Ok(None),
                },
            };
            let view = entry.view()?;
            match view.phase {
                Phase::Removed => {
                    self.close(&entry);
                    match entry.try_claim()? {
                        // Who has removed it has died before its files were gone.
                        Some(claim) => self.unlink(&claim)?,
                        None => self.disk.pause(),
                    }
                }
                // A crash of the system has lost the bytes, if they were not to be synced; or somebody
                // has removed the file.
                Phase::Receiving if !entry.has_data()? => {
                    // Unless another process has just finished it.
                    if !self.try_discard(&entry, Entry::is_receiving)? {
                        self.disk.pause();
                    }
                }
                _ => return Ok(Some((entry, view))),
            }
        }
    }

    fn open(&self, key: &UploadKey) -> Result<Option<Arc<Entry>>, StoreError> {
        let journal_path = self.journal_path(key);
        if !disk::is_dir(journal_path.parent().unwrap_or(&self.partial))? {
            return Ok(None);
        }
        let journal = match disk::open(&journal_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            journal => journal?,
        };
        let journal_id = self.disk.file_id(&journal)?;
        let durable = self.durability == Durability::Power;
        let entry = Entry::open(journal_path.clone(), journal, durable, self.disk.clone())?;
        let Some(entry) = entry else {
            self.set_aside(&journal_path, journal_id)?;
            return Ok(None);
        };
        Ok(Some(self.trust(entry)?))
    }

    /// Takes a journal without a beginning out of the way: without syncs, a crash of the system may
    /// have left its name only.
    fn set_aside(&self, journal_path: &Path, id: Option<u64>) -> Result<(), StoreError> {
        let Ok(journal) = disk::open(journal_path) else {
            return Ok(());
        };
        // Another request may be about to do the same, and a new upload have the name then.
        lock::lock(&journal, 0..1)?;
        let Ok(named) = disk::open(journal_path) else {
            return Ok(());
        };
        if self.disk.file_id(&named)? == id && journal::first(&named)?.is_none() {
            let aside = journal_path.with_extension(format!("{}.broken", random_id()?));
            self.disk.rename_new(journal_path, &aside)?;
        }
        Ok(())
    }

    fn close(&self, entry: &Arc<Entry>) {
        let mut open = self.open_entries();
        if open
            .get(&entry.created.key)
            .is_some_and(|known| Arc::ptr_eq(known, entry))
        {
            open.remove(&entry.created.key);
        }
    }

    /// Creates the upload, unless another request is faster.
    fn create(&self, upload: &Upload) -> Result<(), StoreError> {
        // Before anything of it is there.
        self.room.for_upload(&self.partial, upload.total)?;
        let journal_path = self.journal_path(&upload.key);
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
            // What is visible need not be durable; and what is trusted is acknowledged.
            entry.make_names_durable()?;
        }
        let mut open = self.open_entries();
        if open.len() >= self.open_uploads {
            open.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        Ok(Arc::clone(
            open.entry(entry.created.key).or_insert(Arc::new(entry)),
        ))
    }

    /// Removes an upload if nobody is busy with it and it is still as `wanted`.
    pub(super) fn try_discard(
        &self,
        entry: &Arc<Entry>,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<bool, StoreError> {
        let Some(claim) = entry.try_claim()? else {
            return Ok(false);
        };
        let Some(landing) = entry.try_ground()? else {
            return Ok(false);
        };
        entry.view()?;
        let wanted = wanted(entry);
        if wanted {
            self.discard(&claim, &landing)?;
        }
        Ok(wanted)
    }

    /// Removes an upload, and its file if nobody has taken it. Nobody else may deliver it or write.
    pub(super) fn discard(&self, claim: &Claim, _landing: &Landing) -> Result<(), StoreError> {
        let entry = &claim.entry;
        match entry.view()?.phase {
            Phase::Sealed(seal) => self.withdraw(entry, &seal)?,
            Phase::Removed => return Ok(()),
            _ => {}
        }
        // Others who have it open are told before its name can be another upload's.
        entry.append(&[Event::Removed], false)?;
        self.close(entry);
        self.unlink(claim)
    }

    /// Removes the files of a removed upload. Only with its claim, and the journal last: so its
    /// name is nobody else's before, and nobody does it twice.
    fn unlink(&self, claim: &Claim) -> Result<(), StoreError> {
        let entry = &claim.entry;
        if let Ok(journal) = disk::open(&entry.journal_path) {
            if journal::first(&journal)?.is_some_and(|(_, id)| id == entry.id) {
                self.disk.remove_if_there(&entry.data_path)?;
                self.disk.remove_if_there(&entry.journal_path)?;
            }
        }
        Ok(())
    }

    /// Looks closely at each upload that seems to be worth it, and that this version can read. A close
    /// look costs syncs, and most journals are of what was delivered long ago.
    pub(super) fn each(
        &self,
        is_worth_it: impl Fn(&Entry, &View) -> io::Result<bool>,
        mut see: impl FnMut(&Self, &Arc<Entry>, View) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        // One that cannot be read is no reason not to look at the others.
        let mut failed = None;
        for (key, path) in self.journals()? {
            let mut look = || {
                let Some(seems) = of_this_version(self.peek(&key, &path, &is_worth_it))? else {
                    return Ok(());
                };
                // What has no beginning is set aside by a close look.
                if seems.transpose()?.unwrap_or(true) {
                    if let Some((entry, view)) = of_this_version(self.look(&key))?.flatten() {
                        see(self, &entry, view)?;
                    }
                }
                Ok::<_, StoreError>(())
            };
            failed = look().err().or(failed);
        }
        failed.map_or(Ok(()), Err)
    }

    /// Looks at every upload without a promise that what is seen is durable.
    pub(super) fn each_as_it_seems(
        &self,
        mut see: impl FnMut(&Entry, &View),
    ) -> Result<(), StoreError> {
        for (key, path) in self.journals()? {
            let seen = self.peek(&key, &path, |entry, view| match view.phase {
                Phase::Removed => {}
                // A crash of the system has lost the bytes, if they were not to be synced.
                Phase::Receiving if entry.data.is_none() => {}
                _ => see(entry, view),
            });
            of_this_version(seen)?;
        }
        Ok(())
    }

    /// Looks at an upload as it seems to be; `None` if its journal is gone, or has no beginning.
    fn peek<T>(
        &self,
        key: &UploadKey,
        path: &Path,
        see: impl FnOnce(&Entry, &View) -> T,
    ) -> Result<Option<T>, StoreError> {
        let known = self.open_entries().get(key).cloned();
        if let Some(entry) = known {
            let view = entry.view()?;
            // Another process may have removed it, and the name may be another upload's by now.
            if !matches!(view.phase, Phase::Removed) {
                return Ok(Some(see(&entry, &view)));
            }
        }
        let journal = match disk::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            journal => journal?,
        };
        let Some(entry) = Entry::open(path.to_owned(), journal, false, self.disk.clone())? else {
            return Ok(None);
        };
        let view = entry.view()?;
        Ok(Some(see(&entry, &view)))
    }

    fn journals(&self) -> Result<Vec<(UploadKey, PathBuf)>, StoreError> {
        let mut journals = self.partial_files()?;
        journals.retain(|path| path.extension().is_some_and(|e| e == "journal"));
        let keyed = journals.into_iter().filter_map(|path| {
            let key = UploadKey::from_hex(path.file_stem()?.to_str()?)?;
            Some((key, path))
        });
        Ok(keyed.collect())
    }

    /// Removes what a process has left that died while it created or removed an upload.
    pub(super) fn remove_orphans(&self, before: SystemTime) -> Result<(), StoreError> {
        for path in self.partial_files()? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let parts: Vec<_> = name.split('.').collect();
            let (key, id) = match parts[..] {
                [key, id, "new" | "data" | "broken"] => (UploadKey::from_hex(key), id),
                _ => continue,
            };
            let touched = path.metadata().and_then(|metadata| metadata.modified());
            let Some(key) = key.filter(|_| touched.is_ok_and(|touched| touched < before)) else {
                continue;
            };
            let Some(owner) = of_this_version(self.look(&key))? else {
                continue;
            };
            if owner.is_none_or(|(entry, _)| entry.id != id) {
                self.disk.remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// All files below the folder of partial uploads.
    pub(super) fn partial_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        files_below(&self.partial)
    }
}

/// `None` of an upload that another version of this crate has written, which sees to it itself.
fn of_this_version<T>(read: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Err(StoreError::Failed(error))
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::Unsupported) =>
        {
            Ok(None)
        }
        read => read.map(Some),
    }
}

/// The files in the folders of a folder. No links, and nothing behind them.
pub(super) fn files_below(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut files = Vec::new();
    for dir in std::fs::read_dir(dir)? {
        let dir = dir?;
        if dir.file_type()?.is_dir() {
            for file in std::fs::read_dir(dir.path())? {
                let file = file?;
                if file.file_type()?.is_file() {
                    files.push(file.path());
                }
            }
        }
    }
    Ok(files)
}

/// A file without a name.
pub(super) fn tempfile_in(disk: &Disk, dir: &Path) -> Result<std::fs::File, StoreError> {
    let path = dir.join(format!("{}.tmp", random_id()?));
    let file = disk.create(&path)?;
    disk.remove_if_there(&path)?;
    Ok(file)
}
