use std::{io, path::Path};

use crate::store::{
    BoxFuture, Content, Stored,
    disk::{self, Disk},
    export::{self, blocking, dir_of},
};

/// A finished file, at this path.
#[derive(Debug)]
pub(super) struct FileStored(pub(super) std::path::PathBuf);

impl Stored for FileStored {
    fn path(&self) -> Option<&Path> {
        Some(&self.0)
    }

    fn read(&self) -> Content {
        Content::open(&self.0)
    }

    fn delete(&self) -> BoxFuture<'_, io::Result<()>> {
        let path = self.0.clone();
        Box::pin(blocking(move || remove(&path)))
    }

    fn move_to<'a>(&'a self, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            let (from, target) = (self.0.clone(), to.to_owned());
            match blocking(move || rename(&from, &target)).await {
                Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                    export::copy(self.read(), Some(self.0.clone()), to).await?;
                    self.delete().await
                }
                renamed => renamed,
            }
        })
    }
}

/// Renames the file, and makes both names durable. Another request may have removed the empty
/// folder.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let disk = Disk::default();
    disk.rename_new(from, to)?;
    // The new name first, so that the file has at least one name after a crash.
    disk.sync_dir(dir_of(to))?;
    disk::if_there(disk.sync_dir(dir_of(from))).map(drop)
}

fn remove(path: &Path) -> io::Result<()> {
    let disk = Disk::default();
    disk.remove_if_there(path)?;
    disk::if_there(disk.sync_dir(dir_of(path))).map(drop)
}
