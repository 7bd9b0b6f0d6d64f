//! Lists of the uploads that are not settled.

use std::collections::BTreeSet;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::path::Path;

use super::{inner::Inner, keys::parse_open, lookup::Extent};
use crate::{
    model::upload::{Scope, UploadId},
    store::{Filter, Listed, Page, ScopeHash, StoreError, Usage},
};

/// How many uploads are looked up at once.
const AT_ONCE: usize = 16;

/// An object below `open/`.
pub(super) struct OpenUpload {
    pub(super) path: Path,
    /// By the engine's clock.
    pub(super) modified: std::time::SystemTime,
    pub(super) unique_id: String,
    pub(super) usage: Usage,
    /// Whether the length was not known at first, so that `usage` has no bytes.
    is_late: bool,
}

impl Inner {
    pub(super) async fn list(
        &self,
        filter: &Filter,
        after: Option<&UploadId>,
    ) -> Result<Page, StoreError> {
        let (ids, next) = self.open_ids(filter.scope.as_ref(), after).await?;
        let extent = if filter.complete {
            Extent::UpToGap
        } else {
            Extent::All
        };
        let found = stream::iter(ids).map(async |id| match self.find(&id, extent).await {
            Ok(found) => found,
            // One upload that cannot be read must not hide the others.
            Err(error) => {
                self.skipped(&self.keys.info(&id), &error);
                None
            }
        });
        let listed = found.buffered(AT_ONCE).filter_map(async |found| {
            let unsettled = found.filter(|(info, _)| !info.is_settled());
            let listed = unsettled.map(|(info, stored)| {
                let progress = info.progress(&stored);
                Listed::new(info.described().clone(), progress)
            });
            listed.filter(|listed| filter.accepts(&listed.upload, listed.progress))
        });
        Ok(Page::new(listed.collect().await, next))
    }

    /// The ids of a page, and the last of them if more follow. Nothing is read but names.
    async fn open_ids(
        &self,
        scope: Option<&Scope>,
        after: Option<&UploadId>,
    ) -> Result<(BTreeSet<UploadId>, Option<UploadId>), StoreError> {
        let scope = scope.map(ScopeHash::new);
        let after = after.map(|id| self.keys.after_open(id));
        let mut open = std::pin::pin!(self.open_uploads(after.as_ref()));
        let (mut ids, mut next) = (BTreeSet::new(), None);
        while let Some(OpenUpload { usage, .. }) = open.try_next().await? {
            if scope.is_some_and(|scope| scope != usage.scope) {
                continue;
            }
            ids.insert(usage.id);
            if ids.len() > Page::MAX {
                ids.pop_last();
                next = ids.last().copied();
                if self.engine.is_ordered() {
                    break;
                }
            }
        }
        Ok((ids, next))
    }

    pub(super) async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        let usage = self.open_uploads(None).map_ok(async |open| {
            let OpenUpload { usage, .. } = open;
            if !open.is_late {
                return Ok(Some(usage));
            }
            match self.find(&usage.id, Extent::All).await {
                Ok(Some((info, stored))) if info.unique_id == open.unique_id => {
                    let received = info.progress(&stored).received;
                    let bytes = info.described().length.unwrap_or(received);
                    Ok((!info.is_settled()).then_some(Usage { bytes, ..usage }))
                }
                Ok(_) => Ok(None),
                // One upload that cannot be read must not hide the others.
                Err(error) => {
                    self.skipped(&self.keys.info(&usage.id), &error);
                    Ok(Some(usage))
                }
            }
        });
        let usage = usage.try_buffered(AT_ONCE);
        usage
            .try_filter_map(async |usage| Ok(usage))
            .try_collect()
            .await
    }

    /// The objects below `open/` whose names are greater than `after`.
    pub(super) fn open_uploads(
        &self,
        after: Option<&Path>,
    ) -> impl stream::Stream<Item = Result<OpenUpload, StoreError>> + Send + use<> {
        let listed = self.engine.list(&self.keys.open_uploads(), after);
        listed.try_filter_map(|listed| {
            let open = parse_open(&listed.path).map(|(unique_id, usage, is_late)| OpenUpload {
                path: listed.path,
                modified: listed.modified,
                unique_id,
                usage,
                is_late,
            });
            std::future::ready(Ok(open))
        })
    }
}
