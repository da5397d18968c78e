"""Starts the emulator with the repairs that Tunesmith's state machines and gateway need to behave as on AWS.

ministack 1.5.33 as published differs from AWS in these points; each is repaired here from outside, and the version is
checked because a repair replaces functions by name:

1. `.waitForTaskToken`: a failing Lambda function is swallowed and the state waits until its timeout. AWS fails the state.
2. HeartbeatSeconds is stored and never enforced. AWS raises `States.HeartbeatTimeout`.
3. TimeoutSecondsPath and HeartbeatSecondsPath are ignored.
4. A retried task keeps its task token. AWS makes a new one for each attempt, so a late answer of a dead worker is refused.
5. Retry ignores MaxDelaySeconds and JitterStrategy.
6. A throttled function ends as `Lambda.Unknown`. AWS says `Lambda.TooManyRequestsException`.
7. `SimulatePrincipalPolicy` ignores ContextEntries. The machine room asks it whether a caller may do what it asks for, and
   policies depend on tags.
8. `aws:SecureTransport` is false, because there is no TLS on loopback: bucket policies that demand TLS, as they must on AWS,
   would lock everybody out. Nothing leaves this machine, so it counts as secure.
9. A function URL in mode RESPONSE_STREAM answers only when the function has ended. AWS forwards bytes as they come.
10. A service that assumes a role sends `aws:SourceAccount`; here the machine room does it as root in the service's place, so
   that trust policies against the confused deputy hold without shutting it out.
11. Every schedule is checked against policies as one of the group `default`. AWS checks it in its own group.

Source of the behaviour: AWS Step Functions Developer Guide, "Handling errors in Step Functions workflows" and "Wait for a
callback with task token"; AWS Lambda Developer Guide, "Building a custom runtime" (response streaming).
"""

import asyncio
import contextvars
import importlib.metadata
import json
import random
import sys
import time
import uuid

SUPPORTED = "1.5.33"
found = importlib.metadata.version("ministack")
if found != SUPPORTED:
    sys.exit(f"launch.py repairs ministack {SUPPORTED}, found {found}: install infra/local/requirements.txt")

from ministack import app  # noqa: E402
from ministack.core import iam_actions, iam_evaluator, lambda_runtime  # noqa: E402
from ministack.core.responses import StreamingResponse  # noqa: E402
from ministack.services import iam, lambda_svc  # noqa: E402
from ministack.services import stepfunctions as sfn  # noqa: E402

# ---- Step Functions -------------------------------------------------------------------------------------------------

_BEAT = 0.25  # seconds between looks at the clock while a task waits for its token


def _wait_for_token(resource, input_data, token, state_def):
    event = sfn.threading.Event()
    entry = {"event": event, "result": None, "error": None, "heartbeat": None}
    sfn._task_tokens[token] = entry
    try:
        _start(resource.replace(".waitForTaskToken", ""), input_data)
        started = beat = time.monotonic()
        timeout = state_def.get("TimeoutSeconds")
        heartbeat = state_def.get("HeartbeatSeconds")
        while not event.wait(_BEAT):
            now = time.monotonic()
            if entry["heartbeat"] is not None:
                entry["heartbeat"], beat = None, now
            if timeout is not None and now - started > float(timeout):
                raise sfn._ExecutionError("States.Timeout", f"no answer within {timeout} seconds")
            if heartbeat is not None and now - beat > float(heartbeat):
                raise sfn._ExecutionError("States.HeartbeatTimeout", f"no heartbeat within {heartbeat} seconds")
    finally:
        sfn._task_tokens.pop(token, None)
    if entry["error"]:
        raise sfn._ExecutionError(entry["error"].get("Error", "TaskFailed"), entry["error"].get("Cause", ""))
    result = entry["result"] or "{}"
    try:
        return json.loads(result) if isinstance(result, str) else result
    except json.JSONDecodeError:
        return result


def _start(resource, input_data):
    """Runs the integration that carries the token away; what it answers is not the task's result, its failure is."""
    function = sfn._extract_lambda_ref(resource)
    if function or "states:::lambda:invoke" in resource:
        if not function:
            function = sfn._resolve_lambda_function_ref(input_data.get("FunctionName", ""), optimized=True)
            input_data = input_data.get("Payload", {})
        sfn._call_lambda(function, input_data)
    else:
        sfn._invoke_resource(resource, input_data)


sfn._invoke_with_callback = _wait_for_token

_execute_task = sfn._execute_task


