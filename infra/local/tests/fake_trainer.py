#!/usr/bin/env python3
"""Stands for tunesmith-trainer where a test is about the machine room: `serve` answers /ping and /invocations, `train` shows
what a container would see and waits for the spot notice."""

import http.server
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request

import boto3

os.environ.setdefault("AWS_DEFAULT_REGION", os.environ["AWS_REGION"])


def serve():
    if os.environ.get("FAKE_BROKEN"):
        sys.exit("the model cannot be read")

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments):
            pass

        def answer(self, status, body, content_type="application/json"):
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer(200 if self.path == "/ping" else 404, b"")

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if body.get("fail"):
                self.answer(500, b"no such token")
            elif body.get("stream"):
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                for part in ("one ", "two ", "three"):
                    self.wfile.write(f"{len(part):x}\r\n{part}\r\n".encode())
                self.wfile.write(b"0\r\n\r\n")
            else:
                role = boto3.client("sts").get_caller_identity()["Arn"]
                self.answer(200, json.dumps({"name": os.environ.get("FAKE_NAME"), "role": role}).encode())

    server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"])), Handler)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    server.serve_forever()


def train():
    service = os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] + "/latest/"
    ttl = {"x-aws-ec2-metadata-token-ttl-seconds": "60"}
    with urllib.request.urlopen(urllib.request.Request(service + "api/token", method="PUT", headers=ttl)) as answer:
        token = answer.read().decode()

    def get(path):
        request = urllib.request.Request(service + "meta-data/" + path, headers={"x-aws-ec2-metadata-token": token})
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            assert error.code == 404, error
            return None

    seen = {
        "instance": get("instance-id"),
        "type": get("instance-type"),
        "life": get("instance-life-cycle"),
        "role": boto3.client("sts").get_caller_identity()["Arn"],
        "arguments": sys.argv[1:],
        "attempt": os.environ.get("TUNESMITH_ATTEMPT"),
    }
    print("SEEN " + json.dumps(seen), flush=True)
    child = os.fork()  # a process that detaches must not outlive the machine
    if child == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    while not (notice := get("spot/instance-action")):
        time.sleep(0.05)
    print("NOTICE " + notice, flush=True)


{"serve": serve, "train": train}[sys.argv[1]]()
