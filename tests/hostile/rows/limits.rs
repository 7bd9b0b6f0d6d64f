//! Each limit of [`Limits`], at the limit and one above it.

use std::time::Duration;

use futures_util::future::join_all;
use http::StatusCode;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tower_resumable::{Limits, Purpose, Refusal, ResumableLayer};

use super::case;
use crate::{
    client::{Chunk, Client, File, Role, Way},
    common,
    wire::{Answer, read_answer},
    world::{ATTACKER, Case, DELIVERED, Reply, World},
};

pub const CASES: &[Case] = &[
    case!(
        "49",
        "a declared length above the limit, with few bytes sent",
        declared
    ),
    case!(
        "53",
        "single bytes with pauses: below the minimum pace",
        trickles
    )
    .with(paced),
    case!("53", "an endless body at a sufficient pace", long).with(paced),
    case!("54", "bodies that stall at different places", stalls).with(paced),
    case!(
        "54",
        "4 concurrent bodies of one owner, and a fifth",
        bodies
    )
    .with(|layer| layer.with_limits(Limits::default().with_bodies_per_scope(4))),
    case!(
        "54",
        "6 concurrent bodies of all owners, and a seventh",
        bodies_in_all
    )
    .with(|layer| layer.with_limits(Limits::default().with_bodies_per_scope(3).with_bodies(6))),
    case!(
        "77",
        "100 declared bytes of one owner, one more; a false size",
        quota
    )
    .with(|layer| layer.with_limits(Limits::default().with_unfinished_bytes_per_scope(100))),
    case!(
        "77",
        "a file of exactly the quota of 100 bytes, and one byte more",
        above_quota
    )
    .with(|layer| layer.with_limits(Limits::default().with_unfinished_bytes_per_scope(100))),
    case!(
        "78",
        "3 unfinished uploads of one owner, and a fourth",
        uploads
    )
    .with(|layer| layer.with_limits(Limits::default().with_uploads_per_scope(3))),
    case!(
        "78",
        "4 unfinished uploads of all owners, and a fifth",
        uploads_in_all
    )
    .with(|layer| layer.with_limits(Limits::default().with_uploads(4))),
    case!(
        "78",
        "interrupted first chunks do not count as uploads",
        no_place
    )
    .with(|layer| layer.with_limits(Limits::default().with_uploads_per_scope(3))),
    case!(
        "T14",
        "a permission that is revoked before the last chunk",
        revoked
    )
    .with(members),
    case!(
        "T15",
        "forbidden first bytes, in pieces and in any order",
        sniffed
    )
    .with(no_programs),
];

async fn declared(world: &World) {
    let one = |client, way| async move {
        let file = world.file(client, way);
        world.begin(&file).await;
        let before = world.state(&file).await;
        // More than the rest of the file, and more than any chunk may have.
        let attacks = [1_u64 << 20, 1 << 40].map(|len| {
            let (file, before) = (&file, &before);
            async move {
                let chunk = file.chunk(2).set(Role::Len, &len.to_string());
                let head = chunk.request_head(&format!("content-length: {len}"));
                let mut socket = TcpStream::connect(world.addr).await.unwrap();
                let some = &chunk.body()[..10];
                socket
                    .write_all(&[head.as_bytes(), some].concat())
                    .await
                    .unwrap();
                let answer = read_answer(&mut socket).await;
                world.note(&answer);
                assert!([400, 415].contains(&answer.status), "{len}: {answer:?}");
                // The rest of the body is not read.
                assert_eq!(socket.read(&mut [0; 1]).await.unwrap_or(0), 0);
                world.unchanged(file, before, "a length").await;
            }
        });
        join_all(attacks).await;
        world.finish(&file).await;
    };
    join_all(
        world
            .clients()
            .filter(|(_, way)| *way == Way::Octets)
            .map(|(c, w)| one(c, w)),
    )
    .await;
}

fn paced(layer: ResumableLayer) -> ResumableLayer {
    let limits = Limits::default()
        .with_idle(Duration::from_millis(500))
        .with_min_rate(10_000)
        .with_grace(Duration::from_millis(800))
        .with_body_time(Duration::from_secs(2));
    layer.with_limits(limits)
}

