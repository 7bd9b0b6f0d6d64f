use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

use tokio::sync::Notify;

/// Counts the requests and deliveries that are running.
#[derive(Debug, Default)]
pub(crate) struct Active {
    count: AtomicUsize,
    idle: Notify,
}

/// Counts one request or delivery until it is dropped.
#[derive(Debug)]
pub(crate) struct ActiveGuard(Arc<Active>);

impl Active {
    pub(crate) fn enter(self: &Arc<Self>) -> ActiveGuard {
        self.count.fetch_add(1, SeqCst);
        ActiveGuard(Arc::clone(self))
    }

    pub(crate) fn count(&self) -> u64 {
        self.count.load(SeqCst) as u64
    }

    /// Waits until nothing is running.
    pub(crate) async fn idle(&self) {
        loop {
            let mut idle = std::pin::pin!(self.idle.notified());
            // Registered before the count is read: no notification is missed.
            idle.as_mut().enable();
            if self.count.load(SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, SeqCst) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}
