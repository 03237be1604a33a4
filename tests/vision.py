# SPDX-License-Identifier: Apache-2.0
"""The environment in which image processors work, and tiny vision-language models made in it."""

from __future__ import annotations

import base64
import importlib.util
import io
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from vision_models import picture

ROOT = Path(__file__).resolve().parents[1]
TORCHVISION = Path(os.environ.get("ZPP_TEST_TORCHVISION", ROOT / ".cache/torchvision-0.28.0"))
"""The Python parts of torchvision, as `make env ENGINE=vllm` leaves them."""


def python_path() -> str:
    """PYTHONPATH of processes that are to import torchvision; a torchvision of the environment itself is preferred."""
    paths = [ROOT]
    if importlib.util.find_spec("torchvision") is None:
        if not (TORCHVISION / "torchvision").is_dir():
            pytest.skip(f"no torchvision at {TORCHVISION}: run `make env ENGINE=vllm`")
        paths += [ROOT / "tests/torchvision_parts", TORCHVISION]
    return os.pathsep.join(map(str, [*paths, *filter(None, [os.environ.get("PYTHONPATH")])]))


def make_model(kind: str, directory: Path) -> Path:
    """A tiny model of a kind that `vision_models` makes, in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests/vision_models.py"), kind, str(directory)],
        env={**os.environ, "PYTHONPATH": python_path()}, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return directory


def data_url(seed: int) -> str:
    """The image `picture(seed)` as a `data:` URL."""
    written = io.BytesIO()
    picture(seed).save(written, "PNG")
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def message(*parts: str | int) -> dict[str, Any]:
    """A user's message of texts and, for numbers, images."""
    content: Sequence[dict[str, Any]] = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in parts
    ]
    return {"role": "user", "content": content}
