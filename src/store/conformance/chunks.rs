//! What a store does with chunks that arrive one after the other.

use std::pin::pin;

use super::{
    Suite, assert_ranges,
    body::{End, FAILURE, Source},
    complete, content, described_as, everything, read, receiving, upload, upload_of, write,
};
use crate::{
    model::upload::{Scope, Upload},
    store::{BodyError, ChunkBody, Claimed, Filter, Progress, State, Store, StoreError},
};

impl<S: Store + Clone> Suite<S> {
    /// After each chunk `write` and `status` say what is stored. A chunk may arrive twice.
    pub(super) async fn chunks_in_any_order(&self) {
        // Larger than the buffers of most stores, and not a multiple of anything.
        let (length, size) = (1_000_003, 123_457);
        let content = content(0, length);
        let upload = Upload {
            chunk_size: Some(size as u64),
            ..upload(length as u64)
        };
        self.assert_absent(&upload, "before its first chunk").await;
        let mut order: Vec<_> = content.chunks(size).enumerate().collect();
        order.rotate_left(3);
        order.swap(0, 5);
        let mut received = 0;
        for (n, chunk) in order {
            received += chunk.len() as u64;
            let offset = (n * size) as u64;
            let complete = received == length as u64;
            let expected = Progress { received, complete };
            let progress = self.write(&upload, offset, chunk).await;
            assert_eq!(progress, expected, "`write` returns a wrong progress");
            match self.state(&upload).await {
                Some(State::Receiving(ranges)) => {
                    assert!(!complete, "`Receiving`, but all bytes are stored");
                    assert_eq!(ranges.total(), received, "`status` counts wrongly");
                    assert!(
                        ranges.covers(offset, chunk.len() as u64),
                        "`status` misses a chunk that is stored"
                    );
                }
                Some(State::Complete) => assert!(complete, "`Complete`, but bytes are missing"),
                state => panic!("{state:?} of an upload that is received"),
            }
            let progress = self.write(&upload, offset, chunk).await;
            assert_eq!(progress, expected, "a duplicate changes the progress");
        }
        let sealed = self.deliver(&upload, &content).await;
        assert_eq!(
            *sealed.upload, upload,
            "`claim` returns another description"
        );
    }

    /// A chunk that overlaps stored bytes fills the gaps between them.
    pub(super) async fn stored_bytes_stay(&self) {
        // Small enough for one write of a store, or too large for it.
        for unit in [10, 60_000] {
            let [first, second] = [1, 2].map(|seed| content(seed, 6 * unit));
            let at = |n: usize| (n * unit) as u64;
            let upload = upload(at(6));
            self.write(&upload, at(1), &first[unit..2 * unit]).await;
            self.write(&upload, at(3), &first[3 * unit..4 * unit]).await;
            let mut expected = second;
            for n in [1, 3] {
                let range = n * unit..(n + 1) * unit;
                expected[range.clone()].copy_from_slice(&first[range]);
            }
            // The same bytes, and those around them.
            let half = unit / 2;
            let around = &expected[half..4 * unit + half];
            let progress = self.write(&upload, half as u64, around).await;
            assert_eq!(
                progress,
                receiving(at(4)),
                "a chunk that overlaps stored bytes is counted wrongly"
            );
            let stored = &[half as u64..at(4) + half as u64];
            let when = "after a chunk that overlaps stored ones";
            self.assert_receiving(&upload, stored, when).await;
            self.write(&upload, 0, &expected).await;
            self.deliver(&upload, &expected).await;
        }
    }

