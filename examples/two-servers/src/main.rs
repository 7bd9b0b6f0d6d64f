//! One of several servers that share their uploads in a bucket. Nothing else connects them: no
//! sticky sessions, no lock service, no disk.
//!
//! ```sh
//! export AWS_BUCKET_NAME=uploads AWS_REGION=us-east-1 AWS_ACCESS_KEY_ID=… AWS_SECRET_ACCESS_KEY=…
//! # and for another engine: AWS_ENDPOINT=http://127.0.0.1:7480 AWS_ALLOW_HTTP=true
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
use tower_resumable::{BucketStore, CompletedUpload, ResumableLayer, store::Filter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args()
        .nth(1)
        .ok_or("usage: two-servers ADDRESS")?;
    let s3 = AmazonS3Builder::from_env().build()?;
    // Fails if the engine ignores conditions, on which the servers rely.
    let store = BucketStore::open(Arc::new(s3)).await?;
    let layer = ResumableLayer::new(store);
    let app = Router::new().route("/upload", any(finished));

    // Deliver the uploads that were complete when a server died. Several servers may try: one of
    // them gets the upload.
    let (uploads, mut after) = (layer.uploads(), None);
    loop {
        let page = uploads.list(&Filter::complete(), after.as_ref()).await?;
        for listed in page.uploads {
            let request = Request::post("/upload").body(Body::empty())?;
            if let Err(error) = uploads.deliver(listed.upload, app.clone(), request).await {
                eprintln!("not delivered yet: {error}");
            }
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    // Each server sweeps: there is no leader.
    tokio::spawn(uploads.sweep_every(Duration::from_secs(3600)));

    let listener = tokio::net::TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app.layer(layer)).await?;
    Ok(())
}

/// Called once for each file, by one of the servers. The file is one object in the bucket.
async fn finished(upload: CompletedUpload) -> Result<String, StatusCode> {
    // This reads a file of any store. `upload.stored_as::<StoredObject>()` has the key of the
    // object, and `upload.copy_to(path)` makes a local file.
    let mut content = upload.content();
    let mut zeros = 0;
    while let Some(bytes) = content.next().await {
        // The delivery is repeated after an error.
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
