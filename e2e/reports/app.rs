//! Small applications for `e2e/reports/run`: each is set up as in the report that it is for.
//!
//! `app NAME DIR` serves the application NAME, with its uploads in DIR, on a free port.

use std::{path::PathBuf, time::Duration};

use axum::{
    Json, Router,
    extract::Path,
    http::{HeaderMap, StatusCode, header},
    response::IntoResponse,
    routing::{any, post},
};
use serde_json::json;
use tower_http::compression::CompressionLayer;
use tower_resumable::{CompletedUpload, Delivery, FileStore, ResumableLayer};

type Error = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1);
    let (Some(name), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: app NAME DIR".into());
    };
    let dir = PathBuf::from(dir);
    let layer = ResumableLayer::new(FileStore::open(&dir)?)
        .with_events(|event| eprintln!("event: {event:?}"));
    let app = match name.as_str() {
        "albums" => albums(layer),
        "session" => session(layer),
        "status" => status(layer),
        "moved" => moved(layer, dir.join("kept"))?,
        "compressed" => compressed(layer),
        name => return Err(format!("there is no application {name}").into()),
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    Ok(axum::serve(listener, app).await?)
}

/// Each album is a target of its own.
fn albums(layer: ResumableLayer) -> Router {
    async fn finished(Path(album): Path<u32>, upload: CompletedUpload) -> String {
        println!("album {album}: {}", upload.safe_file_name());
        format!("in album {album}")
    }
    let layer = layer.with_matcher(|parts| parts.uri.path().ends_with("/upload"));
    Router::new()
        .route("/albums/{album}/upload", post(finished))
        .layer(layer)
}

/// The handler wants a valid session.
fn session(layer: ResumableLayer) -> Router {
    async fn finished(headers: HeaderMap, upload: CompletedUpload) -> impl IntoResponse {
        println!("asked, attempt {}", upload.attempt());
        if headers
            .get(header::AUTHORIZATION)
            .is_some_and(|token| token == "new")
        {
            (StatusCode::OK, "taken")
        } else {
            (StatusCode::UNAUTHORIZED, "the session has ended")
        }
    }
    Router::new().route("/upload", post(finished)).layer(layer)
}

/// The handler answers with the status that the form asks for.
fn status(layer: ResumableLayer) -> Router {
    async fn finished(upload: CompletedUpload) -> impl IntoResponse {
        let status = upload
            .field("status")
            .and_then(|status| status.parse().ok());
        let status = status.unwrap_or(StatusCode::NOT_IMPLEMENTED);
        (status, [(header::LOCATION, "/thanks")])
    }
    Router::new().route("/upload", post(finished)).layer(layer)
}

/// The handler moves each file away. Records live for a second.
fn moved(layer: ResumableLayer, kept: PathBuf) -> Result<Router, Error> {
    std::fs::create_dir(&kept)?;
    let second = Duration::from_secs(1);
    let layer = layer.with_delivery(Delivery::default().with_record_lifetime(second));
    tokio::spawn(layer.uploads().sweep_every(second));
    let finished =
        async move |upload: CompletedUpload| match upload.persist(kept.join(upload.id())).await {
            Ok(()) => (StatusCode::OK, "kept".to_owned()),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        };
    Ok(Router::new().route("/upload", post(finished)).layer(layer))
}

/// The answers of the handler are compressed for clients that accept that.
fn compressed(layer: ResumableLayer) -> Router {
    async fn finished(upload: CompletedUpload) -> Json<serde_json::Value> {
        Json(json!({ "name": upload.safe_file_name(), "note": "x".repeat(100) }))
    }
    Router::new()
        .route("/upload", any(finished))
        .layer(CompressionLayer::new())
        .layer(layer)
}
