# SPDX-License-Identifier: Apache-2.0
"""The unsplit model as a directory of symbolic links into its stage directories, with every tensor once.

For a trial of a split without its source checkpoint. Nothing is copied. The stages' bytes are not verified here: that
is the task of `validate`.
"""

from __future__ import annotations

import json
from pathlib import Path

from zpptool.checkpoint.index import INDEX_NAME
from zpptool.checkpoint.join import first_holders
from zpptool.checkpoint.manifest import load_manifest


def join_stages(stages: list[Path], into: Path) -> None:
    """Fill the empty directory `into` with links to the weights and small files of all stages, and one index.

    For a tensor that several stages hold (a tied embedding) the index names the first of them.

    Args:
        stages: the stage directories.
        into: an empty directory.

    Raises:
        ZppError: (INVALID) a stage directory has no readable manifest.
    """
    manifests = {manifest.stage: manifest for manifest in map(load_manifest, stages)}
    for stage, manifest in zip(stages, manifests.values(), strict=True):
        for file in manifest.weight_files:
            (into / _linked_name(manifest.stage, file.name)).symlink_to((stage / file.name).resolve())
    holders = first_holders(manifests)
    weight_map = {name: _linked_name(stage, entry.file) for name, (stage, entry) in holders.items()}
    total = sum(entry.nbytes for _stage, entry in holders.values())
    for small in load_manifest(stages[0]).small_files:
        if small.path != INDEX_NAME:
            link = into / small.path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((stages[0] / small.path).resolve())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (into / INDEX_NAME).write_text(json.dumps(index, indent=1))


def _linked_name(stage: int, file: str) -> str:
    return f"stage-{stage}-{file}"
