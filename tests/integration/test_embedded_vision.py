# SPDX-License-Identifier: Apache-2.0
"""The embedded engine runs models that take images in parts: the tokens of stock transformers, with images and without.

Tiny models with the processors of the published ones, in float32.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vision import ROOT, make_model, python_path

pytest.importorskip("torch")
pytest.importorskip("transformers")

import vision_parts

from zpptool.engines.transformers.api.image_processor import load_image_processor
from zpptool.engines.transformers.loading import load_config
from zpptool.engines.transformers.model import load_part
from zpptool.errors import ExitCode, ZppError
from zpptool.partition import LayerRange

pytestmark = [pytest.mark.torch, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("llava", tmp_path_factory.mktemp("llava") / "model")


@pytest.fixture(scope="module")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("qwen2_5_vl", tmp_path_factory.mktemp("qwen2_5_vl") / "model")


def test_llava_in_two_and_three_stages(llava: Path) -> None:
    vision_parts.compare("llava", llava, [(0, 2, 4), (0, 1, 3, 4), (0, 4)])


def test_positions_in_three_dimensions_without_torchvision(qwen2_5_vl: Path) -> None:
    """M-RoPE, and a processor whose videos would need torchvision."""
    vision_parts.compare("qwen2_5_vl", qwen2_5_vl, [(0, 2, 4), (0, 1, 3, 4)])


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind", "cuts"),
    [
        ("qwen3_vl", ("0,2,6", "0,2,4,6", "0,3,6")),  # the first layers take features of the tower (deepstack)
        ("gemma3", ("0,2,4", "0,1,3,4")),
        ("internvl", ("0,2,4", "0,1,3,4")),
        ("mistral3", ("0,2,4", "0,1,3,4")),
        ("idefics3", ("0,2,4", "0,1,3,4")),
    ],
)
def test_other_families(kind: str, cuts: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/vision_parts.py"), kind, str(tmp_path / "model"), *cuts],
        env={**os.environ, "PYTHONPATH": python_path()}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


def test_later_stages_have_no_tower(llava: Path) -> None:
    part = load_part(llava, 1, (LayerRange(0, 2), LayerRange(2, 4)))
    held = sum(parameter.numel() for parameter in part._cut.model.parameters() if not parameter.is_meta)
    layers = part._cut.model.get_decoder().layers[2:]
    own = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
    assert held == own + 320 * 128 + 128, "two layers, the LM head and the final norm"


def test_a_checkpoint_without_a_processor_takes_text_alone(llava: Path, tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((llava / name).read_bytes())
    why = load_image_processor(tmp_path, load_config(tmp_path))
    assert isinstance(why, str)
    assert why.startswith(("the model's processor cannot be loaded", "the checkpoint has no processor"))


def test_a_class_that_cannot_be_cut_is_refused_by_name_before_weights_are_read(tmp_path: Path) -> None:
    import torch
    from transformers import Blip2Config, Blip2ForConditionalGeneration

    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**small, "model_type": "opt", "vocab_size": 320, "ffn_dim": 32, "word_embed_proj_dim": 32}
    config = Blip2Config(
        vision_config={**small, "image_size": 28, "patch_size": 14}, text_config=text,
        qformer_config={**small, "encoder_hidden_size": 32, "vocab_size": 320}, num_query_tokens=2,
    )  # fmt: skip
    torch.manual_seed(0)
    Blip2ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ZppError, match="it cannot be proven that layers 0-1 of blip-2 run apart") as caught:
        load_part(tmp_path, 0, (LayerRange(0, 1), LayerRange(1, 2)))
    assert caught.value.exit_code == ExitCode.INVALID
