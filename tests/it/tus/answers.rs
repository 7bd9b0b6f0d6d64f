//! What clients get for what the inner service, the hooks and the store answer.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use http::StatusCode;
use tower_resumable::{Delivery, MemoryStore, Refusal};

use super::{BYTES, LETTERS, Server, answer, assert_code, header, offset};

const INNER: &[(&str, &str)] = &[
    ("content-type", "text/plain"),
    ("location", "/albums/7"),
    ("x-app", "1"),
];

#[tokio::test]
async fn the_answer_of_the_inner_service_becomes_204() {
    for status in [200, 201, 202, 204, 303] {
        let server = Server::answering(|l| l, move |_| answer(status, INNER, "taken")).await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        let last = client.patch(&url, 0, LETTERS).await;
        assert_eq!((last.status, last.body.as_str()), (204, ""));
        let whole = [("upload-length", "25"), ("content-type", BYTES)];
        let created = client.post(&whole, LETTERS).await;
        assert_eq!((created.status, created.body.as_str()), (201, ""));
        for answer in [&last, &created] {
            assert_eq!(header(answer, "x-app"), "1");
            assert_eq!(header(answer, "content-location"), "/albums/7");
            assert_eq!(offset(answer), 25);
            assert!(!answer.headers.contains_key("content-type"));
        }
        assert!(!last.headers.contains_key("location"));
        assert!(header(&created, "location").starts_with("/files?upload="));

        // The page can have all of it.
        for version in [&[][..], &[("tus-resumable", "1.0.0")]] {
            let recorded = client.send_plain("GET", &url, version, "").await;
            assert_eq!(recorded.status, status);
            let body = if status == 204 { "" } else { "taken" };
            assert_eq!(recorded.body, body);
            assert_eq!(header(&recorded, "location"), "/albums/7");
        }
        assert_eq!(server.contents().len(), 2);
    }
}

#[tokio::test]
async fn answers_can_have_bodies() {
    let set_up = |layer: tower_resumable::ResumableLayer| {
        let delivery = Delivery::default().with_record_body(10);
        layer.with_answer_bodies(true).with_delivery(delivery)
    };
    for body in ["taken", "longer than what is recorded"] {
        let server = Server::answering(set_up, move |_| answer(201, INNER, body)).await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        assert_eq!(client.patch(&url, 0, &LETTERS[..10]).await.status, 204);
        let last = client.patch(&url, 10, &LETTERS[10..]).await;
        assert_eq!((last.status, last.body.as_str()), (200, body));
        assert_eq!(header(&last, "content-type"), "text/plain");
        assert_eq!(
            (offset(&last), header(&last, "content-location")),
            (25, "/albums/7")
        );
        let whole = [("upload-length", "25"), ("content-type", BYTES)];
        let created = client.post(&whole, LETTERS).await;
        assert_eq!((created.status, created.body.as_str()), (201, body));
        assert_eq!(client.head(&url).await.status, 200);
        // What was too long to be recorded is not repeated.
        let recorded = client.send_plain("GET", &url, &[], "").await;
        let is_recorded = body.len() <= 10;
        assert_eq!(recorded.body, if is_recorded { body } else { "" });
        assert_eq!(recorded.headers.contains_key("content-type"), is_recorded);
    }
}

#[tokio::test]
async fn a_rejected_file_is_removed_and_the_client_stops() {
    for (status, expected) in [(400, 400), (409, 400), (413, 413), (415, 415), (422, 422)] {
        let server = Server::answering(|l| l, move |_| answer(status, INNER, "no")).await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        let last = client.patch(&url, 0, LETTERS).await;
        assert_eq!((last.status, last.body.as_str()), (expected, "no"));
        assert_eq!(header(&last, "tus-resumable"), "1.0.0");
        assert_eq!(header(&last, "content-type"), "text/plain");
        // A client that has lost the answer gets it again.
        let again = client.patch(&url, 25, "").await;
        assert_eq!((again.status, again.body.as_str()), (expected, "no"));
        assert_eq!(client.head(&url).await.status, 404);
        let whole = [("upload-length", "25"), ("content-type", BYTES)];
        let created = client.post(&whole, LETTERS).await;
        assert_eq!((created.status, created.body.as_str()), (expected, "no"));
        assert_eq!(server.contents().len(), 2);
    }
}

#[tokio::test]
async fn a_refused_request_keeps_the_file() {
    for (status, expected) in [(401, 401), (403, 403), (404, 400), (405, 405), (423, 400)] {
        let server = Server::answering(
            |l| l,
            move |number| match number {
                1 | 2 => answer(status, &[], "sign in"),
                _ => answer(200, &[], "taken"),
            },
        )
        .await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        let last = client.patch(&url, 0, LETTERS).await;
        assert_eq!((last.status, last.body.as_str()), (expected, "sign in"));
        // A client that got another status here would begin anew.
        assert_eq!(client.head(&url).await.status, 423);
        let answer = client.head(&url).await;
        assert_eq!((answer.status, offset(&answer)), (200, 25));
        assert_eq!(server.contents(), [LETTERS, LETTERS, LETTERS]);
    }
}

#[tokio::test]
async fn a_failed_delivery_is_tried_again_when_the_client_asks() {
    for status in [408, 425, 429, 500, 502, 503] {
        let server = Server::answering(
            |l| l,
            move |number| match number {
                1 | 2 => answer(status, &[], "later"),
                _ => answer(200, &[], "taken"),
            },
        )
        .await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        let last = client.patch(&url, 0, LETTERS).await;
        assert_code(&last, 503, "delivery_failed");
        assert!(last.headers.contains_key("retry-after"));
        let head = client.head(&url).await;
        assert_eq!(
            (head.status, head.headers.contains_key("upload-offset")),
            (423, false)
        );
        let head = client.head(&url).await;
        assert_eq!((head.status, offset(&head)), (200, 25));
        assert_eq!(server.deliveries()[2].upload.attempt(), 3);
        let head = client.head(&url).await;
        assert_eq!((head.status, server.contents().len()), (200, 3));
    }
}

