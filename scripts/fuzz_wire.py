#!/usr/bin/env python
# SPDX-License-Identifier: Apache-2.0
"""Feed mutated frames to the decoders of the wire, and check that each returns a value or raises a named error.

    python scripts/fuzz_wire.py --frames 10000000 --targets wire,tensors,control,link,fragments,codec

Every frame is a valid one, mutated: bits flipped, bytes set, parts removed, doubled or copied from another frame,
lengths and extension marks of msgpack inserted. Batch `n` of a seed is always the same, so a run that was stopped
continues where it was (`--state FILE`), and a frame that fails is printed and can be reproduced. An error that is not a
`ZppError`, a batch that takes longer than `HANG_S`, and more memory than `--memory` MiB are failures (exit 1).
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from zpptool.errors import ZppError
from zpptool.ring import messages as c
from zpptool.wire.compression.byte_planes import shrink
from zpptool.wire.link.fragments import PLAIN, PLANES, Chunk, Entry, encode_chunk, encode_entries
from zpptool.wire.link.inbound import Inbound
from zpptool.wire.local.shared_memory import SharedMemorySender
from zpptool.wire.message.framing import HEAD, Kind, Limits, decode, encode
from zpptool.wire.message.tensors import pack, unpack
from zpptool.wire.protocol import link_messages as lm
from zpptool.wire.protocol.flow_control import Window

BATCH = 2000
HANG_S = 120.0
LIMITS = Limits(max_frame_bytes=1 << 20, max_message_bytes=4 << 20)
Target = tuple[Callable[[bytes], Any], list[bytes]]

TOKENS = [
    b"\xdd\xff\xff\xff\xff", b"\xdc\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xde\xff\xff", b"\xc6\xff\xff\xff\xff",
    b"\xdb\xff\xff\xff\xff", b"\xc9\x7f\xff\xff\xff\x04", b"\xc7\x02\x08", b"\xd4\x01", b"\xcf" + b"\xff" * 8,
    b"\xd3\x80" + b"\0" * 7, b"\xcb\x7f\xf8" + b"\0" * 6, b"\x91" * 40, b"\x81\xa0" * 20, b"\xc0", b"\xc1", b"\xa1\xff",
    b"\xff" * 4, b"\0" * 8, b"ZPPW", b"\xd6\xff\0\0\0\0",
]  # fmt: skip


def message(kind: Kind, header: bytes, frames: Sequence[Any] = ()) -> bytes:
    """A whole message as one byte string: its frames, each after its length."""
    parts = encode(kind, header, frames, source=1, epoch=2, sequence=3, session=4)
    return framed([bytes(part) for part in parts])


def parts_of(data: bytes) -> list[bytes]:
    """The frames in a byte string, valid or not."""
    parts, at = [], 0
    while at + 4 <= len(data) and len(parts) < 2000:
        end = at + 4 + int.from_bytes(data[at : at + 4], "little")
        parts.append(data[at + 4 : end])
        at = end
    return parts


def take_message(data: bytes) -> Any:
    """Decode a message as a link and its owner do: the frames, then what they hold."""
    got = decode(parts_of(data), LIMITS)
    if got.kind is Kind.TENSORS:
        return unpack(got.header, got.frames, limits=LIMITS)
    if got.kind is Kind.LINK:
        return lm.decode_link_message(got.header)
    return c.decode_control(got.header, got.frames, stage=HEAD, peer="stage 1", endpoint="here")


def take_tensors(data: bytes) -> Any:
    """Unpack a tensor message with valid frames, so that its header and its sizes are tested."""
    header, *frames = parts_of(data) or [b""]
    return unpack(header, frames, limits=LIMITS)


def tensor_dicts() -> list[dict[str, Any]]:
    """Dicts as models send them, and unusual ones."""
    import torch

    return [
        {"hidden_states": torch.ones(4, 8, dtype=torch.bfloat16), "residual": torch.ones(4, 8, dtype=torch.bfloat16)},
        {"a": torch.empty(0, 7), "b": torch.tensor(5), "c": torch.ones(3, 3, dtype=torch.float8_e4m3fn)},
        {"states": torch.ones(70_000), "n": 3, "more": {"list": [1, None, "x", b"y", 2.5, {"deep": [[]]}]}},
        {"flag": True, "name": "x" * 40},
        {f"t{number}": torch.full((2,), number) for number in range(20)},
    ]


def wire_target() -> Target:
    packed = [pack(item) for item in tensor_dicts()]
    valid = [message(Kind.TENSORS, item.header, item.frames) for item in packed]
    valid += [message(Kind.CONTROL, header, [b"payload"]) for header in control_headers()]
    valid += [message(Kind.LINK, header) for header in link_message_headers()]
    return take_message, valid


def tensors_target() -> Target:
    packed = [pack(item) for item in tensor_dicts()]
    return take_tensors, [framed([item.header, *map(bytes, item.frames)]) for item in packed if item.nbytes < 100_000]


def control_headers() -> list[bytes]:
    facts = c.StageFacts(stage=1, host="b", pid=7, num_stages=3, layers=(2, 4), agreed={"dtype": "bfloat16"})
    values = [
        c.RollCall(stages=(facts, facts)), c.Verdict(reasons=("no",)), c.Call(number=5, method="step", from_all=False),
        c.Reply(number=5, stage=2), c.Fault(stage=1, number=None, message="m", detail="d"),
        c.Stop(reason="over", broke=True),
    ]  # fmt: skip
    return [c.encode_control(item) for item in values]


def control_target() -> Target:
    return lambda data: c.decode_control(data, (), stage=HEAD, peer="stage 1", endpoint="here"), control_headers()


def link_message_headers() -> list[bytes]:
    party = lm.Party(1, 3, "digest", "run", 2)
    messages = [
        lm.Hello(party, Window(), Limits(), {"shm": "x"}), lm.Welcome(party, Window(), {}), lm.Hold("later"),
        lm.Refused("no", plan=True), lm.Acknowledgement(7), lm.Ping(1.5), lm.Pong(1.5), lm.Notification(b"payload"),
    ]  # fmt: skip
    return [lm.encode_link_message(item) for item in messages]


def link_target() -> Target:
    return lm.decode_link_message, link_message_headers()


def fragments_target() -> Target:
    """A fragmented message: its announcement, its chunks, plain and compressed, and a frame in shared memory."""
    frames = [bytes(range(200)), bytes(64), b"\1\0\2\0" * 300]
    sender = SharedMemorySender()
    ticket = sender.put(frames[1])
    assert ticket is not None
    entries = [Entry(0, len(frames[0])), Entry(1, len(frames[1]), ticket), Entry(0, len(frames[2]))]
    valid = []
    for codec in (PLAIN, PLANES):
        messages = [list(encode(Kind.CONTROL, b"header", frames, source=1, epoch=2, sequence=3, session=4,
                            table=encode_entries(entries)))]  # fmt: skip
        for number, index in enumerate((0, 2)):
            data = frames[index] if codec == PLAIN else shrink(memoryview(frames[index]), 2) or b""
            head = Chunk(codec if data else PLAIN, 2, index, 4, len(frames[index]), number, 3)
            messages.append([encode_chunk(head), data or frames[index]])
        valid.append(framed([framed([bytes(part) for part in parts]) for parts in messages]))

    def take(data: bytes) -> None:
        inbound = Inbound(LIMITS)
        inbound.begin({"memfd": sender.offer})
        for one in parts_of(data):
            inbound.take(parts_of(one))

    return take, valid


def framed(parts: Sequence[bytes]) -> bytes:
    """The parts as one byte string, each after its length."""
    return b"".join(len(part).to_bytes(4, "little") + part for part in parts)


def codec_target() -> Target:
    """vLLM's control objects; needs vLLM."""
    import fractions

    import torch
    from vllm.sampling_params import RequestOutputKind, SamplingParams
    from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput

    from zpptool.engines.vllm import codec

    sampling = SamplingParams(temperature=0.7, stop=["\n"], logit_bias={5: 1.5}, output_kind=RequestOutputKind.DELTA)
    new = NewRequestData("new", [1, 2, 3], [], sampling, None, ([1, 2], [3]), 0, None)
    old = CachedRequestData(["old"], {"old"}, [[7]], {"old": [1, 7]}, [([4],)], [9], [1])
    step = SchedulerOutput(
        scheduled_new_reqs=[new], scheduled_cached_reqs=old, num_scheduled_tokens={"new": 3, "old": 1},
        total_num_scheduled_tokens=4, scheduled_spec_decode_tokens={}, scheduled_encoder_inputs={},
        finished_req_ids={"gone"}, free_encoder_mm_hashes=[], num_common_prefix_blocks=[0],
    )  # fmt: skip
    values = [
        step, ModelRunnerOutput(req_ids=["new"], req_id_to_index={"new": 0}, sampled_token_ids=[[5]]),
        [torch.ones(2, 3, dtype=torch.bfloat16), np.arange(6).reshape(2, 3), torch.float16, fractions.Fraction(1, 3)],
        {"a": (1, {2, 3}), "b": [None, b"x", "y"]},
    ]  # fmt: skip
    return codec.decode, [codec.encode(item) for item in values]


