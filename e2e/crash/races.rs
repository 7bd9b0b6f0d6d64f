//! Requests for the same upload at the same time: its last chunks and duplicates of them, and
//! appends, questions, removals and concatenations.

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    path::Path,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tower::{Layer as _, ServiceExt as _, service_fn, util::BoxCloneSyncService};
use tower_resumable::{CompletedUpload, FileStore, MemoryStore, ResumableLayer};

use super::{
    rows::Rng,
    world::{Seen, Stop},
};

const ROUNDS: u64 = 5000;

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.map_err(|error| error.to_string())
}

/// In memory if possible: these rows test races, and a sync would only slow them down.
fn folder() -> Result<tempfile::TempDir, String> {
    let dir = if Path::new("/dev/shm").is_dir() {
        tempfile::tempdir_in("/dev/shm")
    } else {
        tempfile::tempdir()
    };
    dir.map_err(|error| error.to_string())
}

pub fn chunks(_: &mut Rng) -> Result<Seen, Stop> {
    let (runtime, dir) = (runtime()?, folder()?);
    let files = FileStore::open(dir.path()).map_err(|error| error.to_string())?;
    let mut seen = Seen::default();
    for layer in [
        ResumableLayer::new(files),
        ResumableLayer::new(MemoryStore::default()),
    ] {
        for round in 0..ROUNDS {
            runtime.block_on(race(&layer, round, &mut seen));
        }
    }
    Ok(seen)
}

async fn race(layer: &ResumableLayer, round: u64, seen: &mut Seen) {
    let calls = Arc::new(AtomicU64::new(0));
    let whole = Arc::new(AtomicU64::new(0));
    let counters = (Arc::clone(&calls), Arc::clone(&whole));
    let service = layer.layer(service_fn(move |request: Request<Full<Bytes>>| {
        let upload = request.extensions().get::<CompletedUpload>().cloned();
        let (calls, whole) = counters.clone();
        async move {
            calls.fetch_add(1, Ordering::SeqCst);
            let Some(upload) = upload else {
                return Ok::<_, Infallible>(Response::new(Full::from("none")));
            };
            let is_whole = is_whole(&upload).await;
            whole.fetch_add(is_whole.into(), Ordering::SeqCst);
            Ok(Response::new(Full::from(upload.id().to_owned())))
        }
    }));
    let send = |number: u64| {
        let query = format!(
            "resumableChunkNumber={number}&resumableChunkSize=9&resumableTotalSize=27\
             &resumableIdentifier={round}&resumableFilename=x"
        );
        let request = Request::post(format!("/upload?{query}"))
            .header("content-type", "application/octet-stream")
            .body(Full::from(vec![number as u8; 9]));
        let service = service.clone();
        async move {
            let response = service.oneshot(request.ok()?).await.ok()?;
            let status = response.status().as_u16();
            let body = response.into_body().collect().await.ok()?.to_bytes();
            Some((status, body))
        }
    };
    let _ = send(1).await;
    let racers: Vec<_> = [2, 3, 2, 3]
        .into_iter()
        .map(|number| tokio::spawn(send(number)))
        .collect();
    let mut ids = Vec::new();
    for racer in racers {
        match racer.await {
            Ok(Some((200, body))) if !body.starts_with(b"{") => ids.push(body),
            // The answer to a chunk that did not complete the upload.
            Ok(Some((200, _))) => {}
            other => seen.wrong.push(format!("round {round}: {other:?}")),
        }
    }
    let calls = calls.load(Ordering::SeqCst);
    seen.rounds += 1;
    seen.uploads += 1;
    seen.acked += 27;
    seen.missing += u64::from(calls == 0);
    seen.doubled += calls.saturating_sub(1);
    seen.corrupt += calls - whole.load(Ordering::SeqCst);
    if ids.is_empty() || ids.iter().any(|id| *id != ids[0]) {
        seen.wrong
            .push(format!("round {round}: different answers: {ids:?}"));
    }
}

/// Whether the file has the bytes of the three chunks.
async fn is_whole(upload: &CompletedUpload) -> bool {
    let content = upload.content().collect().await;
    content.is_ok_and(|content| content.to_bytes() == [[1; 9], [2; 9], [3; 9]].concat())
}

