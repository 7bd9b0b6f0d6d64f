//! Decodes requests and encodes responses. No IO, no async code, no store.
//!
//! A protocol decodes the head of a request into a [`Command`]. The same unit encodes the engine's
//! [`Outcome`] into a response.

pub(crate) mod chunked;
mod cors;
mod exchange;
mod ietf;
mod metadata;
mod offer;
mod offsets;
mod plain;
mod problem;
mod tus;

use std::sync::Arc;

use http::{Method, request::Parts};

pub use self::cors::{CORS_ALLOWED_HEADERS, CORS_ALLOWED_METHODS, CORS_EXPOSED_HEADERS};
pub(crate) use self::exchange::{
    Command, Create, Decode, Described, Encode, Exchange, FilePart, Form, Identity, Look, Outcome,
    Reply, Target, Write,
};
pub(crate) use self::offsets::{Data, Held, New, Token, UrlCommand, Urls, named};
use self::{
    chunked::{Chunked, Dialect},
    ietf::Ietf,
    plain::Plain,
    tus::Tus,
};

/// One way of talking to clients, for [`with_protocol`](crate::ResumableLayer::with_protocol) and
/// [`with_protocols`](crate::ResumableLayer::with_protocols).
///
/// By default a layer has the dialects [Resumable.js](Dialect::resumable_js),
/// [flow.js](Dialect::flow_js), [Dropzone](Dialect::dropzone) and
/// [Fine Uploader](Dialect::fine_uploader), [plain uploads](Self::plain), [tus 1.0](Self::tus) and
/// the [IETF draft](Self::ietf_draft).
///
/// ```
/// use tower_resumable::{Dialect, MemoryStore, Protocol, ResumableLayer};
///
/// // One more client.
/// let layer = ResumableLayer::new(MemoryStore::default()).with_protocol(Dialect::filepond());
/// # let _ = layer;
/// // These and no others.
/// let layer = ResumableLayer::new(MemoryStore::default())
///     .with_protocols([Dialect::dropzone().into(), Protocol::plain()]);
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Protocol(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Dialect(Box<Dialect>),
    Plain,
    Tus,
    IetfDraft,
}

impl Protocol {
    /// Whole files in one request. The request is a form without the fields of any dialect, as from
    /// a page without JavaScript, from `curl -F file=@…`, or from Dropzone if the file is small. Or
    /// it is a `POST` or `PUT` request with the content type `application/octet-stream`, whose body
    /// is the file; the file name can be in `Content-Disposition`. In a form, the part `file`
    /// carries the file, or the part that does so in a dialect of the layer. It need not have a
    /// file name: `curl -F 'file=<…'` sends none. The length need not be declared: a body without
    /// one is spooled first.
    ///
    /// On by default. The file is delivered like any other, and can be as long as a
    /// [chunk](crate::Limits::with_chunk_size). Each such request is an upload of its own. The
    /// client gets the answer of the inner service unchanged.
    ///
    /// A form whose user has chosen no file, which browsers send as an empty part with an empty
    /// file name, is refused with 400 and
    /// [`ErrorKind::MissingFile`](crate::ErrorKind::MissingFile). An empty file that has a name is
    /// delivered. A body with a `Content-Encoding` is refused with 415, because the layer would
    /// store it as it is: put a decompression layer outside.
    ///
    /// A request with a field or header whose name says that the file is in pieces is taken for a
    /// chunk of a client that the layer does not know: names that contain `chunk`, are `offset`,
    /// `Content-Range` or `Upload-…`, or have one of the words part, piece, slice and fragment, as
    /// `part_number` and `totalParts` do. If it is a form it is refused. If the file is the body
    /// it passes through to the inner service. An application whose own field has such a name can
    /// put it into [`with_identity_fields`](crate::ResumableLayer::with_identity_fields): then the
    /// layer knows it. So a client of chunks has to keep its fields: do not replace those of
    /// Dropzone with its option `params`, add to them.
    pub fn plain() -> Self {
        Self(Kind::Plain)
    }

