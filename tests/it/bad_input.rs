//! Invalid requests get a clear refusal, store nothing, and do not affect other uploads.

use std::time::Duration;

use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tower_resumable::Limits;

use crate::common::{BOUNDARY, Client, File, FilePart, Server, file_part, form, multipart, uri};

/// Fields without their prefix, and their new values.
type Changes<'a> = &'a [(&'a str, Option<&'a str>)];

/// The fields of chunk 1 of 2, some of them changed or removed.
fn fields(changes: Changes<'_>) -> Vec<(String, String)> {
    let mut fields = File::new("a.txt", 25).fields(1);
    for (name, value) in changes {
        let name = format!("resumable{name}");
        match value {
            Some(value) => {
                let field = fields.iter_mut().find(|(n, _)| *n == name).unwrap();
                field.1 = (*value).into();
            }
            None => fields.retain(|(n, _)| *n != name),
        }
    }
    fields
}

#[tokio::test]
async fn invalid_fields_are_refused() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let cases: &[(Changes<'_>, &str)] = &[
        (&[("Identifier", None)], "missing_field"),
        (&[("TotalSize", None)], "missing_field"),
        (&[("ChunkNumber", None)], "missing_field"),
        (&[("ChunkSize", None)], "missing_field"),
        (&[("Identifier", Some(""))], "invalid_field"),
        (&[("Identifier", Some("a\0b"))], "invalid_field"),
        (&[("ChunkNumber", Some("0"))], "invalid_field"),
        (&[("ChunkNumber", Some("-1"))], "invalid_field"),
        (&[("ChunkNumber", Some("+1"))], "invalid_field"),
        (&[("ChunkNumber", Some("1e3"))], "invalid_field"),
        (
            &[("ChunkNumber", Some("18446744073709551616"))],
            "invalid_field",
        ),
        (&[("ChunkNumber", Some("4"))], "out_of_bounds"),
        (&[("ChunkSize", Some("0"))], "invalid_field"),
        (&[("TotalSize", Some("-1"))], "invalid_field"),
        (&[("TotalSize", Some("NaN"))], "invalid_field"),
        (&[("CurrentChunkSize", Some("9"))], "invalid_field"),
        (&[("Filename", Some(""))], "invalid_field"),
    ];
    for (changes, code) in cases {
        let fields = fields(changes);
        let content = &[0; 10][..];
        for request in [
            multipart(
                &uri(&fields),
                form(&fields, FilePart::named("a.txt"), content),
            ),
            multipart("/upload", form(&fields, FilePart::named("a.txt"), content)),
            Request::post(uri(&fields)).body(content.to_vec()).unwrap(),
        ] {
            let answer = client.send(request).await;
            assert_eq!(answer.status, 400, "{changes:?}: {answer:?}");
            assert_eq!(answer.json()["code"], *code, "{changes:?}");
        }
    }
    // An offset that overflows.
    let fields = fields(&[
        ("ChunkNumber", Some("3")),
        ("ChunkSize", Some("9223372036854775808")),
    ]);
    let answer = client
        .send(Request::post(uri(&fields)).body(vec![0; 10]).unwrap())
        .await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());
    assert!(server.deliveries().is_empty());
}

