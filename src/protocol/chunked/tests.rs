//! Tables of requests and of what the dialect reads in them.

use std::path::{Path, PathBuf};

use http::{Request, request::Parts};

use super::{
    Chunk, Dialect, Dialects, FilePart, Identity, Intent, Params, ResumableJs, Transport, asks_for,
    is_whole_file, whole_file,
};
use crate::UploadError;

type Answer = Result<String, UploadError>;

/// `(folder, uploads, requests)`: what Chromium has sent, and what is read in it.
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
        "probe 0+10, probe 10+10, probe 20+10, form 0+10, form 10+10, form 20+10, probe 30+10, probe 40+10, probe 50+10, form 30+10, form 40+10, form 50+10",
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
fn captures() {
    let mut captures: Vec<_> = CAPTURES.iter().map(|(capture, ..)| *capture).collect();
    captures.sort_unstable();
    assert_eq!(
        captures,
        listing(&captures_folder()),
        "every capture has its row"
    );
    for (capture, uploads, expected) in CAPTURES {
        let mut dialects = Dialects::default();
        match *capture {
            "resumable-1.1.0-testChunks-false-params-off" => dialects.add(
                ResumableJs::new()
                    .with_chunk_number_name("chunk")
                    .with_relative_path_name("")
                    .into(),
            ),
            _ => [
                ("simple", Dialect::simple_uploader()),
                ("plupload", Dialect::plupload()),
                ("webuploader", Dialect::web_uploader(10)),
                ("blueimp", Dialect::blueimp()),
                ("filepond", Dialect::filepond()),
            ]
            .into_iter()
            .filter(|(client, _)| capture.starts_with(client))
            .for_each(|(_, dialect)| dialects.add(dialect)),
        }
        let (mut uploads_read, mut read) = (Vec::new(), Vec::new());
        for request in requests(capture) {
            let (upload, what) = read_capture(&dialects, &request);
            uploads_read.extend(upload);
            read.push(what);
        }
        uploads_read.dedup();
        assert_eq!(uploads_read.join("; "), *uploads, "{capture}");
        assert_eq!(read.join(", "), *expected, "{capture}");
    }
}

#[test]
fn the_captured_names_are_read_alike_in_query_and_form() {
    let dialect = resumable_js();
    let requests = requests("resumable-1.1.0-unicode-name");
    let Ok(Intent::Probe(probe, _)) = intent(&dialect, &head(&requests[0]).0, true) else {
        panic!("no probe");
    };
    let identity = &probe.identity;
    assert_eq!(identity.file_name.as_deref(), Some("日本\"語\n.txt"));
    assert_eq!(
        identity.relative_path.as_deref(),
        Some("dir é/日本\"語.txt")
    );
    assert_eq!(probe.content_type.as_deref(), Some("text/plain"));
    let (parts, body) = head(&requests[1]);
    let (params, boundary) = form(&dialect, &parts);
    let fields = split_form(body, &boundary);
    assert_eq!(dialect.chunk(&with_body(params, &fields)), Ok(probe));
}

/// What is wanted, by method, query and content type; `+` before the method: with a body.
#[test]
fn intents() {
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
    let missing = |name: &str| {
        Err(UploadError::MissingField {
            name: format!("resumable{name}"),
        })
    };
    let pass = || ok("pass");
    let too_many = || Err(UploadError::TooManyFields);
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
            ok("status i 0+? (<=10) of 25"),
        ),
        ("GET", "resumableStatus=1", None, missing("Identifier")),
        // Ours too, though nobody reads it.
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
        ("REPORT", Q, None, Err(UploadError::MethodNotAllowed)),
        ("REPORT", "", None, pass()),
        // The test with `testMethod: 'POST'`, and what only looks like it.
        ("POST", Q, None, ok(probe)),
        ("POST", "", None, pass()),
        ("POST", Q, octets, ok("octets")),
        ("PUT", Q, None, ok("octets")),
        ("+POST", Q, None, ok("octets")),
        ("+POST", "", None, pass()),
        ("+POST", &overlong_foreign, octets, pass()),
        ("+POST", &overlong, octets, too_many()),
        // Octets are octets, whatever they are called.
        ("+POST", Q, octets, ok("octets")),
        ("+POST", Q, Some("binary/octet-stream"), ok("octets")),
        ("+PUT", Q, Some("image/png"), ok("octets")),
        ("+PATCH", Q, Some(""), ok("octets")),
        (
            "+POST",
            Q,
            Some("application/x-www-form-urlencoded"),
            ok("octets"),
        ),
        (
            "+POST",
            Q,
            Some("multipart/mixed; boundary=b"),
            ok("octets"),
        ),
        (
            "+POST",
            Q,
            Some("multipart/form-data2; boundary=b"),
            ok("octets"),
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
        let got = intent(&dialect, &parts, empty).map(|intent| show(&intent));
        assert_eq!(got, expected, "{row}");
    }
}

