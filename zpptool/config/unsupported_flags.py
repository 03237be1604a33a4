# SPDX-License-Identifier: Apache-2.0
"""Flags of vLLM with features that stages do not support, each with its reason. docs/compatibility.md has the list."""

from __future__ import annotations

from typing import NamedTuple


class Unsupported(NamedTuple):
    """Why a flag is refused: with `above_one` only for values above 1, with `value` only for that one."""

    reason: str
    above_one: bool = False
    value: str | None = None


_DRAFTS = "vLLM asks for a batch's drafts when the last stage may already have made those of the next batch"
_CONNECTOR = "what a KV connector sends its workers is not carried between stages"

UNSUPPORTED = {
    "--async-scheduling": Unsupported("it broadcasts tokens over torch.distributed, which stages do not share"),
    "--speculative-config": Unsupported(_DRAFTS),
    "--spec-method": Unsupported(_DRAFTS),
    "--spec-model": Unsupported(_DRAFTS),
    "--kv-transfer-config": Unsupported(_CONNECTOR),
    "--ec-transfer-config": Unsupported("what an encoder connector sends its workers is not carried between stages"),
    "--mm-processor-cache-type": Unsupported(
        "it keeps processed images in memory that other machines do not share", value="shm"
    ),
    "--video-pruning-rate": Unsupported("stage 0 would change positions that later stages know from the request"),
    "--mm-encoder-only": Unsupported("stages divide the layers that it leaves out"),
    "--kv-offloading-size": Unsupported(_CONNECTOR),
    "--weight-transfer-config": Unsupported("new weights cannot be sent to stages that run"),
    "--nnodes": Unsupported("each stage is started where it is to run: zpptool run-stage", above_one=True),
    "--decode-context-parallel-size": Unsupported("a stage does not share a sequence among devices", above_one=True),
    "--prefill-context-parallel-size": Unsupported("a stage does not share a sequence among devices", above_one=True),
    "--api-server-count": Unsupported("the ring has one head", above_one=True),
}
"""By flag, in the order in which they are checked."""
