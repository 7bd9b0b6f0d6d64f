//! What a store does with claims, sealed files and records.

use std::{fs, io::ErrorKind};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::{
    Suite,
    body::{End, Source},
    complete, described_as, later, record, upload, write,
};
use crate::{
    model::upload::Upload,
    store::{Claim, Claimed, Filter, Listed, Record, Store, StoreError, random_id},
};

impl<S: Store + Clone> Suite<S> {
    /// A claim can be taken when all bytes are stored, by one request at a time. A claimed upload
    /// cannot be removed.
    pub(super) async fn claims_are_exclusive(&self) {
        let upload = upload(10);
        assert!(
            matches!(self.try_claim(&upload).await, Claimed::Incomplete),
            "an absent upload can be claimed"
        );
        self.assert_absent(&upload, "after a claim of an absent upload")
            .await;
        self.write(&upload, 0, b"01234").await;
        assert!(
            matches!(self.try_claim(&upload).await, Claimed::Incomplete),
            "an incomplete upload can be claimed"
        );
        self.assert_receiving(&upload, &[0..5], "after a claim of an incomplete upload")
            .await;
        self.write(&upload, 5, b"56789").await;

        let claim = self.claim(&upload).await;
        let sealed = claim.sealed().clone();
        for _ in 0..3 {
            assert!(
                matches!(self.try_claim(&upload).await, Claimed::Busy),
                "a claimed upload is not `Busy`"
            );
            assert!(
                !self.remove(&upload).await,
                "`remove` removes a claimed upload"
            );
            self.assert_complete(&upload, "while it is claimed").await;
            self.assert_content(&sealed, b"0123456789").await;
        }
        self.settle(claim, &record(true, later())).await;
        assert!(
            matches!(self.try_claim(&upload).await, Claimed::Settled(found) if found.delivered),
            "`claim` of a delivered upload does not return `Settled`"
        );
    }

    /// A claim of `write_and_claim` is like the first one of `claim`.
    pub(super) async fn claims_of_chunks(&self) {
        for chunks in [&[&b"abc"[..]][..], &[b"ab", b"c"]] {
            let begun = upload(3);
            let described = Upload {
                fields: vec![("late".into(), "field".into())],
                ..begun.clone()
            };
            let (mut claim, mut offset) = (None, 0);
            for bytes in chunks {
                assert!(claim.is_none(), "an incomplete upload is claimed");
                let progress;
                (progress, claim) = self.write_and_claim(&begun, offset, bytes).await;
                offset += bytes.len() as u64;
                assert_eq!(progress.complete, offset == 3, "`write_and_claim`");
            }
            let claim = match claim {
                Some(claim) => claim,
                None => self.claim(&described).await,
            };
            let sealed = claim.sealed().clone();
            assert_eq!(sealed.attempt, 1, "attempts are counted wrongly");
            assert_eq!(
                *sealed.upload, described,
                "`write_and_claim` forgets fields that come after the bytes"
            );
            self.assert_content(&sealed, b"abc").await;
            assert!(
                matches!(self.try_claim(&described).await, Claimed::Busy),
                "a claimed upload is not `Busy`"
            );
            claim.release().await;
            let (progress, again) = self.write_and_claim(&begun, 0, b"abc").await;
            assert_eq!(progress, complete(3), "a chunk of a sealed upload");
            assert!(again.is_none(), "a duplicate claims the upload");
            let claim = self.claim(&begun).await;
            assert_eq!(claim.sealed().attempt, 2, "attempts are counted wrongly");
            assert_eq!(claim.sealed().id, sealed.id, "the id of an upload changes");
            self.settle(claim, &record(true, later())).await;
            let (_, again) = self.write_and_claim(&begun, 0, b"abc").await;
            assert!(again.is_none(), "a chunk claims a settled upload");
        }
    }

