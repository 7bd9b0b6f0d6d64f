//! Limits on unfinished uploads, as this process counts them.

use std::{
    collections::{HashMap, HashSet, hash_map::Entry},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    error::{Error, Reason},
    limits::{Bound, Limits},
    lock::lock,
    model::{
        state::{State, Status},
        upload::{Scope, Upload, UploadId},
    },
    store::{DynStore, ScopeHash, Usage},
};

/// The shortest time between two questions to the store.
const FRESH: Duration = Duration::from_secs(2);

/// The same as a multiple of the time that the store took to answer. Refused requests must not keep
/// the store busy.
const FRESH_TIMES: u32 = 10;

/// Counts unfinished uploads, and the bytes of spooled files.
///
/// An upload is counted before a request creates it. As long as a request works on it, it stays
/// counted, whatever the store answers: the request may create it after that.
///
/// The store is asked at the first new upload of this process, and again before an upload is
/// refused, because other servers finish uploads too. It is not asked again within [`FRESH`].
#[derive(Default)]
pub(crate) struct Quota {
    counts: Mutex<Counts>,
    /// Held by the request that asks the store. Contains the error of the last question.
    asking: tokio::sync::Mutex<Option<Error>>,
}

#[derive(Default)]
struct Counts {
    uploads: HashMap<UploadId, Counted>,
    scopes: HashMap<ScopeHash, Sum>,
    all: Sum,
    /// Bytes of spooled files.
    spooled: HashMap<ScopeHash, u64>,
    all_spooled: u64,
    /// Whether the store was ever asked.
    asked: bool,
    fresh_until: Option<Instant>,
    /// The number of the last question to the store. Tells which uploads are newer than its answer.
    round: u64,
    /// How many questions the store has answered, with or without success.
    answers: u64,
}

/// A client comes back if no request has stored anything of its upload for this time.
const RETURN: Duration = Duration::from_secs(60);

/// One unfinished upload.
struct Counted {
    scope: ScopeHash,
    bytes: u64,
    /// The last round in which the store knew the upload, or in which a request worked on it.
    round: u64,
    /// How many requests work on it.
    requests: u64,
    /// Whether the store has had it.
    is_stored: bool,
    /// Whether it is finished or gone, so that the last of the requests releases it.
    is_released: bool,
    /// When a request of this process has stored something of it.
    last_stored: Option<Instant>,
    /// Whether it was told that the upload is complete.
    is_completed: bool,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    uploads: u64,
    bytes: u64,
}

/// Whether there is room for a new upload.
enum Reserved {
    Yes,
    /// The store has to be asked first.
    Unknown,
    No(Error),
}

impl Quota {
    /// Counts an upload, if it is within the limits.
    ///
    /// `has_scopes`: the limits of each scope apply.
    pub(crate) async fn reserve(
        self: &Arc<Self>,
        store: &dyn DynStore,
        limits: &Limits,
        has_scopes: bool,
        upload: &Upload,
    ) -> Result<Reservation, Error> {
        let bounds = Bounds::new(limits, has_scopes);
        let usage = Usage::from(upload);
        bounds.check_alone(usage.bytes)?;
        let mut may_ask = true;
        loop {
            match lock(&self.counts).reserve(&bounds, usage, may_ask) {
                Reserved::Yes => {
                    return Ok(Reservation {
                        quota: Arc::clone(self),
                        id: upload.id,
                        begun: Instant::now(),
                        is_stored: false,
                    });
                }
                Reserved::No(error) => return Err(error),
                Reserved::Unknown => {}
            }
            self.ask(store).await?;
            may_ask = false;
        }
    }

    /// Counts the bytes of a file before it is spooled: `max`, or all bytes that the limits allow
    /// if those are fewer. The file may have as many bytes as the result contains.
    ///
    /// The upload of the file is not known yet. It may be one whose bytes are counted already.
    pub(crate) async fn spool(
        self: &Arc<Self>,
        store: &dyn DynStore,
        limits: &Limits,
        has_scopes: bool,
        scope: &Scope,
        max: u64,
    ) -> Result<Spooling, Error> {
        let bytes = Bounds::new(limits, has_scopes).bytes;
        let scope = ScopeHash::new(scope);
        if !lock(&self.counts).asked {
            self.ask(store).await?;
        }
        let max = max.min(bytes.per_scope).min(bytes.in_all);
        lock(&self.counts).spool(bytes, scope, max)?;
        Ok(Spooling {
            quota: Arc::clone(self),
            scope,
            bytes: max,
        })
    }

