use std::borrow::Cow;

use http::{HeaderValue, Method, header, request::Parts};

use super::{Chunk, FieldRole, Identity, Intent, Params, Transport};
use crate::UploadError;

/// The field names of Resumable.js, as the client is set up.
///
/// Needed only where the client's options differ from its defaults: each setter is named after the
/// option of the client. An empty name stands for a parameter that the client drops; identifier,
/// total size, chunk number and chunk size have to be there.
///
/// ```
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_resumable::{MemoryStore, ResumableJs, ResumableLayer};
/// # use http::{Request, Response};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let inner = service_fn(async |_: Request<String>| {
/// #     Ok::<_, std::io::Error>(Response::new(String::new()))
/// # });
/// // new Resumable({ parameterNamespace: 'up_', identifierParameterName: 'id', … })
/// let dialect = ResumableJs::new().with_namespace("up_").with_identifier_name("id");
/// let layer = ResumableLayer::new(MemoryStore::default()).with_dialect(dialect);
///
/// let test = "/upload?up_id=1-a&up_resumableTotalSize=1\
///             &up_resumableChunkNumber=1&up_resumableChunkSize=1024";
/// let test = Request::get(test).body(String::new())?;
/// let answer = layer.layer(inner).oneshot(test).await?;
/// assert_eq!(answer.status(), 204); // it is not stored yet: send it
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ResumableJs {
    namespace: String,
    names: Names,
    file_parameter: String,
    length_check: bool,
}

/// Each with the namespace before it; empty if the client drops it.
#[derive(Clone, Debug)]
struct Names {
    chunk_number: String,
    chunk_size: String,
    current_chunk_size: String,
    total_size: String,
    content_type: String,
    identifier: String,
    file_name: String,
    relative_path: String,
    total_chunks: String,
    /// Not the client's: asks what is stored.
    status: String,
}

impl Default for ResumableJs {
    fn default() -> Self {
        Self {
            namespace: String::new(),
            names: Names {
                chunk_number: "resumableChunkNumber".into(),
                chunk_size: "resumableChunkSize".into(),
                current_chunk_size: "resumableCurrentChunkSize".into(),
                total_size: "resumableTotalSize".into(),
                content_type: "resumableType".into(),
                identifier: "resumableIdentifier".into(),
                file_name: "resumableFilename".into(),
                relative_path: "resumableRelativePath".into(),
                total_chunks: "resumableTotalChunks".into(),
                status: "resumableStatus".into(),
            },
            file_parameter: "file".into(),
            length_check: true,
        }
    }
}

/// The setters.
impl ResumableJs {
    /// The client's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// `parameterNamespace`: comes before every name, the application's own ones and the file's
    /// included.
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        let (old, new) = (self.namespace.len(), namespace.into());
        let names = self.names.all_mut().into_iter();
        for name in names.chain([&mut self.file_parameter]) {
            if !name.is_empty() {
                name.replace_range(..old, &new);
            }
        }
        self.namespace = new;
        self
    }

    /// `chunkNumberParameterName`
    pub fn with_chunk_number_name(mut self, name: impl Into<String>) -> Self {
        self.names.chunk_number = self.namespaced(name);
        self
    }

    /// `chunkSizeParameterName`
    pub fn with_chunk_size_name(mut self, name: impl Into<String>) -> Self {
        self.names.chunk_size = self.namespaced(name);
        self
    }

    /// `currentChunkSizeParameterName`
    pub fn with_current_chunk_size_name(mut self, name: impl Into<String>) -> Self {
        self.names.current_chunk_size = self.namespaced(name);
        self
    }

    /// `totalSizeParameterName`
    pub fn with_total_size_name(mut self, name: impl Into<String>) -> Self {
        self.names.total_size = self.namespaced(name);
        self
    }

    /// `typeParameterName`
    pub fn with_type_name(mut self, name: impl Into<String>) -> Self {
        self.names.content_type = self.namespaced(name);
        self
    }

    /// `identifierParameterName`
    pub fn with_identifier_name(mut self, name: impl Into<String>) -> Self {
        self.names.identifier = self.namespaced(name);
        self
    }

    /// `fileNameParameterName`
    pub fn with_file_name_name(mut self, name: impl Into<String>) -> Self {
        self.names.file_name = self.namespaced(name);
        self
    }

    /// `relativePathParameterName`
    pub fn with_relative_path_name(mut self, name: impl Into<String>) -> Self {
        self.names.relative_path = self.namespaced(name);
        self
    }

    /// `totalChunksParameterName`. Its value is never used: the most used release sends wrong ones.
    pub fn with_total_chunks_name(mut self, name: impl Into<String>) -> Self {
        self.names.total_chunks = self.namespaced(name);
        self
    }

    /// `fileParameterName`
    pub fn with_file_parameter_name(mut self, name: impl Into<String>) -> Self {
        self.file_parameter = self.namespaced(name);
        self
    }

    /// Whether a chunk must have the size that the client declares; `true` by default. To be set to
    /// `false` for clients that transform the bytes of a chunk before they send it.
    pub fn with_length_check(mut self, check: bool) -> Self {
        self.length_check = check;
        self
    }

    fn namespaced(&self, name: impl Into<String>) -> String {
        let mut name = name.into();
        if !name.is_empty() {
            name.insert_str(0, &self.namespace);
        }
        name
    }
}

