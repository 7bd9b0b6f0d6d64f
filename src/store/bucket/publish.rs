//! Makes the final object of a complete upload.

use std::{cmp::Reverse, collections::BTreeMap, ops::Range};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::Error;

use super::{
    blocks::Blocks,
    engine::{has_code, is_absent, store_error},
    info::Info,
    inner::Inner,
    keys::Entry,
};
use crate::{
    model::ranges::{Crc, Joined as _},
    store::{RangeSet, StoreError},
};

/// How many slots are assembled at once. Each is held in memory.
const SLOTS_AT_ONCE: usize = 2;

/// How many pieces of a slot are read at once.
const PIECES_AT_ONCE: usize = 4;

/// How many sets of parts are tried if some slots have several parts.
const COMBINATIONS: usize = 16;

/// What is stored of a slot.
#[derive(Debug)]
struct Contents {
    /// One of them is to be chosen.
    parts: Vec<Entry>,
    pieces: Vec<Entry>,
}

impl Contents {
    /// Of several entries with the same byte, that of the newest turn counts: see
    /// [`appends`](super::appends). So a part does not count if a newer turn has put some of its
    /// bytes. Others like it may be what the engine has of the part.
    fn new(entries: Vec<Entry>) -> Self {
        let newest = entries.iter().map(Entry::turn).max().flatten();
        let (mut parts, pieces): (Vec<_>, _) = entries.into_iter().partition(Entry::is_part);
        parts.sort_by_key(|part| Reverse(part.turn()));
        if newest.is_some() {
            let counts = parts.first().filter(|part| part.turn() == newest);
            let counts = counts.map(|part| part.crc());
            parts.retain(|part| Some(part.crc()) == counts);
        }
        Self { parts, pieces }
    }
}

impl Inner {
    /// Makes the final object, unless an earlier attempt has, and returns its CRC-32. `None` if the
    /// multipart upload does not exist, or has become an object of another size.
    pub(super) async fn publish(&self, info: &Info) -> Result<Option<u32>, StoreError> {
        let file = self.keys.file(&info.unique_id);
        let multipart = match &info.multipart {
            Some(multipart) if info.length() > 0 => multipart,
            unused => {
                self.engine.put(&file, Bytes::new()).await?;
                if let Some(unused) = unused {
                    self.engine.abort_multipart(&file, unused).await;
                }
                return Ok(Some(Crc::EMPTY.0));
            }
        };
        let mut contents = self.contents(info).await?;
        let missing: Vec<_> = (0..info.slots().count())
            .filter(|slot| contents.get(slot).is_none_or(|slot| slot.parts.is_empty()))
            .collect();
        if !missing.is_empty() {
            let assembled: Vec<bool> = stream::iter(missing)
                .map(|slot| {
                    let pieces = contents.get(&slot).map(|slot| slot.pieces.clone());
                    self.assemble(info, slot, pieces.unwrap_or_default())
                })
                .buffer_unordered(SLOTS_AT_ONCE)
                .try_collect()
                .await?;
            if assembled.contains(&false) {
                return Ok(None);
            }
            contents = self.contents(info).await?;
        }
        let parts: Vec<_> = contents.into_values().map(|slot| slot.parts).collect();
        let mut failed = None;
        for chosen in combinations(&parts) {
            let ids = chosen.iter().filter_map(|part| part.content_id());
            let completed = self
                .engine
                .complete_multipart(&file, multipart, ids.collect());
            let Err(error) = completed.await else {
                return Ok(Some(combined_crc(info, &chosen)));
            };
            // An earlier attempt may have made the object, or this one has and the answer was lost.
            if let Some(object) = self.engine.head(&file).await? {
                if object.size == info.length() {
                    return Ok(Some(combined_crc(info, &chosen)));
                }
                // It was not delivered, so it is deleted with the upload.
                return Ok(None);
            }
            if is_absent(&error) {
                return Ok(None);
            }
            let is_wrong_part = is_wrong_part(&error);
            failed = Some(error);
            if !is_wrong_part {
                break;
            }
        }
        match failed {
            Some(error) => Err(self.not_completed(info, parts, error).await?),
            None => Err(StoreError::new("the upload has no parts")),
        }
    }

    /// What is stored of each slot.
    async fn contents(&self, info: &Info) -> Result<BTreeMap<usize, Contents>, StoreError> {
        let path = self.keys.slots(info.id(), &info.unique_id);
        let mut entries = std::pin::pin!(self.entries(info, &path, None));
        let mut found = BTreeMap::<usize, Vec<_>>::new();
        while let Some((slot, entry)) = entries.try_next().await? {
            found.entry(slot).or_default().push(entry);
        }
        let found = found.into_iter();
        let contents = found.map(|(slot, entries)| (slot, Contents::new(entries)));
        Ok(contents.collect())
    }

