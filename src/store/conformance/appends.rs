//! What a store does with appends. They are checked if the store has them.

use std::pin::pin;

use tokio::task::JoinHandle;

use super::{
    Suite, abandoned, assert_ranges,
    body::{End, FRAME, Source},
    chunks::{assert_body_error, bad_chunks},
    complete, content, described_as, later, nothing, receiving, record, undelivered, upload,
    upload_of,
};
use crate::{
    model::upload::{Creation, Role, Scope, Upload},
    store::{
        Append, ChunkBody, Claim, Claimed, Filter, Keep, Progress, State, Status, Store,
        StoreError, Usage,
    },
};

/// Bytes of an append that a store does not write at once.
const LEN: u64 = 600_000;

impl<S: Store + Clone> Suite<S> {
    /// Appends bytes at their place.
    async fn append(&self, upload: &Upload, offset: u64, bytes: &[u8]) -> Progress {
        let source = Source::new(bytes);
        let appended = self.append_as(upload, Append::at(offset), source, Some(bytes.len()));
        appended.await.expect("a good append fails")
    }

    /// Appends a body without a pause.
    async fn append_as(
        &self,
        upload: &Upload,
        append: Append,
        source: Source,
        exact: Option<usize>,
    ) -> Result<Progress, StoreError> {
        let task = self.spawn_append(upload, append, source, exact);
        self.joined("`append` of a body without a pause", task)
            .await
    }

    /// Appends a body in a task.
    fn spawn_append(
        &self,
        upload: &Upload,
        append: Append,
        source: Source,
        exact: Option<usize>,
    ) -> JoinHandle<Result<Progress, StoreError>> {
        let (store, upload) = (self.store.clone(), upload.clone());
        tokio::spawn(async move {
            let source = pin!(source);
            let mut body = ChunkBody::new(source, exact.map(|len| len as u64), 1 << 40);
            store.append(&upload, append, &mut body).await
        })
    }

    /// Appends a body that does not end, and waits until the store has read all of it.
    async fn stalled(
        &self,
        upload: &Upload,
        append: Append,
        bytes: &[u8],
    ) -> (JoinHandle<Result<Progress, StoreError>>, super::body::Hold) {
        let (source, mut hold) = Source::held(bytes);
        let task = self.spawn_append(upload, append, source, None);
        self.soon("reading a body", hold.drained()).await;
        (task, hold)
    }

    async fn interrupt(&self, upload: &Upload) -> Option<Status> {
        let interrupted = self.store.interrupt(&upload.id);
        let interrupted = self.soon("`interrupt`", interrupted).await;
        interrupted.expect("`interrupt` fails")
    }

    /// Ends the append that is running. Returns how many bytes are stored.
    async fn interrupted(&self, upload: &Upload) -> u64 {
        let status = self.interrupt(upload).await;
        status
            .expect("an upload is absent when it is interrupted")
            .prefix()
    }

    /// Waits for an append that a newer request has ended.
    async fn assert_superseded(&self, task: JoinHandle<Result<Progress, StoreError>>, when: &str) {
        let ended = self.joined("an append that was ended", task).await;
        assert!(
            matches!(ended, Err(StoreError::Superseded)),
            "an append does not end with `Superseded` but {ended:?} {when}"
        );
    }

    /// The upload has these bytes from its start, and no others, and this length.
    async fn assert_stored(&self, upload: &Upload, len: u64, length: Option<u64>, when: &str) {
        let status = self.status(upload).await;
        let status = status.unwrap_or_else(|| panic!("an upload is absent {when}"));
        assert_eq!(status.upload.length, length, "the stored length {when}");
        match status.state {
            State::Receiving(ranges) if len > 0 => assert_ranges(&ranges, &[0..len], when),
            State::Receiving(ranges) => assert_ranges(&ranges, &[], when),
            State::Complete => assert_eq!(length, Some(len), "`Complete` {when}"),
            state => panic!("{state:?} of an upload that is received {when}"),
        }
    }

    /// The rest is appended, and then the file has these bytes.
    async fn assert_rest(&self, upload: &Upload, stored: u64, bytes: &[u8], when: &str) {
        let progress = self.append(upload, stored, &bytes[stored as usize..]).await;
        let expected = complete(bytes.len() as u64);
        assert_eq!(progress, expected, "after the last append {when}");
        let (found, _) = self.take(upload).await;
        assert!(found == bytes, "a file of appends has wrong bytes {when}");
    }

