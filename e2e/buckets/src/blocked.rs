//! A handler blocks the only thread of its runtime for longer than the lease. The HTTP client has
//! idle connections, which that runtime drives.

use std::{
    pin::pin,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use http_body_util::{BodyExt as _, Full};
use tower_resumable::{
    BucketStore, Scope, Upload, UploadId,
    store::{ChunkBody, Claim as _, Claimed, Store as _},
};

use super::engine::{Engine, Error};

const LEASE: Duration = Duration::from_secs(6);

/// How many connections are idle when the thread is blocked.
const IDLE: usize = 20;

pub async fn run(engine: &Engine) -> Result<(), Error> {
    let other = open(engine).await?;
    let (claimed, is_claimed) = tokio::sync::oneshot::channel();
    let (unblock, is_unblocked) = mpsc::channel();
    let server = engine.clone();
    let server = std::thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build()?;
        runtime.block_on(serve(&server, claimed, is_unblocked))
    });
    is_claimed.await?;
    let start = Instant::now();
    while start.elapsed() < 4 * LEASE {
        match other.claim(&upload()).await? {
            Claimed::Busy => {}
            asked => return Err(format!("the claim is lost: {asked:?}").into()),
        }
        tokio::time::sleep(LEASE / 20).await;
    }
    unblock.send(())?;
    let joined = tokio::task::spawn_blocking(|| server.join()).await?;
    joined.map_err(|_| "the server has panicked")??;
    let Claimed::Settled(_) = other.claim(&upload()).await? else {
        return Err("the answer is not recorded".into());
    };
    println!("{}: a blocked runtime keeps its claim", engine.name);
    Ok(())
}

async fn serve(
    engine: &Engine,
    claimed: tokio::sync::oneshot::Sender<()>,
    is_unblocked: mpsc::Receiver<()>,
) -> Result<(), Error> {
    let (store, upload) = (open(engine).await?, upload());
    let source = pin!(Full::new("abc".into()).map_err(|never| match never {}));
    let mut body = ChunkBody::new(source, Some(3), 0);
    store.write(&upload, 0, &mut body).await?;
    let Claimed::Won(mut claim) = store.claim(&upload).await? else {
        return Err("not complete".into());
    };
    join_all((0..IDLE).map(|_| store.status(&upload.id))).await;
    claimed.send(()).map_err(|()| "the test has ended")?;
    is_unblocked.recv()?;
    if !claim.sealed().claim_is_live() {
        return Err("the claim is not live".into());
    }
    let expires = std::time::SystemTime::now() + Duration::from_secs(60);
    let record = tower_resumable::store::Record::new(true, http::StatusCode::OK, 3, expires);
    Ok(claim.settle(&record).await?)
}

async fn open(engine: &Engine) -> Result<BucketStore, Error> {
    let builder = BucketStore::builder(Arc::new(engine.direct()?)).with_prefix("blocked");
    Ok(builder.with_lease(LEASE).open().await?)
}

fn upload() -> Upload {
    let id = UploadId::from_bytes([7; 32]);
    Upload::new(id, Scope::default(), Some(3))
}
