//! The names of objects. No text of a client is in any of them.

use std::ops::Range;

use object_store::path::Path;

use super::{info::Info, layout::Slots};
use crate::{
    model::{
        hex::{self, Hex},
        upload::UploadId,
    },
    store::{ScopeHash, Usage},
};

/// Stands in the names of [`Keys::open`] for a length that is not known at first.
const LATE: &str = "late";

/// The names below the prefix of the store.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) prefix: Path,
}

impl Keys {
    fn root(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    /// A finished file.
    pub(super) fn file(&self, unique_id: &str) -> Path {
        self.root("files").join(unique_id)
    }

    /// Objects of the self-test, and those that are written to read the engine's clock.
    pub(super) fn scratch(&self) -> Path {
        self.root("scratch")
    }

    /// What cannot be read is set aside here.
    pub(super) fn damaged(&self, name: &str) -> Path {
        self.root("damaged").join(name)
    }

    /// All uploads and records.
    pub(super) fn uploads(&self) -> Path {
        self.root("up")
    }

    /// An empty object for each upload that is not settled. One list request returns a thousand.
    pub(super) fn open_uploads(&self) -> Path {
        self.root("open")
    }

    /// The object of an upload below [`Keys::open_uploads`]. It is created before the upload and
    /// deleted after the upload has ended.
    pub(super) fn open(&self, info: &Info) -> Path {
        let Usage { id, scope, bytes } = Usage::from(&info.upload);
        let unique_id = &info.unique_id;
        let name = format!("{id}-{unique_id}-{scope}-");
        self.open_uploads().join(if info.is_late {
            name + LATE
        } else {
            name + &bytes.to_string()
        })
    }

    /// A name that sorts after those that [`Keys::open`] gives to an upload, and before those of
    /// the next one: `.` sorts after `-`.
    pub(super) fn after_open(&self, id: &UploadId) -> Path {
        self.open_uploads().join(format!("{id}."))
    }

    /// All objects of the uploads with this id.
    pub(super) fn upload(&self, id: &UploadId) -> Path {
        self.uploads().join(id.to_string())
    }

    /// The [`Info`] of the upload that has this id now.
    pub(super) fn info(&self, id: &UploadId) -> Path {
        self.upload(id).join("info")
    }

    /// All other objects of one upload. The unique id keeps them apart from those of earlier and
    /// later uploads with the same id.
    pub(super) fn of(&self, id: &UploadId, unique_id: &str) -> Path {
        self.upload(id).join(unique_id)
    }

    /// Says that the finished file is to be deleted with the other objects.
    pub(super) fn doomed(&self, id: &UploadId, unique_id: &str) -> Path {
        self.of(id, unique_id).join("doomed")
    }

    pub(super) fn leases(&self, id: &UploadId, unique_id: &str) -> Path {
        self.of(id, unique_id).join("claim")
    }

    pub(super) fn lease(&self, id: &UploadId, unique_id: &str, number: u32) -> Path {
        self.leases(id, unique_id).join(format!("{number:010}"))
    }

    /// Says that a lease has ended.
    pub(super) fn free(&self, id: &UploadId, unique_id: &str, number: u32) -> Path {
        self.leases(id, unique_id)
            .join(format!("{number:010}.free"))
    }

    /// The stored bytes of one upload, and the marks of its parts.
    pub(super) fn slots(&self, id: &UploadId, unique_id: &str) -> Path {
        self.of(id, unique_id).join("s")
    }

    pub(super) fn slot(&self, id: &UploadId, unique_id: &str, slot: usize) -> Path {
        self.slots(id, unique_id).join(slot_name(slot))
    }

    pub(super) fn entry(&self, id: &UploadId, unique_id: &str, slot: usize, entry: &Entry) -> Path {
        self.slot(id, unique_id, slot).join(entry.name())
    }

    /// A turn of an upload of appends: see [`appends`](super::appends). The names sort after those
    /// of the slots.
    pub(super) fn turn(&self, id: &UploadId, unique_id: &str, number: u32) -> Path {
        self.slots(id, unique_id).join(format!("w-{number:010}"))
    }

    /// A name that sorts after those of the slots, and before those of the turns.
    pub(super) fn before_turns(&self, id: &UploadId, unique_id: &str) -> Path {
        self.slots(id, unique_id).join("w")
    }

    /// The upload of an object below [`Keys::uploads`], and what the object is.
    pub(super) fn parse_upload(&self, path: &Path) -> Option<(UploadId, Object)> {
        let mut names = path.prefix_match(&self.uploads())?;
        let id = UploadId::from_hex(names.next()?.as_ref())?;
        let object = match names.next()?.as_ref() {
            "info" => Object::Info,
            unique_id => Object::Of {
                unique_id: unique_id.to_owned(),
                is_doomed: names.next().is_some_and(|name| name.as_ref() == "doomed"),
            },
        };
        Some((id, object))
    }
}

/// An object of an upload.
#[derive(Debug, PartialEq)]
pub(super) enum Object {
    Info,
    Of {
        unique_id: String,
        /// Whether it is the object that [`Keys::doomed`] names.
        is_doomed: bool,
    },
}

/// What the name of an object says about a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// The whole slot is a part, with this CRC-32 and this part id. The object itself is empty.
    Part {
        crc: u32,
        content_id: String,
        /// For uploads of appends: the length of the part, and the number of the turn that put it.
        by: Option<(u64, u32)>,
    },
    /// The object contains these bytes of the slot, with this CRC-32. Early objects do not have it
    /// in their names.
    Piece {
        offset: u64,
        len: u64,
        crc: Option<u32>,
        /// For uploads of appends: the number of the turn that put it.
        by: Option<u32>,
    },
}

