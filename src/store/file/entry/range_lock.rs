//! Locks of byte ranges: one request at a time writes to a range, in this process and in others.

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{
            AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout, timeout_at},
};

use super::{Entry, ofd};
use crate::{lock::lock, span, store::StoreError};

/// The pause before a lock of another process is tried again: it grows from the first to the last.
const PAUSES: Range<Duration> = Duration::from_millis(1)..Duration::from_millis(25);

/// How long a request waits for a process that is appending to the journal. An append takes as long
/// as a sync. A process that is stopped holds the lock until it goes on or dies.
const APPENDING: Duration = Duration::from_secs(3);

/// How long a request waits for an append that has to end: as long as a commit takes.
const ENDING: Duration = Duration::from_secs(2);

/// How often an append looks whether another process has ended it.
const LOOK: Duration = Duration::from_millis(500);

/// Most bytes of a file. The system counts them in signed integers.
pub(in crate::store::file) const MAX_LENGTH: u64 = 1 << 62;

/// All bytes of a file, and one more position, which chunks without bytes lock.
const WHOLE: Range<u64> = 0..MAX_LENGTH + 1;

/// The right to write to a range, released when dropped.
#[derive(Debug)]
pub(in crate::store::file) struct RangeLock {
    entry: Arc<Entry>,
    holder: Arc<Holder>,
    /// Whether it is locked for other processes too.
    is_locked: bool,
    /// The epoch in which an append began.
    epoch: Option<u64>,
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
        let mut lock = {
            let mut holders = lock(&self.holders);
            if let Some(holder) = holders.iter().find(|other| overlap(&other.range, &range)) {
                return Ok(TryLock::HeldBy(Some(Arc::clone(holder))));
            }
            self.add_holder(&mut holders, range.clone())
        };
        if let Some(data) = &self.data {
            lock.is_locked = ofd::try_lock(data, range)?;
            if !lock.is_locked {
                return Ok(TryLock::HeldBy(None));
            }
        }
        Ok(TryLock::Locked(lock))
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

    /// Locks the whole file, so that it can be removed. Requests that are writing have to stop, and
    /// no other request of this process gets a range meanwhile.
    ///
    /// # Errors
    ///
    /// [`Busy`](StoreError::Busy) if they do not stop, or another process does not.
    pub(in crate::store::file) async fn lock_whole(
        self: &Arc<Self>,
        stall: Duration,
    ) -> Result<RangeLock, StoreError> {
        let deadline = Instant::now() + stall;
        let mut lock = self.add_holder(&mut lock(&self.holders), WHOLE);
        loop {
            let mut unlocked = std::pin::pin!(self.unlocked.notified());
            unlocked.as_mut().enable();
            if !self.supersede_others(&lock.holder) {
                break;
            }
            timeout_at(deadline, unlocked)
                .await
                .map_err(|_| StoreError::Busy)?;
        }
        if let Some(data) = &self.data {
            while !ofd::try_lock(data, WHOLE)? {
                // A request of another process cannot be superseded.
                wait_until(deadline).await?;
            }
            lock.is_locked = true;
        }
        Ok(lock)
    }

    /// Supersedes all other holders. Returns whether there are any.
    fn supersede_others(&self, holder: &Arc<Holder>) -> bool {
        let holders = lock(&self.holders);
        let others = holders.iter().filter(|other| !Arc::ptr_eq(other, holder));
        others.map(|other| other.supersede()).count() > 0
    }

    fn add_holder(
        self: &Arc<Self>,
        holders: &mut Vec<Arc<Holder>>,
        range: Range<u64>,
    ) -> RangeLock {
        let holder = Arc::new(Holder {
            range,
            pieces: AtomicU64::new(0),
            superseded: Notify::new(),
        });
        holders.push(Arc::clone(&holder));
        RangeLock {
            entry: Arc::clone(self),
            holder,
            is_locked: false,
            epoch: None,
        }
    }

    /// Ends the appends of this process, and waits until their bytes are recorded. Returns the turn
    /// of this request.
    ///
    /// # Errors
    ///
    /// [`Busy`](StoreError::Busy) if they do not end in time.
    pub(in crate::store::file) async fn end_appends(&self) -> Result<u64, StoreError> {
        let deadline = Instant::now() + ENDING;
        let (turn, older) = {
            let holders = lock(&self.holders);
            holders.iter().for_each(|holder| holder.supersede());
            (self.turn.fetch_add(1, SeqCst) + 1, holders.clone())
        };
        loop {
            let mut unlocked = std::pin::pin!(self.unlocked.notified());
            unlocked.as_mut().enable();
            let is_older = |it: &Arc<Holder>| older.iter().any(|older| Arc::ptr_eq(older, it));
            if !lock(&self.holders).iter().any(is_older) {
                return Ok(turn);
            }
            let ended = timeout_at(deadline, unlocked).await;
            ended.map_err(|_| StoreError::Busy)?;
        }
    }

