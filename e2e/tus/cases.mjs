// The cases. Each runs with all clients that can, and with all stores that it names.
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { writeLarge } from '../browser/lib.mjs';
import { C, KIB, MIB, delivered, made, undelivered } from './lib.mjs';

const EVERY = ['file', 'memory', 'bucket'];

export const cases = [];
/**
 * `needs`: what the client has to be able to do.
 * `args`: arguments of the server.
 * `stores`: the stores with which it runs. Default: all.
 */
const add = (name, run, { needs = [], args = [], stores = EVERY, seconds = 20, full } = {}) =>
  cases.push({ name, run, needs, args, stores, seconds, full });

const ok = said => assert.equal(said.outcome, 'success', JSON.stringify(said));
const statuses = exchanges => exchanges.map(one => one.answer?.status);
/** The offsets of the requests whose bytes were taken. */
const offsets = exchanges =>
  exchanges.filter(one => one.answer?.status !== 409).map(one => Number(one.offset));

// ---- one upload ---------------------------------------------------------------------------------

add('one PATCH', async bench => {
  const file = made(300 * KIB + 7);
  ok(await bench.transfer(file));
  await delivered(bench, file);
  assert.deepEqual(statuses(bench.app.exchanges('POST')), [201]);
  assert.deepEqual(statuses(bench.app.patches), [204]);
});

add('many PATCH', async bench => {
  const file = made(5 * C + 100);
  ok(await bench.transfer(file, { chunk: C }));
  await delivered(bench, file);
  assert.deepEqual(statuses(bench.app.patches), Array(6).fill(204));
});

add(
  'empty file',
  async bench => {
    const file = made(0);
    ok(await bench.transfer(file));
    await delivered(bench, file);
  },
  { needs: ['empty'] },
);

add('name and type', async bench => {
  const file = made(C, '日本語 é "+%2F.txt', 'text/plain');
  ok(await bench.transfer(file));
  const one = await delivered(bench, file);
  assert.equal(one.content_type, 'text/plain');
  // Uppy sends "null" for a file outside of a folder.
  assert.equal(one.relative_path, null);
});

add(
  'creation with data',
  async bench => {
    const file = made(100 * KIB);
    ok(await bench.transfer(file, { data: true }));
    await delivered(bench, file);
    assert.deepEqual(statuses(bench.app.exchanges('POST')), [201]);
    assert.deepEqual(bench.app.patches, []);
  },
  { needs: ['data'] },
);

add(
  'creation with data, chunks',
  async bench => {
    const file = made(3 * C + 1);
    ok(await bench.transfer(file, { data: true, chunk: C }));
    await delivered(bench, file);
    assert.deepEqual(offsets(bench.app.patches), [C, 2 * C, 3 * C]);
  },
  { needs: ['data'] },
);

add(
  'deferred length',
  async bench => {
    const file = made(3 * C + 5);
    ok(await bench.transfer(file, { defer: true, chunk: C }));
    await delivered(bench, file);
    const [creation] = bench.app.exchanges('POST');
    assert.equal(creation.length, null);
  },
  { needs: ['defer'] },
);

add(
  'deferred length, whole chunks',
  async bench => {
    const file = made(3 * C);
    ok(await bench.transfer(file, { defer: true, chunk: C }));
    await delivered(bench, file);
  },
  // In node, tus-js-client waits without end for the end of a stream that has ended.
  { needs: ['defer', 'ends'] },
);

add(
  'concatenation',
  async bench => {
    const file = made(3 * C + 5);
    ok(await bench.transfer(file, { parallel: 3, told: false }));
    await delivered(bench, file);
    assert.deepEqual(statuses(bench.app.exchanges('POST')), [201, 201, 201, 201]);
  },
  // aiotus sends the paths of the parts back, without their query.
  { needs: ['concat'], args: ['--upload-paths'] },
);

add(
  'method override',
  async bench => {
    const file = made(2 * C + 5);
    ok(await bench.transfer(file, { override: true, chunk: C }));
    await delivered(bench, file);
    for (const one of bench.app.patches) assert.equal(one.method, 'POST');
    assert.deepEqual(statuses(bench.app.patches), [204, 204, 204]);
  },
  { needs: ['override'] },
);

add(
  'URLs below the path',
  async bench => {
    const file = made(2 * C + 5);
    ok(await bench.transfer(file, { chunk: C }));
    await delivered(bench, file);
    for (const one of bench.app.patches) assert.match(one.uri, /^\/files\/[^?]+$/);
  },
  { args: ['--upload-paths'] },
);

add(
  'absolute URLs',
  async bench => {
    const file = made(2 * C + 5);
    ok(await bench.transfer(file, { chunk: C }));
    await delivered(bench, file);
  },
  { args: ['--public-url'] },
);

// ---- the application ----------------------------------------------------------------------------

