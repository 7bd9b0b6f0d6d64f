//! Limits on unfinished uploads and on bodies, as this process counts them.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::{Error, Reason},
    limits::{Bound, Limits},
    lock::lock,
    model::upload::{Scope, Upload, UploadId},
    store::{DynStore, ScopeHash, Usage},
};

/// The shortest time between two questions to the store.
const FRESH: Duration = Duration::from_secs(2);

/// The same as a multiple of the time that the store took to answer. Refused requests must not keep
/// the store busy.
const FRESH_TIMES: u32 = 10;

/// Counts unfinished uploads, and bodies that are being read.
///
/// The store is asked at the first new upload of this process, and again before an upload is
/// refused, because other servers finish uploads too. It is not asked again within [`FRESH`].
#[derive(Default)]
pub(crate) struct Quota {
    counts: Mutex<Counts>,
    /// Held by the request that asks the store.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Counts {
    uploads: HashMap<UploadId, Counted>,
    scopes: HashMap<ScopeHash, Sum>,
    all: Sum,
    bodies: HashMap<Scope, u64>,
    all_bodies: u64,
    /// Whether the store was ever asked.
    asked: bool,
    fresh_until: Option<Instant>,
    /// The number of the last question to the store. Tells which uploads are newer than its answer.
    round: u64,
}

/// One unfinished upload.
struct Counted {
    scope: ScopeHash,
    bytes: u64,
    /// The last round in which the store knew the upload, or in which it was reserved.
    round: u64,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    uploads: u64,
    bytes: u64,
}

/// Whether there is room for a new upload.
enum Reserved {
    /// `true` if it was not counted before.
    Yes(bool),
    /// The store has to be asked first.
    Unknown,
    No(Error),
}

impl Quota {
    /// Counts an upload, if it is within the limits. `true` if it was not counted before.
    ///
    /// `has_scopes`: the limits of each scope apply.
    pub(crate) async fn reserve(
        &self,
        store: &dyn DynStore,
        limits: &Limits,
        has_scopes: bool,
        upload: &Upload,
    ) -> Result<bool, Error> {
        let bounds = Bounds::new(limits, has_scopes);
        let usage = Usage::from(upload);
        bounds.check_alone(usage.bytes)?;
        let mut may_ask = true;
        loop {
            match lock(&self.counts).reserve(&bounds, usage, may_ask) {
                Reserved::Yes(is_new) => return Ok(is_new),
                Reserved::No(error) => return Err(error),
                Reserved::Unknown => {}
            }
            self.ask(store).await?;
            may_ask = false;
        }
    }

    /// Stops counting an upload: it is finished, or gone.
    pub(crate) fn release(&self, id: &UploadId) {
        lock(&self.counts).release(id);
    }

    /// Makes the next refusal ask the store first.
    pub(crate) fn mark_stale(&self) {
        lock(&self.counts).fresh_until = None;
    }

    /// Counts a body until the guard is dropped.
    pub(crate) fn read_body(
        self: &Arc<Self>,
        limits: &Limits,
        has_scopes: bool,
        scope: &Scope,
    ) -> Result<BodyGuard, Error> {
        let Bound { per_scope, in_all } = limits.bodies;
        let mut counts = lock(&self.counts);
        let of_scope = counts.bodies.get(scope).copied().unwrap_or_default();
        if counts.all_bodies >= in_all || (has_scopes && of_scope >= per_scope) {
            return Err(Reason::Busy.into());
        }
        counts.all_bodies += 1;
        counts.bodies.insert(scope.clone(), of_scope + 1);
        drop(counts);
        Ok(BodyGuard {
            quota: Arc::clone(self),
            scope: scope.clone(),
        })
    }

    /// Takes over what the store counts.
    async fn ask(&self, store: &dyn DynStore) -> Result<(), Error> {
        let seen = lock(&self.counts).round;
        let _asking = self.asking.lock().await;
        let round = {
            let mut counts = lock(&self.counts);
            if counts.round != seen {
                // Another request has asked meanwhile.
                return Ok(());
            }
            counts.round += 1;
            counts.round
        };
        let start = Instant::now();
        let usage = store.usage().await?;
        let mut counts = lock(&self.counts);
        counts.take_over(round, usage);
        counts.fresh_until = Some(Instant::now() + FRESH.max(start.elapsed() * FRESH_TIMES));
        Ok(())
    }
}

