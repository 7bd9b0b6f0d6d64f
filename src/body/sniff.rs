//! A look at the first bytes of a file, before anything of them is kept.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream;

use crate::{UploadError, hooks::Sniff, store::Upload};

/// Bytes that are looked at. The formats of files are told apart by fewer.
const HEAD: usize = 8 << 10;

/// How many bytes of a file of this size are looked at.
pub(crate) fn head_len(total: u64) -> usize {
    usize::try_from(total).map_or(HEAD, |total| total.min(HEAD))
}

type Chunk<'a> = Pin<&'a mut (dyn Stream<Item = Result<Bytes, UploadError>> + Send)>;

/// A chunk that yields nothing before its head has found favour, if it is the first of its file and as long
/// as that.
pub(crate) struct Sniffed<'a> {
    chunk: Chunk<'a>,
    /// Until that is known.
    asked: Option<(&'a Sniff, &'a Upload)>,
    head: Vec<u8>,
    held: VecDeque<Bytes>,
    ended: bool,
}

impl<'a> Sniffed<'a> {
    pub(crate) fn new(chunk: Chunk<'a>, sniff: Option<&'a Sniff>, upload: &'a Upload) -> Self {
        Self {
            chunk,
            asked: sniff.map(|sniff| (sniff, upload)),
            head: Vec::new(),
            held: VecDeque::new(),
            ended: false,
        }
    }

    /// Takes in bytes until they can be looked at.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), UploadError>> {
        while let Some((sniff, upload)) = self.asked {
            let wanted = head_len(upload.total);
            if self.head.len() == wanted {
                sniff(&self.head, upload)?;
                self.asked = None;
                break;
            }
            match ready!(self.chunk.as_mut().poll_next(cx)).transpose()? {
                Some(piece) => {
                    let missing = wanted - self.head.len();
                    self.head
                        .extend_from_slice(&piece[..piece.len().min(missing)]);
                    self.held.push_back(piece);
                }
                // Too little to be judged: the whole file will be.
                None => {
                    self.asked = None;
                    self.ended = true;
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl Stream for Sniffed<'_> {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if let Err(error) = ready!(this.poll_head(cx)) {
            return Poll::Ready(Some(Err(error)));
        }
        match this.held.pop_front() {
            Some(piece) => Poll::Ready(Some(Ok(piece))),
            None if this.ended => Poll::Ready(None),
            None => this.chunk.as_mut().poll_next(cx),
        }
    }
}
