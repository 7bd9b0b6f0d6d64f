//! Removal of uploads and records.

use std::{sync::Arc, time::SystemTime};

use bytes::Bytes;
use futures_util::TryStreamExt as _;

use super::{
    info::{Info, Phase},
    inner::Inner,
    lease::Lease,
    lookup::Extent,
};
use crate::{
    model::upload::UploadId,
    store::{Record, StoreError},
};

impl Inner {
    pub(super) async fn remove(self: &Arc<Self>, id: &UploadId) -> Result<bool, StoreError> {
        let info = self.info(id).await?;
        let Some(info) = info.filter(|info| !info.is_settled()) else {
            return Ok(false);
        };
        let Some(lease) = self.take_lease(&info).await? else {
            return Ok(false);
        };
        let is_removed = self.remove_leased(lease, None).await?;
        if is_removed {
            // The append of this process ends at once.
            self.appends.of(*id).begin();
        }
        Ok(is_removed)
    }

    /// Removes an upload, unless it is settled, or bytes were stored at or after `unless_since` by
    /// the engine's clock.
    pub(super) async fn remove_leased(
        &self,
        mut lease: Lease,
        unless_since: Option<SystemTime>,
    ) -> Result<bool, StoreError> {
        let now = self.reload(&lease.info).await?;
        let Some(info) = now.filter(|now| !now.is_settled()) else {
            lease.discard().await;
            return Ok(false);
        };
        // If all bytes are stored there may be a final object.
        let (found, stored) = self.stored(&info, Extent::UpToGap).await?;
        let may_have_file = found.progress(&stored).complete;
        if may_have_file {
            let doomed = self.keys.doomed(info.id(), &info.unique_id);
            self.engine.put(&doomed, Bytes::new()).await?;
        }
        if !lease.is_valid().await? {
            return Ok(false);
        }
        // After this request the upload is absent.
        let path = self.keys.info(info.id());
        self.engine.delete(&path).await?;
        self.known.forget(&info);
        if let Some(limit) = unless_since {
            // A request on another server may have stored bytes just before, and rely on the
            // upload, so create it again. A request that comes later starts a new upload, unless
            // this one is faster.
            let newest = self.newest_byte(&info).await?;
            if newest.is_some_and(|newest| newest >= limit) {
                self.engine.create(&path, info.to_bytes()?.into()).await?;
                return Ok(false);
            }
        }
        lease.finish().await;
        // If it fails, a sweep deletes the rest.
        let _ = self
            .delete_objects(info.id(), &info.unique_id, may_have_file)
            .await;
        let _ = self.engine.delete(&self.keys.open(&info)).await;
        if let Some(multipart) = &info.multipart {
            let file = self.keys.file(&info.unique_id);
            self.engine.abort_multipart(&file, multipart).await;
        }
        Ok(true)
    }

    /// Removes the record of an upload if it is `wanted`.
    pub(super) async fn forget(
        self: &Arc<Self>,
        id: &UploadId,
        wanted: impl Fn(&Info) -> bool,
    ) -> Result<bool, StoreError> {
        let info = self.info(id).await?;
        let Some(info) = info.filter(|info| wanted(info)) else {
            return Ok(false);
        };
        let is_removed = self.remove_record(&info).await?;
        if is_removed {
            self.known.forget(&info);
        }
        Ok(is_removed)
    }

    /// Removes the record of a settled upload, so that the upload can start again. `false` if
    /// another request is doing it, or has done it.
    pub(super) async fn remove_record(
        self: &Arc<Self>,
        info: &Arc<Info>,
    ) -> Result<bool, StoreError> {
        let Some(mut lease) = self.take_lease(info).await? else {
            return Ok(false);
        };
        let Some(now) = self.reload(info).await? else {
            lease.discard().await;
            return Ok(false);
        };
        let Phase::Settled(record) = &now.phase else {
            return Ok(false);
        };
        if !lease.is_valid().await? {
            return Ok(false);
        }
        self.engine.delete(&self.keys.info(info.id())).await?;
        lease.finish().await;
        // If it fails, a sweep deletes the rest.
        let _ = self.clean_up(info, record).await;
        Ok(true)
    }

    /// Deletes the objects that a settled upload does not need.
    pub(super) async fn clean_up(&self, info: &Info, record: &Record) -> Result<(), StoreError> {
        let is_rejected = !record.delivered;
        let open = self.keys.open(info);
        let deleted = futures_util::try_join!(
            self.engine.delete(&open),
            self.delete_objects(info.id(), &info.unique_id, is_rejected)
        );
        deleted.map(drop)
    }

    /// Deletes the objects of one upload other than its `info`.
    pub(super) async fn delete_objects(
        &self,
        id: &UploadId,
        unique_id: &str,
        with_file: bool,
    ) -> Result<(), StoreError> {
        if with_file {
            self.engine.delete(&self.keys.file(unique_id)).await?;
        }
        self.engine.delete_below(&self.keys.of(id, unique_id)).await
    }

    /// When bytes of an upload were stored last, by the engine's clock.
    pub(super) async fn newest_byte(&self, info: &Info) -> Result<Option<SystemTime>, StoreError> {
        let slots = self.keys.slots(info.id(), &info.unique_id);
        let modified = self.engine.list(&slots, None);
        let modified = modified.map_ok(|listed| Some(listed.modified));
        modified.try_fold(None, async |a, b| Ok(a.max(b))).await
    }
}
