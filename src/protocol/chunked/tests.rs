//! Tables of requests, of what is read in them, and of the answers.

use std::path::{Path, PathBuf};

use http::{Request, request::Parts};
use serde_json::{Value, json};

use super::*;
use crate::{
    hooks::Refusal,
    model::{
        ranges::RangeSet,
        state::{State, Status},
        upload::{Scope, Upload, UploadId},
    },
    protocol::{
        Described, Encode as _, Form, Identity, Outcome, Protocol, Protocols, Reply, Target,
    },
};

type Answer = Result<String, Error>;

/// `(folder, uploads, requests)`: requests that Chromium sent, and how they are decoded.
const CAPTURES: &[(&str, &str, &str)] = &[
    (
        "blueimp-10.32.0-binary",
        "x é.txt of 25, x é.txt",
        "octets 0+10, octets 10+10, octets 20+5",
    ),
    (
        "blueimp-10.32.0-chunk",
        "x é.txt of 25, x é.txt",
        "form 0+10, form 10+10, form 20+5",
    ),
    (
        "filepond-4.32.12-chunk",
        "id42 of 25, x é.txt",
        "create 25, octets 0+? (<=25), octets 10+? (<=15), octets 20+? (<=5)",
    ),
    (
        "filepond-4.32.12-exact-multiple",
        "id42 of 20, x é.txt",
        "create 20, octets 0+? (<=20), octets 10+? (<=10), octets 20+? (<=0)",
    ),
    (
        "webuploader-0.1.8-binary",
        "Mon Nov 23 2026 13:08:57 GMT+0000 (Coordinated Universal Time) of 25, x é.txt",
        "octets 0+10, octets 10+10, octets 20+5",
    ),
    (
        "webuploader-0.1.8-chunk",
        "Mon Nov 23 2026 13:08:57 GMT+0000 (Coordinated Universal Time) of 25, x é.txt",
        "form 0+10, form 10+10, form 20+5",
    ),
    (
        "dropzone-6.3.5-chunking",
        "42bb24ed-1fc4-49a9-92cc-5157b701c034 of 25, x.txt",
        "form 0+10, form 10+10, form 20+5",
    ),
    (
        "dropzone-6.3.5-forceChunking-zero",
        "dfeb4174-17a7-44c9-a009-545a2ee60f3e of 3, x.txt",
        "form 0+3",
    ),
    (
        "dropzone-6.3.5-retry503",
        "e2c716ce-b79e-4903-a874-a7c5b5a265e9 of 25, x.txt",
        "form 0+10, form 10+10, form 10+10, form 20+5",
    ),
    (
        "dropzone-6.3.5-small-notchunked",
        "its own of 3, x.txt",
        "whole 0+3",
    ),
    (
        "fine-uploader-5.16.2-chunk",
        "211ae548-6b81-4d24-ae47-dc297c16eb88 of 25, x é.txt",
        "form 0+10, form 10+10, form 20+5",
    ),
    (
        "fine-uploader-5.16.2-concurrent-success",
        "ad8f3618-10fd-4c5d-9f3b-847b272cf4ba of 25, x é.txt",
        "form 20+5, form 10+10, form 0+10, finish 0+25",
    ),
    (
        "flow-2.14.1-cors",
        "3-xtxt of 3, x.txt",
        "probe 0+3, pass, form 0+3",
    ),
    (
        "flow-2.14.1-default-204test",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "flow-2.14.1-dropped-connection",
        "25-xbin of 25, x.bin",
        "probe 0+10, form 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "flow-2.14.1-forceChunkSize",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+10, form 10+10, probe 20+5, form 20+5",
    ),
    (
        "flow-2.14.1-octet",
        "25-atxt of 25, a.txt",
        "probe 0+10, octets 0+10, probe 10+15, octets 10+15",
    ),
    (
        "flow-2.14.1-octet-notype",
        "25-bunknownext of 25, b.unknownext",
        "probe 0+10, octets 0+10, probe 10+15, octets 10+15",
    ),
    (
        "flow-2.14.1-parallel3",
        "95-pbin of 95, p.bin",
        "probe 0+10, probe 10+10, probe 20+10, form 0+10, form 10+10, form 20+10, \
         probe 30+10, probe 40+10, probe 50+10, form 30+10, form 40+10, form 50+10",
    ),
    ("flow-2.14.1-testHEAD", "", "blind probe"),
    (
        "flow-2.14.1-unicode-name",
        "5-dirtxt of 5, 日本\"語\n.txt",
        "probe 0+5, form 0+5",
    ),
    (
        "flow-2.14.1-zero",
        "0-zbin of 0, z.bin",
        "probe 0+0, form 0+0",
    ),
    (
        "resumable-1.0.2-default-404test",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "resumable-1.1.0-base64",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "resumable-1.1.0-cancel",
        "85-xbin of 85, x.bin",
        "probe 0+10, probe 10+10, form 0+10, form 10+10, probe 20+10, form 20+10, \
         probe 30+10, form 30+10",
    ),
    (
        "resumable-1.1.0-cors",
        "3-xtxt of 3, x.txt",
        "probe 0+3, pass, form 0+3",
    ),
    (
        "resumable-1.1.0-default-404test",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "resumable-1.1.0-dropped-connection",
        "25-xbin of 25, x.bin",
        "probe 0+10, form 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "resumable-1.1.0-filesuccess-message-late-chunk1",
        "30-xbin of 30, x.bin",
        "form 0+10, form 10+10, form 20+10",
    ),
    (
        "resumable-1.1.0-forceChunkSize",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+10, form 10+10, probe 20+5, form 20+5",
    ),
    (
        "resumable-1.1.0-octet",
        "25-atxt of 25, a.txt",
        "probe 0+10, octets 0+10, probe 10+15, octets 10+15",
    ),
    (
        "resumable-1.1.0-parallel3",
        "95-pbin of 95, p.bin",
        "probe 0+10, probe 10+10, probe 20+10, form 0+10, form 10+10, form 20+10, \
         probe 30+10, form 30+10, probe 40+10, probe 50+10, form 40+10, form 50+10",
    ),
    (
        "resumable-1.1.0-pause-resume",
        "35-xbin of 35, x.bin",
        "probe 0+10, probe 10+10, form 0+10, form 10+10, form 0+10, form 10+10, \
         probe 20+15, form 20+15",
    ),
    (
        "resumable-1.1.0-prioritize",
        "55-pbin of 55, p.bin",
        "probe 0+10, form 0+10, probe 40+15, form 40+15, probe 10+10, form 10+10, \
         probe 20+10, form 20+10, probe 30+10, form 30+10",
    ),
    (
        "resumable-1.1.0-settype",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "resumable-1.1.0-small",
        "3-sbin of 3, s.bin",
        "probe 0+3, form 0+3",
    ),
    (
        "resumable-1.1.0-target-function",
        "3-xtxt of 3, x.txt",
        "pass, form 0+3",
    ),
    (
        "resumable-1.1.0-testChunks-false-params-off",
        "3-sbin of 3, s.bin",
        "form 0+3",
    ),
    (
        "resumable-1.1.0-testHEAD",
        "3-sbin of 3, s.bin",
        "probe 0+3, form 0+3",
    ),
    (
        "resumable-1.1.0-twofiles-simul3",
        "95-pbin of 95, p.bin",
        "probe 0+10, probe 10+10, probe 20+10, form 0+10, form 10+10, form 20+10, \
         probe 30+10, probe 40+10, probe 50+10, form 30+10, form 40+10, form 50+10",
    ),
    (
        "resumable-1.1.0-unicode-name",
        "5-txt of 5, 日本\"語\n.txt",
        "probe 0+5, form 0+5",
    ),
    (
        "resumable-1.1.0-zero-min0",
        "0-zbin of 0, z.bin",
        "probe 0+0, form 0+0",
    ),
    (
        "resumable-1.1.0-zero-min0-base64",
        "0-zbin of 0, z.bin",
        "probe 0+0, form 0+0",
    ),
    (
        "resumable-HEAD-default-404test",
        "25-atxt of 25, a.txt",
        "probe 0+10, form 0+10, probe 10+15, form 10+15",
    ),
    (
        "resumable-HEAD-octet",
        "25-atxt of 25, a.txt",
        "probe 0+10, octets 0+10, probe 10+15, octets 10+15",
    ),
    (
        "simple-uploader-0.6.0-checkByResponse",
        "35-xtxt of 35, x.txt",
        "probe 0+10, form 10+10",
    ),
    (
        "simple-uploader-0.6.0-default-204test",
        "35-xtxt of 35, x.txt",
        "probe 0+10, probe 10+10, form 0+10, form 10+10, probe 20+15, form 20+15",
    ),
];

#[test]
fn recorded_requests_are_decoded() {
    let mut captures: Vec<_> = CAPTURES.iter().map(|(capture, ..)| *capture).collect();
    captures.sort_unstable();
    assert_eq!(
        captures,
        listing(&captures_folder()),
        "every capture has its row"
    );
    for (capture, uploads, expected) in CAPTURES {
        let mut chunked = Chunked::default();
        let dialect = match capture.split('-').next() {
            _ if capture.ends_with("params-off") => Dialect::resumable_js()
                .with_chunk_number("chunk", 1)
                .with_relative_path(""),
            Some("simple") => Dialect::simple_uploader(),
            Some("webuploader") => Dialect::web_uploader(10),
            Some("blueimp") => Dialect::blueimp(),
            Some("filepond") => Dialect::filepond(),
            _ => Dialect::flow_js(),
        };
        chunked.add(dialect);
        let chunked = Arc::new(chunked);
        let (mut uploads_read, mut read) = (Vec::new(), Vec::new());
        for request in requests(capture) {
            let (upload, what) = read_capture(&chunked, &request);
            uploads_read.extend(upload);
            read.push(what);
        }
        uploads_read.dedup();
        assert_eq!(uploads_read.join("; "), *uploads, "{capture}");
        assert_eq!(read.join(", "), *expected, "{capture}");
    }
}

