//! Uploads of tus 1.0 clients.

mod answers;
pub(crate) mod captures;
mod concat;
mod extensions;
mod hostile;
mod interrupted;
mod limits;
mod routes;

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::{net::TcpStream, sync::Semaphore};
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{
    CompletedUpload, MemoryStore, ResumableLayer, Uploads,
    store::{Filter, Store},
};

use crate::common::{self, Answer, Client, begin};

const PERMITS: usize = 1000;

const BYTES: &str = "application/offset+octet-stream";
pub(crate) const LETTERS: &str = "abcdefghijklmnopqrstuvwxy";

/// A complete upload as the inner service received it.
#[derive(Clone, Debug)]
pub(crate) struct Delivery {
    pub(crate) upload: CompletedUpload,
    pub(crate) content: String,
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
}

/// A server whose inner service records its deliveries.
pub(crate) struct Server {
    pub(crate) addr: SocketAddr,
    pub(crate) deliveries: Arc<Mutex<Vec<Delivery>>>,
    pub(crate) uploads: Uploads,
    /// The inner service takes a permit for each answer.
    permits: Arc<Semaphore>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(|layer| layer).await
    }

    pub(crate) async fn with(set_up: impl FnOnce(ResumableLayer) -> ResumableLayer) -> Self {
        Self::answering(set_up, |_| Response::new("taken".into())).await
    }

    /// `answer` gets the number of the delivery, counted from 1.
    pub(crate) async fn answering(
        set_up: impl FnOnce(ResumableLayer) -> ResumableLayer,
        answer: impl Fn(usize) -> Response<String> + Send + Sync + 'static,
    ) -> Self {
        Self::on(MemoryStore::default(), set_up, answer).await
    }

    pub(crate) async fn on(
        store: impl Store,
        set_up: impl FnOnce(ResumableLayer) -> ResumableLayer,
        answer: impl Fn(usize) -> Response<String> + Send + Sync + 'static,
    ) -> Self {
        let layer = ResumableLayer::new(store)
            .with_path("/files")
            .with_hold_back(Duration::ZERO);
        let layer = set_up(layer);
        let uploads = layer.uploads();
        let deliveries = Arc::<Mutex<Vec<Delivery>>>::default();
        let permits = Arc::new(Semaphore::new(PERMITS));
        let gate = Arc::clone(&permits);
        let (noted, answer) = (Arc::clone(&deliveries), Arc::new(answer));
        let inner = service_fn(move |request: Request<Incoming>| {
            let (noted, answer) = (Arc::clone(&noted), Arc::clone(&answer));
            let gate = Arc::clone(&gate);
            async move {
                let (parts, _) = request.into_parts();
                let Some(upload) = parts.extensions.get::<CompletedUpload>() else {
                    let passed = format!("passed {} {}", parts.method, parts.uri);
                    return Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(passed)));
                };
                let delivery = Delivery {
                    upload: upload.clone(),
                    content: String::from_utf8(common::content(upload).await).unwrap(),
                    method: parts.method,
                    uri: parts.uri,
                    headers: parts.headers,
                };
                let number = {
                    let mut noted = noted.lock().unwrap();
                    noted.push(delivery);
                    noted.len()
                };
                gate.acquire().await.unwrap().forget();
                Ok(answer(number).map(Full::from))
            }
        });
        let addr =
            common::serve_with_interims(ServiceBuilder::new().layer(layer).service(inner)).await;
        Self {
            addr,
            deliveries,
            uploads,
            permits,
        }
    }

    /// Makes the inner service wait before it answers, until permits are added.
    fn hold_back_answers(&self) {
        assert_eq!(self.permits.forget_permits(PERMITS), PERMITS);
    }

    pub(crate) fn deliveries(&self) -> Vec<Delivery> {
        self.deliveries.lock().unwrap().clone()
    }

    pub(crate) fn contents(&self) -> Vec<String> {
        let deliveries = self.deliveries();
        deliveries
            .into_iter()
            .map(|delivery| delivery.content)
            .collect()
    }

    async fn client(&self) -> Tus {
        Tus {
            client: Client::connect(self.addr).await,
            path: "/files".to_owned(),
        }
    }
}

