//! Shows uploads beside a gRPC service, with HTTP/1 and HTTP/2 on one port. Start the server with
//! the first command, then upload a file with the second one.
//!
//! ```sh
//! cargo run --example tonic
//! cargo run --example upload -- http://127.0.0.1:3000/upload FILE
//! ```
//!
//! Browsers and command line clients upload to `/upload`. Every other path is gRPC: here the
//! standard health service.

use std::{env, error::Error, io, time::Duration};

use axum::{Router, body::Body, http::Request, routing::any};
use futures_util::stream::{self, Stream};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tonic::{service::Routes, transport::Server};
use tower_resumable::{CompletedUpload, EventLevel, FileStore, ResumableLayer};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let store = FileStore::open(option("--dir").unwrap_or("uploads".into()))?;
    // One line for each decision and each fault, such as why the store failed.
    let layer = ResumableLayer::new(store).with_events(|event| {
        // Not a line for each chunk.
        if event.level() >= EventLevel::Info {
            eprintln!("{event}");
        }
    });
    let uploads = layer.uploads();
    let (_, health) = tonic_health::server::health_reporter();
    // A finished upload is an ordinary request and not a gRPC call, so an axum route receives it.
    // To serve grpc-web too, wrap the gRPC services in `GrpcWebLayer`, not the server: the layer
    // refuses every HTTP/1 request that is not grpc-web.
    let app = Router::new().route("/upload", any(finished));
    let routes = Routes::from(app.clone()).add_service(health);
    let address = option("--listen").unwrap_or("127.0.0.1:3000".into());
    let listener = TcpListener::bind(address).await?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    // Deliver the uploads that were complete when the last process ended, and those whose delivery
    // fails.
    let deliveries = tokio::spawn(uploads.deliver_every(Duration::from_secs(60), app, |_| {
        Request::post("/upload").body(Body::empty())
    }));
    let server = Server::builder()
        .accept_http1(true)
        // The default windows and frames are too small for uploads.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .max_frame_size(1024 * 1024)
        .layer(layer)
        .add_routes(routes)
        // It ends with the stream of connections. If tonic got the signal, it would not ask for
        // more connections, but keep the listener until the last request has ended.
        .serve_with_incoming_shutdown(connections(listener), std::future::pending());
    // Clients that are slow to end their requests are not waited for without limit.
    tokio::select! {
        ended = server => ended?,
        () = async { shutdown().await; tokio::time::sleep(GRACE).await } => {}
    }
    deliveries.abort();
    // The deliveries whose clients have gone.
    if tokio::time::timeout(GRACE, uploads.drain()).await.is_err() {
        eprintln!("some uploads are delivered again after the next start");
    }
    Ok(())
}

/// The connections of a listener. After an error it accepts the next one, because there may only be
/// too many open files for now. The signal to end closes it at once, so that clients do not wait for
/// a server that is going away.
fn connections(listener: TcpListener) -> impl Stream<Item = io::Result<TcpStream>> {
    let ends = Box::pin(shutdown());
    stream::unfold((listener, ends), async |(listener, mut ends)| {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut ends => return None,
            };
            match accepted {
                Ok((connection, _)) => {
                    // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of
                    // the one before. tonic's own option is only for its own listener.
                    if let Err(error) = connection.set_nodelay(true) {
                        eprintln!("TCP_NODELAY: {error}");
                    }
                    return Some((Ok(connection), (listener, ends)));
                }
                Err(error) => eprintln!("accept: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

/// How long requests and deliveries that are running may take after the signal to end.
const GRACE: Duration = Duration::from_secs(30);

/// Waits for Ctrl-C or SIGTERM.
async fn shutdown() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        // Without a handler the signal ends the process at once.
        let Ok(mut terminate) = signal(SignalKind::terminate()) else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    }
    #[cfg(not(unix))]
    let _ = tokio::signal::ctrl_c().await;
}

async fn finished(upload: CompletedUpload) -> String {
    work().await;
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

/// As if the application worked on the file: `--work MILLISECONDS`.
async fn work() {
    let millis = option("--work").and_then(|millis| millis.parse().ok());
    tokio::time::sleep(Duration::from_millis(millis.unwrap_or(0))).await;
}

/// The value of a command line option: `--listen ADDRESS` or `--dir DIR`.
fn option(name: &str) -> Option<String> {
    env::args().skip_while(|word| word != name).nth(1)
}
