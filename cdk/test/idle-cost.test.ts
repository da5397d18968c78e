import assert from 'node:assert/strict';
import { test } from 'node:test';

import { ofType, RESOURCES, type Json } from './support.ts';

/**
 * Types of which a stack may have some, because they cost nothing while nobody uses them (or cents a month, by the
 * gigabyte). A list of what is allowed, not of what is forbidden: a type that nobody has thought about fails.
 * Source: the pricing pages of the services, November 2026.
 */
const FREE_WHILE_IDLE = new Set([
  'AWS::Budgets::Budget',
  'AWS::CloudWatch::Alarm',
  'AWS::CloudWatch::Dashboard',
  'AWS::DynamoDB::Table',
  'AWS::EC2::InternetGateway',
  'AWS::EC2::LaunchTemplate',
  'AWS::EC2::Route',
  'AWS::EC2::RouteTable',
  'AWS::EC2::SecurityGroup',
  'AWS::EC2::Subnet',
  'AWS::EC2::SubnetRouteTableAssociation',
  'AWS::EC2::VPC',
  'AWS::EC2::VPCEndpoint',
  'AWS::EC2::VPCGatewayAttachment',
  'AWS::ECR::Repository',
  'AWS::Events::Rule',
  'AWS::IAM::InstanceProfile',
  'AWS::IAM::Role',
  'AWS::Lambda::EventSourceMapping',
  'AWS::Lambda::Function',
  'AWS::Lambda::Permission',
  'AWS::Lambda::Url',
  'AWS::Logs::LogGroup',
  'AWS::S3::Bucket',
  'AWS::S3::BucketPolicy',
  'AWS::SNS::Subscription',
  'AWS::SNS::Topic',
  'AWS::SNS::TopicPolicy',
  'AWS::SQS::Queue',
  'AWS::SQS::QueuePolicy',
  'AWS::Scheduler::Schedule',
  'AWS::Scheduler::ScheduleGroup',
  'AWS::StepFunctions::StateMachine',
]);

test('nothing is billed by the hour while nobody uses it', () => {
  for (const { stack, id, type } of RESOURCES) assert.ok(FREE_WHILE_IDLE.has(type), `${stack}/${id} is a ${type}`);
});

test('S3 and DynamoDB are reached by gateway endpoints, which are free', () => {
  const endpoints = ofType('AWS::EC2::VPCEndpoint');
  assert.equal(endpoints.length, 2);
  for (const { id, properties } of endpoints) assert.equal(properties['VpcEndpointType'], 'Gateway', id);
});

test('no function is kept warm or runs in a VPC', () => {
  for (const { id, properties } of ofType('AWS::Lambda::Function')) {
    assert.deepEqual(properties['Architectures'], ['arm64'], id);
    assert.equal(properties['Runtime'], 'provided.al2023', id);
    assert.equal(properties['VpcConfig'], undefined, id);
    assert.ok((properties['MemorySize'] as number) <= 3008, `${id}: a fresh account has no more than 3,008 MB`);
  }
});

test('alarms and dashboards stay inside the free tier', () => {
  assert.ok(ofType('AWS::CloudWatch::Alarm').length <= 10);
  assert.ok(ofType('AWS::CloudWatch::Dashboard').length <= 3);
  assert.ok(ofType('AWS::Budgets::Budget').length <= 2);
});

test('alarms mail, and say what to do', () => {
  for (const { id, properties } of ofType('AWS::CloudWatch::Alarm')) {
    assert.match(JSON.stringify(properties['AlarmActions']), /AlarmsTopic/, id);
    assert.equal(properties['TreatMissingData'], 'notBreaching', id);
    assert.ok((properties['AlarmDescription'] as string).length > 40, id);
  }
});

test('AWS itself mails at 50, 80 and 100 % of the monthly cap', () => {
  const [budget] = ofType('AWS::Budgets::Budget');
  const notices = budget?.properties['NotificationsWithSubscribers'] as { Notification: { NotificationType: string; Threshold: number } }[];
  const actual = notices.filter((n) => n.Notification.NotificationType === 'ACTUAL').map((n) => n.Notification.Threshold);
  assert.deepEqual(actual, [50, 80, 100]);
});

test('a training machine accepts nothing, proves its metadata requests, encrypts its disk and is gone when it stops', () => {
  const [group] = ofType('AWS::EC2::SecurityGroup');
  assert.deepEqual(group?.properties['SecurityGroupIngress'] ?? [], []);
  assert.equal((group?.properties['SecurityGroupEgress'] as Json[]).length, 1);
  const [template] = ofType('AWS::EC2::LaunchTemplate');
  const data = template?.properties['LaunchTemplateData'] as Record<string, Json>;
  assert.equal((data['MetadataOptions'] as Record<string, Json>)['HttpTokens'], 'required');
  assert.equal(data['InstanceInitiatedShutdownBehavior'], 'terminate');
  assert.equal(data['KeyName'], undefined);
  const disks = (data['BlockDeviceMappings'] as { Ebs: Record<string, Json> }[]).map((mapping) => mapping.Ebs);
  for (const disk of disks) {
    assert.equal(disk['Encrypted'], true);
    assert.equal(disk['DeleteOnTermination'], true);
    assert.equal(disk['VolumeType'], 'gp3');
  }
});

test('costs, lost machines and the money of stopped pipelines are looked at every five minutes', () => {
  const schedules = new Map(ofType('AWS::Scheduler::Schedule').map((s) => [s.properties['Name'], s.properties['ScheduleExpression']]));
  assert.deepEqual([...schedules].sort(), [
    ['reclaim-budgets', 'rate(5 minutes)'],
    ['sweep-resources', 'rate(5 minutes)'],
    ['watch-costs', 'rate(5 minutes)'],
  ]);
});
