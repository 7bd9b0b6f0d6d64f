//! Stores of uploads: the [`Store`] trait with its types, and the stores of this crate.
//!
//! # Writing a store
//!
//! A store keeps the bytes of uploads, knows which bytes it has, and grants the right to deliver a
//! complete upload. [`Store`] has seven required methods. `examples/sqlite_store.rs` is a complete
//! store in a database.
//!
//! Methods are called from many tasks at the same time and must not block: move blocking work to
//! [`spawn_blocking`](tokio::task::spawn_blocking). Errors of a backend become
//! [`StoreError::new(error)`](StoreError::new).
//!
//! An upload is a set of byte ranges and a length. It is complete when the length is known and the
//! ranges cover it. The number of chunks does not matter. An upload goes through these states:
//!
//! ```text
//!            write, create            claim            settle
//! (absent) ───────────────► receiving ──────► sealed ─────────► settled ──► (absent)
//!                               │    complete   │    delivered or rejected    expired
//!                               └── remove, sweep ──► (absent)
//! ```
//!
//! The contract, as a checklist:
//!
//! * **Ok means durable.** When [`write`](Store::write) or [`create`](Store::create) returns `Ok`,
//!   the bytes and the upload survive what the store promises to survive, and every server that
//!   shares the store sees them.
//! * **Chunks are stored in any order**, with any overlap, and at the same time. Of two concurrent
//!   chunks with the same bytes both succeed, or one fails with
//!   [`Superseded`](StoreError::Superseded). No byte is a mixture.
//! * **Stored bytes are never written again.** A chunk that arrives twice is read to its end,
//!   compared with the stored bytes, dropped, and `Ok`. So is a chunk of an upload that is sealed
//!   or settled. A store may [count](ChunkBody::count_duplicate) such bytes, for the operator.
//! * **A chunk with other bytes than the stored ones is a [`Conflict`](StoreError::Conflict)**: the
//!   file has changed since its upload began. Nothing of the chunk is stored. When the upload is
//!   sealed or settled, chunks are compared as far as the store still knows their bytes.
//! * **The first request declares the length.** A request that declares another one is a
//!   [`Conflict`](StoreError::Conflict). It may declare none. The [`Upload`] of the request that
//!   created the upload is kept until the first claim. That later requests describe the upload in
//!   another way changes nothing.
//! * **A chunk beyond the length is [`OutOfBounds`](StoreError::OutOfBounds)**, and not stored. The
//!   stored length counts, or, for the chunk that creates the upload, that of its request. The
//!   bounds of a chunk of a sealed or settled upload need not be checked.
//! * **A failed chunk leaves nothing**: after an `Err` the store is as if `write` had not been
//!   called. An upload that only the failed chunk would have created is absent.
//! * **A chunk counts when its body has ended** with `None`, not before.
//! * **`create` makes an upload without bytes**, and does not change an existing one. An upload
//!   without a length never completes. An empty file is an upload too: an upload of length 0 is
//!   complete when `create`, or `write` of no bytes, has created it.
//! * **The last chunk knows.** Of the chunks that complete an upload at least one gets
//!   [`complete: true`](crate::store::Progress::complete).
//! * **At most one claim of an upload is live**, on all servers together. A claim ends when it is
//!   settled, released or dropped, and when its process dies. A store that only one process uses at
//!   a time can end all claims when it is opened. A store of many servers needs a lock that ends
//!   with its connection, or a lease that the claim renews while it lives.
//! * **The first claim seals the upload**: it publishes the file under its final name and stores
//!   the upload as the completing request described it, but with the stored length. All later
//!   claims return the same id, file and upload. Each claim counts an attempt.
//! * **A record is returned as it was recorded** until it [expires](Record::is_expired). Then the
//!   upload is absent, and the next chunk starts a new one with a new id.
//! * **A delivered upload stays as it is.** Its file belongs to the application: the store never
//!   touches it again. The same [`UploadId`] may come again while that file is there. So name the
//!   file by something else, such as the random [id](Sealed::id) of the seal. The file of a
//!   rejected upload is removed.
//! * **`forget_rejection` ends the record of a rejection.** It changes nothing else, also if the
//!   upload begins anew at the same time.
//! * **`list` returns each upload that is not settled once**, in the order of the ids.
//! * **A removed upload is absent**, with its file. A removal does not wait for the bodies of
//!   chunks, and their bytes do not come back. A chunk of a removed upload fails with
//!   [`Superseded`](StoreError::Superseded), or starts a new upload, which has its bytes only.
//! * **Busy uploads stay.** [`sweep`](Store::sweep) and [`remove`](Store::remove) never remove an
//!   upload that is claimed. `sweep` never removes one to which a request is writing. An upload is
//!   as old as the last request that wrote to it or asked for its [`status`](Store::status).
//! * **A damaged upload harms no other.** [`list`](Store::list) and `sweep` skip what they cannot
//!   read.
//! * **Appends are optional**: clients of tus 1.0 and of the IETF draft need them. See
//!   [`append`](Store::append), [`interrupt`](Store::interrupt) and [`concat`](Store::concat), and
//!   name what the store can do in its [`capabilities`](Store::capabilities).
//! * **One append at a time.** The newest request wins at once, on all servers that share the
//!   store: the older append ends with [`Superseded`](StoreError::Superseded) as soon as its bytes
//!   so far are durable. What `interrupt` returns is durable, and no append that began before adds
//!   to it.
//! * **Futures are polled to their end**, even if the client goes away. Only the end of the
//!   process, or of its runtime, stops them: a store has to recover from that as from a crash.
//!
//! The module `conformance`, which needs the feature of the same name, checks these promises and
//! prints them. It does not check durability, damaged uploads and crashes: test these yourself.
//!
//! ```
//! # #[tokio::main]
//! # async fn main() {
//! # let store = tower_resumable::MemoryStore::default();
//! tower_resumable::store::conformance::check(&store).await;
//! # }
//! ```

