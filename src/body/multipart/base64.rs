use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http_body::{Body, Frame};

use crate::{
    body::Source,
    error::{Error, Reason},
    model::BoxError,
};

/// A file that is decoded if it is base64.
pub(crate) struct Decoded<'a> {
    file: Source<'a>,
    /// Until the end.
    decoder: Option<Decoder>,
}

impl<'a> Decoded<'a> {
    pub(crate) fn new(file: Source<'a>, is_base64: bool) -> Self {
        let decoder = is_base64.then(Decoder::default);
        Self { file, decoder }
    }
}

impl Body for Decoded<'_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let frame = ready!(self.file.as_mut().poll_frame(cx));
            let Some(decoder) = &mut self.decoder else {
                return Poll::Ready(frame);
            };
            let bytes = match frame {
                Some(Ok(frame)) => frame
                    .into_data()
                    .map_or(Ok(Bytes::new()), |data| decoder.push(&data)),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => {
                    let last = decoder.finish();
                    self.decoder = None;
                    last
                }
            };
            match bytes {
                Ok(bytes) if bytes.is_empty() && self.decoder.is_none() => {
                    return Poll::Ready(None);
                }
                Ok(bytes) if bytes.is_empty() => {}
                bytes => return Poll::Ready(Some(bytes.map(Frame::data).map_err(Into::into))),
            }
        }
    }
}

/// The longest `data:…;base64,` that is recognised.
const PREFIX: usize = 256;

/// How many characters of white space may exceed the number of digits. White space yields no bytes,
/// so the limit on bytes does not end a body of nothing but white space.
const BLANKS: usize = 256;

/// Bytes that are decoded together if all of them are digits.
const BLOCK: usize = 256;

/// Decodes base64 while it arrives, with or without the head of a data URL (RFC 2397).
///
/// White space is skipped, because some encoders break lines. Padding may be missing.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    state: State,
    /// Digits that are not decoded yet. After each `push` there are fewer than four.
    digits: Vec<u8>,
    padding: usize,
    /// White space beyond the digits so far.
    blanks: usize,
}

#[derive(Debug, Default)]
enum State {
    /// The text may still be a data URL.
    #[default]
    Start,
    /// It is a data URL, whose comma has not arrived yet.
    Head(Vec<u8>),
    Digits,
}

impl Decoder {
    pub(super) fn push(&mut self, input: &[u8]) -> Result<Bytes, Error> {
        for block in input.chunks(BLOCK) {
            match self.state {
                State::Digits if self.padding == 0 && !has_others(block) => {
                    self.blanks = self.blanks.saturating_sub(block.len());
                    self.digits.extend_from_slice(block);
                }
                _ => self.push_each(block)?,
            }
        }
        // In the head of a data URL nothing is a digit.
        let State::Digits = self.state else {
            return Ok(Bytes::new());
        };
        self.decode(self.digits.len() / 4 * 4)
    }

