import { Aws, CfnCondition, Fn } from 'aws-cdk-lib';
import * as ec2 from 'aws-cdk-lib/aws-ec2';
import { Construct } from 'constructs';

import { arn } from '../names.ts';

/**
 * A network that costs nothing while nobody trains: public subnets in three zones (the more zones, the more spot pools),
 * S3 and DynamoDB by free gateway endpoints, no NAT gateway, nothing that accepts a connection.
 */
export class Network extends Construct {
  readonly vpcId: string;
  /** Comma-separated, as `launch-training` reads them. */
  readonly subnetIds: string;
  /** ARNs of the subnets; the last one stands for nothing where there are only two. */
  readonly subnetArns: string[];
  readonly securityGroup: ec2.CfnSecurityGroup;
  readonly securityGroupArn: string;

  constructor(scope: Construct, id: string) {
    super(scope, id);
    const vpc = new ec2.CfnVPC(this, 'Vpc', { cidrBlock: '10.42.0.0/16', enableDnsSupport: true, enableDnsHostnames: true });
    this.vpcId = vpc.ref;
    const gateway = new ec2.CfnInternetGateway(this, 'Gateway');
    const attachment = new ec2.CfnVPCGatewayAttachment(this, 'GatewayAttachment', { vpcId: vpc.ref, internetGatewayId: gateway.ref });
    const routes = new ec2.CfnRouteTable(this, 'Routes', { vpcId: vpc.ref });
    const outward = new ec2.CfnRoute(this, 'Outward', {
      routeTableId: routes.ref,
      destinationCidrBlock: '0.0.0.0/0',
      gatewayId: gateway.ref,
    });
    outward.addResourceDependency(attachment);

    // Accounts see only two zones of us-west-1.
    const third = new CfnCondition(this, 'ThirdZone', {
      expression: Fn.conditionNot(Fn.conditionEquals(Aws.REGION, 'us-west-1')),
    });
    const subnets = [0, 1, 2].map((zone) => {
      const subnet = new ec2.CfnSubnet(this, `Subnet${zone + 1}`, {
        vpcId: vpc.ref,
        availabilityZone: Fn.select(zone, Fn.getAzs()),
        cidrBlock: `10.42.${zone * 16}.0/20`,
        mapPublicIpOnLaunch: true,
      });
      const association = new ec2.CfnSubnetRouteTableAssociation(this, `Association${zone + 1}`, {
        subnetId: subnet.ref,
        routeTableId: routes.ref,
      });
      if (zone === 2) {
        subnet.cfnOptions.condition = third;
        association.cfnOptions.condition = third;
      }
      return subnet;
    });
    const ids = subnets.map((subnet) => subnet.ref);
    this.subnetIds = Fn.conditionIf(third.logicalId, Fn.join(',', ids), Fn.join(',', ids.slice(0, 2))).toString();
    this.subnetArns = ids.map((subnetId, zone) => {
      const subnetArn = arn('ec2', 'subnet/${Id}', { Id: subnetId });
      return zone === 2 ? Fn.conditionIf(third.logicalId, subnetArn, Aws.NO_VALUE).toString() : subnetArn;
    });

    for (const service of ['s3', 'dynamodb']) {
      new ec2.CfnVPCEndpoint(this, `${service}Endpoint`, {
        vpcEndpointType: 'Gateway',
        vpcId: vpc.ref,
        serviceName: Fn.sub(`com.amazonaws.\${AWS::Region}.${service}`),
        routeTableIds: [routes.ref],
      });
    }
    this.securityGroup = new ec2.CfnSecurityGroup(this, 'TrainingMachines', {
      groupDescription: 'Training machines: nothing in, HTTPS out',
      vpcId: vpc.ref,
      securityGroupIngress: [],
      securityGroupEgress: [
        { ipProtocol: 'tcp', fromPort: 443, toPort: 443, cidrIp: '0.0.0.0/0', description: 'AWS services, image registry, model hub' },
      ],
    });
    this.securityGroupArn = arn('ec2', 'security-group/${Id}', { Id: this.securityGroup.attrGroupId });
  }
}
