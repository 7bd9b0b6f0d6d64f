//! Every bound on what clients can make the layer do, in one place.

use std::time::Duration;

/// Most bytes of a query.
pub(crate) const QUERY_BYTES: usize = 16 << 10;

/// Most fields of a query, empty ones too: they cost as much to read.
pub(crate) const QUERY_FIELDS: usize = 64;

/// Most parts of a form, the file included.
pub(crate) const PARTS: usize = 64;

/// Most bytes of the names and values of all text fields of a form together.
pub(crate) const TEXT_BYTES: usize = 16 << 10;

/// Most header lines of a part of a form.
pub(crate) const PART_HEADERS: usize = 8;

/// Most bytes of the header lines of a part of a form.
pub(crate) const PART_HEADER_BYTES: usize = 4 << 10;

/// Most bytes before the first boundary of a form.
pub(crate) const PREAMBLE_BYTES: usize = 1 << 10;

/// Most bytes after the last boundary of a form.
pub(crate) const EPILOGUE_BYTES: usize = 64 << 10;

/// Most bytes of a client's identifier of a file, and of its name.
pub(crate) const NAME_BYTES: usize = 1024;

/// Most bytes of a relative path.
pub(crate) const PATH_BYTES: usize = 4096;

/// Most bytes of a media type.
pub(crate) const TYPE_BYTES: usize = 256;

/// Most chunk numbers that a status answer lists.
pub(crate) const LISTED_CHUNKS: usize = 65_536;

/// What is read of a body that is refused: a client that cannot send its body to the end does not see
/// the answer. After that the answer is sent and the connection is closed.
pub(crate) const DRAIN: (u64, Duration) = (64 << 20, Duration::from_secs(5));

/// What clients may make the layer do: all bounds that can be set, and all that cannot.
///
/// A request over a *final* limit is refused with the status at which its client gives up; one over a
/// *transient* limit gets 503 with `Retry-After`, and is welcome again. Whatever is refused, nothing of
/// it is stored.
///
/// | what | default | over it | set by |
/// |---|---|---|---|
/// | bytes of a file | 1 TiB | final, `file_too_large` | [`file_size`](Self::file_size) |
/// | bytes of a chunk, or of a file in one request | 256 MiB | final, `chunk_too_large` | [`chunk_size`](Self::chunk_size) |
/// | unfinished uploads of one [scope](crate::ResumableLayer::with_scope) | 1,000 | transient, `too_many_uploads` | [`uploads_per_scope`](Self::uploads_per_scope) |
/// | unfinished uploads in all | 100,000 | transient, `too_many_uploads` | [`uploads`](Self::uploads) |
/// | declared bytes of all unfinished uploads of one scope | 1 TiB | transient, `quota_exceeded`; final, `file_too_large`, if one file alone is over it | [`unfinished_bytes_per_scope`](Self::unfinished_bytes_per_scope) |
/// | declared bytes of all unfinished uploads | none | the same | [`unfinished_bytes`](Self::unfinished_bytes) |
/// | bodies of one scope that are being read | 256 | transient, `busy` | [`bodies_per_scope`](Self::bodies_per_scope) |
/// | bodies that are being read in all | 4,096 | transient, `busy` | [`bodies`](Self::bodies) |
/// | time in which nothing comes of a body | 30 s | transient, `too_slow` | [`idle`](Self::idle) |
/// | pace of a body, after a minute | 1 KiB/s | transient, `too_slow` | [`min_rate`](Self::min_rate) |
/// | time for the whole body | 1 h | transient, `too_slow` | [`body_time`](Self::body_time) |
/// | pieces in which an upload is stored | 10,000 | final, `too_many_ranges` | [`FileStoreBuilder::max_ranges`](crate::store::FileStoreBuilder::max_ranges) |
/// | free space that is left on the disk | 1 GiB or 5 %, whichever is less | transient, `storage_full` | [`FileStoreBuilder::free_space_reserve`](crate::store::FileStoreBuilder::free_space_reserve) |
/// | query: bytes, fields | 16 KiB, 64 | final, `too_many_fields` | |
/// | form: parts, bytes of all text fields | 64, 16 KiB | final, `too_many_fields` | |
/// | part of a form: header lines, their bytes | 8, 4 KiB | final, `multipart` | |
/// | bytes before and after the form, of its boundary | 1 KiB, 64 KiB, 70 | final, `multipart` | |
/// | bytes of identifier, file name, relative path, media type | 1024, 1024, 4096, 256 | final, `invalid_field` | |
/// | what is read of a body that is refused | 64 MiB, 5 s | the connection is closed | |
/// | chunk numbers in a status answer | 65,536 | the rest is left out; the byte ranges are all there | |
/// | recorded bytes of your service's answer | 64 KiB | not repeated | [`with_record_body`](crate::ResumableLayer::with_record_body) |
///
/// The time for the head of a request, the number of connections and the streams of each are the
/// server's: with hyper set a timer and `header_read_timeout`, and `max_concurrent_streams`.
///
/// The limits per scope hold if there is a scope hook; without one there is only one scope, and the limits
/// in all hold. Unfinished uploads are counted by each process. It asks the store for them when its first new
/// upload comes, and again before anybody is turned away, unless it has just done so (within two seconds, or ten
/// times of what the answer took): several servers that share a store may let through
/// some uploads each before they know of those of the others.
///
/// ```
/// use std::time::Duration;
/// use tower_resumable::{Limits, MemoryStore, ResumableLayer};
///
/// let limits = Limits::default()
///     .file_size(10 << 30)
///     .uploads_per_scope(20)
///     .idle(Duration::from_secs(10));
/// let layer = ResumableLayer::new(MemoryStore::default()).with_limits(limits);
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Limits {
    pub(crate) file_size: u64,
    pub(crate) chunk_size: u64,
    pub(crate) uploads: Bound,
    pub(crate) unfinished_bytes: Bound,
    pub(crate) bodies: Bound,
    pub(crate) pace: Pace,
}

