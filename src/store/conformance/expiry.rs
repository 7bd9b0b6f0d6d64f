//! What a store removes: expired records, removed uploads and swept ones.

use std::{
    pin::pin,
    time::{Duration, SystemTime},
};

use super::{
    HOUR, Suite, abandoned, body::Source, complete, content, everything, later, nothing, receiving,
    record, records, undelivered, upload,
};
use crate::store::{ChunkBody, Claim, Claimed, Expiry, Filter, Sealed, Store};

impl<S: Store + Clone> Suite<S> {
    /// This holds before it is swept too. The next chunk starts a new upload with a new id, and the
    /// delivered file stays.
    pub(super) async fn records_expire(&self) {
        let upload = upload(3);
        let mut before: Option<(Sealed, &[u8])> = None;
        for (content, age) in [(b"abc", HOUR), (b"xyz", Duration::ZERO), (b"123", HOUR)] {
            self.assert_absent(&upload, "when its record has expired")
                .await;
            let progress = self.write(&upload, 0, &content[..2]).await;
            assert_eq!(progress, receiving(2), "a chunk after an expired record");
            self.write(&upload, 2, &content[2..]).await;
            let claim = self.claim(&upload).await;
            let sealed = claim.sealed().clone();
            self.assert_content(&sealed, content).await;
            assert_eq!(
                sealed.attempt, 1,
                "a new upload has the attempts of an old one"
            );
            self.settle(claim, &record(true, SystemTime::now() - age))
                .await;
            assert!(
                matches!(self.try_claim(&upload).await, Claimed::Incomplete),
                "`claim` of an upload whose record has expired is not `Incomplete`"
            );
            assert!(
                !self.remove(&upload).await,
                "`remove` removes an upload whose record has expired"
            );
            let listed = self.list_of(&Filter::default(), &[&upload]).await;
            assert_eq!(
                listed,
                [],
                "`list` returns an upload whose record has expired"
            );
            self.assert_content(&sealed, content).await;
            if let Some((before, content)) = &before {
                assert_ne!(before.id, sealed.id, "two uploads have the same id");
                self.assert_content(before, content).await;
            }
            before = Some((sealed, content));
        }
        let created = self.create(&upload).await;
        assert_eq!(
            created.progress(),
            receiving(0),
            "`create` after an expired record"
        );
        assert!(
            self.remove(&upload).await,
            "a created upload is not removed"
        );
    }

    /// Its file is removed. A new upload has none of the old bytes, and another id.
    pub(super) async fn removed_uploads(&self) {
        let upload = upload(6);
        assert!(
            !self.remove(&upload).await,
            "`remove` of an absent upload returns `true`"
        );
        self.write(&upload, 0, b"abc").await;
        assert!(
            self.remove(&upload).await,
            "`remove` does not remove an incomplete upload"
        );
        self.assert_absent(&upload, "after its removal").await;
        assert!(!self.remove(&upload).await, "`remove` removes it twice");
        assert!(
            matches!(self.try_claim(&upload).await, Claimed::Incomplete),
            "`claim` of a removed upload is not `Incomplete`"
        );

        let mut ids = Vec::new();
        for bytes in [b"ABCdef", b"ghijkl"] {
            self.write(&upload, 3, &bytes[3..]).await;
            self.assert_receiving(&upload, &[3..6], "after its removal")
                .await;
            self.write(&upload, 0, &bytes[..3]).await;
            let claim = self.claim(&upload).await;
            let sealed = claim.sealed().clone();
            self.assert_content(&sealed, bytes).await;
            assert_eq!(
                sealed.attempt, 1,
                "a new upload has the attempts of an old one"
            );
            claim.release().await;
            assert!(
                self.remove(&upload).await,
                "`remove` does not remove a sealed upload"
            );
            self.assert_absent(&upload, "after its removal").await;
            self.assert_file_is_gone(&sealed, "when the upload was removed")
                .await;
            ids.push(sealed.id);
        }
        assert_ne!(ids[0], ids[1], "two uploads have the same id");
    }

