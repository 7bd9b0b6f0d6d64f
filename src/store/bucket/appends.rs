//! Appends: bytes that are added at the end of an upload, by one request at a time.
//!
//! Servers take turns. A turn is an object with a number, and the engine lets only one request
//! create it. It says how many bytes were stored at its beginning. Bytes have the number of the
//! turn that put them in their names, and count as follows:
//!
//! * The bytes that the newest turn has found count.
//! * What an older turn puts beyond them does not count. So what a turn has found never grows by
//!   an older append that does not know of it yet.
//! * What the newest turn puts after them counts at once if it is open. If it is not, as with a
//!   checksum, nothing of it counts before another turn says so.
//! * Of several entries with the same byte, that of the newest turn has the right one: a turn puts
//!   bytes only after those that it has found.
//!
//! An append takes a turn when it begins. When it ends it takes another one, which is not open and
//! has the new number of bytes. If it cannot, because another server has taken a turn meanwhile, it
//! has been superseded. So a number of bytes is told to a client only if a turn has found it.
//!
//! The lengths that an append brings are in its turn, and so in all later ones.

use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::{
    TryStreamExt as _,
    future::{Either, select},
};
use tokio::time::sleep;

use super::{
    blocks::{Blocks, Holder, Source},
    info::{Info, Turn, Version},
    inner::Inner,
    keys::parse_turn,
    known::Appends,
    lookup::{Extent, insert},
};
use crate::{
    model::upload::{Upload, UploadId},
    store::{Append, ChunkBody, Keep, Progress, RangeSet, Status, StoreError, random_id},
};

/// How often to take a turn while other servers do.
const TRIES: usize = 8;

/// How long after its beginning an append looks whether another server has taken a turn. Each next
/// pause is twice as long, up to the longest one.
const FIRST_LOOK: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// What a new turn says.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Says {
    pub(super) stored: u64,
    pub(super) slot: u64,
    pub(super) length: Option<u64>,
    pub(super) declared: Option<u64>,
    pub(super) is_open: bool,
}

impl Says {
    /// What is known of an upload with this many bytes, when no append is running.
    pub(super) fn of(info: &Info, stored: u64) -> Self {
        Self {
            stored,
            slot: info.slot,
            length: info.upload.length,
            declared: info.upload.declared(),
            is_open: false,
        }
    }
}

impl Inner {
    pub(super) async fn interrupt(
        self: &Arc<Self>,
        id: &UploadId,
    ) -> Result<Option<Status>, StoreError> {
        let appends = self.appends.of(*id);
        appends.begin();
        let _running = appends.run().await?;
        for _ in 0..TRIES {
            let Some((info, stored)) = self.find(id, Extent::OfAppends).await? else {
                return Ok(None);
            };
            let is_over = info.progress(&stored).complete || info.has_chunks(&stored);
            // Also if no append is running: another server may be about to begin one.
            let says = Says::of(&info, stored.total());
            if is_over || self.take_turn(&info, says).await?.is_some() {
                return Ok(info.status(stored));
            }
        }
        Err(StoreError::Busy)
    }

    pub(super) async fn append(
        self: &Arc<Self>,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let appends = self.appends.of(upload.id);
        let request = appends.begin();
        let _running = appends.run().await?;
        if appends.is_superseded(request) {
            return Err(StoreError::Superseded);
        }
        // While it is open, no sweep of this process removes the upload.
        let gate = self.gates.of(upload.id);
        let _open = gate.read().await;
        let found = self.find(&upload.id, Extent::OfAppends).await?;
        let found = found.filter(|(info, _)| !info.has_expired);
        let (info, stored) = found.ok_or(StoreError::Superseded)?;
        if info.has_chunks(&stored) {
            return Err(StoreError::Unsupported);
        }
        let progress = info.progress(&stored);
        let stored = progress.received;
        if append.offset != stored {
            // An append on another server must not add to what is told.
            let says = Says::of(&info, stored);
            if !progress.complete && self.take_turn(&info, says).await?.is_none() {
                return Err(StoreError::Superseded);
            }
            return Err(StoreError::Offset { stored });
        }
        if info.upload.contradicts(upload) {
            return Err(StoreError::Conflict);
        }
        let length = info.upload.length.or(upload.length);
        let end = stored.saturating_add(body.exact_len().unwrap_or_default());
        if length.is_some_and(|length| length < end) {
            return Err(StoreError::OutOfBounds);
        }
        if progress.complete {
            while let Some(piece) = body.next().await {
                if !piece?.is_empty() {
                    return Err(StoreError::OutOfBounds);
                }
            }
            return Ok(progress);
        }
        let slot = if stored > 0 {
            info.slot
        } else {
            let first = body.exact_len().filter(|_| !append.ends_here);
            self.append_slot_size(length, first)?
        };
        let limit = self.limits.longest_of(slot);
        if length.unwrap_or(end) > limit {
            return Err(StoreError::TooLarge { limit });
        }
        let says = Says {
            stored,
            slot,
            length,
            declared: info.upload.declared().or(upload.declared()),
            is_open: append.keep == Keep::Prefix,
        };
        let turn = self.take_turn(&info, says).await?;
        let info = turn.ok_or(StoreError::Superseded)?;
        let (mut source, holder) = self.memory.stream(body);
        let has_ended = AtomicBool::new(false);
        let ending = self.end_when_superseded(&info, &appends, request, &holder, &has_ended);
        let adding = self.add(&info, stored, &mut source, &has_ended);
        let (end, result) = match select(pin!(adding), pin!(ending)).await {
            Either::Left((added, _)) => added,
            Either::Right((never, _)) => match never {},
        };
        let ends_here = append.ends_here && result.is_ok();
        let says = Says {
            length: length.or(ends_here.then_some(end)),
            ..Says::of(&info, end)
        };
        self.end_turn(info, says, result, append.keep).await
    }

