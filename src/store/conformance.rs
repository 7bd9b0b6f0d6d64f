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

use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_core::Stream;

use super::{
    ChunkBody, Expiry, Location, Progress, Record, Sealed, Settlement, Status, Store, StoreError,
    TryClaim, Upload, UploadKey, random_id,
};
use crate::UploadError;

/// Runs all checks. `read` reads a finished file, `None` if it is gone.
///
/// The store may hold other uploads, and keeps none of the suite's if all goes well, except the
/// finished files that were delivered and the records of their deliveries.
///
/// # Panics
///
/// If the store does not keep what [`Store`] promises.
pub async fn check<S: Store + Clone>(store: &S, read: impl AsyncFn(&Location) -> Option<Vec<u8>>) {
    let suite = Suite { store, read };
    suite.chunks_in_any_order().await;
    suite.stored_bytes_stay().await;
    suite.failed_chunks_leave_nothing().await;
    suite.an_empty_file_is_an_upload().await;
    suite.a_claim_is_the_only_one().await;
    suite.attempts_are_counted().await;
    suite.a_delivered_upload_stays_as_it_is().await;
    suite.a_rejected_file_is_gone().await;
    suite.records_expire().await;
    suite.removed_uploads_begin_anew().await;
    suite.expired_uploads_are_swept().await;
    suite.spooled_chunks().await;
    suite.last_chunks_race().await;
}

struct Suite<'a, S, R> {
    store: &'a S,
    read: R,
}

/// Bytes of a file, not alike.
fn content(len: usize) -> Vec<u8> {
    (0..len as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8)
        .collect()
}

/// An upload that no store has seen.
fn upload(total: usize) -> Upload {
    let id = random_id().expect("there is randomness");
    let key = UploadKey::from_hex(&format!("{id}{id}")).expect("an id is hexadecimal");
    Upload {
        key,
        scope: "conformance".into(),
        identifier: id,
        total: total as u64,
        file_name: Some("a.bin".into()),
        relative_path: None,
        content_type: None,
        fields: vec![("a".into(), "b".into())],
    }
}

fn record(delivered: bool, lifetime: Duration) -> Record {
    Record {
        delivered,
        status: 200,
        headers: vec![("x-a".into(), b"1".to_vec())],
        body: Some(Bytes::from_static(b"answer")),
        size: 9,
        expires: SystemTime::now() + lifetime,
    }
}

const LONG: Duration = Duration::from_secs(3600);

/// Given bytes, and then an error, nothing more for ever, or the end.
struct Source {
    pieces: VecDeque<Bytes>,
    then: Then,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    End,
    Error,
    Nothing,
}

impl Stream for Source {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match (self.pieces.pop_front(), self.then) {
            (Some(piece), _) => Poll::Ready(Some(Ok(piece))),
            (None, Then::End) => Poll::Ready(None),
            (None, Then::Error) => Poll::Ready(Some(Err(UploadError::Interrupted))),
            (None, Then::Nothing) => Poll::Pending,
        }
    }
}

fn source(bytes: &[u8], then: Then) -> Source {
    Source {
        pieces: bytes.chunks(70_000).map(Bytes::copy_from_slice).collect(),
        then,
    }
}

async fn put<S: Store>(
    store: &S,
    upload: &Upload,
    offset: usize,
    bytes: &[u8],
) -> Result<Progress, StoreError> {
    let source = pin!(source(bytes, Then::End));
    let mut body = ChunkBody::new(source, Some(bytes.len() as u64), 0);
    store.put(upload, offset as u64, &mut body).await
}

