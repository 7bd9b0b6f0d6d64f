//! A complete file gets its final name: a rename that overwrites nothing, and is durable.

use std::{
    io::{self, Write as _},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::{
    disk,
    entry::{Entry, Phase, Seal},
    folder::Folder,
    journal::Event,
};
use crate::{
    store::{Location, Sealed, StoreError, Upload, random_id},
    upload::safe_file_name,
};

impl Folder {
    /// Gives the file its final name, the first time, and counts an attempt.
    pub(super) fn seal(&self, entry: &Arc<Entry>, upload: Upload) -> Result<Sealed, StoreError> {
        let seal = match entry.view()?.phase {
            Phase::Receiving => self.choose_name(entry, upload, 1)?,
            Phase::Sealed(mut seal) => {
                seal.attempt += 1;
                entry.append(&[Event::Attempt(seal.attempt)], true)?;
                seal
            }
            Phase::Settled(_) | Phase::Removed => return Err(StoreError::Superseded),
        };
        let seal = self.publish(entry, seal)?;
        Ok(Sealed {
            id: entry.id.clone(),
            location: Location::File(self.finished.join(&seal.path)),
            upload: seal.upload,
            attempt: seal.attempt,
            crc32: Some(seal.crc),
        })
    }

    /// Writes down which name the file shall have, before it has it: after a crash it is found.
    fn choose_name(&self, entry: &Entry, upload: Upload, attempt: u32) -> Result<Seal, StoreError> {
        let data = entry
            .data
            .as_ref()
            .ok_or_else(|| StoreError::new("the data are gone"))?;
        let crc = entry.crc().filter(|_| {
            data.metadata()
                .is_ok_and(|metadata| metadata.len() == entry.total())
        });
        let crc = crc.ok_or_else(|| StoreError::new("the data are not of the right size"))?;
        let chosen = self.naming.as_ref().and_then(|naming| naming(&upload));
        let default = || {
            let name = safe_file_name(upload.file_name.as_deref().unwrap_or_default());
            Path::new(&entry.id).join(name)
        };
        let path = free_name(&self.finished, chosen.unwrap_or_else(default))?;
        let event = Event::Sealed {
            path: path.clone(),
            upload: upload.clone(),
            crc,
        };
        entry.append(&[event], true)?;
        Ok(Seal {
            path,
            upload,
            crc,
            attempt,
        })
    }

    /// Renames the file, if that is still to be done, and makes the name durable.
    fn publish(&self, entry: &Entry, mut seal: Seal) -> Result<Seal, StoreError> {
        let Some(data) = &entry.data else {
            return Ok(seal);
        };
        data.sync_all()?;
        loop {
            let path = self.finished.join(&seal.path);
            let dir = path.parent().unwrap_or(&self.finished);
            disk::create_dir(dir)?;
            match disk::rename_new(&entry.data_path, &path) {
                Ok(()) => {}
                // Somebody else's: the data file has still its old name.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    seal = self.choose_name(entry, seal.upload, seal.attempt)?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            disk::sync_dir(dir)?;
            disk::sync_dir(entry.data_path.parent().unwrap_or(&self.partial))?;
            // XFS says of a folder that it is synced when the file system is down; of a file it
            // does not.
            data.sync_data()?;
            return Ok(seal);
        }
    }

    pub(super) fn remove_finished(&self, file: &Path) -> Result<(), StoreError> {
        disk::remove_if_there(file)?;
        if let Some(dir) = file.parent().filter(|dir| *dir != self.finished) {
            // Not if the application has put something there.
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }
}

/// A path below `dir` at which there is nothing, like `wanted`.
fn free_name(dir: &Path, wanted: PathBuf) -> Result<String, StoreError> {
    let inside = wanted
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let (Some(text), Some(stem), true) = (
        wanted.to_str(),
        wanted.file_stem().and_then(|stem| stem.to_str()),
        inside,
    ) else {
        return Err(StoreError::new(format!(
            "no name for a finished file: {wanted:?}"
        )));
    };
    let extension = wanted.extension().and_then(|extension| extension.to_str());
    let extension = extension.map_or(String::new(), |extension| format!(".{extension}"));
    let mut candidate = text.to_owned();
    for number in 1u32.. {
        // A link that leads nowhere is in the way too.
        if dir.join(&candidate).symlink_metadata().is_err() {
            break;
        }
        let name = format!("{stem} ({number}){extension}");
        candidate = match wanted
            .parent()
            .and_then(Path::to_str)
            .filter(|p| !p.is_empty())
        {
            Some(parent) => format!("{parent}/{name}"),
            None => name,
        };
    }
    Ok(candidate)
}

/// See [`CompletedUpload::persist`](crate::CompletedUpload::persist).
pub(in crate::store) fn persist(location: &Location, to: &Path) -> io::Result<()> {
    let parent = to
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if let Location::File(from) = location {
        match disk::rename_new(from, to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
            Err(error) => return Err(error),
            Ok(()) => {
                disk::sync_dir(parent)?;
                return disk::sync_dir(from.parent().unwrap_or(Path::new(".")));
            }
        }
    }
    // Whole before it has its name.
    let id = random_id().map_err(io::Error::other)?;
    let temporary = parent.join(format!(".{id}.tmp"));
    let copied = disk::create(&temporary).and_then(|mut copy| {
        match location {
            Location::File(from) => drop(io::copy(&mut std::fs::File::open(from)?, &mut copy)?),
            Location::Memory(bytes) => copy.write_all(bytes)?,
        }
        copy.sync_all()?;
        disk::rename_new(&temporary, to)
    });
    if let Err(error) = copied {
        disk::remove_if_there(&temporary)?;
        return Err(error);
    }
    disk::sync_dir(parent)?;
    match location {
        Location::File(from) => std::fs::remove_file(from),
        Location::Memory(_) => Ok(()),
    }
}
