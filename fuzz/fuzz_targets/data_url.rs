#![no_main]

#[path = "../../tests/it/properties/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::data_url(data));
