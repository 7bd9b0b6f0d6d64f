//! Uploads files the way Resumable.js 1.1.0 does: to try the layer without a browser, and for its
//! own tests.
//!
//! `cargo run --example upload -- http://127.0.0.1:3000/upload FILE`, and again after it was
//! killed: it goes on where it was. `--help` lists the options.
//!
//! On standard output there is one line of JSON for each file that was finished or refused.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    env,
    error::Error as StdError,
    ffi::OsString,
    fmt, fs,
    future::pending,
    hash::{BuildHasher, Hasher, RandomState},
    io::{self, IsTerminal, SeekFrom, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{
    Stream, StreamExt, TryStreamExt,
    future::{try_join, try_join_all},
    stream,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::Frame,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    net::TcpStream,
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
      --acks FILE           append a line 'identifier offset length' for each chunk taken
      --quiet               no progress bar, no notes";

/// How much of a file is in memory at a time, per connection. Base64 needs a multiple of three.
const PIECE: u64 = 3 << 16;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

type Error = Box<dyn StdError + Send + Sync>;
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
        never = upload.progress() => match never {},
    };
    upload.clear_progress();
    upload.report(&result)?;
    Ok(result?)
}

struct Options {
    url: Uri,
    files: Vec<PathBuf>,
    chunk_size: u64,
    force_chunk_size: bool,
    parallel: usize,
    format: Format,
    test: bool,
    shuffle: bool,
    seed: u64,
    last_alone: bool,
    duplicate: u64,
    identifier: Option<String>,
    name: Option<String>,
    relative_path: Option<String>,
    headers: HeaderMap,
    fields: Vec<(String, String)>,
    retries: u32,
    acks: Option<fs::File>,
    quiet: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Format {
    Multipart,
    Octet,
    Base64,
}

impl Options {
    fn parse(mut words: impl Iterator<Item = OsString>) -> Result<Self, Error> {
        let mut options = Self {
            url: Uri::default(),
            files: Vec::new(),
            chunk_size: 1 << 20,
            force_chunk_size: false,
            parallel: 3,
            format: Format::Multipart,
            test: true,
            shuffle: false,
            seed: random(),
            last_alone: false,
            duplicate: 0,
            identifier: None,
            name: None,
            relative_path: None,
            headers: HeaderMap::new(),
            fields: Vec::new(),
            retries: 100,
            acks: None,
            quiet: false,
        };
        let mut url = None;
        while let Some(word) = words.next() {
            let option = match word.to_str() {
                Some(text) if text.starts_with("--") => text,
                Some(text) if url.is_none() => {
                    url = Some(parsed::<Uri>("URL", text)?);
                    continue;
                }
                _ => {
                    options.files.push(word.into());
                    continue;
                }
            };
            let mut value = || match words.next().map(OsString::into_string) {
                Some(Ok(value)) => Ok(value),
                Some(Err(_)) => Err(format!("{option} needs a value in UTF-8")),
                None => Err(format!("{option} needs a value")),
            };
            match option {
                "--chunk-size" => options.chunk_size = size(option, &value()?)?,
                "--force-chunk-size" => options.force_chunk_size = true,
                "--parallel" => options.parallel = parsed(option, &value()?)?,
                "--octet" => options.format = Format::Octet,
                "--base64" => options.format = Format::Base64,
                "--no-test" => options.test = false,
                "--shuffle" => options.shuffle = true,
                "--seed" => options.seed = parsed(option, &value()?)?,
                "--last-alone" => options.last_alone = true,
                "--duplicate" => options.duplicate = parsed(option, &value()?)?,
                "--identifier" => options.identifier = Some(value()?),
                "--name" => options.name = Some(value()?),
                "--relative-path" => options.relative_path = Some(value()?),
                "--header" => {
                    let line = value()?;
                    let (name, value) = line.split_once(':').ok_or("--header needs 'K: V'")?;
                    let name: HeaderName = parsed(option, name.trim())?;
                    options.headers.append(name, parsed(option, value.trim())?);
                }
                "--field" => {
                    let field = value()?;
                    let (name, value) = field.split_once('=').ok_or("--field needs K=V")?;
                    options.fields.push((name.into(), value.into()));
                }
                "--retries" => options.retries = parsed(option, &value()?)?,
                "--acks" => {
                    let path = value()?;
                    let file = fs::OpenOptions::new().append(true).create(true).open(&path);
                    options.acks = Some(file.map_err(|error| format!("--acks {path}: {error}"))?);
                }
                "--quiet" => options.quiet = true,
                _ => return Err(format!("there is no option {option}").into()),
            }
        }
        options.url = url.ok_or("there is no URL")?;
        options.check()?;
        Ok(options)
    }

