//! Who writes which range: one at a time, in this process and in others.

use std::{
    io,
    ops::Range,
    sync::{
        Arc, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, timeout},
};

use super::{Entry, lock};
use crate::store::StoreError;

/// How long to wait before a lock of another process is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// A range that is being written.
#[derive(Debug)]
pub(in crate::store::file) struct Flight {
    range: Range<u64>,
    /// Counts the pieces that have come.
    pieces: AtomicU64,
    superseded: Notify,
}

/// The right to write a range, given back when dropped.
#[derive(Debug)]
pub(in crate::store::file) struct Landing {
    entry: Arc<Entry>,
    flight: Arc<Flight>,
}

impl Entry {
    fn flights(&self) -> MutexGuard<'_, Vec<Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is worth another try to take off. A writer whose body brings nothing for
    /// `stall` has to give way.
    pub(in crate::store::file) async fn wait_behind(
        &self,
        holder: Option<Arc<Flight>>,
        stall: Duration,
        deadline: Instant,
    ) -> Result<(), StoreError> {
        let Some(holder) = holder else {
            // Another process cannot be told to give way.
            if Instant::now() > deadline {
                return Err(StoreError::new("another process is writing this range"));
            }
            tokio::time::sleep(RETRY).await;
            return Ok(());
        };
        let mut landed = std::pin::pin!(self.landed.notified());
        landed.as_mut().enable();
        let pieces = holder.pieces.load(Relaxed);
        let is_on_its_way = self.flights().iter().any(|f| Arc::ptr_eq(f, &holder));
        if is_on_its_way
            && timeout(stall, landed).await.is_err()
            && holder.pieces.load(Relaxed) == pieces
        {
            holder.superseded.notify_one();
        }
        Ok(())
    }

    /// Takes the whole file, so that it can be removed, unless somebody is writing.
    pub(in crate::store::file) fn try_ground(self: &Arc<Self>) -> io::Result<Option<Landing>> {
        match self.try_take_off(WHOLE)? {
            TakeOff::Clear(landing) => Ok(Some(landing)),
            _ => Ok(None),
        }
    }

    /// Takes the whole file from whoever is writing, so that it can be removed.
    pub(in crate::store::file) async fn ground(
        self: &Arc<Self>,
        stall: Duration,
    ) -> Result<Landing, StoreError> {
        self.flights()
            .iter()
            .for_each(|flight| flight.superseded.notify_one());
        let deadline = Instant::now() + stall * 2;
        loop {
            match self.try_take_off(WHOLE)? {
                TakeOff::Clear(landing) => return Ok(landing),
                TakeOff::Behind(holder) => self.wait_behind(holder, stall, deadline).await?,
            }
        }
    }

    /// Takes the right to write in `range`, unless somebody else has it.
    pub(in crate::store::file) fn try_take_off(
        self: &Arc<Self>,
        range: Range<u64>,
    ) -> io::Result<TakeOff> {
        let mut flights = self.flights();
        if let Some(holder) = flights.iter().find(|flight| overlap(&flight.range, &range)) {
            return Ok(TakeOff::Behind(Some(Arc::clone(holder))));
        }
        if let Some(data) = self.data.as_ref().filter(|_| range.start < range.end) {
            if !lock::try_lock(data, range.clone())? {
                return Ok(TakeOff::Behind(None));
            }
        }
        let pieces = AtomicU64::new(0);
        let flight = Arc::new(Flight {
            range,
            pieces,
            superseded: Notify::new(),
        });
        flights.push(Arc::clone(&flight));
        Ok(TakeOff::Clear(Landing {
            entry: Arc::clone(self),
            flight,
        }))
    }
}

/// All bytes that a file can have.
const WHOLE: Range<u64> = 0..1 << 62;

pub(in crate::store::file) enum TakeOff {
    Clear(Landing),
    /// Somebody else writes there; `None` is one in another process.
    Behind(Option<Arc<Flight>>),
}

impl Landing {
    pub(in crate::store::file) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Ends when another request has taken over.
    pub(in crate::store::file) async fn superseded(&self) {
        self.flight.superseded.notified().await;
    }

    pub(in crate::store::file) fn piece_came(&self) {
        self.flight.pieces.fetch_add(1, Relaxed);
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        if let Some(data) = self
            .entry
            .data
            .as_ref()
            .filter(|_| !self.flight.range.is_empty())
        {
            lock::unlock(data, self.flight.range.clone());
        }
        self.entry
            .flights()
            .retain(|flight| !Arc::ptr_eq(flight, &self.flight));
        self.entry.landed.notify_waiters();
    }
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
