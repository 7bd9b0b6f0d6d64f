//! Copies finished files into the local file system: durably, and never over an existing file.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{
    Content,
    disk::{self, Disk},
    random_id,
};
use crate::span;

/// Copies `content` to `to`, with the mode of the file `like`, if there is one.
///
/// After an error, or if the future is dropped, there is nothing new at `to`.
pub(crate) async fn copy(mut content: Content, like: Option<PathBuf>, to: &Path) -> io::Result<()> {
    let path = to.to_owned();
    let mut copy = blocking(move || NewFile::create(disk_like(like.as_deref())?, &path)).await?;
    while let Some(piece) = content.next().await {
        let piece = piece?;
        copy = blocking(move || copy.write(&piece).map(|()| copy)).await?;
    }
    let path = to.to_owned();
    blocking(move || copy.publish(&path)).await
}

/// Runs `work` on a thread for blocking work.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    span::spawn_blocking(work).await.map_err(io::Error::other)?
}

/// Makes the name of a file durable.
pub(crate) fn sync_name(path: &Path) -> io::Result<()> {
    Disk::default().sync_dir(dir_of(path))
}

/// The folder that has the name of a file.
pub(in crate::store) fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// A disk on which new files have the mode of an existing one.
fn disk_like(like: Option<&Path>) -> io::Result<Disk> {
    #[cfg_attr(not(unix), expect(unused_mut, reason = "there are no modes"))]
    let mut disk = Disk::default();
    #[cfg(unix)]
    if let Some(like) = like {
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = std::fs::metadata(like).map_err(disk::at("look at", like))?;
        disk.file_mode = metadata.permissions().mode() & 0o777;
    }
    #[cfg(not(unix))]
    let _ = like;
    Ok(disk)
}

/// A file that is written under a temporary name. Dropped before it is published, it leaves
/// nothing.
struct NewFile {
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

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let written = self.file.write_all(bytes);
        written.map_err(disk::at("write to", &self.temporary))
    }

    /// Gives the file its name, unless there is something of that name, and makes both durable.
    fn publish(self, to: &Path) -> io::Result<()> {
        self.disk.sync("sync-copy", &self.file)?;
        self.disk.rename_new(&self.temporary, to)?;
        self.disk.sync_dir(dir_of(to))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // The name is gone already if the file was published.
        let _ = self.disk.remove_if_there(&self.temporary);
    }
}
