use std::{ops::Deref, sync::OnceLock};

use http::request::Parts;

use crate::model::upload::{Scope, UploadId};

/// The head of a request, and whose upload it is about, for the event that tells its error.
pub(crate) struct Head {
    parts: Parts,
    scope: OnceLock<Scope>,
    upload: OnceLock<UploadId>,
}

impl Head {
    pub(crate) fn new(parts: Parts) -> Self {
        Self {
            parts,
            scope: OnceLock::new(),
            upload: OnceLock::new(),
        }
    }

    /// Notes the owner. The first one stays.
    pub(super) fn set_scope(&self, scope: &Scope) {
        self.scope.get_or_init(|| scope.clone());
    }

    /// Notes the upload. The first one stays.
    pub(super) fn set_upload(&self, upload: UploadId) {
        self.upload.get_or_init(|| upload);
    }

    pub(super) fn scope(&self) -> Option<&Scope> {
        self.scope.get()
    }

    pub(super) fn upload(&self) -> Option<&UploadId> {
        self.upload.get()
    }

    pub(super) fn parts_mut(&mut self) -> &mut Parts {
        &mut self.parts
    }

    pub(super) fn into_parts(self) -> Parts {
        self.parts
    }
}

impl Deref for Head {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.parts
    }
}
