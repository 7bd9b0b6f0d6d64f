//! Bytes and marks: where chunks go, and who may hand a finished upload over.

use std::{
    fmt,
    future::Future,
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_core::Stream;
use sha2::{Digest as _, Sha256};

use crate::{BoxError, UploadError, body::digest::Expected, upload::FileStream};

#[cfg(feature = "object-store")]
mod bucket;
pub mod conformance;
mod file;
mod json;
mod memory;

#[cfg(feature = "object-store")]
pub use self::bucket::{ObjectClaim, ObjectStore, ObjectStoreBuilder, StoredObject};
pub use self::file::{Durability, FileClaim, FileStore, FileStoreBuilder};
pub use self::memory::{MemoryClaim, MemoryStore};
#[cfg(feature = "object-store")]
pub(crate) use self::{bucket::ObjectStream, file::NewFile};
pub use crate::model::ranges::RangeSet;

/// Where chunks go: the bytes, the marks that say what is there, and the right to deliver.
///
/// Implement it with plain `async fn`. A store is shared by all requests, and, if it is more than
/// one process's memory, by all servers: coordination is its task, there is no separate lock
/// service. [`conformance`] tests what is promised here.
pub trait Store: Send + Sync + 'static {
    /// The right to deliver one upload, held until it is settled or dropped.
    ///
    /// Dropping it (a panic, a cancelled task) must give the right back, as must the death of the
    /// process.
    type Claim: Send + Sync + 'static;

    /// Stores the bytes of `body` at `offset` of the upload, creating it if it is new.
    ///
    /// `Ok` means that exactly these bytes are stored, with the durability that the store
    /// promises, and visible to every server. After an `Err`, or if the future is dropped, it is as
    /// if it had never been called. A byte that is already stored is never written again: what
    /// comes twice is read and dropped, and is `Ok`. So is what comes for a sealed or settled upload.
    ///
    /// The bytes may be kept only after `body` has ended with `None`.
    fn put(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> impl Future<Output = Result<Progress, StoreError>> + Send;

    /// What is there of an upload. A record past its [`expires`](Record::expires) counts as absent.
    fn status(&self, key: &UploadKey) -> impl Future<Output = Result<Status, StoreError>> + Send;

    /// Asks for the right to deliver a complete upload. At most one claim of an upload is live, on
    /// all servers together.
    fn try_claim(
        &self,
        key: &UploadKey,
    ) -> impl Future<Output = Result<TryClaim<Self::Claim>, StoreError>> + Send;

    /// Publishes the claimed upload's file, durably, and counts one more attempt to deliver it.
    ///
    /// `upload` is what the completing request said; what the first call got is kept and returned
    /// by all later ones.
    fn seal(
        &self,
        claim: &mut Self::Claim,
        upload: &Upload,
    ) -> impl Future<Output = Result<Sealed, StoreError>> + Send;

    /// Records the outcome durably, and removes the file of a rejected upload. After an error it can
    /// be called again. The claim ends when it is dropped.
    fn settle(
        &self,
        claim: &mut Self::Claim,
        settlement: &Settlement,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Removes an upload that is not settled and not claimed. `false` if there is none.
    fn remove(&self, key: &UploadKey) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// The complete uploads that no inner service has taken yet: what the completing request said
    /// of those that are sealed, what the first one said of the others.
    fn undelivered(&self) -> impl Future<Output = Result<Vec<Upload>, StoreError>> + Send;

    /// The uploads of a scope, or of all, that no inner service has taken or refused yet, with how far
    /// they are, as the first request of each (or, once sealed, the completing one) described them.
    fn unfinished(
        &self,
        scope: Option<&str>,
    ) -> impl Future<Output = Result<Vec<(Upload, Progress)>, StoreError>> + Send;

    /// What each upload that no inner service has taken or refused yet takes of the
    /// [limits](crate::Limits); maybe also those of which no byte is stored.
    ///
    /// The layer asks for it when the first new upload of a process comes, and again before it turns a client
    /// away. The default asks for all that is [`unfinished`](Self::unfinished): a store to which that is
    /// much work should know better.
    fn usage(&self) -> impl Future<Output = Result<Vec<Usage>, StoreError>> + Send {
        async {
            let unfinished = self.unfinished(None).await?;
            Ok(unfinished.iter().map(|(upload, _)| upload.into()).collect())
        }
    }

    /// Removes what has expired; see [`Expiry`]. Never what a request or a claim is busy with, and
    /// never a file that was handed over.
    fn sweep(&self, expiry: Expiry) -> impl Future<Output = Result<Swept, StoreError>> + Send;

    /// Keeps the bytes of a file part that came before the fields that say where it belongs.
    ///
    /// The default keeps them in memory.
    fn spool(
        &self,
        body: &mut ChunkBody<'_>,
    ) -> impl Future<Output = Result<Spool, StoreError>> + Send {
        async {
            let mut pieces = Vec::new();
            while let Some(piece) = body.next().await {
                pieces.push(piece?);
            }
            Ok(Spool::from_pieces(pieces))
        }
    }
}

/// Server-made name of an upload: a SHA-256 over its scope and what identifies it.
///
/// No text of a client is ever a path, a file name or an object key; this is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadKey([u8; 32]);

impl UploadKey {
    /// The key with these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads what [`Display`](fmt::Display) writes: 64 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        from_hex(hex).map(Self)
    }
}

impl fmt::Display for UploadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for UploadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UploadKey({self})")
    }
}

