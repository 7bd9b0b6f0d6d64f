//! What a browser has to be told before pages of other origins can upload.

use http::{HeaderName, Method, header};

/// The methods that clients use, for a layer that handles CORS.
pub const CORS_ALLOWED_METHODS: [Method; 7] = [
    Method::POST,
    Method::PUT,
    Method::GET,
    Method::HEAD,
    Method::PATCH,
    Method::DELETE,
    Method::OPTIONS,
];

/// The request headers that clients of all protocols send, such as `X-Requested-With` of Dropzone,
/// for a layer that handles CORS. Add those that the application sets, and the fields of
/// [huge-uploader](crate::Dialect::huge_uploader). See [`CORS_EXPOSED_HEADERS`].
pub const CORS_ALLOWED_HEADERS: [HeaderName; 21] = [
    header::AUTHORIZATION,
    header::CACHE_CONTROL,
    header::CONTENT_DISPOSITION,
    header::CONTENT_RANGE,
    header::CONTENT_TYPE,
    HeaderName::from_static("content-digest"),
    HeaderName::from_static("repr-digest"),
    HeaderName::from_static("tus-resumable"),
    HeaderName::from_static("upload-length"),
    HeaderName::from_static("upload-offset"),
    HeaderName::from_static("upload-metadata"),
    HeaderName::from_static("upload-name"),
    HeaderName::from_static("upload-defer-length"),
    HeaderName::from_static("upload-concat"),
    HeaderName::from_static("upload-checksum"),
    HeaderName::from_static("upload-complete"),
    HeaderName::from_static("upload-incomplete"),
    HeaderName::from_static("upload-draft-interop-version"),
    HeaderName::from_static("x-http-method-override"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-requested-with"),
];

/// The response headers that pages of other origins have to see, for a layer that handles CORS.
///
/// Without them no [tus](crate::Protocol::tus) client in a browser works. Add those of the
/// application.
///
/// The layer that handles CORS goes outside of the [`ResumableLayer`](crate::ResumableLayer). Some
/// of them, such as the one of tower-http, answer all `OPTIONS` requests themselves.
///
/// ```
/// use axum::{Router, routing::any};
/// use tower_http::cors::{Any, CorsLayer};
/// use tower_resumable::{
///     CORS_ALLOWED_HEADERS, CORS_ALLOWED_METHODS, CORS_EXPOSED_HEADERS, CompletedUpload,
///     MemoryStore, ResumableLayer,
/// };
///
/// async fn finished(upload: CompletedUpload) -> String {
///     upload.safe_file_name()
/// }
///
/// let cors = CorsLayer::new()
///     .allow_origin(Any)
///     .allow_methods(CORS_ALLOWED_METHODS)
///     .allow_headers(CORS_ALLOWED_HEADERS)
///     .expose_headers(CORS_EXPOSED_HEADERS);
/// let app: Router = Router::new()
///     .route("/upload", any(finished))
///     .layer(ResumableLayer::new(MemoryStore::default()))
///     .layer(cors);
/// # let _ = app;
/// ```
pub const CORS_EXPOSED_HEADERS: [HeaderName; 20] = [
    header::CONTENT_LOCATION,
    header::LOCATION,
    header::RANGE,
    header::RETRY_AFTER,
    HeaderName::from_static("upload-offset"),
    HeaderName::from_static("upload-length"),
    HeaderName::from_static("upload-metadata"),
    HeaderName::from_static("upload-defer-length"),
    HeaderName::from_static("upload-concat"),
    HeaderName::from_static("upload-expires"),
    HeaderName::from_static("upload-complete"),
    HeaderName::from_static("upload-incomplete"),
    HeaderName::from_static("upload-limit"),
    HeaderName::from_static("upload-draft-interop-version"),
    HeaderName::from_static("tus-version"),
    HeaderName::from_static("tus-resumable"),
    HeaderName::from_static("tus-max-size"),
    HeaderName::from_static("tus-extension"),
    HeaderName::from_static("tus-checksum-algorithm"),
    HeaderName::from_static("x-resumable-status"),
];
