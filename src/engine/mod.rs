//! What happens to an upload: received, counted, delivered.

pub(crate) mod deliver;
pub(crate) mod quota;
pub(crate) mod receive;

use std::sync::Arc;

use self::{deliver::Deliveries, quota::Ledger};
use crate::{config::Config, store::DynStore};

/// Everything the clones of one layer share.
pub(crate) struct Engine {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn DynStore>,
    pub(crate) deliveries: Arc<Deliveries>,
    pub(crate) ledger: Arc<Ledger>,
}
