//! A complete upload becomes one request of the inner service, and its answer a record.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, request::Parts};
use http_body::Body;
use tokio::{
    runtime::Handle,
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep, timeout_at},
};
use tower_service::Service;

use crate::{
    CompletedUpload, DigestAlgorithm, Purpose, Refusal, ResponseBody, UploadError,
    body::digest::Expected,
    body::sniff::head_len,
    engine::Engine,
    engine::quota::Ledger,
    engine::receive::store_error,
    fault,
    hooks::Hooks,
    protocol::chunked::answer::{self, Outcome},
    response::read_up_to,
    store::{
        AnyClaim, DynStore, Record, Sealed, Settlement, StoreError, TryClaim, Upload, UploadKey,
    },
    upload::Content,
};

/// How often to look whether another server has finished a delivery.
const POLL: Duration = Duration::from_millis(50);

/// When to try again to record an answer, the first time and at the most.
const SETTLE_AGAIN: Duration = Duration::from_millis(50);
const SETTLE_AGAIN_MAX: Duration = Duration::from_secs(5);

/// The deliveries this process is busy with, for the requests that wait for the same answer.
#[derive(Default)]
pub(crate) struct Deliveries {
    live: Mutex<HashMap<UploadKey, watch::Receiver<Option<Ended>>>>,
}

/// How a delivery ended: its record, or the error and the number of the attempt.
type Ended = Result<Record, (UploadError, u32)>;

pub(crate) type Handed<R> = Result<Delivered<R>, (UploadError, u32)>;

pub(crate) struct Delivered<R> {
    /// What is remembered of the inner service's answer.
    pub(crate) record: Record,
    /// That answer itself, if it is to this request and not to another one.
    pub(crate) response: Option<Response<ResponseBody<R>>>,
}

impl<R> Delivered<R> {
    fn before(record: Record) -> Self {
        let response = None;
        Self { record, response }
    }
}

/// Who is asked before a file is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    Application,
    /// It is the application that wants it.
    Nobody,
}

/// Hands `upload` to `inner`, unless another request does or did; waits for the answer.
///
/// An error comes with the number of the attempt that failed, 0 if there was none.
pub(crate) async fn deliver<S, B, R>(
    shared: &Engine,
    inner: S,
    request: Request<B>,
    upload: Upload,
    asks: Asks,
) -> Handed<R>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    let deadline = Instant::now() + shared.config.delivery_timeout;
    loop {
        let listed = match shared.deliveries.list(&upload.key) {
            Ok(listed) => listed,
            // Another request of this process is about to.
            Err(mut ended) => match timeout_at(deadline, ended.wait_for(Option::is_some)).await {
                Ok(Ok(ended)) => match &*ended {
                    Some(Ok(record)) => return Ok(Delivered::before(record.clone())),
                    Some(Err(error)) => return Err(error.clone()),
                    None => continue,
                },
                // It did not come to that.
                Ok(Err(_)) => continue,
                Err(_) => return Err((UploadError::DeliveryPending, 0)),
            },
        };
        match shared
            .store
            .try_claim(&upload.key)
            .await
            .map_err(|e| (store_error(e), 0))?
        {
            TryClaim::Won(claim) => {
                // In its own task: a client that goes away does not stop the application's work.
                let task = Delivery {
                    store: Arc::clone(&shared.store),
                    ledger: Arc::clone(&shared.ledger),
                    claim,
                    upload,
                    record_lifetime: shared.config.record_lifetime,
                    record_body: shared.config.record_body,
                    file_digest: shared.config.file_digest.clone(),
                    hooks: shared.config.hooks.clone(),
                    asks,
                }
                .spawn(listed, inner, request);
                return match timeout_at(deadline, task).await {
                    Ok(Ok(outcome)) => outcome,
                    // It panicked, or the runtime is going down.
                    Ok(Err(_)) => Err((UploadError::DeliveryFailed, 1)),
                    Err(_) => Err((UploadError::DeliveryPending, 0)),
                };
            }
            TryClaim::Settled(record) => {
                // Perhaps by another server.
                shared.ledger.strike(&upload.key);
                return Ok(Delivered::before(record));
            }
            // It was removed meanwhile; sent again it is a new upload.
            TryClaim::Incomplete => return Err((UploadError::Superseded, 0)),
            // Another server has it.
            TryClaim::Busy => {
                drop(listed);
                if Instant::now() > deadline {
                    return Err((UploadError::DeliveryPending, 0));
                }
                sleep(POLL).await;
            }
        }
    }
}

