//! A server in a folder with canaries around it, a neighbour that uploads during the attack, and
//! the conditions that have to hold after every attack.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use serde_json::Value;
use tokio::sync::Notify;
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{
    CompletedUpload, FileStore, MemoryStore, ResumableLayer, Retention, Scope, safe_file_name,
    store::Durability,
};

use crate::{
    client::{ALL, Chunk, Client, File, Way},
    common,
    wire::{Answer, Kept, exchange},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Files,
    Memory,
}

pub type Running<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// One row of the table.
pub struct Case {
    /// The number in the list of known attacks.
    pub id: &'static str,
    pub name: &'static str,
    pub run: for<'a> fn(&'a World) -> Running<'a>,
    pub kinds: &'static [Kind],
    pub set_up: fn(ResumableLayer) -> ResumableLayer,
    /// The row measures the resources of the process, so no other row may run.
    pub alone: bool,
    /// The row is allowed to harm the neighbour.
    pub spares: bool,
}

impl Case {
    pub const fn new(
        id: &'static str,
        name: &'static str,
        run: for<'a> fn(&'a World) -> Running<'a>,
    ) -> Self {
        Self {
            id,
            name,
            run,
            kinds: &[Kind::Files, Kind::Memory],
            set_up: |layer| layer,
            alone: false,
            spares: true,
        }
    }

    pub const fn files(mut self) -> Self {
        self.kinds = &[Kind::Files];
        self
    }

    pub const fn memory(mut self) -> Self {
        self.kinds = &[Kind::Memory];
        self
    }

    pub const fn alone(mut self) -> Self {
        self.alone = true;
        self
    }

    pub const fn with(mut self, set_up: fn(ResumableLayer) -> ResumableLayer) -> Self {
        self.set_up = set_up;
        self
    }

    pub const fn hits_all(mut self) -> Self {
        self.spares = false;
        self
    }
}

/// How the inner service answers.
#[derive(Clone, Copy, Debug)]
pub enum Reply {
    Status(u16),
    Panic,
    /// The answer waits for [`World::release_call`].
    Held,
}

/// A request that reached the inner service unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passed {
    pub method: Method,
    pub uri: String,
    pub body: Vec<u8>,
}

#[derive(Clone)]
pub struct Delivery {
    pub upload: CompletedUpload,
    pub content: Vec<u8>,
}

/// The inner service.
#[derive(Default)]
struct Inner {
    deliveries: Mutex<Vec<Delivery>>,
    passed: Mutex<Vec<Passed>>,
    script: Mutex<VecDeque<Reply>>,
    release_call: Notify,
}

#[derive(Default)]
struct Seen {
    requests: u64,
    statuses: BTreeSet<u16>,
    left: u64,
    files: usize,
    users: BTreeSet<String>,
}

pub struct World {
    pub kind: Kind,
    pub addr: SocketAddr,
    pub layer: ResumableLayer,
    /// The folder of the store.
    pub root: PathBuf,
    outer: tempfile::TempDir,
    outside: Snapshot,
    inner: Arc<Inner>,
    seen: Mutex<Seen>,
    neighbour: Option<File>,
    kept: Kept,
}

/// The result of a row.
#[derive(Default)]
pub struct Report {
    pub requests: u64,
    pub statuses: BTreeSet<u16>,
    /// The bytes of the attackers' uploads that are still stored.
    pub left: u64,
    /// Files outside the store that appeared, changed or disappeared.
    pub outside: usize,
    pub harmed: usize,
    pub wrong: Vec<String>,
    pub took: Duration,
}

/// The state that a refused request must not change.
#[derive(Debug, PartialEq)]
pub struct State {
    ranges: Value,
    deliveries: usize,
    passed: usize,
}

/// The message of the panic that a script demands.
pub const SCRIPTED_PANIC: &str = "the script demands a panic";

impl State {
    /// Compares what is stored, and ignores requests that passed the layer.
    pub fn is_stored_as(&self, other: &Self) -> bool {
        self.ranges == other.ranges && self.deliveries == other.deliveries
    }
}

pub const DELIVERED: &str = "delivered";
pub const ATTACKER: &str = "mallory";
pub const NEIGHBOUR: &str = "neighbour";

