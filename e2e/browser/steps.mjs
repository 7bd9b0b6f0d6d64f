// Shared steps of the cases: files to make in a page, and the checks of their uploads.
import assert from 'node:assert/strict';
import { fill, hash, hashFile } from './lib.mjs';

export const KIB = 1024;
export const MIB = 1024 * KIB;
/** The bytes of a chunk. */
export const C = 64 * KIB;

let seeds = 1;
/** Describes a file that the page makes. */
export function made(name, size, type = '') {
  const seed = 7919 * seeds++;
  return { name, seed, size, type, hash: hash(fill(seed, size)) };
}

/**
 * Checks that every file succeeded once, was delivered once, and has the bytes of its source.
 * `answers` is the number of chunks: exactly one probe or upload of each was answered with 200.
 */
export async function verify(bench, files, options) {
  await succeeded(bench, files, options);
  await delivered(bench, files);
}

export async function succeeded(
  bench,
  files,
  { answers, failures = /(?!)/, statuses = [200, 204], pages = [bench.page], since = 0 } = {},
) {
  for (const page of pages) {
    await page.traffic.idle();
    const events = await page.evaluate(() => window.events);
    assert.deepEqual(
      events.filter(e => e.kind === 'error'),
      [],
      'a file failed',
    );
    assert.deepEqual(
      events.map(e => e.name).sort(),
      files.map(f => f.name).sort(),
      'fileSuccess once for each file',
    );
    const list = page.traffic.list.slice(since);
    for (const entry of list) {
      if (entry.failure) assert.match(entry.failure, failures);
      else
        assert.ok(statuses.includes(entry.status), `${entry.method} was answered ${entry.status}`);
    }
    if (answers !== undefined)
      assert.equal(list.filter(e => e.status === 200).length, answers, 'answers "have it"');
  }
}

export async function delivered(bench, files) {
  const { server } = bench;
  await server.until(`${files.length} deliveries`, () => server.deliveries.length >= files.length);
  // All requests are answered, so after the kill nothing more can be delivered.
  await server.kill();
  assert.equal(
    server.deliveries.length,
    files.length,
    `deliveries: ${JSON.stringify(server.deliveries)}`,
  );
  const left = [...server.deliveries];
  for (const file of files) {
    let found = -1;
    for (const [i, one] of left.entries()) {
      if (
        one.file_name === file.name &&
        one.size === file.size &&
        (await hashFile(one.path)) === file.hash
      )
        found = i;
    }
    assert.notEqual(
      found,
      -1,
      `no delivery has the name, size and bytes of ${file.name}: ${JSON.stringify(left)}`,
    );
    assert.equal(left[found].attempt, 1);
    left.splice(found, 1);
  }
}

/** Delays uploads until `count` of them wait, then continues all of them. */
export async function together(target, count) {
  let release;
  let waiting = 0;
  const open = new Promise(resolve => {
    release = resolve;
  });
  await target.route(
    url => url.pathname === '/upload',
    async route => {
      if (route.request().method() === 'POST') {
        if (++waiting === count) release();
        await open;
      }
      await route.continue();
    },
  );
}
