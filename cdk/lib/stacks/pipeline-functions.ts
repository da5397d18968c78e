import { Duration, Fn } from 'aws-cdk-lib';
import type * as iam from 'aws-cdk-lib/aws-iam';

import { MACHINE_IMAGE, type TrainingMachines } from '../constructs/training-machines.ts';
import { arn, PREFIX, QUIET_GROUP } from '../names.ts';
import {
  allow,
  allowWithoutResource,
  bucketAccess,
  endpointArn,
  passRole,
  tableAccess,
  terminateMachines,
} from '../permissions.ts';
import type { DataStack } from './data.ts';

/** What a function is and may do; the rest of its properties is the same for all. */
export interface FunctionSpec {
  readonly description: string;
  readonly memoryMb: number;
  readonly timeout: Duration;
  readonly environment?: Record<string, string>;
  readonly allow: iam.PolicyStatement[];
  /** Only where it protects something. */
  readonly reserved?: number;
}

/** What the functions are given beside the data stack. */
export interface PipelineResources {
  readonly data: DataStack;
  readonly machines: TrainingMachines;
  readonly subnetIds: string;
  readonly subnetArns: string[];
  readonly securityGroupArn: string;
  readonly endpointRoleArn: string;
  readonly schedulerRoleArn: string;
  readonly trainerImage: string;
  readonly capMicros: string;
  readonly trainingPipelineArn: string;
  readonly scheduleDeadLettersArn: string;
}

/** The functions around `ingest-document`, which starts pipelines. */
export function ingestSpecs(r: PipelineResources): Record<'ingest-document', FunctionSpec> {
  const { data } = r;
  return {
    'ingest-document': {
      description: 'Reads one uploaded document, or quarantines it; starts the pipeline',
      memoryMb: 2048,
      timeout: Duration.seconds(60),
      environment: {
        TRAINING_PIPELINE_ARN: r.trainingPipelineArn,
        SCHEDULER_ROLE_ARN: r.schedulerRoleArn,
        SCHEDULE_GROUP: QUIET_GROUP,
        SCHEDULE_DEAD_LETTERS_ARN: r.scheduleDeadLettersArn,
      },
      allow: [
        ...bucketAccess(data.documents.bucketArn, { read: ['*'], list: true }),
        ...bucketAccess(data.workspace.bucketArn, {
          read: ['projects/*/documents/*', 'projects/*/quarantine/*'],
          write: ['projects/*/documents/*', 'projects/*/quarantine/*'],
          list: true,
        }),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['DeleteItem', 'GetItem', 'PutItem', 'UpdateItem']),
        allow(['sns:Publish'], [data.notifications.topicArn]),
        allow(['states:StartExecution'], [r.trainingPipelineArn]),
        allow(['scheduler:CreateSchedule', 'scheduler:UpdateSchedule'], [arn('scheduler', `schedule/${QUIET_GROUP}/quiet-*`)]),
        passRole(r.schedulerRoleArn, 'scheduler.amazonaws.com'),
      ],
    },
  };
}

