use std::{any::Any, fmt, io, path::Path, pin::Pin, sync::Arc};

use bytes::Bytes;

use super::{Content, export};
use crate::model::upload::Upload;

/// A boxed future, as the dyn-compatible methods of [`Stored`] return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A complete upload whose file is published under its final name.
///
/// ```
/// use http_body_util::BodyExt as _;
/// use tower_resumable::{Scope, Upload, UploadId, store::Sealed};
/// # use tower_resumable::{Content, store::{BoxFuture, Stored}};
/// # #[derive(Debug)]
/// # struct Row(&'static str);
/// # impl Stored for Row {
/// #     fn read(&self) -> Content {
/// #         self.0.into()
/// #     }
/// #     fn delete(&self) -> BoxFuture<'_, std::io::Result<()>> {
/// #         Box::pin(async { Ok(()) })
/// #     }
/// # }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let upload = Upload::new(UploadId::from_bytes([1; 32]), Scope::default(), Some(5));
/// // `Row` is a `Stored`.
/// let sealed = Sealed::new("a0a98a1f".into(), upload, 1, Row("hello"));
/// assert_eq!(sealed.size(), 5);
/// assert_eq!(sealed.content().collect().await?.to_bytes(), "hello");
/// assert!(sealed.claim_is_live());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Sealed {
    /// The idempotency key of the deliveries of this upload. A file that is uploaded again has the
    /// same [`UploadId`](crate::UploadId) but another id, so a store makes it from random bits.
    pub id: String,
    /// The file.
    pub stored: Arc<dyn Stored>,
    /// The upload as the request described it that completed it.
    pub upload: Arc<Upload>,
    /// The number of this delivery: 1 for the first one.
    pub attempt: u32,
    /// CRC-32 (as in zlib and PNG) of the file, if the store knows it without reading the file.
    pub crc32: Option<u32>,
    claim: LiveClaim,
}

impl Sealed {
    /// Creates a sealed upload whose CRC-32 is unknown.
    pub fn new(
        id: String,
        upload: impl Into<Arc<Upload>>,
        attempt: u32,
        stored: impl Stored,
    ) -> Self {
        Self {
            id,
            stored: Arc::new(stored),
            upload: upload.into(),
            attempt,
            crc32: None,
            claim: LiveClaim(None),
        }
    }

    /// Sets the CRC-32 of the file.
    #[must_use]
    pub fn with_crc32(mut self, crc32: u32) -> Self {
        self.crc32 = Some(crc32);
        self
    }

    /// Sets how to find out whether the claim of this delivery is live. `is_live` must not block.
    ///
    /// For stores whose claims can end while the process lives, because other servers do not see
    /// that it does. The default is a claim that is always live.
    #[must_use]
    pub fn with_live_claim(mut self, is_live: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.claim = LiveClaim(Some(Arc::new(is_live)));
        self
    }

    /// Whether the claim of this delivery is live: see
    /// [`CompletedUpload::claim_is_live`](crate::CompletedUpload::claim_is_live).
    pub fn claim_is_live(&self) -> bool {
        self.claim.0.as_ref().is_none_or(|is_live| is_live())
    }

    /// The size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.upload.length.unwrap_or_default()
    }

    /// Reads the file. Reading fails if the file does not have exactly [`size`](Self::size) bytes.
    pub fn content(&self) -> Content {
        self.stored.read().with_exact_len(self.size())
    }
}

/// Whether a claim is live. `None` if it lives as long as the process.
#[derive(Clone)]
struct LiveClaim(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl fmt::Debug for LiveClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LiveClaim").field(&self.0.is_some()).finish()
    }
}

/// A finished file, where its store keeps it.
///
/// The file may be missing, because the application has moved it in an earlier delivery.
///
/// ```
/// use bytes::Bytes;
/// use http_body_util::BodyExt as _;
/// use tower_resumable::{Content, store::{BoxFuture, Stored}};
///
/// /// A file that is in memory, or in a row of a database.
/// #[derive(Debug)]
/// struct Row(Bytes);
///
/// impl Stored for Row {
///     fn read(&self) -> Content {
///         self.0.clone().into()
///     }
///
///     fn delete(&self) -> BoxFuture<'_, std::io::Result<()>> {
///         Box::pin(async { Ok(()) })
///     }
/// }
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> std::io::Result<()> {
/// let dir = tempfile::tempdir()?;
/// let row = Row("hello".into());
/// row.move_to(&dir.path().join("hello.txt")).await?;
/// assert_eq!(std::fs::read(dir.path().join("hello.txt"))?, b"hello");
/// # Ok(())
/// # }
/// ```
pub trait Stored: fmt::Debug + Send + Sync + 'static {
    /// The path of the file, if it is one of the local file system. Default: `None`.
    fn path(&self) -> Option<&Path> {
        None
    }

    /// Reads the file from its start. If the file is missing, reading fails with
    /// [`NotFound`](io::ErrorKind::NotFound). An empty file is not missing.
    fn read(&self) -> Content;

    /// Deletes the file. It is no error if the file is missing.
    fn delete(&self) -> BoxFuture<'_, io::Result<()>>;

    /// Moves the file to `to` in the local file system: durably, and never over an existing file.
    ///
    /// The default copies the file and then deletes it.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is something at `to`. Other errors
    /// of the file system and of the store. Nothing is at `to` then.
    fn move_to<'a>(&'a self, to: &'a Path) -> BoxFuture<'a, io::Result<()>> {
        Box::pin(async move {
            export::copy(self.read(), None, to).await?;
            self.delete().await
        })
    }

    /// Access to more than this trait offers, such as the key of an object. The docs of each store
    /// say which type this is. Default: `None`.
    ///
    /// [`CompletedUpload::stored_as`](crate::CompletedUpload::stored_as) downcasts it.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}

/// A file in memory.
impl Stored for Bytes {
    fn read(&self) -> Content {
        self.clone().into()
    }

    /// Does nothing: the memory is free when the last handle is dropped.
    fn delete(&self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async { Ok(()) })
    }
}
