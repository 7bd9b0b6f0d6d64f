//! This version of the crate finishes uploads in a folder that a `FileStore` wrote in version 1 of
//! the format.
//!
//! `tests/format-1` is the unchanged output of `write` below. Later versions of the crate have to
//! finish it too.

use std::{
    convert::Infallible,
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{
    CompletedUpload, FileStore, ResumableLayer, Scope, Upload, UploadId,
    store::{ChunkBody, Filter, Keep, Store as _},
};

const KEPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/format-1");

const CONTENT: &[u8] = b"0123456789abcdefghijklmno";

type Body = Full<Bytes>;

/// A chunk of a file of 25 bytes with a chunk size of 10. Resumable.js sends two chunks.
fn chunk(name: &str, number: usize) -> Request<Body> {
    let query = format!(
        "resumableChunkNumber={number}&resumableChunkSize=10&resumableTotalSize=25\
         &resumableIdentifier=25-{name}&resumableFilename={name}.txt"
    );
    let bytes = if number == 1 {
        &CONTENT[..10]
    } else {
        &CONTENT[10..]
    };
    Request::post(format!("/upload?{query}"))
        .header("content-type", "application/octet-stream")
        .body(Full::from(bytes))
        .unwrap()
}

/// Answers with the content of the file.
async fn answer(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let upload: CompletedUpload = request.extensions().get().cloned().unwrap();
    let content = upload.content().collect().await.unwrap().to_bytes();
    Ok(Response::new(Full::from(content)))
}

async fn send(layer: &ResumableLayer, request: Request<Body>) -> (u16, Bytes) {
    let service = layer.layer(service_fn(answer));
    let response = service.oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    (
        status,
        response.into_body().collect().await.unwrap().to_bytes(),
    )
}

fn layer(dir: &Path) -> ResumableLayer {
    ResumableLayer::new(FileStore::open(dir).unwrap()).with_hold_back(Duration::ZERO)
}

/// Writes the folder again. This is only needed for a new version of the format.
#[tokio::test]
#[ignore = "writes tests/format-1"]
async fn write() {
    let dir = PathBuf::from(KEPT);
    let layer = layer(&dir);
    send(&layer, chunk("first", 1)).await;
    send(&layer, chunk("last", 2)).await;
    for number in [1, 2] {
        send(&layer, chunk("delivered", number)).await;
    }
    // Complete, and never claimed, as if the process had died at this point.
    let scope = Scope::default();
    let mut upload = Upload::new(UploadId::new(&scope, ["complete"]), scope, Some(25));
    upload.file_name = Some("complete.txt".into());
    let mut body = pin!(Full::from(CONTENT).map_err(|never| match never {}));
    let mut body = ChunkBody::new(body.as_mut(), Some(25), 0);
    let store = FileStore::open(&dir).unwrap();
    store
        .write(&upload, 0, &mut body, Keep::Whole)
        .await
        .unwrap();
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test]
async fn uploads_of_version_1_are_finished() {
    let dir = tempfile::tempdir().unwrap();
    copy(Path::new(KEPT), dir.path());
    let layer = layer(dir.path());
    let uploads = layer.uploads();
    assert_eq!(
        uploads
            .list(&Filter::default(), None)
            .await
            .unwrap()
            .uploads
            .len(),
        3
    );

    for (name, missing) in [("first", 2), ("last", 1)] {
        let answer = send(&layer, chunk(name, missing)).await;
        assert_eq!(answer, (200, CONTENT.into()), "{name}");
    }
    let mut page = uploads.list(&Filter::complete(), None).await.unwrap();
    let complete = page.uploads.remove(0).upload;
    assert_eq!(complete.file_name.as_deref(), Some("complete.txt"));
    let request = Request::post("/upload").body(Body::default()).unwrap();
    let response = uploads
        .deliver(complete, service_fn(answer), request)
        .await
        .unwrap();
    let content = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(content, CONTENT);
    assert!(
        uploads
            .list(&Filter::default(), None)
            .await
            .unwrap()
            .uploads
            .is_empty()
    );

    // The record has expired, so this is a new upload. Its file is stored beside the delivered one.
    for number in [1, 2] {
        let answer = send(&layer, chunk("delivered", number)).await;
        assert_eq!(answer.0, 200);
    }
}
