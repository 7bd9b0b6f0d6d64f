//! Gives a complete file its final name: a hard link that replaces nothing, and is durable.
//!
//! The data file keeps its name below the folder of partial uploads until the upload is settled.
//! While it has a name its inode is not used again, so the file at the final name is that of the
//! upload exactly if it is the same file. An inode number alone proves nothing: the application can
//! take the file away, and a later file can get the number.
//!
//! On a file system without hard links, and by the first code of format version 1, the data file is
//! renamed. While the process that did that has it open, the same proof holds. Later the content
//! has to be that of the upload, and only a default name, which is never used twice, is removed.

use std::{
    fs::File,
    io::{self, ErrorKind},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::{
    Durability,
    entry::{Entry, Phase, crc_of},
    folder::Folder,
    journal::{Event, Seal},
    stored::{FileStored, trim},
};
use crate::{
    model::upload::Upload,
    names::safe_file_name,
    store::{Sealed, StoreError, disk},
};

/// Most bytes of a path, on Linux. Some systems take less, and fail.
const LONGEST_PATH: usize = 4095;

/// How often a name is tried whose folder another request removes at the same time.
const TRIES: u32 = 8;

impl Folder {
    /// Gives the file its final name, unless it has it, and counts an attempt.
    pub(super) fn seal(&self, entry: &Entry, mut upload: Upload) -> Result<Sealed, StoreError> {
        let (seal, attempt) = match entry.view()?.phase {
            Phase::Receiving => {
                upload.length = entry.length();
                (self.choose_name(entry, upload.into())?, 1)
            }
            Phase::Sealed { seal, attempt } => {
                if self.durability == Durability::Process {
                    // The request that has created and sealed it at once may have failed to.
                    self.make_names_durable(entry)?;
                }
                let attempt = attempt.saturating_add(1);
                entry.append(&[Event::Attempt(attempt)], true)?;
                (seal, attempt)
            }
            Phase::Settled { .. } | Phase::Removed => return Err(StoreError::Superseded),
        };
        self.publish_sealed(entry, seal, attempt)
    }

    /// Gives a sealed file its final name, unless it has it.
    pub(super) fn publish_sealed(
        &self,
        entry: &Entry,
        seal: Seal,
        attempt: u32,
    ) -> Result<Sealed, StoreError> {
        let (seal, path) = self.publish(entry, seal, attempt)?;
        let stored = FileStored {
            path,
            finished: self.finished.clone(),
        };
        let sealed = Sealed::new(entry.id.clone(), seal.upload, attempt, stored);
        Ok(sealed.with_crc32(seal.crc32))
    }

    /// Writes the name of the file to the journal before the file gets it, so that it is found
    /// after a crash.
    fn choose_name(&self, entry: &Entry, upload: Arc<Upload>) -> Result<Seal, StoreError> {
        if !entry.has_data()? {
            return Err(StoreError::new("the data are not where they were"));
        }
        // The journal must not say that the file is complete before the file is durable.
        let crc32 = entry.sync_whole()?;
        if self.durability == Durability::Process {
            self.make_names_durable(entry)?;
        }
        let path = self.free_name(&entry.id, &upload)?;
        record_name(
            entry,
            Seal {
                path,
                crc32,
                upload,
            },
        )
    }

    /// A free name.
    fn free_name(&self, id: &str, upload: &Upload) -> Result<String, StoreError> {
        let chosen = self.naming.as_ref().and_then(|naming| naming(upload));
        let wanted = chosen.unwrap_or_else(|| default_name(id, upload));
        free_name(&self.finished, wanted, self.longest_name)
    }

    /// A free name for a file whose id is new. The default name is not looked up: no file has it.
    pub(super) fn first_name(&self, id: &str, upload: &Upload) -> Result<String, StoreError> {
        if self.naming.is_some() {
            return self.free_name(id, upload);
        }
        name_below(
            &self.finished,
            default_name(id, upload),
            self.longest_name,
            |_, _| true,
        )
    }

    /// Replaces a name that cannot be used.
    fn rename(&self, entry: &Entry, seal: Seal, path: String) -> Result<Seal, StoreError> {
        // The folders that were created for it.
        self.trim(&seal);
        record_name(entry, Seal { path, ..seal })
    }

    /// Gives the file its final name, unless it has it, and makes the name durable. Returns the
    /// path of the file.
    ///
    /// In the first attempt the file had its first name just now.
    fn publish(
        &self,
        entry: &Entry,
        mut seal: Seal,
        attempt: u32,
    ) -> Result<(Seal, PathBuf), StoreError> {
        let mut tries = 0;
        while let Some(data) = entry.data.as_ref().filter(|_| tries < TRIES) {
            let is_new = attempt == 1 && tries == 0;
            if !is_new && !entry.has_data()? {
                break;
            }
            let path = self.finished.join(&seal.path);
            let dir = path.parent().unwrap_or(&self.finished);
            // Apart from what follows: no other name helps if this is not a folder.
            self.ensure(&self.finished)?;
            let named = self.disk.create_dirs(dir, &self.finished);
            match named.and_then(|()| self.give_name(&entry.data_path, &path)) {
                Ok(()) => {}
                // An attempt before this one has done it.
                Err(error)
                    if error.kind() == ErrorKind::AlreadyExists && disk::has_name(data, &path)? => {
                }
                // Another file has the name, or the name of one of the folders.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::AlreadyExists | ErrorKind::NotADirectory
                    ) =>
                {
                    let free = self.free_name(&entry.id, &seal.upload)?;
                    if free == seal.path {
                        // It is free again, or it can never be used.
                        tries += 1;
                        if tries == TRIES {
                            return Err(error.into());
                        }
                    } else {
                        seal = self.rename(entry, seal, free)?;
                    }
                    continue;
                }
                // Another request has removed the folder while it was empty.
                Err(error) if error.kind() == ErrorKind::NotFound && tries + 1 < TRIES => {
                    tries += 1;
                    continue;
                }
                // An attempt with another naming may succeed.
                Err(error) if disk::is_final(&error) && tries + 1 < TRIES => {
                    let free = self.free_name(&entry.id, &seal.upload)?;
                    if free == seal.path {
                        return Err(error.into());
                    }
                    tries += 1;
                    seal = self.rename(entry, seal, free)?;
                    continue;
                }
                Err(error) => return Err(error.into()),
            }
            self.make_durable(dir, data)?;
            return Ok((seal, path));
        }
        // It was renamed, by an attempt before this one.
        let Some(file) = self.open_finished(entry, &seal)? else {
            // The application has moved it. The path that is returned does not exist, and never
            // becomes the path of another file.
            return Ok((seal, entry.data_path.clone()));
        };
        let path = self.finished.join(&seal.path);
        // The process that renamed it may have died before the new name was durable.
        self.make_durable(path.parent().unwrap_or(&self.finished), &file)?;
        Ok((seal, path))
    }

    fn give_name(&self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.has_links {
            return self.disk.rename_new(from, to);
        }
        match self.disk.link_new(from, to) {
            Err(error) if is_unlinkable(&error) => self.disk.rename_new(from, to),
            linked => linked,
        }
    }

    fn make_durable(&self, dir: &Path, file: &File) -> io::Result<()> {
        self.disk.sync_dir(dir)?;
        if self.sync_dir_fails {
            return Ok(());
        }
        // If the file system is dead, this sync fails.
        self.disk.sync("sync-data", file)
    }

    /// The file at the final name. `None` if it is not that of the upload, or not known to be.
    fn open_finished(&self, entry: &Entry, seal: &Seal) -> io::Result<Option<File>> {
        let path = self.finished.join(&seal.path);
        match self
            .disk
            .is_dir_below(path.parent().unwrap_or(&self.finished), &self.finished)
        {
            Err(error) if error.kind() == ErrorKind::NotADirectory => return Ok(None),
            Ok(false) => return Ok(None),
            result => result?,
        };
        // Opening a pipe would wait for a writer.
        if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            return Ok(None);
        }
        let Some(file) = disk::open_to_read(&path)? else {
            return Ok(None);
        };
        let is_own = match &entry.data {
            Some(data) => disk::has_name(data, &path)?,
            None => {
                let length = seal.upload.length.unwrap_or_default();
                file.metadata()?.len() == length
                    && crc_of(&file, 0..length)? == (length, seal.crc32)
            }
        };
        Ok(is_own.then_some(file))
    }

    /// Takes the final name from a file that is rejected or removed, if it is proven to be that of
    /// the upload. The data file has a name below the folder of partial uploads then, so nothing is
    /// lost if the process dies before the journal says that the upload is rejected or removed.
    pub(super) fn withdraw(&self, entry: &Entry, seal: &Seal) -> Result<(), StoreError> {
        let is_proven = entry.data.is_some() || seal.is_default(&entry.id);
        if !is_proven || self.open_finished(entry, seal)?.is_none() {
            // An attempt may have failed after it had created the folders.
            self.trim(seal);
            return Ok(());
        }
        let path = self.finished.join(&seal.path);
        if entry.has_data()? {
            self.disk.remove_if_there(&path)?;
        } else {
            self.disk.rename_new(&path, &entry.data_path)?;
        }
        let dir = path.parent().unwrap_or(&self.finished);
        disk::if_there(self.disk.sync_dir(dir))?;
        self.trim(seal);
        Ok(())
    }

    /// Removes the folders of a final name that are empty now.
    pub(super) fn trim(&self, seal: &Seal) {
        trim(&self.disk, &self.finished.join(&seal.path), &self.finished);
    }
}

