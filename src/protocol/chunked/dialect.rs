use std::borrow::Cow;

use http::{Method, StatusCode};

use super::{
    super::plain::may_be_whole,
    Answers, Chunk, Identity, InOrder, Numbering, Params, headers,
    parse::{Fields, invalid, missing},
};
use crate::{
    UploadError,
    limits::{NAME_BYTES, PATH_BYTES, TYPE_BYTES},
};

/// How one family of clients names what a chunk is: a table.
///
/// The layer understands [Resumable.js](crate::ResumableJs), [flow.js](Self::flow_js),
/// [Dropzone](Self::dropzone) and [Fine Uploader](Self::fine_uploader) by itself, and tells them
/// apart by the names of their fields. [Others](Self::simple_uploader) have names that an
/// application could use for something else; they are added with
/// [`with_dialect`](crate::ResumableLayer::with_dialect).
///
/// Any client can be added that says in each request which file it sends, how long that is, and
/// where in it the chunk begins:
///
/// ```
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_resumable::{Dialect, MemoryStore, ResumableLayer};
/// # use http::{Request, Response};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let inner = service_fn(async |_: Request<String>| {
/// #     Ok::<_, std::io::Error>(Response::new("it is here".to_owned()))
/// # });
/// let dialect = Dialect::new("camera")
///     .with_identifier("clip")
///     .with_total_size("length")
///     .with_offset("from")
///     .with_file_name("name");
/// let layer = ResumableLayer::new(MemoryStore::default()).with_dialect(dialect);
/// let mut service = layer.layer(inner);
///
/// for (from, body) in [(5, "world"), (0, "hello")] {
///     let chunk = format!("/upload?clip=7&length=10&name=greeting.txt&from={from}");
///     let answer = service.clone().oneshot(Request::post(chunk).body(body.to_owned())?).await?;
///     assert_eq!(answer.status(), 200);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Dialect {
    pub(super) name: Cow<'static, str>,
    pub(super) names: Names,
    pub(super) first_number: u64,
    /// Bytes of a chunk, if the client does not say.
    pub(super) chunk_size: Option<u64>,
    pub(super) last_chunk: LastChunk,
    /// No two uploads have the same one.
    pub(super) unique_identifiers: bool,
    /// A file may be sent as a whole, with no word of where it begins.
    pub(super) whole_files: bool,
    /// The file's name is that of the form's part.
    pub(super) name_of_part: bool,
    /// The file's media type is that of the form's part.
    pub(super) type_of_part: bool,
    /// It wants a name for the upload first; the name has the total size in it.
    pub(super) names_are_ours: bool,
    /// The file in a form can be text: base64.
    pub(super) base64: bool,
    /// The member of each answer that is the number of the chunk.
    pub(super) echo: Option<&'static str>,
    /// It asks in the end, in a form of its own, whether all has come.
    pub(super) asks_in_the_end: bool,
    /// Its test can be the form of a chunk without the file.
    pub(super) form_tests: bool,
    pub(super) length_check: bool,
    pub(super) answers: Answers,
}

/// The names of a dialect's fields; empty for what it does not have.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub(super) identifier: String,
    pub(super) total_size: String,
    pub(super) offset: String,
    pub(super) chunk_number: String,
    pub(super) chunk_size: String,
    pub(super) chunk_length: String,
    pub(super) file_name: String,
    pub(super) relative_path: String,
    pub(super) content_type: String,
    /// The client's own too, but nothing that is needed.
    pub(super) unused: Vec<String>,
    /// Says that the client has sent some of the file before, and that without a test.
    pub(super) resumed: String,
    /// Not the client's: asks what is stored.
    pub(super) status: String,
    /// Carries the bytes in a form.
    pub(super) file: String,
}

/// How long the last chunk of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LastChunk {
    /// What is left, or that and the chunk before it.
    RestOrMore,
    /// What is left.
    Rest,
}

