use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Response, request::Parts};
use sha2::{Digest, Sha256};

use crate::{
    DigestAlgorithm, Limits, UploadError,
    hooks::Hooks,
    protocol::chunked::{Answers, Chunk, Dialects, Identity, Intent, asks_for, raw_file},
    store::{Upload, UploadKey},
};

/// What makes two chunks belong to the same upload, beside their scope.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityRule {
    /// Identifier, total size, and relative path (or file name where there is none). Of clients
    /// whose identifiers are random (Dropzone, Fine Uploader), identifier and total size.
    ///
    /// The identifier that Resumable.js makes by itself is the size and what remains of the name
    /// without dots, slashes and anything but ASCII: different files share it easily.
    #[default]
    Full,
    /// The identifier alone, for applications that set one of their own, such as a hash of the
    /// content.
    Identifier,
}

type Matcher = Arc<dyn Fn(&Parts) -> bool + Send + Sync>;
type ErrorResponse = Arc<dyn Fn(&UploadError, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

/// How a layer is set up; shared by all its clones.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) paths: Vec<String>,
    pub(crate) matcher: Option<Matcher>,
    pub(crate) hooks: Hooks,
    pub(crate) limits: Limits,
    pub(crate) dialects: Dialects,
    /// Whether a form without any dialect's fields is a file.
    pub(crate) plain_uploads: bool,
    pub(crate) identity: IdentityRule,
    pub(crate) error_response: Option<ErrorResponse>,
    /// The parameter that asks for the list of the uploads of the request's scope.
    pub(crate) list_parameter: Option<String>,
    /// The field with the digest of a chunk.
    pub(crate) chunk_digest: Option<(String, DigestAlgorithm)>,
    /// The field with the digest of the whole file.
    pub(crate) file_digest: Option<(String, DigestAlgorithm)>,
    /// How long a request waits for the inner service.
    pub(crate) delivery_timeout: Duration,
    /// How long the inner service's answer is remembered.
    pub(crate) record_lifetime: Duration,
    /// Most bytes of the inner service's answer that are remembered.
    pub(crate) record_body: usize,
    /// How long a transient error is held back, since clients try again without a pause.
    pub(crate) hold_back: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            paths: vec!["/upload".into()],
            matcher: None,
            hooks: Hooks::default(),
            limits: Limits::default(),
            dialects: Dialects::default(),
            plain_uploads: true,
            identity: IdentityRule::default(),
            error_response: None,
            list_parameter: None,
            chunk_digest: None,
            file_digest: None,
            delivery_timeout: Duration::from_secs(60),
            record_lifetime: Duration::from_secs(5 * 60),
            record_body: 64 << 10,
            hold_back: Duration::from_millis(250),
        }
    }
}

impl Config {
    fn is_upload_path(&self, parts: &Parts) -> bool {
        match &self.matcher {
            Some(matcher) => matcher(parts),
            None => self.paths.iter().any(|path| path == parts.uri.path()),
        }
    }

    /// What a request wants, and how it is to be answered.
    pub(crate) fn intent(
        &self,
        parts: &Parts,
        body_is_empty: bool,
    ) -> (Result<Intent, UploadError>, Answers) {
        if !self.is_upload_path(parts) {
            return (Ok(Intent::Pass), Answers::default());
        }
        match &self.list_parameter {
            Some(name) if asks_for(parts, name) => (Ok(Intent::List), Answers::default()),
            _ => match self.dialects.intent(parts, body_is_empty) {
                (Ok(Intent::Pass), answers) if self.plain_uploads => (Ok(raw_file(parts)), answers),
                asked => asked,
            },
        }
    }

    /// Checks a chunk's declared sizes against the limits.
    pub(crate) fn check(&self, chunk: &Chunk) -> Result<(), UploadError> {
        self.check_total(chunk.identity.total)?;
        let limit = self.limits.chunk_size;
        match chunk.len.is_some_and(|len| len > limit) {
            true => Err(UploadError::ChunkTooLarge { limit }),
            false => Ok(()),
        }
    }

