//! The application's say: who owns an upload, and what is let in.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use bytes::Bytes;
use http::{Response, StatusCode, request::Parts};

use crate::store::Upload;

/// Who owns an upload: a user, a tenant, a session, by whatever name the application has for them.
///
/// Uploads of different scopes can neither see nor touch each other. It is hashed into the name of the
/// upload, and is never a path.
///
/// ```
/// use tower_resumable::Scope;
///
/// assert_eq!(Scope::new("user-7"), Scope::from("user-7".to_owned()));
/// assert_eq!(Scope::default().as_str(), ""); // everybody's
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Scope(String);

impl Scope {
    /// The scope of this owner.
    pub fn new(owner: impl Into<String>) -> Self {
        Self(owner.into())
    }

    /// The owner's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub(crate) fn into_string(self) -> String {
        self.0
    }
}

impl From<String> for Scope {
    fn from(owner: String) -> Self {
        Self(owner)
    }
}

impl From<&str> for Scope {
    fn from(owner: &str) -> Self {
        Self(owner.to_owned())
    }
}

/// The application's "no", with the answer to it.
///
/// The client sees the status at which it gives up (400 for most of them), because others would be sent
/// again and again; the status given here stands in `x-resumable-status`. 408, 425, 429 and 5xx mean "not
/// now": they become 503, and the client tries again.
///
/// ```
/// use http::{Response, StatusCode};
/// use tower_resumable::Refusal;
///
/// let refusal = Refusal::new(StatusCode::FORBIDDEN, "members only");
/// assert!(!refusal.is_transient());
///
/// // With headers and a body of one's own.
/// let refusal = Response::builder()
///     .status(429)
///     .header("retry-after", "30")
///     .body("one at a time, please".into())?;
/// let refusal = Refusal::from(refusal);
/// assert!(refusal.is_transient());
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Refusal {
    status: StatusCode,
    reason: String,
    response: Option<Arc<Response<Bytes>>>,
}

impl Refusal {
    /// Refuses with a status and a short reason, which the client is shown as problem details (RFC 9457).
    pub fn new(status: StatusCode, reason: impl Into<String>) -> Self {
        Self {
            status,
            reason: reason.into(),
            response: None,
        }
    }

    /// The status, as the application gave it.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The reason, as the application gave it.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Whether the client is told to try again.
    pub fn is_transient(&self) -> bool {
        matches!(self.status.as_u16(), 408 | 425 | 429 | 500..)
    }

    pub(crate) fn response(&self) -> Option<&Response<Bytes>> {
        self.response.as_deref()
    }
}

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

/// What a request wants that asks for [admission](crate::ResumableLayer::with_admission).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// To know whether a chunk is there.
    Test,
    /// To know what is there of an upload.
    Status,
    /// To know what its owner has not finished.
    List,
    /// To begin an upload that has no bytes yet (FilePond).
    Create,
    /// To store a chunk, or a whole file. A file part that comes before its fields has been read already,
    /// but is stored nowhere yet.
    Chunk,
    /// To hand over a file that is complete. A final refusal removes it.
    Deliver,
    /// To forget an upload.
    Cancel,
}

/// A request that asks to be let in, with what it declares. All of that is the client's word.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'a> {
    purpose: Purpose,
    parts: &'a Parts,
    scope: &'a str,
    upload: Option<&'a Upload>,
}

impl<'a> Admission<'a> {
    /// What the request wants.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The request's head, with what outer layers have put into its extensions.
    pub fn parts(&self) -> &'a Parts {
        self.parts
    }

    /// Who owns the upload.
    pub fn scope(&self) -> &'a str {
        self.scope
    }

    /// The upload as this request declares it: name, path, size in bytes, media type, and the
    /// application's own fields. `None` for a [list](Purpose::List), which is of no single one.
    pub fn upload(&self) -> Option<&'a Upload> {
        self.upload
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<(), Refusal>> + Send>>;

type ScopeOf = Arc<dyn Fn(&Parts) -> Result<Scope, Refusal> + Send + Sync>;
type Admit = Arc<dyn Fn(&Admission<'_>) -> Answer + Send + Sync>;

/// The hooks by which the application decides.
#[derive(Clone, Default)]
pub(crate) struct Hooks {
    pub(crate) scope: Option<ScopeOf>,
    pub(crate) admission: Option<Admit>,
    pub(crate) sniff: Option<Sniff>,
}

/// See [`with_sniff`](crate::ResumableLayer::with_sniff).
pub(crate) type Sniff = Arc<dyn Fn(&[u8], &Upload) -> Result<(), Refusal> + Send + Sync>;

impl Hooks {
    /// The owner of what this request is about.
    pub(crate) fn scope(&self, parts: &Parts) -> Result<String, Refusal> {
        match &self.scope {
            Some(scope) => Ok(scope(parts)?.into_string()),
            None => Ok(String::new()),
        }
    }

    /// Asks whether a request is let in.
    // The future borrows nothing of the request: what the hook needs of it, it takes at once.
    pub(crate) fn admit(
        &self,
        purpose: Purpose,
        parts: &Parts,
        scope: &str,
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