/// A client of tus, on one connection.
struct Tus {
    client: Client,
    /// The path of creations.
    path: String,
}

impl Tus {
    /// Sends a request with `Tus-Resumable`.
    async fn send(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let version = [("tus-resumable", "1.0.0")];
        self.send_plain(method, url, &[&version, headers].concat(), body)
            .await
    }

    async fn send_plain(
        &mut self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        self.client.ask(method, url, headers, body).await
    }

    async fn post(&mut self, headers: &[(&str, &str)], body: &str) -> Answer {
        let path = self.path.clone();
        self.send("POST", &path, headers, body).await
    }

    /// Creates an upload and returns its URL.
    async fn create(&mut self, headers: &[(&str, &str)]) -> String {
        let answer = self.post(headers, "").await;
        assert_eq!(answer.status, 201, "{answer:?}");
        header(&answer, "location").to_owned()
    }

    async fn create_of(&mut self, length: usize) -> String {
        self.create(&[("upload-length", &length.to_string())]).await
    }

    async fn patch(&mut self, url: &str, offset: usize, body: &str) -> Answer {
        self.patch_with(url, offset, &[], body).await
    }

    async fn patch_with(
        &mut self,
        url: &str,
        offset: usize,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let offset = offset.to_string();
        let own = [("content-type", BYTES), ("upload-offset", offset.as_str())];
        self.send("PATCH", url, &[&own, headers].concat(), body)
            .await
    }

    async fn head(&mut self, url: &str) -> Answer {
        self.send("HEAD", url, &[], "").await
    }
}

#[track_caller]
pub(crate) fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.header(name)
}

