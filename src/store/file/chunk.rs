//! One chunk on its way to its place in the file.

use std::{io, ops::Range, sync::Arc};

use bytes::Bytes;
use tokio::{sync::OwnedMutexGuard, time::Instant};

use super::{
    Durability, FileStore,
    blocks::{Block, Blocks},
    entry::{Entry, Flight, Landing, TakeOff},
    folder::Folder,
};
use crate::store::{ChunkBody, Progress, StoreError, Upload, UploadKey};

/// Bytes that are gathered, if there is memory for them, before they are written. Each trip to a
/// thread that may block costs as much as writing tens of kilobytes; most chunks make one.
const BATCH: u64 = 1 << 20;

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
        let mut gathered = Gathered::new(offset, self.folder.blocks.clone());
        while gathered.has_room() {
            gathered.take(body.next().await.transpose()?);
        }
        let end = match gathered.ended {
            true => gathered.end,
            false => offset.saturating_add(body.max_len()),
        };
        let (writer, gathered, progress) = self.take_off(upload, offset..end, gathered).await?;
        if let Some(progress) = progress {
            return Ok(progress);
        }
        let rubbish = Rubbish {
            store: self,
            entry: Arc::clone(&writer.entry),
            done: false,
        };
        let result = self.receive_more(writer, gathered, body).await;
        match result {
            Ok(_) => rubbish.keep(),
            Err(_) => rubbish.remove().await,
        }
        result
    }

    /// Finds the upload, or creates it, takes the right to write a range of it, and writes what has
    /// come.
    async fn take_off(
        &self,
        upload: &Upload,
        range: Range<u64>,
        mut gathered: Gathered,
    ) -> Result<(Writer, Gathered, Option<Progress>), StoreError> {
        let stall = self.folder.stall;
        let deadline = Instant::now() + stall * 2;
        loop {
            let writing = self.turn_to_write(&upload.key).await;
            let (upload, range) = (upload.clone(), range.clone());
            let start = self.blocking(move |folder| {
                let entry = folder.entry_for(&upload)?;
                Writer::start(folder, &entry, range, gathered, writing).inspect_err(|_| {
                    // It may have been created in vain.
                    let _ = folder.try_discard(&entry, Entry::is_empty);
                })
            });
            gathered = match start.await? {
                Start::Started(writer, gathered, progress) => {
                    return Ok((*writer, gathered, progress));
                }
                // What was removed meanwhile begins anew.
                Start::Removed(gathered) => gathered,
                Start::Behind(entry, holder, gathered) => {
                    entry.wait_behind(holder, stall, deadline).await?;
                    gathered
                }
            }
        }
    }

    /// The rest of a chunk that is too long to be written at once.
    async fn receive_more(
        &self,
        mut writer: Writer,
        mut gathered: Gathered,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        loop {
            while gathered.has_room() {
                let next = unless(writer.landing.superseded(), body.next());
                gathered.take(next.await?.transpose()?);
                writer.landing.piece_came();
            }
            let progress;
            let writing = self.turn_to_write(&writer.entry.created.key).await;
            let write = self.blocking(move |folder| {
                let progress = writer.write(folder, &mut gathered, writing)?;
                Ok((writer, gathered, progress))
            });
            (writer, gathered, progress) = write.await?;
            if let Some(progress) = progress {
                return Ok(progress);
            }
        }
    }

    /// Parallel writes to one file only wait for each other inside the kernel.
    async fn turn_to_write(&self, key: &UploadKey) -> Option<OwnedMutexGuard<()>> {
        let writing = Arc::clone(&self.folder.known(key)?.writing);
        Some(writing.lock_owned().await)
    }
}

/// Bytes of a chunk that are to be written.
struct Gathered {
    /// Where they begin in the file.
    at: u64,
    end: u64,
    /// All but the last end at a multiple of the size that blocks have.
    filled: Vec<Block>,
    /// What has come, and found no room.
    rest: Bytes,
    /// Nothing follows.
    ended: bool,
    blocks: Blocks,
}

impl Gathered {
    fn new(at: u64, blocks: Blocks) -> Self {
        Self {
            at,
            end: at,
            filled: vec![blocks.first()],
            rest: Bytes::new(),
            ended: false,
            blocks,
        }
    }

    /// Whether it is not time to write yet.
    fn has_room(&self) -> bool {
        !self.ended && self.rest.is_empty()
    }

    /// Takes what has come, or the end.
    fn take(&mut self, piece: Option<Bytes>) {
        match piece {
            Some(piece) => self.rest = piece,
            None => self.ended = true,
        }
        self.take_rest();
    }

