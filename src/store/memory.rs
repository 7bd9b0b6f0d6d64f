use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::{
    Append, Capabilities, ChunkBody, Claim, Claimed, Expiry, Filter, Keep, Listed, Page, Progress,
    RangeSet, Record, Sealed, State, Status, Store, StoreError, Swept, clock::Clock, random_id,
};
use crate::{
    lock::lock,
    model::upload::{Role, Upload, UploadId},
};

/// Keeps uploads in the memory of this process, for tests and trials. The memory is not limited.
/// Clones share their uploads.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    uploads: Arc<Mutex<Uploads>>,
    clock: Arc<Clock>,
}

type Uploads = BTreeMap<UploadId, Entry>;

impl MemoryStore {
    /// Returns all uploads. Before that, removes the upload with this id if its record has expired,
    /// and touches it otherwise.
    fn uploads_for(&self, id: &UploadId) -> MutexGuard<'_, Uploads> {
        let mut uploads = lock(&self.uploads);
        let now = self.clock.now(SystemTime::now());
        uploads.entry(*id).and_modify(|entry| entry.touched = now);
        let record = uploads.get(id).and_then(|entry| entry.record.as_ref());
        if record.is_some_and(|record| record.expires <= now) {
            uploads.remove(id);
        }
        uploads
    }
}

impl Store for MemoryStore {
    type Claim = MemoryClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        Ok(Entry::of(&mut self.uploads_for(&upload.id), upload)?.status())
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let writer = |entry: &Entry| Arc::clone(&entry.writers);
        let _writer = self.uploads_for(&upload.id).get(&upload.id).map(writer);
        let mut bytes = BytesMut::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        let mut uploads = self.uploads_for(&upload.id);
        let stored = uploads.get(&upload.id).map(|entry| &entry.upload);
        let length = stored.unwrap_or(upload).length.unwrap_or(u64::MAX);
        let end = offset.checked_add(bytes.len() as u64);
        if end.is_none_or(|end| end > length) {
            return Err(StoreError::OutOfBounds);
        }
        let entry = Entry::of(&mut uploads, upload)?;
        let bytes = bytes.freeze();
        body.count_duplicate(bytes.len() as u64 - entry.insert(offset, &bytes)?);
        Ok(entry.status().progress())
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        Ok(self.uploads_for(id).get(id).map(Entry::status))
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<MemoryClaim>, StoreError> {
        let mut uploads = self.uploads_for(&upload.id);
        let Some(entry) = uploads.get_mut(&upload.id) else {
            return Ok(Claimed::Incomplete);
        };
        Ok(match entry.status().state {
            State::Settled(record) => Claimed::Settled(record),
            State::Receiving(_) => Claimed::Incomplete,
            State::Complete if entry.is_claimed() => Claimed::Busy,
            State::Complete => {
                let (store, sealed) = (Arc::new(self.clone()), entry.seal(upload.clone()));
                entry.claim = Arc::downgrade(&store);
                Claimed::Won(MemoryClaim { store, sealed })
            }
        })
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        let is_free = |entry: &Entry| !entry.is_claimed() && entry.record.is_none();
        let mut uploads = lock(&self.uploads);
        Ok(uploads.get(id).is_some_and(is_free) && uploads.remove(id).is_some())
    }

    async fn forget_rejection(&self, id: &UploadId) -> Result<bool, StoreError> {
        let mut uploads = lock(&self.uploads);
        let record = uploads.get(id).and_then(|entry| entry.record.as_ref());
        let is_rejected = record.is_some_and(|record| !record.delivered);
        Ok(is_rejected && uploads.remove(id).is_some())
    }

