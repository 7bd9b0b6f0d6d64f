//! An in-memory engine that counts its requests, and fails, answers wrongly or waits when a test
//! demands it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
    memory::InMemory,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use tokio::sync::{Barrier, Notify};

/// The number of keys in one answer to a list request, and in one delete request.
const PAGE: usize = 1000;

#[derive(Debug, Default)]
pub struct Engine {
    inner: Arc<InMemory>,
    state: Mutex<State>,
    requests: AtomicU64,
    /// The number of the request that fails, counted from 1; 0 for none. `fail_late` says whether
    /// it takes effect first.
    fail_at: AtomicU64,
    fail_late: AtomicBool,
    down: AtomicBool,
    pub conditions: Mutex<Conditions>,
    uploads: Arc<Mutex<BTreeMap<MultipartId, Parts>>>,
    /// Requests that put a part wait for each other here.
    meeting: Mutex<Option<Arc<Barrier>>>,
    held: Mutex<Option<(u64, Arc<Held>)>>,
}

/// The sizes and ids of the parts of a multipart upload. A part that is put again replaces the
/// first one.
type Parts = BTreeMap<usize, (usize, String)>;

/// The minimum size of all parts but the last one.
const LEAST: usize = 5 << 20;

/// How the engine implements `If-None-Match: *`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditions {
    #[default]
    Kept,
    Ignored,
    /// It checks first, and writes later.
    Racy,
    /// The engine answers that it does not support it.
    Refused,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<&'static str, u64>,
    bytes_in: u64,
    bytes_out: u64,
}

/// The requests to the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub requests: BTreeMap<&'static str, u64>,
    pub bytes_in: u64,
    pub bytes_out: u64,
}

impl Counts {
    pub fn all(&self) -> u64 {
        self.requests.values().sum()
    }
}

impl Engine {
    pub fn ignoring(conditions: Conditions) -> Self {
        Self {
            conditions: Mutex::new(conditions),
            ..Self::default()
        }
    }

    /// Another way to the same bucket, as another server has. It has its own faults and counts.
    pub fn beside(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            uploads: Arc::clone(&self.uploads),
            ..Self::default()
        }
    }

    /// The requests since the last call of this method.
    pub fn take_counts(&self) -> Counts {
        let state = std::mem::take(&mut *self.state.lock().unwrap());
        Counts {
            requests: state.counts,
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
        }
    }

    /// Makes the `number`-th request from now on fail: before it takes effect, or after it
    /// (`late`).
    pub fn fail(&self, number: u64, late: bool) {
        self.requests.store(0, SeqCst);
        self.fail_late.store(late, SeqCst);
        self.fail_at.store(number, SeqCst);
    }

    /// Whether the request that has to fail was sent.
    pub fn has_failed(&self) -> bool {
        self.requests.load(SeqCst) >= self.fail_at.load(SeqCst)
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, SeqCst);
    }

    /// Makes two requests that put a part wait for each other.
    pub fn meet(&self) {
        *self.meeting.lock().unwrap() = Some(Arc::new(Barrier::new(2)));
    }

    /// Removes the parts of all uploads, as a lifecycle rule of the bucket does after some days.
    pub fn abort_all(&self) {
        self.uploads.lock().unwrap().clear();
    }

    /// All keys below a prefix.
    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let prefix = Path::from(prefix);
        let found = self.inner.list(Some(&prefix));
        let keys = found.map_ok(|meta| meta.location.to_string());
        let mut keys: Vec<_> = keys.try_collect().await.unwrap();
        keys.sort();
        keys
    }

    pub async fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let found = self.inner.get(path).await.ok()?;
        Some(found.bytes().await.ok()?.to_vec())
    }

    fn count(&self, name: &'static str, bytes: usize) {
        let mut state = self.state.lock().unwrap();
        *state.counts.entry(name).or_default() += 1;
        state.bytes_in += bytes as u64;
    }

    /// Multipart uploads that were neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        self.uploads.lock().unwrap().len()
    }

    /// Makes the `number`-th request from now on wait before it is answered. If it changes
    /// anything, the change has been made.
    pub fn hold(&self, number: u64) -> Arc<Held> {
        let held = Arc::new(Held::default());
        *self.held.lock().unwrap() = Some((number, Arc::clone(&held)));
        self.requests.store(0, SeqCst);
        held
    }

    /// The number of requests since [`Self::fail`] or [`Self::hold`].
    pub fn requests(&self) -> u64 {
        self.requests.load(SeqCst)
    }

    /// Called when a request has taken effect.
    async fn after<T>(&self, at: At, result: Result<T>) -> Result<T> {
        let held = self.held.lock().unwrap().clone();
        if let Some((_, held)) = held.filter(|(number, _)| *number == at.number) {
            held.arrived.notify_one();
            held.released.notified().await;
        }
        if at.fails { Err(failure()) } else { result }
    }

    /// Called when a request arrives.
    async fn request(&self, name: &'static str, bytes: usize) -> Result<At> {
        // Other requests can run in between, as over a network.
        tokio::task::yield_now().await;
        self.count(name, bytes);
        let number = self.requests.fetch_add(1, SeqCst) + 1;
        let fails = number == self.fail_at.load(SeqCst);
        let late = self.fail_late.load(SeqCst);
        if (fails && !late) || self.down.load(SeqCst) {
            Err(failure())
        } else {
            Ok(At { number, fails })
        }
    }
}

