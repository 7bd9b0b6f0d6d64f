use std::{convert::Infallible, fmt, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    Admission, Dialect, DigestAlgorithm, IdentityRule, Limits, Refusal, ResponseBody, Resumable,
    Retention, Scope, Store, StoreError, UploadError,
    config::Config,
    engine::Engine,
    engine::deliver::{self, Asks, Delivered},
    protocol::chunked::answer,
    protocol::chunked::{Answers, Dialects},
    store::{Swept, Upload},
};

/// Layer that applies [`Resumable`], which answers upload requests and hands finished files on.
///
/// It has no type parameter: the store is erased in [`ResumableLayer::new`]. All `with_*` setters
/// have safe defaults; `with_path` is the one most people need.
///
/// ```
/// use std::time::Duration;
/// use tower_resumable::{Limits, MemoryStore, ResumableLayer};
///
/// let layer = ResumableLayer::new(MemoryStore::default())
///     .with_path("/files/upload")
///     .with_limits(Limits::default().file_size(10 << 30))
///     .with_delivery_timeout(Duration::from_secs(20));
/// # let _ = layer;
/// ```
#[derive(Clone)]
#[must_use]
pub struct ResumableLayer {
    pub(crate) engine: Arc<Engine>,
}

impl ResumableLayer {
    /// A layer that keeps chunks in `store` and answers on the path `/upload`.
    pub fn new(store: impl Store) -> Self {
        Self {
            engine: Arc::new(Engine {
                config: Config::default(),
                store: Arc::new(store),
                deliveries: Arc::default(),
                ledger: Arc::default(),
            }),
        }
    }

    /// Answers on this path instead of `/upload`.
    ///
    /// The path is compared as the layer sees it: inside an axum `nest`, without the prefix.
    pub fn with_path(self, path: impl Into<String>) -> Self {
        self.with_paths([path.into()])
    }

    /// Answers on these paths.
    pub fn with_paths<P: Into<String>>(self, paths: impl IntoIterator<Item = P>) -> Self {
        self.with(|config| config.paths = paths.into_iter().map(Into::into).collect())
    }

    /// Answers where this says so, whatever the paths are set to.
    ///
    /// ```
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_matcher(|parts| parts.uri.path().ends_with("/upload"));
    /// # let _ = layer;
    /// ```
    pub fn with_matcher(self, matcher: impl Fn(&Parts) -> bool + Send + Sync + 'static) -> Self {
        self.with(|config| config.matcher = Some(Arc::new(matcher)))
    }

    /// Understands one more client, or a known one that was told to use other names than its
    /// defaults: a dialect takes the place of the one with the same name.
    ///
    /// By itself the layer understands [Resumable.js](crate::ResumableJs),
    /// [flow.js](Dialect::flow_js), [Dropzone](Dialect::dropzone) and
    /// [Fine Uploader](Dialect::fine_uploader).
    ///
    /// ```
    /// use tower_resumable::{Dialect, MemoryStore, ResumableJs, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_dialect(ResumableJs::new().with_namespace("up_"))
    ///     .with_dialect(Dialect::simple_uploader());
    /// # let _ = layer;
    /// ```
    pub fn with_dialect(self, dialect: impl Into<Dialect>) -> Self {
        self.with(|config| config.dialects.add(dialect.into()))
    }

    /// Understands these clients and no others.
    pub fn with_dialects(self, dialects: impl IntoIterator<Item = Dialect>) -> Self {
        self.with(|config| config.dialects = Dialects::only(dialects))
    }

    /// Whether a form that has none of the clients' fields is a whole file, as from a page without
    /// JavaScript, from `curl -F file=@…`, or from Dropzone if the file is small; and a `POST` or `PUT`
    /// of `application/octet-stream`, whose name can be in `Content-Disposition`. `true` by default.
    ///
    /// It is delivered like any other, and may have as many bytes as a
    /// [chunk](Limits::chunk_size). Each such request is an upload of its own. What has
    /// a field or a header whose name contains `chunk` or is `offset`, `Content-Range` or `Upload-…` is
    /// a part of a file, from a client that the layer was not told of: a form of that kind is refused,
    /// a raw body passes.
    pub fn with_plain_uploads(self, accept: bool) -> Self {
        self.with(|config| config.plain_uploads = accept)
    }