/// From the head of a request to what it wants.
impl ResumableJs {
    pub(crate) fn intent(&self, parts: &Parts, body_is_empty: bool) -> Result<Intent, UploadError> {
        // A preflight carries the query of the request that it asks for.
        if parts.method == Method::OPTIONS {
            return Ok(Intent::Pass);
        }
        let query = parts.uri.query();
        let content_type = parts.headers.get(header::CONTENT_TYPE);
        let is_upload = [Method::POST, Method::PUT, Method::PATCH].contains(&parts.method);
        // Resumable.js 1.0.2 has its fields only in the form, so every form on this path is one.
        let form = content_type.filter(|_| is_upload).and_then(boundary);
        if let Some(boundary) = form {
            let boundary = boundary?;
            let params = Params::from_query(query)?;
            return Ok(Intent::Put(params, Transport::Multipart { boundary }));
        }
        // Comes before the caps: what is not ours may have a query of any size.
        if !Params::query_has(query, |name| self.is_ours(name)) {
            return Ok(Intent::Pass);
        }
        let params = Params::from_query(query)?;
        match parts.method {
            Method::GET | Method::HEAD if params.contains(&self.names.status) => {
                self.status(&params).map(Intent::Status)
            }
            Method::GET | Method::HEAD => self.probe(&params).map(Intent::Probe),
            // `testMethod: 'POST'`. An empty chunk has a content type.
            Method::POST if body_is_empty && content_type.is_none() => {
                self.probe(&params).map(Intent::Probe)
            }
            Method::DELETE => self.identity(Fields::strict(&params)).map(Intent::Cancel),
            _ if is_upload => Ok(Intent::Put(params, Transport::Octets)),
            _ => Err(UploadError::MethodNotAllowed),
        }
    }

    pub(crate) fn is_ours(&self, name: &str) -> bool {
        !name.is_empty() && self.names.all().contains(&name)
    }

    pub(crate) fn role(&self, name: &str) -> FieldRole {
        match name == self.file_parameter {
            true => FieldRole::File,
            false => FieldRole::Param,
        }
    }

    pub(crate) fn file_parameter(&self) -> String {
        self.file_parameter.clone()
    }

    /// The application's own fields.
    pub(crate) fn extra(&self, params: &Params) -> Vec<(String, String)> {
        params.extra(|name| self.is_ours(name))
    }