    /// Locks the whole file for an append, which ends the appends before it.
    ///
    /// # Errors
    ///
    /// [`Busy`](StoreError::Busy) if they do not end in time.
    /// [`Superseded`](StoreError::Superseded) if a newer request has begun meanwhile.
    pub(in crate::store::file) async fn lock_to_append(
        self: &Arc<Self>,
    ) -> Result<RangeLock, StoreError> {
        let mut epoch = self.epoch();
        let turn = self.end_appends().await?;
        let deadline = Instant::now() + ENDING;
        let mut has_ended_others = false;
        loop {
            let mut unlocked = std::pin::pin!(self.unlocked.notified());
            unlocked.as_mut().enable();
            let tried = self.try_lock_range(WHOLE)?;
            // A request that has begun later does not know this one, unless it holds the lock.
            if self.turn.load(SeqCst) != turn {
                return Err(StoreError::Superseded);
            }
            match tried {
                TryLock::Locked(mut lock) => {
                    lock.epoch = Some(epoch);
                    return Ok(lock);
                }
                TryLock::HeldBy(Some(_)) => {
                    let freed = timeout_at(deadline, unlocked).await;
                    freed.map_err(|_| StoreError::Busy)?;
                }
                TryLock::HeldBy(None) if has_ended_others => wait_until(deadline).await?,
                TryLock::HeldBy(None) => {
                    epoch = self.end_other_processes().await?;
                    has_ended_others = true;
                }
            }
        }
    }

    /// Ends the append of another process, if there may be one.
    pub(in crate::store::file) async fn end_append_elsewhere(
        self: &Arc<Self>,
    ) -> Result<(), StoreError> {
        if let TryLock::HeldBy(None) = self.try_lock_range(WHOLE)? {
            self.end_other_processes().await?;
        }
        Ok(())
    }

    async fn end_other_processes(self: &Arc<Self>) -> Result<u64, StoreError> {
        let mut retries = Retries::default();
        loop {
            let entry = Arc::clone(self);
            let begin = span::spawn_blocking(move || entry.begin_epoch());
            match begin.await.map_err(StoreError::new)? {
                Err(StoreError::Busy) => retries.pause().await?,
                epoch => return epoch,
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
            return wait_until(deadline).await;
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

    /// The epoch in which an append began. `None` for chunks.
    pub(in crate::store::file) fn epoch(&self) -> Option<u64> {
        self.epoch
    }

    /// Completes when another request takes the range over.
    pub(in crate::store::file) async fn superseded(&self) {
        let superseded = || self.holder.superseded.notified();
        let Some(epoch) = self.epoch else {
            return superseded().await;
        };
        while timeout(LOOK, superseded()).await.is_err() {
            let entry = Arc::clone(&self.entry);
            // If it cannot be read now, it is read again, at the latest by the next commit.
            let look = span::spawn_blocking(move || entry.view().map(|_| entry.epoch()));
            if matches!(look.await, Ok(Ok(now)) if now != epoch) {
                return;
            }
        }
    }

    pub(in crate::store::file) fn count_piece(&self) {
        self.holder.pieces.fetch_add(1, Relaxed);
    }
}

impl Drop for RangeLock {
    fn drop(&mut self) {
        if let (Some(data), true) = (&self.entry.data, self.is_locked) {
            ofd::unlock(data, self.holder.range.clone());
        }
        lock(&self.entry.holders).retain(|holder| !Arc::ptr_eq(holder, &self.holder));
        self.entry.unlocked.notify_waiters();
    }
}

/// Repeats what another process does not allow yet, with pauses, and not without limit.
#[derive(Debug)]
pub(in crate::store::file) struct Retries {
    pause: Duration,
    deadline: Instant,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            pause: PAUSES.start,
            deadline: Instant::now() + APPENDING,
        }
    }
}

impl Retries {
    /// Waits before the next try.
    ///
    /// # Errors
    ///
    /// [`Busy`](StoreError::Busy) if there is no next try.
    pub(in crate::store::file) async fn pause(&mut self) -> Result<(), StoreError> {
        if Instant::now() >= self.deadline {
            return Err(StoreError::Busy);
        }
        tokio::time::sleep(self.pause).await;
        self.pause = (self.pause * 2).min(PAUSES.end);
        Ok(())
    }
}

/// Waits a moment.
///
/// # Errors
///
/// [`Busy`](StoreError::Busy) after the deadline.
async fn wait_until(deadline: Instant) -> Result<(), StoreError> {
    let mut retries = Retries {
        pause: PAUSES.end,
        deadline,
    };
    retries.pause().await
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
