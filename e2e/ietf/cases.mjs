// The cases of tus-js-client when it speaks the IETF draft. e2e/tus/run.mjs runs them.
import assert from 'node:assert/strict';
import { C, KIB, MIB, delivered, made } from '../tus/lib.mjs';

const EVERY = ['file', 'memory', 'bucket'];
const VERSIONS = { 'ietf-draft-03': 5, 'ietf-draft-05': 6 };

export const cases = [];
const add = (name, run, { args = [], stores = EVERY, needs = [] } = {}) => {
  for (const [protocol, version] of Object.entries(VERSIONS))
    cases.push({
      name: `version ${version}, ${name}`,
      run: bench => run(bench, (file, task) => bench.transfer(file, { protocol, ...task })),
      needs: ['draft', ...needs],
      args,
      stores,
      seconds: 20,
    });
};

const ok = said => assert.equal(said.outcome, 'success', JSON.stringify(said));
const statuses = exchanges => exchanges.map(one => one.answer?.status);

add('one PATCH', async (bench, transfer) => {
  const file = made(300 * KIB + 7, '日本 é.txt', 'text/plain');
  ok(await transfer(file));
  const one = await delivered(bench, file);
  assert.equal(one.content_type, 'text/plain');
  assert.deepEqual(statuses(bench.app.exchanges('POST')), [201]);
  assert.deepEqual(statuses(bench.app.patches), [200]);
});

add('many PATCH', async (bench, transfer) => {
  const file = made(5 * C + 100);
  ok(await transfer(file, { chunk: C }));
  await delivered(bench, file);
  assert.deepEqual(statuses(bench.app.patches), [...Array(5).fill(201), 200]);
});

add('creation with data', async (bench, transfer) => {
  const file = made(100 * KIB);
  ok(await transfer(file, { data: true }));
  await delivered(bench, file);
  assert.deepEqual(statuses(bench.app.exchanges('POST')), [200]);
});

add('concatenation', async (bench, transfer) => {
  const file = made(3 * C + 5);
  ok(await transfer(file, { parallel: 3 }));
  await delivered(bench, file);
});

add('cut 3 times', async (bench, transfer) => {
  const file = made(MIB);
  const cuts = [10_000, 700_001, MIB - 1];
  let before = 0;
  for (const cut of cuts) {
    bench.proxy.arm({ after: cut - before, how: 'fin' });
    before = cut;
  }
  ok(await transfer(file));
  await delivered(bench, file);
  // The question after a cut ends the request before, maybe before all its bytes were read.
  // Chromium sends a request that was cut again by itself.
  const offsets = bench.app.patches.map(one => Number(one.offset));
  if (!bench.client.can.includes('resends')) assert.ok(Math.max(...offsets) > 600_000, `${offsets}`);
});

add(
  'the application fails once',
  async (bench, transfer) => {
    const file = made(2 * C);
    ok(await transfer(file, { chunk: C }));
    await delivered(bench, file, { attempt: 2 });
    assert.equal(statuses(bench.app.patches).at(1), 503);
  },
  { args: ['--fail', '1'] },
);

add('503 at PATCH', async (bench, transfer) => {
  const file = made(3 * C);
  ok(await transfer(file, { chunk: C }));
  await delivered(bench, file);
  assert.equal(bench.app.exchanges('POST').length, 1);
}, { args: ['--fault', 'PATCH 2 503'] });

add(
  'server killed',
  async (bench, transfer) => {
    const file = made(6 * C);
    const held = bench.proxy.arm({ skip: 3, after: 10_000, how: 'hold' });
    const work = transfer(file, { chunk: C });
    await held.reached;
    await bench.app.kill();
    await bench.app.restart();
    held.release();
    ok(await work);
    await delivered(bench, file);
    assert.equal(bench.app.exchanges('POST').length, 1);
  },
  { stores: ['file'] },
);
