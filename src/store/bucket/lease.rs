//! The exclusive right to deliver or to remove an upload, between servers.
//!
//! Leases of an upload have numbers. The one with the highest number is valid until a second object
//! says that it has ended, or until it was not renewed for the lease time. Then the server that
//! creates the object of the next number has the lease: the engine lets only one of them create it.
//!
//! Leases are renewed by a thread with a runtime of its own, because a handler may block the
//! threads of the runtime that serves it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::FuturesUnordered};
use tokio::{
    runtime::{self, Handle},
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{info::Info, inner::Inner, keys::parse_lease};
use crate::{
    lock::lock,
    model::upload::UploadId,
    store::{StoreError, StoreEvent, random_id},
};

const RELEASE_TRIES: u32 = 5;

/// How many copies of a request of a renewal are sent at most. See [`repeated`].
const MOST_COPIES: usize = 32;

/// How long it is remembered that another server has a lease.
const BUSY: Duration = Duration::from_millis(500);

/// The exclusive right to an upload. It is renewed while it lives. Dropping it releases it.
pub(super) struct Lease {
    pub(super) store: Arc<Inner>,
    pub(super) info: Arc<Info>,
    pub(super) term: Arc<Term>,
    renewal: Option<JoinHandle<()>>,
    has_ended: bool,
}

/// What a lease, its renewal and the handler know of its validity.
pub(super) struct Term {
    id: UploadId,
    unique_id: String,
    token: Bytes,
    /// How long a renewal is relied upon: less than the lease time, because engines tell the time
    /// in whole seconds.
    valid: Duration,
    state: Mutex<Renewed>,
    is_loss_told: AtomicBool,
    /// Held while it is renewed.
    renewing: tokio::sync::Mutex<()>,
}

#[derive(Clone, Copy)]
struct Renewed {
    number: u32,
    /// Before the request was sent.
    last: Instant,
    /// Another server has taken the lease, or the upload is settled or removed.
    is_lost: bool,
}

impl Term {
    fn state(&self) -> MutexGuard<'_, Renewed> {
        lock(&self.state)
    }

    /// Whether no other server can have the lease.
    pub(super) fn is_live(&self) -> bool {
        let now = *self.state();
        !now.is_lost && now.last.elapsed() < self.valid
    }

    fn set(&self, number: u32, last: Instant) {
        let is_lost = false;
        *self.state() = Renewed {
            number,
            last,
            is_lost,
        };
    }
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
        let renewals = renewals()?;
        let (token, last) = (Bytes::from(random_id()?), Instant::now());
        let acquired = self.acquire(info.id(), &info.unique_id, &token, None);
        let Some(number) = acquired.await? else {
            return Ok(None);
        };
        hold.keep();
        let is_lost = false;
        let term = Arc::new(Term {
            id: *info.id(),
            unique_id: info.unique_id.clone(),
            token,
            valid: self.lease - self.lease / 6,
            state: Mutex::new(Renewed {
                number,
                last,
                is_lost,
            }),
            is_loss_told: AtomicBool::new(false),
            renewing: tokio::sync::Mutex::default(),
        });
        let renewal = Arc::clone(self).keep_renewed(Arc::clone(&term));
        Ok(Some(Lease {
            store: Arc::clone(self),
            info: Arc::clone(info),
            term,
            renewal: Some(renewals.spawn(renewal)),
            has_ended: false,
        }))
    }

    /// Creates the object of the next lease, and returns its number. `None` if another server has
    /// the lease. `own` is the number of a lease of the caller, which has expired.
    pub(super) async fn acquire(
        &self,
        id: &UploadId,
        unique_id: &str,
        token: &Bytes,
        own: Option<u32>,
    ) -> Result<Option<u32>, StoreError> {
        // Before the objects are listed, because one that says so may be written meanwhile.
        let ended = self.ended_leases(unique_id);
        let number = match self.newest_lease(id, unique_id).await? {
            None => 0,
            Some(newest) => {
                let is_free = newest.has_ended
                    || own == Some(newest.number)
                    || ended.contains(&newest.number)
                    || self.has_expired(&newest).await?;
                if !is_free {
                    self.remember_busy(unique_id);
                    return Ok(None);
                }
                newest.number.saturating_add(1)
            }
        };
        let path = self.keys.lease(id, unique_id, number);
        if !self.engine.create(&path, token.clone().into()).await? {
            // This request may have created it all the same: see `Engine::create`.
            if self.engine.get(&path).await?.as_ref() != Some(token) {
                return Ok(None);
            }
        }
        Ok(Some(number))
    }

    async fn has_expired(&self, newest: &Newest) -> Result<bool, StoreError> {
        let now = self.clock.now(&self.engine, &self.keys).await?;
        let age = now.duration_since(newest.modified).unwrap_or_default();
        Ok(age > self.lease)
    }

    async fn newest_lease(
        &self,
        id: &UploadId,
        unique_id: &str,
    ) -> Result<Option<Newest>, StoreError> {
        let leases = self.keys.leases(id, unique_id);
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
        asked.is_some_and(|asked| asked.elapsed() < self.busy_for())
    }

    fn remember_busy(&self, unique_id: &str) {
        let mut leases = lock(&self.leases);
        let valid = self.busy_for();
        leases.busy.retain(|_, asked| asked.elapsed() < valid);
        leases.busy.insert(unique_id.to_owned(), Instant::now());
    }

    fn busy_for(&self) -> Duration {
        BUSY.min(self.lease / 60)
    }

    /// Renews a lease again and again. If the engine cannot be reached for longer than the lease
    /// time, this goes on: perhaps no other server has taken the lease.
    async fn keep_renewed(self: Arc<Self>, term: Arc<Term>) {
        let upload = term.id;
        let mut pause = self.lease / 3;
        loop {
            sleep(pause).await;
            pause = self.lease / 3;
            let error = match timeout(self.lease / 6, self.renew(&term)).await {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => return,
                Ok(Err(error)) => error,
                Err(elapsed) => StoreError::new(elapsed),
            };
            let told = Arc::clone(&term);
            self.tell_apart(move |store| {
                let error = &error;
                let event = StoreEvent::RenewalFailed { upload, error };
                store.events.tell(&event);
                if !told.is_live() {
                    store.tell_loss(&told);
                }
            });
            pause = self.lease / 12;
        }
    }

    /// Writes the object of a lease again, so that its date is new, unless it was just written. If
    /// the lease has expired, takes the next one. `false` if another server has the lease, or the
    /// upload has ended.
    async fn renew(self: &Arc<Self>, term: &Term) -> Result<bool, StoreError> {
        let _renewing = term.renewing.lock().await;
        let (Renewed { number, last, .. }, asked) = (*term.state(), Instant::now());
        let pause = self.lease / 60;
        let newest = || self.newest_lease(&term.id, &term.unique_id);
        let newest = repeated(pause, newest).await?;
        let is_newest = |newest: &Newest| newest.number == number && !newest.has_ended;
        if newest.as_ref().is_some_and(is_newest) && term.is_live() {
            if last.elapsed() < self.lease / 4 {
                return Ok(true);
            }
            let path = self.keys.lease(&term.id, &term.unique_id, number);
            repeated(pause, || self.engine.put(&path, term.token.clone())).await?;
            // If it was too late, another server may have taken the lease meanwhile.
            if term.is_live() {
                term.set(number, asked);
                return Ok(true);
            }
        }
        if newest.is_some() {
            let next = self.acquire(&term.id, &term.unique_id, &term.token, Some(number));
            if let Some(next) = next.await? {
                term.set(next, asked);
                return Ok(true);
            }
        }
        term.state().is_lost = true;
        self.tell_loss(term);
        Ok(false)
    }

    fn tell_loss(self: &Arc<Self>, term: &Term) {
        if !term.is_loss_told.swap(true, SeqCst) {
            let upload = term.id;
            let event = move |store: &Arc<Self>| {
                store.events.tell(&StoreEvent::ClaimLost { upload });
            };
            self.tell_apart(event);
        }
    }

    /// Tells something on a thread for blocking work: an observer that is slow must not keep the
    /// thread of all leases from renewing them.
    fn tell_apart(self: &Arc<Self>, tell: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let store = Arc::clone(self);
        tokio::task::spawn_blocking(move || tell(&store));
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
            sleep(Duration::from_millis(100 << n)).await;
        }
    }

    /// The leases of this process that have ended, and whose objects do not say so yet.
    fn ended_leases(&self, unique_id: &str) -> Vec<u32> {
        let leases = lock(&self.leases);
        let ended = leases.ended.iter();
        ended
            .filter(|(of, _)| of == unique_id)
            .map(|(_, number)| *number)
            .collect()
    }
}

