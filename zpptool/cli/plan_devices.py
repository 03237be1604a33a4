# SPDX-License-Identifier: Apache-2.0
"""`zpptool plan --devices`: the layers of each host from what devices can do, and the reasons in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from zpptool.config.engine_arguments import has_option
from zpptool.config.engine_kind import Engine
from zpptool.console import Console, human_bytes
from zpptool.errors import usage_error

if TYPE_CHECKING:
    from zpptool.checkpoint.index import CheckpointIndex
    from zpptool.planner.costs import Model
    from zpptool.planner.device_profile import CacheCosts
    from zpptool.planner.places import InForce

TENSORS_ON_A_LINK = {Engine.VLLM: 2, Engine.TRANSFORMERS: 1}
"""How many numbers per token and hidden unit a stage sends: vLLM's stages send hidden states and residuals."""


class OnDevices(NamedTuple):
    """What was chosen.

    Attributes:
        ranges, hosts: of each stage.
        sizes: how many devices share each stage, as `--tensor-parallel-size` takes them.
        limits: flags of the engine that follow from it, with their values.
        report: the reasons, as a JSON object.
    """

    ranges: list[str]
    hosts: list[str]
    sizes: str
    limits: dict[str, int]
    report: dict[str, Any]


def plan_on_devices(
    directory: Path,
    devices: Path,
    *,
    engine: Engine,
    dtype: str,
    most_stages: int | None,
    in_force: Path | None,
    number: int,
) -> OnDevices:
    """Choose hosts and layers for a model.

    Args:
        directory: the checkpoint, or its headers.
        devices: devices.yaml.
        engine, dtype: what computes.
        most_stages: the most stages that the pipeline may have.
        in_force: the plan that runs now, of which as little as possible is moved.
        number: which of several pipelines, from 1.

    Raises:
        ZppError: (FAILURE) the model does not fit, or no plan keeps the limits; (INVALID) a file is not what it should
            be; (USAGE) there are not as many pipelines.
    """
    from zpptool.checkpoint.index import read_index
    from zpptool.checkpoint.stage_tensors import index_digest
    from zpptool.planner.devices import read_devices, refuse_other_models
    from zpptool.planner.explain import prices
    from zpptool.planner.report import report
    from zpptool.planner.side_by_side import make_answers

    inventory = read_devices(devices)
    index = read_index(directory)
    refuse_other_models(inventory, index_digest(index), dtype)
    model = _model(index, engine, dtype)
    held = _held(in_force)
    answer = make_answers(inventory, model, in_force=held, most_stages=most_stages)
    if number > len(answer.pipelines):
        raise usage_error(
            f"--pipeline {number} is asked for, and {len(answer.pipelines)} is the best number of pipelines",
            "most_pipelines in devices.yaml says how many there may be.",
        )
    best = answer.pipelines[number - 1]
    limits = {
        "--max-num-seqs": best.point.sequences,
        "--max-num-batched-tokens": max(best.workload.max_num_batched_tokens, best.point.sequences),
        "--max-model-len": best.workload.longest,
    }
    return OnDevices(
        [str(stage.layers) for stage in best.stages],
        [stage.host for stage in best.stages],
        ",".join(str(stage.width) for stage in best.stages),
        limits if engine is Engine.VLLM else {},
        report(answer, prices(answer, inventory, model, in_force=held), number),
    )


def with_limits(engine_args: Sequence[str], limits: Mapping[str, int]) -> tuple[str, ...]:
    """The engine's arguments with the limits that were planned, unless the user has set them."""
    more = [word for flag, value in limits.items() if not has_option(engine_args, flag) for word in (flag, str(value))]
    return (*engine_args, *more)


