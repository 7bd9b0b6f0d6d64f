//! Fields that are headers of the request: a name `header:x` is that of the header `x`.

use http::{HeaderMap, header};

use super::Params;

/// What the name of such a field begins with.
pub(super) const PREFIX: &str = "header:";

/// The parts of `Content-Range: bytes 0-9/25` (RFC 9110 §14.4).
pub(super) const RANGE_FIRST: &str = "header:content-range.first";
pub(super) const RANGE_LENGTH: &str = "header:content-range.length";
pub(super) const RANGE_TOTAL: &str = "header:content-range.total";

/// The name in `Content-Disposition: attachment; filename="a%20b.txt"` (RFC 6266).
pub(super) const FILE_NAME: &str = "header:content-disposition.filename";

/// A name that is percent-encoded, because scripts cannot put all letters into headers.
pub(super) const ENCODED_NAME: &str = "header:uploader-file-name";

/// Whether the request has the header of a field.
pub(super) fn has(headers: &HeaderMap, name: &str) -> bool {
    match name {
        RANGE_FIRST | RANGE_LENGTH | RANGE_TOTAL => headers.contains_key(header::CONTENT_RANGE),
        FILE_NAME => headers.contains_key(header::CONTENT_DISPOSITION),
        _ => headers.contains_key(&name[PREFIX.len()..]),
    }
}

/// Adds a field, if the request has its header.
pub(super) fn add(params: &mut Params, headers: &HeaderMap, name: &str) {
    match name {
        RANGE_FIRST | RANGE_LENGTH | RANGE_TOTAL => {
            for value in headers.get_all(header::CONTENT_RANGE) {
                // What cannot be read is no number either.
                let range = value.to_str().ok().and_then(content_range);
                let text = range.map_or_else(
                    || "?".into(),
                    |(first, length, total)| match name {
                        RANGE_FIRST => first.to_string(),
                        RANGE_LENGTH => length.to_string(),
                        _ => total.to_string(),
                    },
                );
                params.push_head(name, Some(text));
            }
        }
        FILE_NAME => {
            if let Some(file_name) = file_name(headers) {
                params.push_head(name, Some(file_name));
            }
        }
        _ => {
            for value in headers.get_all(&name[PREFIX.len()..]) {
                let value = String::from_utf8(value.as_bytes().to_vec());
                let value = value.ok();
                params.push_head(
                    name,
                    match name {
                        ENCODED_NAME => value.as_deref().map(percent_decoded),
                        _ => value,
                    },
                );
            }
        }
    }
}

/// First byte, bytes, and bytes of the whole file.
fn content_range(value: &str) -> Option<(u64, u64, u64)> {
    let (range, total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let number = |digits: &str| {
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| digits.parse::<u64>().ok()).flatten()
    };
    let (first, last, total) = (number(first)?, number(last)?, number(total)?);
    let length = last.checked_sub(first)?.checked_add(1)?;
    Some((first, length, total))
}

/// The name that `Content-Disposition` has for the body.
pub(crate) fn file_name(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_DISPOSITION)?;
    attached_name(std::str::from_utf8(value.as_bytes()).ok()?)
}

fn attached_name(value: &str) -> Option<String> {
    let (_, name) = value.split_once("filename=\"")?;
    let (name, _) = name.split_once('"')?;
    Some(percent_decoded(name))
}

fn percent_decoded(text: &str) -> String {
    // Here a plus is one, and an ampersand is no end.
    let pair = format!("={}", text.replace('+', "%2B").replace('&', "%26"));
    let decoded = form_urlencoded::parse(pair.as_bytes()).next();
    decoded.map_or_else(String::new, |(_, text)| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        for (value, expected) in [
            ("bytes 0-9/25", Some((0, 10, 25))),
            ("bytes 20-24/25", Some((20, 5, 25))),
            ("bytes 0-0/1", Some((0, 1, 1))),
            ("bytes 5-4/25", None),
            ("bytes 0-18446744073709551615/25", None),
            ("bytes 0-9/*", None),
            ("bytes */25", None),
            ("bytes +0-9/25", None),
            ("0-9/25", None),
            ("items 0-9/25", None),
            ("", None),
        ] {
            assert_eq!(content_range(value), expected, "{value}");
        }
    }

    #[test]
    fn fields_of_headers() {
        let of = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| {
                let name = http::HeaderName::from_static(name);
                (name, http::HeaderValue::from_static(value))
            });
            headers.collect::<HeaderMap>()
        };
        for (name, headers, expected) in [
            (
                RANGE_FIRST,
                &[("content-range", "bytes 5-9/25")][..],
                Some("5"),
            ),
            (
                RANGE_LENGTH,
                &[("content-range", "bytes 5-9/25")],
                Some("5"),
            ),
            (
                RANGE_TOTAL,
                &[("content-range", "bytes 5-9/25")],
                Some("25"),
            ),
            (RANGE_TOTAL, &[("content-range", "bytes 5-9/*")], Some("?")),
            (RANGE_TOTAL, &[("range", "bytes=5-9")], None),
            (
                FILE_NAME,
                &[("content-disposition", "attachment; filename=\"a%20b\"")],
                Some("a b"),
            ),
            (FILE_NAME, &[("content-range", "bytes 5-9/25")], None),
            (
                ENCODED_NAME,
                &[("uploader-file-name", "a%20b+c")],
                Some("a b+c"),
            ),
            ("header:x-clip", &[("x-clip", "a%20b")], Some("a%20b")),
            ("header:x-clip", &[("x-clips", "a")], None),
        ] {
            let headers = of(headers);
            let mut params = Params::default();
            add(&mut params, &headers, name);
            let value = params.one(name).unwrap();
            assert_eq!(value.as_deref(), expected, "{name}");
            assert_eq!(has(&headers, name), expected.is_some(), "{name}");
        }
    }

    #[test]
    fn file_names() {
        for (value, expected) in [
            ("attachment; filename=\"x%20%C3%A9.txt\"", Some("x é.txt")),
            (
                "attachment; filename=\"a+b&c=d.txt\"; x=y",
                Some("a+b&c=d.txt"),
            ),
            ("attachment; filename=\"\"", Some("")),
            ("attachment; filename=a", None),
            ("attachment", None),
        ] {
            assert_eq!(attached_name(value).as_deref(), expected, "{value}");
        }
    }
}
