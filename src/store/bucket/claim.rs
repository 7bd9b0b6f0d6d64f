//! The right to deliver an upload, or to remove it: agreed upon by put-if-absent alone.
//!
//! Claims have numbers. The one with the highest counts, until an object beside it says that it was
//! given back, or until it was not renewed for as long as the lease: then the next number is to be
//! had, by whoever creates it first.

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

use super::{Inner, info::Info, keys::claim_number, known::lock};
use crate::store::{StoreError, random_id};

/// The right to deliver one upload of an [`ObjectStore`](super::ObjectStore).
///
/// It is renewed for as long as it lives, so that no delivery is too long for its lease.
pub struct ObjectClaim {
    pub(super) store: Arc<Inner>,
    pub(super) info: Arc<Info>,
    number: u32,
    state: Arc<State>,
    renewal: Option<JoinHandle<()>>,
    /// Whether there is nothing left to give back.
    ended: bool,
}

#[derive(Debug)]
struct State {
    /// Another server has taken it over, or has settled or removed the upload.
    lost: AtomicBool,
    renewed: Mutex<Instant>,
}

/// The claim that counts.
struct Newest {
    number: u32,
    free: bool,
    modified: SystemTime,
}

impl Inner {
    /// Claims an upload, if nobody has; `None` if somebody has.
    pub(super) async fn claim(
        self: &Arc<Self>,
        info: &Arc<Info>,
    ) -> Result<Option<ObjectClaim>, StoreError> {
        // Within the process there is no need to ask.
        let Some(held) = Held::take(self, &info.id) else {
            return Ok(None);
        };
        let number = match self.newest_claim(info).await? {
            None => 0,
            Some(newest) if newest.free => newest.number + 1,
            Some(newest) if self.is_given_back(&info.id, newest.number) => newest.number + 1,
            Some(newest) => {
                let now = self.clock.now(&self.bucket, &self.keys).await?;
                let age = now.duration_since(newest.modified).unwrap_or_default();
                if age <= self.lease {
                    self.remember_busy(&info.id);
                    return Ok(None);
                }
                newest.number + 1
            }
        };
        let asked = Instant::now();
        let path = self.keys.claim(info.key(), &info.id, number);
        let token = Bytes::from(random_id()?);
        if !self.bucket.create(&path, token.clone().into()).await? {
            // It can be ours all the same.
            if self.bucket.get(&path).await? != Some(token.clone()) {
                return Ok(None);
            }
        }
        held.keep();
        let state = Arc::new(State {
            lost: AtomicBool::new(false),
            renewed: Mutex::new(asked),
        });
        let renewal = Renewal {
            store: Arc::clone(self),
            info: Arc::clone(info),
            number,
            token,
            state: Arc::clone(&state),
        };
        Ok(Some(ObjectClaim {
            store: Arc::clone(self),
            info: Arc::clone(info),
            number,
            state,
            renewal: Some(tokio::spawn(renewal.run())),
            ended: false,
        }))
    }

    async fn newest_claim(&self, info: &Info) -> Result<Option<Newest>, StoreError> {
        let claims = self.keys.claims(info.key(), &info.id);
        let mut newest: Option<Newest> = None;
        let mut found = self.bucket.list(&claims, None);
        while let Some(listed) = found.try_next().await? {
            let Some((number, free)) = claim_number(&listed.path) else {
                continue;
            };
            match &mut newest {
                Some(known) if known.number > number => {}
                Some(known) if known.number == number => {
                    known.free |= free;
                    if !free {
                        known.modified = listed.modified;
                    }
                }
                other => {
                    *other = Some(Newest {
                        number,
                        free,
                        modified: listed.modified,
                    });
                }
            }
        }
        Ok(newest)
    }

    /// Whether another server had the claim when it was asked for a moment ago: who waits for a
    /// delivery asks often.
    pub(super) fn was_just_busy(&self, id: &str) -> bool {
        let claims = lock(&self.claims);
        claims
            .busy
            .get(id)
            .is_some_and(|asked| asked.elapsed() < self.lease / 60)
    }

    fn remember_busy(&self, id: &str) {
        let mut claims = lock(&self.claims);
        let valid = self.lease / 60;
        claims.busy.retain(|_, asked| asked.elapsed() < valid);
        claims.busy.insert(id.to_owned(), Instant::now());
    }

