//! Guides: what to do, and why, with examples.
//!
//! The [README](https://github.com/tower-resumable/tower-resumable) is the introduction. The
//! documentation of each item has the details.

#[doc = include_str!("clients.md")]
pub mod clients {}

#[doc = include_str!("deployment.md")]
pub mod deployment {}

#[doc = include_str!("front_ends.md")]
pub mod front_ends {}

#[doc = include_str!("guarantees.md")]
pub mod guarantees {}

#[doc = include_str!("handlers.md")]
pub mod handlers {}

#[doc = include_str!("identity.md")]
pub mod identity {}

#[doc = include_str!("ietf.md")]
pub mod ietf {}

#[doc = include_str!("migrating.md")]
pub mod migrating {}

#[doc = include_str!("observability.md")]
pub mod observability {}

#[doc = include_str!("scaling_out.md")]
pub mod scaling_out {}

#[doc = include_str!("security.md")]
pub mod security {}

#[doc = include_str!("slow_handlers.md")]
pub mod slow_handlers {}

#[doc = include_str!("stores.md")]
pub mod stores {}

#[doc = include_str!("tuning.md")]
pub mod tuning {}

#[doc = include_str!("tus.md")]
pub mod tus {}

#[doc = include_str!("writing_a_dialect.md")]
pub mod writing_a_dialect {}

#[doc = include_str!("writing_a_store.md")]
pub mod writing_a_store {}
