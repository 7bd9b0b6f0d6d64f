//! The suite for stores, on files.

use super::{Durability, FileStore};
use crate::store::conformance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_conform() {
    for durability in [Durability::Power, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        let builder = FileStore::builder(dir.path()).with_durability(durability);
        conformance::check(&builder.open().unwrap()).await;
    }
}
