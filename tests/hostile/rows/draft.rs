//! Requests of the IETF draft that no honest client sends.

use super::case;
use crate::{
    urls::{
        Ask, Attack, LEN, Protocol, STORED, Upload, content_of, created, refused, refused_beside,
        taken,
    },
    world::{ATTACKER, Case, NEIGHBOUR, Passed, World},
};

use Protocol::{Draft, Tus};

pub const CASES: &[Case] = &[
    case!("94", "draft: values that are no structured fields", fields),
    case!(
        "94",
        "draft: offsets that are no integers, or wrong",
        offsets
    ),
    case!(
        "95",
        "draft: `Upload-Complete` that contradicts",
        conflicting
    ),
    case!("96", "draft: lengths that disagree", lengths),
    case!("96", "draft: bodies longer than the upload", longer),
    case!(
        "97",
        "draft: other media types, codings, methods",
        media_types
    ),
    case!("98", "draft: digests that cannot be checked", digests),
    case!("99", "headers of tus and of the draft at once", mixed),
];

fn attack(label: impl std::fmt::Debug, ask: Ask, status: u16) -> Attack {
    (format!("{label:?}"), ask, status)
}

/// Values that are not booleans of a structured field.
const NO_BOOLEANS: [&str; 12] = [
    "1", "0", "true", "?2", "?T", "?", "?1?", "\"?1\"", "?1, ?1", "(?1)", ":?1:", "\u{e9}",
];

async fn fields(world: &World) {
    refused(world, Draft, |own, _| {
        let append = || own.append(STORED, b"x");
        let mut all = vec![attack("none", append().without("upload-complete"), 400)];
        for value in NO_BOOLEANS {
            let ask = append().set("upload-complete", value);
            all.push(attack(value, ask, 400));
        }
        for values in [["?1", "?1"], ["?0", "?0"], ["?0", "?1"], ["?1", "?0"]] {
            let ask = append().set("upload-complete", values[0]);
            let ask = ask.with("upload-complete", values[1]);
            all.push(attack(values, ask, 400));
        }
        all
    })
    .await;
    // A request that does not say whether it is complete is an ordinary one.
    let body = content_of(ATTACKER);
    let ask = Draft.create(ATTACKER).body(&body);
    let values = NO_BOOLEANS.map(|value| ask.clone().set("upload-complete", value));
    let twice = ask.clone().with("upload-complete", "?0");
    for ask in values.into_iter().chain([twice]) {
        let before = world.passed().len();
        let answer = world.attack_bytes(ask.bytes()).await;
        assert_eq!((answer.status, &*answer.text()), (200, "passed"), "{ask:?}");
        let passed = Passed {
            method: http::Method::POST,
            uri: "/upload".into(),
            body: body.clone(),
        };
        assert_eq!(world.passed()[before..], [passed]);
    }
    assert_eq!(
        world.unfinished(ATTACKER).await.as_array().map(Vec::len),
        Some(0)
    );
}

async fn offsets(world: &World) {
    refused(world, Draft, |own, _| {
        let append = || own.append(STORED, b"x");
        let mut all = vec![attack("none", append().without("upload-offset"), 400)];
        for value in [
            "-1",
            "+10",
            "10.0",
            "1e1",
            "0xa",
            "",
            "10,10",
            "10 10",
            "ten",
            "?1",
            "\"10\"",
            ":MTA=:",
            "1000000000000000",
            "9223372036854775808",
            "18446744073709551616",
            "１０",
        ] {
            let ask = append().set("upload-offset", value);
            all.push(attack(value, ask, 400));
        }
        let twice = append().with("upload-offset", "10");
        all.push(attack("twice", twice, 400));
        for value in ["0", "9", "11", "25", "26", "999999999999999", "0;a=b"] {
            for ask in [append(), append().set("upload-complete", "?1")] {
                let ask = ask.set("upload-offset", value);
                all.push(attack((value, &ask), ask.clone(), 409));
            }
        }
        // A new upload has no offset.
        for value in ["0", "10", "x"] {
            let ask = Draft.create(ATTACKER).with("upload-offset", value);
            all.push(attack(("creation", value), ask, 400));
        }
        for method in ["HEAD", "DELETE"] {
            for (name, value) in [
                ("upload-offset", "10"),
                ("upload-complete", "?0"),
                ("upload-incomplete", "?1"),
                ("upload-length", "25"),
            ] {
                let ask = own.ask(method).with(name, value);
                all.push(attack((method, name), ask, 400));
            }
        }
        all
    })
    .await;
}

