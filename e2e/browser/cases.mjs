// The cases for Resumable.js. Each is a row of the table.
import assert from 'node:assert/strict';
import { readFile, mkdir, utimes, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import { seededRandom, fill, hashFile, writeLarge } from './lib.mjs';
import { C, KIB, MIB, delivered, made, succeeded, together, verify } from './steps.mjs';

const CLIENTS = ['1.0.2', '1.1.0'];

export const cases = [];
const add = (mode, run, { clients = CLIENTS, seconds } = {}) =>
  clients.forEach(client => cases.push({ client, mode, run, seconds }));

const begin = (page, options, files) =>
  page.evaluate(
    ([options, files]) => window.start(options, files),
    [{ target: '/upload', chunkSize: C, ...options }, files],
  );
const ended = page => page.evaluate(() => window.done);

/** Makes files in the page, uploads them and waits for the end. */
async function upload(bench, options, files, page = bench.page) {
  await bench.open(page);
  await begin(page, options, { made: files });
  await ended(page);
}

// ---- the wire formats ---------------------------------------------------------------------------

add('multipart, GET test', async bench => {
  const files = [made('a.bin', 5 * C + 100, 'text/plain')];
  await upload(bench, {}, files);
  const { traffic } = bench.page;
  await verify(bench, files, { answers: 5 });
  assert.deepEqual(
    traffic.probes().map(e => [e.method, e.status]),
    Array(5).fill(['GET', 204]),
  );
  assert.equal(traffic.chunks().length, 5);
  for (const e of traffic.chunks()) assert.match(e.type, /^multipart\/form-data/);
});

add('test by HEAD', async bench => {
  const files = [made('a.bin', 3 * C)];
  await upload(bench, { testMethod: 'HEAD' }, files);
  await verify(bench, files, { answers: 3 });
  assert.deepEqual(
    bench.page.traffic.probes().map(e => [e.method, e.status]),
    Array(3).fill(['HEAD', 204]),
  );
});

add('octet', async bench => {
  const files = [made('a.bin', 3 * C + 1)];
  await upload(bench, { method: 'octet' }, files);
  await verify(bench, files, { answers: 3 });
  for (const e of bench.page.traffic.chunks()) assert.match(e.type, /octet-stream/);
});

add(
  'base64',
  async bench => {
    const files = [made('a.bin', 3 * C + 2)];
    await upload(bench, { chunkFormat: 'base64' }, files);
    await verify(bench, files, { answers: 3 });
    for (const e of bench.page.traffic.chunks())
      assert.match(e.request.postData(), /\r\n\r\ndata:application\/octet-stream;base64,/);
  },
  { clients: ['1.1.0'] },
);

add('uploadMethod PUT', async bench => {
  const files = [made('a.bin', 3 * C)];
  await upload(bench, { uploadMethod: 'PUT' }, files);
  await verify(bench, files, { answers: 3 });
  assert.deepEqual(
    bench.page.traffic.chunks().map(e => e.method),
    ['PUT', 'PUT', 'PUT'],
  );
});

add('testChunks false', async bench => {
  const files = [made('a.bin', 4 * C)];
  await upload(bench, { testChunks: false }, files);
  await verify(bench, files, { answers: 4 });
  assert.equal(bench.page.traffic.probes().length, 0);
});

add('forceChunkSize', async bench => {
  const files = [made('a.bin', 5 * C + 100), made('b.bin', C - 1), made('c.bin', 2 * C)];
  await upload(bench, { forceChunkSize: true }, files);
  await verify(bench, files, { answers: 6 + 1 + 2 });
});

add(
  'setChunkTypeFromFile',
  async bench => {
    const files = [made('a.png', 3 * C, 'image/png')];
    await upload(bench, { setChunkTypeFromFile: true }, files);
    await verify(bench, files, { answers: 3 });
  },
  { clients: ['1.1.0'] },
);

add('prioritizeFirstAndLastChunk', async bench => {
  const files = [made('a.bin', 6 * C + 9)];
  await upload(bench, { prioritizeFirstAndLastChunk: true }, files);
  await verify(bench, files, { answers: 6 });
});

add('custom query', async bench => {
  const files = [made('a.bin', 3 * C)];
  await upload(bench, { query: { token: 'abc', 'a b': 'ü&=+' } }, files);
  await verify(bench, files, { answers: 3 });
});

add('custom query overrides the file name', async bench => {
  const file = made('a.bin', 3 * C);
  await upload(bench, { query: { resumableFilename: 'renamed.bin' } }, [file]);
  await bench.page.traffic.idle();
  await delivered(bench, [{ ...file, name: 'renamed.bin' }]);
});

add('the answer of the application', async bench => {
  const files = [made('a.bin', 3 * C)];
  // One at a time: otherwise the last answer may be the answer to another request.
  await upload(bench, { simultaneousUploads: 1 }, files);
  const [{ message }] = await bench.page.evaluate(() => window.events);
  await verify(bench, files, { answers: 3 });
  const { id, file_name, size } = JSON.parse(message);
  assert.deepEqual(
    { id, file_name, size },
    { id: bench.server.deliveries[0].id, file_name: 'a.bin', size: 3 * C },
  );
});

// ---- parallel uploads ---------------------------------------------------------------------------

add('3 in parallel, 64 chunks', async bench => {
  const files = [made('a.bin', 64 * C + 5)];
  await together(bench.page, 3);
  await upload(bench, { simultaneousUploads: 3 }, files);
  await verify(bench, files, { answers: 64 });
});

add('several files at once', async bench => {
  const files = [1, C - 1, C, 2 * C + 1, 7 * C].map((size, i) => made(`file ${i}.bin`, size));
  await upload(bench, {}, files);
  await verify(bench, files, { answers: 1 + 1 + 1 + 2 + 7 });
});

add('two tabs, the same file', async bench => {
  const files = [made('same.bin', 12 * C + 3)];
  const other = await bench.newPage();
  await together(bench.context, 6);
  const pages = [bench.page, other];
  await Promise.all(pages.map(page => upload(bench, { chunkRetryInterval: 100 }, files, page)));
  // 503: both pages send the same chunk at the same time, and one of them has to retry.
  await verify(bench, files, { answers: 12, pages, statuses: [200, 204, 503] });
});

add('the same file again', async bench => {
  const files = [made('a.bin', 4 * C)];
  await upload(bench, { simultaneousUploads: 1 }, files);
  const [first] = await bench.page.evaluate(() => window.events);
  const before = bench.page.traffic.list.length;
  await upload(bench, {}, files);
  const [second] = await bench.page.evaluate(() => window.events);
  assert.equal(second.message, first.message, 'the recorded answer');
  await verify(bench, files, { answers: 4, since: before });
  assert.equal(bench.page.traffic.chunks().length, 4, 'nothing is sent again');
});

add(
  '200 MiB from disk',
  async bench => {
    const path = join(bench.dir, 'source', 'large.bin');
    const size = 200 * MIB;
    const file = { name: 'large.bin', size, hash: await writeLarge(path, 99, size) };
    await bench.open();
    await begin(bench.page, { chunkSize: MIB }, { picked: 1 });
    await bench.page.setInputFiles('#pick', path);
    await ended(bench.page);
    await verify(bench, [file], { answers: 200 });
  },
  { clients: ['1.1.0'], seconds: 120 },
);

// ---- names and sizes ----------------------------------------------------------------------------

add('folder with equal names and sizes', async bench => {
  const size = 2 * C + 7;
  const files = ['one/x.bin', 'two/x.bin'].map(path => ({ ...made('x.bin', size), path }));
  const root = join(bench.dir, 'source', 'folder');
  for (const file of files) {
    await mkdir(dirname(join(root, file.path)), { recursive: true });
    await writeFile(join(root, file.path), fill(file.seed, size));
  }
  await bench.open();
  await begin(bench.page, {}, { picked: 2, directory: true });
  await bench.page.setInputFiles('#pick', root);
  await ended(bench.page);
  await bench.page.traffic.idle();
  const listed = await bench.page.evaluate(() => fetch('/files').then(r => r.json()));
  assert.deepEqual(listed.map(f => f.relative_path).sort(), [
    'folder/one/x.bin',
    'folder/two/x.bin',
  ]);
  for (const file of files) {
    const one = listed.find(f => f.relative_path === `folder/${file.path}`);
    assert.equal(await hashFile(one.path), file.hash, `bytes of ${file.path}`);
  }
  await verify(bench, files, { answers: 4 });
});

add('empty file', async bench => {
  const files = [made('empty.txt', 0)];
  await upload(bench, { minFileSize: 0 }, files);
  await verify(bench, files, { answers: 1 });
});

add('CJK, combining and quoted names', async bench => {
  // Each file in a separate page: Resumable.js makes the same identifier from the two CJK names,
  // and would skip the second file.
  const names = [
    '日本語の資料.txt',
    '別の資料.txt',
    'e\u0301a\u0308 "it\'s".txt',
    '%2e%2e%2f & + ; = ?.txt',
  ];
  const files = names.map(name => made(name, 2 * C + 7));
  for (const file of files) {
    const page = await bench.newPage();
    await upload(bench, {}, [file], page);
    await page.traffic.idle();
    const events = await page.evaluate(() => window.events);
    assert.deepEqual(
      events.map(e => [e.kind, e.name]),
      [['success', file.name]],
    );
  }
  await delivered(bench, files);
});

// ---- interruptions ------------------------------------------------------------------------------

const SLOW = { chunkSize: 256 * KIB, chunkRetryInterval: 200 };
const CHUNKS = 8;
const slowFile = () => made('slow.bin', CHUNKS * 256 * KIB + 11);

/** Starts an upload and returns when some chunks are stored and others are on the wire. */
async function halfWay(bench, files) {
  await bench.open();
  await bench.throttle(1.5 * MIB);
  await begin(bench.page, SLOW, { made: files });
  const { traffic } = bench.page;
  await traffic.until('2 stored chunks', () => traffic.stored().length >= 2);
}

add('pause and resume', async bench => {
  const files = [slowFile()];
  const { traffic } = bench.page;
  await halfWay(bench, files);
  const sent = await bench.page.evaluate(() => (window.r.pause(), window.sent));
  await traffic.idle();
  assert.ok(traffic.stored().length < CHUNKS, 'paused too late to prove anything');
  assert.equal(bench.server.deliveries.length, 0);
  await bench.throttle(-1);
  assert.equal(await bench.page.evaluate(() => window.sent), sent, 'nothing is sent in the pause');
  await bench.page.evaluate(() => window.r.upload());
  await ended(bench.page);
  await verify(bench, files, { failures: /ERR_ABORTED/, statuses: [200, 204, 503] });
  // Only a chunk whose answer arrived during the pause is sent again.
  const answers = traffic.list.filter(e => e.status === 200).length;
  assert.ok(answers >= CHUNKS && answers <= CHUNKS + 3, `${answers} answers "have it"`);
});

add('reload of the page', async bench => {
  const files = [slowFile()];
  const { traffic } = bench.page;
  await halfWay(bench, files);
  const stored = traffic.stored().length;
  assert.ok(stored < CHUNKS, 'too late to prove anything');
  await bench.open();
  const before = traffic.list.length;
  await bench.throttle(-1);
  await begin(bench.page, SLOW, { made: files });
  await ended(bench.page);
  await verify(bench, files, { answers: CHUNKS, since: before, statuses: [200, 204, 503] });
  const after = traffic.list.slice(before);
  const found = after.filter(e => e.method === 'GET' && e.status === 200).length;
  assert.ok(found >= stored, `the probes found ${found} chunks, ${stored} were acknowledged`);
  assert.equal(after.filter(e => e.method === 'POST' && e.status === 200).length, CHUNKS - found);
});

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
  await verify(bench, files, {
    answers: CHUNKS,
    failures: /ERR_(CONNECTION|EMPTY|SOCKET|NETWORK)/,
  });
});

