use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, request::Parts};

use crate::{
    body::digest::DigestAlgorithm,
    delivery::Delivery,
    error::{Error, Reason},
    events::Events,
    hooks::Hooks,
    limits::Limits,
    protocol::Protocols,
    retention::Retention,
    route::Route,
};

type ErrorResponse = Arc<dyn Fn(&Error, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

/// The settings of a layer.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) route: Route,
    pub(crate) protocols: Protocols,
    pub(crate) hooks: Hooks,
    pub(crate) limits: Limits,
    pub(crate) digests: Digests,
    pub(crate) delivery: Delivery,
    pub(crate) retention: Retention,
    pub(crate) error_response: Option<ErrorResponse>,
    pub(crate) events: Events,
    /// How long a retryable error is held back, because clients try again without a pause.
    pub(crate) hold_back: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            route: Route::default(),
            protocols: Protocols::default(),
            hooks: Hooks::default(),
            limits: Limits::default(),
            digests: Digests::default(),
            delivery: Delivery::default(),
            retention: Retention::default(),
            error_response: None,
            events: Events::default(),
            hold_back: Duration::from_millis(250),
        }
    }
}

impl Config {
    /// Whether a request is for a path of the layer.
    pub(crate) fn matches(&self, head: &Parts) -> bool {
        let creation_path = || self.protocols.creation_path(head.uri.path());
        let is_upload = || creation_path().is_some_and(|path| self.route.path() == Some(path));
        self.route.matches(head) || is_upload()
    }

    /// Checks declared lengths against the limits.
    pub(crate) fn check(&self, file: Option<u64>, chunk: Option<u64>) -> Result<(), Error> {
        let limit = self.limits.file_size;
        if file.is_some_and(|bytes| bytes > limit) {
            return Err(Reason::FileTooLarge { limit }.into());
        }
        let limit = self.limits.chunk_size;
        if chunk.is_some_and(|bytes| bytes > limit) {
            return Err(Reason::ChunkTooLarge { limit }.into());
        }
        Ok(())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("route", &self.route)
            .field("protocols", &self.protocols)
            .field("limits", &self.limits)
            .field("delivery", &self.delivery)
            .field("retention", &self.retention)
            .finish_non_exhaustive()
    }
}

/// The fields in which clients declare digests of chunks and files.
///
/// A digest in a field is hexadecimal or base64. A request without the field is not checked. The
/// headers `Content-Digest` and `Repr-Digest` ([RFC 9530]), with SHA-256 or SHA-512, are always
/// checked. They cover the whole body of a request, including the fields of a form.
///
/// ```
/// use http::Request;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_resumable::{
///     DigestAlgorithm, Digests, Error, ErrorKind, MemoryStore, ResumableLayer,
/// };
/// # use http::Response;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let inner = service_fn(async |_: Request<String>| {
/// #     Ok::<_, std::io::Error>(Response::new(String::new()))
/// # });
/// let digests = Digests::default().with_chunk_field("crc", DigestAlgorithm::Crc32);
/// let layer = ResumableLayer::new(MemoryStore::default()).with_digests(digests);
/// let chunk = "/upload?resumableIdentifier=9-a&resumableTotalSize=9\
///              &resumableChunkNumber=1&resumableChunkSize=9&crc=cbf43926";
/// let broken = Request::post(chunk).body("987654321".to_owned())?;
/// let response = layer.layer(inner).oneshot(broken).await?;
/// assert_eq!(response.status(), 503);
/// let error = response.extensions().get::<Error>();
/// assert_eq!(error.map(Error::kind), Some(ErrorKind::DigestMismatch));
/// # Ok(())
/// # }
/// ```
///
/// [RFC 9530]: https://www.rfc-editor.org/rfc/rfc9530
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Digests {
    pub(crate) chunk: Option<(String, DigestAlgorithm)>,
    pub(crate) file: Option<(String, DigestAlgorithm)>,
}

impl Digests {
    /// Sets the field with the digest of the chunk. In a form it has to come before the file.
    /// Default: none.
    ///
    /// A chunk that does not match is not stored, and the client is told to send it again.
    pub fn with_chunk_field(
        mut self,
        field: impl Into<String>,
        algorithm: DigestAlgorithm,
    ) -> Self {
        self.chunk = Some((field.into(), algorithm));
        self
    }

    /// Sets the field with the digest of the whole file, in the request that completes the upload.
    /// Default: none.
    ///
    /// The file is read once more before it is delivered. It is not read for
    /// [`Crc32`](DigestAlgorithm::Crc32) if the store already knows that of the file, as
    /// [`FileStore`](crate::FileStore) does. A file that does not match is removed and never
    /// delivered. The client is refused, and can send the file again from the start.
    pub fn with_file_field(mut self, field: impl Into<String>, algorithm: DigestAlgorithm) -> Self {
        self.file = Some((field.into(), algorithm));
        self
    }
}