/// Server-made name of a scope: the first half of a SHA-256 over it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeKey([u8; 16]);

impl ScopeKey {
    /// The key of this scope.
    pub fn new(scope: &str) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&Sha256::digest(scope)[..16]);
        Self(half)
    }

    /// Reads what [`Display`](fmt::Display) writes: 32 lower-case hexadecimal digits.
    pub fn from_hex(hex: &str) -> Option<Self> {
        from_hex(hex).map(Self)
    }
}

impl fmt::Display for ScopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ScopeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScopeKey({self})")
    }
}

fn from_hex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let digits = hex.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |d: u8| match d {
            b'0'..=b'9' => Some(d - b'0'),
            b'a'..=b'f' => Some(d - b'a' + 10),
            _ => None,
        };
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// What an unfinished upload takes of the [limits](crate::Limits); see [`Store::usage`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Usage {
    /// The upload.
    pub key: UploadKey,
    /// Who owns it.
    pub scope: ScopeKey,
    /// Bytes of the whole file.
    pub total: u64,
}

impl From<&Upload> for Usage {
    fn from(upload: &Upload) -> Self {
        Self {
            key: upload.key,
            scope: ScopeKey::new(&upload.scope),
            total: upload.total,
        }
    }
}

/// One file on its way, as its client declares it. All strings are the client's: not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upload {
    /// The server-made name.
    pub key: UploadKey,
    /// Who owns it.
    pub scope: String,
    /// The client's name for it.
    pub identifier: String,
    /// Bytes of the whole file.
    pub total: u64,
    /// Bytes of each chunk but the last, if the client has said so. A store may choose its layout by
    /// it; no chunk has to keep to it.
    pub chunk_size: Option<u64>,
    /// The file's name.
    pub file_name: Option<String>,
    /// The file's path inside the folder that was chosen.
    pub relative_path: Option<String>,
    /// The file's media type.
    pub content_type: Option<String>,
    /// The application's own form and query fields.
    pub fields: Vec<(String, String)>,
}

/// How far an upload is after a [`Store::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes stored.
    pub received: u64,
    /// Whether all are, or were when it was sealed.
    pub complete: bool,
}

/// What a store has of an upload.
#[derive(Clone, Debug)]
pub enum Status {
    /// Nothing.
    Absent,
    /// These bytes, not all of them.
    Receiving(RangeSet),
    /// All bytes, and no inner service has taken them yet.
    Complete,
    /// The inner service has taken or refused it.
    Settled(Record),
}

/// Outcome of [`Store::try_claim`].
#[derive(Debug)]
pub enum TryClaim<C> {
    /// The caller may deliver.
    Won(C),
    /// Another request is delivering.
    Busy,
    /// It is done.
    Settled(Record),
    /// There is nothing to deliver: bytes are missing, or the upload is gone.
    Incomplete,
}

