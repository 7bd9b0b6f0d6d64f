//! Ways of talking to clients. Pure: no IO, no async.

pub(crate) mod chunked;
mod plain;
