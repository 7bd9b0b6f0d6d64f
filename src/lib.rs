//! Tower middleware for resumable, chunked uploads.
//!
//! [`ResumableLayer`] answers the requests that [Resumable.js] and [other clients](Dialect) send to one
//! path of a service: it reads their fields from the query, the headers or the multipart form, keeps
//! each chunk in a [`Store`], and hands the finished file to the service behind it as **one ordinary
//! request**, with a [`CompletedUpload`] in its extensions. Everything else passes through untouched.
//!
//! ```
//! use axum::{Router, routing::post};
//! use tower_resumable::{CompletedUpload, FileStore, ResumableLayer};
//!
//! async fn finished(upload: CompletedUpload) -> String {
//!     format!("{} has {} bytes", upload.safe_file_name(), upload.size())
//! }
//!
//! # let root = tempfile::tempdir()?;
//! # let root = root.path();
//! let app: Router = Router::new()
//!     .route("/upload", post(finished))
//!     .layer(ResumableLayer::new(FileStore::open(root)?));
//! # Ok::<(), tower_resumable::StoreError>(())
//! ```
//!
//! The same layer goes onto every stack that is made of `Service<Request<B>>`: axum, tonic, plain
//! hyper. It needs a tokio runtime.
//!
//! # Features
//!
//! * `axum`: [`CompletedUpload`] is an axum extractor, required or optional.
//! * `object-store`: `ObjectStore` keeps uploads in an object store (Amazon S3 and what is compatible,
//!   Azure, Google Cloud) that many servers share.
//! * `digests`: MD5, SHA-1 and CRC-32C for [`DigestAlgorithm`].
//!
//! [Resumable.js]: https://github.com/23/resumable.js

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]

mod fault;
mod lock;
mod model;
mod names;
pub mod store;

pub use self::model::{
    BoxError,
    upload::{Role, Scope, Upload, UploadId},
};
pub use self::names::{safe_file_name, safe_relative_path};
pub use self::store::{content::Content, file::FileStore, memory::MemoryStore};
