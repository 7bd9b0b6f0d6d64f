use http::HeaderValue;

use crate::error::{Error, Reason};

/// The boundary of a multipart form (RFC 2046 §5.1.1), if the content type says that it is one.
pub(super) fn boundary(content_type: &HeaderValue) -> Option<Result<String, Error>> {
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
    // If there are two, a proxy can have chosen the other one.
    let boundary = match (boundaries.next(), boundaries.next()) {
        (Some(value), None) => usable_boundary(value),
        _ => None,
    };
    let problem = "its content type has no usable boundary";
    Some(boundary.ok_or_else(|| Reason::Multipart { problem }.into()))
}

fn usable_boundary(value: &str) -> Option<String> {
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    // A quoted boundary can have spaces, but not at its end.
    let inner_space = quoted.is_some_and(|v| !v.ends_with(' '));
    let allowed = |b: u8| {
        b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&b) || (b == b' ' && inner_space)
    };
    let value = quoted.unwrap_or(value);
    let fits = (1..=70).contains(&value.len()) && value.bytes().all(allowed);
    fits.then(|| value.to_owned())
}
