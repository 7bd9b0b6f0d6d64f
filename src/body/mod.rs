//! Request bodies on their way to the store.

use std::pin::Pin;

use bytes::Bytes;
use http_body::Body;

use crate::model::BoxError;

pub(crate) mod digest;
pub(crate) mod live;
pub(crate) mod multipart;
pub(crate) mod pace;
pub(crate) mod raw;
pub(crate) mod sniff;

/// The body of a request.
pub(crate) trait RequestBody:
    Body<Data: Send, Error: Into<BoxError>> + Send + Unpin
{
}

impl<B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin> RequestBody for B {}

/// The bytes of a chunk, without the type of their body.
pub(crate) type Source<'a> = Pin<&'a mut (dyn Body<Data = Bytes, Error = BoxError> + Send)>;
