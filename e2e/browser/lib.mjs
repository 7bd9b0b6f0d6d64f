// The server under test, the requests of the browser, and the content of the files.
import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { EventEmitter } from 'node:events';
import { createReadStream } from 'node:fs';
import { mkdir, open, rm } from 'node:fs/promises';
import { createInterface } from 'node:readline';

// Also runs in the page. Every word depends on its position, so a chunk at the wrong offset changes
// the hash.
export function fill(seed, size) {
  const words = new Uint32Array(Math.ceil(size / 4));
  let x = seed >>> 0 || 1;
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    words[i] = x;
  }
  return new Uint8Array(words.buffer, 0, size);
}

export const hash = bytes => createHash('sha256').update(bytes).digest('hex');

export async function hashFile(path) {
  const sum = createHash('sha256');
  for await (const piece of createReadStream(path)) sum.update(piece);
  return sum.digest('hex');
}

/** Returns a function that returns random integers below `n`. A seed gives the same numbers. */
export function seededRandom(seed) {
  let x = seed >>> 0;
  return n => {
    // SplitMix32
    x = (x + 0x9e3779b9) >>> 0;
    let z = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return Math.floor((((z ^ (z >>> 15)) >>> 0) / 2 ** 32) * n);
  };
}

/** Writes a file too large for one buffer and returns its hash. */
export async function writeLarge(path, seed, size) {
  const sum = createHash('sha256');
  const file = await open(path, 'w');
  const step = 1024 * 1024;
  for (let at = 0; at < size; at += step) {
    const piece = fill(seed + at / step, Math.min(step, size - at));
    sum.update(piece);
    await file.write(piece);
  }
  await file.close();
  return sum.digest('hex');
}

/** Lets a caller wait until a condition holds. Subclasses report every change. */
class Changing extends EventEmitter {
  changed() {
    this.emit('change');
  }
  async until(what, holds) {
    this.waitingFor = what;
    while (!holds()) await new Promise(resolve => this.once('change', resolve));
    this.waitingFor = undefined;
  }
}

/** The sums of the metrics of all servers, if they have `/metrics`, by name and labels. */
export const metrics = new Map();

export class Server extends Changing {
  deliveries = [];
  log = '';

  static async start(program, dir, args = []) {
    const server = new Server();
    server.args = args;
    server.program = program;
    server.dir = dir;
    await server.spawn(0);
    return server;
  }

  async spawn(port) {
    const child = spawn(
      this.program,
      ['--listen', `127.0.0.1:${port}`, '--dir', this.dir, ...this.args],
      { stdio: ['ignore', 'pipe', 'pipe'] },
    );
    this.child = child;
    this.closed = new Promise(resolve => child.once('close', resolve));
    createInterface({ input: child.stdout }).on('line', line => {
      try {
        this.deliveries.push(JSON.parse(line));
      } catch {
        this.log += `not JSON on standard output: ${line}\n`;
      }
      this.changed();
    });
    this.origin = await new Promise((resolve, reject) => {
      createInterface({ input: child.stderr }).on('line', line => {
        this.log += line + '\n';
        const found = /listening on (http:\/\/[^\s/]+)/.exec(line);
        if (found) resolve(found[1]);
      });
      child.once('error', reject);
      this.closed.then(() =>
        reject(new Error(`the server ended before it listened:\n${this.log}`)),
      );
    });
  }

  /** Adds the counters of this server to the sums. */
  async scrape() {
    const text = await fetch(`${this.origin}/metrics`).then(r => r.text());
    for (const [, name, value] of text.matchAll(/^(\w+_(?:total|sum|count)\S*) (\S+)$/gm))
      metrics.set(name, (metrics.get(name) ?? 0) + Number(value));
  }

  /** Sends SIGKILL. Returns when all output of the server has been read. */
  async kill() {
    if (process.env.METRICS && !this.child.killed) await this.scrape();
    this.child.kill('SIGKILL');
    await this.closed;
  }

  /** Restarts the server with an empty folder, as if everything in it had expired. */
  async forget() {
    await this.kill();
    await rm(this.dir, { recursive: true });
    await mkdir(this.dir);
    await this.restart();
  }

  restart() {
    return this.spawn(new URL(this.origin).port);
  }
}

/** The requests of one page to /upload, and their answers. */
export class Traffic extends Changing {
  list = [];

  constructor(page) {
    super();
    const known = new Map();
    page.on('request', request => {
      const url = new URL(request.url());
      // A list is not about one upload.
      if (url.pathname !== '/upload' || url.searchParams.has('unfinished')) return;
      const entry = {
        method: request.method(),
        url: request.url(),
        type: request.headers()['content-type'] || '',
        request,
        open: true,
      };
      known.set(request, entry);
      this.list.push(entry);
      this.changed();
    });
    const closes = (event, note) =>
      page.on(event, async request => {
        const entry = known.get(request);
        if (!entry) return;
        await note(entry, request);
        entry.open = false;
        this.changed();
      });
    closes('requestfinished', async (entry, request) => {
      const response = await request.response();
      entry.status = response.status();
      entry.headers = response.headers();
    });
    // If the page does not read the body of an answer to `fetch`, the browser does not report its
    // end.
    page.on('response', response => {
      const entry = known.get(response.request());
      if (!entry || response.request().resourceType() !== 'fetch') return;
      Object.assign(entry, { status: response.status(), headers: response.headers(), open: false });
      this.changed();
    });
    closes('requestfailed', (entry, request) => {
      entry.failure = request.failure()?.errorText || 'failed';
    });
  }

  probes() {
    return this.list.filter(e => e.method === 'GET' || e.method === 'HEAD');
  }
  chunks() {
    return this.list.filter(e => ['POST', 'PUT', 'PATCH'].includes(e.method));
  }
  stored() {
    return this.chunks().filter(e => e.status === 200);
  }
  had() {
    return this.probes().filter(e => e.status === 200);
  }
  idle() {
    // The page does not read the answer to DELETE, so the browser may not report its end.
    return this.until(
      'no request under way',
      () => !this.list.some(e => e.open && e.method !== 'DELETE'),
    );
  }
  describe() {
    return this.list
      .map(
        e =>
          `  ${e.method} chunk ${new URL(e.url).searchParams.get('resumableChunkNumber') ?? '?'} -> ${e.status ?? e.failure ?? 'open'}`,
      )
      .join('\n');
  }
}
