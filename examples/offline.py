# SPDX-License-Identifier: Apache-2.0
"""A script over three stages on this machine: `python examples/offline.py MODEL`."""

import sys

from vllm import SamplingParams

import zpptool

if __name__ == "__main__":
    with zpptool.LLM(sys.argv[1], num_stages=3, enforce_eager=True, max_model_len=1024) as llm:
        prompts = ["The capital of France is", "Water boils at"]
        for answer in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=16)):
            print(repr(answer.prompt), "->", repr(answer.outputs[0].text))
