# SPDX-License-Identifier: Apache-2.0
"""What several tests need: the command line as a process; a real checkpoint; tiny ones, made on the spot."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import staged

from zpptool.log import FORMAT_VARIABLE, LEVEL_VARIABLE
from zpptool.log import ROOT as LOGGING_ROOT

if TYPE_CHECKING:
    from tests.fronts import ToyServer
    from tests.scripted import ScriptedApi

pytest_plugins = ("links",)

# Tests that a shell starts in the background ignore Ctrl-C, and with nohup the end of a terminal; the processes that
# they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

if os.environ.get(staged.VARIABLE):
    os.environ.update(staged.staged_environment(float(os.environ[staged.VARIABLE])))
    staged.install()

ROOT = Path(__file__).resolve().parents[1]
REAL_MODEL = Path(os.environ.get("ZPP_TEST_MODEL", ROOT / ".cache/models/SmolLM2-135M-Instruct"))
TINY_SIZES = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
# What a family calls its sizes beyond the common ones.
TINY_EXTRAS = {
    "gemma2": {"head_dim": 8},
    "gemma3_text": {"head_dim": 8},
    "qwen3": {"head_dim": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}

SPEAKER_SIZES = {
    "vocab_size": 49152, "hidden_size": 128, "intermediate_size": 128, "initializer_range": 0.3, "tied": False,
    "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests may take longer where staging is forced."""
    for item in items:
        limit = item.get_closest_marker("timeout")
        if limit is not None and staged.patience() > 1:
            item.add_marker(pytest.mark.timeout(staged.patience() * limit.args[0]), append=False)


@pytest.fixture
def own_logging(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a test configure zpptool's logging; afterwards it is as it was."""
    for variable in (LEVEL_VARIABLE, FORMAT_VARIABLE):
        monkeypatch.setenv(variable, "")
    logger = logging.getLogger(LOGGING_ROOT)
    handlers, level, propagate = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.propagate = handlers, propagate
    logger.setLevel(level)


@pytest.fixture
def server() -> Iterator[ToyServer]:
    """A server to stand behind a front; it answers as the test says."""
    from tests.fronts import ToyServer

    toy = ToyServer()
    yield toy
    toy.close()


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one object on stdout; fails when there is anything else."""
        return json.loads(self.out)


@pytest.fixture(scope="session")
def zpptool() -> Callable[..., Ran]:
    """Run `zpptool` with these words in a process of its own, as a user does."""

    def run(*words: str | int | Path, timeout_s: float = 60, env: dict[str, str] | None = None) -> Ran:
        done = subprocess.run(
            [sys.executable, "-m", "zpptool", *map(str, words)],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env={**os.environ, "NO_COLOR": "1", **(env or {})},
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def real_model() -> Path:
    """The directory of SmolLM2-135M-Instruct, as `make model` leaves it."""
    if not (REAL_MODEL / "config.json").is_file():
        pytest.skip(f"no model at {REAL_MODEL}: run `make model`")
    return REAL_MODEL


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Make a checkpoint of random weights and a byte-level tokenizer: `tiny_model("llama", layers=4, tied=True)`.

    It takes the transformers model type, the number of layers, whether embeddings are tied, a shard size ("20KB" makes
    a checkpoint of several files), and anything else for the config. The same arguments give the same directory.
    """
    pytest.importorskip("transformers")

    @cache
    def make(
        model_type: str = "llama", *, layers: int = 4, tied: bool = True, shard_size: str = "1GB", **changes: Any
    ) -> Path:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        directory = tmp_path_factory.mktemp(f"tiny-{model_type}-") / "model"
        lists = {
            name: list(value) for name, value in changes.items() if isinstance(value, tuple)
        }  # tuples are hashable
        sizes = {**TINY_SIZES, **TINY_EXTRAS.get(model_type, {}), **changes, **lists}
        config = AutoConfig.for_model(model_type, num_hidden_layers=layers, tie_word_embeddings=tied, **sizes)
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).eval().save_pretrained(directory, max_shard_size=shard_size)
        _byte_tokenizer().save_pretrained(directory)
        return directory

    return make


@pytest.fixture(scope="session")
def speaker(real_model: Path, tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few random weights with the real model's tokenizer and chat template: what is said means nothing, but one wrong
    bit changes it, and it is quick."""
    directory = tmp_path_factory.mktemp("speaker") / "model"
    shutil.copytree(tiny_model("llama", **SPEAKER_SIZES), directory)
    for name in TOKENIZER_FILES:
        shutil.copy(real_model / name, directory)
    return directory


@pytest.fixture
def api(tiny_model: Callable[..., Path]) -> Iterator[ScriptedApi]:
    """The embedded engine's API in front of a scripted model."""
    from tests.scripted import scripted_api

    with scripted_api(tiny_model("llama")) as api:
        yield api


def _byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{letter: place for place, letter in enumerate(letters, start=2)}}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