/** The functions up to the start of a machine: dataset, index, plan, budget, launch. */
export function trainingSpecs(r: PipelineResources) {
  const { data } = r;
  const workspace = data.workspace.bucketArn;
  const specs = {
    'prepare-dataset': {
      description: 'Makes the training, validation and test split of a project',
      memoryMb: 3008,
      timeout: Duration.minutes(10),
      allow: [
        ...bucketAccess(data.documents.bucketArn, { read: ['*/project.toml'], list: true }),
        ...bucketAccess(workspace, {
          read: ['projects/*/datasets/*', 'projects/*/documents/*', 'projects/*/quarantine/*'],
          write: ['projects/*/datasets/*'],
          list: true,
        }),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['Query']),
      ],
    },
    'index-documents': {
      description: 'Makes the retrieval index of a dataset',
      memoryMb: 3008,
      timeout: Duration.minutes(15),
      allow: bucketAccess(workspace, {
        read: ['models/all-minilm-l6-v2/*', 'projects/*/datasets/*', 'projects/*/documents/*', 'projects/*/indexes/*'],
        write: ['projects/*/indexes/*'],
        list: true,
      }),
    },
    'plan-training': {
      description: 'Chooses machines, predicts time and dollars',
      memoryMb: 512,
      timeout: Duration.minutes(1),
      allow: [
        ...bucketAccess(data.documents.bucketArn, { read: ['*/project.toml'], list: true }),
        ...bucketAccess(workspace, {
          read: ['models/*', 'projects/*/datasets/*', 'projects/*/runs/*/plan.json'],
          write: ['projects/*/runs/*/plan.json'],
          list: true,
        }),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['GetItem']),
        allowWithoutResource(
          'ec2:DescribeSpotPriceHistory',
          'servicequotas:GetAWSDefaultServiceQuota',
          'servicequotas:GetServiceQuota',
        ),
      ],
    },
    'guard-budget': {
      description: 'Reserves, settles and gives back money',
      memoryMb: 256,
      timeout: Duration.seconds(30),
      environment: { ACCOUNT_MONTHLY_CAP_MICROS: r.capMicros },
      allow: [
        ...bucketAccess(data.documents.bucketArn, { read: ['*/project.toml'], list: true }),
        ...bucketAccess(workspace, { read: ['projects/*/runs/*/plan.json'], list: true }),
        tableAccess(data.table.tableArn, ['BUDGET#*', 'PROJECT#*'], ['GetItem', 'Query', 'UpdateItem']),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['PutItem']),
        tableAccess(data.table.tableArn, ['ENDPOINT', 'LEASE'], ['Query']),
        // Whether the pipeline that holds a reservation is still there.
        describePipelines(),
        allow(['sns:Publish'], [data.notifications.topicArn]),
      ],
    },
    'launch-training': {
      description: 'Starts a machine for one attempt of a run',
      memoryMb: 256,
      timeout: Duration.minutes(2),
      environment: {
        LAUNCH_TEMPLATE_ID: r.machines.launchTemplate.ref,
        SUBNET_IDS: r.subnetIds,
        TRAINER_IMAGE: r.trainerImage,
      },
      allow: [
        ...bucketAccess(workspace, {
          read: ['models/*', 'projects/*/runs/*/plan.json'],
          write: ['projects/*/runs/*/attempts/*'],
          list: true,
        }),
        tableAccess(data.table.tableArn, ['LEASE'], ['GetItem', 'PutItem', 'Query', 'UpdateItem']),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['GetItem', 'UpdateItem']),
        allowWithoutResource('ec2:DescribeSubnets'),
        ...launchMachines(r),
        // Machines of the run's earlier attempts: two at once would spend twice.
        terminateMachines(),
      ],
    },
  } satisfies Record<string, FunctionSpec>;
  return specs;
}

/** Launching a machine: from the one launch template only, tagged while it is launched. */
function launchMachines(r: PipelineResources): iam.PolicyStatement[] {
  const made = ['instance/*', 'network-interface/*', 'volume/*'].map((resource) => arn('ec2', resource));
  return [
    allow(['ec2:RunInstances'], made, { ArnEquals: { 'ec2:LaunchTemplate': r.machines.launchTemplateArn } }),
    allow(['ec2:RunInstances'], [
      r.machines.launchTemplateArn,
      r.securityGroupArn,
      ...r.subnetArns,
      Fn.sub('arn:${AWS::Partition}:ec2:${AWS::Region}::image/*'),
    ]),
    allow(['ec2:CreateTags'], [arn('ec2', 'instance/*'), arn('ec2', 'volume/*')], {
      StringEquals: { 'ec2:CreateAction': 'RunInstances' },
    }),
    allow(['ssm:GetParameters'], [Fn.sub(`arn:\${AWS::Partition}:ssm:\${AWS::Region}::parameter${MACHINE_IMAGE}`)]),
    passRole(r.machines.role.roleArn, 'ec2.amazonaws.com'),
  ];
}

