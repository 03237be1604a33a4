# SPDX-License-Identifier: Apache-2.0
"""What stock vLLM offers and stages do not do, refused before anything is loaded, each with its reason.

What vLLM itself refuses with pipeline parallelism is refused in vLLM's words. docs/compatibility.md shows the list.
"""

from __future__ import annotations

import argparse
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from zpptool.errors import ZppError, usage_error


@dataclass(frozen=True, slots=True)
class Refusal:
    """One thing that stages do not do.

    Attributes:
        flag: as `vllm serve` spells it.
        is_asked: whether a value of that argument asks for it.
        reason: why not.
    """

    flag: str
    is_asked: Callable[[Any], bool]
    reason: str

    @property
    def name(self) -> str:
        """What the argument is called in a namespace."""
        return self.flag.removeprefix("--").replace("-", "_")


def _more_than_one(value: Any) -> bool:
    return value is not None and value > 1


_DRAFTS = "vLLM asks for a batch's drafts when the last stage may already have made those of the next batch"
_CONNECTOR = "what a KV connector tells its workers is not carried between stages"

REFUSALS = (
    Refusal("--async-scheduling", bool, "it broadcasts tokens over torch.distributed, which stages do not share"),
    Refusal("--speculative-config", bool, _DRAFTS),
    Refusal("--spec-method", bool, _DRAFTS),
    Refusal("--spec-model", bool, _DRAFTS),
    Refusal("--kv-transfer-config", bool, _CONNECTOR),
    Refusal("--ec-transfer-config", bool, "what an encoder connector tells its workers is not carried between stages"),
    Refusal("--kv-offloading-size", bool, _CONNECTOR),
    Refusal("--weight-transfer-config", bool, "new weights cannot be sent to stages that run"),
    Refusal("--nnodes", _more_than_one, "each stage is started where it is to run: zpptool run-stage"),
    Refusal("--decode-context-parallel-size", _more_than_one, "a stage does not share a sequence among devices"),
    Refusal("--prefill-context-parallel-size", _more_than_one, "a stage does not share a sequence among devices"),
    Refusal("--api-server-count", _more_than_one, "the ring has one head"),
)
"""In the order in which they are looked at."""


def refuse_what_stages_do_not_do(args: argparse.Namespace) -> None:
    """Refuse the first argument that asks for something that stages do not do.

    Raises:
        ZppError: (USAGE) it names the flag and the reason.
    """
    for refusal in REFUSALS:
        if refusal.is_asked(getattr(args, refusal.name, None)):
            raise usage_error(f"{refusal.flag} does not work across stages: {refusal.reason}", "Leave it out.")


def refuse_scores_on_a_stage(score_type: str, on_the_last_stage: bool) -> None:
    """Refuse to score by late interaction where the last stage would do it: it keeps the vectors of a query until the
    documents come, no other process has them, and they would be lost with it.

    Args:
        score_type: how vLLM scores with the model.
        on_the_last_stage: whether vLLM's server has that done where the vectors are made, which is its default.

    Raises:
        ZppError: (USAGE) it names the flag with which the server scores by itself.
    """
    if score_type == "late-interaction" and on_the_last_stage:
        raise usage_error(
            "the vectors of a query would be kept on the last stage until its documents come, and be lost with it",
            "Add --no-enable-flash-late-interaction: then vLLM's server scores by itself.",
        )


def vllms_refusal(cause: Exception) -> ZppError | None:
    """What vLLM says when it makes its configuration and refuses; None where the error came from somewhere else."""
    if not isinstance(cause, ValueError | NotImplementedError):
        return None
    if all(frame.f_code.co_name != "create_engine_config" for frame, _line in traceback.walk_tb(cause.__traceback__)):
        return None
    told = (
        "; ".join(str(error["msg"]) for error in cause.errors()) if isinstance(cause, ValidationError) else str(cause)
    )
    said = " ".join(told.replace("Value error, ", "").split())
    return usage_error(f"vLLM refuses this: {said}", "It holds for vLLM's own pipeline parallelism too.")
