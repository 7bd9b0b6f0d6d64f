use std::{
    io,
    path::{Path, PathBuf},
};

use crate::store::{
    BoxFuture, Content, Stored,
    disk::{self, Disk},
    export::{self, blocking, dir_of},
};

/// A finished file.
#[derive(Debug)]
pub(super) struct FileStored {
    pub(super) path: PathBuf,
    /// The folder of finished files.
    pub(super) finished: PathBuf,
}

impl Stored for FileStored {
    fn path(&self) -> Option<&Path> {
        Some(&self.path)
    }

    fn read(&self) -> Content {
        Content::open(&self.path)
    }

    fn delete(&self) -> BoxFuture<'_, io::Result<()>> {
        let (path, finished) = (self.path.clone(), self.finished.clone());
        Box::pin(blocking(move || remove(&path, &finished)))
    }

    fn move_to<'a>(&'a self, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let (from, target) = (self.path.clone(), to.to_owned());
            let finished = self.finished.clone();
            match blocking(move || rename(&from, &target, &finished)).await {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    export::copy(self.read(), Some(self.path.clone()), to).await?;
                    self.delete().await
                }
                renamed => renamed,
            }
        })
    }
}

/// Renames the file, and makes both names durable. Another request may have removed the empty
/// folder.
fn rename(from: &Path, to: &Path, finished: &Path) -> io::Result<()> {
    let disk = Disk::default();
    disk.rename_new(from, to)?;
    // The new name first, so that the file has at least one name after a crash.
    disk.sync_dir(dir_of(to))?;
    disk::if_there(disk.sync_dir(dir_of(from)))?;
    trim(&disk, from, finished);
    Ok(())
}

fn remove(path: &Path, finished: &Path) -> io::Result<()> {
    let disk = Disk::default();
    disk.remove_if_there(path)?;
    disk::if_there(disk.sync_dir(dir_of(path)))?;
    trim(&disk, path, finished);
    Ok(())
}

/// Removes the folders between a file that is gone and `finished`, as long as they are empty.
pub(super) fn trim(disk: &Disk, path: &Path, finished: &Path) {
    let dirs = path.ancestors().skip(1);
    for dir in dirs.take_while(|dir| *dir != finished && dir.starts_with(finished)) {
        // A folder with something in it stays. One that cannot be removed only takes an inode.
        if disk.remove_dir(dir).is_err() {
            break;
        }
    }
}