    fn is_given_back(&self, id: &str, number: u32) -> bool {
        lock(&self.claims)
            .given_back
            .contains(&(id.to_owned(), number))
    }
}

impl ObjectClaim {
    /// Whether it still counts. Asked before what cannot be taken back.
    pub(super) async fn holds(&self) -> Result<bool, StoreError> {
        if self.state.lost.load(SeqCst) {
            return Ok(false);
        }
        let renewed = *lock(&self.state.renewed);
        if renewed.elapsed() < self.store.lease / 2 {
            return Ok(true);
        }
        // The process has slept, or the store does not answer in time.
        let newest = self.store.newest_claim(&self.info).await?;
        Ok(newest.is_some_and(|newest| newest.number == self.number))
    }

    /// Gives it back, so that others can have it.
    pub(super) async fn give_back(&mut self) {
        if let Some(free) = self.end(true) {
            free.put().await;
        }
    }

    /// Ends it where there is nothing left to claim. It is not renewed any more then.
    pub(super) async fn finish(&mut self) {
        self.end(false);
        if let Some(renewal) = self.renewal.take() {
            // What it has begun is through.
            let _ = renewal.await;
        }
    }

    fn end(&mut self, give_back: bool) -> Option<Free> {
        if let Some(renewal) = &self.renewal {
            renewal.abort();
        }
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        let mut claims = lock(&self.store.claims);
        claims.held.remove(&self.info.id);
        give_back.then(|| {
            // Known here at once, and to the others when it is written.
            let name = (self.info.id.clone(), self.number);
            claims.given_back.insert(name);
            Free {
                store: Arc::clone(&self.store),
                info: Arc::clone(&self.info),
                number: self.number,
            }
        })
    }
}

impl Drop for ObjectClaim {
    fn drop(&mut self) {
        if let Some(free) = self.end(true) {
            // Without a runtime others wait for the end of the lease.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(free.put());
            }
        }
    }
}

impl fmt::Debug for ObjectClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectClaim")
            .field("id", &self.info.id)
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// A claim that is to be given back.
struct Free {
    store: Arc<Inner>,
    info: Arc<Info>,
    number: u32,
}

impl Free {
    const TRIES: u32 = 5;

    async fn put(self) {
        let path = self
            .store
            .keys
            .free(self.info.key(), &self.info.id, self.number);
        for n in 0..Self::TRIES {
            if self.store.bucket.put(&path, Bytes::new()).await.is_ok() {
                let name = (self.info.id.clone(), self.number);
                lock(&self.store.claims).given_back.remove(&name);
                return;
            }
            tokio::time::sleep(Duration::from_millis(100 << n)).await;
        }
    }
}

/// Says, for as long as the claim lives, that it does.
struct Renewal {
    store: Arc<Inner>,
    info: Arc<Info>,
    number: u32,
    token: Bytes,
    state: Arc<State>,
}

impl Renewal {
    async fn run(self) {
        let path = self
            .store
            .keys
            .claim(self.info.key(), &self.info.id, self.number);
        loop {
            tokio::time::sleep(self.store.lease / 3).await;
            let asked = Instant::now();
            match self.store.newest_claim(&self.info).await {
                Ok(Some(newest)) if newest.number == self.number => {}
                // Nothing can be done as long as the store does not answer.
                Err(_) => continue,
                Ok(_) => {
                    self.state.lost.store(true, SeqCst);
                    return;
                }
            }
            if self
                .store
                .bucket
                .put(&path, self.token.clone())
                .await
                .is_ok()
            {
                *lock(&self.state.renewed) = asked;
            }
        }
    }
}

/// A claim of this process that is being asked for: no other request need ask.
struct Held<'a> {
    store: &'a Inner,
    id: &'a str,
    keep: bool,
}

impl<'a> Held<'a> {
    fn take(store: &'a Inner, id: &'a str) -> Option<Self> {
        let new = lock(&store.claims).held.insert(id.to_owned());
        // Made only then: the end of one gives the id free.
        new.then(|| Self {
            store,
            id,
            keep: false,
        })
    }

    fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if !self.keep {
            lock(&self.store.claims).held.remove(self.id);
        }
    }
}
