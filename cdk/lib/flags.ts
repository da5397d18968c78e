/** CDK feature flags, in code so that every way of synthesizing has the same. */
export const FUTURE_FLAGS: Record<string, boolean> = {
  '@aws-cdk/core:enablePartitionLiterals': false,
  '@aws-cdk/aws-iam:minimizePolicies': false,
  '@aws-cdk/aws-lambda:recognizeLayerVersion': true,
  '@aws-cdk/aws-lambda:useCdkManagedLogGroup': false,
};
