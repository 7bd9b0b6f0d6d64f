//! The journal of an upload: one append-only file of checksummed records.
//!
//! # Format, versions 1 and 2
//!
//! A record is a head of 64 bytes. Some kinds have a payload of JSON after it, padded with zeros to
//! the next multiple of 64 bytes. Integers are little-endian.
//!
//! | offset | bytes | content                                                            |
//! |--------|-------|--------------------------------------------------------------------|
//! | 0      | 4     | `TRJ1`, or `TRJ2` in the first record of version 2                 |
//! | 4      | 1     | the kind: see [`Event::kind`]                                      |
//! | 5      | 1     | `Stored`: 1 if the bytes were synced before the record was written |
//! | 8      | 8     | `Stored`: the offset of the bytes. `Attempt`, `Epoch`: the number. |
//! |        |       | `Length`, `Declared`: the length of the file                       |
//! | 16     | 8     | `Stored`: the length of the bytes. Else the length of the payload  |
//! | 24     | 4     | `Stored`: the CRC-32 of the bytes. Else the CRC-32 of the payload  |
//! | 32     | 8     | `Stored`: the run of the system in which the bytes were written    |
//! | 40     | 8     | the time, in milliseconds since 1970                               |
//! | 60     | 4     | the check: a CRC-32 of bytes 0 to 59                               |
//!
//! A journal of version 2 can have the events `Length`, `Epoch` and `Declared`, which a reader of
//! version 1 would take for a torn record. Its first record says so, and such a reader leaves it
//! alone.
//! Journals of uploads that the first chunk has created are of version 1, so the code before
//! version 2 goes on with them.
//!
//! The magic of another version has another digit, which differs in two bits at least from those of
//! the others: a damaged bit does not make one version look like another. So after 2 comes 4.
//!
//! All other bytes are zero. A head is never split between two sectors of a disk. Each check is
//! seeded with the check of the previous record, so that remains of another file, or of a torn
//! record that was replaced, are not read as records. Reading stops at the first invalid record: a
//! record that a crash has torn counts as not written.

use std::{fs::File, io, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    model::{state::Record, upload::Upload},
    store::disk,
};

/// Bytes of a head. Each record starts at a multiple of it.
pub(super) const SLOT: u64 = 64;

const MAGIC: [u8; 4] = *b"TRJ1";

/// Of the first record of version 2.
const MAGIC_2: [u8; 4] = *b"TRJ2";

/// Most bytes of a payload.
const MAX_PAYLOAD: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// The first event.
    Created(Created),
    /// These bytes are in the data file.
    Stored {
        offset: u64,
        len: u64,
        crc: u32,
        synced: bool,
        boot: u64,
    },
    /// The file is complete and has this final name, or gets it next.
    Sealed(Seal),
    /// The file is delivered once more. The first attempt has no event.
    Attempt(u32),
    /// The inner service has answered.
    Settled(Record),
    /// The upload is removed. Its files are removed next.
    Removed,
    /// Replaces an event that could not be made durable.
    Void,
    /// The upload exists although it has no bytes. Without this event, an upload without bytes is
    /// one whose first chunk is not stored yet, and is removed if that chunk fails.
    Confirmed,
    /// The length of the file, if the request that created the upload did not declare it.
    Length(u64),
    /// The number of the last request that has ended the appends of other processes. They record
    /// no bytes after that.
    Epoch(u64),
    /// The length that the client has declared after the creation, although it says by itself when
    /// the upload is complete.
    Declared(u64),
}

/// Which upload a journal belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Created {
    version: u32,
    /// Distinguishes the upload from earlier and later ones with the same
    /// [`UploadId`](crate::UploadId).
    pub(super) id: String,
    pub(super) upload: Arc<Upload>,
}

impl Created {
    /// An upload that chunks or, if it `takes_appends`, appends fill.
    pub(super) fn new(id: String, upload: Arc<Upload>, takes_appends: bool) -> Self {
        Self {
            version: if takes_appends { 2 } else { 1 },
            id,
            upload,
        }
    }

    /// Whether the journal can have events of appends.
    pub(super) fn takes_appends(&self) -> bool {
        self.version == 2
    }
}

