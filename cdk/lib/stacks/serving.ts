import { CfnOutput, Duration, Stack, StackProps } from 'aws-cdk-lib';
import * as lambda from 'aws-cdk-lib/aws-lambda';
import { Construct } from 'constructs';

import { RustFunction } from '../constructs/rust-function.ts';
import { artifacts, reservations } from '../parameters.ts';
import { allow, bucketAccess, endpointArn, tableAccess } from '../permissions.ts';
import { sharedEnvironment } from '../shared-environment.ts';
import type { DataStack } from './data.ts';

export interface ServingStackProps extends StackProps {
  readonly data: DataStack;
}

/** The OpenAI-compatible API in front of the endpoints. The endpoints themselves are made by the pipeline, never here. */
export class ServingStack extends Stack {
  readonly gateway: RustFunction;

  constructor(scope: Construct, id: string, props: ServingStackProps) {
    super(scope, id, props);
    const { data } = props;
    this.gateway = new RustFunction(this, 'Gateway', {
      name: 'gateway',
      description: 'OpenAI-compatible API: keys, limits, retrieval, endpoint',
      // Embedding a question takes a whole processor.
      memoryMb: 1769,
      timeout: Duration.minutes(5),
      artifacts: artifacts(this),
      environment: sharedEnvironment(data),
      // A public address: bounds what a flood of requests can cost before the keys' own limits are known.
      reservedConcurrency: reservations(this)(20),
      allow: [
        ...bucketAccess(data.workspace.bucketArn, {
          read: ['models/all-minilm-l6-v2/*', 'projects/*/indexes/*'],
          list: true,
        }),
        tableAccess(data.table.tableArn, ['KEY#*', 'PROJECT#*'], ['GetItem']),
        tableAccess(data.table.tableArn, ['USAGE#*'], ['UpdateItem']),
        allow(['sagemaker:InvokeEndpoint', 'sagemaker:InvokeEndpointWithResponseStream'], [endpointArn()]),
      ],
    });
    // No IAM on the address: OpenAI clients send `Authorization: Bearer <key>`, which the function checks.
    const url = this.gateway.function.addFunctionUrl({
      authType: lambda.FunctionUrlAuthType.NONE,
      invokeMode: lambda.InvokeMode.RESPONSE_STREAM,
    });
    new CfnOutput(this, 'OutputGatewayUrl', {
      value: url.url,
      description: 'Base URL of the OpenAI-compatible API, without /v1.',
    }).overrideLogicalId('GatewayUrl');
  }
}
