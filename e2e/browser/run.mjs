// Runs every case with a separate server, folder and page, and prints a line for each. ./run starts
// it.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';
import { cases as resumable } from './cases.mjs';
import { Server, Traffic, fill, metrics } from './lib.mjs';
import { cases as others } from './others.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const only = process.env.ONLY && new RegExp(process.env.ONLY);
const program = process.env.SERVER;

const JQUERY = 'node_modules/jquery/dist/jquery.js';
/** The scripts of each client: the release under test, and the script that controls it. */
const SCRIPTS = {
  '1.0.2': ['node_modules/resumablejs-1.0.2/resumable.js', 'driver.js'],
  '1.1.0': ['node_modules/resumablejs/resumable.js', 'driver.js'],
  'flow.js': ['node_modules/@flowjs/flow.js/dist/flow.js', 'clients.js'],
  'simple-uploader': ['node_modules/simple-uploader.js/dist/uploader.js', 'clients.js'],
  Dropzone: ['node_modules/dropzone/dist/dropzone-min.js', 'clients.js'],
  Plupload: ['node_modules/plupload/js/plupload.full.min.js', 'clients.js'],
  WebUploader: [JQUERY, 'node_modules/webuploader/dist/webuploader.html5only.js', 'clients.js'],
  blueimp: [
    JQUERY,
    'node_modules/blueimp-file-upload/js/vendor/jquery.ui.widget.js',
    'node_modules/blueimp-file-upload/js/jquery.fileupload.js',
    'clients.js',
  ],
  FilePond: ['node_modules/filepond/dist/filepond.js', 'clients.js'],
  'huge-uploader': ['node_modules/huge-uploader/lib/index.js', 'clients.js'],
  'bootstrap-fileinput': [JQUERY, 'node_modules/bootstrap-fileinput/js/fileinput.js', 'clients.js'],
  'Fine Uploader': ['node_modules/fine-uploader/fine-uploader/fine-uploader.core.js', 'clients.js'],
};
if (!program) throw new Error('SERVER must name the example program; ./run sets it');
if (process.env.SCREENSHOTS) await mkdir(process.env.SCREENSHOTS, { recursive: true });

const browser = await chromium.launch({
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

/** The server, the pages and the folders of one case. */
class Bench {
  traffic = [];
  pages = [];
  /** Printed below the case's line. */
  notes = [];

  async setUp(client, args) {
    this.client = client;
    this.dir = await mkdtemp(join(tmpdir(), 'browser-suite-'));
    await mkdir(join(this.dir, 'server'));
    await mkdir(join(this.dir, 'source'));
    this.server = await Server.start(program, join(this.dir, 'server'), args);
    this.context = await browser.newContext();
    // An empty page of the server's origin, so that the example page cannot influence the client.
    await this.context.route('**/blank.html', route =>
      route.fulfill({
        contentType: 'text/html; charset=utf-8',
        body: '<!doctype html><title>blank</title><input type="file" id="pick">',
      }),
    );
    this.page = await this.newPage();
  }

  async newPage() {
    const page = await this.context.newPage();
    page.traffic = new Traffic(page);
    this.traffic.push(page.traffic);
    this.pages.push(page);
    page.on('pageerror', error => {
      page.error = error;
    });
    return page;
  }

  /** Loads the blank page with the release under test. */
  async open(page = this.page) {
    await page.goto(`${this.server.origin}/blank.html`);
    // huge-uploader is made for bundlers.
    if (this.client === 'huge-uploader')
      await page.addScriptTag({ content: 'window.module = {};' });
    await page.addScriptTag({ content: fill.toString() });
    for (const script of SCRIPTS[this.client])
      await page.addScriptTag({ path: join(here, script) });
  }

  /** Limits the bandwidth, so that an upload takes long enough to be interrupted. */
  async throttle(bytesPerSecond, page = this.page) {
    this.cdp ??= await this.context.newCDPSession(page);
    await this.cdp.send('Network.enable');
    await this.cdp.send('Network.emulateNetworkConditions', {
      offline: false,
      latency: 0,
      downloadThroughput: -1,
      uploadThroughput: bytesPerSecond,
    });
  }

  /** The whole page, or its part above an element. */
  async screenshot(name, above) {
    if (!process.env.SCREENSHOTS) return;
    const path = join(process.env.SCREENSHOTS, `${name}.png`);
    if (!above) return this.page.screenshot({ path, fullPage: true });
    const size = this.page.viewportSize();
    await this.page.setViewportSize({ width: 720, height: 900 });
    const { y } = await this.page.locator(above).boundingBox();
    const clip = { x: 0, y: 0, width: 720, height: y - 24 };
    await this.page.screenshot({ path, clip });
    await this.page.setViewportSize(size);
  }

  describe() {
    const waits = [this.server, ...this.traffic].map(x => x?.waitingFor).filter(Boolean);
    return [
      waits.length ? `waited for: ${waits.join('; ')}` : '',
      ...this.traffic.map(
        (t, i) =>
          `requests of page ${i + 1}, ${t.list.length} in all, the last of them:\n${t.describe().split('\n').slice(-25).join('\n')}`,
      ),
      `deliveries: ${JSON.stringify(this.server?.deliveries)}`,
      `server log:\n${this.server?.log.slice(-2000)}`,
    ]
      .filter(Boolean)
      .join('\n');
  }

  async tearDown() {
    await this.context?.close();
    await this.server?.kill();
    await rm(this.dir, { recursive: true, force: true });
  }
}

async function runOne(bench, { client, seconds = 30, run, args }) {
  let timer;
  try {
    await bench.setUp(client, args);
    const work = run(bench);
    // After a timeout this promise is rejected, because its page is closed.
    work.catch(() => {});
    await Promise.race([
      work,
      new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`not done in ${seconds} s`)), seconds * 1000);
      }),
    ]);
    for (const page of bench.pages) if (page.error) throw page.error;
  } catch (error) {
    return `${error.stack || error}\n${bench.describe()}`;
  } finally {
    clearTimeout(timer);
    await bench.tearDown();
  }
}

const chosen = [...resumable, ...others].filter(c => !only || only.test(`${c.client} | ${c.mode}`));
const width = Math.max(...chosen.map(c => c.mode.length), 4);
const line = (client, mode, result, ms) =>
  console.log(
    `${client.padEnd(19)} | ${mode.padEnd(width)} | ${result.padEnd(6)} | ${String(ms).padStart(6)}`,
  );

line('client', 'mode', 'result', 'ms');
let passed = 0;
let failed = 0;
const queue = [...chosen];
async function work() {
  for (let one = queue.shift(); one; one = queue.shift()) {
    const begun = performance.now();
    const bench = new Bench();
    const problem = await runOne(bench, one);
    line(one.client, one.mode, problem ? 'FAIL' : 'ok', Math.round(performance.now() - begun));
    if (bench.notes.length) console.log(`    ${bench.notes.join('; ')}`);
    if (problem) {
      failed++;
      console.log(problem.replace(/^/gm, '    '));
    } else passed++;
  }
}
const workers = Number(process.env.WORKERS) || availableParallelism();
await Promise.all(Array.from({ length: workers }, work));
await browser.close();
console.log(`${passed} passed, ${failed} failed`);
if (metrics.size) console.log('\nsums of the metrics of all servers:');
for (const [name, value] of [...metrics].sort()) console.log(`${name} ${Number(value.toFixed(3))}`);
process.exitCode = failed || !passed ? 1 : 0;
