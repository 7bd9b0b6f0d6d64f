//! The bytes of chunks in memory: bounded for all of them together.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use object_store::PutPayload;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    UploadError,
    store::{ChunkBody, StoreError},
};

/// What is taken at once. Copied into memory of one's own: a small slice of a connection's buffer
/// would keep all of that.
const BLOCK: u64 = 256 << 10;

/// What permits are for, in bytes: there are not enough of them for each byte.
const UNIT: u64 = 1 << 10;

/// How much may be in memory.
#[derive(Debug)]
pub(super) struct Memory {
    left: Arc<Semaphore>,
    all: u32,
}

/// Bytes that are counted for as long as somebody has them.
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
        let all = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        // There is a limit to what a semaphore can count on small machines.
        let all = all.min(u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX));
        Self {
            left: Arc::new(Semaphore::new(all as usize)),
            all,
        }
    }

    /// Takes a body to its end. Memory is taken as bytes come, and never waited for: who waits while
    /// he has some can wait for ever.
    pub(super) async fn take(&self, body: &mut ChunkBody<'_>) -> Result<Blocks, StoreError> {
        // There would never be room.
        let limit = u64::from(self.all) * UNIT;
        if body.exact_len().is_some_and(|len| len > limit) {
            return Err(UploadError::ChunkTooLarge { limit }.into());
        }
        let mut blocks = Blocks::default();
        let mut left = body.max_len();
        let mut block: Option<Counted> = None;
        while let Some(piece) = body.next().await {
            let mut piece = &piece?[..];
            while !piece.is_empty() {
                let filling = match &mut block {
                    Some(block) => block,
                    none => none.insert(self.block(left.min(BLOCK))?),
                };
                let room = filling.bytes.capacity() - filling.bytes.len();
                let (now, later) = piece.split_at(room.min(piece.len()));
                filling.bytes.extend_from_slice(now);
                left = left.saturating_sub(now.len() as u64);
                piece = later;
                if filling.bytes.len() == filling.bytes.capacity() {
                    blocks.extend(block.take());
                }
            }
        }
        blocks.extend(block);
        Ok(blocks)
    }

    fn block(&self, len: u64) -> Result<Counted, StoreError> {
        let len = len.max(1);
        let units = len.div_ceil(UNIT) as u32;
        let permit = Arc::clone(&self.left).try_acquire_many_owned(units);
        Ok(Counted {
            bytes: Vec::with_capacity(len as usize),
            _permit: permit.map_err(|_| StoreError::Busy)?,
        })
    }

    /// Waits until so much can be taken; all of it, if it is more than that. Not to be asked for by
    /// who has some.
    pub(super) async fn reserve(&self, bytes: u64) -> Result<OwnedSemaphorePermit, StoreError> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.left).acquire_many_owned(units.min(self.all));
        permit.await.map_err(StoreError::new)
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

    pub(super) fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len() as u64;
        self.pieces.push(bytes);
    }

    fn extend(&mut self, block: Option<Counted>) {
        if let Some(block) = block {
            self.push(Bytes::from_owner(block));
        }
    }

    /// Those bytes of it; the range lies within.
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

    use super::*;

    async fn take(
        memory: &Memory,
        pieces: &[&[u8]],
        exact: Option<u64>,
    ) -> Result<Blocks, StoreError> {
        let pieces = pieces.iter().map(|piece| Ok(Bytes::copy_from_slice(piece)));
        let stream = pin!(futures_util::stream::iter(pieces.collect::<Vec<_>>()));
        memory
            .take(&mut ChunkBody::new(stream, exact, 1 << 30))
            .await
    }

    #[tokio::test]
    async fn bytes_are_counted_until_they_are_dropped() {
        let memory = Memory::new(3 * BLOCK);
        let bytes: Vec<u8> = (0..2 * BLOCK + 100).map(|n| (n % 251) as u8).collect();
        let len = bytes.len() as u64;
        let pieces: Vec<_> = bytes.chunks(1000).collect();
        let blocks = take(&memory, &pieces, Some(len)).await.unwrap();
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
        // There is one block left, but for what was rounded up.
        assert!(matches!(
            take(&memory, &[&bytes[..BLOCK as usize]], Some(BLOCK)).await,
            Err(StoreError::Busy)
        ));
        let slice = blocks.slice(0..1);
        drop(blocks);
        assert_eq!(memory.left.available_permits() as u64, 2 * BLOCK / UNIT);
        drop(slice);
        assert_eq!(memory.left.available_permits() as u64, 3 * BLOCK / UNIT);
        let all = memory.reserve(u64::MAX).await.unwrap();
        assert_eq!(memory.left.available_permits(), 0);
        drop(all);
    }

    #[tokio::test]
    async fn a_failed_body_keeps_nothing() {
        let memory = Memory::new(BLOCK);
        let result = take(&memory, &[b"abc"], Some(4)).await;
        assert!(matches!(
            result,
            Err(StoreError::Body(UploadError::ChunkLength { .. }))
        ));
        assert_eq!(memory.left.available_permits() as u64, BLOCK / UNIT);
        // Of unknown length, or of none.
        let found = take(&memory, &[b"abc", b"", b"d"], None).await.unwrap();
        assert_eq!(found.pieces.concat(), b"abcd");
        assert_eq!(take(&memory, &[], Some(0)).await.unwrap().len(), 0);
    }
}
