//! The clients that the layer knows, but for [`ResumableJs`](super::ResumableJs), which has options
//! for its names.

use http::StatusCode;

use super::{Dialect, InOrder, dialect::LastChunk, headers};

/// The parameter that makes a status request, of clients whose names have nothing in common.
const STATUS: &str = "uploadStatus";

impl Dialect {
    /// [flow.js] and its wrappers (ng-flow, ngx-flow, …), as it is: it has no options for its names.
    ///
    /// On by default. Its field for a [status request](crate::ResumableLayer) is `flowStatus`.
    ///
    /// [flow.js]: https://github.com/flowjs/flow.js
    pub fn flow_js() -> Self {
        let mut flow = Self::new("flow.js")
            .with_identifier("flowIdentifier")
            .with_total_size("flowTotalSize")
            .with_chunk_number("flowChunkNumber", 1)
            .with_chunk_size("flowChunkSize")
            .with_chunk_length("flowCurrentChunkSize")
            .with_file_name("flowFilename")
            .with_relative_path("flowRelativePath")
            .with_unused("flowTotalChunks")
            .with_status("flowStatus")
            // With `maxChunkRetries` it sends again what is answered with 400.
            .with_refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        flow.type_of_part = true;
        flow.form_tests = true;
        flow
    }

    /// [simple-uploader.js] and vue-simple-uploader.
    ///
    /// To be added with [`with_dialect`](crate::ResumableLayer::with_dialect), because its names
    /// (`identifier`, `filename`, …) could be the application's. Its field for a status request is
    /// `uploadStatus`.
    ///
    /// [simple-uploader.js]: https://github.com/simple-uploader/Uploader
    pub fn simple_uploader() -> Self {
        let mut simple = Self::new("simple-uploader")
            .with_identifier("identifier")
            .with_total_size("totalSize")
            .with_chunk_number("chunkNumber", 1)
            .with_chunk_size("chunkSize")
            .with_chunk_length("currentChunkSize")
            .with_file_name("filename")
            .with_relative_path("relativePath")
            .with_unused("totalChunks")
            .with_status(STATUS)
            // It sends again what is answered with 400.
            .with_refusal(StatusCode::UNSUPPORTED_MEDIA_TYPE);
        simple.type_of_part = true;
        simple.form_tests = true;
        simple
    }

    /// For simple-uploader's option `checkChunkUploadedByResponse`, with which it sends one test for
    /// all chunks: each test is answered with 200 and the numbers of the chunks that are stored, in
    /// `uploaded`. Without that option the client would take it for "have it".
    ///
    /// ```js
    /// checkChunkUploadedByResponse: (chunk, message) =>
    ///   JSON.parse(message).uploaded.includes(chunk.offset + 1)
    /// ```
    pub fn with_list_tests(mut self) -> Self {
        self.answers.list = Some("uploaded");
        self
    }

    /// [Dropzone] with `chunking: true`.
    ///
    /// On by default. A file that is not larger than its `chunkSize` comes as an ordinary form,
    /// which is delivered like any other. Its field for a status request is `dzstatus`.
    ///
    /// [Dropzone]: https://docs.dropzone.dev
    pub fn dropzone() -> Self {
        let mut dropzone = Self::new("Dropzone")
            .with_identifier("dzuuid")
            .with_total_size("dztotalfilesize")
            .with_offset("dzchunkbyteoffset")
            .with_chunk_number("dzchunkindex", 0)
            .with_chunk_size("dzchunksize")
            .with_unused("dztotalchunkcount")
            .with_status("dzstatus");
        dropzone.unique_identifiers = true;
        dropzone.last_chunk = LastChunk::Rest;
        dropzone.name_of_part = true;
        dropzone
    }

    /// [Fine Uploader] with or without `chunking.enabled`, its `paramsInBody` and `resume` included.
    ///
    /// On by default. `chunking.success.endpoint` can be the path of the uploads, or a route of the
    /// application: by then the file is delivered. It needs `"success": true` in every answer, so the answer of the service
    /// behind the layer gets that: an object one more member, and of anything else an object is made,
    /// with the text in `answer`. Its field for a status request is `qqstatus`.
    ///
    /// [Fine Uploader]: https://docs.fineuploader.com
    pub fn fine_uploader() -> Self {
        let mut fine = Self::new("Fine Uploader")
            .with_identifier("qquuid")
            .with_total_size("qqtotalfilesize")
            .with_offset("qqpartbyteoffset")
            .with_chunk_number("qqpartindex", 0)
            .with_chunk_length("qqchunksize")
            .with_file_name("qqfilename")
            .with_unused("qqtotalparts")
            // The file's name once more, if its bytes are the body itself.
            .with_unused("qqfile")
            .with_status("qqstatus")
            .with_file_field("qqfile");
        fine.names.resumed = "qqresume".into();
        fine.unique_identifiers = true;
        fine.whole_files = true;
        fine.asks_in_the_end = true;
        fine.answers.says_success = true;
        fine
    }

    /// [Plupload] with `send_chunk_number: false`, without which it does not say how long the file is.
    ///
    /// To be added with [`with_dialect`](crate::ResumableLayer::with_dialect). It has no identifier but
    /// the file's name: with `unique_names: true` files of the same name stay apart, or take a
    /// parameter of one's own (`multipart_params`) for [`with_identifier`](Self::with_identifier).
    ///
    /// [Plupload]: https://www.plupload.com/docs
    pub fn plupload() -> Self {
        let mut plupload = Self::new("Plupload")
            .with_identifier("name")
            .with_status(STATUS)
            .with_total_size("total")
            .with_offset("offset")
            .with_file_name("name");
        plupload.whole_files = true;
        plupload
    }

