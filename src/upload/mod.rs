use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

#[cfg(feature = "axum")]
mod extract;
mod persist;

#[cfg(feature = "axum")]
pub use self::extract::MissingUpload;
use crate::{
    model::upload::{Scope, UploadId},
    names::{safe_file_name, safe_relative_path},
    store::{Sealed, content::Content},
};

/// A complete upload, in the extensions of the request that the inner service gets.
///
/// With the feature `axum` it is an extractor. [`file_name`], [`relative_path`], [`content_type`] and
/// [`fields`] come from the client: do not trust them.
///
/// The status of the inner service's answer decides what happens to the file; see
/// [`Verdict`](crate::Verdict) for all cases. With 2xx and 3xx the file belongs to the application, and
/// stays where it is. With most 4xx the file is removed. With 5xx, an error or a panic the upload is
/// kept, and delivered again with the next request for it or after a restart, with the same [`id`] and
/// the next [`attempt`].
///
/// [`file_name`]: Self::file_name
/// [`relative_path`]: Self::relative_path
/// [`content_type`]: Self::content_type
/// [`fields`]: Self::fields
/// [`id`]: Self::id
/// [`attempt`]: Self::attempt
///
/// ```
/// use http::{Request, Response};
/// use tower_resumable::CompletedUpload;
///
/// async fn inner(request: Request<String>) -> Response<String> {
///     match request.extensions().get::<CompletedUpload>() {
///         Some(upload) => Response::new(format!("thank you for {}", upload.safe_file_name())),
///         None => Response::new("no upload".into()),
///     }
/// }
/// # let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
/// # let response = runtime.block_on(inner(Request::new(String::new())));
/// # assert_eq!(response.body(), "no upload");
/// ```
#[derive(Clone, Debug)]
pub struct CompletedUpload {
    sealed: Arc<Sealed>,
}

impl CompletedUpload {
    pub(crate) fn new(sealed: Sealed) -> Self {
        Self {
            sealed: Arc::new(sealed),
        }
    }

    /// The idempotency key: names this upload for good.
    ///
    /// Without crashes there is one delivery. After a crash there may be another one with the same id:
    /// an application that stores the id together with its effect can tell.
    pub fn id(&self) -> &str {
        &self.sealed.id
    }

    /// 1 for the first delivery of this upload, 2 for the second, and so on.
    pub fn attempt(&self) -> u32 {
        self.sealed.attempt
    }

    /// The hash of the scope and of what identifies the upload. The same file uploaded again has the
    /// same upload id, and another [`id`](Self::id).
    pub fn upload_id(&self) -> &UploadId {
        &self.sealed.upload.id
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.sealed.size()
    }

    /// The path of the finished file. `None` if the store does not keep it in the local file system.
    ///
    /// The file is complete and durable, and the layer never writes to it again. A handler for all
    /// stores uses [`content`](Self::content), or [`copy_to`](Self::copy_to) if it needs a path.
    pub fn path(&self) -> Option<&Path> {
        self.sealed.stored.path()
    }

    /// The finished file as its store knows it, if it is a `T`: for example a
    /// `tower_resumable::store::StoredObject`.
    pub fn stored_as<T: 'static>(&self) -> Option<&T> {
        self.sealed.stored.as_any()?.downcast_ref()
    }

    /// CRC-32 (as in zlib and PNG) of the file, if the store knows it without reading the file.
    pub fn crc32(&self) -> Option<u32> {
        self.sealed.crc32
    }

    /// The name of the file, from the client. Do not trust it: it can be `../../etc/passwd`.
    pub fn file_name(&self) -> Option<&str> {
        self.sealed.upload.file_name.as_deref()
    }

    /// A name that is safe in every file system: see [`safe_file_name`].
    pub fn safe_file_name(&self) -> String {
        safe_file_name(self.file_name().unwrap_or_default())
    }

    /// The path of the file inside the folder that the user has chosen, from the client. Do not trust it.
    pub fn relative_path(&self) -> Option<&str> {
        self.sealed.upload.relative_path.as_deref()
    }

    /// A path that is safe below any folder, with the folders that the client has sent: see
    /// [`safe_relative_path`]. Without a path it is the [`safe_file_name`](Self::safe_file_name).
    pub fn safe_relative_path(&self) -> PathBuf {
        match self.relative_path().filter(|path| !path.is_empty()) {
            Some(path) => safe_relative_path(path),
            None => self.safe_file_name().into(),
        }
    }

    /// The media type of the file, from the client. Do not trust it.
    pub fn content_type(&self) -> Option<&str> {
        self.sealed.upload.content_type.as_deref()
    }

    /// The client's identifier of the file.
    pub fn identifier(&self) -> &str {
        &self.sealed.upload.identifier
    }

    /// The owner of the upload, from [`with_scope`](crate::ResumableLayer::with_scope).
    pub fn scope(&self) -> &Scope {
        &self.sealed.upload.scope
    }

    /// The application's own fields (the `query` option of Resumable.js) of the request that completed
    /// the upload.
    pub fn fields(&self) -> &[(String, String)] {
        &self.sealed.upload.fields
    }

    /// The first of the application's own fields with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.sealed.upload.field(name)
    }

    /// Reads the finished file, from any store.
    ///
    /// ```
    /// # async fn handler(upload: tower_resumable::CompletedUpload) -> std::io::Result<()> {
    /// let mut content = upload.content();
    /// let mut bytes = 0;
    /// while let Some(piece) = content.next().await {
    ///     bytes += piece?.len() as u64;
    /// }
    /// assert_eq!(bytes, upload.size());
    /// # Ok(())
    /// # }
    /// ```
    pub fn content(&self) -> Content {
        self.sealed.content()
    }

    /// Copies the finished file to `to`, from any store: durably, and never over an existing file.
    /// Parent directories are not created.
    ///
    /// In a later [`attempt`](Self::attempt) it is no error if an earlier one has copied the file to
    /// `to`. After an error, or if the future is dropped, nothing is at `to`.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is something at `to`.
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone, because it was moved. Errors of the
    /// file system and of the store.
    pub async fn copy_to(&self, to: impl AsRef<Path>) -> io::Result<()> {
        persist::copy(&self.sealed, to.as_ref()).await
    }

    /// Moves the finished file to `to`: durably, and never over an existing file. Parent directories
    /// are not created.
    ///
    /// Within one file system this is a rename. A file of another store is copied, and deleted there
    /// when the copy is durable. In a later [`attempt`](Self::attempt) it is no error if an earlier one
    /// has moved the file to `to`.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is something at `to`.
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone, because it was moved elsewhere. Errors
    /// of the file system and of the store.
    pub async fn persist(&self, to: impl AsRef<Path>) -> io::Result<()> {
        persist::move_to(&self.sealed, to.as_ref()).await
    }
}
