use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_core::Stream;
use http_body::Body;

use super::disposition::Head;
use crate::{
    body::{digest::Expected, raw::Pieces},
    error::{Error, Reason},
    limits::{PART_HEADER_BYTES, PART_HEADERS, PREAMBLE_BYTES},
    lock::lock,
    model::BoxError,
};

/// The largest piece that multer gets. A slice of `Bytes` is not a copy.
const PIECE: usize = 16 << 10;

/// The most bytes that multer may hold before it has to make progress: a preamble, a boundary and
/// the headers of a part, which multer does not limit.
const HELD: usize = 8 << 10;

/// The body of a form on its way through multer.
///
/// multer reads until its stream is not ready. It would buffer a whole body that has arrived
/// already, and would miss an end between two of its reads (rwf2/multer issues 62 and 70). So it
/// gets a piece only when it cannot continue without one.
pub(super) struct Feed<'a> {
    state: State<'a>,
}

type State<'a> = Arc<Mutex<Shared<dyn Data + Send + 'a>>>;

struct Shared<D: ?Sized> {
    gate: Gate,
    /// The bytes that multer holds.
    unread: Unread,
    /// No part has begun yet.
    first: bool,
    data: D,
}

/// A part and its headers.
type Part<'m> = (multer::Field<'m>, Head);

enum Gate {
    Shut,
    Open,
    /// multer has got the piece.
    Passed,
}

