//! Values of `Content-Disposition` and `Content-Type`, in requests and in the parts of forms: one
//! reader for all of them.
//!
//! It reads RFC 6266 with the file names of RFC 8187, and what clients send instead: encoded words
//! (RFC 2047), as .NET does, bytes of Latin-1, unquoted values with spaces, and backslashes of
//! Windows paths. Nothing of that is a reason to refuse a file.

use std::borrow::Cow;

/// A value with parameters, such as `form-data; name="a"; filename="b"`.
#[derive(Debug)]
pub(crate) struct Value<'a>(Cow<'a, str>);

/// A parameter that was sent twice. Which one counts differs between servers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ambiguous;

impl<'a> Value<'a> {
    /// `None` if a quoted string has no end, or something follows it.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let value = Self(text(bytes));
        let is_valid = value.parameters().all(|parameter| parameter.is_some());
        is_valid.then_some(value)
    }

    /// Whether the part before the parameters is this one, whatever its case.
    pub(crate) fn is(&self, kind: &str) -> bool {
        self.split().0.trim().eq_ignore_ascii_case(kind)
    }

    /// The value of a parameter, whatever the case of its name.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Cow<'_, str>>, Ambiguous> {
        let parameters = self.parameters().flatten();
        let mut values = parameters.filter(|(known, _)| known.eq_ignore_ascii_case(name));
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(Ambiguous),
            (value, None) => Ok(value.map(|(_, value)| value)),
        }
    }

    /// The kind, and the text of the parameters.
    fn split(&self) -> (&str, &str) {
        match self.0.split_once(';').unwrap_or((&self.0, "")) {
            // Some clients leave out the disposition, and send parameters only.
            (kind, _) if kind.contains('=') => ("", &self.0),
            parts => parts,
        }
    }

    /// Names and values. The last one is `None` if it cannot be read.
    fn parameters(&self) -> impl Iterator<Item = Option<(&str, Cow<'_, str>)>> {
        let mut rest = self.split().1;
        std::iter::from_fn(move || {
            loop {
                rest = rest.trim_start_matches(|c: char| c == ';' || c.is_whitespace());
                if rest.is_empty() {
                    return None;
                }
                let name_end = rest.find(['=', ';']).unwrap_or(rest.len());
                let (name, after) = std::mem::take(&mut rest).split_at(name_end);
                let Some(after) = after.strip_prefix('=') else {
                    // A parameter without a value.
                    rest = after;
                    continue;
                };
                let parameter = quoted_or_bare(after.trim_start());
                return Some(parameter.map(|(content, after)| {
                    rest = after;
                    (name.trim(), content)
                }));
            }
        })
    }

    /// The file name: that of `filename*`, if it can be read, otherwise that of `filename`.
    /// `decode` undoes what the sender of the latter does to certain characters.
    pub(crate) fn file_name(
        &self,
        decode: impl Fn(&str) -> String,
    ) -> Result<Option<String>, Ambiguous> {
        let extended = self.get("filename*")?;
        let plain = self.get("filename")?;
        if let Some(name) = extended.as_deref().and_then(extended_value) {
            return Ok(Some(name));
        }
        let name = plain.map(|name| decode(&encoded_words(&name)));
        // It is in an unknown character set: better a garbled name than none.
        let last_resort = || extended.map(|value| text(&percent_decoded(&value)).into_owned());
        Ok(name.or_else(last_resort))
    }
}

/// Whether the media type of a `Content-Type` is this one, whatever its case and its parameters.
pub(crate) fn is_media_type(content_type: &[u8], expected: &str) -> bool {
    let media_type = content_type.split(|&byte| byte == b';').next();
    media_type.is_some_and(|found| {
        let found = found.trim_ascii();
        found.eq_ignore_ascii_case(expected.as_bytes())
    })
}

/// The text of a header: UTF-8, or else Latin-1.
pub(crate) fn text(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.into(),
        Err(_) => latin_1(bytes).into(),
    }
}

/// Decodes percent-encoded UTF-8. Text that does not become UTF-8 was not encoded.
pub(crate) fn without_percents(encoded: &str) -> String {
    String::from_utf8(percent_decoded(encoded)).unwrap_or_else(|_| encoded.to_owned())
}

/// Decodes the encoded words of RFC 2047 in a text. What cannot be decoded stays.
pub(crate) fn encoded_words(value: &str) -> Cow<'_, str> {
    if !value.contains("=?") {
        return value.into();
    }
    let mut decoded = String::new();
    let mut rest = value;
    let mut after_word = false;
    while let Some(start) = rest.find("=?") {
        let (before, word) = rest.split_at(start);
        let Some((content, len)) = encoded_word(word) else {
            decoded += &rest[..start + 2];
            rest = &rest[start + 2..];
            after_word = false;
            continue;
        };
        // The space between two words belongs to neither.
        if !(after_word && before.trim().is_empty()) {
            decoded += before;
        }
        decoded += &content;
        rest = &word[len..];
        after_word = true;
    }
    (decoded + rest).into()
}

