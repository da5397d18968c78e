"""What emulator/launch.py repairs, seen from outside with boto3. Run by tests/emulator.rs."""

import io
import json
import sys
import time
import urllib.request
import zipfile

import boto3

EMULATOR, _, SECRET = sys.argv[1:4]
root = boto3.Session("root", SECRET, region_name="us-east-1")
iam, functions, states = (root.client(name, endpoint_url=EMULATOR) for name in ("iam", "lambda", "stepfunctions"))

BOOTSTRAP = f"#!{sys.executable}\n" + '''
import http.client, json, os, time, urllib.request
host = os.environ["AWS_LAMBDA_RUNTIME_API"]
api = "http://" + host + "/2018-06-01/runtime/invocation/"
while True:
    with urllib.request.urlopen(api + "next") as answer:
        request, event = answer.headers["Lambda-Runtime-Aws-Request-Id"], json.loads(answer.read())
    kind, body = "response", {}
    if event.get("fail"):
        kind, body = "error", {"errorType": event["fail"], "errorMessage": "as asked"}
    if event.get("slow"):
        time.sleep(event["slow"])
    if "requestContext" in event:
        out = http.client.HTTPConnection(host)
        out.putrequest("POST", "/2018-06-01/runtime/invocation/" + request + "/response")
        for name, value in {"Lambda-Runtime-Function-Response-Mode": "streaming", "Transfer-Encoding": "chunked"}.items():
            out.putheader(name, value)
        out.endheaders()
        prelude = json.dumps({"statusCode": 201, "headers": {"content-type": "text/event-stream"}}).encode()
        for part in (prelude, b"\\0" * 8, b"first\\n", None, b"second\\n"):
            if part is None:
                time.sleep(1.5)
            else:
                out.send(b"%x\\r\\n" % len(part) + part + b"\\r\\n")
        out.send(b"0\\r\\n\\r\\n")
        out.getresponse().read()
        continue
    urllib.request.urlopen(urllib.request.Request(api + request + "/" + kind, data=json.dumps(body).encode())).read()
'''

trust = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "lambda.amazonaws.com"}, "Action": "sts:AssumeRole"}]}
role = iam.create_role(RoleName="r", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
code = io.BytesIO()
with zipfile.ZipFile(code, "w") as archive:
    archive.writestr("bootstrap", BOOTSTRAP)
arn = functions.create_function(FunctionName="f", Runtime="provided.al2023", Handler="bootstrap", Role=role, Code={"ZipFile": code.getvalue()}, Timeout=20)["FunctionArn"]
functions.get_waiter("function_active_v2").wait(FunctionName="f", WaiterConfig={"Delay": 1})

number = 0


def run(state, meanwhile=None, data=None):
    """Runs one task; the execution as it ended and its events."""
    global number
    number += 1
    definition = {"StartAt": "T", "States": {"T": {"Type": "Task", "End": True, **state}}}
    machine = states.create_state_machine(name=f"m{number}", definition=json.dumps(definition), roleArn=role)["stateMachineArn"]
    execution = states.start_execution(stateMachineArn=machine, input=json.dumps(data or {}))["executionArn"]
    end = time.monotonic() + 30
    while (found := states.describe_execution(executionArn=execution))["status"] == "RUNNING":
        assert time.monotonic() < end, f"still running: {state}"
        if meanwhile:
            meanwhile()
        time.sleep(0.05)
    events = states.get_execution_history(executionArn=execution)["events"]
    return found, events


WAIT = "arn:aws:states:::lambda:invoke.waitForTaskToken"


def call(**payload):
    return {"FunctionName": arn, "Payload": {"token.$": "$$.Task.Token", **payload}}


started = time.monotonic()
found, _ = run({"Resource": WAIT, "Parameters": call(fail="NoCapacity"), "TimeoutSeconds": 25})
assert found["status"] == "FAILED" and found["error"] == "NoCapacity", found
assert json.loads(found["cause"])["errorMessage"] == "as asked", found
assert time.monotonic() - started < 15, "a failing function must not wait for the timeout"

found, _ = run({"Resource": WAIT, "Parameters": call(), "HeartbeatSeconds": 1, "TimeoutSeconds": 25})
assert found["error"] == "States.HeartbeatTimeout", found
found, _ = run({"Resource": WAIT, "Parameters": call(), "TimeoutSecondsPath": "$.limit"}, data={"limit": 1})
assert found["error"] == "States.Timeout", found

tokens = []
queue = root.client("sqs", endpoint_url=EMULATOR)
url = queue.create_queue(QueueName="tokens")["QueueUrl"]


def answer():
    for message in queue.receive_message(QueueUrl=url).get("Messages", []):
        tokens.append(message["Body"])
        if len(tokens) == 1:
            states.send_task_failure(taskToken=tokens[0], error="SpotInterrupted", cause="c")
        else:
            states.send_task_success(taskToken=tokens[1], output=json.dumps({"steps": 3}))


retry = [{"ErrorEquals": ["SpotInterrupted"], "IntervalSeconds": 30, "MaxDelaySeconds": 1, "MaxAttempts": 2}]
parameters = {"QueueUrl": url, "MessageBody.$": "$$.Task.Token"}
found, _ = run({"Resource": "arn:aws:states:::sqs:sendMessage.waitForTaskToken", "Parameters": parameters, "Retry": retry}, answer)
assert found["status"] == "SUCCEEDED" and json.loads(found["output"]) == {"steps": 3}, found
assert len(set(tokens)) == 2, "each attempt has its own token"

functions.put_function_concurrency(FunctionName="f", ReservedConcurrentExecutions=0)
found, _ = run({"Resource": "arn:aws:states:::lambda:invoke", "Parameters": call()})
assert found["error"] == "Lambda.TooManyRequestsException", found
functions.delete_function_concurrency(FunctionName="f")

functions.create_function_url_config(FunctionName="f", AuthType="NONE", InvokeMode="RESPONSE_STREAM")
functions.add_permission(FunctionName="f", StatementId="u", Action="lambda:InvokeFunctionUrl", Principal="*", FunctionUrlAuthType="NONE")
functions.add_permission(FunctionName="f", StatementId="v", Action="lambda:InvokeFunction", Principal="*")
function_id = functions.get_function_url_config(FunctionName="f")["FunctionUrl"].split("//")[1].split(".")[0]
with urllib.request.urlopen(f"{EMULATOR}/_aws/lambda-url/{function_id}/v1") as response:
    assert response.status == 201 and response.headers["content-type"] == "text/event-stream", response.headers
    first = response.readline()
    at_first = time.monotonic()
    second = response.readline()
    assert (first, second, response.read()) == (b"first\n", b"second\n", b""), (first, second)
    assert time.monotonic() - at_first > 1.0, "the first line arrives before the function writes the second one"
print("OK")