mod body;
#[cfg(feature = "object-store")]
pub(crate) mod bucket;
mod clock;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub(crate) mod content;
mod disk;
mod erased;
mod error;
mod event;
pub(crate) mod export;
pub(crate) mod file;
pub(crate) mod memory;
mod stored;

use std::{future::Future, time::SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

#[cfg(feature = "object-store")]
pub use self::bucket::{BucketStoreBuilder, StoredObject};
#[cfg(feature = "tracing")]
pub(crate) use self::event::TRACING_TARGET;
pub use self::{
    body::{BodyError, ChunkBody},
    error::StoreError,
    event::{Observer, StoreEvent},
    file::{Durability, FileStoreBuilder},
    stored::{BoxFuture, Sealed, Stored},
};
use self::{clock::Clock, content::Content};
pub(crate) use self::{
    erased::{DynClaim, DynStore},
    event::{Chain, Observed, call_hook},
};
use crate::model::{
    hex::{self, Hex},
    upload::{Role, Scope, Upload, UploadId},
};
pub use crate::model::{
    ranges::RangeSet,
    state::{Progress, Record, State, Status},
};

/// Keeps uploads. See the [module](self) for the contract.
///
/// Implement it with plain `async fn`. A store is shared by all requests, and, unless it is in the
/// memory of one process, by all servers. Servers coordinate through the store only: there is no
/// separate lock service.
///
/// Each method can fail with [`StoreError::Failed`], [`Impossible`](StoreError::Impossible),
/// [`Full`](StoreError::Full) or [`Busy`](StoreError::Busy) because of the backend. The docs of the
/// methods list other errors.
///
/// ```
/// use std::{pin::pin, time::{Duration, SystemTime}};
/// use http::StatusCode;
/// use http_body_util::{BodyExt as _, Full};
/// use tower_resumable::{
///     MemoryStore, Scope, Upload, UploadId,
///     store::{ChunkBody, Claim as _, Claimed, Record, State, Store as _},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::default();
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), Some(5));
///
/// for (offset, bytes) in [(3, "lo"), (0, "hel")] {
///     let source = Full::new(bytes.into()).map_err(|never| match never {});
///     let mut source = pin!(source);
///     let mut body = ChunkBody::new(source.as_mut(), Some(bytes.len() as u64), 0);
///     let progress = store.write(&upload, offset, &mut body).await?;
///     assert_eq!(progress.complete, offset == 0);
/// }
///
/// let Claimed::Won(mut claim) = store.claim(&upload).await? else {
///     panic!("another request delivers it")
/// };
/// let file = claim.sealed().content().collect().await?.to_bytes();
/// assert_eq!(file, "hello");
///
/// // What the inner service has answered.
/// let expires = SystemTime::now() + Duration::from_secs(60);
/// claim.settle(&Record::new(true, StatusCode::CREATED, 5, expires)).await?;
/// let status = store.status(&upload.id).await?.expect("the record has not expired");
/// assert!(matches!(status.state, State::Settled(_)));
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a store of uploads",
    note = "`FileStore`, `MemoryStore` and (with the feature `object-store`) `BucketStore` are",
    note = "a store has to be `Debug + Send + Sync + 'static`"
)]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// The right to deliver one upload.
    type Claim: Claim;

    /// Creates the upload, durably, before any byte of it arrives.
    ///
    /// Idempotent: if the upload exists nothing changes. Returns what is stored of it. An upload of
    /// length 0 is [`Complete`](State::Complete) at once.
    ///
    /// # Errors
    ///
    /// [`TooLarge`](StoreError::TooLarge) and [`Unsupported`](StoreError::Unsupported) if the store
    /// can never keep such an upload. [`Conflict`](StoreError::Conflict) if the upload exists with
    /// another length.
    fn create(&self, upload: &Upload) -> impl Future<Output = Result<Status, StoreError>> + Send;

    /// Stores the bytes of `body` at `offset` of the upload, and creates the upload if it is
    /// absent.
    ///
    /// Returns the progress of the upload, including these bytes. Bytes that are stored already are
    /// dropped if they are the same. Otherwise the error is [`Conflict`](StoreError::Conflict).
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create), [`Body`](StoreError::Body) with the error of `body`,
    /// [`OutOfBounds`](StoreError::OutOfBounds), [`ChunkTooLarge`](StoreError::ChunkTooLarge),
    /// [`TooManyRanges`](StoreError::TooManyRanges), and [`Superseded`](StoreError::Superseded) if
    /// another request has taken over the range or has removed the upload.
    fn write(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> impl Future<Output = Result<Progress, StoreError>> + Send;

    /// Like [`write`](Self::write), and may take the claim of an upload that these bytes complete,
    /// as [`claim`](Self::claim) of [`body.describe(upload)`](ChunkBody::describe) would.
    ///
    /// For stores where that is less work than two calls. The layer delivers the upload if it gets
    /// the claim, and otherwise calls `claim`. A store must not claim an upload that was complete
    /// before, because each claim counts an attempt.
    ///
    /// The default only writes.
    ///
    /// # Errors
    ///
    /// Those of [`write`](Self::write).
    fn write_and_claim(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> impl Future<Output = Result<(Progress, Option<Self::Claim>), StoreError>> + Send {
        async move { Ok((self.write(upload, offset, body).await?, None)) }
    }

    /// Returns what is stored of an upload. `None` if the upload is absent, or its record has
    /// expired.
    ///
    /// This [touches](Expiry::abandoned_before) the upload. A store may note that with a delay of
    /// minutes, or not at all if it would have to write to a remote backend.
    fn status(
        &self,
        id: &UploadId,
    ) -> impl Future<Output = Result<Option<Status>, StoreError>> + Send;

    /// Takes the right to deliver a complete upload, and seals it.
    ///
    /// The first claim publishes the file, durably, under its final name, and keeps `upload`, as
    /// the completing request described it, but with the stored [length](Upload::length). Each
    /// claim counts one more [attempt](Sealed::attempt).
    ///
    /// The store need not look at the [role](Upload::role): the layer claims no parts.
    fn claim(
        &self,
        upload: &Upload,
    ) -> impl Future<Output = Result<Claimed<Self::Claim>, StoreError>> + Send;

    /// Removes an upload that is neither settled nor claimed, with its file. Returns `false` if
    /// nothing was removed.
    ///
    /// Does not wait for the body of a request that is writing to it. That request fails with
    /// [`Superseded`](StoreError::Superseded), or its chunk starts a new upload.
    fn remove(&self, id: &UploadId) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Ends the [record](Record) of an upload that was rejected, before it expires: the upload is
    /// absent then, and can be sent again. Returns `false` if nothing was ended. Changes no upload
    /// that is not settled, and no record of a delivery.
    ///
    /// The default ends nothing, so that such an upload begins anew when its record expires.
    fn forget_rejection(
        &self,
        id: &UploadId,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let _ = id;
        async { Ok(false) }
    }

    /// Ends the [record](Record) of an upload that was settled, before it expires: the upload is
    /// absent then. Returns `false` if nothing was ended. The file of a delivered upload stays: it
    /// belongs to the application.
    ///
    /// The default ends nothing. A store with [appends](Capabilities::append) should do it: a
    /// client of tus that removes an upload expects it to be absent.
    fn forget(&self, id: &UploadId) -> impl Future<Output = Result<bool, StoreError>> + Send {
        let _ = id;
        async { Ok(false) }
    }

    /// Lists uploads that are not settled, in the order of their ids, starting after the id
    /// `after`, which need not exist. A page has at most [`Page::MAX`] uploads.
    ///
    /// Uploads that cannot be read are skipped. An upload that its first chunk creates need not be
    /// listed before that chunk is stored.
    fn list(
        &self,
        filter: &Filter,
        after: Option<&UploadId>,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Removes what has expired: see [`Expiry`]. Returns how many uploads were removed. An upload
    /// that cannot be removed does not keep others from being removed.
    fn sweep(&self, expiry: &Expiry) -> impl Future<Output = Result<Swept, StoreError>> + Send;

    /// Returns what each upload that is not settled takes of the [limits](crate::Limits).
    ///
    /// The layer calls it for the first new upload of a process, and before it refuses an upload.
    /// The default [lists](Self::list) all uploads. Override it if the store can answer with less
    /// work.
    fn usage(&self) -> impl Future<Output = Result<Vec<Usage>, StoreError>> + Send {
        async {
            let (filter, mut after, mut usage) = (Filter::default(), None, Vec::new());
            loop {
                let page = self.list(&filter, after.as_ref()).await?;
                usage.extend(page.uploads.iter().map(Usage::from));
                match page.next {
                    Some(next) => after = Some(next),
                    None => return Ok(usage),
                }
            }
        }
    }

    /// What the store can do beside the required methods. The default is nothing.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// Ends the [append](Self::append) that is running, on any server, and returns what is stored.
    /// `None` if the upload is absent, or its record has expired.
    ///
    /// The append need not have returned, but the result is durable, and no append that began
    /// before this call adds to it. An append at [`Status::prefix`] of the result succeeds, unless
    /// another one begins before. Touches the upload, as [`status`](Self::status) does.
    ///
    /// # Errors
    ///
    /// [`Busy`](StoreError::Busy) if the append does not end in time: wait for about two seconds.
    fn interrupt(
        &self,
        id: &UploadId,
    ) -> impl Future<Output = Result<Option<Status>, StoreError>> + Send {
        let _ = id;
        async { Err(StoreError::Unsupported) }
    }

    /// Adds the bytes of `body` at the end of what is stored of an upload that
    /// [`create`](Self::create) has made. All its bytes come by appends, so its stored bytes are
    /// one range.
    ///
    /// The append that is running ends first, as by [`interrupt`](Self::interrupt), even if this
    /// one then fails. Then [`Append::offset`] has to be the number of stored bytes. The body can
    /// be a whole file: the bytes are made durable every few MiB, so that a crash loses little.
    /// They count before the body has ended, so the upload may be complete, and be claimed, before
    /// `append` returns.
    ///
    /// If no length is stored, the [length](Upload::length) of `upload` becomes that of the upload,
    /// durably, even if the body fails. The same holds for the length that its
    /// [`creation`](Upload::creation) has, which completes nothing and bounds nothing. A complete
    /// or settled upload takes an empty body at its end.
    ///
    /// # Errors
    ///
    /// The first of these:
    ///
    /// * [`Superseded`](StoreError::Superseded) if the upload is absent.
    /// * [`Offset`](StoreError::Offset) if another number of bytes is stored. Nothing is changed.
    /// * [`Conflict`](StoreError::Conflict) if another length is stored. Nothing is changed.
    /// * [`OutOfBounds`](StoreError::OutOfBounds) if the length is less than what is stored, or the
    ///   body [declares](ChunkBody::exact_len) more bytes than are missing. Nothing is changed.
    ///
    /// And these, while the body is read. With [`Keep::Prefix`] the bytes before the failure are
    /// stored, durably. With [`Keep::Whole`] none of the append are.
    ///
    /// * [`Body`](StoreError::Body) with the error of `body`.
    /// * [`Superseded`](StoreError::Superseded) if a newer request has ended this append, or the
    ///   upload was removed.
    /// * [`OutOfBounds`](StoreError::OutOfBounds) if a body that declares no length has more bytes
    ///   than are missing. Nothing beyond the length is stored. The last bytes before it may be
    ///   missing too.
    /// * [`Busy`](StoreError::Busy) as for `interrupt`.
    fn append(
        &self,
        upload: &Upload,
        append: Append,
        body: &mut ChunkBody<'_>,
    ) -> impl Future<Output = Result<Progress, StoreError>> + Send {
        let _ = (upload, append, body);
        async { Err(StoreError::Unsupported) }
    }

    /// Makes `upload` of the bytes of `parts`, one after another, and completes it: its length is
    /// the sum of theirs. A part may be used more than once. The parts stay. `upload` may be
    /// absent, or made by [`create`](Self::create), but has no bytes of appends.
    ///
    /// Idempotent: if the upload is complete or settled nothing changes, also if the parts are
    /// gone. If it fails, what it has written is removed, at the latest by the next call or by a
    /// sweep.
    ///
    /// # Errors
    ///
    /// [`Superseded`](StoreError::Superseded) if a part is absent, not complete, sealed or settled.
    /// [`Conflict`](StoreError::Conflict) if `upload` exists with another length than the sum.
    /// [`Busy`](StoreError::Busy) if another call is making the same upload. Those of
    /// [`create`](Self::create).
    fn concat(
        &self,
        upload: &Upload,
        parts: &[UploadId],
    ) -> impl Future<Output = Result<Progress, StoreError>> + Send {
        let _ = (upload, parts);
        async { Err(StoreError::Unsupported) }
    }

    /// Sets what receives the [events](StoreEvent) of this store. A store that several layers use
    /// may report to the last one only.
    ///
    /// The default has no events.
    fn observe(&self, observer: Observer) {
        drop(observer);
    }

    /// Keeps the bytes of a file part that arrives before the fields that say where it belongs. The
    /// store drops them with the returned content.
    ///
    /// The default keeps them in memory: up to [`max_len`](ChunkBody::max_len) bytes, which the
    /// layer sets to the largest chunk that its [limits](crate::Limits) allow.
    fn spool(
        &self,
        body: &mut ChunkBody<'_>,
    ) -> impl Future<Output = Result<Content, StoreError>> + Send {
        async {
            let mut bytes = bytes::BytesMut::new();
            while let Some(piece) = body.next().await {
                bytes.extend_from_slice(&piece?);
            }
            Ok(Content::from(bytes.freeze()))
        }
    }
}

/// The right to deliver one sealed upload, returned by [`Store::claim`].
///
/// Dropping it ends the claim, as does the death of the process.
///
/// ```
/// use tower_resumable::{MemoryStore, Scope, Upload, UploadId};
/// use tower_resumable::store::{Claim as _, Claimed, Store as _};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::default();
/// // An empty file is complete when it is created.
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), Some(0));
/// store.create(&upload).await?;
///
/// let Claimed::Won(first) = store.claim(&upload).await? else { panic!() };
/// assert!(matches!(store.claim(&upload).await?, Claimed::Busy));
/// let (id, attempt) = (first.sealed().id.clone(), first.sealed().attempt);
/// first.release().await;
///
/// // The next attempt has the same id.
/// let Claimed::Won(second) = store.claim(&upload).await? else { panic!() };
/// assert_eq!(second.sealed().id, id);
/// assert_eq!(second.sealed().attempt, attempt + 1);
/// # Ok(())
/// # }
/// ```
pub trait Claim: Send + Sync + 'static {
    /// The sealed upload.
    fn sealed(&self) -> &Sealed;

    /// Records the answer of the inner service, durably, and removes the file if the answer
    /// [rejects](Record::delivered) it.
    ///
    /// After an error it can be called again. After `Ok` the claim has ended.
    ///
    /// # Errors
    ///
    /// [`Superseded`](StoreError::Superseded) if the upload is gone, or another server has settled
    /// it.
    fn settle(&mut self, record: &Record) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends the claim. The upload stays complete, and other requests can claim it: on other servers
    /// maybe a moment later.
    ///
    /// The default drops the claim.
    fn release(self) -> impl Future<Output = ()> + Send
    where
        Self: Sized,
    {
        async { drop(self) }
    }
}

