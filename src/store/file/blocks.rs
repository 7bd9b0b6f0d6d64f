//! Memory that bytes are gathered in before they are written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes of a block. Larger ones have the system look for larger pieces of free memory, which is
/// slow when it has few; smaller ones cost more calls.
pub(super) const BLOCK: usize = 256 << 10;

/// Blocks that are kept for the next chunk.
const SPARE: usize = 32;

/// Blocks that all chunks together may hold beyond the first one of each.
const EXTRA: usize = 16;

/// Bytes that all first blocks together may take: the more chunks are on their way, the smaller
/// their blocks are.
const FIRSTS: usize = 32 << 20;

/// The smallest block.
const SMALL: usize = 32 << 10;

/// Blocks of memory that were touched before: fresh memory costs more than all else that is done to
/// a byte.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    spare: Vec<Vec<u8>>,
    firsts: usize,
    extra: usize,
}

/// Bytes up to where a block ends.
pub(super) struct Room {
    pub(super) len: usize,
    /// It is that of a whole block.
    pub(super) is_whole: bool,
}

impl Blocks {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An empty block.
    pub(super) fn first(&self) -> Block {
        let mut shared = self.shared();
        shared.firsts += 1;
        self.take(&mut shared, false)
    }

    /// What fits into a block that has bytes up to `at` in the file: blocks end at multiples of
    /// their size there, which is cheaper to write.
    pub(super) fn room(&self, at: u64) -> Room {
        let size = self.shared().size();
        let used = (at % size as u64) as usize;
        Room {
            len: size - used,
            is_whole: used == 0,
        }
    }

    /// One more for who has one already, if there is enough for all.
    pub(super) fn extra(&self) -> Option<Block> {
        let mut shared = self.shared();
        if shared.extra == EXTRA {
            return None;
        }
        shared.extra += 1;
        Some(self.take(&mut shared, true))
    }

    fn take(&self, shared: &mut Shared, is_extra: bool) -> Block {
        Block {
            bytes: shared.spare.pop().unwrap_or_default(),
            is_extra,
            blocks: self.clone(),
        }
    }
}

impl Shared {
    /// The size of blocks now: a power of two.
    fn size(&self) -> usize {
        let share = FIRSTS / self.firsts.max(1);
        match share.checked_ilog2() {
            Some(log) => (1 << log).clamp(SMALL, BLOCK),
            None => SMALL,
        }
    }
}

/// A block, given back when dropped.
#[derive(Debug)]
pub(super) struct Block {
    pub(super) bytes: Vec<u8>,
    is_extra: bool,
    blocks: Blocks,
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        let mut shared = self.blocks.shared();
        match self.is_extra {
            true => shared.extra -= 1,
            false => shared.firsts -= 1,
        }
        if shared.spare.len() < SPARE {
            shared.spare.push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_used_again_and_bounded() {
        let blocks = Blocks::default();
        let mut first = blocks.first();
        first.bytes.extend_from_slice(&[1; 9]);
        let at = first.bytes.as_ptr();
        drop(first);
        let again = blocks.first();
        assert_eq!((again.bytes.as_ptr(), again.bytes.len()), (at, 0));

        let extra: Vec<_> = std::iter::from_fn(|| blocks.extra()).collect();
        assert_eq!(extra.len(), EXTRA);
        // Everybody gets a first one all the same.
        let firsts: Vec<_> = (0..SPARE).map(|_| blocks.first()).collect();
        assert_eq!(blocks.room(0).len, BLOCK);
        drop((extra, firsts));
        assert_eq!(blocks.shared().spare.len(), SPARE);
        assert!(blocks.extra().is_some());
    }

    #[test]
    fn the_more_blocks_the_smaller_they_are() {
        let blocks = Blocks::default();
        for (count, size) in [(1, BLOCK), (128, BLOCK), (129, BLOCK / 2), (5000, SMALL)] {
            let _firsts: Vec<_> = (0..count).map(|_| blocks.first()).collect();
            let room = blocks.room(0);
            assert_eq!((room.len, room.is_whole), (size, true), "{count}");
            let room = blocks.room(3 * size as u64 + 1);
            assert_eq!((room.len, room.is_whole), (size - 1, false), "{count}");
        }
    }
}
