use std::{
    error::Error,
    fmt,
    pin::{Pin, pin},
    task::ready,
};

use bytes::Bytes;
use http_body::Body;

use crate::model::{BoxError, upload::Upload};

/// The bytes of one chunk while they arrive.
///
/// It yields at most as many bytes as the chunk may have. It ends with `None` only if all bytes
/// have arrived and the request that carries them is whole.
///
/// ```
/// use std::pin::pin;
/// use http_body_util::{BodyExt as _, Full};
/// use tower_resumable::store::{BodyError, ChunkBody};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let source = Full::new("hello".into()).map_err(|never| match never {});
/// let mut source = pin!(source);
/// let mut body = ChunkBody::new(source.as_mut(), Some(6), 100);
/// assert_eq!(body.next().await.unwrap().unwrap(), "hello");
/// // Six bytes were declared.
/// let error = body.next().await.unwrap().unwrap_err();
/// assert!(matches!(error, BodyError::Length { expected: 6, received: 5 }));
/// # }
/// ```
pub struct ChunkBody<'a> {
    body: Pin<&'a mut (dyn Body<Data = Bytes, Error = BoxError> + Send)>,
    exact: Option<u64>,
    max: u64,
    received: u64,
    duplicate: u64,
    fields: Option<Late<'a>>,
}

/// Returns the fields of the application that have arrived so far.
type Late<'a> = &'a (dyn Fn() -> Vec<(String, String)> + Send + Sync);

impl<'a> ChunkBody<'a> {
    /// Creates a chunk of exactly `exact` bytes, or, if that is `None`, of at most `max` bytes.
    pub fn new(
        body: Pin<&'a mut (dyn Body<Data = Bytes, Error = BoxError> + Send)>,
        exact: Option<u64>,
        max: u64,
    ) -> Self {
        Self {
            body,
            exact,
            max: exact.unwrap_or(max),
            received: 0,
            duplicate: 0,
            fields: None,
        }
    }

    /// Sets what returns the fields of the application that have arrived so far.
    pub(crate) fn with_fields(self, fields: Option<Late<'a>>) -> Self {
        Self { fields, ..self }
    }

    /// Returns `upload` as the request describes it at its end: with the application's fields that
    /// have come after the bytes. Call it after the end of the body.
    pub fn describe(&self, upload: &Upload) -> Upload {
        let mut upload = upload.clone();
        if let Some(fields) = self.fields {
            upload.fields = fields();
        }
        upload
    }

    /// The length of the chunk in bytes, if it is known before the bytes arrive.
    pub fn exact_len(&self) -> Option<u64> {
        self.exact
    }

    /// The most bytes that the chunk can have.
    pub fn max_len(&self) -> u64 {
        self.max
    }

    /// How many bytes have arrived.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Counts bytes that the store has dropped, because it had stored them before.
    ///
    /// Optional. The operator is told the sum by [`Event::Stored`](crate::Event::Stored), and the
    /// layer tells new uploads from repeated requests by it. Without it, all bytes count as new.
    pub fn count_duplicate(&mut self, bytes: u64) {
        self.duplicate = self.duplicate.saturating_add(bytes);
    }

    /// How many bytes were [counted as duplicates](Self::count_duplicate), at most as many as have
    /// arrived.
    pub fn duplicate(&self) -> u64 {
        self.duplicate.min(self.received)
    }

    /// Returns the next bytes, `None` at the end. Cancel safe.
    ///
    /// Do not call it again after the end or an error.
    ///
    /// # Errors
    ///
    /// [`Failed`](BodyError::Failed) if the body fails. [`Length`](BodyError::Length) if it has
    /// more or fewer bytes than it should.
    pub async fn next(&mut self) -> Option<Result<Bytes, BodyError>> {
        std::future::poll_fn(|cx| {
            loop {
                let piece = match ready!(self.body.as_mut().poll_frame(cx)) {
                    Some(Ok(frame)) => match frame.into_data() {
                        Ok(piece) => piece,
                        // Trailers are not content.
                        Err(_) => continue,
                    },
                    Some(Err(error)) => return Some(Err(BodyError::Failed(error))).into(),
                    None => return self.end().map(Err).into(),
                };
                self.received += piece.len() as u64;
                if self.received > self.max {
                    return Some(Err(self.wrong_length())).into();
                }
                return Some(Ok(piece)).into();
            }
        })
        .await
    }

    /// Like [`next`](Self::next), but returns `None` as soon as `ended` is ready.
    pub(super) async fn next_unless(
        &mut self,
        mut ended: impl Future + Unpin,
    ) -> Option<Option<Result<Bytes, BodyError>>> {
        let mut next = pin!(self.next());
        std::future::poll_fn(|cx| {
            if Pin::new(&mut ended).poll(cx).is_ready() {
                return None.into();
            }
            next.as_mut().poll(cx).map(Some)
        })
        .await
    }

    fn end(&self) -> Option<BodyError> {
        let differs = |exact| exact != self.received;
        self.exact.is_some_and(differs).then(|| self.wrong_length())
    }

    fn wrong_length(&self) -> BodyError {
        BodyError::Length {
            expected: self.max,
            received: self.received,
        }
    }
}

impl fmt::Debug for ChunkBody<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkBody")
            .field("exact", &self.exact)
            .field("max", &self.max)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// Why the body of a chunk failed.
///
/// A store returns it as it is: `?` converts it into a [`StoreError`](super::StoreError).
#[derive(Debug)]
#[non_exhaustive]
pub enum BodyError {
    /// The body has more or fewer bytes than it should.
    Length {
        /// Bytes declared, or the most that were allowed.
        expected: u64,
        /// Bytes counted. Reading stops at the first one too many.
        received: u64,
    },
    /// The body of the request failed.
    Failed(BoxError),
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { expected, received } => {
                write!(
                    f,
                    "the chunk should have {expected} bytes, but {received} were read"
                )
            }
            Self::Failed(_) => f.write_str("the request failed"),
        }
    }
}

impl Error for BodyError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => Some(error.as_ref()),
            Self::Length { .. } => None,
        }
    }
}
