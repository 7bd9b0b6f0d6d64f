//! What protocols and the engine exchange: the commands of clients, and the outcomes of the engine.

use std::fmt;

use bytes::Bytes;
use http::{Response, request::Parts, response};

use super::offsets::{Held, UrlCommand, Urls};
use crate::{
    error::{Error, Reason},
    hooks::Purpose,
    limits::PATH_BYTES,
    model::{
        state::{Progress, Record, Status},
        upload::{Role, Scope, UNNAMED_PATH, Upload, UploadId},
    },
};

/// Decodes requests.
pub(crate) trait Decode: fmt::Debug + Send + Sync {
    /// Decodes a request. `None` if it is not one of this protocol.
    fn decode(&self, head: &Parts, body_is_empty: bool) -> Option<Exchange>;
}

/// A request that a protocol has read, and how it is answered.
pub(crate) struct Exchange {
    pub(crate) command: Result<Command, Error>,
    pub(crate) reply: Reply,
}

/// The encoder of the response to one request.
pub(crate) type Reply = Box<dyn Encode>;

/// Encodes the responses to one request.
pub(crate) trait Encode: Send + Sync {
    /// The response to what the engine found out.
    fn encode(&self, outcome: Outcome<'_>) -> Response<Bytes>;

    /// Adapts the head of the inner service's answer for this client, whose body is then sent as it
    /// is. `false` if the client needs another body: then the answer is recorded and given to
    /// [`encode`](Self::encode).
    fn forward(&self, answer: &mut response::Parts, upload: &Upload, delivered: bool) -> bool;

    /// Whether this client alone gets the answer of the inner service, and gets it as it is. Other
    /// answers are recorded and repeated.
    fn forwards_all(&self) -> bool {
        false
    }

    /// Whether [`Outcome::Stored`] needs the whole status of the upload.
    fn needs_status(&self) -> bool {
        false
    }

    /// Whether a question about an upload that is complete, but not delivered, delivers it: the
    /// client sends nothing more once it knows that all bytes are stored.
    fn probe_delivers(&self) -> bool {
        false
    }

    /// Whether the answer to a question about such an upload can be that all bytes are stored,
    /// although its delivery has failed. Otherwise the client must not see its offset.
    fn tells_undelivered(&self) -> bool {
        false
    }

    /// Notes the upload that the request creates, so that all answers can name it.
    fn created(&mut self, upload: &Upload) {
        let _ = upload;
    }

    /// The response that comes before the one to the request, if the client understands it. Without
    /// an offset it names the upload that was [created](Self::created). With one it tells how many
    /// bytes are stored.
    fn interim(&self, held: Held<'_>) -> Option<Response<()>> {
        let _ = held;
        None
    }
}

/// What a client wants.
pub(crate) enum Command {
    /// Name a new upload.
    Create(Create),
    /// Store the bytes of a body.
    Write(Write),
    /// Say what is stored.
    Look(Look),
    /// Deliver an upload that the client believes to be complete.
    Conclude(Described),
    /// Remove an upload.
    Remove(Described),
    /// List the unfinished uploads of the scope at this path that have these fields, from the first
    /// one after this id.
    List {
        after: Option<UploadId>,
        fields: Vec<(String, String)>,
    },
    /// Say what the layer can do.
    Capabilities,
    /// Do something with an upload that has a URL.
    Url(UrlCommand),
    /// Read the command from the body, of at most `max` bytes.
    Read { max: u64, then: DecodeBody },
}

/// Decodes a command from the body of a request.
pub(crate) type DecodeBody = Box<dyn FnOnce(&[u8]) -> Exchange + Send>;

/// A question about what is stored.
pub(crate) struct Look {
    /// A test or a status request.
    pub(crate) purpose: Purpose,
    /// `None` if the client does not name an upload: the answer is that of an absent one.
    pub(crate) upload: Option<Described>,
    /// Bytes of the chunk that the client asks for, if it declares them. The limit of chunks
    /// applies.
    pub(crate) chunk_len: Option<u64>,
}

/// A new upload that the layer names with random text.
pub(crate) struct Create {
    pub(crate) length: u64,
    /// Describes the upload with this random text in its name.
    pub(crate) describe: Box<dyn FnOnce(&str) -> Described + Send>,
}

/// How a request carries its bytes.
pub(crate) enum Write {
    /// The body is the chunk.
    Raw(Box<Target>),
    /// The body is a whole file, and only its end tells how long it is.
    Spool(Place),
    /// The chunk is a part of a multipart form.
    Form {
        boundary: String,
        form: Box<dyn Form>,
    },
}

/// Says where a file of this length in bytes belongs.
pub(crate) type Place = Box<dyn FnOnce(u64) -> Result<Target, Error> + Send>;

/// Reads the parts of a multipart form, and finds out where its file belongs.
pub(crate) trait Form: Send + Sync {
    /// Whether a part carries the file. `is_text`: it has neither a file name nor a media type.
    fn is_file(&self, name: &str, is_text: bool) -> bool;

