//! The clients that the layer knows.

use http::StatusCode;

use super::{
    dialect::{AnswerFormat, Dialect, IdentifierKind, LastChunk, Resume},
    field::Field,
};

/// The field for status requests of clients whose names have no common prefix.
const STATUS: &str = "uploadStatus";

/// Known clients.
impl Dialect {
    /// [Resumable.js], with the default options of the client.
    ///
    /// On by default. The name of the dialect is `Resumable.js`. The field for a [status
    /// request](Self::with_status) is `resumableStatus`.
    ///
    /// If the client is set up with other names, set the same names here. A field that the client
    /// does not send has an empty name. The identifier, the total size, the chunk number and the
    /// chunk size are required.
    ///
    /// | option of the client | setter |
    /// |---|---|
    /// | `parameterNamespace` | [`with_namespace`](Self::with_namespace) |
    /// | `chunkNumberParameterName` | [`with_chunk_number`](Self::with_chunk_number), from 1 |
    /// | `chunkSizeParameterName` | [`with_chunk_size`](Self::with_chunk_size) |
    /// | `currentChunkSizeParameterName` | [`with_chunk_length`](Self::with_chunk_length) |
    /// | `totalSizeParameterName` | [`with_total_size`](Self::with_total_size) |
    /// | `typeParameterName` | [`with_content_type`](Self::with_content_type) |
    /// | `identifierParameterName` | [`with_identifier`](Self::with_identifier) |
    /// | `fileNameParameterName` | [`with_file_name`](Self::with_file_name) |
    /// | `relativePathParameterName` | [`with_relative_path`](Self::with_relative_path) |
    /// | `totalChunksParameterName` | [`with_total_chunks`](Self::with_total_chunks) |
    /// | `fileParameterName` | [`with_file_field`](Self::with_file_field) |
    ///
    /// ```
    /// use tower::{Layer, ServiceExt, service_fn};
    /// use tower_resumable::{Dialect, MemoryStore, ResumableLayer};
    /// # use http::{Request, Response};
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let inner = service_fn(async |_: Request<String>| {
    /// #     Ok::<_, std::io::Error>(Response::new(String::new()))
    /// # });
    /// // new Resumable({ parameterNamespace: 'up_', identifierParameterName: 'id', … })
    /// let dialect = Dialect::resumable_js().with_namespace("up_").with_identifier("id");
    /// let layer = ResumableLayer::new(MemoryStore::default()).with_protocol(dialect);
    ///
    /// let test = "/upload?up_id=1-a&up_resumableTotalSize=1\
    ///             &up_resumableChunkNumber=1&up_resumableChunkSize=1024";
    /// let test = Request::get(test).body(String::new())?;
    /// let response = layer.layer(inner).oneshot(test).await?;
    /// assert_eq!(response.status(), 204); // The chunk is not stored yet.
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// [Resumable.js]: https://github.com/23/resumable.js
    pub fn resumable_js() -> Self {
        Self::new(Self::RESUMABLE_JS)
            .with_identifier("resumableIdentifier")
            .with_total_size("resumableTotalSize")
            .with_chunk_number("resumableChunkNumber", 1)
            .with_chunk_size("resumableChunkSize")
            .with_chunk_length("resumableCurrentChunkSize")
            .with_total_chunks("resumableTotalChunks")
            .with_file_name("resumableFilename")
            .with_relative_path("resumableRelativePath")
            .with_content_type("resumableType")
            .with_status("resumableStatus")
            .with_base64(true)
    }

    pub(super) const RESUMABLE_JS: &str = "Resumable.js";

    /// [flow.js] and its wrappers (ng-flow, ngx-flow, …). The client has no options for its names.
    ///
    /// On by default. The field for a [status request](Self::with_status) is `flowStatus`.
    ///
    /// [flow.js]: https://github.com/flowjs/flow.js
    pub fn flow_js() -> Self {
        Self::new("flow.js")
            .with_identifier("flowIdentifier")
            .with_total_size("flowTotalSize")
            .with_chunk_number("flowChunkNumber", 1)
            .with_chunk_size("flowChunkSize")
            .with_chunk_length("flowCurrentChunkSize")
            .with_total_chunks("flowTotalChunks")
            .with_file_name("flowFilename")
            .with_relative_path("flowRelativePath")
            .with_content_type(Field::part_media_type())
            .with_status("flowStatus")
            .with_form_tests(true)
            // With `maxChunkRetries` the client sends the chunk again after 400.
            .with_refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE)
    }

    /// [simple-uploader.js] and vue-simple-uploader.
    ///
    /// Add it with [`with_protocol`](crate::ResumableLayer::with_protocol): an application could
    /// use its names (`identifier`, `filename`, …) for something else. The field for a status
    /// request is `uploadStatus`.
    ///
    /// With the option `checkChunkUploadedByResponse` the client sends one test for all chunks. It
    /// needs [`with_list_tests("uploaded")`](Self::with_list_tests). Without that option the client
    /// would take the answer for a chunk that is stored.
    ///
    /// ```js
    /// checkChunkUploadedByResponse: (chunk, message) =>
    ///   JSON.parse(message).uploaded.includes(chunk.offset + 1)
    /// ```
    ///
    /// [simple-uploader.js]: https://github.com/simple-uploader/Uploader
    pub fn simple_uploader() -> Self {
        Self::new("simple-uploader")
            .with_identifier("identifier")
            .with_total_size("totalSize")
            .with_chunk_number("chunkNumber", 1)
            .with_chunk_size("chunkSize")
            .with_chunk_length("currentChunkSize")
            .with_total_chunks("totalChunks")
            .with_file_name("filename")
            .with_relative_path("relativePath")
            .with_content_type(Field::part_media_type())
            .with_status(STATUS)
            .with_form_tests(true)
            // The client sends the chunk again after 400.
            .with_refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE)
    }