#[test]
fn what_a_layer_asks_of_all_dialects() {
    let dialects = Dialects::default();
    assert_eq!(dialects.named("flow.js").unwrap().name, "flow.js");
    assert!(dialects.named("flow").is_none());
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
        let params = Params::from_query(Some(query)).unwrap();
        let is_file = dialects.is_file(&params, part, is_text);
        assert_eq!(is_file, expected, "{query} {part} {is_text}");
        if query.is_empty() {
            assert_eq!(dialects.can_be_file(part, is_text), expected);
        }
    }
    for (method, query, expected) in [
        ("GET", "list", true),
        ("HEAD", "x=1&list=", true),
        ("GET", "lists", false),
        ("POST", "list", false),
    ] {
        let parts = request(method, query, None);
        assert_eq!(asks_for(&parts, "list"), expected, "{method} {query}");
    }
}

#[test]
fn which_answers_have_a_shape() {
    let answers = |dialect: Dialect| dialect.answers(&Params::default());
    assert!(!answers(resumable_js()).shapes_results());
    assert!(answers(Dialect::fine_uploader()).shapes_results());
    let query = Params::from_query(Some("chunkIndex=3")).unwrap();
    let echo = Dialect::bootstrap_fileinput().answers(&query);
    assert_eq!(echo.echo, Some(("chunkIndex", 3)));
    assert!(echo.shapes_results());
}

/// Fine Uploader's last request is a form without a query.
#[test]
fn forms_that_ask_in_the_end() {
    let form = Some("application/x-www-form-urlencoded; charset=utf-8");
    for (method, query, content_type, expected) in [
        ("POST", "", form, "finish"),
        (
            "POST",
            "",
            Some("APPLICATION/X-WWW-FORM-URLENCODED"),
            "finish",
        ),
        ("POST", "", Some("text/plain"), "pass"),
        ("POST", "", None, "pass"),
        ("POST", "x=1", form, "pass"),
        ("PUT", "", form, "pass"),
    ] {
        let parts = request(method, query, content_type);
        let intent = intent(&Dialect::fine_uploader(), &parts, false);
        assert_eq!(
            show(&intent.unwrap()),
            expected,
            "{method} {query} {content_type:?}"
        );
        let others = Dialects::only([resumable_js()]);
        assert_eq!(show(&others.intent(&parts, false).0.unwrap()), "pass");
    }
}

/// What the head of a request says of a body that is the chunk itself.
#[test]
fn raw_chunks() {
    let dialect = Dialect::fine_uploader();
    let mut parts = request("POST", "qquuid=i&qqfile=a", Some("image/png"));
    let length = http::HeaderValue::from_static("25");
    parts.headers.insert("content-length", length);
    let Ok(Intent::Put(params, Transport::Octets)) = intent(&dialect, &parts, false) else {
        panic!("it brings a chunk");
    };
    // A file that comes as a whole is as long as what comes.
    let chunk = dialect.chunk(&params).unwrap();
    assert_eq!((chunk.identity.total, chunk.len), (25, Some(25)));

    let query = "flowIdentifier=i&flowTotalSize=25&flowChunkSize=25&flowChunkNumber=1";
    let parts = request("POST", query, Some("image/png"));
    let Ok(Intent::Put(params, Transport::Octets)) = intent(&Dialect::flow_js(), &parts, false)
    else {
        panic!("it brings a chunk");
    };
    let chunk = Dialect::flow_js().chunk(&params).unwrap();
    assert_eq!(chunk.content_type.as_deref(), Some("image/png"));
}

