# SPDX-License-Identifier: Apache-2.0
"""Features of stock vLLM that stages do not support. They are refused before anything is loaded, each with its reason.

What vLLM itself refuses with pipeline parallelism is refused with vLLM's message. docs/compatibility.md has the list.
"""

from __future__ import annotations

import argparse
import importlib.util
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from zpptool.checkpoint.processor import TORCHVISION_FIX
from zpptool.config.unsupported_flags import UNSUPPORTED, Unsupported
from zpptool.errors import ZppError, usage_error


@dataclass(frozen=True, slots=True)
class Refusal:
    """One feature that stages do not support.

    Attributes:
        flag: as `vllm serve` spells it.
        is_requested: whether a value of that argument requests the feature.
        reason: why it is not supported.
    """

    flag: str
    is_requested: Callable[[Any], bool]
    reason: str

    @property
    def name(self) -> str:
        """The argument's name in a namespace."""
        return self.flag.removeprefix("--").replace("-", "_")


def _more_than_one(value: Any) -> bool:
    return value is not None and value > 1


def _request_of(found: Unsupported) -> Callable[[Any], bool]:
    """What requests an unsupported feature."""
    if found.above_one:
        return _more_than_one
    return bool if found.value is None else lambda value: value == found.value


REFUSALS = tuple(Refusal(flag, _request_of(found), found.reason) for flag, found in UNSUPPORTED.items())
"""In the order in which they are checked."""


def refuse_unsupported(args: argparse.Namespace) -> None:
    """Refuse the first argument that requests an unsupported feature.

    Raises:
        ZppError: (USAGE) the message names the flag and the reason.
    """
    for refusal in REFUSALS:
        if refusal.is_requested(getattr(args, refusal.name, None)):
            raise usage_error(f"{refusal.flag} does not work across stages: {refusal.reason}", "Leave it out.")


def refuse_scores_on_a_stage(score_type: str, on_the_last_stage: bool) -> None:
    """Refuse scoring by late interaction on the last stage: that stage keeps the vectors of a query until the documents
    arrive, no other process has them, and they would be lost with the stage.

    Args:
        score_type: how vLLM scores with the model.
        on_the_last_stage: whether the scores are computed where the vectors are, which is the default of vLLM's server.

    Raises:
        ZppError: (USAGE) the hint names the flag with which the server computes the scores.
    """
    if score_type == "late-interaction" and on_the_last_stage:
        raise usage_error(
            "the vectors of a query would be kept on the last stage until its documents arrive, and be lost with it",
            "Add --no-enable-flash-late-interaction: then vLLM's server computes the scores.",
        )


def vllms_refusal(cause: Exception) -> ZppError | None:
    """The error of a user whose arguments vLLM has refused when it made its configuration, or whose environment lacks
    what the model's images need; None for other errors."""
    if _lacks_torchvision(cause):
        return usage_error(
            "this model's code or its processor needs torchvision, which is not installed or does not import",
            TORCHVISION_FIX,
        )
    if not isinstance(cause, ValueError | NotImplementedError):
        return None
    if all(frame.f_code.co_name != "create_engine_config" for frame, _line in traceback.walk_tb(cause.__traceback__)):
        return None
    text = (
        "; ".join(str(error["msg"]) for error in cause.errors()) if isinstance(cause, ValidationError) else str(cause)
    )
    line = " ".join(text.replace("Value error, ", "").split())
    return usage_error(f"vLLM refuses this: {line}", "It holds for vLLM's own pipeline parallelism too.")


def _lacks_torchvision(cause: Exception) -> bool:
    """Whether an error comes from an import of torchvision. vLLM imports a model's class in a process of its own, and
    says only that this failed."""
    link: BaseException | None = cause
    while link is not None:
        if isinstance(link, ImportError | RuntimeError) and "torchvision" in str(link).lower():
            return True
        link = link.__cause__ or link.__context__
    return "failed to be inspected" in str(cause) and importlib.util.find_spec("torchvision") is None