add('server killed, restarted, page reloaded', async bench => {
  const files = [slowFile()];
  const { traffic } = bench.page;
  await halfWay(bench, files);
  await bench.server.kill();
  await traffic.until('a request that found no server', () => traffic.list.some(e => e.failure));
  const stored = traffic.stored().length;
  await bench.server.restart();
  await bench.open();
  const before = traffic.list.length;
  await bench.throttle(-1);
  await begin(bench.page, SLOW, { made: files });
  await ended(bench.page);
  const found = traffic.list
    .slice(before)
    .filter(e => e.method === 'GET' && e.status === 200).length;
  assert.ok(
    found >= stored,
    `the probes found ${found} chunks after the crash, ${stored} were acknowledged before it`,
  );
  await verify(bench, files, { answers: CHUNKS, since: before });
});

const ROUNDS = Number(process.env.ROUNDS || 3);
const SEED = Number(process.env.SEED || Math.floor(Math.random() * 2 ** 32));

/**
 * Like `delivered`, but accepts a second delivery after a kill.
 * `lives`: the number of deliveries before each kill.
 * `told`: for each upload id, the number of deliveries when the page had the answer of the handler.
 */
async function deliveredAcross({ notes, page, server }, files, lives, told) {
  const events = await page.evaluate(() => window.events);
  const chunks = await page.evaluate(() =>
    window.r.files.map(f => ({ name: f.fileName, messages: f.chunks.map(c => c.message()) })),
  );
  await server.kill();
  const life = at => lives.filter(end => end <= at).length;
  const all = server.deliveries.map((delivery, at) => ({ ...delivery, at }));
  assert.deepEqual(
    [...new Set(all.map(d => d.file_name))].sort(),
    files.map(f => f.name).sort(),
    'every file was delivered',
  );
  let again = 0;
  let overtaken = 0;
  for (const { name, size, hash } of files) {
    const mine = all.filter(d => d.file_name === name);
    const [{ id }] = mine;
    if (mine.length > 1) again++;
    for (const [n, one] of mine.entries()) {
      assert.equal(one.id, id, `deliveries of ${name} have one id`);
      assert.equal(one.size, size);
      assert.equal(await hashFile(one.path), hash, `bytes of ${name}`);
      if (n === 0) continue;
      const last = mine[n - 1];
      assert.ok(
        one.attempt > last.attempt,
        `attempt ${one.attempt} of ${name} came after ${last.attempt}`,
      );
      assert.ok(life(one.at) > life(last.at), `${name} was delivered twice by one process`);
      assert.ok(
        one.at < (told.get(id) ?? Infinity),
        `${name} was delivered again after the page had the answer`,
      );
    }
    const isAnswer = message =>
      isDeepStrictEqual(JSON.parse(message), { id, file_name: name, size });
    const { messages } = chunks.find(c => c.name === name);
    assert.ok(
      messages.some(isAnswer),
      `none of the answers for ${name} is the handler's: ${messages}`,
    );
    // Resumable.js reports the answer that it has read last. An answer to an earlier chunk can
    // arrive after the answer of the handler.
    const { message } = events.find(e => e.name === name);
    if (!isAnswer(message)) {
      assert.equal(JSON.parse(message).state, 'receiving');
      overtaken++;
    }
  }
  notes.push(
    `${all.length} deliveries of ${files.length} files`,
    `${again} delivered more than once`,
  );
  if (overtaken) notes.push(`${overtaken} reported with the answer of a stored chunk`);
}

