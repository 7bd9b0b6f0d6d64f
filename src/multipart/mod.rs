//! Bodies as streams of bytes. The only room that names multer: it is kept behind a pacing stream,
//! and no type of it leaves.

mod base64;
mod disposition;
mod paced;

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use ::http::header;
use bytes::Bytes;
use futures_core::Stream;
use http_body::Body;

use self::{
    base64::Decoder,
    disposition::Disposition,
    paced::{PacedBody, Source},
};
use crate::{BoxError, UploadError};

pub(crate) use self::paced::{Octets, drain};

/// What is read of a form beside its file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FormLimits {
    /// Parts, the file included.
    pub(crate) parts: usize,
    /// Bytes of the names and values of all text fields together.
    pub(crate) text: usize,
    /// Header lines of a part.
    pub(crate) headers: usize,
    /// Bytes after the last boundary.
    pub(crate) epilogue: usize,
}

impl Default for FormLimits {
    fn default() -> Self {
        Self {
            parts: 64,
            text: 16 << 10,
            headers: 8,
            epilogue: 64 << 10,
        }
    }
}

/// What comes next in a form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Text {
        name: String,
        value: String,
    },
    /// The file; its bytes are what [`Form::content`] yields.
    File,
    End,
}

/// Tells by its name whether a field carries the file.
pub(crate) type IsFile<'f> = &'f (dyn Fn(&str) -> bool + Sync);

/// A multipart form while it arrives.
pub(crate) struct Form<'a> {
    multipart: multer::Multipart<'a>,
    source: Source<'a>,
    /// Bytes that multer got since it last made progress.
    held: Arc<AtomicUsize>,
    stage: Stage<'a>,
    limits: FormLimits,
    seen_file: bool,
}

enum Stage<'a> {
    Between,
    Text {
        field: multer::Field<'a>,
        name: String,
        value: Vec<u8>,
    },
    File {
        field: multer::Field<'a>,
        decoder: Option<Decoder>,
    },
    Epilogue,
    End,
}

impl<'a> Form<'a> {
    pub(crate) fn new<B>(body: &'a mut B, boundary: String, limits: FormLimits) -> Self
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let source = paced::source(body);
        let held = Arc::default();
        let stream = PacedBody::new(Arc::clone(&source), Arc::clone(&held));
        let multipart = multer::Multipart::new(stream, boundary);
        Self {
            multipart,
            source,
            held,
            stage: Stage::Between,
            limits,
            seen_file: false,
        }
    }

    /// The next text field, or the news that the file begins.
    pub(crate) async fn next(&mut self, is_file: IsFile<'_>) -> Result<Item, UploadError> {
        std::future::poll_fn(|cx| self.poll_item(cx, is_file)).await
    }

