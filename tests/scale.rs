//! How long a store takes with very many uploads in one folder, and how much memory. Run it with
//! `cargo test --release --test scale -- --nocapture --test-threads 1`; it takes minutes and prints
//! tables. `SCALE_DIR` is a folder on the disk to be measured. As root, it also measures with cold
//! caches.

use std::{
    path::Path,
    time::{Duration, Instant, SystemTime},
};

use http::StatusCode;
use tower_resumable::{
    FileStore, Scope, Upload, UploadId,
    store::{Claim as _, Claimed, Durability, Expiry, Filter, Record, Store as _},
};

fn upload(n: u32, length: u64) -> Upload {
    let scope = Scope::default();
    Upload::new(UploadId::new(&scope, [n.to_string()]), scope, Some(length))
}

/// Bytes of memory that this process holds.
fn memory() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// Drops the caches of the system. Returns whether that is allowed.
fn cool_down() -> bool {
    let synced = std::process::Command::new("sync").status();
    synced.is_ok_and(|status| status.success())
        && std::fs::write("/proc/sys/vm/drop_caches", "3").is_ok()
}

fn open(dir: &Path) -> FileStore {
    let builder = FileStore::builder(dir).with_durability(Durability::Process);
    builder.open().unwrap()
}

/// The number of uploads in all pages.
async fn count(store: &FileStore, filter: &Filter) -> usize {
    let (mut after, mut uploads) = (None, 0);
    loop {
        let page = store.list(filter, after.as_ref()).await.unwrap();
        uploads += page.uploads.len();
        after = page.next;
        if after.is_none() {
            return uploads;
        }
    }
}

async fn measure(what: &str, work: impl Future<Output = usize>) {
    let (start, before) = (Instant::now(), memory());
    let found = work.await;
    let grown = memory().saturating_sub(before) >> 10;
    println!(
        "{what:45} {:>10.1?} {grown:>8} KiB {found:>8} found",
        start.elapsed()
    );
}

fn tempdir() -> tempfile::TempDir {
    match std::env::var_os("SCALE_DIR") {
        Some(dir) => tempfile::tempdir_in(dir),
        None => tempfile::tempdir(),
    }
    .unwrap()
}

#[tokio::test]
async fn records() {
    const RECORDS: u32 = 100_000;
    let dir = tempdir();
    let store = open(dir.path());
    let expires = SystemTime::now() + Duration::from_secs(3600);
    for n in 0..RECORDS {
        let upload = upload(n, 0);
        store.create(&upload).await.unwrap();
        let Claimed::Won(mut claim) = store.claim(&upload).await.unwrap() else {
            panic!("no claim")
        };
        let record = Record::new(false, StatusCode::OK, 0, expires);
        claim.settle(&record).await.unwrap();
    }
    drop(store);
    for is_cold in [false, true] {
        if is_cold && !cool_down() {
            continue;
        }
        println!(
            "{RECORDS} records, {}",
            if is_cold { "cold" } else { "warm" }
        );
        let first = async { count(&open(dir.path()), &Filter::complete()).await };
        measure("open, and list what is complete", first).await;
        let store = open(dir.path());
        measure("first new upload: usage", async {
            store.usage().await.unwrap().len()
        })
        .await;
        measure("eight lists at once", async {
            let mut lists = tokio::task::JoinSet::new();
            for _ in 0..8 {
                let store = store.clone();
                lists.spawn(async move { count(&store, &Filter::default()).await });
            }
            lists.join_all().await.into_iter().sum()
        })
        .await;
        let sweep = async |expiry: Expiry| store.sweep(&expiry).await.unwrap().records as usize;
        measure("sweep of nothing", sweep(Expiry::default())).await;
        let mut all = Expiry::default();
        all.records_before = expires + Duration::from_secs(1);
        if is_cold || !cool_down() {
            measure("sweep of all", sweep(all)).await;
        }
    }
}

#[tokio::test]
async fn unfinished() {
    const UPLOADS: u32 = 50_000;
    let dir = tempdir();
    let store = open(dir.path());
    for n in 0..UPLOADS {
        store.create(&upload(n, 100)).await.unwrap();
    }
    drop(store);
    println!("{UPLOADS} unfinished uploads");
    let store = open(dir.path());
    measure("one page", async {
        store
            .list(&Filter::default(), None)
            .await
            .unwrap()
            .uploads
            .len()
    })
    .await;
    measure("all pages", count(&store, &Filter::default())).await;
    measure(
        "all pages of what is complete",
        count(&store, &Filter::complete()),
    )
    .await;
    measure("usage", async { store.usage().await.unwrap().len() }).await;
    measure("eight lists at once", async {
        let mut lists = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let store = store.clone();
            lists.spawn(async move { count(&store, &Filter::default()).await });
        }
        lists.join_all().await.into_iter().sum()
    })
    .await;
    measure("sweep of nothing", async {
        store.sweep(&Expiry::default()).await.unwrap().abandoned as usize
    })
    .await;
}
