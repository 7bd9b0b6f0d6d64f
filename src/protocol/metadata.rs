//! `Upload-Metadata` of tus 1.0, which tus-js-client also sends when it speaks the IETF draft.

use base64::{
    Engine as _,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::HeaderMap;

use super::offsets::{New, UPLOAD_METADATA, invalid};
use crate::{
    error::Error,
    limits::{METADATA_BYTES, METADATA_KEYS, NAME_BYTES, PATH_BYTES, TYPE_BYTES},
};

/// Describes the new upload with its metadata.
pub(super) fn described(headers: &HeaderMap) -> Result<New, Error> {
    let mut new = New::default();
    let Some(metadata) = metadata(headers)? else {
        return Ok(new);
    };
    let (mut name, mut media_type) = (None, None);
    for (key, value) in Metadata::parse(&metadata)?.pairs {
        let Ok(text) = String::from_utf8(value) else {
            // The application has the whole header.
            continue;
        };
        match key.as_str() {
            "filename" => new.file_name = Some(text),
            "filetype" => new.content_type = Some(text),
            // Uppy sends both names for each.
            "name" => name = Some(text),
            "type" => media_type = Some(text),
            // Uppy sends `null` for a file outside of folders.
            "relativePath" => {
                let is_path = !text.is_empty() && text != "null";
                new.relative_path = is_path.then_some(text);
            }
            _ => new.fields.push((key, text)),
        }
    }
    new.file_name = new.file_name.or(name);
    new.content_type = new.content_type.or(media_type);
    for (text, most) in [
        (&new.file_name, NAME_BYTES),
        (&new.relative_path, PATH_BYTES),
        (&new.content_type, TYPE_BYTES),
    ] {
        if text.as_ref().is_some_and(|text| text.len() > most) {
            return Err(invalid(UPLOAD_METADATA, "has a value that is too long"));
        }
    }
    new.creation.metadata = Some(metadata);
    Ok(new)
}

/// The whole value of `Upload-Metadata`. Several headers are one list.
fn metadata(headers: &HeaderMap) -> Result<Option<String>, Error> {
    let mut all: Option<String> = None;
    for value in headers.get_all(&UPLOAD_METADATA) {
        let value = value
            .to_str()
            .map_err(|_| invalid(UPLOAD_METADATA, "is not text"))?;
        let all = match &mut all {
            Some(all) => {
                all.push(',');
                all
            }
            all => all.get_or_insert_default(),
        };
        if all.len() + value.len() > METADATA_BYTES {
            return Err(invalid(UPLOAD_METADATA, "is too long"));
        }
        all.push_str(value);
    }
    Ok(all)
}

/// The pairs of `Upload-Metadata`.
struct Metadata {
    pairs: Vec<(String, Vec<u8>)>,
}

impl Metadata {
    fn parse(text: &str) -> Result<Self, Error> {
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let mut pairs: Vec<(String, Vec<u8>)> = Vec::new();
        if text.trim().is_empty() {
            return Ok(Self { pairs });
        }
        for pair in text.split(',') {
            let pair = pair.trim();
            let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
            let value = value.trim();
            if key.is_empty() || value.contains(' ') {
                return Err(invalid(UPLOAD_METADATA, "is not a list of keys and values"));
            }
            if pairs.len() == METADATA_KEYS {
                return Err(invalid(UPLOAD_METADATA, "has too many keys"));
            }
            if pairs.iter().any(|(known, _)| known == key) {
                return Err(invalid(UPLOAD_METADATA, "has a key twice"));
            }
            let value = LENIENT.decode(value);
            let value = value.map_err(|_| invalid(UPLOAD_METADATA, "has a value not in base64"))?;
            pairs.push((key.to_owned(), value));
        }
        Ok(Self { pairs })
    }
}
