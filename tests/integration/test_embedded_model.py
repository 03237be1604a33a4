# SPDX-License-Identifier: Apache-2.0
"""Parts of a model, chained by direct calls, compute bit for bit what the unsplit model computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from zpptool.checkpoint.index import read_index  # noqa: E402
from zpptool.checkpoint.split import split_checkpoint  # noqa: E402
from zpptool.checkpoint.stage_tensors import load_plan  # noqa: E402
from zpptool.engines.transformers.model import HIDDEN_STATES, PartialModel, load_part  # noqa: E402
from zpptool.engines.transformers.sampling import Sampler, SamplingParams  # noqa: E402
from zpptool.engines.transformers.unsplit import generate, load_unsplit  # noqa: E402
from zpptool.errors import ExitCode, ZppError  # noqa: E402
from zpptool.partition import LayerRange, Partition  # noqa: E402

pytestmark = pytest.mark.torch

LAYERS = 5
PROMPT = [int(token) for token in torch.randint(2, 300, (24,), generator=torch.Generator().manual_seed(3))]
CUTS = ((0, 2, 5), (0, 1, 4, 5), (0, 1, 2, 3, 4, 5))
"""Two stages, three uneven ones, and one for each layer."""
WINDOW = {"sliding_window": 8}
MLA = {
    "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
    "moe_intermediate_size": 16, "first_k_dense_replace": 2,
}  # fmt: skip
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, untied": ("llama", {"tied": False}),
    "mistral, window": ("mistral", WINDOW),
    "qwen2": ("qwen2", {}),
    "qwen2, window in later layers": ("qwen2", {**WINDOW, "use_sliding_window": True, "max_window_layers": 2}),
    "qwen3": ("qwen3", {}),
    "gemma2": ("gemma2", {**WINDOW, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {**WINDOW, "query_pre_attn_scalar": 8, "sliding_window_pattern": 3}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {}),
    "gpt_neox": ("gpt_neox", {}),
    "opt": ("opt", {"init_std": 0.3}),
    "opt, projected": ("opt", {"init_std": 0.3, "word_embed_proj_dim": 16, "do_layer_norm_before": False}),
    "falcon, multi-query": ("falcon", {"multi_query": True}),
    "falcon, new decoder": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, alibi": ("falcon", {"alibi": True, "bias": True, "parallel_attn": False, "multi_query": False}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe, every second layer": ("qwen3_moe", {"decoder_sparse_step": 2}),
    "deepseek_v3": ("deepseek_v3", MLA),
    "gpt_oss": ("gpt_oss", {**WINDOW, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "bloom": ("bloom", {"n_head": 4}),
    "gptj": ("gptj", {"rotary_dim": 4, "tied": False}),
    "stablelm": ("stablelm", {}),
    "cohere2, window": ("cohere2", WINDOW),
    "olmo2": ("olmo2", {}),
    "granite": ("granite", {"embedding_multiplier": 2.0, "logits_scaling": 3.0}),
    "starcoder2": ("starcoder2", {}),
    "qwen3_next, linear attention": (
        "qwen3_next",
        {**LINEAR, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
         "shared_expert_intermediate_size": 16, "full_attention_interval": 2},
    ),
    "olmo_hybrid, linear attention": ("olmo_hybrid", LINEAR),
    "mamba": ("mamba", {"state_size": 8}),
    "mamba2": ("mamba2", {"num_heads": 4, "head_dim": 16, "n_groups": 1, "state_size": 8}),
    "falcon_mamba": ("falcon_mamba", {"state_size": 8}),
    "nemotron_h": (
        "nemotron_h",
        {"layers_block_type": ("linear_attention", "mlp", "full_attention", "linear_attention", "mlp"), "head_dim": 8,
         "mamba_num_heads": 4, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 8},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """A model's answer: its tokens, and the logits from which each was chosen."""

    tokens: list[int]
    logits: list[Any]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Answer)
        return self.tokens == other.tokens and all(map(torch.equal, self.logits, other.logits))


def partition_of(*bounds: int) -> Partition:
    return tuple(LayerRange(start, end) for start, end in pairwise(bounds))


def load_all(directory: Path, *bounds: int, **options: Any) -> list[PartialModel]:
    partition = partition_of(*bounds)
    return [load_part(directory, stage, partition, **options) for stage in range(len(partition))]


