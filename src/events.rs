#[cfg(feature = "tracing")]
mod forward;

use std::{fmt, sync::Arc, time::Duration};

use http::{Response, StatusCode, Uri, uri::PathAndQuery};

use crate::{
    delivery::Verdict,
    error::{Error, ErrorKind},
    model::{
        state::Progress,
        upload::{Scope, Upload, UploadId},
    },
    store::{Chain, StoreEvent, Swept, call_hook},
};

/// Something that the operator of a layer may want to know, for
/// [`with_events`](crate::ResumableLayer::with_events).
///
/// Each decision of the layer and each fault is one event. The [`name`](Self::name) tells the
/// kinds apart, and the [`level`](Self::level) tells what needs attention. Durations and numbers of
/// bytes are values, so that metrics need nothing else; [`Uploads::counts`](crate::Uploads::counts)
/// returns what is there at the moment.
///
/// # The crate `tracing`
///
/// With the feature `tracing`, the same events are events of the crate `tracing`, whether there is
/// a hook or not. Their target is `tower_resumable`, and their message is what `Display` writes.
/// No field has content, the name of a file or another text of a client. Only `error` can: an error
/// of the application has its text, and an error of a store can have the path of a finished file,
/// which a `FileStore` names after the file. Events that a request causes are in its span, also if
/// its client has gone.
///
/// | name | level | fields |
/// |---|---|---|
/// | `created`, `completed` | info | `upload.id`, `scope`, `length` |
/// | `resumed` | info | `upload.id`, `scope`, `received` |
/// | `stored` | debug | `upload.id`, `scope`, `offset`, `bytes`, `duplicate`, `received`, … |
/// | `refused` | info, warn | `upload.id`, `scope`, `error.kind`, `error` |
/// | `taken_over` | info | `upload.id`, `scope`, `error.kind`, `error` |
/// | `interrupted` | debug | `upload.id`, `scope`, `error.kind`, `error` |
/// | `store_failed` | error | `upload.id`, `error.kind`, `error` |
/// | `store_set_aside` | error | `upload.id`, `place`, `error` |
/// | `store_skipped` | warn | `place`, `error` |
/// | `store_renewal_failed` | warn | `upload.id`, `error` |
/// | `store_claim_lost` | error | `upload.id` |
/// | `delivery_started` | debug | `upload.id`, `scope`, `attempt` |
/// | `delivery_ended` | info | `upload.id`, `scope`, `attempt`, `status`, `verdict`, … |
/// | `delivery_failed` | warn | `upload.id`, `scope`, `attempt`, `elapsed`, `error.kind`, `error` |
/// | `record_late` | info | `upload.id`, `scope`, `tries`, `elapsed` |
/// | `set_aside` | error | `upload.id`, `scope`, `attempts`, `error.kind`, `error` |
/// | `file_removed` | info | `upload.id`, `scope`, `status`, `error.kind`, `error` |
/// | `swept` | info | `abandoned`, `undelivered`, `records` |
/// | `sweep_failed` | error | `error.kind`, `error` |
/// | `missing_upload` | error | `path` |
///
/// `stored` has `elapsed`, too, and `delivery_ended` has `elapsed` and `since_last_byte`. `refused`
/// is a warning if the server is at a limit.
///
/// `upload.id` is the hash that names the upload; `scope` is what the application calls its owner.
/// `offset`, `bytes`, `duplicate`, `received` and `length` are in bytes, `elapsed` and
/// `since_last_byte` in seconds. `error` has the error with all its causes, `error.kind` is
/// [`ErrorKind::as_str`]. A field without a value is left out. [`EventLevel`] has the reasons for
/// the levels. The `store_*` events are those of the stores of this crate: another store has to
/// forward its own.
///
/// # Logs
///
/// `Display` writes one line for a log, with the same texts as the fields above. `Debug` contains
/// all that the client says of its file.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The first bytes of a new upload are stored, or an empty upload is created.
    ///
    /// The process tells it that stores them. It may be told again if the request of an empty file
    /// is repeated, and for a late chunk of a delivered upload if the store does not
    /// [count duplicates](crate::store::ChunkBody::count_duplicate).
    Created {
        /// The upload.
        upload: &'a Upload,
    },
    /// A client has come back to an unfinished upload: bytes of it were stored before, and for at
    /// least a minute, or since the start of this process, no request has stored any.
    ///
    /// It is told when the first chunk is stored, not when the client asks what is stored.
    Resumed {
        /// The upload.
        upload: &'a Upload,
        /// Bytes that were stored before.
        received: u64,
    },
    /// A chunk is stored.
    Stored {
        /// The upload.
        upload: &'a Upload,
        /// Where the chunk begins in the file, in bytes.
        offset: u64,
        /// Bytes that the request has brought.
        bytes: u64,
        /// How many of them were stored already. 0 if the store does not
        /// [count them](crate::store::ChunkBody::count_duplicate).
        duplicate: u64,
        /// How many bytes of the upload are stored now.
        progress: Progress,
        /// How long it took to receive and to store the chunk.
        elapsed: Duration,
    },
    /// All bytes of an upload are stored. Its delivery follows.
    Completed {
        /// The upload.
        upload: &'a Upload,
    },
    /// A request ended with an error that no other event tells: bad input, a limit, a conflict, a
    /// hook of the application, or a delivery that is still running.
    ///
    /// A limit that is reached has the kind [`TooManyUploads`](ErrorKind::TooManyUploads),
    /// [`QuotaExceeded`](ErrorKind::QuotaExceeded) or [`Busy`](ErrorKind::Busy).
    Refused {
        /// The upload, if the request came so far that it is known.
        upload: Option<&'a UploadId>,
        /// Its owner, if the hook for scopes has named one.
        scope: Option<&'a Scope>,
        /// The error that the client got.
        error: &'a Error,
    },
    /// A request ended because a newer one has taken over its range, or has removed the upload.
    TakenOver {
        /// The upload.
        upload: Option<&'a UploadId>,
        /// Its owner.
        scope: Option<&'a Scope>,
        /// The error of the older request.
        error: &'a Error,
    },
    /// The client has gone before its request was complete. Mobile clients do that all the time.
    Interrupted {
        /// The upload, if the request came so far that it is known.
        upload: Option<&'a UploadId>,
        /// Its owner, if the hook for scopes has named one.
        scope: Option<&'a Scope>,
        /// Its source is the error of the request body.
        error: &'a Error,
    },
    /// The store failed. The client got a retryable error, or there was no client.
    ///
    /// A record that cannot be written is tried again. That is told once, and again if the error
    /// changes. [`RecordLate`](Self::RecordLate) tells that it has succeeded.
    StoreFailed {
        /// The upload, if the call was about one.
        upload: Option<&'a UploadId>,
        /// The error, with its causes as [`source`](std::error::Error::source).
        error: &'a Error,
    },
    /// The store did or met something that no request gets as an error.
    Store(&'a StoreEvent<'a>),
    /// The inner service is called with the file. The hooks and digests have accepted it.
    DeliveryStarted {
        /// The upload.
        upload: &'a Upload,
        /// The number of the attempt.
        attempt: u32,
    },
    /// The inner service has answered, and has not failed.
    DeliveryEnded {
        /// The upload.
        upload: &'a Upload,
        /// The number of the attempt.
        attempt: u32,
        /// The status of the answer.
        status: StatusCode,
        /// What the status means.
        verdict: Verdict,
        /// How long the hooks, the digest of the file and the inner service took.
        elapsed: Duration,
        /// The time since the last byte of the file was stored. `None` if this process has stored
        /// no byte of it.
        since_last_byte: Option<Duration>,
    },
    /// A delivery failed. The upload is kept, and delivered again.
    DeliveryFailed {
        /// The upload.
        upload: &'a Upload,
        /// The number of the attempt. 0 if the application could not make a request.
        attempt: u32,
        /// How long the hooks, the digest of the file and the inner service took.
        elapsed: Duration,
        /// Why it failed.
        error: &'a Error,
    },
    /// The record of a delivery is written, after the store had failed to write it. Until then, the
    /// client had no answer.
    RecordLate {
        /// The upload.
        upload: &'a Upload,
        /// How often it was tried.
        tries: u32,
        /// The time since the first try.
        elapsed: Duration,
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
        status: Option<StatusCode>,
        /// Why a hook or a digest rejected the file, if one did.
        error: Option<&'a Error>,
    },
    /// A sweep has removed something.
    Swept(&'a Swept),
    /// A sweep failed.
    SweepFailed {
        /// Why it failed.
        error: &'a Error,
    },
    /// A handler has asked for a [`CompletedUpload`](crate::CompletedUpload), and the request that
    /// this layer has passed to it has none. Told with the feature `axum`, for its extractor.
    ///
    /// The layer answers on another path, or the request is no upload of its protocols.
    MissingUpload {
        /// The path of the request, as the layer has seen it.
        path: &'a str,
    },
}

