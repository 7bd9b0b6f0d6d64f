#![no_main]

#[path = "../../tests/it/properties/checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| match data.split_first() {
    // Any bytes as a form.
    Some((0..128, data)) => checks::form_cuts(data),
    // A valid form, made from any bytes.
    Some((_, data)) => checks::form_parts(data),
    None => {}
});
