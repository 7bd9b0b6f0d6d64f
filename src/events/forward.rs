//! Forwards events to the crate `tracing`. The table in the docs of [`Event`] has the fields.

use std::fmt;

use tracing::{Level, field::display};

use super::Event;
use crate::{
    delivery::Verdict,
    error::{Error, ErrorKind},
    model::upload::{Scope, UploadId},
    store::{Chain, TRACING_TARGET as TARGET},
};

/// Whether any event of a fault is recorded.
pub(super) fn is_on() -> bool {
    tracing::enabled!(target: TARGET, Level::ERROR)
}

/// Level, name and fields are part of a `static`, so each event has a place of its own.
macro_rules! forward {
    ($event:expr, $level:ident, $name:literal, { $($fields:tt)* }) => {
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
        Event::Created { upload } => forward!(event, INFO, "created", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
            length = upload.length
        }),
        Event::Resumed { upload, received } => forward!(event, INFO, "resumed", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
            received
        }),
        Event::Stored {
            upload,
            offset,
            bytes,
            duplicate,
            progress,
            elapsed,
        } => forward!(event, DEBUG, "stored", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
            offset,
            bytes,
            duplicate,
            received = progress.received,
            elapsed = elapsed.as_secs_f64()
        }),
        Event::Completed { upload } => forward!(event, INFO, "completed", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
            length = upload.length
        }),
        Event::Refused {
            upload,
            scope,
            error,
        } => {
            let (id, scope) = about(*upload, *scope);
            let (kind, chain) = told(error);
            match error.kind() {
                ErrorKind::Busy | ErrorKind::TooManyUploads | ErrorKind::QuotaExceeded => {
                    forward!(event, WARN, "refused", {
                        upload.id = id, scope, error.kind = kind, error = chain
                    });
                }
                _ => forward!(event, INFO, "refused", {
                    upload.id = id, scope, error.kind = kind, error = chain
                }),
            }
        }
        Event::TakenOver {
            upload,
            scope,
            error,
        } => {
            let (id, scope) = about(*upload, *scope);
            let (kind, chain) = told(error);
            forward!(event, INFO, "taken_over", {
                upload.id = id, scope, error.kind = kind, error = chain
            });
        }
        Event::Interrupted {
            upload,
            scope,
            error,
        } => {
            let (id, scope) = about(*upload, *scope);
            let (kind, chain) = told(error);
            forward!(event, DEBUG, "interrupted", {
                upload.id = id, scope, error.kind = kind, error = chain
            });
        }
        Event::StoreFailed { upload, error } => {
            let (id, _) = about(*upload, None);
            let (kind, chain) = told(error);
            forward!(event, ERROR, "store_failed", {
                upload.id = id, error.kind = kind, error = chain
            });
        }
        // The store forwards it itself, whether there is a hook or not.
        Event::Store(_) => {}
        Event::DeliveryStarted { upload, attempt } => forward!(event, DEBUG, "delivery_started", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
            attempt
        }),
        Event::DeliveryEnded {
            upload,
            attempt,
            status,
            verdict,
            elapsed,
            since_last_byte,
        } => forward!(event, INFO, "delivery_ended", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
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
        }),
        Event::DeliveryFailed {
            upload,
            attempt,
            elapsed,
            error,
        } => {
            let (kind, chain) = told(error);
            forward!(event, WARN, "delivery_failed", {
                upload.id = %upload.id,
                scope = upload.scope.as_str(),
                attempt,
                elapsed = elapsed.as_secs_f64(),
                error.kind = kind,
                error = chain
            });
        }
        Event::RecordLate {
            upload,
            tries,
            elapsed,
        } => forward!(event, INFO, "record_late", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
            tries,
            elapsed = elapsed.as_secs_f64()
        }),
        Event::SetAside {
            upload,
            attempts,
            error,
        } => {
            let (kind, chain) = told(error);
            forward!(event, ERROR, "set_aside", {
                upload.id = %upload.id,
                scope = upload.scope.as_str(),
                attempts,
                error.kind = kind,
                error = chain
            });
        }
        Event::FileRemoved {
            upload,
            status,
            error,
        } => forward!(event, INFO, "file_removed", {
            upload.id = %upload.id,
            scope = upload.scope.as_str(),
            status = status.map(|status| status.as_u16()),
            error.kind = error.map(|error| error.kind().as_str()),
            error = error.map(|error| display(Chain(error)))
        }),
        Event::Swept(swept) => forward!(event, INFO, "swept", {
            abandoned = swept.abandoned,
            undelivered = swept.undelivered,
            records = swept.records
        }),
        Event::SweepFailed { error } => {
            let (kind, chain) = told(error);
            forward!(event, ERROR, "sweep_failed", { error.kind = kind, error = chain });
        }
        Event::MissingUpload { path } => forward!(event, ERROR, "missing_upload", { path }),
    }
}

fn about<'a>(
    upload: Option<&'a UploadId>,
    scope: Option<&'a Scope>,
) -> (
    Option<tracing::field::DisplayValue<&'a UploadId>>,
    Option<&'a str>,
) {
    (upload.map(display), scope.map(Scope::as_str))
}

fn told(
    error: &Error,
) -> (
    &'static str,
    tracing::field::DisplayValue<impl fmt::Display>,
) {
    (error.kind().as_str(), display(Chain(error)))
}
