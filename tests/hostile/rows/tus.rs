//! Requests of tus 1.0 that no honest client sends. Where the IETF draft has the same, of both.

use std::time::Duration;

use tokio::{io::AsyncWriteExt as _, net::TcpStream};
use tower_resumable::{Limits, ResumableLayer};

use super::case;
use crate::{
    urls::{
        Ask, Attack, BOTH, LEN, Protocol, STORED, Upload, base64, content_of, created,
        is_harmless_file, refused, refused_beside, taken,
    },
    wire::{Answer, read_answer},
    world::{ATTACKER, Case, NEIGHBOUR, World},
};

use Protocol::{Draft, Tus};

pub const CASES: &[Case] = &[
    case!("81", "tus: values that are not numbers", none),
    case!("81", "tus: numbers of 63, 64, 65 bits, of 30 digits", huge),
    case!("82", "tus: a header twice, or as a list", twice),
    case!(
        "83",
        "tus: a length that is missing, doubled, too small",
        lengths
    ),
    case!("83", "tus: a length that is declared twice", two_lengths),
    case!("84", "tus: metadata bombs", bombs),
    case!("84", "tus, draft: file names that are paths", names),
    case!(
        "85",
        "tus, draft: URLs of another scope, forged URLs",
        forged
    ),
    case!("85", "tus, draft: what is smuggled in `upload=`", smuggled),
    case!(
        "86",
        "tus: parts that are foreign, absent, whole, too many",
        parts
    )
    .with(small),
    case!("86", "tus: parts that are not complete", unfinished),
    case!("87", "tus: checksums that cannot be checked", checksums),
    case!("88", "tus: other media types and codings", media_types),
    case!("89", "tus: bodies longer than the upload", longer),
    case!("89", "tus, draft: appends to what was delivered", delivered),
    case!("90", "tus, draft: bodies that drip and stall", slow)
        .with(impatient)
        .alone(),
    case!("91", "tus: other methods by override", overrides),
    case!("92", "tus: other versions", versions),
    case!("93", "tus, draft: 60 uploads without bytes", many).with(few),
];

fn small(layer: ResumableLayer) -> ResumableLayer {
    layer.with_limits(Limits::default().with_file_size(4096))
}

fn attack(label: impl std::fmt::Debug, ask: Ask, status: u16) -> Attack {
    (format!("{label:?}"), ask, status)
}

/// Values that are not numbers of bytes.
const NO_NUMBERS: [&str; 20] = [
    "-1", "+1", "-0", "0x1", "1e3", "1.0", "01", "00", "", "1,2", "1 2", "1_0", "NaN", "null",
    "true", "１", "١", "\"5\"", "?1", "5;a=b",
];

async fn none(world: &World) {
    refused(world, Tus, |own, _| {
        let values = NO_NUMBERS.iter().flat_map(|value| {
            let creation = Tus.create(ATTACKER).set("upload-length", value);
            let at = own.append(STORED, b"x").set("upload-offset", value);
            let length = own.append(STORED, b"x").with("upload-length", value);
            [("creation", creation), ("offset", at), ("length", length)]
                .map(|(what, ask)| attack((what, value), ask, 400))
        });
        values.collect()
    })
    .await;
}

async fn huge(world: &World) {
    let (most, too_long) = ("9223372036854775807", "18446744073709551616");
    let sixty_four = ["9223372036854775808", "18446744073709551615"];
    refused(world, Tus, |own, _| {
        let mut all = Vec::new();
        for value in [most].iter().chain(&sixty_four) {
            let creation = Tus.create(ATTACKER).set("upload-length", value);
            all.push(attack(("creation", value), creation, 413));
            let at = own.append(STORED, b"x").set("upload-offset", value);
            all.push(attack(("offset", value), at, 409));
            let length = own.append(STORED, b"x").with("upload-length", value);
            all.push(attack(("length", value), length, 400));
        }
        for value in [too_long, "999999999999999999999999999999"] {
            let creation = Tus.create(ATTACKER).set("upload-length", value);
            let at = own.append(STORED, b"x").set("upload-offset", value);
            let length = own.append(STORED, b"x").with("upload-length", value);
            all.extend([creation, at, length].map(|ask| attack(value, ask, 400)));
        }
        all
    })
    .await;
    // The length is not known yet.
    let creation = Tus.create(ATTACKER).without("upload-length");
    let creation = creation.with("upload-defer-length", "1");
    let own = Upload::begin_as(world, Tus, ATTACKER, creation).await;
    let mut all = Vec::new();
    for value in [most].into_iter().chain(sixty_four) {
        let ask = own.append(STORED, b"x").with("upload-length", value);
        all.push(attack(("length", value), ask, 413));
        for body in [&b""[..], b"x"] {
            let ask = own.append(STORED, body).set("upload-offset", value);
            all.push(attack(("offset", value, body.len()), ask, 409));
        }
    }
    refused_beside(world, &[&own], all).await;
    own.discard(world).await;
}

