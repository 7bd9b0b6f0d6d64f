//! Options of clients in a web page, made from the settings of the layer.

use serde_json::{Map, Value, json};

use super::{Dialect, Field};
use crate::{limits::Limits, protocol::Protocols};

/// Statuses at which the client stops. The layer refuses with 400 or 415. Proxies and other servers
/// send the others.
const PERMANENT: [u16; 7] = [400, 401, 403, 404, 413, 415, 501];

/// Milliseconds before a chunk is sent again.
const RETRY_INTERVAL: u64 = 1000;

const RETRIES: u32 = 100;

/// Options for clients of chunks that fit the settings of a layer.
///
/// They name its path, its limits, the names of the fields, and how to react to errors.
/// [`ResumableLayer::client_options`](crate::ResumableLayer::client_options) returns them.
///
/// Put them into a page, or let the page fetch them. Functions cannot be in JSON, so the page adds
/// the identifier of a file:
///
/// ```js
/// const r = new Resumable({
///   ...(await (await fetch('/upload-options')).json()),
///   generateUniqueIdentifier: file => `${file.size}-${file.lastModified}-${file.name}`,
/// });
/// ```
///
/// The identifier that Resumable.js, flow.js and simple-uploader make by default has only the size
/// and some characters of the name. A file that the user edits without a change of its size has
/// the same one. While the first version is unfinished, or its
/// [record](crate::Delivery::with_record_lifetime) is kept, chunks of the second one would be
/// taken for duplicates of the first. With `lastModified` in the identifier they are another
/// upload. All three clients have the option `generateUniqueIdentifier`.
///
/// ```
/// use tower_resumable::{Dialect, MemoryStore, ResumableLayer};
///
/// let layer = ResumableLayer::new(MemoryStore::default())
///     .with_path("/files/upload")
///     .with_protocol(Dialect::resumable_js().with_identifier("id"));
/// let options = layer.client_options().resumable_js(1 << 20);
/// let options: serde_json::Value = serde_json::from_str(&options)?;
/// assert_eq!(options["target"], "/files/upload");
/// assert_eq!(options["chunkSize"], 1 << 20);
/// assert_eq!(options["identifierParameterName"], "id");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ClientOptions {
    path: Option<String>,
    chunk_limit: u64,
    file_limit: u64,
    /// The names of Resumable.js' fields that are not its defaults.
    names: Map<String, Value>,
}

impl ClientOptions {
    /// The options of a layer with these settings. `path` is `None` if a matcher decides which
    /// requests are uploads.
    pub(crate) fn new(path: Option<&str>, limits: &Limits, protocols: &Protocols) -> Self {
        let dialect = protocols.named(Dialect::RESUMABLE_JS);
        Self {
            path: path.map(Into::into),
            chunk_limit: limits.chunk_size,
            file_limit: limits.file_size,
            names: dialect.map(changed_names).unwrap_or_default(),
        }
    }

    /// The options for `new Resumable(…)`, as a JSON object.
    ///
    /// `chunk_size` is in bytes. It is limited to half of [the limit](Limits::with_chunk_size),
    /// because the last chunk can be nearly twice as long.
    pub fn resumable_js(&self, chunk_size: u64) -> String {
        let mut options = self.common("target", chunk_size.min(self.chunk_limit / 2));
        options.extend(retries());
        // The client rejects empty files by default.
        options.insert("minFileSize".into(), 0.into());
        if self.file_limit < u64::MAX {
            options.insert("maxFileSize".into(), self.file_limit.into());
        }
        options.extend(self.names.clone());
        Value::Object(options).to_string()
    }

    /// The options for `new Flow(…)`, as a JSON object.
    ///
    /// `chunk_size` is in bytes. It is limited as for [`resumable_js`](Self::resumable_js).
    ///
    /// ```
    /// use tower_resumable::{Limits, MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_limits(Limits::default().with_chunk_size(1 << 20));
    /// let options = layer.client_options().flow_js(8 << 20);
    /// let options: serde_json::Value = serde_json::from_str(&options)?;
    /// assert_eq!(options["chunkSize"], 1 << 19);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn flow_js(&self, chunk_size: u64) -> String {
        let mut options = self.common("target", chunk_size.min(self.chunk_limit / 2));
        options.extend(retries());
        Value::Object(options).to_string()
    }

    /// The options for `new Dropzone(…)`, as a JSON object.
    ///
    /// `chunk_size` is in bytes. It is limited to [the limit](Limits::with_chunk_size).
    ///
    /// ```
    /// use tower_resumable::{Limits, MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_limits(Limits::default().with_file_size(5 << 30));
    /// let options = layer.client_options().dropzone(1 << 20);
    /// let options: serde_json::Value = serde_json::from_str(&options)?;
    /// assert_eq!(options["url"], "/upload");
    /// assert_eq!(options["maxFilesize"], 5120.0); // MiB
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn dropzone(&self, chunk_size: u64) -> String {
        let mut options = self.common("url", chunk_size.min(self.chunk_limit));
        let max_file_size = match self.file_limit {
            // The client's default is 256 MiB.
            u64::MAX => Value::Null,
            bytes => (bytes as f64 / (1 << 20) as f64).into(),
        };
        options.extend(object(json!({
            "chunking": true,
            "parallelChunkUploads": true,
            "retryChunks": true,
            "maxFilesize": max_file_size,
        })));
        Value::Object(options).to_string()
    }

    fn common(&self, target: &str, chunk_size: u64) -> Map<String, Value> {
        let mut options = Map::new();
        if let Some(path) = &self.path {
            options.insert(target.into(), path.as_str().into());
        }
        options.insert("chunkSize".into(), chunk_size.max(1).into());
        options
    }
}

fn retries() -> Map<String, Value> {
    object(json!({
        "permanentErrors": PERMANENT,
        "maxChunkRetries": RETRIES,
        "chunkRetryInterval": RETRY_INTERVAL,
    }))
}

/// The names that are not the client's defaults. A field that is dropped has an empty name.
fn changed_names(dialect: &Dialect) -> Map<String, Value> {
    let default = Dialect::resumable_js();
    let names = parameter_names(dialect).into_iter();
    names
        .zip(parameter_names(&default))
        .filter(|((_, name), (_, default))| name != default)
        .map(|((option, name), _)| (format!("{option}ParameterName"), name.into()))
        .collect()
}

/// The names of the fields, by the options of Resumable.js without `ParameterName`.
pub(super) fn parameter_names(dialect: &Dialect) -> [(&'static str, &str); 10] {
    let names = &dialect.names;
    let name = |field| Field::parameter(field).unwrap_or_default();
    [
        ("chunkNumber", name(&names.chunk_number)),
        ("chunkSize", name(&names.chunk_size)),
        ("currentChunkSize", name(&names.chunk_length)),
        ("totalSize", name(&names.total_size)),
        ("type", name(&names.content_type)),
        ("identifier", name(&names.identifier)),
        ("fileName", name(&names.file_name)),
        ("relativePath", name(&names.relative_path)),
        ("totalChunks", name(&names.total_chunks)),
        ("file", &dialect.file_field),
    ]
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
