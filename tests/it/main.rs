//! The integration tests, in one binary: one module for each concern.
//!
//! `cargo test --test it delivery` runs the tests of one module.

// Ranges of bytes are compared with lists of one range.
#![allow(clippy::single_range_in_vec_init)]

mod common;

mod admission;
mod axum;
mod bad_input;
mod bucket;
mod captures;
mod changed;
mod chunk_lengths;
mod clients;
mod content;
mod damaged;
mod delivery;
mod digests;
mod events;
mod examples;
mod format;
mod gone;
mod heads;
mod hyper;
mod identity;
mod ietf;
mod interim;
mod limits;
#[cfg(target_os = "linux")]
mod locks;
mod properties;
mod recovery;
#[cfg(target_os = "linux")]
mod sqlite;
mod store;
mod streaming;
mod tonic;
mod tracing;
mod tus;
mod upload;
mod whole_files;