    /// Stops counting an upload: it is finished, or gone. If requests work on it, the last one
    /// does.
    pub(crate) fn release(&self, id: &UploadId) {
        lock(&self.counts).release(id);
    }

    /// When a request of this process has stored something of an upload.
    pub(crate) fn last_stored(&self, id: &UploadId) -> Option<Instant> {
        let counts = lock(&self.counts);
        counts
            .uploads
            .get(id)
            .and_then(|counted| counted.last_stored)
    }

    /// The unfinished uploads and their bytes, and the bytes of spooled files. `None` before the
    /// store was asked.
    pub(crate) fn counts(&self) -> Option<(u64, u64, u64)> {
        let counts = lock(&self.counts);
        let Sum { uploads, bytes } = counts.all;
        counts.asked.then_some((uploads, bytes, counts.all_spooled))
    }

    /// Makes the next refusal ask the store first.
    pub(crate) fn mark_stale(&self) {
        lock(&self.counts).fresh_until = None;
    }

    /// Takes over what the store counts.
    async fn ask(&self, store: &dyn DynStore) -> Result<(), Error> {
        let seen = lock(&self.counts).answers;
        let mut failed = self.asking.lock().await;
        let round = {
            let mut counts = lock(&self.counts);
            if counts.answers != seen {
                // Another request has asked meanwhile.
                return failed.clone().map_or(Ok(()), Err);
            }
            counts.round += 1;
            counts.round
        };
        let start = Instant::now();
        let usage = store.usage().await.map_err(Error::from);
        *failed = usage.as_ref().err().cloned();
        let mut counts = lock(&self.counts);
        counts.answers += 1;
        counts.take_over(round, usage?);
        counts.fresh_until = Some(Instant::now() + FRESH.max(start.elapsed() * FRESH_TIMES));
        Ok(())
    }
}

