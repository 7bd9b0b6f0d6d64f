//! Properties that hold for any input: plain functions of bytes.
//!
//! `cargo test` calls them with inputs of proptest (`tests/it/properties/mod.rs`), the targets
//! below `fuzz/` with inputs of libFuzzer. All of them use the public API. They panic if a property
//! does not hold.
#![allow(
    dead_code,
    unused_imports,
    reason = "each fuzz target uses a part of it"
)]

mod data_url;
mod forms;
mod journal;
mod machine;
mod names;
mod query;
mod server;

pub use self::{
    data_url::data_url,
    forms::{form_cuts, form_parts},
    journal::journal,
    machine::machine,
    names::names,
    query::query,
};

/// Derives choices from bytes. Missing bytes are 0.
pub struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn u8(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    pub fn bool(&mut self) -> bool {
        self.u8() & 1 == 1
    }

    /// A number below `end`, or 0.
    pub fn below(&mut self, end: usize) -> usize {
        match end {
            0 | 1 => 0,
            2..=256 => usize::from(self.u8()) % end,
            _ => usize::from(self.u16()) % end,
        }
    }

    pub fn pick<'p, T>(&mut self, all: &'p [T]) -> &'p T {
        &all[self.below(all.len())]
    }

    /// The next `len` bytes, or fewer at the end.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (bytes, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}
