// The chunk clients beside Resumable.js: the same questions to each of them, with its own options.
import assert from 'node:assert/strict';
import { C, KIB, MIB, delivered, made, succeeded, verify } from './steps.mjs';

export const cases = [];

/**
 * `size`: the options that make chunks of so many bytes. `again`: those that make it send again what has failed.
 * `one`: one chunk at a time. `wrong`: those with which its requests contradict themselves.
 * `whole`: a file of one chunk comes without any of its fields. `more`: the last chunk takes the rest, too.
 */
const CLIENTS = {
  'flow.js': {
    size: chunkSize => ({ chunkSize }),
    again: { maxChunkRetries: 1000, chunkRetryInterval: 100 },
    one: { simultaneousUploads: 1 },
    wrong: { target: '/upload?flowTotalSize=7', testChunks: false },
    more: true,
    tests: true,
    resumes: true,
    modes: [
      ['octet', { method: 'octet' }],
      ['test by HEAD', { testMethod: 'HEAD' }],
      ['test by POST', { testMethod: 'POST' }],
      ['forceChunkSize', { forceChunkSize: true }],
      ['PUT', { uploadMethod: 'PUT' }],
      ['custom query', { query: { token: 'ü&=+' } }],
    ],
  },
  'simple-uploader': {
    size: chunkSize => ({ chunkSize }),
    again: { maxChunkRetries: 1000, chunkRetryInterval: 100 },
    one: { simultaneousUploads: 1 },
    wrong: { target: '/upload?totalSize=7', testChunks: false },
    more: true,
    tests: true,
    resumes: true,
    modes: [['octet', { method: 'octet' }], ['forceChunkSize', { forceChunkSize: true }]],
  },
  Dropzone: {
    size: chunkSize => ({ chunkSize }),
    again: { retryChunks: true, retryChunksLimit: 100_000 },
    one: {},
    wrong: { url: '/upload?dztotalfilesize=7' },
    modes: [
      ['parallel', { parallelChunkUploads: true }],
      ['forceChunking', { forceChunking: true }],
      ['not chunked', { chunking: false }],
    ],
  },
  'Fine Uploader': {
    size: partSize => ({ chunking: { enabled: true, partSize } }),
    again: { retry: { enableAuto: true, maxAutoAttempts: 1000, autoAttemptDelay: 0.1 } },
    one: {},
    wrong: { endpoint: '/upload?qqtotalfilesize=7' },
    says: { success: true },
    resumes: true,
    modes: [
      ['concurrent', { chunking: { enabled: true, partSize: C, concurrent: { enabled: true } } }],
      ['asks in the end', { chunking: { enabled: true, partSize: C, concurrent: { enabled: true }, success: { endpoint: '/upload' } } }],
      ['octet', { request: { endpoint: '/upload', forceMultipart: false, paramsInBody: false } }],
      ['not chunked', { chunking: { enabled: false } }],
    ],
  },
};

const begin = (bench, options, files, page = bench.page) =>
  page.evaluate(([client, options, files]) => window.start(client, options, files), [bench.client, options, files]);
const ended = page => page.evaluate(() => window.done);

async function upload(bench, options, files) {
  await bench.open();
  await begin(bench, options, files);
  await ended(bench.page);
}

