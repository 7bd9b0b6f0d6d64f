//! Valid requests at the wrong time, repeated, concurrent, or from another owner.

use std::time::Duration;

use futures_util::{StreamExt as _, future::join_all, stream};
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower_resumable::{Delivery, Refusal, ResumableLayer, Retention};

use super::case;
use crate::{
    client::{ALL, Client, File, Way, part},
    common::{BOUNDARY, FilePart},
    wire::{Answer, read_answer},
    world::{Case, DELIVERED, NEIGHBOUR, Passed, Reply, World},
};

pub const CASES: &[Case] = &[
    case!(
        "T12",
        "probes and preflights change nothing",
        changes_nothing
    ),
    case!(
        "57",
        "a repeated chunk, with the same bytes, with other bytes",
        again
    ),
    case!(
        "58",
        "one chunk in two requests, one of which stalls",
        stalled
    ),
    case!(
        "59",
        "all chunks three times, concurrently, in any order",
        thrice
    ),
    case!("60", "two concurrent last chunks", two_last),
    case!(
        "61",
        "chunks after the delivery, with the same bytes, with other bytes",
        after
    ),
    case!(
        "62",
        "the client disconnects during the last chunk, and after it",
        gone
    ),
    case!(
        "63",
        "a service that fails, panics, or takes too long",
        failing
    )
    .with(|layer| layer.with_delivery(Delivery::default().with_timeout(Duration::from_secs(2)))),
    case!("64", "a service that rejects the upload", refusing),
    case!("65", "a probe after the delivery", probe_after),
    case!(
        "66",
        "a probe of another owner's chunk is answered as if it were absent",
        foreign_probes
    ),
    case!(
        "66",
        "another owner's upload cannot be finished, cancelled or listed",
        foreign
    ),
    case!("67", "the same request from two owners", two_owners),
    case!(
        "68",
        "fields without a file, and a file without bytes",
        no_file
    ),
    case!("69", "requests that are not uploads pass unchanged", passes),
    case!("70", "requests from other sites, with a guard", cross_site).with(guarded),
    case!("71", "an old chunk of an expired upload", expired),
];

async fn changes_nothing(world: &World) {
    for (client, way) in world.clients() {
        // One upload that has begun, and one that has not.
        let file = world.file(client, way);
        world.begin(&file).await;
        let none = world.file(client, way);
        let (before, all) = (world.state(&file).await, world.all_of(&file.user).await);
        for file in [&file, &none] {
            for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
                let request = file.probe().replacen("GET", method, 1);
                let mut socket = TcpStream::connect(world.addr).await.unwrap();
                let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
                socket.write_all(request.as_bytes()).await.unwrap();
                // An answer to `HEAD` has a length, but no body.
                let mut answer = String::new();
                socket.read_to_string(&mut answer).await.unwrap();
                world.note_status(answer[9..12].parse().unwrap());
            }
        }
        let passed = world.passed().len();
        assert_eq!(world.all_of(&file.user).await, all);
        assert_eq!(world.deliveries().len(), 0, "{passed} passed");
        let now = world.state(&file).await;
        assert!(now.is_stored_as(&before), "{now:?}");
        // The probes did not create an upload, and do not prevent one.
        assert_eq!(world.attack_bytes(none.probe()).await.status, 204);
        assert_eq!(world.attack_bytes(file.cancel()).await.status, 204);
    }
}

async fn again(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        world.begin(&file).await;
        let before = world.state(&file).await;
        for (content, expected) in [
            (file.content[..10].to_vec(), 200),
            (vec![7; 10], client.refusal()),
        ] {
            let answer = world.attack(&file.chunk(1).content(&content)).await;
            assert_eq!(answer.status, expected, "{answer:?}");
            world.unchanged(&file, &before, "a duplicate").await;
        }
        world.finish(&file).await;
    }
}

/// A request of which only a part is sent.
struct Half {
    socket: TcpStream,
    rest: Vec<u8>,
}

impl Half {
    async fn open(world: &World, chunk: &crate::client::Chunk) -> Self {
        let mut socket = TcpStream::connect(world.addr).await.unwrap();
        let mut all = chunk.bytes();
        let rest = all.split_off(all.len() - 30);
        socket.write_all(&all).await.unwrap();
        Self { socket, rest }
    }

    async fn finish(mut self) -> Answer {
        let _ = self.socket.write_all(&self.rest).await;
        read_answer(&mut self.socket).await
    }
}