impl Deliveries {
    fn live(&self) -> MutexGuard<'_, HashMap<UploadKey, watch::Receiver<Option<Ended>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a delivery on the list, or gives the one that is there to wait for.
    fn list(self: &Arc<Self>, key: &UploadKey) -> Result<Listed, watch::Receiver<Option<Ended>>> {
        match self.live().entry(*key) {
            Entry::Occupied(other) => Err(other.get().clone()),
            Entry::Vacant(place) => {
                let (sender, receiver) = watch::channel(None);
                place.insert(receiver);
                Ok(Listed {
                    deliveries: Arc::clone(self),
                    key: *key,
                    ended: sender,
                    has_claim: false,
                })
            }
        }
    }
}

/// Takes a delivery off the list and frees who waits for it, also when its task panics.
struct Listed {
    deliveries: Arc<Deliveries>,
    key: UploadKey,
    ended: watch::Sender<Option<Ended>>,
    has_claim: bool,
}

impl Drop for Listed {
    fn drop(&mut self) {
        let panicked = self.has_claim && self.ended.borrow().is_none();
        if panicked {
            let failed = Err((UploadError::DeliveryFailed, 1));
            self.ended.send_replace(Some(failed));
        }
        self.deliveries.live().remove(&self.key);
    }
}

/// One claimed upload on its way to the inner service.
struct Delivery {
    store: Arc<dyn DynStore>,
    ledger: Arc<Ledger>,
    claim: AnyClaim,
    upload: Upload,
    record_lifetime: Duration,
    record_body: usize,
    file_digest: Option<(String, DigestAlgorithm)>,
    hooks: Hooks,
    asks: Asks,
}

impl Delivery {
    fn spawn<S, B, R>(
        self,
        mut listed: Listed,
        inner: S,
        request: Request<B>,
    ) -> tokio::task::JoinHandle<Handed<R>>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
    {
        listed.has_claim = true;
        tokio::spawn(async move {
            match self.run(inner, request).await {
                Ok(delivered) => {
                    let record = delivered.record.clone();
                    listed.ended.send_replace(Some(Ok(record)));
                    Ok(delivered)
                }
                Err(error) => {
                    listed.ended.send_replace(Some(Err(error.clone())));
                    Err(error)
                }
            }
        })
    }

