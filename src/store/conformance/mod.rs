//! The contract of [`Store`], as a test suite for stores.
//!
//! It needs the feature `conformance`. This module is exempt from semantic versioning: any release
//! may add checks, and a store that passed before may fail then.
//!
//! [`check`] runs the suite on a store:
//!
//! ```
//! use tower_resumable::{MemoryStore, store::conformance};
//!
//! #[tokio::main]
//! async fn main() {
//!     conformance::check(&MemoryStore::default()).await;
//! }
//! ```
//!
//! It prints a line for each promise, and panics at the first one that the store breaks. `cargo
//! test` shows the lines of a test that fails, and with `-- --nocapture` those of all tests:
//!
//! ```text
//! ok      chunks are stored in any order
//! ok      stored bytes are never written again
//! FAILED  a failed chunk leaves nothing (check `failed_chunks_leave_nothing`)
//! ```

// Ranges of bytes are compared with lists of one range.
#![allow(clippy::single_range_in_vec_init)]

mod appends;
mod body;
mod chunks;
mod delivery;
mod expiry;
mod list;
mod races;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    io,
    ops::Range,
    pin::pin,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use self::body::Source;
use super::{
    BoxFuture, ChunkBody, Claim, Claimed, Content, Expiry, Progress, RangeSet, Record, Sealed,
    State, Status, Store, StoreError, Swept, random_id,
};
use crate::model::upload::{Scope, Upload, UploadId};

/// Checks each promise of a store, and prints it.
///
/// Call it in a tokio runtime with several threads, so that requests are concurrent. Clones of the
/// store have to share its uploads. Give it a store that has no other uploads: the checks sweep it.
/// It leaves the files of delivered uploads, and the records of settled ones. The clock of the
/// store may differ from that of this machine by some minutes. A few files are written to the
/// [temporary folder](std::env::temp_dir) and removed again.
///
/// The checks read lists to the last page, but make fewer uploads than
/// [a page has](super::Page::MAX). If the store has a setting for shorter pages, check it with
/// pages of two uploads too.
///
/// # Panics
///
/// If the store breaks a promise. The message says what was found.
pub async fn check<S: Store + Clone>(store: &S) {
    check_with_patience(store, PATIENCE).await;
}

/// Does the same as [`check`] for a remote store, with more patience.
///
/// `patience` is how long a few sequential calls may take that have nothing to wait for. [`check`]
/// allows four seconds.
///
/// # Panics
///
/// If the store breaks a promise, or takes longer than `patience`.
pub async fn check_with_patience<S: Store + Clone>(store: &S, patience: Duration) {
    let store = store.clone();
    let suite = Suite { store, patience };
    for promise in promises_of(&suite.store) {
        suite.check(&promise).await;
    }
}

/// Less than the time after which a store takes a range from a stalled request: otherwise the suite
/// would not notice a range that is never released.
const PATIENCE: Duration = Duration::from_secs(4);

/// Something that a store has to do, and how it is checked.
struct Promise<S> {
    /// The name of the function that checks it.
    name: &'static str,
    /// What is printed.
    sentence: &'static str,
    check: for<'a> fn(&'a Suite<S>) -> BoxFuture<'a, ()>,
}

/// What is checked, in this order. A check relies on the promises before it.
fn promises_of<S: Store + Clone>(store: &S) -> Vec<Promise<S>> {
    let (mut all, can) = (promises(), store.capabilities());
    if can.append {
        all.extend(append_promises());
    }
    // The checks make the parts by appends.
    if can.append && can.concat {
        all.extend(concat_promises());
    }
    all
}

macro_rules! promises {
    ($promises:ident: $($check:ident: $sentence:literal,)*) => {
        fn $promises<S: Store + Clone>() -> Vec<Promise<S>> {
            vec![$(Promise {
                name: stringify!($check),
                sentence: $sentence,
                check: |suite| Box::pin(suite.$check()),
            }),*]
        }
    };
}

