//! The servers that this program can be: the layer in axum, hyper and tonic, and what it is
//! compared with.

use std::{convert::Infallible, path::PathBuf, sync::Arc};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Multipart, State},
    http::StatusCode,
    routing::{any, post},
    serve::ListenerExt as _,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{io::AsyncWriteExt as _, net::TcpListener};
use tonic::transport::server::TcpIncoming;
use tower::{Layer as _, Service, service_fn};
use tower_resumable::{FileStore, ResumableLayer, store::Durability};

use crate::{
    Error,
    limit::{self, Duty},
};

/// The windows and frames of HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Windows {
    /// What hyper has by default, and `axum::serve` always.
    Default,
    /// Those of the examples.
    Large,
}

const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
const FRAME: u32 = 1 << 20;

/// Serves until it is killed.
#[tokio::main]
pub async fn run(name: &str, dir: PathBuf) -> Result<(), Error> {
    std::fs::create_dir_all(&dir)?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // The file store opens before the first connection, as in the examples.
    let layer = || {
        let store = FileStore::builder(&dir).with_durability(Durability::Process);
        Ok::<_, Error>(ResumableLayer::new(store.open()?))
    };
    let listening = || eprintln!("listening on http://{address}");
    match name {
        "axum" => {
            let app = router().layer(layer()?);
            listening();
            Ok(axum::serve(without_delay(listener), app).await?)
        }
        "naive" => {
            let app = Router::new().route("/upload", post(naive));
            let app = app.layer(DefaultBodyLimit::disable());
            listening();
            let app = app.with_state(Arc::new(dir));
            Ok(axum::serve(without_delay(listener), app).await?)
        }
        "hyper" => {
            let layer = layer()?;
            listening();
            hyper(listener, layer.layer(service_fn(done)), Windows::Default).await
        }
        "level" | "text" => {
            let text = name == "text";
            let layer = layer()?.with_events(move |event| {
                std::hint::black_box(event.level());
                if text {
                    std::hint::black_box(event.to_string());
                }
            });
            listening();
            hyper(listener, layer.layer(service_fn(done)), Windows::Default).await
        }
        "tonic" | "tonic-large" => {
            let layer = layer()?;
            listening();
            let mut server = tonic::transport::Server::builder().accept_http1(true);
            if name == "tonic-large" {
                server = server
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .max_frame_size(FRAME);
            }
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            let mut server = server.layer(layer);
            let server = server.add_routes(tonic::service::Routes::from(router()));
            Ok(server.serve_with_incoming(incoming).await?)
        }
        _ => {
            let (duty, windows) = match name {
                "none" => (Duty::None, Windows::Large),
                "kick" => (Duty::Kick, Windows::Large),
                "kick-default" => (Duty::Kick, Windows::Default),
                "sync" => (Duty::Sync, Windows::Large),
                _ => return Err(format!("no server {name}").into()),
            };
            listening();
            limit::run(listener, dir, duty, windows).await
        }
    }
}

fn without_delay(
    listener: TcpListener,
) -> impl axum::serve::Listener<Io = tokio::net::TcpStream, Addr = std::net::SocketAddr> {
    listener.tap_io(|connection| {
        // Answers of HTTP/2 would wait for the client's acknowledgements.
        let _ = connection.set_nodelay(true);
    })
}

/// Serves HTTP/1 and HTTP/2 on one port.
pub async fn hyper<S, B>(listener: TcpListener, service: S, windows: Windows) -> Result<(), Error>
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
    B: Body<Error: Into<Error>, Data: Send> + Send + 'static,
{
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().max_buf_size(128 << 10);
    if windows == Windows::Large {
        server
            .http2()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME);
    }
    loop {
        let (connection, _) = listener.accept().await?;
        connection.set_nodelay(true)?;
        let service = TowerToHyperService::new(service.clone());
        let connection = server.serve_connection(TokioIo::new(connection), service);
        tokio::spawn(connection.into_owned());
    }
}

/// The application behind the layer.
async fn done<B>(_: Request<B>) -> Result<Response<Full<Bytes>>, Infallible> {
    Ok(Response::new("done".into()))
}

/// The same for axum.
fn router() -> Router {
    Router::new().route("/upload", any(async || "done"))
}

/// What is often written by hand: uses the extractor of axum, writes a file for each chunk, and
/// copies all of them into one file at the end. Nothing is synced.
async fn naive(
    State(dir): State<Arc<PathBuf>>,
    mut form: Multipart,
) -> Result<&'static str, StatusCode> {
    let failed = |_| StatusCode::INTERNAL_SERVER_ERROR;
    let broken = |_| StatusCode::BAD_REQUEST;
    let (mut identifier, mut number, mut total) = (String::new(), 0_u64, 0_u64);
    while let Some(field) = form.next_field().await.map_err(broken)? {
        let parse = |text: String| text.parse().map_err(|_| StatusCode::BAD_REQUEST);
        match field.name().unwrap_or_default() {
            "resumableIdentifier" => identifier = field.text().await.map_err(broken)?,
            "resumableChunkNumber" => number = parse(field.text().await.map_err(broken)?)?,
            "resumableTotalChunks" => total = parse(field.text().await.map_err(broken)?)?,
            "file" => {
                let bytes = field.bytes().await.map_err(broken)?;
                let part = dir.join(format!("{identifier}.{number}"));
                let temporary = dir.join(format!("{identifier}.{number}.new"));
                tokio::fs::write(&temporary, bytes).await.map_err(failed)?;
                tokio::fs::rename(temporary, part).await.map_err(failed)?;
            }
            _ => {}
        }
    }
    let parts = || (1..=total).map(|n| dir.join(format!("{identifier}.{n}")));
    for part in parts() {
        if !tokio::fs::try_exists(part).await.map_err(failed)? {
            return Ok("more");
        }
    }
    let whole = tokio::fs::File::create_new(dir.join(&identifier)).await;
    let Ok(mut whole) = whole else {
        return Ok("another request does it");
    };
    for part in parts() {
        let mut from = tokio::fs::File::open(&part).await.map_err(failed)?;
        tokio::io::copy(&mut from, &mut whole)
            .await
            .map_err(failed)?;
        tokio::fs::remove_file(part).await.map_err(failed)?;
    }
    whole.flush().await.map_err(failed)?;
    Ok("done")
}