/// The content of the encoded word at the start of `text`, and the length of the word.
fn encoded_word(text: &str) -> Option<(String, usize)> {
    let mut fields = text.strip_prefix("=?")?.splitn(3, '?');
    let (charset, encoding, rest) = (fields.next()?, fields.next()?, fields.next()?);
    let content = &rest[..rest.find("?=")?];
    let bytes = match encoding {
        "B" | "b" => {
            use base64::prelude::{BASE64_STANDARD, Engine as _};
            BASE64_STANDARD.decode(content).ok()?
        }
        "Q" | "q" => unescaped(&content.replace('_', " "), b'='),
        _ => return None,
    };
    let len = "=???".len() + charset.len() + encoding.len() + content.len() + "?=".len();
    // RFC 2231 allows a language after the character set.
    let charset = charset.split('*').next()?;
    Some((in_charset(bytes, charset)?, len))
}

/// The value of a parameter such as `filename*=UTF-8''%e2%82%ac` (RFC 8187).
fn extended_value(value: &str) -> Option<String> {
    let mut fields = value.splitn(3, '\'');
    let (charset, _language, value) = (fields.next()?, fields.next()?, fields.next()?);
    in_charset(percent_decoded(value), charset.trim()).filter(|name| !name.is_empty())
}

fn in_charset(bytes: Vec<u8>, charset: &str) -> Option<String> {
    let is = |name| charset.eq_ignore_ascii_case(name);
    if is("utf-8") || is("utf8") || is("us-ascii") {
        String::from_utf8(bytes).ok()
    } else if is("iso-8859-1") || is("latin1") || is("windows-1252") {
        Some(latin_1(&bytes))
    } else {
        None
    }
}

/// Latin-1 as clients mean it (<https://encoding.spec.whatwg.org/#windows-1252>): with quotation
/// marks, dashes and the euro sign in place of control characters.
fn latin_1(bytes: &[u8]) -> String {
    const FROM_80: [char; 32] = [
        '€', '\u{81}', '‚', 'ƒ', '„', '…', '†', '‡', 'ˆ', '‰', 'Š', '‹', 'Œ', '\u{8d}', 'Ž',
        '\u{8f}', '\u{90}', '‘', '’', '“', '”', '•', '–', '—', '˜', '™', 'š', '›', 'œ', '\u{9d}',
        'ž', 'Ÿ',
    ];
    let character = |&byte: &u8| match byte {
        0x80..0xa0 => FROM_80[usize::from(byte - 0x80)],
        _ => char::from(byte),
    };
    bytes.iter().map(character).collect()
}

fn percent_decoded(text: &str) -> Vec<u8> {
    unescaped(text, b'%')
}

/// Decodes an escape byte and two hexadecimal digits. Anything else stays.
fn unescaped(text: &str, escape: u8) -> Vec<u8> {
    let digit = |byte: Option<&u8>| char::from(*byte?).to_digit(16);
    let mut bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    while let Some((&byte, rest)) = bytes.split_first() {
        match (digit(rest.first()), digit(rest.get(1))) {
            (Some(high), Some(low)) if byte == escape => {
                decoded.push((high << 4 | low) as u8);
                bytes = &rest[2..];
            }
            _ => {
                decoded.push(byte);
                bytes = rest;
            }
        }
    }
    decoded
}

