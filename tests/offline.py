# SPDX-License-Identifier: Apache-2.0
"""A user's script with `vllm.LLM` or `zpptool.LLM`, which writes its results to a file as JSON.

Started as `python offline.py vllm|zpptool MODEL OUTPUT OPTIONS`. The options are the class's arguments, as JSON, and
`hold`, which has the script run until it is killed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

LENGTHS = (1, 40, 300, 8200, 16376)
"""Prompt lengths in tokens: one step, several steps, more than 8k, and up to just before the last position."""
ENGINE = {
    "dtype": "float32", "enforce_eager": True, "max_model_len": 16384, "enable_prefix_caching": False,
    "max_num_batched_tokens": 512, "kv_cache_memory_bytes": 64 << 20, "max_num_seqs": 8, "seed": 0,
}  # fmt: skip


def generated(llm: Any) -> list[Any]:
    """Greedy answers with logprobs, sampled ones with seeds, and a chat."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": [2 + (7 * index) % 256 for index in range(length)]} for length in LENGTHS]
    greedy = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=2))
    scored = llm.generate(prompts[:2], SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1))
    seeded = [SamplingParams(temperature=1, seed=seed, n=2, max_tokens=8, ignore_eos=True) for seed in range(2)]
    sampled = llm.generate(prompts[:2], seeded)
    messages = [{"role": "user", "content": "hi"}]
    chat = llm.chat(messages, SamplingParams(temperature=0, max_tokens=8), chat_template=CHAT)
    return [
        [[list(choice.token_ids) for choice in answer.outputs] for answer in (*greedy, *scored, *sampled, *chat)],
        [[scores(step) for step in answer.outputs[0].logprobs] for answer in greedy],
        [[scores(step) for step in answer.prompt_logprobs if step] for answer in scored],
    ]


def scores(step: Any) -> list[float]:
    """The logprobs of one position."""
    return sorted(float(top.logprob) for top in step.values())


CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def embedded(llm: Any) -> list[Any]:
    """Sentence embeddings."""
    return [answer.outputs.embedding for answer in llm.embed(["one", "two words", "x" * 400])]


def main() -> None:
    which, model, output, options = sys.argv[1:]
    import importlib

    given = {**ENGINE, **json.loads(options)}
    hold = given.pop("hold", False)
    llm = importlib.import_module(which).LLM(model, **given)
    made = embedded(llm) if given.get("runner") == "pooling" else generated(llm)
    Path(f"{output}.part").write_text(json.dumps(made))
    Path(f"{output}.part").rename(output)
    while hold:
        time.sleep(1)
    if which == "zpptool":
        llm.close()


if __name__ == "__main__":
    main()