#[tokio::test]
async fn a_question_waits_for_the_delivery() {
    let delivery = Delivery::default().with_timeout(Duration::from_millis(20));
    let server = Server::answering(
        |layer| layer.with_delivery(delivery),
        |_| answer(200, &[], "taken"),
    )
    .await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    server.hold_back_answers();
    let last = client.patch(&url, 0, LETTERS).await;
    assert_code(&last, 503, "delivery_pending");
    assert_eq!(client.head(&url).await.status, 423);
    // Nor is it removed.
    assert_eq!(client.send("DELETE", &url, &[], "").await.status, 423);
    server.permits.add_permits(1);
    let mut head = client.head(&url).await;
    while head.status == 423 {
        head = client.head(&url).await;
    }
    assert_eq!((head.status, offset(&head)), (200, 25));
    assert_eq!(server.contents(), [LETTERS]);
}

/// tus-js-client begins anew after any status of 5xx, and after 429.
#[tokio::test]
async fn head_is_never_answered_with_5xx() {
    for status in [408, 425, 429, 500, 501, 502, 503, 507] {
        let status = StatusCode::from_u16(status).unwrap();
        let hook = move |headers: &http::HeaderMap, name| {
            if headers.contains_key(name) {
                Err(Refusal::new(status, "later"))
            } else {
                Ok(())
            }
        };
        let server = Server::with(|layer| {
            layer
                .with_scope(move |parts| hook(&parts.headers, "x-scope").map(|()| "a".into()))
                .with_admission(move |asked| {
                    let answer = hook(&asked.parts().headers, "x-admission");
                    async { answer }
                })
        })
        .await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        for name in ["x-scope", "x-admission"] {
            let answer = client.send("HEAD", &url, &[(name, "1")], "").await;
            assert_eq!(answer.status, 423, "{name}");
            assert_eq!(header(&answer, "tus-resumable"), "1.0.0");
            let patch = [(name, "1"), ("content-type", BYTES), ("upload-offset", "0")];
            let answer = client.send("PATCH", &url, &patch, LETTERS).await;
            assert_code(&answer, 503, "refused");
        }
    }
    let store = Failing(MemoryStore::default(), AtomicUsize::new(0));
    let server = Server::on(store, |l| l, |_| answer(200, &[], "")).await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    assert_eq!(client.head(&url).await.status, 423);
    assert_eq!(client.head(&url).await.status, 423);
    assert_eq!(client.head(&url).await.status, 200);
}

/// A store whose first two questions fail.
#[derive(Debug)]
struct Failing(MemoryStore, AtomicUsize);

mod failing {
    use tower_resumable::{
        Upload, UploadId,
        store::{
            Append, Capabilities, ChunkBody, Claimed, Expiry, Filter, Page, Progress, Status,
            Store, StoreError, Swept,
        },
    };

    use super::*;

    impl Store for Failing {
        type Claim = <MemoryStore as Store>::Claim;

        async fn create(&self, upload: &Upload) -> Result<Status, StoreError> {
            self.0.create(upload).await
        }

        async fn write(
            &self,
            upload: &Upload,
            offset: u64,
            body: &mut ChunkBody<'_>,
        ) -> Result<Progress, StoreError> {
            self.0.write(upload, offset, body).await
        }

        async fn status(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
            self.0.status(id).await
        }

        async fn claim(&self, upload: &Upload) -> Result<Claimed<Self::Claim>, StoreError> {
            self.0.claim(upload).await
        }

        async fn remove(&self, id: &UploadId) -> Result<bool, StoreError> {
            self.0.remove(id).await
        }

        async fn list(
            &self,
            filter: &Filter,
            after: Option<&UploadId>,
        ) -> Result<Page, StoreError> {
            self.0.list(filter, after).await
        }

        async fn sweep(&self, expiry: &Expiry) -> Result<Swept, StoreError> {
            self.0.sweep(expiry).await
        }

        fn capabilities(&self) -> Capabilities {
            self.0.capabilities()
        }

        async fn interrupt(&self, id: &UploadId) -> Result<Option<Status>, StoreError> {
            match self.1.fetch_add(1, SeqCst) {
                0 => Err(io::Error::other("it fails").into()),
                1 => Err(StoreError::Busy),
                _ => self.0.interrupt(id).await,
            }
        }

        async fn append(
            &self,
            upload: &Upload,
            append: Append,
            body: &mut ChunkBody<'_>,
        ) -> Result<Progress, StoreError> {
            self.0.append(upload, append, body).await
        }

        async fn concat(
            &self,
            upload: &Upload,
            parts: &[UploadId],
        ) -> Result<Progress, StoreError> {
            self.0.concat(upload, parts).await
        }
    }
}

#[tokio::test]
async fn records_of_uploads_with_urls_have_a_lifetime_of_their_own() {
    for (lifetime, status) in [(Duration::from_secs(3600), 200), (Duration::ZERO, 404)] {
        let delivery = Delivery::default()
            .with_record_lifetime(Duration::ZERO)
            .with_url_record_lifetime(lifetime);
        let server = Server::with(|layer| layer.with_delivery(delivery)).await;
        let mut client = server.client().await;
        let url = client.create_of(25).await;
        assert_eq!(client.patch(&url, 0, LETTERS).await.status, 204);
        assert_eq!(client.head(&url).await.status, status);
    }
}
