use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use pin_project_lite::pin_project;
use tokio::runtime::Handle;

use crate::{
    body::pace::without_client, events::Watch, response::ResponseBody, span::Context as Span,
};

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
        Inner { #[pin] future: F, watch: Watch },
        Upload { upload: Upload<R> },
    }
}

impl<F, R> ResponseFuture<F, R> {
    pub(crate) fn inner(future: F, watch: Watch) -> Self {
        Self {
            kind: Kind::Inner { future, watch },
        }
    }

    pub(crate) fn upload<U>(future: U) -> Self
    where
        U: Future<Output = Response<ResponseBody<R>>> + Send + 'static,
        R: 'static,
    {
        let upload = Upload {
            future: Some(Box::pin(future)),
            span: None,
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
            KindProj::Inner { future, watch } => future.poll(cx).map_ok(|mut response| {
                watch.look_at(&mut response);
                response.map(ResponseBody::inner)
            }),
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
    /// The span of the request, once it was polled. Before that, nothing of it was accepted.
    span: Option<Span>,
}

impl<R> Upload<R> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Response<ResponseBody<R>>> {
        // Taken out during the poll, so that a future that panics is not polled again.
        let Some(mut future) = self.future.take() else {
            return Poll::Pending;
        };
        // A future is dropped outside of the span that it is polled in.
        self.span.get_or_insert_with(Span::current);
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() {
            self.future = Some(future);
        }
        polled
    }
}

impl<R> Drop for Upload<R> {
    fn drop(&mut self) {
        if let (Some(future), Some(span)) = (self.future.take(), self.span.take()) {
            future.detach(span);
        }
    }
}

/// A request that can go on without its client.
trait Detach<R>: Future<Output = Response<ResponseBody<R>>> + Send {
    /// Moves the rest of the work into a task of its own.
    fn detach(self: Pin<Box<Self>>, span: Span);
}

impl<F, R> Detach<R> for F
where
    F: Future<Output = Response<ResponseBody<R>>> + Send + 'static,
    R: 'static,
{
    fn detach(self: Pin<Box<Self>>, span: Span) {
        // Without a runtime the work stops here, as in a crash.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(span.run(without_client(async move { drop(self.await) })));
        }
    }
}