def steps(parts: list[PartialModel], prompt: list[int], count: int, choose: Any = None) -> Iterator[tuple[int, Any]]:
    """Run `count` steps of one sequence through the chain."""
    choose = choose or Sampler(SamplingParams())
    inputs, sequence_id = prompt, object()
    for _ in range(count):
        output: Any = inputs
        for part in parts:
            output = part.step(sequence_id, output)
        token = choose(output)
        yield token, output
        inputs = [token]
    for part in parts:
        part.free(sequence_id)


def answer_of(parts: list[PartialModel], prompt: list[int] = PROMPT, count: int = 10) -> Answer:
    tokens, logits = zip(*steps(parts, prompt, count), strict=True)
    return Answer(list(tokens), [values.float() for values in logits])


def truth_of(directory: Path, prompt: list[int] = PROMPT, count: int = 10, **options: Any) -> Answer:
    """The unsplit model's answer, by transformers' own generate."""
    config = transformers.GenerationConfig(max_new_tokens=count, pad_token_id=0)
    generated = load_unsplit(directory, **options).generate(
        torch.tensor([prompt]), generation_config=config, return_dict_in_generate=True, output_logits=True
    )
    return Answer(generated.sequences[0, len(prompt) :].tolist(), [values[0].float() for values in generated.logits])


