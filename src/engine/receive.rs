//! The async path of an upload request: scope, limits, body into the store, response.

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderName, Request, Response, header, request::Parts};
use http_body::{Body, Frame};
use tower_service::Service;

use super::{
    Engine,
    deliver::{Delivered, deliver},
    quota::BodyGuard,
    verify::Ask,
};
use crate::{
    body::{
        Source,
        digest::{Expected, Verified},
        multipart::{self, Decoded, Item},
        pace::Paced,
        raw::{OneOf, Pieces, drain},
        sniff::Sniffed,
    },
    config::Config,
    error::{Error, Reason},
    fault,
    hooks::Purpose,
    limits::DRAIN,
    model::{
        BoxError,
        state::{Progress, State, Status},
        upload::{Scope, Upload},
    },
    protocol::{
        Command, Create, Described, Exchange, FilePart, Form, Look, Outcome, Reply, Target, Write,
    },
    response::ResponseBody,
    route::sent_path,
    store::{ChunkBody, Filter, Keep, StoreError, content::Content, random_id},
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
    match found {
        Ok(Found::Response(response)) => response.map(ResponseBody::answer),
        Ok(Found::Complete(upload)) => {
            let request = delivered(head, body.into_inner(), reply.forwards_all());
            engine.complete(inner, request, upload, &reply).await
        }
        Err(error) => {
            engine.drain(&mut body).await;
            engine
                .refuse(&reply, error, 0)
                .await
                .map(ResponseBody::answer)
        }
    }
}

