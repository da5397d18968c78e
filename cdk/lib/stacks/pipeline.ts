import { CfnOutput, Fn, Stack, StackProps } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import * as scheduler from 'aws-cdk-lib/aws-scheduler';
import * as sqs from 'aws-cdk-lib/aws-sqs';
import { Construct } from 'constructs';

import { DeadLetters } from '../constructs/dead-letters.ts';
import { Every } from '../constructs/every.ts';
import { Network } from '../constructs/network.ts';
import { RustFunction } from '../constructs/rust-function.ts';
import { StateMachineFile } from '../constructs/state-machine.ts';
import { TrainingMachines } from '../constructs/training-machines.ts';
import { TRIES, UploadEvents } from '../constructs/upload-events.ts';
import { arn, PREFIX, QUIET_GROUP } from '../names.ts';
import { artifacts, monthlyCapUsd, reservations, trainerImage } from '../parameters.ts';
import { allow, bucketAccess, pullImage, sendTo, trustedService } from '../permissions.ts';
import { sharedEnvironment } from '../shared-environment.ts';
import type { DataStack } from './data.ts';
import { FunctionSpec, ingestSpecs, PipelineResources, publishingSpecs, trainingSpecs, watchingSpecs } from './pipeline-functions.ts';

export interface PipelineStackProps extends StackProps {
  readonly data: DataStack;
}

/** From an uploaded document to a published model: queue, functions, state machines, schedules, machines. */
export class PipelineStack extends Stack {
  readonly functions: Record<string, RustFunction> = {};
  readonly trainingPipeline: StateMachineFile;
  readonly approveDeployment: StateMachineFile;
  readonly queue: sqs.Queue;
  /** Of uploads that could not be read. */
  readonly deadLetters: sqs.Queue;
  /** Of schedules that could not do their work. */
  readonly scheduleDeadLetters: sqs.Queue;

