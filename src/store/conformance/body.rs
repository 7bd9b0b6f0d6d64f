//! Bodies of chunks that end, fail or wait when a check wants it.

use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use tokio::sync::oneshot;

use crate::UploadError;

/// Given bytes, and then what [`Then`] says.
pub(super) struct Source {
    pieces: VecDeque<Bytes>,
    then: Then,
    /// Told when all bytes were taken and more is asked for.
    dry: Option<oneshot::Sender<()>>,
    /// Whether it makes the store wait before each piece.
    pauses: bool,
    paused: bool,
}

#[derive(Debug)]
pub(super) enum Then {
    End,
    Error,
    /// Ends when told so; fails if nobody can do so any more.
    Wait(oneshot::Receiver<()>),
}

/// Holds a body whose bytes are given, but not its end.
pub(super) struct Hold {
    pub(super) dry: oneshot::Receiver<()>,
    end: oneshot::Sender<()>,
}

impl Hold {
    /// Waits until the store has taken all bytes, and asks for the end.
    pub(super) async fn dry(&mut self) {
        let _ = (&mut self.dry).await;
    }

    pub(super) fn end(self) {
        // If nobody listens the request is gone, as it may be.
        let _ = self.end.send(());
    }
}

impl Source {
    pub(super) fn new(bytes: &[u8], then: Then) -> Self {
        Self {
            pieces: bytes.chunks(70_000).map(Bytes::copy_from_slice).collect(),
            then,
            dry: None,
            pauses: false,
            paused: false,
        }
    }

    /// Makes the store wait before each piece, and before the end.
    pub(super) fn with_pauses(bytes: &[u8]) -> Self {
        Self {
            pauses: true,
            ..Self::new(bytes, Then::End)
        }
    }

    /// Does not end before [`Hold::end`].
    pub(super) fn held(bytes: &[u8]) -> (Self, Hold) {
        let (dry_sender, dry) = oneshot::channel();
        let (end, wait) = oneshot::channel();
        let source = Self {
            dry: Some(dry_sender),
            ..Self::new(bytes, Then::Wait(wait))
        };
        (source, Hold { dry, end })
    }
}

impl Stream for Source {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.pauses {
            self.paused = !self.paused;
            if self.paused {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
        if let Some(piece) = self.pieces.pop_front() {
            return Poll::Ready(Some(Ok(piece)));
        }
        if let Some(dry) = self.dry.take() {
            let _ = dry.send(());
        }
        let whole = match &mut self.then {
            Then::End => true,
            Then::Error => false,
            Then::Wait(end) => match Pin::new(end).poll(cx) {
                Poll::Ready(told) => told.is_ok(),
                Poll::Pending => return Poll::Pending,
            },
        };
        Poll::Ready((!whole).then_some(Err(UploadError::Interrupted)))
    }
}

/// Polls `future` at most so many times; `None` if it needs more.
pub(super) async fn poll_times<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = times;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Its last poll: there is nothing to be woken for.
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

/// Runs `future` until `stop` is ready; its output if it was faster.
pub(super) async fn run_until<T>(
    mut future: Pin<&mut impl Future<Output = T>>,
    stop: impl Future,
) -> Option<T> {
    let mut stop = pin!(stop);
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => stop.as_mut().poll(cx).map(|_| None),
    })
    .await
}
