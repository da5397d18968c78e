/**
 * Actions that AWS authorizes for every resource or none (Service Authorization Reference: no resource type), so that
 * `*` is the narrowest resource that can be written. The tests allow `*` for these and for nothing else.
 */
export const WITHOUT_RESOURCE: Readonly<Record<string, string>> = {
  'ec2:DescribeInstances': 'listing has no resource type',
  'ec2:DescribeSpotPriceHistory': 'public prices; no resource type',
  'ec2:DescribeSubnets': 'listing has no resource type',
  'ecr:GetAuthorizationToken': 'logs in to the registry as a whole; what may be pulled is a permission of its own',
  'logs:CreateLogDelivery': 'log delivery of Step Functions has no resource type',
  'logs:DeleteLogDelivery': 'log delivery of Step Functions has no resource type',
  'logs:DescribeLogGroups': 'log delivery of Step Functions has no resource type',
  'logs:DescribeResourcePolicies': 'log delivery of Step Functions has no resource type',
  'logs:GetLogDelivery': 'log delivery of Step Functions has no resource type',
  'logs:ListLogDeliveries': 'log delivery of Step Functions has no resource type',
  'logs:PutResourcePolicy': 'log delivery of Step Functions has no resource type',
  'logs:UpdateLogDelivery': 'log delivery of Step Functions has no resource type',
  'servicequotas:GetAWSDefaultServiceQuota': 'quotas have no resource type for reading',
  'servicequotas:GetServiceQuota': 'quotas have no resource type for reading',
  'states:SendTaskFailure': 'the task token is the permission; no resource type',
  'states:SendTaskHeartbeat': 'the task token is the permission; no resource type',
  'states:SendTaskSuccess': 'the task token is the permission; no resource type',
};
