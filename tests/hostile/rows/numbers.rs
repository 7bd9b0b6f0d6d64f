//! Values that are not numbers, numbers that are too large, and numbers that are wrong.

use sha2::{Digest as _, Sha256};

use tower_resumable::{DigestAlgorithm, Digests, Limits};

use super::case;
use crate::{
    client::{Chunk, Client, File, Role, Way},
    world::{Case, DELIVERED, World},
};

/// The size of the largest file in these rows, in bytes.
const LARGEST: u64 = 1 << 20;

pub const CASES: &[Case] = &[
    case!("17", "chunk number 0", zero),
    case!("18", "values that are not numbers, in every field", none).with(small),
    case!(
        "19",
        "numbers of 63, 64 and 65 bits, and of 30 digits",
        huge
    )
    .with(small),
    case!("20", "a chunk after the last one", behind),
    case!("21", "empty chunks", no_size),
    case!("22", "an offset that overflows", overflow),
    case!(
        "23",
        "a total size above the limit stores and reserves nothing",
        reserves
    )
    .with(small),
    case!("24", "a file at the limit, one byte above it", limit)
        .with(|layer| layer.with_limits(Limits::default().with_file_size(4096))),
    case!("24", "a chunk at the limit, one byte above it", chunk_limit)
        .with(|layer| layer.with_limits(Limits::default().with_chunk_size(64))),
    case!("25", "an empty file", empty),
    case!(
        "26",
        "a number of chunks that is 0, missing, huge, wrong",
        counts
    ),
    case!(
        "27",
        "a declared chunk length that differs from the actual one",
        lengths
    ),
    case!("28", "no declared chunk length", undeclared),
    case!(
        "29",
        "a middle chunk that is too short, or too long",
        middle
    ),
    case!("30", "both ways to cut the last chunk", layouts),
    case!("31", "two chunk sizes for one file", two_sizes),
    case!(
        "31",
        "bytes of two files under one name, with a digest",
        mixed
    )
    .with(|layer| {
        let digests = Digests::default().with_file_field("sha256", DigestAlgorithm::Sha256);
        layer.with_digests(digests)
    }),
    case!(
        "32",
        "another total size for the same identifier",
        other_total
    ),
    case!("33", "another name for the same identifier", other_name),
];

fn small(layer: tower_resumable::ResumableLayer) -> tower_resumable::ResumableLayer {
    layer.with_limits(Limits::default().with_file_size(LARGEST))
}

fn sha256(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

const NUMBERS: [Role; 4] = [Role::Position, Role::Size, Role::Total, Role::Len];

fn with(file: &File, role: Role, values: &[&str]) -> Vec<(String, Chunk)> {
    let attack = |value: &&str| {
        let label = format!("{role:?} {value:?}");
        (label, file.chunk(2).set(role, value))
    };
    values.iter().map(attack).collect()
}

async fn zero(world: &World) {
    for (client, way) in world.clients() {
        // The offset of a first chunk of Dropzone is 0.
        if client != Client::Dropzone {
            let file = world.file(client, way);
            let attacks = with(&file, Role::Position, &["0", "00"]);
            world.refused(&file, "invalid_field", attacks).await;
        }
    }
}

async fn none(world: &World) {
    let values = [
        "-1",
        "+1",
        " 1",
        "1 ",
        "0x1",
        "1e3",
        "1.0",
        "１",
        "١",
        "01",
        "",
        "1,2",
        "1_000",
        "NaN",
        "null",
        "undefined",
        "Infinity",
        "true",
        "1\n",
        "-0",
        "1;2",
        "𝟏",
    ];
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let roles = NUMBERS.into_iter().filter(|role| client.has(*role));
        let attacks = roles.flat_map(|role| with(&file, role, &values));
        world
            .refused(&file, "invalid_field", attacks.collect())
            .await;
    }
}

async fn huge(world: &World) {
    let values = [
        "9223372036854775807",
        "9223372036854775808",
        "18446744073709551615",
        "18446744073709551616",
        "999999999999999999999999999999",
    ];
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let roles = NUMBERS.into_iter().filter(|role| client.has(*role));
        // In a first chunk, a chunk size larger than the file is valid. So these are second chunks.
        let attacks = roles.flat_map(|role| with(&file, role, &values));
        world.refused(&file, "", attacks.collect()).await;
    }
}

