//! What hostile and broken clients send, over real sockets, and what is left of it.
//!
//! `cargo test --test hostile` prints one table: how each attack was answered, how many bytes of it
//! stay stored, how many files were touched outside of the store's folder, and how many uploads of
//! others were harmed. `-- TEXT` runs the rows whose name has the text. The numbers are those of
//! the classes of attacks: names 1 to 16, numbers 17 to 33, duplicates 34 to 45, sizes and floods
//! 46 to 56, states 57 to 71, resources 77 to 80 (those between need a disk that fails:
//! `e2e/crash`).

mod client;
#[path = "../it/common/mod.rs"]
mod common;
mod h2;
mod process;
mod rows;
mod table;
mod wire;
mod world;

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // What `cargo test` says to every test goes to this one too.
    if words.iter().any(|word| word == "--list") {
        return std::process::ExitCode::SUCCESS;
    }
    if let Some(code) = process::with_many_files() {
        return code;
    }
    let only = words.into_iter().find(|word| !word.starts_with('-'));
    // The table says what went wrong; where is enough.
    std::panic::set_hook(Box::new(|panic| {
        let told = panic.payload().downcast_ref::<String>();
        if told.is_none_or(|text| text != world::AS_TOLD) {
            let at = panic.location().map(ToString::to_string);
            eprintln!("wrong at {}", at.unwrap_or_default());
        }
    }));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    match runtime.block_on(table::print(only.as_deref())) {
        true => std::process::ExitCode::SUCCESS,
        false => std::process::ExitCode::FAILURE,
    }
}
