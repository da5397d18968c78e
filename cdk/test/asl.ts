import { repositoryFile } from './support.ts';

/** One Retry entry. */
export interface Retrier {
  ErrorEquals: string[];
  MaxAttempts: number;
  IntervalSeconds?: number;
  BackoffRate?: number;
  MaxDelaySeconds?: number;
  JitterStrategy?: string;
}

/** One Catch entry. */
export interface Catcher {
  ErrorEquals: string[];
  Next: string;
  ResultPath?: string;
  Output?: string;
}

/** One state, as far as the tests look. */
export interface State {
  Type: string;
  Resource?: string;
  QueryLanguage?: string;
  Parameters?: Record<string, unknown> & { FunctionName?: string; Payload?: Record<string, unknown> };
  Arguments?: Record<string, unknown>;
  ResultSelector?: Record<string, string>;
  ResultPath?: string | null;
  Output?: string;
  Retry?: Retrier[];
  Catch?: Catcher[];
  TimeoutSeconds?: number;
  TimeoutSecondsPath?: string;
  HeartbeatSeconds?: number;
  Next?: string;
  Default?: string;
  Choices?: { Next: string }[];
  Error?: string;
  Cause?: string;
}

/** A state machine file. */
export interface Machine {
  StartAt: string;
  States: Record<string, State>;
}

/** The text of a state machine file. */
export function machineText(name: string): string {
  return repositoryFile(`infra/state-machines/${name}.asl.json`);
}

/** A state machine file. */
export function machine(name: string): Machine {
  return JSON.parse(machineText(name)) as Machine;
}

/** The names of `contract::ErrorName`, and whether doing the same again can help. */
export const ERROR_NAMES = new Map(
  [...repositoryFile('crates/contract/src/error_name.rs').matchAll(/^ {4}([A-Z]\w+), (true|false), "/gm)].map((line) => [
    line[1] as string,
    line[2] === 'true',
  ]),
);

/** Fields of a struct of `contract`, with whether they may be absent. */
export function fields(module: string, struct: string): Map<string, { optional: boolean }> {
  const source = repositoryFile(`crates/contract/src/${module}.rs`);
  const body = new RegExp(`pub struct ${struct} \\{\\n(.*?)\\n\\}`, 's').exec(source)?.[1];
  if (body === undefined) throw new Error(`contract::${module} has no struct ${struct}`);
  const found = new Map<string, { optional: boolean }>();
  let optional = false;
  for (const line of body.split('\n')) {
    if (/#\[serde\(.*default/.test(line)) optional = true;
    const name = /^\s*pub (\w+):/.exec(line)?.[1];
    if (name === undefined) continue;
    found.set(name, { optional });
    optional = false;
  }
  return found;
}

/** The state that a task goes to when everything else fails. */
export function lastResort(state: State): string | undefined {
  return state.Catch?.find((catcher) => catcher.ErrorEquals.includes('States.ALL'))?.Next;
}
