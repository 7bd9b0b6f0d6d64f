//! The bytes of chunks in memory, with one limit for all of them.

use std::{
    future::poll_fn,
    ops::Range,
    pin::pin,
    sync::{Arc, Mutex, Weak},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{Either, select};
use object_store::PutPayload;
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout},
};

use crate::{
    lock::lock,
    store::{BodyError, ChunkBody, StoreError},
    timer::Timer,
};

/// Bytes that are allocated at once. Pieces of a body are copied: a small slice of a connection's
/// buffer would keep the whole buffer.
const BLOCK: u64 = 256 << 10;

/// Bytes per permit. A semaphore does not have a permit for each byte.
const UNIT: u64 = 1 << 10;

/// The time over which the pace of a body is measured. The current and the last one count.
const WINDOW: Duration = Duration::from_secs(10);

/// If others need memory, a body has to receive this part of what it holds in each window.
const EARNED: u64 = 64;

/// How long the bytes of an append wait for more before they are stored.
const LINGER: Duration = Duration::from_secs(10);

/// How often to look for memory that a slow body holds.
const LOOK: Duration = Duration::from_secs(1);

/// Limits the memory that chunks take.
#[derive(Debug)]
pub(super) struct Memory {
    free: Arc<Semaphore>,
    units: u32,
    /// The bodies that hold memory while they arrive.
    holders: Mutex<Vec<Weak<Holder>>>,
}

/// A body that holds memory while it arrives.
#[derive(Debug)]
pub(super) struct Holder {
    pace: Mutex<Pace>,
    /// Others need the memory, or a newer request ends the append.
    give_way: Notify,
}

impl Holder {
    /// Ends the [`Source::take`] that is waiting for bytes, or else the next one that has to wait.
    pub(super) fn give_way(&self) {
        self.give_way.notify_one();
    }
}

/// The pace of a body.
#[derive(Debug)]
struct Pace {
    start: Instant,
    /// The number of the current window.
    window: u64,
    /// Bytes received in this window, and in the one before.
    now: u64,
    before: u64,
    held: u64,
}

impl Pace {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            window: 0,
            now: 0,
            before: 0,
            held: 0,
        }
    }

    fn receive(&mut self, bytes: u64) {
        self.go_on();
        self.now += bytes;
    }

    fn go_on(&mut self) {
        let window = self.start.elapsed().as_secs() / WINDOW.as_secs();
        if window > self.window {
            self.before = if window == self.window + 1 {
                self.now
            } else {
                0
            };
            self.now = 0;
            self.window = window;
        }
    }

    /// Bytes received of each `EARNED` that have to be. `None` if it is fast enough, or too young.
    fn slowness(&mut self) -> Option<u64> {
        self.go_on();
        let received = (self.before + self.now).saturating_mul(EARNED);
        let is_slow = self.window > 0 && received < self.held;
        is_slow.then(|| received.saturating_mul(1024) / self.held.max(1))
    }
}

/// Bytes that are counted until they are dropped.
struct Counted {
    bytes: Vec<u8>,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Memory {
    pub(super) fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        // The maximum is smaller on 32-bit systems.
        let units = units.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        let units = units.max(1);
        Self {
            free: Arc::new(Semaphore::new(units as usize)),
            units,
            holders: Mutex::default(),
        }
    }

    /// Reads a body to its end.
    ///
    /// # Errors
    ///
    /// [`ChunkTooLarge`](StoreError::ChunkTooLarge) if the body is larger than all the memory, and
    /// [`Busy`](StoreError::Busy) if there is none left, or if the body is slow and others need the
    /// memory. It does not wait for memory: two requests that hold some and wait for more would
    /// never end.
    pub(super) async fn read(&self, body: &mut ChunkBody<'_>) -> Result<Blocks, StoreError> {
        let limit = self.limit();
        if body.exact_len().is_some_and(|len| len > limit) {
            // It is held in memory as a whole, which can never be free.
            return Err(StoreError::ChunkTooLarge { limit });
        }
        let mut source = self.source(body, None);
        let (blocks, end) = source.take(u64::MAX).await;
        end.unwrap_or(Ok(())).map(|()| blocks)
    }