    /// After each append the progress, the status and the list say what is stored.
    pub(super) async fn appends_add(&self) {
        for role in [Role::Whole, Role::Part] {
            let bytes = content(0, 1_000_003);
            let upload = Upload {
                role,
                ..upload(bytes.len() as u64)
            };
            self.create(&upload).await;
            let mut at = 0;
            for len in [1, 0, 70_000, 3, 500_000, bytes.len()] {
                let end = bytes.len().min(at + len);
                let expected = Progress {
                    received: end as u64,
                    complete: end == bytes.len(),
                };
                // A later request describes it in another way.
                let later = described_as(&upload, "later");
                let progress = self.append(&later, at as u64, &bytes[at..end]).await;
                assert_eq!(progress, expected, "`append` returns a wrong progress");
                at = end;
                self.assert_stored(&upload, at as u64, upload.length, "after an append")
                    .await;
                let listed = self.list_of(&Filter::default(), &[&upload]).await;
                assert_eq!(
                    listed.len(),
                    1,
                    "`list` does not return an upload of appends"
                );
                assert_eq!(listed[0].progress, expected, "`list` after an append");
                assert_eq!(listed[0].upload, upload, "`list` after an append");
                assert_eq!(
                    self.interrupted(&upload).await,
                    at as u64,
                    "`interrupt` without an append"
                );
            }
            self.deliver(&upload, &bytes).await;
        }
    }

    /// Neither the bytes nor the length.
    pub(super) async fn appends_at_other_offsets(&self) {
        let upload = upload_of(&Scope::new("conformance"), None);
        self.create(&upload).await;
        let declared = Upload {
            length: Some(20),
            ..upload.clone()
        };
        for stored in [0, 10] {
            for offset in [0, 9, 11, 1 << 40, 1 << 63, u64::MAX] {
                for (bytes, exact) in [(b"abc", Some(3)), (b"abc", None)] {
                    let case = format!("at {offset} if {stored} bytes are stored");
                    if offset == stored {
                        continue;
                    }
                    let source = Source::new(bytes);
                    let append = Append::at(offset);
                    let result = self.append_as(&declared, append, source, exact).await;
                    assert!(
                        matches!(result, Err(StoreError::Offset { stored: it }) if it == stored),
                        "`append` does not return `Offset` but {result:?} {case}"
                    );
                    self.assert_stored(&upload, stored, None, &case).await;
                }
            }
            if stored == 0 {
                self.append(&upload, 0, &content(0, 10)).await;
            }
        }
        assert!(self.remove(&upload).await, "`remove` removes nothing");
    }

    /// All that the body has yielded, or nothing, as [`Append::keep`] says.
    pub(super) async fn failed_appends(&self) {
        let bytes = content(0, 3 * LEN as usize);
        let tail = &bytes[LEN as usize..];
        for keep in [Keep::Prefix, Keep::Whole] {
            for (len, end) in bad_chunks(LEN) {
                let case = format!("with {keep:?} after {len} bytes of {LEN}, end: {end:?}");
                let upload = upload(bytes.len() as u64);
                self.create(&upload).await;
                self.append(&upload, 0, &bytes[..LEN as usize]).await;
                let append = Append {
                    keep,
                    ..Append::at(LEN)
                };
                let source = Source::ending(&tail[..len as usize], end);
                let exact = Some(LEN as usize);
                let result = self.append_as(&upload, append, source, exact).await;
                assert_body_error(&result, end, &case);
                let kept = match keep {
                    Keep::Whole => 0,
                    // The frame that exceeds the length is not part of the body.
                    Keep::Prefix if len > LEN => LEN / FRAME as u64 * FRAME as u64,
                    Keep::Prefix => len,
                };
                let stored = LEN + kept;
                self.assert_stored(&upload, stored, upload.length, &case)
                    .await;
                self.assert_rest(&upload, stored, &bytes, &case).await;
            }
        }
    }

