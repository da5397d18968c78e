import * as iam from 'aws-cdk-lib/aws-iam';
import * as sqs from 'aws-cdk-lib/aws-sqs';

import { ACCOUNT, arn, ATTEMPT_TAG, objects, PREFIX } from './names.ts';
import { WITHOUT_RESOURCE } from './without-resource.ts';

/** Values of a condition, by operator and key. */
type Conditions = Record<string, Record<string, unknown>>;

/** One permission. */
export function allow(actions: string[], resources: string[], conditions?: Conditions): iam.PolicyStatement {
  return new iam.PolicyStatement({ actions, resources, ...(conditions && { conditions }) });
}

/** Permission for actions that have no resource type. */
export function allowWithoutResource(...actions: string[]): iam.PolicyStatement {
  const unknown = actions.filter((action) => !(action in WITHOUT_RESOURCE));
  if (unknown.length > 0) throw new Error(`${unknown.join(', ')} has resources: name them`);
  return allow(actions, ['*']);
}

/** What a function may do with the objects of a bucket. `list` lets a missing object be told from a forbidden one. */
export function bucketAccess(
  bucketArn: string,
  access: { read?: string[]; write?: string[]; remove?: string[]; list?: boolean },
): iam.PolicyStatement[] {
  const on = (action: string, keys: string[] | undefined) =>
    keys && keys.length > 0 ? [allow([action], keys.map((key) => objects(bucketArn, key)))] : [];
  return [
    ...on('s3:GetObject', access.read),
    ...on('s3:PutObject', access.write),
    ...on('s3:DeleteObject', access.remove),
    ...(access.list ? [allow(['s3:ListBucket'], [bucketArn])] : []),
  ];
}

/** Partitions of the table (`contract::ledger`). */
export type Partition = 'BUDGET#*' | 'ENDPOINT' | 'KEY#*' | 'LEASE' | 'PROJECT#*' | 'USAGE#*';

/** What a function may do with the items of some partitions. */
export function tableAccess(tableArn: string, partitions: Partition[], actions: string[]): iam.PolicyStatement {
  return allow(
    actions.map((action) => `dynamodb:${action}`),
    [tableArn],
    { 'ForAllValues:StringLike': { 'dynamodb:LeadingKeys': partitions } },
  );
}

/** Ending a machine: only one that carries the tag of an attempt. */
export function terminateMachines(): iam.PolicyStatement {
  return allow(['ec2:TerminateInstances'], [arn('ec2', 'instance/*')], {
    StringLike: { [`aws:ResourceTag/${ATTEMPT_TAG}`]: '*' },
  });
}

/** Handing a role to a service, and to no other. */
export function passRole(roleArn: string, service: string): iam.PolicyStatement {
  return allow(['iam:PassRole'], [roleArn], { StringEquals: { 'iam:PassedToService': service } });
}

/** A service that may take on a role, on behalf of this account only (against the confused deputy). */
export function trustedService(service: string): iam.ServicePrincipal {
  return new iam.ServicePrincipal(service, { conditions: { StringEquals: { 'aws:SourceAccount': ACCOUNT } } });
}

/** SageMaker's endpoints of Tunesmith. */
export function endpointArn(): string {
  return arn('sagemaker', `endpoint/${PREFIX}-*`);
}

/** Putting a message into a queue. */
export function sendTo(queue: sqs.IQueue): iam.PolicyStatement {
  return allow(['sqs:SendMessage'], [queue.queueArn]);
}

/** Pulling the trainer's image. */
export function pullImage(repositoryArn: string): iam.PolicyStatement[] {
  return [
    allowWithoutResource('ecr:GetAuthorizationToken'),
    allow(['ecr:BatchCheckLayerAvailability', 'ecr:BatchGetImage', 'ecr:GetDownloadUrlForLayer'], [repositoryArn]),
  ];
}
