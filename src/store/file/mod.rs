//! A store in the file system. Each upload is one sparse file and one journal, and is finished by a
//! hard link.

mod append;
mod blocks;
mod chunk;
#[cfg(all(test, target_os = "linux"))]
mod crash;
mod entry;
mod finish;
mod folder;
mod journal;
mod open;
mod room;
mod scan;
#[cfg(all(test, target_os = "linux"))]
pub(super) mod scheduled;
mod settings;
#[cfg(all(test, target_os = "linux"))]
pub(super) mod simulated;
mod stored;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    io::Seek as _,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;

pub use self::settings::Durability;
use self::{
    blocks::{BLOCK, Blocks},
    entry::{Claim, Entry, Phase, Retries},
    folder::{Folder, is_damage},
    journal::Event,
    room::Room,
    settings::Naming,
};
use super::{
    Append, Capabilities, ChunkBody, Claimed, Content, Expiry, Filter, Observed, Observer, Page,
    Progress, Record, Sealed, Status, Store, StoreError, Swept, Usage,
    clock::Clock,
    disk::{self, Disk},
};
use crate::{
    model::upload::{Upload, UploadId},
    span,
};

/// How many of the 256 folders of uploads one thread sweeps. The tests that simulate a disk number
/// its calls, so they have one thread.
const PART: usize = if cfg!(test) { 256 } else { 64 };

/// Keeps uploads in a folder: the default store.
///
/// Each upload is one file, into which each chunk is written at its place, and a journal of what is
/// stored. Nothing has to be assembled when the last chunk has arrived: the file gets its final
/// name, whatever its size.
///
/// The folder contains `partial/`, for uploads that are not finished, and `files/<id>/<name>`, for
/// finished files under a [safe](crate::safe_file_name) version of their name. On Linux, several
/// processes can share the folder. It has to be on a local file system.
///
/// What the store creates is private to the user of the process, unless
/// [`with_file_mode`](FileStoreBuilder::with_file_mode) and
/// [`with_dir_mode`](FileStoreBuilder::with_dir_mode) say otherwise. The store follows no symbolic
/// link in its folders: open the folder by its canonical path. A part of the file system [stays
/// free](FileStoreBuilder::with_free_space_reserve).
///
/// The file of a delivery has a [path](super::Stored::path). To move it to a folder on the same
/// file system is a rename. Until its upload is settled, the file has a second name below
/// `partial/`: if the application has moved the file and then fails, the next attempt gets it
/// again. So do not change the bytes of the file before the answer. Folders of finished files that
/// become empty are removed.
///
/// # Damaged files
///
/// A bad file or folder affects its own upload only. Lists and sweeps pass over what they cannot
/// read, and report it as [`StoreEvent::Skipped`](super::StoreEvent::Skipped).
///
/// A damaged journal, one that has the name of another upload, one whose data are gone, data of
/// another length than was stored, and a folder in place of a file are set aside as
/// `<id>.<random>.broken`, and reported as
/// [`StoreEvent::SetAside`](super::StoreEvent::SetAside). The upload begins anew: it is absent
/// until its next chunk. A file that was set aside is swept after the time for abandoned uploads.
/// A folder that was set aside is never removed.
///
/// What may be readable later stays where it is: files without permission, links, and files of
/// another version of this crate. Requests for their uploads fail, and can be retried.
///
/// # Several processes
///
/// A request waits for another process at most some seconds: for one that is appending to the
/// journal of the same upload, or has locked the same range. Then it fails with
/// [`StoreError::Busy`], and can be retried. So a process that is stopped affects only the uploads
/// that it was writing to.
///
/// An [append](Store::append) that another process wants to end records no more bytes from then on,
/// and ends within half a second. Of its last 8 MiB those are lost that it had not recorded. If it
/// cannot end, because its process is stopped, [`interrupt`](Store::interrupt) still answers, and a
/// new append is [`Busy`](StoreError::Busy) until that process goes on or dies.
///
/// # Appends
///
/// Appends are possible to uploads that [`create`](Store::create) has made: their journals are of
/// version 2 of the format, which older versions of this crate leave alone. An append to another
/// upload is [`Unsupported`](StoreError::Unsupported). [`concat`](Store::concat) copies the parts
/// in the kernel, where the system can do that.
///
/// # Clocks
///
/// The age of an upload is measured with the time in which the store was in use. If the clock of
/// the system jumps ahead, no upload becomes old at once, and no record is kept longer. Of the time
/// in which no process used the store, one hour counts.
///
/// # Shared file systems
///
/// For several hosts use `BucketStore` (feature `object-store`). `FileStore` needs three things
/// that a shared file system may not have: locks of byte ranges that hold for all hosts
/// (`F_OFD_SETLK`), hard links (or else a rename that overwrites nothing, `RENAME_NOREPLACE`), and
/// an `fsync` that reaches the server, for folders too. It has not been tested on any shared file
/// system. The following is derived from their documentation:
///
/// * CephFS: the locks hold for all clients, and are freed some time after a client has died. It
///   should be safe, and slow: in a test, positional writes of several hosts to one file took three
///   times as long as writes to separate files, and the `fsync` of a folder is expensive.
/// * NFSv4: the locks hold for all clients, but under a lease. A client that is cut off for longer
///   than the lease loses its locks without an error, and two hosts may deliver one file. There is
///   no `RENAME_NOREPLACE`. With one host at a time it is safe if the export is `sync`, and slower
///   than a disk.
/// * NFSv3, SMB, and mounts with `nolock` or `local_lock`: the locks hold for one host, or not at
///   all. Do not use them for several hosts.
///
/// # Examples
///
/// ```
/// use tower_resumable::FileStore;
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileStore::open(dir)?;
/// assert!(dir.join("partial").is_dir());
///
/// // With other folders and names:
/// let store = FileStore::builder(dir)
///     .with_finished_dir(dir.join("done"))
///     .with_naming(|upload| Some(format!("{}.bin", upload.id).into()))
///     .with_free_space_reserve(10 << 30)
///     .open()?;
/// assert!(dir.join("done").is_dir());
/// # let _ = store;
/// # Ok::<(), tower_resumable::store::StoreError>(())
/// ```
#[derive(Clone)]
pub struct FileStore {
    folder: Arc<Folder>,
}

