//! One chunk on its way to its place in the file.

use std::{collections::VecDeque, io, ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    BLOCK, Durability, FileStore,
    entry::{Entry, Landing, TakeOff},
    folder::Folder,
};
use crate::store::{ChunkBody, Progress, StoreError, Upload};

/// The next of `body`, unless `stop` ends first.
async fn unless<T>(
    stop: impl Future<Output = ()>,
    next: impl Future<Output = T>,
) -> Result<T, StoreError> {
    let (mut stop, mut next) = (std::pin::pin!(stop), std::pin::pin!(next));
    std::future::poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(Err(StoreError::Superseded));
        }
        next.as_mut().poll(cx).map(Ok)
    })
    .await
}

impl FileStore {
    /// See [`Store::put`](crate::store::Store::put).
    pub(super) async fn receive(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        // Most chunks that are no good are so before there is anything on disk.
        let mut first = self.folder.spare_block();
        let mut rest = Bytes::new();
        let mut ended = false;
        while !ended && rest.is_empty() {
            match body.next().await.transpose()? {
                Some(piece) => {
                    rest = piece;
                    let room = block_end(offset) - first.len();
                    first.extend_from_slice(&rest.split_to(room.min(rest.len())));
                }
                None => ended = true,
            }
        }
        let max_len = if ended {
            first.len() as u64
        } else {
            body.max_len()
        };
        let range = offset..offset.saturating_add(max_len);
        let (entry, landing) = self.take_off(upload, range.clone()).await?;
        let rubbish = Rubbish {
            store: self,
            entry: &entry,
            done: false,
        };
        let begun = Begun { first, rest, ended };
        let result = self.fill(&entry, landing, range, begun, body).await;
        match result {
            Ok(_) => rubbish.keep(),
            Err(_) => rubbish.remove().await,
        }
        result
    }

    /// The upload, created if it is new, and the right to write a range of it.
    async fn take_off(
        &self,
        upload: &Upload,
        range: Range<u64>,
    ) -> Result<(Arc<Entry>, Landing), StoreError> {
        let stall = self.folder.stall;
        let deadline = Instant::now() + stall * 2;
        loop {
            let (upload, range) = (upload.clone(), range.clone());
            let begin = self.blocking(move |folder| {
                let entry = folder.entry_for(&upload)?;
                let take_off = entry.try_take_off(range).inspect_err(|_| {
                    // It may have been created in vain.
                    let _ = folder.try_discard(&entry, Entry::is_empty);
                })?;
                // What another process has stored before it landed is not written again.
                entry.view()?;
                Ok((entry, take_off))
            });
            match begin.await? {
                (entry, TakeOff::Clear(landing)) if !entry.is_removed() => {
                    return Ok((entry, landing));
                }
                // What was removed meanwhile begins anew.
                (_, TakeOff::Clear(_)) => {}
                (entry, TakeOff::Behind(holder)) => {
                    entry.wait_behind(holder, stall, deadline).await?;
                }
            }
        }
    }

    /// Writes what has come of a body, and what follows, into a range.
    async fn fill(
        &self,
        entry: &Arc<Entry>,
        landing: Landing,
        range: Range<u64>,
        begun: Begun,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let landing = Arc::new(landing);
        let (gaps, ranges) = entry.gaps(&range);
        if !gaps.is_empty() && ranges > self.folder.max_ranges {
            return Err(StoreError::TooManyRanges);
        }
        let mut chunk = ChunkWriter {
            store: self,
            entry,
            landing: &landing,
            at: range.start,
            gaps: gaps.into(),
            block: Vec::new(),
            block_at: 0,
            written: Vec::new(),
            failed_syncs: entry.failed_syncs(),
        };
        chunk.begin(begun.first).await?;
        chunk.push(&begun.rest).await?;
        if !begun.ended {
            while let Some(piece) = unless(landing.superseded(), body.next())
                .await?
                .transpose()?
            {
                landing.piece_came();
                chunk.push(&piece).await?;
            }
        }
        chunk.finish().await?;
        // While the upload cannot be removed: all bytes of a removed one seem to be there.
        Ok(entry.progress())
    }
}

/// What has come of a body: the first block, what came together with its end, and whether that was
/// all.
struct Begun {
    first: Vec<u8>,
    rest: Bytes,
    ended: bool,
}

/// Bytes up to where a block ends: at a multiple of its size in the file.
fn block_end(offset: u64) -> usize {
    BLOCK - (offset % BLOCK as u64) as usize
}

/// An upload that a chunk may have created in vain.
struct Rubbish<'a> {
    store: &'a FileStore,
    entry: &'a Arc<Entry>,
    done: bool,
}

impl Rubbish<'_> {
    fn keep(mut self) {
        self.done = true;
    }

    async fn remove(mut self) {
        self.done = true;
        let entry = Arc::clone(self.entry);
        // What cannot be removed now is swept later.
        let _ = self
            .store
            .blocking(move |s| s.try_discard(&entry, Entry::is_empty))
            .await;
    }
}

/// The request was dropped.
impl Drop for Rubbish<'_> {
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.done, tokio::runtime::Handle::try_current()) {
            let (folder, entry) = (Arc::clone(&self.store.folder), Arc::clone(self.entry));
            runtime.spawn_blocking(move || folder.try_discard(&entry, Entry::is_empty));
        }
    }
}

