//! Uploads beside a gRPC service on one port, HTTP/1 and HTTP/2.
//!
//! gRPC itself has no good way to take a big file over a bad network. Here browsers and command
//! line clients upload to `/upload`, and everything else is gRPC (the standard health service).

mod common;

use axum::{Router, routing::any};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{service::Routes, transport::Server};
use tower_resumable::CompletedUpload;

#[tokio::main]
async fn main() -> Result<(), common::Error> {
    let args = common::Args::parse()?;
    let (_, health) = tonic_health::server::health_reporter();
    // A finished upload is an ordinary request, no gRPC call: an axum route beside the services
    // takes it. To serve grpc-web too, wrap the single services in `GrpcWebLayer`, not the server:
    // it refuses every HTTP/1 request that is not grpc-web.
    let routes = Routes::from(Router::new().route("/upload", any(finished))).add_service(health);
    Server::builder()
        .accept_http1(true)
        // The default windows and frames are too small for uploads.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_frame_size(1024 * 1024)
        .layer(args.layer()?)
        .add_routes(routes)
        .serve_with_incoming(TcpListenerStream::new(args.bind().await?))
        .await?;
    Ok(())
}

async fn finished(upload: CompletedUpload) -> String {
    if let Err(error) = common::report(&upload) {
        eprintln!("cannot print: {error}");
    }
    format!(
        "{} has arrived, {} bytes\n",
        upload.safe_file_name(),
        upload.size()
    )
}
