# SPDX-License-Identifier: Apache-2.0
"""The unsplit engine in one process: answers requests one after the other, as `vllm.LLM` does.

    python tests/unsplit_answers.py MODEL ADAPTER REQUESTS.json ANSWERS.json ENGINE.json

A request has the fields of a body of `/v1/completions`, without any that only the server knows. The answers have, for
each choice, `token_ids`, `text`, the log probabilities of its tokens, and those of its prompt.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import vllm
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams


def main() -> None:
    model, adapter, requests, answers, engine = sys.argv[1:]
    llm = vllm.LLM(model, **json.loads(Path(engine).read_text()))
    lora = LoRARequest("tuned", 1, adapter)
    found = {}
    for name, request in json.loads(Path(requests).read_text()).items():
        chosen = lora if request.pop("model") == "tuned" else None
        found[name] = answer(llm, request, chosen)
    Path(answers).write_text(json.dumps(found))


def answer(llm: vllm.LLM, request: dict[str, Any], lora: LoRARequest | None) -> list[dict[str, Any]]:
    prompt, structured = request.pop("prompt"), request.pop("structured_outputs", None)
    bias = {int(token): value for token, value in request.pop("logit_bias", {}).items()} or None
    params = vllm.SamplingParams(
        **request,
        logit_bias=bias,
        structured_outputs=StructuredOutputsParams(**structured) if structured else None,
    )
    [done] = llm.generate([prompt], params, lora_request=lora, use_tqdm=False)
    return [
        {
            "token_ids": list(choice.token_ids),
            "text": choice.text,
            "logprobs": [
                of_token[token].logprob
                for token, of_token in zip(choice.token_ids, choice.logprobs or (), strict=False)
            ],
            "prompt_logprobs": [
                {str(token): entry.logprob for token, entry in (of_token or {}).items()}
                for of_token in done.prompt_logprobs or ()
            ],
        }
        for choice in done.outputs
    ]


if __name__ == "__main__":
    main()