#[test]
fn what_the_fields_of_a_dialect_ask() {
    let params = |query: &str| Params::from_query(Some(query)).unwrap();
    // Of two dialects it is the one whose identifier is there.
    let dialects = Dialects::default();
    let both = params("resumableFilename=a&flowIdentifier=b");
    assert_eq!(dialects.of(&both).unwrap().name, "flow.js");
    let one = params("x=1&resumableFilename=a");
    assert_eq!(dialects.of(&one).unwrap().name, ResumableJs::NAME);
    assert!(dialects.of(&params("x=1")).is_none());

    let flow = "flowIdentifier=i&flowTotalSize=25&flowChunkSize=10&flowChunkNumber=2";
    let test = Dialect::flow_js().form_test(&params(flow)).unwrap();
    assert_eq!(show_chunk(&test.unwrap()), "i 10+? (<=15) of 25");
    assert_eq!(
        Dialect::flow_js().form_test(&params("")),
        Err(missing("flowIdentifier"))
    );
    assert_eq!(resumable_js().form_test(&params(flow)), Ok(None));
    let list = Dialect::bootstrap_fileinput().form_test(&params("fileId=i&fileSize=25"));
    assert_eq!(show_chunk(&list.unwrap().unwrap()), "i 0+? (<=25) of 25");

    let fine = Dialect::fine_uploader();
    assert!(fine.is_resumed(&params("qquuid=i&qqresume=true")));
    assert!(!fine.is_resumed(&params("qquuid=i")));
    assert!(!resumable_js().is_resumed(&params("qqresume=true")));

    // WebUploader's chunks have a number, and a size that is known.
    let web_uploader = Dialect::web_uploader(10).with_identifier("id");
    let chunk = params("id=i&size=25&chunk=1");
    assert!(web_uploader.knows_where(&chunk));
    let mut huge = Dialect::huge_uploader(10).with_identifier("id");
    huge = huge.with_total_size("size").with_chunk_number("chunk", 0);
    assert!(huge.knows_where(&chunk));
    assert!(!huge.knows_where(&params("id=i&size=25")));
}

