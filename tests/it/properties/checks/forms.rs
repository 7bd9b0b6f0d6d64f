//! Multipart forms, in any pieces.

use http::Request;
use serde_json::Value;
use tower_resumable::{Dialect, MemoryStore, ResumableLayer};

use super::{
    Input,
    server::{Delivery, Inner, PASSED, Script, Server, Step, block_on, encoded},
};

/// The query beside the form.
const QUERIES: [&str; 5] = [
    "",
    // One chunk of two.
    "resumableIdentifier=8-a&resumableTotalSize=8&resumableChunkNumber=1&resumableChunkSize=4\
     &resumableFilename=a",
    // A whole file.
    "resumableIdentifier=4-a&resumableTotalSize=4&resumableChunkNumber=1&resumableChunkSize=4\
     &resumableFilename=a",
    "resumableIdentifier=8-a",
    "flowIdentifier=a&flowTotalSize=4&flowChunkNumber=1&flowChunkSize=4",
];

/// The result of a request.
#[derive(Debug, PartialEq)]
struct Outcome {
    status: u16,
    code: Option<&'static str>,
    deliveries: Vec<Delivery>,
    unfinished: Value,
}

/// The outcome does not depend on the frames of a form or on their timing, and nothing is stored
/// unless the status is 200. The form's boundary is `X`.
pub fn form_cuts(data: &[u8]) {
    let mut input = Input::new(data);
    let query = *input.pick(&QUERIES);
    let cuts: Vec<_> = (0..input.below(8)).map(|_| input.u16().into()).collect();
    let form = input.rest();
    let content_type = "multipart/form-data; boundary=X";
    let outcome = |body: Script| outcome(query, content_type, body);

    let whole = outcome(Script::whole(form));
    if whole.status != 200 {
        assert_eq!(whole.deliveries, [], "{whole:?}");
        assert_eq!(
            whole.unfinished["uploads"].as_array().map(Vec::len),
            Some(0)
        );
    }
    let cuts = || cuts.iter().copied();
    assert_eq!(outcome(Script::cut(form, [], true)), whole);
    assert_eq!(outcome(Script::cut(form, cuts(), false)), whole);
    assert_eq!(outcome(Script::cut(form, cuts(), true)), whole);
    if form.len() <= 1 << 10 {
        assert_eq!(outcome(Script::cut(form, 0..form.len(), false)), whole);
    }

    // The connection breaks: the layer must not take the received bytes for the whole body.
    let broken = outcome(Script::whole(form).then(Step::Fail));
    assert!(broken.status != 200 && broken.deliveries.is_empty());
    assert_eq!(
        broken.unfinished["uploads"].as_array().map(Vec::len),
        Some(0)
    );
}

fn outcome(query: &str, content_type: &str, body: Script) -> Outcome {
    let layer = ResumableLayer::new(MemoryStore::default())
        .with_protocol(Dialect::simple_uploader())
        .with_list_parameter("everything");
    let server = Server::new(layer, Inner::default());
    block_on(async {
        let request = Request::post(format!("/upload?{query}"))
            .header("content-type", content_type)
            .body(body)
            .unwrap();
        let answer = server.send_bounded(request).await;
        answer.check();
        assert_ne!(answer.status, PASSED, "a form is never the application's");
        let list = Request::get("/upload?everything").body(Script::default());
        let unfinished = server.send_bounded(list.unwrap()).await.json();
        let mut deliveries = server.inner.take();
        for delivery in &mut deliveries {
            // These values are random.
            delivery.id.clear();
            if delivery.identifier.len() == 32 {
                delivery.identifier.clear();
            }
        }
        Outcome {
            status: answer.status,
            code: match answer.code() {
                // If the text is too long and also invalid base64, the error depends on which one
                // is found first.
                Some("chunk_length") => Some("base64"),
                code => code,
            },
            deliveries,
            unfinished,
        }
    })
}

/// A valid form is always accepted, with exactly its bytes.
pub fn form_parts(data: &[u8]) {
    let mut input = Input::new(data);
    let form = Form::choose(&mut input);
    let cuts: Vec<_> = (0..input.below(8)).map(|_| input.u16().into()).collect();
    let late = input.bool();
    let body = form.body();
    let query = if form.fields_in_query {
        encoded(form.own_fields().iter().map(|(n, v)| (*n, v.as_str())))
    } else {
        String::new()
    };
    let content_type = format!("multipart/form-data; boundary=\"{}\"", form.boundary);
    let outcome = outcome(&query, &content_type, Script::cut(&body, cuts, late));
    assert_eq!(
        outcome.status,
        200,
        "{outcome:?} to {}",
        body.escape_ascii()
    );
    let [delivery] = &outcome.deliveries[..] else {
        panic!("not delivered: {outcome:?}");
    };
    assert!(delivery.is(&form.content), "{delivery:?}");
    assert_eq!(delivery.file_name.as_deref(), Some(NAME));
    assert_eq!(delivery.identifier, IDENTIFIER);
    assert_eq!(delivery.fields, form.extra);
}

const NAME: &str = "a \"b\".txt";
const IDENTIFIER: &str = "form";

struct Form {
    boundary: String,
    preamble: String,
    epilogue: String,
    padding: &'static str,
    /// Whether Resumable.js' own fields are in the query.
    fields_in_query: bool,
    /// The application's fields, in order.
    extra: Vec<(String, String)>,
    content: Vec<u8>,
    /// How many fields come after the file.
    late: usize,
    /// How the headers of parts are written.
    style: u8,
}