    /// Makes one slot a part. `false` if the multipart upload does not exist.
    ///
    /// The caller must not have any memory: see [`Memory::read`](super::blocks::Memory::read).
    pub(super) async fn assemble(
        &self,
        info: &Info,
        slot: usize,
        pieces: Vec<Entry>,
    ) -> Result<bool, StoreError> {
        let whole = info.slots().range(slot);
        let _memory = self.memory.reserve(whole.end - whole.start).await?;
        // Pieces of two servers can overlap. Each byte is taken from the newest turn, and then from
        // the first piece that has it.
        let mut pieces: Vec<_> = pieces
            .into_iter()
            .map(|piece| (piece.range(info.slots(), slot), piece))
            .collect();
        pieces.sort_unstable_by_key(|(range, piece)| {
            (Reverse(piece.turn()), range.start, range.end, piece.crc())
        });
        let mut taken = RangeSet::default();
        let mut wanted = Vec::new();
        for (range, piece) in pieces {
            for gap in taken.gaps(range.start, range.end - range.start) {
                taken.insert(gap.start, gap.end - gap.start);
                wanted.push((piece.clone(), range.clone(), gap));
            }
        }
        if !taken.covers(whole.start, whole.end - whole.start) {
            // What is remembered of the upload is wrong.
            self.known.forget(info);
            let missing = taken.gaps(whole.start, whole.end - whole.start);
            self.roll_back(info, missing[0].start).await?;
            return Err(StoreError::new("stored bytes are missing"));
        }
        wanted.sort_unstable_by_key(|(_, _, gap)| gap.start);
        let read = stream::iter(wanted).map(async |(piece, range, gap)| {
            let bytes = self.read_piece(info, slot, &piece, &range).await?;
            let gap = (gap.start - range.start) as usize..(gap.end - range.start) as usize;
            Ok::<_, StoreError>(bytes.slice(gap))
        });
        let mut read = std::pin::pin!(read.buffered(PIECES_AT_ONCE));
        let mut bytes = Blocks::default();
        while let Some(piece) = read.try_next().await? {
            bytes.push(piece);
        }
        self.put_part(info, slot, bytes).await
    }

    /// Reads a piece. If it is damaged it is set aside: the client has to send it again.
    pub(super) async fn read_piece(
        &self,
        info: &Info,
        slot: usize,
        piece: &Entry,
        range: &Range<u64>,
    ) -> Result<Bytes, StoreError> {
        let path = self.keys.entry(info.id(), &info.unique_id, slot, piece);
        let is_intact = |bytes: &Bytes| {
            let crc = piece.crc().unwrap_or_else(|| crc32fast::hash(bytes));
            bytes.len() as u64 == range.end - range.start && crc32fast::hash(bytes) == crc
        };
        let found = self.engine.get(&path).await?;
        if let Some(bytes) = found.as_ref().filter(|bytes| is_intact(bytes)) {
            return Ok(bytes.clone());
        }
        self.known.forget(info);
        let error = StoreError::new("a stored piece is damaged or gone");
        if let Some(bytes) = found {
            self.set_aside(*info.id(), &path, bytes, &error, || true)
                .await?;
        }
        self.roll_back(info, range.start).await?;
        Err(error)
    }

    /// The error of an upload that could not be completed.
    ///
    /// If the engine knows none of the sets of parts, the marks in doubt are deleted: two servers
    /// have stored the same part with different ids, and which one counts is unknown. The client
    /// has to send these bytes again.
    async fn not_completed(
        &self,
        info: &Info,
        parts: Vec<Vec<Entry>>,
        error: Error,
    ) -> Result<StoreError, StoreError> {
        if info.turn.is_some() && is_wrong_part(&error) {
            self.roll_back(info, 0).await?;
        } else if is_wrong_part(&error) {
            let is_ambiguous = parts.iter().any(|parts| parts.len() > 1);
            for (slot, parts) in parts.into_iter().enumerate() {
                if is_ambiguous && parts.len() < 2 {
                    continue;
                }
                for mark in parts {
                    let path = self.keys.entry(info.id(), &info.unique_id, slot, &mark);
                    self.engine.delete(&path).await?;
                }
            }
            self.known.forget(info);
        }
        Ok(store_error(error))
    }
}

/// Whether the engine does not have one of the parts, or one is too small. The names differ.
fn is_wrong_part(error: &Error) -> bool {
    ["InvalidPart", "InvalidBlockList", "EntityTooSmall"]
        .iter()
        .any(|code| has_code(error, code))
}

/// Ways to choose one part of each slot, not more than [`COMBINATIONS`].
fn combinations(slots: &[Vec<Entry>]) -> impl Iterator<Item = Vec<Entry>> {
    (0..COMBINATIONS).map_while(move |number| {
        let mut rest = number;
        let chosen = slots.iter().map(|parts| {
            let count = parts.len().max(1);
            let chosen = parts.get(rest % count).cloned();
            rest /= count;
            chosen
        });
        let chosen = chosen.collect::<Option<Vec<_>>>()?;
        (rest == 0 && !chosen.is_empty()).then_some(chosen)
    })
}

/// The CRC-32 of the file that is made of these parts.
fn combined_crc(info: &Info, parts: &[Entry]) -> u32 {
    let crcs = parts.iter().filter_map(Entry::crc).enumerate();
    let whole = crcs.fold(Crc::EMPTY, |whole, (slot, crc)| {
        let range = info.slots().range(slot);
        whole.join(&Crc(crc), range.end - range.start)
    });
    whole.0
}
