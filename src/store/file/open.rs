//! What is checked when a store is opened: who else can write to its folders, and whether each step
//! of a delivery works in them.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use super::{FileStoreBuilder, finish::is_unlinkable};
use crate::{
    model::hex::Hex,
    store::{
        StoreError,
        disk::{self, Access, Disk, ofd},
        random_id,
    },
};

/// Bytes of the longest name of a finished file, where the file system has no lower limit.
const LONGEST: usize = 255;

/// The same for a file system that does not say its limit: that of eCryptfs, the lowest one known.
const SHORTEST: usize = 143;

impl FileStoreBuilder {
    pub(super) fn check_modes(&self) -> Result<(), StoreError> {
        #[cfg(unix)]
        for (what, mode, least, most) in [
            ("file mode", self.disk.file_mode, 0o600, 0o777),
            ("dir mode", self.disk.dir_mode, 0o700, 0o775),
        ] {
            if mode & least != least || mode & !most != 0 {
                return Err(StoreError::new(format!(
                    "the {what} is {mode:#o}: it needs the bits of {least:#o}, and can have no \
                     others than those of {most:#o}"
                )));
            }
        }
        Ok(())
    }

    /// The folders that the store uses itself, outermost first.
    fn dirs(&self) -> impl Iterator<Item = &Path> {
        let parts = [&self.partial, &self.finished];
        let root = parts.iter().any(|part| part.starts_with(&self.root));
        let root = root.then_some(&self.root);
        root.into_iter().chain(parts).map(PathBuf::as_path)
    }

    /// Checks that other users cannot put something into the folders, or replace them. Skips
    /// folders that do not exist.
    pub(super) fn check_folders(&mut self) -> Result<(), StoreError> {
        for dir in self.dirs() {
            let there = disk::if_there(dir.symlink_metadata()).map_err(disk::at("look at", dir))?;
            if there.is_some_and(|there| there.is_symlink()) {
                return Err(StoreError::new(format!(
                    "{} is a symbolic link, and the store follows none: open it by its canonical \
                     path, as std::fs::canonicalize() returns it",
                    dir.display()
                )));
            }
        }
        if self.unchecked_permissions {
            return Ok(());
        }
        // From the root of the file system to the folders, by the given path and by the real one.
        let mut levels: Vec<PathBuf> = Vec::new();
        for dir in self.dirs() {
            let above = || dir.ancestors().skip(1);
            levels.extend(above().map(Path::to_owned));
            let existing = above().find_map(|dir| dir.canonicalize().ok());
            levels.extend(
                existing
                    .iter()
                    .flat_map(|dir| dir.ancestors())
                    .map(Path::to_owned),
            );
        }
        levels.extend(self.dirs().map(Path::to_owned));
        levels.sort();
        levels.dedup();
        let access = Access::of_process(&levels);
        let shards = (0..=u8::MAX).map(|shard| self.partial.join(Hex(&[shard]).to_string()));
        for dir in levels.into_iter().chain(shards) {
            let Ok(there) = dir.symlink_metadata() else {
                // It does not exist, or the process cannot look at it, so it cannot use it either.
                continue;
            };
            access.check(&dir, &there).map_err(|error| {
                StoreError::new(format!(
                    "{error}. If the file system shows owners and modes that do not apply, open \
                     the store with with_unchecked_permissions()"
                ))
            })?;
        }
        self.disk.access = access;
        Ok(())
    }

    pub(super) fn create_folders(&self) -> Result<(), StoreError> {
        for dir in [&self.partial, &self.finished] {
            // What exists above them was made durable by the application that created it.
            let base = dir.ancestors().skip(1).find(|dir| dir.is_dir());
            let created = self.disk.create_dirs(dir, base.unwrap_or(dir));
            created.map_err(advise)?;
        }
        Ok(())
    }

    /// Does what a delivery needs, with real files in both folders.
    pub(super) fn try_delivery(&self) -> Result<Found, StoreError> {
        let id = random_id()?;
        // Not through a disk that a test simulates: nothing of this stays.
        let disk = Disk {
            #[cfg(unix)]
            file_mode: self.disk.file_mode,
            #[cfg(unix)]
            dir_mode: self.disk.dir_mode,
            ..Disk::default()
        };
        // As long as the longest name of a file that is not finished.
        let data = self.partial.join(format!("{}.{id}.broken", "0".repeat(64)));
        let dir = self.finished.join(&id);
        let result = self.steps(&disk, &data, &dir);
        // What is not there cannot be removed, and the error that counts comes from before.
        let _ = disk.remove_if_there(&data);
        let _ = disk.remove_dir(&dir);
        result.map_err(|error| advise(error).into())
    }