#[tokio::test]
async fn contradicting_fields_are_refused() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let good = fields(&[]);
    let other = fields(&[("ChunkNumber", Some("2")), ("CurrentChunkSize", Some("15"))]);
    let twice = [&good[..], &[("resumableChunkNumber".into(), "2".into())]].concat();
    let content = &[0; 10][..];
    for request in [
        multipart(&uri(&good), form(&other, FilePart::named("a.txt"), content)),
        multipart("/upload", form(&twice, FilePart::named("a.txt"), content)),
        Request::post(uri(&twice)).body(content.to_vec()).unwrap(),
        // The contradicting field comes after the file.
        multipart(
            &uri(&good),
            [
                file_part(FilePart::named("a.txt"), content),
                form(&other, FilePart::None, b""),
            ]
            .concat(),
        ),
    ] {
        let answer = client.send(request).await;
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!(answer.json()["code"], "conflicting_field");
    }
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn invalid_bodies_are_refused() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let good = fields(&[]);
    let at = uri(&good);
    let named = |content: &[u8]| form(&good, FilePart::named("a.txt"), content);
    let whole = named(&[7; 10]);
    let text = |content: &[u8]| form(&good, FilePart::Text { field: "file" }, content);
    let part = |field| {
        file_part(
            FilePart::Named {
                field,
                file_name: "a",
            },
            &[7; 10],
        )
    };
    let none = form(&good, FilePart::None, b"");
    let cases = [
        ("short", multipart(&at, named(&[7; 9])), "chunk_length"),
        ("long", multipart(&at, named(&[7; 11])), "chunk_length"),
        (
            "much longer",
            multipart(&at, named(&[7; 1 << 20])),
            "chunk_length",
        ),
        (
            "short octets",
            Request::post(&at).body(vec![7; 9]).unwrap(),
            "chunk_length",
        ),
        (
            "long octets",
            Request::post(&at).body(vec![7; 11]).unwrap(),
            "chunk_length",
        ),
        ("no file part", multipart(&at, none.clone()), "missing_file"),
        (
            "other file part",
            multipart(&at, [part("blob"), none.clone()].concat()),
            "unexpected_file",
        ),
        (
            "two file parts",
            multipart(&at, [part("file"), whole.clone()].concat()),
            "unexpected_file",
        ),
        (
            "no end",
            multipart(&at, whole[..whole.len() - 4].to_vec()),
            "multipart",
        ),
        ("no form", multipart(&at, b"hello".to_vec()), "multipart"),
        ("empty form", multipart(&at, Vec::new()), "multipart"),
        (
            "not base64",
            multipart(&at, text(b"data:;base64,!!!!")),
            "base64",
        ),
        (
            "cut base64",
            multipart(&at, text(b"data:;base64,AAAAA")),
            "base64",
        ),
        (
            "short base64",
            multipart(&at, text(b"data:;base64,AAAA")),
            "chunk_length",
        ),
    ];
    for (name, request, code) in cases {
        let answer = client.send(request).await;
        assert_eq!(answer.status, 400, "{name}: {answer:?}");
        assert_eq!(answer.json()["code"], code, "{name}");
    }
    // Safari sends a chunk without its bytes now and then. A retry helps.
    for request in [
        multipart(&at, named(b"")),
        Request::post(&at)
            .header("content-type", "application/octet-stream")
            .body(Vec::new())
            .unwrap(),
    ] {
        let answer = client.send(request).await;
        assert_eq!(answer.status, 503, "{answer:?}");
        assert_eq!(answer.json()["code"], "chunk_length");
    }
    for content_type in ["multipart/form-data", "multipart/form-data; boundary="] {
        let mut request = multipart(&at, whole.clone());
        request
            .headers_mut()
            .insert("content-type", content_type.parse().unwrap());
        let answer = client.send(request).await;
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &"multipart".into())
        );
    }
    // Nothing of these requests is stored, and the same connection accepts a valid one.
    assert_eq!(server.files(), Vec::<std::path::PathBuf>::new());
    let file = File::new("a.txt", 25);
    assert_eq!(client.send(file.probe(1)).await.status, 204);
    for number in 1..=2 {
        assert_eq!(client.send(file.multipart(number)).await.status, 200);
    }
    assert!(server.deliveries()[0].content == file.content);
}

#[tokio::test]
async fn sizes_above_a_limit_are_refused() {
    let server = Server::with(|layer| {
        layer.with_limits(Limits::default().with_file_size(100).with_chunk_size(20))
    })
    .await;
    let mut client = server.client().await;
    let sized = |len, chunk_size| File {
        chunk_size,
        ..File::new("a.txt", len)
    };
    for (file, code) in [
        (sized(100, 20), None),
        (sized(101, 20), Some("file_too_large")),
        (sized(100, 21), Some("chunk_too_large")),
        (sized(45, 15), None),
    ] {
        let answer = client.send(file.multipart(1)).await;
        assert_eq!(answer.status, if code.is_some() { 400 } else { 200 });
        if let Some(code) = code {
            assert_eq!(answer.json()["code"], code);
            assert_eq!(client.send(file.probe(1)).await.status, 400);
        }
    }
    // Without a declared size, the limit applies to the bytes that arrive.
    let mut fields = sized(100, 50).fields(1);
    fields.retain(|(name, _)| name != "resumableCurrentChunkSize");
    let answer = client
        .send(Request::post(uri(&fields)).body(vec![7; 50]).unwrap())
        .await;
    assert_eq!(answer.status, 400);
}

