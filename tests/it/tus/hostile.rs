//! Requests that no honest client sends.

use tower_resumable::{ResumableLayer, Scope};

use super::{BYTES, LETTERS, Server, assert_code, header, offset};

fn scoped(layer: ResumableLayer) -> ResumableLayer {
    layer.with_scope(|parts| {
        let user = parts.headers.get("x-user");
        Ok(Scope::new(user.map_or("", |user| user.to_str().unwrap())))
    })
}

#[tokio::test]
async fn lengths_and_offsets_are_plain_numbers() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    for number in [
        "+5",
        "-5",
        "05",
        "5.0",
        "5e1",
        "0x5",
        " ",
        "",
        "5,5",
        "18446744073709551616",
    ] {
        let length = [("upload-length", number)];
        assert_code(&client.post(&length, "").await, 400, "invalid_field");
        let bytes = [("content-type", BYTES), ("upload-offset", number)];
        let answer = client.send("PATCH", &url, &bytes, "hello").await;
        assert_code(&answer, 400, "invalid_field");
        let answer = client.patch_with(&url, 0, &length, "hello").await;
        assert_code(&answer, 400, "invalid_field");
    }
    let twice = [("upload-length", "5"), ("upload-length", "5")];
    assert_code(&client.post(&twice, "").await, 400, "conflicting_field");
    let twice = [("upload-offset", "0")];
    let answer = client.patch_with(&url, 0, &twice, "hello").await;
    assert_code(&answer, 400, "conflicting_field");
    for large in [
        "9223372036854775808",
        "18446744073709551615",
        "1099511627777",
    ] {
        let answer = client.post(&[("upload-length", large)], "").await;
        assert_code(&answer, 413, "file_too_large");
        let bytes = [("content-type", BYTES), ("upload-offset", large)];
        let answer = client.send("PATCH", &url, &bytes, "").await;
        assert_code(&answer, 409, "offset");
    }
    for missing in [
        &[][..],
        &[("upload-defer-length", "0")],
        &[("upload-defer-length", "true")],
    ] {
        let answer = client.post(missing, "").await;
        assert_eq!(answer.status, 400, "{answer:?}");
    }
    let both = [("upload-defer-length", "1"), ("upload-length", "5")];
    assert_code(&client.post(&both, "").await, 400, "invalid_field");
    let no_offset = [("content-type", BYTES)];
    let answer = client.send("PATCH", &url, &no_offset, "hello").await;
    assert_code(&answer, 400, "missing_field");
    assert_eq!(offset(&client.head(&url).await), 0);
}

#[tokio::test]
async fn only_bytes_at_the_end_are_appended() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    assert_eq!(client.patch(&url, 0, &LETTERS[..10]).await.status, 204);
    for at in [0, 9, 11, 25, 26] {
        let answer = client.patch(&url, at, "x").await;
        assert_code(&answer, 409, "offset");
        assert_eq!(offset(&answer), 10);
    }
    // More than is missing.
    assert_code(&client.patch(&url, 10, LETTERS).await, 413, "out_of_bounds");
    let more = [("upload-length", "5"), ("content-type", BYTES)];
    assert_code(&client.post(&more, "hello!").await, 413, "out_of_bounds");
    for content_type in [
        "application/octet-stream",
        "text/plain",
        "offset+octet-stream",
        "?",
    ] {
        let headers = [("content-type", content_type), ("upload-offset", "10")];
        let answer = client.send("PATCH", &url, &headers, "x").await;
        assert_code(&answer, 415, "media_type");
    }
    let answer = client
        .send("PATCH", &url, &[("upload-offset", "10")], "x")
        .await;
    assert_code(&answer, 415, "media_type");
    let coded = [("content-encoding", "gzip")];
    assert_code(
        &client.patch_with(&url, 10, &coded, "x").await,
        415,
        "content_encoding",
    );
    let head = client.head(&url).await;
    assert_eq!((head.status, offset(&head)), (200, 10));
    assert_eq!(client.patch(&url, 10, &LETTERS[10..]).await.status, 204);
    assert_eq!(server.contents(), [LETTERS]);
    let page = server
        .uploads
        .list(&Default::default(), None)
        .await
        .unwrap();
    assert!(page.uploads.is_empty(), "{page:?}");
}