/// Outcome of [`Store::claim`].
#[derive(Debug)]
pub enum Claimed<C> {
    /// The caller may deliver the upload.
    Won(C),
    /// Another request is delivering it.
    Busy,
    /// It was delivered or rejected.
    Settled(Record),
    /// There is nothing to deliver: bytes are missing, or the upload is absent.
    Incomplete,
}

impl<C> Claimed<C> {
    pub(crate) fn map<D>(self, map: impl FnOnce(C) -> D) -> Claimed<D> {
        match self {
            Self::Won(claim) => Claimed::Won(map(claim)),
            Self::Busy => Claimed::Busy,
            Self::Settled(record) => Claimed::Settled(record),
            Self::Incomplete => Claimed::Incomplete,
        }
    }
}

/// What a store can do beside the required methods of [`Store`].
///
/// ```
/// use tower_resumable::store::Capabilities;
///
/// let mut capabilities = Capabilities::default();
/// assert!(!capabilities.append);
/// capabilities.append = true;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capabilities {
    /// [`append`](Store::append) and [`interrupt`](Store::interrupt) work.
    pub append: bool,
    /// [`concat`](Store::concat) works.
    pub concat: bool,
}

/// How [`Store::append`] adds bytes.
///
/// ```
/// use std::pin::pin;
/// use http_body_util::{BodyExt as _, Full};
/// use tower_resumable::{
///     MemoryStore, Scope, Upload, UploadId,
///     store::{Append, ChunkBody, Keep, Store as _, StoreError},
/// };
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::default();
/// // The length is not known yet.
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), None);
/// store.create(&upload).await?;
///
/// let mut append = Append::at(0);
/// assert_eq!((append.keep, append.ends_here), (Keep::Prefix, false));
/// append.ends_here = true;
/// let source = Full::new("hello".into()).map_err(|never| match never {});
/// let mut source = pin!(source);
/// let mut body = ChunkBody::new(source.as_mut(), Some(5), 0);
/// assert!(store.append(&upload, append, &mut body).await?.complete);
///
/// // Five bytes are stored, not three.
/// let mut empty = pin!(Full::default().map_err(|never| match never {}));
/// let mut body = ChunkBody::new(empty.as_mut(), Some(0), 0);
/// let error = store.append(&upload, Append::at(3), &mut body).await.unwrap_err();
/// assert!(matches!(error, StoreError::Offset { stored: 5 }));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Append {
    /// How many bytes are stored, as the client believes.
    pub offset: u64,
    /// Which bytes stay if the body fails. Default: [`Keep::Prefix`].
    pub keep: Keep,
    /// The file ends with this body: if no length is known, the end of the body becomes the
    /// length, once the body has ended well. Default: `false`.
    pub ends_here: bool,
}

