//! Shows the layer on hyper without a framework, with HTTP/1 and HTTP/2 on one port. Start the
//! server with the first command, then upload a file with the second one.
//!
//! ```sh
//! cargo run --example hyper
//! cargo run --example upload -- http://127.0.0.1:3000/upload FILE
//! ```

use std::{convert::Infallible, env, error::Error, pin::pin, time::Duration};

use bytes::Bytes;
use http_body_util::{Empty, Full};
use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use serde_json::json;
use tokio::net::TcpListener;
use tower::{Service as _, ServiceBuilder, service_fn};
use tower_resumable::{
    CompletedUpload, EventLevel, FileStore, InterimIo, Limits, ResumableLayer, store::Durability,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let store = FileStore::builder(option("--dir").unwrap_or("uploads".into()))
        .with_durability(durability()?)
        .open()?;
    let mut limits = Limits::default();
    if let Some(bodies) = option("--bodies") {
        limits = limits.with_bodies(bodies.parse()?);
    }
    // What needs attention, such as why the store failed. `cargo bench` starts this example, so it
    // logs no line for each upload.
    let layer = ResumableLayer::new(store)
        .with_limits(limits)
        .with_events(|event| {
            if event.level() >= EventLevel::Warn {
                eprintln!("{event}");
            }
        });
    let uploads = layer.uploads();
    // Deliver the uploads that were complete when the last process ended, and those whose delivery
    // fails.
    let deliveries = tokio::spawn(uploads.deliver_every(
        Duration::from_secs(60),
        service_fn(handle),
        |_| Request::post("/upload").body(Empty::<Bytes>::new()),
    ));
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
    let (connections, mut ends) = (GracefulShutdown::new(), pin!(shutdown()));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut ends => break,
        };
        let connection = match accepted {
            Ok((connection, _)) => connection,
            Err(error) => {
                // The connection is gone, or the process has too many open files. Others end soon.
                eprintln!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Otherwise HTTP/2 stalls: a small frame would wait for the acknowledgement of the one
        // before.
        if let Err(error) = connection.set_nodelay(true) {
            eprintln!("TCP_NODELAY: {error}");
        }
        let connection = InterimIo::new(connection);
        let (interims, mut service) = (connection.interims(), service.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            // Lets the layer tell clients such as URLSession the URL of an upload before its bytes
            // arrive.
            let guard = interims.enter(&mut request);
            // Boxed, because an async block has two places for a future that it captures.
            let response = Box::pin(service.call(request));
            async move {
                let response = response.await;
                drop(guard);
                response
            }
        });
        let service = TowerToHyperService::new(service);
        let connection = server.serve_connection(TokioIo::new(connection), service);
        let connection = connections.watch(connection.into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                eprintln!("connection: {error}");
            }
        });
    }
    drop(listener);
    deliveries.abort();
    // The requests that are running, and then the deliveries whose clients have gone.
    let ended = async {
        connections.shutdown().await;
        uploads.drain().await;
    };
    if tokio::time::timeout(GRACE, ended).await.is_err() {
        eprintln!("some uploads are delivered again after the next start");
    }
    Ok(())
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

async fn handle<B>(request: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    let answer = match request.extensions().get::<CompletedUpload>() {
        Some(upload) => {
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
        None => "send uploads to /upload\n".into(),
    };
    Ok(Response::new(answer.into()))
}

/// As if the application worked on the file: `--work MILLISECONDS`.
async fn work() {
    let millis = option("--work").and_then(|millis| millis.parse().ok());
    // Also a timer of 0 milliseconds takes up to one.
    if let Some(millis) = millis {
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }
}

/// The value of a command line option: `--listen ADDRESS`, `--dir DIR`, `--durability KIND` or
/// `--bodies NUMBER`.
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
