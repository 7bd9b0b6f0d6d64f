//! The tracing span of a request, for the work that goes on outside of its task. Without the
//! feature `tracing` there is none.

use tokio::task::JoinHandle;

/// The span that is current where this is created.
#[derive(Clone)]
pub(crate) struct Context(#[cfg(feature = "tracing")] tracing::Span);

impl Context {
    pub(crate) fn current() -> Self {
        Self(
            #[cfg(feature = "tracing")]
            tracing::Span::current(),
        )
    }

    /// Runs a future in the span.
    pub(crate) fn run<F: Future>(self, future: F) -> impl Future<Output = F::Output> + use<F> {
        #[cfg(feature = "tracing")]
        let future = tracing::Instrument::instrument(future, self.0);
        future
    }

    /// Calls a function in the span.
    fn call<T>(&self, function: impl FnOnce() -> T) -> T {
        #[cfg(feature = "tracing")]
        let _entered = self.0.enter();
        function()
    }
}

/// Calls a function in the current span, on a thread for blocking work.
pub(crate) fn spawn_blocking<T: Send + 'static>(
    function: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let context = Context::current();
    tokio::task::spawn_blocking(move || context.call(function))
}
