//! Random requests, faults and restarts, compared with a simple model of the stored bytes.

use std::{ops::Range, path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{Request, request::Builder};
use serde_json::json;
use tempfile::TempDir;
use tower_resumable::{
    Delivery as Deliveries, Dialect, FileStore, MemoryStore, ResumableLayer, Retention,
    store::Filter,
};

use super::{
    Input,
    server::{Answer, Delivery, Inner, Script, Server, Step, block_on, encoded, folder},
};

/// The files to upload, and their sizes. Two of them have the same identifier, and one is so large
/// that its chunks are on disk before they are whole.
const FILES: [(&str, u64); 6] = [
    ("a", 23),
    ("b", 8),
    ("a", 64),
    ("c", 0),
    ("d", 1),
    ("e", 18_000),
];

/// The maximum number of steps in one run.
const STEPS: usize = 40;

/// The possible statuses of the inner service; 0 is an error.
const ANSWERS: [u16; 6] = [200, 200, 201, 500, 0, 422];

/// After this, a file is rejected, and its record expires at once.
const REJECTED: u16 = 422;

/// After more failures in a row, the next delivery waits.
const WITHOUT_PAUSE: u32 = 4;

/// Runs the steps that the bytes describe, compares each answer with the model, and finishes all
/// uploads at the end.
pub fn machine(data: &[u8]) {
    let mut input = Input::new(data);
    block_on(async {
        let mut world = World::new(input.u8());
        for _ in 0..STEPS {
            if input.is_empty() {
                break;
            }
            world.step(&mut input).await;
        }
        world.finish().await;
    });
}

/// A client that sends the offset of each chunk, optionally its length, and no more.
pub(super) fn dialect() -> Dialect {
    Dialect::new("any ranges")
        .with_identifier("id")
        .with_total_size("total")
        .with_offset("from")
        .with_chunk_length("len")
        .with_file_name("name")
        .with_status("status")
}

/// One upload of the model.
#[derive(Default)]
struct Model {
    /// The first bytes that were stored at each place of the file.
    stored: Vec<Option<u8>>,
    /// Whether the upload exists, possibly without bytes.
    begun: bool,
    /// The number of failed deliveries.
    attempts: u32,
    /// The id of the upload, once it was delivered.
    id: Option<String>,
    /// The answer of the inner service, once it is final.
    answer: Option<u16>,
}

impl Model {
    /// An upload that does not exist.
    fn new(file: usize) -> Self {
        Self {
            stored: vec![None; FILES[file].1 as usize],
            ..Self::default()
        }
    }

    fn store(&mut self, at: u64, byte: u8) {
        self.begun = true;
        self.stored[at as usize].get_or_insert(byte);
    }

    fn received(&self) -> usize {
        self.stored.iter().flatten().count()
    }

    fn has(&self, range: Range<u64>) -> bool {
        let range = range.start as usize..range.end as usize;
        self.begun && self.stored[range].iter().all(Option::is_some)
    }

    fn is_complete(&self) -> bool {
        self.has(0..self.stored.len() as u64)
    }

    fn content(&self) -> Vec<u8> {
        self.stored.iter().copied().flatten().collect()
    }
}

struct World {
    root: Option<TempDir>,
    memory: MemoryStore,
    /// Two processes on one store.
    servers: Vec<Server>,
    inner: Inner,
    /// Whether the records expire at once.
    forgets: bool,
    models: Vec<Model>,
    /// The files that the application has kept, and their expected content.
    finished: Vec<(PathBuf, Vec<u8>)>,
    /// All ids so far.
    ids: Vec<String>,
}

impl World {
    fn new(kind: u8) -> Self {
        let mut world = Self {
            root: (kind & 1 == 0).then(folder),
            memory: MemoryStore::default(),
            servers: Vec::new(),
            inner: Inner::default(),
            forgets: kind & 2 == 2,
            models: (0..FILES.len()).map(Model::new).collect(),
            finished: Vec::new(),
            ids: Vec::new(),
        };
        for _ in 0..2 {
            let server = world.server();
            world.servers.push(server);
        }
        world
    }

    /// A process that has just started.
    fn server(&self) -> Server {
        let layer = match &self.root {
            Some(root) => ResumableLayer::new(FileStore::open(root.path()).unwrap()),
            None => ResumableLayer::new(self.memory.clone()),
        };
        let lifetime = if self.forgets {
            Duration::ZERO
        } else {
            Duration::from_secs(3600)
        };
        let layer = layer
            .with_protocol(dialect())
            .with_list_parameter("unfinished")
            .with_delivery(
                Deliveries::default()
                    .with_record_lifetime(lifetime)
                    .with_rejection_lifetime(Duration::ZERO)
                    .with_max_attempts(u32::MAX),
            );
        Server::new(layer, self.inner.clone())
    }

    async fn step(&mut self, input: &mut Input<'_>) {
        let server = usize::from(input.bool());
        let file = input.below(FILES.len());
        match input.below(16) {
            0..=6 => {
                let range = range(input, FILES[file].1);
                let request = Chunk::choose(input, file, range);
                self.put(server, &request).await;
            }
            7 => {
                let range = range(input, FILES[file].1);
                self.probe(server, file, range).await;
            }
            8 => self.status(server, file).await,
            9 => self.cancel(server, file).await,
            10 => self.inner.answer_with(*input.pick(&ANSWERS)),
            11 => self.servers[server] = self.server(),
            12 => self.sweep(server, input.bool()).await,
            13 => self.list(server).await,
            14 => self.deliver_all(server).await,
            _ => self.burst(input, file).await,
        }
    }

    /// Sends one chunk, valid or with a fault.
    async fn put(&mut self, server: usize, chunk: &Chunk) {
        let before = self.models[chunk.file].answer;
        if let Fault::Stalls(polls) = chunk.fault {
            {
                let mut sent = std::pin::pin!(self.servers[server].send(chunk.request()));
                for _ in 0..polls {
                    let answered = std::future::poll_fn(|cx| {
                        std::task::Poll::Ready(sent.as_mut().poll(cx).is_ready())
                    });
                    assert!(!answered.await, "an incomplete request was answered");
                    tokio::task::yield_now().await;
                }
            }
            // The client has disconnected, and the layer continues without it. Nothing of the chunk
            // is stored.
            self.servers[server].layer.uploads().drain().await;
            return;
        }
        let answer = self.send(server, chunk).await;
        answer.check();
        match chunk.fault {
            Fault::None => {}
            Fault::Breaks => {
                assert_eq!(answer.code(), Some("interrupted"), "{chunk:?}");
                return;
            }
            Fault::WrongLength => {
                assert_eq!(answer.code(), Some("chunk_length"), "{chunk:?}");
                return;
            }
            Fault::Stalls(_) => unreachable!(),
        }
        match before {
            Some(recorded) => self.check_final(chunk.file, recorded, &answer),
            None => {
                self.store(chunk);
                self.check_stored(chunk.file, &answer);
            }
        }
    }

    /// Another process may have removed an upload that this one knows: one "superseded" answer is
    /// allowed.
    async fn send(&self, server: usize, chunk: &Chunk) -> Answer {
        let answer = self.servers[server].send(chunk.request()).await;
        match answer.code() {
            Some("superseded") => self.servers[server].send(chunk.request()).await,
            _ => answer,
        }
    }

    /// Updates the model after a valid chunk.
    fn store(&mut self, chunk: &Chunk) {
        let model = &mut self.models[chunk.file];
        model.begun = true;
        for at in chunk.range.clone() {
            model.store(at, chunk.byte(at));
        }
    }

    /// Checks the answer to a valid chunk, and what was delivered.
    fn check_stored(&mut self, file: usize, answer: &Answer) {
        if !self.is_complete(file) {
            assert_eq!(answer.status, 200);
            assert_eq!(answer.json()["received"], self.models[file].received());
            assert_eq!(self.inner.take(), []);
            return;
        }
        let deliveries = self.inner.take();
        if deliveries.is_empty() && self.models[file].attempts >= WITHOUT_PAUSE {
            assert_eq!(answer.code(), Some("delivery_failed"));
            return;
        }
        assert_eq!(deliveries.len(), 1, "{deliveries:?}");
        self.check_delivery(file, &deliveries[0]);
        self.check_final(file, deliveries[0].answer, answer);
        self.settle(file, &deliveries[0]);
    }

    /// Checks that the delivery matches the model.
    fn check_delivery(&mut self, file: usize, delivery: &Delivery) {
        assert!(self.is_complete(file), "{delivery:?}");
        let (identifier, total) = FILES[file];
        let model = &mut self.models[file];
        assert!(delivery.is(&model.content()), "other bytes");
        assert_eq!(delivery.identifier, identifier);
        assert_eq!(delivery.size, total);
        assert_eq!(delivery.file_name.as_deref(), Some(NAME));
        model.attempts += 1;
        assert_eq!(delivery.attempt, model.attempts);
        match &model.id {
            Some(id) => assert_eq!(delivery.id, *id),
            None => {
                assert!(!self.ids.contains(&delivery.id), "an id that was used");
                self.ids.push(delivery.id.clone());
                model.id = Some(delivery.id.clone());
            }
        }
    }

    /// Updates the model after a delivery.
    fn settle(&mut self, file: usize, delivery: &Delivery) {
        let model = &mut self.models[file];
        match delivery.answer {
            0 | 500.. => return,
            200..400 => {
                if let Some(path) = &delivery.path {
                    self.finished.push((path.clone(), model.content()));
                }
            }
            _ => {
                let path = delivery.path.as_ref();
                assert!(
                    path.is_none_or(|path| !path.exists()),
                    "a rejected file was kept"
                );
            }
        }
        if self.forgets || delivery.answer == REJECTED {
            *model = Model::new(file);
        } else {
            model.answer = Some(delivery.answer);
        }
    }

    /// Checks the answer to a client after a final answer of the inner service.
    fn check_final(&self, file: usize, answered: u16, answer: &Answer) {
        let expected = match answered {
            200 | 201 => answered,
            422 => 400,
            _ => 503,
        };
        if answered == 422 {
            let original = answer.headers.get("x-resumable-status");
            assert_eq!(original.unwrap(), "422");
        }
        assert_eq!(answer.status, expected);
        if expected < 400 {
            assert_eq!(answer.body, format!("taken {}", FILES[file].1).into_bytes());
        }
    }

    async fn probe(&self, server: usize, file: usize, range: Range<u64>) {
        let mut fields = fields(file, &range);
        fields.push(("len", (range.end - range.start).to_string()));
        let probe = Request::get(uri(&fields)).body(Script::default());
        let answer = self.servers[server].send(probe.unwrap()).await;
        let model = &self.models[file];
        match model.answer {
            Some(recorded @ 200..400) => self.check_final(file, recorded, &answer),
            None if !model.is_complete() && model.has(range) => {
                assert_eq!(answer.status, 200);
                assert_eq!(answer.json()["received"], model.received());
            }
            _ => assert_eq!(answer.status, 204),
        }
        assert_eq!(self.inner.take(), []);
    }

    async fn status(&self, server: usize, file: usize) {
        let (state, ranges) = self.servers[server].ranges(file).await;
        let model = &self.models[file];
        let expected = match model.answer {
            Some(200..400) => "delivered",
            Some(_) => "rejected",
            None if self.is_complete(file) => "complete",
            None if model.received() == 0 => "absent",
            None => "receiving",
        };
        // An upload without any bytes may be reported as absent.
        let is_empty = expected == "absent" && state == "receiving";
        assert!(state == expected || is_empty, "{state}, not {expected}");
        let mut stored = vec![false; model.stored.len()];
        for range in ranges {
            assert!(range.start < range.end);
            stored[range.start as usize..range.end as usize].fill(true);
        }
        let has_all = model.answer.is_some();
        let expected = model.stored.iter().map(|byte| has_all || byte.is_some());
        assert!(stored.into_iter().eq(expected), "other ranges");
    }

    async fn cancel(&mut self, server: usize, file: usize) {
        let fields = fields(file, &(0..0));
        let cancel = Request::delete(uri(&fields)).body(Script::default());
        let answer = self.servers[server].send(cancel.unwrap()).await;
        assert_eq!(answer.status, 204);
        if self.models[file].answer.is_none() {
            self.models[file] = Model::new(file);
        }
    }

    /// Removes all uploads that are older than now, or none. Uploads of the current millisecond
    /// stay.
    async fn sweep(&mut self, server: usize, all: bool) {
        let retention = if all {
            Retention::default()
                .with_abandoned(Duration::ZERO)
                .with_undelivered(Duration::ZERO)
        } else {
            Retention::default()
        };
        let layer = self.servers[server].layer.clone().with_retention(retention);
        let swept = layer.uploads().sweep().await.unwrap();
        assert!(all || swept.abandoned + swept.undelivered == 0);
        let (mut abandoned, mut undelivered) = (swept.abandoned, swept.undelivered);
        for file in 0..FILES.len() {
            if self.models[file].answer.is_some() || !self.models[file].begun {
                continue;
            }
            let (state, _) = self.servers[server].ranges(file).await;
            if state == "absent" {
                if self.is_complete(file) {
                    undelivered -= 1;
                } else {
                    abandoned -= 1;
                }
                self.models[file] = Model::new(file);
            }
        }
        // The model does not contain uploads without any bytes.
        assert_eq!(undelivered, 0);
        assert!(abandoned <= FILES.len() as u64);
    }

    async fn list(&self, server: usize) {
        let list = Request::get("/upload?unfinished").body(Script::default());
        let list = self.servers[server].send(list.unwrap()).await.json();
        let mut got: Vec<_> = list["uploads"].as_array().unwrap().clone();
        got.sort_by_key(ToString::to_string);
        let files = (0..FILES.len()).filter(|file| {
            let model = &self.models[*file];
            model.answer.is_none() && (model.received() > 0 || model.is_complete())
        });
        let mut expected: Vec<_> = files
            .map(|file| {
                json!({
                    "identifier": FILES[file].0,
                    "file_name": NAME,
                    "relative_path": null,
                    "content_type": "application/octet-stream",
                    "state": if self.is_complete(file) { "complete" } else { "receiving" },
                    "received": self.models[file].received(),
                    "total": FILES[file].1,
                })
            })
            .collect();
        expected.sort_by_key(ToString::to_string);
        for upload in got.iter_mut().chain(&mut expected) {
            // The content type is that of the first chunk, or of the chunk that completed the
            // upload. A form has none.
            upload["content_type"].take();
        }
        assert_eq!(got, expected);
    }

    /// What an application does when it starts.
    async fn deliver_all(&mut self, server: usize) {
        let handle = self.servers[server].layer.uploads();
        let page = handle.list(&Filter::complete(), None).await.unwrap();
        assert_eq!(page.next, None);
        let mut uploads: Vec<_> = page
            .uploads
            .into_iter()
            .map(|listed| listed.upload)
            .collect();
        let complete = (0..FILES.len())
            .filter(|file| self.models[*file].answer.is_none() && self.is_complete(*file));
        let mut expected: Vec<_> = complete.collect();
        assert_eq!(uploads.len(), expected.len(), "{uploads:?}");
        while let Some(upload) = uploads.pop() {
            let known = |file: &usize| {
                Some(FILES[*file].1) == upload.length && FILES[*file].0 == upload.identifier
            };
            let at = expected.iter().position(known).expect("a complete upload");
            let file = expected.swap_remove(at);
            let request = Request::post("/upload").body(Script::default()).unwrap();
            let delivered = handle.deliver(upload, self.inner.clone(), request).await;
            let deliveries = self.inner.take();
            assert_eq!(deliveries.len(), 1);
            self.check_delivery(file, &deliveries[0]);
            let is_final = matches!(deliveries[0].answer, 200..500);
            assert_eq!(delivered.is_ok(), is_final);
            self.settle(file, &deliveries[0]);
        }
    }

    /// Several valid chunks of one file at once, at both servers. All have the same bytes, so the
    /// order does not matter.
    async fn burst(&mut self, input: &mut Input<'_>, file: usize) {
        let recorded = self.models[file].answer;
        let total = FILES[file].1;
        let chunks: Vec<_> = (0..input.below(6) + 1)
            .map(|_| {
                let range = range(input, total);
                Chunk::good(input, file, range)
            })
            .collect();
        let sent = chunks.iter().enumerate();
        let sent = sent.map(|(n, chunk)| self.send(n % 2, chunk));
        let answers = futures_util::future::join_all(sent).await;
        if let Some(recorded) = recorded {
            answers
                .iter()
                .for_each(|answer| self.check_final(file, recorded, answer));
            return;
        }
        chunks.iter().for_each(|chunk| self.store(chunk));
        let deliveries = self.inner.take();
        if !self.is_complete(file) {
            assert_eq!(deliveries, []);
            assert!(answers.iter().all(|answer| answer.status == 200));
            return;
        }
        let answer = self.inner.answers_with();
        let is_final = matches!(answer, 200..500);
        let forgets = self.forgets || answer == REJECTED;
        // If a delivery fails, other requests try again. If the record expires at once, they begin
        // a new upload.
        let most = if is_final && !forgets {
            1
        } else {
            chunks.len()
        };
        if deliveries.is_empty() && self.models[file].attempts >= WITHOUT_PAUSE {
            return;
        }
        assert!((1..=most).contains(&deliveries.len()), "{deliveries:?}");
        if is_final && forgets {
            self.check_delivery(file, &deliveries[0]);
            self.settle(file, &deliveries[0]);
            return self.begin_again(file, &deliveries[1..]).await;
        }
        for delivery in &deliveries {
            self.check_delivery(file, delivery);
        }
        self.settle(file, &deliveries[0]);
        for answer in &answers {
            answer.check();
            // Earlier chunks are answered with the progress.
            if answer.status != 200 || !answer.body.starts_with(b"{") {
                self.check_final(file, deliveries[0].answer, answer);
            }
        }
    }

    /// After a delivery whose record has expired, further chunks are a new upload. Whatever is
    /// stored of it, the bytes are right.
    async fn begin_again(&mut self, file: usize, deliveries: &[Delivery]) {
        for delivery in deliveries {
            let content: Vec<u8> = (0..FILES[file].1).map(|at| byte(file, at)).collect();
            assert!(delivery.is(&content), "other bytes");
            self.ids.push(delivery.id.clone());
            if let (Some(path), 200..400) = (&delivery.path, delivery.answer) {
                self.finished.push((path.clone(), content));
            }
        }
        let (_, ranges) = self.servers[0].ranges(file).await;
        let model = &mut self.models[file];
        for at in ranges.into_iter().flatten() {
            model.store(at, byte(file, at));
        }
    }

    fn is_complete(&self, file: usize) -> bool {
        self.models[file].is_complete()
    }

    /// Without further faults, every upload is delivered, and the delivered files have not changed.
    async fn finish(mut self) {
        self.inner.answer_with(200);
        self.servers = vec![self.server(), self.server()];
        for (file, (_, total)) in FILES.into_iter().enumerate() {
            let half = total / 2;
            for (n, range) in [half..total, 0..half].into_iter().enumerate() {
                // The first chunk has completed the upload, and its record has expired.
                if n > 0 && !self.models[file].begun {
                    break;
                }
                let chunk = Chunk {
                    file,
                    range,
                    way: Way::Octets,
                    with_len: false,
                    fault: Fault::None,
                };
                self.put(n, &chunk).await;
            }
            let model = &self.models[file];
            assert_eq!(model.begun, !self.forgets);
            assert_eq!(model.answer.is_some(), !self.forgets);
        }
        self.list(0).await;
        self.deliver_all(1).await;
        for (path, content) in &self.finished {
            assert_eq!(std::fs::read(path).unwrap(), *content);
        }
        if let Some(root) = &self.root {
            let mut files = files_below(&root.path().join("files"));
            let mut expected: Vec<_> = self.finished.iter().map(|(path, _)| path.clone()).collect();
            files.sort();
            expected.sort();
            assert_eq!(files, expected);
        }
    }
}

impl Server {
    /// The state of an upload, and its stored ranges.
    async fn ranges(&self, file: usize) -> (String, Vec<Range<u64>>) {
        let mut fields = fields(file, &(0..0));
        fields.push(("status", "1".into()));
        let request = Request::get(uri(&fields)).body(Script::default());
        let answer = self.send(request.unwrap()).await;
        answer.check();
        let answer = answer.json();
        let bytes = |value: &serde_json::Value| value.as_u64().unwrap();
        let ranges = answer["ranges"].as_array().unwrap().iter();
        let ranges = ranges.map(|range| bytes(&range[0])..bytes(&range[1]));
        (answer["state"].as_str().unwrap().into(), ranges.collect())
    }
}

const NAME: &str = "a.bin";

/// The byte at an offset of a file. Other bytes in its place are a conflict, which other tests try.
fn byte(file: usize, at: u64) -> u8 {
    let mixed = (at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8 ^ (file as u8 * 17)
}

fn range(input: &mut Input<'_>, total: u64) -> Range<u64> {
    let at = input.below(total as usize) as u64;
    let len = match input.u8() {
        // The complete rest of the file is chosen more often.
        n if n < 64 => total - at,
        n => u64::from(n) * (total - at) / 256 + 1,
    };
    at..(at + len).min(total)
}

fn fields(file: usize, range: &Range<u64>) -> Vec<(&'static str, String)> {
    let (identifier, total) = FILES[file];
    vec![
        ("id", identifier.into()),
        ("total", total.to_string()),
        ("name", NAME.into()),
        ("from", range.start.to_string()),
    ]
}

fn uri(fields: &[(&str, String)]) -> String {
    let pairs = fields.iter().map(|(name, value)| (*name, value.as_str()));
    format!("/upload?{}", encoded(pairs))
}

fn files_below(dir: &std::path::Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(files_below(&path));
        } else {
            files.push(path);
        }
    }
    files
}