/// FilePond has a name for an upload made, and asks by it how far it is.
#[test]
fn names_of_uploads_that_are_made_here() {
    const NAME: &str = "0123456789abcdef0123456789abcdef-25";
    let filepond = Dialect::filepond();
    let asked = |method, query: &str, length: Option<&'static str>| {
        let mut parts = request(method, query, None);
        if let Some(length) = length {
            let length = http::HeaderValue::from_static(length);
            parts.headers.insert("upload-length", length);
        }
        intent(&filepond, &parts, false).map(|intent| show(&intent))
    };
    let patch = format!("patch={NAME}");
    let status = format!("status {NAME} 0+? (<=25) of 25");
    for (method, query, length, expected) in [
        ("POST", "", Some("25"), ok("create 25")),
        ("POST", "", None, ok("pass")),
        ("POST", &patch, Some("25"), ok("octets")),
        ("HEAD", &patch, None, ok(&status)),
        ("HEAD", &patch, Some("25"), ok(&status)),
        (
            "HEAD",
            &patch,
            Some("24"),
            Err(UploadError::InvalidField {
                name: "header:upload-length".into(),
                reason: "is not what the upload was made for",
            }),
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
    let made = super::created_identifier("0123456789abcdef0123456789abcdef", 25);
    assert_eq!(made, NAME);
    // No other client asks that way.
    let head = request(
        "HEAD",
        "qquuid=i&qqtotalfilesize=25&qqpartbyteoffset=5",
        None,
    );
    let probe = intent(&Dialect::fine_uploader(), &head, false).unwrap();
    assert_eq!(show(&probe), "probe i 5+? (<=20) of 25");
}

#[test]
fn offsets_and_lengths_that_are_declared() {
    let read = |dialect: &Dialect, query: &str| {
        let params = Params::from_query(Some(query)).unwrap();
        dialect.chunk(&params).map(|chunk| show_range(&chunk))
    };
    let wrong = |name: &str| {
        Err(UploadError::InvalidField {
            name: name.into(),
            reason: "is not the size of this chunk in any layout",
        })
    };
    // Any length up to the end, but none that brings nothing.
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
    // The last chunk is what is left, and never more than one.
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
    let params = Params::from_query(Some(query)).unwrap();
    assert_eq!(dropzone.status(&params).unwrap().offset, 0);

    let unchecked = ResumableJs::new()
        .with_namespace("u_")
        .with_length_check(false);
    let query = "u_resumableIdentifier=i&u_resumableTotalSize=25&u_resumableChunkSize=10\
                 &u_resumableChunkNumber=1&u_resumableCurrentChunkSize=9";
    assert_eq!(read(&unchecked.into(), query), ok("0+? (<=25)"));
}

#[test]
fn names_are_told_to_the_client() {
    let renamed: Dialect = ResumableJs::new()
        .with_chunk_number_name("a")
        .with_chunk_size_name("b")
        .with_current_chunk_size_name("c")
        .with_total_size_name("d")
        .with_type_name("e")
        .with_identifier_name("f")
        .with_file_name_name("g")
        .with_relative_path_name("h")
        .with_total_chunks_name("i")
        .with_file_parameter_name("j")
        .into();
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
    assert_eq!(renamed.client_names(), expected);
}

#[test]
fn queries_up_to_their_limit() {
    let query = |len: usize| format!("x={}", "y".repeat(len - 2));
    assert!(Params::from_query(Some(&query(16 << 10))).is_ok());
    let error = Params::from_query(Some(&query((16 << 10) + 1))).err();
    assert_eq!(error, Some(UploadError::TooManyFields));
}

/// Only of clients that do not say the file's name it is that of the form's part.
#[test]
fn names_of_parts() {
    let name = |dialect: Dialect, query: &str| {
        let mut params = Params::from_query(Some(query)).unwrap();
        params.set_part(FilePart {
            file_name: Some("part.txt".into()),
            content_type: None,
        });
        dialect.chunk(&params).unwrap().identity.file_name
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
        // Only inside quotes a backslash takes the next one's meaning.
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
        ("multipart/form-data; boundary=a b", None),
        ("multipart/form-data; boundary= abc", None),
        ("multipart/form-data; boundary=a;boundary=b", None),
        ("multipart/form-data; boundary=a;boundary=a", None),
        ("multipart/form-data; boundary=a\tb", None),
        ("multipart/form-data; boundary=\"a\\\"b\"", None),
        ("multipart/form-data; boundary=é", None),
        ("multipart/form-data; xboundary=abc", None),
    ];
    let dialect = resumable_js();
    for (content_type, expected) in rows {
        let intent = intent(&dialect, &request("POST", "", Some(content_type)), false);
        let got = match intent {
            Ok(Intent::Put(_, Transport::Multipart { boundary })) => Some(boundary),
            Err(UploadError::Multipart { .. }) => None,
            other => panic!("{content_type}: {other:?}"),
        };
        assert_eq!(got.as_deref(), *expected, "{content_type}");
    }
}

/// One field of a good chunk set to something else, in the query of an upload and of a probe, and
/// in the form of an upload.
#[test]
fn values() {
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
        let upload = dialect.chunk(&Params::from_query(Some(&query)).unwrap());
        let form = dialect.chunk(&with_body(Params::default(), &fields));
        let probe = match intent(&dialect, &request("GET", &query, None), true) {
            Ok(Intent::Probe(chunk, _)) => Ok(chunk),
            Ok(other) => panic!("{name}={value:?}: {other:?}"),
            Err(error) => Err(error),
        };
        assert_eq!(upload, form, "{name}={value:?}");
        assert_eq!(upload, probe, "{name}={value:?}");
        let got = upload.as_ref().err().map_or("", UploadError::code);
        assert_eq!(got, expected, "{name}={value:?}: {upload:?}");
        if let Err(UploadError::InvalidField { name: wrong, .. }) = upload {
            let expected = match (name.as_str(), value) {
                // It is the length that does not fit any more.
                ("resumableTotalSize", "15") | ("resumableChunkSize", "20") => {
                    "resumableCurrentChunkSize"
                }
                (name, _) => name,
            };
            assert_eq!(wrong, expected, "{name}={value:?}");
        }
    }
}

