use std::borrow::Cow;

use super::Params;
use crate::{
    UploadError,
    limits::{NAME_BYTES, TYPE_BYTES},
};

/// Fields with the way in which one that comes several times is read.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    params: &'a Params,
    strict: bool,
}

impl<'a> Fields<'a> {
    pub(crate) fn strict(params: &'a Params) -> Self {
        let strict = true;
        Self { params, strict }
    }

    pub(crate) fn first(params: &'a Params) -> Self {
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

    pub(crate) fn text(self, name: &'a str, max: usize) -> Result<Option<String>, UploadError> {
        fitting(name, self.get(name)?, max)
    }

    /// It may be missing, but not be empty.
    pub(crate) fn full_text(
        self,
        name: &'a str,
        max: usize,
    ) -> Result<Option<String>, UploadError> {
        match self.text(name, max)? {
            None if self.get(name)?.is_some() => Err(invalid(name, "is empty")),
            value => Ok(value),
        }
    }

    /// What the part of the form that carries the file calls it.
    pub(crate) fn part_name(self) -> Result<Option<String>, UploadError> {
        let name = self.params.part().file_name.as_deref();
        fitting("filename", name.map(Cow::Borrowed), NAME_BYTES)
    }

    /// The media type of the part of the form that carries the file.
    pub(crate) fn part_type(self) -> Result<Option<String>, UploadError> {
        let name = self.params.part().content_type.as_deref();
        fitting("Content-Type", name.map(Cow::Borrowed), TYPE_BYTES)
    }

    pub(crate) fn required_number(self, name: &'a str, min: u64) -> Result<u64, UploadError> {
        self.number(name, min)?.ok_or_else(|| missing(name))
    }

    /// Decimal digits only, as JavaScript writes integers.
    pub(crate) fn number(self, name: &'a str, min: u64) -> Result<Option<u64>, UploadError> {
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

/// Text of at most `max` bytes. An empty one is as good as none.
fn fitting(
    name: &str,
    value: Option<Cow<'_, str>>,
    max: usize,
) -> Result<Option<String>, UploadError> {
    match value {
        Some(value) if value.len() > max => Err(invalid(name, "is too long")),
        Some(value) if value.contains('\0') => Err(invalid(name, "has a NUL")),
        value => Ok(value.filter(|value| !value.is_empty()).map(Cow::into_owned)),
    }
}

pub(crate) fn missing(name: &str) -> UploadError {
    UploadError::MissingField { name: name.into() }
}

pub(crate) fn invalid(name: &str, reason: &'static str) -> UploadError {
    UploadError::InvalidField {
        name: name.into(),
        reason,
    }
}