async fn stalled(world: &World) {
    let file = world
        .file(Client::Resumable, Way::Both)
        .sized(2 << 20, 1 << 20);
    world.begin(&file).await;
    let half = Half::open(world, &file.chunk(2).content(&vec![7; 1 << 20])).await;
    let before = world.deliveries().len();
    // The second request waits for a while, and then proceeds.
    let answer = world.attack(&file.chunk(2)).await;
    assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
    world.delivered(before, &file);
    let late = half.finish().await;
    world.note(&late);
    assert!([0, 200, 503].contains(&late.status), "{late:?}");
    world.delivered(before, &file);
}

async fn thrice(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(205, 10);
        let before = world.deliveries().len();
        let mut numbers: Vec<_> = (1..=file.chunks()).flat_map(|n| [n; 3]).collect();
        let mut x = 7_usize;
        numbers.sort_by_cached_key(|_| {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695);
            x >> 33
        });
        let file = &file;
        let sending = numbers.into_iter().map(|number| async move {
            let answer = world.attack(&file.chunk(number)).await;
            assert_eq!(answer.status, 200, "chunk {number}: {answer:?}");
        });
        stream::iter(sending)
            .buffer_unordered(6)
            .collect::<Vec<_>>()
            .await;
        world.delivered(before, file);
    }
}

async fn two_last(world: &World) {
    for round in 0..50 {
        let (client, way) = ALL[round % ALL.len()];
        let file = world.file(client, way).sized(20, 10);
        world.begin(&file).await;
        let before = world.deliveries().len();
        let last = file.chunk(2);
        for answer in join_all([world.attack(&last), world.attack(&last)]).await {
            assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
        }
        world.delivered(before, &file);
    }
}

async fn after(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        world.accepted(&file, |chunk| chunk).await;
        let deliveries = world.deliveries();
        let path = deliveries
            .last()
            .and_then(|delivery| delivery.upload.path().map(ToOwned::to_owned));
        let look = || {
            path.as_ref().map(|path| {
                let metadata = path.metadata().unwrap();
                (
                    std::fs::read(path).unwrap(),
                    metadata.modified().unwrap(),
                    inode(&metadata),
                )
            })
        };
        let before = look();
        for number in 1..=file.chunks() {
            let chunk = file.chunk(number);
            let len = file.layout()[number - 1].len();
            let answer = world.attack(&chunk).await;
            assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
            let answer = world.attack(&chunk.content(&vec![7; len])).await;
            // A store that still knows the checksum of the chunk sees that the file has changed.
            if answer.status != client.refusal() || !answer.text().contains("conflict") {
                assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
            }
        }
        assert_eq!(world.deliveries().len(), deliveries.len());
        assert_eq!(look(), before);
    }
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}

async fn gone(world: &World) {
    let mut files = Vec::new();
    let whole = File::new(Client::Resumable, Way::Both, NEIGHBOUR, 0)
        .chunk(2)
        .bytes()
        .len();
    for sent in (whole / 2..=whole).step_by(whole / 40) {
        let file = world.file(Client::Resumable, Way::Both);
        world.begin(&file).await;
        let bytes = file.chunk(2).bytes();
        let mut socket = TcpStream::connect(world.addr).await.unwrap();
        socket
            .write_all(&bytes[..sent.min(bytes.len())])
            .await
            .unwrap();
        // The client closes the connection at once, whatever the server is doing.
        drop(socket);
        files.push(file);
    }
    for file in &files {
        let answer = world.attack(&file.chunk(2)).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
    }
    let deliveries = world.deliveries();
    assert_eq!(deliveries.len(), files.len());
    for file in &files {
        let of_file = |d: &&crate::world::Delivery| d.upload.identifier() == file.identifier;
        let mut found = deliveries.iter().filter(of_file);
        world.is_file(found.next().unwrap(), file);
        assert!(found.next().is_none());
    }
}

async fn failing(world: &World) {
    for reply in [
        Reply::Status(500),
        Reply::Status(502),
        Reply::Status(503),
        Reply::Status(408),
        Reply::Status(429),
        Reply::Panic,
        Reply::Held,
    ] {
        let file = world.file(Client::Resumable, Way::Both);
        world.begin(&file).await;
        let before = world.deliveries().len();
        world.script([reply]);
        let answer = world.attack(&file.chunk(2)).await;
        assert_eq!(answer.status, 503, "{reply:?}: {answer:?}");
        assert!(answer.header("retry-after").is_some() || !answer.text().contains("code"));
        world.delivered(before, &file);
        if let Reply::Held = reply {
            // The upload is not delivered twice in the meantime, and the next attempt gets the
            // answer.
            world.release_call();
            let mut answer = answer;
            while answer.status == 503 {
                answer = world.attack(&file.chunk(1)).await;
            }
            assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
            world.delivered(before, &file);
            continue;
        }
        // A client that was told that the chunk is stored would never send it again.
        let probe = world.attack_bytes(file.probe()).await;
        assert_eq!(probe.status, 204, "{reply:?}: {probe:?}");
        let answer = world.attack(&file.chunk(1)).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
        let deliveries = &world.deliveries()[before..];
        let attempts: Vec<_> = deliveries.iter().map(|d| d.upload.attempt()).collect();
        assert_eq!(attempts, [1, 2]);
        assert_eq!(deliveries[0].upload.id(), deliveries[1].upload.id());
        world.is_file(&deliveries[1], &file);
    }
}