/// A limit of one scope, and of all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) per_scope: u64,
    pub(crate) in_all: u64,
}

/// How slowly a body may come.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) idle: Duration,
    /// Bytes per second.
    pub(crate) min_rate: u64,
    /// How long a body may be slower.
    pub(crate) grace: Duration,
    pub(crate) body_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_size: 1 << 40,
            chunk_size: 256 << 20,
            uploads: Bound {
                per_scope: 1000,
                in_all: 100_000,
            },
            unfinished_bytes: Bound {
                per_scope: 1 << 40,
                in_all: u64::MAX,
            },
            bodies: Bound {
                per_scope: 256,
                in_all: 4096,
            },
            pace: Pace {
                idle: Duration::from_secs(30),
                min_rate: 1 << 10,
                grace: Duration::from_secs(60),
                body_time: Duration::from_secs(60 * 60),
            },
        }
    }
}

impl Limits {
    /// Most bytes of a file.
    pub fn file_size(mut self, bytes: u64) -> Self {
        self.file_size = bytes;
        self
    }

    /// Most bytes of a chunk. Resumable.js' last chunk can be nearly twice its `chunkSize`.
    pub fn chunk_size(mut self, bytes: u64) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// Most uploads of all scopes together that have begun and are not delivered.
    pub fn uploads(mut self, uploads: u64) -> Self {
        self.uploads.in_all = uploads;
        self
    }

    /// Most uploads of one scope that have begun and are not delivered.
    pub fn uploads_per_scope(mut self, uploads: u64) -> Self {
        self.uploads.per_scope = uploads;
        self
    }

    /// Most bytes that all uploads which have begun and are not delivered may declare together.
    pub fn unfinished_bytes(mut self, bytes: u64) -> Self {
        self.unfinished_bytes.in_all = bytes;
        self
    }

    /// Most bytes that the uploads of one scope which have begun and are not delivered may declare
    /// together: what a client says it will send counts, not what it has sent.
    pub fn unfinished_bytes_per_scope(mut self, bytes: u64) -> Self {
        self.unfinished_bytes.per_scope = bytes;
        self
    }

    /// Most bodies that are being read at once. Each takes some tens of kilobytes of memory.
    pub fn bodies(mut self, bodies: u64) -> Self {
        self.bodies.in_all = bodies;
        self
    }

    /// Most bodies of one scope that are being read at once.
    pub fn bodies_per_scope(mut self, bodies: u64) -> Self {
        self.bodies.per_scope = bodies;
        self
    }

    /// How long a body may bring nothing. Time in which the layer itself is busy with what has come does not
    /// count, here and for the other two.
    pub fn idle(mut self, timeout: Duration) -> Self {
        self.pace.idle = timeout;
        self
    }

    /// The least bytes per second that a body must bring on average, once it has been waited for longer than
    /// the [`grace`](Self::grace).
    pub fn min_rate(mut self, bytes_per_second: u64) -> Self {
        self.pace.min_rate = bytes_per_second;
        self
    }

    /// How long a body may be slower than the [least pace](Self::min_rate); a minute by default.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.pace.grace = grace;
        self
    }

    /// How long a body may take as a whole.
    pub fn body_time(mut self, timeout: Duration) -> Self {
        self.pace.body_time = timeout;
        self
    }
}
