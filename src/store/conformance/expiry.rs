//! What a store keeps when something ends: records, removed uploads, swept ones.

use std::{
    pin::pin,
    time::{Duration, SystemTime},
};

use super::{
    LONG, Suite, abandoned,
    body::{Source, run_until},
    content, delivered, later, nothing, put, record, records, undelivered, upload,
};
use crate::store::{Expiry, Location, Progress, Settlement, Store, TryClaim};

impl<S: Store + Clone, R: AsyncFn(&Location) -> Option<Vec<u8>>> Suite<'_, S, R> {
    /// A record that has expired is as if it were not there, swept or not: the next chunk begins a
    /// new upload, with a new id, and leaves the delivered file alone.
    pub(super) async fn records_expire(&self) {
        let upload = upload(3);
        let mut before: Option<crate::store::Sealed> = None;
        for (n, (content, age)) in [(b"abc", LONG), (b"xyz", Duration::ZERO), (b"123", LONG)]
            .into_iter()
            .enumerate()
        {
            self.assert_absent(&upload, "when its record has expired")
                .await;
            let progress = self.put(&upload, 0, &content[..2]).await;
            let expected = Progress {
                received: 2,
                complete: false,
            };
            assert_eq!(progress, expected, "a chunk after an expired record");
            self.put(&upload, 2, &content[2..]).await;
            let mut claim = self.claim(&upload).await;
            let sealed = self.seal(&mut claim, &upload).await;
            self.assert_content(&sealed, content).await;
            assert_eq!(sealed.attempt, 1, "a new upload has old attempts");
            self.settle(
                claim,
                Settlement::Delivered(record(true, SystemTime::now() - age)),
            )
            .await;
            assert!(
                matches!(self.try_claim(&upload).await, TryClaim::Incomplete),
                "an upload whose record has expired can be claimed, or is `Settled`"
            );
            assert!(
                !self.remove(&upload).await,
                "`remove` removes an upload whose record has expired"
            );
            let waiting = self.undelivered(&[&upload]).await;
            assert_eq!(waiting, [], "an upload with an expired record waits");
            self.assert_content(&sealed, content).await;
            if let Some(before) = &before {
                assert_ne!(before.id, sealed.id, "two uploads have one id");
                let old = [b"abc", b"xyz", b"123"][n - 1];
                self.assert_content(before, old).await;
            }
            before = Some(sealed);
        }
    }

    /// What is removed is gone with its file, and the same file begins anew: none of the old bytes,
    /// another id.
    pub(super) async fn removed_uploads_begin_anew(&self) {
        let upload = upload(6);
        assert!(!self.remove(&upload).await, "`remove` removes nothing");
        self.put(&upload, 0, b"abc").await;
        assert!(
            self.remove(&upload).await,
            "a partial upload is not removed"
        );
        self.assert_absent(&upload, "after its removal").await;
        assert!(!self.remove(&upload).await, "`remove` removes it twice");
        assert!(
            matches!(self.try_claim(&upload).await, TryClaim::Incomplete),
            "a removed upload can be claimed"
        );

        let mut sealed = Vec::new();
        for bytes in [b"ABCdef", b"ghijkl"] {
            self.put(&upload, 3, &bytes[3..]).await;
            self.assert_receiving(&upload, &[3..6], "after its removal")
                .await;
            self.put(&upload, 0, &bytes[..3]).await;
            // A complete one is removed too, with its file.
            let mut claim = self.claim(&upload).await;
            let seal = self.seal(&mut claim, &upload).await;
            self.assert_content(&seal, bytes).await;
            assert_eq!(seal.attempt, 1, "a new upload has old attempts");
            self.settle(claim, Settlement::Released).await;
            assert!(self.remove(&upload).await, "a sealed upload is not removed");
            self.assert_absent(&upload, "after its removal").await;
            self.assert_file_is_gone(&seal, "when the upload was removed")
                .await;
            sealed.push(seal);
        }
        assert_ne!(sealed[0].id, sealed[1].id, "two uploads have one id");
    }

    /// Each of the three limits removes its own kind and no other, and only what is older.
    pub(super) async fn each_limit_sweeps_its_own(&self) {
        let [partial, complete, sealed, settled] = [6, 3, 3, 3].map(upload);
        for upload in [&partial, &complete, &sealed, &settled] {
            self.put(upload, 0, b"abc").await;
        }
        let mut claim = self.claim(&sealed).await;
        let file = self.seal(&mut claim, &sealed).await;
        self.settle(claim, Settlement::Released).await;
        let claim = self.claim(&settled).await;
        self.settle(claim, delivered()).await;

        let an_hour_ago = SystemTime::now() - LONG;
        self.sweep(Expiry {
            undelivered_before: Some(an_hour_ago),
            ..nothing()
        })
        .await;
        let when = "after a sweep of what is older than an hour";
        self.assert_receiving(&partial, &[0..3], when).await;
        self.assert_complete(&complete, when).await;
        self.assert_complete(&sealed, when).await;
        self.settled(&settled, when).await;

        let swept = self.sweep(abandoned()).await;
        let when = "after a sweep of abandoned uploads";
        assert!(swept.abandoned >= 1, "`sweep` counts {swept:?} {when}");
        self.assert_absent(&partial, when).await;
        self.assert_complete(&complete, when).await;
        self.assert_complete(&sealed, when).await;
        self.settled(&settled, when).await;

        let swept = self.sweep(records()).await;
        let when = "after a sweep of records, without a limit for undelivered uploads";
        assert!(swept.records >= 1, "`sweep` counts {swept:?} {when}");
        assert_eq!(swept.undelivered, 0, "`sweep` counts {swept:?} {when}");
        self.assert_absent(&settled, when).await;
        self.assert_complete(&complete, when).await;
        self.assert_complete(&sealed, when).await;
        self.assert_content(&file, b"abc").await;

        let swept = self.sweep(undelivered()).await;
        let when = "after a sweep of undelivered uploads";
        assert!(swept.undelivered >= 2, "`sweep` counts {swept:?} {when}");
        self.assert_absent(&complete, when).await;
        self.assert_absent(&sealed, when).await;
        self.assert_file_is_gone(&file, when).await;

        // What was swept begins anew.
        self.put(&sealed, 0, b"xyz").await;
        let (found, id) = self.take(&sealed).await;
        assert_eq!(found, b"xyz", "bytes of a swept upload are still there");
        assert_ne!(id, file.id, "two uploads have one id");
    }

    /// Whatever the limits, a sweep leaves alone what a request writes to or a claim is held of.
    pub(super) async fn what_is_busy_is_not_swept(&self) {
        let everything = Expiry {
            abandoned_before: later(),
            undelivered_before: Some(later()),
            records_before: later() + LONG,
        };
        // More than what a store may gather before it knows the upload.
        const LEN: u64 = 3_000_000;
        let bytes = content(0, LEN as usize);
        // The chunk in flight is not the first of its upload, or it is.
        for stored in [b"abc".as_slice(), b""] {
            let upload = upload(LEN + 3);
            if !stored.is_empty() {
                self.put(&upload, LEN, stored).await;
            }
            let (source, mut hold) = Source::held(&bytes);
            let mut put = pin!(put(self.store, &upload, 0, source, LEN));
            let early = self
                .soon("taking a body", run_until(put.as_mut(), hold.dry()))
                .await;
            assert!(early.is_none(), "`put` ends before its body does");
            self.sweep(everything).await;
            hold.end();
            let progress = self
                .soon("`put` after a sweep", put)
                .await
                .expect("a chunk that was in flight during a sweep fails");
            let stored = stored.len() as u64;
            assert_eq!(
                progress,
                Progress {
                    received: LEN + stored,
                    complete: stored > 0
                },
                "a sweep removes an upload that a request is writing to"
            );
            match stored {
                0 => {
                    let stored = &[0..LEN];
                    self.assert_receiving(&upload, stored, "after a sweep")
                        .await;
                }
                _ => self.assert_complete(&upload, "after a sweep").await,
            }
            assert!(self.remove(&upload).await, "not removed");
        }

        let upload = upload(3);
        self.put(&upload, 0, b"abc").await;
        let mut claim = self.claim(&upload).await;
        self.sweep(everything).await;
        self.assert_complete(&upload, "after a sweep, while it is claimed")
            .await;
        let sealed = self.seal(&mut claim, &upload).await;
        self.sweep(everything).await;
        self.assert_complete(&upload, "after a sweep, while it is claimed and sealed")
            .await;
        self.assert_content(&sealed, b"abc").await;
        self.settle(claim, delivered()).await;
        self.settled(&upload, "after a sweep and its delivery")
            .await;
    }

    /// A file that was delivered is the application's: no sweep takes it, not even when its record
    /// goes.
    pub(super) async fn delivered_files_are_not_swept(&self) {
        let [kept, expired] = [3, 3].map(upload);
        let mut sealed = Vec::new();
        for (upload, expires) in [(&kept, later()), (&expired, SystemTime::now() - LONG)] {
            self.put(upload, 0, b"abc").await;
            let mut claim = self.claim(upload).await;
            sealed.push(self.seal(&mut claim, upload).await);
            self.settle(claim, Settlement::Delivered(record(true, expires)))
                .await;
        }
        self.sweep(Expiry {
            abandoned_before: later(),
            undelivered_before: Some(later()),
            ..nothing()
        })
        .await;
        self.settled(&kept, "after a sweep that its record outlives")
            .await;
        self.sweep(records()).await;
        for (upload, sealed) in [&kept, &expired].into_iter().zip(&sealed) {
            self.assert_absent(upload, "when its record was swept")
                .await;
            self.assert_content(sealed, b"abc").await;
        }
        assert_ne!(sealed[0].id, sealed[1].id, "two uploads have one id");
    }
}