def _task_with_paths(state_def, raw_input, execution, ctx):
    resolved = dict(state_def)
    for name in ("TimeoutSeconds", "HeartbeatSeconds"):
        path = resolved.pop(f"{name}Path", None)
        if path is not None:
            resolved[name] = sfn._resolve_path_or_ctx(path, raw_input, ctx)
    return _execute_task(resolved, raw_input, execution, ctx)


sfn._execute_task = _task_with_paths


def _with_new_token(inner):
    def apply(state_def, data, ctx=None):
        if ctx is not None and ".waitForTaskToken" in str(state_def.get("Resource", "")):
            ctx["Task"] = {"Token": str(uuid.uuid4())}
        return inner(state_def, data, ctx)

    return apply


sfn._apply_parameters = _with_new_token(sfn._apply_parameters)
sfn._apply_jsonata_arguments = _with_new_token(sfn._apply_jsonata_arguments)

_find_retrier = sfn._find_matching_retrier


def _retrier_with_limits(retriers, error, counts):
    retrier, index = _find_retrier(retriers, error, counts)
    if retrier is None:
        return retrier, index
    delay = retrier.get("IntervalSeconds", 1) * retrier.get("BackoffRate", 2.0) ** counts.get(index, 0)
    delay = min(delay, retrier.get("MaxDelaySeconds", delay))
    if retrier.get("JitterStrategy") == "FULL":
        delay = random.uniform(0, delay)
    return {**retrier, "IntervalSeconds": delay, "BackoffRate": 1.0}, index


sfn._find_matching_retrier = _retrier_with_limits

_error_matches = sfn._error_matches


def _timeout_covers_heartbeat(error_equals, error):
    if error == "States.HeartbeatTimeout" and "States.Timeout" in error_equals:
        return True
    return _error_matches(error_equals, error)


sfn._error_matches = _timeout_covers_heartbeat

_call_lambda = sfn._call_lambda


def _call_with_throttle_name(function, event):
    try:
        return _call_lambda(function, event)
    except sfn._ExecutionError as error:
        if error.error == "Lambda.Unknown" and "TooManyRequestsException" in str(error.cause):
            raise sfn._ExecutionError("Lambda.TooManyRequestsException", error.cause) from None
        if error.error == "Lambda.Unknown" and "Rate Exceeded" in str(error.cause):
            raise sfn._ExecutionError("Lambda.TooManyRequestsException", error.cause) from None
        raise


sfn._call_lambda = _call_with_throttle_name

# ---- Transport ------------------------------------------------------------------------------------------------------

_pin_request_origin = app.pin_request_origin
app.pin_request_origin = lambda client, secure: _pin_request_origin(client, True)

# ---- Trust policies -------------------------------------------------------------------------------------------------

_evaluate_trust_policy = iam_evaluator.evaluate_trust_policy


def _trust_with_source_account(document, caller, context=None):
    if context is not None and context.principal_type == "Root":
        context.service_context = {**context.service_context, "aws:sourceaccount": context.principal_account}
    return _evaluate_trust_policy(document, caller, context)


iam_evaluator.evaluate_trust_policy = _trust_with_source_account

# ---- Resources of requests ------------------------------------------------------------------------------------------

_extract_resource_arn = iam_actions.extract_resource_arn


def _resource_with_schedule_group(service, method, path, headers, body, query_params, *args):
    arn = _extract_resource_arn(service, method, path, headers, body, query_params, *args)
    if service == "scheduler" and ":schedule/default/" in arn:
        try:
            group = json.loads(body).get("GroupName")
        except ValueError:
            group = query_params.get("groupName")
        group = group[0] if isinstance(group, list) else group
        arn = arn.replace(":schedule/default/", f":schedule/{group or 'default'}/")
    return arn


iam_actions.extract_resource_arn = _resource_with_schedule_group

# ---- Policy simulation ----------------------------------------------------------------------------------------------

_condition_keys = contextvars.ContextVar("tunesmith_condition_keys", default=None)
_extract_simulate_params = iam._extract_simulate_params


def _simulate_params_with_context(p):
    keys, number = {}, 1
    while name := iam._p(p, f"ContextEntries.member.{number}.ContextKeyName"):
        keys[name.lower()] = iam._p(p, f"ContextEntries.member.{number}.ContextKeyValues.member.1")
        number += 1
    _condition_keys.set(keys)
    return _extract_simulate_params(p)


iam._extract_simulate_params = _simulate_params_with_context

_build_simulate_results = iam._build_simulate_results_real
_evaluate = iam_evaluator.evaluate


