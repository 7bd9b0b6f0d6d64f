// Writes the snippets of the guide to the folder `snippets`. Each block of TypeScript begins with
// the name of its file.
import { mkdir, readFile, writeFile } from 'node:fs/promises';

const text = await readFile(new URL('../../src/guide/front_ends.md', import.meta.url), 'utf8');
const folder = new URL('snippets/', import.meta.url);
const names = [];
await mkdir(folder, { recursive: true });
for (const [, language, code] of text.matchAll(/^```(\w+)\n(.*?)^```$/gms)) {
  const name = /^\/\/ (\w+\.tsx?)\n/.exec(code)?.[1];
  if (!name?.endsWith(`.${language}`) || names.includes(name))
    throw new Error(`a block does not begin with the name of a new .${language} file:\n${code}`);
  await writeFile(new URL(name, folder), code);
  names.push(name);
}
if (!names.length) throw new Error('the guide has no snippets');
console.log(`snippets: ${names.join(', ')}`);
