use std::borrow::Cow;

use http::HeaderValue;

use crate::{
    error::{Error, Reason},
    mime::{Value, is_media_type},
};

/// The boundary of a multipart form (RFC 2046 §5.1.1), if the content type says that it is one.
///
/// Clients use characters that the RFC does not allow, such as `*`. Those in the search for
/// boundaries have no special meaning, so all that are visible are accepted.
pub(super) fn boundary(content_type: &HeaderValue) -> Option<Result<String, Error>> {
    let content_type = content_type.as_bytes();
    if !is_media_type(content_type, "multipart/form-data") {
        return None;
    }
    let value = Value::parse(content_type);
    // If there are two, a proxy can have chosen the other one.
    let boundary = value.as_ref().and_then(|value| value.get("boundary").ok()?);
    let problem = "its content type has no usable boundary";
    let boundary = boundary.filter(|boundary| is_usable(boundary));
    let boundary = boundary.ok_or_else(|| Reason::Multipart { problem }.into());
    Some(boundary.map(Cow::into_owned))
}

fn is_usable(boundary: &str) -> bool {
    let is_visible = |byte: u8| byte.is_ascii_graphic() || byte == b' ';
    (1..=70).contains(&boundary.len())
        && boundary.bytes().all(is_visible)
        && boundary.trim().len() == boundary.len()
}
