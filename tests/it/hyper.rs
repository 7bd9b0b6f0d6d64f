//! Plain hyper, HTTP/1 and HTTP/2, and the readiness of the inner service.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_resumable::{CompletedUpload, MemoryStore, ResumableLayer};

use crate::common::{self, File, Server};

#[tokio::test]
async fn http2_with_chunks_in_parallel_on_one_connection() {
    let server = Server::start().await;
    let io = tokio::net::TcpStream::connect(server.addr).await.unwrap();
    let (send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    tokio::spawn(connection);
    let file = File {
        chunk_size: 300_000,
        ..File::new("a.bin", 1_000_000)
    };
    let answers = (1..=file.chunks()).map(|number| {
        let (mut parts, body) = file.multipart(number).into_parts();
        parts.uri = format!("http://test{}", parts.uri).parse().unwrap();
        let request = Request::from_parts(parts, Full::<Bytes>::from(body));
        let mut send = send.clone();
        async move {
            let response = send.send_request(request).await.unwrap();
            (
                response.status().as_u16(),
                response.into_body().collect().await.unwrap().to_bytes(),
            )
        }
    });
    let answers = futures_util::future::join_all(answers).await;
    assert!(
        answers.iter().all(|(status, _)| *status == 200),
        "{answers:?}"
    );
    assert!(
        answers.iter().any(|(_, body)| body == "delivery 1"),
        "{answers:?}"
    );
    let deliveries = server.deliveries();
    assert_eq!(deliveries.len(), 1);
    assert!(deliveries[0].content == file.content);
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;

async fn handler(request: Request<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    let size = request
        .extensions()
        .get::<CompletedUpload>()
        .map(CompletedUpload::size);
    Ok(Response::new(Full::from(format!("{size:?}"))))
}

fn whole(file: &File) -> Request<Body> {
    file.octets(1).map(|body| Full::from(body).boxed_unsync())
}

/// A chunk whose body never arrives.
fn stalled() -> Request<Body> {
    let pending = futures_util::stream::pending::<Result<http_body::Frame<Bytes>, Infallible>>();
    File::new("b.txt", 5)
        .octets(1)
        .map(|_| BodyExt::boxed_unsync(StreamBody::new(pending)))
}

/// Some bodies panic if they are polled after their end: the layer reads the rest of a refused
/// body.
#[tokio::test]
async fn a_body_is_not_polled_after_its_end() {
    let file = File::new("a.txt", 25);
    let mut form = common::form(&file.fields(1), common::FilePart::named("a"), file.chunk(1));
    form.truncate(form.len() - 5);
    let frames = futures_util::stream::unfold(Some(form), |form| async {
        form.map(|form| {
            (
                Ok::<_, Infallible>(http_body::Frame::data(Bytes::from(form))),
                None,
            )
        })
    });
    let request = common::multipart("/upload", Vec::new())
        .map(|_| BodyExt::boxed_unsync(StreamBody::new(frames)));
    let service = ServiceBuilder::new()
        .layer(ResumableLayer::new(MemoryStore::default()))
        .service(service_fn(handler));
    assert_eq!(service.oneshot(request).await.unwrap().status(), 400);
}

#[tokio::test]
async fn a_stalled_chunk_holds_no_permit_of_the_inner_service() {
    let mut service = ServiceBuilder::new()
        .layer(ResumableLayer::new(MemoryStore::default()))
        .concurrency_limit(1)
        .service(service_fn(handler));
    let stalled = tokio::spawn(service.ready().await.unwrap().call(stalled()));
    let within = Duration::from_secs(10);
    // The same service value, as in a `Buffer`.
    let done = service
        .ready()
        .await
        .unwrap()
        .call(whole(&File::new("a.txt", 5)));
    let response = tokio::time::timeout(within, done)
        .await
        .expect("deadlock")
        .unwrap();
    assert_eq!(
        response.into_body().collect().await.unwrap().to_bytes(),
        "Some(5)"
    );
    let other = Request::get("/x")
        .body(Full::default().boxed_unsync())
        .unwrap();
    let other = service.ready().await.unwrap().call(other);
    assert!(
        tokio::time::timeout(within, other).await.is_ok(),
        "deadlock"
    );
    assert!(!stalled.is_finished());
    stalled.abort();
}

#[tokio::test]
async fn behind_a_buffer() {
    let mut service = ServiceBuilder::new()
        .buffer::<Request<Body>>(4)
        .layer(ResumableLayer::new(MemoryStore::default()))
        .concurrency_limit(1)
        .service(service_fn(handler));
    for n in 0..3 {
        let done = service
            .ready()
            .await
            .unwrap()
            .call(whole(&File::new(&format!("{n}"), 5)));
        let done = tokio::time::timeout(Duration::from_secs(10), done).await;
        assert!(done.is_ok(), "deadlock");
    }
}
