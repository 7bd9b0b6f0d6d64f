//! Shows uploads beside a gRPC service, with HTTP/1 and HTTP/2 on one port. Start the server with
//! the first command, then upload a file with the second one.
//!
//! ```sh
//! cargo run --example tonic
//! cargo run --example upload -- http://127.0.0.1:3000/upload FILE
//! ```
//!
//! Browsers and command line clients upload to `/upload`. Every other path is gRPC: here the
//! standard health service.

use std::{env, error::Error};

use axum::{Router, routing::any};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{service::Routes, transport::Server};
use tower_resumable::{CompletedUpload, FileStore, ResumableLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let store = FileStore::open(option("--dir").unwrap_or("uploads".into()))?;
    let layer = ResumableLayer::new(store);
    let (_, health) = tonic_health::server::health_reporter();
    // A finished upload is an ordinary request and not a gRPC call, so an axum route receives it.
    // To serve grpc-web too, wrap the gRPC services in `GrpcWebLayer`, not the server: the layer
    // refuses every HTTP/1 request that is not grpc-web.
    let routes = Routes::from(Router::new().route("/upload", any(finished))).add_service(health);
    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    Server::builder()
        .accept_http1(true)
        // The default windows and frames are too small for uploads.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_frame_size(1024 * 1024)
        .layer(layer)
        .add_routes(routes)
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await?;
    Ok(())
}

async fn finished(upload: CompletedUpload) -> String {
    let file = json!({
        "path": upload.path(),
        "file_name": upload.file_name(),
        "attempt": upload.attempt(),
    });
    println!("{file}");
    format!(
        "received {}, {} bytes\n",
        upload.safe_file_name(),
        upload.size()
    )
}

/// The value of a command line option: `--listen ADDRESS` or `--dir DIR`.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}
