//! Delivers a complete upload: calls the inner service once and records its answer.

use std::{
    any::{Any, type_name},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body::Body;
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    Engine, Inner,
    outcomes::Held,
    registry::{Ended, Entered},
    verify::{By, Failure, verify},
};
use crate::{
    config::Config,
    delivery::Verdict,
    error::{Error, Reason},
    events::Event,
    fault,
    model::{
        BoxError,
        state::{Record, State, Status},
        upload::{Role, Upload},
    },
    response::{PartlyRead, ResponseBody, is_read, read_up_to},
    span::Context,
    store::{Chain, Claimed, DynClaim, Sealed, StoreError},
    upload::CompletedUpload,
};

/// How often to look whether another server has finished a delivery.
const POLL: Duration = Duration::from_millis(50);

/// The first and the longest pause before a record that could not be written is written again.
const SETTLE_AGAIN: Duration = Duration::from_millis(50);
const SETTLE_AGAIN_MAX: Duration = Duration::from_secs(5);

/// A delivery that has ended with an answer.
pub(crate) struct Delivered<R> {
    pub(crate) verdict: Verdict,
    /// What is recorded of the answer.
    pub(crate) record: Record,
    /// The answer itself, if it was given to this request.
    pub(crate) response: Option<Response<ResponseBody<R>>>,
}

impl<R> Delivered<R> {
    fn earlier(record: Record) -> Self {
        let verdict = if record.delivered {
            Verdict::Delivered
        } else {
            Verdict::Rejected
        };
        Self {
            verdict,
            record,
            response: None,
        }
    }
}

/// Delivers `upload` to `inner`, unless another request does or did, and waits for the answer.
///
/// In the background it does not wait for other deliveries. `claim` is that of the upload, if the
/// caller has it.
pub(crate) async fn deliver<S, B, R>(
    engine: &Engine,
    inner: S,
    request: Request<B>,
    upload: Box<Upload>,
    claim: Option<Box<dyn DynClaim>>,
    by: By,
) -> Result<Delivered<R>, Error>
where
    S: Inner<B, R>,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    if upload.role == Role::Part {
        return Err(Reason::Unsupported.into());
    }
    let deadline = Instant::now() + engine.config.delivery.timeout;
    let entered = loop {
        let other = match engine.registry.enter(&upload.id) {
            Ok(entered) => break Some(entered),
            // It waits for the claim, as if another server had it.
            Err(_) if claim.is_some() => break None,
            Err(other) => other,
        };
        if by == By::Background {
            return Err(Reason::DeliveryPending.into());
        }
        match other.wait(deadline).await {
            Ended::Settled(record) => return Ok(Delivered::earlier(record)),
            Ended::Failed(error) => return Err(error),
            Ended::Refused => {}
        }
    };
    let delivery = Delivery {
        engine: engine.clone(),
        upload,
        by,
        deadline,
    };
    // A separate task, so that the inner service goes on when this request has timed out.
    let running = Context::current().run(delivery.run(entered, claim, inner, request));
    let task = tokio::spawn(running);
    match timeout_at(deadline, task).await {
        Ok(Ok(delivered)) => delivered,
        Ok(Err(error)) => Err(Error::new(Reason::DeliveryFailed, error)),
        Err(_) => Err(Reason::DeliveryPending.into()),
    }
}

/// The delivery of one upload.
struct Delivery {
    engine: Engine,
    upload: Box<Upload>,
    by: By,
    deadline: Instant,
}

impl Delivery {
    async fn run<S, B, R>(
        self,
        entered: Option<Entered>,
        claim: Option<Box<dyn DynClaim>>,
        inner: S,
        request: Request<B>,
    ) -> Result<Delivered<R>, Error>
    where
        S: Inner<B, R>,
        B: 'static,
        R: Body<Data = Bytes> + 'static,
    {
        let _active = self.engine.active.enter();
        let delivered = self.deliver(claim, inner, request).await;
        let ended = match &delivered {
            Ok(delivered) if delivered.verdict == Verdict::RefusedNow => Ended::Refused,
            Ok(delivered) => Ended::Settled(delivered.record.clone()),
            Err(Failure::Refused(_)) => Ended::Refused,
            Err(Failure::Failed(error) | Failure::Rejected(error)) => Ended::Failed(error.clone()),
        };
        if let Some(entered) = entered {
            entered.end(ended);
        }
        delivered.map_err(Error::from)
    }

