//! Finds the chunk that the fields of a request describe.

use std::borrow::Cow;

use http::Method;

use super::{
    dialect::{Dialect, IdentifierKind, IdentityRule, LastChunk, Resume},
    field::Field,
    params::{Params, invalid, may_be_whole},
};
use crate::{
    error::{Error, Reason},
    limits::{NAME_BYTES, PATH_BYTES, TYPE_BYTES},
    protocol::{Create, Described, Identity, Target},
};

/// What the fields have to describe.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Subject {
    Chunk,
    /// No chunk has to be named.
    Upload,
}

impl Dialect {
    /// Whether the query or form field with this name is the client's.
    pub(super) fn owns(&self, name: &str) -> bool {
        let mut fields = self.names.all();
        fields.any(|field| field.parameter() == Some(name))
    }

    /// Whether the request has any field of the client.
    pub(super) fn is_in(&self, params: &Params) -> bool {
        // Each file in a form has a part with a name and a type.
        let parts = [Field::part_file_name(), Field::part_media_type()];
        let mut fields = self.names.all().filter(|field| !parts.contains(field));
        fields.any(|field| params.contains(field))
    }

    pub(super) fn is_file(&self, part: &str, is_text: bool) -> bool {
        self.file_field == part && (self.base64 || !is_text)
    }

    pub(super) fn asks_status(&self, params: &Params, method: &Method) -> bool {
        let by_head = self.resume == Resume::ByUploadOffset && method == Method::HEAD;
        by_head || params.contains(&self.names.status)
    }

    /// Decodes a request for a new identifier. `None` if the request asks for something else.
    pub(super) fn creation(&self, params: &Params) -> Option<Result<Create, Error>> {
        let is_creation = self.identifier_kind == IdentifierKind::ByServer
            && params.contains(&self.names.total_size)
            && !params.contains(&self.names.identifier);
        is_creation.then(|| {
            let length = Fields::strict(params).required_number(&self.names.total_size, 0)?;
            let describe = Box::new(move |random: &str| created(random, length));
            Ok(Create { length, describe })
        })
    }

    /// Whether a file that arrives now can be stored at once, because no field after it can change
    /// its target.
    pub(super) fn knows_where(&self, params: &Params) -> bool {
        let names = &self.names;
        let position = if self.whole_files {
            &[][..]
        } else if !names.offset.is_none() {
            &[&names.offset][..]
        } else if self.fixed_chunk_size.is_some() {
            &[&names.chunk_number][..]
        } else {
            &[&names.chunk_number, &names.chunk_size][..]
        };
        let required = || {
            let upload = [&names.identifier, &names.total_size].into_iter();
            upload.chain(position.iter().copied())
        };
        let mut optional = [&names.file_name, &names.relative_path].into_iter();
        // A client that uses the query or headers puts all fields there.
        required().all(|field| params.in_head(field))
            || required().all(|field| params.contains(field))
                && optional.all(|field| field.is_none() || params.contains(field))
    }

    /// Adds the length of a whole file, if the client does not declare it.
    pub(super) fn add_total(&self, params: &mut Params, len: u64) {
        if self.lacks_total(params) {
            params.set(&self.names.total_size, len.to_string());
        }
    }

    /// Whether these are the fields of a whole file whose length the client does not declare.
    pub(super) fn lacks_total(&self, params: &Params) -> bool {
        let names = &self.names;
        let declared = [&names.offset, &names.chunk_number, &names.total_size];
        self.whole_files
            && !declared.iter().any(|field| params.contains(field))
            && may_be_whole(params, |name| self.owns(name))
    }

    /// The upload that the fields describe, without what only chunks have.
    pub(super) fn upload(
        &self,
        fields: Fields<'_>,
        rule: IdentityRule,
    ) -> Result<Described, Error> {
        let names = &self.names;
        let identifier = fields.full_text(&names.identifier, NAME_BYTES)?;
        let identifier = identifier.ok_or_else(|| missing(&names.identifier))?;
        let length = self.length(fields, &identifier)?;
        let file_name = fields.full_text(&names.file_name, NAME_BYTES)?;
        let relative_path = fields.text(&names.relative_path, PATH_BYTES)?;
        let is_by_client = self.identifier_kind == IdentifierKind::ByClient;
        Ok(Described {
            identity: Identity::Named {
                with_file: rule == IdentityRule::Full && is_by_client,
                fields: Vec::new(),
            },
            identifier,
            length: Some(length),
            chunk_size: None,
            file_name,
            relative_path,
            content_type: None,
            fields: Vec::new(),
        })
    }

    /// The length of the file. An identifier that the layer has made contains it.
    fn length(&self, fields: Fields<'_>, identifier: &str) -> Result<u64, Error> {
        let field = &self.names.total_size;
        let declared = fields.number(field, 0)?;
        let created = match self.identifier_kind {
            IdentifierKind::ByServer => length_of_created(identifier),
            IdentifierKind::ByClient | IdentifierKind::Unique => None,
        };
        match (created, declared) {
            (Some(created), Some(declared)) if declared != created => {
                Err(invalid(field, "is not what the upload was made for"))
            }
            (Some(length), _) | (None, Some(length)) => Ok(length),
            (None, None) => Err(missing(field)),
        }
    }

