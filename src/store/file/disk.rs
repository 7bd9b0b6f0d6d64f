//! The file system calls that the store is made of. All of them block.
//!
//! What changes or syncs something goes through a [`Disk`], so that tests can let each single call
//! fail, or cut the power behind it.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    path::Path,
    sync::OnceLock,
};

use crate::fault::{self, Do};

/// See [`Disk::pause`].
const PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// The way to the file system.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk {
    #[cfg(all(test, target_os = "linux"))]
    pub(super) simulated: Option<std::sync::Arc<super::simulated::Simulated>>,
}

/// A call that changes or syncs something.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "for tests"))]
pub(super) enum Op<'a> {
    Create(&'a Path),
    CreateDir(&'a Path),
    Write(&'a File, &'a [u8], u64),
    SetLen(&'a File, u64),
    Sync(&'a File),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Remove(&'a Path),
    RemoveDir(&'a Path),
}

impl Disk {
    /// Does one call, unless a test wants something else.
    #[track_caller]
    fn call<T>(
        &self,
        name: &'static str,
        op: Op<'_>,
        nothing: impl FnOnce() -> io::Result<T>,
        it: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(simulated) = &self.simulated {
            let place = std::panic::Location::caller();
            return simulated.call(name, place, op, nothing, it);
        }
        let _ = op;
        match fault::step(name)? {
            Do::It => it(),
            Do::Nothing => nothing(),
        }
    }

    /// Creates a file that is not there yet, private to its owner.
    #[track_caller]
    pub(super) fn create(&self, path: &Path) -> io::Result<File> {
        let it = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true);
            #[cfg(unix)]
            {
                use std::os::unix::fs::OpenOptionsExt as _;
                options.mode(0o600);
            }
            options.open(path)
        };
        // There is no way to not do it.
        self.call("create", Op::Create(path), it, it)
    }

    /// Creates a folder, private to its owner, and those between it and `base`, which is there
    /// already, and makes their names durable.
    #[track_caller]
    pub(super) fn create_dirs(&self, path: &Path, base: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|_| path != base) else {
            return Ok(());
        };
        self.create_dirs(parent, base)?;
        self.create_dir(path)?;
        // Also that of a folder which is there: who has created it may have died before this.
        self.sync_dir(parent)
    }

    /// Creates a folder, if it is not there, private to its owner.
    #[track_caller]
    pub(super) fn create_dir(&self, path: &Path) -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        let it = || dir_builder().create(path);
        match self.call("create-dir", Op::CreateDir(path), || Ok(()), it) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    #[track_caller]
    pub(super) fn write_all_at(
        &self,
        name: &'static str,
        file: &File,
        bytes: &[u8],
        offset: u64,
    ) -> io::Result<()> {
        let op = Op::Write(file, bytes, offset);
        self.call(name, op, || Ok(()), || write_all_at(file, bytes, offset))
    }

    #[track_caller]
    pub(super) fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        let op = Op::SetLen(file, len);
        self.call("set-len", op, || Ok(()), || file.set_len(len))
    }

    /// Makes a file's bytes durable, and what is needed to find them, but not its name.
    #[track_caller]
    pub(super) fn sync(&self, name: &'static str, file: &File) -> io::Result<()> {
        self.call(name, Op::Sync(file), || Ok(()), || file.sync_data())
    }

    /// Makes the names in a folder durable. Windows has no such call, and does it by itself.
    #[track_caller]
    pub(super) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let it = || match cfg!(unix) {
            true => File::open(path)?.sync_all(),
            false => Ok(()),
        };
        self.call("sync-dir", Op::SyncDir(path), || Ok(()), it)
    }

    /// Renames a file, never over another one: that is an error of kind `AlreadyExists`.
    #[track_caller]
    pub(super) fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let it = || rename_new(from, to);
        self.call("rename", Op::Rename(from, to), || Ok(()), it)
    }

    #[track_caller]
    pub(super) fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        let it = || match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        self.call("remove", Op::Remove(path), || Ok(()), it)
    }

    /// Removes a folder, if it is empty.
    #[track_caller]
    pub(super) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let it = || std::fs::remove_dir(path);
        self.call("remove-dir", Op::RemoveDir(path), || Ok(()), it)
    }

    /// Waits a little, because another thread or process has to go on first.
    pub(super) fn pause(&self) {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(scheduler) = self.scheduler() {
            return scheduler.pass();
        }
        std::thread::sleep(PAUSE);
    }

    /// Tests let others go on until `free` says that a lock can be had; the lock itself waits else.
    pub(super) fn before_lock(&self, free: impl Fn() -> bool) {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(scheduler) = self.scheduler() {
            while !free() {
                scheduler.pass();
            }
        }
        let _ = free;
    }

    /// Does what is made of calls of this disk.
    pub(super) fn work<T>(&self, work: impl FnOnce() -> T) -> T {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(scheduler) = self.scheduler() {
            scheduler.enter();
            let result = work();
            scheduler.leave();
            return result;
        }
        work()
    }

    #[cfg(all(test, target_os = "linux"))]
    fn scheduler(&self) -> Option<&super::scheduled::Scheduler> {
        self.simulated.as_ref()?.scheduler.as_ref()
    }

    /// What tells the file from others of its name; `None` where that cannot be known.
    pub(super) fn file_id(&self, file: &File) -> io::Result<Option<u64>> {
        let id = file_id(file)?;
        #[cfg(all(test, target_os = "linux"))]
        if let Some(simulated) = &self.simulated {
            return Ok(id.map(|id| simulated.file_id(id)));
        }
        Ok(id)
    }

    /// A number that is another one after the machine was started again; `None` where it is not
    /// known.
    pub(super) fn boot(&self) -> Option<u64> {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(simulated) = &self.simulated {
            return Some(simulated.boot());
        }
        boot()
    }
}

/// Opens a file for reading and writing.
pub(super) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Lets the system begin to write bytes to the disk, if it can be asked to. Unlike a sync it waits
/// for nothing, promises nothing, and takes no errors from whoever syncs later.
pub(super) fn begin_to_write(file: &File, range: &Range<u64>) {
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        // What is still to be written stays in memory.
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let (start, len) = (range.start as i64, (range.end - range.start) as i64);
        let _ = posix_fadvise(file, start, len, advice);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

#[cfg(unix)]
fn dir_builder() -> std::fs::DirBuilder {
    use std::os::unix::fs::DirBuilderExt as _;
    let mut builder = std::fs::DirBuilder::new();
    builder.mode(0o700);
    builder
}

#[cfg(not(unix))]
fn dir_builder() -> std::fs::DirBuilder {
    std::fs::DirBuilder::new()
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
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

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
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
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
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

fn file_id(file: &File) -> io::Result<Option<u64>> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Ok(Some(file.metadata()?.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        Ok(None)
    }
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

fn boot() -> Option<u64> {
    use sha2::Digest as _;
    // It does not change while the process lives.
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        let (first, _) = sha2::Sha256::digest(&id)
            .split_first_chunk()
            .map(|(f, r)| (*f, r.len()))?;
        Some(u64::from_le_bytes(first))
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
