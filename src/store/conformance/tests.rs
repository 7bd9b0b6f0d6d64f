//! The suite passes good stores, and each of its checks finds something.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use bytes::Bytes;

use super::{PATIENCE, Suite, body::Source, later, promises_of, read};
use crate::{
    MemoryStore,
    model::upload::{Role, Upload, UploadId},
    store::{
        Append, BoxFuture, Capabilities, ChunkBody, Claim, Claimed, Content, Expiry, Filter, Keep,
        Listed, Page, Progress, Record, Sealed, State, Status, Store, StoreError, Stored, Swept,
        Usage, export, memory::MemoryClaim,
    },
};

/// What is wrong with a [`Broken`] store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    Nothing,
    /// Nothing. Each call takes a while, pages are short, and dropped claims are given back late.
    Slow,
    // Chunks.
    KeepsFailedBody,
    FailedChunkLeavesUpload,
    HidesBodyError,
    CountsEachFrame,
    RefusesDuplicates,
    DropsOverlaps,
    OverwritesStored,
    DropsChangedBytes,
    TakesOtherLength,
    IgnoresEmptyFiles,
    BlamesHugeChunks,
    SpoolLosesBytes,
    SpoolTakesBrokenBody,
    SupersedesDuplicates,
    DropsOutOfBounds,
    DropsOverflow,
    FailsOutOfBounds,
    KeepsPartInBounds,
    ChecksDeclaredLength,
    // Creation.
    CreateStoresNothing,
    CreateBeginsAnew,
    CreateReturnsItsArgument,
    CompletesWithoutLength,
    CreatesOnlyWithLength,
    CountsDeclaredBytesOnly,
    // Delivery.
    ClaimsIncomplete,
    ClaimsByDuplicates,
    ClaimsWithoutLateFields,
    GivesTwoClaims,
    ForgetsPanickedClaim,
    ForgetsReleasedClaim,
    ChangesId,
    UsesUploadIdAsId,
    CountsNoAttempts,
    DescribesAsLastClaim,
    ClaimsDeclaredLength,
    StatusDescribesFirst,
    StatusForgetsFields,
    StatusHasAnotherDelivery,
    WrongChecksum,
    ForgetsHeaders,
    ForgetsEmptyBody,
    MakesHeadersText,
    RefusesLateChunks,
    LateChunkIsIncomplete,
    KeepsRejectedFile,
    ForgetsUnsettled,
    KeepsRemovedFile,
    RemovesClaimed,
    RemovesSettled,
    MovesOverFiles,
    MoveLeavesFile,
    DeletesOnce,
    // Lists.
    ListsSealedOnly,
    ListsTwice,
    ListsSettled,
    ListsNoCreated,
    ListsUnordered,
    IgnoresAfter,
    IncludesAfter,
    RepeatsLastOfPage,
    SkipsFirstOfPage,
    EndsAfterOnePage,
    NeverEnds,
    ListsAnyScope,
    ListsIncomplete,
    ListsNoComplete,
    UsageOfOne,
    UsageOfSettled,
    // Expiry.
    KeepsExpiredRecord,
    SweepsNothing,
    SweepsAtOnce,
    SweepsSettledAtDrop,
    SweepsClaimed,
    SweepsWritten,
    SweepsUndeliveredAlways,
    SweepsDeliveredFile,
    // Races.
    MixesOverlaps,
    RevivesRemoved,
    DropsChunkOfRemoved,
    FailsChunkOfRemoved,
    RemovalWaits,
    RacyCreation,
    RacyCompletion,
    RacyClaim,
    RacySweep,
    RacyRemoval,
    BusyCountsAttempt,
    CountsRemovedAsComplete,
    // Appends.
    AppendAddsAnywhere,
    OffsetSetsLength,
    OffsetIsConflict,
    AppendLosesPrefix,
    AppendKeepsPart,
    AppendHidesBodyError,
    AppendTakesOtherLength,
    AppendIgnoresLength,
    AppendForgetsLength,
    AppendForgetsDeclared,
    AppendIgnoresEnd,
    AppendEndsFailedBody,
    AppendEndsBeforeLength,
    AppendDropsRest,
    AppendStoresPartInBounds,
    AppendRefusesEmpty,
    AppendCreates,
    AppendWaits,
    InterruptDoesNothing,
    InterruptTellsOld,
    AppendChecksOffsetFirst,
    AppendKeepsRemovalWaiting,
    AppendRevivesRemoved,
    ListsNoParts,
    InterruptedIsAbsent,
    // Concatenations.
    ConcatRemovesParts,
    ConcatReverses,
    ConcatUsesPartsOnce,
    ConcatSkipsIncomplete,
    ConcatBeginsAnew,
    ConcatNeedsPartsAgain,
    ConcatTakesOtherLength,
    ConcatLeavesPrefix,
    RacyConcat,
    ConcatIsBusy,
}

use Fault::*;

