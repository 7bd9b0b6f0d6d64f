//! A finished file that is an object.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures_core::Stream as _;
use futures_util::{FutureExt as _, future::BoxFuture, stream::BoxStream};
use object_store::{Error, GetResult, ObjectStore, ObjectStoreExt as _, path::Path};

/// A finished file in an object store: [`Location::Object`](crate::store::Location::Object).
///
/// Two are equal if their paths are.
#[derive(Clone)]
pub struct StoredObject {
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
}

impl StoredObject {
    /// The engine that has it, to read, copy or delete it with.
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.store
    }

    /// Its key in the bucket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn read(&self) -> ObjectStream {
        let object = self.clone();
        let get = async move { object.store.get(&object.path).await };
        ObjectStream::Opening(get.boxed())
    }

    /// Deletes it. No error if it is not there.
    pub(crate) async fn delete(&self) -> io::Result<()> {
        match self.store.delete(&self.path).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl PartialEq for StoredObject {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for StoredObject {}

impl fmt::Debug for StoredObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredObject")
            .field("store", &format_args!("{}", self.store))
            .field("path", &self.path.as_ref())
            .finish()
    }
}

/// The bytes of an object, as they come.
pub(crate) enum ObjectStream {
    Opening(BoxFuture<'static, object_store::Result<GetResult>>),
    Open(BoxStream<'static, object_store::Result<Bytes>>),
}

impl ObjectStream {
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match self {
                Self::Opening(get) => match ready!(get.as_mut().poll(cx)) {
                    Ok(found) => *self = Self::Open(found.into_stream()),
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
                Self::Open(stream) => {
                    let piece = ready!(Pin::new(stream).poll_next(cx));
                    return Poll::Ready(piece.map(|piece| piece.map_err(io::Error::from)));
                }
            }
        }
    }
}
