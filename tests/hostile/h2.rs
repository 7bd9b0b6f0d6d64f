//! HTTP/2 frames that no real client sends.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::client::Chunk;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

pub struct Connection {
    socket: TcpStream,
}

/// How a stream, or all of them, ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Status(u16),
    Reset,
    /// The connection has ended.
    Closed,
}

impl Connection {
    pub async fn open(addr: SocketAddr) -> Self {
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        socket.write_all(preface).await.unwrap();
        let mut connection = Self { socket };
        assert!(connection.write(&frame(SETTINGS, 0, 0, &[])).await);
        connection
    }

    /// `false` if the server has closed the connection.
    pub async fn write(&mut self, frames: &[u8]) -> bool {
        self.socket.write_all(frames).await.is_ok()
    }

    /// Waits until the server has read what was sent; `false` if the connection is over.
    pub async fn ping(&mut self) -> bool {
        if !self.write(&frame(PING, 0, 0, &[7; 8])).await {
            return false;
        }
        loop {
            match self.read().await {
                Some((PING, ACK, ..)) => return true,
                Some((GOAWAY, ..)) | None => return false,
                Some(_) => {}
            }
        }
    }

    /// Waits for the end of a stream.
    pub async fn ended(&mut self, stream: u32) -> Ended {
        loop {
            match self.read().await {
                Some((HEADERS, _, of, block)) if of == stream => {
                    return Ended::Status(status(&block));
                }
                Some((RST_STREAM, _, of, _)) if of == stream => return Ended::Reset,
                Some((GOAWAY, ..)) | None => return Ended::Closed,
                Some(_) => {}
            }
        }
    }

    async fn read(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.socket.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, flags, d, e, f, g] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.socket.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([d & 0x7f, e, f, g]);
        Some((kind, flags, stream, payload))
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = (payload.len() as u32).to_be_bytes();
    let [d, e, f, g] = stream.to_be_bytes();
    [&[a, b, c, kind, flags, d, e, f, g], payload].concat()
}

/// The head of an upload request.
pub fn head(stream: u32, chunk: &Chunk) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/upload"),
        (":authority", "x"),
        ("x-user", &chunk.user),
        ("content-type", &chunk.content_type),
    ] {
        // A literal without Huffman, not indexed (RFC 7541 §6.2.2).
        block.push(0);
        for text in [name, value] {
            assert!(text.len() < 127);
            block.push(text.len() as u8);
            block.extend_from_slice(text.as_bytes());
        }
    }
    frame(HEADERS, END_HEADERS, stream, &block)
}

pub fn data(stream: u32, bytes: &[u8], last: bool) -> Vec<u8> {
    frame(DATA, if last { END_STREAM } else { 0 }, stream, bytes)
}

pub fn cancel(stream: u32) -> Vec<u8> {
    const CANCEL: u32 = 8;
    frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())
}

/// The status at the beginning of a header block, if it is in the static table (RFC 7541, appendix
/// A).
fn status(block: &[u8]) -> u16 {
    match block.first() {
        Some(0x88) => 200,
        Some(0x89) => 204,
        Some(0x8c) => 400,
        Some(0x8e) => 500,
        // Another status, as a literal.
        _ => 999,
    }
}
