use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use crate::{
    hooks::Refusal,
    model::BoxError,
    store::{BodyError, StoreError},
};

/// Why the layer answered a request with an error.
///
/// It is in the extensions of that response, so that outer middleware can log it or answer
/// differently. The protocol decides which status the client gets. All protocols make one
/// distinction: [`is_retryable`](Self::is_retryable).
///
/// ```
/// use http::Request;
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_resumable::{Error, ErrorKind, MemoryStore, ResumableLayer};
/// # use http::Response;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let inner = service_fn(async |_: Request<String>| {
/// #     Ok::<_, std::io::Error>(Response::new(String::new()))
/// # });
/// let service = ResumableLayer::new(MemoryStore::default()).layer(inner);
/// let request = Request::post("/upload?resumableIdentifier=1-a").body(String::new())?;
/// let response = service.oneshot(request).await?;
/// let error = response.extensions().get::<Error>().expect("the request was incomplete");
/// assert_eq!(error.kind(), ErrorKind::MissingField);
/// assert_eq!(error.to_string(), "the field `resumableTotalSize` is missing");
/// assert!(!error.is_retryable());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Error(Arc<Inner>);

struct Inner {
    reason: Reason,
    source: Option<BoxError>,
    /// Whether an event has told the error.
    is_told: AtomicBool,
}

/// Defines [`ErrorKind`], and which kind a [`Reason`] has: that of the same name.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident => $name:literal,)*) => {
        /// The kind of an [`Error`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorKind {
            $($(#[$doc])* $kind,)*
        }

        impl ErrorKind {
            /// A short, stable name in `snake_case`, such as `missing_field`.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }

        impl Reason {
            fn kind(&self) -> ErrorKind {
                match self {
                    $(Self::$kind { .. } => ErrorKind::$kind,)*
                }
            }
        }
    };
}

