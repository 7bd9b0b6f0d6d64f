//! Uploads in the file system: one sparse file and one journal each, finished by a rename.

mod disk;
mod entry;
mod journal;

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    io::{Seek as _, Write as _},
    ops::Range,
    path::{Component, Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use self::{
    entry::{Claim, Entry, Landing, Phase, Seal, View},
    journal::Event,
};
use super::{
    ChunkBody, Expiry, Location, Progress, Sealed, Settlement, Spool, Status, Store, StoreError,
    Swept, TryClaim, Upload, UploadKey, random_id, unix_ms,
};
use crate::upload::safe_file_name;

/// Bytes are gathered into blocks of this size before they are written.
const BLOCK: usize = 256 << 10;

/// How long to wait before looking again whether a removed upload is gone.
const REMOVAL: Duration = Duration::from_millis(1);

/// Blocks that are kept for the next chunk.
const SPARE_BLOCKS: usize = 32;

/// Uploads whose files stay open when nobody uses them.
const OPEN_UPLOADS: usize = 1024;

/// What an acknowledged chunk survives.
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
///     .open()?;
/// # Ok::<(), tower_resumable::StoreError>(())
/// ```
#[derive(Clone)]
pub struct FileStore {
    shared: Arc<Shared>,
}

struct Shared {
    partial: PathBuf,
    finished: PathBuf,
    durability: Durability,
    naming: Option<Naming>,
    max_ranges: usize,
    stall: Duration,
    open: Mutex<HashMap<UploadKey, Arc<Entry>>>,
    blocks: Mutex<Vec<Vec<u8>>>,
}

/// Sets up a [`FileStore`]; made by [`FileStore::builder`].
#[must_use]
pub struct FileStoreBuilder {
    partial: PathBuf,
    finished: PathBuf,
    durability: Durability,
    naming: Option<Naming>,
    max_ranges: usize,
    stall: Duration,
}

impl FileStore {
    /// A store in `dir`, which is created if it is not there.
    ///
    /// # Errors
    ///
    /// If the folders cannot be created or written to.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::builder(dir).open()
    }

    /// A store in `dir` that is set up otherwise.
    pub fn builder(dir: impl AsRef<Path>) -> FileStoreBuilder {
        FileStoreBuilder {
            partial: dir.as_ref().join("partial"),
            finished: dir.as_ref().join("files"),
            durability: Durability::default(),
            naming: None,
            max_ranges: 10_000,
            stall: Duration::from_secs(5),
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
    /// in `name (1).txt`.
    ///
    /// What the client says of the file is not to be trusted:
    /// [`safe_file_name`](crate::safe_file_name) makes a name of it that is. A path that leads
    /// out of the folder fails the delivery.
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
    /// If the folders cannot be created or written to, or are on different file systems.
    pub fn open(self) -> Result<FileStore, StoreError> {
        for dir in [&self.partial, &self.finished] {
            disk::create_dir(dir)?;
            tempfile_in(dir)?;
        }
        if !disk::same_file_system(&self.partial, &self.finished)? {
            return Err(StoreError::new(format!(
                "{} and {} are on different file systems",
                self.partial.display(),
                self.finished.display()
            )));
        }
        Ok(FileStore {
            shared: Arc::new(Shared {
                partial: self.partial,
                finished: self.finished,
                durability: self.durability,
                naming: self.naming,
                max_ranges: self.max_ranges,
                stall: self.stall,
                open: Mutex::default(),
                blocks: Mutex::default(),
            }),
        })
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore")
            .field("partial", &self.shared.partial)
            .field("finished", &self.shared.finished)
            .field("durability", &self.shared.durability)
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
        // Most chunks that are no good are so before there is anything on disk.
        let mut first = self.shared.spare_block();
        let mut ended = false;
        while !ended && first.len() < BLOCK {
            match body.next().await.transpose()? {
                Some(piece) => first.extend_from_slice(&piece),
                None => ended = true,
            }
        }
        let max_len = if ended {
            first.len() as u64
        } else {
            body.max_len()
        };
        let range = offset..offset.saturating_add(max_len);
        let (entry, landing) = self.take_off(upload, range.clone()).await?;
        let rubbish = Rubbish {
            store: self,
            entry: &entry,
            done: false,
        };
        let result = self.fill(&entry, landing, range, &first, ended, body).await;
        self.shared.give_back(first);
        match result {
            Ok(()) => rubbish.keep(),
            Err(_) => rubbish.remove().await,
        }
        result.map(|()| entry.progress())
    }

    async fn status(&self, key: &UploadKey) -> Result<Status, StoreError> {
        let key = *key;
        self.blocking(move |shared| {
            Ok(match shared.find(&key)? {
                None => Status::Absent,
                Some((
                    _,
                    View {
                        phase: Phase::Settled(record),
                        ..
                    },
                )) => Status::Settled(record),
                Some((_, View { complete: true, .. })) => Status::Complete,
                Some((_, view)) => Status::Receiving(view.ranges.to_set()),
            })
        })
        .await
    }

    async fn try_claim(&self, key: &UploadKey) -> Result<TryClaim<FileClaim>, StoreError> {
        let key = *key;
        self.blocking(move |shared| {
            let Some((entry, view)) = shared.find(&key)? else {
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
        self.blocking(move |shared| shared.seal(&entry, upload))
            .await
    }

    async fn settle(&self, claim: FileClaim, settlement: Settlement) -> Result<(), StoreError> {
        let (record, rejected) = match settlement {
            Settlement::Delivered(record) => (record, false),
            Settlement::Rejected(record) => (record, true),
            Settlement::Released => return Ok(()),
        };
        self.blocking(move |shared| {
            let entry = &claim.0.entry;
            let file = match entry.view()?.phase {
                Phase::Sealed(seal) => Some(shared.finished.join(seal.path)),
                _ => None,
            };
            entry.append(&[Event::Settled(record)], false)?;
            if let Some(file) = file.filter(|_| rejected) {
                shared.remove_finished(&file)?;
            }
            Ok(())
        })
        .await
    }

    async fn remove(&self, key: &UploadKey) -> Result<bool, StoreError> {
        let key = *key;
        let found = self.blocking(move |shared| {
            let Some((entry, view)) = shared.find(&key)? else {
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
        let landing = claim.entry.ground(self.shared.stall).await?;
        self.blocking(move |shared| shared.discard(&claim, &landing).map(|()| true))
            .await
    }

    async fn undelivered(&self) -> Result<Vec<UploadKey>, StoreError> {
        self.blocking(|shared| {
            let mut keys = Vec::new();
            shared.each(|_, entry, view| {
                if view.complete && !matches!(view.phase, Phase::Settled(_)) {
                    keys.push(entry.created.key);
                }
                Ok(())
            })?;
            Ok(keys)
        })
        .await
    }

    async fn sweep(&self, expiry: Expiry) -> Result<Swept, StoreError> {
        self.blocking(move |shared| {
            let mut swept = Swept::default();
            shared.each(|shared, entry, view| {
                let before = |time: SystemTime| view.touched < unix_ms(time);
                let (counter, expired) = match &view.phase {
                    Phase::Settled(record) => {
                        (&mut swept.records, record.expires < expiry.records_before)
                    }
                    _ if view.complete => (
                        &mut swept.undelivered,
                        expiry.undelivered_before.is_some_and(before),
                    ),
                    _ => (&mut swept.abandoned, before(expiry.abandoned_before)),
                };
                if expired && shared.try_discard(entry, |_| true)? {
                    *counter += 1;
                }
                Ok(())
            })?;
            shared.remove_orphans(expiry.abandoned_before)?;
            Ok(swept)
        })
        .await
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Spool, StoreError> {
        let mut file = self.blocking(|shared| tempfile_in(&shared.partial)).await?;
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

/// The next of `body`, unless `stop` ends first.
async fn unless<T>(
    stop: impl Future<Output = ()>,
    next: impl Future<Output = T>,
) -> Result<T, StoreError> {
    let (mut stop, mut next) = (std::pin::pin!(stop), std::pin::pin!(next));
    std::future::poll_fn(|cx| {
        if stop.as_mut().poll(cx).is_ready() {
            return std::task::Poll::Ready(Err(StoreError::Superseded));
        }
        next.as_mut().poll(cx).map(Ok)
    })
    .await
}

impl FileStore {
    /// The upload, created if it is new, and the right to write a range of it.
    async fn take_off(
        &self,
        upload: &Upload,
        range: Range<u64>,
    ) -> Result<(Arc<Entry>, Landing), StoreError> {
        loop {
            let upload = upload.clone();
            let entry = self
                .blocking(move |shared| shared.entry_for(&upload))
                .await?;
            let landing = entry.take_off(range.clone(), self.shared.stall).await?;
            // What was removed meanwhile begins anew.
            if !entry.is_removed() {
                return Ok((entry, landing));
            }
        }
    }

    /// Writes `first`, and unless the body has `ended` what follows, into a range.
    async fn fill(
        &self,
        entry: &Arc<Entry>,
        landing: Landing,
        range: Range<u64>,
        first: &[u8],
        ended: bool,
        body: &mut ChunkBody<'_>,
    ) -> Result<(), StoreError> {
        let landing = Arc::new(landing);
        let (gaps, ranges) = entry.gaps(&range);
        if !gaps.is_empty() && ranges > self.shared.max_ranges {
            return Err(StoreError::TooManyRanges);
        }
        let mut chunk = ChunkWriter {
            store: self,
            entry,
            landing: &landing,
            at: range.start,
            gaps: gaps.into(),
            block: Vec::new(),
            block_at: 0,
            written: Vec::new(),
        };
        chunk.push(first).await?;
        if !ended {
            while let Some(piece) = unless(landing.superseded(), body.next())
                .await?
                .transpose()?
            {
                landing.piece_came();
                chunk.push(&piece).await?;
            }
        }
        chunk.finish().await
    }

    /// Runs `work` where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let shared = Arc::clone(&self.shared);
        tokio::task::spawn_blocking(move || work(&shared))
            .await
            .map_err(StoreError::new)?
    }
}

/// An upload that a chunk may have created in vain.
struct Rubbish<'a> {
    store: &'a FileStore,
    entry: &'a Arc<Entry>,
    done: bool,
}

impl Rubbish<'_> {
    fn keep(mut self) {
        self.done = true;
    }

    async fn remove(mut self) {
        self.done = true;
        let entry = Arc::clone(self.entry);
        // What cannot be removed now is swept later.
        let _ = self
            .store
            .blocking(move |s| s.try_discard(&entry, Entry::is_empty))
            .await;
    }
}

/// The request was dropped.
impl Drop for Rubbish<'_> {
    fn drop(&mut self) {
        if let (false, Ok(runtime)) = (self.done, tokio::runtime::Handle::try_current()) {
            let (shared, entry) = (Arc::clone(&self.store.shared), Arc::clone(self.entry));
            runtime.spawn_blocking(move || shared.try_discard(&entry, Entry::is_empty));
        }
    }
}

/// Puts the bytes of one chunk where they belong, as far as they are not there yet.
struct ChunkWriter<'a> {
    store: &'a FileStore,
    entry: &'a Arc<Entry>,
    landing: &'a Arc<Landing>,
    /// Where in the file the next byte belongs.
    at: u64,
    gaps: VecDeque<Range<u64>>,
    /// Bytes of the first gap, not written yet.
    block: Vec<u8>,
    block_at: u64,
    /// What is written, and its CRC-32.
    written: Vec<(Range<u64>, u32)>,
}

impl ChunkWriter<'_> {
    async fn push(&mut self, mut piece: &[u8]) -> Result<(), StoreError> {
        while let (false, Some(gap)) = (piece.is_empty(), self.gaps.front().cloned()) {
            if self.at < gap.start {
                let known = usize::try_from(gap.start - self.at).unwrap_or(usize::MAX);
                let known = known.min(piece.len());
                self.skip(&mut piece, known);
                continue;
            }
            if self.block.is_empty() {
                self.block_at = self.at;
                self.block = self.store.shared.spare_block();
            }
            // Blocks end at multiples of their size in the file.
            let room = BLOCK - (self.at % BLOCK as u64) as usize;
            let left = usize::try_from(gap.end - self.at).unwrap_or(usize::MAX);
            let take = piece.len().min(left).min(room);
            self.block.extend_from_slice(&piece[..take]);
            self.skip(&mut piece, take);
            let gap_is_full = self.at == gap.end;
            if gap_is_full {
                self.gaps.pop_front();
            }
            // The last block of a chunk is written together with its syncs.
            let more = !(gap_is_full && self.gaps.is_empty());
            if more && (gap_is_full || take == room) {
                self.write().await?;
            }
        }
        self.at += piece.len() as u64;
        Ok(())
    }

    fn skip(&mut self, piece: &mut &[u8], len: usize) {
        *piece = &piece[len..];
        self.at += len as u64;
    }

    /// Writes the block.
    async fn write(&mut self) -> Result<(), StoreError> {
        let block = std::mem::take(&mut self.block);
        let (entry, landing) = (Arc::clone(self.entry), Arc::clone(self.landing));
        let at = self.block_at;
        let _writing = self.entry.writing.lock().await;
        let crc = self
            .store
            .blocking(move |shared| {
                // Even if the request is gone: nobody else may write here before this is done.
                let _landing = landing;
                let crc = write_block(&entry, &block, at)?;
                shared.give_back(block);
                Ok((at..at + crc.1, crc.0))
            })
            .await?;
        self.written.push(crc);
        Ok(())
    }

    /// Writes the rest, makes it durable and says so in the journal.
    async fn finish(self) -> Result<(), StoreError> {
        if self.block.is_empty() && self.written.is_empty() {
            return Ok(());
        }
        let (entry, landing) = (Arc::clone(self.entry), Arc::clone(self.landing));
        let Self {
            block,
            block_at: at,
            mut written,
            ..
        } = self;
        let _writing = match block.is_empty() {
            true => None,
            false => Some(self.entry.writing.lock().await),
        };
        self.store
            .blocking(move |shared| {
                let _landing = landing;
                if !block.is_empty() {
                    let (crc, len) = write_block(&entry, &block, at)?;
                    written.push((at..at + len, crc));
                    shared.give_back(block);
                }
                if let (Durability::Power, Some(data)) = (shared.durability, &entry.data) {
                    data.sync_data()?;
                }
                let joined = joined(&written);
                let events: Vec<_> = joined
                    .iter()
                    .map(|(piece, crc)| entry.stored(piece, *crc))
                    .collect();
                entry.append(&events, false)
            })
            .await
    }
}

fn write_block(entry: &Entry, block: &[u8], at: u64) -> io::Result<(u32, u64)> {
    let data = entry.data.as_ref().ok_or(io::ErrorKind::NotFound)?;
    disk::write_all_at(data, block, at)?;
    Ok((crc32fast::hash(block), block.len() as u64))
}

/// Pieces that follow each other, as one.
fn joined(pieces: &[(Range<u64>, u32)]) -> Vec<(Range<u64>, u32)> {
    let mut joined: Vec<(Range<u64>, u32)> = Vec::new();
    for (piece, crc) in pieces {
        match joined.last_mut() {
            Some((last, last_crc)) if last.end == piece.start => {
                let mut hasher = crc32fast::Hasher::new_with_initial(*last_crc);
                let len = piece.end - piece.start;
                hasher.combine(&crc32fast::Hasher::new_with_initial_len(*crc, len));
                *last_crc = hasher.finalize();
                last.end = piece.end;
            }
            _ => joined.push((piece.clone(), *crc)),
        }
    }
    joined
}

/// What blocks.
impl Shared {
    fn open_entries(&self) -> MutexGuard<'_, HashMap<UploadKey, Arc<Entry>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spare_block(&self) -> Vec<u8> {
        self.blocks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give_back(&self, mut block: Vec<u8>) {
        let mut blocks = self.blocks.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() < SPARE_BLOCKS {
            block.clear();
            blocks.push(block);
        }
    }

    fn journal_path(&self, key: &UploadKey) -> PathBuf {
        let name = key.to_string();
        self.partial
            .join(&name[..2])
            .join(format!("{name}.journal"))
    }

    /// The upload, created if it is new or its record has expired.
    fn entry_for(&self, upload: &Upload) -> Result<Arc<Entry>, StoreError> {
        loop {
            if let Some((entry, view)) = self.look(&upload.key)? {
                match view.phase {
                    Phase::Settled(record) if record.expires <= SystemTime::now() => {
                        self.try_discard(&entry, |_| true)?;
                    }
                    _ => return Ok(entry),
                }
            }
            self.create(upload)?;
        }
    }

    /// The upload, if there is one and its record has not expired.
    fn find(&self, key: &UploadKey) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        Ok(self.look(key)?.filter(|(_, view)| match &view.phase {
            Phase::Settled(record) => record.expires > SystemTime::now(),
            _ => true,
        }))
    }

    /// The upload, if there is one.
    fn look(&self, key: &UploadKey) -> Result<Option<(Arc<Entry>, View)>, StoreError> {
        loop {
            let known = self.open_entries().get(key).cloned();
            let entry = match known {
                Some(entry) => entry,
                None => match self.open(key)? {
                    Some(entry) => self.keep_open(entry),
                    None => return Ok(None),
                },
            };
            let view = entry.view()?;
            if !matches!(view.phase, Phase::Removed) {
                return Ok(Some((entry, view)));
            }
            self.close(&entry);
            match entry.try_claim()? {
                // Who has removed it has died before its files were gone.
                Some(claim) => self.unlink(&claim)?,
                None => std::thread::sleep(REMOVAL),
            }
        }
    }

    fn open(&self, key: &UploadKey) -> Result<Option<Arc<Entry>>, StoreError> {
        let journal_path = self.journal_path(key);
        let journal = match disk::open(&journal_path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            journal => journal?,
        };
        let durable = self.durability == Durability::Power;
        let entry = Entry::open(journal_path, journal, durable)?;
        if durable {
            // What is visible need not be durable; and what is trusted is acknowledged.
            entry.make_names_durable()?;
        }
        Ok(Some(Arc::new(entry)))
    }

    /// The entry that this process uses from now on.
    fn keep_open(&self, entry: Arc<Entry>) -> Arc<Entry> {
        let mut open = self.open_entries();
        if open.len() >= OPEN_UPLOADS {
            open.retain(|_, entry| Arc::strong_count(entry) > 1);
        }
        Arc::clone(open.entry(entry.created.key).or_insert(entry))
    }

    fn close(&self, entry: &Arc<Entry>) {
        let mut open = self.open_entries();
        if open
            .get(&entry.created.key)
            .is_some_and(|known| Arc::ptr_eq(known, entry))
        {
            open.remove(&entry.created.key);
        }
    }

    /// Creates the upload, unless another request was faster.
    fn create(&self, upload: &Upload) -> Result<(), StoreError> {
        let journal_path = self.journal_path(&upload.key);
        disk::create_dir(journal_path.parent().unwrap_or(&self.partial))?;
        let id = random_id()?;
        let data_path = entry::data_path(&journal_path, &id);
        // Whole before it has its name: racers agree on one.
        let temporary = journal_path.with_extension(format!("{id}.new"));
        let create = || {
            let journal = disk::create(&temporary)?;
            let created = Event::Created {
                upload: upload.clone(),
                id: id.clone(),
            };
            let header = created.encode(0, unix_ms(SystemTime::now()));
            disk::write_all_at(&journal, &header, 0)?;
            journal.set_len((header.len() as u64).next_multiple_of(4096))?;
            if self.durability == Durability::Power {
                journal.sync_all()?;
            }
            disk::create(&data_path)?;
            disk::rename_new(&temporary, &journal_path)
        };
        let result: io::Result<()> = create();
        if result.is_err() {
            disk::remove_if_there(&temporary)?;
            disk::remove_if_there(&data_path)?;
        }
        match result {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error.into()),
            _ => Ok(()),
        }
    }

    /// Gives the file its final name, the first time, and counts an attempt.
    fn seal(&self, entry: &Arc<Entry>, upload: Upload) -> Result<Sealed, StoreError> {
        let seal = match entry.view()?.phase {
            Phase::Receiving => self.choose_name(entry, upload, 1)?,
            Phase::Sealed(mut seal) => {
                seal.attempt += 1;
                entry.append(&[Event::Attempt(seal.attempt)], true)?;
                seal
            }
            Phase::Settled(_) | Phase::Removed => return Err(StoreError::Superseded),
        };
        let seal = self.publish(entry, seal)?;
        Ok(Sealed {
            id: entry.id.clone(),
            location: Location::File(self.finished.join(&seal.path)),
            upload: seal.upload,
            attempt: seal.attempt,
            crc32: Some(seal.crc),
        })
    }

    /// Writes down which name the file shall have, before it has it: after a crash it is found.
    fn choose_name(&self, entry: &Entry, upload: Upload, attempt: u32) -> Result<Seal, StoreError> {
        let data = entry
            .data
            .as_ref()
            .ok_or_else(|| StoreError::new("the data are gone"))?;
        let crc = entry.crc().filter(|_| {
            data.metadata()
                .is_ok_and(|metadata| metadata.len() == entry.total())
        });
        let crc = crc.ok_or_else(|| StoreError::new("the data are not of the right size"))?;
        let chosen = self.naming.as_ref().and_then(|naming| naming(&upload));
        let default = || {
            let name = safe_file_name(upload.file_name.as_deref().unwrap_or_default());
            Path::new(&entry.id).join(name)
        };
        let path = free_name(&self.finished, chosen.unwrap_or_else(default))?;
        let event = Event::Sealed {
            path: path.clone(),
            upload: upload.clone(),
            crc,
        };
        entry.append(&[event], true)?;
        Ok(Seal {
            path,
            upload,
            crc,
            attempt,
        })
    }

    /// Renames the file, if that is still to be done, and makes the name durable.
    fn publish(&self, entry: &Entry, mut seal: Seal) -> Result<Seal, StoreError> {
        let Some(data) = &entry.data else {
            return Ok(seal);
        };
        data.sync_all()?;
        loop {
            let path = self.finished.join(&seal.path);
            let dir = path.parent().unwrap_or(&self.finished);
            disk::create_dir(dir)?;
            match disk::rename_new(&entry.data_path, &path) {
                Ok(()) => {}
                // Somebody else's: the data file has still its old name.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    seal = self.choose_name(entry, seal.upload, seal.attempt)?;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            disk::sync_dir(dir)?;
            disk::sync_dir(entry.data_path.parent().unwrap_or(&self.partial))?;
            // XFS says of a folder that it is synced when the file system is down; of a file it
            // does not.
            data.sync_data()?;
            return Ok(seal);
        }
    }

    /// Removes an upload if nobody is busy with it and it is still as `wanted`.
    fn try_discard(
        &self,
        entry: &Arc<Entry>,
        wanted: impl Fn(&Entry) -> bool,
    ) -> Result<bool, StoreError> {
        let Some(claim) = entry.try_claim()? else {
            return Ok(false);
        };
        let Some(landing) = entry.try_ground()? else {
            return Ok(false);
        };
        entry.view()?;
        let wanted = wanted(entry);
        if wanted {
            self.discard(&claim, &landing)?;
        }
        Ok(wanted)
    }

    /// Removes an upload, and its file if nobody has taken it. Nobody else may deliver it or write.
    fn discard(&self, claim: &Claim, _landing: &Landing) -> Result<(), StoreError> {
        let entry = &claim.entry;
        let unclaimed_file = match entry.view()?.phase {
            Phase::Sealed(seal) => Some(self.finished.join(seal.path)),
            Phase::Removed => return Ok(()),
            _ => None,
        };
        // Others who have it open are told before its name can be another upload's.
        entry.append(&[Event::Removed], false)?;
        self.close(entry);
        if let Some(file) = unclaimed_file {
            self.remove_finished(&file)?;
        }
        self.unlink(claim)
    }

    /// Removes the files of a removed upload. Only with its claim, and the journal last: so its
    /// name is nobody else's before, and nobody does it twice.
    fn unlink(&self, claim: &Claim) -> Result<(), StoreError> {
        let entry = &claim.entry;
        if let Ok(journal) = disk::open(&entry.journal_path) {
            if first_id(&journal)?.is_some_and(|id| id == entry.id) {
                disk::remove_if_there(&entry.data_path)?;
                disk::remove_if_there(&entry.journal_path)?;
            }
        }
        Ok(())
    }

    fn remove_finished(&self, file: &Path) -> Result<(), StoreError> {
        disk::remove_if_there(file)?;
        if let Some(dir) = file.parent().filter(|dir| *dir != self.finished) {
            // Not if the application has put something there.
            let _ = std::fs::remove_dir(dir);
        }
        Ok(())
    }

    /// Looks at every upload.
    fn each(
        &self,
        mut see: impl FnMut(&Self, &Arc<Entry>, View) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for path in self.partial_files()? {
            let is_journal = path
                .extension()
                .is_some_and(|extension| extension == "journal");
            let name = path.file_stem().and_then(|name| name.to_str());
            let key = name.filter(|_| is_journal).and_then(UploadKey::from_hex);
            if let Some((entry, view)) = key.map(|key| self.look(&key)).transpose()?.flatten() {
                see(self, &entry, view)?;
            }
        }
        Ok(())
    }

    /// Removes what a process has left that died while it created or removed an upload.
    fn remove_orphans(&self, before: SystemTime) -> Result<(), StoreError> {
        for path in self.partial_files()? {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            let parts: Vec<_> = name.split('.').collect();
            let (key, id) = match parts[..] {
                [key, id, "new" | "data"] => (UploadKey::from_hex(key), id),
                _ => continue,
            };
            let touched = path.metadata().and_then(|metadata| metadata.modified());
            let Some(key) = key.filter(|_| touched.is_ok_and(|touched| touched < before)) else {
                continue;
            };
            let owner = self.look(&key)?;
            if owner.is_none_or(|(entry, _)| entry.id != id) {
                disk::remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// All files below the folder of partial uploads.
    fn partial_files(&self) -> Result<Vec<PathBuf>, StoreError> {
        let mut files = Vec::new();
        for dir in std::fs::read_dir(&self.partial)? {
            let dir = dir?.path();
            if dir.is_dir() {
                for file in std::fs::read_dir(dir)? {
                    files.push(file?.path());
                }
            }
        }
        Ok(files)
    }
}

fn first_id(journal: &std::fs::File) -> io::Result<Option<String>> {
    let mut id = None;
    journal::read(journal, 0, 0, |entry| {
        if let Event::Created { id: first, .. } = entry.event {
            id.get_or_insert(first);
        }
        Ok(())
    })?;
    Ok(id)
}

/// A path below `dir` at which there is nothing, like `wanted`.
fn free_name(dir: &Path, wanted: PathBuf) -> Result<String, StoreError> {
    let inside = wanted
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    let (Some(text), Some(stem), true) = (
        wanted.to_str(),
        wanted.file_stem().and_then(|stem| stem.to_str()),
        inside,
    ) else {
        return Err(StoreError::new(format!(
            "no name for a finished file: {wanted:?}"
        )));
    };
    let extension = wanted.extension().and_then(|extension| extension.to_str());
    let extension = extension.map_or(String::new(), |extension| format!(".{extension}"));
    let mut candidate = text.to_owned();
    for number in 1u32.. {
        // A link that leads nowhere is in the way too.
        if dir.join(&candidate).symlink_metadata().is_err() {
            break;
        }
        let name = format!("{stem} ({number}){extension}");
        candidate = match wanted
            .parent()
            .and_then(Path::to_str)
            .filter(|p| !p.is_empty())
        {
            Some(parent) => format!("{parent}/{name}"),
            None => name,
        };
    }
    Ok(candidate)
}

/// A file without a name.
fn tempfile_in(dir: &Path) -> Result<std::fs::File, StoreError> {
    let path = dir.join(format!("{}.tmp", random_id()?));
    let file = disk::create(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// See [`CompletedUpload::persist`](crate::CompletedUpload::persist).
pub(super) fn persist(location: &Location, to: &Path) -> io::Result<()> {
    let parent = to
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    if let Location::File(from) = location {
        match disk::rename_new(from, to) {
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {}
            Err(error) => return Err(error),
            Ok(()) => {
                disk::sync_dir(parent)?;
                return disk::sync_dir(from.parent().unwrap_or(Path::new(".")));
            }
        }
    }
    // Whole before it has its name.
    let id = random_id().map_err(io::Error::other)?;
    let temporary = parent.join(format!(".{id}.tmp"));
    let copied = disk::create(&temporary).and_then(|mut copy| {
        match location {
            Location::File(from) => drop(io::copy(&mut std::fs::File::open(from)?, &mut copy)?),
            Location::Memory(bytes) => copy.write_all(bytes)?,
        }
        copy.sync_all()?;
        disk::rename_new(&temporary, to)
    });
    if let Err(error) = copied {
        disk::remove_if_there(&temporary)?;
        return Err(error);
    }
    disk::sync_dir(parent)?;
    match location {
        Location::File(from) => std::fs::remove_file(from),
        Location::Memory(_) => Ok(()),
    }
}
