//! The requests to the engine that the store is made of.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::SystemTime,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    Error, ObjectStore, ObjectStoreExt as _, PutMode, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};

use crate::store::StoreError;

/// An engine of the crate `object_store`.
#[derive(Clone)]
pub(super) struct Engine {
    pub(super) objects: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    /// Whether lists are known to be in the order of the names.
    ordered: Arc<AtomicBool>,
}

/// An object in a list.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: Path,
    /// By the engine's clock.
    pub(super) modified: SystemTime,
    pub(super) size: u64,
}

impl Engine {
    pub(super) fn new<T: ObjectStore + MultipartStore>(engine: Arc<T>) -> Self {
        Self {
            objects: Arc::clone(&engine) as Arc<dyn ObjectStore>,
            parts: engine,
            ordered: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.ordered.load(Relaxed)
    }

    pub(super) fn set_ordered(&self) {
        self.ordered.store(true, Relaxed);
    }

    /// Reads a small object.
    pub(super) async fn get(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        match self.objects.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(store_error)?)),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    pub(super) async fn head(&self, path: &Path) -> Result<Option<Listed>, StoreError> {
        match self.objects.head(path).await {
            Ok(meta) => Ok(Some(meta.into())),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    pub(super) async fn put(
        &self,
        path: &Path,
        payload: impl Into<PutPayload>,
    ) -> Result<(), StoreError> {
        let put = self.objects.put(path, payload.into());
        put.await.map(drop).map_err(store_error)
    }

    /// Creates an object that does not exist. Returns whether it was created.
    ///
    /// `false` is not conclusive. The engine may have created the object, lost its own answer and
    /// tried again. Some engines return it while another request is still creating the object.
    pub(super) async fn create(
        &self,
        path: &Path,
        payload: PutPayload,
    ) -> Result<bool, StoreError> {
        let options = PutMode::Create.into();
        match self.objects.put_opts(path, payload, options).await {
            Ok(_) => Ok(true),
            Err(Error::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Deletes an object. No error if it does not exist.
    pub(super) async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) => Ok(()),
            Err(error) if is_absent(&error) => Ok(()),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Deletes all objects below `prefix`.
    pub(super) async fn delete_below(&self, prefix: &Path) -> Result<(), StoreError> {
        let found = self.objects.list(Some(prefix));
        let paths = found.map_ok(|meta| meta.location).boxed();
        let mut deleted = self.objects.delete_stream(paths);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) => {}
                Err(error) if is_absent(&error) => {}
                Err(error) => return Err(store_error(error)),
            }
        }
        Ok(())
    }

    /// Lists the objects below `prefix` whose names are greater than `after`, in any order.
    pub(super) fn list(
        &self,
        prefix: &Path,
        after: Option<&Path>,
    ) -> BoxStream<'static, Result<Listed, StoreError>> {
        let found = match after {
            Some(after) => self.objects.list_with_offset(Some(prefix), after),
            None => self.objects.list(Some(prefix)),
        };
        found.map_ok(Listed::from).map_err(store_error).boxed()
    }

    pub(super) async fn create_multipart(&self, path: &Path) -> Result<String, StoreError> {
        self.parts.create_multipart(path).await.map_err(store_error)
    }

    /// Uploads a part and returns its id. The error is not converted: the caller examines it.
    pub(super) async fn put_part(
        &self,
        path: &Path,
        id: &String,
        part: usize,
        payload: PutPayload,
    ) -> Result<String, Error> {
        let part = self.parts.put_part(path, id, part, payload).await?;
        Ok(part.content_id)
    }

    /// Makes an object of its parts. The error is not converted: the caller examines it.
    pub(super) async fn complete_multipart(
        &self,
        path: &Path,
        id: &String,
        parts: Vec<String>,
    ) -> Result<(), Error> {
        let parts = parts.into_iter().map(|content_id| PartId { content_id });
        let completed = self
            .parts
            .complete_multipart(path, id, parts.collect())
            .await;
        // The result is of no use: its ETag is empty on some engines.
        completed.map(drop)
    }

    pub(super) async fn abort_multipart(&self, path: &Path, id: &String) {
        // It may be gone. If the request fails, the lifecycle rule of the bucket removes the rest.
        let _ = self.parts.abort_multipart(path, id).await;
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.objects, f)
    }
}

impl From<object_store::ObjectMeta> for Listed {
    fn from(meta: object_store::ObjectMeta) -> Self {
        Self {
            path: meta.location,
            modified: meta.last_modified.into(),
            size: meta.size,
        }
    }
}

pub(super) fn store_error(error: Error) -> StoreError {
    if has_code(&error, "QuotaExceeded") {
        StoreError::Full(error.into())
    } else {
        StoreError::new(error)
    }
}

/// Whether an object or a multipart upload does not exist. If the bucket does not exist, nothing is
/// known of its objects.
pub(super) fn is_absent(error: &Error) -> bool {
    matches!(error, Error::NotFound { .. })
        && !["NoSuchBucket", "ContainerNotFound"]
            .iter()
            .any(|code| has_code(error, code))
}

/// Whether the engine answered with this error code. `object_store` has it in the text only.
pub(super) fn has_code(error: &Error, code: &str) -> bool {
    let first: &dyn std::error::Error = error;
    std::iter::successors(Some(first), |error| error.source())
        .any(|error| error.to_string().contains(code))
}