/// A body that is sent while its request runs.
struct Body {
    pieces: mpsc::UnboundedReceiver<Bytes>,
    /// Told once the layer reads the body: a request after that is a newer one.
    is_read: Arc<Notify>,
}

impl Body {
    fn empty() -> Self {
        Self {
            pieces: mpsc::unbounded_channel().1,
            is_read: Arc::default(),
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.is_read.notify_one();
        let piece = self.pieces.poll_recv(cx);
        piece.map(|piece| piece.map(|piece| Ok(Frame::data(piece))))
    }
}

/// An append that has begun.
struct Appending {
    task: JoinHandle<Heard>,
    pieces: mpsc::UnboundedSender<Bytes>,
    is_read: Arc<Notify>,
}

impl Appending {
    /// Sends some bytes of the body. They are lost if the request has ended.
    fn send(&self, bytes: &[u8]) {
        let _ = self.pieces.send(Bytes::copy_from_slice(bytes));
    }
}
type Service = BoxCloneSyncService<
    Request<Body>,
    Response<tower_resumable::ResponseBody<Full<Bytes>>>,
    Infallible,
>;

/// The bytes of each file of the races of appends.
const LETTERS: &[u8; 27] = b"abcdefghijklmnopqrstuvwxyz!";

/// What was delivered of each upload, by its token.
type Delivered = Arc<Mutex<HashMap<String, Vec<Bytes>>>>;

/// An answer of the layer: its status and headers.
type Heard = Result<(u16, HeaderMap), String>;

/// Races of uploads that have a URL: in memory, in a folder, and in a folder with two stores, as
/// two processes have them.
pub fn urls(rng: &mut Rng) -> Result<Seen, Stop> {
    let (runtime, dir, shared) = (runtime()?, folder()?, folder()?);
    let open = |dir: &tempfile::TempDir| {
        let store = FileStore::builder(dir.path()).open();
        store.map_err(|error| error.to_string())
    };
    let mut seen = Seen::default();
    // A store that stalls looks twice a second whether another process ends it.
    for (layers, rounds) in [
        (vec![ResumableLayer::new(MemoryStore::default())], 700),
        (vec![ResumableLayer::new(open(&dir)?)], 700),
        (
            vec![
                ResumableLayer::new(open(&shared)?),
                ResumableLayer::new(open(&shared)?),
            ],
            35,
        ),
    ] {
        let delivered = Delivered::default();
        let services = layers.into_iter().map(|layer| {
            let layer = layer.with_hold_back(Duration::ZERO);
            service(&layer, &delivered)
        });
        let mut racers = Racers {
            services: services.collect(),
            delivered,
            is_tus: true,
            yields: Vec::new(),
        };
        for round in 0..rounds {
            racers.is_tus = rng.below(2) == 0;
            racers.yields = (0..8).map(|_| rng.below(20)).collect();
            let kind = KINDS[round % KINDS.len()];
            let ended = runtime.block_on(async {
                let race = tokio::time::timeout(Duration::from_secs(20), (kind.1)(&racers));
                race.await.unwrap_or_else(|_| Err("it hangs".into()))
            });
            seen.rounds += 1;
            seen.uploads += 1;
            seen.acked += LETTERS.len() as u64;
            if let Err(what) = ended {
                let (stores, is_tus) = (racers.services.len(), racers.is_tus);
                let what = format!("{}, tus {is_tus}, {stores} stores: {what}", kind.0);
                seen.wrong.push(what);
            }
            if seen.wrong.len() > 5 {
                return Ok(seen);
            }
        }
    }
    Ok(seen)
}

type Running<'a> = Pin<Box<dyn Future<Output = Result<(), String>> + 'a>>;

/// A kind of race, by its name.
type Kind = (&'static str, for<'a> fn(&'a Racers) -> Running<'a>);

const KINDS: [Kind; 7] = [
    ("two appends", |racers| Box::pin(racers.appends())),
    ("an append that stalls", |racers| Box::pin(racers.stalled())),
    ("a question beside a commit", |racers| {
        Box::pin(racers.cut())
    }),
    ("questions beside an append", |racers| {
        Box::pin(racers.looks())
    }),
    ("a removal", |racers| Box::pin(racers.removal())),
    ("two concatenations", |racers| Box::pin(racers.concats())),
    ("two lengths", |racers| Box::pin(racers.lengths())),
];

fn service(layer: &ResumableLayer, delivered: &Delivered) -> Service {
    let delivered = Arc::clone(delivered);
    let inner = service_fn(move |request: Request<Body>| {
        let delivered = Arc::clone(&delivered);
        async move {
            if let Some(upload) = request.extensions().get::<CompletedUpload>() {
                let content = upload.content().collect().await;
                let content = content.map_or_else(|_| Bytes::new(), |content| content.to_bytes());
                let mut delivered = delivered.lock().unwrap_or_else(PoisonError::into_inner);
                let token = upload.identifier().to_owned();
                delivered.entry(token).or_default().push(content);
            }
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("taken")))
        }
    });
    BoxCloneSyncService::new(layer.layer(inner))
}