impl World {
    pub async fn new(case: &Case, kind: Kind) -> Self {
        let outer = tempfile::tempdir().unwrap();
        let root = outer.path().join("srv/app/data/root");
        std::fs::create_dir_all(&root).unwrap();
        for canary in [
            "canary",
            "etc/passwd",
            "srv/passwd",
            "srv/app/passwd",
            "srv/app/data/passwd",
            "srv/app/data/root.txt",
        ] {
            let path = outer.path().join(canary);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, canary).unwrap();
        }
        let layer = match kind {
            // Power cuts are not tested here.
            Kind::Files => ResumableLayer::new(
                FileStore::builder(&root)
                    .with_durability(Durability::Process)
                    .with_stall_timeout(Duration::from_millis(200))
                    .open()
                    .unwrap(),
            ),
            Kind::Memory => ResumableLayer::new(MemoryStore::default()),
        };
        let layer = layer
            .with_list_parameter("unfinished")
            .with_hold_back(Duration::from_millis(20))
            .with_scope(|parts| Ok(Scope::new(user(parts))));
        let layer = (case.set_up)(layer);
        let inner = Arc::<Inner>::default();
        let addr = serve(layer.clone(), Arc::clone(&inner)).await;
        let outside = snapshot(outer.path(), &root);
        let mut world = Self {
            kind,
            addr,
            layer,
            root,
            outer,
            outside,
            inner,
            seen: Mutex::default(),
            neighbour: None,
            kept: Kept::default(),
        };
        if case.spares {
            let neighbour = File::new(Client::Resumable, Way::Both, NEIGHBOUR, 0);
            world.begin(&neighbour).await;
            world.neighbour = Some(neighbour);
        }
        world
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// The clients and transports that names and numbers are tried with: all of them for files, one
    /// transport of each client for memory, since only the store differs.
    pub fn clients(&self) -> impl Iterator<Item = (Client, Way)> + use<> {
        let step = if self.kind == Kind::Files { 1 } else { 2 };
        ALL.into_iter().step_by(step)
    }

    /// A file of the attacker that shares its fields with no other file of this row. The first one
    /// has the fields of the neighbour's file.
    pub fn file(&self, client: Client, way: Way) -> File {
        let mut seen = self.seen();
        seen.files += 1;
        File::new(client, way, ATTACKER, seen.files - 1)
    }

    /// Sends an attack, and checks the conditions that hold for every answer.
    pub async fn attack(&self, chunk: &Chunk) -> Answer {
        let answer = self.attack_bytes(chunk.bytes()).await;
        self.repeats_nothing(&answer, chunk.texts());
        answer
    }

    pub async fn attack_bytes(&self, request: impl Into<bytes::Bytes>) -> Answer {
        let answer = exchange(self.addr, request).await;
        self.note(&answer);
        answer
    }

    /// Counts the answer to an attack that was sent in another way.
    pub fn note(&self, answer: &Answer) {
        let mut seen = self.seen();
        seen.requests += 1;
        seen.statuses.insert(answer.status);
        drop(seen);
        self.is_safe(answer);
    }

    /// Counts the status of an answer that was not received over HTTP/1.
    pub fn note_status(&self, status: u16) {
        let mut seen = self.seen();
        seen.requests += 1;
        seen.statuses.insert(status);
    }

    fn is_safe(&self, answer: &Answer) {
        let text = answer.text();
        if text.is_empty() || text == DELIVERED || text == "passed" {
            return;
        }
        let header = |name| answer.header(name).unwrap_or_default();
        assert_eq!(header("x-content-type-options"), "nosniff", "{answer:?}");
        assert_eq!(header("cache-control"), "no-store", "{answer:?}");
        assert!(header("content-type").contains("json"), "{answer:?}");
        let outer = self.outer.path().to_str().unwrap();
        assert!(!text.contains(outer), "a path is revealed: {text}");
    }

