use std::{
    any::Any,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::{
    FutureExt as _, Stream, StreamExt as _, TryFutureExt as _, TryStreamExt as _, stream::BoxStream,
};
use http_body::{Body, Frame};
use object_store::{Error, ObjectStore, ObjectStoreExt as _, path::Path};

use crate::store::{BoxFuture, Content, Stored};

/// A finished file of a [`BucketStore`](crate::BucketStore): an object.
///
/// [`Stored::as_any`] returns it, for applications that work with the object itself: copy it, or
/// make a signed URL for it.
///
/// ```
/// use tower_resumable::store::{Stored, StoredObject};
///
/// fn key(stored: &dyn Stored) -> Option<String> {
///     let object = stored.as_any()?.downcast_ref::<StoredObject>()?;
///     Some(object.path().to_string())
/// }
/// ```
#[derive(Clone)]
pub struct StoredObject {
    pub(super) engine: Arc<dyn ObjectStore>,
    pub(super) path: Path,
}

impl StoredObject {
    /// The engine that has the object.
    pub fn engine(&self) -> &Arc<dyn ObjectStore> {
        &self.engine
    }

    /// The key of the object in the bucket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Stored for StoredObject {
    fn read(&self) -> Content {
        let Self { engine, path } = self.clone();
        let object = async move { engine.get(&path).await };
        let pieces = object
            .map_ok(|found| found.into_stream())
            .try_flatten_stream();
        Content::new(StreamBody::new(pieces.map_err(io::Error::from)))
    }

    fn delete(&self) -> BoxFuture<'_, io::Result<()>> {
        let deleted = self.engine.delete(&self.path);
        let deleted = deleted.map(|result| match result {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        });
        Box::pin(deleted)
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

impl fmt::Debug for StoredObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredObject")
            .field("engine", &format_args!("{}", self.engine))
            .field("path", &self.path.as_ref())
            .finish()
    }
}

/// A stream of bytes as a body.
pub(super) struct StreamBody<E>(BoxStream<'static, Result<Bytes, E>>);

impl<E: Send + 'static> StreamBody<E> {
    pub(super) fn new(pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static) -> Self {
        Self(pieces.boxed())
    }
}

impl<E> Body for StreamBody<E> {
    type Data = Bytes;
    type Error = E;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        let piece = self.0.poll_next_unpin(cx);
        piece.map(|piece| piece.map(|piece| piece.map(Frame::data)))
    }
}
