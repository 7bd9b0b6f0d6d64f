use std::{convert::Infallible, fmt};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use super::CompletedUpload;
use crate::{events::Missed, route::sent_path};

/// Rejection of the extractor [`CompletedUpload`]: no [`ResumableLayer`](crate::ResumableLayer) has
/// taken the request for an upload.
///
/// The service is set up wrongly, so the response has the status 500. The text names the path as
/// the handler sees it, and as the client has sent it, and the usual causes. If the request has
/// passed through a layer, that is
/// [`Event::MissingUpload`](crate::Event::MissingUpload) too, with the path as the layer has seen
/// it.
#[derive(Debug)]
pub struct MissingUpload {
    path: String,
    sent: String,
}

impl fmt::Display for MissingUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no `CompletedUpload` in the request for `{}`", self.path)?;
        if self.sent != self.path {
            write!(f, ", which the client has sent to `{}`", self.sent)?;
        }
        f.write_str(
            ": no `ResumableLayer` has taken it for an upload. Either the layer is not applied to \
             this route: `Router::layer` applies to the routes that were added before it. Or the \
             layer answers on another path: `with_path` needs the path that the layer sees, which \
             inside of `nest` is the one without the prefix, and the default is `/upload`. Or the \
             request is no upload: by its method and fields it is of no protocol of the layer, \
             and some protocols need a feature of the crate",
        )
    }
}

impl std::error::Error for MissingUpload {}

impl IntoResponse for MissingUpload {
    fn into_response(self) -> Response {
        let mut response = (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response();
        response.extensions_mut().insert(Missed);
        response
    }
}

impl<S: Sync> FromRequestParts<S> for CompletedUpload {
    type Rejection = MissingUpload;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingUpload> {
        let missing = || MissingUpload {
            path: parts.uri.path().to_owned(),
            sent: sent_path(parts).to_owned(),
        };
        parts.extensions.get().cloned().ok_or_else(missing)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for CompletedUpload {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get().cloned())
    }
}