/// What is fixed when an upload is sealed.
///
/// The first code that wrote version 1 also wrote a field `file`, an inode number, and renamed the
/// data file to its final name. It is ignored: an inode number can be used again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Seal {
    /// The final name, below the folder of finished files.
    pub(super) path: String,
    pub(super) crc32: u32,
    /// The upload as the request described it that completed it.
    pub(super) upload: Arc<Upload>,
}

/// An event as it is read.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: Event,
    /// Milliseconds since 1970.
    pub(super) time: u64,
}

impl Event {
    /// Whether only the owner of the claim appends it.
    pub(super) fn needs_claim(&self) -> bool {
        match self {
            Self::Sealed(_) | Self::Attempt(_) | Self::Settled(_) | Self::Removed => true,
            Self::Created(_)
            | Self::Stored { .. }
            | Self::Void
            | Self::Confirmed
            | Self::Length(_)
            | Self::Epoch(_)
            | Self::Declared(_) => false,
        }
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Created(_) => 1,
            Self::Stored { .. } => 2,
            Self::Sealed(_) => 3,
            Self::Attempt(_) => 4,
            Self::Settled(_) => 5,
            Self::Removed => 6,
            Self::Void => 7,
            Self::Confirmed => 8,
            Self::Length(_) => 9,
            Self::Epoch(_) => 10,
            Self::Declared(_) => 11,
        }
    }

    /// The record of the event. `chain` is the check of the record before it (0 for the first one),
    /// and becomes the check of this one.
    pub(super) fn encode(&self, chain: &mut u32, time: u64) -> io::Result<Vec<u8>> {
        Ok(self.record(&self.payload()?, chain, time))
    }

    fn payload(&self) -> io::Result<Vec<u8>> {
        Ok(match self {
            Self::Created(created) => serde_json::to_vec(created)?,
            Self::Sealed(seal) => serde_json::to_vec(seal)?,
            Self::Settled(record) => serde_json::to_vec(record)?,
            _ => Vec::new(),
        })
    }

    fn record(&self, payload: &[u8], chain: &mut u32, time: u64) -> Vec<u8> {
        let (mut a, mut b, mut crc) = (0, payload.len() as u64, crc32fast::hash(payload));
        let (mut flags, mut boot_tag) = (0, 0);
        match self {
            Self::Stored {
                offset,
                len,
                crc: of_bytes,
                synced,
                boot,
            } => {
                (a, b, crc) = (*offset, *len, *of_bytes);
                (flags, boot_tag) = (u8::from(*synced), *boot);
            }
            Self::Attempt(n) => a = u64::from(*n),
            Self::Length(n) | Self::Epoch(n) | Self::Declared(n) => a = *n,
            _ => {}
        }
        let mut record = Vec::with_capacity(SLOT as usize + payload.len());
        record.extend(match self {
            Self::Created(created) if created.takes_appends() => MAGIC_2,
            _ => MAGIC,
        });
        record.extend([self.kind(), flags, 0, 0]);
        record.extend(a.to_le_bytes());
        record.extend(b.to_le_bytes());
        record.extend(crc.to_le_bytes());
        record.extend([0; 4]);
        record.extend(boot_tag.to_le_bytes());
        record.extend(time.to_le_bytes());
        record.resize(SLOT as usize - 4, 0);
        *chain = check(&record, *chain);
        record.extend(chain.to_le_bytes());
        record.extend(payload);
        record.resize(record.len().next_multiple_of(SLOT as usize), 0);
        record
    }

    /// `None` if the payload is not valid.
    fn from_payload(kind: u8, payload: &[u8]) -> io::Result<Option<Self>> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }

        let event = match kind {
            1 => match serde_json::from_slice::<Version>(payload) {
                Ok(Version { version }) if ![1, 2].contains(&version) => {
                    return Err(other_version());
                }
                _ => serde_json::from_slice(payload).map(Self::Created),
            },
            3 => serde_json::from_slice(payload).map(Self::Sealed),
            5 => serde_json::from_slice(payload).map(Self::Settled),
            _ => return Ok(None),
        };
        // An invalid record ends the journal, whatever the reason.
        Ok(event.ok())
    }
}

/// Records of the size of `records` that say nothing.
pub(super) fn void(records: &[u8], mut chain: u32, time: u64) -> Vec<u8> {
    let slots = records.len() / SLOT as usize;
    (0..slots)
        .flat_map(|_| Event::Void.record(&[], &mut chain, time))
        .collect()
}

