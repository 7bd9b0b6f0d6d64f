// Measures one request with a large body to several servers. ./bench starts it.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import { mkdir, mkdtemp, open, readFile, rm } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { MIB } from './lib.mjs';

const [gib, rounds] = process.argv.slice(2).map(Number);
const { APP, RUSTUS } = process.env;
const size = gib * 1024 * MIB;
const dir = await mkdtemp(join(tmpdir(), 'tus-bench-'));
const source = join(dir, 'source.bin');
const run = promisify(execFile);
const ticks = Number((await run('getconf', ['CLK_TCK'])).stdout);
const tus = { 'Tus-Resumable': '1.0.0' };

/** The servers: how to start each on a port, with its files in a folder. */
const servers = [
  {
    name: 'this crate, tus',
    start: (port, files) => [APP, ['--listen', `127.0.0.1:${port}`, '--dir', files]],
  },
  {
    name: 'this crate, one octet request',
    start: (port, files) => [
      APP,
      ['--listen', `127.0.0.1:${port}`, '--dir', files, '--chunk-size', `${size}`],
    ],
    octet: true,
  },
  {
    name: '@tus/server',
    start: (port, files) => [
      process.execPath,
      [fileURLToPath(new URL('peers/node.mjs', import.meta.url)), `${port}`, files],
    ],
  },
];
if (RUSTUS)
  servers.push({
    name: 'rustus',
    start: (port, files) => [
      RUSTUS,
      [
        ...['--host', '127.0.0.1', '--port', `${port}`, '--data-dir', files, '--info-dir', files],
        // It reads the whole body before it writes.
        ...['--max-body-size', `${size}`],
      ],
    ],
    path: '/files/',
  });

async function freePort() {
  const listener = createServer();
  await new Promise(resolve => listener.listen(0, '127.0.0.1', resolve));
  const { port } = listener.address();
  await new Promise(resolve => listener.close(resolve));
  return port;
}

/** The CPU seconds that a process has used. */
async function cpu(pid) {
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return (Number(fields[11]) + Number(fields[12])) / ticks;
}

/** Starts a server, sends it the file, and returns the seconds of the request and of the CPU. */
async function measure({ start, octet, path = '/files' }) {
  const files = join(dir, 'files');
  await mkdir(files);
  const port = await freePort();
  const [program, args] = start(port, files);
  const child = spawn(program, args, { stdio: 'ignore' });
  const ended = new Promise(resolve => child.once('close', resolve));
  try {
    const origin = `http://127.0.0.1:${port}`;
    for (let tries = 0; ; tries++) {
      const answer = await fetch(origin + path, { method: 'OPTIONS' }).catch(error => error);
      if (!(answer instanceof Error)) break;
      assert.ok(tries < 200 && child.exitCode === null, `${program} does not listen`);
      await new Promise(resolve => setTimeout(resolve, 50));
    }
    let url = `${origin}${path}`;
    let headers = ['-X', 'POST', '-H', 'Content-Type: application/octet-stream'];
    if (!octet) {
      const created = await fetch(url, {
        method: 'POST',
        headers: { ...tus, 'Upload-Length': `${size}` },
      });
      assert.equal(created.status, 201);
      url = new URL(created.headers.get('location'), url).href;
      headers = ['-X', 'PATCH', '-H', 'Tus-Resumable: 1.0.0', '-H', 'Upload-Offset: 0'];
      headers.push('-H', 'Content-Type: application/offset+octet-stream');
    }
    const before = await cpu(child.pid);
    const { stdout } = await run('curl', [
      ...['-sS', '-T', source, '-H', 'Expect:', ...headers, '-o', join(dir, 'answer')],
      ...['-w', '%{http_code} %{time_total}', url],
    ]);
    const [status, seconds] = stdout.split(' ').map(Number);
    assert.equal(status, octet ? 200 : 204, program);
    return { rate: size / MIB / seconds, cost: ((await cpu(child.pid)) - before) / gib };
  } finally {
    child.kill('SIGKILL');
    await ended;
    await rm(files, { recursive: true });
  }
}

try {
  const file = await open(source, 'w');
  const piece = Buffer.alloc(16 * MIB);
  for (let written = 0; written < size; written += piece.length)
    await file.write(randomFillSync(piece));
  await file.close();

  const results = servers.map(() => []);
  for (let round = 0; round < rounds; round++)
    for (const [i, server] of servers.entries()) results[i].push(await measure(server));

  const spread = (numbers, digits) => {
    const sorted = [...numbers].sort((a, b) => a - b);
    const middle = sorted[Math.floor(sorted.length / 2)];
    const [least, most] = [sorted[0], sorted.at(-1)].map(one => one.toFixed(digits));
    return `${middle.toFixed(digits)} (${least}–${most})`;
  };
  const row = cells =>
    console.log(`| ${cells.map((cell, i) => cell.padEnd(i ? 24 : 30)).join(' | ')} |`);
  console.log(`${gib} GiB in one request, ${rounds} rounds: median (least–most)\n`);
  row(['server', 'MiB/s', 'CPU s/GiB', 'MiB/s, of tus here']);
  row(Array(4).fill('---'));
  for (const [i, { name }] of servers.entries())
    row([
      name,
      spread(results[i].map(one => one.rate), 0),
      spread(results[i].map(one => one.cost), 2),
      spread(results[i].map((one, round) => one.rate / results[0][round].rate), 2),
    ]);
  // They decide more than the code: with syncs the disk sets the rate.
  console.log('\nThis crate syncs all bytes before it answers. @tus/server does not sync.');
} finally {
  await rm(dir, { recursive: true, force: true });
}
