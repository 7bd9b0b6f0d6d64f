//! A timer for deadlines that change with each piece of a body.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that is set once, and again when it has ended before the deadline.
///
/// To set a timer takes a lock, and wakes the thread that waits for the next one. With
/// [`timeout_at`](tokio::time::timeout_at) for each piece, a chunk of 1 MiB did that 14 times.
#[derive(Debug, Default)]
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Whether the deadline has come.
    pub(crate) fn poll_until(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let new = || Box::pin(sleep_until(deadline));
        let timer = self.0.get_or_insert_with(new);
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deadlines_may_move_in_both_directions() {
        let (start, mut timer) = (Instant::now(), Timer::default());
        let at = |millis| start + Duration::from_millis(millis);
        // The second one is known before the first one has come.
        for (first, second) in [(10, 30), (90, 40), (50, 50), (0, 60)] {
            poll_fn(|cx| Poll::Ready(timer.poll_until(cx, at(first)).is_pending())).await;
            poll_fn(|cx| timer.poll_until(cx, at(second))).await;
            assert_eq!(Instant::now(), at(second));
        }
    }
}
