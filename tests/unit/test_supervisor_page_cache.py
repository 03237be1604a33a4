# SPDX-License-Identifier: Apache-2.0
"""Which tensors are read ahead."""

from __future__ import annotations

from pathlib import Path

from tests.checkpoints import llama, llama_config, write_checkpoint
from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.supervisor.standby.page_cache import read_ahead, weights_of


def specs(model: Path) -> list[StageSpec]:
    return [
        StageSpec(Engine.TRANSFORMERS, str(model), ((0, 2), (2, 4)), stage, "ipc:///b", "ipc:///c") for stage in (0, 1)
    ]


def test_each_tensor_of_all_stages_is_read_once(tmp_path: Path) -> None:
    tensors = llama(4)
    write_checkpoint(tmp_path, tensors, llama_config(4))
    first, second = specs(tmp_path)
    both = weights_of((first, second))
    assert sorted(tensor.name for tensor in both) == sorted(tensors)
    assert len(weights_of((first,))) < len(both)
    assert read_ahead(both)


def test_a_model_that_cannot_be_read_is_skipped(tmp_path: Path) -> None:
    assert weights_of(specs(tmp_path / "gone")) == []
