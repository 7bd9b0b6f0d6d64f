//! Every bound on what clients can make the layer do.

use std::time::Duration;

/// The longest time of a setting. Longer ones could overflow.
pub(crate) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Most bytes of a query.
pub(crate) const QUERY_BYTES: usize = 16 << 10;

/// Most fields of a query. Empty ones count: they cost as much to read.
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

/// Most bytes of the metadata of an upload, and most keys.
pub(crate) const METADATA_BYTES: usize = 16 << 10;
pub(crate) const METADATA_KEYS: usize = 64;

/// Most parts of an upload that is concatenated.
pub(crate) const PARTS_OF_UPLOAD: usize = 1000;

/// Most bytes of a media type.
pub(crate) const TYPE_BYTES: usize = 256;

/// Most chunk numbers that a status answer lists.
pub(crate) const LISTED_CHUNKS: usize = 65_536;

/// How many bytes are read of the body of a refused request, and for how long. A client that cannot
/// send its body to the end may not see the answer. After that the answer is sent and the
/// connection is closed. If the body is known to be longer, the answer is sent at once. Nothing is
/// read if the client waits for `100 Continue`.
pub(crate) const DRAIN: (u64, Duration) = (64 << 20, Duration::from_secs(5));

/// How long the rest of a refused body is read while the answer is sent, up to the bytes of
/// [`DRAIN`]. Then the connection is closed, or the stream of HTTP/2 is reset.
pub(crate) const RESET_AFTER: Duration = Duration::from_secs(1);

/// Most bytes of a form without those of its file.
pub(crate) const FORM_BYTES: u64 =
    (PREAMBLE_BYTES + TEXT_BYTES + PARTS * (PART_HEADER_BYTES + 128) + EPILOGUE_BYTES) as u64;

/// Bytes per second with which a body keeps its place when all places are taken.
pub(crate) const KEEP_RATE: u64 = 32 << 10;

/// How much longer a body may take than at [`KEEP_RATE`] when all places are taken.
pub(crate) const KEEP_GRACE: Duration = Duration::from_millis(500);