#[tokio::test]
async fn a_url_is_of_use_in_its_scope_only() {
    let server = Server::with(scoped).await;
    let mut client = server.client().await;
    let alice = ("x-user", "alice");
    let url = client.create(&[alice, ("upload-length", "25")]).await;
    let patch = [("content-type", BYTES), ("upload-offset", "0")];
    let token = url.split('=').nth(1).unwrap();
    let upper = url.to_uppercase().replace("/FILES?UPLOAD", "/files?upload");
    let zeros = format!("/files?upload={}", "0".repeat(32));
    let forged = [
        url.clone(),
        zeros,
        upper,
        format!("/files?upload={token}0"),
        format!("/files?upload={token}&upload={token}"),
        "/files?upload=../../etc/passwd".to_owned(),
        "/files?upload=".to_owned(),
        "/files".to_owned(),
    ];
    for (index, forged) in forged.iter().enumerate() {
        // The right URL in another scope, and wrong ones in the right scope.
        let user = if index == 0 { ("x-user", "bob") } else { alice };
        for method in ["HEAD", "PATCH", "DELETE"] {
            let headers = [&[user][..], &patch].concat();
            let body = if method == "PATCH" { "hello" } else { "" };
            let answer = client.send(method, forged, &headers, body).await;
            assert_eq!(answer.status, 404, "{method} {forged} {answer:?}");
        }
    }
    let head = client.send("HEAD", &url, &[alice], "").await;
    assert_eq!((head.status, offset(&head)), (200, 0));
}

#[tokio::test]
async fn metadata_are_bounded() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let long = "QUFB".repeat(4096);
    let keys: Vec<_> = (0..65).map(|n| format!("k{n}")).collect();
    let name = "QUFB".repeat(400);
    for metadata in [
        &format!("a {long}"),
        &keys.join(","),
        &format!("filename {name}"),
        &format!("filetype {name}"),
        "a eA==,a eQ==",
        "a,a",
        "a e?==",
        "a eA== eQ==",
        ",",
        "a,,b",
    ] {
        let headers = [("upload-length", "5"), ("upload-metadata", metadata)];
        let answer = client.post(&headers, "").await;
        assert_code(&answer, 400, "invalid_field");
    }
    // Within the bounds, also as two headers.
    let keys = keys[1..].join(",");
    for metadata in [
        &[("upload-metadata", "")][..],
        &[("upload-metadata", keys.as_str())],
        &[("upload-metadata", "a eA=="), ("upload-metadata", "b eA==")],
    ] {
        let headers = [&[("upload-length", "0")], metadata].concat();
        assert_eq!(client.post(&headers, "").await.status, 201, "{metadata:?}");
    }
    let fields = server.deliveries()[2].upload.fields().to_vec();
    assert_eq!(fields, [("a".into(), "x".into()), ("b".into(), "x".into())]);
}

/// A path that begins with two slashes is a URL of another host.
#[tokio::test]
async fn a_location_never_names_another_host() {
    let server = Server::with(|layer| layer.with_matcher(|_| true)).await;
    let mut client = server.client().await;
    let answer = client
        .send(
            "POST",
            "//evil.example/files",
            &[("upload-length", "5")],
            "",
        )
        .await;
    assert_eq!(answer.status, 201);
    let url = header(&answer, "location");
    assert!(url.starts_with("/.//evil.example/files?upload="), "{url}");
    // A browser resolves the URL to this path.
    let url = url.strip_prefix("/.").unwrap().to_owned();
    assert_eq!(client.patch(&url, 0, "hello").await.status, 204);
    assert_eq!(server.contents(), ["hello"]);
}

/// A chunk client that picks the token as its identifier names another upload.
#[tokio::test]
async fn chunk_clients_do_not_reach_uploads_with_urls() {
    let server = Server::start().await;
    let mut client = server.client().await;
    let url = client.create_of(25).await;
    let token = url.split('=').nth(1).unwrap();
    let chunk = format!(
        "/files?resumableIdentifier={token}&resumableTotalSize=25&resumableChunkNumber=1\
         &resumableChunkSize=25"
    );
    assert_eq!(
        client.send_plain("POST", &chunk, &[], LETTERS).await.status,
        200
    );
    assert_eq!(offset(&client.head(&url).await), 0);
    assert_eq!(server.contents(), [LETTERS]);
}
