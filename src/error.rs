use std::fmt;

use crate::Refusal;

/// Alias for a type-erased error type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why the layer answered a request with an error.
///
/// It is also found in the extensions of that response, so that outer middleware can log it or put
/// its own answer in its place. Which status a client sees for it depends on the client family:
/// see [`UploadError::is_transient`] for the one distinction that matters to all of them.
///
/// ```
/// use tower_resumable::UploadError;
///
/// let error = UploadError::MissingField { name: "resumableIdentifier".into() };
/// assert_eq!(error.code(), "missing_field");
/// assert_eq!(error.to_string(), "the field `resumableIdentifier` is missing");
/// assert!(!error.is_transient());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UploadError {
    /// A field that every chunk needs is not there.
    MissingField {
        /// The field's name as the client would send it.
        name: String,
    },
    /// A field is there, but its value cannot be used.
    InvalidField {
        /// The field's name as the client would send it.
        name: String,
        /// What is wrong with the value.
        reason: &'static str,
    },
    /// A field came more than once, with different values.
    ConflictingField {
        /// The field's name as the client would send it.
        name: String,
    },
    /// The query or the form has more fields, or longer ones, than the layer reads.
    TooManyFields,
    /// The chunk lies wholly or partly behind the end of the file.
    OutOfBounds,
    /// The body has more or fewer bytes than the chunk's declared size.
    ChunkLength {
        /// Bytes declared.
        expected: u64,
        /// Bytes counted; reading stops at the first one too many.
        received: u64,
    },
    /// The chunk is larger than the layer accepts.
    ChunkTooLarge {
        /// Most bytes of a chunk.
        limit: u64,
    },
    /// The file is larger than the layer accepts.
    FileTooLarge {
        /// Most bytes of a file.
        limit: u64,
    },
    /// The body is not the multipart form its content type promises.
    Multipart {
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The form has no file part.
    MissingFile {
        /// The name the file part should have.
        name: String,
    },
    /// The form has a file part that was not asked for: a second one, or one of another name.
    UnexpectedFile,
    /// The file is a text field, but not base64.
    Base64,
    /// The upload's stored ranges would be in more pieces than the store accepts.
    TooManyRanges,
    /// The method is not one an upload uses.
    MethodNotAllowed,
    /// The bytes are not those that the client's digest is of.
    DigestMismatch {
        /// Where the digest was: a field's name, or a header's.
        name: String,
    },
    /// The finished file is not what its digest is of. It is removed, and can be sent again from the
    /// beginning.
    FileDigestMismatch {
        /// The field of the digest.
        name: String,
    },
    /// The request ended before its body was complete.
    Interrupted,
    /// Another request took over this chunk, because this one had stalled.
    Superseded,
    /// The body came too slowly: see [`Limits`](crate::Limits). Nothing of it is stored.
    TooSlow,
    /// There are as many requests under way as the layer, or the store, allows: see
    /// [`Limits`](crate::Limits). The chunk is not stored.
    Busy,
    /// There are as many unfinished uploads as the layer allows: see [`Limits`](crate::Limits).
    TooManyUploads,
    /// The unfinished uploads would have more bytes than the layer allows: see
    /// [`Limits`](crate::Limits).
    QuotaExceeded,
    /// The store failed; the chunk is not stored.
    Storage,
    /// The store has no room left; the chunk is not stored.
    StorageFull,
    /// The service behind the layer failed to take the finished upload. It is kept, and the next
    /// request for any of its chunks tries again.
    DeliveryFailed,
    /// The service behind the layer is still busy with the finished upload.
    DeliveryPending,
    /// A hook of the application refused the request.
    Refused(Refusal),
}