    /// It stays, even if the body of the append that has brought it fails.
    pub(super) async fn lengths_of_appends(&self) {
        for end in [End::Well, End::Failure] {
            let scope = Scope::new("conformance");
            let upload = upload_of(&scope, None);
            let declared = |length| Upload {
                length: Some(length),
                ..upload.clone()
            };
            self.create(&upload).await;
            let progress = self.append(&upload, 0, b"abcd").await;
            assert_eq!(progress, receiving(4), "an append without a length");
            assert_eq!(self.usage_of(&upload).await, 4, "`usage` without a length");
            let when = "after a length that is less than what is stored";
            let append = || Append::at(4);
            let source = Source::new(b"");
            let result = self.append_as(&declared(3), append(), source, None).await;
            assert!(
                matches!(result, Err(StoreError::OutOfBounds)),
                "`append` does not return `OutOfBounds` but {result:?} {when}"
            );
            self.assert_stored(&upload, 4, None, when).await;

            let source = Source::ending(b"ef", end);
            let appended = self.append_as(&declared(8), append(), source, None).await;
            assert_eq!(appended.is_ok(), matches!(end, End::Well), "{appended:?}");
            let when = "after an append that has brought it";
            self.assert_stored(&upload, 6, Some(8), when).await;
            assert_eq!(self.usage_of(&upload).await, 8, "`usage` {when}");
            let created = self.create(&upload).await;
            assert_eq!(created.upload.length, Some(8), "`create` {when}");

            let when = "after another length";
            for other in [7, 9, 6] {
                let source = Source::new(b"gh");
                let append = Append::at(6);
                let result = self.append_as(&declared(other), append, source, None).await;
                assert!(
                    matches!(result, Err(StoreError::Conflict)),
                    "`append` does not return `Conflict` but {result:?} {when}"
                );
                self.assert_stored(&upload, 6, Some(8), when).await;
            }
            // The same length, and none.
            self.append(&declared(8), 6, b"g").await;
            let progress = self.append(&upload, 7, b"h").await;
            assert_eq!(progress, complete(8), "the length of an earlier append");
            let sealed = self.deliver(&upload, b"abcdefgh").await;
            assert_eq!(
                sealed.upload.length,
                Some(8),
                "the length of a sealed upload"
            );
        }
    }

    /// The length that a client has declared, which completes nothing, is kept. The first one
    /// stays.
    pub(super) async fn declared_lengths(&self) {
        for end in [End::Well, End::Failure] {
            let mut upload = upload_of(&Scope::new("conformance"), None);
            upload.creation = Some(Creation::default());
            self.create(&upload).await;
            let declaring = |length| {
                let mut upload = upload.clone();
                upload.declare(Some(length));
                upload
            };
            self.append(&upload, 0, b"ab").await;
            let source = Source::ending(b"cd", end);
            let (first, other) = (declaring(4), declaring(9));
            let appended = self.append_as(&first, Append::at(2), source, None).await;
            assert_eq!(appended.is_ok(), matches!(end, End::Well), "{appended:?}");
            self.append(&other, 4, b"").await;
            let when = "after an append that has declared another one";
            self.assert_stored(&upload, 4, None, when).await;
            for status in [self.status(&upload).await, self.interrupt(&upload).await] {
                let declared = status.and_then(|status| status.upload.declared());
                assert_eq!(declared, Some(4), "the declared length {when}");
            }
            let source = Source::new(b"");
            let mut append = Append::at(4);
            append.ends_here = true;
            let ended = self.append_as(&upload, append, source, Some(0)).await;
            assert_eq!(ended.expect("a good append fails"), complete(4));
        }
    }

    async fn usage_of(&self, upload: &Upload) -> u64 {
        let usage = self.store.usage().await.expect("`usage` fails");
        let mut counted = usage.iter().filter(|usage| usage.id == upload.id);
        let (first, second) = (counted.next(), counted.next());
        let (Some(Usage { bytes, .. }), None) = (first, second) else {
            panic!("`usage` does not count an upload once: {usage:?}")
        };
        *bytes
    }