promises! {
    promises:

    chunks_in_any_order: "chunks are stored in any order",
    stored_bytes_stay: "stored bytes are never written again",
    changed_bytes: "a chunk with other bytes than the stored ones is a `Conflict`",
    failed_chunks_leave_nothing: "a failed chunk leaves nothing",
    chunks_count_at_their_end: "a chunk counts when its body has ended, not before",
    chunks_out_of_bounds: "a chunk beyond the length is `OutOfBounds`, and not stored",
    created_uploads: "`create` makes an upload without bytes, and does not change an existing one",
    uploads_without_a_length: "an upload without a length never completes",
    empty_files: "an empty file is an upload too",
    huge_uploads: "an upload that is too large is an error of the store",
    spooled_bytes: "`spool` keeps the bytes of a body that does not fail",

    claims_are_exclusive: "at most one claim of an upload is live",
    lost_claims: "a claim ends when it is released or dropped",
    seals_are_kept: "the first claim seals the upload, and each claim counts an attempt",
    lengths_are_kept: "the first request declares the length, and another one is a `Conflict`",
    status_describes_the_upload: "`status` returns the upload as it was described or sealed",
    records_are_kept: "a record is returned as it was recorded",
    delivered_uploads_stay: "a delivered upload stays as it is",
    rejected_files_are_removed: "the file of a rejected upload is removed",
    rejections_are_forgotten: "`forget_rejection` ends the record of a rejection, and no other",
    late_chunks: "a chunk that arrives again during the delivery is `Ok` and changes nothing",
    finished_files: "a finished file can be read, moved and deleted",

    lists: "`list` returns each upload that is not settled once",
    lists_in_order: "`list` is ordered by id, and continues after any id",
    lists_with_filter: "`list` filters by scope and by completeness",
    usage: "`usage` counts each upload that is not settled once",

    records_expire: "an upload whose record has expired is absent",
    removed_uploads: "a removed upload is absent, and can start again",
    expiry_of_each_kind: "each limit of a sweep removes its own kind, and only what is older",
    busy_uploads_stay: "a sweep removes no upload that is claimed or written to",
    delivered_files_stay: "a sweep removes no file that was delivered",

    identical_chunks_at_once: "identical chunks can arrive at the same time",
    overlapping_chunks_at_once: "overlapping chunks that arrive at the same time do not mix",
    removal_during_a_chunk: "a removal does not wait for chunks, and they do not come back",
    chunks_of_removed_uploads: "a chunk of a removed upload fails or starts a new upload",
    creations_race: "of several calls of `create` one makes the upload",
    first_chunks_race: "first chunks that arrive at the same time make one upload",
    last_chunks_race: "of the last chunks at least one gets `complete`, and one gets the claim",
    expired_record_race: "chunks that find an expired record at the same time make one upload",
    chunks_race_with_removal: "a removal during a chunk leaves all of the chunk or nothing",
    chunks_race_with_sweep: "a sweep during a chunk leaves all of the chunk or nothing",
    claims_race: "of several claims one wins",
    claims_race_with_removal: "an upload is either claimed, or removed or swept",
}

promises! {
    append_promises:

    appends_add: "an append adds bytes at the end of what is stored",
    appends_at_other_offsets: "an append at another offset is `Offset`, and changes nothing",
    failed_appends: "an append that fails keeps the bytes before, or none with `Keep::Whole`",
    lengths_of_appends: "an append can bring the length, which is set once",
    appends_that_end: "with `Append::ends_here` the end of the body becomes the length",
    appends_out_of_bounds: "an append beyond the length is `OutOfBounds`",
    appends_to_complete_uploads: "a complete upload takes an empty append at its end",
    appends_to_absent_uploads: "an append to an absent upload is `Superseded`",
    newer_appends_win: "a newer request ends an append at once",
    interrupts_race: "what `interrupt` returns does not change by older appends",
    appends_race: "of appends at the same time one adds each byte",
    removal_during_an_append: "a removal ends an append, and a sweep does not",
}

promises! {
    concat_promises:

    concatenations: "`concat` makes an upload of its parts, which stay",
    concatenations_repeat: "`concat` of a complete upload changes nothing",
    concatenations_need_their_parts: "`concat` needs all of its parts",
    concatenations_race: "calls of `concat` at the same time make one upload",
}

struct Suite<S> {
    store: S,
    patience: Duration,
}

/// Prints the promise whose check panics.
struct Running(&'static str, &'static str);

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("FAILED  {} (check `{}`)", self.1, self.0);
        }
    }
}

impl<S: Store + Clone> Suite<S> {
    async fn check(&self, promise: &Promise<S>) {
        let running = Running(promise.name, promise.sentence);
        (promise.check)(self).await;
        drop(running);
        println!("ok      {}", promise.sentence);
    }

    /// Stores a good chunk.
    async fn write(&self, upload: &Upload, offset: u64, bytes: &[u8]) -> Progress {
        let len = bytes.len() as u64;
        let write = write(&self.store, upload, offset, Source::new(bytes), len);
        let written = self.soon("`write` of a chunk without a pause", write).await;
        written.expect("`write` of a good chunk fails")
    }

