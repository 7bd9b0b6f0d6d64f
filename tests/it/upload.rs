//! Whole uploads over real connections, with every configuration of Resumable.js.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::{Method, Request, StatusCode};
use serde_json::json;
use tower_resumable::{Delivery, Dialect, IdentityRule, Refusal};

use crate::common::{self, BOUNDARY, File, FilePart, Server, file_part, form, multipart, uri};

type Send = fn(&File, usize) -> Request<Vec<u8>>;

fn base64(file: &File, number: usize) -> Request<Vec<u8>> {
    let data = format!(
        "data:application/octet-stream;base64,{}",
        BASE64_STANDARD.encode(file.chunk(number))
    );
    let form = form(
        &file.fields(number),
        FilePart::Text { field: "file" },
        data.as_bytes(),
    );
    multipart(&file.uri(number), form)
}

/// What the generic uploader of python-resumable accepts.
fn bare_base64(file: &File, number: usize) -> Request<Vec<u8>> {
    let data = BASE64_STANDARD.encode(file.chunk(number));
    let form = form(
        &file.fields(number),
        FilePart::Text { field: "file" },
        data.as_bytes(),
    );
    multipart("/upload", form)
}

fn file_first(file: &File, number: usize) -> Request<Vec<u8>> {
    let first = file_part(FilePart::named(&file.name), file.chunk(number));
    let rest = form(&file.fields(number), FilePart::None, b"");
    multipart("/upload", [first, rest].concat())
}

fn file_in_the_middle(file: &File, number: usize) -> Request<Vec<u8>> {
    let fields = file.fields(number);
    let close = format!("--{BOUNDARY}--\r\n");
    let before = form(&fields[..4], FilePart::None, b"");
    let before = before[..before.len() - close.len()].to_vec();
    let part = file_part(FilePart::named(&file.name), file.chunk(number));
    multipart(
        "/upload",
        [before, part, form(&fields[4..], FilePart::None, b"")].concat(),
    )
}

fn binary_octets(file: &File, number: usize) -> Request<Vec<u8>> {
    let mut request = file.octets(number);
    request
        .headers_mut()
        .insert("content-type", "binary/octet-stream".parse().unwrap());
    request
}

fn put(file: &File, number: usize) -> Request<Vec<u8>> {
    let mut request = file.multipart(number);
    *request.method_mut() = Method::PUT;
    request
}

fn patch(file: &File, number: usize) -> Request<Vec<u8>> {
    let mut request = file.octets(number);
    *request.method_mut() = Method::PATCH;
    request
}

const TRANSPORTS: [(&str, Send); 10] = [
    ("multipart", File::multipart),
    ("multipart, body only", File::multipart_body_only),
    ("octet", File::octets),
    ("binary octet", binary_octets),
    ("base64", base64),
    ("bare base64", bare_base64),
    ("file first", file_first),
    ("file in the middle", file_in_the_middle),
    ("PUT", put),
    ("PATCH", patch),
];

/// Uploads `file` as the client does, with a probe before each chunk, and returns the last answer.
async fn upload(server: &Server, file: &File, send: Send) -> common::Answer {
    let mut client = server.client().await;
    let mut last = None;
    for number in 1..=file.chunks() {
        assert_eq!(
            client.send(file.probe(number)).await.status,
            204,
            "chunk {number} before"
        );
        let answer = client.send(send(file, number)).await;
        assert_eq!(answer.status, 200, "chunk {number}: {answer:?}");
        assert_eq!(
            client.send(file.probe(number)).await.status,
            200,
            "chunk {number} after"
        );
        last = Some(answer);
    }
    last.unwrap()
}

#[tokio::test]
async fn every_transport_in_both_layouts() {
    for (name, send) in TRANSPORTS {
        for (len, force_chunk_size) in
            [(25, false), (25, true), (30, false), (7, false), (0, false)]
        {
            let server = Server::start().await;
            let file = File {
                force_chunk_size,
                ..File::new("a.txt", len)
            };
            let answer = upload(&server, &file, send).await;
            let case = format!("{name}, {len} bytes, forceChunkSize {force_chunk_size}");
            assert_eq!(answer.body, "delivery 1", "{case}");
            let deliveries = server.deliveries();
            assert_eq!(deliveries.len(), 1, "{case}");
            assert!(deliveries[0].content == file.content, "{case}");
            assert_eq!(deliveries[0].rest, 0, "{case}");
            for header in ["content-type", "content-length", "transfer-encoding"] {
                assert!(
                    !deliveries[0].headers.contains_key(header),
                    "{case}: {header}"
                );
            }
        }
    }
}

