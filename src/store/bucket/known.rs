//! What this process knows and does: facts that need not be asked for again, and who is busy with what.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use super::{info::Info, layout::Full};
use crate::store::UploadKey;

/// Uploads that are remembered. What is known of one takes at most some kilobytes.
const MOST: usize = 4096;

/// What is known of uploads that are received. Facts about an id only ever become true: that a slot is
/// full stays so. (The one exception says so itself: [`Known::forget`].) Whether the id is still that of
/// the upload is for the store to say.
#[derive(Debug, Default)]
pub(super) struct Known {
    uploads: Mutex<Uploads>,
}

#[derive(Debug, Default)]
struct Uploads {
    by_key: HashMap<UploadKey, Entry>,
    clock: u64,
}

#[derive(Debug)]
struct Entry {
    info: Arc<Info>,
    full: Full,
    used: u64,
}

impl Known {
    pub(super) fn info(&self, key: &UploadKey) -> Option<Arc<Info>> {
        let mut uploads = lock(&self.uploads);
        uploads.clock += 1;
        let now = uploads.clock;
        let entry = uploads.by_key.get_mut(key)?;
        entry.used = now;
        Some(Arc::clone(&entry.info))
    }

    /// Remembers an upload that is received; of another phase nothing need be known.
    pub(super) fn learn(&self, info: &Arc<Info>) {
        let mut uploads = lock(&self.uploads);
        if !info.is_receiving() {
            if !matches!(uploads.by_key.get(info.key()), Some(known) if known.info.id != info.id) {
                uploads.by_key.remove(info.key());
            }
            return;
        }
        uploads.clock += 1;
        let now = uploads.clock;
        if uploads.by_key.len() >= MOST && !uploads.by_key.contains_key(info.key()) {
            // Those that were not used for longest.
            let mut used: Vec<_> = uploads.by_key.values().map(|entry| entry.used).collect();
            let (_, middle, _) = used.select_nth_unstable(MOST / 2);
            let middle = *middle;
            uploads.by_key.retain(|_, entry| entry.used > middle);
        }
        match uploads.by_key.get_mut(info.key()) {
            Some(entry) if entry.info.id == info.id => entry.used = now,
            _ => {
                let entry = Entry {
                    info: Arc::clone(info),
                    full: Full::default(),
                    used: now,
                };
                uploads.by_key.insert(*info.key(), entry);
            }
        }
    }

    pub(super) fn forget(&self, info: &Info) {
        let mut uploads = lock(&self.uploads);
        if uploads
            .by_key
            .get(info.key())
            .is_some_and(|known| known.info.id == info.id)
        {
            uploads.by_key.remove(info.key());
        }
    }

    pub(super) fn full(&self, info: &Info) -> Full {
        let uploads = lock(&self.uploads);
        let entry = uploads.by_key.get(info.key());
        let entry = entry.filter(|entry| entry.info.id == info.id);
        entry.map(|entry| entry.full.clone()).unwrap_or_default()
    }

    pub(super) fn set_full(&self, info: &Info, slots: impl IntoIterator<Item = usize>) {
        let mut uploads = lock(&self.uploads);
        if let Some(entry) = uploads.by_key.get_mut(info.key()) {
            if entry.info.id == info.id {
                slots.into_iter().for_each(|slot| entry.full.insert(slot));
            }
        }
    }
}

/// One lock for each name that somebody uses.
#[derive(Debug)]
pub(super) struct Locks<K, L> {
    live: Mutex<HashMap<K, Weak<L>>>,
}

impl<K, L> Default for Locks<K, L> {
    fn default() -> Self {
        Self {
            live: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash, L: Default> Locks<K, L> {
    pub(super) fn of(&self, name: K) -> Arc<L> {
        let mut live = lock(&self.live);
        if let Some(found) = live.get(&name).and_then(Weak::upgrade) {
            return found;
        }
        // At times, so that what nobody uses does not add up.
        if live.len() == live.capacity() {
            live.retain(|_, lock| lock.strong_count() > 0);
        }
        let new = Arc::new(L::default());
        live.insert(name, Arc::downgrade(&new));
        new
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
