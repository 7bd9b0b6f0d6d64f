//! What makes two requests belong to the same upload: the path, the fields that are set, and the
//! length.

use std::convert::Infallible;

use axum::{Router, extract::Path, routing::post};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{
    CompletedUpload, Dialect, Error, ErrorKind, Field, IdentityRule, MemoryStore, ResumableLayer,
};

type Body = Full<Bytes>;

const CONTENT: &[u8] = b"01234567";

/// Answers with the path and the length of the file.
async fn inner(request: Request<Body>) -> Result<Response<Body>, Infallible> {
    let (path, upload) = (
        request.uri().path(),
        request.extensions().get::<CompletedUpload>(),
    );
    let answer = match upload {
        Some(upload) => {
            let content = upload.content().collect().await.unwrap().to_bytes();
            format!("{path} got {}", String::from_utf8_lossy(&content))
        }
        None => format!("{path} passed"),
    };
    Ok(Response::new(answer.into()))
}

struct Answer {
    status: u16,
    body: String,
    kind: Option<ErrorKind>,
    offset: Option<String>,
}

async fn send(layer: &ResumableLayer, request: Request<Body>) -> Answer {
    let service = layer.layer(service_fn(inner));
    let response = service.oneshot(request).await.unwrap();
    let kind = response.extensions().get().map(Error::kind);
    let offset = response.headers().get("upload-offset");
    let offset = offset.map(|offset| offset.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    Answer {
        status,
        body: String::from_utf8(body.to_vec()).unwrap(),
        kind,
        offset,
    }
}

fn layer() -> ResumableLayer {
    ResumableLayer::new(MemoryStore::default())
        .with_matcher(|parts| parts.uri.path().ends_with("/upload"))
        .with_list_parameter("unfinished")
}

/// A client that sends a file of eight bytes in two chunks, by its fields of chunk `n`, from 0.
struct Client {
    dialect: Dialect,
    fields: fn(n: usize) -> Vec<(&'static str, String)>,
}

impl Client {
    fn request(&self, method: &str, path: &str, n: usize, body: &'static [u8]) -> Request<Body> {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let mut request = Request::builder().method(method);
        for (name, value) in (self.fields)(n) {
            match name.strip_prefix("header:") {
                Some(name) => request = request.header(name, value),
                None => {
                    query.append_pair(name, &value);
                }
            }
        }
        let octets = !body.is_empty();
        if octets {
            request = request.header("content-type", "application/octet-stream");
        }
        let separator = if path.contains('?') { '&' } else { '?' };
        let uri = format!("{path}{separator}{}", query.finish());
        request.uri(uri).body(Full::from(body)).unwrap()
    }

    fn chunk(&self, path: &str, n: usize) -> Request<Body> {
        let is_patch = self.dialect.name() == "FilePond";
        let method = if is_patch { "PATCH" } else { "POST" };
        self.request(method, path, n, &CONTENT[4 * n..4 * n + 4])
    }

    fn status(&self, path: &str) -> Request<Body> {
        let field = match self.dialect.name() {
            "Resumable.js" => "resumableStatus",
            "flow.js" => "flowStatus",
            "Dropzone" => "dzstatus",
            "Fine Uploader" => "qqstatus",
            _ => "uploadStatus",
        };
        let separator = if path.contains('?') { '&' } else { '?' };
        self.request("GET", &format!("{path}{separator}{field}=1"), 0, b"")
    }
}

fn text(number: usize) -> String {
    number.to_string()
}

/// The rest of the name is made by the layer.
const MADE: &str = "0123456789abcdef0123456789abcdef-8";

fn clients() -> Vec<Client> {
    let client = |dialect, fields| Client { dialect, fields };
    vec![
        client(Dialect::resumable_js(), |n| {
            vec![
                ("resumableIdentifier", "8-a".into()),
                ("resumableTotalSize", text(8)),
                ("resumableChunkSize", text(4)),
                ("resumableCurrentChunkSize", text(4)),
                ("resumableChunkNumber", text(n + 1)),
                ("resumableFilename", "a".into()),
            ]
        }),
        client(Dialect::flow_js(), |n| {
            vec![
                ("flowIdentifier", "8-a".into()),
                ("flowTotalSize", text(8)),
                ("flowChunkSize", text(4)),
                ("flowCurrentChunkSize", text(4)),
                ("flowChunkNumber", text(n + 1)),
                ("flowFilename", "a".into()),
            ]
        }),
        client(Dialect::simple_uploader(), |n| {
            vec![
                ("identifier", "8-a".into()),
                ("totalSize", text(8)),
                ("chunkSize", text(4)),
                ("currentChunkSize", text(4)),
                ("chunkNumber", text(n + 1)),
                ("filename", "a".into()),
            ]
        }),
        client(Dialect::dropzone(), |n| {
            vec![
                ("dzuuid", "u".into()),
                ("dztotalfilesize", text(8)),
                ("dzchunksize", text(4)),
                ("dzchunkindex", text(n)),
                ("dzchunkbyteoffset", text(4 * n)),
            ]
        }),
        client(Dialect::fine_uploader(), |n| {
            vec![
                ("qquuid", "u".into()),
                ("qqtotalfilesize", text(8)),
                ("qqchunksize", text(4)),
                ("qqpartindex", text(n)),
                ("qqpartbyteoffset", text(4 * n)),
            ]
        }),
        client(Dialect::plupload(), |n| {
            vec![
                ("name", "a".into()),
                ("total", text(8)),
                ("offset", text(4 * n)),
            ]
        }),
        client(Dialect::web_uploader(4), |n| {
            vec![
                ("lastModifiedDate", "d".into()),
                ("size", text(8)),
                ("chunk", text(n)),
                ("chunks", text(2)),
                ("name", "a".into()),
            ]
        }),
        client(Dialect::blueimp(), |n| {
            let range = format!("bytes {}-{}/8", 4 * n, 4 * n + 3);
            vec![
                ("header:content-range", range),
                (
                    "header:content-disposition",
                    "attachment; filename=\"a\"".into(),
                ),
            ]
        }),
        client(Dialect::huge_uploader(4), |n| {
            vec![
                ("header:uploader-file-id", "u".into()),
                ("header:uploader-file-size", text(8)),
                ("header:uploader-chunk-number", text(n)),
                ("header:uploader-file-name", "a".into()),
            ]
        }),
        client(Dialect::bootstrap_fileinput(), |n| {
            vec![
                ("fileId", "8_a".into()),
                ("fileSize", text(8)),
                ("chunkSize", text(4)),
                ("chunkSizeStart", text(4 * n)),
                ("chunkIndex", text(n)),
                ("chunkCount", text(2)),
                ("fileName", "a".into()),
            ]
        }),
        client(Dialect::filepond(), |n| {
            vec![
                ("patch", MADE.into()),
                ("header:upload-length", text(8)),
                ("header:upload-offset", text(4 * n)),
            ]
        }),
    ]
}

/// The bytes that a status answer counts.
fn received(answer: &Answer) -> u64 {
    match &answer.offset {
        Some(offset) => offset.parse().unwrap(),
        None => {
            let answer: Value = serde_json::from_str(&answer.body).unwrap();
            answer["received"].as_u64().unwrap()
        }
    }
}

/// One file of each client goes to `a` and to `b`. No request about one of them concerns the other.
async fn check_apart(layer: &ResumableLayer, client: &Client, a: &str, b: &str) {
    let name = client.dialect.name();
    let by_head = name == "FilePond";
    let status = async |path: &str| {
        let request = if by_head {
            client.request("HEAD", path, 0, b"")
        } else {
            client.status(path)
        };
        received(&send(layer, request).await)
    };
    let list = async |path: &str| {
        let separator = if path.contains('?') { '&' } else { '?' };
        let request = Request::get(format!("{path}{separator}unfinished"));
        let answer = send(layer, request.body(Body::default()).unwrap()).await;
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        answer["uploads"].as_array().unwrap().len()
    };
    assert_eq!(
        send(layer, client.chunk(a, 0)).await.status,
        200,
        "{name} {a}"
    );
    assert_eq!((status(a).await, status(b).await), (4, 0), "{name} {a} {b}");
    assert_eq!((list(a).await, list(b).await), (1, 0), "{name} {a} {b}");
    let test = |path| client.request("GET", path, 0, b"");
    // Plupload does not say how long its chunks are, and bootstrap-fileinput gets a list.
    if !["FilePond", "Plupload", "bootstrap-fileinput"].contains(&name) {
        assert_eq!(send(layer, test(a)).await.status, 200, "{name} {a}");
        assert_eq!(send(layer, test(b)).await.status, 204, "{name} {b}");
    }
    let removal = client.request("DELETE", b, 0, b"");
    assert_eq!(send(layer, removal).await.status, 204, "{name} {b}");
    assert_eq!(status(a).await, 4, "{name} {a}");

    for (path, n) in [(b, 1), (a, 1), (b, 0)] {
        let answer = send(layer, client.chunk(path, n)).await;
        assert_eq!(answer.status, 200, "{name} {path} {n}: {}", answer.body);
        let is_last = n == 0 || path == a;
        let path = path.split('?').next().unwrap();
        let delivered = answer.body.contains(&format!("{path} got 01234567"));
        assert_eq!(delivered, is_last, "{name} {path}: {}", answer.body);
    }
}

#[tokio::test]
async fn the_same_file_at_two_paths_is_two_uploads() {
    for client in clients() {
        let layer = layer().with_protocol(client.dialect.clone());
        check_apart(&layer, &client, "/albums/1/upload", "/albums/2/upload").await;
    }
}

#[tokio::test]
async fn two_layers_on_one_store_have_their_own_uploads() {
    for client in clients() {
        // Clones of a layer share its store.
        let a = ResumableLayer::new(MemoryStore::default()).with_protocol(client.dialect.clone());
        let b = a.clone().with_path("/other");
        for (layer, path) in [(&a, "/upload"), (&b, "/other")] {
            for n in [0, 1] {
                let answer = send(layer, client.chunk(path, n)).await;
                let delivered = answer.body.contains(&format!("{path} got 01234567"));
                assert_eq!(
                    delivered,
                    n == 1,
                    "{}: {}",
                    client.dialect.name(),
                    answer.body
                );
            }
        }
    }
}

#[tokio::test]
async fn a_field_of_the_query_can_tell_uploads_apart() {
    for client in clients() {
        let layer = layer()
            .with_protocol(client.dialect.clone())
            .with_identity_fields(["album"]);
        let [a, b] = ["/upload?album=1", "/upload?album=2"];
        check_apart(&layer, &client, a, b).await;
    }
    // By default the query is not part of the identity.
    let client = clients().remove(0);
    let layer = layer();
    send(&layer, client.chunk("/upload?album=1", 0)).await;
    let answer = send(&layer, client.chunk("/upload?album=2", 1)).await;
    assert_eq!(answer.body, "/upload got 01234567");
}

#[tokio::test]
async fn a_header_can_tell_uploads_apart() {
    let client = clients().remove(0);
    let layer = layer().with_identity_fields([Field::header("X-Album")]);
    let of = |album: &str, mut request: Request<Body>| {
        let headers = request.headers_mut();
        headers.insert("x-album", album.parse().unwrap());
        request
    };
    let received = async |album| {
        let answer = send(&layer, of(album, client.status("/upload"))).await;
        received(&answer)
    };
    let list = async |album| {
        let request = Request::get("/upload?unfinished").body(Body::default());
        let answer = send(&layer, of(album, request.unwrap())).await;
        answer.body.matches("8-a").count()
    };
    assert_eq!(
        send(&layer, of("1", client.chunk("/upload", 0)))
            .await
            .status,
        200
    );
    assert_eq!((received("1").await, received("2").await), (4, 0));
    assert_eq!((list("1").await, list("2").await), (1, 0));
    let removal = |album| of(album, client.request("DELETE", "/upload", 0, b""));
    send(&layer, removal("2")).await;
    assert_eq!(received("1").await, 4);
    send(&layer, removal("1")).await;
    assert_eq!(received("1").await, 0);
    for (album, n) in [("1", 0), ("2", 1), ("1", 1)] {
        let answer = send(&layer, of(album, client.chunk("/upload", n))).await;
        let delivered = answer.body == "/upload got 01234567";
        assert_eq!(delivered, (album, n) == ("1", 1), "{album} {n}");
    }
}

/// Parts of a form in this order. `file` is chunk `n`.
fn form(n: usize, parts: &[(&str, &str)]) -> Request<Body> {
    let mut form = String::new();
    for (name, value) in parts {
        let chunk = std::str::from_utf8(&CONTENT[4 * n..4 * n + 4]).unwrap();
        let (file_name, value) = if *name == "file" {
            ("; filename=\"a\"", chunk)
        } else {
            ("", *value)
        };
        form += "--X\r\nContent-Disposition: form-data; ";
        form += &format!("name=\"{name}\"{file_name}\r\n\r\n{value}\r\n");
    }
    form += "--X--\r\n";
    Request::post("/upload")
        .header("content-type", "multipart/form-data; boundary=X")
        .body(form.into())
        .unwrap()
}

#[tokio::test]
async fn a_field_of_a_form_can_tell_uploads_apart_before_and_after_the_file() {
    let client = clients().remove(0);
    for album_at in [0, 3, 6, 7] {
        let layer = layer().with_identity_fields(["album"]);
        let chunk = |album, n| {
            let mut parts = (client.fields)(n);
            parts.push(("file", String::new()));
            parts.insert(album_at, ("album", album));
            let parts: Vec<_> = parts
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            form(n, &parts)
        };
        for (album, n) in [("1", 0), ("2", 1), ("1", 1), ("2", 0)] {
            let answer = send(&layer, chunk(album.into(), n)).await;
            let expected = matches!((album, n), ("1", 1) | ("2", 0));
            assert_eq!(answer.status, 200, "{album} {n}: {}", answer.body);
            let delivered = answer.body == "/upload got 01234567";
            assert_eq!(delivered, expected, "{album_at} {album} {n}");
        }
    }
    // Another value after the file contradicts the one before it.
    let layer = layer().with_identity_fields(["album"]);
    let mut parts = (client.fields)(0);
    parts.extend([
        ("album", "1".into()),
        ("file", String::new()),
        ("album", "2".into()),
    ]);
    let parts = parts.iter().map(|(name, value)| (*name, value.as_str()));
    let parts: Vec<_> = parts.collect();
    let answer = send(&layer, form(0, &parts)).await;
    assert_eq!(answer.kind, Some(ErrorKind::ConflictingField));
}

/// Fine Uploader's question at the end, and FilePond's request for a name.
#[tokio::test]
async fn fields_hold_for_questions_at_the_end_and_for_names_of_the_layer() {
    let clients = clients();
    let fine = clients
        .iter()
        .find(|client| client.dialect.name() == "Fine Uploader")
        .unwrap();
    let layer = layer()
        .with_protocol(Dialect::filepond())
        .with_identity_fields(["album"]);
    for n in [0, 1] {
        send(&layer, fine.chunk("/upload?album=1", n)).await;
    }
    let question = |uri: &str, form: &str| {
        let form = format!("qquuid=u&qqtotalfilesize=8{form}");
        Request::post(uri)
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form.into())
            .unwrap()
    };
    for (uri, form, found) in [
        ("/upload", "&album=1", true),
        ("/upload?album=1", "", true),
        ("/upload", "&album=2", false),
        ("/upload?album=2", "", false),
        ("/a/upload", "&album=1", false),
    ] {
        let answer = send(&layer, question(uri, form)).await;
        assert_eq!(answer.body.contains("got"), found, "{uri} {form}");
    }

    let request = Request::post("/upload?album=1").header("upload-length", 8);
    let name = send(&layer, request.body(Body::default()).unwrap()).await;
    assert_eq!(name.status, 201);
    let chunk = |path: &str, offset: usize| {
        let uri = format!("{path}patch={}", name.body);
        Request::patch(uri)
            .header("upload-offset", offset)
            .header("upload-length", 8)
            .header("content-type", "application/offset+octet-stream")
            .body(Full::from(&CONTENT[offset..offset + 4]))
            .unwrap()
    };
    for (path, offset, delivered) in [
        ("/upload?album=1&", 0, false),
        ("/upload?album=2&", 4, false),
        ("/a/upload?album=1&", 4, false),
        ("/upload?album=1&", 4, true),
    ] {
        let answer = send(&layer, chunk(path, offset)).await;
        assert_eq!(
            (answer.status, answer.body.contains("got")),
            (200, delivered)
        );
    }
}

/// In a `nest`, the layer sees the same path for all albums.
#[tokio::test]
async fn the_prefix_of_a_nest_is_part_of_the_path() {
    async fn finished(Path(album): Path<u32>, upload: CompletedUpload) -> String {
        format!("album {album} got {} bytes", upload.size())
    }
    let layer = ResumableLayer::new(MemoryStore::default());
    let inside = Router::new().route("/upload", post(finished)).layer(layer);
    let app = Router::new().nest("/albums/{album}", inside);
    let client = clients().remove(0);
    for (album, n) in [(1, 0), (2, 1), (1, 1), (2, 0)] {
        let request = client.chunk(&format!("/albums/{album}/upload"), n);
        let response = app.clone().oneshot(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        let delivered = body == format!("album {album} got 8 bytes");
        let expected = matches!((album, n), (1, 1) | (2, 0));
        assert_eq!(delivered, expected, "{album} {n}: {body:?}");
    }
}

/// Another length for the same upload, in each question. The identity of these clients has no
/// length.
#[tokio::test]
async fn a_question_with_another_length_is_a_final_refusal() {
    let rule = IdentityRule::Identifier;
    for client in clients() {
        let name = client.dialect.name();
        let layer = layer()
            .with_identity(rule)
            .with_protocol(client.dialect.clone());
        send(&layer, client.chunk("/upload", 0)).await;
        let longer = |request: Request<Body>| {
            let (mut parts, body) = request.into_parts();
            let uri = parts.uri.to_string();
            for (old, new) in [
                ("otalSize=8", "otalSize=9"),
                ("totalfilesize=8", "totalfilesize=9"),
                ("total=8", "total=9"),
                ("&size=8", "&size=9"),
                ("fileSize=8", "fileSize=9"),
            ] {
                if uri.contains(old) {
                    parts.uri = uri.replace(old, new).parse().unwrap();
                }
            }
            let headers = &mut parts.headers;
            if let Some(range) = headers.get_mut("content-range") {
                *range = range.to_str().unwrap().replace("/8", "/9").parse().unwrap();
            }
            if let Some(size) = headers.get_mut("uploader-file-size") {
                *size = "9".parse().unwrap();
            }
            Request::from_parts(parts, body)
        };
        if name == "FilePond" {
            // Its names contain the length.
            continue;
        }
        for request in [
            client.status("/upload"),
            client.request("GET", "/upload", 0, b""),
        ] {
            let answer = send(&layer, longer(request)).await;
            assert_eq!(answer.kind, Some(ErrorKind::Conflict), "{name}");
            assert!([400, 415].contains(&answer.status), "{name}");
        }
        assert_eq!(received(&send(&layer, client.status("/upload")).await), 4);
    }
    // The question at the end.
    let layer = layer();
    let clients = clients();
    for n in [0, 1] {
        send(&layer, clients[4].chunk("/upload", n)).await;
    }
    let question = |length| {
        Request::post("/upload")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(format!("qquuid=u&qqtotalfilesize={length}").into())
            .unwrap()
    };
    let answer = send(&layer, question(9)).await;
    assert_eq!(answer.kind, Some(ErrorKind::Conflict));
    assert!(answer.body.contains("\"preventRetry\":true"));
    assert!(send(&layer, question(8)).await.body.contains("got"));
}