impl UploadError {
    /// A short, stable name of the kind of error, in `snake_case`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::MissingField { .. } => "missing_field",
            Self::InvalidField { .. } => "invalid_field",
            Self::ConflictingField { .. } => "conflicting_field",
            Self::TooManyFields => "too_many_fields",
            Self::OutOfBounds => "out_of_bounds",
            Self::ChunkLength { .. } => "chunk_length",
            Self::ChunkTooLarge { .. } => "chunk_too_large",
            Self::FileTooLarge { .. } => "file_too_large",
            Self::Multipart { .. } => "multipart",
            Self::MissingFile { .. } => "missing_file",
            Self::UnexpectedFile => "unexpected_file",
            Self::Base64 => "base64",
            Self::TooManyRanges => "too_many_ranges",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::DigestMismatch { .. } => "digest_mismatch",
            Self::FileDigestMismatch { .. } => "file_digest_mismatch",
            Self::Interrupted => "interrupted",
            Self::Superseded => "superseded",
            Self::TooSlow => "too_slow",
            Self::Busy => "busy",
            Self::TooManyUploads => "too_many_uploads",
            Self::QuotaExceeded => "quota_exceeded",
            Self::Storage => "storage",
            Self::StorageFull => "storage_full",
            Self::DeliveryFailed => "delivery_failed",
            Self::DeliveryPending => "delivery_pending",
            Self::Refused(_) => "refused",
        }
    }

    /// Whether the same request can succeed later. Such an error is answered with a status that
    /// makes the client try again; any other one with a status that makes it stop.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.is_transient(),
            Self::DigestMismatch { .. }
            | Self::Interrupted
            | Self::Superseded
            | Self::TooSlow
            | Self::Busy
            | Self::TooManyUploads
            | Self::QuotaExceeded
            | Self::Storage
            | Self::StorageFull
            | Self::DeliveryFailed
            | Self::DeliveryPending => true,
            _ => false,
        }
    }
}

impl fmt::Display for UploadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MissingField { name } => write!(f, "the field `{name}` is missing"),
            Self::InvalidField { name, reason } => write!(f, "the field `{name}` {reason}"),
            Self::ConflictingField { name } => {
                write!(f, "the field `{name}` was sent twice with different values")
            }
            Self::TooManyFields => f.write_str("too many fields, or too long ones"),
            Self::OutOfBounds => f.write_str("the chunk lies behind the end of the file"),
            Self::ChunkLength { expected, received } => {
                write!(
                    f,
                    "the chunk should have {expected} bytes, but {received} were read"
                )
            }
            Self::ChunkTooLarge { limit } => write!(f, "a chunk may have at most {limit} bytes"),
            Self::FileTooLarge { limit } => write!(f, "a file may have at most {limit} bytes"),
            Self::Multipart { reason } => write!(f, "the multipart form is broken: {reason}"),
            Self::MissingFile { name } => write!(f, "the form has no file part named `{name}`"),
            Self::UnexpectedFile => f.write_str("the form has a file part that was not asked for"),
            Self::Base64 => {
                f.write_str("the file part has no file name, so it should be base64, but it is not")
            }
            Self::TooManyRanges => f.write_str("the upload is in too many pieces"),
            Self::MethodNotAllowed => f.write_str("this method is not used by uploads"),
            Self::DigestMismatch { name } => {
                write!(f, "the bytes are not those of the digest in `{name}`")
            }
            Self::FileDigestMismatch { name } => {
                write!(f, "the file is not that of the digest in `{name}`")
            }
            Self::Interrupted => f.write_str("the request ended before its body was complete"),
            Self::Superseded => f.write_str("another request has taken over this chunk"),
            Self::TooSlow => f.write_str("the body came too slowly"),
            Self::Busy => f.write_str("the server is busy"),
            Self::TooManyUploads => f.write_str("there are too many unfinished uploads"),
            Self::QuotaExceeded => {
                f.write_str("the unfinished uploads would have too many bytes together")
            }
            Self::Storage => f.write_str("the chunk could not be stored"),
            Self::StorageFull => f.write_str("there is no room for the chunk"),
            Self::DeliveryFailed => f.write_str("the finished upload could not be handed over yet"),
            Self::DeliveryPending => f.write_str("the finished upload is still being handed over"),
            Self::Refused(refusal) => f.write_str(refusal.reason()),
        }
    }
}

impl std::error::Error for UploadError {}

impl From<Refusal> for UploadError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}
