import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { test } from 'node:test';

import { WILDCARDS } from '../lib/exceptions.ts';
import { WITHOUT_RESOURCE } from '../lib/without-resource.ts';
import { FUNCTIONS, list, ofType, readable, repositoryFile, type Json } from './support.ts';

interface Permission {
  readonly where: string;
  readonly effect: string;
  readonly actions: string[];
  readonly resources: string[];
  readonly condition: Record<string, Record<string, Json>>;
}

/** Every statement of every role, whether inline or in a policy of its own. */
const PERMISSIONS: Permission[] = [
  ...ofType('AWS::IAM::Role').flatMap((role) =>
    list(role.properties['Policies']).map((policy) => [role.id, (policy as Record<string, Json>)['PolicyDocument']] as const),
  ),
  ...['AWS::IAM::Policy', 'AWS::IAM::ManagedPolicy']
    .flatMap(ofType)
    .map((policy) => [policy.id, policy.properties['PolicyDocument']] as const),
].flatMap(([where, document]) =>
  list((document as Record<string, Json>)['Statement']).map((value) => {
    const statement = value as Record<string, Json>;
    return {
      where,
      effect: statement['Effect'] as string,
      actions: list(statement['Action']) as string[],
      resources: list(statement['Resource']).map(readable),
      condition: (statement['Condition'] ?? {}) as Permission['condition'],
    };
  }),
);

function of(functionName: string): Permission[] {
  const role = readable(FUNCTIONS.get(functionName)?.properties['Role'] ?? null).replace(/^<(.*)\.Arn>$/, '$1');
  const found = PERMISSIONS.filter((permission) => permission.where === role);
  assert.ok(found.length > 0, `${functionName} has no role`);
  return found;
}

test('no action is a wildcard, nothing is allowed by exclusion', () => {
  for (const { where, actions, effect } of PERMISSIONS) {
    assert.equal(effect, 'Allow', where);
    assert.ok(actions.length > 0, `${where} has a statement without actions`);
    for (const action of actions) assert.match(action, /^[a-z0-9-]+:[A-Za-z]+$/, where);
  }
});

test('the resource * stands only where AWS has no narrower one', () => {
  for (const { where, actions, resources } of PERMISSIONS) {
    if (!resources.includes('*')) continue;
    for (const action of actions) assert.ok(action in WITHOUT_RESOURCE, `${where} may ${action} on *`);
  }
});

test('every exception for * is used', () => {
  const used = new Set(PERMISSIONS.filter((p) => p.resources.includes('*')).flatMap((p) => p.actions));
  assert.deepEqual([...used].sort(), Object.keys(WITHOUT_RESOURCE).sort());
});

test('every other wildcard in a resource is listed with its reason', () => {
  const allowed = Object.keys(WILDCARDS).map((pattern) =>
    pattern
      .replace('{documents}', '<DocumentsBucketArn>')
      .replace('{workspace}', '<WorkspaceBucketArn>')
      .replace('{ec2}', 'arn:<AWS::Partition>:ec2:<AWS::Region>:')
      .replace(/^\{(\w+)( here)?\}/, 'arn:<AWS::Partition>:$1:<AWS::Region>:<AWS::AccountId>'),
  );
  for (const { where, resources } of PERMISSIONS) {
    for (const resource of resources.filter((r) => r.includes('*'))) assert.ok(allowed.includes(resource), `${where}: ${resource}`);
  }
});

test('no two functions share a role, and no role has a managed policy', () => {
  const roles = [...FUNCTIONS.values()].map((f) => readable(f.properties['Role'] ?? null));
  assert.equal(new Set(roles).size, roles.length);
  for (const role of ofType('AWS::IAM::Role')) assert.equal(role.properties['ManagedPolicyArns'], undefined, role.id);
});

test('a role is handed to one service only', () => {
  for (const { where, actions, condition } of PERMISSIONS) {
    if (!actions.includes('iam:PassRole')) continue;
    assert.deepEqual(actions, ['iam:PassRole'], where);
    assert.match(String(condition['StringEquals']?.['iam:PassedToService']), /^(ec2|sagemaker|scheduler)\.amazonaws\.com$/, where);
  }
});

test('only machines with the tag of an attempt can be ended', () => {
  const ending = PERMISSIONS.filter((p) => p.actions.includes('ec2:TerminateInstances'));
  assert.ok(ending.length > 0);
  for (const { where, condition } of ending) {
    assert.deepEqual(condition, { StringLike: { 'aws:ResourceTag/tunesmith:attempt': '*' } }, where);
  }
  for (const name of ['launch-training', 'sweep-resources']) {
    assert.match(repositoryFile(`functions/${name}/src/lib.rs`), /ATTEMPT_TAG: &str = "tunesmith:attempt"/);
  }
});

/** Services whose clients a function links, as IAM calls them, by the feature of `crates/aws`. */
const SERVICES: Record<string, string> = {
  dynamodb: 'dynamodb',
  ec2: 'ec2',
  s3: 's3',
  sagemaker: 'sagemaker',
  'sagemaker-runtime': 'sagemaker',
  scheduler: 'scheduler',
  'service-quotas': 'servicequotas',
  sfn: 'states',
  sns: 'sns',
};