/// Each fault, the check that finds it, and a part of the message.
#[rustfmt::skip]
const FAULTS: &[(Fault, &str, &str)] = &[
    (RefusesDuplicates, "chunks_in_any_order", "of a good chunk fails"),
    (WrongChecksum, "chunks_in_any_order", "is not the CRC-32"),
    (DropsOverlaps, "stored_bytes_stay", "is counted wrongly"),
    (OverwritesStored, "changed_bytes", "after changed bytes"),
    (DropsChangedBytes, "changed_bytes", "does not return `Conflict` but Ok"),
    (KeepsFailedBody, "failed_chunks_leave_nothing", "should be absent after a bad chunk"),
    (FailedChunkLeavesUpload, "failed_chunks_leave_nothing", "should be absent after a bad chunk"),
    (HidesBodyError, "failed_chunks_leave_nothing", "does not return the error of the body"),
    (CountsEachFrame, "chunks_count_at_their_end", "while the body of a chunk has not ended"),
    (DropsOutOfBounds, "chunks_out_of_bounds", "does not return `OutOfBounds` but Ok"),
    (DropsOverflow, "chunks_out_of_bounds", "does not return `OutOfBounds` but Ok"),
    (FailsOutOfBounds, "chunks_out_of_bounds", "does not return `OutOfBounds` but Err"),
    (KeepsPartInBounds, "chunks_out_of_bounds", "should be absent after a chunk"),
    (CreateStoresNothing, "created_uploads", "absent after `create`"),
    (CreateBeginsAnew, "created_uploads", "has another description when it is created again"),
    (CreateReturnsItsArgument, "created_uploads", "another description when it is created again"),
    (ListsNoCreated, "created_uploads", "does not return a created upload"),
    (CompletesWithoutLength, "uploads_without_a_length", "a chunk of an upload without a length"),
    (CreatesOnlyWithLength, "uploads_without_a_length", "and `write` returns Ok"),
    (CountsDeclaredBytesOnly, "uploads_without_a_length", "`usage` of an upload without a length"),
    (IgnoresEmptyFiles, "empty_files", "an empty file is not complete"),
    (BlamesHugeChunks, "huge_uploads", "the error is not one of the store"),
    (SpoolLosesBytes, "spooled_bytes", "spooled bytes have changed"),
    (SpoolTakesBrokenBody, "spooled_bytes", "for a body that fails"),
    //
    (ClaimsIncomplete, "claims_are_exclusive", "an absent upload can be claimed"),
    (GivesTwoClaims, "claims_are_exclusive", "a claimed upload is not `Busy`"),
    (RemovesClaimed, "claims_are_exclusive", "`remove` removes a claimed upload"),
    (ClaimsByDuplicates, "claims_of_chunks", "a duplicate claims the upload"),
    (ClaimsWithoutLateFields, "claims_of_chunks", "fields that come after the bytes"),
    (ForgetsPanickedClaim, "lost_claims", "`Busy`, although no claim is live"),
    (ForgetsReleasedClaim, "lost_claims", "although no claim is live"),
    (ChangesId, "seals_are_kept", "the id of an upload changes"),
    (CountsNoAttempts, "seals_are_kept", "attempts are counted wrongly"),
    (DescribesAsLastClaim, "seals_are_kept", "a later `claim` changes the description"),
    (DropsOutOfBounds, "lengths_are_kept", "does not return `OutOfBounds` but Ok"),
    (ChecksDeclaredLength, "lengths_are_kept", "does not return `OutOfBounds` but Ok"),
    (TakesOtherLength, "lengths_are_kept", "does not return `Conflict` but Ok"),
    (ClaimsDeclaredLength, "lengths_are_kept", "`claim` changes the length"),
    (CreateReturnsItsArgument, "lengths_are_kept", "a later `create` changes the description"),
    (StatusDescribesFirst, "status_describes_the_upload", "when it is sealed"),
    (StatusForgetsFields, "status_describes_the_upload", "after its first chunk"),
    (StatusHasAnotherDelivery, "status_describes_the_upload", "the id of another delivery"),
    (ForgetsHeaders, "records_are_kept", "`status` returns another record"),
    (ForgetsEmptyBody, "records_are_kept", "`status` returns another record"),
    (MakesHeadersText, "records_are_kept", "`status` returns another record"),
    (RefusesLateChunks, "delivered_uploads_stay", "of a good chunk fails"),
    (LateChunkIsIncomplete, "delivered_uploads_stay", "a late chunk of a settled upload"),
    (RemovesSettled, "delivered_uploads_stay", "`remove` removes a delivered upload"),
    (KeepsRejectedFile, "rejected_files_are_removed", "still there when the upload was rejected"),
    (ForgetsUnsettled, "rejections_are_forgotten", "of an upload that is not settled"),
    (RefusesLateChunks, "late_chunks", "a chunk fails during the delivery"),
    (LateChunkIsIncomplete, "late_chunks", "a chunk during the delivery"),
    (MovesOverFiles, "finished_files", "a finished file is moved over another one"),
    (MoveLeavesFile, "finished_files", "still there although it was moved"),
    (DeletesOnce, "finished_files", "cannot be deleted, or not twice"),
    //
    (ListsSealedOnly, "lists", "does not return an upload as it is"),
    (ListsTwice, "lists", "returns an upload twice"),
    (ListsSettled, "lists", "returns what is settled"),
    (ListsNoCreated, "lists", "does not return an upload as it is"),
    (ListsUnordered, "lists", "is not ordered by id"),
    (IgnoresAfter, "lists_in_order", "is not ordered by id"),
    (IncludesAfter, "lists_in_order", "is not ordered by id"),
    (RepeatsLastOfPage, "lists_in_order", "begins before the end of this one"),
    (SkipsFirstOfPage, "lists_in_order", "does not return the uploads after"),
    (EndsAfterOnePage, "lists_in_order", "does not return the uploads after"),
    (NeverEnds, "lists_in_order", "begins before the end of this one"),
    (ListsAnyScope, "lists_with_filter", "returns uploads of another scope"),
    (ListsIncomplete, "lists_with_filter", "what the filter excludes"),
    (ListsNoComplete, "lists_with_filter", "does not return an upload as it is"),
    (UsageOfOne, "usage", "does not count an upload once"),
    (UsageOfSettled, "usage", "counts what is settled"),
    //
    (KeepsExpiredRecord, "records_expire", "whose record has expired is not `Incomplete`"),
    (UsesUploadIdAsId, "records_expire", "two uploads have the same id"),
    (UsesUploadIdAsId, "removed_uploads", "two uploads have the same id"),
    (KeepsRemovedFile, "removed_uploads", "still there when the upload was removed"),
    (KeepsRemovedFile, "expiry_of_each_kind", "still there after a sweep"),
    (SweepsNothing, "expiry_of_each_kind", "after a sweep of incomplete uploads"),
    (SweepsAtOnce, "expiry_of_each_kind", "after a sweep of what is older than an hour"),
    (SweepsSettledAtDrop, "expiry_of_each_kind", "after a sweep of records"),
    (SweepsUndeliveredAlways, "expiry_of_each_kind", "after a sweep of incomplete uploads"),
    (SweepsClaimed, "busy_uploads_stay", "after a sweep, while it is claimed"),
    (SweepsWritten, "busy_uploads_stay", "removes an upload that a request is writing to"),
    (SweepsDeliveredFile, "delivered_files_stay", "the file of a sealed upload cannot be read"),
    //
    (SupersedesDuplicates, "identical_chunks_at_once", "a duplicate of a chunk fails"),
    (MixesOverlaps, "overlapping_chunks_at_once", "both of two chunks are a `Conflict`"),
    (RevivesRemoved, "removal_during_a_chunk", "after a removal and the first new chunk"),
    (RemovalWaits, "removal_during_a_chunk", "`remove` takes more than"),
    (RevivesRemoved, "chunks_of_removed_uploads", "a chunk that begins a new upload"),
    (DropsChunkOfRemoved, "chunks_of_removed_uploads", "chunk of a removed upload is stored"),
    (FailsChunkOfRemoved, "chunks_of_removed_uploads", "otherwise than with `Superseded`"),
    (RacyCreation, "creations_race", ""),
    (RacyCreation, "first_chunks_race", ""),
    (RacyCompletion, "last_chunks_race", "none of them got `complete`"),
    (RacyClaim, "last_chunks_race", "that may deliver the upload"),
    (RacyCreation, "expired_record_race", ""),
    (CountsRemovedAsComplete, "chunks_race_with_removal", "counts bytes that were never sent"),
    (RacySweep, "chunks_race_with_sweep", "arrived during a sweep"),
    (RacyClaim, "claims_race", "that are `Won` and `Busy`"),
    (BusyCountsAttempt, "claims_race", "a claim that is `Busy` counts an attempt"),
    (RacyRemoval, "claims_race_with_removal", "claimed before it could be"),
    //
    (ListsNoParts, "appends_add", "does not return an upload of appends"),
    (InterruptedIsAbsent, "appends_add", "is absent when it is interrupted"),
    (AppendAddsAnywhere, "appends_at_other_offsets", "does not return `Offset` but Ok"),
    (OffsetSetsLength, "appends_at_other_offsets", "the stored length at"),
    (OffsetIsConflict, "appends_at_other_offsets", "does not return `Offset` but Err"),
    (AppendLosesPrefix, "failed_appends", "wrong ranges with Prefix"),
    (AppendKeepsPart, "failed_appends", "wrong ranges with Whole"),
    (AppendHidesBodyError, "failed_appends", "does not return the error of the body"),
    (AppendTakesOtherLength, "lengths_of_appends", "does not return `Conflict` but Ok"),
    (AppendIgnoresLength, "lengths_of_appends", "does not return `OutOfBounds` but Ok"),
    (AppendForgetsLength, "lengths_of_appends", "the stored length after an append"),
    (AppendForgetsDeclared, "declared_lengths", "the declared length after"),
    (CountsDeclaredBytesOnly, "lengths_of_appends", "`usage` without a length"),
    (ClaimsDeclaredLength, "lengths_of_appends", "`Sealed::upload` has a wrong length"),
    (AppendIgnoresEnd, "appends_that_end", "the end of the last append is no length"),
    (AppendEndsFailedBody, "appends_that_end", "the stored length after the last append"),
    (AppendEndsBeforeLength, "appends_that_end", "an append that ends before the length"),
    (AppendDropsRest, "appends_out_of_bounds", "does not return `OutOfBounds` but Ok"),
    (AppendStoresPartInBounds, "appends_out_of_bounds", "stored bytes after"),
    (AppendRefusesEmpty, "appends_to_complete_uploads", "a good append fails"),
    (AppendCreates, "appends_to_absent_uploads", "does not return `Superseded` but Ok"),
    (AppendWaits, "newer_appends_win", "takes more than"),
    (InterruptDoesNothing, "newer_appends_win", "takes more than"),
    (AppendLosesPrefix, "newer_appends_win", "stored bytes after a stalled append"),
    (AppendKeepsPart, "newer_appends_win", "stored bytes after a stalled append"),
    (InterruptTellsOld, "interrupts_race", "when an append was interrupted"),
    (AppendChecksOffsetFirst, "appends_race", "one of several appends"),
    (AppendKeepsRemovalWaiting, "removal_during_an_append", "`remove` takes more than"),
    (AppendRevivesRemoved, "removal_during_an_append", "should be absent when its upload"),
    (SweepsWritten, "removal_during_an_append", "a sweep removes an upload"),
    //
    (ConcatRemovesParts, "concatenations", "an upload should be `Complete` after `concat`"),
    (ConcatReverses, "concatenations", "a finished file has a wrong byte"),
    (ConcatUsesPartsOnce, "concatenations", "`concat` returns a wrong progress"),
    (ConcatBeginsAnew, "concatenations_repeat", "cannot be read"),
    (ConcatNeedsPartsAgain, "concatenations_repeat", "when the parts are gone"),
    (ConcatSkipsIncomplete, "concatenations_need_their_parts", "`Superseded` but Ok"),
    (ConcatLeavesPrefix, "concatenations_need_their_parts", "wrong ranges if a part"),
    (ConcatTakesOtherLength, "concatenations_need_their_parts", "return `Conflict` but Ok"),
    (RacyConcat, "concatenations_race", ""),
    (ConcatIsBusy, "concatenations_race", "are `Busy`"),
];