    pub fn repeats_nothing<'a>(&self, answer: &Answer, texts: impl Iterator<Item = &'a str>) {
        let text = answer.text();
        for sent in texts {
            assert!(!text.contains(sent), "{sent:?} is repeated in {text}");
        }
    }

    async fn quiet(&self, chunk: &Chunk) -> Answer {
        let answer = self.kept.exchange(self.addr, &chunk.bytes()).await;
        self.is_safe(&answer);
        answer
    }

    /// Sends a valid request, which is no attack.
    pub async fn quiet_bytes(&self, request: Vec<u8>) -> Answer {
        let answer = exchange(self.addr, request).await;
        self.is_safe(&answer);
        answer
    }

    /// Checks at the end that nothing of this user's uploads is left.
    pub fn watch(&self, user: &str) {
        self.seen().users.insert(user.into());
    }

    /// The only delivery of the upload with this token.
    pub fn delivery_at(&self, token: &str) -> Delivery {
        let mut all = self.deliveries();
        all.retain(|delivery| delivery.upload.identifier() == token);
        assert_eq!(all.len(), 1, "deliveries of {token}");
        all.remove(0)
    }

    /// Sends the first chunk of several.
    pub async fn begin(&self, file: &File) {
        self.seen().users.insert(file.user.clone());
        let answer = self.quiet(&file.chunk(1)).await;
        assert_eq!(
            answer.status, 200,
            "the first chunk of {file:?}: {answer:?}"
        );
    }

    /// Sends all chunks but the first, and checks what was delivered.
    pub async fn finish(&self, file: &File) {
        let before = self.deliveries_of(file).len();
        for number in 2..=file.chunks() {
            let answer = self.quiet(&file.chunk(number)).await;
            assert_eq!(answer.status, 200, "chunk {number} of {file:?}: {answer:?}");
            let last = number == file.chunks();
            assert_eq!(answer.text() == DELIVERED, last, "{answer:?}");
        }
        let deliveries = self.deliveries_of(file);
        assert_eq!(deliveries.len(), before + 1, "deliveries of {file:?}");
        self.is_file(&deliveries[before], file);
    }

    /// Asserts that exactly one delivery came after the first `before` ones, and that it is of this
    /// file.
    pub fn delivered(&self, before: usize, file: &File) {
        let deliveries = self.deliveries();
        assert_eq!(deliveries.len(), before + 1, "deliveries of {file:?}");
        self.is_file(&deliveries[before], file);
    }

    /// Asserts that this delivery is of this file.
    pub fn is_file(&self, delivery: &Delivery, file: &File) {
        let upload = &delivery.upload;
        assert!(
            delivery.content == file.content,
            "other bytes than those of {file:?}"
        );
        assert_eq!(upload.size(), file.content.len() as u64);
        assert_eq!(upload.scope().as_str(), file.user);
        assert_eq!(upload.identifier(), file.identifier);
        if let Some(path) = upload.path() {
            assert!(path.starts_with(self.root.join("files")), "{path:?}");
            let name = path.file_name().and_then(|name| name.to_str()).unwrap();
            assert!(is_harmless(name), "{name:?}");
            assert_eq!(name, safe_file_name(name));
        }
        assert!(is_harmless(&upload.safe_file_name()));
    }

    /// Sends a whole file. Each of its chunks is an attack that has to be accepted.
    pub async fn accepted(&self, file: &File, change: impl Fn(Chunk) -> Chunk) {
        self.seen().users.insert(file.user.clone());
        let before = self.deliveries().len();
        for number in 1..=file.chunks() {
            let chunk = change(file.chunk(number));
            let answer = self.kept.exchange(self.addr, &chunk.bytes()).await;
            self.note(&answer);
            self.repeats_nothing(&answer, chunk.texts());
            assert_eq!(answer.status, 200, "chunk {number} of {file:?}: {answer:?}");
        }
        self.delivered(before, file);
    }

    /// Sends attacks that have to be refused with this code (any code, if it is empty) while a
    /// chunk of the same upload is stored. Then finishes the upload.
    pub async fn refused(&self, file: &File, code: &str, attacks: Vec<(String, Chunk)>) {
        self.begin(file).await;
        let (before, all) = (self.state(file).await, self.all_of(&file.user).await);
        let deliveries = self.deliveries().len();
        for (label, attack) in attacks {
            let answer = self.attack(&attack).await;
            let (client, way) = (file.client, file.way);
            // A chunk without its bytes can be sent again.
            let is_retryable = ["no bytes", "0 bytes"].contains(&&*label);
            let status = if is_retryable { 503 } else { client.refusal() };
            assert_eq!(
                (answer.status, code.is_empty() || answer.code() == code),
                (status, true),
                "{label} of {client:?} by {way:?}: {answer:?}"
            );
            self.unchanged(file, &before, &label).await;
        }
        assert_eq!(self.all_of(&file.user).await, all);
        assert_eq!(self.deliveries().len(), deliveries);
        self.finish(file).await;
    }

    /// Asserts that the state is the same as before.
    pub async fn unchanged(&self, file: &File, before: &State, what: &str) {
        let now = self.state(file).await;
        let stored = |state: &State| state.ranges["received"].as_u64().unwrap_or_default();
        let left = stored(&now).saturating_sub(stored(before));
        self.seen().left += left;
        assert_eq!(now, *before, "after {what}");
    }

    pub async fn state(&self, file: &File) -> State {
        let ranges = self
            .kept
            .exchange(self.addr, file.status().as_bytes())
            .await;
        assert_eq!(ranges.status, 200, "{ranges:?}");
        State {
            ranges: ranges.json(),
            deliveries: self.deliveries_of(file).len(),
            passed: self.passed().len(),
        }
    }

    /// The state that takes longer to collect: all uploads of a user, and the files of all users.
    pub async fn all_of(&self, user: &str) -> (Value, BTreeSet<PathBuf>) {
        (self.unfinished(user).await, self.partial_files())
    }

    /// The list of this user's unfinished uploads.
    pub async fn unfinished(&self, user: &str) -> Value {
        let list = format!("GET /upload?unfinished HTTP/1.1\r\nhost: x\r\nx-user: {user}\r\n\r\n");
        let answer = self.kept.exchange(self.addr, list.as_bytes()).await;
        self.is_safe(&answer);
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.json()["uploads"].clone()
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        lock(&self.inner.deliveries).clone()
    }

    fn deliveries_of(&self, file: &File) -> Vec<Delivery> {
        let mut all = self.deliveries();
        all.retain(|delivery| {
            let upload = &delivery.upload;
            (upload.scope().as_str(), upload.identifier()) == (&file.user, &file.identifier)
        });
        all
    }

    /// Requests that passed the layer.
    pub fn passed(&self) -> Vec<Passed> {
        lock(&self.inner.passed).clone()
    }

    /// Determines the results of the next calls of the inner service.
    pub fn script(&self, replies: impl IntoIterator<Item = Reply>) {
        lock(&self.inner.script).extend(replies);
    }

    /// Lets the waiting call of the inner service continue.
    pub fn release_call(&self) {
        self.inner.release_call.notify_one();
    }

    /// The files of unfinished uploads, by name.
    pub fn partial_files(&self) -> BTreeSet<PathBuf> {
        let files = snapshot(&self.root.join("partial"), Path::new(""));
        files.into_keys().collect()
    }

    /// The disk space of the store's files, in bytes.
    #[cfg(unix)]
    pub fn disk_use(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let files = snapshot(&self.root, Path::new(""));
        let files = files.keys().filter_map(|path| path.symlink_metadata().ok());
        files.map(|metadata| metadata.blocks() * 512).sum()
    }

    #[cfg(not(unix))]
    pub fn disk_use(&self) -> u64 {
        0
    }

    /// A path outside the store that attacks try to reach.
    pub fn canary(&self) -> PathBuf {
        self.outer.path().join("canary")
    }

    /// Finishes the neighbour's file, abandons all others, and checks everything once more.
    pub async fn close(&self, report: &mut Report) {
        {
            let seen = self.seen();
            report.requests += seen.requests;
            report.statuses.extend(&seen.statuses);
            report.left += seen.left;
        }
        let now = snapshot(self.outer.path(), &self.root);
        let outside = now.iter().filter(|(k, v)| self.outside.get(*k) != Some(v));
        let gone = self.outside.keys().filter(|path| !now.contains_key(*path));
        report.outside += outside.count() + gone.count();
        let Some(neighbour) = &self.neighbour else {
            return;
        };
        report.harmed += 1;
        self.finish(neighbour).await;
        report.harmed -= 1;
        let users = self.seen().users.clone();
        for user in users {
            report.left += bytes_of(&self.unfinished(&user).await);
        }
        self.sweep_all().await;
    }

    /// Asserts that a sweep leaves nothing of abandoned uploads, and only the records of delivered
    /// ones.
    async fn sweep_all(&self) {
        let retention = Retention::default().with_abandoned(Duration::ZERO);
        let sweeping = self.layer.clone().with_retention(retention);
        let mut left = BTreeSet::new();
        // Uploads of the last millisecond are not old enough.
        for _ in 0..50 {
            sweeping.uploads().sweep().await.unwrap();
            left = self.partial_files();
            left.retain(|path| path.extension().is_none_or(|kind| kind != "journal"));
            if left.is_empty() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        assert!(left.is_empty(), "left after the sweep: {left:?}");
    }
}

