// The server under test, and a proxy between it and the clients that cuts, holds and damages
// requests.
import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { connect, createServer } from 'node:net';
import { Server, fill, hash, hashFile } from '../browser/lib.mjs';

export const KIB = 1024;
export const MIB = 1024 * KIB;
/** The bytes of a chunk, for the clients that send many. */
export const C = 64 * KIB;

let seeds = 1;
/** Describes a file with bytes that depend on their position. */
export function made(size, name = 'a.bin', type = 'application/octet-stream') {
  const seed = 7919 * seeds++;
  return { name, type, size, seed, sha256: hash(fill(seed, size)) };
}

/** Prints a line of JSON for each request, each answer and each delivery. */
export class App extends Server {
  static async start(program, dir, args) {
    const app = new App();
    Object.assign(app, { program, dir, args });
    await app.spawn(0);
    return app;
  }
  get port() {
    return Number(new URL(this.origin).port);
  }
  #events(name) {
    return this.deliveries.filter(one => one.event === name);
  }
  get requests() {
    return this.#events('request');
  }
  get answers() {
    return this.#events('answer');
  }
  get delivered() {
    return this.#events('delivery');
  }
  /** The requests of a method, with their answers. A request that was cut may have no answer. */
  exchanges(method) {
    return this.requests
      .filter(one => (one.override ?? one.method) === method)
      .map(one => ({
        ...one,
        answer: this.answers.find(a => a.pid === one.pid && a.n === one.n),
      }));
  }
  get patches() {
    return this.exchanges('PATCH');
  }
  describe() {
    return this.deliveries.map(one => `  ${JSON.stringify(one)}`).join('\n');
  }
  /** The resident memory of the process in bytes. */
  async memory() {
    const status = await readFile(`/proc/${this.child.pid}/status`, 'utf8');
    return Number(/^VmRSS:\s+(\d+)/m.exec(status)[1]) * KIB;
  }
}

const HEAD_END = Buffer.from('\r\n\r\n');

/**
 * Forwards TCP connections to the server. A fault applies to the body of one request:
 *
 * `method`: of the request.
 * `skip`: how many requests of this method come before.
 * `from`: the least `Upload-Offset` of the request.
 * `after`: the bytes of the body that reach the server.
 * `how`: `fin` or `rst` end the connection to the server, `hold` stops it until `release()`, and
 *   `flip` changes the next byte.
 */
export class Proxy {
  faults = [];
  #open = new Set();

  static async start() {
    const proxy = new Proxy();
    proxy.listener = createServer({ noDelay: true }, client => proxy.#accept(client));
    await new Promise(resolve => proxy.listener.listen(0, '127.0.0.1', resolve));
    proxy.origin = `http://127.0.0.1:${proxy.listener.address().port}`;
    return proxy;
  }

  /** Arms a fault. The promise `reached` of the result is fulfilled when it has happened. */
  arm(fault) {
    const armed = { method: 'PATCH', skip: 0, from: 0, after: 0, how: 'fin', ...fault };
    armed.reached = new Promise(resolve => {
      armed.happened = resolve;
    });
    armed.released = new Promise(resolve => {
      armed.release = resolve;
    });
    this.faults.push(armed);
    return armed;
  }

  async stop() {
    for (const socket of this.#open) socket.destroy();
    await new Promise(resolve => this.listener.close(resolve));
  }

  #fault(bytes) {
    const head = bytes.subarray(0, 4 * KIB).toString('latin1');
    const [method] = head.split(' ', 1);
    const offset = Number(/^upload-offset: (\d+)/im.exec(head)?.[1] ?? 0);
    for (const fault of this.faults) {
      if (fault.method !== method || offset < fault.from) continue;
      if (fault.skip-- > 0) return undefined;
      this.faults.splice(this.faults.indexOf(fault), 1);
      return fault;
    }
  }

  #accept(client) {
    const server = connect({ port: this.port, host: '127.0.0.1', noDelay: true });
    for (const socket of [client, server]) {
      this.#open.add(socket);
      // The other side is told by `close`.
      socket.on('error', () => {});
      socket.on('close', () => this.#open.delete(socket));
    }
    server.on('close', () => client.destroy());
    client.on('close', () => server.destroy());
    server.on('data', bytes => {
      if (!client.write(bytes)) {
        server.pause();
        client.once('drain', () => server.resume());
      }
    });
    const forward = bytes =>
      new Promise(resolve => {
        if (!server.writable) return resolve();
        server.write(bytes, resolve);
      });

    // No client pipelines, so a request begins at the begin of a piece.
    let fault;
    let left = 0;
    const take = async bytes => {
      if (!fault) {
        fault = this.#fault(bytes);
        if (!fault) return forward(bytes);
        const head = bytes.indexOf(HEAD_END) + HEAD_END.length;
        left = fault.after + head;
      }
      // The fault happens when a byte after it is there, or the body would be whole.
      if (bytes.length <= left) {
        left -= bytes.length;
        return forward(bytes);
      }
      const { how, happened, released } = fault;
      fault = undefined;
      await forward(bytes.subarray(0, left));
      const rest = bytes.subarray(left);
      if (how === 'flip') {
        rest[0] ^= 1;
      } else if (how === 'hold') {
        happened();
        await released;
      } else {
        await taken(server);
        if (how === 'fin') server.end();
        else server.resetAndDestroy();
        client.resetAndDestroy();
        happened();
        return;
      }
      happened();
      await forward(rest);
    };
    let turn = Promise.resolve();
    client.on('data', bytes => {
      client.pause();
      turn = turn.then(() => take(bytes)).then(() => client.resume());
    });
    client.on('end', () => turn.then(() => server.end()));
  }
}

/** Waits until the server has read all that was sent to it. */
async function taken(socket) {
  const { localPort, remotePort } = socket;
  // The server has closed the connection.
  if (localPort === undefined) return;
  for (;;) {
    const table = await readFile('/proc/net/tcp', 'utf8');
    const waiting = table.split('\n').some(line => {
      const [, local, remote, , queues] = line.trim().split(/\s+/);
      const port = address => Number.parseInt(address?.split(':')[1], 16);
      const [sending, received] = (queues ?? '').split(':').map(one => Number.parseInt(one, 16));
      if (port(local) === localPort && port(remote) === remotePort) return sending > 0;
      return port(local) === remotePort && port(remote) === localPort && received > 0;
    });
    if (!waiting) return;
  }
}

/** Checks that one delivery of the file came, with its name, size and bytes, and no other. */
export async function delivered(bench, file, { attempt = 1, name = file.name } = {}) {
  const { app } = bench;
  await app.until('a delivery', () => app.delivered.length > 0);
  // After the kill nothing more can be delivered.
  await app.kill();
  assert.equal(app.delivered.length, 1, 'one delivery');
  const [one] = app.delivered;
  const sha256 = one.path ? await hashFile(one.path) : one.sha256;
  assert.deepEqual(
    { name: one.file_name, size: one.size, sha256, attempt: one.attempt },
    { name, size: file.size, sha256: file.sha256, attempt },
  );
  return one;
}

/** Checks that no file was delivered. */
export async function undelivered({ app }) {
  await app.kill();
  assert.deepEqual(app.delivered, []);
}
