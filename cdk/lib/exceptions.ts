import { PREFIX, QUIET_GROUP } from './prefix.ts';

/** Rules of cdk-nag's AwsSolutions pack that do not hold here, with the reason. Everything else has to hold. */
export const RULES: Readonly<Record<string, string>> = {
  'AwsSolutions-S1':
    'Server access logs need a third bucket that grows for ever; CloudTrail data events record the same for those who need it. Public access is blocked, and only roles of this app write.',
  'AwsSolutions-SF2':
    'The execution history shows for 90 days, free of charge, what X-Ray would; X-Ray would cost a wildcard permission.',
  'AwsSolutions-SQS3':
    'The one queue without a dead-letter queue that the rule finds is one itself: that of the schedules, which the rule does not look at.',
  'AwsSolutions-VPC7':
    'Flow logs are billed by the gigabyte, and the training machines accept no connection: there is nothing inbound to log.',
};

const NAMED_AT_RUN_TIME = 'Objects are named by project, content and run when they are made; the folder is as narrow as a name can be.';
const IMAGE_UNKNOWN = 'EC2 names them while it launches; the statement holds only for the one launch template.';
const NAMES_CARRY_PROJECT = 'SageMaker names carry project and run; the prefix keeps every other resource of the account out.';

/** Resources with a wildcard that roles may have, with the reason. `{documents}` and `{workspace}` are the buckets' ARNs. */
export const WILDCARDS: Readonly<Record<string, string>> = {
  '*': 'Only for actions that AWS authorizes for every resource or none: lib/permissions.ts lists them, and allows no other.',
  '{documents}/*': 'People name their documents and projects; this role reads all of them.',
  '{documents}/*/project.toml': NAMED_AT_RUN_TIME,
  '{workspace}/models/*': 'People name base models.',
  '{workspace}/models/all-minilm-l6-v2/*': 'The files of one model.',
  '{workspace}/projects/*/datasets/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/documents/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/indexes/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/quarantine/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/adapter/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/attempts/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/checkpoints/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/tensorboard/*': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/deployment.json': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/evaluation.json': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/metrics.jsonl': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/plan.json': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/reference-logits.json': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/report.html': NAMED_AT_RUN_TIME,
  '{workspace}/projects/*/runs/*/serve.json': NAMED_AT_RUN_TIME,
  '{ec2}:image/*': 'AWS publishes a new image every few weeks; the launch template says which is used.',
  '{ec2 here}:instance/*': 'EC2 names machines; ending one needs the tag of an attempt, launching one needs the launch template.',
  '{ec2 here}:network-interface/*': IMAGE_UNKNOWN,
  '{ec2 here}:volume/*': IMAGE_UNKNOWN,
  [`{states}:execution:${PREFIX}-training-pipeline:*`]: 'Executions are named when they start; only those of the one state machine.',
  [`{logs}:log-group:/aws/sagemaker/Endpoints/${PREFIX}-*`]: NAMES_CARRY_PROJECT,
  [`{logs}:log-group:/aws/sagemaker/Endpoints/${PREFIX}-*:*`]: NAMES_CARRY_PROJECT,
  [`{sagemaker}:endpoint-config/${PREFIX}-*`]: NAMES_CARRY_PROJECT,
  [`{sagemaker}:endpoint/${PREFIX}-*`]: NAMES_CARRY_PROJECT,
  [`{sagemaker}:model/${PREFIX}-*`]: NAMES_CARRY_PROJECT,
  [`{scheduler}:schedule/${QUIET_GROUP}/quiet-*`]: 'One schedule for each project, named after it.',
};
