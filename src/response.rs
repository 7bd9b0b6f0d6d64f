use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// Response body of [`Resumable`](crate::Resumable): the layer's own answer, or the inner
    /// service's.
    pub struct ResponseBody<R> {
        #[pin]
        kind: Kind<R>,
    }
}

pin_project! {
    #[project = KindProj]
    enum Kind<R> {
        Inner { #[pin] body: R },
        Read { data: Option<Bytes>, trailers: Option<HeaderMap>, rest: Option<Pin<Box<R>>> },
    }
}

impl<R> ResponseBody<R> {
    /// The inner service's body, untouched.
    pub(crate) fn inner(body: R) -> Self {
        Self {
            kind: Kind::Inner { body },
        }
    }

    /// The layer's own answer.
    pub(crate) fn answer(data: Bytes) -> Self {
        Self {
            kind: Kind::Read {
                data: Some(data),
                trailers: None,
                rest: None,
            },
        }
    }

    /// The beginning of the inner service's body, which has been read, and the rest.
    pub(crate) fn partly_read(read: PartlyRead<R>) -> Self {
        Self {
            kind: Kind::Read {
                data: Some(read.data),
                trailers: read.trailers,
                rest: read.rest,
            },
        }
    }
}

/// A body of the inner service whose beginning has been read.
pub(crate) struct PartlyRead<R> {
    pub(crate) data: Bytes,
    pub(crate) trailers: Option<HeaderMap>,
    /// The rest, if the body is longer.
    pub(crate) rest: Option<Pin<Box<R>>>,
}

/// Reads `body` to its end, or until more than `bound` bytes have been read.
pub(crate) async fn read_up_to<R>(body: R, bound: usize) -> Result<PartlyRead<R>, R::Error>
where
    R: Body<Data = Bytes>,
{
    let mut body = Box::pin(body);
    let mut data = Vec::new();
    let mut trailers = None;
    while let Some(frame) = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        match frame?.into_data() {
            Ok(piece) => data.extend_from_slice(&piece),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
        if data.len() > bound {
            return Ok(PartlyRead {
                data: data.into(),
                trailers,
                rest: Some(body),
            });
        }
    }
    Ok(PartlyRead {
        data: data.into(),
        trailers,
        rest: None,
    })
}

// Without `R: Default`: outer layers such as CORS need a default body only for empty answers.
impl<R> Default for ResponseBody<R> {
    fn default() -> Self {
        Self::answer(Bytes::new())
    }
}

impl<R: Body<Data = Bytes>> Body for ResponseBody<R> {
    type Data = Bytes;
    type Error = R::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, R::Error>>> {
        match self.project().kind.project() {
            KindProj::Inner { body } => body.poll_frame(cx),
            KindProj::Read {
                data,
                trailers,
                rest,
            } => {
                if let Some(data) = data.take().filter(|data| !data.is_empty()) {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                if let Some(body) = rest {
                    let frame = ready!(body.as_mut().poll_frame(cx));
                    if frame.is_none() {
                        *rest = None;
                    }
                    return Poll::Ready(frame);
                }
                Poll::Ready(
                    trailers
                        .take()
                        .map(|trailers| Ok(Frame::trailers(trailers))),
                )
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Read {
                data,
                trailers,
                rest,
            } => data.as_ref().is_none_or(Bytes::is_empty) && trailers.is_none() && rest.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Read { data, rest, .. } => {
                let ready = data.as_ref().map_or(0, Bytes::len) as u64;
                let Some(rest) = rest else {
                    return SizeHint::with_exact(ready);
                };
                let rest = rest.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(ready.saturating_add(rest.lower()));
                if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(ready)) {
                    hint.set_upper(upper);
                }
                hint
            }
        }
    }
}

impl<R> fmt::Debug for ResponseBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}