    /// The file has changed since its upload began. Nothing of such a chunk is stored.
    pub(super) async fn changed_bytes(&self) {
        for unit in [10, 60_000] {
            let (bytes, mut changed) = (content(1, 4 * unit), content(1, 4 * unit));
            let (upload, at) = (upload(4 * unit as u64), |n: usize| (n * unit) as u64);
            self.write(&upload, at(1), &bytes[unit..2 * unit]).await;
            // Only the last stored byte is different.
            changed[2 * unit - 1] ^= 1;
            let conflict = async |range: std::ops::Range<usize>, when: &str| {
                let source = pin!(Source::new(&changed[range.clone()]));
                let mut body = ChunkBody::new(source, Some(range.len() as u64), 0);
                let written = self.store.write(&upload, range.start as u64, &mut body);
                let written = self.soon("`write` of changed bytes", written).await;
                assert!(
                    matches!(written, Err(StoreError::Conflict)),
                    "`write` of changed bytes does not return `Conflict` but {written:?} {when}"
                );
            };
            let chunks = [unit..2 * unit, 0..3 * unit, unit + unit / 2..3 * unit];
            for range in chunks {
                let when = "while it is received";
                conflict(range, when).await;
                let stored = &[at(1)..at(2)];
                self.assert_receiving(&upload, stored, "after changed bytes")
                    .await;
            }
            self.write(&upload, 0, &bytes[..unit]).await;
            self.write(&upload, at(2), &bytes[2 * unit..]).await;
            conflict(unit..2 * unit, "when it is complete").await;
            self.write(&upload, at(1), &bytes[unit..2 * unit]).await;
            self.deliver(&upload, &bytes).await;
        }
    }

    /// After a chunk whose body fails, or has another length than it should, the upload is as
    /// before. If it was absent it is absent.
    pub(super) async fn failed_chunks_leave_nothing(&self) {
        const LEN: u64 = 600_000;
        let chunk = content(0, LEN as usize);
        let upload = upload(3 * LEN);
        for first in [true, false] {
            for (len, end) in bad_chunks(LEN) {
                let case = format!("after a bad chunk ({len} bytes of {LEN}, end: {end:?})");
                let source = Source::ending(&content(1, len as usize), end);
                let result = write(&self.store, &upload, 0, source, LEN).await;
                // It has other bytes than those that are stored.
                if first || !matches!(result, Err(StoreError::Conflict)) {
                    assert_body_error(&result, end, &case);
                }
                if first {
                    self.assert_absent(&upload, &case).await;
                } else {
                    // The bad chunk had gaps on both sides of the stored bytes.
                    let stored = &[1000..2000, LEN..2 * LEN];
                    self.assert_receiving(&upload, stored, &case).await;
                }
            }
            if first {
                // The length is not declared, but limited.
                let source = pin!(Source::new(&content(1, LEN as usize + 1)));
                let mut body = ChunkBody::new(source, None, LEN);
                let result = self.store.write(&upload, 0, &mut body).await;
                let case = "after a body that is too long";
                assert_body_error(&result, End::Well, case);
                self.assert_absent(&upload, case).await;
                self.write(&upload, LEN, &chunk).await;
                self.write(&upload, 1000, &chunk[1000..2000]).await;
            }
        }
        self.write(&upload, 2 * LEN, &chunk).await;
        self.write(&upload, 0, &chunk).await;
        let (found, _) = self.take(&upload).await;
        assert!(found == chunk.repeat(3), "bytes of a bad chunk are stored");
    }

    /// As long as a body may still fail, no byte of it is counted.
    pub(super) async fn chunks_count_at_their_end(&self) {
        const LEN: usize = 600_000;
        let bytes = content(0, LEN);
        // The chunk is the first one of its upload, or it is not.
        for stored in [0, 10] {
            let upload = upload((LEN + stored) as u64);
            let rest = content(1, stored);
            if stored > 0 {
                self.write(&upload, LEN as u64, &rest).await;
            }
            let (source, mut hold) = Source::held(&bytes);
            let task = self.spawn_write(&upload, 0, source, LEN);
            self.soon("reading a body", hold.drained()).await;
            let when = "while the body of a chunk has not ended";
            match self.state(&upload).await {
                None if stored == 0 => {}
                Some(State::Receiving(ranges)) if stored == 0 => assert_ranges(&ranges, &[], when),
                Some(State::Receiving(ranges)) => {
                    assert_ranges(&ranges, &[LEN as u64..(LEN + stored) as u64], when);
                }
                state => panic!("{state:?} {when}"),
            }
            assert!(
                matches!(self.try_claim(&upload).await, Claimed::Incomplete),
                "an upload can be claimed {when}"
            );
            hold.end();
            let written = self.joined("`write` after the end of its body", task).await;
            let progress = written.expect("`write` of a good chunk that pauses fails");
            assert!(progress.complete, "`write` misses bytes of a good chunk");
            let (found, _) = self.take(&upload).await;
            assert!(
                found == [bytes.clone(), rest].concat(),
                "a chunk that pauses has wrong bytes"
            );
        }
    }

