//! Connections to the server, and the answers on them.

use std::{
    error::Error as StdError,
    fmt,
    pin::pin,
    sync::OnceLock,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, task::JoinHandle};

use crate::request::Body;

/// A connection that is opened when it is needed.
#[derive(Default)]
pub struct Link(Option<Connection>);

struct Connection {
    sender: SendRequest<Body>,
    end: JoinHandle<Result<(), hyper::Error>>,
}

impl Link {
    pub async fn exchange(
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
            // The server has closed the connection while it was idle.
            connection = connect(url).await?;
        }
        let start = Instant::now();
        let response = connection.send(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        // After a refusal the rest of the chunk need not be sent, so the connection is dropped.
        self.0 = Some(connection).filter(|_| status.as_u16() < 400);
        // An answer can arrive before the whole chunk is sent.
        let waited = sent.get().unwrap_or(&start).elapsed();
        Ok(Answer {
            status,
            body,
            waited,
        })
    }
}

impl Connection {
    /// Sends a request and waits for its answer, or for the end of the connection: hyper may never
    /// complete a request that is sent while the connection ends (hyper issue 2312).
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
    // The requests on the connection return its errors.
    let end = tokio::spawn(connection);
    Ok(Connection { sender, end })
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    /// The time from the last byte of the chunk to the answer.
    pub waited: Duration,
}

impl Answer {
    pub fn is_success(&self) -> bool {
        matches!(self.status, StatusCode::OK | StatusCode::CREATED)
    }

    pub fn is_progress(&self) -> bool {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["state"] == "receiving"
    }
}

#[derive(Debug)]
pub enum Failure {
    Refused(Answer),
    Network(String),
    Local(String),
}

impl Failure {
    pub fn is_retryable(&self) -> bool {
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
        // hyper reports a failed body as a user error: the file could not be read.
        if error.is_user() {
            Self::Local(format!("cannot read the file{cause}"))
        } else {
            Self::Network(format!("{error}{cause}"))
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
