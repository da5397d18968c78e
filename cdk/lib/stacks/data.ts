import { CfnOutput, Duration, RemovalPolicy, Stack, StackProps } from 'aws-cdk-lib';
import * as dynamodb from 'aws-cdk-lib/aws-dynamodb';
import * as ecr from 'aws-cdk-lib/aws-ecr';
import * as s3 from 'aws-cdk-lib/aws-s3';
import * as sns from 'aws-cdk-lib/aws-sns';
import { Construct } from 'constructs';

import { MailTopic } from '../constructs/mail-topic.ts';
import { PrivateBucket } from '../constructs/private-bucket.ts';
import { PREFIX } from '../names.ts';
import { alarmEmail } from '../parameters.ts';

/** What outlives every deployment: documents, what was made of them, the ledger, the images; and the two mail topics. */
export class DataStack extends Stack {
  readonly documents: s3.Bucket;
  readonly workspace: s3.Bucket;
  readonly table: dynamodb.Table;
  readonly notifications: sns.Topic;
  readonly alarms: sns.Topic;
  readonly trainerRepository: ecr.Repository;

  constructor(scope: Construct, id: string, props: StackProps) {
    super(scope, id, props);
    this.documents = new PrivateBucket(this, 'Documents', {
      events: true,
      lifecycleRules: [unfinishedUploads(), replacedVersions(90)],
    }).bucket;
    this.workspace = new PrivateBucket(this, 'Workspace', {
      events: false,
      lifecycleRules: [unfinishedUploads(), replacedVersions(30)],
    }).bucket;
    this.table = new dynamodb.Table(this, 'Ledger', {
      partitionKey: { name: 'pk', type: dynamodb.AttributeType.STRING },
      sortKey: { name: 'sk', type: dynamodb.AttributeType.STRING },
      billingMode: dynamodb.BillingMode.PAY_PER_REQUEST,
      pointInTimeRecoverySpecification: { pointInTimeRecoveryEnabled: true },
      timeToLiveAttribute: 'ttl',
      deletionProtection: true,
      removalPolicy: RemovalPolicy.RETAIN,
    });
    this.trainerRepository = new ecr.Repository(this, 'TrainerImages', {
      repositoryName: `${PREFIX}-trainer`,
      imageScanOnPush: true,
      imageTagMutability: ecr.TagMutability.IMMUTABLE,
      // An image weighs gigabytes and costs 10 cents a gigabyte and month.
      // A version is one image, or two where machines with a GPU train.
      lifecycleRules: [{ description: 'keep the newest six images', maxImageCount: 6 }],
      removalPolicy: RemovalPolicy.RETAIN,
    });
    const email = alarmEmail(this);
    this.notifications = new MailTopic(this, 'Notifications', {
      topicName: `${PREFIX}-notifications`,
      displayName: 'Tunesmith',
      email,
    }).topic;
    this.alarms = new MailTopic(this, 'Alarms', {
      topicName: `${PREFIX}-alarms`,
      displayName: 'Tunesmith alarms',
      email,
      publishers: ['cloudwatch.amazonaws.com', 'budgets.amazonaws.com'],
    }).topic;

    const output = (name: string, value: string, description: string) =>
      new CfnOutput(this, `Output${name}`, { value, description }).overrideLogicalId(name);
    output('DocumentsBucket', this.documents.bucketName, 'Upload documents to s3://<this>/<project>/.');
    output('WorkspaceBucket', this.workspace.bucketName, 'What Tunesmith makes; base models go to models/<name>/.');
    output('Table', this.table.tableName, 'Budgets, runs, leases, approvals, API keys.');
    output('NotificationsTopicArn', this.notifications.topicArn, 'Subscribe to be told about documents, runs and approvals.');
    output('AlarmsTopicArn', this.alarms.topicArn, 'Subscribe to be told about costs and failures.');
    output('TrainerRepositoryUri', this.trainerRepository.repositoryUri, 'Push the trainer image here.');
  }
}

function unfinishedUploads(): s3.LifecycleRule {
  return { id: 'unfinished-uploads', abortIncompleteMultipartUploadAfter: Duration.days(7) };
}

function replacedVersions(days: number): s3.LifecycleRule {
  return { id: 'replaced-versions', noncurrentVersionExpiration: Duration.days(days), expiredObjectDeleteMarker: true };
}
