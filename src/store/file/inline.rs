//! Decides whether bytes are written by the thread of the runtime that has received them, or by a
//! blocking thread. The first costs less, and their memory is still in the cache of the processor.

use std::{
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use crate::{lock::lock, store::disk};

/// A write that takes longer, and waits for something meanwhile, is slow.
const SLOW: Duration = Duration::from_millis(1);

/// After how many fast writes in a row bytes are written inline.
pub(super) const LEAST: u32 = 16;

/// The same if slow writes came again and again. After as many, it is the least again.
const MOST: u32 = 16 << 10;

/// How fast the recent writes to one file system were.
#[derive(Debug)]
pub(super) struct Inline {
    /// Whether the file system can be fast: others are never written to inline.
    is_local: bool,
    recent: Mutex<Recent>,
    /// Held by a thread of the runtime while it writes. Only one does at a time: a disk that hangs
    /// stops no other.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Recent {
    /// Fast writes since the last slow one.
    fast: u32,
    /// How many of them it takes.
    needed: u32,
}

impl Inline {
    pub(super) fn new(is_local: bool) -> Self {
        Self {
            is_local,
            recent: Mutex::new(Recent {
                fast: 0,
                needed: LEAST,
            }),
            turn: Mutex::default(),
        }
    }

    /// Whether recent writes were fast.
    pub(super) fn is_fast(&self) -> bool {
        self.is_local && lock(&self.recent).is_fast()
    }

    /// The right to write on a thread of the runtime.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, ()>> {
        // In this order, so that what the last one has found counts.
        let turn = self.turn.try_lock().ok()?;
        self.is_fast().then_some(turn)
    }

    /// Calls the file system, on any thread, and notes how fast it is.
    pub(super) fn timed<T>(&self, call: impl FnOnce() -> T) -> T {
        if !self.is_local {
            return call();
        }
        let (start, waits) = (Instant::now(), disk::waits());
        let done = call();
        // A thread that only waits for the processor, which others use, says nothing of the disk.
        let is_slow = start.elapsed() > SLOW && disk::waits() != waits;
        lock(&self.recent).note(is_slow);
        done
    }
}

impl Recent {
    fn is_fast(&self) -> bool {
        self.fast >= self.needed
    }

    fn note(&mut self, is_slow: bool) {
        if is_slow {
            if self.is_fast() {
                self.needed = (2 * self.needed).min(MOST);
            }
            self.fast = 0;
        } else {
            self.fast = self.fast.saturating_add(1);
            if self.fast >= MOST {
                self.needed = LEAST;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slow_write_needs_more_fast_ones() {
        let mut recent = Recent {
            fast: 0,
            needed: LEAST,
        };
        let mut needed = LEAST;
        while needed < MOST {
            for _ in 0..needed {
                assert!(!recent.is_fast());
                recent.note(false);
            }
            assert!(recent.is_fast());
            recent.note(true);
            needed *= 2;
            // More slow ones, written by blocking threads, change nothing.
            recent.note(false);
            recent.note(true);
        }
        for _ in 0..MOST {
            assert!(!recent.is_fast());
            recent.note(false);
        }
        assert_eq!(recent.needed, LEAST);
    }
}
