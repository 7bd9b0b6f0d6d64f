//! What has expired goes; and what there is, listed.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;

use super::{
    Inner, if_readable,
    info::{Info, Phase},
    keys::{Below, open_upload},
    put::Extent,
};
use crate::store::{Expiry, Progress, ScopeKey, StoreError, Swept, Upload, UploadKey, Usage};

/// Uploads that are looked at at once.
const AT_ONCE: usize = 16;

/// Objects that some process has written to read the time, or to test the store, and left when it died.
const SCRATCH: Duration = Duration::from_secs(3600);

impl Inner {
    pub(super) async fn sweep(self: &Arc<Self>, expiry: Expiry) -> Result<Swept, StoreError> {
        let times = Times {
            store: self.clock.now(&self.bucket, &self.keys).await?,
            local: SystemTime::now(),
            expiry,
        };
        self.sweep_scratch(&times).await?;
        let found = self.find_all().await?;
        let mut swept = Swept::default();
        let mut each = stream::iter(found)
            .map(|(key, found)| self.sweep_key(key, found, &times))
            .buffer_unordered(AT_ONCE);
        // One that cannot be swept is no reason not to sweep the others.
        let mut failed = None;
        while let Some(result) = each.next().await {
            match result {
                Ok(Some(Expired::Abandoned)) => swept.abandoned += 1,
                Ok(Some(Expired::Undelivered)) => swept.undelivered += 1,
                Ok(Some(Expired::Record)) => swept.records += 1,
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
        failed.map_or(Ok(swept), Err)
    }

    pub(super) async fn undelivered(self: &Arc<Self>) -> Result<Vec<Upload>, StoreError> {
        let open = self.look_at_open(None, Extent::UpToAGap).await?;
        let complete = open.into_iter().filter(|(_, progress)| progress.complete);
        Ok(complete.map(|(upload, _)| upload).collect())
    }

    pub(super) async fn unfinished(
        self: &Arc<Self>,
        scope: Option<&str>,
    ) -> Result<Vec<(Upload, Progress)>, StoreError> {
        let mut open = self.look_at_open(scope, Extent::All).await?;
        open.retain(|(_, progress)| progress.complete || progress.received > 0);
        Ok(open)
    }

    /// The uploads that are listed as not settled.
    pub(super) async fn open_uploads(&self) -> Result<Vec<OpenUpload>, StoreError> {
        let listed = self.bucket.list(&self.keys.open_uploads(), None);
        let open = listed.try_filter_map(async |listed| {
            Ok(open_upload(&listed.path).map(|(id, usage)| OpenUpload {
                path: listed.path,
                modified: listed.modified,
                id,
                usage,
            }))
        });
        open.try_collect().await
    }

    async fn look_at_open(
        self: &Arc<Self>,
        scope: Option<&str>,
        extent: Extent,
    ) -> Result<Vec<(Upload, Progress)>, StoreError> {
        let scope = scope.map(ScopeKey::new);
        let open = self.open_uploads().await?;
        let wanted = open.iter().map(|open| open.usage);
        let wanted = wanted.filter(|usage| scope.is_none_or(|scope| usage.scope == scope));
        let keys: BTreeSet<_> = wanted.map(|usage| usage.key).collect();
        let found = stream::iter(keys).map(async |key| {
            let looked = if_readable(self.look(&key, extent).await)?;
            Ok(looked.and_then(|(info, there)| {
                let upload = info.unsettled()?.clone();
                Some((upload, info.progress(&there)))
            }))
        });
        let found = found.buffer_unordered(AT_ONCE);
        found
            .try_filter_map(async |upload| Ok(upload))
            .try_collect()
            .await
    }

    /// All that there is, by the keys of the uploads.
    async fn find_all(&self) -> Result<HashMap<UploadKey, Found>, StoreError> {
        let mut all = HashMap::<_, Found>::new();
        for open in self.open_uploads().await? {
            all.entry(open.usage.key).or_default().open.push(open);
        }
        let mut listed = self.bucket.list(&self.keys.uploads(), None);
        while let Some(listed) = listed.try_next().await? {
            let Some((key, below)) = self.keys.below_upload(&listed.path) else {
                continue;
            };
            let found = all.entry(key).or_default();
            match below {
                Below::Info => found.written = Some(listed.modified),
                Below::Of { id, is_doomed } => {
                    let left = found.left.entry(id).or_insert(Left {
                        newest: listed.modified,
                        is_doomed,
                    });
                    left.newest = left.newest.max(listed.modified);
                    left.is_doomed |= is_doomed;
                }
            }
        }
        Ok(all)
    }

    async fn sweep_scratch(&self, times: &Times) -> Result<(), StoreError> {
        let abandoned = times.by_store(times.expiry.abandoned_before);
        let mut found = self.bucket.list(&self.keys.scratch(), None);
        while let Some(listed) = found.try_next().await? {
            if listed.modified < abandoned || listed.modified + SCRATCH < times.store {
                self.bucket.delete(&listed.path).await?;
            }
        }
        Ok(())
    }

    async fn sweep_key(
        self: &Arc<Self>,
        key: UploadKey,
        found: Found,
        times: &Times,
    ) -> Result<Option<Expired>, StoreError> {
        // Not what a request of this process is writing to; and none begins to before it is through.
        let gate = self.gates.of(key);
        let Ok(_closed) = gate.try_write() else {
            return Ok(None);
        };
        let info = self.info(&key).await?;
        self.sweep_orphans(&key, &found, info.as_deref(), times)
            .await?;
        let Some(info) = info else {
            return Ok(None);
        };
        if let Phase::Settled(record) = &info.phase {
            if record.expires >= times.expiry.records_before {
                return Ok(None);
            }
            let forgotten = self.forget_record(&info).await?;
            return Ok(forgotten.then_some(Expired::Record));
        }
        let limit = |before: Option<SystemTime>| before.map(|before| times.by_store(before));
        let abandoned = limit(Some(times.expiry.abandoned_before));
        let undelivered = limit(times.expiry.undelivered_before);
        // Of most there is no need to know more. (What was not listed has come since.)
        let is_old =
            |written: Option<SystemTime>| written.is_some() && written < abandoned.max(undelivered);
        if !is_old(found.written) {
            return Ok(None);
        }
        let Some(written) = self.bucket.head(&self.keys.info(&key)).await? else {
            return Ok(None);
        };
        let there = self.survey(&info, Extent::UpToAGap).await?;
        let (kind, limit) = match info.progress(&there).complete {
            true => (Expired::Undelivered, undelivered),
            false => (Expired::Abandoned, abandoned),
        };
        let touched = match info.is_receiving() {
            true => self.newest_byte(&info).await?.max(Some(written.modified)),
            false => Some(written.modified),
        };
        if limit.is_none() || touched >= limit {
            return Ok(None);
        }
        let Some(claim) = self.claim(&info).await? else {
            return Ok(None);
        };
        let removed = self.remove_claimed(claim, limit).await?;
        Ok(removed.then_some(kind))
    }

    /// When bytes of an upload were stored last, by the store's clock.
    pub(super) async fn newest_byte(&self, info: &Info) -> Result<Option<SystemTime>, StoreError> {
        let slots = self.keys.slots(info.key(), &info.id);
        let mut found = self.bucket.list(&slots, None);
        let mut newest = None;
        while let Some(listed) = found.try_next().await? {
            newest = newest.max(Some(listed.modified));
        }
        Ok(newest)
    }

    /// Deletes what is left of uploads that are gone.
    async fn sweep_orphans(
        &self,
        key: &UploadKey,
        found: &Found,
        info: Option<&Info>,
        times: &Times,
    ) -> Result<(), StoreError> {
        let before = times.by_store(times.expiry.abandoned_before);
        let is_current = |id: &String| info.filter(|info| info.id == *id);
        for (id, left) in &found.left {
            if is_current(id).is_none() && left.newest < before {
                self.clear(key, id, left.is_doomed).await?;
            }
        }
        for open in &found.open {
            let has_ended = match is_current(&open.id) {
                Some(info) => matches!(info.phase, Phase::Settled(_)),
                // It may be about to begin.
                None => open.modified < before,
            };
            if has_ended {
                self.bucket.delete(&open.path).await?;
            }
        }
        Ok(())
    }
}

/// One that is listed as not settled.
pub(super) struct OpenUpload {
    path: Path,
    modified: SystemTime,
    id: String,
    pub(super) usage: Usage,
}

/// What was found of one key.
#[derive(Default)]
struct Found {
    /// When its `info` was written last, if there is one.
    written: Option<SystemTime>,
    /// What is left of each upload that has or had it, by their ids.
    left: HashMap<String, Left>,
    open: Vec<OpenUpload>,
}

struct Left {
    newest: SystemTime,
    is_doomed: bool,
}

enum Expired {
    Abandoned,
    Undelivered,
    Record,
}

/// The limits, and how to compare them with what the store says.
struct Times {
    store: SystemTime,
    local: SystemTime,
    expiry: Expiry,
}

impl Times {
    /// A time of this machine, by the store's clock.
    fn by_store(&self, time: SystemTime) -> SystemTime {
        match time.duration_since(self.local) {
            Ok(ahead) => self.store.checked_add(ahead).unwrap_or(time),
            Err(ago) => self.store.checked_sub(ago.duration()).unwrap_or(time),
        }
    }
}