async fn twice(world: &World) {
    refused(world, Tus, |own, _| {
        let append = || own.append(STORED, b"x");
        let creation = || Tus.create(ATTACKER);
        let sha1 = "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0=";
        let mut all = Vec::new();
        for (name, values, ask) in [
            ("upload-length", ["25", "25"], creation()),
            ("upload-length", ["25", "26"], creation()),
            ("upload-length", ["25", "25"], append()),
            ("upload-offset", ["10", "10"], append()),
            ("upload-offset", ["10", "0"], append()),
            ("upload-concat", ["partial", "partial"], creation()),
            ("upload-concat", ["partial", "final;/x"], creation()),
            ("upload-checksum", [sha1, sha1], append()),
            (
                "upload-defer-length",
                ["1", "1"],
                creation().without("upload-length"),
            ),
        ] {
            let ask = ask.without(name);
            let doubled = ask.clone().with(name, values[0]).with(name, values[1]);
            all.push(attack((name, values), doubled, 400));
            let list = ask.with(name, values.join(", "));
            all.push(attack((name, values, "list"), list, 400));
        }
        for (first, second) in [("1.0.0", "0.2.2"), ("0.2.2", "1.0.0")] {
            for ask in [creation(), append(), own.ask("DELETE"), own.ask("HEAD")] {
                let ask = ask.set("tus-resumable", first);
                let ask = ask.with("tus-resumable", second);
                all.push(attack(("tus-resumable", first), ask, 412));
            }
        }
        all
    })
    .await;
}

async fn lengths(world: &World) {
    refused(world, Tus, |own, _| {
        let none = || Tus.create(ATTACKER).without("upload-length");
        let deferred = |value: &str| none().with("upload-defer-length", value);
        let mut all = vec![
            attack("no length", none(), 400),
            attack("both", deferred("1").with("upload-length", "25"), 400),
        ];
        for value in ["0", "2", "", "true", "1, 1", "?1"] {
            all.push(attack(("deferred", value), deferred(value), 400));
        }
        for length in ["0", "9", "10", "11", "24", "26"] {
            for body in [&b""[..], b"x"] {
                let ask = own.append(STORED, body).with("upload-length", length);
                all.push(attack(("length", length, body.len()), ask, 400));
            }
        }
        // More bytes than the upload that they create.
        let with_data = |length: &str| {
            let ask = Tus.create(ATTACKER).set("upload-length", length);
            ask.with("content-type", "application/offset+octet-stream")
                .body(b"hello")
        };
        for length in ["0", "4"] {
            all.push(attack(("creation", length), with_data(length), 413));
            let unknown = with_data(length).chunked("");
            all.push(attack(("chunked creation", length), unknown, 413));
        }
        all
    })
    .await;
}

async fn two_lengths(world: &World) {
    let creation = Tus.create(ATTACKER).without("upload-length");
    let creation = creation.with("upload-defer-length", "1");
    let mut own = Upload::begin_as(world, Tus, ATTACKER, creation).await;
    // A length that is shorter than what is stored, or than what the request brings.
    let append = |body: &[u8], length: usize| {
        let ask = own.append(STORED, body);
        ask.with("upload-length", length.to_string())
    };
    let attacks = [(&b""[..], 9), (b"", 0), (b"x", 10)]
        .map(|(body, length)| attack((length, body.len()), append(body, length), 413));
    refused_beside(world, &[&own], attacks.into()).await;
    let told = world.attack_bytes(own.ask("HEAD").bytes()).await;
    assert_eq!(told.header("upload-defer-length"), Some("1"), "{told:?}");
    assert_eq!(told.header("upload-length"), None);
    let declared = world.attack_bytes(append(b"", LEN).bytes()).await;
    assert_eq!(declared.status, 204, "{declared:?}");
    let attacks = [(&b""[..], 24), (b"", 26), (b"x", 11), (b"", 10), (b"", 0)]
        .map(|(body, length)| attack((length, body.len()), append(body, length), 400));
    refused_beside(world, &[&own], attacks.into()).await;
    let again = append(b"", LEN);
    assert_eq!(world.attack_bytes(again.bytes()).await.status, 204);
    own.store(world, LEN - 1).await;
    own.finish(world).await;
}