    /// The chunk starts beyond the end, or crosses it, or its end is larger than a `u64`.
    pub(super) async fn chunks_out_of_bounds(&self) {
        const LEN: u64 = 600_000;
        let bytes = content(0, 2 * LEN as usize);
        let chunks = [
            (LEN, 1),
            (LEN + 1, 10),
            (LEN - 1, 2),
            (1000, LEN),
            (1 << 40, LEN),
            (i64::MAX as u64, 1),
            (u64::MAX, 1),
            (u64::MAX - 9, LEN),
        ];
        for first in [true, false] {
            let upload = upload(LEN);
            if !first {
                self.write(&upload, 1000, &bytes[1000..2000]).await;
            }
            for (offset, len) in chunks {
                for exact in [Some(len), None] {
                    let case = format!("after a chunk of {len} bytes at {offset} of {LEN}");
                    let start = offset.min(LEN) as usize;
                    let source = pin!(Source::new(&bytes[start..start + len as usize]));
                    let mut body = ChunkBody::new(source, exact, LEN);
                    let result = self.store.write(&upload, offset, &mut body).await;
                    assert!(
                        matches!(result, Err(StoreError::OutOfBounds)),
                        "`write` does not return `OutOfBounds` but {result:?} {case}"
                    );
                    if first {
                        self.assert_absent(&upload, &case).await;
                    } else {
                        self.assert_receiving(&upload, &[1000..2000], &case).await;
                    }
                }
            }
            self.write(&upload, 0, &bytes[..LEN as usize]).await;
            let (found, _) = self.take(&upload).await;
            assert!(
                found == bytes[..LEN as usize],
                "a chunk beyond the length spoils the file"
            );
        }
    }

    /// An upload exists from `create` on, and a second call returns what is stored of it.
    pub(super) async fn created_uploads(&self) {
        let upload = upload(6);
        let other = described_as(&upload, "other");
        let assert_created = |status: crate::store::Status, received, when: &str| {
            assert_eq!(
                status.upload, upload,
                "an upload has another description {when}"
            );
            match status.state {
                State::Receiving(ranges) => assert_eq!(
                    ranges.total(),
                    received,
                    "an upload has a wrong number of bytes {when}"
                ),
                state => panic!("an upload should be `Receiving` {when}, but it is {state:?}"),
            }
        };
        assert_created(self.create(&upload).await, 0, "when it is created");
        let status = self.status(&upload).await;
        let status = status.expect("an upload is absent after `create`");
        assert_created(status, 0, "after `create`");
        assert_created(self.create(&other).await, 0, "when it is created again");
        let listed = self.list_of(&Filter::default(), &[&upload]).await;
        assert_eq!(listed.len(), 1, "`list` does not return a created upload");
        assert_eq!(listed[0].upload, upload, "`list` of a created upload");
        assert_eq!(
            listed[0].progress,
            receiving(0),
            "`list` of a created upload"
        );
        assert!(
            matches!(self.try_claim(&upload).await, Claimed::Incomplete),
            "an upload without bytes can be claimed"
        );

        // A chunk that fails does not remove it.
        let source = Source::ending(b"ab", End::Failure);
        let result = write(&self.store, &upload, 0, source, 3).await;
        assert_body_error(&result, End::Failure, "for a created upload");
        self.assert_receiving(&upload, &[], "after a bad chunk of a created upload")
            .await;
        let progress = self.write(&other, 3, b"def").await;
        assert_eq!(progress, receiving(3), "a chunk of a created upload");
        assert_created(self.create(&other).await, 3, "when it has bytes");
        self.write(&other, 0, b"abc").await;
        let created = self.create(&other).await.state;
        assert!(
            matches!(created, State::Complete),
            "`create` of a complete upload returns {created:?}"
        );
        self.deliver(&upload, b"abcdef").await;
        let created = self.create(&other).await.state;
        assert!(
            matches!(&created, State::Settled(found) if *found == self.settled(&upload, "").await),
            "`create` of a settled upload returns {created:?}"
        );

        // An upload without bytes is removed and swept like any other.
        let [removed, swept, empty] = [6, 6, 0].map(super::upload);
        self.create(&removed).await;
        assert!(
            self.remove(&removed).await,
            "`remove` does not remove a created upload"
        );
        self.assert_absent(&removed, "after its removal").await;
        self.create(&swept).await;
        self.sweep(&super::abandoned()).await;
        self.assert_absent(&swept, "after a sweep of abandoned uploads")
            .await;
        // All bytes of an empty file are there.
        let created = self.create(&empty).await.state;
        assert!(
            matches!(created, State::Complete),
            "an empty file should be `Complete` when it is created, but it is {created:?}"
        );
        self.deliver(&empty, b"").await;
    }

