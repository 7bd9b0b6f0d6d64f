// Runs in the page: the clients, and the tasks for them. `fill` is added to the page, too.
/* global fill */
import Uppy from '@uppy/core';
import Tus from '@uppy/tus';
import * as tus4 from 'tus-js-client';
import * as tus5 from 'tus-js-client-5';
import { transfer } from './tus.js';

// `lastModified` is part of what a client resumes by.
const open = ({ name, type, seed, size }) =>
  new File([fill(seed, size)], name, { type, lastModified: 1_700_000_000_000 });

/** The same as `transfer` in tus.js, for Uppy. `pause`, `remove`: like `stop`, in Uppy's words. */
function uppy(file, task) {
  const said = { answers: [] };
  return new Promise(resolve => {
    const end = outcome => resolve({ ...said, outcome });
    const it = new Uppy();
    it.use(Tus, {
      endpoint: task.endpoint,
      chunkSize: task.chunk ?? Infinity,
      parallelUploads: task.parallel ?? 1,
      uploadDataDuringCreation: task.data ?? false,
      overridePatchMethod: task.override ?? false,
      retryDelays: Array(task.retries).fill(50),
      onAfterResponse(request, response) {
        said.answers.push([request.getMethod(), response.getStatus()]);
        said.application = response.getHeader('X-Application') ?? undefined;
      },
      onChunkComplete(_, accepted) {
        if (!task.stop || accepted < task.stop) return;
        task.stop = undefined;
        if (task.terminate) {
          it.removeFile(id);
          end('stopped');
        } else if (task.pause) {
          it.pauseAll();
          it.resumeAll();
        } else {
          it.pauseAll();
          end('stopped');
        }
      },
    });
    it.on('upload-success', (_, response) => {
      const { xhr } = response.body;
      Object.assign(said, { url: response.uploadURL, status: xhr.status, text: xhr.responseText });
    });
    it.on('upload-error', (_, error, response) => {
      said.error = response?.status ?? String(error);
      said.text = response?.body.xhr.responseText;
    });
    it.on('complete', ({ failed }) => end(failed.length ? said.error : 'success'));
    const id = it.addFile({ name: file.name, type: file.type, data: open(file) });
    // `complete` reports errors.
    it.upload().catch(() => {});
  });
}

window.transfer = (client, file, task) => {
  if (client === 'uppy') return uppy(file, task);
  const source = open(file);
  if (client === 'tus5')
    return transfer(tus5, task.defer ? source.stream() : source, { ...task, again: true });
  return transfer(tus4, task.defer ? source.stream().getReader() : source, task);
};