#[tokio::test(flavor = "multi_thread")]
async fn the_memory_store_passes() {
    // Also in a task: the future is `Send`.
    let check = tokio::spawn(async { super::check(&MemoryStore::default()).await });
    check.await.unwrap();
}

#[test]
fn a_good_store_passes() {
    assert_eq!(run(Nothing, None), None);
}

#[test]
fn a_slow_store_passes() {
    assert_eq!(run(Slow, None), None);
}

/// More uploads than a page has.
#[tokio::test]
async fn long_lists_are_walked_to_the_end() {
    let store = MemoryStore::default();
    let count = 2 * Page::MAX + 1;
    for _ in 0..count {
        store.create(&super::upload(3)).await.unwrap();
    }
    assert_eq!(store.usage().await.unwrap().len(), count);
    let page = store.list(&Filter::default(), None).await.unwrap();
    assert_eq!(page.uploads.len(), Page::MAX);
    let suite = Suite {
        store,
        patience: PATIENCE,
    };
    assert_eq!(suite.list(&Filter::default(), None).await.len(), count);
}

/// A check that cannot fail checks nothing.
#[test]
fn each_check_finds_something() {
    for promise in promises_of(&Broken::new(Nothing)) {
        let mut checks = FAULTS.iter().map(|(_, check, _)| check);
        assert!(
            checks.any(|check| *check == promise.name),
            "{}",
            promise.name
        );
    }
}

#[test]
fn each_fault_is_found() {
    let mut missed = Vec::new();
    for (fault, check, expected) in FAULTS {
        // A race is not found each time.
        let tries = if check.ends_with("race") { 20 } else { 1 };
        match (0..tries).find_map(|_| run(*fault, Some(check))) {
            Some(message) if message.contains(expected) => {}
            message => missed.push((fault, check, message)),
        }
    }
    assert!(
        missed.is_empty(),
        "not found, or found otherwise: {missed:#?}"
    );
}