async fn bombs(world: &World) {
    refused(world, Tus, |_, _| {
        let keys = |count: usize| {
            let keys: Vec<_> = (0..count).map(|nth| format!("k{nth}")).collect();
            keys.join(",")
        };
        let long = base64(vec![b'a'; 1025]);
        let bombs = [
            format!("a {}", base64(vec![b'a'; 12 << 10])),
            keys(65),
            keys(3000),
            format!("filename {long}"),
            format!("name {long}"),
            format!("filetype {}", base64([b'a'; 257])),
            format!("relativePath {}", base64([b'a'; 4097])),
            "a eA==,a eQ==".into(),
            "a,a".into(),
            "filename eA==,filename eA==".into(),
            "a e?==".into(),
            "a eA==eA==".into(),
            "a =".into(),
            "a e".into(),
            "a eA== eQ==".into(),
            "a eA_-".into(),
            ",".into(),
            "a,,b".into(),
            "a,".into(),
            "a eA==, ,b".into(),
            "\u{e9} eA==".into(),
        ];
        let asks = bombs.iter().map(|bomb| {
            let ask = Tus.create(ATTACKER).with("upload-metadata", bomb);
            let label: String = bomb.chars().take(40).collect();
            attack(label, ask, 400)
        });
        let mut asks: Vec<_> = asks.collect();
        // Many headers are one list.
        let half = base64(vec![b'a'; 6 << 10]);
        let ask = Tus.create(ATTACKER);
        let ask = ask.with("upload-metadata", format!("a {half}"));
        let ask = ask.with("upload-metadata", format!("b {half}"));
        asks.push(attack("two halves", ask, 400));
        let ask = Tus.create(ATTACKER).with("upload-metadata", "a eA==");
        let ask = ask.with("upload-metadata", "a eQ==");
        asks.push(attack("twice in two headers", ask, 400));
        asks
    })
    .await;
}

const NAMES: [&str; 22] = [
    "../../etc/passwd",
    "..",
    ".",
    "/etc/passwd",
    "C:\\windows\\x",
    "..\\..\\x",
    "x/../../../../canary",
    "a\0b",
    "a\nb",
    "a\r\nset-cookie: x",
    "\u{202e}gpj.exe",
    "\u{7f}\u{1b}[31m",
    "CON",
    "com1.txt",
    "x.txt:stream",
    "",
    " ",
    ".htaccess",
    "-rf",
    "%2e%2e%2fx",
    "file:///etc/passwd",
    "<img src=x onerror=alert(1)>",
];

