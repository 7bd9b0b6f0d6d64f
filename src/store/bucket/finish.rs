//! A complete upload becomes one object, and its answer a record; or it is removed.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::Error;

use super::{
    Inner, ObjectClaim, StoredObject,
    blocks::Blocks,
    bucket::{says, store_error},
    info::{Info, Phase, Seal},
    keys::Held,
    put::Extent,
};
use crate::store::{
    Location, RangeSet, Record, Sealed, Settlement, StoreError, TryClaim, Upload, UploadKey,
};

/// Slots that are put together at once, and pieces of each that are read at once. A slot is held in
/// memory.
const SLOTS_AT_ONCE: usize = 2;
const PIECES_AT_ONCE: usize = 4;

/// Sets of parts that are tried, where it is not known which one of several it is.
const COMBINATIONS: usize = 16;

impl Inner {
    pub(super) async fn try_claim(
        self: &Arc<Self>,
        key: &UploadKey,
    ) -> Result<TryClaim<ObjectClaim>, StoreError> {
        let Some((info, there)) = self.look(key, Extent::UpToAGap).await? else {
            return Ok(TryClaim::Incomplete);
        };
        if let Some(answer) = settled(&info) {
            return Ok(answer);
        }
        if !info.progress(&there).complete {
            return Ok(TryClaim::Incomplete);
        }
        if self.was_just_busy(&info.id) {
            return Ok(TryClaim::Busy);
        }
        let Some(mut claim) = self.claim(&info).await? else {
            return Ok(TryClaim::Busy);
        };
        // What was there may have been settled or removed before the claim was ours.
        let answer = match self.info(key).await? {
            Some(now) if now.id == info.id => {
                claim.info = Arc::clone(&now);
                settled(&now)
            }
            _ => Some(TryClaim::Incomplete),
        };
        match answer {
            None => Ok(TryClaim::Won(claim)),
            Some(answer) => {
                claim.give_up().await;
                Ok(answer)
            }
        }
    }

    pub(super) async fn seal(
        &self,
        claim: &mut ObjectClaim,
        upload: &Upload,
    ) -> Result<Sealed, StoreError> {
        let info = Arc::clone(&claim.info);
        let seal = match &info.phase {
            Phase::Receiving => Seal {
                upload: upload.clone(),
                attempt: 1,
                crc: match self.publish(&info).await? {
                    Some(crc) => crc,
                    None => return Err(self.lose(claim).await?),
                },
            },
            Phase::Sealed(seal) => Seal {
                attempt: seal.attempt + 1,
                ..seal.clone()
            },
            Phase::Settled(_) => return Err(StoreError::Superseded),
        };
        // It may have taken long.
        if !claim.holds().await? {
            return Err(StoreError::Superseded);
        }
        let sealed = Arc::new(info.in_phase(Phase::Sealed(seal.clone())));
        self.write_info(&sealed).await?;
        claim.info = sealed;
        Ok(Sealed {
            id: info.id.clone(),
            location: Location::Object(StoredObject {
                store: Arc::clone(&self.bucket.objects),
                path: self.keys.file(&info.id),
            }),
            upload: seal.upload,
            attempt: seal.attempt,
            crc32: Some(seal.crc),
        })
    }

