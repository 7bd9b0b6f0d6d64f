use std::borrow::Cow;

use http::StatusCode;

use super::field::{Field, Source};

/// The field names of one family of chunk clients, and the answers that they need.
///
/// The layer understands [Resumable.js](Self::resumable_js), [flow.js](Self::flow_js),
/// [Dropzone](Self::dropzone) and [Fine Uploader](Self::fine_uploader) by default. It tells them
/// apart by the names of their fields. [Other clients](Self::simple_uploader) use names that an
/// application could use for something else. Add them with
/// [`with_protocol`](crate::ResumableLayer::with_protocol). A dialect replaces the one that has the
/// same [name](Self::name).
///
/// A dialect can describe each client that sends in every request which file it sends, how long the
/// file is, and where the chunk starts:
///
/// ```
/// use http::{Request, StatusCode};
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_resumable::{Dialect, Field, MemoryStore, ResumableLayer};
/// # use http::Response;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let inner = service_fn(async |_: Request<String>| {
/// #     Ok::<_, std::io::Error>(Response::new("stored".to_owned()))
/// # });
/// let camera = Dialect::new("camera")
///     .with_identifier(Field::header("x-clip"))
///     .with_total_size("length")
///     .with_offset("from")
///     .with_file_name("name")
///     .with_refusal(StatusCode::UNPROCESSABLE_ENTITY);
/// let layer = ResumableLayer::new(MemoryStore::default()).with_protocol(camera);
/// let service = layer.layer(inner);
///
/// for (from, body) in [(5, "world"), (0, "hello")] {
///     let uri = format!("/upload?length=10&name=greeting.txt&from={from}");
///     let chunk = Request::post(uri).header("x-clip", "7").body(body.to_owned())?;
///     assert_eq!(service.clone().oneshot(chunk).await?.status(), 200);
/// }
///
/// let chunk = Request::post("/upload?length=10&from=99").header("x-clip", "7");
/// let response = service.oneshot(chunk.body("!".to_owned())?).await?;
/// assert_eq!(response.status(), 422);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Dialect {
    name: Cow<'static, str>,
    namespace: String,
    pub(super) names: Names,
    /// The name of the part that carries the bytes in a form.
    pub(super) file_field: String,
    pub(super) first_number: u64,
    pub(super) fixed_chunk_size: Option<u64>,
    pub(super) last_chunk: LastChunk,
    pub(super) identifier_kind: IdentifierKind,
    pub(super) whole_files: bool,
    pub(super) trailing_empty_chunk: bool,
    pub(super) length_check: bool,
    pub(super) base64: bool,
    pub(super) form_tests: bool,
    pub(super) list_tests: Option<String>,
    pub(super) final_question: bool,
    pub(super) answers: AnswerFormat,
    pub(super) resume: Resume,
    pub(super) refusal: StatusCode,
}

macro_rules! names {
    ($($name:ident),*) => {
        /// The fields of a dialect.
        #[derive(Clone, Debug, Default)]
        pub(super) struct Names {
            $(pub(super) $name: Field,)*
            pub(super) ignored: Vec<Field>,
        }

        impl Names {
            pub(super) fn all(&self) -> impl Iterator<Item = &Field> {
                [$(&self.$name),*].into_iter().chain(&self.ignored)
            }

            fn all_mut(&mut self) -> impl Iterator<Item = &mut Field> {
                [$(&mut self.$name),*].into_iter().chain(&mut self.ignored)
            }
        }
    };
}

names!(
    identifier,
    total_size,
    offset,
    chunk_number,
    chunk_size,
    chunk_length,
    total_chunks,
    file_name,
    relative_path,
    content_type,
    resumed,
    status
);

/// How long the last chunk of a file is.
///
/// More layouts can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastChunk {
    /// The rest of the file, or the rest and the chunk before it together. The client decides.
    #[default]
    RestOrMore,
    /// The rest of the file.
    Rest,
}

/// What the identifier of a file means.
///
/// More kinds can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentifierKind {
    /// The client makes it, and different files can have the same one. The
    /// [`IdentityRule`](crate::IdentityRule) of the layer says what else identifies an upload.
    #[default]
    ByClient,
    /// The client makes it at random. It alone identifies an upload.
    Unique,
    /// The layer makes it at random, and returns it in the answer to a `POST` request with the
    /// total size and without an identifier. It contains the total size, so that later requests
    /// need not declare it.
    ByServer,
}

/// The format of the answers to a client.
///
/// More formats can be added.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum AnswerFormat {
    /// The client looks at the status only. It gets the inner service's answer.
    #[default]
    Plain,
    /// Each answer is a JSON object with the member `success`. Errors have the members `error` and
    /// `preventRetry` too.
    ///
    /// If the inner service answers with a JSON object, the member is added to it. Any other answer
    /// becomes the member `answer` of an object.
    JsonSuccess,
    /// Each answer but errors is a JSON object that has a member of this name: the number of the
    /// chunk. Answers of the inner service are changed as by [`JsonSuccess`](Self::JsonSuccess).
    JsonChunkNumber(String),
}

