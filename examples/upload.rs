//! Uploads files the way Resumable.js 1.1.0 does: to try the layer without a browser, and for its
//! own tests.
//!
//! `cargo run --example upload -- http://127.0.0.1:3000/upload FILE`, and again after it was
//! killed: it goes on where it was. `--help` lists the options. Standard output gets one line of
//! JSON for each file that was finished or refused.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    env,
    error::Error as StdError,
    ffi::OsString,
    fmt, fs,
    future::{pending, ready},
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, IsTerminal, SeekFrom, Write},
    path::{Path, PathBuf},
    pin::pin,
    process::ExitCode,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{
    FutureExt, Stream, StreamExt, TryStreamExt,
    future::{try_join, try_join_all},
    stream,
};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    net::TcpStream,
    task::JoinHandle,
    time::sleep,
};

const USAGE: &str = "\
Usage: upload [OPTIONS] URL FILE...

      --chunk-size BYTES    size of a chunk, also 512K, 1M, 2G [default: 1M]
      --force-chunk-size    the last chunk is the rest; without it, it is up to twice the size
      --parallel N          connections [default: 3]
      --octet               the chunk is the body, its parameters are in the query only
      --base64              the chunk is a data URL in a text field
      --no-test             send all chunks without asking for them first
      --shuffle             send the chunks in random order
      --seed N              which random order
      --last-alone          hold the last chunk back until all others are answered
      --duplicate PERCENT   send that share of the chunks twice, at the same time
      --identifier ID       [default: size and path, as Resumable.js makes it]
      --name NAME           [default: the name of the file]
      --relative-path PATH  [default: the name]
      --header 'K: V'       send this header too; may be repeated
      --field K=V           send this parameter too; may be repeated
      --retries N           how often a request is sent again [default: 100]
      --pause MS            time before it is [default: 200, then more and more up to 5000]
      --acks FILE           append a line 'identifier offset length' for each chunk taken
      --quiet               no progress bar, no notes";

/// How much of a file is in memory at a time, per connection. Base64 needs a multiple of three.
const PIECE: u64 = 3 << 16;

type Error = Box<dyn StdError + Send + Sync>;
type Fields = Vec<(String, String)>;
type Body = UnsyncBoxBody<Bytes, io::Error>;