/// How the bytes of a chunk are transported.
#[derive(Clone, Copy, Debug)]
enum Way {
    Octets,
    /// In a form, with all fields in the query.
    Form,
    /// In a form, with the fields in it too.
    FieldsBefore,
    /// In a form, with the fields after the file.
    FieldsAfter,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// The connection breaks before the end.
    Breaks,
    /// There are more bytes than declared.
    WrongLength,
    /// No more bytes arrive, and the client disconnects after this number of polls.
    Stalls(u8),
}

#[derive(Clone, Debug)]
struct Chunk {
    file: usize,
    range: Range<u64>,
    way: Way,
    /// Whether the length of the chunk is declared.
    with_len: bool,
    fault: Fault,
}

impl Chunk {
    fn choose(input: &mut Input<'_>, file: usize, range: Range<u64>) -> Self {
        // The recorded inputs have a byte here.
        let _ = input.u8();
        let mut chunk = Self::good(input, file, range);
        chunk.fault = match input.below(10) {
            0 => Fault::Breaks,
            1 => Fault::WrongLength,
            2 => Fault::Stalls(input.u8() % 8),
            _ => Fault::None,
        };
        chunk
    }

    fn good(input: &mut Input<'_>, file: usize, range: Range<u64>) -> Self {
        let ways = [Way::Octets, Way::Form, Way::FieldsBefore, Way::FieldsAfter];
        Self {
            file,
            range,
            way: *input.pick(&ways),
            with_len: input.bool(),
            fault: Fault::None,
        }
    }

