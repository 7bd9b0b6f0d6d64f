// What the snippets do in Chromium. Each case has a new page, and they share a server.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { Server, Traffic, fill, hash, hashFile } from '../browser/lib.mjs';

const browserSuite = createRequire(new URL('../browser/run.mjs', import.meta.url));
const { chromium } = browserSuite('playwright-core');
const MIB = 1024 * 1024;

const { outputFiles } = await build({
  entryPoints: [fileURLToPath(new URL('page.tsx', import.meta.url))],
  bundle: true,
  write: false,
  format: 'iife',
  define: { 'process.env.NODE_ENV': '"production"' },
});
const script = outputFiles[0].text;

/** Runs in the page: makes a file whose name and content depend on `seed`. */
const helpers = `
  window.fill = ${fill};
  window.made = (seed, size) =>
    new File([fill(seed, size)], 'file ' + seed + '.bin', { lastModified: seed });
  window.shown = [];
`;

const dir = await mkdtemp(join(tmpdir(), 'front-ends-'));
const server = await Server.start(process.env.SERVER, dir);
const target = `${server.origin}/upload`;
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--headless', '--no-sandbox', '--disable-gpu'],
});

async function open(page) {
  // An empty page of the origin of the server.
  await page.route('**/blank.html', route =>
    route.fulfill({ contentType: 'text/html', body: '<!doctype html><title>blank</title>' }),
  );
  await page.goto(`${server.origin}/blank.html`);
  await page.addScriptTag({ content: helpers });
  await page.addScriptTag({ content: script });
}

/** Checks that a file was delivered once, with its bytes. */
async function delivered(seed, size) {
  const mine = () => server.deliveries.filter(one => one.file_name === `file ${seed}.bin`);
  await server.until(`delivery of file ${seed}`, () => mine().length > 0);
  assert.equal(mine().length, 1);
  assert.equal(await hashFile(mine()[0].path), hash(fill(seed, size)));
  return mine()[0].id;
}

/** Limits the bandwidth, in bytes per second. -1 is no limit. */
async function throttle(page, uploadThroughput) {
  page.cdp ??= await page.context().newCDPSession(page);
  await page.cdp.send('Network.enable');
  await page.cdp.send('Network.emulateNetworkConditions', {
    offline: false,
    latency: 0,
    downloadThroughput: -1,
    uploadThroughput,
  });
}

/** Answers the `nth` request of these methods with 401, as a layer that authenticates. */
async function expire(page, methods, nth) {
  let count = 0;
  await page.route(
    url => url.pathname === '/upload',
    route => {
      if (!methods.includes(route.request().method()) || ++count !== nth) return route.continue();
      return route.fulfill({ status: 401, body: 'sign in' });
    },
  );
}

