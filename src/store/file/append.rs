//! Appends to an upload, and makes one of others. An append has locked all of its upload, also for
//! other processes. Such a process that wants to end it begins an epoch in the journal: the append
//! sees that under the lock of the journal, and records no bytes after it.

use std::{io, sync::Arc};

use super::{
    FileStore,
    chunk::{Arrived, Writer},
    entry::{Entry, MAX_LENGTH, Phase, RangeLock},
    folder::Folder,
    journal::Event,
};
use crate::{
    model::{
        ranges::{Crc, Joined as _},
        state::{Progress, Status},
        upload::{Upload, UploadId},
    },
    store::{Append, ChunkBody, StoreError, disk},
};

impl FileStore {
    /// See [`Store::interrupt`](crate::store::Store::interrupt).
    pub(super) async fn end_append(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        let Some(entry) = self.entry_of_appends(id).await? else {
            return Ok(None);
        };
        if entry.takes_appends {
            entry.end_appends().await?;
            entry.end_append_elsewhere().await?;
        }
        // It may have been removed meanwhile.
        let id = *id;
        self.retried(move |folder| Ok(folder.find(&id)?.map(|(entry, _)| entry.status())))
            .await
    }

    async fn entry_of_appends(&self, id: &UploadId) -> Result<Option<Arc<Entry>>, StoreError> {
        let id = *id;
        self.retried(move |folder| Ok(folder.find(&id)?.map(|(entry, _)| entry)))
            .await
    }

    /// See [`Store::append`](crate::store::Store::append).
    pub(super) async fn receive_append(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let entry = self.entry_of_appends(&upload.id).await?;
        let entry = entry.ok_or(StoreError::Superseded)?;
        if !entry.takes_appends {
            // An older version of this crate would lose its bytes.
            return Err(StoreError::Unsupported);
        }
        let mut lock = Some(entry.lock_to_append().await?);
        let arrived = Arrived::new(&self.folder, append.offset, append.keep, body);
        let (length, declared) = (upload.length, upload.declared());
        let len = body.exact_len();
        let most = append.offset.saturating_add(body.max_len());
        let begun = self.retried(move |folder| {
            let locked = lock.as_ref().ok_or(StoreError::Busy)?;
            begin(folder, locked, append.offset, (length, declared), len)?;
            let lock = lock.take().ok_or(StoreError::Busy)?;
            let range = append.offset..most.min(MAX_LENGTH);
            let room = folder.room.reservation();
            Ok(Writer::new(lock, range, length, room).with_end(append.ends_here))
        });
        let writer = Box::new(begun.await?);
        self.receive_more(writer, arrived, body).await
    }

    /// See [`Store::concat`](crate::store::Store::concat).
    pub(super) async fn join(
        &self,
        upload: &Upload,
        parts: &[UploadId],
    ) -> Result<Progress, StoreError> {
        let (upload, parts) = (upload.clone(), parts.to_vec());
        let copied = self.retried(move |folder| folder.copy_parts(&upload, &parts));
        let mut copy = match copied.await? {
            Copied::Before(progress) => return Ok(progress),
            Copied::Now(copy) => Some(copy),
        };
        self.retried(move |folder| {
            let made = copy.take().ok_or(StoreError::Superseded)?;
            match made.commit() {
                Ok(()) => Ok(made.lock.entry().progress()),
                Err(StoreError::Busy) => {
                    copy = Some(made);
                    Err(StoreError::Busy)
                }
                Err(error) => {
                    folder.undo_copy(made);
                    Err(error)
                }
            }
        })
        .await
    }
}

/// Checks an append, and records the lengths that it brings. After [`Busy`](StoreError::Busy) it
/// can be called again.
fn begin(
    folder: &Folder,
    lock: &RangeLock,
    offset: u64,
    (length, declared): (Option<u64>, Option<u64>),
    len: Option<u64>,
) -> Result<(), StoreError> {
    let entry = lock.entry();
    entry.view()?;
    if entry.is_removed() || lock.epoch() != Some(entry.epoch()) {
        return Err(StoreError::Superseded);
    }
    let stored = entry.prefix();
    if offset != stored {
        return Err(StoreError::Offset { stored });
    }
    let known = entry.length();
    if known
        .zip(length)
        .is_some_and(|(known, length)| known != length)
    {
        return Err(StoreError::Conflict);
    }
    let end = offset.saturating_add(len.unwrap_or_default());
    match known.or(length) {
        Some(length) if end > length => return Err(StoreError::OutOfBounds),
        Some(length) if length > MAX_LENGTH => {
            return Err(StoreError::TooLarge { limit: MAX_LENGTH });
        }
        _ => {}
    }
    if entry.is_receiving() {
        entry.cut_after(stored)?;
    }
    let mut events = Vec::new();
    if let (None, Some(length)) = (known, length) {
        folder.room.for_upload(&folder.partial, length - stored)?;
        events.push(Event::Length(length));
    }
    if let (None, Some(declared)) = (entry.declared(), declared) {
        events.push(Event::Declared(declared));
    }
    if events.is_empty() {
        return Ok(());
    }
    entry.append(&events, false)
}

