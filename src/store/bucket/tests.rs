//! The store on small slots, and two servers as one store.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use object_store::{ObjectStoreExt as _, memory::InMemory};
use tokio::sync::RwLock;

use super::{ObjectClaim, ObjectStore, layout::Limits};
use crate::store::{
    ChunkBody, Expiry, Location, Progress, Sealed, Settlement, Spool, Status, Store, StoreError,
    Swept, TryClaim, Upload, UploadKey, Usage, conformance,
};

/// Slots that the chunks of the suite straddle. Those that are dropped in the middle fit into one.
const SMALL: Limits = Limits {
    min_part: 100_000,
    max_part: 1 << 30,
    max_parts: 10_000,
    slot: 350_000,
    unit: 1000,
    max_object: 5 << 40,
};

async fn read(location: &Location) -> Option<Vec<u8>> {
    let Location::Object(object) = location else {
        return None;
    };
    let found = object.store().get(object.path()).await.ok()?;
    Some(found.bytes().await.ok()?.to_vec())
}

async fn open(engine: &Arc<InMemory>, lease: Duration) -> ObjectStore {
    let store = ObjectStore::builder(Arc::clone(engine)).limits(SMALL);
    store.lease(lease).prefix("a/b").open().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn small_slots_conform() {
    let engine = Arc::new(InMemory::new());
    let store = open(&engine, Duration::from_secs(30)).await;
    conformance::check(&store, read).await;
}

/// Behind a load balancer: each request goes to another server.
#[derive(Clone)]
struct Balanced {
    servers: [ObjectStore; 2],
    next: Arc<AtomicUsize>,
    /// The suite sweeps uploads that requests are just writing to, which is safe within a server. Real
    /// limits are so far back that no request is as old.
    writing: Arc<RwLock<()>>,
}

impl Balanced {
    fn next(&self) -> &ObjectStore {
        &self.servers[self.next.fetch_add(1, Relaxed) % 2]
    }
}

impl Store for Balanced {
    type Claim = ObjectClaim;

    async fn put(
        &self,
        upload: &Upload,
        offset: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let _writing = self.writing.read().await;
        self.next().put(upload, offset, body).await
    }

    async fn status(&self, key: &UploadKey) -> Result<Status, StoreError> {
        self.next().status(key).await
    }

    async fn try_claim(&self, key: &UploadKey) -> Result<TryClaim<ObjectClaim>, StoreError> {
        self.next().try_claim(key).await
    }

    async fn seal(&self, claim: &mut ObjectClaim, upload: &Upload) -> Result<Sealed, StoreError> {
        self.next().seal(claim, upload).await
    }

    async fn settle(
        &self,
        claim: &mut ObjectClaim,
        settlement: &Settlement,
    ) -> Result<(), StoreError> {
        self.next().settle(claim, settlement).await
    }

    async fn remove(&self, key: &UploadKey) -> Result<bool, StoreError> {
        self.next().remove(key).await
    }

    async fn undelivered(&self) -> Result<Vec<Upload>, StoreError> {
        self.next().undelivered().await
    }

    async fn unfinished(&self, scope: Option<&str>) -> Result<Vec<(Upload, Progress)>, StoreError> {
        self.next().unfinished(scope).await
    }

    async fn usage(&self) -> Result<Vec<Usage>, StoreError> {
        self.next().usage().await
    }

    async fn sweep(&self, expiry: Expiry) -> Result<Swept, StoreError> {
        match self.writing.try_write() {
            Ok(_none) => self.next().sweep(expiry).await,
            Err(_) => Ok(Swept::default()),
        }
    }

    async fn spool(&self, body: &mut ChunkBody<'_>) -> Result<Spool, StoreError> {
        self.next().spool(body).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_conform() {
    let engine = Arc::new(InMemory::new());
    // A server that has found a claim taken asks again after a sixtieth of it.
    let lease = Duration::from_secs(3);
    let store = Balanced {
        servers: [open(&engine, lease).await, open(&engine, lease).await],
        next: Arc::default(),
        writing: Arc::default(),
    };
    conformance::check(&store, read).await;
}
