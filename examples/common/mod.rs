//! What the three server examples have in common: their arguments, and what they print.

use std::{io::Write, net::SocketAddr, path::PathBuf};

use serde_json::json;
use tokio::net::TcpListener;
use tower_resumable::{CompletedUpload, Dialect, FileStore, StoreError, store::Durability};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// `--listen ADDR` (port 0 picks one), `--dir DIR`, `--durability power` or `process`, and
/// `--list-tests` for simple-uploader with `checkChunkUploadedByResponse`.
pub struct Args {
    listen: SocketAddr,
    dir: PathBuf,
    durability: Durability,
    list_tests: bool,
}

impl Args {
    pub fn parse() -> Result<Self, Error> {
        let mut args = Self {
            listen: ([127, 0, 0, 1], 3000).into(),
            dir: "uploads".into(),
            durability: Durability::Power,
            list_tests: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--listen" => args.listen = value()?.parse()?,
                "--dir" => args.dir = value()?.into(),
                "--list-tests" => args.list_tests = true,
                "--durability" => {
                    args.durability = match value()?.as_str() {
                        "power" => Durability::Power,
                        "process" => Durability::Process,
                        other => return Err(format!("no durability {other}").into()),
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown argument {word}; there are --listen, --dir, --durability and --list-tests"
                    )
                    .into());
                }
            }
        }
        Ok(args)
    }

    /// The store that they ask for.
    pub fn store(&self) -> Result<FileStore, StoreError> {
        FileStore::builder(&self.dir)
            .durability(self.durability)
            .open()
    }

    /// A client that the layer does not understand by itself.
    pub fn simple_uploader(&self) -> Dialect {
        match self.list_tests {
            true => Dialect::simple_uploader().with_list_tests(),
            false => Dialect::simple_uploader(),
        }
    }

    /// Binds the address, and says which it is.
    pub async fn bind(&self) -> Result<TcpListener, Error> {
        let listener = TcpListener::bind(self.listen).await?;
        eprintln!("listening on http://{}", listener.local_addr()?);
        Ok(listener)
    }
}

/// One line of JSON to standard output.
pub fn report(upload: &CompletedUpload) -> std::io::Result<()> {
    let line = json!({
        "id": upload.id(),
        "path": upload.path(),
        "size": upload.size(),
        "file_name": upload.file_name(),
        "attempt": upload.attempt(),
    });
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
