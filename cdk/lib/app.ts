import { App, DefaultStackSynthesizer, Stack, Tags } from 'aws-cdk-lib';

import { FUTURE_FLAGS } from './flags.ts';
import { PREFIX } from './names.ts';
import { DataStack } from './stacks/data.ts';
import { ObservabilityStack } from './stacks/observability.ts';
import { PipelineStack } from './stacks/pipeline.ts';
import { ServingStack } from './stacks/serving.ts';

/** The app with its four stacks. The same source gives the same templates, whoever synthesizes, wherever. */
export interface Tunesmith {
  readonly app: App;
  /** In deployment order. */
  readonly stacks: Stack[];
  readonly data: DataStack;
}

/** Builds the app. `outdir` is where CDK puts its assembly; by default where the CDK command wants it. */
export function tunesmith(outdir?: string): Tunesmith {
  const app = new App({ analyticsReporting: false, context: FUTURE_FLAGS, outdir });
  // No bootstrap rule: the templates have to deploy in an emulator, and with plain CloudFormation, too.
  const props = () => ({
    synthesizer: new DefaultStackSynthesizer({ generateBootstrapVersionRule: false }),
    terminationProtection: false,
  });
  const data = new DataStack(app, `${PREFIX}-data`, {
    ...props(),
    terminationProtection: true,
    description: 'Tunesmith: buckets, table, topics, image repository',
  });
  const pipeline = new PipelineStack(app, `${PREFIX}-pipeline`, {
    ...props(),
    data,
    description: 'Tunesmith: from documents to a published model',
  });
  const serving = new ServingStack(app, `${PREFIX}-serving`, {
    ...props(),
    data,
    description: 'Tunesmith: OpenAI-compatible gateway',
  });
  const observability = new ObservabilityStack(app, `${PREFIX}-observability`, {
    ...props(),
    data,
    pipeline,
    serving,
    description: 'Tunesmith: dashboard, alarms, AWS budget',
  });
  pipeline.addStackDependency(data);
  serving.addStackDependency(data);
  observability.addStackDependency(pipeline);
  observability.addStackDependency(serving);
  Tags.of(app).add('application', PREFIX);
  return { app, data, stacks: [data, pipeline, serving, observability] };
}
