//! Delivers a complete upload: calls the inner service once and records its answer.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body::Body;
use tokio::time::{Instant, sleep, timeout_at};
use tower_service::Service;

use super::{
    Engine,
    registry::{Ended, Entered},
    verify::{Ask, verify},
};
use crate::{
    delivery::Verdict,
    error::{Error, Reason},
    fault,
    model::{
        state::Record,
        upload::{Role, Upload, UploadId},
    },
    response::{PartlyRead, ResponseBody, read_up_to},
    store::{Claimed, DynClaim, StoreError},
    upload::CompletedUpload,
};

/// How often to look whether another server has finished a delivery.
const POLL: Duration = Duration::from_millis(50);

/// The first and the longest pause before a record that could not be written is written again.
const SETTLE_AGAIN: Duration = Duration::from_millis(50);
const SETTLE_AGAIN_MAX: Duration = Duration::from_secs(5);

/// The longest time-out. Longer ones could overflow.
const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A delivery that has ended with an answer.
pub(crate) struct Delivered<R> {
    /// What is recorded of the answer.
    pub(crate) record: Record,
    /// The answer itself, if it was given to this request.
    pub(crate) response: Option<Response<ResponseBody<R>>>,
}

impl<R> Delivered<R> {
    fn earlier(record: Record) -> Self {
        let response = None;
        Self { record, response }
    }
}

/// Delivers `upload` to `inner`, unless another request does or did, and waits for the answer.
///
/// An error comes with the number of the attempt that failed, 0 if there was none.
pub(crate) async fn deliver<S, B, R>(
    engine: &Engine,
    inner: S,
    request: Request<B>,
    upload: Upload,
    ask: Ask,
) -> Result<Delivered<R>, (Error, u32)>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    if upload.role == Role::Part {
        return Err((Reason::Unsupported.into(), 0));
    }
    let deadline = Instant::now() + engine.config.delivery.timeout.min(YEAR);
    let entered = match engine.registry.enter(&upload.id) {
        Ok(entered) => entered,
        Err(other) => return other.wait(deadline).await.map(Delivered::earlier),
    };
    let delivery = Delivery {
        engine: engine.clone(),
        upload,
        ask,
        deadline,
    };
    // A separate task, so that the inner service goes on when this request has timed out.
    let task = tokio::spawn(delivery.run(entered, inner, request));
    match timeout_at(deadline, task).await {
        Ok(Ok(delivered)) => delivered,
        Ok(Err(error)) => Err((Error::new(Reason::DeliveryFailed, error), 1)),
        Err(_) => Err((Reason::DeliveryPending.into(), 0)),
    }
}

/// The delivery of one upload.
struct Delivery {
    engine: Engine,
    upload: Upload,
    ask: Ask,
    deadline: Instant,
}

