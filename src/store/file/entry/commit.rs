//! Chunks become durable together: all that wait at the same time share two syncs, one of the data
//! and one of the journal.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, atomic::Ordering::SeqCst};

use super::{Entry, Event};
use crate::store::StoreError;

/// What waits for the next commit.
#[derive(Debug, Default)]
pub(super) struct Commits {
    waiting: Mutex<Vec<Waiting>>,
    /// Held by the one who does it for all.
    leading: Mutex<()>,
}

/// A chunk whose bytes are written.
#[derive(Debug)]
struct Waiting {
    events: Vec<Event>,
    failed_before: u64,
    outcome: Arc<OnceLock<Result<(), Arc<StoreError>>>>,
}

impl Entry {
    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        let waiting = self.commits.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }

    /// How many syncs of the data have failed so far: to be asked before bytes are written that
    /// [`commit`](Self::commit) shall make durable.
    pub(in crate::store::file) fn failed_syncs(&self) -> u64 {
        self.failed_syncs.load(SeqCst)
    }

    /// Makes written bytes durable, if the store is set to, and then writes down that they are
    /// there. `failed_before` is what [`failed_syncs`](Self::failed_syncs) said before they were
    /// written: when a sync fails the system tells one of those who wrote, but the bytes of all of
    /// them may be lost.
    pub(in crate::store::file) fn commit(
        &self,
        events: Vec<Event>,
        failed_before: u64,
    ) -> Result<(), StoreError> {
        let outcome = Arc::new(OnceLock::new());
        self.waiting().push(Waiting {
            events,
            failed_before,
            outcome: Arc::clone(&outcome),
        });
        let is_free = || self.commits.leading.try_lock().is_ok();
        self.disk.before_lock(is_free);
        let _leading = self.commits.leading.lock();
        if outcome.get().is_none() {
            let all = std::mem::take(&mut *self.waiting());
            self.commit_all(all);
        }
        match outcome.get() {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(match &**error {
                StoreError::Superseded => StoreError::Superseded,
                StoreError::Full(_) => StoreError::Full(Arc::clone(error).into()),
                _ => StoreError::new(Arc::clone(error)),
            }),
            None => Err(StoreError::new("a commit has panicked")),
        }
    }

    /// Makes an upload without any bytes durable, which has no record but that of its beginning.
    pub(in crate::store::file) fn commit_empty(&self) -> std::io::Result<()> {
        if !self.durable || self.total() > 0 {
            return Ok(());
        }
        let _appending = self.lock_journal()?;
        let end = self.state().end;
        self.sync_journal(end)
    }

    fn commit_all(&self, mut all: Vec<Waiting>) {
        let synced = self.sync_data().map_err(|e| Arc::new(e.into()));
        let failed = self.failed_syncs();
        let mut events = Vec::new();
        all.retain_mut(|chunk| {
            let error = match &synced {
                Err(error) => Arc::clone(error),
                Ok(()) if chunk.failed_before != failed => {
                    Arc::new(StoreError::new("a sync of another chunk has failed"))
                }
                Ok(()) => {
                    events.append(&mut chunk.events);
                    return true;
                }
            };
            let _ = chunk.outcome.set(Err(error));
            false
        });
        let outcome = match events.is_empty() {
            true => Ok(()),
            false => self.append(&events, false).map_err(Arc::new),
        };
        for chunk in all {
            let _ = chunk.outcome.set(outcome.clone());
        }
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let Some(data) = self.data.as_ref().filter(|_| self.durable) else {
            return Ok(());
        };
        self.disk
            .sync("sync-data", data)
            .inspect_err(|_| _ = self.failed_syncs.fetch_add(1, SeqCst))
    }
}
