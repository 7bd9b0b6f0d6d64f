//! Requests that two parsers could read differently.

use bytes::Bytes;

use super::case;
use crate::{
    client::{Chunk, Client, File, Role, Way, raw_part, text_part},
    common::BOUNDARY,
    wire::exchange_pieces,
    world::{Case, DELIVERED, World},
};

pub const CASES: &[Case] = &[
    case!(
        "34",
        "a field twice in the query: equal values, different values",
        twice
    ),
    case!(
        "35",
        "a field in query and form, before and after the file",
        query_and_form
    ),
    case!(
        "36",
        "field names in another case belong to the application",
        other_case
    ),
    case!(
        "37",
        "field names similar to those of a dialect; `;` is no separator",
        nearly
    ),
    case!("38", "two files in one form", two_files),
    case!("39", "the file in a part with another name", other_part),
    case!("40", "part headers that can be read in two ways", heads),
    case!("41", "a form whose end is cut off at each byte", cut),
    case!(
        "42",
        "boundaries: none, empty, two, 70 and 71 characters, quoted",
        boundaries
    ),
    case!("43", "line feeds without carriage returns", line_feeds),
    case!(
        "44",
        "one byte in each frame; all bytes in one frame",
        frames
    ),
    case!("44", "a request split in two, at each byte", split).memory(),
    case!("45", "a content transfer encoding is not decoded", encoded),
    case!(
        "45",
        "two lengths of one body, and invalid lengths",
        lengths
    ),
];

/// The fields that decide where bytes are stored.
const DECIDING: [Role; 7] = [
    Role::Identifier,
    Role::Total,
    Role::Position,
    Role::Size,
    Role::Len,
    Role::Name,
    Role::Path,
];

/// A value that is valid in another place.
fn other(role: Role) -> &'static str {
    match role {
        Role::Identifier => "25-other",
        Role::Total => "26",
        Role::Position => "1",
        Role::Size => "15",
        Role::Len => "10",
        _ => "other.txt",
    }
}

fn value(chunk: &Chunk, field: &str) -> String {
    let found = chunk.form.iter().find(|(name, _)| name == field);
    found.unwrap().1.clone()
}

/// The fields that decide where bytes are stored, by name, for each client.
fn deciding(client: Client) -> impl Iterator<Item = (Role, &'static str)> {
    let fields = DECIDING
        .into_iter()
        .map(move |role| (role, client.field(role)));
    fields.filter(|(_, field)| !field.is_empty())
}

fn forms(world: &World) -> impl Iterator<Item = (Client, Way)> + use<> {
    world.clients().filter(|(_, way)| *way != Way::Octets)
}

async fn twice(world: &World) {
    for (client, way) in world.clients().filter(|(_, way)| *way != Way::Form) {
        for (role, field) in deciding(client) {
            let file = world.file(client, way);
            world
                .accepted(&file, |mut chunk| {
                    let value = value(&chunk, field);
                    chunk.raw_query = format!("&{field}={value}&{field}={value}");
                    chunk
                })
                .await;
            let file = world.file(client, way);
            let attack = |raw: String| {
                let mut chunk = file.chunk(2);
                chunk.raw_query = raw;
                (field.to_owned(), chunk)
            };
            let other = other(role);
            let attacks = vec![
                attack(format!("&{field}={other}")),
                attack(format!("&{field}=")),
                // A variant that a parser with other rules does not recognize.
                attack(format!("&{}{}={other}", escaped(field), &field[1..])),
            ];
            world.refused(&file, "conflicting_field", attacks).await;
        }
    }
}

/// The first letter of a name, percent-encoded.
fn escaped(name: &str) -> String {
    format!("%{:02X}", name.as_bytes()[0])
}