    /// A store may answer that it does not support them.
    pub(super) async fn uploads_without_a_length(&self) {
        let scope = Scope::new(super::random_id().expect("the system has random bytes"));
        let [created, written] = [0; 2].map(|_| upload_of(&scope, None));
        let first = match self.store.create(&created).await {
            Ok(status) => status,
            Err(StoreError::Unsupported) => {
                let source = Source::new(b"abc");
                let result = write(&self.store, &written, 0, source, 3).await;
                assert!(
                    matches!(result, Err(StoreError::Unsupported)),
                    "`create` returns `Unsupported` for an upload without a length, and `write` \
                     returns {result:?}"
                );
                return self.assert_absent(&written, "if it is not supported").await;
            }
            Err(error) => panic!("`create` of an upload without a length fails: {error:?}"),
        };
        assert!(
            matches!(&first.state, State::Receiving(ranges) if ranges.is_empty()),
            "an upload without a length is created as {:?}",
            first.state
        );
        for upload in [&created, &written] {
            for (offset, bytes) in [(0, b"abc"), (3, b"def")] {
                let progress = self.write(upload, offset, bytes).await;
                let expected = receiving(offset + 3);
                assert_eq!(progress, expected, "a chunk of an upload without a length");
            }
            let when = "without a length";
            self.assert_receiving(upload, &[0..6], when).await;
            assert!(
                matches!(self.try_claim(upload).await, Claimed::Incomplete),
                "an upload {when} can be claimed"
            );
            self.assert_receiving(upload, &[0..6], when).await;
        }
        let listed = self.list(&Filter::default().with_scope(scope), None).await;
        assert_eq!(
            listed.len(),
            2,
            "`list` does not return uploads without a length"
        );
        for listed in listed {
            assert_eq!(listed.upload.length, None, "`list` makes up a length");
            assert_eq!(
                listed.progress,
                receiving(6),
                "`list` of an upload without a length"
            );
        }
        let usage = self.store.usage().await.expect("`usage` fails");
        for upload in [&created, &written] {
            let mut bytes = usage.iter().filter(|usage| usage.id == upload.id);
            assert_eq!(
                bytes.next().map(|usage| usage.bytes),
                Some(6),
                "`usage` of an upload without a length"
            );
        }
        self.sweep(&everything()).await;
        for upload in [&created, &written] {
            self.assert_absent(upload, "after a sweep").await;
        }
    }

