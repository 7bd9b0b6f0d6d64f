/// The headers of a part.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) disposition: Disposition,
    /// The media type.
    pub(super) content_type: Option<String>,
}

impl Head {
    /// Parses header lines, at most `max`, each with its line break.
    pub(super) fn parse(head: &[u8], max: usize) -> Result<Self, &'static str> {
        let (mut disposition, mut content_type) = (None, None);
        for (nth, line) in head.split_inclusive(|&byte| byte == b'\n').enumerate() {
            if nth == max {
                return Err("a part has too many headers");
            }
            let line = line
                .strip_suffix(b"\r\n")
                .ok_or("the headers of a part have broken line ends")?;
            let colon = line.iter().position(|&byte| byte == b':');
            let (name, value) = line.split_at(colon.ok_or("a part has no headers")?);
            if name.eq_ignore_ascii_case(b"content-type") {
                let value = String::from_utf8_lossy(&value[1..]);
                content_type = Some(value.trim().to_owned());
            } else if name.eq_ignore_ascii_case(b"content-disposition")
                && disposition.replace(&value[1..]).is_some()
            {
                return Err("a part has more than one content disposition");
            }
        }
        let value = disposition.ok_or("a part has no content disposition")?;
        let disposition =
            Disposition::parse(value).ok_or("the content disposition of a part cannot be read")?;
        Ok(Self {
            disposition,
            content_type,
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
        let value = std::str::from_utf8(value).ok()?;
        let (kind, mut rest) = value.split_once(';')?;
        if !kind.trim().eq_ignore_ascii_case("form-data") {
            return None;
        }
        let (mut name, mut file_name) = (None, None);
        loop {
            let (attribute, after) = rest.split_once('=')?;
            let (content, after) = quoted_or_token(after.trim_start())?;
            let place = match attribute.trim() {
                attribute if attribute.eq_ignore_ascii_case("name") => &mut name,
                attribute if attribute.eq_ignore_ascii_case("filename") => &mut file_name,
                // `filename*` among others, which RFC 7578 forbids.
                _ => &mut None,
            };
            if place.replace(content).is_some() {
                return None;
            }
            let after = after.trim_start();
            if after.is_empty() {
                break;
            }
            rest = after.strip_prefix(';')?;
            if rest.trim().is_empty() {
                break;
            }
        }
        let name = unescaped(&name?);
        (!name.is_empty()).then_some(Self {
            name,
            file_name: file_name.as_deref().map(unescaped),
        })
    }
}

/// The value at the start of `text`, and the rest.
fn quoted_or_token(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([';', ' ', '\t', '"']).unwrap_or(text.len());
        let (token, after) = text.split_at(end);
        return (!token.is_empty()).then(|| (token.to_owned(), after));
    };
    let mut content = String::new();
    let mut chars = quoted.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (c, chars.peek()) {
            ('"', _) => return Some((content, &quoted[at + 1..])),
            // curl escapes these; browsers send other backslashes as they are.
            ('\\', Some((_, escaped @ ('"' | '\\')))) => {
                content.push(*escaped);
                chars.next();
            }
            _ => content.push(c),
        }
    }
    None
}

/// Decodes the three characters that browsers escape in names.
fn unescaped(name: &str) -> String {
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
            (r#"form-data; name="a\"b\\c\d""#, Some((r#"a"b\c\d"#, None))),
            (
                "form-data; filename=\"x; name=b\"; name=\"a\"",
                Some(("a", Some("x; name=b"))),
            ),
            ("form-data; xname=\"q\"; name=\"a\"", Some(("a", None))),
            (
                "form-data; name=\"a\"; filename*=UTF-8''b",
                Some(("a", None)),
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
        assert_eq!(Disposition::parse(b"form-data; name=\"\xff\""), None);
    }
}