    /// Only if the body ends well, and no length is stored.
    pub(super) async fn appends_that_end(&self) {
        let ending = |offset| Append {
            ends_here: true,
            ..Append::at(offset)
        };
        for len in [0, 10, LEN as usize] {
            let bytes = content(0, len + 4);
            for keep in [Keep::Prefix, Keep::Whole] {
                let upload = upload_of(&Scope::new("conformance"), None);
                self.create(&upload).await;
                let append = Append { keep, ..ending(0) };
                let source = Source::ending(&bytes[..4], End::Failure);
                let result = self.append_as(&upload, append, source, None).await;
                let when = "after the last append has failed";
                assert_body_error(&result, End::Failure, when);
                let stored = if keep == Keep::Prefix { 4 } else { 0 };
                self.assert_stored(&upload, stored, None, when).await;
                let append = Append {
                    keep,
                    ..ending(stored)
                };
                let source = Source::new(&bytes[stored as usize..]);
                let result = self.append_as(&upload, append, source, None).await;
                let progress = result.expect("the last append fails");
                let expected = complete(bytes.len() as u64);
                assert_eq!(
                    progress, expected,
                    "the end of the last append is no length"
                );
                self.deliver(&upload, &bytes).await;
            }
        }
        let empty = upload_of(&Scope::new("conformance"), None);
        self.create(&empty).await;
        let result = self.append_as(&empty, ending(0), Source::new(b""), None);
        let progress = result
            .await
            .expect("the only append, which is empty, fails");
        assert_eq!(
            progress,
            complete(0),
            "an empty file that ends with its append"
        );
        self.deliver(&empty, b"").await;
        // The stored length counts.
        let upload = upload(10);
        self.create(&upload).await;
        let result = self.append_as(&upload, ending(0), Source::new(b"abc"), None);
        let progress = result.await.expect("an append before the end fails");
        assert_eq!(
            progress,
            receiving(3),
            "an append that ends before the length"
        );
        assert!(self.remove(&upload).await, "`remove` removes nothing");
    }

    /// If the body declares too many bytes, nothing is changed.
    pub(super) async fn appends_out_of_bounds(&self) {
        let bytes = content(0, 2 * LEN as usize);
        for keep in [Keep::Prefix, Keep::Whole] {
            for (stored, length) in [(0, LEN), (10, LEN), (LEN - 1, LEN), (10, 11)] {
                for declares in [true, false] {
                    for len in [length - stored + 1, LEN + 1] {
                        let case = format!(
                            "after {len} bytes at {stored} of {length} ({keep:?}, declared: \
                             {declares})"
                        );
                        let upload = upload_of(&Scope::new("conformance"), None);
                        self.create(&upload).await;
                        self.append(&upload, 0, &bytes[..stored as usize]).await;
                        let declared = Upload {
                            length: Some(length),
                            ..upload.clone()
                        };
                        let append = Append {
                            keep,
                            ..Append::at(stored)
                        };
                        let end = stored as usize + len as usize;
                        let source = Source::new(&bytes[stored as usize..end]);
                        let exact = declares.then_some(len as usize);
                        let result = self.append_as(&declared, append, source, exact).await;
                        assert!(
                            matches!(result, Err(StoreError::OutOfBounds)),
                            "`append` does not return `OutOfBounds` but {result:?} {case}"
                        );
                        let status = self.status(&upload).await;
                        let status = status.expect("an upload is gone after an append");
                        let now = status.prefix();
                        if declares || keep == Keep::Whole {
                            assert_eq!(now, stored, "stored bytes {case}");
                        }
                        if declares {
                            assert_eq!(status.upload.length, None, "the length {case}");
                        }
                        assert!(
                            (stored..=length).contains(&now),
                            "{now} bytes are stored {case}"
                        );
                        let bytes = &bytes[..length as usize];
                        self.append(&declared, now, &bytes[now as usize..]).await;
                        self.assert_rest(&upload, length, bytes, &case).await;
                    }
                }
            }
        }
    }