/// A complete upload with its file published under its final name.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Names this upload for good: two uploads of the same file have the same key, but not the same
    /// id. The idempotency key of its deliveries.
    pub id: String,
    /// Where the file is.
    pub location: Location,
    /// What the request that completed it declared.
    pub upload: Upload,
    /// 1 for the first delivery, one more for each that follows.
    pub attempt: u32,
    /// CRC-32 (as in zlib and PNG) of the whole file, if the store knows it without reading it again.
    pub crc32: Option<u32>,
}

/// Where a finished file is.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// A file.
    File(PathBuf),
    /// The memory of this process.
    Memory(Bytes),
    /// An object in an object store.
    #[cfg(feature = "object-store")]
    Object(StoredObject),
}

/// How a delivery ended.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// The inner service took the upload and answered this.
    Delivered(Record),
    /// The inner service refused the upload for good and answered this. Its file is removed.
    Rejected(Record),
    /// The inner service failed: the upload stays complete, and can be claimed again.
    Released,
}

/// The remembered answer of the inner service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Whether the inner service took the upload (else it refused it).
    pub delivered: bool,
    /// Its status.
    pub status: u16,
    /// Its headers.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Its body, unless that was too long to remember.
    pub body: Option<Bytes>,
    /// Bytes of the file.
    pub size: u64,
    /// When the answer is to be forgotten.
    pub expires: SystemTime,
}

/// What [`Store::sweep`] shall remove.
#[derive(Clone, Copy, Debug)]
pub struct Expiry {
    /// Incomplete uploads of which no byte was stored since.
    pub abandoned_before: SystemTime,
    /// Complete uploads without delivery that were sealed before; `None` keeps them all.
    pub undelivered_before: Option<SystemTime>,
    /// Records that expired before.
    pub records_before: SystemTime,
}

/// What [`Store::sweep`] has removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Incomplete uploads.
    pub abandoned: u64,
    /// Complete uploads without delivery.
    pub undelivered: u64,
    /// Records.
    pub records: u64,
}

/// Error of a store.
#[derive(Debug)]
#[non_exhaustive]
pub enum StoreError {
    /// The chunk's body failed; passed on as it came.
    Body(UploadError),
    /// Another request has taken over the range.
    Superseded,
    /// The stored bytes would be in too many pieces.
    TooManyRanges,
    /// There is no room left.
    Full(BoxError),
    /// The upload can never fit: said of its first chunk.
    TooLarge {
        /// Most bytes of a file.
        limit: u64,
    },
    /// The store has too much to do at the moment. Nothing is stored; it can be tried again.
    Busy,
    /// Anything else.
    Failed(BoxError),
}

impl StoreError {
    /// Wraps a backend's error.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self::Failed(error.into())
    }
}

impl From<UploadError> for StoreError {
    fn from(error: UploadError) -> Self {
        Self::Body(error)
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        use std::io::ErrorKind::{QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded => Self::Full(error.into()),
            _ => Self::Failed(error.into()),
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Body(_) => "the chunk's body failed",
            Self::Superseded => "another request has taken over the range",
            Self::TooManyRanges => "the upload is in too many pieces",
            Self::Full(_) => "the store is full",
            Self::TooLarge { .. } => "the upload is larger than the store can keep",
            Self::Busy => "the store is busy",
            Self::Failed(_) => "the store failed",
        })
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Body(error) => Some(error),
            Self::Full(error) | Self::Failed(error) => Some(error.as_ref()),
            Self::Superseded | Self::TooManyRanges | Self::TooLarge { .. } | Self::Busy => None,
        }
    }
}

/// The bytes of one chunk while they arrive.
///
/// It yields no more bytes than the chunk may have, and ends with `None` only if they are all
/// there and the request that carries them is whole: an error says otherwise.
pub struct ChunkBody<'a> {
    stream: Pin<&'a mut (dyn Stream<Item = Result<Bytes, UploadError>> + Send)>,
    exact: Option<u64>,
    max: u64,
    received: u64,
    digest: Option<Expected>,
}

impl<'a> ChunkBody<'a> {
    /// A body of exactly `exact` bytes, or, if that is `None`, of at most `max`.
    pub fn new(
        stream: Pin<&'a mut (dyn Stream<Item = Result<Bytes, UploadError>> + Send)>,
        exact: Option<u64>,
        max: u64,
    ) -> Self {
        Self {
            stream,
            exact,
            max: exact.unwrap_or(max),
            received: 0,
            digest: None,
        }
    }

