//! What this process knows to be under way, so that it stays within its limits.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    UploadError,
    engine::receive::store_error,
    limits::{Bound, Limits},
    store::{DynStore, ScopeKey, Upload, UploadKey, Usage},
};

/// How old a listing of the store may be that turns somebody away, at least.
const FRESH: Duration = Duration::from_secs(2);

/// The same in times of what it took to make it: who is turned away must not keep the store busy with
/// nothing else.
const FRESH_TIMES: u32 = 10;

/// The unfinished uploads, and the bodies that are being read.
///
/// The store is asked for the first new upload of this process, and again before anybody is turned away:
/// other servers finish uploads too. What it has just answered is not asked again: see [`FRESH`].
#[derive(Default)]
pub(crate) struct Ledger {
    book: Mutex<Book>,
    /// Held by the request that asks the store.
    asking: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Book {
    uploads: HashMap<UploadKey, Line>,
    scopes: HashMap<ScopeKey, Sum>,
    all: Sum,
    /// Where those are counted that are being read.
    bodies: HashMap<String, u64>,
    all_bodies: u64,
    /// Whether the store was ever asked.
    listed: bool,
    fresh_until: Option<Instant>,
    /// Counts the listings, so that one knows what has come while it was made.
    listing: u64,
}

/// One unfinished upload.
struct Line {
    scope: ScopeKey,
    total: u64,
    /// The listing that knows it, or the next one.
    listing: u64,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    uploads: u64,
    bytes: u64,
}

/// Whether a new upload has a place.
enum Place {
    /// It is in the book; `true` if it was not there before.
    Booked(bool),
    /// The store is to be asked first.
    Unknown,
    None(UploadError),
}

impl Ledger {
    /// Books an upload, if it is within the limits; `true` if it was not there before.
    ///
    /// `has_scopes` tells whether there are limits for each.
    pub(crate) async fn book(
        &self,
        store: &dyn DynStore,
        limits: &Limits,
        has_scopes: bool,
        upload: &Upload,
    ) -> Result<bool, UploadError> {
        let bounds = Bounds::new(limits, has_scopes);
        bounds.check_alone(upload.total)?;
        let usage = Usage::from(upload);
        let mut may_ask = true;
        loop {
            match self.lock().place(&bounds, usage, may_ask) {
                Place::Booked(is_new) => return Ok(is_new),
                Place::None(error) => return Err(error),
                Place::Unknown => {}
            }
            self.ask(store).await?;
            may_ask = false;
        }
    }

    /// Strikes an upload out: it is finished, or gone.
    pub(crate) fn strike(&self, key: &UploadKey) {
        self.lock().strike(key);
    }

    /// Much may have changed in the store.
    pub(crate) fn distrust(&self) {
        self.lock().fresh_until = None;
    }

