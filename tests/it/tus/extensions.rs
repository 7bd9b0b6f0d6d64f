//! Each extension of tus 1.0, and the method override.

use http::StatusCode;
use tower_resumable::{Limits, Purpose, Refusal};

use super::{BYTES, LETTERS, Server, assert_code, header, offset};
use crate::common;

#[tokio::test]
async fn options_announce_what_the_layer_can_do() {
    let server = Server::with(|layer| {
        layer
            .with_limits(Limits::default().with_file_size(1000))
            // Nobody has to be known for this.
            .with_scope(|_| Err(Refusal::new(StatusCode::UNAUTHORIZED, "sign in")))
    })
    .await;
    let mut client = server.client().await;
    for version in ["1.0.0", "0.2.2"] {
        let version = [("tus-resumable", version)];
        let answer = client.send_plain("OPTIONS", "/files", &version, "").await;
        assert_eq!((answer.status, answer.body.as_str()), (204, ""));
        assert_eq!(header(&answer, "tus-version"), "1.0.0");
        assert_eq!(header(&answer, "tus-max-size"), "1000");
        assert_eq!(
            header(&answer, "tus-extension"),
            "creation,creation-with-upload,creation-defer-length,expiration,checksum,\
             checksum-trailer,termination,concatenation,concatenation-unfinished"
        );
        let algorithms = header(&answer, "tus-checksum-algorithm");
        assert!(
            algorithms.starts_with("sha1,sha256,sha512,crc32"),
            "{algorithms}"
        );
    }
    let preflight = [
        ("access-control-request-method", "POST"),
        ("origin", "http://a.example"),
    ];
    let answer = client.send_plain("OPTIONS", "/files", &preflight, "").await;
    assert_eq!(answer.body, "passed OPTIONS /files");
    let answer = client.send_plain("OPTIONS", "/other", &[], "").await;
    assert_eq!(answer.body, "passed OPTIONS /other");
}

#[tokio::test]
async fn another_version_gets_412_and_nothing_is_done() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(5).await;
    let patch = [("content-type", BYTES), ("upload-offset", "0")];
    for version in ["0.2.2", "1.0", "1.0.0, 1.0.0", ""] {
        let version = [("tus-resumable", version)];
        for (method, url, headers) in [
            ("POST", "/files", &[("upload-length", "5")][..]),
            ("PATCH", &url, &patch),
            ("HEAD", &url, &[]),
            ("DELETE", &url, &[]),
        ] {
            let body = if method == "PATCH" { "hello" } else { "" };
            let headers = [&version, headers].concat();
            let answer = client.send_plain(method, url, &headers, body).await;
            assert_eq!(answer.status, 412, "{method} {answer:?}");
            assert_eq!(header(&answer, "tus-version"), "1.0.0");
        }
    }
    // Without a version, only questions are answered.
    let answer = client.send_plain("PATCH", &url, &patch, "hello").await;
    assert_code(&answer, 412, "version");
    let answer = client.send_plain("HEAD", &url, &[], "").await;
    assert_eq!((answer.status, offset(&answer)), (200, 0));
}

#[tokio::test]
async fn a_creation_can_have_bytes() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let bytes = [("upload-length", "25"), ("content-type", BYTES)];
    let answer = client.post(&bytes, &LETTERS[..10]).await;
    assert_eq!((answer.status, offset(&answer)), (201, 10));
    let url = header(&answer, "location").to_owned();
    assert_eq!(offset(&client.head(&url).await), 10);
    let answer = client.patch(&url, 10, &LETTERS[10..]).await;
    assert_eq!((answer.status, offset(&answer)), (204, 25));

    let whole = client.post(&bytes, LETTERS).await;
    assert_eq!((whole.status, offset(&whole)), (201, 25));
    assert_eq!(client.head(header(&whole, "location")).await.status, 200);

    // A body of another type has no bytes of the file.
    let other = [
        ("upload-length", "25"),
        ("content-type", "application/octet-stream"),
    ];
    let answer = client.post(&other, LETTERS).await;
    assert_eq!(answer.status, 201);
    let url = header(&answer, "location").to_owned();
    assert_eq!(offset(&client.head(&url).await), 0);
    assert_eq!(server.contents(), [LETTERS, LETTERS]);

    // An empty file is complete when it is created.
    let empty = client.post(&[("upload-length", "0")], "").await;
    assert_eq!((empty.status, offset(&empty)), (201, 0));
    let url = header(&empty, "location").to_owned();
    assert_eq!(
        (client.head(&url).await.status, server.contents().len()),
        (200, 3)
    );
}

