//! The async path of an upload request: scope, limits, body into the store, response.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Version, header, request::Parts,
};
use http_body::{Body, Frame, SizeHint};
use tower_service::Service;

use super::{
    Engine,
    deliver::{Delivered, deliver},
    outcomes::HELD_TIMES,
    quota::{Reservation, Spooling},
    verify::By,
};
use crate::{
    body::{
        Source,
        digest::{Expected, Verified},
        live::BodyGuard,
        multipart::{self, Decoded, Item},
        pace::Paced,
        raw::{self, Drained, OneOf, Pieces},
        sniff::Sniffed,
    },
    config::Config,
    delivery::Verdict,
    error::{Error, Reason},
    events::Event,
    hooks::Purpose,
    limits::{DRAIN, FORM_BYTES},
    model::{
        BoxError,
        state::{Progress, State, Status},
        upload::{Scope, Upload, UploadId},
    },
    protocol::{
        Command, Create, Described, Exchange, FilePart, Form, Look, Outcome, Reply, Target, Write,
    },
    response::ResponseBody,
    route::sent_path,
    store::{ChunkBody, Filter, Keep, Page, StoreError, content::Content, random_id},
};

/// Answers a request of a protocol.
pub(crate) async fn handle<S, B, R>(
    engine: Engine,
    inner: S,
    exchange: Exchange,
    head: Parts,
    body: B,
) -> Response<ResponseBody<R>>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
    R: Body<Data = Bytes> + Send + 'static,
{
    let _active = engine.active.enter();
    let mut body = Paced::new(body, engine.config.limits.pace);
    let Exchange { command, mut reply } = exchange;
    let found = match command {
        Ok(command) => engine.run(command, &head, &mut body, &mut reply).await,
        Err(error) => Err(error),
    };
    let found = match found {
        Ok(Found::Complete { upload, is_probe }) => {
            let request = delivered(head, body.into_inner(), reply.forwards_all());
            let complete = engine.complete(inner, request, upload, is_probe, &reply);
            return complete.await;
        }
        Ok(Found::Response(response)) => Ok(response),
        Err(error) => Err(error),
    };
    let is_read = drain(&head, &mut body).await;
    let mut response = match found {
        Ok(response) => response,
        Err(error) => engine.refuse(&reply, error, Duration::ZERO).await,
    };
    // HTTP/2 resets the stream instead.
    if !is_read && head.version < Version::HTTP_2 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response.map(ResponseBody::answer)
}

/// Reads the rest of a body, within bounds. Returns whether it was read to its end.
///
/// A client that is still sending when the connection closes may not see the response. One that
/// waits for `100 Continue` is not sending, and does not have to begin.
async fn drain<B>(head: &Parts, body: &mut Paced<B>) -> bool
where
    B: Body + Unpin,
    B::Error: Into<BoxError>,
{
    if body.is_end_stream() {
        return true;
    }
    let (bytes, time) = DRAIN;
    let expects = head.headers.get(header::EXPECT);
    let waits = expects.is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if (waits && !body.has_begun()) || body.size_hint().lower() > bytes {
        return false;
    }
    let drained = tokio::time::timeout(time, raw::drain(body, bytes)).await;
    drained.is_ok_and(|drained| drained == Drained::ToTheEnd)
}

/// The result of a command.
enum Found {
    Response(Response<Bytes>),
    /// The upload is complete, and is to be delivered.
    Complete {
        upload: Upload,
        /// The client has asked what is stored.
        is_probe: bool,
    },
}

impl Found {
    fn complete(upload: Upload) -> Self {
        Self::Complete {
            upload,
            is_probe: false,
        }
    }
}

/// The request for the inner service. Its body has been read, so the headers about it are removed.
///
/// An answer that is recorded is read by the layer and repeated to requests with other headers. So
/// the headers that choose a form of the answer are removed too: a compressed or partial answer
/// would be the wrong one for them. Preconditions such as `If-Match` stay, because they say whether
/// the file is wanted.
fn delivered<B>(mut head: Parts, body: B, forwards_all: bool) -> Request<B> {
    const ABOUT_BODY: [HeaderName; 4] = [
        header::CONTENT_ENCODING,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::TRANSFER_ENCODING,
    ];
    const ABOUT_ANSWER: [HeaderName; 5] = [
        header::ACCEPT_ENCODING,
        header::IF_MODIFIED_SINCE,
        header::IF_RANGE,
        header::RANGE,
        header::TE,
    ];
    let about_answer = ABOUT_ANSWER.iter().filter(|_| !forwards_all);
    for name in ABOUT_BODY.iter().chain(about_answer) {
        head.headers.remove(name);
    }
    Request::from_parts(head, body)
}

