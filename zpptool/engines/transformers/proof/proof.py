# SPDX-License-Identifier: Apache-2.0
"""Proves that the engine computes the layers of one stage as the whole model does, before their weights are loaded.

Every release of transformers may change what a layer takes, returns or keeps, and a part that loads and runs may still
be wrong. So a small model with random weights is made, of the same class and with the same layers; transformers itself
runs it whole; the stage's part of it is loaded and run by the code that is about to load and run the real one, over a
prompt and several more tokens. Every bit of what the part returns has to be equal.
"""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

import zpptool
from zpptool.checkpoint.index import TensorInfo
from zpptool.checkpoint.stage_tensors import load_plan
from zpptool.engines.transformers.decoder_call import DECODER_CALL
from zpptool.engines.transformers.loading import no_progress_bars
from zpptool.engines.transformers.media import Media
from zpptool.engines.transformers.model_class import is_composite, model_class
from zpptool.engines.transformers.proof.sensitivity import check_sensitivity
from zpptool.engines.transformers.proof.small_model import (
    edited_config,
    own_values,
    random_model,
    same_config,
    small_config,
)
from zpptool.engines.transformers.proof.verdicts import Facts, is_proven, record_proof
from zpptool.engines.transformers.proof.whole_run import STEPS, WholeRun, run_whole
from zpptool.engines.transformers.tensor_tree import from_entries, same_values
from zpptool.errors import ZppError, invalid_error
from zpptool.partition import LayerRange, Partition

_HINT = (
    "Run it with another release of transformers that docs/compatibility.md lists, or on vLLM (--engine vllm)."
    " docs/coverage.md lists the classes that run in parts."
)
_HIDDEN_STATES = "hidden_states"
_SOURCES = ("checkpoint/**/*.py", "engines/weights.py", "engines/transformers/*.py", "engines/transformers/proof/*.py")
"""The files of this package that decide what a part computes."""


class Part(Protocol):
    """Part of a model that runs sequences; see `zpptool.engines.transformers.model.PartialModel`."""

    def step(self, sequence_id: object, inputs: object, media: Media | None = None) -> Tensor | dict[str, Any]:
        """Run the next tokens of one sequence."""

    def free(self, sequence_id: object) -> None:
        """Forget a sequence."""


LoadPart = Callable[[PreTrainedConfig, Iterable[TensorInfo], LayerRange, torch.dtype, str], Part]
"""Loads part of a model: takes its config, its tensors, its layers, the dtype and the device."""


def prove_part(config: PreTrainedConfig, owned: LayerRange, load: LoadPart) -> None:
    """Prove that `load` makes a part which computes the layers `owned` of this kind of model; once for each kind.

    Raises:
        ZppError: (INVALID) it does not, or no small model of this kind can be made.
    """
    whole_class, config = model_class(config)
    facts = _facts(whole_class, config, owned)
    if is_proven(facts):
        return
    try:
        small = _small_run(_Kind(whole_class, facts["config"], config))
    except Exception as cause:  # of the model's own code, at sizes that it was not made for, or in a new release
        why = cause.message if isinstance(cause, ZppError) else f"{type(cause).__name__}: {cause}"
        raise invalid_error(
            f"it cannot be proven that layers {owned} of {config.model_type} run apart: a small model of its kind"
            f" could not be used: {why}",
            _HINT,
        ) from cause
    with tempfile.TemporaryDirectory(prefix="zpptool-proof-") as directory, no_progress_bars():
        small.model.save_pretrained(directory)
        part = _load_from(Path(directory), small, owned, load)
    compare(part, small.whole, owned, config.model_type, "text")
    if small.displaced is not None:
        with_images = small.displaced if owned.start else small.whole
        compare(part, with_images, owned, config.model_type, "text with the arguments of images", media={})
    record_proof(facts)


@dataclass(frozen=True)
class _Kind:
    """A kind of model: its class and config, which are compared by class and digest."""

    model_class: type[PreTrainedModel]
    digest: str
    config: PreTrainedConfig = field(compare=False)


@dataclass(frozen=True)
class _SmallRun:
    """A small model of some kind, and its run as a whole; of a composite model also one with displaced positions."""

    config: PreTrainedConfig
    model: PreTrainedModel
    whole: WholeRun
    displaced: WholeRun | None


