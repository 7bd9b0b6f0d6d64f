//! The layer over a store, an inner service that records its deliveries, and scripted bodies.

use std::{
    collections::VecDeque,
    future::{Ready, ready},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU16, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full};
use serde_json::Value;
use tower::{Layer as _, Service, ServiceExt as _};
use tower_resumable::{CompletedUpload, Error, Resumable, ResumableLayer};

/// The status of the inner service for requests that are not uploads.
pub const PASSED: u16 = 418;

/// The time limit of a check. It is only reached if the check hangs.
const TOO_LONG: Duration = Duration::from_secs(30);

/// Runs the future to its end on this thread.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let ended = tokio::time::timeout(TOO_LONG, future).await;
            ended.expect("the check should end in time")
        })
    })
}

/// A new folder, in memory if possible: a sync costs nothing there.
pub fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory).unwrap()
    } else {
        tempfile::tempdir().unwrap()
    }
}

/// One poll of a body.
#[derive(Clone, Debug)]
pub enum Step {
    Data(Bytes),
    Pending,
    /// The connection breaks.
    Fail,
    /// No more bytes arrive.
    Stall,
}

/// A body that performs these steps and then ends.
#[derive(Debug, Default)]
pub struct Script(VecDeque<Step>);

impl Script {
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self(steps.into_iter().collect())
    }

    /// The data in one piece, or no piece if it is empty.
    pub fn whole(data: &[u8]) -> Self {
        let data = Some(data).filter(|data| !data.is_empty());
        Self::new(data.map(|data| Step::Data(Bytes::copy_from_slice(data))))
    }

    /// The data, divided at these offsets. If `late` is set, each piece comes after a pause.
    pub fn cut(data: &[u8], cuts: impl IntoIterator<Item = usize>, late: bool) -> Self {
        let mut cuts: Vec<_> = cuts.into_iter().filter(|at| *at < data.len()).collect();
        cuts.push(data.len());
        cuts.sort_unstable();
        let (mut steps, mut from) = (Vec::new(), 0);
        for to in cuts {
            steps.extend(late.then_some(Step::Pending));
            // An empty frame is valid too.
            steps.push(Step::Data(Bytes::copy_from_slice(&data[from..to])));
            from = to;
        }
        steps.extend(late.then_some(Step::Pending));
        Self::new(steps)
    }

    pub fn then(mut self, step: Step) -> Self {
        self.0.push_back(step);
        self
    }

    pub fn steps(&self) -> usize {
        self.0.len()
    }
}

