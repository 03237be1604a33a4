# SPDX-License-Identifier: Apache-2.0
"""A user's script that asks `vllm.LLM` or `zpptool.LLM` about images and writes the answers to a file as JSON.

Started as `python vision_script.py vllm|zpptool MODEL OUTPUT OPTIONS`. The options, as JSON, are the class's arguments
and `asked`: a list of rounds, each a list of `[prompt, seeds of its images, sampling parameters]`. The requests of one
round are asked together.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from vision_models import picture

ENGINE = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 1024, "kv_cache_memory_bytes": 64 << 20,
    "max_num_seqs": 8, "seed": 0,
}  # fmt: skip


def answers(llm: Any, asked: list[list[Any]]) -> list[list[Any]]:
    """For each request of a round, its choices: token ids, and the logprob of each."""
    from vllm import SamplingParams

    prompts = []
    for prompt, seeds, _parameters in asked:
        prompts.append({"prompt": prompt})
        if seeds:
            prompts[-1]["multi_modal_data"] = {"image": [picture(seed) for seed in seeds]}
    defaults = {"temperature": 0, "max_tokens": 12, "ignore_eos": True, "logprobs": 0}
    parameters = [SamplingParams(**{**defaults, **given}) for _prompt, _seeds, given in asked]
    return [[scored(choice) for choice in answer.outputs] for answer in llm.generate(prompts, parameters)]


def scored(choice: Any) -> list[Any]:
    """The token ids of one choice, and their logprobs."""
    steps = zip(choice.logprobs, choice.token_ids, strict=True)
    return [list(choice.token_ids), [step[token].logprob for step, token in steps]]


def main() -> None:
    which, model, output, options = sys.argv[1:]
    given = {**ENGINE, **json.loads(options)}
    rounds = given.pop("asked")
    llm = importlib.import_module(which).LLM(model, **given)
    made = [answers(llm, asked) for asked in rounds]
    Path(f"{output}.part").write_text(json.dumps(made))
    Path(f"{output}.part").rename(output)
    if which == "zpptool":
        llm.close()


if __name__ == "__main__":
    main()
