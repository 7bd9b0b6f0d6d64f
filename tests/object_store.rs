//! Uploads in an object store: what only that can, on the engine in memory.

use std::sync::Arc;

use object_store::{ObjectStoreExt as _, memory::InMemory};
use tower_resumable::{
    ObjectStore,
    store::{Location, conformance},
};

async fn read(location: &Location) -> Option<Vec<u8>> {
    let Location::Object(object) = location else {
        return None;
    };
    let found = object.store().get(object.path()).await.ok()?;
    Some(found.bytes().await.ok()?.to_vec())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_conforms() {
    let store = ObjectStore::open(Arc::new(InMemory::new())).await.unwrap();
    conformance::check(&store, read).await;
}
