//! The client: sends requests as fast as the sockets accept them, with one thread for each
//! connection of HTTP/1.

use std::{
    convert::Infallible,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body::{Body, Frame};
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::{Error, server::Server};

const BOUNDARY: &str = "----WebKitFormBoundary7MA4YWxkTrZu0gW";

/// One file that is sent in chunks.
#[derive(Clone, Debug)]
pub struct File {
    pub name: String,
    pub size: u64,
    pub chunk: u64,
}

/// How chunks are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wire {
    /// In forms.
    Form,
    /// As raw bodies, with the fields in the query.
    Octets,
    /// In `PATCH` requests of tus, to uploads that are created at this path.
    Tus(&'static str),
}

/// A request that carries a chunk.
pub struct Request {
    target: String,
    content_type: String,
    /// What the body has before the bytes of the chunk.
    before: String,
    len: u64,
    /// What the body has after them.
    after: String,
}

impl Request {
    /// The head of HTTP/1, and the beginning of the body.
    pub fn head(&self) -> String {
        format!(
            "POST {} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {}\r\n\
             content-length: {}\r\n\r\n{}",
            self.target,
            self.content_type,
            self.content_length(),
            self.before
        )
    }

    fn content_length(&self) -> u64 {
        self.before.len() as u64 + self.len + self.after.len() as u64
    }
}

impl File {
    pub fn chunks(&self) -> u64 {
        (self.size / self.chunk).max(1)
    }

    /// The fields of Resumable.js, in the same order.
    fn fields(&self, number: u64) -> [(&'static str, String); 9] {
        let len = self.len(number);
        [
            ("resumableChunkNumber", number.to_string()),
            ("resumableChunkSize", self.chunk.to_string()),
            ("resumableCurrentChunkSize", len.to_string()),
            ("resumableTotalSize", self.size.to_string()),
            ("resumableType", "application/octet-stream".into()),
            (
                "resumableIdentifier",
                format!("{}-{}", self.size, self.name),
            ),
            ("resumableFilename", self.name.clone()),
            ("resumableRelativePath", self.name.clone()),
            ("resumableTotalChunks", self.chunks().to_string()),
        ]
    }

    /// The length of a chunk. The last chunk includes the rest of the file.
    fn len(&self, number: u64) -> u64 {
        if number == self.chunks() {
            self.size - self.chunk * (number - 1)
        } else {
            self.chunk
        }
    }

    pub fn probe(&self, number: u64) -> String {
        let query = query(&self.fields(number));
        format!("GET /upload?{query} HTTP/1.1\r\nhost: localhost\r\n\r\n")
    }

    pub fn request(&self, number: u64, wire: Wire) -> Request {
        let (fields, len) = (self.fields(number), self.len(number));
        if wire != Wire::Form {
            return Request {
                target: format!("/upload?{}", query(&fields)),
                content_type: "application/octet-stream".into(),
                before: String::new(),
                len,
                after: String::new(),
            };
        }
        let mut before = String::new();
        for (name, value) in &fields {
            before += &format!(
                "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            );
        }
        before += &format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"blob\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n"
        );
        Request {
            target: "/upload".into(),
            content_type: format!("multipart/form-data; boundary={BOUNDARY}"),
            before,
            len,
            after: format!("\r\n--{BOUNDARY}--\r\n"),
        }
    }
}

fn query(fields: &[(&str, String)]) -> String {
    let pairs = fields.iter().map(|(name, value)| {
        let value: String = form_urlencoded::byte_serialize(value.as_bytes()).collect();
        format!("{name}={value}")
    });
    pairs.collect::<Vec<_>>().join("&")
}

pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Result<Self, Error> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Self {
            stream,
            buffer: vec![0; 16 << 10],
        })
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Returns the next answer. Reads its body and drops it.
    pub fn answer(&mut self) -> Result<Answer, Error> {
        let mut filled = 0;
        loop {
            let read = self.stream.read(&mut self.buffer[filled..])?;
            if read == 0 {
                return Err("the connection has ended before its answer".into());
            }
            filled += read;
            let text = String::from_utf8_lossy(&self.buffer[..filled]);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let value = |name: &str| {
                let mut pairs = head.lines().filter_map(|line| line.split_once(": "));
                pairs.find(|(key, _)| key.eq_ignore_ascii_case(name))
            };
            let length = value("content-length").map_or("0", |(_, length)| length);
            if body.len() >= length.parse()? {
                return Ok(Answer {
                    status: head.split(' ').nth(1).unwrap_or("0").parse()?,
                    location: value("location").map(|(_, location)| location.to_owned()),
                });
            }
        }
    }

    pub fn send(
        &mut self,
        file: &File,
        number: u64,
        wire: Wire,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let request = file.request(number, wire);
        self.body(request.head(), request.len, bytes, &request.after)?;
        match self.answer()?.status {
            200 | 201 => Ok(()),
            status => Err(format!("chunk {number} of {}: {status}", file.name).into()),
        }
    }

    /// Sends a request with `len` bytes, which are those of `bytes` again and again.
    fn body(&mut self, head: String, len: u64, bytes: &[u8], after: &str) -> Result<(), Error> {
        if len < 32 << 10 {
            let whole = [head.as_bytes(), &bytes[..len as usize], after.as_bytes()].concat();
            return self.write(&whole);
        }
        self.write(head.as_bytes())?;
        let mut left = len as usize;
        while left > 0 {
            let now = left.min(bytes.len());
            self.write(&bytes[..now])?;
            left -= now;
        }
        self.write(after.as_bytes())
    }

    /// Creates an upload with tus, in a request that has its first bytes too. Returns its path.
    pub fn create(&mut self, path: &str, size: u64, bytes: &[u8]) -> Result<String, Error> {
        let len = bytes.len();
        let mut head = format!(
            "POST {path} HTTP/1.1\r\nhost: localhost\r\n{TUS}upload-length: {size}\r\n\
             content-length: {len}\r\n"
        );
        if len > 0 {
            head += OFFSET_STREAM;
        }
        self.body(head + "\r\n", len as u64, bytes, "")?;
        let answer = self.answer()?;
        let location = answer.location.filter(|_| answer.status == 201);
        let location = location.ok_or_else(|| format!("not created: {}", answer.status))?;
        // Without the origin.
        let path = location
            .splitn(4, '/')
            .nth(3)
            .map(|path| format!("/{path}"));
        Ok(path
            .filter(|_| location.starts_with("http"))
            .unwrap_or(location))
    }

    /// Uploads a file with tus.
    fn patch(&mut self, path: &str, size: u64, chunk: u64, bytes: &[u8]) -> Result<(), Error> {
        let path = self.create(path, size, b"")?;
        for offset in (0..size).step_by(chunk as usize) {
            let len = chunk.min(size - offset);
            let head = format!(
                "PATCH {path} HTTP/1.1\r\nhost: localhost\r\n{TUS}upload-offset: {offset}\r\n\
                 {OFFSET_STREAM}content-length: {len}\r\n\r\n"
            );
            self.body(head, len, bytes, "")?;
            match self.answer()?.status {
                200 | 204 => {}
                status => return Err(format!("bytes at {offset}: {status}").into()),
            }
        }
        Ok(())
    }
}

