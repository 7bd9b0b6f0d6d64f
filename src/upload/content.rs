//! The bytes of a finished upload, wherever they are: read, copied to a file, moved to one.

use std::{
    fmt,
    fs::File,
    future::{Future, poll_fn},
    io::{self, Read as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;
use http_body::{Body, Frame, SizeHint};
use tokio::task::{JoinHandle, spawn_blocking};

use crate::store::{self, Location, Sealed};

/// The bytes of a [`CompletedUpload`](crate::CompletedUpload), read from wherever they are; made by
/// [`content`](crate::CompletedUpload::content).
///
/// It is an [`http_body::Body`], so it can be passed on as the body of a request or a response, and
/// it has [`next`](Self::next) for a loop. Exactly the upload's [`size`](crate::CompletedUpload::size) in
/// bytes comes; if there are more or fewer by now, that is an error. Files are read outside of the async threads.
///
/// After an error it ends.
///
/// ```
/// use http_body_util::BodyExt as _;
/// use tower_resumable::CompletedUpload;
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
/// async fn pass_on(upload: CompletedUpload) -> http::Request<tower_resumable::Content> {
///     http::Request::put("http://archive.example/").body(upload.content()).unwrap()
/// }
/// ```
pub struct Content {
    source: Source,
    /// Bytes that are still to come.
    left: u64,
}

enum Source {
    Pieces(std::option::IntoIter<Bytes>),
    File(FileStream),
    #[cfg(feature = "object-store")]
    Object(store::ObjectStream),
    Ended,
}

impl Content {
    pub(crate) fn new(sealed: &Sealed) -> Self {
        let source = match &sealed.location {
            Location::Memory(bytes) => Source::Pieces(Some(bytes.clone()).into_iter()),
            Location::File(path) => Source::File(FileStream::open(path.clone())),
            #[cfg(feature = "object-store")]
            Location::Object(object) => Source::Object(object.read()),
        };
        Self {
            source,
            left: sealed.upload.total,
        }
    }

    /// The next bytes, `None` at the end. Cancel safe.
    ///
    /// # Errors
    ///
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone; what the file system or the object
    /// store says.
    pub async fn next(&mut self) -> Option<io::Result<Bytes>> {
        poll_fn(|cx| self.poll_piece(cx)).await
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            let piece = match &mut self.source {
                Source::Pieces(pieces) => pieces.next().map(Ok),
                Source::File(file) => ready!(Pin::new(file).poll_next(cx)),
                #[cfg(feature = "object-store")]
                Source::Object(object) => ready!(object.poll_piece(cx)),
                Source::Ended => return Poll::Ready(None),
            };
            let piece = match piece {
                Some(Ok(piece)) if piece.is_empty() => continue,
                Some(Ok(piece)) => match self.left.checked_sub(piece.len() as u64) {
                    Some(left) => {
                        self.left = left;
                        return Poll::Ready(Some(Ok(piece)));
                    }
                    None => Some(Err(io::Error::other("the file has grown"))),
                },
                None if self.left > 0 => Some(Err(io::ErrorKind::UnexpectedEof.into())),
                end => end,
            };
            self.source = Source::Ended;
            return Poll::Ready(piece);
        }
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
        SizeHint::with_exact(self.left)
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// See [`CompletedUpload::copy_to`](crate::CompletedUpload::copy_to).
pub(crate) async fn copy(sealed: &Arc<Sealed>, to: &Path) -> io::Result<()> {
    match &sealed.location {
        #[cfg(feature = "object-store")]
        Location::Object(_) => download(sealed, to).await,
        _ => blocking(sealed, to, store::copy).await,
    }
}

/// See [`CompletedUpload::persist`](crate::CompletedUpload::persist).
pub(crate) async fn persist(sealed: &Arc<Sealed>, to: &Path) -> io::Result<()> {
    match &sealed.location {
        #[cfg(feature = "object-store")]
        Location::Object(object) => {
            download(sealed, to).await?;
            object.delete().await
        }
        _ => blocking(sealed, to, store::persist).await,
    }
}

async fn blocking<T: Send + 'static>(
    sealed: &Arc<Sealed>,
    to: &Path,
    work: impl FnOnce(&Sealed, &Path) -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sealed, to) = (Arc::clone(sealed), to.to_owned());
    let work = spawn_blocking(move || work(&sealed, &to));
    work.await.map_err(io::Error::other)?
}

/// Copies what is not in this machine.
#[cfg(feature = "object-store")]
async fn download(sealed: &Arc<Sealed>, to: &Path) -> io::Result<()> {
    // Before everything is fetched in vain.
    let Some(mut copy) = blocking(sealed, to, store::NewFile::begin).await? else {
        return Ok(());
    };
    let mut content = Content::new(sealed);
    while let Some(piece) = content.next().await {
        let piece = piece?;
        let write = spawn_blocking(move || copy.write(&piece).map(|()| copy));
        copy = write.await.map_err(io::Error::other)??;
    }
    blocking(sealed, to, move |_, to| copy.publish(to)).await
}

/// A file that is read on the threads for blocking work.
pub(crate) enum FileStream {
    Closed(PathBuf),
    Open(File),
    Reading(JoinHandle<io::Result<(File, Vec<u8>)>>),
    Ended,
}

impl FileStream {
    const BLOCK: usize = 256 << 10;

    fn open(path: PathBuf) -> Self {
        Self::Closed(path)
    }

    fn read(mut file: File) -> io::Result<(File, Vec<u8>)> {
        let mut bytes = vec![0; Self::BLOCK];
        let read = file.read(&mut bytes)?;
        bytes.truncate(read);
        Ok((file, bytes))
    }
}

impl Stream for FileStream {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match std::mem::replace(&mut *self, Self::Ended) {
                Self::Closed(path) => {
                    *self = Self::Reading(spawn_blocking(|| Self::read(File::open(path)?)));
                }
                Self::Open(file) => {
                    *self = Self::Reading(spawn_blocking(|| Self::read(file)));
                }
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
