//! What every [`Store`] must keep, as tests.
//!
//! Run [`check`] on a store of your own, in a tokio runtime with several threads. It panics with
//! what it found, so it is a test by itself:
//!
//! ```
//! use tower_resumable::{MemoryStore, store::conformance};
//!
//! # tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(async {
//! conformance::check(&MemoryStore::default(), async |location| match location {
//!     tower_resumable::store::Location::Memory(bytes) => Some(bytes.to_vec()),
//!     _ => None,
//! })
//! .await;
//! # });
//! ```

// A list of one range of bytes is meant as such.
#![allow(clippy::single_range_in_vec_init)]

mod body;
mod chunks;
mod delivery;
mod expiry;
mod races;
#[cfg(test)]
mod tests;

use std::{
    ops::Range,
    pin::pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use self::body::{Source, Then};
use super::{
    ChunkBody, Expiry, Location, Progress, RangeSet, Record, Sealed, Settlement, Status, Store,
    StoreError, Swept, TryClaim, Upload, UploadKey, random_id,
};

/// Runs all checks. `read` reads a finished file, `None` if it is gone.
///
/// Give it a store of its own: it sweeps whatever it finds there, whoever has put it there. If all
/// goes well it leaves only finished files that were delivered and the records of their
/// deliveries. The store's clock may differ from this machine's by some minutes.
///
/// Each check takes new uploads with random keys. When one fails, its name is printed after the
/// panic's message; the comment on the function of that name in the source says which promise it
/// tests.
///
/// # Panics
///
/// If the store does not keep what [`Store`] promises.
pub async fn check<S: Store + Clone>(store: &S, read: impl AsyncFn(&Location) -> Option<Vec<u8>>) {
    check_with_patience(store, PATIENCE, read).await;
}

/// [`check`] for a store that is far away: there, some chunks one after the other may take more than
/// the four seconds after which it says that they hang. `patience` is how long it waits instead.
///
/// # Panics
///
/// If the store does not keep what [`Store`] promises.
pub async fn check_with_patience<S: Store + Clone>(
    store: &S,
    patience: Duration,
    read: impl AsyncFn(&Location) -> Option<Vec<u8>>,
) {
    let suite = Suite {
        store,
        read,
        patience,
    };
    suite.run().await;
}

/// How long something may take that has nothing to wait for. Less than the time after which a store
/// may take a range from a stalled request: that shall not hide that a request's end was missed.
const PATIENCE: Duration = Duration::from_secs(4);

const LONG: Duration = Duration::from_secs(3600);

struct Suite<'a, S, R> {
    store: &'a S,
    read: R,
    patience: Duration,
}

/// Says which check it was that failed: the helpers that most of them use panic at one place for all.
struct Running(&'static str);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the store failed the conformance check `{}`", self.0);
        }
    }
}

impl<S: Store + Clone, R: AsyncFn(&Location) -> Option<Vec<u8>>> Suite<'_, S, R> {
    async fn run(&self) {
        macro_rules! run {
            ($($check:ident)*) => {$(
                let running = Running(stringify!($check));
                self.$check().await;
                drop(running);
            )*};
        }
        run! {
            // Simple things first: what fails there would fail everywhere.
            chunks_in_any_order
            stored_bytes_stay
            failed_chunks_leave_nothing
            dropped_chunks_leave_nothing
            dropped_at_every_poll
            an_empty_file_is_an_upload
            huge_uploads
            spooled_chunks

            a_claim_is_the_only_one
            a_lost_claim_is_given_back
            attempts_are_counted
            answers_are_kept
            a_delivered_upload_stays_as_it_is
            a_rejected_file_is_gone
            late_chunks_do_not_disturb_a_delivery
            undelivered_uploads_are_listed

            records_expire
            removed_uploads_begin_anew
            each_limit_sweeps_its_own
            what_is_busy_is_not_swept
            delivered_files_are_not_swept

            identical_chunks_at_once
            overlapping_chunks_at_once
            a_dropped_chunk_frees_its_range
            removal_ends_what_is_in_flight
            first_chunks_race
            last_chunks_race
            chunks_race_for_an_expired_record
            chunks_race_with_removal
            chunks_race_with_sweep
            claims_race_with_each_other
            claims_race_with_removal_and_sweep
        }
    }
}

