use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tower_service::Service;

use crate::{
    BoxError, ResponseBody, ResponseFuture,
    engine::{Engine, receive},
    protocol::chunked::Intent,
};

/// Middleware that receives uploads in chunks and hands finished files to the service behind it.
///
/// Made by [`ResumableLayer`](crate::ResumableLayer). It needs a tokio runtime.
#[derive(Clone)]
pub struct Resumable<S> {
    pub(crate) inner: S,
    pub(crate) engine: Arc<Engine>,
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
        let (parts, body) = request.into_parts();
        let config = &self.engine.config;
        let (intent, answers) = config.intent(&parts, body.is_end_stream());
        if let Ok(Intent::Pass) = intent {
            return ResponseFuture::inner(self.inner.call(Request::from_parts(parts, body)));
        }
        // A slow chunk must not sit on the readiness (a concurrency permit, a buffer slot) that
        // `poll_ready` reserved: the ready service is dropped for a fresh clone, and another clone
        // is driven to readiness only when there is a finished upload to hand on.
        let inner = self.inner.clone();
        self.inner = inner.clone();
        let engine = Arc::clone(&self.engine);
        ResponseFuture::upload(receive::handle(engine, inner, intent, answers, parts, body))
    }
}
