//! Uploads that are made of other uploads, their parts.

use std::collections::{HashMap, HashSet, hash_map::Entry};

use tokio::time::{Instant, timeout_at};

use super::{Engine, head::Head, receive::Found, registry::Ended};
use crate::{
    config::Config,
    error::{Error, Reason},
    hooks::Purpose,
    model::{
        state::{State, Status},
        upload::{Role, Upload},
    },
    protocol::{Outcome, Reply, named},
};

impl Engine {
    /// Creates an upload of parts, and puts it together if these are complete. A request that is
    /// sent again finds the same upload.
    pub(super) async fn concat(
        &self,
        upload: Upload,
        head: &Head,
        reply: &mut Reply,
    ) -> Result<Found, Error> {
        self.admit(Purpose::Create, head, &upload).await?;
        if let Some(upload) = self.put_together(&upload).await? {
            reply.created(&upload);
            return Ok(Found::complete(upload));
        }
        self.create(&upload).await?;
        reply.created(&upload);
        let ids = parts(&upload).map(|part| part.id);
        self.finals.wait_for(ids, &upload);
        // One of them may be complete since they were looked at.
        if let Some(upload) = self.put_together(&upload).await? {
            return Ok(Found::complete(upload));
        }
        let held = Outcome::Held(self.held(&upload, None));
        Ok(Found::Response(reply.encode(held)))
    }

    /// The upload that this part has completed, if one waits for it.
    pub(super) async fn completed_by(&self, part: &Upload) -> Option<Upload> {
        let upload = self.finals.waits_for(&part.id)?;
        // Errors of the store are told to the operator. The client asks at the URL of that upload.
        self.put_together(&upload).await.ok()?
    }

    /// Makes an upload of its parts, in a task that goes on without the client. `None` if a part is
    /// not complete.
    pub(super) async fn put_together(&self, upload: &Upload) -> Result<Option<Upload>, Error> {
        let deadline = Instant::now() + self.config.delivery.timeout;
        loop {
            // The parts are removed when the upload is settled, so they are looked at first.
            let length = self.length_of_parts(upload).await;
            let status = self.status(upload).await?;
            let is_whole = |status: &&Status| !matches!(status.state, State::Receiving(_));
            if let Some(status) = status.as_ref().filter(is_whole) {
                return Ok(Some(status.upload.clone()));
            }
            let Some(length) = length? else {
                return Ok(None);
            };
            self.config.check(Some(length), None)?;
            let mut whole = upload.clone();
            whole.length = Some(length);
            let entered = match self.finals.running.enter(&upload.id) {
                Ok(entered) => entered,
                Err(other) => match other.wait(deadline).await {
                    Ended::Failed(error) => return Err(error),
                    Ended::Settled(_) | Ended::Refused => continue,
                },
            };
            let ids: Vec<_> = parts(&whole).map(|part| part.id).collect();
            let reserved = self.reserve(upload).await?;
            if let Some(reserved) = &reserved {
                let Config { hooks, limits, .. } = &*self.config;
                // All stores copy the bytes. The parts are removed when the file is settled.
                let grown = reserved.grow(limits, hooks.scope.is_some(), length, &ids);
                grown.inspect_err(|_| reserved.found(status.as_ref()))?;
            }
            let engine = self.clone();
            let task = tokio::spawn(async move {
                let _active = engine.active.enter();
                let made = engine.store.concat(&whole, &ids).await;
                let made = made.map_err(|error| engine.store_failed(Some(&whole.id), error));
                if let Ok(progress) = &made {
                    engine.stored(&whole, None, *progress, reserved);
                    engine.finals.forget(&ids);
                }
                // Others look at what is stored.
                entered.end(match &made {
                    Ok(_) => Ended::Refused,
                    Err(error) => Ended::Failed(error.clone()),
                });
                made.map(|_| whole)
            });
            return match timeout_at(deadline, task).await {
                Ok(Ok(made)) => made.map(Some),
                Ok(Err(error)) => Err(Error::new(Reason::Storage, error)),
                Err(_) => Err(Reason::DeliveryPending.into()),
            };
        }
    }

    /// The length of all parts together. `None` if one is not complete.
    async fn length_of_parts(&self, upload: &Upload) -> Result<Option<u64>, Error> {
        let invalid = |problem| Reason::InvalidField {
            name: "upload-concat".to_owned(),
            problem,
        };
        let mut lengths = HashMap::new();
        let (mut sum, mut is_complete) = (0_u64, true);
        for part in parts(upload) {
            let length = match lengths.entry(part.id) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(place) => {
                    let status = self.status(&part).await?;
                    let status = status.ok_or_else(|| invalid("names an upload that is absent"))?;
                    if status.upload.role != Role::Part {
                        return Err(invalid("names an upload that is not a part").into());
                    }
                    is_complete &= matches!(status.state, State::Complete);
                    *place.insert(status.upload.length.unwrap_or_default())
                }
            };
            let limit = u64::MAX;
            sum = sum
                .checked_add(length)
                .ok_or(Reason::FileTooLarge { limit })?;
        }
        Ok(is_complete.then_some(sum))
    }

    /// Removes the parts of an upload that is settled, in a task of its own.
    pub(super) fn remove_parts(&self, upload: &Upload) {
        let ids: HashSet<_> = parts(upload).map(|part| part.id).collect();
        if ids.is_empty() {
            return;
        }
        let engine = self.clone();
        tokio::spawn(async move {
            let _active = engine.active.enter();
            for id in &ids {
                match engine.store.remove(id).await {
                    Ok(_) => engine.quota.release(id),
                    // Told to the operator. The part is swept later.
                    Err(error) => drop(engine.store_failed(Some(id), error)),
                }
            }
        });
    }
}

/// The parts of an upload, in their order, as requests name them.
fn parts(upload: &Upload) -> impl Iterator<Item = Upload> + '_ {
    let tokens = upload.creation.iter().flat_map(|creation| &creation.parts);
    let path = upload.request_path.as_deref().unwrap_or_default();
    tokens.map(move |token| named(token, upload.scope.clone(), path))
}
