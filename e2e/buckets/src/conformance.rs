//! The conformance suite on a real object store, and the self-test with and without conditional
//! requests.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
    aws::AmazonS3,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use tower_resumable::{BucketStore, store::conformance};

use super::{
    engine::{Engine, Error, client},
    proxy::Proxy,
};

/// Runs the suite. Each request goes to the next gateway. Panics if a check fails.
pub async fn all(engine: &Engine) -> std::result::Result<(), Error> {
    let proxy = Proxy::start(engine.gateways.clone(), 0).await?;
    let s3 = client(proxy.address, &engine.bucket)?;
    let say = |what: &str, start: Instant| {
        let requests: u64 = proxy
            .take_counts()
            .values()
            .map(|count| count.requests)
            .sum();
        let seconds = start.elapsed().as_secs_f64();
        println!(
            "{}: {what}, {requests} requests, {seconds:.1} s",
            engine.name
        );
    };
    let start = Instant::now();
    let builder = BucketStore::builder(Arc::new(s3)).with_prefix("conformance");
    let store = builder.open().await?;
    say("the self-test has passed", start);
    let start = Instant::now();
    // Other programs use the disk too, so it can be slow.
    conformance::check_with_patience(&store, Duration::from_secs(30)).await;
    say("the conformance suite has passed", start);
    let unconditional = Unconditional(client(engine.gateways[0], &engine.bucket)?);
    match BucketStore::builder(Arc::new(unconditional))
        .with_prefix("unconditional")
        .open()
        .await
    {
        Ok(_) => Err("the self-test accepts a store that ignores conditions".into()),
        Err(error) => {
            let text = with_causes(&error);
            println!("{}, conditions ignored: refused: {text}", engine.name);
            if text.contains("If-None-Match") {
                Ok(())
            } else {
                Err("the refusal does not name its cause".into())
            }
        }
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}

/// An object store that ignores `If-None-Match`, as some do.
#[derive(Debug)]
struct Unconditional(AmazonS3);

impl fmt::Display for Unconditional {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} without conditions", self.0)
    }
}

#[async_trait]
impl object_store::ObjectStore for Unconditional {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let options = PutOptions {
            mode: PutMode::Overwrite,
            ..options
        };
        self.0.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.0.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

#[async_trait]
impl MultipartStore for Unconditional {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        self.0.create_multipart(path).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        index: usize,
        payload: PutPayload,
    ) -> Result<PartId> {
        self.0.put_part(path, id, index, payload).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        self.0.complete_multipart(path, id, parts).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        self.0.abort_multipart(path, id).await
    }
}
