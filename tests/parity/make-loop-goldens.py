"""Makes tests/parity/goldens/loop: what the parts of the training loop are in transformers, bitsandbytes and tensorboard.

    python tests/parity/make-loop-goldens.py       (versions: requirements.txt beside this file)

The Rust test crates/training/tests/loop_parity.rs reads them. Everything is seeded; the files are numbers made by this script
and carry the licence of this repository.

goldens/loop/schedules.json            learning rates of every step, for each schedule and shape
goldens/loop/adamw-8bit.safetensors    bitsandbytes.optim.AdamW8bit on the CPU: code values, gradients, parameters and states
goldens/loop/events.tfevents           two steps of scalars, written with tensorboard's own messages and record writer
"""

import json
from pathlib import Path

import bitsandbytes
import bitsandbytes.backends.cpu.ops as cpu
import torch
from bitsandbytes.functional import create_dynamic_map
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

FOLDER = Path(__file__).parent / "goldens" / "loop"


def rates(make, total):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    schedule = make(optimizer)
    found = []
    # one step more than the run has: where the schedule ends
    for _ in range(total + 1):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


def schedules():
    cases = []
    for total, warmup, decay in [(50, 5, 10), (37, 4, 8), (7, 0, 2), (10, 10, 1)]:
        for name, make in {
            "cosine": lambda o: get_cosine_schedule_with_warmup(o, warmup, total),
            "linear": lambda o: get_linear_schedule_with_warmup(o, warmup, total),
            "constant": lambda o: get_constant_schedule_with_warmup(o, warmup),
            "wsd": lambda o: get_wsd_schedule(o, warmup, min(decay, total - warmup), total, decay_type="1-sqrt"),
        }.items():
            cases.append(dict(
                schedule=name, total=total, warmup_ratio=warmup / total, decay_ratio=decay / total, peak=3e-4,
                rates=rates(make, total)))
    (FOLDER / "schedules.json").write_text(json.dumps(cases, indent=0) + "\n")


def quantize_to_nearest(values, code, absmax, codes, blocksize):
    """The CPU kernel for f32 looks codes up in a table that ends at 2e-5: even 0 does not become 0. The CUDA kernel, and the path
    that other number types take on the CPU, search the nearest code; that path is taken here."""
    found, scales = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, blocksize)
    codes.copy_(found)
    absmax.copy_(scales)


def adamw_8bit():
    cpu._quant_blockwise_fp32_direct = quantize_to_nearest
    generator = torch.Generator().manual_seed(20)
    signed, unsigned = create_dynamic_map(signed=True), create_dynamic_map(signed=False)
    # 16 whole blocks of 256 and a part of one; gradients over six decades
    size, steps = 4300, 5
    parameter = torch.nn.Parameter(torch.randn(size, generator=generator))
    tensors = {"code.signed": signed, "code.unsigned": unsigned, "start": parameter.detach().clone()}
    values = torch.randn(1000, generator=generator)
    tensors["quantize.values"] = values
    codes, absmax = torch.empty(1000, dtype=torch.uint8), torch.empty(4)
    quantize_to_nearest(values, signed, absmax, codes, 256)
    tensors["quantize.codes"], tensors["quantize.absmax"] = codes, absmax
    optimizer = bitsandbytes.optim.AdamW8bit([parameter], lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.02)
    for step in range(steps):
        scale = 10 ** (-6 * torch.rand(size, generator=generator))
        parameter.grad = torch.randn(size, generator=generator) * scale
        tensors[f"gradient.{step}"] = parameter.grad.clone()
        optimizer.step()
        state = optimizer.state[parameter]
        assert state["state1"].dtype == torch.uint8
        if step in (0, steps - 1):
            tensors[f"value.{step}"] = parameter.detach().clone()
            for moment, codes, absmax in [("first", "state1", "absmax1"), ("second", "state2", "absmax2")]:
                tensors[f"{moment}.codes.{step}"] = state[codes].clone()
                tensors[f"{moment}.absmax.{step}"] = state[absmax].clone()
    save_file(tensors, FOLDER / "adamw-8bit.safetensors")


def events():
    path = FOLDER / "events.tfevents"
    steps = [(1, {"train/loss": 2.5, "train/learning_rate": 1e-3}), (300, {"train/loss": 1.25, "eval/loss": 1.5})]
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        writer.write(Event(wall_time=1795212000.0, file_version="brain.Event:2").SerializeToString())
        for step, scalars in steps:
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
            event = Event(wall_time=1795212000.0 + step, step=step, summary=Summary(value=values))
            writer.write(event.SerializeToString())
        writer.flush()
    read = EventAccumulator(str(path)).Reload()
    assert [(e.step, e.value) for e in read.Scalars("train/loss")] == [(1, 2.5), (300, 1.25)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    FOLDER.mkdir(parents=True, exist_ok=True)
    schedules()
    adamw_8bit()
    events()
