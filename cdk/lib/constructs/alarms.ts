import { Duration } from 'aws-cdk-lib';
import * as cloudwatch from 'aws-cdk-lib/aws-cloudwatch';
import { Construct } from 'constructs';

export interface FailureAlarmProps {
  readonly name: string;
  /** What happened, and what to do: stands in the mail. */
  readonly description: string;
  readonly namespace: string;
  readonly metricName: string;
  readonly dimensions: Record<string, string>;
  readonly statistic: 'Sum' | 'Maximum';
  readonly topicArn: string;
  /** How many five-minute periods in a row must be above zero. */
  readonly periods?: number;
}

/** Mails as soon as a figure that should be zero is not. Silence is good news: no data means no alarm. */
export class FailureAlarm extends Construct {
  constructor(scope: Construct, id: string, props: FailureAlarmProps) {
    super(scope, id);
    const periods = props.periods ?? 1;
    new cloudwatch.CfnAlarm(this, 'Alarm', {
      alarmName: props.name,
      alarmDescription: props.description,
      namespace: props.namespace,
      metricName: props.metricName,
      dimensions: Object.entries(props.dimensions).map(([name, value]) => ({ name, value })),
      statistic: props.statistic,
      period: Duration.minutes(5).toSeconds(),
      evaluationPeriods: periods,
      datapointsToAlarm: periods,
      threshold: 0,
      comparisonOperator: 'GreaterThanThreshold',
      treatMissingData: 'notBreaching',
      alarmActions: [props.topicArn],
    });
  }
}
