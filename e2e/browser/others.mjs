// The cases for the other chunk clients. Each client runs the same cases, with different options.
import assert from 'node:assert/strict';
import { C, KIB, MIB, delivered, made, succeeded, verify } from './steps.mjs';

export const cases = [];

/**
 * Options of the server and of the client:
 * `args`: arguments of the server.
 * `size`: returns the options for chunks of this many bytes.
 * `again`: options for retries after failures, if the client has them.
 * `one`: options for one chunk at a time.
 * `wrong`: options with which the requests of the client contradict themselves.
 *
 * Properties of the client:
 * `refused`: the status of the answer to a request with the options `wrong`.
 * `posts`: the number of probes by POST in the case `several files`.
 * `fixed`: the bytes of a chunk, if the server has to know them.
 * `refusesEmpty`: the client sends no empty files.
 * `more`: the last chunk includes the rest of the file.
 * `tests`: the client sends a probe for each chunk.
 * `resumes`: the client resumes after a reload.
 * `says`: fields that an answer has in addition to those of the application.
 */
const CLIENTS = {
  'flow.js': {
    size: chunkSize => ({ chunkSize }),
    again: { maxChunkRetries: 1000, chunkRetryInterval: 100 },
    one: { simultaneousUploads: 1 },
    wrong: { target: '/upload?flowTotalSize=7', testChunks: false },
    refused: 415,
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
    args: ['--client', 'simple-uploader'],
    size: chunkSize => ({ chunkSize }),
    again: { maxChunkRetries: 1000, chunkRetryInterval: 100 },
    one: { simultaneousUploads: 1 },
    wrong: { target: '/upload?totalSize=7', testChunks: false },
    refused: 415,
    more: true,
    tests: true,
    resumes: true,
    modes: [
      ['octet', { method: 'octet' }],
      ['forceChunkSize', { forceChunkSize: true }],
    ],
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
      [
        'asks in the end',
        {
          chunking: {
            enabled: true,
            partSize: C,
            concurrent: { enabled: true },
            success: { endpoint: '/upload' },
          },
        },
      ],
      ['octet', { request: { endpoint: '/upload', forceMultipart: false, paramsInBody: false } }],
      ['not chunked', { chunking: { enabled: false } }],
    ],
  },
  Plupload: {
    args: ['--client', 'plupload'],
    refusesEmpty: true,
    size: chunk_size => ({ chunk_size }),
    again: { max_retries: 1000 },
    one: {},
    wrong: { url: '/upload?total=7', max_retries: 0 },
    modes: [
      ['octet', { multipart: false }],
      ['not chunked', { chunk_size: 0 }],
    ],
  },
  WebUploader: {
    args: ['--client', `webuploader=${C}`],
    fixed: C,
    refusesEmpty: true,
    size: chunkSize => ({ chunkSize }),
    again: { chunkRetry: 100_000 },
    one: { threads: 1 },
    wrong: { server: '/upload?size=7', chunkRetry: 0 },
    modes: [['octet', { sendAsBinary: true }]],
  },
  blueimp: {
    args: ['--client', 'blueimp'],
    size: maxChunkSize => ({ maxChunkSize }),
    one: {},
    resumes: true,
    modes: [
      ['octet', { multipart: false }],
      ['not chunked', { maxChunkSize: undefined }],
      ['not chunked, octet', { maxChunkSize: undefined, multipart: false }],
    ],
  },
  FilePond: {
    args: ['--client', 'filepond'],
    size: chunkSize => ({ chunkSize }),
    again: { chunkRetryDelays: Array(100).fill(100) },
    posts: 2,
    modes: [['chunkForce', { chunkForce: true }]],
  },
  'huge-uploader': {
    args: ['--client', 'huge-uploader=100000'],
    fixed: 100_000,
    size: () => ({ chunkSize: 0.1 }),
    again: { retries: 100, delayBeforeRetry: 0.1 },
    one: {},
    modes: [['postParams', { postParams: { token: 'ü' } }]],
  },
  'bootstrap-fileinput': {
    args: ['--client', 'bootstrap-fileinput'],
    size: bytes => ({ resumableUploadOptions: { chunkSize: bytes / KIB, maxThreads: 1 } }),
    refusesEmpty: true,
    posts: 5,
    one: {},
    says: { chunkIndex: 2 },
    modes: [['without tests', { resumableUploadOptions: { chunkSize: C / KIB, testUrl: null } }]],
  },
};

const begin = (bench, options, files, page = bench.page) =>
  page.evaluate(
    ([client, options, files]) => window.start(client, options, files),
    [bench.client, options, files],
  );
const ended = page => page.evaluate(() => window.done);

async function upload(bench, options, files) {
  await bench.open();
  await begin(bench, options, files);
  await ended(bench.page);
}

