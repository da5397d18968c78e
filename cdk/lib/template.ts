import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { tunesmith } from './app.ts';
import type { TemplateFile } from './template-file.ts';

/** Synthesizes into a folder of its own and returns what was made. */
export function synthesize(): TemplateFile {
  const outdir = mkdtempSync(join(tmpdir(), 'tunesmith-cdk-'));
  try {
    const { app, stacks } = tunesmith(outdir);
    const assembly = app.synth();
    return {
      stacks: stacks.map((stack) => ({
        name: stack.stackName,
        template: assembly.getStackArtifact(stack.artifactId).template as Record<string, unknown>,
      })),
    };
  } finally {
    rmSync(outdir, { recursive: true, force: true });
  }
}

/** The file's text: keys sorted, two spaces, one newline at the end. */
export function text(file: TemplateFile): string {
  const templates = file.stacks.map(({ name, template }) => ({ name, template: sorted(template) }));
  return `${JSON.stringify({ stacks: templates }, null, 2)}\n`;
}

function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== 'object') return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
  return Object.fromEntries(entries.map(([key, item]) => [key, sorted(item)]));
}
