//! Which thread runs after each call of the file system, for tests: one at a time, chosen at random
//! by a seed.

use std::{
    cell::Cell,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
};

use super::simulated::Chance;
use crate::lock::lock;

#[derive(Debug)]
pub(in crate::store) struct Scheduler {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    chance: Chance,
    tickets: u64,
    waiting: Vec<u64>,
    /// The ticket of the thread that runs.
    running: Option<u64>,
}

thread_local! {
    static SCHEDULED: Cell<bool> = const { Cell::new(false) };
}

impl Scheduler {
    pub(super) fn new(seed: u64) -> Self {
        let state = State {
            chance: Chance::Random(seed),
            tickets: 0,
            waiting: Vec::new(),
            running: None,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// This thread takes turns with the others, until [`leave`](Self::leave).
    pub(in crate::store) fn enter(&self) {
        SCHEDULED.set(true);
        self.wait_for_turn(self.state());
    }

    /// Lets another thread run, or this one again, at random.
    pub(in crate::store) fn pass(&self) {
        if SCHEDULED.get() {
            let mut state = self.state();
            state.running = None;
            self.wait_for_turn(state);
        }
    }

    pub(in crate::store) fn leave(&self) {
        SCHEDULED.set(false);
        let mut state = self.state();
        state.running = None;
        self.choose(&mut state);
    }

    fn wait_for_turn(&self, mut state: MutexGuard<'_, State>) {
        state.tickets += 1;
        let ticket = state.tickets;
        state.waiting.push(ticket);
        if state.running.is_none() {
            self.choose(&mut state);
        }
        while state.running != Some(ticket) {
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn choose(&self, state: &mut State) {
        if !state.waiting.is_empty() {
            let at = state.chance.below(state.waiting.len());
            state.running = Some(state.waiting.swap_remove(at));
            self.changed.notify_all();
        }
    }
}