impl FileStore {
    /// Opens a store in `dir`, which is created if it does not exist.
    ///
    /// # Errors
    ///
    /// See [`FileStoreBuilder::open`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::builder(dir).open()
    }

    /// Returns the settings of a store in `dir`, to be changed.
    pub fn builder(dir: impl AsRef<Path>) -> FileStoreBuilder {
        FileStoreBuilder {
            // An empty path is the working folder, as for the other two.
            root: Path::new(".").join(&dir),
            partial: dir.as_ref().join("partial"),
            finished: dir.as_ref().join("files"),
            durability: Durability::default(),
            naming: None,
            max_ranges: 10_000,
            reserve: None,
            stall: Duration::from_secs(5),
            unchecked_permissions: false,
            disk: Disk::default(),
        }
    }

    /// Runs `work` on a thread for blocking work.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let folder = Arc::clone(&self.folder);
        let work = move || folder.disk.work(|| work(&folder));
        span::spawn_blocking(work).await.map_err(StoreError::new)?
    }

    /// Runs `work` on all folders of uploads, a part of them on each of several threads, because
    /// one thread waits for the disk most of the time.
    async fn in_parts<T, W>(&self, work: W) -> Result<Vec<T>, StoreError>
    where
        T: Send + 'static,
        W: Fn(&Folder, RangeInclusive<u8>) -> Result<T, StoreError> + Clone + Send + 'static,
    {
        let mut tasks = Vec::new();
        for first in (0..=u8::MAX).step_by(PART) {
            let (folder, work) = (Arc::clone(&self.folder), work.clone());
            let shards = first..=first + (PART - 1) as u8;
            let part = move || folder.disk.work(|| work(&folder, shards));
            tasks.push(span::spawn_blocking(part));
        }
        let mut parts = Vec::new();
        for task in tasks {
            parts.push(task.await.map_err(StoreError::new)??);
        }
        Ok(parts)
    }

    /// Like [`blocking`](Self::blocking), but repeats `work` for a while if another process holds a
    /// lock. The pauses take no thread.
    async fn retried<T: Send + 'static>(
        &self,
        mut work: impl FnMut(&Folder) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let mut retries = Retries::default();
        loop {
            let result;
            let once = self.blocking(move |folder| {
                let result = work(folder);
                Ok((work, result))
            });
            (work, result) = once.await?;
            match result {
                Err(StoreError::Busy) => retries.pause().await?,
                result => return result,
            }
        }
    }
}

