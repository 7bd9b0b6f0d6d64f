//! Creates uploads, and stores the bytes of chunks.

use std::{
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::Error;

use super::{
    blocks::Blocks,
    engine::{is_absent, store_error},
    info::{Info, Phase, Version},
    inner::Inner,
    keys::Entry,
    lookup::{Extent, insert},
};
use crate::{
    model::upload::Upload,
    store::{ChunkBody, Progress, RangeSet, Status, StoreError, random_id},
};

/// How often to retry after another server has interfered.
const TRIES: usize = 8;

/// How long to wait for another server that removes an expired record.
const PAUSE: Duration = Duration::from_millis(50);

/// How many slots of a chunk are written at once.
const SLOTS_AT_ONCE: usize = 4;

/// The longest part id that fits into the name of a mark.
const MAX_CONTENT_ID: usize = 300;

struct Chunk {
    /// Within the upload.
    offset: u64,
    bytes: Blocks,
    /// How many of the bytes were not stored before.
    new: AtomicU64,
}

impl Chunk {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + self.bytes.len()
    }

    /// The bytes of this range of the upload, which must lie within.
    fn slice(&self, range: &Range<u64>) -> Blocks {
        self.bytes
            .slice(range.start - self.offset..range.end - self.offset)
    }
}

impl Inner {
    pub(super) async fn create(self: &Arc<Self>, upload: &Upload) -> Result<Status, StoreError> {
        let gate = self.gates.of(upload.id);
        let _open = gate.read().await;
        for _ in 0..TRIES {
            let (info, is_new) = self.find_or_create(upload, 0).await?;
            let status = if is_new {
                info.status(RangeSet::default())
            } else {
                self.status(&upload.id).await?
            };
            match status {
                Some(status) if status.upload.contradicts(upload) => {
                    return Err(StoreError::Conflict);
                }
                Some(status) => return Ok(status),
                None => {}
            }
        }
        Err(StoreError::Superseded)
    }

    pub(super) async fn write(
        self: &Arc<Self>,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        // While it is open, no sweep of this process removes the upload.
        let gate = self.gates.of(upload.id);
        let _open = gate.read().await;
        let info = match self.known.info(&upload.id) {
            Some(info) => Some(info),
            None => self.info(&upload.id).await?,
        };
        if let Some(info) = info.as_ref().filter(|info| !info.has_expired) {
            check_length(upload, info)?;
            if !info.is_receiving() {
                while let Some(piece) = body.next().await {
                    piece?;
                }
                body.count_duplicate(body.received());
                return Ok(info.complete());
            }
        }
        // The length of the first request counts.
        if !info.as_ref().is_some_and(|info| info.is_receiving()) {
            self.slot_size(upload)?;
        }
        let chunk = Chunk {
            offset,
            bytes: self.memory.read(body).await?,
            new: AtomicU64::new(0),
        };
        let progress = self.store(upload, info, &chunk).await?;
        let new = chunk.new.into_inner();
        body.count_duplicate(chunk.bytes.len().saturating_sub(new));
        Ok(progress)
    }

    /// Bytes of a slot of this upload, if the store can keep it.
    fn slot_size(&self, upload: &Upload) -> Result<u64, StoreError> {
        let length = upload.length.unwrap_or_default();
        let size = self.limits.slot_size(upload.chunk_size, length);
        let limit = self.limits.max_length();
        size.ok_or(StoreError::TooLarge { limit })
    }

