//! The suite finds what is broken, and nothing else: a check that cannot fail is none.

use std::{
    collections::{HashMap, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_core::Stream;

use super::{PATIENCE, Suite};
use crate::{
    MemoryStore, UploadError,
    store::{
        ChunkBody, Expiry, Location, MemoryClaim, Progress, Sealed, Settlement, Spool, Status,
        Store, StoreError, Swept, TryClaim, Upload, UploadKey, Usage,
    },
};

/// What is wrong with a [`Broken`] store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing.
    Nothing,
    /// Nothing, but all that it does takes a while.
    Slow,
    // Chunks.
    KeepsFailedBody,
    KeepsDroppedBody,
    FailedChunkLeavesUpload,
    RefusesDuplicates,
    DropsOverlaps,
    OverwritesStored,
    IgnoresEmptyFiles,
    BlamesHugeChunks,
    SpoolLosesBytes,
    SpoolTakesBrokenBody,
    KeepsRangeOfDropped,
    SupersedesDuplicates,
    // Delivery.
    ClaimsIncomplete,
    GivesTwoClaims,
    ForgetsPanickedClaim,
    ForgetsReleasedClaim,
    ChangesId,
    UsesKeyAsId,
    CountsNoAttempts,
    DescribesAsLastSeal,
    WrongChecksum,
    ForgetsHeaders,
    ForgetsEmptyBody,
    MakesHeadersText,
    RefusesLateChunks,
    LateChunkIsIncomplete,
    KeepsRejectedFile,
    KeepsRemovedFile,
    ListsSealedOnly,
    ListsTwice,
    ListsReceiving,
    ListsAnyScope,
    ListsNoComplete,
    CountsOnlyOne,
    CountsSettled,
    RemovesClaimed,
    // Expiry.
    KeepsExpiredRecord,
    SweepsNothing,
    SweepsAtOnce,
    SweepsClaimed,
    SweepsWritten,
    SweepsUndeliveredAlways,
    SweepsDeliveredFile,
    // Races.
    RacyCreation,
    RacyCompletion,
    RacyClaim,
    CountsRemovedAsComplete,
}

/// A [`MemoryStore`] whose finished files have names, with a fault.
#[derive(Clone)]
struct Broken {
    inner: MemoryStore,
    fault: Fault,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    files: HashMap<PathBuf, Bytes>,
    /// The files of uploads that are not settled.
    undelivered: HashMap<UploadKey, PathBuf>,
    delivered: Vec<PathBuf>,
    /// Uploads that the inner store has, but this one says that it has not.
    hidden: HashSet<UploadKey>,
    seen: HashSet<UploadKey>,
    claimed: HashSet<UploadKey>,
    writing: HashSet<UploadKey>,
    chunks: HashMap<UploadKey, Vec<(u64, Bytes)>>,
}

struct BrokenClaim {
    /// `None` if there is none.
    inner: Option<MemoryClaim>,
    key: UploadKey,
    store: Broken,
}

impl Drop for BrokenClaim {
    fn drop(&mut self) {
        self.store.state().claimed.remove(&self.key);
        if self.store.fault == Fault::ForgetsPanickedClaim && std::thread::panicking() {
            std::mem::forget(self.inner.take());
        }
    }
}

/// The right of one request to write to an upload.
struct Turn<'a>(&'a Broken, UploadKey);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.state().writing.remove(&self.1);
    }
}

/// Stores what has come of a body when its request is dropped.
struct KeepOnDrop<'a> {
    store: &'a Broken,
    upload: &'a Upload,
    offset: u64,
    bytes: Vec<u8>,
}

