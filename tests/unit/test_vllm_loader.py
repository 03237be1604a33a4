# SPDX-License-Identifier: Apache-2.0
"""A parameter without a tensor is accepted on a stage where vLLM does not use it, and nowhere else."""

from __future__ import annotations

import pytest

pytest.importorskip("vllm")

import torch
from torch import nn
from vllm.config import LoadConfig

from zpptool.config.engine_kind import Engine
from zpptool.config.stage_spec import StageSpec
from zpptool.engines.vllm.stage.loader import OwnTensorsLoader, used_elsewhere
from zpptool.errors import ZppError

pytestmark = pytest.mark.vllm


def spec_of(stage: int) -> StageSpec:
    return StageSpec(Engine.VLLM, "", ((0, 1), (1, 2), (2, 3)), stage, "", "")


def loader(stage: int) -> OwnTensorsLoader:
    made = OwnTensorsLoader(LoadConfig())
    made.spec = spec_of(stage)
    return made


class Cohere(nn.Module):
    """As vLLM makes it: with the last norm on every stage."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.LayerNorm(4)])
        self.norm = nn.LayerNorm(4, bias=False)


LAYER = {"layers.0.weight", "layers.0.bias"}


@pytest.mark.parametrize("stage", [0, 1])
def test_the_last_norm_is_accepted_before_the_last_stage_and_cannot_be_used(stage: int) -> None:
    model = Cohere()
    loader(stage).track_weights_loading(model, set(LAYER))
    assert torch.isnan(model.norm.weight).all()
    assert not torch.isnan(model.layers[0].weight).any()


def test_the_last_stage_must_have_it() -> None:
    with pytest.raises(ValueError, match=r"norm\.weight"):
        loader(2).track_weights_loading(Cohere(), set(LAYER))


def test_a_layer_must_have_its_tensors_on_every_stage() -> None:
    for stage in range(3):
        with pytest.raises(ValueError, match=r"layers\.0\.bias"):
            loader(stage).track_weights_loading(Cohere(), {"layers.0.weight", "norm.weight"})


class Bigcode(nn.Module):
    """As vLLM makes it of transformers' code on the last stage of a tied model: the positions are added a second
    time."""

    __module__ = "vllm.model_executor.models.transformers"

    def __init__(self) -> None:
        super().__init__()
        self.wpe = nn.Embedding(4, 4)


def test_what_would_be_used_twice_is_refused_by_name() -> None:
    with pytest.raises(ZppError, match=r"would use wpe\.weight on stage 2 too"):
        loader(2).track_weights_loading(Bigcode(), set())
    first = Bigcode()
    loader(0).track_weights_loading(first, {"wpe.weight"})
    assert not torch.isnan(first.wpe.weight).any()


@pytest.mark.parametrize(
    ("name", "parts", "stages"),
    [
        ("model.norm.weight", {"model", "lm_head"}, [0, 1]),
        ("language_model.model.decoder.final_layer_norm.bias", {"language_model", "qformer"}, [0, 1]),
        ("language_model.lm_head.weight", {"language_model"}, [0, 1]),
        ("model.embed_tokens.weight", {"model", "lm_head"}, [1, 2]),
        ("vision_tower.patch.weight", {"vision_tower", "model"}, [1, 2]),
        ("query_tokens", {"query_tokens", "qformer", "language_model"}, [1, 2]),
        ("query_tokens", {"query_tokens", "model"}, []),
        ("model.layers.1.input_layernorm.weight", {"model"}, []),
        ("model.layers.1.mlp.router.weight", {"model"}, []),
    ],
)
def test_on_which_stages_a_parameter_is_not_used(name: str, parts: set[str], stages: list[int]) -> None:
    assert [stage for stage in range(3) if used_elsewhere(name, 1 << 30, spec_of(stage), parts)] == stages
