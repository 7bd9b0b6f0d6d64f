//! Memory that collects bytes before they are written.

use std::{
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::lock::lock;

/// Bytes of a block. Larger ones are slow to write when the system has little contiguous memory.
/// Smaller ones cost more calls.
pub(super) const BLOCK: usize = 256 << 10;

/// Bytes that every chunk may hold.
const LITTLE: usize = 16 << 10;

/// How many blocks a chunk may hold with permits, and one more if it does not start with a block.
/// Only one while less than half of the permits are free.
const MUCH: usize = 4;

/// The least number of permits, if there are few processors.
const LARGE: usize = 64;

/// Blocks of memory that are reused: to touch fresh memory costs more than everything else that is
/// done to a byte. There is a permit for each of them.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
    permits: Arc<Semaphore>,
    max_spare: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let large = LARGE.max(2 * MUCH * processors);
        Self {
            spare: Arc::default(),
            permits: Arc::new(Semaphore::new(large)),
            max_spare: large,
        }
    }
}

impl Blocks {
    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        lock(&self.spare)
    }

    /// All memory.
    #[cfg(test)]
    pub(super) fn take_all(&self) -> OwnedSemaphorePermit {
        let all = self.max_spare as u32;
        Arc::clone(&self.permits)
            .try_acquire_many_owned(all)
            .unwrap()
    }

    /// The blocks of one chunk, which starts at offset `at` of the file.
    pub(super) fn gather(&self, at: u64) -> Gathered {
        Gathered {
            blocks: self.clone(),
            filled: Vec::new(),
            at,
            end: at,
            permits: None,
        }
    }
}

/// Bytes of a chunk that are to be written. Dropping it returns the memory.
#[derive(Debug)]
pub(super) struct Gathered {
    blocks: Blocks,
    /// All but the last one end at a multiple of their size in the file, which is cheaper to write.
    filled: Vec<Vec<u8>>,
    at: u64,
    end: u64,
    /// One for each block, unless there is only a little.
    permits: Option<OwnedSemaphorePermit>,
}

impl Gathered {
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// Takes a permit to hold one block more, until [`clear`](Self::clear), if one is free.
    /// Returns whether it was.
    ///
    /// It does not wait: the bytes that a waiting stream of HTTP/2 has not read count against the
    /// window of its connection, and streams that have permits would starve.
    pub(super) fn try_enlarge(&mut self) -> bool {
        let held = self.permits.as_ref().map_or(0, |held| held.num_permits());
        // While few are free, the others need their first one more.
        let is_scarce = self.blocks.permits.available_permits() < self.blocks.max_spare / 2;
        if held >= MUCH || held > 0 && is_scarce {
            return false;
        }
        let Ok(permit) = Arc::clone(&self.blocks.permits).try_acquire_owned() else {
            return false;
        };
        if let Some(held) = &mut self.permits {
            held.merge(permit);
            return true;
        }
        self.permits = Some(permit);
        if let (Some(small), Some(mut large)) = (self.filled.last_mut(), self.blocks.spare().pop())
        {
            large.extend_from_slice(small);
            *small = large;
        }
        true
    }

    /// The offset in the file at which its bytes end.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// The range of the file that its bytes belong to.
    pub(super) fn range(&self) -> Range<u64> {
        self.at..self.end
    }

    /// Takes as many bytes of `piece` as it may, and returns their number.
    pub(super) fn take(&mut self, piece: &[u8]) -> usize {
        let mut rest = piece;
        let (size, most) = match &self.permits {
            Some(held) => (BLOCK, held.num_permits() * BLOCK),
            None => (LITTLE, LITTLE),
        };
        while !rest.is_empty() {
            let used = (self.end % size as u64) as usize;
            if used == 0 || self.filled.is_empty() {
                if self.end - self.at >= most as u64 {
                    break;
                }
                let block = self
                    .permits
                    .as_ref()
                    .and_then(|_| self.blocks.spare().pop());
                self.filled.push(block.unwrap_or_default());
            }
            let now = rest.len().min(size - used);
            if let Some(block) = self.filled.last_mut() {
                extend(block, &rest[..now], size);
            }
            rest = &rest[now..];
            self.end += now as u64;
        }
        piece.len() - rest.len()
    }

    /// The bytes, in pieces, with the offset of each in the file.
    pub(super) fn pieces(&self) -> impl Iterator<Item = (u64, &[u8])> {
        self.filled.iter().scan(self.at, |at, block| {
            let start = *at;
            *at += block.len() as u64;
            Some((start, &block[..]))
        })
    }