    /// Also if it was sealed or settled. More bytes are out of bounds.
    pub(super) async fn appends_to_complete_uploads(&self) {
        let upload = upload_of(&Scope::new("conformance"), None);
        let declared = Upload {
            length: Some(3),
            ..upload.clone()
        };
        self.create(&upload).await;
        self.append(&upload, 0, b"abc").await;
        let progress = self.append(&declared, 3, b"").await;
        assert_eq!(progress, complete(3), "an empty append with the length");
        let check = async |when: &str| {
            let progress = self.append(&upload, 3, b"").await;
            assert_eq!(progress, complete(3), "an empty append {when}");
            let status = self.interrupt(&upload).await;
            let status = status.expect("an upload is gone when it is interrupted");
            assert_eq!(status.prefix(), 3, "`interrupt` {when}");
            for (offset, expected) in [(3, "OutOfBounds"), (0, "Offset { stored: 3 }")] {
                let source = Source::new(b"abc");
                let append = Append::at(offset);
                let result = self.append_as(&upload, append, source, None).await;
                let found = result.as_ref().map_err(|error| format!("{error:?}"));
                assert_eq!(
                    found.err().as_deref(),
                    Some(expected),
                    "`append` at {offset} returns {result:?} {when}"
                );
            }
        };
        check("when the upload is complete").await;
        let claim = self.claim(&upload).await;
        check("when it is sealed").await;
        self.assert_content(claim.sealed(), b"abc").await;
        let record = record(true, later());
        self.settle(claim, &record).await;
        check("when it is settled").await;
        let found = self.settled(&upload, "after its appends").await;
        assert_eq!(found, record, "an append changes the record");
    }

    /// It never creates one.
    pub(super) async fn appends_to_absent_uploads(&self) {
        let upload = upload(3);
        for when in ["before it is created", "when it was removed"] {
            let source = Source::new(b"abc");
            let result = self.append_as(&upload, Append::at(0), source, None).await;
            assert!(
                matches!(result, Err(StoreError::Superseded)),
                "`append` does not return `Superseded` but {result:?} {when}"
            );
            let status = self.interrupt(&upload).await;
            assert!(status.is_none(), "`interrupt` returns {status:?} {when}");
            self.assert_absent(&upload, when).await;
            self.create(&upload).await;
            self.append(&upload, 0, b"a").await;
            assert!(self.remove(&upload).await, "`remove` removes nothing");
        }
        self.create(&upload).await;
        self.append(&upload, 0, b"abc").await;
        let claim = self.claim(&upload).await;
        let expired = record(true, std::time::SystemTime::now());
        self.settle(claim, &expired).await;
        let source = Source::new(b"");
        let result = self.append_as(&upload, Append::at(3), source, None).await;
        assert!(
            matches!(result, Err(StoreError::Superseded)),
            "`append` after an expired record returns {result:?}"
        );
    }

    /// It does not wait for the next bytes of the older one, which ends at once.
    pub(super) async fn newer_appends_win(&self) {
        let bytes = content(0, 2 * LEN as usize);
        for keep in [Keep::Prefix, Keep::Whole] {
            for interrupts in [true, false] {
                for len in [10, LEN] {
                    let when = format!("after a stalled append of {len} bytes ({keep:?})");
                    let upload = upload(bytes.len() as u64);
                    self.create(&upload).await;
                    let append = Append {
                        keep,
                        ..Append::at(0)
                    };
                    let stalled = self.stalled(&upload, append, &bytes[..len as usize]);
                    let (older, hold) = stalled.await;
                    let kept = if keep == Keep::Prefix { len } else { 0 };
                    let stored = if interrupts {
                        self.interrupted(&upload).await
                    } else {
                        // At an offset that is wrong in any case.
                        let append = Append::at(LEN + 1);
                        let source = Source::new(b"x");
                        match self.append_as(&upload, append, source, None).await {
                            Err(StoreError::Offset { stored }) => stored,
                            result => panic!("{result:?} of an append at another offset {when}"),
                        }
                    };
                    assert_eq!(stored, kept, "stored bytes {when}");
                    self.assert_superseded(older, &when).await;
                    drop(hold);
                    self.assert_stored(&upload, kept, upload.length, &when)
                        .await;
                    self.assert_rest(&upload, kept, &bytes, &when).await;
                }
            }
        }
    }

