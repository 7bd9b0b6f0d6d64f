use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use bytes::Bytes;

use super::{
    ChunkBody, Expiry, Location, Progress, RangeSet, Record, Sealed, Settlement, Status, Store,
    StoreError, Swept, TryClaim, Upload, UploadKey, random_id,
};

/// Keeps uploads in the memory of this process: for tests, and to try things out.
///
/// Clones share their uploads. There is no limit to what it takes.
#[derive(Clone, Debug, Default)]
pub struct MemoryStore {
    uploads: Arc<Mutex<HashMap<UploadKey, Entry>>>,
}

#[derive(Debug)]
struct Entry {
    id: String,
    upload: Upload,
    pieces: BTreeMap<u64, Bytes>,
    ranges: RangeSet,
    touched: SystemTime,
    claimed: bool,
    /// Requests that are writing.
    writers: usize,
    sealed: Option<Sealed>,
    record: Option<Record>,
}

impl Entry {
    fn is_complete(&self) -> bool {
        self.ranges.covers(0, self.upload.total)
    }

    fn progress(&self) -> Progress {
        Progress {
            received: self.ranges.total(),
            complete: self.is_complete(),
        }
    }
}

/// The right to deliver one upload of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryClaim {
    store: MemoryStore,
    key: UploadKey,
    id: String,
}

impl Drop for MemoryClaim {
    fn drop(&mut self) {
        if let Some(entry) = self.store.lock().get_mut(&self.key) {
            entry.claimed &= entry.id != self.id;
        }
    }
}

/// A request that is writing to an upload that is there already: keeps it from being swept.
struct Writer<'a> {
    store: &'a MemoryStore,
    key: UploadKey,
    id: Option<String>,
}

impl<'a> Writer<'a> {
    fn new(store: &'a MemoryStore, key: &UploadKey) -> Self {
        let id = store.lock_for(key).get_mut(key).map(|entry| {
            entry.writers += 1;
            entry.id.clone()
        });
        Self {
            store,
            key: *key,
            id,
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        if let (Some(entry), Some(id)) = (self.store.lock().get_mut(&self.key), &self.id) {
            entry.writers -= usize::from(entry.id == *id);
        }
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, HashMap<UploadKey, Entry>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The uploads, without this one if its record has expired.
    fn lock_for(&self, key: &UploadKey) -> MutexGuard<'_, HashMap<UploadKey, Entry>> {
        let mut uploads = self.lock();
        let record = uploads.get(key).and_then(|entry| entry.record.as_ref());
        if record.is_some_and(|record| record.expires <= SystemTime::now()) {
            uploads.remove(key);
        }
        uploads
    }
}

impl Store for MemoryStore {
    type Claim = MemoryClaim;