/// Puts the bytes of one chunk where they belong, as far as they are not there yet.
struct ChunkWriter<'a> {
    store: &'a FileStore,
    entry: &'a Arc<Entry>,
    landing: &'a Arc<Landing>,
    /// Where in the file the next byte belongs.
    at: u64,
    gaps: VecDeque<Range<u64>>,
    /// Bytes of the first gap, not written yet.
    block: Vec<u8>,
    block_at: u64,
    /// What is written, and its CRC-32.
    written: Vec<(Range<u64>, u32)>,
    /// How many syncs had failed before.
    failed_syncs: u64,
}

impl ChunkWriter<'_> {
    /// Takes the first block, as it is if nothing of it is there yet.
    async fn begin(&mut self, first: Vec<u8>) -> Result<(), StoreError> {
        let len = first.len() as u64;
        match self.gaps.front() {
            Some(gap) if gap.start == self.at && gap.end - gap.start >= len && len > 0 => {
                let gap_is_full = gap.end - gap.start == len;
                (self.block, self.block_at) = (first, self.at);
                self.at += len;
                if gap_is_full {
                    self.gaps.pop_front();
                }
                let block_is_full = self.at % BLOCK as u64 == 0;
                self.write_if_done(gap_is_full, block_is_full).await
            }
            _ => {
                let pushed = self.push(&first).await;
                self.store.folder.give_back(first);
                pushed
            }
        }
    }

    async fn push(&mut self, mut piece: &[u8]) -> Result<(), StoreError> {
        while let (false, Some(gap)) = (piece.is_empty(), self.gaps.front().cloned()) {
            if self.at < gap.start {
                let known = usize::try_from(gap.start - self.at).unwrap_or(usize::MAX);
                let known = known.min(piece.len());
                self.skip(&mut piece, known);
                continue;
            }
            if self.block.is_empty() {
                self.block_at = self.at;
                self.block = self.store.folder.spare_block();
            }
            let room = block_end(self.at);
            let left = usize::try_from(gap.end - self.at).unwrap_or(usize::MAX);
            let take = piece.len().min(left).min(room);
            self.block.extend_from_slice(&piece[..take]);
            self.skip(&mut piece, take);
            let gap_is_full = self.at == gap.end;
            if gap_is_full {
                self.gaps.pop_front();
            }
            self.write_if_done(gap_is_full, take == room).await?;
        }
        self.at += piece.len() as u64;
        Ok(())
    }

    /// Writes the block if it, or its gap, is full; but the last one of a chunk is written together
    /// with its syncs.
    async fn write_if_done(
        &mut self,
        gap_is_full: bool,
        block_is_full: bool,
    ) -> Result<(), StoreError> {
        match (gap_is_full || block_is_full) && !self.gaps.is_empty() {
            true => self.write().await,
            false => Ok(()),
        }
    }

    fn skip(&mut self, piece: &mut &[u8], len: usize) {
        *piece = &piece[len..];
        self.at += len as u64;
    }

    /// Writes the block.
    async fn write(&mut self) -> Result<(), StoreError> {
        let block = std::mem::take(&mut self.block);
        let (entry, landing) = (Arc::clone(self.entry), Arc::clone(self.landing));
        let at = self.block_at;
        let _writing = self.entry.writing.lock().await;
        let crc = self
            .store
            .blocking(move |folder| {
                // Even if the request is gone: nobody else may write here before this is done.
                let _landing = landing;
                let crc = write_block(folder, &entry, &block, at)?;
                folder.give_back(block);
                Ok((at..at + crc.1, crc.0))
            })
            .await?;
        self.written.push(crc);
        Ok(())
    }

    /// Writes the rest, makes it durable and says so in the journal.
    async fn finish(self) -> Result<(), StoreError> {
        if self.block.is_empty() && self.written.is_empty() {
            return Ok(());
        }
        let (entry, landing) = (Arc::clone(self.entry), Arc::clone(self.landing));
        let Self {
            block,
            block_at: at,
            mut written,
            failed_syncs,
            ..
        } = self;
        let _writing = match block.is_empty() {
            true => None,
            false => Some(self.entry.writing.lock().await),
        };
        self.store
            .blocking(move |folder| {
                let _landing = landing;
                if !block.is_empty() {
                    let (crc, len) = write_block(folder, &entry, &block, at)?;
                    written.push((at..at + len, crc));
                    folder.give_back(block);
                }
                if let (Durability::Power, Some(data)) = (folder.durability, &entry.data) {
                    entry.sync_data(data, failed_syncs)?;
                }
                let joined = joined(&written);
                let events: Vec<_> = joined
                    .iter()
                    .map(|(piece, crc)| entry.stored(piece, *crc))
                    .collect();
                entry.append(&events, false)
            })
            .await
    }
}

fn write_block(folder: &Folder, entry: &Entry, block: &[u8], at: u64) -> io::Result<(u32, u64)> {
    let data = entry.data.as_ref().ok_or(io::ErrorKind::NotFound)?;
    folder.disk.write_all_at("write-data", data, block, at)?;
    Ok((crc32fast::hash(block), block.len() as u64))
}

/// Pieces that follow each other, as one.
fn joined(pieces: &[(Range<u64>, u32)]) -> Vec<(Range<u64>, u32)> {
    let mut joined: Vec<(Range<u64>, u32)> = Vec::new();
    for (piece, crc) in pieces {
        match joined.last_mut() {
            Some((last, last_crc)) if last.end == piece.start => {
                let mut hasher = crc32fast::Hasher::new_with_initial(*last_crc);
                let len = piece.end - piece.start;
                hasher.combine(&crc32fast::Hasher::new_with_initial_len(*crc, len));
                *last_crc = hasher.finalize();
                last.end = piece.end;
            }
            _ => joined.push((piece.clone(), *crc)),
        }
    }
    joined
}
