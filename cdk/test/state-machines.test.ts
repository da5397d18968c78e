import assert from 'node:assert/strict';
import { test } from 'node:test';

import validate from 'asl-validator';

import { ERROR_NAMES, lastResort, machine, machineText, type State } from './asl.ts';
import { FUNCTIONS, ofType, repositoryFile, type Json } from './support.ts';

const PIPELINE = machine('training-pipeline');
const FILES = ['training-pipeline', 'approve-deployment'].map((name) => ({ name, ...machine(name) }));

/** Errors of Lambda itself that AWS asks to retry. Source: Step Functions Developer Guide, "Handle transient Lambda service exceptions". */
const LAMBDA = [
  'Lambda.AWSLambdaException',
  'Lambda.ClientExecutionTimeoutException',
  'Lambda.SdkClientException',
  'Lambda.ServiceException',
  'Lambda.TooManyRequestsException',
];
const STEP_FUNCTIONS = ['States.ALL', 'States.HeartbeatTimeout', 'States.TaskFailed', 'States.Timeout'];

function tasks(): [string, State][] {
  return FILES.flatMap(({ name, States }) =>
    Object.entries(States)
      .filter(([, state]) => state.Type === 'Task')
      .map(([id, state]): [string, State] => [`${name}/${id}`, state]),
  );
}

function functionOf(state: State): string {
  const given = (state.Parameters?.FunctionName ?? state.Arguments?.['FunctionName'] ?? '') as string;
  const camel = /^\$\{(\w+)FunctionArn\}$/.exec(given)?.[1] ?? '';
  return camel.replace(/([A-Z])/g, (letter) => `-${letter.toLowerCase()}`).slice(1);
}

test('the files are valid Amazon States Language', () => {
  for (const { name } of FILES) {
    const filled = machineText(name)
      .replace(/\$\{\w+FunctionArn\}/g, 'arn:aws:lambda:us-east-1:123456789012:function:f')
      .replace(/\$\{\w+TopicArn\}/g, 'arn:aws:sns:us-east-1:123456789012:t')
      .replace(/\$\{\w+\}/g, 'x');
    const result = validate(JSON.parse(filled));
    assert.ok(result.isValid, `${name}: ${result.errorsText('\n')}`);
  }
});

/** Seconds that a state waits: as the file says, or at the least what the plan adds to a training's longest time. */
function timeout(state: State): number {
  if (state.TimeoutSecondsPath === undefined) return state.TimeoutSeconds ?? 0;
  assert.equal(state.TimeoutSecondsPath, '$.plan.train_timeout');
  const decide = repositoryFile('functions/plan-training/src/decide.rs');
  return Number(/TIMEOUT_MARGIN: Seconds = Seconds\((\d+)\)/.exec(decide)?.[1]);
}

test('every task has a time limit, retries what can pass, and catches everything', () => {
  for (const [id, state] of tasks()) {
    assert.ok(timeout(state) > 0, `${id} has no TimeoutSeconds`);
    assert.ok((state.Retry?.length ?? 0) > 0, `${id} has no Retry`);
    assert.deepEqual(state.Catch?.at(-1)?.ErrorEquals, ['States.ALL'], `${id} does not catch everything`);
  }
});

test('errors are matched by the names of ErrorName, by States.* and by Lambda.* only', () => {
  const known = new Set([...ERROR_NAMES.keys(), ...STEP_FUNCTIONS, ...LAMBDA]);
  assert.ok(ERROR_NAMES.size >= 20, 'crates/contract/src/error_name.rs could not be read');
  for (const [id, state] of tasks()) {
    for (const name of [...(state.Retry ?? []), ...(state.Catch ?? [])].flatMap((entry) => entry.ErrorEquals)) {
      assert.ok(known.has(name), `${id} matches ${name}`);
    }
  }
  for (const { States } of FILES) {
    for (const state of Object.values(States)) {
      if (state.Type === 'Fail' && !state.Error?.startsWith('{%')) assert.ok(ERROR_NAMES.has(state.Error ?? ''), state.Error);
    }
  }
  assert.ok(ERROR_NAMES.has((PIPELINE.States['NoEvaluation']?.Parameters?.['Error'] as string) ?? ''));
});

