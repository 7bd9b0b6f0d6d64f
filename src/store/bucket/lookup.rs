//! What is stored of an upload.

use std::sync::Arc;

use futures_util::{Stream, TryStreamExt as _};
use object_store::path::Path;

use super::{
    info::{Info, Phase},
    inner::Inner,
    keys::Entry,
};
use crate::{
    model::upload::UploadId,
    store::{RangeSet, Status, StoreError},
};

/// The names in one answer to a list request.
const PAGE: usize = 1000;

/// How much of an upload is looked up.
#[derive(Clone, Copy, Debug)]
pub(super) enum Extent {
    All,
    /// Enough to know whether the upload is complete.
    UpToGap,
    /// All, also if it is not known yet that the bytes come by appends.
    OfAppends,
}

impl Inner {
    pub(super) async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        let found = self.find(id, Extent::All).await?;
        Ok(found.and_then(|(info, stored)| info.status(stored)))
    }

    /// The `info` object of the upload that has this id now. One that cannot be read is set aside,
    /// so that the upload begins anew.
    pub(super) async fn info(&self, id: &UploadId) -> Result<Option<Arc<Info>>, StoreError> {
        let Some(bytes) = self.engine.get(&self.keys.info(id)).await? else {
            return Ok(None);
        };
        let mut info = match Info::from_bytes(&bytes, id) {
            Ok(info) => info,
            Err(error) => {
                let aside = self.set_info_aside(id, bytes, error);
                return aside.await.map(|()| None);
            }
        };
        if let Phase::Settled(record) = &mut info.phase {
            let offset = self.clock.offset(&self.engine, &self.keys).await?;
            record.expires = offset.to_local(record.expires);
            info.has_expired = record.expires <= self.clock.local();
        }
        let info = Arc::new(info);
        self.known.learn(&info);
        Ok(Some(info))
    }

    /// The same upload as it is now. `None` if it is gone, even if a new one has its id.
    pub(super) async fn reload(&self, info: &Info) -> Result<Option<Arc<Info>>, StoreError> {
        let now = self.info(info.id()).await?;
        let now = now.filter(|now| now.unique_id == info.unique_id);
        Ok(now.map(|now| match &info.turn {
            Some(turn) if now.is_receiving() => Arc::new(now.in_turn(turn.clone())),
            _ => now,
        }))
    }

    pub(super) async fn put_info(&self, info: &Arc<Info>) -> Result<(), StoreError> {
        let path = self.keys.info(info.id());
        self.engine.put(&path, info.to_bytes()?).await?;
        self.known.learn(info);
        Ok(())
    }

    /// The upload that has this id now, and what is stored of it while it is being received.
    pub(super) async fn find(
        &self,
        id: &UploadId,
        extent: Extent,
    ) -> Result<Option<(Arc<Info>, RangeSet)>, StoreError> {
        let mut known = self.known.info(id);
        loop {
            // The bytes before the phase, because settling deletes the bytes.
            let stored = match &known {
                Some(info) => Some(self.stored(info, extent).await?),
                None => None,
            };
            let Some(now) = self.info(id).await? else {
                return Ok(None);
            };
            match stored {
                _ if !now.is_receiving() => return Ok(Some((now, RangeSet::default()))),
                Some((info, stored)) if info.unique_id == now.unique_id => {
                    return Ok(Some((info, stored)));
                }
                _ => known = Some(now),
            }
        }
    }

    /// What is stored of an upload that is being received, and the upload as it is in its newest
    /// turn, if it is one of appends. Slots that are known to be full are not listed again.
    pub(super) async fn stored(
        &self,
        info: &Arc<Info>,
        extent: Extent,
    ) -> Result<(Arc<Info>, RangeSet), StoreError> {
        let is_known = info.takes_appends() || self.known.turn(info).is_some();
        if is_known || matches!(extent, Extent::OfAppends) {
            if let Some(appended) = self.appended(info).await? {
                return Ok(appended);
            }
        }
        let slots = info.slots();
        let full = self.known.full(info);
        let mut stored = RangeSet::default();
        for run in full.runs(slots.count()) {
            let (start, end) = (slots.range(run.start).start, slots.range(run.end).start);
            stored.insert(start, end - start);
        }
        let Some(gap) = full.first_gap(slots.count()) else {
            return Ok((Arc::clone(info), stored));
        };
        let after = (gap > 0).then(|| self.keys.slot(info.id(), &info.unique_id, gap));
        let path = self.keys.slots(info.id(), &info.unique_id);
        let mut entries = std::pin::pin!(self.entries(info, &path, after.as_ref()));
        let (mut count, mut seen) = (0, Vec::new());
        while let Some((slot, entry)) = entries.try_next().await? {
            if entry.turn().is_some() {
                // Its slots are those of its turns. Without a turn it was removed meanwhile.
                let appended = self.appended(info).await?;
                return Ok(appended.unwrap_or_else(|| (Arc::clone(info), RangeSet::default())));
            }
            insert(&mut stored, info, slot, &entry);
            if seen.last() != Some(&slot) {
                seen.push(slot);
            }
            // Stop only at the end of a page, which has been received anyway.
            count += 1;
            let may_stop = matches!(extent, Extent::UpToGap) && self.engine.is_ordered();
            if may_stop && count % PAGE == 0 && !stored.covers(0, slots.range(slot).start) {
                break;
            }
        }
        let full = seen.into_iter().filter(|slot| {
            let whole = slots.range(*slot);
            stored.covers(whole.start, whole.end - whole.start)
        });
        self.known.set_full(info, full);
        Ok((Arc::clone(info), stored))
    }

    pub(super) async fn stored_in_slot(
        &self,
        info: &Info,
        slot: usize,
    ) -> Result<RangeSet, StoreError> {
        let mut stored = RangeSet::default();
        for entry in self.entries_in_slot(info, slot).await? {
            insert(&mut stored, info, slot, &entry);
        }
        Ok(stored)
    }

    pub(super) async fn entries_in_slot(
        &self,
        info: &Info,
        slot: usize,
    ) -> Result<Vec<Entry>, StoreError> {
        let path = self.keys.slot(info.id(), &info.unique_id, slot);
        let entries = self.entries(info, &path, None);
        entries.map_ok(|(_, entry)| entry).try_collect().await
    }

    /// The entries below a path in the slots of an upload. Other objects are ignored, and so are
    /// pieces that do not have the length that their names say: the client sends these bytes again.
    /// Those of an upload of appends are not checked if its turn is not known.
    pub(super) fn entries(
        &self,
        info: &Info,
        path: &Path,
        after: Option<&Path>,
    ) -> impl Stream<Item = Result<(usize, Entry), StoreError>> + Send + use<> {
        let (slots, has_turn) = (info.slots(), info.turn.is_some());
        let listed = self.engine.list(path, after);
        listed.try_filter_map(move |listed| {
            let entry = Entry::from_path(&listed.path).filter(|(slot, entry)| {
                if entry.turn().is_some() != has_turn {
                    // The slots of an upload of appends are known when its turn is.
                    return !has_turn;
                }
                let range = entry.range(slots, *slot);
                let whole = slots.range(*slot);
                let is_inside = whole.start <= range.start && range.end <= whole.end;
                let is_intact = if entry.is_part() {
                    range == whole
                } else {
                    listed.size == range.end - range.start
                };
                !range.is_empty() && is_inside && is_intact
            });
            std::future::ready(Ok(entry))
        })
    }
}

pub(super) fn insert(stored: &mut RangeSet, info: &Info, slot: usize, entry: &Entry) {
    let range = entry.range(info.slots(), slot);
    stored.insert(range.start, range.end - range.start);
}
