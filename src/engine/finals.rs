//! What this process knows of uploads that are made of parts.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use super::registry::Registry;
use crate::{
    lock::lock,
    model::upload::{Upload, UploadId},
};

/// How many parts are remembered that an upload waits for.
const WAITED_FOR: usize = 10_000;

/// The uploads that are put together now, and those that wait for their parts.
#[derive(Debug, Default)]
pub(crate) struct Finals {
    pub(super) running: Arc<Registry>,
    /// The upload that waits for a part. Only this process knows; on other servers, and after a
    /// restart, a question about the upload puts it together.
    waiting: Mutex<HashMap<UploadId, Upload>>,
}

impl Finals {
    pub(super) fn wait_for(&self, parts: impl Iterator<Item = UploadId>, upload: &Upload) {
        let mut waiting = lock(&self.waiting);
        let room = WAITED_FOR.saturating_sub(waiting.len());
        waiting.extend(parts.take(room).map(|part| (part, upload.clone())));
    }

    /// The upload that waits for this part.
    pub(super) fn waits_for(&self, part: &UploadId) -> Option<Upload> {
        lock(&self.waiting).get(part).cloned()
    }

    pub(super) fn forget(&self, parts: &[UploadId]) {
        let mut waiting = lock(&self.waiting);
        parts.iter().for_each(|part| drop(waiting.remove(part)));
    }
}