impl Counts {
    fn reserve(&mut self, bounds: &Bounds, upload: Usage, may_ask: bool) -> Reserved {
        if let Some(counted) = self.uploads.get_mut(&upload.id) {
            counted.requests += 1;
            return Reserved::Yes;
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
        self.add(upload, round).requests = 1;
        Reserved::Yes
    }

    fn add(&mut self, upload: Usage, round: u64) -> &mut Counted {
        let place = match self.uploads.entry(upload.id) {
            Entry::Occupied(counted) => return counted.into_mut(),
            Entry::Vacant(place) => place,
        };
        let of_scope = self.scopes.entry(upload.scope).or_default();
        for sum in [of_scope, &mut self.all] {
            sum.uploads += 1;
            sum.bytes = sum.bytes.saturating_add(upload.bytes);
        }
        place.insert(Counted {
            scope: upload.scope,
            bytes: upload.bytes,
            round,
            requests: 0,
            is_stored: false,
            is_released: false,
            last_stored: None,
            is_completed: false,
        })
    }

    /// Counts that an upload has at least this many bytes, if that is within the bounds, or would
    /// be without its `parts`.
    fn grow(
        &mut self,
        bounds: &Bounds,
        id: &UploadId,
        bytes: u64,
        parts: &[UploadId],
    ) -> Result<(), Error> {
        let Some(counted) = self.uploads.get(id) else {
            return Ok(());
        };
        let more = bytes.saturating_sub(counted.bytes);
        if more > 0 {
            let of_scope = self.scopes.get(&counted.scope).copied();
            let parts: HashSet<_> = parts.iter().collect();
            let parts = parts.iter().filter_map(|part| self.uploads.get(*part));
            let beyond = more.saturating_sub(parts.map(|part| part.bytes).sum());
            bounds.check_bytes(of_scope.unwrap_or_default(), self.all, beyond)?;
            self.add_bytes(id, bytes);
        }
        Ok(())
    }

    /// Counts that an upload has at least this many bytes.
    fn add_bytes(&mut self, id: &UploadId, bytes: u64) {
        let Some(counted) = self.uploads.get_mut(id) else {
            return;
        };
        let more = bytes.saturating_sub(counted.bytes);
        counted.bytes += more;
        let of_scope = self.scopes.get_mut(&counted.scope);
        for sum in of_scope.into_iter().chain([&mut self.all]) {
            sum.bytes = sum.bytes.saturating_add(more);
        }
    }

    fn release(&mut self, id: &UploadId) {
        let Entry::Occupied(mut counted) = self.uploads.entry(*id) else {
            return;
        };
        if counted.get().requests > 0 {
            // One of them may create the upload anew.
            let counted = counted.get_mut();
            (counted.is_released, counted.is_stored) = (true, false);
            (counted.last_stored, counted.is_completed) = (None, false);
            return;
        }
        let counted = counted.remove();
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

    /// A request has ended. `is_stored` if it has stored something of the upload.
    fn end_request(&mut self, id: &UploadId, is_stored: bool) {
        let round = self.round;
        let Some(counted) = self.uploads.get_mut(id) else {
            return;
        };
        counted.requests -= 1;
        // The store may be answering a question without what the request has created.
        counted.round = round;
        if is_stored {
            counted.is_stored = true;
            counted.is_released = false;
        }
        if counted.is_released {
            self.release(id);
        }
    }

    fn spool(&mut self, limits: Bound, scope: ScopeHash, bytes: u64) -> Result<(), Error> {
        let of_scope = self.scopes.get(&scope).copied().unwrap_or_default();
        let spooled = self.spooled.get(&scope).copied().unwrap_or_default();
        // Either of new uploads, or of those that are counted.
        let fits = |limit: u64, counted: u64, spooled: u64| {
            let room = limit.saturating_sub(counted).max(counted);
            spooled.checked_add(bytes).is_some_and(|sum| sum <= room)
        };
        if !fits(limits.per_scope, of_scope.bytes, spooled)
            || !fits(limits.in_all, self.all.bytes, self.all_spooled)
        {
            return Err(Reason::QuotaExceeded.into());
        }
        self.spooled.insert(scope, spooled + bytes);
        self.all_spooled += bytes;
        Ok(())
    }

    fn end_spooling(&mut self, scope: ScopeHash, bytes: u64) {
        self.all_spooled -= bytes;
        if let Entry::Occupied(mut spooled) = self.spooled.entry(scope) {
            *spooled.get_mut() -= bytes;
            if *spooled.get() == 0 {
                spooled.remove();
            }
        }
    }

    /// Releases what the store does not count, unless a request works on it or has done so since
    /// the question.
    fn take_over(&mut self, round: u64, usage: Vec<Usage>) {
        for upload in usage {
            let counted = self.add(upload, round);
            counted.round = round;
            counted.is_stored = true;
            // The length of an upload can be declared later, or be unknown.
            self.add_bytes(&upload.id, upload.bytes);
        }
        let gone = self
            .uploads
            .iter()
            .filter(|(_, counted)| counted.round < round && counted.requests == 0);
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
        self.check_bytes(of_scope, all, bytes)
    }

    /// Whether there is room for more bytes.
    fn check_bytes(&self, of_scope: Sum, all: Sum, bytes: u64) -> Result<(), Error> {
        let fits = |sum: Sum, limit| sum.bytes.checked_add(bytes).is_some_and(|sum| sum <= limit);
        if fits(of_scope, self.bytes.per_scope) && fits(all, self.bytes.in_all) {
            Ok(())
        } else {
            Err(Reason::QuotaExceeded.into())
        }
    }
}

/// An upload that a request works on. It is counted until this is dropped, and longer unless it is
/// known to be absent.
pub(crate) struct Reservation {
    quota: Arc<Quota>,
    id: UploadId,
    begun: Instant,
    /// Whether the upload is known to be stored.
    is_stored: bool,
}

/// What a stored chunk means for its upload.
pub(crate) struct Kept {
    pub(crate) begun: Begun,
    /// Whether this is the first chunk to complete it.
    pub(crate) has_completed: bool,
}

/// Whether an upload begins with a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    Created,
    /// Its client has come back.
    Resumed,
    Earlier,
}

impl Reservation {
    /// Counts that the upload has at least this many bytes, if that is within the limits. The
    /// `parts` that it is made of are counted too, but make room for it.
    pub(crate) fn grow(
        &self,
        limits: &Limits,
        has_scopes: bool,
        bytes: u64,
        parts: &[UploadId],
    ) -> Result<(), Error> {
        let bounds = Bounds::new(limits, has_scopes);
        bounds.check_alone(bytes)?;
        lock(&self.quota.counts).grow(&bounds, &self.id, bytes, parts)
    }

