import { writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';

import { TEMPLATE_FILE } from '../lib/template-file.ts';
import { synthesize, text } from '../lib/template.ts';

// Writes infra/template.json, which the local cloud deploys and a test compares with a fresh synthesis.
const file = synthesize();
writeFileSync(TEMPLATE_FILE, text(file));
console.log(`${fileURLToPath(TEMPLATE_FILE)}: ${file.stacks.map((stack) => stack.name).join(', ')}`);