    async fn deliver<S, B, R>(
        &self,
        claim: Option<Box<dyn DynClaim>>,
        inner: S,
        request: Request<B>,
    ) -> Result<Delivered<R>, Failure>
    where
        S: Inner<B, R>,
        B: 'static,
        R: Body<Data = Bytes> + 'static,
    {
        let claimed = match claim {
            Some(claim) => {
                // It is complete only now. What is known is of an earlier upload with this id.
                self.engine.outcomes.forget(&self.upload.id);
                Claimed::Won(claim)
            }
            None => {
                self.check_pause().await.map_err(Failure::Failed)?;
                self.claim().await.map_err(Failure::Failed)?
            }
        };
        match claimed {
            Claimed::Won(claim) => self.attempt(claim, inner, request).await,
            Claimed::Settled(record) => {
                // Perhaps another server has settled it.
                self.engine.quota.release(&self.upload.id);
                Ok(Delivered::earlier(record))
            }
            Claimed::Incomplete => {
                self.engine.outcomes.forget(&self.upload.id);
                // It was removed in the meantime. If it is sent again it is a new upload.
                Err(Failure::Failed(Reason::Superseded.into()))
            }
            Claimed::Busy => Err(Failure::Failed(Reason::DeliveryPending.into())),
        }
    }

    /// Fails if the last delivery has failed, and the pause after it has not ended. Such a request
    /// neither counts as an attempt nor calls the inner service.
    async fn check_pause(&self) -> Result<(), Error> {
        let (id, outcomes) = (&self.upload.id, &self.engine.outcomes);
        let Some(Held { delivery, error }) = outcomes.held(id, self.by) else {
            return Ok(());
        };
        let status = self.engine.store.status(id).await;
        match status.map_err(|error| self.store_failed(error))? {
            Some(Status {
                state: State::Complete,
                delivery: current,
                ..
            }) if current.as_ref().is_none_or(|current| *current == delivery) => Err(error),
            // Another server has settled or removed it. It may have been sent again.
            _ => {
                outcomes.forget_delivery(id, &delivery);
                Ok(())
            }
        }
    }

    /// Claims the upload. While another server has it, this waits until the deadline.
    async fn claim(&self) -> Result<Claimed<Box<dyn DynClaim>>, Error> {
        loop {
            let claimed = self.engine.store.claim(&self.upload).await;
            let claimed = claimed.map_err(|error| self.store_failed(error))?;
            let may_wait = self.by != By::Background && Instant::now() < self.deadline;
            match claimed {
                Claimed::Busy if may_wait => {
                    sleep(POLL).await;
                    // The delivery that has the claim may have failed in the meantime.
                    self.check_pause().await?;
                }
                claimed => return Ok(claimed),
            }
        }
    }

