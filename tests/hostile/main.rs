//! Sends what hostile and broken clients send, over real sockets, and checks what remains of it.
//!
//! `cargo test --test hostile` prints one table: the statuses of the answers, how many bytes of the
//! attack stay stored, how many files outside the store's folder were touched, and how many uploads
//! of other clients were harmed. `-- TEXT` runs the rows whose names contain the text. The numbers
//! are those of the classes of attacks: names 1 to 16, numbers 17 to 33, duplicates 34 to 45, sizes
//! and floods 46 to 56, states 57 to 71, resources 77 to 80 (those between need a disk that fails:
//! `e2e/crash`), and of uploads that have a URL: of tus 81 to 93, of the IETF draft 94 to 99.

mod client;
#[path = "../it/common/mod.rs"]
mod common;
mod h2;
mod process;
mod rows;
mod table;
mod urls;
mod wire;
mod world;

fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test` passes its arguments to this binary too.
    if words.iter().any(|word| word == "--list") {
        return std::process::ExitCode::SUCCESS;
    }
    if let Some(code) = process::with_many_files() {
        return code;
    }
    let only = words.into_iter().find(|word| !word.starts_with('-'));
    // The table prints the message of a panic. Only its location is printed here.
    std::panic::set_hook(Box::new(|panic| {
        let told = panic.payload().downcast_ref::<String>();
        if told.is_none_or(|text| text != world::SCRIPTED_PANIC) {
            let at = panic.location().map(ToString::to_string);
            eprintln!("panicked at {}", at.unwrap_or_default());
        }
    }));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if runtime.block_on(table::print(only.as_deref())) {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
