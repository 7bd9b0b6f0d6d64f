//! Gives a complete file its final name: by a rename that overwrites nothing, and is durable.

use std::{
    fs::File,
    io,
    path::{Component, Path, PathBuf},
};

use super::{
    Durability,
    entry::{Entry, Phase},
    folder::Folder,
    journal::{Event, Seal},
    stored::FileStored,
};
use crate::{
    model::upload::Upload,
    names::safe_file_name,
    store::{Sealed, StoreError, disk},
};

impl Folder {
    /// Gives the file its final name, the first time, and counts an attempt.
    pub(super) fn seal(&self, entry: &Entry, mut upload: Upload) -> Result<Sealed, StoreError> {
        let (seal, attempt) = match entry.view()?.phase {
            Phase::Receiving => {
                upload.length = entry.length();
                (self.choose_name(entry, upload)?, 1)
            }
            Phase::Sealed { seal, attempt } => {
                let attempt = attempt.saturating_add(1);
                entry.append(&[Event::Attempt(attempt)], true)?;
                (seal, attempt)
            }
            Phase::Settled { .. } | Phase::Removed => return Err(StoreError::Superseded),
        };
        let (seal, path) = self.publish(entry, seal)?;
        let sealed = Sealed::new(entry.id.clone(), seal.upload, attempt, FileStored(path));
        Ok(sealed.with_crc32(seal.crc32))
    }

    /// Writes the name of the file to the journal before the file gets it, so that it is found
    /// after a crash.
    fn choose_name(&self, entry: &Entry, upload: Upload) -> Result<Seal, StoreError> {
        if !entry.has_data()? {
            return Err(StoreError::new("the data are not where they were"));
        }
        // The journal must not say that the file is complete before the file is durable.
        let crc32 = entry.sync_whole()?;
        if self.durability == Durability::Process {
            entry.make_names_durable()?;
        }
        let file = entry.data.as_ref().map(|data| self.disk.file_id(data));
        let file = file.transpose()?.flatten();
        let chosen = self.naming.as_ref().and_then(|naming| naming(&upload));
        let default = || {
            let name = safe_file_name(upload.file_name.as_deref().unwrap_or_default());
            Path::new(&entry.id).join(name)
        };
        let path = free_name(&self.finished, chosen.unwrap_or_else(default))?;
        let seal = Seal {
            path,
            file,
            crc32,
            upload,
        };
        entry.append(&[Event::Sealed(seal.clone())], true)?;
        Ok(seal)
    }

    /// Renames the file, unless that is done already, and makes the name durable. Returns the path
    /// of the file.
    fn publish(&self, entry: &Entry, mut seal: Seal) -> Result<(Seal, PathBuf), StoreError> {
        loop {
            let path = self.finished.join(&seal.path);
            let dir = path.parent().unwrap_or(&self.finished);
            if entry.data.is_some() {
                match self.disk.create_dirs(dir, &self.finished) {
                    // The file of another upload has the name of one of the folders.
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                        seal = self.choose_name(entry, seal.upload)?;
                        continue;
                    }
                    created => created?,
                }
                match self.disk.rename_new(&entry.data_path, &path) {
                    // A crash of the system has left the file both names.
                    Err(error)
                        if error.kind() == io::ErrorKind::AlreadyExists
                            && self.open_finished(&seal)?.is_some() =>
                    {
                        self.disk.remove_if_there(&entry.data_path)?;
                    }
                    // Another file has the name. The data file still has its old one.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        seal = self.choose_name(entry, seal.upload)?;
                        continue;
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error.into());
                    }
                    // An attempt before this one has done it.
                    _ => {}
                }
            }
            // The process that renamed it may have died before the new name was durable.
            let Some(file) = self.open_finished(&seal)? else {
                // The application has moved it in an earlier attempt. The path that is returned
                // does not exist, and never becomes the path of another file.
                return Ok((seal, entry.data_path.clone()));
            };
            self.disk.sync_dir(dir)?;
            // When XFS has shut down, the sync of a folder still succeeds. The sync of a file does
            // not.
            self.disk.sync("sync-data", &file)?;
            return Ok((seal, path));
        }
    }

    /// The finished file. `None` if it is gone, or if something else has its name.
    fn open_finished(&self, seal: &Seal) -> io::Result<Option<File>> {
        let path = self.finished.join(&seal.path);
        match disk::is_dir_below(path.parent().unwrap_or(&self.finished), &self.finished) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Ok(false) => return Ok(None),
            result => result?,
        };
        // Opening a pipe would wait for a writer.
        if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            return Ok(None);
        }
        let Some(file) = disk::if_there(disk::open_to_read(&path))? else {
            return Ok(None);
        };
        Ok((self.disk.file_id(&file)? == seal.file).then_some(file))
    }

    /// Takes the final name from a file, unless the application has moved the file. This comes
    /// before the journal says that the upload is rejected or removed: after a crash, the file
    /// could not be distinguished from a file of another upload with the same name.
    pub(super) fn withdraw(&self, entry: &Entry, seal: &Seal) -> Result<(), StoreError> {
        if self.open_finished(seal)?.is_none() {
            return Ok(());
        }
        let path = self.finished.join(&seal.path);
        match self.disk.rename_new(&path, &entry.data_path) {
            // A crash of the system has left the file both names.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.disk.remove_if_there(&path)?;
            }
            result => result?,
        }
        let dir = path.parent().unwrap_or(&self.finished);
        disk::if_there(self.disk.sync_dir(dir))?;
        if dir != self.finished {
            // Not if the application has put something there.
            let _ = self.disk.remove_dir(dir);
        }
        Ok(())
    }
}

/// A free path below `dir`: `wanted`, with numbers added to names that are taken.
fn free_name(dir: &Path, wanted: PathBuf) -> Result<String, StoreError> {
    let no_name = || StoreError::new(format!("no name for a finished file: {wanted:?}"));
    let mut chosen = String::new();
    let mut components = wanted.components().peekable();
    while let Some(component) = components.next() {
        let Component::Normal(name) = component else {
            return Err(no_name());
        };
        let name = name.to_str().ok_or_else(no_name)?;
        let is_folder = components.peek().is_some();
        if !chosen.is_empty() {
            chosen.push('/');
        }
        let mut candidate = name.to_owned();
        for number in 1u32.. {
            let is_free = match dir.join(&chosen).join(&candidate).symlink_metadata() {
                Err(_) => true,
                // A link fails the delivery later: it is not followed, and not replaced by a
                // number.
                Ok(there) => is_folder && (there.is_dir() || there.is_symlink()),
            };
            if is_free {
                break;
            }
            candidate = if is_folder {
                numbered(name, "", number)
            } else {
                numbered(stem(name), &name[stem(name).len()..], number)
            };
        }
        chosen.push_str(&candidate);
    }
    if chosen.is_empty() {
        return Err(no_name());
    }
    Ok(chosen)
}

/// A name without its extension.
fn stem(name: &str) -> &str {
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    stem.unwrap_or(name)
}

/// `stem (number).extension`, shortened to the most bytes that a name may have.
fn numbered(stem: &str, extension: &str, number: u32) -> String {
    let tail = format!(" ({number}){extension}");
    let mut end = stem.len().min(255usize.saturating_sub(tail.len()));
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &stem[..end])
}
