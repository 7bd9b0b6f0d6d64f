//! Multipart forms (RFC 7578), decoded while they arrive. The only module that names multer: no
//! type of multer leaves it.

mod base64;
mod disposition;
mod paced;

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame};

pub(crate) use self::base64::Decoded;
use self::{
    disposition::{Disposition, Head},
    paced::{Feed, multipart},
};
use super::digest::Expected;
use crate::{
    error::{Error, Reason},
    limits,
    mime::text,
    model::BoxError,
};

/// How much more is read of a form in addition to its file.
struct Left {
    parts: usize,
    /// Bytes of the names and values of text fields.
    text: usize,
    /// Bytes after the last boundary.
    epilogue: usize,
}

impl Left {
    fn take_text(&mut self, len: usize) -> Result<(), Error> {
        self.text = self.text.checked_sub(len).ok_or_else(too_many)?;
        Ok(())
    }
}

/// The next item of a form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Text {
        name: String,
        value: String,
    },
    /// The file. [`Form::content`] yields its bytes.
    File,
    End,
}

/// Decides what the parts of a form are for.
pub(crate) trait Fields: Send + Sync {
    /// Whether a part carries the file. `is_text`: it has neither a file name nor a media type.
    fn is_file(&self, name: &str, is_text: bool) -> bool;

    /// Whether the form has a chunk, so that its file can be empty and without a name. In other
    /// forms such a part means that the user has chosen no file.
    fn is_chunk(&self) -> bool;

    /// Takes a text field that comes after the file.
    fn late_field(&mut self, name: String, value: String) -> Result<(), Error>;
}

/// What the head of the file's part says.
#[derive(Debug, Default)]
pub(crate) struct PartHead {
    pub(crate) file_name: Option<String>,
    pub(crate) content_type: Option<String>,
}

/// A multipart form while it arrives.
pub(crate) struct Form<'a> {
    multipart: multer::Multipart<'a>,
    feed: Feed<'a>,
    /// The text that starts each boundary.
    delimiter: String,
    stage: Stage<'a>,
    left: Left,
    /// The head of the part that carries the file, once that has begun.
    file: Option<PartHead>,
}

enum Stage<'a> {
    Between,
    Text {
        field: multer::Field<'a>,
        name: String,
        value: Vec<u8>,
    },
    /// A part with an empty file name, before its first byte. `is_file`: it carries the file.
    Unnamed {
        field: multer::Field<'a>,
        is_file: bool,
        head: PartHead,
    },
    File {
        field: multer::Field<'a>,
        /// A piece that has already been read.
        first: Option<Bytes>,
    },
    Epilogue,
    End,
    /// Kept, because the next poll would otherwise read past the error.
    Failed(Error),
}

impl<'a> Form<'a> {
    /// `digest` is of the whole body.
    pub(crate) fn new<B>(body: &'a mut B, boundary: String, digest: Option<Expected>) -> Self
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let delimiter = format!("--{boundary}");
        let (feed, stream) = Feed::new(body, digest);
        Self {
            multipart: multer::Multipart::new(stream, boundary),
            feed,
            delimiter,
            stage: Stage::Between,
            left: Left {
                parts: limits::PARTS,
                text: limits::TEXT_BYTES,
                epilogue: limits::EPILOGUE_BYTES,
            },
            file: None,
        }
    }

    /// The next text field, or the start of the file.
    pub(crate) async fn next(&mut self, fields: &dyn Fields) -> Result<Item, Error> {
        let item = std::future::poll_fn(|cx| self.poll_item(cx, fields)).await;
        if let Err(error) = &item {
            self.stage = Stage::Failed(error.clone());
        }
        item
    }

    /// Takes the head of the file's part, once it has arrived.
    pub(crate) fn take_file_part(&mut self) -> PartHead {
        self.file.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The bytes of the file that [`next`](Self::next) has announced.
    ///
    /// After the file it reads the rest of the form and gives the text fields to `fields`. It ends
    /// without an error only if they are accepted and the form is whole. So a store that keeps
    /// nothing before the end of the body keeps nothing of a broken request.
    pub(crate) fn content<'f>(&'f mut self, fields: &'f mut dyn Fields) -> Content<'f, 'a> {
        Content { form: self, fields }
    }

