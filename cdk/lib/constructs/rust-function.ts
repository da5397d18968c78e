import { Duration, Fn, RemovalPolicy, Validations } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as logs from 'aws-cdk-lib/aws-logs';
import * as s3 from 'aws-cdk-lib/aws-s3';
import { Construct } from 'constructs';

import { functionName, LOG_DAYS } from '../names.ts';
import type { Artifacts } from '../parameters.ts';

export interface RustFunctionProps {
  /** Folder under `functions/`: also the name of the zip, and with the prefix the function's name. */
  readonly name: string;
  /** One sentence for the console. */
  readonly description: string;
  /** Memory in MB; a whole processor comes with 1,769 MB. */
  readonly memoryMb: number;
  readonly timeout: Duration;
  readonly artifacts: Artifacts;
  readonly environment: Record<string, string>;
  /** What the function may do beside writing its own log. */
  readonly allow: iam.PolicyStatement[];
  /** Most executions at a time; absent means: whatever the account has. */
  readonly reservedConcurrency?: number;
}

/** One of the Rust binaries with a role, a log group and nothing shared with any other function. */
export class RustFunction extends Construct {
  readonly function: lambda.Function;
  readonly role: iam.Role;

  constructor(scope: Construct, id: string, props: RustFunctionProps) {
    super(scope, id);
    const name = functionName(props.name);
    const logGroup = new logs.LogGroup(this, 'Log', {
      logGroupName: `/aws/lambda/${name}`,
      retention: LOG_DAYS,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    this.role = new iam.Role(this, 'Role', {
      assumedBy: new iam.ServicePrincipal('lambda.amazonaws.com'),
      description: `What ${name} may do`,
      inlinePolicies: {
        log: new iam.PolicyDocument({
          statements: [
            new iam.PolicyStatement({
              actions: ['logs:CreateLogStream', 'logs:PutLogEvents'],
              resources: [logGroup.logGroupArn],
            }),
          ],
        }),
        ...(props.allow.length > 0 && { task: new iam.PolicyDocument({ statements: props.allow }) }),
      },
    });
    this.function = new lambda.Function(this, 'Function', {
      functionName: name,
      description: props.description,
      runtime: lambda.Runtime.PROVIDED_AL2023,
      architecture: lambda.Architecture.ARM_64,
      handler: 'bootstrap',
      code: lambda.Code.fromBucket(
        s3.Bucket.fromBucketName(this, 'Artifacts', props.artifacts.bucket),
        Fn.join('', [props.artifacts.prefix, `/${props.name}.zip`]),
      ),
      memorySize: props.memoryMb,
      timeout: props.timeout,
      environment: props.environment,
      role: this.role.withoutPolicyUpdates(),
      logGroup,
      loggingFormat: lambda.LoggingFormat.JSON,
      reservedConcurrentExecutions: props.reservedConcurrency,
    });
    Validations.of(this.function).acknowledge({
      id: '@aws-cdk/aws-lambda:codeFromBucketObjectVersionNotSpecified',
      reason: 'A release has a prefix of its own: the key changes with the code.',
    });
    // CDK repeats in DependsOn what the reference to the role says already.
    (this.function.node.defaultChild as lambda.CfnFunction).addDeletionOverride('DependsOn');
  }
}