    /// It is absent before its chunk, and complete after it.
    pub(super) async fn empty_files(&self) {
        let upload = upload(0);
        self.assert_absent(&upload, "before its first chunk").await;
        let source = Source::ending(b"", End::Failure);
        let result = write(&self.store, &upload, 0, source, 0).await;
        let case = "after an empty chunk that failed";
        assert_body_error(&result, End::Failure, case);
        self.assert_absent(&upload, case).await;
        for _ in 0..2 {
            let progress = self.write(&upload, 0, b"").await;
            assert_eq!(progress, complete(0), "an empty file is not complete");
            self.assert_complete(&upload, "after its empty chunk").await;
        }
        let listed = self.list_of(&Filter::complete(), &[&upload]).await;
        assert_eq!(listed.len(), 1, "`list` does not return an empty file once");
        assert_eq!(listed[0].upload, upload, "`list` of an empty file");
        let (found, first_id) = self.take(&upload).await;
        assert_eq!(found, b"", "an empty file has bytes");
        self.assert_absent(&upload, "after its removal").await;
        self.write(&upload, 0, b"").await;
        let sealed = self.deliver(&upload, b"").await;
        assert_ne!(sealed.id, first_id, "two uploads have the same id");
        self.settled(&upload, "after its delivery").await;
        let progress = self.write(&upload, 0, b"").await;
        assert_eq!(
            progress,
            complete(0),
            "a late empty chunk has a wrong progress"
        );
        let listed = self.list_of(&Filter::default(), &[&upload]).await;
        assert_eq!(listed, [], "`list` returns a delivered file");
    }

    /// A client may declare more than the store can keep. Then the error is not that of the
    /// request, and nothing is left.
    pub(super) async fn huge_uploads(&self) {
        const LEN: u64 = 1000;
        let chunk = content(0, LEN as usize);
        for length in [1 << 40, i64::MAX as u64, u64::MAX] {
            let upload = upload(length);
            let source = Source::new(&chunk);
            let result = write(&self.store, &upload, length - LEN, source, LEN).await;
            let case = format!("after the last chunk of {length} bytes");
            match result {
                Ok(progress) => {
                    assert_eq!(
                        progress,
                        receiving(LEN),
                        "`write` has a wrong progress {case}"
                    );
                    let stored = &[length - LEN..length];
                    self.assert_receiving(&upload, stored, &case).await;
                    assert!(self.remove(&upload).await, "it cannot be removed {case}");
                }
                Err(StoreError::Full(_) | StoreError::Failed(_) | StoreError::TooLarge { .. }) => {}
                Err(error) => panic!("the error is not one of the store {case}: {error:?}"),
            }
            self.assert_absent(&upload, &case).await;
        }
    }

    /// The error of a body that fails is returned.
    pub(super) async fn spooled_bytes(&self) {
        for len in [0, 10, 600_000] {
            let content = content(0, len);
            let source = pin!(Source::new(&content));
            let mut body = ChunkBody::new(source, None, 1_000_000);
            let spooled = self.store.spool(&mut body).await.expect("`spool` fails");
            let found = read(spooled).await.expect("spooled bytes cannot be read");
            assert!(found == content, "spooled bytes have changed");
        }
        for (len, end) in [
            (10, End::Failure),
            (600_000, End::Failure),
            (1001, End::Well),
        ] {
            let source = pin!(Source::ending(&content(0, len), end));
            let mut body = ChunkBody::new(source, None, 1000);
            let spooled = self.store.spool(&mut body).await;
            assert!(
                matches!(spooled, Err(StoreError::Body(_))),
                "`spool` returns {spooled:?} for a body that fails"
            );
        }
    }
}

/// How many bytes arrive of a chunk that should have `len`, and how its body ends.
pub(super) fn bad_chunks(len: u64) -> [(u64, End); 7] {
    [
        (0, End::Failure),
        (10, End::Failure),
        (len - 1, End::Failure),
        (len, End::Failure),
        (0, End::Well),
        (len - 1, End::Well),
        (len + 1, End::Well),
    ]
}

/// Asserts that the result is the error of the body.
pub(super) fn assert_body_error(result: &Result<Progress, StoreError>, end: End, case: &str) {
    let is_expected = match (result, end) {
        (Err(StoreError::Body(BodyError::Failed(error))), End::Failure) => {
            error.to_string() == FAILURE
        }
        (Err(StoreError::Body(BodyError::Length { .. })), End::Well) => true,
        _ => false,
    };
    assert!(
        is_expected,
        "`write` does not return the error of the body but {result:?} {case}"
    );
}
