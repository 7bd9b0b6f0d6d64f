//! Requests that are too large, too slow, or too many.

use std::time::Duration;

use bytes::Bytes;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use tower_resumable::{Limits, ResumableLayer};

use super::case;
use crate::{
    client::{Chunk, Client, Way, raw_part, text_part},
    common::BOUNDARY,
    h2, process,
    wire::{Answer, exchange_pieces, read_answer},
    world::{Case, World},
};

pub const CASES: &[Case] = &[
    case!("46", "64 parts, 65", parts),
    case!("46", "8 headers in a part, 9", part_headers),
    case!("46", "4,096 bytes of headers in a part, 4,097", part_head),
    case!(
        "46",
        "1,024 bytes before the first boundary, 1,025",
        preamble
    ),
    case!("46", "16 KiB of text, one byte more", text),
    case!("48", "a query of 16 KiB, one byte more", query),
    case!("48", "64 pairs in a query, 65, 10,000", pairs),
    case!(
        "50",
        "bodies that are cut off at different places",
        broken_off
    ),
    case!(
        "51",
        "the client receives the refusal of a body of 1 and of 5 MiB",
        refused_bodies
    ),
    case!("55", "64 KiB after the end of the form, and more", epilogue),
    case!(
        "47",
        "endless preambles, part headers, names, texts, epilogues, files",
        endless
    )
    .alone(),
    case!(
        "53",
        "1,000 slow bodies while another upload finishes",
        slow
    )
    .with(many)
    .files()
    .alone(),
    case!(
        "56",
        "HTTP/2: 100,000 empty frames while another upload finishes",
        empty_frames
    )
    .alone(),
    case!("56", "HTTP/2: 1,000 streams reset in mid-body", resets).alone(),
];

/// Sends a request at a bound, and one above it, for each client that sends forms.
async fn bound(world: &World, code: &str, clients: &[Client], at: impl Fn(Chunk, bool) -> Chunk) {
    let forms = world.clients().filter(|(_, way)| *way != Way::Octets);
    for (client, way) in forms.filter(|(client, _)| clients.contains(client)) {
        let file = world.file(client, way);
        world.accepted(&file, |chunk| at(chunk, false)).await;
        let file = world.file(client, way);
        let above = at(file.chunk(2), true);
        world
            .refused(&file, code, vec![("above".into(), above)])
            .await;
    }
}

const EVERY: &[Client] = &[Client::Resumable, Client::Flow, Client::Dropzone];

async fn parts(world: &World) {
    bound(world, "too_many_fields", EVERY, |mut chunk, above| {
        let have = chunk.form.len() + 1;
        for nth in have..64 + usize::from(above) {
            chunk.form.push((format!("x{nth}"), String::new()));
        }
        chunk
    })
    .await;
}

const FILE: &str = "Content-Disposition: form-data; name=\"file\"; filename=\"blob\"";

/// The file part of this chunk with other headers.
fn headed(mut chunk: Chunk, head: &str) -> Chunk {
    let end = chunk
        .file
        .windows(4)
        .position(|w| w == b"\r\n\r\n")
        .unwrap()
        + 4;
    let content = chunk.file[end..chunk.file.len() - 2].to_vec();
    chunk.file = raw_part(head, &content);
    chunk
}

async fn part_headers(world: &World) {
    bound(world, "multipart", EVERY, |chunk, above| {
        let more = (1..8 + usize::from(above)).map(|nth| format!("\r\nX-{nth}: a"));
        headed(chunk, &(FILE.to_owned() + &more.collect::<String>()))
    })
    .await;
}

async fn part_head(world: &World) {
    bound(world, "multipart", EVERY, |chunk, above| {
        let head = format!("{FILE}\r\nX-Pad: ");
        let pad = "a".repeat(4096 + usize::from(above) - head.len());
        headed(chunk, &(head + &pad))
    })
    .await;
}

async fn preamble(world: &World) {
    // The client is not known yet, so the refusal has the status that most clients expect.
    bound(
        world,
        "multipart",
        &[Client::Resumable, Client::Dropzone],
        |mut chunk, above| {
            let text = "a".repeat(1022 + usize::from(above));
            chunk.head = format!("{text}\r\n").into_bytes();
            chunk
        },
    )
    .await;
}