async fn behind(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let values = match client {
            Client::Dropzone => ["25", "26", "30", "1000000"],
            _ => ["4", "5", "100", "1000000"],
        };
        world
            .refused(&file, "out_of_bounds", with(&file, Role::Position, &values))
            .await;
    }
}

async fn no_size(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let attacks = with(&file, Role::Size, &["0"]);
        world.refused(&file, "invalid_field", attacks).await;
    }
}

async fn overflow(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let attack = |(number, size): (&str, &str)| {
            let chunk = file.chunk(2).set(Role::Position, number);
            (
                format!("{number} times {size}"),
                chunk.set(Role::Size, size),
            )
        };
        let pairs = [
            ("3", "9223372036854775808"),
            ("18446744073709551615", "18446744073709551615"),
            ("4294967297", "4294967296"),
            ("2", "18446744073709551615"),
        ];
        world.refused(&file, "", pairs.map(attack).into()).await;
    }
}

async fn reserves(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let values = [
            "1048577",
            "1000000000000",
            "1000000000000000000",
            "18446744073709551615",
        ];
        let attack = |total: &str| {
            let chunk = file.chunk(1).set(Role::Total, total);
            (total.to_owned(), chunk)
        };
        let attacks = values.map(attack).into();
        world.refused(&file, "file_too_large", attacks).await;
    }
    // An allowed file uses the disk space of its bytes, not of its declared size.
    let before = world.disk_use();
    let file = world
        .file(Client::Resumable, Way::Both)
        .sized(LARGEST as usize, 10);
    for number in [1, 1000, 50_000] {
        assert_eq!(world.attack(&file.chunk(number)).await.status, 200);
    }
    let used = world.disk_use() - before;
    assert!(used <= 256 << 10, "30 bytes take {used}");
    assert_eq!(world.attack_bytes(file.cancel()).await.status, 204);
}

async fn limit(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(4096, 1500);
        world.accepted(&file, |chunk| chunk).await;
        let file = world.file(client, way);
        let long = file.clone().sized(4097, 1500);
        let attacks = (1..=2).map(|n| (format!("chunk {n} of 4,097 bytes"), long.chunk(n)));
        world
            .refused(&file, "file_too_large", attacks.collect())
            .await;
    }
}

async fn chunk_limit(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(128, 64);
        world.accepted(&file, |chunk| chunk).await;
        let file = world.file(client, way);
        let long = file.clone().sized(130, 65);
        let mut attacks = vec![("65 bytes".to_owned(), long.chunk(1))];
        // A body without a declared length is counted as it arrives.
        attacks.push((
            "65 bytes, not declared".into(),
            long.chunk(1).without(Role::Len),
        ));
        let code = match client {
            Client::Dropzone => "chunk_too_large",
            _ => "",
        };
        world.refused(&file, code, attacks).await;
    }
}

async fn empty(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(0, 10);
        world.accepted(&file, |chunk| chunk).await;
        // An empty chunk of a file that is not empty.
        let file = world.file(client, way);
        let attacks = vec![("no bytes".to_owned(), file.chunk(2).content(b""))];
        world.refused(&file, "chunk_length", attacks).await;
    }
}

async fn counts(world: &World) {
    for (client, way) in world.clients() {
        for count in ["0", "1", "", "9223372036854775808", "1257", "-1", "NaN"] {
            let file = world.file(client, way);
            let before = world.deliveries().len();
            let chunk = file.chunk(1).set(Role::Count, count);
            let answer = world.attack(&chunk).await;
            assert_eq!(answer.status, 200, "{count}: {answer:?}");
            assert_ne!(answer.text(), DELIVERED, "{count} ends it");
            for number in 2..=file.chunks() {
                world
                    .attack(&file.chunk(number).set(Role::Count, count))
                    .await;
            }
            world.delivered(before, &file);
        }
        let file = world.file(client, way);
        world
            .accepted(&file, |chunk| chunk.without(Role::Count))
            .await;
    }
}

async fn lengths(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let attacks = [0, 1, 9, 11, 14, 16, 20, 1 << 16].map(|len| {
            let chunk = file.chunk(2).content(&vec![7; len]);
            (format!("{len} bytes"), chunk)
        });
        let attacks = attacks
            .into_iter()
            .filter(|(_, chunk)| chunk.bytes() != file.chunk(2).bytes());
        world
            .refused(&file, "chunk_length", attacks.collect())
            .await;
        if client.has(Role::Len) {
            let file = world.file(client, way);
            let attacks = with(
                &file,
                Role::Len,
                &["0", "1", "9", "11", "14", "16", "25", "26"],
            );
            world.refused(&file, "invalid_field", attacks).await;
        }
    }
}