    /// Counts a body that is read from now on.
    pub(crate) fn read_body(
        self: &Arc<Self>,
        limits: &Limits,
        has_scopes: bool,
        scope: &str,
    ) -> Result<Reading, UploadError> {
        let Bound { per_scope, in_all } = limits.bodies;
        let mut book = self.lock();
        let of_scope = book.bodies.get(scope).copied().unwrap_or_default();
        if book.all_bodies >= in_all || (has_scopes && of_scope >= per_scope) {
            return Err(UploadError::Busy);
        }
        book.all_bodies += 1;
        book.bodies.insert(scope.to_owned(), of_scope + 1);
        drop(book);
        Ok(Reading {
            ledger: Arc::clone(self),
            scope: scope.to_owned(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes over what the store lists.
    async fn ask(&self, store: &dyn DynStore) -> Result<(), UploadError> {
        let seen = self.lock().listing;
        let _asking = self.asking.lock().await;
        let listing = {
            let mut book = self.lock();
            if book.listing != seen {
                // Another request has asked meanwhile.
                return Ok(());
            }
            book.listing += 1;
            book.listing
        };
        let start = Instant::now();
        let listed = store.usage().await.map_err(store_error)?;
        let mut book = self.lock();
        book.take_over(listing, listed);
        book.fresh_until = Some(Instant::now() + FRESH.max(start.elapsed() * FRESH_TIMES));
        Ok(())
    }
}

impl Book {
    fn place(&mut self, bounds: &Bounds, upload: Usage, may_ask: bool) -> Place {
        if self.uploads.contains_key(&upload.key) {
            return Place::Booked(false);
        }
        if may_ask && !self.listed {
            return Place::Unknown;
        }
        let of_scope = self.scopes.get(&upload.scope).copied().unwrap_or_default();
        if let Err(error) = bounds.check(of_scope, self.all, upload.total) {
            let is_old = self.fresh_until.is_none_or(|end| end <= Instant::now());
            return match may_ask && is_old {
                true => Place::Unknown,
                false => Place::None(error),
            };
        }
        let listing = self.listing;
        self.add(upload, listing);
        Place::Booked(true)
    }

    fn add(&mut self, upload: Usage, listing: u64) {
        let Entry::Vacant(line) = self.uploads.entry(upload.key) else {
            return;
        };
        line.insert(Line {
            scope: upload.scope,
            total: upload.total,
            listing,
        });
        let of_scope = self.scopes.entry(upload.scope).or_default();
        for sum in [of_scope, &mut self.all] {
            sum.uploads += 1;
            sum.bytes = sum.bytes.saturating_add(upload.total);
        }
    }

    fn strike(&mut self, key: &UploadKey) {
        let Some(line) = self.uploads.remove(key) else {
            return;
        };
        let take_off = |sum: &mut Sum| {
            sum.uploads -= 1;
            sum.bytes = sum.bytes.saturating_sub(line.total);
            sum.uploads == 0
        };
        take_off(&mut self.all);
        if self.scopes.get_mut(&line.scope).is_some_and(take_off) {
            self.scopes.remove(&line.scope);
        }
    }

    /// What the store does not list is finished or gone, unless it came after the question.
    fn take_over(&mut self, listing: u64, listed: Vec<Usage>) {
        for upload in listed {
            self.add(upload, listing);
            if let Some(line) = self.uploads.get_mut(&upload.key) {
                line.listing = listing;
            }
        }
        let gone = self
            .uploads
            .iter()
            .filter(|(_, line)| line.listing < listing);
        for key in gone.map(|(key, _)| *key).collect::<Vec<_>>() {
            self.strike(&key);
        }
        self.listed = true;
    }
}

/// What holds for a new upload.
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

    /// What would not fit if there were nothing else never will.
    fn check_alone(&self, total: u64) -> Result<(), UploadError> {
        let limit = self.bytes.per_scope.min(self.bytes.in_all);
        match total > limit {
            true => Err(UploadError::FileTooLarge { limit }),
            false => Ok(()),
        }
    }

    fn check(&self, of_scope: Sum, all: Sum, total: u64) -> Result<(), UploadError> {
        if of_scope.uploads >= self.uploads.per_scope || all.uploads >= self.uploads.in_all {
            return Err(UploadError::TooManyUploads);
        }
        let fits = |sum: Sum, limit| sum.bytes.checked_add(total).is_some_and(|sum| sum <= limit);
        match fits(of_scope, self.bytes.per_scope) && fits(all, self.bytes.in_all) {
            true => Ok(()),
            false => Err(UploadError::QuotaExceeded),
        }
    }
}

/// A body that is being read; it counts until this is dropped.
pub(crate) struct Reading {
    ledger: Arc<Ledger>,
    scope: String,
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut book = self.ledger.lock();
        book.all_bodies -= 1;
        if let Entry::Occupied(mut of_scope) = book.bodies.entry(std::mem::take(&mut self.scope)) {
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
        Usage {
            key: UploadKey::from_bytes([n; 32]),
            scope: ScopeKey::new(scope),
            total,
        }
    }

    fn sums(book: &Book) -> Vec<(&str, u64, u64)> {
        let scopes = ["a", "b", "c"].into_iter().filter_map(|scope| {
            let sum = book.scopes.get(&ScopeKey::new(scope))?;
            Some((scope, sum.uploads, sum.bytes))
        });
        let all = ("all", book.all.uploads, book.all.bytes);
        scopes.chain([all]).collect()
    }

    #[test]
    fn what_is_listed_stays_and_what_comes_meanwhile() {
        let mut book = Book::default();
        for n in 0..3 {
            book.add(usage(n, "a", 10), 0);
        }
        // The store is asked, and before it answers another upload begins.
        book.listing = 1;
        book.add(usage(3, "b", 5), 1);
        book.take_over(1, vec![usage(1, "a", 10), usage(4, "c", 7)]);
        assert_eq!(
            sums(&book),
            [("a", 1, 10), ("b", 1, 5), ("c", 1, 7), ("all", 3, 22)]
        );
        // The next time it is not there.
        book.listing = 2;
        book.take_over(2, vec![usage(1, "a", 10)]);
        assert_eq!(sums(&book), [("a", 1, 10), ("all", 1, 10)]);
        book.strike(&UploadKey::from_bytes([1; 32]));
        book.strike(&UploadKey::from_bytes([1; 32]));
        assert_eq!(sums(&book), [("all", 0, 0)]);
    }

    #[test]
    fn the_last_one_that_fits() {
        let bounds = |has_scopes| {
            let limits = Limits::default()
                .uploads_per_scope(2)
                .uploads(3)
                .unfinished_bytes_per_scope(20)
                .unfinished_bytes(30);
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
                Err(UploadError::QuotaExceeded),
            ),
            (
                true,
                sum(2, 0),
                sum(2, 0),
                1,
                Err(UploadError::TooManyUploads),
            ),
            (
                true,
                sum(0, 0),
                sum(3, 0),
                1,
                Err(UploadError::TooManyUploads),
            ),
            (
                true,
                sum(0, 0),
                sum(2, 20),
                11,
                Err(UploadError::QuotaExceeded),
            ),
            (
                true,
                sum(1, u64::MAX),
                sum(1, u64::MAX),
                1,
                Err(UploadError::QuotaExceeded),
            ),
            // Without scopes there is one, and only the limits in all hold.
            (false, sum(2, 10), sum(2, 10), 20, Ok(())),
            (
                false,
                sum(3, 0),
                sum(3, 0),
                1,
                Err(UploadError::TooManyUploads),
            ),
        ] {
            let checked = bounds(has_scopes).check(of_scope, all, total);
            assert_eq!(checked, expected, "{has_scopes} {total}");
        }
        assert_eq!(bounds(true).check_alone(20), Ok(()));
        let too_large = Err(UploadError::FileTooLarge { limit: 20 });
        assert_eq!(bounds(true).check_alone(21), too_large);
        assert_eq!(bounds(false).check_alone(30), Ok(()));
    }
}
