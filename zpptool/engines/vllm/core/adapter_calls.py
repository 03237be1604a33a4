# SPDX-License-Identifier: Apache-2.0
"""The calls that gave the stages their LoRA adapters, for a stage that was restarted."""

from __future__ import annotations

from typing import Any

AdapterCall = tuple[str, tuple[Any, ...]]
"""The method of vLLM's worker, and its arguments."""


class AdapterCalls:
    """The calls that load and pin the adapters that are loaded now."""

    def __init__(self) -> None:
        self._by_adapter: dict[int, list[AdapterCall]] = {}

    def record(self, method: str, args: tuple[Any, ...]) -> None:
        """Take note of a call that every stage has done; calls of other methods are ignored."""
        if method == "add_lora":
            self._by_adapter[args[0].lora_int_id] = [(method, args)]
        elif method == "remove_lora":
            self._by_adapter.pop(args[0], None)
        elif method == "pin_lora" and args[0] in self._by_adapter:
            self._by_adapter[args[0]].append((method, args))

    def all(self) -> list[AdapterCall]:
        """The calls to repeat, in order."""
        return [call for calls in self._by_adapter.values() for call in calls]