/// Tables of one's own.
impl Dialect {
    /// A table without any names, for a client of one's own. It needs an identifier, a total size,
    /// and an offset or the number and the size of chunks.
    ///
    /// `name` is for nothing but [`with_dialect`](crate::ResumableLayer::with_dialect), which puts
    /// a dialect in the place of the one that has its name.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        let names = Names {
            file: "file".into(),
            ..Names::default()
        };
        Self {
            name: name.into(),
            names,
            first_number: 1,
            chunk_size: None,
            last_chunk: LastChunk::RestOrMore,
            unique_identifiers: false,
            whole_files: false,
            name_of_part: false,
            type_of_part: false,
            names_are_ours: false,
            base64: false,
            echo: None,
            asks_in_the_end: false,
            form_tests: false,
            length_check: true,
            answers: Answers::default(),
        }
    }

    /// The same table under another name.
    pub fn with_name(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = name.into();
        self
    }

    /// The field that names the file: text, the same in all its chunks.
    ///
    /// This and all other names of fields can also be those of headers: `header:x-clip`.
    pub fn with_identifier(mut self, field: impl Into<String>) -> Self {
        self.names.identifier = field.into();
        self
    }

    /// The field with the bytes of the whole file.
    pub fn with_total_size(mut self, field: impl Into<String>) -> Self {
        self.names.total_size = field.into();
        self
    }

    /// The field with the byte of the file at which the chunk begins, from 0.
    pub fn with_offset(mut self, field: impl Into<String>) -> Self {
        self.names.offset = field.into();
        self
    }

    /// The field with the number of the chunk, and the number of the first one. Without an offset
    /// it says, with the chunk size, where the chunk begins.
    pub fn with_chunk_number(mut self, field: impl Into<String>, first: u64) -> Self {
        self.names.chunk_number = field.into();
        self.first_number = first;
        self
    }

    /// The field with the bytes of a chunk as the client is set up; those of the last one differ.
    pub fn with_chunk_size(mut self, field: impl Into<String>) -> Self {
        self.names.chunk_size = field.into();
        self
    }

    /// The field with the bytes of this chunk.
    pub fn with_chunk_length(mut self, field: impl Into<String>) -> Self {
        self.names.chunk_length = field.into();
        self
    }

    /// The field with the file's name.
    pub fn with_file_name(mut self, field: impl Into<String>) -> Self {
        self.names.file_name = field.into();
        self
    }

    /// The field with the file's path inside the folder that was chosen.
    pub fn with_relative_path(mut self, field: impl Into<String>) -> Self {
        self.names.relative_path = field.into();
        self
    }

    /// The field with the file's media type.
    pub fn with_content_type(mut self, field: impl Into<String>) -> Self {
        self.names.content_type = field.into();
        self
    }

    /// One more field of the client, which is not needed and not the application's.
    pub fn with_unused(mut self, field: impl Into<String>) -> Self {
        self.names.unused.push(field.into());
        self
    }

    /// The parameter that makes a status request of a `GET`; none by default.
    pub fn with_status(mut self, field: impl Into<String>) -> Self {
        self.names.status = field.into();
        self
    }

    /// The part of the form that carries the bytes; `file` by default.
    pub fn with_file_field(mut self, field: impl Into<String>) -> Self {
        self.names.file = field.into();
        self
    }

    /// Whether a chunk must have the size that the client declares; `true` by default. To be set to
    /// `false` for clients that transform the bytes of a chunk before they send it.
    pub fn with_length_check(mut self, check: bool) -> Self {
        self.length_check = check;
        self
    }

    /// Whether the file in a form can be text, which is base64 or a data URL; `false` by default.
    pub fn with_base64(mut self, accept: bool) -> Self {
        self.base64 = accept;
        self
    }

    /// The status of a refusal that is final; 400 by default. What is worth another try is 503.
    pub fn with_refusal(mut self, status: StatusCode) -> Self {
        self.answers.refusal = status;
        self
    }
}

/// What the table says of a request's fields.
impl Dialect {
    pub(crate) fn is_ours(&self, name: &str) -> bool {
        self.names.all().any(|ours| ours == name)
    }

    /// The application's own fields.
    pub(crate) fn extra(&self, params: &Params) -> Vec<(String, String)> {
        params.extra(|name| self.is_ours(name))
    }

    /// How a request with these fields is to be answered.
    pub(crate) fn answers(&self, params: &Params) -> Answers {
        let number = || {
            let fields = Fields::first(params);
            fields.number(&self.names.chunk_number, 0).ok().flatten()
        };
        Answers {
            echo: self.echo.and_then(|name| Some((name, number()?))),
            ..self.answers
        }
    }

    pub(crate) fn is_file(&self, field: &str, is_text: bool) -> bool {
        self.names.file == field && (self.base64 || !is_text)
    }

    /// The names of headers that are fields.
    pub(super) fn header_names(&self) -> impl Iterator<Item = &str> {
        let names = self.names.all();
        names.filter(|name| name.starts_with(headers::PREFIX))
    }

    pub(crate) fn file_field(&self) -> String {
        self.names.file.clone()
    }