#[test]
fn recorded_names_are_equal_in_query_and_form() {
    let dialect = resumable_js();
    let requests = requests("resumable-1.1.0-unicode-name");
    let probe = asked(&dialect, &head(&requests[0]).0);
    assert_eq!(probe.upload.file_name.as_deref(), Some("日本\"語\n.txt"));
    assert_eq!(
        probe.upload.relative_path.as_deref(),
        Some("dir é/日本\"語.txt")
    );
    assert_eq!(probe.upload.content_type.as_deref(), Some("text/plain"));
    let (parts, body) = head(&requests[1]);
    let boundary = "----WebKitFormBoundary";
    let boundary = parts.headers["content-type"]
        .to_str()
        .unwrap()
        .split_once(boundary);
    let boundary = format!("----WebKitFormBoundary{}", boundary.unwrap().1);
    let params = Params::from_query(parts.uri.query()).unwrap();
    let fields = split_form(body, &boundary);
    assert_eq!(chunk_of(&dialect, &with_form(params, &fields)), Ok(probe));
}

/// What is wanted, by method, query and content type; `+` before the method: with a body.
#[test]
fn requests_are_decoded_into_commands() {
    const Q: &str = "resumableIdentifier=i&resumableTotalSize=25&resumableChunkSize=10\
                     &resumableChunkNumber=2";
    const LONG: usize = 20 << 10;
    let custom_first = format!("resumableFilename=mine&{Q}&resumableFilename=a.txt");
    let status = format!("{Q}&resumableStatus=");
    let overlong = format!("{Q}&x={}", "y".repeat(LONG));
    let overlong_foreign = format!("x={}", "y".repeat(LONG));
    let pairs_65 = format!("{Q}{}", "&x=1".repeat(61));
    let pairs_64 = format!("{Q}{}", "&x=1".repeat(60));
    let ampersands = format!("{Q}{}", "&".repeat(10_000));
    let foreign_ampersands = "&".repeat(10_000);
    let form = Some("multipart/form-data; boundary=b");
    let octets = Some("application/octet-stream");
    let probe = "probe i 10+? (<=15) of 25";
    let status_2 = "status i 10+? (<=15) of 25";
    let octets_2 = "octets i 10+? (<=15) of 25";
    let missing = |name: &str| Err(missing(&format!("resumable{name}")));
    let pass = || ok("pass");
    let too_many = || Err(Reason::TooManyFields.into());
    let rows: Vec<(&str, &str, Option<&str>, Answer)> = vec![
        ("OPTIONS", Q, None, pass()),
        ("OPTIONS", &overlong, None, pass()),
        ("GET", "", None, pass()),
        ("GET", "x=1&ResumableChunkNumber=1", None, pass()),
        ("GET", &overlong_foreign, None, pass()),
        ("GET", &foreign_ampersands, None, pass()),
        ("GET", Q, None, ok(probe)),
        ("GET", &custom_first, None, ok(probe)),
        ("GET", &pairs_64, None, ok(probe)),
        ("GET", &pairs_65, None, too_many()),
        ("GET", &overlong, None, too_many()),
        ("GET", &ampersands, None, too_many()),
        ("HEAD", Q, None, ok(probe)),
        ("HEAD", "x=1", None, pass()),
        ("HEAD", "", None, ok("blind probe")),
        ("GET", &status, None, ok(status_2)),
        ("HEAD", &status, None, ok(status_2)),
        (
            "GET",
            "resumableStatus=1&resumableIdentifier=i&resumableTotalSize=25&resumableChunkSize=10",
            None,
            ok("status i 0+10 of 25"),
        ),
        ("GET", "resumableStatus=1", None, missing("Identifier")),
        // A field of the client, though it is not used.
        ("GET", "resumableTotalChunks=1", None, missing("Identifier")),
        ("DELETE", Q, None, ok("cancel i of 25")),
        (
            "DELETE",
            "resumableIdentifier=i",
            None,
            missing("TotalSize"),
        ),
        (
            "DELETE",
            "resumableIdentifier=i&resumableIdentifier=j&resumableTotalSize=1",
            None,
            Err(conflict("resumableIdentifier")),
        ),
        ("DELETE", "id=1", None, pass()),
        ("REPORT", Q, None, Err(Reason::MethodNotAllowed.into())),
        ("REPORT", "", None, pass()),
        // A test with `testMethod: 'POST'`, and requests that look like it.
        ("POST", Q, None, ok(probe)),
        ("POST", "", None, pass()),
        ("POST", Q, octets, ok(octets_2)),
        ("PUT", Q, None, ok(octets_2)),
        ("+POST", Q, None, ok(octets_2)),
        ("+POST", "", None, pass()),
        ("+POST", &overlong_foreign, octets, pass()),
        ("+POST", &overlong, octets, too_many()),
        // A raw chunk can have any content type.
        ("+POST", Q, octets, ok(octets_2)),
        ("+POST", Q, Some("binary/octet-stream"), ok(octets_2)),
        ("+PUT", Q, Some("image/png"), ok(octets_2)),
        ("+PATCH", Q, Some(""), ok(octets_2)),
        (
            "+POST",
            Q,
            Some("application/x-www-form-urlencoded"),
            ok(octets_2),
        ),
        (
            "+POST",
            Q,
            Some("multipart/mixed; boundary=b"),
            ok(octets_2),
        ),
        (
            "+POST",
            Q,
            Some("multipart/form-data2; boundary=b"),
            ok(octets_2),
        ),
        ("+POST", "", Some("application/grpc"), pass()),
        ("+POST", "", Some("multipart/form-data, boundary=b"), pass()),
        // Resumable.js 1.0.2 has nothing in the query.
        ("+POST", "", form, ok("form b")),
        ("+PUT", Q, form, ok("form b")),
        ("POST", Q, form, ok("form b")),
        ("+POST", &overlong, form, too_many()),
        ("GET", "", form, pass()),
        ("DELETE", "", form, pass()),
    ];
    let dialect = resumable_js();
    for (method, query, content_type, expected) in rows {
        let row = format!(
            "{method} {content_type:?} {}",
            &query[..query.len().min(80)]
        );
        let (method, empty) = match method.strip_prefix('+') {
            Some(method) => (method, false),
            None => (method, true),
        };
        let parts = request(method, query, content_type);
        assert_eq!(shown(&dialect, &parts, empty), expected, "{row}");
    }
}

#[test]
fn dialects_are_added_replaced_and_removed() {
    let mut protocols = Protocols::default();
    assert_eq!(protocols.named("flow.js").unwrap().name(), "flow.js");
    assert!(protocols.named("flow").is_none());
    // One that has the same name is replaced.
    protocols.add(Dialect::flow_js().with_identifier("own").into());
    let identifier = &protocols.named("flow.js").unwrap().names.identifier;
    assert_eq!(*identifier, Field::query_or_form("own"));
    // Any dialect's file, and those of one whose fields are there. Only Resumable.js' can be text.
    for (query, part, is_text, expected) in [
        ("", "file", false, true),
        ("", "file", true, true),
        ("", "qqfile", false, true),
        ("", "other", false, false),
        ("flowIdentifier=a", "file", false, true),
        ("flowIdentifier=a", "file", true, false),
        ("flowIdentifier=a", "qqfile", false, false),
    ] {
        let form = form_of(&Arc::default(), query, &[]);
        assert_eq!(
            form.is_file(part, is_text),
            expected,
            "{query} {part} {is_text}"
        );
    }
    // The settings stay.
    protocols.chunked_mut().list_parameter = Some("list".into());
    let wants = |protocols: &Protocols, method, query: &str, content_type| {
        let parts = request(method, query, content_type);
        protocols.decode(&parts, false).is_some()
    };
    let flow = "flowIdentifier=i&flowTotalSize=25&flowChunkSize=10&flowChunkNumber=2";
    let form = Some("multipart/form-data; boundary=b");
    let octets = Some("application/octet-stream");
    for (only, expected) in [
        (vec![], [true, false, false, false, false]),
        (vec![Protocol::plain()], [true, false, false, true, true]),
        (
            vec![Dialect::flow_js().into()],
            [true, true, true, true, false],
        ),
    ] {
        protocols.only(only.clone());
        let got = [
            wants(&protocols, "GET", "list", None),
            wants(&protocols, "GET", flow, None),
            wants(&protocols, "HEAD", "", None),
            wants(&protocols, "POST", "", form),
            wants(&protocols, "POST", "", octets),
        ];
        assert_eq!(got, expected, "{only:?}");
    }
    for (method, query, expected) in [
        ("GET", "list", true),
        ("HEAD", "x=1&list=", true),
        ("GET", "lists", false),
        ("POST", "list", false),
    ] {
        let got = wants(&protocols, method, query, None);
        assert_eq!(got, expected, "{method} {query}");
    }
}