    /// It ends well only if these were its bytes.
    pub(crate) fn expecting(mut self, digest: Option<Expected>) -> Self {
        self.digest = digest;
        self
    }

    /// How many bytes it has, if that is known before they came.
    pub fn exact_len(&self) -> Option<u64> {
        self.exact
    }

    /// The most bytes that it can have.
    pub fn max_len(&self) -> u64 {
        self.max
    }

    /// How many have come.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// The next bytes, `None` at the end. Cancel safe. Not to be called again after an error or the end.
    pub async fn next(&mut self) -> Option<Result<Bytes, UploadError>> {
        let piece = std::future::poll_fn(|cx| self.stream.as_mut().poll_next(cx)).await;
        match piece {
            Some(Ok(piece)) => {
                self.received += piece.len() as u64;
                if self.received > self.max {
                    return Some(Err(self.wrong_length()));
                }
                if let Some(digest) = &mut self.digest {
                    digest.update(&piece);
                }
                Some(Ok(piece))
            }
            Some(Err(error)) => Some(Err(error)),
            None if self.exact.is_some_and(|exact| exact != self.received) => {
                Some(Err(self.wrong_length()))
            }
            None => self.digest.take()?.finish().err().map(Err),
        }
    }

    fn wrong_length(&self) -> UploadError {
        UploadError::ChunkLength {
            expected: self.max,
            received: self.received,
        }
    }
}

impl fmt::Debug for ChunkBody<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkBody")
            .field("exact", &self.exact)
            .field("received", &self.received)
            .finish_non_exhaustive()
    }
}

/// A chunk's bytes, kept until it is known where they belong.
#[derive(Debug)]
pub struct Spool(pub(crate) Spooled);

#[derive(Debug)]
pub(crate) enum Spooled {
    Pieces(Vec<Bytes>),
    File(std::fs::File),
}

impl Spool {
    /// Kept in memory.
    pub fn from_pieces(pieces: Vec<Bytes>) -> Self {
        Self(Spooled::Pieces(pieces))
    }

    /// Kept in a file, read from its beginning. It should have no name any more, so that it
    /// vanishes when it is closed.
    pub fn from_file(file: std::fs::File) -> Self {
        Self(Spooled::File(file))
    }

    pub(crate) fn into_stream(self) -> SpoolStream {
        match self.0 {
            Spooled::Pieces(pieces) => SpoolStream::Pieces(pieces.into_iter()),
            Spooled::File(file) => SpoolStream::File(FileStream::Open(file)),
        }
    }
}

/// What was spooled, read again.
pub(crate) enum SpoolStream {
    Pieces(std::vec::IntoIter<Bytes>),
    File(FileStream),
}

impl Stream for SpoolStream {
    type Item = Result<Bytes, UploadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        match &mut *self {
            Self::Pieces(pieces) => Poll::Ready(pieces.next().map(Ok)),
            Self::File(file) => {
                let piece = ready!(Pin::new(file).poll_next(cx));
                Poll::Ready(piece.map(|piece| piece.map_err(|_| UploadError::Storage)))
            }
        }
    }
}

