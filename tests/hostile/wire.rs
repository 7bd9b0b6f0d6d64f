//! Sends bytes over a socket and reads the answers.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Longer than any answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Default)]
pub struct Answer {
    /// 0 if the connection was closed without an answer.
    pub status: u16,
    /// The header lines.
    pub head: String,
    pub body: Vec<u8>,
    /// The number of bytes that the server's socket had accepted by then.
    pub sent: u64,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, self.text())
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        let mut lines = lines.filter(|(n, _)| n.eq_ignore_ascii_case(name));
        lines.next().map(|(_, value)| value)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The kind of the error, empty if the error is not one of the layer.
    pub fn code(&self) -> String {
        self.json()["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// Sends one request and waits for the whole answer.
pub async fn exchange(addr: SocketAddr, request: impl Into<Bytes>) -> Answer {
    exchange_pieces(addr, [request.into()]).await
}

/// Sends pieces, each with a flush, until all are sent or an answer arrives. Returns the answer.
pub async fn exchange_pieces(addr: SocketAddr, pieces: impl IntoIterator<Item = Bytes>) -> Answer {
    let socket = TcpStream::connect(addr).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let (mut read, mut write) = socket.into_split();
    let mut sent = 0;
    let answer = {
        let writing = async {
            for piece in pieces {
                if write.write_all(&piece).await.is_err() {
                    break;
                }
                sent += piece.len() as u64;
                // This gives the server a chance to read the piece alone.
                tokio::task::yield_now().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            answer = timeout(TIMEOUT, read_answer(&mut read)) => answer,
            () = writing => unreachable!(),
        }
    };
    let answer = answer.unwrap_or_else(|_| panic!("no answer within {TIMEOUT:?}"));
    Answer { sent, ..answer }
}

/// A keep-alive connection for valid requests.
#[derive(Default)]
pub struct Kept {
    socket: tokio::sync::Mutex<Option<TcpStream>>,
}

impl Kept {
    pub async fn exchange(&self, addr: SocketAddr, request: &[u8]) -> Answer {
        let mut kept = self.socket.lock().await;
        if let Some(mut socket) = kept.take() {
            let written = socket.write_all(request).await;
            let answer = timeout(TIMEOUT, read_answer(&mut socket)).await;
            match answer {
                // The server may have closed the connection in the meantime.
                Ok(answer) if written.is_err() || answer.status == 0 => {}
                Ok(answer) => {
                    *kept = Some(socket).filter(|_| answer.header("connection").is_none());
                    return answer;
                }
                Err(_) => panic!("no answer within {TIMEOUT:?}"),
            }
        }
        let mut socket = TcpStream::connect(addr).await.unwrap();
        socket.set_nodelay(true).unwrap();
        let _ = socket.write_all(request).await;
        let answer = timeout(TIMEOUT, read_answer(&mut socket)).await;
        let answer = answer.unwrap_or_else(|_| panic!("no answer within {TIMEOUT:?}"));
        *kept = Some(socket).filter(|_| answer.header("connection").is_none());
        answer
    }
}

/// Reads one answer; its length is in `Content-Length`.
pub async fn read_answer(read: &mut (impl AsyncRead + Unpin)) -> Answer {
    let mut bytes = Vec::new();
    let mut answer = Answer::default();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
            answer.status = head[9..12].parse().unwrap();
            answer.head = head;
            let len = answer.header("content-length");
            let len: usize = len.map_or(0, |len| len.parse().unwrap());
            if bytes.len() >= end + 4 + len {
                answer.body = bytes[end + 4..end + 4 + len].to_vec();
                return answer;
            }
        }
        match read.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return answer,
            Ok(_) => {}
        }
    }
}
