use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{ranges::RangeSet, upload::Upload};

/// What a store knows of an upload.
///
/// ```
/// use tower_resumable::{Scope, Upload, UploadId};
/// use tower_resumable::store::{RangeSet, State, Status};
///
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), Some(10));
/// let mut ranges = RangeSet::default();
/// ranges.insert(0, 3);
/// ranges.insert(5, 2);
/// let status = Status::new(upload, State::Receiving(ranges));
/// assert_eq!(status.prefix(), 3);
/// assert_eq!(status.progress().received, 5);
/// assert!(!status.progress().complete);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The upload as its first request described it. Once it is sealed: as the request described it
    /// that completed it.
    pub upload: Upload,
    /// What is stored of the upload.
    pub state: State,
    /// The [id of its deliveries](crate::store::Sealed::id), which a later upload with the same
    /// [`UploadId`](crate::UploadId) does not have. `None` if the store does not say it.
    pub delivery: Option<String>,
}

impl Status {
    /// Creates the status of an upload.
    pub fn new(upload: Upload, state: State) -> Self {
        Self {
            upload,
            state,
            delivery: None,
        }
    }

    /// Sets the id of its deliveries. Without it, an upload that was removed and sent again waits
    /// for the end of the pause that began when the delivery of the earlier one failed.
    #[must_use]
    pub fn with_delivery(mut self, id: impl Into<String>) -> Self {
        self.delivery = Some(id.into());
        self
    }

    /// How many bytes of the upload are stored.
    pub fn progress(&self) -> Progress {
        match &self.state {
            State::Receiving(ranges) => Progress {
                received: ranges.total(),
                complete: false,
            },
            State::Complete | State::Settled(_) => Progress {
                received: self.upload.length.unwrap_or_default(),
                complete: true,
            },
        }
    }

    /// How many bytes are stored without a gap from the first one.
    pub fn prefix(&self) -> u64 {
        match &self.state {
            State::Receiving(ranges) => ranges.prefix(),
            State::Complete | State::Settled(_) => self.upload.length.unwrap_or_default(),
        }
    }
}

/// The state of an upload in its store.
#[derive(Clone, Debug)]
pub enum State {
    /// These bytes are stored. The length is unknown, or some bytes are missing.
    Receiving(RangeSet),
    /// All bytes are stored. The inner service has neither taken nor rejected the file yet.
    Complete,
    /// The inner service has taken or rejected the file.
    Settled(Record),
}

/// How many bytes of an upload are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes stored.
    pub received: u64,
    /// Whether these are all bytes. `true` for a sealed or settled upload.
    pub complete: bool,
}

/// The remembered answer of the inner service.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use http::StatusCode;
/// use tower_resumable::store::Record;
///
/// let expires = SystemTime::now() + Duration::from_secs(3600);
/// let mut record = Record::new(true, StatusCode::CREATED, 10, expires);
/// record.body = Some("stored".into());
/// assert!(!record.is_expired());
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// Whether the inner service took the file. `false`: it rejected it, and the file is removed.
    pub delivered: bool,
    /// The status of the answer.
    #[serde(with = "status_code")]
    pub status: StatusCode,
    /// The headers of the answer.
    #[serde(with = "header_map")]
    pub headers: HeaderMap,
    /// The body of the answer. `None` if it was too long to be recorded.
    #[serde(with = "optional_base64")]
    pub body: Option<Bytes>,
    /// Bytes of the file.
    pub size: u64,
    /// When the record expires. Stored in milliseconds.
    #[serde(with = "unix_millis")]
    pub expires: SystemTime,
}

impl Record {
    /// Creates the record of an answer without headers and body. `size` is in bytes.
    pub fn new(delivered: bool, status: StatusCode, size: u64, expires: SystemTime) -> Self {
        Self {
            delivered,
            status,
            headers: HeaderMap::new(),
            body: None,
            size,
            expires,
        }
    }

    /// Whether the record has expired.
    pub fn is_expired(&self) -> bool {
        self.expires <= SystemTime::now()
    }
}