#[test]
fn what_is_missing_is_named() {
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
        let expected = needed.then(|| UploadError::MissingField { name: name.into() });
        let query = encode(&fields);
        let upload = dialect.chunk(&Params::from_query(Some(&query)).unwrap());
        assert_eq!(upload.err(), expected, "{name}");
        let probe = intent(&dialect, &request("GET", &query, None), true);
        assert_eq!(probe.err(), expected, "{name}");
    }
}

#[test]
fn text_that_is_not_utf8() {
    let dialect = resumable_js();
    let is_bad = |name: &str| {
        let reason = "is not UTF-8";
        let name = name.into();
        Some(UploadError::InvalidField { name, reason })
    };
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
        // Not ours, not our business.
        ("token=%FF", None),
    ];
    for (field, expected) in rows {
        let mut fields = good();
        fields.retain(|(n, _)| !field.starts_with(n));
        let query = format!("{}&{field}", encode(&fields));
        let params = Params::from_query(Some(&query)).unwrap();
        assert_eq!(dialect.chunk(&params).err(), expected, "{field}");
    }
}

#[test]
fn fields_that_come_twice() {
    const N: &str = "resumableChunkNumber";
    let clash = || conflict(N);
    // Rest of the query, fields of the form, what an upload says, what a probe says.
    type Row<'a> = (
        &'a str,
        &'a [(&'a str, &'a str)],
        Result<u64, UploadError>,
        u64,
    );
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
        // Other names are not ours; a semicolon is no separator.
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
        // Nobody reads this one.
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
        let params = with_body(Params::from_query(Some(&all)).unwrap(), form);
        let got = dialect.chunk(&params).map(|chunk| chunk.offset);
        assert_eq!(got, *upload, "upload {query} {form:?}");
        let Ok(Intent::Probe(got, _)) = intent(&dialect, &request("GET", &all, None), true) else {
            panic!("probe {query}");
        };
        assert_eq!(got.offset, *probe, "probe {query}");
    }
    // What an application sets with `query` comes before the client's own in a test, and instead of
    // it in an upload: both are about one upload.
    let own = encode(&good());
    let set = own.replace("resumableFilename=a.txt", "resumableFilename=mine");
    assert_ne!(own, set);
    let test = request("GET", &format!("resumableFilename=mine&{own}"), None);
    let upload = Params::from_query(Some(&set)).unwrap();
    match intent(&dialect, &test, true) {
        Ok(Intent::Probe(probe, _)) => assert_eq!(dialect.chunk(&upload), Ok(probe)),
        other => panic!("{other:?}"),
    }
}

/// Total, chunk size, number; lengths that may be declared, and the most bytes if none is.
#[test]
fn layouts() {
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
            dialect.chunk(&Params::from_query(Some(&query)).unwrap())
        };
        let offset = (number - 1) * size;
        let chunk = read(&dialect, None).expect(&row);
        assert_eq!(
            (chunk.offset, chunk.len, chunk.max_len),
            (offset, None, most),
            "{row}"
        );
        let all = [size, most, total - offset, 0, 1, size - 1, MAX];
        let around = all
            .iter()
            .flat_map(|len| [len.saturating_sub(1), *len, len.saturating_add(1)]);
        for len in (0..40).chain(around) {
            let chunk = read(&dialect, Some(len));
            match lengths.contains(&len) {
                true => {
                    let chunk = chunk.expect(&row);
                    assert_eq!((chunk.len, chunk.max_len), (Some(len), len), "{row}");
                }
                false => assert!(
                    matches!(&chunk, Err(UploadError::InvalidField { name, .. })
                        if name == "resumableCurrentChunkSize"),
                    "{row}, {len} bytes: {chunk:?}"
                ),
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
        let chunk = dialect.chunk(&Params::from_query(Some(&query)).unwrap());
        assert_eq!(
            chunk,
            Err(UploadError::OutOfBounds),
            "{number} of {total} by {size}"
        );
    }
}

