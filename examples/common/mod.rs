//! What the three server examples have in common: their arguments, and what they print.

use std::{io::Write, net::SocketAddr, path::PathBuf};

use serde_json::json;
use tokio::net::TcpListener;
use tower_resumable::{
    CompletedUpload, Dialect, FileStore, ResumableLayer, StoreError, store::Durability,
};

pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// `--listen ADDR` (port 0 picks one), `--dir DIR`, `--durability power` or `process`, and
/// `--client NAME` for a client that has to be told of.
pub struct Args {
    listen: SocketAddr,
    dir: PathBuf,
    durability: Durability,
    clients: Vec<Dialect>,
}

impl Args {
    pub fn parse() -> Result<Self, Error> {
        let mut args = Self {
            listen: ([127, 0, 0, 1], 3000).into(),
            dir: "uploads".into(),
            durability: Durability::Power,
            clients: Vec::new(),
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or(format!("{word} needs a value"));
            match word.as_str() {
                "--listen" => args.listen = value()?.parse()?,
                "--dir" => args.dir = value()?.into(),
                "--client" => args.clients.push(client(&value()?)?),
                "--durability" => {
                    args.durability = match value()?.as_str() {
                        "power" => Durability::Power,
                        "process" => Durability::Process,
                        other => return Err(format!("no durability {other}").into()),
                    }
                }
                _ => {
                    return Err(format!(
                        "unknown argument {word}; there are --listen, --dir, --durability and --client"
                    )
                    .into());
                }
            }
        }
        Ok(args)
    }

    /// The layer that they ask for. Resumable.js, flow.js, Dropzone and Fine Uploader need not be
    /// told of.
    pub fn layer(&self) -> Result<ResumableLayer, StoreError> {
        let store = FileStore::builder(&self.dir)
            .durability(self.durability)
            .open()?;
        let clients = self.clients.iter().cloned();
        Ok(clients.fold(ResumableLayer::new(store), ResumableLayer::with_dialect))
    }

    /// Binds the address, and says which it is.
    pub async fn bind(&self) -> Result<TcpListener, Error> {
        let listener = TcpListener::bind(self.listen).await?;
        eprintln!("listening on http://{}", listener.local_addr()?);
        Ok(listener)
    }
}

/// `NAME`, or `NAME=BYTES` for one that does not say how large its chunks are.
fn client(name: &str) -> Result<Dialect, Error> {
    let (name, chunk_size) = name.split_once('=').unwrap_or((name, "5242880"));
    Ok(match name {
        "simple-uploader" => Dialect::simple_uploader(),
        "simple-uploader-list" => Dialect::simple_uploader().with_list_tests(),
        "plupload" => Dialect::plupload(),
        "webuploader" => Dialect::web_uploader(chunk_size.parse()?),
        "blueimp" => Dialect::blueimp(),
        "filepond" => Dialect::filepond(),
        "huge-uploader" => Dialect::huge_uploader(chunk_size.parse()?),
        "bootstrap-fileinput" => Dialect::bootstrap_fileinput(),
        _ => return Err(format!("no client {name}").into()),
    })
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
