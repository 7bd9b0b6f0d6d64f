//! Shows the layer on hyper without a framework, with HTTP/1 and HTTP/2 on one port. Start the
//! server with the first command, then upload a file with the second one.
//!
//! ```sh
//! cargo run --example hyper
//! cargo run --example upload -- http://127.0.0.1:3000/upload FILE
//! ```

use std::{convert::Infallible, env, error::Error, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::net::TcpListener;
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{CompletedUpload, FileStore, ResumableLayer, store::Durability};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let store = FileStore::builder(option("--dir").unwrap_or("uploads".into()))
        .with_durability(durability()?)
        .open()?;
    let layer = ResumableLayer::new(store);
    let service = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(handle));
    let mut server = auto::Builder::new(TokioExecutor::new());
    // The layer limits the time for the body of a request, and the server the time for its head.
    // Without a timer there is no limit. A smaller read buffer saves memory.
    server
        .http1()
        .max_buf_size(64 * 1024)
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    // The default frames and windows are too small for uploads.
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_frame_size(1024 * 1024);

    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    loop {
        let (connection, _) = listener.accept().await?;
        let (server, service) = (server.clone(), TowerToHyperService::new(service.clone()));
        tokio::spawn(async move {
            if let Err(error) = server
                .serve_connection(TokioIo::new(connection), service)
                .await
            {
                eprintln!("connection: {error}");
            }
        });
    }
}

async fn handle(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = match request.extensions().get::<CompletedUpload>() {
        Some(upload) => {
            let file = json!({
                "path": upload.path(),
                "file_name": upload.file_name(),
                "attempt": upload.attempt(),
            });
            println!("{file}");
            format!(
                "received {}, {} bytes\n",
                upload.safe_file_name(),
                upload.size()
            )
        }
        None => "send uploads to /upload\n".into(),
    };
    Ok(Response::new(answer.into()))
}

/// The value of a command line option: `--listen ADDRESS`, `--dir DIR` or `--durability KIND`.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}

fn durability() -> Result<Durability, String> {
    match option("--durability").as_deref() {
        None | Some("power") => Ok(Durability::Power),
        Some("process") => Ok(Durability::Process),
        Some(other) => Err(format!("no durability {other}")),
    }
}
