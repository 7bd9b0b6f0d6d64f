//! Files that are sent as several uploads.

use std::time::Duration;

use http::Request;
use tower::service_fn;
use tower_resumable::{Delivery, Retention, store::Filter};

use super::{BYTES, LETTERS, Server, Tus, answer, assert_code, header, offset};

const CUTS: [usize; 4] = [0, 8, 16, 25];

/// Creates parts without bytes.
async fn parts(client: &mut Tus) -> Vec<String> {
    let mut urls = Vec::new();
    for cut in CUTS.windows(2) {
        let length = (cut[1] - cut[0]).to_string();
        let part = [("upload-concat", "partial"), ("upload-length", &length)];
        urls.push(client.create(&part).await);
    }
    urls
}

async fn fill(client: &mut Tus, urls: &[String]) {
    for (url, cut) in urls.iter().zip(CUTS.windows(2)) {
        // tus-js-client sends the header with all requests.
        let partial = [("upload-concat", "partial")];
        let bytes = &LETTERS[cut[0]..cut[1]];
        let answer = client.patch_with(url, 0, &partial, bytes).await;
        assert_eq!((answer.status, offset(&answer)), (204, bytes.len() as u64));
        assert!(answer.headers.contains_key("upload-expires"));
    }
}

fn list(urls: &[String]) -> String {
    format!("final;{}", urls.join(" "))
}

async fn concat(client: &mut Tus, urls: &[String]) -> super::Answer {
    let metadata = ("upload-metadata", "filename eA==");
    client
        .post(&[("upload-concat", &list(urls)), metadata], "")
        .await
}

#[tokio::test]
async fn parts_become_one_file() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let urls = parts(&mut client).await;
    fill(&mut client, &urls).await;
    let head = client.head(&urls[0]).await;
    assert_eq!((head.status, offset(&head)), (200, 8));
    assert_eq!(header(&head, "upload-concat"), "partial");
    // Parts are never delivered.
    assert!(server.contents().is_empty());
    let page = server
        .uploads
        .list(&Filter::complete(), None)
        .await
        .unwrap();
    assert!(page.uploads.is_empty());

    let absolute: Vec<_> = urls
        .iter()
        .map(|url| format!("http://a.example:1{url}"))
        .collect();
    let made = concat(&mut client, &absolute).await;
    assert_eq!(made.status, 201, "{made:?}");
    let url = header(&made, "location").to_owned();
    let deliveries = server.deliveries();
    assert_eq!(deliveries.len(), 1);
    assert_eq!(deliveries[0].content, LETTERS);
    assert_eq!(deliveries[0].upload.file_name(), Some("x"));
    assert_eq!(
        (deliveries[0].method.as_str(), deliveries[0].uri.path()),
        ("POST", "/files")
    );

    // Sent again, it is the same upload.
    let again = concat(&mut client, &urls).await;
    assert_eq!((again.status, header(&again, "location")), (201, &*url));
    let head = client.head(&url).await;
    assert_eq!((head.status, offset(&head)), (200, 25));
    assert_eq!(header(&head, "upload-length"), "25");
    assert_eq!(header(&head, "upload-concat"), list(&urls));
    let patch = client.patch(&url, 25, "").await;
    assert_code(&patch, 403, "concatenated");
    assert_eq!(server.contents().len(), 1);
    // The parts are removed.
    server.uploads.drain().await;
    for url in &urls {
        assert_eq!(client.head(url).await.status, 404);
    }
}

#[tokio::test]
async fn other_metadata_or_another_order_are_another_upload() {
    let server = Server::answering(|l| l, |_| answer(503, &[], "later")).await;
    let mut client = server.client().await;
    let urls = parts(&mut client).await;
    fill(&mut client, &urls).await;
    // The parts stay while the file is not delivered, and can be used more than once.
    let first = concat(&mut client, &urls).await;
    assert_code(&first, 503, "delivery_failed");
    let mut reversed = urls.clone();
    reversed.reverse();
    reversed.push(urls[0].clone());
    assert_code(
        &concat(&mut client, &reversed).await,
        503,
        "delivery_failed",
    );
    let other = client.post(&[("upload-concat", &list(&urls))], "").await;
    assert_code(&other, 503, "delivery_failed");
    let cut = |n: usize| &LETTERS[CUTS[n]..CUTS[n + 1]];
    let reversed = [cut(2), cut(1), cut(0), cut(0)].concat();
    let contents = server.contents();
    assert_eq!(contents, [LETTERS, &reversed, LETTERS]);
    let deliveries = server.deliveries();
    assert_ne!(
        deliveries[0].upload.upload_id(),
        deliveries[2].upload.upload_id()
    );
    for url in &urls {
        assert_eq!(client.head(url).await.status, 200);
    }
}

#[tokio::test]
async fn a_failed_delivery_is_repeated_by_the_same_request() {
    let server = Server::answering(
        |l| l,
        |number| answer(if number == 1 { 503 } else { 200 }, &[], ""),
    )
    .await;
    let mut client = server.client().await;
    let urls = parts(&mut client).await;
    fill(&mut client, &urls).await;
    assert_code(&concat(&mut client, &urls).await, 503, "delivery_failed");
    // tus-js-client asks for each part, and sends the request again.
    for url in &urls {
        assert_eq!(client.head(url).await.status, 200);
    }
    assert_eq!(concat(&mut client, &urls).await.status, 201);
    let deliveries = server.deliveries();
    assert_eq!(deliveries[1].upload.attempt(), 2);
    assert_eq!(deliveries[0].upload.id(), deliveries[1].upload.id());
}