    /// The bytes of the file that [`next`](Self::next) has announced, decoded if they are base64.
    ///
    /// After the file it reads the rest of the form, gives the text fields to `on_late`, and ends
    /// with `None` only if that is accepted and the form is whole. So a store that keeps nothing
    /// before the `None` keeps nothing of a broken request.
    pub(crate) fn content<'f>(
        &'f mut self,
        is_file: IsFile<'f>,
        on_late: &'f mut OnLate<'f>,
    ) -> Content<'f, 'a> {
        Content {
            form: self,
            is_file,
            on_late,
        }
    }

    fn poll_item(
        &mut self,
        cx: &mut Context<'_>,
        is_file: IsFile<'_>,
    ) -> Poll<Result<Item, UploadError>> {
        loop {
            match &mut self.stage {
                Stage::Between => {
                    match ready!(self.multipart.poll_next_field(cx)).map_err(broken)? {
                        Some(field) => {
                            self.held.store(0, Relaxed);
                            self.begin(field, is_file)?;
                            if let Stage::File { .. } = self.stage {
                                return Poll::Ready(Ok(Item::File));
                            }
                        }
                        None => self.stage = Stage::Epilogue,
                    }
                }
                Stage::Text { field, name, value } => {
                    match ready!(Pin::new(field).poll_next(cx))
                        .transpose()
                        .map_err(broken)?
                    {
                        Some(piece) => {
                            self.held.store(0, Relaxed);
                            self.limits.text = self
                                .limits
                                .text
                                .checked_sub(piece.len())
                                .ok_or(UploadError::TooManyFields)?;
                            value.extend_from_slice(&piece);
                        }
                        None => {
                            let (name, value) = (std::mem::take(name), std::mem::take(value));
                            self.stage = Stage::Between;
                            let value = String::from_utf8(value)
                                .map_err(|_| multipart("a text field is not UTF-8"))?;
                            return Poll::Ready(Ok(Item::Text { name, value }));
                        }
                    }
                }
                Stage::File { .. } => return Poll::Ready(Ok(Item::File)),
                Stage::Epilogue => {
                    ready!(paced::poll_epilogue(
                        &self.source,
                        &mut self.limits.epilogue,
                        cx
                    ))?;
                    self.stage = Stage::End;
                }
                Stage::End => return Poll::Ready(Ok(Item::End)),
            }
        }
    }

    /// Looks at the headers of a part.
    fn begin(&mut self, field: multer::Field<'a>, is_file: IsFile<'_>) -> Result<(), UploadError> {
        let headers = field.headers();
        if headers.len() > self.limits.headers {
            return Err(multipart("a part has too many headers"));
        }
        // multer's own reading of this header is too lenient: it takes `xname` for `name`.
        let mut values = headers.get_all(header::CONTENT_DISPOSITION).iter();
        let (Some(value), None) = (values.next(), values.next()) else {
            return Err(multipart("a part needs exactly one content disposition"));
        };
        let disposition = Disposition::parse(value.as_bytes()).ok_or(multipart(
            "the content disposition of a part cannot be read",
        ))?;
        let Disposition {
            name,
            has_file_name,
        } = disposition;

        self.limits.parts = self
            .limits
            .parts
            .checked_sub(1)
            .ok_or(UploadError::TooManyFields)?;
        if is_file(&name) {
            if self.seen_file {
                return Err(UploadError::UnexpectedFile);
            }
            self.seen_file = true;
            // A text field instead of a file holds base64.
            let encoded = !has_file_name && !headers.contains_key(header::CONTENT_TYPE);
            self.stage = Stage::File {
                field,
                decoder: encoded.then(Decoder::default),
            };
        } else if has_file_name {
            return Err(UploadError::UnexpectedFile);
        } else {
            self.limits.text = self
                .limits
                .text
                .checked_sub(name.len())
                .ok_or(UploadError::TooManyFields)?;
            self.stage = Stage::Text {
                field,
                name,
                value: Vec::new(),
            };
        }
        Ok(())
    }
}

/// Takes a text field that comes after the file.
pub(crate) type OnLate<'f> = dyn FnMut(String, String) -> Result<(), UploadError> + Send + 'f;

/// See [`Form::content`].
pub(crate) struct Content<'f, 'a> {
    form: &'f mut Form<'a>,
    is_file: IsFile<'f>,
    on_late: &'f mut OnLate<'f>,
}

impl Stream for Content<'_, '_> {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        while let Stage::File { field, decoder } = &mut this.form.stage {
            let piece = ready!(Pin::new(field).poll_next(cx))
                .transpose()
                .map_err(broken)?;
            this.form.held.store(0, Relaxed);
            let bytes = match (piece, decoder) {
                (Some(piece), None) => piece,
                (Some(piece), Some(decoder)) => decoder.push(&piece)?,
                (None, decoder) => {
                    let last = decoder.as_mut().map_or(Ok(Bytes::new()), Decoder::finish)?;
                    this.form.stage = Stage::Between;
                    last
                }
            };
            if !bytes.is_empty() {
                return Poll::Ready(Some(Ok(bytes)));
            }
        }
        loop {
            match ready!(this.form.poll_item(cx, this.is_file))? {
                Item::Text { name, value } => (this.on_late)(name, value)?,
                Item::File => return Poll::Ready(Some(Err(UploadError::UnexpectedFile))),
                Item::End => return Poll::Ready(None),
            }
        }
    }
}

