//! The one async path of an upload request: scope, limits, body into the store, answer.

use std::{
    pin::{Pin, pin},
    sync::Arc,
};

use bytes::Bytes;
use futures_core::Stream;
use http::{Method, Request, Response, header, request::Parts};
use http_body::Body;
use tower_service::Service;

use crate::{
    BoxError, Purpose, ResponseBody, UploadError,
    body::digest::Expected,
    body::multipart::{self, Form, FormLimits, Item, Octets},
    body::{pace::Guarded, sniff::Sniffed},
    config::Config,
    engine::Engine,
    engine::deliver::{self, Asks, Delivered},
    engine::quota::Reading,
    fault,
    limits::DRAIN,
    protocol::chunked::{
        self, Answers, Chunk, Dialect, Extra, Identity, InOrder, Intent, Params, Transport, answer,
    },
    store::{ChunkBody, Progress, Status, StoreError, Upload, random_id},
};

/// Answers a request that is not for the inner service as it is.
pub(crate) async fn handle<S, B, R>(
    shared: Arc<Engine>,
    inner: S,
    intent: Result<Intent, UploadError>,
    mut answers: Answers,
    parts: Parts,
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
    let mut body = Guarded::new(body, shared.config.limits.pace);
    let outcome = match intent {
        Ok(Intent::Probe(chunk, extra)) => shared.probe(&parts, answers, &chunk, extra).await,
        Ok(Intent::BlindProbe) => Ok(answer::missing()),
        Ok(Intent::List) => shared.list(&parts).await,
        Ok(Intent::Create(total)) => shared.create(&parts, &mut body, total).await,
        Ok(Intent::Status(chunk, extra)) => shared.status(&parts, answers, &chunk, extra).await,
        Ok(Intent::Cancel(identity, extra)) => shared.cancel(&parts, &identity, extra).await,
        Ok(Intent::Finish) => match shared.finished(&parts, &mut body).await {
            Ok(Some(upload)) => {
                let request = drained(parts, body.into_inner());
                return deliver(&shared, inner, request, upload, answers).await;
            }
            Ok(None) => Ok(answer::reset()),
            Err(error) => Err(error),
        },
        Ok(Intent::Put(mut params, transport)) => {
            let received = shared.put(&parts, &mut body, &mut params, transport).await;
            // The form has told whose it is.
            if let Some(dialect) = shared.config.dialects.of(&params) {
                answers = dialect.answers(&params);
            }
            match received {
                Ok(Received::Chunk(upload, progress)) if progress.complete => {
                    let request = drained(parts, body.into_inner());
                    return deliver(&shared, inner, request, upload, answers).await;
                }
                Ok(Received::Chunk(upload, progress)) => {
                    shared.progress(answers, &upload, progress).await
                }
                Ok(Received::Test(chunk, extra)) => {
                    shared.probe(&parts, answers, &chunk, extra).await
                }
                Ok(Received::Lost) => {
                    shared.drain(&mut body).await;
                    Ok(answer::reset())
                }
                Err(error) => Err(error),
            }
        }
        // The service hands these on itself.
        Ok(Intent::Pass) => Err(UploadError::MethodNotAllowed),
        Err(error) => Err(error),
    };
    match outcome {
        Ok(response) => response,
        Err(error) => {
            shared.drain(&mut body).await;
            shared.refuse(answers, error, 0).await
        }
    }
}

/// What a request that seemed to bring a chunk has brought.
enum Received {
    Chunk(Upload, Progress),
    /// No file: a test.
    Test(Chunk, Extra),
    /// A part of what its client believes to be here, and is not.
    Lost,
}

async fn deliver<S, B, R>(
    shared: &Engine,
    inner: S,
    request: Request<B>,
    upload: Upload,
    answers: Answers,
) -> Response<ResponseBody<R>>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    match deliver::deliver(shared, inner, request, upload, Asks::Application).await {
        Ok(Delivered { record, response }) => match response {
            // Such a client reads a form of it that not all services give.
            Some(mut response) if !answers.shapes_results() => {
                answer::translate(answers, &mut response, record.size);
                response
            }
            _ => answer::recorded(answers, record),
        },
        Err((error, attempt)) => shared.refuse(answers, error, attempt).await,
    }
}

