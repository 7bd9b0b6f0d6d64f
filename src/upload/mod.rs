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
    model::upload::{Creation, Scope, UploadId},
    names::{safe_file_name, safe_relative_path},
    store::{Sealed, content::Content},
};

/// A complete upload, in the extensions of the request that the inner service gets.
///
/// With the feature `axum` it is an extractor. [`file_name`], [`relative_path`], [`content_type`]
/// and [`fields`] come from the client: do not trust them.
///
/// The status of the inner service's answer decides what happens to the file; see
/// [`Verdict`](crate::Verdict) for all cases. After 2xx and 3xx the file belongs to the
/// application, and stays where it is. After a status that is about the file, such as 422, it is
/// removed. After all others, an error or a panic it is kept, and delivered again with the next
/// request for it, or by [`Uploads::deliver_every`](crate::Uploads::deliver_every), with the same
/// [`id`] and the next [`attempt`].
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

    /// The idempotency key of the delivery. No other upload ever has the same.
    ///
    /// Without crashes the upload is delivered once. After a crash it may be delivered again with
    /// the same id. An application that stores the id together with its effect can detect that.
    pub fn id(&self) -> &str {
        &self.sealed.id
    }

    /// 1 for the first delivery of this upload, 2 for the second, and so on.
    pub fn attempt(&self) -> u32 {
        self.sealed.attempt
    }

    /// Whether this delivery still has the exclusive right to the upload. Looks at memory only.
    ///
    /// The claims of `FileStore` and `MemoryStore` live as long as the process, so this is always
    /// `true`. A claim of a `BucketStore` has to be renewed in the bucket. While that is impossible
    /// for longer than its lease, this is `false`: another server may deliver the upload at the
    /// same time, with the same [`id`](Self::id) and the next [`attempt`](Self::attempt). It
    /// becomes `true` again if the claim can be renewed before another server takes it.
    ///
    /// Ask before an effect that must not happen twice, and answer with 503 if the claim is lost.
    /// The check makes two effects unlikely. Only the [`id`](Self::id), stored together with the
    /// effect, excludes them: a process that was suspended does not notice it at once. After the
    /// handler has answered, the value has no meaning.
    ///
    /// ```
    /// use http::{Response, StatusCode};
    /// use tower_resumable::CompletedUpload;
    ///
    /// async fn handler(upload: CompletedUpload) -> Response<String> {
    ///     // Takes minutes, such as a virus scan.
    ///     let size = upload.size();
    ///     let mut response = Response::new(format!("{size} bytes"));
    ///     if !upload.claim_is_live() {
    ///         // Another server may have it. The upload is kept, and delivered again.
    ///         *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    ///     }
    ///     response
    /// }
    /// # use std::convert::Infallible;
    /// # use http::Request;
    /// # use http_body_util::Full;
    /// # use tower::{Layer as _, ServiceExt as _, service_fn};
    /// # use tower_resumable::{MemoryStore, ResumableLayer};
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() {
    /// # let inner = service_fn(|request: Request<_>| async move {
    /// #     let upload = request.extensions().get::<CompletedUpload>().unwrap().clone();
    /// #     assert!(upload.claim_is_live());
    /// #     let response = handler(upload).await;
    /// #     let response = response.map(|text| Full::<bytes::Bytes>::new(text.into()));
    /// #     Ok::<_, Infallible>(response)
    /// # });
    /// # let service = ResumableLayer::new(MemoryStore::default()).layer(inner);
    /// # let request = Request::post("/upload?resumableChunkNumber=1&resumableChunkSize=5\
    /// #     &resumableCurrentChunkSize=5&resumableTotalSize=5&resumableTotalChunks=1\
    /// #     &resumableIdentifier=a&resumableFilename=a.txt")
    /// #     .header("content-type", "application/octet-stream")
    /// #     .body(Full::new(bytes::Bytes::from("hello"))).unwrap();
    /// # let response = service.oneshot(request).await.unwrap();
    /// # assert_eq!(response.status(), 200);
    /// # }
    /// ```
    pub fn claim_is_live(&self) -> bool {
        self.sealed.claim_is_live()
    }

    /// The id of the upload: a hash of its scope and of what identifies it. The same file uploaded
    /// again has the same upload id, but another [`id`](Self::id).
    pub fn upload_id(&self) -> &UploadId {
        &self.sealed.upload.id
    }

    /// The size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.sealed.size()
    }

    /// The path of the finished file. `None` if the store does not keep it in the local file
    /// system.
    ///
    /// The file is complete and durable, and the layer never writes to it again. A handler for all
    /// stores uses [`content`](Self::content), or [`copy_to`](Self::copy_to) if it needs a path.
    pub fn path(&self) -> Option<&Path> {
        self.sealed.stored.path()
    }

    /// The file as its store represents it, if that is a `T`: for example
    /// `tower_resumable::store::StoredObject`. `None` for another store.
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

    /// The path of the file inside the folder that the user has chosen, from the client. Do not
    /// trust it.
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

    /// The application's own fields (the `query` option of Resumable.js) of the request that
    /// completed the upload.
    pub fn fields(&self) -> &[(String, String)] {
        &self.sealed.upload.fields
    }

    /// The value of the first of the application's own fields with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.sealed.upload.field(name)
    }

    /// The request that created the upload, if it has a URL, as those of
    /// [tus](crate::Protocol::tus). It has the whole `Upload-Metadata`.
    pub fn creation(&self) -> Option<&Creation> {
        self.sealed.upload.creation.as_ref()
    }

    /// Reads the finished file, from any store. It can be read more than once.
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
    /// In a later [`attempt`](Self::attempt) it is no error if an earlier one has already copied
    /// the file to `to`: a file with the same bytes. After an error, or if the future is dropped,
    /// there is nothing new at `to`.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is something at `to`.
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone, because it was moved. Errors of
    /// the file system and of the store.
    pub async fn copy_to(&self, to: impl AsRef<Path>) -> io::Result<()> {
        persist::copy(&self.sealed, to.as_ref()).await
    }

    /// Moves the finished file to `to`: durably, and never over an existing file. Parent
    /// directories are not created.
    ///
    /// Within one file system this is a rename. The file of another store is copied, and deleted
    /// from the store when the copy is durable. In a later [`attempt`](Self::attempt) it is no
    /// error if an earlier one has already moved the file to `to`: a file with the same bytes. If
    /// the store has its file no more, the [CRC-32](Self::crc32) is compared instead.
    ///
    /// The folders of a `FileStore` that become empty are removed.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is something at `to`.
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone, because it was moved elsewhere.
    /// Errors of the file system and of the store.
    pub async fn persist(&self, to: impl AsRef<Path>) -> io::Result<()> {
        persist::move_to(&self.sealed, to.as_ref()).await
    }
}
