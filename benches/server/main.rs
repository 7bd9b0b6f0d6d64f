//! What an upload costs, as ratios in one run: the `hyper` example over real sockets, beside what
//! one would write oneself and beside the limits.
//!
//! `cargo bench --bench server` measures everything on the disk of `TMPDIR`, and small files in
//! `/dev/shm`; `-- --only TEXT` only the tables whose title has the text. `--mib N` is the size of
//! a file, `--chunks N` the number of chunks of the file that has many, `--rounds N` how often each
//! row is measured (the table has the best, rounds take turns), `--save` writes the ratios to
//! `benches/server/baseline.txt`, which every run is compared with.
//!
//! CPU is that of the server process, user and system, and the steadiest figure. Linux only.

mod drive;
mod rows;
mod serve;
mod server;
mod table;

use std::{path::PathBuf, process::ExitCode};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// What the command line says.
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
            // A server of its own, started by this program.
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
            // What `cargo bench` and `cargo test` say to every benchmark.
            "--bench" => {}
            "--test" => return Ok(ExitCode::SUCCESS),
            _ => return Err(format!("unknown argument {word}").into()),
        }
    }
    rows::measure(&options)?;
    Ok(ExitCode::SUCCESS)
}