    fn push_each(&mut self, input: &[u8]) -> Result<(), Error> {
        for &byte in input {
            match &mut self.state {
                State::Digits => self.digit(byte)?,
                State::Start => {
                    self.digits.push(byte);
                    let word = &b"data:"[..self.digits.len().min(5)];
                    if !self.digits.eq_ignore_ascii_case(word) {
                        self.state = State::Digits;
                        for byte in std::mem::take(&mut self.digits) {
                            self.digit(byte)?;
                        }
                    } else if self.digits.len() == 5 {
                        self.state = State::Head(Vec::new());
                        self.digits.clear();
                    }
                }
                State::Head(head) if byte == b',' => {
                    let start = head.len().saturating_sub(b";base64".len());
                    if !head[start..].eq_ignore_ascii_case(b";base64") {
                        return Err(Reason::Base64.into());
                    }
                    self.state = State::Digits;
                }
                State::Head(head) => {
                    if head.len() == PREFIX {
                        return Err(Reason::Base64.into());
                    }
                    head.push(byte);
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> Result<Bytes, Error> {
        match std::mem::replace(&mut self.state, State::Digits) {
            State::Digits => {}
            State::Start => {
                for byte in std::mem::take(&mut self.digits) {
                    self.digit(byte)?;
                }
            }
            State::Head(_) => return Err(Reason::Base64.into()),
        }
        let whole = self.digits.len() / 4 * 4;
        let padding = (4 - self.digits.len() % 4) % 4;
        if self.padding != 0 && self.padding != padding || padding == 3 {
            return Err(Reason::Base64.into());
        }
        let mut bytes = self.decode(whole)?.to_vec();
        if padding > 0 {
            self.digits.extend(std::iter::repeat_n(b'=', padding));
            bytes.extend(self.decode(4)?);
        }
        Ok(bytes.into())
    }

    fn digit(&mut self, byte: u8) -> Result<(), Error> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' if self.blanks == BLANKS => {
                return Err(Reason::Base64.into());
            }
            b' ' | b'\t' | b'\r' | b'\n' => self.blanks += 1,
            b'=' if self.padding < 2 => self.padding += 1,
            _ if self.padding > 0 => return Err(Reason::Base64.into()),
            _ => {
                self.blanks = self.blanks.saturating_sub(1);
                self.digits.push(byte);
            }
        }
        Ok(())
    }

    /// Decodes the first `len` digits. `len` is a multiple of four.
    fn decode(&mut self, len: usize) -> Result<Bytes, Error> {
        let bytes = BASE64_STANDARD
            .decode(&self.digits[..len])
            .map_err(|error| Error::new(Reason::Base64, error))?;
        self.digits.drain(..len);
        Ok(bytes.into())
    }
}

/// Whether any byte is not a digit. Reading all bytes is faster than stopping at the first one.
fn has_others(block: &[u8]) -> bool {
    let others = block
        .iter()
        .filter(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n' | b'='));
    others.count() > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<Vec<u8>, Error> {
        let mut decoder = Decoder::default();
        let mut bytes = Vec::new();
        for piece in pieces {
            bytes.extend(decoder.push(piece)?);
        }
        bytes.extend(decoder.finish()?);
        Ok(bytes)
    }

    #[test]
    fn valid_input_is_decoded_however_it_is_split() {
        for (input, expected) in [
            ("", ""),
            ("YQ==", "a"),
            ("YQ", "a"),
            ("YWI=", "ab"),
            ("YWI", "ab"),
            ("YWJj", "abc"),
            ("YWJjZGVm", "abcdef"),
            ("YWJj\r\nZGVm\n", "abcdef"),
            ("data", "u\u{ab}Z"),
            ("DATA:;BASE64,YWJj", "abc"),
            ("data:text/plain;charset=utf-8;base64,YWJjZA==", "abcd"),
            ("data:application/octet-stream;base64,", ""),
        ] {
            let expected: Vec<u8> = match input {
                "data" => vec![0x75, 0xab, 0x5a],
                _ => expected.into(),
            };
            let input = input.as_bytes();
            assert_eq!(decode([input]), Ok(expected.clone()));
            assert_eq!(decode(input.chunks(1)), Ok(expected.clone()));
            for cut in 0..input.len() {
                let (a, b) = input.split_at(cut);
                assert_eq!(
                    decode([a, b]),
                    Ok(expected.clone()),
                    "{input:?} cut at {cut}"
                );
            }
        }
    }

    #[test]
    fn invalid_input_is_rejected() {
        let long = format!("data:{};base64,YWJj", "x".repeat(300));
        for input in [
            "Y",
            "YWJjZ",
            "Y=",
            "Y===",
            "YQ=",
            "YQ===",
            "YQ==YQ==",
            "=YQ=",
            "YW-_",
            "YW J!",
            "%59",
            "data:",
            "data:;base64",
            "data:text/plain,YWJj",
            "data:,",
            &long,
        ] {
            assert_eq!(
                decode([input.as_bytes()]),
                Err(Reason::Base64.into()),
                "{input}"
            );
            assert_eq!(
                decode(input.as_bytes().chunks(1)),
                Err(Reason::Base64.into()),
                "{input}"
            );
        }
    }

    #[test]
    fn white_space_is_limited() {
        let blanks = |count| " ".repeat(count);
        assert_eq!(decode([blanks(256).as_bytes()]), Ok(vec![]));
        assert_eq!(decode([blanks(257).as_bytes()]), Err(Reason::Base64.into()));
        assert_eq!(
            decode([&b"YWJj"[..], blanks(257).as_bytes()]),
            Err(Reason::Base64.into())
        );
        // As Python's `encodebytes` breaks lines, and with a line break after each digit.
        let lines = ("A".repeat(76) + "\n").repeat(1000);
        assert_eq!(
            decode([lines.as_bytes()]).map(|bytes| bytes.len()),
            Ok(57_000)
        );
        let lines = "A\n".repeat(4000);
        assert_eq!(
            decode([lines.as_bytes()]).map(|bytes| bytes.len()),
            Ok(3000)
        );
    }
}
