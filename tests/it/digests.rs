//! Chunks and files whose content does not match the digest that the client declares.

use http::Request;
use sha2::Digest as _;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{DigestAlgorithm, Digests, FileStore, ResumableLayer};

use crate::common::{self, File, FilePart, Server, form, multipart};

/// The request with the digest of `content` in its head.
fn with_content_digest(mut request: Request<Vec<u8>>, content: &[u8]) -> Request<Vec<u8>> {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    let digest = BASE64_STANDARD.encode(sha2::Sha256::digest(content));
    let value = format!("sha-256=:{digest}:").parse().unwrap();
    request.headers_mut().insert("content-digest", value);
    request
}

#[tokio::test]
async fn the_digest_of_a_body_is_checked() {
    let server = Server::start().await;
    let file = File::new("a.bin", 25);
    let mut client = server.client().await;
    for make in [File::octets, File::multipart, File::multipart_body_only] {
        let request = make(&file, 1);
        let wrong = with_content_digest(request, b"something else");
        let answer = client.send(wrong).await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (503, Some("digest_mismatch"))
        );
        assert_eq!(
            client.send(file.probe(1)).await.status,
            204,
            "the chunk is not stored"
        );
        let mut unreadable = make(&file, 1);
        let value = "sha-256=:AAAA:".parse().unwrap();
        unreadable.headers_mut().insert("content-digest", value);
        assert_eq!(client.send(unreadable).await.status, 400);
    }
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());
    for number in 1..=2 {
        let request = file.multipart(number);
        let body = request.body().clone();
        let answer = client.send(with_content_digest(request, &body)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    assert_eq!(server.deliveries()[0].content, file.content);
}

#[tokio::test]
async fn the_digest_in_a_field_is_checked() {
    let digests = Digests::default().with_chunk_field("sha", DigestAlgorithm::Sha256);
    let server = Server::with(|layer| layer.with_digests(digests)).await;
    let hex = |content: &[u8]| -> String {
        let digest = sha2::Sha256::digest(content);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let file = File::new("a.bin", 25);
    let says = |number: usize, value: String| {
        let mut file = file.clone();
        file.extra = vec![("sha".into(), value)];
        [
            file.octets(number),
            file.multipart(number),
            file.multipart_body_only(number),
        ]
    };
    let mut client = server.client().await;
    for request in says(1, hex(b"something else")) {
        let answer = client.send(request).await;
        assert_eq!(
            (answer.status, answer.json()["code"].as_str()),
            (503, Some("digest_mismatch"))
        );
    }
    for request in says(1, "00".into()) {
        assert_eq!(client.send(request).await.json()["code"], "invalid_field");
    }
    // After the file: too late for a check.
    let mut late = form(&file.fields(1), FilePart::named("a.bin"), file.chunk(1));
    let end = late.len() - format!("--{}--\r\n", common::BOUNDARY).len();
    let field = [("sha".to_owned(), hex(file.chunk(1)))];
    late.splice(end.., form(&field, FilePart::None, b""));
    assert_eq!(
        client.send(multipart("/upload", late)).await.json()["code"],
        "invalid_field"
    );
    assert_eq!(
        client.send(file.probe(1)).await.status,
        204,
        "the chunk is not stored"
    );
    // A chunk without a digest is not checked.
    assert_eq!(client.send(file.octets(1)).await.status, 200);
    for request in says(2, hex(file.chunk(2))) {
        assert_eq!(client.send(request).await.body, "delivery 1");
    }
    assert_eq!(server.deliveries()[0].content, file.content);
}

#[tokio::test]
async fn the_digest_of_a_file_is_checked_before_the_delivery() {
    let file = File::new("a.bin", 25);
    let crc = |content: &[u8]| format!("{:08x}", crc32fast::hash(content));
    let sha = |content: &[u8]| -> String {
        let digest = sha2::Sha256::digest(content);
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    };
    for algorithm in [DigestAlgorithm::Crc32, DigestAlgorithm::Sha256] {
        let digest = |content| match algorithm {
            DigestAlgorithm::Crc32 => crc(content),
            _ => sha(content),
        };
        let digests = Digests::default().with_file_field("of_all", algorithm);
        let server = Server::with(|layer| layer.with_digests(digests)).await;
        let mut client = server.client().await;
        let says = |value: String| File {
            extra: vec![("of_all".into(), value)],
            ..file.clone()
        };
        for (value, code) in [
            (digest(b"something else"), "file_digest_mismatch"),
            ("x".into(), "invalid_field"),
        ] {
            let wrong = says(value);
            assert_eq!(client.send(wrong.multipart(2)).await.status, 200);
            let answer = client.send(wrong.multipart(1)).await;
            assert_eq!(
                (answer.status, answer.json()["code"].as_str()),
                (400, Some(code))
            );
            // All chunks have to be sent again.
            for number in 1..=2 {
                assert_eq!(client.send(wrong.probe(number)).await.status, 204);
            }
        }
        assert_eq!(server.deliveries().len(), 0);
        let finished = server.files().into_iter();
        assert_eq!(finished.filter(|path| path.ends_with("a.bin")).count(), 0);
        let right = says(digest(&file.content));
        assert_eq!(client.send(right.multipart(1)).await.status, 200);
        assert_eq!(client.send(right.multipart(2)).await.body, "delivery 1");
        assert_eq!(server.deliveries()[0].content, file.content);
        // A file without a digest is not checked.
        let other = File::new("b.bin", 9);
        assert_eq!(client.send(other.octets(1)).await.body, "delivery 2");
    }
}

/// A digest that is computed on a blocking thread must not wait for another blocking thread.
#[test]
fn one_blocking_thread_is_enough() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let digests = Digests::default().with_file_field("sha", DigestAlgorithm::Sha256);
    let layer = ResumableLayer::new(FileStore::open(dir.path()).unwrap()).with_digests(digests);
    let inner = service_fn(async |_: Request<String>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
    });
    let chunk = Request::post(
        "/upload?resumableIdentifier=9-a&resumableTotalSize=9&resumableChunkNumber=1\
         &resumableChunkSize=9\
         &sha=15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225",
    );
    let chunk = chunk.body("123456789".to_owned()).unwrap();
    let response = runtime.block_on(async {
        let response = layer.layer(inner).oneshot(chunk);
        tokio::time::timeout(std::time::Duration::from_secs(30), response).await
    });
    // Threads that wait for each other would keep the runtime from ending.
    runtime.shutdown_background();
    assert_eq!(response.expect("it hangs").unwrap().status(), 200);
}
