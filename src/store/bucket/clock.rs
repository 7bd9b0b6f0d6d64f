//! What time it is by the store: servers' clocks differ, and what is there is dated by it.

use std::{
    sync::Mutex,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;

use super::{bucket::Bucket, keys::Keys, known::lock};
use crate::store::{StoreError, random_id};

/// How long a reading counts.
const VALID: Duration = Duration::from_secs(60);

/// How often to try: another server may sweep at that very moment, with a limit that spares nothing.
const TRIES: usize = 3;

#[derive(Debug, Default)]
pub(super) struct Clock {
    read: Mutex<Option<Reading>>,
}

#[derive(Clone, Copy, Debug)]
struct Reading {
    /// By the store.
    time: SystemTime,
    at: Instant,
}

impl Clock {
    /// The time by the store's clock. It may be a little behind, by what a request takes.
    pub(super) async fn now(&self, bucket: &Bucket, keys: &Keys) -> Result<SystemTime, StoreError> {
        let read = *lock(&self.read);
        let reading = match read.filter(|reading| reading.at.elapsed() < VALID) {
            Some(reading) => reading,
            None => {
                let reading = read_clock(bucket, keys).await?;
                *lock(&self.read) = Some(reading);
                reading
            }
        };
        Ok(reading.time + reading.at.elapsed())
    }
}

async fn read_clock(bucket: &Bucket, keys: &Keys) -> Result<Reading, StoreError> {
    for _ in 0..TRIES {
        let path = keys.scratch().join(random_id()?);
        bucket.put(&path, Bytes::new()).await?;
        let at = Instant::now();
        let found = bucket.head(&path).await;
        // What stays there is swept.
        let _ = bucket.delete(&path).await;
        if let Some(found) = found? {
            let time = found.modified;
            return Ok(Reading { time, at });
        }
    }
    Err(StoreError::new("what was written cannot be read back"))
}
