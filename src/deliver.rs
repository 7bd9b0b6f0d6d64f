//! A complete upload becomes one request of the inner service, and its answer a record.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tower_service::Service;

use crate::{
    CompletedUpload, ResponseBody, UploadError,
    answer::{self, Outcome},
    body::read_up_to,
    fault,
    layer::Shared,
    receive::store_error,
    store::{AnyClaim, DynStore, Record, Settlement, StoreError, TryClaim, Upload, UploadKey},
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

pub(crate) enum Delivered<R> {
    /// By this request; the inner service's own answer.
    Now(Response<ResponseBody<R>>),
    /// By another request.
    Before(Record),
}

/// Hands `upload` to `inner`, unless another request does or did; waits for the answer.
///
/// An error comes with the number of the attempt that failed, 0 if there was none.
pub(crate) async fn deliver<S, B, R>(
    shared: &Shared,
    inner: S,
    request: Request<B>,
    upload: Upload,
) -> Result<Delivered<R>, (UploadError, u32)>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    let deadline = Instant::now() + shared.config.delivery_timeout;
    loop {
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
                    claim,
                    upload,
                    record_lifetime: shared.config.record_lifetime,
                    record_body: shared.config.record_body,
                }
                .spawn(&shared.deliveries, inner, request);
                return match timeout_at(deadline, task).await {
                    Ok(Ok(outcome)) => outcome.map(Delivered::Now),
                    // It panicked, or the runtime is going down.
                    Ok(Err(_)) => Err((UploadError::DeliveryFailed, 1)),
                    Err(_) => Err((UploadError::DeliveryPending, 0)),
                };
            }
            TryClaim::Settled(record) => return Ok(Delivered::Before(record)),
            // It was removed meanwhile; sent again it is a new upload.
            TryClaim::Incomplete => return Err((UploadError::Superseded, 0)),
            TryClaim::Busy => {
                let wait = shared.deliveries.ended(&upload.key);
                match timeout_at(deadline, wait).await {
                    Ok(Some(Ok(record))) => return Ok(Delivered::Before(record)),
                    Ok(Some(Err(error))) => return Err(error),
                    Ok(None) => {}
                    Err(_) => return Err((UploadError::DeliveryPending, 0)),
                }
            }
        }
    }
}

impl Deliveries {
    fn live(&self) -> MutexGuard<'_, HashMap<UploadKey, watch::Receiver<Option<Ended>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the end of a delivery of this process; `None` if it is another one's, or died.
    async fn ended(&self, key: &UploadKey) -> Option<Ended> {
        let live = self.live().get(key).cloned();
        match live {
            Some(mut ended) => ended
                .wait_for(Option::is_some)
                .await
                .ok()
                .and_then(|e| e.clone()),
            None => {
                sleep(POLL).await;
                None
            }
        }
    }
}

/// Takes a delivery off the list and frees who waits for it, also when its task panics.
struct Listed {
    deliveries: Arc<Deliveries>,
    key: UploadKey,
    ended: watch::Sender<Option<Ended>>,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.ended.send_if_modified(|ended| {
            let panicked = ended.is_none();
            if panicked {
                *ended = Some(Err((UploadError::DeliveryFailed, 1)));
            }
            panicked
        });
        self.deliveries.live().remove(&self.key);
    }
}

/// One claimed upload on its way to the inner service.
struct Delivery {
    store: Arc<dyn DynStore>,
    claim: AnyClaim,
    upload: Upload,
    record_lifetime: Duration,
    record_body: usize,
}

type Handed<R> = Result<Response<ResponseBody<R>>, (UploadError, u32)>;

impl Delivery {
    fn spawn<S, B, R>(
        self,
        deliveries: &Arc<Deliveries>,
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
        let (sender, receiver) = watch::channel(None);
        deliveries.live().insert(self.upload.key, receiver);
        let listed = Listed {
            deliveries: Arc::clone(deliveries),
            key: self.upload.key,
            ended: sender,
        };
        tokio::spawn(async move {
            match self.run(inner, request).await {
                Ok((response, record)) => {
                    listed.ended.send_replace(Some(Ok(record)));
                    Ok(response)
                }
                Err(error) => {
                    listed.ended.send_replace(Some(Err(error.clone())));
                    Err(error)
                }
            }
        })
    }

    async fn run<S, B, R>(
        mut self,
        inner: S,
        mut request: Request<B>,
    ) -> Result<(Response<ResponseBody<R>>, Record), (UploadError, u32)>
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
        request
            .extensions_mut()
            .insert(CompletedUpload::new(sealed));
        if fault::step("deliver").is_err() {
            return self.release(attempt).await;
        }
        let Ok(response) = call(inner, request).await else {
            return self.release(attempt).await;
        };
        // A moment to die at; nothing can fail here.
        let _ = fault::step("delivered");
        let delivered = match answer::outcome(response.status()) {
            Outcome::Delivered(_) => true,
            Outcome::Rejected(_) => false,
            Outcome::Failed => return self.release(attempt).await,
        };
        let (parts, body) = response.into_parts();
        // An answer that breaks off is no answer.
        let Ok(read) = read_up_to(body, self.record_body).await else {
            return self.release(attempt).await;
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
        Ok((
            Response::from_parts(parts, ResponseBody::partly_read(read)),
            record,
        ))
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
                Ok(()) | Err(StoreError::Superseded) => return,
                Err(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(SETTLE_AGAIN_MAX);
        }
    }

    async fn release<T>(mut self, attempt: u32) -> Result<T, (UploadError, u32)> {
        // Nothing to do if that fails: the claim ends either way.
        let released = Settlement::Released;
        let _ = self.store.settle(&mut self.claim, &released).await;
        Err((UploadError::DeliveryFailed, attempt))
    }
}

async fn call<S, Q>(mut inner: S, request: Q) -> Result<S::Response, S::Error>
where
    S: Service<Q>,
{
    std::future::poll_fn(|cx| inner.poll_ready(cx)).await?;
    inner.call(request).await
}
