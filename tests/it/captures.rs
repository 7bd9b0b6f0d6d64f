//! Requests of whole uploads, exactly as Chromium sent them (see `captures/`).

use std::path::Path;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower_resumable::Dialect;

use crate::common::Server;

/// A capture, the statuses of its answers, and the names and contents of the files that have to be
/// delivered.
type Row = (
    &'static str,
    &'static [u16],
    &'static [(&'static str, &'static str)],
);

const LETTERS: &str = "abcdefghijklmnopqrstuvwxy";
const ZEROS_25: &str = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const ZEROS_30: &str = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const ZEROS_35: &str = "\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

const ROWS: &[Row] = &[
    (
        "blueimp-10.32.0-binary",
        &[200, 200, 200],
        &[("x é.txt", LETTERS)],
    ),
    (
        "blueimp-10.32.0-chunk",
        &[200, 200, 200],
        &[("x é.txt", LETTERS)],
    ),
    (
        "filepond-4.32.12-chunk",
        &[201, 200, 200, 200],
        &[("x é.txt", LETTERS)],
    ),
    // The last file is empty.
    (
        "filepond-4.32.12-exact-multiple",
        &[201, 200, 200, 200],
        &[("x é.txt", "abcdefghijklmnopqrst")],
    ),
    (
        "webuploader-0.1.8-binary",
        &[200, 200, 200],
        &[("x é.txt", LETTERS)],
    ),
    (
        "webuploader-0.1.8-chunk",
        &[200, 200, 200],
        &[("x é.txt", LETTERS)],
    ),
    (
        "dropzone-6.3.5-chunking",
        &[200, 200, 200],
        &[("x.txt", LETTERS)],
    ),
    (
        "dropzone-6.3.5-forceChunking-zero",
        &[200],
        &[("x.txt", "abc")],
    ),
    (
        "dropzone-6.3.5-retry503",
        &[200, 200, 200, 200],
        &[("x.txt", LETTERS)],
    ),
    (
        "dropzone-6.3.5-small-notchunked",
        &[200],
        &[("x.txt", "abc")],
    ),
    (
        "fine-uploader-5.16.2-chunk",
        &[200, 200, 200],
        &[("x é.txt", LETTERS)],
    ),
    // The last request has a path of the application.
    (
        "fine-uploader-5.16.2-concurrent-success",
        &[200, 200, 200, 200],
        &[("x é.txt", LETTERS)],
    ),
    ("flow-2.14.1-cors", &[204, 200, 200], &[("x.txt", "abc")]),
    (
        "flow-2.14.1-default-204test",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    (
        "flow-2.14.1-dropped-connection",
        &[204, 200, 200, 204, 200],
        &[("x.bin", ZEROS_25)],
    ),
    (
        "flow-2.14.1-forceChunkSize",
        &[204, 200, 204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    (
        "flow-2.14.1-octet",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    (
        "flow-2.14.1-octet-notype",
        &[204, 200, 204, 200],
        &[("b.unknownext", LETTERS)],
    ),
    (
        "flow-2.14.1-parallel3",
        &[204, 204, 204, 200, 200, 200, 204, 204, 204, 200, 200, 200],
        &[],
    ),
    ("flow-2.14.1-testHEAD", &[204], &[]),
    (
        "flow-2.14.1-unicode-name",
        &[204, 200],
        &[("日本\"語\n.txt", "abcde")],
    ),
    ("flow-2.14.1-zero", &[204, 200], &[("z.bin", "")]),
    (
        "resumable-1.0.2-default-404test",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    (
        "resumable-1.1.0-base64",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    (
        "resumable-1.1.0-cancel",
        &[204, 204, 200, 200, 204, 200, 204, 200],
        &[],
    ),
    // A preflight belongs to the application.
    (
        "resumable-1.1.0-cors",
        &[204, 200, 200],
        &[("x.txt", "abc")],
    ),
    (
        "resumable-1.1.0-default-404test",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    // Chromium repeated the first chunk by itself.
    (
        "resumable-1.1.0-dropped-connection",
        &[204, 200, 200, 204, 200],
        &[("x.bin", ZEROS_25)],
    ),
    (
        "resumable-1.1.0-filesuccess-message-late-chunk1",
        &[200, 200, 200],
        &[("x.bin", ZEROS_30)],
    ),
    (
        "resumable-1.1.0-forceChunkSize",
        &[204, 200, 204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    (
        "resumable-1.1.0-octet",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    // The recording ends in the middle of the upload.
    (
        "resumable-1.1.0-parallel3",
        &[204, 204, 204, 200, 200, 200, 204, 200, 204, 204, 200, 200],
        &[],
    ),
    (
        "resumable-1.1.0-pause-resume",
        &[204, 204, 200, 200, 200, 200, 204, 200],
        &[("x.bin", ZEROS_35)],
    ),
    (
        "resumable-1.1.0-prioritize",
        &[204, 200, 204, 200, 204, 200, 204, 200, 204, 200],
        &[(
            "p.bin",
            "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabc",
        )],
    ),
    (
        "resumable-1.1.0-settype",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    ("resumable-1.1.0-small", &[204, 200], &[("s.bin", "abc")]),
    // A probe without any field passes the layer: the application has configured another path.
    (
        "resumable-1.1.0-target-function",
        &[200, 200],
        &[("x.txt", "abc")],
    ),
    (
        "resumable-1.1.0-testChunks-false-params-off",
        &[200],
        &[("s.bin", "abc")],
    ),
    ("resumable-1.1.0-testHEAD", &[204, 200], &[("s.bin", "abc")]),
    (
        "resumable-1.1.0-twofiles-simul3",
        &[204, 204, 204, 200, 200, 200, 204, 204, 204, 200, 200, 200],
        &[],
    ),
    (
        "resumable-1.1.0-unicode-name",
        &[204, 200],
        &[("日本\"語\n.txt", "abcde")],
    ),
    ("resumable-1.1.0-zero-min0", &[204, 200], &[("z.bin", "")]),
    (
        "resumable-1.1.0-zero-min0-base64",
        &[204, 200],
        &[("z.bin", "")],
    ),
    (
        "resumable-HEAD-default-404test",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    (
        "resumable-HEAD-octet",
        &[204, 200, 204, 200],
        &[("a.txt", LETTERS)],
    ),
    // The server of the recording had the first and the third chunk.
    ("simple-uploader-0.6.0-checkByResponse", &[200, 200], &[]),
    (
        "simple-uploader-0.6.0-default-204test",
        &[204, 204, 200, 200, 204, 200],
        &[("x.txt", "abcdefghijklmnopqrstuvwxyzabcdefghi")],
    ),
];

#[tokio::test]
async fn recorded_uploads_are_delivered() {
    for (capture, statuses, files) in ROWS {
        let server = Server::with(|layer| match *capture {
            "resumable-1.1.0-target-function" => layer.with_path("/fn"),
            "resumable-1.1.0-testChunks-false-params-off" => {
                layer.with_protocol(Dialect::resumable_js().with_chunk_number("chunk", 1))
            }
            "simple-uploader-0.6.0-checkByResponse" => {
                layer.with_protocol(Dialect::simple_uploader().with_list_tests("uploaded"))
            }
            "simple-uploader-0.6.0-default-204test" => {
                layer.with_protocol(Dialect::simple_uploader())
            }
            _ if capture.starts_with("blueimp") => layer.with_protocol(Dialect::blueimp()),
            _ if capture.starts_with("filepond") => layer.with_protocol(Dialect::filepond()),
            _ if capture.starts_with("webuploader") => {
                layer.with_protocol(Dialect::web_uploader(10))
            }
            _ => layer,
        })
        .await;
        let mut got = Vec::new();
        for request in requests(capture) {
            got.push(send(&server, &request).await);
        }
        let deliveries = server.deliveries();
        let arrived: Vec<_> = deliveries
            .iter()
            .map(|d| {
                (
                    d.upload.file_name().unwrap(),
                    std::str::from_utf8(&d.content).unwrap(),
                )
            })
            .collect();
        assert_eq!(got, *statuses, "{capture}");
        assert_eq!(arrived, *files, "{capture}");
    }
}

/// The requests, in the order in which they were sent.
fn requests(capture: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/captures")
        .join(capture);
    let entries = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

async fn send(server: &Server, request: &[u8]) -> u16 {
    // The only change of a request, so that the end of the answer is visible.
    let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let (head, body) = request.split_at(head);
    let head = std::str::from_utf8(head).unwrap();
    let head = head.replace("Connection: keep-alive", "Connection: close");
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    socket
        .write_all(&[head.as_bytes(), body].concat())
        .await
        .unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    answer
        .split(' ')
        .nth(1)
        .expect("a status line")
        .parse()
        .unwrap()
}
