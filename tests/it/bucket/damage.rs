//! Objects that are damaged, of another version, or not of the store.

use object_store::{ObjectStoreExt as _, path::Path};
use tower_resumable::store::StoreEvent;

use super::*;

/// What was set aside or passed over, and where.
pub type Told = Arc<Mutex<Vec<(&'static str, String)>>>;

pub fn observe(store: &BucketStore) -> Told {
    let events = Told::default();
    let told = Arc::clone(&events);
    store.observe(Arc::new(move |event: &StoreEvent<'_>| {
        let event = match event {
            StoreEvent::SetAside { place, .. } => ("set aside", *place),
            StoreEvent::Skipped { place, .. } => ("skipped", *place),
            _ => return,
        };
        told.lock().unwrap().push((event.0, event.1.to_owned()));
    }));
    events
}

pub async fn put(engine: &Engine, key: &str, bytes: &[u8]) {
    let path = Path::from(key);
    engine.put(&path, bytes.to_vec().into()).await.unwrap();
}

/// An upload whose `info` object cannot be read begins anew, and harms no other.
#[tokio::test]
async fn an_unreadable_upload_is_set_aside() {
    let id = UploadId::from_bytes([1; 32]);
    let key = format!("up/{id}/info");
    let other = upload(1, None);
    // Each request may be the first that meets it.
    for request in [
        "write", "create", "status", "claim", "list", "sweep", "remove",
    ] {
        for damage in [&b""[..], b"{", b"{\"version\":2}", b"\xff\0", b"null"] {
            let engine = Arc::new(Engine::default());
            let store = open(&engine).await;
            let damaged = begin(&store, 1, "a", 3).await;
            write(&store, &other, 0, b"x").await.unwrap();
            put(&engine, &key, damage).await;
            let store = open(&engine).await;
            let events = observe(&store);
            let case = format!("{request}, {damage:?}");
            match request {
                "write" => drop(write(&store, &damaged, 0, b"abc").await.expect(&case)),
                "create" => drop(store.create(&damaged).await.expect(&case)),
                "status" => assert!(store.status(&id).await.expect(&case).is_none()),
                "claim" => {
                    let claimed = store.claim(&damaged).await.expect(&case);
                    assert!(matches!(claimed, Claimed::Incomplete), "{case}");
                }
                "list" => {
                    let listed = list(&store, &Filter::default()).await;
                    assert_eq!(listed, std::slice::from_ref(&other), "{case}");
                }
                "sweep" => {
                    let expiry = everything(Duration::from_secs(60));
                    assert_eq!(store.sweep(&expiry).await.expect(&case), Swept::default());
                }
                _ => assert!(!store.remove(&id).await.expect(&case)),
            }
            let told = events.lock().unwrap().clone();
            let [("set aside", place)] = &told[..] else {
                panic!("{case}: {told:?}");
            };
            let kept = engine.bytes(&Path::from(place.as_str())).await;
            assert_eq!(kept.as_deref(), Some(damage), "{case}");
            write(&store, &damaged, 0, b"abc").await.expect(&case);
            assert_eq!(finish(&store, &damaged).await.expect(&case), b"abc");
            assert_eq!(list(&store, &Filter::complete()).await.len(), 1, "{case}");
            // It is kept for the operator.
            store.sweep(&everything(Duration::ZERO)).await.unwrap();
            assert_eq!(
                engine.keys("damaged").await,
                std::slice::from_ref(place),
                "{case}"
            );
        }
    }
}

/// Two servers that meet the same damage at the same time do not remove the new upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_set_an_upload_aside_once() {
    for _ in 0..20 {
        let engine = Arc::new(Engine::default());
        let servers = [open(&engine).await, open(&engine).await];
        let upload = upload(6, None);
        put(&engine, &format!("up/{}/info", upload.id), b"{").await;
        let (a, b) = tokio::join!(
            write(&servers[0], &upload, 0, b"abc"),
            write(&servers[1], &upload, 3, b"def"),
        );
        assert!(a.unwrap().complete || b.unwrap().complete);
        assert_eq!(finish(&servers[0], &upload).await.unwrap(), b"abcdef");
        assert_eq!(engine.keys("damaged").await.len(), 1);
    }
}

