# SPDX-License-Identifier: Apache-2.0
"""The embedded engine in several stages that share one card, against the unsplit model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gpucheck.check import Bench, Failed
from gpucheck.command import test_pipeline

TOKENS = 24


def embedded_parity(num_stages: int) -> Callable[[Bench], dict[str, Any]]:
    """The check of so many stages."""

    def check(bench: Bench) -> dict[str, Any]:
        words = (
            bench.model, "--engine", "transformers", "--num-stages", num_stages, "--device", bench.machine.device,
            "--max-new-tokens", TOKENS,
        )  # fmt: skip
        code, report = test_pipeline(words, bench.directory, {}, bench.limit_s)
        return parity_of(code, report)

    return check


def parity_of(code: int, report: Any) -> dict[str, Any]:
    """What a report of `zpptool test-pipeline` shows.

    Raises:
        Failed: the tokens differ, or there is no report.
    """
    if not isinstance(report, dict):
        raise Failed(f"test-pipeline ended with {code}: {report}")
    if code or report["verdict"] != "identical":
        raise Failed(f"test-pipeline ended with {code}, verdict {report['verdict']}")
    prompts = report["prompts"]
    return {"prompts": len(prompts), "tokens": sum(len(prompt["token_ids"]) for prompt in prompts)}