impl Entry {
    fn name(&self) -> String {
        match self {
            Self::Part {
                crc,
                content_id,
                by,
            } => {
                let by = by.map(|(len, turn)| format!("-{len}-{turn}"));
                let content_id = Hex(content_id.as_bytes());
                format!("p-{crc:08x}-{content_id}{}", by.unwrap_or_default())
            }
            Self::Piece {
                offset,
                len,
                crc,
                by,
            } => {
                let crc = crc.map(|crc| format!("-{crc:08x}"));
                let by = by.map(|turn| format!("-{turn}"));
                let (crc, by) = (crc.unwrap_or_default(), by.unwrap_or_default());
                format!("c-{offset:020}-{len}{crc}{by}")
            }
        }
    }

    pub(super) fn is_part(&self) -> bool {
        matches!(self, Self::Part { .. })
    }

    /// The bytes of the upload that it is about.
    pub(super) fn range(&self, slots: Slots, slot: usize) -> Range<u64> {
        let whole = slots.range(slot);
        match self {
            Self::Part { by: None, .. } => whole,
            Self::Part {
                by: Some((len, _)), ..
            } => whole.start..whole.start.saturating_add(*len),
            Self::Piece { offset, len, .. } => *offset..offset.saturating_add(*len),
        }
    }

    /// The number of the turn that put it. `None` if the upload is not one of appends.
    pub(super) fn turn(&self) -> Option<u32> {
        match self {
            Self::Part { by, .. } => by.map(|(_, turn)| turn),
            Self::Piece { by, .. } => *by,
        }
    }

    /// The id of the part. `None` for a piece.
    pub(super) fn content_id(&self) -> Option<String> {
        match self {
            Self::Part { content_id, .. } => Some(content_id.clone()),
            Self::Piece { .. } => None,
        }
    }