#[test]
fn renamed_dropped_and_with_a_namespace() {
    let renamed = |dialect: ResumableJs| {
        dialect
            .with_chunk_number_name("n")
            .with_chunk_size_name("size")
            .with_current_chunk_size_name("now")
            .with_total_size_name("total")
            .with_type_name("type")
            .with_identifier_name("id")
            .with_file_name_name("name")
            .with_relative_path_name("")
            .with_total_chunks_name("")
            .with_file_parameter_name("blob")
    };
    let query = "up[x]n=2&up[x]size=10&up[x]now=15&up[x]total=25&up[x]type=a/b&up[x]id=i\
                 &up[x]name=a.txt&up[x]token=t&plain=p&n=1&up[x]=e&=f&resumableFilename=r";
    // The setters go in any order.
    for dialect in [
        renamed(ResumableJs::new().with_namespace("up[x]")),
        renamed(ResumableJs::new()).with_namespace("up[x]"),
        renamed(ResumableJs::new().with_namespace("other_")).with_namespace("up[x]"),
    ] {
        let dialect = Dialect::from(dialect);
        for query in [query, &query.replace('[', "%5B").replace(']', "%5d")] {
            let params = Params::from_query(Some(query)).unwrap();
            let chunk = dialect.chunk(&params).expect(query);
            assert_eq!(show_chunk(&chunk), "i 10+15 of 25", "{query}");
            assert_eq!(chunk.content_type.as_deref(), Some("a/b"));
            assert_eq!(chunk.identity.file_name.as_deref(), Some("a.txt"));
            assert_eq!(chunk.identity.relative_path, None);
            let expected = [
                ("up[x]token", "t"),
                ("plain", "p"),
                ("n", "1"),
                ("up[x]", "e"),
                ("", "f"),
                ("resumableFilename", "r"),
            ];
            assert_eq!(dialect.extra(&params), owned(&expected));
        }
        assert_eq!(dialect.file_field(), "up[x]blob");
        for name in ["up[x]blob", "blob", "file", "up[x]file", "up[x]n"] {
            assert_eq!(dialect.is_file(name, false), name == "up[x]blob", "{name}");
        }
        for query in ["n=1&resumableStatus=1", "=1", "up[x]=1"] {
            let intent = intent(&dialect, &request("GET", query, None), true);
            assert!(matches!(intent, Ok(Intent::Pass)), "{query}");
        }
        let status = format!("{query}&up%5Bx%5DresumableStatus=1");
        let intent = intent(&dialect, &request("GET", &status, None), true);
        assert!(matches!(intent, Ok(Intent::Status(..))));
        // A path that the client never sends is not waited for.
        let all = ["id", "total", "n", "size", "name"].map(|n| (format!("up[x]{n}"), "1"));
        let mut params = Params::default();
        for (name, value) in all {
            assert!(!dialect.knows_where(&params), "before {name}");
            params.push_body(name, value.into());
        }
        assert!(dialect.knows_where(&params));
    }
}

#[test]
fn where_a_file_goes_is_known_early_or_late() {
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
    let in_query = Params::from_query(Some(&query)).unwrap();
    assert!(dialect.knows_where(&in_query));
    let form = |fields: &[(&str, &str)]| with_body(Params::default(), fields);
    assert!(!dialect.knows_where(&form(&required)));
    let all = [&required[..], &named].concat();
    assert!(dialect.knows_where(&form(&all)));
    for left_out in 0..all.len() {
        let mut fields = all.clone();
        let (name, _) = fields.remove(left_out);
        assert!(!dialect.knows_where(&form(&fields)), "without {name}");
    }
    // Half of it here, half of it there.
    let half = Params::from_query(Some(&encode(&all[..3]))).unwrap();
    assert!(!dialect.knows_where(&half));
    assert!(dialect.knows_where(&with_body(half, &all[3..])));
}

