//! Interim responses: the URL of a new upload, and how many bytes of a body are stored so far.

use std::{future::poll_fn, pin::pin, task::Poll, time::Duration};

use http::request::Parts;
use tokio::time::timeout;

use super::Engine;
use crate::{
    interim::Interim,
    model::upload::Upload,
    protocol::{Held, Reply},
    store::{Progress, StoreError},
};

/// The shortest time between two responses.
const PAUSE: Duration = Duration::from_secs(1);

impl Engine {
    /// Tells the client the URL of its new upload, before the answer. Returns whether that was
    /// possible.
    pub(super) fn announce(&self, head: &Parts, reply: &Reply, upload: &Upload) -> bool {
        self.send(head, reply, self.held(upload, None))
    }

    fn send(&self, head: &Parts, reply: &Reply, held: Held<'_>) -> bool {
        let interim = head.extensions.get::<Interim>();
        let response = interim.and_then(|_| reply.interim(held));
        if let (Some(interim), Some(response)) = (interim, &response) {
            interim.send(response);
        }
        response.is_some()
    }

    /// Waits for an append, and tells the client about each second how many bytes are stored.
    pub(super) async fn with_progress(
        &self,
        append: impl Future<Output = Result<Progress, StoreError>>,
        head: &Parts,
        reply: &Reply,
        upload: &Upload,
        mut told: u64,
    ) -> Result<Progress, StoreError> {
        let mut append = pin!(append);
        let is_told = head.extensions.get::<Interim>().is_some()
            && reply.interim(self.held(upload, Some(told))).is_some();
        if !is_told {
            return append.await;
        }
        loop {
            if let Ok(appended) = timeout(PAUSE, append.as_mut()).await {
                return appended;
            }
            // Only what is durable is told: the client drops these bytes. The question is asked to
            // its end, and the append goes on meanwhile.
            let mut asked = pin!(self.store.status(&upload.id));
            let mut appended = None;
            let status = poll_fn(|cx| {
                if appended.is_none() {
                    if let Poll::Ready(result) = append.as_mut().poll(cx) {
                        appended = Some(result);
                    }
                }
                asked.as_mut().poll(cx)
            });
            // An error tells nothing. The append has its own.
            let stored = status.await.ok().flatten().map(|status| status.prefix());
            if let Some(appended) = appended {
                return appended;
            }
            if let Some(stored) = stored.filter(|stored| *stored > told) {
                told = stored;
                self.send(head, reply, self.held(upload, Some(stored)));
            }
        }
    }
}