/// Runs one check or all. The message of its panic, if it finds something.
fn run(fault: Fault, check: Option<&str>) -> Option<String> {
    let patience = match fault {
        // A check waits until its patience is at an end.
        ForgetsPanickedClaim | ForgetsReleasedClaim | RemovalWaits => Duration::from_millis(300),
        AppendWaits | InterruptDoesNothing | AppendKeepsRemovalWaiting => {
            Duration::from_millis(300)
        }
        _ => PATIENCE,
    };
    let suite = Suite {
        store: Broken::new(fault),
        patience,
    };
    let mut checks = promises_of(&suite.store);
    checks.retain(|promise| check.is_none_or(|check| check == promise.name));
    assert!(!checks.is_empty(), "there is no check {check:?}");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            for promise in &checks {
                suite.check(promise).await;
            }
        });
    }));
    runtime.shutdown_background();
    let panic = outcome.err()?;
    let message = panic.downcast_ref::<String>().cloned();
    message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
}

/// A [`MemoryStore`] with a fault. Its finished files can be deleted.
#[derive(Clone, Debug)]
struct Broken {
    inner: MemoryStore,
    fault: Fault,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    files: HashMap<String, Bytes>,
    /// The names of the files of uploads that are not settled.
    undelivered: HashMap<UploadId, String>,
    delivered: Vec<String>,
    /// The first description of each upload.
    seen: HashMap<UploadId, Upload>,
    /// Uploads that are absent here, although the inner store has them.
    hidden: HashSet<UploadId>,
    claimed: HashSet<UploadId>,
    busy: HashMap<UploadId, u32>,
    writing: HashSet<UploadId>,
    chunks: HashMap<UploadId, Vec<(u64, Bytes)>>,
}

