import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';

import { AwsSolutionsChecks } from 'cdk-nag';

import { acknowledge, acknowledged } from '../lib/acknowledged.ts';
import { tunesmith, type Tunesmith } from '../lib/app.ts';

function findings(prepare: (built: Tunesmith) => void): string[] {
  const outdir = mkdtempSync(join(tmpdir(), 'tunesmith-nag-'));
  try {
    const built = tunesmith(outdir);
    prepare(built);
    return new AwsSolutionsChecks(built.app)
      .validateScope(built.app)
      .violations.flatMap((violation) =>
        violation.violatingResources.map((resource) => `${violation.ruleName} ${resource.constructPath}`),
      );
  } finally {
    rmSync(outdir, { recursive: true, force: true });
  }
}

test('cdk-nag finds nothing that is not acknowledged', () => {
  assert.deepEqual(findings(acknowledge), []);
});

test('every acknowledged rule is still needed', () => {
  let ids: string[] = [];
  const found = findings((built) => (ids = Object.keys(acknowledged(built))));
  for (const id of ids) {
    assert.ok(found.some((finding) => finding.startsWith(`${id} `)), `${id} has no finding any more: remove it from lib/acknowledged.ts`);
  }
});