struct Racers {
    /// One for each process.
    services: Vec<Service>,
    delivered: Delivered,
    /// Whether tus is spoken, or else the IETF draft.
    is_tus: bool,
    /// How often the requests of a round give way to others before they begin.
    yields: Vec<u64>,
}

impl Racers {
    /// Sends a request to one of the processes, with a body that ends when the sender is dropped.
    fn send(
        &self,
        turn: usize,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: Body,
    ) -> JoinHandle<Heard> {
        let service = self.services[turn % self.services.len()].clone();
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(|error| error.to_string());
        let yields = self.yields[turn % self.yields.len()];
        tokio::spawn(async move {
            for _ in 0..yields {
                tokio::task::yield_now().await;
            }
            let response = service.oneshot(request?).await;
            let response = response.map_err(|error| error.to_string())?;
            let (head, body) = response.into_parts();
            let body = body.collect().await.map_err(|error| error.to_string())?;
            drop(body);
            Ok((head.status.as_u16(), head.headers))
        })
    }

    async fn ask(&self, turn: usize, method: &str, url: &str, headers: &[(&str, &str)]) -> Heard {
        let version: &[_] = if self.is_tus {
            &[("tus-resumable", "1.0.0")]
        } else {
            &[]
        };
        let headers = [version, headers].concat();
        heard(self.send(turn, method, url, &headers, Body::empty())).await
    }

    /// Begins to append.
    fn begin(&self, turn: usize, url: &str, at: usize, more: &[(&str, &str)]) -> Appending {
        let (sender, pieces) = mpsc::unbounded_channel();
        let is_read = Arc::<Notify>::default();
        let at = at.to_string();
        let own: &[_] = if self.is_tus {
            &[
                ("tus-resumable", "1.0.0"),
                ("content-type", "application/offset+octet-stream"),
            ]
        } else {
            &[
                ("content-type", "application/partial-upload"),
                ("upload-complete", "?1"),
            ]
        };
        let headers = [own, &[("upload-offset", &*at)], more].concat();
        let body = Body {
            pieces,
            is_read: Arc::clone(&is_read),
        };
        Appending {
            task: self.send(turn, "PATCH", url, &headers, body),
            pieces: sender,
            is_read,
        }
    }

    /// Appends these bytes, a third of them at a time.
    fn append(&self, turn: usize, url: &str, at: usize, bytes: &[u8]) -> JoinHandle<Heard> {
        let appending = self.begin(turn, url, at, &[]);
        bytes.chunks(9).for_each(|piece| appending.send(piece));
        appending.task
    }

    async fn create(&self, headers: &[(&str, &str)]) -> Result<String, String> {
        let heard = self.ask(0, "POST", "/upload", headers).await?;
        let location = heard.1.get("location").and_then(|url| url.to_str().ok());
        let location = location.filter(|_| heard.0 == 201);
        location.map(Into::into).ok_or(format!("{heard:?}"))
    }

    async fn create_one(&self) -> Result<String, String> {
        if self.is_tus {
            self.create(&[("upload-length", "27")]).await
        } else {
            self.create(&[("upload-complete", "?0")]).await
        }
    }

    /// The offset that one of the processes tells.
    async fn offset(&self, turn: usize, url: &str) -> Result<usize, String> {
        // 423 and 503 mean that it can be asked again.
        for _ in 0..200 {
            let heard = self.ask(turn, "HEAD", url, &[]).await?;
            match (heard.0, offset_in(&heard.1)) {
                (200 | 204, Some(offset)) => return Ok(offset),
                (423, _) => tokio::time::sleep(Duration::from_millis(1)).await,
                _ => return Err(format!("HEAD: {heard:?}")),
            }
        }
        Err("HEAD is never answered".into())
    }

