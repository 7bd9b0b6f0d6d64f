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
    TryClaim, Upload, UploadKey, Usage,
};

/// Keeps uploads in an object store that many servers share.
///
/// Each chunk may come to another server, and any of them may die at any time: there is nothing to
/// share but the bucket, no lock service, no sticky sessions. It takes any engine of the crate
/// [`object_store`] that has multipart uploads: Amazon S3 and what is compatible with it, Azure,
/// Google Cloud Storage. Choose the engine by that crate's features (`aws`, `azure`, `gcp`).
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
/// let layer = ResumableLayer::new(store.clone());
///
/// // Or below a prefix, without the test of the engine:
/// let engine = object_store::memory::InMemory::new();
/// let other = ObjectStore::builder(Arc::new(engine)).prefix("a/b").self_test(false);
/// let other = other.open().await?;
/// # let _ = (layer, other);
/// # Ok::<_, tower_resumable::StoreError>(())
/// # }).unwrap();
/// ```
///
/// A finished file is an object `files/<id>`, in [`Location::Object`](super::Location::Object):
/// handlers read it with [`content`](crate::CompletedUpload::content), or fetch it with
/// [`copy_to`](crate::CompletedUpload::copy_to) or [`persist`](crate::CompletedUpload::persist).
///
/// # What the engine has to keep
///
/// Reads and lists see at once what was written, and `If-None-Match: *` (in the crate
/// `object_store`: `PutMode::Create`; `S3ConditionalPut::ETagMatch`, which is the default for
/// Amazon S3) lets exactly one of several requests create an object. Nothing else is relied on: no compare-and-swap, no copies, no order
/// of lists. Amazon S3, Cloudflare R2, Ceph RGW, Azure and Google Cloud Storage keep that; some engines take
/// the condition and ignore it, so it is [tried at the start](ObjectStoreBuilder::self_test).
///
/// # What chunks to send
///
/// **Chunks of at least 5 MiB, such as `chunkSize: 8 * 1024 * 1024`**, and at most 10,000 of them. Each is
/// then a part of the final object, at once and for good: when the last one has come there is one request
/// left to make, whatever the size of the file. Smaller ones are objects of their own, which are read and written once more at
/// the end, by the server that got the last chunk, while its client waits. Any size and any order work: a last
/// chunk that is larger than the others, as Resumable.js sends it, becomes two parts, so that all parts are equal
/// but the last, as Cloudflare R2 wants it.
///
/// Requests and bytes, counted in this crate's tests, of 1 GiB:
///
/// | | chunks of 8 MiB (parts) | chunks of 1 MiB (pieces) |
/// |---|---|---|
/// | per chunk: PUT, part or LIST | 4 | 3 |
/// | per chunk: GET | 1 | 1 |
/// | per chunk that the client asks for first: LIST and GET | 1 + 1 | 1 + 1 |
/// | per upload: PUT, part, LIST, begin, complete | 521 | 3,341 |
/// | per upload: GET (DELETE is free) | 135 | 2,060 |
/// | bytes to the engine, and back | 1 GiB, 0 | 2 GiB, 1 GiB |
/// | at the list prices of Amazon S3 | 0.3 cents | 1.8 cents |
/// | after the last chunk | 12 requests, one after the other | and 1 GiB to read and write, in 2 slots at once |
///
/// A list is counted for each 1,000 names: of files with more parts (or pieces) there are as many more
/// at the end. [`usage`](super::Store::usage), which the layer's limits need, is a list of the uploads that are not settled;
/// [`undelivered`](super::Store::undelivered) and [`unfinished`](super::Store::unfinished) make up to 3 requests more for each of those, the latter
/// for those of its scope only; [`sweep`](super::Store::sweep) lists everything, and reads one small object for each
/// upload and record.
///
/// A chunk is held in memory until it is stored, at most
/// [`max_buffered_bytes`](ObjectStoreBuilder::max_buffered_bytes) of all together. A chunk that touches several slots
/// (an upload is cut into slots of its chunk size, or of 8 MiB for small chunks) and whose request fails
/// in the engine can leave those of its bytes that were stored before; they are right, and are not asked for again.
///
/// # What is in the bucket
///
/// | key, below the prefix | |
/// |---|---|
/// | `files/<id>` | a finished file; after its delivery it is the application's |
/// | `open/…` | an empty one for each upload that is not settled, with its key, owner and size in its name |
/// | `up/<key>/info` | what is known of an upload, and then the record of its delivery |
/// | `up/<key>/<id>/s/<slot>/…` | small chunks, and empty marks with the ids of parts in their names |
/// | `up/<key>/<id>/claim/…` | who delivers or removes it |
/// | `scratch/…` | for a moment: to read the engine's clock, and for the self-test |
///
/// The text of a client is in no key, nor the name of an owner. The finished file has no content type or other attributes.
///
/// # Setting up the bucket
///
/// * A lifecycle rule that aborts incomplete multipart uploads after some days more than uploads may take
///   (`AbortIncompleteMultipartUpload`): those of servers that died at the wrong moment cannot be listed here. An upload that is
///   older than the rule allows begins anew. Call [`sweep`](super::Store::sweep) for the rest.
/// * Rights: put, get, list and delete objects, and abort multipart uploads (`s3:PutObject`, `s3:GetObject`,
///   `s3:ListBucket`, `s3:DeleteObject`, `s3:AbortMultipartUpload`).
/// * Where it encrypts with keys of its own (SSE-KMS, SSE-C), or when a client sends other bytes for
///   the same chunk to two servers at once, a part can have two ids, of which one counts. Up to 16
///   combinations are tried at the end; after that the chunks in question are asked for again.
///
/// # Clocks
///
/// Claims are judged by the engine's clock alone. Records and the limits of a sweep are of the servers' clocks, which
/// should not differ by minutes.
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
        let info = Arc::new(info.ok_or_else(|| StoreError::new(Unreadable))?);
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

/// Does all of it, also if the request ends that wants it, because its client has gone: half of it would
/// be left behind, such as a claim that nobody gives back.
async fn all_of<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    tokio::spawn(work).await.map_err(StoreError::new)?
}

/// Why an upload cannot be told of: its `info` is damaged, or another version of this crate has written it.
#[derive(Debug)]
struct Unreadable;

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what is stored of an upload is damaged, or of another version")
    }
}

impl std::error::Error for Unreadable {}

/// Nothing, of what cannot be read: all others shall be listed.
fn if_readable<T>(read: Result<Option<T>, StoreError>) -> Result<Option<T>, StoreError> {
    match read {
        Err(StoreError::Failed(error)) if error.is::<Unreadable>() => Ok(None),
        read => read,
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
        let (inner, key) = (Arc::clone(&self.inner), *key);
        all_of(async move { inner.try_claim(&key).await }).await
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
        let (inner, key) = (Arc::clone(&self.inner), *key);
        all_of(async move { inner.remove(&key).await }).await
    }

    async fn undelivered(&self) -> Result<Vec<Upload>, StoreError> {
        self.inner.undelivered().await
    }

    async fn unfinished(&self, scope: Option<&str>) -> Result<Vec<(Upload, Progress)>, StoreError> {
        self.inner.unfinished(scope).await
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        let open = self.inner.open_uploads().await?;
        Ok(open.into_iter().map(|open| open.usage).collect())
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