add(
  'killed at random',
  async bench => {
    const { notes, page, server } = bench;
    const { traffic } = page;
    const below = seededRandom(SEED);
    notes.push(`SEED=${SEED}`);
    // More rounds need more files, so that the last round has something to interrupt.
    const files = Array.from({ length: Math.max(6, ROUNDS) }, (_, i) =>
      made(`file ${i}.bin`, 300_000 + below(2_700_000)),
    );
    // The last chunk of Resumable.js includes the rest of the file.
    const chunks = files.reduce((sum, file) => sum + Math.floor(file.size / C), 0);
    let since;
    const answers = () => traffic.list.slice(since).filter(e => e.status === 200).length;
    const open = async () => {
      await bench.open();
      since = traffic.list.length;
      await begin(page, { simultaneousUploads: 4, chunkRetryInterval: 50 }, { made: files });
    };
    const told = new Map();
    const lives = [];
    await open();
    const reload = below(ROUNDS);
    for (let round = 0; round < ROUNDS && answers() < chunks; round++) {
      // A third of the kills follow a delivery, before the record of its answer may be on the disk.
      // Only then a second delivery is possible, and counting chunks would hardly ever hit this
      // moment.
      if (below(3) === 0 && new Set(server.deliveries.map(d => d.id)).size < files.length) {
        const count = server.deliveries.length + 1;
        await server.until(`delivery ${count}`, () => server.deliveries.length >= count);
        await server.kill();
        notes.push(`killed at delivery ${count}`);
      } else {
        const count = answers() + 1 + below((chunks - answers()) / (ROUNDS - round));
        await traffic.until(`answer ${count} of ${chunks}`, () => answers() >= count);
        await server.kill();
        notes.push(`killed at answer ${count} of ${chunks}`);
      }
      lives.push(server.deliveries.length);
      for (const { message } of await page.evaluate(() => window.events)) {
        const { id } = JSON.parse(message);
        if (id && !told.has(id)) told.set(id, server.deliveries.length);
      }
      const early = below(2) === 0;
      if (round === reload) notes.push(`page reloaded ${early ? 'before' : 'after'} the restart`);
      if (round === reload && early) await open();
      await server.restart();
      if (round === reload && !early) await open();
    }
    await ended(page);
    // 503: the page was reloaded while the server was still receiving a chunk from it.
    await succeeded(bench, files, {
      answers: chunks,
      since,
      failures: /ERR_(ABORTED|CONNECTION|EMPTY|SOCKET|NETWORK)/,
      statuses: [200, 204, 503],
    });
    await deliveredAcross(bench, files, lives, told);
  },
  { seconds: 30 + 3 * ROUNDS },
);