async fn refusing(world: &World) {
    for (client, way) in world.clients() {
        for status in [400, 409, 410, 413, 415, 422, 451] {
            let file = world.file(client, way);
            let before = world.deliveries().len();
            world.script([Reply::Status(status)]);
            for number in 1..file.chunks() {
                assert_eq!(world.attack(&file.chunk(number)).await.status, 200);
            }
            let last = file.chunk(file.chunks());
            for _ in 0..2 {
                let answer = world.attack(&last).await;
                let expected = if status == 415 { 415 } else { client.refusal() };
                assert_eq!(answer.status, expected, "{status}: {answer:?}");
                let original = answer.header("x-resumable-status").map(ToOwned::to_owned);
                let changed = (status != expected).then(|| status.to_string());
                assert_eq!(original, changed);
            }
            let delivery = &world.deliveries()[before..];
            assert_eq!(delivery.len(), 1);
            assert!(delivery[0].upload.path().is_none_or(|path| !path.exists()));
            // A probe is answered with "not stored", so the client sends the chunk and then gets
            // the refusal.
            assert_eq!(world.attack_bytes(file.probe()).await.status, 204);
        }
    }
}

async fn probe_after(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        world.accepted(&file, |chunk| chunk).await;
        let before = world.deliveries().len();
        let answer = world.attack_bytes(file.probe()).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
        assert_eq!(world.deliveries().len(), before);
    }
}

/// All of an answer except its date.
fn dateless(answer: &Answer) -> (u16, String, Vec<u8>) {
    let lines = answer
        .head
        .lines()
        .filter(|line| !line.to_lowercase().starts_with("date:"));
    (answer.status, lines.collect(), answer.body.clone())
}

async fn foreign_probes(world: &World) {
    // The neighbour's chunk is stored under the same fields.
    let file = world.file(Client::Resumable, Way::Both);
    let absent = world.file(Client::Resumable, Way::Both);
    for asking in [File::probe, File::status, File::cancel] {
        let foreign = world.attack_bytes(asking(&file)).await;
        let none = world.attack_bytes(asking(&absent)).await;
        assert_eq!(dateless(&foreign), dateless(&none));
    }
    assert_eq!(world.attack_bytes(file.probe()).await.status, 204);
    let neighbour = File::new(Client::Resumable, Way::Both, NEIGHBOUR, 0);
    assert_eq!(world.attack_bytes(neighbour.probe()).await.status, 200);
}

async fn foreign(world: &World) {
    let neighbour = File::new(Client::Resumable, Way::Both, NEIGHBOUR, 0);
    let before = world.state(&neighbour).await;
    let file = world.file(Client::Resumable, Way::Both);
    // The last chunk of the neighbour's file, and the same chunk in an upload of the attacker that
    // has no other chunk.
    let answer = world.attack(&file.chunk(2)).await;
    assert_eq!(answer.status, 200);
    assert_ne!(answer.text(), DELIVERED);
    world
        .unchanged(&neighbour, &before, "another owner's last chunk")
        .await;
    let list = world.unfinished(&file.user).await;
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(world.attack_bytes(file.cancel()).await.status, 204);
    world
        .unchanged(&neighbour, &before, "another owner's cancellation")
        .await;
    assert_eq!(world.attack_bytes(file.probe()).await.status, 204);
}

async fn two_owners(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let mut other = File {
            user: "eve".into(),
            ..file.clone()
        };
        other.content.reverse();
        let before = world.deliveries().len();
        for number in 1..=file.chunks() {
            let both = [file.chunk(number), other.chunk(number)];
            for answer in join_all(both.iter().map(|chunk| world.attack(chunk))).await {
                assert_eq!(answer.status, 200, "{answer:?}");
            }
        }
        let deliveries = &world.deliveries()[before..];
        assert_eq!(deliveries.len(), 2);
        for file in [&file, &other] {
            let delivery = deliveries
                .iter()
                .find(|d| d.upload.scope().as_str() == file.user);
            world.is_file(delivery.unwrap(), file);
        }
    }
}

