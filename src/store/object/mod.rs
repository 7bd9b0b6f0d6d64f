//! Uploads in an object store: many servers, and nothing beside it to operate.

mod blocks;
mod bucket;
mod check;
mod claim;
mod clock;
mod finish;
mod info;
mod keys;
mod known;
mod layout;
mod put;
mod stored;
mod sweep;
#[cfg(test)]
mod tests;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use object_store::{multipart::MultipartStore, path::Path};

pub(crate) use self::stored::ObjectStream;
use self::{
    blocks::Memory,
    bucket::Bucket,
    clock::Clock,
    info::{Info, Phase},
    keys::Keys,
    known::{Known, Locks},
    layout::Limits,
    put::Extent,
};
pub use self::{claim::ObjectClaim, stored::StoredObject};
use super::{
    ChunkBody, Expiry, Progress, Sealed, Settlement, Spool, Status, Store, StoreError, Swept,
    TryClaim, Upload, UploadKey,
};

/// Keeps uploads in an object store that many servers share.
///
/// It takes any engine of the crate [`object_store`] that has multipart uploads: Amazon S3 and what
/// is compatible with it, Azure, Google Cloud Storage. Choose the engine by that crate's features.
///
/// ```
/// use std::sync::Arc;
/// use tower_resumable::{ObjectStore, ResumableLayer};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // In production, with object_store's feature `aws`:
/// //     object_store::aws::AmazonS3Builder::from_env().with_bucket_name("uploads").build()?
/// let engine = object_store::memory::InMemory::new();
/// let store = ObjectStore::open(Arc::new(engine)).await?;
/// let layer = ResumableLayer::new(store);
/// # Ok::<_, tower_resumable::StoreError>(())
/// # }).unwrap();
/// ```
#[derive(Clone)]
pub struct ObjectStore {
    inner: Arc<Inner>,
}

/// Sets up an [`ObjectStore`]; made by [`ObjectStore::builder`].
#[must_use]
pub struct ObjectStoreBuilder {
    bucket: Bucket,
    prefix: String,
    lease: Duration,
    limits: Limits,
    max_buffered: u64,
    self_test: bool,
}

struct Inner {
    bucket: Bucket,
    keys: Keys,
    limits: Limits,
    lease: Duration,
    memory: Memory,
    clock: Clock,
    known: Known,
    /// Held open by requests that write to an upload, closed by what sweeps it.
    gates: Locks<UploadKey, tokio::sync::RwLock<()>>,
    /// For who is about to create an upload.
    beginnings: Locks<UploadKey, tokio::sync::Mutex<()>>,
    slots: Locks<(UploadKey, usize), tokio::sync::Mutex<()>>,
    claims: Mutex<Claims>,
}

/// The claims that this process knows of without asking.
#[derive(Debug, Default)]
struct Claims {
    /// Ids of uploads that somebody here has claimed.
    held: HashSet<String>,
    /// Ids of uploads that another server has claimed, and when it was asked.
    busy: HashMap<String, Instant>,
    /// Claims, by id and number, that were given back here.
    given_back: HashSet<(String, u32)>,
}

impl ObjectStore {
    /// A store in a bucket, with the defaults, tested.
    ///
    /// # Errors
    ///
    /// If the engine does not answer, or does not keep what is relied on: see
    /// [`self_test`](ObjectStoreBuilder::self_test).
    pub async fn open<T>(engine: Arc<T>) -> Result<Self, StoreError>
    where
        T: object_store::ObjectStore + MultipartStore,
    {
        Self::builder(engine).open().await
    }

    /// A store that is set up otherwise.
    pub fn builder<T>(engine: Arc<T>) -> ObjectStoreBuilder
    where
        T: object_store::ObjectStore + MultipartStore,
    {
        ObjectStoreBuilder {
            bucket: Bucket::new(engine),
            prefix: String::new(),
            lease: Duration::from_secs(30),
            limits: Limits::default(),
            max_buffered: 512 << 20,
            self_test: true,
        }
    }
}

impl ObjectStoreBuilder {
    /// Below which prefix all objects are, such as `"uploads"`. Default: none.
    ///
    /// Servers that share uploads must have the same one; others can share the bucket with another.
    pub fn prefix(self, prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        Self { prefix, ..self }
    }

    /// How long the right to deliver an upload outlives its server. Default: 30 s.
    ///
    /// A live server renews it at a third of the time, however long the delivery takes. When a
    /// server dies in a delivery, another one can take that over afterwards. Engines tell the time in
    /// whole seconds, so less than 5 s makes no sense in production.
    pub fn lease(self, lease: Duration) -> Self {
        Self { lease, ..self }
    }

    /// The most bytes that an object can have. Default: 5 TiB, as in Amazon S3.
    ///
    /// A larger file is refused at its first chunk.
    pub fn max_object_size(mut self, bytes: u64) -> Self {
        self.limits.max_object = bytes;
        self
    }