    fn byte(&self, at: u64) -> u8 {
        byte(self.file, at)
    }

    fn request(&self) -> Request<Script> {
        let mut fields = fields(self.file, &self.range);
        let mut content: Vec<u8> = self.range.clone().map(|at| self.byte(at)).collect();
        if let Fault::WrongLength = self.fault {
            // More than the rest of the file, or more than was declared.
            let rest = FILES[self.file].1 - self.range.end;
            let extra = if self.with_len { 1 } else { rest as usize + 1 };
            content.extend(std::iter::repeat_n(7, extra));
        }
        if self.with_len {
            fields.push(("len", (self.range.end - self.range.start).to_string()));
        }
        let form = Request::post(match self.way {
            Way::Octets | Way::Form => uri(&fields),
            Way::FieldsBefore | Way::FieldsAfter => "/upload".into(),
        });
        let part = |name: &str, value: &[u8]| {
            let head = format!("--X\r\nContent-Disposition: form-data; {name}\r\n\r\n");
            [head.as_bytes(), value, b"\r\n"].concat()
        };
        let in_form = || {
            let parts = fields.iter();
            parts.flat_map(|(name, value)| part(&format!("name={name}"), value.as_bytes()))
        };
        let file = || part("name=file; filename=blob", &content);
        let end = || *b"--X--\r\n";
        let body: Vec<u8> = match self.way {
            Way::Octets => content.clone(),
            Way::Form => file().into_iter().chain(end()).collect(),
            Way::FieldsBefore => in_form().chain(file()).chain(end()).collect(),
            Way::FieldsAfter => file().into_iter().chain(in_form()).chain(end()).collect(),
        };
        self.with_body(form, body)
    }

    fn with_body(&self, request: Builder, body: Vec<u8>) -> Request<Script> {
        let request = request.header(
            "content-type",
            match self.way {
                Way::Octets => "application/octet-stream",
                _ => "multipart/form-data; boundary=X",
            },
        );
        let step = match self.fault {
            Fault::None | Fault::WrongLength => None,
            Fault::Breaks => Some(Step::Fail),
            Fault::Stalls(_) => Some(Step::Stall),
        };
        let body = Bytes::from(body);
        let cut = body.len() - body.len().div_ceil(16);
        let body = match step {
            None => Script::new([Step::Data(body)]),
            Some(step) => Script::new([Step::Data(body.slice(..cut)), step]),
        };
        request.body(body).unwrap()
    }
}