/// Writes the final name to the journal.
fn record_name(entry: &Entry, seal: Seal) -> Result<Seal, StoreError> {
    entry.append(&[Event::Sealed(seal.clone())], true)?;
    Ok(seal)
}

/// Whether the file system may have no hard links.
pub(super) fn is_unlinkable(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::PermissionDenied | ErrorKind::Unsupported
    )
}

impl Seal {
    /// Whether the final name contains the random id of the upload, so that no other file ever has
    /// it.
    fn is_default(&self, id: &str) -> bool {
        self.path
            .strip_prefix(id)
            .is_some_and(|rest| rest.starts_with('/'))
    }
}

/// The name of a file below a folder of its own.
fn default_name(id: &str, upload: &Upload) -> PathBuf {
    let name = safe_file_name(upload.file_name.as_deref().unwrap_or_default());
    Path::new(id).join(name)
}

/// A free path below `dir`: `wanted`, with numbers added to names that are taken, and names of at
/// most `longest` bytes.
fn free_name(dir: &Path, wanted: PathBuf, longest: usize) -> Result<String, StoreError> {
    name_below(dir, wanted, longest, |path, is_folder| {
        match dir.join(path).symlink_metadata() {
            Err(_) => true,
            // A link fails the delivery later: it is not followed, and not replaced by a number.
            Ok(there) => is_folder && (there.is_dir() || there.is_symlink()),
        }
    })
}