TARGETS = {
    "wire": wire_target, "tensors": tensors_target, "control": control_target, "link": link_target,
    "fragments": fragments_target, "codec": codec_target,
}  # fmt: skip


def mutated(valid: Sequence[bytes], rng: np.random.Generator, count: int) -> Iterator[bytes]:
    """That many frames, each a valid one with one to four changes."""
    which = rng.integers(0, len(valid), count)
    dice = rng.integers(0, 1 << 31, (count, 4, 4)).tolist()
    changes = rng.integers(1, 5, count).tolist()
    for index in range(count):
        data = bytearray(valid[which[index]])
        for how, a, b, by in dice[index][: changes[index]]:
            change(data, how % 8, a, b, by, valid)
        yield bytes(data)


def change(data: bytearray, how: int, a: int, b: int, by: int, valid: Sequence[bytes]) -> None:
    """One change, near the beginning as often as anywhere."""
    size = max(len(data), 1)
    at = a % min(size, 96) if by & 1 else a % size
    match how:
        case 0 | 1:
            if data:
                data[at] ^= 1 << (b % 8)
        case 2 | 3:
            if data:
                data[at] = b % 256
        case 4:
            del data[at : at + 1 + b % (16 if by & 2 else size)]
        case 5:
            token = TOKENS[b % len(TOKENS)]
            data[at : at + (len(token) if by & 2 else 0)] = token
        case 6:
            data[at:at] = data[at : at + b % 64]
        case 7:
            other = valid[b % len(valid)]
            begin = b % len(other)
            data[at:at] = other[begin : begin + by % 200]


