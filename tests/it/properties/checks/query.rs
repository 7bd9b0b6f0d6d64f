//! Any query, with any method, headers and a few bytes.

use http::{Method, Request};
use tower_resumable::{Dialect, MemoryStore, Protocol, ResumableLayer};

use super::{
    Input,
    server::{Inner, PASSED, Script, Server, block_on},
};

/// A text that only a client sends, so it is never part of an answer.
pub const CANARY: &str = "zQ7<";

const METHODS: [Method; 7] = [
    Method::GET,
    Method::POST,
    Method::PUT,
    Method::HEAD,
    Method::DELETE,
    Method::PATCH,
    Method::OPTIONS,
];

const TYPES: [Option<&str>; 6] = [
    None,
    Some("application/octet-stream"),
    Some("multipart/form-data; boundary=X"),
    Some("application/x-www-form-urlencoded"),
    Some("text/plain"),
    Some("multipart/form-data; boundary="),
];

const HEADERS: [(&str, &str); 8] = [
    ("content-range", "bytes 0-3/10"),
    ("content-range", "bytes 18446744073709551615-0/0"),
    ("content-disposition", "attachment; filename=\"zQ7%3C.txt\""),
    ("upload-length", "10"),
    ("upload-offset", "0"),
    ("upload-name", "zQ7<"),
    ("uploader-file-id", "zQ7<"),
    ("content-length", "4"),
];

/// The first bytes choose the method, dialects, content type, headers and body. The rest is the
/// query; characters that are invalid in a URI are escaped.
pub fn query(data: &[u8]) {
    let mut input = Input::new(data);
    let method = input.pick(&METHODS).clone();
    let dialects = input.u8();
    let content_type = *input.pick(&TYPES);
    let headers = input.u8();
    let body = match input.below(4) {
        0 => &b""[..],
        1 => b"<zQ7",
        2 => b"--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"zQ7<\"\r\n\r\n<zQ7\r\n--X--",
        _ => b"qquuid=zQ7%3C&qqtotalfilesize=4&resumableIdentifier=zQ7%3C",
    };
    let Ok(uri) = format!("/upload?{}", escaped(input.rest())).parse::<http::Uri>() else {
        return;
    };
    let request = || {
        let mut request = Request::builder().method(&method).uri(&uri);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        for (bit, (name, value)) in HEADERS.into_iter().enumerate() {
            if headers >> bit & 1 == 1 {
                request = request.header(name, value);
            }
        }
        request.body(Script::whole(body)).unwrap()
    };
    block_on(async {
        let server = Server::new(layer(dialects), Inner::default());
        let answer = server.send_bounded(request()).await;
        answer.check();
        assert_is_ours(&format!("{:?}", answer.headers));
        assert_is_ours(&String::from_utf8_lossy(&answer.body));

        let list = Request::get("/upload?everything").body(Script::default());
        let list = server.send_bounded(list.unwrap()).await.json();
        let stored = list["uploads"].as_array().unwrap().iter();
        let stored: u64 = stored.map(|u| u["received"].as_u64().unwrap()).sum();
        let deliveries = server.inner.take();
        let delivered: u64 = deliveries.iter().map(|delivery| delivery.size).sum();
        assert!(stored + delivered <= body.len() as u64);
        let can_store = [Method::POST, Method::PUT, Method::PATCH].contains(&method);
        assert!(deliveries.is_empty() || can_store && answer.status == 200);
        assert!(stored == 0 || can_store && answer.status == 200);
        assert!(
            answer.status != PASSED || deliveries.is_empty() && stored == 0,
            "a passed request was stored or delivered"
        );

        // A repeated request, which clients send, gets the same answer.
        let again = server.send_bounded(request()).await;
        assert_eq!(again.status, answer.status);
        assert_eq!(again.message(), answer.message());
    });
}

fn layer(dialects: u8) -> ResumableLayer {
    let defaults = [
        Dialect::resumable_js(),
        Dialect::flow_js(),
        Dialect::dropzone(),
        Dialect::fine_uploader(),
    ];
    let whole_files = (dialects & 1 == 0).then(Protocol::plain);
    let protocols = defaults.into_iter().map(Protocol::from).chain(whole_files);
    let layer = ResumableLayer::new(MemoryStore::default())
        .with_list_parameter("everything")
        .with_protocols(protocols);
    let others = [
        Dialect::simple_uploader(),
        Dialect::plupload(),
        Dialect::web_uploader(4),
        Dialect::blueimp(),
        Dialect::filepond(),
        Dialect::huge_uploader(4),
        Dialect::bootstrap_fileinput(),
    ];
    let others = others.into_iter().enumerate();
    others
        .filter(|(at, _)| dialects >> (at + 1) & 1 == 1)
        .fold(layer, |layer, (_, dialect)| layer.with_protocol(dialect))
}

#[track_caller]
fn assert_is_ours(text: &str) {
    assert!(
        !text.contains(['<', '>']),
        "the answer repeats a client's text: {text}"
    );
    assert!(
        !text.contains(CANARY.trim_end_matches('<')),
        "the answer repeats a client's text: {text}"
    );
}

fn escaped(query: &[u8]) -> String {
    let mut text = String::with_capacity(query.len());
    for &byte in query {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => text.push(byte.into()),
            _ if b"-._~!$&'()*+,;=:@/?%[]".contains(&byte) => text.push(byte.into()),
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}
