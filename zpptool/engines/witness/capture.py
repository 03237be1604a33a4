# SPDX-License-Identifier: Apache-2.0
"""The tensors of one call of one layer, saved as they were where hashes alone do not tell why two calls differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from zpptool.witness.taps import Tap

WEIGHT, TAP = "weight/", "tap/"
Setting = int | float | str | bool | None


@dataclass
class Capture:
    """What one process computed in one call.

    Attributes:
        taps: what was tapped, in the order of the computation, by name; rows first.
        weights: the parameters and buffers of the layer, by their names within it.
        settings: the numbers, words and switches that its modules were built with, by module and name.
    """

    taps: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    settings: dict[str, Setting] = field(default_factory=dict)

    def add(self, tap: Tap, rows: Tensor) -> None:
        """Add a copy of what was tapped."""
        self.taps[tap.name] = rows.detach().cpu().clone()

    def add_module(self, module: nn.Module) -> None:
        """Add the layer itself: its weights and settings, as they are now."""
        self.weights |= {
            name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items() if not tensor.is_meta
        }
        self.settings |= settings_of(module)

    def save(self, path: Path) -> None:
        """Write it to a file, whole or not at all."""
        order = {f"{TAP}{place:04d}/{name}": tensor for place, (name, tensor) in enumerate(self.taps.items())}
        weights = {WEIGHT + name: tensor for name, tensor in self.weights.items()}
        tensors = {name: tensor.contiguous().clone() for name, tensor in (order | weights).items()}
        part = path.with_suffix(".part")
        save_file(tensors, part, metadata={"settings": json.dumps(self.settings)})
        part.replace(path)


def load_capture(path: Path) -> Capture:
    """Read what `Capture.save` wrote.

    Raises:
        OSError: there is no such file.
    """
    capture = Capture()
    with safe_open(path, "pt") as file:
        capture.settings = json.loads(file.metadata()["settings"])
        for key in sorted(file.keys()):
            if key.startswith(TAP):
                capture.taps[key.removeprefix(TAP).partition("/")[2]] = file.get_tensor(key)
            else:
                capture.weights[key.removeprefix(WEIGHT)] = file.get_tensor(key)
    return capture


def settings_of(module: nn.Module) -> dict[str, Setting]:
    """The plain attributes of a module and of those within it: `self_attn.scaling`, `input_layernorm.variance_epsilon`.

    A function, such as an activation, is stood for by its name.
    """
    return {
        f"{path}.{name}" if path else name: value
        for path, part in module.named_modules()
        for name, value in _plain_attributes(vars(part)).items()
    }


def _plain_attributes(attributes: Mapping[str, Any]) -> dict[str, Setting]:
    plain = {name: value for name, value in attributes.items() if not name.startswith("_")}
    named = {name: getattr(value, "__qualname__", None) for name, value in plain.items() if callable(value)}
    values = {
        name: value for name, value in plain.items() if isinstance(value, int | float | str | bool) or value is None
    }
    return values | {name: word for name, word in named.items() if word}
