//! How the last delivery of each pending upload ended, as this process knows it: until when the
//! next one waits.

use std::{collections::HashMap, sync::Mutex, time::Duration};

use tokio::time::Instant;

use super::verify::By;
use crate::{
    error::{Error, Reason},
    lock::lock,
    model::upload::UploadId,
    store::Sealed,
};

/// The longest pause between two deliveries of an upload.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// How long no delivery in the background follows, if the inner service refused the last one. The
/// upload waits for its client.
const REFUSED_PAUSE: Duration = Duration::from_secs(24 * 60 * 60);

/// Responses are held back up to this many times the setting of the layer.
pub(crate) const HELD_TIMES: u32 = 8;

/// The uploads whose last delivery did not end with a record of success.
#[derive(Debug, Default)]
pub(crate) struct Outcomes(Mutex<HashMap<UploadId, Outcome>>);

#[derive(Debug)]
struct Outcome {
    /// The [id](Sealed::id) of the delivery. A later upload with the same [`UploadId`] has another.
    delivery: String,
    /// Failures in a row.
    failures: u32,
    /// Attempts that do not count, because the application refused the request.
    refused: u32,
    /// Whether the upload was set aside, and the operator was told.
    is_set_aside: bool,
    /// Whether the file was rejected: the store may have a record of that.
    is_rejected: bool,
    /// What requests get until then.
    error: Option<Error>,
    until: Instant,
    /// The next delivery in the background.
    background: Instant,
}

impl Outcomes {
    /// Why the upload is not delivered now.
    pub(crate) fn held(&self, id: &UploadId, by: By) -> Option<Held> {
        let now = Instant::now();
        let outcomes = lock(&self.0);
        let outcome = outcomes.get(id)?;
        let error = match by {
            By::Background if outcome.background > now => Some(Reason::DeliveryPending.into()),
            By::Request if outcome.until > now => outcome.error.clone(),
            _ => None,
        };
        let delivery = outcome.delivery.clone();
        error.map(|error| Held { delivery, error })
    }

    /// How long the next request has to wait for a delivery.
    pub(crate) fn pause(&self, id: &UploadId) -> Duration {
        let outcomes = lock(&self.0);
        let until = outcomes.get(id).map(|outcome| outcome.until);
        until.map_or(Duration::ZERO, |until| {
            until.saturating_duration_since(Instant::now())
        })
    }

    /// How many deliveries have failed before this one. Those that the application refused before
    /// the start of this process count too.
    pub(crate) fn failures(&self, sealed: &Sealed) -> u32 {
        let refused = lock(&self.0)
            .get(&sealed.upload.id)
            .filter(|outcome| outcome.delivery == sealed.id)
            .map_or(0, |outcome| outcome.refused);
        sealed.attempt.saturating_sub(1).saturating_sub(refused)
    }

    /// A delivery has failed, or, if it does not `count`, the application refused it for the
    /// moment. The next one waits.
    pub(crate) fn failed(&self, sealed: &Sealed, error: &Error, hold_back: Duration, counts: bool) {
        self.change(sealed, |outcome, now| {
            outcome.failures = outcome.failures.saturating_add(1);
            outcome.refused = outcome.refused.saturating_add(u32::from(!counts));
            let attempts = sealed.attempt.saturating_sub(outcome.refused);
            let failures = attempts.max(outcome.failures);
            // The application has to be asked again soon.
            let failures = if counts { failures } else { failures.min(4) };
            let pause = pause(failures, hold_back);
            outcome.error = Some(error.clone());
            (outcome.until, outcome.background) = (now + pause, now + pause);
        });
    }

    /// The inner service refused the request. Other requests are delivered at once.
    pub(crate) fn refused(&self, sealed: &Sealed) {
        self.change(sealed, |outcome, now| {
            outcome.failures = 0;
            outcome.refused = outcome.refused.saturating_add(1);
            outcome.error = None;
            (outcome.until, outcome.background) = (now, now + REFUSED_PAUSE);
        });
    }

