import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';

import { FUNCTIONS, ofType, readable, type Json } from './support.ts';

const EVERY = ['ALARMS_TOPIC_ARN', 'DOCUMENTS_BUCKET', 'NOTIFICATIONS_TOPIC_ARN', 'RUST_LOG', 'TABLE', 'WORKSPACE_BUCKET'];

/** What a function reads beside those. The functions refuse to start without them, naming the variable. */
const OWN: Record<string, string[]> = {
  'answer-approval': ['TRAINING_PIPELINE_ARN'],
  'deploy-endpoint': ['ENDPOINT_ROLE_ARN', 'TRAINER_IMAGE'],
  'gate-model': [],
  gateway: [],
  'guard-budget': ['ACCOUNT_MONTHLY_CAP_MICROS'],
  'index-documents': [],
  'ingest-document': ['MAX_RECEIVES', 'SCHEDULER_ROLE_ARN', 'SCHEDULE_DEAD_LETTERS_ARN', 'SCHEDULE_GROUP', 'TRAINING_PIPELINE_ARN'],
  'launch-training': ['LAUNCH_TEMPLATE_ID', 'SUBNET_IDS', 'TRAINER_IMAGE'],
  'plan-training': [],
  'prepare-dataset': [],
  'request-approval': ['ANSWER_URL', 'APPROVE_DEPLOYMENT_ARN'],
  'sweep-resources': [],
  'verify-endpoint': [],
  'watch-costs': ['ACCOUNT_MONTHLY_CAP_MICROS'],
};

function environment(name: string): Record<string, Json> {
  const variables = FUNCTIONS.get(name)?.properties['Environment'] as { Variables: Record<string, Json> } | undefined;
  return variables?.Variables ?? {};
}

test('every folder of functions/ is a function, and the other way round', () => {
  const folders = readdirSync(new URL('../../functions/', import.meta.url), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name);
  assert.deepEqual([...FUNCTIONS.keys()].sort(), folders.sort());
});

test('every function has exactly the variables that it reads', () => {
  for (const name of FUNCTIONS.keys()) {
    assert.deepEqual(Object.keys(environment(name)).sort(), [...EVERY, ...(OWN[name] ?? ['unknown function'])].sort(), name);
  }
});

test('code comes from the parameters, one zip for each function', () => {
  for (const [name, { properties }] of FUNCTIONS) {
    const code = properties['Code'] as Record<string, Json>;
    assert.equal(readable(code['S3Bucket'] ?? null), '<ArtifactsBucket>', name);
    assert.equal(readable(code['S3Key'] ?? null), `<ArtifactsPrefix>/${name}.zip`, name);
  }
});

test('the monthly cap is whole dollars in micro-dollars', () => {
  for (const name of ['guard-budget', 'watch-costs']) {
    assert.equal(readable(environment(name)['ACCOUNT_MONTHLY_CAP_MICROS'] ?? null), '<MonthlyCapUsd>000000', name);
  }
});

test('one upload is one invocation', () => {
  const [mapping, ...others] = ofType('AWS::Lambda::EventSourceMapping');
  assert.equal(others.length, 0);
  assert.equal(mapping?.properties['BatchSize'], 1);
  const queues = ofType('AWS::SQS::Queue').map(({ properties }) => properties['RedrivePolicy'] as Record<string, Json> | undefined);
  const tries = queues.flatMap((redrive) => redrive?.['maxReceiveCount'] ?? []);
  assert.deepEqual(tries.map(String), [environment('ingest-document')['MAX_RECEIVES']], 'the reader knows its last try');
});

test('machines start in three zones', () => {
  assert.equal(readable(environment('launch-training')['SUBNET_IDS'] ?? null).split(',').length, 3);
});

test('concurrency is reserved where it protects something', () => {
  const reserved = [...FUNCTIONS].filter(([, f]) => f.properties['ReservedConcurrentExecutions'] !== undefined);
  assert.deepEqual(reserved.map(([name]) => name).sort(), ['answer-approval', 'gateway', 'watch-costs']);
});

test('the gateway streams', () => {
  const modes = ofType('AWS::Lambda::Url').map((url) => [readable(url.properties['TargetFunctionArn'] ?? null), url.properties['InvokeMode']]);
  assert.deepEqual(
    modes.filter(([, mode]) => mode === 'RESPONSE_STREAM').map(([target]) => target),
    [`<${FUNCTIONS.get('gateway')?.id}.Arn>`],
  );
});
