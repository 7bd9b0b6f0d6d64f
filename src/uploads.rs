use std::{convert::Infallible, fmt, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::task::{JoinError, JoinSet};
use tower_service::Service;

use crate::{
    delivery::Verdict,
    engine::{
        Engine,
        deliver::{Delivered, deliver},
        verify::By,
    },
    error::{Error, ErrorKind, Reason},
    events::Event,
    limits::LONGEST,
    model::{
        BoxError,
        state::Record,
        upload::{Upload, UploadId},
    },
    response::ResponseBody,
    span::Context,
    store::{Filter, Listed, Page, Swept},
};

/// How many uploads are delivered at once in the background.
const AT_ONCE: usize = 8;

/// A shorter period would keep the store busy.
const SHORTEST_PERIOD: Duration = Duration::from_secs(1);

/// The operator's handle to the uploads of a layer: lists, delivers and sweeps them.
///
/// Returned by [`ResumableLayer::uploads`](crate::ResumableLayer::uploads). Clones share the
/// uploads of the layer.
#[derive(Clone)]
pub struct Uploads {
    engine: Engine,
}

impl Uploads {
    pub(crate) fn new(engine: Engine) -> Self {
        Self { engine }
    }

    /// Lists the uploads that are neither delivered nor rejected, in the order of their ids, in
    /// pages of at most [`Page::MAX`].
    ///
    /// `after` is the [`next`](Page::next) of the previous page, or `None` for the first page.
    ///
    /// # Errors
    ///
    /// [`Storage`](crate::ErrorKind::Storage) and other errors of the store.
    pub async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, Error> {
        Ok(self.engine.store.list(filter, after).await?)
    }

    /// Delivers a complete upload to `inner`, as if `request` had just completed it, and records
    /// the answer. If another request is delivering it, this waits for that answer. `Ok` contains
    /// the answer of the inner service, even if the service [rejected or refused](crate::Verdict)
    /// the file.
    ///
    /// This is for single uploads that an operator has looked at, such as those that were [set
    /// aside](crate::Event::SetAside): it does not wait for the pause after a failed attempt.
    /// [`deliver_all`](Self::deliver_all) delivers all that are due.
    ///
    /// `inner` is the service that the layer is applied to. It gets `request`, which needs what
    /// outer layers would have added, such as the user that [`Upload::scope`] names. The layer adds
    /// the [`CompletedUpload`](crate::CompletedUpload). The [admission
    /// hook](crate::ResumableLayer::with_admission) is not called. The file is checked with the
    /// other hooks and [digests](crate::Digests) of the layer.
    ///
    /// # Errors
    ///
    /// * [`DeliveryFailed`](crate::ErrorKind::DeliveryFailed) if the inner service fails, or the
    ///   file cannot be read. The upload can be delivered again.
    /// * [`SetAside`](crate::ErrorKind::SetAside) if the inner service fails, and the upload is
    ///   [set aside](crate::Delivery::with_max_attempts). This function can deliver it again.
    /// * [`DeliveryPending`](crate::ErrorKind::DeliveryPending) if the delivery takes longer than
    ///   the [timeout](crate::Delivery::with_timeout). It goes on.
    /// * [`Superseded`](crate::ErrorKind::Superseded) if the upload is absent or not complete.
    /// * [`Refused`](crate::ErrorKind::Refused) if the [hook](crate::ResumableLayer::with_sniff)
    ///   for the first bytes refuses the file,
    ///   [`FileDigestMismatch`](crate::ErrorKind::FileDigestMismatch), and
    ///   [`InvalidField`](crate::ErrorKind::InvalidField) if the declared digest is not valid. The
    ///   file is removed, unless the refusal is [retryable](Error::is_retryable).
    /// * [`Unsupported`](crate::ErrorKind::Unsupported) if the upload is a
    ///   [part](crate::Role::Part) of a file.
    /// * Errors of the store.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub async fn deliver<S, B, R>(
        &self,
        upload: Upload,
        inner: S,
        request: Request<B>,
    ) -> Result<Response<ResponseBody<R>>, Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
    {
        let upload = Box::new(upload);
        let delivered = deliver(&self.engine, inner, request, upload, None, By::Operator).await?;
        let Delivered {
            record, response, ..
        } = delivered;
        Ok(response.unwrap_or_else(|| replay(record)))
    }

    /// Delivers all complete uploads that are due, once, some of them at the same time. This is for
    /// uploads whose clients do not come back: the process died before the delivery, or the inner
    /// service failed.
    ///
    /// `inner` is the service that the layer is applied to. `make_request` makes the request for an
    /// upload, as for [`deliver`](Self::deliver): it should have no more rights than the
    /// [scope](Upload::scope) of the upload. An upload for which it returns an error is passed
    /// over.
    ///
    /// These uploads are not due:
    ///
    /// * An upload that a request or another server is delivering.
    /// * An upload whose last delivery failed, until the pause after that has ended. The pause
    ///   grows with each failure, up to an hour.
    /// * An upload that was [set aside](crate::Delivery::with_max_attempts).
    /// * An upload whose last delivery was [refused](Verdict::RefusedNow), for a day: it waits for
    ///   its client. Only this process knows that. After a restart the upload is due.
    ///
    /// Failures do not end the call. They are in the result, and are [events](crate::Event).
    ///
    /// # Errors
    ///
    /// Errors of the store when the uploads are listed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use tower_resumable::{CompletedUpload, FileStore, ResumableLayer};
    ///
    /// async fn finished(upload: CompletedUpload) -> String {
    ///     upload.safe_file_name()
    /// }
    ///
    /// # #[tokio::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path();
    /// let layer = ResumableLayer::new(FileStore::open(dir)?);
    /// let app = Router::new().route("/upload", post(finished));
    /// let deliveries = layer
    ///     .uploads()
    ///     .deliver_all(app.clone(), |_| Request::post("/upload").body(Body::empty()))
    ///     .await?;
    /// assert_eq!((deliveries.delivered, deliveries.failed.len()), (0, 0));
    /// let app: Router = app.layer(layer);
    /// # let _ = app;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn deliver_all<S, B, R, E>(
        &self,
        inner: S,
        make_request: impl Fn(&Upload) -> Result<Request<B>, E>,
    ) -> Result<Deliveries, Error>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        E: Into<BoxError>,
    {
        let (mut after, mut deliveries) = (None, Deliveries::default());
        let mut tasks = JoinSet::new();
        loop {
            let page = self.list(&Filter::complete(), after.as_ref()).await;
            let page = page.map_err(|error| self.engine.store_failed(None, error))?;
            for Listed { upload, .. } in page.uploads {
                let id = upload.id;
                let request = match make_request(&upload) {
                    Ok(request) => request,
                    Err(error) => {
                        let error = Error::new(Reason::DeliveryFailed, error);
                        error.mark_told();
                        self.engine.config.events.emit(&Event::DeliveryFailed {
                            upload: &upload,
                            attempt: 0,
                            elapsed: Duration::ZERO,
                            error: &error,
                        });
                        deliveries.failed.push((id, error));
                        continue;
                    }
                };
                let (engine, inner) = (self.engine.clone(), inner.clone());
                if tasks.len() >= AT_ONCE {
                    deliveries.add(tasks.join_next().await);
                }
                tasks.spawn(Context::current().run(async move {
                    let scope = upload.scope.clone();
                    let upload = Box::new(upload);
                    let delivered =
                        deliver(&engine, inner, request, upload, None, By::Background).await;
                    if let Err(error) = &delivered {
                        if !is_pending(error) {
                            engine.refused(Some(&id), Some(&scope), error);
                        }
                    }
                    (id, delivered.map(|delivered| delivered.verdict))
                }));
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        while let Some(ended) = tasks.join_next().await {
            deliveries.add(Some(ended));
        }
        Ok(deliveries)
    }

    /// Returns a future that [delivers all](Self::deliver_all) uploads that are due at once, and
    /// again `period` after the end of each round. `period` is at least one second and at most one
    /// year. The future never completes. Spawn it: the layer spawns no tasks of this kind by
    /// itself.
    ///
    /// With this, an upload whose delivery failed is delivered again even if its client does not
    /// come back. Failures are [events](crate::Event).
    ///
    /// ```
    /// use std::time::Duration;
    /// use axum::{Router, body::Body, http::Request};
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// # let app: Router = Router::new();
    /// let layer = ResumableLayer::new(MemoryStore::default());
    /// let deliveries = layer.uploads().deliver_every(
    ///     Duration::from_secs(60),
    ///     app.clone(),
    ///     |_| Request::post("/upload").body(Body::empty()),
    /// );
    /// let deliveries = tokio::spawn(deliveries);
    /// # deliveries.abort();
    /// # }
    /// ```
    pub fn deliver_every<S, B, R, E, F>(
        &self,
        period: Duration,
        inner: S,
        make_request: F,
    ) -> impl Future<Output = Infallible> + Send + use<S, B, R, E, F>
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
        E: Into<BoxError>,
        F: Fn(&Upload) -> Result<Request<B>, E> + Send + Sync,
    {
        let uploads = self.clone();
        async move {
            loop {
                // Everything in the result is an event too.
                let _ = uploads.deliver_all(inner.clone(), &make_request).await;
                sleep_for(period).await;
            }
        }
    }

    /// Removes once what is older than the [`Retention`](crate::Retention) of the layer allows, and
    /// records that have expired. Returns how many uploads were removed.
    ///
    /// It never removes an upload that a request is writing to or delivering, and never a file that
    /// was delivered.
    ///
    /// # Errors
    ///
    /// [`Storage`](crate::ErrorKind::Storage) and other errors of the store. What could be swept is
    /// swept.
    pub async fn sweep(&self) -> Result<Swept, Error> {
        let swept = self
            .engine
            .store
            .sweep(&self.engine.config.retention.expiry())
            .await;
        self.engine.quota.mark_stale();
        self.engine.outcomes.forget_old();
        let swept = swept?;
        if swept != Swept::default() {
            self.engine.config.events.emit(&Event::Swept(&swept));
        }
        Ok(swept)
    }

    /// Returns a future that sweeps at once, and again `period` after the end of each sweep.
    /// `period` is at least one second and at most one year. The future never completes. Spawn it:
    /// the layer spawns no tasks of this kind by itself.
    ///
    /// The error of a sweep is an [event](crate::Event::SweepFailed), and the next sweep tries
    /// again.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let layer = ResumableLayer::new(MemoryStore::default());
    /// let sweeper = tokio::spawn(layer.uploads().sweep_every(Duration::from_secs(600)));
    /// # sweeper.abort();
    /// # }
    /// ```
    pub fn sweep_every(&self, period: Duration) -> impl Future<Output = Infallible> + Send + use<> {
        let uploads = self.clone();
        async move {
            loop {
                if let Err(error) = uploads.sweep().await {
                    let event = Event::SweepFailed { error: &error };
                    uploads.engine.config.events.emit(&event);
                }
                sleep_for(period).await;
            }
        }
    }

    /// Returns what the layer has and does at the moment, for metrics. Looks at memory only.
    ///
    /// ```
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// let counts = ResumableLayer::new(MemoryStore::default()).uploads().counts();
    /// assert_eq!((counts.running, counts.unfinished_uploads), (0, None));
    /// ```
    pub fn counts(&self) -> Counts {
        let engine = &self.engine;
        let (waiting, set_aside) = engine.outcomes.counts();
        let mut counts = Counts {
            running: engine.active.count(),
            bodies: engine.bodies.count(),
            deliveries: engine.registry.count(),
            waiting,
            set_aside,
            ..Counts::default()
        };
        if let Some((uploads, bytes, spooled)) = engine.quota.counts() {
            counts.unfinished_uploads = Some(uploads);
            counts.unfinished_bytes = Some(bytes);
            counts.spooled_bytes = spooled;
        }
        counts
    }

    /// Waits until no upload request and no delivery of this layer is running.
    ///
    /// For a graceful shutdown, call it when the server accepts no more requests, and after the
    /// task of [`deliver_every`](Self::deliver_every) was aborted. A delivery goes on after its
    /// client has gone. If the process ends before the delivery does, the upload is delivered again
    /// after the restart.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default());
    /// layer.uploads().drain().await; // nothing is running
    /// # }
    /// ```
    pub async fn drain(&self) {
        self.engine.active.idle().await;
    }
}

/// What a layer has and does at the moment, for metrics: see [`Uploads::counts`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Uploads that are neither delivered nor rejected, as this process knows them. The store knows
    /// those of other servers better: see [`Uploads::list`]. `None` before the first new upload of
    /// this process, because the store is asked then.
    pub unfinished_uploads: Option<u64>,
    /// The declared bytes of these uploads.
    pub unfinished_bytes: Option<u64>,
    /// The most bytes that files may have which are spooled now, because their upload is not known
    /// yet.
    pub spooled_bytes: u64,
    /// Upload requests and deliveries that are running, including those whose client has gone.
    pub running: u64,
    /// Request bodies that are being read.
    pub bodies: u64,
    /// Deliveries that are running.
    pub deliveries: u64,
    /// Uploads that wait for another delivery, because the last one of this process has failed or
    /// was refused.
    pub waiting: u64,
    /// Uploads that this process has [set aside](crate::Event::SetAside).
    pub set_aside: u64,
}

