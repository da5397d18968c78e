import { RemovalPolicy } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as logs from 'aws-cdk-lib/aws-logs';
import { Construct } from 'constructs';

import { arn, LOG_DAYS, PREFIX, TRAINER_LOG_GROUP } from '../names.ts';
import { allowWithoutResource, allow, bucketAccess, pullImage, tableAccess } from '../permissions.ts';
import { Network } from './network.ts';

/**
 * Image with Docker, the NVIDIA driver and container toolkit, and the AWS CLI, which the user data needs; it runs on
 * machines without a GPU as well. Resolved by EC2 at launch, so that machines are patched without a deployment.
 * Source: AWS Deep Learning AMIs Developer Guide, "Finding the ID of a DLAMI". The ECS-optimized image lost: no AWS CLI.
 */
export const MACHINE_IMAGE = '/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-amazon-linux-2023/latest/ami-id';

/** What a trainer writes into the folder of its run. Plan, job, decision page and deployment are other people's. */
const RUN_FILES = ['adapter/*', 'checkpoints/*', 'evaluation.json', 'metrics.jsonl', 'reference-logits.json', 'tensorboard/*'];

/** What it reads there: its job, and what an attempt before it left. */
const READ_RUN_FILES = ['adapter/*', 'attempts/*', 'checkpoints/*', 'metrics.jsonl'];

/** The machine image fills 75 GB; the rest is room for the trainer's image, a 7B base model and its checkpoints. */
const DISK_GB = 125;

export interface TrainingMachinesProps {
  readonly network: Network;
  readonly workspaceArn: string;
  readonly tableArn: string;
  readonly repositoryArn: string;
}

function inRuns(file: string): string {
  return `projects/*/runs/*/${file}`;
}

/** How a training machine starts: the launch template and the role of the machine. Launches nothing by itself. */
export class TrainingMachines extends Construct {
  readonly launchTemplate: ec2.CfnLaunchTemplate;
  readonly role: iam.Role;

  constructor(scope: Construct, id: string, props: TrainingMachinesProps) {
    super(scope, id);
    const logGroup = new logs.LogGroup(this, 'Log', {
      logGroupName: TRAINER_LOG_GROUP,
      retention: LOG_DAYS,
      removalPolicy: RemovalPolicy.DESTROY,
    });
    this.role = new iam.Role(this, 'Role', {
      assumedBy: new iam.ServicePrincipal('ec2.amazonaws.com'),
      description: 'What a training machine may do',
      inlinePolicies: {
        task: new iam.PolicyDocument({
          statements: [
            ...bucketAccess(props.workspaceArn, {
              read: ['models/*', 'projects/*/datasets/*', ...READ_RUN_FILES.map(inRuns)],
              write: RUN_FILES.map(inRuns),
              remove: ['projects/*/runs/*/checkpoints/*'],
              list: true,
            }),
            tableAccess(props.tableArn, ['LEASE'], ['GetItem', 'UpdateItem']),
            allowWithoutResource('states:SendTaskFailure', 'states:SendTaskHeartbeat', 'states:SendTaskSuccess'),
            ...pullImage(props.repositoryArn),
            allow(['logs:CreateLogStream', 'logs:PutLogEvents'], [logGroup.logGroupArn]),
          ],
        }),
      },
    });
    const profile = new iam.CfnInstanceProfile(this, 'Profile', { roles: [this.role.roleName] });
    this.launchTemplate = new ec2.CfnLaunchTemplate(this, 'Template', {
      launchTemplateName: `${PREFIX}-training`,
      launchTemplateData: {
        imageId: `resolve:ssm:${MACHINE_IMAGE}`,
        iamInstanceProfile: { arn: profile.attrArn },
        // A machine that powers itself off is gone, disk included: nothing is left to be billed.
        instanceInitiatedShutdownBehavior: 'terminate',
        securityGroupIds: [props.network.securityGroup.attrGroupId],
        // Two hops: the trainer reads the spot notice from inside its container.
        metadataOptions: { httpTokens: 'required', httpEndpoint: 'enabled', httpPutResponseHopLimit: 2, instanceMetadataTags: 'disabled' },
        blockDeviceMappings: [
          {
            deviceName: '/dev/xvda',
            ebs: { volumeType: 'gp3', volumeSize: DISK_GB, encrypted: true, deleteOnTermination: true },
          },
        ],
        monitoring: { enabled: false },
        tagSpecifications: ['instance', 'volume'].map((resourceType) => ({
          resourceType,
          tags: [{ key: 'Name', value: `${PREFIX}-training` }],
        })),
      },
    });
  }

  /** ARN of the launch template. */
  get launchTemplateArn(): string {
    return arn('ec2', 'launch-template/${Id}', { Id: this.launchTemplate.ref });
  }
}
