use std::time::{Duration, SystemTime};

use crate::store::Expiry;

/// How long uploads are kept that are not delivered: see [`Uploads::sweep`](crate::Uploads::sweep).
///
/// How long the records of delivered uploads are kept is
/// [another setting](crate::Delivery::with_record_lifetime).
///
/// ```
/// use std::time::Duration;
/// use tower_resumable::{MemoryStore, ResumableLayer, Retention};
///
/// const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// let retention = Retention::default().with_abandoned(2 * DAY).with_undelivered(30 * DAY);
/// let layer = ResumableLayer::new(MemoryStore::default()).with_retention(retention);
/// # let _ = layer;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Retention {
    abandoned: Duration,
    undelivered: Option<Duration>,
}

impl Default for Retention {
    /// Incomplete uploads are kept for a week, complete ones without limit.
    fn default() -> Self {
        Self {
            abandoned: Duration::from_secs(7 * 24 * 60 * 60),
            undelivered: None,
        }
    }
}

impl Retention {
    /// Sets how long an incomplete upload is kept after its last request. Default: 7 days. The same
    /// holds for a complete [part](crate::Role::Part) of a file. Clients of tus are told the time
    /// in `Upload-Expires`.
    pub fn with_abandoned(self, abandoned: Duration) -> Self {
        Self { abandoned, ..self }
    }

    /// Sets how long a complete upload is kept that is not delivered, because the inner service
    /// failed or refused it for the moment. Default: without limit, because all its bytes were
    /// acknowledged.
    pub fn with_undelivered(self, undelivered: Duration) -> Self {
        Self {
            undelivered: Some(undelivered),
            ..self
        }
    }

    /// When an incomplete upload is removed that is touched now. `None` if that is never.
    pub(crate) fn expires(&self) -> Option<SystemTime> {
        SystemTime::now().checked_add(self.abandoned)
    }

    pub(crate) fn expiry(&self) -> Expiry {
        let now = SystemTime::now();
        // A limit before 1970 keeps everything.
        let before = |age| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        Expiry {
            abandoned_before: Some(before(self.abandoned)),
            undelivered_before: self.undelivered.map(before),
            ..Expiry::default()
        }
    }
}