/// Fine Uploader's last request is a form without a query.
#[test]
fn final_questions_are_decoded() {
    let form = Some("application/x-www-form-urlencoded; charset=utf-8");
    let read_all = "read 16384";
    for (method, query, content_type, expected) in [
        ("POST", "", form, read_all),
        (
            "POST",
            "",
            Some("APPLICATION/X-WWW-FORM-URLENCODED"),
            read_all,
        ),
        ("POST", "", Some("text/plain"), "pass"),
        ("POST", "", None, "pass"),
        ("POST", "x=1", form, "pass"),
        ("PUT", "", form, "pass"),
    ] {
        let parts = request(method, query, content_type);
        let shown_of = |dialect: Dialect| shown(&dialect, &parts, false);
        let row = format!("{method} {query} {content_type:?}");
        assert_eq!(shown_of(Dialect::fine_uploader()), ok(expected), "{row}");
        assert_eq!(shown_of(resumable_js()), ok("pass"), "{row}");
    }
    let fine = only(Dialect::fine_uploader());
    for (form, expected) in [
        (
            &b"qquuid=i&qqtotalfilesize=25&x=1"[..],
            ok("conclude i of 25"),
        ),
        (b"qquuid=i", Err(missing("qqtotalfilesize"))),
        (b"x=1", Err(missing("qquuid"))),
        (
            b"\xff",
            Err(Reason::Multipart {
                problem: "it is not UTF-8",
            }
            .into()),
        ),
    ] {
        let (command, answers) = fine.read_question(Params::default(), form);
        assert_eq!(command.map(|command| show(&command, &answers)), expected);
        let failed: Error = Reason::OutOfBounds.into();
        let failed = answers.encode(Outcome::Failed(&failed));
        let failed: Value = serde_json::from_slice(failed.body()).unwrap();
        assert_eq!(failed["success"], false);
    }
    // A client that takes each 200 for success does not ask.
    let all = Arc::new(Chunked::default());
    let form = b"resumableIdentifier=i&resumableTotalSize=25";
    let (command, _) = all.read_question(Params::default(), form);
    assert!(command.is_err());
}

/// What the head of a request says of a body that is the chunk itself.
#[test]
fn raw_chunks() {
    let dialect = Dialect::fine_uploader();
    let mut parts = request("POST", "qquuid=i&qqfile=a", Some("image/png"));
    let length = http::HeaderValue::from_static("25");
    parts.headers.insert("content-length", length);
    // A file that comes as a whole is as long as the body.
    assert_eq!(shown(&dialect, &parts, false), ok("octets i 0+25 of 25"));

    let query = "flowIdentifier=i&flowTotalSize=25&flowChunkSize=25&flowChunkNumber=1&a=b";
    let parts = request("POST", query, Some("image/png"));
    let target = raw(&Dialect::flow_js(), &parts);
    assert_eq!(target.upload.content_type.as_deref(), Some("image/png"));
    assert_eq!(target.upload.fields, owned(&[("a", "b")]));
    assert_eq!((target.digest, target.must_exist), (None, false));

    let chunked = Chunked {
        digest_field: Some("a".into()),
        ..Chunked::default()
    };
    let Some((Ok(Command::Write(Write::Raw(target))), _)) = Arc::new(chunked).read(&parts, false)
    else {
        panic!("it is a chunk");
    };
    assert_eq!(target.digest.as_deref(), Some("b"));
    let query = "qquuid=i&qqtotalfilesize=9&qqpartbyteoffset=5&qqchunksize=4&qqresume=true";
    let parts = request("POST", query, Some("image/png"));
    assert!(raw(&dialect, &parts).must_exist);
}

#[test]
fn the_identifier_selects_the_dialect() {
    let params = |query: &str| Params::from_query(Some(query)).unwrap();
    // Of two dialects it is the one whose identifier is there.
    let chunked = Chunked::default();
    let of = |query: &str| {
        chunked
            .dialect_of(&params(query))
            .map(|dialect| dialect.name())
    };
    assert_eq!(of("resumableFilename=a&flowIdentifier=b"), Some("flow.js"));
    assert_eq!(of("x=1&resumableFilename=a"), Some("Resumable.js"));
    assert_eq!(of("x=1"), None);

    // WebUploader's chunks have a number, and a size that is known.
    let web_uploader = Dialect::web_uploader(10).with_identifier("id");
    let chunk = params("id=i&size=25&chunk=1");
    assert!(web_uploader.knows_where(&chunk));
    let mut huge = Dialect::huge_uploader(10).with_identifier("id");
    huge = huge.with_total_size("size").with_chunk_number("chunk", 0);
    assert!(huge.knows_where(&chunk));
    assert!(!huge.knows_where(&params("id=i&size=25")));
}

/// FilePond asks for an identifier, and then how much of that upload is stored.
#[test]
fn identifiers_made_by_the_layer() {
    const NAME: &str = "0123456789abcdef0123456789abcdef-25";
    let filepond = Dialect::filepond();
    let asked = |method, query: &str, length: Option<&'static str>| {
        let mut parts = request(method, query, None);
        if let Some(length) = length {
            let length = http::HeaderValue::from_static(length);
            parts.headers.insert("upload-length", length);
        }
        shown(&filepond, &parts, false)
    };
    let patch = format!("patch={NAME}");
    let status = format!("status {NAME} 0+? (<=25) of 25");
    for (method, query, length, expected) in [
        ("POST", "", Some("25"), ok("create 25")),
        ("POST", "", None, ok("pass")),
        (
            "POST",
            &patch,
            Some("25"),
            Err(missing("header:upload-offset")),
        ),
        ("HEAD", &patch, None, ok(&status)),
        ("HEAD", &patch, Some("25"), ok(&status)),
        (
            "HEAD",
            &patch,
            Some("24"),
            Err(bad(
                "header:upload-length",
                "is not what the upload was made for",
            )),
        ),
        (
            "HEAD",
            "patch=mine",
            Some("9"),
            ok("status mine 0+? (<=9) of 9"),
        ),
        (
            "HEAD",
            "patch=mine",
            None,
            Err(missing("header:upload-length")),
        ),
        (
            "HEAD",
            "patch=a-25",
            None,
            Err(missing("header:upload-length")),
        ),
        (
            "HEAD",
            "patch=0123456789abcdef0123456789abcdeX-25",
            None,
            Err(missing("header:upload-length")),
        ),
        ("GET", &patch, None, Err(missing("header:upload-offset"))),
    ] {
        assert_eq!(
            asked(method, query, length),
            expected,
            "{method} {query} {length:?}"
        );
    }
    let made = parse::created("0123456789abcdef0123456789abcdef", 25);
    assert_eq!((made.identifier.as_str(), made.length), (NAME, Some(25)));
    let patched = params_of(&patch);
    let read = filepond.upload(Fields::strict(&patched), IdentityRule::Full);
    assert_eq!(read, Ok(made));
    // No other client asks that way.
    let head = request(
        "HEAD",
        "qquuid=i&qqtotalfilesize=25&qqpartbyteoffset=5",
        None,
    );
    let probe = shown(&Dialect::fine_uploader(), &head, false);
    assert_eq!(probe, ok("probe i 5+? (<=20) of 25"));
}

#[test]
fn declared_offsets_and_lengths() {
    let read = |dialect: &Dialect, query: &str| {
        chunk_of(dialect, &params_of(query)).map(|chunk| show_range(&chunk))
    };
    let wrong = |name: &str| Err(bad(name, "is not the size of this chunk in any layout"));
    // Any length up to the end of the file except 0.
    let fine = Dialect::fine_uploader();
    for (query, expected) in [
        ("25&qqpartbyteoffset=20&qqchunksize=5", ok("20+5")),
        ("25&qqpartbyteoffset=20&qqchunksize=1", ok("20+1")),
        ("25&qqpartbyteoffset=20&qqchunksize=6", wrong("qqchunksize")),
        ("25&qqpartbyteoffset=20&qqchunksize=0", wrong("qqchunksize")),
        ("0&qqpartbyteoffset=0&qqchunksize=0", ok("0+0")),
        ("0&qqpartbyteoffset=0&qqchunksize=1", wrong("qqchunksize")),
    ] {
        let query = format!("qquuid=i&qqtotalfilesize={query}");
        assert_eq!(read(&fine, &query), expected, "{query}");
    }
    // The last chunk is the rest of the file, and never longer than one chunk.
    let dropzone = Dialect::dropzone().with_chunk_length("len");
    for (query, expected) in [
        ("dzchunkbyteoffset=20&len=5", ok("20+5")),
        ("dzchunkbyteoffset=10&len=10", ok("10+10")),
        ("dzchunkbyteoffset=10&len=15", wrong("len")),
        ("dzchunkbyteoffset=20&len=4", wrong("len")),
        ("dzchunkindex=1", Err(missing("dzchunkbyteoffset"))),
    ] {
        let query = format!("dzuuid=i&dztotalfilesize=25&dzchunksize=10&{query}");
        assert_eq!(read(&dropzone, &query), expected, "{query}");
    }
    // A status request is about all of it.
    let query = "dzuuid=i&dztotalfilesize=25&dzchunksize=10&dzchunkindex=1";
    let params = params_of(query);
    let status = dropzone.chunk(Fields::first(&params), Subject::Upload, IdentityRule::Full);
    assert_eq!(status.unwrap().offset, 0);

    let unchecked = resumable_js().with_namespace("u_").with_length_check(false);
    let query = "u_resumableIdentifier=i&u_resumableTotalSize=25&u_resumableChunkSize=10\
                 &u_resumableChunkNumber=1&u_resumableCurrentChunkSize=9";
    assert_eq!(read(&unchecked, query), ok("0+? (<=25)"));
}

#[test]
fn client_options_contain_the_names() {
    let renamed = renamed_by(
        resumable_js(),
        &["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"],
    );
    let expected = [
        ("chunkNumber", "a"),
        ("chunkSize", "b"),
        ("currentChunkSize", "c"),
        ("totalSize", "d"),
        ("type", "e"),
        ("identifier", "f"),
        ("fileName", "g"),
        ("relativePath", "h"),
        ("totalChunks", "i"),
        ("file", "j"),
    ];
    assert_eq!(options::parameter_names(&renamed), expected);
}

#[test]
fn queries_over_the_limit_are_rejected() {
    let query = |len: usize| format!("x={}", "y".repeat(len - 2));
    assert!(Params::from_query(Some(&query(16 << 10))).is_ok());
    let error = Params::from_query(Some(&query((16 << 10) + 1))).err();
    assert_eq!(error, Some(Reason::TooManyFields.into()));
}