/** The functions after training: gate, approval, endpoint. */
export function publishingSpecs(r: PipelineResources) {
  const { data } = r;
  const workspace = data.workspace.bucketArn;
  const specs = {
    'gate-model': {
      description: 'Decides whether a model is good enough to be shown to the approver',
      memoryMb: 256,
      timeout: Duration.seconds(30),
      allow: bucketAccess(workspace, { read: ['projects/*/runs/*'], list: true }),
    },
    'request-approval': {
      description: 'Writes the decision page and mails the approver',
      memoryMb: 512,
      timeout: Duration.minutes(1),
      allow: [
        ...bucketAccess(workspace, { read: ['projects/*/runs/*'], write: ['projects/*/runs/*/report.html'], list: true }),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['GetItem', 'PutItem']),
        allow(['sns:Publish'], [data.notifications.topicArn]),
      ],
    },
    'answer-approval': {
      description: 'Shows the decision page and passes the answer on',
      memoryMb: 256,
      timeout: Duration.seconds(30),
      // A public address: a flood of requests must not take the account's concurrency from the pipeline.
      reserved: 5,
      environment: { TRAINING_PIPELINE_ARN: r.trainingPipelineArn },
      allow: [
        ...bucketAccess(workspace, { read: ['projects/*/runs/*/report.html'], list: true }),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['GetItem', 'Query', 'UpdateItem']),
        allowWithoutResource('states:SendTaskSuccess'),
        // A run that was approved before is deployed again; deploy-endpoint looks at the approval itself.
        allow(['states:StartExecution'], [r.trainingPipelineArn]),
      ],
    },
    'deploy-endpoint': {
      description: 'Creates the endpoint of a run, or makes it the live one',
      memoryMb: 256,
      timeout: Duration.minutes(2),
      environment: { ENDPOINT_ROLE_ARN: r.endpointRoleArn, TRAINER_IMAGE: r.trainerImage },
      allow: [
        ...bucketAccess(workspace, {
          read: ['models/*', 'projects/*/runs/*'],
          write: ['projects/*/runs/*/deployment.json', 'projects/*/runs/*/serve.json'],
          list: true,
        }),
        tableAccess(data.table.tableArn, ['ENDPOINT', 'PROJECT#*'], ['GetItem', 'PutItem', 'UpdateItem']),
        ...createEndpoints(),
        passRole(r.endpointRoleArn, 'sagemaker.amazonaws.com'),
      ],
    },
    'verify-endpoint': {
      description: 'Compares the endpoint with what was trained',
      memoryMb: 256,
      timeout: Duration.minutes(3),
      allow: [
        ...bucketAccess(workspace, { read: ['projects/*/runs/*'], list: true }),
        allow(['sagemaker:DescribeEndpoint', 'sagemaker:InvokeEndpoint'], [endpointArn()]),
      ],
    },
  } satisfies Record<string, FunctionSpec>;
  return specs;
}

function createEndpoints(): iam.PolicyStatement[] {
  const [model, config] = [modelArn(), configArn()];
  return [
    allow(['sagemaker:CreateModel'], [model]),
    allow(['sagemaker:CreateEndpointConfig'], [config]),
    allow(['sagemaker:CreateEndpoint'], [endpointArn(), config]),
    allow(['sagemaker:DescribeEndpoint'], [endpointArn()]),
    allow(['sagemaker:AddTags'], [model, config, endpointArn()]),
    // What is left of an earlier deployment of the same run is made anew.
    ...deleteEndpoints(),
  ];
}

/** Endpoints with model and configuration. */
function deleteEndpoints(): iam.PolicyStatement[] {
  return [
    allow(['sagemaker:DeleteEndpoint'], [endpointArn()]),
    allow(['sagemaker:DeleteEndpointConfig'], [configArn()]),
    allow(['sagemaker:DeleteModel'], [modelArn()]),
  ];
}

function modelArn(): string {
  return arn('sagemaker', `model/${PREFIX}-*`);
}

function configArn(): string {
  return arn('sagemaker', `endpoint-config/${PREFIX}-*`);
}

/** Where executions of the training pipeline stand. */
function describePipelines(): iam.PolicyStatement {
  return allow(['states:DescribeExecution'], [arn('states', `execution:${PREFIX}-training-pipeline:*`)]);
}

/** The functions that watch over money and machines. */
export function watchingSpecs(r: PipelineResources) {
  const { data } = r;
  const specs = {
    'watch-costs': {
      description: 'Meters machines and endpoints, mails cost alarms, stops what would exceed a cap',
      memoryMb: 256,
      timeout: Duration.minutes(2),
      environment: { ACCOUNT_MONTHLY_CAP_MICROS: r.capMicros },
      // One meter at a time: two would count the same seconds twice.
      reserved: 1,
      allow: [
        tableAccess(data.table.tableArn, ['BUDGET#*', 'ENDPOINT', 'LEASE', 'PROJECT#*'], ['Query', 'UpdateItem']),
        // What is live is looked up, and ends with its endpoint.
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['DeleteItem', 'GetItem']),
        allow(['sagemaker:DeleteEndpoint', 'sagemaker:DescribeEndpoint'], [endpointArn()]),
        allow(['sns:Publish'], [data.alarms.topicArn]),
      ],
    },
    'sweep-resources': {
      description: 'Ends machines without a valid lease and endpoints that nobody needs; tells pipelines that waited',
      memoryMb: 256,
      timeout: Duration.minutes(2),
      allow: [
        tableAccess(data.table.tableArn, ['LEASE'], ['Query', 'UpdateItem']),
        tableAccess(data.table.tableArn, ['ENDPOINT'], ['DeleteItem', 'GetItem', 'Query', 'UpdateItem']),
        tableAccess(data.table.tableArn, ['PROJECT#*'], ['GetItem', 'UpdateItem']),
        ...deleteEndpoints(),
        allowWithoutResource('ec2:DescribeInstances', 'states:SendTaskFailure'),
        describePipelines(),
        terminateMachines(),
      ],
    },
  } satisfies Record<string, FunctionSpec>;
  return specs;
}