async fn undeclared(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        world
            .accepted(&file, |chunk| chunk.without(Role::Len))
            .await;
        let file = world.file(client, way);
        let attacks = [26, 16].map(|len| {
            let chunk = file.chunk(2).without(Role::Len).content(&vec![7; len]);
            (format!("{len} bytes"), chunk)
        });
        world.refused(&file, "chunk_length", attacks.into()).await;
    }
}

async fn middle(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(45, 10);
        let attacks = [1, 9, 11, 19, 20].map(|len| {
            let chunk = file.chunk(2).content(&vec![7; len]);
            let chunk = chunk.set(Role::Len, &len.to_string());
            (format!("{len} bytes"), chunk)
        });
        world.refused(&file, "", attacks.into()).await;
    }
}

async fn layouts(world: &World) {
    for (client, way) in world.clients() {
        for total in [1, 9, 10, 11, 19, 20, 21, 29, 30] {
            let file = world.file(client, way).sized(total, 10);
            world.accepted(&file, |chunk| chunk).await;
            // `forceChunkSize`
            let file = world.file(client, way).sized(total, 10);
            let before = world.deliveries().len();
            for start in (0..total).step_by(10) {
                let chunk = file.range(start..total.min(start + 10));
                assert_eq!(world.attack(&chunk).await.status, 200, "{chunk:?}");
            }
            world.delivered(before, &file);
        }
    }
}

async fn two_sizes(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way).sized(100, 10);
        let other = File {
            chunk_size: 7,
            ..file.clone()
        };
        let before = world.deliveries().len();
        let chunks = (1..=5)
            .map(|n| file.chunk(n))
            .chain((1..=other.chunks()).rev().map(|n| other.chunk(n)));
        for chunk in chunks {
            assert_eq!(world.attack(&chunk).await.status, 200, "{chunk:?}");
        }
        world.delivered(before, &file);
    }
}

async fn mixed(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let digest = sha256(&file.content);
        let mut other = file.clone();
        other.content.iter_mut().for_each(|byte| *byte ^= 0xff);
        let before = world.deliveries().len();
        assert_eq!(world.attack(&other.chunk(1)).await.status, 200);
        let mut refused = 0;
        for number in 2..=file.chunks() {
            let answer = world
                .attack(&file.chunk(number).with("sha256", &digest))
                .await;
            refused += usize::from(answer.code() == "file_digest_mismatch");
        }
        assert_eq!((refused, world.deliveries().len()), (1, before));
        // The whole file is removed, and the correct file can be sent.
        world
            .accepted(&file, |chunk| chunk.with("sha256", &digest))
            .await;
    }
}

async fn other_total(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let mut other = file.clone();
        other.content.extend(*b"more bytes");
        if client == Client::Dropzone {
            // Its identifier is unique: it names the same upload.
            let attacks = vec![("35 bytes".to_owned(), other.chunk(2))];
            world.refused(&file, "conflict", attacks).await;
        } else {
            both(world, file, other).await;
        }
    }
}

async fn other_name(world: &World) {
    for (client, way) in world
        .clients()
        .filter(|(client, _)| *client != Client::Dropzone)
    {
        let file = world.file(client, way);
        let mut other = File {
            name: "other.txt".into(),
            ..file.clone()
        };
        other.content.reverse();
        both(world, file, other).await;
        // The same name in two folders.
        let file = world.file(client, way);
        let mut other = File {
            path: Some(format!("folder/{}", file.name)),
            ..file.clone()
        };
        other.content.reverse();
        both(world, file, other).await;
    }
}

/// Uploads two files alternately. Each one gets its own bytes.
async fn both(world: &World, file: File, other: File) {
    let before = world.deliveries().len();
    for number in 1..=other.chunks() {
        for file in [&file, &other] {
            if number <= file.chunks() {
                assert_eq!(world.attack(&file.chunk(number)).await.status, 200);
            }
        }
    }
    let deliveries = world.deliveries();
    assert_eq!(deliveries.len(), before + 2);
    world.is_file(&deliveries[before], &file);
    world.is_file(&deliveries[before + 1], &other);
}
