# SPDX-License-Identifier: Apache-2.0
"""A request whose images cannot travel to the stages is refused before the engine core gets it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

import torch  # noqa: E402
from vllm.exceptions import VLLMValidationError  # noqa: E402
from vllm.multimodal.inputs import (  # noqa: E402
    MultiModalBatchedField,
    MultiModalFeatureSpec,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)
from vllm.v1.engine.input_processor import InputProcessor  # noqa: E402

from zpptool.engines.vllm import request_check  # noqa: E402
from zpptool.engines.vllm.compat import input_processor  # noqa: E402
from zpptool.engines.vllm.request_check import check_request  # noqa: E402
from zpptool.errors import ZppError  # noqa: E402


def request(*parts: object) -> Any:
    items = [
        MultiModalKwargsItem({"pixel_values": MultiModalFieldElem(data=part, field=MultiModalBatchedField())})
        for part in parts
    ]
    features = [MultiModalFeatureSpec(item, "image", "id", PlaceholderRange(0, 1)) for item in items]
    return SimpleNamespace(mm_features=features)


def test_requests_with_and_without_images_pass() -> None:
    check_request(SimpleNamespace(mm_features=None))
    check_request(request(torch.ones(2), [torch.ones(1), (torch.ones(1, dtype=torch.bfloat16),)], 3, None))
    cached = MultiModalFeatureSpec(None, "image", "id", PlaceholderRange(0, 1))
    check_request(SimpleNamespace(mm_features=[cached]))


def test_images_that_are_too_large_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_check, "MOST_BYTES", 100)
    check_request(request(torch.ones(12), torch.ones(13)))
    with pytest.raises(ZppError, match=r"take 104 B after the model's processor, and 100 B are carried"):
        check_request(request(torch.ones(12), [torch.ones(13), torch.ones(1)]))


def test_what_is_not_carried_is_the_clients_error(monkeypatch: pytest.MonkeyPatch) -> None:
    made = request({"a": 1j})
    monkeypatch.setattr(InputProcessor, "process_inputs", lambda _processor, *_args, **_kwargs: made)
    input_processor.refuse_requests(check_request)
    with pytest.raises(VLLMValidationError, match=r"MultiModalFieldElem.data.* holds a builtins.complex"):
        InputProcessor.process_inputs(SimpleNamespace(), "id", {}, None, ())