/// The name of the form's part counts only in dialects that say so.
#[test]
fn file_names_of_form_parts() {
    let name = |dialect: Dialect, query: &str| {
        let mut params = params_of(query);
        params.set_part(FilePart {
            file_name: Some("part.txt".into()),
            content_type: None,
        });
        chunk_of(&dialect, &params).unwrap().upload.file_name
    };
    let query = "dzuuid=i&dztotalfilesize=25&dzchunkbyteoffset=0";
    assert_eq!(
        name(Dialect::dropzone(), query).as_deref(),
        Some("part.txt")
    );
    let named = Dialect::dropzone().with_file_name("name");
    let query = format!("{query}&name=own.txt");
    assert_eq!(name(named, &query).as_deref(), Some("own.txt"));
    let query = "resumableIdentifier=i&resumableTotalSize=25&resumableChunkSize=10\
                 &resumableChunkNumber=2";
    assert_eq!(name(resumable_js(), query), None);
}

#[test]
fn boundaries() {
    let longest = "x".repeat(70);
    let too_long = "x".repeat(71);
    let rows: &[(&str, Option<&str>)] = &[
        ("multipart/form-data; boundary=abc", Some("abc")),
        ("MULTIPART/Form-Data ;\tBOUNDARY=aBc ", Some("aBc")),
        ("multipart/form-data;boundary=\"abc\"", Some("abc")),
        (
            "multipart/form-data; charset=utf-8; boundary=abc; x=y",
            Some("abc"),
        ),
        (
            "multipart/form-data; boundary=----WebKitFormBoundaryX",
            Some("----WebKitFormBoundaryX"),
        ),
        (
            "multipart/form-data; boundary=\"a b'()+_,-./:=?\"",
            Some("a b'()+_,-./:=?"),
        ),
        ("multipart/form-data; boundary=a=b", Some("a=b")),
        (r"multipart/form-data; x=\; boundary=abc", Some("abc")),
        // A backslash escapes the next character only inside quotes.
        (r#"multipart/form-data; x=\"; boundary=abc"#, None),
        (
            r#"multipart/form-data; x="; boundary=evil\"; boundary=evil"; boundary=abc"#,
            Some("abc"),
        ),
        (
            &format!("multipart/form-data; boundary={longest}"),
            Some(&longest),
        ),
        (&format!("multipart/form-data; boundary={too_long}"), None),
        ("multipart/form-data", None),
        ("multipart/form-data;", None),
        ("multipart/form-data; boundary", None),
        ("multipart/form-data; boundary=", None),
        ("multipart/form-data; boundary=\"\"", None),
        ("multipart/form-data; boundary=\"", None),
        ("multipart/form-data; boundary=\"abc", None),
        ("multipart/form-data; boundary=abc\"", None),
        ("multipart/form-data; boundary=\"abc \"", None),
        ("multipart/form-data; boundary=a b", Some("a b")),
        ("multipart/form-data; boundary= abc", Some("abc")),
        // Android code on HttpURLConnection, and others that the RFC does not allow.
        ("multipart/form-data;boundary=*****", Some("*****")),
        ("multipart/form-data; boundary={1-2}", Some("{1-2}")),
        (
            "multipart/form-data; boundary=a!#$%&*|~@[]^",
            Some("a!#$%&*|~@[]^"),
        ),
        ("multipart/form-data; boundary=\"a;b\"", Some("a;b")),
        ("multipart/form-data; charset; boundary=a", Some("a")),
        ("multipart/form-data; boundary=a;boundary=b", None),
        ("multipart/form-data; boundary=a;boundary=a", None),
        ("multipart/form-data; boundary=a\tb", None),
        ("multipart/form-data; boundary=\"a\\\"b\"", Some("a\"b")),
        ("multipart/form-data; boundary=é", None),
        ("multipart/form-data; xboundary=abc", None),
    ];
    let dialect = resumable_js();
    for (content_type, expected) in rows {
        let parts = request("POST", "", Some(content_type));
        let got = match read(&dialect, &parts, false) {
            Some((Ok(Command::Write(Write::Form { boundary, .. })), _)) => Some(boundary),
            Some((Err(error), _)) if matches!(error.reason(), Reason::Multipart { .. }) => None,
            _ => panic!("{content_type}"),
        };
        assert_eq!(got.as_deref(), *expected, "{content_type}");
    }
}

/// One field of a good chunk set to something else, in the query of an upload and of a probe, and
/// in the form of an upload.
#[test]
fn values_of_each_field() {
    const BOUNDS: &str = "out_of_bounds";
    const BAD: &str = "invalid_field";
    let at = |len: usize| "x".repeat(len);
    let digits_30 = "1".repeat(30);
    let (at_256, at_257) = (at(256), at(257));
    let (at_1024, at_1025) = (at(1024), at(1025));
    let (at_4096, at_4097) = (at(4096), at(4097));
    let no_numbers = [
        "",
        "-1",
        "+1",
        " 1",
        "1 ",
        "1\n",
        "1\0",
        "0x1",
        "1e3",
        "1.0",
        "１",
        "01",
        "00",
        "NaN",
        "undefined",
        "18446744073709551616",
        &digits_30,
    ];
    let numbers = ["ChunkNumber", "ChunkSize", "CurrentChunkSize", "TotalSize"];
    let mut rows: Vec<(&str, &str, &str)> = numbers
        .into_iter()
        .flat_map(|name| no_numbers.map(|value| (name, value, BAD)))
        .collect();
    rows.extend([
        ("ChunkNumber", "0", BAD),
        ("ChunkNumber", "9223372036854775808", BOUNDS),
        ("ChunkNumber", "18446744073709551615", BOUNDS),
        ("ChunkNumber", "4", BOUNDS),
        ("ChunkSize", "0", BAD),
        ("ChunkSize", "20", BAD),
        ("ChunkSize", "18446744073709551615", BOUNDS),
        ("TotalSize", "0", BOUNDS),
        ("TotalSize", "15", BAD),
        ("TotalSize", "18446744073709551615", ""),
        ("CurrentChunkSize", "9", BAD),
        ("CurrentChunkSize", "11", BAD),
        ("CurrentChunkSize", "0", BAD),
        ("TotalChunks", "0", ""),
        ("TotalChunks", "1257", ""),
        ("TotalChunks", "9223372036854775808", ""),
        ("TotalChunks", "many", ""),
        ("Identifier", "", BAD),
        ("Identifier", "a\0b", BAD),
        ("Identifier", "../../etc/passwd", ""),
        ("Identifier", "/etc/cron.d/x", ""),
        ("Identifier", r"\\srv\share", ""),
        ("Identifier", r"C:\x", ""),
        ("Identifier", "..", ""),
        ("Identifier", "-rf", ""),
        ("Identifier", &at_1024, ""),
        ("Identifier", &at_1025, BAD),
        ("Filename", "", BAD),
        ("Filename", "a\0b", BAD),
        ("Filename", "\r\n\x7f\u{202e}", ""),
        ("Filename", "broken\u{fffd}.txt", ""),
        ("Filename", "...", ""),
        ("Filename", "   ", ""),
        ("Filename", &at_1024, ""),
        ("Filename", &at_1025, BAD),
        ("RelativePath", "", ""),
        ("RelativePath", "a/b/c.txt", ""),
        ("RelativePath", "\0", BAD),
        ("RelativePath", &at_4096, ""),
        ("RelativePath", &at_4097, BAD),
        ("Type", "", ""),
        ("Type", "\0", BAD),
        ("Type", &at_256, ""),
        ("Type", &at_257, BAD),
    ]);
    let dialect = resumable_js();
    for (name, value, expected) in rows {
        let name = format!("resumable{name}");
        let mut fields = good();
        fields.retain(|(n, _)| *n != name);
        fields.push((&name, value));
        let query = encode(&fields);
        let upload = chunk_of(&dialect, &params_of(&query));
        let form = chunk_of(&dialect, &with_form(Params::default(), &fields));
        let probe = match read(&dialect, &request("GET", &query, None), true) {
            Some((Ok(Command::Look(_)), answers)) => Ok(answers.asked.unwrap().1),
            Some((Err(error), _)) => Err(error),
            _ => panic!("{name}={value:?}"),
        };
        assert_eq!(upload, form, "{name}={value:?}");
        assert_eq!(upload, probe, "{name}={value:?}");
        let got = upload
            .as_ref()
            .err()
            .map_or("", |error| error.kind().as_str());
        assert_eq!(got, expected, "{name}={value:?}: {upload:?}");
        let reason = upload.as_ref().err().map(Error::reason);
        if let Some(Reason::InvalidField { name: wrong, .. }) = reason {
            let expected = match (name.as_str(), value) {
                // It is the length that does not fit any more.
                ("resumableTotalSize", "15") | ("resumableChunkSize", "20") => {
                    "resumableCurrentChunkSize"
                }
                (name, _) => name,
            };
            assert_eq!(wrong.as_str(), expected, "{name}={value:?}");
        }
    }
}

#[test]
fn missing_fields_are_named() {
    let dialect = resumable_js();
    for (name, needed) in [
        ("resumableChunkNumber", true),
        ("resumableChunkSize", true),
        ("resumableTotalSize", true),
        ("resumableIdentifier", true),
        ("resumableCurrentChunkSize", false),
        ("resumableType", false),
        ("resumableFilename", false),
        ("resumableRelativePath", false),
        ("resumableTotalChunks", false),
    ] {
        let mut fields = good();
        fields.retain(|(n, _)| *n != name);
        let expected = needed.then(|| missing(name));
        let query = encode(&fields);
        let upload = chunk_of(&dialect, &params_of(&query));
        assert_eq!(upload.err(), expected, "{name}");
        let probe = shown(&dialect, &request("GET", &query, None), true);
        assert_eq!(probe.err(), expected, "{name}");
    }
}

#[test]
fn text_that_is_not_utf8() {
    let dialect = resumable_js();
    let is_bad = |name: &str| Some(bad(name, "is not UTF-8"));
    let rows = [
        ("resumableFilename=%FF", is_bad("resumableFilename")),
        ("resumableFilename=%E6%97", is_bad("resumableFilename")),
        (
            "resumableFilename=%EF%BF%BD%E6",
            is_bad("resumableFilename"),
        ),
        (
            "resumableFilename=%E6%EF%BF%BD",
            is_bad("resumableFilename"),
        ),
        (
            "resumableRelativePath=%ED%A0%80",
            is_bad("resumableRelativePath"),
        ),
        ("resumableFilename=%ef%bf%Bd", None),
        ("resumableFilename=\u{fffd}", None),
        ("resumableFilename=%E6%97%A5", None),
        ("resumableFilename=%zz%", None),
        // Fields of the application can have any bytes.
        ("token=%FF", None),
    ];
    for (field, expected) in rows {
        let mut fields = good();
        fields.retain(|(n, _)| !field.starts_with(n));
        let query = format!("{}&{field}", encode(&fields));
        let chunk = chunk_of(&dialect, &params_of(&query));
        assert_eq!(chunk.err(), expected, "{field}");
    }
}

#[test]
fn repeated_fields() {
    const N: &str = "resumableChunkNumber";
    let clash = || conflict(N);
    // Rest of the query, fields of the form, what an upload says, what a probe says.
    type Row<'a> = (&'a str, &'a [(&'a str, &'a str)], Result<u64, Error>, u64);
    let rows: &[Row<'_>] = &[
        ("resumableChunkNumber=1", &[], Ok(0), 0),
        (
            "resumableChunkNumber=1&resumableChunkNumber=1",
            &[],
            Ok(0),
            0,
        ),
        (
            "resumableChunkNumber=2&resumableChunkNumber=1",
            &[],
            Err(clash()),
            10,
        ),
        ("resumableChunkNumber=1", &[(N, "1")], Ok(0), 0),
        ("resumableChunkNumber=1", &[(N, "2")], Err(clash()), 0),
        (
            "resumableChunkNumber=1",
            &[(N, "1"), (N, "2")],
            Err(clash()),
            0,
        ),
        // As text, not as numbers.
        ("resumableChunkNumber=1", &[(N, "01")], Err(clash()), 0),
        // Other names are those of the application. A semicolon is no separator.
        (
            "resumableChunkNumber=1&ResumableChunkNumber=2",
            &[("RESUMABLECHUNKNUMBER", "3")],
            Ok(0),
            0,
        ),
        (
            "resumableChunkNumber=1&resumableChunkNumber[]=2&resumableChunkNumber;=3",
            &[("resumableChunkNumber[]", "2")],
            Ok(0),
            0,
        ),
        (
            "a=1;resumableChunkNumber=2&resumableChunkNumber=1",
            &[],
            Ok(0),
            0,
        ),
        // The same name, however it is written.
        (
            "%72esumableChunkNumber=%31&resumableChunkNumber=1",
            &[],
            Ok(0),
            0,
        ),
        // A field that is not used.
        (
            "resumableChunkNumber=1&resumableTotalChunks=1&resumableTotalChunks=2",
            &[("resumableTotalChunks", "3")],
            Ok(0),
            0,
        ),
        // Line breaks: as a form writes them, and as a query does.
        (
            "resumableChunkNumber=1&resumableFilename=a%0Ab%0Ac",
            &[("resumableFilename", "a\r\nb\rc")],
            Ok(0),
            0,
        ),
    ];
    let dialect = resumable_js();
    for (query, form, upload, probe) in rows {
        let rest = "resumableIdentifier=i&resumableTotalSize=25&resumableChunkSize=10";
        let all = format!("{query}&{rest}");
        let params = with_form(params_of(&all), form);
        let got = chunk_of(&dialect, &params).map(|chunk| chunk.offset);
        assert_eq!(got, *upload, "upload {query} {form:?}");
        let got = asked(&dialect, &request("GET", &all, None));
        assert_eq!(got.offset, *probe, "probe {query}");
    }
    // A field that an application sets with `query` comes before the client's own in a test, and in
    // the place of it in an upload. Both describe the same upload.
    let own = encode(&good());
    let set = own.replace("resumableFilename=a.txt", "resumableFilename=mine");
    assert_ne!(own, set);
    let test = request("GET", &format!("resumableFilename=mine&{own}"), None);
    assert_eq!(
        chunk_of(&dialect, &params_of(&set)),
        Ok(asked(&dialect, &test))
    );
}

/// Total, chunk size, number; lengths that may be declared, and the most bytes if none is.
#[test]
fn lengths_of_chunks_in_each_layout() {
    const MAX: u64 = u64::MAX;
    const HALF: u64 = 1 << 63;
    let rows: &[(u64, u64, u64, &[u64], u64)] = &[
        // Default layout: the last chunk has 10 to 19 bytes. Or `forceChunkSize`.
        (25, 10, 1, &[10], 10),
        (25, 10, 2, &[10, 15], 15),
        (25, 10, 3, &[5], 5),
        (29, 10, 2, &[10, 19], 19),
        (30, 10, 2, &[10], 10),
        (30, 10, 3, &[10], 10),
        (20, 10, 1, &[10], 10),
        (19, 10, 1, &[10, 19], 19),
        (10, 10, 1, &[10], 10),
        // A chunk size larger than the file.
        (3, 10, 1, &[3], 3),
        (1, MAX, 1, &[1], 1),
        (0, 10, 1, &[0], 0),
        (3, 1, 3, &[1], 1),
        // Where sums would overflow.
        (MAX, MAX, 1, &[MAX], MAX),
        (MAX, HALF, 1, &[HALF, MAX], MAX),
        (MAX, HALF + 1, 1, &[HALF + 1, MAX], MAX),
        (MAX, HALF, 2, &[HALF - 1], HALF - 1),
        (MAX, 1, MAX, &[1], 1),
        (MAX, HALF - 1, 3, &[1], 1),
    ];
    let dialect = resumable_js();
    let unchecked = resumable_js().with_length_check(false);
    for &(total, size, number, lengths, most) in rows {
        let row = format!("{number} of {total} by {size}");
        let read = |dialect: &Dialect, length: Option<u64>| {
            let mut query = format!(
                "resumableIdentifier=i&resumableTotalSize={total}\
                 &resumableChunkSize={size}&resumableChunkNumber={number}"
            );
            if let Some(length) = length {
                query += &format!("&resumableCurrentChunkSize={length}");
            }
            chunk_of(dialect, &params_of(&query))
        };
        let offset = (number - 1) * size;
        let chunk = read(&dialect, None).expect(&row);
        // Without a declared length, it has one of these too.
        let (len, other_len) = match lengths {
            [only] => (Some(*only), None),
            [other, _] => (None, Some(*other)),
            _ => panic!("{row}"),
        };
        assert_eq!(
            (chunk.offset, chunk.len, chunk.max_len, chunk.other_len),
            (offset, len, most, other_len),
            "{row}"
        );
        let all = [size, most, total - offset, 0, 1, size - 1, MAX];
        let around = all
            .iter()
            .flat_map(|len| [len.saturating_sub(1), *len, len.saturating_add(1)]);
        for len in (0..40).chain(around) {
            let chunk = read(&dialect, Some(len));
            if lengths.contains(&len) {
                let chunk = chunk.expect(&row);
                assert_eq!((chunk.len, chunk.max_len), (Some(len), len), "{row}");
            } else {
                let problem = "is not the size of this chunk in any layout";
                let error = bad("resumableCurrentChunkSize", problem);
                assert_eq!(chunk, Err(error), "{row}, {len} bytes");
            }
            let chunk = read(&unchecked, Some(len)).expect(&row);
            assert_eq!((chunk.len, chunk.max_len), (None, total - offset), "{row}");
        }
    }
    for (total, size, number) in [
        (25_u64, 10_u64, 4_u64),
        (25, 25, 2),
        (0, 10, 2),
        (20, 10, 3),
        (MAX, HALF, 3),
        (MAX, MAX, MAX),
        (MAX, MAX, 2),
    ] {
        let query = format!(
            "resumableIdentifier=i&resumableTotalSize={total}\
             &resumableChunkSize={size}&resumableChunkNumber={number}"
        );
        let chunk = chunk_of(&dialect, &params_of(&query));
        let out_of_bounds = Err(Reason::OutOfBounds.into());
        assert_eq!(chunk, out_of_bounds, "{number} of {total} by {size}");
    }
}

#[test]
fn fields_can_be_renamed_dropped_and_prefixed() {
    let renamed = |dialect| {
        let names = [
            "n", "size", "now", "total", "type", "id", "name", "", "", "blob",
        ];
        renamed_by(dialect, &names)
    };
    let query = "up[x]n=2&up[x]size=10&up[x]now=15&up[x]total=25&up[x]type=a/b&up[x]id=i\
                 &up[x]name=a.txt&up[x]token=t&plain=p&n=1&up[x]=e&=f&resumableFilename=r";
    // The setters can be called in any order.
    for dialect in [
        renamed(resumable_js().with_namespace("up[x]")),
        renamed(resumable_js()).with_namespace("up[x]"),
        renamed(resumable_js().with_namespace("other_")).with_namespace("up[x]"),
    ] {
        for query in [query, &query.replace('[', "%5B").replace(']', "%5d")] {
            let params = params_of(query);
            let chunk = chunk_of(&dialect, &params).expect(query);
            assert_eq!(show_chunk(&chunk), "i 10+15 of 25", "{query}");
            assert_eq!(chunk.upload.content_type.as_deref(), Some("a/b"));
            assert_eq!(chunk.upload.file_name.as_deref(), Some("a.txt"));
            assert_eq!(chunk.upload.relative_path, None);
            let expected = [
                ("up[x]token", "t"),
                ("plain", "p"),
                ("n", "1"),
                ("up[x]", "e"),
                ("", "f"),
                ("resumableFilename", "r"),
            ];
            assert_eq!(params.extra(|name| dialect.owns(name)), owned(&expected));
        }
        assert_eq!(dialect.file_field, "up[x]blob");
        for name in ["up[x]blob", "blob", "file", "up[x]file", "up[x]n"] {
            assert_eq!(dialect.is_file(name, false), name == "up[x]blob", "{name}");
        }
        for query in ["n=1&resumableStatus=1", "=1", "up[x]=1"] {
            let got = shown(&dialect, &request("GET", query, None), true);
            assert_eq!(got, ok("pass"), "{query}");
        }
        let status = format!("{query}&up%5Bx%5DresumableStatus=1");
        let got = shown(&dialect, &request("GET", &status, None), true);
        assert_eq!(got, ok("status i 10+15 of 25"));
        // A path that the client never sends is not waited for.
        let all = ["id", "total", "n", "size", "name"].map(|n| (format!("up[x]{n}"), "1"));
        let mut params = Params::default();
        for (name, value) in all {
            assert!(!dialect.knows_where(&params), "before {name}");
            params.push_form(name, value.into());
        }
        assert!(dialect.knows_where(&params));
    }
}

#[test]
fn when_the_target_of_a_file_is_known() {
    let dialect = resumable_js();
    let required = [
        ("resumableIdentifier", "i"),
        ("resumableTotalSize", "25"),
        ("resumableChunkNumber", "1"),
        ("resumableChunkSize", "10"),
    ];
    let named = [
        ("resumableFilename", "a.txt"),
        ("resumableRelativePath", ""),
    ];
    let query = encode(&required);
    let in_query = params_of(&query);
    assert!(dialect.knows_where(&in_query));
    let form = |fields: &[(&str, &str)]| with_form(Params::default(), fields);
    assert!(!dialect.knows_where(&form(&required)));
    let all = [&required[..], &named].concat();
    assert!(dialect.knows_where(&form(&all)));
    for left_out in 0..all.len() {
        let mut fields = all.clone();
        let (name, _) = fields.remove(left_out);
        assert!(!dialect.knows_where(&form(&fields)), "without {name}");
    }
    // The fields are in both the query and the form.
    let half = params_of(&encode(&all[..3]));
    assert!(!dialect.knows_where(&half));
    assert!(dialect.knows_where(&with_form(half, &all[3..])));
}

#[test]
fn fields_of_the_application() {
    let dialect = resumable_js();
    let query = "a=1&resumableIdentifier=i&b=2&b=3&resumableStatus=1&c=x%0Dy&d=%FF";
    let params = params_of(query);
    let alone = [
        ("a", "1"),
        ("b", "2"),
        ("b", "3"),
        ("c", "x\ry"),
        ("d", "\u{fffd}"),
    ];
    assert_eq!(params.extra(|name| dialect.owns(name)), owned(&alone));
    let form = [
        ("resumableIdentifier", "i"),
        ("b", "2"),
        ("e", "5\r\n"),
        ("b", "4"),
    ];
    let both = [
        ("a", "1"),
        ("c", "x\ry"),
        ("d", "\u{fffd}"),
        ("b", "2"),
        ("e", "5\r\n"),
        ("b", "4"),
    ];
    assert_eq!(
        with_form(params, &form).extra(|name| dialect.owns(name)),
        owned(&both)
    );
}

/// A file that comes before its fields is spooled.
#[test]
fn forms_are_decoded() {
    let chunked = Arc::new(Chunked {
        digest_field: Some("crc".into()),
        ..Chunked::default()
    });
    let flow = [
        ("flowIdentifier", "i"),
        ("flowTotalSize", "25"),
        ("flowChunkNumber", "2"),
        ("flowChunkSize", "10"),
        ("flowFilename", "a.txt"),
        ("flowRelativePath", "b/a.txt"),
        ("x", "y"),
        ("crc", "1"),
    ];
    let part = || FilePart {
        file_name: Some("blob".into()),
        content_type: Some("image/png".into()),
    };
    let mut form = form_of(&chunked, "", &flow);
    let target = form.file(part()).unwrap().unwrap();
    assert_eq!(show_chunk(&target), "i 10+? (<=15) of 25");
    assert_eq!(target.digest.as_deref(), Some("1"));
    assert_eq!(target.upload.content_type.as_deref(), Some("image/png"));
    assert_eq!(target.upload.fields, owned(&flow[6..]));
    // Fields that follow are read, but they change neither the upload nor the digest.
    let mut late = |name: &str, value: &str| form.late_field(name.into(), value.into());
    assert_eq!(late("z", "1"), Ok(()));
    assert_eq!(late("flowTotalChunks", "7"), Ok(()));
    assert_eq!(late("crc", "2"), Err(bad("crc", "comes after the file")));
    assert_eq!(late("flowTotalSize", "26"), Err(conflict("flowTotalSize")));
    assert_eq!(
        form.fields(),
        owned(&[("x", "y"), ("crc", "1"), ("z", "1")])
    );
    assert_eq!(status_of_refusal(&form.reply()), 415);

    // The file comes first: the fields that follow decide.
    let mut aside = form_of(&chunked, "", &[]);
    assert_eq!(aside.file(part()), Ok(None));
    assert!(aside.is_file("qqfile", false));
    for (name, value) in flow {
        aside.late_field(name.into(), value.into()).unwrap();
    }
    assert!(aside.is_file("qqfile", false));
    assert_eq!(aside.place(15), Ok(target));
    assert!(!aside.is_file("qqfile", false));
    assert_eq!(status_of_refusal(&aside.reply()), 415);
    // A whole file of a chunk client is as long as what came.
    let fine = [("qquuid", "i"), ("qqfilename", "a")];
    let mut whole = form_of(&chunked, "", &fine);
    assert_eq!(whole.file(part()), Ok(None));
    assert_eq!(show_chunk(&whole.place(7).unwrap()), "i 0+7 of 7");
}

#[test]
fn forms_without_a_file() {
    let chunked = Arc::new(Chunked::default());
    let flow = "flowIdentifier=i&flowTotalSize=25&flowChunkSize=10&flowChunkNumber=1&a=b";
    let mut form = form_of(&chunked, flow, &[]);
    let look = form
        .no_file()
        .unwrap_or_else(|error| panic!("it is a test: {error}"));
    assert_eq!((look.purpose, look.chunk_len), (Purpose::Test, Some(10)));
    assert_eq!(look.upload.unwrap().fields, owned(&[("a", "b")]));
    let mut ranges = RangeSet::default();
    ranges.insert(0, 10);
    let scope = Scope::default();
    let upload = Upload::new(crate::UploadId::new(&scope, ["i"]), scope, Some(25));
    let status = Status::new(upload, State::Receiving(ranges));
    let reply = form.reply();
    assert_eq!(reply.encode(Outcome::State(Some(&status))).status(), 200);
    assert_eq!(reply.encode(Outcome::State(None)).status(), 204);

    let resumable = "resumableIdentifier=i&resumableTotalSize=25";
    let chunk = format!("{resumable}&resumableChunkNumber=1&resumableChunkSize=10");
    let no_file = Reason::MissingFile {
        name: "file".into(),
    };
    for (query, error) in [
        (resumable, missing("resumableChunkNumber")),
        (&chunk, no_file.clone().into()),
        ("flowIdentifier=i", missing("flowTotalSize")),
        ("x=1", no_file.into()),
        ("chunk=1", missing("resumableIdentifier")),
    ] {
        let mut form = form_of(&chunked, query, &[]);
        assert_eq!(form.no_file().err(), Some(error), "{query}");
    }
}

/// A form counts as plain until a field shows that it is not.
#[test]
fn plain_forms() {
    let chunked = Arc::new(Chunked::default());
    let part = || FilePart {
        file_name: Some("a.txt".into()),
        content_type: Some("text/plain".into()),
    };
    let mut form = form_of(&chunked, "x=1", &[("y", "2")]);
    assert_eq!(form.file(part()), Ok(None));
    form.late_field("z".into(), "3".into()).unwrap();
    assert_eq!(status_of_refusal(&form.reply()), 403);
    let target = form.place(9).unwrap();
    assert_eq!(status_of_refusal(&form.reply()), 403);
    assert_eq!((target.offset, target.len, target.max_len), (0, Some(9), 9));
    let upload = target.upload;
    assert_eq!((upload.identity, upload.length), (Identity::Fresh, Some(9)));
    assert_eq!(upload.file_name.as_deref(), Some("a.txt"));
    assert_eq!(upload.content_type.as_deref(), Some("text/plain"));
    let fields = owned(&[("x", "1"), ("y", "2"), ("z", "3")]);
    assert_eq!((&upload.fields, form.fields()), (&fields, fields.clone()));
    // A chunk of an unknown client, and a layer without plain uploads.
    for (chunked, field) in [(chunked, "chunk"), (only(resumable_js()), "x")] {
        let mut chunked = Arc::unwrap_or_clone(chunked);
        chunked.accept_plain = field == "chunk";
        let mut form = form_of(&Arc::new(chunked), "", &[(field, "1")]);
        assert_eq!(form.file(part()), Ok(None));
        assert_eq!(form.place(9), Err(missing("resumableIdentifier")));
    }
}

#[test]
fn identity_of_an_upload() {
    let id = |dialect: &Dialect, query: &str, rule| {
        let params = params_of(query);
        let described = dialect.upload(Fields::strict(&params), rule).unwrap();
        let upload = described.upload(Scope::default(), "/upload", || unreachable!());
        upload.unwrap().id
    };
    let of = |values: &[&[u8]]| UploadId::new(&Scope::default(), values);
    let total = &25_u64.to_be_bytes();
    let chunk = "resumableIdentifier=i&resumableTotalSize=25&resumableFilename=a";
    let in_folder = format!("{chunk}&resumableRelativePath=b/a");
    let full = |query| id(&resumable_js(), query, IdentityRule::Full);
    assert_eq!(full(chunk), of(&[b"i", total, b"a"]));
    assert_eq!(full(&in_folder), of(&[b"i", total, b"b/a"]));
    assert_eq!(
        full("resumableIdentifier=i&resumableTotalSize=25"),
        of(&[b"i", total])
    );
    let alone = id(&resumable_js(), &in_folder, IdentityRule::Identifier);
    assert_eq!(alone, of(&[b"i"]));
    let unique = "dzuuid=i&dztotalfilesize=25";
    let unique = id(&Dialect::dropzone(), unique, IdentityRule::Full);
    assert_eq!(unique, of(&[b"i"]));
}

/// The path and the fields change the id, and nothing can be taken for something else.
#[test]
fn ids_of_uploads() {
    let id = |path: &str, name: Option<&str>, fields: &[(&str, &str)]| {
        let mut described = parse::created("", 25);
        described.identifier = "i".to_owned();
        described.file_name = name.map(str::to_owned);
        described.identity = Identity::Named {
            with_file: true,
            fields: owned(fields),
        };
        let upload = described.upload(Scope::default(), path, || unreachable!());
        upload.map(|upload| upload.id)
    };
    let without_path = UploadId::new(&Scope::default(), [&b"i"[..], &25_u64.to_be_bytes(), b"a"]);
    assert_eq!(id("/upload", Some("a"), &[]), Ok(without_path));
    let long = "x".repeat(5000);
    assert_eq!(id(&long, None, &[]), Err(bad("path", "is too long")));
    let ids = [
        id("/upload", None, &[]),
        id("/upload", Some("a"), &[]),
        id("/upload", Some("/a"), &[]),
        id("/a", None, &[]),
        id("/a", Some("a"), &[]),
        id("/upload", None, &[("a", "1")]),
        id("/upload", None, &[("a", "2")]),
        id("/upload", None, &[("a", "1"), ("b", "2")]),
        id("/upload", None, &[("a", "1b"), ("b", "2")]),
        id("/a", None, &[("a", "1")]),
    ];
    for (i, id) in ids.iter().enumerate() {
        assert!(!ids[..i].contains(id), "id {i} is not new");
    }
}

/// A dialect of an application, with one setter after the other.
#[test]
fn each_setter_of_a_new_dialect() {
    let own = || {
        Dialect::new("own")
            .with_identifier(Field::header("X-Clip"))
            .with_total_size(Field::content_range_total())
            .with_offset(Field::content_range_first())
            .with_file_name(Field::header_percent_encoded("x-name"))
            .with_content_type(Field::part_media_type())
    };
    let send = |method: &str, query: &str, dialect: &Dialect, range: &str| {
        let mut parts = request(method, query, Some("image/png"));
        let headers = [
            ("x-clip", "7"),
            ("x-name", "a%20b"),
            ("content-range", range),
        ];
        for (name, value) in headers.into_iter().filter(|(_, value)| !value.is_empty()) {
            parts.headers.insert(name, value.parse().unwrap());
        }
        parts.headers.insert("content-length", 5.into());
        (shown(dialect, &parts, false), parts)
    };
    let (got, parts) = send("POST", "x=1", &own(), "bytes 5-9/25");
    assert_eq!(got, ok("octets 7 5+? (<=20) of 25"));
    let upload = raw(&own(), &parts).upload;
    assert_eq!(upload.file_name.as_deref(), Some("a b"));
    assert_eq!(upload.content_type.as_deref(), Some("image/png"));
    assert_eq!(upload.fields, owned(&[("x", "1")]));
    assert_eq!(
        send("DELETE", "", &own(), "bytes 5-9/25").0,
        ok("cancel 7 of 25")
    );

    let with_length = own().with_chunk_length(Field::content_range_length());
    assert_eq!(
        send("POST", "", &with_length, "bytes 5-9/25").0,
        ok("octets 7 5+5 of 25")
    );
    let fixed = own()
        .with_fixed_chunk_size(5)
        .with_last_chunk(LastChunk::Rest);
    assert_eq!(
        send("POST", "", &fixed, "bytes 5-9/25").0,
        ok("octets 7 5+5 of 25")
    );
    // 0 would divide by zero.
    assert_eq!(
        Dialect::new("").with_fixed_chunk_size(0).fixed_chunk_size,
        Some(1)
    );
    let unchecked = with_length.with_length_check(false);
    let got = send("POST", "", &unchecked, "bytes 5-9/25").0;
    assert_eq!(got, ok("octets 7 5+? (<=20) of 25"));
    let sizes = own()
        .with_chunk_size("size")
        .with_last_chunk(LastChunk::RestOrMore);
    let got = send("POST", "size=9", &sizes, "bytes 9-9/25").0;
    assert_eq!(got, ok("octets 7 9+? (<=16) of 25"));

    let whole = own().with_whole_files(true);
    assert_eq!(send("POST", "", &whole, "").0, ok("octets 7 0+5 of 5"));
    let total = "header:content-range.total";
    assert_eq!(send("POST", "", &own(), "").0, Err(missing(total)));
    let out_of_bounds = || Err(Reason::OutOfBounds.into());
    let trailing = own().with_trailing_empty_chunk(true);
    assert_eq!(
        send("POST", "", &own(), "bytes 25-25/25").0,
        out_of_bounds()
    );
    let got = send("POST", "", &trailing, "bytes 25-25/25").0;
    assert_eq!(got, ok("octets 7 25+? (<=0) of 25"));

    let status = own().with_status("how").with_resume(Resume::ByUploadOffset);
    let got = send("GET", "how=1", &status, "bytes 5-9/25").0;
    assert_eq!(got, ok("status 7 5+? (<=20) of 25"));
    let got = send("HEAD", "", &status, "bytes 0-9/25").0;
    assert_eq!(got, ok("status 7 0+? (<=25) of 25"));
    let got = send("HEAD", "", &own(), "bytes 0-9/25").0;
    assert_eq!(got, ok("probe 7 0+? (<=25) of 25"));

    let by_server = own()
        .with_identifier("id")
        .with_identifier_kind(IdentifierKind::ByServer);
    assert_eq!(
        send("POST", "", &by_server, "bytes 0-9/25").0,
        ok("create 25")
    );
    let resumed = own()
        .with_resumed("again")
        .with_ignored("tag")
        .with_total_chunks("of");
    let (_, parts) = send("POST", "again=1&tag=2&of=3&x=4", &resumed, "bytes 0-9/25");
    let target = raw(&resumed, &parts);
    assert!(target.must_exist);
    assert_eq!(target.upload.fields, owned(&[("x", "4")]));
    // A namespace is that of the query and of forms.
    let spaced = resumed.with_namespace("n-").with_file_field("blob");
    let (_, parts) = send("POST", "again=1&n-tag=2", &spaced, "bytes 0-9/25");
    let target = raw(&spaced, &parts);
    assert!(!target.must_exist);
    assert_eq!(target.upload.fields, owned(&[("again", "1")]));
    assert!(spaced.is_file("n-blob", false) && !spaced.is_file("n-blob", true));
    assert!(spaced.with_base64(true).is_file("n-blob", true));

    let question = own().with_final_question(true);
    let form = Some("application/x-www-form-urlencoded");
    let got = shown(&question, &request("POST", "", form), false);
    assert_eq!(got, ok("read 16384"));
    let tests = own().with_form_tests(true);
    for (dialect, is_test) in [(own(), false), (tests, true)] {
        let (_, mut parts) = send("POST", "", &dialect, "bytes 0-9/25");
        let form = "multipart/form-data; boundary=b".parse().unwrap();
        parts.headers.insert("content-type", form);
        let Some((Ok(Command::Write(Write::Form { mut form, .. })), _)) =
            read(&dialect, &parts, false)
        else {
            panic!("it is a form");
        };
        assert_eq!(form.no_file().is_ok(), is_test);
    }
    assert_eq!(own().with_name("other").name(), "other");
}

/// The names that a page needs.
#[test]
fn client_options() {
    let options = |protocols: &Protocols| {
        let limits = crate::Limits::default();
        let options = ClientOptions::new(Some("/up"), &limits, protocols);
        serde_json::from_str::<Value>(&options.resumable_js(1 << 20)).unwrap()
    };
    let mut protocols = Protocols::default();
    let mut expected = json!({
        "chunkRetryInterval": 1000,
        "chunkSize": 1 << 20,
        "maxChunkRetries": 100,
        "maxFileSize": 1_u64 << 40,
        "minFileSize": 0,
        "permanentErrors": [400, 401, 403, 404, 413, 415, 501],
        "target": "/up",
    });
    assert_eq!(options(&protocols), expected);
    let dialect = resumable_js().with_identifier("id").with_relative_path("");
    protocols.add(dialect.with_content_type(Field::part_media_type()).into());
    expected["identifierParameterName"] = "id".into();
    expected["relativePathParameterName"] = "".into();
    expected["typeParameterName"] = "".into();
    assert_eq!(options(&protocols), expected);
    let options = ClientOptions::new(None, &crate::Limits::default(), &protocols);
    assert!(
        !options.dropzone(1).contains("url") && options.flow_js(0).contains(r#""chunkSize":1"#)
    );
}

fn status_of_refusal(reply: &Reply) -> u16 {
    let refusal = Refusal::new(http::StatusCode::FORBIDDEN, "no").into();
    reply.encode(Outcome::Failed(&refusal)).status().as_u16()
}

/// The second chunk of three, by `forceChunkSize`.
fn good() -> Vec<(&'static str, &'static str)> {
    vec![
        ("resumableChunkNumber", "2"),
        ("resumableChunkSize", "10"),
        ("resumableCurrentChunkSize", "10"),
        ("resumableTotalSize", "25"),
        ("resumableType", "text/plain"),
        ("resumableIdentifier", "25-atxt"),
        ("resumableFilename", "a.txt"),
        ("resumableRelativePath", "a.txt"),
        ("resumableTotalChunks", "3"),
    ]
}

fn ok(text: &str) -> Answer {
    Ok(text.into())
}

fn missing(name: &str) -> Error {
    let name = name.into();
    Reason::MissingField { name }.into()
}

fn conflict(name: &str) -> Error {
    let name = name.into();
    Reason::ConflictingField { name }.into()
}

fn bad(name: &str, problem: &'static str) -> Error {
    let name = name.into();
    Reason::InvalidField { name, problem }.into()
}

/// The fields in the order of Resumable.js' options, with new names.
fn renamed_by(dialect: Dialect, names: &[&str; 10]) -> Dialect {
    dialect
        .with_chunk_number(names[0], 1)
        .with_chunk_size(names[1])
        .with_chunk_length(names[2])
        .with_total_size(names[3])
        .with_content_type(names[4])
        .with_identifier(names[5])
        .with_file_name(names[6])
        .with_relative_path(names[7])
        .with_total_chunks(names[8])
        .with_file_field(names[9])
}

fn owned(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields
        .iter()
        .map(|&(name, value)| (name.into(), value.into()))
        .collect()
}

fn encode(fields: &[(&str, &str)]) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}

fn with_form(mut params: Params, fields: &[(impl AsRef<str>, impl AsRef<str>)]) -> Params {
    for (name, value) in fields {
        params.push_form(name.as_ref().into(), value.as_ref().into());
    }
    params
}

fn request(method: &str, query: &str, content_type: Option<&str>) -> Parts {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("/upload?{query}"));
    if let Some(content_type) = content_type {
        request = request.header("content-type", content_type);
    }
    request.body(()).unwrap().into_parts().0
}