    async fn run<S, B, R>(mut self, inner: S, request: Request<B>) -> Handed<R>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let sealed = self
            .store
            .seal(&mut self.claim, &self.upload)
            .await
            .map_err(|error| (store_error(error), 0))?;
        let (attempt, size) = (sealed.attempt, sealed.upload.total);
        let (mut parts, body) = request.into_parts();
        let asked = self.ask(&parts, &sealed);
        if let Err(error) = self.check(asked, &sealed).await {
            return match error.is_transient() {
                true => self.release(error, attempt).await,
                false => self.reject(error, &sealed).await,
            };
        }
        parts.extensions.insert(CompletedUpload::new(sealed));
        let request = Request::from_parts(parts, body);
        if fault::step("deliver").is_err() {
            return self.release(UploadError::DeliveryFailed, attempt).await;
        }
        let Ok(response) = call(inner, request).await else {
            return self.release(UploadError::DeliveryFailed, attempt).await;
        };
        // A moment to die at; nothing can fail here.
        let _ = fault::step("delivered");
        let delivered = match answer::outcome(response.status()) {
            Outcome::Delivered(_) => true,
            Outcome::Rejected => false,
            Outcome::Failed => return self.release(UploadError::DeliveryFailed, attempt).await,
        };
        let (parts, body) = response.into_parts();
        // An answer that breaks off is no answer.
        let Ok(read) = read_up_to(body, self.record_body).await else {
            return self.release(UploadError::DeliveryFailed, attempt).await;
        };
        let record = Record {
            delivered,
            status: parts.status.as_u16(),
            headers: answer::recorded_headers(&parts.headers),
            body: read.rest.is_none().then(|| read.data.clone()),
            size,
            expires: SystemTime::now() + self.record_lifetime,
        };
        let settlement = match delivered {
            true => Settlement::Delivered(record.clone()),
            false => Settlement::Rejected(record.clone()),
        };
        self.settle(&settlement).await;
        Ok(Delivered {
            record,
            response: Some(Response::from_parts(parts, ResponseBody::partly_read(read))),
        })
    }

    /// Asks the application whether it still wants the file.
    fn ask(
        &self,
        parts: &Parts,
        sealed: &Sealed,
    ) -> impl Future<Output = Result<(), Refusal>> + Send + use<> {
        let upload = &sealed.upload;
        let asked = (self.asks == Asks::Application).then(|| {
            self.hooks
                .admit(Purpose::Deliver, parts, &upload.scope, Some(upload))
        });
        async {
            match asked {
                Some(asked) => asked.await,
                None => Ok(()),
            }
        }
    }

    /// Whether a finished file may be handed over.
    async fn check(
        &self,
        asked: impl Future<Output = Result<(), Refusal>>,
        sealed: &Sealed,
    ) -> Result<(), UploadError> {
        asked.await?;
        match self.check_content(sealed).await {
            Ok(checked) => checked,
            // An earlier attempt has checked it, and the service behind has moved it.
            Err(error) if sealed.attempt > 1 && error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(_) => Err(UploadError::DeliveryFailed),
        }
    }

    async fn check_content(&self, sealed: &Sealed) -> io::Result<Result<(), UploadError>> {
        if let Some(sniff) = &self.hooks.sniff {
            if let Err(refusal) = sniff(&head(sealed).await?, &sealed.upload) {
                return Ok(Err(refusal.into()));
            }
        }
        self.check_digest(sealed).await
    }

    /// Whether the file is what its client has declared.
    async fn check_digest(&self, sealed: &Sealed) -> io::Result<Result<(), UploadError>> {
        let Some((name, algorithm)) = &self.file_digest else {
            return Ok(Ok(()));
        };
        let mut fields = sealed.upload.fields.iter();
        let Some((_, value)) = fields.find(|(field, _)| field == name) else {
            return Ok(Ok(()));
        };
        let expected = match Expected::of_field(name, *algorithm, value) {
            Ok(expected) => expected,
            Err(error) => return Ok(Err(error)),
        };
        let sealed = sealed.clone();
        // On a thread for blocking work, which may wait for what it reads.
        let runtime = Handle::current();
        let check = spawn_blocking(move || runtime.block_on(expected.check_file(&sealed)));
        check.await.map_err(io::Error::other)?
    }

    /// Removes a file that nobody shall have. Its record ends at once, so that it can be sent again.
    async fn reject<T>(
        mut self,
        error: UploadError,
        sealed: &Sealed,
    ) -> Result<T, (UploadError, u32)> {
        let record = Record {
            delivered: false,
            status: 400,
            headers: Vec::new(),
            body: None,
            size: sealed.upload.total,
            expires: SystemTime::now(),
        };
        self.settle(&Settlement::Rejected(record)).await;
        Err((error, sealed.attempt))
    }

    /// Until it is recorded, nobody else may deliver it: the inner service would see it twice. So
    /// this holds the claim, and tries for as long as the process lives.
    async fn settle(&mut self, settlement: &Settlement) {
        let mut pause = SETTLE_AGAIN;
        loop {
            let settled = match fault::step("settle") {
                Ok(_) => self.store.settle(&mut self.claim, settlement).await,
                Err(error) => Err(error.into()),
            };
            match settled {
                // There is nothing left that could be delivered twice.
                Ok(()) | Err(StoreError::Superseded) => break,
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(SETTLE_AGAIN_MAX);
        }
        self.ledger.strike(&self.upload.key);
    }

    async fn release<T>(
        mut self,
        error: UploadError,
        attempt: u32,
    ) -> Result<T, (UploadError, u32)> {
        // Nothing to do if that fails: the claim ends either way.
        let released = Settlement::Released;
        let _ = self.store.settle(&mut self.claim, &released).await;
        Err((error, attempt))
    }
}

/// The first bytes of a file.
async fn head(sealed: &Sealed) -> io::Result<Vec<u8>> {
    let len = head_len(sealed.upload.total);
    let (mut head, mut content) = (Vec::with_capacity(len), Content::new(sealed));
    while head.len() < len {
        let Some(piece) = content.next().await.transpose()? else {
            break;
        };
        head.extend_from_slice(&piece[..piece.len().min(len - head.len())]);
    }
    Ok(head)
}

async fn call<S, Q>(mut inner: S, request: Q) -> Result<S::Response, S::Error>
where
    S: Service<Q>,
{
    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
    inner.call(request).await
}
