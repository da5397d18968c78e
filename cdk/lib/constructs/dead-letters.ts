import { Duration } from 'aws-cdk-lib';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';

import { PREFIX } from '../names.ts';

/** Where messages go that nobody could deliver or read. Whatever lies here is mailed by an alarm (observability stack). */
export class DeadLetters extends sqs.Queue {
  /** `of` says whose they are, in the queue's name. */
  constructor(scope: Construct, id: string, of: string) {
    super(scope, id, {
      queueName: `${PREFIX}-${of}-dead-letters`,
      retentionPeriod: Duration.days(14),
      encryption: sqs.QueueEncryption.SQS_MANAGED,
      enforceSSL: true,
    });
  }
}