    /// A body whose bytes are stored as they arrive, and what ends its [`Source::take`].
    pub(super) fn stream<'a, 'b>(
        &'a self,
        body: &'a mut ChunkBody<'b>,
    ) -> (Source<'a, 'b>, Arc<Holder>) {
        let source = self.source(body, Some(LINGER));
        let holder = Arc::clone(&source.holder);
        (source, holder)
    }

    fn source<'a, 'b>(
        &'a self,
        body: &'a mut ChunkBody<'b>,
        linger: Option<Duration>,
    ) -> Source<'a, 'b> {
        Source {
            memory: self,
            body,
            rest: Bytes::new(),
            linger,
            timer: Timer::default(),
            holder: self.holder(),
        }
    }

    fn holder(&self) -> Arc<Holder> {
        let holder = Arc::new(Holder {
            pace: Mutex::new(Pace::new()),
            give_way: Notify::new(),
        });
        let mut holders = lock(&self.holders);
        // Remove those that have ended before the list grows.
        if holders.len() == holders.capacity() {
            holders.retain(|holder| holder.strong_count() > 0);
        }
        holders.push(Arc::downgrade(&holder));
        holder
    }

    fn limit(&self) -> u64 {
        u64::from(self.units) * UNIT
    }

    /// Waits until this much memory is free, or all memory if that is less.
    ///
    /// The caller must not have any memory: see [`Memory::read`].
    pub(super) async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, StoreError> {
        let units = self.units_of(bytes);
        let mut permit = pin!(Arc::clone(&self.free).acquire_many_owned(units));
        loop {
            match timeout(LOOK, permit.as_mut()).await {
                Ok(permit) => return permit.map_err(StoreError::new),
                Err(_) => self.take_from_slow(bytes),
            }
        }
    }

    fn try_reserve(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let units = self.units_of(bytes);
        let permit = Arc::clone(&self.free).try_acquire_many_owned(units).ok();
        if permit.is_none() {
            self.take_from_slow(bytes);
        }
        permit
    }

    /// Tells bodies that are too slow to give way, the slowest first, until they hold this many
    /// bytes. Their memory is free a moment later.
    fn take_from_slow(&self, bytes: u64) {
        let mut holders = lock(&self.holders);
        let mut slow = Vec::new();
        holders.retain(|holder| {
            let Some(holder) = holder.upgrade() else {
                return false;
            };
            let mut pace = lock(&holder.pace);
            if let Some(slowness) = pace.slowness() {
                slow.push((slowness, pace.held, Arc::clone(&holder)));
            }
            true
        });
        slow.sort_unstable_by_key(|(slowness, ..)| *slowness);
        let mut freed = 0;
        for (_, held, holder) in slow {
            if freed >= bytes {
                break;
            }
            freed += held;
            holder.give_way.notify_one();
        }
    }

    fn units_of(&self, bytes: u64) -> u32 {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        units.min(self.units)
    }
}

/// A body that is read into memory.
pub(super) struct Source<'a, 'b> {
    memory: &'a Memory,
    body: &'a mut ChunkBody<'b>,
    /// What was received and is not taken yet.
    rest: Bytes,
    /// How long bytes wait for more. `None` if they are not stored before the others.
    linger: Option<Duration>,
    timer: Timer,
    holder: Arc<Holder>,
}

