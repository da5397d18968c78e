import { RemovalPolicy } from 'aws-cdk-lib';
import * as s3 from 'aws-cdk-lib/aws-s3';
import { Construct } from 'constructs';

export interface PrivateBucketProps {
  /** Whether "Object Created" and "Object Deleted" go to EventBridge. */
  readonly events: boolean;
  readonly lifecycleRules: s3.LifecycleRule[];
}

/** A bucket that is versioned, encrypted with S3's own keys (no charge), closed to the public and to plain HTTP, and kept. */
export class PrivateBucket extends Construct {
  readonly bucket: s3.Bucket;

  constructor(scope: Construct, id: string, props: PrivateBucketProps) {
    super(scope, id);
    this.bucket = new s3.Bucket(this, 'Bucket', {
      versioned: true,
      encryption: s3.BucketEncryption.S3_MANAGED,
      blockPublicAccess: s3.BlockPublicAccess.BLOCK_ALL,
      objectOwnership: s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
      enforceSSL: true,
      lifecycleRules: props.lifecycleRules,
      removalPolicy: RemovalPolicy.RETAIN,
    });
    if (props.events) {
      // The L2 property makes a custom resource with a Lambda of its own; the bucket's own property needs none.
      const cfn = this.bucket.node.defaultChild as s3.CfnBucket;
      cfn.notificationConfiguration = { eventBridgeConfiguration: { eventBridgeEnabled: true } };
    }
  }
}
