//! A command-line client that uploads files with the requests of Resumable.js 1.1.0. Run it with
//! `cargo run --example upload -- http://127.0.0.1:3000/upload FILE`; `--help` lists the options.
//!
//! If it is interrupted, run the same command again: it sends only the chunks that are missing. It
//! prints one line of JSON to standard output for each file that was finished or refused.

mod connection;
mod options;
mod output;
mod request;
mod upload;

use std::{
    env,
    hash::{BuildHasher, Hasher, RandomState},
    path::Path,
    process::ExitCode,
};

use self::{
    connection::Failure,
    options::{Options, USAGE},
    upload::Upload,
};

type Error = Box<dyn std::error::Error + Send + Sync>;
type Fields = Vec<(String, String)>;

#[tokio::main]
async fn main() -> ExitCode {
    if env::args_os().any(|word| word == "--help") {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(env::args_os().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("error: {error}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for path in &options.files {
        if let Err(error) = upload(&options, path).await {
            eprintln!("error: {}: {error}", path.display());
            code = ExitCode::FAILURE;
        }
    }
    code
}

async fn upload(options: &Options, path: &Path) -> Result<(), Error> {
    let upload = Upload::new(options, path)?;
    let result = tokio::select! {
        result = upload.run() => result,
        never = upload.draw_progress() => match never {},
    };
    upload.clear_progress();
    match &result {
        Ok(()) => upload.report(upload.last_answer.take())?,
        Err(Failure::Refused(answer)) => upload.report(Some(answer.clone()))?,
        Err(_) => {}
    }
    Ok(result?)
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
