# SPDX-License-Identifier: Apache-2.0
"""How a stage that runs vLLM's V2 model runner gets the tokens that the last stage has sampled.

vLLM's `PPHandler` broadcasts them over torch.distributed, which stages do not share, and hands them to the runner a
fixed number of calls later. Without asynchronous scheduling, vLLM's scheduler sends the same tokens to every stage with
the step that computes them. So an object of this module takes the handler's place and hands over the tokens of the
present step. It counts no calls: steps that are empty, lost or repeated cannot put it out of order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from vllm.utils.torch_utils import async_tensor_h2d

from zpptool.engines.vllm.compat.control_objects import SchedulerOutput
from zpptool.errors import ZppError


class RequestStates(Protocol):
    """What is read of V2's `RequestState`.

    Attributes:
        req_id_to_index: the row of each request.
        prefill_len: for each row, how many tokens the request had when it was registered; `np` is the array.
    """

    req_id_to_index: Mapping[str, int]
    prefill_len: Any


class SchedulerTokens:
    """Takes the place of vLLM's `PPHandler`, with the methods and attributes that the runner uses.

    Args:
        requests: the runner's.
        device: where the runner keeps them.
        is_last: whether this is the last stage. It samples the tokens itself and needs none.
    """

    def __init__(self, requests: RequestStates, device: torch.device, *, is_last: bool) -> None:
        self._requests = requests
        self._device = device
        self._is_last = is_last
        self._step: SchedulerOutput | None = None

    def expect(self, step: SchedulerOutput | None) -> None:
        """Name the step that the runner is about to compute; None for none."""
        self._step = step

    def get_prev_sampled_outputs(self, _drafts: torch.Tensor | None = None) -> dict[str, torch.Tensor] | None:
        """The tokens that were sampled since the requests of the step were computed last.

        Returns:
            what the runner's `postprocess_sampled` takes; None where there are none, and in a warm-up.

        Raises:
            ZppError: (FAILURE) the scheduler has sent other tokens than one for each such request.
        """
        step, self._step = self._step, None
        if step is None or self._is_last:
            return None
        index = self._requests.req_id_to_index
        lengths = self._requests.prefill_len.np
        cached = step.scheduled_cached_reqs
        sampled = sampled_since(
            cached.req_ids,
            cached.num_computed_tokens,
            cached.new_token_ids,
            [int(lengths[index[name]]) for name in cached.req_ids],
        )
        if not sampled:
            return None
        ones = torch.ones(len(sampled), dtype=torch.int32, device=self._device)
        return {
            "sampled_tokens": self._to_device([[token] for token in sampled.values()]),
            "num_sampled": ones,
            "num_rejected": torch.zeros_like(ones),
            "idx_mapping": self._to_device([index[name] for name in sampled]),
        }

    def _to_device(self, values: Sequence[Any]) -> torch.Tensor:
        """Copied without waiting for the device."""
        copied: torch.Tensor = async_tensor_h2d(list(values), device=self._device, dtype=torch.int64)
        return copied

    def receive(self, batch: Any, recv_drafts: bool = False) -> bool:
        """Whether every sequence of the batch has a token sampled in this step that a later step will compute."""
        from vllm.v1.worker.gpu.pp_utils import compute_need_sampled_mask  # imports the V2 runner's kernels

        mask = compute_need_sampled_mask(batch)
        return mask is not None and bool(mask.all())

    def broadcast(self, *_sampled: Any) -> None:
        """Send nothing: the head gets the tokens with the last stage's answer."""

    def on_req_idx_freed(self, req_idx: int) -> None:
        """Nothing is kept for a row."""

    def relay_aux_hidden_states(self, _received: Any, output: Any) -> Any:
        """Add nothing: only drafts need the hidden states of other layers, and speculative decoding is refused."""
        return output


def sampled_since(
    names: Sequence[str], computed: Sequence[int], tokens: Sequence[Sequence[int]], known: Sequence[int]
) -> dict[str, int]:
    """The sampled token of each request of a step that computes one.

    Args:
        names: the requests that were scheduled before.
        computed: for each, how many of its tokens are computed.
        tokens: for each, the tokens that the step computes.
        known: for each, how many tokens it had when it was registered on this stage; what comes after them is sampled.

    Raises:
        ZppError: (FAILURE) a request past its known tokens has no token, or a step has more than one sampled token.
    """
    if len(tokens) != len(names):
        raise ZppError(
            f"vLLM's scheduler sent the tokens of {len(tokens)} of {len(names)} sequences with a step",
            "It leaves them out with asynchronous scheduling, which does not work across stages.",
        )
    sampled = {}
    for name, start, own, length in zip(names, computed, tokens, known, strict=True):
        fresh = own[max(length - start, 0) :]
        if len(fresh) > 1 or (start >= length and not fresh):
            raise ZppError(
                f"a step computes {len(fresh)} sampled tokens of {name}, where a stage expects one",
                "Restart the pipeline with VLLM_USE_V2_MODEL_RUNNER=0, and report this with vLLM's version.",
            )
        if fresh:
            sampled[name] = fresh[0]
    return sampled
