//! One of several servers that share their uploads in a bucket. Nothing else connects them: no sticky
//! sessions, no lock service, no disk.
//!
//! ```sh
//! export AWS_BUCKET_NAME=uploads AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…
//! # and for an engine of one's own: AWS_ENDPOINT=http://127.0.0.1:7480 AWS_ALLOW_HTTP=true
//! cargo run -- 127.0.0.1:3001 &
//! cargo run -- 127.0.0.1:3002 &
//! ```
//!
//! `nginx.conf` beside this puts a balancer in front. A page's chunks should have 5 MiB or more
//! (`chunkSize: 8 * 1024 * 1024`): such chunks become the parts of the finished object as they are.

use std::{error::Error, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{Request, StatusCode},
    routing::any,
};
use object_store::aws::AmazonS3Builder;
use tower_resumable::{CompletedUpload, ObjectStore, ResumableLayer, Retention};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args()
        .nth(1)
        .ok_or("usage: two-servers ADDRESS")?;
    let s3 = AmazonS3Builder::from_env().build()?;
    // Tries whether the engine keeps what all of this rests on, and says so if it does not.
    let store = ObjectStore::open(Arc::new(s3)).await?;
    let layer = ResumableLayer::new(store);
    let app = Router::new().route("/upload", any(finished));

    // What was complete when a server died, and whose client may not come back. That another server
    // may be at it is no harm: one of them gets it.
    for upload in layer.undelivered().await? {
        let request = Request::post("/upload").body(Body::empty())?;
        if let Err(error) = layer.deliver(upload, app.clone(), request).await {
            eprintln!("not delivered yet: {error}");
        }
    }
    // Each server does it; none has to be the first among them.
    tokio::spawn(layer.sweep_every(Duration::from_secs(3600), Retention::default()));

    let listener = tokio::net::TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.layer(layer)).await?;
    Ok(())
}

/// Called once for each file, by one of the servers: all its bytes are one object in the bucket.
async fn finished(upload: CompletedUpload) -> Result<String, StatusCode> {
    // Any store's file is read like this. An application that only needs to know where it is takes
    // `upload.location()`; one that needs a file calls `upload.copy_to(path)`.
    let mut content = upload.content();
    let mut zeros = 0;
    while let Some(bytes) = content.next().await {
        // Which is tried again.
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
