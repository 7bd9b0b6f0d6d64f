// Resumable.js in Chromium with several servers that share a real object store, behind a balancer.
// Servers are killed during uploads. `SUITES=browser ../buckets/run` starts it.
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { EventEmitter, once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { join } from 'node:path';
import { chromium } from 'playwright-core';
import { Traffic, fill } from './lib.mjs';
import { C, MIB, made } from './steps.mjs';

const here = fileURLToPath(new URL('.', import.meta.url));
const [program, ...args] = process.argv.slice(2);

/** The servers, their process ids, and the events that their applications report. */
class Servers extends EventEmitter {
  events = [];
  pids = [];
  log = '';

  async start() {
    this.child = spawn(program, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    createInterface({ input: this.child.stdout }).on('line', line => {
      this.events.push(JSON.parse(line));
      this.emit('change');
    });
    this.origin = await new Promise((resolve, reject) => {
      createInterface({ input: this.child.stderr }).on('line', line => {
        this.log += line + '\n';
        const server = /^server (\d+) is process (\d+)$/.exec(line);
        if (server) this.pids[server[1]] = Number(server[2]);
        const listening = /^listening on (.*)$/.exec(line);
        if (listening) resolve(listening[1]);
      });
      this.child.once('close', () =>
        reject(new Error(`the servers ended before they listened:\n${this.log}`)),
      );
    });
  }

  /** Sends SIGKILL to a server. Its parent starts it again. */
  kill(server) {
    process.kill(this.pids[server], 'SIGKILL');
  }

  async until(holds) {
    while (!holds()) await once(this, 'change');
  }

  /** Closes standard input, which ends the program and its servers. */
  async stop() {
    const closed = once(this.child, 'close');
    this.child.stdin.end();
    await closed;
  }
}

const servers = new Servers();
await servers.start();
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

async function run(client, options, size, { kills }) {
  const script =
    client === '1.0.2'
      ? 'node_modules/resumablejs-1.0.2/resumable.js'
      : 'node_modules/resumablejs/resumable.js';
  const file = made(`${client}-${options.chunkSize}-${kills}.bin`, size);
  const context = await browser.newContext();
  try {
    // An empty page of the servers' origin.
    await context.route('**/blank.html', route =>
      route.fulfill({
        contentType: 'text/html; charset=utf-8',
        body: '<!doctype html><title>blank</title>',
      }),
    );
    const page = await context.newPage();
    page.traffic = new Traffic(page);
    await page.goto(`${servers.origin}/blank.html`);
    await page.addScriptTag({ content: fill.toString() });
    for (const one of [script, 'driver.js']) await page.addScriptTag({ path: join(here, one) });
    const all = { target: '/upload', simultaneousUploads: 4, chunkRetryInterval: 100, ...options };
    await page.evaluate(([options, file]) => window.start(options, { made: [file] }), [all, file]);
    const since = servers.events.length;
    if (kills) {
      await page.traffic.until('some chunks', () => page.traffic.stored().length >= 2);
      servers.kill(0);
      // Kills the server that is delivering the upload, too.
      await servers.until(() => servers.events.slice(since).some(e => e.event === 'called'));
      process.kill(servers.events.slice(since).find(e => e.event === 'called').pid, 'SIGKILL');
    }
    await page.evaluate(() => window.done);
    await page.traffic.idle();
    const ends = await page.evaluate(() => window.events);
    assert.deepEqual(
      ends.map(e => [e.kind, e.name]),
      [['success', file.name]],
    );
    // The balancer answers 502 if a server has died.
    for (const e of page.traffic.list)
      assert.ok(
        e.failure || [200, 204, 502, 503].includes(e.status),
        `${e.method} was answered ${e.status}`,
      );
    const ours = () => servers.events.filter(e => e.file_name === file.name);
    await servers.until(() => ours().some(e => e.event === 'read'));
    const calls = ours().filter(e => e.event === 'called');
    assert.equal(new Set(calls.map(e => e.id)).size, 1, 'one id');
    if (!kills) assert.equal(calls.length, 1, 'one delivery');
    else
      assert.deepEqual(
        calls.map(e => e.attempt),
        calls.map((_, i) => i + 1),
        'attempts are counted',
      );
    for (const read of ours().filter(e => e.event === 'read')) assert.equal(read.sha256, file.hash);
    return `${page.traffic.chunks().length} chunks sent, ${calls.length} deliveries`;
  } finally {
    await context.close();
  }
}

let failed = 0;
for (const client of ['1.0.2', '1.1.0']) {
  for (const [layout, chunkSize, size] of [
    ['objects', C, 4 * MIB + 17],
    ['parts', 5 * MIB, 32 * MIB + 17],
  ]) {
    for (const kills of [false, true]) {
      const begun = performance.now();
      let timer;
      const limit = new Promise((_, reject) => {
        timer = setTimeout(
          () =>
            reject(
              new Error(
                `not done in 90 s\n${servers.log}\n${JSON.stringify(servers.events.slice(-6))}`,
              ),
            ),
          90_000,
        );
      });
      const result = await Promise.race([run(client, { chunkSize }, size, { kills }), limit]).catch(
        error => error,
      );
      clearTimeout(timer);
      const bad = result instanceof Error;
      if (bad) failed++;
      console.log(
        `${client} | ${layout.padEnd(7)} | ${(kills ? 'servers killed' : 'no fault').padEnd(14)} | ${bad ? 'FAIL' : 'ok'} | ${Math.round(performance.now() - begun)} ms | ${bad ? result.stack : result}`,
      );
    }
  }
}
await browser.close();
await servers.stop();
process.exitCode = failed ? 1 : 0;
