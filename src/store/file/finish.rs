//! A complete file gets its final name: a rename that overwrites nothing, and is durable.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use super::{
    Durability,
    blocks::BLOCK,
    disk::{self, Disk},
    entry::{Entry, Phase, Seal},
    folder::Folder,
    journal::Event,
};
use crate::{
    names::safe_file_name,
    store::{Location, Sealed, StoreError, Upload, random_id},
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
        let (seal, location) = self.publish(entry, seal)?;
        Ok(Sealed {
            id: entry.id.clone(),
            location: Location::File(location),
            upload: seal.upload,
            attempt: seal.attempt,
            crc32: Some(seal.crc),
        })
    }

    /// Writes down which name the file shall have, before it has it: after a crash it is found.
    fn choose_name(&self, entry: &Entry, upload: Upload, attempt: u32) -> Result<Seal, StoreError> {
        // Before it is written down that the file is finished.
        if !entry.has_data()? {
            return Err(StoreError::new("the data are not where they were"));
        }
        let crc = entry.sync_whole()?;
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
        let event = Event::Sealed {
            path: path.clone(),
            file,
            upload: upload.clone(),
            crc,
        };
        entry.append(&[event], true)?;
        Ok(Seal {
            path,
            file,
            upload,
            crc,
            attempt,
        })
    }

    /// Renames the file, if that is still to be done, and makes the name durable; where it is then.
    fn publish(&self, entry: &Entry, mut seal: Seal) -> Result<(Seal, PathBuf), StoreError> {
        loop {
            let path = self.finished.join(&seal.path);
            let dir = path.parent().unwrap_or(&self.finished);
            if entry.data.is_some() {
                match self.disk.create_dirs(dir, &self.finished) {
                    // Another upload's file has got the name of one of the folders.
                    Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                        seal = self.choose_name(entry, seal.upload, seal.attempt)?;
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
                    // Somebody else's: the data file has still its old name.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                        seal = self.choose_name(entry, seal.upload, seal.attempt)?;
                        continue;
                    }
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(error.into());
                    }
                    // A try before this one has done it.
                    _ => {}
                }
            }
            // Who has renamed it may have died before the new name was durable.
            let Some(file) = self.open_finished(&seal)? else {
                // An attempt before this one has moved it; what has its name now is another's.
                return Ok((seal, entry.data_path.clone()));
            };
            self.disk.sync_dir(dir)?;
            // XFS says of a folder that it is synced when the file system is down; of a file it
            // does not.
            self.disk.sync("sync-data", &file)?;
            return Ok((seal, path));
        }
    }

    /// The finished file, if it is still there and not another one of that name, or a link,
    /// or no file at all.
    fn open_finished(&self, seal: &Seal) -> io::Result<Option<File>> {
        let path = self.finished.join(&seal.path);
        match disk::is_dir_below(path.parent().unwrap_or(&self.finished), &self.finished) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
            Ok(false) => return Ok(None),
            result => result?,
        };
        // A pipe would let us wait for whoever writes to it.
        if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            return Ok(None);
        }
        let file = match disk::open_to_read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        Ok((self.disk.file_id(&file)? == seal.file).then_some(file))
    }

    /// Takes the final name of a file away again, if the application has not moved it. To be done
    /// before the journal says that it is refused or removed: after a crash nobody could tell it
    /// from a file of another upload that has got the same name.
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
        match self.disk.sync_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
        if dir != self.finished {
            // Not if the application has put something there.
            let _ = self.disk.remove_dir(dir);
        }
        Ok(())
    }
}

/// A path below `dir` at which there is nothing, like `wanted`. What is in the way of it, or of one
/// of its folders, gives it a number.
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
                // A link is not followed later, and nothing stands for it.
                Ok(there) => is_folder && (there.is_dir() || there.is_symlink()),
            };
            if is_free {
                break;
            }
            candidate = match is_folder {
                true => numbered(name, "", number),
                false => numbered(stem(name), &name[stem(name).len()..], number),
            };
        }
        chosen.push_str(&candidate);
    }
    match chosen.is_empty() {
        true => Err(no_name()),
        false => Ok(chosen),
    }
}

/// A name without its extension.
fn stem(name: &str) -> &str {
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    stem.unwrap_or(name)
}

/// `stem (number).extension`, in as many bytes as a name may have.
fn numbered(stem: &str, extension: &str, number: u32) -> String {
    let tail = format!(" ({number}){extension}");
    let mut end = stem.len().min(255usize.saturating_sub(tail.len()));
    while !stem.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{tail}", &stem[..end])
}