/// How a client learns how much of a file is stored.
///
/// More ways can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resume {
    /// It probes for chunks, or it does not resume.
    #[default]
    ByTests,
    /// The answer to each chunk has the header `Range: 0-9`: the bytes that are stored without a
    /// gap from the first one.
    ByRange,
    /// The answer to a `HEAD` request has the header `Upload-Offset`: the number of bytes that are
    /// stored without a gap from the first one.
    ByUploadOffset,
}

impl Dialect {
    /// A dialect without fields. It needs at least an identifier, a total size, and either an
    /// offset or a chunk number with a chunk size.
    ///
    /// `name` tells dialects of a layer apart.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            name: name.into(),
            namespace: String::new(),
            names: Names::default(),
            file_field: "file".into(),
            first_number: 1,
            fixed_chunk_size: None,
            last_chunk: LastChunk::default(),
            identifier_kind: IdentifierKind::default(),
            whole_files: false,
            trailing_empty_chunk: false,
            length_check: true,
            base64: false,
            form_tests: false,
            list_tests: None,
            final_question: false,
            answers: AnswerFormat::default(),
            resume: Resume::default(),
            refusal: StatusCode::BAD_REQUEST,
        }
    }

    /// The name that tells the dialect apart from the others of a layer.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Sets the [name](Self::name), so that a layer can have two variants of a dialect.
    pub fn with_name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }
}

/// The fields. By default a dialect has none of them.
impl Dialect {
    /// Sets the prefix of all names in the query and in the form, including that of the file.
    /// Default: empty.
    ///
    /// The setters of the names can be called before or after this one. They take names without the
    /// prefix.
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        let (old, new) = (self.namespace.len(), namespace.into());
        let parameters = self.names.all_mut().filter_map(|field| match &mut field.0 {
            Source::QueryOrForm(name) if !name.is_empty() => Some(name),
            _ => None,
        });
        for name in parameters.chain([&mut self.file_field]) {
            name.replace_range(..old, &new);
        }
        self.namespace = new;
        self
    }

    /// Sets the field of the text that identifies the file, the same in all its chunks.
    pub fn with_identifier(mut self, field: impl Into<Field>) -> Self {
        self.names.identifier = self.prefixed(field);
        self
    }

    /// Sets what the identifier means. Default: [`ByClient`](IdentifierKind::ByClient).
    pub fn with_identifier_kind(mut self, kind: IdentifierKind) -> Self {
        self.identifier_kind = kind;
        self
    }

    /// Sets the field of the length of the whole file, in bytes.
    pub fn with_total_size(mut self, field: impl Into<Field>) -> Self {
        self.names.total_size = self.prefixed(field);
        self
    }

    /// Sets the field of the offset at which the chunk starts in the file, in bytes from 0.
    pub fn with_offset(mut self, field: impl Into<Field>) -> Self {
        self.names.offset = self.prefixed(field);
        self
    }

    /// Sets the field of the number of the chunk, and the number of the first chunk. Without an
    /// offset, the number and the chunk size determine where the chunk starts.
    pub fn with_chunk_number(mut self, field: impl Into<Field>, first: u64) -> Self {
        self.names.chunk_number = self.prefixed(field);
        self.first_number = first;
        self
    }

    /// Sets the field of the length of each chunk but the last, in bytes.
    pub fn with_chunk_size(mut self, field: impl Into<Field>) -> Self {
        self.names.chunk_size = self.prefixed(field);
        self
    }

    /// Sets the length of each chunk but the last, in bytes, for a client that does not send it.
    /// Values below 1 become 1.
    pub fn with_fixed_chunk_size(mut self, bytes: u64) -> Self {
        self.fixed_chunk_size = Some(bytes.max(1));
        self
    }

    /// Sets the field of the length of this chunk, in bytes.
    pub fn with_chunk_length(mut self, field: impl Into<Field>) -> Self {
        self.names.chunk_length = self.prefixed(field);
        self
    }

    /// Sets the field of the number of chunks of the file. The value is not used, because some
    /// clients send a wrong one.
    pub fn with_total_chunks(mut self, field: impl Into<Field>) -> Self {
        self.names.total_chunks = self.prefixed(field);
        self
    }

    /// Sets the field of the name of the file.
    pub fn with_file_name(mut self, field: impl Into<Field>) -> Self {
        self.names.file_name = self.prefixed(field);
        self
    }

    /// Sets the field of the path of the file inside the folder that the user has chosen.
    pub fn with_relative_path(mut self, field: impl Into<Field>) -> Self {
        self.names.relative_path = self.prefixed(field);
        self
    }

    /// Sets the field of the media type of the file.
    pub fn with_content_type(mut self, field: impl Into<Field>) -> Self {
        self.names.content_type = self.prefixed(field);
        self
    }

    /// Sets the field that says that the client continues an upload without having asked what is
    /// stored. If the upload is gone, the client is told to start again:
    /// `{"reset":true,"success":false}`.
    pub fn with_resumed(mut self, field: impl Into<Field>) -> Self {
        self.names.resumed = self.prefixed(field);
        self
    }

    /// Sets the field that turns a `GET` or `HEAD` request into a status request. The client does
    /// not send it; the application can. The answer is a JSON object that says which bytes are
    /// stored.
    pub fn with_status(mut self, field: impl Into<Field>) -> Self {
        self.names.status = self.prefixed(field);
        self
    }

    /// Adds a field of the client that is not used. It does not count as one of the application's
    /// fields.
    pub fn with_ignored(mut self, field: impl Into<Field>) -> Self {
        let field = self.prefixed(field);
        self.names.ignored.push(field);
        self
    }

    /// Sets the name of the part that carries the bytes in a form. Default: `file`.
    pub fn with_file_field(mut self, name: impl Into<String>) -> Self {
        self.file_field = format!("{}{}", self.namespace, name.into());
        self
    }

    fn prefixed(&self, field: impl Into<Field>) -> Field {
        let mut field = field.into();
        if let Source::QueryOrForm(name) = &mut field.0 {
            if !name.is_empty() {
                name.insert_str(0, &self.namespace);
            }
        }
        field
    }
}