#[tokio::main]
async fn main() -> ExitCode {
    if env::args_os().any(|word| word == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for path in &options.files {
        if let Err(error) = upload(&options, path).await {
            eprintln!("error: {}: {error}", path.display());
            code = ExitCode::FAILURE;
        }
    }
    code
}

async fn upload(options: &Options, path: &Path) -> Result<(), Error> {
    let upload = Upload::new(options, path)?;
    let result = tokio::select! {
        result = upload.run() => result,
        never = upload.draw_progress() => match never {},
    };
    upload.clear_progress();
    match &result {
        Ok(()) => upload.report(upload.last_answer.take())?,
        Err(Failure::Refused(answer)) => upload.report(Some(answer.clone()))?,
        Err(_) => {}
    }
    Ok(result?)
}

#[derive(Default)]
struct Options {
    url: Uri,
    files: Vec<PathBuf>,
    chunk_size: u64,
    force_chunk_size: bool,
    parallel: usize,
    octet: bool,
    base64: bool,
    no_test: bool,
    shuffle: bool,
    seed: u64,
    last_alone: bool,
    duplicate: u64,
    identifier: Option<String>,
    name: Option<String>,
    relative_path: Option<String>,
    headers: HeaderMap,
    fields: Fields,
    retries: u32,
    pause: Option<u64>,
    acks: Option<fs::File>,
    quiet: bool,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut options = Self {
            chunk_size: 1 << 20,
            parallel: 3,
            seed: random(),
            retries: 100,
            ..Self::default()
        };
        let mut plain = Vec::new();
        while let Some(word) = words.next() {
            match word.to_str() {
                Some(option) if option.starts_with("--") => options.set(option, &mut words)?,
                _ => plain.push(word),
            }
        }
        let mut plain = plain.into_iter();
        let url = plain.next().ok_or("there is no URL")?;
        options.url = parsed("URL", &url.to_string_lossy())?;
        options.files = plain.map(PathBuf::from).collect();
        options.check()?;
        if let (Some(host), false) = (options.url.host(), options.headers.contains_key("host")) {
            let port = options.url.port().map(|port| format!(":{port}"));
            let host = format!("{host}{}", port.unwrap_or_default()).parse()?;
            options.headers.insert(header::HOST, host);
        }
        Ok(options)
    }

    fn set(
        &mut self,
        option: &str,
        words: &mut dyn Iterator<Item = OsString>,
    ) -> Result<(), Error> {
        let mut value = || match words.next().map(OsString::into_string) {
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(format!("{option} needs a value in UTF-8")),
            None => Err(format!("{option} needs a value")),
        };
        match option {
            "--chunk-size" => self.chunk_size = bytes(option, &value()?)?,
            "--force-chunk-size" => self.force_chunk_size = true,
            "--parallel" => self.parallel = parsed(option, &value()?)?,
            "--octet" => self.octet = true,
            "--base64" => self.base64 = true,
            "--no-test" => self.no_test = true,
            "--shuffle" => self.shuffle = true,
            "--seed" => self.seed = parsed(option, &value()?)?,
            "--last-alone" => self.last_alone = true,
            "--duplicate" => self.duplicate = parsed(option, &value()?)?,
            "--identifier" => self.identifier = Some(value()?),
            "--name" => self.name = Some(value()?),
            "--relative-path" => self.relative_path = Some(value()?),
            "--header" => {
                let line = value()?;
                let (name, value) = line.split_once(':').ok_or("--header needs 'K: V'")?;
                let name: HeaderName = parsed(option, name.trim())?;
                self.headers.append(name, parsed(option, value.trim())?);
            }
            "--field" => {
                let field = value()?;
                let (name, value) = field.split_once('=').ok_or("--field needs K=V")?;
                self.fields.push((name.into(), value.into()));
            }
            "--retries" => self.retries = parsed(option, &value()?)?,
            "--pause" => self.pause = Some(parsed(option, &value()?)?),
            "--acks" => {
                let path = value()?;
                let file = fs::OpenOptions::new().append(true).create(true).open(&path);
                self.acks = Some(file.map_err(|error| format!("--acks {path}: {error}"))?);
            }
            "--quiet" => self.quiet = true,
            _ => return Err(format!("there is no option {option}").into()),
        }
        Ok(())
    }

    fn check(&self) -> Result<(), &'static str> {
        let named = [&self.identifier, &self.name, &self.relative_path];
        let complaints = [
            (
                self.url.scheme_str() != Some("http"),
                "the URL must start with http://",
            ),
            (self.files.is_empty(), "there is no FILE"),
            (self.chunk_size == 0, "--chunk-size must not be 0"),
            (self.parallel == 0, "--parallel must not be 0"),
            (self.duplicate > 100, "--duplicate is at most 100"),
            (
                self.octet && self.base64,
                "--octet and --base64 exclude each other",
            ),
            (
                self.files.len() > 1 && named.iter().any(|option| option.is_some()),
                "--identifier, --name and --relative-path are for one FILE",
            ),
        ];
        match complaints.iter().find(|(wrong, _)| *wrong) {
            Some((_, complaint)) => Err(complaint),
            None => Ok(()),
        }
    }
}

/// One file on its way. All workers are futures of one task, so cells suffice.
struct Upload<'a> {
    options: &'a Options,
    path: &'a Path,
    size: u64,
    chunks: u64,
    identifier: String,
    name: String,
    relative_path: String,
    count: Count,
    /// The last one with success; one to a chunk goes before those to tests, and the one to the
    /// file before the progress of a chunk that was stored a little earlier and answered later.
    last_answer: RefCell<Option<Answer>>,
}

#[derive(Default)]
struct Count {
    settled_bytes: Cell<u64>,
    sent: Cell<u64>,
    skipped: Cell<u64>,
    duplicates: Cell<u64>,
    retries: Cell<u64>,
}

