import { Duration } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as scheduler from 'aws-cdk-lib/aws-scheduler';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';

import { allow, sendTo, trustedService } from '../permissions.ts';

export interface EveryProps {
  readonly minutes: number;
  readonly scheduleName: string;
  readonly group: string;
  readonly invokes: lambda.IFunction;
  /** What the function gets. */
  readonly input: Record<string, string>;
  /** Where an invocation goes that could not be delivered. */
  readonly deadLetters: sqs.IQueue;
}

/** A function that is invoked every few minutes. */
export class Every extends Construct {
  constructor(scope: Construct, id: string, props: EveryProps) {
    super(scope, id);
    const role = new iam.Role(this, 'Role', {
      assumedBy: trustedService('scheduler.amazonaws.com'),
      description: `Lets the schedule ${props.scheduleName} invoke its function`,
      inlinePolicies: {
        task: new iam.PolicyDocument({
          statements: [allow(['lambda:InvokeFunction'], [props.invokes.functionArn]), sendTo(props.deadLetters)],
        }),
      },
    });
    new scheduler.CfnSchedule(this, 'Schedule', {
      name: props.scheduleName,
      groupName: props.group,
      scheduleExpression: `rate(${props.minutes} minutes)`,
      flexibleTimeWindow: { mode: 'OFF' },
      target: {
        arn: props.invokes.functionArn,
        roleArn: role.roleArn,
        input: JSON.stringify(props.input),
        deadLetterConfig: { arn: props.deadLetters.queueArn },
        // The next round does what this one missed: an old invocation is worth nothing.
        retryPolicy: { maximumEventAgeInSeconds: Duration.minutes(props.minutes).toSeconds(), maximumRetryAttempts: 2 },
      },
    });
  }
}
