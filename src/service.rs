use std::{
    fmt,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    engine::{Engine, head::Head, receive},
    future::ResponseFuture,
    model::BoxError,
    response::ResponseBody,
};

/// Middleware that receives uploads and delivers complete files to the inner service.
///
/// Made by [`ResumableLayer`](crate::ResumableLayer).
///
/// # Panics
///
/// The response future of an upload request panics outside of a tokio runtime with a time driver.
#[derive(Clone)]
pub struct Resumable<S> {
    inner: S,
    engine: Engine,
}

impl<S> Resumable<S> {
    pub(crate) fn new(inner: S, engine: Engine) -> Self {
        Self { inner, engine }
    }

    /// Returns a reference to the inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Removes the middleware and returns the inner service.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S: fmt::Debug> fmt::Debug for Resumable<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumable")
            .field("inner", &self.inner)
            .field("config", &self.engine.config)
            .finish_non_exhaustive()
    }
}

impl<S, B, R> Service<Request<B>> for Resumable<S>
where
    S: Service<Request<B>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, R>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let config = &self.engine.config;
        let exchange = if config.matches(&head) {
            // The end of an HTTP/2 stream can come after the head.
            let is_empty = body.is_end_stream() || body.size_hint().exact() == Some(0);
            config.protocols.decode(&head, is_empty)
        } else {
            None
        };
        let Some(exchange) = exchange else {
            let watch = config.events.watch(&head.uri);
            let request = Request::from_parts(head, body);
            return ResponseFuture::inner(self.inner.call(request), watch);
        };
        // A slow chunk must not hold the readiness (a concurrency permit, a buffer slot) that
        // `poll_ready` reserved. So the ready service is dropped for a fresh clone, and another
        // clone is driven to readiness only when there is a complete upload to deliver.
        let inner = self.inner.clone();
        self.inner = inner.clone();
        let engine = self.engine.clone();
        let head = Head::new(head);
        ResponseFuture::upload(receive::handle(engine, inner, exchange, head, body))
    }
}