test('what cannot be helped by doing it again is not done again', () => {
  const final = [...ERROR_NAMES].filter(([, retryable]) => !retryable).map(([name]) => name);
  for (const [id, state] of tasks()) {
    if (!functionOf(state)) continue;
    for (const name of final) {
      const first = state.Retry?.find((retrier) => retrier.ErrorEquals.some((e) => e === name || e === 'States.TaskFailed'));
      assert.equal(first?.MaxAttempts, 0, `${id} retries ${name}`);
    }
  }
});

test('what can be helped by doing it again is done again', () => {
  const retried = new Set(tasks().flatMap(([, s]) => (s.Retry ?? []).filter((r) => r.MaxAttempts > 0).flatMap((r) => r.ErrorEquals)));
  for (const [name, retryable] of ERROR_NAMES) if (retryable) assert.ok(retried.has(name), `nobody retries ${name}`);
});

test('retries wait longer each time, up to a limit, and not all at once', () => {
  for (const [id, state] of tasks()) {
    for (const retrier of (state.Retry ?? []).filter((r) => r.MaxAttempts > 1)) {
      assert.ok((retrier.BackoffRate ?? 0) > 1, `${id} ${retrier.ErrorEquals}`);
      assert.ok((retrier.MaxDelaySeconds ?? 0) > 0, `${id} ${retrier.ErrorEquals}`);
      // One pipeline waits for one endpoint: nothing to spread.
      if (!retrier.ErrorEquals.includes('EndpointNotReady')) assert.equal(retrier.JitterStrategy, 'FULL', `${id} ${retrier.ErrorEquals}`);
    }
  }
});

test('a lost or interrupted machine is replaced', () => {
  const retried = PIPELINE.States['TrainModel']?.Retry?.filter((r) => r.MaxAttempts > 0).flatMap((r) => r.ErrorEquals) ?? [];
  for (const name of ['SpotInterrupted', 'MachineLost', 'NoCapacity', 'States.HeartbeatTimeout']) assert.ok(retried.includes(name), name);
});

test('a waiting training is given up when its machine is silent for 15 minutes', () => {
  const train = PIPELINE.States['TrainModel'];
  assert.equal(train?.HeartbeatSeconds, 900);
  assert.ok((train?.HeartbeatSeconds ?? 0) < timeout(train as State));
});

test('a training may take as long as its plan says, whatever that is', () => {
  assert.equal(PIPELINE.States['TrainModel']?.TimeoutSecondsPath, '$.plan.train_timeout');
  assert.equal(PIPELINE.States['PlanTraining']?.ResultPath, '$.plan');
  assert.ok('train_timeout.$' in (PIPELINE.States['PlanTraining']?.ResultSelector ?? {}));
});

test('a machine is ended before its money is settled', () => {
  assert.equal(PIPELINE.States['TrainModel']?.Next, 'StopMachine');
  assert.equal(PIPELINE.States['StopMachine']?.Next, 'SettleBudget');
});

test('silence on an approval is a rejection after seven days', () => {
  assert.match(repositoryFile('crates/contract/src/approval.rs'), /APPROVAL_TIME: Seconds = Seconds\(7 \* 24 \* 3600\)/);
  const ask = PIPELINE.States['RequestApproval'];
  assert.equal(ask?.TimeoutSeconds, 7 * 24 * 3600);
  const silence = ask?.Catch?.find((catcher) => catcher.ErrorEquals.includes('States.Timeout'))?.Next ?? '';
  assert.equal(PIPELINE.States[silence]?.Parameters?.['verdict'], 'reject');
  assert.equal(PIPELINE.States[silence]?.Next, 'WasApproved');
  assert.equal(PIPELINE.States['WasApproved']?.Default, 'RecordRejected');
  const retried = ask?.Retry?.filter((r) => r.MaxAttempts > 0).flatMap((r) => r.ErrorEquals) ?? [];
  assert.ok(!retried.includes('States.Timeout'), 'a person would be asked again');
});

