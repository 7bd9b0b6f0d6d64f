//! Makes chunks durable together: all chunks that wait at the same time share two syncs, one of the
//! data and one of the journal.

use std::sync::{Arc, Mutex, OnceLock, atomic::Ordering::SeqCst};

use super::{Entry, Event};
use crate::{lock::lock, store::StoreError};

/// Chunks that wait for the next commit.
#[derive(Debug, Default)]
pub(super) struct Commits {
    waiting: Mutex<Vec<Waiting>>,
    /// Held by the thread that commits for all of them.
    leading: Mutex<()>,
}

/// A chunk whose bytes are written.
#[derive(Debug)]
struct Waiting {
    events: Vec<Event>,
    failed_before: u64,
    /// The epoch of an append.
    epoch: Option<u64>,
    outcome: Arc<OnceLock<Result<(), Arc<StoreError>>>>,
}

impl Entry {
    /// How many syncs of the data have failed. Call it before writing the bytes for
    /// [`commit`](Self::commit).
    pub(in crate::store::file) fn failed_syncs(&self) -> u64 {
        self.failed_syncs.load(SeqCst)
    }

    /// Makes written bytes durable, if the store is set to, and then appends the events that record
    /// them.
    ///
    /// `failed_before` is what [`failed_syncs`](Self::failed_syncs) returned before the bytes were
    /// written. The system reports a failed sync to one of the writers only, but the bytes of all
    /// of them may be lost.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Self::append). After [`Busy`](StoreError::Busy) it can be called again.
    /// [`Superseded`](StoreError::Superseded) if `epoch` is given and another one has begun.
    pub(in crate::store::file) fn commit(
        &self,
        events: Vec<Event>,
        failed_before: u64,
        epoch: Option<u64>,
    ) -> Result<(), StoreError> {
        let outcome = Arc::new(OnceLock::new());
        lock(&self.commits.waiting).push(Waiting {
            events,
            failed_before,
            epoch,
            outcome: Arc::clone(&outcome),
        });
        let is_free = || self.commits.leading.try_lock().is_ok();
        self.disk.before_lock(is_free);
        let _leading = lock(&self.commits.leading);
        if outcome.get().is_none() {
            let all = std::mem::take(&mut *lock(&self.commits.waiting));
            self.commit_all(all);
        }
        match outcome.get() {
            Some(Ok(())) => Ok(()),
            Some(Err(error)) => Err(match &**error {
                StoreError::Superseded => StoreError::Superseded,
                StoreError::Busy => StoreError::Busy,
                StoreError::Full(_) => StoreError::Full(Arc::clone(error).into()),
                StoreError::Impossible(_) => StoreError::Impossible(Arc::clone(error).into()),
                _ => StoreError::new(Arc::clone(error)),
            }),
            None => Err(StoreError::new("a commit has panicked")),
        }
    }

    fn commit_all(&self, mut all: Vec<Waiting>) {
        // Without the sync if the append would fail: the caller tries again.
        let synced = match self.is_journal_free() {
            Ok(true) => self.sync_data().map_err(StoreError::from),
            Ok(false) => Err(StoreError::Busy),
            Err(error) => Err(error.into()),
        };
        let synced = synced.map_err(Arc::new);
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
            // Each outcome is set once.
            let _ = chunk.outcome.set(Err(error));
            false
        });
        // An append is alone: it has locked all of the upload.
        let epoch = all.iter().find_map(|chunk| chunk.epoch);
        let is_current = |entry: &Self| epoch.is_none_or(|epoch| epoch == entry.epoch());
        let outcome = if events.is_empty() {
            Ok(())
        } else {
            match self.append_if(&events, false, is_current) {
                Ok(true) => Ok(()),
                Ok(false) => Err(Arc::new(StoreError::Superseded)),
                Err(error) => Err(Arc::new(error)),
            }
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