add('refusal, no retry storm', async bench => {
  await bench.open();
  await begin(
    bench.page,
    { simultaneousUploads: 1, query: { resumableTotalSize: 'x' } },
    { made: [made('a.bin', 8 * C)] },
  );
  const { traffic } = bench.page;
  // A retry storm would send a second chunk and never end in fileError.
  await Promise.race([
    ended(bench.page),
    traffic.until('a second upload', () => traffic.chunks().length > 1),
  ]);
  await traffic.idle();
  assert.deepEqual(
    traffic.chunks().map(e => e.status),
    [400],
  );
  assert.match(traffic.chunks()[0].headers['content-type'], /^application\/problem\+json/);
  const [event] = await bench.page.evaluate(() => window.events);
  assert.equal(event.kind, 'error');
  assert.equal(JSON.parse(event.message).status, 400);
  await bench.server.kill();
  assert.deepEqual(bench.server.deliveries, []);
});

// ---- the example page, operated by a user -------------------------------------------------------

const CDN = 'https://cdn.jsdelivr.net/**';
const npmFile = new URL('node_modules/resumablejs/resumable.js', import.meta.url);
const onPage = (mode, run, options) =>
  ['', '?builtin'].forEach(query =>
    add(`${mode}${query && ', built-in'}`, bench => run(bench, query), {
      clients: ['page'],
      ...options,
    }),
  );

async function visit(bench, query = '') {
  await bench.context.route(CDN, route => route.abort());
  await bench.page.goto(`${bench.server.origin}/${query}`);
  await engineIs(bench, query.includes('builtin') ? 'builtin' : 'resumable');
}

const engineIs = (bench, kind) =>
  bench.page.waitForSelector(`html[data-engine=${kind}]`, { state: 'attached' });
const row = (bench, name) => bench.page.locator('#uploads li', { hasText: name });
const inState = (bench, name, state) =>
  bench.page.locator(`#uploads li[data-state=${state}]`, { hasText: name }).waitFor();
