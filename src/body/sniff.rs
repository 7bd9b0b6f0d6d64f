//! Passes the first bytes of a file to a hook before any of them is stored.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::Source;
use crate::{
    error::Error,
    hooks::Sniff,
    model::{BoxError, upload::Upload},
};

/// The most bytes that the hook gets. File formats can be recognized by fewer.
const HEAD: usize = 8 << 10;

/// How many bytes of a file of this length the hook gets.
pub(crate) fn head_len(length: Option<u64>) -> usize {
    let length = length.and_then(|length| usize::try_from(length).ok());
    length.map_or(HEAD, |length| length.min(HEAD))
}

/// A chunk that yields nothing before the hook has accepted its first bytes. The hook is called if
/// the chunk is the first one of its file and has enough bytes.
pub(crate) struct Sniffed<'a> {
    chunk: Source<'a>,
    /// Until the hook was called.
    hook: Option<(&'a Sniff, &'a Upload)>,
    head: Vec<u8>,
    held: VecDeque<Bytes>,
    ended: bool,
}

impl<'a> Sniffed<'a> {
    pub(crate) fn new(chunk: Source<'a>, hook: Option<&'a Sniff>, upload: &'a Upload) -> Self {
        Self {
            chunk,
            hook: hook.map(|hook| (hook, upload)),
            head: Vec::new(),
            held: VecDeque::new(),
            ended: false,
        }
    }

    /// Holds bytes back until the hook can be called.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        while let Some((hook, upload)) = self.hook {
            let wanted = head_len(upload.length);
            if self.head.len() == wanted {
                hook(&self.head, upload).map_err(Error::from)?;
                self.hook = None;
                break;
            }
            match ready!(self.chunk.as_mut().poll_frame(cx)).transpose()? {
                Some(frame) => {
                    let Ok(piece) = frame.into_data() else {
                        continue;
                    };
                    let missing = wanted - self.head.len();
                    self.head
                        .extend_from_slice(&piece[..piece.len().min(missing)]);
                    self.held.push_back(piece);
                }
                // There are too few bytes. The hook is called again before the delivery.
                None => {
                    self.hook = None;
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Body for Sniffed<'_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Err(error) = ready!(this.poll_head(cx)) {
            return Poll::Ready(Some(Err(error)));
        }
        match this.held.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
            None if this.ended => Poll::Ready(None),
            None => this.chunk.as_mut().poll_frame(cx),
        }
    }
}