    /// The chunk that the fields describe, without the application's fields.
    pub(super) fn chunk(
        &self,
        fields: Fields<'_>,
        subject: Subject,
        rule: IdentityRule,
    ) -> Result<Target, Error> {
        let names = &self.names;
        let mut upload = self.upload(fields, rule)?;
        upload.content_type = fields.text(&names.content_type, TYPE_BYTES)?;
        let number = fields.number(&names.chunk_number, self.first_number)?;
        let offset = fields.number(&names.offset, 0)?;
        let is_whole = self.whole_files && number.is_none() && offset.is_none();
        let by_number = names.offset.is_none() && !is_whole;
        if by_number && number.is_none() && subject == Subject::Chunk {
            return Err(missing(&names.chunk_number));
        }
        let chunk_size = match self.fixed_chunk_size {
            Some(size) => Some(size),
            None if by_number => Some(fields.required_number(&names.chunk_size, 1)?),
            None => fields.number(&names.chunk_size, 1)?,
        };
        upload.chunk_size = chunk_size;
        let declared = fields.number(&names.chunk_length, 0)?;

        let total = upload.length.unwrap_or_default();
        let index = number.map_or(0, |number| number - self.first_number);
        let offset = match offset {
            Some(offset) => offset,
            None if by_number => index
                .checked_mul(chunk_size.unwrap_or_default())
                .ok_or(Reason::OutOfBounds)?,
            None if is_whole || subject == Subject::Upload => 0,
            None => return Err(missing(&names.offset)),
        };
        // An empty file has one empty chunk.
        let may_be_empty = total == 0 || self.trailing_empty_chunk;
        if offset > total || (offset == total && !may_be_empty) {
            return Err(Reason::OutOfBounds.into());
        }
        let rest = total - offset;
        let mut other_len = None;
        let (len, max_len) = match (declared, chunk_size) {
            _ if !self.length_check => (None, rest),
            (Some(len), _) if !self.can_be_chunk(len, chunk_size, rest) => {
                let problem = "is not the size of this chunk in any layout";
                return Err(invalid(&names.chunk_length, problem));
            }
            (Some(len), _) => (Some(len), len),
            (None, _) if is_whole => (Some(rest), rest),
            (None, Some(size)) => {
                let is_last = self.can_be_chunk(rest, chunk_size, rest);
                let is_inner = size < rest;
                match (is_inner, is_last) {
                    // The last chunk, or the one before it: the client decides.
                    (true, true) => {
                        other_len = Some(size);
                        (None, rest)
                    }
                    (true, false) => (Some(size), size),
                    (false, _) => (Some(rest), rest),
                }
            }
            (None, None) => (None, rest),
        };
        Ok(Target {
            upload,
            offset,
            len,
            max_len,
            other_len,
            must_exist: false,
            digest: None,
        })
    }

    /// Whether a chunk can have this length if `rest` bytes remain from its start to the end of the
    /// file.
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

/// Describes an upload whose identifier the layer makes.
pub(super) fn created(random: &str, length: u64) -> Described {
    Described {
        identity: Identity::Named {
            with_file: false,
            fields: Vec::new(),
        },
        identifier: format!("{random}-{length}"),
        length: Some(length),
        chunk_size: None,
        file_name: None,
        relative_path: None,
        content_type: None,
        fields: Vec::new(),
    }
}

/// The length of the file in an identifier that the layer has made.
fn length_of_created(identifier: &str) -> Option<u64> {
    let (random, length) = identifier.split_once('-')?;
    let is_random = random.len() == 32 && random.bytes().all(|b| b.is_ascii_hexdigit());
    length.parse().ok().filter(|_| is_random)
}

/// Reads fields, in one of two ways if a field was sent several times.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    params: &'a Params,
    strict: bool,
}

impl<'a> Fields<'a> {
    /// Different values of a field are an error.
    pub(crate) fn strict(params: &'a Params) -> Self {
        let strict = true;
        Self { params, strict }
    }

    /// The first value of a field counts.
    pub(super) fn first(params: &'a Params) -> Self {
        let strict = false;
        Self { params, strict }
    }

    fn get(self, field: &'a Field) -> Result<Option<Cow<'a, str>>, Error> {
        if self.strict {
            self.params.one(field)
        } else {
            self.params.first(field)
        }
    }

    /// Text of at most `max` bytes. An empty one counts as none.
    pub(crate) fn text(self, field: &'a Field, max: usize) -> Result<Option<String>, Error> {
        match self.get(field)? {
            Some(value) if value.len() > max => Err(invalid(field, "is too long")),
            Some(value) if value.contains('\0') => Err(invalid(field, "has a NUL")),
            value => Ok(value.filter(|value| !value.is_empty()).map(Cow::into_owned)),
        }
    }

    /// The field can be missing, but it cannot be empty.
    fn full_text(self, field: &'a Field, max: usize) -> Result<Option<String>, Error> {
        match self.text(field, max)? {
            None if self.get(field)?.is_some() => Err(invalid(field, "is empty")),
            value => Ok(value),
        }
    }

    fn required_number(self, field: &'a Field, min: u64) -> Result<u64, Error> {
        self.number(field, min)?.ok_or_else(|| missing(field))
    }

    /// Decimal digits only, as JavaScript writes integers.
    pub(super) fn number(self, field: &'a Field, min: u64) -> Result<Option<u64>, Error> {
        let Some(value) = self.get(field)? else {
            return Ok(None);
        };
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        if !digits || value.is_empty() || (value.len() > 1 && value.starts_with('0')) {
            return Err(invalid(field, "is not a whole number"));
        }
        match value.parse() {
            Ok(number) if number >= min => Ok(Some(number)),
            Ok(_) => Err(invalid(field, "is too small")),
            Err(_) => Err(invalid(field, "is too large")),
        }
    }
}

pub(super) fn missing(field: &Field) -> Error {
    let name = field.name().into();
    Reason::MissingField { name }.into()
}
