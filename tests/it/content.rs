//! A complete upload is read, copied and moved in the same way, as a file or in memory.

use std::{
    convert::Infallible,
    io::ErrorKind,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{CompletedUpload, FileStore, MemoryStore, ResumableLayer};

use crate::common::{Client, File, serve};

/// The two deliveries of a file: the first one fails.
async fn delivered_twice(layer: ResumableLayer, file: &File) -> [CompletedUpload; 2] {
    let noted = Arc::<Mutex<Vec<_>>>::default();
    let notes = Arc::clone(&noted);
    let inner = service_fn(move |request: Request<Incoming>| {
        let upload = request.extensions().get::<CompletedUpload>().cloned();
        let mut notes = notes.lock().unwrap();
        notes.extend(upload);
        let status = [StatusCode::BAD_GATEWAY, StatusCode::OK][notes.len() - 1];
        let response = Response::builder().status(status);
        let response = response.body(Full::<Bytes>::default());
        std::future::ready(Ok::<_, Infallible>(response.unwrap()))
    });
    let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
    let mut client = Client::connect(addr).await;
    for number in (1..=file.chunks()).chain([1]) {
        client.send(file.multipart(number)).await;
    }
    let noted = std::mem::take(&mut *noted.lock().unwrap());
    noted.try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn content_is_read_copied_and_moved() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let files = FileStore::open(at("store")).unwrap();
    let layers = [
        ResumableLayer::new(files),
        ResumableLayer::new(MemoryStore::default()),
    ];
    for (layer, len) in layers.into_iter().zip([600_001, 25]) {
        let mut file = File::new("a.txt", len);
        file.chunk_size = 300_000.min(len / 2);
        let [first, second] = delivered_twice(layer, &file).await;
        assert_eq!((first.attempt(), second.attempt()), (1, 2));

        let mut content = first.content();
        assert_eq!(content.size_hint().exact(), Some(len as u64));
        let mut bytes = Vec::new();
        while let Some(piece) = content.next().await {
            bytes.extend_from_slice(&piece.unwrap());
        }
        assert!(bytes == file.content);
        assert!(content.is_end_stream() && content.next().await.is_none());
        let body = first.content().collect().await.unwrap().to_bytes();
        assert!(body == file.content);

        std::fs::write(at("other"), "another's").unwrap();
        first.copy_to(at("copy")).await.unwrap();
        assert!(std::fs::read(at("copy")).unwrap() == file.content);
        // A later attempt may copy to the same target again. No other file is overwritten.
        let error = first.copy_to(at("copy")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        second.copy_to(at("copy")).await.unwrap();
        let error = second.copy_to(at("other")).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(at("other")).unwrap(), b"another's");

        first.persist(at("moved")).await.unwrap();
        second.persist(at("moved")).await.unwrap();
        assert!(std::fs::read(at("moved")).unwrap() == file.content);
        if first.path().is_some() {
            let error = second.content().next().await.unwrap().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
            let error = second.copy_to(at("again")).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::NotFound);
        }
        // No incomplete file remains.
        let mut names: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name != "store")
            .collect();
        names.sort();
        assert_eq!(names, ["copy", "moved", "other"]);
        for name in ["copy", "moved", "other"] {
            std::fs::remove_file(at(name)).unwrap();
        }
    }
}

/// A file whose size has changed on disk is an error, not other content.
#[tokio::test]
async fn a_file_of_another_size_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let layer = ResumableLayer::new(FileStore::open(dir.path()).unwrap());
    let [_, upload] = delivered_twice(layer, &File::new("a.txt", 25)).await;
    for len in [24, 26] {
        std::fs::write(upload.path().unwrap(), vec![0; len]).unwrap();
        let error = upload.content().collect().await.unwrap_err();
        let expected = match len {
            24 => ErrorKind::UnexpectedEof,
            _ => ErrorKind::Other,
        };
        assert_eq!(error.kind(), expected, "{len} bytes");
    }
}
