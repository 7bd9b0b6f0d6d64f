//! The application's hooks: the admission of each request, and the check of the first bytes.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use sha2::Digest as _;
use tower::{ServiceBuilder, service_fn};
use tower_resumable::{
    Admission, CompletedUpload, Dialect, DigestAlgorithm, Digests, FileStore, Limits, Purpose,
    Refusal, ResumableLayer, Upload,
};

use crate::common::{self, Answer, Client, File, FilePart, Server, form, multipart, serve};

/// The arguments of a hook: purpose, name, size, type, and the application's own fields.
type Asked = (
    Purpose,
    Option<String>,
    u64,
    Option<String>,
    Vec<(String, String)>,
);

fn noted(admission: &Admission<'_>) -> Asked {
    let upload = admission.upload();
    (
        admission.purpose(),
        upload.and_then(|upload| upload.file_name.clone()),
        upload.and_then(|upload| upload.length).unwrap_or(0),
        upload.and_then(|upload| upload.content_type.clone()),
        upload.map_or_else(Vec::new, |upload| upload.fields.clone()),
    )
}

#[tokio::test]
async fn admission_sees_all_that_each_request_declares() {
    let asked = Arc::<Mutex<Vec<Asked>>>::default();
    let notes = Arc::clone(&asked);
    let server = Server::with(|layer| {
        layer
            .with_list_parameter("unfinished")
            .with_protocol(Dialect::filepond())
            .with_admission(move |admission| {
                assert_eq!(admission.parts().uri.path(), "/upload");
                notes.lock().unwrap().push(noted(admission));
                async { Ok(()) }
            })
    })
    .await;
    let file = File {
        extra: vec![("token".into(), "x y".into())],
        ..File::new("a.txt", 25)
    };
    let mut client = server.client().await;
    client.send(file.probe(1)).await;
    client.send(file.multipart(1)).await;
    client
        .get(&format!("{}&resumableStatus", file.uri(1)))
        .await;
    client.get("/upload?unfinished").await;
    let cancel = Request::delete(file.uri(1)).body(Vec::new()).unwrap();
    client.send(cancel).await;
    let create = Request::post("/upload").header("upload-length", "7");
    client.send(create.body(Vec::new()).unwrap()).await;
    // The file comes before the fields: the hook is called when the fields are known.
    let fields = file.fields(1);
    let late = [
        common::file_part(FilePart::named("a.txt"), file.chunk(1)),
        form(&fields, FilePart::None, b""),
    ];
    client.send(multipart("/upload", late.concat())).await;
    assert_eq!(client.send(file.octets(2)).await.body, "delivery 1");

    use Purpose::*;
    let of_file = |purpose| {
        let content_type = (purpose != Cancel).then(|| "text/plain".to_owned());
        (
            purpose,
            Some("a.txt".to_owned()),
            25,
            content_type,
            file.extra.clone(),
        )
    };
    let expected = [
        of_file(Test),
        of_file(Chunk),
        of_file(Status),
        (List, None, 0, None, Vec::new()),
        of_file(Cancel),
        (Create, None, 7, None, Vec::new()),
        (Spool, None, 0, None, Vec::new()),
        of_file(Chunk),
        of_file(Chunk),
        of_file(Deliver),
    ];
    assert_eq!(*asked.lock().unwrap(), expected);
}

#[tokio::test]
async fn a_refused_request_stores_and_reveals_nothing() {
    let file = File::new("a.txt", 25);
    for purpose in [
        Purpose::Test,
        Purpose::Chunk,
        Purpose::Status,
        Purpose::Cancel,
    ] {
        let server = Server::with(|layer| {
            layer.with_admission(move |admission| {
                let is_it = admission.purpose() == purpose
                    && admission.parts().headers.contains_key("x-refused");
                async move {
                    // A hook may be slow.
                    tokio::task::yield_now().await;
                    if is_it {
                        Err(Refusal::new(StatusCode::FORBIDDEN, "not you"))
                    } else {
                        Ok(())
                    }
                }
            })
        })
        .await;
        let mut client = server.client().await;
        client.send(file.multipart(1)).await;
        let status = format!("{}&resumableStatus", file.uri(1));
        let before = client.get(&status).await.body;
        let mut request = match purpose {
            Purpose::Test => file.probe(1),
            Purpose::Chunk => file.octets(2),
            Purpose::Status => Request::get(&status).body(Vec::new()).unwrap(),
            _ => Request::delete(file.uri(1)).body(Vec::new()).unwrap(),
        };
        request
            .headers_mut()
            .insert("x-refused", "1".parse().unwrap());
        let refused = client.send(request).await;
        assert_eq!(refused.status, 400, "{purpose:?}");
        assert_eq!(refused.headers["x-resumable-status"], "403");
        assert_eq!(refused.json()["code"], "refused");
        assert_eq!(refused.json()["detail"], "not you");
        assert_eq!(client.get(&status).await.body, before, "{purpose:?}");
        assert_eq!(client.send(file.octets(2)).await.body, "delivery 1");
    }
}

