import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { test } from 'node:test';

import { TEMPLATE_FILE } from '../lib/template-file.ts';
import { synthesize, text } from '../lib/template.ts';
import { RESOURCES, TEMPLATES } from './support.ts';

test('infra/template.json is what the app synthesizes', () => {
  const committed = readFileSync(TEMPLATE_FILE, 'utf8');
  assert.ok(committed === text(synthesize()), 'infra/template.json is stale: run `npm run synth` in cdk/ and commit the file');
});

test('the same source gives the same templates', () => {
  assert.ok(text(synthesize()) === text(synthesize()), 'two syntheses differ');
});

test('the stacks come in deployment order', () => {
  assert.deepEqual(
    TEMPLATES.stacks.map((stack) => stack.name),
    ['tunesmith-data', 'tunesmith-pipeline', 'tunesmith-serving', 'tunesmith-observability'],
  );
  const exported = new Set<string>();
  for (const { name, template } of TEMPLATES.stacks) {
    for (const [, imported] of JSON.stringify(template).matchAll(/"Fn::ImportValue":"([^"]+)"/g)) {
      assert.ok(exported.has(imported as string), `${name} imports ${imported}, which no earlier stack exports`);
    }
    for (const output of Object.values((template['Outputs'] ?? {}) as Record<string, { Export?: { Name: string } }>)) {
      if (output.Export) exported.add(output.Export.Name);
    }
  }
});

test('everything that people and the local cloud look for is an output', () => {
  const outputs = TEMPLATES.stacks.flatMap(({ template }) => Object.keys((template['Outputs'] ?? {}) as object));
  for (const name of [
    'AlarmsTopicArn',
    'AnswerUrl',
    'ApproveDeploymentArn',
    'DocumentsBucket',
    'GatewayUrl',
    'NotificationsTopicArn',
    'Table',
    'TrainingPipelineArn',
    'WorkspaceBucket',
  ]) {
    assert.ok(outputs.includes(name), `no output ${name}`);
  }
});

test('the templates hold no metadata, assets or bootstrap rules of the CDK', () => {
  for (const { name, template } of TEMPLATES.stacks) {
    const whole = JSON.stringify(template);
    for (const forbidden of ['AWS::CDK::Metadata', 'aws:cdk:path', 'BootstrapVersion', 'cdk-hnb659fds', 'Custom::']) {
      assert.ok(!whole.includes(forbidden), `${name} holds ${forbidden}`);
    }
  }
});

test('every resource that can be replaced by accident keeps its data', () => {
  for (const { stack, id, type, whole } of RESOURCES) {
    if (!['AWS::S3::Bucket', 'AWS::DynamoDB::Table', 'AWS::ECR::Repository'].includes(type)) continue;
    assert.equal(whole['DeletionPolicy'], 'Retain', `${stack}/${id}`);
    assert.equal(whole['UpdateReplacePolicy'], 'Retain', `${stack}/${id}`);
  }
});
