//! What a store keeps of claims, sealed files and records.

use std::{collections::HashSet, time::SystemTime};

use bytes::Bytes;

use super::{
    Suite,
    body::{Source, Then},
    delivered, described_as, later, put, record, upload,
};
use crate::store::{Location, Progress, Record, Settlement, Store, TryClaim, Upload, Usage};

impl<S: Store + Clone, R: AsyncFn(&Location) -> Option<Vec<u8>>> Suite<'_, S, R> {
    /// A claim is to be had when all bytes are there, by one request at a time.
    pub(super) async fn a_claim_is_the_only_one(&self) {
        let upload = upload(10);
        assert!(
            matches!(self.try_claim(&upload).await, TryClaim::Incomplete),
            "an absent upload can be claimed"
        );
        self.put(&upload, 0, b"01234").await;
        assert!(
            matches!(self.try_claim(&upload).await, TryClaim::Incomplete),
            "an incomplete upload can be claimed"
        );
        self.assert_receiving(&upload, &[0..5], "after a claim that was not to be had")
            .await;
        self.put(&upload, 5, b"56789").await;

        let mut claim = self.claim(&upload).await;
        for _ in 0..3 {
            // Not even after it was asked for before.
            assert!(
                matches!(self.try_claim(&upload).await, TryClaim::Busy),
                "a claimed upload is not `Busy`"
            );
        }
        self.assert_complete(&upload, "while it is claimed").await;
        assert!(
            !self.remove(&upload).await,
            "`remove` removes a claimed upload"
        );
        self.assert_complete(&upload, "after a removal that was refused")
            .await;
        let sealed = self.seal(&mut claim, &upload).await;
        self.assert_content(&sealed, b"0123456789").await;
        assert!(
            matches!(self.try_claim(&upload).await, TryClaim::Busy),
            "a claimed upload is not `Busy` when it is sealed"
        );
        assert!(
            !self.remove(&upload).await,
            "`remove` removes a claimed upload when it is sealed"
        );
        self.assert_content(&sealed, b"0123456789").await;
        self.settle(claim, delivered()).await;
        assert!(
            matches!(self.try_claim(&upload).await, TryClaim::Settled(found) if found.delivered),
            "a delivered upload is not `Settled` for who asks for its claim"
        );
    }

    /// A claim that is not settled is given back however its holder ends: dropped, released, with
    /// its task, in a panic.
    pub(super) async fn a_lost_claim_is_given_back(&self) {
        let upload = upload(3);
        self.put(&upload, 0, b"abc").await;
        for sealed in [false, true] {
            if sealed {
                let mut claim = self.claim(&upload).await;
                self.seal(&mut claim, &upload).await;
                drop(claim);
            }
            drop(self.claim(&upload).await);
            let claim = self.claim(&upload).await;
            self.settle(claim, Settlement::Released).await;

            let claim = self.claim(&upload).await;
            let cancelled = tokio::spawn(async move {
                let _claim = claim;
                std::future::pending::<()>().await;
            });
            cancelled.abort();
            assert!(cancelled.await.is_err());

            let claim = self.claim(&upload).await;
            let panicked = tokio::spawn(async move {
                let _claim = claim;
                // A panic without its message.
                std::panic::resume_unwind(Box::new(()));
            });
            assert!(panicked.await.is_err());
            self.assert_complete(&upload, "after its claims were lost")
                .await;
        }
        let mut claim = self.claim(&upload).await;
        let sealed = self.seal(&mut claim, &upload).await;
        assert_eq!(
            sealed.attempt, 2,
            "attempts are not counted by `seal` alone"
        );
        self.assert_content(&sealed, b"abc").await;
        self.settle(claim, delivered()).await;
    }

    /// Each `seal` counts an attempt, and returns otherwise what the first one did.
    pub(super) async fn attempts_are_counted(&self) {
        let begun = upload(3);
        self.put(&begun, 0, b"abc").await;
        let mut first = None;
        for attempt in 1..=4 {
            let mut claim = self.claim(&begun).await;
            // What the first `seal` was told stays, whatever the first chunk or later ones say.
            let described = described_as(&begun, &attempt.to_string());
            let sealed = self.seal(&mut claim, &described).await;
            assert_eq!(sealed.attempt, attempt, "attempts are counted wrongly");
            self.assert_content(&sealed, b"abc").await;
            // Complete, and nobody has taken it.
            self.assert_complete(&begun, "when it is sealed").await;
            let expected = Progress {
                received: 3,
                complete: true,
            };
            let progress = self.put(&begun, 0, b"xyz").await;
            assert_eq!(progress, expected, "a chunk of a sealed upload");
            self.assert_content(&sealed, b"abc").await;
            if attempt % 2 == 0 {
                self.settle(claim, Settlement::Released).await;
            } else {
                drop(claim);
            }
            let progress = self.put(&begun, 1, b"yz").await;
            assert_eq!(progress, expected, "a chunk of a sealed upload");
            let first = first.get_or_insert_with(|| {
                assert_eq!(sealed.upload, described, "`seal` changes the description");
                sealed.clone()
            });
            assert_eq!(sealed.id, first.id, "the id of an upload changes");
            assert_eq!(
                sealed.upload, first.upload,
                "a later `seal` changes the description"
            );
            assert_eq!(sealed.crc32, first.crc32, "the checksum changes");
            if !matches!(sealed.location, Location::Memory(_)) {
                assert_eq!(
                    sealed.location, first.location,
                    "the place of a sealed file changes"
                );
            }
        }
        assert!(
            self.remove(&begun).await,
            "`remove` does not remove a sealed upload that nobody claims"
        );
    }

    /// The answer of the inner service is given back as it was, in all fields, by `status` and by
    /// `try_claim`.
    pub(super) async fn answers_are_kept(&self) {
        let headers = vec![
            ("content-type".to_owned(), b"text/plain".to_vec()),
            ("set-cookie".to_owned(), b"a=1".to_vec()),
            ("set-cookie".to_owned(), b"b=2".to_vec()),
            ("x-bytes".to_owned(), b"\xff\x80 \xe4".to_vec()),
            ("x-empty".to_owned(), Vec::new()),
        ];
        let bodies = [
            None,
            Some(Bytes::new()),
            Some(Bytes::from_static(b"text")),
            Some((0..=255).cycle().take(70_000).collect()),
        ];
        for (n, body) in bodies.into_iter().enumerate() {
            let kept = Record {
                delivered: n % 2 == 0,
                status: [200, 404, 201, 599][n],
                headers: if n == 1 { Vec::new() } else { headers.clone() },
                body,
                // The record's own figure, whatever the file has.
                size: u64::MAX - n as u64,
                expires: later(),
            };
            let upload = upload(3);
            self.put(&upload, 0, b"abc").await;
            let mut claim = self.claim(&upload).await;
            self.seal(&mut claim, &upload).await;
            let settlement = match kept.delivered {
                true => Settlement::Delivered(kept.clone()),
                false => Settlement::Rejected(kept.clone()),
            };
            self.settle(claim, settlement).await;
            for _ in 0..2 {
                let found = self.settled(&upload, "after it was settled").await;
                assert!(
                    found == kept,
                    "`status` gives another record back: {found:?}"
                );
                match self.try_claim(&upload).await {
                    TryClaim::Settled(found) => {
                        assert!(found == kept, "`try_claim` gives another record: {found:?}");
                    }
                    _ => panic!("`try_claim` of a settled upload is not `Settled`"),
                }
            }
        }
    }

    /// A delivered upload takes no more bytes, and cannot be removed.
    pub(super) async fn a_delivered_upload_stays_as_it_is(&self) {
        let upload = upload(3);
        self.put(&upload, 0, b"abc").await;
        let sealed = self.deliver(&upload, b"abc").await;
        let record = self.settled(&upload, "after its delivery").await;
        for _ in 0..2 {
            self.assert_late_chunk_is_dropped(&upload).await;
            self.assert_content(&sealed, b"abc").await;
            assert!(
                !self.remove(&upload).await,
                "`remove` removes a delivered upload"
            );
            let found = self
                .settled(&upload, "after a late chunk and a removal")
                .await;
            assert_eq!(found, record, "a late chunk changes the record");
            self.assert_content(&sealed, b"abc").await;
        }
    }

    /// A late chunk of a settled upload is taken, and stores nothing.
    async fn assert_late_chunk_is_dropped(&self, upload: &Upload) {
        for (offset, bytes) in [(0, &b"xyz"[..]), (2, b"z")] {
            let progress = self.put(upload, offset, bytes).await;
            let expected = Progress {
                received: 3,
                complete: true,
            };
            assert_eq!(progress, expected, "a late chunk of a settled upload");
        }
        // It has to be a good one all the same: nobody is told that a broken request went well.
        let source = Source::new(b"x", Then::Error);
        let result = put(self.store, upload, 0, source, 3).await;
        assert!(result.is_err(), "a late chunk whose body fails is `Ok`");
        let waiting = self.undelivered(&[upload]).await;
        assert_eq!(waiting, [], "a settled upload is undelivered");
    }

    /// A rejected upload takes no more bytes, cannot be claimed, and its file is gone.
    pub(super) async fn a_rejected_file_is_gone(&self) {
        let upload = upload(3);
        self.put(&upload, 0, b"abc").await;
        let mut claim = self.claim(&upload).await;
        let sealed = self.seal(&mut claim, &upload).await;
        let rejection = record(false, later());
        self.settle(claim, Settlement::Rejected(rejection.clone()))
            .await;
        self.assert_file_is_gone(&sealed, "when the upload was rejected")
            .await;
        self.assert_late_chunk_is_dropped(&upload).await;
        assert!(
            !self.remove(&upload).await,
            "`remove` removes a rejected upload"
        );
        assert!(
            matches!(self.try_claim(&upload).await, TryClaim::Settled(r) if r == rejection),
            "a rejected upload can be claimed"
        );
        let found = self.settled(&upload, "when it was rejected").await;
        assert_eq!(found, rejection, "a rejection is recorded otherwise");
        self.assert_file_is_gone(&sealed, "after a late chunk of a rejected upload")
            .await;
    }

    /// Duplicates may come while the file is sealed and delivered: they are `Ok` and complete, and
    /// change nothing.
    pub(super) async fn late_chunks_do_not_disturb_a_delivery(&self) {
        for _ in 0..5 {
            let upload = upload(6);
            self.put(&upload, 0, b"abcdef").await;
            let late: Vec<_> = (0..4)
                .map(|n| {
                    let (store, upload) = (self.store.clone(), upload.clone());
                    tokio::spawn(async move {
                        for _ in 0..5 {
                            let source = Source::new(b"xyz", Then::End);
                            let progress = put(&store, &upload, n, source, 3)
                                .await
                                .expect("a duplicate fails during the delivery");
                            let expected = Progress {
                                received: 6,
                                complete: true,
                            };
                            assert_eq!(progress, expected, "a duplicate during the delivery");
                        }
                    })
                })
                .collect();
            let sealed = self.deliver(&upload, b"abcdef").await;
            for late in late {
                self.joined("a late chunk", late).await;
            }
            self.assert_content(&sealed, b"abcdef").await;
            self.settled(&upload, "after late chunks").await;
        }
    }

    /// `undelivered` lists each complete upload that is not settled once: with the description of
    /// the request that sealed it, or of its first chunk.
    pub(super) async fn undelivered_uploads_are_listed(&self) {
        let [
            receiving,
            waiting,
            claimed,
            sealed,
            released,
            taken,
            refused,
            empty,
            old,
        ] = [3, 3, 3, 3, 3, 3, 3, 0, 3].map(upload);
        let all = [
            &receiving, &waiting, &claimed, &sealed, &released, &taken, &refused, &empty, &old,
        ];
        self.put(&receiving, 0, b"ab").await;
        self.put(&empty, 0, b"").await;
        for upload in [
            &waiting, &claimed, &sealed, &released, &taken, &refused, &old,
        ] {
            self.put(upload, 2, b"c").await;
            // Another request completes it.
            self.put(&described_as(upload, "last"), 0, b"ab").await;
        }
        let live_claim = self.claim(&claimed).await;
        let seal = async |upload| {
            let mut claim = self.claim(upload).await;
            self.seal(&mut claim, &described_as(upload, "sealed")).await;
            claim
        };
        let live_seal = seal(&sealed).await;
        let claim = seal(&released).await;
        self.settle(claim, Settlement::Released).await;
        let claim = seal(&taken).await;
        self.settle(claim, delivered()).await;
        let claim = seal(&refused).await;
        self.settle(claim, Settlement::Rejected(record(false, later())))
            .await;
        let claim = seal(&old).await;
        self.settle(
            claim,
            Settlement::Delivered(record(true, SystemTime::now())),
        )
        .await;

        let found = self.undelivered(&all).await;
        let expected = [
            waiting.clone(),
            claimed.clone(),
            described_as(&sealed, "sealed"),
            described_as(&released, "sealed"),
            empty.clone(),
        ];
        for upload in &expected {
            let copies: Vec<_> = found.iter().filter(|u| u.key == upload.key).collect();
            assert_eq!(
                copies,
                [upload],
                "`undelivered` does not list an upload once, as it should"
            );
        }
        let keys: HashSet<_> = expected.iter().map(|upload| upload.key).collect();
        let others: Vec<_> = found.iter().filter(|u| !keys.contains(&u.key)).collect();
        assert!(
            others.is_empty(),
            "`undelivered` lists what is incomplete, settled or gone: {others:?}"
        );
        self.unfinished_uploads_are_listed(&receiving, &expected, &all)
            .await;
        drop((live_claim, live_seal));
        self.assert_given_back(&claimed).await;
        self.assert_given_back(&sealed).await;
        for upload in [&receiving, &waiting, &claimed, &sealed, &released, &empty] {
            assert!(
                self.remove(upload).await,
                "`remove` does not remove an upload that nobody claims"
            );
        }
        let found = self.undelivered(&all).await;
        assert_eq!(found, [], "`undelivered` lists removed uploads");
    }

    /// `unfinished` lists what its scope has that is not settled, and how far it is.
    async fn unfinished_uploads_are_listed(
        &self,
        receiving: &Upload,
        complete: &[Upload],
        all: &[&Upload],
    ) {
        let unfinished = async |scope: Option<&str>| {
            let listed = self
                .store
                .unfinished(scope)
                .await
                .expect("`unfinished` fails");
            let ours = |(upload, _): &(Upload, _)| all.iter().any(|known| known.key == upload.key);
            listed.into_iter().filter(ours).collect::<Vec<_>>()
        };
        let listed = unfinished(Some(&receiving.scope)).await;
        let of_all = unfinished(None).await;
        let progress =
            |upload: &Upload, received, complete| (upload.clone(), Progress { received, complete });
        let mut expected = vec![progress(receiving, 2, false)];
        expected.extend(
            complete
                .iter()
                .map(|upload| progress(upload, upload.total, true)),
        );
        for upload in &expected {
            for listed in [&listed, &of_all] {
                let copies = listed.iter().filter(|listed| *listed == upload).count();
                assert_eq!(
                    copies, 1,
                    "`unfinished` does not list an upload as it is: {upload:?}"
                );
            }
        }
        assert_eq!(
            listed.len(),
            expected.len(),
            "`unfinished` lists what is settled: {listed:?}"
        );
        let usage = self.store.usage().await.expect("`usage` fails");
        for (upload, _) in &expected {
            let counted = usage.iter().filter(|usage| usage.key == upload.key);
            assert_eq!(
                counted.collect::<Vec<_>>(),
                [&Usage::from(upload)],
                "`usage` does not count an upload as it is: {upload:?}"
            );
        }
        let is_settled = |usage: &&Usage| {
            all.iter().any(|known| known.key == usage.key)
                && expected.iter().all(|(upload, _)| upload.key != usage.key)
        };
        let settled: Vec<_> = usage.iter().filter(is_settled).collect();
        assert_eq!(settled, [] as [&Usage; 0], "`usage` counts what is settled");
        let others = unfinished(Some("another scope")).await;
        assert_eq!(others, [], "`unfinished` lists another scope's upload");
    }
}
