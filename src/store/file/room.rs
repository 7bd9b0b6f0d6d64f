//! How much may be stored: what is free in the file system, less a reserve.

use std::path::Path;

use super::disk::{self, Free};
use crate::store::StoreError;

/// The most that is kept free if nothing else is asked for. It is less on small file systems.
const MOST: u64 = 1 << 30;

/// What an upload creates: two files, a folder for them, and one for the finished file.
const FILES: u64 = 4;

/// A look at it costs about as much as one at a file: a microsecond, where a chunk takes hundreds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Room {
    /// How many bytes are to stay free; `None` for the default, 0 for no look at all.
    pub(super) reserve: Option<u64>,
}

impl Room {
    /// Whether so many bytes more may be stored in `dir`.
    pub(super) fn for_bytes(self, dir: &Path, bytes: u64) -> Result<(), StoreError> {
        match self.look(dir)? {
            Some(free) => self.check_bytes(free, bytes),
            None => Ok(()),
        }
    }

    /// Whether a new upload of so many bytes may begin in `dir`.
    pub(super) fn for_upload(self, dir: &Path, bytes: u64) -> Result<(), StoreError> {
        let Some(free) = self.look(dir)? else {
            return Ok(());
        };
        if let Some(files) = free.files.filter(|files| *files < FILES) {
            let why = format!("{files} files can be created, but an upload takes {FILES}");
            return Err(StoreError::Full(why.into()));
        }
        self.check_bytes(free, bytes)
    }

    fn look(self, dir: &Path) -> Result<Option<Free>, StoreError> {
        match self.reserve {
            Some(0) => Ok(None),
            _ => Ok(disk::free(dir)?),
        }
    }

    fn check_bytes(self, free: Free, bytes: u64) -> Result<(), StoreError> {
        let reserve = self.reserve.unwrap_or(MOST.min(free.total_bytes / 20));
        if free.bytes.saturating_sub(reserve) >= bytes && free.bytes >= reserve {
            return Ok(());
        }
        Err(StoreError::Full(
            format!(
                "{bytes} bytes are wanted, {} are free, and {reserve} of them are the reserve",
                free.bytes
            )
            .into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn may(reserve: Option<u64>, free: u64, total: u64, bytes: u64) -> bool {
        let free = Free {
            bytes: free,
            total_bytes: total,
            files: None,
        };
        match (Room { reserve }).check_bytes(free, bytes) {
            Ok(()) => true,
            Err(StoreError::Full(_)) => false,
            Err(error) => panic!("{error:?}"),
        }
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
}
