//! The file system calls of the stores. All of them block.
//!
//! Calls that change or sync something go through a [`Disk`], so that tests can make each of them
//! fail, or simulate a power cut after it.

use std::{
    fs::{File, OpenOptions},
    io,
    ops::Range,
    path::Path,
    sync::OnceLock,
    time::SystemTime,
};

use crate::fault::{self, Do};

/// How many files this process may have open at once.
#[cfg(target_os = "linux")]
pub(in crate::store) fn most_open_files() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};

    getrlimit(Resource::RLIMIT_NOFILE).map_or(256, |(soft, _)| soft)
}

/// The default of macOS.
#[cfg(not(target_os = "linux"))]
pub(in crate::store) fn most_open_files() -> u64 {
    256
}

/// Access to the file system.
#[derive(Clone, Debug)]
pub(in crate::store) struct Disk {
    /// The mode of new files, from which the system takes the umask.
    #[cfg(unix)]
    pub(in crate::store) file_mode: u32,
    #[cfg(unix)]
    pub(in crate::store) dir_mode: u32,
    #[cfg(all(test, target_os = "linux"))]
    pub(in crate::store) simulated: Option<std::sync::Arc<super::file::simulated::Simulated>>,
}

/// A call that changes or syncs something.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(test), expect(dead_code, reason = "for tests"))]
pub(in crate::store) enum Op<'a> {
    Create(&'a Path),
    CreateDir(&'a Path),
    Write(&'a File, &'a [u8], u64),
    SetLen(&'a File, u64),
    Sync(&'a File),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Link(&'a Path),
    Remove(&'a Path),
    RemoveDir(&'a Path),
}

/// New files and folders are private to the owner.
impl Default for Disk {
    fn default() -> Self {
        Self {
            #[cfg(unix)]
            file_mode: 0o600,
            #[cfg(unix)]
            dir_mode: 0o700,
            #[cfg(all(test, target_os = "linux"))]
            simulated: None,
        }
    }
}

impl Disk {
    /// Does one call, unless a test replaces it.
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

    /// Creates a file. An existing file or link of that name is an error.
    #[track_caller]
    pub(in crate::store) fn create(&self, path: &Path) -> io::Result<File> {
        let it = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true);
            #[cfg(unix)]
            {
                use std::os::unix::fs::OpenOptionsExt as _;
                options.mode(self.file_mode);
            }
            options.open(path)
        };
        // The caller needs the file, so the call is never skipped.
        self.call("create", Op::Create(path), it, it)
    }

    /// Creates a folder, and the folders between it and `base`, which exists, and makes their names
    /// durable. See [`is_dir`] for the errors.
    #[track_caller]
    pub(in crate::store) fn create_dirs(&self, path: &Path, base: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|_| path != base) else {
            return Ok(());
        };
        self.create_dirs(parent, base)?;
        self.create_dir(path)?;
        // Also of an existing folder: the process that created it may have died before this.
        self.sync_dir(parent)
    }

    /// Creates a folder, unless it exists. See [`is_dir`] for the errors.
    #[track_caller]
    pub(in crate::store) fn create_dir(&self, path: &Path) -> io::Result<()> {
        if is_dir(path)? {
            return Ok(());
        }
        let it = || self.dir_builder().create(path);
        match self.call("create-dir", Op::CreateDir(path), || Ok(()), it) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => is_dir(path).map(drop),
            result => result,
        }
    }

    fn dir_builder(&self) -> std::fs::DirBuilder {
        #[cfg_attr(not(unix), expect(unused_mut, reason = "there are no modes"))]
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::DirBuilderExt as _;
            builder.mode(self.dir_mode);
        }
        builder
    }

    #[track_caller]
    pub(in crate::store) fn write_all_at(
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
    pub(in crate::store) fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        let op = Op::SetLen(file, len);
        self.call("set-len", op, || Ok(()), || file.set_len(len))
    }

    /// Makes the bytes of a file durable, and its size, but not its name.
    #[track_caller]
    pub(in crate::store) fn sync(&self, name: &'static str, file: &File) -> io::Result<()> {
        self.call(name, Op::Sync(file), || Ok(()), || file.sync_data())
    }

    /// Makes the names in a folder durable. Windows has no such call.
    #[track_caller]
    pub(in crate::store) fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let it = || {
            if cfg!(unix) {
                File::open(path)?.sync_all()?;
            }
            Ok(())
        };
        self.call("sync-dir", Op::SyncDir(path), || Ok(()), it)
    }

    /// Renames a file, never over another one: that is an error of the kind `AlreadyExists`.
    #[track_caller]
    pub(in crate::store) fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let it = || rename_new(from, to);
        self.call("rename", Op::Rename(from, to), || Ok(()), it)
    }

    /// Gives a file a second name, never that of another file: that is an error of the kind
    /// `AlreadyExists`.
    #[track_caller]
    pub(in crate::store) fn link_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let it = || std::fs::hard_link(from, to);
        self.call("link", Op::Link(to), || Ok(()), it)
    }

    /// Removes a file, if it exists.
    #[track_caller]
    pub(in crate::store) fn remove_if_there(&self, path: &Path) -> io::Result<()> {
        let it = || if_there(std::fs::remove_file(path)).map(drop);
        self.call("remove", Op::Remove(path), || Ok(()), it)
    }

    /// Removes a folder, if it is empty.
    #[track_caller]
    pub(in crate::store) fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let it = || std::fs::remove_dir(path);
        self.call("remove-dir", Op::RemoveDir(path), || Ok(()), it)
    }

    /// In tests, lets other threads run until a mutex is `free`. Otherwise the mutex itself waits.
    pub(in crate::store) fn before_lock(&self, free: impl Fn() -> bool) {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(scheduler) = self.scheduler() {
            while !free() {
                scheduler.pass();
            }
        }
        let _ = free;
    }

    /// Runs calls of this disk. In tests, one thread at a time.
    pub(in crate::store) fn work<T>(&self, work: impl FnOnce() -> T) -> T {
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
    fn scheduler(&self) -> Option<&super::file::scheduled::Scheduler> {
        self.simulated.as_ref()?.scheduler.as_ref()
    }

    /// The clock of the system.
    pub(in crate::store) fn now(&self) -> SystemTime {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(simulated) = &self.simulated {
            return simulated.now();
        }
        SystemTime::now()
    }

    /// A number that changes when the system is restarted. `None` if the system has none.
    pub(in crate::store) fn boot(&self) -> Option<u64> {
        #[cfg(all(test, target_os = "linux"))]
        if let Some(simulated) = &self.simulated {
            return Some(simulated.boot());
        }
        boot()
    }
}