/// What a layer with this dialect only reads in the head of a request.
fn read(dialect: &Dialect, parts: &Parts, empty: bool) -> Option<Read> {
    only(dialect.clone()).read(parts, empty)
}

fn shown(dialect: &Dialect, parts: &Parts, empty: bool) -> Answer {
    match read(dialect, parts, empty) {
        Some((command, answers)) => command.map(|command| show(&command, &answers)),
        None => ok("pass"),
    }
}

fn only(dialect: Dialect) -> Arc<Chunked> {
    let mut chunked = Chunked::default();
    chunked.clear();
    chunked.add(dialect);
    Arc::new(chunked)
}

/// The chunk that a test asks for.
fn asked(dialect: &Dialect, parts: &Parts) -> Target {
    match read(dialect, parts, true) {
        Some((Ok(Command::Look(_)), answers)) => answers.asked.unwrap().1,
        _ => panic!("it is a test"),
    }
}

fn raw(dialect: &Dialect, parts: &Parts) -> Target {
    match read(dialect, parts, false) {
        Some((Ok(Command::Write(Write::Raw(target))), _)) => *target,
        _ => panic!("it is a raw chunk"),
    }
}

fn chunk_of(dialect: &Dialect, params: &Params) -> Result<Target, Error> {
    dialect.chunk(Fields::strict(params), Subject::Chunk, IdentityRule::Full)
}