    /// A claim ends when it is dropped, also by a task that is aborted or panics.
    pub(super) async fn lost_claims(&self) {
        let upload = upload(3);
        self.write(&upload, 0, b"abc").await;
        drop(self.claim(&upload).await);
        self.claim(&upload).await.release().await;
        // A server that has just found the upload busy may answer so for another moment.
        drop(self.claim(&upload).await);

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
            // A panic that prints no message.
            std::panic::resume_unwind(Box::new(()));
        });
        assert!(panicked.await.is_err());
        self.assert_complete(&upload, "after its claims were dropped")
            .await;
        self.deliver(&upload, b"abc").await;
    }

    /// All claims return the id, the file and the description of the first one, with one attempt
    /// more. A sealed upload accepts no more bytes.
    pub(super) async fn seals_are_kept(&self) {
        let begun = upload(3);
        self.write(&begun, 0, b"abc").await;
        let mut first = None;
        for attempt in 1..=4 {
            let described = described_as(&begun, &attempt.to_string());
            let claim = self.claim(&described).await;
            let sealed = claim.sealed().clone();
            assert_eq!(sealed.attempt, attempt, "attempts are counted wrongly");
            self.assert_content(&sealed, b"abc").await;
            self.assert_complete(&begun, "while it is sealed").await;
            let progress = self.write(&begun, 0, b"abc").await;
            assert_eq!(progress, complete(3), "a chunk of a sealed upload");
            self.assert_content(&sealed, b"abc").await;
            if attempt % 2 == 0 {
                claim.release().await;
            } else {
                drop(claim);
            }
            let progress = self.write(&begun, 1, b"bc").await;
            assert_eq!(progress, complete(3), "a chunk of a sealed upload");
            let first = first.get_or_insert_with(|| {
                assert_eq!(*sealed.upload, described, "`claim` changes the description");
                sealed.clone()
            });
            assert_eq!(sealed.id, first.id, "the id of an upload changes");
            assert_eq!(
                sealed.upload, first.upload,
                "a later `claim` changes the description"
            );
            assert_eq!(sealed.crc32, first.crc32, "the checksum changes");
            assert_eq!(
                sealed.stored.path(),
                first.stored.path(),
                "the path of a sealed file changes"
            );
        }
        assert!(
            self.remove(&begun).await,
            "`remove` does not remove a sealed upload that is not claimed"
        );
    }

    /// A later request may declare none.
    pub(super) async fn lengths_are_kept(&self) {
        for length in [Some(4), Some(20), Some(u64::MAX), None] {
            let first = upload(10);
            self.write(&first, 0, b"01234").await;
            let other = Upload {
                length,
                ..described_as(&first, "other")
            };
            if length.is_some() {
                self.assert_conflict(&other, "while it is received").await;
            } else {
                let created = self.create(&other).await.upload;
                assert_eq!(created, first, "a later `create` changes the description");
                let result = write(&self.store, &other, 10, Source::new(b"xyz"), 3).await;
                assert!(
                    matches!(result, Err(StoreError::OutOfBounds)),
                    "`write` beyond the stored length does not return `OutOfBounds` but {result:?}"
                );
            }
            let when = "after a chunk with another length";
            self.assert_receiving(&first, &[0..5], when).await;
            let last = described_as(&first, "last");
            let last = if length.is_some() { &last } else { &other };
            let progress = self.write(last, 5, b"56789").await;
            assert_eq!(progress, complete(10), "a later chunk changes the length");
            if length.is_some() {
                self.assert_conflict(&other, "when it is complete").await;
            }

            let sealed = Upload {
                length: Some(10),
                ..other.clone()
            };
            for _ in 0..2 {
                let claim = self.claim(&other).await;
                let found = &claim.sealed().upload;
                assert_eq!(**found, sealed, "`claim` changes the length");
                claim.release().await;
            }
            let status = self.status(&first).await;
            let status = status.expect("a sealed upload is absent");
            assert_eq!(status.upload, sealed, "`status` of a sealed upload");
            let listed = self.list_of(&Filter::complete(), &[&first]).await;
            let expected = Listed::new(sealed, complete(10));
            assert_eq!(listed, [expected], "`list` of a sealed upload");
            self.deliver(&other, b"0123456789").await;
            if length.is_some() {
                self.assert_conflict(&other, "when it is settled").await;
            }
        }
    }

    /// Asserts that the upload was created with another length.
    async fn assert_conflict(&self, other: &Upload, when: &str) {
        let created = self.store.create(other).await;
        assert!(
            matches!(created, Err(StoreError::Conflict)),
            "`create` with another length does not return `Conflict` but {created:?} {when}"
        );
        let written = write(&self.store, other, 0, Source::new(b"012"), 3).await;
        assert!(
            matches!(written, Err(StoreError::Conflict)),
            "`write` with another length does not return `Conflict` but {written:?} {when}"
        );
    }

    /// Before the seal it is the description of the first request, then that of the request that
    /// completed the upload.
    pub(super) async fn status_describes_the_upload(&self) {
        let first = Upload {
            chunk_size: Some(2),
            relative_path: Some("folder/\u{e4} \"\\\n.bin".into()),
            content_type: Some("text/plain".into()),
            ..upload(3)
        };
        let sealed = described_as(&first, "sealed");
        self.write(&first, 0, b"a").await;
        let delivery = self.status(&first).await.and_then(|it| it.delivery);
        let assert_described = async |expected: &Upload, received, when: &str| {
            let status = self.status(&first).await;
            let status = status.unwrap_or_else(|| panic!("an upload is absent {when}"));
            assert_eq!(
                &status.upload, expected,
                "`status` returns another description {when}"
            );
            assert_eq!(
                status.progress().received,
                received,
                "`status` counts wrongly {when}"
            );
            assert_eq!(
                status.delivery, delivery,
                "`status` returns another id {when}"
            );
        };
        assert_described(&first, 1, "after its first chunk").await;
        self.write(&described_as(&first, "second"), 1, b"b").await;
        assert_described(&first, 2, "after its second chunk").await;
        self.write(&described_as(&first, "last"), 2, b"c").await;
        assert_described(&first, 3, "when it is complete").await;
        let claim = self.claim(&sealed).await;
        assert!(
            delivery.as_ref().is_none_or(|id| *id == claim.sealed().id),
            "`status` returns the id of another delivery"
        );
        assert_described(&sealed, 3, "when it is sealed").await;
        self.write(&first, 0, b"abc").await;
        assert_described(&sealed, 3, "after a late chunk").await;
        self.settle(claim, &record(true, later())).await;
        assert_described(&sealed, 3, "when it is settled").await;
    }

    /// The record that `status` and `claim` return is the one that was settled, in all fields.
    pub(super) async fn records_are_kept(&self) {
        let headers: HeaderMap = [
            ("content-type", b"text/plain".as_slice()),
            ("set-cookie", b"a=1"),
            ("set-cookie", b"b=2"),
            ("x-bytes", b"\xff\x80 \xe4"),
            ("x-empty", b""),
        ]
        .into_iter()
        .map(|(name, value)| {
            let value = HeaderValue::from_bytes(value).expect("it is a header value");
            (HeaderName::from_static(name), value)
        })
        .collect();
        let bodies = [
            None,
            Some(Bytes::new()),
            Some(Bytes::from_static(b"text")),
            Some((0..=255).cycle().take(70_000).collect()),
        ];
        for (n, body) in bodies.into_iter().enumerate() {
            let status = [200, 404, 201, 599][n];
            let kept = Record {
                delivered: n % 2 == 0,
                status: StatusCode::from_u16(status).expect("it is a status"),
                headers: if n == 1 {
                    HeaderMap::new()
                } else {
                    headers.clone()
                },
                body,
                // Not the size of the file: the store returns what it was given.
                size: u64::MAX - n as u64,
                expires: later(),
            };
            let upload = upload(3);
            self.write(&upload, 0, b"abc").await;
            let claim = self.claim(&upload).await;
            self.settle(claim, &kept).await;
            for _ in 0..2 {
                let found = self.settled(&upload, "after it was settled").await;
                assert!(found == kept, "`status` returns another record: {found:?}");
                match self.try_claim(&upload).await {
                    Claimed::Settled(found) => {
                        assert!(found == kept, "`claim` returns another record: {found:?}");
                    }
                    _ => panic!("`claim` of a settled upload does not return `Settled`"),
                }
            }
        }
    }

    /// It accepts no more bytes, cannot be removed, and keeps its record and its file.
    pub(super) async fn delivered_uploads_stay(&self) {
        let upload = upload(3);
        self.write(&upload, 0, b"abc").await;
        let sealed = self.deliver(&upload, b"abc").await;
        let record = self.settled(&upload, "after its delivery").await;
        for _ in 0..2 {
            self.assert_late_chunks_are_dropped(&upload).await;
            self.assert_content(&sealed, b"abc").await;
            assert!(
                !self.remove(&upload).await,
                "`remove` removes a delivered upload"
            );
            let forgotten = self.store.forget_rejection(&upload.id).await;
            assert!(
                matches!(forgotten, Ok(false)),
                "`forget_rejection` of a delivered upload returns {forgotten:?}"
            );
            let when = "after a late chunk and a removal";
            let found = self.settled(&upload, when).await;
            assert_eq!(found, record, "a late chunk changes the record");
            self.assert_content(&sealed, b"abc").await;
        }
    }

    /// Late chunks of a settled upload are `Ok` if their bodies do not fail, and store nothing.
    async fn assert_late_chunks_are_dropped(&self, upload: &Upload) {
        for (offset, bytes) in [(0, b"abc".as_slice()), (2, b"c")] {
            let progress = self.write(upload, offset, bytes).await;
            assert_eq!(progress, complete(3), "a late chunk of a settled upload");
        }
        let source = Source::ending(b"x", End::Failure);
        let result = write(&self.store, upload, 0, source, 3).await;
        assert!(result.is_err(), "a late chunk whose body fails is `Ok`");
        let listed = self.list_of(&Filter::default(), &[upload]).await;
        assert_eq!(listed, [], "`list` returns a settled upload");
    }

    /// Apart from that, a rejected upload is like a delivered one.
    pub(super) async fn rejected_files_are_removed(&self) {
        let upload = upload(3);
        self.write(&upload, 0, b"abc").await;
        let claim = self.claim(&upload).await;
        let sealed = claim.sealed().clone();
        let rejection = record(false, later());
        self.settle(claim, &rejection).await;
        self.assert_late_chunks_are_dropped(&upload).await;
        assert!(
            !self.remove(&upload).await,
            "`remove` removes a rejected upload"
        );
        assert!(
            matches!(self.try_claim(&upload).await, Claimed::Settled(found) if found == rejection),
            "`claim` of a rejected upload does not return its record"
        );
        let found = self.settled(&upload, "when it was rejected").await;
        assert_eq!(found, rejection, "`status` returns another record");
        self.assert_file_is_gone(&sealed, "when the upload was rejected")
            .await;
    }

    /// It ends nothing else. A store need not support it.
    pub(super) async fn rejections_are_forgotten(&self) {
        let [rejected, receiving, complete] = [3, 3, 3].map(upload);
        self.write(&rejected, 0, b"abc").await;
        let claim = self.claim(&rejected).await;
        self.settle(claim, &record(false, later())).await;
        self.write(&receiving, 0, b"ab").await;
        self.write(&complete, 0, b"abc").await;
        let forget = async |upload: &Upload| {
            let forgotten = self.store.forget_rejection(&upload.id).await;
            forgotten.expect("`forget_rejection` fails")
        };
        for upload in [&receiving, &complete] {
            assert!(
                !forget(upload).await,
                "`forget_rejection` of an upload that is not settled"
            );
        }
        if !forget(&rejected).await {
            self.settled(&rejected, "if `forget_rejection` ends nothing")
                .await;
            return;
        }
        self.assert_absent(&rejected, "after `forget_rejection`")
            .await;
        let progress = self.write(&rejected, 0, b"x").await;
        assert_eq!(progress.received, 1, "the upload does not begin anew");
        assert!(
            !forget(&rejected).await,
            "`forget_rejection` of an upload that has begun anew"
        );
        self.write(&rejected, 1, b"yz").await;
        self.deliver(&rejected, b"xyz").await;
        self.deliver(&complete, b"abc").await;
    }

    /// So is a chunk that arrives while the file is sealed.
    pub(super) async fn late_chunks(&self) {
        for _ in 0..5 {
            let upload = upload(6);
            self.write(&upload, 0, b"abcdef").await;
            let late = [0, 1, 2, 3].map(|offset| {
                let (store, upload) = (self.store.clone(), upload.clone());
                tokio::spawn(async move {
                    for _ in 0..5 {
                        let source = Source::new(&b"abcdef"[offset as usize..][..3]);
                        let written = write(&store, &upload, offset, source, 3).await;
                        let progress = written.expect("a chunk fails during the delivery");
                        assert_eq!(progress, complete(6), "a chunk during the delivery");
                    }
                })
            });
            let sealed = self.deliver(&upload, b"abcdef").await;
            for late in late {
                self.joined("a late chunk", late).await;
            }
            self.assert_content(&sealed, b"abcdef").await;
            self.settled(&upload, "after late chunks").await;
        }
    }

    /// The application can do so during the delivery and after it. A file is moved durably, and
    /// never over another one.
    pub(super) async fn finished_files(&self) {
        let name = random_id().expect("the system has random bytes");
        let dir = std::env::temp_dir().join(format!("conformance-{name}"));
        fs::create_dir(&dir).expect("a temporary folder cannot be created");
        let (there, free) = (dir.join("there"), dir.join("free"));
        fs::write(&there, "other").expect("a temporary file cannot be written");
        for is_settled in [false, true] {
            let [moved, deleted] = [3, 3].map(upload);
            let mut claims = Vec::new();
            for upload in [&moved, &deleted] {
                self.write(upload, 0, b"abc").await;
                let claim = self.claim(upload).await;
                let sealed = claim.sealed().clone();
                if let Some(path) = sealed.stored.path() {
                    let found = fs::read(path).expect("there is no file at `Stored::path`");
                    assert_eq!(found, b"abc", "another file is at `Stored::path`");
                }
                if is_settled {
                    self.settle(claim, &record(true, later())).await;
                    claims.push((sealed, None));
                } else {
                    claims.push((sealed, Some(claim)));
                }
            }
            let [moved, deleted] = [0, 1].map(|n: usize| claims[n].0.clone());
            let error = moved.stored.move_to(&there).await;
            let error = error.expect_err("a finished file is moved over another one");
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
            self.assert_content(&moved, b"abc").await;
            let result = moved.stored.move_to(&free).await;
            result.expect("a finished file cannot be moved");
            let found = fs::read(&free).expect("a finished file is not where it was moved to");
            assert_eq!(found, b"abc", "a finished file changes when it is moved");
            fs::remove_file(&free).expect("a temporary file cannot be removed");
            self.assert_file_is_gone(&moved, "although it was moved")
                .await;
            for _ in 0..2 {
                let result = deleted.stored.delete().await;
                result.expect("a finished file cannot be deleted, or not twice");
            }
            self.assert_file_is_gone(&deleted, "although it was deleted")
                .await;
            for (_, claim) in claims {
                if let Some(claim) = claim {
                    self.settle(claim, &record(true, later())).await;
                }
            }
        }
        let found = fs::read(&there).expect("a temporary file is gone");
        assert_eq!(found, b"other", "a finished file is moved over another one");
        fs::remove_dir_all(&dir).expect("the temporary folder cannot be removed");
    }
}
