//! Forms and bodies of no chunk client: a whole file each.

use http::{Method, header, request::Parts};

use super::chunked::{
    Chunk, FilePart, Identity, Intent, Params, Transport, headers, parse::Fields,
};
use crate::UploadError;

/// Whether fields that say nothing of a position can be those of a whole file. One that is not `known`
/// and speaks of a chunk, or is an offset, says that it is a piece of one, from a client that the layer
/// was not told of, or not enough: as a file of its own it would be a wrong one.
pub(crate) fn may_be_whole(params: &Params, known: impl Fn(&str) -> bool) -> bool {
    !params.has(|name| !known(name) && is_of_pieces(name))
}

/// Whether a request that no dialect knows brings a whole file.
pub(crate) fn is_whole_file(parts: &Parts, params: &Params) -> bool {
    let mut headers = parts.headers.keys().map(|name| name.as_str());
    // `Upload-…` is the resumable uploads' of others: tus, FilePond, the IETF draft.
    let of_pieces = |name: &str| {
        is_of_pieces(name) || name.starts_with("upload-") || name == header::CONTENT_RANGE
    };
    !headers.any(of_pieces) && may_be_whole(params, |_| false)
}

fn is_of_pieces(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // Not all offsets: that of a time zone is the application's.
    name.contains("chunk") || name == "offset"
}

/// The file of such a form. It has no name but the one it gets here: each is an upload of its own.
pub(crate) fn whole_file(
    params: &Params,
    identifier: String,
    total: u64,
) -> Result<Chunk, UploadError> {
    let fields = Fields::strict(params);
    Ok(Chunk {
        identity: Identity {
            identifier,
            total,
            file_name: fields.part_name()?,
            relative_path: None,
            is_unique: true,
        },
        content_type: fields.part_type()?,
        numbering: None,
        offset: 0,
        len: Some(total),
        max_len: total,
    })
}

/// What a request wants that is not a dialect's: its body can be a file, if it says that it is nothing
/// more special.
pub(crate) fn raw_file(parts: &Parts) -> Intent {
    let headers = &parts.headers;
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.as_bytes());
    let is_file = [Method::POST, Method::PUT].contains(&parts.method)
        && media_type == Some(b"application/octet-stream")
        && !headers.contains_key(header::CONTENT_ENCODING);
    // A query that is too long is the application's too.
    match Params::from_query(parts.uri.query()) {
        Ok(mut params) if is_file && is_whole_file(parts, &params) => {
            params.set_part(FilePart {
                file_name: headers::file_name(headers),
                content_type: None,
            });
            Intent::Put(params, Transport::Whole)
        }
        _ => Intent::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(method: &str, query: &str, headers: &[(&str, &str)]) -> Parts {
        let uri = format!("/upload?{query}");
        let mut request = http::Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn pieces_are_no_whole_files() {
        for (query, headers, whole) in [
            ("", &[][..], true),
            ("x=1&timezoneOffset=60", &[("x-y", "z")], true),
            ("offset=0", &[], false),
            ("myChunk=1", &[], false),
            ("CHUNKS=1", &[], false),
            ("", &[("x-chunk-number", "1")], false),
            ("", &[("upload-offset", "0")], false),
            ("", &[("upload-length", "9")], false),
            ("", &[("x-upload-offset", "0")], true),
            ("", &[("content-range", "bytes 0-3/10")], false),
        ] {
            let parts = parts("POST", query, headers);
            let params = Params::from_query(parts.uri.query()).unwrap();
            assert_eq!(is_whole_file(&parts, &params), whole, "{query} {headers:?}");
            let knows = |name: &str| name == "offset";
            assert_eq!(
                may_be_whole(&params, knows),
                query == "offset=0" || whole || !headers.is_empty(),
                "{query} {headers:?}"
            );
        }
    }

    #[test]
    fn raw_bodies() {
        let octets = ("content-type", "application/octet-stream");
        let long = format!("x={}", "y".repeat(20 << 10));
        for (method, query, headers, whole) in [
            ("POST", "", &[octets][..], true),
            ("PUT", "x=1", &[octets], true),
            ("PATCH", "", &[octets], false),
            ("GET", "", &[octets], false),
            ("POST", "", &[], false),
            ("POST", "", &[("content-type", "text/plain")], false),
            ("POST", "", &[octets, ("content-encoding", "gzip")], false),
            ("POST", "", &[octets, ("upload-offset", "0")], false),
            ("POST", "chunk=1", &[octets], false),
            ("POST", &long, &[octets], false),
        ] {
            let intent = raw_file(&parts(method, query, headers));
            let got = matches!(intent, Intent::Put(_, Transport::Whole));
            assert_eq!(got, whole, "{method} {headers:?}");
            assert_eq!(matches!(intent, Intent::Pass), !whole);
        }
    }
}
