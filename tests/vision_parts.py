# SPDX-License-Identifier: Apache-2.0
"""Parts of a tiny vision-language model, chained by direct calls, against stock transformers' `generate`.

Started as `python vision_parts.py KIND DIRECTORY 0,2,4 [0,1,4 ...]` it makes the model too, and compares it with those
cuts: most processors need torchvision, which the test process may not import.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import vision_models

from zpptool.engines.transformers.api.image_processor import ImageProcessor, load_image_processor
from zpptool.engines.transformers.loading import load_config
from zpptool.engines.transformers.media import Media, decode_media, encode_media
from zpptool.engines.transformers.model import load_part
from zpptool.engines.transformers.sampling import Choice, Sampler, SamplingParams
from zpptool.engines.transformers.unsplit import generate_choices, load_unsplit
from zpptool.partition import LayerRange

TOKENS = 8
GREEDY = SamplingParams(logprobs=0)
Prompt = tuple[list[int], Media | None]


def prompts(kind: str, directory: Path) -> list[Prompt]:
    """Prompts with one image, with another, with two, without any, and with one at the end."""
    processor = load_image_processor(directory, load_config(directory))
    assert isinstance(processor, ImageProcessor), processor
    word = vision_models.IMAGE_WORDS[kind]
    question = f"{word}What is this, and what is beside it?"
    asked = ((question, (0,)), (question, (1,)), (f"Two: {word} and {word} now", (0, 2)), (f"Look: {word}", (3,)))
    return [
        *(
            processor.encode(text, [vision_models.picture(seed) for seed in seeds], add_special_tokens=False)
            for text, seeds in asked
        ),
        (list(b"No image here"), None),
    ]


def unsplit_answers(directory: Path, asked: Sequence[Prompt]) -> list[list[Choice]]:
    """What stock transformers answers, one prompt after the other, in float32: tokens and their log probabilities."""
    whole = load_unsplit(directory, dtype="float32")
    return [generate_choices(whole, prompt, TOKENS, sampling=GREEDY, media=media) for prompt, media in asked]


def answers_of_parts(directory: Path, bounds: Sequence[int], asked: Sequence[Prompt]) -> list[list[Choice]]:
    """What the parts answer, with all prompts in flight."""
    partition = tuple(LayerRange(start, end) for start, end in pairwise(bounds))
    parts = [load_part(directory, stage, partition, dtype="float32") for stage in range(len(partition))]
    answers: list[list[Choice]] = [[] for _ in asked]
    sampler = Sampler(GREEDY)
    for _ in range(TOKENS):
        for number, (prompt, media) in enumerate(asked):
            passed: Any = [choice.token for choice in answers[number][-1:]] or prompt
            sent = None if answers[number] else decode_media(encode_media(media))
            for part in parts:
                passed = part.step(number, passed, sent if part.is_first else None)
            answers[number].append(sampler.choose(passed))
    return answers


def compare(kind: str, directory: Path, cuts: Sequence[Sequence[int]]) -> None:
    """Compare each cut with the unsplit model.

    Raises:
        AssertionError: a token or its log probability differs, or the unsplit model's answers do not depend on the
            image.
    """
    asked = prompts(kind, directory)
    expected = unsplit_answers(directory, asked)
    assert expected[0] != expected[1], "the answer does not depend on the image: the test shows nothing"
    for bounds in cuts:
        assert answers_of_parts(directory, bounds, asked) == expected, bounds


if __name__ == "__main__":
    name, made, *given = sys.argv[1:]
    getattr(vision_models, f"make_{name}")(Path(made))
    compare(name, Path(made), [[int(bound) for bound in cut.split(",")] for cut in given])
