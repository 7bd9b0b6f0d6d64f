//! The hooks of the application: who owns an upload, and which requests are admitted.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};

use crate::model::upload::{Scope, Upload};

/// The refusal of a request by the application: a status and a reason, or a whole response.
///
/// What the client gets depends on its protocol. A chunk client gets a status at which it stops
/// (400 for most of them), because it sends the chunk again after others. The status of the refusal
/// is in the header `x-resumable-status`. 408, 425, 429 and 5xx mean that the same request can
/// succeed later: they become 503.
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_resumable::Refusal;
///
/// let refusal = Refusal::new(StatusCode::FORBIDDEN, "members only");
/// assert!(!refusal.is_retryable());
///
/// // With headers and a body:
/// let refusal = Response::builder()
///     .status(429)
///     .header("retry-after", "30")
///     .body("one at a time, please".into())?;
/// let refusal = Refusal::from(refusal);
/// assert!(refusal.is_retryable());
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    reason: String,
    response: Option<Arc<Response<Bytes>>>,
}

impl Refusal {
    /// Creates a refusal with a status and a short reason. The client gets both as problem details
    /// ([RFC 9457]).
    ///
    /// [RFC 9457]: https://www.rfc-editor.org/rfc/rfc9457
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            response: None,
        }
    }

    /// The status that the application gave.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason that the application gave. `refused` if it gave a whole response.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether the same request can succeed later: the status is 408, 425, 429 or 5xx.
    pub fn is_retryable(&self) -> bool {
        matches!(self.status.as_u16(), 408 | 425 | 429 | 500..)
    }

    pub(crate) fn response(&self) -> Option<&Response<Bytes>> {
        self.response.as_deref()
    }
}

/// Refuses with the status, headers and body of a response.
impl From<Response<Bytes>> for Refusal {
    fn from(response: Response<Bytes>) -> Self {
        Self {
            status: response.status(),
            reason: "refused".to_owned(),
            response: Some(Arc::new(response)),
        }
    }
}

impl PartialEq for Refusal {
    fn eq(&self, other: &Self) -> bool {
        let answer = |refusal: &Self| {
            let response = refusal.response();
            response.map(|response| (response.headers().clone(), response.body().clone()))
        };
        self.status == other.status && self.reason == other.reason && answer(self) == answer(other)
    }
}

impl Eq for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refusal {}

/// The purpose of a request, for the [admission hook](crate::ResumableLayer::with_admission).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// Ask whether a chunk is stored.
    Test,
    /// Ask what is stored of an upload.
    Status,
    /// List the unfinished uploads of the scope.
    List,
    /// Create an upload that has no bytes yet.
    Create,
    /// Store a chunk or a whole file. A file part that comes before its fields, or a body of
    /// unknown length, has already been read and spooled, but is not part of an upload yet.
    Chunk,
    /// Deliver a complete file. A final refusal removes it.
    Deliver,
    /// Remove an upload.
    Cancel,
}

/// A request for the [admission hook](crate::ResumableLayer::with_admission), with all that it
/// declares. Do not trust what the client declares.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    purpose: Purpose,
    parts: &'a Parts,
    scope: &'a Scope,
    upload: Option<&'a Upload>,
}

impl<'a> Admission<'a> {
    /// The purpose of the request.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The head of the request, with the extensions that outer layers have added.
    pub fn parts(&self) -> &'a Parts {
        self.parts
    }

    /// The owner of the upload.
    pub fn scope(&self) -> &'a Scope {
        self.scope
    }

    /// The upload as this request describes it. `None` for a [list](Purpose::List).
    pub fn upload(&self) -> Option<&'a Upload> {
        self.upload
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

type ScopeOf = Arc<dyn Fn(&Parts) -> Result<Scope, Refusal> + Send + Sync>;
type Admit = Arc<dyn Fn(&Admission<'_>) -> Answer + Send + Sync>;

/// See [`with_sniff`](crate::ResumableLayer::with_sniff).
pub(crate) type Sniff = Arc<dyn Fn(&[u8], &Upload) -> Result<(), Refusal> + Send + Sync>;

/// The hooks that are set.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) scope: Option<ScopeOf>,
    pub(crate) admission: Option<Admit>,
    pub(crate) sniff: Option<Sniff>,
}

impl Hooks {
    /// The owner of the upload that a request is about.
    pub(crate) fn scope(&self, parts: &Parts) -> Result<Scope, Refusal> {
        self.scope
            .as_ref()
            .map_or_else(|| Ok(Scope::default()), |scope| scope(parts))
    }

    /// Asks whether a request is admitted.
    // The future borrows nothing of the request: the hook takes what it needs at once.
    pub(crate) fn admit(
        &self,
        purpose: Purpose,
        parts: &Parts,
        scope: &Scope,
        upload: Option<&Upload>,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let answer = self.admission.as_ref().map(|admission| {
            admission(&Admission {
                purpose,
                parts,
                scope,
                upload,
            })
        });
        async move {
            match answer {
                Some(answer) => answer.await,
                None => Ok(()),
            }
        }
    }
}
