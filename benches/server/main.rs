//! Measures what an upload costs, over real sockets. Each table compares the `hyper` example with a
//! hand-written handler and with servers that do the least possible work. Linux only.
//!
//! `cargo bench --bench server` measures everything, on the disk of `TMPDIR` and, where the table
//! says so, in `/dev/shm`. Options follow `--`:
//!
//! * `--only TEXT`: only the tables whose title contains the text.
//! * `--mib N`: the size of a file.
//! * `--chunks N`: the number of chunks of the file with many chunks.
//! * `--rounds N`: how often each row is measured. Rows take turns, and the table has the best
//!   value.
//! * `--save`: write the ratios to `benches/server/baseline.txt`. Every run prints them beside its
//!   own.
//!
//! CPU is user and system time of the server process. It varies least from run to run.

mod drive;
mod rows;
mod serve;
mod server;
mod table;

use std::{path::PathBuf, process::ExitCode};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// The options of the command line.
pub struct Options {
    pub only: Option<String>,
    pub mib: u64,
    pub rounds: usize,
    pub chunks: u64,
    pub save: bool,
}

fn main() -> Result<ExitCode, Error> {
    let mut options = Options {
        only: None,
        mib: 256,
        rounds: 5,
        chunks: 100_000,
        save: false,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        match word.as_str() {
            // This program starts itself as one of its servers.
            "--serve" => {
                let name = value()?;
                serve::run(&name, PathBuf::from(value()?))?;
                return Ok(ExitCode::SUCCESS);
            }
            "--only" => options.only = Some(value()?),
            "--mib" => options.mib = value()?.parse()?,
            "--rounds" => options.rounds = value()?.parse()?,
            "--chunks" => options.chunks = value()?.parse()?,
            "--save" => options.save = true,
            // `cargo bench` and `cargo test` pass these to every benchmark.
            "--bench" => {}
            "--test" => return Ok(ExitCode::SUCCESS),
            _ => return Err(format!("unknown argument {word}").into()),
        }
    }
    rows::measure(&options)?;
    Ok(ExitCode::SUCCESS)
}
