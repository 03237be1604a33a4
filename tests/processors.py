# SPDX-License-Identifier: Apache-2.0
"""A logits processor of a user's own: stages import it by name (`--logits-processors processors:EveryNth`)."""

from __future__ import annotations

import torch
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor
from vllm.v1.sample.logits_processor.interface import BatchUpdate

TOKEN = 1000
"""What every nth token of an answer is."""


class EveryNth(AdapterLogitsProcessor):
    """Has every nth token be `TOKEN`, where a request asks so: `{"vllm_xargs": {"every": 7}}`.

    It counts by the answer so far, so an answer shows whether the processor was given all of it.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        super().__init__(vllm_config, device, is_pin_memory)

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Anything goes."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        super().update_state(batch_update)

    def new_req_logits_processor(self, params: SamplingParams):
        every = (params.extra_args or {}).get("every")
        if not every:
            return None

        def force(answer: list[int], logits: torch.Tensor) -> torch.Tensor:
            if len(answer) % every == every - 1:
                logits = torch.full_like(logits, -torch.inf)
                logits[TOKEN] = 0
            return logits

        return force
