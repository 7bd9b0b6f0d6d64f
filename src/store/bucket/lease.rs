//! The exclusive right to deliver or to remove an upload, between servers.
//!
//! Leases of an upload have numbers. The one with the highest number is valid until a second object
//! says that it has ended, or until it was not renewed for the lease time. Then the server that
//! creates the object of the next number has the lease: the engine lets only one of them create it.

use std::{
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use tokio::task::JoinHandle;

use super::{info::Info, inner::Inner, keys::parse_lease};
use crate::{
    lock::lock,
    store::{StoreError, random_id},
};

const RELEASE_TRIES: u32 = 5;

/// The exclusive right to an upload. A task renews it. Dropping it releases it.
pub(super) struct Lease {
    pub(super) store: Arc<Inner>,
    pub(super) info: Arc<Info>,
    number: u32,
    renewed: Arc<Renewed>,
    renewal: Option<JoinHandle<()>>,
    has_ended: bool,
}

#[derive(Debug)]
struct Renewed {
    last: Mutex<Instant>,
    /// Another server has taken the lease, or the upload is settled or removed.
    lost: AtomicBool,
}

/// The lease with the highest number.
struct Newest {
    number: u32,
    has_ended: bool,
    modified: SystemTime,
}

impl Inner {
    /// Takes the lease of an upload. `None` if another request or server has it.
    pub(super) async fn take_lease(
        self: &Arc<Self>,
        info: &Arc<Info>,
    ) -> Result<Option<Lease>, StoreError> {
        let Some(hold) = Hold::take(self, &info.unique_id) else {
            return Ok(None);
        };
        let number = match self.newest_lease(info).await? {
            None => 0,
            Some(newest) => {
                let has_ended = newest.has_ended || self.has_ended(&info.unique_id, newest.number);
                if !has_ended {
                    let now = self.clock.now(&self.engine, &self.keys).await?;
                    let age = now.duration_since(newest.modified).unwrap_or_default();
                    if age <= self.lease {
                        self.remember_busy(&info.unique_id);
                        return Ok(None);
                    }
                }
                newest.number.saturating_add(1)
            }
        };
        let asked = Instant::now();
        let path = self.keys.lease(info.id(), &info.unique_id, number);
        let token = Bytes::from(random_id()?);
        if !self.engine.create(&path, token.clone().into()).await? {
            // This request may have created it all the same: see `Engine::create`.
            if self.engine.get(&path).await? != Some(token.clone()) {
                return Ok(None);
            }
        }
        hold.keep();
        let renewed = Arc::new(Renewed {
            last: Mutex::new(asked),
            lost: AtomicBool::new(false),
        });
        let renewal = Arc::clone(self).renew(Arc::clone(info), number, token, Arc::clone(&renewed));
        Ok(Some(Lease {
            store: Arc::clone(self),
            info: Arc::clone(info),
            number,
            renewed,
            renewal: Some(tokio::spawn(renewal)),
            has_ended: false,
        }))
    }

    async fn newest_lease(&self, info: &Info) -> Result<Option<Newest>, StoreError> {
        let leases = self.keys.leases(info.id(), &info.unique_id);
        let mut newest: Option<Newest> = None;
        let mut found = self.engine.list(&leases, None);
        while let Some(listed) = found.try_next().await? {
            let Some((number, has_ended)) = parse_lease(&listed.path) else {
                continue;
            };
            match &mut newest {
                Some(known) if known.number > number => {}
                Some(known) if known.number == number => {
                    known.has_ended |= has_ended;
                    if !has_ended {
                        known.modified = listed.modified;
                    }
                }
                other => {
                    *other = Some(Newest {
                        number,
                        has_ended,
                        modified: listed.modified,
                    });
                }
            }
        }
        Ok(newest)
    }

    /// Whether another server had the lease a moment ago. Requests that wait for a delivery ask
    /// often.
    pub(super) fn was_just_busy(&self, unique_id: &str) -> bool {
        let leases = lock(&self.leases);
        let asked = leases.busy.get(unique_id);
        asked.is_some_and(|asked| asked.elapsed() < self.lease / 60)
    }

    fn remember_busy(&self, unique_id: &str) {
        let mut leases = lock(&self.leases);
        let valid = self.lease / 60;
        leases.busy.retain(|_, asked| asked.elapsed() < valid);
        leases.busy.insert(unique_id.to_owned(), Instant::now());
    }

    /// Writes the object of a lease again and again, so that its date is new.
    async fn renew(
        self: Arc<Self>,
        info: Arc<Info>,
        number: u32,
        token: Bytes,
        renewed: Arc<Renewed>,
    ) {
        let path = self.keys.lease(info.id(), &info.unique_id, number);
        loop {
            tokio::time::sleep(self.lease / 3).await;
            let asked = Instant::now();
            match self.newest_lease(&info).await {
                Ok(Some(newest)) if newest.number == number => {}
                // Try again later: it may still be valid.
                Err(_) => continue,
                Ok(_) => return renewed.lost.store(true, SeqCst),
            }
            if self.engine.put(&path, token.clone()).await.is_ok() {
                *lock(&renewed.last) = asked;
            }
        }
    }

    /// Tells other servers that a lease has ended. If it fails, they wait until the lease time is
    /// over.
    async fn release(self: Arc<Self>, info: Arc<Info>, number: u32) {
        let path = self.keys.free(info.id(), &info.unique_id, number);
        for n in 0..RELEASE_TRIES {
            if self.engine.put(&path, Bytes::new()).await.is_ok() {
                let name = (info.unique_id.clone(), number);
                lock(&self.leases).ended.remove(&name);
                return;
            }
            tokio::time::sleep(Duration::from_millis(100 << n)).await;
        }
    }

    fn has_ended(&self, unique_id: &str, number: u32) -> bool {
        let name = (unique_id.to_owned(), number);
        lock(&self.leases).ended.contains(&name)
    }
}

impl Lease {
    /// Whether it is still valid. Call it before anything that cannot be undone.
    pub(super) async fn is_valid(&self) -> Result<bool, StoreError> {
        if self.renewed.lost.load(SeqCst) {
            return Ok(false);
        }
        let last = *lock(&self.renewed.last);
        if last.elapsed() < self.store.lease / 2 {
            return Ok(true);
        }
        // The process was suspended, or the engine does not answer in time.
        let newest = self.store.newest_lease(&self.info).await?;
        Ok(newest.is_some_and(|newest| newest.number == self.number))
    }

    /// Releases it, and waits until other servers can take it.
    pub(super) async fn give_back(&mut self) {
        if let Some(release) = self.end(true) {
            release.await;
        }
    }

    /// Ends it when the upload has ended, so that no other server can take it anyway. Waits for the
    /// renewal, which could write the object again.
    pub(super) async fn finish(&mut self) {
        self.end(false);
        if let Some(renewal) = self.renewal.take() {
            // An error: it was aborted.
            let _ = renewal.await;
        }
    }

    /// Ends it, and deletes its object, because the upload was gone before the lease was taken.
    pub(super) async fn discard(mut self) {
        let leases = self.store.keys.leases(self.info.id(), &self.info.unique_id);
        self.finish().await;
        // If it fails, a sweep deletes the object.
        let _ = self.store.engine.delete_below(&leases).await;
    }

    /// Returns the future that releases the lease, unless it has ended before.
    fn end(&mut self, give_back: bool) -> Option<impl Future<Output = ()> + Send + use<>> {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
        if std::mem::replace(&mut self.has_ended, true) {
            return None;
        }
        let (store, info, number) = (&self.store, &self.info, self.number);
        let mut leases = lock(&store.leases);
        leases.held.remove(&info.unique_id);
        if !give_back {
            return None;
        }
        leases.ended.insert((info.unique_id.clone(), number));
        Some(Arc::clone(store).release(Arc::clone(info), number))
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(release) = self.end(true) {
            // Without a runtime other servers wait until the lease time is over.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(release);
            }
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("unique_id", &self.info.unique_id)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Keeps other requests of this process from asking for the same lease.
struct Hold<'a> {
    store: &'a Inner,
    unique_id: &'a str,
    keep: bool,
}

impl<'a> Hold<'a> {
    fn take(store: &'a Inner, unique_id: &'a str) -> Option<Self> {
        let is_new = lock(&store.leases).held.insert(unique_id.to_owned());
        // Not `then_some`: dropping one that was not kept ends the hold of the other request.
        is_new.then(|| Self {
            store,
            unique_id,
            keep: false,
        })
    }

    /// The lease ends the hold.
    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        if !self.keep {
            lock(&self.store.leases).held.remove(self.unique_id);
        }
    }
}