impl Store for FileStore {
    type Claim = FileClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        let upload = upload.clone();
        self.retried(move |folder| {
            loop {
                let entry = folder.entry_for(&upload, true)?;
                if upload.contradicts(&entry.status().upload) {
                    return Err(StoreError::Conflict);
                }
                match entry.confirm() {
                    // Another request has removed it meanwhile.
                    _ if entry.is_removed() => {}
                    Ok(()) => return Ok(entry.status()),
                    Err(error) => {
                        folder.undo_create(&entry);
                        return Err(error);
                    }
                }
            }
        })
        .await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let written = self.receive(upload, offset, body, false).await;
        written.map(|(progress, _)| progress)
    }

    async fn write_and_claim(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<(Progress, Option<FileClaim>), StoreError> {
        self.receive(upload, offset, body, true).await
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        let id = *id;
        self.retried(move |folder| Ok(folder.find(&id)?.map(|(entry, _)| entry.status())))
            .await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<FileClaim>, StoreError> {
        let (store, upload) = (self.clone(), upload.clone());
        self.retried(move |folder| {
            let Some((entry, view)) = folder.find(&upload.id)? else {
                return Ok(Claimed::Incomplete);
            };
            if let Phase::Settled { record, .. } = view.phase {
                return Ok(Claimed::Settled(record));
            }
            if !view.complete {
                return Ok(Claimed::Incomplete);
            }
            let Some(claim) = entry.try_claim()? else {
                return Ok(Claimed::Busy);
            };
            // The request that had the claim before may have settled or removed the upload.
            match entry.view()?.phase {
                Phase::Settled { record, .. } => return Ok(Claimed::Settled(record)),
                Phase::Removed => return Ok(Claimed::Incomplete),
                Phase::Receiving | Phase::Sealed { .. } => {}
            }
            let sealed = match folder.seal(&entry, upload.clone()) {
                Err(error) if is_damage(&error) => {
                    folder.set_data_aside(&claim, &error)?;
                    return Ok(Claimed::Incomplete);
                }
                sealed => sealed?,
            };
            Ok(Claimed::Won(FileClaim::new(&store, claim, sealed)))
        })
        .await
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        let id = *id;
        let found = self.retried(move |folder| {
            let Some((entry, view)) = folder.find(&id)? else {
                return Ok(None);
            };
            match view.phase {
                Phase::Settled { .. } | Phase::Removed => Ok(None),
                Phase::Receiving | Phase::Sealed { .. } => Ok(entry.try_claim()?),
            }
        });
        let Some(claim) = found.await? else {
            return Ok(false);
        };
        if claim.entry.takes_appends {
            claim.entry.end_append_elsewhere().await?;
        }
        let lock = claim.entry.lock_whole(self.folder.stall).await?;
        self.retried(move |folder| {
            let unsettled = |entry: &Entry| !entry.is_settled();
            folder.discard(&claim, &lock, unsettled)
        })
        .await
    }

    async fn forget_rejection(&self, id: &UploadId) -> Result<bool, StoreError> {
        let id = *id;
        self.blocking(move |folder| match folder.look(&id)? {
            Some((entry, view)) if view.is_rejected() => folder.try_discard(&entry, |_| true),
            _ => Ok(false),
        })
        .await
    }

    async fn forget(&self, id: &UploadId) -> Result<bool, StoreError> {
        let id = *id;
        self.blocking(move |folder| match folder.look(&id)? {
            Some((entry, view)) if matches!(view.phase, Phase::Settled { .. }) => {
                folder.try_discard(&entry, |_| true)
            }
            _ => Ok(false),
        })
        .await
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        let (filter, after) = (filter.clone(), after.copied());
        self.blocking(move |folder| folder.list(&filter, after.as_ref()))
            .await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        let expiry = *expiry;
        let parts = self.in_parts(move |folder, shards| folder.sweep(&expiry, shards));
        let sum = |mut sum: Swept, part: Swept| {
            sum.abandoned += part.abandoned;
            sum.undelivered += part.undelivered;
            sum.records += part.records;
            sum
        };
        Ok(parts.await?.into_iter().fold(Swept::default(), sum))
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        Ok(self.in_parts(Folder::usage).await?.concat())
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            append: true,
            concat: true,
        }
    }

    async fn interrupt(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.end_append(id).await
    }

    async fn append(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.receive_append(upload, append, body).await
    }

    async fn concat(&self, upload: &Upload, parts: &[UploadId]) -> Result<Progress, StoreError> {
        self.join(upload, parts).await
    }

    fn observe(&self, observer: Observer) {
        self.folder.observed.set(observer);
    }

    /// Keeps a short body in memory, and a longer one in a file without a name.
    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Content, StoreError> {
        let declared = body.exact_len();
        let (mut file, mut block) = (None, Vec::new());
        loop {
            let piece = body.next().await.transpose()?;
            if let Some(piece) = &piece {
                block.extend_from_slice(piece);
            }
            let last = piece.is_none();
            if !last && block.len() < BLOCK {
                continue;
            }
            if last && file.is_none() {
                return Ok(Bytes::from(block).into());
            }
            let (written, room);
            (written, room, block) = self
                .blocking(move |folder| {
                    let (mut file, mut room) = match file {
                        Some(begun) => begun,
                        None => {
                            let mut room = folder.room.reservation();
                            room.grow(&folder.partial, declared.unwrap_or_default())?;
                            (folder.spool_file()?, room)
                        }
                    };
                    if declared.is_none() {
                        room.grow(&folder.partial, block.len() as u64)?;
                    }
                    folder.spool_block(&mut file, &block)?;
                    room.written(block.len() as u64);
                    block.clear();
                    if last {
                        file.rewind()?;
                    }
                    Ok((file, room, block))
                })
                .await?;
            if last {
                return Ok(Content::from(written));
            }
            file = Some((written, room));
        }
    }
}

