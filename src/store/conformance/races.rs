//! What a store keeps when several requests come at once.

use std::{sync::Arc, time::SystemTime};

use tokio::{sync::Semaphore, task::JoinHandle};

use super::{
    Suite, abandoned,
    body::{Source, Then},
    content, delivered, described_as, ok_or_superseded, put, record, undelivered, upload,
};
use crate::store::{Location, Progress, Settlement, Status, Store, TryClaim, Upload};

impl<S: Store + Clone, R: AsyncFn(&Location) -> Option<Vec<u8>>> Suite<'_, S, R> {
    /// The same chunk may come several times at once, one of them slowly: it is stored once.
    pub(super) async fn identical_chunks_at_once(&self) {
        for len in [100, 600_000] {
            let upload = upload(2 * len as u64);
            let bytes = content(0, 2 * len);
            let (first, second) = bytes.split_at(len);
            let (source, mut hold) = Source::held(first);
            let slow = self.spawn_put(&upload, 0, source, len);
            self.soon("taking a body", hold.dry()).await;
            let fast = [0; 3].map(|_| {
                let source = Source::with_pauses(first);
                self.spawn_put(&upload, 0, source, len)
            });
            hold.end();
            // It may have had to give way.
            ok_or_superseded(self.joined("a slow chunk", slow).await);
            for fast in fast {
                let progress = self
                    .joined("a duplicate of a chunk in flight", fast)
                    .await
                    .expect("a duplicate of a chunk in flight fails");
                let expected = Progress {
                    received: len as u64,
                    complete: false,
                };
                assert_eq!(progress, expected, "duplicates at once are counted wrongly");
            }
            let progress = self.put(&upload, len as u64, second).await;
            assert!(progress.complete, "bytes of a chunk are missing");
            let (found, _) = self.take(&upload).await;
            assert!(found == bytes, "duplicates at once spoil a chunk");
        }
    }

    /// Of two chunks at once that overlap, one is first, and the other fills only what is left.
    pub(super) async fn overlapping_chunks_at_once(&self) {
        const UNIT: usize = 150_000;
        for round in 0..4 {
            let (a, b) = (content(1, 2 * UNIT), content(2, 2 * UNIT));
            let upload = upload(3 * UNIT as u64);
            let chunks = [(0, &a), (UNIT as u64, &b)];
            let tasks = [round % 2, 1 - round % 2].map(|n: usize| {
                let (offset, bytes) = chunks[n];
                self.spawn_put(&upload, offset, Source::with_pauses(bytes), bytes.len())
            });
            let mut complete = 0;
            for task in tasks {
                let progress = self
                    .joined("a chunk that overlaps another", task)
                    .await
                    .expect("a chunk fails because another overlaps it");
                complete += usize::from(progress.complete);
            }
            assert!(complete >= 1, "no chunk has completed the upload");
            let (found, _) = self.take(&upload).await;
            let [first, middle, last] = [0, 1, 2].map(|n| &found[n * UNIT..(n + 1) * UNIT]);
            assert!(
                first == &a[..UNIT] && last == &b[UNIT..],
                "overlapping chunks spoil bytes that only one of them has"
            );
            assert!(
                middle == &a[UNIT..] || middle == &b[..UNIT],
                "overlapping chunks mix their bytes"
            );
        }
    }

    /// A request that goes away frees its range at once for those who wait for it.
    pub(super) async fn a_dropped_chunk_frees_its_range(&self) {
        const LEN: usize = 600_000;
        let (old, new) = (content(1, LEN), content(2, LEN));
        // All bytes were there, or not; the other request is there before, or comes afterwards.
        for (len, waits) in [(LEN - 1, true), (LEN, false), (LEN, true)] {
            let upload = upload(LEN as u64);
            let (source, mut hold) = Source::held(&old[..len]);
            let holder = self.spawn_put(&upload, 0, source, LEN);
            self.soon("taking a body", hold.dry()).await;
            let next = || {
                let source = Source::new(&new, Then::End);
                self.spawn_put(&upload, 0, source, LEN)
            };
            let mut next = waits.then(next).into_iter().collect::<Vec<_>>();
            holder.abort();
            assert!(holder.await.is_err(), "`put` ends before its body does");
            if next.is_empty() {
                let source = Source::new(&new, Then::End);
                next.push(self.spawn_put(&upload, 0, source, LEN));
            }
            for next in next {
                let progress = self
                    .joined("a chunk whose range a dropped request had", next)
                    .await
                    .expect("a chunk fails because of a dropped one");
                assert!(progress.complete, "bytes are missing");
            }
            let (found, _) = self.take(&upload).await;
            assert!(found == new, "bytes of a dropped chunk are there");
        }
    }

    /// A chunk in flight does not outlive the removal of its upload half: what follows is whole.
    pub(super) async fn removal_ends_what_is_in_flight(&self) {
        const LEN: usize = 600_000;
        let (old, new) = (content(1, 2 * LEN), content(2, 2 * LEN));
        let upload = upload(2 * LEN as u64);
        self.put(&upload, LEN as u64, &old[LEN..]).await;
        let (source, mut hold) = Source::held(&old[..LEN]);
        let in_flight = self.spawn_put(&upload, 0, source, LEN);
        self.soon("taking a body", hold.dry()).await;
        let removed = self.soon("`remove`", self.remove(&upload)).await;
        assert!(
            removed,
            "`remove` does not remove an upload because a chunk is in flight"
        );
        self.assert_absent(&upload, "after its removal").await;
        self.put(&upload, 0, &new[..LEN]).await;
        hold.end();
        // It is a duplicate of the new chunk now, if it is anything.
        ok_or_superseded(self.joined("a chunk of a removed upload", in_flight).await);
        self.assert_receiving(
            &upload,
            &[0..LEN as u64],
            "after a removal and its first new chunk",
        )
        .await;
        self.put(&upload, LEN as u64, &new[LEN..]).await;
        let (found, _) = self.take(&upload).await;
        assert!(found == new, "bytes from before a removal are there");
    }

    /// The first chunks of an upload may come at once: they all belong to one upload, described as
    /// one of them says.
    pub(super) async fn first_chunks_race(&self) {
        const LEN: usize = 100;
        for _ in 0..10 {
            let bytes = content(0, 8 * LEN);
            let upload = upload(bytes.len() as u64);
            let described: Vec<_> = (0..8)
                .map(|n| described_as(&upload, &n.to_string()))
                .collect();
            let tasks: Vec<_> = bytes
                .chunks(LEN)
                .enumerate()
                .map(|(n, chunk)| {
                    let source = Source::new(chunk, Then::End);
                    self.spawn_put(&described[n], (n * LEN) as u64, source, LEN)
                })
                .collect();
            let mut complete = 0;
            for task in tasks {
                let progress = self
                    .joined("one of the first chunks", task)
                    .await
                    .expect("one of several first chunks fails");
                complete += usize::from(progress.complete);
            }
            assert!(
                complete >= 1,
                "all chunks are there, but none has seen the upload complete"
            );
            let waiting = self.undelivered(&[&upload]).await;
            assert_eq!(
                waiting.len(),
                1,
                "several first chunks do not make one upload"
            );
            assert!(
                described.contains(&waiting[0]),
                "the description is none of the first chunks': {waiting:?}"
            );
            let (found, _) = self.take(&upload).await;
            assert!(found == bytes, "first chunks at once spoil the file");
        }
    }

    /// Whatever the order of the last chunks and their duplicates, one of them sees the upload
    /// complete, and exactly one gets the claim.
    pub(super) async fn last_chunks_race(&self) {
        const LEN: usize = 100;
        let bytes = content(0, 3 * LEN);
        for round in 0..100 {
            // They are the first ones too, or not.
            let begin = usize::from(round % 2 == 0);
            let bytes = &bytes[..(begin + 2) * LEN];
            let upload = upload(bytes.len() as u64);
            if begin == 1 {
                self.put(&upload, 0, &bytes[..LEN]).await;
            }
            let request = |n: usize| {
                let (store, upload) = (self.store.clone(), upload.clone());
                let source = Source::new(&bytes[n * LEN..(n + 1) * LEN], Then::End);
                tokio::spawn(async move {
                    let offset = (n * LEN) as u64;
                    let progress = put(&store, &upload, offset, source, LEN as u64)
                        .await
                        .expect("one of the last chunks fails");
                    if !progress.complete {
                        return None;
                    }
                    let claim = store.try_claim(&upload.key).await;
                    Some(claim.expect("`try_claim` fails"))
                })
            };
            let requests: Vec<_> = [0, 1, 0, 1].map(|n| request(begin + n)).into();
            // All claims are held until all requests are through.
            let (mut claims, mut complete) = (Vec::new(), 0);
            for request in requests {
                let claim = self.joined("one of the last chunks", request).await;
                complete += usize::from(claim.is_some());
                match claim {
                    Some(TryClaim::Won(claim)) => claims.push(claim),
                    Some(TryClaim::Busy) | None => {}
                    Some(TryClaim::Incomplete) => {
                        panic!("`put` says complete, `try_claim` says incomplete")
                    }
                    Some(TryClaim::Settled(_)) => panic!("settled without a claim"),
                }
            }
            assert!(
                complete >= 1,
                "round {round}: all chunks are there, but none has seen the upload complete"
            );
            assert_eq!(
                claims.len(),
                1,
                "round {round}: so many requests may deliver one upload"
            );
            if let Some(mut claim) = claims.pop() {
                let sealed = self.seal(&mut claim, &upload).await;
                assert_eq!(sealed.attempt, 1, "round {round}: attempts");
                self.assert_content(&sealed, bytes).await;
                self.settle(claim, Settlement::Released).await;
                assert!(self.remove(&upload).await, "not removed");
            }
        }
    }

    /// When a record has expired, the chunks that come at once begin one new upload.
    pub(super) async fn chunks_race_for_an_expired_record(&self) {
        for _ in 0..5 {
            let upload = upload(4);
            self.put(&upload, 0, b"old!").await;
            let mut claim = self.claim(&upload).await;
            let old = self.seal(&mut claim, &upload).await;
            let expired = record(true, SystemTime::now());
            self.settle(claim, Settlement::Delivered(expired)).await;
            let tasks = [0, 2, 0, 2].map(|offset: usize| {
                let source = Source::new(&b"new."[offset..offset + 2], Then::End);
                self.spawn_put(&upload, offset as u64, source, 2)
            });
            let mut complete = 0;
            for task in tasks {
                let progress = self
                    .joined("a chunk after an expired record", task)
                    .await
                    .expect("a chunk fails because a record has expired");
                complete += usize::from(progress.complete);
            }
            assert!(complete >= 1, "chunks are lost when a record expires");
            let (found, id) = self.take(&upload).await;
            assert_eq!(found, b"new.", "a new upload has old bytes");
            assert_ne!(id, old.id, "two uploads have one id");
            self.assert_content(&old, b"old!").await;
        }
    }

    /// An upload may be removed and begun anew at any time: each chunk is stored whole or not at
    /// all, and what comes after the last removal is a clean upload.
    pub(super) async fn chunks_race_with_removal(&self) {
        // More than one write of most stores.
        const LEN: usize = 270_000;
        let upload = upload(4 * LEN as u64);
        for _ in 0..2 {
            let mut tasks: Vec<JoinHandle<()>> = Vec::new();
            // The removals keep pace with the chunks, but not in step.
            let begun = Arc::new(Semaphore::new(0));
            for remover in 0..2 {
                let (store, upload, begun) =
                    (self.store.clone(), upload.clone(), Arc::clone(&begun));
                tasks.push(tokio::spawn(async move {
                    for round in 0..15 {
                        let permit = begun.acquire().await.expect("it is open");
                        permit.forget();
                        for _ in 0..round * 7 % 13 * remover {
                            tokio::task::yield_now().await;
                        }
                        store.remove(&upload.key).await.expect("`remove` fails");
                    }
                }));
            }
            for n in 0..6usize {
                let (store, upload, begun) =
                    (self.store.clone(), upload.clone(), Arc::clone(&begun));
                tasks.push(tokio::spawn(async move {
                    for round in 0..5 {
                        begun.add_permits(1);
                        // Never the last chunk.
                        let offset = (n + round) % 3 * LEN;
                        let source = Source::with_pauses(&vec![n as u8; LEN]);
                        let result = put(&store, &upload, offset as u64, source, LEN as u64).await;
                        if let Some(progress) = ok_or_superseded(result) {
                            assert!(
                                !progress.complete && progress.received <= 3 * LEN as u64,
                                "`put` counts bytes that never came, when the upload is removed: \
                                 {progress:?}"
                            );
                        }
                    }
                }));
            }
            // The chunks first: without them the removals wait.
            for task in tasks.into_iter().rev() {
                self.joined("`put` and `remove` in a race", task).await;
            }
            match self.status(&upload).await {
                Status::Absent => {}
                Status::Receiving(ranges) => assert!(
                    ranges.total() % LEN as u64 == 0,
                    "a part of a chunk is there after a removal"
                ),
                status => panic!("{status:?} of an incomplete upload"),
            }
            // What is left is filled up: each chunk is the one or the other.
            self.put(&upload, 0, &vec![99; 4 * LEN]).await;
            let (found, _) = self.take(&upload).await;
            for chunk in found.chunks(LEN) {
                assert!(
                    chunk.iter().all(|byte| *byte == chunk[0]),
                    "a chunk is a mix of bytes from before and after a removal"
                );
            }
            self.assert_absent(&upload, "after its last removal").await;
        }
        let bytes = content(0, 4 * LEN);
        self.put(&upload, 0, &bytes).await;
        let (found, _) = self.take(&upload).await;
        assert!(found == bytes, "bytes from before a removal are there");
    }

    /// A sweep that comes at the same time as a chunk removes the upload before the chunk, or not at
    /// all; and never one that the chunk has completed, without a limit for those.
    pub(super) async fn chunks_race_with_sweep(&self) {
        const LEN: usize = 100;
        for round in 0..20 {
            let upload = upload(2 * LEN as u64);
            let bytes = content(0, 2 * LEN);
            self.put(&upload, 0, &bytes[..LEN]).await;
            let sweep = || {
                let store = self.store.clone();
                tokio::spawn(async move { store.sweep(abandoned()).await.expect("`sweep` fails") })
            };
            let early = (round % 2 == 0).then(sweep);
            let source = Source::with_pauses(&bytes[LEN..]);
            let chunk = self.spawn_put(&upload, LEN as u64, source, LEN);
            let sweep = match early {
                Some(sweep) => sweep,
                None => sweep(),
            };
            let progress = self
                .joined("a chunk during a sweep", chunk)
                .await
                .expect("a chunk fails because of a sweep");
            self.joined("`sweep`", sweep).await;
            if progress.complete {
                self.assert_complete(&upload, "when its last chunk has come during a sweep")
                    .await;
            } else {
                assert_eq!(progress.received, LEN as u64, "a swept upload is counted");
                match self.status(&upload).await {
                    // The chunk was stored, and swept then.
                    Status::Absent => {}
                    Status::Receiving(ranges) => {
                        super::assert_ranges(
                            &ranges,
                            &[LEN as u64..2 * LEN as u64],
                            "after a sweep",
                        );
                    }
                    status => panic!("{status:?} of an upload whose beginning was swept"),
                }
            }
            self.put(&upload, 0, &bytes).await;
            let (found, _) = self.take(&upload).await;
            assert!(found == bytes, "a sweep spoils an upload");
        }
    }

    /// Of many requests that ask at once, one gets the claim as long as it is held.
    pub(super) async fn claims_race_with_each_other(&self) {
        let upload = upload(3);
        self.put(&upload, 0, b"abc").await;
        for round in 0..20 {
            let tasks = [0; 8].map(|_| self.spawn_claim(&upload));
            let (mut won, mut busy) = (Vec::new(), 0);
            for task in tasks {
                match self.joined("`try_claim`", task).await {
                    TryClaim::Won(claim) => won.push(claim),
                    TryClaim::Busy => busy += 1,
                    _ => panic!("a complete upload is neither to be had nor busy"),
                }
            }
            assert_eq!(
                (won.len(), busy),
                (1, 7),
                "round {round}: so many have the claim, so many are told that it is taken"
            );
            let mut claim = won.remove(0);
            if round < 19 {
                self.settle(claim, Settlement::Released).await;
            } else {
                let sealed = self.seal(&mut claim, &upload).await;
                self.assert_content(&sealed, b"abc").await;
                self.settle(claim, delivered()).await;
            }
        }
        for task in [0; 4].map(|_| self.spawn_claim(&upload)) {
            assert!(
                matches!(self.joined("`try_claim`", task).await, TryClaim::Settled(_)),
                "a delivered upload can be claimed"
            );
        }
    }

    /// An upload is claimed or removed, claimed or swept, never both.
    pub(super) async fn claims_race_with_removal_and_sweep(&self) {
        for round in 0..20 {
            let upload = upload(3);
            self.put(&upload, 0, b"abc").await;
            let end = || {
                let (store, key) = (self.store.clone(), upload.key);
                tokio::spawn(async move {
                    match round % 4 < 2 {
                        true => drop(store.remove(&key).await.expect("`remove` fails")),
                        false => drop(store.sweep(undelivered()).await.expect("`sweep` fails")),
                    }
                })
            };
            let early = (round % 2 == 0).then(end);
            let claim = self.spawn_claim(&upload);
            let end = match early {
                Some(end) => end,
                None => end(),
            };
            let claim = self.joined("`try_claim`", claim).await;
            self.joined("`remove` or `sweep`", end).await;
            let what = ["removed", "swept"][usize::from(round % 4 >= 2)];
            match claim {
                TryClaim::Won(mut claim) => {
                    let when = format!("when it was claimed before it could be {what}");
                    self.assert_complete(&upload, &when).await;
                    let sealed = self.seal(&mut claim, &upload).await;
                    self.assert_content(&sealed, b"abc").await;
                    self.settle(claim, Settlement::Released).await;
                    assert!(self.remove(&upload).await, "not removed");
                }
                // Whoever removes it may need the claim for that.
                TryClaim::Busy | TryClaim::Incomplete => {
                    let when = format!("when it was {what} before it could be claimed");
                    self.assert_absent(&upload, &when).await;
                }
                TryClaim::Settled(_) => panic!("an upload that nobody has delivered is `Settled`"),
            }
        }
    }

    fn spawn_claim(&self, upload: &Upload) -> JoinHandle<TryClaim<S::Claim>> {
        let (store, key) = (self.store.clone(), upload.key);
        tokio::spawn(async move { store.try_claim(&key).await.expect("`try_claim` fails") })
    }
}
