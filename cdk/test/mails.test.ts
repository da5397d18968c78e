import assert from 'node:assert/strict';
import { test } from 'node:test';

import jsonata from 'jsonata';

import { machine } from './asl.ts';

const PIPELINE = machine('training-pipeline');
const FAILED = {
  project: 'handbook',
  error: { Error: 'NotEnoughText', Cause: '{"errorType":"NotEnoughText","errorMessage":"12 words in 1 document; upload more"}' },
};
const RUN = {
  project: 'handbook',
  dataset: { documents: 41, unread: { count: 0, first: [] } },
  plan: { run: 'run-0123456789ab', instance_type: 'g4dn.xlarge', quote: { expected: 420_000, upper_bound: 1_100_000 } },
  budget: { left: 24_000_000, settled: 310_000 },
};

const PUBLISHED = {
  ...RUN,
  live: { run: 'run-0123456789ab', endpoint: 'tunesmith-handbook-0123456789ab', replaces: null as string | null },
};

/** Evaluates a JSONata field as Step Functions does: with `$states`, and with `$parse` for JSON. */
async function evaluate(field: string, input: unknown): Promise<unknown> {
  const expression = jsonata(/^\{%(.*)%\}$/s.exec(field)?.[1] ?? assert.fail(`${field} is no expression`));
  expression.registerFunction('parse', (text: string) => JSON.parse(text) as unknown, '<s:x>');
  const states = { input, context: { Execution: { Id: 'arn:aws:states:us-east-1:123456789012:execution:p:e' } } };
  // What leaves a state is JSON, whatever the library's own objects are.
  return JSON.parse(JSON.stringify(await expression.evaluate({}, { states }))) as unknown;
}

async function mail(state: string, input: unknown): Promise<{ subject: string; message: string }> {
  const { Subject, Message } = PIPELINE.States[state]?.Arguments as { Subject: string; Message: string };
  return { subject: (await evaluate(Subject, input)) as string, message: (await evaluate(Message, input)) as string };
}

async function explained(error: unknown, more: object = {}): Promise<Record<string, unknown>> {
  const output = PIPELINE.States['ExplainFailure']?.Output ?? '';
  return (await evaluate(output, { ...RUN, ...more, error })) as Record<string, unknown>;
}

