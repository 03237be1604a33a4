# SPDX-License-Identifier: Apache-2.0
"""config/engine_kind."""

from __future__ import annotations

from enum import StrEnum


class Engine(StrEnum):
    """What computes the layers of a stage."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"
