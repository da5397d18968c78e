import { Aws, Fn } from 'aws-cdk-lib';

import { PREFIX } from './prefix.ts';

export { PREFIX, QUIET_GROUP } from './prefix.ts';

/** What EMF metrics of functions and trainer are published under (`crates/lambda`). */
export const METRIC_NAMESPACE = 'Tunesmith';

/** Tag that `launch-training` puts on a machine: only machines that carry it may be ended by this app. */
export const ATTEMPT_TAG = 'tunesmith:attempt';

/** Log group of the training machines. */
export const TRAINER_LOG_GROUP = `/${PREFIX}/trainer`;

/** Days logs are kept: long enough for a month's bill to be explained, short enough to cost cents. */
export const LOG_DAYS = 30;

/** What a function is called in AWS. */
export function functionName(name: string): string {
  return `${PREFIX}-${name}`;
}

/** ARN of something of this account and region. `resource` is what follows the account; `values` fill its `${…}`. */
export function arn(service: string, resource: string, values?: Record<string, string>): string {
  return Fn.sub(`arn:\${AWS::Partition}:${service}:\${AWS::Region}:\${AWS::AccountId}:${resource}`, values);
}

/** ARN of a bucket's objects below `keys`. */
export function objects(bucketArn: string, keys: string): string {
  return Fn.join('', [bucketArn, '/', keys]);
}

/** This account, for `aws:SourceAccount` conditions against the confused deputy. */
export const ACCOUNT = Aws.ACCOUNT_ID;
