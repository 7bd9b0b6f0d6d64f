use std::borrow::Cow;

use http::{Method, header, request::Parts};

use super::{Chunk, FieldRole, Identity, Intent, Params, Transport};
use crate::UploadError;

/// The field names of Resumable.js, as the client is set up.
///
/// Needed only where the client's options differ from its defaults: each setter is named after the
/// option of the client. A name that the client drops need not be set to anything.
///
/// ```
/// use tower_resumable::{MemoryStore, ResumableJs, ResumableLayer};
///
/// // new Resumable({ parameterNamespace: 'up_', identifierParameterName: 'id', … })
/// let dialect = ResumableJs::new().with_namespace("up_").with_identifier_name("id");
/// let layer = ResumableLayer::new(MemoryStore::default()).with_dialect(dialect);
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ResumableJs {
    namespace: String,
    names: Names,
    file_parameter: String,
    length_check: bool,
}

/// Each with the namespace before it.
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
        for name in self
            .names
            .all_mut()
            .into_iter()
            .chain([&mut self.file_parameter])
        {
            name.replace_range(..old, &new);
        }
        self.namespace = new;
        self
    }

    /// `chunkNumberParameterName`
    pub fn with_chunk_number_name(mut self, name: &str) -> Self {
        self.names.chunk_number = self.namespaced(name);
        self
    }

    /// `chunkSizeParameterName`
    pub fn with_chunk_size_name(mut self, name: &str) -> Self {
        self.names.chunk_size = self.namespaced(name);
        self
    }

    /// `currentChunkSizeParameterName`
    pub fn with_current_chunk_size_name(mut self, name: &str) -> Self {
        self.names.current_chunk_size = self.namespaced(name);
        self
    }

    /// `totalSizeParameterName`
    pub fn with_total_size_name(mut self, name: &str) -> Self {
        self.names.total_size = self.namespaced(name);
        self
    }

    /// `typeParameterName`
    pub fn with_type_name(mut self, name: &str) -> Self {
        self.names.content_type = self.namespaced(name);
        self
    }

    /// `identifierParameterName`
    pub fn with_identifier_name(mut self, name: &str) -> Self {
        self.names.identifier = self.namespaced(name);
        self
    }

    /// `fileNameParameterName`
    pub fn with_file_name_name(mut self, name: &str) -> Self {
        self.names.file_name = self.namespaced(name);
        self
    }

    /// `relativePathParameterName`
    pub fn with_relative_path_name(mut self, name: &str) -> Self {
        self.names.relative_path = self.namespaced(name);
        self
    }

    /// `totalChunksParameterName`. Its value is never used: the most used release sends wrong ones.
    pub fn with_total_chunks_name(mut self, name: &str) -> Self {
        self.names.total_chunks = self.namespaced(name);
        self
    }

    /// `fileParameterName`
    pub fn with_file_parameter_name(mut self, name: &str) -> Self {
        self.file_parameter = self.namespaced(name);
        self
    }

    /// Whether a chunk must have the size that the client declares; `true` by default. To be set to
    /// `false` for clients that transform the bytes of a chunk before they send it.
    pub fn with_length_check(mut self, check: bool) -> Self {
        self.length_check = check;
        self
    }

    fn namespaced(&self, name: &str) -> String {
        format!("{}{name}", self.namespace)
    }
}

