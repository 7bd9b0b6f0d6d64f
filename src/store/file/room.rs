//! Limits what is stored to the free space of the file system, less a reserve.

use std::{
    path::Path,
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::{
    lock::lock,
    store::{
        StoreError,
        disk::{self, Free},
    },
};

/// The default reserve. It is less on small file systems.
const RESERVE: u64 = 1 << 30;

/// How many inodes an upload takes: two files, a folder for them, and one for the finished file.
const FILES: u64 = 4;

/// How long a reading of the free space is used, less what was granted since. A reading takes tens
/// of microseconds, and a small chunk a hundred.
const FRESH: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(super) struct Room {
    /// How many bytes stay free. `None` is the default reserve. 0 turns the check off.
    reserve: Option<u64>,
    /// What was free at this time, less what was granted since.
    seen: Mutex<Option<(Instant, Free)>>,
}

impl Room {
    pub(super) fn new(reserve: Option<u64>) -> Self {
        Self {
            reserve,
            seen: Mutex::default(),
        }
    }

    /// Grants `bytes` in `dir` to a chunk that writes them.
    pub(super) fn for_bytes(&self, dir: &Path, bytes: u64) -> Result<(), StoreError> {
        self.grant(dir, 0, bytes, bytes)
    }

    /// Whether there is room for a new upload of `bytes` in `dir`. The bytes are not granted,
    /// because they may not arrive.
    pub(super) fn for_upload(&self, dir: &Path, bytes: u64) -> Result<(), StoreError> {
        self.grant(dir, FILES, bytes, 0)
    }

    fn grant(&self, dir: &Path, files: u64, wanted: u64, taken: u64) -> Result<(), StoreError> {
        if self.reserve == Some(0) {
            return Ok(());
        }
        let take = |free: Free| Free {
            bytes: free.bytes.saturating_sub(taken),
            files: free.files.map(|left| left.saturating_sub(files)),
            ..free
        };
        let mut seen = lock(&self.seen);
        if let Some((at, free)) = &mut *seen {
            if at.elapsed() < FRESH && self.check(*free, files, wanted).is_ok() {
                *free = take(*free);
                return Ok(());
            }
        }
        let now = Instant::now();
        if let Some(free) = disk::free(dir)? {
            self.check(free, files, wanted)?;
            *seen = Some((now, take(free)));
        }
        Ok(())
    }

    fn check(&self, free: Free, files: u64, bytes: u64) -> Result<(), StoreError> {
        let full = |why: String| Err(StoreError::Full(why.into()));
        if let Some(left) = free.files.filter(|left| *left < files) {
            return full(format!("{files} files are needed, and {left} are free"));
        }
        let reserve = self.reserve.unwrap_or(RESERVE.min(free.total_bytes / 20));
        match free.bytes.checked_sub(reserve) {
            Some(left) if left >= bytes => Ok(()),
            _ => full(format!(
                "{bytes} bytes are needed, {} are free, and {reserve} have to stay free",
                free.bytes
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_granted(result: Result<(), StoreError>) -> bool {
        match result {
            Ok(()) => true,
            Err(StoreError::Full(_)) => false,
            Err(error) => panic!("{error:?}"),
        }
    }

    fn may(reserve: Option<u64>, free: u64, total: u64, bytes: u64) -> bool {
        let free = Free {
            bytes: free,
            total_bytes: total,
            files: None,
        };
        is_granted(Room::new(reserve).check(free, 0, bytes))
    }

    #[test]
    fn the_reserve_stays_free() {
        const GIB: u64 = 1 << 30;
        for (reserve, free, total, bytes, expected) in [
            (Some(100), 150, 1000, 50, true),
            (Some(100), 150, 1000, 51, false),
            (Some(100), 100, 1000, 0, true),
            (Some(100), 99, 1000, 0, false),
            (Some(1), u64::MAX, u64::MAX, u64::MAX, false),
            (Some(u64::MAX), u64::MAX, u64::MAX, 1, false),
            // 5 % of a small one, 1 GiB of a large one.
            (None, 100, 2000, 0, true),
            (None, 99, 2000, 0, false),
            (None, 100, 2000, 1, false),
            (None, 3 * GIB, 1000 * GIB, 2 * GIB, true),
            (None, 3 * GIB, 1000 * GIB, 2 * GIB + 1, false),
        ] {
            assert_eq!(
                may(reserve, free, total, bytes),
                expected,
                "{reserve:?} of {free} of {total}, {bytes}"
            );
        }
    }

    #[test]
    fn files_are_needed_too() {
        let room = Room::new(Some(1));
        for (left, wanted, expected) in [
            (Some(4), 4, true),
            (Some(3), 4, false),
            (Some(0), 0, true),
            (None, 4, true),
        ] {
            let free = Free {
                bytes: 100,
                total_bytes: 100,
                files: left,
            };
            assert_eq!(
                is_granted(room.check(free, wanted, 9)),
                expected,
                "{left:?}"
            );
        }
    }

    /// Chunks that arrive at the same time do not all get the same room.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_granted_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let room = Room::new(Some(1));
        let free = disk::free(dir.path()).unwrap().unwrap().bytes;
        // As if it had been seen just now, however long the test takes.
        let later = Instant::now() + Duration::from_secs(3600);
        let seen = Free {
            bytes: free,
            total_bytes: free,
            files: Some(2 * FILES - 1),
        };
        *room.seen.lock().unwrap() = Some((later, seen));
        let left = || room.seen.lock().unwrap().unwrap().1;
        room.for_bytes(dir.path(), free / 4).unwrap();
        assert_eq!(left().bytes, free - free / 4);
        room.for_upload(dir.path(), free / 2).unwrap();
        assert_eq!(left().bytes, free - free / 4);
        assert_eq!(left().files, Some(FILES - 1));
        // The free space is read again before a chunk is refused: nothing of that was stored.
        room.for_bytes(dir.path(), free / 8 * 7).unwrap();
        assert!(left().bytes < free / 4, "{:?}", left());
        assert!(!is_granted(room.for_bytes(dir.path(), free * 2)));
    }
}
