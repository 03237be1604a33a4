# SPDX-License-Identifier: Apache-2.0
"""`zpptool join`: restore the checkpoint from its stages."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zpptool.cli.options import JsonOption, NoLockOption, QuietOption
from zpptool.console import Console, human_bytes

if TYPE_CHECKING:
    from zpptool.checkpoint.join import RestoredFile


def join(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The directory of a split, all stages in it.")],
    output_dir: Annotated[
        Path, typer.Option("--output-dir", "-o", metavar="OUT", help="Will hold the checkpoint.", show_default=False)
    ],
    no_lock: NoLockOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Restore the checkpoint that a split was made from: every tensor's bytes, the config, the small files.

    The weights are restored to the files they came from. Every byte is checked against the digests of the split.
    """
    from zpptool.checkpoint.join import plan_join, write_join

    console = Console(as_json=as_json, quiet=quiet)
    plan = plan_join(directory)
    with console.progress(f"joining {directory}", plan.nbytes) as advance:
        write_join(plan, output_dir, advance, lock=not no_lock)
    payload = {
        "path": str(output_dir),
        "stages": len(plan.stages),
        "files": [
            {
                "name": file.name,
                "bytes": file.nbytes,
                "tensors": len(file.tensors),
                "identical": file.identical,
                "hashed": file.hashed,
            }
            for file in plan.files
        ],
        "dropped": [{"tensor": name, "reason": reason} for name, reason in plan.manifests[0].dropped.items()],
        "left_out": [{"path": path, "reason": reason} for path, reason in plan.left_out.items()],
        "complete": plan.complete,
    }

    def show(out: Console) -> None:
        rows = [(file.name, len(file.tensors), human_bytes(file.nbytes), _sameness(file)) for file in plan.files]
        out.table(str(output_dir), ("file", "tensors", "size", "as the source's"), rows, right=("tensors", "size"))
        for name, reason in plan.manifests[0].dropped.items():
            out.line(f"not in the split: {name} ({reason})")
        for path, reason in plan.left_out.items():
            out.line(f"not in the split: {path} ({reason})")
        parts = (
            "" if plan.complete else "; not the whole checkpoint, for a part of it was left out of the split (above)"
        )
        out.line(f"joined {len(plan.stages)} stages{parts}")

    console.result(payload, show)


def _sameness(file: RestoredFile) -> str:
    """Say what is proven of a weight file: only digests of all its bytes prove that it is the source's."""
    if file.identical:
        return "yes"
    return "tensors only" if file.hashed else "not proven: the split was made with --no-hash"
