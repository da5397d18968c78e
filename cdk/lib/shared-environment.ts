import type { DataStack } from './stacks/data.ts';

/** Variables that every function reads (`crates/lambda`). */
export function sharedEnvironment(data: DataStack): Record<string, string> {
  return {
    TABLE: data.table.tableName,
    DOCUMENTS_BUCKET: data.documents.bucketName,
    WORKSPACE_BUCKET: data.workspace.bucketName,
    NOTIFICATIONS_TOPIC_ARN: data.notifications.topicArn,
    ALARMS_TOPIC_ARN: data.alarms.topicArn,
    RUST_LOG: 'info',
  };
}