impl Counts {
    fn reserve(&mut self, bounds: &Bounds, upload: Usage, may_ask: bool) -> Reserved {
        if self.uploads.contains_key(&upload.id) {
            return Reserved::Yes(false);
        }
        if may_ask && !self.asked {
            return Reserved::Unknown;
        }
        let of_scope = self.scopes.get(&upload.scope).copied().unwrap_or_default();
        if let Err(error) = bounds.check(of_scope, self.all, upload.bytes) {
            let is_stale = self.fresh_until.is_none_or(|end| end <= Instant::now());
            return if may_ask && is_stale {
                Reserved::Unknown
            } else {
                Reserved::No(error)
            };
        }
        let round = self.round;
        self.add(upload, round);
        Reserved::Yes(true)
    }

    fn add(&mut self, upload: Usage, round: u64) {
        let Entry::Vacant(place) = self.uploads.entry(upload.id) else {
            return;
        };
        place.insert(Counted {
            scope: upload.scope,
            bytes: upload.bytes,
            round,
        });
        let of_scope = self.scopes.entry(upload.scope).or_default();
        for sum in [of_scope, &mut self.all] {
            sum.uploads += 1;
            sum.bytes = sum.bytes.saturating_add(upload.bytes);
        }
    }

    fn release(&mut self, id: &UploadId) {
        let Some(counted) = self.uploads.remove(id) else {
            return;
        };
        let subtract = |sum: &mut Sum| {
            sum.uploads -= 1;
            sum.bytes = sum.bytes.saturating_sub(counted.bytes);
            sum.uploads == 0
        };
        subtract(&mut self.all);
        if self.scopes.get_mut(&counted.scope).is_some_and(subtract) {
            self.scopes.remove(&counted.scope);
        }
    }

    /// Releases what the store does not count, unless it was reserved after the question.
    fn take_over(&mut self, round: u64, usage: Vec<Usage>) {
        for upload in usage {
            self.add(upload, round);
            if let Some(counted) = self.uploads.get_mut(&upload.id) {
                counted.round = round;
            }
        }
        let gone = self
            .uploads
            .iter()
            .filter(|(_, counted)| counted.round < round);
        for id in gone.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.release(&id);
        }
        self.asked = true;
    }
}

/// The limits for a new upload.
struct Bounds {
    uploads: Bound,
    bytes: Bound,
}

impl Bounds {
    fn new(limits: &Limits, has_scopes: bool) -> Self {
        let bound = |bound: Bound| Bound {
            per_scope: if has_scopes {
                bound.per_scope
            } else {
                u64::MAX
            },
            ..bound
        };
        Self {
            uploads: bound(limits.uploads),
            bytes: bound(limits.unfinished_bytes),
        }
    }

    /// Refuses for good an upload that would exceed the limits even if it were the only one.
    fn check_alone(&self, bytes: u64) -> Result<(), Error> {
        let limit = self.bytes.per_scope.min(self.bytes.in_all);
        if bytes > limit {
            return Err(Reason::FileTooLarge { limit }.into());
        }
        Ok(())
    }

    fn check(&self, of_scope: Sum, all: Sum, bytes: u64) -> Result<(), Error> {
        if of_scope.uploads >= self.uploads.per_scope || all.uploads >= self.uploads.in_all {
            return Err(Reason::TooManyUploads.into());
        }
        let fits = |sum: Sum, limit| sum.bytes.checked_add(bytes).is_some_and(|sum| sum <= limit);
        if fits(of_scope, self.bytes.per_scope) && fits(all, self.bytes.in_all) {
            Ok(())
        } else {
            Err(Reason::QuotaExceeded.into())
        }
    }
}

/// A body that is being read.
pub(crate) struct BodyGuard {
    quota: Arc<Quota>,
    scope: Scope,
}

