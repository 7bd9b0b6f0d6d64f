//! What a layer or a store tells the operator.

use std::sync::{Arc, Mutex};

use tower_resumable::{
    Event, ResumableLayer,
    store::{Observer, StoreEvent},
};

/// The names of events that happen to an upload that has no faults, and of the end of a fault.
pub const LIFE: [&str; 7] = [
    "created",
    "resumed",
    "stored",
    "completed",
    "delivery_started",
    "delivery_ended",
    "record_late",
];

/// Collects events: their names, and their lines for a log. Clones share them.
#[derive(Clone, Default)]
pub struct Told(Arc<Mutex<Vec<(&'static str, String)>>>);

impl Told {
    /// Collects the events of a layer.
    pub fn of(&self, layer: ResumableLayer) -> ResumableLayer {
        let told = self.clone();
        layer.with_events(move |event| told.push(event))
    }

    /// Collects the events of a store. Where there is a place, that is the text.
    pub fn observer(&self) -> Observer {
        let told = self.clone();
        Arc::new(move |event: &StoreEvent<'_>| {
            let name = Event::Store(event).name();
            let text = match event {
                StoreEvent::SetAside { place, .. } | StoreEvent::Skipped { place, .. } => {
                    (*place).to_owned()
                }
                event => event.to_string(),
            };
            told.0.lock().unwrap().push((name, text));
        })
    }

    pub fn push(&self, event: &Event<'_>) {
        let line = event.to_string();
        assert!(!line.contains(char::is_control), "{line:?}");
        self.0.lock().unwrap().push((event.name(), line));
    }

    pub fn all(&self) -> Vec<(&'static str, String)> {
        self.0.lock().unwrap().clone()
    }

    pub fn take(&self) -> Vec<(&'static str, String)> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    /// Takes all events, and returns those that are not of the usual life of an upload.
    pub fn take_faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = self.take();
        faults.retain(|(name, _)| !LIFE.contains(name));
        faults
    }

    /// The lines of [`take_faults`](Self::take_faults).
    pub fn take_lines(&self) -> Vec<String> {
        let faults = self.take_faults().into_iter();
        faults.map(|(_, line)| line).collect()
    }

    /// The names of all events.
    pub fn names(&self) -> Vec<&'static str> {
        let all = self.all().into_iter();
        all.map(|(name, _)| name).collect()
    }
}