fn params_of(query: &str) -> Params {
    Params::from_query(Some(query)).unwrap()
}

/// A form whose request has this query, and these fields before the file.
fn form_of(chunked: &Arc<Chunked>, query: &str, fields: &[(&str, &str)]) -> Box<dyn Form> {
    let parts = request("POST", query, Some("multipart/form-data; boundary=b"));
    let Some((Ok(Command::Write(Write::Form { mut form, .. })), _)) = chunked.read(&parts, false)
    else {
        panic!("it is a form");
    };
    for (name, value) in fields {
        form.field((*name).into(), (*value).into());
    }
    form
}

fn show(command: &Command, answers: &Answers) -> String {
    let of = |upload: &Described| format!("{} of {}", upload.identifier, upload.length.unwrap());
    match command {
        Command::List { .. } => "list".into(),
        Command::Capabilities | Command::Url(_) => "of tus".into(),
        Command::Read { max, .. } => format!("read {max}"),
        Command::Create(create) => format!("create {}", create.length),
        Command::Conclude(upload) => format!("conclude {}", of(upload)),
        Command::Remove(upload) => format!("cancel {}", of(upload)),
        Command::Look(Look { upload: None, .. }) => "blind probe".into(),
        Command::Look(Look { purpose, .. }) => {
            let (_, chunk) = answers.asked.as_ref().unwrap();
            let what = if *purpose == Purpose::Test {
                "probe"
            } else {
                "status"
            };
            format!("{what} {}", show_chunk(chunk))
        }
        Command::Write(Write::Form { boundary, .. }) => format!("form {boundary}"),
        Command::Write(Write::Raw(target)) => format!("octets {}", show_chunk(target)),
        Command::Write(Write::Spool(_)) => "spool".into(),
    }
}

