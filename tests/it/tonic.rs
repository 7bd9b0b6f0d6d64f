//! Uploads next to a real gRPC service on one port.

use std::net::SocketAddr;

use axum::{Router, routing::any};
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    service::{LayerExt as _, Routes},
    transport::Server,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_web::GrpcWebLayer;
use tower_resumable::{CompletedUpload, MemoryStore, ResumableLayer};

use crate::common::{Client, File};

fn layer() -> ResumableLayer {
    ResumableLayer::new(MemoryStore::default())
}

async fn done(upload: CompletedUpload) -> String {
    format!("done {}", upload.size())
}

async fn bind() -> (SocketAddr, TcpListenerStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    (
        listener.local_addr().unwrap(),
        TcpListenerStream::new(listener),
    )
}

async fn upload_by_http1(addr: SocketAddr) -> (u16, String) {
    let mut client = Client::connect(addr).await;
    let file = File::new("a.txt", 25);
    assert_eq!(client.send(file.probe(1)).await.status, 204);
    assert_eq!(client.send(file.multipart(1)).await.status, 200);
    let answer = client.send(file.multipart(2)).await;
    (answer.status, answer.body)
}

async fn upload_by_http2(addr: SocketAddr) -> (u16, String) {
    let io = tokio::net::TcpStream::connect(addr).await.unwrap();
    let (mut send, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(io))
            .await
            .unwrap();
    tokio::spawn(connection);
    let (mut parts, body) = File::new("b.txt", 5).multipart(1).into_parts();
    parts.uri = format!("http://test{}", parts.uri).parse().unwrap();
    let response = send
        .send_request(Request::from_parts(parts, Full::<bytes::Bytes>::from(body)))
        .await
        .unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

async fn grpc_works(addr: SocketAddr) -> bool {
    let channel = tonic::transport::Endpoint::new(format!("http://{addr}")).unwrap();
    let mut client = HealthClient::new(channel.connect().await.unwrap());
    client
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .is_ok()
}

#[tokio::test]
async fn uploads_and_grpc_on_one_port() {
    let (_, health) = tonic_health::server::health_reporter();
    let routes = Routes::from(Router::new().route("/upload", any(done)))
        .add_service(GrpcWebLayer::new().named_layer(health));
    let (addr, incoming) = bind().await;
    let server = Server::builder()
        .accept_http1(true)
        .layer(layer())
        .add_routes(routes);
    tokio::spawn(server.serve_with_incoming(incoming));
    assert_eq!(upload_by_http1(addr).await, (200, "done 25".into()));
    assert_eq!(upload_by_http2(addr).await, (200, "done 5".into()));
    assert!(grpc_works(addr).await);
}

/// The reason why the example wraps single services: around the whole server, grpc-web refuses the
/// complete upload of an HTTP/1 client.
#[tokio::test]
async fn grpc_web_around_the_whole_server_refuses_finished_uploads() {
    let (_, health) = tonic_health::server::health_reporter();
    let routes = Routes::from(Router::new().route("/upload", any(done))).add_service(health);
    let (addr, incoming) = bind().await;
    let server = Server::builder()
        .accept_http1(true)
        .layer(layer())
        .layer(GrpcWebLayer::new())
        .add_routes(routes);
    tokio::spawn(server.serve_with_incoming(incoming));
    assert_eq!(upload_by_http1(addr).await.0, 400);
    assert_eq!(upload_by_http2(addr).await, (200, "done 5".into()));
    assert!(grpc_works(addr).await);
}

#[tokio::test]
async fn beside_an_interceptor() {
    let (_, health) = tonic_health::server::health_reporter();
    let (addr, incoming) = bind().await;
    let server = Server::builder()
        .layer(layer())
        .layer(tonic::service::InterceptorLayer::new(Ok))
        .add_service(health);
    tokio::spawn(server.serve_with_incoming(incoming));
    assert!(grpc_works(addr).await);
}