/// The right to deliver one upload of a [`FileStore`].
#[derive(Debug)]
pub struct FileClaim {
    store: FileStore,
    /// `None` when it has ended.
    claim: Option<Claim>,
    sealed: Sealed,
}

impl FileClaim {
    fn new(store: &FileStore, claim: Claim, sealed: Sealed) -> Self {
        Self {
            store: store.clone(),
            claim: Some(claim),
            sealed,
        }
    }
}

impl super::Claim for FileClaim {
    fn sealed(&self) -> &Sealed {
        &self.sealed
    }

    async fn settle(&mut self, record: &Record) -> Result<(), StoreError> {
        let claim = self.claim.as_ref().ok_or(StoreError::Superseded)?;
        let (entry, mut record) = (Arc::clone(&claim.entry), record.clone());
        let folder = &self.store.folder;
        record.expires = folder.clock.of(record.expires, folder.disk.system_now());
        let settle = self.store.retried(move |folder| {
            if !record.delivered {
                if let Phase::Sealed { seal, .. } = entry.view()?.phase {
                    folder.withdraw(&entry, &seal)?;
                }
            }
            let is_sealed = |entry: &Entry| matches!(entry.phase(), Phase::Sealed { .. });
            let settled = entry.append_claimed(&[Event::Settled(record.clone())], is_sealed)?;
            let Phase::Settled { seal, .. } = entry.phase() else {
                return Err(StoreError::Superseded);
            };
            if !settled {
                // An earlier call has failed after it had settled the upload.
                return Ok(());
            }
            // If this fails, a sweep does it. Until then lists read the journal.
            let _ = folder.file_record(&entry, &record);
            // If this fails, the data file is removed with the record.
            let _ = folder.disk.remove_if_there(&entry.data_path);
            // The application may have moved the file.
            folder.trim(&seal);
            // The space of a file that the application removes is free only if it is not open.
            folder.close(&entry);
            Ok(())
        });
        settle.await?;
        self.claim = None;
        Ok(())
    }
}

/// Settings of a [`FileStore`], made by [`FileStore::builder`].
#[must_use]
pub struct FileStoreBuilder {
    root: PathBuf,
    partial: PathBuf,
    finished: PathBuf,
    durability: Durability,
    naming: Option<Naming>,
    max_ranges: usize,
    reserve: Option<u64>,
    stall: Duration,
    unchecked_permissions: bool,
    disk: Disk,
}

