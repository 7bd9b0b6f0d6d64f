//! Chunks as base64, with and without the head of a data URL.

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, Engine as _};
use http::Request;
use tower_resumable::{MemoryStore, ResumableLayer};

use super::{
    Input,
    forms::text_form,
    server::{Inner, Script, Server, block_on},
};

/// The layer decodes the same bytes as the `base64` crate does from the whole text, however the
/// body is divided.
pub fn data_url(data: &[u8]) {
    let mut input = Input::new(data);
    let cuts: Vec<usize> = (0..input.below(8)).map(|_| input.u16().into()).collect();
    let text = input.rest();
    let is_delimiter = |window: &[u8]| window == b"\r\n--X";
    if text.starts_with(b"--X") || text.windows(5).any(is_delimiter) {
        return;
    }
    let form = text_form(text);
    let expected = decoded(text);
    let total = expected.as_ref().map_or(1 << 20, Vec::len);
    for body in [
        Script::whole(&form),
        Script::cut(&form, cuts, true),
        Script::cut(&form, 0..form.len().min(1 << 10), false),
    ] {
        let server = Server::new(
            ResumableLayer::new(MemoryStore::default()).with_list_parameter("everything"),
            Inner::default(),
        );
        block_on(async {
            let request = Request::post(format!(
                "/upload?resumableIdentifier=a&resumableChunkNumber=1&resumableTotalSize={total}\
                 &resumableChunkSize={}&resumableFilename=a",
                total.max(1)
            ));
            let request = request.header("content-type", "multipart/form-data; boundary=X");
            let answer = server.send_bounded(request.body(body).unwrap()).await;
            answer.check();
            let deliveries = server.inner.take();
            match &expected {
                Some(bytes) => {
                    assert_eq!(answer.status, 200, "{}", text.escape_ascii());
                    assert!(deliveries[0].is(bytes), "{}", text.escape_ascii());
                }
                None => {
                    assert_eq!(answer.code(), Some("base64"), "{}", text.escape_ascii());
                    assert!(deliveries.is_empty());
                    let list = Request::get("/upload?everything").body(Script::default());
                    let list = server.send_bounded(list.unwrap()).await.json();
                    assert_eq!(list["uploads"].as_array().map(Vec::len), Some(0));
                }
            }
        });
    }
}

/// The decoded bytes of the whole text.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let digits = match text.get(..5) {
        Some(word) if word.eq_ignore_ascii_case(b"data:") => {
            let comma = text.iter().position(|byte| *byte == b',')?;
            let head = &text[5..comma];
            let is_base64 =
                head.len() >= 7 && head[head.len() - 7..].eq_ignore_ascii_case(b";base64");
            if head.len() > 256 || !is_base64 {
                return None;
            }
            &text[comma + 1..]
        }
        _ => text,
    };
    let is_blank = |byte: &u8| b" \t\r\n".contains(byte);
    // The white space may be 256 bytes longer than the digits so far, no more.
    let mut ahead = 0usize;
    for byte in digits {
        match byte {
            byte if is_blank(byte) && ahead == 256 => return None,
            byte if is_blank(byte) => ahead += 1,
            b'=' => {}
            _ => ahead = ahead.saturating_sub(1),
        }
    }
    let digits: Vec<u8> = digits.iter().copied().filter(|b| !is_blank(b)).collect();
    if digits.contains(&b'=') {
        BASE64_STANDARD.decode(digits).ok()
    } else {
        BASE64_STANDARD_NO_PAD.decode(digits).ok()
    }
}
