# SPDX-License-Identifier: Apache-2.0
"""A machine that appears to have NVIDIA GPUs: a script prints the output of nvidia-smi, and torch's version is not that
of the CPU build. Nothing computes on these GPUs."""

from __future__ import annotations

from pathlib import Path

import pytest

from zpptool.config import gpu_plan
from zpptool.config.gpu_pool import CUDA, HIP, ORDER, XPU

TWO = "0, GPU-5a2b, 40960, 40100\n1, GPU-6c3d, 40960, 40000\n"
"""Two GPUs of 40 GiB."""
ONE = TWO.splitlines()[0]


def install(monkeypatch: pytest.MonkeyPatch, directory: Path, queried: str, listed: str = "", code: int = 0) -> None:
    """Put an nvidia-smi on the PATH, and remove the environment variables that name GPUs.

    Args:
        monkeypatch: undoes it.
        directory: for the script.
        queried: the output of a query.
        listed: the output of `nvidia-smi -L`.
        code: the exit code.
    """
    for name in (CUDA, HIP, XPU, ORDER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(gpu_plan, "version", lambda _name: "2.14.0")
    script = directory / "bin" / "nvidia-smi"
    script.parent.mkdir(exist_ok=True)
    script.write_text(
        f"""#!/bin/sh
if [ "$1" = -L ]; then printf '%s' '{listed}'; else printf '%s' '{queried}'; fi
exit {code}
"""
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