    /// Takes the turn that says what an append has stored. Returns its progress.
    pub(super) async fn end_turn(
        &self,
        info: Arc<Info>,
        says: Says,
        result: Result<(), StoreError>,
        keep: Keep,
    ) -> Result<Progress, StoreError> {
        let is_new = says != Says::of(&info, info.turn.as_ref().map_or(0, |turn| turn.stored));
        let info = match result {
            Ok(()) if is_new => {
                let turn = self.take_turn(&info, says).await?;
                turn.ok_or(StoreError::Superseded)?
            }
            Ok(()) => info,
            Err(error) => {
                if is_new && keep == Keep::Prefix {
                    // If it fails, the bytes count as far as the next turn finds them.
                    let _ = self.take_turn(&info, says).await;
                }
                return Err(error);
            }
        };
        // It may have been removed meanwhile.
        self.reload(&info).await?.ok_or(StoreError::Superseded)?;
        let mut stored = RangeSet::default();
        stored.insert(0, says.stored);
        Ok(info.progress(&stored))
    }

    /// Stores the bytes of an append from `at` on as they arrive. Returns where they end, and how
    /// the body has ended.
    pub(super) async fn add(
        self: &Arc<Self>,
        info: &Arc<Info>,
        mut at: u64,
        source: &mut Source<'_, '_>,
        has_ended: &AtomicBool,
    ) -> (u64, Result<(), StoreError>) {
        let limit = self.limits.longest_of(info.slot);
        let most = info.length().min(limit);
        loop {
            // At the end, one byte is too many.
            let left = most.saturating_sub(at);
            let room = (info.slot - at % info.slot).min(left).max(1);
            let (bytes, end) = source.take(room).await;
            if bytes.len() > left {
                let is_too_large = info.upload.length.is_none();
                let too_large = is_too_large.then_some(StoreError::TooLarge { limit });
                return (at, Err(too_large.unwrap_or(StoreError::OutOfBounds)));
            }
            if let Err(error) = self.add_bytes(info, &mut at, bytes).await {
                return (at, Err(error));
            }
            match end {
                Some(end) => return (at, end),
                None if has_ended.load(Relaxed) => return (at, Err(StoreError::Superseded)),
                None => {}
            }
        }
    }