impl<S: Store + Clone, R: AsyncFn(&Location) -> Option<Vec<u8>>> Suite<'_, S, R> {
    async fn put(&self, upload: &Upload, offset: usize, bytes: &[u8]) -> Progress {
        put(self.store, upload, offset, bytes)
            .await
            .expect("the chunk is good")
    }

    async fn status(&self, upload: &Upload) -> Status {
        self.store.status(&upload.key).await.expect("status")
    }

    async fn is_absent(&self, upload: &Upload) -> bool {
        matches!(self.status(upload).await, Status::Absent)
    }

    async fn claim(&self, upload: &Upload) -> S::Claim {
        match self.store.try_claim(&upload.key).await.expect("try_claim") {
            TryClaim::Won(claim) => claim,
            _ => panic!("the claim of a complete upload is not to be had"),
        }
    }

    async fn seal(&self, claim: &mut S::Claim, upload: &Upload) -> Sealed {
        self.store.seal(claim, upload).await.expect("seal")
    }

    async fn settle(&self, claim: S::Claim, settlement: Settlement) {
        self.store.settle(claim, settlement).await.expect("settle");
    }

    /// Claims, seals, compares and settles.
    async fn deliver(&self, upload: &Upload, expected: &[u8]) -> Sealed {
        let mut claim = self.claim(upload).await;
        let sealed = self.seal(&mut claim, upload).await;
        assert!(
            (self.read)(&sealed.location).await.as_deref() == Some(expected),
            "wrong content"
        );
        self.settle(claim, Settlement::Delivered(record(true, LONG)))
            .await;
        sealed
    }

    async fn chunks_in_any_order(&self) {
        // Larger than what a store may gather before it writes, and not a multiple of anything.
        let (total, size) = (1_000_003, 123_457);
        let content = content(total);
        let upload = upload(total);
        assert!(
            self.is_absent(&upload).await,
            "an upload that nobody has begun is there"
        );
        let mut order: Vec<_> = content.chunks(size).enumerate().collect();
        order.rotate_left(3);
        order.swap(0, 5);
        let mut received = 0;
        for (n, chunk) in order {
            received += chunk.len() as u64;
            let complete = received == total as u64;
            let progress = self.put(&upload, n * size, chunk).await;
            assert_eq!(progress, Progress { received, complete });
            match self.status(&upload).await {
                Status::Receiving(ranges) => {
                    assert!(!complete);
                    assert_eq!(ranges.total(), received);
                    assert!(ranges.covers((n * size) as u64, chunk.len() as u64));
                }
                Status::Complete => assert!(complete),
                status => panic!("{status:?} while it is received"),
            }
            // Twice is no more than once.
            assert_eq!(
                self.put(&upload, n * size, chunk).await,
                Progress { received, complete }
            );
        }
        let waiting = self.store.undelivered().await.expect("undelivered");
        assert!(
            waiting.iter().any(|u| u.key == upload.key),
            "a complete upload does not wait for its delivery"
        );
        let sealed = self.deliver(&upload, &content).await;
        assert_eq!(sealed.upload, upload);
        if let Some(crc32) = sealed.crc32 {
            assert_eq!(crc32, crc32fast::hash(&content));
        }
        let waiting = self.store.undelivered().await.expect("undelivered");
        assert!(
            !waiting.iter().any(|u| u.key == upload.key),
            "a delivered upload waits for its delivery"
        );
    }

    async fn stored_bytes_stay(&self) {
        let upload = upload(30);
        self.put(&upload, 10, b"0123456789").await;
        // Other bytes for the same place, with more around them.
        let progress = self.put(&upload, 5, b"AAAAAxxxxxxxxxxBBBBB").await;
        assert_eq!(
            progress,
            Progress {
                received: 20,
                complete: false
            }
        );
        self.put(&upload, 0, &[b'C'; 30]).await;
        self.deliver(&upload, b"CCCCCAAAAA0123456789BBBBBCCCCC")
            .await;
    }

    async fn failed_chunks_leave_nothing(&self) {
        let upload = upload(2_000_000);
        let chunk = content(1_000_000);
        for (len, then) in [
            (0, Then::Error),
            (10, Then::Error),
            (999_999, Then::Error),
            (1_000_000, Then::Error),
            // Too short, too long.
            (999_999, Then::End),
            (1_000_001, Then::End),
            // Dropped in the middle.
            (10, Then::Nothing),
            (999_999, Then::Nothing),
        ] {
            let bytes = crate::store::conformance::content(len);
            let source = pin!(source(&bytes, then));
            let mut body = ChunkBody::new(source, Some(1_000_000), 0);
            let put = self.store.put(&upload, 0, &mut body);
            let result = match then {
                Then::Nothing => {
                    let waited = tokio::time::timeout(Duration::from_millis(50), put).await;
                    assert!(waited.is_err(), "an unfinished chunk was taken");
                    continue;
                }
                _ => put.await,
            };
            assert!(
                matches!(result, Err(StoreError::Body(_))),
                "{len}, {then:?}: {result:?}"
            );
            match self.status(&upload).await {
                Status::Absent => {}
                Status::Receiving(ranges) => {
                    assert!(ranges.is_empty(), "{ranges:?} of a bad chunk")
                }
                status => panic!("{status:?} after a bad chunk"),
            }
        }
        // It goes on as if nothing had been.
        self.put(&upload, 1_000_000, &chunk).await;
        self.put(&upload, 0, &chunk).await;
        self.deliver(&upload, &[&chunk[..], &chunk[..]].concat())
            .await;
    }

    async fn an_empty_file_is_an_upload(&self) {
        let upload = upload(0);
        let progress = self.put(&upload, 0, b"").await;
        assert_eq!(
            progress,
            Progress {
                received: 0,
                complete: true
            }
        );
        self.deliver(&upload, b"").await;
    }

    async fn a_claim_is_the_only_one(&self) {
        let upload = upload(10);
        let is_incomplete = |claim| matches!(claim, TryClaim::Incomplete);
        let try_claim = async || self.store.try_claim(&upload.key).await.expect("try_claim");
        assert!(
            is_incomplete(try_claim().await),
            "an absent upload can be claimed"
        );
        self.put(&upload, 0, b"01234").await;
        assert!(
            is_incomplete(try_claim().await),
            "an incomplete upload can be claimed"
        );
        self.put(&upload, 5, b"56789").await;

        let claim = self.claim(&upload).await;
        assert!(
            matches!(try_claim().await, TryClaim::Busy),
            "two claims of one upload"
        );
        assert!(
            !self.store.remove(&upload.key).await.expect("remove"),
            "removed while claimed"
        );
        drop(claim);
        // What was dropped can be had again, as can what was released.
        let claim = self.claim(&upload).await;
        self.settle(claim, Settlement::Released).await;
        self.deliver(&upload, b"0123456789").await;
        assert!(
            matches!(try_claim().await, TryClaim::Settled(_)),
            "claimed after its delivery"
        );
    }

    async fn attempts_are_counted(&self) {
        let first = upload(3);
        self.put(&first, 0, b"abc").await;
        let mut ids = Vec::new();
        for attempt in 1..=3 {
            let mut claim = self.claim(&first).await;
            // What the first request said stays.
            let other = Upload {
                fields: vec![("n".into(), attempt.to_string())],
                ..first.clone()
            };
            let upload = if attempt == 1 { &first } else { &other };
            let sealed = self.seal(&mut claim, upload).await;
            assert_eq!(sealed.attempt, attempt);
            assert_eq!(sealed.upload, first);
            assert!((self.read)(&sealed.location).await.as_deref() == Some(b"abc"));
            // Complete, and nobody has taken it.
            assert!(matches!(self.status(&first).await, Status::Complete));
            assert_eq!(
                self.put(&first, 0, b"xyz").await,
                Progress {
                    received: 3,
                    complete: true
                }
            );
            ids.push(sealed.id);
        }
        assert!(
            ids.iter().all(|id| *id == ids[0]),
            "the id of an upload changes"
        );
        let claim = self.claim(&first).await;
        self.settle(claim, Settlement::Delivered(record(true, LONG)))
            .await;
    }

    async fn a_delivered_upload_stays_as_it_is(&self) {
        let upload = upload(3);
        self.put(&upload, 0, b"abc").await;
        let sealed = self.deliver(&upload, b"abc").await;
        let progress = self.put(&upload, 0, b"xyz").await;
        assert_eq!(
            progress,
            Progress {
                received: 3,
                complete: true
            }
        );
        assert!(
            (self.read)(&sealed.location)
                .await
                .is_none_or(|bytes| bytes == b"abc")
        );
        for _ in 0..2 {
            match self.status(&upload).await {
                Status::Settled(found) => {
                    assert_eq!(found.body.as_deref(), Some(&b"answer"[..]));
                    assert_eq!(found.headers, [("x-a".to_owned(), b"1".to_vec())]);
                    assert_eq!((found.status, found.delivered), (200, true));
                }
                status => panic!("{status:?} after the delivery"),
            }
            assert!(
                !self.store.remove(&upload.key).await.expect("remove"),
                "removed afterwards"
            );
        }
    }

    async fn a_rejected_file_is_gone(&self) {
        let upload = upload(3);
        self.put(&upload, 0, b"abc").await;
        let mut claim = self.claim(&upload).await;
        let sealed = self.seal(&mut claim, &upload).await;
        self.settle(claim, Settlement::Rejected(record(false, LONG)))
            .await;
        if !matches!(sealed.location, Location::Memory(_)) {
            assert_eq!(
                (self.read)(&sealed.location).await,
                None,
                "a rejected file is still there"
            );
        }
        assert!(matches!(self.status(&upload).await, Status::Settled(r) if !r.delivered));
    }

    async fn records_expire(&self) {
        let upload = upload(3);
        let mut ids = Vec::new();
        for content in [b"abc", b"xyz"] {
            self.put(&upload, 0, content).await;
            let mut claim = self.claim(&upload).await;
            let sealed = self.seal(&mut claim, &upload).await;
            assert!((self.read)(&sealed.location).await.as_deref() == Some(content));
            self.settle(claim, Settlement::Delivered(record(true, Duration::ZERO)))
                .await;
            assert!(self.is_absent(&upload).await, "a record outlives its time");
            ids.push(sealed.id);
        }
        assert_ne!(ids[0], ids[1], "two uploads have one id");
    }

    async fn removed_uploads_begin_anew(&self) {
        let upload = upload(6);
        assert!(
            !self.store.remove(&upload.key).await.expect("remove"),
            "removed nothing"
        );
        self.put(&upload, 0, b"abc").await;
        assert!(
            self.store.remove(&upload.key).await.expect("remove"),
            "not removed"
        );
        assert!(self.is_absent(&upload).await);
        self.put(&upload, 3, b"def").await;
        self.put(&upload, 0, b"ABC").await;
        // A complete one too, with its file.
        let mut claim = self.claim(&upload).await;
        let sealed = self.seal(&mut claim, &upload).await;
        self.settle(claim, Settlement::Released).await;
        assert!(
            self.store.remove(&upload.key).await.expect("remove"),
            "not removed"
        );
        assert!(self.is_absent(&upload).await);
        if !matches!(sealed.location, Location::Memory(_)) {
            assert_eq!(
                (self.read)(&sealed.location).await,
                None,
                "a removed file is still there"
            );
        }
        self.put(&upload, 0, b"ghijkl").await;
        self.deliver(&upload, b"ghijkl").await;
    }

    async fn expired_uploads_are_swept(&self) {
        let (partial, complete, settled) = (upload(6), upload(3), upload(3));
        let begun = SystemTime::now();
        for upload in [&partial, &complete, &settled] {
            self.put(upload, 0, b"abc").await;
        }
        let claim = self.claim(&settled).await;
        self.settle(claim, Settlement::Delivered(record(true, LONG)))
            .await;
        let sweep = async |expiry| self.store.sweep(expiry).await.expect("sweep");
        let none = Expiry {
            abandoned_before: begun - LONG,
            undelivered_before: None,
            records_before: begun,
        };
        sweep(none).await;
        assert!(
            matches!(self.status(&partial).await, Status::Receiving(_)),
            "swept too early"
        );
        assert!(
            matches!(self.status(&complete).await, Status::Complete),
            "swept too early"
        );
        assert!(
            matches!(self.status(&settled).await, Status::Settled(_)),
            "swept too early"
        );

        let later = SystemTime::now() + LONG + LONG;
        assert!(
            sweep(Expiry {
                abandoned_before: later,
                ..none
            })
            .await
            .abandoned
                >= 1
        );
        assert!(
            self.is_absent(&partial).await,
            "an abandoned upload is still there"
        );
        assert!(
            sweep(Expiry {
                records_before: later,
                ..none
            })
            .await
            .records
                >= 1
        );
        assert!(
            self.is_absent(&settled).await,
            "an expired record is still there"
        );

        let undelivered = Expiry {
            undelivered_before: Some(later),
            ..none
        };
        let claim = self.claim(&complete).await;
        sweep(undelivered).await;
        assert!(
            matches!(self.status(&complete).await, Status::Complete),
            "swept while claimed"
        );
        drop(claim);
        assert!(sweep(undelivered).await.undelivered >= 1);
        assert!(
            self.is_absent(&complete).await,
            "an undelivered upload is still there"
        );
    }

    async fn spooled_chunks(&self) {
        let content = content(600_000);
        let source = pin!(source(&content, Then::End));
        let mut body = ChunkBody::new(source, None, 1_000_000);
        let spool = self.store.spool(&mut body).await.expect("spool");
        let upload = upload(content.len());
        let stream = pin!(spool.into_stream());
        let mut body = ChunkBody::new(stream, Some(content.len() as u64), 0);
        self.store
            .put(&upload, 0, &mut body)
            .await
            .expect("what was spooled");
        self.deliver(&upload, &content).await;
    }

    async fn last_chunks_race(&self) {
        let content = content(400_000);
        for round in 0..25 {
            let upload = Arc::new(upload(content.len()));
            let mut tasks = tokio::task::JoinSet::new();
            // Every chunk by two requests at once; each that sees it complete asks for the claim.
            for n in (0..4).chain(0..4) {
                let (store, upload) = (self.store.clone(), Arc::clone(&upload));
                let chunk = content[n * 100_000..(n + 1) * 100_000].to_vec();
                tasks.spawn(async move {
                    let progress = put(&store, &upload, n * 100_000, &chunk)
                        .await
                        .expect("the chunk is good");
                    if !progress.complete {
                        return None;
                    }
                    match store.try_claim(&upload.key).await.expect("try_claim") {
                        TryClaim::Won(claim) => Some(claim),
                        _ => None,
                    }
                });
            }
            // All claims are held until all requests are through.
            let outcomes = tasks.join_all().await;
            let mut claims: Vec<_> = outcomes.into_iter().flatten().collect();
            assert_eq!(
                claims.len(),
                1,
                "round {round}: so many requests may deliver"
            );
            if let Some(mut claim) = claims.pop() {
                let sealed = self.seal(&mut claim, &upload).await;
                let found = (self.read)(&sealed.location).await;
                assert!(
                    found.as_deref() == Some(&content[..]),
                    "round {round}: wrong content"
                );
                self.settle(claim, Settlement::Delivered(record(true, LONG)))
                    .await;
            }
        }
    }
}
