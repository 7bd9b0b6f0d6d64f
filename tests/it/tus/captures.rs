//! Requests of real clients, exactly as they sent them (see `captures-tus/`).

use std::{collections::HashMap, path::Path};

use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower_resumable::{Purpose, Refusal};

use super::{LETTERS, Server};

/// A recording, the requests that a hook refuses with 503, because the server of the recording did
/// so, the statuses of the answers, and the contents of the files that have to be delivered.
type Row = (
    &'static str,
    &'static [usize],
    &'static [u16],
    &'static [&'static str],
);

/// Only what was sent before the client was told to stop.
const STOPPED: &[&str] = &[];
const ONE: &[&str] = &[LETTERS];

const ROWS: &[Row] = &[
    ("aiotus-1.1.0-v1", &[], &[201, 200, 204, 200], ONE),
    // It declared 70,000 bytes.
    ("curl-7.88-tus-creation-expect", &[], &[201], STOPPED),
    (
        "spec-checksum-trailer",
        &[],
        &[201, 204, 460, 204],
        &["hello worldhello world"],
    ),
    (
        "tus-js-client-4.3.1-body200",
        &[],
        &[201, 204, 204, 204],
        ONE,
    ),
    // A preflight request is for the layer outside of this one. Here the inner service gets it.
    (
        "tus-js-client-4.3.1-browser-again",
        &[],
        &[200, 201, 200, 204, 204, 204, 200],
        ONE,
    ),
    // Chromium has sent the same bytes twice.
    (
        "tus-js-client-4.3.1-browser-cut",
        &[],
        &[200, 201, 200, 204, 204, 409, 200, 204],
        ONE,
    ),
    ("tus-js-client-4.3.1-creation", &[], &[201, 204, 204], ONE),
    ("tus-js-client-4.3.1-creation-whole", &[], &[201], ONE),
    // The bytes of the cut request are kept, so the client has fewer to send.
    (
        "tus-js-client-4.3.1-cut-patch",
        &[],
        &[201, 0, 200, 204],
        &["200000"],
    ),
    // The whole body is in the recording.
    (
        "tus-js-client-4.3.1-cut-patch-nocredit",
        &[],
        &[201, 204, 200, 409],
        ONE,
    ),
    ("tus-js-client-4.3.1-defer", &[], &[201, 204, 204, 204], ONE),
    (
        "tus-js-client-4.3.1-delete503",
        &[5],
        &[201, 204, 204, 204, 503, 204],
        ONE,
    ),
    ("tus-js-client-4.3.1-empty", &[], &[201], &[""]),
    // The server says 423 instead of 429 and 503, and the client would not begin anew.
    (
        "tus-js-client-4.3.1-head410",
        &[3, 4],
        &[201, 204, 503, 423, 201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-head423",
        &[3, 4],
        &[201, 204, 503, 423, 200, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-head429",
        &[3, 4],
        &[201, 204, 503, 423, 201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-head503",
        &[3, 4],
        &[201, 204, 503, 423, 201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-nometa",
        &[],
        &[201, 204, 204, 204],
        ONE,
    ),
    ("tus-js-client-4.3.1-onepatch", &[], &[201, 204], ONE),
    (
        "tus-js-client-4.3.1-override",
        &[],
        &[201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-parallel",
        &[],
        &[201, 201, 201, 204, 204, 204, 201],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-parallel-concat503",
        &[5],
        &[201, 201, 204, 204, 503, 200, 200, 201],
        ONE,
    ),
    // The client has stopped after the last of these.
    (
        "tus-js-client-4.3.1-patch404",
        &[],
        &[201, 204, 204],
        STOPPED,
    ),
    (
        "tus-js-client-4.3.1-patch409",
        &[3],
        &[201, 204, 503, 200, 204, 204],
        ONE,
    ),
    ("tus-js-client-4.3.1-patch413", &[], &[201, 204], STOPPED),
    (
        "tus-js-client-4.3.1-patch460",
        &[],
        &[201, 204, 204],
        STOPPED,
    ),
    (
        "tus-js-client-4.3.1-patch503",
        &[3],
        &[201, 204, 503, 200, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-post503",
        &[1],
        &[503, 201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-request-id",
        &[],
        &[201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-resume-complete",
        &[],
        &[201, 204, 200],
        ONE,
    ),
    (
        "tus-js-client-4.3.1-terminate",
        &[],
        &[201, 204, 204],
        STOPPED,
    ),
    ("tus-js-client-4.3.1-v1", &[], &[201, 204, 204, 204], ONE),
    (
        "tus-js-client-5.0.0-pre2-creation",
        &[],
        &[201, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-5.0.0-pre2-head410",
        &[3, 4],
        &[201, 204, 503, 423, 201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-5.0.0-pre2-head423",
        &[3, 4],
        &[201, 204, 503, 423, 200, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-5.0.0-pre2-head503",
        &[3, 4],
        &[201, 204, 503, 423, 201, 204, 204, 204],
        ONE,
    ),
    (
        "tus-js-client-5.0.0-pre2-parallel",
        &[],
        &[201, 201, 201, 204, 204, 204, 201],
        ONE,
    ),
    (
        "tus-js-client-5.0.0-pre2-v1",
        &[],
        &[201, 204, 204, 204],
        ONE,
    ),
    ("tuspy-1.1.0-body200", &[], &[201, 204, 204, 204], ONE),
    ("tuspy-1.1.0-empty", &[], &[201], &[""]),
    (
        "tuspy-1.1.0-patch460",
        &[3],
        &[201, 204, 503, 200, 204, 204],
        ONE,
    ),
    ("tuspy-1.1.0-resume", &[], &[201, 204, 200, 204, 204], ONE),
    ("tuspy-1.1.0-v1", &[], &[201, 204, 204, 204], ONE),
    ("tuspy-1.1.0-whole", &[], &[201, 204], ONE),
    (
        "uppy-6.0.0-body200",
        &[],
        &[200, 201, 200, 204, 204, 204],
        ONE,
    ),
    ("uppy-6.0.0-creation", &[], &[200, 201, 200, 204, 204], ONE),
    (
        "uppy-6.0.0-head503",
        &[5, 6],
        &[200, 201, 200, 204, 503, 423, 201, 200, 204, 204, 204],
        ONE,
    ),
    (
        "uppy-6.0.0-override",
        &[],
        &[200, 201, 200, 204, 204, 204],
        ONE,
    ),
    (
        "uppy-6.0.0-parallel",
        &[],
        &[200, 200, 201, 201, 200, 204, 200, 204, 200, 201],
        ONE,
    ),
    (
        "uppy-6.0.0-patch503-last",
        &[6],
        &[200, 201, 200, 204, 204, 503, 200, 204],
        ONE,
    ),
    (
        "uppy-6.0.0-remove",
        &[],
        &[200, 201, 200, 204, 204, 204],
        STOPPED,
    ),
    ("uppy-6.0.0-v1", &[], &[200, 201, 200, 204, 204, 204], ONE),
];

#[tokio::test]
async fn recorded_clients_get_the_answers_that_they_need() {
    let mut named = 0;
    for (capture, faults, statuses, files) in ROWS {
        let server = Server::with(|layer| {
            layer.with_admission(|asked| {
                let is_fault = asked.parts().headers.contains_key("x-fault");
                let is_delivery = asked.purpose() == Purpose::Deliver;
                let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "as recorded");
                let answer = if is_fault && !is_delivery {
                    Err(refusal)
                } else {
                    Ok(())
                };
                async { answer }
            })
        })
        .await;
        let mut replay = Replay::default();
        let mut got = Vec::new();
        for (index, request) in requests(capture).iter().enumerate() {
            let is_fault = faults.contains(&(index + 1));
            got.push(replay.send(&server, request, is_fault).await);
        }
        assert_eq!(got, *statuses, "{capture}");
        let contents = server.contents();
        if let ["200000"] = files {
            assert_eq!(contents[0].len(), 200_000, "{capture}");
        } else {
            assert_eq!(contents, *files, "{capture}");
        }
        for delivery in server.deliveries() {
            let upload = &delivery.upload;
            named += usize::from(upload.file_name().is_some());
            assert!(
                upload.file_name().is_none_or(|name| name == "xé.txt"),
                "{capture}"
            );
            // Uppy says `null`.
            let path = upload.relative_path();
            assert!(
                path.is_none_or(|path| path == "a/b/xé.txt"),
                "{capture} {path:?}"
            );
        }
    }
    assert!(named > 25, "{named}");
}

/// The requests, in the order in which they were sent.
pub(crate) fn requests(capture: &str) -> Vec<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dir = root.join("tests/captures-tus").join(capture);
    let entries = std::fs::read_dir(dir).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// The URLs of the recording, and those of this server.
#[derive(Default)]
pub(crate) struct Replay {
    /// Created, and not named by the client yet.
    created: Vec<String>,
    known: HashMap<String, String>,
}

impl Replay {
    /// Sends a request and returns the status of the answer. 0 if the request was cut.
    pub(crate) async fn send(&mut self, server: &Server, request: &[u8], is_fault: bool) -> u16 {
        let head = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let (head, body) = request.split_at(head);
        let head = self.with_urls(std::str::from_utf8(head).unwrap());
        // So that the end of the answer is visible.
        let mut head = head.replace("\r\nConnection: keep-alive", "");
        head.push_str("\r\nConnection: close");
        if is_fault {
            head.push_str("\r\nX-Fault: 1");
        }
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        // A server that refuses a request need not read it to its end.
        let _ = socket.write_all(&[head.as_bytes(), body].concat()).await;
        let declared = head.to_ascii_lowercase();
        let declared = declared.split("content-length: ").nth(1);
        let declared = declared.and_then(|rest| rest.split("\r\n").next()?.parse().ok());
        let is_cut = declared.is_some_and(|len: usize| len + 4 > body.len());
        if is_cut {
            socket.shutdown().await.unwrap();
        }
        let mut answer = Vec::new();
        let read = socket.read_to_end(&mut answer).await;
        if is_cut {
            return 0;
        }
        read.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let mut answer = &answer[..];
        while answer.starts_with("HTTP/1.1 1") {
            answer = answer.split_once("\r\n\r\n").unwrap().1;
        }
        let lower = answer.to_ascii_lowercase();
        let location = lower.split("\r\nlocation: ").nth(1);
        self.created
            .extend(location.map(|rest| rest.split("\r\n").next().unwrap().to_owned()));
        let status = answer.split(' ').nth(1).expect("a status line");
        status.parse().unwrap()
    }

    /// Replaces the URLs of the server of the recording.
    fn with_urls(&mut self, head: &str) -> String {
        let mut head = head.to_owned();
        for marker in ["/files/", "/files?upload="] {
            let mut from = 0;
            while let Some(at) = head[from..].find(marker) {
                let start = from + at;
                let token: String = head[start + marker.len()..].chars().take(32).collect();
                let is_new = !self.known.values().any(|url| url.ends_with(&token));
                if token.chars().all(|c| c.is_ascii_hexdigit()) && is_new {
                    let created = &mut self.created;
                    let url = self.known.entry(token).or_insert_with(|| created.remove(0));
                    head.replace_range(start..start + marker.len() + 32, url);
                }
                from = start + marker.len();
            }
        }
        head
    }
}
