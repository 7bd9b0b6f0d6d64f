//! The file system calls of the stores. All of them block.
//!
//! Calls that change or sync something go through a [`Disk`], so that tests can make each of them
//! fail, or simulate a power cut after it.

use std::{
    fmt,
    fs::{File, Metadata, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    ops::Range,
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use super::clock::Clock;
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
    pub(in crate::store) access: Access,
    /// The clock of the store. `None` is that of the system.
    pub(in crate::store) clock: Option<Arc<Clock>>,
    #[cfg(all(test, target_os = "linux"))]
    pub(in crate::store) simulated: Option<std::sync::Arc<super::file::simulated::Simulated>>,
}

/// A call that changes or syncs something.
#[derive(Clone, Copy, Debug)]
pub(in crate::store) enum Op<'a> {
    Create(&'a Path),
    CreateDir(&'a Path),
    Write(
        &'a File,
        #[cfg_attr(not(all(test, target_os = "linux")), allow(dead_code))] &'a [u8],
        #[cfg_attr(not(all(test, target_os = "linux")), allow(dead_code))] u64,
    ),
    /// From the position of the first file to an offset of the second one.
    Copy(
        #[cfg_attr(not(all(test, target_os = "linux")), allow(dead_code))] &'a File,
        &'a File,
        #[cfg_attr(not(all(test, target_os = "linux")), allow(dead_code))] u64,
        #[cfg_attr(not(all(test, target_os = "linux")), allow(dead_code))] u64,
    ),
    SetLen(&'a File, u64),
    Sync(&'a File),
    SyncDir(&'a Path),
    Rename(&'a Path, &'a Path),
    Link(&'a Path, &'a Path),
    Remove(&'a Path),
    RemoveDir(&'a Path),
}

/// What could not be done, if it fails.
impl fmt::Display for Op<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(path) => write!(f, "create {}", path.display()),
            Self::CreateDir(path) => write!(f, "create the folder {}", path.display()),
            Self::Write(file, ..) => write!(f, "write to {}", path_of(file).display()),
            Self::Copy(_, file, ..) => write!(f, "copy to {}", path_of(file).display()),
            Self::SetLen(file, len) => {
                write!(f, "set the length of {} to {len}", path_of(file).display())
            }
            Self::Sync(file) => write!(f, "sync {}", path_of(file).display()),
            Self::SyncDir(path) => write!(f, "sync the folder {}", path.display()),
            Self::Rename(from, to) => {
                write!(f, "rename {} to {}", from.display(), to.display())
            }
            Self::Link(from, to) => write!(f, "link {} to {}", from.display(), to.display()),
            Self::Remove(path) => write!(f, "remove {}", path.display()),
            Self::RemoveDir(path) => write!(f, "remove the folder {}", path.display()),
        }
    }
}

/// An error of the system, with what could not be done.
#[derive(Debug)]
struct Explained {
    what: String,
    error: io::Error,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not {}: {}", self.what, self.error)
    }
}

/// Its message contains that of the cause, because an [`io::Error`] is often printed alone.
impl std::error::Error for Explained {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

/// Adds to an error what could not be done. The kind stays the same.
pub(in crate::store) fn explain(error: io::Error, what: impl FnOnce() -> String) -> io::Error {
    if error.get_ref().is_some_and(|inner| inner.is::<Explained>()) {
        return error;
    }
    let what = what();
    io::Error::new(error.kind(), Explained { what, error })
}

/// Adds to an error what could not be done with a path.
pub(in crate::store) fn at(what: &str, path: &Path) -> impl FnOnce(io::Error) -> io::Error {
    move |error| explain(error, || format!("{what} {}", path.display()))
}

/// Adds to an error what could not be done with a file.
fn with(what: &str, file: &File) -> impl FnOnce(io::Error) -> io::Error {
    move |error| explain(error, || format!("{what} {}", path_of(file).display()))
}

/// The number of the error in the system, if it is an error of the system.
fn os_error(error: &io::Error) -> Option<i32> {
    let explained = error.get_ref().and_then(|inner| inner.downcast_ref());
    explained
        .map_or(error, |it: &Explained| &it.error)
        .raw_os_error()
}

/// Whether a name or a path is too long for the file system, or, on Windows, not valid.
pub(in crate::store) fn is_name_too_long(error: &io::Error) -> bool {
    // `ENAMETOOLONG`, which has no stable kind: of Linux, and of macOS and the BSDs. Windows has
    // one error for paths, and for names one that stands for any name that is not valid.
    let numbers: &[i32] = if cfg!(target_os = "linux") {
        &[36]
    } else if cfg!(unix) {
        &[63]
    } else {
        &[206, 123]
    };
    os_error(error).is_some_and(|number| numbers.contains(&number))
}

/// Whether the same call can never succeed.
pub(in crate::store) fn is_final(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, FileTooLarge, ReadOnlyFilesystem};
    // `EPERM`: unlike missing rights (`EACCES`), what cannot be done with this file.
    let is_not_permitted = cfg!(unix) && os_error(error) == Some(1);
    matches!(
        error.kind(),
        CrossesDevices | FileTooLarge | ReadOnlyFilesystem
    ) || is_not_permitted
        || is_name_too_long(error)
}

/// Whether an open file can never be used again, because its file system has ended: a process that
/// served it has died, or a server has forgotten the file. The file can be opened again when the
/// file system is back.
pub(in crate::store) fn is_stale(error: &io::Error) -> bool {
    use io::ErrorKind::{NotConnected, StaleNetworkFileHandle};
    matches!(error.kind(), NotConnected | StaleNetworkFileHandle)
}

/// The path of an open file, if the system knows it.
fn path_of(file: &File) -> PathBuf {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsRawFd as _;
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        if let Ok(path) = std::fs::read_link(link) {
            return path;
        }
    }
    let _ = file;
    PathBuf::from("a file of the store")
}

/// New files and folders are private to the owner.
impl Default for Disk {
    fn default() -> Self {
        Self {
            #[cfg(unix)]
            file_mode: 0o600,
            #[cfg(unix)]
            dir_mode: 0o700,
            access: Access::Unchecked,
            clock: None,
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
        match fault::step(name)? {
            Do::It => it().map_err(|error| explain(error, || op.to_string())),
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
    /// durable. See [`is_dir`](Self::is_dir) for the errors.
    #[track_caller]
    pub(in crate::store) fn create_dirs(&self, path: &Path, base: &Path) -> io::Result<()> {
        let Some(parent) = path.parent().filter(|_| path != base) else {
            return Ok(());
        };
        self.create_dirs(parent, base)?;
        self.make_dir(path)?;
        // Also of an existing folder: the process that created it may have died before this.
        self.sync_dir(parent)
    }

    /// Whether there is a folder. A link is an error and is not followed, and so is a folder that
    /// may not be used. Anything else is an error of the kind `NotADirectory`.
    pub(in crate::store) fn is_dir(&self, path: &Path) -> io::Result<bool> {
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(at("look at", path)(error)),
            Ok(metadata) if metadata.is_dir() => self.access.check(path, &metadata).map(|()| true),
            Ok(metadata) if metadata.is_symlink() => Err(is_link(path)),
            Ok(_) => Err(at("use the folder", path)(
                io::ErrorKind::NotADirectory.into(),
            )),
        }
    }

    /// Whether there is a folder. A link between it and `base` is an error.
    pub(in crate::store) fn is_dir_below(&self, path: &Path, base: &Path) -> io::Result<bool> {
        match path.parent().filter(|_| path != base) {
            Some(parent) => Ok(self.is_dir_below(parent, base)? && self.is_dir(path)?),
            None => Ok(true),
        }
    }

    /// Creates a folder, unless it exists. Returns whether it did. See [`is_dir`](Self::is_dir) for
    /// the errors.
    #[track_caller]
    pub(in crate::store) fn create_dir(&self, path: &Path) -> io::Result<bool> {
        if self.is_dir(path)? {
            return Ok(false);
        }
        self.make_dir(path)
    }

    /// Like [`create_dir`](Self::create_dir), for a folder that does not seem to exist.
    #[track_caller]
    fn make_dir(&self, path: &Path) -> io::Result<bool> {
        let it = || self.dir_builder().create(path);
        match self.call("create-dir", Op::CreateDir(path), || Ok(()), it) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.is_dir(path).map(|_| false)
            }
            result => result.map(|()| true),
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

    /// Copies the first `len` bytes of a file to `offset` of another one, in the kernel if that is
    /// possible. Both have no other user of their position.
    #[track_caller]
    pub(in crate::store) fn copy(
        &self,
        name: &'static str,
        from: &File,
        to: &File,
        offset: u64,
        len: u64,
    ) -> io::Result<()> {
        let op = Op::Copy(from, to, offset, len);
        self.call(name, op, || Ok(()), || copy(from, to, offset, len))
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
        self.call("link", Op::Link(from, to), || Ok(()), it)
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

    /// Whether a test simulates the disk.
    pub(in crate::store) fn is_simulated(&self) -> bool {
        #[cfg(all(test, target_os = "linux"))]
        return self.simulated.is_some();
        #[cfg(not(all(test, target_os = "linux")))]
        false
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

    /// The time that counts for the age of uploads.
    pub(in crate::store) fn now(&self) -> SystemTime {
        let system = self.system_now();
        let clock = self.clock.as_ref();
        clock.map_or(system, |clock| clock.now(system))
    }

    /// The clock of the system.
    pub(in crate::store) fn system_now(&self) -> SystemTime {
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

/// Opens a file for reading and writing. `None` if there is nothing. Links are not followed.
pub(in crate::store) fn open(path: &Path) -> io::Result<Option<File>> {
    open_with(OpenOptions::new().read(true).write(true), path)
}

/// Opens a file for reading. `None` if there is nothing. Links are not followed.
pub(in crate::store) fn open_to_read(path: &Path) -> io::Result<Option<File>> {
    open_with(OpenOptions::new().read(true), path)
}

fn open_with(options: &mut OpenOptions, path: &Path) -> io::Result<Option<File>> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.custom_flags(nix::libc::O_NOFOLLOW);
    }
    // The standard library does not know the number of that flag on other systems.
    #[cfg(not(target_os = "linux"))]
    if path.symlink_metadata().is_ok_and(|it| it.is_symlink()) {
        return Err(is_link(path));
    }
    let Some(file) = if_there(options.open(path)).map_err(at("open", path))? else {
        return Ok(None);
    };
    if !file.metadata().map_err(at("look at", path))?.is_file() {
        return Err(io::Error::other(format!(
            "{} is not a file",
            path.display()
        )));
    }
    Ok(Some(file))
}

fn is_link(path: &Path) -> io::Error {
    io::Error::other(format!("{} is a symbolic link", path.display()))
}

/// Whether an open file still has this name.
pub(in crate::store) fn has_name(file: &File, path: &Path) -> io::Result<bool> {
    use io::ErrorKind::{NotADirectory, NotFound};
    let named = match path.symlink_metadata() {
        Err(error) if matches!(error.kind(), NotFound | NotADirectory) => return Ok(false),
        named => named.map_err(at("look at", path))?,
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let file = file.metadata()?;
        Ok((named.dev(), named.ino()) == (file.dev(), file.ino()))
    }
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt as _;
        if !named.is_file() {
            return Ok(false);
        }
        // Without the right to read or write it, so that other programs do not mind. Links are not
        // followed.
        let mut options = OpenOptions::new();
        options.access_mode(0).custom_flags(OPEN_REPARSE_POINT);
        let named = match options.open(path) {
            // It was removed just now.
            Err(error) if error.kind() == NotFound => return Ok(false),
            named => named.map_err(at("look at", path))?,
        };
        Ok(number_of(&named)? == number_of(file)?)
    }
}

/// A flag of `CreateFileW`: a link itself is opened, not what it leads to.
#[cfg(windows)]
const OPEN_REPARSE_POINT: u32 = 0x0020_0000;

/// A flag of `CreateFileW`, without which it opens no folder.
#[cfg(windows)]
const BACKUP_SEMANTICS: u32 = 0x0200_0000;

/// The right to set times.
#[cfg(windows)]
const WRITE_ATTRIBUTES: u32 = 0x100;

/// What all names of a file have in common: the volume, and a number in it.
#[cfg(windows)]
fn number_of(file: &File) -> io::Result<(u64, u64)> {
    let found = winapi_util::file::information(file).map_err(with("look at", file))?;
    Ok((found.volume_serial_number(), found.file_index()))
}

/// The number of the file system of a path, if the system has one. Links are not followed.
pub(in crate::store) fn device(path: &Path) -> io::Result<Option<u64>> {
    let there = path.symlink_metadata()?;
    #[cfg(unix)]
    return Ok(Some(std::os::unix::fs::MetadataExt::dev(&there)));
    #[cfg(not(unix))]
    {
        let _ = there;
        Ok(None)
    }
}

/// Sets the modification time of a folder.
pub(in crate::store) fn set_dir_modified(path: &Path, time: SystemTime) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true);
    #[cfg(windows)]
    {
        use std::os::windows::fs::OpenOptionsExt as _;
        options
            .access_mode(WRITE_ATTRIBUTES)
            .custom_flags(BACKUP_SEMANTICS);
    }
    options.open(path)?.set_modified(time)
}

/// Which folders may be used, by who else can write to them.
#[derive(Clone, Debug)]
pub(in crate::store) enum Access {
    Unchecked,
    /// Folders that not all users can write to, and that belong to one of these users. `None` is
    /// any user.
    #[cfg(unix)]
    Checked {
        owners: Option<Vec<u32>>,
    },
}

impl Access {
    /// For folders below these, which exist or not.
    pub(in crate::store) fn of_process(above: &[PathBuf]) -> Self {
        #[cfg(target_os = "linux")]
        {
            use std::os::unix::fs::MetadataExt as _;
            let user = nix::unistd::geteuid().as_raw();
            let is_shared = |dir: &PathBuf| {
                let there = dir.symlink_metadata();
                there.is_ok_and(|there| there.is_dir() && there.mode() & 0o002 != 0)
            };
            // Root uses folders of other users on purpose, such as volumes of containers. But in a
            // folder that all users share, any of them can have made what is there.
            let owners = (user != 0 || above.iter().any(is_shared)).then(|| {
                // In a user namespace, root outside of it is another user: the owner of `/`.
                let root = std::fs::metadata("/").map_or(0, |root| root.uid());
                vec![user, 0, root]
            });
            Self::Checked { owners }
        }
        #[cfg(all(unix, not(target_os = "linux")))]
        {
            let _ = above;
            Self::Checked { owners: None }
        }
        #[cfg(not(unix))]
        {
            let _ = above;
            Self::Unchecked
        }
    }

    /// Checks a folder, or a link.
    pub(in crate::store) fn check(&self, path: &Path, there: &Metadata) -> io::Result<()> {
        #[cfg(unix)]
        if let Self::Checked { owners } = self {
            use std::os::unix::fs::MetadataExt as _;
            let denied = |why: String| Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
            let (owner, shown) = (there.uid(), path.display());
            if owners
                .as_ref()
                .is_some_and(|owners| !owners.contains(&owner))
            {
                return denied(format!(
                    "{shown} belongs to the user {owner}, who could replace what is stored: \
                     change its owner"
                ));
            }
            if there.is_dir() && there.mode() & 0o1002 == 0o002 {
                return denied(format!(
                    "all users can write to {shown}: set its mode to 0700, or to 0770 for a group"
                ));
            }
        }
        let _ = (path, there);
        Ok(())
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
        let stat = nix::sys::statvfs::statvfs(dir)
            .map_err(|error| at("read the free space of", dir)(error.into()))?;
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

/// Whether the sync of a folder fails if the file system of the folder is dead. That of XFS
/// succeeds. The sync of a file does not.
pub(in crate::store) fn sync_dir_fails(dir: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        use nix::sys::statfs::{EXT4_SUPER_MAGIC, TMPFS_MAGIC, statfs};
        let known = [EXT4_SUPER_MAGIC, TMPFS_MAGIC];
        statfs(dir).is_ok_and(|found| known.contains(&found.filesystem_type()))
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        false
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

fn copy(from: &File, mut to: &File, offset: u64, len: u64) -> io::Result<()> {
    to.seek(SeekFrom::Start(offset))?;
    match io::copy(&mut from.take(len), &mut to)? {
        copied if copied < len => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
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
            Err(error) => return Err(with("read", file)(error)),
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
        match std::os::windows::fs::FileExt::seek_read(file, &mut bytes[read..], at) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(error) => return Err(with("read", file)(error)),
        }
    }
    Ok(read)
}

/// Most bytes of a name in a folder, if the system says so.
pub(in crate::store) fn longest_name(dir: &Path) -> Option<usize> {
    #[cfg(target_os = "linux")]
    {
        let stat = nix::sys::statvfs::statvfs(dir).ok()?;
        usize::try_from(stat.name_max()).ok().filter(|len| *len > 0)
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = dir;
        None
    }
}

fn boot() -> Option<u64> {
    use sha2::Digest as _;
    if !cfg!(target_os = "linux") {
        return None;
    }
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
                Err(error) => Err(super::with("lock", file)(error.into())),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_file_has_its_names_and_no_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let file = Disk::default().create(&path("first")).unwrap();
        Disk::default()
            .link_new(&path("first"), &path("second"))
            .unwrap();
        std::fs::copy(path("first"), path("copy")).unwrap();
        std::fs::create_dir(path("folder")).unwrap();
        for (name, expected) in [
            ("first", true),
            ("second", true),
            ("copy", false),
            ("folder", false),
            ("none", false),
            ("none/below", false),
            ("first/below", false),
        ] {
            assert_eq!(has_name(&file, &path(name)).unwrap(), expected, "{name}");
        }
    }

    #[test]
    fn the_time_of_a_folder_is_set() {
        let dir = tempfile::tempdir().unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        set_dir_modified(dir.path(), time).unwrap();
        assert_eq!(dir.path().metadata().unwrap().modified().unwrap(), time);
    }

    #[test]
    fn a_name_that_no_file_can_have_is_recognised() {
        let dir = tempfile::tempdir().unwrap();
        // Wine says of a name that is too long that there is no such file.
        let name = if cfg!(windows) {
            "a?b".to_owned()
        } else {
            "x".repeat(256)
        };
        let error = Disk::default().create(&dir.path().join(name)).unwrap_err();
        assert!(is_name_too_long(&error), "{error}");
        let error = Disk::default()
            .create(&dir.path().join("none/x"))
            .unwrap_err();
        assert!(!is_name_too_long(&error), "{error}");
    }
}

#[cfg(all(test, target_os = "linux"))]
mod linux_tests {
    use nix::errno::Errno;

    use super::*;
    use crate::store::StoreError;

    /// With and without the words that say what could not be done.
    #[test]
    fn what_can_never_succeed_is_final() {
        for (errno, expected) in [
            (Errno::EFBIG, "impossible"),
            (Errno::ENAMETOOLONG, "impossible"),
            (Errno::EROFS, "impossible"),
            (Errno::EXDEV, "impossible"),
            (Errno::EPERM, "impossible"),
            (Errno::ENOSPC, "full"),
            (Errno::EDQUOT, "full"),
            (Errno::EACCES, "failed"),
            (Errno::EIO, "failed"),
            (Errno::ENOENT, "failed"),
            (Errno::EMFILE, "failed"),
        ] {
            let path = Path::new("/some/path");
            let explained = at("open", path)(errno.into());
            let said = explained.to_string();
            assert!(said.starts_with("could not open /some/path: "), "{said}");
            assert_eq!(at("other", path)(explained).to_string(), said);
            for error in [errno.into(), at("open", path)(errno.into())] {
                let found = match StoreError::from(error) {
                    StoreError::Impossible(_) => "impossible",
                    StoreError::Full(_) => "full",
                    StoreError::Failed(_) => "failed",
                    error => panic!("{error:?}"),
                };
                assert_eq!(found, expected, "{errno}");
            }
        }
    }

    #[test]
    fn calls_say_what_they_could_not_do() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, path) = (Disk::default(), dir.path().join("a/b"));
        let file = disk.create(&dir.path().join("file")).unwrap();
        let read_only = File::open(dir.path().join("file")).unwrap();
        let named = dir.path().join("file");
        let below = named.join("b");
        for (error, what, path) in [
            (disk.create(&path).unwrap_err(), "create", &path),
            (
                disk.create_dir(&path).unwrap_err(),
                "create the folder",
                &path,
            ),
            (disk.sync_dir(&path).unwrap_err(), "sync the folder", &path),
            (disk.rename_new(&path, &named).unwrap_err(), "rename", &path),
            (disk.link_new(&path, &named).unwrap_err(), "link", &path),
            (
                disk.remove_dir(&path).unwrap_err(),
                "remove the folder",
                &path,
            ),
            (open(&below).unwrap_err(), "open", &below),
            (
                disk.set_len(&file, u64::MAX).unwrap_err(),
                "set the length of",
                &named,
            ),
            (
                disk.write_all_at("write", &read_only, b"x", 0).unwrap_err(),
                "write to",
                &named,
            ),
        ] {
            let said = error.to_string();
            let expected = format!("could not {what} {}", path.display());
            assert!(said.starts_with(&expected), "{said}");
        }
    }
}
