//! One chunk on its way to its place in the file.

use std::{io, ops::Range, sync::Arc, time::Duration};

use bytes::{Buf as _, Bytes};
use tokio::time::{Instant, timeout_at};

use super::{
    Durability, FileStore,
    blocks::Gathered,
    disk,
    entry::{Entry, Flight, Landing, TakeOff},
    folder::Folder,
};
use crate::store::{ChunkBody, Progress, StoreError, Upload};

/// A chunk is fast, and may be given more memory, if its first bytes come within this time.
const FAST: Duration = Duration::from_millis(5);

/// How long a chunk may hold more memory before it has to write.
const HOLD: Duration = Duration::from_millis(10);

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
        let mut arrived = Arrived {
            gathered: self.folder.blocks.gather(offset),
            announced: body.exact_len().map(|len| offset.saturating_add(len)),
            rest: Bytes::new(),
            ended: false,
            since: None,
        };
        arrived.gather(body, None).await?;
        let end = match arrived.ended {
            true => arrived.gathered.end(),
            false => offset.saturating_add(body.max_len()),
        };
        let range = offset..end;
        let known = match arrived.ended {
            false => self.folder.try_take_off_known(&upload.key, &range)?,
            true => None,
        };
        let (writer, arrived) = match known {
            Some(landing) => (Writer::new(landing, range), arrived),
            None => match self.take_off(upload, range, arrived).await? {
                (_, _, Some(progress)) => return Ok(progress),
                (writer, arrived, None) => (writer, arrived),
            },
        };
        let rubbish = Rubbish {
            store: self,
            entry: Arc::clone(writer.landing.entry()),
            done: false,
        };
        let result = self.receive_more(writer, arrived, body).await;
        match result {
            Ok(_) => rubbish.keep(),
            Err(_) => rubbish.remove().await,
        }
        result
    }

    /// Finds the upload, or creates it, takes the right to write a range of it, and writes what has
    /// come if that is all.
    async fn take_off(
        &self,
        upload: &Upload,
        range: Range<u64>,
        mut arrived: Arrived,
    ) -> Result<(Writer, Arrived, Option<Progress>), StoreError> {
        let stall = self.folder.stall;
        let deadline = Instant::now() + stall * 2;
        loop {
            let (upload, range) = (upload.clone(), range.clone());
            let start = self.blocking(move |folder| {
                let entry = folder.entry_for(&upload)?;
                Writer::start(folder, &entry, range, arrived).inspect_err(|_| {
                    // It may have been created in vain.
                    let _ = folder.try_discard(&entry, Entry::is_empty);
                })
            });
            arrived = match start.await? {
                Start::Started(writer, arrived, progress) => {
                    return Ok((*writer, arrived, progress));
                }
                // What was removed meanwhile begins anew.
                Start::Removed(arrived) => arrived,
                Start::Behind(entry, holder, arrived) => {
                    entry.wait_behind(holder, stall, deadline).await?;
                    arrived
                }
            }
        }
    }

    /// The rest of a chunk that has not come as a whole yet.
    async fn receive_more(
        &self,
        mut writer: Writer,
        mut arrived: Arrived,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        loop {
            arrived.gather(body, Some(&writer.landing)).await?;
            let progress;
            let write = self.blocking(move |folder| {
                let progress = writer.write(folder, &mut arrived)?;
                Ok((writer, arrived, progress))
            });
            (writer, arrived, progress) = write.await?;
            if let Some(progress) = progress {
                return Ok(progress);
            }
        }
    }
}

/// What has come of a chunk and is not written yet.
struct Arrived {
    gathered: Gathered,
    /// Where in the file the chunk will end, if its length is known.
    announced: Option<u64>,
    /// What has found no room.
    rest: Bytes,
    /// Nothing follows.
    ended: bool,
    /// When the first byte came that is not written yet.
    since: Option<Instant>,
}

impl Arrived {
    /// Takes in what comes until it is time to write, unless another request takes over.
    ///
    /// Each trip to a thread that may block costs as much as writing tens of kilobytes, so one that
    /// writes much is better. But memory is bounded: who is slow must not keep it, nor who waits for
    /// others before it can write, and so has no right to yet.
    async fn gather(
        &mut self,
        body: &mut ChunkBody<'_>,
        landing: Option<&Landing>,
    ) -> Result<(), StoreError> {
        let mut deadline = None;
        loop {
            let taken = self.gathered.take(&self.rest);
            self.rest.advance(taken);
            if self.since.is_none() && !self.gathered.is_empty() {
                self.since = Some(Instant::now());
            }
            if self.ended {
                return Ok(());
            }
            if !self.rest.is_empty() {
                let is_slow = self.since.is_some_and(|since| since.elapsed() > FAST);
                if landing.is_none() || is_slow || deadline.is_some() {
                    return Ok(());
                }
                self.gathered.enlarge().await;
                deadline = Some(Instant::now() + HOLD);
                continue;
            }
            let next = async {
                let Some(landing) = landing else {
                    return Ok(body.next().await);
                };
                let next = unless(landing.superseded(), body.next()).await;
                landing.piece_came();
                next
            };
            let next = match deadline {
                None => next.await,
                Some(deadline) => match timeout_at(deadline, next).await {
                    Ok(next) => next,
                    Err(_) => return Ok(()),
                },
            };
            match next?.transpose()? {
                Some(piece) => self.rest = piece,
                None => self.ended = true,
            }
        }
    }
}