    /// The CRC-32 of these bytes, if it is known.
    pub(super) fn crc(&self) -> Option<u32> {
        match self {
            Self::Part { crc, .. } => Some(*crc),
            Self::Piece { crc, .. } => *crc,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut words = name.split('-');
        let entry = match (words.next()?, words.next()?, words.next()?) {
            ("p", crc, content_id) => Self::Part {
                crc: u32::from_str_radix(crc, 16).ok()?,
                content_id: String::from_utf8(hex::decode(content_id)?).ok()?,
                by: match (words.next(), words.next()) {
                    (Some(len), Some(turn)) => Some((len.parse().ok()?, turn.parse().ok()?)),
                    _ => None,
                },
            },
            ("c", offset, len) => Self::Piece {
                offset: offset.parse().ok()?,
                len: len.parse().ok()?,
                crc: match words.next() {
                    Some(crc) => Some(u32::from_str_radix(crc, 16).ok()?),
                    None => None,
                },
                by: match words.next() {
                    Some(turn) => Some(turn.parse().ok()?),
                    None => None,
                },
            },
            _ => return None,
        };
        // Not in another notation: the name is made of the entry again.
        (entry.name() == name).then_some(entry)
    }

    /// The slot of an object below [`Keys::slots`], and what its name says.
    pub(super) fn from_path(path: &Path) -> Option<(usize, Self)> {
        let mut parts = path.as_ref().rsplit('/');
        let (name, slot) = (parts.next()?, parts.next()?);
        let number = slot.parse().ok()?;
        (slot_name(number) == slot).then_some((number, Self::from_name(name)?))
    }
}

fn slot_name(slot: usize) -> String {
    format!("{slot:05}")
}

/// Parses what [`Keys::open`] writes: the unique id of an upload, what it takes of the limits, and
/// whether its length was not known at first, so that its bytes are not in the name.
pub(super) fn parse_open(path: &Path) -> Option<(String, Usage, bool)> {
    let mut words = path.filename()?.split('-');
    let id = UploadId::from_hex(words.next()?)?;
    let unique_id = words.next()?.to_owned();
    let scope = ScopeHash::from_hex(words.next()?)?;
    let (bytes, is_late) = match words.next()? {
        LATE => (0, true),
        bytes => (bytes.parse().ok()?, false),
    };
    let usage = Usage { id, scope, bytes };
    let is_whole = words.next().is_none();
    is_whole.then_some((unique_id, usage, is_late))
}

/// The number of a turn, if this is one of [`Keys::turn`].
pub(super) fn parse_turn(path: &Path) -> Option<u32> {
    let number = path.filename()?.strip_prefix("w-")?;
    let is_number = number.len() == 10 && number.bytes().all(|byte| byte.is_ascii_digit());
    number.parse().ok().filter(|_| is_number)
}

/// The number of a lease, and whether the object says that it has ended.
pub(super) fn parse_lease(path: &Path) -> Option<(u32, bool)> {
    let name = path.filename()?;
    let (number, has_ended) = match name.strip_suffix(".free") {
        Some(number) => (number, true),
        None => (name, false),
    };
    let number = number.parse().ok()?;
    // No lease follows the last number, which no server reaches.
    (number < u32::MAX).then_some((number, has_ended))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::upload::{Scope, Upload},
        store::bucket::info::tests::receiving,
    };

    const ID: UploadId = UploadId::from_bytes([7; 32]);

    fn keys() -> Keys {
        Keys {
            prefix: Path::from("a/b"),
        }
    }

    #[test]
    fn entries_are_parsed() {
        for (slot, entry, name) in [
            (
                0,
                Entry::Piece {
                    offset: 0,
                    len: 1,
                    crc: None,
                    by: None,
                },
                "00000/c-00000000000000000000-1",
            ),
            (
                9999,
                Entry::Piece {
                    offset: u64::MAX,
                    len: u64::MAX,
                    crc: Some(7),
                    by: None,
                },
                "09999/c-18446744073709551615-18446744073709551615-00000007",
            ),
            (
                1,
                Entry::Piece {
                    offset: 5,
                    len: 2,
                    crc: Some(7),
                    by: Some(u32::MAX),
                },
                "00001/c-00000000000000000005-2-00000007-4294967295",
            ),
            (
                1,
                Entry::Part {
                    crc: 1,
                    content_id: "a".into(),
                    by: Some((5, 0)),
                },
                "00001/p-00000001-61-5-0",
            ),
            (
                12,
                Entry::Part {
                    crc: 0xf,
                    content_id: String::new(),
                    by: None,
                },
                "00012/p-0000000f-",
            ),
            (
                3,
                Entry::Part {
                    crc: u32::MAX,
                    content_id: "\"é/-".into(),
                    by: None,
                },
                "00003/p-ffffffff-22c3a92f2d",
            ),
        ] {
            let path = keys().entry(&ID, "i", slot, &entry);
            let expected = format!("a/b/up/{ID}/i/s/{name}");
            assert_eq!(path.as_ref(), expected);
            assert_eq!(Entry::from_path(&path), Some((slot, entry)), "{name}");
        }
    }

