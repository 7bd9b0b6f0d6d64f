use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Buf as _;
use http_body::{Body, Frame};
use tokio::time::{Instant, Sleep};

use crate::{BoxError, UploadError, limits::Pace};

/// A body that ends with an error when its client is too slow, and may be asked again after its end:
/// some panic then.
pub(crate) struct Guarded<B> {
    body: B,
    ended: bool,
    pace: Pace,
    received: u64,
    /// How long it was waited for, without the time since `waiting`.
    waited: Duration,
    waiting: Option<Instant>,
    /// How long it was waited for when the last byte came.
    last: Duration,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<B> Guarded<B> {
    pub(crate) fn new(body: B, pace: Pace) -> Self {
        Self {
            body,
            ended: false,
            pace,
            received: 0,
            waited: Duration::ZERO,
            waiting: None,
            last: Duration::ZERO,
            timer: None,
        }
    }

    pub(crate) fn into_inner(self) -> B {
        self.body
    }

    /// For how long it may still be waited.
    ///
    /// What counts is only the time in which nothing was there: if the store is slow it is not the
    /// client's fault.
    fn patience(&self) -> Duration {
        let Pace {
            idle,
            min_rate,
            grace,
            body_time,
        } = self.pace;
        let for_received = match min_rate {
            0 => Duration::MAX,
            rate => Duration::from_secs(self.received / rate),
        };
        let end = grace
            .saturating_add(for_received)
            .min(self.last.saturating_add(idle))
            .min(body_time);
        end.saturating_sub(self.waited)
    }

    /// Adds the time since it began to wait.
    fn note_waiting(&mut self) {
        if let Some(since) = self.waiting.take() {
            self.waited += since.elapsed();
        }
    }

    /// Ends it because of its client.
    fn too_slow<T>(&mut self) -> Poll<Option<Result<T, BoxError>>> {
        self.ended = true;
        Poll::Ready(Some(Err(UploadError::TooSlow.into())))
    }

    /// Whether to go on waiting.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        self.waiting = Some(now);
        let patience = self.patience();
        if patience.is_zero() {
            return Poll::Ready(());
        }
        // No client waits for longer than a day.
        let end = now + patience.min(Duration::from_secs(24 * 60 * 60));
        let timer = match &mut self.timer {
            Some(timer) => {
                // To set it back costs a lock, and most bytes come at once.
                if timer.deadline() > end || timer.is_elapsed() {
                    timer.as_mut().reset(end);
                }
                timer
            }
            timer => timer.insert(Box::pin(tokio::time::sleep_until(end))),
        };
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}

impl<B> Body for Guarded<B>
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, BoxError>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        self.note_waiting();
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let bytes = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.remaining()),
            _ => 0,
        };
        self.received += bytes as u64;
        if bytes > 0 {
            self.last = self.waited;
        }
        match frame {
            Poll::Pending => match self.poll_patience(cx) {
                Poll::Ready(()) => self.too_slow(),
                Poll::Pending => Poll::Pending,
            },
            Poll::Ready(Some(Ok(_))) if bytes == 0 && self.patience().is_zero() => self.too_slow(),
            Poll::Ready(Some(Ok(frame))) => {
                // Who sends empty frames is waited for all the same.
                self.waiting = (bytes == 0).then(Instant::now);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.ended = true;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.ended = true;
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io};

    use bytes::Bytes;

    use super::*;

    /// Brings so many bytes after so many seconds each, and then nothing.
    struct Slow {
        steps: std::vec::IntoIter<(u64, usize)>,
        next: Option<(Pin<Box<Sleep>>, usize)>,
    }

    impl Body for Slow {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            if self.next.is_none() {
                self.next = self.steps.next().map(|(seconds, bytes)| {
                    let sleep = tokio::time::sleep(Duration::from_secs(seconds));
                    (Box::pin(sleep), bytes)
                });
            }
            let Some((sleep, bytes)) = &mut self.next else {
                return Poll::Pending;
            };
            std::task::ready!(sleep.as_mut().poll(cx));
            let bytes = vec![0; *bytes];
            self.next = None;
            Poll::Ready(Some(Ok(Frame::data(bytes.into()))))
        }
    }

    /// How many frames come, and after how many seconds it ends.
    async fn read(steps: impl IntoIterator<Item = (u64, usize)>, busy: Duration) -> (usize, u64) {
        let steps: Vec<_> = steps.into_iter().collect();
        let slow = Slow {
            steps: steps.into_iter(),
            next: None,
        };
        let second = Duration::from_secs;
        let pace = Pace {
            idle: second(30),
            min_rate: 10,
            grace: second(60),
            body_time: second(1000),
        };
        let mut body = Guarded::new(slow, pace);
        let (start, mut frames) = (Instant::now(), 0);
        loop {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(_)) => frames += 1,
                Some(Err(error)) => {
                    assert_eq!(error.downcast_ref(), Some(&UploadError::TooSlow));
                    let seconds = start.elapsed().as_secs();
                    assert!(
                        poll_fn(|cx| Pin::new(&mut body).poll_frame(cx))
                            .await
                            .is_none()
                    );
                    return (frames, seconds);
                }
                None => panic!("it never ends well"),
            }
            tokio::time::sleep(busy).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn slow_bodies_end() {
        let none = Duration::ZERO;
        // Nothing at all.
        assert_eq!(read([], none).await, (0, 30));
        // A pause that is just short enough, and then a longer one.
        assert_eq!(read([(29, 1000)], none).await, (1, 59));
        // A byte now and then: the minute of grace.
        assert_eq!(read([(10, 1); 99], none).await, (6, 60));
        // Twice as fast as it has to be, until the time is over.
        assert_eq!(read([(10, 200); 999], none).await, (100, 1000));
        // Too slow, but much at the beginning: 60 s of grace and 100 for the bytes.
        assert_eq!(
            read([(0, 1000)].into_iter().chain([(10, 0); 99]), none)
                .await
                .1,
            30
        );
        let trickle = [(0, 1000)].into_iter().chain([(10, 1); 99]);
        assert_eq!(read(trickle, none).await.1, 161);
        // While the layer is busy nobody waits for the client.
        let (frames, _) = read([(29, 1000), (29, 1000)], Duration::from_secs(500)).await;
        assert_eq!(frames, 2);
    }
}
