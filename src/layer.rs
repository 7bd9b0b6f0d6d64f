use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, request::Parts};
use tower_layer::Layer;

use crate::{
    IdentityRule, Resumable, ResumableJs, Store, UploadError, config::Config, deliver::Deliveries,
    store::DynStore,
};

/// Everything the clones of one layer share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn DynStore>,
    pub(crate) deliveries: Arc<Deliveries>,
}

/// Layer that applies [`Resumable`], which answers upload requests and hands finished files on.
///
/// It has no type parameter: the store is erased in [`ResumableLayer::new`]. All `with_*` setters
/// have safe defaults; `with_path` is the one most people need.
///
/// ```
/// use std::time::Duration;
/// use tower_resumable::{MemoryStore, ResumableLayer};
///
/// let layer = ResumableLayer::new(MemoryStore::default())
///     .with_path("/files/upload")
///     .with_max_file_size(10 << 30)
///     .with_delivery_timeout(Duration::from_secs(20));
/// # let _ = layer;
/// ```
#[derive(Clone)]
#[must_use]
pub struct ResumableLayer {
    shared: Arc<Shared>,
}

impl ResumableLayer {
    /// A layer that keeps chunks in `store` and answers on the path `/upload`.
    pub fn new(store: impl Store) -> Self {
        Self {
            shared: Arc::new(Shared {
                config: Config::default(),
                store: Arc::new(store),
                deliveries: Arc::default(),
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

    /// The names of the fields, where the client was told to use others than its defaults.
    pub fn with_dialect(self, dialect: ResumableJs) -> Self {
        self.with(|config| config.dialect = dialect)
    }

    /// Names the owner of each upload, from what an outer layer knows of the request.
    ///
    /// Uploads of different scopes can neither see nor touch each other, even if all their fields
    /// are equal. Without this hook all requests share one scope. An `Err` is the answer.
    ///
    /// ```
    /// use tower_resumable::{MemoryStore, ResumableLayer, UploadError};
    ///
    /// #[derive(Clone)]
    /// struct User(String);
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_scope(|parts| {
    ///     match parts.extensions.get::<User>() {
    ///         Some(user) => Ok(user.0.clone()),
    ///         None => Err(UploadError::Refused {
    ///             status: http::StatusCode::UNAUTHORIZED,
    ///             reason: "sign in first".into(),
    ///         }),
    ///     }
    /// });
    /// # let _ = layer;
    /// ```
    pub fn with_scope(
        self,
        scope: impl Fn(&Parts) -> Result<String, UploadError> + Send + Sync + 'static,
    ) -> Self {
        self.with(|config| config.scope = Some(Arc::new(scope)))
    }

    /// What makes two chunks belong to the same upload; [`IdentityRule::Full`] by default.
    pub fn with_identity(self, rule: IdentityRule) -> Self {
        self.with(|config| config.identity = rule)
    }

    /// Refuses files of more bytes than this. No limit by default.
    pub fn with_max_file_size(self, bytes: u64) -> Self {
        self.with(|config| config.max_file_size = bytes)
    }

    /// Refuses chunks of more bytes than this; 256 MiB by default.
    ///
    /// Resumable.js' last chunk can be nearly twice its `chunkSize`.
    pub fn with_max_chunk_size(self, bytes: u64) -> Self {
        self.with(|config| config.max_chunk_size = bytes)
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

    fn with(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = self.shared.config.clone();
        change(&mut config);
        Self {
            shared: Arc::new(Shared {
                config,
                store: Arc::clone(&self.shared.store),
                deliveries: Arc::clone(&self.shared.deliveries),
            }),
        }
    }
}

impl fmt::Debug for ResumableLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumableLayer")
            .field("config", &self.shared.config)
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
            shared: Arc::clone(&self.shared),
        }
    }
}
