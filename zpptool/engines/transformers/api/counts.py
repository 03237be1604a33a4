# SPDX-License-Identifier: Apache-2.0
"""What this API has done since it began, as Prometheus text."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counts:
    """Counted from the event loop's thread only.

    Attributes:
        prompt_tokens: of all prompts.
        generation_tokens: of all answers, as they come.
        requests: that were begun.
    """

    prompt_tokens: int = 0
    generation_tokens: int = 0
    requests: int = 0

    def prometheus(self) -> str:
        """The text format, version 0.0.4."""
        told = {
            "zpp:prompt_tokens_total": ("Tokens of all prompts.", self.prompt_tokens),
            "zpp:generation_tokens_total": ("Tokens of all answers.", self.generation_tokens),
            "zpp:engine_requests_total": ("Requests that were begun.", self.requests),
        }
        return "".join(
            f"# HELP {name} {what}\n# TYPE {name} counter\n{name} {count}\n" for name, (what, count) in told.items()
        )
