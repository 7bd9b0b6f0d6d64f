//! Tests several servers that share a real object store, behind a balancer without sticky sessions.
//! Servers are killed, and the object store is slow, busy or unreachable. `./run` starts the tests.

mod balanced;
mod blocked;
mod conformance;
mod counts;
mod engine;
mod example;
mod proxy;
mod rng;
mod rows;
mod server;
#[path = "../../urls.rs"]
mod urls;
mod world;

use std::{path::PathBuf, process::ExitCode};

use engine::{Engine, Error};
use rows::{Case, Layout, Load};
use world::Tools;

const USAGE: &str = "\
usage: object-store-tests COMMAND OPTION...

commands
  conformance            run the self-test and the conformance suite, and block a server
  servers                run servers with faults, and print a table
  counts                 count requests, and measure the time of the last answer
  example                run the example with two servers
  balanced               run servers behind a balancer until standard input ends

options
  --engine NAME          name of the object store
  --endpoints FILE       file with the addresses of its gateways, one per line
  --ceph DIR             directory of `ceph up`, for Ceph
  --script FILE          the script `ceph`, for Ceph
  --client FILE          command-line client
  --nginx FILE           configuration of the balancer
  --example FILE         program of the example
  --rounds N             factor for the number of rounds
  --seed N               seed of the random choices
  --only TEXT            only rows whose names contain TEXT";

#[tokio::main]
async fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(words: &[String]) -> Result<bool, Error> {
    if let [command, options] = words {
        if command == "server" {
            server::run(server::Options::from_word(options)?).await?;
            return Ok(false);
        }
    }
    let (command, words) = words.split_first().ok_or(USAGE)?;
    let mut options = Options::default();
    let mut words = words.iter();
    while let (Some(name), value) = (words.next(), words.next()) {
        options.set(name, value.ok_or(USAGE)?)?;
    }
    let endpoints = std::fs::read_to_string(&options.endpoints)?;
    let ceph = options.ceph.clone().zip(options.script.clone());
    let engine = Engine::new(&options.engine, &endpoints, ceph).await?;
    let case = Case {
        engine,
        tools: Tools {
            client: options.client,
            nginx: options.nginx,
        },
        layout: Layout::Objects,
        load: Load::Chunks,
        seed: options.seed,
    };
    match command.as_str() {
        "conformance" => {
            conformance::all(&case.engine).await?;
            blocked::run(&case.engine).await.map(|()| true)
        }
        "servers" => Ok(rows::all(&case, options.rounds, &options.only).await),
        "counts" => counts::all(&case).await.map(|()| true),
        "example" => example::run(&case, &options.example).await.map(|()| true),
        "balanced" => balanced::run(&case).await.map(|()| true),
        _ => Err(USAGE.into()),
    }
}

#[derive(Default)]
struct Options {
    engine: String,
    endpoints: PathBuf,
    ceph: Option<PathBuf>,
    script: Option<PathBuf>,
    client: PathBuf,
    nginx: PathBuf,
    example: PathBuf,
    rounds: u64,
    seed: u64,
    only: Vec<String>,
}

impl Options {
    fn set(&mut self, name: &str, value: &str) -> Result<(), Error> {
        match name {
            "--engine" => self.engine = value.into(),
            "--endpoints" => self.endpoints = value.into(),
            "--ceph" => self.ceph = Some(value.into()),
            "--script" => self.script = Some(value.into()),
            "--client" => self.client = value.into(),
            "--nginx" => self.nginx = value.into(),
            "--example" => self.example = value.into(),
            "--rounds" => self.rounds = value.parse()?,
            "--seed" => self.seed = value.parse()?,
            "--only" => self.only.push(value.into()),
            _ => return Err(USAGE.into()),
        }
        Ok(())
    }
}
