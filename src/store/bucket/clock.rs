//! The clock of the engine. The clocks of servers differ, and objects are dated by the engine.

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

/// A sweep on another server may delete the object between two requests.
const TRIES: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Clock {
    last: Mutex<Option<Reading>>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// By the engine's clock.
    time: SystemTime,
    at: Instant,
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
