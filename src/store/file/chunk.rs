//! Receives one chunk and writes it to its place in the file.

use std::{future::poll_fn, io, ops::Range, pin::pin, sync::Arc, task::Poll, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    Durability, FileClaim, FileStore,
    blocks::Gathered,
    entry::{Claim, Entry, Holder, MAX_LENGTH, RangeLock, Retries, TryLock},
    folder::Folder,
    journal::Event,
    room::Reserved,
};
use crate::{
    model::{
        ranges::{Crc, Joined as _},
        state::Progress,
        upload::Upload,
    },
    store::{ChunkBody, Keep, Sealed, StoreError, disk},
    timer::Timer,
};

/// A chunk is fast, and may get more memory, if its first bytes arrive within this time.
const FAST: Duration = Duration::from_millis(5);

/// How long a chunk may hold more memory before it has to write.
const HOLD: Duration = Duration::from_millis(10);

/// Bytes that are written between two commits of an append, with [`Keep::Prefix`]. A crash loses at
/// most these.
const COMMIT: u64 = if cfg!(test) { 16 << 10 } else { 8 << 20 };

impl FileStore {
    /// See [`Store::write`](crate::store::Store::write).
    pub(super) async fn receive(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
        claims: bool,
    ) -> Result<(Progress, Option<FileClaim>), StoreError> {
        if offset > MAX_LENGTH {
            return Err(match upload.length {
                Some(length) if length <= MAX_LENGTH => StoreError::OutOfBounds,
                _ => StoreError::TooLarge { limit: MAX_LENGTH },
            });
        }
        let mut arrived = Arrived::new(&self.folder, offset, Keep::Whole, body);
        // Most chunks that fail do so before there is anything on disk.
        arrived.gather(body, None).await?;
        let end = if arrived.ended {
            arrived.gathered.end()
        } else {
            offset.saturating_add(body.max_len())
        };
        let range = offset..end.min(MAX_LENGTH);
        // A chunk that has arrived as a whole is written on a blocking thread anyway, which can
        // lock the range too.
        let known = if arrived.ended {
            None
        } else {
            self.folder.try_lock_open(&upload.id, &range)?
        };
        let (writer, arrived) = match known {
            Some(lock) => {
                let room = self.folder.room.reservation();
                let writer = Writer::new(lock, range, upload.length, room);
                (Box::new(writer), arrived)
            }
            None => {
                let is_whole = claims && arrived.is_whole(upload);
                let upload = if is_whole {
                    body.describe(upload)
                } else {
                    upload.clone()
                };
                match self
                    .start(Arc::new(upload), range, arrived, is_whole)
                    .await?
                {
                    Begun::Whole(progress, claim) => return Ok((progress, Some(claim))),
                    Begun::Ended(writer, progress) => {
                        body.count_duplicate(writer.duplicate);
                        return Ok((progress, None));
                    }
                    Begun::Started(writer, arrived) => (writer, arrived),
                }
            }
        };
        let entry = Arc::clone(writer.lock.entry());
        let result = self.receive_more(writer, arrived, body).await;
        if result.is_err() && entry.is_unused() {
            self.blocking(move |folder| {
                folder.undo_create(&entry);
                Ok(())
            })
            .await?;
        }
        result.map(|progress| (progress, None))
    }

