import { readFileSync } from 'node:fs';

import { Fn, Stack, StackProps } from 'aws-cdk-lib';
import * as budgets from 'aws-cdk-lib/aws-budgets';
import * as cloudwatch from 'aws-cdk-lib/aws-cloudwatch';
import { Construct } from 'constructs';

import { FailureAlarm, FailureAlarmProps } from '../constructs/alarms.ts';
import { functionName, METRIC_NAMESPACE, PREFIX } from '../names.ts';
import { alarmEmail, monthlyCapUsd } from '../parameters.ts';
import type { DataStack } from './data.ts';
import type { PipelineStack } from './pipeline.ts';
import type { ServingStack } from './serving.ts';

export interface ObservabilityStackProps extends StackProps {
  readonly data: DataStack;
  readonly pipeline: PipelineStack;
  readonly serving: ServingStack;
}

/** One dashboard, nine alarms and one AWS budget: inside the free tier (three dashboards, ten alarms, two budgets). */
export class ObservabilityStack extends Stack {
  constructor(scope: Construct, id: string, props: ObservabilityStackProps) {
    super(scope, id, props);
    const { data, pipeline } = props;
    this.dashboard(pipeline);
    const alarm = (name: string, rest: Omit<FailureAlarmProps, 'name' | 'topicArn'>) =>
      new FailureAlarm(this, name, { name: `${PREFIX}-${name}`, topicArn: data.alarms.topicArn, ...rest });
    alarm('documents-given-up', {
      description:
        'Documents could not be read after several tries. Look at the log of tunesmith-ingest-document, then redrive the dead-letter queue in the SQS console.',
      namespace: 'AWS/SQS',
      metricName: 'ApproximateNumberOfMessagesVisible',
      dimensions: { QueueName: pipeline.deadLetters.queueName },
      statistic: 'Maximum',
    });
    alarm('schedules-given-up', {
      description:
        'A schedule could not start its work: watching, sweeping, reclaiming, or training after a quiet period. The message in the queue tunesmith-schedules-dead-letters says which and why. For training, upload an empty file named _TRAIN; then purge the queue.',
      namespace: 'AWS/SQS',
      metricName: 'ApproximateNumberOfMessagesVisible',
      dimensions: { QueueName: pipeline.scheduleDeadLetters.queueName },
      statistic: 'Maximum',
    });
    alarm('pipeline-failed', {
      description: 'A training pipeline failed. The mail of the run says why; the execution in the Step Functions console shows where.',
      namespace: 'AWS/States',
      metricName: 'ExecutionsFailed',
      dimensions: { StateMachineArn: pipeline.trainingPipeline.arn },
      statistic: 'Sum',
    });
    const watched: [string, string, number][] = [
      ['ingest-document', 'Uploads are not read.', 1],
      ['watch-costs', 'Costs are not watched: machines still stop at their own caps, but nobody mails or stops the rest.', 2],
      ['sweep-resources', 'Some lost machines or endpoints are not ended: the log of the function names them; look for instances tagged tunesmith:attempt in the EC2 console.', 2],
      // A refused budget is an error of this function too, and is mailed by its pipeline; not three times in a row.
      ['guard-budget', 'Money of pipelines that were stopped is not given back, or none can be reserved.', 3],
      ['answer-approval', 'Approvals cannot be answered by the link: start approve-deployment in the Step Functions console.', 1],
      ['gateway', 'The API fails.', 1],
    ];
    for (const [name, what, periods] of watched) {
      alarm(`${name}-errors`, {
        description: `${what} Look at the log group /aws/lambda/${functionName(name)}.`,
        namespace: 'AWS/Lambda',
        metricName: 'Errors',
        dimensions: { FunctionName: functionName(name) },
        statistic: 'Sum',
        periods,
      });
    }
    this.budget();
  }

  private dashboard(pipeline: PipelineStack): void {
    const file = new URL('../../../infra/dashboards/tunesmith.json', import.meta.url);
    new cloudwatch.CfnDashboard(this, 'Dashboard', {
      dashboardName: PREFIX,
      dashboardBody: Fn.sub(JSON.stringify(JSON.parse(readFileSync(file, 'utf8'))), {
        Region: this.region,
        TrainingPipelineArn: pipeline.trainingPipeline.arn,
        QueueName: pipeline.queue.queueName,
        DeadLettersName: pipeline.deadLetters.queueName,
        GatewayName: functionName('gateway'),
        WatchCostsName: functionName('watch-costs'),
        MetricNamespace: METRIC_NAMESPACE,
      }),
    });
  }

  /** The second line: AWS's own figures come 8 to 12 hours late, our meter (`watch-costs`) is the first. */
  private budget(): void {
    const { email, given } = alarmEmail(this);
    const cap = monthlyCapUsd(this);
    const notice = (notificationType: 'ACTUAL' | 'FORECASTED', threshold: number) => ({
      notification: { notificationType, comparisonOperator: 'GREATER_THAN', threshold, thresholdType: 'PERCENTAGE' },
      subscribers: [{ subscriptionType: 'EMAIL', address: email }],
    });
    const budget = new budgets.CfnBudget(this, 'Budget', {
      budget: {
        budgetName: `${PREFIX}-monthly-cap`,
        budgetType: 'COST',
        timeUnit: 'MONTHLY',
        budgetLimit: { amount: cap as unknown as number, unit: 'USD' },
      },
      notificationsWithSubscribers: [notice('ACTUAL', 50), notice('ACTUAL', 80), notice('ACTUAL', 100), notice('FORECASTED', 100)],
    });
    budget.cfnOptions.condition = given;
  }
}