/// The result of a call, `None` if it found nothing.
pub(in crate::store) fn if_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Opens a file for reading and writing. Links are not followed.
pub(in crate::store) fn open(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true).write(true), path)
}

/// Opens a file for reading. Links are not followed.
pub(in crate::store) fn open_to_read(path: &Path) -> io::Result<File> {
    open_with(OpenOptions::new().read(true), path)
}

fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.custom_flags(nix::libc::O_NOFOLLOW);
    }
    // The standard library does not know the number of that flag on other systems.
    #[cfg(not(target_os = "linux"))]
    if path.symlink_metadata()?.is_symlink() {
        return Err(is_link(path));
    }
    let file = options.open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other(format!(
            "{} is not a file",
            path.display()
        )));
    }
    Ok(file)
}

/// Whether there is a folder. A link is an error and is not followed. Anything else is an error of
/// the kind `NotADirectory`.
pub(in crate::store) fn is_dir(path: &Path) -> io::Result<bool> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => Ok(true),
        Ok(metadata) if metadata.is_symlink() => Err(is_link(path)),
        Ok(_) => Err(io::ErrorKind::NotADirectory.into()),
    }
}

/// Whether there is a folder. A link between it and `base` is an error.
pub(in crate::store) fn is_dir_below(path: &Path, base: &Path) -> io::Result<bool> {
    match path.parent().filter(|_| path != base) {
        Some(parent) => Ok(is_dir_below(parent, base)? && is_dir(path)?),
        None => Ok(true),
    }
}

