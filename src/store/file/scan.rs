//! Lists and sweeps all uploads, one folder after the other, so that the memory for it does not
//! grow with the number of uploads.

use std::{
    io,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    entry::{CLAIM, Entry, Phase, View},
    folder::Folder,
};
use crate::{
    model::{
        hex::Hex,
        state::to_unix_millis,
        upload::{Role, UploadId},
    },
    store::{
        Expiry, Filter, Listed, Page, StoreError, Swept, Usage,
        disk::{self, ofd},
    },
};

impl Folder {
    pub(super) fn list(
        &self,
        filter: &Filter,
        after: Option<&UploadId>,
    ) -> Result<Page, StoreError> {
        // Without its root the store cannot be read. That is not an empty store.
        self.ensure(&self.partial)?;
        let (mut uploads, mut read, mut last) = (Vec::new(), 0, None);
        for shard in after.map_or(0, |after| after.as_bytes()[0])..=u8::MAX {
            let mut ids = self.ids_in(&self.shard(shard));
            ids.retain(|id| after.is_none_or(|after| id > after));
            ids.sort_unstable();
            for id in ids {
                // Also if the filter accepts few of them: a page is little work.
                if read == Page::MAX {
                    return Ok(Page::new(uploads, last));
                }
                read += 1;
                // An upload that cannot be read, or that another version of this crate has written,
                // is passed over: requests to it get the error.
                let listed = self.listed(&id, filter);
                uploads.extend(self.or_skip(&self.journal_path(&id), listed).flatten());
                last = Some(id);
            }
        }
        Ok(Page::new(uploads, None))
    }

    /// A durable look costs syncs. Most uploads are not complete, and do not need one.
    fn listed(&self, id: &UploadId, filter: &Filter) -> Result<Option<Listed>, StoreError> {
        let accepted = |entry: &Entry, view: &View| {
            let is_unsettled = match view.phase {
                // A crash of the system has lost the bytes, if they were not synced.
                Phase::Receiving => entry.data.is_some(),
                Phase::Sealed { .. } => true,
                Phase::Settled { .. } | Phase::Removed => false,
            };
            let listed = Listed::new(entry.status().upload, entry.progress());
            let accepted = is_unsettled && filter.accepts(&listed.upload, listed.progress);
            accepted.then_some(listed)
        };
        let Some(seems) = self.peek(id, accepted)? else {
            // A damaged journal: this sets it aside.
            return self.look(id).map(|_| None);
        };
        if seems.is_none() || !filter.complete {
            return Ok(seems);
        }
        let found = self.look(id)?;
        Ok(found.and_then(|(entry, view)| accepted(&entry, &view)))
    }

    /// What the uploads in some of the folders take of the limits.
    pub(super) fn usage(&self, shards: RangeInclusive<u8>) -> Result<Vec<Usage>, StoreError> {
        self.ensure(&self.partial)?;
        let mut usage = Vec::new();
        for id in shards.flat_map(|shard| self.ids_in(&self.shard(shard))) {
            let listed = self.listed(&id, &Filter::default());
            let listed = self.or_skip(&self.journal_path(&id), listed).flatten();
            usage.extend(listed.as_ref().map(Usage::from));
        }
        Ok(usage)
    }

    /// Sweeps some of the folders. What cannot be swept is passed over.
    pub(super) fn sweep(
        &self,
        expiry: &Expiry,
        shards: RangeInclusive<u8>,
    ) -> Result<Swept, StoreError> {
        self.ensure(&self.partial)?;
        // Tells other runs that the store is active.
        self.now();
        let expiry = expiry.by(&self.clock, self.disk.system_now());
        let mut swept = Swept::default();
        if let (0, Some(before)) = (*shards.start(), expiry.abandoned_before) {
            for path in self.files_in(&self.partial) {
                let result = self.sweep_stray(&path, before);
                self.or_skip(&path, result);
            }
        }
        for shard in shards {
            let dir = self.shard(shard);
            for id in self.ids_in(&dir) {
                let result = self.sweep_upload(&id, &expiry, &mut swept);
                self.or_skip(&self.journal_path(&id), result);
            }
            let records = dir.with_extension("settled");
            for path in self.files_in(&records) {
                let result = self.sweep_record(&path, expiry.records_before, &mut swept);
                self.or_skip(&path, result);
            }
            // Files of processes that have died, and what was set aside, are removed when they are
            // as old as an abandoned upload.
            if let Some(before) = expiry.abandoned_before {
                for path in [&dir, &records]
                    .into_iter()
                    .flat_map(|dir| self.files_in(dir))
                {
                    let result = self.sweep_orphan(&path, before);
                    self.or_skip(&path, result);
                }
            }
        }
        Ok(swept)
    }

    /// The result, unless something has to be passed over, which is told. An upload that another
    /// process is using is nothing to tell.
    fn or_skip<T>(&self, path: &Path, result: Result<T, StoreError>) -> Option<T> {
        match result {
            Ok(result) => Some(result),
            Err(StoreError::Busy) => None,
            Err(error) => {
                self.tell_skipped(path, &error);
                None
            }
        }
    }

