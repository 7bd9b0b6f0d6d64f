//! Shows a server that shares its uploads with other servers through a bucket, without sticky
//! sessions, a lock service or a disk. Set the environment variables of the bucket, then start as
//! many servers as you like.
//!
//! ```sh
//! export AWS_BUCKET_NAME=uploads AWS_REGION=us-east-1
//! export AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…
//! # If the bucket is not at AWS:
//! export AWS_ENDPOINT=http://127.0.0.1:7480 AWS_ALLOW_HTTP=true
//! cargo run -- 127.0.0.1:3001 &
//! cargo run -- 127.0.0.1:3002 &
//! ```
//!
//! `nginx.conf` in this folder configures a balancer for two servers. Configure clients to send
//! chunks of at least 5 MiB (`chunkSize: 8 * 1024 * 1024`): each of them becomes a part of the
//! finished object without a copy.

use std::{error::Error, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    routing::any,
    serve::ListenerExt as _,
};
use object_store::aws::AmazonS3Builder;
use tower_resumable::{BucketStore, CompletedUpload, ResumableLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args()
        .nth(1)
        .ok_or("usage: two-servers ADDRESS")?;
    let s3 = AmazonS3Builder::from_env().build()?;
    // `open` fails if the object store ignores conditional requests, because the servers need them.
    let store = BucketStore::open(Arc::new(s3)).await?;
    // What clients are not told, such as why the bucket failed.
    let layer = ResumableLayer::new(store).with_events(|event| eprintln!("{event}"));
    let app = Router::new().route("/upload", any(finished));

    // Deliver the uploads that were complete when a server died, and those whose delivery fails.
    // Several servers may try: only one of them gets the claim.
    let uploads = layer.uploads();
    let deliveries = uploads.deliver_every(Duration::from_secs(60), app.clone(), |_| {
        Request::post("/upload").body(Body::empty())
    });
    tokio::spawn(deliveries);
    // Each server sweeps. There is no leader.
    tokio::spawn(uploads.sweep_every(Duration::from_secs(3600)));

    let listener = tokio::net::TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of the one before.
    let listener = listener.tap_io(|connection| {
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
    });
    axum::serve(listener, app.layer(layer)).await?;
    Ok(())
}

/// Called once for each file, by one of the servers. The file is one object in the bucket.
async fn finished(upload: CompletedUpload) -> Result<String, StatusCode> {
    // `content` works with any store. `upload.stored_as::<StoredObject>()` has the key of the
    // object, and `upload.copy_to(path)` makes a local file.
    let mut content = upload.content();
    let mut zeros = 0;
    while let Some(bytes) = content.next().await {
        // After an error status the layer delivers the upload again.
        let bytes = bytes.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
        zeros += bytes.iter().filter(|byte| **byte == 0).count();
    }
    println!(
        "{} {} {}",
        upload.id(),
        upload.size(),
        upload.safe_file_name()
    );
    Ok(format!("{zeros} of {} bytes are zero\n", upload.size()))
}