#[tokio::test]
async fn the_application_gets_the_metadata_of_the_upload() {
    let server = Server::with(|layer| {
        layer.with_scope(|parts| Ok(parts.headers["x-user"].to_str().unwrap().into()))
    })
    .await;
    let file = File {
        relative_path: "photos/2026/é \"1\".png".into(),
        content_type: "image/png".into(),
        extra: vec![
            ("token".into(), "a b&c".into()),
            ("empty".into(), String::new()),
        ],
        ..File::new("é \"1\".png", 12)
    };
    let mut request = file.multipart(1);
    request
        .headers_mut()
        .insert("x-user", "alice".parse().unwrap());
    let answer = server.client().await.send(request).await;
    assert_eq!(answer.status, 200, "{answer:?}");

    let deliveries = server.deliveries();
    let upload = &deliveries[0].upload;
    assert_eq!(upload.size(), 12);
    assert_eq!(upload.attempt(), 1);
    assert_eq!(upload.id().len(), 32);
    assert_eq!(upload.scope().as_str(), "alice");
    assert_eq!(upload.file_name(), Some("é \"1\".png"));
    assert_eq!(upload.safe_file_name(), "é 1.png");
    assert_eq!(upload.relative_path(), Some("photos/2026/é \"1\".png"));
    assert_eq!(
        upload.safe_relative_path(),
        std::path::Path::new("photos/2026/é 1.png")
    );
    assert_eq!(upload.content_type(), Some("image/png"));
    assert_eq!(upload.identifier(), file.identifier);
    assert_eq!(upload.field("token"), Some("a b&c"));
    assert_eq!(upload.fields().len(), 2);
    assert_eq!(upload.crc32(), Some(crc32fast::hash(&file.content)));
    let path = upload.path().unwrap();
    assert!(path.starts_with(server.dir.path()), "{path:?}");
    assert!(
        path.ends_with(format!("{}/é 1.png", upload.id())),
        "{path:?}"
    );
}

#[tokio::test]
async fn names_that_browsers_send_differently_in_query_and_form() {
    let server = Server::start().await;
    let file = File {
        relative_path: "日本語/e\u{301}\"\n.txt".into(),
        ..File::new("e\u{301}\"\n.txt", 25)
    };
    // The probe has the line feed, the form has CR LF.
    upload(&server, &file, File::multipart).await;
    assert_eq!(
        server.deliveries()[0].upload.file_name(),
        Some("e\u{301}\"\n.txt")
    );
    let upload = &server.deliveries()[0].upload;
    assert_eq!(upload.safe_file_name(), "\u{e9}.txt");
    assert_eq!(
        upload.safe_relative_path(),
        std::path::Path::new("日本語/\u{e9}.txt")
    );
}

#[tokio::test]
async fn answers_have_one_shape() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 35);
    let missing = client.send(file.probe(1)).await;
    assert_eq!((missing.status, missing.body.as_str()), (204, ""));
    assert_eq!(missing.headers["cache-control"], "no-store");

    let stored = client.send(file.multipart(1)).await;
    let found = client.send(file.probe(1)).await;
    for answer in [&stored, &found] {
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.json(),
            json!({ "state": "receiving", "received": 10, "total": 35 })
        );
        assert_eq!(answer.headers["content-type"], "application/json");
        assert_eq!(answer.headers["cache-control"], "no-store");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff");
    }

    client.send(file.multipart(3)).await;
    let mut fields = file.fields(1);
    fields.push(("resumableStatus".into(), "1".into()));
    let status = client.get(&uri(&fields)).await;
    assert_eq!(
        status.json(),
        json!({
            "state": "receiving",
            "received": 25,
            "total": 35,
            "ranges": [[0, 10], [20, 35]],
            "chunks": [1, 3, 4],
        })
    );

    let bad = client
        .send(
            Request::post("/upload?resumableChunkNumber=1")
                .body(vec![1])
                .unwrap(),
        )
        .await;
    assert_eq!(bad.status, 400);
    assert_eq!(bad.headers["content-type"], "application/problem+json");
    assert_eq!(bad.json()["status"], 400);
    assert_eq!(bad.json()["code"], "missing_field");
}

#[tokio::test]
async fn probes_by_head_and_post() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 35);
    for method in [Method::HEAD, Method::POST] {
        let test = || {
            Request::builder()
                .method(&method)
                .uri(file.uri(1))
                .body(Vec::new())
                .unwrap()
        };
        let server = Server::start().await;
        let mut client = server.client().await;
        assert_eq!(client.send(test()).await.status, 204, "{method}");
        assert_eq!(client.send(file.octets(1)).await.status, 200);
        assert_eq!(client.send(test()).await.status, 200, "{method}");
    }
    // An empty POST with a content type is an empty chunk.
    let empty = File::new("empty", 0);
    assert_eq!(client.send(empty.octets(1)).await.body, "delivery 1");
}

