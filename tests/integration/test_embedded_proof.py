# SPDX-License-Identifier: Apache-2.0
"""No fault of the embedded engine passes the proof that precedes the loading of a stage, and no model passes that could
hide one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from mutants import MUTANTS, Mutant, apply  # noqa: E402

from zpptool.engines.transformers import model as engine  # noqa: E402
from zpptool.engines.transformers.model_class import model_class as class_of  # noqa: E402
from zpptool.engines.transformers.proof import proof, verdicts  # noqa: E402
from zpptool.engines.transformers.proof.sensitivity import check_sensitivity  # noqa: E402
from zpptool.engines.transformers.proof.small_model import MOST_PARAMETERS, random_model, small_config  # noqa: E402
from zpptool.engines.transformers.proof.whole_run import run_whole  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402
from zpptool.partition import LayerRange  # noqa: E402

pytestmark = pytest.mark.torch

SIZES: dict[str, Any] = {
    "num_hidden_layers": 4, "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2, "head_dim": 8,
}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
TOWER = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "gpt2": ("gpt2", {}),
    "mamba": ("mamba", {"state_size": 8}),
    "window": ("mistral", {"sliding_window": 8, "head_dim": 8}),
    "alibi": ("bloom", {}),
    "hybrid": ("olmo_hybrid", LINEAR),
    "vision": ("qwen2_5_vl", {"text_config": {**SIZES, "rope_parameters": ROPE}, "vision_config": TOWER}),
}


def config_of(name: str) -> Any:
    model_type, changes = MODELS[name]
    sizes = {} if "text_config" in changes else SIZES
    return transformers.AutoConfig.for_model(model_type, **sizes, **changes)


@pytest.fixture(autouse=True)
def nothing_is_proven(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(verdicts, "_in_this_process", set())


def prove(name: str, *layers: int) -> None:
    proof.prove_part(config_of(name), LayerRange(*layers), engine.load_unproven)


@pytest.mark.parametrize("name", MODELS)
def test_the_engine_as_it_is_passes(name: str) -> None:
    for layers in ((0, 1), (0, 2), (1, 3), (2, 4)):
        prove(name, *layers)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_fault_of_the_engine_is_found(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(mutant, monkeypatch)
    with pytest.raises(Exception) as caught:  # noqa: PT011 (what the model's own code raises is wrapped by load_part)
        prove(mutant.model, *mutant.layers)
    assert not isinstance(caught.value, SyntaxError | NameError | AttributeError | AssertionError), caught.value


def test_there_are_enough_faults_of_different_kinds() -> None:
    assert len({mutant.name for mutant in MUTANTS}) >= 30
    assert len({mutant.where for mutant in MUTANTS}) >= 10


def small_model(name: str) -> Any:
    model_class, config = class_of(config_of(name))
    return random_model(model_class, small_config(model_class, config))


@pytest.mark.parametrize("name", MODELS)
def test_a_model_whose_answers_depend_on_everything_may_prove(name: str) -> None:
    check_sensitivity(small_model(name))


@pytest.mark.parametrize(
    ("name", "silenced", "missing"),
    [
        ("llama", "layers.2.self_attn.v_proj", "the state of layer 2"),
        ("llama", "layers.2.self_attn.o_proj layers.2.mlp.down_proj", "layer 2"),
        ("mamba", "layers.1.mixer.out_proj", "layer 1"),
        ("llama", "lm_head", "layer 0"),
    ],
)
def test_a_model_in_which_something_does_not_count_proves_nothing(name: str, silenced: str, missing: str) -> None:
    model = small_model(name)
    for suffix in silenced.split():
        found = [module for path, module in model.named_modules() if path.endswith(suffix)]
        assert len(found) == 1
        torch.nn.init.zeros_(found[0].weight)
    with pytest.raises(ZppError, match=f"do not depend on {missing}$"):
        check_sensitivity(model)


def test_each_step_of_the_trial_has_other_results() -> None:
    for name in MODELS:
        run = run_whole(small_model(name))
        assert len(run.logits) == len(run.layer_outputs) == len(proof.STEPS)
        assert not any(torch.equal(one, other) for one, other in zip(run.logits, run.logits[1:], strict=False))


def test_a_stage_that_is_not_proven_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_model("llama").save_pretrained(tmp_path / "model")
    partition = (LayerRange(0, 2), LayerRange(2, 4))
    engine.load_part(tmp_path / "model", 1, partition)
    assert len(list((tmp_path / "zpptool/proofs").iterdir())) == 1
    monkeypatch.setattr(verdicts, "_in_this_process", set())
    monkeypatch.setattr(proof, "_engine_digest", lambda: "another engine")
    apply(next(mutant for mutant in MUTANTS if mutant.name == "weights are rounded"), monkeypatch)
    with pytest.raises(
        ZppError, match="layers 2-4 compute something else than in the whole model, for the prompt"
    ) as caught:
        engine.load_part(tmp_path / "model", 1, partition)
    assert caught.value.exit_code == ExitCode.INVALID
    assert len(list((tmp_path / "zpptool/proofs").iterdir())) == 1


LARGE = ("llama", "gemma2", "qwen3", "mixtral", "falcon", "phi3")


@pytest.mark.parametrize("model_type", LARGE)
def test_a_large_config_becomes_small_and_keeps_its_layers(model_type: str) -> None:
    model_class, config = class_of(transformers.AutoConfig.for_model(model_type))
    small = small_config(model_class, config)
    assert small.num_hidden_layers == config.num_hidden_layers
    assert getattr(small, "layer_types", None) == getattr(config, "layer_types", None)
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in model_class(small).parameters()) < MOST_PARAMETERS / 4
