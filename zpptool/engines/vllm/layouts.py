# SPDX-License-Identifier: Apache-2.0
"""The layouts of the key and value cache that all stages of a pipeline can have.

vLLM takes for granted that all workers run the same kinds of layers, and refuses workers whose lists differ. Stages of
a model that mixes kinds do not: one that has linear attention alone can have any layout, its neighbour one only.
"""

from __future__ import annotations

from collections.abc import Sequence


def common_layouts(told: Sequence[list[str]]) -> list[list[str]]:
    """The same list for every stage: what all can have, in the order that the choosiest of them prefers.

    Where they have nothing in common, their own lists, which vLLM then refuses.

    Args:
        told: by each stage, the most preferred first.
    """
    choosiest = min(told, key=len, default=[])
    common = [name for name in choosiest if all(name in names for names in told)]
    return [common] * len(told) if common else list(told)