/// The runtime that renews the leases of all stores of this process, on a thread of its own.
///
/// It is never shut down: a client of an engine may keep connections that it drives.
fn renewals() -> Result<Handle, StoreError> {
    static RUNTIME: Mutex<Option<Handle>> = Mutex::new(None);
    let mut started = lock(&RUNTIME);
    if let Some(handle) = &*started {
        return Ok(handle.clone());
    }
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("upload-leases".into())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    *started = Some(handle.clone());
    Ok(handle)
}

/// Sends a request, and sends it again, twice as many times after each `pause`, until one is
/// answered.
///
/// A connection of an HTTP client is driven by the runtime that opened it. If a handler blocks that
/// runtime, a request over an idle connection of the client is not answered. Each copy takes
/// another connection, until one has to be opened, which this runtime drives.
async fn repeated<T, F>(pause: Duration, request: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, StoreError>>,
{
    let mut copies = FuturesUnordered::new();
    loop {
        let more = copies.len().max(1).min(MOST_COPIES - copies.len());
        copies.extend((0..more).map(|_| request()));
        if let Ok(Some(answer)) = timeout(pause, copies.next()).await {
            return answer;
        }
    }
}

impl Lease {
    /// Whether it is still valid. Call it before anything that cannot be undone.
    pub(super) async fn is_valid(&self) -> Result<bool, StoreError> {
        let now = *self.term.state();
        if !now.is_lost && now.last.elapsed() < self.store.lease / 2 {
            return Ok(true);
        }
        self.confirm().await
    }

    /// The same, by asking the engine: the process may have been suspended without noticing it.
    pub(super) async fn confirm(&self) -> Result<bool, StoreError> {
        if self.term.state().is_lost {
            return Ok(false);
        }
        self.store.renew(&self.term).await
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
        let number = self.term.state().number;
        let (store, info) = (&self.store, &self.info);
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
            // Not on the current runtime, which may be shutting down. If the thread cannot be
            // started, other servers wait until the lease time is over.
            if let Ok(renewals) = renewals() {
                renewals.spawn(release);
            }
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("unique_id", &self.info.unique_id)
            .field("number", &self.term.state().number)
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