/// The most that clients can make the layer do: the bounds that can be set, and those that cannot.
///
/// A request over a *final* limit gets a status at which its client stops. One over a *retryable*
/// limit gets 503 with `Retry-After`. Nothing of a refused request is stored.
///
/// | what | default | over it | set by |
/// |---|---|---|---|
/// | bytes of a file | 1 TiB | final, `file_too_large` | [`with_file_size`](Self::with_file_size) |
/// | bytes of a chunk, or of a file in one request | 256 MiB | final, `chunk_too_large` | [`with_chunk_size`](Self::with_chunk_size) |
/// | bytes that one request appends | none | final, `chunk_too_large` | [`with_append_size`](Self::with_append_size) |
/// | unfinished uploads of one [scope](crate::ResumableLayer::with_scope) | 1,000 | retryable, `too_many_uploads` | [`with_uploads_per_scope`](Self::with_uploads_per_scope) |
/// | unfinished uploads in all | 100,000 | retryable, `too_many_uploads` | [`with_uploads`](Self::with_uploads) |
/// | declared bytes of the unfinished uploads of one scope | 1 TiB | retryable, `quota_exceeded`; final, `file_too_large`, if one file alone exceeds it | [`with_unfinished_bytes_per_scope`](Self::with_unfinished_bytes_per_scope) |
/// | declared bytes of all unfinished uploads | none | the same | [`with_unfinished_bytes`](Self::with_unfinished_bytes) |
/// | bodies of one scope that are read at once | 256 | retryable, `busy` | [`with_bodies_per_scope`](Self::with_bodies_per_scope) |
/// | bodies of one [peer](crate::ResumableLayer::with_peer) that are read at once | 256 | retryable, `busy` | [`with_bodies_per_peer`](Self::with_bodies_per_peer) |
/// | bodies that are read at once in all | 4,096 | retryable, `busy` | [`with_bodies`](Self::with_bodies) |
/// | pace of a body, while all places for bodies are taken | 32 KiB/s | retryable, `too_slow` | |
/// | time in which nothing arrives of a body | 30 s | retryable, `too_slow` | [`with_idle`](Self::with_idle) |
/// | pace of a body, over a minute | 1 KiB/s | retryable, `too_slow` | [`with_min_rate`](Self::with_min_rate) |
/// | time for the whole body, unless it is appended | 1 h | retryable, `too_slow` | [`with_body_time`](Self::with_body_time) |
/// | ranges in which an upload is stored | 10,000 | final, `too_many_ranges` | [`FileStoreBuilder::with_max_ranges`](crate::store::FileStoreBuilder::with_max_ranges) |
/// | free space that is left on the disk | 1 GiB or 5 %, whichever is less | retryable, `storage_full` | [`FileStoreBuilder::with_free_space_reserve`](crate::store::FileStoreBuilder::with_free_space_reserve) |
/// | query: bytes, fields | 16 KiB, 64 | final, `too_many_fields` | |
/// | form: parts, bytes of all text fields | 64, 16 KiB | final, `too_many_fields` | |
/// | part of a form: header lines, their bytes | 8, 4 KiB | final, `multipart` | |
/// | bytes before and after the form, of its boundary | 1 KiB, 64 KiB, 70 | final, `multipart` | |
/// | bytes of identifier, file name, relative path, media type | 1024, 1024, 4096, 256 | final, `invalid_field` | |
/// | metadata of tus: bytes, keys | 16 KiB, 64 | final, `invalid_field` | |
/// | parts that are concatenated | 1,000 | final, `invalid_field` | |
/// | what is read of a refused body before the answer; nothing if it is declared longer, or if the client waits for `100 Continue` | 64 MiB, 5 s | the answer is sent, up to 64 MiB more are read for 1 s, and the connection is closed | |
/// | chunk numbers in a status answer | 65,536 | the rest is left out; the byte ranges are complete | |
/// | uploads in an answer that lists them | 2,000 | the rest follows on request | |
/// | recorded bytes of the inner service's answer | 64 KiB | not repeated | [`Delivery::with_record_body`](crate::Delivery::with_record_body) |
///
/// If as many bodies are read as allowed, a new one takes the place of the slowest one, which is
/// the one that has made the server wait the longest for its bytes. A body at 32 KiB/s or more
/// keeps its place. What has arrived of a body that loses its place is stored or discarded by the
/// rules of its protocol, and its client is told to try again. Earlier bytes do not make up for a
/// later pause.
///
/// The slowest body also ends if another one is refused because it finds no room: on the disk, in
/// the memory of the store, or, among the bodies of its scope, in a limit of unfinished uploads. So
/// a client that declares many bytes and sends none does not keep the room for them.
///
/// The server limits the time for the head of a request, the number of connections and the streams
/// of each: with hyper, set a timer, `header_read_timeout` and `max_concurrent_streams`.
///
/// An upload that is concatenated is a copy of its parts, in each store of this crate. Its bytes
/// count as long as it is not settled, and those of a part as long as the part is stored. When the
/// copy is made, its parts make room for it: so it may exceed the limit by their bytes, and until
/// it is settled new uploads find less room.
///
/// The limits of a scope need a [scope hook](crate::ResumableLayer::with_scope). Without one only
/// the limits of all uploads apply. Each process counts unfinished uploads. It asks the store for
/// them at its first new upload, and again before it refuses an upload. It does not ask again
/// within two seconds, or within ten times the time that the store took. Several servers that share
/// a store may each admit some uploads before they know of those of the others.
///
/// ```
/// use std::time::Duration;
/// use tower_resumable::{Limits, MemoryStore, ResumableLayer};
///
/// let limits = Limits::default()
///     .with_file_size(10 << 30)
///     .with_uploads_per_scope(20)
///     .with_idle(Duration::from_secs(10));
/// let layer = ResumableLayer::new(MemoryStore::default()).with_limits(limits);
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Limits {
    pub(crate) file_size: u64,
    pub(crate) chunk_size: u64,
    pub(crate) append_size: u64,
    pub(crate) uploads: Bound,
    pub(crate) unfinished_bytes: Bound,
    pub(crate) bodies: BodyBounds,
    pub(crate) pace: Pace,
}

/// A limit of one scope, and of all together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    pub(crate) per_scope: u64,
    pub(crate) in_all: u64,
}

/// How many bodies are read at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BodyBounds {
    pub(crate) per_scope: u64,
    pub(crate) per_peer: u64,
    pub(crate) in_all: u64,
}