    async fn forget(&self, id: &UploadId) -> Result<bool, StoreError> {
        let mut uploads = lock(&self.uploads);
        let is_settled = uploads.get(id).is_some_and(|entry| entry.record.is_some());
        Ok(is_settled && uploads.remove(id).is_some())
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        let uploads = lock(&self.uploads);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut accepted = uploads
            .range((start, Bound::Unbounded))
            .filter(|(_, entry)| entry.record.is_none())
            .map(|(_, entry)| Listed::new(entry.upload.clone(), entry.status().progress()))
            .filter(|listed| filter.accepts(&listed.upload, listed.progress));
        let page: Vec<_> = accepted.by_ref().take(Page::MAX).collect();
        let last = page.last().map(|last| last.upload.id);
        Ok(Page::new(page, accepted.next().and(last)))
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        let expiry = expiry.by(&self.clock, SystemTime::now());
        let mut swept = Swept::default();
        lock(&self.uploads).retain(|_, entry| {
            let is_older = |limit: Option<SystemTime>| limit.is_some_and(|t| entry.touched < t);
            // A part is never delivered.
            let is_pending = entry.is_complete() && entry.upload.role == Role::Whole;
            let (counter, is_old) = match (&entry.record, is_pending) {
                (Some(it), _) => (&mut swept.records, it.expires < expiry.records_before),
                (None, true) => (&mut swept.undelivered, is_older(expiry.undelivered_before)),
                (None, false) => (&mut swept.abandoned, is_older(expiry.abandoned_before)),
            };
            let is_swept = is_old && !entry.is_claimed() && Arc::strong_count(&entry.writers) == 1;
            *counter += u64::from(is_swept);
            !is_swept
        });
        Ok(swept)
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            append: true,
            concat: true,
        }
    }

    async fn interrupt(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        let mut uploads = self.uploads_for(id);
        Ok(uploads.get_mut(id).map(|entry| {
            entry.append = None;
            entry.status()
        }))
    }

    async fn append(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let (running, mut ended) = oneshot::channel();
        let _writer = {
            let mut uploads = self.uploads_for(&upload.id);
            let entry = uploads.get_mut(&upload.id).ok_or(StoreError::Superseded)?;
            entry.begin(running, upload, append.offset, body.exact_len())?;
            Arc::clone(&entry.writers)
        };
        let (mut at, mut bytes) = (append.offset, BytesMut::new());
        loop {
            let next = body.next_unless(&mut ended).await;
            let next = next.ok_or(StoreError::Superseded)?.transpose()?;
            let is_last = next.is_none();
            bytes.extend_from_slice(&next.unwrap_or_default());
            let mut uploads = self.uploads_for(&upload.id);
            let entry = uploads.get_mut(&upload.id).ok_or(StoreError::Superseded)?;
            if ended.try_recv() != Err(TryRecvError::Empty) {
                return Err(StoreError::Superseded);
            }
            let end = at + bytes.len() as u64;
            if entry.upload.length.is_some_and(|length| end > length) {
                return Err(StoreError::OutOfBounds);
            }
            if is_last || append.keep == Keep::Prefix {
                entry.insert(at, &bytes.split().freeze())?;
                at = end;
            }
            if is_last {
                if append.ends_here {
                    entry.upload.length.get_or_insert(end);
                }
                return Ok(entry.status().progress());
            }
        }
    }

    async fn concat(&self, upload: &Upload, parts: &[UploadId]) -> Result<Progress, StoreError> {
        let mut uploads = self.uploads_for(&upload.id);
        let known = uploads.get(&upload.id).map(|it| it.status().progress());
        if let Some(progress) = known.filter(|progress| progress.complete) {
            return Ok(progress);
        }
        let mut bytes = BytesMut::new();
        for part in parts {
            let is_whole = |part: &&Entry| part.is_complete() && part.is_unsealed();
            let part = uploads.get(part).filter(is_whole);
            let pieces = &part.ok_or(StoreError::Superseded)?.pieces;
            pieces.values().for_each(|it| bytes.extend_from_slice(it));
        }
        let mut upload = upload.clone();
        upload.length = Some(bytes.len() as u64);
        let entry = Entry::of(&mut uploads, &upload)?;
        entry.insert(0, &bytes.freeze())?;
        entry.upload.length = upload.length;
        Ok(entry.status().progress())
    }
}

#[derive(Debug)]
struct Entry {
    /// Distinguishes the upload from earlier and later ones with the same [`UploadId`].
    id: String,
    upload: Upload,
    pieces: BTreeMap<u64, Bytes>,
    ranges: RangeSet,
    touched: SystemTime,
    /// Each request that is writing holds a clone.
    writers: Arc<()>,
    /// The append that is running holds the other end, and ends when this is dropped.
    append: Option<oneshot::Sender<()>>,
    /// The live claim holds the other end.
    claim: Weak<MemoryStore>,
    sealed: Option<Sealed>,
    record: Option<Record>,
}

