use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    error::Error,
    model::upload::{Upload, UploadId},
    store::StoreEvent,
};

/// Something that the operator of a layer may want to know, for
/// [`with_events`](crate::ResumableLayer::with_events).
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The store failed. The client got a retryable error, or there was no client.
    StoreFailed {
        /// The upload, if the call was about one.
        upload: Option<&'a UploadId>,
        /// The error, with its causes as [`source`](std::error::Error::source).
        error: &'a Error,
    },
    /// The store did or met something that no request gets as an error.
    Store(&'a StoreEvent<'a>),
    /// A delivery failed. The upload is kept, and delivered again.
    DeliveryFailed {
        /// The upload.
        upload: &'a Upload,
        /// The number of the attempt.
        attempt: u32,
        /// Why it failed.
        error: &'a Error,
    },
    /// A complete file was removed, because the application or a digest rejected it.
    FileRemoved {
        /// The upload.
        upload: &'a Upload,
        /// The status of the application's answer, if it gave one.
        status: Option<http::StatusCode>,
    },
    /// A sweep failed.
    SweepFailed {
        /// Why it failed.
        error: &'a Error,
    },
}

/// The hook for events.
#[derive(Clone, Default)]
pub(crate) struct Events(Option<Arc<dyn Fn(&Event<'_>) + Send + Sync>>);

impl Events {
    pub(crate) fn new(hook: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// Calls the hook. If it panics, that is all that happens.
    pub(crate) fn emit(&self, event: &Event<'_>) {
        if let Some(hook) = &self.0 {
            let _ = catch_unwind(AssertUnwindSafe(|| hook(event)));
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.0.is_some()).finish()
    }
}
