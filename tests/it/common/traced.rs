//! A subscriber of the crate `tracing` that keeps the events of the layer.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::SeqCst},
    },
};

use ::tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::DefaultGuard,
};
use tracing_core::span::Current;

/// An event of the target `tower_resumable`.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: &'static str,
    pub level: Level,
    /// The name of the span that it happened in.
    pub span: Option<&'static str>,
    /// All fields, with the message.
    pub fields: BTreeMap<&'static str, String>,
}

thread_local! {
    static ENTERED: RefCell<Vec<(u64, &'static Metadata<'static>)>> =
        const { RefCell::new(Vec::new()) };
}

/// Keeps events. Clones share them.
#[derive(Clone, Default)]
pub struct Traced(Arc<Inner>);

#[derive(Default)]
struct Inner {
    lines: Mutex<Vec<Line>>,
    spans: Mutex<BTreeMap<u64, &'static Metadata<'static>>>,
    next: AtomicU64,
}

impl Traced {
    /// Keeps what happens on this thread until the guard is dropped.
    pub fn start() -> (Self, DefaultGuard) {
        let traced = Self::default();
        let guard = ::tracing::subscriber::set_default(traced.clone());
        (traced, guard)
    }

    /// The name of the span that this thread is in.
    pub fn entered() -> Option<&'static str> {
        ENTERED.with_borrow(|entered| entered.last().map(|(_, metadata)| metadata.name()))
    }

    pub fn take(&self) -> Vec<Line> {
        std::mem::take(&mut *self.0.lines.lock().unwrap())
    }
}

impl Subscriber for Traced {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() || metadata.target() == "tower_resumable"
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let id = self.0.next.fetch_add(1, SeqCst) + 1;
        let mut spans = self.0.spans.lock().unwrap();
        spans.insert(id, attributes.metadata());
        span::Id::from_u64(id)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        self.0.lines.lock().unwrap().push(Line {
            name: event.metadata().name(),
            level: *event.metadata().level(),
            span: Self::entered(),
            fields: fields.0,
        });
    }

    fn enter(&self, id: &span::Id) {
        let metadata = self.0.spans.lock().unwrap()[&id.into_u64()];
        ENTERED.with_borrow_mut(|entered| entered.push((id.into_u64(), metadata)));
    }

    fn exit(&self, _: &span::Id) {
        ENTERED.with_borrow_mut(Vec::pop);
    }

    fn current_span(&self) -> Current {
        let last = ENTERED.with_borrow(|entered| entered.last().copied());
        last.map_or_else(Current::none, |(id, metadata)| {
            Current::new(span::Id::from_u64(id), metadata)
        })
    }
}

#[derive(Default)]
struct Fields(BTreeMap<&'static str, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}