    /// The request has stored something: new bytes, or a new upload, if it `is_new`. If it has
    /// completed the upload, the delivery releases it.
    pub(crate) fn keep(mut self, is_new: bool, is_complete: bool) -> Kept {
        self.is_stored = true;
        let mut counts = lock(&self.quota.counts);
        let mut kept = Kept {
            begun: Begun::Earlier,
            has_completed: false,
        };
        let Some(counted) = counts.uploads.get_mut(&self.id) else {
            return kept;
        };
        let last = counted.last_stored.replace(Instant::now());
        let is_return = |last: Instant| self.begun.duration_since(last) >= RETURN;
        if !std::mem::replace(&mut counted.is_stored, true) && is_new {
            kept.begun = Begun::Created;
        } else if last.is_none_or(is_return) {
            kept.begun = Begun::Resumed;
        }
        if is_complete && is_new {
            kept.has_completed = !std::mem::replace(&mut counted.is_completed, true);
        }
        kept
    }

    /// Whether the status of the upload decides whether it is still counted: the request has
    /// failed, and nothing else has stored anything.
    pub(crate) fn needs_status(&self) -> bool {
        let counts = lock(&self.quota.counts);
        let counted = counts.uploads.get(&self.id);
        counted.is_some_and(|counted| counted.requests == 1 && !counted.is_stored)
    }