    /// Finds the upload, or creates it, and locks a range of it. Writes what has arrived if that is
    /// the whole chunk.
    ///
    /// If the chunk is the whole file of a new upload, no lock is needed: the upload is created
    /// with its bytes, and claimed.
    async fn start(
        &self,
        upload: Arc<Upload>,
        range: Range<u64>,
        mut arrived: Box<Arrived>,
        is_whole: bool,
    ) -> Result<Begun, StoreError> {
        let stall = self.folder.stall;
        let deadline = Instant::now() + stall;
        let mut retries = Retries::default();
        loop {
            let (upload, range) = (Arc::clone(&upload), range.clone());
            let start = self.blocking(move |folder| {
                if is_whole {
                    match folder.create_whole(&upload, &arrived.gathered) {
                        Err(StoreError::Busy) => return Ok(Start::Busy(arrived)),
                        created => {
                            if let Some(claim) = created? {
                                return Ok(Start::Whole(arrived.gathered.end(), Box::new(claim)));
                            }
                        }
                    }
                }
                let entry = match folder.entry_for(&upload, false) {
                    Err(StoreError::Busy) => return Ok(Start::Busy(arrived)),
                    entry => entry?,
                };
                Writer::start(folder, &entry, range, upload.length, arrived)
                    .inspect_err(|_| folder.undo_create(&entry))
            });
            arrived = match start.await? {
                Start::Whole(received, claim) => {
                    let complete = true;
                    let progress = Progress { received, complete };
                    let claim = FileClaim::new(self, claim.0, claim.1);
                    return Ok(Begun::Whole(progress, claim));
                }
                Start::Started(writer, _, Some(progress)) => {
                    return Ok(Begun::Ended(writer, progress));
                }
                Start::Started(writer, arrived, None) => {
                    return Ok(Begun::Started(writer, arrived));
                }
                // The upload was removed in the meantime, and is created again.
                Start::Removed(arrived) => arrived,
                Start::Busy(arrived) => {
                    retries.pause().await?;
                    arrived
                }
                Start::HeldBy(entry, holder, arrived) => {
                    entry.wait_for(holder, stall, deadline).await?;
                    arrived
                }
            }
        }
    }