/// A request that has arrived.
#[derive(Clone, Copy)]
struct At {
    number: u64,
    /// Whether the request fails after it has taken effect.
    fails: bool,
}

/// A request that waits for its answer.
#[derive(Debug, Default)]
pub struct Held {
    pub arrived: Notify,
    pub released: Notify,
}

fn failure() -> Error {
    Error::Generic {
        store: "Engine",
        source: "injected".into(),
    }
}

fn no_upload(path: &Path) -> Error {
    Error::NotFound {
        path: path.to_string(),
        source: "NoSuchUpload".into(),
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Engine")
    }
}

#[async_trait]
impl ObjectStore for Engine {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        let create = options.mode == PutMode::Create;
        let name = if create { "create" } else { "put" };
        let at = self.request(name, payload.content_length()).await?;
        let conditions = *self.conditions.lock().unwrap();
        let result = match conditions {
            Conditions::Kept => self.inner.put_opts(path, payload, options).await,
            _ if !create => self.inner.put_opts(path, payload, options).await,
            Conditions::Ignored => self.inner.put(path, payload).await,
            Conditions::Racy => {
                if self.inner.head(path).await.is_ok() {
                    return Err(Error::AlreadyExists {
                        path: path.to_string(),
                        source: "it was there".into(),
                    });
                }
                for _ in 0..20 {
                    tokio::task::yield_now().await;
                }
                self.inner.put(path, payload).await
            }
            Conditions::Refused => Err(Error::NotImplemented {
                operation: "PutMode::Create".into(),
                implementer: self.to_string(),
            }),
        };
        self.after(at, result).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let name = if options.head { "head" } else { "get" };
        let at = self.request(name, 0).await?;
        let result = self.inner.get_opts(path, options).await;
        if let Ok(found) = &result {
            if name == "get" {
                self.state.lock().unwrap().bytes_out += found.range.end - found.range.start;
            }
        }
        self.after(at, result).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        // Counted when it is called, even if the stream is not read.
        self.count("delete", 0);
        let number = self.requests.fetch_add(1, SeqCst) + 1;
        let fails = number == self.fail_at.load(SeqCst);
        if (fails && !self.fail_late.load(SeqCst)) || self.down.load(SeqCst) {
            futures_util::stream::iter([Err(failure())]).boxed()
        } else if fails {
            let deleted = self.inner.delete_stream(paths);
            let result = async move {
                deleted.for_each(async |_| {}).await;
                Err(failure())
            };
            futures_util::stream::once(result).boxed()
        } else {
            self.inner.delete_stream(paths)
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.inner.list(prefix))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listed(self.inner.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let at = self.request("list", 0).await?;
        self.after(at, self.inner.list_with_delimiter(prefix).await)
            .await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl Engine {
    /// Counts the pages of a list. In memory, their number is known at once.
    fn listed(
        &self,
        found: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let pages = found.size_hint().0.div_ceil(PAGE).max(1);
        (0..pages).for_each(|_| self.count("list", 0));
        let number = self.requests.fetch_add(1, SeqCst) + 1;
        let fails = number == self.fail_at.load(SeqCst);
        if fails || self.down.load(SeqCst) {
            futures_util::stream::iter([Err(failure())]).boxed()
        } else {
            found
        }
    }
}

#[async_trait]
impl MultipartStore for Engine {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        let at = self.request("begin", 0).await?;
        let id = self.inner.create_multipart(path).await?;
        self.uploads
            .lock()
            .unwrap()
            .insert(id.clone(), Parts::new());
        self.after(at, Ok(id)).await
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part: usize,
        payload: PutPayload,
    ) -> Result<PartId> {
        let bytes = payload.content_length();
        let at = self.request("part", bytes).await?;
        let meeting = self.meeting.lock().unwrap().clone();
        if let Some(meeting) = meeting {
            meeting.wait().await;
        }
        // Encrypted parts have a different id each time.
        let number = self.requests.fetch_add(0, SeqCst);
        let content_id = format!("\"{part}-{number}\"");
        {
            let mut uploads = self.uploads.lock().unwrap();
            let parts = uploads.get_mut(id).ok_or_else(|| no_upload(path))?;
            parts.insert(part, (bytes, content_id.clone()));
            let put = self.inner.put_part(path, id, part, payload).now_or_never();
            put.expect("a future in memory is ready at once")?;
        }
        self.after(at, Ok(PartId { content_id })).await
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let at = self.request("complete", 0).await?;
        let known = self.uploads.lock().unwrap().get(id).cloned();
        let known = known.ok_or_else(|| no_upload(path))?;
        let said = |code: &str| Error::Generic {
            store: "Engine",
            source: format!("status 400: <Code>{code}</Code>").into(),
        };
        let ids = known.values().map(|(_, content_id)| content_id);
        if !ids.eq(parts.iter().map(|part| &part.content_id)) {
            return Err(said("InvalidPart"));
        }
        let sizes: Vec<_> = known.values().map(|(bytes, _)| *bytes).collect();
        let (last, others) = sizes.split_last().expect("there is a part");
        if others
            .iter()
            .any(|size| *size < LEAST || *size < *last || *size != others[0])
        {
            return Err(said("EntityTooSmall"));
        }
        self.uploads.lock().unwrap().remove(id);
        let result = self.inner.complete_multipart(path, id, parts).await;
        self.after(at, result).await
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let at = self.request("abort", 0).await?;
        let known = self.uploads.lock().unwrap().remove(id);
        let result = known.map(drop).ok_or_else(|| no_upload(path));
        self.after(at, result).await
    }
}
