use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Buf as _;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::live::{Meter, time_of};
use crate::{
    error::{Error, Reason},
    limits::Pace,
    model::BoxError,
    timer::Timer,
};

tokio::task_local! {
    /// Set in a task that finishes a request whose client has gone.
    static CLIENT_IS_GONE: ();
}

/// Runs the rest of a request whose client has gone. Its body ends with an error at the next poll.
pub(crate) async fn without_client<T>(rest: impl Future<Output = T>) -> T {
    CLIENT_IS_GONE.scope((), rest).await
}

/// A body that fails when its client is too slow or gone. It may be polled after its end, at which
/// some bodies panic.
pub(crate) struct Paced<B> {
    body: B,
    /// Whether it was ever polled.
    begun: bool,
    ended: bool,
    pace: Pace,
    /// Set while the body is counted.
    meter: Option<Arc<Meter>>,
    /// What the meter wakes if the body has to end.
    registered: Option<Waker>,
    /// How much longer the body has taken than at the minimum rate, without the time since
    /// `waiting`.
    behind: Duration,
    /// How long this body has waited for the client, without the time since `waiting`.
    waited: Duration,
    waiting: Option<Instant>,
    /// The value of `waited` when the last byte came.
    last: Duration,
    timer: Timer,
}

impl<B> Paced<B> {
    pub(crate) fn new(body: B, pace: Pace) -> Self {
        Self {
            body,
            begun: false,
            ended: false,
            pace,
            meter: None,
            registered: None,
            behind: Duration::ZERO,
            waited: Duration::ZERO,
            waiting: None,
            last: Duration::ZERO,
            timer: Timer::default(),
        }
    }

    pub(crate) fn into_inner(self) -> B {
        self.body
    }

    /// Whether bytes were asked for. Until then a server does not send `100 Continue`.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun
    }

    /// Lets the body take any time as a whole. What has arrived of it is kept.
    pub(crate) fn take_any_time(&mut self) {
        self.pace.body_time = Duration::MAX;
    }

    /// Sets what measures this body for others, and ends it if it has to give way.
    pub(crate) fn set_meter(&mut self, meter: Arc<Meter>) {
        self.meter = Some(meter);
        self.registered = None;
    }

    /// How long the client may still take.
    ///
    /// Only the time counts in which no bytes were available: a slow store is not the client's
    /// fault.
    fn patience(&self) -> Duration {
        let Pace {
            idle,
            min_rate,
            grace,
            body_time,
        } = self.pace;
        let for_rate = if min_rate == 0 {
            Duration::MAX
        } else {
            grace.saturating_sub(self.behind)
        };
        let end = self.last.saturating_add(idle).min(body_time);
        end.saturating_sub(self.waited).min(for_rate)
    }

    /// Adds the time since `waiting`, and the bytes that have come.
    fn note(&mut self, bytes: u64) {
        let waited = self.waiting.take().map(|since| since.elapsed());
        if waited.is_none() && bytes == 0 {
            return;
        }
        let waited = waited.unwrap_or_default();
        self.waited += waited;
        // Never below zero: bytes buy no patience for later.
        self.behind = (self.behind + waited).saturating_sub(time_of(bytes, self.pace.min_rate));
        if bytes > 0 {
            self.last = self.waited;
        }
        if let Some(meter) = &self.meter {
            meter.note(waited, bytes);
        }
    }

    fn wait_since(&mut self, since: Option<Instant>) {
        self.waiting = since;
        if let Some(meter) = &self.meter {
            meter.wait_since(since);
        }
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(meter) = &self.meter {
            meter.settle();
        }
    }

    /// Ends the body because of its client.
    fn fail<T>(&mut self, reason: Reason) -> Poll<Option<Result<T, BoxError>>> {
        self.end();
        Poll::Ready(Some(Err(Error::from(reason).into())))
    }

    /// Whether the body has to give way to others.
    fn has_to_end(&self) -> bool {
        self.meter.as_ref().is_some_and(|meter| meter.has_to_end())
    }

    /// Whether to go on waiting.
    fn poll_patience(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        self.wait_since(Some(now));
        if let Some(meter) = &self.meter {
            let is_registered = |waker: &Waker| waker.will_wake(cx.waker());
            if !self.registered.as_ref().is_some_and(is_registered) {
                meter.register(cx.waker());
                self.registered = Some(cx.waker().clone());
            }
            if meter.has_to_end() {
                return Poll::Ready(());
            }
        }
        let patience = self.patience();
        if patience.is_zero() {
            return Poll::Ready(());
        }
        // Bounded, so that the sum does not overflow.
        let end = now + patience.min(Duration::from_secs(24 * 60 * 60));
        self.timer.poll_until(cx, end)
    }
}

