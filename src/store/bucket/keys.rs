//! The names of objects. No text of a client is in any of them.

use object_store::path::Path;

use super::info::Info;
use crate::store::{ScopeKey, UploadKey, Usage};

/// Where everything is, below the store's prefix.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    pub(super) prefix: Path,
}

impl Keys {
    fn root(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    /// A finished file.
    pub(super) fn file(&self, id: &str) -> Path {
        self.root("files").join(id)
    }

    /// What is written only to see what time it is there, or how the store behaves.
    pub(super) fn scratch(&self) -> Path {
        self.root("scratch")
    }

    /// All uploads on their way, and the records.
    pub(super) fn uploads(&self) -> Path {
        self.root("up")
    }

    /// The uploads that are not settled: their names say all, so that one list has a thousand of them.
    pub(super) fn open_uploads(&self) -> Path {
        self.root("open")
    }

    /// Says that an upload is not settled. There from before it begins until after it has ended.
    pub(super) fn open(&self, info: &Info) -> Path {
        let Usage { key, scope, total } = Usage::from(&info.upload);
        let id = &info.id;
        self.open_uploads()
            .join(format!("{key}-{id}-{scope}-{total}"))
    }

    /// All of the uploads with this key.
    pub(super) fn upload(&self, key: &UploadKey) -> Path {
        self.uploads().join(key.to_string())
    }

    /// What is to be known of the upload that has this key now.
    pub(super) fn info(&self, key: &UploadKey) -> Path {
        self.upload(key).join("info")
    }

    /// All of one upload: its id keeps it apart from those before and after it.
    pub(super) fn of(&self, key: &UploadKey, id: &str) -> Path {
        self.upload(key).join(id)
    }

    /// Says that the finished file goes with the rest.
    pub(super) fn doomed(&self, key: &UploadKey, id: &str) -> Path {
        self.of(key, id).join("doomed")
    }

    pub(super) fn claims(&self, key: &UploadKey, id: &str) -> Path {
        self.of(key, id).join("claim")
    }

    pub(super) fn claim(&self, key: &UploadKey, id: &str, number: u32) -> Path {
        self.claims(key, id).join(format!("{number:010}"))
    }

    /// Says that a claim was given back.
    pub(super) fn free(&self, key: &UploadKey, id: &str, number: u32) -> Path {
        self.claims(key, id).join(format!("{number:010}.free"))
    }

    /// All stored bytes of one upload, and the marks.
    pub(super) fn slots(&self, key: &UploadKey, id: &str) -> Path {
        self.of(key, id).join("s")
    }

    pub(super) fn slot(&self, key: &UploadKey, id: &str, slot: usize) -> Path {
        self.slots(key, id).join(format!("{slot:05}"))
    }

    /// Which key an object below [`Keys::uploads`] is of, and what it is.
    pub(super) fn below_upload(&self, path: &Path) -> Option<(UploadKey, Below)> {
        let mut names = path.prefix_match(&self.uploads())?;
        let key = UploadKey::from_hex(names.next()?.as_ref())?;
        let below = match names.next()?.as_ref() {
            "info" => Below::Info,
            id => Below::Of {
                id: id.to_owned(),
                is_doomed: names.next().is_some_and(|name| name.as_ref() == "doomed"),
            },
        };
        Some((key, below))
    }

    pub(super) fn held(&self, key: &UploadKey, id: &str, slot: usize, held: &Held) -> Path {
        self.slot(key, id, slot).join(held.name())
    }
}

/// What an object of an upload is.
#[derive(Debug, PartialEq)]
pub(super) enum Below {
    Info,
    Of {
        id: String,
        /// Whether it is the one that [`Keys::doomed`] names.
        is_doomed: bool,
    },
}

/// What an object says of a slot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Held {
    /// It is there, as a part with these bytes' CRC-32 and this id. The object itself is empty.
    Part { crc: u32, content_id: String },
    /// These bytes of it are here.
    Piece { offset: u64, len: u64 },
}