async fn text(world: &World) {
    bound(world, "too_many_fields", EVERY, |mut chunk, above| {
        let fields = chunk
            .form
            .iter()
            .map(|(name, value)| name.len() + value.len());
        let pad = (16 << 10) + usize::from(above) - fields.sum::<usize>() - 1;
        chunk.form.push(("x".into(), "a".repeat(pad)));
        chunk
    })
    .await;
    // A name can be as long as all headers of a part.
    bound(world, "too_many_fields", EVERY, |mut chunk, above| {
        let name = |len: usize| {
            format!(
                "Content-Disposition: form-data; name=\"{}\"",
                "n".repeat(len)
            )
        };
        if above {
            chunk.after = (0..5).flat_map(|_| raw_part(&name(4000), b"")).collect();
        } else {
            chunk.after = raw_part(&name(4000), b"");
        }
        chunk
    })
    .await;
}

fn pad_query(chunk: &mut Chunk, len: usize) {
    let head = chunk.request_head("");
    let start = head.find('?').unwrap() + 1;
    let have = head[start..].find(' ').unwrap();
    chunk.raw_query = format!("&x={}", "a".repeat(len - have - 3));
}

async fn query(world: &World) {
    for (client, way) in [
        (Client::Resumable, Way::Both),
        (Client::Resumable, Way::Octets),
        (Client::Flow, Way::Octets),
    ] {
        let file = world.file(client, way);
        world
            .accepted(&file, |mut chunk| {
                pad_query(&mut chunk, 16 << 10);
                chunk
            })
            .await;
        let file = world.file(client, way);
        let mut long = file.chunk(2);
        pad_query(&mut long, (16 << 10) + 1);
        world
            .refused(&file, "too_many_fields", vec![("above".into(), long)])
            .await;
    }
}

async fn pairs(world: &World) {
    for (client, way) in [
        (Client::Resumable, Way::Both),
        (Client::Resumable, Way::Octets),
        (Client::Flow, Way::Octets),
    ] {
        for pair in ["&", "&x=1"] {
            let file = world.file(client, way);
            let have = file.chunk(1).query.len();
            world
                .accepted(&file, |mut chunk| {
                    chunk.raw_query = pair.repeat(64 - have);
                    chunk
                })
                .await;
            let file = world.file(client, way);
            let attacks = [65 - have, 10_000 / pair.len()].map(|count| {
                let mut chunk = file.chunk(2);
                chunk.raw_query = pair.repeat(count);
                (format!("{count} of {pair}"), chunk)
            });
            world
                .refused(&file, "too_many_fields", attacks.into())
                .await;
        }
    }
}

async fn epilogue(world: &World) {
    bound(world, "multipart", EVERY, |mut chunk, above| {
        // A part of the epilogue may arrive together with the boundary, and is then not counted.
        let len = if above {
            (64 << 10) + (16 << 10) + 1
        } else {
            64 << 10
        };
        chunk.end.extend(vec![b'a'; len]);
        chunk
    })
    .await;
}

async fn broken_off(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(200_000, 100_000);
        world.begin(&file).await;
        let before = world.state(&file).await;
        let chunk = file.chunk(2);
        let body = chunk.body();
        let head = chunk.request_head(&format!("content-length: {}", body.len()));
        let cuts = [
            0,
            1,
            100,
            1000,
            body.len() / 2,
            body.len() - 10,
            body.len() - 1,
        ];
        for sent in cuts {
            let mut socket = TcpStream::connect(world.addr).await.unwrap();
            socket.write_all(head.as_bytes()).await.unwrap();
            socket.write_all(&body[..sent]).await.unwrap();
            // The socket is only half closed, so the server still answers. The test then knows when
            // the server has finished.
            socket.shutdown().await.unwrap();
            let answer = read_answer(&mut socket).await;
            world.note(&answer);
            assert!(
                ![200, 201].contains(&answer.status),
                "{sent} bytes: {answer:?}"
            );
            world
                .unchanged(&file, &before, &format!("{sent} bytes"))
                .await;
        }
        world.finish(&file).await;
    }
}