    /// Names the owner of each upload, from what an outer layer knows of the request.
    ///
    /// Uploads of different scopes can neither see nor touch each other, even if all their fields
    /// are equal. Without this hook all requests share one scope. It is asked before a byte of the body is
    /// read.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower_resumable::{MemoryStore, Refusal, ResumableLayer, Scope};
    ///
    /// #[derive(Clone)]
    /// struct User(String);
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_scope(|parts| {
    ///     match parts.extensions.get::<User>() {
    ///         Some(user) => Ok(Scope::new(&user.0)),
    ///         None => Err(Refusal::new(StatusCode::UNAUTHORIZED, "sign in first")),
    ///     }
    /// });
    /// # let _ = layer;
    /// ```
    pub fn with_scope(
        self,
        scope: impl Fn(&Parts) -> Result<Scope, Refusal> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.hooks.scope = Some(Arc::new(scope)))
    }

    /// Asks the application about every request on an upload path, with all that it declares: tests,
    /// chunks, questions, cancellations, and once more before a file is handed over.
    ///
    /// The hook takes what it needs of the request, and answers in its own time. What it refuses stores
    /// nothing and learns nothing. A file that is refused for good [before its delivery](crate::Purpose::Deliver)
    /// is removed; [`deliver`](Self::deliver) does not ask, because then it is the application itself that
    /// hands it over. Late duplicates of a delivered file are asked about like all chunks.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{MemoryStore, Refusal, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// # async fn free_bytes(_user: String) -> u64 { 5 }
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_admission(|request| {
    ///     let user = request.scope().to_owned();
    ///     let size = request.upload().map_or(0, |upload| upload.total);
    ///     async move {
    ///         match size > free_bytes(user).await {
    ///             true => Err(Refusal::new(StatusCode::INSUFFICIENT_STORAGE, "no room for that")),
    ///             false => Ok(()),
    ///         }
    ///     }
    /// });
    /// let test = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
    ///             &resumableChunkNumber=1&resumableChunkSize=9";
    /// let answer = layer.layer(inner).oneshot(Request::get(test).body(String::new())?).await?;
    /// assert_eq!(answer.status(), 503); // 507 is "not now"
    /// assert_eq!(answer.headers()["x-resumable-status"], "507");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_admission<A>(
        self,
        admission: impl Fn(&Admission<'_>) -> A + Send + Sync + 'static,
    ) -> Self
    where
        A: Future<Output = Result<(), Refusal>> + Send + 'static,
    {
        let boxed = move |asked: &Admission<'_>| Box::pin(admission(asked)) as Pin<Box<_>>;
        self.with(|config| config.hooks.admission = Some(Arc::new(boxed)))
    }

    /// Lets the application look at the first bytes of each file, up to 8 KiB: when they come, and once
    /// more before the file is handed over (a first chunk can be shorter than that, and can come last).
    ///
    /// What it refuses for good is removed. It shall be quick: it runs on the async threads. A file's
    /// beginning says what it wants to be taken for, not what it is: what must be safe is to be checked as a
    /// whole, by the service behind.
    ///
    /// ```
    /// use http::StatusCode;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{MemoryStore, Refusal, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_sniff(|head, _upload| {
    ///     match infer::is_image(head) || infer::is_video(head) {
    ///         true => Ok(()),
    ///         false => Err(Refusal::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "pictures only")),
    ///     }
    /// });
    /// let chunk = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
    ///              &resumableChunkNumber=1&resumableChunkSize=9&resumableType=image%2Fpng";
    /// let program = Request::post(chunk).body("\x7fELF\x02\x01\x01\0\0".to_owned())?;
    /// let answer = layer.layer(inner).oneshot(program).await?;
    /// assert_eq!(answer.headers()["x-resumable-status"], "415");
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_sniff(
        self,
        sniff: impl Fn(&[u8], &Upload) -> Result<(), Refusal> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.hooks.sniff = Some(Arc::new(sniff)))
    }

    /// What clients may make the layer do; see [`Limits`] for all of them and their defaults.
    pub fn with_limits(self, limits: Limits) -> Self {
        self.with(|config| config.limits = limits)
    }

    /// What makes two chunks belong to the same upload; [`IdentityRule::Full`] by default.
    pub fn with_identity(self, rule: IdentityRule) -> Self {
        self.with(|config| config.identity = rule)
    }

    /// Answers a `GET` on an upload path that has this parameter in its query with the list of what
    /// the request's [scope](Self::with_scope) has not finished yet: names, sizes, and how many bytes
    /// are stored. Not answered by default: without scopes it is everybody's.
    ///
    /// The store looks at all its uploads for it.
    ///
    /// ```
    /// use http_body_util::BodyExt;
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{MemoryStore, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_list_parameter("unfinished");
    /// let service = layer.layer(inner);
    /// let chunk = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
    ///              &resumableChunkNumber=1&resumableChunkSize=5";
    /// let chunk = Request::post(chunk).body("hello".to_owned())?;
    /// service.clone().oneshot(chunk).await?;
    ///
    /// let list = Request::get("/upload?unfinished").body(String::new())?;
    /// let list = service.oneshot(list).await?.into_body().collect().await?.to_bytes();
    /// let list: serde_json::Value = serde_json::from_slice(&list)?;
    /// assert_eq!(list["uploads"][0]["identifier"], "9-a");
    /// assert_eq!(list["uploads"][0]["received"], 5);
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_list_parameter(self, name: impl Into<String>) -> Self {
        self.with(|config| config.list_parameter = Some(name.into()))
    }

    /// Checks each chunk against the digest that its client puts into this field, in the query or in
    /// the form before the file: hexadecimal or base64. A chunk without it is not checked.
    ///
    /// A chunk that is not what was sent is not stored, and the client is told to send it again. A
    /// `Content-Digest` or `Repr-Digest` header with SHA-256 or SHA-512 ([RFC 9530]) is always checked:
    /// it is about the whole body, a form with its fields included.
    ///
    /// ```
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{DigestAlgorithm, MemoryStore, ResumableLayer, UploadError};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_chunk_digest("crc", DigestAlgorithm::Crc32);
    /// let chunk = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
    ///              &resumableChunkNumber=1&resumableChunkSize=9&crc=cbf43926";
    /// let broken = Request::post(chunk).body("987654321".to_owned())?;
    /// let answer = layer.layer(inner).oneshot(broken).await?;
    /// assert_eq!(answer.status(), 503);
    /// let error = answer.extensions().get::<UploadError>();
    /// assert_eq!(error.map(UploadError::code), Some("digest_mismatch"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [RFC 9530]: https://www.rfc-editor.org/rfc/rfc9530
    pub fn with_chunk_digest(self, field: impl Into<String>, algorithm: DigestAlgorithm) -> Self {
        self.with(|config| config.chunk_digest = Some((field.into(), algorithm)))
    }

    /// Checks each finished file against the digest that its client puts into this field of the request
    /// that completes it: hexadecimal or base64. A file without it is not checked.
    ///
    /// With [`DigestAlgorithm::Crc32`] that costs nothing, because [`FileStore`](crate::FileStore)
    /// knows it. For all others the file is read once more, before it is handed over. A file that is
    /// not what was declared is removed and never handed over; the client is refused, and can send it
    /// again from the beginning.
    ///
    /// ```
    /// use tower_resumable::{DigestAlgorithm, MemoryStore, ResumableLayer};
    ///
    /// // new Resumable({ query: file => ({ sha256: file.sha256 }), … })
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_file_digest("sha256", DigestAlgorithm::Sha256);
    /// # let _ = layer;
    /// ```
    pub fn with_file_digest(self, field: impl Into<String>, algorithm: DigestAlgorithm) -> Self {
        self.with(|config| config.file_digest = Some((field.into(), algorithm)))
    }

    /// How long a request waits for the inner service's answer before it is told to try again; 60
    /// seconds by default. The inner service goes on, and the next try gets its answer.
    pub fn with_delivery_timeout(self, timeout: Duration) -> Self {
        self.with(|config| config.delivery_timeout = timeout)
    }

    /// How long the inner service's answer is kept for retries, late duplicates and tests; five
    /// minutes by default. After that the same file starts a new upload.
    pub fn with_record_lifetime(self, lifetime: Duration) -> Self {
        self.with(|config| config.record_lifetime = lifetime)
    }

    /// How many bytes of the inner service's answer are kept; 64 KiB by default. The body of a
    /// longer one goes to the completing request only.
    pub fn with_record_body(self, bytes: usize) -> Self {
        self.with(|config| config.record_body = bytes)
    }

    /// How long an answer that tells the client to try again is held back, at the least; 250 ms by
    /// default. Resumable.js would try again at once, a hundred times.
    pub fn with_hold_back(self, delay: Duration) -> Self {
        self.with(|config| config.hold_back = delay)
    }

    /// Changes or replaces the layer's own error answers.
    ///
    /// The status decides what the client does: Resumable.js gives up on 400, 404, 415, 500 and 501
    /// and tries again on all others.
    pub fn with_error_response(
        self,
        change: impl Fn(&UploadError, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.error_response = Some(Arc::new(change)))
    }

    /// The complete uploads that the inner service has not taken yet: it failed, or the process
    /// died before it could answer.
    ///
    /// Their clients may never come back, so an application that starts again asks for them and
    /// hands each to [`deliver`](Self::deliver). Other servers of the same store may be at work on
    /// some of them; that does no harm.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn undelivered(&self) -> Result<Vec<Upload>, StoreError> {
        self.engine.store.undelivered().await
    }

    /// Hands a complete upload to `inner`, as if `request` had just completed it, and records the
    /// answer; for [`undelivered`](Self::undelivered) uploads. If another request is about to do so
    /// this waits for its answer.
    ///
    /// `inner` is the service that the layer is put onto, and `request` what it shall see, with what
    /// outer layers would have added (such as the user that [`Upload::scope`] names). The
    /// [`CompletedUpload`](crate::CompletedUpload) comes from the layer.
    ///
    /// # Errors
    ///
    /// [`DeliveryFailed`](UploadError::DeliveryFailed) if the inner service fails, or answers with
    /// a 5xx; the upload can be delivered again then. [`DeliveryPending`](UploadError::DeliveryPending)
    /// if that takes longer than the [delivery timeout](Self::with_delivery_timeout).
    /// [`Superseded`](UploadError::Superseded) if it is gone. Those of the store.
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
    /// for upload in layer.undelivered().await? {
    ///     let request = Request::post("/upload").body(Body::empty())?;
    ///     if let Err(error) = layer.deliver(upload, app.clone(), request).await {
    ///         eprintln!("not delivered yet: {error}");
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
    ) -> Result<Response<ResponseBody<R>>, UploadError>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
    {
        match deliver::deliver(&self.engine, inner, request, upload, Asks::Nobody).await {
            Ok(Delivered { record, response }) => {
                Ok(response.unwrap_or_else(|| answer::recorded(Answers::default(), record)))
            }
            Err((error, _)) => Err(error),
        }
    }

    /// Removes what is older than `retention` allows, once. It never touches an upload that a
    /// request or a delivery is busy with, and never a file that was handed over.
    ///
    /// # Errors
    ///
    /// Those of the store.
    pub async fn sweep(&self, retention: Retention) -> Result<Swept, StoreError> {
        let swept = self.engine.store.sweep(retention.expiry()).await;
        self.engine.ledger.distrust();
        swept
    }

    /// Sweeps now and then every `period`, for ever. The layer spawns nothing by itself: without
    /// this, what clients have given up stays where it is.
    ///
    /// A sweep that fails is tried again after the next period; to hear of that, call
    /// [`sweep`](Self::sweep) in a loop of your own.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_resumable::{MemoryStore, ResumableLayer, Retention};
    ///
    /// # #[tokio::main]
    /// # async fn main() {
    /// let layer = ResumableLayer::new(MemoryStore::default());
    /// let retention = Retention::default().abandoned(Duration::from_secs(24 * 60 * 60));
    /// let sweeping = tokio::spawn(layer.sweep_every(Duration::from_secs(600), retention));
    /// # sweeping.abort();
    /// # }
    /// ```
    pub fn sweep_every(
        &self,
        period: Duration,
        retention: Retention,
    ) -> impl Future<Output = Infallible> + Send + 'static {
        let layer = self.clone();
        async move {
            loop {
                let _ = layer.sweep(retention).await;
                tokio::time::sleep(period).await;
            }
        }
    }

    fn with(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.engine.config.clone();
        change(&mut config);
        Self {
            engine: Arc::new(Engine {
                config,
                store: Arc::clone(&self.engine.store),
                deliveries: Arc::clone(&self.engine.deliveries),
                ledger: Arc::clone(&self.engine.ledger),
            }),
        }
    }
}

impl fmt::Debug for ResumableLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableLayer")
            .field("config", &self.engine.config)
            .finish_non_exhaustive()
    }
}

// No bounds on `S` here: they would surface as an inference error far away. All of them are on
// `impl Service`.
impl<S> Layer<S> for ResumableLayer {
    type Service = Resumable<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Resumable {
            inner,
            engine: Arc::clone(&self.engine),
        }
    }
}
