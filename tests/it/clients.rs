//! What the other chunk clients send and expect, beyond the recordings that `captures.rs` replays.

use std::time::Duration;

use http::{Request, StatusCode};
use serde_json::json;
use tower_resumable::{Dialect, Limits, Refusal, ResumableLayer, Scope};

use crate::common::{self, Answer, BOUNDARY, FilePart, Server, form, multipart, uri};

type Fields = Vec<(String, String)>;

fn owned(fields: &[(&str, &str)]) -> Fields {
    let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
    fields.iter().map(own).collect()
}

fn file_of(fields: &Fields, part: &str, name: &str, content: &str) -> Request<Vec<u8>> {
    let part = FilePart::Named {
        field: part,
        file_name: name,
    };
    multipart("/upload", form(fields, part, content.as_bytes()))
}

async fn send(server: &Server, request: Request<Vec<u8>>) -> Answer {
    server.client().await.send(request).await
}

/// Only the chunk clients that are enabled by default, without whole files.
fn without_whole_files(layer: ResumableLayer) -> ResumableLayer {
    layer.with_protocols([
        Dialect::resumable_js().into(),
        Dialect::flow_js().into(),
        Dialect::dropzone().into(),
        Dialect::fine_uploader().into(),
    ])
}

/// The names and contents of the delivered files.
fn delivered(server: &Server) -> Vec<(String, String)> {
    let deliveries = server.deliveries();
    let each = deliveries.iter().map(|delivery| {
        let content = String::from_utf8(delivery.content.clone()).unwrap();
        (
            delivery.upload.file_name().unwrap_or_default().to_owned(),
            content,
        )
    });
    each.collect()
}

fn pair(name: &str, content: &str) -> (String, String) {
    (name.into(), content.into())
}

fn flow(number: u64, len: u64, total: u64) -> Fields {
    owned(&[
        ("flowChunkNumber", &number.to_string()),
        ("flowChunkSize", "5"),
        ("flowCurrentChunkSize", &len.to_string()),
        ("flowTotalSize", &total.to_string()),
        ("flowIdentifier", "id"),
        ("flowFilename", "a.txt"),
        ("flowRelativePath", "box/a.txt"),
        ("flowTotalChunks", "2"),
    ])
}

#[tokio::test]
async fn flow_js_probes_with_a_form_or_not_at_all() {
    let server = Server::start().await;
    let test = |number| multipart("/upload", form(&flow(number, 5, 10), FilePart::None, b""));
    let head = Request::head("/upload").body(Vec::new()).unwrap();
    assert_eq!(send(&server, head).await.status, 204);
    assert_eq!(send(&server, test(1)).await.status, 204);
    let chunk = |number, content| file_of(&flow(number, 5, 10), "file", "a.txt", content);
    // A field with an empty name does not stand for a field that this client does not have.
    let mut nameless = flow(1, 5, 10);
    nameless.push((String::new(), "1".into()));
    let octets = Request::post(uri(&nameless)).header("content-type", "text/plain");
    let first = octets.body(b"hello".to_vec()).unwrap();
    assert_eq!(send(&server, first).await.json()["received"], 5);
    assert_eq!(send(&server, test(1)).await.status, 200);
    assert_eq!(send(&server, test(2)).await.status, 204);
    assert_eq!(send(&server, chunk(2, "world")).await.body, "delivery 1");
    assert_eq!(send(&server, test(2)).await.body, "delivery 1");
    let deliveries = server.deliveries();
    assert_eq!(deliveries[0].upload.relative_path(), Some("box/a.txt"));
    assert_eq!(
        deliveries[0].upload.content_type(),
        Some("application/octet-stream")
    );
    assert_eq!(delivered(&server), [pair("a.txt", "helloworld")]);
}

/// The statuses that are final in each dialect, for refusals of the layer and of the inner service.
#[tokio::test]
async fn refusals_are_final() {
    let refusing = |dialect: Option<Dialect>| {
        Server::answering(
            move |layer| match dialect {
                Some(dialect) => layer.with_protocol(dialect),
                None => layer,
            },
            |_| (StatusCode::CONFLICT, "no".into()),
        )
    };
    let server = refusing(None).await;
    for (fields, part, status) in [
        (flow(1, 5, 5), "file", 415),
        (flow(3, 5, 5), "file", 415),
        (dropzone(0, 5), "file", 400),
        (dropzone(7, 5), "file", 400),
        (fine(0, 5, 5), "qqfile", 400),
        (fine(7, 5, 5), "qqfile", 400),
    ] {
        let answer = send(&server, file_of(&fields, part, "a.txt", "hello")).await;
        assert_eq!(answer.status, status, "{fields:?}");
    }
    let server = refusing(Some(Dialect::simple_uploader())).await;
    let answer = send(&server, file_of(&simple(1, 5), "file", "a.txt", "hello")).await;
    assert_eq!(answer.status, 415);
    let own = Dialect::new("own")
        .with_identifier("id")
        .with_total_size("of")
        .with_offset("at")
        .with_refusal(StatusCode::GONE);
    let server = refusing(Some(own)).await;
    let fields = owned(&[("id", "1"), ("of", "5"), ("at", "0")]);
    let answer = send(&server, file_of(&fields, "file", "a.txt", "hello")).await;
    assert_eq!(answer.status, 410);
    assert_eq!(answer.headers["x-resumable-status"], "409");
}