    /// [WebUploader] with `chunked: true` and this `chunkSize` (bytes), which it does not say itself.
    ///
    /// To be added with [`with_dialect`](crate::ResumableLayer::with_dialect). Its `id` is not
    /// unique: a file is told from others by its name, size and date, or by a parameter of one's own
    /// (`formData`) if that is set as [identifier](Self::with_identifier).
    ///
    /// [WebUploader]: https://github.com/fex-team/webuploader
    pub fn web_uploader(chunk_size: u64) -> Self {
        let mut web_uploader = Self::new("WebUploader")
            .with_identifier("lastModifiedDate")
            .with_status(STATUS)
            .with_total_size("size")
            .with_chunk_number("chunk", 0)
            .with_file_name("name")
            .with_content_type("type")
            .with_unused("id")
            .with_unused("chunks");
        web_uploader.chunk_size = Some(chunk_size);
        web_uploader.last_chunk = LastChunk::Rest;
        web_uploader.whole_files = true;
        web_uploader
    }

    /// [blueimp's jQuery File Upload] with `maxChunkSize`, and whatever else sends `Content-Range` and
    /// a file name in `Content-Disposition`.
    ///
    /// To be added with [`with_dialect`](crate::ResumableLayer::with_dialect). It has no identifier but
    /// the file's name; a parameter of one's own (`formData`) can be set as
    /// [identifier](Self::with_identifier). After each chunk the answer says how far the file is
    /// stored (`Range`), so a client that begins again goes on behind that.
    ///
    /// [blueimp's jQuery File Upload]: https://github.com/blueimp/jQuery-File-Upload
    pub fn blueimp() -> Self {
        let mut blueimp = Self::new("blueimp")
            .with_identifier(headers::FILE_NAME)
            .with_status(STATUS)
            .with_total_size(headers::RANGE_TOTAL)
            .with_offset(headers::RANGE_FIRST)
            .with_chunk_length(headers::RANGE_LENGTH)
            .with_file_name(headers::FILE_NAME)
            .with_file_field("files[]");
        blueimp.whole_files = true;
        blueimp.answers.in_order = Some(InOrder::Range);
        blueimp
    }

    /// [FilePond] with `chunkUploads: true`: it asks for a name first, and goes on where `HEAD` says.
    ///
    /// To be added with [`with_dialect`](crate::ResumableLayer::with_dialect). A finished file is
    /// delivered with a `PATCH`, a file that is sent as a whole with a `POST`. What FilePond then has
    /// as `serverId` is [`identifier()`](crate::CompletedUpload::identifier), or, of a whole file, the
    /// answer of the service behind the layer.
    ///
    /// [FilePond]: https://pqina.nl/filepond/docs/api/server/#process-chunks
    pub fn filepond() -> Self {
        let mut filepond = Self::new("FilePond")
            .with_identifier("patch")
            .with_status(STATUS)
            .with_total_size("header:upload-length")
            .with_offset("header:upload-offset")
            .with_file_name("header:upload-name")
            .with_file_field("filepond");
        filepond.unique_identifiers = true;
        filepond.names_are_ours = true;
        filepond.answers.in_order = Some(InOrder::UploadOffset);
        filepond
    }

    /// [huge-uploader] with this `chunkSize` (in bytes; the client counts in 1,000,000 of them).
    ///
    /// To be added with [`with_dialect`](crate::ResumableLayer::with_dialect). It does not say by
    /// itself how long the file is, nor what it is called:
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
        let mut huge = Self::new("huge-uploader")
            .with_identifier("header:uploader-file-id")
            .with_status(STATUS)
            .with_total_size("header:uploader-file-size")
            .with_chunk_number("header:uploader-chunk-number", 0)
            .with_file_name(headers::ENCODED_NAME)
            .with_unused("header:uploader-chunks-total");
        huge.chunk_size = Some(chunk_size);
        huge.last_chunk = LastChunk::Rest;
        huge
    }

    /// [bootstrap-fileinput] with `enableResumableUpload: true`, its `testUrl` included.
    ///
    /// To be added with [`with_dialect`](crate::ResumableLayer::with_dialect), because its names
    /// (`fileId`, `fileName`, …) could be the application's. It needs `chunkIndex` in every answer, so
    /// the answer of the service behind the layer gets that: an object one more member, and of
    /// anything else an object is made, with the text in `answer`.
    ///
    /// [bootstrap-fileinput]: https://plugins.krajee.com/file-resumable-upload-demo
    pub fn bootstrap_fileinput() -> Self {
        let mut fileinput = Self::new("bootstrap-fileinput")
            .with_identifier("fileId")
            .with_status(STATUS)
            .with_total_size("fileSize")
            .with_offset("chunkSizeStart")
            .with_chunk_number("chunkIndex", 0)
            .with_chunk_size("chunkSize")
            .with_file_name("fileName")
            .with_relative_path("fileRelativePath")
            .with_unused("chunkCount")
            .with_unused("retryCount")
            .with_file_field("fileBlob");
        fileinput.last_chunk = LastChunk::Rest;
        fileinput.form_tests = true;
        fileinput.echo = Some("chunkIndex");
        fileinput.answers.list = Some("chunksUploaded");
        fileinput
    }
}