/// What the client sends.
impl Dialect {
    /// Sets how long the last chunk is. Default: [`RestOrMore`](LastChunk::RestOrMore).
    ///
    /// From the position of a chunk, the chunk size and the total size follow the lengths that it
    /// can have. A chunk of any other length is refused.
    pub fn with_last_chunk(mut self, layout: LastChunk) -> Self {
        self.last_chunk = layout;
        self
    }

    /// Sets whether the client can send an empty chunk after a last one of full length. Default:
    /// `false`.
    pub fn with_trailing_empty_chunk(mut self, accept: bool) -> Self {
        self.trailing_empty_chunk = accept;
        self
    }

    /// Sets whether a request without an offset and a chunk number carries a whole file. Its total
    /// size is optional. Default: `false`.
    pub fn with_whole_files(mut self, accept: bool) -> Self {
        self.whole_files = accept;
        self
    }

    /// Sets whether a chunk must have the length that the client declares. Default: `true`.
    ///
    /// `false` is for clients that change the bytes of a chunk before they send it.
    pub fn with_length_check(mut self, check: bool) -> Self {
        self.length_check = check;
        self
    }

    /// Sets whether the file in a form can be a text field: base64, or a data URL. Default:
    /// `false`. It concerns only forms with the fields of this client.
    pub fn with_base64(mut self, accept: bool) -> Self {
        self.base64 = accept;
        self
    }

    /// Sets whether a form without a file is a probe. Default: `false`: it is an error.
    ///
    /// A `GET` or `HEAD` request is a probe in all dialects, and so is a `POST` request without a
    /// body and without a content type.
    pub fn with_form_tests(mut self, accept: bool) -> Self {
        self.form_tests = accept;
        self
    }

    /// Answers each probe with 200 and the numbers of all stored chunks, in this member of a JSON
    /// object. Default: a probe asks for one chunk, and is answered with 200 or 204.
    pub fn with_list_tests(mut self, member: impl Into<String>) -> Self {
        self.list_tests = Some(member.into());
        self
    }

    /// Sets whether the client asks at the end, with a URL-encoded form, whether the upload is
    /// complete. Default: `false`.
    ///
    /// The answer is that of the inner service. If the upload is not complete, the client is told
    /// to start again, as with [`with_resumed`](Self::with_resumed).
    pub fn with_final_question(mut self, accept: bool) -> Self {
        self.final_question = accept;
        self
    }
}

/// What the client needs to be answered.
impl Dialect {
    /// Sets the format of all answers. Default: [`Plain`](AnswerFormat::Plain).
    pub fn with_answers(mut self, format: AnswerFormat) -> Self {
        self.answers = format;
        self
    }

    /// Sets how the client learns how much is stored. Default: [`ByTests`](Resume::ByTests).
    pub fn with_resume(mut self, resume: Resume) -> Self {
        self.resume = resume;
        self
    }

    /// Sets the status of a final refusal, at which the client stops. Default: 400.
    ///
    /// A retryable error is answered with 503.
    pub fn with_refusal(mut self, status: StatusCode) -> Self {
        self.refusal = status;
        self
    }
}

/// What identifies an upload of a chunk client, in addition to its scope, its path and the
/// [fields](crate::ResumableLayer::with_identity_fields) that are set.
///
/// More rules can be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityRule {
    /// Identifier, total size, and relative path (or file name, if there is no path). The
    /// identifier alone for clients whose identifiers are [unique](IdentifierKind::Unique).
    ///
    /// The identifier that Resumable.js makes consists of the size and the ASCII letters and digits
    /// of the name. Different files share it easily. A file that was edited without a change of its
    /// length has the same one: see [`ClientOptions`](crate::ClientOptions).
    #[default]
    Full,
    /// The identifier alone. For applications that set their own, such as a hash of the content.
    Identifier,
}
