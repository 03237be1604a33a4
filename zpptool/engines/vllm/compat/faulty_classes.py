# SPDX-License-Identifier: Apache-2.0
"""Classes of vLLM that run unsplit and fail as a pipeline, vLLM's own included. Stages refuse them by name.

They were found by `scripts/vllm_coverage.py`. Another release of vLLM may have mended them: with one they are tried.
"""

from __future__ import annotations

from collections.abc import Iterable

from zpptool.errors import invalid_error

RELEASE = "0.32."
"""The beginning of the version of vLLM in which the classes are faulty."""
FAULTY_CLASS = "vLLM's class cannot be run in stages"
"""The beginning of the error with which a stage refuses one of them."""
FAULTY_CLASSES = {
    "Ernie4_5_MoeForCausalLM": "it ties the head to the embedding on every stage, also where there is neither",
    "GraniteMoeHybridForCausalLM": "it calls the layers of other stages too, and their placeholders hand on positions, "
    "the first argument by name",
    "MiniCPM3ForCausalLM": "it hands on a residual that is None, which vLLM's own runner cannot slice",
    "MoshiForCausalLM": "it is run by transformers' code, whose layers return a tuple; the placeholders for those of "
    "other stages do not",
    "ZayaForCausalLM": "it is run by transformers' code, whose every stage has the parameters that come before the "
    "layers",
}
"""Why each of them fails."""


def refuse_faulty_class(architectures: Iterable[str], num_stages: int, vllm_version: str) -> None:
    """Refuse a model whose class fails in stages.

    Args:
        architectures: the classes that the checkpoint's config names.
        num_stages: a pipeline of one stage is not refused.
        vllm_version: the installed release.

    Raises:
        ZppError: (INVALID) the message has the class and the reason.
    """
    if num_stages < 2 or not vllm_version.startswith(RELEASE):
        return
    for name in architectures:
        if name in FAULTY_CLASSES:
            raise invalid_error(
                f"{FAULTY_CLASS}: {name} of vLLM {vllm_version}: {FAULTY_CLASSES[name]}",
                "Run it unsplit, or with --engine transformers.",
            )