    /// Stores bytes of one slot: as a part if they are the whole slot, and else as a piece. A piece
    /// that makes its slot full makes it a part.
    async fn add_bytes(
        self: &Arc<Self>,
        info: &Arc<Info>,
        at: &mut u64,
        bytes: Blocks,
    ) -> Result<(), StoreError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let slot = (*at / info.slot) as usize;
        let (range, whole) = (*at..*at + bytes.len(), info.slots().range(slot));
        let has_multipart = if range == whole {
            self.put_part(info, slot, bytes).await?
        } else {
            self.put_piece(info, slot, range.start, bytes).await?;
            *at = range.end;
            if range.end < whole.end {
                return Ok(());
            }
            let entries = self.entries_in_slot(info, slot).await?.into_iter();
            let pieces = entries.filter(|entry| !entry.is_part()).collect();
            self.assemble(info, slot, pieces).await?
        };
        if !has_multipart {
            // The upload is removed, or was removed before.
            self.without_multipart(info).await?;
            return Err(StoreError::Superseded);
        }
        *at = range.end;
        Ok(())
    }

    /// Ends the append that takes bytes when a newer request begins, in this process or on another
    /// server, or when the upload is removed.
    async fn end_when_superseded(
        &self,
        info: &Info,
        appends: &Appends,
        request: u64,
        holder: &Holder,
        has_ended: &AtomicBool,
    ) -> Infallible {
        let elsewhere = async {
            let mut pause = FIRST_LOOK;
            loop {
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(2 * pause);
                // If it cannot be read, the turn at the end tells.
                if matches!(self.is_newest(info).await, Ok(false)) {
                    break;
                }
            }
        };
        select(pin!(appends.superseded(request)), pin!(elsewhere)).await;
        has_ended.store(true, Relaxed);
        holder.give_way();
        std::future::pending().await
    }

    /// Whether the turn of an append is there, and is the newest one.
    async fn is_newest(&self, info: &Info) -> Result<bool, StoreError> {
        let number = info.turn.as_ref().map_or(0, |turn| turn.number);
        let found = self.turns_after(info, number.checked_sub(1)).await?;
        Ok(found == Some(number))
    }

    /// Takes the turn after the one that was found. `None` if another server was faster.
    pub(super) async fn take_turn(
        &self,
        info: &Info,
        says: Says,
    ) -> Result<Option<Arc<Info>>, StoreError> {
        let number = info
            .turn
            .as_ref()
            .map_or(Some(0), |turn| turn.number.checked_add(1));
        let number = number.ok_or_else(|| StoreError::new("the upload has too many turns"))?;
        let Says {
            stored,
            slot,
            length,
            declared,
            is_open,
        } = says;
        let turn = Turn {
            version: Version,
            number,
            token: random_id()?,
            stored,
            slot,
            length,
            declared,
            is_open,
        };
        let path = self.keys.turn(info.id(), &info.unique_id, number);
        let bytes = turn.to_bytes()?;
        if !self.engine.create(&path, bytes.clone().into()).await? {
            // This request may have created it all the same: see `Engine::create`.
            if self.engine.get(&path).await?.as_ref() != Some(&bytes) {
                return Ok(None);
            }
        }
        self.known.set_turn(info, &turn);
        Ok(Some(Arc::new(info.in_turn(turn))))
    }

    pub(super) fn append_slot_size(
        &self,
        length: Option<u64>,
        first: Option<u64>,
    ) -> Result<u64, StoreError> {
        let limit = self.limits.max_length();
        let size = self.limits.append_slot_size(length, first);
        size.ok_or(StoreError::TooLarge { limit })
    }

    /// The bytes of an upload of appends from `to` on cannot be read any more: the client sends
    /// them again.
    pub(super) async fn roll_back(&self, info: &Info, to: u64) -> Result<(), StoreError> {
        if info.turn.is_some() {
            self.take_turn(info, Says::of(info, to)).await?;
        }
        Ok(())
    }

    /// What is stored of an upload of appends, and the upload as it is in its newest turn. `None`
    /// if no request has taken a turn.
    pub(super) async fn appended(
        &self,
        info: &Arc<Info>,
    ) -> Result<Option<(Arc<Info>, RangeSet)>, StoreError> {
        let Some(turn) = self.newest_turn(info).await? else {
            return Ok(None);
        };
        let (number, begin, is_open) = (turn.number, turn.stored, turn.is_open);
        let info = Arc::new(info.in_turn(turn));
        let mut found = RangeSet::default();
        found.insert(0, begin);
        if is_open {
            let path = self.keys.slots(info.id(), &info.unique_id);
            let slot = (begin / info.slot) as usize;
            let after = (slot > 0).then(|| self.keys.slot(info.id(), &info.unique_id, slot));
            let mut entries = pin!(self.entries(&info, &path, after.as_ref()));
            while let Some((slot, entry)) = entries.try_next().await? {
                if entry.turn() == Some(number) {
                    insert(&mut found, &info, slot, &entry);
                }
            }
        }
        let mut stored = RangeSet::default();
        stored.insert(0, found.prefix());
        Ok(Some((info, stored)))
    }

    async fn newest_turn(&self, info: &Info) -> Result<Option<Turn>, StoreError> {
        let known = self.known.turn(info);
        let after = known.as_ref().map(|known| known.number);
        let Some(number) = self.turns_after(info, after).await? else {
            return Ok(known);
        };
        let path = self.keys.turn(info.id(), &info.unique_id, number);
        // If it is gone, the upload was removed or settled.
        let Some(bytes) = self.engine.get(&path).await? else {
            return Ok(None);
        };
        match Turn::from_bytes(&bytes, number) {
            Ok(turn) => {
                self.known.set_turn(info, &turn);
                Ok(Some(turn))
            }
            Err(error) => self.set_turn_aside(info, bytes, error).await.map(|()| None),
        }
    }

    /// The highest number of a turn that is greater than `after`.
    async fn turns_after(
        &self,
        info: &Info,
        after: Option<u32>,
    ) -> Result<Option<u32>, StoreError> {
        let (id, unique_id) = (info.id(), &info.unique_id);
        let after = match after {
            Some(number) => self.keys.turn(id, unique_id, number),
            None => self.keys.before_turns(id, unique_id),
        };
        let listed = self
            .engine
            .list(&self.keys.slots(id, unique_id), Some(&after));
        let numbers = listed.map_ok(|listed| parse_turn(&listed.path));
        numbers.try_fold(None, async |a, b| Ok(a.max(b))).await
    }
}

impl Info {
    /// Whether bytes came by chunks and not by appends.
    fn has_chunks(&self, stored: &RangeSet) -> bool {
        self.is_receiving() && self.turn.is_none() && !stored.is_empty()
    }
}