async fn no_file(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let mut attacks = vec![("no bytes".to_owned(), file.chunk(2).content(b""))];
        if way != Way::Octets && client != Client::Flow {
            let mut chunk = file.chunk(2);
            chunk.file = Vec::new();
            attacks.push(("no file".into(), chunk));
            // A file under an unexpected part name is not accepted either.
            let mut chunk = file.chunk(2);
            chunk.file = part("other", "x", b"0123456789");
            attacks.push(("another file".into(), chunk));
        }
        world.refused(&file, "", attacks).await;
    }
    // flow.js can be configured to probe in this way.
    let file = world.file(Client::Flow, Way::Form);
    let mut chunk = file.chunk(1);
    chunk.file = Vec::new();
    world.begin(&file).await;
    let before = world.state(&file).await;
    assert_eq!(world.attack(&chunk).await.status, 200);
    world.unchanged(&file, &before, "a probe").await;
    world.finish(&file).await;
}

async fn passes(world: &World) {
    let query =
        "?resumableIdentifier=a&resumableTotalSize=1&resumableChunkNumber=1&resumableChunkSize=1";
    let form = crate::common::form(&[("a".into(), "b".into())], FilePart::named("x"), b"bytes");
    let multipart = format!("multipart/form-data; boundary={BOUNDARY}");
    let cases: [(&str, String, &str, &[u8]); 9] = [
        ("POST", "/upload".into(), "text/plain", b"hello"),
        (
            "POST",
            "/upload?a=b;resumableChunkNumbe=1".into(),
            "application/json",
            b"{}",
        ),
        ("GET", "/upload".into(), "text/plain", b""),
        (
            "GET",
            "/upload?RESUMABLEIDENTIFIER=a".into(),
            "text/plain",
            b"",
        ),
        ("OPTIONS", format!("/upload{query}"), "text/plain", b""),
        (
            "POST",
            format!("/upload/{query}"),
            "application/octet-stream",
            b"hello",
        ),
        (
            "POST",
            format!("/Upload{query}"),
            "application/octet-stream",
            b"hello",
        ),
        (
            "POST",
            format!("/upload/../upload{query}"),
            "application/octet-stream",
            b"hello",
        ),
        ("POST", "/other".into(), &multipart, &form),
    ];
    for (method, uri, kind, body) in cases {
        let before = world.passed().len();
        let head = format!(
            "{method} {uri} HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let answer = world.attack_bytes([head.as_bytes(), body].concat()).await;
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "passed"),
            "{method} {uri}"
        );
        let passed = Passed {
            method: method.parse().unwrap(),
            uri,
            body: body.to_vec(),
        };
        assert_eq!(world.passed()[before..], [passed]);
    }
    assert!(world.deliveries().is_empty());
}

/// Refuses requests of other sites, as an outer layer or this hook does: a form needs no preflight.
fn guarded(layer: ResumableLayer) -> ResumableLayer {
    layer.with_admission(|admission| {
        let site = admission.parts().headers.get("sec-fetch-site");
        let foreign = site.is_some_and(|site| site != "same-origin" && site != "none");
        async move {
            if foreign {
                Err(Refusal::new(StatusCode::FORBIDDEN, "not from here"))
            } else {
                Ok(())
            }
        }
    })
}

async fn cross_site(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let attacks = ["cross-site", "same-site"].map(|site| {
            let mut chunk = file.chunk(2);
            chunk.headers = format!("sec-fetch-site: {site}\r\n");
            (site.to_owned(), chunk)
        });
        world.refused(&file, "refused", attacks.into()).await;
    }
}

async fn expired(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        world.begin(&file).await;
        // The neighbour's upload has expired too, and begins again.
        let all = Retention::default().with_abandoned(Duration::ZERO);
        let uploads = world.layer.clone().with_retention(all).uploads();
        while world.attack_bytes(file.probe()).await.status != 204 {
            tokio::time::sleep(Duration::from_millis(2)).await;
            uploads.sweep().await.unwrap();
        }
        let last = file.chunks();
        let answer = world.attack(&file.chunk(last)).await;
        assert_eq!(answer.status, 200);
        assert_ne!(answer.text(), DELIVERED, "the old bytes are removed");
        let before = world.deliveries().len();
        for number in 1..last {
            world.attack(&file.chunk(number)).await;
        }
        world.delivered(before, &file);
    }
    let neighbour = File::new(Client::Resumable, Way::Both, NEIGHBOUR, 0);
    world.begin(&neighbour).await;
}