impl<B> Body for Paced<B>
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
        if CLIENT_IS_GONE.try_with(|()| ()).is_ok() {
            // The body may not notice that its connection has ended, and could end as if it were
            // whole.
            return self.fail(Reason::Interrupted);
        }
        if self.has_to_end() {
            return self.fail(Reason::TooSlow);
        }
        self.begun = true;
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let bytes = match &frame {
            Poll::Ready(Some(Ok(frame))) => frame.data_ref().map_or(0, |data| data.remaining()),
            _ => 0,
        };
        self.note(bytes as u64);
        match frame {
            Poll::Pending => match self.poll_patience(cx) {
                Poll::Ready(()) => self.fail(Reason::TooSlow),
                Poll::Pending => Poll::Pending,
            },
            Poll::Ready(Some(Ok(_))) if bytes == 0 && self.patience().is_zero() => {
                self.fail(Reason::TooSlow)
            }
            Poll::Ready(Some(Ok(frame))) => {
                // Empty frames do not end the waiting.
                self.wait_since((bytes == 0).then(Instant::now));
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.end();
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io};

    use bytes::Bytes;

    use tokio::time::Sleep;

    use super::*;

    /// Yields the given number of bytes after the given number of seconds, for each step, and then
    /// nothing.
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
        let mut body = Paced::new(slow, pace);
        let (start, mut frames) = (Instant::now(), 0);
        loop {
            match poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
                Some(Ok(_)) => frames += 1,
                Some(Err(error)) => {
                    assert_eq!(error.downcast_ref::<Error>(), Some(&Reason::TooSlow.into()));
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
    async fn slow_bodies_fail() {
        let none = Duration::ZERO;
        // Nothing at all.
        assert_eq!(read([], none).await, (0, 30));
        // A pause that is just short enough, and then a longer one.
        assert_eq!(read([(29, 1000)], none).await, (1, 59));
        // A byte every ten seconds: the grace period of a minute.
        assert_eq!(read([(10, 1); 99], none).await, (6, 60));
        // Twice the minimum rate, until the time for the whole body is over.
        assert_eq!(read([(10, 200); 999], none).await, (100, 1000));
        // Nothing after the beginning.
        assert_eq!(
            read([(0, 1000)].into_iter().chain([(10, 0); 99]), none)
                .await
                .1,
            30
        );
        // Bytes buy no patience for later: too slow after a fast beginning, or in the middle.
        let trickle = |first| [(0, first)].into_iter().chain([(10, 1); 99]);
        assert_eq!(read(trickle(1000), none).await.1, 60);
        assert_eq!(read(trickle(1 << 30), none).await.1, 60);
        let middle = [(10, 100); 20].into_iter().chain([(10, 1); 99]);
        assert_eq!(read(middle, none).await.1, 260);
        // But they make up for a pause before.
        let pauses = [(25, 250); 30].into_iter().chain([(10, 1); 99]);
        assert_eq!(read(pauses, none).await.1, 810);
        // While the layer is busy the client is not waited for.
        let (frames, _) = read([(29, 1000), (29, 1000)], Duration::from_secs(500)).await;
        assert_eq!(frames, 2);
    }
}
