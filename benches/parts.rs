//! Measures parts of the crate that need neither a disk nor a socket. Run it with
//! `cargo bench --bench parts`.

use std::{collections::VecDeque, convert::Infallible, hint::black_box, pin::Pin, task::Poll};

use base64::Engine as _;
use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::{Request, Response};
use http_body::{Body, Frame};
use tower::{Layer, Service, service_fn};
use tower_resumable::{
    DigestAlgorithm, Digests, MemoryStore, ResumableLayer, Upload, UploadId,
    store::{
        ChunkBody, Claim, Claimed, Expiry, Filter, Page, Progress, RangeSet, Record, Sealed, State,
        Status, Store, StoreError, Swept,
    },
};

const MIB: usize = 1 << 20;

/// A store that reads all chunks and stores nothing.
#[derive(Debug)]
struct Sink;

/// The claim of a [`Sink`], which never has a complete upload.
enum NoClaim {}

impl Claim for NoClaim {
    fn sealed(&self) -> &Sealed {
        match *self {}
    }

    async fn settle(&mut self, _: &Record) -> Result<(), StoreError> {
        match *self {}
    }
}

impl Store for Sink {
    type Claim = NoClaim;

    async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
        let state = State::Receiving(RangeSet::default());
        Ok(Status::new(upload.clone(), state))
    }

    async fn write(
        &self,
        _: &Upload,
        _: u64,
        body: &mut ChunkBody<'_>,
    ) -> Result<Progress, StoreError> {
        let mut received = 0;
        while let Some(piece) = body.next().await {
            received += black_box(piece?).len() as u64;
        }
        Ok(Progress {
            received,
            complete: false,
        })
    }

    async fn status(&self, _: &UploadId) -> Result<Option<Status>, StoreError> {
        Ok(None)
    }

    async fn claim(&self, _: &Upload) -> Result<Claimed<NoClaim>, StoreError> {
        Ok(Claimed::Incomplete)
    }

    async fn remove(&self, _: &UploadId) -> Result<bool, StoreError> {
        Ok(false)
    }

    async fn list(&self, _: &Filter, _: Option<&UploadId>) -> Result<Page, StoreError> {
        Ok(Page::default())
    }

    async fn sweep(&self, _: &Expiry) -> Result<Swept, StoreError> {
        Ok(Swept::default())
    }
}

/// A body in memory, in frames of the size that hyper reads.
struct Frames(VecDeque<Bytes>);

impl Frames {
    fn new(body: &Bytes) -> Self {
        const FRAME: usize = 64 << 10;
        let frames = (0..body.len()).step_by(FRAME);
        Self(
            frames
                .map(|at| body.slice(at..body.len().min(at + FRAME)))
                .collect(),
        )
    }
}

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }
}

const FIELDS: [(&str, &str); 9] = [
    ("resumableChunkNumber", "1"),
    ("resumableChunkSize", "1048576"),
    ("resumableCurrentChunkSize", "1048576"),
    ("resumableTotalSize", "1073741824"),
    ("resumableType", ""),
    ("resumableIdentifier", "1073741824-abin"),
    ("resumableFilename", "a.bin"),
    ("resumableRelativePath", "a.bin"),
    ("resumableTotalChunks", "1024"),
];

fn query() -> String {
    let fields = form_urlencoded::Serializer::new(String::new())
        .extend_pairs(FIELDS)
        .finish();
    format!("/upload?{fields}")
}

fn form(head: &str, content: &[u8]) -> Bytes {
    let mut form = Vec::new();
    for (name, value) in FIELDS {
        let field =
            format!("--X\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n");
        form.extend_from_slice(field.as_bytes());
    }
    form.extend_from_slice(
        format!("--X\r\nContent-Disposition: form-data; name=\"file\"{head}\r\n\r\n").as_bytes(),
    );
    form.extend_from_slice(content);
    form.extend_from_slice(b"\r\n--X--\r\n");
    form.into()
}

/// Sends one request through the layer. Panics unless the status is 2xx.
fn send(runtime: &tokio::runtime::Runtime, layer: &ResumableLayer, request: Request<Frames>) {
    let inner =
        service_fn(async |_: Request<Frames>| Ok::<_, Infallible>(Response::new(String::new())));
    let response = runtime.block_on(layer.layer(inner).call(request));
    let Ok(response) = response;
    assert!(response.status().is_success(), "{}", response.status());
}

fn chunks(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build();
    let runtime = runtime.expect("a runtime");
    let content: Vec<u8> = (0..MIB).map(|i| (i * 31 % 251) as u8).collect();
    let text = base64::prelude::BASE64_STANDARD.encode(&content);
    let layer = ResumableLayer::new(Sink);
    let digest = |algorithm| {
        let digests = Digests::default().with_chunk_field("digest", algorithm);
        layer.clone().with_digests(digests)
    };

    let mut group = c.benchmark_group("a chunk of 1 MiB, nothing stored");
    group.throughput(Throughput::Bytes(MIB as u64));
    let octets = Bytes::from(content.clone());
    let raw =
        |query: String| Request::post(query).header("content-type", "application/octet-stream");
    let mut row =
        |name: &str, layer: &ResumableLayer, head: http::request::Builder, body: &Bytes| {
            let head = head.body(()).expect("a request").into_parts().0;
            group.bench_function(name, |b| {
                b.iter_batched(
                    || Request::from_parts(head.clone(), Frames::new(body)),
                    |request| send(&runtime, layer, request),
                    BatchSize::SmallInput,
                );
            });
        };
    row("octets", &layer, raw(query()), &octets);
    let multipart =
        || Request::post("/upload").header("content-type", "multipart/form-data; boundary=X");
    row(
        "form",
        &layer,
        multipart(),
        &form("; filename=\"blob\"", &content),
    );
    row(
        "form, base64",
        &layer,
        multipart(),
        &form("", text.as_bytes()),
    );
    let sha = format!(
        "{}&digest={}",
        query(),
        hex(&{
            use sha2::Digest as _;
            sha2::Sha256::digest(&content)
        })
    );
    row(
        "octets, SHA-256",
        &digest(DigestAlgorithm::Sha256),
        raw(sha),
        &octets,
    );
    let crc = format!("{}&digest={:08x}", query(), crc32fast::hash(&content));
    row(
        "octets, CRC-32",
        &digest(DigestAlgorithm::Crc32),
        raw(crc),
        &octets,
    );
    group.finish();

    let memory = ResumableLayer::new(MemoryStore::default());
    let probe = Request::get(query())
        .body(())
        .expect("a request")
        .into_parts()
        .0;
    c.bench_function("a probe", |b| {
        b.iter(|| {
            send(
                &runtime,
                &memory,
                Request::from_parts(probe.clone(), Frames(VecDeque::new())),
            )
        });
    });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn ranges(c: &mut Criterion) {
    let mut group = c.benchmark_group("add a range to a RangeSet");
    for (name, distance, count) in [
        ("in order", 10, u64::MAX / 10),
        ("10,000 with gaps", 20, 10_000),
    ] {
        let (mut set, mut n) = (RangeSet::default(), 0_u64);
        group.bench_function(name, |b| {
            b.iter(|| {
                set.insert(n % count * distance, 10);
                n += 1;
                black_box(set.covers(0, 10));
            });
        });
    }
    group.finish();
}

criterion_group!(benches, chunks, ranges);
criterion_main!(benches);
