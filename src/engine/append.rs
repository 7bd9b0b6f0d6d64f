//! Uploads that have a URL: creates them, appends bytes to them, and says what is stored.

use std::{
    pin::{Pin, pin},
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http_body::{Body, Frame};

use super::{
    Engine,
    head::Head,
    receive::{Found, check_coding, make_room},
    write::Stored,
};
use crate::{
    body::{
        RequestBody,
        digest::Expected,
        pace::Paced,
        raw::{Drained, Pieces, drain},
        sniff::Sniffed,
    },
    config::Config,
    error::{Error, ErrorKind, Reason},
    hooks::Purpose,
    model::{
        BoxError,
        state::{Progress, State, Status},
        upload::{Role, Scope, Upload},
    },
    protocol::{Data, Held, New, Outcome, Reply, Token, UrlCommand},
    route::sent_path,
    store::{Append, ChunkBody, Keep, random_id},
};

/// How many bytes of an upload of unknown length are counted ahead of those that have arrived.
const COUNTED_AHEAD: u64 = 1 << 20;

impl Engine {
    /// Does what a client of an upload with a URL asks for.
    pub(super) async fn at_url<B: RequestBody>(
        &self,
        command: UrlCommand,
        head: &Head,
        scope: Scope,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error> {
        let path = sent_path(head);
        let named = |token: Token| {
            let named = token.upload(scope.clone(), path);
            head.set_upload(named.id);
            named
        };
        match command {
            UrlCommand::Create { new, data } => {
                self.open(new, data, head, scope, body, reply).await
            }
            UrlCommand::Concat { new, token } => {
                let upload = new.upload(&token, scope, path)?;
                head.set_upload(upload.id);
                self.concat(upload, head, reply).await
            }
            UrlCommand::Append {
                token,
                offset,
                length,
                data,
            } => {
                let end = End { offset, length };
                self.append(named(token), end, data, head, body, reply)
                    .await
            }
            UrlCommand::Look(token) => self.look_at(named(token), head, reply).await,
            UrlCommand::Recall(token) => self.recall(named(token), head, reply).await,
            UrlCommand::Discard(token) => self.discard(named(token), head, reply).await,
        }
    }

    /// Creates an upload, with its first bytes if the request brings some.
    async fn open<B: RequestBody>(
        &self,
        new: New,
        data: Option<Data>,
        head: &Head,
        scope: Scope,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error> {
        if new.is_of_draft {
            // The coding of an empty request is that of all bytes too.
            check_coding(head)?;
            // It is checked before the delivery.
            Expected::of_representation(&head.headers)?;
        }
        self.config
            .check(new.length.or(new.creation.length), None)?;
        let mut upload = new.upload(&random_id()?, scope, sent_path(head))?;
        head.set_upload(upload.id);
        self.admit(Purpose::Create, head, &upload).await?;
        let Some(data) = data else {
            let status = self.create(&upload).await?;
            reply.created(&upload);
            self.announce(head, reply, &upload);
            return Ok(self.appended(upload, status.progress(), reply).await);
        };
        self.admit(Purpose::Chunk, head, &upload).await?;
        let end = End {
            offset: 0,
            length: None,
        };
        let declared = declared(&upload, &end, &data, body.size_hint().exact())?;
        let bytes = self.bytes(0, declared, &data, head, body)?;
        if data.ends.is_some() {
            upload.declare(declared);
        }
        self.create(&upload).await?;
        reply.created(&upload);
        let is_known = self.announce(head, reply, &upload);
        match self.append_body(&upload, bytes, head, body, reply).await {
            Ok(progress) => Ok(self.appended(upload, progress, reply).await),
            // The client asks at the URL what is stored. Perhaps it has already appended there: then
            // this request has come too late, and the upload is no longer its own.
            Err(error) if is_known => {
                self.invalidate(&upload, &error).await;
                Err(error)
            }
            Err(error) => {
                // The client does not know the URL, so it cannot go on. If the upload cannot be
                // removed now, it is swept later, and the operator is told.
                let _ = self.remove(&upload, None).await;
                Err(error)
            }
        }
    }

    /// Creates an upload without bytes, if it is within the limits.
    pub(super) async fn create(&self, upload: &Upload) -> Result<Status, Error> {
        let reserved = self.reserve(upload).await?;
        let created = self.store.create(upload).await;
        let created = created.map_err(|error| self.store_failed(Some(&upload.id), error));
        match (&created, reserved) {
            (Ok(status), reserved) => self.stored(upload, None, status.progress(), reserved),
            (Err(_), Some(reserved)) if reserved.needs_status() => {
                // If that is unknown, the upload stays counted.
                if let Ok(status) = self.status(upload).await {
                    reserved.found(status.as_ref());
                }
            }
            (Err(_), _) => {}
        }
        created
    }

    /// Appends the body of a request.
    async fn append<B: RequestBody>(
        &self,
        named: Upload,
        end: End,
        data: Data,
        head: &Head,
        body: &mut Paced<B>,
        reply: &mut Reply,
    ) -> Result<Found, Error> {
        let status = self.status(&named).await?;
        // The application is asked with all that is known, and before the client learns anything.
        let known = status.as_ref().map_or(&named, |status| &status.upload);
        self.admit(Purpose::Chunk, head, known).await?;
        let Status {
            mut upload, state, ..
        } = status.ok_or(Reason::NotFound)?;
        if is_concatenated(&upload) {
            return Err(Reason::Concatenated.into());
        }
        let End { offset, length } = end;
        if data.ends.is_none() {
            if upload.length.zip(length).is_some_and(|(a, b)| a != b) {
                return Err(Reason::Conflict.into());
            }
            upload.length = upload.length.or(length);
        }
        self.config.check(upload.length.or(length), None)?;
        if let State::Settled(_) = state {
            let stored = upload.length.unwrap_or_default();
            // A body of unknown length can be empty, too.
            return if offset == stored && drain(body, 0).await == Drained::ToTheEnd {
                Ok(Found::complete(upload))
            } else {
                Err(Reason::Offset { stored }.into())
            };
        }
        let declared = declared(&upload, &end, &data, body.size_hint().exact());
        let bytes = declared.and_then(|it| self.bytes(offset, it, &data, head, body));
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if is_of_length(&error) => {
                // The offset is checked first. The request that runs ends before.
                let stored = self.interrupt(&upload).await?.ok_or(Reason::NotFound)?;
                let stored = stored.prefix();
                if offset != stored {
                    return Err(Reason::Offset { stored }.into());
                }
                if data.ends.is_some() {
                    self.invalidate(&upload, &error).await;
                }
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        if data.ends.is_some() {
            upload.declare(bytes.declared);
        }
        match self.append_body(&upload, bytes, head, body, reply).await {
            Ok(progress) => Ok(self.appended(upload, progress, reply).await),
            Err(error) => {
                if data.ends.is_some() {
                    self.invalidate(&upload, &error).await;
                }
                Err(error)
            }
        }
    }

    /// Removes an upload whose client has sent more bytes than it has declared. A complete one
    /// stays.
    async fn invalidate(&self, upload: &Upload, error: &Error) {
        if *error.reason() != Reason::OutOfBounds {
            return;
        }
        // If it cannot be removed now, it is swept later, and the operator is told.
        if let Ok(Some(status)) = self.status(upload).await {
            if let State::Receiving(_) = status.state {
                let _ = self.remove(upload, None).await;
            }
        }
    }

    /// Checks what a request declares of the bytes in its body.
    fn bytes<B: RequestBody>(
        &self,
        offset: u64,
        declared: Option<u64>,
        data: &Data,
        head: &Head,
        body: &Paced<B>,
    ) -> Result<Incoming, Error> {
        check_coding(head)?;
        let checksum = data.checksum.as_deref().map(Expected::of_checksum);
        let follows = data.checksum_follows.then(Expected::that_follows);
        let content = if data.ends.is_some() {
            // The digest of the whole file is checked before it is delivered.
            Expected::of_message(head)?
        } else {
            Expected::of_content(head)?
        };
        let each = [content, checksum.transpose()?, follows];
        let digest = each.into_iter().flatten().reduce(Expected::and);
        let size = body.size_hint();
        let limits = &self.config.limits;
        let limit = limits.append_size;
        if size.lower() > limit {
            return Err(Reason::ChunkTooLarge { limit }.into());
        }
        let end = offset.saturating_add(size.lower());
        match declared {
            // The store compares the offset first, and then the length. A new upload has no
            // offset.
            Some(length) if offset == 0 && end > length => return Err(Reason::OutOfBounds.into()),
            Some(_) => {}
            None => self.config.check(Some(end), None)?,
        }
        Ok(Incoming {
            offset,
            len: size.exact(),
            max: limit.min(limits.file_size.saturating_sub(offset)),
            digest,
            declared: declared.filter(|_| data.ends.is_some()),
            ends: data.ends == Some(true),
        })
    }

    /// Stores the bytes of a body at the end of an upload.
    async fn append_body<B: RequestBody>(
        &self,
        upload: &Upload,
        bytes: Incoming,
        head: &Head,
        body: &mut Paced<B>,
        reply: &Reply,
    ) -> Result<Progress, Error> {
        let Incoming {
            offset,
            len,
            max,
            digest,
            declared,
            ends,
        } = bytes;
        let Config { hooks, limits, .. } = &*self.config;
        let reading = self.count_body(&upload.scope, head, body)?;
        // What arrives is kept, so a long body is no attack.
        body.take_any_time();
        let mut append = Append::at(offset);
        append.ends_here = ends;
        if digest.is_some() {
            append.keep = Keep::Whole;
        }
        let reserved = self.reserve(upload).await?;
        let has_scopes = hooks.scope.is_some();
        let grow = |bytes| match &reserved {
            Some(reserved) => reserved.grow(limits, has_scopes, bytes, &[]),
            None => Ok(()),
        };
        let counted = upload.length.or(declared);
        let counted = counted.unwrap_or(offset.saturating_add(len.unwrap_or_default()));
        let (begun, mut bytes) = (Instant::now(), 0);
        let appended = match grow(counted) {
            Ok(()) => {
                let mut source = pin!(Pieces::new(&mut *body, digest));
                let first = offset == 0 && upload.role == Role::Whole;
                let sniff = hooks.sniff.as_ref().filter(|_| first);
                let sniffed = pin!(Sniffed::new(source.as_mut(), sniff, upload));
                let mut growing = pin!(Growing {
                    source: sniffed,
                    end: offset,
                    counted,
                    grow: &grow,
                    declared,
                    ends,
                });
                let mut chunk = ChunkBody::new(growing.as_mut(), len, max);
                let appended = self.store.append(upload, append, &mut chunk);
                let appended = self
                    .with_progress(appended, head, reply, upload, offset)
                    .await;
                bytes = chunk.received();
                appended.map_err(|error| self.store_failed(Some(&upload.id), error))
            }
            Err(error) => Err(error),
        };
        // What has arrived before a body broke off is stored.
        let is_kept = |error: &Error| {
            let (kind, keeps) = (error.kind(), append.keep == Keep::Prefix && bytes > 0);
            let breaks = [
                ErrorKind::Interrupted,
                ErrorKind::Superseded,
                ErrorKind::TooSlow,
            ];
            keeps && breaks.contains(&kind)
        };
        let progress = match &appended {
            Ok(progress) => Some(*progress),
            Err(error) if is_kept(error) => Some(Progress {
                received: offset.saturating_add(bytes),
                complete: false,
            }),
            Err(_) => None,
        };
        if let Some(progress) = progress {
            let chunk = Stored {
                offset,
                bytes,
                duplicate: 0,
                elapsed: begun.elapsed(),
            };
            self.stored(upload, Some(chunk), progress, reserved);
        }
        if let Err(error) = &appended {
            make_room(&reading, error);
            self.append_failed(upload, error).await;
        }
        appended
    }

    async fn append_failed(&self, upload: &Upload, error: &Error) {
        if error.refusal().is_some() && !error.is_retryable() {
            // The hook has refused the first bytes. If the upload cannot be removed now, it is
            // swept later, and the operator is told.
            let _ = self.remove(upload, Some(error)).await;
        }
    }

    /// Answers a request that has stored bytes.
    async fn appended(&self, mut upload: Upload, progress: Progress, reply: &Reply) -> Found {
        let Progress { received, complete } = progress;
        if complete {
            upload.length = Some(received);
        }
        if complete && upload.role == Role::Whole {
            return Found::complete(upload);
        }
        let held = self.held(&upload, Some(received));
        let response = reply.encode(Outcome::Held(held));
        let made = if complete {
            self.completed_by(&upload).await
        } else {
            None
        };
        match made {
            Some(upload) => Found::Also {
                response,
                upload: Box::new(upload),
            },
            None => Found::Response(response),
        }
    }

    pub(super) fn held<'a>(&self, upload: &'a Upload, offset: Option<u64>) -> Held<'a> {
        Held {
            upload,
            offset,
            expires: self.config.retention.expires(),
        }
    }

    /// Ends the request that is appending, and says how many bytes are stored. Delivers an upload
    /// that is complete.
    async fn look_at(&self, named: Upload, head: &Head, reply: &Reply) -> Result<Found, Error> {
        self.admit(Purpose::Status, head, &named).await?;
        let status = self.interrupt(&named).await?.ok_or(Reason::NotFound)?;
        let Status { upload, state, .. } = &status;
        let offset = match state {
            State::Settled(record) if record.delivered => {
                let state = reply.encode(Outcome::State(Some(&status)));
                return Ok(Found::Response(state));
            }
            // Its file is removed.
            State::Settled(_) => return Err(Reason::NotFound.into()),
            State::Complete if upload.role == Role::Whole => {
                return Ok(probed(status.upload));
            }
            State::Receiving(_) if is_concatenated(upload) => {
                if let Some(upload) = self.put_together(upload).await? {
                    return Ok(probed(upload));
                }
                None
            }
            State::Complete | State::Receiving(_) => Some(status.prefix()),
        };
        let held = Outcome::Held(self.held(upload, offset));
        Ok(Found::Response(reply.encode(held)))
    }

    async fn recall(&self, named: Upload, head: &Head, reply: &Reply) -> Result<Found, Error> {
        self.admit(Purpose::Status, head, &named).await?;
        let state = self.status(&named).await?.map(|status| status.state);
        match state {
            Some(State::Settled(record)) => {
                Ok(Found::Response(reply.encode(Outcome::Answer(&record))))
            }
            _ => Err(Reason::NotFound.into()),
        }
    }

    async fn discard(&self, named: Upload, head: &Head, reply: &Reply) -> Result<Found, Error> {
        self.admit(Purpose::Cancel, head, &named).await?;
        let status = self.interrupt(&named).await?.ok_or(Reason::NotFound)?;
        let mut state = Some(status.state);
        if !matches!(state, Some(State::Settled(_))) {
            self.remove(&status.upload, None).await?;
            // It may have been delivered meanwhile.
            state = self.status(&named).await?.map(|status| status.state);
        }
        match state {
            // The file is the application's.
            Some(State::Settled(_)) => {
                let forgotten = self.store.forget(&named.id).await;
                let forgotten =
                    forgotten.map_err(|error| self.store_failed(Some(&named.id), error))?;
                // The request that has delivered it may still have the claim.
                if !forgotten && self.status(&named).await?.is_some() {
                    return Err(Reason::DeliveryPending.into());
                }
            }
            // It is being delivered.
            Some(State::Complete) => return Err(Reason::DeliveryPending.into()),
            Some(State::Receiving(_)) | None => {}
        }
        Ok(Found::Response(reply.encode(Outcome::Removed)))
    }

    async fn interrupt(&self, upload: &Upload) -> Result<Option<Status>, Error> {
        let status = self.store.interrupt(&upload.id).await;
        status.map_err(|error| self.store_failed(Some(&upload.id), error))
    }
}

/// Where the bytes of a request belong, and the length of the file if the request declares it.
struct End {
    offset: u64,
    length: Option<u64>,
}

/// The bytes of a request, as far as they are known before they arrive.
struct Incoming {
    offset: u64,
    len: Option<u64>,
    max: u64,
    digest: Option<Expected>,
    /// The length of the file, if the client says by itself when the upload is complete.
    declared: Option<u64>,
    /// Whether the file ends with the body.
    ends: bool,
}

/// The length of the file, as far as its client has declared it: in this request, whose body
/// has `len` bytes if that is known, or before. An error if it has declared several, or if the
/// body goes beyond it.
fn declared(
    upload: &Upload,
    end: &End,
    data: &Data,
    len: Option<u64>,
) -> Result<Option<u64>, Error> {
    let Some(ends) = data.ends else {
        // The store compares them.
        return Ok(upload.length);
    };
    let end_of_body = len.map(|len| end.offset.saturating_add(len));
    let all = [
        upload.length.or(upload.declared()),
        end.length,
        end_of_body.filter(|_| ends),
    ];
    let mut all = all.into_iter().flatten();
    let declared = all.next();
    if declared.is_some_and(|declared| end_of_body > Some(declared)) {
        return Err(Reason::OutOfBounds.into());
    }
    if all.any(|other| Some(other) != declared) {
        return Err(Reason::InconsistentLength.into());
    }
    Ok(declared)
}

/// Whether a request was refused because of the lengths that it declares.
fn is_of_length(error: &Error) -> bool {
    let kinds = [
        ErrorKind::InconsistentLength,
        ErrorKind::OutOfBounds,
        ErrorKind::FileTooLarge,
    ];
    kinds.contains(&error.kind())
}

fn probed(upload: Upload) -> Found {
    Found::Complete {
        upload: Box::new(upload),
        is_probe: true,
        claim: None,
    }
}

/// Whether the upload is made of parts.
pub(super) fn is_concatenated(upload: &Upload) -> bool {
    let creation = upload.creation.as_ref();
    creation.is_some_and(|creation| !creation.parts.is_empty())
}

/// Bytes that are counted while they arrive.
struct Growing<'a, 'b> {
    source: Pin<&'a mut Sniffed<'b>>,
    /// The end of the upload.
    end: u64,
    /// Up to where it is counted.
    counted: u64,
    grow: &'a (dyn Fn(u64) -> Result<(), Error> + Sync),
    /// The declared length of the file, and whether the file ends with these bytes.
    declared: Option<u64>,
    ends: bool,
}

impl Body for Growing<'_, '_> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(self.source.as_mut().poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            let len = frame.data_ref().map_or(0, Bytes::len);
            self.end = self.end.saturating_add(len as u64);
            if self.declared.is_some_and(|declared| self.end > declared) {
                return Poll::Ready(Some(Err(Error::from(Reason::OutOfBounds).into())));
            }
            if self.end > self.counted {
                let counted = self.end.saturating_add(COUNTED_AHEAD);
                if let Err(error) = (self.grow)(counted) {
                    return Poll::Ready(Some(Err(error.into())));
                }
                self.counted = counted;
            }
        }
        let is_short = self.declared.is_some_and(|declared| self.end < declared);
        if frame.is_none() && self.ends && is_short {
            return Poll::Ready(Some(Err(Error::from(Reason::InconsistentLength).into())));
        }
        Poll::Ready(frame)
    }
}