/// How much attention an [`Event`] needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EventLevel {
    /// Happens for each chunk, or only because a client has gone.
    Debug,
    /// Happens a few times for each upload, or because of one client.
    Info,
    /// The layer tries again by itself, or the server is at its limits.
    Warn,
    /// Uploads do not work until the operator acts, or data may be lost or delivered twice.
    Error,
}

impl Event<'_> {
    /// The kind of the event: a short, stable name in `snake_case`, such as `delivery_failed`.
    /// That of a [`Store`](Self::Store) event is one of `store_set_aside`, `store_skipped`,
    /// `store_renewal_failed` and `store_claim_lost`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Resumed { .. } => "resumed",
            Self::Stored { .. } => "stored",
            Self::Completed { .. } => "completed",
            Self::Refused { .. } => "refused",
            Self::TakenOver { .. } => "taken_over",
            Self::Interrupted { .. } => "interrupted",
            Self::StoreFailed { .. } => "store_failed",
            Self::Store(event) => event.name(),
            Self::DeliveryStarted { .. } => "delivery_started",
            Self::DeliveryEnded { .. } => "delivery_ended",
            Self::DeliveryFailed { .. } => "delivery_failed",
            Self::RecordLate { .. } => "record_late",
            Self::SetAside { .. } => "set_aside",
            Self::FileRemoved { .. } => "file_removed",
            Self::Swept(_) => "swept",
            Self::SweepFailed { .. } => "sweep_failed",
            Self::MissingUpload { .. } => "missing_upload",
        }
    }

    /// How much attention the event needs.
    ///
    /// ```
    /// use tower_resumable::{EventLevel, MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_events(|event| {
    ///     if event.level() >= EventLevel::Info {
    ///         eprintln!("{event}");
    ///     }
    /// });
    /// # let _ = layer;
    /// ```
    pub fn level(&self) -> EventLevel {
        match self {
            Self::Stored { .. } | Self::DeliveryStarted { .. } | Self::Interrupted { .. } => {
                EventLevel::Debug
            }
            Self::Refused { error, .. } => match error.kind() {
                ErrorKind::Busy | ErrorKind::TooManyUploads | ErrorKind::QuotaExceeded => {
                    EventLevel::Warn
                }
                _ => EventLevel::Info,
            },
            Self::Created { .. }
            | Self::Resumed { .. }
            | Self::Completed { .. }
            | Self::TakenOver { .. }
            | Self::DeliveryEnded { .. }
            | Self::RecordLate { .. }
            | Self::FileRemoved { .. }
            | Self::Swept(_) => EventLevel::Info,
            Self::DeliveryFailed { .. } => EventLevel::Warn,
            Self::Store(StoreEvent::Skipped { .. } | StoreEvent::RenewalFailed { .. }) => {
                EventLevel::Warn
            }
            Self::StoreFailed { .. }
            | Self::Store(_)
            | Self::SetAside { .. }
            | Self::SweepFailed { .. }
            | Self::MissingUpload { .. } => EventLevel::Error,
        }
    }
}

