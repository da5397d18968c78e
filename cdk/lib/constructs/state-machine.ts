import { readFileSync } from 'node:fs';

import { RemovalPolicy } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as logs from 'aws-cdk-lib/aws-logs';
import * as sfn from 'aws-cdk-lib/aws-stepfunctions';
import { Construct } from 'constructs';

import { LOG_DAYS, PREFIX } from '../names.ts';
import { allow, allowWithoutResource } from '../permissions.ts';

export interface StateMachineFileProps {
  /** File `infra/state-machines/{name}.asl.json`; with the prefix also the state machine's name. */
  readonly name: string;
  /** What stands for `${…}` in the file. */
  readonly substitutions: Record<string, string>;
  /** Functions it invokes. */
  readonly invokes: string[];
  /** What else it may do. */
  readonly allow: iam.PolicyStatement[];
}

/** A state machine from its file. The file stays the truth: it goes into the template as it is. */
export class StateMachineFile extends Construct {
  readonly arn: string;
  readonly machine: sfn.CfnStateMachine;

  constructor(scope: Construct, id: string, props: StateMachineFileProps) {
    super(scope, id);
    const logGroup = new logs.LogGroup(this, 'Log', {
      // Names that begin so need no entry of their own in the account's log resource policy, which has a size limit.
      logGroupName: `/aws/vendedlogs/states/${PREFIX}-${props.name}`,
      retention: LOG_DAYS,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    const role = new iam.Role(this, 'Role', {
      assumedBy: new iam.ServicePrincipal('states.amazonaws.com'),
      description: `What the state machine ${PREFIX}-${props.name} may do`,
      inlinePolicies: {
        task: new iam.PolicyDocument({
          statements: [
            allow(['lambda:InvokeFunction'], props.invokes),
            ...props.allow,
            allowWithoutResource(
              'logs:CreateLogDelivery',
              'logs:DeleteLogDelivery',
              'logs:DescribeLogGroups',
              'logs:DescribeResourcePolicies',
              'logs:GetLogDelivery',
              'logs:ListLogDeliveries',
              'logs:PutResourcePolicy',
              'logs:UpdateLogDelivery',
            ),
          ],
        }),
      },
    });
    const file = new URL(`../../../infra/state-machines/${props.name}.asl.json`, import.meta.url);
    this.machine = new sfn.CfnStateMachine(this, 'Machine', {
      stateMachineName: `${PREFIX}-${props.name}`,
      stateMachineType: 'STANDARD',
      definitionString: readFileSync(file, 'utf8'),
      definitionSubstitutions: props.substitutions,
      roleArn: role.roleArn,
      // Every event, without its data: task tokens and people's texts stay out of the log. A run has about 60 events, so
      // this costs far less than a cent. No X-Ray: the execution history shows the same for 90 days, free of charge.
      loggingConfiguration: {
        level: 'ALL',
        includeExecutionData: false,
        destinations: [{ cloudWatchLogsLogGroup: { logGroupArn: logGroup.logGroupArn } }],
      },
      tracingConfiguration: { enabled: false },
    });
    this.arn = this.machine.attrArn;
  }
}