    fn poll_item(
        &mut self,
        cx: &mut Context<'_>,
        fields: &dyn Fields,
    ) -> Poll<Result<Item, Error>> {
        loop {
            match &mut self.stage {
                Stage::Between => {
                    let part = self
                        .feed
                        .poll_part(&mut self.multipart, &self.delimiter, cx);
                    match ready!(part)? {
                        Some((field, head)) => {
                            self.start_part(field, head, fields)?;
                            if let Stage::File { .. } = self.stage {
                                return Poll::Ready(Ok(Item::File));
                            }
                        }
                        None => self.stage = Stage::Epilogue,
                    }
                }
                Stage::Text { field, name, value } => {
                    match ready!(self.feed.poll_field(field, cx))? {
                        Some(piece) => {
                            self.left.take_text(piece.len())?;
                            value.extend_from_slice(&piece);
                        }
                        None => {
                            let (name, value) = (std::mem::take(name), std::mem::take(value));
                            self.stage = Stage::Between;
                            let value = match String::from_utf8(value) {
                                Ok(value) => value,
                                // Those of chunk clients identify the file.
                                Err(_) if fields.is_chunk() => {
                                    return Poll::Ready(Err(multipart(
                                        "a text field is not UTF-8",
                                    )));
                                }
                                // A page in another character set.
                                Err(error) => text(error.as_bytes()).into_owned(),
                            };
                            return Poll::Ready(Ok(Item::Text { name, value }));
                        }
                    }
                }
                Stage::Unnamed { field, .. } => {
                    let piece = ready!(self.feed.poll_field(field, cx))?;
                    if piece.as_ref().is_some_and(Bytes::is_empty) {
                        continue;
                    }
                    let stage = std::mem::replace(&mut self.stage, Stage::Between);
                    let (
                        Some(_),
                        Stage::Unnamed {
                            field,
                            is_file,
                            head,
                        },
                    ) = (&piece, stage)
                    else {
                        // No file was chosen.
                        continue;
                    };
                    self.start_file(field, piece, is_file, head)?;
                }
                Stage::File { .. } => return Poll::Ready(Ok(Item::File)),
                Stage::Epilogue => {
                    ready!(self.feed.poll_epilogue(&mut self.left.epilogue, cx))?;
                    self.stage = Stage::End;
                }
                Stage::End => return Poll::Ready(Ok(Item::End)),
                Stage::Failed(error) => return Poll::Ready(Err(error.clone())),
            }
        }
    }

    /// Decides by its headers what a part is for.
    fn start_part(
        &mut self,
        field: multer::Field<'a>,
        head: Head,
        fields: &dyn Fields,
    ) -> Result<(), Error> {
        if head.is_encoded {
            return Err(Reason::ContentEncoding.into());
        }
        let content_type = head.content_type;
        let Disposition { name, file_name } = head.disposition;

        self.left.parts = self.left.parts.checked_sub(1).ok_or_else(too_many)?;
        let is_text = file_name.is_none() && content_type.is_none();
        let is_file = fields.is_file(&name, is_text);
        let head = PartHead {
            file_name,
            content_type,
        };
        let has_no_name = head.file_name.as_deref() == Some("");
        if has_no_name && !(is_file && fields.is_chunk()) {
            self.stage = Stage::Unnamed {
                field,
                is_file,
                head,
            };
        } else if is_file || head.file_name.is_some() {
            self.start_file(field, None, is_file, head)?;
        } else {
            self.left.take_text(name.len())?;
            self.stage = Stage::Text {
                field,
                name,
                value: Vec::new(),
            };
        }
        Ok(())
    }

    fn start_file(
        &mut self,
        field: multer::Field<'a>,
        first: Option<Bytes>,
        is_file: bool,
        head: PartHead,
    ) -> Result<(), Error> {
        if !is_file || self.file.is_some() {
            return Err(Reason::UnexpectedFile.into());
        }
        self.file = Some(head);
        self.stage = Stage::File { field, first };
        Ok(())
    }
}

