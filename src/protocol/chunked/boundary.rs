use http::HeaderValue;

use crate::UploadError;

/// The boundary of a multipart form (RFC 2046 §5.1.1), if the content type says that it is one.
pub(super) fn boundary(content_type: &HeaderValue) -> Option<Result<String, UploadError>> {
    let (mut quoted, mut escaped) = (false, false);
    let mut parts = content_type.as_bytes().split(|&b| {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        b == b';' && !quoted
    });
    let media_type = parts.next()?.trim_ascii();
    if !media_type.eq_ignore_ascii_case(b"multipart/form-data") {
        return None;
    }
    let mut boundaries = parts.filter_map(|parameter| {
        let (name, value) = std::str::from_utf8(parameter).ok()?.split_once('=')?;
        let name = name.trim_ascii_start();
        name.eq_ignore_ascii_case("boundary")
            .then(|| value.trim_ascii_end())
    });
    // Of two, others on the way may have taken the other one.
    let boundary = match (boundaries.next(), boundaries.next()) {
        (Some(value), None) => usable_boundary(value),
        _ => None,
    };
    Some(boundary.ok_or(UploadError::Multipart {
        reason: "its content type has no usable boundary",
    }))
}

fn usable_boundary(value: &str) -> Option<String> {
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    // Inside quotes even a space, but not as the last.
    let inner_space = quoted.is_some_and(|v| !v.ends_with(' '));
    let allowed = |b: u8| {
        b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&b) || (b == b' ' && inner_space)
    };
    let value = quoted.unwrap_or(value);
    let fits = (1..=70).contains(&value.len()) && value.bytes().all(allowed);
    fits.then(|| value.to_owned())
}
