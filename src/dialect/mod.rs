//! What a client says, made into what it wants. Pure: no IO, no async.

mod params;
mod resumable;
#[cfg(test)]
mod tests;

pub(crate) use self::params::Params;
pub use self::resumable::ResumableJs;

/// What a request wants, as far as its head tells.
#[derive(Debug)]
pub(crate) enum Intent {
    /// Nothing of ours: the request goes to the inner service as it is.
    Pass,
    /// "Have you this chunk?"
    Probe(Chunk),
    /// "What have you of this upload?"
    Status(Chunk),
    /// "Forget this upload."
    Cancel(Identity),
    /// A chunk. The query's fields are read; with a form more may come.
    Put(Params, Transport),
}

/// How the bytes of a chunk travel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// As a part of a multipart form.
    Multipart { boundary: String },
    /// As the body itself.
    Octets,
}

/// Which upload, by the words of its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) identifier: String,
    pub(crate) total: u64,
    pub(crate) file_name: Option<String>,
    pub(crate) relative_path: Option<String>,
}

/// One chunk, by the words of its client, checked for being possible at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) identity: Identity,
    pub(crate) content_type: Option<String>,
    /// Bytes of a chunk as the client is set up; chunk numbers count in these.
    pub(crate) chunk_size: u64,
    /// Where the chunk begins in the file; at most the file's size.
    pub(crate) offset: u64,
    /// Declared bytes of this chunk, inside the file. `None` if the client does not say.
    pub(crate) len: Option<u64>,
    /// The most bytes that this chunk can have: `len`, or as far as its layout allows.
    pub(crate) max_len: u64,
}

/// What part a form field plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldRole {
    /// It carries the chunk's bytes.
    File,
    /// It is a parameter, of ours or of the application.
    Param,
}
