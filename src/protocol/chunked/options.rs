//! The options of the clients in the page, made from how the layer is set up.

use serde_json::{Map, Value, json};

use crate::{Dialect, ResumableLayer, config::Config};

/// What the client shall not send again. The layer refuses with 400 or 415; the others come from what
/// is around it.
const PERMANENT: [u16; 7] = [400, 401, 403, 404, 413, 415, 501];

/// Milliseconds before a chunk is sent again.
const RETRY_INTERVAL: u64 = 1000;

const RETRIES: u32 = 100;

/// Options for the clients, so that page and server cannot disagree.
impl ResumableLayer {
    /// The options for `new Resumable(…)` that fit this layer, as a JSON object: its path, its limits,
    /// the names of the fields, and what to do about errors.
    ///
    /// `chunk_size` is in bytes; it is made smaller if the last chunk, which can be nearly twice as
    /// long, would be over [the limit](crate::Limits::chunk_size).
    ///
    /// ```
    /// use tower_resumable::{MemoryStore, ResumableJs, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_path("/files/upload")
    ///     .with_dialect(ResumableJs::new().with_identifier_name("id"));
    /// let options: serde_json::Value = serde_json::from_str(&layer.resumable_js_options(1 << 20))?;
    /// assert_eq!(options["target"], "/files/upload");
    /// assert_eq!(options["chunkSize"], 1 << 20);
    /// assert_eq!(options["identifierParameterName"], "id");
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    ///
    /// The page gets it in a `<script>`, or asks for it:
    ///
    /// ```js
    /// const r = new Resumable(await (await fetch('/upload-options')).json());
    /// ```
    pub fn resumable_js_options(&self, chunk_size: u64) -> String {
        let config = &self.engine.config;
        let mut options = common(
            config,
            "target",
            chunk_size.min(config.limits.chunk_size / 2),
        );
        options.extend(retries());
        // An empty file is a file too.
        options.insert("minFileSize".into(), 0.into());
        if config.limits.file_size < u64::MAX {
            options.insert("maxFileSize".into(), config.limits.file_size.into());
        }
        if let Some(dialect) = config.dialects.named(crate::ResumableJs::NAME) {
            options.extend(names(dialect));
        }
        Value::Object(options).to_string()
    }

    /// The options for `new Flow(…)` that fit this layer, as a JSON object; see
    /// [`resumable_js_options`](Self::resumable_js_options).
    ///
    /// ```
    /// use tower_resumable::{Limits, MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_limits(Limits::default().chunk_size(1 << 20));
    /// let options: serde_json::Value = serde_json::from_str(&layer.flow_js_options(8 << 20))?;
    /// assert_eq!(options["chunkSize"], 1 << 19);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn flow_js_options(&self, chunk_size: u64) -> String {
        let config = &self.engine.config;
        let mut options = common(
            config,
            "target",
            chunk_size.min(config.limits.chunk_size / 2),
        );
        options.extend(retries());
        Value::Object(options).to_string()
    }

    /// The options for `new Dropzone(…)` that fit this layer, as a JSON object; see
    /// [`resumable_js_options`](Self::resumable_js_options).
    ///
    /// ```
    /// use tower_resumable::{Limits, MemoryStore, ResumableLayer};
    ///
    /// let layer = ResumableLayer::new(MemoryStore::default())
    ///     .with_limits(Limits::default().file_size(5 << 30));
    /// let options: serde_json::Value = serde_json::from_str(&layer.dropzone_options(1 << 20))?;
    /// assert_eq!(options["url"], "/upload");
    /// assert_eq!(options["maxFilesize"], 5120.0); // MiB
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn dropzone_options(&self, chunk_size: u64) -> String {
        let config = &self.engine.config;
        let mut options = common(config, "url", chunk_size.min(config.limits.chunk_size));
        let max_file_size = match config.limits.file_size {
            // Its default would be 256.
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
}

fn common(config: &Config, target: &str, chunk_size: u64) -> Map<String, Value> {
    let mut options = Map::new();
    // A matcher has no path to show.
    if let (None, Some(path)) = (&config.matcher, config.paths.first()) {
        options.insert(target.into(), path.as_str().into());
    }
    options.insert("chunkSize".into(), chunk_size.max(1).into());
    options
}

fn retries() -> Map<String, Value> {
    object(json!({
        "permanentErrors": PERMANENT,
        "maxChunkRetries": RETRIES,
        "chunkRetryInterval": RETRY_INTERVAL,
    }))
}

/// The names that are not the client's defaults; one that is dropped is empty.
fn names(dialect: &Dialect) -> Map<String, Value> {
    let default = Dialect::from(crate::ResumableJs::default());
    let ours = dialect.client_names().into_iter();
    ours.zip(default.client_names())
        .filter(|((_, name), (_, default))| name != default)
        .map(|((option, name), _)| (format!("{option}ParameterName"), name.into()))
        .collect()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        _ => Map::new(),
    }
}