    /// The request has failed, and this is what is stored of the upload.
    pub(crate) fn found(&self, status: Option<&Status>) {
        if status.is_none_or(|status| matches!(status.state, State::Settled(_))) {
            lock(&self.quota.counts).release(&self.id);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        lock(&self.quota.counts).end_request(&self.id, self.is_stored);
    }
}

/// A file that is spooled.
pub(crate) struct Spooling {
    quota: Arc<Quota>,
    scope: ScopeHash,
    bytes: u64,
}

impl Spooling {
    /// The most bytes that the file may have.
    pub(crate) fn max(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Spooling {
    fn drop(&mut self) {
        lock(&self.quota.counts).end_spooling(self.scope, self.bytes);
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
    fn uploads_of_unknown_length_grow() {
        let mut counts = Counts::default();
        let mut limits = Limits::default().with_unfinished_bytes_per_scope(30);
        limits.unfinished_bytes.in_all = 40;
        let bounds = Bounds::new(&limits, true);
        for (n, scope) in [(1, "a"), (2, "a"), (3, "b")] {
            counts.add(usage(n, scope, 0), 0);
        }
        let id = |n| UploadId::from_bytes([n; 32]);
        let too_much = Err(Reason::QuotaExceeded.into());
        assert_eq!(counts.grow(&bounds, &id(1), 20, &[]), Ok(()));
        // It never shrinks.
        assert_eq!(counts.grow(&bounds, &id(1), 10, &[]), Ok(()));
        assert_eq!(counts.grow(&bounds, &id(2), 11, &[]), too_much);
        assert_eq!(counts.grow(&bounds, &id(2), 10, &[]), Ok(()));
        assert_eq!(counts.grow(&bounds, &id(3), 11, &[]), too_much);
        assert_eq!(counts.grow(&bounds, &id(9), 99, &[]), Ok(()));
        assert_eq!(sums(&counts), [("a", 2, 30), ("b", 1, 0), ("all", 3, 30)]);
        // Another server has stored more.
        counts.round = 1;
        counts.take_over(1, vec![usage(1, "a", 25), usage(3, "b", 5)]);
        assert_eq!(sums(&counts), [("a", 1, 25), ("b", 1, 5), ("all", 2, 30)]);
        counts.release(&id(1));
        assert_eq!(sums(&counts), [("b", 1, 5), ("all", 1, 5)]);
    }

    #[test]
    fn parts_make_room_for_the_file_that_is_made_of_them() {
        let mut counts = Counts::default();
        let bounds = Bounds::new(&Limits::default().with_unfinished_bytes_per_scope(30), true);
        for (n, bytes) in [(1, 8), (2, 7), (3, 0), (4, 0), (5, 0)] {
            counts.add(usage(n, "a", bytes), 0);
        }
        let id = |n| UploadId::from_bytes([n; 32]);
        let too_much = Err(Reason::QuotaExceeded.into());
        let parts = [id(1), id(2), id(1)];
        // A part that is used twice makes room once.
        assert_eq!(counts.grow(&bounds, &id(3), 31, &parts), too_much);
        assert_eq!(counts.grow(&bounds, &id(3), 23, &parts), Ok(()));
        assert_eq!(sums(&counts), [("a", 5, 38), ("all", 5, 38)]);
        // They are counted: there is no room for another file of the same parts.
        assert_eq!(counts.grow(&bounds, &id(4), 15, &parts), too_much);
        // Nor do they go before the file does.
        counts.release(&id(1));
        counts.release(&id(2));
        assert_eq!(sums(&counts), [("a", 3, 23), ("all", 3, 23)]);
        assert_eq!(counts.grow(&bounds, &id(5), 8, &[]), too_much);
        counts.release(&id(3));
        assert_eq!(counts.grow(&bounds, &id(5), 8, &[]), Ok(()));
    }

    fn reserve(counts: &mut Counts, upload: Usage) {
        let bounds = Bounds::new(&Limits::default(), true);
        assert!(matches!(
            counts.reserve(&bounds, upload, false),
            Reserved::Yes
        ));
    }

    #[test]
    fn an_upload_is_counted_as_long_as_requests_work_on_it() {
        let mut counts = Counts::default();
        let upload = usage(1, "a", 10);
        let one = [("a", 1, 10), ("all", 1, 10)];
        reserve(&mut counts, upload);
        reserve(&mut counts, upload);
        // The store has not got it yet, one request fails, and one removes it.
        counts.round = 1;
        counts.take_over(1, Vec::new());
        counts.end_request(&upload.id, false);
        counts.release(&upload.id);
        assert_eq!(sums(&counts), one);
        // But the last one has created it again.
        counts.round = 2;
        counts.end_request(&upload.id, true);
        assert_eq!(sums(&counts), one);
        // The store has answered before that.
        counts.take_over(2, Vec::new());
        assert_eq!(sums(&counts), one);
        counts.round = 3;
        counts.take_over(3, Vec::new());
        assert_eq!(sums(&counts), [("all", 0, 0)]);

        // Released while the only request works on it.
        reserve(&mut counts, upload);
        counts.release(&upload.id);
        assert_eq!(sums(&counts), one);
        counts.end_request(&upload.id, false);
        assert_eq!(sums(&counts), [("all", 0, 0)]);

        // A request that has failed, and does not know what is stored.
        reserve(&mut counts, upload);
        counts.end_request(&upload.id, false);
        assert_eq!(sums(&counts), one);
    }

    #[test]
    fn an_upload_that_is_removed_begins_anew_with_a_request_that_was_working_on_it() {
        let quota = Arc::new(Quota::default());
        let upload = usage(1, "a", 10);
        let begin = || {
            reserve(&mut lock(&quota.counts), upload);
            Reservation {
                quota: Arc::clone(&quota),
                id: upload.id,
                begun: Instant::now(),
                is_stored: false,
            }
        };
        let late = begin();
        for reservation in [begin(), late] {
            let kept = reservation.keep(true, true);
            assert_eq!(kept.begun, Begun::Created);
            assert!(kept.has_completed);
            let counts = lock(&quota.counts);
            assert_eq!(sums(&counts), [("a", 1, 10), ("all", 1, 10)]);
            drop(counts);
            quota.release(&upload.id);
        }
        assert_eq!(sums(&lock(&quota.counts)), [("all", 0, 0)]);
    }

    #[test]
    fn spooled_files_are_counted() {
        let mut counts = Counts::default();
        let bound = Bound {
            per_scope: 100,
            in_all: 150,
        };
        let [a, b] = ["a", "b"].map(|scope| ScopeHash::new(&scope.into()));
        let full = Err(Reason::QuotaExceeded.into());
        assert_eq!(counts.spool(bound, a, 100), Ok(()));
        assert_eq!(counts.spool(bound, a, 1), full);
        assert_eq!(counts.spool(bound, b, 51), full);
        assert_eq!(counts.spool(bound, b, 50), Ok(()));
        counts.end_spooling(a, 100);
        // The file may be a chunk of an upload that is counted.
        counts.add(usage(1, "a", 90), 0);
        assert_eq!(counts.spool(bound, a, 91), full);
        assert_eq!(counts.spool(bound, a, 30), Ok(()));
        counts.end_spooling(a, 30);
        counts.end_spooling(b, 50);
        assert!(counts.spooled.is_empty() && counts.all_spooled == 0);
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
