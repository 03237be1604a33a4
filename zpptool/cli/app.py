# SPDX-License-Identifier: Apache-2.0
"""The `zpptool` command: registration of the verbs, and `main`, which turns a `ZppError` into an exit code.

A verb's module parses, calls one library function and prints its result. It imports heavy modules inside the command's
body, so that `zpptool --help` is fast and loads no torch.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

import zpptool
from zpptool.cli.ask import chat, complete
from zpptool.cli.bench import bench
from zpptool.cli.cache import cache_app
from zpptool.cli.changes import rebalance, rollout, stage_app
from zpptool.cli.closed_streams import escape_unprintable, open_closed_streams
from zpptool.cli.config import config_app
from zpptool.cli.deploy import deploy
from zpptool.cli.doctor import doctor
from zpptool.cli.examples import epilog
from zpptool.cli.fetch import fetch
from zpptool.cli.join import join
from zpptool.cli.keys import keys_app
from zpptool.cli.plan import plan
from zpptool.cli.plan_ports import plan_ports
from zpptool.cli.profile import profile
from zpptool.cli.refusals import asks_for_json, refusal_of
from zpptool.cli.run_batch import run_batch
from zpptool.cli.run_stage import run_stage
from zpptool.cli.serve import serve
from zpptool.cli.settings import Settings, engine_arguments, install, read_settings, root_value
from zpptool.cli.split import split
from zpptool.cli.status import status, top
from zpptool.cli.test_pipeline import test_pipeline
from zpptool.cli.typed_flags import command_words
from zpptool.cli.validate import validate
from zpptool.cli.validate_ranges import validate_ranges
from zpptool.console import Console, begin_output, expect_json, print_error
from zpptool.errors import ExitCode, ZppError, in_words, usage_error
from zpptool.log import FORMAT_VARIABLE, LEVEL_VARIABLE, ROOT, LogFormat, LogLevel, configure

app = typer.Typer(
    name="zpptool",
    help="Run a large language model as a pipeline of independent stages on stock vLLM, over ZeroMQ.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    """Print the installed versions from their metadata, without importing the packages."""
    if wanted:
        from zpptool.doctor.versions import engine_versions

        print(f"zpptool {zpptool.__version__}")
        for name, version in engine_versions().items():
            print(f"{name} {version or 'is not installed'}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="Options as YAML; see docs/configuration.md.", envvar="ZPP_CONFIG"
        ),
    ] = None,
    log_level: Annotated[
        LogLevel,
        typer.Option("--log-level", help="The lowest level that is logged to stderr.", envvar=LEVEL_VARIABLE),
    ] = LogLevel.INFO,
    log_format: Annotated[
        LogFormat,
        typer.Option("--log-format", help="Log lines as text, or one JSON object a line.", envvar=FORMAT_VARIABLE),
    ] = LogFormat.TEXT,
) -> None:
    """Run a large language model as a pipeline of independent stages on stock vLLM, over ZeroMQ.

    An option may be typed, set in the environment (--base-port is ZPP_BASE_PORT), or given in the --config file; the
    first of these that has a value takes precedence.
    """
    configure(log_level, log_format)
    assert isinstance(ctx.command, TyperGroup)
    settings = Settings() if config is None else read_settings(config, ctx.command)
    json_found = settings.find(ctx.invoked_subcommand or ROOT, ["json"])
    if json_found is not None and json_found[0] is True:
        expect_json()
    level = LogLevel(root_value(ctx, ctx.command, settings, "log_level"))  # text in releases of typer before 0.28
    configure(level, LogFormat(root_value(ctx, ctx.command, settings, "log_format")))
    ctx.default_map = install(ctx.command, settings)
    if not ctx.obj and ctx.invoked_subcommand in TAKES_ENGINE_ARGUMENTS:
        ctx.obj = engine_arguments(settings, ctx.invoked_subcommand)
    if ctx.obj and ctx.invoked_subcommand not in TAKES_ENGINE_ARGUMENTS:
        raise usage_error(f"{ctx.invoked_subcommand} takes nothing after --, but got {' '.join(ctx.obj)}")


def _split_at_dashes(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments before `--`, and those after it, which are the engine's."""
    if "--" not in arguments:
        return arguments, []
    at = arguments.index("--")
    return arguments[:at], arguments[at + 1 :]


GLOBAL_OPTIONS = ("--config", "--log-level", "--log-format")
"""Options of zpptool itself, each with one value; they may be anywhere before `--`."""


def _global_options_first(arguments: list[str]) -> list[str]:
    """Put the options of zpptool itself before the command, where the parser expects them."""
    first: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument in GLOBAL_OPTIONS:
            first += [argument, *islice(remaining, 1)]
        elif argument.partition("=")[0] in GLOBAL_OPTIONS:
            first.append(argument)
        else:
            rest.append(argument)
    return first + rest


