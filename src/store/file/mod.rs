//! Uploads in the file system: one sparse file and one journal each, finished by a rename.

mod blocks;
mod chunk;
#[cfg(all(test, target_os = "linux"))]
mod crash;
mod disk;
mod entry;
mod finish;
mod folder;
mod journal;
mod room;
#[cfg(all(test, target_os = "linux"))]
mod scheduled;
#[cfg(all(test, target_os = "linux"))]
mod simulated;

#[cfg(feature = "object-store")]
pub(crate) use self::finish::NewFile;
pub(super) use self::finish::{copy, persist};

use std::{
    fmt,
    io::{self, Seek as _, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use self::{
    blocks::{BLOCK, Blocks},
    disk::Disk,
    entry::{Claim, Entry, Phase, View},
    folder::{Folder, tempfile_in},
    journal::Event,
    room::Room,
};
use super::{
    ChunkBody, Expiry, Progress, Sealed, Settlement, Spool, Status, Store, StoreError, Swept,
    TryClaim, Upload, UploadKey, unix_ms,
};

/// What an acknowledged chunk survives.
///
/// It is as good as the system's syncs. On Linux that is `fdatasync` of the files and `fsync` of the
/// folders, tried with power cuts on ext4 and XFS. On macOS it is `F_FULLFSYNC`, which goes through
/// the disk's cache, for files and folders. On Windows it is `FlushFileBuffers` of the files; there is no call
/// for folders, so a power cut may take back the name of a file that was just finished, and it is
/// then delivered again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// The death of the process, of the operating system, and a power cut, as far as file system
    /// and disk keep what they promise of a sync.
    #[default]
    Power,
    /// The death of the process. After a crash of the system or a power cut each chunk is checked
    /// against its checksum, and asked for again if it was lost. A finished file is durable all the
    /// same.
    Process,
}

type Naming = Arc<dyn Fn(&Upload) -> Option<PathBuf> + Send + Sync>;

/// Keeps uploads in a folder: the default store.
///
/// Each upload is one file that is written at the place where each chunk belongs, and a journal of
/// what is there. So nothing has to be put together when the last chunk has come: finishing is a
/// rename, whatever the size of the file.
///
/// Below the folder are `partial/`, for what is on its way, and `files/<id>/<name>`, where a
/// finished file is found under a safe version of its name. Several processes can share the folder
/// (on Linux). It must be on a local file system.
///
/// # Shared file systems
///
/// For several hosts take `ObjectStore` (feature `object-store`). This store
/// relies on three things that a shared file system may not have: locks of byte ranges that hold for
/// all hosts (`F_OFD_SETLK`), a rename that overwrites nothing (`RENAME_NOREPLACE`; where it is
/// missing, a hard link), and `fsync` that reaches the server, for folders too. This store was
/// not tried on any, so what follows is reasoned:
///
/// * CephFS: the locks hold for all clients, and are freed some time after one has died. It should be
///   safe, and slow: positional writes of several hosts to one file took three times as long as
///   files of their own when they were tried, and a folder's `fsync` is dear.
/// * NFSv4: the locks hold for all clients, but under a lease. A client that was cut off for longer loses its
///   locks without being told, and two hosts may deliver one file. There is no `RENAME_NOREPLACE`.
///   With one host at a time it is safe if the export is `sync`, and slower than a disk.
/// * NFSv3, SMB and what is mounted with `nolock` or `local_lock`: the locks hold for one host or not at
///   all. Not for several.
///
/// What it creates is private to the user of the process, unless
/// [`file_mode`](FileStoreBuilder::file_mode) and [`dir_mode`](FileStoreBuilder::dir_mode) say
/// otherwise. It follows no symbolic link in its folders: the folder itself is to be given by its
/// canonical path. Some of the file system [stays free](FileStoreBuilder::free_space_reserve).
///
/// ```
/// use tower_resumable::FileStore;
///
/// # let dir = tempfile::tempdir()?;
/// # let dir = dir.path();
/// let store = FileStore::open(dir)?;
/// assert!(dir.join("partial").is_dir());
///
/// // With folders and names of one's own:
/// let store = FileStore::builder(dir)
///     .finished_dir(dir.join("done"))
///     .naming(|upload| Some(format!("{}.bin", upload.identifier.len()).into()))
///     .free_space_reserve(10 << 30)
///     .open()?;
/// # let _ = store;
/// # Ok::<(), tower_resumable::StoreError>(())
/// ```
#[derive(Clone)]
pub struct FileStore {
    folder: Arc<Folder>,
}

/// Sets up a [`FileStore`]; made by [`FileStore::builder`].
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
    disk: Disk,
}