for (const [client, its] of Object.entries(CLIENTS)) {
  const add = (mode, run) => cases.push({ client, mode, run, args: its.args });
  const options = {
    ...its.size(C),
    ...(client === 'Fine Uploader' && { validation: { allowEmpty: true } }),
  };

  // FilePond gets the name of an upload with a 201.
  const ok = { statuses: [200, 201, 204] };

  add('several files', async bench => {
    const size = its.fixed ?? C;
    const files = [1, size - 1, size, 2 * size + 1, 7 * size + 5].map((size, i) =>
      made(`file ${i}.bin`, size, 'text/plain'),
    );
    await upload(bench, options, files);
    await verify(bench, files, ok);
    const { traffic } = bench.page;
    const sent = its.more ? 1 + 1 + 1 + 2 + 7 : 1 + 1 + 1 + 3 + 8;
    assert.equal(traffic.chunks().length, sent + (its.posts ?? 0));
    assert.equal(traffic.probes().length, its.tests ? sent : 0);
  });

  if (!its.refusesEmpty)
    add('empty file', async bench => {
      const files = [made('empty.txt', 0)];
      await upload(bench, options, files);
      await verify(bench, files, ok);
    });

  add('CJK, combining and quoted names', async bench => {
    const names = ['日本語の資料.txt', 'e\u0301a\u0308 "it\'s".txt', '%2e%2e%2f & + ; = ?.txt'];
    const files = names.map((name, i) => made(name, 2 * C + 7 + i));
    await upload(bench, options, files);
    await verify(bench, files, ok);
  });

  for (const [mode, more] of its.modes) {
    add(mode, async bench => {
      const files = [made('a.bin', 5 * C + 100), made('b.bin', 10)];
      await upload(bench, { ...options, ...more }, files);
      await verify(bench, files, ok);
    });
  }

  if (its.one)
    add('the answer of the application', async bench => {
      const files = [made('a.bin', 3 * C)];
      await upload(bench, { ...options, ...its.one }, files);
      const [{ message }] = await bench.page.evaluate(() => window.events);
      await verify(bench, files, ok);
      const [{ id }] = bench.server.deliveries;
      assert.deepEqual(JSON.parse(message), { id, file_name: 'a.bin', size: 3 * C, ...its.says });
    });

  if (its.wrong)
    add('refusal, no retry storm', async bench => {
      await upload(
        bench,
        {
          ...options,
          ...its.one,
          ...its.again,
          ...(client === 'Dropzone' && { retryChunks: false }),
          ...its.wrong,
        },
        [made('a.bin', 8 * C)],
      );
      await bench.page.traffic.idle();
      const statuses = bench.page.traffic.chunks().map(e => e.status);
      assert.deepEqual(statuses, [its.refused ?? 400]);
      const [event] = await bench.page.evaluate(() => window.events);
      assert.equal(event.kind, 'error');
      await bench.server.kill();
      assert.deepEqual(bench.server.deliveries, []);
    });

  const slow = { ...options, ...its.size(its.fixed ?? 256 * KIB), ...its.again };
  const slowFile = () => made('slow.bin', 2 * MIB + 11);
  const halfWay = async (bench, files, options = slow) => {
    await bench.open();
    await bench.throttle(1.5 * MIB);
    await begin(bench, options, files);
    const { traffic } = bench.page;
    await traffic.until('2 stored chunks', () => traffic.stored().length >= 2);
  };

  if (its.again)
    add('server killed and restarted', async bench => {
      const files = [slowFile()];
      const { traffic } = bench.page;
      await halfWay(bench, files);
      await bench.server.kill();
      assert.equal(bench.server.deliveries.length, 0, 'killed too late to prove anything');
      await traffic.until('a request that found no server', () =>
        traffic.list.some(e => e.failure),
      );
      await bench.server.restart();
      await bench.throttle(-1);
      await ended(bench.page);
      await verify(bench, files, {
        ...ok,
        failures: /ERR_(CONNECTION|EMPTY|SOCKET|NETWORK|ABORTED)/,
      });
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
      const sent = traffic.list
        .slice(before)
        .filter(e => e.method === 'POST' && e.status === 200).length;
      assert.ok(
        sent <= 9 - stored + 1,
        `${sent} chunks were sent after the reload, ${stored} were acknowledged before it`,
      );
      await delivered(bench, files);
    });
  }
}

const onlyFor = (client, mode, run, args) => cases.push({ client, mode, run, args });

onlyFor(
  'simple-uploader',
  'one test for all chunks',
  async bench => {
    const files = [made('a.bin', 6 * C)];
    const options = { chunkSize: C, simultaneousUploads: 1, uploaded: true };
    await upload(bench, options, files);
    await succeeded(bench, files);
    const { traffic } = bench.page;
    assert.deepEqual(
      traffic.list.map(e => e.method),
      ['GET', ...Array(6).fill('POST')],
    );
    // Uploads the file again: now all chunks are stored.
    const before = traffic.list.length;
    await upload(bench, options, files);
    await succeeded(bench, files, { since: before });
    assert.deepEqual(
      traffic.list.slice(before).map(e => e.method),
      ['GET'],
    );
    await delivered(bench, files);
  },
  ['--client', 'simple-uploader-list'],
);

onlyFor('Fine Uploader', 'resumed, but swept', async bench => {
  const files = [made('slow.bin', 2 * MIB + 11)];
  const { traffic } = bench.page;
  const options = {
    chunking: { enabled: true, partSize: 256 * KIB },
    resume: { enabled: true },
    retry: { enableAuto: true, maxAutoAttempts: 3, autoAttemptDelay: 0.1 },
  };
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
  // The answer to the first chunk tells the client to begin again, and it sends all nine chunks.
  assert.equal(traffic.list.length - before, 10);
});

for (const [client, path] of [
  ['flow.js', 'flow'],
  ['Dropzone', 'dropzone'],
]) {
  onlyFor(client, 'the options that the server gives', async bench => {
    const options = await (await fetch(`${bench.server.origin}/options/${path}`)).json();
    const files = [made('a.bin', 3 * MIB + 5), made('empty.txt', 0)];
    await upload(bench, options, files);
    await verify(bench, files);
    assert.equal(bench.page.traffic.chunks().length, client === 'Dropzone' ? 5 : 4);
  });
}
