//! Properties that hold for any input, checked with inputs that proptest generates: see `checks/`.
//! The fuzz targets in `fuzz/` run the same checks.
//!
//! The cases are the same in each run. `PROPTEST_RNG_SEED=7 PROPTEST_CASES=10000` runs other cases,
//! and more of them.

mod checks;
mod regressions;

use std::env::var_os;

use proptest::{
    collection::vec,
    prelude::*,
    sample::select,
    test_runner::{FileFailurePersistence, RngSeed},
};

fn config(cases: u32) -> ProptestConfig {
    let mut config = ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    };
    if var_os("PROPTEST_CASES").is_none() {
        config.cases = cases;
    }
    if var_os("PROPTEST_RNG_SEED").is_none() {
        config.rng_seed = RngSeed::Fixed(1);
    }
    config
}

proptest! {
    #![proptest_config(config(1500))]

    #[test]
    fn queries(head in any::<[u8; 5]>(), query in query()) {
        checks::query(&[&head[..], &query].concat());
    }

    #[test]
    fn queries_of_any_bytes(data in bytes(300)) {
        checks::query(&data);
    }

    #[test]
    fn safe_names(name in fragments(NAMES, 60)) {
        checks::names(&name);
    }
}

proptest! {
    #![proptest_config(config(400))]

    #[test]
    fn data_urls(head in bytes(12), text in data_url()) {
        checks::data_url(&[&head[..], &text].concat());
    }

    #[test]
    fn forms_in_any_frames(head in bytes(12), form in form()) {
        checks::form_cuts(&[&head[..], &form].concat());
    }

    #[test]
    fn valid_forms(data in bytes(4000)) {
        checks::form_parts(&data);
    }
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn journals(data in bytes(200)) {
        checks::journal(&data);
    }
}

proptest! {
    #![proptest_config(config(120))]

    #[test]
    fn requests_faults_and_restarts(data in bytes(400)) {
        checks::machine(&data);
    }
}

fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..most)
}

/// A concatenation of these texts and of random bytes.
fn fragments(all: &'static [&'static str], most: usize) -> impl Strategy<Value = Vec<u8>> {
    let fragment = prop_oneof![
        9 => select(all).prop_map(|text| text.as_bytes().to_vec()),
        1 => bytes(20),
    ];
    vec(fragment, 0..most).prop_map(|fragments| fragments.concat())
}

/// Fields of clients, with values that are valid, nearly valid, or absurd.
fn query() -> impl Strategy<Value = Vec<u8>> {
    let family = select(&["resumable", "flow", "dz", "qq", ""][..]);
    let field = (select(FIELDS), select(VALUES), any::<u8>());
    let right = any::<bool>();
    (family, vec(field, 0..14), right).prop_map(|(family, fields, right)| {
        let start = match (right, family) {
            (true, "resumable" | "flow") => format!(
                "{family}Identifier=zQ7%3C&{family}TotalSize=4&{family}ChunkNumber=1\
                 &{family}ChunkSize=4"
            ),
            (true, "dz") => "dzuuid=a&dztotalfilesize=4&dzchunkbyteoffset=0".into(),
            (true, "qq") => "qquuid=a&qqtotalfilesize=4&qqpartbyteoffset=0".into(),
            _ => String::new(),
        };
        let fields = fields.into_iter().map(|(name, value, odd)| match odd {
            0..8 => format!("&{name}={value}"),
            8..12 => format!(";{family}{name}={value}"),
            12..16 => format!("&{family}{name}"),
            _ => format!("&{family}{name}={value}"),
        });
        fields
            .fold(start, |query, field| query + &field)
            .into_bytes()
    })
}

const FIELDS: &[&str] = &[
    "Identifier",
    "TotalSize",
    "ChunkNumber",
    "ChunkSize",
    "CurrentChunkSize",
    "Filename",
    "RelativePath",
    "Type",
    "TotalChunks",
    "Status",
    "uuid",
    "totalfilesize",
    "chunkindex",
    "chunksize",
    "chunkbyteoffset",
    "totalchunkcount",
    "partindex",
    "partbyteoffset",
    "filename",
    "resume",
    "status",
    "name",
    "total",
    "offset",
    "size",
    "chunk",
    "chunks",
    "id",
    "type",
    "lastModifiedDate",
    "identifier",
    "totalSize",
    "chunkNumber",
    "chunkSize",
    "currentChunkSize",
    "patch",
    "fileId",
    "fileSize",
    "chunkSizeStart",
    "chunkIndex",
    "uploadStatus",
    "%00",
    "zQ7%3C",
];