/// Refuses a body in a coding: its bytes would be stored as they are.
fn check_coding(head: &Parts) -> Result<(), Error> {
    let mut codings = head.headers.get_all(header::CONTENT_ENCODING).iter();
    let is_plain = codings.all(|coding| {
        let coding = coding.as_bytes().trim_ascii();
        coding.is_empty() || coding.eq_ignore_ascii_case(b"identity")
    });
    if is_plain {
        Ok(())
    } else {
        Err(Reason::ContentEncoding.into())
    }
}

impl Engine {
    async fn run<B>(
        &self,
        mut command: Command,
        head: &Parts,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        // The owner is known before a byte of the body is read.
        let scope = self.config.hooks.scope(head)?;
        if let Command::Read { .. } | Command::Write(_) = command {
            check_coding(head)?;
        }
        if let Command::Read { max, then } = command {
            let _reading = self.count_body(&scope, head, body)?;
            let exchange = then(&self.read_all(head, body, max).await?);
            *reply = exchange.reply;
            command = exchange.command?;
        }
        let response = match command {
            Command::Write(write) => {
                let _reading = self.count_body(&scope, head, body)?;
                return self.write(write, head, scope, body, reply).await;
            }
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
                reply.encode(Outcome::Listed { uploads, next })
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
            // The body cannot contain another `Read`.
            Command::Read { .. } => return Err(Reason::MethodNotAllowed.into()),
        };
        Ok(Found::Response(response))
    }

