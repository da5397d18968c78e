import { CfnCondition } from 'aws-cdk-lib';
import * as iam from 'aws-cdk-lib/aws-iam';
import * as sns from 'aws-cdk-lib/aws-sns';
import { Construct } from 'constructs';

import { ACCOUNT } from '../names.ts';

export interface MailTopicProps {
  readonly topicName: string;
  /** What stands as the sender in a mail. */
  readonly displayName: string;
  readonly email: { email: string; given: CfnCondition };
  /** AWS services that publish to it by themselves, beside functions and state machines that have roles. */
  readonly publishers?: string[];
}

/** A topic for mails to people: published to over TLS only, with one optional e-mail subscription. */
export class MailTopic extends Construct {
  readonly topic: sns.Topic;

  constructor(scope: Construct, id: string, props: MailTopicProps) {
    super(scope, id);
    this.topic = new sns.Topic(this, 'Topic', {
      topicName: props.topicName,
      displayName: props.displayName,
      enforceSSL: true,
    });
    for (const service of props.publishers ?? []) {
      this.topic.addToResourcePolicy(publishStatement(this.topic, service));
    }
    const subscription = new sns.CfnSubscription(this, 'Email', {
      topicArn: this.topic.topicArn,
      protocol: 'email',
      endpoint: props.email.email,
    });
    subscription.cfnOptions.condition = props.email.given;
  }
}

function publishStatement(topic: sns.Topic, service: string) {
  return new iam.PolicyStatement({
    sid: `Publish${service.split('.')[0]}`,
    principals: [new iam.ServicePrincipal(service)],
    actions: ['sns:Publish'],
    resources: [topic.topicArn],
    conditions: { StringEquals: { 'aws:SourceAccount': ACCOUNT } },
  });
}