fn check(head: &[u8], seed: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(head);
    hasher.finalize()
}

fn other_version() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the journal was written by another version of this crate",
    )
}

/// Which upload the journal belongs to. `None` if it has no valid first record.
///
/// # Errors
///
/// [`Unsupported`](io::ErrorKind::Unsupported) if another version of this crate has written it.
pub(super) fn first(file: &File) -> io::Result<Option<Created>> {
    let mut slot = [0; SLOT as usize];
    let filled = disk::read_at(file, &mut slot, 0)?;
    let differs_from = |magic: [u8; 4]| (slot[3] ^ magic[3]).count_ones() >= 2;
    let differs = differs_from(MAGIC) && differs_from(MAGIC_2) && slot[3].is_ascii_digit();
    if slot.starts_with(&MAGIC[..3]) && differs {
        return Err(other_version());
    }
    Ok(match decode(file, 0, &slot[..filled], &mut 0)? {
        Some((
            Entry {
                event: Event::Created(created),
                ..
            },
            _,
        )) => Some(created),
        _ => None,
    })
}

/// Reads the records from `at` on, gives each to `see`, and returns where they end. `chain` is the
/// check of the record before them, and becomes the check of the last one.
pub(super) fn read(
    file: &File,
    mut at: u64,
    chain: &mut u32,
    mut see: impl FnMut(Entry),
) -> io::Result<u64> {
    let mut buffer = vec![0; 4096];
    loop {
        let filled = disk::read_at(file, &mut buffer, at)?;
        let whole = filled / SLOT as usize * SLOT as usize;
        let mut used = 0;
        while used < whole {
            let Some((entry, len)) = decode(file, at + used as u64, &buffer[used..whole], chain)?
            else {
                return Ok(at + used as u64);
            };
            see(entry);
            used += len;
        }
        if whole < buffer.len() {
            return Ok(at + used as u64);
        }
        at += used as u64;
        // With a short first block, looking for new records is cheap.
        buffer.resize(256 << 10, 0);
    }
}