impl Append {
    /// An append at this offset, with the defaults.
    pub fn at(offset: u64) -> Self {
        Self {
            offset,
            keep: Keep::Prefix,
            ends_here: false,
        }
    }
}

/// Which bytes of an [`Append`] stay if it fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// None: all bytes of the body are stored, or none.
    Whole,
    /// The bytes that arrived before the failure. [`append`](Store::append) still returns the
    /// error.
    Prefix,
}

/// Which uploads [`Store::list`] returns. The default is all that are not settled.
///
/// ```
/// use tower_resumable::{Scope, Upload, UploadId};
/// use tower_resumable::store::{Filter, Progress};
///
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::new("ann"), Some(10));
/// let half = Progress { received: 5, complete: false };
/// assert!(Filter::default().accepts(&upload, half));
/// assert!(!Filter::complete().accepts(&upload, half));
/// assert!(!Filter::default().with_scope(Scope::new("bob")).accepts(&upload, half));
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Filter {
    /// Only uploads of this scope.
    pub scope: Option<Scope>,
    /// Only complete uploads, without [parts](Role::Part): those that can be delivered. Each listed
    /// upload is durably complete, even if the request that completed it has not returned yet, so
    /// it can be claimed.
    pub complete: bool,
}

impl Filter {
    /// Creates a filter for all complete uploads that are not settled.
    pub fn complete() -> Self {
        Self {
            complete: true,
            ..Self::default()
        }
    }