    /// What a form without a file asks, if that is a test.
    pub(crate) fn form_test(&self, params: &Params) -> Result<Option<Chunk>, UploadError> {
        match (self.form_tests, self.answers.list) {
            (false, _) => Ok(None),
            (true, None) => self.chunk(params).map(Some),
            (true, Some(_)) => self.status(params).map(Some),
        }
    }

    pub(super) fn identifier_name(&self) -> &str {
        &self.names.identifier
    }

    pub(super) fn asks_status(&self, params: &Params, method: &Method) -> bool {
        let by_head = self.answers.in_order == Some(InOrder::UploadOffset);
        params.contains(&self.names.status) || by_head && method == Method::HEAD
    }

    /// Whether it wants a name for an upload.
    pub(super) fn is_creation(&self, params: &Params) -> bool {
        let names = &self.names;
        self.names_are_ours
            && params.contains(&names.total_size)
            && !params.contains(&names.identifier)
    }

    /// The bytes of the file of which the upload is to be named.
    pub(super) fn creation(&self, params: &Params) -> Result<u64, UploadError> {
        Fields::strict(params).required_number(&self.names.total_size, 0)
    }

    /// Whether the client relies on what it has sent before, without having asked.
    pub(crate) fn is_resumed(&self, params: &Params) -> bool {
        params.contains(&self.names.resumed)
    }

    /// Whether a file that comes now can be stored at once: no field that may still follow can make
    /// it another upload's.
    pub(crate) fn knows_where(&self, params: &Params) -> bool {
        let names = &self.names;
        let position = match (self.whole_files, names.offset.is_empty()) {
            (true, _) => &[][..],
            (false, false) => &[&names.offset][..],
            (false, true) if self.chunk_size.is_some() => &[&names.chunk_number][..],
            (false, true) => &[&names.chunk_number, &names.chunk_size][..],
        };
        let required = || {
            [&names.identifier, &names.total_size]
                .into_iter()
                .chain(position.iter().copied())
        };
        let mut named = [&names.file_name, &names.relative_path].into_iter();
        // Who uses the query or headers puts all fields there.
        required().all(|name| params.in_head(name))
            || required().all(|name| params.contains(name))
                && named.all(|name| name.is_empty() || params.contains(name))
    }

    /// The chunk that an upload's fields speak of.
    pub(crate) fn chunk(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(Fields::strict(params), Asked::Chunk)
    }

    pub(super) fn probe(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(Fields::first(params), Asked::Chunk)
    }

    /// Asks for the whole upload, so no chunk need be named.
    pub(super) fn status(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(Fields::first(params), Asked::Upload)
    }

    pub(super) fn identity(&self, fields: Fields<'_>) -> Result<Identity, UploadError> {
        let names = &self.names;
        let identifier = fields.full_text(&names.identifier, NAME_BYTES)?;
        let identifier = identifier.ok_or_else(|| missing(&names.identifier))?;
        let total = match self.names_are_ours {
            true => self.total_of_named(fields, &identifier)?,
            false => fields.required_number(&names.total_size, 0)?,
        };
        let mut identity = Identity {
            identifier,
            total,
            file_name: fields.full_text(&names.file_name, NAME_BYTES)?,
            relative_path: fields.text(&names.relative_path, PATH_BYTES)?,
            is_unique: self.unique_identifiers,
        };
        if self.name_of_part && identity.file_name.is_none() {
            identity.file_name = fields.part_name()?;
        }
        Ok(identity)
    }

    /// The upload of which the client says in the end that all has come.
    pub(super) fn whole(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(Fields::strict(params), Asked::Upload)
    }

    /// A file that comes as a whole is as long as what comes, if the client does not say.
    pub(crate) fn add_total(&self, params: &mut Params, len: u64) {
        let names = &self.names;
        let position = [&names.offset, &names.chunk_number, &names.total_size];
        if self.whole_files
            && !position.iter().any(|name| params.contains(name))
            && may_be_whole(params, |name| self.is_ours(name))
        {
            params.push_body(names.total_size.clone(), len.to_string());
        }
    }

    /// The total size of an upload that has got its name here, or one of the application's.
    fn total_of_named(&self, fields: Fields<'_>, identifier: &str) -> Result<u64, UploadError> {
        let name = &self.names.total_size;
        let declared = fields.number(name, 0)?;
        match (total_of_created(identifier), declared) {
            (Some(total), Some(declared)) if declared != total => {
                Err(invalid(name, "is not what the upload was made for"))
            }
            (Some(total), _) | (None, Some(total)) => Ok(total),
            (None, None) => Err(missing(name)),
        }
    }