/// The record at the beginning of `slots`, and its length with its payload.
fn decode(
    file: &File,
    at: u64,
    slots: &[u8],
    chain: &mut u32,
) -> io::Result<Option<(Entry, usize)>> {
    let Some(head) = slots.first_chunk::<{ SLOT as usize }>() else {
        return Ok(None);
    };
    let u64_at = |i: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[i..i + 8]);
        u64::from_le_bytes(bytes)
    };
    let u32_at = |i: usize| u32::from_le_bytes([head[i], head[i + 1], head[i + 2], head[i + 3]]);
    let kind = head[4];
    let check = check(&head[..60], *chain);
    let is_magic = head[..4] == MAGIC || kind == 1 && head[..4] == MAGIC_2;
    if !is_magic || u32_at(60) != check {
        return Ok(None);
    }
    let (a, b, crc, time) = (u64_at(8), u64_at(16), u32_at(24), u64_at(40));
    let mut len = SLOT as usize;
    let event = match kind {
        2 => Some(Event::Stored {
            offset: a,
            len: b,
            crc,
            synced: head[5] == 1,
            boot: u64_at(32),
        }),
        4 => u32::try_from(a).ok().map(Event::Attempt),
        6 => Some(Event::Removed),
        7 => Some(Event::Void),
        8 => Some(Event::Confirmed),
        9 => Some(Event::Length(a)),
        10 => Some(Event::Epoch(a)),
        11 => Some(Event::Declared(a)),
        1 | 3 | 5 if b <= MAX_PAYLOAD => {
            let mut payload = vec![0; b as usize];
            let filled = disk::read_at(file, &mut payload, at + SLOT)?;
            let is_whole = filled == payload.len() && crc32fast::hash(&payload) == crc;
            len = (SLOT + b).next_multiple_of(SLOT) as usize;
            if is_whole {
                Event::from_payload(kind, &payload)?
            } else {
                None
            }
        }
        _ => None,
    };
    if event.is_some() {
        *chain = check;
    }
    Ok(event.map(|event| (Entry { event, time }, len)))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use bytes::Bytes;
    use http::{HeaderValue, StatusCode};

    use super::*;
    use crate::model::{
        state::from_unix_millis,
        upload::{Scope, UploadId},
    };

    fn upload() -> Upload {
        let id = UploadId::from_bytes([7; 32]);
        let mut upload = Upload::new(id, Scope::new("s"), Some(u64::MAX));
        upload.identifier = "i\n\"".into();
        upload.file_name = Some("日本".into());
        upload.content_type = Some("a/b".into());
        upload.fields = vec![("a".into(), "b".into()), ("a".into(), String::new())];
        upload
    }

    fn created() -> Created {
        Created::new("id".into(), upload().into(), false)
    }

    fn events() -> Vec<Event> {
        let expires = from_unix_millis(1_700_000_000_123);
        let mut record = Record::new(true, StatusCode::CREATED, 9, expires);
        let value = HeaderValue::from_bytes(b"\xff\x09").unwrap();
        record.headers.append("x", value);
        record.body = Some(Bytes::from_static(b"\xff\0text"));
        vec![
            Event::Created(created()),
            Event::Confirmed,
            Event::Stored {
                offset: 1,
                len: u64::MAX,
                crc: 3,
                synced: true,
                boot: 4,
            },
            Event::Stored {
                offset: 1,
                len: 2,
                crc: 3,
                synced: false,
                boot: 4,
            },
            Event::Void,
            Event::Sealed(Seal {
                path: "a/b".into(),
                crc32: 5,
                upload: upload().into(),
            }),
            Event::Attempt(2),
            Event::Settled(Record {
                body: None,
                delivered: false,
                ..record.clone()
            }),
            Event::Settled(record),
            Event::Removed,
            Event::Length(u64::MAX),
            Event::Epoch(3),
            Event::Declared(6),
        ]
    }

    fn encoded(events: &[Event]) -> Vec<u8> {
        let mut chain = 0;
        let records = events
            .iter()
            .map(|event| event.encode(&mut chain, 99).unwrap());
        records.flatten().collect()
    }

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file
    }

    fn read_all(content: &[u8]) -> (Vec<Event>, u64) {
        let mut events = Vec::new();
        let end = read(&file(content), 0, &mut 0, |entry| {
            assert_eq!(entry.time, 99);
            events.push(entry.event);
        });
        (events, end.unwrap())
    }

    #[test]
    fn events_are_read_as_they_were_written() {
        let content = encoded(&events());
        assert_eq!(content.len() % 64, 0);
        assert_eq!(read_all(&content), (events(), content.len() as u64));
        // Zeros are no record.
        let padded = [&content[..], &[0; 4096]].concat();
        assert_eq!(read_all(&padded), (events(), content.len() as u64));
    }

    #[test]
    fn a_torn_or_changed_record_ends_the_journal() {
        for event in events() {
            let records = encoded(&[Event::Attempt(7), event.clone()]);
            let (first, record) = records.split_at(64);
            let used = SLOT as usize + event.payload().unwrap().len();
            for at in 0..used {
                let mut changed = records.clone();
                changed[64 + at] ^= 1;
                assert_eq!(
                    read_all(&changed),
                    (vec![Event::Attempt(7)], 64),
                    "{event:?} at {at}"
                );
                let torn = [first, &record[..at]].concat();
                assert_eq!(
                    read_all(&torn),
                    (vec![Event::Attempt(7)], 64),
                    "{event:?} to {at}"
                );
            }
        }
    }

    #[test]
    fn a_record_is_valid_only_after_its_predecessor() {
        let lost = encoded(&[Event::Attempt(1), Event::Removed]);
        let content = [&encoded(&[Event::Attempt(2)]), &lost[64..]].concat();
        assert_eq!(read_all(&content), (vec![Event::Attempt(2)], 64));
    }

    #[test]
    fn the_first_record_names_the_upload() {
        let content = encoded(&events());
        assert_eq!(first(&file(&content)).unwrap(), Some(created()));
        let other = encoded(&[Event::Removed]);
        for nothing in [&[][..], &content[..63], &[0; 64], &other] {
            assert_eq!(first(&file(nothing)).unwrap(), None, "{nothing:?}");
        }
    }

    #[test]
    fn journals_of_other_versions_are_not_read() {
        let is_unsupported = |content: &[u8]| {
            let error = first(&file(content)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        };
        let mut content = encoded(&events());
        content[3] = b'4';
        is_unsupported(&content);
        let mut later = created();
        later.version = 4;
        is_unsupported(&encoded(&[Event::Created(later)]));
        // The rest of the payload may be anything then.
        let payload = b"{\"version\":4,\"upload\":7}";
        is_unsupported(&Event::Created(created()).record(payload, &mut 0, 99));
        let payload = b"{\"version\":1,\"upload\":7}";
        let broken = Event::Created(created()).record(payload, &mut 0, 99);
        assert_eq!(first(&file(&broken)).unwrap(), None);
    }

    /// Version 1 does not know all of its events.
    #[test]
    fn journals_of_appends_are_of_version_2() {
        let created = Created::new("id".into(), upload().into(), true);
        let content = encoded(&[Event::Created(created.clone()), Event::Length(5)]);
        assert_eq!(&content[..4], b"TRJ2");
        assert!(content[64..].starts_with(b"{\"version\":2,"));
        assert_eq!(first(&file(&content)).unwrap(), Some(created));
        let length = content.len() - 64;
        assert_eq!(content[length..length + 5], *b"TRJ1\x09");
        assert_eq!(read_all(&content).0[1..], [Event::Length(5)]);
    }

    /// What version 1 writes is read by all later versions.
    #[test]
    fn the_format_of_version_1_does_not_change() {
        let record = encoded(&[Event::Created(created())]);
        let payload = format!(
            "{{\"version\":1,\"id\":\"id\",\"upload\":{}}}",
            serde_json::to_string(&upload()).unwrap()
        );
        assert_eq!(&record[..8], b"TRJ1\x01\0\0\0");
        assert_eq!(record[16..24], (payload.len() as u64).to_le_bytes());
        assert_eq!(&record[64..64 + payload.len()], payload.as_bytes());
        let Event::Sealed(seal) = &events()[5] else {
            panic!("not the seal");
        };
        let payload = |file: &str| {
            let upload = serde_json::to_string(&upload()).unwrap();
            format!("{{\"path\":\"a/b\",{file}\"crc32\":5,\"upload\":{upload}}}")
        };
        assert_eq!(serde_json::to_string(seal).unwrap(), payload(""));
        for file in ["\"file\":18446744073709551615,", "\"file\":null,"] {
            let read = Event::from_payload(3, payload(file).as_bytes()).unwrap();
            assert_eq!(read.as_ref(), Some(&events()[5]));
        }
        let stored = encoded(&events()[3..4]);
        let head = [
            &b"TRJ1\x02\0\0\0"[..],
            &1u64.to_le_bytes(),
            &2u64.to_le_bytes(),
            &3u32.to_le_bytes(),
            &[0; 4],
            &4u64.to_le_bytes(),
            &99u64.to_le_bytes(),
            &[0; 12],
        ]
        .concat();
        let check = crc32fast::hash(&head).to_le_bytes();
        assert_eq!(stored, [head, check.to_vec()].concat());
    }

    #[test]
    fn a_payload_that_is_too_long_ends_the_journal() {
        let mut record = encoded(&events()[..1]);
        record[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        let right = check(&record[..60], 0);
        record[60..64].copy_from_slice(&right.to_le_bytes());
        assert_eq!(read_all(&record), (vec![], 0));
    }

    #[test]
    fn void_records_fill_the_same_space() {
        let mut chain = 0;
        let before = Event::Attempt(1).encode(&mut chain, 99).unwrap();
        let records = encoded(&events());
        let nothing = void(&records, chain, 99);
        assert_eq!(nothing.len(), records.len());
        let (read, end) = read_all(&[before, nothing].concat());
        assert_eq!(end as usize, 64 + records.len());
        assert!(read[1..].iter().all(|event| *event == Event::Void));
    }

    #[test]
    fn long_journals() {
        let stored = |n| Event::Stored {
            offset: n,
            len: 1,
            crc: 0,
            synced: true,
            boot: 0,
        };
        let events: Vec<_> = (0..20_000).map(stored).collect();
        let content = encoded(&events);
        assert_eq!(read_all(&content), (events, content.len() as u64));
    }
}