    fn check(&mut self) -> Result<(), Error> {
        let one_file = self.identifier.is_some() || self.name.is_some();
        match self {
            _ if self.url.scheme_str() != Some("http") => Err("the URL must start with http://")?,
            _ if self.files.is_empty() => Err("there is no FILE")?,
            _ if self.chunk_size == 0 => Err("--chunk-size must not be 0")?,
            _ if self.parallel == 0 => Err("--parallel must not be 0")?,
            _ if self.duplicate > 100 => Err("--duplicate is at most 100")?,
            _ if self.files.len() > 1 && (one_file || self.relative_path.is_some()) => {
                Err("--identifier, --name and --relative-path are for one FILE")?
            }
            _ => {}
        }
        if !self.headers.contains_key(header::HOST) {
            let host = match (self.url.host().unwrap_or_default(), self.url.port()) {
                (host, Some(port)) => format!("{host}:{port}"),
                (host, None) => host.to_owned(),
            };
            self.headers.insert(header::HOST, host.parse()?);
        }
        Ok(())
    }
}

/// One file on its way. All workers are futures in one task, so cells suffice.
struct Upload<'a> {
    options: &'a Options,
    path: &'a Path,
    size: u64,
    chunks: u64,
    identifier: String,
    name: String,
    relative_path: String,
    settled_bytes: Cell<u64>,
    sent: Cell<u64>,
    skipped: Cell<u64>,
    duplicates: Cell<u64>,
    retries: Cell<u64>,
    last_sent: RefCell<Option<Answer>>,
    last_skipped: RefCell<Option<Answer>>,
}

#[derive(Clone, Copy)]
struct Chunk {
    number: u64,
    offset: u64,
    length: u64,
    twice: bool,
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    body: Bytes,
    /// From when the request was handed to the system until the answer was here.
    waited: Duration,
}