async fn conflicting(world: &World) {
    // The first version has a header of its own, with the opposite meaning.
    refused(world, Draft, |own, _| {
        let append = || own.append(STORED, b"x").without("upload-complete");
        let mut all = Vec::new();
        for version in [None, Some("3"), Some("5"), Some("8"), Some("99"), Some("x")] {
            for value in ["?0", "?1"] {
                let ask = append().with("upload-complete", value);
                let ask = ask.with("upload-incomplete", value);
                let ask = match version {
                    Some(version) => ask.with("upload-draft-interop-version", version),
                    None => ask,
                };
                all.push(attack((version, value), ask, 400));
            }
        }
        all
    })
    .await;
    for value in ["?0", "?1"] {
        let before = world.passed().len();
        let ask = Draft.create(ATTACKER).set("upload-complete", value);
        let ask = ask.with("upload-incomplete", value).body(b"x");
        let answer = world.attack_bytes(ask.bytes()).await;
        assert_eq!((answer.status, &*answer.text()), (200, "passed"), "{ask:?}");
        assert_eq!(world.passed().len(), before + 1);
    }
}

async fn lengths(world: &World) {
    refused(world, Draft, |own, _| {
        let mut all = Vec::new();
        for (body, complete, length) in [
            // Other than the creation has declared.
            (&b"x"[..], "?0", Some("24")),
            (b"x", "?0", Some("26")),
            (b"", "?0", Some("0")),
            // It ends before its length.
            (b"x", "?1", None),
            (b"", "?1", None),
            (b"x", "?1", Some("11")),
            (b"x", "?1", Some("25")),
        ] {
            let ask = own.append(STORED, body).set("upload-complete", complete);
            let ask = match length {
                Some(length) => ask.with("upload-length", length),
                None => ask,
            };
            let label = (String::from_utf8_lossy(body), complete, length);
            all.push(attack(&label, ask, 400));
        }
        let creation = |length: &str, complete: &str| {
            let ask = Draft.create(ATTACKER).set("upload-length", length);
            ask.set("upload-complete", complete).body(b"hello")
        };
        for (length, complete) in [("4", "?1"), ("6", "?1"), ("0", "?1"), ("4", "?0")] {
            let ask = creation(length, complete);
            all.push(attack((length, complete), ask.clone(), 400));
            all.push(attack((length, complete, "chunked"), ask.chunked(""), 400));
        }
        all.push(attack("too large", creation("999999999999999", "?0"), 413));
        let append = own.append(STORED, b"x");
        let ask = append.with("upload-length", "999999999999999");
        all.push(attack("too large, later", ask, 413));
        all
    })
    .await;
    // The length of this body is known at its end. What has arrived is the file's.
    let mut own = Upload::begin(world, Draft, ATTACKER).await;
    let ask = own.append(STORED, &own.content[STORED..20]);
    let ask = ask.set("upload-complete", "?1").chunked("");
    let answer = world.attack_bytes(ask.bytes()).await;
    assert_eq!(
        (answer.status, &*answer.code()),
        (400, "inconsistent_length")
    );
    own.stored = 20;
    own.is_as_before(world, "a body that ends early").await;
    own.finish(world).await;
    // A request that is refused declares nothing.
    let creation = Draft.create(ATTACKER).without("upload-length");
    let own = Upload::begin_as(world, Draft, ATTACKER, creation).await;
    let declaring = |ask: Ask| ask.with("upload-length", "12");
    let attacks = vec![
        attack(
            "another offset",
            declaring(own.append(STORED - 1, b"x")),
            409,
        ),
        attack(
            "a digest",
            declaring(
                own.append(STORED, b"x")
                    .with("content-digest", "sha-256=:x:"),
            ),
            400,
        ),
        attack(
            "a coding",
            declaring(own.append(STORED, b"x").with("content-encoding", "gzip")),
            415,
        ),
    ];
    refused_beside(world, &[&own], attacks).await;
    let head = world.attack_bytes(own.ask("HEAD").bytes()).await;
    assert_eq!(head.header("upload-length"), None, "{head:?}");
    own.finish(world).await;
    // A value that is no integer is ignored.
    for length in ["+5", "5.0", "-5", "5, 5", "x", "1000000000000000", "\"5\""] {
        let ask = Draft.create(ATTACKER).set("upload-length", length);
        let ask = ask.set("upload-complete", "?1").body(b"hello");
        assert_eq!(taken(world, &ask, 200).await.content, b"hello");
    }
}