    pub(crate) fn is_chunk_digest(&self, field: &str) -> bool {
        let digest = self.chunk_digest.as_ref();
        digest.is_some_and(|(name, _)| name == field)
    }

    pub(crate) fn check_total(&self, total: u64) -> Result<(), UploadError> {
        let limit = self.limits.file_size;
        match total > limit {
            true => Err(UploadError::FileTooLarge { limit }),
            false => Ok(()),
        }
    }

    pub(crate) fn upload(
        &self,
        scope: String,
        chunk: &Chunk,
        fields: Vec<(String, String)>,
    ) -> Upload {
        Upload {
            chunk_size: chunk.numbering.map(|numbering| numbering.size),
            content_type: chunk.content_type.clone(),
            fields,
            ..self.named(scope, &chunk.identity)
        }
    }

    /// An upload of which no more is known than its name.
    pub(crate) fn named(&self, scope: String, identity: &Identity) -> Upload {
        Upload {
            key: self.key(&scope, identity),
            scope,
            identifier: identity.identifier.clone(),
            total: identity.total,
            chunk_size: None,
            file_name: identity.file_name.clone(),
            relative_path: identity.relative_path.clone(),
            content_type: None,
            fields: Vec::new(),
        }
    }

    pub(crate) fn key(&self, scope: &str, identity: &Identity) -> UploadKey {
        let mut hash = Sha256::new();
        // Lengths first: no two lists of strings run into the same bytes.
        let mut add = |bytes: &[u8]| {
            hash.update((bytes.len() as u64).to_be_bytes());
            hash.update(bytes);
        };
        add(b"tower-resumable 1");
        add(scope.as_bytes());
        add(identity.identifier.as_bytes());
        if self.identity == IdentityRule::Full {
            add(&identity.total.to_be_bytes());
            match (&identity.relative_path, &identity.file_name) {
                _ if identity.is_unique => {}
                (Some(path), _) => add(path.as_bytes()),
                (None, Some(name)) => add(name.as_bytes()),
                (None, None) => {}
            }
        }
        UploadKey::from_bytes(hash.finalize().into())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("paths", &self.paths)
            .field("dialects", &self.dialects)
            .field("identity", &self.identity)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(identifier: &str, total: u64, name: Option<&str>, path: Option<&str>) -> Identity {
        Identity {
            identifier: identifier.into(),
            total,
            file_name: name.map(Into::into),
            relative_path: path.map(Into::into),
            is_unique: false,
        }
    }

    #[test]
    fn uploads_that_differ_in_anything_have_different_keys() {
        let config = Config::default();
        let keys = [
            config.key("", &identity("1-a", 1, Some("a"), None)),
            config.key("u", &identity("1-a", 1, Some("a"), None)),
            config.key("", &identity("1-b", 1, Some("a"), None)),
            config.key("", &identity("1-a", 2, Some("a"), None)),
            config.key("", &identity("1-a", 1, Some("b"), None)),
            config.key("", &identity("1-a", 1, Some("a"), Some("x/a"))),
            config.key("", &identity("1-a", 1, None, None)),
            config.key("1", &identity("-a", 1, Some("a"), None)),
        ];
        for (i, key) in keys.iter().enumerate() {
            assert!(!keys[..i].contains(key), "key {i} is not new");
        }
    }

    #[test]
    fn the_path_stands_for_the_name_and_the_identifier_can_stand_for_all() {
        let config = Config::default();
        assert_eq!(
            config.key("", &identity("i", 1, Some("a"), Some("x/a"))),
            config.key("", &identity("i", 1, None, Some("x/a"))),
        );
        let config = Config {
            identity: IdentityRule::Identifier,
            ..config
        };
        assert_eq!(
            config.key("", &identity("i", 1, Some("a"), None)),
            config.key("", &identity("i", 2, Some("b"), Some("x/b"))),
        );
        // Scopes stay apart all the same.
        assert_ne!(
            config.key("", &identity("i", 1, None, None)),
            config.key("u", &identity("i", 1, None, None)),
        );
    }
}
