#![no_main]

#[path = "../../tests/properties/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::names(data));
