import { CfnElement, Validations } from 'aws-cdk-lib';
import type { IConstruct } from 'constructs';

import type { Tunesmith } from './app.ts';
import { RULES, WILDCARDS } from './exceptions.ts';

/** The rules with cdk-nag's own ids, one for each wildcard, and the reasons. */
export function acknowledged({ data }: Tunesmith): Record<string, string> {
  const ids = Object.entries(WILDCARDS).map(([pattern, reason]) => {
    const resource = pattern
      .replace('{documents}', `<${logicalId(data.documents)}.Arn>`)
      .replace('{workspace}', `<${logicalId(data.workspace)}.Arn>`)
      .replace('{ec2}', 'arn:<AWS::Partition>:ec2:<AWS::Region>:')
      .replace(/^\{(\w+)( here)?\}/, 'arn:<AWS::Partition>:$1:<AWS::Region>:<AWS::AccountId>');
    return [`AwsSolutions-IAM5[Resource::${resource}]`, reason];
  });
  return { ...RULES, ...Object.fromEntries(ids) };
}

/** Puts the reasons on the app, where cdk-nag looks for them. */
export function acknowledge(built: Tunesmith): void {
  for (const [id, reason] of Object.entries(acknowledged(built))) Validations.of(built.app).acknowledge({ id, reason });
}

function logicalId(construct: IConstruct): string {
  const child = construct.node.defaultChild as CfnElement;
  return child.stack.getLogicalId(child);
}