impl Source<'_, '_> {
    /// Takes at most `room` bytes, and fewer if the body ends or there is no memory left.
    ///
    /// Also returns how the body has ended, `None` if more bytes may follow. Of a
    /// [stream](Memory::stream) there is always some progress: the caller stores what it got, and
    /// frees its memory.
    pub(super) async fn take(&mut self, room: u64) -> (Blocks, Option<Result<(), StoreError>>) {
        let mut blocks = Blocks::default();
        let mut block: Option<Counted> = None;
        let mut since = None;
        let end = loop {
            let filled = block.as_ref().map_or(0, |block| block.bytes.len() as u64);
            let room = room - blocks.len() - filled;
            if room == 0 {
                break None;
            }
            if self.rest.is_empty() {
                let held = blocks.len() + block.as_ref().map_or(0, |b| b.bytes.capacity() as u64);
                let until = self.linger.and_then(|linger| Some(since? + linger));
                let Some(next) = self.next(held, until).await else {
                    break (!self.is_stream()).then_some(Err(StoreError::Busy));
                };
                match next {
                    Some(Ok(piece)) => {
                        self.rest = piece;
                        since.get_or_insert_with(Instant::now);
                    }
                    Some(Err(error)) => break Some(Err(error.into())),
                    None => break Some(Ok(())),
                }
                continue;
            }
            let filling = match &mut block {
                Some(block) => block,
                None => match self.block(room, blocks.is_empty()).await {
                    Ok(new) => block.insert(new),
                    Err(StoreError::Busy) if self.is_stream() => break None,
                    Err(error) => break Some(Err(error)),
                },
            };
            let free = filling.bytes.capacity() - filling.bytes.len();
            let now = self.rest.split_to(free.min(self.rest.len()));
            filling.bytes.extend_from_slice(&now);
            if filling.bytes.len() == filling.bytes.capacity() {
                blocks.extend(block.take());
            }
        };
        blocks.extend(block);
        (blocks, end)
    }

    /// The next bytes of the body. `None` if it has to give way: it holds this much memory, is
    /// slow, and others need the memory, or a newer request ends it. Also `None` at this time.
    async fn next(
        &mut self,
        held: u64,
        until: Option<Instant>,
    ) -> Option<Option<Result<Bytes, BodyError>>> {
        lock(&self.holder.pace).held = held;
        let next = if held == 0 && !self.is_stream() {
            self.body.next().await
        } else {
            let timer = &mut self.timer;
            let over = poll_fn(|cx| match until {
                Some(until) => timer.poll_until(cx, until),
                None => Poll::Pending,
            });
            let (over, give_way) = (pin!(over), pin!(self.holder.give_way.notified()));
            match select(pin!(self.body.next()), select(give_way, over)).await {
                Either::Left((next, _)) => next,
                Either::Right(_) => return None,
            }
        };
        let mut pace = lock(&self.holder.pace);
        // It is not waiting any more.
        pace.held = 0;
        if let Some(Ok(piece)) = &next {
            pace.receive(piece.len() as u64);
        }
        Some(next)
    }

    /// Whether its bytes are stored as they arrive.
    fn is_stream(&self) -> bool {
        self.linger.is_some()
    }

    async fn block(&mut self, room: u64, is_first: bool) -> Result<Counted, StoreError> {
        let received = self.body.received() - self.rest.len() as u64;
        let left = self.body.max_len().saturating_sub(received);
        let len = left.min(room).clamp(1, BLOCK);
        let permit = if self.is_stream() && is_first {
            self.memory.reserve(len).await?
        } else {
            self.memory.try_reserve(len).ok_or_else(|| {
                let limit = self.memory.limit();
                if !self.is_stream() && self.body.received() > limit {
                    StoreError::ChunkTooLarge { limit }
                } else {
                    StoreError::Busy
                }
            })?
        };
        Ok(Counted {
            bytes: Vec::with_capacity(len as usize),
            _permit: permit,
        })
    }
}

/// Bytes in several pieces.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    pub(super) pieces: Vec<Bytes>,
    len: u64,
}

