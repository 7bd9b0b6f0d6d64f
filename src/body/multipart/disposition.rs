use crate::mime::{Value, encoded_words, text};

/// The headers of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) disposition: Disposition,
    /// The media type.
    pub(super) content_type: Option<String>,
    /// Whether the content is compressed. The layer does not decode it. A
    /// `Content-Transfer-Encoding` does not count: RFC 7578 forbids it, and many clients send one
    /// that is not that of the content.
    pub(super) is_encoded: bool,
}

impl Head {
    /// Parses header lines, at most `max`, each with its line break.
    pub(super) fn parse(head: &[u8], max: usize) -> Result<Self, &'static str> {
        let (mut disposition, mut content_type, mut is_encoded) = (None, None, false);
        for (nth, line) in head.split_inclusive(|&byte| byte == b'\n').enumerate() {
            if nth == max {
                return Err("a part has too many headers");
            }
            let line = line
                .strip_suffix(b"\r\n")
                .ok_or("the headers of a part have broken line ends")?;
            let colon = line.iter().position(|&byte| byte == b':');
            let (name, value) = line.split_at(colon.ok_or("a part has no headers")?);
            let value = value[1..].trim_ascii();
            let is = |expected: &str| name.eq_ignore_ascii_case(expected.as_bytes());
            if is("content-type") {
                content_type = Some(text(value).into_owned());
            } else if is("content-encoding") {
                is_encoded |= !(value.is_empty() || value.eq_ignore_ascii_case(b"identity"));
            } else if is("content-disposition") && disposition.replace(value).is_some() {
                return Err("a part has more than one content disposition");
            }
        }
        let value = disposition.ok_or("a part has no content disposition")?;
        let disposition =
            Disposition::parse(value).ok_or("the content disposition of a part cannot be read")?;
        Ok(Self {
            disposition,
            content_type,
            is_encoded,
        })
    }
}

/// The `Content-Disposition` of a part (RFC 7578 §4.2).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Disposition {
    pub(super) name: String,
    pub(super) file_name: Option<String>,
}

impl Disposition {
    /// `None` if it is not `form-data` with one name and at most one file name.
    pub(super) fn parse(value: &[u8]) -> Option<Self> {
        let value = Value::parse(value).filter(|value| value.is("form-data"))?;
        let name = unescaped(&encoded_words(&value.get("name").ok()??));
        let file_name = value.file_name(unescaped).ok()?;
        (!name.is_empty()).then_some(Self { name, file_name })
    }
}

/// Decodes the three characters that browsers escape in names.
fn unescaped(name: &str) -> String {
    if !name.contains('%') {
        return name.to_owned();
    }
    name.replace("%22", "\"")
        .replace("%0D", "\r")
        .replace("%0A", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dispositions() {
        for (value, expected) in [
            ("form-data; name=\"a\"", Some(("a", None))),
            ("form-data; name=a", Some(("a", None))),
            (
                "Form-Data;NAME=\"a\";FileName=\"b\"",
                Some(("a", Some("b"))),
            ),
            ("form-data; name=\"a\";", Some(("a", None))),
            (
                "form-data; name=\"up[x]file\"; filename=\"日本.txt\"",
                Some(("up[x]file", Some("日本.txt"))),
            ),
            (
                "form-data; name=\"a%22b%0D%0A\"; filename=\"\"",
                Some(("a\"b\r\n", Some(""))),
            ),
            // Only these three are escaped in a form.
            (
                "form-data; name=\"a%20b\"; filename=\"c%20d%22\"",
                Some(("a%20b", Some("c%20d\""))),
            ),
            (r#"form-data; name="a\"b\\c\d""#, Some((r#"a"b\c\d"#, None))),
            (
                "form-data; filename=\"x; name=b\"; name=\"a\"",
                Some(("a", Some("x; name=b"))),
            ),
            ("form-data; xname=\"q\"; name=\"a\"", Some(("a", None))),
            // python-requests, with a part of one parameter more.
            (
                "form-data; name=\"a\"; filename*=utf-8''%D1%82.txt",
                Some(("a", Some("т.txt"))),
            ),
            (
                "form-data; name=\"a\"; filename=\"b\"; filename*=UTF-8''c%22",
                Some(("a", Some("c\""))),
            ),
            // .NET.
            (
                "form-data; name=\"=?utf-8?B?w7Y=?=\"; filename=\"=?utf-8?B?w7YudHh0?=\"",
                Some(("ö", Some("ö.txt"))),
            ),
            (
                "form-data; name=a; filename=b c.txt",
                Some(("a", Some("b c.txt"))),
            ),
            ("form-data", None),
            ("form-data; filename=\"x; name=b\"", None),
            ("form-data; name=\"\"", None),
            ("form-data; name=", None),
            ("form-data; name=\"a", None),
            ("form-data; name=\"a\" x", None),
            ("form-data; name=\"a\"; name=\"a\"", None),
            ("form-data; name=\"a\"; filename=b; filename=c", None),
            ("attachment; name=\"a\"", None),
            ("", None),
        ] {
            let parsed = Disposition::parse(value.as_bytes());
            let expected = expected.map(|(name, file_name)| Disposition {
                name: name.into(),
                file_name: file_name.map(Into::into),
            });
            assert_eq!(parsed, expected, "{value}");
        }
        let latin_1 = Disposition::parse(b"form-data; name=\"a\"; filename=\"\xe9\"");
        assert_eq!(latin_1.unwrap().file_name.as_deref(), Some("é"));
    }

    #[test]
    fn encodings_that_are_not_decoded() {
        for (header, expected) in [
            ("Content-Transfer-Encoding: base64", false),
            ("Content-Encoding: Identity", false),
            ("content-encoding:", false),
            ("Content-Encoding: gzip", true),
        ] {
            let head = format!("Content-Disposition: form-data; name=a\r\n{header}\r\n");
            let head = Head::parse(head.as_bytes(), 8).unwrap();
            assert_eq!(head.is_encoded, expected, "{header}");
        }
    }
}