#[derive(Clone, Copy)]
struct Chunk {
    number: u64,
    offset: u64,
    length: u64,
    twice: bool,
}

#[derive(Clone, Debug)]
struct Answer {
    status: StatusCode,
    body: Bytes,
    /// From when all of the chunk was handed to the connection until the answer was here.
    waited: Duration,
}

impl<'a> Upload<'a> {
    fn new(options: &'a Options, path: &'a Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err("not a file".into());
        }
        let size = metadata.len();
        let file_name = || {
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into()
        };
        let name: String = options.name.clone().unwrap_or_else(file_name);
        let relative_path = options.relative_path.clone().unwrap_or(name.clone());
        let identifier = options.identifier.clone().unwrap_or_else(|| {
            let kept = |c: &char| c.is_ascii_alphanumeric() || "_-".contains(*c);
            let path: String = relative_path.chars().filter(kept).collect();
            format!("{size}-{path}")
        });
        let chunks = match options.force_chunk_size {
            true => size.div_ceil(options.chunk_size),
            false => size / options.chunk_size,
        };
        Ok(Self {
            options,
            path,
            size,
            chunks: chunks.max(1),
            identifier,
            name,
            relative_path,
            count: Count::default(),
            last_answer: RefCell::default(),
        })
    }

    async fn run(&self) -> Result<(), Failure> {
        let mut numbers: Vec<u64> = (1..=self.chunks).collect();
        if self.options.shuffle {
            self.note(&format!("--seed {}", self.options.seed));
            shuffle(&mut numbers, self.options.seed);
        }
        // The exact share, spread evenly.
        let duplicates = |position: u64| position * self.options.duplicate / 100;
        let mut chunks: Vec<Chunk> = (0..)
            .zip(numbers)
            .map(|(at, number)| self.chunk(number, duplicates(at) < duplicates(at + 1)))
            .collect();
        let together = chunks.len() - usize::from(self.options.last_alone);
        let alone = chunks.split_off(together);
        self.work(chunks).await?;
        self.work(alone).await
    }

    fn chunk(&self, number: u64, twice: bool) -> Chunk {
        let offset = (number - 1) * self.options.chunk_size;
        Chunk {
            number,
            offset,
            length: match number == self.chunks {
                true => self.size - offset,
                false => self.options.chunk_size,
            },
            twice,
        }
    }

    async fn work(&self, chunks: Vec<Chunk>) -> Result<(), Failure> {
        let workers = self.options.parallel.min(chunks.len());
        let queue = RefCell::new(chunks.into_iter());
        let worker = |_| async {
            let (mut link, mut twin) = (Link::default(), Link::default());
            loop {
                let Some(chunk) = queue.borrow_mut().next() else {
                    return Ok(());
                };
                self.settle(chunk, &mut link, &mut twin).await?;
            }
        };
        try_join_all((0..workers).map(worker)).await.map(drop)
    }

    /// Asks for a chunk, and sends it if it is not there.
    async fn settle(&self, chunk: Chunk, link: &mut Link, twin: &mut Link) -> Result<(), Failure> {
        if !self.options.no_test {
            let answer = self.request(Method::GET, chunk, link).await?;
            if answer.is_success() {
                if self.count.sent.get() == 0 {
                    self.last_answer.replace(Some(answer));
                }
                add(&self.count.skipped, 1);
                add(&self.count.settled_bytes, chunk.length);
                return Ok(());
            }
        }
        if chunk.twice {
            try_join(self.send(chunk, link), self.send(chunk, twin)).await?;
            add(&self.count.duplicates, 1);
        } else {
            self.send(chunk, link).await?;
        }
        add(&self.count.sent, 1);
        add(&self.count.settled_bytes, chunk.length);
        Ok(())
    }

    async fn send(&self, chunk: Chunk, link: &mut Link) -> Result<(), Failure> {
        let answer = self.request(Method::POST, chunk, link).await?;
        if let Some(mut acks) = self.options.acks.as_ref() {
            let line = format!("{} {} {}\n", self.identifier, chunk.offset, chunk.length);
            // In one write and without a buffer: the line is there even if we are killed now.
            acks.write_all(line.as_bytes())
                .map_err(|error| Failure::Local(format!("--acks: {error}")))?;
        }
        let mut last = self.last_answer.borrow_mut();
        if last.as_ref().is_none_or(Answer::is_progress) || !answer.is_progress() {
            *last = Some(answer);
        }
        Ok(())
    }

    /// Until there is an answer that settles it: any to a test, success to a chunk.
    async fn request(
        &self,
        method: Method,
        chunk: Chunk,
        link: &mut Link,
    ) -> Result<Answer, Failure> {
        let test = method == Method::GET;
        let mut pauses = [200, 400, 800, 1600, 3200].into_iter();
        for tries in 0.. {
            let sent = Arc::new(OnceLock::new());
            let request = match test {
                true => self.test_request(chunk),
                false => self.chunk_request(chunk, sent.clone()).await,
            };
            let request = request.map_err(|error| Failure::Local(error.to_string()))?;
            let failure = match link.exchange(&self.options.url, request, &sent).await {
                Ok(answer) if test || answer.is_success() => return Ok(answer),
                Ok(answer) => Failure::Refused(answer),
                Err(failure) => failure,
            };
            if !failure.may_pass() || tries == self.options.retries {
                return Err(failure);
            }
            if tries == 0 {
                self.note(&format!("chunk {}: {failure}; trying again", chunk.number));
            }
            add(&self.count.retries, 1);
            let pause = self.options.pause.or(pauses.next());
            sleep(Duration::from_millis(pause.unwrap_or(5000))).await;
        }
        unreachable!("the number of tries is limited")
    }

    fn test_request(&self, chunk: Chunk) -> Result<Request<Body>, Error> {
        let mut fields = self.options.fields.clone();
        fields.extend(self.fields(chunk));
        let mut request = Request::get(self.target(&fields))
            .body(Empty::new().map_err(|never| match never {}).boxed_unsync())?;
        request.headers_mut().extend(self.options.headers.clone());
        Ok(request)
    }

    async fn chunk_request(
        &self,
        chunk: Chunk,
        sent: Arc<OnceLock<Instant>>,
    ) -> Result<Request<Body>, Error> {
        let mut fields = self.fields(chunk);
        for (name, value) in &self.options.fields {
            // As in Resumable.js, one of the same name replaces the built-in one.
            match fields.iter_mut().find(|field| field.0 == *name) {
                Some(field) => field.1.clone_from(value),
                None => fields.push((name.clone(), value.clone())),
            }
        }
        let boundary = format!("----WebKitFormBoundary{:016x}", random());
        let (before, after, content_type) = match self.options.octet {
            true => (
                String::new(),
                String::new(),
                "application/octet-stream".to_owned(),
            ),
            false => (
                self.parts_before_bytes(&fields, &boundary),
                format!("\r\n--{boundary}--\r\n"),
                format!("multipart/form-data; boundary={boundary}"),
            ),
        };
        let payload = match self.options.base64 {
            true => chunk.length.div_ceil(3) * 4,
            false => chunk.length,
        };
        let length = (before.len() + after.len()) as u64 + payload;

        let mut file = File::open(self.path).await?;
        file.seek(SeekFrom::Start(chunk.offset)).await?;
        let mut left = length;
        let body = stream::once(ready(Ok(Bytes::from(before))))
            .chain(pieces(file, chunk.length, self.options.base64))
            .chain(stream::once(ready(Ok(Bytes::from(after)))))
            .inspect_ok(move |piece| {
                left -= piece.len() as u64;
                if left == 0 {
                    let _ = sent.set(Instant::now());
                }
            });
        let mut request = Request::post(self.target(&fields))
            .header(header::CONTENT_TYPE, content_type)
            // A stream has no length of its own; without this the body would be chunked.
            .header(header::CONTENT_LENGTH, length)
            .body(StreamBody::new(body.map_ok(Frame::data)).boxed_unsync())?;
        request.headers_mut().extend(self.options.headers.clone());
        Ok(request)
    }

    fn fields(&self, chunk: Chunk) -> Fields {
        [
            ("ChunkNumber", chunk.number.to_string()),
            ("ChunkSize", self.options.chunk_size.to_string()),
            ("CurrentChunkSize", chunk.length.to_string()),
            ("TotalSize", self.size.to_string()),
            ("Type", String::new()),
            ("Identifier", self.identifier.clone()),
            ("Filename", self.name.clone()),
            ("RelativePath", self.relative_path.clone()),
            ("TotalChunks", self.chunks.to_string()),
        ]
        .map(|(name, value)| (format!("resumable{name}"), value))
        .into()
    }

    /// Path and query.
    fn target(&self, fields: &Fields) -> String {
        let url = &self.options.url;
        let mut target = url
            .path_and_query()
            .map_or("/", |it| it.as_str())
            .to_owned();
        for (name, value) in fields {
            target.push(if target.contains('?') { '&' } else { '?' });
            target += &format!("{}={}", encoded(name), encoded(value));
        }
        target
    }

    fn parts_before_bytes(&self, fields: &Fields, boundary: &str) -> String {
        let part = format!("--{boundary}\r\nContent-Disposition: form-data; name=");
        let mut text = String::new();
        for (name, value) in fields {
            let value = value.replace("\r\n", "\n").replace('\n', "\r\n");
            text += &format!("{part}{}\r\n\r\n{value}\r\n", quoted(name));
        }
        text += &match self.options.base64 {
            true => format!("{part}\"file\"\r\n\r\ndata:application/octet-stream;base64,"),
            false => {
                let name = quoted(&self.name);
                let head = "Content-Type: application/octet-stream";
                format!("{part}\"file\"; filename={name}\r\n{head}\r\n\r\n")
            }
        };
        text
    }

    async fn draw_progress(&self) -> Infallible {
        if self.options.quiet || !io::stderr().is_terminal() {
            return pending().await;
        }
        let start = Instant::now();
        loop {
            sleep(Duration::from_millis(200)).await;
            let done = self.count.settled_bytes.get() as f64;
            let percent = 100.0 * done / self.size.max(1) as f64;
            let speed = done / start.elapsed().as_secs_f64() / f64::from(1 << 20);
            let bar = "#".repeat((percent * 0.3) as usize);
            let _ = write!(
                io::stderr(),
                "\r\x1b[K[{bar:.<30}] {percent:3.0} %, {speed:.1} MiB/s"
            );
        }
    }

    fn clear_progress(&self) {
        if !self.options.quiet && io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }

    fn note(&self, text: &str) {
        self.clear_progress();
        if !self.options.quiet {
            let _ = writeln!(io::stderr(), "{}: {text}", self.path.display());
        }
    }

    fn report(&self, answer: Option<Answer>) -> io::Result<()> {
        let posted = answer.as_ref().filter(|_| self.count.sent.get() > 0);
        let line = json!({
            "file": self.path.to_string_lossy(),
            "identifier": self.identifier,
            "size": self.size,
            "chunks": self.chunks,
            "sent": self.count.sent.get(),
            "skipped": self.count.skipped.get(),
            "retries": self.count.retries.get(),
            "duplicates": self.count.duplicates.get(),
            "last_chunk_ms": posted.map(|answer| answer.waited.as_secs_f64() * 1e3),
            "status": answer.as_ref().map(|answer| answer.status.as_u16()),
            "answer": answer.as_ref().map(|answer| String::from_utf8_lossy(&answer.body)),
        });
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }
}