fn is_link(path: &Path) -> io::Error {
    io::Error::other(format!("{} is a symbolic link", path.display()))
}

/// Whether an open file still has this name.
pub(in crate::store) fn has_name(file: &File, path: &Path) -> io::Result<bool> {
    use io::ErrorKind::{NotADirectory, NotFound};
    let named = match path.symlink_metadata() {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(false),
        named => named?,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let file = file.metadata()?;
        Ok((named.dev(), named.ino()) == (file.dev(), file.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = (file, named);
        Ok(true)
    }
}

/// Whether all users can create files there, and remove the files of others.
pub(in crate::store) fn is_world_writable(dir: &std::fs::Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        dir.mode() & 0o1002 == 0o002
    }
    #[cfg(not(unix))]
    {
        let _ = dir;
        false
    }
}

/// The free space of a file system.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(target_os = "linux"), allow(dead_code))]
pub(in crate::store) struct Free {
    pub(in crate::store) bytes: u64,
    pub(in crate::store) total_bytes: u64,
    /// How many files and folders can be created. `None` if that is not limited.
    pub(in crate::store) files: Option<u64>,
}

/// What is free in the file system of a folder. `None` if the system does not say.
pub(in crate::store) fn free(dir: &Path) -> io::Result<Option<Free>> {
    #[cfg(target_os = "linux")]
    {
        let stat = nix::sys::statvfs::statvfs(dir)?;
        // The types differ between machines.
        #[allow(clippy::unnecessary_cast)]
        let (block, blocks, available, files, files_available) = (
            stat.fragment_size() as u64,
            stat.blocks() as u64,
            stat.blocks_available() as u64,
            stat.files() as u64,
            stat.files_available() as u64,
        );
        // Some file systems in user space do not say.
        Ok((blocks > 0).then(|| Free {
            bytes: available.saturating_mul(block),
            total_bytes: blocks.saturating_mul(block),
            files: (files > 0).then_some(files_available),
        }))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        Ok(None)
    }
}

/// Asks the system to start writing these bytes to the disk. Unlike a sync it does not wait and
/// promises nothing. It does not consume an error that a later sync has to return.
pub(in crate::store) fn begin_to_write(file: &File, range: &Range<u64>) {
    #[cfg(target_os = "linux")]
    {
        use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
        // Bytes that are not written yet stay in memory.
        let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        let (start, len) = (range.start as i64, (range.end - range.start) as i64);
        // It is a hint only.
        let _ = posix_fadvise(file, start, len, advice);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, range);
}

fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use nix::{
            errno::Errno,
            fcntl::{AT_FDCWD, RenameFlags, renameat2},
        };
        match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
            // Not all file systems can do it.
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

/// Reads `bytes.len()` bytes, or as many as there are.
#[cfg(unix)]
pub(in crate::store) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
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
pub(in crate::store) fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
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
pub(in crate::store) fn same_file_system(a: &Path, b: &Path) -> io::Result<bool> {
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
    // It does not change while the process runs.
    static BOOT: OnceLock<Option<u64>> = OnceLock::new();
    *BOOT.get_or_init(|| {
        let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok()?;
        let first = sha2::Sha256::digest(&id).first_chunk().copied()?;
        Some(u64::from_le_bytes(first))
    })
}

/// Locks of byte ranges between processes, which the kernel frees when a process dies.
///
/// They belong to the open file, and do not exclude the threads of a process that share it. On
/// other systems than Linux they always succeed. There is no call that waits for a lock: a process
/// that is stopped may hold it for days.
pub(in crate::store) mod ofd {
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

    pub(crate) fn unlock(file: &File, range: Range<u64>) {
        #[cfg(target_os = "linux")]
        {
            use nix::{fcntl, libc::F_UNLCK};
            if let Ok(lock) = ofd(range, F_UNLCK) {
                // Cannot fail for a range that was locked. Closing the file frees the lock too.
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
