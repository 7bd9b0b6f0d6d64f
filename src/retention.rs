use std::time::{Duration, SystemTime};

use crate::store::Expiry;

/// How long a store keeps what nobody asks for; see [`ResumableLayer::sweep_every`].
///
/// The records of delivered uploads have their own time, that of
/// [`with_record_lifetime`](crate::ResumableLayer::with_record_lifetime).
///
/// [`ResumableLayer::sweep_every`]: crate::ResumableLayer::sweep_every
///
/// ```
/// use std::time::Duration;
/// use tower_resumable::Retention;
///
/// const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// let retention = Retention::default().abandoned(2 * DAY).undelivered(30 * DAY);
/// # let _ = retention;
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Retention {
    abandoned: Duration,
    undelivered: Option<Duration>,
}

impl Default for Retention {
    /// A week for uploads that are not complete, no end for those that are.
    fn default() -> Self {
        Self {
            abandoned: Duration::from_secs(7 * 24 * 60 * 60),
            undelivered: None,
        }
    }
}

impl Retention {
    /// Removes incomplete uploads of which nothing has come for this long.
    pub fn abandoned(mut self, after: Duration) -> Self {
        self.abandoned = after;
        self
    }

    /// Removes complete uploads, with their files, that the inner service has not taken for this
    /// long. They are kept without this: all their bytes were acknowledged.
    pub fn undelivered(mut self, after: Duration) -> Self {
        self.undelivered = Some(after);
        self
    }

    pub(crate) fn expiry(&self) -> Expiry {
        let now = SystemTime::now();
        let before = |age| now.checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        Expiry {
            abandoned_before: before(self.abandoned),
            undelivered_before: self.undelivered.map(before),
            records_before: now,
        }
    }
}
