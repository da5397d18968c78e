import assert from 'node:assert/strict';
import { test } from 'node:test';

import { list, ofType, readable, RESOURCES, type Json } from './support.ts';

test('buckets are encrypted, versioned, tidied and closed to the public', () => {
  const buckets = ofType('AWS::S3::Bucket');
  assert.equal(buckets.length, 2);
  for (const { id, properties } of buckets) {
    assert.match(JSON.stringify(properties['BucketEncryption']), /"SSEAlgorithm":"AES256"/, id);
    assert.deepEqual(properties['VersioningConfiguration'], { Status: 'Enabled' }, id);
    assert.deepEqual(
      properties['PublicAccessBlockConfiguration'],
      { BlockPublicAcls: true, BlockPublicPolicy: true, IgnorePublicAcls: true, RestrictPublicBuckets: true },
      id,
    );
    const rules = JSON.stringify(properties['LifecycleConfiguration']);
    assert.match(rules, /AbortIncompleteMultipartUpload/, id);
    assert.match(rules, /NoncurrentVersionExpiration/, id);
  }
});

test('uploads reach EventBridge', () => {
  const documents = ofType('AWS::S3::Bucket').find((bucket) => bucket.id.startsWith('Documents'));
  assert.deepEqual(documents?.properties['NotificationConfiguration'], {
    EventBridgeConfiguration: { EventBridgeEnabled: true },
  });
});

test('buckets, queues and topics refuse plain HTTP', () => {
  const policies: [string, string, string][] = [
    ['AWS::S3::Bucket', 'AWS::S3::BucketPolicy', 'Bucket'],
    ['AWS::SQS::Queue', 'AWS::SQS::QueuePolicy', 'Queues'],
    ['AWS::SNS::Topic', 'AWS::SNS::TopicPolicy', 'Topics'],
  ];
  for (const [type, policyType, property] of policies) {
    for (const { id } of ofType(type)) {
      const policy = ofType(policyType).find((p) => list(p.properties[property]).map(readable).includes(`<${id}>`));
      const statements = list((policy?.properties['PolicyDocument'] as Record<string, Json> | undefined)?.['Statement']);
      assert.ok(
        statements.some((s) => /"Effect":"Deny"/.test(JSON.stringify(s)) && /"aws:SecureTransport":"false"/.test(JSON.stringify(s))),
        `${id} accepts plain HTTP`,
      );
      for (const s of statements as Record<string, Json>[]) {
        const everyone = s['Effect'] === 'Allow' && /"\*"/.test(JSON.stringify(s['Principal']));
        assert.ok(!everyone, `${id} is open to everyone`);
      }
    }
  }
});

test('queues are encrypted, and what cannot be read ends in a dead-letter queue', () => {
  const queues = ofType('AWS::SQS::Queue');
  assert.equal(queues.length, 3);
  for (const { id, properties } of queues) assert.equal(properties['SqsManagedSseEnabled'], true, id);
  assert.equal(queues.filter((queue) => queue.properties['RedrivePolicy'] !== undefined).length, 1);
});

test('a schedule that cannot start its work tries again, and then ends in a dead-letter queue', () => {
  const dead = ofType('AWS::SQS::Queue').find((q) => q.properties['QueueName'] === 'tunesmith-schedules-dead-letters');
  for (const { id, properties } of ofType('AWS::Scheduler::Schedule')) {
    const target = properties['Target'] as Record<string, Record<string, Json>>;
    assert.equal(readable(target['DeadLetterConfig']?.['Arn'] ?? null), `<${dead?.id}.Arn>`, id);
    assert.ok((target['RetryPolicy']?.['MaximumRetryAttempts'] as number) > 0, id);
  }
  // Those that ingest-document makes: the queue is in its environment, sending to it in the schedules' role.
  const senders = ofType('AWS::IAM::Role').filter((role) => JSON.stringify(role.properties['Policies']).includes('sqs:SendMessage'));
  assert.equal(senders.length, ofType('AWS::Scheduler::Schedule').length + 1);
  for (const { id, properties } of senders) {
    assert.match(JSON.stringify(properties['AssumeRolePolicyDocument']), /scheduler\.amazonaws\.com/, id);
  }
});

test('whatever lies in a dead-letter queue is mailed', () => {
  const dead = ofType('AWS::SQS::Queue').filter((q) => (q.properties['QueueName'] as string).endsWith('-dead-letters'));
  const watched = ofType('AWS::CloudWatch::Alarm').map((alarm) => JSON.stringify(alarm.properties['Dimensions']));
  assert.equal(dead.length, 2);
  for (const { id } of dead) assert.ok(watched.some((dimensions) => dimensions.includes(id)), `nobody is told about ${id}`);
});

test('a failed document comes back no sooner than its function can have ended', () => {
  const reader = ofType('AWS::Lambda::Function').find((f) => f.properties['FunctionName'] === 'tunesmith-ingest-document');
  const queue = ofType('AWS::SQS::Queue').find((q) => q.properties['RedrivePolicy'] !== undefined);
  assert.ok((queue?.properties['VisibilityTimeout'] as number) >= (reader?.properties['Timeout'] as number));
  const mapping = ofType('AWS::Lambda::EventSourceMapping')[0];
  assert.deepEqual(mapping?.properties['FunctionResponseTypes'], ['ReportBatchItemFailures']);
});

test('the table is on demand, can be restored and forgets what has expired', () => {
  const [table, ...more] = ofType('AWS::DynamoDB::Table');
  assert.equal(more.length, 0);
  assert.equal(table?.properties['BillingMode'], 'PAY_PER_REQUEST');
  assert.equal(table?.properties['ProvisionedThroughput'], undefined);
  assert.deepEqual(table?.properties['PointInTimeRecoverySpecification'], { PointInTimeRecoveryEnabled: true });
  assert.deepEqual(table?.properties['TimeToLiveSpecification'], { AttributeName: 'ttl', Enabled: true });
  assert.equal(table?.properties['DeletionProtectionEnabled'], true);
});

test('every log group is tidied', () => {
  for (const { id, properties } of ofType('AWS::Logs::LogGroup')) assert.equal(properties['RetentionInDays'], 30, id);
});

test('every function and every state machine writes to a log group of this app', () => {
  const groups = new Map(ofType('AWS::Logs::LogGroup').map((group) => [`<${group.id}>`, group.properties['LogGroupName']]));
  for (const { id, properties } of ofType('AWS::Lambda::Function')) {
    const logging = properties['LoggingConfig'] as Record<string, Json>;
    assert.equal(groups.get(readable(logging['LogGroup'] ?? null)), `/aws/lambda/${properties['FunctionName']}`, id);
  }
  for (const { id, properties } of ofType('AWS::StepFunctions::StateMachine')) {
    const logging = properties['LoggingConfiguration'] as Record<string, Json>;
    assert.equal(logging['Level'], 'ALL', id);
    assert.equal(logging['IncludeExecutionData'], false, `${id} would log task tokens`);
    const group = readable((list(logging['Destinations'])[0] as { CloudWatchLogsLogGroup: { LogGroupArn: Json } }).CloudWatchLogsLogGroup.LogGroupArn);
    assert.ok(groups.has(group.replace('.Arn', '')), `${id} logs to ${group}`);
  }
});

test('nothing that holds secrets stands in the templates', () => {
  const whole = JSON.stringify(RESOURCES.map((resource) => resource.whole));
  assert.doesNotMatch(whole, /AKIA[A-Z0-9]{16}|BEGIN [A-Z ]*PRIVATE KEY/);
});
