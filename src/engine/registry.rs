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

/// How a delivery ended, for the other requests that wait for it.
#[derive(Clone, Debug)]
pub(crate) enum Ended {
    /// The inner service took or rejected the file.
    Settled(Record),
    Failed(Error),
    /// The application refused the request that delivered. It has not seen the others.
    Refused,
}

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
    sender: watch::Sender<Option<Ended>>,
    ended: Option<Ended>,
}

/// The delivery of another request, to wait for.
#[derive(Debug)]
pub(crate) struct Other(watch::Receiver<Option<Ended>>);

impl Registry {
    /// How many deliveries are running.
    pub(crate) fn count(&self) -> u64 {
        lock(&self.live).len() as u64
    }

    /// Enters the delivery of an upload, unless another request has entered it.
    pub(crate) fn enter(self: &Arc<Self>, id: &UploadId) -> Result<Entered, Other> {
        match lock(&self.live).entry(*id) {
            Entry::Occupied(other) => Err(Other(other.get().clone())),
            Entry::Vacant(place) => {
                let (sender, receiver) = watch::channel(None);
                place.insert(receiver);
                Ok(Entered {
                    registry: Arc::clone(self),
                    id: *id,
                    sender,
                    ended: None,
                })
            }
        }
    }
}

impl Entered {
    /// Gives the result to all requests that wait for it.
    pub(crate) fn end(mut self, ended: Ended) {
        self.ended = Some(ended);
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // Before the others are told: they may enter now.
        lock(&self.registry.live).remove(&self.id);
        // Without a result the task has panicked, or the runtime shuts down.
        let ended = self.ended.take().unwrap_or_else(failed);
        self.sender.send_replace(Some(ended));
    }
}

impl Other {
    /// Waits for the end of the delivery.
    pub(crate) async fn wait(mut self, deadline: Instant) -> Ended {
        match timeout_at(deadline, self.0.wait_for(Option::is_some)).await {
            Ok(Ok(ended)) => ended.clone().unwrap_or_else(failed),
            Ok(Err(_)) => failed(),
            Err(_) => Ended::Failed(Reason::DeliveryPending.into()),
        }
    }
}

fn failed() -> Ended {
    Ended::Failed(Reason::DeliveryFailed.into())
}