test('every mail names the project, says what to do next and links to the execution', async () => {
  const inputs: Record<string, unknown> = {
    NotifyStarted: RUN,
    NotifyGateRefused: { ...RUN, gate: { passed: false, checks: [{ passed: false, message: 'improved by 1 %' }] } },
    NotifyRejected: { ...RUN, approval: { by: 'ada', reason: '' } },
    NotifyPublished: PUBLISHED,
    NotifyFailure: await explained(FAILED.error),
  };
  for (const [state, input] of Object.entries(inputs)) {
    const { subject, message } = await mail(state, input);
    // SNS refuses longer subjects, and anything but printable ASCII.
    assert.match(subject, /^[ -~]{1,99}$/, state);
    assert.match(subject, /handbook/, state);
    assert.match(message, /handbook/, state);
    assert.match(message, /\n\nWhat to do next: /, state);
    assert.match(message, /execution:p:e$/, state);
    assert.doesNotMatch(message, /undefined|null|\[object|NaN/, state);
  }
});

test('uploads that were left out are named when training has started', async () => {
  const unread = { count: 7, first: ['piers/Fahrgäste + Hunde.docx', 'a.pdf'] };
  const { message } = await mail('NotifyStarted', { ...RUN, dataset: { documents: 41, unread } });
  assert.match(message, /\nLEFT OUT: 7 uploaded file\(s\) .*piers\/Fahrgäste \+ Hunde\.docx, a\.pdf\./);
  const { message: none } = await mail('NotifyStarted', RUN);
  assert.doesNotMatch(none, /LEFT OUT|\n\n\n/);
});

test('a subject fits with the longest project name', async () => {
  const project = 'p'.repeat(40);
  for (const state of ['NotifyStarted', 'NotifyGateRefused', 'NotifyRejected', 'NotifyPublished', 'NotifyFailure']) {
    const { Subject } = PIPELINE.States[state]?.Arguments as { Subject: string };
    assert.ok(((await evaluate(Subject, { project })) as string).length < 100, state);
  }
});

test('money is in dollars', async () => {
  const { message } = await mail('NotifyStarted', RUN);
  assert.match(message, /Expected cost: \$0\.42\. Reserved: \$1\.10;/);
  assert.match(message, /\$24\.00/);
});

test('a gate that refuses says which checks failed, and only those', async () => {
  const check = (passed: boolean, message: string) => ({ passed, message });
  const one = await mail('NotifyGateRefused', { ...RUN, gate: { checks: [check(true, 'fine'), check(false, 'too few tokens')] } });
  assert.match(one.message, /\n- too few tokens\n/);
  assert.doesNotMatch(one.message, /fine/);
  const two = await mail('NotifyGateRefused', { ...RUN, gate: { checks: [check(false, 'a'), check(false, 'b')] } });
  assert.match(two.message, /\n- a\n- b\n/);
});

test('a rejection says who, and why if there is a reason', async () => {
  const silent = await mail('NotifyRejected', { ...RUN, approval: { by: 'ada', reason: '' } });
  assert.match(silent.message, /Decided by: ada\nReason: none was given\n/);
  const reasoned = await mail('NotifyRejected', { ...RUN, approval: { by: 'ada', reason: 'samples are rude' } });
  assert.match(reasoned.message, /Reason: samples are rude\n/);
});

test('a failure keeps its name, and its cause in plain words', async () => {
  for (const [error, name, message] of [
    [FAILED.error, 'NotEnoughText', '12 words in 1 document; upload more'],
    [{ Error: 'TrainingDiverged', Cause: 'loss is not a number in step 7' }, 'TrainingDiverged', 'loss is not a number in step 7'],
    [{ Error: 'States.Timeout' }, 'States.Timeout', 'the step did not answer in time'],
    [{ Error: 'States.Timeout', Cause: '' }, 'States.Timeout', 'the step did not answer in time'],
    [{ Error: 'X', Cause: '{"errorMessage": cut off' }, 'X', '{"errorMessage": cut off'],
  ] as const) {
    const state = await explained(error);
    assert.deepEqual(state['failure'], { name, message });
    assert.equal(await evaluate(PIPELINE.States['Failed']?.Error ?? '', state), name);
    assert.equal(await evaluate(PIPELINE.States['Failed']?.Cause ?? '', state), message);
    assert.deepEqual(state['plan'], RUN.plan, 'the rest of the state is lost');
  }
});

test('a failure says what could not be cleaned up', async () => {
  const clean = await mail('NotifyFailure', await explained(FAILED.error));
  assert.match(clean.message, /Machines and endpoints: none of this pipeline is left/);
  const { message } = await mail(
    'NotifyFailure',
    await explained(FAILED.error, { release_error: { Error: 'AccessDenied' } }),
  );
  assert.match(message, /could not be ended at once \(AccessDenied\)/);
  assert.doesNotMatch(message, /is left/);
});

test('the mail about a live model says what it replaces, and how to go back', async () => {
  const first = await mail('NotifyPublished', PUBLISHED);
  assert.equal(first.subject, 'Tunesmith: handbook - the new model is live');
  assert.match(first.message, /It is the first model of this project/);
  const later = await mail('NotifyPublished', { ...PUBLISHED, live: { ...PUBLISHED.live, replaces: 'run-ba9876543210' } });
  assert.match(later.message, /It replaces: run-ba9876543210/);
  const input = /approve-deployment with (\{.*\})/.exec(later.message)?.[1] ?? '';
  assert.deepEqual(JSON.parse(input), { project: 'handbook', run: 'run-ba9876543210', verdict: 'approve' });
});

test('a failure to deploy again is no failed training', async () => {
  const { run } = RUN.plan;
  const input = { project: 'handbook', run, plan: { run }, error: { Error: 'VerificationFailed', Cause: 'differs' } };
  const output = PIPELINE.States['ExplainFailure']?.Output ?? '';
  const { subject, message } = await mail('NotifyFailure', await evaluate(output, input));
  assert.equal(subject, 'Tunesmith: deployment of handbook failed');
  assert.match(message, /start the state machine approve-deployment again/);
  assert.doesNotMatch(message, /_TRAIN/);
});

test('a failure before the run has a name is told as well', async () => {
  const output = PIPELINE.States['ExplainFailure']?.Output ?? '';
  const { message } = await mail('NotifyFailure', await evaluate(output, FAILED));
  assert.match(message, /Run: none was started/);
  assert.match(message, /Cause: 12 words/);
});

test('whoever starts approve-deployment is who decided, whatever the input says', async () => {
  const { Payload } = machine('approve-deployment').States['AnswerApproval']?.Arguments as { Payload: string };
  assert.deepEqual(await evaluate(Payload, { project: 'handbook', verdict: 'approve', by: 'somebody else' }), {
    project: 'handbook',
    verdict: 'approve',
    by: 'arn:aws:states:us-east-1:123456789012:execution:p:e',
  });
});