#[tokio::test]
async fn a_refusal_can_have_a_custom_answer() {
    let refusing = |status: u16| {
        Server::with(move |layer| {
            layer
                .with_hold_back(Duration::ZERO)
                .with_error_response(|error, mut response| {
                    let refused = error.refusal().is_some();
                    response
                        .headers_mut()
                        .insert("x-seen", refused.to_string().parse().unwrap());
                    response
                })
                .with_admission(move |_| async move {
                    let answer = Response::builder()
                        .status(status)
                        .header("content-type", "text/x-own")
                        .header("retry-after", "30")
                        .body(Bytes::from_static(b"own words"));
                    Err(Refusal::from(answer.unwrap()))
                })
        })
    };
    let file = File::new("a.txt", 25);
    for (status, seen) in [(401, 400), (413, 400), (429, 503), (507, 503)] {
        let server = refusing(status).await;
        for request in [file.probe(1), file.multipart(1)] {
            let Answer {
                status: got,
                headers,
                body,
            } = server.client().await.send(request).await;
            assert_eq!((got, &body[..]), (seen, "own words"));
            assert_eq!(headers["x-resumable-status"], status.to_string());
            assert_eq!(headers["content-type"], "text/x-own");
            assert_eq!(headers["retry-after"], "30");
            assert_eq!(headers["x-seen"], "true");
        }
        assert!(server.files().is_empty());
    }
}

#[tokio::test]
async fn admission_is_asked_again_before_the_delivery() {
    for (status, seen, left) in [
        (StatusCode::FORBIDDEN, 400, true),
        (StatusCode::GONE, 400, false),
        (StatusCode::TOO_MANY_REQUESTS, 503, true),
    ] {
        let refused = Arc::new(Mutex::new(true));
        let refuses = Arc::clone(&refused);
        let server = Server::with(|layer| {
            layer
                .with_hold_back(Duration::ZERO)
                .with_admission(move |admission| {
                    let refuse =
                        admission.purpose() == Purpose::Deliver && *refuses.lock().unwrap();
                    async move {
                        if refuse {
                            Err(Refusal::new(status, "no longer"))
                        } else {
                            Ok(())
                        }
                    }
                })
        })
        .await;
        let file = File::new("a.txt", 25);
        let mut client = server.client().await;
        client.send(file.multipart(1)).await;
        let answer = client.send(file.multipart(2)).await;
        assert_eq!(answer.status, seen);
        assert_eq!(answer.json()["code"], "refused");
        assert!(server.deliveries().is_empty());
        // The probe is not answered with "stored": the client has to send a chunk to get an answer.
        assert_eq!(client.send(file.probe(1)).await.status, 204);
        let status = client
            .get(&format!("{}&resumableStatus", file.uri(1)))
            .await;
        let expected = if left { "complete" } else { "absent" };
        assert_eq!(status.json()["state"], expected);

        *refused.lock().unwrap() = false;
        if !left {
            assert!(server.files().iter().all(|path| !path.ends_with("a.txt")));
            client.send(file.multipart(1)).await;
        }
        assert_eq!(client.send(file.multipart(2)).await.body, "delivery 1");
        assert!(server.deliveries()[0].content == file.content);
    }
}

fn pictures_only(layer: ResumableLayer) -> ResumableLayer {
    layer.with_sniff(|head: &[u8], upload: &Upload| {
        assert_eq!(head.len() as u64, upload.length.unwrap().min(8192));
        if infer::is_image(head) {
            Ok(())
        } else {
            Err(Refusal::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "pictures only",
            ))
        }
    })
}

fn picture(len: usize, chunk_size: usize) -> File {
    let mut file = File {
        chunk_size,
        ..File::new("a.png", len)
    };
    file.content[..8].copy_from_slice(b"\x89PNG\r\n\x1a\n");
    file
}

