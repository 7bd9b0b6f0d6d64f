//! Tests, when the store is opened, whether the engine does what the store relies on.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use object_store::path::Path;
use tokio::sync::Barrier;

use super::{engine::store_error, inner::Inner};
use crate::{
    model::BoxError,
    store::{StoreError, random_id},
};

/// How many names are raced for.
const ROUNDS: usize = 4;

/// How many requests race for a name.
const RACERS: usize = 8;

impl Inner {
    /// Tests the engine, and leaves no objects.
    pub(super) async fn self_test(&self) -> Result<(), StoreError> {
        let dir = self.keys.scratch().join(random_id()?);
        let tested = self.test(&dir).await;
        let cleared = self.engine.delete_below(&dir).await;
        tested?;
        cleared.map_err(|error| failed("objects cannot be listed and deleted", error))
    }

    async fn test(&self, dir: &Path) -> Result<(), StoreError> {
        self.test_create(&dir.clone().join("once")).await?;
        for round in 0..ROUNDS {
            self.test_race(&dir.clone().join(format!("race-{round}")))
                .await?;
        }
        let listed = self.engine.list(dir, None).map_ok(|listed| listed.path);
        let names: Vec<_> = listed.try_collect().await?;
        if names.len() != ROUNDS + 1 {
            return Err(found(format!(
                "{} objects were created, but {} are listed: lists do not have new objects at once",
                ROUNDS + 1,
                names.len()
            )));
        }
        if names.is_sorted() {
            self.engine.set_ordered();
        }
        self.test_parts(&dir.clone().join("parts")).await
    }

    async fn test_create(&self, path: &Path) -> Result<(), StoreError> {
        let create = async |bytes: &'static [u8]| {
            let created = self.engine.create(path, Bytes::from_static(bytes).into());
            created.await.map_err(|error| {
                failed(
                    "an object cannot be created with `PutMode::Create` (Amazon S3 and compatible \
                     engines need `S3ConditionalPut::ETagMatch`, which is the default, and the \
                     right to write objects)",
                    error,
                )
            })
        };
        if !create(b"first").await? {
            return Err(found("a new object is said to exist".into()));
        }
        if create(b"second").await? {
            return Err(unconditional("two requests have created the same object"));
        }
        self.test_read(path, b"first").await
    }

    async fn test_race(&self, path: &Path) -> Result<(), StoreError> {
        // All requests start at the same time.
        let start = Arc::new(Barrier::new(RACERS));
        let racers: Vec<_> = (0..RACERS)
            .map(|racer| {
                let (engine, path) = (self.engine.clone(), path.clone());
                let (start, bytes) = (Arc::clone(&start), Bytes::from(format!("{racer}")));
                tokio::spawn(async move {
                    start.wait().await;
                    engine.create(&path, bytes.into()).await
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
            [winner] => self.test_read(path, winner.to_string().as_bytes()).await,
            [] => Err(found(
                "none of the requests that race to create an object has created it".into(),
            )),
            _ => Err(unconditional(
                "racing requests have created the same object",
            )),
        }
    }

    async fn test_read(&self, path: &Path, expected: &[u8]) -> Result<(), StoreError> {
        let bytes = self.engine.get(path).await;
        match bytes.map_err(|error| failed("an object cannot be read", error))? {
            Some(bytes) if bytes == expected => Ok(()),
            Some(_) => Err(unconditional("an object has the bytes of another request")),
            None => Err(found(
                "an object that was just created does not exist: reads do not see new objects at \
                 once"
                    .into(),
            )),
        }
    }

    async fn test_parts(&self, path: &Path) -> Result<(), StoreError> {
        let parts = async {
            // One that is aborted, and one that is completed.
            for complete in [false, true] {
                let id = self.engine.create_multipart(path).await?;
                let part = Bytes::from_static(b"part").into();
                let part = self.engine.put_part(path, &id, 0, part).await;
                let part = part.map_err(store_error)?;
                if complete {
                    let completed = self.engine.complete_multipart(path, &id, vec![part]);
                    completed.await.map_err(store_error)?;
                } else {
                    self.engine.abort_multipart(path, &id).await;
                }
            }
            Ok(())
        };
        parts
            .await
            .map_err(|error| failed("multipart uploads do not work", error))?;
        self.test_read(path, b"part").await
    }
}

/// Why an engine cannot be used.
#[derive(Debug)]
struct SelfTestError {
    found: String,
    source: Option<BoxError>,
}

impl fmt::Display for SelfTestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the self-test of the bucket failed: {}", self.found)
    }
}

impl std::error::Error for SelfTestError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

fn found(found: String) -> StoreError {
    let source = None;
    StoreError::new(SelfTestError { found, source })
}

fn failed(found: &str, error: StoreError) -> StoreError {
    let source = match error {
        StoreError::Full(error) | StoreError::Failed(error) => error,
        error => error.into(),
    };
    StoreError::new(SelfTestError {
        found: found.into(),
        source: Some(source),
    })
}

fn unconditional(what: &str) -> StoreError {
    found(format!(
        "{what}, so the engine ignores `If-None-Match: *`. With it servers would damage uploads \
         or deliver them twice. Use an engine that has conditional writes (Amazon S3, Cloudflare \
         R2, Ceph RGW, Azure, Google Cloud Storage), or a newer version of this one. A single \
         server can use `FileStore`"
    ))
}
