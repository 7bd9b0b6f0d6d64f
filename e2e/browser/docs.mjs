// Takes pictures of pages of the documentation. See `docs` for the arguments.
import { mkdir, readdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { pathToFileURL } from 'node:url';
import { chromium } from 'playwright-core';

const [docs, pictures] = process.argv.slice(2).map(path => resolve(path));
// The pages of which there are pictures. All pages are inspected.
const PAGES = [
  'index.html',
  'struct.ResumableLayer.html',
  'struct.FileStore.html',
  'struct.CompletedUpload.html',
  'struct.Dialect.html',
  'store/index.html',
  'store/trait.Store.html',
  'guide/index.html',
  'guide/clients/index.html',
  'guide/deployment/index.html',
  'guide/tus/index.html',
];
// Characters of a first sentence that take more than two lines of a list.
const LONG = 160;
// Pixels of a picture: what is below is not shown.
const HEIGHT = 3000;

/** What is hard to see, in the page. */
function inspect(long) {
  const shown = element => element.textContent.replace(/\s+/g, ' ').trim();
  // The list of files has none.
  const main = document.querySelector('#main-content') ?? document.body;
  const sentences = [...main.querySelectorAll('.item-table dd')].map(shown);
  const right = main.getBoundingClientRect().right + 1;
  const isWide = element => element.getBoundingClientRect().right > right;
  const isScrolled = element => element.scrollWidth > element.clientWidth + 1;
  const wide = [
    ...[...main.querySelectorAll('table')].filter(isWide),
    ...[...main.querySelectorAll('.docblock pre, .docblock pre > code')].filter(isScrolled),
  ];
  return {
    badges: [...new Set([...main.querySelectorAll('.stab.portability')].map(shown))],
    long: sentences.filter(text => text.length > long),
    empty: [...main.querySelectorAll('.item-table dt')]
      .filter(item => item.nextElementSibling?.tagName !== 'DD').map(shown),
    wide: [...new Set(wide.map(element => shown(element).slice(0, 60)))],
  };
}

await mkdir(pictures, { recursive: true });
const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM,
  args: ['--no-sandbox', '--allow-file-access-from-files'],
});
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const names = (await readdir(docs, { recursive: true })).filter(name => name.endsWith('.html'));
  for (const name of names.sort()) {
    const url = pathToFileURL(join(docs, name)).href;
    await page.goto(url);
    // The old place of an item leads to its page.
    if (page.url() !== url) continue;
    const found = await page.evaluate(inspect, LONG);
    const { long, empty, wide } = found;
    if (PAGES.includes(name)) {
      const height = await page.evaluate(() => document.documentElement.scrollHeight);
      await page.setViewportSize({ width: 1280, height: Math.min(height, HEIGHT) });
      const file = `${name.replace(/(\/index)?\.html$/, '').replaceAll('/', '-')}.png`;
      await page.screenshot({ path: join(pictures, file) });
      await page.setViewportSize({ width: 1280, height: 900 });
      console.log(`${name}: ${file}, badges: ${found.badges.join(', ') || 'none'}`);
    } else if (long.length + empty.length + wide.length > 0) {
      console.log(name);
    }
    for (const text of long) console.log(`  long: ${text}`);
    for (const text of empty) console.log(`  without a description: ${text}`);
    for (const text of wide) console.log(`  wider than its column: ${text}`);
  }
} finally {
  await browser.close();
}
console.log(`pictures: ${pictures}`);