    /// [tus 1.0], for clients such as tus-js-client, Uppy and tuspy: a `POST` request creates an
    /// upload, the answer names its URL in `Location`, and `PATCH` requests to that URL append the
    /// bytes. `HEAD` says how many bytes are stored.
    ///
    /// On by default, because no other client sends `Tus-Resumable`. It needs a store that can
    /// append: see [`Capabilities`](crate::store::Capabilities). With another store these requests
    /// get a final error, and `OPTIONS` requests pass through to the inner service.
    ///
    /// All extensions of tus 1.0 are there: creation, creation-with-upload, creation-defer-length,
    /// expiration, checksum, checksum-trailer, termination, concatenation and
    /// concatenation-unfinished. Checksums can be sha1, sha256, sha512 and crc32, and md5 with the
    /// feature `digests`. `X-HTTP-Method-Override` is understood. An `OPTIONS` request that is not
    /// a CORS preflight is answered by the layer.
    ///
    /// # URLs and routes
    ///
    /// The URL of an upload is the path of the request that created it, as its client has sent it,
    /// with the query `upload=<token>`. So one path serves all requests. The token has 126 random
    /// bits. It is valid in its [scope](crate::ResumableLayer::with_scope) and at its path only:
    /// with another one the upload is absent (404). The query of the creating request is not in
    /// the URL. See also [`with_public_url`](crate::ResumableLayer::with_public_url) and
    /// [`with_upload_paths`](crate::ResumableLayer::with_upload_paths).
    ///
    /// The methods of these requests are `POST`, `PATCH`, `HEAD`, `DELETE`, `GET` and `OPTIONS`.
    /// `Router::layer` of axum applies the layer behind the choice of the method. So use
    /// `.route("/files", any(handler))`, or apply the layer around the whole router. On a route for
    /// `post` only, the service behind the layer would be the answer 405 for all other methods.
    ///
    /// Pages of other origins need CORS: see [`CORS_EXPOSED_HEADERS`](crate::CORS_EXPOSED_HEADERS).
    ///
    /// # Delivery
    ///
    /// The inner service gets one request with the method and URI of the request that created the
    /// upload, and the headers and extensions of the one that completed it, without those of the
    /// protocol. Its answer becomes the answer to that `PATCH` (or `POST`):
    ///
    /// | answer of the inner service | answer to the client |
    /// |---|---|
    /// | it takes the file | 204 (201 for `POST`), with its headers |
    /// | it [rejects or refuses](crate::Verdict) the file | its status and body |
    /// | it fails | 503; for `POST` with data 201 without `Upload-Offset` |
    ///
    /// A client that has created an upload with all its bytes does not know its URL yet, and would
    /// send them again after 503. An answer that names the URL but no offset makes it ask there.
    ///
    /// Cookies go to the client whose request is delivered, and are not recorded. Its `Location`
    /// becomes `Content-Location`. 404, 409, 423 and other statuses at which clients do not stop
    /// become 400.
    ///
    /// A tus client that finds all bytes stored sends nothing more. So `HEAD` of a complete upload
    /// that is not delivered delivers it, and waits. If that fails the answer is 423, and the
    /// client asks again. `GET` repeats the recorded answer of the inner service with its status
    /// and body, for a [day](crate::Delivery::with_url_record_lifetime).
    ///
    /// # Metadata
    ///
    /// `filename` (or `name`) is the name of the file, `filetype` (or `type`) its media type,
    /// `relativePath` its path. The other values are [fields](crate::CompletedUpload::fields) if
    /// they are UTF-8. The whole header is in
    /// [`CompletedUpload::creation`](crate::CompletedUpload::creation).
    ///
    /// [tus 1.0]: https://tus.io/protocols/resumable-upload
    pub fn tus() -> Self {
        Self(Kind::Tus)
    }

    /// The [IETF draft] "Resumable Uploads for HTTP", which URLSession of Apple's systems speaks.
    /// Any request with content becomes resumable: its client says with `Upload-Complete: ?1` that
    /// it could continue, and the layer tells it a URL before the content has arrived. After a cut
    /// the client asks there with `HEAD` how many bytes are stored, and sends the rest with
    /// `PATCH`.
    ///
    /// On by default. It needs a store that can append: see
    /// [`Capabilities`](crate::store::Capabilities). With another store such a request is an
    /// ordinary one.
    ///
    /// The interop versions 3 to 8 are understood. A request without a known one, as those of the
    /// finished RFC will be, is read as one of the newest text, and gets no interim response.
    ///
    /// The URLs are those of [tus](Self::tus), and so are the routes: `.route("/upload",
    /// any(handler))`, or the layer around the whole router. Forms, and chunks of
    /// [chunk clients](Dialect), stay what they are if a client adds headers of the draft.
    ///
    /// # Interim responses
    ///
    /// The URL comes in a response with the status 104, which comes before the one to the request.
    /// The server has to send it: it puts an [`Interim`](crate::Interim) into the extensions of the
    /// request. Without one, URLSession and `curl` cannot resume, because they do not know the URL;
    /// clients that first create an empty upload can, such as tus-js-client.
    ///
    /// # Delivery
    ///
    /// An upload is complete when a request says so, and has arrived. That all bytes of its
    /// `Upload-Length` are stored is not enough. Then the inner service gets one request with the
    /// method, the URI and the headers `Content-Type`, `Content-Disposition`, `Content-Language`
    /// and `Repr-Digest` of the request that created the upload, and the other headers and the
    /// extensions of the one that completed it, without those of the protocol. So the user of
    /// today is asked, and the file has its own media type. The client gets the answer of the inner
    /// service as it is, with all its headers, `Upload-Complete: ?1` and `Upload-Offset`. All
    /// answers of the layer have `Upload-Complete: ?0`. If the delivery fails, the error of a
    /// creation has the `Location` of the upload and the offset, and the client completes it there.
    /// A recorded answer is repeated [without its
    /// cookies](crate::Delivery::with_record_lifetime).
    ///
    /// `HEAD` of a complete upload that is not delivered delivers it. If that fails, the answer
    /// says that all bytes are stored and `Upload-Complete: ?0`, and the client completes it with
    /// an empty `PATCH`. tus-js-client would take the upload for delivered, so it gets 423, and
    /// asks again. It gets 423 for every error at which `HEAD` has 503 for others, because it would
    /// begin anew. It is told by the `Upload-Metadata` of the creation.
    ///
    /// # What is checked
    ///
    /// `Content-Digest` of each request, whose bytes are then stored as a whole or not at all, and
    /// `Repr-Digest` of the creating request, for the whole file before it is delivered. The
    /// lengths that a client declares have to agree. An upload that gets more bytes than it has
    /// declared is removed.
    ///
    /// The file name is that of `Content-Disposition`, its media type that of `Content-Type`,
    /// unless that is `application/partial-upload`. `Upload-Metadata` is read as in tus.
    ///
    /// [IETF draft]: https://datatracker.ietf.org/doc/draft-ietf-httpbis-resumable-upload/
    pub fn ietf_draft() -> Self {
        Self(Kind::IetfDraft)
    }
}