    /// Limits the filter to the uploads of `scope`.
    #[must_use]
    pub fn with_scope(mut self, scope: Scope) -> Self {
        self.scope = Some(scope);
        self
    }

    /// Whether an upload with this progress is to be listed.
    pub fn accepts(&self, upload: &Upload, progress: Progress) -> bool {
        let of_scope = self
            .scope
            .as_ref()
            .is_none_or(|scope| upload.scope == *scope);
        let is_asked = progress.complete && upload.role == Role::Whole;
        of_scope && (is_asked || !self.complete)
    }
}

/// Some of the uploads that a [`Filter`] accepts.
///
/// ```
/// use tower_resumable::{MemoryStore, Scope, Upload, UploadId};
/// use tower_resumable::store::{Filter, Store as _};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::default();
/// for n in 0..3 {
///     let id = UploadId::from_bytes([n; 32]);
///     store.create(&Upload::new(id, Scope::default(), Some(10))).await?;
/// }
///
/// let (mut after, mut found) = (None, Vec::new());
/// loop {
///     let page = store.list(&Filter::default(), after.as_ref()).await?;
///     found.extend(page.uploads);
///     after = page.next;
///     if after.is_none() {
///         break;
///     }
/// }
/// assert_eq!(found.len(), 3);
/// assert_eq!(found[0].progress.received, 0);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Page {
    /// The uploads, in the order of their ids. May be empty although more follow.
    pub uploads: Vec<Listed>,
    /// The `after` of the next page. `None` if this is the last one.
    pub next: Option<UploadId>,
}