const VALUES: &[&str] = &[
    "1",
    "0",
    "4",
    "5",
    "2",
    "10",
    "8",
    "9",
    "-1",
    "+1",
    "1e3",
    "01",
    "",
    "18446744073709551615",
    "18446744073709551616",
    "9223372036854775808",
    "zQ7%3C",
    "zQ7<",
    "a",
    "%00",
    "%ff",
    "%",
    "..%2F..%2Fetc",
    "%EF%BF%BD",
    "%0D%0AzQ7%3C:%201",
    "%F0%9F%98%80",
    "0123456789abcdef0123456789abcdef-4",
];

fn form() -> impl Strategy<Value = Vec<u8>> {
    let whole = vec(select(PARTS), 0..8).prop_map(|parts| {
        let all: String = parts.concat();
        (all + "--X--\r\n").into_bytes()
    });
    prop_oneof![whole, fragments(PARTS, 10), fragments(PIECES, 40)]
}

const PARTS: &[&str] = &[
    "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabcd\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n\r\n--\r\n--Y\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"file\"\r\nContent-Type: a/b\r\n\r\nabcd\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\ndata:;base64,YWJjZA==\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"resumableIdentifier\"\r\n\r\n4-a\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"resumableTotalSize\"\r\n\r\n4\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"resumableChunkNumber\"\r\n\r\n1\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"resumableChunkSize\"\r\n\r\n4\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"identifier\"\r\n\r\n4-a\r\n",
    "--X\r\nContent-Disposition: form-data; name=\"other\"\r\n\r\nzQ7<\r\n",
    "--X \t\r\nX-Y: z\r\ncontent-disposition:form-data;name=other;filename=b\r\n\r\n\r\n",
];

const PIECES: &[&str] = &[
    "--X",
    "--X--",
    "\r\n",
    "\r",
    "\n",
    "--",
    "-",
    "\r\n\r\n",
    "\n\n",
    ":",
    "; ",
    "\"",
    "\\",
    "=",
    "Content-Disposition",
    "content-type",
    " form-data",
    "name",
    "filename",
    "file",
    "name=\"file\"",
    "filename=\"a\"",
    "Content-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n",
    "Content-Disposition: form-data; name=\"resumableIdentifier\"\r\n\r\n",
    "abcd",
    "4",
    "1",
    " ",
    "--X\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\nabcd\r\n",
];

fn data_url() -> impl Strategy<Value = Vec<u8>> {
    let digits = bytes(100).prop_map(|bytes| {
        use base64::prelude::{BASE64_STANDARD, Engine as _};
        BASE64_STANDARD.encode(bytes)
    });
    let head = select(
        &[
            "",
            "",
            "data:;base64,",
            "DATA:a/b;x=y;BASE64,",
            "data:,",
            "data",
        ][..],
    );
    let right = (head, digits, select(&["", "\r\n", "=", " ", "A"][..]))
        .prop_map(|(head, digits, tail)| format!("{head}{digits}{tail}").into_bytes());
    prop_oneof![right, fragments(DIGITS, 80)]
}

const DIGITS: &[&str] = &[
    "data:",
    "data",
    ";base64,",
    ";base64",
    ",",
    "a/b",
    "YWJj",
    "YQ==",
    "YQ",
    "=",
    "A",
    "/",
    "+",
    "-",
    " ",
    "\t",
    "\r\n",
    "        ",
    "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "                                                                                    ",
];

const NAMES: &[&str] = &[
    "a",
    "b",
    ".",
    "..",
    " ",
    "-",
    "/",
    "\\",
    ":",
    "\0",
    "\u{202e}",
    "\u{feff}",
    "é",
    "e\u{301}",
    "日",
    "CON",
    "con",
    "LPT1",
    "COM¹",
    "NUL",
    ".txt",
    ".tar.gz",
    "_",
    "conin$",
    "\u{7f}",
    "?",
    "                                                                ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "................................................................",
];
