# SPDX-License-Identifier: Apache-2.0
"""Makes zpptool's plugin visible to vLLM through the entry points of a distribution, installed or not."""

from __future__ import annotations

from pathlib import Path

GROUP = "vllm.general_plugins"


def install_plugin(directory: Path) -> Path:
    """Make a directory that provides such a distribution when it is on PYTHONPATH."""
    metadata = directory / "zpptool_as_plugin-1.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: zpptool-as-plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text(f"[{GROUP}]\nas_plugin = zpptool.engines.vllm.plugin:register\n")
    return directory
