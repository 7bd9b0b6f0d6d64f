//! The limit: a server on bare hyper that does the least possible work. It cannot resume, checks
//! nothing and remembers nothing.

use std::{
    collections::HashMap,
    convert::Infallible,
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use tokio::net::TcpListener;

use crate::{Error, serve};

const BLOCK: usize = 256 << 10;

/// What the server does so that the bytes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Duty {
    None,
    /// Writing begins after each chunk, with the call that the layer uses. One sync at the end, as
    /// with `Durability::Process`.
    Kick,
    /// One `fdatasync` after each chunk, as with `Durability::Power`.
    Sync,
}

pub async fn run(
    listener: TcpListener,
    dir: PathBuf,
    duty: Duty,
    windows: serve::Windows,
) -> Result<(), Error> {
    let limit: &'static Limit = Box::leak(Box::new(Limit {
        dir,
        duty,
        blocks: Mutex::default(),
        chunks: Mutex::default(),
    }));
    let service = tower::service_fn(async |request| {
        let status = match limit.receive(request).await {
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
    serve::hyper(listener, service, windows).await
}

struct Limit {
    dir: PathBuf,
    duty: Duty,
    /// Blocks that are not in use.
    blocks: Mutex<Vec<Vec<u8>>>,
    /// How many chunks of each unfinished file have arrived.
    chunks: Mutex<HashMap<String, u64>>,
}

impl Limit {
    /// Writes blocks on the worker thread.
    async fn receive(&self, request: Request<Incoming>) -> Result<(), Error> {
        let (head, body) = request.into_parts();
        let mut body = body.into_data_stream();
        let (chunk, first) = match head.uri.query() {
            Some(query) => (Chunk::of_query(query)?, Bytes::new()),
            None => {
                let mut form = Vec::new();
                loop {
                    let piece = body.next().await.ok_or("the form is cut off")??;
                    form.extend_from_slice(&piece);
                    if let Some((chunk, len)) = Chunk::of_form(&form)? {
                        form.drain(..len);
                        break (chunk, Bytes::from(form));
                    }
                }
            }
        };
        let file = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir.join(&chunk.identifier))?;
        let block = lock(&self.blocks).pop();
        let mut blocks = Blocks {
            file: &file,
            block: block.unwrap_or_else(|| Vec::with_capacity(BLOCK)),
            at: chunk.offset,
        };
        if chunk.end.is_empty() {
            while let Some(piece) = body.next().await {
                blocks.write(&piece?)?;
            }
        } else {
            let mut scan = Scan::new(&chunk.end);
            let mut piece = first;
            while !scan.push(&piece, &mut |bytes| blocks.write(bytes))? {
                piece = body.next().await.ok_or("the form is cut off")??;
            }
            while body.next().await.is_some() {}
        }
        blocks.flush()?;
        let end = blocks.at;
        lock(&self.blocks).push(blocks.block);
        self.durable(file, &chunk, end).await
    }

    async fn durable(&self, file: File, chunk: &Chunk, end: u64) -> Result<(), Error> {
        let sync = match self.duty {
            Duty::None => false,
            Duty::Sync => true,
            Duty::Kick => {
                use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
                let (offset, len) = (chunk.offset as i64, (end - chunk.offset) as i64);
                posix_fadvise(&file, offset, len, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
                let mut chunks = lock(&self.chunks);
                let count = chunks.entry(chunk.identifier.clone()).or_default();
                *count += 1;
                let is_last = *count == chunk.total;
                if is_last {
                    chunks.remove(&chunk.identifier);
                }
                is_last
            }
        };
        if sync {
            let file = Arc::new(file);
            tokio::task::spawn_blocking(move || file.sync_data()).await??;
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Blocks<'a> {
    file: &'a File,
    block: Vec<u8>,
    at: u64,
}

impl Blocks<'_> {
    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let room = BLOCK - self.block.len();
            let (now, rest) = bytes.split_at(room.min(bytes.len()));
            self.block.extend_from_slice(now);
            bytes = rest;
            if self.block.len() == BLOCK {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.block, self.at)?;
        self.at += self.block.len() as u64;
        self.block.clear();
        Ok(())
    }
}

/// What a request says of its chunk.
struct Chunk {
    identifier: String,
    offset: u64,
    /// The number of chunks of the file.
    total: u64,
    /// The bytes that follow the file in a form. Without a form, none.
    end: Vec<u8>,
}

impl Chunk {
    fn new<'a>(value: impl Fn(&str) -> Option<std::borrow::Cow<'a, str>>) -> Result<Self, Error> {
        let get = |name: &'static str| value(name).ok_or(name);
        let number: u64 = get("resumableChunkNumber")?.parse()?;
        let size: u64 = get("resumableChunkSize")?.parse()?;
        Ok(Self {
            identifier: get("resumableIdentifier")?.into_owned(),
            offset: size * (number - 1),
            total: get("resumableTotalChunks")?.parse()?,
            end: Vec::new(),
        })
    }

    fn of_query(query: &str) -> Result<Self, Error> {
        Self::new(|name| {
            let mut pairs = form_urlencoded::parse(query.as_bytes());
            pairs.find(|(key, _)| key == name).map(|(_, value)| value)
        })
    }

    /// Returns the fields and where the file begins, as soon as the head of the file has arrived.
    fn of_form(bytes: &[u8]) -> Result<Option<(Self, usize)>, Error> {
        let find = |needle: &str, from: usize| {
            memchr::memmem::find(&bytes[from..], needle.as_bytes()).map(|at| at + from)
        };
        let Some(file) = find("name=\"file\"", 0) else {
            return Ok(None);
        };
        let Some(begin) = find("\r\n\r\n", file) else {
            return Ok(None);
        };
        let mut chunk = Self::new(|name| {
            let name = format!("name=\"{name}\"\r\n\r\n");
            let from = find(&name, 0).map(|at| at + name.len())?;
            let value = std::str::from_utf8(&bytes[from..find("\r\n", from)?]).ok()?;
            Some(value.into())
        })?;
        let line = find("\r\n", 0).ok_or("no boundary")?;
        chunk.end = [b"\r\n", &bytes[..line]].concat();
        Ok(Some((chunk, begin + 4)))
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
