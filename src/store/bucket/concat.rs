//! Makes one upload of others.

use std::{
    pin::pin,
    sync::{Arc, atomic::AtomicBool},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    appends::Says,
    inner::Inner,
    lookup::Extent,
    stored::{StoredObject, StreamBody},
};
use crate::{
    model::{
        BoxError,
        upload::{Upload, UploadId},
    },
    store::{ChunkBody, Content, Keep, Progress, StoreError, Stored as _},
};

impl Inner {
    pub(super) async fn concat(
        self: &Arc<Self>,
        upload: &Upload,
        parts: &[UploadId],
    ) -> Result<Progress, StoreError> {
        let appends = self.appends.of(upload.id);
        let _running = appends.run_next().await;
        let gate = self.gates.of(upload.id);
        let _open = gate.read().await;
        if let Some(progress) = self.complete_progress(&upload.id).await? {
            return Ok(progress);
        }
        let (mut files, mut length) = (Vec::new(), 0_u64);
        for part in parts {
            let (file, len) = self.part_file(part).await?;
            files.push((file, len));
            length = length.saturating_add(len);
        }
        let whole = Upload {
            length: Some(length),
            ..upload.clone()
        };
        if upload.contradicts(&whole) {
            return Err(StoreError::Conflict);
        }
        self.create(&whole).await?;
        let found = self.find(&upload.id, Extent::OfAppends).await?;
        let (info, _) = found.ok_or(StoreError::Superseded)?;
        let lease = self.take_lease(&info).await?;
        // Dropping it gives it back.
        let mut lease = lease.ok_or(StoreError::Busy)?;
        // Another server may have completed it before the lease was taken.
        if let Some(progress) = self.complete_progress(&upload.id).await? {
            lease.give_back().await;
            return Ok(progress);
        }
        let found = self.find(&upload.id, Extent::OfAppends).await?;
        let (info, _) = found.ok_or(StoreError::Superseded)?;
        // What an earlier call has written does not count.
        let begin = Says {
            slot: self.append_slot_size(Some(length), None)?,
            length: Some(length),
            ..Says::of(&info, 0)
        };
        let turn = self.take_turn(&info, begin).await?;
        let info = turn.ok_or(StoreError::Busy)?;
        let bytes = stream::iter(files).flat_map(|(file, len)| {
            let content = file.read().with_exact_len(len);
            stream::unfold(content, async |mut content: Content| {
                let piece = content.next().await?;
                Some((piece, content))
            })
            .boxed()
        });
        let mut body = pin!(StreamBody::new(bytes.map_err(BoxError::from)));
        let mut body = ChunkBody::new(body.as_mut(), Some(length), 0);
        let (mut source, _) = self.memory.stream(&mut body);
        let never = AtomicBool::new(false);
        let (end, result) = self.add(&info, 0, &mut source, &never).await;
        let result = result.map_err(|error| match error {
            StoreError::Body(error) => StoreError::new(error),
            error => error,
        });
        let ended = Says {
            stored: end,
            ..begin
        };
        let progress = self.end_turn(info, ended, result, Keep::Whole).await;
        lease.give_back().await;
        progress
    }

    /// The progress of an upload that is complete.
    async fn complete_progress(&self, id: &UploadId) -> Result<Option<Progress>, StoreError> {
        let found = self.find(id, Extent::UpToGap).await?;
        let found = found.filter(|(info, _)| !info.has_expired);
        let progress = found.map(|(info, stored)| info.progress(&stored));
        Ok(progress.filter(|progress| progress.complete))
    }

    /// The file of a complete upload, and its length. It is published, but not sealed.
    async fn part_file(self: &Arc<Self>, id: &UploadId) -> Result<(StoredObject, u64), StoreError> {
        let found = self.find(id, Extent::UpToGap).await?;
        let found =
            found.filter(|(info, stored)| info.is_receiving() && info.progress(stored).complete);
        let (info, _) = found.ok_or(StoreError::Superseded)?;
        let file = StoredObject {
            engine: Arc::clone(&self.engine.objects),
            path: self.keys.file(&info.unique_id),
        };
        let length = info.length();
        let object = self.engine.head(&file.path).await?;
        if object.is_none_or(|object| object.size != length) {
            let lease = self.take_lease(&info).await?;
            let mut lease = lease.ok_or(StoreError::Busy)?;
            if self.publish(&info).await?.is_none() {
                return Err(self.remove_lost(&mut lease).await?);
            }
            lease.give_back().await;
        }
        Ok((file, length))
    }
}
