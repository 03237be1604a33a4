# SPDX-License-Identifier: Apache-2.0
"""Counters of this API since it was started, as Prometheus text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Counted from the event loop's thread only.

    Attributes:
        prompt_tokens: tokens of all prompts.
        generation_tokens: tokens of all answers, counted as they are generated.
        requests: requests that were started.
        in_progress: requests that are being answered now.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    requests: int = 0
    in_progress: int = 0

    def prometheus(self) -> str:
        """Prometheus' text format, version 0.0.4."""
        metrics = {
            "zpp:prompt_tokens_total": ("Tokens of all prompts.", self.prompt_tokens),
            "zpp:generation_tokens_total": ("Tokens of all answers.", self.generation_tokens),
            "zpp:engine_requests_total": ("Requests that were begun.", self.requests),
        }
        return "".join(
            f"# HELP {name} {help_text}\n# TYPE {name} counter\n{name} {count}\n"
            for name, (help_text, count) in metrics.items()
        )
