use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::{body::pace::without_client, response::ResponseBody};

pin_project! {
    /// Response future of [`Resumable`](crate::Resumable).
    ///
    /// The server drops it when the client has gone. If it has not finished by then, the rest of
    /// the work moves to a task: the bytes that have arrived are stored or discarded, and a
    /// complete upload is delivered.
    pub struct ResponseFuture<F, R> {
        #[pin]
        kind: Kind<F, R>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<F, R> {
        Inner { #[pin] future: F },
        Upload { upload: Upload<R> },
    }
}

impl<F, R> ResponseFuture<F, R> {
    pub(crate) fn inner(future: F) -> Self {
        Self {
            kind: Kind::Inner { future },
        }
    }

    pub(crate) fn upload<U>(future: U) -> Self
    where
        U: Future<Output = Response<ResponseBody<R>>> + Send + 'static,
        R: 'static,
    {
        let upload = Upload {
            future: Some(Box::pin(future)),
            has_begun: false,
        };
        Self {
            kind: Kind::Upload { upload },
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F, R>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = Result<Response<ResponseBody<R>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            KindProj::Inner { future } => future
                .poll(cx)
                .map_ok(|response| response.map(ResponseBody::inner)),
            KindProj::Upload { upload } => upload.poll(cx).map(Ok),
        }
    }
}

impl<F, R> fmt::Debug for ResponseFuture<F, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

/// A request for the layer itself. Only these are boxed.
struct Upload<R> {
    /// `None` when it has finished.
    future: Option<Pin<Box<dyn Detach<R>>>>,
    /// Whether it was ever polled. If not, nothing of the request was accepted.
    has_begun: bool,
}

impl<R> Upload<R> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody<R>>> {
        // Taken out during the poll, so that a future that panics is not polled again.
        let Some(mut future) = self.future.take() else {
            return Poll::Pending;
        };
        self.has_begun = true;
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<R> Drop for Upload<R> {
    fn drop(&mut self) {
        if let Some(future) = self.future.take().filter(|_| self.has_begun) {
            future.detach();
        }
    }
}

/// A request that can go on without its client.
trait Detach<R>: Future<Output = Response<ResponseBody<R>>> + Send {
    /// Moves the rest of the work into a task of its own.
    fn detach(self: Pin<Box<Self>>);
}

impl<F, R> Detach<R> for F
where
    F: Future<Output = Response<ResponseBody<R>>> + Send + 'static,
    R: 'static,
{
    fn detach(self: Pin<Box<Self>>) {
        // Without a runtime the work stops here, as in a crash.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(without_client(async move { drop(self.await) }));
        }
    }
}
