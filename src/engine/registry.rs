use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex},
};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    error::{Error, Reason},
    lock::lock,
    model::{state::Record, upload::UploadId},
};

/// How a delivery ended: with a record, or with an error and the number of the attempt.
pub(crate) type Ended = Result<Record, (Error, u32)>;

/// The running deliveries of this process. Other requests for the same upload wait for them.
#[derive(Debug, Default)]
pub(crate) struct Registry {
    live: Mutex<HashMap<UploadId, watch::Receiver<Option<Ended>>>>,
}

/// The delivery of an upload in this process. Removed from the registry when it is dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    registry: Arc<Registry>,
    id: UploadId,
    ended: watch::Sender<Option<Ended>>,
}

/// The delivery of another request, to wait for.
#[derive(Debug)]
pub(crate) struct Other(watch::Receiver<Option<Ended>>);

impl Registry {
    /// Enters the delivery of an upload, unless another request has entered it.
    pub(crate) fn enter(self: &Arc<Self>, id: &UploadId) -> Result<Entered, Other> {
        match lock(&self.live).entry(*id) {
            Entry::Occupied(other) => Err(Other(other.get().clone())),
            Entry::Vacant(place) => {
                let (ended, receiver) = watch::channel(None);
                place.insert(receiver);
                Ok(Entered {
                    registry: Arc::clone(self),
                    id: *id,
                    ended,
                })
            }
        }
    }
}

impl Entered {
    /// Gives the result to all requests that wait for it.
    pub(crate) fn end(self, ended: Ended) {
        self.ended.send_replace(Some(ended));
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if self.ended.borrow().is_none() {
            // The task has panicked, or the runtime shuts down.
            self.ended.send_replace(Some(failed()));
        }
        lock(&self.registry.live).remove(&self.id);
    }
}

impl Other {
    /// Waits for the end of the delivery.
    pub(crate) async fn wait(mut self, deadline: Instant) -> Ended {
        match timeout_at(deadline, self.0.wait_for(Option::is_some)).await {
            Ok(Ok(ended)) => ended.clone().unwrap_or_else(failed),
            Ok(Err(_)) => failed(),
            Err(_) => Err((Reason::DeliveryPending.into(), 0)),
        }
    }
}

fn failed() -> Ended {
    Err((Reason::DeliveryFailed.into(), 1))
}
