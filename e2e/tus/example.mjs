// Uppy in the page of the axum example, and in the page of examples/uppy. ./run starts it.
import assert from 'node:assert/strict';
import { readFile, mkdtemp, rm } from 'node:fs/promises';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { Server, fill, hashFile } from '../browser/lib.mjs';
import { MIB, made } from './lib.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
  args: ['--headless', '--no-sandbox', '--disable-gpu', '--disable-background-networking'],
});

const TYPES = { '.html': 'text/html', '.js': 'text/javascript', '.css': 'text/css' };
/** The page of examples/uppy, of another origin than the server. */
const site = createServer(async (request, response) => {
  const name = request.url.split('?')[0].slice(1) || 'index.html';
  const path = join(here, '../../examples/uppy/dist', name);
  response.setHeader('Content-Type', TYPES[/\.\w+$/.exec(name)?.[0]] ?? 'text/plain');
  response.end(await readFile(path).catch(() => ''));
});
await new Promise(resolve => site.listen(0, '127.0.0.1', resolve));
const origin = `http://127.0.0.1:${site.address().port}`;

async function run(name, open, answer) {
  const dir = await mkdtemp(join(tmpdir(), 'tus-example-'));
  const args = ['--allow-origin', origin];
  const server = await Server.start(process.env.EXAMPLE, dir, args);
  const page = await browser.newPage();
  page.setDefaultTimeout(20_000);
  try {
    await open(page, server);
    const file = made(3 * MIB + 5, 'picture.bin');
    await page.setInputFiles('#uppy input[type=file] >> nth=0', {
      name: file.name,
      mimeType: file.type,
      buffer: Buffer.from(fill(file.seed, file.size)),
    });
    await page.click('#uppy .uppy-StatusBar-actionBtn--upload');
    const text = await page.waitForFunction(
      ([id, name]) => {
        const { textContent } = document.querySelector(id);
        return textContent.includes(name) && textContent;
      },
      [answer, file.name],
    );
    await server.kill();
    const [one, ...others] = server.deliveries;
    assert.deepEqual(others, []);
    assert.equal(await hashFile(one.path), file.sha256);
    // The answer of the handler is shown.
    assert.ok((await text.jsonValue()).includes(one.id));
    console.log(`${name}: ok`);
  } catch (error) {
    console.log(`${name}: FAIL\n${error.stack}\n${server.log}`);
    process.exitCode = 1;
  } finally {
    await page.close();
    await server.kill();
    await rm(dir, { recursive: true, force: true });
  }
}

await run(
  'Uppy in the page of the axum example',
  async (page, server) => {
    await page.route('https://cdn.jsdelivr.net/npm/uppy@6.0.1/**', route =>
      route.fulfill({
        path: join(here, 'node_modules/uppy', new URL(route.request().url()).pathname.slice(15)),
        headers: { 'Access-Control-Allow-Origin': '*' },
      }),
    );
    await page.goto(server.origin);
    await page.click('#uppy-open');
  },
  '#uppy-state',
);
await run(
  'the page of examples/uppy',
  (page, server) => page.goto(`${origin}/?endpoint=${server.origin}/upload`),
  '#answers',
);
await browser.close();
site.close();
