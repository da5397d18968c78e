import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

type Row = (string | object)[];
interface Widget {
  readonly type: string;
  readonly properties: { readonly title?: string; readonly metrics?: Row[] };
}

const FILE = new URL('../../infra/dashboards/tunesmith.json', import.meta.url);
const { widgets } = JSON.parse(readFileSync(FILE, 'utf8')) as { widgets: Widget[] };
const rows = widgets.flatMap(({ properties }) => properties.metrics ?? []);
const names = (namespace: string) => rows.filter((row) => row[0] === namespace).map((row) => row[1] as string);

test('pipelines that failed, were stopped and took too long are told apart', () => {
  const states = names('AWS/States');
  for (const name of ['ExecutionsSucceeded', 'ExecutionsFailed', 'ExecutionsAborted', 'ExecutionsTimedOut']) {
    assert.ok(states.includes(name), name);
  }
});

test('the money on the dashboard is what watch-costs reports', () => {
  const source = readFileSync(new URL('../../functions/watch-costs/src/lib.rs', import.meta.url), 'utf8');
  const own = names('${MetricNamespace}');
  assert.deepEqual(own, ['SpentDollars', 'RunningMachines']);
  for (const name of own) assert.ok(source.includes(`name: "${name}"`), name);
});