fn show_chunk(chunk: &Target) -> String {
    let Described {
        identifier, length, ..
    } = &chunk.upload;
    format!("{identifier} {} of {}", show_range(chunk), length.unwrap())
}

fn show_range(chunk: &Target) -> String {
    match chunk.len {
        Some(len) => format!("{}+{len}", chunk.offset),
        None => format!("{}+? (<={})", chunk.offset, chunk.max_len),
    }
}

/// In the order in which they were sent.
fn requests(capture: &str) -> Vec<Vec<u8>> {
    let folder = captures_folder().join(capture);
    let names = listing(&folder).into_iter();
    names
        .map(|name| std::fs::read(folder.join(name)).unwrap())
        .collect()
}

fn captures_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/captures")
}

fn listing(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The upload of a request, and what the request wants.
fn read_capture(chunked: &Arc<Chunked>, request: &[u8]) -> (Option<String>, String) {
    let (parts, body) = head(request);
    let Some((command, answers)) = chunked.read(&parts, body.is_empty()) else {
        return (None, "pass".into());
    };
    let (kind, chunk) = match command.unwrap() {
        Command::Look(Look { upload: None, .. }) => return (None, "blind probe".into()),
        Command::Create(create) => return (None, format!("create {}", create.length)),
        Command::Read { then, .. } => {
            let Ok(Command::Conclude(upload)) = then(body).command else {
                panic!("it asks in the end");
            };
            assert_eq!(upload.fields, []);
            ("finish", upload_and_range(&upload, "0+25"))
        }
        Command::Look(Look { upload, .. }) => {
            let (_, chunk) = answers.asked.unwrap();
            (
                "probe",
                upload_and_range(&upload.unwrap(), &show_range(&chunk)),
            )
        }
        Command::Write(Write::Raw(target)) => (
            "octets",
            upload_and_range(&target.upload, &show_range(&target)),
        ),
        Command::Write(Write::Form { boundary, mut form }) => {
            let mut fields = split_form(body, &boundary);
            // The file is the last part: by then all is known.
            let (name, content) = fields.pop().unwrap();
            for (name, value) in fields {
                form.field(name, value);
            }
            assert!(form.is_file(&name, false));
            let (kind, target) = match form.file(file_part(body)).unwrap() {
                Some(target) => ("form", target),
                None => ("whole", form.place(content.len() as u64).unwrap()),
            };
            assert_eq!(target.upload.fields, []);
            assert_eq!(form.fields(), []);
            let is_fresh = target.upload.identity == Identity::Fresh;
            assert_eq!(is_fresh, kind == "whole");
            (kind, upload_and_range(&target.upload, &show_range(&target)))
        }
        other => panic!("{}", show(&other, &answers)),
    };
    let (upload, range) = chunk;
    (Some(upload), format!("{kind} {range}"))
}

fn upload_and_range(upload: &Described, range: &str) -> (String, String) {
    let identifier = match upload.identity {
        Identity::Fresh => "its own",
        Identity::Named { .. } => &upload.identifier,
    };
    let name = upload.file_name.as_deref().unwrap();
    let length = upload.length.unwrap();
    (format!("{identifier} of {length}, {name}"), range.into())
}

/// What the head of the last part says.
fn file_part(body: &[u8]) -> FilePart {
    let body = String::from_utf8_lossy(body);
    let head = body.rsplit_once("filename=\"").map(|(_, head)| head);
    let file_name = head.and_then(|head| Some(head.split_once('"')?.0.into()));
    let content_type = head.and_then(|head| Some(head.split("\r\n").nth(1)?.split_once(": ")?.1));
    FilePart {
        file_name,
        content_type: content_type.map(Into::into),
    }
}

fn resumable_js() -> Dialect {
    Dialect::resumable_js()
}

/// A request's head, and its body.
fn head(request: &[u8]) -> (Parts, &[u8]) {
    let end = request.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let (head, body) = (std::str::from_utf8(&request[..end]), &request[end + 4..]);
    let mut lines = head.unwrap().split("\r\n");
    let mut words = lines.next().unwrap().split(' ');
    let mut request = Request::builder()
        .method(words.next().unwrap())
        .uri(words.next().unwrap());
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    (request.body(()).unwrap().into_parts().0, body)
}

/// The names and values of a form, the file included. Handles only what browsers send.
fn split_form(body: &[u8], boundary: &str) -> Vec<(String, String)> {
    let body = format!("\r\n{}", String::from_utf8_lossy(body));
    let delimiter = format!("\r\n--{boundary}");
    let mut parts: Vec<_> = body.split(&delimiter).skip(1).collect();
    assert_eq!(parts.pop(), Some("--\r\n"));
    let field = |part: &str| {
        let (head, value) = part.split_once("\r\n\r\n").unwrap();
        let name = head.split('"').nth(1).unwrap();
        (name.to_owned(), value.to_owned())
    };
    parts.into_iter().map(field).collect()
}