/// Bytes of a file, not alike, and other ones for each `seed`.
fn content(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 8);
    let mut word = seed + 1;
    while bytes.len() < len {
        word = word.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        bytes.extend_from_slice(&(word >> 8 ^ word << 32).to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// An upload that no store has seen.
fn upload(total: u64) -> Upload {
    let id = random_id().expect("there is randomness");
    let key = UploadKey::from_hex(&format!("{id}{id}")).expect("an id is hexadecimal");
    Upload {
        key,
        scope: "conformance".into(),
        identifier: id,
        total,
        chunk_size: None,
        file_name: Some("a.bin".into()),
        relative_path: None,
        content_type: None,
        fields: vec![("a".into(), "b".into())],
    }
}

/// The same upload, as another request describes it.
fn described_as(upload: &Upload, text: &str) -> Upload {
    Upload {
        file_name: Some(format!("{text}.bin")),
        content_type: Some("text/plain".into()),
        fields: vec![("request".into(), text.into())],
        ..upload.clone()
    }
}

fn record(delivered: bool, expires: SystemTime) -> Record {
    Record {
        delivered,
        status: if delivered { 200 } else { 422 },
        headers: vec![("x-a".into(), b"1".to_vec())],
        body: Some(Bytes::from_static(b"answer")),
        size: 9,
        expires,
    }
}

/// A time to come, in whole seconds: a store need not keep more.
fn later() -> SystemTime {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(now.as_secs()) + 2 * LONG
}

fn delivered() -> Settlement {
    Settlement::Delivered(record(true, later()))
}

/// Sweeps nothing that was touched in the last hour.
fn nothing() -> Expiry {
    Expiry {
        abandoned_before: SystemTime::now() - LONG,
        undelivered_before: None,
        records_before: SystemTime::now() - LONG,
    }
}

fn abandoned() -> Expiry {
    Expiry {
        abandoned_before: later(),
        ..nothing()
    }
}

fn undelivered() -> Expiry {
    Expiry {
        undelivered_before: Some(later()),
        ..nothing()
    }
}

fn records() -> Expiry {
    Expiry {
        // Behind the end of every record of the suite.
        records_before: later() + LONG,
        ..nothing()
    }
}

async fn put<S: Store>(
    store: &S,
    upload: &Upload,
    offset: u64,
    source: Source,
    len: u64,
) -> Result<Progress, StoreError> {
    let source = pin!(source);
    let mut body = ChunkBody::new(source, Some(len), 0);
    store.put(upload, offset, &mut body).await
}

/// What a chunk has come to that races with something that may take its range from it.
fn ok_or_superseded(result: Result<Progress, StoreError>) -> Option<Progress> {
    match result {
        Ok(progress) => Some(progress),
        Err(StoreError::Superseded) => None,
        Err(error) => panic!("`put` fails in a race, and not with `Superseded`: {error:?}"),
    }
}

fn assert_ranges(ranges: &RangeSet, expected: &[Range<u64>], when: &str) {
    let found: Vec<_> = ranges.iter().collect();
    assert_eq!(found, expected, "`status` has wrong ranges {when}");
}

impl<S: Store + Clone, R: AsyncFn(&Location) -> Option<Vec<u8>>> Suite<'_, S, R> {
    /// Stores a chunk of which nothing is wrong.
    async fn put(&self, upload: &Upload, offset: u64, bytes: &[u8]) -> Progress {
        self.soon(
            "`put` of a chunk that comes without a pause",
            put(
                self.store,
                upload,
                offset,
                Source::new(bytes, Then::End),
                bytes.len() as u64,
            ),
        )
        .await
        .expect("`put` fails, although nothing is wrong with the chunk")
    }

    /// Stores a chunk in a task of its own.
    fn spawn_put(
        &self,
        upload: &Upload,
        offset: u64,
        source: Source,
        len: usize,
    ) -> JoinHandle<Result<Progress, StoreError>> {
        let (store, upload) = (self.store.clone(), upload.clone());
        tokio::spawn(async move { put(&store, &upload, offset, source, len as u64).await })
    }

    /// Waits for what has nothing to wait for.
    async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        match timeout(self.patience, future).await {
            Ok(output) => output,
            Err(_) => panic!("{what} takes more than {:?}", self.patience),
        }
    }

    /// Waits for a task.
    async fn joined<T>(&self, what: &str, task: JoinHandle<T>) -> T {
        match self.soon(what, task).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("{what}: {error}"),
            },
        }
    }

    async fn status(&self, upload: &Upload) -> Status {
        self.store
            .status(&upload.key)
            .await
            .expect("`status` fails")
    }

    async fn assert_absent(&self, upload: &Upload, when: &str) {
        let status = self.status(upload).await;
        assert!(
            matches!(status, Status::Absent),
            "an upload should be `Absent` {when}, but it is {status:?}"
        );
    }

    async fn assert_receiving(&self, upload: &Upload, expected: &[Range<u64>], when: &str) {
        match self.status(upload).await {
            Status::Receiving(ranges) => assert_ranges(&ranges, expected, when),
            status => panic!("an upload should be `Receiving` {when}, but it is {status:?}"),
        }
    }

    async fn assert_complete(&self, upload: &Upload, when: &str) {
        let status = self.status(upload).await;
        assert!(
            matches!(status, Status::Complete),
            "an upload should be `Complete` {when}, but it is {status:?}"
        );
    }

    /// The record of a settled upload.
    async fn settled(&self, upload: &Upload, when: &str) -> Record {
        match self.status(upload).await {
            Status::Settled(record) => record,
            status => panic!("an upload should be `Settled` {when}, but it is {status:?}"),
        }
    }

    async fn try_claim(&self, upload: &Upload) -> TryClaim<S::Claim> {
        self.store
            .try_claim(&upload.key)
            .await
            .expect("`try_claim` fails")
    }

    async fn claim(&self, upload: &Upload) -> S::Claim {
        let deadline = Instant::now() + self.patience;
        let refused = loop {
            match self.try_claim(upload).await {
                TryClaim::Won(claim) => return claim,
                // That a claim was dropped may take a moment to get round.
                TryClaim::Busy if Instant::now() < deadline => {
                    sleep(Duration::from_millis(2)).await;
                }
                TryClaim::Busy => break "Busy, although nobody has a claim",
                TryClaim::Settled(_) => break "Settled, although no claim was settled",
                TryClaim::Incomplete => break "Incomplete, although all bytes are there",
            }
        };
        panic!("`try_claim` says {refused}");
    }

    /// Waits until a claim that was dropped is given back.
    async fn assert_given_back(&self, upload: &Upload) {
        let claim = self.claim(upload).await;
        self.settle(claim, Settlement::Released).await;
    }

    async fn seal(&self, claim: &mut S::Claim, upload: &Upload) -> Sealed {
        self.store
            .seal(claim, upload)
            .await
            .expect("`seal` fails, although the upload is complete and claimed")
    }

    /// Settles it, and gives the claim back.
    async fn settle(&self, mut claim: S::Claim, settlement: Settlement) {
        self.store
            .settle(&mut claim, &settlement)
            .await
            .expect("`settle` fails, although the claim is live");
    }

    async fn assert_content(&self, sealed: &Sealed, expected: &[u8]) {
        let found = (self.read)(&sealed.location).await;
        let found = found.expect("the file of a sealed upload cannot be read");
        assert_eq!(
            found.len(),
            expected.len(),
            "a finished file has the wrong size"
        );
        let differs = (0..found.len()).find(|&i| found[i] != expected[i]);
        assert_eq!(differs, None, "a finished file has a wrong byte there");
        if let Some(crc32) = sealed.crc32 {
            assert_eq!(
                crc32,
                crc32fast::hash(expected),
                "`Sealed::crc32` is not the CRC-32 of the file"
            );
        }
    }

    async fn assert_file_is_gone(&self, sealed: &Sealed, when: &str) {
        // What is in memory lives as long as somebody has it.
        if !matches!(sealed.location, Location::Memory(_)) {
            let found = (self.read)(&sealed.location).await;
            assert!(found.is_none(), "the file is still there {when}");
        }
    }

    /// Claims, seals, compares and settles.
    async fn deliver(&self, upload: &Upload, expected: &[u8]) -> Sealed {
        let mut claim = self.claim(upload).await;
        let sealed = self.seal(&mut claim, upload).await;
        self.assert_content(&sealed, expected).await;
        self.settle(claim, delivered()).await;
        sealed
    }

    /// What the complete upload contains and its id; the upload is removed.
    async fn take(&self, upload: &Upload) -> (Vec<u8>, String) {
        let mut claim = self.claim(upload).await;
        let sealed = self.seal(&mut claim, upload).await;
        let found = (self.read)(&sealed.location).await;
        self.settle(claim, Settlement::Released).await;
        assert!(
            self.remove(upload).await,
            "`remove` does not remove a complete upload whose claim was released"
        );
        let found = found.expect("the file of a sealed upload cannot be read");
        (found, sealed.id)
    }

    async fn remove(&self, upload: &Upload) -> bool {
        self.store
            .remove(&upload.key)
            .await
            .expect("`remove` fails")
    }

    async fn sweep(&self, expiry: Expiry) -> Swept {
        self.store.sweep(expiry).await.expect("`sweep` fails")
    }

    /// What `undelivered` says of these uploads; there may be others.
    async fn undelivered(&self, of: &[&Upload]) -> Vec<Upload> {
        let mut found = self.store.undelivered().await.expect("`undelivered` fails");
        found.retain(|found| of.iter().any(|upload| upload.key == found.key));
        found
    }
}