/// Sends the first bytes of a chunk, and then pieces until an answer arrives.
async fn drip(world: &World, chunk: &Chunk, first: usize, piece: usize) -> Answer {
    let mut bytes = chunk.bytes();
    let rest = bytes.split_off(bytes.len() - chunk.body().len() + first);
    let mut socket = TcpStream::connect(world.addr).await.unwrap();
    socket.set_nodelay(true).unwrap();
    socket.write_all(&bytes).await.unwrap();
    let (mut read, mut write) = socket.into_split();
    let dripping = async {
        let mut every = tokio::time::interval(Duration::from_millis(20));
        for piece in rest.chunks(piece.max(1)) {
            every.tick().await;
            if piece.is_empty() || write.write_all(piece).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = read_answer(&mut read) => answer,
        () = dripping, if piece > 0 => unreachable!(),
    };
    world.note(&answer);
    answer
}

async fn too_slow(world: &World, file: &File, attacks: Vec<(usize, usize)>) {
    world.begin(file).await;
    let before = world.state(file).await;
    let chunk = file.chunk(2);
    let dripping = attacks.into_iter().map(|(first, piece)| {
        let chunk = &chunk;
        async move { (first, drip(world, chunk, first, piece).await) }
    });
    for (first, answer) in join_all(dripping).await {
        let is = (answer.status, answer.code());
        assert_eq!(
            is,
            (503, "too_slow".into()),
            "{first} bytes, then: {answer:?}"
        );
    }
    world.unchanged(file, &before, "slow bodies").await;
    world.finish(file).await;
}

async fn trickles(world: &World) {
    let all = world.clients().map(|(client, way)| async move {
        let file = world.file(client, way).sized(4000, 2000);
        too_slow(world, &file, vec![(0, 1), (10, 1), (1500, 1)]).await;
    });
    join_all(all).await;
}

async fn long(world: &World) {
    // 20 pieces of 1,000 bytes a second are fast enough.
    let file = world
        .file(Client::Resumable, Way::Both)
        .sized(2 << 20, 1 << 20);
    too_slow(world, &file, vec![(2000, 1000); 4]).await;
}

async fn stalls(world: &World) {
    let all = world.clients().map(|(client, way)| async move {
        let file = world.file(client, way);
        let len = file.chunk(2).body().len();
        // Before the first byte, in the first boundary, in a field, in the file, and before the
        // last byte.
        let at = [0, 5, len / 3, len - 10, len - 1].map(|first| (first.min(len - 1), 0));
        too_slow(world, &file, at.into()).await;
    });
    join_all(all).await;
}

/// Sends all but the last bytes of a chunk, and waits until the server reads its body.
async fn half(world: &World, mut chunk: Chunk) -> (TcpStream, Vec<u8>) {
    chunk.headers.push_str("expect: 100-continue\r\n");
    let mut body = chunk.body();
    let head = chunk.request_head(&format!("content-length: {}", body.len()));
    let rest = body.split_off(body.len() - 5);
    let mut socket = TcpStream::connect(world.addr).await.unwrap();
    common::begin(&mut socket, &head).await;
    socket.write_all(&body).await.unwrap();
    (socket, rest)
}

/// Sends a chunk repeatedly until the server accepts it: a server notices closed connections with a
/// delay.
async fn until_accepted(world: &World, chunk: &Chunk) {
    let trying = async { while is_busy(&world.attack(chunk).await) {} };
    let tried = tokio::time::timeout(crate::wire::TIMEOUT, trying).await;
    tried.unwrap_or_else(|_| panic!("never accepted: {chunk:?}"));
}

fn is_busy(answer: &Answer) -> bool {
    (answer.status, answer.code().as_str()) == (503, "busy")
}

fn of(user: &str, nth: usize) -> File {
    File::new(Client::Resumable, Way::Both, user, nth)
}

async fn bodies(world: &World) {
    let file = world.file(Client::Resumable, Way::Both).sized(500, 10);
    world.begin(&file).await;
    let mut open = Vec::new();
    for number in 2..6 {
        open.push(half(world, file.chunk(number)).await);
    }
    let answer = world.attack(&file.chunk(1)).await;
    assert!(is_busy(&answer), "{answer:?}");
    assert!(answer.header("retry-after").is_some());
    // Probes have no bodies, and other owners are not limited.
    assert_eq!(world.attack_bytes(file.probe()).await.status, 200);
    world.accepted(&of("eve", 0), |chunk| chunk).await;
    // A disconnected client makes room, and so does a finished request.
    drop(open.pop());
    until_accepted(world, &file.chunk(1)).await;
    for (mut socket, rest) in open {
        socket.write_all(&rest).await.unwrap();
        assert_eq!(read_answer(&mut socket).await.status, 200);
    }
    world.finish(&file).await;
}

async fn bodies_in_all(world: &World) {
    let mut open = Vec::new();
    for user in [ATTACKER, "eve"] {
        for nth in 0..3 {
            open.push(half(world, of(user, nth).chunk(1)).await);
        }
    }
    let adam = of("adam", 0);
    for file in [&of(ATTACKER, 3), &of("eve", 3), &adam] {
        let answer = world.attack(&file.chunk(1)).await;
        assert!(is_busy(&answer), "{answer:?}");
    }
    drop(open);
    until_accepted(world, &adam.chunk(1)).await;
    world.finish(&adam).await;
}

/// Asserts that one more upload of this owner is refused with a retryable error and stores nothing.
async fn is_refused_for_now(world: &World, file: &File, code: &str) {
    let before = world.all_of(&file.user).await;
    for number in [1, 2] {
        let answer = world.attack(&file.chunk(number)).await;
        let is = (answer.status, answer.code());
        assert_eq!(is, (503, code.into()), "{answer:?}");
        assert!(answer.header("retry-after").is_some());
    }
    assert_eq!(world.all_of(&file.user).await, before);
}

async fn quota(world: &World) {
    for (client, way) in world.clients() {
        let two = [40, 60].map(|len| world.file(client, way).sized(len, 20));
        for file in &two {
            world.begin(file).await;
        }
        let more = world.file(client, way).sized(1, 20);
        let answer = world.attack(&more.chunk(1)).await;
        assert_eq!(
            (answer.status, answer.code()),
            (503, "quota_exceeded".into())
        );
        // A size that changes between chunks means another upload.
        let lie = two[0].chunk(2).set(Role::Total, "41");
        let answer = world.attack(&lie).await;
        assert!([400, 415, 503].contains(&answer.status), "{answer:?}");
        world
            .accepted(
                &File {
                    user: "eve".into(),
                    ..more.clone()
                },
                |chunk| chunk,
            )
            .await;
        for file in &two {
            world.finish(file).await;
            // Delivered uploads are not counted.
            let more = world.file(client, way).sized(40, 20);
            world.accepted(&more, |chunk| chunk).await;
        }
    }
}

async fn above_quota(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(100, 20);
        let above = file.clone().sized(101, 20);
        let attacks = vec![("101 bytes".to_owned(), above.chunk(1))];
        world.refused(&file, "file_too_large", attacks).await;
    }
}

