//! Steps at which tests kill the process or make a call fail. Normal builds do not have them.
//!
//! A build with `--cfg tower_resumable_faults` reads the environment variable
//! `TOWER_RESUMABLE_FAULT`: `ACTION@N` for the N-th step of the process, once, or `ACTION@NAME` for
//! every step of that name. The action is `kill` (as by `kill -9`), `eio` or `enospc` (the step
//! fails and does nothing) or `skip` (the step succeeds and does nothing).

/// Whether to do a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Do {
    It,
    #[cfg_attr(not(tower_resumable_faults), allow(dead_code))]
    Nothing,
}

#[cfg(not(tower_resumable_faults))]
#[inline(always)]
pub(crate) fn step(_name: &'static str) -> std::io::Result<Do> {
    Ok(Do::It)
}

#[cfg(tower_resumable_faults)]
pub(crate) use self::injected::step;

#[cfg(tower_resumable_faults)]
mod injected {
    use std::{
        io,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering::SeqCst},
        },
    };

    use super::Do;

    static PLAN: LazyLock<Option<(String, String)>> = LazyLock::new(|| {
        let plan = std::env::var("TOWER_RESUMABLE_FAULT").ok()?;
        let (action, place) = plan.split_once('@')?;
        Some((action.to_owned(), place.to_owned()))
    });

    static STEPS: AtomicU64 = AtomicU64::new(0);

    pub(crate) fn step(name: &'static str) -> io::Result<Do> {
        let number = STEPS.fetch_add(1, SeqCst) + 1;
        let Some((action, place)) = &*PLAN else {
            return Ok(Do::It);
        };
        let counted = place.parse() == Ok(number);
        if !counted && place != name {
            return Ok(Do::It);
        }
        if counted {
            eprintln!("fault: {action} at step {number}: {name}");
        }
        match action.as_str() {
            // Nothing is flushed, dropped or unwound.
            "kill" => std::process::abort(),
            "eio" => Err(io::Error::other("injected")),
            "enospc" => Err(io::ErrorKind::StorageFull.into()),
            "skip" => Ok(Do::Nothing),
            _ => Ok(Do::It),
        }
    }
}
