//! Forms and bodies of no chunk client: a whole file each.

use http::{Method, header, request::Parts};

use super::{Chunk, FilePart, Identity, Intent, Params, Transport, fields::Fields, heads};
use crate::UploadError;

/// Whether a form that says nothing of a position is a whole file. A name with `chunk` in it that is
/// not `known` says that it is a piece of one, from a client that the layer was not told of, or not
/// enough: as a file of its own it would be a wrong one.
pub(super) fn may_be_whole(params: &Params, known: impl Fn(&str) -> bool) -> bool {
    !params.has(|name| !known(name) && name.to_ascii_lowercase().contains("chunk"))
}

/// Whether a form that no dialect knows is a whole file.
pub(crate) fn is_whole_file(params: &Params) -> bool {
    may_be_whole(params, |_| false)
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
pub(crate) fn raw_file(parts: &Parts) -> Result<Intent, UploadError> {
    let headers = &parts.headers;
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .map(|value| value.as_bytes());
    let is_file = [Method::POST, Method::PUT].contains(&parts.method)
        && media_type == Some(b"application/octet-stream")
        && !headers.contains_key(header::CONTENT_RANGE)
        && !headers.contains_key(header::CONTENT_ENCODING);
    if !is_file {
        return Ok(Intent::Pass);
    }
    let mut params = Params::from_query(parts.uri.query())?;
    if !is_whole_file(&params) {
        return Ok(Intent::Pass);
    }
    params.set_part(FilePart {
        file_name: heads::file_name(headers),
        content_type: None,
    });
    Ok(Intent::Put(params, Transport::Whole))
}