#[tokio::test]
async fn other_requests_pass_untouched() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let post = |uri: &str| Request::post(uri).body(b"body".to_vec()).unwrap();
    for (request, answer) in [
        (post("/other"), "passed POST /other 4"),
        (post("/upload"), "passed POST /upload 4"),
        (post("/upload/x"), "passed POST /upload/x 4"),
        (
            Request::get("/upload?page=1").body(vec![]).unwrap(),
            "passed GET /upload?page=1 0",
        ),
        (
            Request::options("/upload?resumableChunkNumber=1")
                .body(vec![])
                .unwrap(),
            "passed OPTIONS /upload?resumableChunkNumber=1 0",
        ),
    ] {
        assert_eq!(client.send(request).await.body, answer);
    }
}

#[tokio::test]
async fn chunks_arrive_in_any_order_and_their_declared_number_is_ignored() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 55);
    for (number, claimed) in [(5, "1"), (2, "0"), (1, "9223372036854775808"), (4, "2")] {
        let mut fields = file.fields(number);
        fields.retain(|(name, _)| name != "resumableTotalChunks");
        fields.push(("resumableTotalChunks".into(), claimed.into()));
        let form = form(&fields, FilePart::named("a.txt"), file.chunk(number));
        let answer = client.send(multipart(&uri(&fields), form)).await;
        assert_eq!(answer.json()["state"], "receiving");
    }
    assert!(server.deliveries().is_empty());
    assert_eq!(client.send(file.multipart(3)).await.body, "delivery 1");
    assert!(server.deliveries()[0].content == file.content);
}

#[tokio::test]
async fn a_changed_chunk_size_keeps_the_stored_bytes() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 100);
    for number in [1, 2, 5] {
        client.send(file.multipart(number)).await;
    }
    let file = File {
        chunk_size: 16,
        force_chunk_size: true,
        ..file
    };
    for number in 1..=file.chunks() {
        let expected = if number == 1 { 200 } else { 204 };
        assert_eq!(
            client.send(file.probe(number)).await.status,
            expected,
            "chunk {number}"
        );
        assert_eq!(
            client.send(file.multipart(number)).await.status,
            200,
            "chunk {number}"
        );
    }
    let deliveries = server.deliveries();
    assert_eq!(deliveries.len(), 1);
    assert!(deliveries[0].content == file.content);
    assert_eq!(
        deliveries[0].upload.crc32(),
        Some(crc32fast::hash(&file.content))
    );
}

#[tokio::test]
async fn repeated_chunks_are_stored_once_and_answered_like_the_first() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 25);
    for _ in 0..3 {
        assert_eq!(client.send(file.multipart(1)).await.json()["received"], 10);
    }
    for _ in 0..3 {
        assert_eq!(client.send(file.multipart(2)).await.body, "delivery 1");
    }
    // Late duplicates and probes of any chunk get the recorded answer.
    assert_eq!(client.send(file.octets(1)).await.body, "delivery 1");
    assert_eq!(client.send(file.probe(1)).await.body, "delivery 1");
    assert_eq!(server.deliveries().len(), 1);
}

#[tokio::test]
async fn the_same_file_is_a_new_upload_after_its_record_expires() {
    let delivery = Delivery::default().with_record_lifetime(std::time::Duration::ZERO);
    let server = Server::with(|layer| layer.with_delivery(delivery)).await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 5);
    assert_eq!(client.send(file.multipart(1)).await.body, "delivery 1");
    assert_eq!(client.send(file.probe(1)).await.status, 204);
    assert_eq!(client.send(file.multipart(1)).await.body, "delivery 2");
    let deliveries = server.deliveries();
    assert_ne!(deliveries[0].upload.id(), deliveries[1].upload.id());
    assert_eq!(
        deliveries[0].upload.upload_id(),
        deliveries[1].upload.upload_id()
    );
    assert_ne!(deliveries[0].upload.path(), deliveries[1].upload.path());
}