    /// Makes the final object, if an earlier attempt has not; its CRC-32. `None` if the multipart
    /// upload is not there any more.
    async fn publish(&self, info: &Info) -> Result<Option<u32>, StoreError> {
        let file = self.keys.file(&info.id);
        let Some(multipart) = &info.multipart else {
            self.bucket.put(&file, Bytes::new()).await?;
            return Ok(Some(crc32fast::hash(b"")));
        };
        let mut parts = self.parts(info).await?;
        let missing: Vec<_> = (0..info.slots().count())
            .filter(|slot| parts.get(slot).is_none_or(|slot| slot.marks.is_empty()))
            .collect();
        if !missing.is_empty() {
            let assembled: Vec<bool> = stream::iter(missing)
                .map(|slot| {
                    let pieces = parts.get(&slot).map(|slot| slot.pieces.clone());
                    self.assemble(info, slot, pieces.unwrap_or_default())
                })
                .buffer_unordered(SLOTS_AT_ONCE)
                .try_collect()
                .await?;
            if assembled.contains(&false) {
                return Ok(None);
            }
            parts = self.parts(info).await?;
        }
        let slots: Vec<_> = parts.into_values().map(|slot| slot.marks).collect();
        let mut failed = None;
        for chosen in combinations(&slots) {
            let crc = combined_crc(info, &chosen);
            let ids = chosen.iter().map(|(_, content_id)| content_id.clone());
            let completed = self
                .bucket
                .complete_multipart(&file, multipart, ids.collect());
            let Err(error) = completed.await else {
                return Ok(Some(crc));
            };
            // An earlier attempt may have done it, or this one without being told.
            if let Some(there) = self.bucket.head(&file).await? {
                return match there.size == info.upload.total {
                    true => Ok(Some(crc)),
                    false => Err(StoreError::new("the final object has another size")),
                };
            }
            if let Error::NotFound { .. } = error {
                return Ok(None);
            }
            let is_wrong_part = says(&error, "InvalidPart");
            failed = Some(error);
            if !is_wrong_part {
                break;
            }
        }
        match failed {
            Some(error) => Err(self.not_completed(info, slots, error).await?),
            None => Err(StoreError::new("the upload has no parts")),
        }
    }

    /// What is there of each slot.
    async fn parts(&self, info: &Info) -> Result<BTreeMap<usize, Parts>, StoreError> {
        let path = self.keys.slots(info.key(), &info.id);
        let mut found = self.bucket.list(&path, None);
        let mut parts = BTreeMap::<usize, Parts>::new();
        while let Some(listed) = found.try_next().await? {
            match Held::from_path(&listed.path) {
                Some((slot, Held::Part { crc, content_id })) => {
                    parts.entry(slot).or_default().marks.push((crc, content_id));
                }
                Some((slot, Held::Piece { offset, len })) => {
                    parts.entry(slot).or_default().pieces.push((offset, len));
                }
                None => {}
            }
        }
        Ok(parts)
    }

    /// Takes away what is left of an upload whose parts somebody has taken away, such as a lifecycle
    /// rule of the bucket: it begins anew.
    async fn lose(&self, claim: &mut ObjectClaim) -> Result<StoreError, StoreError> {
        let info = Arc::clone(&claim.info);
        if claim.holds().await? {
            self.bucket.delete(&self.keys.info(info.key())).await?;
            self.known.forget(&info);
            claim.finish().await;
            // What stays is swept.
            let _ = self.clear(info.key(), &info.id, false).await;
            let _ = self.bucket.delete(&self.keys.open(&info)).await;
        }
        Ok(StoreError::new(
            "the multipart upload is gone, was it aborted?",
        ))
    }

    /// Makes one slot a part. `false` if the multipart upload is not there any more.
    async fn assemble(
        &self,
        info: &Info,
        slot: usize,
        mut pieces: Vec<(u64, u64)>,
    ) -> Result<bool, StoreError> {
        let whole = info.slots().range(slot);
        let _room = self.memory.reserve(whole.end - whole.start).await?;
        // Those of two servers can overlap: each byte is taken from the first piece that has it.
        pieces.sort_unstable();
        let mut taken = RangeSet::default();
        let mut wanted = Vec::new();
        for (offset, len) in pieces {
            for gap in taken.gaps(offset, len) {
                taken.insert(gap.start, gap.end - gap.start);
                wanted.push((offset, len, gap));
            }
        }
        if !taken.covers(whole.start, whole.end - whole.start) {
            // It was believed to be there.
            self.known.forget(info);
            return Err(StoreError::new("stored bytes are missing"));
        }
        wanted.sort_unstable_by_key(|(_, _, gap)| gap.start);
        let read = stream::iter(wanted).map(async |(offset, len, gap)| {
            let path = Held::Piece { offset, len };
            let path = self.keys.held(info.key(), &info.id, slot, &path);
            let bytes = self.bucket.get(&path).await?;
            let bytes = bytes.filter(|bytes| bytes.len() as u64 == len);
            let bytes = bytes.ok_or_else(|| StoreError::new("a stored piece is damaged"))?;
            Ok::<_, StoreError>(
                bytes.slice((gap.start - offset) as usize..(gap.end - offset) as usize),
            )
        });
        let mut read = std::pin::pin!(read.buffered(PIECES_AT_ONCE));
        let mut bytes = Blocks::default();
        while let Some(piece) = read.try_next().await? {
            bytes.push(piece);
        }
        self.put_part(info, slot, bytes).await
    }

