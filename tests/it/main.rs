//! The integration tests, in one binary: one module for each concern.
//!
//! `cargo test --test it delivery` runs the tests of one module.

mod common;

mod admission;
mod axum;
mod bad_input;
mod bucket;
mod captures;
mod clients;
mod content;
mod delivery;
mod digests;
mod examples;
mod format;
mod gone;
mod heads;
mod hyper;
mod limits;
mod properties;
mod recovery;
mod sqlite;
mod store;
mod tonic;
mod upload;
