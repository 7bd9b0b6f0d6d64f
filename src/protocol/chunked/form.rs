use std::sync::Arc;

use http::request::Parts;

use super::{
    Chunked, Params,
    answer::Answers,
    dialect::Dialect,
    params::{self, invalid},
    parse::{Fields, Subject},
};
use crate::{
    error::{Error, Reason},
    protocol::{FilePart, Form, Look, Reply, Target, plain},
};

/// A multipart form of a dialect, or a plain one. Only its fields can tell.
pub(super) struct ChunkForm {
    chunked: Arc<Chunked>,
    params: Params,
    /// Whether the form can carry a whole file, by the head of the request.
    may_be_whole: bool,
    /// The part of the file looks like a text field.
    is_text: bool,
    stage: Stage,
}

enum Stage {
    /// The fields before the file.
    Fields,
    /// The file is spooled.
    Spooled,
    /// The file is a chunk of this dialect. No field that follows may change its target.
    Chunk(Arc<Dialect>),
    /// There is no file: the form is a test.
    Test(Box<Answers>),
    /// The file is a whole one.
    Plain,
}

impl ChunkForm {
    /// A form whose request has these fields in its head.
    pub(super) fn new(chunked: Arc<Chunked>, params: Params, head: &Parts) -> Self {
        Self {
            may_be_whole: chunked.accept_plain && params::allows_whole(&head.headers),
            chunked,
            params,
            is_text: false,
            stage: Stage::Fields,
        }
    }

    fn dialect(&self) -> Option<&Arc<Dialect>> {
        match &self.stage {
            Stage::Chunk(dialect) => Some(dialect),
            _ => self.chunked.dialect_of(&self.params),
        }
    }

    /// Fails if a form of no dialect cannot carry a whole file.
    fn check_whole(&self) -> Result<(), Error> {
        if self.may_be_whole && self.chunked.may_be_whole(&self.params) {
            Ok(())
        } else {
            Err(self.chunked.unknown())
        }
    }

    /// Finds the target of the file in the fields of this dialect.
    fn chunk(&mut self, dialect: Arc<Dialect>) -> Result<Target, Error> {
        let target = self.chunked.target(&dialect, &self.params)?;
        self.stage = Stage::Chunk(dialect);
        Ok(target)
    }
}

impl Form for ChunkForm {
    fn is_file(&self, name: &str, is_text: bool) -> bool {
        match self.dialect() {
            Some(dialect) if !matches!(self.stage, Stage::Spooled) => {
                dialect.is_file(name, is_text)
            }
            _ => self.chunked.can_be_file(name, is_text),
        }
    }

    fn is_chunk(&self) -> bool {
        self.dialect().is_some()
    }

    fn announced(&self) -> Option<Result<Target, Error>> {
        let dialect = self.dialect().filter(|it| it.knows_where(&self.params))?;
        Some(self.chunked.target(dialect, &self.params))
    }

    fn field(&mut self, name: String, value: String) {
        self.params.push_form(name, value);
    }

    fn file(&mut self, part: FilePart) -> Result<Option<Target>, Error> {
        self.is_text = part.is_text();
        self.params.set_part(part);
        match self.dialect().cloned() {
            Some(dialect)
                if dialect.knows_where(&self.params)
                    && self.chunked.knows_identity(&self.params) =>
            {
                self.chunk(dialect).map(Some)
            }
            _ => {
                self.stage = Stage::Spooled;
                Ok(None)
            }
        }
    }

    fn late_field(&mut self, name: String, value: String) -> Result<(), Error> {
        let Stage::Chunk(dialect) = &self.stage else {
            self.params.push_form(name, value);
            return Ok(());
        };
        let digest = self.chunked.digest_field.as_ref();
        if let Some(field) = digest.filter(|field| field.parameter() == Some(&name)) {
            return Err(invalid(field, "comes after the file"));
        }
        if !(dialect.owns(&name) || self.chunked.identifies(&name)) {
            self.params.push_form(name, value);
            return Ok(());
        }
        let chunk = |params: &Params| {
            let fields = Fields::strict(params);
            self.chunked.chunk(dialect, fields, Subject::Chunk)
        };
        let before = chunk(&self.params)?;
        self.params.push_form(name.clone(), value);
        if chunk(&self.params)? == before {
            Ok(())
        } else {
            Err(Reason::ConflictingField { name }.into())
        }
    }

    fn place(&mut self, len: u64) -> Result<Target, Error> {
        if let Some(dialect) = self.dialect().cloned() {
            dialect.add_total(&mut self.params, len);
            return self.chunk(dialect);
        }
        self.check_whole()?;
        self.stage = Stage::Plain;
        let upload = plain::whole_file(&self.params)?;
        let digest = self.chunked.digest(&self.params)?;
        Ok(Target::whole(upload, digest, len))
    }

    fn is_base64(&self) -> bool {
        // Only the fields of such a client make a text field base64.
        let is_base64 = self.dialect().is_some_and(|dialect| dialect.base64);
        is_base64 && self.is_text
    }

    fn no_file(&mut self) -> Result<Look, Error> {
        let Some(dialect) = self.dialect().cloned() else {
            self.check_whole()?;
            let name = "file".to_owned();
            return Err(Reason::MissingFile { name }.into());
        };
        if dialect.form_tests {
            let subject = match dialect.list_tests {
                Some(_) => Subject::Upload,
                None => Subject::Chunk,
            };
            let (command, answers) = self.chunked.test(&dialect, &self.params, subject);
            self.stage = Stage::Test(Box::new(answers));
            return command;
        }
        // Missing fields are reported first: without them the file does not help either.
        self.chunked.target(&dialect, &self.params)?;
        let name = dialect.file_field.clone();
        Err(Reason::MissingFile { name }.into())
    }

    fn fields(&self) -> Vec<(String, String)> {
        let dialect = self.dialect().map(Arc::as_ref);
        self.chunked.extra(dialect, &self.params)
    }

    fn reply(&self) -> Reply {
        match &self.stage {
            Stage::Test(answers) => answers.clone(),
            Stage::Plain => plain::reply(),
            // So far it looks like a whole file.
            Stage::Fields | Stage::Spooled if self.may_be_whole && self.dialect().is_none() => {
                plain::reply()
            }
            _ => Box::new(Answers::new(self.dialect(), &self.params)),
        }
    }
}
