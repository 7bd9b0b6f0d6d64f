//! Forms of no chunk client: a whole file each.

use super::{Chunk, Identity, Params, fields::Fields};
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
