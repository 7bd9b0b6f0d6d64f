//! The headers with which a client of the IETF draft offers to resume a request. They are
//! structured fields (RFC 8941).

use http::{HeaderMap, HeaderName};

use super::offsets::{MAX_INTEGER, UPLOAD_LENGTH, single};

pub(super) const UPLOAD_COMPLETE: HeaderName = HeaderName::from_static("upload-complete");
pub(super) const UPLOAD_INCOMPLETE: HeaderName = HeaderName::from_static("upload-incomplete");
pub(super) const INTEROP_VERSION: HeaderName =
    HeaderName::from_static("upload-draft-interop-version");

/// Whether the content of a request is the whole file, as far as its client says so.
pub(super) fn says_whole(headers: &HeaderMap) -> bool {
    completes(headers) == Some(true)
}

/// Whether the header is one with which a client offers to resume the request, and says nothing of
/// a chunk.
pub(super) fn is_offer(name: &str) -> bool {
    let names = [
        INTEROP_VERSION,
        UPLOAD_COMPLETE,
        UPLOAD_INCOMPLETE,
        UPLOAD_LENGTH,
    ];
    names.iter().any(|known| known == name)
}

/// Whether the request completes the upload. `None` if it does not say so, or contradicts itself.
pub(super) fn completes(headers: &HeaderMap) -> Option<bool> {
    let complete = boolean(headers, &UPLOAD_COMPLETE);
    let incomplete = boolean(headers, &UPLOAD_INCOMPLETE);
    if complete.is_some() && complete == incomplete {
        return None;
    }
    complete.or_else(|| incomplete.map(|incomplete| !incomplete))
}

/// The value of a header that is one item of a structured field (RFC 8941), without its parameters.
/// Other headers are ignored as a whole.
fn item<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let value = single(headers, name).ok()??;
    Some(value.split(';').next()?.trim_end())
}

fn boolean(headers: &HeaderMap, name: &HeaderName) -> Option<bool> {
    match item(headers, name)? {
        "?1" => Some(true),
        "?0" => Some(false),
        _ => None,
    }
}

/// An integer that is not negative.
pub(super) fn integer(headers: &HeaderMap, name: &HeaderName) -> Option<u64> {
    let digits = item(headers, name)?;
    let is_plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| is_plain);
    number.filter(|number| digits.len() <= 15 && *number <= MAX_INTEGER)
}
