//! What has expired goes; and what there is, listed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{
    Inner,
    bucket::Listed,
    info::{Info, Phase},
    put::Extent,
};
use crate::store::{Expiry, Progress, StoreError, Swept, Upload, UploadKey};

/// Uploads that are looked at at once.
const AT_ONCE: usize = 8;

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
        let keys = self.keys().await?;
        let mut swept = Swept::default();
        let mut each = stream::iter(keys)
            .map(|key| self.sweep_key(key, &times))
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
        let keys = self.keys().await?;
        let found = stream::iter(keys).map(async |key| {
            let Some((info, there)) = self.look(&key, Extent::UpToAGap).await? else {
                return Ok(None);
            };
            let complete = info.progress(&there).complete;
            Ok(info.unsettled().filter(|_| complete).cloned())
        });
        let found = found.buffer_unordered(AT_ONCE);
        found
            .try_filter_map(async |upload| Ok(upload))
            .try_collect()
            .await
    }

    pub(super) async fn unfinished(
        self: &Arc<Self>,
        scope: Option<&str>,
    ) -> Result<Vec<(Upload, Progress)>, StoreError> {
        let keys = self.keys().await?;
        let found = stream::iter(keys).map(async |key| {
            // Whose it is needs one request, how far it is another.
            let Some(info) = self.info(&key).await? else {
                return Ok(None);
            };
            let is_ours = |upload: &Upload| scope.is_none_or(|scope| upload.scope == scope);
            if !info.unsettled().is_some_and(is_ours) {
                return Ok(None);
            }
            let Some((info, there)) = self.look(&key, Extent::All).await? else {
                return Ok(None);
            };
            let progress = info.progress(&there);
            let begun = progress.complete || progress.received > 0;
            let upload = info.unsettled().filter(|_| begun);
            Ok(upload.map(|upload| (upload.clone(), progress)))
        });
        let found = found.buffer_unordered(AT_ONCE);
        found
            .try_filter_map(async |upload| Ok(upload))
            .try_collect()
            .await
    }

    /// All keys of which there is something.
    async fn keys(&self) -> Result<Vec<UploadKey>, StoreError> {
        let names = self.bucket.folders(&self.keys.uploads()).await?;
        Ok(names
            .iter()
            .filter_map(|name| UploadKey::from_hex(name))
            .collect())
    }

    async fn sweep_scratch(&self, times: &Times) -> Result<(), StoreError> {
        let mut found = self.bucket.list(&self.keys.scratch(), None);
        while let Some(listed) = found.try_next().await? {
            if listed.modified + SCRATCH < times.store {
                self.bucket.delete(&listed.path).await?;
            }
        }
        Ok(())
    }

    async fn sweep_key(
        self: &Arc<Self>,
        key: UploadKey,
        times: &Times,
    ) -> Result<Option<Expired>, StoreError> {
        // Not what a request of this process is writing to; and none begins to before it is through.
        let gate = self.gates.of(key);
        let Ok(_closed) = gate.try_write() else {
            return Ok(None);
        };
        let info = self.info(&key).await?;
        self.sweep_orphans(&key, info.as_deref(), times).await?;
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
        let Some(written) = self.bucket.head(&self.keys.info(&key)).await? else {
            return Ok(None);
        };
        let limit = |before: Option<SystemTime>| before.map(|before| times.by_store(before));
        let abandoned = limit(Some(times.expiry.abandoned_before));
        let undelivered = limit(times.expiry.undelivered_before);
        // Of most there is no need to know more.
        if Some(written.modified) >= abandoned.max(undelivered) {
            return Ok(None);
        }
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
        info: Option<&Info>,
        times: &Times,
    ) -> Result<(), StoreError> {
        let before = times.by_store(times.expiry.abandoned_before);
        for id in self.bucket.folders(&self.keys.upload(key)).await? {
            if info.is_some_and(|info| info.id == id) {
                continue;
            }
            let found: Vec<Listed> = self
                .bucket
                .list(&self.keys.of(key, &id), None)
                .try_collect()
                .await?;
            if found.iter().all(|listed| listed.modified < before) {
                let doomed = self.keys.doomed(key, &id);
                let with_file = found.iter().any(|listed| listed.path == doomed);
                self.clear(key, &id, with_file).await?;
            }
        }
        Ok(())
    }
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