def run_batch(target: Target, seed: int, name: str, number: int) -> tuple[int, int]:
    """Run one batch; how many frames were accepted, how many refused.

    Raises:
        SystemExit: a frame was neither.
    """
    take, valid = target
    rng = np.random.default_rng([seed, list(TARGETS).index(name), number])
    taken = refused = 0
    faulthandler.dump_traceback_later(HANG_S, exit=True)
    for data in mutated(valid, rng, BATCH):
        try:
            take(data)
            taken += 1
        except ZppError:
            refused += 1
        except BaseException as failure:
            sys.exit(f"{name}, batch {number} of seed {seed}: {type(failure).__name__}: {failure}\n{data.hex()}")
    faulthandler.cancel_dump_traceback_later()
    return taken, refused


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run, and print the outcome as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--frames", type=int, default=100_000, help="number of frames, shared among the targets")
    parser.add_argument("--targets", default="wire,tensors,control,link,fragments", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path, help="file with the progress, from which a later run continues")
    parser.add_argument("--memory", type=int, default=256, help="MiB that the process may grow by")
    options = parser.parse_args(arguments)
    names = options.targets.split(",")
    targets = {name: TARGETS[name]() for name in names}
    for name, (take, valid) in targets.items():
        for data in valid:
            take(data)  # otherwise only noise would be tested
            assert data, name
    done = dict.fromkeys(names, 0)
    if options.state and options.state.exists():
        done |= json.loads(options.state.read_text())
    before = [run_batch(targets[name], options.seed, name, done[name]) for name in names]  # fills the caches
    process = psutil.Process()
    base = process.memory_info().rss
    limit = base + (options.memory << 20) + (4 << 30)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (max(limit, process.memory_info().vms + (2 << 30)), hard))
    began, taken, refused, peak = time.monotonic(), 0, 0, base
    assert len(before) == len(names)
    batches = -(-options.frames // (BATCH * len(names)))
    for number in range(batches):
        for name in names:
            accepted, rejected = run_batch(targets[name], options.seed, name, done[name])
            done[name] += 1
            taken, refused = taken + accepted, refused + rejected
        peak = max(peak, process.memory_info().rss)
        if peak - base > options.memory << 20:
            sys.exit(f"memory grew by {(peak - base) >> 20} MiB in {taken + refused} frames")
        if options.state and (number % 50 == 0 or number == batches - 1):
            options.state.write_text(json.dumps(done))
    seconds = time.monotonic() - began
    outcome = {
        "frames": taken + refused, "taken": taken, "refused": refused, "seconds": round(seconds, 1),
        "frames_per_s": round((taken + refused) / seconds), "growth_mib": round((peak - base) / (1 << 20), 1),
        "seed": options.seed, "batches": done,
    }  # fmt: skip
    print(json.dumps(outcome), flush=True)
    return outcome


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
