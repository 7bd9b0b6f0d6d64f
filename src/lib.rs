//! Tower middleware for resumable uploads.
//!
//! Clients send a file in chunks: out of order, in parallel, twice, across reloads and restarts.
//! The service behind [`ResumableLayer`] receives **one ordinary request with a finished file**: a
//! [`CompletedUpload`] is in its extensions. [Resumable.js] and [other clients](Dialect) need no
//! change. Requests that are not uploads pass untouched.
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
//! # Ok::<(), tower_resumable::store::StoreError>(())
//! ```
//!
//! The layer applies to every `Service<Request<B>>`: axum, tonic, plain hyper. It needs a tokio
//! runtime.
//!
//! The [guides](guide) say how to use it: which [clients](guide::clients) work, what the
//! [handler](guide::handlers) gets and answers, how to [deploy](guide::deployment) it, and
//! [others](guide).
//!
//! # Features
//!
//! * `axum`: [`CompletedUpload`] is an axum extractor, required or optional.
//! * `object-store`: [`BucketStore`](struct.BucketStore.html) keeps uploads in an object store
//!   (Amazon S3 and compatible engines, Azure, Google Cloud Storage) that many servers share.
//! * `tracing`: forwards all [events](Event) to the crate `tracing`, with and without a hook for
//!   them. Deliveries run in the span of the request that has caused them.
//! * `digests`: MD5 and CRC-32C for [`DigestAlgorithm`].
//! * `interim`: [`InterimIo`](struct.InterimIo.html) sends interim responses over HTTP/1, which
//!   clients of the [IETF draft](Protocol::ietf_draft) need.
//! * `conformance`: [`store::conformance`](store/conformance/index.html), the test suite for
//!   stores. Exempt from semantic versioning.
//!
//! [Resumable.js]: https://github.com/23/resumable.js

#![forbid(unsafe_code)]
#![warn(missing_docs, missing_debug_implementations, unreachable_pub)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod body;
mod config;
mod delivery;
mod engine;
mod error;
mod events;
mod fault;
mod future;
pub mod guide;
mod hooks;
mod interim;
mod layer;
mod limits;
mod lock;
mod mime;
mod model;
mod names;
mod protocol;
mod response;
mod retention;
mod route;
mod service;
mod span;
pub mod store;
mod timer;
mod upload;
mod uploads;

#[cfg(feature = "interim")]
pub use self::interim::{InterimGuard, InterimIo, Interims};
#[cfg(feature = "object-store")]
pub use self::store::bucket::BucketStore;
#[cfg(feature = "axum")]
pub use self::upload::MissingUpload;
pub use self::{
    body::digest::DigestAlgorithm,
    config::Digests,
    delivery::{Delivery, Verdict},
    error::{Error, ErrorKind},
    events::{Event, EventLevel},
    future::ResponseFuture,
    hooks::{Admission, Purpose, Refusal},
    interim::Interim,
    layer::ResumableLayer,
    limits::Limits,
    model::{
        BoxError,
        upload::{Creation, Role, Scope, Upload, UploadId},
    },
    names::{safe_file_name, safe_relative_path},
    protocol::{
        CORS_ALLOWED_HEADERS, CORS_ALLOWED_METHODS, CORS_EXPOSED_HEADERS, Protocol,
        chunked::{
            AnswerFormat, ClientOptions, Dialect, Field, IdentifierKind, IdentityRule, LastChunk,
            Resume,
        },
    },
    response::ResponseBody,
    retention::Retention,
    service::Resumable,
    store::{content::Content, file::FileStore, memory::MemoryStore},
    upload::CompletedUpload,
    uploads::{Counts, Deliveries, Uploads},
};

/// The examples of the README are tests too.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[derive(Debug)]
pub struct Readme;