/// Objects that are not of the store change nothing, and stay. A sweep tells what it passes over.
#[tokio::test]
async fn foreign_objects_are_passed_over() {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    let events = observe(&store);
    let upload = upload(6, None);
    write(&store, &upload, 0, b"abc").await.unwrap();
    let keys = engine.keys("up").await;
    let of = keys.iter().find_map(|key| Some(key.split_once("/s/")?.0));
    let of = of.unwrap().to_owned();
    let foreign = [
        "up/readme.txt".into(),
        "up/x/info".into(),
        "open/readme.txt".into(),
        "files/readme.txt".into(),
        format!("up/{}/readme.txt", upload.id),
        format!("{of}/readme.txt"),
        format!("{of}/claim/readme.txt"),
        format!("{of}/claim/4294967295"),
        format!("{of}/claim/99999999999"),
        format!("{of}/s/readme.txt"),
        // Not in the slot, of no bytes, of a slot that does not exist, in another notation.
        format!("{of}/s/00000/c-00000000000000000003-99"),
        format!("{of}/s/00000/c-00000000000000000003-0"),
        format!("{of}/s/00007/c-00000000000000000003-3"),
        format!("{of}/s/0/c-00000000000000000003-3"),
        format!("{of}/s/00000/c-3-3"),
    ];
    for key in &foreign {
        put(&engine, key, b"xyz").await;
    }
    assert_eq!(store.usage().await.unwrap().len(), 1);
    let listed = store.list(&Filter::default(), None).await.unwrap();
    assert_eq!(listed.uploads[0].progress.received, 3);
    let expiry = everything(Duration::from_secs(60));
    assert_eq!(store.sweep(&expiry).await.unwrap(), Swept::default());
    let told = events.lock().unwrap().clone();
    assert_eq!(
        told,
        [
            ("skipped", "up/readme.txt".into()),
            ("skipped", "up/x/info".into()),
        ]
    );
    for key in &foreign {
        assert!(engine.bytes(&Path::from(key.as_str())).await.is_some());
    }
    write(&store, &upload, 3, b"def").await.unwrap();
    assert_eq!(finish(&store, &upload).await.unwrap(), b"abcdef");
}

/// A piece that has lost bytes, or has others, is not delivered. The client sends it again.
#[tokio::test]
async fn a_damaged_piece_is_sent_again() {
    for damage in [&b""[..], b"ab", b"abcd", b"abx"] {
        for is_restarted in [false, true] {
            let engine = Arc::new(Engine::default());
            let mut store = open(&engine).await;
            let upload = upload(6, None);
            write(&store, &upload, 0, b"abc").await.unwrap();
            let keys = engine.keys("up").await;
            let piece = keys.iter().find(|key| key.contains("/s/")).unwrap();
            write(&store, &upload, 3, b"def").await.unwrap();
            put(&engine, piece, damage).await;
            if is_restarted {
                store = open(&engine).await;
            }
            let mut sent = 0;
            let found = loop {
                let complete = write(&store, &upload, 3, b"def").await.unwrap().complete;
                if complete
                    && store
                        .status(&upload.id)
                        .await
                        .unwrap()
                        .unwrap()
                        .progress()
                        .complete
                {
                    match store.claim(&upload).await {
                        Ok(Claimed::Won(claim)) => break read(claim.sealed()).await,
                        Ok(Claimed::Incomplete) | Err(StoreError::Failed(_)) => {}
                        other => panic!("{other:?}"),
                    }
                }
                write(&store, &upload, 0, b"abc").await.unwrap();
                sent += 1;
                assert!(sent < 4, "{damage:?}");
            };
            assert_eq!(found.as_deref(), Some(&b"abcdef"[..]), "{damage:?}");
        }
    }
}

