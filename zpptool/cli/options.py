# SPDX-License-Identifier: Apache-2.0
"""The options that several commands share, each declared once, and functions that read their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zpptool.config.endpoints import DEFAULT_API_PORT, DEFAULT_BASE_PORT
from zpptool.config.engine_kind import Engine
from zpptool.console import Console
from zpptool.errors import usage_error
from zpptool.net.addresses import DEFAULT_HOST
from zpptool.partition import reads_as_ranges
from zpptool.wire.compression.adaptive import WireCodec

if TYPE_CHECKING:
    from zpptool.config.runtime_options import RuntimeOptions

DEFAULT_URL = f"http://{DEFAULT_HOST}:{DEFAULT_API_PORT}"
"""Where `zpptool serve` listens by default."""

# Output
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else there.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No notes and no progress.")]
NoLockOption = Annotated[
    bool, typer.Option("--no-lock", help="Do not lock OUT: only where no other zpptool can be writing to it.")
]

# The model and its partition
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="MODEL", help="A checkpoint: a directory, org/name on the Hugging Face Hub, or a URL."
    ),
]
RevisionOption = Annotated[
    str | None,
    typer.Option("--revision", metavar="REV", help="The branch, tag or commit of a model on the Hugging Face Hub."),
]
TYPED_TOKEN_WARNING = "every user of this machine can read --token in the list of processes (ps): set HF_TOKEN instead"


def _typed_config(ctx: typer.Context, path: Path | None) -> Path | None:
    """Refuse a configuration of vLLM that the file of settings names: it is read before that file is."""
    source = ctx.get_parameter_source("vllm_config")
    if source is not None and source.name == "DEFAULT_MAP":
        raise usage_error(
            "vllm-config cannot be named in the file of settings", "Type --vllm-config FILE, or set ZPP_VLLM_CONFIG."
        )
    return path


VllmConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--vllm-config",
        metavar="FILE",
        help="The YAML file of vllm serve --config. What is typed takes precedence.",
        callback=_typed_config,
    ),
]


def _checked_token(ctx: typer.Context, token: str | None) -> str | None:
    """Refuse an empty token, and warn of one that was typed."""
    if token is not None and not token.strip():
        raise usage_error("the token is empty", "Give it a value, or leave it out.")
    if on_command_line(ctx, "token"):
        Console().warn(TYPED_TOKEN_WARNING)
    return token


TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        help="For gated and private models on the Hugging Face Hub. Other users see what is typed: HF_TOKEN.",
        callback=_checked_token,
    ),
]
PipelineDirOption = Annotated[
    Path | None, typer.Option("--pipeline-dir", metavar="DIR", help="The stages that zpptool split wrote.")
]
RangesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--ranges",
        metavar="START-END ...",
        help="Layer ranges, one a stage, in order: --ranges 0-8 8-16 16-24. Half-open: 0-8 is layers 0 to 7.",
    ),
]
_num_stages = typer.Option("--num-stages", "--pipeline-parallel-size", metavar="N", help="How many stages.")
NumStagesOption = Annotated[int | None, _num_stages]
RequiredNumStagesOption = Annotated[int, _num_stages]
TotalLayersOption = Annotated[
    int | None,
    typer.Option("--total-layers", metavar="N", min=1, help="How many decoder layers the model has."),
]
_plan = typer.Option("--plan", metavar="FILE", help="The plan that zpptool plan wrote.", show_default=False)
PlanOption = Annotated[Path | None, _plan]
RequiredPlanOption = Annotated[Path, _plan]
LocalPlanOption = Annotated[
    Path | None, typer.Option("--plan", metavar="FILE", help="A plan of which every stage is on this machine.")
]
_rewritten_plan = typer.Option(
    "--plan", metavar="FILE", help="The plan that the stages were started from; it is rewritten."
)
RewrittenPlanOption = Annotated[Path | None, _rewritten_plan]
RequiredRewrittenPlanOption = Annotated[Path, _rewritten_plan]

# Addresses
BasePortOption = Annotated[
    int,
    typer.Option(
        "--base-port",
        metavar="PORT",
        help=f"The first stage's forward port, {DEFAULT_BASE_PORT} by default; the return port is this + N.",
        show_default=False,
    ),
]
LocalBasePortOption = Annotated[
    int | None,
    typer.Option("--base-port", metavar="PORT", help="Link the stages over tcp from this port on; else over ipc."),
]
_API_PORT_HELP = f"The port of the OpenAI API, beside stage 0; {DEFAULT_API_PORT} by default."
ApiPortOption = Annotated[int, typer.Option("--api-port", metavar="PORT", help=_API_PORT_HELP, show_default=False)]
StageApiPortOption = Annotated[
    int, typer.Option("--port", "--api-port", metavar="PORT", help=_API_PORT_HELP, show_default=False)
]
LocalApiPortOption = Annotated[
    int | None,
    typer.Option("--api-port", metavar="PORT", help="The port of the head's own API; any free one if not given."),
]
ApiHostOption = Annotated[
    str, typer.Option("--host", metavar="ADDR", help="The address that the OpenAI API listens on.")
]
HostsOption = Annotated[
    str | None,
    typer.Option(
        "--hosts",
        metavar="A,B,...",
        help=f"The machines, by name or address: one for all stages, or one a stage, in order. {DEFAULT_HOST} if none.",
    ),
]

# What computes, and how
EngineOption = Annotated[Engine, typer.Option("--engine", help="What computes the layers.")]
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
        "--tensor-parallel-size", metavar="N", help="Devices of a stage; plan and test-pipeline take one a stage: 2,1."
    ),
]
StartTimeoutOption = Annotated[
    float, typer.Option("--start-timeout", metavar="S", min=1, help="Seconds until all stages must be ready.")
]
StepTimeoutOption = Annotated[
    float, typer.Option("--step-timeout", metavar="S", min=1, help="Seconds that one step may take.")
]
BeatTimeoutOption = Annotated[
    float,
    typer.Option(
        "--beat-timeout", metavar="S", min=1, help="Seconds without progress at a step after which a stage hangs."
    ),
]
ShutdownTimeoutOption = Annotated[
    float,
    typer.Option(
        "--shutdown-timeout",
        "--drain-timeout",
        metavar="S",
        min=0,
        help="Seconds that answers in progress have to end after Ctrl-C or SIGTERM.",
    ),
]
RecoveryDeadlineOption = Annotated[
    float | None,
    typer.Option(
        "--recovery-deadline",
        metavar="S",
        min=0,
        show_default="120; 300 on a GPU",
        help="Seconds that a lost stage may take to come back while requests wait; 0: its loss ends the requests.",
    ),
]
StandbyOption = Annotated[
    int,
    typer.Option(
        "--standby",
        metavar="N",
        min=0,
        help="How many spare processes have the engine imported, to replace one that is lost.",
    ),
]
TraceOption = Annotated[
    Path | None,
    typer.Option("--trace", metavar="FILE", help="Write a timeline (Chrome trace) that ui.perfetto.dev shows."),
]
LogDirOption = Annotated[
    Path | None, typer.Option("--log-dir", metavar="DIR", help="Keep the logs of all processes here.")
]

# Links
WireCodecOption = Annotated[
    WireCodec,
    typer.Option("--wire-codec", help="Compress what stages send, without loss; auto: on links too thin for it."),
]
KeysOption = Annotated[
    Path | None,
    typer.Option(
        "--keys",
        metavar="FILE",
        help="This stage's key file, or the directory that zpptool keys generate wrote: links over tcp are then "
        "encrypted, and only the neighbours are admitted.",
    ),
]
InsecureOption = Annotated[
    bool, typer.Option("--insecure", help="Let links go without keys where other machines can reach them.")
]

# A running pipeline
_url = typer.Option("--url", metavar="URL", help="The front's address.")
UrlOption = Annotated[str | None, _url]
DefaultUrlOption = Annotated[str, _url]
TYPED_KEY_WARNING = (
    "every user of this machine can read --api-key in the list of processes (ps): set ZPP_API_KEY instead"
)


def _checked_key(ctx: typer.Context, key: str | None) -> str | None:
    """Refuse an empty key, and warn of one that was typed."""
    if key is not None and not key.strip():
        raise usage_error("the API key is empty", "Give it a value, or leave it out.")
    if on_command_line(ctx, "api_key"):
        Console().warn(TYPED_KEY_WARNING)
    return key


ApiKeyOption = Annotated[
    str | None, typer.Option("--api-key", metavar="KEY", help="The front's API key.", callback=_checked_key)
]
ServedModelOption = Annotated[
    str,
    typer.Option("--served-model-name", metavar="NAME", help="The model to ask; the first one if not given."),
]
SilenceOption = Annotated[
    float,
    typer.Option("--answer-timeout", metavar="S", min=0.1, help="The longest silence within an answer, in seconds."),
]
RunDirOption = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="DIR",
        help="The private directory of stage 0, or the status socket in it; detected if there is one pipeline.",
    ),
]


def on_command_line(ctx: typer.Context, name: str) -> bool:
    """Whether a parameter of a command was typed; otherwise it comes from environment, file or default.

    Args:
        ctx: of the running command.
        name: the parameter's name in Python.
    """
    source = ctx.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def typed_ranges(option: list[str] | None, arguments: list[str] | None) -> list[str]:
    """The ranges of a command line, in order: of `--ranges 0-8 8-16` the option gets one, the arguments the rest."""
    from zpptool.partition import split_range_words

    return split_range_words([*(option or []), *(arguments or [])])


def model_and_ranges(
    ctx: typer.Context, model: str | None, arguments: list[str] | None, ranges: list[str] | None
) -> tuple[str, list[str]]:
    """The model and the ranges of a command line that may have both among its positional arguments.

    `--ranges 0-8 8-16` gives the option one range and leaves the others among the arguments; an argument that reads as
    ranges is one, and the one other argument is the model, unless --model names it. What is typed takes precedence
    over environment and file.

    Args:
        ctx: of the running command, whose parameters are called `model` and `ranges`.
        model: the value of --model.
        arguments: the positional arguments.
        ranges: the values of --ranges.

    Raises:
        ZppError: (USAGE) no model, or more than one.
    """
    models = [argument for argument in arguments or () if not reads_as_ranges(argument)]
    more = [argument for argument in arguments or () if reads_as_ranges(argument)]
    if more and not on_command_line(ctx, "ranges"):
        ranges = None
    if model is not None and (not models or on_command_line(ctx, "model")):
        models.insert(0, model)
    if len(models) != 1:
        raise usage_error(
            f"{len(models)} models are named: {', '.join(models)}" if models else "no model is named",
            "Name one: a directory, or org/name on the Hugging Face Hub.",
        )
    return models[0], typed_ranges(ranges, more)


def runtime_options(ctx: typer.Context, **more: Any) -> RuntimeOptions:
    """Device and time limits of a command line, by the parameters that are declared here.

    Args:
        ctx: of the running command; a limit that it has no parameter for keeps its default.
        more: further attributes.
    """
    from zpptool.config.gpu_plan import computes_on_cpu
    from zpptool.config.recovery_deadline import recovery_deadline_s
    from zpptool.config.runtime_options import RuntimeOptions

    device = ctx.params["device"]
    limits = ("start_timeout", "step_timeout", "beat_timeout", "recovery_deadline")
    given = {f"{name}_s": ctx.params[name] for name in limits if name in ctx.params}
    if "recovery_deadline_s" in given:
        given["recovery_deadline_s"] = recovery_deadline_s(given["recovery_deadline_s"], on_cpu=computes_on_cpu(device))
    return RuntimeOptions(device=device, **given, **more)


def comma_separated(text: str | None) -> tuple[str, ...]:
    """The items of `a,b`, in order; none for no text."""
    return tuple(item.strip() for item in text.split(",")) if text else ()


def path_text(path: Path | None) -> str:
    """The absolute path as text; empty for none."""
    return str(path.resolve()) if path is not None else ""
