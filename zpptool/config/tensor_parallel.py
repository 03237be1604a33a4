# SPDX-License-Identifier: Apache-2.0
"""Tensor-parallel sizes: read from the command line, given to stages, and compared with the heads of a model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zpptool.checkpoint.model_config import text_config
from zpptool.config.engine_kind import Engine
from zpptool.errors import usage_error

_HEADS = ("num_attention_heads", "n_head", "n_heads")
"""Keys of a config under which models state their number of attention heads."""


def sizes_of_stages(sizes: tuple[int, ...], num_stages: int) -> tuple[int, ...]:
    """Each stage's tensor-parallel size.

    Args:
        sizes: one for all stages, or one a stage.
        num_stages: how many stages.

    Raises:
        ZppError: (USAGE) another number of sizes.
    """
    if len(sizes) == 1:
        return sizes * num_stages
    if len(sizes) != num_stages:
        raise usage_error(f"{len(sizes)} tensor-parallel sizes are given for {num_stages} stages", "Give one a stage.")
    return sizes


def tensor_parallel_sizes(text: str, engine: Engine) -> tuple[int, ...]:
    """The sizes of `--tensor-parallel-size 2` or `2,1,2`.

    Raises:
        ZppError: (USAGE) not numbers from 1 up, or several devices a stage of an engine that supports one.
    """
    try:
        sizes = tuple(int(size) for size in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise usage_error(f"--tensor-parallel-size {text}: not numbers from 1 up", "Write 2, or one a stage: 2,1,2.")
    if engine is not Engine.VLLM and set(sizes) != {1}:
        raise usage_error(
            f"--tensor-parallel-size {text}: a stage of the embedded engine runs on one device", "Use --engine vllm."
        )
    return sizes


def size_faults(engine: Engine, sizes: Sequence[int]) -> list[str]:
    """Why stages of an engine cannot have these tensor-parallel sizes, stage by stage; empty if they can.

    Args:
        engine: what computes.
        sizes: each stage's tensor-parallel size.
    """
    if engine is Engine.VLLM:
        return []
    return [
        f"stage {stage} has tensor_parallel_size {size}, but a stage of the {engine} engine runs on one device"
        for stage, size in enumerate(sizes)
        if size > 1
    ]


def head_faults(config: Mapping[str, Any], sizes: Mapping[int, int]) -> list[str]:
    """Why a model's attention heads cannot be divided among the ranks of stages; empty if they can.

    vLLM gives each rank the same number of attention heads. Key-value heads are divided likewise, or each is repeated
    on the same number of ranks. A number that the config does not state is not checked.

    Args:
        config: the model's.
        sizes: tensor-parallel sizes by stage.
    """
    text = text_config(dict(config))
    heads = next((text[key] for key in _HEADS if isinstance(text.get(key), int)), None)
    shared = text.get("num_key_value_heads")
    faults = []
    for stage, size in sizes.items():
        given = f"stage {stage} has tensor_parallel_size {size}"
        if heads is not None and heads % size:
            faults.append(f"{given}, which does not divide {heads} attention heads")
        elif isinstance(shared, int) and shared > 0 and shared % size and size % shared:
            faults.append(f"{given}, which neither divides {shared} key-value heads nor is a multiple of them")
    return faults
