use std::{
    error::Error,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use super::StoreError;
use crate::{lock::lock, model::upload::UploadId};

/// Something that a store did or met that no caller gets as a result or an error.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreEvent<'a> {
    /// Something that cannot be read was set aside, under a name that says so. If it was an upload,
    /// that upload begins anew.
    SetAside {
        /// The upload, if that is known.
        upload: Option<UploadId>,
        /// The path or the key at which it is now.
        place: &'a str,
        /// Why it cannot be read.
        error: &'a StoreError,
    },
    /// Something was passed over, because it cannot be read or removed. The call goes on with the
    /// others.
    Skipped {
        /// Its path or its key.
        place: &'a str,
        /// Why it was passed over.
        error: &'a StoreError,
    },
    /// A claim could not be renewed. It is tried again until the claim ends.
    RenewalFailed {
        /// The upload that is being delivered.
        upload: UploadId,
        /// Why it failed.
        error: &'a StoreError,
    },
    /// A claim was lost while its upload was being delivered: another server may deliver it again.
    ClaimLost {
        /// The upload that is being delivered.
        upload: UploadId,
    },
}

/// A part of a line for a log, after `the store`. Errors are written with all their causes.
impl fmt::Display for StoreEvent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetAside {
                upload,
                place,
                error,
            } => {
                f.write_str("set aside ")?;
                if let Some(id) = upload {
                    write!(f, "upload {id}, which is now ")?;
                }
                write!(f, "{place}: {}", Chain(*error))
            }
            Self::Skipped { place, error } => {
                write!(f, "passed over {place}: {}", Chain(*error))
            }
            Self::RenewalFailed { upload, error } => {
                write!(
                    f,
                    "could not renew the claim of upload {upload}: {}",
                    Chain(*error)
                )
            }
            Self::ClaimLost { upload } => write!(f, "lost the claim of upload {upload}"),
        }
    }
}

impl StoreEvent<'_> {
    /// See [`Event::name`](crate::Event::name).
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::SetAside { .. } => "store_set_aside",
            Self::Skipped { .. } => "store_skipped",
            Self::RenewalFailed { .. } => "store_renewal_failed",
            Self::ClaimLost { .. } => "store_claim_lost",
        }
    }
}

/// The target of all events of the crate `tracing`.
#[cfg(feature = "tracing")]
pub(crate) const TRACING_TARGET: &str = "tower_resumable";

#[cfg(feature = "tracing")]
impl StoreEvent<'_> {
    /// Forwards the event to the crate `tracing`. The docs of [`Event`](crate::Event) have the
    /// fields.
    fn forward(&self) {
        use tracing::{Level, event};
        const TARGET: &str = TRACING_TARGET;
        match self {
            Self::SetAside {
                upload,
                place,
                error,
            } => event!(
                name: "store_set_aside",
                target: TARGET,
                Level::ERROR,
                { upload.id = upload.map(display), place, error = %Chain(*error) },
                "the store {self}"
            ),
            Self::Skipped { place, error } => event!(
                name: "store_skipped",
                target: TARGET,
                Level::WARN,
                { place, error = %Chain(*error) },
                "the store {self}"
            ),
            Self::RenewalFailed { upload, error } => event!(
                name: "store_renewal_failed",
                target: TARGET,
                Level::WARN,
                { upload.id = %upload, error = %Chain(*error) },
                "the store {self}"
            ),
            Self::ClaimLost { upload } => event!(
                name: "store_claim_lost",
                target: TARGET,
                Level::ERROR,
                { upload.id = %upload },
                "the store {self}"
            ),
        }
    }
}

/// Receives the [events](StoreEvent) of a store.
///
/// It is called on the thread where the event happens, so it must not block.
///
/// ```
/// use std::sync::Arc;
/// use tower_resumable::store::{Observer, StoreError, StoreEvent};
///
/// let observer: Observer = Arc::new(|event| {
///     if let StoreEvent::Skipped { place, .. } = event {
///         assert_eq!(*place, "up/17");
///     }
///     assert_eq!(event.to_string(), "passed over up/17: the store failed: no such row");
/// });
/// // What a store does that cannot read one of its uploads.
/// observer(&StoreEvent::Skipped { place: "up/17", error: &StoreError::new("no such row") });
/// ```
pub type Observer = Arc<dyn Fn(&StoreEvent<'_>) + Send + Sync>;

/// The observer of a store, which is set after the store was opened.
#[derive(Default)]
pub(crate) struct Observed(Mutex<Option<Observer>>);

impl Observed {
    pub(crate) fn set(&self, observer: Observer) {
        *lock(&self.0) = Some(observer);
    }

    /// Tells the observer. If it panics, that is all that happens.
    pub(crate) fn tell(&self, event: &StoreEvent<'_>) {
        #[cfg(feature = "tracing")]
        call_hook(|| event.forward());
        let observer = lock(&self.0).clone();
        if let Some(observer) = observer {
            call_hook(|| observer(event));
        }
    }
}

/// Calls a hook for events. If it panics, that is all that happens.
pub(crate) fn call_hook(hook: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(hook)) {
        // What a panic carries can panic when it is dropped. The second one is leaked.
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(panic)));
        dropped.unwrap_or_else(std::mem::forget);
    }
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observed")
    }
}

/// An error with its causes, in one line. A cause that says no more than its error is left out.
pub(crate) struct Chain<'a>(pub(crate) &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        OneLine(&last).fmt(f)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if text != last {
                write!(f, ": {}", OneLine(&text))?;
            }
            (last, cause) = (text, error.source());
        }
        Ok(())
    }
}

/// A text whose control characters are escaped: the error of an application can contain text of a
/// client, and must not look like another line of a log.
struct OneLine<'a>(&'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for piece in self.0.split_inclusive(char::is_control) {
            let text = piece.trim_end_matches(char::is_control);
            write!(f, "{text}{}", piece[text.len()..].escape_default())?;
        }
        Ok(())
    }
}