impl Drop for KeepOnDrop<'_> {
    fn drop(&mut self) {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        if !bytes.is_empty() {
            let put = pin!(self.store.put_bytes(self.upload, self.offset, bytes));
            // It has nothing to wait for.
            let _ = put.poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

/// A body of bytes that are there.
struct Given(Option<Bytes>);

impl Stream for Given {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

impl Broken {
    fn new(fault: Fault) -> Self {
        Self {
            inner: MemoryStore::default(),
            fault,
            state: Arc::default(),
        }
    }

    fn is(&self, fault: Fault) -> bool {
        self.fault == fault
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Lets others go on.
    async fn pause(&self) {
        for _ in 0..5 {
            tokio::task::yield_now().await;
        }
    }

    async fn pause_if_slow(&self) {
        if self.is(Fault::Slow) {
            self.pause().await;
        }
    }

    async fn put_bytes(
        &self,
        upload: &Upload,
        offset: u64,
        bytes: Bytes,
    ) -> Result<Progress, StoreError> {
        let len = bytes.len() as u64;
        let stream = pin!(Given(Some(bytes)));
        let mut body = ChunkBody::new(stream, Some(len), 0);
        self.inner.put(upload, offset, &mut body).await
    }

    /// All bytes of a body, and whether it failed.
    async fn read(body: &mut ChunkBody<'_>) -> (Bytes, Result<(), StoreError>) {
        let mut bytes = Vec::new();
        loop {
            match body.next().await.transpose() {
                Ok(Some(piece)) => bytes.extend_from_slice(&piece),
                Ok(None) => return (bytes.into(), Ok(())),
                Err(error) => return (bytes.into(), Err(error.into())),
            }
        }
    }

    /// A chunk, wrongly; `None` if the fault is another one.
    async fn put_wrongly(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Option<Result<Progress, StoreError>> {
        use Fault::*;
        let status = self.inner.status(&upload.key).await.unwrap();
        let stored = match &status {
            Status::Receiving(ranges) => ranges.total(),
            _ => 0,
        };
        let touches = |len| match &status {
            Status::Receiving(ranges) => ranges.gaps(offset, len) != [offset..offset + len],
            _ => false,
        };
        // What is wrong in races only shall not be found by a check of something else before.
        let is_small = upload.total <= 1000;
        Some(match self.fault {
            KeepsFailedBody | FailedChunkLeavesUpload => {
                let (bytes, result) = Self::read(body).await;
                let keep = result.is_ok() || self.is(KeepsFailedBody);
                let bytes = if keep { bytes } else { Bytes::new() };
                let progress = self.put_bytes(upload, offset, bytes).await;
                result.and(progress)
            }
            KeepsDroppedBody => {
                let mut kept = KeepOnDrop {
                    store: self,
                    upload,
                    offset,
                    bytes: Vec::new(),
                };
                loop {
                    match body.next().await.transpose() {
                        Ok(Some(piece)) => kept.bytes.extend_from_slice(&piece),
                        Ok(None) => {
                            let bytes = std::mem::take(&mut kept.bytes).into();
                            break self.put_bytes(upload, offset, bytes).await;
                        }
                        Err(error) => {
                            kept.bytes.clear();
                            break Err(error.into());
                        }
                    }
                }
            }
            RefusesDuplicates | DropsOverlaps | BlamesHugeChunks | IgnoresEmptyFiles => {
                let (bytes, result) = Self::read(body).await;
                let len = bytes.len() as u64;
                if let Err(error) = result {
                    Err(error)
                } else if self.is(BlamesHugeChunks) && upload.total > 1 << 39 {
                    Err(StoreError::Body(UploadError::OutOfBounds))
                } else if self.is(IgnoresEmptyFiles) && len == 0 {
                    Ok(Progress {
                        received: 0,
                        complete: false,
                    })
                } else if self.is(RefusesDuplicates) && touches(len) {
                    Err(StoreError::new("it is there already"))
                } else if self.is(DropsOverlaps) && touches(len) {
                    Ok(Progress {
                        received: stored,
                        complete: false,
                    })
                } else {
                    self.put_bytes(upload, offset, bytes).await
                }
            }
            OverwritesStored => {
                let (bytes, result) = Self::read(body).await;
                if let Err(error) = result {
                    return Some(Err(error));
                }
                let chunks = {
                    let mut state = self.state();
                    let chunks = state.chunks.entry(upload.key).or_default();
                    chunks.push((offset, bytes));
                    chunks.clone()
                };
                self.inner.remove(&upload.key).await.unwrap();
                let mut last = None;
                for (offset, bytes) in chunks.into_iter().rev() {
                    last = Some(self.put_bytes(upload, offset, bytes).await);
                }
                last?
            }
            KeepsRangeOfDropped | SupersedesDuplicates => {
                // One request at a time.
                while !self.state().writing.insert(upload.key) {
                    if self.is(SupersedesDuplicates) {
                        return Some(Err(StoreError::Superseded));
                    }
                    tokio::task::yield_now().await;
                }
                let turn = Turn(self, upload.key);
                if self.is(SupersedesDuplicates) {
                    return Some(self.inner.put(upload, offset, body).await);
                }
                // Not given back if it is dropped here.
                let turn = std::mem::ManuallyDrop::new(turn);
                let result = self.inner.put(upload, offset, body).await;
                drop(std::mem::ManuallyDrop::into_inner(turn));
                result
            }
            RefusesLateChunks if matches!(status, Status::Settled(_)) => {
                Err(StoreError::Superseded)
            }
            LateChunkIsIncomplete if matches!(status, Status::Settled(_)) => {
                let (_, result) = Self::read(body).await;
                result.map(|()| Progress {
                    received: 0,
                    complete: false,
                })
            }
            RacyCreation if is_small => {
                let (bytes, result) = Self::read(body).await;
                self.pause().await;
                if matches!(status, Status::Absent) {
                    self.inner.remove(&upload.key).await.unwrap();
                }
                match result {
                    Ok(()) => self.put_bytes(upload, offset, bytes).await,
                    Err(error) => Err(error),
                }
            }
            RacyCompletion if is_small => {
                let (bytes, result) = Self::read(body).await;
                self.pause().await;
                let len = bytes.len() as u64;
                let known = !matches!(status, Status::Absent | Status::Receiving(_));
                let gaps = match &status {
                    Status::Receiving(ranges) => ranges.gaps(offset, len),
                    _ => vec![offset..offset + len],
                };
                let new: u64 = gaps.iter().map(|gap| gap.end - gap.start).sum();
                match result {
                    Ok(()) => {
                        let progress = self.put_bytes(upload, offset, bytes).await;
                        progress.map(|progress| Progress {
                            complete: known || stored + new == upload.total,
                            ..progress
                        })
                    }
                    Err(error) => Err(error),
                }
            }
            CountsRemovedAsComplete => {
                let result = self.inner.put(upload, offset, body).await;
                self.pause().await;
                let removed = matches!(self.inner.status(&upload.key).await, Ok(Status::Absent));
                result.map(|progress| Progress {
                    complete: progress.complete || removed,
                    ..progress
                })
            }
            _ => return None,
        })
    }

    /// Forgets the files of uploads that are gone.
    async fn tidy(&self) {
        let known: Vec<_> = self.state().undelivered.keys().copied().collect();
        for key in known {
            let status = self.inner.status(&key).await.unwrap();
            if matches!(status, Status::Absent) {
                self.forget_file(&key);
            }
        }
    }

    fn forget_file(&self, key: &UploadKey) {
        let mut state = self.state();
        if let Some(path) = state.undelivered.remove(key) {
            if !self.is(Fault::KeepsRemovedFile) {
                state.files.remove(&path);
            }
        }
    }
}

impl Store for Broken {
    type Claim = BrokenClaim;

    async fn put(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.pause_if_slow().await;
        self.state().seen.insert(upload.key);
        let result = match self.put_wrongly(upload, offset, body).await {
            Some(result) => result,
            None => self.inner.put(upload, offset, body).await,
        };
        self.pause_if_slow().await;
        result
    }

    async fn status(&self, key: &UploadKey) -> Result<Status, StoreError> {
        self.pause_if_slow().await;
        let hidden = self.state().hidden.contains(key);
        match hidden {
            true => Ok(Status::Absent),
            false => self.inner.status(key).await,
        }
    }

    async fn try_claim(&self, key: &UploadKey) -> Result<TryClaim<BrokenClaim>, StoreError> {
        self.pause_if_slow().await;
        let claim = |inner| {
            TryClaim::Won(BrokenClaim {
                inner,
                key: *key,
                store: self.clone(),
            })
        };
        if self.is(Fault::RacyClaim) {
            let is_free = !self.state().claimed.contains(key);
            self.pause().await;
            if is_free && matches!(self.inner.status(key).await?, Status::Complete) {
                self.state().claimed.insert(*key);
                return Ok(match self.inner.try_claim(key).await? {
                    TryClaim::Won(inner) => claim(Some(inner)),
                    _ => claim(None),
                });
            }
        }
        Ok(match self.inner.try_claim(key).await? {
            TryClaim::Won(inner) => claim(Some(inner)),
            TryClaim::Busy if self.is(Fault::GivesTwoClaims) => claim(None),
            TryClaim::Incomplete if self.is(Fault::ClaimsIncomplete) => claim(None),
            TryClaim::Busy => TryClaim::Busy,
            TryClaim::Incomplete => TryClaim::Incomplete,
            TryClaim::Settled(record) => TryClaim::Settled(record),
        })
    }

    async fn seal(&self, claim: &mut BrokenClaim, upload: &Upload) -> Result<Sealed, StoreError> {
        self.pause_if_slow().await;
        let inner = claim.inner.as_mut();
        let inner = inner.ok_or_else(|| StoreError::new("there is no claim"))?;
        let mut sealed = self.inner.seal(inner, upload).await?;
        let Location::Memory(bytes) = &sealed.location else {
            panic!("a memory store has files");
        };
        let path = PathBuf::from(&sealed.id);
        {
            let mut state = self.state();
            state.files.insert(path.clone(), bytes.clone());
            state.undelivered.insert(claim.key, path.clone());
        }
        sealed.location = Location::File(path);
        match self.fault {
            Fault::ChangesId => sealed.id.push_str(&sealed.attempt.to_string()),
            Fault::UsesKeyAsId => sealed.id = claim.key.to_string(),
            Fault::CountsNoAttempts => sealed.attempt = 1,
            Fault::DescribesAsLastSeal => sealed.upload = upload.clone(),
            Fault::WrongChecksum => sealed.crc32 = Some(7),
            _ => {}
        }
        Ok(sealed)
    }

    async fn settle(
        &self,
        claim: &mut BrokenClaim,
        settlement: &Settlement,
    ) -> Result<(), StoreError> {
        self.pause_if_slow().await;
        let mut settlement = settlement.clone();
        let inner = claim.inner.take();
        let inner = inner.ok_or_else(|| StoreError::new("there is no claim"))?;
        let path = match &settlement {
            Settlement::Released => None,
            _ => self.state().undelivered.remove(&claim.key),
        };
        match (&settlement, path) {
            (Settlement::Delivered(_), Some(path)) => self.state().delivered.push(path),
            (Settlement::Rejected(_), Some(path)) if !self.is(Fault::KeepsRejectedFile) => {
                self.state().files.remove(&path);
            }
            _ => {}
        }
        if let Settlement::Delivered(record) | Settlement::Rejected(record) = &mut settlement {
            match self.fault {
                Fault::ForgetsHeaders => record.headers.clear(),
                Fault::ForgetsEmptyBody => {
                    record.body = record.body.take().filter(|body| !body.is_empty());
                }
                Fault::MakesHeadersText => {
                    for (_, value) in &mut record.headers {
                        *value = String::from_utf8_lossy(value).into_owned().into_bytes();
                    }
                }
                Fault::KeepsExpiredRecord => record.expires += Duration::from_secs(86_400),
                _ => {}
            }
        } else if self.is(Fault::ForgetsReleasedClaim) {
            std::mem::forget(inner);
            return Ok(());
        }
        let mut inner = inner;
        self.inner.settle(&mut inner, &settlement).await
    }

    async fn remove(&self, key: &UploadKey) -> Result<bool, StoreError> {
        self.pause_if_slow().await;
        let removed = self.inner.remove(key).await?;
        if removed {
            self.state().chunks.remove(key);
            self.forget_file(key);
        }
        let status = self.inner.status(key).await?;
        Ok(removed || (self.is(Fault::RemovesClaimed) && matches!(status, Status::Complete)))
    }

    async fn undelivered(&self) -> Result<Vec<Upload>, StoreError> {
        self.pause_if_slow().await;
        let mut uploads = self.inner.undelivered().await?;
        match self.fault {
            Fault::ListsSealedOnly => {
                uploads.retain(|upload| self.state().undelivered.contains_key(&upload.key));
            }
            Fault::ListsTwice => uploads.extend(uploads.clone()),
            Fault::ListsReceiving => {
                let known: Vec<_> = self.state().seen.iter().copied().collect();
                for key in known {
                    if let Status::Receiving(_) = self.inner.status(&key).await? {
                        uploads.push(Upload {
                            key,
                            ..super::upload(3)
                        });
                    }
                }
            }
            _ => {}
        }
        Ok(uploads)
    }

    async fn unfinished(&self, scope: Option<&str>) -> Result<Vec<(Upload, Progress)>, StoreError> {
        self.pause_if_slow().await;
        let scope = match self.fault {
            Fault::ListsAnyScope => Some("conformance"),
            _ => scope,
        };
        let mut uploads = self.inner.unfinished(scope).await?;
        if self.is(Fault::ListsNoComplete) {
            uploads.retain(|(_, progress)| !progress.complete);
        }
        Ok(uploads)
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.pause_if_slow().await;
        let mut usage = self.inner.usage().await?;
        if self.is(Fault::CountsOnlyOne) {
            usage.truncate(1);
        }
        if self.is(Fault::CountsSettled) {
            let open: HashSet<_> = usage.iter().map(|usage| usage.key).collect();
            let ended = self.state().seen.clone().into_iter();
            let ended = ended.filter(|key| !open.contains(key));
            usage.extend(ended.map(|key| Usage {
                key,
                ..Usage::from(&super::upload(3))
            }));
        }
        Ok(usage)
    }

    async fn sweep(&self, mut expiry: Expiry) -> Result<Swept, StoreError> {
        self.pause_if_slow().await;
        let mut more = 0;
        match self.fault {
            Fault::SweepsNothing => return Ok(Swept::default()),
            Fault::SweepsAtOnce => expiry.abandoned_before = super::later(),
            Fault::SweepsUndeliveredAlways => {
                expiry.undelivered_before.get_or_insert(super::later());
            }
            Fault::SweepsClaimed if expiry.undelivered_before > Some(SystemTime::now()) => {
                let complete = self.inner.undelivered().await?;
                let keys = complete.iter().map(|upload| upload.key);
                self.state().hidden.extend(keys);
            }
            Fault::SweepsDeliveredFile => {
                let mut state = self.state();
                for path in std::mem::take(&mut state.delivered) {
                    state.files.remove(&path);
                }
            }
            Fault::SweepsWritten => {
                let known: Vec<_> = self.state().seen.iter().copied().collect();
                for key in known {
                    let status = self.inner.status(&key).await?;
                    if matches!(status, Status::Receiving(_))
                        && expiry.abandoned_before > SystemTime::now()
                    {
                        self.inner.remove(&key).await?;
                    }
                }
                // So that it counts at least one.
                more = 1;
            }
            _ => {}
        }
        let swept = self.inner.sweep(expiry).await?;
        self.tidy().await;
        Ok(Swept {
            abandoned: swept.abandoned + more,
            ..swept
        })
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Spool, StoreError> {
        let (mut bytes, result) = Self::read(body).await;
        match self.fault {
            Fault::SpoolTakesBrokenBody => {}
            Fault::SpoolLosesBytes => bytes.truncate(500_000),
            _ => result?,
        }
        Ok(Spool::from_pieces(vec![bytes]))
    }
}

/// What the suite says of a store with this fault; `None` if it finds nothing.
fn verdict(fault: Fault) -> Option<String> {
    let store = Broken::new(fault);
    let patience = match fault {
        // It waits for ever.
        Fault::KeepsRangeOfDropped | Fault::ForgetsPanickedClaim => Duration::from_millis(300),
        _ => PATIENCE,
    };
    let read = async |location: &Location| match location {
        Location::File(path) => store.state().files.get(path).map(|bytes| bytes.to_vec()),
        _ => None,
    };
    let suite = Suite {
        store: &store,
        read,
        patience,
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(suite.run())));
    runtime.shutdown_background();
    let panic = outcome.err()?;
    let message = panic.downcast_ref::<String>().cloned();
    message.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
}

#[test]
fn a_good_store_passes() {
    assert_eq!(verdict(Fault::Nothing), None);
}

#[test]
fn a_slow_store_passes() {
    assert_eq!(verdict(Fault::Slow), None);
}

/// Checks faults, each with a part of what the suite has to say of it.
fn assert_found(faults: &[(Fault, &str)]) {
    let mut missed = Vec::new();
    for (fault, expected) in faults {
        match verdict(*fault) {
            Some(verdict) if verdict.contains(expected) => {}
            verdict => missed.push((fault, verdict)),
        }
    }
    assert!(
        missed.is_empty(),
        "not found, or not for what it is: {missed:#?}"
    );
}

#[test]
fn faults_of_chunks_are_found() {
    use Fault::*;
    assert_found(&[
        (KeepsFailedBody, "should be `Absent` after a bad chunk"),
        (
            FailedChunkLeavesUpload,
            "should be `Absent` after a bad chunk",
        ),
        (KeepsDroppedBody, "wrong ranges after a dropped `put`"),
        (
            RefusesDuplicates,
            "although nothing is wrong with the chunk",
        ),
        (DropsOverlaps, "overlaps stored bytes is counted wrongly"),
        (OverwritesStored, "has a wrong byte"),
        (IgnoresEmptyFiles, "an empty file is not complete"),
        (BlamesHugeChunks, "the error is not the store's"),
        (SpoolLosesBytes, "what was spooled cannot be stored"),
        (SpoolTakesBrokenBody, "`spool` takes a body that fails"),
        (KeepsRangeOfDropped, "takes more than"),
    ]);
}

#[test]
fn faults_of_delivery_are_found() {
    use Fault::*;
    assert_found(&[
        (ClaimsIncomplete, "an absent upload can be claimed"),
        (GivesTwoClaims, "a claimed upload is not `Busy`"),
        (ForgetsPanickedClaim, "Busy, although nobody has a claim"),
        (ForgetsReleasedClaim, "does not remove a complete upload"),
        (ChangesId, "the id of an upload changes"),
        (UsesKeyAsId, "two uploads have one id"),
        (CountsNoAttempts, "attempts are"),
        (
            DescribesAsLastSeal,
            "a later `seal` changes the description",
        ),
        (WrongChecksum, "is not the CRC-32"),
        (ForgetsHeaders, "gives another record back"),
        (ForgetsEmptyBody, "gives another record back"),
        (MakesHeadersText, "gives another record back"),
        (
            RefusesLateChunks,
            "although nothing is wrong with the chunk",
        ),
        (LateChunkIsIncomplete, "a late empty chunk is not complete"),
        (
            KeepsRejectedFile,
            "still there when the upload was rejected",
        ),
        (KeepsRemovedFile, "still there when the upload was removed"),
        (ListsSealedOnly, "`undelivered` does not list"),
        (ListsTwice, "`undelivered` does not list an empty file"),
        (ListsReceiving, "`undelivered` lists what is incomplete"),
        (ListsAnyScope, "`unfinished` lists another scope's upload"),
        (
            ListsNoComplete,
            "`unfinished` does not list an upload as it is",
        ),
        (CountsOnlyOne, "`usage` does not count an upload as it is"),
        (CountsSettled, "`usage` counts what is settled"),
        (RemovesClaimed, "`remove` removes a claimed upload"),
    ]);
}

#[test]
fn faults_of_expiry_are_found() {
    use Fault::*;
    assert_found(&[
        (KeepsExpiredRecord, "gives another record back"),
        (SweepsNothing, "after a sweep of abandoned uploads"),
        (SweepsAtOnce, "after a sweep of what is older than an hour"),
        (SweepsClaimed, "after a sweep, while it is claimed"),
        (
            SweepsWritten,
            "removes an upload that a request is writing to",
        ),
        (SweepsUndeliveredAlways, "after a sweep of"),
        (
            SweepsDeliveredFile,
            "the file of a sealed upload cannot be read",
        ),
    ]);
}

#[test]
fn races_are_found() {
    use Fault::*;
    assert_found(&[
        (SupersedesDuplicates, "a duplicate"),
        (RacyCreation, ""),
        (RacyCompletion, "none has seen the upload complete"),
        (RacyClaim, "so many"),
        (
            CountsRemovedAsComplete,
            "`put` counts bytes that never came",
        ),
    ]);
}
