//! Request bodies on their way to the store.

pub(crate) mod digest;
pub(crate) mod multipart;
pub(crate) mod pace;
pub(crate) mod sniff;