/// One line for a log. Errors are written with all their causes.
impl fmt::Display for Event<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Created { upload } => {
                write!(f, "upload {} is created", upload.id)?;
                match upload.length {
                    Some(length) => write!(f, " with {length} bytes"),
                    None => Ok(()),
                }
            }
            Self::Resumed { upload, received } => {
                write!(f, "upload {} is resumed after {received} bytes", upload.id)
            }
            Self::Stored {
                upload,
                offset,
                bytes,
                duplicate,
                progress,
                elapsed,
            } => {
                let (id, received) = (upload.id, progress.received);
                write!(f, "stored {bytes} bytes at {offset} of upload {id}")?;
                if *duplicate > 0 {
                    write!(f, ", {duplicate} of them again")?;
                }
                write!(f, ", which has {received} now, in {elapsed:.1?}")
            }
            Self::Completed { upload } => write!(f, "upload {} is complete", upload.id),
            Self::Refused { upload, error, .. } => about(f, "refused a request", *upload, error),
            Self::TakenOver { upload, error, .. } => {
                about(f, "a request gave way to another", *upload, error)
            }
            Self::Interrupted { upload, error, .. } => {
                about(f, "the client of a request has gone", *upload, error)
            }
            Self::StoreFailed { upload, error } => about(f, "the store failed", *upload, error),
            Self::Store(event) => write!(f, "the store {event}"),
            Self::DeliveryStarted { upload, attempt } => {
                let id = upload.id;
                write!(f, "attempt {attempt} to deliver upload {id} has started")
            }
            Self::DeliveryEnded {
                upload,
                attempt,
                status,
                verdict,
                elapsed,
                ..
            } => {
                let id = upload.id;
                let meaning = match verdict {
                    Verdict::Delivered => "delivered",
                    Verdict::Rejected => "rejected",
                    Verdict::RefusedNow => "refused for now",
                    Verdict::Failed => "failed",
                };
                write!(
                    f,
                    "upload {id} is {meaning} by attempt {attempt}, with {status} in {elapsed:.1?}"
                )
            }
            Self::DeliveryFailed {
                upload,
                attempt,
                error,
                ..
            } => {
                let id = upload.id;
                let error = Chain(*error);
                write!(
                    f,
                    "attempt {attempt} to deliver upload {id} failed: {error}"
                )
            }
            Self::RecordLate {
                upload,
                tries,
                elapsed,
            } => {
                let id = upload.id;
                write!(
                    f,
                    "the record of upload {id} is written, {elapsed:.1?} late, in try {tries}"
                )
            }
            Self::SetAside {
                upload,
                attempts,
                error,
            } => {
                let id = upload.id;
                let error = Chain(*error);
                write!(
                    f,
                    "upload {id} is set aside after attempt {attempts}: {error}"
                )
            }
            Self::FileRemoved {
                upload,
                status,
                error,
            } => {
                write!(f, "upload {} is removed", upload.id)?;
                if let Some(status) = status {
                    write!(f, ", rejected with {status}")?;
                }
                match error {
                    Some(error) => write!(f, ": {}", Chain(*error)),
                    None => Ok(()),
                }
            }
            Self::Swept(swept) => write!(
                f,
                "swept {} abandoned uploads, {} undelivered ones and {} records",
                swept.abandoned, swept.undelivered, swept.records
            ),
            Self::SweepFailed { error } => write!(f, "a sweep failed: {}", Chain(*error)),
            Self::MissingUpload { path } => write!(
                f,
                "a handler asked for the upload of a request for `{}`, which is none for this \
                 layer",
                path.escape_debug()
            ),
        }
    }
}

