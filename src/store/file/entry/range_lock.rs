//! Locks of byte ranges: one request at a time writes to a range, in this process and in others.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{Entry, ofd};
use crate::{lock::lock, store::StoreError};

/// How long to wait before a lock of another process is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Most bytes of a file. The system counts them in signed integers.
pub(in crate::store::file) const MAX_LENGTH: u64 = 1 << 62;

/// All bytes of a file, and one more position, which chunks without bytes lock.
const WHOLE: Range<u64> = 0..MAX_LENGTH + 1;

/// The right to write to a range, released when dropped.
#[derive(Debug)]
pub(in crate::store::file) struct RangeLock {
    entry: Arc<Entry>,
    holder: Arc<Holder>,
}

/// A request of this process that has locked a range.
#[derive(Debug)]
pub(in crate::store::file) struct Holder {
    range: Range<u64>,
    /// How many pieces of the body have arrived.
    pieces: AtomicU64,
    superseded: Notify,
}

impl Holder {
    /// Tells the request to give its range to another one.
    pub(in crate::store::file) fn supersede(&self) {
        self.superseded.notify_one();
    }
}

pub(in crate::store::file) enum TryLock {
    Locked(RangeLock),
    /// Another request has locked a part of the range. `None` if that is in another process.
    HeldBy(Option<Arc<Holder>>),
}

impl Entry {
    /// Locks a range, unless another request has locked a part of it.
    pub(in crate::store::file) fn try_lock_range(
        self: &Arc<Self>,
        range: Range<u64>,
    ) -> io::Result<TryLock> {
        let range = if range.is_empty() {
            MAX_LENGTH..MAX_LENGTH + 1
        } else {
            range
        };
        let mut holders = lock(&self.holders);
        if let Some(holder) = holders.iter().find(|other| overlap(&other.range, &range)) {
            return Ok(TryLock::HeldBy(Some(Arc::clone(holder))));
        }
        if let Some(data) = &self.data {
            if !ofd::try_lock(data, range.clone())? {
                return Ok(TryLock::HeldBy(None));
            }
        }
        let holder = Arc::new(Holder {
            range,
            pieces: AtomicU64::new(0),
            superseded: Notify::new(),
        });
        holders.push(Arc::clone(&holder));
        Ok(TryLock::Locked(RangeLock {
            entry: Arc::clone(self),
            holder,
        }))
    }

    /// Locks the whole file, so that it can be removed, unless a request is writing.
    pub(in crate::store::file) fn try_lock_whole(
        self: &Arc<Self>,
    ) -> io::Result<Option<RangeLock>> {
        Ok(match self.try_lock_range(WHOLE)? {
            TryLock::Locked(lock) => Some(lock),
            TryLock::HeldBy(_) => None,
        })
    }

    /// Locks the whole file, so that it can be removed. Requests that are writing have to stop.
    pub(in crate::store::file) async fn lock_whole(
        self: &Arc<Self>,
        stall: Duration,
    ) -> Result<RangeLock, StoreError> {
        lock(&self.holders)
            .iter()
            .for_each(|holder| holder.supersede());
        let deadline = Instant::now() + stall * 2;
        loop {
            match self.try_lock_range(WHOLE)? {
                TryLock::Locked(lock) => return Ok(lock),
                TryLock::HeldBy(holder) => self.wait_for(holder, stall, deadline).await?,
            }
        }
    }

    /// Waits until locking the range may succeed. Supersedes the holder if its body yields nothing
    /// for as long as `stall`.
    pub(in crate::store::file) async fn wait_for(
        &self,
        holder: Option<Arc<Holder>>,
        stall: Duration,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let Some(holder) = holder else {
            // A request of another process cannot be superseded.
            if Instant::now() > deadline {
                return Err(StoreError::new("another process is writing to this range"));
            }
            tokio::time::sleep(RETRY).await;
            return Ok(());
        };
        let mut unlocked = std::pin::pin!(self.unlocked.notified());
        unlocked.as_mut().enable();
        let pieces = holder.pieces.load(Relaxed);
        let is_held = lock(&self.holders)
            .iter()
            .any(|other| Arc::ptr_eq(other, &holder));
        if is_held
            && timeout(stall, unlocked).await.is_err()
            && holder.pieces.load(Relaxed) == pieces
        {
            holder.supersede();
        }
        Ok(())
    }
}

impl RangeLock {
    pub(in crate::store::file) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Completes when another request takes the range over.
    pub(in crate::store::file) async fn superseded(&self) {
        self.holder.superseded.notified().await;
    }

    pub(in crate::store::file) fn count_piece(&self) {
        self.holder.pieces.fetch_add(1, Relaxed);
    }
}

impl Drop for RangeLock {
    fn drop(&mut self) {
        if let Some(data) = &self.entry.data {
            ofd::unlock(data, self.holder.range.clone());
        }
        lock(&self.entry.holders).retain(|holder| !Arc::ptr_eq(holder, &self.holder));
        self.entry.unlocked.notify_waiters();
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
