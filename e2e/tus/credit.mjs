// How many bytes of a PATCH that is cut remain stored.
import assert from 'node:assert/strict';
import { connect } from 'node:net';
import { MIB } from './lib.mjs';

const SIZE = 64 * MIB;
const SENT = 48 * MIB;

const measure = how => async bench => {
  const tus = { 'Tus-Resumable': '1.0.0' };
  const created = await fetch(`${bench.proxy.origin}/files`, {
    method: 'POST',
    headers: { ...tus, 'Upload-Length': `${SIZE}` },
  });
  assert.equal(created.status, 201);
  const url = new URL(created.headers.get('location'), bench.proxy.origin);
  const cut = bench.proxy.arm({ after: SENT, how });
  const socket = connect(url.port, url.hostname);
  socket.on('error', () => {});
  socket.write(
    `PATCH ${url.pathname}${url.search} HTTP/1.1\r\nHost: ${url.host}\r\n` +
      'Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n' +
      `Content-Type: application/offset+octet-stream\r\nContent-Length: ${SIZE}\r\n\r\n`,
  );
  socket.write(Buffer.alloc(SIZE, 7));
  await cut.reached;
  const answer = await fetch(url, { method: 'HEAD', headers: tus });
  assert.equal(answer.status, 200);
  const credited = Number(answer.headers.get('upload-offset'));
  bench.note = `${credited / MIB} of ${SENT / MIB} MiB remained`;
  // `HEAD` ends the request at once: what was read by then and not yet written is not stored.
  assert.ok(credited <= SENT && credited > SENT - MIB, bench.note);
};

export const credit = ['fin', 'rst'].map(how => ({
  name: `48 MiB of a cut PATCH, ${how}`,
  run: measure(how),
  args: [],
  seconds: 30,
}));
