//! Limits what is stored to the free space of the file system, less a reserve, and less what other
//! bodies have reserved.

use std::{
    path::Path,
    sync::{Arc, Mutex},
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

/// How many inodes an upload takes: two files, a folder for them, and one for the finished file. A
/// tmpfs counts the second name of the finished file too.
const FILES: u64 = 5;

/// How long a reading of the free space is used, less what was written since. A reading takes tens
/// of microseconds, and a small chunk a hundred.
const FRESH: Duration = Duration::from_millis(100);

/// Several processes that share the folder do not see what the others have reserved, only what they
/// have written.
#[derive(Clone, Debug)]
pub(super) struct Room {
    /// How many bytes stay free. `None` is the default reserve. 0 turns the check off.
    reserve: Option<u64>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// What was free at this time, less what was written since.
    seen: Option<(Instant, Free)>,
    /// Bytes that are reserved and not written yet.
    reserved: u64,
}

impl Room {
    pub(super) fn new(reserve: Option<u64>) -> Self {
        Self {
            reserve,
            state: Arc::default(),
        }
    }

    /// A reservation of 0 bytes.
    pub(super) fn reservation(&self) -> Reserved {
        Reserved {
            room: self.clone(),
            bytes: 0,
        }
    }

    /// Whether there is room for a new upload of `bytes` in `dir`. The bytes are not reserved,
    /// because they may not arrive.
    pub(super) fn for_upload(&self, dir: &Path, bytes: u64) -> Result<(), StoreError> {
        self.grant(dir, FILES, bytes, 0)
    }

    fn is_off(&self) -> bool {
        self.reserve == Some(0)
    }

    fn grant(&self, dir: &Path, files: u64, wanted: u64, taken: u64) -> Result<(), StoreError> {
        if self.is_off() {
            return Ok(());
        }
        let mut state = lock(&self.state);
        let State { seen, reserved } = &mut *state;
        let fits = |free: Free| self.check(free, files, wanted, *reserved);
        if !seen.is_some_and(|(at, free)| at.elapsed() < FRESH && fits(free).is_ok()) {
            let now = Instant::now();
            *seen = disk::free(dir)?.map(|free| (now, free));
            seen.map_or(Ok(()), |(_, free)| fits(free))?;
        }
        if let Some(left) = seen.as_mut().and_then(|(_, free)| free.files.as_mut()) {
            *left = left.saturating_sub(files);
        }
        *reserved = reserved.saturating_add(taken);
        Ok(())
    }

    fn check(&self, free: Free, files: u64, bytes: u64, reserved: u64) -> Result<(), StoreError> {
        let full = |why: String| Err(StoreError::Full(why.into()));
        if let Some(left) = free.files.filter(|left| *left < files) {
            return full(format!("{files} files are needed, and {left} are free"));
        }
        let reserve = self.reserve.unwrap_or(RESERVE.min(free.total_bytes / 20));
        let kept = reserve.saturating_add(reserved);
        match free.bytes.checked_sub(kept) {
            Some(left) if left >= bytes => Ok(()),
            _ => full(format!(
                "{bytes} bytes are needed, {} are free, {reserved} are reserved by other bodies, \
                 and {reserve} have to stay free",
                free.bytes
            )),
        }
    }
}

/// Bytes that a body may write. What it has not written is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Reserved {
    room: Room,
    bytes: u64,
}

impl Reserved {
    /// Reserves `bytes` more in `dir`.
    pub(super) fn grow(&mut self, dir: &Path, bytes: u64) -> Result<(), StoreError> {
        self.room.grant(dir, 0, bytes, bytes)?;
        if !self.room.is_off() {
            self.bytes = self.bytes.saturating_add(bytes);
        }
        Ok(())
    }

    /// Turns a part of the reservation into usage.
    pub(super) fn written(&mut self, bytes: u64) {
        if self.room.is_off() {
            return;
        }
        self.give_back(bytes);
        if let Some((_, free)) = &mut lock(&self.room.state).seen {
            free.bytes = free.bytes.saturating_sub(bytes);
        }
    }

    fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let reserved = &mut lock(&self.room.state).reserved;
        *reserved = reserved.saturating_sub(bytes);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.give_back(self.bytes);
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
        is_granted(Room::new(reserve).check(free, 0, bytes, 0))
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
                is_granted(room.check(free, wanted, 9, 0)),
                expected,
                "{left:?}"
            );
        }
    }

    /// A room that was seen just now, however long the test takes.
    #[cfg(target_os = "linux")]
    fn seen(bytes: u64, files: u64) -> Room {
        let room = Room::new(Some(100));
        let later = Instant::now() + Duration::from_secs(3600);
        let free = Free {
            bytes,
            total_bytes: bytes,
            files: Some(files),
        };
        lock(&room.state).seen = Some((later, free));
        room
    }

    /// Bodies that arrive at the same time do not all get the same room, however slowly they come.
    #[cfg(target_os = "linux")]
    #[test]
    fn what_is_reserved_is_taken_until_it_is_given_back() {
        // No file system has room for it: what was seen decides, or nothing does.
        const LARGE: u64 = u64::MAX / 8;
        let dir = tempfile::tempdir().unwrap();
        let room = seen(7 * LARGE + 100, 2 * FILES - 1);
        let reserve = || {
            let mut reserved = room.reservation();
            is_granted(reserved.grow(dir.path(), 2 * LARGE)).then_some(reserved)
        };
        let mut bodies: Vec<_> = (0..3).filter_map(|_| reserve()).collect();
        assert_eq!(bodies.len(), 3);
        let is_full = |room: &Room| {
            // The file system is asked before a body is refused, and it has less.
            let seen = lock(&room.state).seen;
            let reserved = lock(&room.state).reserved;
            let room = Room::new(Some(100));
            *lock(&room.state) = State { seen, reserved };
            !is_granted(room.reservation().grow(dir.path(), 2 * LARGE))
        };
        assert!(is_full(&room));

        // What is written stays taken, and the rest is given back.
        bodies[0].written(LARGE);
        assert!(is_full(&room));
        assert_eq!(lock(&room.state).reserved, 5 * LARGE);
        bodies.remove(0);
        assert_eq!(lock(&room.state).reserved, 4 * LARGE);
        assert!(!is_full(&room));
        bodies.push(reserve().unwrap());
        assert!(is_full(&room));
        drop(bodies);
        assert_eq!(lock(&room.state).reserved, 0);
        // A new reading counts what was written itself.
        assert_eq!(lock(&room.state).seen.unwrap().1.bytes, 6 * LARGE + 100);

        // A new upload needs the room, and inodes, but reserves only these.
        room.for_upload(dir.path(), 6 * LARGE).unwrap();
        assert_eq!(lock(&room.state).reserved, 0);
        assert_eq!(lock(&room.state).seen.unwrap().1.files, Some(FILES - 1));
    }

    #[test]
    fn without_a_reserve_nothing_is_counted() {
        let room = Room::new(Some(0));
        let mut reserved = room.reservation();
        reserved.grow(Path::new("/nothing"), u64::MAX).unwrap();
        reserved.written(7);
        drop(reserved);
        assert_eq!(lock(&room.state).reserved, 0);
    }
}
