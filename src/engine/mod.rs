//! Receives, counts and delivers uploads.

pub(crate) mod active;
pub(crate) mod deliver;
pub(crate) mod quota;
pub(crate) mod receive;
mod registry;
pub(crate) mod verify;

use std::sync::Arc;

use self::{active::Active, quota::Quota, registry::Registry};
use crate::{body::live::Bodies, config::Config, store::DynStore};

/// What all clones of a layer share.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<dyn DynStore>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) active: Arc<Active>,
}

impl Engine {
    pub(crate) fn new(store: Arc<dyn DynStore>) -> Self {
        Self {
            config: Arc::default(),
            store,
            registry: Arc::default(),
            quota: Arc::default(),
            bodies: Arc::default(),
            active: Arc::default(),
        }
    }
}