/// From the head of a request to what it wants.
impl ResumableJs {
    pub(crate) fn intent(&self, parts: &Parts, body_is_empty: bool) -> Result<Intent, UploadError> {
        let params = || Params::from_query(parts.uri.query());
        match parts.method {
            Method::GET | Method::HEAD => {
                let params = params()?;
                match self.speaks(&params) {
                    false => Ok(Intent::Pass),
                    true if params.contains(&self.names.status) => {
                        Ok(Intent::Status(self.read(&Probe(&params))?))
                    }
                    true => Ok(Intent::Probe(self.read(&Probe(&params))?)),
                }
            }
            Method::DELETE => {
                let params = params()?;
                match self.speaks(&params) {
                    true => Ok(Intent::Cancel(self.identity(&Strict(&params))?)),
                    false => Ok(Intent::Pass),
                }
            }
            Method::POST | Method::PUT | Method::PATCH => {
                let content_type = parts.headers.get(header::CONTENT_TYPE);
                if let Some(boundary) = content_type.and_then(|v| boundary(v.as_bytes())) {
                    return Ok(Intent::Put(
                        params()?,
                        Transport::Multipart {
                            boundary: boundary?,
                        },
                    ));
                }
                let params = params()?;
                match self.speaks(&params) {
                    false => Ok(Intent::Pass),
                    // `testMethod: 'POST'`. An empty chunk has a content type.
                    true if body_is_empty && content_type.is_none() => {
                        Ok(Intent::Probe(self.read(&Probe(&params))?))
                    }
                    true => Ok(Intent::Put(params, Transport::Octets)),
                }
            }
            // A preflight carries the query of what it asks for.
            Method::OPTIONS => Ok(Intent::Pass),
            _ => match self.speaks(&params()?) {
                true => Err(UploadError::MethodNotAllowed),
                false => Ok(Intent::Pass),
            },
        }
    }

    /// Whether there is any field of ours.
    fn speaks(&self, params: &Params) -> bool {
        self.names
            .all()
            .into_iter()
            .any(|name| params.contains(name))
    }

    pub(crate) fn is_ours(&self, name: &str) -> bool {
        self.names.all().contains(&name)
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
        let named = [&names.file_name, &names.relative_path];
        // Who uses the query puts all fields there.
        required.iter().all(|name| params.in_query(name))
            || required
                .iter()
                .chain(&named)
                .all(|name| params.contains(name))
    }
}

/// From fields to a chunk.
impl ResumableJs {
    /// The chunk that an upload's fields speak of.
    pub(crate) fn chunk(&self, params: &Params) -> Result<Chunk, UploadError> {
        self.read(&Strict(params))
    }

    fn read(&self, fields: &impl Fields) -> Result<Chunk, UploadError> {
        let names = &self.names;
        let identity = self.identity(fields)?;
        let chunk_size = required_number(fields, &names.chunk_size, 1)?;
        let number = required_number(fields, &names.chunk_number, 1)?;
        let declared = number_field(fields, &names.current_chunk_size, 0)?;

        let total = identity.total;
        let offset = (number - 1)
            .checked_mul(chunk_size)
            .ok_or(UploadError::OutOfBounds)?;
        // An empty file has one empty chunk.
        if offset >= total && (total, offset) != (0, 0) {
            return Err(UploadError::OutOfBounds);
        }
        let rest = total - offset;
        let (len, max_len) = if self.length_check {
            // The last chunk has up to twice the size, or, with `forceChunkSize`, what is left.
            let last = rest < chunk_size.saturating_mul(2);
            let full = rest >= chunk_size;
            match declared {
                Some(len) if (full && len == chunk_size) || (last && len == rest) => {
                    (Some(len), len)
                }
                Some(_) => return Err(invalid(&names.current_chunk_size, NO_CHUNK)),
                None => (None, if last { rest } else { chunk_size }),
            }
        } else {
            (None, rest)
        };
        let content_type = text(fields, &names.content_type, 256)?;
        Ok(Chunk {
            identity,
            content_type,
            chunk_size,
            offset,
            len,
            max_len,
        })
    }

    fn identity(&self, fields: &impl Fields) -> Result<Identity, UploadError> {
        let names = &self.names;
        let identifier = match text(fields, &names.identifier, 1024)? {
            Some(identifier) => identifier,
            None if fields.get(&names.identifier)?.is_some() => {
                return Err(invalid(&names.identifier, "is empty"));
            }
            None => return Err(missing(&names.identifier)),
        };
        let total = required_number(fields, &names.total_size, 0)?;
        let file_name = text(fields, &names.file_name, 1024)?;
        if file_name.is_none() && fields.get(&names.file_name)?.is_some() {
            return Err(invalid(&names.file_name, "is empty"));
        }
        let relative_path = text(fields, &names.relative_path, 4096)?;
        Ok(Identity {
            identifier,
            total,
            file_name,
            relative_path,
        })
    }
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

/// How a field that comes several times is read.
trait Fields {
    fn get<'a>(&'a self, name: &'a str) -> Result<Option<Cow<'a, str>>, UploadError>;
}

struct Strict<'a>(&'a Params);

