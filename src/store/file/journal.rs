//! What the store remembers of an upload: one append-only file of checked records.
//!
//! Every record begins on a multiple of 64 bytes, so none of the fixed ones straddles a disk
//! sector. The check of each is seeded with that of the one before it, so that nothing is taken for
//! a record that an earlier file, or an earlier try behind what a crash has torn, has left on the
//! disk. Reading stops at the first record that is not right: what a crash has torn is as if it had
//! never been written.

use std::{fs::File, io};

use serde_json::{Value, json};

use super::disk;
use crate::store::{
    Record, Upload,
    json::{record_from_json, record_to_json, upload_from_json, upload_to_json},
};

pub(super) const SLOT: u64 = 64;

const MAGIC: [u8; 4] = *b"TRJ1";

/// Longest payload of a record.
const MAX_PAYLOAD: u64 = 64 << 20;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Event {
    /// Which upload this is. The first event.
    Created { upload: Upload, id: String },
    /// These bytes are in the data file.
    Stored {
        offset: u64,
        len: u64,
        crc: u32,
        synced: bool,
        boot: u64,
    },
    /// The file has got its final name, below the folder of finished files.
    Sealed {
        path: String,
        /// What tells it from other files of that name.
        file: Option<u64>,
        upload: Upload,
        crc: u32,
    },
    /// It is handed over once more; the first time goes without saying.
    Attempt(u32),
    /// The inner service has answered.
    Settled(Record),
    /// The upload is gone, and so will be this file.
    Removed,
    /// Takes the place of an event that could not be made durable.
    Void,
}

/// An event as it was found.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) event: Event,
    /// Milliseconds since 1970.
    pub(super) time: u64,
}

impl Event {
    fn kind(&self) -> u8 {
        match self {
            Self::Created { .. } => 1,
            Self::Stored { .. } => 2,
            Self::Sealed { .. } => 3,
            Self::Attempt(_) => 4,
            Self::Settled(_) => 5,
            Self::Removed => 6,
            Self::Void => 7,
        }
    }

    /// The record, with its payload, in whole slots. `chain` is the check of the one before it (0
    /// for the first), and becomes its own.
    pub(super) fn encode(&self, chain: &mut u32, time: u64) -> Vec<u8> {
        let payload = self
            .payload()
            .map(|payload| payload.to_string())
            .unwrap_or_default();
        let (mut a, mut b, mut crc) =
            (0, payload.len() as u64, crc32fast::hash(payload.as_bytes()));
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
            _ => {}
        }
        let mut record = Vec::with_capacity(SLOT as usize + payload.len());
        record.extend(MAGIC);
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
        record.extend(payload.as_bytes());
        record.resize(record.len().next_multiple_of(SLOT as usize), 0);
        record
    }

    fn payload(&self) -> Option<Value> {
        match self {
            Self::Created { upload, id } => Some(json!({
                "version": 1,
                "id": id,
                "upload": upload_to_json(upload),
            })),
            Self::Sealed {
                path,
                file,
                upload,
                crc,
            } => Some(json!({
                "path": path,
                "file": file,
                "crc32": crc,
                "upload": upload_to_json(upload),
            })),
            Self::Settled(record) => Some(record_to_json(record)),
            _ => None,
        }
    }

    fn from_payload(kind: u8, payload: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(payload).ok()?;
        match kind {
            1 if value["version"] == 1 => Some(Self::Created {
                upload: upload_from_json(&value["upload"])?,
                id: value["id"].as_str()?.to_owned(),
            }),
            3 => Some(Self::Sealed {
                path: value["path"].as_str()?.to_owned(),
                file: value["file"].as_u64(),
                crc: u32::try_from(value["crc32"].as_u64()?).ok()?,
                upload: upload_from_json(&value["upload"])?,
            }),
            5 => Some(Self::Settled(record_from_json(&value)?)),
            _ => None,
        }
    }
}

/// Records of the size of `records` that say nothing.
pub(super) fn void(records: &[u8], mut chain: u32, time: u64) -> Vec<u8> {
    let slots = records.len() / SLOT as usize;
    (0..slots)
        .flat_map(|_| Event::Void.encode(&mut chain, time))
        .collect()
}

fn check(head: &[u8], seed: u32) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(head);
    hasher.finalize()
}

/// Which upload the journal is of, and its id.
///
/// # Errors
///
/// If it is of a later version of this crate.
pub(super) fn first(file: &File) -> io::Result<Option<(Upload, String)>> {
    let mut slot = [0; SLOT as usize];
    let filled = disk::read_at(file, &mut slot, 0)?;
    if slot.starts_with(&MAGIC[..3]) && !slot.starts_with(&MAGIC) {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the journal was written by another version of this crate",
        ));
    }
    Ok(match decode(file, 0, &slot[..filled], &mut 0)? {
        Some((
            Entry {
                event: Event::Created { upload, id },
                ..
            },
            _,
        )) => Some((upload, id)),
        _ => None,
    })
}

