use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, Mutex, MutexGuard},
    time::SystemTime,
};

use bytes::{Bytes, BytesMut};

use super::{
    BoxFuture, ChunkBody, Claim, Claimed, Content, Expiry, Filter, Keep, Listed, Page, Progress,
    RangeSet, Record, Sealed, State, Status, Store, StoreError, Stored, Swept, random_id,
};
use crate::{
    lock::lock,
    model::upload::{Upload, UploadId},
};

/// Keeps uploads in the memory of this process: for tests, and to try things out.
///
/// Clones share their uploads. There is no limit to what it takes.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    uploads: Arc<Mutex<Uploads>>,
}

type Uploads = BTreeMap<UploadId, Entry>;

#[derive(Debug)]
struct Entry {
    /// Tells the upload from earlier and later ones with the same [`UploadId`].
    id: String,
    upload: Upload,
    pieces: BTreeMap<u64, Bytes>,
    ranges: RangeSet,
    touched: SystemTime,
    claimed: bool,
    /// How many requests are writing.
    writers: usize,
    sealed: Option<Sealed>,
    record: Option<Record>,
}

impl Entry {
    fn new(upload: &Upload) -> Result<Self, StoreError> {
        Ok(Self {
            id: random_id()?,
            upload: upload.clone(),
            pieces: BTreeMap::new(),
            ranges: RangeSet::default(),
            touched: SystemTime::now(),
            claimed: false,
            writers: 0,
            sealed: None,
            record: None,
        })
    }

    fn is_complete(&self) -> bool {
        let length = self.upload.length;
        length.is_some_and(|length| self.ranges.covers(0, length))
    }

    fn status(&self) -> Status {
        let state = match &self.record {
            Some(record) => State::Settled(record.clone()),
            None if self.is_complete() => State::Complete,
            None => State::Receiving(self.ranges.clone()),
        };
        let upload = self
            .sealed
            .as_ref()
            .map_or(&self.upload, |sealed| &sealed.upload);
        Status::new(upload.clone(), state)
    }

    /// Stores what is not there yet.
    fn insert(&mut self, offset: u64, bytes: &Bytes) {
        for gap in self.ranges.gaps(offset, bytes.len() as u64) {
            let piece = (gap.start - offset) as usize..(gap.end - offset) as usize;
            self.pieces.insert(gap.start, bytes.slice(piece));
            self.ranges.insert(gap.start, gap.end - gap.start);
        }
        self.touched = SystemTime::now();
    }

    fn seal(&mut self, upload: &Upload) -> Sealed {
        let sealed = self.sealed.get_or_insert_with(|| {
            let pieces: Vec<_> = self.pieces.values().cloned().collect();
            let content = Bytes::from(pieces.concat());
            let crc32 = crc32fast::hash(&content);
            Sealed::new(self.id.clone(), upload.clone(), 0, InMemory(content)).with_crc32(crc32)
        });
        sealed.attempt += 1;
        sealed.clone()
    }
}

/// A finished file in memory.
#[derive(Debug)]
struct InMemory(Bytes);

impl Stored for InMemory {
    fn read(&self) -> Content {
        self.0.clone().into()
    }

    /// Does nothing: the memory is free when the last handle is dropped.
    fn delete(&self) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// The right to deliver one upload of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryClaim {
    store: MemoryStore,
    sealed: Sealed,
}

impl MemoryClaim {
    fn with_entry(&self, change: impl FnOnce(&mut Entry)) -> Result<(), StoreError> {
        let mut uploads = lock(&self.store.uploads);
        let entry = uploads.get_mut(&self.sealed.upload.id);
        let entry = entry.filter(|entry| entry.id == self.sealed.id);
        entry.map(change).ok_or(StoreError::Superseded)
    }
}

impl Claim for MemoryClaim {
    fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    async fn settle(&mut self, record: &Record) -> Result<(), StoreError> {
        self.with_entry(|entry| {
            entry.record = Some(record.clone());
            entry.pieces.clear();
        })
    }
}

impl Drop for MemoryClaim {
    fn drop(&mut self) {
        // The upload may be gone.
        let _ = self.with_entry(|entry| entry.claimed = false);
    }
}