#[tokio::test]
async fn the_length_can_be_declared_later() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create(&[("upload-defer-length", "1")]).await;
    let answer = client.head(&url).await;
    assert_eq!(header(&answer, "upload-defer-length"), "1");
    assert!(!answer.headers.contains_key("upload-length"));
    assert_eq!(client.patch(&url, 0, &LETTERS[..10]).await.status, 204);
    // It may come with any request.
    let length = [("upload-length", "25")];
    assert_eq!(
        client
            .patch_with(&url, 10, &length, &LETTERS[10..20])
            .await
            .status,
        204
    );
    let answer = client.head(&url).await;
    assert_eq!(header(&answer, "upload-length"), "25");
    assert!(!answer.headers.contains_key("upload-defer-length"));
    for other in ["24", "26"] {
        let other = [("upload-length", other)];
        let refused = client.patch_with(&url, 20, &other, &LETTERS[20..]).await;
        assert_code(&refused, 400, "conflict");
    }
    assert_eq!(
        client
            .patch_with(&url, 20, &length, &LETTERS[20..])
            .await
            .status,
        204
    );

    // A browser sends the last bytes first, and then an empty request with the length.
    let url = client.create(&[("upload-defer-length", "1")]).await;
    assert_eq!(client.patch(&url, 0, LETTERS).await.status, 204);
    assert_eq!(server.contents(), [LETTERS]);
    let answer = client.patch_with(&url, 25, &length, "").await;
    assert_eq!((answer.status, offset(&answer)), (204, 25));
    assert_eq!(server.contents(), [LETTERS, LETTERS]);

    // Less than what is stored.
    let url = client.create(&[("upload-defer-length", "1")]).await;
    assert_eq!(client.patch(&url, 0, LETTERS).await.status, 204);
    let refused = client
        .patch_with(&url, 25, &[("upload-length", "24")], "")
        .await;
    assert_code(&refused, 413, "out_of_bounds");
    assert_eq!(offset(&client.head(&url).await), 25);
}

#[tokio::test]
async fn checksums_are_checked_and_a_wrong_one_leaves_nothing() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(22).await;
    for (checksum, status) in [
        ("sha1 2jmj7l5rSw0yVb/vlWAYkK/YBwk=", 460),
        ("sha256 47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=", 460),
        ("crc32 AAAAAA==", 460),
        ("sha3 2jmj7l5rSw0yVb/vlWAYkK/YBwk=", 400),
        ("sha1", 400),
        ("sha1 ?", 400),
    ] {
        let checksum = [("upload-checksum", checksum)];
        let answer = client.patch_with(&url, 0, &checksum, "hello world").await;
        assert_eq!(answer.status, status, "{checksum:?} {answer:?}");
        assert_eq!(offset(&client.head(&url).await), 0);
        let creation = [("upload-length", "22"), ("content-type", BYTES)];
        let answer = client
            .post(&[&creation, &checksum[..]].concat(), "hello world")
            .await;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    for (at, checksum) in [
        (0, "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="),
        (11, "sha256 uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek="),
    ] {
        let checksum = [("upload-checksum", checksum)];
        let answer = client.patch_with(&url, at, &checksum, "hello world").await;
        assert_eq!(answer.status, 204, "{answer:?}");
    }
    assert_eq!(server.contents(), ["hello worldhello world"]);
    // What failed creations have stored is removed.
    let page = server
        .uploads
        .list(&Default::default(), None)
        .await
        .unwrap();
    assert!(page.uploads.is_empty(), "{page:?}");
}

