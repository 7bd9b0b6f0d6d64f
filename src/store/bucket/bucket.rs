//! The calls of the engine that this store is made of.

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

/// Where objects are.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) objects: Arc<dyn ObjectStore>,
    parts: Arc<dyn MultipartStore>,
    /// Whether lists are known to come in the order of the names.
    ordered: Arc<AtomicBool>,
}

/// What a list says of an object.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) path: Path,
    /// By the store's clock.
    pub(super) modified: SystemTime,
    pub(super) size: u64,
}

impl Bucket {
    pub(super) fn new<T: ObjectStore + MultipartStore>(store: Arc<T>) -> Self {
        Self {
            objects: Arc::clone(&store) as Arc<dyn ObjectStore>,
            parts: store,
            ordered: Arc::new(AtomicBool::new(false)),
        }
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.ordered.load(Relaxed)
    }

    pub(super) fn set_ordered(&self) {
        self.ordered.store(true, Relaxed);
    }

    /// The bytes of a small object, if it is there.
    pub(super) async fn get(&self, path: &Path) -> Result<Option<Bytes>, StoreError> {
        match self.objects.get(path).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(store_error)?)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    /// What there is of this name, if anything is.
    pub(super) async fn head(&self, path: &Path) -> Result<Option<Listed>, StoreError> {
        match self.objects.head(path).await {
            Ok(meta) => Ok(Some(meta.into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(store_error(error)),
        }
    }

    pub(super) async fn put(&self, path: &Path, bytes: Bytes) -> Result<(), StoreError> {
        let put = self.objects.put(path, bytes.into());
        put.await.map(drop).map_err(store_error)
    }

    /// Whether it was not there and is now.
    ///
    /// `false` is not all: the engine may have done it, lost its own answer and tried again, and some
    /// say so when another request is only about to.
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

    /// No error if it is not there.
    pub(super) async fn delete(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(store_error(error)),
        }
    }

    /// Deletes everything below `prefix`.
    pub(super) async fn delete_below(&self, prefix: &Path) -> Result<(), StoreError> {
        let found = self.objects.list(Some(prefix));
        let paths = found.map_ok(|meta| meta.location).boxed();
        let mut deleted = self.objects.delete_stream(paths);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) | Err(Error::NotFound { .. }) => {}
                Err(error) => return Err(store_error(error)),
            }
        }
        Ok(())
    }

    /// What is below `prefix`, in no order, behind `after` in the order of names.
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

    /// Not mapped: what the error means is to be found out.
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

    /// Not mapped: what the error means is to be found out. What the engine answers otherwise is no
    /// use: the ETag can be empty.
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
        completed.map(drop)
    }

    /// No error if it is not there. What is left is up to the bucket's lifecycle rule.
    pub(super) async fn abort_multipart(&self, path: &Path, id: &String) {
        let _ = self.parts.abort_multipart(path, id).await;
    }
}

impl fmt::Debug for Bucket {
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
    match says(&error, "QuotaExceeded") {
        true => StoreError::Full(error.into()),
        false => StoreError::new(error),
    }
}

/// Whether the engine's answer has this code: there is no other way to it.
pub(super) fn says(error: &Error, code: &str) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    std::iter::from_fn(|| {
        let this = cause?;
        cause = this.source();
        Some(this)
    })
    .any(|cause| cause.to_string().contains(code))
}