for (const [client, its] of Object.entries(CLIENTS)) {
  const add = (mode, run, { seconds, args } = {}) => cases.push({ client, mode, run, seconds, args });
  const options = { ...its.size(C), ...(client === 'Fine Uploader' && { validation: { allowEmpty: true } }) };

  add('several files', async bench => {
    const files = [1, C - 1, C, 2 * C + 1, 7 * C + 5].map((size, i) => made(`file ${i}.bin`, size, 'text/plain'));
    await upload(bench, options, files);
    await verify(bench, files);
    const { traffic } = bench.page;
    const sent = its.more ? 1 + 1 + 1 + 2 + 7 : 1 + 1 + 1 + 3 + 8;
    assert.equal(traffic.chunks().length, sent);
    assert.equal(traffic.probes().length, its.tests ? sent : 0);
  });

  add('empty file', async bench => {
    const files = [made('empty.txt', 0)];
    await upload(bench, options, files);
    await verify(bench, files);
  });

  add('CJK, combining and quoted names', async bench => {
    const names = ['日本語の資料.txt', 'e\u0301a\u0308 "it\'s".txt', '%2e%2e%2f & + ; = ?.txt'];
    const files = names.map(name => made(name, 2 * C + 7));
    await upload(bench, options, files);
    await verify(bench, files);
  });

  for (const [mode, more] of its.modes) {
    add(mode, async bench => {
      const files = [made('a.bin', 5 * C + 100), made('b.bin', 10)];
      await upload(bench, { ...options, ...more }, files);
      await verify(bench, files);
    });
  }

  add('the answer of the application', async bench => {
    const files = [made('a.bin', 3 * C)];
    await upload(bench, { ...options, ...its.one }, files);
    const [{ message }] = await bench.page.evaluate(() => window.events);
    await verify(bench, files);
    const [{ id }] = bench.server.deliveries;
    assert.deepEqual(JSON.parse(message), { id, file_name: 'a.bin', size: 3 * C, ...its.says });
  });

  add('refusal, no retry storm', async bench => {
    await upload(bench, { ...options, ...its.one, ...its.again, ...(client === 'Dropzone' && { retryChunks: false }), ...its.wrong }, [made('a.bin', 8 * C)]);
    await bench.page.traffic.idle();
    const statuses = bench.page.traffic.chunks().map(e => e.status);
    assert.deepEqual(statuses, [its.tests ? 415 : 400]);
    const [event] = await bench.page.evaluate(() => window.events);
    assert.equal(event.kind, 'error');
    await bench.server.kill();
    assert.deepEqual(bench.server.deliveries, []);
  });

  const slow = { ...options, ...its.size(256 * KIB), ...its.again };
  const slowFile = () => made('slow.bin', 2 * MIB + 11);
  const halfWay = async (bench, files, options = slow) => {
    await bench.open();
    await bench.throttle(1.5 * MIB);
    await begin(bench, options, files);
    const { traffic } = bench.page;
    await traffic.until('2 stored chunks', () => traffic.stored().length >= 2);
  };

  add('server killed and restarted', async bench => {
    const files = [slowFile()];
    const { traffic } = bench.page;
    await halfWay(bench, files);
    await bench.server.kill();
    assert.equal(bench.server.deliveries.length, 0, 'killed too late to prove anything');
    await traffic.until('a request that found no server', () => traffic.list.some(e => e.failure));
    await bench.server.restart();
    await bench.throttle(-1);
    await ended(bench.page);
    await verify(bench, files, { failures: /ERR_(CONNECTION|EMPTY|SOCKET|NETWORK|ABORTED)/ });
  });

  if (its.resumes) {
    const resume = { ...slow, ...(client === 'Fine Uploader' && { resume: { enabled: true } }) };
    add('reload of the page', async bench => {
      const files = [slowFile()];
      const { traffic } = bench.page;
      await halfWay(bench, files, resume);
      const stored = traffic.stored().length;
      await bench.open();
      const before = traffic.list.length;
      await bench.throttle(-1);
      await begin(bench, resume, files);
      await ended(bench.page);
      await succeeded(bench, files, { since: before, statuses: [200, 204, 503] });
      const sent = traffic.list.slice(before).filter(e => e.method === 'POST' && e.status === 200).length;
      assert.ok(sent <= 9 - stored + 1, `${sent} chunks were sent after the reload, ${stored} were acknowledged before it`);
      await delivered(bench, files);
    });
  }
}

const onlyFor = (client, mode, run, args) => cases.push({ client, mode, run, args });

onlyFor('simple-uploader', 'one test for all chunks', async bench => {
  const files = [made('a.bin', 6 * C)];
  const options = { chunkSize: C, simultaneousUploads: 1, uploaded: true };
  await upload(bench, options, files);
  await succeeded(bench, files);
  const { traffic } = bench.page;
  assert.deepEqual(traffic.list.map(e => e.method), ['GET', ...Array(6).fill('POST')]);
  // Once more: now all are there.
  const before = traffic.list.length;
  await upload(bench, options, files);
  await succeeded(bench, files, { since: before });
  assert.deepEqual(traffic.list.slice(before).map(e => e.method), ['GET']);
  await delivered(bench, files);
}, ['--list-tests']);

onlyFor('Fine Uploader', 'resumed, but swept', async bench => {
  const files = [made('slow.bin', 2 * MIB + 11)];
  const { traffic } = bench.page;
  const options = { chunking: { enabled: true, partSize: 256 * KIB }, resume: { enabled: true }, retry: { enableAuto: true, maxAutoAttempts: 3, autoAttemptDelay: 0.1 } };
  await bench.open();
  await bench.throttle(1.5 * MIB);
  await begin(bench, options, files);
  await traffic.until('2 stored chunks', () => traffic.stored().length >= 2);
  await bench.open();
  await bench.page.traffic.idle();
  await bench.server.forget();
  const before = traffic.list.length;
  await bench.throttle(-1);
  await begin(bench, options, files);
  await ended(bench.page);
  await verify(bench, files, { since: before });
  // The first one is told to begin again, and all nine come.
  assert.equal(traffic.list.length - before, 10);
});