kinds! {
    /// A field that every chunk needs is missing.
    MissingField => "missing_field",
    /// The value of a field cannot be used.
    InvalidField => "invalid_field",
    /// A field was sent more than once, with different values.
    ConflictingField => "conflicting_field",
    /// The query or the form has more fields, or longer ones, than the layer reads.
    TooManyFields => "too_many_fields",
    /// The chunk lies beyond the end of the file.
    OutOfBounds => "out_of_bounds",
    /// The append does not begin at the end of what is stored.
    Offset => "offset",
    /// There is no upload with this URL.
    NotFound => "not_found",
    /// The client speaks another version of tus.
    Version => "version",
    /// The content type is not that of bytes to append.
    MediaType => "media_type",
    /// The upload is made of parts, so nothing can be appended.
    Concatenated => "concatenated",
    /// The lengths of the file that a client of the IETF draft declares are not the same.
    InconsistentLength => "inconsistent_length",
    /// The body has more or fewer bytes than declared.
    ChunkLength => "chunk_length",
    /// The chunk is larger than [allowed](crate::Limits), or than the store can take.
    ChunkTooLarge => "chunk_too_large",
    /// The file is larger than [allowed](crate::Limits).
    FileTooLarge => "file_too_large",
    /// The body is not the multipart form that its content type declares.
    Multipart => "multipart",
    /// The form has no file, for example because the user has chosen none.
    MissingFile => "missing_file",
    /// The form has a second file part, or one of an unknown name.
    UnexpectedFile => "unexpected_file",
    /// The file is a text field that should be base64, and is not.
    Base64 => "base64",
    /// The body, or a part of the form, has a `Content-Encoding` that nothing has decoded.
    ContentEncoding => "content_encoding",
    /// The request contradicts what is stored of the upload: another length, or other bytes,
    /// because the file has changed.
    Conflict => "conflict",
    /// The stored bytes would be in more ranges than the store accepts.
    TooManyRanges => "too_many_ranges",
    /// Uploads do not use this method.
    MethodNotAllowed => "method_not_allowed",
    /// The bytes of the chunk do not match their digest.
    DigestMismatch => "digest_mismatch",
    /// The file does not match its digest. It is removed, and can be sent again.
    FileDigestMismatch => "file_digest_mismatch",
    /// The store cannot keep this upload, or the layer cannot deliver it.
    Unsupported => "unsupported",
    /// The request ended before its body was complete.
    Interrupted => "interrupted",
    /// Another request has taken over the range of the chunk, or has removed the upload.
    Superseded => "superseded",
    /// The body came too slowly: see [`Limits`](crate::Limits).
    TooSlow => "too_slow",
    /// As many requests are running as the layer or the store allows: see
    /// [`Limits`](crate::Limits).
    Busy => "busy",
    /// There are as many unfinished uploads as [allowed](crate::Limits).
    TooManyUploads => "too_many_uploads",
    /// The unfinished uploads would have more bytes than [allowed](crate::Limits).
    QuotaExceeded => "quota_exceeded",
    /// The store failed.
    Storage => "storage",
    /// The store has no room left.
    StorageFull => "storage_full",
    /// The inner service failed to take the complete upload. The upload is kept, and delivered
    /// again.
    DeliveryFailed => "delivery_failed",
    /// The inner service is still busy with the complete upload.
    DeliveryPending => "delivery_pending",
    /// The delivery failed [as often as allowed](crate::Delivery::with_max_attempts). The upload is
    /// kept until the operator [delivers](crate::Uploads::deliver) it.
    SetAside => "set_aside",
    /// A hook of the application refused the request.
    Refused => "refused",
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What an [`Error`] says: its kind with the details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    MissingField { name: String },
    InvalidField { name: String, problem: &'static str },
    ConflictingField { name: String },
    TooManyFields,
    OutOfBounds,
    Offset { stored: u64 },
    NotFound,
    Version,
    MediaType,
    Concatenated,
    InconsistentLength,
    ChunkLength { expected: u64, received: u64 },
    ChunkTooLarge { limit: u64 },
    FileTooLarge { limit: u64 },
    Multipart { problem: &'static str },
    MissingFile { name: String },
    UnexpectedFile,
    Base64,
    ContentEncoding,
    Conflict,
    TooManyRanges,
    MethodNotAllowed,
    DigestMismatch { name: String },
    FileDigestMismatch { name: String },
    Unsupported,
    Interrupted,
    Superseded,
    TooSlow,
    Busy,
    TooManyUploads,
    QuotaExceeded,
    Storage,
    StorageFull,
    DeliveryFailed,
    DeliveryPending,
    SetAside,
    Refused(Refusal),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingField { name } => write!(f, "the field `{name}` is missing"),
            Self::InvalidField { name, problem } => write!(f, "the field `{name}` {problem}"),
            Self::ConflictingField { name } => {
                write!(f, "the field `{name}` was sent twice with different values")
            }
            Self::TooManyFields => f.write_str("too many fields, or too long ones"),
            Self::OutOfBounds => f.write_str("the chunk lies beyond the end of the file"),
            Self::Offset { stored } => write!(f, "{stored} bytes of the upload are stored"),
            Self::NotFound => f.write_str("there is no such upload"),
            Self::Version => f.write_str("the version of tus is not supported"),
            Self::MediaType => f.write_str("the content type is not that of bytes to append"),
            Self::Concatenated => f.write_str("the upload is made of other uploads"),
            Self::InconsistentLength => f.write_str("the declared lengths are not the same"),
            Self::ChunkLength { expected, received } => {
                write!(
                    f,
                    "the chunk should have {expected} bytes, but {received} were read"
                )
            }
            Self::ChunkTooLarge { limit } => write!(f, "a chunk may have at most {limit} bytes"),
            Self::FileTooLarge { limit } => write!(f, "a file may have at most {limit} bytes"),
            Self::Multipart { problem } => write!(f, "the multipart form is broken: {problem}"),
            Self::MissingFile { name } => write!(f, "the form has no file in its part `{name}`"),
            Self::UnexpectedFile => f.write_str("the form has an unexpected file part"),
            Self::Base64 => {
                f.write_str("the file part has no file name, so it should be base64, but it is not")
            }
            Self::ContentEncoding => {
                f.write_str("the body has a content encoding: send the bytes of the file")
            }
            Self::Conflict => f.write_str("the file has changed since its upload began"),
            Self::TooManyRanges => f.write_str("the upload is in too many pieces"),
            Self::MethodNotAllowed => f.write_str("this method is not used by uploads"),
            Self::DigestMismatch { name } => {
                write!(f, "the bytes do not match the digest in `{name}`")
            }
            Self::FileDigestMismatch { name } => {
                write!(f, "the file does not match the digest in `{name}`")
            }
            Self::Unsupported => f.write_str("the store cannot keep this upload"),
            Self::Interrupted => f.write_str("the request ended before its body was complete"),
            Self::Superseded => f.write_str("another request has taken over this chunk"),
            Self::TooSlow => f.write_str("the body came too slowly"),
            Self::Busy => f.write_str("the server is busy"),
            Self::TooManyUploads => f.write_str("there are too many unfinished uploads"),
            Self::QuotaExceeded => f.write_str("the unfinished uploads would have too many bytes"),
            Self::Storage => f.write_str("the chunk could not be stored"),
            Self::StorageFull => f.write_str("there is no room for the chunk"),
            Self::DeliveryFailed => f.write_str("the complete upload could not be delivered yet"),
            Self::DeliveryPending => f.write_str("the complete upload is still being delivered"),
            Self::SetAside => {
                f.write_str("the complete upload could not be delivered, and is kept")
            }
            Self::Refused(refusal) => f.write_str(refusal.reason()),
        }
    }
}

