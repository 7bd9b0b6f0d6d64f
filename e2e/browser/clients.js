// Runs in the page with one unmodified client other than Resumable.js, and gives all of them the
// same interface.
'use strict';

const clients = {
  'flow.js'(options, end) {
    const flow = new window.Flow({ target: '/upload', ...options });
    flow.on('fileSuccess', (file, message) => end('success', file.name, message));
    flow.on('fileError', (file, message) => end('error', file.name, message));
    return files => {
      flow.addFiles(files);
      flow.upload();
    };
  },
  'simple-uploader'({ uploaded, ...options }, end) {
    if (uploaded)
      options.checkChunkUploadedByResponse = (chunk, message) =>
        JSON.parse(message).uploaded.includes(chunk.offset + 1);
    const uploader = new window.Uploader({ target: '/upload', ...options });
    uploader.on('fileSuccess', (_, file, message) => end('success', file.name, message));
    uploader.on('fileError', (_, file, message) => end('error', file.name, message));
    return files => {
      uploader.addFiles(files);
      uploader.upload();
    };
  },
  Dropzone(options, end) {
    const area = document.body.appendChild(document.createElement('div'));
    const dropzone = new window.Dropzone(area, { url: '/upload', chunking: true, ...options });
    dropzone.on('success', (file, answer) =>
      end('success', file.name, typeof answer === 'string' ? answer : JSON.stringify(answer)),
    );
    dropzone.on('error', (file, message) =>
      end('error', file.name, typeof message === 'string' ? message : JSON.stringify(message)),
    );
    return files => files.forEach(file => dropzone.addFile(file));
  },
  'Fine Uploader'({ endpoint = '/upload', ...options }, end) {
    const fine = new window.qq.FineUploaderBasic({
      request: { endpoint },
      ...options,
      callbacks: {
        onComplete: (id, name, answer) =>
          end(answer.success ? 'success' : 'error', name, JSON.stringify(answer)),
      },
    });
    return files => fine.addFiles(files);
  },
  Plupload(options, end) {
    const button = document.body.appendChild(document.createElement('button'));
    const plupload = new window.plupload.Uploader({
      browse_button: button,
      url: '/upload',
      send_chunk_number: false,
      ...options,
    });
    plupload.bind('FileUploaded', (_, file, { response }) => end('success', file.name, response));
    plupload.bind('Error', (_, { file, response }) => end('error', file.name, response));
    plupload.bind('QueueChanged', () => setTimeout(() => plupload.start()));
    return files => {
      plupload.bind('PostInit', () => plupload.addFile(files));
      plupload.init();
    };
  },
  WebUploader(options, end) {
    const uploader = window.WebUploader.create({
      server: '/upload',
      chunked: true,
      auto: true,
      ...options,
    });
    uploader.on('uploadSuccess', (file, answer) => end('success', file.name, answer._raw));
    uploader.on('uploadError', (file, reason) => end('error', file.name, reason));
    const { File, Lib, guid } = window.WebUploader;
    return files => uploader.addFiles(files.map(file => new File(new Lib.File(guid('rt_'), file))));
  },
  blueimp(options, end) {
    const input = window.$('<input type="file" multiple>').appendTo('body');
    input.fileupload({
      url: '/upload',
      dataType: 'text',
      ...options,
      done: (_, { files, result }) => end('success', files[0].name, result),
      fail: (_, { files, jqXHR }) => end('error', files[0].name, jqXHR.responseText),
    });
    return files => input.fileupload('add', { files });
  },
  FilePond(options, end) {
    const area = document.body.appendChild(document.createElement('div'));
    const pond = window.FilePond.create(area, {
      server: '/upload',
      allowMultiple: true,
      chunkUploads: true,
      credits: false,
      ...options,
    });
    pond.on('processfile', (error, item) =>
      end(error ? 'error' : 'success', item.filename, error ? error.body : item.serverId),
    );
    return files => pond.addFiles(files);
  },
  'huge-uploader'(options, end) {
    return files =>
      files.forEach(file => {
        // huge-uploader does not send these by itself.
        const headers = {
          'uploader-file-size': file.size,
          'uploader-file-name': encodeURIComponent(file.name),
        };
        const uploader = new HugeUploader({ endpoint: '/upload', file, headers, ...options });
        uploader.on('finish', ({ detail }) => end('success', file.name, detail));
        uploader.on('error', ({ detail }) => end('error', file.name, String(detail)));
      });
  },
  'bootstrap-fileinput'({ resumableUploadOptions, ...options }, end) {
    const input = window.$('<input type="file" multiple>').appendTo('body');
    input.fileinput({
      uploadUrl: '/upload',
      enableResumableUpload: true,
      resumableUploadOptions: { testUrl: '/upload', ...resumableUploadOptions },
      showPreview: true,
      ...options,
    });
    // Its events have an id that begins with the size of the file, but no name.
    let chosen;
    const name = id => chosen.find(file => String(id).startsWith(`${file.size}_`))?.name;
    const answers = {};
    input.on('filechunksuccess', (_, id, index, retry, files, resumable, { response }) => {
      answers[id] = response;
    });
    input.on('fileuploaded', (_, previewId, index, id) =>
      end('success', name(id), JSON.stringify(answers[id])),
    );
    input.on('fileuploaderror', (_, { fileId }, message) => end('error', name(fileId), message));
    input.on('filebatchselected', () => input.fileinput('upload'));
    return files => {
      chosen = files;
      input.fileinput('readFiles', files);
    };
  },
};

window.start = (client, options, made) => {
  const events = (window.events = []);
  window.done = new Promise(resolve => {
    const end = (kind, name, message) => {
      events.push({ kind, name, message });
      if (events.length === made.length) resolve();
    };
    const files = made.map(
      ({ name, seed, size, type }) =>
        new File([window.fill(seed, size)], name, { type, lastModified: 1 }),
    );
    clients[client](options, end)(files);
  });
};
