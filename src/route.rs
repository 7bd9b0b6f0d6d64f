use std::{fmt, sync::Arc};

use http::{Uri, request::Parts};

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

/// Sets the URI of a request, and the path as its client has sent it.
pub(crate) fn set_uri(head: &mut Parts, uri: &str, sent_path: Option<&str>) {
    let with_path = |of: &Uri, path: &str| {
        let mut parts = of.clone().into_parts();
        parts.path_and_query = path.parse().ok();
        // An absolute URI stays one.
        Uri::from_parts(parts).ok()
    };
    #[cfg(feature = "axum")]
    if let (Some(sent), Some(path)) = (
        head.extensions.get_mut::<axum::extract::OriginalUri>(),
        sent_path,
    ) {
        let query = uri.split_once('?').map_or("", |(_, query)| query);
        let separator = if query.is_empty() { "" } else { "?" };
        let all = format!("{path}{separator}{query}");
        sent.0 = with_path(&sent.0, &all).unwrap_or_default();
    }
    #[cfg(not(feature = "axum"))]
    let _ = sent_path;
    if let Some(uri) = with_path(&head.uri, uri) {
        head.uri = uri;
    }
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
