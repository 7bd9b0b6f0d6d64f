//! What a store does with several requests at the same time.

use std::{pin::pin, sync::Arc, time::SystemTime};

use tokio::{sync::Semaphore, task::JoinHandle};

use super::{
    Suite, abandoned, assert_ranges, body::Source, complete, content, described_as, later,
    ok_or_superseded, receiving, record, undelivered, upload, write,
};
use crate::{
    model::upload::Upload,
    store::{ChunkBody, Claim, Claimed, Filter, RangeSet, State, Store, StoreError},
};

impl<S: Store + Clone> Suite<S> {
    /// One of them is slow. The bytes are stored once.
    pub(super) async fn identical_chunks_at_once(&self) {
        for len in [100, 600_000] {
            let upload = upload(2 * len as u64);
            let bytes = content(0, 2 * len);
            let (first, second) = bytes.split_at(len);
            let (source, mut hold) = Source::held(first);
            let slow = self.spawn_write(&upload, 0, source, len);
            self.soon("reading a body", hold.drained()).await;
            let fast = [0; 3].map(|_| {
                let source = Source::with_pauses(first);
                self.spawn_write(&upload, 0, source, len)
            });
            hold.end();
            // Another request may have taken its range.
            ok_or_superseded(self.joined("a slow chunk", slow).await);
            for fast in fast {
                let written = self.joined("a duplicate of a chunk", fast).await;
                let progress = written.expect("a duplicate of a chunk fails");
                let expected = receiving(len as u64);
                assert_eq!(progress, expected, "duplicates at once are counted wrongly");
            }
            let progress = self.write(&upload, len as u64, second).await;
            assert!(progress.complete, "bytes of a chunk are missing");
            let (found, _) = self.take(&upload).await;
            assert!(found == bytes, "duplicates at once spoil a chunk");
        }
    }

