# SPDX-License-Identifier: Apache-2.0
"""One model class from end to end: a tiny model is made and saved, its structure inferred and checked, split and
run."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from families.images import REFUSED, takes_images, try_images
from families.tiny import tiny_config
from families.truth import Truth, needed_at, observe, stages_in_need, stamp
from zpptool.checkpoint.index import read_index
from zpptool.checkpoint.roles import Side
from zpptool.checkpoint.split import split_checkpoint
from zpptool.checkpoint.structure import Structure, assign, infer_structure
from zpptool.checkpoint.verify import find_target, verify_split
from zpptool.engines.transformers.model import load_part
from zpptool.engines.transformers.unsplit import generate, load_unsplit
from zpptool.errors import ZppError
from zpptool.partition import LayerRange, Partition, even_partition

STAGES = 3
LARGE_BYTES = 64 * 1024 * 1024
_PROMPT = [int(token) for token in torch.randint(2, 250, (10,), generator=torch.Generator().manual_seed(3))]
_NEW_TOKENS = 6
_REASON_LENGTH = 180


@dataclass
class Outcome:
    """The outcome of one class.

    Attributes:
        name: the class's name.
        family: the model type.
        layers: the prefix of a layer's number in the tensor names.
        structure: `right`, `refused`, `wrong`, or `not built` where no tiny model could be made.
        checked: `all`; `layers` where the model could not be run from end to end; `names` where transformers does not
            keep its layers in one list of the config's length.
        embedded: `identical`, `refused`, `different`, or empty where it was not run.
        images: of a class that takes images: `images run` where its answers about images are those of the unsplit
            model, `text alone` where no processor could be made here, `refused`, or `different`; empty for others.
        reason: why the first of these is not `right` or `identical`.
        date: the day of the trial, as YYYY-MM-DD.
    """

    name: str
    family: str
    layers: str = ""
    structure: str = ""
    checked: str = ""
    embedded: str = ""
    images: str = ""
    reason: str = ""
    date: str = ""

    def as_json(self) -> dict[str, Any]:
        """The outcome for a line of the results file."""
        return asdict(self)


def model_classes(only: Container[str] | None = None) -> dict[str, tuple[type[PreTrainedModel], type[Any]]]:
    """Every causal-LM and image-text-to-text class, or those that are named, and its config's class, by name."""
    classes: dict[str, tuple[type[PreTrainedModel], type[Any]]] = {}
    for names, mapping in (
        (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING),
        (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING),
    ):
        for model_type, named in names.items():
            wanted = [name for name in ([named] if isinstance(named, str) else named) if only is None or name in only]
            if not wanted or model_type not in CONFIG_MAPPING_NAMES:
                continue
            config_class = CONFIG_MAPPING[model_type]  # imports the model, which takes time
            found = mapping[config_class]
            for model_class in found if isinstance(found, tuple) else (found,):
                if only is None or model_class.__name__ in only:
                    classes.setdefault(model_class.__name__, (model_class, model_class.config_class or config_class))
    return dict(sorted(classes.items()))


def try_class(name: str, model_class: type[PreTrainedModel], config_class: type[Any], directory: Path) -> Outcome:
    """Make, save, infer, compare, split, validate and run one class, in an empty `directory`."""
    outcome = Outcome(name, config_class.model_type)
    try:
        torch.manual_seed(0)
        model = model_class(tiny_config(config_class)).float().eval()
        model.save_pretrained(directory / "model")
        truth = observe(model)
        stamp(model, truth)
        model.save_pretrained(directory / "stamped")
    except Exception as cause:  # of the model's own code, at sizes that it was not made for
        outcome.structure, outcome.reason = "not built", _first_line(cause)
        return outcome
    try:
        structure = _structure_at_full_size(directory / "stamped")
        partition = partition_of(structure, STAGES)
        outcome.layers = structure.layer_prefix
        assign(structure, partition)
    except ZppError as refusal:
        outcome.structure, outcome.reason = "refused", plain(refusal, directory)
        return outcome
    fault = disagreement(structure, truth, directory / "stamped")
    outcome.structure, outcome.reason = ("wrong", fault) if fault else ("right", "")
    outcome.checked = "all" if truth.watched else "layers" if truth.num_layers else "names"
    if not fault:
        _split_and_run(directory, partition, outcome)
    if takes_images(outcome.family) and outcome.embedded:
        outcome.images = REFUSED
        if outcome.embedded == "identical":
            outcome.images, outcome.reason = try_images(name, directory / "images")
    return outcome