/// A connection, opened when it is needed.
#[derive(Default)]
struct Link(Option<Connection>);

struct Connection {
    sender: SendRequest<Body>,
    end: JoinHandle<Result<(), hyper::Error>>,
}

impl Link {
    async fn exchange(
        &mut self,
        url: &Uri,
        request: Request<Body>,
        sent: &OnceLock<Instant>,
    ) -> Result<Answer, Failure> {
        let mut connection = match self.0.take() {
            Some(connection) => connection,
            None => connect(url).await?,
        };
        if connection.sender.ready().await.is_err() {
            // Closed while it was idle.
            connection = connect(url).await?;
        }
        let start = Instant::now();
        let response = connection.send(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        // After a refusal, what is left of the chunk is not worth sending.
        self.0 = Some(connection).filter(|_| status.as_u16() < 400);
        // An answer can come before all was sent.
        let waited = sent.get().unwrap_or(&start).elapsed();
        Ok(Answer {
            status,
            body,
            waited,
        })
    }
}

impl Connection {
    /// A request that is handed over in the moment when the connection ends can be left without an
    /// answer, and without an error (hyper's issue 2312): so this waits for that end, too.
    async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Failure> {
        let mut response = pin!(self.sender.send_request(request));
        tokio::select! {
            biased;
            response = &mut response => Ok(response?),
            _ = &mut self.end => match response.now_or_never() {
                Some(response) => Ok(response?),
                None => Err(Failure::Network("the connection has ended".into())),
            },
        }
    }
}

async fn connect(url: &Uri) -> Result<Connection, Failure> {
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(80);
    let stream = TcpStream::connect(format!("{host}:{port}"))
        .await
        .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
        .map_err(|error| Failure::Network(error.to_string()))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors are those of the requests on it.
    let end = tokio::spawn(connection);
    Ok(Connection { sender, end })
}

impl Answer {
    fn is_success(&self) -> bool {
        matches!(self.status, StatusCode::OK | StatusCode::CREATED)
    }