impl Page {
    /// The maximum number of uploads of a page.
    pub const MAX: usize = 1000;

    /// Creates a page.
    pub fn new(uploads: Vec<Listed>, next: Option<UploadId>) -> Self {
        Self { uploads, next }
    }
}

/// An upload in a [`Page`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Listed {
    /// The upload as its first request described it. Once it is sealed: as the request described it
    /// that completed it.
    pub upload: Upload,
    /// How many bytes of it are stored.
    pub progress: Progress,
}

impl Listed {
    /// Creates an entry of a page.
    pub fn new(upload: Upload, progress: Progress) -> Self {
        Self { upload, progress }
    }
}

/// What an upload takes of the [limits](crate::Limits), as [`Store::usage`] returns it.
///
/// ```
/// use tower_resumable::{Scope, Upload, UploadId};
/// use tower_resumable::store::{ScopeHash, Usage};
///
/// let scope = Scope::new("ann");
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), scope.clone(), Some(10));
/// let usage = Usage::from(&upload);
/// assert_eq!((usage.scope, usage.bytes), (ScopeHash::new(&scope), 10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub struct Usage {
    /// The upload.
    pub id: UploadId,
    /// The hash of the owner.
    pub scope: ScopeHash,
    /// Bytes that count: the declared length, or what is stored while that is unknown.
    pub bytes: u64,
}

