use std::{error::Error, fmt, io};

use super::{BodyError, disk};
use crate::model::BoxError;

/// Error of a [`Store`](super::Store).
///
/// The variant decides what the client is told. `?` converts [`io::Error`] (a full disk becomes
/// [`Full`](Self::Full), [`WouldBlock`](io::ErrorKind::WouldBlock) becomes [`Busy`](Self::Busy), a
/// file system that is read-only [`Impossible`](Self::Impossible)) and [`BodyError`]. All other
/// errors of a backend become
/// [`Failed`](Self::Failed), with [`map_err(StoreError::new)`](Self::new). If the backend has an
/// error for a full store, match it and return [`Full`](Self::Full) with that error as its source.
///
/// ```
/// use std::{error::Error as _, io};
/// use tower_resumable::store::StoreError;
///
/// let full = StoreError::from(io::Error::from(io::ErrorKind::StorageFull));
/// assert!(matches!(full, StoreError::Full(_)));
///
/// let failed = StoreError::new("the database is closed");
/// assert_eq!(failed.source().unwrap().to_string(), "the database is closed");
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The body of the chunk failed. Return the error of
    /// [`ChunkBody::next`](super::ChunkBody::next) unchanged.
    Body(BodyError),
    /// Another request has taken over the range, or has removed the upload. The client may send the
    /// chunk again.
    Superseded,
    /// The chunk contradicts what is stored: its upload was created with another length, or bytes
    /// that were stored before are different now, because the file has changed. Final.
    Conflict,
    /// The stored bytes would be in more ranges than the store accepts. Final.
    TooManyRanges,
    /// The store has no room left. The client may try again later.
    Full(BoxError),
    /// The upload is larger than the store can ever keep. Returned for its first chunk. Final.
    TooLarge {
        /// Most bytes of a file.
        limit: u64,
    },
    /// The store can never accept a chunk of this size: the client has to send smaller ones. Final.
    ChunkTooLarge {
        /// Most bytes of a chunk.
        limit: u64,
    },
    /// The chunk reaches beyond the stored length of the upload. Final.
    OutOfBounds,
    /// The append does not begin at the end of what is stored. Final: the client asks first.
    Offset {
        /// How many bytes are stored.
        stored: u64,
    },
    /// The store has too many requests at the moment, or another process holds a lock of the upload
    /// for too long. The client may try again later.
    Busy,
    /// The store does not support this, such as an upload without a length. Final.
    Unsupported,
    /// The store can never do this: the file system is read-only, the file is too large for it, or
    /// a path is too long or leads to another file system. Final.
    Impossible(BoxError),
    /// Anything else. The client may try again later.
    Failed(BoxError),
}

impl StoreError {
    /// Wraps the error of a backend as [`Failed`](Self::Failed).
    ///
    /// ```
    /// use tower_resumable::store::StoreError;
    ///
    /// fn parse(column: &str) -> Result<u64, StoreError> {
    ///     column.parse().map_err(StoreError::new)
    /// }
    ///
    /// assert!(matches!(parse("x"), Err(StoreError::Failed(_))));
    /// ```
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self::Failed(error.into())
    }
}

impl From<BodyError> for StoreError {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull, WouldBlock};
        match error.kind() {
            StorageFull | QuotaExceeded => Self::Full(error.into()),
            WouldBlock => Self::Busy,
            _ if disk::is_final(&error) => Self::Impossible(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Body(_) => "the body of the chunk failed",
            Self::Superseded => "another request has taken over the range",
            Self::Conflict => "the chunk contradicts what is stored",
            Self::TooManyRanges => "the upload is stored in too many ranges",
            Self::Full(_) => "the store is full",
            Self::TooLarge { .. } => "the upload is larger than the store can keep",
            Self::ChunkTooLarge { .. } => "the chunk is larger than the store can take",
            Self::OutOfBounds => "the chunk lies outside of the upload",
            Self::Offset { .. } => "the append does not begin at the end of what is stored",
            Self::Busy => "the store is busy",
            Self::Unsupported => "the store does not support this",
            Self::Impossible(_) => "the store can never do this",
            Self::Failed(_) => "the store failed",
        })
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Body(error) => Some(error),
            Self::Full(error) | Self::Impossible(error) | Self::Failed(error) => {
                Some(error.as_ref())
            }
            _ => None,
        }
    }
}
