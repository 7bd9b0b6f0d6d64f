//! The async path of an upload request: scope, limits, body into the store, response.

use std::{pin::pin, time::Duration};

use bytes::Bytes;
use http::{
    HeaderMap, HeaderValue, Request, Response, StatusCode, Uri, Version, header, request::Parts,
};
use http_body::Body;

use super::{
    Engine, Inner,
    deliver::{Delivered, deliver},
    head::Head,
    outcomes::HELD_TIMES,
    request::delivered,
    verify::By,
};
use crate::{
    body::{
        RequestBody,
        digest::{CHECKSUMS, Expected},
        live::BodyGuard,
        pace::Paced,
        raw::{self, Drained, Pieces},
    },
    config::Config,
    delivery::Verdict,
    error::{Error, Reason},
    events::Event,
    hooks::{Purpose, Refusal},
    limits::{DRAIN, RESET_AFTER},
    model::{
        state::{Progress, State, Status},
        upload::{Scope, Upload, UploadId},
    },
    protocol::{Command, Create, Described, Exchange, Look, Outcome, Reply, Write},
    response::ResponseBody,
    route::sent_path,
    store::{ChunkBody, DynClaim, Filter, Page, random_id},
};

/// Answers a request of a protocol.
///
/// A client that stalls keeps the memory of the future. So it is an `async` block, because an
/// `async fn` has a second place for each argument. Large values are boxed, and so are the futures
/// that other requests than uploads need.
pub(crate) fn handle<S, B, R>(
    engine: Engine,
    inner: S,
    exchange: Exchange,
    mut head: Head,
    body: B,
) -> impl Future<Output = Response<ResponseBody<R>>> + Send + use<S, B, R>
where
    S: Inner<B, R>,
    B: RequestBody + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    let mut body = Paced::new(body, engine.config.limits.pace);
    let Exchange { command, mut reply } = exchange;
    let command = command.map(Box::new);
    async move {
        let _active = engine.active.enter();
        if !body.is_end_stream() && head.version < Version::HTTP_2 {
            release_buffer(head.parts_mut());
        }
        let found = match command {
            Ok(command) => engine.run(command, &head, &mut body, &mut reply).await,
            Err(error) => Err(error),
        };
        let found = match found {
            Ok(Found::Complete {
                upload,
                is_probe,
                claim,
            }) => {
                let request = delivered(
                    head.into_parts(),
                    body.into_inner(),
                    reply.forwards_all(),
                    &upload,
                );
                let complete = engine.complete(inner, request, upload, claim, is_probe, &reply);
                return Box::pin(complete).await;
            }
            Ok(Found::Also { response, upload }) => {
                let request = delivered(head.into_parts(), body.into_inner(), false, &upload);
                // The client learns at the URL of that upload how this ended.
                let _ = Box::pin(deliver(&engine, inner, request, upload, None, By::Request)).await;
                return response.map(ResponseBody::answer);
            }
            Ok(Found::Response(response)) => Ok(response),
            Err(error) => {
                engine.refused(head.upload(), head.scope(), &error);
                Err(error)
            }
        };
        let waits = waits_to_send(&head, &body);
        let is_read = !waits && drain(&mut body).await;
        let mut response = match found {
            Ok(response) => response,
            Err(error) => engine.refuse(&reply, error, None).await,
        };
        if !is_read && head.version < Version::HTTP_2 {
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if !is_read && !waits {
            // The server resets the connection, or the stream of HTTP/2, when the body is dropped.
            // Clients that are still sending, such as curl and node, would see that and not the
            // response. Meanwhile they can read it and stop.
            tokio::spawn(async move {
                let rest = raw::drain(&mut body, DRAIN.0);
                // It is closed in either case.
                let _ = tokio::time::timeout(RESET_AFTER, rest).await;
            });
        }
        response.map(ResponseBody::answer)
    }
}

/// Copies the texts of a head. hyper slices them from its read buffer of at least 8 KiB, and can
/// use that for the body only when no slice is left.
fn release_buffer(head: &mut Parts) {
    // What cannot be copied stays a slice.
    let copy_uri = |uri: &mut Uri| {
        let copy = uri.to_string().parse().ok();
        *uri = copy.filter(|copy| copy == uri).unwrap_or(uri.clone());
    };
    copy_uri(&mut head.uri);
    #[cfg(feature = "axum")]
    if let Some(sent) = head.extensions.get_mut::<axum::extract::OriginalUri>() {
        copy_uri(&mut sent.0);
    }
    for value in head.headers.values_mut() {
        if let Ok(mut copy) = HeaderValue::from_bytes(value.as_bytes()) {
            copy.set_sensitive(value.is_sensitive());
            *value = copy;
        }
    }
}