fn about(
    f: &mut fmt::Formatter<'_>,
    what: &str,
    upload: Option<&UploadId>,
    error: &Error,
) -> fmt::Result {
    f.write_str(what)?;
    if let Some(id) = upload {
        write!(f, ", upload {id}")?;
    }
    write!(f, ": {}", Chain(error))
}

type Hook = Arc<dyn Fn(&Event<'_>) + Send + Sync>;

/// The hook for events.
#[derive(Clone, Default)]
pub(crate) struct Events(Option<Hook>);

impl Events {
    pub(crate) fn new(hook: impl Fn(&Event<'_>) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    /// Watches for a handler that misses an upload in the request for `uri`, if that is told to
    /// anything.
    pub(crate) fn watch(&self, uri: &Uri) -> Watch {
        let is_on = self.0.is_some();
        #[cfg(feature = "tracing")]
        let is_on = is_on || forward::is_on();
        let path = uri
            .path_and_query()
            .filter(|_| is_on && cfg!(feature = "axum"));
        Watch(path.map(|path| (self.clone(), path.clone())))
    }

    /// Calls the hook. If it panics, that is all that happens.
    pub(crate) fn emit(&self, event: &Event<'_>) {
        #[cfg(feature = "tracing")]
        call_hook(|| forward::forward(event));
        if let Some(hook) = &self.0 {
            call_hook(|| hook(event));
        }
    }
}

/// A request that is passed to the inner service.
pub(crate) struct Watch(Option<(Events, PathAndQuery)>);

/// In the extensions of a response: the handler has asked for an upload that was missing.
#[derive(Clone)]
#[cfg_attr(
    not(feature = "axum"),
    allow(dead_code, reason = "the extractor makes it")
)]
pub(crate) struct Missed;

impl Watch {
    /// Tells that the handler has missed an upload, if it has.
    pub(crate) fn look_at<B>(&self, response: &mut Response<B>) {
        let Some((events, path)) = &self.0 else {
            return;
        };
        // Another layer outside of this one tells nothing.
        if response.extensions_mut().remove::<Missed>().is_some() {
            events.emit(&Event::MissingUpload { path: path.path() });
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Events").field(&self.0.is_some()).finish()
    }
}