/// The result of a command.
enum Found {
    Response(Response<Bytes>),
    /// The upload is complete, and is to be delivered.
    Complete(Upload),
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
            let _reading = self.count_body(&scope)?;
            let exchange = then(&self.read_all(head, body, max).await?);
            *reply = exchange.reply;
            command = exchange.command?;
        }
        let response = match command {
            Command::Write(write) => {
                let _reading = self.count_body(&scope)?;
                return self.write(write, head, scope, body, reply).await;
            }
            Command::Conclude(described) => {
                return self.conclude(described, head, scope, reply).await;
            }
            Command::Look(look) => self.look(look, head, scope, reply).await?,
            Command::List { fields } => {
                let hooks = &self.config.hooks;
                hooks.admit(Purpose::List, head, &scope, None).await?;
                let mut uploads = self.unfinished(scope).await?;
                uploads.retain(|(upload, _)| {
                    let mut fields = fields.iter();
                    upload.is_at(sent_path(head))
                        && fields.all(|(name, value)| upload.field(name) == Some(value))
                });
                reply.encode(Outcome::Listed(&uploads))
            }
            Command::Create(create) => {
                let upload = self.name(create, head, scope).await?;
                self.drain(body).await;
                reply.encode(Outcome::Created(&upload))
            }
            Command::Remove(described) => {
                let upload = self.upload(described, head, scope)?;
                self.admit(Purpose::Cancel, head, &upload).await?;
                self.remove(&upload).await?;
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
            Some(State::Complete | State::Settled(_)) => Found::Complete(upload),
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
        let stored = match write {
            Write::Raw(target) => {
                let mut source = pin!(Pieces::new(&mut *body, digest));
                self.write_to(target, head, scope, source.as_mut()).await?
            }
            Write::Spool(place) => {
                let mut source = pin!(Pieces::new(&mut *body, digest));
                let (spooled, len) = self.spool(source.as_mut()).await?;
                let mut source = pin!(Reread(spooled));
                self.write_to(place(len)?, head, scope, source.as_mut())
                    .await?
            }
            Write::Form { boundary, mut form } => {
                let parts = multipart::Form::new(&mut *body, boundary, digest);
                let written = self.write_form(parts, &mut *form, head, scope).await;
                // Only the parts of the form say which reply the client needs.
                *reply = form.reply();
                match written? {
                    Written::Stored(stored) => stored,
                    Written::Asked(look, scope) => {
                        let response = self.look(look, head, scope, reply).await?;
                        return Ok(Found::Response(response));
                    }
                }
            }
        };
        let Some((upload, progress)) = stored else {
            self.drain(body).await;
            return Ok(Found::Response(reply.encode(Outcome::Gone)));
        };
        if progress.complete {
            return Ok(Found::Complete(upload));
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
        source: Source<'_>,
    ) -> Result<Option<(Upload, Progress)>, Error> {
        let Some(chunk) = self.admit_chunk(target, head, scope).await? else {
            return Ok(None);
        };
        self.store_chunk(chunk, source).await.map(Some)
    }

    async fn write_form(
        &self,
        mut parts: multipart::Form<'_>,
        form: &mut dyn Form,
        head: &Parts,
        scope: Scope,
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
            return self.write_spooled(parts, form, head, scope).await;
        };
        let Some(chunk) = self.admit_chunk(target, head, scope).await? else {
            return Ok(Written::Stored(None));
        };
        let is_base64 = form.is_base64();
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
    ) -> Result<Written, Error> {
        let (spooled, len) = {
            let mut fields = Fields(form);
            let mut content = pin!(parts.content(&mut fields));
            self.spool(content.as_mut()).await?
        };
        let target = form.place(len)?;
        let source = pin!(Reread(spooled));
        let mut source = pin!(Decoded::new(source, form.is_base64()));
        let stored = self.write_to(target, head, scope, source.as_mut()).await?;
        Ok(Written::Stored(stored))
    }

    /// Spools a file whose length or target is not known yet. Returns it with its length in bytes.
    async fn spool(&self, source: Source<'_>) -> Result<(Content, u64), Error> {
        let limit = self.config.limits.chunk_size;
        let mut body = ChunkBody::new(source, None, limit);
        let spooled = self.store.spool(&mut body).await;
        let spooled = spooled.inspect_err(fault::report).map_err(Error::from);
        let spooled = spooled.map_err(|error| match error.reason() {
            // No length was declared: the limit is exceeded.
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
        let is_new = self.reserve(&upload).await?;
        let sniff = self.config.hooks.sniff.as_ref().filter(|_| offset == 0);
        let source = pin!(OneOf::new(source, chunk.lengths));
        let sniffed = pin!(Sniffed::new(source, sniff, &upload));
        let mut verified = pin!(Verified::new(sniffed, chunk.digest));
        let mut body = ChunkBody::new(verified.as_mut(), chunk.len, chunk.max_len);
        let written = self
            .store
            .write(&upload, offset, &mut body, Keep::Whole)
            .await;
        match written.inspect_err(fault::report).map_err(Error::from) {
            Ok(progress) => Ok((upload, progress)),
            Err(error) => {
                if error.refusal().is_some() && !error.is_retryable() {
                    // Other chunks of the file may be stored. If the upload cannot be removed now,
                    // it is swept later.
                    let _ = self.remove(&upload).await;
                }
                if is_new && matches!(self.status(&upload).await, Ok(None)) {
                    self.quota.release(&upload.id);
                }
                Err(error)
            }
        }
    }

    /// Delivers a complete upload, and encodes the answer of the inner service.
    async fn complete<S, B, R>(
        &self,
        inner: S,
        request: Request<B>,
        upload: Upload,
        reply: &Reply,
    ) -> Response<ResponseBody<R>>
    where
        S: Service<Request<B>, Response = Response<R>> + Send + 'static,
        S::Future: Send,
        S::Error: Send,
        B: Send + 'static,
        R: Body<Data = Bytes> + Send + 'static,
    {
        let delivered = deliver(self, inner, request, upload.clone(), Ask::Application).await;
        let Delivered { record, response } = match delivered {
            Ok(delivered) => delivered,
            Err((error, attempt)) => {
                return self
                    .refuse(reply, error, attempt)
                    .await
                    .map(ResponseBody::answer);
            }
        };
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
    ) -> Result<Response<Bytes>, Error> {
        let Some(described) = look.upload else {
            return Ok(reply.encode(Outcome::State(None)));
        };
        if look.purpose == Purpose::Test {
            self.config.check(described.length, look.chunk_len)?;
        }
        let upload = self.upload(described, head, scope)?;
        self.admit(look.purpose, head, &upload).await?;
        let status = self.same(&upload).await?;
        Ok(reply.encode(Outcome::State(status.as_ref())))
    }

    /// The unfinished uploads of a scope.
    async fn unfinished(&self, scope: Scope) -> Result<Vec<(Upload, Progress)>, Error> {
        let (filter, mut after, mut found) =
            (Filter::default().with_scope(scope), None, Vec::new());
        loop {
            let page = self.store.list(&filter, after.as_ref()).await;
            let page = page.inspect_err(fault::report)?;
            found.extend(
                page.uploads
                    .into_iter()
                    .map(|listed| (listed.upload, listed.progress)),
            );
            after = page.next;
            if after.is_none() {
                return Ok(found);
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
        Ok(status.inspect_err(fault::report)?)
    }

    /// Removes an upload, unless it is being delivered.
    async fn remove(&self, upload: &Upload) -> Result<(), Error> {
        let removed = self.store.remove(&upload.id).await;
        if removed.inspect_err(fault::report)? {
            self.quota.release(&upload.id);
        }
        Ok(())
    }

    fn count_body(&self, scope: &Scope) -> Result<BodyGuard, Error> {
        let Config { hooks, limits, .. } = &*self.config;
        self.quota.read_body(limits, hooks.scope.is_some(), scope)
    }

    /// Counts an upload as unfinished, if it is within the limits. Returns whether it was not
    /// counted before.
    async fn reserve(&self, upload: &Upload) -> Result<bool, Error> {
        let Config { hooks, limits, .. } = &*self.config;
        let has_scopes = hooks.scope.is_some();
        let reserved = self.quota.reserve(&*self.store, limits, has_scopes, upload);
        match reserved.await {
            Err(error) if error.is_retryable() => match self.status(upload).await? {
                None => Err(error),
                // It is not new: another server has created it, or it is delivered.
                Some(_) => Ok(false),
            },
            reserved => reserved,
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

    /// Reads the rest of a body, within bounds. A client that is still sending when the connection
    /// closes may not see the response.
    async fn drain<B>(&self, body: &mut Paced<B>)
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        let (bytes, time) = DRAIN;
        // The response is sent in any case.
        let _ = tokio::time::timeout(time, drain(body, bytes)).await;
    }

    /// Encodes the response to an error. A retryable one is held back, longer after each attempt,
    /// because clients try again at once.
    async fn refuse(&self, reply: &Reply, error: Error, attempt: u32) -> Response<Bytes> {
        if error.is_retryable() {
            let factor = 1 << attempt.saturating_sub(1).min(3);
            tokio::time::sleep(self.config.hold_back.saturating_mul(factor)).await;
        }
        let mut response = reply.encode(Outcome::Failed(&error));
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