/// Whether the client waits for `100 Continue`: it is not sending, and does not have to begin.
fn waits_to_send<B: RequestBody>(head: &Parts, body: &Paced<B>) -> bool {
    let expects = head.headers.get(header::EXPECT);
    let waits = expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    waits && !body.has_begun() && !body.is_end_stream()
}

/// Reads the rest of a body, within bounds. Returns whether it was read to its end. A client that
/// is still sending when the connection closes may not see the response.
async fn drain<B: RequestBody>(body: &mut Paced<B>) -> bool {
    if body.is_end_stream() {
        return true;
    }
    let (bytes, time) = DRAIN;
    if body.size_hint().lower() > bytes {
        return false;
    }
    let drained = tokio::time::timeout(time, raw::drain(body, bytes)).await;
    drained.is_ok_and(|drained| drained == Drained::ToTheEnd)
}

/// The command to store a chunk, without the box. Any other command is returned as it is.
fn into_write(command: Box<Command>) -> Result<Write, Box<Command>> {
    match *command {
        Command::Write(write) => Ok(write),
        _ => Err(command),
    }
}

/// The result of a command.
pub(super) enum Found {
    Response(Response<Bytes>),
    /// The upload is complete, and is to be delivered.
    Complete {
        upload: Box<Upload>,
        /// The client has asked what is stored.
        is_probe: bool,
        /// The claim, if the store has taken it.
        claim: Option<Box<dyn DynClaim>>,
    },
    /// The request has completed a part, and with it another upload, which is to be delivered.
    Also {
        response: Response<Bytes>,
        upload: Box<Upload>,
    },
}

impl Found {
    pub(super) fn complete(upload: impl Into<Box<Upload>>) -> Self {
        Self::Complete {
            upload: upload.into(),
            is_probe: false,
            claim: None,
        }
    }
}

/// Ends another body if it may hold the room for bytes that it does not bring.
pub(super) fn make_room(reading: &BodyGuard, error: &Error) {
    match error.reason() {
        Reason::Busy | Reason::StorageFull => reading.end_slowest(false),
        Reason::QuotaExceeded | Reason::TooManyUploads => reading.end_slowest(true),
        _ => {}
    }
}

/// Refuses a body in a coding: its bytes would be stored as they are. Servers undo `chunked`, and
/// no other coding of a transfer.
pub(super) fn check_coding(head: &Parts) -> Result<(), Error> {
    let of = |name| head.headers.get_all(name).iter();
    let codings = of(header::CONTENT_ENCODING).chain(of(header::TRANSFER_ENCODING));
    let mut codings = codings.flat_map(|codings| codings.as_bytes().split(|&byte| byte == b','));
    let plain = [&b""[..], b"identity", b"chunked"];
    let is_plain = |coding: &[u8]| {
        let coding = coding.trim_ascii();
        plain.iter().any(|known| coding.eq_ignore_ascii_case(known))
    };
    if codings.all(is_plain) {
        Ok(())
    } else {
        Err(Reason::ContentEncoding.into())
    }
}

