# SPDX-License-Identifier: Apache-2.0
"""The images that vLLM left out of a request's first step are sent when the request is resumed and needs them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from vllm.multimodal.inputs import (  # noqa: E402
    MultiModalFeatureSpec,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput  # noqa: E402

from zpptool.engines.vllm.core.sent_features import SentFeatures  # noqa: E402


def request(name: str, computed: int) -> Any:
    """A request with two images at 0-4 and 8-12, of which the prefix cache has that many tokens."""
    features = [
        MultiModalFeatureSpec(MultiModalKwargsItem.dummy(), "image", f"{name}{place}", PlaceholderRange(place, 4))
        for place in (0, 8)
    ]
    return SimpleNamespace(
        request_id=name, prompt_token_ids=list(range(12)), mm_features=features, num_computed_tokens=computed,
        sampling_params=None, pooling_params=None, lora_request=None, prompt_embeds=None, prompt_is_token_ids=None,
        replay_start=0,
    )  # fmt: skip


def step(*new: Any, resumed: tuple[str, ...] = (), finished: tuple[str, ...] = (), encode: str = "") -> SchedulerOutput:
    cached = dataclasses.replace(CachedRequestData.make_empty(), req_ids=list(resumed), resumed_req_ids=set(resumed))
    return dataclasses.replace(
        SchedulerOutput.make_empty(),
        scheduled_new_reqs=[NewRequestData.from_request(request, ([],)) for request in new],
        scheduled_cached_reqs=cached,
        scheduled_encoder_inputs={name: [0] for name in encode},
        finished_req_ids=set(finished),
    )


def test_only_a_resumed_request_that_was_sent_in_part_and_encodes_an_image_is_sent_again() -> None:
    whole, partly = request("w", 0), request("p", 6)
    requests = {"w": whole, "p": partly}
    sent = SentFeatures()
    first = step(whole, partly, encode="wp")
    assert first.scheduled_new_reqs[1].mm_features[0].data is None
    assert sent.missing_for(first, requests) == {}
    assert sent.missing_for(step(resumed=("w", "p")), requests) == {}
    assert sent.missing_for(step(resumed=("w", "p"), encode="wp"), requests) == {"p": partly.mm_features}
    assert sent.missing_for(step(resumed=("w", "p"), encode="wp"), requests) == {}


def test_a_request_that_has_ended_or_was_restored_is_not_sent_again() -> None:
    sent = SentFeatures()
    for forget in (sent.all_sent, lambda: sent.missing_for(step(finished=("p",)), {})):
        partly = request("p", 6)
        sent.missing_for(step(partly), {"p": partly})
        forget()
        assert sent.missing_for(step(resumed=("p",), encode="p"), {"p": partly}) == {}