    async fn attempt<S, B, R>(
        &self,
        claim: Box<dyn DynClaim>,
        inner: S,
        request: Request<B>,
    ) -> Result<Delivered<R>, Failure>
    where
        S: Inner<B, R>,
        B: 'static,
        R: Body<Data = Bytes> + 'static,
    {
        let Engine {
            config, outcomes, ..
        } = &self.engine;
        let sealed = claim.sealed().clone();
        if self.by != By::Operator && outcomes.failures(&sealed) >= config.delivery.max_attempts {
            claim.release().await;
            return Err(Failure::Failed(self.set_aside(&sealed, None)));
        }
        let begun = Instant::now();
        let Answer {
            verdict,
            head,
            read,
        } = match caught(ask(config, self.by, &sealed, inner, request)).await {
            Ok(answer) => answer,
            Err(Failure::Failed(error)) => {
                claim.release().await;
                return Err(Failure::Failed(self.failed(
                    &sealed,
                    error,
                    begun.elapsed(),
                )));
            }
            Err(Failure::Refused(error)) => {
                claim.release().await;
                if error.is_retryable() {
                    outcomes.failed(&sealed, &error, config.hold_back, false);
                } else {
                    outcomes.refused(&sealed);
                }
                return Err(Failure::Refused(error));
            }
            Err(Failure::Rejected(error)) => {
                // The record expires at once, so that the file can be sent again.
                let status = error.refusal().map(|refusal| refusal.status());
                let answer = status.unwrap_or(StatusCode::BAD_REQUEST);
                let record = Record::new(false, answer, sealed.size(), SystemTime::now());
                self.settle(claim, &record).await;
                self.engine.removed(&sealed.upload, None, Some(&error));
                return Err(Failure::Rejected(error));
            }
        };
        let last_stored = self.engine.quota.last_stored(&sealed.upload.id);
        config.events.emit(&Event::DeliveryEnded {
            upload: &sealed.upload,
            attempt: sealed.attempt,
            status: head.status,
            verdict,
            elapsed: begun.elapsed(),
            since_last_byte: last_stored.map(|last| last.elapsed()),
        });
        let lifetime = match verdict {
            Verdict::Delivered if sealed.upload.creation.is_some() => {
                config.delivery.url_record_lifetime
            }
            Verdict::Delivered => config.delivery.record_lifetime,
            _ => config.delivery.rejection_lifetime,
        };
        let expires = SystemTime::now() + lifetime;
        let delivered = verdict == Verdict::Delivered;
        let mut record = Record::new(delivered, head.status, sealed.size(), expires);
        record.headers = recorded_headers(&head.headers);
        record.body = read.rest.is_none().then(|| read.data.clone());
        match verdict {
            Verdict::RefusedNow => {
                claim.release().await;
                outcomes.refused(&sealed);
            }
            Verdict::Rejected => {
                self.settle(claim, &record).await;
                outcomes.rejected(&sealed);
                self.engine.removed(&sealed.upload, Some(head.status), None);
            }
            Verdict::Delivered | Verdict::Failed => self.settle(claim, &record).await,
        }
        Ok(Delivered {
            verdict,
            record,
            response: Some(Response::from_parts(head, ResponseBody::partly_read(read))),
        })
    }

    /// Tells the operator that an attempt has failed. Returns the error for the client.
    fn failed(&self, sealed: &Sealed, error: Error, elapsed: Duration) -> Error {
        let Engine {
            config, outcomes, ..
        } = &self.engine;
        error.mark_told();
        config.events.emit(&Event::DeliveryFailed {
            upload: &sealed.upload,
            attempt: sealed.attempt,
            elapsed,
            error: &error,
        });
        outcomes.failed(sealed, &error, config.hold_back, true);
        // This attempt has failed too.
        if outcomes.failures(sealed).saturating_add(1) >= config.delivery.max_attempts {
            return self.set_aside(sealed, Some(error));
        }
        error
    }

    /// Stops the deliveries of an upload, and tells the operator.
    fn set_aside(&self, sealed: &Sealed, cause: Option<Error>) -> Error {
        let error = match cause {
            Some(cause) => Error::new(Reason::SetAside, cause),
            None => Reason::SetAside.into(),
        };
        // Told now, or earlier.
        error.mark_told();
        if self.engine.outcomes.set_aside(sealed, &error) {
            self.engine.config.events.emit(&Event::SetAside {
                upload: &sealed.upload,
                attempts: sealed.attempt,
                error: &error,
            });
        }
        error
    }

    fn store_failed(&self, error: StoreError) -> Error {
        self.engine.store_failed(Some(&self.upload.id), error)
    }

