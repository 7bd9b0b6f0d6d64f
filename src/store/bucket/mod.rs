//! A store in an object store that many servers share.

mod appends;
mod blocks;
mod claim;
mod clock;
mod concat;
mod damage;
mod engine;
mod info;
mod inner;
mod keys;
mod known;
mod layout;
mod lease;
mod list;
mod lookup;
mod publish;
mod remove;
mod self_test;
mod stored;
mod sweep;
#[cfg(test)]
mod tests;
mod write;

use std::{
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{StreamExt as _, stream};
use object_store::{multipart::MultipartStore, path::Path};

pub use self::stored::StoredObject;
use self::{
    blocks::Memory,
    claim::BucketClaim,
    clock::Clock,
    engine::Engine,
    inner::Inner,
    keys::Keys,
    known::{Known, Locks},
    layout::Limits,
    stored::StreamBody,
};
use super::{
    Append, Capabilities, ChunkBody, Claimed, Content, Expiry, Filter, Observed, Observer, Page,
    Progress, Status, Store, StoreError, Swept, Usage,
};
use crate::model::upload::{Upload, UploadId};

const LEASE: Duration = Duration::from_secs(180);

/// Shorter leases would expire between two requests.
const SHORTEST_LEASE: Duration = Duration::from_millis(100);

/// The time after which other servers deliver what a dead server has claimed.
const LONGEST_LEASE: Duration = Duration::from_secs(24 * 60 * 60);

/// Keeps uploads in an object store that many servers share.
///
/// Each chunk may go to another server, and each server may die at any time. The servers share
/// nothing but the bucket: there is no lock service, and no load balancer has to be sticky.
///
/// It works with each engine of the crate [`object_store`] that has multipart uploads: Amazon S3
/// and what is compatible with it, Azure, and Google Cloud Storage. Features of that crate select
/// the engine: `aws`, `azure`, `gcp`.
///
/// ```
/// use std::sync::Arc;
/// use object_store::memory::InMemory;
/// use tower_resumable::BucketStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_resumable::store::StoreError> {
/// // In production, with the feature `aws` of object_store:
/// //     AmazonS3Builder::from_env().with_bucket_name("uploads").build()?
/// let engine = Arc::new(InMemory::new());
/// let store = BucketStore::open(Arc::clone(&engine)).await?;
///
/// // Below a prefix, and without the test of the engine:
/// let builder = BucketStore::builder(engine).with_prefix("a/b").with_self_test(false);
/// let other = builder.open().await?;
/// # let _ = (store, other);
/// # Ok(())
/// # }
/// ```
///
/// A finished file is an object, `files/<id>`. Handlers read it with
/// [`content`](crate::CompletedUpload::content), or fetch it with
/// [`copy_to`](crate::CompletedUpload::copy_to) or [`persist`](crate::CompletedUpload::persist).
/// [`stored_as`](crate::CompletedUpload::stored_as) returns a [`StoredObject`], which has its key.
/// The object has no content type and no other attributes.
///
/// # What the engine has to do
///
/// Reads and lists see at once what was written. `If-None-Match: *` lets exactly one of several
/// requests create an object. (In the crate `object_store` it is `PutMode::Create`. Amazon S3 needs
/// `S3ConditionalPut::ETagMatch`, which is the default.) The store relies on nothing else: no
/// compare-and-swap, no copies, no order of lists.
///
/// Amazon S3, Cloudflare R2, Ceph RGW, Azure and Google Cloud Storage do this. Some engines accept
/// the condition and ignore it, so [`open`](Self::open)
/// [tests it](BucketStoreBuilder::with_self_test).
///
/// # Chunk sizes
///
/// **Let clients send chunks of at least 5 MiB, such as `chunkSize: 8 * 1024 * 1024`**, and at most
/// 10,000 of them. Each chunk is then a part of the final object. One request makes the object of
/// its parts, whatever the size of the file.
///
/// Smaller chunks are objects of their own. They are read and written once more by the server that
/// gets the last chunk, while its client waits. Any size and any order work. A last chunk that is
/// larger than the others, as Resumable.js sends it, becomes two parts: Cloudflare R2 requires that
/// all parts but the last have the same size.
///
/// Requests and bytes for a file of 1 GiB, as the tests of this crate count them:
///
/// | | 8 MiB (parts) | 1 MiB (pieces) |
/// |---|---|---|
/// | per chunk: PUT, part or LIST | 4 | 3 |
/// | per chunk: GET | 1 | 1 |
/// | per chunk that the client probes: LIST and GET | 1 + 1 | 1 + 1 |
/// | per upload: PUT, part, LIST, create, complete | 523 | 3,343 |
/// | per upload: GET (DELETE is free) | 134 | 2,054 |
/// | bytes to the engine, and back | 1 GiB, 0 | 2 GiB, 1 GiB |
/// | at the list prices of Amazon S3 | 0.3 cents | 1.8 cents |
/// | after the last chunk | 13 requests, in sequence | the same, and 1 GiB read and written |
///
/// A list request returns 1,000 names. Files with more parts or pieces need more list requests at
/// the end. [`usage`](Store::usage), which the limits of the layer need, lists the uploads that are
/// not settled, and makes up to 4 more requests for each one that was created without a length.
/// [`list`](Store::list) makes up to 3 more requests for each upload of a page.
/// [`sweep`](Store::sweep) lists everything, and reads one small object for each upload and record.
/// For a sweep, an upload is as old as its newest bytes: [`status`](Store::status) writes nothing.
///
/// # Appends
///
/// A body of an [append](Store::append) can be a whole file. It is stored as it arrives, slot by
/// slot, and each full slot is a part of the final object. A slot has 8 MiB, or the length of the
/// first body, if that is not the whole file and has 5 to 64 MiB, or what 10,000 parts need.
/// What does not fill a slot when a body ends or fails, or when its bytes have waited for more for
/// 10 seconds, is an object of its own. When its slot is full, it is read and written once more, as
/// a part.
///
/// **An upload whose length comes late has at most 10,000 slots**: 78 GiB, or 625 GiB if its first
/// body declares 64 MiB. More is [`StoreError::TooLarge`].
///
/// Requests for a file of 1 GiB, with a URL of its own, in one body or in several:
///
/// | | one body | 8 MiB | 1 MiB |
/// |---|---|---|---|
/// | per append: PUT, part, LIST, create | 260 | 5 | 5 and less |
/// | per append: GET | 2 | 2 | 2 to 10 |
/// | per question for the offset: create and LIST, GET | 2 + 1 | 2 + 1 | 2 + 1 |
/// | per upload: PUT, part, LIST, create, complete | 273 | 655 | 4,630 |
/// | per upload: GET | 8 | 262 | 3,078 |
///
/// In one process a newer request waits, for at most 2 seconds, until the bytes of the older append
/// are stored. It does not wait for another server: what that one has in memory, less than a slot,
/// does not count, and the client sends it again. The older append notices this at its end, or
/// while it is running: after half a second at first, and then after up to 8 seconds.
///
/// [`concat`](Store::concat) reads and writes all bytes once more, because the crate `object_store`
/// cannot copy parts. A second server that does the same at that time gets [`StoreError::Busy`].
///
/// # Memory
///
/// A chunk is held in memory until it is stored. All chunks together take at most
/// [`max_buffered_bytes`](BucketStoreBuilder::with_max_buffered_bytes). An upload is divided into
/// slots of its chunk size, or of 8 MiB if that is too small. An append holds at most one slot,
/// which is stored as soon as it is full. It waits while there is no free memory. Other requests
/// then fail with [`StoreError::Busy`], or with [`StoreError::ChunkTooLarge`] if the chunk is
/// larger than the limit.
///
/// If the engine fails while a chunk of several slots is stored, some slots of the chunk may be
/// stored. Their bytes are right, and a client that probes does not send them again.
///
/// # Deliveries
///
/// Of all servers, only the one that has the claim of an upload delivers it. The claim is an object
/// that its server renews, from a thread that a handler cannot block, once a minute with the
/// default [lease](BucketStoreBuilder::with_lease) of 3 minutes. It ends with the delivery. A
/// server that shuts its runtime down releases it.
///
/// An upload is delivered twice, with the same [id](crate::CompletedUpload::id) and the next
/// attempt, if
///
/// * the handler did not take the file: it failed, or its server died;
/// * its server could not renew the claim for longer than the lease, because the engine did not
///   answer or the process was suspended, and another server got a request for the upload then;
/// * the `info` object of the upload was damaged.
///
/// In the second case both handlers may run at the same time.
/// [`CompletedUpload::claim_is_live`](crate::CompletedUpload::claim_is_live) returns `false` in the
/// first one as soon as the lease has expired, and
/// [`StoreEvent::ClaimLost`](super::StoreEvent::ClaimLost) is told. Before that each failed renewal
/// is [told](super::StoreEvent::RenewalFailed). The answer of a handler is recorded only if its
/// server still has the claim, or gets it again because no other server has taken it. Else it is
/// given to the client that waits for it, and not recorded.
///
/// Connections of an HTTP client are driven by the runtime that opened them. If the handler blocks
/// that runtime, the renewal opens another connection. With HTTP/2, which clients of `object_store`
/// use only if they are told to, there may be no other connection: then give the client a runtime
/// that no handler blocks, with `object_store::client::SpawnedReqwestConnector`.
///
/// # Contradictions
///
/// A request that declares another length than the upload has fails with
/// [`StoreError::Conflict`]. So does a chunk whose bytes differ from those that are stored already,
/// because the file has changed. All stored bytes are compared, by their CRC-32, with these
/// exceptions: those of a part that the new chunk does not cover, those of a sealed or settled
/// upload, and those of two chunks that two servers get at the same time. The bytes that were
/// stored first stay then.
///
/// # Damaged objects
///
/// Objects that cannot be read stop no other upload. An `info` object that is damaged, or of
/// another version of this crate, is moved below `damaged/`, and its upload is absent: it begins
/// anew. So is a small chunk that does not have the right bytes, which the client then has to send
/// again. An upload of appends then has the bytes before that piece. If its last append was not
/// recorded well, it is absent. All are told as
/// [`StoreEvent::SetAside`](super::StoreEvent::SetAside). The store never
/// deletes what is below `damaged/`. Foreign objects are left where they are. A
/// [sweep](Store::sweep) tells those below `up/` as
/// [`StoreEvent::Skipped`](super::StoreEvent::Skipped), and so are uploads that cannot be read at
/// the moment. The engine must be able to list all keys below the prefix: the crate `object_store`
/// fails if one has an empty segment, such as `up//x`.
///
/// # Objects in the bucket
///
/// | key, below the prefix | |
/// |---|---|
/// | `files/<id>` | a finished file; once it is delivered it belongs to the application |
/// | `open/…` | an empty object per upload that is not settled: id, owner and size in its name |
/// | `up/<upload id>/info` | what is known of an upload; later the record of its delivery |
/// | `up/<upload id>/<id>/s/<slot>/…` | small chunks, and empty objects that name the parts |
/// | `up/<upload id>/<id>/s/w-<number>` | which append has the turn, and what it has found |
/// | `up/<upload id>/<id>/claim/…` | which server delivers or removes the upload |
/// | `scratch/…` | for the self-test, and to read the engine's clock |
/// | `damaged/<upload id>-<crc>` | what was set aside |
///
/// No key contains text of a client or the name of an owner.
///
/// # Setting up the bucket
///
/// * A lifecycle rule that aborts incomplete multipart uploads (`AbortIncompleteMultipartUpload`),
///   some days after uploads expire. The multipart uploads of servers that died at the wrong moment
///   cannot be listed here. An upload that is older than the rule allows starts again. Call
///   [`sweep`](Store::sweep) for everything else.
/// * The rights to put, get, list and delete objects, and to abort multipart uploads
///   (`s3:PutObject`, `s3:GetObject`, `s3:ListBucket`, `s3:DeleteObject`,
///   `s3:AbortMultipartUpload`).
/// * A part can have two ids, and only one of them counts: if the bucket encrypts with its own keys
///   (SSE-KMS, SSE-C), or if a client sends different bytes for the same chunk to two servers at
///   once. Up to 16 combinations are tried at the end. After that the client has to send the chunks
///   in question again, or all bytes of an upload of appends.
///
/// # Clocks
///
/// All times in the bucket are by the engine's clock, and translated to the clock of the server at
/// the edge of the store. So the clocks of the servers may differ, and may jump. A difference of
/// less than 3 seconds is ignored. To know it a server writes a small object, at most once a
/// minute.
#[derive(Clone)]
pub struct BucketStore {
    inner: Arc<Inner>,
}

/// Settings of a [`BucketStore`], made by [`BucketStore::builder`].
///
/// ```
/// use std::{sync::Arc, time::Duration};
/// use object_store::memory::InMemory;
/// use tower_resumable::BucketStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_resumable::store::StoreError> {
/// let store = BucketStore::builder(Arc::new(InMemory::new()))
///     .with_prefix("uploads")
///     .with_lease(Duration::from_secs(20))
///     .with_max_object_size(100 << 30)
///     .with_max_buffered_bytes(1 << 30)
///     .open()
///     .await?;
/// # let _ = store;
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct BucketStoreBuilder {
    engine: Engine,
    prefix: String,
    lease: Duration,
    limits: Limits,
    max_buffered: u64,
    self_test: bool,
}

impl BucketStore {
    /// Opens a store with the default settings, and tests the engine.
    ///
    /// # Errors
    ///
    /// If the engine does not answer, or fails [the test](BucketStoreBuilder::with_self_test).
    pub async fn open<T>(engine: Arc<T>) -> Result<Self, StoreError>
    where
        T: object_store::ObjectStore + MultipartStore,
    {
        Self::builder(engine).open().await
    }

    /// Returns the default settings, to be changed.
    pub fn builder<T>(engine: Arc<T>) -> BucketStoreBuilder
    where
        T: object_store::ObjectStore + MultipartStore,
    {
        BucketStoreBuilder {
            engine: Engine::new(engine),
            prefix: String::new(),
            lease: LEASE,
            limits: Limits::default(),
            max_buffered: 512 << 20,
            self_test: true,
        }
    }
}

impl BucketStoreBuilder {
    /// Sets the prefix of all keys, such as `"uploads"`. Default: none.
    ///
    /// Servers that share uploads must have the same prefix. Applications that share a bucket must
    /// have different ones.
    pub fn with_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets how long a claim outlives its server, or the connection of its server to the engine.
    /// Default: 3 minutes.
    ///
    /// A live server renews the claim at a third of this time, so a delivery may take longer. When
    /// a server dies during a delivery, another server can deliver that upload after this time, and
    /// answers its chunks with a retryable error until then. Other uploads are not affected.
    ///
    /// Choose a time that is longer than any interruption that a server survives: the migration of
    /// a virtual machine, or a network failure. After a longer one the upload can be
    /// [delivered twice](BucketStore#deliveries). Values are clamped to 100 ms and one day. Engines
    /// tell the time in whole seconds, so use at least 10 s.
    pub fn with_lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Sets the most bytes of an object. Default: 5 TiB, as in Amazon S3.
    ///
    /// The first chunk of a larger file fails with [`StoreError::TooLarge`]. A value that 10,000
    /// parts of 5 GiB cannot reach is clamped.
    pub fn with_max_object_size(mut self, bytes: u64) -> Self {
        self.limits.max_object = bytes;
        self
    }

    /// Sets the most bytes that all chunks together take in memory. Default: 512 MiB.
    ///
    /// If there is no memory for a chunk its client is told to try again. Set it to several times
    /// the size of a chunk. For files of more than 80 GB in chunks of less than 5 MiB, also set it
    /// to at least a five-thousandth of the size of the file. A value that the system cannot count
    /// is clamped.
    pub fn with_max_buffered_bytes(mut self, bytes: u64) -> Self {
        self.max_buffered = bytes;
        self
    }

    /// Sets whether [`open`](Self::open) tests the engine. Default: `true`.
    ///
    /// Some engines accept the condition of a request and ignore it. Servers cannot coordinate with
    /// such an engine, so the test lets requests race for the same names. It needs all the rights
    /// that the store needs, and about 70 requests.
    pub fn with_self_test(mut self, yes: bool) -> Self {
        self.self_test = yes;
        self
    }

    #[cfg(test)]
    fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Opens the store.
    ///
    /// # Errors
    ///
    /// If the prefix is not a valid path, if the engine does not answer, or if it fails the test.
    pub async fn open(self) -> Result<BucketStore, StoreError> {
        let inner = Inner {
            keys: Keys {
                prefix: Path::parse(&self.prefix).map_err(StoreError::new)?,
            },
            engine: self.engine,
            limits: self.limits,
            lease: self.lease.clamp(SHORTEST_LEASE, LONGEST_LEASE),
            memory: Memory::new(self.max_buffered),
            clock: Clock::default(),
            known: Known::default(),
            gates: Locks::default(),
            beginnings: Locks::default(),
            slots: Locks::default(),
            appends: Locks::default(),
            leases: Mutex::default(),
            events: Observed::default(),
        };
        if self.self_test {
            inner.self_test().await?;
        }
        Ok(BucketStore {
            inner: Arc::new(inner),
        })
    }
}

impl Store for BucketStore {
    type Claim = BucketClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        self.inner.create(upload).await
    }

    async fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.inner.write(upload, offset, body).await
    }

    async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.inner.status(id).await
    }

    async fn claim(&self, upload: &Upload) -> Result<Claimed<BucketClaim>, StoreError> {
        self.inner.claim(upload).await
    }

    async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.inner.remove(id).await
    }

    async fn forget_rejection(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.inner.forget(id, |info| info.is_rejected()).await
    }

    async fn forget(&self, id: &UploadId) -> Result<bool, StoreError> {
        self.inner.forget(id, |info| info.is_settled()).await
    }

    async fn list(&self, filter: &Filter, after: Option<&UploadId>) -> Result<Page, StoreError> {
        self.inner.list(filter, after).await
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.inner.usage().await
    }

    async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
        self.inner.sweep(expiry).await
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            append: true,
            concat: true,
        }
    }

    async fn interrupt(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
        self.inner.interrupt(id).await
    }

    async fn append(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        self.inner.append(upload, append, body).await
    }

    async fn concat(&self, upload: &Upload, parts: &[UploadId]) -> Result<Progress, StoreError> {
        self.inner.concat(upload, parts).await
    }

    fn observe(&self, observer: Observer) {
        self.inner.events.set(observer);
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Content, StoreError> {
        let bytes = self.inner.memory.read(body).await?;
        let pieces = stream::iter(bytes.pieces).map(Ok);
        Ok(Content::new(StreamBody::new(pieces)))
    }
}

impl fmt::Debug for BucketStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketStore")
            .field("engine", &self.inner.engine)
            .field("prefix", &self.inner.keys.prefix.as_ref())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for BucketStoreBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketStoreBuilder")
            .field("engine", &self.engine)
            .field("prefix", &self.prefix)
            .field("lease", &self.lease)
            .field("max_object_size", &self.limits.max_object)
            .field("max_buffered_bytes", &self.max_buffered)
            .field("self_test", &self.self_test)
            .finish()
    }
}
