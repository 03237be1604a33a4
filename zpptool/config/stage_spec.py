# SPDX-License-Identifier: Apache-2.0
"""What one process of a pipeline is started with: one typed object, as JSON on its command line."""

from __future__ import annotations

from pathlib import Path

import msgspec

from zpptool.config.engine_kind import Engine
from zpptool.config.runtime_options import RuntimeOptions
from zpptool.errors import usage_error
from zpptool.partition import LayerRange, Partition
from zpptool.wire.compression.adaptive import WireCodec
from zpptool.witness.options import WitnessOptions


class StageSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stage: its place in the ring, what it loads, and how it runs.

    Attributes:
        engine: what computes.
        model: the stage's own directory, or the full checkpoint.
        partition: every stage's half-open layer range. Where only the stage's own range was given, the others are
            filled in evenly; the head collects the actual ones in the roll call.
        stage: this stage's index.
        bind: the endpoint that its sending link binds (its forward port, or the return port on the last stage).
        connect: the endpoint that its receiving link connects to. On stage 0 that is the return link, which the head
            uses; the worker of stage 0 receives from the head at `local`.
        local: stage 0 only: the endpoint between head and worker on this machine; empty elsewhere.
        dtype: the activations' and weights' dtype, or `auto` for the checkpoint's.
        api_host: the address that the head's OpenAI API listens on (stage 0 only).
        api_port: its port.
        engine_args: passed to the engine unchanged.
        plan_digest: of the plan that this stage was started from; empty for none.
        tensor_parallel_size: how many devices compute this stage together, each in a process of its own.
        served_name: what requests call the model; empty for the directory that the head reads.
        headless: stage 0 only: its head is a script that connects at `local`, not a process started with it.
        source: names the model and its state beyond this machine, `hf://org/name@commit`; empty for a path.
        runtime: device, time limits, recovery, tracing, and the links' safety.
    """

    engine: Engine
    model: str
    partition: tuple[tuple[int, int], ...]
    stage: int
    bind: str
    connect: str
    local: str = ""
    dtype: str = "auto"
    api_host: str = "127.0.0.1"
    api_port: int = 8000
    engine_args: tuple[str, ...] = ()
    plan_digest: str = ""
    tensor_parallel_size: int = 1
    served_name: str = ""
    headless: bool = False
    source: str = ""
    runtime: RuntimeOptions = RuntimeOptions()

    @property
    def num_stages(self) -> int:
        """How many stages the pipeline has."""
        return len(self.partition)

    @property
    def num_layers(self) -> int:
        """How many decoder layers the whole model has."""
        return self.partition[-1][1]

    @property
    def is_first(self) -> bool:
        """Whether this is stage 0, beside the head."""
        return self.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this stage binds the return link."""
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
        """`model` as a path."""
        return Path(self.model)

    @property
    def device(self) -> str:
        """See `RuntimeOptions`, as for all properties below."""
        return self.runtime.device

    @property
    def start_timeout_s(self) -> float:
        """Seconds to wait for neighbours, head and weights."""
        return self.runtime.start_timeout_s

    @property
    def step_timeout_s(self) -> float:
        """Seconds that one step may take."""
        return self.runtime.step_timeout_s

    @property
    def beat_timeout_s(self) -> float:
        """Seconds without progress after which the stage counts as hanging."""
        return self.runtime.beat_timeout_s

    @property
    def recovery_deadline_s(self) -> float:
        """Seconds that a lost stage may take to come back; 0 where a loss ends the pipeline."""
        return self.runtime.recovery_deadline_s

    @property
    def trace(self) -> str:
        """Path of the timeline to write; empty for none."""
        return self.runtime.trace

    @property
    def keys(self) -> str:
        """Path of the stage's key file; empty for none."""
        return self.runtime.keys

    @property
    def insecure(self) -> bool:
        """Whether links that other machines can reach may go without keys."""
        return self.runtime.insecure

    @property
    def wire_codec(self) -> WireCodec:
        """Whether the stage's sending link compresses."""
        return self.runtime.wire_codec

    @property
    def witness(self) -> WitnessOptions:
        """What is recorded of the computation."""
        return self.runtime.witness

    def with_runtime(self, **changes: object) -> StageSpec:
        """The same stage with some of its `RuntimeOptions` replaced, by name."""
        return msgspec.structs.replace(self, runtime=msgspec.structs.replace(self.runtime, **changes))

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

    Args:
        argv: the process's `sys.argv`; the spec is its second item.

    Raises:
        ZppError: (USAGE) there is no second item, or it is not a spec.
    """
    try:
        return msgspec.json.decode(argv[1], type=StageSpec)
    except (IndexError, UnicodeEncodeError, msgspec.DecodeError) as cause:
        raise usage_error(
            f"this module is started by zpptool with a stage's spec as its argument ({cause})",
            "Use zpptool run-stage or zpptool test-pipeline.",
        ) from cause