add(
  'the answer of the application',
  async bench => {
    const file = made(2 * C);
    const said = await bench.transfer(file, { chunk: C });
    ok(said);
    const one = await delivered(bench, file);
    assert.equal(said.application, one.id);
  },
  { needs: ['answer'] },
);

add(
  'the body of the answer',
  async bench => {
    const file = made(2 * C);
    const said = await bench.transfer(file, { chunk: C });
    ok(said);
    const one = await delivered(bench, file);
    assert.equal(said.status, 200);
    assert.equal(JSON.parse(said.text).id, one.id);
  },
  { needs: ['text'], args: ['--bodies'] },
);

add(
  'the application fails once',
  async bench => {
    const file = made(2 * C);
    ok(await bench.transfer(file, { chunk: C }));
    await delivered(bench, file, { attempt: 2 });
    assert.equal(statuses(bench.app.patches).at(1), 503);
  },
  { args: ['--fail', '1'] },
);

// The client learns the URL, and asks there instead of sending the file again.
add(
  'the application fails once, creation with data',
  async bench => {
    const file = made(100 * KIB);
    ok(await bench.transfer(file, { data: true }));
    await delivered(bench, file, { attempt: 2 });
    assert.deepEqual(statuses(bench.app.exchanges('POST')), [201]);
    assert.deepEqual(statuses(bench.app.exchanges('HEAD')), [200]);
    assert.deepEqual(bench.app.patches, []);
  },
  { needs: ['data'], args: ['--fail', '1'] },
);

add(
  'the application refuses',
  async bench => {
    const said = await bench.transfer(made(2 * C), { chunk: C, retries: 2 });
    assert.notEqual(said.outcome, 'success');
    const [uri] = bench.app.patches.map(one => one.uri);
    const answer = await bench.ask('HEAD', uri);
    assert.equal(answer.status, 404);
    assert.equal(statuses(bench.app.patches).at(1), 422);
    await undelivered(bench);
  },
  { args: ['--refuse'] },
);

// ---- faults -------------------------------------------------------------------------------------

for (const [status, method, at] of [
  [503, 'PATCH', 2],
  [423, 'PATCH', 2],
  [409, 'PATCH', 2],
  [503, 'POST', 1],
]) {
  add(
    `${status} at ${method}`,
    async bench => {
      const file = made(3 * C);
      ok(await bench.transfer(file, { chunk: C }));
      await delivered(bench, file);
      const got = statuses(bench.app.exchanges(method));
      assert.equal(got.filter(one => one === status).length, 1, `${got}`);
    },
    { needs: [`retries ${status} ${method}`], args: ['--fault', `${method} ${at} ${status}`] },
  );
}

add(
  '423 at HEAD',
  async bench => {
    const file = made(3 * C);
    ok(await bench.transfer(file, { chunk: C }));
    await delivered(bench, file);
    assert.ok(statuses(bench.app.exchanges('HEAD')).includes(423));
    // The client has kept its URL.
    assert.equal(bench.app.exchanges('POST').length, 1);
  },
  {
    needs: ['retries 423 HEAD'],
    args: ['--fault', 'PATCH 2 503', '--fault', 'HEAD 1 423', '--fault', 'HEAD 2 423'],
  },
);

add(
  'checksum',
  async bench => {
    const file = made(3 * C + 5);
    ok(await bench.transfer(file, { chunk: C, checksum: true }));
    await delivered(bench, file);
    for (const one of bench.app.patches) assert.match(one.checksum, /^sha1 /);
  },
  { needs: ['checksum'] },
);

add(
  'checksum, damaged on its way',
  async bench => {
    const file = made(3 * C + 5);
    bench.proxy.arm({ skip: 1, after: 1000, how: 'flip' });
    ok(await bench.transfer(file, { chunk: C, checksum: true }));
    await delivered(bench, file);
    assert.equal(statuses(bench.app.patches).at(1), 460);
    assert.equal(bench.app.patches.at(2).offset, `${C}`, 'nothing was stored');
  },
  { needs: ['checksum', 'retries 460 PATCH'] },
);

for (const how of ['fin', 'rst'])
  add(`cut 4 times, ${how}`, async bench => {
    // tus-js-client 5 sends pieces in node, so the bytes of a body include up to 1 KiB of frames.
    const slack = bench.client.can.includes('pieces') ? KIB : 0;
    const size = MIB;
    const file = made(size);
    const cuts = [1, 10_000, 700_001, size - 1];
    let before = 0;
    for (const cut of cuts) {
      // Some clients first send the request again as it was. That one is not cut.
      bench.proxy.arm({ from: slack ? 0 : before, after: cut - before, how });
      before = cut;
    }
    ok(await bench.transfer(file));
    await delivered(bench, file);
    // Nothing that the server has received is lost.
    const taken = offsets(bench.app.patches);
    for (const offset of taken)
      assert.ok(
        [0, ...cuts].some(cut => cut - slack <= offset && offset <= cut),
        `resumed at ${taken}`,
      );
    // Chromium sends a request that was cut again by itself. If that one comes before the server
    // has read anything of the first, the server takes all bytes from it.
    if (!bench.client.can.includes('resends'))
      assert.ok(taken.length > 3 && taken.at(-1) > 600_000, `resumed at ${taken}`);
  });