fn dropzone(offset: u64, total: u64) -> Fields {
    owned(&[
        ("dzuuid", "42bb24ed"),
        ("dzchunkindex", &(offset / 5).to_string()),
        ("dztotalfilesize", &total.to_string()),
        ("dzchunksize", "5"),
        ("dztotalchunkcount", &total.div_ceil(5).to_string()),
        ("dzchunkbyteoffset", &offset.to_string()),
    ])
}

#[tokio::test]
async fn dropzone_names_the_file_in_its_part_and_sends_a_short_last_chunk() {
    let server = Server::start().await;
    let chunk = |offset, content| file_of(&dropzone(offset, 12), "file", "a b.txt", content);
    assert_eq!(send(&server, chunk(10, "!")).await.status, 400);
    assert_eq!(send(&server, chunk(5, "world!!")).await.status, 400);
    assert_eq!(send(&server, chunk(10, "!!")).await.status, 200);
    assert_eq!(send(&server, chunk(0, "hello")).await.status, 200);
    let status = format!("{}&dzstatus", uri(&dropzone(0, 12)));
    let status = server.client().await.get(&status).await.json();
    assert_eq!(status["ranges"], json!([[0, 5], [10, 12]]));
    assert_eq!(status["chunks"], json!([0, 2]));
    assert_eq!(send(&server, chunk(5, "world")).await.body, "delivery 1");
    assert_eq!(delivered(&server), [pair("a b.txt", "helloworld!!")]);
}

#[tokio::test]
async fn a_form_without_a_clients_fields_is_a_whole_file() {
    let server = Server::start().await;
    let fields = owned(&[("comment", "hi"), ("tz_offset", "60")]);
    for (nth, content) in ["", "hello", "hello"].into_iter().enumerate() {
        let answer = send(&server, file_of(&fields, "file", "é \"1\".txt", content)).await;
        // Each request is an upload of its own, even with equal content.
        assert_eq!(
            (answer.status, answer.body),
            (200, format!("delivery {}", nth + 1))
        );
    }
    let expected = ["", "hello", "hello"].map(|content| pair("é \"1\".txt", content));
    assert_eq!(delivered(&server), expected);
    let last = server.deliveries().pop().unwrap().upload;
    assert_eq!(last.fields(), fields);
    assert_eq!(last.content_type(), Some("application/octet-stream"));
    assert_eq!(last.identifier().len(), 32);
    // A request that may carry a piece of a file is not accepted as a whole file.
    for field in ["up_ChunkNumber", "chunks", "fileChunkIndex", "offset"] {
        let fields = owned(&[(field, "1")]);
        let answer = send(&server, file_of(&fields, "file", "a.txt", "hello")).await;
        assert_eq!(answer.json()["code"], "missing_field", "{field}");
        assert_eq!(answer.status, 400);
    }
    for header in ["uploader-chunk-number", "upload-complete"] {
        let piece = file_of(&fields, "file", "a.txt", "hello");
        let answer = send(&server, with_headers(piece, &[(header, "1")])).await;
        assert_eq!(answer.status, 400, "{header}");
    }
    let mut ranged = file_of(&fields, "file", "a.txt", "hello");
    let range = "bytes 0-4/10".parse().unwrap();
    ranged.headers_mut().insert("content-range", range);
    assert_eq!(send(&server, ranged).await.status, 400);
    // Neither is a form that ends early, or that has two files.
    let mut broken = file_of(&fields, "file", "a.txt", "hello");
    let end = broken.body().len() - BOUNDARY.len() - 8;
    broken.body_mut().truncate(end);
    assert_eq!(send(&server, broken).await.status, 400);
    let part = |name| common::file_part(FilePart::named(name), b"x");
    let two = form(&fields, FilePart::named("1"), b"1");
    let two = [part("2"), two].concat();
    assert_eq!(send(&server, multipart("/upload", two)).await.status, 400);
    assert_eq!(server.deliveries().len(), 3);
    assert_eq!(
        server
            .files()
            .iter()
            .filter(|f| f.ends_with("a.txt"))
            .count(),
        0
    );

    let server = Server::with(without_whole_files).await;
    let answer = send(&server, file_of(&fields, "file", "a.txt", "hello")).await;
    assert_eq!((answer.status, server.deliveries().len()), (400, 0));
    let server =
        Server::with(|layer| layer.with_limits(Limits::default().with_chunk_size(4))).await;
    let answer = send(&server, file_of(&fields, "file", "a.txt", "hello")).await;
    assert_eq!((answer.status, server.deliveries().len()), (413, 0));
    assert_eq!(answer.json()["code"], "chunk_too_large");
}