def _without_vllm_flags(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The arguments without vLLM's flags, and those flags; for commands that pass flags to the engine."""
    names = [place for place, word in enumerate(arguments) if word in TAKES_ENGINE_ARGUMENTS]
    if not names:
        return arguments, []
    at = names[0] + 1
    command = typer.main.get_command(app).commands[arguments[names[0]]]  # type: ignore[attr-defined]
    sorted_words = command_words(arguments[at:], command)
    return [*arguments[:at], *sorted_words.own], sorted_words.engine


app.command("split", epilog=epilog("split"))(split)
app.command("join", epilog=epilog("join"))(join)
app.command("validate", epilog=epilog("validate"))(validate)
app.command("validate-ranges", epilog=epilog("validate-ranges"))(validate_ranges)
app.command("fetch", epilog=epilog("fetch"))(fetch)
app.command("plan-ports", epilog=epilog("plan-ports"))(plan_ports)
app.command("plan", epilog=epilog("plan"))(plan)
app.command("deploy", epilog=epilog("deploy"))(deploy)
app.command("profile", epilog=epilog("profile"))(profile)
app.command("doctor", epilog=epilog("doctor"))(doctor)
app.command("run-stage", epilog=epilog("run-stage"))(run_stage)
app.command("serve", epilog=epilog("serve"))(serve)
app.command("run-batch", epilog=epilog("run-batch"))(run_batch)
app.command("status", epilog=epilog("status"))(status)
app.command("top", epilog=epilog("top"))(top)
app.command("chat", epilog=epilog("chat"))(chat)
app.command("complete", epilog=epilog("complete"))(complete)
app.command("bench", epilog=epilog("bench"))(bench)
app.command("rollout", epilog=epilog("rollout"))(rollout)
app.command("test-pipeline", epilog=epilog("test-pipeline"))(test_pipeline)
app.command("rebalance", epilog=epilog("rebalance"))(rebalance)
app.add_typer(cache_app, name="cache")
app.add_typer(keys_app, name="keys")
app.add_typer(stage_app, name="stage")
app.add_typer(config_app, name="config")

TAKES_ENGINE_ARGUMENTS = frozenset({"plan", "profile", "run-batch", "run-stage", "serve", "test-pipeline"})
"""The verbs that pass what follows `--` to the engine."""


def main() -> NoReturn:
    """Run the command line; turn every fault into one message and its exit code. SIGTERM is handled like Ctrl-C."""
    arguments, engine_arguments_given = _split_at_dashes(sys.argv[1:])
    begin_output(as_json=asks_for_json(arguments, os.environ))
    fault: ZppError | None = None
    code: int = ExitCode.OK
    try:
        _handle_interrupts(signal.default_int_handler, _interrupt)
        escape_unprintable()
        open_closed_streams()
        own, of_engine = _without_vllm_flags(_global_options_first(arguments))
        code = _run(own, [*of_engine, *engine_arguments_given])
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
        _forget_interrupted_string()
    except Exception as cause:
        fault = cause if isinstance(cause, ZppError) else refusal_of(cause)
        if fault is None:
            _handle_interrupts(_leave, _leave)
            with _ignoring_closed_terminal():
                print_error(ZppError(f"internal error: {in_words(cause)}", "Please report it, with the traceback."))
            raise
    _handle_interrupts(_leave, _leave)
    if code == ExitCode.INTERRUPTED:
        with _ignoring_closed_terminal():
            print("interrupted", file=sys.stderr)
        with _ignoring_closed_terminal():
            print_error(ZppError("interrupted", exit_code=ExitCode.INTERRUPTED))
    if fault is not None and fault.message:
        _report(fault)
    sys.exit(code if fault is None else fault.exit_code)


def _forget_interrupted_string() -> None:
    """Make `python -m zpptool` end with its own exit code after an interrupt that was handled.

    CPython marks a KeyboardInterrupt that leaves an `exec` of a string, as data classes use while they are made, and at
    the end of `python -m` ends the process by SIGINT, whatever became of the exception. Running another string clears
    the mark (`run_eval_code_obj` in its pythonrun.c).
    """
    exec("")


def _run(arguments: list[str], engine_arguments_given: list[str]) -> int:
    """Run the command, and return its exit code. Usage errors are raised."""
    try:
        ended = app(args=arguments, obj=engine_arguments_given, prog_name="zpptool", standalone_mode=False)
    except SystemExit as cause:
        ended = cause.code
    return ended if isinstance(ended, int) else ExitCode.OK


def _handle_interrupts(
    on_sigint: Callable[[int, FrameType | None], Any], on_sigterm: Callable[[int, FrameType | None], Any]
) -> None:
    """Handle Ctrl-C and SIGTERM, unless the parent process ignores them, as for a job in the background."""
    for number, handler in ((signal.SIGINT, on_sigint), (signal.SIGTERM, on_sigterm)):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt


def _leave(_number: int, _frame: FrameType | None) -> None:
    """End at once: the command has ended, and its result is being printed, or was."""
    os._exit(ExitCode.INTERRUPTED)


def _report(fault: ZppError) -> None:
    """Print an error."""
    if not logging.getLogger(ROOT).handlers:  # the fault is in the options that configure it
        configure(LogLevel.INFO, LogFormat.TEXT)
    with _ignoring_closed_terminal():
        Console().error(fault)


@contextmanager
def _ignoring_closed_terminal() -> Iterator[None]:
    """Ignore errors of printing to a closed terminal or a full disk, so that the exit code does not change."""
    try:
        yield
    except (OSError, ZppError):
        null = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(null, stream)  # for Python's own flush at the end, which would change the code