test('a function may call the services whose clients it links, and no others', () => {
  // Permissions that belong to another service's call: a role or a public parameter that is handed over.
  const alongside = new Set(['iam', 'logs', 'ssm']);
  for (const name of FUNCTIONS.keys()) {
    const line = /^tunesmith-aws = .*features = \[([^\]]*)\]/m.exec(repositoryFile(`functions/${name}/Cargo.toml`))?.[1] ?? '';
    const linked = new Set([...line.matchAll(/"([a-z0-9-]+)"/g)].map((m) => SERVICES[m[1] as string] ?? `unknown feature ${m[1]}`));
    const allowed = new Set(of(name).flatMap((p) => p.actions.map((action) => action.split(':')[0] as string)));
    assert.deepEqual([...allowed].filter((service) => !alongside.has(service)).sort(), [...linked].sort(), name);
  }
});

/** The call in a function's code that an action is for: a method of `crates/aws`, on what the functions call its client. */
const CALLS: Record<string, RegExp> = {
  'dynamodb:DeleteItem': /\btable\.delete_if\(|\bWrite::delete\(/,
  'dynamodb:GetItem': /\btable\.get\(/,
  'dynamodb:PutItem': /\btable\.put(_if)?\(|\bWrite::put\(/,
  'dynamodb:Query': /\btable\.query(_each|_keyed)?\(/,
  'dynamodb:UpdateItem': /\btable\.(close_lease|raise|update)\(|\bWrite::update\(/,
  'ec2:CreateTags': /\bec2\.run_instance\(/,
  'ec2:DescribeInstances': /\bec2\.machines_tagged\(/,
  'ec2:DescribeSpotPriceHistory': /\bec2\.spot_prices\(/,
  'ec2:DescribeSubnets': /\bec2\.subnets\(/,
  'ec2:RunInstances': /\bec2\.run_instance\(/,
  'ec2:TerminateInstances': /\bec2\.terminate\(/,
  's3:GetObject': /\bs3\.(download|get|get_json|get_text|head)\(/,
  's3:PutObject': /\bs3\.(put|put_json|put_json_once|put_once|upload)\(/,
  'sagemaker:AddTags': /\bsagemaker\.create_model\(/,
  'sagemaker:CreateEndpoint': /\bsagemaker\.create_endpoint\(/,
  'sagemaker:CreateEndpointConfig': /\bsagemaker\.create_endpoint_config\(/,
  'sagemaker:CreateModel': /\bsagemaker\.create_model\(/,
  'sagemaker:DeleteEndpoint': /\bsagemaker\.delete_endpoint\(/,
  'sagemaker:DeleteEndpointConfig': /\bsagemaker\.delete_endpoint_config\(/,
  'sagemaker:DeleteModel': /\bsagemaker\.delete_model\(/,
  'sagemaker:DescribeEndpoint': /\bsagemaker\.describe_endpoint\(/,
  'sagemaker:InvokeEndpoint': /\bruntime\.invoke\(/,
  'sagemaker:InvokeEndpointWithResponseStream': /\bruntime\.invoke_stream\(/,
  'scheduler:CreateSchedule': /\bscheduler\.set\(/,
  'scheduler:UpdateSchedule': /\bscheduler\.set\(/,
  'servicequotas:GetAWSDefaultServiceQuota': /\bservice_quotas\.value\(/,
  'servicequotas:GetServiceQuota': /\bservice_quotas\.value\(/,
  'sns:Publish': /\b(alarms|notifications)\.publish\(/,
  'states:DescribeExecution': /\bstep_functions\.describe_execution\(/,
  'states:SendTaskFailure': /\bstep_functions\.send_task_failure\(/,
  'states:SendTaskSuccess': /\bstep_functions\.send_task_success\(/,
  'states:StartExecution': /\bstep_functions\.start_execution\(/,
};

/** A function's code as one line, without white space and type arguments: `self.s3.get_json::<T>(` becomes `self.s3.get_json(`. */
function code(name: string): string {
  const folder = `functions/${name}/src/`;
  const files = readdirSync(new URL(`../../${folder}`, import.meta.url)).map((file) => repositoryFile(`${folder}${file}`));
  return files.join('\n').replace(/\s+/g, '').replace(/::<[^()]*?>\(/g, '(');
}

test('a function may do what its code calls, and nothing else', () => {
  // Rights that come with another service's call, or that only let a missing object be told from a forbidden one.
  const alongside = new Set(['iam:PassRole', 'logs:CreateLogStream', 'logs:PutLogEvents', 's3:ListBucket', 'ssm:GetParameters']);
  for (const name of FUNCTIONS.keys()) {
    const source = code(name);
    const called = Object.keys(CALLS).filter((action) => CALLS[action]?.test(source));
    const allowed = new Set(of(name).flatMap((p) => p.actions).filter((action) => !alongside.has(action)));
    assert.deepEqual([...allowed].sort(), called.sort(), name);
  }
});

test('a training machine writes what the trainer writes into its run, and nothing else', () => {
  const sources = ['checkpoints', 'evaluation', 'metrics', 'reference', 'train'].map((file) => repositoryFile(`trainer-image/src/${file}.rs`)).join('\n');
  const named = [...sources.matchAll(/\boutput\s*\.join\("([\w.-]+)"\)/g), ...sources.matchAll(/\b(?:EVALUATION|EVENTS|REFERENCE): &str = "([^"/]+)/g)];
  const written = new Set(named.map((match) => match[1] as string));
  const role = ofType('AWS::IAM::Role').find((r) => r.properties['Description'] === 'What a training machine may do');
  const puts = PERMISSIONS.filter((p) => p.where === role?.id && p.actions.includes('s3:PutObject')).flatMap((p) => p.resources);
  const allowed = puts.map((resource) => /\/projects\/\*\/runs\/\*\/([^/]+)(\/\*)?$/.exec(resource)?.[1] ?? resource);
  assert.deepEqual(allowed.sort(), [...written].sort());
});

test('machines are launched by launch-training only, from the launch template only', () => {
  const launching = PERMISSIONS.filter((p) => p.actions.includes('ec2:RunInstances'));
  for (const permission of launching) assert.ok(of('launch-training').includes(permission), permission.where);
  const made = launching.filter((p) => p.resources.some((r) => r.includes(':instance/')));
  assert.equal(made.length, 1);
  assert.match(readable(made[0]?.condition['ArnEquals']?.['ec2:LaunchTemplate'] ?? null), /:launch-template\/<MachinesTemplate/);
});

test('only the functions that talk to people or to the table of money may', () => {
  const may = (action: string) => [...FUNCTIONS.keys()].filter((name) => of(name).some((p) => p.actions.includes(action))).sort();
  assert.deepEqual(may('sns:Publish'), ['guard-budget', 'ingest-document', 'request-approval', 'watch-costs']);
  assert.deepEqual(may('states:SendTaskSuccess'), ['answer-approval']);
  assert.deepEqual(may('sagemaker:CreateEndpoint'), ['deploy-endpoint']);
  assert.deepEqual(may('sagemaker:UpdateEndpoint'), [], 'what is live is never changed');
  assert.deepEqual(may('sagemaker:DeleteEndpoint'), ['deploy-endpoint', 'sweep-resources', 'watch-costs']);
  assert.deepEqual(may('states:StartExecution'), ['answer-approval', 'ingest-document']);
  assert.deepEqual(may('ec2:TerminateInstances'), ['launch-training', 'sweep-resources']);
  assert.deepEqual(may('dynamodb:DeleteItem'), ['ingest-document', 'sweep-resources', 'watch-costs']);
  assert.deepEqual(may('dynamodb:Scan'), []);
});

test('the table is opened by partition', () => {
  const partitions = [...repositoryFile('crates/contract/src/ledger.rs').matchAll(/^\/\/! \| `([A-Z]+#?)[^`]*` \|/gm)].map((row) =>
    (row[1] as string).replace(/#$/, '#*'),
  );
  assert.ok(partitions.length >= 6, 'the table in contract::ledger could not be read');
  for (const { where, actions, condition } of PERMISSIONS) {
    if (!actions.some((action) => action.startsWith('dynamodb:'))) continue;
    const keys = list(condition['ForAllValues:StringLike']?.['dynamodb:LeadingKeys']);
    assert.ok(keys.length > 0, `${where} may touch every item`);
    for (const key of keys) assert.ok(partitions.includes(key as string), `${where}: ${String(key)} is no partition of contract::ledger`);
  }
  const keysOf = (name: string) =>
    new Set(of(name).flatMap((p) => list(p.condition['ForAllValues:StringLike']?.['dynamodb:LeadingKeys'])));
  assert.ok(!keysOf('gateway').has('LEASE') && !keysOf('gateway').has('BUDGET#*'));
  const launching = of('launch-training').filter((p) => p.actions.some((action) => ['dynamodb:PutItem', 'dynamodb:Query'].includes(action)));
  const launched = launching.flatMap((p) => list(p.condition['ForAllValues:StringLike']?.['dynamodb:LeadingKeys']));
  assert.deepEqual(launched, ['LEASE'], 'launch-training writes and lists leases, and changes runs');
  for (const name of FUNCTIONS.keys()) if (name !== 'gateway') assert.ok(!keysOf(name).has('KEY#*'), `${name} reads API keys`);
});

test('the public addresses lead to the two functions that check keys and secrets themselves', () => {
  const open = ofType('AWS::Lambda::Url').map((url) => readable(url.properties['TargetFunctionArn'] ?? null));
  const expected = ['answer-approval', 'gateway'].map((name) => `<${FUNCTIONS.get(name)?.id}.Arn>`);
  assert.deepEqual(open.sort(), expected.sort());
  for (const permission of ofType('AWS::Lambda::Permission')) {
    assert.ok(expected.includes(readable(permission.properties['FunctionName'] ?? null)), permission.id);
    const { FunctionUrlAuthType: auth, InvokedViaFunctionUrl: via } = permission.properties;
    assert.ok(auth === 'NONE' || via === true, `${permission.id} opens more than the function URL`);
  }
});
