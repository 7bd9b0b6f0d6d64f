//! Forwards events to the crate `tracing`. The table in the docs of [`Event`] has the fields.

use tracing::Level;

use super::Event;
use crate::{
    delivery::Verdict,
    error::ErrorKind,
    model::upload::Scope,
    store::{Chain, TRACING_TARGET as TARGET},
};

/// Whether any event of a fault is recorded.
pub(super) fn is_on() -> bool {
    tracing::enabled!(target: TARGET, Level::ERROR)
}

/// Level, name and fields are part of a `static`, so each event has a place of its own. The fields
/// of an upload and of an error, which most events have, come first and last.
macro_rules! forward {
    ($event:expr, $level:ident, $name:literal, upload $upload:ident, $($fields:tt)*) => {
        forward!($event, $level, $name,
            upload.id = %$upload.id, scope = $upload.scope.as_str(), $($fields)*)
    };
    ($event:expr, $level:ident, $name:literal, about $upload:ident, $scope:ident, $error:ident) => {
        forward!($event, $level, $name,
            upload.id = $upload.map(tracing::field::display),
            scope = $scope.map(Scope::as_str),
            error.kind = $error.kind().as_str(),
            error = %Chain(*$error))
    };
    ($event:expr, $level:ident, $name:literal, $($fields:tt)*) => {
        tracing::event!(
            name: $name,
            target: TARGET,
            Level::$level,
            { $($fields)* },
            "{}",
            $event
        )
    };
}

pub(super) fn forward(event: &Event<'_>) {
    match event {
        Event::Created { upload } => {
            forward!(event, INFO, "created", upload upload, length = upload.length);
        }
        Event::Resumed { upload, received } => {
            forward!(event, INFO, "resumed", upload upload, received);
        }
        Event::Stored {
            upload,
            offset,
            bytes,
            duplicate,
            progress,
            elapsed,
        } => forward!(
            event, DEBUG, "stored", upload upload,
            offset,
            bytes,
            duplicate,
            received = progress.received,
            elapsed = elapsed.as_secs_f64()
        ),
        Event::Completed { upload } => {
            forward!(event, INFO, "completed", upload upload, length = upload.length);
        }
        Event::Refused {
            upload,
            scope,
            error,
        } => match error.kind() {
            ErrorKind::Busy | ErrorKind::TooManyUploads | ErrorKind::QuotaExceeded => {
                forward!(event, WARN, "refused", about upload, scope, error);
            }
            _ => forward!(event, INFO, "refused", about upload, scope, error),
        },
        Event::TakenOver {
            upload,
            scope,
            error,
        } => forward!(event, INFO, "taken_over", about upload, scope, error),
        Event::Interrupted {
            upload,
            scope,
            error,
        } => forward!(event, DEBUG, "interrupted", about upload, scope, error),
        Event::StoreFailed { upload, error } => forward!(
            event, ERROR, "store_failed",
            upload.id = upload.map(tracing::field::display),
            error.kind = error.kind().as_str(),
            error = %Chain(*error)
        ),
        // The store forwards it itself, whether there is a hook or not.
        Event::Store(_) => {}
        Event::DeliveryStarted { upload, attempt } => {
            forward!(event, DEBUG, "delivery_started", upload upload, attempt);
        }
        Event::DeliveryEnded {
            upload,
            attempt,
            status,
            verdict,
            elapsed,
            since_last_byte,
        } => forward!(
            event, INFO, "delivery_ended", upload upload,
            attempt,
            status = status.as_u16(),
            verdict = match verdict {
                Verdict::Delivered => "delivered",
                Verdict::Rejected => "rejected",
                Verdict::RefusedNow => "refused_now",
                Verdict::Failed => "failed",
            },
            elapsed = elapsed.as_secs_f64(),
            since_last_byte = since_last_byte.map(|since| since.as_secs_f64())
        ),
        Event::DeliveryFailed {
            upload,
            attempt,
            elapsed,
            error,
        } => forward!(
            event, WARN, "delivery_failed", upload upload,
            attempt,
            elapsed = elapsed.as_secs_f64(),
            error.kind = error.kind().as_str(),
            error = %Chain(*error)
        ),
        Event::RecordLate {
            upload,
            tries,
            elapsed,
        } => forward!(
            event, INFO, "record_late", upload upload,
            tries,
            elapsed = elapsed.as_secs_f64()
        ),
        Event::SetAside {
            upload,
            attempts,
            error,
        } => forward!(
            event, ERROR, "set_aside", upload upload,
            attempts,
            error.kind = error.kind().as_str(),
            error = %Chain(*error)
        ),
        Event::FileRemoved {
            upload,
            status,
            error,
        } => forward!(
            event, INFO, "file_removed", upload upload,
            status = status.map(|status| status.as_u16()),
            error.kind = error.map(|error| error.kind().as_str()),
            error = error.map(|error| tracing::field::display(Chain(error)))
        ),
        Event::Swept(swept) => forward!(
            event,
            INFO,
            "swept",
            abandoned = swept.abandoned,
            undelivered = swept.undelivered,
            records = swept.records
        ),
        Event::SweepFailed { error } => forward!(
            event, ERROR, "sweep_failed",
            error.kind = error.kind().as_str(),
            error = %Chain(*error)
        ),
        Event::MissingUpload { path } => forward!(event, ERROR, "missing_upload", path),
    }
}