    /// [Dropzone] with `chunking: true`.
    ///
    /// On by default. The client sends a file that is not larger than its `chunkSize` as an
    /// ordinary form, which needs [`Protocol::plain`](crate::Protocol::plain). The field for a
    /// [status request](Self::with_status) is `dzstatus`.
    ///
    /// Chunks together with `resizeWidth`, `resizeHeight` or another `transformFile` do not work:
    /// the client cuts the changed file, and declares the length of the original one. The first
    /// chunk is refused with 400. Resize such files with `chunking: false`. A function as
    /// option `params` has to return the fields of the client too.
    ///
    /// [Dropzone]: https://docs.dropzone.dev
    pub fn dropzone() -> Self {
        Self::new("Dropzone")
            .with_identifier("dzuuid")
            .with_identifier_kind(IdentifierKind::Unique)
            .with_total_size("dztotalfilesize")
            .with_offset("dzchunkbyteoffset")
            .with_chunk_number("dzchunkindex", 0)
            .with_chunk_size("dzchunksize")
            .with_total_chunks("dztotalchunkcount")
            .with_file_name(Field::part_file_name())
            .with_status("dzstatus")
            .with_last_chunk(LastChunk::Rest)
    }

    /// [Fine Uploader] with or without `chunking.enabled`, including `paramsInBody` and `resume`.
    ///
    /// On by default. `chunking.success.endpoint` can be the path of the uploads, or a route of the
    /// application: the file has been delivered by then. The client needs `"success": true` in
    /// every answer, so the answer of the inner service is [changed](AnswerFormat::JsonSuccess).
    /// The field for a [status request](Self::with_status) is `qqstatus`. If the layer answers at
    /// several paths, the success endpoint has to be the path of the chunks.
    ///
    /// [Fine Uploader]: https://docs.fineuploader.com
    pub fn fine_uploader() -> Self {
        Self::new("Fine Uploader")
            .with_identifier("qquuid")
            .with_identifier_kind(IdentifierKind::Unique)
            .with_total_size("qqtotalfilesize")
            .with_offset("qqpartbyteoffset")
            .with_chunk_number("qqpartindex", 0)
            .with_chunk_length("qqchunksize")
            .with_total_chunks("qqtotalparts")
            .with_file_name("qqfilename")
            // The file name again, if the body is the chunk.
            .with_ignored("qqfile")
            .with_resumed("qqresume")
            .with_status("qqstatus")
            .with_file_field("qqfile")
            .with_whole_files(true)
            .with_final_question(true)
            .with_answers(AnswerFormat::JsonSuccess)
    }

    /// [Plupload] with `send_chunk_number: false`. Otherwise it does not send the length of the
    /// file.
    ///
    /// Add it with [`with_protocol`](crate::ResumableLayer::with_protocol). The file name is its
    /// only identifier. `unique_names: true` keeps files of the same name apart. So does a
    /// parameter of the application (`multipart_params`) that is set as
    /// [identifier](Self::with_identifier).
    ///
    /// [Plupload]: https://www.plupload.com/docs
    pub fn plupload() -> Self {
        Self::new("Plupload")
            .with_identifier("name")
            .with_total_size("total")
            .with_offset("offset")
            .with_file_name("name")
            .with_status(STATUS)
            .with_whole_files(true)
    }

    /// [WebUploader] with `chunked: true` and this `chunkSize` in bytes, which it does not send.
    ///
    /// Add it with [`with_protocol`](crate::ResumableLayer::with_protocol). The client's `id` is
    /// not unique. A file is identified by its name, size and date, or by a parameter of the
    /// application (`formData`) that is set as [identifier](Self::with_identifier).
    ///
    /// [WebUploader]: https://github.com/fex-team/webuploader
    pub fn web_uploader(chunk_size: u64) -> Self {
        Self::new("WebUploader")
            .with_identifier("lastModifiedDate")
            .with_total_size("size")
            .with_chunk_number("chunk", 0)
            .with_fixed_chunk_size(chunk_size)
            .with_total_chunks("chunks")
            .with_file_name("name")
            .with_content_type("type")
            .with_ignored("id")
            .with_status(STATUS)
            .with_last_chunk(LastChunk::Rest)
            .with_whole_files(true)
    }