    /// The upload is not delivered until the operator asks. Returns `false` if it was set aside
    /// before.
    pub(crate) fn set_aside(&self, sealed: &Sealed, error: &Error) -> bool {
        let mut is_new = false;
        self.change(sealed, |outcome, now| {
            is_new = !std::mem::replace(&mut outcome.is_set_aside, true);
            outcome.error = Some(error.clone());
            // After that, the store is asked for the number of attempts again: the upload may be a
            // new one.
            (outcome.until, outcome.background) = (now + LONGEST_PAUSE, now + LONGEST_PAUSE);
        });
        is_new
    }

    /// The file was rejected.
    pub(crate) fn rejected(&self, sealed: &Sealed) {
        self.change(sealed, |outcome, now| {
            outcome.is_rejected = true;
            outcome.error = None;
            (outcome.until, outcome.background) = (now, now);
        });
    }

    /// Whether the file was rejected a moment ago.
    pub(crate) fn is_rejected(&self, id: &UploadId) -> bool {
        lock(&self.0)
            .get(id)
            .is_some_and(|outcome| outcome.is_rejected)
    }

    /// The upload is delivered, or gone.
    pub(crate) fn forget(&self, id: &UploadId) {
        lock(&self.0).remove(id);
    }

    /// The upload with this [id](Sealed::id) is settled, or gone.
    pub(crate) fn forget_delivery(&self, id: &UploadId, delivery: &str) {
        let mut outcomes = lock(&self.0);
        if outcomes.get(id).is_some_and(|it| it.delivery == delivery) {
            outcomes.remove(id);
        }
    }

    /// How many uploads wait for another delivery, and how many are set aside.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let outcomes = lock(&self.0);
        let set_aside = outcomes.values().filter(|it| it.is_set_aside).count();
        let settled = outcomes.values().filter(|it| it.is_rejected).count();
        let waiting = outcomes.len() - set_aside - settled;
        (waiting as u64, set_aside as u64)
    }

    /// Forgets uploads that were not delivered for a long time. They may be gone.
    pub(crate) fn forget_old(&self) {
        let now = Instant::now();
        lock(&self.0)
            .retain(|_, outcome| outcome.until.max(outcome.background) + LONGEST_PAUSE > now);
    }

    fn change(&self, sealed: &Sealed, change: impl FnOnce(&mut Outcome, Instant)) {
        let now = Instant::now();
        let new = || Outcome {
            delivery: sealed.id.clone(),
            failures: 0,
            refused: 0,
            is_set_aside: false,
            is_rejected: false,
            error: None,
            until: now,
            background: now,
        };
        let mut outcomes = lock(&self.0);
        let outcome = outcomes.entry(sealed.upload.id).or_insert_with(new);
        if outcome.delivery != sealed.id {
            *outcome = new();
        }
        change(outcome, now);
    }
}

/// Why an upload is not delivered now.
pub(crate) struct Held {
    /// The [id](Sealed::id) of the delivery after which it waits.
    pub(crate) delivery: String,
    /// The error of that delivery, or [`DeliveryPending`](Reason::DeliveryPending) in the
    /// background.
    pub(crate) error: Error,
}

/// The pause after this many failures. The first four depend on how long responses are held back,
/// so that a client that tries again at once finds that the pause has ended.
fn pause(failures: u32, hold_back: Duration) -> Duration {
    let pause = match failures {
        0..=4 => hold_back.saturating_mul(1 << failures.saturating_sub(1)),
        _ => {
            let seconds = Duration::from_secs(1 << (failures - 4).min(12));
            seconds.max(hold_back.saturating_mul(HELD_TIMES))
        }
    };
    pause.min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow() {
        let hold_back = Duration::from_millis(250);
        let millis = |failures| pause(failures, hold_back).as_millis();
        let first: Vec<_> = (0..8).map(millis).collect();
        assert_eq!(first, [250, 250, 500, 1000, 2000, 2000, 4000, 8000]);
        for failures in [16, 17, 100, u32::MAX] {
            assert_eq!(pause(failures, hold_back), LONGEST_PAUSE);
        }
        assert_eq!(pause(4, Duration::ZERO), Duration::ZERO);
        assert_eq!(pause(5, Duration::ZERO), Duration::from_secs(2));
        for failures in [0, 1, 4, 5, u32::MAX] {
            assert_eq!(pause(failures, Duration::MAX), LONGEST_PAUSE);
        }
    }
}
