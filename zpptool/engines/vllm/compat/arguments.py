# SPDX-License-Identifier: Apache-2.0
"""The command line of `vllm serve`, as every process of a pipeline parses it."""

from __future__ import annotations

import argparse
import difflib
from typing import NoReturn

from vllm.entrypoints.cli.serve import make_arg_parser, validate_parsed_serve_args
from vllm.utils.argparse_utils import FlexibleArgumentParser

from zpptool.config.engine_arguments import DECIDED, PIPELINE_SIZE
from zpptool.config.engine_kind import BALANCED_SCHEDULER, RECOVERING_SCHEDULER
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.compat.platform import device_type
from zpptool.engines.vllm.compat.unsupported import refuse_unsupported
from zpptool.errors import usage_error

DRAINING_MIDDLEWARE = "zpptool.engines.vllm.draining.DrainingMiddleware"
"""Imported by the API server, by this name."""
ENGINE_CORE_STOP_S = 3
"""Seconds that the engine core has to stop the ring after SIGTERM; with vLLM's own default, 0, it would be killed at
once. Requests in progress are ended before (`process.signals.CUT_SIGNAL`)."""


def serve_parser() -> argparse.ArgumentParser:
    """The parser of `vllm serve`. It raises `argparse.ArgumentError` where vLLM's own exits."""
    parser: argparse.ArgumentParser = make_arg_parser(
        _ServeParser(prog="zpptool run-stage ... --", exit_on_error=False)
    )
    return parser


class _ServeParser(FlexibleArgumentParser):
    """Reports a fault in one line, where argparse prints several hundred lines of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the fault. For an unknown flag the message names the closest known one."""
        unknown = next((word.partition("=")[0] for word in message.split() if word.startswith("--")), "")
        if unknown and message.startswith("unrecognized"):
            near = difflib.get_close_matches(unknown.replace("_", "-"), self._option_string_actions, n=1)
            message += f" (did you mean {near[0]}?)" if near else ""
        raise argparse.ArgumentError(None, message)


def serve_arguments(spec: StageSpec, executor_class: type | None) -> argparse.Namespace:
    """What `vllm serve` would have parsed.

    vLLM refuses an executor given by name when pipeline_parallel_size > 1, so the class object is set on the namespace.

    Args:
        spec: the process's stage.
        executor_class: runs the engine's steps; None for vLLM's own executor.

    Raises:
        ZppError: (USAGE) a device that this vLLM is not built for, or an engine argument that is unknown or not
            supported across stages.
    """
    command_line = [
        spec.model, "--dtype", spec.dtype,
        "--host", spec.api_host, "--port", str(spec.api_port), "--no-async-scheduling",
        "--shutdown-timeout", str(ENGINE_CORE_STOP_S),
        *(("--served-model-name", spec.served_name) if spec.served_name else ()), *spec.engine_args,
    ]  # fmt: skip
    parser = serve_parser()
    parser.set_defaults(pipeline_parallel_size=None)
    try:
        args = parser.parse_args(command_line)
    except argparse.ArgumentError as cause:
        raise usage_error(f"vLLM does not take this: {cause}") from cause
    if args.pipeline_parallel_size is not None:
        raise usage_error(f"{PIPELINE_SIZE} after -- is decided by zpptool", DECIDED[PIPELINE_SIZE])
    args.pipeline_parallel_size = spec.num_stages
    args.model = args.model_tag or args.model
    if spec.device not in ("auto", device_type()):
        raise usage_error(
            f"this vLLM computes on {device_type()}, not on {spec.device}",
            "vLLM is built for one kind of device: install the build for the other, or leave --device out.",
        )
    if args.tensor_parallel_size != 1 or args.data_parallel_size != 1:
        raise usage_error(
            "--tensor-parallel-size and --data-parallel-size after -- would be every stage's, and the head's",
            "Give --tensor-parallel-size before the --: it is this stage's own. --data-parallel-size must be 1.",
        )
    refuse_unsupported(args)
    if executor_class is not None:
        args.distributed_executor_backend = executor_class
        args.middleware = [*args.middleware, DRAINING_MIDDLEWARE]
        if args.scheduler_cls is None:
            args.scheduler_cls = BALANCED_SCHEDULER if spec.num_stages > 1 else RECOVERING_SCHEDULER
    validate_parsed_serve_args(args)
    return args