const press = (bench, label) =>
  bench.page.getByRole('button', { name: label, exact: true }).click();
const choose = (bench, files, input = '#files') =>
  bench.page.setInputFiles(
    input,
    files.map(f => ({
      name: f.name,
      mimeType: 'application/octet-stream',
      buffer: Buffer.from(fill(f.seed, f.size)),
    })),
  );

/** Another uploader is no fault. */
const noAlert = async bench => assert.equal(await bench.page.getByRole('alert').count(), 0);

/** Sends the first chunk of a file as the page would, so that it is unfinished on the server. */
async function begun(bench, path, size, lastModified = 1, bytes = fill(1, size)) {
  const fields = new URLSearchParams({
    resumableChunkNumber: 1,
    resumableChunkSize: 256 * KIB,
    resumableTotalSize: size,
    resumableIdentifier: `${size}-${lastModified}-${encodeURIComponent(path)}`,
    resumableFilename: path.split('/').at(-1),
    resumableRelativePath: path,
  });
  const answer = await fetch(`${bench.server.origin}/upload?${fields}`, {
    method: 'POST',
    headers: { 'content-type': 'application/octet-stream' },
    body: bytes.slice(0, 256 * KIB),
  });
  assert.equal(answer.status, 200);
}

const stateOf = (bench, name) => row(bench, name).locator('.state');
const unfinished = (bench, name) => bench.page.locator('#unfinished li', { hasText: name });

/** Chooses a file from the disk by a button. */
async function chooseBy(bench, label, path) {
  const [chooser] = await Promise.all([
    bench.page.waitForEvent('filechooser'),
    press(bench, label),
  ]);
  await chooser.setFiles(path);
}

onPage('files', async (bench, query) => {
  const files = [
    made('holiday.bin', 3 * MIB + 5),
    made('notes.txt', 10),
    made('empty.txt', 0),
    made('日本語 "q".txt', 20),
  ];
  await visit(bench, query);
  await choose(bench, files);
  for (const file of files) await inState(bench, file.name, 'done');
  for (const file of files)
    await bench.page.locator('#finished li', { hasText: file.name }).waitFor();
  await bench.screenshot(query ? 'finished-builtin' : 'finished');
  await noAlert(bench);
  await bench.page.traffic.idle();
  assert.equal(bench.page.traffic.list.filter(e => e.status === 200).length, 3 + 1 + 1 + 1);
  await delivered(bench, files);
});

onPage('folder', async (bench, query) => {
  const files = ['one/x.bin', 'two/x.bin', 'x.bin'].map(path => ({ ...made('x.bin', 900), path }));
  const root = join(bench.dir, 'source', 'box');
  for (const file of files) {
    await mkdir(dirname(join(root, file.path)), { recursive: true });
    await writeFile(join(root, file.path), fill(file.seed, file.size));
  }
  await visit(bench, query);
  await bench.page.setInputFiles('#folder', root);
  for (const file of files)
    await bench.page.locator('#finished li', { hasText: `box/${file.path}` }).waitFor();
  await bench.page.traffic.idle();
  await delivered(bench, files);
});

onPage('dropped files', async (bench, query) => {
  const files = [made('first.bin', 300), made('second.bin', MIB)];
  await visit(bench, query);
  await bench.page.addScriptTag({ content: fill.toString() });
  await bench.page.evaluate(files => {
    const dataTransfer = new DataTransfer();
    for (const { name, seed, size } of files)
      dataTransfer.items.add(new File([fill(seed, size)], name));
    document
      .getElementById('drop')
      .dispatchEvent(new DragEvent('drop', { bubbles: true, cancelable: true, dataTransfer }));
  }, files);
  for (const file of files) await inState(bench, file.name, 'done');
  await bench.page.traffic.idle();
  await delivered(bench, files);
});

onPage('pause, resume, cancel', async (bench, query) => {
  const [kept, dropped] = [made('kept.bin', 2 * MIB + 1), made('dropped.bin', 2 * MIB)];
  const { traffic } = bench.page;
  await visit(bench, (query || '?') + '&chunkSize=262144');
  await bench.throttle(1.5 * MIB);
  await choose(bench, [kept]);
  await traffic.until('2 stored chunks', () => traffic.stored().length >= 2);
  await press(bench, 'Pause kept.bin');
  await inState(bench, 'kept.bin', 'paused');
  await traffic.idle();
  assert.ok(traffic.stored().length < 8, 'paused too late to prove anything');
  // The slots of the paused file are free for another file.
  await choose(bench, [dropped]);
  const before = traffic.stored().length;
  await traffic.until('another stored chunk', () => traffic.stored().length > before);
  await press(bench, 'Pause all');
  await inState(bench, 'dropped.bin', 'paused');
  await press(bench, 'Cancel dropped.bin');
  await row(bench, 'dropped.bin').waitFor({ state: 'detached' });
  await traffic.until('DELETE', () => traffic.list.some(e => e.method === 'DELETE'));
  await bench.throttle(-1);
  await press(bench, 'Resume all');
  await inState(bench, 'kept.bin', 'done');
  await traffic.idle();
  await delivered(bench, [kept]);
});