async fn query_and_form(world: &World) {
    for (client, way) in [(Client::Resumable, Way::Both), (Client::Flow, Way::Both)] {
        let file = world.file(client, way);
        world.accepted(&file, |chunk| chunk).await;
        for (role, field) in deciding(client) {
            let file = world.file(client, way);
            let other = other(role);
            let set = |fields: &mut Vec<(String, String)>, label| {
                let place = fields.iter_mut().find(|(name, _)| name == field);
                place.unwrap_or_else(|| panic!("no {field} in {label}")).1 = other.into();
            };
            let mut in_form = file.chunk(2);
            set(&mut in_form.form, "form");
            let mut after = file.chunk(2);
            after.after = text_part(field, other);
            let attacks = [("form", in_form), ("after the file", after)];
            let attacks = attacks.map(|(place, chunk)| (format!("{field} in {place}"), chunk));
            world
                .refused(&file, "conflicting_field", attacks.into())
                .await;
            let file = world.file(client, way);
            let mut in_query = file.chunk(2);
            set(&mut in_query.query, "query");
            // The query alone can be invalid, and is decoded first.
            let attack = (format!("{field} in query"), in_query);
            world.refused(&file, "", vec![attack]).await;
        }
    }
    for (client, way) in forms(world) {
        for (role, field) in deciding(client) {
            let file = world.file(client, way);
            let mut before = file.chunk(2);
            before.head = text_part(field, other(role));
            let mut after = file.chunk(2);
            after.after = text_part(field, other(role));
            let attacks = vec![("before".to_owned(), before), ("after".to_owned(), after)];
            world.refused(&file, "conflicting_field", attacks).await;
            let file = world.file(client, way);
            world
                .accepted(&file, |mut chunk| {
                    chunk.after = text_part(field, &value(&chunk, field));
                    chunk
                })
                .await;
        }
    }
}

async fn other_case(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        let fields: Vec<_> = deciding(client)
            .map(|(_, field)| field.to_uppercase())
            .collect();
        world
            .accepted(&file, |chunk| {
                let add = |chunk: Chunk, field: &String| chunk.with(field, "7");
                fields.iter().fold(chunk, add)
            })
            .await;
        let upload = &world.deliveries().pop().unwrap().upload;
        assert!(fields.iter().all(|field| upload.field(field) == Some("7")));
        // They do not replace the missing fields.
        let file = world.file(client, way);
        let attacks = [Role::Identifier, Role::Total, Role::Position].map(|role| {
            let value = value(&file.chunk(2), client.field(role));
            let chunk = file.chunk(2).without(role);
            let field = client.field(role).to_uppercase();
            (field.clone(), chunk.with(&field, &value))
        });
        world.refused(&file, "missing_field", attacks.into()).await;
    }
}

async fn nearly(world: &World) {
    for (client, way) in world.clients().filter(|(_, way)| *way == Way::Octets) {
        let position = client.field(Role::Position);
        let nearly = [
            format!("&{position}[]=1"),
            format!("&{position};=1"),
            format!("&a=1;{position}=1"),
            format!("&{position}%00=1"),
            format!("&%20{position}=1"),
            format!("&{position}%20=1"),
            format!("&{position}.x=1"),
            format!("&{position}[0]=1"),
        ];
        for raw in nearly {
            let file = world.file(client, way);
            world
                .accepted(&file, |mut chunk| {
                    chunk.raw_query = raw.clone();
                    chunk
                })
                .await;
            let file = world.file(client, way);
            let mut chunk = file.chunk(2).without(Role::Position);
            chunk.raw_query = raw.replace("=1", "=2");
            world
                .refused(&file, "missing_field", vec![(raw, chunk)])
                .await;
        }
    }
}

async fn two_files(world: &World) {
    for (client, way) in forms(world) {
        let file = world.file(client, way);
        let mut before = file.chunk(2);
        before.head = crate::client::part("file", "x", b"0123456789");
        let mut after = file.chunk(2);
        after.after = before.head.clone();
        let mut same = file.chunk(2);
        same.after = same.file.clone();
        let mut empty = file.chunk(2);
        empty.after = crate::client::part("file", "", b"");
        let attacks = [
            ("before", before),
            ("after", after),
            ("same", same),
            ("empty", empty),
        ];
        let attacks = attacks.map(|(label, chunk)| (label.to_owned(), chunk));
        world.refused(&file, "", attacks.into()).await;
    }
}

async fn other_part(world: &World) {
    for (client, way) in forms(world) {
        let file = world.file(client, way);
        let content = &file.content[file.layout()[1].clone()];
        let attacks = ["blob", "File", "file[]", "file[0]", "file ", "files", "fil"].map(|name| {
            let mut chunk = file.chunk(2);
            chunk.file = crate::client::part(name, "x", content);
            (name.to_owned(), chunk)
        });
        world
            .refused(&file, "unexpected_file", attacks.into())
            .await;
    }
}