    fn sweep_upload(
        &self,
        id: &UploadId,
        expiry: &Expiry,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let seems = self.peek(id, |entry, view| match &view.phase {
            // `look` removes the rest of it.
            Phase::Removed => Ok(true),
            Phase::Receiving if !entry.has_data()? || !entry.has_all_bytes()? => Ok(true),
            Phase::Settled { record, .. } => {
                let is_expired = record.expires < expiry.records_before;
                if !is_expired {
                    // If this fails, the next sweep reads the journal again.
                    let _ = self.file_record(entry, record);
                }
                Ok(is_expired)
            }
            _ => expired(entry, view, expiry).map(|counter| counter.is_some()),
        })?;
        // `look` renames a journal without a valid first record.
        if !seems.transpose()?.unwrap_or(true) {
            return Ok(());
        }
        if let Some((entry, view)) = self.look(id)? {
            if let Some(counter) = expired(&entry, &view, expiry)? {
                // A request may have completed it since.
                let is_still = |entry: &Entry| {
                    let seen = entry.seen().and_then(|view| expired(entry, &view, expiry));
                    seen.is_ok_and(|counter| counter.is_some())
                };
                *counter(swept) += u64::from(self.try_discard(&entry, is_still)?);
            }
        }
        Ok(())
    }

    fn sweep_record(
        &self,
        path: &Path,
        before: SystemTime,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let Some(id) = journal_id(path) else {
            return Ok(());
        };
        // This is when the record expires, or, if a crash has lost that time, earlier.
        let expires = disk::if_there(path.symlink_metadata())?.and_then(|it| it.modified().ok());
        if expires.is_some_and(|expires| expires < before) {
            swept.records += u64::from(self.remove_record(&id, path, before)?);
        }
        Ok(())
    }

    /// Removes a file that a process has left that died while it created or removed an upload, or a
    /// file that was set aside.
    fn sweep_orphan(&self, path: &Path, before: SystemTime) -> Result<(), StoreError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let parts: Vec<_> = name.unwrap_or_default().split('.').collect();
        let [id, owner, kind @ ("new" | "data" | "broken")] = parts[..] else {
            return Ok(());
        };
        let Some(id) = UploadId::from_hex(id).filter(|_| is_older(path, before)) else {
            return Ok(());
        };
        let data = if kind == "data" {
            disk::open(path)?
        } else {
            None
        };
        // Before the look: a request that creates the upload holds this lock until the journal has
        // its name.
        if let Some(data) = &data {
            if !ofd::try_lock(data, CLAIM)? {
                return Ok(());
            }
        }
        if self.look(&id)?.is_none_or(|(entry, _)| entry.id != owner) {
            self.disk.remove_if_there(path)?;
        }
        Ok(())
    }

    /// Removes a file next to the folders of uploads: a process has left it that died while it
    /// spooled a body or opened the store, or it was set aside in place of such a folder.
    fn sweep_stray(&self, path: &Path, before: SystemTime) -> Result<(), StoreError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let parts: Vec<_> = name.unwrap_or_default().split('.').collect();
        let is_random = |id: &str| id.len() == 32 && id.bytes().all(|it| it.is_ascii_hexdigit());
        let is_own = matches!(parts[..], [id, "tmp"] | [_, id, "broken"] if is_random(id));
        if is_own && is_older(path, before) {
            self.disk.remove_if_there(path)?;
        }
        Ok(())
    }

    fn shard(&self, shard: u8) -> PathBuf {
        self.partial.join(Hex(&[shard]).to_string())
    }

    /// The uploads in one of the folders.
    fn ids_in(&self, dir: &Path) -> Vec<UploadId> {
        let files = self.files_in(dir);
        files.iter().filter_map(|path| journal_id(path)).collect()
    }

    /// The files in one of the folders. What cannot be read is passed over, and told. Links are not
    /// followed.
    fn files_in(&self, dir: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut read = || {
            if !self.disk.is_dir(dir)? {
                return Ok(());
            }
            for file in std::fs::read_dir(dir).map_err(disk::at("read", dir))? {
                let file = file?;
                let path = file.path();
                if file.file_type()?.is_file() {
                    files.push(path);
                } else if journal_id(&path).is_some() {
                    self.tell_skipped(&path, &StoreError::new("it is not a file"));
                }
            }
            io::Result::Ok(())
        };
        let result = read().map_err(StoreError::from);
        self.or_skip(dir, result);
        files
    }
}

/// Whether a file was changed last before this time.
fn is_older(path: &Path, before: SystemTime) -> bool {
    let touched = path.symlink_metadata().and_then(|there| there.modified());
    touched.is_ok_and(|touched| touched < before)
}

/// The upload whose journal has this path.
fn journal_id(path: &Path) -> Option<UploadId> {
    let extension = path.extension()?;
    let stem = path.file_stem().filter(|_| extension == "journal")?;
    UploadId::from_hex(stem.to_str()?)
}

/// The number of removed uploads of one kind.
type Counter = fn(&mut Swept) -> &mut u64;

/// Which number an expired upload adds to.
fn expired(entry: &Entry, view: &View, expiry: &Expiry) -> io::Result<Option<Counter>> {
    let touched = entry.last_touch(view)?;
    let before = |time: SystemTime| touched < to_unix_millis(time);
    let (counter, is_expired): (Counter, _) = match &view.phase {
        Phase::Settled { record, .. } => (
            |swept| &mut swept.records,
            record.expires < expiry.records_before,
        ),
        // A part is never delivered.
        _ if view.complete && entry.status().upload.role == Role::Whole => (
            |swept| &mut swept.undelivered,
            expiry.undelivered_before.is_some_and(before),
        ),
        _ => (
            |swept| &mut swept.abandoned,
            expiry.abandoned_before.is_some_and(before),
        ),
    };
    Ok(is_expired.then_some(counter))
}
