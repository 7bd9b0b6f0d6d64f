// Sends one file of one chunk for each row of the table, all at the same time, to handlers that
// take WORK seconds. ./run starts it.
import { execFile, spawn } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { Server } from '../browser/lib.mjs';

const browserSuite = new URL('../browser/', import.meta.url);
const puppeteer = createRequire(browserSuite)('puppeteer-core');
const script = fileURLToPath(
  new URL('node_modules/resumablejs/resumable.js', browserSuite),
);
const { EXAMPLES, CHROMIUM, FIREFOX, WORK = '65' } = process.env;
const work = String(Number(WORK) * 1000);
const dir = await mkdtemp(join(tmpdir(), 'slow-'));

const ends = [() => rm(dir, { recursive: true, force: true })];
async function start(name, example, args) {
  const server = await Server.start(join(EXAMPLES, example), join(dir, name), [
    '--work',
    work,
    ...args,
  ]);
  ends.push(() => server.kill());
  return server;
}

async function freePort() {
  const server = createServer().listen(0, '127.0.0.1');
  await new Promise(resolve => server.once('listening', resolve));
  const { port } = server.address();
  await new Promise(resolve => server.close(resolve));
  return port;
}

/** nginx before each server, as Debian installs it and with a longer `proxy_read_timeout`. */
async function startNginx(servers) {
  const origins = {};
  let blocks = '';
  for (const [name, extra] of [['nginx', ''], ['nginx, 1 h', 'proxy_read_timeout 1h;']]) {
    for (const [layer, server] of Object.entries(servers)) {
      const port = await freePort();
      origins[`${name} | ${layer}`] = `http://127.0.0.1:${port}`;
      blocks += `server { listen 127.0.0.1:${port};
        location / { proxy_pass ${server.origin}; ${extra} } }\n`;
    }
  }
  const temp = ['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi']
    .map(kind => `${kind}_temp_path ${dir}/nginx-${kind};`)
    .join('\n');
  const user = process.getuid() === 0 ? 'user root;' : '';
  await writeFile(
    join(dir, 'nginx.conf'),
    `daemon off; pid ${dir}/nginx.pid; error_log ${dir}/nginx.log; ${user}
    events {}
    http { access_log off; ${temp}
    ${blocks} }`,
  );
  const child = spawn('nginx', ['-e', `${dir}/nginx.log`, '-c', `${dir}/nginx.conf`], {
    stdio: 'inherit',
  });
  ends.push(() => child.kill());
  for (const origin of Object.values(origins)) {
    while (!(await fetch(origin).catch(() => undefined)));
  }
  return origins;
}

const seconds = ms => (ms / 1000).toFixed(1);
const told = list => list.map(([status, ms]) => `${status} after ${seconds(ms)} s`).join(', ');

/** The same request again after each error. */
async function curl(origin, name) {
  const fields = new URLSearchParams({
    resumableChunkNumber: 1,
    resumableChunkSize: 10,
    resumableTotalSize: 10,
    resumableIdentifier: name,
    resumableFilename: name,
  });
  const answers = [];
  while (answers.length < 20) {
    const begun = performance.now();
    const { stdout } = await promisify(execFile)('curl', [
      '-sS', '-o', '/dev/null', '-w', '%{http_code}', '--data-binary', '0123456789',
      '-H', 'content-type: application/octet-stream', `${origin}/upload?${fields}`,
    ]).catch(error => ({ stdout: error.message.trim().split('\n').pop() }));
    answers.push([stdout, performance.now() - begun]);
    if (stdout.startsWith('2')) break;
    await new Promise(resolve => setTimeout(resolve, 1000));
  }
  return told(answers);
}

/** Resumable.js with the options that the server recommends. */
const inBrowser = browser => async (origin, name) => {
  const page = await browser.newPage();
  // No page, but the answer has a text and the origin of the server.
  await page.goto(`${origin}/upload`);
  await page.evaluate(await readFile(script, 'utf8'));
  const { answers, event, found } = await page.evaluate(async name => {
    const answers = [];
    const send = XMLHttpRequest.prototype.send;
    XMLHttpRequest.prototype.send = function (body) {
      const begun = performance.now();
      // Resumable.js resets the request in its handler of `load`, which comes later.
      const end = () => {
        if (this.readyState === XMLHttpRequest.DONE)
          answers.push([this.status || 'no answer', performance.now() - begun]);
      };
      if (body) this.addEventListener('readystatechange', end);
      return send.call(this, body);
    };
    const options = await fetch('/options/resumable').then(r => (r.ok ? r.json() : {}));
    const r = new window.Resumable({ target: '/upload', chunkRetryInterval: 1000, ...options });
    const [event, message] = await new Promise(resolve => {
      r.on('fileSuccess', (file, message) => resolve(['success', message]));
      r.on('fileError', (file, message) => resolve(['error', message]));
      r.on('fileAdded', () => r.upload());
      r.addFile(new File(['0123456789'], name));
    });
    const { job } = JSON.parse(message || '{}');
    const found = job && (await fetch(job)).status;
    return { answers, event, found };
  }, name);
  const end = event === 'success' ? '' : ', and gives up';
  return told(answers) + end + (found ? `; GET /jobs/<id>: ${found}` : '');
};

async function launch(browser, executablePath, args) {
  // The calls of a page take longer than the default limit of puppeteer.
  const options = { browser, executablePath, headless: true, protocolTimeout: 0, args };
  const launched = await puppeteer.launch(options);
  ends.push(() => launched.close());
  return launched;
}

async function measure() {
  const servers = {
    // The layer stops waiting before a proxy does.
    '50 s (default)': await start('default', 'axum', []),
    '60 s': await start('minute', 'axum', ['--timeout', '60']),
    '1 h': await start('patient', 'axum', ['--timeout', '3600']),
    'answers 202': await start('jobs', 'slow_handler', []),
  };
  const clients = {
    curl,
    Chromium: inBrowser(await launch('chrome', CHROMIUM, ['--no-sandbox', '--disable-gpu'])),
    Firefox: inBrowser(await launch('firefox', FIREFOX, [])),
  };
  const nginx = await startNginx(servers);
  const rows = [];
  for (const layer of Object.keys(servers)) {
    for (const [client, send] of Object.entries(clients)) {
      for (const path of ['direct', 'nginx', 'nginx, 1 h']) {
        const origin = path === 'direct' ? servers[layer].origin : nginx[`${path} | ${layer}`];
        const name = `${rows.length}.bin`;
        const answers = send(origin, name).catch(error => `failed: ${error.message}`);
        rows.push({ layer, client, path, name, answers });
      }
    }
  }
  console.log(`the handler takes ${WORK} s\n`);
  console.log('| the layer waits | client | path | answers to the last chunk | handler calls |');
  console.log('|---|---|---|---|---|');
  for (const { layer, client, path, name, answers } of rows) {
    const text = await answers;
    // The jobs print no names.
    const calls = servers[layer].deliveries.filter(d => d.file_name === name).length || '';
    console.log(`| ${layer} | ${client} | ${path} | ${text} | ${calls} |`);
  }
}

try {
  await measure();
} finally {
  for (const end of ends.reverse()) await end();
}