async fn heads(world: &World) {
    let form = "Content-Disposition: form-data";
    let refused = [
        format!("{form}; name=\"file\"; name=\"file\"; filename=\"a\""),
        format!("{form}; name=\"file\"; name=\"other\"; filename=\"a\""),
        format!("{form}; name=\"file\"; filename=\"a\"; filename=\"b\""),
        format!("{form}; name=\"file\"; filename=\"a\"\r\n{form}; name=\"x\""),
        format!("{form}; name=\"file; filename=\"a\""),
        format!("{form}; name=\"file\"; filename=\"a"),
        format!("{form}; filename=\"x; name=file\""),
        format!("{form}; name=\"\"; filename=\"a\""),
        format!("{form}; name*=UTF-8''file; filename=\"a\""),
        "Content-Disposition: attachment; name=\"file\"; filename=\"a\"".into(),
        "Content-Disposition: form-data".into(),
        format!("{form}; name=\"file\";\r\n filename=\"a\""),
        format!("{form}; name=\"file\"; filename=\"a\"\nX-A: b"),
        format!("{form}; name=\"file\"; filename=\"a\"\rX-A: b"),
        "no colon".into(),
        String::new(),
        format!(" {form}; name=\"file\"; filename=\"a\""),
        format!("{form}; name=\"file\"; filename=\"a\"x"),
    ];
    let accepted = [
        format!("{form}; NAME=\"file\"; FileName=\"blob\""),
        format!("{form}; name=\"file\"; filename=\"blob\"; name*=UTF-8''other"),
        format!("{form}; name=\"file\"; filename=\"blob\"; filename*=UTF-8''..%2F..%2Fx"),
        format!("{form}; filename=\"x; name=evil\"; name=\"file\""),
        format!("{form}; name=file; filename=blob"),
        format!("{form};name=\"file\";filename=\"blob\";"),
        "content-disposition:FORM-DATA;  name = \"file\" ; filename=\"a\\\"b\"".into(),
        format!("X-A: {form}; name=\"x\"\r\n{form}; name=\"file\"; filename=\"blob\""),
    ];
    for (client, way) in forms(world) {
        let file = world.file(client, way);
        let content = &file.content[file.layout()[1].clone()];
        let attacks = refused.iter().map(|head| {
            let mut chunk = file.chunk(2);
            chunk.file = raw_part(head, content);
            (head.clone(), chunk)
        });
        world.refused(&file, "multipart", attacks.collect()).await;
        for head in &accepted {
            let file = world.file(client, way);
            let before = world.deliveries().len();
            for (number, range) in file.layout().into_iter().enumerate() {
                let mut chunk = file.chunk(number + 1);
                chunk.file = raw_part(head, &file.content[range]);
                let answer = world.attack(&chunk).await;
                assert_eq!(answer.status, 200, "{head}: {answer:?}");
            }
            world.delivered(before, &file);
        }
    }
}

async fn cut(world: &World) {
    for (client, way) in forms(world) {
        let file = world.file(client, way);
        let whole = file.chunk(2);
        let all = [whole.file.clone(), whole.end.clone()].concat();
        // The line end after the last boundary is optional. Everything else is required.
        let step = if way == Way::Both { 1 } else { 7 };
        let attacks = (0..all.len() - 2).rev().step_by(step);
        let attacks = attacks.map(|len| {
            let mut chunk = file.chunk(2);
            chunk.file = all[..len].to_vec();
            chunk.end = Vec::new();
            (format!("{} bytes missing", all.len() - len), chunk)
        });
        world.refused(&file, "", attacks.collect()).await;
        let file = world.file(client, way);
        world
            .accepted(&file, |mut chunk| {
                chunk.end.truncate(chunk.end.len() - 2);
                chunk
            })
            .await;
    }
}

/// The same request with another boundary in its body.
fn rebound(chunk: &Chunk, boundary: &str, content_type: &str) -> Vec<u8> {
    let mut chunk = chunk.clone();
    chunk.content_type = content_type.into();
    let body = chunk.body();
    let mut new = Vec::new();
    let mut rest = &body[..];
    while let Some(at) = rest
        .windows(BOUNDARY.len())
        .position(|w| w == BOUNDARY.as_bytes())
    {
        new.extend_from_slice(&rest[..at]);
        new.extend_from_slice(boundary.as_bytes());
        rest = &rest[at + BOUNDARY.len()..];
    }
    new.extend_from_slice(rest);
    let length = format!("content-length: {}", new.len());
    [chunk.request_head(&length).as_bytes(), &new].concat()
}