fn fine(offset: u64, len: u64, total: u64) -> Fields {
    owned(&[
        ("qqpartindex", &(offset / 5).to_string()),
        ("qqpartbyteoffset", &offset.to_string()),
        ("qqchunksize", &len.to_string()),
        ("qqtotalparts", "2"),
        ("qqtotalfilesize", &total.to_string()),
        ("qqfilename", "a.txt"),
        ("qquuid", "ad8f3618"),
    ])
}

#[tokio::test]
async fn fine_uploader_is_told_of_success() {
    for (answer, told) in [
        ("thanks", json!({ "success": true, "answer": "thanks" })),
        ("", json!({ "success": true, "answer": "" })),
        ("[1]", json!({ "success": true, "answer": "[1]" })),
        (r#"{"id":7}"#, json!({ "success": true, "id": 7 })),
        (r#"{"success":false}"#, json!({ "success": true })),
    ] {
        let server =
            Server::answering(|layer| layer, move |_| (StatusCode::CREATED, answer.into()));
        let server = server.await;
        let chunk = |offset, content| file_of(&fine(offset, 5, 10), "qqfile", "blob", content);
        let first = send(&server, chunk(0, "hello")).await;
        assert_eq!(first.json()["success"], true);
        // The second answer is the recorded one.
        for _ in 0..2 {
            let last = send(&server, chunk(5, "world")).await;
            assert_eq!((last.status, last.json()), (201, told.clone()));
            assert_eq!(last.headers["content-type"], "application/json");
        }
        assert_eq!(delivered(&server), [pair("a.txt", "helloworld")]);
    }
}

#[tokio::test]
async fn fine_uploader_is_told_of_failure() {
    let server = Server::answering(
        |layer| layer,
        |n| match n {
            1 => (StatusCode::INTERNAL_SERVER_ERROR, "later".into()),
            _ => (StatusCode::UNPROCESSABLE_ENTITY, "never".into()),
        },
    );
    let server = server.await;
    let chunk = |offset, len| file_of(&fine(offset, len, 5), "qqfile", "blob", "hello");
    for (request, status, prevent_retry) in [
        (chunk(0, 4), 400, true),
        (chunk(9, 5), 400, true),
        (chunk(0, 5), 503, false),
        (chunk(0, 5), 400, true),
    ] {
        let answer = send(&server, request).await;
        assert_eq!(answer.status, status, "{answer:?}");
        let json = answer.json();
        assert_eq!(json["success"], false);
        assert_eq!(json["preventRetry"], prevent_retry);
    }
}

#[tokio::test]
async fn fine_uploader_checks_success_and_is_told_to_reset() {
    let server = Server::start().await;
    let end = |total: &str| {
        let form =
            format!("qquuid=ad8f3618&qqfilename=a.txt&qqtotalfilesize={total}&qqtotalparts=2&x=1");
        Request::post("/upload")
            .header(
                "content-type",
                "application/x-www-form-urlencoded; charset=UTF-8",
            )
            .body(form.into_bytes())
            .unwrap()
    };
    let reset = json!({ "success": false, "reset": true });
    let chunk = |offset, content, resumes: bool| {
        let mut fields = fine(offset, 5, 10);
        fields.extend(resumes.then(|| ("qqresume".into(), "true".into())));
        file_of(&fields, "qqfile", "blob", content)
    };
    assert_eq!(send(&server, end("10")).await.json(), reset);
    // The upload was swept, and the client does not know it.
    assert_eq!(send(&server, chunk(5, "world", true)).await.json(), reset);
    assert_eq!(send(&server, chunk(0, "hello", false)).await.status, 200);
    assert_eq!(send(&server, end("10")).await.json(), reset);
    let told = json!({ "success": true, "answer": "delivery 1" });
    assert_eq!(send(&server, chunk(5, "world", true)).await.json(), told);
    assert_eq!(send(&server, end("10")).await.json(), told);
    assert_eq!(send(&server, end("x")).await.status, 400);
    assert_eq!(delivered(&server), [pair("a.txt", "helloworld")]);
    // Without this client, such a form belongs to the application.
    let server = Server::with(|layer| layer.with_protocols([Dialect::flow_js().into()])).await;
    assert_eq!(
        send(&server, end("10")).await.body,
        "passed POST /upload 70"
    );
}

#[tokio::test]
async fn fine_uploader_sends_whole_files_too() {
    let server = Server::start().await;
    let fields = owned(&[
        ("qquuid", "1"),
        ("qqfilename", "a.txt"),
        ("qqtotalfilesize", "5"),
    ]);
    let answer = send(&server, file_of(&fields, "qqfile", "a.txt", "hello")).await;
    assert_eq!(answer.json()["success"], true);
    let fields = owned(&[
        ("qquuid", "2"),
        ("qqfilename", "a.txt"),
        ("qqtotalfilesize", "5"),
    ]);
    let answer = send(&server, file_of(&fields, "qqfile", "a.txt", "hell")).await;
    assert_eq!(answer.json()["code"], "chunk_length");
    // As the body itself, without a declared size.
    let query = uri(&owned(&[
        ("qquuid", "3"),
        ("qqfilename", "b.txt"),
        ("qqfile", "b.txt"),
    ]));
    let octets = Request::post(query).header("content-type", "application/octet-stream");
    let answer = send(&server, octets.body(b"world".to_vec()).unwrap()).await;
    assert_eq!(answer.json()["success"], true);
    assert_eq!(
        delivered(&server),
        [pair("a.txt", "hello"), pair("b.txt", "world")]
    );
}

fn simple(number: u64, total: u64) -> Fields {
    owned(&[
        ("chunkNumber", &number.to_string()),
        ("chunkSize", "5"),
        ("currentChunkSize", "5"),
        ("totalSize", &total.to_string()),
        ("identifier", "md5"),
        ("filename", "a.txt"),
        ("relativePath", "a.txt"),
        ("totalChunks", &(total / 5).to_string()),
    ])
}

#[tokio::test]
async fn simple_uploader_probes_all_chunks_at_once() {
    let server = Server::with(|layer| {
        layer.with_protocol(Dialect::simple_uploader().with_list_tests("uploaded"))
    })
    .await;
    let stored = async || {
        let answer = server.client().await.get(&uri(&simple(1, 15))).await;
        assert_eq!(answer.status, 200);
        answer.json()["uploaded"].clone()
    };
    let chunk = |number, content| file_of(&simple(number, 15), "file", "a.txt", content);
    assert_eq!(stored().await, json!([]));
    assert_eq!(send(&server, chunk(3, "three")).await.status, 200);
    assert_eq!(send(&server, chunk(1, "one__")).await.status, 200);
    assert_eq!(stored().await, json!([1, 3]));
    assert_eq!(send(&server, chunk(2, "two__")).await.body, "delivery 1");
    assert_eq!(stored().await, json!([1, 2, 3]));
    assert_eq!(delivered(&server), [pair("a.txt", "one__two__three")]);
    // Another client of the same layer gets the usual answer.
    let test = uri(&flow(1, 5, 10));
    assert_eq!(server.client().await.get(&test).await.status, 204);
}

/// A request with fields of two clients comes from the client whose identifier it has.
#[tokio::test]
async fn an_applications_field_can_have_another_clients_name() {
    let server = Server::with(|layer| layer.with_protocol(Dialect::simple_uploader())).await;
    let mut fields = owned(&[("filename", "mine"), ("resumableType", "t")]);
    fields.extend(flow(1, 5, 5));
    let answer = send(&server, file_of(&fields, "file", "a.txt", "hello")).await;
    assert_eq!(answer.body, "delivery 1");
    let deliveries = server.deliveries();
    assert_eq!(deliveries[0].upload.field("filename"), Some("mine"));
    assert_eq!(deliveries[0].upload.field("resumableType"), Some("t"));
    assert_eq!(deliveries[0].upload.file_name(), Some("a.txt"));
}

/// A request whose fields are headers.
fn with_headers(
    mut request: Request<Vec<u8>>,
    headers: &[(&'static str, &str)],
) -> Request<Vec<u8>> {
    for (name, value) in headers {
        let value = http::HeaderValue::from_bytes(value.as_bytes()).unwrap();
        request.headers_mut().insert(*name, value);
    }
    request
}

#[tokio::test]
async fn blueimp_resumes_after_the_stored_bytes() {
    let server = Server::with(|layer| layer.with_protocol(Dialect::blueimp())).await;
    let name = ("content-disposition", "attachment; filename=\"a%20b.txt\"");
    let chunk = |range: &str, content: &str| {
        let file = file_of(&Vec::new(), "files[]", "a b.txt", content);
        with_headers(file, &[name, ("content-range", range)])
    };
    let range = |answer: &Answer| {
        answer
            .headers
            .get("range")
            .map(|range| range.to_str().unwrap().to_owned())
    };
    let second = send(&server, chunk("bytes 5-9/15", "world")).await;
    assert_eq!((second.status, range(&second)), (200, None));
    let first = send(&server, chunk("bytes 0-4/15", "hello")).await;
    assert_eq!(range(&first).as_deref(), Some("0-9"));
    let last = send(&server, chunk("bytes 10-14/15", "!!!!!")).await;
    assert_eq!(
        (last.body.as_str(), range(&last).as_deref()),
        ("delivery 1", Some("0-14"))
    );
    for wrong in [
        "bytes 0-4",
        "bytes 4-0/15",
        "bytes 0-3/15",
        "bytes 15-19/15",
        "bytes 0-4/99999999999999999999",
    ] {
        let answer = send(&server, chunk(wrong, "hello")).await;
        assert_eq!(answer.status, 400, "{wrong}: {answer:?}");
    }
    // Raw bodies, in pieces and whole, and a form that is not in pieces.
    let raw = |content: &str| {
        Request::post("/upload")
            .body(content.as_bytes().to_vec())
            .unwrap()
    };
    let name = ("content-disposition", "attachment; filename=\"raw.txt\"");
    for (range, content) in [("bytes 0-4/10", "hello"), ("bytes 5-9/10", "world")] {
        let answer = send(
            &server,
            with_headers(raw(content), &[name, ("content-range", range)]),
        )
        .await;
        assert_eq!(answer.status, 200);
    }
    let whole = ("content-disposition", "attachment; filename=\"whole.txt\"");
    assert_eq!(
        send(&server, with_headers(raw("hi"), &[whole])).await.body,
        "delivery 3"
    );
    let form = file_of(&Vec::new(), "files[]", "form.txt", "ho");
    assert_eq!(send(&server, form).await.body, "delivery 4");
    let expected = [
        ("a b.txt", "helloworld!!!!!"),
        ("raw.txt", "helloworld"),
        ("whole.txt", "hi"),
        ("form.txt", "ho"),
    ];
    assert_eq!(
        delivered(&server),
        expected.map(|(name, content)| pair(name, content))
    );
}

#[tokio::test]
async fn filepond_gets_an_identifier_and_the_offset() {
    let server = Server::with(|layer| {
        layer
            .with_protocol(Dialect::filepond())
            .with_limits(Limits::default().with_file_size(100))
    })
    .await;
    let create = |len: &str| {
        let form = form(&owned(&[("filepond", "{}")]), FilePart::None, b"");
        with_headers(multipart("/upload", form), &[("upload-length", len)])
    };
    assert_eq!(send(&server, create("101")).await.status, 400);
    assert_eq!(send(&server, create("x")).await.status, 400);
    let created = send(&server, create("10")).await;
    assert_eq!(created.status, 201);
    let url = format!("/upload?patch={}", created.body);
    let offset = async || {
        let answer = send(&server, Request::head(&url).body(Vec::new()).unwrap()).await;
        assert_eq!(answer.status, 200);
        answer.headers["upload-offset"].to_str().unwrap().to_owned()
    };
    let patch = |offset: &str, len: &str, content: &str| {
        let request = Request::patch(&url)
            .body(content.as_bytes().to_vec())
            .unwrap();
        let name = ("upload-name", "é \"1\".txt");
        let type_ = ("content-type", "application/offset+octet-stream");
        with_headers(
            request,
            &[
                name,
                type_,
                ("upload-length", len),
                ("upload-offset", offset),
            ],
        )
    };
    assert_eq!(offset().await, "0");
    assert_eq!(send(&server, patch("0", "10", "hello")).await.status, 200);
    assert_eq!(offset().await, "5");
    let status = server
        .client()
        .await
        .get(&format!("{url}&uploadStatus"))
        .await;
    assert_eq!(status.json()["ranges"], json!([[0, 5]]));
    assert_eq!(send(&server, patch("5", "11", "world")).await.status, 400);
    assert_eq!(send(&server, patch("5", "10", "world!")).await.status, 400);
    assert_eq!(send(&server, patch("11", "10", "")).await.status, 400);
    assert_eq!(offset().await, "5");
    assert_eq!(
        send(&server, patch("5", "10", "world")).await.body,
        "delivery 1"
    );
    // If the chunks divide the file evenly, an empty chunk follows.
    assert_eq!(
        send(&server, patch("10", "10", "")).await.body,
        "delivery 1"
    );
    assert_eq!(offset().await, "10");
    let upload = server.deliveries()[0].upload.clone();
    assert_eq!(upload.identifier(), created.body);
    // Small files are sent whole.
    let small = file_of(&owned(&[("filepond", "{}")]), "filepond", "small.txt", "hi");
    assert_eq!(send(&server, small).await.body, "delivery 2");
    let expected = [pair("é \"1\".txt", "helloworld"), pair("small.txt", "hi")];
    assert_eq!(delivered(&server), expected);
}

#[tokio::test]
async fn clients_that_send_no_chunk_size() {
    let server = Server::with(|layer| {
        layer
            .with_protocol(Dialect::web_uploader(5))
            .with_protocol(Dialect::huge_uploader(5))
    })
    .await;
    let web = |chunk: &str, content: &str| {
        let fields = owned(&[
            ("id", "WU_FILE_0"),
            ("name", "a.txt"),
            ("type", "text/plain"),
            ("lastModifiedDate", "Mon Nov 23 2026"),
            ("size", "12"),
            ("chunks", "3"),
            ("chunk", chunk),
        ]);
        file_of(&fields, "file", "a.txt", content)
    };
    assert_eq!(send(&server, web("2", "!!")).await.status, 200);
    // The chunk size of the client differs from the one of the layer.
    assert_eq!(
        send(&server, web("0", "hell")).await.json()["code"],
        "chunk_length"
    );
    assert_eq!(send(&server, web("0", "hello")).await.status, 200);
    assert_eq!(send(&server, web("1", "world")).await.body, "delivery 1");
    let huge = |chunk: &str, content: &str| {
        let file = file_of(&Vec::new(), "file", "blob", content);
        let total = ("uploader-chunks-total", "2");
        let size = ("uploader-file-size", "10");
        let name = ("uploader-file-name", "b%20%E8%AA%9E+.txt");
        let id = ("uploader-file-id", "1795522325338");
        with_headers(
            file,
            &[total, size, name, id, ("uploader-chunk-number", chunk)],
        )
    };
    assert_eq!(send(&server, huge("1", "WORLD")).await.status, 200);
    assert_eq!(send(&server, huge("0", "HELLO")).await.body, "delivery 2");
    // Without its size, the end of a file is unknown.
    let mut sizeless = huge("0", "hello");
    sizeless.headers_mut().remove("uploader-file-size");
    let answer = send(&server, sizeless).await;
    assert!(
        answer
            .body
            .contains("`header:uploader-file-size` is missing"),
        "{answer:?}"
    );
    let expected = [
        pair("a.txt", "helloworld!!"),
        pair("b 語+.txt", "HELLOWORLD"),
    ];
    assert_eq!(delivered(&server), expected);
}

#[tokio::test]
async fn plupload_sends_the_offset_of_each_chunk() {
    let server = Server::with(|layer| layer.with_protocol(Dialect::plupload())).await;
    let chunk = |offset: &str, content: &str| {
        let fields = owned(&[("name", "p1.txt"), ("offset", offset), ("total", "8")]);
        file_of(&fields, "file", "blob", content)
    };
    assert_eq!(send(&server, chunk("0", "hello")).await.status, 200);
    assert_eq!(send(&server, chunk("5", "you!")).await.status, 400);
    assert_eq!(send(&server, chunk("5", "you")).await.body, "delivery 1");
    // Chunk numbers, which a setting of the client enables, are not supported.
    let fields = owned(&[("name", "p2.txt"), ("chunk", "0"), ("chunks", "3")]);
    assert_eq!(
        send(&server, file_of(&fields, "file", "blob", "hello"))
            .await
            .status,
        400
    );
    // Without chunks.
    let fields = owned(&[("name", "p3.txt")]);
    assert_eq!(
        send(&server, file_of(&fields, "file", "real.txt", "hi"))
            .await
            .body,
        "delivery 2"
    );
    assert_eq!(
        delivered(&server),
        [pair("p1.txt", "helloyou"), pair("p3.txt", "hi")]
    );
}

#[tokio::test]
async fn bootstrap_fileinput_gets_the_index_of_the_chunk() {
    let server = Server::with(|layer| layer.with_protocol(Dialect::bootstrap_fileinput())).await;
    let about = owned(&[
        ("fileId", "12_a.txt"),
        ("fileName", "a.txt"),
        ("fileSize", "12"),
        ("fileRelativePath", ""),
        ("chunkSize", "5"),
        ("chunkCount", "3"),
    ]);
    let chunk = |index: usize, content: &str| {
        let mut fields = about.clone();
        fields.extend(owned(&[
            ("chunkIndex", &index.to_string()),
            ("chunkSizeStart", &(5 * index).to_string()),
            ("retryCount", "0"),
        ]));
        file_of(&fields, "fileBlob", "a.txt", content)
    };
    let test = || multipart("/upload", form(&about, FilePart::None, b""));
    assert_eq!(
        send(&server, test()).await.json()["chunksUploaded"],
        json!([])
    );
    assert_eq!(send(&server, chunk(2, "!!")).await.json()["chunkIndex"], 2);
    assert_eq!(
        send(&server, chunk(0, "hello")).await.json()["chunkIndex"],
        0
    );
    assert_eq!(
        send(&server, test()).await.json()["chunksUploaded"],
        json!([0, 2])
    );
    let last = send(&server, chunk(1, "world")).await;
    assert_eq!(
        last.json(),
        json!({ "chunkIndex": 1, "answer": "delivery 1" })
    );
    assert_eq!(
        send(&server, test()).await.json()["chunksUploaded"],
        json!([0, 1, 2])
    );
    assert_eq!(delivered(&server), [pair("a.txt", "helloworld!!")]);
}

#[tokio::test]
async fn a_raw_body_is_a_whole_file() {
    let server = Server::start().await;
    let raw = |query: &str, content: &str, headers: &[(&'static str, &str)]| {
        let request = Request::post(format!("/upload{query}"));
        let request = request.body(content.as_bytes().to_vec()).unwrap();
        let octets = [("content-type", "application/octet-stream")];
        with_headers(request, &[&octets, headers].concat())
    };
    let name = ("content-disposition", "attachment; filename=\"a%20b.txt\"");
    assert_eq!(
        send(&server, raw("?x=1", "hello", &[name])).await.body,
        "delivery 1"
    );
    assert_eq!(send(&server, raw("", "", &[])).await.body, "delivery 2");
    assert_eq!(server.deliveries()[0].upload.field("x"), Some("1"));
    assert_eq!(delivered(&server), [pair("a b.txt", "hello"), pair("", "")]);
    // Requests that may carry a piece of a file, or something else, belong to the application.
    for (query, headers) in [
        ("", &[("content-range", "bytes 0-4/10")][..]),
        ("?part=1", &[]),
        ("", &[("upload-offset", "5")]),
        ("?offset=5", &[]),
        (&format!("?x={}", "y".repeat(20 << 10)), &[]),
        ("", &[("content-type", "application/json")]),
        ("?chunk=1", &[]),
    ] {
        let answer = send(&server, raw(query, "hello", headers)).await;
        assert_eq!(answer.body, format!("passed POST /upload{query} 5"));
    }
    let server = Server::with(without_whole_files).await;
    assert_eq!(
        send(&server, raw("", "hello", &[])).await.body,
        "passed POST /upload 5"
    );
}

/// The client of a whole file can be any HTTP client.
#[tokio::test]
async fn whole_files_get_the_answers_of_the_service_unchanged() {
    let raw = || {
        let request = Request::post("/upload").header("content-type", "application/octet-stream");
        request.body(b"hello".to_vec()).unwrap()
    };
    let form = || file_of(&Vec::new(), "file", "a.txt", "hello");
    for status in [200, 201, 202, 303, 401, 409, 422] {
        let status = StatusCode::from_u16(status).unwrap();
        let server = Server::answering(|layer| layer, move |_| (status, "own words".into())).await;
        for request in [raw(), form()] {
            let answer = send(&server, request).await;
            assert_eq!(
                (answer.status, &*answer.body),
                (status.as_u16(), "own words")
            );
            assert!(!answer.headers.contains_key("x-resumable-status"));
        }
    }
    // A retryable failure of the inner service.
    let server = Server::answering(
        |layer| layer.with_hold_back(Duration::ZERO),
        |_| (StatusCode::BAD_GATEWAY, "later".into()),
    );
    let server = server.await;
    for request in [raw(), form()] {
        let answer = send(&server, request).await;
        assert_eq!(answer.status, 503);
        assert_eq!(answer.json()["code"], "delivery_failed");
    }
    // Refusals of hooks.
    for status in [401, 403, 415, 429, 507] {
        let status = StatusCode::from_u16(status).unwrap();
        let server = Server::with(|layer| {
            layer
                .with_hold_back(Duration::ZERO)
                .with_admission(move |_| async move { Err(Refusal::new(status, "no")) })
        });
        let server = server.await;
        for request in [raw(), form()] {
            let answer = send(&server, request).await;
            assert_eq!(answer.status, status.as_u16());
            assert_eq!(answer.json()["code"], "refused");
        }
    }
    // Limits.
    for limits in [
        Limits::default().with_chunk_size(4),
        Limits::default().with_file_size(4),
    ] {
        let server = Server::with(|layer| layer.with_limits(limits)).await;
        for request in [raw(), form()] {
            assert_eq!(send(&server, request).await.status, 413);
        }
    }
}

#[tokio::test]
async fn unfinished_uploads_are_listed_for_their_owner() {
    let server = Server::with(|layer| {
        layer.with_list_parameter("unfinished").with_scope(|parts| {
            let user = parts
                .headers
                .get("user")
                .and_then(|user| user.to_str().ok());
            let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "sign in first");
            user.map(Scope::from).ok_or(refusal)
        })
    })
    .await;
    let list = async |user: &'static str| {
        let request = Request::get("/upload?x=1&unfinished")
            .body(Vec::new())
            .unwrap();
        let answer = send(&server, with_headers(request, &[("user", user)])).await;
        assert_eq!(answer.status, 200);
        answer.json()["uploads"].clone()
    };
    let chunk = |user: &'static str, number: u64, content: &str| {
        let file = file_of(&flow(number, 5, 10), "file", "a.txt", content);
        with_headers(file, &[("user", user)])
    };
    assert_eq!(list("ann").await, json!([]));
    assert_eq!(send(&server, chunk("ann", 2, "world")).await.status, 200);
    let listed = json!([{
        "identifier": "id",
        "file_name": "a.txt",
        "relative_path": "box/a.txt",
        "content_type": "application/octet-stream",
        "state": "receiving",
        "received": 5,
        "total": 10,
    }]);
    assert_eq!(list("ann").await, listed);
    assert_eq!(list("bob").await, json!([]));
    let unknown = server.client().await.get("/upload?unfinished").await;
    assert_eq!(unknown.json()["code"], "refused");
    assert_eq!(
        send(&server, chunk("ann", 1, "hello")).await.body,
        "delivery 1"
    );
    assert_eq!(list("ann").await, json!([]));
    // The list is available by `GET` only.
    let post = Request::post("/upload?unfinished")
        .body(Vec::new())
        .unwrap();
    assert_eq!(
        send(&server, post).await.body,
        "passed POST /upload?unfinished 0"
    );
}

/// A parameter of the application can be named like that of an upload with a URL, and be an MD5.
#[tokio::test]
async fn an_application_can_have_a_parameter_that_looks_like_a_token() {
    let server = Server::start().await;
    for (nth, id) in ["0", "9", "c"].into_iter().enumerate() {
        let query = format!("/upload?upload={}", id.repeat(32));
        let fields = flow(1, 5, 5);
        let chunk = form(&fields, FilePart::named("a.txt"), b"12345");
        // The record of the chunk before is still there.
        let chunk = String::from_utf8(chunk).unwrap();
        let chunk = chunk.replace("a.txt", &format!("{nth}.txt")).into_bytes();
        let whole = form(&[], FilePart::named("b.txt"), b"whole");
        let raw = |request: http::request::Builder| {
            let request = request.header("content-type", "application/octet-stream");
            request.body(b"raw".to_vec()).unwrap()
        };
        let probe = format!("{query}&{}", &uri(&flow(1, 5, 6))["/upload?".len()..]);
        for (request, status) in [
            (multipart(&query, chunk), 200),
            (multipart(&query, whole), 200),
            (raw(Request::post(&query)), 200),
            (raw(Request::put(&query)), 200),
            (
                raw(Request::post(&query).header("upload-complete", "?1")),
                405,
            ),
            (Request::get(&probe).body(Vec::new()).unwrap(), 204),
            (Request::head(&probe).body(Vec::new()).unwrap(), 204),
            (Request::delete(&probe).body(Vec::new()).unwrap(), 204),
        ] {
            let (method, path) = (request.method().clone(), request.uri().clone());
            let answer = send(&server, request).await;
            assert_eq!(answer.status, status, "{method} {path}: {answer:?}");
        }
        assert_eq!(server.deliveries().len(), 4 * (nth + 1));
    }
}
