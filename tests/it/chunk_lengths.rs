//! A chunk whose length follows from its fields must have it.

use http::Request;

use crate::common::{Answer, File, FilePart, Server, form, multipart, uri};

/// Chunk `number` of a file of `total` bytes in chunks of ten, without `resumableCurrentChunkSize`.
fn fields(number: usize, total: usize) -> Vec<(String, String)> {
    let file = File::new("a.bin", total);
    let mut fields = file.fields(1);
    fields.retain(|(name, _)| name != "resumableCurrentChunkSize");
    fields[0].1 = number.to_string();
    fields
}

fn raw(number: usize, total: usize, bytes: usize) -> Request<Vec<u8>> {
    Request::post(uri(&fields(number, total)))
        .header("content-type", "application/octet-stream")
        .body(vec![b'x'; bytes])
        .unwrap()
}

fn in_form(number: usize, total: usize, bytes: usize) -> Request<Vec<u8>> {
    let fields = fields(number, total);
    let body = form(&fields, FilePart::named("a.bin"), &vec![b'x'; bytes]);
    multipart("/upload", body)
}

#[tokio::test]
async fn a_chunk_without_a_declared_length_has_one_of_its_layout() {
    for chunk in [raw, in_form] {
        // Number, total, and the lengths that are accepted.
        for (number, total, accepted) in [
            (1, 35, &[10][..]),
            (2, 35, &[10]),
            // The last one, with or without the rest of the file.
            (3, 35, &[10, 15]),
            (4, 35, &[5]),
            (1, 5, &[5]),
            (2, 20, &[10]),
        ] {
            for bytes in 0..20 {
                let server = Server::start().await;
                let Answer { status, body, .. } = server
                    .client()
                    .await
                    .send(chunk(number, total, bytes))
                    .await;
                let expected = match bytes {
                    _ if accepted.contains(&bytes) => 200,
                    // It can be sent again.
                    0 => 503,
                    _ => 400,
                };
                assert_eq!(status, expected, "{bytes} of {number} of {total}: {body}");
                let is_stored = !server.files().is_empty();
                assert_eq!(is_stored, expected == 200, "{bytes} of {number} of {total}");
            }
        }
    }
}
