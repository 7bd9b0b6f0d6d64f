//! Claims a complete upload, and records the answer.

use std::sync::Arc;

use super::{
    info::{Info, Phase, Seal},
    inner::Inner,
    lease::Lease,
    lookup::Extent,
    stored::StoredObject,
};
use crate::{
    model::upload::Upload,
    store::{Claim, Claimed, Record, Sealed, StoreError},
};

/// The right to deliver one upload of a [`BucketStore`](crate::BucketStore).
///
/// It is renewed while it lives, so a delivery may take longer than the lease time.
/// [`Sealed::claim_is_live`] says whether the last renewal still counts.
#[derive(Debug)]
pub struct BucketClaim {
    lease: Lease,
    sealed: Sealed,
}

impl Claim for BucketClaim {
    fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    async fn settle(&mut self, record: &Record) -> Result<(), StoreError> {
        let (store, info) = (&self.lease.store, Arc::clone(&self.lease.info));
        if !self.lease.confirm().await? {
            return Err(StoreError::Superseded);
        }
        let now = store.reload(&info).await?.ok_or(StoreError::Superseded)?;
        match &now.phase {
            // An earlier call has written it, and the engine's answer was lost.
            Phase::Settled(earlier) if is_same(earlier, record) => {}
            Phase::Settled(_) => return Err(StoreError::Superseded),
            Phase::Receiving | Phase::Sealed(_) => {
                let offset = store.clock.offset(&store.engine, &store.keys).await?;
                let expires = offset.to_engine(record.expires);
                let record = Record {
                    expires,
                    ..record.clone()
                };
                store.put_info(&Arc::new(info.settled(record))).await?;
            }
        }
        self.lease.finish().await;
        // If this fails, the rest is deleted with the record.
        let _ = self.lease.store.clean_up(&info, record).await;
        Ok(())
    }

    async fn release(mut self) {
        self.lease.give_back().await;
    }
}

impl Inner {
    pub(super) async fn claim(
        self: &Arc<Self>,
        upload: &Upload,
    ) -> Result<Claimed<BucketClaim>, StoreError> {
        let Some((info, stored)) = self.find(&upload.id, Extent::UpToGap).await? else {
            return Ok(Claimed::Incomplete);
        };
        if let Phase::Settled(record) = &info.phase {
            return Ok(settled(&info, record));
        }
        if !info.progress(&stored).complete {
            return Ok(Claimed::Incomplete);
        }
        if self.was_just_busy(&info.unique_id) {
            return Ok(Claimed::Busy);
        }
        let Some(mut lease) = self.take_lease(&info).await? else {
            return Ok(Claimed::Busy);
        };
        // The upload may have been settled or removed before the lease was taken.
        let Some(now) = self.reload(&info).await? else {
            lease.discard().await;
            return Ok(Claimed::Incomplete);
        };
        if let Phase::Settled(record) = &now.phase {
            lease.discard().await;
            return Ok(settled(&now, record));
        }
        lease.info = now;
        let sealed = self.seal(&mut lease, upload).await?;
        Ok(Claimed::Won(BucketClaim { lease, sealed }))
    }

    /// Publishes the file, and counts an attempt.
    async fn seal(&self, lease: &mut Lease, upload: &Upload) -> Result<Sealed, StoreError> {
        let info = Arc::clone(&lease.info);
        let seal = match &info.phase {
            Phase::Sealed(seal) => Seal {
                attempt: seal.attempt.saturating_add(1),
                ..*seal.clone()
            },
            Phase::Receiving => Seal {
                upload: Upload {
                    // As in the name of its object below `open/`, and as the file is.
                    scope: info.upload.scope.clone(),
                    length: info.upload.length,
                    ..upload.clone()
                },
                attempt: 1,
                crc32: match self.publish(&info).await? {
                    Some(crc32) => crc32,
                    None => return Err(self.remove_lost(lease).await?),
                },
            },
            Phase::Settled(_) => return Err(StoreError::Superseded),
        };
        // Publishing may have taken long.
        if !lease.is_valid().await? {
            return Err(StoreError::Superseded);
        }
        let sealed = Arc::new(info.sealed(seal.clone()));
        self.put_info(&sealed).await?;
        lease.info = sealed;
        let object = StoredObject {
            engine: Arc::clone(&self.engine.objects),
            path: self.keys.file(&info.unique_id),
        };
        let Seal {
            upload,
            attempt,
            crc32,
        } = seal;
        let term = Arc::clone(&lease.term);
        let sealed = Sealed::new(info.unique_id.clone(), upload, attempt, object);
        Ok(sealed
            .with_crc32(crc32)
            .with_live_claim(move || term.is_live()))
    }

    /// Removes an upload whose multipart upload does not exist, or has become a wrong object, so
    /// that it can start again. Something has aborted it, such as a lifecycle rule of the bucket.
    pub(super) async fn remove_lost(&self, lease: &mut Lease) -> Result<StoreError, StoreError> {
        let info = Arc::clone(&lease.info);
        if lease.is_valid().await? {
            self.engine.delete(&self.keys.info(info.id())).await?;
            self.known.forget(&info);
            lease.finish().await;
            // If it fails, a sweep deletes the rest.
            let _ = self.delete_objects(info.id(), &info.unique_id, true).await;
            let _ = self.engine.delete(&self.keys.open(&info)).await;
        }
        Ok(StoreError::new(
            "the multipart upload does not exist, so the upload begins anew; was it aborted?",
        ))
    }
}

/// The answer to a claim of a settled upload.
fn settled(info: &Info, record: &Record) -> Claimed<BucketClaim> {
    if info.has_expired {
        Claimed::Incomplete
    } else {
        Claimed::Settled(record.clone())
    }
}

/// Whether two records are of the same answer. A later one expires later.
fn is_same(earlier: &Record, record: &Record) -> bool {
    let expires = earlier.expires;
    *earlier
        == Record {
            expires,
            ..record.clone()
        }
}
