use super::Dialect;

/// The field names of Resumable.js, as the client is set up.
///
/// Needed only where the client's options differ from its defaults: each setter is named after the
/// option of the client. An empty name stands for a parameter that the client drops; identifier,
/// total size, chunk number and chunk size have to be there.
///
/// ```
/// use tower::{Layer, ServiceExt, service_fn};
/// use tower_resumable::{MemoryStore, ResumableJs, ResumableLayer};
/// # use http::{Request, Response};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let inner = service_fn(async |_: Request<String>| {
/// #     Ok::<_, std::io::Error>(Response::new(String::new()))
/// # });
/// // new Resumable({ parameterNamespace: 'up_', identifierParameterName: 'id', … })
/// let dialect = ResumableJs::new().with_namespace("up_").with_identifier_name("id");
/// let layer = ResumableLayer::new(MemoryStore::default()).with_dialect(dialect);
///
/// let test = "/upload?up_id=1-a&up_resumableTotalSize=1\
///             &up_resumableChunkNumber=1&up_resumableChunkSize=1024";
/// let test = Request::get(test).body(String::new())?;
/// let answer = layer.layer(inner).oneshot(test).await?;
/// assert_eq!(answer.status(), 204); // it is not stored yet: send it
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct ResumableJs {
    namespace: String,
    table: Dialect,
}

impl Default for ResumableJs {
    fn default() -> Self {
        Self {
            namespace: String::new(),
            table: Dialect::new(Self::NAME)
                .with_identifier("resumableIdentifier")
                .with_total_size("resumableTotalSize")
                .with_chunk_number("resumableChunkNumber", 1)
                .with_chunk_size("resumableChunkSize")
                .with_chunk_length("resumableCurrentChunkSize")
                .with_file_name("resumableFilename")
                .with_relative_path("resumableRelativePath")
                .with_content_type("resumableType")
                // The most used release sends wrong ones.
                .with_unused("resumableTotalChunks")
                .with_status("resumableStatus")
                .with_base64(true),
        }
    }
}

impl Dialect {
    /// The names of the fields, by what Resumable.js' options for them begin with.
    pub(crate) fn client_names(&self) -> [(&'static str, &str); 10] {
        let names = &self.names;
        [
            ("chunkNumber", &names.chunk_number),
            ("chunkSize", &names.chunk_size),
            ("currentChunkSize", &names.chunk_length),
            ("totalSize", &names.total_size),
            ("type", &names.content_type),
            ("identifier", &names.identifier),
            ("fileName", &names.file_name),
            ("relativePath", &names.relative_path),
            (
                "totalChunks",
                names.unused.first().map_or("", String::as_str),
            ),
            ("file", &names.file),
        ]
    }
}

impl From<ResumableJs> for Dialect {
    fn from(client: ResumableJs) -> Self {
        client.table
    }
}

/// The setters.
impl ResumableJs {
    pub(crate) const NAME: &str = "Resumable.js";

    /// The client's defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// `parameterNamespace`: comes before every name, the application's own ones and the file's
    /// included.
    pub fn with_namespace(mut self, namespace: impl Into<String>) -> Self {
        let (old, new) = (self.namespace.len(), namespace.into());
        for name in self.table.names.all_mut() {
            name.replace_range(..old, &new);
        }
        self.namespace = new;
        self
    }

    /// `chunkNumberParameterName`
    pub fn with_chunk_number_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.chunk_number = self.namespaced(name);
        self
    }

    /// `chunkSizeParameterName`
    pub fn with_chunk_size_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.chunk_size = self.namespaced(name);
        self
    }

    /// `currentChunkSizeParameterName`
    pub fn with_current_chunk_size_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.chunk_length = self.namespaced(name);
        self
    }

    /// `totalSizeParameterName`
    pub fn with_total_size_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.total_size = self.namespaced(name);
        self
    }

    /// `typeParameterName`
    pub fn with_type_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.content_type = self.namespaced(name);
        self
    }

    /// `identifierParameterName`
    pub fn with_identifier_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.identifier = self.namespaced(name);
        self
    }

    /// `fileNameParameterName`
    pub fn with_file_name_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.file_name = self.namespaced(name);
        self
    }

    /// `relativePathParameterName`
    pub fn with_relative_path_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.relative_path = self.namespaced(name);
        self
    }

    /// `totalChunksParameterName`. Its value is never used: the most used release sends wrong ones.
    pub fn with_total_chunks_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.unused = vec![self.namespaced(name)];
        self
    }

    /// `fileParameterName`
    pub fn with_file_parameter_name(mut self, name: impl Into<String>) -> Self {
        self.table.names.file = self.namespaced(name);
        self
    }

    /// Whether a chunk must have the size that the client declares; `true` by default. To be set to
    /// `false` for clients that transform the bytes of a chunk before they send it.
    pub fn with_length_check(mut self, check: bool) -> Self {
        self.table.length_check = check;
        self
    }

    fn namespaced(&self, name: impl Into<String>) -> String {
        let mut name = name.into();
        if !name.is_empty() {
            name.insert_str(0, &self.namespace);
        }
        name
    }
}
