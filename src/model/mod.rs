//! What an upload is, and what is known of it. Imports nothing else of the crate.

/// Alias for a type-erased error type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

pub(crate) mod hex;
pub(crate) mod ranges;
pub(crate) mod state;
pub(crate) mod upload;
