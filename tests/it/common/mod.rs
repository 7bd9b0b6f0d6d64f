//! A real server and a real client over loopback, and the requests that Resumable.js sends.
#![allow(dead_code, reason = "the binary `hostile` uses a part of it")]

mod told;
mod traced;

use std::{
    convert::Infallible,
    fmt::Write as _,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tower::{Service, ServiceBuilder, service_fn};
use tower_resumable::{CompletedUpload, FileStore, InterimIo, ResumableLayer};

pub mod draft;

#[allow(unused_imports, reason = "the binary `hostile` uses a part of it")]
pub use self::{
    told::{LIFE, Told},
    traced::{Line, Traced},
};

/// Serves `service` on a port of loopback until the test ends.
pub async fn serve<S, R>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    R: http_body::Body + Send + 'static,
    R::Data: Send,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(io), service).await;
            });
        }
    });
    addr
}

/// The same for a service whose layer sends interim responses over HTTP/1.
pub async fn serve_with_interims<S, R>(service: S) -> SocketAddr
where
    S: Service<Request<Incoming>, Response = Response<R>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    R: http_body::Body + Send + 'static,
    R::Data: Send,
    R::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.unwrap();
            let io = InterimIo::new(io);
            let (interims, service) = (io.interims(), service.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                let guard = interims.enter(&mut request);
                let mut service = service.clone();
                async move {
                    std::future::poll_fn(|cx| service.poll_ready(cx)).await?;
                    let response = service.call(request).await;
                    drop(guard);
                    response
                }
            });
            tokio::spawn(async move {
                let server = auto::Builder::new(TokioExecutor::new());
                let service = TowerToHyperService::new(service);
                let _ = server.serve_connection(TokioIo::new(io), service).await;
            });
        }
    });
    addr
}

/// Sends the head of a request with `expect: 100-continue`, and waits until the server reads its
/// body: a client has no other sign of that.
pub async fn begin(socket: &mut TcpStream, head: &str) {
    const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; CONTINUE.len()];
    socket.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, CONTINUE, "{}", String::from_utf8_lossy(&answer));
}

/// A complete upload as the inner service received it.
#[derive(Clone, Debug)]
pub struct Delivery {
    pub upload: CompletedUpload,
    pub content: Vec<u8>,
    pub method: Method,
    pub headers: HeaderMap,
    /// The number of body bytes that were left of the completing request.
    pub rest: usize,
}

/// A server with the layer over a `FileStore` in a new folder. Its inner service records its
/// deliveries, and its answers come from a script.
pub struct Server {
    pub addr: SocketAddr,
    pub dir: tempfile::TempDir,
    pub deliveries: Arc<Mutex<Vec<Delivery>>>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(|layer| layer).await
    }

    pub async fn with(set_up: impl FnOnce(ResumableLayer) -> ResumableLayer) -> Self {
        Self::answering(set_up, |n| (StatusCode::OK, format!("delivery {n}"))).await
    }

    /// `answer` gets the number of the delivery, counted from 1.
    pub async fn answering(
        set_up: impl FnOnce(ResumableLayer) -> ResumableLayer,
        answer: impl Fn(usize) -> (StatusCode, String) + Send + Sync + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layer = set_up(ResumableLayer::new(FileStore::open(dir.path()).unwrap()));
        let deliveries = Arc::<Mutex<Vec<Delivery>>>::default();
        let (noted, answer) = (Arc::clone(&deliveries), Arc::new(answer));
        let inner = service_fn(move |request: Request<Incoming>| {
            let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
            async move {
                let (parts, body) = request.into_parts();
                let rest = body.collect().await.unwrap().to_bytes();
                let Some(upload) = parts.extensions.get::<CompletedUpload>() else {
                    return Ok::<_, Infallible>(Response::new(Full::from(format!(
                        "passed {} {} {}",
                        parts.method,
                        parts.uri,
                        rest.len()
                    ))));
                };
                let delivery = Delivery {
                    upload: upload.clone(),
                    content: content(upload).await,
                    method: parts.method,
                    headers: parts.headers,
                    rest: rest.len(),
                };
                let number = {
                    let mut noted = noted.lock().unwrap();
                    noted.push(delivery);
                    noted.len()
                };
                let (status, text) = answer(number);
                Ok(Response::builder()
                    .status(status)
                    .body(Full::from(text))
                    .unwrap())
            }
        });
        let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
        Self {
            addr,
            dir,
            deliveries,
        }
    }

    pub fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }

    pub async fn client(&self) -> Client {
        Client::connect(self.addr).await
    }

    /// Every file below the server's folder.
    pub fn files(&self) -> Vec<std::path::PathBuf> {
        fn walk(dir: &std::path::Path, files: &mut Vec<std::path::PathBuf>) {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, files);
                } else {
                    files.push(path);
                }
            }
        }
        let mut files = Vec::new();
        walk(self.dir.path(), &mut files);
        files.sort();
        files
    }
}

/// All bytes of a complete upload, from any store.
pub async fn content(upload: &CompletedUpload) -> Vec<u8> {
    let content = upload.content().collect().await.unwrap();
    content.to_bytes().to_vec()
}

/// One keep-alive HTTP/1 connection.
pub struct Client {
    send: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    #[track_caller]
    pub fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        let value = value.unwrap_or_else(|| panic!("no {name}: {self:?}"));
        value.to_str().unwrap()
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }
}

impl Client {
    pub async fn connect(addr: SocketAddr) -> Self {
        let io = TcpStream::connect(addr).await.unwrap();
        let (send, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
            .await
            .unwrap();
        tokio::spawn(connection);
        Self { send }
    }

    pub async fn send(&mut self, request: Request<Vec<u8>>) -> Answer {
        self.send
            .ready()
            .await
            .expect("the connection is no longer usable");
        let (mut parts, body) = request.into_parts();
        parts.headers.insert("host", "test".parse().unwrap());
        let request = Request::from_parts(parts, Full::from(body));
        let (parts, body) = self.send.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    pub async fn ask(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).unwrap()).await
    }

