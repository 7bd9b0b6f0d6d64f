//! The servers that the layer is compared with: a hand-written handler, and servers that do the
//! least possible work.

use std::{
    convert::Infallible,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Multipart, State},
    http::StatusCode,
    routing::post,
};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncSeekExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

use crate::Error;

const BLOCK: usize = 256 << 10;

/// Serves until it is killed.
#[tokio::main]
pub async fn run(name: &str, dir: PathBuf) -> Result<(), Error> {
    std::fs::create_dir_all(&dir)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    if name == "handwritten" {
        let app = Router::new().route("/upload", post(handwritten));
        let app = app
            .layer(DefaultBodyLimit::disable())
            .with_state(Arc::new(dir));
        return Ok(axum::serve(listener, app).await?);
    }
    let bare: &'static Bare = Box::leak(Box::new(Bare {
        kind: name.to_owned(),
        dir,
        blocks: Mutex::default(),
    }));
    loop {
        let (connection, _) = listener.accept().await?;
        let service = service_fn(async |request| {
            let status = match bare.answer(request).await {
                Ok(()) => StatusCode::OK,
                Err(error) => {
                    eprintln!("{error}");
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            };
            let mut response = Response::new(Full::<Bytes>::default());
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        });
        let mut server = hyper::server::conn::http1::Builder::new();
        server.max_buf_size(128 << 10);
        tokio::spawn(server.serve_connection(TokioIo::new(connection), service));
    }
}

// ---- a hand-written handler ---------------------------------------------------------------------

/// Uses the extractor of axum, writes a file for each chunk, and copies all of them into one file
/// at the end.
async fn handwritten(
    State(dir): State<Arc<PathBuf>>,
    mut form: Multipart,
) -> Result<&'static str, StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let broken = |_| StatusCode::BAD_REQUEST;
    let (mut identifier, mut number, mut total) = (String::new(), 0_u64, 0_u64);
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let parse = |text: String| text.parse().map_err(|_| StatusCode::BAD_REQUEST);
        match field.name().unwrap_or_default() {
            "resumableIdentifier" => identifier = field.text().await.map_err(broken)?,
            "resumableChunkNumber" => number = parse(field.text().await.map_err(broken)?)?,
            "resumableTotalChunks" => total = parse(field.text().await.map_err(broken)?)?,
            "file" => {
                let bytes = field.bytes().await.map_err(broken)?;
                let part = dir.join(format!("{identifier}.{number}"));
                let temporary = dir.join(format!("{identifier}.{number}.new"));
                tokio::fs::write(&temporary, bytes).await.map_err(failed)?;
                tokio::fs::rename(temporary, part).await.map_err(failed)?;
            }
            _ => {}
        }
    }
    let parts = || (1..=total).map(|n| dir.join(format!("{identifier}.{n}")));
    for part in parts() {
        if !tokio::fs::try_exists(part).await.map_err(failed)? {
            return Ok("more");
        }
    }
    let whole = tokio::fs::File::create_new(dir.join(&identifier)).await;
    let Ok(mut whole) = whole else {
        return Ok("another request does it");
    };
    for part in parts() {
        let mut from = tokio::fs::File::open(&part).await.map_err(failed)?;
        tokio::io::copy(&mut from, &mut whole)
            .await
            .map_err(failed)?;
        tokio::fs::remove_file(part).await.map_err(failed)?;
    }
    whole.flush().await.map_err(failed)?;
    Ok("done")
}

// ---- the least possible work --------------------------------------------------------------------

/// A server on bare hyper that cannot resume, checks nothing and remembers nothing.
struct Bare {
    kind: String,
    dir: PathBuf,
    blocks: Mutex<Vec<Vec<u8>>>,
}

/// The fields of a form before its file.
struct Form {
    identifier: String,
    offset: u64,
    /// The bytes that follow the file.
    end: Vec<u8>,
}

impl Bare {
    async fn answer(&self, request: Request<Incoming>) -> Result<(), Error> {
        match self.kind.as_str() {
            "sink" => self.multer(request, false).await,
            "tokio" => self.multer(request, true).await,
            "limit" => self.scan(request, false).await,
            "limit-synced" => self.scan(request, true).await,
            other => Err(format!("no server {other}").into()),
        }
    }

    fn open(&self, identifier: &str) -> io::Result<File> {
        let path = self.dir.join(identifier);
        File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    }