impl Broken {
    fn new(fault: Fault) -> Self {
        Self {
            inner: MemoryStore::default(),
            fault,
            shared: Arc::default(),
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap()
    }

    async fn pause_if_slow(&self) {
        if self.is(Slow) {
            pause().await;
        }
    }

    async fn is_absent(&self, id: &UploadId) -> bool {
        self.inner.status(id).await.unwrap().is_none()
    }

    async fn put(
        &self,
        upload: &Upload,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Progress, StoreError> {
        let len = bytes.len() as u64;
        super::write(&self.inner, upload, offset, Source::new(bytes), len).await
    }

    /// Stores a chunk wrongly. `None` if the fault is another one.
    async fn write_wrongly(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Option<Result<Progress, StoreError>> {
        let status = self.inner.status(&upload.id).await.unwrap();
        let stored = match status.as_ref().map(|status| &status.state) {
            Some(State::Receiving(ranges)) => ranges.clone(),
            _ => Default::default(),
        };
        let is_known = status.is_some();
        let length = status.as_ref().map_or(upload, |status| &status.upload);
        let length = length.length.unwrap_or(u64::MAX);
        let is_complete = status.is_some_and(|status| status.progress().complete);
        let overlaps = |len| stored.gaps(offset, len) != [offset..offset + len];
        Some(match self.fault {
            KeepsFailedBody | FailedChunkLeavesUpload => {
                let (bytes, result) = read_all(body).await;
                let kept = if result.is_ok() || self.is(KeepsFailedBody) {
                    &bytes[..]
                } else {
                    b""
                };
                let progress = self.put(upload, offset, kept).await;
                result.and(progress)
            }
            HidesBodyError => {
                let result = self.inner.write(upload, offset, body).await;
                result.map_err(|error| StoreError::new(error.to_string()))
            }
            CountsEachFrame => {
                let mut at = offset;
                loop {
                    match body.next().await.transpose() {
                        Ok(None) => break self.put(upload, at, b"").await,
                        Ok(Some(frame)) => {
                            self.put(upload, at, &frame).await.unwrap();
                            at += frame.len() as u64;
                        }
                        Err(error) => break Err(error.into()),
                    }
                }
            }
            RefusesDuplicates | DropsOverlaps | BlamesHugeChunks | IgnoresEmptyFiles => {
                let (bytes, result) = read_all(body).await;
                let len = bytes.len() as u64;
                if let Err(error) = result {
                    Err(error)
                } else if self.is(BlamesHugeChunks) && upload.length > Some(1 << 39) {
                    Err(StoreError::OutOfBounds)
                } else if self.is(IgnoresEmptyFiles) && len == 0 {
                    Ok(super::receiving(0))
                } else if self.is(RefusesDuplicates) && overlaps(len) {
                    Err(StoreError::new("the bytes are stored already"))
                } else if self.is(DropsOverlaps) && overlaps(len) {
                    Ok(super::receiving(stored.total()))
                } else {
                    self.put(upload, offset, &bytes).await
                }
            }
            DropsChangedBytes => {
                let (bytes, result) = read_all(body).await;
                let mut last = result.and(self.inner.create(upload).await.map(|s| s.progress()));
                for gap in stored.gaps(offset, bytes.len() as u64) {
                    let new = &bytes[(gap.start - offset) as usize..(gap.end - offset) as usize];
                    last = last.and(self.put(upload, gap.start, new).await);
                }
                last
            }
            TakesOtherLength if is_known => {
                let upload = Upload {
                    length: None,
                    ..upload.clone()
                };
                self.inner.write(&upload, offset, body).await
            }
            OverwritesStored => {
                let (bytes, result) = read_all(body).await;
                if let Err(error) = result {
                    return Some(Err(error));
                }
                let chunks = self.log_chunk(upload, offset, bytes);
                self.inner.remove(&upload.id).await.unwrap();
                self.put_all(upload, chunks.into_iter().rev()).await
            }
            RevivesRemoved => {
                let before = self.shared().chunks.get(&upload.id).cloned();
                let (bytes, result) = read_all(body).await;
                if let Err(error) = result {
                    return Some(Err(error));
                }
                self.log_chunk(upload, offset, bytes.clone());
                let chunks = before.into_iter().flatten();
                self.put_all(upload, chunks.chain([(offset, bytes)])).await
            }
            DropsChunkOfRemoved | FailsChunkOfRemoved => {
                let (bytes, result) = read_all(body).await;
                let is_removed = is_known && self.is_absent(&upload.id).await;
                match result {
                    Err(error) => Err(error),
                    Ok(()) if !is_removed => self.put(upload, offset, &bytes).await,
                    Ok(()) if self.is(DropsChunkOfRemoved) => {
                        Ok(super::receiving(bytes.len() as u64))
                    }
                    Ok(()) => Err(StoreError::new("the upload is gone")),
                }
            }
            DropsOutOfBounds | DropsOverflow | FailsOutOfBounds | KeepsPartInBounds
            | ChecksDeclaredLength => {
                let (bytes, result) = read_all(body).await;
                let end = offset.checked_add(bytes.len() as u64);
                if result.is_err() || end.is_some_and(|end| end <= length) {
                    return Some(result.and(self.put(upload, offset, &bytes).await));
                }
                let is_dropped = match self.fault {
                    DropsOutOfBounds => true,
                    DropsOverflow => end.is_none(),
                    ChecksDeclaredLength => {
                        upload.length.is_none_or(|declared| end <= Some(declared))
                    }
                    _ => false,
                };
                if is_dropped {
                    return Some(Ok(super::receiving(stored.total())));
                }
                if self.is(KeepsPartInBounds) && offset < length {
                    let part = &bytes[..(length - offset) as usize];
                    self.put(upload, offset, part).await.unwrap();
                }
                Err(if self.is(FailsOutOfBounds) {
                    StoreError::new("the bytes lie outside")
                } else {
                    StoreError::OutOfBounds
                })
            }
            SupersedesDuplicates | RemovalWaits => {
                if !self.shared().writing.insert(upload.id) && self.is(SupersedesDuplicates) {
                    return Some(Err(StoreError::Superseded));
                }
                let result = self.inner.write(upload, offset, body).await;
                self.shared().writing.remove(&upload.id);
                result
            }
            MixesOverlaps => {
                let (bytes, result) = read_all(body).await;
                let units = (offset..).step_by(5000).zip(bytes.chunks(5000));
                // Of two chunks each one stores other units first.
                let (mut first, rest): (Vec<_>, Vec<_>) =
                    units.partition(|(at, _)| (at % 10_000 == 0) == (offset == 0));
                first.push((offset, b""));
                let mut last = result.map(|()| super::receiving(0));
                for (at, unit) in first.into_iter().chain(rest) {
                    last = last.and(self.put(upload, at, unit).await);
                    if unit.is_empty() {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
                last
            }
            RefusesLateChunks if is_complete => Err(StoreError::Superseded),
            LateChunkIsIncomplete if is_complete => {
                let (_, result) = read_all(body).await;
                result.map(|()| super::receiving(0))
            }
            CompletesWithoutLength => {
                let result = self.inner.write(upload, offset, body).await;
                result.map(|progress| Progress {
                    complete: progress.complete || upload.length.is_none(),
                    ..progress
                })
            }
            RacyCreation => {
                let (bytes, result) = read_all(body).await;
                pause().await;
                if !is_known {
                    self.inner.remove(&upload.id).await.unwrap();
                }
                result.and(self.put(upload, offset, &bytes).await)
            }
            RacyCompletion => {
                let (bytes, result) = read_all(body).await;
                pause().await;
                let gaps = stored.gaps(offset, bytes.len() as u64);
                let new: u64 = gaps.iter().map(|gap| gap.end - gap.start).sum();
                let complete = is_complete || Some(stored.total() + new) == upload.length;
                let progress = result.and(self.put(upload, offset, &bytes).await);
                progress.map(|progress| Progress {
                    complete,
                    ..progress
                })
            }
            CountsRemovedAsComplete => {
                let result = self.inner.write(upload, offset, body).await;
                pause().await;
                let is_removed = self.is_absent(&upload.id).await;
                result.map(|progress| Progress {
                    complete: progress.complete || is_removed,
                    ..progress
                })
            }
            _ => return None,
        })
    }

    /// Appends wrongly. `None` if the fault is another one.
    async fn append_wrongly(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Option<Result<Progress, StoreError>> {
        let status = self.inner.status(&upload.id).await.unwrap();
        let stored = status.as_ref().map_or(0, Status::prefix);
        let is_complete = status.as_ref().is_some_and(|it| it.progress().complete);
        let length = status.and_then(|status| status.upload.length);
        let length = length.or(upload.length);
        let without_length = Upload {
            length: None,
            ..upload.clone()
        };
        let is_other = append.offset != stored;
        Some(match self.fault {
            AppendAddsAnywhere | AppendChecksOffsetFirst => {
                if is_other && self.is(AppendChecksOffsetFirst) {
                    return Some(Err(StoreError::Offset { stored }));
                }
                let (bytes, result) = read_all(body).await;
                let stored = self.inner.interrupt(&upload.id).await.unwrap();
                let stored = stored.map_or(0, |status| status.prefix());
                result.and(self.add(upload, Append::at(stored), &bytes).await)
            }
            OffsetSetsLength if is_other => {
                self.add(upload, Append::at(stored), b"").await.unwrap();
                Err(StoreError::Offset { stored })
            }
            OffsetIsConflict if is_other => Err(StoreError::Conflict),
            AppendLosesPrefix | AppendKeepsPart | AppendIgnoresEnd => {
                let append = Append {
                    keep: match self.fault {
                        AppendLosesPrefix => Keep::Whole,
                        AppendKeepsPart => Keep::Prefix,
                        _ => append.keep,
                    },
                    ends_here: append.ends_here && !self.is(AppendIgnoresEnd),
                    ..append
                };
                self.inner.append(upload, append, body).await
            }
            AppendHidesBodyError => {
                let result = self.inner.append(upload, append, body).await;
                result.map_err(|error| StoreError::new(error.to_string()))
            }
            AppendTakesOtherLength if length != upload.length => {
                self.inner.append(&without_length, append, body).await
            }
            AppendIgnoresLength => self.inner.append(&without_length, append, body).await,
            AppendForgetsDeclared => {
                let mut undeclared = upload.clone();
                undeclared.creation = None;
                self.inner.append(&undeclared, append, body).await
            }
            AppendForgetsLength => {
                let (bytes, result) = read_all(body).await;
                let upload = if result.is_ok() {
                    upload
                } else {
                    &without_length
                };
                result.and(self.add(upload, append, &bytes).await)
            }
            AppendEndsFailedBody if append.ends_here => {
                let (bytes, result) = read_all(body).await;
                result.and(self.add(upload, append, &bytes).await)
            }
            AppendEndsBeforeLength => {
                let result = self.inner.append(upload, append, body).await;
                result.map(|progress| Progress {
                    complete: progress.complete || append.ends_here,
                    ..progress
                })
            }
            AppendDropsRest | AppendStoresPartInBounds if length.is_some() && !is_other => {
                let (bytes, result) = read_all(body).await;
                let fits = length.map(|length| length.saturating_sub(stored) as usize);
                let fits = fits.unwrap_or(bytes.len()).min(bytes.len());
                let added = self.add(upload, append, &bytes[..fits]).await;
                if self.is(AppendStoresPartInBounds) && fits < bytes.len() {
                    return Some(Err(StoreError::OutOfBounds));
                }
                result.and(added)
            }
            AppendRefusesEmpty if is_complete => Err(StoreError::OutOfBounds),
            AppendCreates => {
                self.inner.create(upload).await.unwrap();
                self.inner.append(upload, append, body).await
            }
            AppendWaits | AppendKeepsRemovalWaiting => {
                while self.is(AppendWaits) && self.shared().writing.contains(&upload.id) {
                    tokio::task::yield_now().await;
                }
                self.shared().writing.insert(upload.id);
                let result = self.inner.append(upload, append, body).await;
                self.shared().writing.remove(&upload.id);
                result
            }
            AppendRevivesRemoved => {
                let result = self.inner.append(upload, append, body).await;
                if matches!(result, Err(StoreError::Superseded)) {
                    self.inner.create(upload).await.unwrap();
                }
                result
            }
            _ => return None,
        })
    }

    async fn add(
        &self,
        upload: &Upload,
        append: Append,
        bytes: &[u8],
    ) -> Result<Progress, StoreError> {
        let source = std::pin::pin!(Source::new(bytes));
        let mut body = ChunkBody::new(source, None, u64::MAX);
        self.inner.append(upload, append, &mut body).await
    }

    /// Concatenates wrongly. `None` if the fault is another one.
    async fn concat_wrongly(
        &self,
        upload: &Upload,
        parts: &[UploadId],
    ) -> Option<Result<Progress, StoreError>> {
        let mut parts = parts.to_vec();
        match self.fault {
            ConcatReverses => parts.reverse(),
            ConcatUsesPartsOnce => {
                let mut seen = HashSet::new();
                parts.retain(|part| seen.insert(*part));
            }
            ConcatSkipsIncomplete => {
                let whole = self.uploads_that_are(|state| matches!(state, State::Complete));
                let whole: Vec<_> = whole.await.iter().map(|it| it.upload.id).collect();
                parts.retain(|part| whole.contains(part));
            }
            ConcatBeginsAnew if !self.is_absent(&parts[0]).await => {
                self.inner.remove(&upload.id).await.unwrap();
            }
            ConcatBeginsAnew => {}
            RacyConcat => {
                let is_absent = self.is_absent(&upload.id).await;
                pause().await;
                if is_absent {
                    self.inner.remove(&upload.id).await.unwrap();
                } else {
                    return Some(Err(StoreError::Conflict));
                }
            }
            ConcatNeedsPartsAgain => {
                for part in &parts {
                    if self.is_absent(part).await {
                        return Some(Err(StoreError::Superseded));
                    }
                }
            }
            ConcatTakesOtherLength => {
                self.inner.remove(&upload.id).await.unwrap();
            }
            ConcatIsBusy => return Some(Err(StoreError::Busy)),
            ConcatRemovesParts | ConcatLeavesPrefix => {}
            _ => return None,
        }
        let result = self.inner.concat(upload, &parts).await;
        match self.fault {
            ConcatRemovesParts => {
                for part in &parts {
                    self.inner.remove(part).await.unwrap();
                }
            }
            ConcatLeavesPrefix if result.is_err() => {
                drop(self.put(upload, 0, b"a").await);
            }
            _ => {}
        }
        Some(result)
    }

    /// Adds a chunk to those that the upload has had. Returns them.
    fn log_chunk(&self, upload: &Upload, offset: u64, bytes: Bytes) -> Vec<(u64, Bytes)> {
        let mut shared = self.shared();
        let chunks = shared.chunks.entry(upload.id).or_default();
        chunks.push((offset, bytes));
        chunks.clone()
    }

    async fn put_all(
        &self,
        upload: &Upload,
        chunks: impl Iterator<Item = (u64, Bytes)>,
    ) -> Result<Progress, StoreError> {
        let mut last = Ok(super::receiving(0));
        for (offset, bytes) in chunks {
            last = last.and(self.put(upload, offset, &bytes).await);
        }
        last
    }

    fn claim_of(&self, inner: Option<MemoryClaim>, sealed: Sealed) -> Claimed<BrokenClaim> {
        let id = sealed.upload.id;
        self.shared().claimed.insert(id);
        Claimed::Won(BrokenClaim {
            inner,
            id,
            sealed,
            store: self.clone(),
        })
    }

    /// A claim that is not one.
    fn no_claim(&self, upload: &Upload) -> Claimed<BrokenClaim> {
        let name = "no claim".to_owned();
        let store = self.clone();
        let named = Named {
            name: name.clone(),
            store,
        };
        self.claim_of(None, Sealed::new(name, upload.clone(), 1, named))
    }

    fn forget_file(&self, id: &UploadId) {
        let mut shared = self.shared();
        if let Some(name) = shared.undelivered.remove(id) {
            if !self.is(KeepsRemovedFile) {
                shared.files.remove(&name);
            }
        }
    }

    async fn uploads_that_are(&self, is: impl Fn(&State) -> bool) -> Vec<Status> {
        let seen: Vec<_> = self.shared().seen.keys().copied().collect();
        let mut found = Vec::new();
        for id in seen {
            let status = self.inner.status(&id).await.unwrap();
            found.extend(status.filter(|status| is(&status.state)));
        }
        found
    }
}

/// Lets other tasks run.
async fn pause() {
    for _ in 0..5 {
        tokio::task::yield_now().await;
    }
}

/// All bytes of a body, and whether it failed.
async fn read_all(body: &mut ChunkBody<'_>) -> (Bytes, Result<(), StoreError>) {
    let mut bytes = Vec::new();
    loop {
        match body.next().await.transpose() {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return (bytes.into(), Ok(())),
            Err(error) => return (bytes.into(), Err(error.into())),
        }
    }
}

impl Store for Broken {
    type Claim = BrokenClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        self.pause_if_slow().await;
        self.shared()
            .seen
            .entry(upload.id)
            .or_insert(upload.clone());
        let is_absent = self.is_absent(&upload.id).await;
        match self.fault {
            CreateStoresNothing if is_absent => {
                let state = State::Receiving(Default::default());
                return Ok(Status::new(upload.clone(), state));
            }
            CreateBeginsAnew => drop(self.inner.remove(&upload.id).await?),
            CreatesOnlyWithLength if upload.length.is_none() => {
                return Err(StoreError::Unsupported);
            }
            RacyCreation if is_absent => {
                pause().await;
                self.inner.remove(&upload.id).await?;
            }
            _ => {}
        }
        let mut status = self.inner.create(upload).await?;
        if self.is(CreateReturnsItsArgument) {
            status.upload = upload.clone();
        }
        Ok(status)
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.pause_if_slow().await;
        self.shared()
            .seen
            .entry(upload.id)
            .or_insert(upload.clone());
        let result = match self.write_wrongly(upload, offset, body).await {
            Some(result) => result,
            None => self.inner.write(upload, offset, body).await,
        };
        self.pause_if_slow().await;
        result
    }

    async fn write_and_claim(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<(Progress, Option<BrokenClaim>), StoreError> {
        let progress = self.write(upload, offset, body).await?;
        let described = match self.fault {
            ClaimsByDuplicates => body.describe(upload),
            ClaimsWithoutLateFields => upload.clone(),
            _ => return Ok((progress, None)),
        };
        Ok(match self.claim(&described).await? {
            Claimed::Won(claim) => (progress, Some(claim)),
            _ => (progress, None),
        })
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.pause_if_slow().await;
        let is_hidden = self.shared().hidden.contains(id);
        let mut status = self.inner.status(id).await?.filter(|_| !is_hidden);
        if let Some(status) = &mut status {
            match self.fault {
                StatusDescribesFirst => status.upload = self.shared().seen[id].clone(),
                StatusForgetsFields => status.upload.fields.clear(),
                StatusHasAnotherDelivery => status.delivery = Some(id.to_string()),
                _ => {}
            }
        }
        Ok(status)
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<BrokenClaim>, StoreError> {
        self.pause_if_slow().await;
        let id = upload.id;
        let mut is_free = false;
        if self.is(RacyClaim) {
            is_free = !self.shared().claimed.contains(&id);
            pause().await;
        }
        let inner = match self.inner.claim(upload).await? {
            Claimed::Won(inner) => inner,
            Claimed::Busy if self.is(GivesTwoClaims) || is_free => {
                return Ok(self.no_claim(upload));
            }
            Claimed::Incomplete if self.is(ClaimsIncomplete) => return Ok(self.no_claim(upload)),
            Claimed::Busy => {
                *self.shared().busy.entry(id).or_default() += 1;
                return Ok(Claimed::Busy);
            }
            Claimed::Incomplete => return Ok(Claimed::Incomplete),
            Claimed::Settled(record) => return Ok(Claimed::Settled(record)),
        };
        let mut sealed = inner.sealed().clone();
        let (name, store) = (sealed.id.clone(), self.clone());
        let bytes = read(sealed.stored.read()).await.unwrap();
        {
            let mut shared = self.shared();
            let is_new = shared.undelivered.insert(id, name.clone()).is_none();
            if is_new {
                shared.files.insert(name.clone(), bytes.into());
            }
        }
        sealed.stored = Arc::new(Named { name, store });
        match self.fault {
            ChangesId => sealed.id.push_str(&sealed.attempt.to_string()),
            UsesUploadIdAsId => sealed.id = id.to_string(),
            CountsNoAttempts => sealed.attempt = 1,
            BusyCountsAttempt => {
                sealed.attempt += self.shared().busy.get(&id).copied().unwrap_or_default();
            }
            DescribesAsLastClaim => sealed.upload = upload.clone().into(),
            ClaimsDeclaredLength => Arc::make_mut(&mut sealed.upload).length = upload.length,
            WrongChecksum => sealed.crc32 = Some(7),
            _ => {}
        }
        Ok(self.claim_of(Some(inner), sealed))
    }

    async fn forget_rejection(&self, id: &UploadId) -> Result<bool, StoreError> {
        if self.is(ForgetsUnsettled) {
            return self.inner.remove(id).await;
        }
        Ok(false)
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.pause_if_slow().await;
        let waits = self.is(RemovalWaits) || self.is(AppendKeepsRemovalWaiting);
        while waits && self.shared().writing.contains(id) {
            tokio::task::yield_now().await;
        }
        let status = self.inner.status(id).await?;
        let (is_complete, is_settled) = match status.map(|status| status.state) {
            Some(State::Complete) => (true, false),
            Some(State::Settled(_)) => (false, true),
            _ => (false, false),
        };
        if self.is(RacyRemoval) && is_complete && !self.shared().claimed.contains(id) {
            pause().await;
            return Ok(self.shared().hidden.insert(*id));
        }
        let removed = self.inner.remove(id).await?;
        if removed {
            if !self.is(RevivesRemoved) {
                self.shared().chunks.remove(id);
            }
            self.forget_file(id);
        }
        Ok(removed
            || (self.is(RemovesClaimed) && is_complete)
            || (self.is(RemovesSettled) && is_settled))
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        self.pause_if_slow().await;
        let mut filter = filter.clone();
        match self.fault {
            ListsAnyScope => filter.scope = None,
            ListsIncomplete => filter.complete = false,
            _ => {}
        }
        let from = after.filter(|_| !self.is(IgnoresAfter));
        let mut uploads = self.inner.list(&filter, from).await?.uploads;
        match self.fault {
            ListsSealedOnly => uploads.retain(|listed| {
                let undelivered = &self.shared().undelivered;
                !listed.progress.complete || undelivered.contains_key(&listed.upload.id)
            }),
            ListsTwice => {
                uploads = uploads.into_iter().flat_map(|l| [l.clone(), l]).collect();
            }
            ListsSettled => {
                let settled = self.uploads_that_are(|state| matches!(state, State::Settled(_)));
                let listed = settled.await.into_iter();
                let listed = listed.map(|s| Listed::new(s.upload.clone(), s.progress()));
                uploads.extend(listed.filter(|listed| Some(&listed.upload.id) > after));
                uploads.sort_by_key(|listed| listed.upload.id);
            }
            ListsNoCreated => {
                uploads.retain(|l| l.progress.complete || l.progress.received > 0);
            }
            ListsUnordered => uploads.reverse(),
            IncludesAfter => {
                let all = self.inner.list(&filter, None).await?.uploads;
                let first = all.into_iter().find(|l| Some(&l.upload.id) == after);
                uploads.splice(..0, first);
            }
            ListsNoParts => uploads.retain(|listed| listed.upload.role == Role::Whole),
            ListsNoComplete if filter.complete => uploads.clear(),
            _ => {}
        }
        let ids: Vec<_> = uploads.iter().map(|listed| listed.upload.id).collect();
        let next = match (self.fault, &ids[..]) {
            (Slow, _) if after.is_none() => {
                // An empty page, although others follow.
                return Ok(Page::new(Vec::new(), Some(UploadId::from_bytes([0; 32]))));
            }
            (Slow, [_, second, _, ..]) => Some(*second),
            (RepeatsLastOfPage, [first, _, _, ..]) => Some(*first),
            (SkipsFirstOfPage, [_, _, third, ..]) => Some(*third),
            (EndsAfterOnePage, _) => None,
            (NeverEnds, _) => after.copied(),
            _ => return Ok(Page::new(uploads, None)),
        };
        uploads.truncate(2);
        Ok(Page::new(uploads, next))
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.pause_if_slow().await;
        let mut usage = self.inner.usage().await?;
        match self.fault {
            UsageOfOne => usage.truncate(1),
            UsageOfSettled => {
                let settled = self.uploads_that_are(|state| matches!(state, State::Settled(_)));
                usage.extend(
                    settled
                        .await
                        .iter()
                        .map(|status| Usage::from(&status.upload)),
                );
            }
            CountsDeclaredBytesOnly => {
                let shared = self.shared();
                for usage in &mut usage {
                    *usage = Usage::from(&shared.seen[&usage.id]);
                }
            }
            _ => {}
        }
        Ok(usage)
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        self.pause_if_slow().await;
        let mut expiry = *expiry;
        let is_complete = |state: &State| matches!(state, State::Complete);
        let is_receiving = |state: &State| matches!(state, State::Receiving(_));
        let sweeps_complete = expiry.undelivered_before > Some(SystemTime::now());
        match self.fault {
            SweepsNothing => return Ok(Swept::default()),
            SweepsSettledAtDrop if !self.shared().claimed.is_empty() => {
                expiry.records_before = SystemTime::UNIX_EPOCH;
            }
            SweepsAtOnce => expiry.abandoned_before = Some(later()),
            SweepsUndeliveredAlways => {
                expiry.undelivered_before.get_or_insert(later());
            }
            SweepsClaimed if sweeps_complete => {
                let complete = self.uploads_that_are(is_complete).await;
                let ids = complete.iter().map(|status| status.upload.id);
                self.shared().hidden.extend(ids);
            }
            SweepsDeliveredFile => {
                let mut shared = self.shared();
                for name in std::mem::take(&mut shared.delivered) {
                    shared.files.remove(&name);
                }
            }
            SweepsWritten | RacySweep => {
                let receiving = self.uploads_that_are(is_receiving).await;
                if self.is(RacySweep) {
                    pause().await;
                }
                for status in receiving {
                    self.inner.remove(&status.upload.id).await?;
                }
            }
            _ => {}
        }
        let swept = self.inner.sweep(&expiry).await?;
        let undelivered: Vec<_> = self.shared().undelivered.keys().copied().collect();
        for id in undelivered {
            if self.is_absent(&id).await {
                self.forget_file(&id);
            }
        }
        Ok(swept)
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn interrupt(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.pause_if_slow().await;
        let before = self.inner.status(id).await?;
        match self.fault {
            InterruptDoesNothing => return Ok(before),
            InterruptedIsAbsent => return Ok(None),
            AppendWaits => {
                while self.shared().writing.contains(id) {
                    tokio::task::yield_now().await;
                }
            }
            InterruptTellsOld => {
                for _ in 0..20 {
                    pause().await;
                }
                self.inner.interrupt(id).await?;
                return Ok(before);
            }
            _ => {}
        }
        self.inner.interrupt(id).await
    }

    async fn append(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.pause_if_slow().await;
        let result = match self.append_wrongly(upload, append, body).await {
            Some(result) => result,
            None => self.inner.append(upload, append, body).await,
        };
        self.pause_if_slow().await;
        result
    }

    async fn concat(&self, upload: &Upload, parts: &[UploadId]) -> Result<Progress, StoreError> {
        self.pause_if_slow().await;
        match self.concat_wrongly(upload, parts).await {
            Some(result) => result,
            None => self.inner.concat(upload, parts).await,
        }
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Content, StoreError> {
        let (mut bytes, result) = read_all(body).await;
        match self.fault {
            SpoolTakesBrokenBody => {}
            SpoolLosesBytes => bytes.truncate(500_000),
            _ => result?,
        }
        Ok(Content::from(bytes))
    }
}

#[derive(Debug)]
struct BrokenClaim {
    /// `None` if the store has granted a claim that it did not have.
    inner: Option<MemoryClaim>,
    id: UploadId,
    sealed: Sealed,
    store: Broken,
}

impl Claim for BrokenClaim {
    fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    async fn settle(&mut self, record: &Record) -> Result<(), StoreError> {
        let (store, mut record) = (&self.store, record.clone());
        store.pause_if_slow().await;
        let inner = self.inner.as_mut().ok_or(StoreError::Superseded)?;
        {
            let mut shared = store.shared();
            let name = shared.undelivered.remove(&self.id).unwrap();
            if record.delivered {
                shared.delivered.push(name);
            } else if !store.is(KeepsRejectedFile) {
                shared.files.remove(&name);
            }
        }
        match store.fault {
            ForgetsHeaders => record.headers.clear(),
            ForgetsEmptyBody => record.body = record.body.filter(|body| !body.is_empty()),
            MakesHeadersText => {
                for value in record.headers.values_mut() {
                    let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
                    *value = text.try_into().unwrap();
                }
            }
            KeepsExpiredRecord => record.expires += Duration::from_secs(86_400),
            _ => {}
        }
        inner.settle(&record).await
    }

    async fn release(mut self) {
        self.store.pause_if_slow().await;
        let inner = self.inner.take();
        if self.store.is(ForgetsReleasedClaim) {
            std::mem::forget(inner);
        }
    }
}

impl Drop for BrokenClaim {
    fn drop(&mut self) {
        self.store.shared().claimed.remove(&self.id);
        let inner = self.inner.take();
        if self.store.is(ForgetsPanickedClaim) && std::thread::panicking() {
            std::mem::forget(inner);
        } else if self.store.is(Slow) {
            tokio::spawn(async {
                pause().await;
                drop(inner);
            });
        }
    }
}

/// A file of a [`Broken`] store.
#[derive(Debug)]
struct Named {
    name: String,
    store: Broken,
}

impl Stored for Named {
    fn read(&self) -> Content {
        match self.store.shared().files.get(&self.name) {
            Some(bytes) => bytes.clone().into(),
            None => Content::open("there is no such file"),
        }
    }

    fn delete(&self) -> BoxFuture<'_, std::io::Result<()>> {
        Box::pin(async {
            let deleted = self.store.shared().files.remove(&self.name);
            match deleted {
                None if self.store.is(DeletesOnce) => Err(std::io::ErrorKind::NotFound.into()),
                _ => Ok(()),
            }
        })
    }

    fn move_to<'a>(&'a self, to: &'a Path) -> BoxFuture<'a, std::io::Result<()>> {
        Box::pin(async move {
            if self.store.is(MovesOverFiles) {
                std::fs::write(to, read(self.read()).await?)?;
            } else {
                export::copy(self.read(), None, to).await?;
            }
            if self.store.is(MoveLeavesFile) {
                return Ok(());
            }
            self.delete().await
        })
    }
}