    /// Receives the rest of a chunk.
    pub(super) async fn receive_more(
        &self,
        mut writer: Box<Writer>,
        mut arrived: Box<Arrived>,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let mut retries = None;
        loop {
            arrived.gather(body, Some(&writer.lock)).await?;
            let result;
            let write = self.blocking(move |folder| {
                let result = writer.write(folder, &mut arrived);
                let has_failed = !matches!(result, Ok(_) | Err(StoreError::Busy));
                if arrived.keep == Keep::Prefix && has_failed {
                    // The error of the append is the one that counts.
                    let _ = writer.commit(folder);
                }
                Ok((writer, arrived, result))
            });
            (writer, arrived, result) = write.await?;
            match result {
                Ok(Some(progress)) => {
                    body.count_duplicate(writer.duplicate);
                    return arrived.failed.map_or(Ok(progress), Err);
                }
                Ok(None) => retries = None,
                Err(StoreError::Busy) => {
                    let retries = retries.get_or_insert_with(Retries::default);
                    retries.pause().await?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// What has arrived of a chunk and is not written yet.
pub(super) struct Arrived {
    gathered: Gathered,
    /// Where in the file the chunk will end, if its length is known.
    announced: Option<u64>,
    keep: Keep,
    /// Bytes for which `gathered` has no room.
    rest: Bytes,
    /// Nothing follows.
    ended: bool,
    /// Why nothing follows, with [`Keep::Prefix`].
    failed: Option<StoreError>,
    /// When the first byte arrived that is not written yet.
    since: Option<Instant>,
    timer: Timer,
}

impl Arrived {
    pub(super) fn new(folder: &Folder, offset: u64, keep: Keep, body: &ChunkBody<'_>) -> Box<Self> {
        Box::new(Self {
            gathered: folder.blocks.gather(offset),
            announced: body.exact_len().map(|len| offset.saturating_add(len)),
            keep,
            rest: Bytes::new(),
            ended: false,
            failed: None,
            since: None,
            timer: Timer::default(),
        })
    }

    /// Takes what arrives until it is time to write.
    ///
    /// A call on a blocking thread costs as much as to write tens of kilobytes, so one call with
    /// many bytes is better. But memory is bounded. A slow chunk must not hold much of it. Nor must
    /// a chunk without a lock, which waits for other chunks before it can write.
    ///
    /// # Errors
    ///
    /// With [`Keep::Whole`]: if the body fails, or another request takes the range over.
    async fn gather(
        &mut self,
        body: &mut ChunkBody<'_>,
        lock: Option<&RangeLock>,
    ) -> Result<(), StoreError> {
        let mut deadline: Option<Instant> = None;
        loop {
            let taken = self.gathered.take(&self.rest);
            // Not `advance`: an empty rest would keep the memory of the piece.
            self.rest = self.rest.split_off(taken);
            if self.since.is_none() && !self.gathered.is_empty() {
                self.since = Some(Instant::now());
            }
            if !self.rest.is_empty() {
                let is_late = self.since.is_some_and(|since| since.elapsed() > FAST);
                let is_slow = deadline.is_none() && is_late;
                if lock.is_none() || is_slow || !self.gathered.try_enlarge() {
                    return Ok(());
                }
                if deadline.is_none() {
                    deadline = Some(Instant::now() + HOLD);
                }
                continue;
            }
            if self.ended {
                return Ok(());
            }
            let next = next_piece(body, lock);
            let next = match deadline {
                None => next.await,
                Some(deadline) => {
                    let (mut next, timer) = (pin!(next), &mut self.timer);
                    let next = poll_fn(|cx| match next.as_mut().poll(cx) {
                        Poll::Ready(next) => Poll::Ready(Some(next)),
                        Poll::Pending => timer.poll_until(cx, deadline).map(|()| None),
                    });
                    match next.await {
                        Some(next) => next,
                        None => return Ok(()),
                    }
                }
            };
            match next {
                Ok(Some(piece)) => self.rest = piece,
                Ok(None) => self.ended = true,
                Err(error) if self.keep == Keep::Prefix => {
                    self.failed = Some(error);
                    self.ended = true;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether these are all bytes of the upload.
    fn is_whole(&self, upload: &Upload) -> bool {
        let range = self.gathered.range();
        self.ended && range.start == 0 && range.end > 0 && upload.length == Some(range.end)
    }
}

/// The next bytes of a chunk, unless another request takes its range over.
async fn next_piece(
    body: &mut ChunkBody<'_>,
    lock: Option<&RangeLock>,
) -> Result<Option<Bytes>, StoreError> {
    let Some(lock) = lock else {
        return Ok(body.next().await.transpose()?);
    };
    let next = body.next_unless(pin!(lock.superseded())).await;
    lock.count_piece();
    Ok(next.ok_or(StoreError::Superseded)?.transpose()?)
}

/// Writes the bytes of one chunk that are not stored yet, and compares the others. All methods
/// block.
pub(super) struct Writer {
    lock: RangeLock,
    range: Range<u64>,
    /// The length of the upload, as the request declares it.
    declared: Option<u64>,
    /// The file ends where the body of an append ends, if no length is known.
    ends_here: bool,
    /// Room on the disk: for the whole chunk if its length is known, else for what is written next.
    room: Reserved,
    /// What of the range is not stored, once that is known.
    gaps: Option<Vec<Range<u64>>>,
    /// The CRC-32 of what has arrived, if all of the range is stored already.
    crc: Crc,
    /// Where what is written or compared ends.
    done: u64,
    /// Bytes that were stored already.
    duplicate: u64,
    /// What is written and not committed.
    written: Vec<(Range<u64>, Crc)>,
    /// How many syncs had failed before it was written.
    failed_syncs: u64,
}

enum Begun {
    /// The whole file is stored.
    Whole(Progress, FileClaim),
    /// The whole chunk is stored.
    Ended(Box<Writer>, Progress),
    Started(Box<Writer>, Box<Arrived>),
}

enum Start {
    /// A new upload, of this length.
    Whole(u64, Box<(Claim, Sealed)>),
    Started(Box<Writer>, Box<Arrived>, Option<Progress>),
    /// Another request has locked the range. `None` if that is in another process.
    HeldBy(Arc<Entry>, Option<Arc<Holder>>, Box<Arrived>),
    Removed(Box<Arrived>),
    /// Another process has locked the journal.
    Busy(Box<Arrived>),
}

impl Writer {
    fn start(
        folder: &Folder,
        entry: &Arc<Entry>,
        range: Range<u64>,
        declared: Option<u64>,
        mut arrived: Box<Arrived>,
    ) -> Result<Start, StoreError> {
        let lock = match entry.try_lock_range(range.clone())? {
            TryLock::Locked(lock) => lock,
            TryLock::HeldBy(holder) => {
                return Ok(Start::HeldBy(Arc::clone(entry), holder, arrived));
            }
        };
        let mut writer = Self::new(lock, range, declared, folder.room.reservation());
        match writer.look(folder, &arrived) {
            Err(_) if entry.is_removed() => return Ok(Start::Removed(arrived)),
            Err(StoreError::Busy) => return Ok(Start::Busy(arrived)),
            looked => looked?,
        }
        let progress = if arrived.ended {
            match writer.write(folder, &mut arrived) {
                // It is tried again.
                Err(StoreError::Busy) => None,
                written => written?,
            }
        } else {
            None
        };
        Ok(Start::Started(Box::new(writer), arrived, progress))
    }

    pub(super) fn new(
        lock: RangeLock,
        range: Range<u64>,
        declared: Option<u64>,
        room: Reserved,
    ) -> Self {
        Self {
            failed_syncs: lock.entry().failed_syncs(),
            lock,
            crc: Crc::EMPTY,
            done: range.start,
            duplicate: 0,
            range,
            declared,
            ends_here: false,
            room,
            gaps: None,
            written: Vec::new(),
        }
    }

    pub(super) fn with_end(self, ends_here: bool) -> Self {
        Self { ends_here, ..self }
    }

    /// Reads what is stored. This needs the lock: otherwise bytes that another process stores now
    /// would be written again.
    fn look(&mut self, folder: &Folder, arrived: &Arrived) -> Result<(), StoreError> {
        let entry = self.lock.entry();
        entry.touch();
        let viewed = entry.view();
        if viewed.as_ref().is_err_and(disk::is_stale) {
            // The next request opens it again.
            folder.close(entry);
        }
        viewed?;
        if entry.is_removed() {
            return Err(StoreError::Superseded);
        }
        let lengths = self.declared.zip(entry.length());
        if lengths.is_some_and(|(declared, length)| declared != length) {
            return Err(StoreError::Conflict);
        }
        let (gaps, ranges) = entry.gaps(&self.range);
        if !gaps.is_empty() && ranges > folder.max_ranges {
            return Err(StoreError::TooManyRanges);
        }
        self.gaps = Some(gaps);
        if let Some(end) = arrived.announced {
            self.check(folder, self.range.start..end)?;
        }
        Ok(())
    }

    /// Checks that there is room for these bytes in the upload, and reserves it on the disk. A late
    /// chunk has no limits, because its bytes are dropped. An append has.
    fn check(&mut self, folder: &Folder, range: Range<u64>) -> Result<(), StoreError> {
        let entry = self.lock.entry();
        if !entry.is_receiving() && self.lock.epoch().is_none() {
            return Ok(());
        }
        match entry.length() {
            Some(length) if range.end > length => return Err(StoreError::OutOfBounds),
            None if range.end > MAX_LENGTH => {
                return Err(StoreError::TooLarge { limit: MAX_LENGTH });
            }
            _ => {}
        }
        let gaps = self.gaps.iter().flatten();
        let bytes = |gap: &Range<u64>| {
            let end = gap.end.min(range.end);
            end.saturating_sub(gap.start.max(range.start))
        };
        let new = gaps.map(bytes).sum();
        if new == 0 {
            return Ok(());
        }
        self.room.grow(&folder.partial, new)
    }

    /// Writes what has arrived. Returns the progress of the upload if that was the end of the
    /// chunk.
    ///
    /// After [`Busy`](StoreError::Busy) it can be called again.
    fn write(
        &mut self,
        folder: &Folder,
        arrived: &mut Arrived,
    ) -> Result<Option<Progress>, StoreError> {
        if self.gaps.is_none() {
            self.look(folder, arrived)?;
            self.lock.entry().check_data()?;
        }
        if arrived.announced.is_none() {
            self.check(folder, arrived.gathered.range())?;
        }
        for (at, piece) in arrived.gathered.pieces() {
            // Some are done if another process held a lock in an earlier call.
            if at >= self.done {
                self.write_piece(folder, piece, at)?;
            }
        }
        arrived.gathered.clear();
        arrived.since = None;
        if !arrived.ended {
            let written = self
                .written
                .iter()
                .map(|(piece, _)| piece.end - piece.start);
            let is_due = written.sum::<u64>() >= COMMIT;
            if arrived.keep == Keep::Prefix && is_due {
                self.commit(folder)?;
            }
            return Ok(None);
        }
        self.compare_checksums()?;
        self.commit(folder)?;
        if self.ends_here && arrived.failed.is_none() && self.lock.entry().length().is_none() {
            let length = Event::Length(self.done);
            self.lock
                .entry()
                .commit(vec![length], self.failed_syncs, self.lock.epoch())?;
        }
        // Still with the lock, because all bytes of a removed upload seem to be stored.
        Ok(Some(self.lock.entry().progress()))
    }

    /// # Errors
    ///
    /// [`Conflict`](StoreError::Conflict) if other bytes are stored. Then nothing is written.
    fn write_piece(&mut self, folder: &Folder, bytes: &[u8], at: u64) -> Result<(), StoreError> {
        let end = at + bytes.len() as u64;
        let slice =
            |piece: &Range<u64>| &bytes[(piece.start - at) as usize..(piece.end - at) as usize];
        let gaps = self.gaps.iter().flatten();
        let gaps = gaps.map(|gap| at.max(gap.start)..end.min(gap.end));
        let gaps: Vec<_> = gaps.filter(|gap| !gap.is_empty()).collect();
        let mut stored = at;
        for gap in gaps.iter().chain([&(end..end)]) {
            self.compare(slice(&(stored..gap.start)), stored)?;
            stored = gap.end;
        }
        let new: u64 = gaps.iter().map(|gap| gap.end - gap.start).sum();
        for gap in gaps {
            let data = self.lock.entry().data.as_ref();
            let data = data.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            let bytes = slice(&gap);
            folder
                .disk
                .write_all_at("write-data", data, bytes, gap.start)?;
            self.room.written(bytes.len() as u64);
            self.written.push((gap, Crc::of(bytes)));
        }
        // A sealed upload has no gaps.
        if self.gaps.as_ref().is_some_and(Vec::is_empty) {
            self.crc = self.crc.join(&Crc::of(bytes), end - at);
        }
        self.done = end;
        self.duplicate += end - at - new;
        Ok(())
    }

    /// Compares bytes with those that are stored at their place, while the upload is receiving.
    fn compare(&self, bytes: &[u8], at: u64) -> Result<(), StoreError> {
        let entry = self.lock.entry();
        let Some(data) = entry.data.as_ref().filter(|_| !bytes.is_empty()) else {
            return Ok(());
        };
        if !entry.is_receiving() {
            return Ok(());
        }
        let mut stored = vec![0; bytes.len()];
        let read = disk::read_at(data, &mut stored, at)?;
        if stored[..read] == *bytes {
            return Ok(());
        }
        // If another process has just sealed it, the application may have changed the file.
        entry.view()?;
        if entry.is_receiving() {
            Err(StoreError::Conflict)
        } else {
            Ok(())
        }
    }

    /// Compares a chunk of a sealed or settled upload, whose file belongs to the application, with
    /// the checksums in the journal, if they are of exactly its range.
    fn compare_checksums(&self) -> Result<(), StoreError> {
        let (entry, range) = (self.lock.entry(), self.range.start..self.done);
        if range.is_empty() || !self.gaps.as_ref().is_some_and(Vec::is_empty) {
            return Ok(());
        }
        entry.view()?;
        if entry.is_receiving() || entry.is_removed() {
            return Ok(());
        }
        match entry.checksum_of(&range)? {
            Some(stored) if stored != self.crc => Err(StoreError::Conflict),
            _ => Ok(()),
        }
    }

    /// Makes the written bytes durable, and records them in the journal.
    fn commit(&mut self, folder: &Folder) -> Result<(), StoreError> {
        let entry = self.lock.entry();
        if self.written.is_empty() {
            // Bytes of other requests were durable before this process knew them.
            return entry.confirm();
        }
        let joined = joined(&self.written);
        let events = joined.iter().map(|(piece, crc)| entry.stored(piece, *crc));
        entry.commit(events.collect(), self.failed_syncs, self.lock.epoch())?;
        if let (Durability::Process, Some(data)) = (folder.durability, &entry.data) {
            // Otherwise everything is written when the file is sealed.
            joined
                .iter()
                .for_each(|(piece, _)| disk::begin_to_write(data, piece));
        }
        self.written.clear();
        self.failed_syncs = self.lock.entry().failed_syncs();
        Ok(())
    }
}

/// Joins pieces that follow each other.
fn joined(pieces: &[(Range<u64>, Crc)]) -> Vec<(Range<u64>, Crc)> {
    let mut joined: Vec<(Range<u64>, Crc)> = Vec::new();
    for (piece, crc) in pieces {
        match joined.last_mut() {
            Some((last, known)) if last.end == piece.start => {
                *known = known.join(crc, piece.end - piece.start);
                last.end = piece.end;
            }
            _ => joined.push((piece.clone(), *crc)),
        }
    }
    joined
}
