# SPDX-License-Identifier: Apache-2.0
"""A later stage builds a vision-language model without its tower, whatever number of images a prompt may have."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm")
pytestmark = pytest.mark.vllm

from torch import nn  # noqa: E402
from vllm.model_executor.models.interfaces import SupportsMultiModal  # noqa: E402
from vllm.model_executor.models.utils import StageMissingLayer  # noqa: E402

from zpptool.engines.vllm.compat import towers  # noqa: E402

MANY_IMAGES = SimpleNamespace(
    model_config=SimpleNamespace(
        get_multimodal_config=lambda: SimpleNamespace(get_limit_per_prompt=lambda _modality: 999)
    )
)


class Tiny(nn.Module, SupportsMultiModal):
    """A tower, a projector, and a decoder, made as vLLM's models make them."""

    def __init__(self) -> None:
        super().__init__()
        with self._mark_tower_model(MANY_IMAGES, {"image", "video"}):
            self.tower = nn.Linear(4, 4)
            self.projector = nn.Linear(4, 4)
        self.decoder = nn.Linear(4, 4)


@pytest.fixture
def later_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SupportsMultiModal, "_mark_tower_model", SupportsMultiModal._mark_tower_model)
    towers.leave_out_towers()
    towers.leave_out_towers()


def test_stage_0_has_all_weights() -> None:
    assert len(dict(Tiny().named_parameters())) == 6


def test_a_later_stage_has_no_weights_of_the_tower(later_stage: None) -> None:
    model = Tiny()
    assert set(dict(model.named_parameters())) == {"decoder.weight", "decoder.bias"}
    assert isinstance(model.tower, StageMissingLayer)
    assert model.tower.weight.is_meta
    with pytest.raises(RuntimeError, match="should not be called"):
        model.projector(None)


def test_a_later_stage_runs_no_encoder() -> None:
    runner = SimpleNamespace(supports_mm_inputs=True)
    towers.run_no_encoder(SimpleNamespace(worker=SimpleNamespace(model_runner=runner)))
    assert not runner.supports_mm_inputs