impl Held {
    fn name(&self) -> String {
        match self {
            Self::Part { crc, content_id } => {
                let hex = content_id.bytes().map(|byte| format!("{byte:02x}"));
                format!("p-{crc:08x}-{}", hex.collect::<String>())
            }
            Self::Piece { offset, len } => format!("c-{offset:020}-{len}"),
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let mut words = name.split('-');
        let held = match (words.next()?, words.next()?, words.next()?) {
            ("p", crc, hex) => Self::Part {
                crc: u32::from_str_radix(crc, 16).ok()?,
                content_id: unhex(hex)?,
            },
            ("c", offset, len) => Self::Piece {
                offset: offset.parse().ok()?,
                len: len.parse().ok()?,
            },
            _ => return None,
        };
        words.next().is_none().then_some(held)
    }

    /// Which slot an object below [`Keys::slots`] is of, and what it says.
    pub(super) fn from_path(path: &Path) -> Option<(usize, Self)> {
        let mut parts = path.as_ref().rsplit('/');
        let (name, slot) = (parts.next()?, parts.next()?);
        Some((slot.parse().ok()?, Self::from_name(name)?))
    }
}

/// The id of an upload, and what it takes, as [`Keys::open`] has named it.
pub(super) fn open_upload(path: &Path) -> Option<(String, Usage)> {
    let mut words = path.filename()?.split('-');
    let key = UploadKey::from_hex(words.next()?)?;
    let id = words.next()?.to_owned();
    let scope = ScopeKey::from_hex(words.next()?)?;
    let total = words.next()?.parse().ok()?;
    let usage = Usage { key, scope, total };
    words.next().is_none().then_some((id, usage))
}

/// The number of a claim, and whether the object says that it was given back.
pub(super) fn claim_number(path: &Path) -> Option<(u32, bool)> {
    let name = path.filename()?;
    match name.strip_suffix(".free") {
        Some(number) => Some((number.parse().ok()?, true)),
        None => Some((name.parse().ok()?, false)),
    }
}

fn unhex(hex: &str) -> Option<String> {
    let pairs = hex.as_bytes().chunks(2);
    let bytes = pairs.map(|pair| {
        let pair = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(pair, 16)
            .ok()
            .filter(|_| pair.len() == 2)
    });
    String::from_utf8(bytes.collect::<Option<_>>()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Upload, bucket::info::Phase};

    fn keys() -> Keys {
        Keys {
            prefix: Path::from("a/b"),
        }
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        let key = UploadKey::from_bytes([7; 32]);
        for (slot, held, name) in [
            (
                0,
                Held::Piece { offset: 0, len: 1 },
                "00000/c-00000000000000000000-1",
            ),
            (
                9999,
                Held::Piece {
                    offset: u64::MAX,
                    len: u64::MAX,
                },
                "09999/c-18446744073709551615-18446744073709551615",
            ),
            (
                12,
                Held::Part {
                    crc: 0xf,
                    content_id: String::new(),
                },
                "00012/p-0000000f-",
            ),
            (
                3,
                Held::Part {
                    crc: u32::MAX,
                    content_id: "\"é/-".into(),
                },
                "00003/p-ffffffff-22c3a92f2d",
            ),
        ] {
            let path = keys().held(&key, "i", slot, &held);
            let expected = format!("a/b/up/{key}/i/s/{name}");
            assert_eq!(path.as_ref(), expected);
            assert_eq!(Held::from_path(&path), Some((slot, held)), "{name}");
        }
    }

    #[test]
    fn foreign_names_are_nothing() {
        for name in [
            "", "p", "c", "p-1", "c-1", "c-1-", "c--1", "c-1-2-3", "x-1-2", "p-1-2", "p-1-zz",
            "p-x-", "c-a-1", "p-1-ff",
        ] {
            let path = Path::from(format!("s/00001/{name}"));
            assert_eq!(Held::from_path(&path), None, "{name}");
        }
        assert_eq!(Held::from_path(&Path::from("c-1-2")), None);
    }

    #[test]
    fn objects_are_known_by_their_names() {
        let (keys, key) = (keys(), UploadKey::from_bytes([7; 32]));
        let of = |is_doomed| {
            let id = "i".to_owned();
            Some((key, Below::Of { id, is_doomed }))
        };
        for (path, expected) in [
            (keys.info(&key), Some((key, Below::Info))),
            (keys.doomed(&key, "i"), of(true)),
            (keys.claim(&key, "i", 3), of(false)),
            (keys.slot(&key, "i", 0).join("doomed"), of(false)),
            (keys.uploads().join("x").join("info"), None),
            (keys.upload(&key), None),
            (keys.scratch().join("x"), None),
        ] {
            assert_eq!(keys.below_upload(&path), expected, "{path}");
        }
    }

    #[test]
    fn open_uploads_say_all_in_their_names() {
        let upload = Upload {
            key: UploadKey::from_bytes([7; 32]),
            scope: "alice/-".into(),
            identifier: "i".into(),
            total: u64::MAX,
            chunk_size: None,
            file_name: None,
            relative_path: None,
            content_type: None,
            fields: Vec::new(),
        };
        let usage = Usage::from(&upload);
        let info = Info {
            id: "0af".into(),
            upload,
            slot: 1,
            multipart: None,
            phase: Phase::Receiving,
        };
        let path = keys().open(&info);
        assert!(path.prefix_matches(&keys().open_uploads()), "{path}");
        assert_eq!(open_upload(&path), Some(("0af".into(), usage)));
        for end in ["-", "-1", "x"] {
            assert_eq!(open_upload(&format!("{path}{end}").into()), None, "{end}");
        }
    }

    #[test]
    fn claims_have_numbers() {
        let key = UploadKey::from_bytes([7; 32]);
        let keys = keys();
        assert_eq!(claim_number(&keys.claim(&key, "i", 3)), Some((3, false)));
        assert_eq!(claim_number(&keys.free(&key, "i", 30)), Some((30, true)));
        assert_eq!(claim_number(&Path::from("x/y")), None);
        // In the order of their names too.
        assert!(keys.claim(&key, "i", 9) < keys.claim(&key, "i", 10));
        assert!(keys.slot(&key, "i", 9) < keys.slot(&key, "i", 10));
    }
}