impl Error {
    pub(crate) fn new(reason: Reason, source: impl Into<BoxError>) -> Self {
        Self::with_source(reason, Some(source.into()))
    }

    fn with_source(reason: Reason, source: Option<BoxError>) -> Self {
        Self(Arc::new(Inner {
            reason,
            source,
            is_told: AtomicBool::new(false),
        }))
    }

    /// Notes that an event tells the error. `false` if one has told it before, because requests
    /// that wait for the same thing get the same error.
    pub(crate) fn mark_told(&self) -> bool {
        !self.0.is_told.swap(true, Relaxed)
    }

    /// The error of a request body: the layer's own, or that the request was interrupted.
    pub(crate) fn of_body(error: BoxError) -> Self {
        match error.downcast::<Self>() {
            Ok(error) => *error,
            Err(error) => Self::new(Reason::Interrupted, error),
        }
    }

    /// The kind of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.reason.kind()
    }

    /// Whether the same request can succeed later. If so the client gets a status after which it
    /// tries again, otherwise one at which it stops.
    pub fn is_retryable(&self) -> bool {
        match &self.0.reason {
            Reason::Refused(refusal) => refusal.is_retryable(),
            // Safari sends a chunk without its bytes if it cannot read the file just then.
            Reason::ChunkLength { received: 0, .. } => true,
            Reason::DigestMismatch { .. }
            | Reason::Interrupted
            | Reason::Superseded
            | Reason::TooSlow
            | Reason::Busy
            | Reason::TooManyUploads
            | Reason::QuotaExceeded
            | Reason::Storage
            | Reason::StorageFull
            | Reason::DeliveryFailed
            | Reason::DeliveryPending => true,
            _ => false,
        }
    }

    /// The refusal of the application, if the kind is [`Refused`](ErrorKind::Refused).
    pub fn refusal(&self) -> Option<&Refusal> {
        match &self.0.reason {
            Reason::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Whether the store failed, and the client has not caused it.
    pub(crate) fn is_of_store(&self) -> bool {
        let source = self.0.source.as_ref();
        let error = source.and_then(|source| source.downcast_ref::<StoreError>());
        match self.kind() {
            ErrorKind::Storage | ErrorKind::StorageFull => true,
            ErrorKind::Busy | ErrorKind::Unsupported => error.is_some(),
            _ => false,
        }
    }

    pub(crate) fn reason(&self) -> &Reason {
        &self.0.reason
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("reason", &self.0.reason)
            .field("source", &self.0.source)
            .finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.reason.fmt(f)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Self {
        Self::with_source(reason, None)
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Reason::Refused(refusal).into()
    }
}

impl From<BodyError> for Error {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Length { expected, received } => {
                Reason::ChunkLength { expected, received }.into()
            }
            BodyError::Failed(error) => Self::of_body(error),
        }
    }
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let reason = match error {
            StoreError::Body(error) => return error.into(),
            StoreError::Superseded => Reason::Superseded,
            StoreError::Conflict => Reason::Conflict,
            StoreError::TooManyRanges => Reason::TooManyRanges,
            StoreError::Full(_) => Reason::StorageFull,
            StoreError::TooLarge { limit } => Reason::FileTooLarge { limit },
            StoreError::ChunkTooLarge { limit } => Reason::ChunkTooLarge { limit },
            StoreError::OutOfBounds => Reason::OutOfBounds,
            StoreError::Offset { stored } => Reason::Offset { stored },
            StoreError::Busy => Reason::Busy,
            StoreError::Unsupported | StoreError::Impossible(_) => Reason::Unsupported,
            StoreError::Failed(_) => Reason::Storage,
        };
        Self::new(reason, error)
    }
}

/// For tests: two errors are equal if they say the same.
#[cfg(test)]
impl PartialEq for Error {
    fn eq(&self, other: &Self) -> bool {
        self.reason() == other.reason()
    }
}
