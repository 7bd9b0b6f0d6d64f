//! The requests of Resumable.js: a probe, and a chunk as a form, as raw bytes or as base64.

use std::{
    future::ready,
    io::{self, SeekFrom},
    sync::{Arc, OnceLock},
    time::Instant,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, TryStreamExt, stream};
use http::{Request, header};
use http_body_util::{BodyExt, Empty, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame;
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
};

use crate::{
    Error, Fields, random,
    upload::{Chunk, Upload},
};

/// How many bytes of a file each connection keeps in memory. Base64 needs a multiple of three.
const PIECE: u64 = 3 << 16;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Upload<'_> {
    pub fn probe_request(&self, chunk: Chunk) -> Result<Request<Body>, Error> {
        let mut fields = self.options.fields.clone();
        fields.extend(self.fields(chunk));
        let mut request = Request::get(self.target(&fields))
            .body(Empty::new().map_err(|never| match never {}).boxed_unsync())?;
        request.headers_mut().extend(self.options.headers.clone());
        Ok(request)
    }

    pub async fn chunk_request(
        &self,
        chunk: Chunk,
        sent: Arc<OnceLock<Instant>>,
    ) -> Result<Request<Body>, Error> {
        let mut fields = self.fields(chunk);
        for (name, value) in &self.options.fields {
            // As in Resumable.js, a field of the same name replaces the built-in field.
            match fields.iter_mut().find(|field| field.0 == *name) {
                Some(field) => field.1.clone_from(value),
                None => fields.push((name.clone(), value.clone())),
            }
        }
        let boundary = format!("----WebKitFormBoundary{:016x}", random());
        let (before, after, content_type) = if self.options.octet {
            (
                String::new(),
                String::new(),
                "application/octet-stream".to_owned(),
            )
        } else {
            (
                self.parts_before_bytes(&fields, &boundary),
                format!("\r\n--{boundary}--\r\n"),
                format!("multipart/form-data; boundary={boundary}"),
            )
        };
        let payload = if self.options.base64 {
            chunk.length.div_ceil(3) * 4
        } else {
            chunk.length
        };
        let length = (before.len() + after.len()) as u64 + payload;

        let mut file = File::open(self.path).await?;
        file.seek(SeekFrom::Start(chunk.offset)).await?;
        let mut left = length;
        let body = stream::once(ready(Ok(Bytes::from(before))))
            .chain(pieces(file, chunk.length, self.options.base64))
            .chain(stream::once(ready(Ok(Bytes::from(after)))))
            .inspect_ok(move |piece| {
                left -= piece.len() as u64;
                if left == 0 {
                    let _ = sent.set(Instant::now());
                }
            });
        let mut request = Request::post(self.target(&fields))
            .header(header::CONTENT_TYPE, content_type)
            // The length of a stream is unknown. Without this, hyper would send a chunked body.
            .header(header::CONTENT_LENGTH, length)
            .body(StreamBody::new(body.map_ok(Frame::data)).boxed_unsync())?;
        request.headers_mut().extend(self.options.headers.clone());
        Ok(request)
    }

    fn fields(&self, chunk: Chunk) -> Fields {
        [
            ("ChunkNumber", chunk.number.to_string()),
            ("ChunkSize", self.options.chunk_size.to_string()),
            ("CurrentChunkSize", chunk.length.to_string()),
            ("TotalSize", self.size.to_string()),
            ("Type", String::new()),
            ("Identifier", self.identifier.clone()),
            ("Filename", self.name.clone()),
            ("RelativePath", self.relative_path.clone()),
            ("TotalChunks", self.chunks.to_string()),
        ]
        .map(|(name, value)| (format!("resumable{name}"), value))
        .into()
    }

    /// The path and the query of a request.
    fn target(&self, fields: &Fields) -> String {
        let url = &self.options.url;
        let mut target = url
            .path_and_query()
            .map_or("/", |it| it.as_str())
            .to_owned();
        for (name, value) in fields {
            target.push(if target.contains('?') { '&' } else { '?' });
            target += &format!("{}={}", encoded(name), encoded(value));
        }
        target
    }

    fn parts_before_bytes(&self, fields: &Fields, boundary: &str) -> String {
        let part = format!("--{boundary}\r\nContent-Disposition: form-data; name=");
        let mut text = String::new();
        for (name, value) in fields {
            let value = value.replace("\r\n", "\n").replace('\n', "\r\n");
            text += &format!("{part}{}\r\n\r\n{value}\r\n", quoted(name));
        }
        text += &if self.options.base64 {
            format!("{part}\"file\"\r\n\r\ndata:application/octet-stream;base64,")
        } else {
            let name = quoted(&self.name);
            let head = "Content-Type: application/octet-stream";
            format!("{part}\"file\"; filename={name}\r\n{head}\r\n\r\n")
        };
        text
    }
}

/// Reads a chunk piece by piece.
fn pieces(file: File, length: u64, base64: bool) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((file, length), move |(mut file, left)| async move {
        if left == 0 {
            return Ok(None);
        }
        let mut piece = vec![0; left.min(PIECE) as usize];
        file.read_exact(&mut piece).await?;
        let left = left - piece.len() as u64;
        if base64 {
            piece = BASE64_STANDARD.encode(&piece).into();
        }
        Ok(Some((piece.into(), (file, left))))
    })
}

/// Quotes a name as browsers do in the head of a part.
fn quoted(name: &str) -> String {
    let name = name.replace('\n', "%0A").replace('\r', "%0D");
    format!("\"{}\"", name.replace('"', "%22"))
}

/// Encodes a text as `encodeURIComponent` of JavaScript does.
fn encoded(text: &str) -> String {
    let encode = |byte: u8| {
        if byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(encode).collect()
}
