//! What an upload is. Imports nothing else of the crate.

pub(crate) mod ranges;