impl FileStore {
    /// A store in `dir`, which is created if it is not there.
    ///
    /// # Errors
    ///
    /// If the folders cannot be created or written to, are symbolic links, or everybody may put
    /// files there; see [`FileStoreBuilder::open`].
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::builder(dir).open()
    }

    /// A store in `dir` that is set up otherwise.
    pub fn builder(dir: impl AsRef<Path>) -> FileStoreBuilder {
        FileStoreBuilder {
            // "" is the working folder for the others too.
            root: Path::new(".").join(&dir),
            partial: dir.as_ref().join("partial"),
            finished: dir.as_ref().join("files"),
            durability: Durability::default(),
            naming: None,
            max_ranges: 10_000,
            reserve: None,
            stall: Duration::from_secs(5),
            disk: Disk::default(),
        }
    }
}

impl FileStoreBuilder {
    /// Where finished files go; `files` in the store's folder by default.
    pub fn finished_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.finished = dir.into();
        self
    }

    /// Where uploads are while they are on their way; `partial` in the store's folder by default.
    /// It must be on the same file system as the finished files.
    pub fn partial_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.partial = dir.into();
        self
    }

    /// What an acknowledged chunk survives; [`Durability::Power`] by default.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Chooses the name of a finished file: a path below the folder of finished files, or `None`
    /// for the default. What is there already is never overwritten: the file gets a number then, as
    /// in `name (1).txt`, and so does a folder whose name is a file's.
    ///
    /// What the client says of the file is not to be trusted:
    /// [`safe_file_name`](crate::safe_file_name) makes a name of it that is, and
    /// [`safe_relative_path`](crate::safe_relative_path) a path, for clients that send whole folders.
    /// A path that leads out of the folder, or through a symbolic link, fails the delivery.
    ///
    /// ```
    /// use std::path::Path;
    /// use tower_resumable::{FileStore, safe_file_name, safe_relative_path, store::Upload};
    ///
    /// /// The folders of the client, below one for each user.
    /// fn name(upload: &Upload) -> std::path::PathBuf {
    ///     let path = upload.relative_path.as_deref().or(upload.file_name.as_deref());
    ///     let user = safe_file_name(&upload.scope);
    ///     Path::new(&user).join(safe_relative_path(path.unwrap_or_default()))
    /// }
    ///
    /// # let dir = tempfile::tempdir()?;
    /// # let dir = dir.path();
    /// let store = FileStore::builder(dir).naming(|upload| Some(name(upload))).open()?;
    /// # let _ = store;
    /// # let upload = Upload {
    /// #     key: tower_resumable::store::UploadKey::from_bytes([0; 32]),
    /// #     scope: "alice".into(),
    /// #     identifier: "1".into(),
    /// #     total: 1,
    /// #     chunk_size: None,
    /// #     file_name: Some("a.jpg".into()),
    /// #     relative_path: Some("../photos/2024/a.jpg".into()),
    /// #     content_type: None,
    /// #     fields: Vec::new(),
    /// # };
    /// // Of a client that says `../photos/2024/a.jpg`:
    /// assert_eq!(name(&upload), Path::new("alice/photos/2024/a.jpg"));
    /// # Ok::<(), tower_resumable::StoreError>(())
    /// ```
    pub fn naming(
        mut self,
        naming: impl Fn(&Upload) -> Option<PathBuf> + Send + Sync + 'static,
    ) -> Self {
        self.naming = Some(Arc::new(naming));
        self
    }

    /// In how many pieces an upload may be stored; 10,000 by default. Chunks in order make one
    /// piece, however many they are.
    pub fn max_ranges(mut self, ranges: usize) -> Self {
        self.max_ranges = ranges;
        self
    }

    /// What the files get as their mode, those that are finished too; `0o600` by default: they are
    /// their owner's only.
    ///
    /// It is what is asked of the system for each new file: as everywhere, the process's umask
    /// takes from it. With the usual one of `0o022`, `0o660` becomes `0o640`. What is there
    /// already stays as it is.
    #[cfg(unix)]
    pub fn file_mode(mut self, mode: u32) -> Self {
        self.disk.file_mode = mode;
        self
    }

    /// What the folders get as their mode, for those that the store creates; `0o700` by default.
    /// The umask takes from it, as it does from [`file_mode`](Self::file_mode).
    ///
    /// Who may write in a folder can replace what is in it: nobody but the users of the store
    /// should.
    #[cfg(unix)]
    pub fn dir_mode(mut self, mode: u32) -> Self {
        self.disk.dir_mode = mode;
        self
    }

    /// How many bytes of the file system are to stay free, for whatever else needs them; by default
    /// 1 GiB, or 5 % of a file system that is smaller than 20 GiB.
    ///
    /// A chunk for which there is no room above that is refused with [`StoreError::Full`] before it
    /// is written, and so is the first chunk of a file that says to be larger than what is left, or
    /// for which there are not enough inodes. Clients try again later, as with a full disk. Room is
    /// looked for and not set aside: files on their way can together be larger than what is left, and
    /// other processes can take it.
    ///
    /// 0 switches all of that off: then the store is full when the system says so. It is the same on
    /// other systems than Linux, where the store cannot see what is free.
    pub fn free_space_reserve(mut self, bytes: u64) -> Self {
        self.reserve = Some(bytes);
        self
    }

    /// How long a chunk may bring nothing before another request for it takes over; 5 seconds by
    /// default.
    pub fn stall_timeout(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }

    /// The store.
    ///
    /// # Errors
    ///
    /// If the folders cannot be created or written to, or are on different file systems; if one of
    /// them, or the store's folder above them, is a symbolic link, or can be written to by everybody
    /// without being sticky as `/tmp` is; if a mode is none that the store can work with.
    pub fn open(mut self) -> Result<FileStore, StoreError> {
        for dir in [&mut self.root, &mut self.partial, &mut self.finished] {
            // A process may change its working folder. What ends with a slash is found behind links.
            *dir = std::path::absolute(&*dir)?.components().collect();
        }
        self.check_modes()?;
        self.check_folders()?;
        for dir in [&self.partial, &self.finished] {
            // What is above the root of them is the application's, or becomes durable with it.
            let base = dir.ancestors().skip(1).find(|dir| dir.is_dir());
            self.disk.create_dirs(dir, base.unwrap_or(dir))?;
            tempfile_in(&self.disk, dir)?;
        }
        if !disk::same_file_system(&self.partial, &self.finished)? {
            return Err(StoreError::new(format!(
                "{} and {} are on different file systems",
                self.partial.display(),
                self.finished.display()
            )));
        }
        Ok(FileStore {
            folder: Arc::new(Folder {
                partial: self.partial,
                finished: self.finished,
                disk: self.disk,
                durability: self.durability,
                naming: self.naming,
                max_ranges: self.max_ranges,
                room: Room::new(self.reserve),
                stall: self.stall,
                open: Mutex::default(),
                open_uploads: folder::open_uploads(disk::most_open_files()),
                blocks: Blocks::default(),
            }),
        })
    }

    fn check_modes(&self) -> Result<(), StoreError> {
        #[cfg(unix)]
        for (what, mode, least, most) in [
            ("file_mode", self.disk.file_mode, 0o600, 0o777),
            ("dir_mode", self.disk.dir_mode, 0o700, 0o775),
        ] {
            if mode & least != least || mode & !most != 0 {
                return Err(StoreError::new(format!(
                    "{what}({mode:#o}): it must have {least:#o}, and nothing but {most:#o}"
                )));
            }
        }
        Ok(())
    }

    /// Whether nobody else can put something into the folders, or others in their place; as far as
    /// they are there.
    fn check_folders(&self) -> Result<(), StoreError> {
        let parts = [&self.partial, &self.finished];
        let root = parts.iter().any(|part| part.starts_with(&self.root));
        for dir in root.then_some(&self.root).into_iter().chain(parts) {
            let there = match dir.symlink_metadata() {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                there => there?,
            };
            let shown = dir.display();
            if there.is_symlink() {
                return Err(StoreError::new(format!(
                    "{shown} is a symbolic link, and the store follows none: open it by its \
                     canonical path, as std::fs::canonicalize() gives it"
                )));
            }
            if disk::is_everybodys(&there) {
                return Err(StoreError::new(format!(
                    "{shown} can be written to by everybody: set its mode to 0700, or to 0770 for \
                     a group"
                )));
            }
        }
        Ok(())
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

/// The right to deliver one upload of a [`FileStore`].
#[derive(Debug)]
pub struct FileClaim(Claim);

impl Store for FileStore {
    type Claim = FileClaim;

    async fn put(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.receive(upload, offset, body).await
    }

    async fn status(&self, key: &UploadKey) -> Result<Status, StoreError> {
        let key = *key;
        self.blocking(move |folder| {
            Ok(match folder.find(&key)? {
                None => Status::Absent,
                Some((
                    _,
                    View {
                        phase: Phase::Settled(record),
                        ..
                    },
                )) => Status::Settled(record),
                Some((_, View { complete: true, .. })) => Status::Complete,
                Some((entry, _)) => Status::Receiving(entry.ranges()),
            })
        })
        .await
    }

    async fn try_claim(&self, key: &UploadKey) -> Result<TryClaim<FileClaim>, StoreError> {
        let key = *key;
        self.blocking(move |folder| {
            let Some((entry, view)) = folder.find(&key)? else {
                return Ok(TryClaim::Incomplete);
            };
            if let Phase::Settled(record) = view.phase {
                return Ok(TryClaim::Settled(record));
            }
            if !view.complete {
                return Ok(TryClaim::Incomplete);
            }
            let Some(claim) = entry.try_claim()? else {
                return Ok(TryClaim::Busy);
            };
            // Who had it before may have settled it.
            Ok(match entry.view()?.phase {
                Phase::Settled(record) => TryClaim::Settled(record),
                Phase::Removed => TryClaim::Incomplete,
                _ => TryClaim::Won(FileClaim(claim)),
            })
        })
        .await
    }

    async fn seal(&self, claim: &mut FileClaim, upload: &Upload) -> Result<Sealed, StoreError> {
        let (entry, upload) = (Arc::clone(&claim.0.entry), upload.clone());
        self.blocking(move |folder| folder.seal(&entry, upload))
            .await
    }

    async fn settle(
        &self,
        claim: &mut FileClaim,
        settlement: &Settlement,
    ) -> Result<(), StoreError> {
        let (record, rejected) = match settlement {
            Settlement::Delivered(record) => (record.clone(), false),
            Settlement::Rejected(record) => (record.clone(), true),
            Settlement::Released => return Ok(()),
        };
        let entry = Arc::clone(&claim.0.entry);
        self.blocking(move |folder| {
            match entry.view()?.phase {
                // A try before this one has done it after all.
                Phase::Settled(_) => return Ok(()),
                Phase::Sealed(seal) if rejected => folder.withdraw(&entry, &seal)?,
                _ => {}
            }
            entry.append(&[Event::Settled(record)], true)?;
            if rejected {
                // If that fails it is removed with the record.
                let _ = folder.disk.remove_if_there(&entry.data_path);
            }
            Ok(())
        })
        .await
    }

    async fn remove(&self, key: &UploadKey) -> Result<bool, StoreError> {
        let key = *key;
        let found = self.blocking(move |folder| {
            let Some((entry, view)) = folder.find(&key)? else {
                return Ok(None);
            };
            match view.phase {
                Phase::Settled(_) | Phase::Removed => Ok(None),
                _ => Ok(entry.try_claim()?),
            }
        });
        let Some(claim) = found.await? else {
            return Ok(false);
        };
        let landing = claim.entry.ground(self.folder.stall).await?;
        self.blocking(move |folder| folder.discard(&claim, &landing).map(|()| true))
            .await
    }

    async fn undelivered(&self) -> Result<Vec<Upload>, StoreError> {
        self.blocking(|folder| {
            let mut uploads = Vec::new();
            let is_waiting = |_: &Entry, view: &View| {
                Ok(view.complete && matches!(view.phase, Phase::Receiving | Phase::Sealed(_)))
            };
            folder.each(is_waiting, |_, entry, view| {
                match view.phase {
                    Phase::Sealed(seal) => uploads.push(seal.upload),
                    Phase::Receiving if view.complete => uploads.push(entry.created.clone()),
                    _ => {}
                }
                Ok(())
            })?;
            Ok(uploads)
        })
        .await
    }

    async fn unfinished(&self, scope: Option<&str>) -> Result<Vec<(Upload, Progress)>, StoreError> {
        let scope = scope.map(str::to_owned);
        self.blocking(move |folder| {
            let mut uploads = Vec::new();
            folder.each_as_it_seems(|entry, view| {
                let upload = match &view.phase {
                    Phase::Sealed(seal) => &seal.upload,
                    Phase::Receiving => &entry.created,
                    _ => return,
                };
                let progress = entry.progress();
                let wanted = scope.as_ref().is_none_or(|scope| upload.scope == *scope);
                if wanted && (progress.complete || progress.received > 0) {
                    uploads.push((upload.clone(), progress));
                }
            })?;
            Ok(uploads)
        })
        .await
    }

    async fn sweep(&self, expiry: Expiry) -> Result<Swept, StoreError> {
        self.blocking(move |folder| {
            let mut swept = Swept::default();
            let may_go = |entry: &Entry, view: &View| match view.phase {
                // Of these a close look takes away what is left.
                Phase::Removed => Ok(true),
                Phase::Receiving if !entry.has_data()? => Ok(true),
                _ => Ok(expired(entry, view, &expiry)?.is_some()),
            };
            folder.each(may_go, |folder, entry, view| {
                if let Some(counter) = expired(entry, &view, &expiry)? {
                    if folder.try_discard(entry, |_| true)? {
                        *counter(&mut swept) += 1;
                    }
                }
                Ok(())
            })?;
            folder.remove_orphans(expiry.abandoned_before)?;
            Ok(swept)
        })
        .await
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Spool, StoreError> {
        let bytes = body.exact_len().unwrap_or_default();
        let mut file = self
            .blocking(move |folder| {
                folder.room.for_bytes(&folder.partial, bytes)?;
                tempfile_in(&folder.disk, &folder.partial)
            })
            .await?;
        let mut block = Vec::new();
        loop {
            let piece = body.next().await.transpose()?;
            if let Some(piece) = &piece {
                block.extend_from_slice(piece);
            }
            let last = piece.is_none();
            if last || block.len() >= BLOCK {
                (file, block) = self
                    .blocking(move |_| {
                        file.write_all(&block)?;
                        block.clear();
                        if last {
                            file.rewind()?;
                        }
                        Ok((file, block))
                    })
                    .await?;
            }
            if last {
                return Ok(Spool::from_file(file));
            }
        }
    }
}

/// What an upload is counted as that has expired.
type Counter = fn(&mut Swept) -> &mut u64;

fn expired(entry: &Entry, view: &View, expiry: &Expiry) -> io::Result<Option<Counter>> {
    let touched = entry.last_touch(view)?;
    let before = |time: SystemTime| touched < unix_ms(time);
    let (counter, has_expired): (Counter, _) = match &view.phase {
        Phase::Settled(record) => (
            |swept| &mut swept.records,
            record.expires < expiry.records_before,
        ),
        _ if view.complete => (
            |swept| &mut swept.undelivered,
            expiry.undelivered_before.is_some_and(before),
        ),
        _ => (
            |swept| &mut swept.abandoned,
            before(expiry.abandoned_before),
        ),
    };
    Ok(has_expired.then_some(counter))
}

impl FileStore {
    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Folder) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let folder = Arc::clone(&self.folder);
        tokio::task::spawn_blocking(move || folder.disk.work(|| work(&folder)))
            .await
            .map_err(StoreError::new)?
    }
}