    /// The three limits are for incomplete uploads, for complete ones, and for records.
    pub(super) async fn expiry_of_each_kind(&self) {
        let [partial, complete, sealed, settled] = [6, 3, 3, 3].map(upload);
        for upload in [&partial, &complete, &sealed, &settled] {
            self.write(upload, 0, b"abc").await;
        }
        let claim = self.claim(&sealed).await;
        let file = claim.sealed().clone();
        claim.release().await;
        // It is not dropped before the sweeps: a claim has ended when it is settled.
        let mut ended_claim = self.claim(&settled).await;
        let result = ended_claim.settle(&record(true, later())).await;
        result.expect("`settle` fails, although the claim is live");

        self.sweep(&Expiry {
            undelivered_before: Some(SystemTime::now() - HOUR),
            ..nothing()
        })
        .await;
        let when = "after a sweep of what is older than an hour";
        self.assert_receiving(&partial, &[0..3], when).await;
        self.assert_complete(&complete, when).await;
        self.assert_complete(&sealed, when).await;
        self.settled(&settled, when).await;

        self.sweep(&Expiry {
            abandoned_before: None,
            ..nothing()
        })
        .await;
        let when = "after a sweep without limits";
        self.assert_receiving(&partial, &[0..3], when).await;

        let swept = self.sweep(&abandoned()).await;
        let when = "after a sweep of incomplete uploads";
        assert!(swept.abandoned >= 1, "`sweep` returns {swept:?} {when}");
        self.assert_absent(&partial, when).await;
        self.assert_complete(&complete, when).await;
        self.assert_complete(&sealed, when).await;
        self.settled(&settled, when).await;

        let swept = self.sweep(&records()).await;
        let when = "after a sweep of records";
        assert!(swept.records >= 1, "`sweep` returns {swept:?} {when}");
        assert_eq!(swept.undelivered, 0, "`sweep` returns {swept:?} {when}");
        self.assert_absent(&settled, when).await;
        self.assert_complete(&complete, when).await;
        self.assert_complete(&sealed, when).await;
        self.assert_content(&file, b"abc").await;

        let swept = self.sweep(&undelivered()).await;
        let when = "after a sweep of complete uploads";
        assert!(swept.undelivered >= 2, "`sweep` returns {swept:?} {when}");
        self.assert_absent(&complete, when).await;
        self.assert_absent(&sealed, when).await;
        self.assert_file_is_gone(&file, when).await;
        drop(ended_claim);

        // A swept upload can start again.
        self.write(&sealed, 0, b"xyz").await;
        let (found, id) = self.take(&sealed).await;
        assert_eq!(found, b"xyz", "a new upload has the bytes of a swept one");
        assert_ne!(id, file.id, "two uploads have the same id");
    }

    /// Whatever the limits are.
    pub(super) async fn busy_uploads_stay(&self) {
        // More than the buffers of most stores.
        const LEN: u64 = 3_000_000;
        let bytes = content(0, LEN as usize);
        // The chunk is the first one of its upload, or it is not.
        for stored in [3, 0] {
            let upload = upload(LEN + 3);
            if stored > 0 {
                self.write(&upload, LEN, b"abc").await;
            }
            let (source, mut hold) = Source::held(&bytes);
            let (store, written) = (self.store.clone(), upload.clone());
            let task = tokio::spawn(async move {
                let source = pin!(source);
                let mut body = ChunkBody::new(source, Some(LEN), 0);
                store.write(&written, 0, &mut body).await
            });
            self.soon("reading a body", hold.drained()).await;
            self.sweep(&everything()).await;
            hold.end();
            let written = self.joined("`write` after a sweep", task).await;
            let progress = written.expect("a chunk fails because of a sweep");
            let expected = match stored {
                0 => receiving(LEN),
                _ => complete(LEN + stored),
            };
            assert_eq!(
                progress, expected,
                "a sweep removes an upload that a request is writing to"
            );
            let when = "after a sweep";
            if stored > 0 {
                self.assert_complete(&upload, when).await;
            } else {
                self.assert_receiving(&upload, &[0..LEN], when).await;
            }
            assert!(
                self.remove(&upload).await,
                "`remove` does not remove an upload after a sweep"
            );
        }

        let upload = upload(3);
        self.write(&upload, 0, b"abc").await;
        let claim = self.claim(&upload).await;
        self.sweep(&everything()).await;
        self.assert_complete(&upload, "after a sweep, while it is claimed")
            .await;
        self.assert_content(claim.sealed(), b"abc").await;
        self.settle(claim, &record(true, later())).await;
        self.settled(&upload, "after a sweep and its delivery")
            .await;
    }

    /// Not even when its record is swept.
    pub(super) async fn delivered_files_stay(&self) {
        let [kept, expired] = [3, 3].map(upload);
        let mut files = Vec::new();
        for (upload, expires) in [(&kept, later()), (&expired, SystemTime::now() - HOUR)] {
            self.write(upload, 0, b"abc").await;
            let claim = self.claim(upload).await;
            files.push(claim.sealed().clone());
            self.settle(claim, &record(true, expires)).await;
        }
        self.sweep(&Expiry {
            undelivered_before: Some(later()),
            ..abandoned()
        })
        .await;
        self.settled(&kept, "after a sweep, before its record expires")
            .await;
        self.sweep(&records()).await;
        for (upload, sealed) in [&kept, &expired].into_iter().zip(&files) {
            self.assert_absent(upload, "when its record was swept")
                .await;
            self.assert_content(sealed, b"abc").await;
        }
        assert_ne!(files[0].id, files[1].id, "two uploads have the same id");
    }
}