enum Copied {
    /// The upload was complete.
    Before(Progress),
    Now(Copy),
}

/// The bytes of the parts, which are in the data file and not in the journal.
struct Copy {
    lock: RangeLock,
    len: u64,
    crc: Crc,
    failed_syncs: u64,
}

impl Copy {
    /// Makes the bytes durable, and records them. After [`Busy`](StoreError::Busy) it can be called
    /// again.
    fn commit(&self) -> Result<(), StoreError> {
        let entry = self.lock.entry();
        let length = entry.length().is_none().then_some(Event::Length(self.len));
        let stored = if self.len == 0 {
            Event::Confirmed
        } else {
            entry.stored(&(0..self.len), self.crc)
        };
        let events = length.into_iter().chain([stored]).collect();
        entry.commit(events, self.failed_syncs, None)
    }
}

impl Folder {
    /// Copies the bytes of the parts into the data file of the upload.
    fn copy_parts(&self, upload: &Upload, parts: &[UploadId]) -> Result<Copied, StoreError> {
        if let Some((entry, view)) = self.find(&upload.id)? {
            if view.complete {
                return Ok(Copied::Before(entry.progress()));
            }
        }
        let (mut sources, mut len, mut crc) = (Vec::new(), 0u64, Crc::EMPTY);
        for part in parts {
            let found = self
                .find(part)?
                .filter(|(_, view)| view.complete && matches!(view.phase, Phase::Receiving));
            let (entry, _) = found.ok_or(StoreError::Superseded)?;
            let (part_len, part_crc) = entry.whole().ok_or(StoreError::Superseded)?;
            crc = crc.join(&Crc(part_crc), part_len);
            len = len.saturating_add(part_len);
            sources.push((entry, part_len));
        }
        let upload = Upload {
            length: Some(len),
            ..upload.clone()
        };
        let entry = self.entry_for(&upload, true)?;
        if upload.contradicts(&entry.status().upload) {
            return Err(StoreError::Conflict);
        }
        let lock = entry.try_lock_whole()?.ok_or(StoreError::Busy)?;
        let view = entry.view()?;
        if view.complete {
            return Ok(Copied::Before(entry.progress()));
        }
        if !matches!(view.phase, Phase::Receiving) {
            return Err(StoreError::Superseded);
        }
        let copy = Copy {
            failed_syncs: entry.failed_syncs(),
            lock,
            len,
            crc,
        };
        match self.copy_all(&entry, &sources, len) {
            Ok(()) => Ok(Copied::Now(copy)),
            Err(error) => {
                self.undo_copy(copy);
                Err(error)
            }
        }
    }

    fn copy_all(
        &self,
        entry: &Entry,
        sources: &[(Arc<Entry>, u64)],
        len: u64,
    ) -> Result<(), StoreError> {
        if entry.prefix() > 0 {
            return Err(StoreError::Conflict);
        }
        let mut room = self.room.reservation();
        room.grow(&self.partial, len)?;
        entry.cut_after(0)?;
        let data = entry.data.as_ref();
        let data = data.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let mut at = 0;
        for (part, len) in sources {
            // It has a position of its own.
            let from = disk::open_to_read(&part.data_path)?;
            let from = from.ok_or(StoreError::Superseded)?;
            self.disk.copy("copy-data", &from, data, at, *len)?;
            room.written(*len);
            at += len;
        }
        Ok(())
    }

    /// Frees the space of a copy that is not recorded.
    fn undo_copy(&self, copy: Copy) {
        let entry = Arc::clone(copy.lock.entry());
        // If this fails, a sweep does it.
        let _ = entry.cut_after(entry.prefix());
        drop(copy);
        self.undo_create(&entry);
    }
}