impl http_body::Body for Script {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(step) = self.0.pop_front() else {
            return Poll::Ready(None);
        };
        Poll::Ready(Some(match step {
            Step::Data(data) => Ok(Frame::data(data)),
            Step::Fail => Err(io::Error::other("the connection broke")),
            Step::Pending => {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            Step::Stall => {
                self.0.push_front(Step::Stall);
                return Poll::Pending;
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

/// A complete upload as the inner service received it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub id: String,
    pub attempt: u32,
    pub identifier: String,
    pub file_name: Option<String>,
    pub content_type: Option<String>,
    pub fields: Vec<(String, String)>,
    pub size: u64,
    /// `None` if the file does not exist.
    pub content: Option<Vec<u8>>,
    pub crc32: Option<u32>,
    pub path: Option<PathBuf>,
    /// The status of the inner service; 0 if it returned an error.
    pub answer: u16,
}

impl Delivery {
    /// Whether the upload has these bytes and the right checksum.
    pub fn is(&self, content: &[u8]) -> bool {
        let crc = crc32fast::hash(content);
        self.content.as_deref() == Some(content) && self.crc32.is_none_or(|known| known == crc)
    }
}

/// Records its deliveries, and answers with one status until it is set to another one.
#[derive(Clone)]
pub struct Inner {
    noted: Arc<Mutex<Vec<Delivery>>>,
    answer: Arc<AtomicU16>,
}

impl Default for Inner {
    fn default() -> Self {
        Self {
            noted: Arc::default(),
            answer: Arc::new(AtomicU16::new(200)),
        }
    }
}

impl Inner {
    /// Sets the status of all further answers; 0 stands for an error.
    pub fn answer_with(&self, status: u16) {
        self.answer.store(status, SeqCst);
    }

    pub fn answers_with(&self) -> u16 {
        self.answer.load(SeqCst)
    }

    /// The deliveries since the last call of this method.
    pub fn take(&self) -> Vec<Delivery> {
        std::mem::take(&mut self.noted.lock().unwrap())
    }

    /// Records an upload, and returns the status of the answer.
    fn note(&self, upload: &CompletedUpload) -> u16 {
        let content = match upload.path() {
            Some(path) => std::fs::read(path).ok(),
            // Content in memory is ready at once.
            None => upload.content().collect().now_or_never().map(|content| {
                let content = content.expect("the content of a file in memory");
                content.to_bytes().to_vec()
            }),
        };
        // An application that does not find the file fails.
        let answer = match content {
            Some(_) => self.answers_with(),
            None => 500,
        };
        self.noted.lock().unwrap().push(Delivery {
            id: upload.id().into(),
            attempt: upload.attempt(),
            identifier: upload.identifier().into(),
            file_name: upload.file_name().map(Into::into),
            content_type: upload.content_type().map(Into::into),
            fields: upload.fields().to_vec(),
            size: upload.size(),
            content,
            crc32: upload.crc32(),
            path: upload.path().map(Into::into),
            answer,
        });
        answer
    }
}

impl Service<Request<Script>> for Inner {
    type Response = Response<Full<Bytes>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Script>) -> Self::Future {
        let (status, text) = match request.extensions().get::<CompletedUpload>() {
            Some(upload) => (self.note(upload), format!("taken {}", upload.size())),
            None => (PASSED, "passed".into()),
        };
        ready(match StatusCode::from_u16(status) {
            Ok(status) => {
                let mut response = Response::new(Full::from(text));
                *response.status_mut() = status;
                Ok(response)
            }
            Err(_) => Err(io::Error::other("the inner service failed")),
        })
    }
}

/// An answer as the client receives it, and the error in its extensions.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub error: Option<Error>,
}

impl Answer {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn code(&self) -> Option<&'static str> {
        self.error.as_ref().map(|error| error.kind().as_str())
    }

    /// The text of the error.
    pub fn message(&self) -> Option<String> {
        self.error.as_ref().map(ToString::to_string)
    }

    /// Checks what holds for all answers of the layer itself.
    pub fn check(&self) {
        let content_type = self.headers.get("content-type");
        let content_type = content_type.map(|value| value.to_str().unwrap());
        match self.status {
            PASSED => return,
            // A refusal of the inner service.
            400 if self.headers.contains_key("x-resumable-status") => return,
            200 | 201 => {}
            204 => assert!(self.body.is_empty(), "{self:?}"),
            400 | 415 | 503 => {
                let error = self.error.as_ref().expect("the typed error");
                let problem = self.json();
                assert_eq!(content_type, Some("application/problem+json"), "{self:?}");
                assert_eq!(problem["code"], error.kind().as_str(), "{self:?}");
                assert_eq!(problem["status"], self.status, "{self:?}");
                assert_eq!(error.is_retryable(), self.status == 503, "{self:?}");
                assert_eq!(
                    self.headers.contains_key("retry-after"),
                    self.status == 503,
                    "{self:?}"
                );
            }
            _ => panic!("an unexpected status: {self:?}"),
        }
        assert_eq!(self.error.is_some(), self.status >= 400, "{self:?}");
    }
}

/// One server process.
pub struct Server {
    pub layer: ResumableLayer,
    pub inner: Inner,
    service: Resumable<Inner>,
}

impl Server {
    pub fn new(layer: ResumableLayer, inner: Inner) -> Self {
        let layer = layer.with_hold_back(Duration::ZERO);
        let service = layer.layer(inner.clone());
        Self {
            layer,
            inner,
            service,
        }
    }

    pub async fn send(&self, request: Request<Script>) -> Answer {
        let response = match self.service.clone().oneshot(request).await {
            Ok(response) => response,
            Err(error) => panic!("the layer never fails: {error}"),
        };
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("the answer's body").to_bytes();
        Answer {
            status: parts.status.as_u16(),
            headers: parts.headers,
            body: body.to_vec(),
            error: parts.extensions.get().cloned(),
        }
    }

    /// Like `send`, but the number of polls is limited by the number of frames: a request that
    /// waits only for its body needs no more.
    pub async fn send_bounded(&self, request: Request<Script>) -> Answer {
        let most = 200 + 8 * request.body().steps();
        let mut polls = 0;
        let mut sent = std::pin::pin!(self.send(request));
        std::future::poll_fn(|cx| {
            polls += 1;
            assert!(polls <= most, "the request needs too many polls");
            sent.as_mut().poll(cx)
        })
        .await
    }
}

/// A query or an `application/x-www-form-urlencoded` form.
pub fn encoded<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    form_urlencoded::Serializer::new(String::new())
        .extend_pairs(fields)
        .finish()
}
