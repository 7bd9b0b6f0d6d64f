//! Interim responses over HTTP/1, for a server that cannot send them.
//!
//! A socket that is wrapped writes them between two messages of the server. It finds such a place
//! without reading what the server writes:
//!
//! * hyper flushes its socket only when it has nothing left to write. So at a flush, all that it
//!   has produced was written.
//! * While the service works on a request, the last message of the server is complete: it is the
//!   answer to the request before, or `100 Continue`.
//!
//! So interim responses of a request are written at a flush, and dropped once the service has
//! answered.

use std::{
    collections::VecDeque,
    io::{self, IoSlice},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker, ready},
};

use http::{Request, Response, Version};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Interim;
use crate::lock::lock;

/// A connection of HTTP/1 over which [interim responses](Interim) can be sent.
///
/// It wraps the socket below hyper or `axum::serve`. On HTTP/2, and while there are no interim
/// responses, it passes all bytes through.
///
/// ```no_run
/// use hyper_util::{
///     rt::{TokioExecutor, TokioIo},
///     server::conn::auto,
/// };
/// use tower::{Service, service_fn};
/// use tower_resumable::InterimIo;
/// # use http::{Request, Response};
/// # use hyper::body::Incoming;
/// # use tower::util::BoxCloneService;
///
/// # async fn serve(
/// #     socket: tokio::net::TcpStream,
/// #     app: BoxCloneService<Request<Incoming>, Response<String>, std::io::Error>,
/// # ) {
/// let io = InterimIo::new(socket);
/// let interims = io.interims();
/// let service = hyper::service::service_fn(move |mut request| {
///     // Until the response is there.
///     let guard = interims.enter(&mut request);
///     let response = app.clone().call(request);
///     async move {
///         let response = response.await;
///         drop(guard);
///         response
///     }
/// });
/// # let server = auto::Builder::new(TokioExecutor::new());
/// let connection = server.serve_connection(TokioIo::new(io), service);
/// # let _ = connection.await;
/// # }
/// ```
#[derive(Debug)]
pub struct InterimIo<T> {
    io: T,
    interims: Interims,
    /// What is left to write of a response that was begun.
    rest: VecDeque<u8>,
}

/// The interim responses of one connection. Made by [`InterimIo::interims`].
#[derive(Clone, Debug, Default)]
pub struct Interims(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    /// The responses to the request that is being answered.
    bytes: VecDeque<u8>,
    /// The number of that request. Others may have ended.
    request: u64,
    /// The task of the connection.
    task: Option<Waker>,
}

/// Ends the interim responses of a request when it is dropped. Made by [`Interims::enter`].
#[derive(Debug)]
#[must_use = "without the guard no interim response is sent"]
pub struct InterimGuard {
    interims: Interims,
    request: u64,
}

impl<T> InterimIo<T> {
    /// Wraps a socket.
    pub fn new(io: T) -> Self {
        Self {
            io,
            interims: Interims::default(),
            rest: VecDeque::new(),
        }
    }

    /// The interim responses of this connection.
    pub fn interims(&self) -> Interims {
        self.interims.clone()
    }

    /// Returns a reference to the socket.
    pub fn get_ref(&self) -> &T {
        &self.io
    }
}

impl Interims {
    /// Puts an [`Interim`] into the extensions of a request, if its version is HTTP/1.1. It works
    /// until the guard is dropped: do that when the service has returned its response, and not
    /// later.
    ///
    /// The requests of a connection come one after another.
    pub fn enter<B>(&self, request: &mut Request<B>) -> InterimGuard {
        let (interims, number) = (self.clone(), lock(&self.0).next());
        let guard = InterimGuard {
            interims: self.clone(),
            request: number,
        };
        if request.version() == Version::HTTP_11 {
            let interim = Interim::new(move |response| interims.push(number, response));
            request.extensions_mut().insert(interim);
        }
        guard
    }

    fn push(&self, request: u64, response: &Response<()>) {
        let mut queue = lock(&self.0);
        if queue.request != request {
            return;
        }
        queue.bytes.extend(message(response));
        let task = queue.task.take();
        drop(queue);
        task.into_iter().for_each(Waker::wake);
    }
}

impl Queue {
    /// Drops what is not written yet, and returns the number of the next request.
    fn next(&mut self) -> u64 {
        self.bytes.clear();
        self.request += 1;
        self.request
    }
}

impl Drop for InterimGuard {
    fn drop(&mut self) {
        let mut queue = lock(&self.interims.0);
        if queue.request == self.request {
            queue.next();
        }
    }
}

fn message(response: &Response<()>) -> Vec<u8> {
    let status = response.status();
    let reason = if status == 104 {
        "Upload Resumption Supported"
    } else {
        status.canonical_reason().unwrap_or_default()
    };
    let mut message = format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).into_bytes();
    for (name, value) in response.headers() {
        for piece in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            message.extend_from_slice(piece);
        }
    }
    message.extend_from_slice(b"\r\n");
    message
}

impl<T: AsyncWrite + Unpin> InterimIo<T> {
    /// Writes what is left of a response that was begun.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            let (bytes, _) = self.rest.as_slices();
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, bytes))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.drain(..written);
        }
        Poll::Ready(Ok(()))
    }

    /// Begins to write the responses that are waiting. The server has written all of its messages.
    fn begin(&mut self, cx: &Context<'_>) {
        let mut queue = lock(&self.interims.0);
        self.rest.append(&mut queue.bytes);
        queue.task = Some(cx.waker().clone());
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for InterimIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for InterimIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.begin(cx);
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_rest(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