def _evaluate_with_context(ctx, policies, *args, **kwargs):
    if keys := _condition_keys.get():
        ctx.service_context = {**(ctx.service_context or {}), **keys}
    return _evaluate(ctx, policies, *args, **kwargs)


def _simulate_results_with_context(*args, **kwargs):
    try:
        return _build_simulate_results(*args, **kwargs)
    finally:
        _condition_keys.set(None)


iam_evaluator.evaluate = _evaluate_with_context
iam._build_simulate_results_real = _simulate_results_with_context

# ---- Response streaming of function URLs ----------------------------------------------------------------------------

_sink = contextvars.ContextVar("tunesmith_stream_sink", default=None)
_PRELUDE_END = b"\0" * 8
_END, _BROKEN = object(), object()

_invoke = lambda_runtime.ProvidedWorker.invoke


def _invoke_with_sink(self, *args, **kwargs):
    self._tunesmith_sink = _sink.get()
    try:
        return _invoke(self, *args, **kwargs)
    finally:
        self._tunesmith_sink = None


lambda_runtime.ProvidedWorker.invoke = _invoke_with_sink

_build_handler_class = lambda_runtime.ProvidedWorker._build_handler_class


def _handler_that_streams(self, generation, pending):
    worker, base = self, _build_handler_class(self, generation, pending)

    class Handler(base):
        def _read_body(self):
            sink = getattr(worker, "_tunesmith_sink", None)
            streams = self.headers.get("Lambda-Runtime-Function-Response-Mode", "").lower() == "streaming"
            if sink is None or not streams or "/response" not in self.path:
                return super()._read_body()
            chunks = []
            while True:
                size = int(self.rfile.readline().split(b";")[0].strip() or b"0", 16)
                if size == 0:
                    break
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
                sink(chunks[-1])
            failed = False
            while (trailer := self.rfile.readline().strip()):
                failed |= trailer.lower().startswith(b"lambda-runtime-function-error-type")
            sink(_BROKEN if failed else _END)
            return b"".join(chunks)

    return Handler


lambda_runtime.ProvidedWorker._build_handler_class = _handler_that_streams

_handle_url = lambda_svc.handle_function_url_request


async def _handle_url_streaming(url_id, method, path, headers, body, query_params, resolved=None, source_ip=None):
    resolved = resolved or lambda_svc.resolve_function_url(url_id)
    arguments = (url_id, method, path, headers, body, query_params, resolved, source_ip)
    if resolved is None or resolved[4].get("InvokeMode") != "RESPONSE_STREAM":
        return await _handle_url(*arguments)
    loop, parts = asyncio.get_running_loop(), asyncio.Queue()
    reset = _sink.set(lambda part: loop.call_soon_threadsafe(parts.put_nowait, part))
    try:
        whole = asyncio.ensure_future(_handle_url(*arguments))
    finally:
        _sink.reset(reset)
    seen = b""
    while _PRELUDE_END not in seen:
        part = asyncio.ensure_future(parts.get())
        await asyncio.wait({part, whole}, return_when=asyncio.FIRST_COMPLETED)
        if not part.done():
            part.cancel()
            return await whole
        if part.result() in (_END, _BROKEN):
            return await whole
        seen += part.result()
    prelude, first = lambda_svc._split_stream_prelude(seen)
    answer = {"Content-Type": "application/octet-stream", "x-amzn-RequestId": str(uuid.uuid4())}
    lambda_svc._apply_headers_case_insensitively(answer, (prelude or {}).get("headers") or {})
    cors = lambda_svc._function_url_cors_headers(resolved[4], headers)
    lambda_svc._apply_headers_case_insensitively(answer, cors)
    answer = {name: value for name, value in answer.items() if name.lower() != "content-length"}

    async def run(send, receive):
        part = first
        while part is not _END and part is not _BROKEN:
            if part:
                await send({"type": "http.response.body", "body": part, "more_body": True})
            following = asyncio.ensure_future(parts.get())
            await asyncio.wait({following, whole}, return_when=asyncio.FIRST_COMPLETED)
            if following.done():
                part = following.result()
            else:  # the function died in the middle: what is still queued comes first
                await asyncio.sleep(0)
                part = following.result() if following.done() else _BROKEN
        if part is _END:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        await asyncio.wait({whole})

    return int((prelude or {}).get("statusCode", 200)), answer, StreamingResponse(run)


lambda_svc.handle_function_url_request = _handle_url_streaming

if __name__ == "__main__":
    app.main()