/// Waits until this many bytes are stored. Lists do not end the request that brings them.
pub(crate) async fn stored(uploads: &Uploads, bytes: u64) {
    loop {
        let page = uploads.list(&Filter::default(), None).await.unwrap();
        let received = page.uploads.first().map(|listed| listed.progress.received);
        if received == Some(bytes) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Begins to append, and returns when the server reads the body.
async fn begin_patch(addr: SocketAddr, url: &str, at: usize, len: usize) -> TcpStream {
    let mut socket = TcpStream::connect(addr).await.unwrap();
    let head = format!(
        "PATCH {url} HTTP/1.1\r\nhost: x\r\ntus-resumable: 1.0.0\r\nupload-offset: {at}\r\n\
         content-type: {BYTES}\r\ncontent-length: {len}\r\nexpect: 100-continue\r\n\r\n"
    );
    begin(&mut socket, &head).await;
    socket
}

#[track_caller]
fn offset(answer: &Answer) -> u64 {
    header(answer, "upload-offset").parse().unwrap()
}

#[track_caller]
fn assert_code(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(header(answer, "tus-resumable"), "1.0.0");
    assert_eq!(answer.json()["code"], code);
}

/// An answer of the inner service.
pub(crate) fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> Response<String> {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    response.body(body.to_owned()).unwrap()
}

#[tokio::test]
async fn a_file_arrives_in_many_requests() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let metadata = "filename eC50eHQ=,filetype dGV4dC9wbGFpbg==,album Nw==,note,bytes /w==";
    let answer = client
        .send(
            "POST",
            "/files?x=1",
            &[("upload-length", "25"), ("upload-metadata", metadata)],
            "",
        )
        .await;
    assert_eq!((answer.status, answer.body.as_str()), (201, ""));
    assert_eq!(header(&answer, "tus-resumable"), "1.0.0");
    assert!(header(&answer, "upload-expires").ends_with(" GMT"));
    let url = header(&answer, "location").to_owned();
    // The query of the application may have secrets.
    let token = url.strip_prefix("/files?upload=").unwrap();
    assert_eq!(token.len(), 32);

    for (at, end) in [(0, 10), (10, 20)] {
        let answer = client.patch(&url, at, &LETTERS[at..end]).await;
        assert_eq!(answer.status, 204, "{answer:?}");
        assert_eq!(offset(&answer), end as u64);
        assert!(header(&answer, "upload-expires").ends_with(" GMT"));
    }
    let answer = client.head(&url).await;
    assert_eq!((answer.status, offset(&answer)), (200, 20));
    assert_eq!(header(&answer, "upload-length"), "25");
    assert_eq!(header(&answer, "upload-metadata"), metadata);
    assert_eq!(header(&answer, "cache-control"), "no-store");
    assert!(server.deliveries().is_empty());

    let last = [("x-user", "7"), ("upload-checksum", "crc32 uO2f6w==")];
    let refused = client.patch_with(&url, 20, &last, &LETTERS[20..]).await;
    assert_eq!(refused.status, 460);
    let answer = client
        .patch_with(&url, 20, &last[..1], &LETTERS[20..])
        .await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    assert_eq!(offset(&answer), 25);

    let deliveries = server.deliveries();
    let [delivery] = &deliveries[..] else {
        panic!("{deliveries:?}");
    };
    assert_eq!(delivery.content, LETTERS);
    assert_eq!(
        (delivery.method.as_str(), delivery.uri.to_string()),
        ("POST", "/files?x=1".into())
    );
    // The headers of the request that completed it, without those of the protocol.
    let mut names: Vec<_> = delivery.headers.keys().map(|name| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["host", "x-user"]);
    let upload = &delivery.upload;
    assert_eq!(upload.file_name(), Some("x.txt"));
    assert_eq!(upload.content_type(), Some("text/plain"));
    assert_eq!(upload.identifier(), token);
    let fields = [("album".into(), "7".into()), ("note".into(), String::new())];
    assert_eq!(upload.fields(), fields);
    let creation = upload.creation().unwrap();
    assert_eq!(creation.metadata.as_deref(), Some(metadata));

    // It is not delivered again.
    let answer = client.head(&url).await;
    assert_eq!((answer.status, offset(&answer)), (200, 25));
    let again = client.patch(&url, 25, "").await;
    assert_eq!((again.status, offset(&again)), (204, 25));
    let stale = client.patch(&url, 20, &LETTERS[20..]).await;
    assert_code(&stale, 409, "offset");
    assert_eq!(offset(&stale), 25);
    assert_eq!(server.deliveries().len(), 1);
}

#[tokio::test]
async fn all_stores_receive_uploads_of_tus() {
    let dir = tempfile::tempdir().unwrap();
    let file_store = tower_resumable::FileStore::open(dir.path()).unwrap();
    let bucket = Arc::new(object_store::memory::InMemory::new());
    let bucket = tower_resumable::BucketStore::open(bucket).await.unwrap();
    let taken = |_| Response::new("taken".into());
    let servers = [
        Server::start().await,
        Server::on(file_store, |layer| layer, taken).await,
        Server::on(bucket, |layer| layer, taken).await,
    ];
    for server in servers {
        let mut client = server.client().await;
        let options = client.send("OPTIONS", "/files", &[], "").await;
        if !options.headers.contains_key("tus-version") {
            // It cannot append.
            assert_eq!(options.body, "passed OPTIONS /files");
            let refused = client.post(&[("upload-length", "25")], "").await;
            assert_code(&refused, 400, "unsupported");
            continue;
        }
        let url = client.create_of(25).await;
        assert_eq!(client.patch(&url, 0, &LETTERS[..10]).await.status, 204);
        assert_eq!(offset(&client.head(&url).await), 10);
        assert_eq!(client.patch(&url, 10, &LETTERS[10..]).await.status, 204);
        assert_eq!(server.contents(), [LETTERS]);
        assert_eq!(client.send("DELETE", &url, &[], "").await.status, 204);
        assert_eq!(client.head(&url).await.status, 404);
    }
}
