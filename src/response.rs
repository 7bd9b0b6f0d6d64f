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
        Read { read: PartlyRead<R> },
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
        Self::partly_read(PartlyRead {
            data,
            trailers: None,
            rest: None,
        })
    }

    /// The beginning of the inner service's body, which has been read, and the rest.
    pub(crate) fn partly_read(read: PartlyRead<R>) -> Self {
        Self {
            kind: Kind::Read { read },
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
            KindProj::Read { read } => {
                if !read.data.is_empty() {
                    let data = std::mem::take(&mut read.data);
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                if let Some(body) = &mut read.rest {
                    let frame = ready!(body.as_mut().poll_frame(cx));
                    if frame.is_none() {
                        read.rest = None;
                    }
                    return Poll::Ready(frame);
                }
                Poll::Ready(read.trailers.take().map(Frame::trailers).map(Ok))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Inner { body } => body.is_end_stream(),
            Kind::Read { read } => {
                read.data.is_empty() && read.trailers.is_none() && read.rest.is_none()
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Inner { body } => body.size_hint(),
            Kind::Read { read } => {
                let ready = read.data.len() as u64;
                let Some(rest) = &read.rest else {
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