impl From<Dialect> for Protocol {
    fn from(dialect: Dialect) -> Self {
        Self(Kind::Dialect(Box::new(dialect)))
    }
}

/// The protocols of a layer.
#[derive(Clone, Debug)]
pub(crate) struct Protocols {
    chunked: Arc<Chunked>,
    tus: bool,
    urls: Arc<Urls>,
}

impl Default for Protocols {
    fn default() -> Self {
        Self {
            chunked: Arc::default(),
            tus: true,
            urls: Arc::new(Urls {
                ietf: true,
                ..Urls::default()
            }),
        }
    }
}

impl Protocols {
    /// Adds a protocol. A dialect replaces the one with its name.
    pub(crate) fn add(&mut self, protocol: Protocol) {
        let chunked = self.chunked_mut();
        match protocol.0 {
            Kind::Dialect(dialect) => chunked.add(*dialect),
            Kind::Plain => chunked.accept_plain = true,
            Kind::Tus => self.tus = true,
            Kind::IetfDraft => self.urls_mut().ietf = true,
        }
    }

    /// Removes all protocols but these.
    pub(crate) fn only(&mut self, protocols: impl IntoIterator<Item = Protocol>) {
        self.chunked_mut().clear();
        self.tus = false;
        self.urls_mut().ietf = false;
        protocols
            .into_iter()
            .for_each(|protocol| self.add(protocol));
    }

    /// The settings of chunk clients. They stay when protocols are added or removed.
    pub(crate) fn chunked_mut(&mut self) -> &mut Chunked {
        Arc::make_mut(&mut self.chunked)
    }

    /// The settings of uploads that have URLs. They stay when protocols are added or removed.
    pub(crate) fn urls_mut(&mut self) -> &mut Urls {
        Arc::make_mut(&mut self.urls)
    }

    /// The same, to read them.
    pub(crate) fn urls(&self) -> &Urls {
        &self.urls
    }

    /// The path at which an upload was created, from a path with its token.
    pub(crate) fn creation_path<'a>(&self, path: &'a str) -> Option<&'a str> {
        let has_urls = self.tus || self.urls.ietf;
        let split = self.urls.split(path).filter(|_| has_urls);
        split.map(|(path, _)| path)
    }

    /// The dialect with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Dialect> {
        self.chunked.named(name)
    }

    /// Decodes a request. `None` if it is not for the layer.
    pub(crate) fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        // The first protocol that recognizes the request decodes it.
        let tus = Tus(&self.urls, &self.chunked);
        // What a chunk client asks for with its fields is for the inner service.
        let may_be_tus = head.method != Method::OPTIONS || !self.chunked.is_in_query(head);
        let tus = (self.tus && may_be_tus).then_some(&tus as &dyn Decode);
        let ietf = Ietf {
            urls: &self.urls,
            chunked: &self.chunked,
            has_options: !self.tus && may_be_tus,
        };
        let ietf = self.urls.ietf.then_some(&ietf as &dyn Decode);
        let others: [&dyn Decode; 2] = [&self.chunked, &Plain(&self.chunked)];
        let mut protocols = ietf.into_iter().chain(tus).chain(others);
        protocols.find_map(|protocol| protocol.decode(head, body_is_empty))
    }
}
