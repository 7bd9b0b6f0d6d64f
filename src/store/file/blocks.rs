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

/// Bytes that a chunk with a permit may hold, approximately.
const MUCH: usize = 1 << 20;

/// The least number of permits, if there are few processors.
const LARGE: usize = 4;

/// Blocks of memory that are reused: to touch fresh memory costs more than everything else that is
/// done to a byte.
#[derive(Clone, Debug)]
pub(super) struct Blocks {
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
    large: Arc<Semaphore>,
    max_spare: usize,
}

impl Default for Blocks {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let large = LARGE.max(2 * processors);
        Self {
            spare: Arc::default(),
            large: Arc::new(Semaphore::new(large)),
            max_spare: large * (MUCH / BLOCK),
        }
    }
}

impl Blocks {
    fn spare(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        lock(&self.spare)
    }

    /// The blocks of one chunk, which starts at offset `at` of the file.
    pub(super) fn gather(&self, at: u64) -> Gathered {
        Gathered {
            blocks: self.clone(),
            filled: Vec::new(),
            at,
            end: at,
            permit: None,
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
    permit: Option<OwnedSemaphorePermit>,
}

impl Gathered {
    pub(super) fn is_empty(&self) -> bool {
        self.at == self.end
    }

    /// Waits for a permit to hold more, until [`clear`](Self::clear). With a permit, do not wait
    /// for other chunks.
    pub(super) async fn enlarge(&mut self) {
        // The semaphore is never closed.
        self.permit = Arc::clone(&self.blocks.large).acquire_owned().await.ok();
        if let (Some(small), Some(mut large)) = (self.filled.last_mut(), self.blocks.spare().pop())
        {
            large.extend_from_slice(small);
            *small = large;
        }
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
        let (size, most) = if self.permit.is_some() {
            (BLOCK, MUCH)
        } else {
            (LITTLE, LITTLE)
        };
        while !rest.is_empty() {
            let used = (self.end % size as u64) as usize;
            if used == 0 || self.filled.is_empty() {
                if self.end - self.at >= most as u64 {
                    break;
                }
                let block = self.permit.as_ref().and_then(|_| self.blocks.spare().pop());
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
        self.permit = None;
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

    #[tokio::test]
    async fn blocks_end_at_multiples_of_their_size() {
        let blocks = Blocks::default();
        let mut chunk = blocks.gather(BLOCK as u64 - 5);
        let piece: Vec<u8> = (0..3 * BLOCK).map(|n| n as u8).collect();
        assert_eq!(chunk.take(&piece[..7]), 7);
        chunk.enlarge().await;
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

    #[tokio::test]
    async fn a_chunk_holds_much_only_with_a_permit() {
        let blocks = Blocks::default();
        let piece = vec![0; 2 * MUCH];
        let large = blocks.large.available_permits();
        let mut chunks: Vec<_> = (0..=large).map(|_| blocks.gather(0)).collect();
        for chunk in &mut chunks {
            assert_eq!(chunk.take(&piece), LITTLE);
            assert_eq!(chunk.take(&piece), 0);
        }
        let mut last = chunks.pop().unwrap();
        for chunk in &mut chunks {
            chunk.enlarge().await;
            assert_eq!(chunk.take(&piece), MUCH - LITTLE);
            assert_eq!(chunk.take(&piece), 0);
        }
        let mut waiting = Box::pin(last.enlarge());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        chunks[0].clear();
        assert_eq!(chunks[0].take(&piece), LITTLE);
        waiting.as_mut().await;
        drop(waiting);
        assert_eq!(last.take(&piece), MUCH - LITTLE);
    }

    #[tokio::test]
    async fn memory_is_used_again_and_bounded() {
        let blocks = Blocks::default();
        let piece = vec![0; BLOCK / 3];
        let mut chunk = blocks.gather(0);
        chunk.enlarge().await;
        for _ in 0..3 {
            assert_eq!(chunk.take(&piece), piece.len());
            assert!(chunk.filled[0].capacity() <= BLOCK);
        }
        let at = chunk.filled[0].as_ptr();
        drop(chunk);
        let mut chunk = blocks.gather(0);
        chunk.take(b"a");
        chunk.enlarge().await;
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