  constructor(scope: Construct, id: string, props: PipelineStackProps) {
    super(scope, id, props);
    const { data } = props;
    const code = artifacts(this);
    const image = trainerImage(this);
    const capMicros = Fn.join('', [monthlyCapUsd(this), '000000']);
    const reserved = reservations(this);

    const network = new Network(this, 'Network');
    const machines = new TrainingMachines(this, 'Machines', {
      network,
      workspaceArn: data.workspace.bucketArn,
      tableArn: data.table.tableArn,
      repositoryArn: data.trainerRepository.repositoryArn,
    });
    // The state machine's name is fixed, so that functions which it invokes can name it without a circle.
    const trainingPipelineArn = arn('states', `stateMachine:${PREFIX}-training-pipeline`);
    this.scheduleDeadLetters = new DeadLetters(this, 'ScheduleDeadLetters', 'schedules');
    const schedulerRole = this.quietScheduleRole(trainingPipelineArn);
    const resources: PipelineResources = {
      data,
      machines,
      subnetIds: network.subnetIds,
      subnetArns: network.subnetArns,
      securityGroupArn: network.securityGroupArn,
      endpointRoleArn: this.endpointRole(data).roleArn,
      schedulerRoleArn: schedulerRole.roleArn,
      trainerImage: image,
      capMicros,
      trainingPipelineArn,
      scheduleDeadLettersArn: this.scheduleDeadLetters.queueArn,
    };

    const environment = sharedEnvironment(data);
    const add = (name: string, spec: FunctionSpec, extra: Record<string, string> = {}): lambda.Function => {
      const made = new RustFunction(this, camel(name), {
        name,
        description: spec.description,
        memoryMb: spec.memoryMb,
        timeout: spec.timeout,
        artifacts: code,
        environment: { ...environment, ...spec.environment, ...extra },
        allow: spec.allow,
        ...(spec.reserved !== undefined && { reservedConcurrency: reserved(spec.reserved) }),
      });
      this.functions[name] = made;
      return made.function;
    };
    const ingest = ingestSpecs(resources);
    const training = trainingSpecs(resources);
    const publishing = publishingSpecs(resources);
    const watching = watchingSpecs(resources);

    const uploads = new UploadEvents(this, 'Uploads', {
      bucket: data.documents,
      reader: add('ingest-document', ingest['ingest-document'], { MAX_RECEIVES: String(TRIES) }),
    });
    this.queue = uploads.queue;
    this.deadLetters = uploads.deadLetters;

    const answer = add('answer-approval', publishing['answer-approval']);
    // No IAM on the address: who opens it has a one-time secret from the mail, which the function checks.
    const answerUrl = answer.addFunctionUrl({ authType: lambda.FunctionUrlAuthType.NONE });

    this.approveDeployment = new StateMachineFile(this, 'ApproveDeployment', {
      name: 'approve-deployment',
      substitutions: { AnswerApprovalFunctionArn: answer.functionArn },
      invokes: [answer.functionArn],
      allow: [],
    });

    const steps: Record<string, lambda.Function> = {};
    for (const [name, spec] of Object.entries(training)) steps[name] = add(name, spec);
    for (const name of ['gate-model', 'deploy-endpoint', 'verify-endpoint'] as const) steps[name] = add(name, publishing[name]);
    steps['request-approval'] = add('request-approval', publishing['request-approval'], {
      ANSWER_URL: answerUrl.url,
      APPROVE_DEPLOYMENT_ARN: this.approveDeployment.arn,
    });
    const watchCosts = add('watch-costs', watching['watch-costs']);
    const sweep = add('sweep-resources', watching['sweep-resources']);
    steps['sweep-resources'] = sweep;

    this.trainingPipeline = new StateMachineFile(this, 'TrainingPipeline', {
      name: 'training-pipeline',
      substitutions: {
        ...Object.fromEntries(Object.entries(steps).map(([name, f]) => [`${camel(name)}FunctionArn`, f.functionArn])),
        WorkspaceBucket: data.workspace.bucketName,
        DocumentsBucket: data.documents.bucketName,
        NotificationsTopicArn: data.notifications.topicArn,
        Region: this.region,
      },
      invokes: Object.values(steps).map((f) => f.functionArn),
      allow: [
        allow(['sns:Publish'], [data.notifications.topicArn]),
        // Listing lets S3 say that the object is missing, not that it is forbidden.
        ...bucketAccess(data.workspace.bucketArn, { read: ['projects/*/runs/*/evaluation.json'], list: true }),
      ],
    });

    new scheduler.CfnScheduleGroup(this, 'QuietGroup', { name: QUIET_GROUP });
    const watchers = new scheduler.CfnScheduleGroup(this, 'WatchGroup', { name: `${PREFIX}-watch` });
    const everyFiveMinutes = (scheduleName: string, invokes: lambda.Function | undefined, input: Record<string, string>) => {
      if (!invokes) throw new Error(`no function for the schedule ${scheduleName}`);
      const group = `${PREFIX}-watch`;
      const every = new Every(this, `${camel(scheduleName)}Every`, {
        minutes: 5, scheduleName, group, invokes, input, deadLetters: this.scheduleDeadLetters,
      });
      every.node.addDependency(watchers);
    };
    everyFiveMinutes('watch-costs', watchCosts, {});
    everyFiveMinutes('sweep-resources', sweep, {});
    everyFiveMinutes('reclaim-budgets', steps['guard-budget'], { action: 'reclaim' });

    const output = (name: string, value: string, description: string) =>
      new CfnOutput(this, `Output${name}`, { value, description }).overrideLogicalId(name);
    output('TrainingPipelineArn', this.trainingPipeline.arn, 'Start it with {"project": "<project>"}.');
    output('ApproveDeploymentArn', this.approveDeployment.arn, 'Start it with {"project": "<project>", "verdict": "approve"}.');
    output('AnswerUrl', answerUrl.url, 'Where the links in approval mails lead.');
    output('LaunchTemplateId', machines.launchTemplate.ref, 'How training machines start.');
  }

  /** What the one-time schedules of `ingest-document` may do: start a pipeline. */
  private quietScheduleRole(trainingPipelineArn: string): iam.Role {
    return new iam.Role(this, 'QuietScheduleRole', {
      assumedBy: trustedService('scheduler.amazonaws.com'),
      description: 'Lets the quiet-period schedules start the training pipeline',
      inlinePolicies: {
        task: new iam.PolicyDocument({
          statements: [allow(['states:StartExecution'], [trainingPipelineArn]), sendTo(this.scheduleDeadLetters)],
        }),
      },
    });
  }

  /** What a SageMaker endpoint may do: read its model, pull its image, write its log. */
  private endpointRole(data: DataStack): iam.Role {
    const logGroups = arn('logs', `log-group:/aws/sagemaker/Endpoints/${PREFIX}-*`);
    return new iam.Role(this, 'EndpointRole', {
      assumedBy: trustedService('sagemaker.amazonaws.com'),
      description: 'What an endpoint may do',
      inlinePolicies: {
        task: new iam.PolicyDocument({
          statements: [
            ...bucketAccess(data.workspace.bucketArn, {
              read: ['models/*', 'projects/*/runs/*/adapter/*', 'projects/*/runs/*/serve.json'],
              list: true,
            }),
            ...pullImage(data.trainerRepository.repositoryArn),
            allow(['logs:CreateLogGroup', 'logs:CreateLogStream', 'logs:DescribeLogStreams', 'logs:PutLogEvents'], [
              logGroups,
              Fn.join('', [logGroups, ':*']),
            ]),
          ],
        }),
      },
    });
  }
}

/** `prepare-dataset` → `PrepareDataset`. */
function camel(name: string): string {
  return name.replace(/(^|-)([a-z])/g, (_, __, letter: string) => letter.toUpperCase());
}
