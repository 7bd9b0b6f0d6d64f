//! Answers of the inner service that stream: they are passed on while they arrive.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, sync::mpsc, time::Instant};
use tower::{Layer as _, service_fn};
use tower_resumable::{Dialect, MemoryStore, ResumableLayer, Uploads};

use crate::common::{Client, File, Told, serve};

type Piece = io::Result<Frame<Bytes>>;
type Stream = StreamBody<tokio_stream::wrappers::UnboundedReceiverStream<Piece>>;

/// What the handler sends. Each delivery takes the next one.
type Pieces = mpsc::UnboundedSender<Piece>;

fn data(text: &str) -> Piece {
    Ok(Frame::data(text.to_owned().into()))
}

struct App {
    addr: SocketAddr,
    uploads: Uploads,
    told: Told,
}

/// A server whose answers come from channels. It stops the clock at the first delivery: then time
/// passes only if everything waits for it. Returns the senders of the answers, too, in the order of
/// the deliveries.
async fn start(media_type: &'static str) -> (App, mpsc::UnboundedReceiver<Pieces>) {
    let (started, answers) = mpsc::unbounded_channel();
    let (told, is_paused) = (Told::default(), Arc::new(Mutex::new(false)));
    let layer = ResumableLayer::new(MemoryStore::default())
        .with_protocol(Dialect::fine_uploader())
        .with_hold_back(Duration::ZERO);
    let layer = told.of(layer);
    let uploads = layer.uploads();
    let app = layer.layer(service_fn(move |_: Request<Incoming>| {
        let (started, is_paused) = (started.clone(), Arc::clone(&is_paused));
        async move {
            if !std::mem::replace(&mut *is_paused.lock().unwrap(), true) {
                tokio::time::pause();
            }
            let (sender, pieces) = mpsc::unbounded_channel();
            started.send(sender).unwrap();
            let stream: Stream = StreamBody::new(pieces.into());
            let response = Response::builder().header("content-type", media_type);
            Ok::<_, Infallible>(response.header("x-answer", "1").body(stream).unwrap())
        }
    }));
    let addr = serve(app).await;
    (
        App {
            addr,
            uploads,
            told,
        },
        answers,
    )
}

impl App {
    /// Sends a request, and returns the answer when its head has arrived.
    async fn send(&self, request: Request<Vec<u8>>) -> Response<Incoming> {
        let io = TokioIo::new(TcpStream::connect(self.addr).await.unwrap());
        let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let (mut parts, body) = request.into_parts();
        parts.headers.insert("host", "test".parse().unwrap());
        let request = Request::from_parts(parts, Full::<Bytes>::from(body));
        send.send_request(request).await.unwrap()
    }

    async fn state(&self, file: &File) -> serde_json::Value {
        let mut client = Client::connect(self.addr).await;
        let uri = format!("{}&resumableStatus", file.uri(1));
        client.get(&uri).await.json()
    }

    fn delivered(&self) -> usize {
        let names = self.told.names();
        names
            .iter()
            .filter(|name| **name == "delivery_ended")
            .count()
    }
}

async fn next(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    let frame = body.frame().await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}

fn file() -> File {
    File::new("a.txt", 5)
}

/// What was read in the first second is sent first. The delivery is recorded before the body ends.
#[tokio::test]
async fn a_slow_answer_is_passed_on_while_it_arrives() {
    let (app, mut answers) = start("text/plain").await;
    let file = file();
    let (answer, pieces) = tokio::join!(app.send(file.octets(1)), async {
        let pieces = answers.recv().await.unwrap();
        pieces.send(data("one ")).unwrap();
        pieces.send(data("two ")).unwrap();
        (pieces, Instant::now())
    });
    let (pieces, begun) = pieces;
    let second = Duration::from_secs(1);
    assert!((second..2 * second).contains(&begun.elapsed()));
    assert_eq!(
        (answer.status(), &answer.headers()["x-answer"]),
        (StatusCode::OK, &"1".parse().unwrap())
    );
    let mut body = answer.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "one two ");
    // Recorded, without the body.
    assert_eq!(app.delivered(), 1);
    assert_eq!(app.state(&file).await["state"], "delivered");
    let again = app
        .send(file.octets(1))
        .await
        .into_body()
        .collect()
        .await
        .unwrap();
    let again = String::from_utf8(again.to_bytes().to_vec()).unwrap();
    assert!(again.contains("\"state\":\"delivered\""), "{again}");
    assert_eq!(app.delivered(), 1);
    for text in ["three ", "four"] {
        pieces.send(data(text)).unwrap();
        assert_eq!(next(&mut body).await.unwrap().unwrap(), text);
    }
    drop(pieces);
    assert!(next(&mut body).await.is_none());
    assert_eq!(app.told.take_faults(), []);
}