impl Form {
    fn choose(input: &mut Input<'_>) -> Self {
        const BOUNDARIES: [&str; 5] = [
            "X",
            "-",
            "----WebKitFormBoundaryX0Y1Z2",
            "a'()+_,-./:=?b",
            "0123456789 0123456789 0123456789 0123456789 0123456789 0123456789 0123",
        ];
        let boundary = (*input.pick(&BOUNDARIES)).to_owned();
        let style = input.u8();
        let fields_in_query = input.bool();
        let preamble = input.bytes_as_text(64);
        let preamble = if preamble.contains("--") || preamble.is_empty() {
            String::new()
        } else {
            preamble + "\r\n"
        };
        let epilogue = input.bytes_as_text(64);
        let padding = *input.pick(&["", " ", "\t ", "  \t"]);
        let mut extra = Vec::new();
        for n in 0..input.below(5) {
            let len = input.below(40);
            let name = input.bytes_as_text(len);
            // No control characters: they are not allowed in a header. No percent signs: browsers
            // do not escape them.
            let name = name.replace(|c: char| c.is_control() || c == '%', "");
            let len = input.below(400);
            let value = input.bytes_as_text(len);
            extra.push((format!("x{n}{name}"), without_delimiter(value, &boundary)));
        }
        let len = input.below(3000);
        let mut content = input.bytes(len).to_vec();
        // The sender of a form has to choose a boundary that the content does not contain.
        let delimiter = format!("--{boundary}");
        if content.starts_with(delimiter.as_bytes())
            || contains(&content, format!("\r\n{delimiter}").as_bytes())
        {
            content.retain(|byte| *byte != b'-');
        }
        Self {
            boundary,
            preamble,
            epilogue,
            padding,
            fields_in_query,
            late: input.below(extra.len() + 1),
            extra,
            content,
            style,
        }
    }

    /// Resumable.js' fields of the only chunk.
    fn own_fields(&self) -> [(&'static str, String); 6] {
        let len = self.content.len();
        [
            ("resumableIdentifier", IDENTIFIER.into()),
            ("resumableTotalSize", len.to_string()),
            ("resumableChunkNumber", "1".into()),
            ("resumableChunkSize", len.max(1).to_string()),
            ("resumableCurrentChunkSize", len.to_string()),
            ("resumableFilename", NAME.into()),
        ]
    }

    fn body(&self) -> Vec<u8> {
        let mut body = self.preamble.clone().into_bytes();
        let early = self.extra.len() - self.late;
        for (name, value) in &self.extra[..early] {
            self.part(&mut body, name, None, value.as_bytes());
        }
        let own = || {
            let in_form = !self.fields_in_query || self.style & 1 == 1;
            self.own_fields().into_iter().filter(move |_| in_form)
        };
        let late = self.style & 2 == 2;
        for (name, value) in own().filter(|_| !late) {
            self.part(&mut body, name, None, value.as_bytes());
        }
        self.part(&mut body, "file", Some(NAME), &self.content);
        for (name, value) in own().filter(|_| late) {
            self.part(&mut body, name, None, value.as_bytes());
        }
        for (name, value) in &self.extra[early..] {
            self.part(&mut body, name, None, value.as_bytes());
        }
        let end = format!("--{}--{}\r\n{}", self.boundary, self.padding, self.epilogue);
        body.extend(end.as_bytes());
        body
    }

    fn part(&self, body: &mut Vec<u8>, name: &str, file_name: Option<&str>, content: &[u8]) {
        let quoted = |text: &str| match self.style & 4 {
            0 => text.replace('\\', r"\\").replace('"', r#"\""#),
            // As browsers escape a name. No further escaping is undone.
            _ => text.replace('\\', r"\\").replace('"', "%22"),
        };
        let header =
            ["Content-Disposition", "content-disposition"][usize::from(self.style >> 3 & 1)];
        let semicolon = ["; ", ";"][usize::from(self.style >> 4 & 1)];
        body.extend(format!("--{}{}\r\n", self.boundary, self.padding).as_bytes());
        if self.style >> 5 & 1 == 1 {
            body.extend(b"X-Other: \"; name=other\r\n");
        }
        body.extend(format!("{header}: form-data{semicolon}name=\"{}\"", quoted(name)).as_bytes());
        if let Some(file_name) = file_name {
            body.extend(format!("{semicolon}filename=\"{}\"", quoted(file_name)).as_bytes());
        }
        if self.style >> 6 & 1 == 1 {
            body.extend(b"\r\nContent-Type: text/plain; charset=utf-8");
        }
        body.extend(b"\r\n\r\n");
        body.extend(content);
        body.extend(b"\r\n");
    }
}

impl Input<'_> {
    fn bytes_as_text(&mut self, len: usize) -> String {
        String::from_utf8_lossy(self.bytes(len)).into_owned()
    }
}

fn without_delimiter(text: String, boundary: &str) -> String {
    let delimiter = format!("--{boundary}");
    if text.starts_with(&delimiter) || text.contains(&format!("\r\n{delimiter}")) {
        text.replace('-', "")
    } else {
        text
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// A form with one chunk that the query describes, as text without a file name.
pub(super) fn text_form(content: &[u8]) -> Vec<u8> {
    let head = b"--X\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n";
    [head, content, b"\r\n--X--\r\n"].concat()
}