def disagreement(structure: Structure, truth: Truth, directory: Path) -> str:
    """How the inferred structure differs from the truth, with one stage for each layer; empty if it does not."""
    if truth.num_layers and structure.num_layers != truth.num_layers:
        return f"{structure.num_layers} layers inferred, {truth.num_layers} there"
    if truth.loops:
        return "a layer is run again, or after a later one"
    partition = even_partition(structure.num_layers, structure.num_layers)
    for name, places in needed_at(directory, truth).items():
        if places is None:
            return f"it is not known what {name} is made of"
        needed, held = stages_in_need(places, partition), set(structure.stages_of(name, partition))
        if not needed <= held:
            return f"{name} goes to stages {sorted(held)} of {len(partition)}, and is needed in {sorted(needed)}"
        if needed and structure.roles[name].side is Side.LAYER and needed != held:
            return f"{name} is taken for a layer's own, and is needed in {sorted(needed)}"
    return ""


def partition_of(structure: Structure, num_stages: int) -> Partition:
    """`num_stages` stages, or fewer if layers that must stay together do not allow as many."""
    bounds = [layer for layer in range(1, structure.num_layers) if layer not in structure.joined]
    even = [owned.start for owned in even_partition(structure.num_layers, min(num_stages, structure.num_layers))[1:]]
    chosen = sorted(even if set(even) <= set(bounds) else bounds[: num_stages - 1])
    return tuple(LayerRange(start, end) for start, end in pairwise([0, *chosen, structure.num_layers]))


def _structure_at_full_size(directory: Path) -> Structure:
    """The structure, with every matrix declared large: in a tiny model all tensors would count as small."""
    index = read_index(directory)
    for name, tensor in index.tensors.items():
        if len(tensor.shape) > 1:
            index.tensors[name] = tensor._replace(nbytes=LARGE_BYTES)
    return infer_structure(index)


def _split_and_run(directory: Path, partition: Partition, outcome: Outcome) -> None:
    try:
        stages = split_checkpoint(directory / "model", directory / "split", ranges=[str(owned) for owned in partition])
        verdict = verify_split(find_target(directory / "split", directory / "model"))
        if verdict.faults:
            outcome.structure, outcome.reason = "wrong", verdict.faults[0].message
            return
        parts = [load_part(path, stage, partition) for stage, path in enumerate(stages)]
    except ZppError as refusal:
        outcome.embedded, outcome.reason = "refused", plain(refusal, directory)
        return
    try:
        expected = generate(load_unsplit(directory / "model"), _PROMPT, _NEW_TOKENS)
    except Exception as cause:  # the unsplit model cannot generate from text alone, so there is nothing to compare with
        outcome.reason = f"unsplit: {_first_line(cause)}"
        return
    try:
        tokens = _run(parts, _NEW_TOKENS)
    except Exception as cause:  # of the model's own code; it should have been refused when it was loaded
        outcome.embedded, outcome.reason = "different", f"fails while it runs: {_first_line(cause)}"
        return
    outcome.embedded = "identical" if tokens == expected else "different"
    outcome.reason = "" if tokens == expected else f"{tokens} for {expected}"


def _run(parts: list[Any], count: int) -> list[int]:
    tokens: list[int] = []
    inputs: Any = _PROMPT
    for _ in range(count):
        passed = inputs
        for part in parts:
            passed = part.step("only", passed)
        tokens.append(int(passed.argmax()))
        inputs = tokens[-1:]
    return tokens


def plain(refusal: ZppError, directory: Path) -> str:
    """The refusal without the path of the temporary directory, shortened for the table."""
    text = refusal.message.replace(f"{directory / 'stamped'}: ", "").replace(f"{directory}/stamped", "it")
    text = text.replace(f"{directory}/", "")
    return shortened(text)


def shortened(text: str) -> str:
    """The text, shortened for the table."""
    return text if len(text) <= _REASON_LENGTH else f"{text[:_REASON_LENGTH]}..."


def _first_line(cause: BaseException) -> str:
    text = next((line.strip() for line in reversed(str(cause).splitlines()) if line.strip()), "")
    return f"{type(cause).__name__}: {text}"[:_REASON_LENGTH]
