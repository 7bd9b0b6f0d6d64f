//! Bodies of chunks that end, fail or wait when a check tells them to.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use tokio::sync::oneshot;

use crate::model::BoxError;

/// The error of a body that fails.
pub(super) const FAILURE: &str = "the client is gone";

/// How many bytes each frame of a [`Source`] has, but the last one.
pub(super) const FRAME: usize = 70_000;

/// A body of given bytes, and what follows them.
pub(super) struct Source {
    frames: VecDeque<Bytes>,
    then: Then,
    /// Notified when all bytes were taken and the next frame is polled for.
    drained: Option<oneshot::Sender<()>>,
    /// Notified when the first frame is polled for.
    started: Option<oneshot::Sender<()>>,
    /// How often it is pending before each frame.
    pauses: u32,
    paused: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum End {
    /// The body ends.
    Well,
    /// The body fails.
    Failure,
}

#[derive(Debug)]
enum Then {
    Ends(End),
    /// Ends when it is notified. Fails if the sender is dropped.
    Waits(oneshot::Receiver<()>),
}

/// Holds back the end of a body.
pub(super) struct Hold {
    drained: oneshot::Receiver<()>,
    end: oneshot::Sender<()>,
}

impl Hold {
    /// Waits until the store has taken all bytes, and polls for the end.
    pub(super) async fn drained(&mut self) {
        // An error says that the body is dropped: the caller sees what has become of the request.
        let _ = (&mut self.drained).await;
    }

    /// Ends the body without an error.
    pub(super) fn end(self) {
        // The request may have ended before its body: the caller sees the result.
        let _ = self.end.send(());
    }
}

impl Source {
    pub(super) fn new(bytes: &[u8]) -> Self {
        Self::ending(bytes, End::Well)
    }

    pub(super) fn ending(bytes: &[u8], end: End) -> Self {
        Self {
            frames: bytes.chunks(FRAME).map(Bytes::copy_from_slice).collect(),
            then: Then::Ends(end),
            drained: None,
            started: None,
            pauses: 0,
            paused: 0,
        }
    }

    /// Is pending once before each frame, and once before the end.
    pub(super) fn with_pauses(bytes: &[u8]) -> Self {
        Self {
            pauses: 1,
            ..Self::new(bytes)
        }
    }

    /// Has small frames and many pauses. The receiver tells when it is polled first.
    pub(super) fn started(bytes: &[u8]) -> (Self, oneshot::Receiver<()>) {
        let (sender, started) = oneshot::channel();
        let source = Self {
            started: Some(sender),
            pauses: 20,
            frames: bytes.chunks(1000).map(Bytes::copy_from_slice).collect(),
            ..Self::new(bytes)
        };
        (source, started)
    }

    /// Does not end before [`Hold::end`].
    pub(super) fn held(bytes: &[u8]) -> (Self, Hold) {
        let (drained_sender, drained) = oneshot::channel();
        let (end, end_receiver) = oneshot::channel();
        let source = Self {
            then: Then::Waits(end_receiver),
            drained: Some(drained_sender),
            ..Self::new(bytes)
        };
        (source, Hold { drained, end })
    }
}

impl Body for Source {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(started) = self.started.take() {
            // The check may have stopped waiting.
            let _ = started.send(());
        }
        if self.paused < self.pauses {
            self.paused += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.paused = 0;
        if let Some(bytes) = self.frames.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(bytes))));
        }
        if let Some(drained) = self.drained.take() {
            // The check may have stopped waiting.
            let _ = drained.send(());
        }
        let end = match &mut self.then {
            Then::Ends(end) => *end,
            Then::Waits(end) => match Pin::new(end).poll(cx) {
                Poll::Ready(Ok(())) => End::Well,
                Poll::Ready(Err(_)) => End::Failure,
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready(match end {
            End::Well => None,
            End::Failure => Some(Err(FAILURE.into())),
        })
    }
}