/// Reads the records from `at` on, gives each to `see`, and says where they end. `chain` is the
/// check of the record before them, and becomes that of the last.
pub(super) fn read(
    file: &File,
    mut at: u64,
    chain: &mut u32,
    mut see: impl FnMut(Entry) -> io::Result<()>,
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
            see(entry)?;
            used += len;
        }
        if whole < buffer.len() {
            return Ok(at + used as u64);
        }
        at += used as u64;
        // Long journals are read in long pieces, a look for news costs little.
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
    if head[..4] != MAGIC || u32_at(60) != check {
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
        1 | 3 | 5 if b <= MAX_PAYLOAD => {
            let mut payload = vec![0; b as usize];
            let filled = disk::read_at(file, &mut payload, at + SLOT)?;
            let whole = filled == payload.len() && crc32fast::hash(&payload) == crc;
            let event = whole.then(|| Event::from_payload(kind, &payload)).flatten();
            len = (SLOT + b).next_multiple_of(SLOT) as usize;
            event
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
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::store::{UploadKey, from_unix_ms};

    fn upload() -> Upload {
        Upload {
            key: UploadKey::from_bytes([7; 32]),
            scope: "s".into(),
            identifier: "i\n\"".into(),
            total: u64::MAX,
            chunk_size: None,
            file_name: Some("日本".into()),
            relative_path: None,
            content_type: Some("a/b".into()),
            fields: vec![("a".into(), "b".into()), ("a".into(), String::new())],
        }
    }

    fn events() -> Vec<Event> {
        let record = Record {
            delivered: true,
            status: 201,
            headers: vec![("x".into(), vec![0xff, 0])],
            body: Some(Bytes::from_static(b"\xff\0text")),
            size: 9,
            expires: from_unix_ms(Duration::from_millis(1_700_000_000_123)),
        };
        vec![
            Event::Created {
                upload: upload(),
                id: "id".into(),
            },
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
            Event::Sealed {
                path: "a/b".into(),
                file: Some(u64::MAX),
                upload: upload(),
                crc: 5,
            },
            Event::Attempt(2),
            Event::Settled(Record {
                body: None,
                delivered: false,
                ..record.clone()
            }),
            Event::Settled(record),
            Event::Removed,
        ]
    }

    fn encoded(events: &[Event]) -> Vec<u8> {
        let mut chain = 0;
        let records = events.iter().map(|event| event.encode(&mut chain, 99));
        records.flatten().collect()
    }

    fn file(content: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, content, 0).unwrap();
        file
    }

    fn read_all(content: &[u8]) -> (Vec<Event>, u64) {
        let mut events = Vec::new();
        let end = read(&file(content), 0, &mut 0, |entry| {
            assert_eq!(entry.time, 99);
            events.push(entry.event);
            Ok(())
        });
        (events, end.unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let content = encoded(&events());
        assert_eq!(content.len() % 64, 0);
        assert_eq!(read_all(&content), (events(), content.len() as u64));
        // Room that is not used yet is no record.
        let padded = [&content[..], &[0; 4096]].concat();
        assert_eq!(read_all(&padded), (events(), content.len() as u64));
    }

    #[test]
    fn what_is_torn_or_changed_ends_it() {
        for event in events() {
            let records = encoded(&[Event::Attempt(7), event.clone()]);
            let (first, record) = records.split_at(64);
            let payload = event
                .payload()
                .map_or(0, |payload| payload.to_string().len());
            let used = SLOT as usize + payload;
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
    fn records_that_follow_another_one_are_none() {
        let lost = encoded(&[Event::Attempt(1), Event::Removed]);
        let content = [&encoded(&[Event::Attempt(2)]), &lost[64..]].concat();
        assert_eq!(read_all(&content), (vec![Event::Attempt(2)], 64));
    }

    #[test]
    fn what_a_journal_is_of() {
        let content = encoded(&events());
        let found = first(&file(&content)).unwrap();
        assert_eq!(found, Some((upload(), "id".into())));
        let other = encoded(&[Event::Removed]);
        for nothing in [&[][..], &content[..63], &[0; 64], &other] {
            assert_eq!(first(&file(nothing)).unwrap(), None, "{nothing:?}");
        }

        let mut later = content.clone();
        later[3] = b'2';
        let error = first(&file(&later)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        let mut payload = events()[0].payload().unwrap();
        payload["version"] = 2.into();
        let payload = payload.to_string();
        assert_eq!(Event::from_payload(1, payload.as_bytes()), None);
    }

    #[test]
    fn a_record_that_claims_to_be_endless() {
        let mut record = encoded(&events()[..1]);
        record[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        let right = check(&record[..60], 0);
        record[60..64].copy_from_slice(&right.to_le_bytes());
        assert_eq!(read_all(&record), (vec![], 0));
    }

    #[test]
    fn records_that_say_nothing() {
        let mut chain = 0;
        let before = Event::Attempt(1).encode(&mut chain, 99);
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
