# SPDX-License-Identifier: Apache-2.0
"""The witness of the embedded engine: parts and whole have the same bits at every tap, and off means no hook."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from witnessed import Pipeline, run_reference  # noqa: E402

from zpptool.engines.transformers.model import load_part  # noqa: E402
from zpptool.partition import LayerRange  # noqa: E402
from zpptool.witness.compare import Verdict, compare  # noqa: E402
from zpptool.witness.options import Level  # noqa: E402
from zpptool.witness.taps import ATTENDED, KEY, LAYER_OUT, LOGITS, QUERY, VALUE, WIRE_IN, Tap  # noqa: E402

pytestmark = pytest.mark.torch
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [40, 41, 42], list(range(2, 80))]
CUTS = ((0, 1), (1, 3), (3, 4))
KINDS = ["llama", "gpt2", "mamba", "mixtral", "gemma2", "qwen3"]
EXTRAS = {"mamba": {"state_size": 8}}


@pytest.mark.parametrize(
    ("kind", "level"),
    [("llama", Level.BOUNDARY), ("llama", Level.LAYERS), *((kind, Level.OPS) for kind in KINDS)],
)
def test_parts_have_the_bits_of_the_whole_at_every_tap(
    kind: str, level: Level, tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = tiny_model(kind, layers=4, initializer_range=0.5, **EXTRAS.get(kind, {}))
    reference = run_reference(model, tmp_path, level, PROMPTS, 5)
    pipeline = Pipeline(model, tmp_path, level, CUTS)
    pipeline.run(PROMPTS, 5)
    outcome = compare(reference, pipeline.records())
    assert outcome.first is None
    assert outcome.verdict is Verdict.IDENTICAL
    layers = {layer for layer, _step in outcome.cells}
    assert layers >= ({*range(-1, 5)} if level.has_layers else {-1, 0, 2, 4})
    tokens = sum(len(prompt) + 4 for prompt in PROMPTS)
    per_token = {Level.BOUNDARY: 4, Level.LAYERS: 12, Level.OPS: 18}[level]
    assert outcome.rows > per_token * tokens


def test_the_taps_within_a_layer(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama", layers=4, initializer_range=0.5)
    taps = run_reference(model, tmp_path, Level.OPS, PROMPTS[:1], 2).steps[0].layout.taps
    assert [tap.name for tap in taps if tap.layer == 2] == [
        "call position_embeddings.0", "call position_embeddings.1", "call position_ids", "input_layernorm",
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", QUERY, KEY, VALUE, ATTENDED, "self_attn.o_proj",
        "self_attn", "post_attention_layernorm", "mlp.gate_proj", "mlp.act_fn", "mlp.up_proj", "mlp.down_proj", "mlp",
        "state after keys", "state after values", LAYER_OUT,
    ]  # fmt: skip
    assert [tap.name for tap in taps if tap.layer == 4] == ["model.norm", "lm_head", LOGITS]
    assert Tap(0, WIRE_IN) not in taps


def test_without_a_witness_there_is_no_hook(tiny_model: Callable[..., Path]) -> None:
    part = load_part(tiny_model("llama", layers=4), 1, tuple(LayerRange(*cut) for cut in CUTS))
    hooks = {
        name: [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        for name, module in part.model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks
    }
    assert list(hooks) == ["model.layers.2"], "the one that ends the forward pass after the stage's last layer"


def test_a_record_takes_eight_bytes_a_layer_and_token(tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_model("llama", layers=30)
    sizes = []
    for length in (20, 220):
        run_reference(model, tmp_path, Level.LAYERS, [list(range(2, 2 + length))], 1)
        sizes.append((tmp_path / "reference.zppw").stat().st_size)
    per_token = (sizes[1] - sizes[0]) / 200
    assert 30 * 8 < per_token < 300
