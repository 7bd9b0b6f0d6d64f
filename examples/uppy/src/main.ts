// A page with Uppy. Each finished file is one request to the handler of the axum example, and the
// handler's answer is shown in the page.
import Uppy from '@uppy/core';
import Dashboard from '@uppy/dashboard';
import GoldenRetriever from '@uppy/golden-retriever';
import Tus, { type TusBody } from '@uppy/tus';

/** What the handler of the axum example answers. */
interface Answer {
  id: string;
  file_name: string;
  size: number;
}

type Meta = Record<string, unknown>;

// The page may come from another server than the one for uploads: `?endpoint=http://…/upload`.
const endpoint =
  new URLSearchParams(location.search).get('endpoint') ?? 'http://127.0.0.1:3000/upload';

const uppy = new Uppy<Meta, TusBody>()
  .use(Dashboard, { target: '#uppy', inline: true, width: '100%' })
  // Restores the chosen files and the state of their uploads after the page was closed.
  .use(GoldenRetriever)
  .use(Tus, {
    endpoint,
    // A server that restarts is away for a while.
    retryDelays: [0, 1000, 3000, 5000, 10_000, 20_000, 30_000],
    // Otherwise the same file could not be uploaded again after it is finished.
    removeFingerprintOnSuccess: true,
  });

uppy.on('upload-success', async (file, { uploadURL }) => {
  show(file?.name ?? '?', await answerOf(uploadURL));
});

// The status and the body of an answer that is not 2xx: the handler has refused the file.
uppy.on('upload-error', (file, error, response) => {
  const xhr = response?.body?.xhr;
  show(file?.name ?? '?', xhr?.responseText || error.message);
});

/**
 * The answer of the handler. The answer to the last `PATCH` is 204, which has no body. `GET`
 * returns the whole answer, as long as the server remembers it.
 */
async function answerOf(url: string | undefined): Promise<string> {
  if (!url) return 'no URL';
  const response = await fetch(url, { headers: { 'Tus-Resumable': '1.0.0' } });
  if (!response.ok) return `${response.status} ${response.statusText}`;
  const { id, size }: Answer = await response.json();
  return `${size} bytes, id ${id}`;
}

function show(name: string, answer: string) {
  const row = document.createElement('li');
  row.textContent = `${name}: ${answer}`;
  document.querySelector('#answers')?.append(row);
  document.querySelector('#none')?.remove();
}