impl Fields for Strict<'_> {
    fn get<'a>(&'a self, name: &'a str) -> Result<Option<Cow<'a, str>>, UploadError> {
        self.0.one(name)
    }
}

struct Probe<'a>(&'a Params);

impl Fields for Probe<'_> {
    fn get<'a>(&'a self, name: &'a str) -> Result<Option<Cow<'a, str>>, UploadError> {
        Ok(self.0.first(name))
    }
}

const NO_CHUNK: &str = "is not the size of this chunk in any layout";

fn missing(name: &str) -> UploadError {
    UploadError::MissingField { name: name.into() }
}

fn invalid(name: &str, reason: &'static str) -> UploadError {
    UploadError::InvalidField {
        name: name.into(),
        reason,
    }
}

fn text(fields: &impl Fields, name: &str, max: usize) -> Result<Option<String>, UploadError> {
    match fields.get(name)? {
        Some(value) if value.len() > max => Err(invalid(name, "is too long")),
        Some(value) if value.contains('\0') => Err(invalid(name, "has a NUL")),
        value => Ok(value.filter(|value| !value.is_empty()).map(Cow::into_owned)),
    }
}

fn required_number(fields: &impl Fields, name: &str, min: u64) -> Result<u64, UploadError> {
    number_field(fields, name, min)?.ok_or_else(|| missing(name))
}