    fn is_progress(&self) -> bool {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["state"] == "receiving"
    }
}

#[derive(Debug)]
enum Failure {
    Refused(Answer),
    Network(String),
    Local(String),
}

impl Failure {
    fn may_pass(&self) -> bool {
        match self {
            Self::Refused(answer) => matches!(answer.status.as_u16(), 408 | 429 | 500..600),
            Self::Network(_) => true,
            Self::Local(_) => false,
        }
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let cause = error.source().map(|cause| format!(": {cause}"));
        let cause = cause.unwrap_or_default();
        // What the user of hyper, that is us, did wrong: the stream from the file broke off.
        match error.is_user() {
            true => Self::Local(format!("cannot read the file{cause}")),
            false => Self::Network(format!("{error}{cause}")),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(answer) => {
                let body = String::from_utf8_lossy(&answer.body);
                write!(f, "{} {}", answer.status, body.escape_debug())
            }
            Self::Network(text) | Self::Local(text) => f.write_str(text),
        }
    }
}

impl StdError for Failure {}

/// A chunk piece by piece.
fn pieces(file: File, length: u64, base64: bool) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, length), move |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; left.min(PIECE) as usize];
        file.read_exact(&mut piece).await?;
        let left = left - piece.len() as u64;
        if base64 {
            piece = BASE64_STANDARD.encode(&piece).into();
        }
        Ok(Some((piece.into(), (file, left))))
    })
}

/// As browsers write names into the head of a part.
fn quoted(name: &str) -> String {
    let name = name.replace('\n', "%0A").replace('\r', "%0D");
    format!("\"{}\"", name.replace('"', "%22"))
}

/// JavaScript's encodeURIComponent.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| match byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(encode).collect()
}

fn bytes(option: &str, text: &str) -> Result<u64, Error> {
    let shift = match text.as_bytes().last() {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        _ => 0,
    };
    let number: u64 = parsed(option, text.trim_end_matches(['K', 'M', 'G']))?;
    let bytes = number.checked_mul(1 << shift);
    bytes.ok_or_else(|| format!("{option} {text}: too large").into())
}

fn parsed<T: FromStr<Err: fmt::Display>>(option: &str, text: &str) -> Result<T, Error> {
    let value = text.parse();
    value.map_err(|error| format!("{option} {text}: {error}").into())
}

fn add(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Fisher-Yates with SplitMix64: the same order for the same seed, everywhere.
fn shuffle(items: &mut [u64], mut seed: u64) {
    for end in (1..items.len()).rev() {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let at = (mixed ^ (mixed >> 31)) % (end as u64 + 1);
        items.swap(end, at as usize);
    }
}