/// The draft demands that such an upload is invalid from then on.
async fn longer(world: &World) {
    let neighbour = Upload::begin(world, Draft, NEIGHBOUR).await;
    for is_chunked in [false, true] {
        for len in [16, LEN, 1 << 16] {
            for complete in ["?0", "?1"] {
                let own = Upload::begin(world, Draft, ATTACKER).await;
                let ask = own.append(STORED, &vec![7; len]);
                let ask = ask.set("upload-complete", complete);
                let ask = if is_chunked { ask.chunked("") } else { ask };
                let answer = world.attack_bytes(ask.bytes()).await;
                let label = (is_chunked, len, complete);
                assert_eq!(answer.status, 400, "{label:?} {answer:?}");
                assert_eq!(answer.code(), "out_of_bounds", "{label:?}");
                assert_eq!(answer.header("upload-complete"), Some("?0"));
                let head = world.attack_bytes(own.ask("HEAD").bytes()).await;
                assert_eq!(head.status, 404, "{label:?} {head:?}");
            }
        }
    }
    assert!(world.deliveries().is_empty());
    neighbour.finish(world).await;
}

async fn media_types(world: &World) {
    refused(world, Draft, |own, _| {
        let append = || own.append(STORED, b"x");
        let mut all = vec![attack("none", append().without("content-type"), 415)];
        for value in [
            "",
            "application/octet-stream",
            "application/partial-upload2",
            "partial-upload",
            "application/offset+octet-stream",
            "text/plain, application/partial-upload",
            "multipart/form-data; boundary=x",
            "*/*",
        ] {
            let ask = append().set("content-type", value);
            all.push(attack(value, ask, 415));
        }
        let twice = append().set("content-type", "text/plain");
        let twice = twice.with("content-type", "application/partial-upload");
        all.push(attack("two types", twice, 415));
        for value in ["gzip", "identity, gzip"] {
            let ask = append().with("content-encoding", value);
            all.push(attack(("coding", value), ask, 415));
            let creation = Draft.create(ATTACKER).with("content-encoding", value);
            all.push(attack(("coding of a creation", value), creation, 415));
        }
        for method in ["POST", "PUT", "QUERY", "COPY"] {
            all.push(attack(method, append().by(method), 405));
        }
        let gone = Draft.append(ATTACKER, "/upload", STORED, b"x", false);
        all.push(attack("an append to no upload", gone, 404));
        all
    })
    .await;
}