fn multipart(reason: &'static str) -> UploadError {
    UploadError::Multipart { reason }
}

fn broken(error: multer::Error) -> UploadError {
    match error {
        multer::Error::StreamReadFailed(error) => match error.downcast::<UploadError>() {
            Ok(error) => *error,
            Err(_) => UploadError::Interrupted,
        },
        multer::Error::IncompleteStream
        | multer::Error::IncompleteFieldData { .. }
        | multer::Error::IncompleteHeaders => multipart("it is cut off, or has no boundaries"),
        _ => multipart("the headers of a part cannot be read"),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::VecDeque, convert::Infallible};

    use http_body::Frame;

    use super::*;

    /// A body of given frames. It is `Pending` once before each of them if `late`.
    struct Frames {
        frames: VecDeque<Vec<u8>>,
        late: bool,
        pending: bool,
    }

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            if std::mem::take(&mut self.pending) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.pending = self.late;
            Poll::Ready(
                self.frames
                    .pop_front()
                    .map(|frame| Ok(Frame::data(frame.into()))),
            )
        }
    }

    type Read = (Vec<(String, String)>, Vec<u8>, Vec<(String, String)>);

    /// Fields before the file, the file, fields after it.
    fn read(frames: impl IntoIterator<Item = Vec<u8>>, late: bool) -> Result<Read, UploadError> {
        let mut body = Frames {
            frames: frames.into_iter().collect(),
            late,
            pending: late,
        };
        let is_file = |name: &str| name == "file";
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut form = Form::new(&mut body, "X".into(), FormLimits::default());
            let (mut before, mut file, mut after) = (vec![], vec![], vec![]);
            loop {
                match form.next(&is_file).await? {
                    Item::Text { name, value } => before.push((name, value)),
                    Item::File => break,
                    Item::End => return Ok((before, file, after)),
                }
            }
            let mut on_late = |name, value| {
                after.push((name, value));
                Ok(())
            };
            let mut content = form.content(&is_file, &mut on_late);
            let mut next =
                async || std::future::poll_fn(|cx| Pin::new(&mut content).poll_next(cx)).await;
            while let Some(piece) = next().await {
                file.extend(piece?);
            }
            Ok((before, file, after))
        })
    }

    fn whole(body: &[u8]) -> Result<Read, UploadError> {
        read([body.to_vec()], false)
    }

    fn part(head: &str, content: &str) -> String {
        format!("--X\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
    }

    fn reason(result: Result<Read, UploadError>) -> &'static str {
        result.expect_err("it was accepted").code()
    }

    const FILE: &str = "name=\"file\"; filename=\"a\"";

    fn example() -> String {
        part("name=\"a\"", "1")
            + &part(FILE, "\r\n--\r\r\n--Y\r\n-")
            + &part("name=\"b\"", "")
            + "--X--\r\n"
    }

    #[test]
    fn how_it_is_cut_does_not_matter() {
        let body = example().into_bytes();
        let expected = (
            vec![("a".to_owned(), "1".to_owned())],
            b"\r\n--\r\r\n--Y\r\n-".to_vec(),
            vec![("b".to_owned(), String::new())],
        );
        for late in [false, true] {
            assert_eq!(read([body.clone()], late), Ok(expected.clone()));
            assert_eq!(
                read(body.iter().map(|b| vec![*b]), late),
                Ok(expected.clone())
            );
            for cut in 0..body.len() {
                let (a, b) = body.split_at(cut);
                // An empty frame in between is legal too.
                let frames = [a.to_vec(), Vec::new(), b.to_vec()];
                assert_eq!(read(frames, late), Ok(expected.clone()), "cut at {cut}");
            }
        }
    }

    #[test]
    fn a_form_that_is_cut_off_never_ends_well() {
        let body = example().into_bytes();
        // What follows the closing `--` is not needed.
        for end in 0..body.len() - 2 {
            assert_eq!(reason(whole(&body[..end])), "multipart", "cut at {end}");
        }
        assert!(whole(&[&body[..], b"epilogue"].concat()).is_ok());
        assert!(whole(&[b"preamble\r\n", &body[..]].concat()).is_ok());
        assert_eq!(
            reason(whole(&[&body[..], &[b'x'; 1 << 20]].concat())),
            "multipart"
        );
    }

    #[test]
    fn what_is_no_form() {
        let end = "--X--\r\n";
        for (body, code) in [
            (String::new(), "multipart"),
            ("hello".into(), "multipart"),
            (example().replace("\r\n", "\n"), "multipart"),
            ("--X\r\n\r\nabc\r\n--X--\r\n".into(), "multipart"),
            (part("filename=\"a\"", "abc") + end, "multipart"),
            (part("filename=\"x; name=file\"", "abc") + end, "multipart"),
            (part("name=\"a\"; name=\"b\"", "abc") + end, "multipart"),
            (
                part("name=\"a\"; filename=\"b\"", "abc") + end,
                "unexpected_file",
            ),
            (part(FILE, "a") + &part(FILE, "b") + end, "unexpected_file"),
            (
                part(
                    &format!(
                        "name=\"a\"{}",
                        "\r\na: 1\r\nb: 1\r\nc: 1\r\nd: 1\r\ne: 1\r\nf: 1\r\ng: 1\r\nh: 1"
                    ),
                    "",
                ) + end,
                "multipart",
            ),
            (
                part(&format!("name=\"a\"\r\n{}", "x".repeat(1 << 20)), "") + end,
                "multipart",
            ),
            ("x".repeat(1 << 20) + &example(), "multipart"),
            (part("name=\"a\"", "1").repeat(65) + end, "too_many_fields"),
            (
                part("name=\"a\"", &"1".repeat(16 << 10)) + end,
                "too_many_fields",
            ),
        ] {
            let head: String = body.chars().take(80).collect();
            assert_eq!(reason(whole(body.as_bytes())), code, "{head:?}");
        }
        assert!(whole((part("name=\"a\"", "1").repeat(64) + end).as_bytes()).is_ok());
        let longest = part("name=\"a\"", &"1".repeat((16 << 10) - 1));
        assert!(whole((longest + end).as_bytes()).is_ok());
        let invalid = [
            part("name=\"a\"", "").as_bytes(),
            b"--X\r\nContent-Disposition: form-data; name=a\r\n\r\n\xff\r\n--X--",
        ]
        .concat();
        assert_eq!(reason(whole(&invalid)), "multipart");
    }

    #[test]
    fn a_file_without_a_file_name_is_base64() {
        for (content, expected) in [
            ("data:text/plain;base64,YWJj", "abc"),
            ("YWJj", "abc"),
            ("data:application/octet-stream;base64,", ""),
            ("", ""),
        ] {
            let body = part("name=\"file\"", content) + "--X--";
            assert_eq!(
                whole(body.as_bytes()).unwrap().1,
                expected.as_bytes(),
                "{content}"
            );
        }
        let typed = part("name=\"file\"\r\nContent-Type: text/plain", "YWJj") + "--X--";
        assert_eq!(whole(typed.as_bytes()).unwrap().1, b"YWJj");
    }

    /// All carriage returns: the worst case of the search for a boundary.
    #[test]
    fn content_that_looks_like_boundaries() {
        for content in [
            "\r".repeat(300_000),
            "\r\n--".repeat(50_000),
            "\r\n--Y".repeat(50_000),
        ] {
            let body = part(FILE, &content) + "--X--";
            assert!(whole(body.as_bytes()).unwrap().1 == content.as_bytes());
        }
    }
}