/// An answer that is short and fast is recorded with its body.
#[tokio::test]
async fn a_fast_answer_is_recorded() {
    let (app, mut answers) = start("text/plain").await;
    let file = file();
    let (answer, ()) = tokio::join!(app.send(file.octets(1)), async {
        let pieces = answers.recv().await.unwrap();
        pieces.send(data("one ")).unwrap();
        // Less than a second.
        tokio::time::sleep(Duration::from_millis(900)).await;
        pieces.send(data("two")).unwrap();
    });
    for answer in [answer, app.send(file.octets(1)).await] {
        let body = answer.into_body().collect().await.unwrap();
        assert_eq!(body.to_bytes(), "one two");
    }
    assert_eq!(app.delivered(), 1);
}

/// A stream of events is passed on before its first byte, and without any wait.
#[tokio::test]
async fn a_stream_of_events_is_passed_on_at_once() {
    for media_type in ["text/event-stream", "Text/Event-Stream ; charset=utf-8"] {
        let (app, mut answers) = start(media_type).await;
        let file = file();
        let (answer, pieces) = tokio::join!(app.send(file.octets(1)), async {
            (answers.recv().await.unwrap(), Instant::now())
        });
        let (pieces, begun) = pieces;
        assert_eq!(begun.elapsed(), Duration::ZERO, "{media_type}");
        assert_eq!(app.state(&file).await["state"], "delivered");
        let mut body = answer.into_body();
        for text in ["data: 1\n\n", "data: 2\n\n"] {
            pieces.send(data(text)).unwrap();
            assert_eq!(next(&mut body).await.unwrap().unwrap(), text);
        }
        tokio::time::resume();
    }
}

/// When the client has gone, an endless body is dropped, and nothing is left running.
#[tokio::test]
async fn an_endless_answer_ends_with_its_client() {
    let (app, mut answers) = start("text/event-stream").await;
    let (answer, pieces) = tokio::join!(app.send(file().octets(1)), async {
        answers.recv().await.unwrap()
    });
    let mut body = answer.into_body();
    pieces.send(data("data: 1\n\n")).unwrap();
    assert!(next(&mut body).await.is_some());
    drop(body);
    pieces.closed().await;
    app.uploads.drain().await;
    assert_eq!(app.uploads.counts().deliveries, 0);
    assert_eq!(app.state(&file()).await["state"], "delivered");
}

