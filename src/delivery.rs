use std::{fmt, sync::Arc, time::Duration};

use http::StatusCode;

use crate::limits::LONGEST;

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
    pub(crate) max_attempts: u32,
    pub(crate) record_lifetime: Duration,
    pub(crate) url_record_lifetime: Duration,
    pub(crate) rejection_lifetime: Duration,
    pub(crate) record_body: usize,
    pub(crate) verdict: Arc<dyn Fn(StatusCode) -> Verdict + Send + Sync>,
}

/// What the status of the inner service's answer means for the upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The inner service took the file. The answer is recorded, and the layer never touches the
    /// file again.
    Delivered,
    /// The inner service refused the file for good. The file is removed. The answer is recorded
    /// [for some seconds](Delivery::with_rejection_lifetime), unless the client removes the upload
    /// or sends its first chunk again: then it is a new upload.
    Rejected,
    /// The inner service refused this request. The file is kept and no answer is recorded. The
    /// client stops, and can complete the upload again later: any request for it, also of another
    /// session, calls the inner service again.
    RefusedNow,
    /// The inner service failed. The file is kept and delivered again, with the same id and the
    /// next attempt.
    Failed,
}

impl Verdict {
    /// The default:
    ///
    /// | status | verdict |
    /// |---|---|
    /// | 1xx, 2xx, 3xx | [`Delivered`](Self::Delivered) |
    /// | 400, 409, 410, 413, 415, 422, 451 | [`Rejected`](Self::Rejected) |
    /// | 408, 425, 429, 500 and above | [`Failed`](Self::Failed) |
    /// | other 4xx, such as 401, 403, 404, 405 | [`RefusedNow`](Self::RefusedNow) |
    ///
    /// Only a status that is about the file rejects it. An expired session, or a mistake in the
    /// routes of the application, removes no file.
    pub fn of(status: StatusCode) -> Self {
        match status.as_u16() {
            400 | 409 | 410 | 413 | 415 | 422 | 451 => Self::Rejected,
            408 | 425 | 429 => Self::Failed,
            100..400 => Self::Delivered,
            400..500 => Self::RefusedNow,
            _ => Self::Failed,
        }
    }
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(50),
            max_attempts: 20,
            record_lifetime: Duration::from_secs(5 * 60),
            url_record_lifetime: Duration::from_secs(24 * 60 * 60),
            rejection_lifetime: Duration::from_secs(10),
            record_body: 64 << 10,
            verdict: Arc::new(Verdict::of),
        }
    }
}

impl Delivery {
    /// Sets how long a request waits for the answer of the inner service before the client is told
    /// to try again. Default: 50 seconds. At most one year.
    ///
    /// The inner service goes on, and the next attempt of the client gets its answer.
    ///
    /// Set it below the timeout of proxies and load balancers in front of the server, which is 60
    /// seconds in nginx and for AWS load balancers. Otherwise the proxy answers first, with an
    /// error that does not tell the client to try again.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self {
            timeout: timeout.min(LONGEST),
            ..self
        }
    }

    /// Sets after how many failed attempts an upload is set aside. Default: 20. At least 1.
    /// `u32::MAX` is without limit.
    ///
    /// An attempt fails if the inner service fails, panics, or ends the process. Answers that
    /// [refuse](Verdict::RefusedNow) the request do not count, as far as this process has seen
    /// them. The pause between two attempts grows: from
    /// [`with_hold_back`](crate::ResumableLayer::with_hold_back) after the first one to one hour,
    /// so 20 attempts take about six hours.
    ///
    /// The operator is told by [`Event::SetAside`](crate::Event::SetAside). The file is kept. From
    /// then on, also after a restart, clients get a final error, and only
    /// [`Uploads::deliver`](crate::Uploads::deliver) delivers the upload.
    pub fn with_max_attempts(self, attempts: u32) -> Self {
        Self {
            max_attempts: attempts.max(1),
            ..self
        }
    }

    /// Sets how long the answer of the inner service is kept for retries, late duplicates and
    /// probes, if it took the file. Default: 5 minutes. At most one year. After that the same file
    /// starts a new upload.
    ///
    /// The status, the body and the headers are kept, but for `Set-Cookie` and the headers of the
    /// transfer: `Connection`, `Content-Length`, `Date`, `TE`, `Trailer`, `Transfer-Encoding` and
    /// `Upgrade`. The client of the request that is delivered gets the cookies. A later request can
    /// be of another session or user in the scope, and an old cookie would replace a newer one.
    pub fn with_record_lifetime(self, record_lifetime: Duration) -> Self {
        Self {
            record_lifetime: record_lifetime.min(LONGEST),
            ..self
        }
    }

    /// The same for uploads that have a URL, such as those of [tus](crate::Protocol::tus). Default:
    /// a day. At most one year. After that the upload is absent.
    ///
    /// A client that has lost the last answer asks at the URL, maybe much later. If the upload is
    /// absent by then, the client sends the whole file again, and it is delivered again. While the
    /// record is kept, a client that has stored the URL takes the same file for uploaded.
    pub fn with_url_record_lifetime(self, record_lifetime: Duration) -> Self {
        Self {
            url_record_lifetime: record_lifetime.min(LONGEST),
            ..self
        }
    }

    /// The same for an answer that [rejects](Verdict::Rejected) the file. Default: 10 seconds. At
    /// most one year.
    ///
    /// The record is for a client that has lost the answer and sends its last chunk again. After
    /// that time, such a client is told that the chunk is stored.
    pub fn with_rejection_lifetime(self, rejection_lifetime: Duration) -> Self {
        Self {
            rejection_lifetime: rejection_lifetime.min(LONGEST),
            ..self
        }
    }

    /// Sets how many bytes of the body of the inner service's answer are recorded. Default: 64 KiB.
    ///
    /// A longer body is sent to the completing request only. So is a body that does not end within
    /// one second, and every body of the type `text/event-stream`: the client gets it while it
    /// arrives, and the delivery is recorded at once, without the body.
    ///
    /// A body that fails before that is a failed delivery. After that, it is cut off for its
    /// client, and the file is delivered. The rest of the body is dropped if the client goes, if it
    /// gets another body by its protocol, and if the delivery is one of the background. So the work
    /// on the file has to be done, or to be in a task of its own, when the inner service answers.
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
            .field("max_attempts", &self.max_attempts)
            .field("record_lifetime", &self.record_lifetime)
            .field("url_record_lifetime", &self.url_record_lifetime)
            .field("rejection_lifetime", &self.rejection_lifetime)
            .field("record_body", &self.record_body)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_verdicts() {
        let of = |status| Verdict::of(StatusCode::from_u16(status).unwrap());
        for status in 100..1000 {
            let expected = match status {
                400 | 409 | 410 | 413 | 415 | 422 | 451 => Verdict::Rejected,
                408 | 425 | 429 => Verdict::Failed,
                100..400 => Verdict::Delivered,
                401..500 => Verdict::RefusedNow,
                _ => Verdict::Failed,
            };
            assert_eq!(of(status), expected, "{status}");
        }
    }
}
