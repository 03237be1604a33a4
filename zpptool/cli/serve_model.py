# SPDX-License-Identifier: Apache-2.0
"""Which model `zpptool serve` serves, and where it is on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import typer

from zpptool.cli.options import model_and_ranges
from zpptool.console import Console
from zpptool.errors import usage_error


class ServedModel(NamedTuple):
    """What is to be served.

    Attributes:
        whole: the full checkpoint; None if there is a directory of stages, or a plan that names the model.
        stages: the directory of stages; None if there is a full checkpoint.
        ranges: the layer ranges, as typed.
        source: names the model and its state beyond this machine; empty for a path.
        served: what requests call the model by default; empty for the path.
    """

    whole: Path | None
    stages: Path | None
    ranges: list[str]
    source: str = ""
    served: str = ""


def find_served_model(
    ctx: typer.Context,
    pipeline_dir: Path | None,
    plan_file: Path | None,
    named: tuple[str | None, str | None, str | None],
    arguments: list[str] | None,
    ranges: list[str] | None,
    console: Console,
) -> ServedModel:
    """The full checkpoint or the directory of stages, and the ranges. A model on the Hub is downloaded once.

    Args:
        ctx, pipeline_dir, plan_file, arguments, ranges: of the command.
        named: the values of --model, --revision and --token.
        console: shows the progress of a download.

    Raises:
        ZppError: (USAGE) no model is named, or two are; as `whole_model`.
    """
    model, revision, token = named
    text: str | None = None
    typed: list[str] = list(ranges or ())
    if pipeline_dir is not None and ranges:
        raise usage_error("--pipeline-dir has its ranges; leave --ranges out", "Split again for other ranges.")
    if pipeline_dir is not None and plan_file is None and (model or arguments):
        raise usage_error("a model and --pipeline-dir are named", "Name one of them.")
    if model or arguments or (pipeline_dir is None and plan_file is None):
        text, typed = model_and_ranges(ctx, model, arguments, ranges)
    if text is None and plan_file is not None and pipeline_dir is None:
        from zpptool.config.plan import load_plan_file
        from zpptool.sources.names import is_remote

        planned = load_plan_file(plan_file).model
        text = planned if is_remote(planned) else None
    if text is None:
        return ServedModel(None, pipeline_dir, typed)
    from zpptool.sources.located import whole_model
    from zpptool.sources.names import ModelName

    found = whole_model(ModelName(text, revision, token), console)
    if pipeline_dir is None and any(found.directory.glob("stage_*/zpp-stage.json")):
        return ServedModel(None, found.directory, typed)
    return ServedModel(found.directory, pipeline_dir, typed, found.source, found.served)