#[tokio::test]
async fn the_last_part_can_come_after_the_final_request() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let urls = parts(&mut client).await;
    let made = concat(&mut client, &urls).await;
    assert_eq!(made.status, 201);
    assert!(!made.headers.contains_key("upload-offset"));
    let url = header(&made, "location").to_owned();
    let head = client.head(&url).await;
    assert_eq!(
        (head.status, header(&head, "upload-concat")),
        (200, &*list(&urls))
    );
    for name in ["upload-offset", "upload-length", "upload-defer-length"] {
        assert!(!head.headers.contains_key(name), "{name}");
    }
    assert_code(&client.patch(&url, 0, LETTERS).await, 403, "concatenated");
    fill(&mut client, &urls).await;
    assert_eq!(server.contents(), [LETTERS]);
    assert_eq!(offset(&client.head(&url).await), 25);
    assert_eq!(server.contents().len(), 1);
}

/// A part of unknown length, an empty one, and one that is complete when it is created.
#[tokio::test]
async fn all_kinds_of_parts_are_parts() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let partial = ("upload-concat", "partial");
    let empty = client.create(&[partial, ("upload-length", "0")]).await;
    let whole = [partial, ("upload-length", "10"), ("content-type", BYTES)];
    let whole = client.post(&whole, &LETTERS[..10]).await;
    assert_eq!((whole.status, offset(&whole)), (201, 10));
    let whole = header(&whole, "location").to_owned();
    let deferred = client
        .create(&[partial, ("upload-defer-length", "1")])
        .await;
    let length = [("upload-length", "15")];
    let answer = client
        .patch_with(&deferred, 0, &length, &LETTERS[10..])
        .await;
    assert_eq!(answer.status, 204);
    assert!(server.contents().is_empty());
    let made = concat(&mut client, &[empty, whole, deferred]).await;
    assert_eq!(
        (made.status, server.contents()),
        (201, vec![LETTERS.to_owned()])
    );
}

#[tokio::test]
async fn what_is_not_a_part_is_refused() {
    let server = Server::with(|layer| {
        layer.with_scope(|parts| match parts.headers.get("x-user") {
            Some(user) => Ok(user.to_str().unwrap().into()),
            None => Ok("".into()),
        })
    })
    .await;
    let mut client = server.client().await;
    let part = [("upload-concat", "partial"), ("upload-length", "0")];
    let own = client.create(&part).await;
    let of_bob = client
        .create(&[&part[..], &[("x-user", "bob")]].concat())
        .await;
    let whole = client.create_of(5).await;
    let absent = format!("/files?upload={}", "0".repeat(32));
    let elsewhere = own.replace("/files", "/other");
    let too_many = vec![own.as_str(); 1001].join(" ");
    for urls in [
        "",
        " ",
        "x",
        "/files",
        "/files?upload=../../x",
        &of_bob,
        &whole,
        &absent,
        &format!("{own} {of_bob}"),
        &format!("{own},{own}"),
        &too_many,
    ] {
        let list = format!("final;{urls}");
        let answer = client.post(&[("upload-concat", &list)], "").await;
        assert_code(&answer, 400, "invalid_field");
    }
    // Only the token counts: all parts are looked for at the path of the request.
    let list = format!("final;{elsewhere}");
    assert_eq!(
        client.post(&[("upload-concat", &list)], "").await.status,
        201
    );
    for headers in [
        &[("upload-concat", "final")][..],
        &[("upload-concat", "parts"), ("upload-length", "1")],
        &[("upload-concat", &list), ("upload-length", "0")],
        &[("upload-concat", &list), ("upload-defer-length", "1")],
        &[("upload-concat", "partial")],
    ] {
        let answer = client.post(headers, "").await;
        assert_eq!(answer.status, 400, "{headers:?} {answer:?}");
    }
    // Bob's part is still there.
    let head = client.send("HEAD", &of_bob, &[("x-user", "bob")], "").await;
    assert_eq!(head.status, 200);
}

#[tokio::test]
async fn parts_that_nothing_uses_are_swept() {
    let retention = Retention::default().with_abandoned(Duration::ZERO);
    let server = Server::with(|layer| layer.with_retention(retention)).await;
    let mut client = server.client().await;
    let urls = parts(&mut client).await;
    fill(&mut client, &urls[..1]).await;
    let taken = service_fn(async |_: Request<String>| {
        Ok::<_, std::convert::Infallible>(answer(200, &[], ""))
    });
    let make_request = |_: &_| Request::post("/files").body(String::new());
    let delivered = server
        .uploads
        .deliver_all(taken, make_request)
        .await
        .unwrap();
    assert_eq!((delivered.delivered, delivered.failed.len()), (0, 0));
    // Limits are compared with the time of the last request.
    while server.uploads.sweep().await.unwrap().abandoned == 0 {}
    let page = server.uploads.list(&Filter::default(), None).await.unwrap();
    assert!(page.uploads.is_empty(), "{page:?}");
}

#[tokio::test]
async fn a_concatenation_outlives_the_wait_of_its_client() {
    let delivery = Delivery::default().with_timeout(Duration::from_millis(20));
    let server = Server::with(|layer| layer.with_delivery(delivery)).await;
    let mut client = server.client().await;
    let urls = parts(&mut client).await;
    fill(&mut client, &urls).await;
    server.hold_back_answers();
    let mut made = concat(&mut client, &urls).await;
    assert_code(&made, 503, "delivery_pending");
    server.permits.add_permits(1);
    while made.status == 503 {
        made = concat(&mut client, &urls).await;
    }
    assert_eq!(
        (made.status, server.contents()),
        (201, vec![LETTERS.to_owned()])
    );
}
