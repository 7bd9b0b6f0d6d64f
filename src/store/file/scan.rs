//! Lists and sweeps all uploads, one folder after the other, so that the memory for it does not
//! grow with the number of uploads.

use std::{
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{
    entry::{Entry, Phase, View},
    folder::Folder,
};
use crate::{
    model::{hex::Hex, state::to_unix_millis, upload::UploadId},
    store::{Expiry, Filter, Listed, Page, StoreError, Swept, disk},
};

impl Folder {
    pub(super) fn list(
        &self,
        filter: &Filter,
        after: Option<&UploadId>,
    ) -> Result<Page, StoreError> {
        // Without its root the store cannot be read. That is not an empty store.
        self.ensure(&self.partial)?;
        let (mut uploads, mut last) = (Vec::new(), None);
        for shard in after.map_or(0, |after| after.as_bytes()[0])..=u8::MAX {
            // A folder that cannot be read is passed over as if each of its files could not be
            // read.
            let mut ids = self.ids_in(shard).unwrap_or_default();
            ids.retain(|id| after.is_none_or(|after| id > after));
            ids.sort_unstable();
            for id in ids {
                if uploads.len() == Page::MAX {
                    return Ok(Page::new(uploads, last));
                }
                // An upload that cannot be read, or that another version of this crate has written,
                // is passed over: requests to it get the error.
                uploads.extend(self.listed(&id, filter).ok().flatten());
                last = Some(id);
            }
        }
        Ok(Page::new(uploads, None))
    }

    /// A durable look costs syncs. Most journals belong to settled uploads, and do not need one.
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
        let seems = self.peek(id, accepted)?.flatten();
        if seems.is_none() || !filter.complete {
            return Ok(seems);
        }
        let found = self.look(id)?;
        Ok(found.and_then(|(entry, view)| accepted(&entry, &view)))
    }

    /// An error does not keep the rest from being swept: the last one is returned at the end.
    pub(super) fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        self.ensure(&self.partial)?;
        let (mut swept, mut failed) = (Swept::default(), None);
        for shard in 0..=u8::MAX {
            let result = self.sweep_folder(shard, expiry, &mut swept, &mut failed);
            failed = result.err().or(failed);
        }
        failed.map_or(Ok(swept), Err)
    }

    fn sweep_folder(
        &self,
        shard: u8,
        expiry: &Expiry,
        swept: &mut Swept,
        failed: &mut Option<StoreError>,
    ) -> Result<(), StoreError> {
        let mut keep = |result| *failed = of_this_version(result).err().or(failed.take());
        for id in self.ids_in(shard)? {
            keep(self.sweep_upload(&id, expiry, swept));
        }
        // Files of processes that have died are removed when they are as old as an abandoned
        // upload.
        if let Some(before) = expiry.abandoned_before {
            for path in self.files_in(shard)? {
                keep(self.sweep_orphan(&path, before));
            }
        }
        Ok(())
    }

    fn sweep_upload(
        &self,
        id: &UploadId,
        expiry: &Expiry,
        swept: &mut Swept,
    ) -> Result<(), StoreError> {
        let seems = self.peek(id, |entry, view| match view.phase {
            // `look` removes the rest of it.
            Phase::Removed => Ok(true),
            Phase::Receiving if !entry.has_data()? => Ok(true),
            _ => expired(entry, view, expiry).map(|counter| counter.is_some()),
        })?;
        // `look` renames a journal without a valid first record.
        if !seems.transpose()?.unwrap_or(true) {
            return Ok(());
        }
        if let Some((entry, view)) = self.look(id)? {
            if let Some(counter) = expired(&entry, &view, expiry)? {
                *counter(swept) += u64::from(self.try_discard(&entry, |_| true)?);
            }
        }
        Ok(())
    }

    /// Removes a file that a process has left that died while it created or removed an upload.
    fn sweep_orphan(&self, path: &Path, before: SystemTime) -> Result<(), StoreError> {
        let name = path.file_name().and_then(|name| name.to_str());
        let parts: Vec<_> = name.unwrap_or_default().split('.').collect();
        let (Some(id), owner) = (match parts[..] {
            [id, owner, "new" | "data" | "broken"] => (UploadId::from_hex(id), owner),
            _ => (None, ""),
        }) else {
            return Ok(());
        };
        let touched = path.metadata().and_then(|metadata| metadata.modified());
        if touched.is_ok_and(|touched| touched < before)
            && self.look(&id)?.is_none_or(|(entry, _)| entry.id != owner)
        {
            self.disk.remove_if_there(path)?;
        }
        Ok(())
    }

    /// The uploads in one of the folders.
    fn ids_in(&self, shard: u8) -> io::Result<Vec<UploadId>> {
        let id = |path: PathBuf| {
            let is_journal = path
                .extension()
                .is_some_and(|extension| extension == "journal");
            UploadId::from_hex(path.file_stem().filter(|_| is_journal)?.to_str()?)
        };
        Ok(self.files_in(shard)?.into_iter().filter_map(id).collect())
    }

    /// The files in one of the folders. Links are skipped and not followed.
    fn files_in(&self, shard: u8) -> io::Result<Vec<PathBuf>> {
        let dir = self.partial.join(Hex(&[shard]).to_string());
        let mut files = Vec::new();
        if dir.symlink_metadata().is_ok_and(|there| there.is_dir()) {
            for file in std::fs::read_dir(&dir).map_err(disk::at("read", &dir))? {
                let file = file?;
                if file.file_type()?.is_file() {
                    files.push(file.path());
                }
            }
        }
        Ok(files)
    }
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
        _ if view.complete => (
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

/// Passes over an upload that another version of this crate has written. That version sweeps it.
fn of_this_version(swept: Result<(), StoreError>) -> Result<(), StoreError> {
    match swept {
        Err(StoreError::Failed(error))
            if error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::Unsupported) =>
        {
            Ok(())
        }
        swept => swept,
    }
}
