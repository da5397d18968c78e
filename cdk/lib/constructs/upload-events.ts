import { Duration } from 'aws-cdk-lib';
import * as events from 'aws-cdk-lib/aws-events';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as s3 from 'aws-cdk-lib/aws-s3';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';

import { PREFIX } from '../names.ts';
import { DeadLetters } from './dead-letters.ts';

/** How often a message is tried before it goes to the dead-letter queue. The reader knows it: what crashed it is refused at the last try. */
export const TRIES = 5;

/** Most documents read at a time: more would only wait for the table. Lambda's smallest value is 2. */
const CONCURRENCY = 10;

export interface UploadEventsProps {
  readonly bucket: s3.IBucket;
  readonly reader: lambda.Function;
}

/** "Object Created" and "Object Deleted" of a bucket, through a queue with a dead-letter queue, to the function that reads. */
export class UploadEvents extends Construct {
  readonly queue: sqs.Queue;
  readonly deadLetters: sqs.Queue;

  constructor(scope: Construct, id: string, props: UploadEventsProps) {
    super(scope, id);
    const timeout = props.reader.timeout ?? Duration.seconds(3);
    this.deadLetters = new DeadLetters(this, 'DeadLetters', 'documents');
    this.queue = new sqs.Queue(this, 'Queue', {
      queueName: `${PREFIX}-documents`,
      // The least that Lambda accepts: a failed document is tried again after it, and a duplicate does no harm.
      visibilityTimeout: timeout,
      encryption: sqs.QueueEncryption.SQS_MANAGED,
      enforceSSL: true,
      deadLetterQueue: { queue: this.deadLetters, maxReceiveCount: TRIES },
    });
    const rule = new events.CfnRule(this, 'Rule', {
      name: `${PREFIX}-documents`,
      description: 'Uploads and deletions in the documents bucket',
      eventPattern: {
        source: ['aws.s3'],
        'detail-type': ['Object Created', 'Object Deleted'],
        detail: { bucket: { name: [props.bucket.bucketName] } },
      },
      state: 'ENABLED',
      targets: [{ id: 'queue', arn: this.queue.queueArn }],
    });
    this.queue.addToResourcePolicy(
      new iam.PolicyStatement({
        principals: [new iam.ServicePrincipal('events.amazonaws.com')],
        actions: ['sqs:SendMessage'],
        resources: [this.queue.queueArn],
        conditions: { ArnEquals: { 'aws:SourceArn': rule.attrArn } },
      }),
    );
    new lambda.CfnEventSourceMapping(this, 'Reading', {
      eventSourceArn: this.queue.queueArn,
      functionName: props.reader.functionName,
      // A file that kills the reader must not take others with it.
      batchSize: 1,
      functionResponseTypes: ['ReportBatchItemFailures'],
      // Not a reserved concurrency: throttled polls would count as tries and fill the dead-letter queue.
      scalingConfig: { maximumConcurrency: CONCURRENCY },
    });
  }
}