    fn read(&self, fields: Fields<'_>, asked: Asked) -> Result<Chunk, UploadError> {
        let names = &self.names;
        let identity = self.identity(fields)?;
        let content_type = match self.type_of_part {
            true => fields.part_type()?,
            false => fields.text(&names.content_type, TYPE_BYTES)?,
        };
        let number = fields.number(&names.chunk_number, self.first_number)?;
        let offset = fields.number(&names.offset, 0)?;
        let is_whole = self.whole_files && number.is_none() && offset.is_none();
        let by_number = names.offset.is_empty() && !is_whole;
        if by_number && number.is_none() && asked == Asked::Chunk {
            return Err(missing(&names.chunk_number));
        }
        let chunk_size = match by_number {
            _ if self.chunk_size.is_some() => self.chunk_size,
            true => Some(fields.required_number(&names.chunk_size, 1)?),
            false => fields.number(&names.chunk_size, 1)?,
        };
        let declared = fields.number(&names.chunk_length, 0)?;

        let total = identity.total;
        let index = number.map_or(0, |number| number - self.first_number);
        let offset = match offset {
            Some(offset) => offset,
            None if by_number => index
                .checked_mul(chunk_size.unwrap_or_default())
                .ok_or(UploadError::OutOfBounds)?,
            None if is_whole || asked == Asked::Upload => 0,
            None => return Err(missing(&names.offset)),
        };
        // An empty file has one empty chunk; and FilePond sends one behind the last full one.
        let may_be_empty = total == 0 || self.names_are_ours;
        if offset > total || (offset == total && !may_be_empty) {
            return Err(UploadError::OutOfBounds);
        }
        let rest = total - offset;
        let (len, max_len) = match (declared, chunk_size) {
            _ if !self.length_check => (None, rest),
            (Some(len), _) if !self.can_be_chunk(len, chunk_size, rest) => {
                let reason = "is not the size of this chunk in any layout";
                return Err(invalid(&names.chunk_length, reason));
            }
            (Some(len), _) => (Some(len), len),
            (None, _) if is_whole => (Some(rest), rest),
            (None, Some(size)) if self.last_chunk == LastChunk::Rest => {
                (Some(size.min(rest)), size.min(rest))
            }
            (None, Some(size)) if !self.can_be_chunk(rest, chunk_size, rest) => (None, size),
            (None, _) => (None, rest),
        };
        let first = self.first_number;
        Ok(Chunk {
            identity,
            content_type,
            numbering: chunk_size.map(|size| Numbering { first, size }),
            offset,
            len,
            max_len,
        })
    }

    /// Whether a chunk can have this length if `rest` bytes of the file begin with it.
    fn can_be_chunk(&self, len: u64, chunk_size: Option<u64>, rest: u64) -> bool {
        let Some(size) = chunk_size else {
            return len <= rest && (len > 0 || rest == 0);
        };
        let whole = len == size && size <= rest;
        let before_last = rest.saturating_sub(size);
        let last = len == rest
            && match self.last_chunk {
                LastChunk::RestOrMore => before_last < size,
                LastChunk::Rest => before_last == 0,
            };
        whole || last
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Chunk,
    Upload,
}

impl Names {
    fn all(&self) -> impl Iterator<Item = &str> {
        [
            &self.identifier,
            &self.total_size,
            &self.offset,
            &self.chunk_number,
            &self.chunk_size,
            &self.chunk_length,
            &self.file_name,
            &self.relative_path,
            &self.content_type,
            &self.resumed,
            &self.status,
        ]
        .into_iter()
        .chain(&self.unused)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
    }

    pub(super) fn all_mut(&mut self) -> impl Iterator<Item = &mut String> {
        [
            &mut self.identifier,
            &mut self.total_size,
            &mut self.offset,
            &mut self.chunk_number,
            &mut self.chunk_size,
            &mut self.chunk_length,
            &mut self.file_name,
            &mut self.relative_path,
            &mut self.content_type,
            &mut self.resumed,
            &mut self.status,
            &mut self.file,
        ]
        .into_iter()
        .chain(&mut self.unused)
        .filter(|name| !name.is_empty())
    }
}

/// A name for an upload of so many bytes.
pub(crate) fn created_identifier(random: &str, total: u64) -> String {
    format!("{random}-{total}")
}

/// The bytes of such a name.
fn total_of_created(identifier: &str) -> Option<u64> {
    let (random, total) = identifier.split_once('-')?;
    let is_random = random.len() == 32 && random.bytes().all(|b| b.is_ascii_hexdigit());
    total.parse().ok().filter(|_| is_random)
}