@lru_cache(maxsize=1)
def _small_run(kind: _Kind) -> _SmallRun:
    """A small model of this kind that can show a fault, from the first config that can be used; kept for other layers.

    Raises:
        Exception: what the first config failed with, if none can be used.
    """
    failures: list[Exception] = []
    for make in (small_config, edited_config, same_config):
        try:
            config = make(kind.model_class, kind.config)
            model = random_model(kind.model_class, config)
            with no_progress_bars():
                whole = run_whole(model)
                displaced = run_whole(model, displaced=True) if is_composite(model) else None
                check_sensitivity(model)
            return _SmallRun(config, model, whole, displaced)
        except Exception as cause:  # of the model's own code, at sizes that it was not made for
            failures.append(cause)
    raise failures[0]


def _load_from(directory: Path, small: _SmallRun, owned: LayerRange, load: LoadPart) -> Part:
    bounds = (LayerRange(0, owned.start), owned, LayerRange(owned.end, small.whole.num_layers))
    partition: Partition = tuple(layers for layers in bounds if layers.start < layers.end)
    tensors = load_plan(directory, partition.index(owned), partition)
    return load(small.config, tensors, owned, torch.float32, "cpu")


def compare(part: Part, whole: WholeRun, owned: LayerRange, name: str, trial: str, media: Media | None = None) -> None:
    """Run the trial sequence through a part, and compare every bit with what the whole model has computed.

    A second sequence is in flight meanwhile, which must not disturb the first.

    Args:
        part: what is proven.
        whole: the run of the whole model.
        owned: the part's layers.
        name: of the kind of model, for the error.
        trial: the sequence's name.
        media: none for a sequence of text; empty for one that is run as with images, so that what the model passes to
            its language model goes from stage to stage.

    Raises:
        ZppError: (INVALID) something differs.
    """
    is_first, is_last = owned.start == 0, owned.end == whole.num_layers
    for step, tokens in enumerate(STEPS):
        call = whole.passed[step] if media is not None else {}
        inputs = list(tokens) if is_first else {_HIDDEN_STATES: whole.layer_outputs[step][owned.start - 1], **call}
        expected = whole.logits[step] if is_last else whole.layer_outputs[step][owned.end - 1]
        found = part.step(trial, inputs, media if is_first and step == 0 else None)
        computed = found if isinstance(found, Tensor) else found[_HIDDEN_STATES]
        passed = from_entries(DECODER_CALL, found) if isinstance(found, dict) else None
        if (
            not torch.equal(computed.float(), expected.float())
            or computed.dtype != expected.dtype
            or (not is_last and not same_values(passed, from_entries(DECODER_CALL, call)))
        ):
            raise invalid_error(
                f"{name} cannot be run in parts: layers {owned} compute something else than in the whole model,"
                f" {'for the prompt' if step == 0 else f'{step} tokens after the prompt'} of a trial with a small"
                f" random model (transformers {transformers.__version__})",
                _HINT,
            )
        if step == 0 or step == 1:
            part.step("other", inputs[::-1] if isinstance(inputs, list) else _mirrored(inputs))
        if step == len(STEPS) // 2:
            part.free("other")
    part.free(trial)


def _mirrored(inputs: dict[str, Any]) -> dict[str, Any]:
    return {**inputs, _HIDDEN_STATES: inputs[_HIDDEN_STATES].flip(1).neg()}


def _facts(whole_class: type[PreTrainedModel], config: PreTrainedConfig, owned: LayerRange) -> Facts:
    """Everything that the proof depends on."""
    return {
        "class": f"{whole_class.__module__}.{whole_class.__qualname__}",
        "config": sha256(json.dumps(own_values(config.to_dict()), sort_keys=True, default=str).encode()).hexdigest(),
        "layers": str(owned),
        "transformers": transformers.__version__,
        "model": _digest([Path(inspect.getfile(whole_class))]),
        "torch": torch.__version__,
        "engine": _engine_digest(),
    }


@cache
def _engine_digest() -> str:
    package = Path(inspect.getfile(zpptool)).parent
    return _digest(path for pattern in _SOURCES for path in sorted(package.glob(pattern)))


def _digest(paths: Iterable[Path]) -> str:
    return sha256(b"".join(sha256(path.read_bytes()).digest() for path in paths)).hexdigest()
