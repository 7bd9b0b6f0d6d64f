//! Measures what an upload costs, over real sockets. Each table compares the layer with servers
//! that do the least possible work (`limit`), with a hand-written handler (`naive`), and with other
//! upload servers. Linux only.
//!
//! ```sh
//! cargo bench --bench server                                  # all tables, a quarter of an hour
//! cargo bench --bench server -- --only form-power             # one table, seconds
//! cargo bench --bench server -- --only h2-16 --against PATH   # two builds of the layer, in turns
//! cargo bench --bench server -- --help                        # the options and the tables
//! ```
//!
//! All rows of a table are measured in each round, and the figures are medians of the rounds. A
//! ratio compares a row with the first row of its table in the same round. After the median it has
//! the least and the greatest value.
//!
//! CPU is user and system time of the server process. It varies least from run to run.

mod drive;
mod limit;
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
    pub records: u64,
    pub save: bool,
}

const HELP: &str = "\
cargo bench --bench server -- [OPTIONS]

  --only KEY[,KEY]  only these tables; `h2` stands for all tables whose keys begin with it
  --rounds N        how often each row is measured [5]
  --mib N           the size of a file [256]
  --chunks N        the number of chunks of the file with many chunks [100000]
  --records N       the number of records of the store that is restarted [100000]
  --against PATH    measure a second build of the layer in the same rounds: its example `hyper`
                    (target/release/examples/hyper), or its build of this benchmark
                    (target/release/deps/server-*), which has the rows of axum and tonic too.
                    Leaves out the servers of others
  --save            write the ratios to benches/server/baseline.txt; every run on the same kind of
                    machine prints them beside its own

Files are written to TMPDIR, or to /dev/shm where the table says `in memory`. The row rustus is
measured if RUSTUS names the program, or after
  cargo install rustus --version 0.5.10 --root target/rustus
and the row @tus/server after
  npm ci --ignore-scripts --prefix e2e/tus/peers

Tables:
";

fn main() -> Result<ExitCode, Error> {
    let mut options = Options {
        only: None,
        mib: 256,
        rounds: 5,
        chunks: 100_000,
        records: 100_000,
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
            "--records" => options.records = value()?.parse()?,
            "--against" => server::against(&PathBuf::from(value()?))?,
            "--save" => options.save = true,
            "--help" => {
                print!("{HELP}");
                for table in rows::tables(&options) {
                    println!("  {:16}  {}", table.key, table.title);
                }
                return Ok(ExitCode::SUCCESS);
            }
            // `cargo bench` and `cargo test` pass these to every benchmark.
            "--bench" => {}
            "--test" => return Ok(ExitCode::SUCCESS),
            _ => return Err(format!("unknown argument {word}, see --help").into()),
        }
    }
    table::measure(rows::tables(&options), &options)?;
    Ok(ExitCode::SUCCESS)
}