impl Drop for BodyGuard {
    fn drop(&mut self) {
        let mut counts = lock(&self.quota.counts);
        counts.all_bodies -= 1;
        if let Entry::Occupied(mut of_scope) = counts.bodies.entry(std::mem::take(&mut self.scope))
        {
            *of_scope.get_mut() -= 1;
            if *of_scope.get() == 0 {
                of_scope.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(n: u8, scope: &str, total: u64) -> Usage {
        let id = UploadId::from_bytes([n; 32]);
        Usage::new(id, ScopeHash::new(&scope.into()), total)
    }

    fn sums(counts: &Counts) -> Vec<(&str, u64, u64)> {
        let scopes = ["a", "b", "c"].into_iter().filter_map(|scope| {
            let sum = counts.scopes.get(&ScopeHash::new(&scope.into()))?;
            Some((scope, sum.uploads, sum.bytes))
        });
        let all = ("all", counts.all.uploads, counts.all.bytes);
        scopes.chain([all]).collect()
    }

    #[test]
    fn an_answer_of_the_store_keeps_newer_uploads() {
        let mut counts = Counts::default();
        for n in 0..3 {
            counts.add(usage(n, "a", 10), 0);
        }
        // The store is asked. Before it answers, another upload starts.
        counts.round = 1;
        counts.add(usage(3, "b", 5), 1);
        counts.take_over(1, vec![usage(1, "a", 10), usage(4, "c", 7)]);
        assert_eq!(
            sums(&counts),
            [("a", 1, 10), ("b", 1, 5), ("c", 1, 7), ("all", 3, 22)]
        );
        // The next answer does not contain the other uploads.
        counts.round = 2;
        counts.take_over(2, vec![usage(1, "a", 10)]);
        assert_eq!(sums(&counts), [("a", 1, 10), ("all", 1, 10)]);
        counts.release(&UploadId::from_bytes([1; 32]));
        counts.release(&UploadId::from_bytes([1; 32]));
        assert_eq!(sums(&counts), [("all", 0, 0)]);
    }

    #[test]
    fn limits_are_inclusive() {
        let bounds = |has_scopes| {
            let limits = Limits::default()
                .with_uploads_per_scope(2)
                .with_uploads(3)
                .with_unfinished_bytes_per_scope(20)
                .with_unfinished_bytes(30);
            Bounds::new(&limits, has_scopes)
        };
        let sum = |uploads, bytes| Sum { uploads, bytes };
        for (has_scopes, of_scope, all, total, expected) in [
            (true, sum(1, 10), sum(1, 10), 10, Ok(())),
            (
                true,
                sum(1, 10),
                sum(1, 10),
                11,
                Err(Reason::QuotaExceeded.into()),
            ),
            (
                true,
                sum(2, 0),
                sum(2, 0),
                1,
                Err(Reason::TooManyUploads.into()),
            ),
            (
                true,
                sum(0, 0),
                sum(3, 0),
                1,
                Err(Reason::TooManyUploads.into()),
            ),
            (
                true,
                sum(0, 0),
                sum(2, 20),
                11,
                Err(Reason::QuotaExceeded.into()),
            ),
            (
                true,
                sum(1, u64::MAX),
                sum(1, u64::MAX),
                1,
                Err(Reason::QuotaExceeded.into()),
            ),
            // Without scopes there is one, and only the limits in all hold.
            (false, sum(2, 10), sum(2, 10), 20, Ok(())),
            (
                false,
                sum(3, 0),
                sum(3, 0),
                1,
                Err(Reason::TooManyUploads.into()),
            ),
        ] {
            let checked = bounds(has_scopes).check(of_scope, all, total);
            assert_eq!(checked, expected, "{has_scopes} {total}");
        }
        assert_eq!(bounds(true).check_alone(20), Ok(()));
        let too_large = Err(Reason::FileTooLarge { limit: 20 }.into());
        assert_eq!(bounds(true).check_alone(21), too_large);
        assert_eq!(bounds(false).check_alone(30), Ok(()));
    }
}