    /// Asks twice. What was told holds: no older request adds to it.
    async fn settled_offset(&self, url: &str) -> Result<usize, String> {
        let first = self.offset(0, url).await?;
        tokio::task::yield_now().await;
        for turn in [1, 0] {
            let next = self.offset(turn, url).await?;
            if next != first {
                return Err(format!("the offset went from {first} to {next}"));
            }
        }
        Ok(first)
    }

    /// Appends what is missing, and checks what was delivered.
    async fn finish(&self, url: &str, content: &[u8]) -> Result<(), String> {
        for turn in 0..200 {
            let at = self.offset(turn, url).await?;
            if at > content.len() {
                return Err(format!("offset {at}"));
            }
            let is_over = self.is_tus && at == content.len();
            let status = if is_over {
                200
            } else {
                let task = self.append(turn, url, at, &content[at..]);
                heard(task).await?.0
            };
            match status {
                200..300 => return self.is_delivered(url, content),
                423 | 500.. => tokio::time::sleep(Duration::from_millis(1)).await,
                _ => return Err(format!("status {status} at {at}")),
            }
        }
        Err("it never ends".into())
    }

    fn deliveries(&self, url: &str) -> Vec<Bytes> {
        let delivered = self.delivered.lock();
        let delivered = delivered.unwrap_or_else(PoisonError::into_inner);
        let token = url.split_once("upload=").map_or("", |(_, token)| token);
        delivered.get(token).cloned().unwrap_or_default()
    }

    fn is_delivered(&self, url: &str, content: &[u8]) -> Result<(), String> {
        let delivered = self.deliveries(url);
        if delivered == [content] {
            Ok(())
        } else {
            Err(format!("delivered {delivered:?}"))
        }
    }

    async fn appends(&self) -> Result<(), String> {
        let url = self.create_one().await?;
        let mut tasks = Vec::new();
        for turn in 0..3 {
            tasks.push(self.append(turn, &url, 0, LETTERS));
        }
        let mut won = 0;
        for task in tasks {
            let (status, _) = heard(task).await?;
            won += u32::from(status < 300);
            // The draft answers 503 to a request that is ended.
            if ![200, 204, 409, 423, 503].contains(&status) {
                return Err(format!("status {status}"));
            }
        }
        if won > 1 {
            return Err(format!("{won} appends at one offset"));
        }
        self.finish(&url, LETTERS).await
    }

    async fn stalled(&self) -> Result<(), String> {
        let url = self.create_one().await?;
        let older = self.begin(0, &url, 0, &[]);
        older.send(&LETTERS[..9]);
        older.is_read.notified().await;
        let told = self.settled_offset(&url).await?;
        let newer = self.append(1, &url, told, &LETTERS[told..]);
        // It comes too late.
        older.send(&LETTERS[9..]);
        drop(older.pieces);
        let (older, newer) = (heard(older.task).await?, heard(newer).await?);
        if older.0 < 400 || newer.0 >= 300 {
            return Err(format!("{older:?}, {newer:?}"));
        }
        self.finish(&url, LETTERS).await
    }

    /// The future of an append is dropped, as hyper does when its connection ends.
    async fn cut(&self) -> Result<(), String> {
        let url = self.create_one().await?;
        let older = self.begin(0, &url, 0, &[]);
        LETTERS[..18].chunks(9).for_each(|piece| older.send(piece));
        older.is_read.notified().await;
        for _ in 0..self.yields[1] {
            tokio::task::yield_now().await;
        }
        older.task.abort();
        self.settled_offset(&url).await?;
        older.send(&LETTERS[18..]);
        drop(older.pieces);
        self.settled_offset(&url).await?;
        self.finish(&url, LETTERS).await
    }

    async fn looks(&self) -> Result<(), String> {
        let url = self.create_one().await?;
        let append = self.append(0, &url, 0, LETTERS);
        let mut told = 0;
        for turn in 0..4 {
            let offset = self.offset(turn, &url).await?;
            if offset < told {
                return Err(format!("the offset went from {told} to {offset}"));
            }
            told = offset;
        }
        heard(append).await?;
        self.finish(&url, LETTERS).await
    }

