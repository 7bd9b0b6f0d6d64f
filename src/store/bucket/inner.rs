use std::{fmt, sync::Mutex, time::Duration};

use super::{
    blocks::Memory,
    clock::Clock,
    engine::Engine,
    keys::Keys,
    known::{Appends, Known, Leases, Locks},
    layout::Limits,
};
use crate::{model::upload::UploadId, store::Observed};

/// What the clones of a store share.
pub(super) struct Inner {
    pub(super) engine: Engine,
    pub(super) keys: Keys,
    pub(super) limits: Limits,
    pub(super) lease: Duration,
    pub(super) memory: Memory,
    pub(super) clock: Clock,
    pub(super) known: Known,
    /// Read by requests that write to an upload, written by a sweep that removes it.
    pub(super) gates: Locks<UploadId, tokio::sync::RwLock<()>>,
    /// Held by a request that creates the upload.
    pub(super) beginnings: Locks<UploadId, tokio::sync::Mutex<()>>,
    pub(super) slots: Locks<(UploadId, usize), tokio::sync::Mutex<()>>,
    pub(super) appends: Locks<UploadId, Appends>,
    pub(super) leases: Mutex<Leases>,
    pub(super) events: Observed,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.engine.fmt(f)
    }
}
