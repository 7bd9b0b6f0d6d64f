//! Fields that are headers of the request.

use http::{HeaderMap, header};

use super::field::{Field, RangePart, Source};
use crate::mime::{Value, text, without_percents};

/// Whether the request has the header of a field.
pub(super) fn has(headers: &HeaderMap, field: &Field) -> bool {
    match &field.0 {
        Source::Header { name, .. } => headers.contains_key(name),
        Source::ContentRange(_) => headers.contains_key(header::CONTENT_RANGE),
        Source::DispositionFileName => headers.contains_key(header::CONTENT_DISPOSITION),
        Source::QueryOrForm(_) | Source::PartFileName | Source::PartMediaType => false,
    }
}

/// The values of a field. Scripts send Latin-1 if they set a header to text that is not ASCII.
pub(super) fn values(headers: &HeaderMap, field: &Field) -> Vec<String> {
    match &field.0 {
        Source::Header { name, is_encoded } => {
            let texts = headers.get_all(name).iter();
            let texts = texts.map(|value| text(value.as_bytes()));
            let decode = if *is_encoded {
                without_percents
            } else {
                str::to_owned
            };
            texts.map(|text| decode(&text)).collect()
        }
        Source::ContentRange(part) => {
            let values = headers.get_all(header::CONTENT_RANGE).iter();
            let ranges = values.map(|value| content_range(value.to_str().ok()?));
            ranges
                .map(|range| match (range, part) {
                    (Some((first, _, _)), RangePart::First) => first.to_string(),
                    (Some((_, length, _)), RangePart::Length) => length.to_string(),
                    (Some((_, _, total)), RangePart::Total) => total.to_string(),
                    // An invalid range is reported as a value that is not a number.
                    (None, _) => "?".to_owned(),
                })
                .collect()
        }
        Source::DispositionFileName => file_name(headers).into_iter().collect(),
        Source::QueryOrForm(_) | Source::PartFileName | Source::PartMediaType => Vec::new(),
    }
}

/// The first byte, the number of bytes and the length of the file in a
/// `Content-Range` (RFC 9110 §14.4).
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

/// The file name in `Content-Disposition: attachment; filename="a%20b.txt"` (RFC 6266). blueimp
/// sends it percent-encoded.
pub(in crate::protocol) fn file_name(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_DISPOSITION)?;
    // A header that cannot be read has no name. That is no reason to refuse the file.
    Value::parse(value.as_bytes())?
        .file_name(without_percents)
        .ok()?
}

/// The declared length of the body in bytes.
pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    let length = headers.get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
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
        let range = &[("content-range", "bytes 5-9/25")][..];
        let no_total = &[("content-range", "bytes 5-9/*")][..];
        let disposition = &[("content-disposition", "attachment; filename=\"a%20b\"")][..];
        let clip = &[("x-clip", "a%20b+c")][..];
        for (field, headers, expected) in [
            (Field::content_range_first(), range, Some("5")),
            (Field::content_range_length(), range, Some("5")),
            (Field::content_range_total(), range, Some("25")),
            (Field::content_range_total(), no_total, Some("?")),
            (
                Field::content_range_total(),
                &[("range", "bytes=5-9")],
                None,
            ),
            (Field::disposition_file_name(), disposition, Some("a b")),
            (Field::disposition_file_name(), range, None),
            (Field::header_percent_encoded("X-Clip"), clip, Some("a b+c")),
            (Field::header("x-clip"), clip, Some("a%20b+c")),
            (Field::header("x-clips"), clip, None),
            (Field::query_or_form("x-clip"), clip, None),
            (Field::part_file_name(), disposition, None),
        ] {
            let headers = of(headers);
            let values = values(&headers, &field);
            let expected: Vec<String> = expected.into_iter().map(Into::into).collect();
            assert_eq!(values, expected, "{field:?}");
            assert_eq!(has(&headers, &field), !expected.is_empty(), "{field:?}");
        }
        let mut latin_1 = of(range);
        latin_1.insert(
            "x-clip",
            http::HeaderValue::from_bytes(b"na\xefve").unwrap(),
        );
        assert_eq!(values(&latin_1, &Field::header("x-clip")), ["na\u{ef}ve"]);
    }
}
