use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use futures_core::Stream;
use http_body::Body;

use super::multipart;
use crate::{
    BoxError, UploadError,
    body::digest::Expected,
    limits::{PART_HEADER_BYTES, PREAMBLE_BYTES},
};

/// Largest piece that multer gets; a slice of `Bytes` is no copy.
const PIECE: usize = 16 << 10;

/// Most bytes that multer may have and still want more: a preamble, a boundary and the headers of a
/// part, of which it has no bound of its own.
const HELD: usize = 8 << 10;

/// The body of a form on its way through multer.
///
/// multer reads until its stream is not ready, so left alone it would take in a whole body that is
/// there already, and overlook that the body ends between two of its reads (rwf2/multer issues 62
/// and 70). It gets a piece only when it can do nothing without one.
pub(super) struct Feed<'a> {
    state: State<'a>,
}

type State<'a> = Arc<Mutex<Shared<dyn Data + Send + 'a>>>;

struct Shared<D: ?Sized> {
    gate: Gate,
    /// The bytes that multer has and has not yielded yet.
    unread: Unread,
    /// No part has begun yet.
    first: bool,
    data: D,
}

/// A part and its header lines.
type Part<'m> = (multer::Field<'m>, Vec<u8>);

enum Gate {
    Shut,
    Open,
    /// What came in is with multer.
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
    /// multer keeps the last one of equal headers only, and takes a bare line feed for the end of a
    /// line, or two of them for the end of the headers; so its headers are read here as well.
    pub(super) fn poll_part<'m>(
        &self,
        multipart: &mut multer::Multipart<'m>,
        delimiter: &str,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Part<'m>>, UploadError>> {
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
    ) -> Poll<Result<Option<Bytes>, UploadError>> {
        let piece = ready!(self.poll_fed(cx, |cx| {
            Pin::new(&mut *field).poll_next(cx).map(Option::transpose)
        }))?;
        // The line break at the end belongs to the boundary.
        let len = piece.as_ref().map_or(2, Bytes::len);
        lock(&self.state).unread.skip(len);
        Poll::Ready(Ok(piece))
    }

    /// Reads what follows the last boundary, which nobody needs: the request is whole only if that
    /// is.
    pub(super) fn poll_epilogue(
        &self,
        left: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), UploadError>> {
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
    ) -> Poll<Result<T, UploadError>> {
        loop {
            if let Poll::Ready(result) = poll(cx) {
                return Poll::Ready(result.map_err(broken));
            }
            let mut state = lock(&self.state);
            match state.gate {
                // The body is not ready either, and will wake the task.
                Gate::Open => return Poll::Pending,
                // It may have taken the piece without a look at it.
                Gate::Passed => state.gate = Gate::Shut,
                Gate::Shut if state.unread.len() > HELD => {
                    return Poll::Ready(Err(multipart(TOO_LONG)));
                }
                Gate::Shut => state.gate = Gate::Open,
            }
        }
    }

    /// Cuts off the boundary and the headers of the part that multer has just found.
    fn head(&self, delimiter: &str) -> Result<Vec<u8>, UploadError> {
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
        let head = rest[..len + 2].to_vec();
        let all = unread.len() - rest.len() + len + 4;
        state.unread.skip(all);
        Ok(head)
    }
}

const TOO_LONG: &str = "its preamble or the headers of a part are too long";

fn broken(error: multer::Error) -> UploadError {
    match error {
        multer::Error::StreamReadFailed(error) => ended_by(error),
        multer::Error::IncompleteStream
        | multer::Error::IncompleteFieldData { .. }
        | multer::Error::IncompleteHeaders => multipart("it is cut off, or has no boundaries"),
        _ => multipart("the headers of a part cannot be read"),
    }
}

fn lock<'l, 'a>(state: &'l State<'a>) -> MutexGuard<'l, Shared<dyn Data + Send + 'a>> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where `needle` is, if it begins within the first `max` bytes or right after them.
fn find(bytes: &[u8], needle: &[u8], max: usize) -> Option<usize> {
    let bytes = &bytes[..bytes.len().min(max + needle.len())];
    bytes.windows(needle.len()).position(|part| part == needle)
}

/// Bytes of several pieces.
#[derive(Default)]
struct Unread {
    /// Those of all pieces but the last, and some of that: copies, but of little.
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

    /// Keeps no piece: whoever has made it has to take new memory for the next one else.
    fn let_go(&mut self) {
        self.front.extend_from_slice(&self.last);
        self.last = Bytes::new();
    }

    /// The first bytes, as many as the headers of a part can take.
    fn front(&mut self) -> &[u8] {
        let missing = HELD.saturating_sub(self.front.len());
        let now = self.last.split_to(missing.min(self.last.len()));
        self.front.extend_from_slice(&now);
        &self.front
    }

    fn skip(&mut self, len: usize) {
        let of_front = len.min(self.front.len());
        self.front.advance(of_front);
        self.last.advance((len - of_front).min(self.last.len()));
    }
}

/// The stream that multer reads.
pub(super) struct PacedBody<'a> {
    state: State<'a>,
}

impl Stream for PacedBody<'_> {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let state = &mut *lock(&self.state);
        let Gate::Open = state.gate else {
            // No need to wake anyone: `poll_fed` polls again.
            return Poll::Pending;
        };
        state.unread.let_go();
        let piece = ready!(state.data.poll_piece(cx, PIECE)).transpose()?;
        state.gate = Gate::Passed;
        if let Some(piece) = &piece {
            state.unread.push(piece.clone());
        }
        Poll::Ready(piece.map(Ok))
    }
}

