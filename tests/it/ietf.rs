//! Uploads of clients that speak the IETF draft.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_resumable::{
    BucketStore, Dialect, FileStore, Interim, Limits, MemoryStore, Protocol, Refusal,
    ResumableLayer,
    store::{Durability, Filter},
};

use crate::{
    common::{
        Answer, Client, begin,
        draft::{Draft, Exchange},
    },
    tus::{
        LETTERS, Server, answer,
        captures::{Replay, requests},
        header, stored,
    },
};

const PARTIAL: (&str, &str) = ("content-type", "application/partial-upload");
const OVER: (&str, &str) = ("upload-complete", "?1");
const MORE: (&str, &str) = ("upload-complete", "?0");

/// A client on one connection.
struct Plain(Client);

impl Plain {
    async fn of(server: &Server) -> Self {
        Self(Client::connect(server.addr).await)
    }

    async fn send(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        self.0.ask(method, url, headers, body).await
    }

    async fn create(&mut self, headers: &[(&str, &str)]) -> String {
        let answer = self.send("POST", "/files", headers, "").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        header(&answer, "location").to_owned()
    }

    async fn patch(
        &mut self,
        url: &str,
        offset: usize,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let offset = offset.to_string();
        let own = [PARTIAL, ("upload-offset", &offset)];
        self.send("PATCH", url, &[&own, headers].concat(), body)
            .await
    }
}

#[track_caller]
fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(header(answer, "upload-complete"), "?0");
    assert_eq!(header(answer, "content-type"), "application/problem+json");
    assert_eq!(answer.json()["code"], code);
}

