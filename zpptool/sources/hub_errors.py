# SPDX-License-Identifier: Apache-2.0
"""Translate errors of the Hugging Face Hub: gated, missing or private models, offline mode, no connection."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from zpptool.errors import ZppError, invalid_error
from zpptool.sources.names import HubId

_ANSWER_KINDS = {"HfHubHTTPError", "TransportError", "LocalTokenNotFoundError", "LocalEntryNotFoundError"}


@contextmanager
def translated_errors(model: HubId, token: str | None = None) -> Iterator[None]:
    """Translate errors of huggingface_hub and its HTTP client into ZppErrors.

    Args:
        model: the model that is read.
        token: the value of --token, which changes the hint.
    """
    try:
        yield
    except ZppError:
        raise
    except Exception as cause:
        known = _zpp_error_for(model, token, cause)
        if known is None:
            raise
        raise known from cause


def _zpp_error_for(model: HubId, token: str | None, cause: Exception) -> ZppError | None:
    kinds = {kind.__name__ for kind in type(cause).__mro__}
    if "OfflineModeIsEnabled" in kinds:
        return ZppError(
            f"{model.repo} is neither a local directory nor whole in the Hugging Face cache, and HF_HUB_OFFLINE"
            " forbids fetching it from the Hub",
            f"run `hf download {model.repo}` where there is a network, or unset HF_HUB_OFFLINE",
        )
    if "GatedRepoError" in kinds:
        return invalid_error(
            f"{model.repo} is gated: its terms have to be accepted first",
            f"accept them at https://huggingface.co/{model.repo}, and set HF_TOKEN to a token of that account",
        )
    if "RepositoryNotFoundError" in kinds:
        return invalid_error(
            f"{model.repo} is neither a local directory nor a model on the Hub that you may read",
            "check the name; the token given may not read it, or has expired"
            if token
            else "check the name; for a private model set HF_TOKEN",
        )
    if "RevisionNotFoundError" in kinds:
        return invalid_error(f"{model.repo} has no revision {model.revision}", "name a branch, a tag or a commit of it")
    if "HFValidationError" in kinds:
        return invalid_error(f"{model.repo} is neither a local directory nor a valid name of a model on the Hub")
    if kinds & _ANSWER_KINDS:
        first = str(cause).strip().splitlines() or [type(cause).__name__]
        return ZppError(
            f"{model.repo} is not a local directory, and fetching it from the Hub failed: {first[0]}",
            "name a local directory, or run the same command again: what was fetched before is kept",
        )
    return None