/// How slowly a body may arrive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) idle: Duration,
    /// Bytes per second.
    pub(crate) min_rate: u64,
    /// How much longer a body may take than at `min_rate`.
    pub(crate) grace: Duration,
    pub(crate) body_time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_size: 1 << 40,
            chunk_size: 256 << 20,
            append_size: u64::MAX,
            uploads: Bound {
                per_scope: 1000,
                in_all: 100_000,
            },
            unfinished_bytes: Bound {
                per_scope: 1 << 40,
                in_all: u64::MAX,
            },
            bodies: BodyBounds {
                per_scope: 256,
                per_peer: 256,
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
    /// Sets the maximum number of bytes of a file. Default: 1 TiB.
    pub fn with_file_size(mut self, bytes: u64) -> Self {
        self.file_size = bytes;
        self
    }

    /// Sets the maximum number of bytes of a chunk, or of a file in one request. Default: 256 MiB.
    /// The last chunk of Resumable.js can be nearly twice as long as its `chunkSize`.
    pub fn with_chunk_size(mut self, bytes: u64) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// Sets the maximum number of bytes that one request appends to an upload that has a URL, as
    /// those of [tus](crate::Protocol::tus). Default: without limit, because these clients send the
    /// whole file in one request, and what has arrived of a request is kept.
    pub fn with_append_size(mut self, bytes: u64) -> Self {
        self.append_size = bytes;
        self
    }

    /// Sets the maximum number of unfinished uploads of all scopes together. Default: 100,000.
    pub fn with_uploads(mut self, uploads: u64) -> Self {
        self.uploads.in_all = uploads;
        self
    }

    /// Sets the maximum number of unfinished uploads of one scope. Default: 1,000.
    pub fn with_uploads_per_scope(mut self, uploads: u64) -> Self {
        self.uploads.per_scope = uploads;
        self
    }

    /// Sets how many bytes all unfinished uploads may declare together. Default: without limit.
    pub fn with_unfinished_bytes(mut self, bytes: u64) -> Self {
        self.unfinished_bytes.in_all = bytes;
        self
    }

    /// Sets how many bytes the unfinished uploads of one scope may declare together. Default: 1
    /// TiB. The declared lengths count, not what has arrived.
    pub fn with_unfinished_bytes_per_scope(mut self, bytes: u64) -> Self {
        self.unfinished_bytes.per_scope = bytes;
        self
    }

    /// Sets how many bodies are read at once. Default: 4,096. Each takes some tens of kilobytes of
    /// memory.
    pub fn with_bodies(mut self, bodies: u64) -> Self {
        self.bodies.in_all = bodies;
        self
    }

    /// Sets how many bodies of one scope are read at once. Default: 256.
    pub fn with_bodies_per_scope(mut self, bodies: u64) -> Self {
        self.bodies.per_scope = bodies;
        self
    }

    /// Sets how many bodies of one [peer](crate::ResumableLayer::with_peer) are read at once.
    /// Default: 256. Without the hook there is no such limit.
    pub fn with_bodies_per_peer(mut self, bodies: u64) -> Self {
        self.bodies.per_peer = bodies;
        self
    }

    /// Sets how long nothing may arrive of a body. Default: 30 seconds. The time in which the layer
    /// itself is busy does not count, here and for the other two time limits.
    pub fn with_idle(mut self, timeout: Duration) -> Self {
        self.pace.idle = timeout.min(LONGEST);
        self
    }

    /// Sets the minimum rate of a body, in bytes per second, measured over the [grace
    /// period](Self::with_grace). Default: 1,024. 0 means no minimum.
    pub fn with_min_rate(mut self, bytes_per_second: u64) -> Self {
        self.pace.min_rate = bytes_per_second;
        self
    }

    /// Sets how much longer a body may take than at the [minimum rate](Self::with_min_rate).
    /// Default: a minute.
    ///
    /// Bytes that come later make up for a pause, bytes that came earlier do not: after any number
    /// of them, a body that becomes slower than the minimum rate ends within this time.
    pub fn with_grace(mut self, grace: Duration) -> Self {
        self.pace.grace = grace.min(LONGEST);
        self
    }

    /// Sets how long a body may take as a whole. Default: an hour. It does not apply to bytes that
    /// are appended to an upload that has a URL: they are kept when the body ends.
    pub fn with_body_time(mut self, timeout: Duration) -> Self {
        self.pace.body_time = timeout.min(LONGEST);
        self
    }
}
