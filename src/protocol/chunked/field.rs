use std::borrow::Cow;

/// The place in a request where a client puts one value.
///
/// A `&str` or a `String` is converted into [`query_or_form`](Self::query_or_form). An empty one
/// means that the client does not send the value.
///
/// ```
/// use tower_resumable::{Dialect, Field};
///
/// let dialect = Dialect::new("camera")
///     .with_identifier(Field::header("x-clip"))
///     .with_total_size(Field::content_range_total())
///     .with_offset(Field::content_range_first())
///     .with_file_name("name");
/// # let _ = dialect;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field(pub(super) Source);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    QueryOrForm(String),
    Header { name: String, is_encoded: bool },
    ContentRange(RangePart),
    DispositionFileName,
    PartFileName,
    PartMediaType,
}

/// A number in `Content-Range: bytes 0-9/25`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RangePart {
    First,
    Length,
    Total,
}

impl Field {
    /// The parameter with this name in the query, or the field with this name in the form.
    pub fn query_or_form(name: impl Into<String>) -> Self {
        Self(Source::QueryOrForm(name.into()))
    }

    /// The value of this request header, in UTF-8 or else in Latin-1.
    pub fn header(name: impl Into<String>) -> Self {
        Self::of_header(name.into(), false)
    }

    /// The value of this request header, percent-encoded: scripts cannot put all characters into
    /// headers.
    pub fn header_percent_encoded(name: impl Into<String>) -> Self {
        Self::of_header(name.into(), true)
    }

    /// The first byte of the header `Content-Range: bytes 0-9/25`.
    pub fn content_range_first() -> Self {
        Self(Source::ContentRange(RangePart::First))
    }

    /// The number of bytes in the range of `Content-Range: bytes 0-9/25`, here 10.
    pub fn content_range_length() -> Self {
        Self(Source::ContentRange(RangePart::Length))
    }

    /// The bytes of the whole file in `Content-Range: bytes 0-9/25`, here 25.
    pub fn content_range_total() -> Self {
        Self(Source::ContentRange(RangePart::Total))
    }

    /// The file name of the request header `Content-Disposition: attachment;
    /// filename="a%20b.txt"`, in all forms of RFC 6266. A name in `filename` can be
    /// percent-encoded.
    pub fn disposition_file_name() -> Self {
        Self(Source::DispositionFileName)
    }

    /// The file name of the part that carries the bytes in a form.
    pub fn part_file_name() -> Self {
        Self(Source::PartFileName)
    }

    /// The media type of the part that carries the bytes in a form, or that of the request if its
    /// body is the chunk.
    pub fn part_media_type() -> Self {
        Self(Source::PartMediaType)
    }

    fn of_header(name: String, is_encoded: bool) -> Self {
        let name = name.to_ascii_lowercase();
        Self(Source::Header { name, is_encoded })
    }

    /// A field that the client does not have.
    pub(super) fn none() -> Self {
        Self::query_or_form("")
    }

    pub(crate) fn is_none(&self) -> bool {
        matches!(&self.0, Source::QueryOrForm(name) if name.is_empty())
    }

    /// The name in the query or in the form.
    pub(super) fn parameter(&self) -> Option<&str> {
        match &self.0 {
            Source::QueryOrForm(name) if !name.is_empty() => Some(name),
            _ => None,
        }
    }

    /// The name of the header whose whole value this is.
    pub(super) fn header_name(&self) -> Option<&str> {
        match &self.0 {
            Source::Header { name, .. } => Some(name),
            _ => None,
        }
    }

    /// The name for error messages.
    pub(super) fn name(&self) -> Cow<'_, str> {
        match &self.0 {
            Source::QueryOrForm(name) => name.into(),
            Source::Header { name, .. } => format!("header:{name}").into(),
            Source::ContentRange(RangePart::First) => "header:content-range.first".into(),
            Source::ContentRange(RangePart::Length) => "header:content-range.length".into(),
            Source::ContentRange(RangePart::Total) => "header:content-range.total".into(),
            Source::DispositionFileName => "header:content-disposition.filename".into(),
            Source::PartFileName => "filename".into(),
            Source::PartMediaType => "Content-Type".into(),
        }
    }
}

impl Default for Field {
    fn default() -> Self {
        Self::none()
    }
}

impl From<&str> for Field {
    fn from(name: &str) -> Self {
        Self::query_or_form(name)
    }
}

impl From<String> for Field {
    fn from(name: String) -> Self {
        Self::query_or_form(name)
    }
}
