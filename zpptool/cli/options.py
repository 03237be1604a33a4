# SPDX-License-Identifier: Apache-2.0
"""The options that several commands share, spelled once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer
from typer._click.globals import get_current_context

from zpptool.config.endpoints import DEFAULT_API_PORT, DEFAULT_BASE_PORT
from zpptool.config.engine_kind import Engine
from zpptool.errors import usage_error
from zpptool.net.addresses import DEFAULT_HOST
from zpptool.wire.compression.adaptive import WireCodec

_RANGES = re.compile(r"\[?\s*\d+\s*[-:]\s*\d+\s*\]?([,\s]+\[?\s*\d+\s*[-:]\s*\d+\s*\]?)*")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")]
RangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ranges",
        metavar="START-END ...",
        help="Layer ranges, one a stage, in order: --ranges 0-8 8-16 16-24. Half-open: 0-8 is layers 0 to 7.",
    ),
]
NumStagesOption = Annotated[
    int | None,
    typer.Option("--num-stages", "--pipeline-parallel-size", metavar="N", help="How many stages."),
]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", metavar="DIR", help="A Hugging Face checkpoint directory."),
]
BasePortOption = Annotated[
    int,
    typer.Option(
        "--base-port",
        metavar="PORT",
        help=f"The first stage's forward port, {DEFAULT_BASE_PORT} by default; the return port is this + N.",
        show_default=False,
    ),
]
ApiPortOption = Annotated[
    int,
    typer.Option(
        "--api-port",
        metavar="PORT",
        help=f"Where the OpenAI API listens, beside stage 0; {DEFAULT_API_PORT} by default.",
        show_default=False,
    ),
]
HostsOption = Annotated[
    str | None,
    typer.Option(
        "--hosts",
        metavar="A,B,...",
        help=f"The machines, by name or address: one for all stages, or one a stage, in order. {DEFAULT_HOST} if none.",
    ),
]


def typed_ranges(option: list[str] | None, words: list[str] | None) -> list[str]:
    """The ranges of a command line, in order: of `--ranges 0-8 8-16` the option gets one, the arguments the rest."""
    from zpptool.partition import split_range_words

    return split_range_words([*(option or []), *(words or [])])


DtypeOption = Annotated[
    str, typer.Option("--dtype", metavar="DTYPE", help="bfloat16, float16, float32; auto is the checkpoint's own.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="cpu, cuda; auto takes a GPU where there is one.")
]
GpuIdsOption = Annotated[
    str | None,
    typer.Option(
        "--gpu-ids",
        metavar="A,B,...",
        help="The GPUs, stage by stage: 0,1, or a group a stage: '0,1;2,3'. The next free ones if not given.",
    ),
]
TensorParallelOption = Annotated[
    str,
    typer.Option(
        "--tensor-parallel-size", metavar="N", help="Devices of a stage; test-pipeline takes one a stage: 2,1."
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write a timeline (Chrome trace) that ui.perfetto.dev shows."),
]
StartTimeoutOption = Annotated[
    float, typer.Option("--start-timeout", metavar="S", min=1, help="Seconds until all stages must stand.")
]
StepTimeoutOption = Annotated[
    float, typer.Option("--step-timeout", metavar="S", min=1, help="Seconds that one step may take.")
]
WireCodecOption = Annotated[
    WireCodec,
    typer.Option("--wire-codec", help="Compress what stages send, without loss; auto: on links too thin for it."),
]

BeatTimeoutOption = Annotated[
    float,
    typer.Option("--beat-timeout", metavar="S", min=1, help="Seconds that a stage may stand still at a step."),
]

RecoveryDeadlineOption = Annotated[
    float,
    typer.Option(
        "--recovery-deadline",
        metavar="S",
        min=0,
        help="Seconds that a lost stage may take to come back while requests wait; 0: a loss ends the pipeline.",
    ),
]

StandbyOption = Annotated[
    int,
    typer.Option(
        "--standby",
        metavar="N",
        min=0,
        help="So many spare processes have the engine imported, and take the place of one that is lost.",
    ),
]


def refuse_idle_standby(standby: int, recovery_deadline_s: float) -> None:
    """Refuse spares that would have nothing to do.

    Raises:
        ZppError: (USAGE) there are some, and the loss of a stage is not survived.
    """
    if standby and not recovery_deadline_s:
        raise usage_error(
            "--standby is for a pipeline that survives the loss of a stage, and this one does not",
            "Leave out --recovery-deadline 0 and --headless, or --standby.",
        )


def on_command_line(name: str) -> bool:
    """Whether a parameter of the running command was typed; else it comes from environment, file or default."""
    context = get_current_context(silent=True)
    source = context.get_parameter_source(name) if context is not None else None
    return source is None or source.name == "COMMANDLINE"


KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        help="This stage's key file, or the directory that zpptool keys generate wrote: links over tcp are then "
        "encrypted, and nobody but the neighbours is let in.",
    ),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Let links go without keys where other machines can reach them.")
]


def model_and_ranges(model: Path | None, words: list[str] | None, ranges: list[str] | None) -> tuple[Path, list[str]]:
    """The model and the ranges of a command line that may have both among its positional words.

    `--ranges 0-8 8-16` gives the option one range and leaves the others among the positional words; a word that reads
    as ranges is one, and the one other word is the model, unless --model names it. What is typed goes before what
    environment or file say.

    Raises:
        ZppError: (USAGE) no model, or more than one.
    """
    models = [word for word in words or () if not _reads_as_ranges(word)]
    more = [word for word in words or () if _reads_as_ranges(word)]
    if more and not on_command_line("ranges"):
        ranges = None
    if model is not None and (not models or on_command_line("model")):
        models.insert(0, str(model))
    if len(models) != 1:
        raise usage_error(
            f"{len(models)} models are named: {', '.join(models)}" if models else "no model is named",
            "Name one directory.",
        )
    return Path(models[0]), typed_ranges(ranges, more)


def host_list(hosts: str | None) -> list[str] | None:
    """The hosts of `--hosts a,b`, in order; None where none are given."""
    return [host.strip() for host in hosts.split(",")] if hosts else None


def tensor_parallel_sizes(words: str, engine: Engine) -> tuple[int, ...]:
    """The sizes of `--tensor-parallel-size 2` or `2,1,2`.

    Raises:
        ZppError: (USAGE) not numbers from 1 up, or more than one device a stage of an engine that knows only one.
    """
    try:
        sizes = tuple(int(word) for word in words.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise usage_error(f"--tensor-parallel-size {words}: not numbers from 1 up", "Write 2, or one a stage: 2,1,2.")
    if engine is not Engine.VLLM and set(sizes) != {1}:
        raise usage_error(
            f"--tensor-parallel-size {words}: a stage of the embedded engine runs on one device", "Use --engine vllm."
        )
    return sizes


def _reads_as_ranges(word: str) -> bool:
    return _RANGES.fullmatch(word.strip()) is not None