    #[test]
    fn foreign_names_are_ignored() {
        for name in [
            "",
            "p",
            "c",
            "p-1",
            "c-1",
            "c-1-",
            "c--1",
            "c-1-2-3",
            "x-1-2",
            "p-1-2",
            "p-1-zz",
            "p-x-",
            "c-a-1",
            "p-1-ff",
            "c-1-2",
            "p-F-",
            "c-00000000000000000001-2-7",
            "c-00000000000000000001-2-00000007-07",
            "c-00000000000000000001-2-00000007-7-7",
            "p-00000001-61-5",
            "p-00000001-61-5-",
            "p-00000001-61-05-1",
            "p-00000001-61-5-1-1",
            "p-00000001-61-5-4294967296",
            "w-0000000001",
        ] {
            let path = Path::from(format!("s/00001/{name}"));
            assert_eq!(Entry::from_path(&path), None, "{name}");
        }
        let path = Path::from("s/1/c-00000000000000000001-2");
        assert_eq!(Entry::from_path(&path), None);
        assert_eq!(Entry::from_path(&Path::from("c-1-2")), None);
    }

    #[test]
    fn objects_of_uploads_are_parsed() {
        let keys = keys();
        let of = |is_doomed| {
            let unique_id = "i".to_owned();
            Some((
                ID,
                Object::Of {
                    unique_id,
                    is_doomed,
                },
            ))
        };
        for (path, expected) in [
            (keys.info(&ID), Some((ID, Object::Info))),
            (keys.doomed(&ID, "i"), of(true)),
            (keys.lease(&ID, "i", 3), of(false)),
            (keys.slot(&ID, "i", 0).join("doomed"), of(false)),
            (keys.uploads().join("x").join("info"), None),
            (keys.upload(&ID), None),
            (keys.scratch().join("x"), None),
        ] {
            assert_eq!(keys.parse_upload(&path), expected, "{path}");
        }
    }

    #[test]
    fn open_uploads_are_parsed() {
        let upload = Upload::new(ID, Scope::new("alice/-"), Some(u64::MAX));
        let usage = Usage::from(&upload);
        let path = keys().open(&receiving("0af", upload));
        assert!(path.prefix_matches(&keys().open_uploads()), "{path}");
        assert_eq!(parse_open(&path), Some(("0af".into(), usage, false)));
        for end in ["-", "-1", "x"] {
            assert_eq!(parse_open(&format!("{path}{end}").into()), None, "{end}");
        }
        // The name stays the same when the length is known.
        for length in [None, Some(7)] {
            let mut info = receiving("0af", Upload::new(ID, Scope::new("alice/-"), length));
            info.is_late = true;
            let path = keys().open(&info);
            let usage = Usage { bytes: 0, ..usage };
            assert_eq!(parse_open(&path), Some(("0af".into(), usage, true)));
        }
    }

    #[test]
    fn turns_are_parsed() {
        let keys = keys();
        for number in [0, 9, 10, u32::MAX] {
            let path = keys.turn(&ID, "i", number);
            assert_eq!(parse_turn(&path), Some(number));
            assert!(path > keys.before_turns(&ID, "i"));
            assert!(path > keys.slot(&ID, "i", 99_999).join("c"));
        }
        assert!(keys.turn(&ID, "i", 9) < keys.turn(&ID, "i", 10));
        for name in [
            "w",
            "w-",
            "w-1",
            "w-00000000001",
            "w-4294967296",
            "x-0000000001",
        ] {
            assert_eq!(parse_turn(&Path::from(format!("s/{name}"))), None, "{name}");
        }
    }

    /// A page of a list starts there.
    #[test]
    fn open_uploads_sort_by_their_ids() {
        let open = |byte| {
            let id = UploadId::from_bytes([byte; 32]);
            keys().open(&receiving("f", Upload::new(id, Scope::default(), Some(1))))
        };
        let after = keys().after_open(&ID);
        assert!(open(7) < after && after < open(8));
        assert_eq!(after.as_ref(), format!("a/b/open/{ID}."));
    }

    #[test]
    fn leases_are_parsed() {
        let keys = keys();
        assert_eq!(parse_lease(&keys.lease(&ID, "i", 3)), Some((3, false)));
        assert_eq!(parse_lease(&keys.free(&ID, "i", 30)), Some((30, true)));
        assert_eq!(parse_lease(&Path::from("x/y")), None);
        assert_eq!(parse_lease(&Path::from("x/4294967295")), None);
        assert!(keys.lease(&ID, "i", 9) < keys.lease(&ID, "i", 10));
        assert!(keys.slot(&ID, "i", 9) < keys.slot(&ID, "i", 10));
    }
}
