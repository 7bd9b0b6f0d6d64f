use std::{
    fmt,
    fs::File,
    future::{Future, poll_fn},
    io::{self, Read as _},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

/// Bytes of a finished file, read from where its store keeps them.
///
/// Returned by [`CompletedUpload::content`](crate::CompletedUpload::content), which yields exactly
/// [`size`](crate::CompletedUpload::size) bytes, or an error. It is an [`http_body::Body`], so it
/// can be the body of a request or of a response. It ends after the first error.
///
/// ```
/// use http_body_util::BodyExt as _;
/// use tower_resumable::{CompletedUpload, Content};
///
/// async fn count_lines(upload: CompletedUpload) -> std::io::Result<usize> {
///     let mut lines = 0;
///     let mut content = upload.content();
///     while let Some(piece) = content.next().await {
///         lines += piece?.iter().filter(|byte| **byte == b'\n').count();
///     }
///     Ok(lines)
/// }
///
/// async fn forward(upload: CompletedUpload) -> http::Result<http::Request<Content>> {
///     http::Request::put("http://archive.example/").body(upload.content())
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// assert_eq!(Content::from("hello").collect().await?.to_bytes(), "hello");
/// # Ok(())
/// # }
/// ```
pub struct Content {
    source: Source,
    /// Bytes that are still to come, if that is known.
    left: Option<u64>,
}

enum Source {
    Bytes(Bytes),
    File(FileBody),
    Body(Pin<Box<dyn Body<Data = Bytes, Error = io::Error> + Send>>),
    Ended,
}

impl Content {
    /// Creates content from the data of `body`. Trailers and empty frames are ignored.
    ///
    /// `http_body_util::StreamBody` makes a body of a stream:
    ///
    /// ```
    /// use futures_util::stream;
    /// use http_body::Frame;
    /// use http_body_util::{BodyExt as _, StreamBody};
    /// use tower_resumable::Content;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// // Reads row after row of a database.
    /// let rows = stream::try_unfold(0, async |row: usize| {
    ///     let bytes = ["hel", "lo"].get(row).map(|bytes| Frame::data((*bytes).into()));
    ///     Ok(bytes.map(|bytes| (bytes, row + 1)))
    /// });
    /// let content = Content::new(StreamBody::new(rows));
    /// assert_eq!(content.collect().await?.to_bytes(), "hello");
    /// # Ok(())
    /// # }
    /// ```
    pub fn new(body: impl Body<Data = Bytes, Error = io::Error> + Send + 'static) -> Self {
        Source::Body(Box::pin(body)).into()
    }

    /// Creates content from the file at `path`, which is opened at the first read. The file is
    /// opened and read on threads for blocking work. Reading panics outside of a tokio runtime.
    pub fn open(path: impl Into<PathBuf>) -> Self {
        Source::File(FileBody::Closed(path.into())).into()
    }

    /// Makes reading fail if there are not exactly `len` bytes.
    #[must_use]
    pub fn with_exact_len(mut self, len: u64) -> Self {
        self.left = Some(len);
        self
    }

    /// Returns the next bytes, `None` at the end or after an error. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone.
    /// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) if it is shorter than
    /// [expected](Self::with_exact_len). Other errors of the file system or the object store.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| self.poll_piece(cx)).await
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let piece = match &mut self.source {
                Source::Bytes(bytes) if bytes.is_empty() => None,
                Source::Bytes(bytes) => Some(Ok(std::mem::take(bytes))),
                Source::File(file) => ready!(file.poll_piece(cx)),
                Source::Body(body) => match ready!(body.as_mut().poll_frame(cx)) {
                    Some(Ok(frame)) => Some(Ok(frame.into_data().unwrap_or_default())),
                    Some(Err(error)) => Some(Err(error)),
                    None => None,
                },
                Source::Ended => return Poll::Ready(None),
            };
            let piece = match piece {
                Some(Ok(piece)) if piece.is_empty() => continue,
                Some(Ok(piece)) => match self.left.map(|left| left.checked_sub(piece.len() as u64))
                {
                    Some(None) => Some(Err(io::Error::other(
                        "the file has more bytes than expected",
                    ))),
                    left => {
                        self.left = left.flatten();
                        return Poll::Ready(Some(Ok(piece)));
                    }
                },
                None if self.left.is_some_and(|left| left > 0) => {
                    Some(Err(io::ErrorKind::UnexpectedEof.into()))
                }
                end => end,
            };
            self.source = Source::Ended;
            return Poll::Ready(piece);
        }
    }
}

impl From<Source> for Content {
    fn from(source: Source) -> Self {
        Self { source, left: None }
    }
}

impl From<Bytes> for Content {
    fn from(bytes: Bytes) -> Self {
        Source::Bytes(bytes).into()
    }
}

impl From<&'static str> for Content {
    fn from(text: &'static str) -> Self {
        Bytes::from(text).into()
    }
}

/// Reads the file from its current position, on threads for blocking work. Reading panics outside
/// of a tokio runtime.
impl From<File> for Content {
    fn from(file: File) -> Self {
        Source::File(FileBody::Open(file)).into()
    }
}

impl Body for Content {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.poll_piece(cx)
            .map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.source, Source::Ended)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// A file that is read on the threads for blocking work.
enum FileBody {
    Closed(PathBuf),
    Open(File),
    Reading(JoinHandle<io::Result<(File, Vec<u8>)>>),
    Ended,
}

impl FileBody {
    const BLOCK: usize = 256 << 10;

    fn read(mut file: File) -> io::Result<(File, Vec<u8>)> {
        let mut bytes = vec![0; Self::BLOCK];
        let read = loop {
            match file.read(&mut bytes) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        bytes.truncate(read);
        Ok((file, bytes))
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match std::mem::replace(self, Self::Ended) {
                Self::Closed(path) => {
                    *self = Self::Reading(spawn_blocking(|| Self::read(File::open(path)?)));
                }
                Self::Open(file) => *self = Self::Reading(spawn_blocking(|| Self::read(file))),
                Self::Reading(mut task) => {
                    let Poll::Ready(read) = Pin::new(&mut task).poll(cx) else {
                        *self = Self::Reading(task);
                        return Poll::Pending;
                    };
                    let (file, bytes) = match read {
                        Ok(Ok(read)) => read,
                        Ok(Err(error)) => return Poll::Ready(Some(Err(error))),
                        Err(error) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                    };
                    if bytes.is_empty() {
                        return Poll::Ready(None);
                    }
                    *self = Self::Open(file);
                    return Poll::Ready(Some(Ok(bytes.into())));
                }
                Self::Ended => return Poll::Ready(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn exact_lengths() {
        for (len, ends_well) in [(4, false), (5, true), (6, false)] {
            let mut content = Content::from("hello").with_exact_len(len);
            let mut read = Ok(0);
            while let Some(piece) = content.next().await {
                read = piece.and_then(|piece| Ok(read? + piece.len()));
            }
            assert_eq!(read.is_ok(), ends_well, "{len}: {read:?}");
            assert!(content.next().await.is_none());
        }
    }
}