/// A final object of another size than the upload is not delivered.
#[tokio::test]
async fn a_final_object_of_another_size_is_not_delivered() {
    let engine = Arc::new(Engine::default());
    let store = open(&engine).await;
    let upload = upload(6, None);
    write(&store, &upload, 0, b"abcdef").await.unwrap();
    let keys = engine.keys("open").await;
    let unique_id = keys[0].split('-').nth(1).unwrap();
    // Its parts are gone as after a completion whose answer was lost.
    put(&engine, &format!("files/{unique_id}"), b"abc").await;
    engine.abort_all();
    assert!(store.claim(&upload).await.is_err());
    write(&store, &upload, 0, b"abcdef").await.unwrap();
    assert_eq!(finish(&store, &upload).await.unwrap(), b"abcdef");
}

/// Random numbers (SplitMix64).
pub struct Rng(pub u64);

impl Rng {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % end as u64) as usize
    }
}

/// Damages a random object that is not a finished file. Returns what was done.
pub async fn damage(engine: &Engine, rng: &mut Rng) -> String {
    let keys = [engine.keys("up").await, engine.keys("open").await].concat();
    let key = &keys[rng.below(keys.len())];
    let path = Path::from(key.as_str());
    let mut bytes = engine.bytes(&path).await.unwrap();
    let how = rng.below(6);
    match how {
        0 => {
            return engine
                .delete(&path)
                .await
                .map(|()| format!("{key} deleted"))
                .unwrap();
        }
        1 => bytes.truncate(rng.below(bytes.len() + 1)),
        2 => bytes.clear(),
        3 => bytes.extend_from_slice(b"more"),
        4 => bytes = (0..rng.below(300)).map(|_| rng.below(256) as u8).collect(),
        _ => {
            if !bytes.is_empty() {
                let at = rng.below(bytes.len());
                bytes[at] ^= 1 << rng.below(8);
            }
        }
    }
    put(engine, key, &bytes).await;
    format!("{key} damaged ({how})")
}

/// Objects are damaged at random while a client sends a file. It is delivered with its bytes: a
/// client that sends all chunks again always gets there, and no error stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_damage_neither_stops_an_upload_nor_changes_its_bytes() {
    const LEASE: Duration = Duration::from_millis(100);
    for seed in 0..150 {
        let rng = &mut Rng(seed);
        let engine = Arc::new(Engine::default());
        let mut store = open_with_lease(&engine, LEASE).await;
        let (total, size) = [(5 * MIB + 100, 5 * MIB), (1000, 100)][rng.below(10).min(1)];
        let (bytes, upload) = (content(total), upload(total, Some(size)));
        let chunks: Vec<_> = bytes.chunks(size as usize).collect();
        let mut done = Vec::new();
        let deadline = Instant::now() + 100 * LEASE;
        let found = 'again: loop {
            assert!(Instant::now() < deadline, "seed {seed}: {done:?}");
            for (n, chunk) in chunks.iter().enumerate() {
                // As a client does, and with no end to the damage at first.
                if let Err(error) = write(&store, &upload, n as u64 * size, chunk).await {
                    let is_retryable =
                        matches!(error, StoreError::Failed(_) | StoreError::Superseded);
                    assert!(is_retryable, "seed {seed}: {error:?}, {done:?}");
                }
                if done.len() < 3 && rng.below(chunks.len()) == 0 {
                    done.push(damage(&engine, rng).await);
                    if rng.below(2) == 0 {
                        store = open_with_lease(&engine, LEASE).await;
                    }
                }
            }
            match store.claim(&upload).await {
                Ok(Claimed::Won(mut claim)) => {
                    let found = read(claim.sealed()).await;
                    settle(&mut claim).await;
                    break 'again found;
                }
                Ok(Claimed::Settled(_)) => panic!("seed {seed}: {done:?}"),
                Ok(Claimed::Busy | Claimed::Incomplete) | Err(StoreError::Failed(_)) => {}
                Err(error) => panic!("seed {seed}: {error:?}, {done:?}"),
            }
        };
        assert!(
            found.as_deref() == Some(&bytes[..]),
            "seed {seed}: {done:?}"
        );
        for store in [&store, &open(&engine).await] {
            store.usage().await.unwrap();
            store.list(&Filter::default(), None).await.unwrap();
            store
                .sweep(&everything(Duration::from_secs(60)))
                .await
                .unwrap();
        }
    }
}