    fn steps(&self, disk: &Disk, data: &Path, dir: &Path) -> io::Result<Found> {
        let file = disk.create(data)?;
        // In any order, and beyond the end.
        let written = [(1, b"b"), (0, b"a")]
            .into_iter()
            .try_for_each(|(at, byte)| disk.write_all_at("try-write", &file, byte, at))
            .and_then(|()| disk.set_len(&file, 3))
            .and_then(|()| file.sync_data().map_err(disk::at("sync", data)));
        match written {
            // Then the store has no room for chunks, but it can deliver, and sweep.
            Err(error) if is_full(&error) => {}
            written => {
                written?;
                let mut read = [1; 4];
                let len = disk::read_at(&file, &mut read, 0)?;
                if read[..len] != *b"ab\0" {
                    let why = "the file does not have the bytes that were written";
                    let error = io::Error::new(ErrorKind::Unsupported, why);
                    return Err(disk::at("read", data)(error));
                }
            }
        }
        let other = disk::open(data)?.ok_or(io::ErrorKind::NotFound)?;
        let locked = ofd::try_lock(&file, 0..1)?;
        if !locked || cfg!(target_os = "linux") && ofd::try_lock(&other, 0..1)? {
            let error = io::Error::new(ErrorKind::Unsupported, "the locks of bytes do not work");
            return Err(disk::at("lock", data)(error));
        }
        for dir in [&self.partial, &self.finished] {
            sync_dir(dir)?;
        }
        disk.create_dir(dir)?;
        // Journals are renamed, also where files have links.
        let renamed = dir.join("x");
        disk.rename_new(data, &renamed)?;
        disk.rename_new(&renamed, data)?;
        let named = |len: usize| {
            let path = dir.join("x".repeat(len));
            let has_links = match disk.link_new(data, &path) {
                Err(error) if is_unlinkable(&error) => {
                    disk.rename_new(data, &path)?;
                    disk.rename_new(&path, data)?;
                    false
                }
                // Some file systems in user space give each name an inode number of its own.
                linked => linked.and_then(|()| disk::has_name(&file, &path))?,
            };
            disk.remove_if_there(&path)?;
            Ok(Found {
                longest_name: len,
                sync_dir_fails: !self.disk.is_simulated() && disk::sync_dir_fails(dir),
                has_links,
            })
        };
        // First with a name that is short enough for a message.
        named(1)?;
        match named(LONGEST) {
            Err(error) if disk::is_name_too_long(&error) => {
                let said = disk::longest_name(dir).unwrap_or(SHORTEST);
                named(said.min(LONGEST - 1))
            }
            found => found,
        }
    }
}

/// What the file system can do.
pub(super) struct Found {
    /// Most bytes of the name of a finished file.
    pub(super) longest_name: usize,
    /// See [`disk::sync_dir_fails`].
    pub(super) sync_dir_fails: bool,
    /// Whether a file can have two names, and they can be recognised as those of one file.
    pub(super) has_links: bool,
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) {
        let synced = std::fs::File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(disk::at("sync the folder", dir))?;
    }
    Ok(())
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}

/// Adds to an error what to do about it.
fn advise(error: io::Error) -> io::Error {
    let advice = match error.kind() {
        ErrorKind::CrossesDevices => {
            "the folders of partial uploads and of finished files are on different file systems, \
             or below different mounts of one: put both below the same mount"
        }
        ErrorKind::PermissionDenied => {
            "the user of the process needs to read, write and search both folders"
        }
        ErrorKind::ReadOnlyFilesystem => "mount the file system so that it can be written to",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the file system has no free inodes or no free space"
        }
        ErrorKind::Unsupported => "use another file system, such as that of a local disk",
        _ => "each delivery needs this step",
    };
    io::Error::new(error.kind(), format!("{error}: {advice}"))
}