    /// Why an object could not be made, and what is to be done about it.
    async fn not_completed(
        &self,
        info: &Info,
        slots: Vec<Vec<(u32, String)>>,
        error: Error,
    ) -> Result<StoreError, StoreError> {
        if says(&error, "InvalidPart") {
            // Two servers have put other bytes for the same part, or other names for the same
            // bytes, and which one was last nobody knows. It has to come again.
            let doubtful = slots.iter().any(|marks| marks.len() > 1);
            for (slot, marks) in slots.into_iter().enumerate() {
                if doubtful && marks.len() < 2 {
                    continue;
                }
                for (crc, content_id) in marks {
                    let mark = Held::Part { crc, content_id };
                    let path = self.keys.held(info.key(), &info.id, slot, &mark);
                    self.bucket.delete(&path).await?;
                }
            }
            self.known.forget(info);
        }
        Ok(store_error(error))
    }

    pub(super) async fn settle(
        &self,
        claim: &mut ObjectClaim,
        settlement: &Settlement,
    ) -> Result<(), StoreError> {
        let record = match settlement {
            Settlement::Released => {
                claim.give_back().await;
                return Ok(());
            }
            Settlement::Delivered(record) | Settlement::Rejected(record) => record,
        };
        let info = Arc::clone(&claim.info);
        let settled = Arc::new(info.in_phase(Phase::Settled(record.clone())));
        match self.info(info.key()).await? {
            Some(now) if now.id != info.id => return Err(StoreError::Superseded),
            // It was written, but the answer was lost.
            Some(now) if now.to_bytes() == settled.to_bytes() => {}
            Some(now) if matches!(now.phase, Phase::Settled(_)) => {
                return Err(StoreError::Superseded);
            }
            None => return Err(StoreError::Superseded),
            Some(_) => self.write_info(&settled).await?,
        }
        claim.finish().await;
        // What stays goes with the record.
        let _ = self.clean_up(&info, record).await;
        Ok(())
    }

    /// Deletes what nobody needs any more of a settled upload.
    async fn clean_up(&self, info: &Info, record: &Record) -> Result<(), StoreError> {
        if !record.delivered {
            self.bucket.delete(&self.keys.file(&info.id)).await?;
        }
        let (open, all) = (self.keys.open(info), self.keys.of(info.key(), &info.id));
        let deleted =
            futures_util::try_join!(self.bucket.delete(&open), self.bucket.delete_below(&all));
        deleted.map(drop)
    }

    /// Takes an expired record away, so that the upload can begin anew.
    pub(super) async fn forget_record(
        self: &Arc<Self>,
        info: &Arc<Info>,
    ) -> Result<bool, StoreError> {
        let Some(mut claim) = self.claim(info).await? else {
            return Ok(false);
        };
        let record = match self.info(info.key()).await? {
            Some(now) if now.id == info.id => match &now.phase {
                Phase::Settled(record) => record.clone(),
                _ => return Ok(false),
            },
            _ => {
                claim.give_up().await;
                return Ok(false);
            }
        };
        if !claim.holds().await? {
            return Ok(false);
        }
        self.bucket.delete(&self.keys.info(info.key())).await?;
        claim.finish().await;
        // What stays is swept.
        let _ = self.clean_up(info, &record).await;
        Ok(true)
    }

    pub(super) async fn remove(self: &Arc<Self>, key: &UploadKey) -> Result<bool, StoreError> {
        let Some(info) = self.info(key).await? else {
            return Ok(false);
        };
        if let Phase::Settled(_) = info.phase {
            return Ok(false);
        }
        match self.claim(&info).await? {
            Some(claim) => self.remove_claimed(claim, None).await,
            None => Ok(false),
        }
    }

