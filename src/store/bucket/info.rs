//! What is stored about an upload: one JSON object.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::layout::{MAX_PARTS, Slots};
use crate::{
    model::upload::{Upload, UploadId},
    store::{Progress, RangeSet, Record, State, Status, StoreError},
};

/// The upload that has an [`UploadId`] at the moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Info {
    pub(super) version: Version,
    /// Random. Distinguishes the upload from earlier and later ones with the same [`UploadId`].
    pub(super) unique_id: String,
    /// As its first request described it, or, once it is settled, as the request described it that
    /// completed it. The length is known.
    pub(super) upload: Upload,
    /// Bytes of each slot other than the last. Not zero.
    pub(super) slot: u64,
    /// The multipart upload of the final object. `None` for an empty file.
    pub(super) multipart: Option<String>,
    /// The times of its record are by the engine's clock in the bucket, and by the clock of this
    /// server in memory.
    pub(super) phase: Phase,
    /// Whether it is settled and its record has expired.
    #[serde(skip)]
    pub(super) has_expired: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Receiving,
    /// The final object exists.
    Sealed(Seal),
    Settled(Record),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// As the request described it that completed it.
    pub(super) upload: Upload,
    pub(super) attempt: u32,
    /// Of the whole file.
    pub(super) crc32: u32,
}

/// The version of the format, the number 1. Other versions cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub(super) struct Version;

impl From<Version> for u32 {
    fn from(Version: Version) -> Self {
        1
    }
}

impl TryFrom<u32> for Version {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        if number == 1 {
            Ok(Self)
        } else {
            Err(format!("version {number} is not supported"))
        }
    }
}

impl Info {
    pub(super) fn id(&self) -> &UploadId {
        &self.upload.id
    }

    pub(super) fn length(&self) -> u64 {
        self.upload.length.unwrap_or_default()
    }

    pub(super) fn slots(&self) -> Slots {
        Slots {
            size: self.slot,
            length: self.length(),
        }
    }

    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.phase, Phase::Receiving)
    }

    pub(super) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Settled(_))
    }

    pub(super) fn is_rejected(&self) -> bool {
        matches!(&self.phase, Phase::Settled(record) if !record.delivered)
    }

    /// The upload as [`Status`] and lists describe it.
    pub(super) fn described(&self) -> &Upload {
        match &self.phase {
            Phase::Sealed(seal) => &seal.upload,
            Phase::Receiving | Phase::Settled(_) => &self.upload,
        }
    }

    /// The progress when all bytes are stored.
    pub(super) fn complete(&self) -> Progress {
        Progress {
            received: self.length(),
            complete: true,
        }
    }

    /// The progress when these bytes are stored.
    pub(super) fn progress(&self, stored: &RangeSet) -> Progress {
        if self.is_receiving() {
            Progress {
                received: stored.total(),
                complete: stored.covers(0, self.length()),
            }
        } else {
            self.complete()
        }
    }

    /// The status when these bytes are stored. `None` if the record has expired.
    pub(super) fn status(&self, stored: RangeSet) -> Option<Status> {
        let state = match &self.phase {
            Phase::Settled(_) if self.has_expired => return None,
            Phase::Settled(record) => State::Settled(record.clone()),
            Phase::Receiving if !self.progress(&stored).complete => State::Receiving(stored),
            Phase::Receiving | Phase::Sealed(_) => State::Complete,
        };
        Some(Status::new(self.described().clone(), state))
    }

    pub(super) fn sealed(&self, seal: Seal) -> Self {
        Self {
            phase: Phase::Sealed(seal),
            ..self.clone()
        }
    }

    pub(super) fn settled(&self, record: Record) -> Self {
        Self {
            upload: self.described().clone(),
            phase: Phase::Settled(record),
            ..self.clone()
        }
    }

    /// One line of JSON, and a line with its CRC-32.
    pub(super) fn to_bytes(&self) -> Result<Bytes, StoreError> {
        let mut bytes = serde_json::to_vec(self).map_err(StoreError::new)?;
        let crc = crc32fast::hash(&bytes);
        bytes.extend_from_slice(format!("\n{crc:08x}").as_bytes());
        Ok(bytes.into())
    }

    /// Parses the `info` object of this upload.
    pub(super) fn from_bytes(bytes: &[u8], id: &UploadId) -> Result<Self, Unreadable> {
        let json = match bytes.iter().position(|byte| *byte == b'\n') {
            Some(end) => {
                let crc = format!("{:08x}", crc32fast::hash(&bytes[..end]));
                if bytes[end + 1..] != *crc.as_bytes() {
                    return Err(Unreadable(None));
                }
                &bytes[..end]
            }
            // Early objects have no CRC-32.
            None => bytes,
        };
        let info: Self = serde_json::from_slice(json).map_err(|error| Unreadable(Some(error)))?;
        let is_valid = info.slot > 0
            && info.upload.length.is_some()
            && info.id() == id
            && info.length().div_ceil(info.slot) <= MAX_PARTS
            && info.multipart.is_some() == (info.length() > 0)
            && !info.unique_id.is_empty()
            && info.unique_id.bytes().all(|b| b.is_ascii_alphanumeric());
        is_valid.then_some(info).ok_or(Unreadable(None))
    }
}

