# SPDX-License-Identifier: Apache-2.0
"""Which images of a request the stages have.

vLLM sends a request's images when it schedules the request for the first time, without those whose tokens are in the
prefix cache. If such a request is preempted, and the cache drops those tokens meanwhile, the images are needed after
all, and stage 0 would have nothing to encode. So they are sent before the step that needs them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zpptool.engines.vllm.compat.control_objects import SchedulerOutput
from zpptool.engines.vllm.compat.scheduler_classes import Request


class SentFeatures:
    """Follows the steps of a scheduler."""

    def __init__(self) -> None:
        self._partly_sent: set[str] = set()

    def missing_for(self, step: SchedulerOutput, requests: Mapping[str, Request]) -> dict[str, list[Any]]:
        """The images that stages need before a step, by request: all of each request that is resumed in this step, has
        an image to encode in it, and was sent in part.

        Args:
            step: the next step, which is counted as sent.
            requests: all that the scheduler has, by name.
        """
        self._partly_sent -= step.finished_req_ids
        self._partly_sent |= {
            new.req_id
            for new in step.scheduled_new_reqs
            if any(
                sent.data is not whole.data
                for sent, whole in zip(new.mm_features, requests[new.req_id].mm_features, strict=True)
            )
        }
        needed = step.scheduled_cached_reqs.resumed_req_ids & step.scheduled_encoder_inputs.keys() & self._partly_sent
        self._partly_sent -= needed
        return {name: requests[name].mm_features for name in sorted(needed)}

    def all_sent(self) -> None:
        """Note that the stages have all images of all requests: the live requests were restored."""
        self._partly_sent.clear()
