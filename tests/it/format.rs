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
    store::{ChunkBody, Filter, Store as _},
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
    store.write(&upload, 0, &mut body).await.unwrap();
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

/// The first code of version 1 renamed a file when it sealed it, and noted its inode number. The
/// bytes decide: an inode number can belong to another file.
#[tokio::test]
async fn files_that_were_renamed_are_delivered_by_their_bytes() {
    use tower_resumable::store::{Claim as _, Claimed, Record};
    for other in [
        None,
        Some(&b"another file"[..]),
        Some(b"0123456789abcdefghijklmnx"),
    ] {
        for delivered in [true, false] {
            let dir = tempfile::tempdir().unwrap();
            copy(Path::new(KEPT), dir.path());
            let path = seal_by_renaming(dir.path());
            if let Some(other) = other {
                std::fs::write(&path, other).unwrap();
            }
            let store = FileStore::open(dir.path()).unwrap();
            let filter = Filter::complete();
            let mut page = store.list(&filter, None).await.unwrap();
            let upload = page.uploads.remove(0).upload;
            let Claimed::Won(mut claim) = store.claim(&upload).await.unwrap() else {
                panic!("no claim");
            };
            assert_eq!(claim.sealed().attempt, 2);
            let found = std::fs::read(claim.sealed().stored.path().unwrap());
            assert_eq!(found.ok().as_deref(), other.is_none().then_some(CONTENT));
            let expires = std::time::SystemTime::now();
            let record = Record::new(delivered, http::StatusCode::OK, 2, expires);
            claim.settle(&record).await.unwrap();
            let left = std::fs::read(&path).ok();
            let expected = other.or(delivered.then_some(CONTENT));
            assert_eq!(left.as_deref(), expected);
        }
    }
}

/// Seals the complete upload as that code did. Returns the path of its file.
fn seal_by_renaming(root: &Path) -> PathBuf {
    use std::os::unix::fs::MetadataExt as _;
    let id = UploadId::new(&Scope::default(), ["complete"]).to_string();
    let shard = root.join("partial").join(&id[..2]);
    let data = std::fs::read_dir(&shard)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|it| it == "data"))
        .unwrap();
    let name = data.file_name().unwrap().to_str().unwrap().to_owned();
    let own_id = name.split('.').nth(1).unwrap();

    let path = shard.join(format!("{id}.journal"));
    let journal = std::fs::read(&path).unwrap();
    let number = |at: usize| u64::from_le_bytes(journal[at..at + 8].try_into().unwrap());
    let created: serde_json::Value =
        serde_json::from_slice(&journal[64..64 + number(16) as usize]).unwrap();
    let payload = serde_json::json!({
        "path": format!("{own_id}/complete.txt"),
        "file": data.metadata().unwrap().ino(),
        "crc32": crc32fast::hash(CONTENT),
        "upload": created["upload"],
    })
    .to_string();
    let (mut end, mut check) = (0, 0);
    while journal.get(end..end + 4) == Some(b"TRJ1") {
        check = u32::from_le_bytes(journal[end + 60..end + 64].try_into().unwrap());
        let has_payload = matches!(journal[end + 4], 1 | 3 | 5);
        let payload = if has_payload {
            number(end + 16) as usize
        } else {
            0
        };
        end += (64 + payload).next_multiple_of(64);
    }
    let mut record = b"TRJ1\x03\0\0\0".to_vec();
    record.extend([0; 8]);
    record.extend((payload.len() as u64).to_le_bytes());
    record.extend(crc32fast::hash(payload.as_bytes()).to_le_bytes());
    record.resize(60, 0);
    let mut hasher = crc32fast::Hasher::new_with_initial(check);
    hasher.update(&record);
    record.extend(hasher.finalize().to_le_bytes());
    record.extend(payload.as_bytes());
    let journal = [&journal[..end], &record, &[0; 4096]].concat();
    std::fs::write(&path, journal).unwrap();

    let target = root.join("files").join(own_id).join("complete.txt");
    std::fs::create_dir(target.parent().unwrap()).unwrap();
    std::fs::rename(&data, &target).unwrap();
    target
}