@pytest.fixture
def family(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """A tiny model with weights large enough that every layer affects the logits."""
    return lambda model_type, **changes: tiny_model(model_type, layers=LAYERS, **{"initializer_range": 0.3, **changes})


@pytest.mark.parametrize("name", FAMILIES)
def test_parts_compute_what_the_whole_model_computes(name: str, family: Callable[..., Path]) -> None:
    model_type, changes = FAMILIES[name]
    directory = family(model_type, **changes)
    truth = truth_of(directory)
    assert not any(map(torch.equal, truth.logits, truth.logits[1:])), "a model that repeats itself proves nothing"
    for bounds in CUTS:
        assert answer_of(load_all(directory, *bounds)) == truth, bounds


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_parts_compute_what_the_whole_model_computes_in_half_precision(dtype: str, family: Callable[..., Path]) -> None:
    directory = family("llama")
    assert answer_of(load_all(directory, 0, 2, 5, dtype=dtype)) == truth_of(directory, dtype=dtype)


def test_stage_directories_load_like_the_whole_checkpoint(family: Callable[..., Path], tmp_path: Path) -> None:
    directory = family("mixtral", shard_size="30KB")
    stages = split_checkpoint(directory, tmp_path / "split", ranges=["0-1", "1-4", "4-5"])
    partition = partition_of(0, 1, 4, 5)
    parts = [load_part(path, stage, partition) for stage, path in enumerate(stages)]
    assert answer_of(parts) == truth_of(directory)


def test_sequences_in_flight_do_not_disturb_each_other(family: Callable[..., Path]) -> None:
    parts = load_all(family("gemma2", **WINDOW), 0, 2, 3, 5)
    prompts = [PROMPT, PROMPT[:3], PROMPT[5:17]]
    alone = [answer_of(parts, prompt).tokens for prompt in prompts]
    in_flight = [steps(parts, prompt, 10) for prompt in prompts]
    together = [[token for token, _ in step] for step in zip(*in_flight, strict=True)]
    assert [list(tokens) for tokens in zip(*together, strict=True)] == alone


def test_a_freed_sequence_begins_again(family: Callable[..., Path]) -> None:
    first, _last = load_all(family("llama"), 0, 2, 5)
    output = first.step("a", PROMPT)
    first.free("a")
    first.free("unknown")
    assert torch.equal(first.step("a", PROMPT)[HIDDEN_STATES], output[HIDDEN_STATES])


def test_the_alignment_of_a_message_changes_nothing(family: Callable[..., Path]) -> None:
    first, last = load_all(family("llama"), 0, 2, 5)
    output = first.step("a", PROMPT)[HIDDEN_STATES]
    misaligned = torch.empty(output.numel() + 1)[1:].view(output.shape).copy_(output)
    assert torch.equal(last.step("a", {HIDDEN_STATES: output}), last.step("b", {HIDDEN_STATES: misaligned}))


def test_sampled_tokens_are_those_of_the_unsplit_model_with_the_same_seed(family: Callable[..., Path]) -> None:
    directory = family("qwen2")
    parts, whole = load_all(directory, 0, 1, 4, 5), load_unsplit(directory)
    drawn = set()
    for seed in range(3):
        params = SamplingParams(temperature=2.0, top_k=40, top_p=0.95, seed=seed)
        tokens = [token for token, _ in steps(parts, PROMPT, 8, Sampler(params))]
        assert tokens == generate(whole, PROMPT, 8, sampling=params)
        drawn.add(tuple(tokens))
    assert len(drawn) == 3


def test_the_unsplit_model_stops_after_a_stop_token(family: Callable[..., Path]) -> None:
    whole = load_unsplit(family("qwen2"))
    tokens = generate(whole, PROMPT, 8)
    assert len(tokens) == 8
    assert generate(whole, PROMPT, 8, [tokens[3]]) == tokens[: tokens.index(tokens[3]) + 1]


def test_penalties_of_the_checkpoint_do_not_change_greedy_tokens(family: Callable[..., Path], tmp_path: Path) -> None:
    directory = shutil.copytree(family("qwen2"), tmp_path / "model")
    plain = generate(load_unsplit(directory), PROMPT, 8)
    (directory / "generation_config.json").write_text(json.dumps({"repetition_penalty": 50.0}))
    assert generate(load_unsplit(directory), PROMPT, 8) == plain


def test_a_stage_reads_and_holds_its_own_bytes_only(family: Callable[..., Path]) -> None:
    directory, partition = family("llama", vocab_size=20_000, tied=False), partition_of(0, 2, 4, 5)
    total = read_index(directory).nbytes
    for stage in range(len(partition)):
        own = sum(tensor.nbytes for tensor in load_plan(directory, stage, partition))
        assert own < total / 2
        load_part(directory, stage, partition)  # reads what is read only once in a process
        before = _bytes_read()
        part = load_part(directory, stage, partition)
        # headers and config are allowed for
        assert own <= _bytes_read() - before < own + 200_000
        assert sum(parameter.nbytes for parameter in part._cut.model.parameters()) == own


def _bytes_read() -> int:
    """The number of bytes that this process has read so far; see proc_pid_io(5)."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def test_a_missing_tensor_is_named(family: Callable[..., Path], tmp_path: Path) -> None:
    directory = shutil.copytree(family("llama", tied=False), tmp_path / "model")
    _drop(family("llama", tied=False), directory, "model.norm")
    load_part(directory, 0, partition_of(0, 2, 5))
    for lost, message in (
        ("model.norm", "model.norm"),
        ("model.layers.3.mlp.up_proj.weight", "layer 3 lacks mlp.up_proj"),
        ("model.embed_tokens", "no input embedding"),
    ):
        _drop(family("llama", tied=False), directory, lost)
        with pytest.raises(ZppError, match=message) as caught:
            load_part(directory, 1, partition_of(0, 2, 5))
        assert caught.value.exit_code == ExitCode.INVALID


def _drop(source: Path, directory: Path, lost: str) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(source / "model.safetensors")
    remaining = {name: tensor for name, tensor in tensors.items() if not name.startswith(lost)}
    save_file(remaining, directory / "model.safetensors")


REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "per-layer embeddings": ("gemma4_text", {"hidden_size_per_layer_input": 16, "vocab_size_per_layer_input": 64}),
    "routed by token ids": ("deepseek_v4", {**MLA, "head_dim": 16}),
    "no cache": ("openai-gpt", {"n_positions": 64, "n_embd": 32, "n_head": 4}),
    "another kind of state": ("rwkv", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_run_in_parts_is_refused(name: str, family: Callable[..., Path]) -> None:
    model_type, changes = REFUSED[name]
    directory = family(model_type, **changes)
    with pytest.raises(ZppError) as caught:
        load_all(directory, 0, 2, 5)
    assert caught.value.exit_code == ExitCode.INVALID


def test_a_stage_refuses_the_input_of_another_stage(family: Callable[..., Path]) -> None:
    first, last = load_all(family("llama"), 0, 2, 5)
    with pytest.raises(ZppError, match="layers 0-2 take token ids"):
        first.step("a", {HIDDEN_STATES: torch.zeros(1, 1, 32)})
    with pytest.raises(ZppError, match="layers 2-5 take hidden_states"):
        last.step("a", PROMPT)
    with pytest.raises(ZppError, match="layers 2-5 take hidden_states"):
        last.step("a", {"residual": torch.zeros(1, 1, 32)})
