# SPDX-License-Identifier: Apache-2.0
"""zpptool as vLLM finds plugins, by an installed distribution's entry points, whatever is really installed."""

from __future__ import annotations

from pathlib import Path

GROUP = "vllm.general_plugins"


def install_plugin(directory: Path) -> Path:
    """Make a directory that, on PYTHONPATH, holds such a distribution."""
    described = directory / "zpptool_as_plugin-1.dist-info"
    described.mkdir(parents=True)
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: zpptool-as-plugin\nVersion: 1\n")
    (described / "entry_points.txt").write_text(f"[{GROUP}]\nas_plugin = zpptool.engines.vllm.plugin:register\n")
    return directory