async fn boundaries(world: &World) {
    let form = "multipart/form-data";
    let (fits, long) = ("b".repeat(70), "b".repeat(71));
    let refused = [
        ("", form.to_owned()),
        ("", format!("{form}; boundary=")),
        ("", format!("{form}; boundary=\"\"")),
        (&long, format!("{form}; boundary={long}")),
        ("X", format!("{form}; boundary=X; boundary=Y")),
        ("X", format!("{form}; boundary=Y; boundary=X")),
        ("é", format!("{form}; boundary=é")),
        ("X ", format!("{form}; boundary=\"X \"")),
        ("X", format!("{form}; boundary=\"X")),
        ("X", format!("{form}; boundary=X\u{1}")),
        ("X", format!("{form}; boundary=X, {form}; boundary=Y")),
        // An obsolete line fold.
        ("X", format!("{form};\r\n boundary=X")),
    ];
    let accepted = [
        (fits.as_str(), format!("{form}; boundary={fits}")),
        ("a b", format!("{form}; boundary=\"a b\"")),
        ("X", "Multipart/Form-Data; charset=utf-8; BOUNDARY=X".into()),
        ("'()+_,-./:=?", format!("{form}; boundary=\"'()+_,-./:=?\"")),
    ];
    for way in [Way::Both, Way::Form] {
        let file = world.file(Client::Resumable, way);
        world.begin(&file).await;
        let before = world.state(&file).await;
        for (boundary, content_type) in &refused {
            let request = rebound(&file.chunk(2), boundary, content_type);
            let answer = world.attack_bytes(request).await;
            assert_eq!(answer.status, 400, "{content_type}: {answer:?}");
            world.unchanged(&file, &before, content_type).await;
        }
        world.finish(&file).await;
        for (boundary, content_type) in &accepted {
            let file = world.file(Client::Resumable, way);
            let before = world.deliveries().len();
            for number in 1..=file.chunks() {
                let request = rebound(&file.chunk(number), boundary, content_type);
                let answer = world.attack_bytes(request).await;
                assert_eq!(answer.status, 200, "{content_type}: {answer:?}");
            }
            world.delivered(before, &file);
        }
    }
}

async fn line_feeds(world: &World) {
    for way in [Way::Both, Way::Form] {
        let file = world.file(Client::Resumable, way);
        world.begin(&file).await;
        let before = world.state(&file).await;
        let chunk = file.chunk(2);
        let body = chunk.body();
        let feeds = body.iter().filter(|byte| **byte == b'\n').count();
        // All line ends, and each one alone.
        for nth in std::iter::once(None).chain((0..feeds).map(Some)) {
            let mut seen = 0;
            let mut bare = Vec::new();
            for (at, byte) in body.iter().enumerate() {
                let is_end = *byte == b'\r' && body.get(at + 1) == Some(&b'\n');
                if is_end {
                    seen += 1;
                }
                if !is_end || nth.is_some_and(|nth| nth + 1 != seen) {
                    bare.push(*byte);
                }
            }
            // After the last boundary a line end does not matter. At the end of a text, the
            // boundary is then part of the text.
            let texts = 4 * chunk.form.len();
            if nth.is_some_and(|nth| nth == feeds - 1 || (nth < texts && nth % 4 == 3)) {
                continue;
            }
            let head = chunk.request_head(&format!("content-length: {}", bare.len()));
            let answer = world.attack_bytes([head.as_bytes(), &bare].concat()).await;
            assert_eq!(answer.status, 400, "line end {nth:?}: {answer:?}");
            world.unchanged(&file, &before, "line feeds").await;
        }
        world.finish(&file).await;
    }
}

/// The body, divided into frames of these sizes.
fn framed<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Bytes> {
    let frame = |piece: &[u8]| {
        let size = format!("{:x}\r\n", piece.len());
        Bytes::from([size.as_bytes(), piece, b"\r\n"].concat())
    };
    let mut frames: Vec<_> = pieces.map(frame).collect();
    frames.push("0\r\n\r\n".into());
    frames
}

