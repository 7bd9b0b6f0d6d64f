use super::{Durability, FileStore};
use crate::store::conformance;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_conform() {
    for durability in [Durability::Power, Durability::Process] {
        let dir = tempfile::tempdir().unwrap();
        let builder = FileStore::builder(dir.path()).with_durability(durability);
        conformance::check(&builder.open().unwrap()).await;
        // Only journals of settled uploads are left.
        for shard in std::fs::read_dir(dir.path().join("partial")).unwrap() {
            for file in std::fs::read_dir(shard.unwrap().path()).unwrap() {
                let path = file.unwrap().path();
                assert!(path.extension().is_some_and(|e| e == "journal"), "{path:?}");
            }
        }
    }
}