impl<'a> Upload<'a> {
    fn new(options: &'a Options, path: &'a Path) -> Result<Self, Error> {
        let metadata = fs::metadata(path)?;
        if !metadata.is_file() {
            return Err("is not a file".into());
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
            settled_bytes: Cell::default(),
            sent: Cell::default(),
            skipped: Cell::default(),
            duplicates: Cell::default(),
            retries: Cell::default(),
            last_sent: RefCell::default(),
            last_skipped: RefCell::default(),
        })
    }

    async fn run(&self) -> Result<(), Failure> {
        let mut numbers: Vec<u64> = (1..=self.chunks).collect();
        if self.options.shuffle {
            self.note(&format!("--seed {}", self.options.seed));
            shuffle(&mut numbers, self.options.seed);
        }
        // Spreads the duplicates evenly, and gives their exact share.
        let duplicates = |position: u64| position * self.options.duplicate / 100;
        let mut chunks: Vec<Chunk> = (0..)
            .zip(numbers)
            .map(|(at, number)| self.chunk(number, duplicates(at) < duplicates(at + 1)))
            .collect();
        let last = chunks.pop_if(|_| self.options.last_alone);
        self.work(chunks).await?;
        self.work(last.into_iter().collect()).await
    }

    fn chunk(&self, number: u64, twice: bool) -> Chunk {
        let offset = (number - 1) * self.options.chunk_size;
        let length = match number == self.chunks {
            true => self.size - offset,
            false => self.options.chunk_size,
        };
        Chunk {
            number,
            offset,
            length,
            twice,
        }
    }

    async fn work(&self, chunks: Vec<Chunk>) -> Result<(), Failure> {
        let workers = self.options.parallel.min(chunks.len());
        let queue = RefCell::new(chunks.into_iter());
        let worker = |_| async {
            let (mut link, mut twin) = (Link::new(self.options), Link::new(self.options));
            loop {
                let Some(chunk) = queue.borrow_mut().next() else {
                    return Ok(());
                };
                self.settle(chunk, &mut link, &mut twin).await?;
            }
        };
        try_join_all((0..workers).map(worker)).await?;
        Ok(())
    }

    /// Asks for a chunk, and sends it if it is not there.
    async fn settle(&self, chunk: Chunk, link: &mut Link, twin: &mut Link) -> Result<(), Failure> {
        let mut there = false;
        if self.options.test {
            let answer = self.request(Method::GET, chunk, link).await?;
            there = answer.is_success();
            if there {
                add(&self.skipped, 1);
                self.last_skipped.replace(Some(answer));
            }
        }
        if !there && chunk.twice {
            try_join(self.send(chunk, link), self.send(chunk, twin)).await?;
            add(&self.duplicates, 1);
        } else if !there {
            self.send(chunk, link).await?;
        }
        add(&self.sent, u64::from(!there));
        add(&self.settled_bytes, chunk.length);
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
        self.last_sent.replace(Some(answer));
        Ok(())
    }

    /// Until there is an answer that settles it: any for a test, 200 or 201 for a chunk.
    async fn request(
        &self,
        method: Method,
        chunk: Chunk,
        link: &mut Link,
    ) -> Result<Answer, Failure> {
        let mut pause = FIRST_PAUSE;
        for retries in 0.. {
            let sent = Arc::new(OnceLock::new());
            let request = match method {
                Method::GET => self.test_request(chunk),
                _ => self.chunk_request(chunk, sent.clone()).await,
            };
            let failure = match link.exchange(request.map_err(Failure::local)?, &sent).await {
                Ok(answer) if method == Method::GET || answer.is_success() => return Ok(answer),
                Ok(answer) => Failure::Refused(answer),
                Err(failure) => failure,
            };
            if !failure.may_pass() || retries == self.options.retries {
                return Err(failure);
            }
            if retries == 0 {
                self.note(&format!("chunk {}: {failure}; trying again", chunk.number));
            }
            add(&self.retries, 1);
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        unreachable!("the number of retries is limited")
    }

    fn test_request(&self, chunk: Chunk) -> Result<Request<Body>, Error> {
        let mut fields = self.options.fields.clone();
        fields.extend(self.resumable_fields(chunk));
        let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
        self.request_head(Method::GET, &fields, body)
    }

    async fn chunk_request(
        &self,
        chunk: Chunk,
        sent: Arc<OnceLock<Instant>>,
    ) -> Result<Request<Body>, Error> {
        let format = self.options.format;
        let mut fields = self.resumable_fields(chunk).to_vec();
        for (name, value) in &self.options.fields {
            // As in Resumable.js, one of the same name replaces the built-in one.
            match fields.iter_mut().find(|field| field.0 == *name) {
                Some(field) => field.1.clone_from(value),
                None => fields.push((name.clone(), value.clone())),
            }
        }
        let boundary = format!("----WebKitFormBoundary{:016x}", random());
        let (before, after, content_type) = match format {
            Format::Octet => Default::default(),
            _ => (
                self.part_heads(&fields, &boundary),
                format!("\r\n--{boundary}--\r\n"),
                format!("multipart/form-data; boundary={boundary}"),
            ),
        };
        let payload = match format {
            Format::Base64 => chunk.length.div_ceil(3) * 4,
            _ => chunk.length,
        };
        let length = (before.len() + after.len()) as u64 + payload;

        let mut file = File::open(self.path).await?;
        file.seek(SeekFrom::Start(chunk.offset)).await?;
        let mut left = length;
        let body = stream::iter([Ok(Bytes::from(before))])
            .chain(pieces(file, chunk.length, format == Format::Base64))
            .chain(stream::iter([Ok(Bytes::from(after))]))
            .try_filter(|piece| std::future::ready(!piece.is_empty()))
            .inspect_ok(move |piece| {
                left -= piece.len() as u64;
                if left == 0 {
                    let _ = sent.set(Instant::now());
                }
            })
            .map_ok(Frame::data);
        let body = StreamBody::new(body).boxed_unsync();

        let mut request = self.request_head(Method::POST, &fields, body)?;
        let content_type = match format {
            Format::Octet => HeaderValue::from_static("application/octet-stream"),
            _ => content_type.parse()?,
        };
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        // A stream has no length of its own; without this the request would be chunked.
        headers.insert(header::CONTENT_LENGTH, length.into());
        Ok(request)
    }

    fn resumable_fields(&self, chunk: Chunk) -> [(String, String); 9] {
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
    }

    fn request_head(
        &self,
        method: Method,
        fields: &[(String, String)],
        body: Body,
    ) -> Result<Request<Body>, Error> {
        let url = &self.options.url;
        let mut target = url.path().to_owned();
        let pairs = fields
            .iter()
            .map(|(name, value)| format!("{}={}", uri_component(name), uri_component(value)));
        for (at, part) in url
            .query()
            .map(str::to_owned)
            .into_iter()
            .chain(pairs)
            .enumerate()
        {
            target.push(if at == 0 { '?' } else { '&' });
            target.push_str(&part);
        }
        let mut request = Request::builder().method(method).uri(target).body(body)?;
        request.headers_mut().extend(self.options.headers.clone());
        Ok(request)
    }

    /// All of a multipart body that stands before the bytes of the chunk.
    fn part_heads(&self, fields: &[(String, String)], boundary: &str) -> String {
        let mut text = String::new();
        for (name, value) in fields {
            let value = value.replace("\r\n", "\n").replace('\n', "\r\n");
            text += &part_head(boundary, name);
            text += &format!("\r\n\r\n{value}\r\n");
        }
        text += &part_head(boundary, "file");
        match self.options.format {
            Format::Base64 => text += "\r\n\r\ndata:application/octet-stream;base64,",
            _ => {
                let name = quotable(&self.name);
                text += &format!("; filename=\"{name}\"\r\n");
                text += "Content-Type: application/octet-stream\r\n\r\n";
            }
        }
        text
    }

    /// Draws the bar until it is dropped.
    async fn progress(&self) -> Infallible {
        if self.options.quiet || !io::stderr().is_terminal() {
            return pending().await;
        }
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let start = Instant::now();
        loop {
            sleep(Duration::from_millis(200)).await;
            let done = self.settled_bytes.get();
            let share = done as f64 / self.size.max(1) as f64;
            let _ = write!(
                io::stderr(),
                "\r\x1b[K[{:.<30}] {:3.0} % of {:.1} MiB, {:.1} MiB/s, {}",
                "#".repeat((share * 30.0) as usize),
                share * 100.0,
                mebibytes(self.size),
                mebibytes(done) / start.elapsed().as_secs_f64(),
                self.name.escape_debug(),
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

    fn report(&self, result: &Result<(), Failure>) -> io::Result<()> {
        let (last_sent, last_skipped) = (self.last_sent.borrow(), self.last_skipped.borrow());
        let answer = match result {
            Ok(()) => last_sent.as_ref().or(last_skipped.as_ref()),
            Err(Failure::Refused(answer)) => Some(answer),
            Err(_) => return Ok(()),
        };
        let line = json!({
            "file": self.path.to_string_lossy(),
            "identifier": self.identifier,
            "size": self.size,
            "chunks": self.chunks,
            "sent": self.sent.get(),
            "skipped": self.skipped.get(),
            "retries": self.retries.get(),
            "duplicates": self.duplicates.get(),
            "last_chunk_ms": last_sent.as_ref().map(|answer| answer.waited.as_secs_f64() * 1e3),
            "status": answer.map(|answer| answer.status.as_u16()),
            "answer": answer.map(|answer| String::from_utf8_lossy(&answer.body)),
        });
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }
}

/// One connection, opened when it is needed.
struct Link<'a> {
    url: &'a Uri,
    sender: Option<SendRequest<Body>>,
}

impl<'a> Link<'a> {
    fn new(options: &'a Options) -> Self {
        Self {
            url: &options.url,
            sender: None,
        }
    }

    async fn exchange(
        &mut self,
        request: Request<Body>,
        sent: &OnceLock<Instant>,
    ) -> Result<Answer, Failure> {
        let mut sender = match self.sender.take() {
            Some(mut sender) if sender.ready().await.is_ok() => sender,
            _ => self.connect().await?,
        };
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        // After a refusal, what is left of the body is not worth sending.
        self.sender = Some(sender).filter(|_| status.as_u16() < 400);
        let waited = sent.get().map(Instant::elapsed).unwrap_or_default();
        Ok(Answer {
            status,
            body,
            waited,
        })
    }

    async fn connect(&self) -> Result<SendRequest<Body>, Failure> {
        let host = self.url.host().unwrap_or_default();
        let port = self.url.port_u16().unwrap_or(80);
        let stream = TcpStream::connect(format!("{host}:{port}"))
            .await
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|error| Failure::Network(error.to_string()))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the requests on it.
        tokio::spawn(connection);
        Ok(sender)
    }
}

impl Answer {
    fn is_success(&self) -> bool {
        matches!(self.status, StatusCode::OK | StatusCode::CREATED)
    }
}

#[derive(Debug)]
enum Failure {
    Refused(Answer),
    Network(String),
    Local(String),
}

impl Failure {
    fn local(error: Error) -> Self {
        Self::Local(error.to_string())
    }

    fn may_pass(&self) -> bool {
        match self {
            Self::Refused(answer) => {
                matches!(answer.status.as_u16(), 408 | 429) || answer.status.is_server_error()
            }
            Self::Network(_) => true,
            Self::Local(_) => false,
        }
    }
}

impl From<hyper::Error> for Failure {
    fn from(error: hyper::Error) -> Self {
        let cause = error.source().map(|cause| format!(": {cause}"));
        let text = format!("{error}{}", cause.unwrap_or_default());
        // The user of hyper is us: the file could not be read.
        match error.is_user() {
            true => Self::Local(text),
            false => Self::Network(text),
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

fn pieces(file: File, length: u64, base64: bool) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, length), move |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; left.min(PIECE) as usize];
        file.read_exact(&mut piece).await?;
        let left = left - piece.len() as u64;
        let piece = match base64 {
            true => Bytes::from(BASE64_STANDARD.encode(&piece)),
            false => Bytes::from(piece),
        };
        Ok(Some((piece, (file, left))))
    })
}

fn part_head(boundary: &str, name: &str) -> String {
    let name = quotable(name);
    format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"")
}

/// As browsers write names into the head of a part.
fn quotable(name: &str) -> String {
    name.replace('\n', "%0A")
        .replace('\r', "%0D")
        .replace('"', "%22")
}

/// JavaScript's encodeURIComponent.
fn uri_component(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => out.push(byte.into()),
            b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')' => out.push(byte.into()),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

fn size(option: &str, text: &str) -> Result<u64, Error> {
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
    text.parse()
        .map_err(|error| format!("{option} {text}: {error}").into())
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
