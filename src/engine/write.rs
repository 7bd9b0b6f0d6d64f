//! Stores the bytes of a request: raw bodies, spooled bodies and forms.

use std::{
    io,
    pin::{Pin, pin},
    sync::Mutex,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    Engine,
    head::Head,
    quota::{Begun, Reservation, Spooling},
    receive::Found,
};
use crate::{
    body::{
        RequestBody, Source,
        digest::{Expected, Verified},
        multipart::{self, Decoded, Item},
        pace::Paced,
        raw::{OneOf, Pieces},
        sniff::Sniffed,
    },
    config::Config,
    error::{Error, Reason},
    events::Event,
    hooks::Purpose,
    limits::FORM_BYTES,
    lock::lock,
    model::{
        BoxError,
        state::Progress,
        upload::{Scope, Upload},
    },
    protocol::{FilePart, Form, Look, Outcome, Reply, Target, Write},
    store::{ChunkBody, DynClaim, StoreError, content::Content},
};

impl Engine {
    pub(super) async fn write<B: RequestBody>(
        &self,
        write: Write,
        head: &Head,
        scope: Scope,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error> {
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
                let target = place(len).map(Box::new)?;
                self.write_to(target, head, scope, exact, source.as_mut())
                    .await?
            }
            Write::Form { boundary, mut form } => {
                let limit = self.config.limits.chunk_size;
                // The file may be base64.
                if size.lower() > form_bytes(limit, true) {
                    return Err(Reason::ChunkTooLarge { limit }.into());
                }
                let mut parts = multipart::Form::new(&mut *body, boundary, digest);
                let written = self.write_form(&mut parts, &mut *form, head, scope, size);
                let written = written.await;
                // Only the parts of the form say which reply the client needs.
                *reply = form.reply();
                match written? {
                    Written::Stored(stored) => stored,
                    Written::Asked(look, scope) => {
                        return Box::pin(self.look(*look, head, scope, reply)).await;
                    }
                }
            }
        };
        let Some(ChunkStored {
            upload,
            progress,
            claim,
        }) = stored
        else {
            return Ok(Found::Response(reply.encode(Outcome::Gone)));
        };
        if progress.complete {
            let is_probe = false;
            return Ok(Found::Complete {
                upload,
                is_probe,
                claim,
            });
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
        target: Box<Target>,
        head: &Head,
        scope: Scope,
        size: SizeHint,
        source: Source<'_>,
    ) -> Result<Option<ChunkStored>, Error> {
        let Some(mut chunk) = self.admit_chunk(target, head, scope).await? else {
            return Ok(None);
        };
        chunk.check(size.lower(), size.upper())?;
        let (progress, claim) = self.store_chunk(&mut chunk, source, None).await?;
        Ok(Some(ChunkStored {
            upload: chunk.upload,
            progress,
            claim,
        }))
    }

    async fn write_form(
        &self,
        parts: &mut multipart::Form<'_>,
        form: &mut dyn Form,
        head: &Head,
        scope: Scope,
        size: SizeHint,
    ) -> Result<Written, Error> {
        let form = Mutex::new(form);
        loop {
            match parts.next(&Fields(&form)).await? {
                Item::Text { name, value } => lock(&form).field(name, value),
                Item::File => break,
                Item::End => {
                    let look = lock(&form).no_file().map(Box::new)?;
                    return Ok(Written::Asked(look, scope));
                }
            }
        }
        let head_of_part = parts.take_file_part();
        let part = FilePart {
            file_name: head_of_part.file_name,
            content_type: head_of_part.content_type,
        };
        let target = lock(&form).file(part)?.map(Box::new);
        let Some(target) = target else {
            return Box::pin(self.write_spooled(parts, &form, head, scope, size)).await;
        };
        let Some(mut chunk) = self.admit_chunk(target, head, scope).await? else {
            return Ok(Written::Stored(None));
        };
        let is_base64 = lock(&form).is_base64();
        if size.lower() > form_bytes(chunk.len.unwrap_or(chunk.max_len), is_base64) {
            chunk.check(size.lower(), None)?;
        }
        let mut late = Fields(&form);
        let content = pin!(parts.content(&mut late));
        let mut decoded = pin!(Decoded::new(content, is_base64));
        let fields = || lock(&form).fields();
        let stored = self.store_chunk(&mut chunk, decoded.as_mut(), Some(&fields));
        let (progress, claim) = stored.await?;
        // Including those after the file.
        chunk.upload.fields = fields();
        Ok(Written::Stored(Some(ChunkStored {
            upload: chunk.upload,
            progress,
            claim,
        })))
    }

