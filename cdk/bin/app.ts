import { tunesmith } from '../lib/app.ts';

// What `cdk deploy` and `cdk diff` run.
tunesmith().app.synth();
