//! A clock that does not jump, to measure how old uploads are.

use std::time::{Duration, Instant, SystemTime};

/// A difference to the clock of the system that is no jump.
const TOLERANCE: Duration = Duration::from_secs(60);

/// Between two runs of a store at most this much time passes: the clock of the system may have
/// jumped, and clients of a server that was down had no time to go on.
const PAUSE: Duration = Duration::from_secs(60 * 60);

/// The time as a store has experienced it.
///
/// If the clock of the system jumps ahead, this one goes on steadily, so uploads do not become old
/// at once. If that clock jumps back, this one does too: uploads that are touched then are not old.
#[derive(Debug)]
pub(super) struct Clock {
    /// What the time was `at` this moment.
    time: SystemTime,
    at: Instant,
}

impl Default for Clock {
    fn default() -> Self {
        Self::new(SystemTime::now(), None)
    }
}

impl Clock {
    /// `system` is the clock of the system, and `seen` when an earlier run was last active, by this
    /// clock.
    pub(super) fn new(system: SystemTime, seen: Option<SystemTime>) -> Self {
        let time = match seen {
            // An earlier clock of the system is wrong, or was wrong before. The earlier of the two
            // counts, until that of the system has caught up.
            Some(seen) => seen.max(system.min(later(seen, PAUSE))),
            None => system,
        };
        let at = Instant::now();
        Self { time, at }
    }

    /// The time, if that of the system is `system`.
    pub(super) fn now(&self, system: SystemTime) -> SystemTime {
        let steady = later(self.time, self.at.elapsed());
        match system.duration_since(steady) {
            Ok(ahead) if ahead > TOLERANCE => steady,
            _ => system,
        }
    }

    /// A time of the clock of the system by this one, if the system now has the time `system`.
    pub(super) fn of(&self, time: SystemTime, system: SystemTime) -> SystemTime {
        let ahead = system.duration_since(self.now(system)).unwrap_or_default();
        time.checked_sub(ahead).unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// The same time if the system cannot represent the later one.
fn later(time: SystemTime, by: Duration) -> SystemTime {
    time.checked_add(by).unwrap_or(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Expiry;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn a_jump_makes_nothing_older() {
        let start = SystemTime::now();
        let of_a_sweep = |clock: &Clock, system: SystemTime| {
            let expiry = Expiry {
                abandoned_before: Some(system - 7 * DAY),
                undelivered_before: None,
                records_before: system,
            };
            expiry.by(clock, system)
        };
        let about = |found: SystemTime, expected: SystemTime| {
            let difference = found.duration_since(expected).unwrap_or_default();
            assert!(
                found >= expected && difference < TOLERANCE,
                "{difference:?}"
            );
        };
        // When the earlier run ended, the clock of the system, and the clock that counts.
        for (seen, system, now) in [
            (None, start, start),
            (Some(start), start, start),
            (Some(start), start + PAUSE / 2, start + PAUSE / 2),
            // It jumped ahead, or the server was down.
            (Some(start), start + 8 * DAY, start + PAUSE),
            // It jumped back.
            (Some(start), start - 8 * DAY, start - 8 * DAY),
        ] {
            let clock = Clock::new(system, seen);
            about(clock.now(system), now);
            let expiry = of_a_sweep(&clock, system);
            about(expiry.abandoned_before.unwrap(), now - 7 * DAY);
            about(expiry.records_before, now);
            assert_eq!(expiry.undelivered_before, None);
            // It jumps while the store is open.
            for jump in [DAY, 8 * DAY, 10_000 * DAY] {
                let steady = start.max(now);
                about(clock.now(start.max(system) + jump), steady);
                let expiry = of_a_sweep(&clock, start.max(system) + jump);
                about(expiry.abandoned_before.unwrap(), steady - 7 * DAY);
                let back = start - jump;
                assert_eq!(clock.now(back), back);
            }
        }
    }

    #[test]
    fn a_limit_in_the_future_is_for_everything() {
        let start = SystemTime::now();
        let clock = Clock::new(start + 8 * DAY, Some(start));
        let expiry = Expiry {
            abandoned_before: Some(start + 9 * DAY),
            undelivered_before: Some(start + 9 * DAY),
            records_before: start + 9 * DAY,
        };
        let found = expiry.by(&clock, start + 8 * DAY);
        assert_eq!(found.abandoned_before, expiry.abandoned_before);
        assert_eq!(found.undelivered_before, expiry.undelivered_before);
        assert_eq!(found.records_before, expiry.records_before);
    }
}