/// Milliseconds since 1970. 0 for an earlier time.
pub(crate) fn to_unix_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// The time this many milliseconds after 1970. A time that the system cannot represent becomes
/// 1970.
pub(crate) fn from_unix_millis(millis: u64) -> SystemTime {
    let since = Duration::from_millis(millis);
    let time = SystemTime::UNIX_EPOCH.checked_add(since);
    time.unwrap_or(SystemTime::UNIX_EPOCH)
}

mod unix_millis {
    use super::*;

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
        to_unix_millis(*time).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SystemTime, D::Error> {
        u64::deserialize(d).map(from_unix_millis)
    }
}

mod status_code {
    use super::*;

    pub(super) fn serialize<S: Serializer>(status: &StatusCode, s: S) -> Result<S::Ok, S::Error> {
        status.as_u16().serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<StatusCode, D::Error> {
        StatusCode::from_u16(u16::deserialize(d)?).map_err(D::Error::custom)
    }
}

/// Header values need not be text, so they are written as base64.
mod header_map {
    use super::*;

    pub(super) fn serialize<S: Serializer>(headers: &HeaderMap, s: S) -> Result<S::Ok, S::Error> {
        let pairs = headers.iter().map(|(name, value)| {
            let value = BASE64_STANDARD.encode(value.as_bytes());
            (name.as_str(), value)
        });
        s.collect_seq(pairs)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<HeaderMap, D::Error> {
        let pairs = Vec::<(String, String)>::deserialize(d)?;
        let mut headers = HeaderMap::with_capacity(pairs.len());
        for (name, value) in pairs {
            let name = HeaderName::try_from(name).map_err(D::Error::custom)?;
            let value = BASE64_STANDARD.decode(value).map_err(D::Error::custom)?;
            let value = HeaderValue::try_from(value).map_err(D::Error::custom)?;
            headers.append(name, value);
        }
        Ok(headers)
    }
}

mod optional_base64 {
    use super::*;

    pub(super) fn serialize<S: Serializer>(body: &Option<Bytes>, s: S) -> Result<S::Ok, S::Error> {
        let text = body.as_ref().map(|body| BASE64_STANDARD.encode(body));
        text.serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Bytes>, D::Error> {
        let text = Option::<String>::deserialize(d)?;
        let body = text.map(|text| BASE64_STANDARD.decode(text).map(Bytes::from));
        body.transpose().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What version 1 writes is read by all later versions.
    #[test]
    fn records_are_written_as_json() {
        let expires = from_unix_millis(1_700_000_000_123);
        let mut record = Record::new(true, StatusCode::CREATED, 9, expires);
        record.headers.append("x", HeaderValue::from_static("1"));
        let value = HeaderValue::from_bytes(b"\xff").unwrap();
        record.headers.append("x", value);
        record.body = Some(Bytes::from_static(b"\xff\0text"));
        let text = "{\"delivered\":true,\"status\":201,\"headers\":[[\"x\",\"MQ==\"],\
                    [\"x\",\"/w==\"]],\"body\":\"/wB0ZXh0\",\"size\":9,\
                    \"expires\":1700000000123}";
        assert_eq!(serde_json::to_string(&record).unwrap(), text);
        assert_eq!(serde_json::from_str::<Record>(text).unwrap(), record);
        record.body = None;
        let short = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&short).unwrap(), record);
        for broken in [
            text.replace("201", "20"),
            text.replace("\"x\"", "\"x y\""),
            text.replace("MQ==", "MQ"),
            text.replace("MQ==", "AA=="),
            text.replace("/wB0ZXh0", "?"),
        ] {
            assert!(serde_json::from_str::<Record>(&broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn extreme_times_are_clamped() {
        for millis in [0, 1, 1_700_000_000_123] {
            assert_eq!(to_unix_millis(from_unix_millis(millis)), millis);
        }
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        assert_eq!(to_unix_millis(before), 0);
        let _ = from_unix_millis(u64::MAX);
    }
}