/// The value at the start of `text`, and the rest: nothing, or what starts with `;`.
fn quoted_or_bare(text: &str) -> Option<(Cow<'_, str>, &str)> {
    let Some(mut rest) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        let (value, after) = text.split_at(end);
        let value = value.trim_end();
        let is_value = !value.is_empty() && !value.contains('"');
        return is_value.then(|| (value.into(), after));
    };
    let mut content = Cow::Borrowed("");
    loop {
        let (piece, after) = rest.split_at(rest.find(['"', '\\'])?);
        content += piece;
        if let Some(after) = after.strip_prefix('"') {
            let after = after.trim_start();
            let is_end = after.is_empty() || after.starts_with(';');
            return is_end.then_some((content, after));
        }
        // curl escapes these; browsers send other backslashes as they are.
        let is_escape = after[1..].starts_with(['"', '\\']);
        let (escaped, after) = after[usize::from(is_escape)..].split_at(1);
        content += escaped;
        rest = after;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_name(value: &[u8]) -> Option<String> {
        Value::parse(value)?
            .file_name(without_percents)
            .unwrap_or_default()
    }

    #[test]
    fn file_names_in_all_forms() {
        for (value, expected) in [
            ("attachment; filename=\"a b.pdf\"", Some("a b.pdf")),
            ("attachment; filename=a.pdf", Some("a.pdf")),
            ("attachment;filename=a.pdf;x=y", Some("a.pdf")),
            (
                "attachment; filename=my report.pdf ; x=y",
                Some("my report.pdf"),
            ),
            ("ATTACHMENT; FileName=\"a\"", Some("a")),
            ("inline; filename = \"a\" ", Some("a")),
            ("filename=\"a\"", Some("a")),
            ("attachment; filename=\"\"", Some("")),
            ("attachment; filename=\"a;b=c.txt\"", Some("a;b=c.txt")),
            (r#"attachment; filename="a\"b\\c""#, Some("a\"b\\c")),
            (
                r#"attachment; filename="C:\temp\x.txt""#,
                Some(r"C:\temp\x.txt"),
            ),
            ("attachment; filename=\"x%20%C3%A9.txt\"", Some("x é.txt")),
            ("attachment; filename=\"100%.txt\"", Some("100%.txt")),
            ("attachment; filename=\"50%ab.txt\"", Some("50%ab.txt")),
            ("attachment; filename=\"a+b&c=d\"", Some("a+b&c=d")),
            ("attachment; filename=\"日本.txt\"", Some("日本.txt")),
            // RFC 8187. It is preferred, wherever it is.
            (
                "attachment; filename*=UTF-8''na%C3%AFve.txt",
                Some("naïve.txt"),
            ),
            ("attachment; FILENAME*=utf-8'en'%e2%82%ac", Some("€")),
            ("attachment; filename*=iso-8859-1''na%EFve", Some("naïve")),
            ("attachment; filename*=windows-1252''%80%96%9F", Some("€–Ÿ")),
            (
                "attachment; filename*=UTF-8''b%2525; filename=a",
                Some("b%25"),
            ),
            ("attachment; filename=a; filename*=UTF-8''b", Some("b")),
            ("attachment; filename*=\"UTF-8''b\"", Some("b")),
            // It cannot be read.
            ("attachment; filename=a; filename*=UTF-8''%FF", Some("a")),
            ("attachment; filename=a; filename*=koi8-r''%FF", Some("a")),
            ("attachment; filename=a; filename*=b", Some("a")),
            ("attachment; filename*=koi8-r''%FFb", Some("koi8-r''ÿb")),
            // RFC 2047.
            (
                "attachment; filename=\"=?utf-8?B?w7YudHh0?=\"",
                Some("ö.txt"),
            ),
            ("attachment; filename==?utf-8?B?w7YudHh0?=", Some("ö.txt")),
            (
                "attachment; filename=\"=?ISO-8859-1?q?na=EFve_x?=.txt\"",
                Some("naïve x.txt"),
            ),
            (
                "attachment; filename=\"=?utf-8?B?w7Y=?= =?utf-8?Q?=C3=B6?= x\"",
                Some("öö x"),
            ),
            ("attachment; filename=\"=?utf-8*en?Q?a?=\"", Some("a")),
            (
                "attachment; filename=\"=?koi8-r?Q?=FF?=\"",
                Some("=?koi8-r?Q?=FF?="),
            ),
            (
                "attachment; filename=\"=?utf-8?X?a?= =?x\"",
                Some("=?utf-8?X?a?= =?x"),
            ),
            ("attachment", None),
            ("attachment; xfilename=\"a\"", None),
            ("attachment; filename", None),
            ("attachment; filename=", None),
            ("attachment; filename=\"a", None),
            ("attachment; filename=\"a\" b", None),
            ("attachment; filename=a; filename=b", None),
            ("", None),
        ] {
            assert_eq!(file_name(value.as_bytes()).as_deref(), expected, "{value}");
        }
        let latin_1 = b"attachment; filename=\"na\xefve.txt\"";
        assert_eq!(file_name(latin_1).as_deref(), Some("naïve.txt"));
    }

    #[test]
    fn kinds_and_parameters() {
        let value = Value::parse(b" Form-Data ; A = 1;b=\"2\";; a=3;c").unwrap();
        assert!(value.is("form-data") && !value.is("form"));
        assert_eq!(value.get("b"), Ok(Some("2".into())));
        assert_eq!(value.get("a"), Err(Ambiguous));
        assert_eq!(value.get("c"), Ok(None));
    }

    #[test]
    fn media_types() {
        let octets = "application/octet-stream";
        for (content_type, expected) in [
            ("application/octet-stream", true),
            ("Application/Octet-Stream; charset=binary", true),
            ("application/octet-stream;", true),
            ("application/octet-stream2", false),
            ("text/plain; x=application/octet-stream", false),
            ("", false),
        ] {
            assert_eq!(
                is_media_type(content_type.as_bytes(), octets),
                expected,
                "{content_type}"
            );
        }
    }
}