    /// Whether a file that comes now can be stored at once: no field that may still follow can make
    /// it another upload's.
    pub(crate) fn knows_where(&self, params: &Params) -> bool {
        let names = &self.names;
        let required = [
            &names.identifier,
            &names.total_size,
            &names.chunk_number,
            &names.chunk_size,
        ];
        let mut named = [&names.file_name, &names.relative_path].into_iter();
        // Who uses the query puts all fields there.
        required.iter().all(|name| params.in_query(name))
            || required.iter().all(|name| params.contains(name))
                && named.all(|name| name.is_empty() || params.contains(name))
    }
}

/// From fields to a chunk.
impl ResumableJs {
    /// The chunk that an upload's fields speak of.
    pub(crate) fn chunk(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(Fields::strict(params), None)
    }

    fn probe(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(Fields::first(params), None)
    }

    /// Asks for the whole upload, so no chunk need be named.
    fn status(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(Fields::first(params), Some(1))
    }

    fn read(&self, fields: Fields<'_>, unnamed: Option<u64>) -> Result<Chunk, UploadError> {
        let names = &self.names;
        let identity = self.identity(fields)?;
        let content_type = fields.text(&names.content_type, 256)?;
        let number = fields.number(&names.chunk_number, 1)?.or(unnamed);
        let number = number.ok_or_else(|| missing(&names.chunk_number))?;
        let chunk_size = fields.required_number(&names.chunk_size, 1)?;
        let declared = fields.number(&names.current_chunk_size, 0)?;

        let total = identity.total;
        let offset = (number - 1)
            .checked_mul(chunk_size)
            .ok_or(UploadError::OutOfBounds)?;
        // An empty file has one empty chunk.
        if offset >= total && (total, offset) != (0, 0) {
            return Err(UploadError::OutOfBounds);
        }
        let rest = total - offset;
        let (len, max_len) = match declared {
            _ if !self.length_check => (None, rest),
            Some(len) if !is_chunk_length(len, chunk_size, rest) => {
                let reason = "is not the size of this chunk in any layout";
                return Err(invalid(&names.current_chunk_size, reason));
            }
            Some(len) => (Some(len), len),
            None if is_chunk_length(rest, chunk_size, rest) => (None, rest),
            None => (None, chunk_size),
        };
        Ok(Chunk {
            identity,
            content_type,
            chunk_size,
            offset,
            len,
            max_len,
        })
    }

    fn identity(&self, fields: Fields<'_>) -> Result<Identity, UploadError> {
        let names = &self.names;
        let identifier = fields.full_text(&names.identifier, 1024)?;
        Ok(Identity {
            identifier: identifier.ok_or_else(|| missing(&names.identifier))?,
            total: fields.required_number(&names.total_size, 0)?,
            file_name: fields.full_text(&names.file_name, 1024)?,
            relative_path: fields.text(&names.relative_path, 4096)?,
        })
    }
}

/// Whether a chunk can have this length if `rest` bytes of the file begin with it. A last chunk has
/// up to twice the chunk size, or, with `forceChunkSize`, what is left.
fn is_chunk_length(len: u64, chunk_size: u64, rest: u64) -> bool {
    let whole = len == chunk_size && chunk_size <= rest;
    let last = len == rest && rest.saturating_sub(chunk_size) < chunk_size;
    whole || last
}

impl Names {
    fn all(&self) -> [&str; 10] {
        [
            &self.chunk_number,
            &self.chunk_size,
            &self.current_chunk_size,
            &self.total_size,
            &self.content_type,
            &self.identifier,
            &self.file_name,
            &self.relative_path,
            &self.total_chunks,
            &self.status,
        ]
    }

    fn all_mut(&mut self) -> [&mut String; 10] {
        [
            &mut self.chunk_number,
            &mut self.chunk_size,
            &mut self.current_chunk_size,
            &mut self.total_size,
            &mut self.content_type,
            &mut self.identifier,
            &mut self.file_name,
            &mut self.relative_path,
            &mut self.total_chunks,
            &mut self.status,
        ]
    }
}

/// Fields with the way in which one that comes several times is read.
#[derive(Clone, Copy)]
struct Fields<'a> {
    params: &'a Params,
    strict: bool,
}