impl FileStoreBuilder {
    /// Sets the folder of finished files. Default: `files` in the folder of the store.
    ///
    /// It has to be below the same mount as the folder of partial uploads.
    pub fn with_finished_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.finished = dir.into();
        self
    }

    /// Sets the folder of partial uploads. Default: `partial` in the folder of the store.
    pub fn with_partial_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.partial = dir.into();
        self
    }

    /// Sets what a stored chunk survives. Default: [`Durability::Power`].
    pub fn with_durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Sets how finished files are named: a path below the folder of finished files, or `None` for
    /// the default name.
    ///
    /// An existing file is never overwritten: the new one gets a number, as in `name (1).txt`. A
    /// folder gets a number too if a file has its name.
    ///
    /// Do not use the texts of the client unchanged. [`safe_file_name`](crate::safe_file_name)
    /// makes a safe name of them, and [`safe_relative_path`](crate::safe_relative_path) a safe
    /// path, for clients that send whole folders. With a path that leads out of the folder, or
    /// through a symbolic link, the delivery fails.
    ///
    /// ```
    /// use std::path::{Path, PathBuf};
    /// use tower_resumable::{
    ///     FileStore, Scope, Upload, UploadId, safe_file_name, safe_relative_path,
    /// };
    ///
    /// /// The folders of the client, below one folder for each user.
    /// fn name(upload: &Upload) -> PathBuf {
    ///     let path = upload.relative_path.as_deref().or(upload.file_name.as_deref());
    ///     let user = safe_file_name(upload.scope.as_str());
    ///     Path::new(&user).join(safe_relative_path(path.unwrap_or_default()))
    /// }
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path();
    /// let store = FileStore::builder(dir).with_naming(|upload| Some(name(upload))).open()?;
    /// # let _ = store;
    ///
    /// let scope = Scope::new("alice");
    /// let mut upload = Upload::new(UploadId::new(&scope, ["1"]), scope, Some(1));
    /// upload.relative_path = Some("../photos/2024/a.jpg".into());
    /// assert_eq!(name(&upload), Path::new("alice/photos/2024/a.jpg"));
    /// # Ok::<(), tower_resumable::store::StoreError>(())
    /// ```
    pub fn with_naming(
        mut self,
        naming: impl Fn(&Upload) -> Option<PathBuf> + Send + Sync + 'static,
    ) -> Self {
        self.naming = Some(Arc::new(naming));
        self
    }

    /// Sets the most ranges in which an upload may be stored. Default: 10,000. At least 1.
    ///
    /// Chunks in order make one range, whatever their number. A chunk that would make too many is
    /// rejected with [`StoreError::TooManyRanges`].
    pub fn with_max_ranges(mut self, ranges: usize) -> Self {
        self.max_ranges = ranges.max(1);
        self
    }

    /// Sets the mode of all files, also of finished ones. Default: `0o600`, private to the owner.
    ///
    /// The system takes the umask of the process from it: with a umask of `0o022`, `0o660` becomes
    /// `0o640`. Existing files are not changed. [`open`](Self::open) fails if the owner cannot read
    /// and write, or if it has other bits than those of `0o777`.
    #[cfg(unix)]
    pub fn with_file_mode(mut self, mode: u32) -> Self {
        self.disk.file_mode = mode;
        self
    }

    /// Sets the mode of the folders that the store creates. Default: `0o700`, private to the owner.
    ///
    /// The umask is taken from it, as with [`with_file_mode`](Self::with_file_mode). A user who can
    /// write to a folder can replace the files in it. [`open`](Self::open) fails if the owner has
    /// not all rights, or if it has other bits than those of `0o775`.
    #[cfg(unix)]
    pub fn with_dir_mode(mut self, mode: u32) -> Self {
        self.disk.dir_mode = mode;
        self
    }

    /// Sets how many bytes of the file system stay free. Default: 1 GiB, or 5 % of a file system
    /// that is smaller than 20 GiB.
    ///
    /// A chunk that would use the reserve is rejected with [`StoreError::Full`] before it is
    /// written. So is the first chunk of a file that declares to be larger than the free space, or
    /// for which there are not enough inodes. Clients try again later, as with a full disk.
    ///
    /// A body reserves its declared length until it is written or has failed. A body without a
    /// declared length reserves each block before it is written. So bodies that arrive at the same
    /// time do not use the reserve together. No space is reserved for the rest of an upload: all
    /// uploads together can declare more than there is. Other processes can use what is reserved:
    /// stores of several processes on one folder see only what the others have written.
    ///
    /// 0 turns the check off: then the store is full when the system says so. The check works on
    /// Linux only.
    pub fn with_free_space_reserve(mut self, bytes: u64) -> Self {
        self.reserve = Some(bytes);
        self
    }

    /// Sets how long the body of a chunk may yield nothing before another request for the same
    /// bytes takes over. Default: 5 seconds. At most one year.
    ///
    /// An [append](Store::append) ends at once when a newer one begins.
    pub fn with_stall_timeout(mut self, stall: Duration) -> Self {
        const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);
        self.stall = stall.min(YEAR);
        self
    }

    /// Does not check who owns the folders, and who else can write to them. Default: they are
    /// checked.
    ///
    /// For file systems that show owners and modes that do not apply, such as those of Docker
    /// Desktop, WSL, SMB and many in user space, and for folders whose owner is another user that
    /// is trusted. Make sure by other means that no other user can write to the folders: such a
    /// user could replace what is stored.
    pub fn with_unchecked_permissions(mut self) -> Self {
        self.unchecked_permissions = true;
        self
    }

    /// Opens the store. Creates its folders if they do not exist.
    ///
    /// Does each step of a delivery with an empty upload, so that a store that opens can deliver.
    /// This takes milliseconds.
    ///
    /// # Errors
    ///
    /// The source of the error says which step failed, on which path, and what to do.
    ///
    /// * The folders cannot be created or written to, or are below different mounts.
    /// * The file system has no locks, or can give a file no second name without replacing another.
    /// * One of them, or the folder of the store above them, is a symbolic link.
    /// * Another user could replace what is stored: a folder, or one above or below it, belongs to
    ///   another user, or all users can write to it and it is not sticky as `/tmp` is. See
    ///   [`with_unchecked_permissions`](Self::with_unchecked_permissions). The owner is checked on
    ///   Linux. The user of the process, root, and the owner of `/` are trusted. A process of root
    ///   trusts all owners, unless the folder is below one in which all users can create folders.
    /// * A mode is not valid.
    pub fn open(mut self) -> Result<FileStore, StoreError> {
        for dir in [&mut self.root, &mut self.partial, &mut self.finished] {
            // The process may change its working folder. The components have no slash at the end,
            // after which a link would be followed.
            let absolute = std::path::absolute(&*dir).map_err(disk::at("find", dir))?;
            *dir = absolute.components().collect();
        }
        self.check_modes()?;
        self.check_folders()?;
        self.create_folders()?;
        // Now that they exist, the file system may show other modes than those they were given.
        self.check_folders()?;
        let found = self.try_delivery()?;
        let seen = folder::last_seen(&self.partial);
        let clock = Arc::new(Clock::new(self.disk.system_now(), seen));
        self.disk.clock = Some(Arc::clone(&clock));
        let device = disk::device(&self.partial).map_err(disk::at("look at", &self.partial))?;
        Ok(FileStore {
            folder: Arc::new(Folder {
                clock,
                device,
                marked: Mutex::default(),
                durable_shards: Mutex::default(),
                observed: Observed::default(),
                partial: self.partial,
                finished: self.finished,
                disk: self.disk,
                durability: self.durability,
                naming: self.naming,
                longest_name: found.longest_name,
                has_links: found.has_links,
                sync_dir_fails: found.sync_dir_fails,
                max_ranges: self.max_ranges,
                room: Room::new(self.reserve),
                stall: self.stall,
                open: Mutex::default(),
                open_uploads: folder::open_uploads(disk::most_open_files()),
                blocks: Blocks::default(),
            }),
        })
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore")
            .field("partial", &self.folder.partial)
            .field("finished", &self.folder.finished)
            .field("durability", &self.folder.durability)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for FileStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStoreBuilder")
            .field("partial", &self.partial)
            .field("finished", &self.finished)
            .finish_non_exhaustive()
    }
}
