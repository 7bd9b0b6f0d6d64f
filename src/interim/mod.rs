//! Responses that come before the one to a request.

#[cfg(feature = "interim")]
mod io;

use std::{fmt, sync::Arc};

use http::Response;

#[cfg(feature = "interim")]
pub use self::io::{InterimGuard, InterimIo, Interims};

/// Sends interim responses (1xx) to the client of a request. A server puts it into the extensions
/// of the request.
///
/// hyper has no way to send such a response, and its `Service` returns one response. The layer uses
/// an `Interim` to tell clients of the [IETF draft](crate::Protocol::ietf_draft) the URL of their
/// upload before its bytes arrive, and how many bytes are stored: in responses with the status 104,
/// at most one a second. It calls it only for clients that understand that.
///
/// For HTTP/1, `InterimIo` (feature `interim`) makes one: it wraps the socket. For HTTP/2, hyper 1
/// has none (hyper pull request 4114 would add it). A server that has one only has to insert an
/// `Interim`. A response must not be sent to a client of HTTP/1.0.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use http::{Request, header};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_resumable::{Interim, MemoryStore, ResumableLayer};
/// # use http::Response;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let inner = service_fn(async |_: Request<String>| {
/// #     Ok::<_, std::io::Error>(Response::new("taken".to_owned()))
/// # });
/// let sent = Arc::new(Mutex::new(Vec::new()));
/// let noted = Arc::clone(&sent);
/// let interim = Interim::new(move |response| {
///     let location = response.headers()[header::LOCATION].clone();
///     noted.lock().unwrap().push((response.status().as_u16(), location));
/// });
/// let request = Request::post("/upload")
///     .header("upload-draft-interop-version", "8")
///     .header("upload-complete", "?1")
///     .extension(interim)
///     .body("the whole file".to_owned())?;
/// let service = ResumableLayer::new(MemoryStore::default()).layer(inner);
/// let response = service.oneshot(request).await?;
/// assert_eq!(response.headers()["upload-complete"], "?1");
/// let sent = sent.lock().unwrap();
/// assert_eq!(sent[0].0, 104);
/// assert!(sent[0].1.to_str()?.starts_with("/upload?upload="));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Interim(Arc<SendFn>);

type SendFn = dyn Fn(&Response<()>) + Send + Sync;

impl Interim {
    /// Creates one that sends responses with this function. It must not block, and may drop a
    /// response.
    pub fn new(send: impl Fn(&Response<()>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    /// Sends a response. Its status has to be 1xx.
    pub fn send(&self, response: &Response<()>) {
        (self.0)(response);
    }
}

impl fmt::Debug for Interim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interim").finish_non_exhaustive()
    }
}
