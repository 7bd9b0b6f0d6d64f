// The clients: unmodified releases, and which cases each of them can run.
import { spawn } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { createReadStream } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import * as esbuild from 'esbuild';
import tus4 from 'tus-js-client';
import urls4 from 'tus-js-client/lib.es5/node/urlStorage.js';
import * as tus5 from 'tus-js-client-5';
import { FileUrlStorage } from 'tus-js-client-5/node/FileUrlStorage';
import { fill } from '../browser/lib.mjs';
import { transfer } from './tus.js';

const here = fileURLToPath(new URL('.', import.meta.url));

/** Writes the file of a case to disk, for clients that read it from there. */
async function onDisk(bench, file) {
  if (file.path) return file.path;
  const folder = join(bench.dir, 'source');
  await mkdir(folder, { recursive: true });
  const path = join(folder, 'content.bin');
  await writeFile(path, fill(file.seed, file.size));
  return path;
}

// ---- node ---------------------------------------------------------------------------------------

const node = (tus, Storage) => ({
  async transfer(bench, file, task) {
    if (task.storage) task = { ...task, storage: new Storage(join(bench.dir, 'urls.json')) };
    let source;
    if (file.path) source = createReadStream(file.path);
    else if (task.defer) {
      source = new PassThrough();
      source.end(fill(file.seed, file.size));
    } else source = Buffer.from(fill(file.seed, file.size));
    return transfer(tus, source, task);
  },
});

// ---- Chromium -----------------------------------------------------------------------------------

let browser;
/** An empty page with the clients, of another origin than the server. */
let site;
async function launch() {
  const built = await esbuild.build({
    entryPoints: [join(here, 'page.js')],
    bundle: true,
    write: false,
    format: 'iife',
    logLevel: 'error',
  });
  const script = `${fill}\n${built.outputFiles[0].text}`;
  site = createServer((request, response) => {
    const type = request.url === '/' ? 'text/html' : 'text/javascript';
    response.setHeader('Content-Type', `${type}; charset=utf-8`);
    response.end(
      request.url === '/'
        ? '<!doctype html><link rel="icon" href="data:,"><script src="clients.js"></script>'
        : script,
    );
  });
  await new Promise(resolve => site.listen(0, '127.0.0.1', resolve));
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
}

/** Pages for the next cases: a context takes longer to make than most cases to run. */
const pages = [];

async function open(bench) {
  const page = pages.pop() ?? (await (await browser.newContext()).newPage());
  await load(page);
  await page.evaluate(() => localStorage.clear());
  page.removeAllListeners('pageerror');
  page.on('pageerror', error => {
    bench.error = error;
  });
  bench.done.push(() => pages.push(page));
  return page;
}

/** The page is of another origin than the server. */
const load = page => page.goto(`http://127.0.0.1:${site.address().port}/`);

const inPage = client => ({
  async transfer(bench, file, task) {
    bench.page ??= await open(bench);
    return bench.page.evaluate(
      ([client, file, task]) => window.transfer(client, file, task),
      [client, file, task],
    );
  },
  /** A second tab: it shares the storage of the first. */
  async newTab(bench) {
    const page = await bench.page.context().newPage();
    bench.done.push(() => page.close());
    await load(page);
    return { ...bench, page };
  },
  reload: bench => load(bench.page),
});

// ---- Python -------------------------------------------------------------------------------------

let worker;
const waiting = new Map();
function startPython() {
  worker = spawn(process.env.PYTHON, [join(here, 'clients.py')], {
    stdio: ['pipe', 'pipe', 'inherit'],
  });
  createInterface({ input: worker.stdout }).on('line', line => {
    const { task, ...said } = JSON.parse(line);
    waiting.get(task)(said);
    waiting.delete(task);
  });
}

let tasks = 0;
const python = client => ({
  async transfer(bench, file, task) {
    const number = ++tasks;
    const path = await onDisk(bench, file);
    const storage = task.storage && join(bench.dir, 'urls.json');
    return new Promise(resolve => {
      waiting.set(number, resolve);
      const line = { ...task, storage, client, path, task: number };
      worker.stdin.write(JSON.stringify(line) + '\n');
    });
  },
});

// ---- all ----------------------------------------------------------------------------------------

// What a client can do: see `needs` of the cases. `retries STATUS METHOD`: it goes on after this.
const TUS_JS = [
  'draft',
  'empty',
  'data',
  'defer',
  'concat',
  'override',
  'resume',
  'terminate',
  'answer',
  'retries 503 PATCH',
  'retries 423 PATCH',
  'retries 409 PATCH',
  'retries 503 POST',
  'retries 423 HEAD',
];
const BROWSER = ['tabs', 'reload', 'ends', 'resends'];

export const CLIENTS = [
  { name: 'tus-js 4 node', can: [...TUS_JS, 'large'], ...node(tus4, urls4.FileUrlStorage) },
  { name: 'tus-js 5 node', can: [...TUS_JS, 'large', 'pieces'], ...node(tus5, FileUrlStorage) },
  { name: 'tus-js 4 page', can: [...TUS_JS, ...BROWSER], ...inPage('tus4') },
  { name: 'tus-js 5 page', can: [...TUS_JS, ...BROWSER], ...inPage('tus5') },
  {
    name: 'uppy',
    can: [...TUS_JS.filter(one => one !== 'defer' && one !== 'draft'), ...BROWSER, 'pause', 'text'],
    ...inPage('uppy'),
  },
  {
    name: 'tuspy',
    can: [
      'empty',
      'resume',
      'checksum',
      'retries 503 PATCH',
      'retries 423 PATCH',
      'retries 409 PATCH',
      'retries 460 PATCH',
      'retries 423 HEAD',
    ],
    ...python('tuspy'),
  },
  {
    name: 'aiotus',
    can: [
      'empty',
      'concat',
      'resume',
      'absolute',
      'large',
      'retries 503 PATCH',
      'retries 423 PATCH',
      'retries 409 PATCH',
      'retries 503 POST',
      'retries 423 HEAD',
    ],
    ...python('aiotus'),
  },
  {
    name: 'resumable-upload',
    can: [
      'empty',
      'defer',
      'ends',
      'concat',
      'override',
      'resume',
      'terminate',
      'checksum',
      'retries 503 PATCH',
      'retries 423 PATCH',
      'retries 409 PATCH',
    ],
    ...python('resumable-upload'),
  },
];

export async function start() {
  await launch();
  startPython();
}

export async function stop() {
  await browser.close();
  site.close();
  worker.stdin.end();
}
