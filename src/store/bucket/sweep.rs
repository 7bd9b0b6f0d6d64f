//! Removal of what has expired.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    clock::Offset,
    info::{Info, Phase},
    inner::Inner,
    keys::Object,
    list::OpenUpload,
    lookup::Extent,
};
use crate::{
    model::upload::{Role, UploadId},
    store::{Expiry, StoreError, Swept},
};

/// How many uploads are swept at once.
const AT_ONCE: usize = 16;

/// When an object below `scratch/` is a leftover of a process that has died.
const SCRATCH: Duration = Duration::from_secs(3600);

/// What was listed of an id.
#[derive(Default)]
struct Found {
    /// When the `info` object was written last. `None` if there is none.
    info_modified: Option<SystemTime>,
    /// The other objects of each upload with this id, by its unique id.
    objects: HashMap<String, Objects>,
    open: Vec<OpenUpload>,
}

struct Objects {
    newest: SystemTime,
    is_doomed: bool,
}

enum Expired {
    Abandoned,
    Undelivered,
    Record,
}

/// The limits of a sweep, by the engine's clock. The one of records is by the clock of this server,
/// like the records that [`Inner::info`] returns.
struct Times {
    engine: SystemTime,
    abandoned_before: Option<SystemTime>,
    undelivered_before: Option<SystemTime>,
    records_before: SystemTime,
}

impl Times {
    fn new(expiry: &Expiry, engine: SystemTime, offset: Offset) -> Self {
        let by_engine = |time| offset.to_engine(time);
        Self {
            engine,
            abandoned_before: expiry.abandoned_before.map(by_engine),
            undelivered_before: expiry.undelivered_before.map(by_engine),
            records_before: expiry.records_before,
        }
    }

    fn is_abandoned(&self, modified: SystemTime) -> bool {
        self.abandoned_before.is_some_and(|limit| modified < limit)
    }
}

impl Inner {
    pub(super) async fn sweep(self: &Arc<Self>, expiry: &Expiry) -> Result<Swept, StoreError> {
        let now = self.clock.now(&self.engine, &self.keys).await?;
        let offset = self.clock.offset(&self.engine, &self.keys).await?;
        let times = Times::new(expiry, now, offset);
        self.sweep_scratch(&times).await?;
        let found = self.find_all().await?;
        let mut swept = Swept::default();
        let mut each = stream::iter(found)
            .map(async |(id, found)| (id, self.sweep_id(id, found, &times).await))
            .buffer_unordered(AT_ONCE);
        while let Some((id, result)) = each.next().await {
            match result {
                Ok(Some(Expired::Abandoned)) => swept.abandoned += 1,
                Ok(Some(Expired::Undelivered)) => swept.undelivered += 1,
                Ok(Some(Expired::Record)) => swept.records += 1,
                Ok(None) => {}
                // It does not keep others from being swept.
                Err(error) => self.skipped(&self.keys.upload(&id), &error),
            }
        }
        Ok(swept)
    }

    async fn sweep_scratch(&self, times: &Times) -> Result<(), StoreError> {
        let mut found = self.engine.list(&self.keys.scratch(), None);
        while let Some(listed) = found.try_next().await? {
            let age = times.engine.duration_since(listed.modified);
            let is_leftover = age.is_ok_and(|age| age > SCRATCH);
            if is_leftover || times.is_abandoned(listed.modified) {
                self.engine.delete(&listed.path).await?;
            }
        }
        Ok(())
    }

    /// All uploads and records.
    async fn find_all(&self) -> Result<HashMap<UploadId, Found>, StoreError> {
        let mut all = HashMap::<_, Found>::new();
        let mut open = std::pin::pin!(self.open_uploads(None));
        while let Some(open) = open.try_next().await? {
            all.entry(open.usage.id).or_default().open.push(open);
        }
        let mut listed = self.engine.list(&self.keys.uploads(), None);
        while let Some(listed) = listed.try_next().await? {
            let Some((id, object)) = self.keys.parse_upload(&listed.path) else {
                self.skipped(
                    &listed.path,
                    &StoreError::new("the key is none of the store"),
                );
                continue;
            };
            let found = all.entry(id).or_default();
            match object {
                Object::Info => found.info_modified = Some(listed.modified),
                Object::Of {
                    unique_id,
                    is_doomed,
                } => {
                    let objects = found.objects.entry(unique_id).or_insert(Objects {
                        newest: listed.modified,
                        is_doomed,
                    });
                    objects.newest = objects.newest.max(listed.modified);
                    objects.is_doomed |= is_doomed;
                }
            }
        }
        Ok(all)
    }

    async fn sweep_id(
        self: &Arc<Self>,
        id: UploadId,
        found: Found,
        times: &Times,
    ) -> Result<Option<Expired>, StoreError> {
        // Skip an upload that a request of this process is writing to.
        let gate = self.gates.of(id);
        let Ok(_closed) = gate.try_write() else {
            return Ok(None);
        };
        let info = self.info(&id).await?;
        self.sweep_leftovers(&id, &found, info.as_deref(), times)
            .await?;
        let Some(info) = info else {
            return Ok(None);
        };
        if let Phase::Settled(record) = &info.phase {
            if record.expires >= times.records_before {
                return Ok(None);
            }
            let removed = self.remove_record(&info).await?;
            return Ok(removed.then_some(Expired::Record));
        }
        // Most uploads are too young for either limit. One without a date is newer than the list.
        let newest_limit = times.abandoned_before.max(times.undelivered_before);
        if found.info_modified.is_none() || found.info_modified >= newest_limit {
            return Ok(None);
        }
        let Some(written) = self.engine.head(&self.keys.info(&id)).await? else {
            return Ok(None);
        };
        let progress = if info.is_receiving() {
            let (info, stored) = self.stored(&info, Extent::UpToGap).await?;
            info.progress(&stored)
        } else {
            info.complete()
        };
        // A part is never delivered.
        let (kind, limit) = if progress.complete && info.upload.role == Role::Whole {
            (Expired::Undelivered, times.undelivered_before)
        } else {
            (Expired::Abandoned, times.abandoned_before)
        };
        let mut touched = Some(written.modified);
        if info.is_receiving() {
            touched = touched.max(self.newest_byte(&info).await?);
        }
        if limit.is_none() || touched >= limit {
            return Ok(None);
        }
        let Some(lease) = self.take_lease(&info).await? else {
            return Ok(None);
        };
        let removed = self.remove_leased(lease, limit).await?;
        Ok(removed.then_some(kind))
    }

    /// Deletes the objects of uploads that are gone. They expire like abandoned uploads.
    async fn sweep_leftovers(
        &self,
        id: &UploadId,
        found: &Found,
        info: Option<&Info>,
        times: &Times,
    ) -> Result<(), StoreError> {
        let current = |unique_id: &String| info.filter(|info| info.unique_id == *unique_id);
        for (unique_id, objects) in &found.objects {
            if current(unique_id).is_none() && times.is_abandoned(objects.newest) {
                self.delete_objects(id, unique_id, objects.is_doomed)
                    .await?;
            }
        }
        for open in &found.open {
            let has_ended = match current(&open.unique_id) {
                Some(info) => info.is_settled(),
                // The upload may be about to be created.
                None => times.is_abandoned(open.modified),
            };
            if has_ended {
                self.engine.delete(&open.path).await?;
            }
        }
        Ok(())
    }
}