async fn names(world: &World) {
    for name in NAMES {
        let value = base64(name);
        let metadata = format!("filename {value},relativePath {value},note {value}");
        let ask = Tus.create(ATTACKER).with("upload-metadata", &metadata);
        let url = created(world, Tus, ATTACKER, &ask).await;
        let content = content_of(ATTACKER);
        let append = Tus.append(ATTACKER, &url, 0, &content, true);
        let delivery = taken(world, &append, 204).await;
        assert!(delivery.content == content);
        is_harmless_file(world, &delivery);
        assert_eq!(delivery.upload.file_name(), Some(name));

        let coded: String = name.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let disposition = format!("inline; filename*=UTF-8''{coded}");
        let ask = Draft.create(ATTACKER).set("upload-complete", "?1");
        let ask = ask.with("content-disposition", &disposition).body(&content);
        let delivery = taken(world, &ask, 200).await;
        assert!(delivery.content == content);
        is_harmless_file(world, &delivery);
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

async fn forged(world: &World) {
    for protocol in BOTH {
        let neighbour = Upload::begin(world, protocol, NEIGHBOUR).await;
        let own = Upload::begin(world, protocol, ATTACKER).await;
        let token = neighbour.token();
        // Uploads of the draft have another first digit.
        let absent = format!("{}{}", &token[..1], "0".repeat(31));
        let of = |token: &str| format!("/upload?upload={token}");
        let patch = |url: &str| protocol.append(ATTACKER, url, STORED, b"x", false);
        for url in [
            neighbour.url.clone(),
            of(&token.replace(&token[1..], &absent[1..])),
        ] {
            for method in ["HEAD", "PATCH", "DELETE"] {
                let ask = |url: &str| match method {
                    "PATCH" => patch(url),
                    _ => protocol.ask(ATTACKER, method, url),
                };
                let answer = world.attack_bytes(ask(&url).bytes()).await;
                assert_eq!(answer.status, 404, "{method} {url} {answer:?}");
                let none = world.attack_bytes(ask(&of(&absent)).bytes()).await;
                assert_eq!(dateless(&answer), dateless(&none));
            }
        }
        // Its own token in another scope, and on another path.
        let ask = Ask::new("", "HEAD", &own.url).with("tus-resumable", "1.0.0");
        assert_eq!(world.attack_bytes(ask.bytes()).await.status, 404);
        neighbour.is_as_before(world, "forged URLs").await;
        own.is_as_before(world, "forged URLs").await;
        own.finish(world).await;
        neighbour.finish(world).await;
    }
}

async fn smuggled(world: &World) {
    for protocol in BOTH {
        refused(world, protocol, |own, neighbour| {
            let (token, foreign) = (own.token(), neighbour.token());
            let queries = [
                String::new(),
                "upload=".into(),
                "upload=../../etc/passwd".into(),
                "upload=%2e%2e%2fpasswd".into(),
                format!("upload={token}%00"),
                format!("upload={token}/../../x"),
                format!("upload={token}0"),
                format!("upload={}", &token[1..]),
                format!("upload={}", token.to_uppercase()),
                format!("upload=%{:02x}{}", token.as_bytes()[0], &token[1..]),
                format!("upload={token}&upload={token}"),
                format!("upload={foreign}&upload={token}"),
                format!("upload={token}&upload={foreign}"),
                format!("upload={token};x"),
                format!(";upload={token}"),
                format!("?upload={token}"),
                format!("UPLOAD={token}"),
                format!("upl%6fad={token}"),
                format!("upload[]={token}"),
                format!("upload+={token}"),
            ];
            let mut all = Vec::new();
            for query in queries {
                let target = format!("/upload?{query}");
                let ask = protocol.append(ATTACKER, &target, STORED, b"x", false);
                all.push(attack(query, ask, 404));
            }
            all
        })
        .await;
    }
    // Other paths than that of the layer are not for it.
    let own = Upload::begin(world, Tus, ATTACKER).await;
    let token = own.token();
    for target in [
        format!("/upload/?upload={token}"),
        format!("/Upload?upload={token}"),
        format!("/upload/{token}"),
        format!("/upload/../upload?upload={token}"),
        format!("/upload%2f..%2fupload?upload={token}"),
        format!("/other?upload={token}"),
    ] {
        let ask = Tus.append(ATTACKER, &target, STORED, b"x", false);
        let answer = world.attack_bytes(ask.bytes()).await;
        assert_eq!(
            (answer.status, &*answer.text()),
            (200, "passed"),
            "{target}"
        );
        own.is_as_before(world, &target).await;
    }
    own.finish(world).await;
}

fn part(user: &str) -> Ask {
    Tus.create(user).with("upload-concat", "partial")
}

fn concat(urls: &[&str]) -> Ask {
    let list = format!("final;{}", urls.join(" "));
    let ask = Tus.create(ATTACKER).without("upload-length");
    ask.with("upload-concat", list)
}

/// A part whose bytes are all stored.
async fn whole_part(world: &World, user: &str) -> Upload {
    let mut part = Upload::begin_as(world, Tus, user, part(user)).await;
    part.store(world, LEN).await;
    part
}

async fn parts(world: &World) {
    let (first, second) = (
        whole_part(world, ATTACKER).await,
        whole_part(world, ATTACKER).await,
    );
    let foreign = whole_part(world, NEIGHBOUR).await;
    let whole = Upload::begin(world, Tus, ATTACKER).await;
    let absent = format!("/upload?upload={}", "0".repeat(32));
    let (a, b) = (&*first.url, &*second.url);
    let other = |value: &str| {
        let ask = Tus.create(ATTACKER);
        ask.with("upload-concat", value)
    };
    let attacks = vec![
        attack("no part", concat(&[]), 400),
        attack("empty names", concat(&["", " ", ""]), 400),
        attack("no URL of an upload", concat(&["http://x/other"]), 400),
        attack("an absent part", concat(&[&absent]), 400),
        attack("a part and an absent one", concat(&[a, &absent]), 400),
        attack("a foreign part", concat(&[&foreign.url]), 400),
        attack("a part and a foreign one", concat(&[a, &foreign.url]), 400),
        attack("an upload that is no part", concat(&[&whole.url]), 400),
        attack("a list with commas", concat(&[&format!("{a},{b}")]), 400),
        attack("a traversal", concat(&["/upload?upload=../../x"]), 400),
        attack("two tokens", concat(&[&format!("{a}&upload=x")]), 400),
        attack("1,001 parts", concat(&[a; 1001]), 400),
        attack("more than the largest file", concat(&[a; 164]), 413),
        attack("a length", concat(&[a, b]).with("upload-length", "50"), 400),
        attack(
            "a length that comes later",
            concat(&[a, b]).with("upload-defer-length", "1"),
            400,
        ),
        attack("Final", other(&format!("Final;{a}")), 400),
        attack("final", other("final"), 400),
        attack("partial with URLs", other(&format!("partial;{a}")), 400),
        attack("another word", other("whole"), 400),
    ];
    refused_beside(world, &[&first, &second, &whole], attacks).await;
    foreign.is_as_before(world, "foreign concatenations").await;
    // A part is no file.
    for ask in [first.append(LEN, b""), first.ask("GET")] {
        let before = world.deliveries().len();
        world.attack_bytes(ask.bytes()).await;
        assert_eq!(world.deliveries().len(), before, "{ask:?}");
    }
    let delivery = taken(world, &concat(&[a, b, a]), 201).await;
    let content = content_of(ATTACKER);
    assert!(delivery.content == [&content[..], &content, &content].concat());
    // Its parts are removed.
    while world.unfinished(ATTACKER).await.as_array().map(Vec::len) != Some(1) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // An upload of parts is no part, neither of another one nor of itself.
    let final_url = format!("/upload?upload={}", delivery.upload.identifier());
    let attacks = vec![
        attack("an upload of parts", concat(&[&final_url]), 400),
        attack("an upload and itself", concat(&[a, &final_url]), 400),
    ];
    refused_beside(world, &[&whole], attacks).await;
    let append = Tus.append(ATTACKER, &final_url, 75, b"x", false);
    assert_eq!(world.attack_bytes(append.bytes()).await.status, 403);
    assert_eq!(world.deliveries().len(), 1);
    whole.finish(world).await;
    foreign.discard(world).await;
}

async fn unfinished(world: &World) {
    let first = whole_part(world, ATTACKER).await;
    let mut second = Upload::begin_as(world, Tus, ATTACKER, part(ATTACKER)).await;
    let ask = concat(&[&first.url, &second.url]);
    let url = created(world, Tus, ATTACKER, &ask).await;
    for _ in 0..2 {
        let head = Tus.ask(ATTACKER, "HEAD", &url);
        let told = world.attack_bytes(head.bytes()).await;
        assert_eq!((told.status, told.header("upload-offset")), (200, None));
        assert_eq!(told.header("upload-length"), None);
    }
    for offset in [0, LEN, 2 * LEN] {
        let append = Tus.append(ATTACKER, &url, offset, b"x", false);
        let answer = world.attack_bytes(append.bytes()).await;
        assert_eq!(answer.status, 403, "{answer:?}");
    }
    let with_length = Tus.append(ATTACKER, &url, 0, b"", false);
    let with_length = with_length.with("upload-length", "1");
    assert_eq!(world.attack_bytes(with_length.bytes()).await.status, 403);
    first
        .is_as_before(world, "appends to what is made of it")
        .await;
    second
        .is_as_before(world, "appends to what is made of it")
        .await;
    assert!(world.deliveries().is_empty());
    // The same request twice, and another one with a part that is gone.
    assert_eq!(created(world, Tus, ATTACKER, &ask).await, url);
    let gone = Upload::begin_as(world, Tus, ATTACKER, part(ATTACKER)).await;
    let other = concat(&[&first.url, &gone.url]);
    let other_url = created(world, Tus, ATTACKER, &other).await;
    gone.discard(world).await;
    let head = Tus.ask(ATTACKER, "HEAD", &other_url);
    let told = world.attack_bytes(head.bytes()).await;
    assert_eq!((told.status, told.header("upload-offset")), (400, None));
    let discarded = Tus.ask(ATTACKER, "DELETE", &other_url);
    assert_eq!(world.attack_bytes(discarded.bytes()).await.status, 204);
    second.store(world, LEN).await;
    let told = world
        .attack_bytes(Tus.ask(ATTACKER, "HEAD", &url).bytes())
        .await;
    assert_eq!(
        (told.status, told.header("upload-offset")),
        (200, Some("50"))
    );
    let content = content_of(ATTACKER);
    let token = url.split_once("upload=").unwrap().1;
    assert!(world.delivery_at(token).content == [&content[..], &content].concat());
}

async fn checksums(world: &World) {
    let of_hello = "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=";
    refused(world, Tus, |own, _| {
        let append = || own.append(STORED, b"hello");
        let mut all = Vec::new();
        for (value, status) in [
            ("", 400),
            ("sha1", 400),
            ("sha1 ", 400),
            ("sha1 !!!!", 400),
            ("sha1 qvTGHdzF6KLavt4PO0gs2a6pQ0", 400),
            ("sha1 AAAA", 400),
            ("sha1  qvTGHdzF6KLavt4PO0gs2a6pQ00= x", 400),
            ("qvTGHdzF6KLavt4PO0gs2a6pQ00=", 400),
            ("md6 AAAAAAAAAAAAAAAAAAAAAA==", 400),
            ("../sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=", 400),
            ("sha1,sha256 qvTGHdzF6KLavt4PO0gs2a6pQ00=", 400),
            ("sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=", 460),
            ("sha256 AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 460),
            ("md5 AAAAAAAAAAAAAAAAAAAAAA==", 460),
            ("crc32 AAAAAA==", 460),
        ] {
            let ask = append().with("upload-checksum", value);
            all.push(attack(value, ask.clone(), status));
            all.push(attack((value, "chunked"), ask.chunked(""), status));
            // The same in a trailer. hyper drops empty and invalid ones.
            let trailer = format!("upload-checksum: {value}\r\n");
            let follows = append().with("trailer", "upload-checksum");
            let follows = follows.chunked(&trailer);
            all.push(attack((value, "trailer"), follows, status));
        }
        // A checksum is announced, and does not follow.
        let announced = append().with("trailer", "Upload-Checksum");
        all.push(attack("no trailer", announced.clone().chunked(""), 400));
        all.push(attack("no trailers", announced.clone(), 400));
        let other = announced.clone().chunked("expires: 0\r\n");
        all.push(attack("another trailer", other, 400));
        // The header holds, and the trailer does not.
        let both = announced.with("upload-checksum", of_hello);
        let both = both.chunked("upload-checksum: sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=\r\n");
        all.push(attack("header and trailer", both, 460));
        let creation = Tus.create(ATTACKER).body(b"hello");
        let creation = creation.with("content-type", "application/offset+octet-stream");
        for (value, status) in [
            ("md6 AAAA", 400),
            ("sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA=", 460),
        ] {
            let ask = creation.clone().with("upload-checksum", value);
            all.push(attack(("creation", value), ask, status));
        }
        all
    })
    .await;
}

async fn media_types(world: &World) {
    refused(world, Tus, |own, _| {
        let append = || own.append(STORED, b"x");
        let mut all = vec![attack("none", append().without("content-type"), 415)];
        for value in [
            "",
            "application/octet-stream",
            "application/partial-upload",
            "application/offset+octet-stream2",
            "offset+octet-stream",
            "text/plain, application/offset+octet-stream",
            "multipart/form-data; boundary=x",
            "*/*",
            "\u{e9}",
        ] {
            let ask = append().set("content-type", value);
            all.push(attack(value, ask, 415));
        }
        let other = append().set("content-type", "text/plain").body(b"");
        all.push(attack("no bytes of another type", other, 415));
        let twice = append().set("content-type", "text/plain");
        let twice = twice.with("content-type", "application/offset+octet-stream");
        all.push(attack("two types", twice, 415));
        for value in ["gzip", "identity, gzip", "x"] {
            let ask = append().with("content-encoding", value);
            all.push(attack(("coding", value), ask, 415));
        }
        all
    })
    .await;
}

async fn longer(world: &World) {
    refused(world, Tus, |own, _| {
        let rest = LEN - STORED;
        let lens = [rest + 1, LEN, 1 << 16, 1 << 20];
        let asks = lens.map(|len| {
            let ask = own.append(STORED, &vec![7; len]);
            attack(len, ask, 413)
        });
        asks.into()
    })
    .await;
    // A length that is not declared is counted. What fits stays: it is the upload's.
    let own = Upload::begin(world, Tus, ATTACKER).await;
    let ask = own.append(STORED, &vec![7; 1 << 16]).chunked("");
    let answer = world.attack_bytes(ask.bytes()).await;
    assert_eq!(answer.status, 413, "{answer:?}");
    own.is_as_before(world, "a body of unknown length").await;
    // The head declares more than it sends, and then less.
    let ask = own.append(STORED, &own.content[STORED..]);
    let declared = String::from_utf8(ask.head()).unwrap();
    let short = declared.replace("content-length: 15", "content-length: 14");
    let bytes = [short.as_bytes(), &ask.body].concat();
    let answer = world.attack_bytes(bytes).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    assert_eq!(answer.header("upload-offset"), Some("24"));
    let own = Upload {
        stored: LEN - 1,
        ..own
    };
    own.finish(world).await;
}

async fn delivered(world: &World) {
    for protocol in BOTH {
        let own = Upload::begin(world, protocol, ATTACKER).await;
        let ended = own.clone();
        own.finish(world).await;
        let count = world.deliveries().len();
        // The client may have lost the answer. It may not know that nothing is left to send.
        let status = if protocol == Tus { 204 } else { 200 };
        let empty = ended.append(LEN, b"");
        for ask in [empty.clone(), empty.chunked("")] {
            let answer = world.attack_bytes(ask.bytes()).await;
            assert_eq!(answer.status, status, "{ask:?} {answer:?}");
        }
        for (offset, body) in [(LEN, &b"x"[..]), (LEN - 1, b"x"), (0, b""), (0, b"x")] {
            let ask = ended.append(offset, body);
            for ask in [ask.clone(), ask.chunked("")] {
                let answer = world.attack_bytes(ask.bytes()).await;
                assert_eq!(answer.status, 409, "{ask:?} {answer:?}");
                assert_eq!(answer.header("upload-offset"), Some("25"));
            }
        }
        assert_eq!(world.deliveries().len(), count);
    }
}

fn impatient(layer: ResumableLayer) -> ResumableLayer {
    let limits = Limits::default().with_idle(Duration::from_millis(300));
    let limits = limits.with_min_rate(1 << 20);
    layer.with_limits(limits.with_grace(Duration::from_millis(500)))
}

/// Bodies that bring a byte now and then, and bodies that bring none any more.
async fn slow(world: &World) {
    for protocol in BOTH {
        for drips in [false, true] {
            let neighbour = Upload::begin(world, protocol, NEIGHBOUR).await;
            let mut slow = Vec::new();
            for _ in 0..20 {
                let own = Upload::begin(world, protocol, ATTACKER).await;
                let ask = own.append(STORED, &own.content[STORED..]);
                let mut socket = TcpStream::connect(world.addr).await.unwrap();
                socket.set_nodelay(true).unwrap();
                socket.write_all(&ask.head()).await.unwrap();
                socket.write_all(&ask.body[..1]).await.unwrap();
                slow.push((own, ask, socket));
            }
            // Meanwhile another upload is finished.
            neighbour.finish(world).await;
            let ending = slow.into_iter().map(|(mut own, ask, socket)| async move {
                let (mut read, mut write) = socket.into_split();
                let mut sent = 1;
                let dripping = async {
                    while drips && sent + 1 < ask.body.len() {
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        // It fails once the server has closed the connection.
                        if write.write_all(&ask.body[sent..sent + 1]).await.is_err() {
                            break;
                        }
                        sent += 1;
                    }
                    std::future::pending::<()>().await;
                };
                let answer = tokio::select! {
                    answer = read_answer(&mut read) => answer,
                    () = dripping => unreachable!(),
                };
                world.note(&answer);
                assert_eq!((answer.status, &*answer.code()), (503, "too_slow"));
                // All that the server has read is kept.
                let told = world.attack_bytes(own.ask("HEAD").bytes()).await;
                let told = told.header("upload-offset").unwrap().parse().unwrap();
                assert!((STORED + 1..=STORED + sent).contains(&told), "{told}");
                own.stored = told;
                own.finish(world).await;
            });
            futures_util::future::join_all(ending).await;
        }
    }
}

async fn overrides(world: &World) {
    let over = |ask: Ask, method: &str| ask.with("x-http-method-override", method);
    refused(world, Tus, |own, neighbour| {
        let mut all = Vec::new();
        let post = |url: &str| Tus.append(ATTACKER, url, STORED, b"x", false).by("POST");
        for method in [
            "",
            "POST",
            "PUT",
            "OPTIONS",
            "CONNECT",
            "TRACE",
            "patch",
            "delete",
            "PATCH,DELETE",
            "P TCH",
            "PATCH /x",
            "\u{e9}",
            "DELETE;x",
        ] {
            all.push(attack(method, over(post(&own.url), method), 405));
            if !["", "POST"].contains(&method) {
                let creation = over(Tus.create(ATTACKER), method);
                all.push(attack(("creation", method), creation, 405));
            }
        }
        for methods in [["PATCH", "DELETE"], ["DELETE", "PATCH"], ["POST", "DELETE"]] {
            let ask = over(over(post(&own.url), methods[0]), methods[1]);
            all.push(attack(methods, ask, 405));
        }
        for method in ["PATCH", "DELETE", "HEAD"] {
            all.push(attack(method, over(post(&neighbour.url), method), 404));
            let creation = over(Tus.create(ATTACKER), method);
            all.push(attack(("creation", method), creation, 404));
            let plain = over(post(&own.url), method).without("tus-resumable");
            if method != "HEAD" {
                all.push(attack(("no version", method), plain, 412));
            }
        }
        all
    })
    .await;
    // Only of `POST`.
    let own = Upload::begin(world, Tus, ATTACKER).await;
    for (method, status) in [("HEAD", 200), ("GET", 404), ("OPTIONS", 204)] {
        for other in ["DELETE", "PATCH"] {
            let ask = over(own.ask(method), other);
            let answer = world.attack_bytes(ask.bytes()).await;
            assert_eq!(answer.status, status, "{method} as {other} {answer:?}");
            own.is_as_before(world, other).await;
        }
    }
    let ask = over(own.append(STORED, b"x").without("upload-offset"), "DELETE");
    assert_eq!(world.attack_bytes(ask.bytes()).await.status, 400);
    own.is_as_before(world, "an append that says `DELETE`")
        .await;
    own.finish(world).await;
}

async fn versions(world: &World) {
    refused(world, Tus, |own, _| {
        let mut all = Vec::new();
        for version in [
            "0.2.2",
            "1.0",
            "1",
            "1.0.1",
            "1.0.0.0",
            "*",
            "",
            "1.0.0,1.0.0",
            "\u{e9}",
        ] {
            let list = own.append(STORED, b"x");
            for ask in [
                Tus.create(ATTACKER),
                list,
                own.ask("HEAD"),
                own.ask("DELETE"),
            ] {
                let ask = ask.set("tus-resumable", version);
                all.push(attack(version, ask, 412));
            }
        }
        let append = own.append(STORED, b"x").without("tus-resumable");
        let discard = own.ask("DELETE").without("tus-resumable");
        all.push(attack("none", append, 412));
        all.push(attack("none", discard, 412));
        all
    })
    .await;
}

fn few(layer: ResumableLayer) -> ResumableLayer {
    layer.with_limits(Limits::default().with_uploads_per_scope(50))
}

async fn many(world: &World) {
    for protocol in BOTH {
        let neighbour = Upload::begin(world, protocol, NEIGHBOUR).await;
        let mut urls = Vec::new();
        for nth in 0..60 {
            let answer = world.attack_bytes(protocol.create(ATTACKER).bytes()).await;
            let expected = if nth < 50 { 201 } else { 503 };
            assert_eq!(answer.status, expected, "{nth} {answer:?}");
            protocol.is_spoken(&answer);
            urls.extend(answer.header("location").map(ToOwned::to_owned));
        }
        let list = world.unfinished(ATTACKER).await;
        assert_eq!(list.as_array().map(Vec::len), Some(50));
        neighbour.finish(world).await;
        for url in urls {
            let ask = protocol.ask(ATTACKER, "DELETE", &url);
            assert_eq!(world.attack_bytes(ask.bytes()).await.status, 204);
        }
    }
}