    /// Whether the form has a chunk, by the fields so far.
    fn is_chunk(&self) -> bool;

    /// Where the file belongs, if the head of the request says it.
    fn announced(&self) -> Option<Result<Target, Error>>;

    /// Takes a text field that comes before the file.
    fn field(&mut self, name: String, value: String);

    /// Takes the head of the file's part. `None` if fields that may follow decide where the file
    /// belongs. Then the file is spooled, and [`place`](Self::place) decides.
    fn file(&mut self, part: FilePart) -> Result<Option<Target>, Error>;

    /// Takes a text field that comes after the file.
    fn late_field(&mut self, name: String, value: String) -> Result<(), Error>;

    /// Where a spooled file of `len` bytes belongs. All fields have been read.
    fn place(&mut self, len: u64) -> Result<Target, Error>;

    /// Whether the file is base64. Its target is known.
    fn is_base64(&self) -> bool;

    /// The question of a form without a file, if such a form is valid.
    fn no_file(&mut self) -> Result<Look, Error>;

    /// The application's own fields that were read so far.
    fn fields(&self) -> Vec<(String, String)>;

    /// The reply to the request, as far as the fields determine it.
    fn reply(&self) -> Reply;
}

/// What the head of a file's part says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct FilePart {
    pub(crate) file_name: Option<String>,
    pub(crate) content_type: Option<String>,
}

impl FilePart {
    /// Whether the part looks like a text field.
    pub(crate) fn is_text(&self) -> bool {
        self.file_name.is_none() && self.content_type.is_none()
    }
}

/// Where the bytes of a request belong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) upload: Described,
    /// The offset of the chunk in the file.
    pub(crate) offset: u64,
    /// Bytes of the chunk, if they are known.
    pub(crate) len: Option<u64>,
    /// The most bytes that the chunk can have.
    pub(crate) max_len: u64,
    /// The only other length that the chunk can have, if its length is not known but one of two.
    pub(crate) other_len: Option<u64>,
    /// The client continues an upload without having asked: the upload must exist.
    pub(crate) must_exist: bool,
    /// The digest of the chunk, from the field that the layer was told.
    pub(crate) digest: Option<String>,
}

impl Target {
    /// A whole file of `len` bytes.
    pub(crate) fn whole(mut upload: Described, digest: Option<String>, len: u64) -> Self {
        upload.length = Some(len);
        Self {
            upload,
            offset: 0,
            len: Some(len),
            max_len: len,
            other_len: None,
            must_exist: false,
            digest,
        }
    }
}

/// An upload as its client describes it, before its scope is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Described {
    pub(crate) identity: Identity,
    pub(crate) identifier: String,
    pub(crate) length: Option<u64>,
    pub(crate) chunk_size: Option<u64>,
    pub(crate) file_name: Option<String>,
    pub(crate) relative_path: Option<String>,
    pub(crate) content_type: Option<String>,
    pub(crate) fields: Vec<(String, String)>,
}