/// Like [`free_name`], with another way to find out whether the path of a file or a folder, below
/// `dir`, is free.
fn name_below(
    dir: &Path,
    wanted: PathBuf,
    longest: usize,
    is_free: impl Fn(&Path, bool) -> bool,
) -> Result<String, StoreError> {
    let no_name = || {
        let why = format!("no name for a file below {}: {wanted:?}", dir.display());
        StoreError::Impossible(why.into())
    };
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
        // A folder has no extension.
        let stem = if is_folder { name } else { stem(name) };
        let extension = &name[stem.len()..];
        let folder = chosen.len();
        chosen.push_str(&shortened(stem, extension, longest));
        for number in 1u32.. {
            if is_free(Path::new(&chosen), is_folder) {
                break;
            }
            chosen.truncate(folder);
            chosen.push_str(&shortened(
                stem,
                &format!(" ({number}){extension}"),
                longest,
            ));
        }
    }
    let is_too_long = dir.as_os_str().len() + 1 + chosen.len() > LONGEST_PATH;
    if chosen.is_empty() || is_too_long {
        return Err(no_name());
    }
    Ok(chosen)
}

/// A name without its extension.
fn stem(name: &str) -> &str {
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    stem.unwrap_or(name)
}

/// A name with this tail, shortened to the most bytes that a name may have.
fn shortened(stem: &str, tail: &str, longest: usize) -> String {
    let cut = |text: &str, len: usize| {
        let mut end = text.len().min(len);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text[..end].to_owned()
    };
    // A tail that is itself too long is cut too.
    let stem = cut(stem, longest.saturating_sub(tail.len()).max(1));
    cut(&(stem + tail), longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shortened_to_what_the_file_system_takes() {
        let dir = tempfile::tempdir().unwrap();
        let long = "é".repeat(125) + "x.txt";
        for (wanted, longest, expected) in [
            (long.clone(), 255, long.clone()),
            (long.clone(), 143, "é".repeat(69) + ".txt"),
            (format!("{long}/b"), 143, "é".repeat(71) + "/b"),
            (
                "a.".to_owned() + &"é".repeat(90),
                143,
                format!("a.{}", "é".repeat(70)),
            ),
            ("a".into(), 143, "a".into()),
        ] {
            let name = free_name(dir.path(), wanted.into(), longest).unwrap();
            assert_eq!(name, expected);
        }
        std::fs::write(dir.path().join("é".repeat(69) + ".txt"), "").unwrap();
        let name = free_name(dir.path(), long.into(), 143).unwrap();
        assert_eq!(name, "é".repeat(67) + " (1).txt");
    }
}
