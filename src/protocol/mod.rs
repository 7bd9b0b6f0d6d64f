//! Decodes requests and encodes responses. No IO, no async code, no store.
//!
//! A protocol decodes the head of a request into a [`Command`]. The same unit encodes the engine's
//! [`Outcome`] into a response.

pub(crate) mod chunked;
mod exchange;
mod plain;
mod problem;

use std::sync::Arc;

use http::request::Parts;

pub(crate) use self::exchange::{
    Command, Create, Decode, Described, Encode, Exchange, FilePart, Form, Identity, Look, Outcome,
    Reply, Target, Write,
};
use self::{
    chunked::{Chunked, Dialect},
    plain::Plain,
};

/// One way of talking to clients, for [`with_protocol`](crate::ResumableLayer::with_protocol) and
/// [`with_protocols`](crate::ResumableLayer::with_protocols).
///
/// By default a layer has the dialects [Resumable.js](Dialect::resumable_js),
/// [flow.js](Dialect::flow_js), [Dropzone](Dialect::dropzone) and
/// [Fine Uploader](Dialect::fine_uploader), and [plain uploads](Self::plain).
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
}

impl From<Dialect> for Protocol {
    fn from(dialect: Dialect) -> Self {
        Self(Kind::Dialect(Box::new(dialect)))
    }
}

/// The protocols of a layer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Protocols {
    chunked: Arc<Chunked>,
}

impl Protocols {
    /// Adds a protocol. A dialect replaces the one with its name.
    pub(crate) fn add(&mut self, protocol: Protocol) {
        let chunked = self.chunked_mut();
        match protocol.0 {
            Kind::Dialect(dialect) => chunked.add(*dialect),
            Kind::Plain => chunked.accept_plain = true,
        }
    }

    /// Removes all protocols but these.
    pub(crate) fn only(&mut self, protocols: impl IntoIterator<Item = Protocol>) {
        self.chunked_mut().clear();
        protocols
            .into_iter()
            .for_each(|protocol| self.add(protocol));
    }

    /// The settings of chunk clients. They stay when protocols are added or removed.
    pub(crate) fn chunked_mut(&mut self) -> &mut Chunked {
        Arc::make_mut(&mut self.chunked)
    }

    /// The dialect with this name.
    pub(crate) fn named(&self, name: &str) -> Option<&Dialect> {
        self.chunked.named(name)
    }

    /// Decodes a request. `None` if it is not for the layer.
    pub(crate) fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange> {
        // The first protocol that recognizes the request decodes it.
        let protocols: [&dyn Decode; 2] = [&self.chunked, &Plain(&self.chunked)];
        let mut protocols = protocols.into_iter();
        protocols.find_map(|protocol| protocol.decode(head, body_is_empty))
    }
}
