// Drives tus-js-client, in node and in a page.

/**
 * Uploads `source` and returns what the client reported. Fields of `task`:
 *
 * `endpoint`, `metadata`, `chunk`, `parallel`, `data`, `defer`, `override`: options of the client.
 * `stop`: stops when the server has this many bytes.
 * `storage`: where the client keeps the URL, for `resume`.
 * `resume`: continues the upload that the storage knows.
 * `terminate`: removes the upload after `stop`.
 */
export function transfer(tus, source, task) {
  const said = { answers: [] };
  return new Promise(resolve => {
    const end = outcome => resolve({ ...said, outcome, url: upload.url });
    const upload = new tus.Upload(source, {
      endpoint: task.endpoint,
      // One of the IETF draft, for e2e/ietf.
      ...(task.protocol && { protocol: task.protocol }),
      metadata: task.metadata,
      chunkSize: task.chunk ?? Infinity,
      parallelUploads: task.parallel ?? 1,
      uploadDataDuringCreation: task.data ?? false,
      uploadLengthDeferred: task.defer ?? false,
      overridePatchMethod: task.override ?? false,
      retryDelays: Array(task.retries).fill(50),
      storeFingerprintForResuming: Boolean(task.storage),
      ...(task.storage && task.storage !== true && { urlStorage: task.storage }),
      onAfterResponse(request, response) {
        said.answers.push([request.getMethod(), response.getStatus()]);
        said.application = response.getHeader('X-Application') ?? undefined;
      },
      onChunkComplete(_, accepted) {
        if (task.stop && accepted >= task.stop)
          upload.abort(task.terminate).then(
            () => end('stopped'),
            error => end(String(error)),
          );
      },
      onSuccess: () => end('success'),
      onError(error) {
        // tus-js-client 5.0.0-pre2 does not retry in a page when the connection fails: a person
        // starts the upload again.
        if (task.again && !error.originalResponse) setTimeout(() => upload.start(), 50);
        else end(error.originalResponse?.getStatus() ?? String(error));
      },
    });
    if (!task.resume) return upload.start();
    upload.findPreviousUploads().then(([previous]) => {
      if (!previous) return end('the client has no URL to resume');
      upload.resumeFromPreviousUpload(previous);
      upload.start();
    });
  });
}
