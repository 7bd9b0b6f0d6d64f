use std::{
    fmt,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, header};
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

/// How long a body may take to be read before it is passed on.
const READ_TIME: Duration = Duration::from_secs(1);

/// Whether an answer is read before it is passed on. A stream of events is not.
pub(crate) fn is_read(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.as_bytes().split(|byte| *byte == b';').next());
    !kind.is_some_and(|kind| kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream"))
}

/// Reads `body` to its end, until more than `bound` bytes have been read, or for a second. With the
/// bound `None` nothing is read.
pub(crate) async fn read_up_to<R>(body: R, bound: Option<usize>) -> Result<PartlyRead<R>, R::Error>
where
    R: Body<Data = Bytes>,
{
    let mut body = Box::pin(body);
    let (mut data, mut trailers, mut has_ended) = (Vec::new(), None, false);
    let mut timer = pin!(tokio::time::sleep(READ_TIME));
    let mut next_frame = async || {
        std::future::poll_fn(|cx| match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Some(frame)),
            Poll::Pending => timer.as_mut().poll(cx).map(|()| None),
        })
        .await
    };
    while bound.is_some_and(|bound| data.len() <= bound) {
        let Some(frame) = next_frame().await else {
            break;
        };
        match frame.transpose()?.map(Frame::into_data) {
            Some(Ok(piece)) => data.extend_from_slice(&piece),
            // Nothing follows trailers.
            Some(Err(frame)) => {
                trailers = frame.into_trailers().ok();
                has_ended = true;
            }
            None => has_ended = true,
        }
        if has_ended {
            break;
        }
    }
    Ok(PartlyRead {
        data: data.into(),
        trailers,
        rest: (!has_ended).then_some(body),
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

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::time::{Instant, Sleep, sleep};

    use super::*;

    #[derive(Clone)]
    enum Step {
        Data(&'static str),
        Trailers,
        Wait(u64),
        Fail,
        Never,
    }
    use Step::*;

    struct Script(VecDeque<Step>, Option<Pin<Box<Sleep>>>);

    impl Body for Script {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            loop {
                if let Some(timer) = &mut self.1 {
                    ready!(timer.as_mut().poll(cx));
                    self.1 = None;
                }
                let frame = match self.0.pop_front() {
                    None => return Poll::Ready(None),
                    Some(Data(text)) => Ok(Frame::data(Bytes::from(text))),
                    Some(Trailers) => Ok(Frame::trailers(HeaderMap::new())),
                    Some(Fail) => Err("broken"),
                    Some(Never) => {
                        self.0.push_front(Never);
                        return Poll::Pending;
                    }
                    Some(Wait(millis)) => {
                        self.1 = Some(Box::pin(sleep(Duration::from_millis(millis))));
                        continue;
                    }
                };
                return Poll::Ready(Some(frame));
            }
        }
    }

    /// What was read, whether trailers were, whether a rest is left, and after how many
    /// milliseconds.
    async fn read(steps: &[Step], bound: Option<usize>) -> Option<(String, bool, bool, u128)> {
        let begun = Instant::now();
        let body = Script(steps.iter().cloned().collect(), None);
        let read = read_up_to(body, bound).await.ok()?;
        let text = String::from_utf8(read.data.to_vec()).unwrap();
        let (trailers, rest) = (read.trailers.is_some(), read.rest.is_some());
        Some((text, trailers, rest, begun.elapsed().as_millis()))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_read_to_its_end_or_for_a_second() {
        let all = Some(100);
        for (steps, bound, expected) in [
            (&[][..], all, ("", false, false, 0)),
            (&[Data("a"), Data("b")], all, ("ab", false, false, 0)),
            (&[Data("a"), Wait(999)], all, ("a", false, false, 999)),
            (&[Data("a"), Wait(1100)], all, ("a", false, true, 1000)),
            (
                &[Data("a"), Wait(600), Data("b"), Wait(600)],
                all,
                ("ab", false, true, 1000),
            ),
            (&[Never], all, ("", false, true, 1000)),
            // Nothing follows trailers.
            (&[Data("a"), Trailers, Never], all, ("a", true, false, 0)),
            (&[Data("ab"), Data("c")], Some(1), ("ab", false, true, 0)),
            (&[Data("ab"), Data("c")], Some(2), ("abc", false, true, 0)),
            (&[Data("a")], Some(0), ("a", false, true, 0)),
            (&[], Some(0), ("", false, false, 0)),
            (&[Data("a")], None, ("", false, true, 0)),
            (&[Wait(1100), Fail], all, ("", false, true, 1000)),
        ] {
            let (text, trailers, rest, millis) = expected;
            let expected = (text.to_owned(), trailers, rest, millis);
            assert_eq!(read(steps, bound).await, Some(expected));
        }
        assert_eq!(read(&[Data("a"), Wait(900), Fail], all).await, None);
    }

    #[test]
    fn streams_of_events_are_not_read() {
        for (kind, expected) in [
            ("text/event-stream", false),
            (" Text/Event-Stream ;charset=utf-8", false),
            ("text/event-streams", true),
            ("text/plain; a=text/event-stream", true),
            ("", true),
        ] {
            let headers = [(header::CONTENT_TYPE, kind.parse().unwrap())];
            assert_eq!(is_read(&headers.into_iter().collect()), expected, "{kind}");
        }
        assert!(is_read(&HeaderMap::new()));
    }
}
