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
    /// The route of requests for exactly this path.
    ///
    /// # Panics
    ///
    /// If no request can have this path.
    #[track_caller]
    pub(crate) fn of_path(path: String) -> Self {
        assert!(
            path.starts_with('/'),
            "the path of a `ResumableLayer` must start with a `/`, and `{path}` does not"
        );
        // What clients encode before they send it, and where the path ends.
        let is_sent = |c: char| c.is_ascii_graphic() && !r##""#<>?\`{}"##.contains(c);
        let found = path.chars().find(|c| !is_sent(*c));
        if let Some(found) = found {
            panic!(
                "no request can match the path `{}` of a `ResumableLayer`, because of {found:?}: \
                 it is compared with the path of the request, without its query and not decoded. \
                 `with_matcher` can match anything",
                path.escape_debug()
            );
        }
        Self::Path(path)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_no_request_has_panics() {
        for path in [
            "/",
            "/upload",
            "/a/b/",
            "/a%20b",
            "/~a.b-c_d!$&'()*+,;=:@[]|^",
        ] {
            assert_eq!(Route::of_path(path.into()).path(), Some(path));
        }
        for path in [
            "",
            "upload",
            " /upload",
            "*",
            "http://a/upload",
            "/upload?",
            "/upload?a=1",
            "/upload#a",
            "/my files",
            "/b\u{fc}cher",
            "/a\n",
            "/a\0",
            "/upload/{id}",
            "/a\"",
            "/a\\b",
            "/<a>",
        ] {
            let made = std::panic::catch_unwind(|| Route::of_path(path.into()));
            let panic = made.expect_err(path);
            let text = panic.downcast_ref::<String>().unwrap();
            assert!(text.contains("`ResumableLayer`"), "{path}: {text}");
        }
    }
}