    /// Reads the form with multer, and writes the file with `tokio::fs`.
    async fn multer(&self, request: Request<Incoming>, write: bool) -> Result<(), Error> {
        let kind = request.headers()["content-type"].to_str()?;
        let boundary = multer::parse_boundary(kind)?;
        let stream = request.into_body().into_data_stream();
        let mut form = multer::Multipart::new(stream, boundary);
        let (mut identifier, mut number, mut size) = (String::new(), 0, 0);
        while let Some(mut field) = form.next_field().await? {
            match field.name().unwrap_or_default() {
                "resumableIdentifier" => identifier = field.text().await?,
                "resumableChunkNumber" => number = field.text().await?.parse()?,
                "resumableChunkSize" => size = field.text().await?.parse()?,
                "file" if write => {
                    let file = self.open(&identifier)?;
                    let mut file = tokio::fs::File::from_std(file);
                    let offset = size * (number - 1_u64);
                    file.seek(io::SeekFrom::Start(offset)).await?;
                    while let Some(piece) = field.chunk().await? {
                        file.write_all(&piece).await?;
                    }
                    file.flush().await?;
                }
                "file" => while field.chunk().await?.is_some() {},
                _ => {}
            }
        }
        Ok(())
    }

    /// Searches for the boundary without a copy, and writes reused blocks on the worker thread.
    async fn scan(&self, request: Request<Incoming>, sync: bool) -> Result<(), Error> {
        let mut body = request.into_body().into_data_stream();
        let mut head = Vec::new();
        let form = loop {
            let piece = body.next().await.ok_or("the form is cut off")??;
            head.extend_from_slice(&piece);
            if let Some((form, len)) = Form::read(&head)? {
                head.drain(..len);
                break form;
            }
        };
        let file = self.open(&form.identifier)?;
        let mut block = lock(&self.blocks).pop().unwrap_or_default();
        let mut at = form.offset;
        let mut scan = Scan::new(&form.end);
        let mut piece = Bytes::from(head);
        loop {
            let ended = scan.push(&piece, &mut |mut bytes| {
                while !bytes.is_empty() {
                    let room = BLOCK - block.len();
                    let (now, rest) = bytes.split_at(room.min(bytes.len()));
                    block.extend_from_slice(now);
                    bytes = rest;
                    if block.len() == BLOCK {
                        file.write_all_at(&block, at)?;
                        at += BLOCK as u64;
                        block.clear();
                    }
                }
                Ok(())
            })?;
            if ended {
                break;
            }
            piece = body.next().await.ok_or("the form is cut off")??;
        }
        while body.next().await.is_some() {}
        file.write_all_at(&block, at)?;
        block.clear();
        lock(&self.blocks).push(block);
        if sync {
            tokio::task::spawn_blocking(move || file.sync_data()).await??;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Form {
    /// Returns the fields and where the file begins, as soon as the head of the file has arrived.
    fn read(bytes: &[u8]) -> Result<Option<(Self, usize)>, Error> {
        let find = |needle: &str, from: usize| {
            memchr::memmem::find(&bytes[from..], needle.as_bytes()).map(|at| at + from)
        };
        let Some(file) = find("name=\"file\"", 0) else {
            return Ok(None);
        };
        let Some(begin) = find("\r\n\r\n", file) else {
            return Ok(None);
        };
        let value = |name: &str| {
            let name = format!("name=\"{name}\"\r\n\r\n");
            let from = find(&name, 0).map(|at| at + name.len())?;
            std::str::from_utf8(&bytes[from..find("\r\n", from)?]).ok()
        };
        let identifier = value("resumableIdentifier").ok_or("no identifier")?;
        let number: u64 = value("resumableChunkNumber").ok_or("no number")?.parse()?;
        let size: u64 = value("resumableChunkSize").ok_or("no size")?.parse()?;
        let line = find("\r\n", 0).ok_or("no boundary")?;
        let form = Self {
            identifier: identifier.to_owned(),
            offset: size * (number - 1),
            end: [b"\r\n", &bytes[..line]].concat(),
        };
        Ok(Some((form, begin + 4)))
    }
}

/// Finds a needle in a stream of pieces, and passes on the bytes before it.
struct Scan<'a> {
    finder: memchr::memmem::Finder<'a>,
    /// The last bytes, which may be the beginning of the needle.
    tail: Vec<u8>,
}

impl<'a> Scan<'a> {
    fn new(needle: &'a [u8]) -> Self {
        Self {
            finder: memchr::memmem::Finder::new(needle),
            tail: Vec::new(),
        }
    }

    fn push(
        &mut self,
        piece: &[u8],
        see: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<bool> {
        let keep = self.finder.needle().len() - 1;
        let held = self.tail.len();
        self.tail.extend_from_slice(&piece[..keep.min(piece.len())]);
        if let Some(at) = self.finder.find(&self.tail) {
            see(&self.tail[..at])?;
            return Ok(true);
        }
        if piece.len() < keep {
            let passed = self.tail.len().saturating_sub(keep);
            see(&self.tail[..passed])?;
            self.tail.drain(..passed);
            return Ok(false);
        }
        see(&self.tail[..held])?;
        if let Some(at) = self.finder.find(piece) {
            see(&piece[..at])?;
            return Ok(true);
        }
        let (passed, rest) = piece.split_at(piece.len() - keep);
        see(passed)?;
        self.tail.clear();
        self.tail.extend_from_slice(rest);
        Ok(false)
    }
}
