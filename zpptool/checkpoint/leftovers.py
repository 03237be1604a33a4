# SPDX-License-Identifier: Apache-2.0
"""Files that a training run leaves in a checkpoint and that no inference engine reads: logs, states, data."""

from __future__ import annotations

import re
from collections.abc import Sequence

MAX_NAMED = 20
"""Maximum number of leftovers that a note names."""
_FOLDERS = re.compile(
    r"checkpoint-\d+|global_step\d+|epoch[-_=]?\d+|runs|logs?|wandb|mlruns|lightning_logs|tensorboard|tb_logs"
)
"""Folders of the trainers of transformers, DeepSpeed, Lightning, and of what records a run."""
_FILES = re.compile(
    r"events\.out\.tfevents\..*"
    r"|.*\.(wandb|tfevents|log|jsonl|parquet|arrow|tfrecord|distcp)"
    r"|(optimizer|scheduler|scaler|rng_state|training_args|random_states)([-_.].*)?\.(pkl|npy|state)"
    r"|(trainer_state|trainer_log|all_results|train_results|eval_results|test_results|predict_results)\.json"
)


def is_leftover(path: str) -> bool:
    """Return whether a file is a leftover of a training run by its name.

    Args:
        path: of the file in the checkpoint, with slashes.
    """
    *folders, name = path.split("/")
    return any(_FOLDERS.fullmatch(folder) for folder in folders) or _FILES.fullmatch(name) is not None


def leftover_notes(paths: Sequence[str]) -> list[str]:
    """Return the note that names the leftovers which are not copied, as none or one item.

    Args:
        paths: of the leftovers in the checkpoint.
    """
    if not paths:
        return []
    named = ", ".join(paths[:MAX_NAMED])
    more = f" and {len(paths) - MAX_NAMED} more" if len(paths) > MAX_NAMED else ""
    return [f"left out what training left, which no engine reads: {named}{more}"]
