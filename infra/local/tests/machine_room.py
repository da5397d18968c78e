"""boto3 as the real client of a local cloud: EC2, SageMaker, Service Quotas, with roles. Run by tests/machine_room.rs.

Arguments: emulator, machine room, root's secret, state folder, repository.
"""

import base64
import json
import pathlib
import sys
import time

import boto3
from botocore.exceptions import ClientError

EMULATOR, ROOM, SECRET, FOLDER, ROOT = sys.argv[1:6]
FOLDER, ROOT = pathlib.Path(FOLDER), pathlib.Path(ROOT)
root = boto3.Session("root", SECRET, region_name="us-east-1")
AT_ROOM = {"ec2", "sagemaker", "sagemaker-runtime", "service-quotas"}


def client(name, session=root):
    return session.client(name, endpoint_url=ROOM if name in AT_ROOM else EMULATOR)


def refused(code, call, **arguments):
    try:
        call(**arguments)
    except ClientError as error:
        assert error.response["Error"]["Code"] == code, (code, error.response)
        return error.response
    raise AssertionError(f"{code} expected, but the call succeeded")


def until(what, look, seconds=40):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds} s: {what}")


def role(name, service, statements):
    trust = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    iam = client("iam")
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [trust]}))["Role"]["Arn"]
    policy = {"Version": "2012-10-17", "Statement": statements}
    iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    return arn


def functions_session(role_arn):
    """Credentials of a function: the session of its role that the emulator hands out on invocation."""
    import io
    import zipfile

    code = io.BytesIO()
    with zipfile.ZipFile(code, "w") as archive:
        archive.writestr("bootstrap", f"#!{sys.executable}\n" + BOOTSTRAP)
    functions = client("lambda")
    functions.create_function(FunctionName="probe", Runtime="provided.al2023", Handler="bootstrap", Role=role_arn, Code={"ZipFile": code.getvalue()}, Timeout=20)
    until("the function is active", lambda: functions.get_function(FunctionName="probe")["Configuration"].get("State", "Active") == "Active")
    answer = json.loads(functions.invoke(FunctionName="probe", Payload=b"{}")["Payload"].read())
    assert answer["AWS_ENDPOINT_URL_EC2"] == ROOM and answer["AWS_ENDPOINT_URL"] == EMULATOR, answer
    return boto3.Session(answer["AWS_ACCESS_KEY_ID"], answer["AWS_SECRET_ACCESS_KEY"], answer["AWS_SESSION_TOKEN"], region_name="us-east-1")


BOOTSTRAP = """
import json, os, urllib.request
api = "http://" + os.environ["AWS_LAMBDA_RUNTIME_API"] + "/2018-06-01/runtime/invocation/"
while True:
    with urllib.request.urlopen(api + "next") as event:
        request = event.headers["Lambda-Runtime-Aws-Request-Id"]
    answer = json.dumps({name: value for name, value in os.environ.items() if name.startswith("AWS_")}).encode()
    urllib.request.urlopen(urllib.request.Request(api + request + "/response", data=answer)).read()
"""