impl<'a> Fields<'a> {
    fn strict(params: &'a Params) -> Self {
        let strict = true;
        Self { params, strict }
    }

    fn first(params: &'a Params) -> Self {
        let strict = false;
        Self { params, strict }
    }

    fn get(self, name: &'a str) -> Result<Option<Cow<'a, str>>, UploadError> {
        match self.strict {
            // A name that the client drops.
            _ if name.is_empty() => Ok(None),
            true => self.params.one(name),
            false => self.params.first(name),
        }
    }

    /// An empty one is as good as none.
    fn text(self, name: &'a str, max: usize) -> Result<Option<String>, UploadError> {
        match self.get(name)? {
            Some(value) if value.len() > max => Err(invalid(name, "is too long")),
            Some(value) if value.contains('\0') => Err(invalid(name, "has a NUL")),
            value => Ok(value.filter(|value| !value.is_empty()).map(Cow::into_owned)),
        }
    }

    /// It may be missing, but not be empty.
    fn full_text(self, name: &'a str, max: usize) -> Result<Option<String>, UploadError> {
        match self.text(name, max)? {
            None if self.get(name)?.is_some() => Err(invalid(name, "is empty")),
            value => Ok(value),
        }
    }

    fn required_number(self, name: &'a str, min: u64) -> Result<u64, UploadError> {
        self.number(name, min)?.ok_or_else(|| missing(name))
    }

    /// Decimal digits only, as JavaScript writes integers.
    fn number(self, name: &'a str, min: u64) -> Result<Option<u64>, UploadError> {
        let Some(value) = self.get(name)? else {
            return Ok(None);
        };
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        if !digits || value.is_empty() || (value.len() > 1 && value.starts_with('0')) {
            return Err(invalid(name, "is not a whole number"));
        }
        match value.parse() {
            Ok(number) if number >= min => Ok(Some(number)),
            Ok(_) => Err(invalid(name, "is too small")),
            Err(_) => Err(invalid(name, "is too large")),
        }
    }
}

fn missing(name: &str) -> UploadError {
    UploadError::MissingField { name: name.into() }
}

fn invalid(name: &str, reason: &'static str) -> UploadError {
    UploadError::InvalidField {
        name: name.into(),
        reason,
    }
}

/// The boundary of a multipart form (RFC 2046 §5.1.1), if the content type says that it is one.
fn boundary(content_type: &HeaderValue) -> Option<Result<String, UploadError>> {
    let (mut quoted, mut escaped) = (false, false);
    let mut parts = content_type.as_bytes().split(|&b| {
        match b {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => {}
        }
        b == b';' && !quoted
    });
    let media_type = parts.next()?.trim_ascii();
    if !media_type.eq_ignore_ascii_case(b"multipart/form-data") {
        return None;
    }
    let mut boundaries = parts.filter_map(|parameter| {
        let (name, value) = std::str::from_utf8(parameter).ok()?.split_once('=')?;
        let name = name.trim_ascii_start();
        name.eq_ignore_ascii_case("boundary")
            .then(|| value.trim_ascii_end())
    });
    // Of two, others on the way may have taken the other one.
    let boundary = match (boundaries.next(), boundaries.next()) {
        (Some(value), None) => usable_boundary(value),
        _ => None,
    };
    Some(boundary.ok_or(UploadError::Multipart {
        reason: "its content type has no usable boundary",
    }))
}

fn usable_boundary(value: &str) -> Option<String> {
    let quoted = value.strip_prefix('"').and_then(|v| v.strip_suffix('"'));
    // Inside quotes even a space, but not as the last.
    let inner_space = quoted.is_some_and(|v| !v.ends_with(' '));
    let allowed = |b: u8| {
        b.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(&b) || (b == b' ' && inner_space)
    };
    let value = quoted.unwrap_or(value);
    let fits = (1..=70).contains(&value.len()) && value.bytes().all(allowed);
    fits.then(|| value.to_owned())
}
