// Runs in the page, beside one unmodified client other than Resumable.js: what all of them are asked to do.
'use strict';

const clients = {
  'flow.js'(options, end) {
    const flow = new window.Flow({ target: '/upload', ...options });
    flow.on('fileSuccess', (file, message) => end('success', file.name, message));
    flow.on('fileError', (file, message) => end('error', file.name, message));
    return files => { flow.addFiles(files); flow.upload(); };
  },
  'simple-uploader'({ uploaded, ...options }, end) {
    if (uploaded) options.checkChunkUploadedByResponse = (chunk, message) => JSON.parse(message).uploaded.includes(chunk.offset + 1);
    const uploader = new window.Uploader({ target: '/upload', ...options });
    uploader.on('fileSuccess', (_, file, message) => end('success', file.name, message));
    uploader.on('fileError', (_, file, message) => end('error', file.name, message));
    return files => { uploader.addFiles(files); uploader.upload(); };
  },
  Dropzone(options, end) {
    const area = document.body.appendChild(document.createElement('div'));
    const dropzone = new window.Dropzone(area, { url: '/upload', chunking: true, ...options });
    dropzone.on('success', (file, answer) => end('success', file.name, typeof answer === 'string' ? answer : JSON.stringify(answer)));
    dropzone.on('error', (file, message) => end('error', file.name, typeof message === 'string' ? message : JSON.stringify(message)));
    return files => files.forEach(file => dropzone.addFile(file));
  },
  'Fine Uploader'({ endpoint = '/upload', ...options }, end) {
    const fine = new window.qq.FineUploaderBasic({
      request: { endpoint },
      ...options,
      callbacks: { onComplete: (id, name, answer) => end(answer.success ? 'success' : 'error', name, JSON.stringify(answer)) },
    });
    return files => fine.addFiles(files);
  },
};

window.start = (client, options, made) => {
  const events = (window.events = []);
  window.done = new Promise(resolve => {
    const end = (kind, name, message) => {
      events.push({ kind, name, message });
      if (events.length === made.length) resolve();
    };
    const files = made.map(({ name, seed, size, type }) => new File([window.fill(seed, size)], name, { type, lastModified: 1 }));
    clients[client](options, end)(files);
  });
};