impl Delivery {
    async fn run<S, B, R>(
        self,
        entered: Entered,
        inner: S,
        request: Request<B>,
    ) -> Result<Delivered<R>, (Error, u32)>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let _active = self.engine.active.enter();
        let delivered = match self.claim().await {
            Ok(Claimed::Won(claim)) => self.deliver(claim, inner, request).await,
            Ok(Claimed::Settled(record)) => {
                // Perhaps another server has settled it.
                self.engine.quota.release(&self.upload.id);
                Ok(Delivered::earlier(record))
            }
            // It was removed in the meantime. If it is sent again it is a new upload.
            Ok(Claimed::Incomplete) => Err((Reason::Superseded.into(), 0)),
            Ok(Claimed::Busy) => Err((Reason::DeliveryPending.into(), 0)),
            Err(error) => Err((error, 0)),
        };
        let ended: Ended = match &delivered {
            Ok(delivered) => Ok(delivered.record.clone()),
            Err(error) => Err(error.clone()),
        };
        entered.end(ended);
        delivered
    }

    /// Claims the upload. While another server has it, this waits until the deadline.
    async fn claim(&self) -> Result<Claimed<Box<dyn DynClaim>>, Error> {
        loop {
            let claimed = self.engine.store.claim(&self.upload).await;
            match claimed.inspect_err(fault::report)? {
                Claimed::Busy if Instant::now() < self.deadline => sleep(POLL).await,
                claimed => return Ok(claimed),
            }
        }
    }

    async fn deliver<S, B, R>(
        &self,
        claim: Box<dyn DynClaim>,
        inner: S,
        request: Request<B>,
    ) -> Result<Delivered<R>, (Error, u32)>
    where
        S: Service<Request<B>, Response = Response<R>>,
        R: Body<Data = Bytes>,
    {
        let config = &self.engine.config;
        let sealed = claim.sealed().clone();
        let (attempt, size) = (sealed.attempt, sealed.size());
        let (mut head, body) = request.into_parts();
        if let Err(error) = verify(config, self.ask, &head, &sealed).await {
            if error.is_retryable() {
                claim.release().await;
            } else {
                self.remove(claim, size).await;
            }
            return Err((error, attempt));
        }
        head.extensions.insert(CompletedUpload::new(sealed));
        let answer = call(
            inner,
            Request::from_parts(head, body),
            config.delivery.record_body,
        );
        let (head, read) = match answer.await {
            Ok(answer) => answer,
            Err(error) => {
                claim.release().await;
                return Err((error, attempt));
            }
        };
        let verdict = (config.delivery.verdict)(head.status);
        if verdict == Verdict::Failed {
            claim.release().await;
            return Err((Reason::DeliveryFailed.into(), attempt));
        }
        let lifetime = config.delivery.record_lifetime.min(YEAR);
        let delivered = verdict == Verdict::Delivered;
        let expires = SystemTime::now() + lifetime;
        let mut record = Record::new(delivered, head.status, size, expires);
        record.headers = recorded_headers(&head.headers);
        record.body = read.rest.is_none().then(|| read.data.clone());
        if verdict == Verdict::RefusedNow {
            claim.release().await;
        } else {
            settle(&self.engine, &self.upload.id, claim, &record).await;
        }
        Ok(Delivered {
            record,
            response: Some(Response::from_parts(head, ResponseBody::partly_read(read))),
        })
    }

    /// Removes a file that must not be delivered. Its record expires at once, so that the file can
    /// be sent again.
    async fn remove(&self, claim: Box<dyn DynClaim>, size: u64) {
        let record = Record::new(false, StatusCode::BAD_REQUEST, size, SystemTime::now());
        settle(&self.engine, &self.upload.id, claim, &record).await;
    }
}

/// Records the answer. Until that succeeds the upload must not be delivered again, so this keeps
/// the claim, and tries as long as the process lives.
async fn settle(engine: &Engine, id: &UploadId, mut claim: Box<dyn DynClaim>, record: &Record) {
    let mut pause = SETTLE_AGAIN;
    loop {
        let settled = match fault::step("settle") {
            Ok(_) => claim.settle(record).await,
            Err(error) => Err(error.into()),
        };
        match settled {
            // A superseded upload cannot be delivered again.
            Ok(()) | Err(StoreError::Superseded) => break,
            Err(error) => {
                fault::report(&error);
                sleep(pause).await;
            }
        }
        pause = (pause * 2).min(SETTLE_AGAIN_MAX);
    }
    engine.quota.release(id);
}

type Answer<R> = (http::response::Parts, PartlyRead<R>);

/// Calls the inner service and reads the beginning of its answer.
async fn call<S, Q, R>(mut inner: S, request: Q, body_bytes: usize) -> Result<Answer<R>, Error>
where
    S: Service<Q, Response = Response<R>>,
    R: Body<Data = Bytes>,
{
    fault::step("deliver").map_err(|error| Error::new(Reason::DeliveryFailed, error))?;
    // The type of the service's error has no bounds, so the error cannot be kept.
    let failed = |_| Error::from(Reason::DeliveryFailed);
    std::future::poll_fn(|cx| inner.poll_ready(cx))
        .await
        .map_err(failed)?;
    let response = inner.call(request).await.map_err(failed)?;
    // Only a place for tests to kill the process. An injected error is ignored.
    let _ = fault::step("delivered");
    let (head, body) = response.into_parts();
    // An answer whose body fails is a failed delivery.
    let read = read_up_to(body, body_bytes).await;
    Ok((head, read.map_err(|_| Reason::DeliveryFailed)?))
}

/// The headers of an answer without those of its transfer.
fn recorded_headers(headers: &HeaderMap) -> HeaderMap {
    const TRANSFER: [HeaderName; 8] = [
        header::CONNECTION,
        header::CONTENT_LENGTH,
        header::DATE,
        header::SET_COOKIE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ];
    let mut headers = headers.clone();
    for name in TRANSFER {
        headers.remove(name);
    }
    headers
}