    /// An append at the offset that it returns succeeds.
    pub(super) async fn interrupts_race(&self) {
        let bytes = content(0, 2 * LEN as usize);
        for round in 0..40 {
            let keep = if round % 4 == 0 {
                Keep::Whole
            } else {
                Keep::Prefix
            };
            let upload = upload(bytes.len() as u64);
            self.create(&upload).await;
            let append = Append {
                keep,
                ..Append::at(0)
            };
            let (source, started) = Source::started(&bytes[..LEN as usize]);
            let older = self.spawn_append(&upload, append, source, Some(LEN as usize));
            // The error says that the append has ended.
            let _ = self.soon("reading a body", started).await;
            for _ in 0..round {
                tokio::task::yield_now().await;
            }
            let when = "when an append was interrupted";
            let stored = self.interrupted(&upload).await;
            self.assert_stored(&upload, stored, upload.length, when)
                .await;
            // At once, so that the older one may still be ending.
            let next = (stored as usize + 1000).min(bytes.len());
            let progress = self
                .append(&upload, stored, &bytes[stored as usize..next])
                .await;
            assert_eq!(progress, receiving(next as u64), "an append {when}");
            match self.joined("an append that is interrupted", older).await {
                Ok(progress) => {
                    assert_eq!((progress, stored), (receiving(LEN), LEN), "{when}");
                }
                Err(StoreError::Superseded) => {
                    let is_kept = keep == Keep::Prefix || [0, LEN].contains(&stored);
                    assert!(
                        is_kept,
                        "with `Keep::Whole` {stored} bytes are stored {when}"
                    );
                }
                Err(error) => panic!("an append fails {when}: {error:?}"),
            }
            self.assert_stored(&upload, next as u64, upload.length, when)
                .await;
            self.assert_rest(&upload, next as u64, &bytes, when).await;
        }
    }

    /// Each has other bytes. Those of one of them are stored.
    pub(super) async fn appends_race(&self) {
        for round in 0..20 {
            let keep = if round % 2 == 0 {
                Keep::Whole
            } else {
                Keep::Prefix
            };
            let upload = upload(2 * LEN);
            self.create(&upload).await;
            let contents = [0, 1, 2, 3].map(|seed| content(seed, LEN as usize));
            let tasks = contents.each_ref().map(|bytes| {
                let append = Append {
                    keep,
                    ..Append::at(0)
                };
                self.spawn_append(&upload, append, Source::with_pauses(bytes), None)
            });
            let mut won = Vec::new();
            for (n, task) in tasks.into_iter().enumerate() {
                match self.joined("one of several appends", task).await {
                    Ok(progress) => {
                        assert_eq!(progress, receiving(LEN), "one of several appends");
                        won.push(n);
                    }
                    Err(StoreError::Superseded | StoreError::Offset { .. }) => {}
                    Err(error) => panic!("one of several appends fails: {error:?}"),
                }
            }
            let stored = self.interrupted(&upload).await;
            assert!(won.len() < 2, "several appends at one offset succeed");
            if keep == Keep::Whole || !won.is_empty() {
                assert_eq!(won.len(), 1, "none of several appends succeeds");
                assert_eq!(stored, LEN, "stored bytes after several appends");
            }
            let rest = vec![0; (2 * LEN - stored) as usize];
            self.append(&upload, stored, &rest).await;
            let (found, _) = self.take(&upload).await;
            let stored = stored as usize;
            let is_of = |bytes: &Vec<u8>| bytes[..stored] == found[..stored];
            assert!(
                won.first()
                    .map_or(stored == 0 || contents.iter().any(is_of), |n| {
                        is_of(&contents[*n])
                    }),
                "appends at once mix their bytes"
            );
        }
    }

    /// A removal does not wait for the append, whose bytes do not come back. A sweep does not
    /// remove the upload.
    pub(super) async fn removal_during_an_append(&self) {
        let bytes = content(0, 2 * LEN as usize);
        for keep in [Keep::Prefix, Keep::Whole] {
            let upload = upload(bytes.len() as u64);
            let append = Append {
                keep,
                ..Append::at(0)
            };
            self.create(&upload).await;
            let stalled = self.stalled(&upload, append, &bytes[..LEN as usize]);
            let (older, hold) = stalled.await;
            for expiry in [abandoned(), undelivered(), nothing()] {
                self.sweep(&expiry).await;
            }
            assert!(
                self.status(&upload).await.is_some(),
                "a sweep removes an upload that an append is writing to"
            );
            let removed = self.soon("`remove`", self.remove(&upload)).await;
            assert!(removed, "`remove` does not remove it because of an append");
            let when = "when its upload was removed";
            self.assert_superseded(older, when).await;
            self.assert_absent(&upload, when).await;
            self.create(&upload).await;
            drop(hold);
            self.assert_stored(&upload, 0, upload.length, when).await;
            self.assert_rest(&upload, 0, &bytes, when).await;

            self.create(&upload).await;
            self.append(&upload, 0, b"abc").await;
            self.sweep(&nothing()).await;
            self.assert_stored(&upload, 3, upload.length, "after a sweep")
                .await;
            self.sweep(&abandoned()).await;
            self.assert_absent(&upload, "after a sweep of abandoned uploads")
                .await;
        }
    }

