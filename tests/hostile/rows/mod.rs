//! The attacks, by class.

mod differentials;
mod draft;
mod floods;
mod limits;
mod names;
mod numbers;
mod resources;
mod state;
mod tus;

use crate::world::Case;

pub fn all() -> impl Iterator<Item = &'static Case> {
    [
        names::CASES,
        numbers::CASES,
        differentials::CASES,
        floods::CASES,
        state::CASES,
        resources::CASES,
        limits::CASES,
        tus::CASES,
        draft::CASES,
    ]
    .into_iter()
    .flatten()
}

/// A case that runs an async function.
macro_rules! case {
    ($id:literal, $name:literal, $run:ident) => {
        $crate::world::Case::new($id, $name, |world| Box::pin($run(world)))
    };
}
use case;
