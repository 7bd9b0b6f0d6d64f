//! The clients that the layer knows, but for [`ResumableJs`](super::ResumableJs), which has options
//! for its names.

use http::StatusCode;

use super::{Dialect, table::LastChunk};

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
            .with_status("uploadStatus")
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
        self.answers.list_tests = true;
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
}