    /// Records the answer. Until that succeeds the upload must not be delivered again, so this
    /// keeps the claim, and tries as long as the process lives.
    async fn settle(&self, mut claim: Box<dyn DynClaim>, record: &Record) {
        let (begun, mut pause) = (Instant::now(), SETTLE_AGAIN);
        let (mut tries, mut told) = (1_u32, None);
        loop {
            let settled = match fault::step("settle") {
                Ok(_) => claim.settle(record).await,
                Err(error) => Err(error.into()),
            };
            match settled {
                // A superseded upload cannot be delivered again.
                Ok(()) | Err(StoreError::Superseded) => break,
                Err(error) => {
                    // The client waits. The operator is told of each error once.
                    let text = Some(Chain(&error).to_string());
                    if told != text {
                        told = text;
                        self.store_failed(error);
                    }
                    sleep(pause).await;
                }
            }
            pause = (pause * 2).min(SETTLE_AGAIN_MAX);
            tries = tries.saturating_add(1);
        }
        if tries > 1 {
            self.engine.config.events.emit(&Event::RecordLate {
                upload: &self.upload,
                tries,
                elapsed: begun.elapsed(),
            });
        }
        self.engine.quota.release(&self.upload.id);
        self.engine.outcomes.forget(&self.upload.id);
        self.engine.remove_parts(&self.upload);
    }
}

/// The answer of the inner service.
struct Answer<R> {
    /// Not [`Failed`](Verdict::Failed).
    verdict: Verdict,
    head: http::response::Parts,
    read: PartlyRead<R>,
}

/// Checks the file, calls the inner service, and reads the beginning of its answer.
async fn ask<S, B, R>(
    config: &Config,
    by: By,
    sealed: &Sealed,
    mut inner: S,
    request: Request<B>,
) -> Result<Answer<R>, Failure>
where
    S: Inner<B, R>,
    B: 'static,
    R: Body<Data = Bytes> + 'static,
{
    let (mut head, body) = request.into_parts();
    verify(config, by, &head, sealed).await?;
    head.extensions.insert(CompletedUpload::new(sealed.clone()));
    fault::step("deliver").map_err(failed)?;
    let ready = std::future::poll_fn(|cx| inner.poll_ready(cx)).await;
    ready.map_err(failed)?;
    config.events.emit(&Event::DeliveryStarted {
        upload: &sealed.upload,
        attempt: sealed.attempt,
    });
    let response = inner.call(Request::from_parts(head, body)).await;
    let response = response.map_err(failed)?;
    // Only a place for tests to kill the process. An injected error is ignored.
    let _ = fault::step("delivered");
    let (head, body) = response.into_parts();
    let verdict = (config.delivery.verdict)(head.status);
    if verdict == Verdict::Failed {
        return Err(failed(format!("the answer was {}", head.status)));
    }
    // An answer whose body fails is a failed delivery.
    let bound = is_read(&head.headers).then_some(config.delivery.record_body);
    let read = read_up_to(body, bound).await;
    let read = read.map_err(failed)?;
    Ok(Answer {
        verdict,
        head,
        read,
    })
}

fn failed<E: 'static>(error: E) -> Failure {
    Failure::Failed(Error::new(Reason::DeliveryFailed, kept(error)))
}

/// Keeps an error whose type has no bounds, if it is of a usual type.
fn kept<E: 'static>(error: E) -> BoxError {
    fn take<T: 'static>(error: Box<dyn Any>) -> Result<T, Box<dyn Any>> {
        error.downcast().map(|error| *error)
    }
    let error: Box<dyn Any> = Box::new(error);
    take::<BoxError>(error)
        .or_else(|error| take::<io::Error>(error).map(BoxError::from))
        .or_else(|error| take::<Error>(error).map(BoxError::from))
        .or_else(|error| take::<http::Error>(error).map(BoxError::from))
        .or_else(|error| take::<String>(error).map(BoxError::from))
        .or_else(|error| take::<&'static str>(error).map(BoxError::from))
        .unwrap_or_else(|_| format!("an error of the type {}", type_name::<E>()).into())
}

/// Turns a panic of the application into a failure.
async fn caught<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let mut future = pin!(future);
    std::future::poll_fn(|cx| {
        // After a panic the future is not polled again.
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx)));
        polled.unwrap_or_else(|panic| {
            let message = match panic.downcast::<String>() {
                Ok(message) => *message,
                Err(panic) => match panic.downcast::<&'static str>() {
                    Ok(message) => (*message).to_owned(),
                    Err(_) => "of another type than text".to_owned(),
                },
            };
            Poll::Ready(Err(failed(format!("a panic: {message}"))))
        })
    })
    .await
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