onPage('rate and time left', async (bench, query) => {
  const file = made('holiday.mp4', 6 * MIB);
  const small = made('notes.txt', 700);
  await begun(bench, 'archive.zip', 1200 * KIB);
  const limit = 1.5 * MIB;
  await visit(bench, (query || '?') + '&chunkSize=262144');
  await bench.throttle(limit);
  const state = row(bench, file.name).locator('.state');
  const shown = /(\d+)% of .* · ([\d.]+) (KiB|MiB)\/s · (\d+) s left$/;
  await choose(bench, [small]);
  await inState(bench, small.name, 'done');
  await choose(bench, [file]);
  await state.filter({ hasText: shown }).waitFor();
  const [, percent, number, unit, left] = shown.exec(await state.textContent());
  const rate = number * (unit === 'MiB' ? MIB : KIB);
  assert.ok(rate > limit / 2 && rate < limit * 1.5, `${rate} bytes/s of ${limit}`);
  const expected = ((1 - percent / 100) * file.size) / rate;
  assert.ok(Math.abs(left - expected) < 2, `${left} s left instead of ${expected}`);
  bench.notes.push(`${percent} %, ${number} ${unit}/s, ${left} s left`);
  // The picture of the README.
  if (!query) await bench.screenshot('page', '#finished-title');
  await press(bench, 'Pause holiday.mp4');
  await inState(bench, file.name, 'paused');
  assert.doesNotMatch(await state.textContent(), /\/s|left/);
  await bench.throttle(-1);
  await press(bench, 'Resume holiday.mp4');
  await inState(bench, file.name, 'done');
  assert.doesNotMatch(await state.textContent(), /\/s|left/);
  await bench.page.traffic.idle();
  await delivered(bench, [small, file]);
});

onPage('after a reload', async (bench, query) => {
  const files = [made('kept.bin', 2 * MIB + 1), made('in.bin', 256 * KIB + 1)];
  const [kept, inside] = files;
  const path = name => join(bench.dir, 'source', name);
  for (const file of files) await writeFile(path(file.name), fill(file.seed, file.size));
  await writeFile(path('other'), 'another file');
  await utimes(path('in.bin'), 5, 5);
  const { traffic } = bench.page;
  const address = (query || '?') + '&chunkSize=262144';
  await visit(bench, address);
  await bench.throttle(1.5 * MIB);
  await bench.page.setInputFiles('#files', path('kept.bin'));
  await traffic.until('2 stored chunks', () => traffic.stored().length >= 2);
  const stored = traffic.stored().length;
  // Three more: of a folder, one that is removed, and one of another protocol.
  await begun(bench, 'gone.bin', MIB);
  await begun(bench, 'box/in.bin', inside.size, 5000, fill(inside.seed, inside.size));
  const tus = { 'tus-resumable': '1.0.0', 'upload-length': '9' };
  await fetch(`${bench.server.origin}/upload`, { method: 'POST', headers: tus });
  await visit(bench, address);
  const before = traffic.list.length;
  await bench.throttle(-1);
  await unfinished(bench, 'kept.bin').waitFor();
  assert.equal(await bench.page.locator('#unfinished li').count(), 3);
  const told = /^(\d+)% of 2 MiB is on the server$/;
  const shown = await unfinished(bench, 'kept.bin').locator('.state').textContent();
  const [, percent] = told.exec(shown);
  const least = Math.floor(((stored * 256 * KIB) / kept.size) * 100);
  assert.ok(percent >= least, `${percent} % after ${stored} of 8 chunks`);

  await chooseBy(bench, 'Choose file kept.bin', path('other'));
  await unfinished(bench, 'other is another file').waitFor();
  await press(bench, 'Remove gone.bin');
  await unfinished(bench, 'gone.bin').waitFor({ state: 'detached' });
  assert.deepEqual(
    traffic.list.slice(before).map(e => e.method),
    ['DELETE'],
    'nothing is sent before the file is chosen',
  );
  await chooseBy(bench, 'Choose file kept.bin', path('kept.bin'));
  await inState(bench, 'kept.bin', 'done');
  const sent = traffic.list.slice(before).filter(e => e.method === 'POST' && e.status === 200);
  assert.ok(sent.length <= 8 - stored, `${sent.length} chunks after ${stored} of 8`);
  await chooseBy(bench, 'Choose file box/in.bin', path('in.bin'));
  await inState(bench, 'box/in.bin', 'done');
  await bench.page.locator('#unfinished-section').waitFor({ state: 'hidden' });
  await traffic.idle();
  await delivered(bench, files);
  assert.equal(bench.server.deliveries[1].relative_path, 'box/in.bin');
});