/// The `info` object of an upload is damaged, or another version of this crate has written it.
#[derive(Debug)]
pub(super) struct Unreadable(Option<serde_json::Error>);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an `info` object is damaged, or of another version")
    }
}

impl std::error::Error for Unreadable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.as_ref().map(|error| error as _)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::{Duration, SystemTime};

    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::model::upload::Scope;

    pub(crate) fn receiving(unique_id: &str, upload: Upload) -> Info {
        Info {
            version: Version,
            unique_id: unique_id.into(),
            upload,
            slot: 5,
            multipart: Some("m".into()),
            phase: Phase::Receiving,
            has_expired: false,
        }
    }

    /// What version 1 writes is read by all later versions.
    #[test]
    fn infos_are_written_as_json() {
        let id = UploadId::from_bytes([7; 32]);
        let mut upload = Upload::new(id, Scope::new("s"), Some(9));
        upload.identifier = "i\n\"".into();
        upload.fields = vec![("a".into(), "b".into())];
        let mut completing = upload.clone();
        completing.file_name = Some("日本".into());
        let expires = SystemTime::UNIX_EPOCH + Duration::from_secs(5);
        let mut record = Record::new(true, StatusCode::OK, 9, expires);
        record
            .headers
            .insert("x", HeaderValue::from_bytes(b"\xff").unwrap());

        let first = receiving("u", upload);
        let sealed = first.sealed(Seal {
            upload: completing.clone(),
            attempt: 3,
            crc32: u32::MAX,
        });
        let settled = sealed.settled(record);
        assert_eq!(sealed.described(), &completing);
        assert_eq!(settled.described(), &completing);
        for info in [&first, &sealed, &settled] {
            let bytes = info.to_bytes().unwrap();
            assert_eq!(&Info::from_bytes(&bytes, &id).unwrap(), info);
        }
        let text = String::from_utf8(first.to_bytes().unwrap().to_vec()).unwrap();
        let json = format!(
            "{{\"version\":1,\"unique_id\":\"u\",\"upload\":{},\"slot\":5,\
             \"multipart\":\"m\",\"phase\":\"receiving\"}}",
            serde_json::to_string(&first.upload).unwrap()
        );
        let crc = crc32fast::hash(json.as_bytes());
        assert_eq!(text, format!("{json}\n{crc:08x}"));
        // The objects of the first releases have no CRC-32.
        assert_eq!(Info::from_bytes(json.as_bytes(), &id).unwrap(), first);
        for broken in [
            text.replace("\"identifier\"", "\"identifies\""),
            text.replace(":5", ":6"),
            format!("{text}0"),
            text[..text.len() - 1].to_owned(),
        ] {
            assert!(Info::from_bytes(broken.as_bytes(), &id).is_err());
        }
        let text = json;
        for broken in [
            text.replace("\"unique_id\":\"u\"", "\"unique_id\":\"\""),
            text.replace("\"unique_id\":\"u\"", "\"unique_id\":\"a/b\""),
            text.replace("\"multipart\":\"m\"", "\"multipart\":null"),
            text.replace("\"length\":9", "\"length\":50001"),
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("\"version\":1,", ""),
            text.replace("\"slot\":5", "\"slot\":0"),
            text.replace("\"unique_id\":\"u\",", ""),
            text.replace("\"length\":9", "\"length\":null"),
            text.replace(&id.to_string(), &"08".repeat(32)),
            text[..text.len() / 2].to_owned(),
        ] {
            assert_ne!(broken, text);
            assert!(
                Info::from_bytes(broken.as_bytes(), &id).is_err(),
                "{broken}"
            );
        }
    }
}