    /// One of them is first, and the other one fills the gap.
    pub(super) async fn overlapping_chunks_at_once(&self) {
        const UNIT: usize = 150_000;
        for round in 0..4 {
            let (a, b) = (content(1, 2 * UNIT), content(2, 2 * UNIT));
            let upload = upload(3 * UNIT as u64);
            let chunks = [(0, &a), (UNIT as u64, &b)];
            let tasks = [round % 2, 1 - round % 2].map(|n: usize| {
                let (offset, bytes) = chunks[n];
                self.spawn_write(&upload, offset, Source::with_pauses(bytes), bytes.len())
            });
            let (mut complete, mut conflicts) = (0, 0);
            for task in tasks {
                match self.joined("a chunk that overlaps another", task).await {
                    Ok(progress) => complete += usize::from(progress.complete),
                    // It has other bytes than the one that was first.
                    Err(StoreError::Conflict) => conflicts += 1,
                    Err(error) => panic!("a chunk that overlaps another fails: {error:?}"),
                }
            }
            assert!(conflicts < 2, "both of two chunks are a `Conflict`");
            if conflicts == 1 {
                let stored = self.state(&upload).await;
                let Some(State::Receiving(ranges)) = stored else {
                    panic!("{stored:?} after one of two overlapping chunks")
                };
                let (n, rest) = if ranges.covers(0, 2 * UNIT as u64) {
                    (0, (2 * UNIT as u64, &b[UNIT..]))
                } else {
                    (1, (0, &a[..UNIT]))
                };
                let stored = chunks[n].0..chunks[n].0 + 2 * UNIT as u64;
                assert_ranges(&ranges, &[stored], "after one of two overlapping chunks");
                let progress = self.write(&upload, rest.0, rest.1).await;
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

    /// The bytes of the chunk are not stored in the upload that starts after the removal, unless
    /// they are stored as a chunk of that upload.
    pub(super) async fn removal_during_a_chunk(&self) {
        const LEN: usize = 600_000;
        let (old, new) = (content(1, 2 * LEN), content(2, 2 * LEN));
        let upload = upload(2 * LEN as u64);
        self.write(&upload, LEN as u64, &old[LEN..]).await;
        let (source, mut hold) = Source::held(&old[..LEN]);
        let chunk = self.spawn_write(&upload, 0, source, LEN);
        self.soon("reading a body", hold.drained()).await;
        let removed = self.soon("`remove`", self.remove(&upload)).await;
        assert!(
            removed,
            "`remove` does not remove an upload because a chunk arrives"
        );
        self.assert_absent(&upload, "after its removal").await;
        self.write(&upload, 0, &new[..LEN]).await;
        hold.end();
        // The new chunk has other bytes.
        ok_or_superseded(self.joined("a chunk of a removed upload", chunk).await);
        let when = "after a removal and the first new chunk";
        self.assert_receiving(&upload, &[0..LEN as u64], when).await;
        self.write(&upload, LEN as u64, &new[LEN..]).await;
        let (found, _) = self.take(&upload).await;
        assert!(found == new, "bytes from before a removal are there");
    }

    /// The new upload has the bytes of the chunk, and no others.
    pub(super) async fn chunks_of_removed_uploads(&self) {
        const LEN: usize = 600_000;
        let (old, new) = (content(1, 2 * LEN), content(2, 2 * LEN));
        let upload = upload(2 * LEN as u64);
        self.write(&upload, LEN as u64, &old[LEN..]).await;
        let (source, mut hold) = Source::held(&old[..LEN]);
        let (store, chunk) = (self.store.clone(), upload.clone());
        let chunk = tokio::spawn(async move {
            let source = pin!(source);
            let mut body = ChunkBody::new(source, Some(LEN as u64), 0);
            store.write(&chunk, 0, &mut body).await
        });
        self.soon("reading a body", hold.drained()).await;
        let removed = self.soon("`remove`", self.remove(&upload)).await;
        assert!(
            removed,
            "`remove` does not remove an upload because a chunk arrives"
        );
        hold.end();
        let written = self.joined("a chunk of a removed upload", chunk).await;
        let stored = match ok_or_superseded(written) {
            Some(progress) => {
                let expected = receiving(LEN as u64);
                assert_eq!(progress, expected, "a chunk that begins a new upload");
                let when = "when a chunk of a removed upload is stored";
                self.assert_receiving(&upload, &[0..LEN as u64], when).await;
                LEN
            }
            None => {
                let when = "when a chunk of a removed upload has failed";
                self.assert_absent(&upload, when).await;
                0
            }
        };
        self.write(&upload, stored as u64, &new[stored..]).await;
        let (found, _) = self.take(&upload).await;
        assert!(
            found[..stored] == old[..stored] && found[stored..] == new[stored..],
            "bytes from before a removal are there"
        );
    }

    /// The upload is described as one of the calls says, and all of them return this description.
    pub(super) async fn creations_race(&self) {
        for round in 0..5 {
            let upload = upload(4);
            let tasks = (0..6).map(|n| {
                let described = described_as(&upload, &n.to_string());
                let store = self.store.clone();
                tokio::spawn(async move {
                    if n == 0 && round % 2 == 0 {
                        let source = Source::new(b"ab");
                        let written = write(&store, &described, 0, source, 2).await;
                        written.expect("`write` fails during `create`");
                        return described;
                    }
                    let created = store.create(&described).await;
                    created
                        .expect("one of several calls of `create` fails")
                        .upload
                })
            });
            let tasks: Vec<_> = tasks.collect();
            let mut created = Vec::new();
            for task in tasks {
                created.push(self.joined("`create`", task).await);
            }
            let status = self.status(&upload).await;
            let status = status.expect("an upload is absent after `create`");
            let writers = usize::from(round % 2 == 0);
            for created in &created[writers..] {
                assert_eq!(
                    created, &status.upload,
                    "several calls of `create` do not make one upload"
                );
            }
            assert!(
                (0..6).any(|n| status.upload == described_as(&upload, &n.to_string())),
                "the description is that of no request: {:?}",
                status.upload
            );
            let progress = self.write(&upload, 2, b"cd").await;
            let received = 2 + 2 * writers as u64;
            assert_eq!(progress.received, received, "`create` removes a chunk");
            assert!(
                self.remove(&upload).await,
                "`remove` does not remove a created upload"
            );
        }
    }

    /// It is described as one of the chunks says.
    pub(super) async fn first_chunks_race(&self) {
        const LEN: usize = 100;
        for _ in 0..10 {
            let bytes = content(0, 8 * LEN);
            let upload = upload(bytes.len() as u64);
            let described = [0, 1, 2, 3, 4, 5, 6, 7].map(|n| described_as(&upload, &n.to_string()));
            let chunks = described.iter().zip(bytes.chunks(LEN)).enumerate();
            let tasks: Vec<_> = chunks
                .map(|(n, (described, chunk))| {
                    self.spawn_write(described, (n * LEN) as u64, Source::new(chunk), LEN)
                })
                .collect();
            let mut complete = 0;
            for task in tasks {
                let written = self.joined("one of the first chunks", task).await;
                let progress = written.expect("one of several first chunks fails");
                complete += usize::from(progress.complete);
            }
            assert!(
                complete >= 1,
                "all chunks are stored, but none of them got `complete`"
            );
            let listed = self.list_of(&Filter::complete(), &[&upload]).await;
            assert_eq!(
                listed.len(),
                1,
                "several first chunks do not make one upload"
            );
            assert!(
                described.contains(&listed[0].upload),
                "the description is that of no first chunk: {listed:?}"
            );
            let (found, _) = self.take(&upload).await;
            assert!(found == bytes, "first chunks at once spoil the file");
        }
    }

    /// Whatever their order is, and with duplicates.
    pub(super) async fn last_chunks_race(&self) {
        const LEN: usize = 100;
        let bytes = content(0, 3 * LEN);
        for round in 0..100 {
            // They are the first ones too, or they are not.
            let start = usize::from(round % 2 == 0);
            let bytes = &bytes[..(start + 2) * LEN];
            let upload = upload(bytes.len() as u64);
            if start == 1 {
                self.write(&upload, 0, &bytes[..LEN]).await;
            }
            let requests = [0, 1, 0, 1].map(|n| {
                let n = start + n;
                let (store, upload) = (self.store.clone(), upload.clone());
                let source = Source::new(&bytes[n * LEN..(n + 1) * LEN]);
                tokio::spawn(async move {
                    let offset = (n * LEN) as u64;
                    let written = write(&store, &upload, offset, source, LEN as u64).await;
                    let progress = written.expect("one of the last chunks fails");
                    if !progress.complete {
                        return None;
                    }
                    Some(store.claim(&upload).await.expect("`claim` fails"))
                })
            });
            // The claims are held until all requests have ended.
            let (mut claims, mut complete) = (Vec::new(), 0);
            for request in requests {
                let claim = self.joined("one of the last chunks", request).await;
                complete += usize::from(claim.is_some());
                match claim {
                    Some(Claimed::Won(claim)) => claims.push(claim),
                    Some(Claimed::Busy) | None => {}
                    Some(Claimed::Incomplete) => {
                        panic!("`write` returns `complete`, but `claim` returns `Incomplete`")
                    }
                    Some(Claimed::Settled(_)) => panic!("`Settled`, but no claim was settled"),
                }
            }
            assert!(
                complete >= 1,
                "round {round}: all chunks are stored, but none of them got `complete`"
            );
            assert_eq!(
                claims.len(),
                1,
                "round {round}: the number of requests that may deliver the upload"
            );
            for claim in claims {
                assert_eq!(claim.sealed().attempt, 1, "round {round}: attempts");
                self.assert_content(claim.sealed(), bytes).await;
                claim.release().await;
            }
            assert!(
                self.remove(&upload).await,
                "round {round}: `remove` does not remove an upload whose claim was released"
            );
        }
    }

    /// It has none of the bytes of the old one.
    pub(super) async fn expired_record_race(&self) {
        for _ in 0..5 {
            let upload = upload(4);
            self.write(&upload, 0, b"old!").await;
            let claim = self.claim(&upload).await;
            let old = claim.sealed().clone();
            self.settle(claim, &record(true, SystemTime::now())).await;
            let tasks = [0, 2, 0, 2].map(|offset: usize| {
                let source = Source::new(&b"new."[offset..offset + 2]);
                self.spawn_write(&upload, offset as u64, source, 2)
            });
            let mut complete = 0;
            for task in tasks {
                let written = self.joined("a chunk after an expired record", task).await;
                let progress = written.expect("a chunk fails because a record has expired");
                complete += usize::from(progress.complete);
            }
            assert!(complete >= 1, "chunks are lost when a record expires");
            let (found, id) = self.take(&upload).await;
            assert_eq!(found, b"new.", "a new upload has the bytes of an old one");
            assert_ne!(id, old.id, "two uploads have the same id");
            self.assert_content(&old, b"old!").await;
        }
    }

    /// What is written after the last removal is an upload without any of the old bytes.
    pub(super) async fn chunks_race_with_removal(&self) {
        // More than one write of most stores.
        const LEN: usize = 270_000;
        let upload = upload(4 * LEN as u64);
        for _ in 0..2 {
            let mut tasks: Vec<JoinHandle<()>> = Vec::new();
            // Half a removal for each chunk, at varied times.
            let begun = Arc::new(Semaphore::new(0));
            for remover in 0..2 {
                let (store, id, begun) = (self.store.clone(), upload.id, Arc::clone(&begun));
                tasks.push(tokio::spawn(async move {
                    for round in 0..15 {
                        let permit = begun.acquire().await.expect("it is never closed");
                        permit.forget();
                        for _ in 0..round * 7 % 13 * remover {
                            tokio::task::yield_now().await;
                        }
                        store.remove(&id).await.expect("`remove` fails");
                    }
                }));
            }
            for n in 0..6usize {
                let (store, upload, begun) =
                    (self.store.clone(), upload.clone(), Arc::clone(&begun));
                tasks.push(tokio::spawn(async move {
                    for round in 0..5 {
                        begun.add_permits(1);
                        // Never the last chunk of the file.
                        let offset = (n + round) % 3 * LEN;
                        let source = Source::with_pauses(&vec![n as u8; LEN]);
                        let written =
                            write(&store, &upload, offset as u64, source, LEN as u64).await;
                        if let Some(progress) = ok_or_superseded(written) {
                            assert!(
                                !progress.complete && progress.received <= 3 * LEN as u64,
                                "`write` counts bytes that were never sent, when the upload is \
                                 removed: {progress:?}"
                            );
                        }
                    }
                }));
            }
            // The removals wait for the chunks, so the chunks are joined first.
            for task in tasks.into_iter().rev() {
                self.joined("`write` and `remove` in a race", task).await;
            }
            let stored = match self.state(&upload).await {
                None => RangeSet::default(),
                Some(State::Receiving(ranges)) => ranges,
                state => panic!("{state:?} of an incomplete upload"),
            };
            assert!(
                stored.total() % LEN as u64 == 0,
                "a part of a chunk is stored after a removal"
            );
            for gap in stored.gaps(0, 4 * LEN as u64) {
                let rest = vec![99; (gap.end - gap.start) as usize];
                self.write(&upload, gap.start, &rest).await;
            }
            let (found, _) = self.take(&upload).await;
            for chunk in found.chunks(LEN) {
                assert!(
                    chunk.iter().all(|byte| *byte == chunk[0]),
                    "a chunk has bytes from before a removal and from after it"
                );
            }
            self.assert_absent(&upload, "after its last removal").await;
        }
        let bytes = content(0, 4 * LEN);
        self.write(&upload, 0, &bytes).await;
        let (found, _) = self.take(&upload).await;
        assert!(found == bytes, "bytes from before a removal are there");
    }

    /// The upload is swept before the chunk is stored, or not at all; and not if the chunk has
    /// completed it.
    pub(super) async fn chunks_race_with_sweep(&self) {
        const LEN: usize = 100;
        for round in 0..20 {
            let upload = upload(2 * LEN as u64);
            let bytes = content(0, 2 * LEN);
            self.write(&upload, 0, &bytes[..LEN]).await;
            let sweep = || {
                let store = self.store.clone();
                tokio::spawn(async move { store.sweep(&abandoned()).await.expect("`sweep` fails") })
            };
            let early = (round % 2 == 0).then(sweep);
            let source = Source::with_pauses(&bytes[LEN..]);
            let chunk = self.spawn_write(&upload, LEN as u64, source, LEN);
            let sweep = early.unwrap_or_else(sweep);
            let written = self.joined("a chunk during a sweep", chunk).await;
            let progress = written.expect("a chunk fails because of a sweep");
            self.joined("`sweep`", sweep).await;
            if progress.complete {
                let when = "when its last chunk has arrived during a sweep";
                self.assert_complete(&upload, when).await;
            } else {
                assert_eq!(progress, receiving(LEN as u64), "a swept upload is counted");
                match self.state(&upload).await {
                    // The chunk was stored, and swept after that.
                    None => {}
                    Some(State::Receiving(ranges)) => {
                        let stored = &[LEN as u64..2 * LEN as u64];
                        assert_ranges(&ranges, stored, "after a sweep");
                    }
                    state => panic!("{state:?} of an upload whose first chunk was swept"),
                }
            }
            self.write(&upload, 0, &bytes).await;
            let (found, _) = self.take(&upload).await;
            assert!(found == bytes, "a sweep spoils an upload");
        }
    }

    /// The others get `Busy` as long as the claim is live.
    pub(super) async fn claims_race(&self) {
        let upload = upload(3);
        self.write(&upload, 0, b"abc").await;
        for round in 0..20 {
            let tasks = [0; 8].map(|_| self.spawn_claim(&upload));
            let (mut won, mut busy) = (Vec::new(), 0);
            for task in tasks {
                match self.joined("`claim`", task).await {
                    Claimed::Won(claim) => won.push(claim),
                    Claimed::Busy => busy += 1,
                    _ => panic!("`claim` of a complete upload is neither `Won` nor `Busy`"),
                }
            }
            assert_eq!(
                (won.len(), busy),
                (1, 7),
                "round {round}: the numbers of claims that are `Won` and `Busy`"
            );
            for claim in won {
                assert_eq!(
                    claim.sealed().attempt,
                    round + 1,
                    "a claim that is `Busy` counts an attempt"
                );
                self.assert_content(claim.sealed(), b"abc").await;
                if round < 19 {
                    claim.release().await;
                } else {
                    self.settle(claim, &record(true, later())).await;
                }
            }
        }
        for task in [0; 4].map(|_| self.spawn_claim(&upload)) {
            assert!(
                matches!(self.joined("`claim`", task).await, Claimed::Settled(_)),
                "`claim` of a delivered upload does not return `Settled`"
            );
        }
    }

    /// Never both.
    pub(super) async fn claims_race_with_removal(&self) {
        for round in 0..20 {
            let upload = upload(3);
            let progress = self.write(&upload, 0, b"abc").await;
            assert_eq!(progress, complete(3), "a chunk of the whole file");
            let is_removal = round % 4 < 2;
            let end = || {
                let (store, id) = (self.store.clone(), upload.id);
                tokio::spawn(async move {
                    if is_removal {
                        store.remove(&id).await.expect("`remove` fails");
                    } else {
                        store.sweep(&undelivered()).await.expect("`sweep` fails");
                    }
                })
            };
            let early = (round % 2 == 0).then(end);
            let claim = self.spawn_claim(&upload);
            let end = early.unwrap_or_else(end);
            let claim = self.joined("`claim`", claim).await;
            self.joined("`remove` or `sweep`", end).await;
            let ended = if is_removal { "removed" } else { "swept" };
            match claim {
                Claimed::Won(claim) => {
                    let when = format!("when it was claimed before it could be {ended}");
                    self.assert_complete(&upload, &when).await;
                    self.assert_content(claim.sealed(), b"abc").await;
                    claim.release().await;
                    assert!(
                        self.remove(&upload).await,
                        "`remove` does not remove an upload whose claim was released"
                    );
                }
                // `Busy` because a store may claim an upload to remove it.
                Claimed::Busy | Claimed::Incomplete => {
                    let when = format!("when it was {ended} before it could be claimed");
                    self.assert_absent(&upload, &when).await;
                }
                Claimed::Settled(_) => panic!("`Settled`, but no claim was settled"),
            }
        }
    }

    fn spawn_claim(&self, upload: &Upload) -> JoinHandle<Claimed<S::Claim>> {
        let (store, upload) = (self.store.clone(), upload.clone());
        tokio::spawn(async move { store.claim(&upload).await.expect("`claim` fails") })
    }
}