    async fn removal(&self) -> Result<(), String> {
        let url = self.create_one().await?;
        let append = self.append(0, &url, 0, LETTERS);
        let (removed, headers) = self.ask(1, "DELETE", &url, &[]).await?;
        let (appended, _) = heard(append).await?;
        let delivered = self.deliveries(&url);
        let is_sound = match removed {
            204 => {
                let (status, _) = self.ask(0, "HEAD", &url, &[]).await?;
                // Perhaps it was delivered before it was removed.
                let is_whole = delivered.is_empty() || delivered == [&LETTERS[..]];
                status == 404 && is_whole && self.deliveries(&url) == delivered
            }
            // It is being delivered.
            423 | 503 => return self.finish(&url, LETTERS).await,
            _ => false,
        };
        if is_sound && [200, 204, 404, 409, 423, 503].contains(&appended) {
            Ok(())
        } else {
            Err(format!(
                "{removed} {headers:?}, append {appended}, then {:?}, delivered {delivered:?}",
                self.ask(0, "HEAD", &url, &[]).await
            ))
        }
    }

    async fn concats(&self) -> Result<(), String> {
        if !self.is_tus {
            return Ok(());
        }
        let mut urls = Vec::new();
        for piece in LETTERS.chunks(18) {
            let length = piece.len().to_string();
            let headers = [("upload-concat", "partial"), ("upload-length", &length)];
            let url = self.create(&headers).await?;
            let (status, _) = heard(self.append(0, &url, 0, piece)).await?;
            if status != 204 {
                return Err(format!("part: {status}"));
            }
            urls.push(url);
        }
        let list = format!("final;{}", urls.join(" "));
        let headers = [("tus-resumable", "1.0.0"), ("upload-concat", &*list)];
        let mut tasks = Vec::new();
        for turn in 0..3 {
            tasks.push(self.send(turn, "POST", "/upload", &headers, Body::empty()));
        }
        let mut made = Vec::new();
        for task in tasks {
            let (mut status, mut heard) = heard(task).await?;
            // It is sent again, as clients do.
            while status == 503 {
                let again = self.send(0, "POST", "/upload", &headers, Body::empty());
                (status, heard) = self::heard(again).await?;
            }
            let url = heard.get("location").and_then(|url| url.to_str().ok());
            match (status, url) {
                (201, Some(url)) => made.push(url.to_owned()),
                _ => return Err(format!("{status} {heard:?}")),
            }
        }
        if made.iter().any(|url| *url != made[0]) {
            return Err(format!("{made:?}"));
        }
        self.is_delivered(&made[0], LETTERS)
    }

    async fn lengths(&self) -> Result<(), String> {
        if !self.is_tus {
            return Ok(());
        }
        let url = self.create(&[("upload-defer-length", "1")]).await?;
        let (mut tasks, mut won) = (Vec::new(), Vec::new());
        for (turn, length) in [(0, "27"), (1, "18")] {
            let more = [("upload-length", length)];
            // Dropping the sender ends the body, which is empty.
            tasks.push((self.begin(turn, &url, 0, &more).task, length));
        }
        for (task, length) in tasks {
            match heard(task).await? {
                (204, _) => won.push(length),
                (400 | 423 | 503, _) => {}
                other => return Err(format!("{other:?}")),
            }
        }
        let (_, headers) = self.ask(0, "HEAD", &url, &[]).await?;
        let length = headers.get("upload-length");
        let length = length.and_then(|length| length.to_str().ok());
        if won.len() > 1 || won.first().is_some_and(|won| length != Some(won)) {
            return Err(format!("{won:?} were accepted, it is {length:?}"));
        }
        let Some(length) = length else {
            // A request that was ended has declared nothing.
            let task = self.begin(0, &url, 0, &[("upload-length", "27")]).task;
            heard(task).await?;
            return self.finish(&url, LETTERS).await;
        };
        let length: usize = length.parse().map_err(|_| "no number")?;
        self.finish(&url, &LETTERS[..length]).await
    }
}

async fn heard(task: JoinHandle<Heard>) -> Heard {
    task.await.map_err(|error| error.to_string())?
}

fn offset_in(headers: &HeaderMap) -> Option<usize> {
    headers.get("upload-offset")?.to_str().ok()?.parse().ok()
}