async fn refused_bodies(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let attacks = [1, 5].map(|mib| {
            let chunk = file.chunk(2).content(&vec![7; mib << 20]);
            (format!("{mib} MiB"), chunk)
        });
        world.refused(&file, "chunk_length", attacks.into()).await;
    }
}

/// The most bytes that are read of a refused body, and that the sockets buffer.
const DRAINED: u64 = (64 << 20) + (16 << 20);

async fn endless(world: &World) {
    let field =
        |name: &str| format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}");
    let file = world
        .file(Client::Resumable, Way::Both)
        .sized(2_000_000, 1_000_000);
    world.begin(&file).await;
    let before = world.state(&file).await;
    let chunk = file.chunk(2);
    let whole = chunk.body();
    let opened = &whole[..whole.len() - chunk.end.len() - 1000];
    for (what, start, repeated) in [
        ("preamble", Vec::new(), "a"),
        ("preamble of incomplete boundaries", Vec::new(), "\r\n--"),
        ("name", field("").into_bytes(), "a"),
        ("header", (field("x\"\r\nX-A: ")).into_bytes(), "a"),
        ("headers", (field("x\"")).into_bytes(), "\r\nX-A: b"),
        ("text", (field("x\"\r\n\r\n")).into_bytes(), "a"),
        ("texts", Vec::new(), "PART"),
        ("end", whole.clone(), "\r\n"),
        ("file", opened.to_vec(), "a"),
        ("line ends in a file", opened.to_vec(), "\r\n-"),
    ] {
        let repeated = match repeated {
            "PART" => String::from_utf8(text_part("x", "")).unwrap(),
            other => other.to_owned(),
        };
        let piece = Bytes::from(repeated.repeat((64 << 10) / repeated.len()));
        // A declared length would be refused at once.
        let head = chunk.request_head("transfer-encoding: chunked");
        let framed = |piece: &[u8]| {
            let size = format!("{:x}\r\n", piece.len());
            Bytes::from([size.as_bytes(), piece, b"\r\n"].concat())
        };
        // An empty chunk would end the body.
        let start = Some(&start[..]).filter(|start| !start.is_empty());
        let pieces = std::iter::once(head.into())
            .chain(start.map(framed))
            .chain(std::iter::repeat(framed(&piece)));
        let (memory, mut most) = (process::memory(), 0);
        let answer = {
            let sending = exchange_pieces(world.addr, pieces);
            tokio::pin!(sending);
            loop {
                tokio::select! {
                    answer = &mut sending => break answer,
                    () = tokio::time::sleep(Duration::from_millis(5)) => {
                        most = process::memory().saturating_sub(memory).max(most);
                    }
                }
            }
        };
        world.note(&answer);
        assert_eq!(answer.status, 400, "endless {what}: {answer:?}");
        assert!(
            answer.sent <= DRAINED,
            "endless {what}: {} bytes were read",
            answer.sent
        );
        assert!(most < 32 << 20, "endless {what}: {most} bytes of memory");
        world.unchanged(&file, &before, what).await;
    }
    world.finish(&file).await;
}

/// A body that has arrived in part, on a connection that stays open.
struct Slow {
    socket: TcpStream,
    rest: Vec<u8>,
}

