//! An upload page, and the handler that gets the finished files.
//!
//! `cargo run --example axum`, then open the address that it prints.

mod common;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{Request, StatusCode, header},
    response::{Html, IntoResponse},
    routing::{any, get},
};
use serde_json::{Value, json};
use tower_resumable::{CompletedUpload, ResumableLayer, Retention};

/// The finished uploads of this run.
type Files = Arc<Mutex<Vec<Value>>>;

#[tokio::main]
async fn main() -> Result<(), common::Error> {
    let args = common::Args::parse()?;
    let layer = args.layer()?;
    let shown = layer.clone();
    let app = Router::new()
        // `any`: the request that completes an upload has the client's method, POST unless it was
        // told otherwise.
        .route("/upload", any(finished))
        .route("/files", get(files))
        .route(
            "/options/{client}",
            get(async move |client| options(&shown, client)),
        )
        .route("/", get(|| async { Html(include_str!("page/index.html")) }))
        .route("/resumable.js", get(client))
        .with_state(Files::default());
    let listener = args.bind().await?;
    // What was complete when the last process died: its client may not come back.
    for upload in layer.undelivered().await? {
        let request = Request::post("/upload").body(Body::empty())?;
        if let Err(error) = layer.deliver(upload, app.clone(), request).await {
            eprintln!("not delivered yet: {error}");
        }
    }
    // What clients have given up is removed after a week.
    tokio::spawn(layer.sweep_every(Duration::from_secs(3600), Retention::default()));
    axum::serve(listener, app.layer(layer)).await?;
    Ok(())
}

/// Called once for each file, when all its bytes are on disk.
async fn finished(State(files): State<Files>, upload: CompletedUpload) -> Json<Value> {
    if let Err(error) = common::report(&upload) {
        eprintln!("cannot print: {error}");
    }
    files
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(json!({
            "id": upload.id(),
            "path": upload.path(),
            "size": upload.size(),
            "file_name": upload.file_name(),
            "relative_path": upload.relative_path(),
        }));
    Json(json!({
        "id": upload.id(),
        "file_name": upload.safe_file_name(),
        "size": upload.size(),
    }))
}

async fn files(State(files): State<Files>) -> Json<Vec<Value>> {
    Json(files.lock().unwrap_or_else(PoisonError::into_inner).clone())
}

/// What the page gives to its client, so that it fits the layer.
fn options(layer: &ResumableLayer, Path(client): Path<String>) -> impl IntoResponse + use<> {
    let options = match client.as_str() {
        "flow" => layer.flow_js_options(1 << 20),
        "dropzone" => layer.dropzone_options(1 << 20),
        _ => layer.resumable_js_options(1 << 20),
    };
    ([(header::CONTENT_TYPE, "application/json")], options)
}

/// The real client, if the browser tests have installed it; else the page takes it from a public
/// server.
async fn client() -> impl IntoResponse {
    const FILE: &str = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/e2e/browser/node_modules/resumablejs/resumable.js"
    );
    match tokio::fs::read(FILE).await {
        Ok(script) => ([(header::CONTENT_TYPE, "text/javascript")], script).into_response(),
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}