#[tokio::test]
async fn renamed_and_dropped_fields() {
    let dialect = Dialect::resumable_js()
        .with_namespace("up[x]")
        .with_identifier("id")
        .with_chunk_number("n", 1)
        .with_file_field("blob");
    let server = Server::with(|layer| layer.with_protocol(dialect)).await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 25);
    for number in 1..=2 {
        let fields: Vec<_> = [
            ("up[x]n", number.to_string()),
            ("up[x]resumableChunkSize", "10".into()),
            ("up[x]resumableTotalSize", "25".into()),
            ("up[x]id", "some id".into()),
            ("up[x]tag", "kept".into()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        // The client encodes the brackets in uploads, but not in probes.
        let encoded = uri(&fields);
        let plain = encoded.replace("%5B", "[").replace("%5D", "]");
        assert_eq!(client.get(&plain).await.status, 204);
        let part = FilePart::Named {
            field: "up[x]blob",
            file_name: "a.txt",
        };
        let answer = client
            .send(multipart(&encoded, form(&fields, part, file.chunk(number))))
            .await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let deliveries = server.deliveries();
    assert!(deliveries[0].content == file.content);
    assert_eq!(
        deliveries[0].upload.fields(),
        [("up[x]tag".into(), "kept".into())]
    );
    assert_eq!(deliveries[0].upload.safe_file_name(), "file");
}

#[tokio::test]
async fn files_that_share_an_identifier_are_separate() {
    let server = Server::start().await;
    let a = File {
        identifier: "25-xtxt".into(),
        relative_path: "a/x.txt".into(),
        ..File::new("x.txt", 25)
    };
    let b = File {
        relative_path: "b/x.txt".into(),
        content: a.content.iter().rev().copied().collect(),
        ..a.clone()
    };
    let mut client = server.client().await;
    for number in 1..=2 {
        for file in [&a, &b] {
            assert_eq!(client.send(file.multipart(number)).await.status, 200);
        }
    }
    let deliveries = server.deliveries();
    assert_eq!(deliveries.len(), 2);
    assert!(deliveries[0].content == a.content && deliveries[1].content == b.content);
}

#[tokio::test]
async fn the_identifier_alone_can_name_an_upload() {
    let server = Server::with(|layer| layer.with_identity(IdentityRule::Identifier)).await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 25);
    client.send(file.multipart(1)).await;
    let renamed = File {
        name: "b.txt".into(),
        relative_path: "b.txt".into(),
        ..file.clone()
    };
    assert_eq!(client.send(renamed.probe(1)).await.status, 200);
    assert_eq!(client.send(renamed.multipart(2)).await.body, "delivery 1");
}

#[tokio::test]
async fn scopes_are_separate() {
    let server = Server::with(|layer| {
        layer.with_scope(|parts| match parts.headers.get("x-user") {
            Some(user) => Ok(user.to_str().unwrap().into()),
            None => Err(Refusal::new(StatusCode::UNAUTHORIZED, "sign in first")),
        })
    })
    .await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 25);
    let by = |user: &str, mut request: Request<Vec<u8>>| {
        request
            .headers_mut()
            .insert("x-user", user.parse().unwrap());
        request
    };
    assert_eq!(
        client.send(by("alice", file.multipart(1))).await.status,
        200
    );
    assert_eq!(client.send(by("alice", file.probe(1))).await.status, 200);
    assert_eq!(client.send(by("bob", file.probe(1))).await.status, 204);
    assert_eq!(
        client.send(by("bob", file.multipart(2))).await.json()["received"],
        15
    );
    assert_eq!(client.send(by("bob", cancel(&file))).await.status, 204);
    assert_eq!(client.send(by("alice", file.probe(1))).await.status, 200);

    let refused = client.send(file.multipart(2)).await;
    assert_eq!(refused.status, 400);
    assert_eq!(refused.headers["x-resumable-status"], "401");
    assert!(server.deliveries().is_empty());
}

fn cancel(file: &File) -> Request<Vec<u8>> {
    Request::delete(file.uri(1)).body(Vec::new()).unwrap()
}

#[tokio::test]
async fn the_application_can_change_error_answers() {
    let server = Server::with(|layer| {
        layer.with_error_response(|error, mut response| {
            *response.status_mut() = http::StatusCode::UNSUPPORTED_MEDIA_TYPE;
            *response.body_mut() = format!("own: {}", error.kind()).into();
            response
        })
    })
    .await;
    let bad = Request::get("/upload?resumableChunkNumber=1")
        .body(Vec::new())
        .unwrap();
    let answer = server.client().await.send(bad).await;
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (415, "own: missing_field")
    );
}

#[tokio::test]
async fn a_cancelled_upload_is_removed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let file = File::new("a.txt", 25);
    client.send(file.multipart(1)).await;
    assert!(!server.files().is_empty());
    assert_eq!(client.send(cancel(&file)).await.status, 204);
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());
    assert_eq!(client.send(file.probe(1)).await.status, 204);
    // The file can be sent again.
    client.send(file.multipart(2)).await;
    assert_eq!(client.send(file.multipart(1)).await.body, "delivery 1");
}

#[tokio::test]
async fn a_path_and_a_matcher() {
    let path = Server::with(|layer| layer.with_path("/a")).await;
    let matcher =
        Server::with(|layer| layer.with_matcher(|parts| parts.uri.path().len() == 2)).await;
    for (server, b) in [(path, 200), (matcher, 204)] {
        let mut client = server.client().await;
        for (path, status) in [("/a", 204), ("/b", b), ("/upload", 200)] {
            let uri = File::new("a", 5).uri(1).replace("/upload", path);
            assert_eq!(client.get(&uri).await.status, status, "{path}");
        }
    }
}