async fn frames(world: &World) {
    for (client, way) in world.clients() {
        let steps = match way {
            Way::Both => &[1, 2, 3, 17, usize::MAX][..],
            _ => &[1, usize::MAX],
        };
        for &step in steps {
            let file = world.file(client, way);
            let before = world.deliveries().len();
            for number in 1..=file.chunks() {
                let chunk = file.chunk(number);
                let head = chunk.request_head("transfer-encoding: chunked");
                let body = chunk.body();
                let mut pieces = vec![Bytes::from(head)];
                pieces.extend(framed(body.chunks(step.min(body.len()))));
                let answer = exchange_pieces(world.addr, pieces).await;
                world.note(&answer);
                assert_eq!(answer.status, 200, "frames of {step}: {answer:?}");
            }
            world.delivered(before, &file);
        }
    }
}

async fn split(world: &World) {
    let small = |nth: usize| {
        let mut file = File::new(Client::Resumable, Way::Form, crate::world::ATTACKER, 0);
        file.identifier = format!("{nth:04}");
        file.sized(7, 10)
    };
    let chunk = |file: &File| {
        let chunk = file.chunk(1).without(Role::Type).without(Role::Count);
        chunk
            .without(Role::Len)
            .without(Role::Path)
            .without(Role::Name)
    };
    let len = chunk(&small(0)).bytes().len();
    let sending = (1..len).map(|at| async move {
        let file = small(at);
        let mut first = Bytes::from(chunk(&file).bytes());
        let rest = first.split_off(at);
        let answer = exchange_pieces(world.addr, [first, rest]).await;
        world.note(&answer);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, DELIVERED),
            "at byte {at}"
        );
    });
    let mut sending =
        futures_util::StreamExt::buffer_unordered(futures_util::stream::iter(sending), 8);
    while futures_util::StreamExt::next(&mut sending).await.is_some() {}
    let deliveries = world.deliveries();
    assert_eq!(deliveries.len(), len - 1);
    for delivery in deliveries {
        let at = delivery.upload.identifier().parse().unwrap();
        assert!(delivery.content == small(at).content, "at byte {at}");
    }
}

async fn encoded(world: &World) {
    for (client, way) in forms(world) {
        for encoding in ["base64", "quoted-printable", "binary", "8bit", "gzip"] {
            let mut file = world.file(client, way);
            file.content = b"aGVsbG8gd29ybGQ=3D=0D=0AQ=".to_vec();
            let before = world.deliveries().len();
            for (number, range) in file.layout().into_iter().enumerate() {
                let mut chunk = file.chunk(number + 1);
                let head = format!(
                    "Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\
                     Content-Type: text/plain\r\nContent-Transfer-Encoding: {encoding}"
                );
                chunk.file = raw_part(&head, &file.content[range]);
                assert_eq!(world.attack(&chunk).await.status, 200, "{encoding}");
            }
            world.delivered(before, &file);
        }
    }
}

async fn lengths(world: &World) {
    for (client, way) in world.clients() {
        let file = world.file(client, way);
        world.begin(&file).await;
        let before = world.state(&file).await;
        let chunk = file.chunk(2);
        let body = chunk.body();
        let len = body.len();
        let heads = [
            format!("content-length: {len}\r\ncontent-length: {}", len + 1),
            "content-length: -1".to_owned(),
            format!("content-length: +{len}"),
            format!("content-length: {len}, {}", len + 1),
            format!("content-length: 0x{len:x}"),
            "content-length: 99999999999999999999999".to_owned(),
            "transfer-encoding: chunked, identity".to_owned(),
            "transfer-encoding: xchunked".to_owned(),
        ];
        for length in heads {
            let request = [chunk.request_head(&length).as_bytes(), &body].concat();
            let answer = world.attack_bytes(request).await;
            assert_eq!(answer.status, 400, "{length}: {answer:?}");
            world.unchanged(&file, &before, &length).await;
        }
        // Frames whose sizes cannot be parsed.
        for frame in ["-1\r\n", "ffffffffffffffffff\r\n", "1\n", "x\r\n"] {
            let head = chunk.request_head("transfer-encoding: chunked");
            let request = [head.as_bytes(), frame.as_bytes(), &body].concat();
            let answer = world.attack_bytes(request).await;
            assert!(![200, 201].contains(&answer.status), "{frame}: {answer:?}");
            world.unchanged(&file, &before, frame).await;
        }
        world.finish(&file).await;
    }
}
