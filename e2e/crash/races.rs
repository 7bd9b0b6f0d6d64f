//! Sends the last chunks of an upload, and duplicates of them, at the same time.

use std::{
    convert::Infallible,
    path::Path,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{CompletedUpload, FileStore, MemoryStore, ResumableLayer};

use super::{
    rows::Rng,
    world::{Seen, Stop},
};

const ROUNDS: u64 = 5000;

pub fn row(_: &mut Rng) -> Result<Seen, Stop> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    // In memory if possible: this row tests races, and a sync would only slow it down.
    let dir = if Path::new("/dev/shm").is_dir() {
        tempfile::tempdir_in("/dev/shm")
    } else {
        tempfile::tempdir()
    }
    .map_err(|error| error.to_string())?;
    let files = FileStore::open(dir.path()).map_err(|error| error.to_string())?;
    let mut seen = Seen::default();
    for layer in [
        ResumableLayer::new(files),
        ResumableLayer::new(MemoryStore::default()),
    ] {
        for round in 0..ROUNDS {
            runtime.block_on(race(&layer, round, &mut seen));
        }
    }
    Ok(seen)
}

async fn race(layer: &ResumableLayer, round: u64, seen: &mut Seen) {
    let calls = Arc::new(AtomicU64::new(0));
    let whole = Arc::new(AtomicU64::new(0));
    let counters = (Arc::clone(&calls), Arc::clone(&whole));
    let service = layer.layer(service_fn(move |request: Request<Full<Bytes>>| {
        let upload = request.extensions().get::<CompletedUpload>().cloned();
        let (calls, whole) = counters.clone();
        async move {
            calls.fetch_add(1, Ordering::SeqCst);
            let Some(upload) = upload else {
                return Ok::<_, Infallible>(Response::new(Full::from("none")));
            };
            let is_whole = is_whole(&upload).await;
            whole.fetch_add(is_whole.into(), Ordering::SeqCst);
            Ok(Response::new(Full::from(upload.id().to_owned())))
        }
    }));
    let send = |number: u64| {
        let query = format!(
            "resumableChunkNumber={number}&resumableChunkSize=9&resumableTotalSize=27\
             &resumableIdentifier={round}&resumableFilename=x"
        );
        let request = Request::post(format!("/upload?{query}"))
            .header("content-type", "application/octet-stream")
            .body(Full::from(vec![number as u8; 9]));
        let service = service.clone();
        async move {
            let response = service.oneshot(request.ok()?).await.ok()?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.ok()?.to_bytes();
            Some((status, body))
        }
    };
    let _ = send(1).await;
    let racers: Vec<_> = [2, 3, 2, 3]
        .into_iter()
        .map(|number| tokio::spawn(send(number)))
        .collect();
    let mut ids = Vec::new();
    for racer in racers {
        match racer.await {
            Ok(Some((200, body))) if !body.starts_with(b"{") => ids.push(body),
            // The answer to a chunk that did not complete the upload.
            Ok(Some((200, _))) => {}
            other => seen.wrong.push(format!("round {round}: {other:?}")),
        }
    }
    let calls = calls.load(Ordering::SeqCst);
    seen.rounds += 1;
    seen.uploads += 1;
    seen.acked += 27;
    seen.missing += u64::from(calls == 0);
    seen.doubled += calls.saturating_sub(1);
    seen.corrupt += calls - whole.load(Ordering::SeqCst);
    if ids.is_empty() || ids.iter().any(|id| *id != ids[0]) {
        seen.wrong
            .push(format!("round {round}: different answers: {ids:?}"));
    }
}

/// Whether the file has the bytes of the three chunks.
async fn is_whole(upload: &CompletedUpload) -> bool {
    let content = upload.content().collect().await;
    content.is_ok_and(|content| content.to_bytes() == [[1; 9], [2; 9], [3; 9]].concat())
}