    /// Spools the file of a form until the fields after it have said where it belongs.
    async fn write_spooled(
        &self,
        parts: &mut multipart::Form<'_>,
        form: &Mutex<&mut dyn Form>,
        head: &Head,
        scope: Scope,
        size: SizeHint,
    ) -> Result<Written, Error> {
        let spooling = self.spooling(head, &scope, size).await?;
        let (spooled, len) = {
            let mut fields = Fields(form);
            let mut content = pin!(parts.content(&mut fields));
            self.spool(spooling.max(), content.as_mut()).await?
        };
        let target = lock(form).place(len).map(Box::new)?;
        let source = pin!(Reread(spooled));
        let is_base64 = lock(form).is_base64();
        let mut source = pin!(Decoded::new(source, is_base64));
        let stored = self
            .write_to(target, head, scope, SizeHint::default(), source.as_mut())
            .await?;
        Ok(Written::Stored(stored))
    }

    /// Reserves room for a file whose length or target is not known yet, if the application admits
    /// it.
    async fn spooling(
        &self,
        head: &Head,
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
        target: Box<Target>,
        head: &Head,
        scope: Scope,
    ) -> Result<Option<Box<Chunk>>, Error> {
        self.config.check(target.upload.length, target.len)?;
        let digest = match (&self.config.digests.chunk, &target.digest) {
            (Some((name, algorithm)), Some(value)) => {
                Some(Expected::of_field(name, *algorithm, value)?)
            }
            _ => None,
        };
        let must_exist = target.must_exist;
        let chunk = Box::new(Chunk {
            offset: target.offset,
            len: target.len,
            lengths: target.other_len.map(|other| [target.max_len, other]),
            max_len: target.max_len.min(self.config.limits.chunk_size),
            digest,
            upload: self.upload(target.upload, head, scope)?,
        });
        if must_exist && self.status(&chunk.upload).await?.is_none() {
            return Ok(None);
        }
        self.admit(Purpose::Chunk, head, &chunk.upload).await?;
        Ok(Some(chunk))
    }

    async fn store_chunk(
        &self,
        chunk: &mut Chunk,
        source: Source<'_>,
        fields: Option<&(dyn Fn() -> Vec<(String, String)> + Send + Sync)>,
    ) -> Result<(Progress, Option<Box<dyn DynClaim>>), Error> {
        let (upload, offset) = (&chunk.upload, chunk.offset);
        let reserved = Box::pin(self.reserve(upload)).await?;
        // Only this process knows without asking the store. For the others the record ends soon.
        if offset == 0 && self.outcomes.is_rejected(&upload.id) {
            self.forget_rejection(upload).await?;
        }
        let sniff = self.config.hooks.sniff.as_ref().filter(|_| offset == 0);
        let source = pin!(OneOf::new(source, chunk.lengths));
        let sniffed = pin!(Sniffed::new(source, sniff, upload));
        let mut verified = pin!(Verified::new(sniffed, chunk.digest.take()));
        let body = ChunkBody::new(verified.as_mut(), chunk.len, chunk.max_len);
        let mut body = body.with_fields(fields);
        let begun = Instant::now();
        let written = self.store.write_and_claim(upload, offset, &mut body).await;
        match written.map_err(|error| self.store_failed(Some(&upload.id), error)) {
            Ok((progress, claim)) => {
                let chunk = Stored {
                    offset,
                    bytes: body.received(),
                    duplicate: body.duplicate(),
                    elapsed: begun.elapsed(),
                };
                self.stored(upload, Some(chunk), progress, reserved);
                Ok((progress, claim))
            }
            Err(error) => {
                if error.refusal().is_some() && !error.is_retryable() {
                    // Other chunks of the file may be stored. If the upload cannot be removed now,
                    // it is swept later, and the operator is told.
                    let _ = self.remove(upload, Some(&error)).await;
                }
                if let Some(reserved) = reserved.filter(Reservation::needs_status) {
                    // If that is unknown, the upload stays counted.
                    if let Ok(status) = self.status(upload).await {
                        reserved.found(status.as_ref());
                    }
                }
                Err(error)
            }
        }
    }