    pub async fn get(&mut self, uri: &str) -> Answer {
        self.send(Request::get(uri).body(Vec::new()).unwrap()).await
    }
}

/// One file as Resumable.js would send it.
#[derive(Clone)]
pub struct File {
    pub content: Vec<u8>,
    pub chunk_size: usize,
    pub force_chunk_size: bool,
    pub identifier: String,
    pub name: String,
    pub relative_path: String,
    pub content_type: String,
    pub extra: Vec<(String, String)>,
}

impl File {
    /// A file of `len` different bytes, in chunks of ten.
    pub fn new(name: &str, len: usize) -> Self {
        let mut x = len as u32 ^ 0x9e37_79b9;
        let content = std::iter::repeat_with(|| {
            x ^= x << 13;
            x ^= x >> 17;
            x ^= x << 5;
            x as u8
        });
        Self {
            content: content.take(len).collect(),
            chunk_size: 10,
            force_chunk_size: false,
            identifier: format!("{len}-{name}"),
            name: name.into(),
            relative_path: name.into(),
            content_type: "text/plain".into(),
            extra: Vec::new(),
        }
    }

    pub fn chunks(&self) -> usize {
        let (size, chunk) = (self.content.len(), self.chunk_size);
        if self.force_chunk_size {
            size.div_ceil(chunk).max(1)
        } else {
            (size / chunk).max(1)
        }
    }

    /// Chunk `number`, counted from 1.
    pub fn chunk(&self, number: usize) -> &[u8] {
        let start = (number - 1) * self.chunk_size;
        let end = if number == self.chunks() {
            self.content.len()
        } else {
            start + self.chunk_size
        };
        &self.content[start..end]
    }

    pub fn fields(&self, number: usize) -> Vec<(String, String)> {
        let mut fields = vec![
            ("resumableChunkNumber".into(), number.to_string()),
            ("resumableChunkSize".into(), self.chunk_size.to_string()),
            (
                "resumableCurrentChunkSize".into(),
                self.chunk(number).len().to_string(),
            ),
            ("resumableTotalSize".into(), self.content.len().to_string()),
            ("resumableType".into(), self.content_type.clone()),
            ("resumableIdentifier".into(), self.identifier.clone()),
            ("resumableFilename".into(), self.name.clone()),
            ("resumableRelativePath".into(), self.relative_path.clone()),
            ("resumableTotalChunks".into(), self.chunks().to_string()),
        ];
        fields.extend(self.extra.iter().cloned());
        fields
    }

    pub fn uri(&self, number: usize) -> String {
        uri(&self.fields(number))
    }

    pub fn probe(&self, number: usize) -> Request<Vec<u8>> {
        Request::get(self.uri(number)).body(Vec::new()).unwrap()
    }

    /// As releases since 1.1.0 send it: the fields in the query and in the form.
    pub fn multipart(&self, number: usize) -> Request<Vec<u8>> {
        let form = form(
            &self.fields(number),
            FilePart::named(&self.name),
            self.chunk(number),
        );
        multipart(&self.uri(number), form)
    }

    /// As release 1.0.2 sends it: the fields in the form only.
    pub fn multipart_body_only(&self, number: usize) -> Request<Vec<u8>> {
        let form = form(
            &self.fields(number),
            FilePart::named("blob"),
            self.chunk(number),
        );
        multipart("/upload", form)
    }

    pub fn octets(&self, number: usize) -> Request<Vec<u8>> {
        Request::post(self.uri(number))
            .header("content-type", "application/octet-stream")
            .body(self.chunk(number).to_vec())
            .unwrap()
    }
}

pub fn uri(fields: &[(String, String)]) -> String {
    let query: String = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish();
    // Encodes like `encodeURIComponent`.
    format!("/upload?{}", query.replace('+', "%20"))
}

pub enum FilePart<'a> {
    Named { field: &'a str, file_name: &'a str },
    Text { field: &'a str },
    None,
}

impl<'a> FilePart<'a> {
    pub fn named(file_name: &'a str) -> Self {
        Self::Named {
            field: "file",
            file_name,
        }
    }
}

pub const BOUNDARY: &str = "----WebKitFormBoundaryX0Y1Z2";

/// A form as browsers send it, with the file last.
pub fn form(fields: &[(String, String)], file: FilePart<'_>, content: &[u8]) -> Vec<u8> {
    let mut text = String::new();
    for (name, value) in fields {
        write!(
            text,
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{}\r\n",
            value.replace('\n', "\r\n")
        )
        .unwrap();
    }
    let mut form = text.into_bytes();
    form.extend(file_part(file, content));
    form.extend(format!("--{BOUNDARY}--\r\n").into_bytes());
    form
}

pub fn file_part(file: FilePart<'_>, content: &[u8]) -> Vec<u8> {
    let head = match file {
        FilePart::None => return Vec::new(),
        FilePart::Named { field, file_name } => format!(
            "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{}\"\r\n\
             Content-Type: application/octet-stream\r\n\r\n",
            file_name.replace('"', "%22").replace('\n', "%0A")
        ),
        FilePart::Text { field } => {
            format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{field}\"\r\n\r\n")
        }
    };
    [head.as_bytes(), content, b"\r\n"].concat()
}

pub fn multipart(uri: &str, form: Vec<u8>) -> Request<Vec<u8>> {
    Request::post(uri)
        .header(
            "content-type",
            format!("multipart/form-data; boundary={BOUNDARY}"),
        )
        .body(form)
        .unwrap()
}