/// The recordings of the draft clients, the requests that were refused with 503, and the statuses.
#[tokio::test]
async fn recorded_clients_get_the_answers_that_they_need() {
    for (capture, faults, statuses) in [
        ("curl-7.88-ietf-upgrade", &[][..], &[200][..]),
        ("curl-7.88-ietf-v3-upgrade", &[], &[200]),
        // A preflight request is for the layer outside of this one.
        (
            "tus-js-client-4.3.1-browser-ietf05",
            &[],
            &[200, 201, 200, 201, 201, 200],
        ),
        ("tus-js-client-4.3.1-ietf03", &[], &[201, 201, 201, 200]),
        ("tus-js-client-4.3.1-ietf03-creation", &[], &[200]),
        ("tus-js-client-4.3.1-ietf05", &[], &[201, 201, 201, 200]),
        (
            "tus-js-client-4.3.1-ietf05-defer",
            &[],
            &[201, 201, 201, 200],
        ),
        (
            "tus-js-client-4.3.1-ietf05-defer-exact",
            &[],
            &[201, 201, 200],
        ),
        (
            "tus-js-client-4.3.1-ietf05-last503",
            &[4],
            &[201, 201, 201, 503, 204, 200],
        ),
        (
            "tus-js-client-4.3.1-ietf05-parallel",
            &[],
            &[201, 201, 201, 201, 201, 201, 200],
        ),
        (
            "tus-js-client-4.3.1-ietf05-patch503",
            &[3],
            &[201, 201, 503, 204, 201, 200],
        ),
        (
            "tus-js-client-5.0.0-pre2-ietf05",
            &[],
            &[201, 201, 201, 200],
        ),
    ] {
        let server = Server::with(|layer| {
            layer.with_admission(|asked| {
                let is_fault = asked.parts().headers.contains_key("x-fault");
                let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "as recorded");
                let answer = if is_fault { Err(refusal) } else { Ok(()) };
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
        assert_eq!(got, statuses, "{capture}");
        let deliveries = server.deliveries();
        let [delivery] = &deliveries[..] else {
            panic!("{capture} {deliveries:?}");
        };
        if capture.starts_with("curl") {
            continue;
        }
        let is_exact = capture.ends_with("exact");
        let expected = if is_exact { &LETTERS[..20] } else { LETTERS };
        assert_eq!(delivery.content, expected, "{capture}");
        assert_eq!(delivery.method, "POST");
        assert_eq!(delivery.upload.file_name(), Some("xé.txt"), "{capture}");
    }
}

/// An upload in one request, and one in many, with each version.
#[tokio::test]
async fn each_version_is_spoken() {
    for version in [None, Some(3), Some(4), Some(5), Some(6), Some(7), Some(8)] {
        let server = Server::start().await;
        let draft = Draft::new(server.addr, "/files", version);
        let letters = LETTERS.as_bytes();
        let headers = draft.creating(true, Some(25));
        let whole = draft.ask("POST", "/files", headers, Some(letters)).await;
        let whole = whole.unwrap();
        let answer = whole.answer();
        assert_eq!((answer.status, answer.text()), (200, "taken".into()));
        assert_eq!(draft.is_final(answer), Some(true));
        assert_eq!(answer.offset(), Some(25));
        let url = answer.header("location").unwrap().to_owned();
        let head = draft.head(&url).await.unwrap();
        assert_eq!((head.status, head.offset()), (204, Some(25)), "{version:?}");
        assert_eq!(draft.is_final(&head), Some(true), "{version:?}");

        let headers = draft.creating(false, None);
        let created = draft.ask("POST", "/files", headers, Some(b"")).await;
        let created = created.unwrap();
        let answer = created.answer();
        assert_eq!((answer.status, answer.offset()), (201, Some(0)));
        let url = answer.header("location").unwrap().to_owned();
        for (at, end) in [(0, 10), (10, 25)] {
            let headers = draft.appending(at as u64, false);
            let part = draft.ask("PATCH", &url, headers, Some(&letters[at..end]));
            let part = part.await.unwrap();
            let expected = if version.is_some_and(|it| it <= 6) {
                201
            } else {
                204
            };
            assert_eq!(part.answer().status, expected, "{version:?}");
            assert_eq!(part.answer().offset(), Some(end as u64));
            assert_eq!(draft.is_final(part.answer()), Some(false));
        }
        let head = draft.head(&url).await.unwrap();
        assert_eq!((head.status, head.offset()), (204, Some(25)));
        assert_eq!(draft.is_final(&head), Some(false), "{version:?}");
        assert_eq!(server.contents(), [LETTERS]);
        let headers = draft.appending(25, true);
        let last = draft.ask("PATCH", &url, headers, Some(b"")).await.unwrap();
        assert_eq!(
            (last.answer().status, last.answer().text()),
            (200, "taken".into())
        );
        assert_eq!(draft.is_final(last.answer()), Some(true));
        assert_eq!(server.contents(), [LETTERS, LETTERS]);

        let headers = draft.creating(false, None);
        let created = draft.ask("POST", "/files", headers, Some(b"abc")).await;
        let created = created.unwrap();
        assert_eq!(
            (created.answer().status, created.answer().offset()),
            (201, Some(3))
        );
        let url = created.answer().header("location").unwrap().to_owned();
        assert_eq!(draft.delete(&url).await.unwrap().status, 204);
        assert_eq!(draft.head(&url).await.unwrap().status, 404);
        assert_eq!(draft.delete(&url).await.unwrap().status, 404);
    }
}

/// In the first version, a `PATCH` that says nothing completes the upload.
#[tokio::test]
async fn version_3_completes_without_saying_so() {
    let server = Server::start().await;
    let mut client = Plain::of(&server).await;
    let version = ("upload-draft-interop-version", "3");
    let url = client.create(&[version, ("upload-incomplete", "?1")]).await;
    let invalid = [version, ("upload-offset", "0"), ("upload-incomplete", "no")];
    let refused = client.send("PATCH", &url, &invalid, LETTERS).await;
    assert_eq!(refused.status, 400);
    let headers = [version, ("upload-offset", "0")];
    let last = client.send("PATCH", &url, &headers, LETTERS).await;
    assert_eq!((last.status, last.body.as_str()), (200, "taken"));
    assert_eq!(header(&last, "upload-incomplete"), "?0");
    assert_eq!(server.contents(), [LETTERS]);
}

#[tokio::test]
async fn the_handler_sees_the_request_that_created_the_upload() {
    let server = Server::with(|layer| layer.with_matcher(|_| true)).await;
    let mut client = Plain::of(&server).await;
    let creating = [
        MORE,
        ("content-type", "image/png"),
        (
            "content-disposition",
            "inline; filename=\"a%20b.png\"; filename*=UTF-8''%e2%82%ac.png",
        ),
        ("content-language", "de"),
        ("x-user", "old"),
        ("authorization", "old"),
    ];
    let created = client.send("PUT", "/photos/7?x=1", &creating, "abc").await;
    assert_eq!(created.status, 201, "{created:?}");
    let url = header(&created, "location").to_owned();
    assert!(url.starts_with("/photos/7?upload="), "{url}");
    let last = client
        .patch(&url, 3, &[OVER, ("authorization", "new")], &LETTERS[3..])
        .await;
    assert_eq!((last.status, last.body.as_str()), (200, "taken"));
    let deliveries = server.deliveries();
    let [delivery] = &deliveries[..] else {
        panic!("{deliveries:?}");
    };
    assert_eq!(delivery.content, LETTERS);
    assert_eq!(delivery.method, "PUT");
    assert_eq!(delivery.uri, "/photos/7?x=1");
    let mut headers: Vec<_> = delivery
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .filter(|(name, _)| *name != "host")
        .collect();
    headers.sort_unstable();
    let expected = [
        ("authorization", "new"),
        ("content-disposition", creating[2].1),
        ("content-language", "de"),
        ("content-type", "image/png"),
    ];
    assert_eq!(headers, expected);
    assert_eq!(delivery.upload.file_name(), Some("€.png"));
    assert_eq!(delivery.upload.content_type(), Some("image/png"));
}

#[tokio::test]
async fn lengths_have_to_agree_and_do_not_complete() {
    const TYPE: &str = "https://iana.org/assignments/http-problem-types#inconsistent-upload-length";
    let server = Server::start().await;
    let mut client = Plain::of(&server).await;
    // At the creation.
    for length in ["24", "26"] {
        let headers = [OVER, ("upload-length", length)];
        let refused = client.send("POST", "/files", &headers, LETTERS).await;
        assert_eq!(refused.json()["type"], TYPE, "{refused:?}");
        assert_eq!(
            (refused.status, header(&refused, "upload-complete")),
            (400, "?0")
        );
    }
    // Values that are not integers of a structured field are ignored.
    for length in ["+25", "25, 25", "abc", "-1", "1000000000000000"] {
        let headers = [OVER, ("upload-length", length)];
        let taken = client.send("POST", "/files", &headers, LETTERS).await;
        assert_eq!(taken.status, 200, "{length}");
    }
    let before = server.contents().len();
    let url = client.create(&[MORE, ("upload-length", "25")]).await;
    for (headers, body) in [
        (&[MORE, ("upload-length", "24")][..], "abc"),
        (&[OVER], "abc"),
        (&[OVER, ("upload-length", "24")], LETTERS),
    ] {
        let refused = client.patch(&url, 0, headers, body).await;
        assert_problem(&refused, 400, "inconsistent_length");
        assert_eq!(refused.json()["type"], TYPE);
    }
    let all = client.patch(&url, 0, &[MORE], LETTERS).await;
    assert_eq!((all.status, header(&all, "upload-complete")), (204, "?0"));
    assert_eq!(server.contents().len(), before, "it is not complete");
    // A stale offset counts first.
    let stale = client.patch(&url, 3, &[OVER], "abc").await;
    assert_problem(&stale, 409, "offset");
    let problem = stale.json();
    assert!(
        problem["type"]
            .as_str()
            .unwrap()
            .ends_with("#mismatching-upload-offset")
    );
    assert_eq!(problem["expected-offset"], 25);
    assert_eq!(problem["provided-offset"], 3);
    assert_eq!(header(&stale, "upload-offset"), "25");
    // More than was declared makes the upload invalid.
    let beyond = client.patch(&url, 25, &[MORE], "z").await;
    assert_problem(&beyond, 400, "out_of_bounds");
    assert_eq!(client.send("HEAD", &url, &[], "").await.status, 404);

    // A length that comes later.
    let url = client.create(&[MORE]).await;
    let head = client.send("HEAD", &url, &[], "").await;
    assert!(!head.headers.contains_key("upload-length"));
    let later = [MORE, ("upload-length", "25")];
    assert_eq!(client.patch(&url, 0, &later, "abc").await.status, 204);
    let head = client.send("GET", &url, &[], "").await;
    assert_eq!(header(&head, "upload-length"), "25");
    let refused = client.patch(&url, 3, &[OVER], "d").await;
    assert_problem(&refused, 400, "inconsistent_length");
    let last = client.patch(&url, 3, &[OVER], &LETTERS[3..]).await;
    assert_eq!(last.status, 200);
}

/// Another server, or this one after a restart, knows it too.
#[tokio::test]
async fn a_length_that_comes_later_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let bucket = Arc::new(object_store::memory::InMemory::new());
    let taken = |_| answer(200, &[], "taken");
    let on_files = || async {
        let files = FileStore::open(dir.path()).unwrap();
        Server::on(files, |layer| layer, taken).await
    };
    let on_bucket = || async {
        let bucket = BucketStore::open(Arc::clone(&bucket)).await.unwrap();
        Server::on(bucket, |layer| layer, taken).await
    };
    for [first, second] in [
        [on_files().await, on_files().await],
        [on_bucket().await, on_bucket().await],
    ] {
        let mut client = Plain::of(&first).await;
        let url = client.create(&[MORE]).await;
        let later = [MORE, ("upload-length", "25")];
        assert_eq!(client.patch(&url, 0, &later, "abc").await.status, 204);
        let mut client = Plain::of(&second).await;
        let head = client.send("HEAD", &url, &[], "").await;
        assert_eq!(header(&head, "upload-length"), "25");
        let refused = client.patch(&url, 3, &[OVER], "d").await;
        assert_problem(&refused, 400, "inconsistent_length");
        // Nor does it complete the upload.
        let all = client.patch(&url, 3, &[MORE], &LETTERS[3..]).await;
        assert_eq!(all.status, 204);
        assert!(second.contents().is_empty());
        let last = client.patch(&url, 25, &[OVER], "").await;
        assert_eq!(
            (last.status, second.contents()),
            (200, vec![LETTERS.to_owned()])
        );
    }
}

/// The length of a body may only be known at its end.
#[tokio::test]
async fn a_body_of_unknown_length_has_to_fit() {
    let server = Server::start().await;
    let mut client = Plain::of(&server).await;
    for (body, status, is_left) in [
        ("a\r\nabcdefghij\r\n0\r\n\r\n", 200, true),
        ("5\r\nabcde\r\n0\r\n\r\n", 400, true),
        ("b\r\nabcdefghijk\r\n0\r\n\r\n", 400, false),
    ] {
        let url = client.create(&[MORE, ("upload-length", "10")]).await;
        let request = format!(
            "PATCH {url} HTTP/1.1\r\nhost: x\r\nupload-offset: 0\r\nupload-complete: ?1\r\n\
             content-type: {}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n{body}",
            PARTIAL.1
        );
        let mut socket = TcpStream::connect(server.addr).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        let head = client.send("HEAD", &url, &[], "").await;
        assert_eq!(head.status == 204, is_left, "{body} {head:?}");
    }
    assert_eq!(server.contents(), ["abcdefghij"]);
}

#[tokio::test]
async fn digests_are_checked() {
    const OTHER: &str = "sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:";
    let right = BASE64_STANDARD.encode(Sha256::digest(LETTERS));
    let right = format!("sha-256=:{right}:");
    let server = Server::start().await;
    let mut client = Plain::of(&server).await;
    let url = client.create(&[MORE, ("repr-digest", &right)]).await;
    let damaged = client
        .patch(&url, 0, &[MORE, ("content-digest", OTHER)], "abc")
        .await;
    assert_problem(&damaged, 400, "digest_mismatch");
    let head = client.send("HEAD", &url, &[], "").await;
    assert_eq!(header(&head, "upload-offset"), "0");
    let last = client
        .patch(&url, 0, &[OVER, ("content-digest", &right)], LETTERS)
        .await;
    assert_eq!(last.status, 200, "{last:?}");
    // The digest of the whole file is compared before the delivery.
    let url = client.create(&[MORE, ("repr-digest", OTHER)]).await;
    let last = client.patch(&url, 0, &[OVER], LETTERS).await;
    assert_problem(&last, 400, "file_digest_mismatch");
    assert_eq!(server.contents(), [LETTERS]);
    let broken = [MORE, ("repr-digest", "sha-256=:x:")];
    let refused = client.send("POST", "/files", &broken, "").await;
    assert_problem(&refused, 400, "invalid_field");
}

#[tokio::test]
async fn limits_are_told() {
    let limits = Limits::default().with_file_size(100).with_append_size(30);
    let server = Server::with(|layer| layer.with_limits(limits)).await;
    let mut client = Plain::of(&server).await;
    let options = client.send("OPTIONS", "/files", &[], "").await;
    assert_eq!(options.status, 204);
    assert_eq!(
        header(&options, "upload-limit"),
        "max-size=100, max-append-size=30"
    );
    assert!(options.headers.contains_key("tus-version"));
    let too_large = [MORE, ("upload-length", "101")];
    let refused = client.send("POST", "/files", &too_large, "").await;
    assert_problem(&refused, 413, "file_too_large");
    assert_eq!(
        header(&refused, "upload-limit"),
        "max-size=100, max-append-size=30"
    );
    let refused = client
        .send("POST", "/files", &[OVER], &"x".repeat(31))
        .await;
    assert_problem(&refused, 413, "chunk_too_large");
    let created = client.send("POST", "/files", &[MORE], "").await;
    let limit = header(&created, "upload-limit");
    let age = limit
        .strip_prefix("max-size=100, max-append-size=30, max-age=")
        .unwrap();
    assert!(
        (604_000..=604_800).contains(&age.parse::<u64>().unwrap()),
        "{age}"
    );
    // Version 6 has another name for it, and older ones have no limits.
    for (version, expected) in [("6", Some("expires=")), ("5", None), ("3", None)] {
        let headers = [MORE, ("upload-draft-interop-version", version)];
        let created = client.send("POST", "/files", &headers, "").await;
        let limit = created.headers.get("upload-limit");
        let has = |key| limit.is_some_and(|it| it.to_str().unwrap().contains(key));
        assert_eq!(limit.is_some(), expected.is_some(), "{version}");
        assert!(expected.is_none_or(has), "{version} {limit:?}");
    }
    // The target `*` stands for all resources, so the layer has to be on all paths.
    let server = Server::with(|layer| layer.with_matcher(|_| true)).await;
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    let all = b"OPTIONS * HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    socket.write_all(all).await.unwrap();
    let mut text = String::new();
    socket.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 204 "), "{text}");
    assert!(text.contains("\r\nupload-limit: max-size="), "{text}");
    let set_up = |layer: ResumableLayer| layer.with_protocols([Protocol::ietf_draft()]);
    let server = Server::with(set_up).await;
    let mut client = Plain::of(&server).await;
    let options = client.send("OPTIONS", "/files", &[], "").await;
    assert!(header(&options, "upload-limit").starts_with("max-size="));
    assert!(!options.headers.contains_key("tus-version"));
}

/// What is no request of the draft stays what it is, or is refused.
#[tokio::test]
async fn other_requests_stay_what_they_are() {
    let set_up = |layer: ResumableLayer| layer.with_protocol(Dialect::filepond());
    let server = Server::with(set_up).await;
    let mut client = Plain::of(&server).await;
    // Headers that URLSession adds to all requests.
    let added = [OVER, ("upload-draft-interop-version", "6")];
    let form = [("content-type", "multipart/form-data; boundary=B")];
    let body = "--B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.txt\"\r\n\r\n\
                abc\r\n--B--\r\n";
    let whole = client
        .send("POST", "/files", &[&added[..], &form].concat(), body)
        .await;
    assert_eq!((whole.status, whole.body.as_str()), (200, "taken"));
    let chunk = "/files?resumableIdentifier=1-a&resumableTotalSize=6&resumableChunkNumber=1\
                 &resumableChunkSize=3";
    let stored = client.send("POST", chunk, &added, "abc").await;
    assert!(
        !stored.headers.contains_key("upload-complete"),
        "{stored:?}"
    );
    // A part of a form is no form.
    let part = [&[MORE], &form[..]].concat();
    let refused = client.send("POST", "/files", &part, body).await;
    assert_eq!(refused.status, 400, "{refused:?}");
    // FilePond's.
    let created = client
        .send("POST", "/files", &[("upload-length", "9")], "")
        .await;
    assert!(!created.headers.contains_key("upload-complete"));
    for (method, headers) in [
        ("GET", &[OVER][..]),
        ("DELETE", &[OVER]),
        ("POST", &[("upload-complete", "true")]),
        (
            "POST",
            &[("upload-complete", "?1"), ("upload-complete", "?1")],
        ),
    ] {
        let passed = client.send(method, "/files", headers, "").await;
        assert!(
            passed.body.starts_with("passed "),
            "{method} {headers:?} {passed:?}"
        );
    }
    let gone = client.patch("/files?upload=1", 0, &[MORE], "abc").await;
    assert_problem(&gone, 404, "not_found");
    assert_eq!(server.contents(), ["abc"]);
}

#[tokio::test]
async fn hostile_requests_change_nothing() {
    let server = Server::start().await;
    let mut client = Plain::of(&server).await;
    let url = client.create(&[MORE, ("upload-length", "25")]).await;
    assert_eq!(
        client.patch(&url, 0, &[MORE], &LETTERS[..10]).await.status,
        204
    );
    let at = ("upload-offset", "10");
    for (method, headers, status) in [
        ("PATCH", &[PARTIAL, at][..], 400),
        ("PATCH", &[PARTIAL, at, ("upload-complete", "1")], 400),
        ("PATCH", &[PARTIAL, MORE], 400),
        ("PATCH", &[PARTIAL, MORE, ("upload-offset", "+10")], 400),
        ("PATCH", &[PARTIAL, MORE, ("upload-offset", "-10")], 400),
        ("PATCH", &[PARTIAL, MORE, at, at], 400),
        (
            "PATCH",
            &[PARTIAL, MORE, ("upload-offset", "1000000000000000")],
            400,
        ),
        (
            "PATCH",
            &[PARTIAL, MORE, ("upload-offset", "999999999999999")],
            409,
        ),
        ("PATCH", &[PARTIAL, MORE, ("upload-offset", "9")], 409),
        (
            "PATCH",
            &[PARTIAL, MORE, at, ("content-encoding", "gzip")],
            415,
        ),
        ("PATCH", &[MORE, at], 415),
        ("PATCH", &[MORE, at, ("content-type", "text/plain")], 415),
        ("POST", &[PARTIAL, MORE, at], 405),
        ("PUT", &[PARTIAL, MORE, at], 405),
        ("HEAD", &[at], 400),
        ("HEAD", &[MORE], 400),
        ("HEAD", &[("upload-length", "25")], 400),
        ("DELETE", &[MORE], 400),
    ] {
        let body = if method == "HEAD" { "" } else { "klm" };
        let answer = client.send(method, &url, headers, body).await;
        assert_eq!(answer.status, status, "{method} {headers:?} {answer:?}");
        assert_eq!(header(&answer, "upload-complete"), "?0");
        let head = client.send("HEAD", &url, &[], "").await;
        assert_eq!((head.status, header(&head, "upload-offset")), (204, "10"));
    }
    for (headers, status) in [
        (&[MORE, at][..], 400),
        (&[MORE, ("content-encoding", "gzip")], 415),
    ] {
        let answer = client.send("POST", "/files", headers, "").await;
        assert_eq!(answer.status, status, "{headers:?}");
    }
    let long = "x".repeat(20_000);
    let answer = client
        .send("POST", "/files", &[MORE, ("content-language", &long)], "")
        .await;
    assert_problem(&answer, 400, "invalid_field");
    // Parameters of a structured field.
    let headers = [("upload-complete", "?1;a=b")];
    let last = client.patch(&url, 10, &headers, &LETTERS[10..]).await;
    assert_eq!((last.status, last.body.as_str()), (200, "taken"));
    assert_eq!(server.contents(), [LETTERS]);
}

#[tokio::test]
async fn what_the_inner_service_answers_ends_the_upload() {
    for (status, expected) in [(201, 201), (303, 303), (401, 401), (409, 409), (422, 422)] {
        let inner = [("x-app", "1"), ("content-type", "text/plain")];
        let server = Server::answering(|l| l, move |_| answer(status, &inner, "said")).await;
        let mut client = Plain::of(&server).await;
        let url = client.create(&[MORE]).await;
        let last = client.patch(&url, 0, &[OVER], LETTERS).await;
        assert_eq!((last.status, last.body.as_str()), (expected, "said"));
        assert_eq!(header(&last, "upload-complete"), "?1");
        assert_eq!(header(&last, "upload-offset"), "25");
        assert_eq!(header(&last, "x-app"), "1");
        assert!(!last.headers.contains_key("location"));
        if status == 401 {
            continue;
        }
        // The client has lost the answer.
        let again = client.patch(&url, 25, &[OVER], "").await;
        assert_eq!((again.status, again.body.as_str()), (expected, "said"));
        assert_eq!(header(&again, "upload-complete"), "?1");
        assert_eq!(server.contents().len(), 1);
    }
}

/// All bytes are stored, but the inner service has not taken the file.
#[tokio::test]
async fn an_undelivered_upload_says_so() {
    for status in [401, 503] {
        let server = Server::answering(
            |l| l,
            move |number| match number {
                1 | 2 => answer(status, &[], "later"),
                _ => answer(200, &[], "taken"),
            },
        )
        .await;
        let mut client = Plain::of(&server).await;
        let url = client.create(&[MORE]).await;
        let last = client.patch(&url, 0, &[OVER], LETTERS).await;
        let complete = if status == 503 { "?0" } else { "?1" };
        assert_eq!(
            (last.status, header(&last, "upload-complete")),
            (status, complete)
        );
        let head = client.send("HEAD", &url, &[], "").await;
        assert_eq!((head.status, header(&head, "upload-offset")), (204, "25"));
        assert_eq!(header(&head, "upload-complete"), "?0");
        let last = client.patch(&url, 25, &[OVER], "").await;
        assert_eq!((last.status, last.body.as_str()), (200, "taken"));
        let head = client.send("HEAD", &url, &[], "").await;
        assert_eq!(header(&head, "upload-complete"), "?1");

        // tus-js-client would believe the offset.
        let server = Server::answering(
            |l| l,
            move |number| match number {
                1 | 2 => answer(status, &[], "later"),
                _ => answer(200, &[], "taken"),
            },
        )
        .await;
        let mut client = Plain::of(&server).await;
        let url = client.create(&[MORE, ("upload-metadata", "a Nw==")]).await;
        client.patch(&url, 0, &[OVER], LETTERS).await;
        assert_eq!(client.send("HEAD", &url, &[], "").await.status, 423);
        let head = client.send("HEAD", &url, &[], "").await;
        assert_eq!((head.status, header(&head, "upload-offset")), (204, "25"));
    }
}

/// A client that got no interim response learns the URL with the error.
#[tokio::test]
async fn a_creation_whose_delivery_fails_names_its_url() {
    let inner = |number: usize| answer(if number == 1 { 503 } else { 200 }, &[], "said");
    let server = Server::answering(|layer| layer, inner).await;
    let mut client = Plain::of(&server).await;
    let failed = client.send("POST", "/files", &[OVER], LETTERS).await;
    assert_problem(&failed, 503, "delivery_failed");
    assert_eq!(header(&failed, "upload-offset"), "25");
    let url = header(&failed, "location").to_owned();
    let last = client.patch(&url, 25, &[OVER], "").await;
    assert_eq!((last.status, last.body.as_str()), (200, "said"));
    let deliveries = server.deliveries();
    assert_eq!(deliveries[1].upload.attempt(), 2);
    // A refused creation leaves nothing that has a URL.
    let wrong = [OVER, ("upload-length", "24")];
    let refused = client.send("POST", "/files", &wrong, LETTERS).await;
    assert_problem(&refused, 400, "out_of_bounds");
    assert!(!refused.headers.contains_key("location"));
}

/// The answer of the inner service is the final one, with all of its headers.
#[tokio::test]
async fn cookies_are_for_the_client_of_the_delivery() {
    let inner = [("set-cookie", "a=1"), ("set-cookie", "b=2")];
    let server = Server::answering(|layer| layer, move |_| answer(200, &inner, "")).await;
    let mut client = Plain::of(&server).await;
    let url = client.create(&[MORE]).await;
    let last = client.patch(&url, 0, &[OVER], LETTERS).await;
    let cookies: Vec<_> = last.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
    let again = client.patch(&url, 25, &[OVER], "").await;
    assert_eq!(
        (again.status, again.headers.contains_key("set-cookie")),
        (200, false)
    );
}

#[tokio::test]
async fn the_application_admits_each_request() {
    let server = Server::with(|layer| {
        layer.with_admission(|asked| {
            let purpose = format!("{:?}", asked.purpose());
            let refused = asked.parts().headers.get("x-refuse");
            let is_refused = refused.is_some_and(|refused| *refused == *purpose);
            let refusal = Refusal::new(StatusCode::FORBIDDEN, "no");
            async move { if is_refused { Err(refusal) } else { Ok(()) } }
        })
    })
    .await;
    let mut client = Plain::of(&server).await;
    let url = client.create(&[MORE]).await;
    let at = ("upload-offset", "0");
    for (purpose, method, to, headers, body) in [
        ("Create", "POST", "/files", &[MORE][..], ""),
        ("Create", "POST", "/files", &[OVER], "abc"),
        ("Chunk", "POST", "/files", &[OVER], "abc"),
        ("Chunk", "PATCH", &url, &[PARTIAL, MORE, at], "abc"),
        ("Status", "HEAD", &url, &[], ""),
        ("Status", "GET", &url, &[], ""),
        ("Cancel", "DELETE", &url, &[], ""),
        ("Deliver", "POST", "/files", &[OVER], "abc"),
    ] {
        let refuse = [&[("x-refuse", purpose)], headers].concat();
        let refused = client.send(method, to, &refuse, body).await;
        assert_eq!(refused.status, 403, "{purpose} {method} {refused:?}");
        assert_eq!(header(&refused, "upload-complete"), "?0");
    }
    let head = client.send("HEAD", &url, &[], "").await;
    assert_eq!((head.status, header(&head, "upload-offset")), (204, "0"));
    assert!(server.contents().is_empty());
}

#[tokio::test]
async fn all_stores_resume() {
    let bucket = Arc::new(object_store::memory::InMemory::new());
    let bucket = BucketStore::open(bucket).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let files = FileStore::open(dir.path()).unwrap();
    let taken = |_| answer(200, &[], "taken");
    for server in [
        Server::on(bucket, |layer| layer, taken).await,
        Server::on(files, |layer| layer, taken).await,
    ] {
        let draft = Draft::new(server.addr, "/files", Some(8));
        let uploaded = draft.upload(LETTERS.as_bytes(), &[(10, false)]).await;
        assert_eq!(uploaded.answer.status, 200);
        // More than once, if a question was asked while an append was ending.
        assert!(uploaded.resumed >= 1);
        assert_eq!(server.contents(), [LETTERS]);
    }
}

#[tokio::test]
async fn a_newer_request_takes_over() {
    for method in ["HEAD", "PATCH", "DELETE"] {
        let server = Server::start().await;
        let mut client = Plain::of(&server).await;
        let draft = Draft::new(server.addr, "/files", Some(8));
        let headers = draft.creating(true, Some(25));
        let mut older = Exchange::begin(server.addr, "POST", "/files", &headers, Some(25))
            .await
            .unwrap();
        older.until_announced().await.unwrap();
        let url = older.heard.location().unwrap();
        older.send(&LETTERS.as_bytes()[..10]).await.unwrap();
        stored(&server.uploads, 10).await;
        let answer = match method {
            "PATCH" => client.patch(&url, 10, &[OVER], &LETTERS[10..]).await,
            _ => client.send(method, &url, &[], "").await,
        };
        let expected = if method == "PATCH" { 200 } else { 204 };
        assert_eq!(answer.status, expected, "{method} {answer:?}");
        // The older one has ended. What its client still sends is dropped.
        let _ = older.send(&LETTERS.as_bytes()[10..]).await;
        let ended = older.finish().await.unwrap();
        assert_eq!(ended.answer().status, 503, "{method}");
        assert_eq!(draft.is_final(ended.answer()), Some(false));
        match method {
            "HEAD" => {
                assert_eq!(header(&answer, "upload-offset"), "10");
                let last = client.patch(&url, 10, &[OVER], &LETTERS[10..]).await;
                assert_eq!(last.status, 200);
                assert_eq!(server.contents(), [LETTERS]);
            }
            "PATCH" => assert_eq!(server.contents(), [LETTERS]),
            _ => assert_eq!(client.send("HEAD", &url, &[], "").await.status, 404),
        }
    }
}

/// A client that was cut has appended before the request that created the upload does.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_creation_does_not_remove_what_a_newer_request_has_appended() {
    let inner = service_fn(async |_: Request<Full<Bytes>>| {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("taken")))
    });
    let layer = ResumableLayer::new(MemoryStore::default()).with_path("/files");
    let service = layer.layer(inner);
    let newer = service.clone();
    let url = Arc::new(Mutex::new(String::new()));
    let noted = Arc::clone(&url);
    let interim = Interim::new(move |response| {
        let Some(location) = response.headers().get("location") else {
            return;
        };
        let location = location.to_str().unwrap().to_owned();
        noted.lock().unwrap().clone_from(&location);
        let patch = Request::patch(location)
            .header("upload-offset", "0")
            .header("upload-complete", "?0")
            .header("content-type", PARTIAL.1)
            .body(Full::<Bytes>::from("abc"))
            .unwrap();
        let newer = newer.clone();
        let patched = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            let answer = runtime.block_on(newer.oneshot(patch));
            answer.unwrap().status()
        });
        assert_eq!(patched.join().unwrap(), 204);
    });
    let create = Request::post("/files")
        .header("upload-draft-interop-version", "8")
        .header("upload-complete", "?1")
        .extension(interim)
        .body(Full::<Bytes>::from(LETTERS))
        .unwrap();
    let older = service.clone().oneshot(create).await.unwrap();
    assert_eq!(older.status(), 409);
    let url = url.lock().unwrap().clone();
    let head = Request::head(url).body(Full::default()).unwrap();
    let head = service.oneshot(head).await.unwrap();
    assert_eq!(head.status(), 204);
    assert_eq!(head.headers()["upload-offset"], "3");
}