    /// Tells the operator that a chunk is stored, and what that means for its upload. Without a
    /// chunk: that an upload is created without bytes, or of other uploads.
    pub(super) fn stored(
        &self,
        upload: &Upload,
        chunk: Option<Stored>,
        progress: Progress,
        reserved: Option<Reservation>,
    ) {
        let new = chunk
            .as_ref()
            .map_or(0, |chunk| chunk.bytes.saturating_sub(chunk.duplicate));
        // A late chunk that is a duplicate says nothing of its upload. Appends are never that.
        let is_late = chunk.as_ref().is_some_and(|chunk| chunk.bytes > 0) && new == 0;
        let is_new = !is_late && (new > 0 || upload.is_empty_file() || upload.creation.is_some());
        let kept = reserved.map(|reserved| reserved.keep(is_new, progress.complete));
        let events = &self.config.events;
        match kept.as_ref().map(|kept| kept.begun) {
            Some(Begun::Created) => events.emit(&Event::Created { upload }),
            Some(Begun::Resumed) if !progress.complete || new > 0 => {
                let received = progress.received.saturating_sub(new);
                events.emit(&Event::Resumed { upload, received });
            }
            _ => {}
        }
        if let Some(chunk) = chunk {
            events.emit(&Event::Stored {
                upload,
                offset: chunk.offset,
                bytes: chunk.bytes,
                duplicate: chunk.duplicate,
                progress,
                elapsed: chunk.elapsed,
            });
        }
        // Two chunks can find that they have completed the upload.
        if kept.map_or(progress.complete && is_new, |kept| kept.has_completed) {
            events.emit(&Event::Completed { upload });
        }
    }

    /// Counts an upload as unfinished, if it is within the limits.
    pub(super) async fn reserve(&self, upload: &Upload) -> Result<Option<Reservation>, Error> {
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
}

/// A chunk that is stored.
pub(super) struct Stored {
    pub(super) offset: u64,
    /// Bytes that have arrived, and how many of them were stored before.
    pub(super) bytes: u64,
    pub(super) duplicate: u64,
    pub(super) elapsed: Duration,
}

/// An admitted chunk.
struct Chunk {
    upload: Box<Upload>,
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

/// A chunk of an upload, after it is stored.
struct ChunkStored {
    upload: Box<Upload>,
    progress: Progress,
    /// The claim, if the store has taken it.
    claim: Option<Box<dyn DynClaim>>,
}

/// What a form contained.
enum Written {
    /// A chunk. `None` if the client continues an upload that is gone.
    Stored(Option<ChunkStored>),
    /// A question about what is stored.
    Asked(Box<Look>, Scope),
}

/// The fields of a form, for the reader of its parts.
struct Fields<'a, 'f>(&'a Mutex<&'f mut dyn Form>);

impl multipart::Fields for Fields<'_, '_> {
    fn is_file(&self, name: &str, is_text: bool) -> bool {
        lock(self.0).is_file(name, is_text)
    }

    fn is_chunk(&self) -> bool {
        lock(self.0).is_chunk()
    }

    fn late_field(&mut self, name: String, value: String) -> Result<(), Error> {
        lock(self.0).late_field(name, value)
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