/// Moves the finished file to `to`: see [`CompletedUpload::persist`](crate::CompletedUpload::persist).
pub(in crate::store) fn persist(sealed: &Sealed, to: &Path) -> io::Result<()> {
    let disk = Disk::default();
    let moved = match &sealed.location {
        Location::File(from) => disk
            .rename_new(from, to)
            .or_else(|error| match error.kind() {
                io::ErrorKind::CrossesDevices => copy_new(&disk, &sealed.location, to),
                _ => Err(error),
            }),
        _ => copy_new(&disk, &sealed.location, to),
    };
    if let Err(error) = moved {
        // An earlier attempt has moved it, if its process died before that was recorded.
        if !is_done(sealed, to) {
            return Err(error);
        }
    }
    disk.sync_dir(folder_of(to))?;
    let Location::File(from) = &sealed.location else {
        return Ok(());
    };
    // Still there if it was copied.
    disk.remove_if_there(from)?;
    match from.parent().map(|dir| disk.sync_dir(dir)) {
        Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies the finished file to `to`: see [`CompletedUpload::copy_to`](crate::CompletedUpload::copy_to).
pub(in crate::store) fn copy(sealed: &Sealed, to: &Path) -> io::Result<()> {
    let disk = Disk::default();
    if let Err(error) = copy_new(&disk, &sealed.location, to) {
        if !is_done(sealed, to) {
            return Err(error);
        }
    }
    disk.sync_dir(folder_of(to))
}

/// Where the name of a file is.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn copy_new(disk: &Disk, location: &Location, to: &Path) -> io::Result<()> {
    let copy = NewFile::create(with_rights_of(location, disk)?, to)?;
    match location {
        Location::File(from) => drop(io::copy(&mut File::open(from)?, &mut &copy.file)?),
        Location::Memory(bytes) => (&copy.file).write_all(bytes)?,
        #[cfg(feature = "object-store")]
        Location::Object(_) => return Err(io::ErrorKind::Unsupported.into()),
    }
    copy.rename(to)
}

/// A file that is whole before it has its name. Dropped before that, it leaves nothing.
pub(crate) struct NewFile {
    disk: Disk,
    temporary: PathBuf,
    file: File,
}

impl NewFile {
    fn create(disk: Disk, to: &Path) -> io::Result<Self> {
        let id = random_id().map_err(io::Error::other)?;
        let temporary = to.with_file_name(format!(".{id}.tmp"));
        let file = disk.create(&temporary)?;
        Ok(Self {
            disk,
            temporary,
            file,
        })
    }

    /// A file that shall have the name `to`; `None` if an earlier attempt has made it.
    #[cfg(feature = "object-store")]
    pub(crate) fn begin(sealed: &Sealed, to: &Path) -> io::Result<Option<Self>> {
        let disk = Disk::default();
        if to.symlink_metadata().is_err() {
            return Self::create(disk, to).map(Some);
        }
        match is_done(sealed, to) {
            true => disk.sync_dir(folder_of(to)).map(|()| None),
            false => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    #[cfg(feature = "object-store")]
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }

    /// Gives it its name, unless there is something of that name, and makes both durable.
    #[cfg(feature = "object-store")]
    pub(crate) fn publish(self, to: &Path) -> io::Result<()> {
        let disk = self.disk.clone();
        self.rename(to)?;
        disk.sync_dir(folder_of(to))
    }

    fn rename(self, to: &Path) -> io::Result<()> {
        self.disk.sync("sync-copy", &self.file)?;
        self.disk.rename_new(&self.temporary, to)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // Not there any more if all went well.
        let _ = self.disk.remove_if_there(&self.temporary);
    }
}

/// Whether an earlier attempt has left the file there, if its process died before that was recorded.
fn is_done(sealed: &Sealed, path: &Path) -> bool {
    sealed.attempt > 1 && is_content(sealed, path).unwrap_or(false)
}

/// A disk on which new files have the rights of a finished one.
fn with_rights_of(location: &Location, disk: &Disk) -> io::Result<Disk> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "there are no modes"))]
    let mut disk = disk.clone();
    #[cfg(unix)]
    if let Location::File(from) = location {
        use std::os::unix::fs::PermissionsExt as _;
        disk.file_mode = std::fs::metadata(from)?.permissions().mode() & 0o777;
    }
    #[cfg(not(unix))]
    let _ = location;
    Ok(disk)
}

/// Whether the file has the bytes of the upload.
fn is_content(sealed: &Sealed, path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != sealed.upload.total {
        return Ok(false);
    }
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; BLOCK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(Some(hasher.finalize()) == sealed.crc32),
            read => hasher.update(&buffer[..read]),
        }
    }
}
