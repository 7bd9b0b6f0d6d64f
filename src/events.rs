use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    error::Error,
    model::upload::{Upload, UploadId},
    store::{Chain, StoreEvent, Swept},
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
    /// An upload was set aside, because its delivery has failed [as often as
    /// allowed](crate::Delivery::with_max_attempts). It is kept, but neither requests nor the
    /// background deliver it. [`Uploads::deliver`](crate::Uploads::deliver) does. Told once by each
    /// process.
    SetAside {
        /// The upload.
        upload: &'a Upload,
        /// The number of attempts so far.
        attempts: u32,
        /// What the client is told. Its source is why the last attempt failed, if this process made
        /// it.
        error: &'a Error,
    },
    /// An upload was removed before its delivery, with its bytes: the application or a digest
    /// rejected the file, or the client removed the upload. What sweeps remove is
    /// [`Swept`](Self::Swept).
    FileRemoved {
        /// The upload.
        upload: &'a Upload,
        /// The status with which the application rejected the file, if it did.
        status: Option<http::StatusCode>,
    },
    /// A sweep has removed something.
    Swept(&'a Swept),
    /// A sweep failed.
    SweepFailed {
        /// Why it failed.
        error: &'a Error,
    },
}

/// One line for a log. Errors are written with all their causes.
impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StoreFailed { upload, error } => {
                f.write_str("the store failed")?;
                if let Some(id) = upload {
                    write!(f, ", upload {id}")?;
                }
                write!(f, ": {}", Chain(*error))
            }
            Self::Store(event) => write!(f, "the store {event}"),
            Self::DeliveryFailed {
                upload,
                attempt,
                error,
            } => {
                let id = upload.id;
                write!(
                    f,
                    "attempt {attempt} to deliver upload {id} failed: {}",
                    Chain(*error)
                )
            }
            Self::SetAside {
                upload,
                attempts,
                error,
            } => {
                let id = upload.id;
                write!(
                    f,
                    "upload {id} is set aside after attempt {attempts}: {}",
                    Chain(*error)
                )
            }
            Self::FileRemoved { upload, status } => {
                write!(f, "upload {} is removed", upload.id)?;
                match status {
                    Some(status) => write!(f, ", rejected with {status}"),
                    None => Ok(()),
                }
            }
            Self::Swept(swept) => write!(
                f,
                "swept {} abandoned uploads, {} undelivered ones and {} records",
                swept.abandoned, swept.undelivered, swept.records
            ),
            Self::SweepFailed { error } => write!(f, "a sweep failed: {}", Chain(*error)),
        }
    }
}

type Hook = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// The hook for events.
#[derive(Clone, Default)]
pub(crate) struct Events(Option<Hook>);

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