#[tokio::test]
async fn the_first_bytes_are_checked_when_they_arrive() {
    let server = Server::with(pictures_only).await;
    let mut client = server.client().await;
    for (len, chunk_size) in [(20, 20), (30_000, 10_000), (100, 10), (9000, 3000)] {
        let good = picture(len, chunk_size);
        let bad = File {
            content: good.content.iter().map(|byte| !byte).collect(),
            name: "b.png".into(),
            relative_path: "b.png".into(),
            ..good.clone()
        };
        let before = server.deliveries().len();
        for number in (1..=good.chunks()).rev() {
            assert_eq!(client.send(good.multipart(number)).await.status, 200);
        }
        assert!(server.deliveries()[before].content == good.content);
        // The refusal answers the chunk that contains all of the first bytes. If no chunk does, it
        // answers the last one.
        let statuses = async |file: &File, client: &mut Client| {
            let mut statuses = Vec::new();
            for number in (1..=file.chunks()).rev() {
                let answer = client.send(file.octets(number)).await;
                if answer.status != 200 {
                    assert_eq!(answer.status, 400);
                    assert_eq!(answer.headers["x-resumable-status"], "415");
                    assert_eq!(answer.json()["code"], "refused");
                }
                statuses.push(answer.status);
            }
            statuses
        };
        let seen = statuses(&bad, &mut client).await;
        let (last, others) = seen.split_last().unwrap();
        assert_eq!(*last, 400, "{len} bytes in chunks of {chunk_size}");
        assert!(others.iter().all(|status| *status == 200));
        assert_eq!(server.deliveries().len(), before + 1);
        // None of its chunks is stored.
        for number in 1..=bad.chunks() {
            assert_eq!(client.send(bad.probe(number)).await.status, 204);
        }
    }
}

#[tokio::test]
async fn an_empty_file_is_checked_too() {
    let server = Server::with(pictures_only).await;
    let empty = File::new("a.png", 0);
    let answer = server.client().await.send(empty.multipart(1)).await;
    assert_eq!(
        (answer.status, &answer.json()["code"]),
        (400, &"refused".into())
    );
    assert!(server.deliveries().is_empty());
    // The hook does not have to check files that the layer refuses.
    let server = Server::with(|layer| {
        pictures_only(layer).with_limits(Limits::default().with_file_size(10))
    })
    .await;
    let answer = server.client().await.send(picture(20, 20).octets(1)).await;
    assert_eq!(answer.json()["code"], "file_too_large");
}

/// The inner service fails after it has moved the file, so the next attempt has no first bytes to
/// check.
#[tokio::test]
async fn a_file_that_an_earlier_attempt_moved_is_delivered_again() {
    let elsewhere = tempfile::tempdir().unwrap();
    let to = elsewhere.path().join("moved.png");
    let file = picture(20, 20);
    let digest = sha2::Sha256::digest(&file.content);
    let file = File {
        extra: vec![(
            "sha256".into(),
            digest.iter().map(|b| format!("{b:02x}")).collect(),
        )],
        ..file
    };
    let attempts = Arc::<Mutex<Vec<u32>>>::default();
    let (noted, moved) = (Arc::clone(&attempts), to.clone());
    let inner = service_fn(move |request: Request<Incoming>| {
        let (noted, to) = (Arc::clone(&noted), moved.clone());
        async move {
            let upload = request.extensions().get::<CompletedUpload>().unwrap();
            upload.persist(&to).await.unwrap();
            noted.lock().unwrap().push(upload.attempt());
            let status = [500, 200][usize::from(upload.attempt() > 1)];
            let response = Response::builder()
                .status(status)
                .body(Full::<Bytes>::default());
            Ok::<_, Infallible>(response.unwrap())
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let layer = pictures_only(ResumableLayer::new(FileStore::open(dir.path()).unwrap()))
        .with_hold_back(Duration::ZERO)
        .with_digests(Digests::default().with_file_field("sha256", DigestAlgorithm::Sha256));
    let addr = serve(ServiceBuilder::new().layer(layer).service(inner)).await;
    let mut client = Client::connect(addr).await;
    assert_eq!(client.send(file.multipart(1)).await.status, 503);
    assert_eq!(client.send(file.multipart(1)).await.status, 200);
    assert_eq!(*attempts.lock().unwrap(), [1, 2]);
    assert!(std::fs::read(to).unwrap() == file.content);
}
