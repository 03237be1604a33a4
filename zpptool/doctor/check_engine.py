# SPDX-License-Identifier: Apache-2.0
"""Check in a child process, so that a crash is a finding, that the engine imports and which devices torch sees."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from zpptool.config.engine_kind import Engine
from zpptool.config.plan_gpus import gpu_ranks
from zpptool.config.runs_on import AUTO
from zpptool.console import human_bytes
from zpptool.doctor.finding import Finding, blocker, ok, warning
from zpptool.doctor.target import Target

IMPORT_TIMEOUT_S = 180.0
WEIGHTS_SHARE = 0.9
"""Share of a device's free memory that vLLM uses by default (--gpu-memory-utilization)."""
_PREFIX = "ZPP "
_QUERY = """
import json, torch
answer = {"gpus": []}
if torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        answer["gpus"].append([torch.cuda.get_device_name(number), free, total])
"""
_PRINT = f"print({_PREFIX!r} + json.dumps(answer), flush=True)\n"
_IMPORTS = {Engine.VLLM: "import vllm, vllm.platforms\n", Engine.TRANSFORMERS: "import transformers\n"}


def check_engine_and_devices(target: Target) -> Iterator[Finding]:
    """Check the imports, then whether the stages of this machine fit on the devices."""
    answer = ask(_IMPORTS[target.engine] + _QUERY + _PRINT)
    if isinstance(answer, str):
        yield blocker(
            "import",
            f"{target.engine} cannot be imported: {answer}",
            "Remove torchvision, torchaudio and torchcodec if they are named; else install zpptool's extra again.",
        )
        return
    yield ok("import", f"torch and {target.engine} import")
    ranks = [gpu_ranks(place, AUTO) for place in target.places]
    weights = [place.weight_bytes // place.tensor_parallel_size for place in target.places]
    yield from device_findings(answer["gpus"], weights, ranks)


def ask(script: str) -> dict[str, Any] | str:
    """Run a script in a child process and return the object it prints, or, if it fails, the last line of its stderr."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=IMPORT_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {IMPORT_TIMEOUT_S:.0f} s"
    for line in done.stdout.splitlines():
        if line.startswith(_PREFIX):
            answer: dict[str, Any] = json.loads(line.removeprefix(_PREFIX))
            return answer
    if done.returncode < 0:
        return f"the process was killed by signal {-done.returncode}"
    return (done.stderr.strip().splitlines() or ["no output"])[-1]


def device_findings(
    gpus: Sequence[tuple[str, int, int]], weights: Sequence[int], ranks: Sequence[int] = ()
) -> Iterator[Finding]:
    """Compare the GPUs with the weights of this machine's stages, in order.

    Args:
        gpus: name, free bytes and total bytes of each GPU.
        weights: bytes of weights of each stage on one of its GPUs.
        ranks: how many GPUs each stage takes; one each if empty.
    """
    ranks = ranks or [1] * len(weights)
    if not gpus:
        yield ok("devices", "no GPU: stages compute on the CPU")
        return
    weights = [size for size, count in zip(weights, ranks, strict=True) for _rank in range(count)]
    for number, (name, free, total) in enumerate(gpus):
        message = f"{name}, {human_bytes(free)} free of {human_bytes(total)}"
        if number < len(weights) and weights[number] > free * WEIGHTS_SHARE:
            need = human_bytes(weights[number])
            yield blocker(
                f"GPU {number}", f"{message}, its stage's weights take {need}", "Free GPU memory, or use more stages."
            )
        else:
            yield ok(f"GPU {number}", message)
    if max(ranks, default=0) > len(gpus):
        yield blocker(
            "devices",
            f"a stage takes {max(ranks)} GPUs, one for each tensor-parallel rank, and there are {len(gpus)}",
            "Plan it with a smaller --tensor-parallel-size.",
        )
    elif len(weights) > len(gpus):
        yield warning(
            "devices",
            f"{len(ranks)} stages take {len(weights)} GPUs, and there are {len(gpus)}",
            "Plan fewer stages on this host, or let stages share a GPU with --gpu-id.",
        )
