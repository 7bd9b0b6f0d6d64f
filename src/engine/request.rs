//! The request that the inner service gets.

use http::{HeaderName, HeaderValue, Method, Request, header, request::Parts};

use crate::{model::upload::Upload, route::set_uri};

/// The request for the inner service. Its body has been read, so the headers about it are removed.
///
/// An answer that is recorded is read by the layer and repeated to requests with other headers. So
/// the headers that choose a form of the answer are removed too: a compressed or partial answer
/// would be the wrong one for them. Preconditions such as `If-Match` stay, because they say whether
/// the file is wanted.
pub(super) fn delivered<B>(
    mut head: Parts,
    body: B,
    forwards_all: bool,
    upload: &Upload,
) -> Request<B> {
    const ABOUT_BODY: [HeaderName; 4] = [
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::TRANSFER_ENCODING,
    ];
    const ABOUT_ANSWER: [HeaderName; 5] = [
        header::ACCEPT_ENCODING,
        header::IF_MODIFIED_SINCE,
        header::IF_RANGE,
        header::RANGE,
        header::TE,
    ];
    let about_answer = ABOUT_ANSWER.iter().filter(|_| !forwards_all);
    for name in ABOUT_BODY.iter().chain(about_answer) {
        head.headers.remove(name);
    }
    as_created(&mut head, upload);
    Request::from_parts(head, body)
}

/// Gives a request the method, the URI and the describing headers of the one that created the
/// upload, and removes the headers that say how its bytes came.
fn as_created(head: &mut Parts, upload: &Upload) {
    const OTHERS: [HeaderName; 4] = [
        HeaderName::from_static("x-http-method-override"),
        HeaderName::from_static("repr-digest"),
        header::EXPECT,
        header::TRAILER,
    ];
    let Some(creation) = &upload.creation else {
        return;
    };
    let is_of_transfer = |name: &HeaderName| {
        let prefixes = ["tus-", "upload-", "content-"];
        prefixes
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
            || OTHERS.contains(name)
    };
    let names: Vec<_> = head.headers.keys().cloned().collect();
    for name in names.iter().filter(|name| is_of_transfer(name)) {
        head.headers.remove(name);
    }
    for (name, value) in &creation.headers {
        // They were those of a request.
        if let (Ok(name), Ok(value)) = (
            name.parse::<HeaderName>(),
            HeaderValue::from_bytes(value.as_bytes()),
        ) {
            head.headers.append(name, value);
        }
    }
    // Both were those of a request.
    head.method = Method::from_bytes(creation.method.as_bytes()).unwrap_or(Method::POST);
    set_uri(head, &creation.uri, upload.request_path.as_deref());
}
