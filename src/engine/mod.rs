//! Receives, counts and delivers uploads.

pub(crate) mod active;
mod append;
mod concat;
pub(crate) mod deliver;
mod finals;
pub(crate) mod head;
mod outcomes;
mod progress;
pub(crate) mod quota;
pub(crate) mod receive;
mod registry;
mod request;
pub(crate) mod verify;
mod write;

use std::sync::Arc;

use http::{Request, Response};
use tower_service::Service;

use self::{active::Active, finals::Finals, outcomes::Outcomes, quota::Quota, registry::Registry};
use crate::{
    body::live::Bodies,
    config::Config,
    error::{Error, ErrorKind},
    events::Event,
    model::upload::{Scope, UploadId},
    store::DynStore,
};

/// The service behind the layer. Its answers have bodies of the type `R`.
pub(crate) trait Inner<B, R>:
    Service<Request<B>, Response = Response<R>, Error: Send, Future: Send> + Send + 'static
{
}

impl<S, B, R> Inner<B, R> for S where
    S: Service<Request<B>, Response = Response<R>, Error: Send, Future: Send> + Send + 'static
{
}

/// What all clones of a layer share.
#[derive(Clone)]
pub(crate) struct Engine {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<dyn DynStore>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) outcomes: Arc<Outcomes>,
    pub(crate) quota: Arc<Quota>,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) active: Arc<Active>,
    finals: Arc<Finals>,
}

impl Engine {
    pub(crate) fn new(store: Arc<dyn DynStore>) -> Self {
        let (can, mut config) = (store.capabilities(), Config::default());
        let urls = config.protocols.urls_mut();
        (urls.appends, urls.concats) = (can.append, can.append && can.concat);
        Self {
            config: Arc::new(config),
            store,
            registry: Arc::default(),
            outcomes: Arc::default(),
            quota: Arc::default(),
            bodies: Arc::default(),
            active: Arc::default(),
            finals: Arc::default(),
        }
    }

    /// Converts an error of the store, and tells the operator of it, unless the client has caused
    /// it.
    pub(crate) fn store_failed(&self, upload: Option<&UploadId>, error: impl Into<Error>) -> Error {
        let error = error.into();
        if error.is_of_store() && error.mark_told() {
            let event = Event::StoreFailed {
                upload,
                error: &error,
            };
            self.config.events.emit(&event);
        }
        error
    }

    /// Tells the operator of the error of a request, unless an event has told it.
    pub(crate) fn refused(&self, upload: Option<&UploadId>, scope: Option<&Scope>, error: &Error) {
        if !error.mark_told() {
            return;
        }
        self.config.events.emit(&match error.kind() {
            ErrorKind::Interrupted => Event::Interrupted {
                upload,
                scope,
                error,
            },
            ErrorKind::Superseded => Event::TakenOver {
                upload,
                scope,
                error,
            },
            _ => Event::Refused {
                upload,
                scope,
                error,
            },
        });
    }
}
