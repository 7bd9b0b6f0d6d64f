//! Connections, and what comes back on them.

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

/// A connection, opened when it is needed.
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

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    /// From when all of the chunk was handed to the connection until the answer was here.
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
    pub fn may_pass(&self) -> bool {
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
        // A user error means that this program's body failed: the file could not be read.
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