    /// The upload that has this id now, and whether it is new. If it is absent it is created, for a
    /// chunk that ends at `end`.
    async fn find_or_create(
        self: &Arc<Self>,
        upload: &Upload,
        end: u64,
    ) -> Result<(Arc<Info>, bool), StoreError> {
        // Only one request of this process at a time.
        let beginning = self.beginnings.of(upload.id);
        let _beginning = beginning.lock().await;
        for _ in 0..TRIES {
            match self.info(&upload.id).await? {
                Some(info) if info.has_expired => {
                    if !self.remove_record(&info).await? {
                        // Another server is doing it.
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Some(info) => return Ok((info, false)),
                None => {
                    let slot = self.slot_size(upload)?;
                    if upload.length.is_some_and(|length| end > length) {
                        return Err(StoreError::OutOfBounds);
                    }
                    if let Some(info) = self.create_new(upload, slot).await? {
                        return Ok((info, true));
                    }
                }
            }
        }
        Err(StoreError::Superseded)
    }

    /// Creates an upload. `None` if another server was faster.
    async fn create_new(
        &self,
        upload: &Upload,
        slot: u64,
    ) -> Result<Option<Arc<Info>>, StoreError> {
        let mut info = Info {
            version: Version,
            unique_id: random_id()?,
            upload: upload.clone(),
            slot,
            multipart: None,
            is_late: upload.length.is_none(),
            phase: Phase::Receiving,
            has_expired: false,
            turn: None,
        };
        let (file, open) = (self.keys.file(&info.unique_id), self.keys.open(&info));
        let multipart = async {
            if upload.is_empty_file() {
                return Ok(None);
            }
            self.engine.create_multipart(&file).await.map(Some)
        };
        // Before the upload is created, so that all uploads are listed.
        let listing = self.engine.put(&open, Bytes::new());
        (info.multipart, ()) = futures_util::try_join!(multipart, listing)?;
        let info = Arc::new(info);
        let path = self.keys.info(&upload.id);
        let created = self.engine.create(&path, info.to_bytes()?.into()).await;
        if !matches!(created, Ok(true)) {
            // It may be created all the same: the engine's answer may have been lost.
            match self.info(&upload.id).await {
                Ok(Some(found)) if found.unique_id == info.unique_id => {}
                Ok(_) => {
                    if let Some(multipart) = &info.multipart {
                        self.engine.abort_multipart(&file, multipart).await;
                    }
                    // If it fails, a sweep deletes the object.
                    let _ = self.engine.delete(&open).await;
                    return created.map(|_| None);
                }
                // Unknown, so the multipart upload must not be aborted.
                Err(error) => return Err(created.err().unwrap_or(error)),
            }
        }
        self.known.learn(&info);
        Ok(Some(info))
    }

    /// Stores a chunk, and creates the upload if it is absent. Returns how far the upload is.
    async fn store(
        self: &Arc<Self>,
        upload: &Upload,
        mut info: Option<Arc<Info>>,
        chunk: &Chunk,
    ) -> Result<Progress, StoreError> {
        // No upload is that long.
        let end = chunk.offset.saturating_add(chunk.bytes.len());
        for _ in 0..TRIES {
            let now = match info.take().filter(|info| info.is_receiving()) {
                Some(now) => now,
                None => self.find_or_create(upload, end).await?.0,
            };
            check_length(upload, &now)?;
            if !now.is_receiving() {
                return Ok(now.complete());
            }
            if end > now.length() {
                return Err(StoreError::OutOfBounds);
            }
            let limit = self.limits.longest_of(now.slot);
            if end > limit {
                return Err(StoreError::TooLarge { limit });
            }
            let progress = if self.fill(&now, chunk).await? {
                self.current_progress(&now).await?
            } else {
                self.without_multipart(&now).await?
            };
            if let Some(progress) = progress {
                return Ok(progress);
            }
            // The upload was removed.
            self.known.forget(&now);
        }
        Err(StoreError::Superseded)
    }

    /// Stores the bytes that are missing. `false` if the multipart upload does not exist.
    async fn fill(&self, info: &Info, chunk: &Chunk) -> Result<bool, StoreError> {
        let slots = info.slots().touched(&chunk.range());
        // Only one request of this process lists and fills a slot at a time.
        let mut locks = Vec::new();
        for slot in slots.clone() {
            locks.push(self.slots.of((*info.id(), slot)).lock_owned().await);
        }
        let listed = stream::iter(slots).map(async |slot| {
            let entries = self.entries_in_slot(info, slot).await?;
            if entries.iter().any(|entry| entry.turn().is_some()) {
                // Its bytes come by appends.
                return Err(StoreError::Unsupported);
            }
            self.check_bytes(info, slot, &entries, chunk).await?;
            Ok::<_, StoreError>((slot, entries))
        });
        // Nothing of a chunk is stored if some of its bytes contradict what is stored.
        let listed: Vec<_> = listed.buffered(SLOTS_AT_ONCE).try_collect().await?;
        let filled = stream::iter(listed)
            .map(async |(slot, entries)| self.fill_slot(info, slot, &entries, chunk).await)
            .buffer_unordered(SLOTS_AT_ONCE);
        filled.try_all(async |filled| filled).await
    }

    async fn fill_slot(
        &self,
        info: &Info,
        slot: usize,
        entries: &[Entry],
        chunk: &Chunk,
    ) -> Result<bool, StoreError> {
        let (whole, bytes) = (info.slots().range(slot), chunk.range());
        let range = whole.start.max(bytes.start)..whole.end.min(bytes.end);
        let mut stored = RangeSet::default();
        for entry in entries {
            insert(&mut stored, info, slot, entry);
        }
        for gap in stored.gaps(range.start, range.end - range.start) {
            let piece = chunk.slice(&gap);
            chunk.new.fetch_add(gap.end - gap.start, Relaxed);
            if gap != whole {
                self.put_piece(info, slot, gap.start, piece).await?;
            } else if !self.put_part(info, slot, piece).await? {
                return Ok(false);
            }
            stored.insert(gap.start, gap.end - gap.start);
        }
        if stored.covers(whole.start, whole.end - whole.start) {
            self.known.set_full(info, [slot]);
        }
        Ok(true)
    }

    /// Compares the bytes of a chunk with what is stored of a slot. A part cannot be read before
    /// the upload is complete, so one that has other bytes, too, is not compared.
    async fn check_bytes(
        &self,
        info: &Info,
        slot: usize,
        entries: &[Entry],
        chunk: &Chunk,
    ) -> Result<(), StoreError> {
        let bytes = chunk.range();
        let (mut same, mut others) = (RangeSet::default(), Vec::new());
        for entry in entries {
            let range = entry.range(info.slots(), slot);
            let both = range.start.max(bytes.start)..range.end.min(bytes.end);
            if both.is_empty() || (both != range && entry.is_part()) {
                continue;
            }
            let crc = match entry.crc().filter(|_| both == range) {
                Some(crc) => crc,
                None => {
                    let piece = self.read_piece(info, slot, entry, &range).await?;
                    let from = (both.start - range.start) as usize;
                    crc32fast::hash(&piece[from..from + (both.end - both.start) as usize])
                }
            };
            if chunk.slice(&both).crc() == crc {
                same.insert(both.start, both.end - both.start);
            } else {
                others.push(both);
            }
        }
        // Two servers may have stored different bytes at the same time.
        if others
            .iter()
            .all(|range| same.covers(range.start, range.end - range.start))
        {
            Ok(())
        } else {
            Err(StoreError::Conflict)
        }
    }

    /// Stores a whole slot as a part. `false` if the multipart upload does not exist.
    pub(super) async fn put_part(
        &self,
        info: &Info,
        slot: usize,
        bytes: Blocks,
    ) -> Result<bool, StoreError> {
        let file = self.keys.file(&info.unique_id);
        let Some(multipart) = &info.multipart else {
            return Err(StoreError::new("an empty file has no parts"));
        };
        let (crc, len) = (bytes.crc(), bytes.len());
        let put = self
            .engine
            .put_part(&file, multipart, slot, bytes.payload());
        let content_id = match put.await {
            Ok(content_id) => content_id,
            Err(error) => return self.part_failed(info, slot, error).await,
        };
        if content_id.len() > MAX_CONTENT_ID {
            return Err(StoreError::new("the engine's part ids are too long"));
        }
        let turn = info.turn.as_ref().map(|turn| turn.number);
        let by = turn.map(|turn| (len, turn));
        let mark = Entry::Part {
            crc,
            content_id,
            by,
        };
        let mark = self.keys.entry(info.id(), &info.unique_id, slot, &mark);
        self.engine.put(&mark, Bytes::new()).await?;
        Ok(true)
    }

    /// A part can fail because the upload was completed or removed meanwhile: engines have
    /// different errors for it. Returns `true` if the slot is stored, `false` if the multipart
    /// upload does not exist.
    async fn part_failed(
        &self,
        info: &Info,
        slot: usize,
        error: Error,
    ) -> Result<bool, StoreError> {
        let whole = info.slots().range(slot);
        let stored = self.stored_in_slot(info, slot).await?;
        // What is stored of an upload of appends need not count.
        if info.turn.is_none() && stored.covers(whole.start, whole.end - whole.start) {
            return Ok(true);
        }
        let is_receiving = self
            .reload(info)
            .await?
            .is_some_and(|now| now.is_receiving());
        if is_receiving && !is_absent(&error) {
            return Err(store_error(error));
        }
        Ok(false)
    }

    pub(super) async fn put_piece(
        &self,
        info: &Info,
        slot: usize,
        offset: u64,
        bytes: Blocks,
    ) -> Result<(), StoreError> {
        let piece = Entry::Piece {
            offset,
            len: bytes.len(),
            crc: Some(bytes.crc()),
            by: info.turn.as_ref().map(|turn| turn.number),
        };
        let path = self.keys.entry(info.id(), &info.unique_id, slot, &piece);
        for _ in 0..TRIES {
            if self.engine.create(&path, bytes.clone().payload()).await? {
                return Ok(());
            }
            match self.engine.head(&path).await? {
                Some(found) if found.size == bytes.len() => return Ok(()),
                // It is damaged. The name says what it has to contain.
                Some(_) => return self.engine.put(&path, bytes.payload()).await,
                // Another request may still be creating it: see `Engine::create`.
                None => {}
            }
        }
        Err(StoreError::Superseded)
    }

    /// How far the upload is after bytes were stored. `None` if it is gone.
    async fn current_progress(&self, info: &Arc<Info>) -> Result<Option<Progress>, StoreError> {
        // After the bytes were stored, so that of two concurrent last chunks at least one finds the
        // upload complete. Before the phase, because settling deletes the bytes.
        let (_, stored) = self.stored(info, Extent::UpToGap).await?;
        let now = self.reload(info).await?;
        Ok(now.map(|now| now.progress(&stored)))
    }

    /// How far an upload is whose multipart upload does not exist. `None` if it is gone.
    pub(super) async fn without_multipart(
        self: &Arc<Self>,
        info: &Info,
    ) -> Result<Option<Progress>, StoreError> {
        let Some(now) = self.reload(info).await? else {
            return Ok(None);
        };
        if !now.is_receiving() {
            return Ok(Some(now.complete()));
        }
        // Something has aborted it, such as a lifecycle rule of the bucket. The stored bytes are
        // lost, and the upload starts again.
        match self.take_lease(&now).await? {
            Some(lease) => self.remove_leased(lease, None).await.map(|_| None),
            None => Err(StoreError::Superseded),
        }
    }
}

/// A request that declares another length than the first one is about another file.
fn check_length(upload: &Upload, info: &Info) -> Result<(), StoreError> {
    if !info.has_expired && info.upload.contradicts(upload) {
        Err(StoreError::Conflict)
    } else {
        Ok(())
    }
}
