use std::{convert::Infallible, fmt};

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use super::CompletedUpload;

/// Rejection of the extractor [`CompletedUpload`]: the request did not come from the layer.
///
/// The service is set up wrongly, so the response has the status 500.
#[derive(Debug)]
pub struct MissingUpload {
    path: String,
}

impl fmt::Display for MissingUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "no `CompletedUpload` in the request for `{}`: is a `ResumableLayer` with this path \
             applied to the route, and was this an upload?",
            self.path
        )
    }
}

impl std::error::Error for MissingUpload {}

impl IntoResponse for MissingUpload {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for CompletedUpload {
    type Rejection = MissingUpload;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingUpload> {
        let missing = || MissingUpload {
            path: parts.uri.path().to_owned(),
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
