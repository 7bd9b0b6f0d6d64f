//! The suite passes a good store.

use crate::MemoryStore;

#[tokio::test(flavor = "multi_thread")]
async fn a_good_store_passes() {
    super::check(&MemoryStore::default()).await;
}