    /// Stores a chunk in a task.
    fn spawn_write(
        &self,
        upload: &Upload,
        offset: u64,
        source: Source,
        len: usize,
    ) -> JoinHandle<Result<Progress, StoreError>> {
        let (store, upload) = (self.store.clone(), upload.clone());
        tokio::spawn(async move { write(&store, &upload, offset, source, len as u64).await })
    }

    /// Runs a call that should not wait for anything.
    async fn soon<T>(&self, what: &str, future: impl Future<Output = T>) -> T {
        match timeout(self.patience, future).await {
            Ok(output) => output,
            Err(_) => panic!("{what} takes more than {:?}", self.patience),
        }
    }

    /// Waits for a task that should not wait for anything.
    async fn joined<T>(&self, what: &str, task: JoinHandle<T>) -> T {
        match self.soon(what, task).await {
            Ok(output) => output,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(error) => panic!("{what}: {error}"),
            },
        }
    }

    async fn create(&self, upload: &Upload) -> Status {
        self.store.create(upload).await.expect("`create` fails")
    }

    async fn status(&self, upload: &Upload) -> Option<Status> {
        let status = self.store.status(&upload.id).await;
        status.expect("`status` fails")
    }

    async fn state(&self, upload: &Upload) -> Option<State> {
        self.status(upload).await.map(|status| status.state)
    }

    async fn assert_absent(&self, upload: &Upload, when: &str) {
        let status = self.status(upload).await;
        assert!(
            status.is_none(),
            "an upload should be absent {when}, but it is {status:?}"
        );
    }

    async fn assert_receiving(&self, upload: &Upload, expected: &[Range<u64>], when: &str) {
        match self.state(upload).await {
            Some(State::Receiving(ranges)) => assert_ranges(&ranges, expected, when),
            state => panic!("an upload should be `Receiving` {when}, but it is {state:?}"),
        }
    }

    async fn assert_complete(&self, upload: &Upload, when: &str) {
        let state = self.state(upload).await;
        assert!(
            matches!(state, Some(State::Complete)),
            "an upload should be `Complete` {when}, but it is {state:?}"
        );
    }

    /// The record of a settled upload.
    async fn settled(&self, upload: &Upload, when: &str) -> Record {
        match self.state(upload).await {
            Some(State::Settled(record)) => record,
            state => panic!("an upload should be `Settled` {when}, but it is {state:?}"),
        }
    }

    async fn try_claim(&self, upload: &Upload) -> Claimed<S::Claim> {
        self.store.claim(upload).await.expect("`claim` fails")
    }

    /// Claims a complete upload that is not claimed, or whose claim was just dropped.
    async fn claim(&self, upload: &Upload) -> S::Claim {
        let deadline = Instant::now() + self.patience;
        let outcome = loop {
            match self.try_claim(upload).await {
                Claimed::Won(claim) => return claim,
                // It may take a moment until a dropped claim is given back.
                Claimed::Busy if Instant::now() < deadline => {
                    sleep(Duration::from_millis(2)).await;
                }
                Claimed::Busy => break "`Busy`, although no claim is live",
                Claimed::Settled(_) => break "`Settled`, although no claim was settled",
                Claimed::Incomplete => break "`Incomplete`, although all bytes are stored",
            }
        };
        panic!("`claim` returns {outcome}");
    }

    async fn settle(&self, mut claim: S::Claim, record: &Record) {
        let settled = claim.settle(record).await;
        settled.expect("`settle` fails, although the claim is live");
    }

    async fn assert_content(&self, sealed: &Sealed, expected: &[u8]) {
        let read = read(sealed.stored.read()).await;
        let found = read.expect("the file of a sealed upload cannot be read");
        assert_eq!(
            found.len(),
            expected.len(),
            "a finished file has a wrong size"
        );
        let differs = (0..found.len()).find(|&i| found[i] != expected[i]);
        assert_eq!(differs, None, "a finished file has a wrong byte there");
        assert_eq!(
            sealed.size(),
            expected.len() as u64,
            "`Sealed::upload` has a wrong length"
        );
        if let Some(crc32) = sealed.crc32 {
            assert_eq!(
                crc32,
                crc32fast::hash(expected),
                "`Sealed::crc32` is not the CRC-32 of the file"
            );
        }
    }

    async fn assert_file_is_gone(&self, sealed: &Sealed, when: &str) {
        if self.is_readable(sealed).await {
            let deleted = sealed.stored.delete().await;
            deleted.expect("`Stored::delete` fails");
            // A `Stored` that holds the bytes itself still has them after it was deleted.
            assert!(
                self.is_readable(sealed).await,
                "the file is still there {when}"
            );
        }
    }

    async fn is_readable(&self, sealed: &Sealed) -> bool {
        match read(sealed.stored.read()).await {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => panic!("the error of a missing file is not `NotFound`: {error:?}"),
        }
    }

    /// Claims the upload, compares its file and settles it.
    async fn deliver(&self, upload: &Upload, expected: &[u8]) -> Sealed {
        let claim = self.claim(upload).await;
        let sealed = claim.sealed().clone();
        self.assert_content(&sealed, expected).await;
        self.settle(claim, &record(true, later())).await;
        sealed
    }

    /// Returns the content of a complete upload and the id of its seal. Removes the upload.
    async fn take(&self, upload: &Upload) -> (Vec<u8>, String) {
        let claim = self.claim(upload).await;
        let sealed = claim.sealed().clone();
        let found = read(sealed.stored.read()).await;
        claim.release().await;
        assert!(
            self.remove(upload).await,
            "`remove` does not remove a complete upload whose claim was released"
        );
        let found = found.expect("the file of a sealed upload cannot be read");
        (found, sealed.id)
    }

    async fn remove(&self, upload: &Upload) -> bool {
        let removed = self.store.remove(&upload.id).await;
        removed.expect("`remove` fails")
    }

    async fn sweep(&self, expiry: &Expiry) -> Swept {
        self.store.sweep(expiry).await.expect("`sweep` fails")
    }
}