onPage('reason and countdown', async (bench, query) => {
  const file = made('wait.bin', MIB);
  const { page } = bench;
  const { traffic } = page;
  await visit(bench, (query || '?') + '&chunkSize=262144');
  await page.route(
    url => url.pathname === '/upload',
    route =>
      route.request().method() === 'GET'
        ? route.continue()
        : route.fulfill({
            status: 503,
            headers: { 'retry-after': '2' },
            contentType: 'application/problem+json',
            body: '{"status":503,"detail":"the disk is full"}',
          }),
  );
  await choose(bench, [file]);
  for (const seconds of [2, 1])
    await stateOf(bench, file.name)
      .filter({ hasText: `Interrupted: the disk is full, next try in ${seconds} s` })
      .waitFor();
  await page.getByText('wait.bin is interrupted: the disk is full. It is tried again.').waitFor();
  await press(bench, 'Pause wait.bin');
  await traffic.idle();
  const before = traffic.list.length;
  // The timers of the retries end before this one.
  await page.evaluate(() => new Promise(resolve => setTimeout(resolve, 2000)));
  assert.equal(traffic.list.length, before, 'nothing is sent in the pause');
  await page.unrouteAll();
  await press(bench, 'Resume wait.bin');
  await inState(bench, file.name, 'done');
  await traffic.idle();
  await delivered(bench, [file]);
});

onPage('a failed file, tried again', async (bench, query) => {
  const file = made('again.bin', 2 * MIB);
  await visit(bench, query);
  await bench.page.route(
    url => url.pathname === '/upload',
    route =>
      route.request().method() === 'GET'
        ? route.continue()
        : route.fulfill({
            status: 400,
            contentType: 'application/problem+json',
            body: '{"status":400,"title":"No","detail":"not today"}',
          }),
  );
  await choose(bench, [file]);
  await inState(bench, 'not today', 'failed');
  await bench.page.unrouteAll();
  await press(bench, 'Try again again.bin');
  await inState(bench, 'again.bin', 'done');
  await bench.page.traffic.idle();
  await delivered(bench, [file]);
});

onPage('server killed and restarted', async (bench, query) => {
  const file = made('crash.bin', 2 * MIB);
  const { traffic } = bench.page;
  await visit(bench, (query || '?') + '&chunkSize=262144');
  await bench.throttle(1.5 * MIB);
  await choose(bench, [file]);
  await traffic.until('2 stored chunks', () => traffic.stored().length >= 2);
  await bench.server.kill();
  await inState(bench, 'crash.bin', 'retrying');
  await stateOf(bench, 'crash.bin')
    .filter({ hasText: 'Interrupted: the server cannot be reached, ' })
    .waitFor();
  await bench.server.restart();
  await bench.throttle(-1);
  await inState(bench, 'crash.bin', 'done');
  await traffic.idle();
  await delivered(bench, [file]);
});

/** Makes the server not serve Resumable.js. `body` is the answer of the CDN. */
async function visitCdn(bench, body) {
  let asked = 0;
  await bench.context.route('**/resumable.js', route => route.fulfill({ status: 404 }));
  await bench.context.route(CDN, route => {
    asked++;
    return route.fulfill({
      contentType: 'application/javascript',
      headers: { 'access-control-allow-origin': '*' },
      body,
    });
  });
  await bench.page.goto(bench.server.origin);
  return () => assert.equal(asked, 1, 'the CDN was asked');
}

async function uploadsOne(bench) {
  const file = made('cdn.bin', MIB);
  await choose(bench, [file]);
  await inState(bench, file.name, 'done');
  await bench.page.traffic.idle();
  await delivered(bench, [file]);
}

add(
  'Resumable.js from the CDN',
  async bench => {
    const asked = await visitCdn(bench, await readFile(npmFile));
    await engineIs(bench, 'resumable');
    asked();
    await uploadsOne(bench);
  },
  { clients: ['page'] },
);

add(
  'a tampered CDN is not run',
  async bench => {
    const asked = await visitCdn(
      bench,
      (await readFile(npmFile, 'utf8')) + '\nwindow.tampered = true;',
    );
    await engineIs(bench, 'builtin');
    asked();
    assert.equal(await bench.page.evaluate(() => window.tampered), undefined);
    assert.match(await bench.page.locator('#engine').textContent(), /neither .* nor on the CDN/);
    await noAlert(bench);
    await uploadsOne(bench);
  },
  { clients: ['page'] },
);

// ---- keyboard and screen readers ----------------------------------------------------------------

const axeFile = new URL('node_modules/axe-core/axe.min.js', import.meta.url);

/** Checks the whole page in both color schemes. */
async function noViolations({ page, notes }, what) {
  await page.addScriptTag({ content: await readFile(axeFile, 'utf8') });
  for (const colorScheme of ['light', 'dark']) {
    await page.emulateMedia({ colorScheme });
    const { violations, passes } = await page.evaluate(() => window.axe.run());
    const found = violations.map(v => `${v.id}: ${v.nodes.map(n => n.html).join(', ')}`);
    assert.deepEqual(found, [], `${what}, ${colorScheme}`);
    notes.push(`${what}, ${colorScheme}: ${passes.length} rules of axe-core pass`);
  }
}

