# SPDX-License-Identifier: Apache-2.0
"""What a spare process imports in advance, beyond the worker and head modules: what all stages of a model need.

The invariant: no device is touched, because the devices that it may use are known only when it is assigned a stage.
"""

from __future__ import annotations

from zpptool.config.stage_spec import StageSpec
from zpptool.engines.transformers.calls import agreed_facts


def preload(like: StageSpec) -> None:
    """Have transformers import what it imports late.

    Args:
        like: a stage of the pipeline.
    """
    agreed_facts(like)