async fn digests(world: &World) {
    let wrong = "sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:";
    refused(world, Draft, |own, _| {
        let append = || own.append(STORED, b"hello");
        let mut all = Vec::new();
        for value in ["sha-256=:x:", "sha-256=:AAAA:", wrong] {
            let ask = append().with("content-digest", value);
            all.push(attack(value, ask.clone(), 400));
            all.push(attack((value, "chunked"), ask.chunked(""), 400));
            let creation = Draft.create(ATTACKER).body(b"hello");
            let ask = creation.clone().with("content-digest", value);
            all.push(attack(("creation", value), ask, 400));
            if value != wrong {
                let ask = creation.with("repr-digest", value);
                all.push(attack(("repr-digest", value), ask, 400));
            }
        }
        all
    })
    .await;
    // That of the whole file is compared at its end.
    let before = world.deliveries().len();
    let ask = Draft.create(ATTACKER).set("upload-complete", "?1");
    let ask = ask.with("repr-digest", wrong).body(&content_of(ATTACKER));
    let answer = world.attack_bytes(ask.bytes()).await;
    assert_eq!(
        (answer.status, &*answer.code()),
        (400, "file_digest_mismatch")
    );
    assert_eq!(world.deliveries().len(), before);
    assert_eq!(
        world.unfinished(ATTACKER).await.as_array().map(Vec::len),
        Some(0)
    );
}

async fn mixed(world: &World) {
    // A request with `Tus-Resumable` is one of tus, whatever else it says.
    refused(world, Tus, |own, _| {
        let append = || own.append(STORED, b"x");
        let partial = ("content-type", "application/partial-upload");
        vec![
            attack("type", append().set(partial.0, partial.1), 415),
            attack(
                "type and complete",
                append()
                    .set(partial.0, partial.1)
                    .with("upload-complete", "?1"),
                415,
            ),
            attack(
                "offset",
                append()
                    .with("upload-complete", "?1")
                    .set("upload-offset", "0;a=b"),
                400,
            ),
            attack(
                "length",
                append()
                    .with("upload-complete", "?1")
                    .with("upload-length", "11"),
                400,
            ),
            attack(
                "creation",
                Tus.create(ATTACKER)
                    .without("upload-length")
                    .with("upload-complete", "?1"),
                400,
            ),
        ]
    })
    .await;
    // `?1` means nothing in tus: the file is complete at its length.
    let creation = Tus.create(ATTACKER).with("upload-complete", "?1");
    let own = Upload::begin_as(world, Tus, ATTACKER, creation).await;
    let ask = own.append(STORED, &own.content[STORED..STORED + 1]);
    let ask = ask.with("upload-complete", "?1");
    let answer = world.attack_bytes(ask.bytes()).await;
    assert_eq!(
        (answer.status, answer.header("upload-offset")),
        (204, Some("11"))
    );
    let mut own = Upload { stored: 11, ..own };
    own.is_as_before(world, "`?1` of the draft").await;
    // A request of the draft for an upload of tus.
    let (url, stored) = (own.url.clone(), own.stored);
    let draft = |body: &[u8], ends| Draft.append(ATTACKER, &url, stored, body, ends);
    let attacks = vec![
        attack("complete too early", draft(b"x", true), 400),
        attack("complete without bytes", draft(b"", true), 400),
        attack(
            "another length",
            draft(b"x", false).with("upload-length", "12"),
            400,
        ),
    ];
    refused_in(world, &own, attacks).await;
    own.store(world, LEN - 1).await;
    own.finish(world).await;
    // A request of tus for an upload of the draft, which has no length before its end.
    let creation = Draft.create(ATTACKER).without("upload-length");
    let url = created(world, Draft, ATTACKER, &creation).await;
    let content = content_of(ATTACKER);
    let ask = Tus.append(ATTACKER, &url, 0, &content, false);
    let answer = world.attack_bytes(ask.bytes()).await;
    assert_eq!(
        (answer.status, answer.header("upload-offset")),
        (204, Some("25"))
    );
    let last = Draft.append(ATTACKER, &url, LEN, b"", true);
    assert!(taken(world, &last, 200).await.content == content);
}

/// As [`refused_beside`], with answers of the draft for an upload of tus.
async fn refused_in(world: &World, own: &Upload, attacks: Vec<Attack>) {
    for attack in attacks {
        let label = attack.0.clone();
        refused_beside(world, &[], vec![attack]).await;
        own.is_as_before(world, &label).await;
    }
}
