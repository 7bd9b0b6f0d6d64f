use std::{fmt, sync::Arc};

use http::request::Parts;

/// Which requests the layer looks at.
#[derive(Clone)]
pub(crate) enum Route {
    /// Those for exactly this path.
    Path(String),
    /// Those that the application chooses.
    Matcher(Arc<dyn Fn(&Parts) -> bool + Send + Sync>),
}

impl Route {
    pub(crate) fn matches(&self, head: &Parts) -> bool {
        match self {
            Self::Path(path) => path == head.uri.path(),
            Self::Matcher(matches) => matches(head),
        }
    }

    /// The path, if there is one.
    pub(crate) fn path(&self) -> Option<&str> {
        match self {
            Self::Path(path) => Some(path),
            Self::Matcher(_) => None,
        }
    }
}

/// The path of a request as its client has sent it. With the feature `axum` that includes the
/// prefixes that axum has removed.
pub(crate) fn sent_path(head: &Parts) -> &str {
    #[cfg(feature = "axum")]
    if let Some(sent) = head.extensions.get::<axum::extract::OriginalUri>() {
        return sent.path();
    }
    head.uri.path()
}

impl Default for Route {
    fn default() -> Self {
        Self::Path("/upload".into())
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Route").field(&self.path()).finish()
    }
}
