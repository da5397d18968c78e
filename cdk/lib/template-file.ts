/** `infra/template.json`: the templates of all stacks, in deployment order. */
export interface TemplateFile {
  stacks: { name: string; template: Record<string, unknown> }[];
}

/** Where the committed file lies. */
export const TEMPLATE_FILE = new URL('../../infra/template.json', import.meta.url);