    /// The most bytes of chunks that are held in memory, all together. Default: 512 MiB.
    ///
    /// Each chunk is, from its first byte until it is stored; when there is no room for another one
    /// its client is told to try again. It should be several times as much as a chunk, and for the chunks of
    /// less than 5 MiB of files of more than 80 GB, also as large as twice the ten-thousandth part of the file.
    pub fn max_buffered_bytes(self, bytes: u64) -> Self {
        Self {
            max_buffered: bytes,
            ..self
        }
    }

    /// Whether to try at the start that the engine keeps what is relied on. Default: it is tried.
    ///
    /// Some engines take a condition of a request and do not apply it. With them servers cannot agree
    /// upon anything, so the test lets requests race for the same names. It also
    /// needs all the rights that the store needs, and costs about 70 requests.
    pub fn self_test(self, yes: bool) -> Self {
        Self {
            self_test: yes,
            ..self
        }
    }

    #[cfg(test)]
    fn limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Opens the store.
    ///
    /// # Errors
    ///
    /// If the prefix is no path, if the engine does not answer, or if it fails the self-test.
    pub async fn open(self) -> Result<ObjectStore, StoreError> {
        let inner = Inner {
            keys: Keys {
                prefix: Path::parse(&self.prefix).map_err(StoreError::new)?,
            },
            bucket: self.bucket,
            limits: self.limits,
            lease: self.lease,
            memory: Memory::new(self.max_buffered),
            clock: Clock::default(),
            known: Known::default(),
            gates: Locks::default(),
            beginnings: Locks::default(),
            slots: Locks::default(),
            claims: Mutex::default(),
        };
        if self.self_test {
            inner.self_test().await?;
        }
        Ok(ObjectStore {
            inner: Arc::new(inner),
        })
    }
}

impl Inner {
    /// What is written down of an upload, if there is one.
    async fn info(&self, key: &UploadKey) -> Result<Option<Arc<Info>>, StoreError> {
        let Some(bytes) = self.bucket.get(&self.keys.info(key)).await? else {
            return Ok(None);
        };
        let info = Info::from_bytes(&bytes).filter(|info| info.key() == key);
        let info = info.ok_or_else(|| StoreError::new("what is stored of an upload is damaged"))?;
        let info = Arc::new(info);
        self.known.learn(&info);
        Ok(Some(info))
    }

    async fn write_info(&self, info: &Arc<Info>) -> Result<(), StoreError> {
        let path = self.keys.info(info.key());
        self.bucket.put(&path, info.to_bytes()).await?;
        self.known.learn(info);
        Ok(())
    }
}

impl Store for ObjectStore {
    type Claim = ObjectClaim;

    async fn put(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.inner.put(upload, offset, body).await
    }

    async fn status(&self, key: &UploadKey) -> Result<Status, StoreError> {
        let Some((info, there)) = self.inner.look(key, Extent::All).await? else {
            return Ok(Status::Absent);
        };
        Ok(match &info.phase {
            Phase::Settled(_) if info.is_expired() => Status::Absent,
            Phase::Settled(record) => Status::Settled(record.clone()),
            Phase::Sealed(_) => Status::Complete,
            Phase::Receiving if info.progress(&there).complete => Status::Complete,
            Phase::Receiving => Status::Receiving(there),
        })
    }

    async fn try_claim(&self, key: &UploadKey) -> Result<TryClaim<ObjectClaim>, StoreError> {
        self.inner.try_claim(key).await
    }

    async fn seal(&self, claim: &mut ObjectClaim, upload: &Upload) -> Result<Sealed, StoreError> {
        self.inner.seal(claim, upload).await
    }

    async fn settle(
        &self,
        claim: &mut ObjectClaim,
        settlement: &Settlement,
    ) -> Result<(), StoreError> {
        self.inner.settle(claim, settlement).await
    }

    async fn remove(&self, key: &UploadKey) -> Result<bool, StoreError> {
        self.inner.remove(key).await
    }

    async fn undelivered(&self) -> Result<Vec<Upload>, StoreError> {
        self.inner.undelivered().await
    }

    async fn unfinished(&self, scope: Option<&str>) -> Result<Vec<(Upload, Progress)>, StoreError> {
        self.inner.unfinished(scope).await
    }

    async fn sweep(&self, expiry: Expiry) -> Result<Swept, StoreError> {
        self.inner.sweep(expiry).await
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Spool, StoreError> {
        let bytes = self.inner.memory.take(body).await?;
        Ok(Spool::from_pieces(bytes.pieces))
    }
}

impl fmt::Debug for ObjectStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStore")
            .field("engine", &self.inner.bucket)
            .field("prefix", &self.inner.keys.prefix.as_ref())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ObjectStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObjectStoreBuilder")
            .field("engine", &self.bucket)
            .field("prefix", &self.prefix)
            .field("lease", &self.lease)
            .field("max_object_size", &self.limits.max_object)
            .field("max_buffered_bytes", &self.max_buffered)
            .field("self_test", &self.self_test)
            .finish()
    }
}