impl Blocks {
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len() as u64;
        self.pieces.push(bytes);
    }

    fn extend(&mut self, block: Option<Counted>) {
        if let Some(block) = block {
            self.push(Bytes::from_owner(block));
        }
    }

    /// The bytes of this range, which must lie within.
    pub(super) fn slice(&self, range: Range<u64>) -> Self {
        let mut found = Self::default();
        let mut at = 0;
        for piece in &self.pieces {
            let end = at + piece.len() as u64;
            let (from, to) = (range.start.max(at), range.end.min(end));
            if from < to {
                found.push(piece.slice((from - at) as usize..(to - at) as usize));
            }
            at = end;
        }
        found
    }

    pub(super) fn crc(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        self.pieces.iter().for_each(|piece| hasher.update(piece));
        hasher.finalize()
    }

    pub(super) fn payload(self) -> PutPayload {
        self.pieces.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::{StreamExt as _, stream};
    use http_body_util::{BodyExt as _, StreamBody};

    use super::*;

    async fn with_body<T>(
        pieces: &[&[u8]],
        exact: Option<u64>,
        work: impl AsyncFnOnce(&mut ChunkBody<'_>) -> T,
    ) -> T {
        let pieces = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece)));
        let frames = stream::iter(pieces.collect::<Vec<_>>());
        let body = StreamBody::new(frames.map(|piece| piece.map(http_body::Frame::data)));
        let mut body = pin!(body.map_err(|error: std::io::Error| error.into()));
        work(&mut ChunkBody::new(body.as_mut(), exact, 1 << 30)).await
    }

    async fn read(
        memory: &Memory,
        pieces: &[&[u8]],
        exact: Option<u64>,
    ) -> Result<Blocks, StoreError> {
        with_body(pieces, exact, async |body| memory.read(body).await).await
    }

    #[tokio::test]
    async fn bytes_are_counted_until_they_are_dropped() {
        let memory = Memory::new(3 * BLOCK);
        let bytes: Vec<u8> = (0..2 * BLOCK + 100).map(|n| (n % 251) as u8).collect();
        let len = bytes.len() as u64;
        let pieces: Vec<_> = bytes.chunks(1000).collect();
        let blocks = read(&memory, &pieces, Some(len)).await.unwrap();
        assert_eq!(blocks.pieces.concat(), bytes);
        assert_eq!(blocks.len(), len);
        assert_eq!(blocks.crc(), crc32fast::hash(&bytes));
        for range in [
            0..0,
            0..len,
            5..6,
            10..BLOCK,
            BLOCK - 1..BLOCK + 1,
            BLOCK..len,
        ] {
            let slice = blocks.slice(range.clone());
            assert_eq!(slice.len(), range.end - range.start);
            let expected = &bytes[range.start as usize..range.end as usize];
            assert_eq!(slice.pieces.concat(), expected);
        }
        // One block less some units is left.
        assert!(matches!(
            read(&memory, &[&bytes[..BLOCK as usize]], Some(BLOCK)).await,
            Err(StoreError::Busy)
        ));
        let slice = blocks.slice(0..1);
        drop(blocks);
        assert_eq!(memory.free.available_permits() as u64, 2 * BLOCK / UNIT);
        drop(slice);
        assert_eq!(memory.free.available_permits() as u64, 3 * BLOCK / UNIT);
        let all = memory.reserve(u64::MAX).await.unwrap();
        assert_eq!(memory.free.available_permits(), 0);
        drop(all);
    }

    #[tokio::test]
    async fn a_failed_body_keeps_no_memory() {
        let memory = Memory::new(BLOCK);
        let result = read(&memory, &[b"abc"], Some(4)).await;
        assert!(matches!(
            result,
            Err(StoreError::Body(BodyError::Length { .. }))
        ));
        assert_eq!(memory.free.available_permits() as u64, BLOCK / UNIT);
        // Of unknown length, and empty.
        let found = read(&memory, &[b"abc", b"", b"d"], None).await.unwrap();
        assert_eq!(found.pieces.concat(), b"abcd");
        assert!(read(&memory, &[], Some(0)).await.unwrap().is_empty());
        drop(found);
        // More than the limit.
        let result = read(&memory, &[], Some(BLOCK + 1)).await;
        assert!(matches!(
            result,
            Err(StoreError::ChunkTooLarge { limit: BLOCK })
        ));
        let result = read(&memory, &[&[0; BLOCK as usize], b"x"], None).await;
        assert!(matches!(
            result,
            Err(StoreError::ChunkTooLarge { limit: BLOCK })
        ));
        assert_eq!(memory.free.available_permits() as u64, BLOCK / UNIT);
    }

    /// A stream is taken in segments, which are as long as the room or the memory allows.
    #[tokio::test(start_paused = true)]
    async fn a_stream_is_taken_in_segments() {
        let bytes: Vec<u8> = (0..3 * BLOCK).map(|n| (n % 251) as u8).collect();
        let pieces: Vec<_> = bytes.chunks(100_000).collect();
        for (limit, room, segments) in [
            (4 * BLOCK, u64::MAX, 1),
            (4 * BLOCK, BLOCK + 1, 3),
            (BLOCK, u64::MAX, 3),
            (1, BLOCK, 3),
        ] {
            let memory = Memory::new(limit);
            let len = 3 * BLOCK + 1;
            let (found, count, end) = with_body(&pieces, Some(len), async |body| {
                let (mut source, _) = memory.stream(body);
                let (mut found, mut count) = (Vec::new(), 0);
                loop {
                    let (blocks, end) = source.take(room).await;
                    found.extend(blocks.pieces.concat());
                    count += usize::from(!blocks.is_empty());
                    if let Some(end) = end {
                        break (found, count, end);
                    }
                }
            })
            .await;
            assert!(found == bytes && count == segments, "{count} of {limit}");
            assert!(matches!(end, Err(StoreError::Body(_))), "{end:?}");
        }
    }

    /// A body that sends some bytes and then one now and then.
    async fn drip(memory: &Memory, first: usize, every: Duration) -> bool {
        let frames = stream::unfold(true, |is_first| async move {
            let len = if is_first { first } else { 1 };
            if !is_first {
                tokio::time::sleep(every).await;
            }
            let frame = http_body::Frame::data(Bytes::from(vec![0; len]));
            Some((Ok::<_, std::io::Error>(frame), false))
        });
        let mut body = pin!(StreamBody::new(frames).map_err(Into::into));
        let mut body = ChunkBody::new(body.as_mut(), None, 1 << 30);
        matches!(memory.read(&mut body).await, Err(StoreError::Busy))
    }

    /// Memory has to be earned all the time, not only at the beginning of a body.
    #[tokio::test(start_paused = true)]
    async fn slow_bodies_give_way_when_others_need_their_memory() {
        let memory = Memory::new(4 * BLOCK);
        let first = 4 * BLOCK as usize - 1000;
        let mut dripping = pin!(drip(&memory, first, Duration::from_secs(1)));
        let others = async {
            let mut tries = 0;
            while read(&memory, &[b"abc"], Some(3)).await.is_err() {
                tokio::time::sleep(Duration::from_secs(1)).await;
                tries += 1;
            }
            tries
        };
        let mut others = pin!(others);
        let started = Instant::now();
        let (is_busy, tries) = futures_util::future::join(&mut dripping, &mut others).await;
        // A body that has just begun keeps its memory.
        assert!((15..=25).contains(&tries), "{tries} tries");
        assert!(started.elapsed() < Duration::from_secs(30));
        assert!(is_busy);
        // If there is memory for all, a slow body is left alone.
        let memory = Memory::new(8 * BLOCK);
        let slow = drip(&memory, BLOCK as usize, Duration::from_secs(5));
        assert!(timeout(Duration::from_secs(3600), slow).await.is_err());
    }

    /// The slowest give way, and no more than are needed. A body with a fair pace never does.
    #[tokio::test(start_paused = true)]
    async fn the_slowest_bodies_give_way_first() {
        let memory = Arc::new(Memory::new(3 * BLOCK));
        // A body with a block has to receive 4 KiB in 10 seconds.
        let [fast, slow, slowest] = [2, 100, 4000].map(|every| {
            let (memory, every) = (Arc::clone(&memory), Duration::from_millis(every));
            let first = BLOCK as usize / 2;
            tokio::spawn(async move { drip(&memory, first, every).await })
        });
        for given_way in [&slowest, &slow] {
            tokio::time::sleep(Duration::from_secs(30)).await;
            assert!(!given_way.is_finished() && !fast.is_finished());
            drop(memory.reserve(BLOCK).await.unwrap());
            tokio::task::yield_now().await;
            assert!(given_way.is_finished());
            // There is room for its block, which takes the place of the one that has ended.
            std::mem::forget(memory.reserve(BLOCK).await.unwrap());
        }
        let more = timeout(Duration::from_secs(60), memory.reserve(BLOCK)).await;
        assert!(more.is_err() && !fast.is_finished());
        fast.abort();
        assert!(slow.await.unwrap() && slowest.await.unwrap());
    }
}
