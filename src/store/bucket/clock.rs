//! The clock of the engine. The clocks of servers differ, and objects are dated by the engine, so
//! all times in the bucket are by the engine's clock. They are translated when they are read and
//! written.

use std::{
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;

use super::{engine::Engine, keys::Keys};
use crate::{
    lock::lock,
    store::{StoreError, random_id},
};

/// How long a reading is used.
const VALID: Duration = Duration::from_secs(60);

/// Clocks that differ by less are the same: engines tell the time in whole seconds, and a reading
/// is late by the duration of a request.
const SAME: Duration = Duration::from_secs(3);

/// A sweep on another server may delete the object between two requests.
const TRIES: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Mutex<Option<Reading>>,
    offset: Mutex<Offset>,
    /// How many seconds the clock of this server is ahead.
    #[cfg(test)]
    pub(super) skew: std::sync::atomic::AtomicI64,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// By the engine's clock.
    time: SystemTime,
    at: Instant,
}

/// The difference between the engine's clock and that of this server.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Offset {
    /// How far the engine's clock is ahead. One of the two is zero.
    ahead: Duration,
    behind: Duration,
}

impl Clock {
    /// The time by the engine's clock. It may be late by the duration of a request.
    pub(super) async fn now(&self, engine: &Engine, keys: &Keys) -> Result<SystemTime, StoreError> {
        let last = *lock(&self.last);
        let reading = match last.filter(|reading| reading.at.elapsed() < VALID) {
            Some(reading) => reading,
            None => {
                let reading = read_clock(engine, keys).await?;
                *lock(&self.last) = Some(reading);
                reading
            }
        };
        let now = reading.time.checked_add(reading.at.elapsed());
        now.ok_or_else(|| StoreError::new("the engine's clock is out of range"))
    }

    /// The difference of the clocks now. It stays the same while neither clock jumps.
    pub(super) async fn offset(&self, engine: &Engine, keys: &Keys) -> Result<Offset, StoreError> {
        let now = self.now(engine, keys).await?;
        let local = self.local();
        let mut offset = lock(&self.offset);
        if difference(offset.to_engine(local), now) >= SAME {
            let (ahead, behind) = (now.duration_since(local), local.duration_since(now));
            *offset = Offset {
                ahead: ahead.unwrap_or_default(),
                behind: behind.unwrap_or_default(),
            };
        }
        Ok(*offset)
    }

    /// The time by the clock of this server.
    pub(super) fn local(&self) -> SystemTime {
        let now = SystemTime::now();
        #[cfg(test)]
        let now = {
            let skew = self.skew.load(std::sync::atomic::Ordering::Relaxed);
            let by = Duration::from_secs(skew.unsigned_abs());
            if skew < 0 { now - by } else { now + by }
        };
        now
    }
}

impl Offset {
    /// A time by the clock of this server, by that of the engine.
    pub(super) fn to_engine(self, time: SystemTime) -> SystemTime {
        shifted(time, self.ahead, self.behind)
    }

    /// A time by the engine's clock, by that of this server.
    pub(super) fn to_local(self, time: SystemTime) -> SystemTime {
        shifted(time, self.behind, self.ahead)
    }
}

/// A time that would be out of range stays as it is.
fn shifted(time: SystemTime, forward: Duration, back: Duration) -> SystemTime {
    let shifted = time.checked_add(forward);
    shifted
        .and_then(|time| time.checked_sub(back))
        .unwrap_or(time)
}

fn difference(a: SystemTime, b: SystemTime) -> Duration {
    a.duration_since(b).unwrap_or_else(|error| error.duration())
}

async fn read_clock(engine: &Engine, keys: &Keys) -> Result<Reading, StoreError> {
    for _ in 0..TRIES {
        let path = keys.scratch().join(random_id()?);
        engine.put(&path, Bytes::new()).await?;
        let at = Instant::now();
        let found = engine.head(&path).await;
        // If it fails, a sweep deletes the object.
        let _ = engine.delete(&path).await;
        if let Some(found) = found? {
            let time = found.modified;
            return Ok(Reading { time, at });
        }
    }
    Err(StoreError::new(
        "an object cannot be read after it was written",
    ))
}