const TUS: &str = "tus-resumable: 1.0.0\r\n";
const OFFSET_STREAM: &str = "content-type: application/offset+octet-stream\r\n";

pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
}

/// Bytes that do not compress and do not contain the boundary.
pub fn content(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len / 8 + 1).flatten().take(len).collect()
}

/// Uploads a file over some connections. With tus, each connection uploads a file of its own.
pub fn file(
    server: &Server,
    wire: Wire,
    file: &File,
    connections: usize,
) -> Result<Duration, Error> {
    let bytes = content(file.chunk.min(1 << 20) as usize);
    let address = server.address;
    if let Wire::Tus(path) = wire {
        let count = connections as u64;
        return each(address, connections, count, |connection, _| {
            connection.patch(path, file.size / count, file.chunk, &bytes)
        });
    }
    each(address, connections, file.chunks(), |connection, n| {
        connection.send(file, n + 1, wire, &bytes)
    })
}

/// Calls `work` with each number below `count` over some connections. Returns how long it took.
pub fn each(
    address: SocketAddr,
    connections: usize,
    count: u64,
    work: impl Fn(&mut Connection, u64) -> Result<(), Error> + Sync,
) -> Result<Duration, Error> {
    let next = AtomicU64::new(0);
    let open = (0..connections).map(|_| Connection::open(address));
    let open: Vec<_> = open.collect::<Result<_, _>>()?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = open
            .into_iter()
            .map(|mut connection| {
                let (next, work) = (&next, &work);
                scope.spawn(move || -> Result<(), Error> {
                    loop {
                        match next.fetch_add(1, Relaxed) {
                            n if n < count => work(&mut connection, n)?,
                            _ => return Ok(()),
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().map_err(|_| "a connection has panicked")??;
        }
        Ok::<_, Error>(())
    })?;
    Ok(start.elapsed())
}

/// Uploads a file in forms over one connection of HTTP/2, with so many requests at a time.
pub fn streams(server: &Server, file: &File, streams: usize) -> Result<Duration, Error> {
    let runtime = tokio::runtime::Runtime::new()?;
    let bytes = Bytes::from(content(file.chunk.min(1 << 20) as usize));
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(server.address).await?;
        stream.set_nodelay(true)?;
        let client = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
        let (sender, connection) = client.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let next = Arc::new(AtomicU64::new(1));
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..streams {
            let (mut sender, next) = (sender.clone(), next.clone());
            let (file, bytes) = (file.clone(), bytes.clone());
            tasks.spawn(async move {
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number > file.chunks() {
                        return Ok::<_, Error>(());
                    }
                    let request = file.request(number, Wire::Form);
                    let head = http::Request::post(format!("http://localhost{}", request.target))
                        .header("content-type", &request.content_type)
                        .header("content-length", request.content_length());
                    let body = Pieces {
                        before: request.before.into(),
                        left: request.len,
                        bytes: bytes.clone(),
                        after: request.after.into(),
                    };
                    sender.ready().await?;
                    let response = sender.send_request(head.body(body)?).await?;
                    if response.status() != 200 {
                        let status = response.status();
                        return Err(format!("chunk {number} of {}: {status}", file.name).into());
                    }
                }
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(start.elapsed())
    })
}

/// The body of a request.
struct Pieces {
    before: Bytes,
    /// How many bytes of the chunk are not sent yet.
    left: u64,
    bytes: Bytes,
    after: Bytes,
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = if !self.before.is_empty() {
            std::mem::take(&mut self.before)
        } else if self.left > 0 {
            let now = self.left.min(self.bytes.len() as u64);
            self.left -= now;
            self.bytes.slice(..now as usize)
        } else {
            std::mem::take(&mut self.after)
        };
        Poll::Ready((!piece.is_empty()).then_some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.before.is_empty() && self.left == 0 && self.after.is_empty()
    }
}