    /// Names a new upload. Nothing is stored before its first byte.
    async fn name(&self, create: Create, head: &Parts, scope: Scope) -> Result<Upload, Error> {
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
        head: &Parts,
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

    async fn write<B>(
        &self,
        write: Write,
        head: &Parts,
        scope: Scope,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let digest = Expected::of_content(head)?;
        let size = body.size_hint();
        let stored = match write {
            Write::Raw(target) => {
                let mut source = pin!(Pieces::new(&mut *body, digest));
                self.write_to(target, head, scope, size, source.as_mut())
                    .await?
            }
            Write::Spool(place) => {
                let mut source = pin!(Pieces::new(&mut *body, digest));
                let spooling = self.spooling(head, &scope, size).await?;
                let (spooled, len) = self.spool(spooling.max(), source.as_mut()).await?;
                let mut source = pin!(Reread(spooled));
                let exact = SizeHint::with_exact(len);
                self.write_to(place(len)?, head, scope, exact, source.as_mut())
                    .await?
            }
            Write::Form { boundary, mut form } => {
                let limit = self.config.limits.chunk_size;
                // The file may be base64.
                if size.lower() > form_bytes(limit, true) {
                    return Err(Reason::ChunkTooLarge { limit }.into());
                }
                let parts = multipart::Form::new(&mut *body, boundary, digest);
                let written = self.write_form(parts, &mut *form, head, scope, size).await;
                // Only the parts of the form say which reply the client needs.
                *reply = form.reply();
                match written? {
                    Written::Stored(stored) => stored,
                    Written::Asked(look, scope) => {
                        return self.look(look, head, scope, reply).await;
                    }
                }
            }
        };
        let Some((upload, progress)) = stored else {
            return Ok(Found::Response(reply.encode(Outcome::Gone)));
        };
        if progress.complete {
            return Ok(Found::complete(upload));
        }
        let status = if reply.needs_status() {
            self.status(&upload).await?
        } else {
            None
        };
        Ok(Found::Response(reply.encode(Outcome::Stored {
            upload: &upload,
            progress,
            status: status.as_ref(),
        })))
    }

    /// Stores a body at its target. `None` if the client continues an upload that is gone.
    async fn write_to(
        &self,
        target: Target,
        head: &Parts,
        scope: Scope,
        size: SizeHint,
        source: Source<'_>,
    ) -> Result<Option<(Upload, Progress)>, Error> {
        let Some(chunk) = self.admit_chunk(target, head, scope).await? else {
            return Ok(None);
        };
        chunk.check(size.lower(), size.upper())?;
        self.store_chunk(chunk, source).await.map(Some)
    }

    async fn write_form(
        &self,
        mut parts: multipart::Form<'_>,
        form: &mut dyn Form,
        head: &Parts,
        scope: Scope,
        size: SizeHint,
    ) -> Result<Written, Error> {
        loop {
            match parts.next(&Fields(form)).await? {
                Item::Text { name, value } => form.field(name, value),
                Item::File => break,
                Item::End => {
                    return Ok(Written::Asked(form.no_file()?, scope));
                }
            }
        }
        let head_of_part = parts.file_part().cloned().unwrap_or_default();
        let part = FilePart {
            file_name: head_of_part.file_name,
            content_type: head_of_part.content_type,
        };
        let Some(target) = form.file(part)? else {
            // Boxed, so that all other requests do not hold the memory for it.
            return Box::pin(self.write_spooled(parts, form, head, scope, size)).await;
        };
        let Some(chunk) = self.admit_chunk(target, head, scope).await? else {
            return Ok(Written::Stored(None));
        };
        let is_base64 = form.is_base64();
        if size.lower() > form_bytes(chunk.len.unwrap_or(chunk.max_len), is_base64) {
            chunk.check(size.lower(), None)?;
        }
        let mut fields = Fields(form);
        let content = pin!(parts.content(&mut fields));
        let mut decoded = pin!(Decoded::new(content, is_base64));
        let (mut upload, progress) = self.store_chunk(chunk, decoded.as_mut()).await?;
        // Including those after the file.
        upload.fields = form.fields();
        Ok(Written::Stored(Some((upload, progress))))
    }

    /// Spools the file of a form until the fields after it have said where it belongs.
    async fn write_spooled(
        &self,
        mut parts: multipart::Form<'_>,
        form: &mut dyn Form,
        head: &Parts,
        scope: Scope,
        size: SizeHint,
    ) -> Result<Written, Error> {
        let spooling = self.spooling(head, &scope, size).await?;
        let (spooled, len) = {
            let mut fields = Fields(form);
            let mut content = pin!(parts.content(&mut fields));
            self.spool(spooling.max(), content.as_mut()).await?
        };
        let target = form.place(len)?;
        let source = pin!(Reread(spooled));
        let mut source = pin!(Decoded::new(source, form.is_base64()));
        let stored = self
            .write_to(target, head, scope, SizeHint::default(), source.as_mut())
            .await?;
        Ok(Written::Stored(stored))
    }

    /// Reserves room for a file whose length or target is not known yet, if the application admits
    /// it.
    async fn spooling(
        &self,
        head: &Parts,
        scope: &Scope,
        size: SizeHint,
    ) -> Result<Spooling, Error> {
        let Config { hooks, limits, .. } = &*self.config;
        hooks.admit(Purpose::Spool, head, scope, None).await?;
        let max = size.upper().unwrap_or(u64::MAX).min(limits.chunk_size);
        let has_scopes = hooks.scope.is_some();
        let spooling = self
            .quota
            .spool(&*self.store, limits, has_scopes, scope, max);
        spooling.await
    }

    /// Spools a file of at most `limit` bytes. Returns it with its length in bytes.
    async fn spool(&self, limit: u64, source: Source<'_>) -> Result<(Content, u64), Error> {
        let mut body = ChunkBody::new(source, None, limit);
        let spooled = self.store.spool(&mut body).await;
        let spooled = spooled.map_err(|error| self.store_failed(None, error));
        let spooled = spooled.map_err(|error| match error.reason() {
            // No length was declared: the limit is exceeded.
            Reason::ChunkLength { .. } if limit < self.config.limits.chunk_size => {
                Reason::FileTooLarge { limit }.into()
            }
            Reason::ChunkLength { .. } => Reason::ChunkTooLarge { limit }.into(),
            _ => error,
        });
        Ok((spooled?, body.received()))
    }

    /// Returns the chunk, if the limits and the application admit it. `None` if the client
    /// continues an upload that is gone, without having asked.
    async fn admit_chunk(
        &self,
        target: Target,
        head: &Parts,
        scope: Scope,
    ) -> Result<Option<Chunk>, Error> {
        self.config.check(target.upload.length, target.len)?;
        let digest = match (&self.config.digests.chunk, &target.digest) {
            (Some((name, algorithm)), Some(value)) => {
                Some(Expected::of_field(name, *algorithm, value)?)
            }
            _ => None,
        };
        let upload = self.upload(target.upload, head, scope)?;
        if target.must_exist && self.status(&upload).await?.is_none() {
            return Ok(None);
        }
        self.admit(Purpose::Chunk, head, &upload).await?;
        Ok(Some(Chunk {
            upload,
            offset: target.offset,
            len: target.len,
            lengths: target.other_len.map(|other| [target.max_len, other]),
            max_len: target.max_len.min(self.config.limits.chunk_size),
            digest,
        }))
    }

    async fn store_chunk(
        &self,
        chunk: Chunk,
        source: Source<'_>,
    ) -> Result<(Upload, Progress), Error> {
        let Chunk { upload, offset, .. } = chunk;
        let reserved = self.reserve(&upload).await?;
        // Only this process knows without asking the store. For the others the record ends soon.
        if offset == 0 && self.outcomes.is_rejected(&upload.id) {
            self.forget_rejection(&upload).await?;
        }
        let sniff = self.config.hooks.sniff.as_ref().filter(|_| offset == 0);
        let source = pin!(OneOf::new(source, chunk.lengths));
        let sniffed = pin!(Sniffed::new(source, sniff, &upload));
        let mut verified = pin!(Verified::new(sniffed, chunk.digest));
        let mut body = ChunkBody::new(verified.as_mut(), chunk.len, chunk.max_len);
        let written = self
            .store
            .write(&upload, offset, &mut body, Keep::Whole)
            .await;
        match written.map_err(|error| self.store_failed(Some(&upload.id), error)) {
            Ok(progress) => {
                if let Some(reserved) = reserved {
                    reserved.keep();
                }
                Ok((upload, progress))
            }
            Err(error) => {
                let refusal = error.refusal().filter(|refusal| !refusal.is_retryable());
                if let Some(refusal) = refusal {
                    // Other chunks of the file may be stored. If the upload cannot be removed now,
                    // it is swept later, and the operator is told.
                    let _ = self.remove(&upload, Some(refusal.status())).await;
                }
                if *error.reason() == Reason::Busy {
                    // The memory of the store is taken, perhaps by bodies that bring nothing.
                    self.bodies.end_slowest();
                }
                if let Some(reserved) = reserved.filter(Reservation::needs_status) {
                    // If that is unknown, the upload stays counted.
                    if let Ok(status) = self.status(&upload).await {
                        reserved.found(status.as_ref());
                    }
                }
                Err(error)
            }
        }
    }

    /// Delivers a complete upload, and encodes the answer of the inner service. The answer to a
    /// probe is what is stored, unless the inner service refuses the file.
    async fn complete<S, B, R>(
        &self,
        inner: S,
        request: Request<B>,
        upload: Upload,
        is_probe: bool,
        reply: &Reply,
    ) -> Response<ResponseBody<R>>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
    {
        let delivered = deliver(self, inner, request, upload.clone(), By::Request).await;
        let Delivered {
            verdict,
            record,
            response,
        } = match delivered {
            Ok(delivered) => delivered,
            Err(error) => {
                let pause = self.outcomes.pause(&upload.id);
                let refused = self.refuse(reply, error, pause).await;
                return refused.map(ResponseBody::answer);
            }
        };
        if is_probe && verdict == Verdict::Delivered {
            let status = Status::new(upload, State::Settled(record));
            let state = reply.encode(Outcome::State(Some(&status)));
            return state.map(ResponseBody::answer);
        }
        if let Some(response) = response {
            let (mut head, body) = response.into_parts();
            if reply.forward(&mut head, &upload, record.delivered) {
                return Response::from_parts(head, body);
            }
        }
        reply
            .encode(Outcome::Answer(&record))
            .map(ResponseBody::answer)
    }

    /// Answers a question about what is stored.
    async fn look(
        &self,
        look: Look,
        head: &Parts,
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
                upload: status.upload.clone(),
                is_probe: true,
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

    fn upload(&self, described: Described, head: &Parts, scope: Scope) -> Result<Upload, Error> {
        described.upload(scope, sent_path(head), || Ok(random_id()?))
    }

    /// Asks the application whether a request is admitted.
    async fn admit(&self, purpose: Purpose, head: &Parts, upload: &Upload) -> Result<(), Error> {
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

    async fn status(&self, upload: &Upload) -> Result<Option<Status>, Error> {
        let status = self.store.status(&upload.id).await;
        status.map_err(|error| self.store_failed(Some(&upload.id), error))
    }

    /// Removes an upload, unless it is being delivered or was delivered. `status` is that with
    /// which the application rejected it.
    async fn remove(&self, upload: &Upload, status: Option<StatusCode>) -> Result<(), Error> {
        let removed = self.store.remove(&upload.id).await;
        if removed.map_err(|error| self.store_failed(Some(&upload.id), error))? {
            self.quota.release(&upload.id);
            self.outcomes.forget(&upload.id);
            let event = Event::FileRemoved { upload, status };
            self.config.events.emit(&event);
            return Ok(());
        }
        self.forget_rejection(upload).await
    }

    /// Ends the record of a rejection, so that the upload can begin anew.
    async fn forget_rejection(&self, upload: &Upload) -> Result<(), Error> {
        let forgotten = self.store.forget_rejection(&upload.id).await;
        if forgotten.map_err(|error| self.store_failed(Some(&upload.id), error))? {
            self.outcomes.forget(&upload.id);
        }
        Ok(())
    }

    /// Counts a body until the guard is dropped. If there are too many, another one ends.
    fn count_body<B>(
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

    /// Counts an upload as unfinished, if it is within the limits.
    async fn reserve(&self, upload: &Upload) -> Result<Option<Reservation>, Error> {
        let Config { hooks, limits, .. } = &*self.config;
        let has_scopes = hooks.scope.is_some();
        let reserved = self.quota.reserve(&*self.store, limits, has_scopes, upload);
        let reserved = reserved.await;
        match reserved.map_err(|error| self.store_failed(Some(&upload.id), error)) {
            Err(error) if error.is_retryable() => match self.status(upload).await? {
                None => Err(error),
                // It is not new: another server has created it, or it is delivered.
                Some(_) => Ok(None),
            },
            reserved => reserved.map(Some),
        }
    }

    /// Reads a body of at most `max` bytes.
    async fn read_all<B>(
        &self,
        head: &Parts,
        body: &mut Paced<B>,
        max: u64,
    ) -> Result<Vec<u8>, Error>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
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
    /// at once: if possible until the `pause` before the next delivery has ended.
    async fn refuse(&self, reply: &Reply, error: Error, pause: Duration) -> Response<Bytes> {
        let mut left = Duration::ZERO;
        if error.is_retryable() {
            let hold_back = self.config.hold_back;
            let longest = hold_back.saturating_mul(HELD_TIMES);
            let held = pause.clamp(hold_back, longest);
            tokio::time::sleep(held).await;
            left = pause.saturating_sub(held);
        }
        let mut response = reply.encode(Outcome::Failed(&error));
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

/// An admitted chunk.
struct Chunk {
    upload: Upload,
    offset: u64,
    len: Option<u64>,
    /// The two lengths that it can have, if it is one of two.
    lengths: Option<[u64; 2]>,
    max_len: u64,
    digest: Option<Expected>,
}

impl Chunk {
    /// Checks that a body of at least `least` and at most `most` bytes can have the right length.
    fn check(&self, least: u64, most: Option<u64>) -> Result<(), Error> {
        let expected = self.len.unwrap_or(self.max_len);
        let received = match most {
            Some(most) if self.len.is_some_and(|len| most < len) => most,
            _ if least > expected => least,
            _ => return Ok(()),
        };
        Err(Reason::ChunkLength { expected, received }.into())
    }
}

/// The most bytes of a form with a file of at most this many bytes.
fn form_bytes(file: u64, is_encoded: bool) -> u64 {
    // Base64 takes a third more, and line breaks.
    let encoding = if is_encoded { file / 2 } else { 0 };
    file.saturating_add(encoding).saturating_add(FORM_BYTES)
}

/// What a form contained.
enum Written {
    /// A chunk. `None` if the client continues an upload that is gone.
    Stored(Option<(Upload, Progress)>),
    /// A question about what is stored.
    Asked(Look, Scope),
}

/// The fields of a form, for the reader of its parts.
struct Fields<'a>(&'a mut dyn Form);

impl multipart::Fields for Fields<'_> {
    fn is_file(&self, name: &str, is_text: bool) -> bool {
        self.0.is_file(name, is_text)
    }

    fn is_chunk(&self) -> bool {
        self.0.is_chunk()
    }

    fn late_field(&mut self, name: String, value: String) -> Result<(), Error> {
        self.0.late_field(name, value)
    }
}

/// A spooled file that is read again.
struct Reread(Content);

impl Body for Reread {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = Pin::new(&mut self.0).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(unreadable)))
    }
}

/// An error of the store, not of the client.
fn unreadable(error: io::Error) -> BoxError {
    Error::from(StoreError::from(error)).into()
}
