//! The one async path of an upload request: scope, limits, body into the store, answer.

use std::{
    pin::{Pin, pin},
    sync::Arc,
};

use bytes::Bytes;
use http::{Request, Response, header, request::Parts};
use http_body::Body;
use tower_service::Service;

use crate::{
    BoxError, ResponseBody, UploadError, answer,
    deliver::{self, Delivered},
    dialect::{Chunk, FieldRole, Identity, Intent, Params, Transport},
    fault,
    layer::Shared,
    multipart::{self, Form, FormLimits, Fused, Item, Octets},
    store::{ChunkBody, Progress, Status, StoreError, Upload},
};

/// Answers a request that is not for the inner service as it is.
pub(crate) async fn handle<S, B, R>(
    shared: Arc<Shared>,
    inner: S,
    intent: Result<Intent, UploadError>,
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
    let mut body = Fused::new(body);
    let outcome = match intent {
        Ok(Intent::Probe(chunk)) => shared.probe(&parts, &chunk).await,
        Ok(Intent::Status(chunk)) => shared.status(&parts, &chunk).await,
        Ok(Intent::Cancel(identity)) => shared.cancel(&parts, &identity).await,
        Ok(Intent::Put(params, transport)) => {
            match shared.put(&parts, &mut body, params, transport).await {
                Ok((upload, progress)) if progress.complete => {
                    let request = drained(parts, body.into_inner());
                    return deliver(&shared, inner, request, upload).await;
                }
                Ok((upload, progress)) => Ok(answer::progress(progress.received, upload.total)),
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
            shared.refuse(error, 0).await
        }
    }
}

async fn deliver<S, B, R>(
    shared: &Shared,
    inner: S,
    request: Request<B>,
    upload: Upload,
) -> Response<ResponseBody<R>>
where
    S: Service<Request<B>, Response = Response<R>> + Send + 'static,
    S::Future: Send,
    S::Error: Send,
    B: Send + 'static,
    R: Body<Data = Bytes> + Send + 'static,
{
    match deliver::deliver(shared, inner, request, upload).await {
        Ok(Delivered::Now(mut response)) => {
            answer::translate(&mut response);
            response
        }
        Ok(Delivered::Before(record)) => answer::recorded(record),
        Err((error, attempt)) => shared.refuse(error, attempt).await,
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

impl Shared {
    async fn probe<R>(
        &self,
        parts: &Parts,
        chunk: &Chunk,
    ) -> Result<Response<ResponseBody<R>>, UploadError> {
        self.config.check(chunk)?;
        let key = self.config.key(&self.config.scope(parts)?, &chunk.identity);
        Ok(match self.store.status(&key).await.map_err(store_error)? {
            Status::Receiving(ranges)
                if ranges.covers(chunk.offset, chunk.len.unwrap_or(chunk.max_len)) =>
            {
                answer::progress(ranges.total(), chunk.identity.total)
            }
            Status::Settled(record) if record.delivered => answer::recorded(record),
            // A client that is told "have it" everywhere never sends again. So a complete upload
            // that nobody has taken yet, or that was refused, is not here: what the client then
            // sends is answered with a new attempt, or with the refusal.
            _ => answer::missing(),
        })
    }

    async fn status<R>(
        &self,
        parts: &Parts,
        chunk: &Chunk,
    ) -> Result<Response<ResponseBody<R>>, UploadError> {
        let key = self.config.key(&self.config.scope(parts)?, &chunk.identity);
        let status = self.store.status(&key).await.map_err(store_error)?;
        Ok(answer::status(chunk, &status))
    }

    async fn cancel<R>(
        &self,
        parts: &Parts,
        identity: &Identity,
    ) -> Result<Response<ResponseBody<R>>, UploadError> {
        let key = self.config.key(&self.config.scope(parts)?, identity);
        self.store.remove(&key).await.map_err(store_error)?;
        // Whether there was anything to forget is nobody's business.
        Ok(answer::missing())
    }

    async fn put<B>(
        &self,
        parts: &Parts,
        body: &mut B,
        mut params: Params,
        transport: Transport,
    ) -> Result<(Upload, Progress), UploadError>
    where
        B: Body + Send + Unpin,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        // The scope is known before a byte of the body is read.
        let scope = self.config.scope(parts)?;
        match transport {
            Transport::Octets => {
                let (chunk, upload) = self.admit(scope, &params)?;
                let stream = pin!(Octets::new(body));
                let progress = self.store_chunk(&chunk, &upload, stream).await?;
                Ok((upload, progress))
            }
            Transport::Multipart { boundary } => {
                let form = Form::new(&mut *body, boundary, FormLimits::default());
                let (mut upload, progress) = self.put_form(scope, form, &mut params).await?;
                // Those that came after the file too.
                upload.fields = self.config.dialect.extra(&params);
                Ok((upload, progress))
            }
        }
    }

    async fn put_form(
        &self,
        scope: String,
        mut form: Form<'_>,
        params: &mut Params,
    ) -> Result<(Upload, Progress), UploadError> {
        let dialect = &self.config.dialect;
        let is_file = |name: &str| dialect.role(name) == FieldRole::File;
        loop {
            match form.next(&is_file).await? {
                Item::Text { name, value } => params.push_body(name, value),
                Item::File => break,
                Item::End => {
                    // Name what is missing first: without the fields the file is no help either.
                    dialect.chunk(params)?;
                    return Err(UploadError::MissingFile {
                        name: dialect.file_parameter(),
                    });
                }
            }
        }
        if dialect.knows_where(params) {
            let (chunk, upload) = self.admit(scope, params)?;
            let mut on_late = |name: String, value: String| {
                let ours = dialect.is_ours(&name);
                params.push_body(name.clone(), value);
                if ours && dialect.chunk(params)? != chunk {
                    return Err(UploadError::ConflictingField { name });
                }
                Ok(())
            };
            let content = pin!(form.content(&is_file, &mut on_late));
            let progress = self.store_chunk(&chunk, &upload, content).await?;
            Ok((upload, progress))
        } else {
            let spool = {
                let mut on_late = |name: String, value: String| {
                    params.push_body(name, value);
                    Ok(())
                };
                let content = pin!(form.content(&is_file, &mut on_late));
                let mut body = ChunkBody::new(content, None, self.config.max_chunk_size);
                self.store.spool(&mut body).await.map_err(store_error)?
            };
            let (chunk, upload) = self.admit(scope, params)?;
            let progress = self
                .store_chunk(&chunk, &upload, pin!(spool.into_stream()))
                .await?;
            Ok((upload, progress))
        }
    }

    /// What the fields say, if it is allowed.
    fn admit(&self, scope: String, params: &Params) -> Result<(Chunk, Upload), UploadError> {
        let chunk = self.config.dialect.chunk(params)?;
        self.config.check(&chunk)?;
        let fields = self.config.dialect.extra(params);
        let upload = self.config.upload(scope, &chunk, fields);
        Ok((chunk, upload))
    }

    async fn store_chunk(
        &self,
        chunk: &Chunk,
        upload: &Upload,
        stream: Pin<&mut (dyn futures_core::Stream<Item = Result<Bytes, UploadError>> + Send)>,
    ) -> Result<Progress, UploadError> {
        let max = chunk.max_len.min(self.config.max_chunk_size);
        let mut body = ChunkBody::new(stream, chunk.len, max);
        self.store
            .put(upload, chunk.offset, &mut body)
            .await
            .map_err(store_error)
    }

    /// Reads what is left of a body, within bounds: a client that is still sending when the answer
    /// comes sees a broken connection instead.
    async fn drain<B>(&self, body: &mut B)
    where
        B: Body + Unpin,
        B::Error: Into<BoxError>,
    {
        let (bytes, time) = self.config.drain;
        let _ = tokio::time::timeout(time, multipart::drain(body, bytes)).await;
    }

    /// The answer to an error. The transient ones are held back, the longer the more often it was
    /// tried, because clients try again at once.
    async fn refuse<R>(&self, error: UploadError, attempt: u32) -> Response<ResponseBody<R>> {
        if error.is_transient() {
            let delay = self.config.hold_back * (1 << attempt.saturating_sub(1).min(3));
            tokio::time::sleep(delay).await;
        }
        answer::error(&self.config, error)
    }
}

pub(crate) fn store_error(error: StoreError) -> UploadError {
    fault::report(&error);
    match error {
        StoreError::Body(error) => error,
        StoreError::Superseded => UploadError::Superseded,
        StoreError::TooManyRanges => UploadError::TooManyRanges,
        StoreError::Full(_) => UploadError::StorageFull,
        StoreError::Failed(_) => UploadError::Storage,
    }
}
