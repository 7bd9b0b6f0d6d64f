// Resumable.js and flow.js in Firefox, which writes forms and names differently from Chromium.
import assert from 'node:assert/strict';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import puppeteer from 'puppeteer-core';
import { Server, fill } from './lib.mjs';
import { C, delivered, made } from './steps.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const program = process.env.SERVER;
if (!program) throw new Error('SERVER must name the example program; ./run sets it');

const CLIENTS = {
  '1.0.2': ['node_modules/resumablejs-1.0.2/resumable.js', 'driver.js'],
  '1.1.0': ['node_modules/resumablejs/resumable.js', 'driver.js'],
  'flow.js': ['node_modules/@flowjs/flow.js/dist/flow.js', 'clients.js'],
};

const names = [
  '日本語の資料.txt',
  'e\u0301a\u0308 "it\'s".txt',
  '%2e%2e%2f & + ; = ?.txt',
  'plain.bin',
];
const MODES = {
  'multipart, names': [{}, () => names.map((name, i) => made(name, 3 * C + i, 'text/plain'))],
  octet: [{ method: 'octet' }, () => [made('a.bin', 3 * C + 1)]],
  'empty file': [{ minFileSize: 0 }, () => [made('empty.txt', 0)]],
  base64: [{ chunkFormat: 'base64' }, () => [made('a.bin', 3 * C + 2)], ['1.1.0']],
};

const browser = await puppeteer.launch({
  browser: 'firefox',
  executablePath: process.env.FIREFOX,
  headless: true,
});

async function run(client, options, files) {
  const dir = await mkdtemp(join(tmpdir(), 'firefox-suite-'));
  const server = await Server.start(program, dir);
  try {
    // Each file in a separate page: Resumable.js strips most letters from names, and would skip a
    // file whose identifier is the same.
    for (const file of files) {
      const page = await browser.newPage();
      // There is no such page, but the answer has the origin of the server.
      await page.goto(`${server.origin}/blank.html`);
      await page.evaluate(`window.fill = ${fill}`);
      for (const script of CLIENTS[client]) await page.addScriptTag({ path: join(here, script) });
      const all = { target: '/upload', chunkSize: C, ...options };
      const events = await page.evaluate(
        async (client, options, file) => {
          if (client === 'flow.js') window.start(client, options, [file]);
          else window.start(options, { made: [file] });
          await window.done;
          return window.events.map(e => [e.kind, e.name]);
        },
        client,
        all,
        file,
      );
      assert.deepEqual(events, [['success', file.name]]);
      await page.close();
    }
    await delivered({ server }, files);
  } finally {
    await server.kill();
    await rm(dir, { recursive: true, force: true });
  }
}

let failed = 0;
let passed = 0;
for (const client of Object.keys(CLIENTS)) {
  for (const [mode, [options, files, clients]] of Object.entries(MODES)) {
    if (clients && !clients.includes(client)) continue;
    let timer;
    const limit = new Promise((_, reject) => {
      timer = setTimeout(() => reject(new Error('not done in 30 s')), 30_000);
    });
    const problem = await Promise.race([run(client, options, files()), limit]).then(
      () => undefined,
      error => error,
    );
    clearTimeout(timer);
    console.log(`${client.padEnd(8)} | ${mode.padEnd(16)} | ${problem ? 'FAIL' : 'ok'}`);
    if (problem) console.log(String(problem.stack).replace(/^/gm, '    '));
    if (problem) failed++;
    else passed++;
  }
}
await browser.close();
console.log(`Firefox: ${passed} passed, ${failed} failed`);
process.exitCode = failed || !passed ? 1 : 0;
