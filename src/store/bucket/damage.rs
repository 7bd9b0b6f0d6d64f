//! Sets aside what cannot be read, so that its upload begins anew.

use std::time::{Duration, Instant};

use bytes::Bytes;
use object_store::path::Path;

use super::{
    info::{Info, Unreadable},
    inner::Inner,
};
use crate::{
    model::upload::UploadId,
    store::{StoreError, StoreEvent, random_id},
};

/// How often to look whether another request has set an object aside, and how long to wait.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(50);

impl Inner {
    /// Sets an `info` object aside. After it the upload is absent. Only its bytes are known, so its
    /// other objects are left to a sweep.
    pub(super) async fn set_info_aside(
        &self,
        id: &UploadId,
        bytes: Bytes,
        error: Unreadable,
    ) -> Result<(), StoreError> {
        if let Some(known) = self.known.info(id) {
            self.known.forget(&known);
        }
        let error = StoreError::new(error);
        let path = self.keys.info(id);
        // A lease of these bytes: only one server deletes them, and not a new upload.
        let unique_id = format!("damaged{:08x}", crc32fast::hash(&bytes));
        let token = Bytes::from(random_id()?);
        for _ in 0..TRIES {
            let asked = Instant::now();
            let acquired = self.acquire(id, &unique_id, &token, None).await?;
            let is_gone = self.engine.get(&path).await?.as_ref() != Some(&bytes);
            if acquired.is_some() {
                let is_valid = || asked.elapsed() < self.lease / 2;
                let moved = if is_gone {
                    Ok(())
                } else {
                    self.set_aside(*id, &path, bytes, &error, is_valid).await
                };
                // If it fails, a sweep deletes the rest, and other requests wait for the lease.
                let _ = self
                    .engine
                    .delete_below(&self.keys.of(id, &unique_id))
                    .await;
                return moved;
            }
            if is_gone {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err(error)
    }

    /// Sets an upload of appends aside whose newest turn cannot be read.
    pub(super) async fn set_turn_aside(
        &self,
        info: &Info,
        bytes: Bytes,
        error: Unreadable,
    ) -> Result<(), StoreError> {
        let (id, crc) = (info.id(), crc32fast::hash(&bytes));
        let place = self.keys.damaged(&format!("{id}-{crc:08x}"));
        self.engine.put(&place, bytes).await?;
        match self.engine.get(&self.keys.info(id)).await? {
            Some(found) if info.is_in(&found) => self.set_info_aside(id, found, error).await,
            // It is gone.
            _ => Ok(()),
        }
    }

    /// Moves an object with these bytes below `damaged/`.
    pub(super) async fn set_aside(
        &self,
        id: UploadId,
        path: &Path,
        bytes: Bytes,
        error: &StoreError,
        is_valid: impl FnOnce() -> bool,
    ) -> Result<(), StoreError> {
        let crc = crc32fast::hash(&bytes);
        let place = self.keys.damaged(&format!("{id}-{crc:08x}"));
        self.engine.put(&place, bytes).await?;
        if !is_valid() {
            return Err(StoreError::Superseded);
        }
        self.engine.delete(path).await?;
        self.events.tell(&StoreEvent::SetAside {
            upload: Some(id),
            place: place.as_ref(),
            error,
        });
        Ok(())
    }

    /// Tells that an object is passed over.
    pub(super) fn skipped(&self, path: &Path, error: &StoreError) {
        let place = path.as_ref();
        self.events.tell(&StoreEvent::Skipped { place, error });
    }
}