machine_role = role("machine", "ec2.amazonaws.com", [{"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "*"}])
container_role = role("container", "sagemaker.amazonaws.com", [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": "*"}])
launcher_role = role(
    "launcher",
    "lambda.amazonaws.com",
    [
        {"Effect": "Allow", "Action": ["ec2:RunInstances", "ec2:CreateTags"], "Resource": "*", "Condition": {"StringLike": {"aws:RequestTag/tunesmith:attempt": "*"}}},
        {"Effect": "Allow", "Action": "ec2:RunInstances", "Resource": "arn:aws:ec2:*:*:launch-template/*"},
        {"Effect": "Allow", "Action": ["ec2:DescribeInstances", "ec2:DescribeSpotPriceHistory"], "Resource": "*"},
        {"Effect": "Allow", "Action": "iam:PassRole", "Resource": machine_role},
    ],
)
iam = client("iam")
iam.create_instance_profile(InstanceProfileName="machine")
iam.add_role_to_instance_profile(InstanceProfileName="machine", RoleName="machine")
profile = iam.get_instance_profile(InstanceProfileName="machine")["InstanceProfile"]["Arn"]


def ec2_machines():
    ec2 = client("ec2")
    template = ec2.create_launch_template(
        LaunchTemplateName="trainer",
        LaunchTemplateData={
            "ImageId": "ami-0123456789abcdef0",
            "IamInstanceProfile": {"Arn": profile},
            "InstanceInitiatedShutdownBehavior": "terminate",
        },
    )["LaunchTemplate"]["LaunchTemplateId"]
    script = (ROOT / "infra/user-data/train.sh").read_text()
    values = {"JOB_URI": "s3://b/job.json", "IMAGE": "123456789012.dkr.ecr.us-east-1.amazonaws.com/t:1", "REGION": "us-east-1", "ATTEMPT": "a1", "MAX_SECONDS": "600"}
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    request = {
        "LaunchTemplate": {"LaunchTemplateId": template},
        "InstanceType": "g6.xlarge",
        "InstanceMarketOptions": {"MarketType": "spot"},
        "UserData": script,
        "ClientToken": "a1",
        "MinCount": 1,
        "MaxCount": 1,
        "TagSpecifications": [{"ResourceType": "instance", "Tags": [{"Key": "tunesmith:attempt", "Value": "a1"}]}],
    }
    session = functions_session(launcher_role)
    as_function = client("ec2", session)
    untagged = {**request, "ClientToken": "a0", "TagSpecifications": []}
    refused("UnauthorizedOperation", as_function.run_instances, **untagged)
    refused("InvalidParameterValue", as_function.run_instances, **{**request, "InstanceType": "x9.huge", "ClientToken": "a2"})
    first = as_function.run_instances(**request)["Instances"][0]
    assert as_function.run_instances(**request)["Instances"][0]["InstanceId"] == first["InstanceId"], "the same client token is the same machine"
    refused("IdempotentParameterMismatch", as_function.run_instances, **{**request, "InstanceType": "g5.xlarge"})
    machine = first["InstanceId"]
    assert first["InstanceLifecycle"] == "spot" and first["Tags"] == [{"Key": "tunesmith:attempt", "Value": "a1"}], first

    def state():
        filters = [{"Name": "tag:tunesmith:attempt", "Values": ["a1"]}]
        return as_function.describe_instances(Filters=filters)["Reservations"][0]["Instances"][0]

    until("running", lambda: state()["State"]["Name"] == "running")
    log = FOLDER / "instances" / machine / "log"
    until("the container's report", lambda: "SEEN " in log.read_text())
    seen = json.loads(log.read_text().split("SEEN ")[1].splitlines()[0])
    assert seen["instance"] == machine and seen["type"] == "g6.xlarge" and seen["life"] == "spot", seen
    assert ":assumed-role/machine/" in seen["role"] and seen["attempt"] == "a1", seen
    assert seen["arguments"] == ["train", "--job", "s3://b/job.json"], seen
    refused("UnauthorizedOperation", as_function.terminate_instances, InstanceIds=[machine])
    print(f"INTERRUPT {machine}", flush=True)
    assert sys.stdin.readline().strip() == "done"
    until("terminated", lambda: state()["State"]["Name"] == "terminated")
    ended = state()
    assert "NOTICE " in log.read_text(), log.read_text()
    assert ended["StateReason"]["Code"] in ("Server.SpotInstanceTermination", "Client.InstanceInitiatedShutdown"), ended
    refused("InvalidInstanceID.NotFound", ec2.describe_instances, InstanceIds=["i-00000000000000000"])
    idle = ec2.run_instances(ImageId="ami-1", InstanceType="c7i.large", MinCount=1, MaxCount=1)["Instances"][0]["InstanceId"]
    subnets = ec2.describe_subnets()["Subnets"]
    assert subnets, "the emulator has a default network"
    placed = ec2.run_instances(ImageId="ami-1", InstanceType="c7i.large", MinCount=1, MaxCount=1, SubnetId=subnets[0]["SubnetId"])["Instances"][0]
    assert placed["Placement"]["AvailabilityZone"] == subnets[0]["AvailabilityZone"], placed
    ec2.terminate_instances(InstanceIds=[placed["InstanceId"]])
    refused("InvalidSubnetID.NotFound", ec2.run_instances, ImageId="ami-1", InstanceType="c7i.large", MinCount=1, MaxCount=1, SubnetId="subnet-0")
    change = ec2.terminate_instances(InstanceIds=[idle])["TerminatingInstances"][0]
    assert change["InstanceId"] == idle, change
    until("the idle machine ended", lambda: ec2.describe_instances(InstanceIds=[idle])["Reservations"][0]["Instances"][0]["State"]["Name"] == "terminated")
    prices = as_function.describe_spot_price_history(InstanceTypes=["g6.xlarge"], ProductDescriptions=["Linux/UNIX"])["SpotPriceHistory"]
    assert len(prices) == 3 and all(float(price["SpotPrice"]) > 0 for price in prices), prices
    assert ec2.describe_vpcs()["Vpcs"] is not None, "what the machine room does not know comes from the emulator"
    bad = boto3.Session("AKIANOBODY", "x", region_name="us-east-1")
    refused("AuthFailure", client("ec2", bad).describe_instances)


def quotas():
    service = client("service-quotas")
    quota = service.get_service_quota(ServiceCode="ec2", QuotaCode="L-3819A6DF")["Quota"]
    assert quota["Value"] == 64.0, quota
    (FOLDER / "settings.json").write_text(json.dumps({"quotas": {"L-3819A6DF": 0}, "no_capacity": ["g5.xlarge"], "endpoint_start_seconds": 30}))
    assert service.get_service_quota(ServiceCode="ec2", QuotaCode="L-3819A6DF")["Quota"]["Value"] == 0.0
    refused("InsufficientInstanceCapacity", client("ec2").run_instances, ImageId="ami-1", InstanceType="g5.xlarge", MinCount=1, MaxCount=1)


def sagemaker_endpoints():
    control, runtime = client("sagemaker"), client("sagemaker-runtime")
    serverless = {"MemorySizeInMB": 2048, "MaxConcurrency": 2}

    def version(name, **environment):
        control.create_model(ModelName=name, ExecutionRoleArn=container_role, PrimaryContainer={"Image": "t:1", "Environment": {"FAKE_NAME": name, **environment}})
        variant = {"VariantName": "main", "ModelName": name, "ServerlessConfig": serverless}
        control.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])

    version("v1")
    refused("ValidationException", version, name="v1")
    refused("ValidationException", control.describe_endpoint, EndpointName="ep")
    control.create_endpoint(EndpointName="ep", EndpointConfigName="v1", Tags=[{"Key": "project", "Value": "p"}])

    def described():
        return control.describe_endpoint(EndpointName="ep")

    control.get_waiter("endpoint_in_service").wait(EndpointName="ep", WaiterConfig={"Delay": 1, "MaxAttempts": 40})
    answer = runtime.invoke_endpoint(EndpointName="ep", ContentType="application/json", Body=b"{}")
    body = json.loads(answer["Body"].read())
    assert body["name"] == "v1" and ":assumed-role/container/" in body["role"], body
    assert answer["InvokedProductionVariant"] == "main" and answer["ContentType"] == "application/json", answer
    error = refused("ModelError", runtime.invoke_endpoint, EndpointName="ep", ContentType="application/json", Body=b'{"fail": true}')
    assert error["OriginalStatusCode"] == 500 and error["OriginalMessage"] == "no such token", error
    stream = runtime.invoke_endpoint_with_response_stream(EndpointName="ep", ContentType="application/json", Body=b'{"stream": true}')
    parts = [event["PayloadPart"]["Bytes"] for event in stream["Body"]]
    assert b"".join(parts) == b"one two three", parts
    assert described()["EndpointConfigName"] == "v1"
    refused("ValidationException", control.create_endpoint, EndpointName="ep", EndpointConfigName="v1")
    version("broken", FAKE_BROKEN="1")
    control.create_endpoint(EndpointName="second", EndpointConfigName="broken")
    until("failed", lambda: control.describe_endpoint(EndpointName="second")["EndpointStatus"] == "Failed")
    failed = control.describe_endpoint(EndpointName="second")
    assert "the model cannot be read" in failed["FailureReason"], failed
    assert json.loads(runtime.invoke_endpoint(EndpointName="ep", Body=b"{}")["Body"].read())["name"] == "v1", "the first one stays"
    assert sorted(e["EndpointName"] for e in control.list_endpoints()["Endpoints"]) == ["ep", "second"]
    assert control.describe_model(ModelName="v1")["PrimaryContainer"]["Image"] == "t:1"
    for name in ("ep", "second"):
        control.delete_endpoint(EndpointName=name)
    refused("ValidationError", runtime.invoke_endpoint, EndpointName="ep", Body=b"{}")
    for name in ("v1", "broken"):
        control.delete_endpoint_config(EndpointConfigName=name)
        control.delete_model(ModelName=name)


ec2_machines()
quotas()
sagemaker_endpoints()
print("OK", flush=True)