#[tokio::test]
async fn the_client_receives_the_refusal_of_a_body() {
    let server = Server::start().await;
    let fields = fields(&[("ChunkNumber", Some("0"))]);
    for len in [1 << 20, 20 << 20] {
        let answer = server
            .client()
            .await
            .send(multipart(
                &uri(&fields),
                form(&fields, FilePart::named("a"), &vec![7; len]),
            ))
            .await;
        assert_eq!(answer.status, 400, "{len} bytes");
    }
}

#[tokio::test]
async fn a_disconnect_stores_nothing_and_affects_no_other_upload() {
    let server = Server::start().await;
    let neighbour = File::new("b.txt", 25);
    let mut client = server.client().await;
    client.send(neighbour.multipart(1)).await;
    let before = server.files();

    let file = File {
        chunk_size: 1 << 20,
        ..File::new("a.txt", 1 << 20)
    };
    for request in [
        file.multipart(1),
        file.octets(1),
        file.multipart_body_only(1),
    ] {
        let body = request.body();
        for sent in [0, 1, 1000, body.len() / 2, body.len() - 1] {
            let mut socket = TcpStream::connect(server.addr).await.unwrap();
            let content_type = request.headers()["content-type"].to_str().unwrap();
            let head = format!(
                "POST {} HTTP/1.1\r\nhost: x\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n",
                request.uri(),
                body.len()
            );
            socket.write_all(head.as_bytes()).await.unwrap();
            socket.write_all(&body[..sent]).await.unwrap();
            // The socket is only half closed, so the server still answers. The test then knows when
            // the server has finished.
            socket.shutdown().await.unwrap();
            let mut answer = Vec::new();
            let _ = socket.read_to_end(&mut answer).await;
            assert!(!answer.starts_with(b"HTTP/1.1 2"), "{sent} bytes");
        }
    }
    assert_eq!(client.send(file.probe(1)).await.status, 204);
    assert!(server.deliveries().is_empty());
    // At most the upload itself exists, without bytes. The neighbour's files are unchanged.
    assert!(before.iter().all(|path| path.exists()));

    client.send(neighbour.multipart(2)).await;
    assert!(server.deliveries()[0].content == neighbour.content);
    client.send(file.multipart(1)).await;
    assert!(server.deliveries()[1].content == file.content);
}

/// rwf2/multer#70 and #62: the division of a body into frames must not matter.
#[tokio::test]
async fn bodies_in_any_frames() {
    let server = Server::start().await;
    let file = File {
        chunk_size: 300,
        ..File::new("a.txt", 300)
    };
    let body = form(&file.fields(1), FilePart::named("a.txt"), &file.content);
    for step in [1, 7, 64, 1000, body.len()] {
        let file = File {
            identifier: format!("cut-{step}"),
            ..file.clone()
        };
        let body = form(&file.fields(1), FilePart::named("a.txt"), &file.content);
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let head = format!(
            "POST /upload HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\
             content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        for piece in body.chunks(step) {
            let frame = [format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat();
            socket.write_all(&frame).await.unwrap();
            tokio::task::yield_now().await;
        }
        socket.write_all(b"0\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200"),
            "frames of {step}: {answer}"
        );
    }
    assert!(
        server
            .deliveries()
            .iter()
            .all(|d| d.content == file.content)
    );
    assert_eq!(server.deliveries().len(), 5);
}

#[tokio::test]
async fn endless_headers_and_preambles_are_cut_off() {
    let server = Server::start().await;
    let good = fields(&[]);
    let endless = vec![b'a'; 8 << 20];
    let header = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"");
    for body in [endless.clone(), [header.as_bytes(), &endless].concat()] {
        let mut client = Client::connect(server.addr).await;
        let answer = tokio::time::timeout(
            Duration::from_secs(20),
            client.send(multipart(&uri(&good), body)),
        )
        .await
        .expect("the server is still reading");
        assert_eq!(
            (answer.status, &answer.json()["code"]),
            (400, &"multipart".into())
        );
    }
}