/// See [`Form::content`].
pub(crate) struct Content<'f, 'a> {
    form: &'f mut Form<'a>,
    fields: &'f mut dyn Fields,
}

impl Body for Content<'_, '_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let piece = ready!(this.poll_piece(cx));
        if let Err(error) = &piece {
            this.form.stage = Stage::Failed(error.clone());
        }
        let piece = piece.map_err(BoxError::from).transpose();
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }
}

impl Content<'_, '_> {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        while let Stage::File { field, first } = &mut self.form.stage {
            let piece = match first.take() {
                Some(piece) => Some(piece),
                None => ready!(self.form.feed.poll_field(field, cx))?,
            };
            match piece {
                Some(piece) if piece.is_empty() => {}
                Some(piece) => return Poll::Ready(Ok(Some(piece))),
                None => self.form.stage = Stage::Between,
            }
        }
        loop {
            match ready!(self.form.poll_item(cx, self.fields))? {
                Item::Text { name, value } => self.fields.late_field(name, value)?,
                Item::File => return Poll::Ready(Err(Reason::UnexpectedFile.into())),
                Item::End => return Poll::Ready(Ok(None)),
            }
        }
    }
}

fn too_many() -> Error {
    Reason::TooManyFields.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body::raw::tests::{Script, Step};

    type Read = (Vec<(String, String)>, Vec<u8>, Vec<(String, String)>);

    fn script(frames: impl IntoIterator<Item = Vec<u8>>, late: bool) -> Script {
        let pending = || late.then_some(Step::Pending);
        let frames = frames.into_iter().map(Step::Data);
        Script::new(
            frames
                .flat_map(|frame| pending().into_iter().chain([frame]))
                .chain(pending()),
        )
    }

    /// The part `file` is the file. Notes the fields after it.
    #[derive(Default)]
    struct Noted(Vec<(String, String)>);

    impl Fields for Noted {
        fn is_file(&self, name: &str, _: bool) -> bool {
            name == "file"
        }

        fn is_chunk(&self) -> bool {
            false
        }

        fn late_field(&mut self, name: String, value: String) -> Result<(), Error> {
            self.0.push((name, value));
            Ok(())
        }
    }

    /// Each frame comes after a `Pending` if `late`.
    fn read(frames: impl IntoIterator<Item = Vec<u8>>, late: bool) -> Result<Read, Error> {
        read_body(&mut script(frames, late))
    }

    /// Fields before the file, the file, fields after it.
    fn read_body(body: &mut Script) -> Result<Read, Error> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(async {
            let mut form = Form::new(body, "X".into(), None);
            let (mut before, mut file, mut after) = (vec![], vec![], Noted::default());
            loop {
                match form.next(&after).await {
                    Ok(Item::Text { name, value }) => before.push((name, value)),
                    Ok(Item::File) => break,
                    Ok(Item::End) => return Ok((before, file, after.0)),
                    Err(error) => {
                        assert_eq!(form.next(&after).await, Err(error.clone()));
                        return Err(error);
                    }
                }
            }
            let mut content = form.content(&mut after);
            let mut next = async || {
                let frame = std::future::poll_fn(|cx| Pin::new(&mut content).poll_frame(cx)).await;
                frame.map(|frame| {
                    frame
                        .map(|frame| frame.into_data().unwrap())
                        .map_err(Error::of_body)
                })
            };
            while let Some(piece) = next().await {
                match piece {
                    Ok(piece) => file.extend(piece),
                    // It fails again when it is polled again.
                    Err(error) => {
                        assert_eq!(next().await, Some(Err(error.clone())));
                        return Err(error);
                    }
                }
            }
            Ok((before, file, after.0))
        })
    }

    fn whole(body: &[u8]) -> Result<Read, Error> {
        read([body.to_vec()], false)
    }

    fn part(head: &str, content: &str) -> String {
        format!("--X\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n")
    }

    fn reason(result: Result<Read, Error>) -> &'static str {
        result.expect_err("it was accepted").kind().as_str()
    }

    const FILE: &str = "name=\"file\"; filename=\"a\"";

    fn example() -> String {
        part("name=\"a\"", "1")
            + &part(FILE, "\r\n--\r\r\n--Y\r\n-")
            + &part("name=\"b\"", "")
            + "--X--\r\n"
    }

    #[test]
    fn a_form_can_be_split_anywhere() {
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
    fn a_truncated_form_fails() {
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
    fn invalid_forms_are_rejected() {
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
    }

    /// Text that is not UTF-8 is that of a page in another character set.
    #[test]
    fn text_is_utf_8_or_latin_1() {
        let body = b"--X\r\nContent-Disposition: form-data; name=\xff\r\n\r\n\xe9\r\n--X--";
        let fields = whole(body).unwrap().0;
        assert_eq!(fields, [("ÿ".to_owned(), "é".to_owned())]);
    }

    #[test]
    fn a_part_without_a_name_and_bytes_is_no_file() {
        let none = part("name=\"file\"; filename=\"\"", "");
        let other = part("name=\"b\"; filename=\"\"", "");
        let unnamed = part("name=\"file\"; filename=\"\"", "abc");
        let field = part("name=\"a\"", "1");
        let read = |parts: &[&String]| {
            let body: String = parts.iter().map(|part| part.as_str()).collect();
            whole((body + "--X--").as_bytes()).map(|(before, file, after)| {
                let file = String::from_utf8(file).unwrap();
                (before.len(), file, after.len())
            })
        };
        let file = part(FILE, "abc");
        for (parts, expected) in [
            (&[&none][..], (0, "", 0)),
            (&[&none, &field, &other], (1, "", 0)),
            (&[&field, &other, &file, &none, &field], (1, "abc", 1)),
            (&[&unnamed, &field], (0, "abc", 1)),
            (&[&none, &unnamed, &other], (0, "abc", 0)),
        ] {
            let (before, file, after) = expected;
            assert_eq!(read(parts), Ok((before, file.to_owned(), after)));
        }
        let bytes_elsewhere = part("name=\"b\"; filename=\"\"", "abc");
        for parts in [&[&bytes_elsewhere][..], &[&file, &unnamed]] {
            assert_eq!(read(parts), Err(Reason::UnexpectedFile.into()));
        }
    }

    /// Carriage returns are the worst case of the search for a boundary.
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

    #[test]
    fn the_parts_come_in_any_order() {
        let file = part(FILE, "abc");
        let [a, b] = ["a", "b"].map(|name| part(&format!("name=\"{name}\""), "1"));
        let names = |fields: Vec<(String, String)>| -> String {
            fields.into_iter().map(|(name, _)| name).collect()
        };
        for (parts, expected) in [
            ([&file, &a, &b], ("", "ab")),
            ([&a, &file, &b], ("a", "b")),
            ([&b, &a, &file], ("ba", "")),
        ] {
            let body = parts.map(String::as_str).concat() + "--X--\r\n";
            let (before, file, after) = whole(body.as_bytes()).unwrap();
            assert_eq!(file, b"abc");
            assert_eq!((&*names(before), &*names(after)), expected);
        }
    }

    /// multer may buffer a long frame, and the end of the body, without parsing it.
    #[test]
    fn long_frames_are_decoded() {
        for len in [1000, 10_000, 65_536, 300_000] {
            let body = part(FILE, &"x".repeat(len)) + "--X--";
            for late in [false, true] {
                let frames = [body.clone().into_bytes()];
                assert_eq!(read(frames, late).unwrap().1.len(), len);
            }
        }
    }

    #[test]
    fn a_failed_body_is_not_a_multipart_error() {
        let body = example().into_bytes();
        // After the closing boundary too: the request is not whole.
        for end in 0..=body.len() {
            let mut body = Script::new([Step::Data(body[..end].to_vec()), Step::Fail]);
            assert_eq!(
                read_body(&mut body),
                Err(Reason::Interrupted.into()),
                "at {end}"
            );
        }
    }

    #[test]
    fn trailers_are_ignored() {
        let frame = Step::Data(example().into_bytes());
        assert!(read_body(&mut Script::new([frame, Step::Trailers])).is_ok());
    }

    /// Many parts must not make multer buffer what follows them.
    #[test]
    fn nothing_is_read_ahead() {
        let mut body = part("name=\"a\"", "1").repeat(63) + &part(FILE, "");
        let head = body.len();
        body.truncate(head - 2);
        body += &"x".repeat(1 << 20);
        let frame = 16 << 10;
        let mut body = script(body.as_bytes().chunks(frame).map(<[u8]>::to_vec), false);
        let mut form = Form::new(&mut body, "X".into(), None);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        while form.poll_item(&mut cx, &Noted::default()) != Poll::Ready(Ok(Item::File)) {}
        drop(form);
        assert!(body.given <= head + frame, "{} of {head}", body.given);
    }

    #[test]
    fn endless_forms_are_rejected_early() {
        let endless = "x".repeat(64 << 10);
        let open = "--X\r\nContent-Disposition: form-data; name=\"a\"";
        for (start, filler) in [
            ("", &*endless),
            (open, &*endless),
            (&format!("{open}\r\nk: "), &*endless),
            ("--X", &" ".repeat(64 << 10)),
            (&format!("{open}\r\n\r\n"), &*endless),
            (&format!("{open}\r\n\r\n1\r\n--X"), &*endless),
            (&(example() + "--X--"), &*endless),
        ] {
            for frame in [1000, 64 << 10] {
                let body = start.to_owned() + &filler.repeat(16);
                let frames = body.as_bytes().chunks(frame).map(<[u8]>::to_vec);
                let mut body = script(frames, false);
                let error = read_body(&mut body).unwrap_err();
                assert!(!error.is_retryable(), "{start:?}: {error}");
                assert!(body.given <= 200_000, "{start:?}: {}", body.given);
            }
        }
    }

    #[test]
    fn heads_of_parts_are_limited() {
        let disposition = "Content-Disposition: form-data; name=\"a\"\r\n";
        let with = |preamble: &str, headers: &str| {
            let body = format!("{preamble}--X\r\n{headers}\r\n1\r\n--X--\r\n");
            let one = read(body.bytes().map(|byte| vec![byte]), false);
            assert_eq!(whole(body.as_bytes()).is_ok(), one.is_ok());
            one.is_ok()
        };
        let preamble = |len: usize| "x".repeat(len - 2) + "\r\n";
        assert!(with(&preamble(1024), disposition));
        assert!(!with(&preamble(1025), disposition));
        // The last line break belongs to the empty line.
        let long = |len: usize| {
            format!(
                "{disposition}k: {}\r\n",
                "v".repeat(len - disposition.len() - 3)
            )
        };
        assert!(with("", &long(4096)));
        assert!(!with("", &long(4097)));
        let many = |count: usize| disposition.to_owned() + &"k: v\r\n".repeat(count - 1);
        assert!(with("", &many(8)));
        assert!(!with("", &many(9)));
        assert!(!with("junk", disposition));
    }

    #[test]
    fn forms_that_only_multer_accepts_are_rejected() {
        let disposition = "Content-Disposition: form-data; name=\"a\"";
        for headers in [
            format!("{disposition}\r\n{disposition}"),
            format!("{disposition}\r\ncontent-disposition: form-data; name=\"b\""),
            format!("{disposition}\nk: v"),
            format!("{disposition}\n\nlost"),
        ] {
            let body = format!("--X\r\n{headers}\r\n\r\n1\r\n--X--\r\n");
            assert_eq!(reason(whole(body.as_bytes())), "multipart", "{headers:?}");
        }
    }

    #[test]
    fn a_failed_form_keeps_failing() {
        for body in [
            part(FILE, "a") + &part(FILE, "b"),
            part(FILE, "a") + &part("name=\"b\"; filename=\"c\"", "b"),
            part("name=\"b\"; filename=\"c\"", "b") + &part(FILE, "a"),
        ] {
            // `read` asks again.
            assert!(whole((body + "--X--").as_bytes()).is_err());
        }
    }
}
