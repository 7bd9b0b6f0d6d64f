use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use futures_core::Stream;
use http_body::Body;

use crate::{BoxError, UploadError};

/// Largest piece that multer gets; a slice of `Bytes` is no copy.
const PIECE: usize = 64 << 10;

/// Most bytes that multer may hold without making progress: a preamble, the headers of a part. It
/// has no bound of its own, and looks at all of them again with each piece.
const HELD: usize = 2 * PIECE;

/// The data of a body; the stream that multer owns and the form that reads on after it share it.
pub(super) type Source<'a> = Arc<Mutex<dyn Data + Send + 'a>>;

pub(super) trait Data {
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Option<Result<Bytes, UploadError>>>;
}

pub(super) fn source<B>(body: &mut B) -> Source<'_>
where
    B: Body + Send + Unpin,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    Arc::new(Mutex::new(Pieces::new(body)))
}

/// Reads what follows the last boundary, which nobody needs: the request is whole only if that is.
pub(super) fn poll_epilogue(
    source: &Source<'_>,
    left: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<(), UploadError>> {
    let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
    while let Some(piece) = ready!(source.poll_piece(cx, PIECE)).transpose()? {
        let reason = "there is too much after its end";
        *left = left
            .checked_sub(piece.len())
            .ok_or(UploadError::Multipart { reason })?;
    }
    Poll::Ready(Ok(()))
}

/// A body as the stream that multer needs.
///
/// multer reads until the stream is not ready, so this one is never ready twice in a row: else it
/// would take in a whole body that is there already, and overlook that the body ends between two of
/// its reads (rwf2/multer issues 62 and 70).
pub(super) struct PacedBody<'a> {
    source: Source<'a>,
    held: Arc<AtomicUsize>,
    pause: bool,
}

impl<'a> PacedBody<'a> {
    /// `held` is to be set to zero whenever multer yields something.
    pub(super) fn new(source: Source<'a>, held: Arc<AtomicUsize>) -> Self {
        Self {
            source,
            held,
            pause: false,
        }
    }
}

impl Stream for PacedBody<'_> {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.pause) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let mut source = this.source.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = ready!(source.poll_piece(cx, PIECE)).transpose()?;
        if let Some(piece) = &piece {
            this.pause = true;
            if this.held.fetch_add(piece.len(), Relaxed) > HELD {
                let reason = "its preamble or the headers of a part are too long";
                return Poll::Ready(Some(Err(UploadError::Multipart { reason })));
            }
        }
        Poll::Ready(piece.map(Ok))
    }
}

/// A body whose bytes are the chunk's.
pub(crate) struct Octets<'a, B: Body> {
    pieces: Pieces<'a, B>,
}

impl<'a, B: Body> Octets<'a, B> {
    pub(crate) fn new(body: &'a mut B) -> Self {
        Self {
            pieces: Pieces::new(body),
        }
    }
}

impl<B> Stream for Octets<'_, B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Item = Result<Bytes, UploadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().pieces.poll_piece(cx, usize::MAX)
    }
}

/// Reads and drops what is left of a body; `false` if it is more than `max` bytes or breaks off.
pub(crate) async fn drain<B>(body: &mut B, max: u64) -> bool
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    let mut pieces = Pieces::new(body);
    let mut left = max;
    while let Some(piece) = std::future::poll_fn(|cx| pieces.poll_piece(cx, usize::MAX)).await {
        match piece
            .ok()
            .and_then(|piece| left.checked_sub(piece.len() as u64))
        {
            Some(rest) => left = rest,
            None => return false,
        }
    }
    true
}

/// The data of a body, without empty frames and trailers.
struct Pieces<'a, B: Body> {
    body: &'a mut B,
    frame: Option<B::Data>,
    done: bool,
}

impl<'a, B: Body> Pieces<'a, B> {
    fn new(body: &'a mut B) -> Self {
        Self {
            body,
            frame: None,
            done: false,
        }
    }
}

impl<B> Data for Pieces<'_, B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Option<Result<Bytes, UploadError>>> {
        loop {
            if let Some(data) = &mut self.frame {
                let piece = data.copy_to_bytes(data.remaining().min(max));
                if !data.has_remaining() {
                    self.frame = None;
                }
                if piece.is_empty() {
                    // A client that sends empty frames only must not keep this poll busy.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                return Poll::Ready(Some(Ok(piece)));
            }
            if self.done {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut *self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.frame = frame.into_data().ok(),
                Some(Err(_)) => {
                    self.done = true;
                    return Poll::Ready(Some(Err(UploadError::Interrupted)));
                }
                None => self.done = true,
            }
        }
    }
}

// `B` is only used through `&mut B`.
impl<B: Body> Unpin for Octets<'_, B> {}
