//! A chunk on its way into the store.

use std::{ops::Range, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::Error;

use super::{
    Inner, all_of,
    blocks::Blocks,
    bucket::store_error,
    info::{Info, Phase},
    keys::Held,
};
use crate::{
    UploadError,
    store::{ChunkBody, Progress, RangeSet, StoreError, Upload, UploadKey, random_id},
};

/// How often a chunk begins anew when its upload is removed under it.
const TRIES: usize = 8;

/// How long to wait for another server that is removing what is in the way.
const PAUSE: Duration = Duration::from_millis(50);

/// Slots that are filled at once, of a chunk that has several.
const SLOTS_AT_ONCE: usize = 4;

/// One page of a list.
const PAGE: usize = 1000;

/// What storing a chunk has come to.
enum Stored {
    Done(Progress),
    /// The upload is not there any more.
    Gone,
}

impl Inner {
    pub(super) async fn put(
        self: &Arc<Self>,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        if self
            .limits
            .slot_size(upload.chunk_size, upload.total)
            .is_none()
        {
            let limit = self.limits.max_total();
            return Err(StoreError::TooLarge { limit });
        }
        // Nothing that this process writes to is swept.
        let gate = self.gates.of(upload.key);
        let _open = gate.read().await;
        let mut info = match self.known.info(&upload.key) {
            Some(info) => Some(info),
            None => self.info(&upload.key).await?,
        };
        if let Some(info) = info.as_ref().filter(|info| !info.is_receiving()) {
            if !info.is_expired() {
                while let Some(piece) = body.next().await {
                    piece?;
                }
                return Ok(info.complete());
            }
        }
        let bytes = self.memory.take(body).await?;
        for _ in 0..TRIES {
            let now = match info.take().filter(|info| info.is_receiving()) {
                Some(info) => info,
                None => self.begin(upload).await?,
            };
            if !now.is_receiving() {
                return Ok(now.complete());
            }
            if offset
                .checked_add(bytes.len())
                .is_none_or(|end| end > now.upload.total)
            {
                return Err(UploadError::OutOfBounds.into());
            }
            match self.store(&now, offset, &bytes).await? {
                Stored::Done(progress) => return Ok(progress),
                Stored::Gone => self.known.forget(&now),
            }
        }
        Err(StoreError::Superseded)
    }

    /// The upload as it stands, a new one if there is none.
    async fn begin(self: &Arc<Self>, upload: &Upload) -> Result<Arc<Info>, StoreError> {
        // One of the requests of this process is enough.
        let beginning = self.beginnings.of(upload.key);
        let _beginning = beginning.lock().await;
        for _ in 0..TRIES {
            match self.info(&upload.key).await? {
                Some(info) if info.is_expired() => {
                    if !self.forget_record(&info).await? {
                        // Another server is about to.
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                Some(info) => return Ok(info),
                None => {
                    let (inner, upload) = (Arc::clone(self), upload.clone());
                    let created = all_of(async move { inner.create(&upload).await });
                    if let Some(info) = created.await? {
                        return Ok(info);
                    }
                }
            }
        }
        Err(StoreError::Superseded)
    }

    /// A new upload; `None` if another server was faster.
    async fn create(&self, upload: &Upload) -> Result<Option<Arc<Info>>, StoreError> {
        let limits = &self.limits;
        let Some(slot) = limits.slot_size(upload.chunk_size, upload.total) else {
            let limit = limits.max_total();
            return Err(StoreError::TooLarge { limit });
        };
        let mut info = Info {
            id: random_id()?,
            upload: upload.clone(),
            slot,
            multipart: None,
            phase: Phase::Receiving,
        };
        let (file, open) = (self.keys.file(&info.id), self.keys.open(&info));
        let beginning = async {
            Ok(match upload.total {
                0 => None,
                _ => Some(self.bucket.create_multipart(&file).await?),
            })
        };
        // Nothing begins without being listed.
        let listing = self.bucket.put(&open, Bytes::new());
        (info.multipart, ()) = futures_util::try_join!(beginning, listing)?;
        let info = Arc::new(info);
        let path = self.keys.info(&upload.key);
        let created = self.bucket.create(&path, info.to_bytes().into()).await;
        // It can be ours all the same, if an answer was lost.
        if !matches!(created, Ok(true)) {
            match self.info(&upload.key).await {
                Ok(Some(found)) if found.id == info.id => {}
                Ok(_) => {
                    if let Some(multipart) = &info.multipart {
                        self.bucket.abort_multipart(&file, multipart).await;
                    }
                    // What stays is swept.
                    let _ = self.bucket.delete(&open).await;
                    return created.map(|_| None);
                }
                // Who knows: it must not be aborted.
                Err(error) => return Err(created.err().unwrap_or(error)),
            }
        }
        self.known.learn(&info);
        Ok(Some(info))
    }

    /// Stores what is not there yet, and makes sure that it was not for nothing.
    async fn store(
        self: &Arc<Self>,
        info: &Arc<Info>,
        offset: u64,
        bytes: &Blocks,
    ) -> Result<Stored, StoreError> {
        let range = offset..offset + bytes.len();
        let filled = stream::iter(info.slots().touched(&range)).map(async |slot| {
            // Only one request of this process at a time looks what a slot has, and fills it up.
            let lock = self.slots.of((*info.key(), slot));
            let _lock = lock.lock().await;
            self.fill_slot(info, slot, offset, bytes).await
        });
        let filled = filled.buffer_unordered(SLOTS_AT_ONCE);
        if !filled.try_all(async |filled| filled).await? {
            return self.after_all(info).await;
        }
        // After what was stored: of two last chunks at least one sees both. And before the phase: what
        // is found then is not what a settled upload has left.
        let found = self.survey(info, Extent::UpToAGap).await?;
        Ok(match self.info(info.key()).await? {
            Some(now) if now.id != info.id => Stored::Gone,
            None => Stored::Gone,
            Some(now) if !now.is_receiving() => Stored::Done(now.complete()),
            Some(_) => Stored::Done(info.progress(&found)),
        })
    }

    /// Fills up one slot with what a chunk has of it. `false` if the multipart upload is not there.
    async fn fill_slot(
        &self,
        info: &Arc<Info>,
        slot: usize,
        offset: u64,
        bytes: &Blocks,
    ) -> Result<bool, StoreError> {
        if self.known.full(info).has(slot) {
            return Ok(true);
        }
        let whole = info.slots().range(slot);
        let ours = whole.start.max(offset)..whole.end.min(offset + bytes.len());
        let mut there = self.slot(info, slot).await?;
        for gap in there.gaps(ours.start, ours.end - ours.start) {
            let piece = bytes.slice(gap.start - offset..gap.end - offset);
            match gap == whole {
                true => {
                    if !self.put_part(info, slot, piece).await? {
                        return Ok(false);
                    }
                }
                false => self.put_piece(info, slot, gap.start, piece).await?,
            }
            there.insert(gap.start, gap.end - gap.start);
        }
        if there.covers(whole.start, whole.end - whole.start) {
            self.known.set_full(info, [slot]);
        }
        Ok(true)
    }

    /// Puts a whole slot where it stays. `false` if the multipart upload is not there.
    pub(super) async fn put_part(
        &self,
        info: &Info,
        slot: usize,
        bytes: Blocks,
    ) -> Result<bool, StoreError> {
        let file = self.keys.file(&info.id);
        let Some(multipart) = &info.multipart else {
            return Err(StoreError::new("an empty upload has no parts"));
        };
        let crc = bytes.crc();
        let put = self
            .bucket
            .put_part(&file, multipart, slot, bytes.payload());
        let content_id = match put.await {
            Ok(content_id) => content_id,
            Err(error) => return self.part_failed(info, slot, error).await,
        };
        // A name has its limits.
        if content_id.len() > 300 {
            return Err(StoreError::new("the engine's part ids are too long"));
        }
        let mark = Held::Part { crc, content_id };
        let mark = self.keys.held(info.key(), &info.id, slot, &mark);
        self.bucket.put(&mark, Bytes::new()).await?;
        Ok(true)
    }

    /// A part can be refused because the upload was completed or removed meanwhile, which not all
    /// engines say in the same words. Whether it need not be put any more, or cannot be.
    async fn part_failed(
        &self,
        info: &Info,
        slot: usize,
        error: Error,
    ) -> Result<bool, StoreError> {
        let whole = info.slots().range(slot);
        let there = self.slot(info, slot).await?;
        if there.covers(whole.start, whole.end - whole.start) {
            return Ok(true);
        }
        match (self.info(info.key()).await?, error) {
            (Some(now), Error::NotFound { .. }) if now.id == info.id => Ok(false),
            (Some(now), error) if now.id == info.id && now.is_receiving() => {
                Err(store_error(error))
            }
            _ => Ok(false),
        }
    }

    async fn put_piece(
        &self,
        info: &Info,
        slot: usize,
        offset: u64,
        bytes: Blocks,
    ) -> Result<(), StoreError> {
        let piece = Held::Piece {
            offset,
            len: bytes.len(),
        };
        let path = self.keys.held(info.key(), &info.id, slot, &piece);
        for _ in 0..TRIES {
            let created = self.bucket.create(&path, bytes.clone().payload()).await?;
            // Some engines say that it is there when another request is only about to put it.
            if created || self.bucket.head(&path).await?.is_some() {
                return Ok(());
            }
        }
        Err(StoreError::Superseded)
    }

    /// What becomes of a chunk whose multipart upload is not there.
    async fn after_all(self: &Arc<Self>, info: &Arc<Info>) -> Result<Stored, StoreError> {
        match self.info(info.key()).await? {
            Some(now) if now.id != info.id => Ok(Stored::Gone),
            Some(now) if !now.is_receiving() => Ok(Stored::Done(now.complete())),
            None => Ok(Stored::Gone),
            // Somebody has aborted it, such as a lifecycle rule of the bucket: what was stored is
            // lost, and this chunk is the first one again.
            Some(now) => match self.claim(&now).await? {
                Some(claim) => {
                    self.remove_claimed(claim, None).await?;
                    Ok(Stored::Gone)
                }
                None => Err(StoreError::Superseded),
            },
        }
    }

    /// What is there of a slot.
    async fn slot(&self, info: &Info, slot: usize) -> Result<RangeSet, StoreError> {
        let path = self.keys.slot(info.key(), &info.id, slot);
        let mut found = self.bucket.list(&path, None);
        let mut there = RangeSet::default();
        while let Some(listed) = found.try_next().await? {
            if let Some((slot, held)) = Held::from_path(&listed.path) {
                insert(&mut there, info, slot, &held);
            }
        }
        Ok(there)
    }

    /// The upload of this key, and what was there of it if it is being received.
    pub(super) async fn look(
        &self,
        key: &UploadKey,
        extent: Extent,
    ) -> Result<Option<(Arc<Info>, RangeSet)>, StoreError> {
        let mut known = self.known.info(key);
        loop {
            // First the bytes, then the phase: when an upload is settled its bytes go.
            let found = match &known {
                Some(info) => self.survey(info, extent).await?,
                None => RangeSet::default(),
            };
            let Some(now) = self.info(key).await? else {
                return Ok(None);
            };
            let is_same = known.is_some_and(|known| known.id == now.id);
            if is_same || !now.is_receiving() {
                return Ok(Some((now, found)));
            }
            known = Some(now);
        }
    }

    /// What is there of an upload. Only what is not known to be full is asked for.
    pub(super) async fn survey(&self, info: &Info, extent: Extent) -> Result<RangeSet, StoreError> {
        let slots = info.slots();
        let full = self.known.full(info);
        let mut there = RangeSet::default();
        for run in full.runs(slots.count()) {
            let (start, end) = (slots.range(run.start).start, slots.range(run.end).start);
            there.insert(start, end - start);
        }
        let Some(gap) = full.first_gap(slots.count()) else {
            return Ok(there);
        };
        // Behind all that sorts before the slot.
        let after = (gap > 0).then(|| self.keys.slot(info.key(), &info.id, gap));
        let path = self.keys.slots(info.key(), &info.id);
        let mut found = self.bucket.list(&path, after.as_ref());
        let (mut count, mut seen) = (0, Vec::new());
        while let Some(listed) = found.try_next().await? {
            if let Some((slot, held)) = Held::from_path(&listed.path) {
                insert(&mut there, info, slot, &held);
                if seen.last() != Some(&slot) {
                    seen.push(slot);
                }
                // The rest of a page costs nothing.
                count += 1;
                let may_stop = matches!(extent, Extent::UpToAGap) && self.bucket.is_ordered();
                if may_stop && count % PAGE == 0 && !there.covers(0, slots.range(slot).start) {
                    break;
                }
            }
        }
        let full = seen.into_iter().filter(|slot| {
            let Range { start, end } = slots.range(*slot);
            there.covers(start, end - start)
        });
        self.known.set_full(info, full);
        Ok(there)
    }
}

/// How much of an upload is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extent {
    All,
    /// Enough to know whether it is complete.
    UpToAGap,
}

fn insert(there: &mut RangeSet, info: &Info, slot: usize, held: &Held) {
    let range = match held {
        Held::Part { .. } => info.slots().range(slot),
        Held::Piece { offset, len } => *offset..offset.saturating_add(*len),
    };
    there.insert(range.start, range.end - range.start);
}