impl Engine {
    async fn run<B: RequestBody>(
        &self,
        mut command: Box<Command>,
        head: &Head,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error> {
        if let Command::Capabilities = *command {
            let checksums = CHECKSUMS;
            let capabilities = Outcome::Capabilities { checksums };
            return Ok(Found::Response(reply.encode(capabilities)));
        }
        // The owner is known before a byte of the body is read.
        let scope = self.config.hooks.scope(head)?;
        head.set_scope(&scope);
        if let Command::Read { .. } | Command::Write(_) = *command {
            check_coding(head)?;
        }
        if let Command::Read { max, then } = *command {
            let _reading = self.count_body(&scope, head, body)?;
            let exchange = then(&Box::pin(self.read_all(head, body, max)).await?);
            *reply = exchange.reply;
            command = exchange.command.map(Box::new)?;
        }
        let write = match into_write(command) {
            Ok(write) => write,
            Err(command) => {
                return Box::pin(self.run_other(command, head, scope, body, reply)).await;
            }
        };
        let reading = self.count_body(&scope, head, body)?;
        let written = self.write(write, head, scope, body, reply).await;
        if let Err(error) = &written {
            make_room(&reading, error);
        }
        written
    }

    /// Runs a command that stores no chunk.
    async fn run_other<B: RequestBody>(
        &self,
        command: Box<Command>,
        head: &Head,
        scope: Scope,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error> {
        let response = match *command {
            Command::Conclude(described) => {
                return self.conclude(described, head, scope, reply).await;
            }
            Command::Look(look) => return self.look(look, head, scope, reply).await,
            Command::List { after, fields } => {
                let hooks = &self.config.hooks;
                hooks.admit(Purpose::List, head, &scope, None).await?;
                let is_asked = |upload: &Upload| {
                    let mut fields = fields.iter();
                    upload.is_at(sent_path(head))
                        && fields.all(|(name, value)| upload.field(name) == Some(value))
                };
                let (uploads, next) = self.unfinished(scope, after, is_asked).await?;
                let uploads = &uploads;
                let urls = self.config.protocols.urls();
                reply.encode(Outcome::Listed {
                    uploads,
                    next,
                    urls,
                })
            }
            Command::Create(create) => {
                let upload = self.name(create, head, scope).await?;
                reply.encode(Outcome::Created(&upload))
            }
            Command::Remove(described) => {
                let upload = self.upload(described, head, scope)?;
                self.admit(Purpose::Cancel, head, &upload).await?;
                self.remove(&upload, None).await?;
                // The answer does not say whether the upload existed.
                reply.encode(Outcome::Removed)
            }
            Command::Url(command) => {
                return self.at_url(command, head, scope, body, reply).await;
            }
            // The body cannot contain another `Read`.
            Command::Capabilities | Command::Read { .. } | Command::Write(_) => {
                return Err(Reason::MethodNotAllowed.into());
            }
        };
        Ok(Found::Response(response))
    }

    /// Names a new upload. Nothing is stored before its first byte.
    async fn name(&self, create: Create, head: &Head, scope: Scope) -> Result<Box<Upload>, Error> {
        let Create { length, describe } = create;
        self.config.check(Some(length), None)?;
        let upload = self.upload(describe(&random_id()?), head, scope)?;
        self.admit(Purpose::Create, head, &upload).await?;
        Ok(upload)
    }

    /// Finds the upload that its client believes to be complete.
    async fn conclude(
        &self,
        described: Described,
        head: &Head,
        scope: Scope,
        reply: &Reply,
    ) -> Result<Found, Error> {
        self.config.check(described.length, None)?;
        let upload = self.upload(described, head, scope)?;
        self.admit(Purpose::Status, head, &upload).await?;
        let state = self.same(&upload).await?.map(|status| status.state);
        Ok(match state {
            Some(State::Complete | State::Settled(_)) => Found::complete(upload),
            _ => Found::Response(reply.encode(Outcome::Gone)),
        })
    }

    /// Delivers a complete upload, and encodes the answer of the inner service. The answer to a
    /// probe is what is stored, unless the inner service refuses the file.
    async fn complete<S, B, R>(
        &self,
        inner: S,
        request: Request<B>,
        upload: Box<Upload>,
        claim: Option<Box<dyn DynClaim>>,
        is_probe: bool,
        reply: &Reply,
    ) -> Response<ResponseBody<R>>
    where
        S: Inner<B, R>,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
    {
        let delivered = deliver(self, inner, request, upload.clone(), claim, By::Request).await;
        let Delivered {
            verdict,
            record,
            response,
        } = match delivered {
            Ok(delivered) => delivered,
            Err(error) if is_probe && error.is_retryable() && reply.tells_undelivered() => {
                // The client completes the upload itself.
                let held = self.held(&upload, upload.length);
                return reply.encode(Outcome::Held(held)).map(ResponseBody::answer);
            }
            Err(error) => {
                self.refused(Some(&upload.id), Some(&upload.scope), &error);
                let refused = self.refuse(reply, error, Some(&upload)).await;
                return refused.map(ResponseBody::answer);
            }
        };
        let is_refused_now = verdict == Verdict::RefusedNow;
        if is_probe && is_refused_now && reply.tells_undelivered() {
            let held = self.held(&upload, upload.length);
            return reply.encode(Outcome::Held(held)).map(ResponseBody::answer);
        }
        // They are for this client, and not for later ones. So the record does not have them.
        let mut cookies = HeaderMap::new();
        if let Some(response) = response {
            let (mut head, body) = response.into_parts();
            for cookie in head.headers.get_all(header::SET_COOKIE) {
                cookies.append(header::SET_COOKIE, cookie.clone());
            }
            let tells_state = is_probe && verdict == Verdict::Delivered;
            if !tells_state && reply.forward(&mut head, &upload, record.delivered) {
                return Response::from_parts(head, body);
            }
        }
        let mut response = if is_probe && verdict == Verdict::Delivered {
            let status = Status::new(*upload, State::Settled(record));
            reply.encode(Outcome::State(Some(&status)))
        } else {
            reply.encode(Outcome::Answer(&record))
        };
        response.headers_mut().extend(cookies);
        response.map(ResponseBody::answer)
    }

    /// Answers a question about what is stored.
    pub(super) async fn look(
        &self,
        look: Look,
        head: &Head,
        scope: Scope,
        reply: &Reply,
    ) -> Result<Found, Error> {
        let Some(described) = look.upload else {
            return Ok(Found::Response(reply.encode(Outcome::State(None))));
        };
        if look.purpose == Purpose::Test {
            self.config.check(described.length, look.chunk_len)?;
        }
        let upload = self.upload(described, head, scope)?;
        self.admit(look.purpose, head, &upload).await?;
        let mut status = self.same(&upload).await?;
        let is_rejected = |status: &Status| match &status.state {
            State::Settled(record) => !record.delivered,
            State::Receiving(_) | State::Complete => false,
        };
        let tells_missing = look.purpose == Purpose::Test || reply.probe_delivers();
        if tells_missing && status.as_ref().is_some_and(is_rejected) {
            // The client is told that nothing is stored, so that has to be true.
            self.forget_rejection(&upload).await?;
            status = self.status(&upload).await?;
        }
        let is_complete = |status: &Status| matches!(status.state, State::Complete);
        let complete = status.as_ref().filter(|status| is_complete(status));
        if let Some(status) = complete.filter(|_| reply.probe_delivers()) {
            // As the requests with its bytes have described it.
            return Ok(Found::Complete {
                upload: Box::new(status.upload.clone()),
                is_probe: true,
                claim: None,
            });
        }
        let state = reply.encode(Outcome::State(status.as_ref()));
        Ok(Found::Response(state))
    }

    /// Some unfinished uploads of a scope, from the first one after this id, and the id after which
    /// more follow.
    async fn unfinished(
        &self,
        scope: Scope,
        mut after: Option<UploadId>,
        is_asked: impl Fn(&Upload) -> bool,
    ) -> Result<(Vec<(Upload, Progress)>, Option<UploadId>), Error> {
        let (filter, mut found) = (Filter::default().with_scope(scope), Vec::new());
        loop {
            let page = self.store.list(&filter, after.as_ref()).await;
            let page = page.map_err(|error| self.store_failed(None, error))?;
            let listed = page.uploads.into_iter();
            let asked = listed.filter(|listed| is_asked(&listed.upload));
            found.extend(asked.map(|listed| (listed.upload, listed.progress)));
            after = page.next;
            // Pages of the store may be short or empty.
            if after.is_none() || found.len() >= Page::MAX {
                return Ok((found, after));
            }
        }
    }

    pub(super) fn upload(
        &self,
        described: Described,
        head: &Head,
        scope: Scope,
    ) -> Result<Box<Upload>, Error> {
        let upload = described.upload(scope, sent_path(head), || Ok(random_id()?))?;
        head.set_upload(upload.id);
        Ok(Box::new(upload))
    }

    /// Asks the application whether a request is admitted.
    pub(super) async fn admit(
        &self,
        purpose: Purpose,
        head: &Parts,
        upload: &Upload,
    ) -> Result<(), Error> {
        let hooks = &self.config.hooks;
        Ok(hooks
            .admit(purpose, head, &upload.scope, Some(upload))
            .await?)
    }

    /// The status of the upload of a request. An error if the request contradicts it.
    async fn same(&self, upload: &Upload) -> Result<Option<Status>, Error> {
        let status = self.status(upload).await?;
        let stored = status.as_ref().map(|status| &status.upload);
        if stored.is_some_and(|stored| stored.contradicts(upload)) {
            return Err(Reason::Conflict.into());
        }
        Ok(status)
    }

    pub(super) async fn status(&self, upload: &Upload) -> Result<Option<Status>, Error> {
        let status = self.store.status(&upload.id).await;
        status.map_err(|error| self.store_failed(Some(&upload.id), error))
    }

    /// Removes an upload, unless it is being delivered or was delivered. `refused` is why the
    /// application rejected it.
    pub(super) async fn remove(
        &self,
        upload: &Upload,
        refused: Option<&Error>,
    ) -> Result<(), Error> {
        let removed = self.store.remove(&upload.id).await;
        if removed.map_err(|error| self.store_failed(Some(&upload.id), error))? {
            self.quota.release(&upload.id);
            self.outcomes.forget(&upload.id);
            self.removed(upload, None, refused);
            return Ok(());
        }
        self.forget_rejection(upload).await
    }

    /// Tells the operator that an upload was removed: the application rejected it with a status or
    /// with an error, or its client removed it.
    pub(super) fn removed(
        &self,
        upload: &Upload,
        status: Option<StatusCode>,
        error: Option<&Error>,
    ) {
        let refusal = error.and_then(Error::refusal);
        let status = status.or(refusal.map(Refusal::status));
        let error = error.filter(|error| error.mark_told());
        self.config.events.emit(&Event::FileRemoved {
            upload,
            status,
            error,
        });
    }

    /// Ends the record of a rejection, so that the upload can begin anew.
    pub(super) async fn forget_rejection(&self, upload: &Upload) -> Result<(), Error> {
        let forgotten = self.store.forget_rejection(&upload.id).await;
        if forgotten.map_err(|error| self.store_failed(Some(&upload.id), error))? {
            self.outcomes.forget(&upload.id);
        }
        Ok(())
    }

    /// Counts a body until the guard is dropped. If there are too many, another one ends.
    pub(super) fn count_body<B>(
        &self,
        scope: &Scope,
        head: &Parts,
        body: &mut Paced<B>,
    ) -> Result<BodyGuard, Error> {
        let Config { hooks, limits, .. } = &*self.config;
        let scope = hooks.scope.is_some().then_some(scope);
        let reading = self.bodies.enter(&limits.bodies, scope, hooks.peer(head))?;
        body.set_meter(reading.meter());
        Ok(reading)
    }

    /// Reads a body of at most `max` bytes.
    async fn read_all<B: RequestBody>(
        &self,
        head: &Parts,
        body: &mut Paced<B>,
        max: u64,
    ) -> Result<Vec<u8>, Error> {
        if body.size_hint().lower() > max {
            return Err(Reason::TooManyFields.into());
        }
        let mut source = pin!(Pieces::new(body, Expected::of_content(head)?));
        let mut chunk = ChunkBody::new(source.as_mut(), None, max);
        let mut bytes = Vec::new();
        while let Some(piece) = chunk.next().await {
            let piece = piece.map_err(Error::from);
            bytes.extend_from_slice(&piece.map_err(|error| match error.reason() {
                Reason::ChunkLength { .. } => Reason::TooManyFields.into(),
                _ => error,
            })?);
        }
        Ok(bytes)
    }

    /// Encodes the response to an error. A retryable one is held back, because clients try again
    /// at once: if possible until the pause before the next delivery of the `complete` upload has
    /// ended.
    async fn refuse(
        &self,
        reply: &Reply,
        error: Error,
        complete: Option<&Upload>,
    ) -> Response<Bytes> {
        let mut left = Duration::ZERO;
        if error.is_retryable() {
            let pause = complete.map(|upload| self.outcomes.pause(&upload.id));
            let pause = pause.unwrap_or_default();
            let hold_back = self.config.hold_back;
            let longest = hold_back.saturating_mul(HELD_TIMES);
            let held = pause.clamp(hold_back, longest);
            tokio::time::sleep(held).await;
            left = pause.saturating_sub(held);
        }
        let mut response = reply.encode(match complete.filter(|_| error.is_retryable()) {
            Some(upload) => Outcome::Undelivered(&error, upload),
            None => Outcome::Failed(&error),
        });
        if let Some(retry_after) = response.headers_mut().get_mut(header::RETRY_AFTER) {
            if left > Duration::from_secs(1) {
                *retry_after = left.as_secs().saturating_add(1).into();
            }
        }
        if let Some(change) = &self.config.error_response {
            response = change(&error, response);
        }
        response.extensions_mut().insert(error);
        response
    }
}