/// Nothing stays of a request whose client cannot know the URL.
#[tokio::test]
async fn a_cut_request_that_was_not_announced_leaves_nothing() {
    let server = Server::start().await;
    let mut socket = TcpStream::connect(server.addr).await.unwrap();
    let head = "POST /files HTTP/1.1\r\nhost: x\r\nupload-complete: ?1\r\ncontent-length: 25\r\n\
                expect: 100-continue\r\n\r\n";
    begin(&mut socket, head).await;
    socket.write_all(&LETTERS.as_bytes()[..10]).await.unwrap();
    stored(&server.uploads, 10).await;
    drop(socket);
    let is_empty = || async {
        let page = server.uploads.list(&Filter::default(), None).await.unwrap();
        page.uploads.is_empty()
    };
    while !is_empty().await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The promise of the draft: an upload that is cut anywhere is resumed, and taken once.
#[tokio::test]
async fn a_hundred_cut_uploads_are_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::builder(dir.path())
        .with_durability(Durability::Process)
        .open()
        .unwrap();
    let server = Server::on(store, |layer| layer, |_| answer(200, &[], "taken")).await;
    let draft = Draft::new(server.addr, "/files", Some(8));
    let mut random = 0x9e37_79b9_u32;
    let content: String = LETTERS.chars().cycle().take(200_000).collect();
    let (mut again, mut cuts) = (0, 0);
    for number in 0..100 {
        let mut at = || {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            (random as usize % (content.len() + 1), number % 2 == 0)
        };
        let mut places = [at(), at()];
        places.sort_unstable();
        let uploaded = draft.upload(content.as_bytes(), &places).await;
        assert_eq!(uploaded.answer.status, 200, "{number} {uploaded:?}");
        assert!(uploaded.resumed > 0, "{number}");
        again += uploaded.again;
        cuts += places.iter().map(|(at, _)| *at as u64).sum::<u64>();
    }
    let contents = server.contents();
    assert_eq!(contents.len(), 100);
    assert!(contents.iter().all(|it| *it == content));
    assert!(
        again < cuts,
        "what was sent is kept: {again} of {cuts} again"
    );
}