/// Decimal digits only, as JavaScript writes integers.
fn number_field(fields: &impl Fields, name: &str, min: u64) -> Result<Option<u64>, UploadError> {
    let Some(value) = fields.get(name)? else {
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

/// The boundary of a multipart form (RFC 2046 §5.1.1), if the content type says that it is one.
fn boundary(content_type: &[u8]) -> Option<Result<String, UploadError>> {
    const FORM: &[u8] = b"multipart/form-data";
    let head = content_type.get(..FORM.len())?;
    if !head.eq_ignore_ascii_case(FORM) {
        return None;
    }
    let broken = UploadError::Multipart {
        reason: "its content type has no usable boundary",
    };
    let read = || {
        let mut parameters = std::str::from_utf8(&content_type[FORM.len()..])
            .ok()?
            .split(';');
        if !parameters.next()?.trim().is_empty() {
            return None;
        }
        let mut found = None;
        for parameter in parameters {
            let Some((name, value)) = parameter.split_once('=') else {
                continue;
            };
            if name.trim().eq_ignore_ascii_case("boundary") && found.replace(value.trim()).is_some()
            {
                return None;
            }
        }
        let value = found?;
        let quoted = value
            .strip_prefix('"')
            .and_then(|value| value.strip_suffix('"'));
        let value = quoted.unwrap_or(value);
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(&b);
        let fits =
            (1..=70).contains(&value.len()) && value.bytes().all(allowed) && !value.ends_with(' ');
        fits.then(|| value.to_owned())
    };
    Some(read().ok_or(broken))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    /// What a request is taken for, in a few words.
    fn intent(method: &str, uri: &str, content_type: Option<&str>, empty: bool) -> String {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        match ResumableJs::new().intent(&parts, empty) {
            Ok(Intent::Pass) => "pass".into(),
            Ok(Intent::Probe(chunk)) => format!("probe {}", chunk.offset),
            Ok(Intent::Status(_)) => "status".into(),
            Ok(Intent::Cancel(identity)) => format!("cancel {}", identity.identifier),
            Ok(Intent::Put(_, Transport::Octets)) => "octets".into(),
            Ok(Intent::Put(_, Transport::Multipart { boundary })) => format!("form {boundary}"),
            Err(error) => error.code().into(),
        }
    }

    const CHUNK: &str = "/u?resumableChunkNumber=2&resumableChunkSize=10&resumableTotalSize=30\
                         &resumableIdentifier=i";

    #[test]
    fn what_requests_want() {
        let form = Some("multipart/form-data; boundary=X");
        let octets = Some("application/octet-stream");
        let status = format!("{CHUNK}&resumableStatus=1");
        let long = format!("/u?{}", "a=1&".repeat(65));
        for (method, uri, content_type, empty, expected) in [
            ("GET", CHUNK, None, true, "probe 10"),
            ("HEAD", CHUNK, None, true, "probe 10"),
            ("POST", CHUNK, None, true, "probe 10"),
            ("GET", &status, None, true, "status"),
            ("DELETE", CHUNK, None, true, "cancel i"),
            ("DELETE", "/u?a=1", None, true, "pass"),
            ("GET", "/u?a=1", None, true, "pass"),
            ("GET", "/u", None, true, "pass"),
            (
                "GET",
                "/u?resumableChunkNumber=1",
                None,
                true,
                "missing_field",
            ),
            ("OPTIONS", CHUNK, None, true, "pass"),
            ("POST", CHUNK, octets, false, "octets"),
            ("POST", CHUNK, octets, true, "octets"),
            ("POST", CHUNK, Some("binary/octet-stream"), false, "octets"),
            ("POST", CHUNK, Some("text/plain"), false, "octets"),
            ("POST", CHUNK, None, false, "octets"),
            ("PUT", CHUNK, octets, false, "octets"),
            ("PATCH", CHUNK, octets, false, "octets"),
            ("POST", CHUNK, form, false, "form X"),
            ("POST", "/u", form, false, "form X"),
            ("POST", "/u", octets, false, "pass"),
            ("POST", "/u?resumablechunknumber=1", octets, false, "pass"),
            ("POST", "/u?resumableChunkNumber[]=1", octets, false, "pass"),
            ("REPORT", CHUNK, None, true, "method_not_allowed"),
            ("REPORT", "/u", None, true, "pass"),
            ("POST", &long, form, false, "too_many_fields"),
        ] {
            let got = intent(method, uri, content_type, empty);
            assert_eq!(
                got, expected,
                "{method} {uri} {content_type:?} empty: {empty}"
            );
        }
    }

    #[test]
    fn boundaries() {
        let longest = "x".repeat(70);
        for (parameters, expected) in [
            ("; boundary=X", Some("X")),
            (";boundary=X", Some("X")),
            ("; BOUNDARY=X", Some("X")),
            ("; boundary=\"a b\"", Some("a b")),
            ("; charset=utf-8; boundary=X", Some("X")),
            (&format!("; boundary={longest}"), Some(&*longest)),
            (&format!("; boundary={longest}x"), None),
            ("", None),
            ("; boundary=", None),
            ("; boundary=\"\"", None),
            ("; boundary=a; boundary=b", None),
            ("; boundary=a\tb", None),
            ("; boundary=\"a \"", None),
            ("-x; boundary=X", None),
        ] {
            let got = boundary(format!("Multipart/Form-Data{parameters}").as_bytes()).unwrap();
            assert_eq!(got.ok().as_deref(), expected, "{parameters}");
        }
        assert!(boundary(b"multipart/mixed; boundary=X").is_none());
        assert!(boundary(b"text/plain").is_none());
    }

    fn params(fields: &[(&str, &str)]) -> Params {
        let mut params = Params::default();
        for (name, value) in fields {
            params.push_body(format!("resumable{name}"), (*value).into());
        }
        params
    }

    fn chunk(
        number: &str,
        size: &str,
        current: Option<&str>,
        total: &str,
    ) -> Result<Chunk, String> {
        let mut fields = vec![
            ("Identifier", "i"),
            ("ChunkNumber", number),
            ("ChunkSize", size),
            ("TotalSize", total),
        ];
        fields.extend(current.map(|current| ("CurrentChunkSize", current)));
        ResumableJs::new()
            .chunk(&params(&fields))
            .map_err(|error| error.code().into())
    }

    #[test]
    fn layouts() {
        for (number, current, expected) in [
            // 35 bytes in chunks of 10: the default layout has three, the other four.
            ("1", Some("10"), Ok((0, Some(10), 10))),
            ("2", Some("10"), Ok((10, Some(10), 10))),
            ("3", Some("10"), Ok((20, Some(10), 10))),
            ("3", Some("15"), Ok((20, Some(15), 15))),
            ("4", Some("5"), Ok((30, Some(5), 5))),
            ("1", None, Ok((0, None, 10))),
            ("3", None, Ok((20, None, 15))),
            ("4", None, Ok((30, None, 5))),
            ("1", Some("9"), Err("invalid_field")),
            ("1", Some("35"), Err("invalid_field")),
            ("2", Some("25"), Err("invalid_field")),
            ("3", Some("14"), Err("invalid_field")),
            ("4", Some("10"), Err("invalid_field")),
            ("4", Some("0"), Err("invalid_field")),
            ("5", None, Err("out_of_bounds")),
        ] {
            let got = chunk(number, "10", current, "35").map(|c| (c.offset, c.len, c.max_len));
            assert_eq!(
                got,
                expected.map_err(Into::into),
                "chunk {number} of {current:?}"
            );
        }
        for (number, size, current, total, expected) in [
            // A chunk size beyond the file, an empty file.
            ("1", "100", Some("35"), "35", Ok((0, Some(35)))),
            ("1", "10", Some("0"), "0", Ok((0, Some(0)))),
            ("2", "10", Some("0"), "0", Err("out_of_bounds")),
            ("1", "10", Some("1"), "0", Err("invalid_field")),
            ("3", "9223372036854775808", None, "1", Err("out_of_bounds")),
            (
                "2",
                "18446744073709551615",
                None,
                "18446744073709551615",
                Err("out_of_bounds"),
            ),
        ] {
            let got = chunk(number, size, current, total).map(|c| (c.offset, c.len));
            assert_eq!(
                got,
                expected.map_err(Into::into),
                "{number} {size} {current:?} {total}"
            );
        }
    }

    #[test]
    fn numbers() {
        for bad in [
            "",
            "0",
            "-1",
            "+1",
            " 1",
            "1 ",
            "0x1",
            "1e3",
            "1.0",
            "１",
            "01",
            "NaN",
            "18446744073709551616",
            "111111111111111111111111111111",
        ] {
            assert_eq!(
                chunk(bad, "10", None, "35"),
                Err("invalid_field".into()),
                "{bad:?}"
            );
            assert_eq!(
                chunk("1", bad, None, "35"),
                Err("invalid_field".into()),
                "{bad:?}"
            );
            if bad != "0" {
                assert_eq!(
                    chunk("1", "10", None, bad),
                    Err("invalid_field".into()),
                    "{bad:?}"
                );
            }
        }
    }

    #[test]
    fn texts() {
        let long = |len| "x".repeat(len);
        for (name, max) in [
            ("Identifier", 1024),
            ("Filename", 1024),
            ("RelativePath", 4096),
            ("Type", 256),
        ] {
            let with = |value: &str| {
                let mut fields = vec![
                    ("ChunkNumber", "1"),
                    ("ChunkSize", "10"),
                    ("TotalSize", "5"),
                    (name, value),
                ];
                if name != "Identifier" {
                    fields.push(("Identifier", "i"));
                }
                ResumableJs::new().chunk(&params(&fields))
            };
            assert!(with(&long(max)).is_ok(), "{name}");
            assert_eq!(
                with(&long(max + 1)).unwrap_err().code(),
                "invalid_field",
                "{name}"
            );
            assert_eq!(with("a\0b").unwrap_err().code(), "invalid_field", "{name}");
            // `resumableType` is often empty.
            let may_be_empty = matches!(name, "RelativePath" | "Type");
            assert_eq!(with("").is_ok(), may_be_empty, "{name}");
            assert!(with("../../etc/passwd").is_ok(), "{name}");
        }
    }

    #[test]
    fn fields_that_come_twice() {
        let dialect = ResumableJs::new();
        let query = |query: &str| Params::from_query(Some(query)).unwrap();
        let rest = "resumableChunkNumber=1&resumableChunkSize=9&resumableTotalSize=9";
        let same = query(&format!(
            "{rest}&resumableIdentifier=a&resumableIdentifier=a"
        ));
        assert!(dialect.chunk(&same).is_ok());
        let other = query(&format!(
            "{rest}&resumableIdentifier=a&resumableIdentifier=b"
        ));
        assert_eq!(
            dialect.chunk(&other).unwrap_err().code(),
            "conflicting_field"
        );
        // In a test the application's value comes first, and counts.
        assert_eq!(
            dialect.read(&Probe(&other)).unwrap().identity.identifier,
            "a"
        );

        let mut both = query(&format!("{rest}&resumableIdentifier=a%0Ab"));
        both.push_body("resumableIdentifier".into(), "a\r\nb".into());
        assert_eq!(dialect.chunk(&both).unwrap().identity.identifier, "a\nb");
        both.push_body("resumableTotalSize".into(), "10".into());
        assert_eq!(
            dialect.chunk(&both).unwrap_err().code(),
            "conflicting_field"
        );
    }

    #[test]
    fn the_applications_fields() {
        let mut params =
            Params::from_query(Some("a=1&b=2&a=3&resumableType=x&resumableStatus=1&c=%F0"))
                .unwrap();
        let dialect = ResumableJs::new();
        let extra = |params: &Params| {
            let extra = dialect.extra(params).into_iter();
            extra
                .map(|(name, value)| format!("{name}={value}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(extra(&params), ["a=1", "b=2", "a=3", "c=\u{fffd}"]);
        // The form repeats the query.
        for (name, value) in [("a", "1"), ("a", "3"), ("d", "4"), ("resumableType", "x")] {
            params.push_body(name.into(), value.into());
        }
        assert_eq!(extra(&params), ["b=2", "c=\u{fffd}", "a=1", "a=3", "d=4"]);
    }

    #[test]
    fn when_a_file_can_be_stored_at_once() {
        let dialect = ResumableJs::new();
        let all = [
            "ChunkNumber",
            "ChunkSize",
            "TotalSize",
            "Identifier",
            "Filename",
            "RelativePath",
        ];
        let with =
            |names: &[&str]| params(&names.iter().map(|name| (*name, "1")).collect::<Vec<_>>());
        assert!(dialect.knows_where(&with(&all)));
        for missing in all {
            let rest: Vec<_> = all.into_iter().filter(|name| *name != missing).collect();
            assert!(!dialect.knows_where(&with(&rest)), "{missing}");
        }
        let (_, query) = CHUNK.split_once('?').unwrap();
        assert!(dialect.knows_where(&Params::from_query(Some(query)).unwrap()));
    }

    #[test]
    fn a_namespace_is_before_every_name() {
        for dialect in [
            ResumableJs::new()
                .with_namespace("up[x]")
                .with_identifier_name("id"),
            ResumableJs::new()
                .with_identifier_name("id")
                .with_namespace("up[x]"),
            ResumableJs::new()
                .with_namespace("other")
                .with_identifier_name("id")
                .with_namespace("up[x]"),
        ] {
            assert_eq!(dialect.names.identifier, "up[x]id");
            assert_eq!(dialect.names.total_size, "up[x]resumableTotalSize");
            assert_eq!(dialect.file_parameter(), "up[x]file");
            for uri in ["/u?up[x]id=1", "/u?up%5Bx%5Did=1"] {
                let (parts, ()) = Request::get(uri).body(()).unwrap().into_parts();
                let error = dialect.intent(&parts, true).unwrap_err();
                assert_eq!(error.code(), "missing_field");
            }
        }
    }

    #[test]
    fn without_the_length_check_any_length_goes() {
        let dialect = ResumableJs::new().with_length_check(false);
        let fields = [
            ("Identifier", "i"),
            ("ChunkNumber", "2"),
            ("ChunkSize", "10"),
            ("CurrentChunkSize", "3"),
            ("TotalSize", "35"),
        ];
        let chunk = dialect.chunk(&params(&fields)).unwrap();
        assert_eq!((chunk.offset, chunk.len, chunk.max_len), (10, None, 25));
    }
}