    async fn put(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let _writer = Writer::new(self, &upload.key);
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece?);
        }
        let bytes = Bytes::from(bytes);
        let id = random_id()?;
        let mut uploads = self.lock_for(&upload.key);
        let entry = uploads.entry(upload.key).or_insert_with(|| Entry {
            id,
            upload: upload.clone(),
            pieces: BTreeMap::new(),
            ranges: RangeSet::default(),
            touched: SystemTime::now(),
            claimed: false,
            writers: 0,
            sealed: None,
            record: None,
        });
        for gap in entry.ranges.gaps(offset, bytes.len() as u64) {
            let piece = (gap.start - offset) as usize..(gap.end - offset) as usize;
            entry.pieces.insert(gap.start, bytes.slice(piece));
            entry.ranges.insert(gap.start, gap.end - gap.start);
            entry.touched = SystemTime::now();
        }
        Ok(Progress {
            received: entry.ranges.total(),
            complete: entry.is_complete(),
        })
    }

    async fn status(&self, key: &UploadKey) -> Result<Status, StoreError> {
        Ok(match self.lock_for(key).get(key) {
            None => Status::Absent,
            Some(Entry {
                record: Some(record),
                ..
            }) => Status::Settled(record.clone()),
            Some(entry) if entry.is_complete() => Status::Complete,
            Some(entry) => Status::Receiving(entry.ranges.clone()),
        })
    }

    async fn try_claim(&self, key: &UploadKey) -> Result<TryClaim<MemoryClaim>, StoreError> {
        Ok(match self.lock_for(key).get_mut(key) {
            Some(Entry {
                record: Some(record),
                ..
            }) => TryClaim::Settled(record.clone()),
            Some(entry) if !entry.is_complete() => TryClaim::Incomplete,
            Some(Entry { claimed: true, .. }) => TryClaim::Busy,
            Some(entry) => {
                entry.claimed = true;
                TryClaim::Won(MemoryClaim {
                    store: self.clone(),
                    key: *key,
                    id: entry.id.clone(),
                })
            }
            None => TryClaim::Incomplete,
        })
    }

    async fn seal(&self, claim: &mut MemoryClaim, upload: &Upload) -> Result<Sealed, StoreError> {
        let mut uploads = self.lock();
        let entry = uploads
            .get_mut(&claim.key)
            .ok_or_else(|| StoreError::new("it is gone"))?;
        let sealed = entry.sealed.get_or_insert_with(|| {
            let pieces: Vec<_> = entry.pieces.values().cloned().collect();
            let content = pieces.concat();
            Sealed {
                id: entry.id.clone(),
                upload: upload.clone(),
                attempt: 0,
                crc32: Some(crc32fast::hash(&content)),
                location: Location::Memory(content.into()),
            }
        });
        sealed.attempt += 1;
        Ok(sealed.clone())
    }

    async fn settle(
        &self,
        claim: &mut MemoryClaim,
        settlement: &Settlement,
    ) -> Result<(), StoreError> {
        if let Settlement::Delivered(record) | Settlement::Rejected(record) = settlement {
            if let Some(entry) = self.lock().get_mut(&claim.key) {
                entry.record = Some(record.clone());
                entry.pieces.clear();
                entry.sealed = None;
            }
        }
        Ok(())
    }

    async fn remove(&self, key: &UploadKey) -> Result<bool, StoreError> {
        let mut uploads = self.lock();
        let free = uploads
            .get(key)
            .is_some_and(|e| !e.claimed && e.record.is_none());
        Ok(free && uploads.remove(key).is_some())
    }

    async fn undelivered(&self) -> Result<Vec<Upload>, StoreError> {
        let uploads = self.lock();
        let waiting = uploads
            .values()
            .filter(|entry| entry.is_complete() && entry.record.is_none());
        let known = waiting.map(|entry| match &entry.sealed {
            Some(sealed) => &sealed.upload,
            None => &entry.upload,
        });
        Ok(known.cloned().collect())
    }

    async fn unfinished(&self, scope: Option<&str>) -> Result<Vec<(Upload, Progress)>, StoreError> {
        let uploads = self.lock();
        let unsettled = uploads.values().filter(|entry| entry.record.is_none());
        let all = unsettled.map(|entry| {
            let upload = match &entry.sealed {
                Some(sealed) => &sealed.upload,
                None => &entry.upload,
            };
            (upload, entry.progress())
        });
        let all = all.filter(|(upload, progress)| {
            scope.is_none_or(|scope| upload.scope == scope)
                && (progress.complete || progress.received > 0)
        });
        Ok(all
            .map(|(upload, progress)| (upload.clone(), progress))
            .collect())
    }

    async fn sweep(&self, expiry: Expiry) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut uploads = self.lock();
        uploads.retain(|_, entry| {
            let (counter, keep) = match &entry.record {
                Some(record) => (&mut swept.records, record.expires >= expiry.records_before),
                None if entry.is_complete() => (
                    &mut swept.undelivered,
                    expiry
                        .undelivered_before
                        .is_none_or(|before| entry.touched >= before),
                ),
                None => (
                    &mut swept.abandoned,
                    entry.touched >= expiry.abandoned_before,
                ),
            };
            let keep = keep || entry.claimed || entry.writers > 0;
            *counter += u64::from(!keep);
            keep
        });
        Ok(swept)
    }
}
