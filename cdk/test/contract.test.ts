import assert from 'node:assert/strict';
import { test } from 'node:test';

import { fields, machine, type State } from './asl.ts';
import { repositoryFile } from './support.ts';

const PIPELINE = machine('training-pipeline');

/** Input and output of every step: module and struct of `contract`. */
const STEPS: Record<string, { input: string; output: [module: string, struct: string] }> = {
  DeployEndpoint: { input: 'DeployEndpointInput', output: ['deployment', 'Deployment'] },
  GateModel: { input: 'GateModelInput', output: ['evaluation', 'GateDecision'] },
  IndexDocuments: { input: 'IndexDocumentsInput', output: ['tasks', 'IndexedDocuments'] },
  PlanTraining: { input: 'PlanTrainingInput', output: ['tasks', 'PlannedTraining'] },
  PrepareDataset: { input: 'PrepareDatasetInput', output: ['tasks', 'PreparedDataset'] },
  PublishModel: { input: 'DeployEndpointInput', output: ['deployment', 'LiveRecord'] },
  RecordGateRefused: { input: 'GuardBudgetInput', output: ['tasks', 'GuardedBudget'] },
  RecordRejected: { input: 'GuardBudgetInput', output: ['tasks', 'GuardedBudget'] },
  ReleaseBudget: { input: 'GuardBudgetInput', output: ['tasks', 'GuardedBudget'] },
  ReleaseResources: { input: 'SweepResourcesInput', output: ['tasks', 'SweptResources'] },
  RequestApproval: { input: 'RequestApprovalInput', output: ['approval', 'ApprovalDecision'] },
  ReserveBudget: { input: 'GuardBudgetInput', output: ['tasks', 'GuardedBudget'] },
  SettleBudget: { input: 'GuardBudgetInput', output: ['tasks', 'GuardedBudget'] },
  StopMachine: { input: 'SweepResourcesInput', output: ['tasks', 'SweptResources'] },
  TrainModel: { input: 'LaunchTrainingInput', output: ['job', 'TrainReport'] },
  VerifyEndpoint: { input: 'VerifyEndpointInput', output: ['deployment', 'Verification'] },
};

function lambdaSteps(): [string, State][] {
  return Object.entries(PIPELINE.States).filter(([, state]) => state.Resource?.includes(':lambda:'));
}

test('every step that calls a function has its types here', () => {
  assert.deepEqual(lambdaSteps().map(([id]) => id).sort(), Object.keys(STEPS).sort());
});

test('every step sends exactly the fields of its input type', () => {
  for (const [id, state] of lambdaSteps()) {
    const sent = Object.keys(state.Parameters?.Payload ?? {}).map((key) => key.replace(/\.\$$/, ''));
    const known = fields('tasks', STEPS[id]?.input ?? '');
    for (const field of sent) assert.ok(known.has(field), `${id} sends ${field}, which ${STEPS[id]?.input} refuses`);
    for (const [field, { optional }] of known) assert.ok(optional || sent.includes(field), `${id} does not send ${field}`);
  }
});

test('every step takes only fields that its output type always has', () => {
  for (const [id, state] of lambdaSteps()) {
    const [module, struct] = STEPS[id]?.output ?? ['', ''];
    const known = fields(module, struct);
    for (const [field, path] of Object.entries(state.ResultSelector ?? {})) {
      assert.equal(path, `$.Payload.${field.replace(/\.\$$/, '')}`, id);
      const found = known.get(field.replace(/\.\$$/, ''));
      assert.ok(found && !found.optional, `${id} takes ${field}, which ${struct} need not have`);
    }
  }
});

test('the words that steps send and branch on are words of the contract', () => {
  const words = (name: string) => snakeCase('tasks', name);
  for (const [id, state] of lambdaSteps()) {
    const action = state.Parameters?.Payload?.['action'];
    if (action === undefined) continue;
    assert.ok(words(STEPS[id]?.input === 'GuardBudgetInput' ? 'GuardAction' : 'DeployAction').includes(action as string), `${id} asks for ${String(action)}`);
  }
  const branch = (state: string) => (PIPELINE.States[state]?.Choices?.[0] as unknown as { StringEquals: string }).StringEquals;
  assert.ok(words('GuardOutcome').includes(branch('WasReserved')));
  assert.ok(snakeCase('approval', 'Verdict').includes(branch('WasApproved')));
});

/** Variants of an enum with `rename_all = "snake_case"`. */
function snakeCase(module: string, name: string): string[] {
  const body = new RegExp(`pub enum ${name} \\{\\n(.*?)\\n\\}`, 's').exec(repositoryFile(`crates/contract/src/${module}.rs`))?.[1] ?? '';
  const variants = [...body.matchAll(/^\s*([A-Z]\w*),/gm)].map((match) => match[1] as string);
  return variants.map((variant) => variant.replace(/(?<!^)([A-Z])/g, '_$1').toLowerCase());
}

test('the sample inputs in events/state-machines are what the state machines take', () => {
  for (const [file, struct] of [
    ['training-pipeline', 'PipelineInput'],
    ['training-pipeline.deploy-again', 'DeployAgainInput'],
    ['approve-deployment.approve', 'AnswerApprovalInput'],
    ['approve-deployment.reject', 'AnswerApprovalInput'],
  ] as const) {
    const input = JSON.parse(repositoryFile(`events/state-machines/${file}.json`)) as Record<string, unknown>;
    const known = fields('tasks', struct);
    for (const field of Object.keys(input)) assert.ok(known.has(field), `${file}: ${field}`);
    for (const [field, { optional }] of known) assert.ok(optional || field in input, `${file} lacks ${field}`);
    if ('verdict' in input) assert.ok(snakeCase('approval', 'Verdict').includes(input['verdict'] as string), file);
  }
});