/// The request as the inner service gets it: its body is read, so what describes it would lie.
fn drained<B>(mut parts: Parts, body: B) -> Request<B> {
    for name in [
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::TRANSFER_ENCODING,
    ] {
        parts.headers.remove(name);
    }
    Request::from_parts(parts, body)
}

impl Engine {
    async fn probe<R>(
        &self,
        parts: &Parts,
        answers: Answers,
        chunk: &Chunk,
        extra: Extra,
    ) -> Result<Response<ResponseBody<R>>, UploadError> {
        self.config.check(chunk)?;
        let upload = self.config.upload(self.scope(parts)?, chunk, extra);
        self.ask(Purpose::Test, parts, &upload).await?;
        Ok(match self.look(&upload).await? {
            status if answers.list.is_some() => answer::list(answers, chunk, &status),
            Status::Receiving(ranges)
                if ranges.covers(chunk.offset, chunk.len.unwrap_or(chunk.max_len)) =>
            {
                answer::progress(answers, ranges.total(), chunk.identity.total)
            }
            Status::Settled(record) if record.delivered => answer::recorded(answers, record),
            // A client that is told "have it" everywhere never sends again. So a complete upload
            // that nobody has taken yet, or that was refused, is not here: what the client then
            // sends is answered with a new attempt, or with the refusal.
            _ => answer::missing(),
        })
    }

    async fn progress<R>(
        &self,
        answers: Answers,
        upload: &Upload,
        progress: Progress,
    ) -> Result<Response<ResponseBody<R>>, UploadError> {
        let mut response = answer::progress(answers, progress.received, upload.total);
        if answers.in_order == Some(InOrder::Range) {
            let status = self.look(upload).await?;
            answer::say_range(&mut response, answer::prefix(&status, upload.total));
        }
        Ok(response)
    }

    async fn status<R>(
        &self,
        parts: &Parts,
        answers: Answers,
        chunk: &Chunk,
        extra: Extra,
    ) -> Result<Response<ResponseBody<R>>, UploadError> {
        let upload = self.config.upload(self.scope(parts)?, chunk, extra);
        self.ask(Purpose::Status, parts, &upload).await?;
        let status = self.look(&upload).await?;
        Ok(match answers.in_order {
            Some(InOrder::UploadOffset) if parts.method == Method::HEAD => {
                answer::upload_offset(&status, chunk.identity.total)
            }
            _ => answer::status(chunk, &status),
        })
    }

    /// What the owner of this request has not finished.
    async fn list<R>(&self, parts: &Parts) -> Result<Response<ResponseBody<R>>, UploadError> {
        let scope = self.scope(parts)?;
        let hooks = &self.config.hooks;
        hooks.admit(Purpose::List, parts, &scope, None).await?;
        let uploads = self.store.unfinished(Some(&scope)).await;
        Ok(answer::uploads(uploads.map_err(store_error)?))
    }

