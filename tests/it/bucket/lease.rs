//! Claims of servers that are blocked, or that lose their way to the bucket.

use std::sync::mpsc;

use tower_resumable::store::StoreEvent;

use super::*;
use crate::common::Told;

const LEASE: Duration = Duration::from_secs(1);

async fn claim(store: &BucketStore, upload: &Upload) -> impl Claim + std::fmt::Debug {
    match store.claim(upload).await.unwrap() {
        Claimed::Won(claim) => claim,
        other => panic!("{other:?}"),
    }
}

/// Waits until something is so, looking often.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + 20 * LEASE;
    while !is_so().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A handler blocks the only thread of its runtime for several leases. No other server gets the
/// upload.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocked_runtime_keeps_its_claim() {
    let engine = Arc::new(Engine::default());
    let other = open_with_lease(&engine, LEASE).await;
    let upload = upload(3, None);
    let (blocked, described) = (open_with_lease(&engine, LEASE).await, upload.clone());
    let events = Told::default();
    blocked.observe(events.observer());
    let (claimed, is_claimed) = tokio::sync::oneshot::channel();
    let (unblock, is_unblocked) = mpsc::channel::<()>();
    let server = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build().unwrap();
        runtime.block_on(async {
            write(&blocked, &described, 0, b"abc").await.unwrap();
            let mut claim = claim(&blocked, &described).await;
            claimed.send(()).unwrap();
            is_unblocked.recv().unwrap();
            assert!(claim.sealed().claim_is_live());
            claim.settle(&record()).await.unwrap();
        });
    });
    is_claimed.await.unwrap();
    let blocked_since = Instant::now();
    until("the claim stays", async || {
        let asked = other.claim(&upload).await.unwrap();
        assert!(matches!(asked, Claimed::Busy), "{asked:?}");
        blocked_since.elapsed() > 4 * LEASE
    })
    .await;
    unblock.send(()).unwrap();
    tokio::task::spawn_blocking(|| server.join().unwrap())
        .await
        .unwrap();
    let settled = other.claim(&upload).await.unwrap();
    assert!(matches!(settled, Claimed::Settled(_)), "{settled:?}");
    assert_eq!(events.all(), []);
}

/// The same with a runtime whose time stands still.
#[tokio::test(start_paused = true)]
async fn a_paused_runtime_keeps_its_claim() {
    let engine = Arc::new(Engine::default());
    let store = open_with_lease(&engine, LEASE).await;
    let upload = upload(3, None);
    write(&store, &upload, 0, b"abc").await.unwrap();
    let claim = claim(&store, &upload).await;
    let (sender, receiver) = mpsc::channel();
    let other = std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let other = open_with_lease(&engine, LEASE).await;
            let since = Instant::now();
            until("the claim stays", async || {
                let asked = other.claim(&upload).await.unwrap();
                assert!(matches!(asked, Claimed::Busy), "{asked:?}");
                since.elapsed() > 3 * LEASE
            })
            .await;
        });
        sender.send(()).unwrap();
    });
    // The thread of the paused runtime is blocked, too.
    let waited = receiver.recv();
    other.join().unwrap();
    waited.unwrap();
    assert!(claim.sealed().claim_is_live());
}

/// The way of a server to the bucket is cut for longer than the lease. It is told, the handler can
/// know it, and another server delivers the upload. Only the answer of the latter is recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_cut_off_loses_its_claim() {
    let engine = Arc::new(Engine::default());
    let (way, upload) = (Arc::new(engine.beside()), upload(3, None));
    let cut = open_with_lease(&way, LEASE).await;
    let other = open_with_lease(&engine, LEASE).await;
    let events = Told::default();
    cut.observe(events.observer());
    write(&cut, &upload, 0, b"abc").await.unwrap();
    let mut first = claim(&cut, &upload).await;
    assert!(first.sealed().claim_is_live());
    way.set_down(true);
    let mut second = None;
    until("the claim is taken over", async || {
        let is_live = first.sealed().claim_is_live();
        match other.claim(&upload).await.unwrap() {
            Claimed::Won(claim) => {
                assert!(!is_live, "two claims are live");
                second = Some(claim);
            }
            asked => assert!(matches!(asked, Claimed::Busy), "{asked:?}"),
        }
        second.is_some()
    })
    .await;
    let mut second = second.unwrap();
    assert_eq!(second.sealed().attempt, 2);
    assert_eq!(second.sealed().id, first.sealed().id);
    until("the loss is told", async || {
        events.names().contains(&"store_claim_lost")
    })
    .await;
    assert_eq!(events.names()[0], "store_renewal_failed");
    // While the way is cut, the answer cannot be recorded, but it is not refused.
    let settled = first.settle(&record()).await;
    assert!(matches!(settled, Err(StoreError::Failed(_))), "{settled:?}");
    way.set_down(false);
    let settled = first.settle(&record()).await;
    assert!(
        matches!(settled, Err(StoreError::Superseded)),
        "{settled:?}"
    );
    assert!(!first.sealed().claim_is_live());
    drop(first);
    second.settle(&record()).await.unwrap();
    let told = events.names();
    let lost = told
        .iter()
        .filter(|event| **event == "store_claim_lost")
        .count();
    assert_eq!(lost, 1, "{told:?}");
}

