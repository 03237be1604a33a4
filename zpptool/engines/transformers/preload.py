# SPDX-License-Identifier: Apache-2.0
"""What a spare process does beyond the imports, before it knows its part: what all stages of a model do, and its head.

The invariant: no device is touched, for which one it may see is told only with the part.
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
