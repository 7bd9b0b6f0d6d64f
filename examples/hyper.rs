//! Uploads on plain hyper, HTTP/1 and HTTP/2 on one port.
//!
//! `cargo run --example hyper`, then `cargo run --example upload -- http://127.0.0.1:3000/upload FILE`.

mod common;

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tower::{ServiceBuilder, service_fn};
use tower_resumable::CompletedUpload;

#[tokio::main]
async fn main() -> Result<(), common::Error> {
    let args = common::Args::parse()?;
    let service = ServiceBuilder::new()
        .layer(args.layer()?)
        .service(service_fn(handle));
    let mut server = auto::Builder::new(TokioExecutor::new());
    // Smaller read buffers save memory and cost nothing; HTTP/2's default frames and windows are
    // too small for uploads.
    server.http1().max_buf_size(64 * 1024);
    // How long a client may take for the head of a request is the server's to say; for the body it is
    // the layer's. Without a timer there is no limit.
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30));
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(100)
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_frame_size(1024 * 1024);

    let listener = args.bind().await?;
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
            if let Err(error) = common::report(upload) {
                eprintln!("cannot print: {error}");
            }
            format!(
                "{} has arrived, {} bytes\n",
                upload.safe_file_name(),
                upload.size()
            )
        }
        None => "send uploads to /upload\n".into(),
    };
    Ok(Response::new(answer.into()))
}