/// Puts the bytes of one chunk where they belong, as far as they are not there yet. All that it
/// does blocks.
struct Writer {
    /// Held as long as anything may be written, also if the request is gone.
    landing: Landing,
    range: Range<u64>,
    /// What of it is not there yet, once that is known.
    gaps: Option<Vec<Range<u64>>>,
    /// What is written, and its CRC-32.
    written: Vec<(Range<u64>, u32)>,
    /// How many syncs had failed before.
    failed_syncs: u64,
}

enum Start {
    Started(Box<Writer>, Arrived, Option<Progress>),
    /// Somebody else writes there; `None` is another process.
    Behind(Arc<Entry>, Option<Arc<Flight>>, Arrived),
    Removed(Arrived),
}

impl Writer {
    fn start(
        folder: &Folder,
        entry: &Arc<Entry>,
        range: Range<u64>,
        mut arrived: Arrived,
    ) -> Result<Start, StoreError> {
        let landing = match entry.try_take_off(range.clone())? {
            TakeOff::Clear(landing) => landing,
            TakeOff::Behind(holder) => {
                return Ok(Start::Behind(Arc::clone(entry), holder, arrived));
            }
        };
        let mut writer = Self::new(landing, range);
        match writer.look(folder, &arrived) {
            Err(_) if entry.is_removed() => return Ok(Start::Removed(arrived)),
            looked => looked?,
        }
        let progress = match arrived.ended {
            true => writer.write(folder, &mut arrived)?,
            false => None,
        };
        Ok(Start::Started(Box::new(writer), arrived, progress))
    }

    fn new(landing: Landing, range: Range<u64>) -> Self {
        Self {
            failed_syncs: landing.entry().failed_syncs(),
            landing,
            range,
            gaps: None,
            written: Vec::new(),
        }
    }

    /// Finds out what is there already. What another process has stored before the landing was
    /// cleared is not written again.
    fn look(&mut self, folder: &Folder, arrived: &Arrived) -> Result<(), StoreError> {
        let entry = self.landing.entry();
        entry.touch();
        entry.view()?;
        if entry.is_removed() {
            return Err(StoreError::Superseded);
        }
        let (gaps, ranges) = entry.gaps(&self.range);
        if !gaps.is_empty() && ranges > folder.max_ranges {
            return Err(StoreError::TooManyRanges);
        }
        // At least what is there now.
        let end = arrived.announced.unwrap_or(arrived.gathered.end());
        let new = |gap: &Range<u64>| gap.end.min(end).saturating_sub(gap.start);
        if !gaps.is_empty() {
            let bytes = gaps.iter().map(new).sum();
            folder.room.for_bytes(&folder.partial, bytes)?;
        }
        self.gaps = Some(gaps);
        Ok(())
    }

    /// Writes what has arrived; what the chunk has brought, if that was all of it.
    fn write(
        &mut self,
        folder: &Folder,
        arrived: &mut Arrived,
    ) -> Result<Option<Progress>, StoreError> {
        if self.gaps.is_none() {
            self.look(folder, arrived)?;
        }
        for (at, piece) in arrived.gathered.pieces() {
            self.write_piece(folder, piece, at)?;
        }
        arrived.gathered.clear();
        arrived.since = None;
        if !arrived.ended {
            return Ok(None);
        }
        self.record(folder)?;
        // While the upload cannot be removed: all bytes of a removed one seem to be there.
        Ok(Some(self.landing.entry().progress()))
    }

    fn write_piece(&mut self, folder: &Folder, bytes: &[u8], at: u64) -> io::Result<()> {
        let end = at + bytes.len() as u64;
        for gap in self.gaps.iter().flatten() {
            let piece = at.max(gap.start)..end.min(gap.end);
            if piece.is_empty() {
                continue;
            }
            let bytes = &bytes[(piece.start - at) as usize..(piece.end - at) as usize];
            let data = self.landing.entry().data.as_ref();
            let data = data.ok_or(io::ErrorKind::NotFound)?;
            folder
                .disk
                .write_all_at("write-data", data, bytes, piece.start)?;
            self.written.push((piece, crc32fast::hash(bytes)));
        }
        Ok(())
    }

    /// Makes what was written durable and says so in the journal.
    fn record(&self, folder: &Folder) -> Result<(), StoreError> {
        let entry = self.landing.entry();
        if self.written.is_empty() {
            // Others' bytes were durable before they were known here.
            return Ok(entry.commit_empty()?);
        }
        let joined = joined(&self.written);
        let events = joined.iter().map(|(piece, crc)| entry.stored(piece, *crc));
        entry.commit(events.collect(), self.failed_syncs)?;
        if let (Durability::Process, Some(data)) = (folder.durability, &entry.data) {
            // Else all of it would be left to do when the file is finished.
            joined
                .iter()
                .for_each(|(piece, _)| disk::begin_to_write(data, piece));
        }
        Ok(())
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