    /// A name for an upload whose client wants one first. Nothing is stored before its first byte.
    async fn create<B, R>(
        &self,
        parts: &Parts,
        body: &mut B,
        total: u64,
    ) -> Result<Response<ResponseBody<R>>, UploadError>
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        let scope = self.scope(parts)?;
        self.config.check_total(total)?;
        let random = random_id().map_err(store_error)?;
        let identity = Identity {
            identifier: chunked::created_identifier(&random, total),
            total,
            file_name: None,
            relative_path: None,
            is_unique: true,
        };
        let upload = self.config.named(scope, &identity);
        self.ask(Purpose::Create, parts, &upload).await?;
        self.drain(body).await;
        Ok(answer::created(identity.identifier))
    }

    async fn cancel<R>(
        &self,
        parts: &Parts,
        identity: &Identity,
        extra: Extra,
    ) -> Result<Response<ResponseBody<R>>, UploadError> {
        let upload = Upload {
            fields: extra,
            ..self.config.named(self.scope(parts)?, identity)
        };
        self.ask(Purpose::Cancel, parts, &upload).await?;
        self.forget(&upload).await?;
        // Whether there was anything to forget is nobody's business.
        Ok(answer::missing())
    }

    /// The upload that a client believes to be complete, if it is.
    async fn finished<B>(&self, parts: &Parts, body: &mut B) -> Result<Option<Upload>, UploadError>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        let scope = self.scope(parts)?;
        let _reading = self.read_body(&scope)?;
        let mut form = Vec::new();
        let digest = Expected::of_content(parts)?;
        let stream = pin!(Octets::new(body, digest));
        let mut pieces = ChunkBody::new(stream, None, Params::MAX);
        while let Some(piece) = pieces.next().await {
            form.extend_from_slice(&piece.map_err(|error| match error {
                UploadError::ChunkLength { .. } => UploadError::TooManyFields,
                error => error,
            })?);
        }
        let params = Params::from_form(&form)?;
        let (chunk, fields) = self.config.dialects.finished(&params)?;
        self.config.check(&chunk)?;
        let upload = self.config.upload(scope, &chunk, fields);
        self.ask(Purpose::Status, parts, &upload).await?;
        let status = self.look(&upload).await?;
        let is_complete = matches!(status, Status::Complete | Status::Settled(_));
        Ok(is_complete.then_some(upload))
    }

    async fn put<B>(
        &self,
        parts: &Parts,
        body: &mut B,
        params: &mut Params,
        transport: Transport,
    ) -> Result<Received, UploadError>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        // The scope is known before a byte of the body is read.
        let scope = self.scope(parts)?;
        let _reading = self.read_body(&scope)?;
        let digest = Expected::of_content(parts)?;
        match transport {
            Transport::Octets => {
                let dialects = &self.config.dialects;
                let dialect = dialects.of(params).ok_or_else(|| dialects.unknown())?;
                let admitted = self.admit(parts, scope, dialect, params).await?;
                let Some((chunk, upload)) = admitted else {
                    return Ok(Received::Lost);
                };
                let stream = pin!(Octets::new(body, digest));
                let digest = self.chunk_digest(params)?;
                let progress = self.store_chunk(&chunk, &upload, stream, digest).await?;
                Ok(Received::Chunk(upload, progress))
            }
            Transport::Whole => {
                let total = match body.is_end_stream() {
                    true => Some(0),
                    false => chunked::content_length(&parts.headers),
                };
                let total = total.ok_or_else(|| UploadError::MissingField {
                    name: header::CONTENT_LENGTH.to_string(),
                })?;
                let (chunk, upload) = self.admit_whole(parts, scope, params, total).await?;
                let stream = pin!(Octets::new(body, digest));
                let digest = self.chunk_digest(params)?;
                let progress = self.store_chunk(&chunk, &upload, stream, digest).await?;
                Ok(Received::Chunk(upload, progress))
            }
            Transport::Multipart { boundary } => {
                let form = Form::new(&mut *body, boundary, digest, FormLimits::default());
                self.put_form(parts, scope, form, params).await
            }
        }
    }

    async fn put_form(
        &self,
        parts: &Parts,
        scope: String,
        mut form: Form<'_>,
        params: &mut Params,
    ) -> Result<Received, UploadError> {
        let dialects = &self.config.dialects;
        loop {
            match form
                .next(&|part, is_text| dialects.is_file(params, part, is_text))
                .await?
            {
                Item::Text { name, value } => params.push_body(name, value),
                Item::File => break,
                Item::End => {
                    let dialect = dialects.of(params).ok_or_else(|| dialects.unknown())?;
                    if let Some(chunk) = dialect.form_test(params)? {
                        return Ok(Received::Test(chunk, dialect.extra(params)));
                    }
                    // Name what is missing first: without the fields the file is no help either.
                    dialect.chunk(params)?;
                    return Err(UploadError::MissingFile {
                        name: dialect.file_field(),
                    });
                }
            }
        }
        params.set_part(form.file_part().cloned().unwrap_or_default());
        match dialects.of(params) {
            Some(dialect) if dialect.knows_where(params) => {
                self.put_file(parts, scope, dialect, form, params).await
            }
            _ => self.put_spooled(parts, scope, form, params).await,
        }
    }

    /// Stores the file of a form that has said where it belongs.
    async fn put_file(
        &self,
        parts: &Parts,
        scope: String,
        dialect: &Dialect,
        mut form: Form<'_>,
        params: &mut Params,
    ) -> Result<Received, UploadError> {
        let admitted = self.admit(parts, scope, dialect, params).await?;
        let Some((chunk, mut upload)) = admitted else {
            return Ok(Received::Lost);
        };
        let digest = self.chunk_digest(params)?;
        let mut on_late = |name: String, value: String| {
            if self.config.is_chunk_digest(&name) {
                let reason = "comes after the file";
                return Err(UploadError::InvalidField { name, reason });
            }
            let ours = dialect.is_ours(&name);
            params.push_body(name.clone(), value);
            if ours && dialect.chunk(params)? != chunk {
                return Err(UploadError::ConflictingField { name });
            }
            Ok(())
        };
        let is_file = |part: &str, is_text| dialect.is_file(part, is_text);
        let content = pin!(form.content(&is_file, &mut on_late));
        let progress = self.store_chunk(&chunk, &upload, content, digest).await?;
        // Those that came after the file too.
        upload.fields = dialect.extra(params);
        Ok(Received::Chunk(upload, progress))
    }

    /// Keeps the file of a form until it is known where it belongs, or that it belongs nowhere: then
    /// it is a file of its own.
    async fn put_spooled(
        &self,
        parts: &Parts,
        scope: String,
        mut form: Form<'_>,
        params: &mut Params,
    ) -> Result<Received, UploadError> {
        let dialects = &self.config.dialects;
        let (spool, len) = {
            let mut on_late = |name: String, value: String| {
                params.push_body(name, value);
                Ok(())
            };
            let is_file = |part: &str, is_text| dialects.can_be_file(part, is_text);
            let content = pin!(form.content(&is_file, &mut on_late));
            let mut body = ChunkBody::new(content, None, self.config.limits.chunk_size);
            let spool = self.store.spool(&mut body).await.map_err(store_error)?;
            (spool, body.received())
        };
        let (chunk, upload) = match dialects.of(params) {
            Some(dialect) => {
                dialect.add_total(params, len);
                match self.admit(parts, scope, dialect, params).await? {
                    Some(admitted) => admitted,
                    None => return Ok(Received::Lost),
                }
            }
            None if self.config.plain_uploads && chunked::is_whole_file(parts, params) => {
                self.admit_whole(parts, scope, params, len).await?
            }
            None => return Err(dialects.unknown()),
        };
        let stream = pin!(spool.into_stream());
        let digest = self.chunk_digest(params)?;
        let progress = self.store_chunk(&chunk, &upload, stream, digest).await?;
        Ok(Received::Chunk(upload, progress))
    }

    /// What the fields say, if it is allowed; `None` if the client goes on, without having asked, with
    /// an upload that is gone.
    async fn admit(
        &self,
        parts: &Parts,
        scope: String,
        dialect: &Dialect,
        params: &Params,
    ) -> Result<Option<(Chunk, Upload)>, UploadError> {
        let chunk = dialect.chunk(params)?;
        self.config.check(&chunk)?;
        let upload = self.config.upload(scope, &chunk, dialect.extra(params));
        if dialect.is_resumed(params) {
            if let Status::Absent = self.look(&upload).await? {
                return Ok(None);
            }
        }
        self.ask(Purpose::Chunk, parts, &upload).await?;
        Ok(Some((chunk, upload)))
    }

    /// A file of no chunk client, if it is allowed.
    async fn admit_whole(
        &self,
        parts: &Parts,
        scope: String,
        params: &Params,
        len: u64,
    ) -> Result<(Chunk, Upload), UploadError> {
        let identifier = random_id().map_err(store_error)?;
        let chunk = chunked::whole_file(params, identifier, len)?;
        self.config.check(&chunk)?;
        let upload = self.config.upload(scope, &chunk, params.extra(|_| false));
        self.ask(Purpose::Chunk, parts, &upload).await?;
        Ok((chunk, upload))
    }

    /// What the client says that the bytes of this chunk are.
    fn chunk_digest(&self, params: &Params) -> Result<Option<Expected>, UploadError> {
        let Some((name, algorithm)) = &self.config.chunk_digest else {
            return Ok(None);
        };
        let value = params.one(name)?;
        let digest = value.map(|value| Expected::of_field(name, *algorithm, &value));
        digest.transpose()
    }

    async fn store_chunk(
        &self,
        chunk: &Chunk,
        upload: &Upload,
        stream: Pin<&mut (dyn Stream<Item = Result<Bytes, UploadError>> + Send)>,
        digest: Option<Expected>,
    ) -> Result<Progress, UploadError> {
        let is_new = self.book(upload).await?;
        let max = chunk.max_len.min(self.config.limits.chunk_size);
        let sniff = self.config.hooks.sniff.as_ref();
        let sniff = sniff.filter(|_| chunk.offset == 0);
        let stream = pin!(Sniffed::new(stream, sniff, upload));
        let mut body = ChunkBody::new(stream, chunk.len, max).expecting(digest);
        let stored = self.store.put(upload, chunk.offset, &mut body).await;
        let stored = stored.map_err(store_error);
        if let Err(error) = &stored {
            if matches!(error, UploadError::Refused(refusal) if !refusal.is_transient()) {
                // Other chunks of the same file may be here; what is left is swept.
                let _ = self.forget(upload).await;
            }
            if is_new && matches!(self.look(upload).await, Ok(Status::Absent)) {
                self.ledger.strike(&upload.key);
            }
        }
        stored
    }

    /// The owner of what this request is about.
    fn scope(&self, parts: &Parts) -> Result<String, UploadError> {
        Ok(self.config.hooks.scope(parts)?)
    }

    /// Asks the application whether a request is let in.
    async fn ask(
        &self,
        purpose: Purpose,
        parts: &Parts,
        upload: &Upload,
    ) -> Result<(), UploadError> {
        let hooks = &self.config.hooks;
        let asked = hooks.admit(purpose, parts, &upload.scope, Some(upload));
        Ok(asked.await?)
    }

    async fn look(&self, upload: &Upload) -> Result<Status, UploadError> {
        self.store.status(&upload.key).await.map_err(store_error)
    }

    /// Removes an upload, if nobody delivers it.
    async fn forget(&self, upload: &Upload) -> Result<(), UploadError> {
        let removed = self.store.remove(&upload.key).await.map_err(store_error)?;
        if removed {
            self.ledger.strike(&upload.key);
        }
        Ok(())
    }

    fn read_body(&self, scope: &str) -> Result<Reading, UploadError> {
        let Config { hooks, limits, .. } = &self.config;
        self.ledger.read_body(limits, hooks.scope.is_some(), scope)
    }

    /// Counts an upload as unfinished, if there may be one more; whether it was not counted before.
    async fn book(&self, upload: &Upload) -> Result<bool, UploadError> {
        let Config { hooks, limits, .. } = &self.config;
        let has_scopes = hooks.scope.is_some();
        let booked = self.ledger.book(&*self.store, limits, has_scopes, upload);
        match booked.await {
            Err(error) if error.is_transient() => match self.look(upload).await? {
                Status::Absent => Err(error),
                // It is no new one, but one that another server has begun, or that is delivered.
                _ => Ok(false),
            },
            booked => booked,
        }
    }

    /// Reads what is left of a body, within bounds: a client that is still sending when the answer
    /// comes sees a broken connection instead.
    async fn drain<B>(&self, body: &mut B)
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        let (bytes, time) = DRAIN;
        let _ = tokio::time::timeout(time, multipart::drain(body, bytes)).await;
    }

    /// The answer to an error. The transient ones are held back, the longer the more often it was
    /// tried, because clients try again at once.
    async fn refuse<R>(
        &self,
        answers: Answers,
        error: UploadError,
        attempt: u32,
    ) -> Response<ResponseBody<R>> {
        if error.is_transient() {
            let delay = self.config.hold_back * (1 << attempt.saturating_sub(1).min(3));
            tokio::time::sleep(delay).await;
        }
        answer::error(&self.config, answers, error)
    }
}

pub(crate) fn store_error(error: StoreError) -> UploadError {
    fault::report(&error);
    match error {
        StoreError::Body(error) => error,
        StoreError::Superseded => UploadError::Superseded,
        StoreError::TooManyRanges => UploadError::TooManyRanges,
        StoreError::Full(_) => UploadError::StorageFull,
        StoreError::TooLarge { limit } => UploadError::FileTooLarge { limit },
        StoreError::Busy => UploadError::Busy,
        StoreError::Failed(_) => UploadError::Storage,
    }
}