    fn take_rest(&mut self) {
        while let (false, Some(block)) = (self.rest.is_empty(), self.filled.last_mut()) {
            let room = self.blocks.room(self.end);
            if room.is_whole && !block.bytes.is_empty() {
                let is_enough = self.end - self.at >= BATCH;
                match (!is_enough).then(|| self.blocks.extra()).flatten() {
                    Some(block) => self.filled.push(block),
                    None => return,
                }
                continue;
            }
            let now = self.rest.split_to(room.len.min(self.rest.len()));
            block.bytes.extend_from_slice(&now);
            self.end += now.len() as u64;
        }
    }

    /// Makes room: all of it is written.
    fn written(&mut self) {
        self.filled.truncate(1);
        self.filled.iter_mut().for_each(|block| block.bytes.clear());
        self.at = self.end;
        self.take_rest();
    }
}

/// Puts the bytes of one chunk where they belong, as far as they are not there yet. All that it
/// does blocks.
struct Writer {
    entry: Arc<Entry>,
    /// Held as long as anything may be written, also if the request is gone.
    landing: Landing,
    gaps: Vec<Range<u64>>,
    /// What is written, and its CRC-32.
    written: Vec<(Range<u64>, u32)>,
    /// How many syncs had failed before.
    failed_syncs: u64,
}

enum Start {
    Started(Box<Writer>, Gathered, Option<Progress>),
    /// Somebody else writes there; `None` is another process.
    Behind(Arc<Entry>, Option<Arc<Flight>>, Gathered),
    Removed(Gathered),
}

impl Writer {
    fn start(
        folder: &Folder,
        entry: &Arc<Entry>,
        range: Range<u64>,
        mut gathered: Gathered,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Start, StoreError> {
        let landing = match entry.try_take_off(range.clone())? {
            TakeOff::Clear(landing) => landing,
            TakeOff::Behind(holder) => {
                return Ok(Start::Behind(Arc::clone(entry), holder, gathered));
            }
        };
        // What another process has stored before it landed is not written again.
        entry.view()?;
        if entry.is_removed() {
            return Ok(Start::Removed(gathered));
        }
        let (gaps, ranges) = entry.gaps(&range);
        if !gaps.is_empty() && ranges > folder.max_ranges {
            return Err(StoreError::TooManyRanges);
        }
        let mut writer = Self {
            entry: Arc::clone(entry),
            landing,
            gaps,
            written: Vec::new(),
            failed_syncs: entry.failed_syncs(),
        };
        let progress = writer.write(folder, &mut gathered, turn)?;
        Ok(Start::Started(Box::new(writer), gathered, progress))
    }

    /// Writes what was gathered; what the chunk has brought, if that was all of it.
    fn write(
        &mut self,
        folder: &Folder,
        gathered: &mut Gathered,
        turn: Option<OwnedMutexGuard<()>>,
    ) -> Result<Option<Progress>, StoreError> {
        let mut at = gathered.at;
        for block in &gathered.filled {
            self.write_block(folder, &block.bytes, at)?;
            at += block.bytes.len() as u64;
        }
        drop(turn);
        if !gathered.ended {
            gathered.written();
            return Ok(None);
        }
        self.record(folder)?;
        // While the upload cannot be removed: all bytes of a removed one seem to be there.
        Ok(Some(self.entry.progress()))
    }

    fn write_block(&mut self, folder: &Folder, block: &[u8], at: u64) -> io::Result<()> {
        let end = at + block.len() as u64;
        for gap in &self.gaps {
            let piece = at.max(gap.start)..end.min(gap.end);
            if piece.is_empty() {
                continue;
            }
            let bytes = &block[(piece.start - at) as usize..(piece.end - at) as usize];
            let data = self.entry.data.as_ref().ok_or(io::ErrorKind::NotFound)?;
            folder
                .disk
                .write_all_at("write-data", data, bytes, piece.start)?;
            self.written.push((piece, crc32fast::hash(bytes)));
        }
        Ok(())
    }

    /// Makes what was written durable and says so in the journal.
    fn record(&self, folder: &Folder) -> Result<(), StoreError> {
        if self.written.is_empty() {
            return Ok(());
        }
        if let (Durability::Power, Some(data)) = (folder.durability, &self.entry.data) {
            self.entry.sync_data(data, self.failed_syncs)?;
        }
        let joined = joined(&self.written);
        let events: Vec<_> = joined
            .iter()
            .map(|(piece, crc)| self.entry.stored(piece, *crc))
            .collect();
        self.entry.append(&events, false)
    }
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

/// An upload that a chunk may have created in vain.
struct Rubbish<'a> {
    store: &'a FileStore,
    entry: Arc<Entry>,
    done: bool,
}

impl Rubbish<'_> {
    fn keep(mut self) {
        self.done = true;
    }

    async fn remove(mut self) {
        self.done = true;
        let entry = Arc::clone(&self.entry);
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
            let (folder, entry) = (Arc::clone(&self.store.folder), Arc::clone(&self.entry));
            runtime.spawn_blocking(move || folder.try_discard(&entry, Entry::is_empty));
        }
    }
}