add(
  'resumed by another process',
  async bench => {
    const file = made(6 * C);
    const stopped = await bench.transfer(file, { chunk: C, storage: true, stop: 3 * C });
    assert.equal(stopped.outcome, 'stopped', JSON.stringify(stopped));
    const before = bench.app.patches.length;
    ok(await bench.transfer(file, { chunk: C, storage: true, resume: true }));
    await delivered(bench, file);
    assert.equal(bench.app.exchanges('POST').length, 1);
    const first = offsets(bench.app.patches.slice(before))[0];
    assert.ok(first >= 3 * C, `resumed at ${first}`);
  },
  { needs: ['resume'] },
);

add(
  'terminated',
  async bench => {
    const file = made(6 * C);
    await bench.transfer(file, { chunk: C, stop: 2 * C, terminate: true });
    await bench.app.until('the removal', () =>
      bench.app.exchanges('DELETE').some(one => one.answer),
    );
    const [removal] = bench.app.exchanges('DELETE');
    assert.equal(removal.answer.status, 204);
    assert.equal((await bench.ask('HEAD', removal.uri)).status, 404);
    await undelivered(bench);
  },
  { needs: ['terminate'] },
);

add(
  'server killed',
  async bench => {
    const file = made(6 * C);
    const held = bench.proxy.arm({ skip: 3, after: 10_000, how: 'hold' });
    const work = bench.transfer(file, { chunk: C });
    await held.reached;
    await bench.app.kill();
    const before = bench.app.requests.length;
    await bench.app.restart();
    held.release();
    ok(await work);
    await delivered(bench, file);
    assert.equal(bench.app.exchanges('POST').length, 1);
    const after = bench.app.requests.slice(before).filter(one => one.method === 'PATCH');
    assert.ok(Number(after[0].offset) >= 3 * C, `resumed at ${after[0].offset}`);
  },
  { stores: ['file'] },
);

// ---- pages --------------------------------------------------------------------------------------

add(
  'page reloaded',
  async bench => {
    const file = made(6 * C);
    const held = bench.proxy.arm({ skip: 3, after: 10_000, how: 'hold' });
    bench.transfer(file, { chunk: C, storage: true }).catch(() => {});
    await held.reached;
    await bench.client.reload(bench);
    held.release();
    const before = bench.app.requests.length;
    ok(await bench.transfer(file, { chunk: C, storage: true, resume: true }));
    await delivered(bench, file);
    assert.equal(bench.app.exchanges('POST').length, 1);
    const after = bench.app.requests.slice(before).filter(one => one.method === 'PATCH');
    assert.ok(Number(after[0].offset) >= 3 * C, `resumed at ${after[0].offset}`);
  },
  { needs: ['reload'] },
);

add(
  'two tabs, one file',
  async bench => {
    const file = made(6 * C);
    const held = bench.proxy.arm({ skip: 2, after: 10_000, how: 'hold' });
    const first = bench.transfer(file, { chunk: C, storage: true });
    await held.reached;
    const tab = await bench.client.newTab(bench);
    const second = bench.transfer(file, { chunk: C, storage: true, resume: true }, tab);
    await bench.app.until('a request of the second tab', () =>
      bench.app.exchanges('HEAD').some(one => one.answer),
    );
    held.release();
    ok(await first);
    ok(await second);
    await delivered(bench, file);
    assert.equal(bench.app.exchanges('POST').length, 1);
  },
  { needs: ['tabs'] },
);

add(
  'pause and resume',
  async bench => {
    const file = made(6 * C);
    ok(await bench.transfer(file, { chunk: C, stop: 2 * C, pause: true }));
    await delivered(bench, file);
    assert.equal(bench.app.exchanges('POST').length, 1);
  },
  { needs: ['pause'] },
);

// ---- large files --------------------------------------------------------------------------------

add(
  '1 GiB',
  async bench => {
    const size = 1024 * MIB;
    const path = join(bench.dir, 'large.bin');
    const sha256 = await writeLarge(path, 7, size);
    const file = { name: 'a.bin', type: 'application/octet-stream', size, path, sha256 };
    const { app } = bench;
    let most = await app.memory();
    const watch = setInterval(async () => {
      most = Math.max(most, await app.memory().catch(() => 0));
    }, 100);
    ok(await bench.transfer(file, bench.client.name === 'aiotus' ? { chunk: 16 * MIB } : {}));
    clearInterval(watch);
    bench.note = `${Math.round(most / MIB)} MiB of memory`;
    await delivered(bench, file);
    assert.ok(most < 100 * MIB, bench.note);
  },
  { needs: ['large'], stores: ['file'], seconds: 300, full: true },
);