/// What distinguishes an upload from all others of its scope.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The path of the request and the identifier.
    Named {
        /// The length and the path or name of the file count too.
        with_file: bool,
        /// Fields of the application.
        fields: Vec<(String, String)>,
    },
    /// Nothing: each request is an upload of its own.
    Fresh,
}

impl Described {
    /// Returns the upload in this scope and at this path. `random` names an upload that has no
    /// identity.
    pub(crate) fn upload(
        mut self,
        scope: Scope,
        path: &str,
        random: impl FnOnce() -> Result<String, Error>,
    ) -> Result<Upload, Error> {
        if path.len() > PATH_BYTES {
            let (name, problem) = ("path".to_owned(), "is too long");
            return Err(Reason::InvalidField { name, problem }.into());
        }
        let id = match &self.identity {
            Identity::Named { with_file, fields } => self.id(&scope, path, *with_file, fields),
            Identity::Fresh => {
                self.identifier = random()?;
                UploadId::new(&scope, [&self.identifier])
            }
        };
        let mut upload = Upload::new(id, scope, self.length);
        upload.request_path = Some(path.to_owned());
        upload.identifier = self.identifier;
        upload.role = Role::Whole;
        upload.chunk_size = self.chunk_size;
        upload.file_name = self.file_name;
        upload.relative_path = self.relative_path;
        upload.content_type = self.content_type;
        upload.fields = self.fields;
        Ok(upload)
    }

    /// The id of an upload that has an identity.
    ///
    /// No value of a client is empty where its identifier is, and no field has an empty name. So
    /// the path and the fields cannot be taken for anything else.
    fn id(
        &self,
        scope: &Scope,
        path: &str,
        with_file: bool,
        fields: &[(String, String)],
    ) -> UploadId {
        let mut values: Vec<&[u8]> = Vec::with_capacity(8);
        if !(path == UNNAMED_PATH && fields.is_empty()) {
            values.extend([&b""[..], path.as_bytes()]);
            let fields = fields.iter().flat_map(|(name, value)| [name, value]);
            values.extend(fields.map(String::as_bytes));
            values.push(b"");
        }
        values.push(self.identifier.as_bytes());
        let length = self.length.unwrap_or_default().to_be_bytes();
        if with_file {
            values.push(&length);
            let name = self.relative_path.as_ref().or(self.file_name.as_ref());
            values.extend(name.map(String::as_bytes));
        }
        UploadId::new(scope, values)
    }
}

/// What the engine found out.
pub(crate) enum Outcome<'a> {
    /// A new upload is named.
    Created(&'a Upload),
    /// The chunk is stored, and the upload is not complete. `status` if it was
    /// [asked for](Encode::needs_status).
    Stored {
        upload: &'a Upload,
        progress: Progress,
        status: Option<&'a Status>,
    },
    /// What is stored of the upload.
    State(Option<&'a Status>),
    /// Unfinished uploads of the scope, and how far they are. More follow after `next`.
    Listed {
        uploads: &'a [(Upload, Progress)],
        next: Option<UploadId>,
        /// How the uploads get their URLs, if they have some.
        urls: &'a Urls,
    },
    /// The recorded answer of the inner service.
    Answer(&'a Record),
    /// What the layer can do.
    Capabilities {
        /// The algorithms of checksums, as a list.
        checksums: &'static str,
    },
    /// How many bytes of an upload with a URL are stored.
    Held(Held<'a>),
    /// The upload that the client continues is absent.
    Gone,
    /// The upload is removed, or was absent.
    Removed,
    /// The request failed.
    Failed(&'a Error),
    /// The request has completed the upload, but its delivery has failed and is tried again.
    Undelivered(&'a Error, &'a Upload),
}
