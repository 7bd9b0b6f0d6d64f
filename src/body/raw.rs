//! Bodies that are a chunk themselves.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes};
use http_body::{Body, Frame};

use super::{Source, digest::Expected};
use crate::{
    error::{Error, Reason},
    model::BoxError,
};

/// Reads and drops what is left of a body, up to `max` bytes.
pub(crate) async fn drain<B>(body: &mut B, max: u64) -> Drained
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    let mut pieces = Pieces::new(body, None);
    let mut left = max;
    while let Some(piece) = std::future::poll_fn(|cx| pieces.poll_piece(cx, usize::MAX)).await {
        let rest = piece
            .ok()
            .and_then(|piece| left.checked_sub(piece.len() as u64));
        let Some(rest) = rest else {
            return Drained::Partly;
        };
        left = rest;
    }
    Drained::ToTheEnd
}

/// How far [`drain`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    ToTheEnd,
    /// The body is longer than allowed, or failed.
    Partly,
}

/// The data of a body that is a chunk or a form, without empty frames and trailers.
pub(crate) struct Pieces<'a, B: Body> {
    body: &'a mut B,
    frame: Option<B::Data>,
    /// The expected digest of all bytes.
    digest: Option<Expected>,
    /// How the body ended. A failed body keeps failing, however often it is polled.
    end: Option<Result<(), Error>>,
}

impl<'a, B: Body> Pieces<'a, B> {
    /// `digest` is of the whole body.
    pub(crate) fn new(body: &'a mut B, digest: Option<Expected>) -> Self {
        Self {
            body,
            frame: None,
            digest,
            end: None,
        }
    }
}

impl<B> Pieces<'_, B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    /// The next piece, of at most `max` bytes.
    pub(crate) fn poll_piece(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Option<Result<Bytes, Error>>> {
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
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.frame = Some(data),
                    Err(frame) => {
                        if let (Some(digest), Ok(trailers)) =
                            (&mut self.digest, frame.into_trailers())
                        {
                            if let Err(error) = digest.trailers(&trailers) {
                                self.end = Some(Err(error));
                            }
                        }
                    }
                },
                Some(Err(error)) => self.end = Some(Err(Error::of_body(error.into()))),
                None => self.end = Some(self.digest.take().map_or(Ok(()), Expected::finish)),
            }
        }
    }
}

// `B` is only used through `&mut B`, and its data are never pinned.
impl<B: Body> Unpin for Pieces<'_, B> {}

impl<B> Body for Pieces<'_, B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let piece = ready!(self.get_mut().poll_piece(cx, usize::MAX));
        Poll::Ready(piece.map(|piece| piece.map(Frame::data).map_err(BoxError::from)))
    }
}

/// A chunk that must have one of two lengths, which are in bytes.
pub(crate) struct OneOf<'a> {
    chunk: Source<'a>,
    lengths: Option<[u64; 2]>,
    received: u64,
}

impl<'a> OneOf<'a> {
    /// `None` for a chunk of any length.
    pub(crate) fn new(chunk: Source<'a>, lengths: Option<[u64; 2]>) -> Self {
        Self {
            chunk,
            lengths,
            received: 0,
        }
    }
}

impl Body for OneOf<'_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(self.chunk.as_mut().poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let len = frame.data_ref().map_or(0, Bytes::len);
            self.received += len as u64;
        }
        let received = self.received;
        Poll::Ready(match (frame, self.lengths) {
            (None, Some([expected, other])) if ![expected, other].contains(&received) => {
                let error = Error::from(Reason::ChunkLength { expected, received });
                Some(Err(error.into()))
            }
            (frame, _) => frame,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::VecDeque, io, task::Waker};

    use super::*;

    pub(crate) enum Step {
        Data(Vec<u8>),
        Trailers,
        Pending,
        Fail,
    }

    /// A body that does one of these steps per poll, and then ends.
    pub(crate) struct Script {
        pub(crate) steps: VecDeque<Step>,
        /// Bytes that it has yielded.
        pub(crate) given: usize,
    }

    impl Script {
        pub(crate) fn new(steps: impl IntoIterator<Item = Step>) -> Self {
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

    async fn next(
        body: &mut (impl Body<Data = Bytes, Error = BoxError> + Unpin),
    ) -> Option<Result<Bytes, Error>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
        Some(
            frame
                .map(|frame| frame.into_data().unwrap())
                .map_err(Error::of_body),
        )
    }

    fn data(text: &str) -> Step {
        Step::Data(text.into())
    }

    #[tokio::test]
    async fn empty_frames_and_trailers_are_skipped() {
        let steps = [
            data("a"),
            data(""),
            Step::Pending,
            data("bc"),
            Step::Trailers,
        ];
        let mut body = Script::new(steps);
        let mut octets = Pieces::new(&mut body, None);
        let mut next = async || next(&mut octets).await;
        assert_eq!(next().await, Some(Ok(Bytes::from("a"))));
        assert_eq!(next().await, Some(Ok(Bytes::from("bc"))));
        assert_eq!(next().await, None);
        assert_eq!(next().await, None);
    }

    #[tokio::test]
    async fn a_failed_body_keeps_failing() {
        let mut body = Script::new([data("a"), Step::Fail]);
        let mut octets = Pieces::new(&mut body, None);
        let mut next = async || next(&mut octets).await;
        assert_eq!(next().await, Some(Ok(Bytes::from("a"))));
        for _ in 0..3 {
            assert_eq!(next().await, Some(Err(Reason::Interrupted.into())));
        }
    }

    #[test]
    fn empty_frames_do_not_keep_a_poll_busy() {
        let mut body = Script::new((0..100).map(|_| data("")));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(
            Pin::new(&mut Pieces::new(&mut body, None))
                .poll_frame(&mut cx)
                .is_pending()
        );
        assert_eq!(body.steps.len(), 99);
    }

    #[test]
    fn frames_are_not_copied() {
        let frame = vec![b'a'; 1 << 20];
        let at = frame.as_ptr();
        let mut body = Script::new([Step::Data(frame)]);
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut Pieces::new(&mut body, None)).poll_frame(&mut cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let piece = frame.into_data().unwrap();
                assert_eq!((piece.as_ptr(), piece.len()), (at, 1 << 20));
            }
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn draining() {
        use Drained::{Partly, ToTheEnd};
        for (max, expected) in [(0, Partly), (3, Partly), (4, ToTheEnd), (5, ToTheEnd)] {
            let mut body = Script::new([data("ab"), Step::Pending, data("cd")]);
            assert_eq!(drain(&mut body, max).await, expected, "{max}");
        }
        let mut broken = Script::new([data("ab"), Step::Fail]);
        assert_eq!(drain(&mut broken, 9).await, Partly);
        assert_eq!(drain(&mut Script::new([]), 0).await, ToTheEnd);
    }
}