add(
  'axe-core finds nothing',
  async bench => {
    const { page } = bench;
    await begun(bench, 'before.bin', MIB);
    await visit(bench);
    await page.route(
      url => url.searchParams.has('resumableFilename'),
      route => {
        const name = new URL(route.request().url()).searchParams.get('resumableFilename');
        if (name === 'failed.bin') return route.fulfill({ status: 400, body: 'no' });
        const busy = { status: 503, headers: { 'retry-after': '60' }, body: 'busy' };
        if (/retrying|paused/.test(name)) return route.fulfill(busy);
        // `POST` gets no answer.
        const probe = route.request().method() === 'GET';
        if (name !== 'uploading.bin' || probe) return route.continue();
      },
    );
    const states = ['done', 'failed', 'retrying', 'paused', 'uploading'];
    await choose(
      bench,
      states.map(state => made(`${state}.bin`, 100)),
    );
    await inState(bench, 'paused.bin', 'retrying');
    await press(bench, 'Pause paused.bin');
    for (const state of states) await inState(bench, `${state}.bin`, state);
    await unfinished(bench, 'before.bin').waitFor();
    await noViolations(bench, 'the page');

    // The page of the example `progress`.
    const html = await readFile(new URL('../../examples/page/progress.html', import.meta.url));
    await page.route('**/progress.html', route =>
      route.fulfill({ contentType: 'text/html; charset=utf-8', body: html }),
    );
    const listed = { id: '1', file_name: 'a.bin', length: 9, received: 4, state: 'receiving' };
    await page.route('**/progress', route =>
      route.fulfill({
        contentType: 'text/event-stream',
        body: `event: uploads\ndata: ${JSON.stringify([listed])}\n\n`,
      }),
    );
    await page.goto(`${bench.server.origin}/progress.html`);
    await page.getByText('a.bin: receiving').waitFor();
    await noViolations(bench, 'progress');
  },
  { clients: ['page'] },
);

add(
  'keyboard and screen reader',
  async bench => {
    const { page } = bench;
    const file = made('by keys.bin', 2 * MIB);
    await begun(bench, 'before.bin', MIB);
    await visit(bench, '?chunkSize=262144');
    await unfinished(bench, 'before.bin').waitFor();
    const path = join(bench.dir, 'source', file.name);
    await writeFile(path, fill(file.seed, file.size));

    // The file input is invisible. Its label shows the focus.
    const focused = () =>
      page.evaluate(() => {
        const one = document.activeElement;
        const { outlineStyle, outlineWidth } = getComputedStyle(one.closest('label') ?? one);
        return {
          name: one.getAttribute('aria-label') ?? (one.closest('label') ?? one).textContent.trim(),
          seen: outlineStyle !== 'none' && outlineWidth !== '0px',
        };
      });
    const tab = async name => {
      await page.keyboard.press('Tab');
      assert.deepEqual(await focused(), { name, seen: true });
    };
    await tab('Choose files');
    await tab('Choose a folder');
    await tab('Choose file before.bin');
    await tab('Remove before.bin');
    await tab('Load Uppy');

    await page.locator('#files').focus();
    await bench.throttle(MIB);
    const [chooser] = await Promise.all([
      page.waitForEvent('filechooser'),
      page.keyboard.press('Space'),
    ]);
    await chooser.setFiles(path);
    await inState(bench, file.name, 'uploading');
    await tab('Choose a folder');
    await tab('Pause all');
    await tab('Pause by keys.bin');
    await page.keyboard.press('Enter');
    await inState(bench, file.name, 'paused');
    // The same button has another name now, and keeps the focus.
    assert.deepEqual(await focused(), { name: 'Resume by keys.bin', seen: true });
    const tree = await page.locator('main').ariaSnapshot();
    for (const line of [
      'heading "Uploads" [level=2]',
      'progressbar "Progress of by keys.bin"',
      'button "Resume by keys.bin"',
      'button "Cancel by keys.bin"',
      'progressbar "Progress of before.bin"',
      /status: Uploading with Resumable\.js/,
    ])
      assert.ok(line.test?.(tree) ?? tree.includes(line), `${line} in ${tree}`);
    await page.keyboard.press('Space');
    await inState(bench, file.name, 'uploading');
    await bench.throttle(-1);
    await inState(bench, file.name, 'done');
    const said = page.locator('[aria-live=polite]');
    await said.filter({ hasText: 'by keys.bin is uploaded.' }).waitFor();
    // `Pause` and the focus are gone, and the next control is the other button of the row.
    await page.getByRole('button', { name: 'Remove by keys.bin', exact: true }).focus();
    await page.keyboard.press('Enter');
    assert.equal((await focused()).name, 'Choose files');
    await page.getByRole('button', { name: 'Remove before.bin', exact: true }).focus();
    await page.keyboard.press('Enter');
    await said.filter({ hasText: 'before.bin is removed.' }).waitFor();
    assert.equal((await focused()).name, 'Choose files');
    await page.traffic.idle();
    await delivered(bench, [file]);
  },
  { clients: ['page'] },
);