    async fn forget(&self, upload: &Upload) -> bool {
        let forgotten = self.store.forget(&upload.id).await;
        forgotten.expect("`forget` fails")
    }

    /// Its parts may be empty, and may be used more than once.
    pub(super) async fn concatenations(&self) {
        let lens = [10, 0, 600_000, 70_001, 1];
        let (parts, contents) = self.parts(&lens).await;
        let order = [2, 0, 2, 1, 4, 3];
        let expected = order.map(|n: usize| &contents[n][..]).concat();
        let ids = order.map(|n| parts[n].id);
        for created in [None, Some(None), Some(Some(expected.len() as u64))] {
            let upload = upload_of(&Scope::new("conformance"), None);
            if let Some(length) = created {
                let upload = Upload {
                    length,
                    ..upload.clone()
                };
                self.create(&upload).await;
            }
            let progress = self.store.concat(&upload, &ids).await;
            let progress = progress.expect("`concat` of complete parts fails");
            let whole = complete(expected.len() as u64);
            assert_eq!(progress, whole, "`concat` returns a wrong progress");
            let when = "when parts were concatenated";
            self.assert_complete(&upload, when).await;
            for (part, len) in parts.iter().zip(lens) {
                self.assert_complete(part, "after `concat` of its upload")
                    .await;
                self.assert_stored(part, len as u64, Some(len as u64), when)
                    .await;
            }
            self.deliver(&upload, &expected).await;
        }
        // A file of no parts is empty.
        let empty = upload_of(&Scope::new("conformance"), None);
        let progress = self.store.concat(&empty, &[]).await;
        let progress = progress.expect("`concat` of nothing fails");
        assert_eq!(progress, complete(0), "`concat` of nothing");
        self.deliver(&empty, b"").await;
        for (part, content) in parts.iter().zip(&contents) {
            let (found, _) = self.take(part).await;
            assert!(found == *content, "`concat` changes a part");
        }
    }

    /// Complete uploads of these lengths, and their bytes.
    async fn parts(&self, lens: &[usize]) -> (Vec<Upload>, Vec<Vec<u8>>) {
        let (mut parts, mut contents) = (Vec::new(), Vec::new());
        for (n, len) in lens.iter().enumerate() {
            let (part, bytes) = (upload(*len as u64), content(n as u64, *len));
            let part = Upload {
                role: Role::Part,
                ..part
            };
            self.create(&part).await;
            let (first, second) = bytes.split_at(len / 3);
            self.append(&part, 0, first).await;
            self.append(&part, first.len() as u64, second).await;
            parts.push(part);
            contents.push(bytes);
        }
        (parts, contents)
    }

    /// Even if the upload was sealed or settled, and the parts are gone.
    pub(super) async fn concatenations_repeat(&self) {
        let (parts, contents) = self.parts(&[100, 200]).await;
        let upload = upload(300);
        let ids = [parts[0].id, parts[1].id];
        let again = async |when: &str| {
            let progress = self.store.concat(&upload, &ids).await;
            let progress = progress.unwrap_or_else(|error| panic!("{error:?} of `concat` {when}"));
            assert_eq!(progress, complete(300), "`concat` {when}");
        };
        again("at first").await;
        again("of a complete upload").await;
        let claim = self.claim(&upload).await;
        let id = claim.sealed().id.clone();
        again("of a sealed upload").await;
        claim.release().await;
        again("when the claim has ended").await;
        for part in &parts {
            assert!(self.remove(part).await, "`remove` does not remove a part");
        }
        again("when the parts are gone").await;
        let sealed = self.deliver(&upload, &contents.concat()).await;
        assert_eq!(sealed.id, id, "`concat` begins a complete upload anew");
        again("of a settled upload").await;
        self.settled(&upload, "after `concat` of a settled upload")
            .await;
    }

