// Runs every case with every client that can, on every store, and prints a line for each and a
// matrix at the end. ./run starts it.
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { CLIENTS, start, stop } from './clients.mjs';
import { credit } from './credit.mjs';
import { App, Proxy } from './lib.mjs';

// e2e/ietf has cases of its own.
const { cases } = await import(process.env.CASES || './cases.mjs');
const only = process.env.ONLY && new RegExp(process.env.ONLY);
const stores = (process.env.STORES || 'file memory bucket').split(' ');
const program = process.env.SERVER;
if (!program) throw new Error('SERVER must name the program to test; ./run sets it');

/** The server, the proxy and the folder of one case. */
class Bench {
  /** Called at the end of a case that passed. */
  done = [];

  async setUp(store, args) {
    this.dir = await mkdtemp(join(tmpdir(), 'tus-suite-'));
    await mkdir(join(this.dir, 'server'));
    this.proxy = await Proxy.start();
    // Absolute URLs must lead through the proxy.
    if (args.includes('--public-url')) args = [...args, `${this.proxy.origin}/files`];
    this.app = await App.start(program, join(this.dir, 'server'), ['--store', store, ...args]);
    this.proxy.port = this.app.port;
  }

  transfer(file, task = {}, bench = this) {
    const endpoint = `${this.proxy.origin}/files`;
    const metadata = { filename: file.name, filetype: file.type };
    return this.client.transfer(bench, file, { endpoint, metadata, retries: 100, ...task });
  }

  /** Sends a request of its own for an upload. */
  ask(method, uri) {
    const url = new URL(uri, this.app.origin);
    return fetch(url, { method, headers: { 'Tus-Resumable': '1.0.0' } });
  }

  async tearDown() {
    await this.proxy?.stop();
    await this.app?.kill();
    await rm(this.dir, { recursive: true, force: true });
  }
}

async function runOne(bench, { client, store, run, args, seconds }) {
  let timer;
  try {
    bench.client = client;
    // aiotus resolves no `Location`.
    const absolute = client.can?.includes('absolute') && !args.includes('--public-url');
    await bench.setUp(store, absolute ? [...args, '--public-url'] : args);
    const work = run(bench);
    // After a time-out this promise is rejected, because its page is closed.
    work.catch(() => {});
    await Promise.race([
      work,
      new Promise((_, reject) => {
        timer = setTimeout(() => reject(new Error(`not done in ${seconds} s`)), seconds * 1000);
      }),
    ]);
    if (bench.error) throw bench.error;
    for (const end of bench.done) await end();
  } catch (error) {
    const waits = bench.app?.waitingFor ? `waited for: ${bench.app.waitingFor}\n` : '';
    const lines = bench.app?.describe().slice(-4000);
    return `${error.stack || error}\n${waits}${lines}\n${bench.app?.log}`;
  } finally {
    clearTimeout(timer);
    await bench.tearDown();
  }
}

const chosen = [];
for (const one of cases)
  for (const client of CLIENTS)
    for (const store of one.stores)
      if (
        (!one.full || process.env.FULL) &&
        stores.includes(store) &&
        one.needs.every(need => client.can.includes(need)) &&
        (!only || only.test(`${client.name} | ${one.name} | ${store}`))
      )
        chosen.push({ ...one, client, store });
for (const one of process.env.CASES ? [] : credit)
  for (const store of stores)
    if (!only || only.test(`no client | ${one.name} | ${store}`))
      chosen.push({ ...one, client: { name: 'no client' }, store });

const width = Math.max(...chosen.map(one => one.name.length), 4);
const line = (client, name, store, result, ms) =>
  console.log(
    [client.padEnd(16), name.padEnd(width), store.padEnd(6), result.padEnd(6), `${ms}`.padStart(6)]
      .join(' | '),
  );

await start();
line('client', 'case', 'store', 'result', 'ms');
const results = new Map();
let failed = 0;
const queue = [...chosen];
async function work() {
  for (let one = queue.shift(); one; one = queue.shift()) {
    const begun = performance.now();
    const bench = new Bench();
    const problem = await runOne(bench, one);
    const ms = Math.round(performance.now() - begun);
    line(one.client.name, one.name, one.store, problem ? 'FAIL' : 'ok', ms);
    if (bench.note) console.log(`    ${bench.note}`);
    if (problem) {
      failed++;
      console.log(problem.replace(/^/gm, '    '));
    }
    results.set(`${one.client.name} | ${one.name} | ${one.store}`, problem ? '!' : one.store[0]);
  }
}
const workers = Number(process.env.WORKERS) || 2 * availableParallelism();
await Promise.all(Array.from({ length: workers }, work));
await stop();

// A letter for each store with which the case passed, `!` for one with which it failed.
console.log('\nf: FileStore, m: MemoryStore, b: BucketStore, !: failed, -: not for this client\n');
const names = CLIENTS.map(client => client.name);
console.log(`${''.padEnd(width)} | ${names.join(' | ')}`);
for (const { name } of cases.filter(one => chosen.some(c => c.name === one.name))) {
  const cells = names.map(client => {
    const cell = ['file', 'memory', 'bucket']
      .map(store => results.get(`${client} | ${name} | ${store}`) ?? '')
      .join('');
    return (cell || '-').padEnd(client.length);
  });
  console.log(`${name.padEnd(width)} | ${cells.join(' | ')}`);
}
console.log(`\n${chosen.length - failed} passed, ${failed} failed`);
process.exitCode = failed || !chosen.length ? 1 : 0;
