//! What this process remembers of uploads, and the locks of its requests.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::{Arc, Mutex, Weak},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{
    info::{Info, Turn},
    layout::FullSlots,
};
use crate::{lock::lock, model::upload::UploadId, store::StoreError};

/// How long to wait for the older append of this process, which is storing its bytes.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many uploads are remembered. Each takes a few kilobytes at most.
const CAPACITY: usize = 4096;

/// Remembers uploads that are being received, so that fewer requests are needed.
///
/// A full slot stays full, so what is remembered of an upload stays true. Parts that are lost are
/// the exception: see [`Known::forget`]. The upload itself can end on another server, so a request
/// reads the `info` object before it relies on the upload.
#[derive(Debug, Default)]
pub(super) struct Known {
    uploads: Mutex<Uploads>,
}

#[derive(Debug, Default)]
struct Uploads {
    by_id: HashMap<UploadId, Entry>,
    uses: u64,
}

#[derive(Debug)]
struct Entry {
    info: Arc<Info>,
    full: FullSlots,
    /// The newest turn that this process has seen.
    turn: Option<Turn>,
    last_use: u64,
}

impl Uploads {
    fn next_use(&mut self) -> u64 {
        self.uses += 1;
        self.uses
    }

    /// What is remembered of exactly this upload.
    fn entry_of(&mut self, info: &Info) -> Option<&mut Entry> {
        let entry = self.by_id.get_mut(info.id());
        entry.filter(|entry| entry.info.unique_id == info.unique_id)
    }
}

impl Known {
    pub(super) fn info(&self, id: &UploadId) -> Option<Arc<Info>> {
        let mut uploads = lock(&self.uploads);
        let now = uploads.next_use();
        let entry = uploads.by_id.get_mut(id)?;
        entry.last_use = now;
        Some(Arc::clone(&entry.info))
    }

    /// Remembers an upload that is being received, and forgets it in any other phase.
    pub(super) fn learn(&self, info: &Arc<Info>) {
        if !info.is_receiving() {
            return self.forget(info);
        }
        let mut uploads = lock(&self.uploads);
        let last_use = uploads.next_use();
        if let Some(entry) = uploads.entry_of(info) {
            entry.last_use = last_use;
            return;
        }
        let by_id = &mut uploads.by_id;
        if by_id.len() >= CAPACITY && !by_id.contains_key(info.id()) {
            // Forget the half that was not used for longest.
            let mut uses: Vec<_> = by_id.values().map(|entry| entry.last_use).collect();
            let (_, middle, _) = uses.select_nth_unstable(CAPACITY / 2);
            let middle = *middle;
            by_id.retain(|_, entry| entry.last_use > middle);
        }
        let entry = Entry {
            info: Arc::clone(info),
            full: FullSlots::default(),
            turn: None,
            last_use,
        };
        by_id.insert(*info.id(), entry);
    }

    pub(super) fn forget(&self, info: &Info) {
        let mut uploads = lock(&self.uploads);
        if uploads.entry_of(info).is_some() {
            uploads.by_id.remove(info.id());
        }
    }

    pub(super) fn turn(&self, info: &Info) -> Option<Turn> {
        let mut uploads = lock(&self.uploads);
        uploads.entry_of(info)?.turn.clone()
    }

    pub(super) fn set_turn(&self, info: &Info, turn: &Turn) {
        if let Some(entry) = lock(&self.uploads).entry_of(info) {
            let is_newer = |known: &Turn| known.number < turn.number;
            if entry.turn.as_ref().is_none_or(is_newer) {
                entry.turn = Some(turn.clone());
            }
        }
    }

    pub(super) fn full(&self, info: &Info) -> FullSlots {
        let mut uploads = lock(&self.uploads);
        let entry = uploads.entry_of(info);
        entry.map(|entry| entry.full.clone()).unwrap_or_default()
    }

    pub(super) fn set_full(&self, info: &Info, slots: impl IntoIterator<Item = usize>) {
        if let Some(entry) = lock(&self.uploads).entry_of(info) {
            slots.into_iter().for_each(|slot| entry.full.insert(slot));
        }
    }
}

/// One lock for each key that is in use.
#[derive(Debug)]
pub(super) struct Locks<K, L> {
    used: Mutex<HashMap<K, Weak<L>>>,
}

impl<K, L> Default for Locks<K, L> {
    fn default() -> Self {
        Self {
            used: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash, L: Default> Locks<K, L> {
    pub(super) fn of(&self, key: K) -> Arc<L> {
        let mut used = lock(&self.used);
        if let Some(found) = used.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        // Remove unused locks before the map grows.
        if used.len() == used.capacity() {
            used.retain(|_, lock| lock.strong_count() > 0);
        }
        let new = Arc::new(L::default());
        used.insert(key, Arc::downgrade(&new));
        new
    }
}

/// The appends of an upload in this process.
#[derive(Debug, Default)]
pub(super) struct Appends {
    /// The number of the newest request.
    newest: watch::Sender<u64>,
    running: tokio::sync::Mutex<()>,
}

impl Appends {
    /// Ends the appends that have begun. Returns the number of the new request.
    pub(super) fn begin(&self) -> u64 {
        let mut number = 0;
        self.newest.send_modify(|newest| {
            *newest += 1;
            number = *newest;
        });
        number
    }

    /// Waits until the bytes of the append that has ended are durable.
    pub(super) async fn run(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, StoreError> {
        let running = tokio::time::timeout(PATIENCE, self.running.lock()).await;
        running.map_err(|_| StoreError::Busy)
    }

    /// Waits without an end, and without ending what runs.
    pub(super) async fn run_next(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.running.lock().await
    }

    pub(super) fn is_superseded(&self, request: u64) -> bool {
        *self.newest.borrow() > request
    }

    pub(super) async fn superseded(&self, request: u64) {
        // It fails only if the sender is gone.
        let _ = self
            .newest
            .subscribe()
            .wait_for(|newest| *newest > request)
            .await;
    }
}

/// What this process knows of leases without a request. Uploads are named by their unique ids.
#[derive(Debug, Default)]
pub(super) struct Leases {
    /// Uploads whose lease a request of this process has, or is asking for.
    pub(super) held: HashSet<String>,
    /// Uploads whose lease another server has, and when the engine was asked.
    pub(super) busy: HashMap<String, Instant>,
    /// Leases of this process that have ended, and whose objects do not say so yet.
    pub(super) ended: HashSet<(String, u32)>,
}