/// The owner of a request. A real server authenticates it in an outer layer.
pub fn user(parts: &http::request::Parts) -> String {
    let user = parts.headers.get("x-user").map(|user| user.as_bytes());
    String::from_utf8_lossy(user.unwrap_or_default()).into_owned()
}

async fn serve(layer: ResumableLayer, inner: Arc<Inner>) -> SocketAddr {
    let service = service_fn(move |request: Request<Incoming>| {
        let inner = Arc::clone(&inner);
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes().to_vec());
            let Some(upload) = parts.extensions.get::<CompletedUpload>() else {
                lock(&inner.passed).push(Passed {
                    method: parts.method,
                    uri: parts.uri.to_string(),
                    body: body.unwrap_or_default(),
                });
                return Ok::<_, Infallible>(Response::new(Full::from("passed")));
            };
            let delivery = Delivery {
                upload: upload.clone(),
                content: content(upload).await,
            };
            lock(&inner.deliveries).push(delivery);
            let reply = lock(&inner.script).pop_front();
            let status = match reply.unwrap_or(Reply::Status(200)) {
                Reply::Status(status) => status,
                Reply::Panic => panic!("{SCRIPTED_PANIC}"),
                Reply::Held => {
                    inner.release_call.notified().await;
                    200
                }
            };
            let mut response = Response::new(Full::from(DELIVERED));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok(response)
        }
    });
    common::serve(ServiceBuilder::new().layer(layer).service(service)).await
}

