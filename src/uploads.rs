use std::{convert::Infallible, fmt, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    engine::{
        Engine,
        deliver::{Delivered, deliver},
        verify::Ask,
    },
    error::Error,
    model::{
        state::Record,
        upload::{Upload, UploadId},
    },
    response::ResponseBody,
    store::{Filter, Page, Swept},
};

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
    /// This is for uploads whose clients may not come back: the process died before the delivery,
    /// or the inner service failed. `inner` is the service that the layer is applied to. It gets
    /// `request`, which needs what outer layers would have added, such as the user that
    /// [`Upload::scope`] names. The layer adds the [`CompletedUpload`](crate::CompletedUpload). The
    /// [admission hook](crate::ResumableLayer::with_admission) is not called. The file is checked
    /// with the other hooks and [digests](crate::Digests) of the layer.
    ///
    /// # Errors
    ///
    /// * [`DeliveryFailed`](crate::ErrorKind::DeliveryFailed) if the inner service fails, or the
    ///   file cannot be read. The upload can be delivered again.
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
    ///
    /// ```
    /// use axum::{Router, body::Body, http::Request, routing::post};
    /// use tower_resumable::{CompletedUpload, FileStore, ResumableLayer, store::Filter};
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
    /// let uploads = layer.uploads();
    /// let mut after = None;
    /// loop {
    ///     let page = uploads.list(&Filter::complete(), after.as_ref()).await?;
    ///     for listed in page.uploads {
    ///         let request = Request::post("/upload").body(Body::empty())?;
    ///         if let Err(error) = uploads.deliver(listed.upload, app.clone(), request).await {
    ///             eprintln!("not delivered yet: {error}");
    ///         }
    ///     }
    ///     after = page.next;
    ///     if after.is_none() {
    ///         break;
    ///     }
    /// }
    /// let app: Router = app.layer(layer);
    /// # let _ = app;
    /// # Ok(())
    /// # }
    /// ```
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
        match deliver(&self.engine, inner, request, upload, Ask::Nothing).await {
            Ok(Delivered { record, response }) => Ok(response.unwrap_or_else(|| replay(record))),
            Err((error, _)) => Err(error),
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
        Ok(swept?)
    }

    /// Returns a future that sweeps at once, and again `period` after the end of each sweep. It
    /// never completes. Spawn it: the layer spawns no tasks of this kind by itself.
    ///
    /// The error of a sweep is dropped, and the next sweep tries again. Use [`sweep`](Self::sweep)
    /// in a loop to see errors.
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
                // The next sweep tries again.
                let _ = uploads.sweep().await;
                tokio::time::sleep(period).await;
            }
        }
    }

    /// Waits until no upload request and no delivery of this layer is running.
    ///
    /// For a graceful shutdown, call it when the server accepts no more requests. A delivery goes
    /// on after its client has gone. If the process ends before the delivery does, the upload is
    /// delivered again after the restart.
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