impl Slow {
    async fn open(world: &World, chunk: &Chunk) -> Self {
        let mut socket = TcpStream::connect(world.addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let mut rest = chunk.bytes();
        // The head, the fields and the first bytes of the file.
        let now = rest.len() - chunk.end.len() - 8;
        let rest = rest.split_off(now);
        socket.write_all(&chunk.bytes()[..now]).await.unwrap();
        Self { socket, rest }
    }

    async fn drip(&mut self) {
        let byte = self.rest.remove(0);
        self.socket.write_all(&[byte]).await.unwrap();
    }

    /// Whether the server is still reading.
    fn is_open(&self) -> bool {
        let read = self.socket.try_read(&mut [0; 1]);
        read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    }

    async fn finish(mut self) -> Answer {
        self.socket.write_all(&self.rest).await.unwrap();
        read_answer(&mut self.socket).await
    }
}

const MANY: usize = 1000;

/// Allows one scope all concurrent bodies: this row must not fail because of a limit.
fn many(layer: ResumableLayer) -> ResumableLayer {
    let many = 2 * MANY as u64;
    layer.with_limits(
        Limits::default()
            .with_bodies_per_scope(many)
            .with_uploads_per_scope(many),
    )
}

async fn slow(world: &World) {
    let mut all = Vec::new();
    for _ in 0..MANY {
        let file = world.file(Client::Resumable, Way::Form);
        all.push((Slow::open(world, &file.chunk(1)).await, file));
    }
    for _ in 0..2 {
        for (slow, _) in &mut all {
            slow.drip().await;
        }
    }
    // Like real uploads: several connections, and larger chunks.
    let normal = world
        .file(Client::Resumable, Way::Both)
        .sized(4 << 20, 256 << 10);
    let before = world.deliveries().len();
    let sending = (1..=normal.chunks()).map(|number| {
        let chunk = normal.chunk(number);
        async move { assert_eq!(world.attack(&chunk).await.status, 200) }
    });
    let mut sending =
        futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(sending), 3);
    while futures_util::StreamExt::next(&mut sending).await.is_some() {}
    world.delivered(before, &normal);
    let open = all.iter().filter(|(slow, _)| slow.is_open()).count();
    assert_eq!(
        open, MANY,
        "slow bodies that are open when the other upload is finished"
    );
    // Half of the bodies are finished, half of the clients disconnect.
    for (nth, (slow, file)) in all.into_iter().enumerate() {
        match nth % 2 {
            0 => drop(slow),
            _ => {
                let answer = slow.finish().await;
                world.note(&answer);
                assert_eq!(answer.status, 200, "{answer:?}");
                let cancelled = world.attack_bytes(file.cancel()).await;
                assert_eq!(cancelled.status, 204);
            }
        }
    }
}

async fn empty_frames(world: &World) {
    let file = world.file(Client::Resumable, Way::Form);
    let chunk = file.chunk(1);
    world.begin(&file).await;
    let body = file.chunk(2).body();
    let (first, last) = body.split_at(body.len() / 2);
    let mut connection = h2::Connection::open(world.addr).await;
    assert!(connection.write(&h2::head(1, &chunk)).await);
    assert!(connection.write(&h2::data(1, first, false)).await);
    let flood = h2::data(1, b"", false).repeat(1000);
    let normal = world.file(Client::Resumable, Way::Both);
    let mut open = true;
    for round in 0..100 {
        open = open && connection.write(&flood).await && connection.ping().await;
        if round == 50 {
            world.accepted(&normal, |chunk| chunk).await;
        }
    }
    let before = world.deliveries().len();
    if open {
        assert!(connection.write(&h2::data(1, last, true)).await);
        match connection.ended(1).await {
            h2::Ended::Status(status) => {
                world.note_status(status);
                assert_eq!(status, 200);
                world.delivered(before, &file);
                return;
            }
            other => panic!("{other:?}"),
        }
    }
    // The server may also have closed the connection.
    world.note_status(0);
    world.finish(&file).await;
}

async fn resets(world: &World) {
    let file = world.file(Client::Resumable, Way::Form);
    world.begin(&file).await;
    let before = world.state(&file).await;
    let fds = process::open_files();
    let chunk = file.chunk(2);
    let body = chunk.body();
    let half = &body[..body.len() - chunk.end.len() - 5];
    let mut sent = 0;
    while sent < MANY {
        let mut connection = h2::Connection::open(world.addr).await;
        let mut stream = 1;
        // Sends until the server closes the connection.
        loop {
            let streams = (stream..stream + 100).step_by(2);
            let mut frames = Vec::new();
            for stream in streams.clone() {
                frames.extend(h2::head(stream, &chunk));
                frames.extend(h2::data(stream, half, false));
            }
            let opened = connection.write(&frames).await && connection.ping().await;
            let frames: Vec<_> = streams.flat_map(h2::cancel).collect();
            sent += 50;
            stream += 100;
            if !opened
                || !connection.write(&frames).await
                || !connection.ping().await
                || sent >= MANY
            {
                break;
            }
        }
    }
    world.note_status(0);
    // The server needs some time to notice closed connections.
    let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
    while process::open_files() > fds && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(
        process::open_files() <= fds,
        "open files: {} of {fds}",
        process::open_files()
    );
    world.unchanged(&file, &before, "resets").await;
    world.finish(&file).await;
}