impl Entry {
    /// The entry of an upload, which is created if it is absent.
    fn of<'a>(uploads: &'a mut Uploads, upload: &Upload) -> Result<&'a mut Self, StoreError> {
        let id = random_id()?;
        let entry = uploads.entry(upload.id).or_insert_with(|| Self {
            id,
            upload: upload.clone(),
            pieces: BTreeMap::new(),
            ranges: RangeSet::default(),
            touched: SystemTime::now(),
            writers: Arc::default(),
            append: None,
            claim: Weak::new(),
            sealed: None,
            record: None,
        });
        if entry.upload.contradicts(upload) {
            return Err(StoreError::Conflict);
        }
        Ok(entry)
    }

    fn is_claimed(&self) -> bool {
        self.claim.strong_count() > 0
    }

    fn is_complete(&self) -> bool {
        (self.upload.length).is_some_and(|length| self.ranges.covers(0, length))
    }

    fn is_unsealed(&self) -> bool {
        self.sealed.is_none() && self.record.is_none()
    }

    fn status(&self) -> Status {
        let state = match &self.record {
            Some(record) => State::Settled(record.clone()),
            None if self.is_complete() => State::Complete,
            None => State::Receiving(self.ranges.clone()),
        };
        Status::new(self.upload.clone(), state).with_delivery(&self.id)
    }

    /// Begins an append, which ends the one before it.
    fn begin(
        &mut self,
        append: oneshot::Sender<()>,
        upload: &Upload,
        offset: u64,
        len: Option<u64>,
    ) -> Result<(), StoreError> {
        self.append = Some(append);
        let stored = self.status().prefix();
        let length = self.upload.length.or(upload.length);
        let end = offset.saturating_add(len.unwrap_or_default());
        if offset != stored {
            return Err(StoreError::Offset { stored });
        } else if self.upload.contradicts(upload) {
            return Err(StoreError::Conflict);
        } else if length.is_some_and(|length| end > length) {
            return Err(StoreError::OutOfBounds);
        }
        self.upload.length = length;
        self.upload.declare(upload.declared());
        Ok(())
    }

    /// Stores what is not stored yet: of a complete upload nothing. Compares what is stored. Returns
    /// how many bytes are new.
    fn insert(&mut self, offset: u64, bytes: &Bytes) -> Result<u64, StoreError> {
        let part = |start, end| &bytes[(start - offset) as usize..(end - offset) as usize];
        let end = offset + bytes.len() as u64;
        for (&at, piece) in self.pieces.range(..end).rev() {
            let (start, stop) = (at.max(offset), end.min(at + piece.len() as u64));
            if start >= stop {
                break;
            } else if piece[(start - at) as usize..(stop - at) as usize] != *part(start, stop) {
                return Err(StoreError::Conflict);
            }
        }
        let mut new = 0;
        for gap in self.ranges.gaps(offset, bytes.len() as u64) {
            new += gap.end - gap.start;
            let piece = (gap.start - offset) as usize..(gap.end - offset) as usize;
            self.pieces.insert(gap.start, bytes.slice(piece));
            self.ranges.insert(gap.start, gap.end - gap.start);
        }
        Ok(new)
    }

    fn seal(&mut self, mut upload: Upload) -> Sealed {
        let sealed = self.sealed.get_or_insert_with(|| {
            let pieces: Vec<_> = std::mem::take(&mut self.pieces).into_values().collect();
            let content = Bytes::from(pieces.concat());
            let crc32 = crc32fast::hash(&content);
            upload.length = self.upload.length;
            self.upload = upload.clone();
            Sealed::new(self.id.clone(), upload, 0, content).with_crc32(crc32)
        });
        sealed.attempt += 1;
        sealed.clone()
    }
}

/// The right to deliver one upload of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryClaim {
    store: Arc<MemoryStore>,
    sealed: Sealed,
}

impl Claim for MemoryClaim {
    fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    async fn settle(&mut self, record: &Record) -> Result<(), StoreError> {
        let mut uploads = lock(&self.store.uploads);
        let entry = uploads.get_mut(&self.sealed.upload.id);
        let entry = entry.filter(|entry| entry.id == self.sealed.id);
        let entry = entry.ok_or(StoreError::Superseded)?;
        let mut record = record.clone();
        record.expires = self.store.clock.of(record.expires, SystemTime::now());
        entry.record = Some(record);
        // The file belongs to the application now, or is removed.
        entry.sealed = None;
        entry.claim = Weak::new();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::upload::Scope;

    /// A late duplicate would be a new upload.
    #[tokio::test]
    async fn a_record_outlives_a_clock_that_jumps_ahead() {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        let mut store = MemoryStore::default();
        let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), Some(0));
        store.create(&upload).await.unwrap();
        let Claimed::Won(mut claim) = store.claim(&upload).await.unwrap() else {
            panic!("no claim")
        };
        // The clock of the system has jumped ahead by eight days since.
        let before = SystemTime::now() - 8 * DAY;
        let record = Record::new(true, http::StatusCode::OK, 0, before + DAY);
        claim.settle(&record).await.unwrap();
        store.clock = Arc::new(Clock::new(before, None));
        let status = store.status(&upload.id).await.unwrap().unwrap();
        assert!(matches!(status.state, State::Settled(_)), "{status:?}");

        // What is settled now expires after the same time.
        let store = Arc::new(store);
        let sealed = claim.sealed.clone();
        for (lifetime, is_kept) in [(DAY, true), (Duration::ZERO, false)] {
            let (store, sealed) = (Arc::clone(&store), sealed.clone());
            let mut claim = MemoryClaim { store, sealed };
            let mut record = record.clone();
            record.expires = SystemTime::now() + lifetime;
            claim.settle(&record).await.unwrap();
            let status = claim.store.status(&upload.id).await.unwrap();
            assert_eq!(status.is_some(), is_kept, "{lifetime:?}");
        }
    }
}
