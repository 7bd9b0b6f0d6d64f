//! An engine in memory that counts its requests, and fails, lies or waits when a test wants it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use async_trait::async_trait;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartId, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt as _, PutMode, PutMultipartOptions, PutOptions,
    PutPayload, PutResult, Result,
    memory::InMemory,
    multipart::{MultipartStore, PartId},
    path::Path,
};

/// Keys in one answer to a list, and in one request to delete.
const PAGE: usize = 1000;

#[derive(Debug, Default)]
pub struct Engine {
    inner: InMemory,
    state: Mutex<State>,
    requests: AtomicU64,
    /// The number of the request that fails, from 1; 0 for none. And whether it has its effect.
    fail_at: AtomicU64,
    fail_late: AtomicBool,
    down: AtomicBool,
    pub conditions: Mutex<Conditions>,
}

/// What the engine makes of `If-None-Match: *`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Conditions {
    #[default]
    Kept,
    Ignored,
    /// It looks first and writes then.
    Racy,
    /// Said to be not supported.
    Refused,
}

#[derive(Debug, Default)]
struct State {
    counts: BTreeMap<&'static str, u64>,
    bytes_in: u64,
    bytes_out: u64,
}

/// What was asked of the engine.
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

    /// What was asked since the last time this was asked for.
    pub fn take_counts(&self) -> Counts {
        let state = std::mem::take(&mut *self.state.lock().unwrap());
        Counts {
            requests: state.counts,
            bytes_in: state.bytes_in,
            bytes_out: state.bytes_out,
        }
    }

    /// Lets the `number`-th request from now on fail: before it has an effect, or late, after it.
    pub fn fail(&self, number: u64, late: bool) {
        self.requests.store(0, SeqCst);
        self.fail_late.store(late, SeqCst);
        self.fail_at.store(number, SeqCst);
    }

    /// Whether the request that is to fail has come.
    pub fn has_failed(&self) -> bool {
        self.requests.load(SeqCst) >= self.fail_at.load(SeqCst)
    }

    pub fn set_down(&self, down: bool) {
        self.down.store(down, SeqCst);
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

    /// A request comes in. Whether it is to fail after its effect.
    async fn request(&self, name: &'static str, bytes: usize) -> Result<bool> {
        // As over a network, others come in between.
        tokio::task::yield_now().await;
        self.count(name, bytes);
        let number = self.requests.fetch_add(1, SeqCst) + 1;
        let fails = number == self.fail_at.load(SeqCst);
        let late = self.fail_late.load(SeqCst);
        match (fails && !late) || self.down.load(SeqCst) {
            true => Err(failure()),
            false => Ok(fails),
        }
    }
}

fn failure() -> Error {
    Error::Generic {
        store: "Engine",
        source: "injected".into(),
    }
}

fn after<T>(late: bool, result: Result<T>) -> Result<T> {
    match late {
        true => Err(failure()),
        false => result,
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
        let late = self.request(name, payload.content_length()).await?;
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
        after(late, result)
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
        let late = self.request(name, 0).await?;
        let result = self.inner.get_opts(path, options).await;
        if let Ok(found) = &result {
            if name == "get" {
                self.state.lock().unwrap().bytes_out += found.range.end - found.range.start;
            }
        }
        after(late, result)
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        // Counted when it is asked for, whatever comes of it.
        self.count("delete", 0);
        let number = self.requests.fetch_add(1, SeqCst) + 1;
        let fails = number == self.fail_at.load(SeqCst);
        match (fails && !self.fail_late.load(SeqCst)) || self.down.load(SeqCst) {
            true => futures_util::stream::iter([Err(failure())]).boxed(),
            false if fails => {
                let deleted = self.inner.delete_stream(paths);
                let result = async move {
                    deleted.for_each(async |_| {}).await;
                    Err(failure())
                };
                futures_util::stream::once(result).boxed()
            }
            false => self.inner.delete_stream(paths),
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
        let late = self.request("list", 0).await?;
        after(late, self.inner.list_with_delimiter(prefix).await)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

impl Engine {
    /// A list in pages. In memory it is known at once how many.
    fn listed(
        &self,
        found: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let pages = found.size_hint().0.div_ceil(PAGE).max(1);
        (0..pages).for_each(|_| self.count("list", 0));
        let number = self.requests.fetch_add(1, SeqCst) + 1;
        let fails = number == self.fail_at.load(SeqCst);
        match fails || self.down.load(SeqCst) {
            true => futures_util::stream::iter([Err(failure())]).boxed(),
            false => found,
        }
    }
}

#[async_trait]
impl MultipartStore for Engine {
    async fn create_multipart(&self, path: &Path) -> Result<MultipartId> {
        let late = self.request("begin", 0).await?;
        after(late, self.inner.create_multipart(path).await)
    }

    async fn put_part(
        &self,
        path: &Path,
        id: &MultipartId,
        part: usize,
        payload: PutPayload,
    ) -> Result<PartId> {
        let bytes = payload.content_length();
        let late = self.request("part", bytes).await?;
        after(late, self.inner.put_part(path, id, part, payload).await)
    }

    async fn complete_multipart(
        &self,
        path: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        let late = self.request("complete", 0).await?;
        let result = self.inner.complete_multipart(path, id, parts).await;
        after(late, result)
    }

    async fn abort_multipart(&self, path: &Path, id: &MultipartId) -> Result<()> {
        let late = self.request("abort", 0).await?;
        after(late, self.inner.abort_multipart(path, id).await)
    }
}