async fn uploads(world: &World) {
    for (client, way) in world.clients() {
        let file = || world.file(client, way);
        let [first, second, third, fourth] = [file(), file(), file(), file()];
        for file in [&first, &second, &third] {
            world.begin(file).await;
        }
        is_refused_for_now(world, &fourth, "too_many_uploads").await;
        world
            .accepted(
                &File {
                    user: "eve".into(),
                    ..fourth.clone()
                },
                |chunk| chunk,
            )
            .await;
        world.finish(&first).await;
        world.begin(&fourth).await;
        assert_eq!(world.attack_bytes(second.cancel()).await.status, 204);
        world.begin(&second).await;
        is_refused_for_now(world, &file(), "too_many_uploads").await;
        // An upload that the service rejects is over. An upload whose delivery fails is not.
        world.script([Reply::Status(422), Reply::Status(500)]);
        for file in [&second, &third] {
            for number in 2..=file.chunks() {
                world.attack(&file.chunk(number)).await;
            }
        }
        let fifth = file();
        world.begin(&fifth).await;
        is_refused_for_now(world, &file(), "too_many_uploads").await;
        let answer = world.attack(&third.chunk(1)).await;
        assert_eq!((answer.status, answer.text().as_str()), (200, DELIVERED));
        for file in [&fourth, &fifth] {
            world.finish(file).await;
        }
    }
}