impl Usage {
    /// Creates the usage of an upload. `bytes` is what counts against the limits.
    pub fn new(id: UploadId, scope: ScopeHash, bytes: u64) -> Self {
        Self { id, scope, bytes }
    }
}

impl From<&Upload> for Usage {
    fn from(upload: &Upload) -> Self {
        let bytes = upload.length.unwrap_or_default();
        Self::new(upload.id, ScopeHash::new(&upload.scope), bytes)
    }
}

impl From<&Listed> for Usage {
    fn from(listed: &Listed) -> Self {
        let bytes = listed.upload.length.unwrap_or(listed.progress.received);
        let usage = Self::from(&listed.upload);
        Self { bytes, ..usage }
    }
}

/// The first half of a SHA-256 over a [`Scope`].
///
/// ```
/// use tower_resumable::{Scope, store::ScopeHash};
///
/// let hash = ScopeHash::new(&Scope::new("ann"));
/// assert_eq!(ScopeHash::from_hex(&hash.to_string()), Some(hash));
/// assert_eq!(ScopeHash::from_hex("ann"), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeHash([u8; 16]);

impl ScopeHash {
    /// The hash of this scope.
    pub fn new(scope: &Scope) -> Self {
        let mut half = [0; 16];
        half.copy_from_slice(&Sha256::digest(scope.as_str())[..16]);
        Self(half)
    }