/** The states that follow when `from` and everything after it goes well. */
function follow(from: string | undefined): string[] {
  const path: string[] = [];
  for (let id = from; id !== undefined && !path.includes(id); id = PIPELINE.States[id]?.Next) path.push(id);
  return path;
}

test('a failure ends machines, gives money back, mails and fails the execution', () => {
  const cleanup = ['ReleaseResources', 'ReleaseBudget', 'ExplainFailure', 'NotifyFailure', 'Failed'];
  const before = ['PrepareDataset', 'IndexDocuments', 'PlanTraining'];
  for (const [id, state] of Object.entries(PIPELINE.States)) {
    if (state.Type !== 'Task' || id.startsWith('Notify') || cleanup.includes(id)) continue;
    const path = follow(lastResort(state)).filter((step) => step !== 'NoEvaluation');
    if (before.includes(id)) assert.deepEqual(path, cleanup.slice(2), id);
    // Before the reservation is ours, the run's machines may be another pipeline's.
    else if (id === 'ReserveBudget') assert.deepEqual(path, cleanup.slice(1), id);
    else assert.deepEqual(path, cleanup, id);
  }
});

test('cleaning up goes on when one of its steps fails, and keeps the first error', () => {
  for (const id of ['ReleaseResources', 'ReleaseBudget', 'NotifyFailure']) {
    const state = PIPELINE.States[id];
    assert.equal(lastResort(state as State), state?.Next, id);
    assert.notEqual(state?.Catch?.at(-1)?.ResultPath, '$.error', `${id} would hide why the pipeline failed`);
  }
});

test('a mail that cannot be sent changes nothing', () => {
  const mails = Object.entries(PIPELINE.States).filter(([id]) => id.startsWith('Notify'));
  assert.equal(mails.length, 5);
  for (const [id, state] of mails) {
    assert.equal(lastResort(state), state.Next, id);
    assert.equal(state.Catch?.at(-1)?.Output, '{% $states.input %}', id);
    assert.equal(state.Output, '{% $states.input %}', id);
  }
});

test('a model is live before it is mailed, and checked before it is live', () => {
  assert.deepEqual(follow('DeployEndpoint'), ['DeployEndpoint', 'VerifyEndpoint', 'PublishModel', 'NotifyPublished', 'Published']);
});

test('a run that was approved before is deployed again without training or asking', () => {
  const again = PIPELINE.States['CheckInput']?.Choices?.find((choice) => choice.Next === 'DeployAgain');
  assert.ok(JSON.stringify(again).includes('"$.run"'));
  assert.deepEqual(follow('DeployAgain').slice(0, 2), ['DeployAgain', 'DeployEndpoint']);
  const approval = repositoryFile('functions/deploy-endpoint/src/lib.rs');
  assert.match(approval, /check_approved\(&input, approval\.as_ref\(\)\)\?;/, 'whoever may start the pipeline could deploy anything');
});

test('nothing polls', () => {
  for (const { States } of FILES) for (const state of Object.values(States)) assert.notEqual(state.Type, 'Wait');
});

test('a step waits longer than its function may take', () => {
  for (const [id, state] of tasks()) {
    const name = functionOf(state);
    if (!name) continue;
    const limit = FUNCTIONS.get(name)?.properties['Timeout'] as number;
    assert.ok(limit > 0, `${id} calls ${name}, which is no function`);
    assert.ok(timeout(state) > limit, `${id} waits ${timeout(state)} s for a function of ${limit} s`);
  }
});

test('every name in a file is filled in by the template, and no other is given', () => {
  for (const { name } of FILES) {
    const resource = ofType('AWS::StepFunctions::StateMachine').find((m) => m.properties['StateMachineName'] === `tunesmith-${name}`);
    assert.equal(resource?.properties['DefinitionString'], machineText(name), `${name} is not the file`);
    const given = Object.keys(resource?.properties['DefinitionSubstitutions'] as Record<string, Json>).sort();
    const used = [...new Set([...machineText(name).matchAll(/\$\{(\w+)\}/g)].map((match) => match[1] as string))].sort();
    assert.deepEqual(given, used, name);
  }
});