async fn uploads_in_all(world: &World) {
    // The neighbour's upload is one of them.
    let all = [of(ATTACKER, 0), of(ATTACKER, 1), of("eve", 0)];
    for file in &all {
        world.begin(file).await;
    }
    for user in [ATTACKER, "eve", "adam"] {
        is_refused_for_now(world, &of(user, 2), "too_many_uploads").await;
    }
    for file in &all {
        world.finish(file).await;
    }
    world.accepted(&of("adam", 2), |chunk| chunk).await;
}

async fn no_place(world: &World) {
    for (client, way) in world.clients() {
        for _ in 0..5 {
            let file = world.file(client, way);
            let chunk = file.chunk(1);
            let body = chunk.body();
            let head = chunk.request_head(&format!("content-length: {}", body.len()));
            let mut socket = TcpStream::connect(world.addr).await.unwrap();
            let part = [head.as_bytes(), &body[..body.len() - 3]].concat();
            socket.write_all(&part).await.unwrap();
            socket.shutdown().await.unwrap();
            let answer = read_answer(&mut socket).await;
            world.note(&answer);
            assert_eq!(answer.status, 503, "{answer:?}");
            // A chunk with too few bytes does not count either.
            let answer = world.attack(&chunk.content(b"12345")).await;
            assert_eq!(answer.status, client.refusal(), "{answer:?}");
        }
        let file = || world.file(client, way);
        let three = [file(), file(), file()];
        for file in &three {
            world.begin(file).await;
        }
        for file in &three {
            world.finish(file).await;
        }
    }
}

/// A request with this header has lost its permission.
fn members(layer: ResumableLayer) -> ResumableLayer {
    layer.with_admission(|admission| {
        let headers = &admission.parts().headers;
        let left = headers.contains_key("x-left");
        let late = admission.purpose() == Purpose::Deliver && headers.contains_key("x-left-late");
        async move {
            if left || late {
                Err(Refusal::new(StatusCode::FORBIDDEN, "members only"))
            } else {
                Ok(())
            }
        }
    })
}

async fn revoked(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let attacks = (1..=2).map(|number| {
            let mut chunk = file.chunk(number);
            chunk.headers = "x-left: 1\r\n".into();
            (format!("chunk {number}"), chunk)
        });
        world.refused(&file, "refused", attacks.collect()).await;
        // The bytes arrive while the client has permission, which ends before the delivery.
        let file = world.file(client, way);
        let before = world.deliveries().len();
        for number in 1..file.chunks() {
            assert_eq!(world.attack(&file.chunk(number)).await.status, 200);
        }
        let mut last = file.chunk(file.chunks());
        last.headers = "x-left-late: 1\r\n".into();
        let answer = world.attack(&last).await;
        assert_eq!(answer.status, client.refusal(), "{answer:?}");
        assert_eq!(world.deliveries().len(), before);
        // The file is kept: the permission can be given again. So it can be removed.
        world.attack_bytes(file.cancel()).await;
    }
}

fn no_programs(layer: ResumableLayer) -> ResumableLayer {
    layer.with_sniff(|head, _| {
        if head.starts_with(b"\x7fELF") {
            Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "no programs",
            ))
        } else {
            Ok(())
        }
    })
}

async fn sniffed(world: &World) {
    for (client, way) in world.clients() {
        for (chunk_size, backwards) in [(1, false), (1, true), (3, true), (5, false), (8, false)] {
            let mut file = world.file(client, way).sized(8, chunk_size);
            file.content[..4].copy_from_slice(b"\x7fELF");
            let before = world.deliveries().len();
            let mut numbers: Vec<_> = (1..=file.chunks()).collect();
            if backwards {
                numbers.reverse();
            }
            let mut refused = 0;
            for number in numbers {
                let answer = world.attack(&file.chunk(number)).await;
                refused += usize::from(answer.status != 200);
            }
            assert!(
                refused > 0,
                "chunks of {chunk_size}, backwards: {backwards}"
            );
            assert_eq!(world.deliveries().len(), before);
            // A valid file under the same name is accepted once the refusal has expired.
            let good = world.file(client, way).sized(8, chunk_size);
            world.accepted(&good, |chunk| chunk).await;
            world.attack_bytes(file.cancel()).await;
        }
    }
}