/// A body whose bytes are the chunk's.
pub(crate) struct Octets<'a, B: Body> {
    pieces: Pieces<'a, B>,
}

impl<'a, B: Body> Octets<'a, B> {
    pub(crate) fn new(body: &'a mut B, digest: Option<Expected>) -> Self {
        Self {
            pieces: Pieces::new(body, digest),
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
    let mut pieces = Pieces::new(body, None);
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

trait Data {
    fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Option<Result<Bytes, UploadError>>>;
}

/// A body ends early by what the layer says, or by what its client does.
fn ended_by(error: BoxError) -> UploadError {
    match error.downcast::<UploadError>() {
        Ok(error) => *error,
        Err(_) => UploadError::Interrupted,
    }
}

/// The data of a body, without empty frames and trailers.
struct Pieces<'a, B: Body> {
    body: &'a mut B,
    frame: Option<B::Data>,
    /// What all of it has to be.
    digest: Option<Expected>,
    /// How it ended: a body that broke off never ends well, however often it is asked.
    end: Option<Result<(), UploadError>>,
}

impl<'a, B: Body> Pieces<'a, B> {
    fn new(body: &'a mut B, digest: Option<Expected>) -> Self {
        Self {
            body,
            frame: None,
            digest,
            end: None,
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
                if let Some(digest) = &mut self.digest {
                    digest.update(&piece);
                }
                return Poll::Ready(Some(Ok(piece)));
            }
            if let Some(end) = &self.end {
                return Poll::Ready(end.clone().err().map(Err));
            }
            match ready!(Pin::new(&mut *self.body).poll_frame(cx)) {
                Some(Ok(frame)) => self.frame = frame.into_data().ok(),
                Some(Err(error)) => self.end = Some(Err(ended_by(error.into()))),
                None => self.end = Some(self.digest.take().map_or(Ok(()), Expected::finish)),
            }
        }
    }
}

// `B` is only used through `&mut B`.
impl<B: Body> Unpin for Octets<'_, B> {}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::VecDeque, io, task::Waker};

    use http_body::Frame;

    use super::*;

    pub(in super::super) enum Step {
        Data(Vec<u8>),
        Trailers,
        Pending,
        Fail,
    }

    /// A body that does these things, one a poll, and then ends.
    pub(in super::super) struct Script {
        pub(in super::super) steps: VecDeque<Step>,
        /// Bytes that were taken of it.
        pub(in super::super) given: usize,
    }

    impl Script {
        pub(in super::super) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
            Self {
                steps: steps.into_iter().collect(),
                given: 0,
            }
        }
    }

    impl Body for Script {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            Poll::Ready(match self.steps.pop_front() {
                Some(Step::Data(data)) => {
                    self.given += data.len();
                    Some(Ok(Frame::data(data.into())))
                }
                Some(Step::Trailers) => Some(Ok(Frame::trailers(Default::default()))),
                Some(Step::Pending) => {
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Some(Step::Fail) => Some(Err(io::Error::other("gone"))),
                None => None,
            })
        }
    }

    fn data(text: &str) -> Step {
        Step::Data(text.into())
    }

    #[tokio::test]
    async fn octets() {
        let steps = [
            data("a"),
            data(""),
            Step::Pending,
            data("bc"),
            Step::Trailers,
        ];
        let mut body = Script::new(steps);
        let mut octets = Octets::new(&mut body, None);
        let mut next =
            async || std::future::poll_fn(|cx| Pin::new(&mut octets).poll_next(cx)).await;
        assert_eq!(next().await, Some(Ok("a".into())));
        assert_eq!(next().await, Some(Ok("bc".into())));
        assert_eq!(next().await, None);
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_body_that_broke_off_never_ends_well() {
        let mut body = Script::new([data("a"), Step::Fail]);
        let mut octets = Octets::new(&mut body, None);
        let mut next =
            async || std::future::poll_fn(|cx| Pin::new(&mut octets).poll_next(cx)).await;
        assert_eq!(next().await, Some(Ok("a".into())));
        for _ in 0..3 {
            assert_eq!(next().await, Some(Err(UploadError::Interrupted)));
        }
    }

    #[test]
    fn empty_frames_do_not_keep_a_poll_busy() {
        let mut body = Script::new((0..100).map(|_| data("")));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(
            Pin::new(&mut Octets::new(&mut body, None))
                .poll_next(&mut cx)
                .is_pending()
        );
        assert_eq!(body.steps.len(), 99);
    }

    #[test]
    fn octets_are_not_copied() {
        let frame = vec![b'a'; 1 << 20];
        let at = frame.as_ptr();
        let mut body = Script::new([Step::Data(frame)]);
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut Octets::new(&mut body, None)).poll_next(&mut cx) {
            Poll::Ready(Some(Ok(piece))) => {
                assert_eq!((piece.as_ptr(), piece.len()), (at, 1 << 20))
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn draining() {
        for (max, expected) in [(0, false), (3, false), (4, true), (5, true)] {
            let mut body = Script::new([data("ab"), Step::Pending, data("cd")]);
            assert_eq!(drain(&mut body, max).await, expected, "{max}");
        }
        assert!(!drain(&mut Script::new([data("ab"), Step::Fail]), 9).await);
        assert!(drain(&mut Script::new([]), 0).await);
    }
}