#[test]
fn the_applications_fields_are_handed_on() {
    let dialect = resumable_js();
    let query = "a=1&resumableIdentifier=i&b=2&b=3&resumableStatus=1&c=x%0Dy&d=%FF";
    let params = Params::from_query(Some(query)).unwrap();
    let alone = [
        ("a", "1"),
        ("b", "2"),
        ("b", "3"),
        ("c", "x\ry"),
        ("d", "\u{fffd}"),
    ];
    assert_eq!(dialect.extra(&params), owned(&alone));
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
    assert_eq!(dialect.extra(&with_body(params, &form)), owned(&both));
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

fn missing(name: &str) -> UploadError {
    UploadError::MissingField { name: name.into() }
}

fn conflict(name: &str) -> UploadError {
    UploadError::ConflictingField { name: name.into() }
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

fn with_body(mut params: Params, fields: &[(impl AsRef<str>, impl AsRef<str>)]) -> Params {
    for (name, value) in fields {
        params.push_body(name.as_ref().into(), value.as_ref().into());
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

fn show(intent: &Intent) -> String {
    match intent {
        Intent::Pass => "pass".into(),
        Intent::BlindProbe => "blind probe".into(),
        Intent::List => "list".into(),
        Intent::Finish => "finish".into(),
        Intent::Create(total) => format!("create {total}"),
        Intent::Probe(chunk, _) => format!("probe {}", show_chunk(chunk)),
        Intent::Status(chunk, _) => format!("status {}", show_chunk(chunk)),
        Intent::Cancel(identity, _) => {
            format!("cancel {} of {}", identity.identifier, identity.total)
        }
        Intent::Put(_, Transport::Multipart { boundary }) => format!("form {boundary}"),
        Intent::Put(_, Transport::Octets) => "octets".into(),
        Intent::Put(_, Transport::Whole) => "whole".into(),
    }
}

fn show_chunk(chunk: &Chunk) -> String {
    let Identity {
        identifier, total, ..
    } = &chunk.identity;
    format!("{identifier} {} of {total}", show_range(chunk))
}

fn show_range(chunk: &Chunk) -> String {
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

/// The upload that a request speaks of, and what it wants of it.
fn read_capture(dialects: &Dialects, request: &[u8]) -> (Option<String>, String) {
    let (parts, body) = head(request);
    let (kind, chunk) = match dialects.intent(&parts, body.is_empty()).0.unwrap() {
        Intent::Pass => return (None, "pass".into()),
        Intent::BlindProbe => return (None, "blind probe".into()),
        Intent::Create(total) => return (None, format!("create {total}")),
        Intent::Finish => {
            let (chunk, extra) = dialects
                .finished(&Params::from_form(body).unwrap())
                .unwrap();
            assert_eq!(extra, []);
            ("finish", chunk)
        }
        Intent::Probe(chunk, _) => ("probe", chunk),
        Intent::Put(params, Transport::Octets) => (
            "octets",
            dialects.of(&params).unwrap().chunk(&params).unwrap(),
        ),
        Intent::Put(params, Transport::Multipart { boundary }) => {
            let mut fields = split_form(body, &boundary);
            // The file is the last part: by then all is known.
            let (name, content) = fields.pop().unwrap();
            let mut params = with_body(params, &fields);
            params.set_part(file_part(body));
            assert!(dialects.is_file(&params, &name, false));
            match dialects.of(&params) {
                Some(dialect) => {
                    assert!(dialect.knows_where(&params));
                    assert_eq!(dialect.extra(&params), []);
                    ("form", dialect.chunk(&params).unwrap())
                }
                None => {
                    assert!(is_whole_file(&parts, &params));
                    let len = content.len() as u64;
                    ("whole", whole_file(&params, "its own".into(), len).unwrap())
                }
            }
        }
        other => panic!("{other:?}"),
    };
    let Identity {
        identifier,
        total,
        file_name,
        ..
    } = &chunk.identity;
    let upload = format!("{identifier} of {total}, {}", file_name.as_deref().unwrap());
    (Some(upload), format!("{kind} {}", show_range(&chunk)))
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
    ResumableJs::new().into()
}

/// What a layer with this dialect only reads in the head of a request.
fn intent(dialect: &Dialect, parts: &Parts, empty: bool) -> Result<Intent, UploadError> {
    Dialects::only([dialect.clone()]).intent(parts, empty).0
}

fn form(dialect: &Dialect, parts: &Parts) -> (Params, String) {
    match intent(dialect, parts, false) {
        Ok(Intent::Put(params, Transport::Multipart { boundary })) => (params, boundary),
        other => panic!("{other:?}"),
    }
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

/// The names and values of a form, the file included. Good enough for what browsers send.
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
