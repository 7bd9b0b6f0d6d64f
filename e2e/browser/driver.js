// Runs in the page, beside one unmodified Resumable.js release.
'use strict';

// How many requests the page has sent: the browser reports them with a delay of its own.
window.sent = 0;
const send = XMLHttpRequest.prototype.send;
XMLHttpRequest.prototype.send = function (body) {
  window.sent++;
  return send.call(this, body);
};

// `made` are files to create here; `picked` is how many the test puts into #pick instead.
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
