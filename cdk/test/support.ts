import { readFileSync } from 'node:fs';

import { TEMPLATE_FILE, type TemplateFile } from '../lib/template-file.ts';

/** A CloudFormation value: text, number, list, map or intrinsic. */
export type Json = null | boolean | number | string | Json[] | { [key: string]: Json };

/** A resource of one of the stacks. */
export interface Resource {
  readonly stack: string;
  readonly id: string;
  readonly type: string;
  readonly properties: Record<string, Json>;
  readonly whole: Record<string, Json>;
}

/** The committed stacks; test/template.test.ts proves that they are what the app synthesizes. */
export const TEMPLATES = JSON.parse(readFileSync(TEMPLATE_FILE, 'utf8')) as TemplateFile;

/** Every resource of every stack. */
export const RESOURCES: Resource[] = TEMPLATES.stacks.flatMap(({ name, template }) =>
  Object.entries(template['Resources'] as Record<string, Record<string, Json>>).map(([id, whole]) => ({
    stack: name,
    id,
    type: whole['Type'] as string,
    properties: (whole['Properties'] ?? {}) as Record<string, Json>,
    whole,
  })),
);

/** Every resource of a type. */
export function ofType(type: string): Resource[] {
  return RESOURCES.filter((resource) => resource.type === type);
}

/** Every function, by the name of its folder. */
export const FUNCTIONS = new Map(
  ofType('AWS::Lambda::Function').map((resource) => [
    (resource.properties['FunctionName'] as string).replace(/^tunesmith-/, ''),
    resource,
  ]),
);

/** A file of the repository. */
export function repositoryFile(path: string): string {
  return readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
}

/** A value as readable text: intrinsics become what they stand for, e.g. `<WorkspaceBucket.Arn>/models/*`. */
export function readable(value: Json): string {
  if (Array.isArray(value)) return value.map(readable).join(',');
  if (value === null || typeof value !== 'object') return String(value);
  const [key, argument] = Object.entries(value)[0] as [string, Json];
  switch (key) {
    case 'Ref':
      return `<${argument as string}>`;
    case 'Fn::GetAtt':
      return `<${(argument as string[]).join('.')}>`;
    case 'Fn::ImportValue':
      // `tunesmith-data:ExportsOutputFnGetAttWorkspaceBucket1A82A213Arn86076588` → `<WorkspaceBucketArn>`
      return `<${(argument as string).replace(/^.*:ExportsOutput(FnGetAtt|Ref)/, '').replace(/[0-9A-F]{8}/g, '')}>`;
    case 'Fn::Join':
      return (argument as [string, Json[]])[1].map(readable).join((argument as [string, Json[]])[0]);
    case 'Fn::Sub': {
      const [text, values] = Array.isArray(argument) ? (argument as [string, Record<string, Json>]) : [argument as string, {}];
      return text.replace(/\$\{([^}]+)\}/g, (_, name: string) => (values[name] === undefined ? `<${name}>` : readable(values[name])));
    }
    case 'Fn::If':
      return readable((argument as Json[])[1] ?? null);
    default:
      return JSON.stringify(value);
  }
}

/** A list, whether CloudFormation shortened it to a single value or not. */
export function list(value: Json | undefined): Json[] {
  return value === undefined ? [] : Array.isArray(value) ? value : [value];
}
