//! Kills servers, cuts the power, fills disks and lets system calls fail while real clients upload,
//! and counts what was lost. `e2e/crash/run` builds and runs it.

#[cfg(target_os = "linux")]
mod disk;
#[cfg(target_os = "linux")]
mod races;
#[cfg(target_os = "linux")]
mod rows;
#[cfg(target_os = "linux")]
mod server;
#[cfg(target_os = "linux")]
#[path = "../urls.rs"]
mod urls;
#[cfg(target_os = "linux")]
mod world;

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("this needs Linux");
}

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some(args) = server::Args::from_words(&words) {
        if let Err(error) = server::run(args) {
            eprintln!("error: {error}");
        }
        return std::process::ExitCode::FAILURE;
    }
    let (mut rounds, mut seed, mut only) = (1, std::process::id().into(), Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), words.next()) {
            ("--rounds", Some(n)) => rounds = n.parse().unwrap_or(1),
            ("--seed", Some(n)) => seed = n.parse().unwrap_or(seed),
            ("--only", Some(name)) => only.push(name.clone()),
            _ => {
                eprintln!("usage: e2e/crash/run [--rounds N] [--seed N] [--only NAME]...");
                return std::process::ExitCode::FAILURE;
            }
        }
    }
    if rows::all(rounds, seed, &only) {
        std::process::ExitCode::SUCCESS
    } else {
        std::process::ExitCode::FAILURE
    }
}