/// An observer that blocks when a renewal fails does not keep other leases from being renewed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_observer_loses_no_claim() {
    let engine = Arc::new(Engine::default());
    let (way, upload) = (Arc::new(engine.beside()), upload(3, None));
    let cut = open_with_lease(&way, LEASE).await;
    let (blocked, is_blocked) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    cut.observe(Arc::new(move |_: &StoreEvent<'_>| {
        // The test may have ended.
        let _ = blocked.send(());
        let _ = released.lock().unwrap().recv();
    }));
    write(&cut, &upload, 0, b"abc").await.unwrap();
    let _first = claim(&cut, &upload).await;
    // Another store of this process, and the same thread renews its claim.
    let others = Arc::new(Engine::default());
    let (healthy, rival) = (
        open_with_lease(&others, LEASE).await,
        open_with_lease(&others, LEASE).await,
    );
    write(&healthy, &upload, 0, b"abc").await.unwrap();
    let second = claim(&healthy, &upload).await;
    way.set_down(true);
    tokio::task::spawn_blocking(move || is_blocked.recv().unwrap())
        .await
        .unwrap();
    let deadline = Instant::now() + 3 * LEASE;
    while Instant::now() < deadline {
        assert!(second.sealed().claim_is_live());
        let asked = rival.claim(&upload).await.unwrap();
        assert!(matches!(asked, Claimed::Busy), "{asked:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    drop(release);
}

/// If no other server has taken the upload when the way is open again, the answer is recorded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_no_server_has_taken_is_renewed_late() {
    let engine = Arc::new(Engine::default());
    let (way, upload) = (Arc::new(engine.beside()), upload(3, None));
    let cut = open_with_lease(&way, LEASE).await;
    let other = open_with_lease(&engine, LEASE).await;
    write(&cut, &upload, 0, b"abc").await.unwrap();
    let mut claim = claim(&cut, &upload).await;
    way.set_down(true);
    until("the lease expires", async || {
        !claim.sealed().claim_is_live()
    })
    .await;
    way.set_down(false);
    until("the claim is live again", async || {
        claim.sealed().claim_is_live()
    })
    .await;
    let asked = other.claim(&upload).await.unwrap();
    assert!(matches!(asked, Claimed::Busy), "{asked:?}");
    claim.settle(&record()).await.unwrap();
    let settled = other.claim(&upload).await.unwrap();
    assert!(matches!(settled, Claimed::Settled(_)), "{settled:?}");
}

/// A record that was written although the answer of the engine was lost is written once. A retry
/// of the layer has another time of expiry.
#[tokio::test]
async fn settling_again_with_a_later_expiry_succeeds() {
    // The requests of a settlement: the one that writes the record is one of them.
    for number in 1..8 {
        let engine = Arc::new(Engine::default());
        let (store, upload) = (open(&engine).await, upload(3, None));
        write(&store, &upload, 0, b"abc").await.unwrap();
        let mut claim = claim(&store, &upload).await;
        engine.fail(number, true);
        let mut later = record();
        for _ in 0..5 {
            later.expires += Duration::from_secs(1);
            match claim.settle(&later).await {
                Ok(()) => break,
                Err(StoreError::Failed(_)) => {}
                Err(error) => panic!("request {number}: {error:?}"),
            }
        }
        assert!(engine.has_failed());
        let settled = store.claim(&upload).await.unwrap();
        assert!(matches!(settled, Claimed::Settled(_)), "{settled:?}");
        // Another answer is not that of this claim.
        let mut other = record();
        other.status = StatusCode::CREATED;
        let settled = claim.settle(&other).await;
        assert!(
            matches!(settled, Err(StoreError::Superseded)),
            "{settled:?}"
        );
    }
}

/// A time that is out of range neither panics nor lets a thread run without a pause.
#[tokio::test]
async fn extreme_leases_are_clamped() {
    for lease in [Duration::ZERO, Duration::from_nanos(1), Duration::MAX] {
        let engine = Arc::new(Engine::default());
        let store = open_with_lease(&engine, lease).await;
        let upload = upload(3, None);
        write(&store, &upload, 0, b"abc").await.unwrap();
        let claim = claim(&store, &upload).await;
        engine.take_counts();
        let since = Instant::now();
        until("some renewals", async || {
            since.elapsed() > Duration::from_millis(500)
        })
        .await;
        let counts = engine.take_counts().all();
        assert!(counts < 100, "{counts} requests with a lease of {lease:?}");
        assert!(claim.sealed().claim_is_live());
        claim.release().await;
        assert!(matches!(store.claim(&upload).await, Ok(Claimed::Won(_))));
    }
}