/// What [`Uploads::deliver_all`] has done.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Deliveries {
    /// How many uploads the inner service took.
    pub delivered: u64,
    /// How many it rejected. Their files are removed.
    pub rejected: u64,
    /// How many it [refused](Verdict::RefusedNow) for now.
    pub refused: u64,
    /// How many were not due, or are still being delivered.
    pub pending: u64,
    /// The uploads whose delivery failed, and why.
    pub failed: Vec<(UploadId, Error)>,
}

type Attempt = (UploadId, Result<Verdict, Error>);

impl Deliveries {
    fn add(&mut self, ended: Option<Result<Attempt, JoinError>>) {
        // A task ends without a result only if the runtime does.
        let Some(Ok((id, ended))) = ended else {
            return;
        };
        match ended {
            Ok(Verdict::Delivered) => self.delivered += 1,
            Ok(Verdict::Rejected) => self.rejected += 1,
            Ok(Verdict::RefusedNow) => self.refused += 1,
            Ok(Verdict::Failed) => {}
            Err(error) if is_pending(&error) => self.pending += 1,
            Err(error) => self.failed.push((id, error)),
        }
    }
}

/// Whether a delivery in the background had nothing to do.
fn is_pending(error: &Error) -> bool {
    // Superseded: it was removed or delivered since it was listed.
    matches!(
        error.kind(),
        ErrorKind::DeliveryPending | ErrorKind::Superseded
    )
}

/// Pauses for the period of a background task.
async fn sleep_for(period: Duration) {
    tokio::time::sleep(period.clamp(SHORTEST_PERIOD, LONGEST)).await;
}

/// The recorded answer, as the inner service gave it.
fn replay<R>(record: Record) -> Response<ResponseBody<R>> {
    let body = record.body.unwrap_or_default();
    let mut response = Response::new(ResponseBody::answer(body));
    *response.status_mut() = record.status;
    *response.headers_mut() = record.headers;
    response
}

impl fmt::Debug for Uploads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Uploads").finish_non_exhaustive()
    }
}
