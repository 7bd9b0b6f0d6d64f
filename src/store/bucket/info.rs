//! What is stored about an upload: one JSON object.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

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
    /// completed it. The length is known, unless it comes with an append: see [`Turn`].
    pub(super) upload: Upload,
    /// Whether the upload was created without a length.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) is_late: bool,
    /// Bytes of each slot other than the last. Not zero.
    pub(super) slot: u64,
    /// The multipart upload of the final object. `None` for a file that is known to be empty when
    /// it is created.
    pub(super) multipart: Option<String>,
    /// The times of its record are by the engine's clock in the bucket, and by the clock of this
    /// server in memory.
    pub(super) phase: Phase,
    /// Whether it is settled and its record has expired.
    #[serde(skip)]
    pub(super) has_expired: bool,
    /// The newest turn of an upload of appends, if it was looked up. The slots and the length are
    /// those of the turn then.
    #[serde(skip)]
    pub(super) turn: Option<Turn>,
}

/// The state of an upload of appends when a request has taken its turn: see
/// [`appends`](super::appends).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Turn {
    pub(super) version: Version,
    /// It is in the name of the object.
    #[serde(skip)]
    pub(super) number: u32,
    /// Random. Tells a request whether it has created the object.
    pub(super) token: String,
    /// How many bytes were stored. Bytes beyond it that older turns have put do not count.
    pub(super) stored: u64,
    /// As in [`Info`].
    pub(super) slot: u64,
    pub(super) length: Option<u64>,
    /// The length that the client has declared, although it completes nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) declared: Option<u64>,
    /// Whether bytes that this turn puts count at once, and not only when a later turn says so.
    pub(super) is_open: bool,
}

impl Turn {
    pub(super) fn to_bytes(&self) -> Result<Bytes, StoreError> {
        to_lines(self)
    }

    pub(super) fn from_bytes(bytes: &[u8], number: u32) -> Result<Self, Unreadable> {
        let turn: Self = from_lines(bytes)?;
        let is_valid = turn.slot > 0 && turn.length.is_none_or(|length| turn.stored <= length);
        is_valid
            .then_some(Self { number, ..turn })
            .ok_or(Unreadable(None))
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    Receiving,
    /// The final object exists.
    Sealed(Box<Seal>),
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

    /// The length of the file, or, while it is unknown, the largest number.
    pub(super) fn length(&self) -> u64 {
        self.upload.length.unwrap_or(u64::MAX)
    }

    /// Whether all bytes come by appends, as far as it is known without a request.
    pub(super) fn takes_appends(&self) -> bool {
        let has_url = self.upload.creation.is_some();
        self.turn.is_some() || self.upload.length.is_none() || has_url
    }

    /// The same upload, as it is in this turn.
    pub(super) fn in_turn(&self, turn: Turn) -> Self {
        let mut info = self.clone();
        info.slot = turn.slot;
        info.upload.length = turn.length.or(info.upload.length);
        info.upload.declare(turn.declared);
        info.turn = Some(turn);
        info
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
                complete: stored.covers(0, self.length()) && self.upload.length.is_some(),
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
        let status = Status::new(self.described().clone(), state);
        Some(status.with_delivery(&self.unique_id))
    }

    pub(super) fn sealed(&self, seal: Seal) -> Self {
        Self {
            phase: Phase::Sealed(Box::new(seal)),
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

    pub(super) fn to_bytes(&self) -> Result<Bytes, StoreError> {
        to_lines(self)
    }

    /// Whether these bytes are an `info` object of this upload, and not of an earlier or later one.
    pub(super) fn is_in(&self, bytes: &[u8]) -> bool {
        Self::from_bytes(bytes, self.id()).is_ok_and(|info| info.unique_id == self.unique_id)
    }

    /// Parses the `info` object of this upload.
    pub(super) fn from_bytes(bytes: &[u8], id: &UploadId) -> Result<Self, Unreadable> {
        let info: Self = from_lines(bytes)?;
        let is_late = info.is_late;
        let is_valid = info.slot > 0
            && info.upload.length.map_or(is_late, |length| {
                let has_multipart = is_late || length > 0;
                length.div_ceil(info.slot) <= MAX_PARTS && info.multipart.is_some() == has_multipart
            })
            && info.id() == id
            && !info.unique_id.is_empty()
            && info.unique_id.bytes().all(|b| b.is_ascii_alphanumeric());
        is_valid.then_some(info).ok_or(Unreadable(None))
    }
}

/// One line of JSON, and a line with its CRC-32.
fn to_lines(value: &impl Serialize) -> Result<Bytes, StoreError> {
    let mut bytes = serde_json::to_vec(value).map_err(StoreError::new)?;
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(format!("\n{crc:08x}").as_bytes());
    Ok(bytes.into())
}

fn from_lines<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Unreadable> {
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
    serde_json::from_slice(json).map_err(|error| Unreadable(Some(error)))
}

/// The `info` object of an upload, or that of a turn, is damaged, or another version of this crate
/// has written it.
#[derive(Debug)]
pub(super) struct Unreadable(Option<serde_json::Error>);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the description of an upload is damaged, or of another version")
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
            is_late: false,
            turn: None,
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