async fn content(upload: &CompletedUpload) -> Vec<u8> {
    if let Some(path) = upload.path() {
        let kind = path.symlink_metadata().unwrap().file_type();
        assert!(kind.is_file(), "{path:?} is {kind:?}");
    }
    common::content(upload).await
}

fn bytes_of(uploads: &Value) -> u64 {
    let uploads = uploads.as_array().into_iter().flatten();
    uploads
        .filter_map(|upload| upload["received"].as_u64())
        .sum()
}

/// Whether file systems and headers treat this as a plain name.
pub fn is_harmless(name: &str) -> bool {
    let bad = |c: char| {
        c.is_control()
            || "/\\:<>\"|?*".contains(c)
            || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    !name.is_empty()
        && name.len() <= 255
        && !name.contains(bad)
        && !name.starts_with(['.', '-', ' '])
        && !name.ends_with(['.', ' '])
}

type Snapshot = BTreeMap<PathBuf, (Option<Vec<u8>>, Option<std::time::SystemTime>)>;

/// All files and folders below `dir`, except below `but`. Links are not followed.
fn snapshot(dir: &Path, but: &Path) -> Snapshot {
    let mut all = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return all;
    };
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        if path == but {
            continue;
        }
        if kind.is_dir() {
            all.extend(snapshot(&path, but));
        }
        if kind.is_dir() && !but.as_os_str().is_empty() {
            all.insert(path, (None, None));
        } else if !kind.is_dir() {
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let content = if but.as_os_str().is_empty() {
                // For the store's own files the names are enough.
                None
            } else {
                std::fs::read(&path).ok()
            };
            all.insert(path, (content, modified.ok()));
        }
    }
    all
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
