// Runs in the page with one unmodified release of Resumable.js.
'use strict';

// The number of requests that the page has sent. The browser reports them with a delay.
window.sent = 0;
const send = XMLHttpRequest.prototype.send;
XMLHttpRequest.prototype.send = function (body) {
  window.sent++;
  return send.call(this, body);
};

// `made` are the files to create here. `picked` is the number of files that the test puts into
// #pick.
window.start = (options, { made = [], picked = 0, directory = false }) => {
  const expected = made.length + picked;
  const events = (window.events = []);
  const r = (window.r = new window.Resumable(options));
  let added = 0;
  let ended = 0;
  window.done = new Promise(resolve => {
    const end = (kind, file, message) => {
      events.push({ kind, name: file.fileName, path: file.relativePath, message });
      if (++ended === expected) resolve();
    };
    r.on('fileSuccess', (file, message) => end('success', file, message));
    r.on('fileError', (file, message) => end('error', file, message));
  });
  r.on('fileAdded', () => ++added === expected && r.upload());
  if (picked) r.assignBrowse(document.getElementById('pick'), directory);
  for (const { name, seed, size, type } of made) {
    r.addFile(new File([window.fill(seed, size)], name, { type }));
  }
};