#[tokio::test]
async fn uploads_can_be_removed() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    assert_eq!(client.patch(&url, 0, &LETTERS[..10]).await.status, 204);
    let answer = client.send("DELETE", &url, &[], "").await;
    assert_eq!((answer.status, answer.body.as_str()), (204, ""));
    for method in ["HEAD", "PATCH", "DELETE", "GET"] {
        let patch = [("content-type", BYTES), ("upload-offset", "10")];
        let answer = client.send(method, &url, &patch, "").await;
        assert_eq!(answer.status, 404, "{method} {answer:?}");
    }
    // The file of a delivered upload is the application's.
    let url = client.create_of(25).await;
    assert_eq!(client.patch(&url, 0, LETTERS).await.status, 204);
    assert_eq!(client.send("DELETE", &url, &[], "").await.status, 204);
    assert_eq!(client.head(&url).await.status, 404);
    let delivery = server.deliveries().pop().unwrap();
    assert_eq!(common::content(&delivery.upload).await, LETTERS.as_bytes());
}

#[tokio::test]
async fn post_can_stand_for_other_methods() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    let bytes = |offset| [("content-type", BYTES), ("upload-offset", offset)];
    let over = |method| [("x-http-method-override", method)];
    let patch = [&over("PATCH")[..], &bytes("0")].concat();
    let answer = client.send("POST", &url, &patch, &LETTERS[..10]).await;
    assert_eq!((answer.status, offset(&answer)), (204, 10));
    let answer = client.send("POST", &url, &over("HEAD"), "").await;
    assert_eq!((answer.status, offset(&answer)), (200, 10));
    let answer = client.send("POST", &url, &over("DELETE"), "").await;
    assert_eq!(answer.status, 204);
    let answer = client.send("POST", &url, &over("PROPFIND"), "").await;
    assert_eq!(answer.status, 405);
    // Only POST can.
    let answer = client.send("GET", &url, &over("DELETE"), "").await;
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn metadata_describe_the_file() {
    let server = Server::start().await;
    let mut client = server.client().await;
    for (metadata, name, media_type, path, fields) in [
        ("filename eA==", Some("x"), None, None, &[][..]),
        ("name eA==", Some("x"), None, None, &[]),
        ("name eQ==,filename eA==", Some("x"), None, None, &[]),
        ("type eA==", None, Some("x"), None, &[]),
        ("type eQ==,filetype eA==", None, Some("x"), None, &[]),
        ("relativePath YS9i", None, None, Some("a/b"), &[]),
        ("relativePath bnVsbA==", None, None, None, &[]),
        ("relativePath", None, None, None, &[]),
        (
            "a eA==, b eQ== ,c,d ",
            None,
            None,
            None,
            &["a=x", "b=y", "c=", "d="],
        ),
        ("a eA", None, None, None, &["a=x"]),
        ("a /w==,b eA==", None, None, None, &["b=x"]),
        ("filename /w==", None, None, None, &[]),
    ] {
        let headers = [("upload-length", "0"), ("upload-metadata", metadata)];
        let answer = client.post(&headers, "").await;
        assert_eq!(answer.status, 201, "{metadata} {answer:?}");
        let upload = server.deliveries().pop().unwrap().upload;
        let described = (
            upload.file_name(),
            upload.content_type(),
            upload.relative_path(),
        );
        assert_eq!(described, (name, media_type, path), "{metadata}");
        let got: Vec<_> = upload
            .fields()
            .iter()
            .map(|(n, v)| format!("{n}={v}"))
            .collect();
        assert_eq!(got, fields, "{metadata}");
        let url = header(&answer, "location").to_owned();
        assert_eq!(
            header(&client.head(&url).await, "upload-metadata"),
            metadata.trim()
        );
    }
}

