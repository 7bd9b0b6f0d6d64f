//! Whether an engine keeps what this store is built on.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use tokio::sync::Barrier;

use super::{Inner, bucket::store_error};
use crate::store::{StoreError, random_id};

/// How many names are raced for, and by how many.
const ROUNDS: usize = 4;
const RACERS: usize = 8;

impl Inner {
    /// Tries what is relied on, and leaves nothing.
    pub(super) async fn self_test(&self) -> Result<(), StoreError> {
        let dir = self.keys.scratch().join(random_id()?);
        let tested = self.test(&dir).await;
        let cleared = self.bucket.delete_below(&dir).await;
        tested?;
        cleared.map_err(|error| failed("objects cannot be listed and deleted", error))
    }

    async fn test(&self, dir: &Path) -> Result<(), StoreError> {
        let path = dir.clone().join("once");
        let create = async |bytes: &'static [u8]| {
            let created = self.bucket.create(&path, Bytes::from_static(bytes).into());
            created.await.map_err(|error| {
                failed(
                    "an object cannot be created with `PutMode::Create` (for Amazon S3 and what is \
                     compatible, `S3ConditionalPut::ETagMatch`, the default, has to be set, and the \
                     right to write objects is needed)",
                    error,
                )
            })
        };
        if !create(b"first").await? {
            return Err(StoreError::new(
                "the self-test: a new object is said to be there",
            ));
        }
        if create(b"second").await? {
            return Err(unconditional(
                "two in sequence have created the same object",
            ));
        }
        self.read_back(&path, b"first").await?;
        for round in 0..ROUNDS {
            let path = dir.clone().join(format!("race-{round}"));
            // They begin together: one after the other they would race for nothing.
            let start = Arc::new(Barrier::new(RACERS));
            let racers: Vec<_> = (0..RACERS)
                .map(|racer| {
                    let (bucket, path) = (self.bucket.clone(), path.clone());
                    let (start, bytes) = (Arc::clone(&start), Bytes::from(format!("{racer}")));
                    tokio::spawn(async move {
                        start.wait().await;
                        bucket.create(&path, bytes.into()).await
                    })
                })
                .collect();
            let mut winners = Vec::new();
            for (racer, created) in racers.into_iter().enumerate() {
                if created.await.map_err(StoreError::new)?? {
                    winners.push(racer);
                }
            }
            match winners[..] {
                [winner] => {
                    let bytes = format!("{winner}");
                    self.read_back(&path, bytes.as_bytes()).await?;
                }
                [] => {
                    return Err(StoreError::new(
                        "the self-test: of requests that race to create an object none has",
                    ));
                }
                _ => {
                    return Err(unconditional(
                        "racing requests have created the same object",
                    ));
                }
            }
        }
        let mut names = Vec::new();
        let mut found = self.bucket.list(dir, None);
        while let Some(listed) = found.try_next().await? {
            names.push(listed.path);
        }
        if names.len() != ROUNDS + 1 {
            return Err(StoreError::new(format!(
                "the self-test: {} objects were created, but the list has {}; a list has to show at \
                 once what is there",
                ROUNDS + 1,
                names.len()
            )));
        }
        if names.is_sorted() {
            self.bucket.set_ordered();
        }
        self.test_parts(&dir.clone().join("parts")).await
    }

    async fn read_back(&self, path: &Path, expected: &[u8]) -> Result<(), StoreError> {
        let found = self.bucket.get(path).await;
        match found.map_err(|error| failed("an object cannot be read", error))? {
            Some(found) if found == expected => Ok(()),
            Some(_) => Err(unconditional(
                "who has created an object finds another's bytes",
            )),
            None => Err(StoreError::new(
                "the self-test: an object that was just created is not there; reads have to see at \
                 once what was written",
            )),
        }
    }

    async fn test_parts(&self, path: &Path) -> Result<(), StoreError> {
        let failed = |error: StoreError| failed("multipart uploads do not work", error);
        let part = |id: String| async move {
            let part = self
                .bucket
                .put_part(path, &id, 0, Bytes::from_static(b"part").into());
            let part = part.await.map_err(store_error)?;
            Ok::<_, StoreError>((id, part))
        };
        let id = self.bucket.create_multipart(path).await.map_err(failed)?;
        let (id, _) = part(id).await.map_err(failed)?;
        self.bucket.abort_multipart(path, &id).await;
        let id = self.bucket.create_multipart(path).await.map_err(failed)?;
        let (id, content_id) = part(id).await.map_err(failed)?;
        let completed = self
            .bucket
            .complete_multipart(path, &id, vec![content_id])
            .await;
        completed.map_err(|error| failed(store_error(error)))?;
        self.read_back(path, b"part").await
    }
}

fn failed(what: &str, error: StoreError) -> StoreError {
    let cause = match error {
        StoreError::Full(error) | StoreError::Failed(error) => error.to_string(),
        error => error.to_string(),
    };
    StoreError::new(format!("the self-test: {what}: {cause}"))
}

fn unconditional(found: &str) -> StoreError {
    StoreError::new(format!(
        "the self-test: {found}, so this engine ignores `If-None-Match: *`. Servers cannot agree upon \
         anything with it, and uploads would be spoiled or delivered twice. Use an engine that has \
         conditional writes (Amazon S3, Cloudflare R2, Ceph RGW, Azure, Google Cloud Storage), or a newer \
         version of this one; with a single server, `FileStore` will do"
    ))
}