/// A client that goes while the answer is awaited. The file is delivered, and the rest of the body
/// is dropped.
#[tokio::test]
async fn an_answer_without_a_client_is_recorded_and_dropped() {
    let (app, mut answers) = start("text/plain").await;
    let pieces = tokio::select! {
        pieces = answers.recv() => pieces.unwrap(),
        answer = async {
            let io = TokioIo::new(TcpStream::connect(app.addr).await.unwrap());
            let (mut send, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            let (mut parts, body) = file().octets(1).into_parts();
            parts.headers.insert("host", "test".parse().unwrap());
            let answer = send.send_request(Request::from_parts(parts, Full::<Bytes>::from(body)));
            // Both are dropped with this future.
            tokio::join!(connection, answer)
        } => panic!("{answer:?}"),
    };
    pieces.send(data("one")).unwrap();
    pieces.closed().await;
    app.uploads.drain().await;
    assert_eq!(app.state(&file()).await["state"], "delivered");
}

/// A body that fails before it is passed on is a failed delivery. Later, it is cut off.
#[tokio::test]
async fn a_body_that_fails() {
    let broken = || Err(io::Error::other("the template is gone"));
    let (app, mut answers) = start("text/plain").await;
    let file = file();
    let (answer, ()) = tokio::join!(app.send(file.octets(1)), async {
        let pieces = answers.recv().await.unwrap();
        pieces.send(data("one")).unwrap();
        pieces.send(broken()).unwrap();
    });
    assert_eq!(answer.status(), 503);
    let faults = app.told.take_faults();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].0, "delivery_failed");
    assert!(faults[0].1.contains("the template is gone"), "{faults:?}");
    assert_eq!(app.state(&file).await["state"], "complete");

    let (answer, pieces) = tokio::join!(app.send(file.octets(1)), async {
        let pieces = answers.recv().await.unwrap();
        pieces.send(data("one")).unwrap();
        pieces
    });
    let mut body = answer.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "one");
    pieces.send(broken()).unwrap();
    assert!(next(&mut body).await.unwrap().is_err());
    assert_eq!(app.state(&file).await["state"], "delivered");
    assert_eq!((app.told.take_faults(), app.delivered()), (Vec::new(), 0));
}

/// A client that gets another body by its protocol gets it at once. The stream is dropped.
#[tokio::test]
async fn a_client_that_needs_another_body_does_not_wait_for_the_stream() {
    let (app, mut answers) = start("text/plain").await;
    let query = "qqpartindex=0&qqpartbyteoffset=0&qqchunksize=5&qqtotalparts=1&qqtotalfilesize=5\
                 &qqfilename=a.txt&qquuid=ad8f3618";
    let request = Request::post(format!("/upload?{query}"))
        .header("content-type", "application/octet-stream")
        .body(b"hello".to_vec())
        .unwrap();
    let (answer, pieces) = tokio::join!(app.send(request), async {
        let pieces = answers.recv().await.unwrap();
        pieces.send(data("one")).unwrap();
        pieces
    });
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["success"], true);
    pieces.closed().await;
}

/// A whole file in one request, whose client gets the answer as it is, with trailers.
#[tokio::test]
async fn the_answer_to_a_whole_file_streams() {
    let (app, mut answers) = start("text/plain").await;
    let request = Request::post("/upload")
        .header("content-type", "application/octet-stream")
        .header("te", "trailers")
        .body(b"hello".to_vec())
        .unwrap();
    let (answer, pieces) = tokio::join!(app.send(request), async {
        let pieces = answers.recv().await.unwrap();
        pieces.send(data("one")).unwrap();
        pieces
    });
    let mut body = answer.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "one");
    pieces.send(data("two")).unwrap();
    pieces.send(Ok(Frame::trailers(HeaderMap::new()))).unwrap();
    drop(pieces);
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "two");
    assert!(body.collect().await.unwrap().to_bytes().is_empty());
}

/// Nothing waits for the rest of an answer in the background.
#[tokio::test(start_paused = true)]
async fn a_delivery_of_the_background_drops_the_rest() {
    let layer = ResumableLayer::new(MemoryStore::default()).with_hold_back(Duration::ZERO);
    let down = layer.layer(service_fn(async |_: Request<Full<Bytes>>| {
        Err::<Response<Full<Bytes>>, _>(io::Error::other("down"))
    }));
    let request = file().octets(1).map(Full::<Bytes>::from);
    let answer = tower::ServiceExt::oneshot(down, request).await.unwrap();
    assert_eq!(answer.status(), 503);
    let (pieces, received) = mpsc::unbounded_channel::<Piece>();
    let received = Arc::new(Mutex::new(Some(received)));
    let up = service_fn(move |_: Request<Full<Bytes>>| {
        let stream: Stream = StreamBody::new(received.lock().unwrap().take().unwrap().into());
        async move { Ok::<_, Infallible>(Response::new(stream)) }
    });
    pieces.send(data("one")).unwrap();
    let make_request = |_: &_| Request::post("/upload").body(Full::default());
    let deliveries = layer.uploads().deliver_all(up, make_request).await.unwrap();
    assert_eq!(deliveries.delivered, 1);
    pieces.closed().await;
}