    /// Drops the bytes after they are written.
    pub(super) fn clear(&mut self) {
        self.at = self.end;
        let mut spare = self.blocks.spare();
        for mut block in self.filled.drain(..) {
            if block.capacity() > LITTLE && spare.len() < self.blocks.max_spare {
                block.clear();
                spare.push(block);
            }
        }
        self.permits = None;
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Appends to a block. Its memory grows to at most `size`.
fn extend(block: &mut Vec<u8>, piece: &[u8], size: usize) {
    let len = block.len() + piece.len();
    if len > block.capacity() {
        let target = len.max((2 * block.capacity()).min(size));
        block.reserve_exact(target - block.len());
    }
    block.extend_from_slice(piece);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pieces of a gathered chunk, as offsets and lengths.
    fn pieces(gathered: &Gathered) -> Vec<(u64, usize)> {
        let pieces = gathered.pieces();
        pieces.map(|(at, bytes)| (at, bytes.len())).collect()
    }

    #[test]
    fn blocks_end_at_multiples_of_their_size() {
        let blocks = Blocks::default();
        let mut chunk = blocks.gather(BLOCK as u64 - 5);
        let piece: Vec<u8> = (0..3 * BLOCK).map(|n| n as u8).collect();
        assert_eq!(chunk.take(&piece[..7]), 7);
        while chunk.try_enlarge() {}
        assert_eq!(chunk.take(&piece[7..]), piece.len() - 7);
        let at = |n: usize| (n * BLOCK) as u64;
        let expected = [
            (at(1) - 5, 5),
            (at(1), BLOCK),
            (at(2), BLOCK),
            (at(3), BLOCK - 5),
        ];
        assert_eq!(pieces(&chunk), expected);
        let bytes: Vec<u8> = chunk
            .pieces()
            .flat_map(|(_, bytes)| bytes)
            .copied()
            .collect();
        assert_eq!(bytes, piece);
        assert_eq!(chunk.end(), at(4) - 5);

        chunk.clear();
        assert_eq!(chunk.take(b"more"), 4);
        assert_eq!(pieces(&chunk), [(at(4) - 5, 4)]);
    }

    #[test]
    fn a_chunk_holds_a_block_for_each_permit() {
        let blocks = Blocks::default();
        let piece = vec![0; 2 * MUCH * BLOCK];
        let permits = blocks.permits.available_permits();
        let mut chunks: Vec<_> = (0..=permits).map(|_| blocks.gather(0)).collect();
        for chunk in &mut chunks {
            assert_eq!(chunk.take(&piece), LITTLE);
            assert_eq!(chunk.take(&piece), 0);
        }
        let mut last = chunks.pop().unwrap();
        let mut free = permits;
        for chunk in &mut chunks {
            if free == 0 {
                break;
            }
            assert!(chunk.try_enlarge());
            free -= 1;
            assert_eq!(chunk.take(&piece), BLOCK - LITTLE);
            assert_eq!(chunk.take(&piece), 0);
            for _ in 1..MUCH {
                let has_more = free >= permits / 2;
                assert_eq!(chunk.try_enlarge(), has_more);
                free -= usize::from(has_more);
                assert_eq!(chunk.take(&piece), if has_more { BLOCK } else { 0 });
            }
            assert!(!chunk.try_enlarge());
        }
        assert!(!last.try_enlarge());
        chunks[0].clear();
        assert_eq!(chunks[0].take(&piece), LITTLE);
        assert!(last.try_enlarge());
        assert_eq!(last.take(&piece), BLOCK - LITTLE);
    }

    #[test]
    fn memory_is_used_again_and_bounded() {
        let blocks = Blocks::default();
        let piece = vec![0; BLOCK / 3];
        let mut chunk = blocks.gather(0);
        assert!(chunk.try_enlarge());
        for _ in 0..3 {
            assert_eq!(chunk.take(&piece), piece.len());
            assert!(chunk.filled[0].capacity() <= BLOCK);
        }
        let at = chunk.filled[0].as_ptr();
        drop(chunk);
        let mut chunk = blocks.gather(0);
        chunk.take(b"a");
        assert!(chunk.try_enlarge());
        assert_eq!(chunk.take(b"b"), 1);
        assert_eq!(
            (chunk.filled[0].as_ptr(), &chunk.filled[0][..]),
            (at, &b"ab"[..])
        );

        let many = (0..2 * blocks.max_spare).map(|_| vec![0; BLOCK]);
        chunk.filled.extend(many);
        drop(chunk);
        assert_eq!(blocks.spare().len(), blocks.max_spare);
    }
}
