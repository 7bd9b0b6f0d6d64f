// Makes the snippets of the guide available to the tests.
import { createRoot } from 'react-dom/client';
import * as chunks from './snippets/chunks';
import { FileUpload } from './snippets/component';
import * as resumable from './snippets/resumable';
import * as resume from './snippets/resume';
import * as signIn from './snippets/sign_in';
import * as unfinished from './snippets/unfinished';
import * as uppy from './snippets/uppy';

function mount(endpoint: string) {
  const place = document.body.appendChild(document.createElement('div'));
  createRoot(place).render(<FileUpload endpoint={endpoint} />);
}

Object.assign(window, { chunks, mount, resumable, resume, signIn, unfinished, uppy });