def _model(index: CheckpointIndex, engine: Engine, dtype: str) -> Model:
    from zpptool.checkpoint.model_config import text_config
    from zpptool.checkpoint.structure import infer_structure
    from zpptool.config.memory_budget import ITEMSIZES
    from zpptool.errors import invalid_error
    from zpptool.planner.costs import Model
    from zpptool.planner.weights import stage_weights

    text = text_config(index.config)
    own = ITEMSIZES.get(dtype)
    itemsize = own or ITEMSIZES.get(str(text.get("torch_dtype") or text.get("dtype")), 2)
    hidden = text.get("hidden_size")
    if not isinstance(hidden, int):
        raise invalid_error(
            "config.json does not state hidden_size, from which follows what links carry", "Give --ranges instead."
        )
    weights = stage_weights(index, infer_structure(index), own)
    activation = hidden * itemsize * TENSORS_ON_A_LINK[engine]
    return Model(weights, activation, itemsize, _caches(index.config, itemsize))


def _caches(config: dict[str, Any], itemsize: int) -> CacheCosts | None:
    """The caches of attention as they follow from config.json; None where they do not."""
    from zpptool.config.memory_budget import kv_bytes_per_token
    from zpptool.partition import LayerRange
    from zpptool.planner.device_profile import ATTENTION, CacheCosts, Source

    each = kv_bytes_per_token(config, LayerRange(0, 1), itemsize)
    return None if each is None else CacheCosts(bytes_per_token={ATTENTION: each}, source=Source.SPEC)


def _held(in_force: Path | None) -> InForce:
    """The layers of each host in a plan."""
    from zpptool.config.plan import load_plan_file

    if in_force is None:
        return {}
    held: dict[str, Any] = {}
    plan = load_plan_file(in_force)
    for place, layers in zip(plan.stages, plan.partition, strict=True):
        held[place.host] = (*held.get(place.host, ()), layers)
    return held


def show_report(out: Console, report: dict[str, Any]) -> None:
    """Print the table of stages, what limits the pipeline, and prices."""
    known = report["predicted"] is not None
    rows = [
        (
            stage["stage"],
            stage["host"] + (f" x{stage['tensor_parallel_size']}" if stage["tensor_parallel_size"] > 1 else ""),
            f"{stage['layers'][0]}-{stage['layers'][1]}",
            *(human_bytes(stage[f"{part}_bytes"]) for part in ("weight", "cache", "workspace", "free")),
            _milliseconds(stage["seconds"]["expected"]) if known else "?",
            f"{stage['share']:.0%}",
        )
        for stage in report["stages"]
    ]
    columns = ("stage", "host", "layers", "weights", "KV", "workspace", "free", "step", "share")
    out.table("", columns, rows, right=("stage", *columns[3:]))
    requests = report["requests"]
    for number, own in enumerate(report["pipelines"], start=1):
        if len(report["pipelines"]) > 1:
            here = " (this plan)" if number == report["pipeline"] else f" (--pipeline {number})"
            out.line(f"pipeline {number}: {', '.join(own['hosts'])}{here}")
    out.line(f"requests at once: {requests['planned']} of {requests['wanted']} wanted{_why_fewer(requests)}")
    if known:
        _show_speed(out, report["predicted"])
    else:
        out.line("planned from bytes: no profile says how fast the devices are, so all count as equally fast")
    out.line(f"limited by {report['binding']}")
    for limit in report["next"]:
        out.line(f"  next: {limit['name']}, at {limit['share']:.0%} of the period")
    for price in report["prices"]:
        out.line(f"  {price['change']}: {price['gain']:+.1%}")
    for name in report["unmeasured"]:
        out.line(f"not measured: {name}")
    proof = "proven to be the best" if report["gap"] == 0 else f"at most {report['gap']:.1%} below the best"
    out.line(f"{proof}, of {len(report['tried'])} numbers of stages and requests")


def _why_fewer(requests: dict[str, Any]) -> str:
    """Why fewer requests are planned than are wanted."""
    if requests["planned"] == requests["wanted"]:
        return ""
    fit = requests["fit"]
    return ": the caches of more do not fit" if fit is not None and fit < requests["wanted"] else ": more are slower"


def _show_speed(out: Console, predicted: dict[str, Any]) -> None:
    rate, token = predicted["tokens_per_second"], predicted["token_seconds"]
    out.line(
        f"predicted: {rate['expected']:.1f} tokens/s ({rate['lowest']:.1f} to {rate['highest']:.1f}), "
        f"{_milliseconds(token['expected'])} between tokens, "
        f"{_milliseconds(predicted['first_token_seconds'])} until the first"
    )


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