/// Stores a chunk of exactly `len` bytes.
async fn write<S: Store>(
    store: &S,
    upload: &Upload,
    offset: u64,
    source: Source,
    len: u64,
) -> Result<Progress, StoreError> {
    let source = pin!(source);
    let mut body = ChunkBody::new(source, Some(len), 0);
    store.write(upload, offset, &mut body).await
}

/// The progress after a chunk, or `None` if another request has taken its range or has stored other
/// bytes.
fn ok_or_superseded(result: Result<Progress, StoreError>) -> Option<Progress> {
    match result {
        Ok(progress) => Some(progress),
        Err(StoreError::Superseded | StoreError::Conflict) => None,
        Err(error) => panic!("in a race `write` fails otherwise than with `Superseded`: {error:?}"),
    }
}

async fn read(mut content: Content) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    while let Some(piece) = content.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

fn assert_ranges(ranges: &RangeSet, expected: &[Range<u64>], when: &str) {
    let found: Vec<_> = ranges.iter().collect();
    assert_eq!(found, expected, "`status` has wrong ranges {when}");
}

fn receiving(received: u64) -> Progress {
    let complete = false;
    Progress { received, complete }
}

fn complete(received: u64) -> Progress {
    let complete = true;
    Progress { received, complete }
}

/// Varied bytes, different for each `seed`.
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
fn upload(length: u64) -> Upload {
    upload_of(&Scope::new("conformance"), Some(length))
}

/// An upload that no store has seen, of this scope.
fn upload_of(scope: &Scope, length: Option<u64>) -> Upload {
    let identifier = random_id().expect("the system has random bytes");
    let id = UploadId::new(scope, [&identifier]);
    Upload {
        identifier,
        file_name: Some("a.bin".into()),
        fields: vec![("a".into(), "b".into())],
        ..Upload::new(id, scope.clone(), length)
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
    let status = if delivered {
        StatusCode::OK
    } else {
        StatusCode::UNPROCESSABLE_ENTITY
    };
    let mut record = Record::new(delivered, status, 9, expires);
    let value = HeaderValue::from_static("1");
    record.headers.insert("x-a", value);
    record.body = Some(Bytes::from_static(b"answer"));
    record
}

const HOUR: Duration = Duration::from_secs(3600);

/// A future time, in whole seconds.
fn later() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seconds = since.unwrap_or_default().as_secs();
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + 2 * HOUR
}

/// Sweeps nothing that is younger than an hour.
fn nothing() -> Expiry {
    let hour_ago = SystemTime::now() - HOUR;
    Expiry {
        abandoned_before: Some(hour_ago),
        undelivered_before: None,
        records_before: hour_ago,
    }
}

/// Sweeps all incomplete uploads.
fn abandoned() -> Expiry {
    Expiry {
        abandoned_before: Some(later()),
        ..nothing()
    }
}

/// Sweeps all complete uploads without a delivery.
fn undelivered() -> Expiry {
    Expiry {
        undelivered_before: Some(later()),
        ..nothing()
    }
}

/// Sweeps all records.
fn records() -> Expiry {
    Expiry {
        // After the end of each record of the suite.
        records_before: later() + HOUR,
        ..nothing()
    }
}

/// Sweeps all uploads and records.
fn everything() -> Expiry {
    Expiry {
        abandoned_before: Some(later()),
        undelivered_before: Some(later()),
        records_before: later() + HOUR,
    }
}
