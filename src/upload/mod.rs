mod content;

pub use self::content::Content;
pub(crate) use self::content::FileStream;

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    names::{safe_file_name, safe_relative_path},
    store::{Location, Sealed, UploadKey},
};

/// A finished upload, in the extensions of the request that the inner service gets.
///
/// With the feature `axum` it is an extractor. What the client said of the file ([`file_name`],
/// [`relative_path`], [`content_type`], [`fields`]) is the client's word and not to be trusted.
///
/// The inner service's answer decides what becomes of it. 2xx and 3xx: it is the application's, and
/// the file stays where it is. 4xx: the file is removed (and the client gives up). 5xx, an error or
/// a panic: the upload is kept, and delivered again with the next request for it, or after a
/// restart, with the same [`id`] and the next [`attempt`].
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

    /// Names this upload for good: the idempotency key of its deliveries.
    ///
    /// Without crashes there is one delivery. With one there may be another, of the same id: an
    /// application that stores the id together with the effect can tell.
    pub fn id(&self) -> &str {
        &self.sealed.id
    }

    /// 1 for the first delivery of this upload, 2 for the second, and so on.
    pub fn attempt(&self) -> u32 {
        self.sealed.attempt
    }

    /// Server-made name of the upload: a hash of its scope and what identifies it. The same file
    /// uploaded again has the same key, and another [`id`](Self::id).
    pub fn key(&self) -> &UploadKey {
        &self.sealed.upload.key
    }

    /// Bytes of the file.
    pub fn size(&self) -> u64 {
        self.sealed.upload.total
    }

    /// Where the finished file is; `None` if its store does not keep it in a file.
    ///
    /// It is complete, on disk, and never written again by the layer. A handler that shall work with
    /// all stores takes [`content`](Self::content), or [`copy_to`](Self::copy_to) if it needs a path.
    pub fn path(&self) -> Option<&Path> {
        match &self.sealed.location {
            Location::File(path) => Some(path),
            _ => None,
        }
    }

    /// Where the finished file is, for any store.
    pub fn location(&self) -> &Location {
        &self.sealed.location
    }

    /// CRC-32 (as in zlib and PNG) of the file, if the store knows it without reading it again.
    pub fn crc32(&self) -> Option<u32> {
        self.sealed.crc32
    }

    /// The file's name as the client gave it. Not to be trusted: it can be `../../etc/passwd`.
    pub fn file_name(&self) -> Option<&str> {
        self.sealed.upload.file_name.as_deref()
    }

    /// A name that is safe in any file system; see [`safe_file_name`].
    pub fn safe_file_name(&self) -> String {
        safe_file_name(self.file_name().unwrap_or_default())
    }

    /// The file's path inside the folder that was chosen, as the client gave it. Not to be trusted.
    pub fn relative_path(&self) -> Option<&str> {
        self.sealed.upload.relative_path.as_deref()
    }

    /// A path that is safe below any folder, with the folders that the client has sent; see
    /// [`safe_relative_path`]. The [`safe_file_name`](Self::safe_file_name) if it has sent no path.
    pub fn safe_relative_path(&self) -> PathBuf {
        match self.relative_path().filter(|path| !path.is_empty()) {
            Some(path) => safe_relative_path(path),
            None => self.safe_file_name().into(),
        }
    }

    /// The file's media type as the client gave it. Not to be trusted.
    pub fn content_type(&self) -> Option<&str> {
        self.sealed.upload.content_type.as_deref()
    }

    /// The identifier that the client gave the file.
    pub fn identifier(&self) -> &str {
        &self.sealed.upload.identifier
    }

    /// Who owns the upload, as [`with_scope`](crate::ResumableLayer::with_scope) said; else empty.
    pub fn scope(&self) -> &str {
        &self.sealed.upload.scope
    }

    /// The application's own fields (Resumable.js' `query` option), of the request that completed
    /// the upload.
    pub fn fields(&self) -> &[(String, String)] {
        &self.sealed.upload.fields
    }

    /// The first of the application's own fields with this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields()
            .iter()
            .find(|(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// Reads the finished file, from whatever store.
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
        Content::new(&self.sealed)
    }

    /// Copies the finished file to `to`, from whatever store: durably, and never over an existing
    /// file. Parent directories are not created.
    ///
    /// For handlers that need a path. In a later [`attempt`](Self::attempt) it is no error if an
    /// earlier one has copied the file to `to`. If it fails or is dropped there is nothing at `to`.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is something at `to`;
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone, because it was moved; whatever
    /// the file system or the object store says.
    pub async fn copy_to(&self, to: impl AsRef<Path>) -> io::Result<()> {
        content::copy(&self.sealed, to.as_ref()).await
    }

    /// Moves the finished file to `to`, durably, and never over an existing one.
    ///
    /// Within one file system that is a rename; from an object store the file is fetched and, when it
    /// is safely here, deleted there. Parent directories are not created. In a later
    /// [`attempt`](Self::attempt) it is no error if an earlier one has moved the file to `to`.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](io::ErrorKind::AlreadyExists) if there is something at `to`;
    /// [`NotFound`](io::ErrorKind::NotFound) if the file is gone, because it was moved elsewhere;
    /// whatever the file system or the object store says.
    pub async fn persist(&self, to: impl AsRef<Path>) -> io::Result<()> {
        content::persist(&self.sealed, to.as_ref()).await
    }
}

#[cfg(feature = "axum")]
pub use self::extract::MissingUpload;

#[cfg(feature = "axum")]
mod extract {
    use std::{convert::Infallible, fmt};

    use axum_core::{
        extract::{FromRequestParts, OptionalFromRequestParts},
        response::{IntoResponse, Response},
    };
    use http::{StatusCode, request::Parts};

    use super::CompletedUpload;

    /// Rejection of the extractor [`CompletedUpload`]: the request came past the layer.
    ///
    /// A mistake in the set-up of the service, so it is answered with 500.
    #[derive(Debug)]
    pub struct MissingUpload {
        path: String,
    }

    impl fmt::Display for MissingUpload {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(
                f,
                "no `CompletedUpload` in the request for `{}`: is a `ResumableLayer` with this path \
                 applied to the route, and was this an upload?",
                self.path
            )
        }
    }

    impl std::error::Error for MissingUpload {}

    impl IntoResponse for MissingUpload {
        fn into_response(self) -> Response {
            (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
        }
    }

    impl<S: Sync> FromRequestParts<S> for CompletedUpload {
        type Rejection = MissingUpload;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingUpload> {
            let missing = || MissingUpload {
                path: parts.uri.path().to_owned(),
            };
            parts.extensions.get().cloned().ok_or_else(missing)
        }
    }

    impl<S: Sync> OptionalFromRequestParts<S> for CompletedUpload {
        type Rejection = Infallible;

        async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
            Ok(parts.extensions.get().cloned())
        }
    }
}
