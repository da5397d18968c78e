/** The first part of every name people meet: stacks, functions, state machines, topics, SageMaker endpoints. */
export const PREFIX = 'tunesmith';

/** Schedule group of the one-time schedules `quiet-{project}`. */
export const QUIET_GROUP = `${PREFIX}-quiet`;
