import { CfnCondition, CfnParameter, Fn, Stack, Token } from 'aws-cdk-lib';

/** Where the packaged functions are: `{ArtifactsPrefix}/{function}.zip` in `ArtifactsBucket`. */
export interface Artifacts {
  readonly bucket: string;
  readonly prefix: string;
}

/** Declares `ArtifactsBucket` and `ArtifactsPrefix`. Code is no CDK asset: synthesis never depends on built binaries. */
export function artifacts(stack: Stack): Artifacts {
  const bucket = new CfnParameter(stack, 'ArtifactsBucket', {
    description: 'Bucket that holds the packaged functions.',
    minLength: 3,
  });
  const prefix = new CfnParameter(stack, 'ArtifactsPrefix', {
    default: 'functions',
    description: 'Folder in that bucket, without a slash at its end: {ArtifactsPrefix}/{function}.zip.',
    allowedPattern: '[A-Za-z0-9][A-Za-z0-9._/-]*[A-Za-z0-9]',
    constraintDescription: 'letters, digits, dots, hyphens, underscores and slashes; no slash at either end',
  });
  return { bucket: bucket.valueAsString, prefix: prefix.valueAsString };
}

/** Declares `AlarmEmail`: empty means that nobody is mailed by AWS itself. */
export function alarmEmail(stack: Stack): { email: string; given: CfnCondition } {
  const email = new CfnParameter(stack, 'AlarmEmail', {
    default: '',
    description: 'Address for cost alarms and failures; empty for none. AWS asks it to confirm the subscription.',
    allowedPattern: '|[^@\\s]+@[^@\\s]+\\.[^@\\s]+',
    constraintDescription: 'an e-mail address, or empty',
  });
  const given = new CfnCondition(stack, 'HasAlarmEmail', {
    expression: Fn.conditionNot(Fn.conditionEquals(email.valueAsString, '')),
  });
  return { email: email.valueAsString, given };
}

/** Declares `MonthlyCapUsd`: what everything together may cost in a month, in whole dollars. */
export function monthlyCapUsd(stack: Stack): string {
  return new CfnParameter(stack, 'MonthlyCapUsd', {
    default: '500',
    description: 'What the whole account may spend in a calendar month, in whole US dollars.',
    allowedPattern: '[1-9][0-9]{0,6}',
    constraintDescription: 'whole dollars from 1 to 9999999',
  }).valueAsString;
}

/**
 * Declares `ReserveConcurrency`. Returns a function that turns a figure into one that counts only when it is `yes`:
 * a fresh account has so few concurrent executions (10) that Lambda refuses every reservation.
 */
export function reservations(stack: Stack): (executions: number) => number {
  const choice = new CfnParameter(stack, 'ReserveConcurrency', {
    default: 'yes',
    allowedValues: ['yes', 'no'],
    description: 'Write no in a fresh account whose Lambda quota is 10 concurrent executions.',
  });
  const reserve = new CfnCondition(stack, 'ReservesConcurrency', {
    expression: Fn.conditionEquals(choice.valueAsString, 'yes'),
  });
  return (executions) => Token.asNumber(Fn.conditionIf(reserve.logicalId, executions, { Ref: 'AWS::NoValue' }));
}

/** Declares `TrainerImage`: the container that trains and serves. */
export function trainerImage(stack: Stack): string {
  return new CfnParameter(stack, 'TrainerImage', {
    description: 'Image of the trainer, as repository-uri:tag.',
    minLength: 1,
  }).valueAsString;
}
