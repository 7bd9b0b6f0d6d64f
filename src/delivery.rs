use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;

/// How complete uploads are delivered to the inner service, and what its answer means.
///
/// ```
/// use std::time::Duration;
/// use http::StatusCode;
/// use tower_resumable::{Delivery, MemoryStore, ResumableLayer, Verdict};
///
/// let delivery = Delivery::default()
///     .with_timeout(Duration::from_secs(20))
///     .with_verdict(|status| match status {
///         // The session has expired: the user signs in and completes the upload again.
///         StatusCode::UNAUTHORIZED => Verdict::RefusedNow,
///         status => Verdict::of(status),
///     });
/// let layer = ResumableLayer::new(MemoryStore::default()).with_delivery(delivery);
/// # let _ = layer;
/// ```
#[derive(Clone)]
#[must_use]
pub struct Delivery {
    pub(crate) timeout: Duration,
    pub(crate) record_lifetime: Duration,
    pub(crate) record_body: usize,
    pub(crate) verdict: Arc<dyn Fn(StatusCode) -> Verdict + Send + Sync>,
}

/// What the status of the inner service's answer means for the upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The inner service took the file. The answer is recorded, and the layer never touches the
    /// file again.
    Delivered,
    /// The inner service refused the file for good. The answer is recorded, and the file is
    /// removed.
    Rejected,
    /// The inner service refused this request. The file is kept and no answer is recorded. The
    /// client stops, and can complete the upload again later.
    RefusedNow,
    /// The inner service failed. The file is kept and delivered again, with the same id and the
    /// next attempt.
    Failed,
}

impl Verdict {
    /// The default: 1xx to 3xx are delivered; 408, 425, 429, and 500 and above are failed; all
    /// other 4xx are rejected.
    pub fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            408 | 425 | 429 => Self::Failed,
            100..400 => Self::Delivered,
            400..500 => Self::Rejected,
            _ => Self::Failed,
        }
    }
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(60),
            record_lifetime: Duration::from_secs(5 * 60),
            record_body: 64 << 10,
            verdict: Arc::new(Verdict::of),
        }
    }
}

impl Delivery {
    /// Sets how long a request waits for the answer of the inner service before the client is told
    /// to try again. Default: 60 seconds. At most one year.
    ///
    /// The inner service goes on, and the next attempt of the client gets its answer.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// Sets how long the answer of the inner service is kept for retries, late duplicates and
    /// probes. Default: 5 minutes. At most one year. After that the same file starts a new upload.
    pub fn with_record_lifetime(self, record_lifetime: Duration) -> Self {
        Self {
            record_lifetime,
            ..self
        }
    }

    /// Sets how many bytes of the body of the inner service's answer are recorded. Default: 64 KiB.
    ///
    /// A longer body is sent to the completing request only.
    pub fn with_record_body(self, bytes: usize) -> Self {
        Self {
            record_body: bytes,
            ..self
        }
    }

    /// Sets what a status of the inner service means. Default: [`Verdict::of`].
    pub fn with_verdict(
        self,
        verdict: impl Fn(StatusCode) -> Verdict + Send + Sync + 'static,
    ) -> Self {
        Self {
            verdict: Arc::new(verdict),
            ..self
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("timeout", &self.timeout)
            .field("record_lifetime", &self.record_lifetime)
            .field("record_body", &self.record_body)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_verdicts() {
        use Verdict::{Delivered, Failed, Rejected};
        for (status, expected) in [
            (200, Delivered),
            (204, Delivered),
            (303, Delivered),
            (400, Rejected),
            (401, Rejected),
            (415, Rejected),
            (499, Rejected),
            (408, Failed),
            (425, Failed),
            (429, Failed),
            (500, Failed),
            (503, Failed),
            (599, Failed),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(Verdict::of(status), expected, "{status}");
        }
    }
}
