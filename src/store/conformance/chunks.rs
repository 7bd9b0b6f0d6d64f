//! What a store keeps of chunks that come one after the other.

use std::{ops::Range, pin::pin};

use super::{
    Suite, assert_ranges,
    body::{Source, Then, poll_times, run_until},
    content, put, upload,
};
use crate::store::{ChunkBody, Location, Progress, Status, Store, StoreError, Upload};

impl<S: Store + Clone, R: AsyncFn(&Location) -> Option<Vec<u8>>> Suite<'_, S, R> {
    /// Chunks come in any order, and twice; `put` and `status` say at each step what is there.
    pub(super) async fn chunks_in_any_order(&self) {
        // Larger than what a store may gather before it writes, and not a multiple of anything.
        let (total, size) = (1_000_003, 123_457);
        let content = content(0, total);
        let upload = Upload {
            chunk_size: Some(size as u64),
            ..upload(total as u64)
        };
        self.assert_absent(&upload, "before its first chunk").await;
        let mut order: Vec<_> = content.chunks(size).enumerate().collect();
        order.rotate_left(3);
        order.swap(0, 5);
        let mut received = 0;
        for (n, chunk) in order {
            received += chunk.len() as u64;
            let offset = (n * size) as u64;
            let complete = received == total as u64;
            let expected = Progress { received, complete };
            let progress = self.put(&upload, offset, chunk).await;
            assert_eq!(progress, expected, "`put` says what is not so");
            match self.status(&upload).await {
                Status::Receiving(ranges) => {
                    assert!(!complete, "all bytes are there, but `status` misses some");
                    assert_eq!(ranges.total(), received, "`status` counts wrongly");
                    assert!(
                        ranges.covers(offset, chunk.len() as u64),
                        "`status` does not know a chunk that was stored"
                    );
                }
                Status::Complete => assert!(complete, "`Complete`, but bytes are missing"),
                status => panic!("{status:?} while it is received"),
            }
            // Twice is no more than once.
            let progress = self.put(&upload, offset, chunk).await;
            assert_eq!(progress, expected, "a duplicate changes the progress");
        }
        let sealed = self.deliver(&upload, &content).await;
        assert_eq!(sealed.upload, upload, "`seal` returns another description");
    }

    /// A byte that is stored is never written again: what overlaps fills only the gaps.
    pub(super) async fn stored_bytes_stay(&self) {
        // In one write, and in many.
        for unit in [10, 60_000] {
            let [first, second, third] = [1, 2, 3].map(|seed| content(seed, 6 * unit));
            let at = |n: usize| (n * unit) as u64;
            let upload = upload(at(6));
            self.put(&upload, at(1), &first[unit..2 * unit]).await;
            self.put(&upload, at(3), &first[3 * unit..4 * unit]).await;
            // Other bytes for the same places, before, between and behind them.
            let half = unit / 2;
            let progress = self
                .put(&upload, half as u64, &second[half..4 * unit + half])
                .await;
            let received = at(4);
            assert_eq!(
                progress,
                Progress {
                    received,
                    complete: false
                },
                "a chunk that overlaps stored bytes is counted wrongly"
            );
            self.assert_receiving(
                &upload,
                &[half as u64..at(4) + half as u64],
                "after a chunk that overlaps stored ones",
            )
            .await;
            self.put(&upload, 0, &third).await;

            let mut expected = third;
            expected[half..4 * unit + half].copy_from_slice(&second[half..4 * unit + half]);
            for n in [1, 3] {
                expected[n * unit..(n + 1) * unit]
                    .copy_from_slice(&first[n * unit..(n + 1) * unit]);
            }
            self.deliver(&upload, &expected).await;
        }
    }

    /// A chunk whose body fails, or has another length than it should, is as if it never came: the
    /// first one of an upload leaves none.
    pub(super) async fn failed_chunks_leave_nothing(&self) {
        const LEN: u64 = 600_000;
        let chunk = content(0, LEN as usize);
        let upload = upload(3 * LEN);
        for first in [true, false] {
            for (len, then) in [
                (0, Then::Error),
                (10, Then::Error),
                (LEN - 1, Then::Error),
                (LEN, Then::Error),
                // Too short, too long.
                (0, Then::End),
                (LEN - 1, Then::End),
                (LEN + 1, Then::End),
            ] {
                let case = format!("after a bad chunk ({len} bytes of {LEN}, then {then:?})");
                let source = Source::new(&content(1, len as usize), then);
                let result = put(self.store, &upload, 0, source, LEN).await;
                assert!(
                    matches!(result, Err(StoreError::Body(_))),
                    "`put` returns {result:?} {case}"
                );
                match first {
                    true => self.assert_absent(&upload, &case).await,
                    // It was in the chunk's way, so that it had gaps on both sides.
                    false => {
                        self.assert_receiving(&upload, &[1000..2000, LEN..2 * LEN], &case)
                            .await;
                    }
                }
            }
            if first {
                // A length that is not known before: at most so much.
                let source = pin!(Source::new(&content(1, LEN as usize + 1), Then::End));
                let mut body = ChunkBody::new(source, None, LEN);
                let result = self.store.put(&upload, 0, &mut body).await;
                assert!(
                    matches!(result, Err(StoreError::Body(_))),
                    "`put` returns {result:?} for a body that is too long"
                );
                self.assert_absent(&upload, "after a body that is too long")
                    .await;
                self.put(&upload, LEN, &chunk).await;
                self.put(&upload, 1000, &chunk[1000..2000]).await;
            }
        }
        // It goes on as if nothing had been.
        self.put(&upload, 2 * LEN, &chunk).await;
        self.put(&upload, 0, &chunk).await;
        let (found, _) = self.take(&upload).await;
        assert!(found == chunk.repeat(3), "bytes of a bad chunk are kept");
    }

    /// A chunk whose request ends before its body does is as if it never came.
    pub(super) async fn dropped_chunks_leave_nothing(&self) {
        const LEN: u64 = 600_000;
        let (old, new) = (content(1, LEN as usize), content(2, LEN as usize));
        for len in [10, LEN - 1, LEN] {
            let case = format!("after a dropped `put` ({len} bytes of {LEN})");
            let upload = upload(LEN);
            let (source, mut hold) = Source::held(&old[..len as usize]);
            {
                let put = pin!(put(self.store, &upload, 0, source, LEN));
                let result = self.soon("taking a body", run_until(put, hold.dry())).await;
                assert!(
                    result.is_none(),
                    "`put` ends before its body does, with {result:?}"
                );
            }
            match self.status(&upload).await {
                // The store may need a moment until it has forgotten the upload.
                Status::Absent => {}
                Status::Receiving(ranges) => assert_ranges(&ranges, &[], &case),
                status => panic!("{status:?} {case}"),
            }
            let progress = self.put(&upload, 0, &new).await;
            assert!(progress.complete, "`put` misses bytes {case}");
            let (found, _) = self.take(&upload).await;
            assert!(found == new, "bytes of the dropped chunk are there {case}");
        }
    }

    /// Wherever a `put` is dropped, it is as if it had never been called, or its chunk is stored
    /// completely; and the next request for the same range need not wait.
    pub(super) async fn dropped_at_every_poll(&self) {
        const LEN: u64 = 300_000;
        let (old, new) = (content(1, LEN as usize), content(2, LEN as usize));
        let rest = content(3, 10);
        // The chunk is the first of its upload, or not.
        for rest in [&[], &rest[..]] {
            let total = LEN + rest.len() as u64;
            for polls in 0.. {
                let case = format!("after a `put` that was dropped when polled {polls} times");
                let upload = upload(total);
                if !rest.is_empty() {
                    self.put(&upload, LEN, rest).await;
                }
                let source = Source::with_pauses(&old);
                let put = put(self.store, &upload, 0, source, LEN);
                let result = self.soon("`put`", poll_times(put, polls)).await;
                self.assert_all_or_nothing(&upload, LEN..total, &case).await;
                if let Some(result) = &result {
                    let progress = result.as_ref().expect("`put` of a good chunk");
                    assert!(progress.complete, "`put` misses bytes");
                }
                let progress = self.put(&upload, 0, &new).await;
                assert!(progress.complete, "`put` misses bytes {case}");
                let (found, _) = self.take(&upload).await;
                let (found, found_rest) = found.split_at(LEN as usize);
                assert!(found_rest == rest, "bytes from before are gone {case}");
                let is_old = found == old;
                assert!(
                    is_old || (found == new && result.is_none()),
                    "a chunk is a mix of two requests {case}"
                );
                if result.is_some() {
                    break;
                }
            }
        }
    }

    /// All bytes before `rest` are there, or none; those of `rest` are.
    async fn assert_all_or_nothing(&self, upload: &Upload, rest: Range<u64>, when: &str) {
        match self.status(upload).await {
            Status::Absent if rest.is_empty() => {}
            Status::Receiving(ranges) if rest.is_empty() => assert_ranges(&ranges, &[], when),
            Status::Receiving(ranges) => assert_ranges(&ranges, &[rest], when),
            Status::Complete => {}
            status => panic!("{status:?} {when}"),
        }
    }

    /// A file without bytes is an upload like any other: absent before its chunk, complete then.
    pub(super) async fn an_empty_file_is_an_upload(&self) {
        let upload = upload(0);
        self.assert_absent(&upload, "before its first chunk").await;
        let source = Source::new(b"", Then::Error);
        let result = put(self.store, &upload, 0, source, 0).await;
        assert!(
            matches!(result, Err(StoreError::Body(_))),
            "`put` returns {result:?} for an empty body that fails"
        );
        self.assert_absent(&upload, "after an empty chunk that failed")
            .await;
        for _ in 0..2 {
            let progress = self.put(&upload, 0, b"").await;
            let expected = Progress {
                received: 0,
                complete: true,
            };
            assert_eq!(progress, expected, "an empty file is not complete");
            self.assert_complete(&upload, "when its empty chunk has come")
                .await;
        }
        let waiting = self.undelivered(&[&upload]).await;
        assert_eq!(
            waiting,
            std::slice::from_ref(&upload),
            "`undelivered` does not list an empty file"
        );
        let (found, first_id) = self.take(&upload).await;
        assert_eq!(found, b"", "an empty file has bytes");
        self.assert_absent(&upload, "after its removal").await;
        self.put(&upload, 0, b"").await;
        let sealed = self.deliver(&upload, b"").await;
        assert_ne!(sealed.id, first_id, "two uploads have one id");
        self.settled(&upload, "after its delivery").await;
        let progress = self.put(&upload, 0, b"").await;
        assert!(progress.complete, "a late empty chunk is not complete");
        let waiting = self.undelivered(&[&upload]).await;
        assert_eq!(waiting, [], "`undelivered` lists a delivered file");
    }

    /// An upload may be declared far larger than the store: what cannot be stored is an error of the
    /// store, and leaves nothing.
    pub(super) async fn huge_uploads(&self) {
        const LEN: u64 = 1000;
        for total in [1 << 40, i64::MAX as u64, u64::MAX] {
            let upload = upload(total);
            let chunk = content(0, LEN as usize);
            let source = Source::new(&chunk, Then::End);
            let result = put(self.store, &upload, total - LEN, source, LEN).await;
            let case = format!("after the last chunk of {total} bytes");
            match result {
                Ok(progress) => {
                    let expected = Progress {
                        received: LEN,
                        complete: false,
                    };
                    assert_eq!(progress, expected, "`put` counts wrongly {case}");
                    self.assert_receiving(&upload, &[total - LEN..total], &case)
                        .await;
                    assert!(self.remove(&upload).await, "not removed {case}");
                }
                Err(StoreError::Full(_) | StoreError::Failed(_) | StoreError::TooLarge { .. }) => {}
                Err(error) => panic!("the error is not the store's: {error:?} {case}"),
            }
            self.assert_absent(&upload, &case).await;
        }
    }

    /// What was spooled is read again as it came; a body that fails is not spooled.
    pub(super) async fn spooled_chunks(&self) {
        for len in [0, 10, 600_000] {
            let content = content(0, len);
            let source = pin!(Source::new(&content, Then::End));
            let mut body = ChunkBody::new(source, None, 1_000_000);
            let spool = self.store.spool(&mut body).await.expect("`spool` fails");
            let upload = upload(len as u64);
            let stream = pin!(spool.into_stream());
            let mut body = ChunkBody::new(stream, Some(len as u64), 0);
            self.store
                .put(&upload, 0, &mut body)
                .await
                .expect("what was spooled cannot be stored");
            let (found, _) = self.take(&upload).await;
            assert!(found == content, "what was spooled has changed");
        }
        for (len, then) in [(10, Then::Error), (600_000, Then::Error), (1001, Then::End)] {
            let source = pin!(Source::new(&content(0, len), then));
            let mut body = ChunkBody::new(source, None, 1000);
            let spooled = self.store.spool(&mut body).await;
            assert!(
                matches!(spooled, Err(StoreError::Body(_))),
                "`spool` takes a body that fails"
            );
        }
    }
}
