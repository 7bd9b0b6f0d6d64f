//! What is written down of an upload: one JSON object, from which one request learns how it stands.

use std::time::SystemTime;

use bytes::Bytes;
use serde_json::{Value, json};

use super::layout::Slots;
use crate::store::{
    Progress, RangeSet, Record, Upload, UploadKey,
    json::{record_from_json, record_to_json, upload_from_json, upload_to_json},
};

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Info {
    /// Random: names the upload for good.
    pub(super) id: String,
    /// As its first request described it.
    pub(super) upload: Upload,
    /// Bytes of each slot but the last.
    pub(super) slot: u64,
    /// The multipart upload of the final object; an empty file has none.
    pub(super) multipart: Option<String>,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Phase {
    Receiving,
    /// The final object is there.
    Sealed(Seal),
    Settled(Record),
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seal {
    /// As the request described it that completed it.
    pub(super) upload: Upload,
    pub(super) attempt: u32,
    /// Of the whole file.
    pub(super) crc: u32,
}

impl Info {
    pub(super) fn key(&self) -> &UploadKey {
        &self.upload.key
    }

    pub(super) fn slots(&self) -> Slots {
        Slots {
            size: self.slot,
            total: self.upload.total,
        }
    }

    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.phase, Phase::Receiving)
    }

    /// What its request described, unless it is settled.
    pub(super) fn unsettled(&self) -> Option<&Upload> {
        match &self.phase {
            Phase::Receiving => Some(&self.upload),
            Phase::Sealed(seal) => Some(&seal.upload),
            Phase::Settled(_) => None,
        }
    }

    /// Whether it is settled, and the record is to be forgotten.
    pub(super) fn is_expired(&self) -> bool {
        matches!(&self.phase, Phase::Settled(record) if record.expires <= SystemTime::now())
    }

    /// What is said of it when all bytes are there.
    pub(super) fn complete(&self) -> Progress {
        Progress {
            received: self.upload.total,
            complete: true,
        }
    }

    /// How far it is when these bytes are there.
    pub(super) fn progress(&self, there: &RangeSet) -> Progress {
        match self.phase {
            Phase::Receiving => Progress {
                received: there.total(),
                complete: there.covers(0, self.upload.total),
            },
            _ => self.complete(),
        }
    }

    pub(super) fn in_phase(&self, phase: Phase) -> Self {
        Self {
            phase,
            ..self.clone()
        }
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let mut value = json!({
            "version": 1,
            "id": self.id,
            "upload": upload_to_json(&self.upload),
            "slot": self.slot,
            "multipart": self.multipart,
        });
        match &self.phase {
            Phase::Receiving => {}
            Phase::Sealed(seal) => {
                value["sealed"] = json!({
                    "upload": upload_to_json(&seal.upload),
                    "attempt": seal.attempt,
                    "crc": seal.crc,
                });
            }
            Phase::Settled(record) => value["settled"] = record_to_json(record),
        }
        value.to_string().into()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(bytes).ok()?;
        if value["version"] != 1 {
            return None;
        }
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let phase = match (&value["sealed"], &value["settled"]) {
            (Value::Null, Value::Null) => Phase::Receiving,
            (seal, Value::Null) => Phase::Sealed(Seal {
                upload: upload_from_json(&seal["upload"])?,
                attempt: number(&seal["attempt"])?,
                crc: number(&seal["crc"])?,
            }),
            (_, record) => Phase::Settled(record_from_json(record)?),
        };
        Some(Self {
            id: value["id"].as_str()?.to_owned(),
            upload: upload_from_json(&value["upload"])?,
            slot: value["slot"].as_u64().filter(|slot| *slot > 0)?,
            multipart: value["multipart"].as_str().map(ToOwned::to_owned),
            phase,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_read_as_it_was_written() {
        let upload = Upload {
            key: UploadKey::from_bytes([7; 32]),
            scope: "s".into(),
            identifier: "i\n\"".into(),
            total: u64::MAX,
            chunk_size: Some(5),
            file_name: Some("日本".into()),
            relative_path: None,
            content_type: Some("a/b".into()),
            fields: vec![("a".into(), "b".into())],
        };
        let record = Record {
            delivered: true,
            status: 200,
            headers: vec![("x".into(), b"\xff".to_vec())],
            body: Some(Bytes::from_static(b"\0")),
            size: 3,
            expires: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        };
        let seal = Seal {
            upload: Upload {
                file_name: None,
                ..upload.clone()
            },
            attempt: 3,
            crc: u32::MAX,
        };
        let receiving = Info {
            id: "id".into(),
            upload,
            slot: 5,
            multipart: Some("m".into()),
            phase: Phase::Receiving,
        };
        assert!(!receiving.is_expired());
        for info in [
            receiving.clone(),
            Info {
                multipart: None,
                ..receiving.in_phase(Phase::Sealed(seal))
            },
            receiving.in_phase(Phase::Settled(record)),
        ] {
            assert_eq!(Info::from_bytes(&info.to_bytes()), Some(info));
        }
        let text = String::from_utf8(receiving.to_bytes().to_vec()).unwrap();
        for broken in [
            text.replace("\"version\":1", "\"version\":2"),
            text.replace("\"slot\":5", "\"slot\":0"),
            text.replace("\"id\":\"id\",", ""),
            text[..text.len() / 2].to_owned(),
        ] {
            assert_ne!(broken, text);
            assert_eq!(Info::from_bytes(broken.as_bytes()), None, "{broken}");
        }
    }
}
