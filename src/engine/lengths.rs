//! The lengths that clients of the IETF draft declare after the creation of their uploads.

use std::{collections::HashMap, sync::Mutex};

use crate::{lock::lock, model::upload::UploadId};

/// How many are remembered.
const REMEMBERED: usize = 10_000;

/// Lengths that do not complete an upload, so they are not those of the store. Only this process
/// knows them: they are for checks only, and the client declares them again.
#[derive(Debug, Default)]
pub(crate) struct Lengths(Mutex<HashMap<UploadId, u64>>);

impl Lengths {
    pub(super) fn of(&self, id: &UploadId) -> Option<u64> {
        lock(&self.0).get(id).copied()
    }

    pub(super) fn note(&self, id: &UploadId, length: u64) {
        let mut lengths = lock(&self.0);
        if lengths.len() < REMEMBERED {
            lengths.insert(*id, length);
        }
    }

    pub(super) fn forget(&self, id: &UploadId) {
        lock(&self.0).remove(id);
    }
}
