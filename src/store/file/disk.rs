//! The file system calls that the store is made of. All of them block.

use std::{
    fs::{File, OpenOptions},
    io,
    path::Path,
};

/// Opens a file for reading and writing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Creates a file that is not there yet, private to its owner.
pub(super) fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    options.open(path)
}

/// Creates a folder, private to its owner, and those above it, and makes their names durable.
pub(super) fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    if let Some(parent) = parent {
        create_dir(parent)?;
    }
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt as _;
        builder.mode(0o700);
    }
    match builder.create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        // One that another request has just created is not durable before it is synced here.
        _ => sync_dir(parent.unwrap_or(Path::new("."))),
    }
}

/// Makes the names in a folder durable. Windows has no such call, and does it by itself.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    match cfg!(unix) {
        true => File::open(path)?.sync_all(),
        false => Ok(()),
    }
}

/// Renames a file, never over another one: that is an error of kind `AlreadyExists`.
pub(super) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::{
            errno::Errno,
            fcntl::{AT_FDCWD, RenameFlags, renameat2},
        };
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // Not every file system can do it.
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::ENOTSUP) => {}
            result => return Ok(result?),
        }
    }
    std::fs::hard_link(from, to)?;
    std::fs::remove_file(from)
}

pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(unix)]
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

/// As much as there is of `bytes.len()` bytes.
#[cfg(unix)]
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        let at = offset + read as u64;
        match std::os::unix::fs::FileExt::read_at(file, &mut bytes[read..], at) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

#[cfg(windows)]
pub(super) fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

#[cfg(windows)]
pub(super) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < bytes.len() {
        let at = offset + read as u64;
        match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[read..], at)? {
            0 => break,
            n => read += n,
        }
    }
    Ok(read)
}

/// Whether two folders are on one file system, as a rename needs it.
pub(super) fn same_file_system(a: &Path, b: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Ok(std::fs::metadata(a)?.dev() == std::fs::metadata(b)?.dev())
    }
    #[cfg(not(unix))]
    {
        let _ = (a, b);
        Ok(true)
    }
}

/// A number that is another one after the machine was started again; 0 where it is not known.
pub(super) fn boot() -> u64 {
    std::fs::read("/proc/sys/kernel/random/boot_id").map_or(0, |id| {
        use sha2::Digest as _;
        let hash = sha2::Sha256::digest(&id);
        u64::from_le_bytes([
            hash[0], hash[1], hash[2], hash[3], hash[4], hash[5], hash[6], hash[7],
        ])
    })
}

/// Locks of byte ranges between processes, which the kernel frees when a process dies.
///
/// They belong to the open file: within one process they exclude nobody who uses the same one. On
/// other systems than Linux they always succeed.
pub(super) mod lock {
    use std::{fs::File, io, ops::Range};

    /// Locks `range` if it is free.
    pub(crate) fn try_lock(file: &File, range: Range<u64>) -> io::Result<bool> {
        #[cfg(target_os = "linux")]
        {
            use nix::{errno::Errno, fcntl, libc::F_WRLCK};
            match fcntl::fcntl(file, fcntl::FcntlArg::F_OFD_SETLK(&ofd(range, F_WRLCK)?)) {
                Ok(_) => Ok(true),
                Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
                Err(error) => Err(error.into()),
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (file, range);
            Ok(true)
        }
    }

    /// Waits until `range` is free, and locks it.
    pub(crate) fn lock(file: &File, range: Range<u64>) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use nix::{errno::Errno, fcntl, libc::F_WRLCK};
            let lock = ofd(range, F_WRLCK)?;
            loop {
                match fcntl::fcntl(file, fcntl::FcntlArg::F_OFD_SETLKW(&lock)) {
                    Err(Errno::EINTR) => {}
                    result => return result.map(drop).map_err(Into::into),
                }
            }
        }
        #[cfg(not(target_os = "linux"))]
        {
            let _ = (file, range);
            Ok(())
        }
    }

    pub(crate) fn unlock(file: &File, range: Range<u64>) {
        #[cfg(target_os = "linux")]
        {
            use nix::{fcntl, libc::F_UNLCK};
            if let Ok(lock) = ofd(range, F_UNLCK) {
                // It cannot fail for a range that was locked; and closing the file frees it too.
                let _ = fcntl::fcntl(file, fcntl::FcntlArg::F_OFD_SETLK(&lock));
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (file, range);
    }

    #[cfg(target_os = "linux")]
    fn ofd(range: Range<u64>, kind: i32) -> io::Result<nix::libc::flock> {
        let invalid = |_| io::Error::from(io::ErrorKind::InvalidInput);
        Ok(nix::libc::flock {
            l_type: i16::try_from(kind).map_err(invalid)?,
            l_whence: 0,
            l_start: i64::try_from(range.start).map_err(invalid)?,
            l_len: i64::try_from(range.end - range.start).map_err(invalid)?,
            l_pid: 0,
        })
    }
}