#[tokio::test]
async fn the_application_admits_each_request() {
    let server = Server::with(|layer| {
        layer.with_admission(|asked| {
            let headers = &asked.parts().headers;
            let refused = headers
                .get("x-refuse")
                .map(|purpose| purpose.to_str().unwrap());
            let purpose = asked.purpose();
            let is_refused = refused == Some(&format!("{purpose:?}"));
            let known = asked.upload().unwrap().file_name.as_deref();
            // What is stored of the upload is known.
            let has_name = purpose != Purpose::Chunk || known == Some("x");
            async move {
                assert!(has_name);
                if is_refused {
                    return Err(Refusal::new(StatusCode::FORBIDDEN, "no"));
                }
                Ok(())
            }
        })
    })
    .await;
    let mut client = server.client().await;
    let creation = [("upload-length", "5"), ("upload-metadata", "filename eA==")];
    let url = client.create(&creation).await;
    let bytes = [("content-type", BYTES), ("upload-offset", "0")];
    let part = [("upload-concat", "partial"), ("upload-length", "0")];
    let part = format!("final;{}", client.create(&part).await);
    let concat = [("upload-concat", &*part)];
    let with_data = [&creation[..], &bytes[..1]].concat();
    for (purpose, method, to, headers) in [
        ("Create", "POST", "/files", &creation[..]),
        ("Create", "POST", "/files", &concat),
        ("Chunk", "POST", "/files", &with_data),
        ("Deliver", "POST", "/files", &with_data),
        ("Chunk", "PATCH", &url, &bytes),
        ("Status", "HEAD", &url, &[]),
        ("Status", "GET", &url, &[]),
        ("Cancel", "DELETE", &url, &[]),
    ] {
        let refuse = [&[("x-refuse", purpose)], headers].concat();
        let has_data = headers.contains(&bytes[0]);
        let body = if has_data { "hello" } else { "" };
        let answer = client.send(method, to, &refuse, body).await;
        assert_eq!(answer.status, 403, "{purpose} {answer:?}");
    }
    assert_eq!(offset(&client.head(&url).await), 0);
    assert_eq!(client.patch(&url, 0, "hello").await.status, 204);
}

/// A page can show what is unfinished after a reload, and go on.
#[tokio::test]
async fn a_list_of_unfinished_uploads_names_their_urls() {
    let server = Server::with(|layer| {
        let layer = layer.with_list_parameter("unfinished");
        layer.with_scope(|parts| match parts.headers.get("x-user") {
            Some(user) => Ok(user.to_str().unwrap().into()),
            None => Ok("".into()),
        })
    })
    .await;
    let mut client = server.client().await;
    let alice = ("x-user", "alice");
    let named = [
        alice,
        ("upload-length", "25"),
        ("upload-metadata", "filename YQ=="),
    ];
    let url = client.create(&named).await;
    let bytes = [alice, ("content-type", BYTES), ("upload-offset", "0")];
    assert_eq!(client.send("PATCH", &url, &bytes, "abc").await.status, 204);
    let part = [alice, ("upload-length", "5"), ("upload-concat", "partial")];
    let part = client.create(&part).await;
    let of_draft = [alice, ("upload-complete", "?0"), ("upload-length", "7")];
    let of_draft = client.send_plain("POST", "/files", &of_draft, "").await;
    let of_draft = header(&of_draft, "location").to_owned();
    let list = client
        .send_plain("GET", "/files?unfinished", &[alice], "")
        .await;
    let mut listed = list.json()["uploads"].as_array().unwrap().clone();
    listed.sort_by_key(|it| it["total"].as_u64());
    let seen: Vec<_> = listed
        .iter()
        .map(|it| (&it["url"], &it["total"], &it["part"]))
        .collect();
    assert_eq!(seen[0], (&part.into(), &5.into(), &true.into()), "{list:?}");
    assert_eq!(
        seen[1],
        (&of_draft.into(), &7.into(), &false.into()),
        "{list:?}"
    );
    assert_eq!(
        seen[2],
        (&url.clone().into(), &25.into(), &false.into()),
        "{list:?}"
    );
    assert_eq!(
        (&listed[2]["file_name"], &listed[2]["received"]),
        (&"a".into(), &3.into())
    );
    let head = client.send("HEAD", &url, &[alice], "").await;
    assert_eq!(offset(&head), 3);
    for (path, user) in [("/files", "bob"), ("/files", ""), ("/other", "alice")] {
        let path = format!("{path}?unfinished");
        let list = client
            .send_plain("GET", &path, &[("x-user", user)], "")
            .await;
        assert!(!list.body.contains("upload="), "{path} {user} {list:?}");
    }
}
