//! The client: sends requests as fast as the sockets accept them, with one thread for each
//! connection.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use crate::Error;

const BOUNDARY: &str = "----WebKitFormBoundary7MA4YWxkTrZu0gW";

/// One file that is sent in chunks.
#[derive(Clone, Debug)]
pub struct File {
    pub name: String,
    pub size: u64,
    pub chunk: u64,
}

/// How a chunk is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum As {
    Form,
    Octets,
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

    /// What a request has before the bytes of its chunk, the number of these bytes, and what it has
    /// after them.
    pub fn head(&self, number: u64, how: As) -> (String, u64, String) {
        let (fields, len) = (self.fields(number), self.len(number));
        match how {
            As::Octets => {
                let head = format!(
                    "POST /upload?{} HTTP/1.1\r\nhost: localhost\r\n\
                     content-type: application/octet-stream\r\ncontent-length: {len}\r\n\r\n",
                    query(&fields)
                );
                (head, len, String::new())
            }
            As::Form => {
                let mut form = String::new();
                for (name, value) in &fields {
                    form += &format!(
                        "--{BOUNDARY}\r\nContent-Disposition: form-data; \
                         name=\"{name}\"\r\n\r\n{value}\r\n"
                    );
                }
                form += &format!(
                    "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"file\"; \
                     filename=\"blob\"\r\nContent-Type: application/octet-stream\r\n\r\n"
                );
                let end = format!("\r\n--{BOUNDARY}--\r\n");
                let all = form.len() as u64 + len + end.len() as u64;
                let head = format!(
                    "POST /upload HTTP/1.1\r\nhost: localhost\r\n\
                     content-type: multipart/form-data; boundary={BOUNDARY}\r\n\
                     content-length: {all}\r\n\r\n{form}"
                );
                (head, len, end)
            }
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

    /// Returns the status of the next answer. Reads its body and drops it.
    pub fn answer(&mut self) -> Result<u16, Error> {
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
            let lower = head.to_ascii_lowercase();
            let length = lower.split_once("content-length: ").map_or("0", |(_, l)| l);
            let length: usize = length.lines().next().unwrap_or("0").parse()?;
            if body.len() >= length {
                return Ok(head.split(' ').nth(1).unwrap_or("0").parse()?);
            }
        }
    }

    pub fn send(&mut self, file: &File, number: u64, how: As, bytes: &[u8]) -> Result<(), Error> {
        let (head, len, end) = file.head(number, how);
        if len < 32 << 10 {
            let whole = [head.as_bytes(), &bytes[..len as usize], end.as_bytes()].concat();
            self.write(&whole)?;
        } else {
            self.write(head.as_bytes())?;
            let mut left = len as usize;
            while left > 0 {
                let now = left.min(bytes.len());
                self.write(&bytes[..now])?;
                left -= now;
            }
            self.write(end.as_bytes())?;
        }
        match self.answer()? {
            200 | 201 => Ok(()),
            status => Err(format!("chunk {number} of {}: {status}", file.name).into()),
        }
    }
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