    /// [blueimp's jQuery File Upload] with `maxChunkSize`, and other clients that send
    /// `Content-Range` and a file name in `Content-Disposition`.
    ///
    /// Add it with [`with_protocol`](crate::ResumableLayer::with_protocol). The file name is the
    /// only identifier. A parameter of the application (`formData`) can be set as
    /// [identifier](Self::with_identifier). The answer to each chunk says in `Range` how much is
    /// stored, and a client that starts again continues after that.
    ///
    /// [blueimp's jQuery File Upload]: https://github.com/blueimp/jQuery-File-Upload
    pub fn blueimp() -> Self {
        Self::new("blueimp")
            .with_identifier(Field::disposition_file_name())
            .with_total_size(Field::content_range_total())
            .with_offset(Field::content_range_first())
            .with_chunk_length(Field::content_range_length())
            .with_file_name(Field::disposition_file_name())
            .with_status(STATUS)
            .with_file_field("files[]")
            .with_whole_files(true)
            .with_resume(Resume::ByRange)
    }

    /// [FilePond] with `chunkUploads: true`. It asks for an identifier first, and continues where a
    /// `HEAD` request says.
    ///
    /// Add it with [`with_protocol`](crate::ResumableLayer::with_protocol). A file in chunks is
    /// delivered with a `PATCH` request, a whole file with a `POST` request. The client's
    /// `serverId` is then [`identifier()`](crate::CompletedUpload::identifier), or, for a whole
    /// file, the answer of the inner service.
    ///
    /// `server.revert`, for a file that has been delivered, belongs to the application: FilePond
    /// sends a `DELETE` request with the `serverId` as its body, and the layer passes it on. Give
    /// it a route of its own, or handle `DELETE` in the route of the uploads. FilePond shows a
    /// file as reverted whatever the answer is.
    ///
    /// [FilePond]: https://pqina.nl/filepond/docs/api/server/#process-chunks
    pub fn filepond() -> Self {
        Self::new("FilePond")
            .with_identifier("patch")
            .with_identifier_kind(IdentifierKind::ByServer)
            .with_total_size(Field::header("upload-length"))
            .with_offset(Field::header("upload-offset"))
            .with_file_name(Field::header("upload-name"))
            .with_status(STATUS)
            .with_file_field("filepond")
            .with_trailing_empty_chunk(true)
            .with_resume(Resume::ByUploadOffset)
    }

    /// [huge-uploader] with this `chunkSize` in bytes. (The option of the client is in units of
    /// 1,000,000 bytes.)
    ///
    /// Add it with [`with_protocol`](crate::ResumableLayer::with_protocol). The client sends
    /// neither the length nor the name of the file, so add headers:
    ///
    /// ```js
    /// new HugeUploader({ endpoint: '/upload', file, headers: {
    ///   'uploader-file-size': file.size,
    ///   'uploader-file-name': encodeURIComponent(file.name),
    /// } })
    /// ```
    ///
    /// [huge-uploader]: https://github.com/Buzut/huge-uploader
    pub fn huge_uploader(chunk_size: u64) -> Self {
        Self::new("huge-uploader")
            .with_identifier(Field::header("uploader-file-id"))
            .with_total_size(Field::header("uploader-file-size"))
            .with_chunk_number(Field::header("uploader-chunk-number"), 0)
            .with_fixed_chunk_size(chunk_size)
            .with_total_chunks(Field::header("uploader-chunks-total"))
            .with_file_name(Field::header_percent_encoded("uploader-file-name"))
            .with_status(STATUS)
            .with_last_chunk(LastChunk::Rest)
    }

    /// [bootstrap-fileinput] with `enableResumableUpload: true`, including `testUrl`.
    ///
    /// Add it with [`with_protocol`](crate::ResumableLayer::with_protocol): an application could
    /// use its names (`fileId`, `fileName`, …) for something else. The client needs `chunkIndex` in
    /// every answer, so the answer of the inner service is
    /// [changed](AnswerFormat::JsonChunkNumber).
    ///
    /// [bootstrap-fileinput]: https://plugins.krajee.com/file-resumable-upload-demo
    pub fn bootstrap_fileinput() -> Self {
        Self::new("bootstrap-fileinput")
            .with_identifier("fileId")
            .with_total_size("fileSize")
            .with_offset("chunkSizeStart")
            .with_chunk_number("chunkIndex", 0)
            .with_chunk_size("chunkSize")
            .with_total_chunks("chunkCount")
            .with_file_name("fileName")
            .with_relative_path("fileRelativePath")
            .with_ignored("retryCount")
            .with_status(STATUS)
            .with_file_field("fileBlob")
            .with_last_chunk(LastChunk::Rest)
            .with_form_tests(true)
            .with_list_tests("chunksUploaded")
            .with_answers(AnswerFormat::JsonChunkNumber("chunkIndex".into()))
    }
}