impl<'a> Feed<'a> {
    pub(super) fn new<B>(body: &'a mut B, digest: Option<Expected>) -> (Self, PacedBody<'a>)
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let state: State<'a> = Arc::new(Mutex::new(Shared {
            gate: Gate::Shut,
            unread: Unread::default(),
            first: true,
            data: Pieces::new(body, digest),
        }));
        let feed = Self {
            state: Arc::clone(&state),
        };
        (feed, PacedBody { state })
    }

    /// The next part.
    ///
    /// Of repeated headers multer keeps only the last one, and it accepts a bare line feed as the
    /// end of a line. So the headers are read here as well.
    pub(super) fn poll_part<'m>(
        &self,
        multipart: &mut multer::Multipart<'m>,
        delimiter: &str,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Part<'m>>, Error>> {
        let field = ready!(self.poll_fed(cx, |cx| multipart.poll_next_field(cx)))?;
        Poll::Ready(match field {
            Some(field) => self.head(delimiter).map(|head| Some((field, head))),
            None => Ok(None),
        })
    }

    /// The next piece of a part.
    pub(super) fn poll_field(
        &self,
        field: &mut multer::Field<'_>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, Error>> {
        let piece = ready!(self.poll_fed(cx, |cx| {
            Pin::new(&mut *field).poll_next(cx).map(Option::transpose)
        }))?;
        // The line break at the end belongs to the boundary.
        let len = piece.as_ref().map_or(2, Bytes::len);
        lock(&self.state).unread.skip(len);
        Poll::Ready(Ok(piece))
    }

    /// Reads and drops what follows the last boundary. Only then is the request known to be whole.
    pub(super) fn poll_epilogue(
        &self,
        left: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Error>> {
        let mut state = lock(&self.state);
        while let Some(piece) = ready!(state.data.poll_piece(cx, PIECE)).transpose()? {
            *left = left
                .checked_sub(piece.len())
                .ok_or(multipart("there is too much after its end"))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_fed<T>(
        &self,
        cx: &mut Context<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<multer::Result<T>>,
    ) -> Poll<Result<T, Error>> {
        loop {
            if let Poll::Ready(result) = poll(cx) {
                return Poll::Ready(result.map_err(broken));
            }
            let mut state = lock(&self.state);
            match state.gate {
                // The body is not ready either, and will wake the task.
                Gate::Open => return Poll::Pending,
                // multer may have buffered the piece without parsing it.
                Gate::Passed => state.gate = Gate::Shut,
                Gate::Shut if state.unread.len() > HELD => {
                    return Poll::Ready(Err(multipart(TOO_LONG)));
                }
                Gate::Shut => state.gate = Gate::Open,
            }
        }
    }

    /// Takes the boundary and the headers of the part that multer has just found.
    fn head(&self, delimiter: &str) -> Result<Head, Error> {
        let mut state = lock(&self.state);
        let max = if state.first { PREAMBLE_BYTES } else { 0 };
        state.first = false;
        let unread = state.unread.front();
        let preamble = find(unread, delimiter.as_bytes(), max).ok_or(multipart(TOO_LONG))?;
        if preamble > 0 && !unread[..preamble].ends_with(b"\r\n") {
            return Err(multipart(
                "its first boundary is not at the start of a line",
            ));
        }
        let rest = &unread[preamble + delimiter.len()..];
        let padding = rest.iter().take_while(|b| matches!(b, b' ' | b'\t'));
        let padding = padding.count();
        let rest = rest.get(padding + 2..).unwrap_or_default();
        let len = find(rest, b"\r\n\r\n", PART_HEADER_BYTES).ok_or(multipart(TOO_LONG))?;
        let head = Head::parse(&rest[..len + 2], PART_HEADERS).map_err(multipart)?;
        let all = unread.len() - rest.len() + len + 4;
        state.unread.skip(all);
        Ok(head)
    }
}

pub(super) fn multipart(problem: &'static str) -> Error {
    Reason::Multipart { problem }.into()
}

const TOO_LONG: &str = "its preamble or the headers of a part are too long";

fn broken(error: multer::Error) -> Error {
    match error {
        multer::Error::StreamReadFailed(error) => Error::of_body(error),
        multer::Error::IncompleteStream
        | multer::Error::IncompleteFieldData { .. }
        | multer::Error::IncompleteHeaders => multipart("it is cut off, or has no boundaries"),
        _ => multipart("the headers of a part cannot be read"),
    }
}

/// Where `needle` is, if it starts within the first `max` bytes or right after them.
fn find(bytes: &[u8], needle: &[u8], max: usize) -> Option<usize> {
    let bytes = &bytes[..bytes.len().min(max + needle.len())];
    bytes.windows(needle.len()).position(|part| part == needle)
}

/// Bytes of several pieces.
#[derive(Default)]
struct Unread {
    /// Copies of all pieces but the last, and of the start of that one. They are short.
    front: BytesMut,
    last: Bytes,
}

impl Unread {
    fn len(&self) -> usize {
        self.front.len() + self.last.len()
    }

    fn push(&mut self, piece: Bytes) {
        self.let_go();
        self.last = piece;
    }

    /// Copies the last piece, so that its memory can be used for the next one.
    fn let_go(&mut self) {
        self.front.extend_from_slice(&self.last);
        self.last = Bytes::new();
    }

    /// The first bytes, at least as many as the headers of a part can take.
    fn front(&mut self) -> &[u8] {
        if self.front.is_empty() {
            return &self.last;
        }
        let missing = HELD.saturating_sub(self.front.len());
        let now = self.last.split_to(missing.min(self.last.len()));
        self.front.extend_from_slice(&now);
        &self.front
    }

    fn skip(&mut self, len: usize) {
        let of_front = len.min(self.front.len());
        self.front.advance(of_front);
        self.last.advance((len - of_front).min(self.last.len()));
        if self.front.is_empty() {
            // A form that stalls must not hold the memory of the heads that it has passed.
            self.front = BytesMut::new();
        }
    }
}

/// The stream that multer reads.
pub(super) struct PacedBody<'a> {
    state: State<'a>,
}

impl Stream for PacedBody<'_> {
    type Item = Result<Bytes, BoxError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let state = &mut *lock(&self.state);
        let Gate::Open = state.gate else {
            // No waker is needed: `poll_fed` polls again.
            return Poll::Pending;
        };
        state.unread.let_go();
        let piece = ready!(state.data.poll_piece(cx, PIECE)).transpose();
        let piece = piece.map_err(BoxError::from)?;
        state.gate = Gate::Passed;
        if let Some(piece) = &piece {
            state.unread.push(piece.clone());
        }
        Poll::Ready(piece.map(Ok))
    }
}

/// Data of a body, without the body's type.
trait Data {
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Option<Result<Bytes, Error>>>;
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
    ) -> Poll<Option<Result<Bytes, Error>>> {
        Pieces::poll_piece(self, cx, max)
    }
}