/// 128 random bits as 32 hexadecimal digits.
pub(crate) fn random_id() -> Result<String, StoreError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::new(error.to_string()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Milliseconds since 1970.
fn unix_ms(time: SystemTime) -> u64 {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn from_unix_ms(since: Duration) -> SystemTime {
    SystemTime::UNIX_EPOCH
        .checked_add(since)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// See [`CompletedUpload::persist`](crate::CompletedUpload::persist).
pub(crate) fn persist(sealed: &Sealed, to: &Path) -> io::Result<()> {
    file::persist(sealed, to)
}

/// See [`CompletedUpload::copy_to`](crate::CompletedUpload::copy_to).
pub(crate) fn copy(sealed: &Sealed, to: &Path) -> io::Result<()> {
    file::copy(sealed, to)
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A claim of any store.
pub(crate) type AnyClaim = Box<dyn std::any::Any + Send + Sync>;

/// Private, dyn-compatible mirror of [`Store`], so that no store type reaches the layer's type.
pub(crate) trait DynStore: Send + Sync {
    fn put<'a>(
        &'a self,
        upload: &'a Upload,
        offset: u64,
        body: &'a mut ChunkBody<'_>,
    ) -> BoxFuture<'a, Result<Progress, StoreError>>;
    fn status<'a>(&'a self, key: &'a UploadKey) -> BoxFuture<'a, Result<Status, StoreError>>;
    fn try_claim<'a>(
        &'a self,
        key: &'a UploadKey,
    ) -> BoxFuture<'a, Result<TryClaim<AnyClaim>, StoreError>>;
    fn seal<'a>(
        &'a self,
        claim: &'a mut AnyClaim,
        upload: &'a Upload,
    ) -> BoxFuture<'a, Result<Sealed, StoreError>>;
    fn settle<'a>(
        &'a self,
        claim: &'a mut AnyClaim,
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    fn remove<'a>(&'a self, key: &'a UploadKey) -> BoxFuture<'a, Result<bool, StoreError>>;
    fn undelivered(&self) -> BoxFuture<'_, Result<Vec<Upload>, StoreError>>;
    fn unfinished<'a>(
        &'a self,
        scope: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<(Upload, Progress)>, StoreError>>;
    fn usage(&self) -> BoxFuture<'_, Result<Vec<Usage>, StoreError>>;
    fn sweep(&self, expiry: Expiry) -> BoxFuture<'_, Result<Swept, StoreError>>;
    fn spool<'a>(&'a self, body: &'a mut ChunkBody<'_>)
    -> BoxFuture<'a, Result<Spool, StoreError>>;
}

impl<T: Store> DynStore for T {
    fn put<'a>(
        &'a self,
        upload: &'a Upload,
        offset: u64,
        body: &'a mut ChunkBody<'_>,
    ) -> BoxFuture<'a, Result<Progress, StoreError>> {
        Box::pin(Store::put(self, upload, offset, body))
    }

    fn status<'a>(&'a self, key: &'a UploadKey) -> BoxFuture<'a, Result<Status, StoreError>> {
        Box::pin(Store::status(self, key))
    }

    fn try_claim<'a>(
        &'a self,
        key: &'a UploadKey,
    ) -> BoxFuture<'a, Result<TryClaim<AnyClaim>, StoreError>> {
        Box::pin(async {
            Ok(match Store::try_claim(self, key).await? {
                TryClaim::Won(claim) => TryClaim::Won(Box::new(claim) as AnyClaim),
                TryClaim::Busy => TryClaim::Busy,
                TryClaim::Settled(record) => TryClaim::Settled(record),
                TryClaim::Incomplete => TryClaim::Incomplete,
            })
        })
    }

    fn seal<'a>(
        &'a self,
        claim: &'a mut AnyClaim,
        upload: &'a Upload,
    ) -> BoxFuture<'a, Result<Sealed, StoreError>> {
        Box::pin(async {
            let claim = claim
                .downcast_mut()
                .ok_or_else(|| StoreError::new(FOREIGN))?;
            Store::seal(self, claim, upload).await
        })
    }

    fn settle<'a>(
        &'a self,
        claim: &'a mut AnyClaim,
        settlement: &'a Settlement,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async {
            let claim = claim
                .downcast_mut()
                .ok_or_else(|| StoreError::new(FOREIGN))?;
            Store::settle(self, claim, settlement).await
        })
    }

    fn remove<'a>(&'a self, key: &'a UploadKey) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(Store::remove(self, key))
    }

    fn undelivered(&self) -> BoxFuture<'_, Result<Vec<Upload>, StoreError>> {
        Box::pin(Store::undelivered(self))
    }

    fn unfinished<'a>(
        &'a self,
        scope: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Vec<(Upload, Progress)>, StoreError>> {
        Box::pin(Store::unfinished(self, scope))
    }

    fn usage(&self) -> BoxFuture<'_, Result<Vec<Usage>, StoreError>> {
        Box::pin(Store::usage(self))
    }

    fn sweep(&self, expiry: Expiry) -> BoxFuture<'_, Result<Swept, StoreError>> {
        Box::pin(Store::sweep(self, expiry))
    }

    fn spool<'a>(
        &'a self,
        body: &'a mut ChunkBody<'_>,
    ) -> BoxFuture<'a, Result<Spool, StoreError>> {
        Box::pin(Store::spool(self, body))
    }
}

const FOREIGN: &str = "a claim of another store";
