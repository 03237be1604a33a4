# SPDX-License-Identifier: Apache-2.0
"""`zpptool keys`: generate a pipeline's key files, and show their public parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zpptool.cli.examples import epilog
from zpptool.cli.options import JsonOption, RequiredNumStagesOption
from zpptool.console import Console
from zpptool.errors import invalid_error

keys_app = typer.Typer(no_args_is_help=True)


@keys_app.callback()
def _keys() -> None:
    """Keys that authenticate the stages of a pipeline to each other and encrypt their links."""


@keys_app.command("generate", epilog=epilog("keys generate"))
def generate_keys(
    num_stages: RequiredNumStagesOption,
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="OUT", help="Will hold the files; created with mode 0700.")
    ] = Path("keys"),
    force: Annotated[
        bool, typer.Option("--force", help="Replace existing key files: every stage then needs its new one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Generate a key file for each stage. Copy each to its stage's host only, over a trusted channel (scp, a Secret).

    A file holds the stage's secret key and its neighbours' public keys; stage 0's holds the head's too. Start each
    stage with its file: zpptool run-stage ... --keys keys/stage_1.keys, or set ZPP_KEYS.
    """
    from zpptool.wire.security.key_files import generate, write_key_files

    made = generate(num_stages)
    written = write_key_files(made, output_dir, force=force)
    payload = {
        "pipeline": made[0].pipeline,
        "num_stages": num_stages,
        "files": [{"stage": item.stage, "path": str(path)} for item, path in zip(made, written, strict=True)],
    }

    def show(out: Console) -> None:
        out.line(f"pipeline {made[0].pipeline}, {num_stages} stages; each file to the host of its stage only:")
        for item, path in zip(made, written, strict=True):
            out.line(f"  {path}  {' and '.join(pair.place for pair in item.own)}")

    Console(as_json=as_json).result(payload, show)


@keys_app.command("show", epilog=epilog("keys show"))
def show_keys(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A key file, or a directory of key files.")],
    as_json: JsonOption = False,
) -> None:
    """Show whose keys a file holds, and which places it lets connect: public keys only. The file is checked too."""
    from zpptool.wire.security.key_files import SUFFIX, public_view, read_key_file

    paths = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
    if not paths:
        raise invalid_error(f"{path} holds no key files", "Generate some: zpptool keys generate --num-stages N.")
    read = [(file, read_key_file(file)) for file in paths]
    pipelines = {item.pipeline for _, item in read}
    if len(pipelines) > 1:
        raise invalid_error(
            f"{path} holds keys of {len(pipelines)} pipelines, which do not fit together", "Generate them again."
        )

    def show(out: Console) -> None:
        for file, item in read:
            out.line(f"{file}: stage {item.stage} of {item.num_stages}, pipeline {item.pipeline}, made {item.created}")
            for pair in item.own:
                out.line(f"  {pair.place:10} {pair.public}  (its secret key is here)")
            for place, public in item.peers.items():
                out.line(f"  {place:10} {public}")

    Console(as_json=as_json).result({"files": [{"path": str(f), **public_view(item)} for f, item in read]}, show)