    /// Nothing of it is complete then, and it succeeds when the part is complete.
    pub(super) async fn concatenations_need_their_parts(&self) {
        let (parts, contents) = self.parts(&[100_000, 100]).await;
        let (upload, part) = (upload(100_200), upload(100));
        let ids = [parts[0].id, part.id, parts[1].id];
        let fails = async |when: &str| {
            let result = self.store.concat(&upload, &ids).await;
            assert!(
                matches!(result, Err(StoreError::Superseded)),
                "`concat` does not return `Superseded` but {result:?} {when}"
            );
            match self.state(&upload).await {
                None => {}
                Some(State::Receiving(ranges)) => assert_ranges(&ranges, &[], when),
                state => panic!("an upload is {state:?} {when}"),
            }
            let claimed = self.try_claim(&upload).await;
            assert!(matches!(claimed, Claimed::Incomplete), "claimed {when}");
        };
        fails("if a part is absent").await;
        self.create(&part).await;
        fails("if a part has no bytes").await;
        self.append(&part, 0, &contents[1][..99]).await;
        fails("if a part is not complete").await;
        assert!(self.remove(&part).await, "`remove` does not remove a part");
        fails("if a part was removed").await;
        self.create(&part).await;
        self.append(&part, 0, &contents[1]).await;
        let other = Upload {
            length: Some(100_201),
            ..super::upload(0)
        };
        self.create(&other).await;
        let result = self.store.concat(&other, &ids).await;
        assert!(
            matches!(result, Err(StoreError::Conflict)),
            "`concat` with another length does not return `Conflict` but {result:?}"
        );
        self.assert_receiving(&other, &[], "after `concat` with another length")
            .await;
        let progress = self.store.concat(&upload, &ids).await;
        let progress = progress.expect("`concat` fails although the parts are complete");
        assert_eq!(
            progress,
            complete(100_200),
            "`concat` when it is tried again"
        );
        let expected = [&contents[0][..], &contents[1], &contents[1]].concat();
        self.deliver(&upload, &expected).await;
        let claim = self.claim(&part).await;
        self.settle(claim, &record(true, later())).await;
        assert!(
            !self.forget(&parts[0]).await,
            "`forget` of a complete upload"
        );
        let result = self.store.concat(&other, &ids).await;
        assert!(
            matches!(result, Err(StoreError::Superseded | StoreError::Conflict)),
            "`concat` of a settled part returns {result:?}"
        );
        assert!(self.remove(&other).await, "`remove` removes nothing");
        // A store need not do it.
        if self.forget(&part).await {
            self.assert_absent(&part, "after `forget`").await;
        }

        // Parts are not delivered, so they are no complete uploads to lists and sweeps.
        let listed = self.list_of(&Filter::complete(), &[&parts[0]]).await;
        assert!(
            listed.is_empty(),
            "`list` of what can be delivered has a part"
        );
        self.sweep(&undelivered()).await;
        let when = "after a sweep of complete uploads";
        self.assert_complete(&parts[0], when).await;
        self.sweep(&abandoned()).await;
        let when = "after a sweep of incomplete uploads";
        self.assert_absent(&parts[0], when).await;
        self.assert_absent(&parts[1], when).await;
    }

    /// All calls make one file.
    pub(super) async fn concatenations_race(&self) {
        let (parts, contents) = self.parts(&[100_000, 200_000]).await;
        for _ in 0..10 {
            let upload = upload_of(&Scope::new("conformance"), None);
            let tasks = [0; 4].map(|_| {
                let (store, upload) = (self.store.clone(), upload.clone());
                let ids = [parts[0].id, parts[1].id];
                tokio::spawn(async move { store.concat(&upload, &ids).await })
            });
            let mut succeeded = 0;
            for task in tasks {
                match self.joined("one of several calls of `concat`", task).await {
                    Ok(progress) => {
                        assert_eq!(progress, complete(300_000), "one of several calls");
                        succeeded += 1;
                    }
                    Err(StoreError::Busy) => {}
                    Err(error) => panic!("one of several calls of `concat` fails: {error:?}"),
                }
            }
            assert!(succeeded > 0, "all of several calls of `concat` are `Busy`");
            let (found, _) = self.take(&upload).await;
            assert!(found == contents.concat(), "calls at once spoil the file");
        }
        for part in &parts {
            self.remove(part).await;
        }
    }
}