    /// Removes an upload, if it is still what was claimed and not settled; and not if something was
    /// stored since `untouched_since`, by the store's clock.
    pub(super) async fn remove_claimed(
        self: &Arc<Self>,
        mut claim: ObjectClaim,
        untouched_since: Option<SystemTime>,
    ) -> Result<bool, StoreError> {
        let info = match self.info(claim.info.key()).await? {
            Some(now) if now.id == claim.info.id => now,
            _ => {
                claim.give_up().await;
                return Ok(false);
            }
        };
        if let Phase::Settled(_) = info.phase {
            claim.give_up().await;
            return Ok(false);
        }
        // There can be a final object if all bytes are there.
        let there = self.survey(&info, Extent::UpToAGap).await?;
        let has_file = info.progress(&there).complete;
        if has_file {
            let doomed = self.keys.doomed(info.key(), &info.id);
            self.bucket.put(&doomed, Bytes::new()).await?;
        }
        if !claim.holds().await? {
            return Ok(false);
        }
        // From here on it is gone.
        let path = self.keys.info(info.key());
        self.bucket.delete(&path).await?;
        self.known.forget(&info);
        if let Some(limit) = untouched_since {
            // Another server's request that has stored something just before does not know: it is
            // put back then. One that comes later begins anew, unless this is faster.
            if self
                .newest_byte(&info)
                .await?
                .is_some_and(|newest| newest >= limit)
            {
                self.bucket.create(&path, info.to_bytes().into()).await?;
                return Ok(false);
            }
        }
        claim.finish().await;
        // What stays is swept.
        let _ = self.clear(&info.upload.key, &info.id, has_file).await;
        let _ = self.bucket.delete(&self.keys.open(&info)).await;
        if let Some(multipart) = &info.multipart {
            let file = self.keys.file(&info.id);
            self.bucket.abort_multipart(&file, multipart).await;
        }
        Ok(true)
    }

    /// Deletes all that is left of an upload that is gone.
    pub(super) async fn clear(
        &self,
        key: &UploadKey,
        id: &str,
        with_file: bool,
    ) -> Result<(), StoreError> {
        if with_file {
            self.bucket.delete(&self.keys.file(id)).await?;
        }
        self.bucket.delete_below(&self.keys.of(key, id)).await
    }
}

impl ObjectClaim {
    /// Ends a claim of what is not there any more: its object would be left behind.
    async fn give_up(&mut self) {
        let all = self.store.keys.claims(self.info.key(), &self.info.id);
        self.finish().await;
        let _ = self.store.bucket.delete_below(&all).await;
    }
}

/// What to say to who asks for the claim of a settled upload.
fn settled(info: &Info) -> Option<TryClaim<ObjectClaim>> {
    match &info.phase {
        Phase::Settled(_) if info.is_expired() => Some(TryClaim::Incomplete),
        Phase::Settled(record) => Some(TryClaim::Settled(record.clone())),
        Phase::Sealed(_) | Phase::Receiving => None,
    }
}

/// What is there of one slot.
#[derive(Debug, Default)]
struct Parts {
    marks: Vec<(u32, String)>,
    pieces: Vec<(u64, u64)>,
}

/// One mark of each slot, in the ways there are, not more than so many.
fn combinations(slots: &[Vec<(u32, String)>]) -> impl Iterator<Item = Vec<(u32, String)>> {
    (0..COMBINATIONS).map_while(move |number| {
        let mut rest = number;
        let chosen = slots.iter().map(|marks| {
            let chosen = marks.get(rest % marks.len().max(1)).cloned();
            rest /= marks.len().max(1);
            chosen
        });
        let chosen = chosen.collect::<Option<Vec<_>>>()?;
        (rest == 0 && !chosen.is_empty()).then_some(chosen)
    })
}

/// The CRC-32 of the file that is made of these parts.
fn combined_crc(info: &Info, parts: &[(u32, String)]) -> u32 {
    let mut whole = crc32fast::Hasher::new();
    for (slot, (crc, _)) in parts.iter().enumerate() {
        let range = info.slots().range(slot);
        let part = crc32fast::Hasher::new_with_initial_len(*crc, range.end - range.start);
        whole.combine(&part);
    }
    whole.finalize()
}
