//! Uploads and records as JSON, for the stores that write them down.

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use serde_json::{Value, json};

use super::{Record, Upload, UploadKey, from_unix_ms, unix_ms};

pub(super) fn upload_to_json(upload: &Upload) -> Value {
    json!({
        "key": upload.key.to_string(),
        "scope": upload.scope,
        "identifier": upload.identifier,
        "total": upload.total,
        "chunk_size": upload.chunk_size,
        "file_name": upload.file_name,
        "relative_path": upload.relative_path,
        "content_type": upload.content_type,
        "fields": upload.fields,
    })
}

pub(super) fn upload_from_json(value: &Value) -> Option<Upload> {
    let text = |name: &str| value[name].as_str().map(ToOwned::to_owned);
    let field = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
    Some(Upload {
        key: UploadKey::from_hex(value["key"].as_str()?)?,
        scope: text("scope")?,
        identifier: text("identifier")?,
        total: value["total"].as_u64()?,
        // What was written before there was one has none.
        chunk_size: value["chunk_size"].as_u64(),
        file_name: text("file_name"),
        relative_path: text("relative_path"),
        content_type: text("content_type"),
        fields: value["fields"]
            .as_array()?
            .iter()
            .map(field)
            .collect::<Option<_>>()?,
    })
}

pub(super) fn record_to_json(record: &Record) -> Value {
    let headers = record.headers.iter();
    json!({
        "delivered": record.delivered,
        "status": record.status,
        "headers": headers.map(|(n, v)| json!([n, BASE64_STANDARD.encode(v)])).collect::<Vec<_>>(),
        "body": record.body.as_ref().map(|body| BASE64_STANDARD.encode(body)),
        "size": record.size,
        "expires": unix_ms(record.expires),
    })
}

pub(super) fn record_from_json(value: &Value) -> Option<Record> {
    let bytes = |value: &Value| BASE64_STANDARD.decode(value.as_str()?).ok();
    let header = |pair: &Value| Some((pair[0].as_str()?.to_owned(), bytes(&pair[1])?));
    Some(Record {
        delivered: value["delivered"].as_bool()?,
        status: u16::try_from(value["status"].as_u64()?).ok()?,
        headers: value["headers"]
            .as_array()?
            .iter()
            .map(header)
            .collect::<Option<_>>()?,
        body: match &value["body"] {
            Value::Null => None,
            body => Some(Bytes::from(bytes(body)?)),
        },
        size: value["size"].as_u64()?,
        expires: from_unix_ms(Duration::from_millis(value["expires"].as_u64()?)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_before_there_were_chunk_sizes_is_read() {
        let mut upload = Upload {
            key: UploadKey::from_bytes([7; 32]),
            scope: "s".into(),
            identifier: "i".into(),
            total: 5,
            chunk_size: Some(3),
            file_name: None,
            relative_path: None,
            content_type: None,
            fields: Vec::new(),
        };
        let mut value = upload_to_json(&upload);
        assert_eq!(upload_from_json(&value).as_ref(), Some(&upload));
        value.as_object_mut().unwrap().remove("chunk_size").unwrap();
        upload.chunk_size = None;
        assert_eq!(upload_from_json(&value), Some(upload));
    }
}
