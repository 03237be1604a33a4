# SPDX-License-Identifier: Apache-2.0
"""A stage without the first layer detects what a model does to hidden states before its layers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm]

import torch  # noqa: E402
from torch import nn  # noqa: E402
from vllm.model_executor.models.utils import PPMissingLayer  # noqa: E402

from zpptool.engines.vllm.compat.transformers_backend import changes_hidden_states  # noqa: E402


class Decoder(nn.Module):
    """The structure of transformers' code: something, then the layers."""

    def __init__(self, before: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.before = before
        self.layers = nn.ModuleList([PPMissingLayer(), nn.Linear(8, 8)])

    def forward(self, inputs_embeds: torch.Tensor, **_others: Any) -> torch.Tensor:
        states = self.before(inputs_embeds)
        for layer in self.layers:
            states = layer(states)
        return states


def wrapped(decoder: nn.Module) -> nn.Module:
    """The model as vLLM wraps it."""
    model = nn.Module()
    model.model, model.text_config = decoder, SimpleNamespace(hidden_size=8)
    return model


def needs_more(_states: torch.Tensor) -> torch.Tensor:
    raise KeyError("pixel_values")


@pytest.mark.parametrize(
    ("before", "changes"),
    [
        (lambda states: states, False),
        (lambda states: states * 1.5, True),
        (lambda states: nn.functional.rms_norm(states, (8,)), True),
        (needs_more, False),
    ],
    ids=["nothing", "scales", "normalises", "needs more"],
)
def test_what_comes_before_the_layers_is_detected(
    before: Callable[[torch.Tensor], torch.Tensor], changes: bool
) -> None:
    model = wrapped(Decoder(before))
    assert changes_hidden_states(model) is changes
    assert not model.model.layers[0]._forward_pre_hooks


def test_a_model_without_a_placeholder_is_not_probed() -> None:
    decoder = Decoder(lambda states: states * 2)
    decoder.layers[0] = nn.Linear(8, 8)
    assert changes_hidden_states(wrapped(decoder)) is False