    /// Parses what [`Display`](std::fmt::Display) writes: 32 lower-case hexadecimal digits. `None`
    /// for any other text.
    pub fn from_hex(hex: &str) -> Option<Self> {
        hex::decode_exact(hex).map(Self)
    }
}

impl std::fmt::Display for ScopeHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Hex(&self.0).fmt(f)
    }
}

impl std::fmt::Debug for ScopeHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ScopeHash({self})")
    }
}

/// What [`Store::sweep`] removes. The default removes expired records only.
///
/// A limit in the past stands for an age. A store may measure that with a clock that does not jump
/// when the clock of the system does. A limit in the future is for everything.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tower_resumable::{MemoryStore, Scope, Upload, UploadId};
/// use tower_resumable::store::{Expiry, Store as _};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::default();
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), Some(10));
/// store.create(&upload).await?;
///
/// let mut expiry = Expiry::default();
/// assert_eq!(store.sweep(&expiry).await?.abandoned, 0);
/// let hour = Duration::from_secs(3600);
/// expiry.abandoned_before = Some(SystemTime::now() - hour);
/// assert_eq!(store.sweep(&expiry).await?.abandoned, 0);
/// expiry.abandoned_before = Some(SystemTime::now() + hour);
/// assert_eq!(store.sweep(&expiry).await?.abandoned, 1);
/// assert!(store.status(&upload.id).await?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Expiry {
    /// Incomplete uploads, and complete [parts](Role::Part), that were last touched before this
    /// time: by a request that wrote to them or [asked for their status](Store::status). `None`
    /// keeps all.
    pub abandoned_before: Option<SystemTime>,
    /// Complete uploads but parts that are not settled and were last touched before this time.
    /// `None` keeps all.
    pub undelivered_before: Option<SystemTime>,
    /// Records that expired before this time. Default: now.
    pub records_before: SystemTime,
}

impl Default for Expiry {
    fn default() -> Self {
        Self {
            abandoned_before: None,
            undelivered_before: None,
            records_before: SystemTime::now(),
        }
    }
}

impl Expiry {
    /// The limits by the clock of a store instead of that of the system, which has the time
    /// `system`.
    fn by(&self, clock: &Clock, system: SystemTime) -> Self {
        let earlier = |before: SystemTime| {
            // A limit in the future is for everything.
            if before > system {
                before
            } else {
                clock.of(before, system)
            }
        };
        Self {
            abandoned_before: self.abandoned_before.map(earlier),
            undelivered_before: self.undelivered_before.map(earlier),
            records_before: earlier(self.records_before),
        }
    }
}

/// What [`Store::sweep`] has removed, as numbers of uploads.
///
/// The struct can get more fields, so create it with `default` and assign its fields:
///
/// ```
/// use tower_resumable::store::Swept;
///
/// let mut swept = Swept::default();
/// swept.records += 2;
/// assert_eq!((swept.abandoned, swept.undelivered, swept.records), (0, 0, 2));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Swept {
    /// Incomplete uploads.
    pub abandoned: u64,
    /// Complete uploads that were not settled.
    pub undelivered: u64,
    /// Records.
    pub records: u64,
}

/// 128 random bits as 32 hexadecimal digits.
pub(crate) fn random_id() -> Result<String, StoreError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::new(error.to_string()))?;
    Ok(Hex(&bytes).to_string())
}