const cases = {
  async 'Uppy shows the answer of the handler'(page) {
    await page.evaluate(async target => {
      const uppy = window.uppy.makeUppy(target, (...shown) => window.shown.push(shown));
      const file = window.made(1, 300_000);
      uppy.addFile({ name: file.name, type: file.type, data: file });
      await uppy.upload();
    }, target);
    await page.waitForFunction(() => window.shown.length === 1);
    const [[name, answer]] = await page.evaluate(() => window.shown);
    assert.equal(name, 'file 1.bin');
    assert.equal(JSON.parse(answer).id, await delivered(1, 300_000));
  },

  async 'tus: resume after a reload'(page) {
    await throttle(page, MIB);
    await page.evaluate(target => {
      window.sending = window.resume.send(window.made(2, 2 * 1024 * 1024), target, part => {
        window.part = part;
      });
    }, target);
    await page.waitForFunction(() => window.part > 0.4);
    await open(page);
    await throttle(page, -1);
    const before = page.traffic.list.length;
    await page.evaluate(
      target => window.resume.send(window.made(2, 2 * 1024 * 1024), target, () => {}),
      target,
    );
    const [head, patch] = page.traffic.list.slice(before);
    assert.deepEqual([head.method, patch.method], ['HEAD', 'PATCH']);
    assert.ok(Number(patch.request.headers()['upload-offset']) > 0);
    await delivered(2, 2 * MIB);
  },

  async 'Resumable.js: the answer, and cancel'(page) {
    await page.evaluate(target => {
      window.r = window.resumable.makeResumable(target, (...shown) => window.shown.push(shown));
      window.r.addFile(window.made(3, 1_500_000));
    }, target);
    await page.waitForFunction(() => window.shown.at(-1)?.[1].startsWith('{'));
    const [, answer] = await page.evaluate(() => window.shown.at(-1));
    assert.equal(JSON.parse(answer).id, await delivered(3, 1_500_000));

    await throttle(page, MIB);
    await page.evaluate(() => window.r.addFile(window.made(4, 5_000_000)));
    await page.traffic.until('a stored chunk', () => page.traffic.stored().length > 1);
    const list = () => page.evaluate(target => window.unfinished.unfinished(target), target);
    const [listed] = (await list()).filter(one => one.file_name === 'file 4.bin');
    assert.ok(listed.received >= MIB && listed.received < listed.total);
    await page.evaluate(
      target => window.resumable.cancel(target, window.r.files.at(-1)),
      target,
    );
    assert.deepEqual((await list()).filter(one => one.file_name === 'file 4.bin'), []);
  },

  async 'fetch: cancel, resume after a reload, sign in again'(page) {
    await page.evaluate(async target => {
      const stop = new AbortController();
      const progress = part => part > 0.3 && stop.abort();
      const options = { target, progress, signal: stop.signal };
      window.failure = await window.chunks.sendChunks(window.made(5, 5 << 20), options).then(
        () => 'none',
        error => error.name,
      );
    }, target);
    assert.equal(await page.evaluate(() => window.failure), 'AbortError');
    assert.equal(page.traffic.stored().length, 2);
    await open(page);
    await expire(page, ['POST'], 2);
    const before = page.traffic.list.length;
    const [answer, parts, signedIn] = await page.evaluate(async target => {
      const parts = [];
      let signedIn = 0;
      const answer = await window.chunks.sendChunks(window.made(5, 5 << 20), {
        target,
        progress: part => parts.push(part),
        signIn: async () => void signedIn++,
      });
      return [answer, parts, signedIn];
    }, target);
    assert.equal(JSON.parse(answer).id, await delivered(5, 5 * MIB));
    assert.deepEqual(parts, [0.2, 0.4, 0.6, 0.8, 1]);
    assert.equal(signedIn, 1);
    await page.traffic.idle();
    const posts = page.traffic.list.slice(before).filter(e => e.method === 'POST');
    assert.deepEqual(
      posts.map(e => e.status),
      [200, 401, 200, 200],
    );
  },

  async 'tus: sign in again'(page) {
    await expire(page, ['POST', 'PATCH'], 2);
    const tokens = await page.evaluate(async target => {
      let token = 'old';
      await window.signIn.sendSignedIn(
        window.made(6, 300_000),
        target,
        () => token,
        async () => void (token = 'new'),
      );
      return token;
    }, target);
    assert.equal(tokens, 'new');
    const sent = page.traffic.list.map(e => e.request.headers().authorization);
    assert.deepEqual([sent[0], sent.at(-1)], ['Bearer old', 'Bearer new']);
    await delivered(6, 300_000);
  },

  async 'React: the answer, and cancel'(page) {
    await page.evaluate(target => window.mount(target), target);
    const choose = seed =>
      page.locator('input').setInputFiles({
        name: `file ${seed}.bin`,
        mimeType: 'application/octet-stream',
        buffer: Buffer.from(fill(seed, 2 * MIB)),
      });
    const status = page.getByRole('status');
    await choose(7);
    await status.filter({ hasText: '"size":2097152' }).waitFor();
    await delivered(7, 2 * MIB);
    await throttle(page, MIB / 2);
    await choose(8);
    await page.getByRole('progressbar').waitFor();
    await page.traffic.until('PATCH', () => page.traffic.list.at(-1).method !== 'HEAD');
    await page.waitForFunction(() => document.querySelector('progress').value > 20);
    await page.getByRole('button', { name: 'Cancel' }).click();
    await status.filter({ hasText: 'cancelled' }).waitFor();
    assert.equal(page.traffic.list.at(-1).method, 'DELETE');
    assert.ok(!server.deliveries.some(one => one.file_name === 'file 8.bin'));
  },
};

let failed = 0;
for (const [name, run] of Object.entries(cases)) {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.traffic = new Traffic(page);
  let timer;
  const limit = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error('not done in 30 s')), 30_000);
  });
  const work = open(page).then(() => run(page));
  const problem = await Promise.race([work, limit]).then(
    () => undefined,
    error => error,
  );
  clearTimeout(timer);
  console.log(`${name.padEnd(52)} | ${problem ? 'FAIL' : 'ok'}`);
  if (problem) {
    failed++;
    console.log(`${problem.stack}\n${page.traffic.describe()}`.replace(/^/gm, '    '));
  }
  await context.close();
  // After a timeout it is rejected, because its page is closed.
  await work.catch(() => {});
}
await browser.close();
await server.kill();
await rm(dir, { recursive: true, force: true });
console.log(`front ends: ${Object.keys(cases).length - failed} passed, ${failed} failed`);
process.exitCode = failed ? 1 : 0;