/// A request that is writing to an upload: keeps the upload from being swept.
struct Writer<'a>(&'a MemoryStore, UploadId, Option<String>);

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        let Self(store, upload, id) = self;
        if let Some(entry) = lock(&store.uploads).get_mut(upload) {
            entry.writers -= usize::from(Some(&entry.id) == id.as_ref());
        }
    }
}

impl MemoryStore {
    /// The uploads, without this one if its record has expired.
    fn uploads_for(&self, id: &UploadId) -> MutexGuard<'_, Uploads> {
        let mut uploads = lock(&self.uploads);
        let record = uploads.get(id).and_then(|entry| entry.record.as_ref());
        if record.is_some_and(Record::is_expired) {
            uploads.remove(id);
        }
        uploads
    }

    fn writer(&self, id: &UploadId) -> Writer<'_> {
        let entry_id = self.uploads_for(id).get_mut(id).map(|entry| {
            entry.writers += 1;
            entry.id.clone()
        });
        Writer(self, *id, entry_id)
    }

    /// Does something with an upload, which is created if it is absent.
    fn with_entry<T>(
        &self,
        upload: &Upload,
        work: impl FnOnce(&mut Entry) -> T,
    ) -> Result<T, StoreError> {
        let new = Entry::new(upload)?;
        let mut uploads = self.uploads_for(&upload.id);
        Ok(work(uploads.entry(upload.id).or_insert(new)))
    }
}

impl Store for MemoryStore {
    type Claim = MemoryClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        self.with_entry(upload, |entry| entry.status())
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
        keep: Keep,
    ) -> Result<Progress, StoreError> {
        let _writer = self.writer(&upload.id);
        let (mut bytes, mut failed) = (BytesMut::new(), None);
        while let Some(piece) = body.next().await {
            match piece {
                Ok(piece) => bytes.extend_from_slice(&piece),
                Err(error) if keep == Keep::Whole => return Err(error.into()),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let bytes = bytes.freeze();
        let progress = self.with_entry(upload, |entry| {
            if entry.sealed.is_none() {
                entry.insert(offset, &bytes);
            }
            entry.status().progress()
        })?;
        failed.map_or(Ok(progress), |error| Err(error.into()))
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        Ok(self.uploads_for(id).get(id).map(Entry::status))
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<MemoryClaim>, StoreError> {
        let mut uploads = self.uploads_for(&upload.id);
        let Some(entry) = uploads.get_mut(&upload.id) else {
            return Ok(Claimed::Incomplete);
        };
        if let Some(record) = &entry.record {
            return Ok(Claimed::Settled(record.clone()));
        }
        if !entry.is_complete() {
            return Ok(Claimed::Incomplete);
        }
        if std::mem::replace(&mut entry.claimed, true) {
            return Ok(Claimed::Busy);
        }
        let (store, sealed) = (self.clone(), entry.seal(upload));
        Ok(Claimed::Won(MemoryClaim { store, sealed }))
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        let mut uploads = lock(&self.uploads);
        let entry = uploads.get(id);
        let is_free = entry.is_some_and(|entry| !entry.claimed && entry.record.is_none());
        Ok(is_free && uploads.remove(id).is_some())
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        let uploads = lock(&self.uploads);
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let unsettled = uploads
            .range((start, Bound::Unbounded))
            .filter(|(_, entry)| entry.record.is_none())
            .map(|(_, entry)| entry.status());
        let mut accepted = unsettled
            .map(|status| Listed::new(status.upload.clone(), status.progress()))
            .filter(|listed| filter.accepts(&listed.upload, listed.progress));
        let page: Vec<_> = accepted.by_ref().take(Page::MAX).collect();
        let more = accepted.next().is_some();
        let next = page.last().filter(|_| more).map(|last| last.upload.id);
        Ok(Page::new(page, next))
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        lock(&self.uploads).retain(|_, entry| {
            let untouched = |limit: Option<SystemTime>| limit.is_some_and(|t| entry.touched < t);
            let (counter, expired) = match &entry.record {
                Some(record) => (&mut swept.records, record.expires < expiry.records_before),
                None if entry.is_complete() => {
                    (&mut swept.undelivered, untouched(expiry.undelivered_before))
                }
                None => (&mut swept.abandoned, untouched(expiry.abandoned_before)),
            };
            let keep = !expired || entry.claimed || entry.writers > 0;
            *counter += u64::from(!keep);
            keep
        });
        Ok(swept)
    }
}
