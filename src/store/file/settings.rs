use std::{path::PathBuf, sync::Arc};

use crate::model::upload::Upload;

/// Chooses the path of a finished file below the folder of finished files.
pub(super) type Naming = Arc<dyn Fn(&Upload) -> Option<PathBuf> + Send + Sync>;

/// What a stored chunk survives.
///
/// Durability depends on the syncs of the system. On Linux these are `fdatasync` of files and
/// `fsync` of folders, tested with power cuts on ext4 and XFS. On macOS it is `F_FULLFSYNC` of
/// files and folders, which flushes the cache of the disk. On Windows it is `FlushFileBuffers` of
/// files. Windows has no call for folders, so a power cut can undo the rename of a file that was
/// just finished, which is then delivered again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process, a crash of the operating system, and a power cut, as far as the
    /// file system and the disk do what they promise.
    #[default]
    Power,
    /// The death of the process. After a crash of the system or a power cut, each chunk is compared
    /// with its checksum, and counts as missing if it was lost. A finished file is durable as with
    /// [`Power`](Self::Power).
    Process,
}
