# SPDX-License-Identifier: Apache-2.0
"""What one process of a pipeline is told when it is started: one typed object, as JSON on its command line."""

from __future__ import annotations

from pathlib import Path

import msgspec

from zpptool.config.engine_kind import Engine
from zpptool.errors import usage_error
from zpptool.partition import LayerRange, Partition
from zpptool.wire.compression.adaptive import WireCodec


class StageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage's place in the ring, what it loads, and how long it waits.

    Attributes:
        engine: what computes.
        model: the stage's own directory, or the full checkpoint.
        partition: every stage's half-open layer range. A stage that was told only its own range has guessed the
            others; the head puts the true ones together from the roll call.
        stage: this stage's place.
        bind: the endpoint that its sending link binds (its forward port, or the return port on the last stage).
        connect: the endpoint that its receiving link connects to. On stage 0 that is the return link, which the head
            takes; the worker of stage 0 hears the head through `local`.
        local: stage 0 only: the endpoint between head and worker on this machine; empty elsewhere.
        dtype: the activations' and weights' dtype, or `auto` for the checkpoint's.
        device: a torch device, or `auto`.
        api_host: where the head's OpenAI API listens (stage 0 only).
        api_port: its port.
        engine_args: passed to the engine as they are.
        start_timeout_s: how long to wait for neighbours, the head and the loading of weights.
        step_timeout_s: how long one step may take.
        beat_timeout_s: how long a stage may stand still at a step before it is taken to hang.
        plan_digest: of the plan that this stage was started from; empty for none.
        tensor_parallel_size: how many devices compute this stage together, each in a process of its own.
        trace: the file of the timeline; empty for none.
        keys: this stage's key file; empty for none. (The path only: others can read a process's command line.)
        insecure: whether links that strangers can reach may go without keys.
        wire_codec: whether its sending link compresses.
        served_name: what requests call the model; empty for the directory that the head reads.
        recovery_deadline_s: how long a lost stage may take to come back; 0 where a loss ends the pipeline.
        headless: stage 0 only: its head is not started with it, but is a script that `local` leads to.
    """

    engine: Engine
    model: str
    partition: tuple[tuple[int, int], ...]
    stage: int
    bind: str
    connect: str
    local: str = ""
    dtype: str = "auto"
    device: str = "auto"
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    engine_args: tuple[str, ...] = ()
    start_timeout_s: float = 600.0
    step_timeout_s: float = 300.0
    beat_timeout_s: float = 60.0
    plan_digest: str = ""
    tensor_parallel_size: int = 1
    trace: str = ""
    keys: str = ""
    insecure: bool = False
    wire_codec: WireCodec = WireCodec.NONE
    served_name: str = ""
    headless: bool = False
    recovery_deadline_s: float = 0.0

    @property
    def num_stages(self) -> int:
        return len(self.partition)

    @property
    def num_layers(self) -> int:
        return self.partition[-1][1]

    @property
    def is_first(self) -> bool:
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        return self.stage == self.num_stages - 1

    @property
    def ranges(self) -> Partition:
        """The partition as layer ranges."""
        return tuple(LayerRange(start, end) for start, end in self.partition)

    @property
    def layers(self) -> LayerRange:
        """The range that this stage owns."""
        return self.ranges[self.stage]

    @property
    def directory(self) -> Path:
        return Path(self.model)

    def to_json(self) -> str:
        """The spec as the one argument of a process's command line.

        Raises:
            ZppError: (USAGE) a name in it is not UTF-8.
        """
        try:
            return msgspec.json.encode(self).decode()
        except UnicodeEncodeError as cause:
            raise usage_error(f"{cause.object!r} is not UTF-8, and JSON holds nothing else") from cause


def spec_from_argv(argv: list[str]) -> StageSpec:
    """The spec that a process was started with.

    Raises:
        ZppError: (USAGE) there is none, or it is not one.
    """
    try:
        return msgspec.json.decode(argv[1], type=StageSpec)
    except (IndexError, UnicodeEncodeError, msgspec.DecodeError) as cause:
        raise usage_error(
            f"this module is started by zpptool with a stage's spec as its argument ({cause})",
            "Use zpptool run-stage or zpptool test-pipeline.",
        ) from cause
